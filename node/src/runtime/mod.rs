//! The one task that owns the node's state: facts come in as events, the cores decide, and this turns their decisions
//! into I/O.
//!
//! - here: the loop, and the swarm's outputs
//! - `start`: everything that must stand before the loop begins
//! - `coordinator`: metadata, campaigns, roster, permits and reports
//! - `attempts`: devices, admission and running attempts
//! - `audit`: checkpoints of the audit log
//! - `bundles`: a campaign and its images by hand
//! - `delta`: new images out of old ones
//! - `evidence`: the signed reports that permits rest on
//! - `safety`: brakes and revocations
//! - `renewal`: the node's own certificate
//! - `room`: what the store keeps and what it gives up
//!
//! Invariants: nothing blocks the loop longer than a journal write; a promise to a peer or the coordinator follows the
//! durable fact it rests on; every task spawned here is awaited at shutdown.

mod attempts;
mod audit;
mod bundles;
mod coordinator;
mod delta;
mod evidence;
mod renewal;
mod room;
mod safety;
mod start;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use firmesh_executors::{JournalError, News};
use firmesh_node_core::{
    approved::ApprovedCampaign,
    swarm::{self, FetchFailure, FetchId, Output, Source, Swarm},
};
use firmesh_protocol::{
    api::{Holding, SyncResponse, Traffic},
    chunk::{DecodeError, PieceLayout},
    identity::certificate_validity,
    ids::{ArtifactId, CampaignId, DeviceId, Sha256},
    manifest::{Artifact, Priority},
    pieces::PieceSet,
    report::{DeviceFacts, NodeRecord},
    time::{Timestamp, WallTime},
    trust::TrustedFleet,
    wire::{GOT_PIECES_MAX, PeerMessage},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    audit::AuditWatch,
    campaigns::CampaignError,
    delta::{DeltaError, Plan},
    identity::Identity,
    images::Images,
    journal::NodeJournal,
    mesh::{Gossip, MeshCommand},
    status::{BrakeRequest, BundleRequest, Refusal, Status, StatusRequest, TransferTimes},
    store::{ChunkStore, Lost, PutError, StoreError, Survey},
    transport::{FetchError, Transport, TransportEvent},
    trust_store::{TrustError, TrustStore},
    uplink::{SLOW_ANSWER, Uplink, UplinkError},
};
use attempts::Devices;
use coordinator::Fleet;
use delta::{Deltas, Made, Rest};
use evidence::Evidence;
use room::Room;
use safety::{Brakes, Revocations};
pub use start::{RunError, run};

/// What happened outside the loop.
enum Event {
    Transport(TransportEvent),
    Fetched {
        id: FetchId,
        source: Source,
        artifact: ArtifactId,
        piece: u32,
        /// How many bytes of it did not have to be fetched.
        result: Result<u64, PieceError>,
    },
    Held {
        artifact: ArtifactId,
        pieces: Result<PieceSet, StoreError>,
        /// Artifacts that are whole here.
        whole: Vec<(ArtifactId, u64)>,
    },
    RecipeNamed {
        image: ArtifactId,
        found: Result<Option<Artifact>, UplinkError>,
    },
    Planned {
        image: ArtifactId,
        plan: Result<Plan, DeltaError>,
    },
    Made {
        image: ArtifactId,
        piece: u32,
        made: Made,
    },
    Hashed {
        artifact: ArtifactId,
        sha256: std::io::Result<Sha256>,
    },
    Synced(Box<Result<SyncResponse, UplinkError>>),
    Refreshed(Box<Refreshed>),
    Gossip(Gossip),
    Evidence {
        campaign: CampaignId,
        digest: Sha256,
        found: Result<Bytes, UplinkError>,
    },
    Renewed(Result<String, UplinkError>),
    Brake(BrakeRequest),
    Bundle(BundleRequest),
    BundleShown(Box<bundles::Shown>),
    Carried(bundles::Carried),
    Facts {
        device: DeviceId,
        facts: Option<DeviceFacts>,
    },
    News(News),
    AttemptEnded {
        device: DeviceId,
        result: Result<firmesh_executors::Ended, firmesh_executors::RunError>,
    },
    Lost(Lost),
    Surveyed(Result<Survey, StoreError>),
    Evicted {
        artifact: ArtifactId,
        result: Result<(), StoreError>,
    },
    Status(StatusRequest),
}

