//! Artifacts, as far as the loop is concerned: what the swarm decides becomes requests, pieces that came in become news, and
//! the whole is checked before a device gets it.
//!
//! Invariants: an artifact is asked for only after it is known what of it is here, and that there is room for the rest; a
//! device gets nothing whose SHA-256 is not the one that was approved.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use firmesh_executors::JournalError;
use firmesh_node_core::swarm::{self, FetchFailure, FetchId, Output, Source};
use firmesh_protocol::{
    chunk::{DecodeError, PieceLayout},
    ids::{ArtifactId, Sha256},
    manifest::{Artifact, Priority},
    pieces::PieceSet,
    wire::PeerMessage,
};
use tokio::io::AsyncReadExt as _;
use tracing::{debug, info, warn};

use super::{Brought, Chain, DISK_AGAIN, Event, Runtime, delta::Rest, unix_ms};
use crate::{
    status::TransferTimes,
    store::{Lost, PutError, Read, StoreError},
    transport::{FetchError, Received},
    uplink::{SLOW_ANSWER, UplinkError},
};

/// Why one piece did not come in.
#[derive(Debug, thiserror::Error)]
pub(super) enum PieceError {
    #[error(transparent)]
    Peer(#[from] FetchError),
    #[error(transparent)]
    Origin(#[from] UplinkError),
    #[error(transparent)]
    Put(#[from] PutError),
}

impl PieceError {
    pub(super) fn failure(&self) -> FetchFailure {
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
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Put(PutError::Store(error)) if error.is_full())
    }
}

/// An artifact this node collects.
pub(super) struct Tracked {
    pub(super) layout: PieceLayout,
    sha256: Sha256,
    priority: Priority,
    pub(super) durable_at_start: Option<u32>,
    pub(super) times: TransferTimes,
    pub(super) sha256_check: Sha256Check,
    /// When the last check of the whole began and ended, for people.
    pub(super) checked_ms: Option<(u64, u64)>,
    /// There is room for all of it: it may be fetched.
    pub(super) has_room: bool,
}

/// Whether the whole of an artifact has the SHA-256 that the approvers pinned. It is looked at when a device needs the
/// image: whoever only passes pieces on is content with the tree, and SHA-256 costs more than moving the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sha256Check {
    /// Not needed yet.
    Open,
    /// Under way, or to be tried again soon.
    Running,
    /// Every piece is here and the whole has it.
    Passed,
    /// It has another one.
    Failed,
}

impl Runtime {
    pub(super) fn tell_swarm(&mut self, input: swarm::Input) -> Result<(), JournalError> {
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
                    self.prove_next();
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
    pub(super) fn track(&mut self, image: &Artifact, priority: Priority) -> Result<(), JournalError> {
        // A coordinator that lies may have called it another image's recipe, with another length and digest.
        if self.deltas.forget_recipe(&image.id) {
            self.tracked.remove(&image.id);
            self.swarm
                .handle(self.now(), swarm::Input::Forget { artifact: image.id });
        }
        self.collect(image, priority)
    }

    /// Takes part in an artifact's swarm, once what is already here is known. The most urgent of several campaigns decides.
    pub(super) fn collect(&mut self, image: &Artifact, priority: Priority) -> Result<(), JournalError> {
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
            checked_ms: None,
            has_room: false,
        };
        self.tracked.insert(artifact, tracked);
        self.look_up(artifact, layout, Duration::ZERO);
        Ok(())
    }

    /// Tells the swarm and the data plane how urgent an artifact is that the swarm knows already.
    pub(super) fn take_part(&mut self, artifact: ArtifactId) -> Result<(), JournalError> {
        match self.swarm.have(&artifact).cloned() {
            Some(have) => self.want(artifact, have),
            None => Ok(()), // what is here is being looked up: it is told after that
        }
    }

