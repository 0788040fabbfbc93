//! The one task that owns the node's state: facts come in as events, the cores decide, and this turns their decisions
//! into I/O.
//!
//! - here: the loop, what peers say, and what others see
//! - `start`: everything that must stand before the loop begins
//! - `coordinator`: metadata, campaigns, roster, permits and reports
//! - `artifacts`: the swarm's outputs, pieces, and whole images
//! - `attempts`: devices, admission and running attempts
//! - `audit`: checkpoints of the audit log
//! - `bundles`: a campaign and its images by hand
//! - `delta`: new images out of old ones
//! - `evidence`: the signed reports that permits rest on
//! - `hosts`: hosts that step aside for an attempt
//! - `possession`: proofs that images are here
//! - `safety`: brakes and revocations
//! - `renewal`: the node's own certificate
//! - `restart`: the node's own restart, for an update of itself
//! - `words`: what people read besides: transcripts, and names of credentials' profiles
//! - `traces`: what an OpenTelemetry collector is told
//! - `room`: what the store keeps and what it gives up
//!
//! Invariants: nothing blocks the loop longer than a journal write; a promise to a peer or the coordinator follows the
//! durable fact it rests on; every task spawned here is awaited at shutdown.

mod artifacts;
mod attempts;
mod audit;
mod bundles;
mod coordinator;
mod delta;
mod evidence;
mod hosts;
mod possession;
mod renewal;
mod restart;
mod room;
mod roster;
mod safety;
mod start;
mod traces;
mod words;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use firmesh_executors::{HostInput, JournalError, News};
use firmesh_node_core::{
    approved::ApprovedCampaign,
    swarm::{self, FetchId, Source, Swarm},
};
use firmesh_protocol::{
    api::{Holding, SyncResponse, Traffic, TranscriptReport},
    identity::certificate_validity,
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256},
    manifest::Artifact,
    pieces::PieceSet,
    possession::{Challenge, Proof},
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
use tracing::{error, info, warn};

use crate::{
    audit::AuditWatch,
    campaigns::CampaignError,
    delta::{DeltaError, Plan},
    identity::Identity,
    images::Images,
    journal::NodeJournal,
    mesh::{Gossip, MeshCommand},
    own::RestartRequest,
    status::{BrakeRequest, BundleRequest, ClearRequest, DoctorRequest, Refusal, Status, StatusRequest},
    store::{ChunkStore, Lost, StoreError, Survey},
    transport::{Transport, TransportEvent},
    trust_store::{TrustError, TrustStore},
    uplink::{Uplink, UplinkError},
};
use artifacts::{PieceError, Sha256Check, Tracked};
use attempts::Devices;
use coordinator::Fleet;
use delta::{Deltas, Made};
use evidence::Evidence;
use hosts::Hosts;
use possession::Possession;
use room::Room;
use safety::{Brakes, Revocations};
pub use start::{RunError, run};
use traces::Traces;

/// How a piece came in.
#[derive(Debug, Default, Clone, Copy)]
struct Brought {
    /// Bytes that did not have to be fetched.
    reused: u64,
    /// How long the first byte of the others took.
    waited: Duration,
}

/// What happened outside the loop.
enum Event {
    Transport(TransportEvent),
    Fetched {
        id: FetchId,
        source: Source,
        artifact: ArtifactId,
        piece: u32,
        result: Result<Brought, PieceError>,
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
    Proven {
        challenge: Challenge,
        proof: std::io::Result<Proof>,
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
    Packed(std::io::Result<Box<TranscriptReport>>),
    ProfilesTold(Result<(), UplinkError>),
    TranscriptTold(Result<(), UplinkError>),
    Brake(BrakeRequest),
    Bundle(BundleRequest),
    Clear(ClearRequest),
    Doctor(DoctorRequest),
    BundleShown(Box<bundles::Shown>),
    Carried(bundles::Carried),
    Facts {
        device: DeviceId,
        facts: Option<DeviceFacts>,
    },
    News(News),
    Host {
        host: String,
        input: HostInput,
    },
    AttemptEnded {
        device: DeviceId,
        result: Result<firmesh_executors::Ended, firmesh_executors::RunError>,
    },
    Restart(RestartRequest),
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
    /// What came from each peer.
    fed_by: BTreeMap<NodeId, u64>,
    fleet: Fleet,
    possession: Possession,
    evidence: Evidence,
    brakes: Brakes,
    revocations: Revocations,
    /// This node's record, as it was signed last.
    record: NodeRecord,
    renew_at: Option<Instant>,
    devices: Devices,
    traces: Traces,
    words: words::Words,
    hosts: Hosts,
    restart: restart::Restart,
    heard: tokio::sync::watch::Sender<(firmesh_node_core::own::Heard, tokio::time::Instant)>,
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
                    self.note_heard(None);
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
            self.tick_hosts()?;
            self.look_at_room_if_due();
            self.sync_if_due()?;
            self.restart_if_quiet()?;
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
            Event::Proven { challenge, proof } => {
                self.on_proven(&challenge, proof);
                Ok(())
            }
            Event::Synced(result) => self.on_synced(*result),
            Event::Refreshed(refreshed) => self.on_refreshed(*refreshed),
            Event::Gossip(gossip) => self.on_gossip(gossip),
            Event::Evidence {
                campaign,
                digest,
                found,
            } => self.on_evidence(&campaign, digest, found),
            Event::Renewed(answer) => self.on_renewed(answer),
            Event::Packed(packed) => {
                self.on_packed(packed);
                Ok(())
            }
            Event::ProfilesTold(result) => {
                self.on_profiles_told(result);
                Ok(())
            }
            Event::TranscriptTold(result) => {
                self.on_transcript_told(result);
                Ok(())
            }
            Event::Brake(BrakeRequest { envelope, answer }) => {
                answer.send(self.learn_brake(&envelope)).ok(); // whoever brought it may have gone
                self.consider()
            }
            Event::Clear(ClearRequest { device, answer }) => {
                answer.send(self.clear(&device)?).ok(); // whoever said it may have gone
                self.consider()
            }
            Event::Doctor(request) => {
                self.examine(request);
                Ok(())
            }
            Event::Bundle(request) => {
                self.on_bundle(request);
                Ok(())
            }
            Event::BundleShown(shown) => self.on_bundle_shown(*shown),
            Event::Carried(carried) => self.on_carried(carried),
            Event::Facts { device, facts } => self.on_facts(&device, facts),
            Event::News(news) => self.on_news(news),
            Event::Host { host, input } => self.on_host(&host, input),
            Event::AttemptEnded { device, result } => self.on_attempt_ended(&device, result),
            Event::Restart(request) => {
                self.on_restart_asked(request);
                Ok(())
            }
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
        let others = self
            .sync_due_at()
            .into_iter()
            .chain(self.room.look_at())
            .chain(self.hosts_due_at());
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
                if !self.tracked.contains_key(&artifact) {
                    self.fleet.heed_rumour(&self.settings.node, self.settings.poll_interval);
                }
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
            hosts: self.hosts.status(self.now()),
            refusals: self.refusals.iter().cloned().collect(),
            brakes: self.brakes.all().cloned().collect(),
            revocations_version: self.revocations.list.version,
            certificate_until: certificate_validity(&self.identity.certificate())
                .map(|(_, until)| until)
                .ok(),
            audit: self.audit.status(),
            store: self.room.status(),
            last_error: self.last_error.clone(),
            spans_dropped: self.traces.tracer().counts().1,
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