/// The outcome of a metadata refresh.
struct Refreshed {
    fleet: Result<TrustedFleet, TrustError>,
    /// The fetch that did not bring a file.
    broken_off: Option<UplinkError>,
    campaigns: BTreeMap<CampaignId, Result<ApprovedCampaign, CampaignError>>,
    offered_version: u64,
    /// The latest time this node has proof of.
    known_time: WallTime,
}

/// Why one piece did not come in.
#[derive(Debug, thiserror::Error)]
enum PieceError {
    #[error(transparent)]
    Peer(#[from] FetchError),
    #[error(transparent)]
    Origin(#[from] UplinkError),
    #[error(transparent)]
    Put(#[from] PutError),
}

impl PieceError {
    fn failure(&self) -> FetchFailure {
        match self {
            Self::Peer(FetchError::Unreachable(_))
            | Self::Origin(_)
            | Self::Put(PutError::Corrupt(DecodeError::Truncated { .. })) => FetchFailure::Unreachable,
            Self::Peer(FetchError::NotServed) => FetchFailure::NotHeld,
            Self::Peer(FetchError::TooLong) | Self::Put(PutError::Corrupt(_)) => FetchFailure::Corrupt,
            Self::Put(PutError::Store(_)) => FetchFailure::LocalStore,
        }
    }

    /// Whether this node's disk has no room for it.
    fn is_full(&self) -> bool {
        matches!(self, Self::Put(PutError::Store(error)) if error.is_full())
    }
}

/// An artifact this node collects.
struct Tracked {
    layout: PieceLayout,
    sha256: Sha256,
    priority: Priority,
    durable_at_start: Option<u32>,
    times: TransferTimes,
    sha256_check: Sha256Check,
    /// There is room for all of it: it may be fetched.
    has_room: bool,
}

/// Whether the whole of an artifact has the SHA-256 that the approvers pinned. It is looked at when a device needs the
/// image: whoever only passes pieces on is content with the tree, and SHA-256 costs more than moving the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sha256Check {
    /// Not needed yet.
    Open,
    /// Under way, or to be tried again soon.
    Running,
    /// Every piece is here and the whole has it.
    Passed,
    /// It has another one.
    Failed,
}

/// The last refusals shown in the status.
const REFUSALS_MAX: usize = 16;

/// How long before a disk that failed is asked again.
const DISK_AGAIN: Duration = Duration::from_secs(10);

/// How often the roster is looked at for peers to dial, and the certificate for whether its time is up.
const DIAL_INTERVAL: Duration = Duration::from_millis(500);

struct Runtime {
    settings: crate::config::Settings,
    identity: Identity,
    started: Instant,
    journal: Arc<NodeJournal>,
    store: Arc<dyn ChunkStore>,
    room: Room,
    images: Images,
    transport: Transport,
    mesh: mpsc::Sender<MeshCommand>,
    uplink: Uplink,
    trust: Arc<tokio::sync::Mutex<TrustStore>>,
    audit: AuditWatch,
    swarm: Swarm,
    tracked: BTreeMap<ArtifactId, Tracked>,
    deltas: Deltas,
    fetches: BTreeMap<FetchId, (Source, AbortHandle)>,
    traffic: Traffic,
    fleet: Fleet,
    evidence: Evidence,
    brakes: Brakes,
    revocations: Revocations,
    /// This node's record, as it was signed last.
    record: NodeRecord,
    renew_at: Option<Instant>,
    devices: Devices,
    refusals: VecDeque<Refusal>,
    last_error: Option<String>,
    events: mpsc::Sender<Event>,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
}

impl Runtime {
    async fn main_loop(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), RunError> {
        let cancel = self.cancel.clone();
        let mut dial = tokio::time::interval(DIAL_INTERVAL);
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(event) = events.recv() => self.on_event(event)?,
                () = tokio::time::sleep_until(deadline.into()) => {}
                _ = dial.tick() => {
                    self.transport.dial_missing();
                    self.renew_if_due();
                }
                Some(joined) = self.tasks.join_next() => {
                    // Whatever the task was to report never comes: better to start again than to wait for it.
                    if let Err(error) = joined && error.is_panic() {
                        return Err(RunError::TaskDied(error));
                    }
                }
            }
            if self.swarm.deadline().is_some_and(|due| due <= self.now()) {
                self.tell_swarm(swarm::Input::Tick)?;
            }
            self.look_at_room_if_due();
            self.sync_if_due()?;
        }
        info!("shutting down");
        drop(events);
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.transport.shutdown().await;
        self.store.shutdown().await.map_err(RunError::Store)
    }