    pub(super) fn want(&mut self, artifact: ArtifactId, have: PieceSet) -> Result<(), JournalError> {
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

    pub(super) fn look_up(&mut self, artifact: ArtifactId, layout: PieceLayout, after: Duration) {
        let store = Arc::clone(&self.store);
        self.spawn(async move {
            tokio::time::sleep(after).await;
            let pieces = store.pieces(artifact, layout).await;
            // What is not known to be whole is no help, and no harm.
            let whole = store.whole().await.unwrap_or_else(|error| {
                warn!(error = %Chain(&error), "it is not known which images are whole here: none is made of others");
                Vec::new()
            });
            Event::Held {
                artifact,
                pieces,
                whole,
            }
        });
    }

    pub(super) fn on_held(
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

    pub(super) fn fetch(&mut self, id: FetchId, source: Source, artifact: ArtifactId, piece: u32) {
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
                    && let Some(brought) = rest.fetch(plan, artifact, piece).await?
                {
                    return Ok(brought);
                }
                transport.await_budget(source.peer(), bytes).await;
                let Received { bytes, waited } = match &source {
                    Source::Peer(peer) => transport.fetch(peer, artifact, layout, piece).await?,
                    Source::Origin => uplink.piece(artifact, layout, piece).await?,
                };
                store.put(artifact, layout, piece, bytes).await?;
                Ok(Brought { reused: 0, waited })
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

    pub(super) fn on_fetched(
        &mut self,
        id: FetchId,
        source: &Source,
        artifact: ArtifactId,
        piece: u32,
        result: Result<Brought, PieceError>,
    ) -> Result<(), JournalError> {
        self.fetches.remove(&id);
        let held_before = self.swarm.have(&artifact).is_some_and(|have| have.contains(piece));
        let range = self
            .tracked
            .get(&artifact)
            .map_or(0..0, |tracked| tracked.layout.bytes(piece));
        let error = match result {
            Ok(Brought { reused, waited }) => {
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
                let came = (range.end - range.start).saturating_sub(reused);
                *counter += came;
                if let Source::Peer(peer) = source
                    && !held_before
                {
                    *self.fed_by.entry(peer.clone()).or_default() += came;
                }
                self.traffic.reused += reused;
                self.tell_swarm(swarm::Input::Fetched { id, waited })?;
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
    pub(super) fn check_whole(&mut self, artifact: ArtifactId) {
        let is_whole = self.swarm.have(&artifact).is_some_and(PieceSet::is_full);
        let open = |tracked: &&mut Tracked| tracked.sha256_check == Sha256Check::Open;
        if let Some(tracked) = self.tracked.get_mut(&artifact).filter(open)
            && is_whole
        {
            tracked.sha256_check = Sha256Check::Running;
            tracked.checked_ms = Some((unix_ms(), unix_ms()));
            self.hash_whole(artifact, Duration::ZERO);
        }
    }

    /// Checks the whole against the SHA-256 that the approvers pinned: the pieces were checked against the BLAKE3 root
    /// that the release keys signed, and the two must be about the same bytes.
    pub(super) fn hash_whole(&mut self, artifact: ArtifactId, after: Duration) {
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
            let sha256 = sha256_of(store.reader(artifact)).await;
            Event::Hashed { artifact, sha256 }
        });
    }

    pub(super) fn on_hashed(&mut self, artifact: ArtifactId, sha256: io::Result<Sha256>) -> Result<(), JournalError> {
        // What was begun before a piece was lost says nothing of what is here now.
        let running = |tracked: &&mut Tracked| tracked.sha256_check == Sha256Check::Running;
        let Some(tracked) = self.tracked.get_mut(&artifact).filter(running) else {
            return Ok(());
        };
        match sha256 {
            Ok(found) if found == tracked.sha256 => {
                tracked.sha256_check = Sha256Check::Passed;
                tracked.checked_ms = tracked.checked_ms.map(|(began, _)| (began, unix_ms()));
                let length = tracked.layout.length();
                self.room.note_whole(artifact, found, self.fleet.now());
                self.images.add(artifact, length);
                info!(%artifact, "an artifact has the SHA-256 that was approved");
                self.recipe_is_here(artifact, length)?;
                self.release_parked(artifact)?;
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

    pub(super) fn on_lost(&mut self, lost: Lost) -> Result<(), JournalError> {
        let Lost { artifact, piece } = lost;
        if let Some(tracked) = self.tracked.get_mut(&artifact) {
            tracked.sha256_check = Sha256Check::Open;
        }
        self.images.remove(artifact);
        self.possession.lost(&artifact);
        self.last_error = Some(format!(
            "piece {piece} of artifact {artifact} changed on disk; it is fetched again"
        ));
        self.tell_swarm(swarm::Input::Lost { artifact, piece })
    }
}

/// The SHA-256 of everything a reader gives. By ring: without the processor's own instructions for it, twice as fast as
/// portable code.
async fn sha256_of(mut reader: Pin<Box<dyn Read>>) -> io::Result<Sha256> {
    let mut hasher = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer).await? {
            0 => {
                let digest = hasher.finish();
                let bytes = <[u8; 32]>::try_from(digest.as_ref()).map_err(io::Error::other)?;
                return Ok(Sha256::from(bytes));
            }
            read => hasher.update(&buffer[..read]),
        }
    }
}