    fn on_event(&mut self, event: Event) -> Result<(), JournalError> {
        match event {
            Event::Transport(event) => self.on_transport(event),
            Event::Fetched {
                id,
                source,
                artifact,
                piece,
                result,
            } => self.on_fetched(id, &source, artifact, piece, result),
            Event::Held {
                artifact,
                pieces,
                whole,
            } => self.on_held(artifact, pieces, whole),
            Event::RecipeNamed { image, found } => self.on_recipe_named(image, found),
            Event::Planned { image, plan } => self.on_planned(image, plan),
            Event::Made { image, piece, made } => self.on_made(image, piece, made),
            Event::Hashed { artifact, sha256 } => self.on_hashed(artifact, sha256),
            Event::Synced(result) => self.on_synced(*result),
            Event::Refreshed(refreshed) => self.on_refreshed(*refreshed),
            Event::Gossip(gossip) => self.on_gossip(gossip),
            Event::Evidence {
                campaign,
                digest,
                found,
            } => self.on_evidence(&campaign, digest, found),
            Event::Renewed(answer) => self.on_renewed(answer),
            Event::Brake(BrakeRequest { envelope, answer }) => {
                answer.send(self.learn_brake(&envelope)).ok(); // whoever brought it may have gone
                self.consider()
            }
            Event::Bundle(request) => {
                self.on_bundle(request);
                Ok(())
            }
            Event::BundleShown(shown) => self.on_bundle_shown(*shown),
            Event::Carried(carried) => self.on_carried(carried),
            Event::Facts { device, facts } => self.on_facts(&device, facts),
            Event::News(news) => self.on_news(news),
            Event::AttemptEnded { device, result } => self.on_attempt_ended(&device, result),
            Event::Lost(lost) => self.on_lost(lost),
            Event::Surveyed(survey) => self.on_surveyed(survey),
            Event::Evicted { artifact, result } => self.on_evicted(artifact, result),
            Event::Status(answer) => {
                answer.send(self.status()).ok(); // whoever asked may have gone
                Ok(())
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::after_start(self.started.elapsed())
    }

    fn next_deadline(&self) -> Instant {
        let swarm = self.swarm.deadline().map(|at| self.started + at.since_start());
        let latest = Instant::now() + Duration::from_secs(1);
        let others = self.sync_due_at().into_iter().chain(self.room.look_at());
        swarm.into_iter().chain(others).fold(latest, Instant::min)
    }

    fn spawn(&mut self, event: impl Future<Output = Event> + Send + 'static) -> AbortHandle {
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let event = event.await;
            events.send(event).await.ok(); // the loop stops listening only at shutdown
        })
    }

    fn refuse(&mut self, code: &str, detail: String) {
        warn!(code, detail, "refused");
        let refusal = Refusal {
            code: code.to_owned(),
            detail,
        };
        // Each is shown once: two that alternate must not drive out the others.
        self.refusals.retain(|known| *known != refusal);
        self.refusals.push_back(refusal);
        if self.refusals.len() > REFUSALS_MAX {
            self.refusals.pop_front();
        }
    }

    /// An answer that this node broke off is told by its name.
    fn name_misconduct(&mut self, error: &UplinkError) {
        if error.is_misconduct() {
            self.refuse(error.code(), Chain(error).to_string());
        }
    }

    // The swarm.

    fn tell_swarm(&mut self, input: swarm::Input) -> Result<(), JournalError> {
        let mut complete = Vec::new();
        self.swarm.handle(self.now(), input);
        while let Some(output) = self.swarm.poll() {
            match output {
                Output::Fetch {
                    id,
                    source,
                    artifact,
                    piece,
                } => self.fetch(id, source, artifact, piece),
                Output::Cancel { id, overdue } => {
                    let Some((source, task)) = self.fetches.remove(&id) else {
                        continue;
                    };
                    task.abort();
                    if overdue && source == Source::Origin {
                        let detail = "the coordinator does not bring the pieces of an image in the time they are given";
                        self.refuse(SLOW_ANSWER, detail.to_owned());
                    }
                }
                Output::Announce {
                    artifact,
                    pieces,
                    audience,
                } => self.transport.tell(audience, &PeerMessage::Got { artifact, pieces }),
                Output::Withdraw { artifact } => {
                    if let Some(pieces) = self.swarm.have(&artifact).cloned() {
                        self.transport.broadcast(&PeerMessage::Holds { artifact, pieces });
                    }
                }
                Output::Ban { peer, reason } => {
                    warn!(%peer, reason, "banned a peer");
                    self.transport.ban(&peer, reason);
                    self.fleet.sync_soon();
                }
                Output::Complete { artifact } => {
                    if let Some(tracked) = self.tracked.get_mut(&artifact) {
                        tracked.times.whole_ms = Some(unix_ms());
                    }
                    info!(%artifact, "every piece of an artifact is here");
                    self.fleet.sync_soon();
                    if self.devices.is_awaited(artifact) || self.deltas.is_recipe(&artifact) {
                        self.check_whole(artifact);
                    }
                    complete.push(artifact);
                }
            }
        }
        for artifact in &complete {
            self.end_delta(*artifact)?;
        }
        match complete.is_empty() {
            true => Ok(()),
            false => self.consider(),
        }
    }

    /// Takes part in the swarm of an image that was signed.
    fn track(&mut self, image: &Artifact, priority: Priority) -> Result<(), JournalError> {
        // A coordinator that lies may have called it another image's recipe, with another length and digest.
        if self.deltas.forget_recipe(&image.id) {
            self.tracked.remove(&image.id);
            self.swarm
                .handle(self.now(), swarm::Input::Forget { artifact: image.id });
        }
        self.collect(image, priority)
    }

    /// Takes part in an artifact's swarm, once what is already here is known. The most urgent of several campaigns decides.
    fn collect(&mut self, image: &Artifact, priority: Priority) -> Result<(), JournalError> {
        let Artifact {
            id: artifact,
            length,
            sha256,
        } = *image;
        if let Some(tracked) = self.tracked.get_mut(&artifact) {
            if tracked.priority >= priority {
                return Ok(());
            }
            tracked.priority = priority;
            return self.take_part(artifact);
        }
        if self.room.is_leaving(&artifact) {
            return Ok(());
        }
        let layout = PieceLayout::new(length);
        let tracked = Tracked {
            layout,
            sha256,
            priority,
            durable_at_start: None,
            times: TransferTimes {
                wanted_ms: unix_ms(),
                whole_ms: None,
            },
            sha256_check: Sha256Check::Open,
            has_room: false,
        };
        self.tracked.insert(artifact, tracked);
        self.look_up(artifact, layout, Duration::ZERO);
        Ok(())
    }

    /// Tells the swarm and the data plane how urgent an artifact is that the swarm knows already.
    fn take_part(&mut self, artifact: ArtifactId) -> Result<(), JournalError> {
        match self.swarm.have(&artifact).cloned() {
            Some(have) => self.want(artifact, have),
            None => Ok(()), // what is here is being looked up: it is told after that
        }
    }

    fn want(&mut self, artifact: ArtifactId, have: PieceSet) -> Result<(), JournalError> {
        let priority = self
            .tracked
            .get(&artifact)
            .map_or(Priority::Normal, |tracked| tracked.priority);
        self.transport.set_priority(artifact, priority);
        self.tell_swarm(swarm::Input::Want {
            artifact,
            have,
            priority,
        })
    }

    fn look_up(&mut self, artifact: ArtifactId, layout: PieceLayout, after: Duration) {
        let store = Arc::clone(&self.store);
        self.spawn(async move {
            tokio::time::sleep(after).await;
            let pieces = store.pieces(artifact, layout).await;
            // What is not known to be whole is no help, and no harm.
            let whole = store.whole().await.unwrap_or_default();
            Event::Held {
                artifact,
                pieces,
                whole,
            }
        });
    }

    fn on_held(
        &mut self,
        artifact: ArtifactId,
        pieces: Result<PieceSet, StoreError>,
        whole: Vec<(ArtifactId, u64)>,
    ) -> Result<(), JournalError> {
        match pieces {
            Ok(have) => {
                let Some(tracked) = self.tracked.get_mut(&artifact) else {
                    return Ok(());
                };
                tracked.durable_at_start.get_or_insert_with(|| have.count());
                tracked.has_room |= have.is_full();
                if !tracked.has_room {
                    // A part that nobody here needs any more is neither completed nor offered.
                    match self.is_needed(&artifact) {
                        true => self.await_room(artifact),
                        false => drop(self.tracked.remove(&artifact)),
                    }
                    return Ok(());
                }
                info!(%artifact, have = have.count(), of = have.total(), "taking part in an artifact");
                self.transport.broadcast(&PeerMessage::Holds {
                    artifact,
                    pieces: have.clone(),
                });
                self.begin_delta(artifact, &have, whole)?;
                self.want(artifact, have)
            }
            Err(error) => {
                self.local_error(&error);
                if let Some(layout) = self.tracked.get(&artifact).map(|tracked| tracked.layout) {
                    self.look_up(artifact, layout, DISK_AGAIN);
                }
                Ok(())
            }
        }
    }

    fn fetch(&mut self, id: FetchId, source: Source, artifact: ArtifactId, piece: u32) {
        let Some(layout) = self.tracked.get(&artifact).map(|tracked| tracked.layout) else {
            return;
        };
        let (store, transport, uplink) = (Arc::clone(&self.store), self.transport.clone(), self.uplink.clone());
        let asked = source.clone();
        let plan = self.deltas.plan(&artifact);
        let task = self.spawn(async move {
            let bytes = layout.bytes(piece);
            let bytes = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
            let result = async {
                let rest = Rest {
                    store: &*store,
                    transport: &transport,
                    uplink: &uplink,
                    source: &source,
                };
                if let Some(plan) = &plan
                    && let Some(reused) = rest.fetch(plan, artifact, piece).await?
                {
                    return Ok(reused);
                }
                let encoded = match &source {
                    Source::Peer(peer) => {
                        transport.await_budget(Some(peer), bytes).await;
                        transport.fetch(peer, artifact, layout, piece).await?
                    }
                    Source::Origin => {
                        transport.await_budget(None, bytes).await;
                        uplink.piece(artifact, layout, piece).await?
                    }
                };
                store.put(artifact, layout, piece, encoded).await?;
                Ok(0)
            };
            let result = result.await;
            Event::Fetched {
                id,
                source,
                artifact,
                piece,
                result,
            }
        });
        self.fetches.insert(id, (asked, task));
    }

    fn on_fetched(
        &mut self,
        id: FetchId,
        source: &Source,
        artifact: ArtifactId,
        piece: u32,
        result: Result<u64, PieceError>,
    ) -> Result<(), JournalError> {
        self.fetches.remove(&id);
        let held_before = self.swarm.have(&artifact).is_some_and(|have| have.contains(piece));
        let range = self
            .tracked
            .get(&artifact)
            .map_or(0..0, |tracked| tracked.layout.bytes(piece));
        let error = match result {
            Ok(reused) => {
                let counter = match source {
                    _ if held_before => &mut self.traffic.fetched_again,
                    Source::Origin => &mut self.traffic.from_origin,
                    Source::Peer(peer) => {
                        let theirs = self.swarm.path_of(peer).and_then(|path| path.parent());
                        match theirs == self.settings.path.parent() {
                            true => &mut self.traffic.from_rack,
                            false => &mut self.traffic.from_other_racks,
                        }
                    }
                };
                *counter += (range.end - range.start).saturating_sub(reused);
                self.traffic.reused += reused;
                self.tell_swarm(swarm::Input::Fetched { id })?;
                // The request may have been given up while its piece was being stored: it is here all the same.
                return self.tell_swarm(swarm::Input::Stored { artifact, piece });
            }
            Err(error) => error,
        };
        let why = error.failure();
        debug!(?source, ?why, error = %Chain(&error), "a piece did not come in");
        if let PieceError::Origin(error) = &error {
            self.name_misconduct(error);
        }
        match why {
            FetchFailure::Corrupt => self.traffic.verification_failures += 1,
            FetchFailure::LocalStore => {
                self.local_error(&error);
                if error.is_full() {
                    self.on_store_full(artifact)?;
                }
            }
            FetchFailure::NotHeld | FetchFailure::Unreachable => {}
        }
        self.tell_swarm(swarm::Input::Failed { id, why })
    }

    /// Begins to check an artifact that is here and that a device needs, if that has not been done yet.
    fn check_whole(&mut self, artifact: ArtifactId) {
        let is_whole = self.swarm.have(&artifact).is_some_and(PieceSet::is_full);
        let open = |tracked: &&mut Tracked| tracked.sha256_check == Sha256Check::Open;
        if let Some(tracked) = self.tracked.get_mut(&artifact).filter(open)
            && is_whole
        {
            tracked.sha256_check = Sha256Check::Running;
            self.hash_whole(artifact, Duration::ZERO);
        }
    }

    /// Checks the whole against the SHA-256 that the approvers pinned: the pieces were checked against the BLAKE3 root
    /// that the release keys signed, and the two must be about the same bytes.
    fn hash_whole(&mut self, artifact: ArtifactId, after: Duration) {
        if let Some(known) = self.room.store.sha256(artifact) {
            // Found before this start: bytes of this root have it for good, and the scrub looks after the bytes.
            self.spawn(std::future::ready(Event::Hashed {
                artifact,
                sha256: Ok(known),
            }));
            return;
        }
        let store = Arc::clone(&self.store);
        self.spawn(async move {
            tokio::time::sleep(after).await;
            let sha256 = coordinator::sha256_of(store.reader(artifact)).await;
            Event::Hashed { artifact, sha256 }
        });
    }

    fn on_hashed(&mut self, artifact: ArtifactId, sha256: std::io::Result<Sha256>) -> Result<(), JournalError> {
        // What was begun before a piece was lost says nothing of what is here now.
        let running = |tracked: &&mut Tracked| tracked.sha256_check == Sha256Check::Running;
        let Some(tracked) = self.tracked.get_mut(&artifact).filter(running) else {
            return Ok(());
        };
        match sha256 {
            Ok(found) if found == tracked.sha256 => {
                tracked.sha256_check = Sha256Check::Passed;
                let length = tracked.layout.length();
                self.room.note_whole(artifact, found, self.fleet.now());
                self.images.add(artifact, length);
                info!(%artifact, "an artifact has the SHA-256 that was approved");
                self.recipe_is_here(artifact, length)?;
                self.release_parked(artifact);
                self.consider()
            }
            Ok(found) => {
                tracked.sha256_check = Sha256Check::Failed;
                let detail = format!(
                    "artifact {artifact} has the SHA-256 {found}, {} was approved",
                    tracked.sha256
                );
                self.traffic.verification_failures += 1;
                self.refuse("sha256_mismatch", detail);
                Ok(())
            }
            Err(error) => {
                // Where a piece was lost, it comes again first, and then the whole is looked at again.
                let is_whole = self.swarm.have(&artifact).is_some_and(PieceSet::is_full);
                tracked.sha256_check = if is_whole {
                    Sha256Check::Running
                } else {
                    Sha256Check::Open
                };
                self.local_error(&error);
                if is_whole {
                    self.hash_whole(artifact, DISK_AGAIN);
                }
                Ok(())
            }
        }
    }

    fn on_lost(&mut self, lost: Lost) -> Result<(), JournalError> {
        let Lost { artifact, piece } = lost;
        if let Some(tracked) = self.tracked.get_mut(&artifact) {
            tracked.sha256_check = Sha256Check::Open;
        }
        self.images.remove(artifact);
        self.last_error = Some(format!(
            "piece {piece} of artifact {artifact} changed on disk; it is fetched again"
        ));
        self.tell_swarm(swarm::Input::Lost { artifact, piece })
    }

    fn on_transport(&mut self, event: TransportEvent) -> Result<(), JournalError> {
        let input = match event {
            TransportEvent::Up(peer) => {
                let holdings: Vec<_> = self
                    .swarm
                    .holdings()
                    .map(|(id, pieces)| (*id, pieces.clone()))
                    .collect();
                for (artifact, pieces) in holdings {
                    self.transport.send(&peer, PeerMessage::Holds { artifact, pieces });
                }
                self.tell_newcomer(&peer);
                swarm::Input::PeerUp { peer }
            }
            TransportEvent::Down(peer) => swarm::Input::PeerDown { peer },
            TransportEvent::Misbehaved(peer, reason) => swarm::Input::PeerMisbehaved { peer, reason },
            TransportEvent::Said(peer, PeerMessage::Holds { artifact, pieces }) => {
                swarm::Input::PeerHolds { peer, artifact, pieces }
            }
            TransportEvent::Said(peer, PeerMessage::Got { artifact, pieces }) => {
                debug_assert!(pieces.len() <= GOT_PIECES_MAX);
                swarm::Input::PeerGot { peer, artifact, pieces }
            }
            TransportEvent::Said(peer, PeerMessage::Dropped { artifact }) => {
                swarm::Input::PeerDropped { peer, artifact }
            }
            TransportEvent::Said(_, PeerMessage::Hello { .. }) => return Ok(()),
            TransportEvent::Said(peer, message) => return self.on_peer_word(&peer, &message),
        };
        self.tell_swarm(input)
    }

    fn local_error(&mut self, error: &(dyn std::error::Error + 'static)) {
        let text = Chain(error).to_string();
        error!(error = text, "this node's disk needs a person");
        self.last_error = Some(text);
    }

    // What others see.

    fn traffic(&self) -> Traffic {
        let served = self.transport.served();
        Traffic {
            to_rack: served.to_rack.load(Ordering::Relaxed),
            to_other_racks: served.to_other_racks.load(Ordering::Relaxed),
            ..self.traffic
        }
    }

    fn holdings(&self) -> Vec<Holding> {
        self.swarm
            .holdings()
            .filter(|(artifact, _)| !self.deltas.is_recipe(artifact))
            .map(|(artifact, pieces)| Holding {
                artifact: *artifact,
                pieces: pieces.count(),
                pieces_total: pieces.total(),
            })
            .collect()
    }

    /// What is tracked for its own sake.
    fn tracked_images(&self) -> impl Iterator<Item = (&ArtifactId, &Tracked)> {
        self.tracked.iter().filter(|(id, _)| !self.deltas.is_recipe(id))
    }

    fn banned(&self) -> BTreeMap<firmesh_protocol::ids::NodeId, String> {
        self.swarm
            .banned()
            .map(|(peer, reason)| (peer.clone(), reason.to_owned()))
            .collect()
    }

    fn status(&self) -> Status {
        Status {
            node: self.settings.node.clone(),
            path: self.settings.path.clone(),
            version: crate::VERSION.to_owned(),
            coordinator_reachable: self.fleet.coordinator_reachable,
            timestamp_version: self.fleet.timestamp_version,
            members: self.fleet.roster.len(),
            connected: self.transport.connected(),
            holdings: self.holdings(),
            holders: self
                .fleet
                .campaigns
                .values()
                .flat_map(|campaign| campaign.artifacts())
                .map(|artifact| (artifact.to_string(), self.swarm.holders(&artifact)))
                .collect(),
            traffic: self.traffic(),
            durable_at_start: self
                .tracked_images()
                .filter_map(|(id, tracked)| Some((id.to_string(), tracked.durable_at_start?)))
                .collect(),
            transfers: self
                .tracked_images()
                .map(|(id, tracked)| (id.to_string(), tracked.times))
                .collect(),
            banned: self.banned(),
            campaigns: self.fleet.campaigns.keys().cloned().collect(),
            devices: self.devices.facts(),
            attempts: self.devices.attempts(),
            refusals: self.refusals.iter().cloned().collect(),
            brakes: self.brakes.all().cloned().collect(),
            revocations_version: self.revocations.list.version,
            certificate_until: certificate_validity(&self.identity.certificate())
                .map(|(_, until)| until)
                .ok(),
            audit: self.audit.status(),
            store: self.room.status(),
            last_error: self.last_error.clone(),
        }
    }
}

/// For people and statistics: nothing is decided by it.
fn unix_ms() -> u64 {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

/// An error and all its causes in one line.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
