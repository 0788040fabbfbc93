//! The swarm: an image enters each site and each rack about once, and spreads inside from neighbour to neighbour.
//!
//! For every piece the members of a group (a site, a rack) are ranked by rendezvous hashing; the first of them that is
//! alive imports the piece across the group's boundary, everybody else waits for it and takes it inside. The rank does
//! not depend on the group, so a site's importer is also its own rack's: no boundary is crossed twice. The first of the
//! whole fleet asks the origin, and the other sites take the piece from its site. Nobody coordinates; a silent, stalled or banned member drops out of the ranking and the next one takes over.
//!
//! Invariants: a piece is asked for once at a time, except a late one that is hedged once; a banned peer is never asked
//! again; requests in flight are bounded per source and in all; `Announce` follows only a verified, durable piece.

mod claims;
mod members;
mod news;
mod pick;
mod reach;
mod reserve;
mod roster;
#[cfg(test)]
mod tests;
mod window;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId, TopologyPath},
    manifest::Priority,
    pieces::PieceSet,
    time::Timestamp,
};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

use claims::Claims;
use members::Members;
pub use news::Audience;
use news::News;
use reserve::Reserved;
pub use roster::Roster;
use roster::{NodeKey, Strangers};
use window::{Distance, Window, Windows};

/// Names one request of this node; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// Where a piece comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Another node.
    Peer(NodeId),
    /// The coordinator's store.
    Origin,
}

impl Source {
    /// The node, if it is one.
    #[must_use]
    pub fn peer(&self) -> Option<&NodeId> {
        match self {
            Self::Peer(peer) => Some(peer),
            Self::Origin => None,
        }
    }
}

/// Why a request brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchFailure {
    /// The bytes did not hash to the root.
    Corrupt,
    /// The source announced the piece but does not serve it.
    NotHeld,
    /// The source could not be reached, or broke off.
    Unreachable,
    /// This node could not store the piece.
    LocalStore,
}

/// What the swarm is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// This node wants an artifact and already holds some of it.
    Want {
        /// The artifact.
        artifact: ArtifactId,
        /// The pieces that are verified and durable here.
        have: PieceSet,
        /// How urgent it is: a lower one waits while a higher one moves.
        priority: Priority,
    },
    /// This node does not take part in an artifact any more.
    Forget {
        /// The artifact.
        artifact: ArtifactId,
    },
    /// Pieces that this node is about to have without asking anybody: none of them is asked for until they are stored, or
    /// the time is over. Takes the place of what was reserved before.
    Reserve {
        /// The artifact, whether it is wanted already or not.
        artifact: ArtifactId,
        /// The pieces.
        pieces: PieceSet,
        /// When to ask for those that are still missing.
        until: Timestamp,
    },
    /// The nodes of the fleet: who may be waited for.
    Roster {
        /// Where each node stands.
        members: Arc<Roster>,
    },
    /// A peer's connection stands.
    PeerUp {
        /// The peer.
        peer: NodeId,
    },
    /// A peer's connection is gone.
    PeerDown {
        /// The peer.
        peer: NodeId,
    },
    /// A peer said all it holds of an artifact.
    PeerHolds {
        /// The peer.
        peer: NodeId,
        /// The artifact.
        artifact: ArtifactId,
        /// Its pieces.
        pieces: PieceSet,
    },
    /// A peer verified more pieces.
    PeerGot {
        /// The peer.
        peer: NodeId,
        /// The artifact.
        artifact: ArtifactId,
        /// The new pieces.
        pieces: Vec<u32>,
    },
    /// A peer does not hold an artifact any more.
    PeerDropped {
        /// The peer.
        peer: NodeId,
        /// The artifact.
        artifact: ArtifactId,
    },
    /// A peer broke the protocol in a way the shell saw.
    PeerMisbehaved {
        /// The peer.
        peer: NodeId,
        /// What it did.
        reason: &'static str,
    },
    /// The origin can, or cannot, be reached.
    Origin {
        /// Whether it can.
        available: bool,
    },
    /// A piece arrived, was verified and is durable.
    Fetched {
        /// The request.
        id: FetchId,
        /// Until its first byte came: what the way there and back takes, however wide it is.
        waited: Duration,
    },
    /// A piece is durable whose request was given up meanwhile.
    Stored {
        /// The artifact.
        artifact: ArtifactId,
        /// The piece.
        piece: u32,
    },
    /// A piece that was held is not any more: its bytes on disk changed.
    Lost {
        /// The artifact.
        artifact: ArtifactId,
        /// The piece.
        piece: u32,
    },
    /// A request brought nothing.
    Failed {
        /// The request.
        id: FetchId,
        /// Why.
        why: FetchFailure,
    },
    /// Only time has passed.
    Tick,
}

/// What the shell is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask for a piece, verify it, make it durable, and say how it went.
    Fetch {
        /// The request.
        id: FetchId,
        /// Whom to ask.
        source: Source,
        /// The artifact.
        artifact: ArtifactId,
        /// The piece.
        piece: u32,
    },
    /// Give up on a request; its outcome will be ignored.
    Cancel {
        /// The request.
        id: FetchId,
        /// Whether its source had enough time for it, and not that it is needed no more.
        overdue: bool,
    },
    /// Tell peers that this node holds more pieces.
    Announce {
        /// The artifact.
        artifact: ArtifactId,
        /// The pieces.
        pieces: Vec<u32>,
        /// Which peers.
        audience: Audience,
    },
    /// Tell every peer anew what this node holds of an artifact: it became less.
    Withdraw {
        /// The artifact.
        artifact: ArtifactId,
    },
    /// Close a peer's connections, refuse new ones, and report it.
    Ban {
        /// The peer.
        peer: NodeId,
        /// What it did.
        reason: &'static str,
    },
    /// Every piece of an artifact is verified and durable here.
    Complete {
        /// The artifact.
        artifact: ArtifactId,
    },
}

/// Bounds and time spans of the swarm.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Requests in flight in all.
    pub in_flight_max: usize,
    /// Requests in flight to one peer, unless it answers so fast that more of them fill its link.
    pub per_peer: usize,
    /// Requests in flight to a peer that answers as fast as can be.
    pub per_peer_max: usize,
    /// How long a member that was not heard of yet is waited for, counted from the moment the artifact was wanted.
    pub join_grace: Duration,
    /// A member without new pieces for this long, and not complete, is passed over as importer.
    pub stall_after: Duration,
    /// How long a connected member that has not said anything of the artifact is waited for.
    pub join_grace_connected: Duration,
    /// The shortest time a request is given.
    pub request_min: Duration,
    /// The time a request is given while nothing is known of its source.
    pub request_first: Duration,
    /// The longest time a request is given.
    pub request_max: Duration,
    /// How long a source that failed to answer is left alone.
    pub backoff: Duration,
    /// How often a peer may announce a piece and not serve it, before it is banned.
    pub false_announcements_max: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            in_flight_max: 20,
            per_peer: 2,
            per_peer_max: 8,
            join_grace: Duration::from_secs(3),
            stall_after: Duration::from_secs(5),
            join_grace_connected: Duration::from_secs(10),
            request_min: Duration::from_secs(3),
            request_first: Duration::from_secs(10),
            request_max: Duration::from_secs(60),
            backoff: Duration::from_secs(2),
            false_announcements_max: 3,
        }
    }
}

/// Why a peer is banned whose bitfield does not fit the signed length.
const OTHER_LENGTH: &str = "announced another number of pieces than the signed length gives";

/// How long news from peers is gathered before it is acted upon.
const GATHER: Duration = Duration::from_millis(10);

/// Nothing may come for so many times the mean time between two pieces before one more stranger is passed over.
const PATIENCE_FACTOR: u32 = 8;

/// The same, where pieces come one upon the other.
const PATIENCE_MIN: Duration = Duration::from_millis(250);

/// One artifact that this node collects and shares.
#[derive(Debug)]
struct Transfer {
    have: PieceSet,
    priority: Priority,
    wanted_since: Timestamp,
    /// When somebody, this node or a peer, last verified a piece that it did not hold before.
    moved_at: Timestamp,
    complete_told: bool,
    /// When a piece was last stored here, or it was wanted, and a moving average of the time between two.
    arrived_at: Timestamp,
    gap: Option<Duration>,
    /// Strangers that were passed over until then.
    passed_over: usize,
}

impl Transfer {
    /// How long nothing may come before one more stranger is passed over: pieces came at some pace until then.
    fn patience(&self, tuning: &Tuning) -> Duration {
        let longest = tuning.stall_after;
        self.gap.map_or(tuning.join_grace, |gap| {
            (gap * PATIENCE_FACTOR).clamp(PATIENCE_MIN.min(longest), longest)
        })
    }

    /// How many strangers were not worth waiting for.
    fn passed_over(&self, now: Timestamp, tuning: &Tuning) -> usize {
        let steps = now.since(self.arrived_at).as_millis() / self.patience(tuning).as_millis().max(1);
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        self.passed_over.saturating_add(steps)
    }

    /// When the next one is passed over.
    fn next_passed_over(&self, now: Timestamp, tuning: &Tuning) -> Timestamp {
        let steps = self.passed_over(now, tuning) - self.passed_over;
        let steps = u32::try_from(steps).unwrap_or(u32::MAX).saturating_add(1);
        self.arrived_at + self.patience(tuning).saturating_mul(steps)
    }

    /// A piece was stored. Who was passed over stays so, but never all of them: that takes one long silence.
    fn arrived(&mut self, now: Timestamp, tuning: &Tuning) {
        self.passed_over = self.passed_over(now, tuning).min(roster::PASSED_OVER_MAX - 1);
        let waited = now.since(self.arrived_at).min(self.patience(tuning));
        self.gap = Some(self.gap.map_or(waited, |gap| (gap * 7 + waited) / 8));
        self.arrived_at = now;
    }
}

/// The swarm core of one node.
#[derive(Debug)]
pub struct Swarm {
    me: NodeId,
    key: NodeKey,
    path: TopologyPath,
    tuning: Tuning,
    rng: ChaCha8Rng,
    transfers: BTreeMap<ArtifactId, Transfer>,
    members: Members,
    claims: Claims,
    news: News,
    windows: Windows<Window>,
    /// With the epoch of the members it was worked out in.
    strangers: (u64, Strangers),
    reach: BTreeMap<ArtifactId, reach::Reach>,
    reserved: Reserved,
    outputs: VecDeque<Output>,
    wake_at: Option<Timestamp>,
}

impl Swarm {
    /// A swarm of one node that stands at `path`. The seed breaks ties; the same seed and inputs give the same outputs.
    #[must_use]
    pub fn new(me: NodeId, path: TopologyPath, tuning: Tuning, seed: u64) -> Self {
        Self {
            key: NodeKey::of(&me),
            me,
            path,
            tuning,
            rng: ChaCha8Rng::seed_from_u64(seed),
            transfers: BTreeMap::new(),
            members: Members::default(),
            claims: Claims::default(),
            news: News::default(),
            windows: Windows::default(),
            strangers: Default::default(),
            reach: BTreeMap::new(),
            reserved: Reserved::default(),
            outputs: VecDeque::new(),
            wake_at: None,
        }
    }

    /// Takes in one fact.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        // What peers say comes in floods: it is looked at together, a little later. Everything else at once.
        let fill_at = match &input {
            Input::PeerGot { .. } | Input::PeerHolds { .. } => Some(now + GATHER),
            Input::Stored { artifact, piece } if self.have(artifact).is_some_and(|have| have.contains(*piece)) => None,
            Input::Tick => None,
            _ => Some(now),
        };
        self.wake_at = [self.wake_at, fill_at].into_iter().flatten().min();
        match input {
            Input::Want {
                artifact,
                have,
                priority,
            } => self.want(now, artifact, have, priority),
            Input::Forget { artifact } => self.forget(artifact),
            Input::Reserve {
                artifact,
                pieces,
                until,
            } => self.reserved.set(now, artifact, pieces, until),
            Input::Roster { members } => self.members.set_roster(members, &self.me, &self.path),
            Input::PeerUp { peer } => self.members.up(&peer, &self.path),
            Input::PeerDown { peer } => self.peer_down(&peer),
            Input::PeerHolds { peer, artifact, pieces } => self.peer_holds(now, &peer, artifact, pieces),
            Input::PeerGot { peer, artifact, pieces } => self.peer_got(now, &peer, artifact, &pieces),
            Input::PeerDropped { peer, artifact } => self.peer_dropped(&peer, artifact),
            Input::PeerMisbehaved { peer, reason } => self.ban(&peer, reason),
            Input::Origin { available } => self.members.set_origin(available),
            Input::Fetched { id, waited } => self.fetched(now, id, waited),
            Input::Stored { artifact, piece } => self.stored(now, artifact, piece, false),
            Input::Lost { artifact, piece } => self.lost(artifact, piece),
            Input::Failed { id, why } => self.failed(now, id, why),
            Input::Tick => {}
        }
        self.expire(now);
        self.fill_if_due(now);
        self.outputs.extend(self.news.due(now));
    }

    /// The next instruction, if there is one.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle`](Self::handle) with [`Input::Tick`] if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let deadlines = [
            self.claims.next_deadline(),
            self.wake_at,
            self.news.next_due(),
            self.reserved.next_due(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// What this node holds of an artifact it takes part in.
    #[must_use]
    pub fn have(&self, artifact: &ArtifactId) -> Option<&PieceSet> {
        self.transfers.get(artifact).map(|transfer| &transfer.have)
    }

    /// Every artifact this node takes part in, with what it holds.
    pub fn holdings(&self) -> impl Iterator<Item = (&ArtifactId, &PieceSet)> {
        self.transfers
            .iter()
            .map(|(artifact, transfer)| (artifact, &transfer.have))
    }

    /// How many peers say that they hold something of an artifact.
    #[must_use]
    pub fn holders(&self, artifact: &ArtifactId) -> usize {
        self.members.holders(artifact)
    }

    /// Peers that were banned, with the reason.
    pub fn banned(&self) -> impl Iterator<Item = (&NodeId, &'static str)> {
        self.members.banned()
    }

    /// Members with which a connection is to be kept, and those that have connected by themselves.
    pub fn neighbours(&self) -> impl Iterator<Item = &NodeId> {
        self.members.neighbours()
    }

    /// Where a member of the fleet stands.
    #[must_use]
    pub fn path_of(&self, peer: &NodeId) -> Option<&TopologyPath> {
        self.members.path_of(peer)
    }

    fn want(&mut self, now: Timestamp, artifact: ArtifactId, have: PieceSet, priority: Priority) {
        for peer in self.members.contradicting(&artifact, have.total()) {
            self.ban(&peer, OTHER_LENGTH);
        }
        self.transfers
            .entry(artifact)
            .and_modify(|transfer| transfer.priority = priority)
            .or_insert(Transfer {
                have,
                priority,
                wanted_since: now,
                moved_at: now,
                complete_told: false,
                arrived_at: now,
                gap: None,
                passed_over: 0,
            });
        self.tell_if_complete(now, artifact);
    }

    fn forget(&mut self, artifact: ArtifactId) {
        self.transfers.remove(&artifact);
        self.reach.remove(&artifact);
        self.reserved.forget(&artifact);
        self.news.forget(&artifact);
        for id in self.claims.of_artifact(&artifact) {
            self.cancel(id, false);
        }
    }

    fn peer_down(&mut self, peer: &NodeId) {
        self.members.down(peer);
        for id in self.claims.of_source(&Source::Peer(peer.clone())) {
            self.cancel(id, false);
        }
    }

    /// What was asked of the peer meanwhile is asked elsewhere: that it is not served is no false announcement.
    fn peer_dropped(&mut self, peer: &NodeId, artifact: ArtifactId) {
        self.members.dropped(peer, artifact);
        let asked = self.claims.of_source(&Source::Peer(peer.clone()));
        let of_it = self.claims.of_artifact(&artifact);
        for id in asked.into_iter().filter(|id| of_it.contains(id)) {
            self.cancel(id, false);
        }
    }

    fn peer_holds(&mut self, now: Timestamp, peer: &NodeId, artifact: ArtifactId, pieces: PieceSet) {
        let transfer = self.transfers.get(&artifact);
        if transfer.is_some_and(|transfer| transfer.have.total() != pieces.total()) {
            self.ban(peer, OTHER_LENGTH);
        } else if !self.members.holds_all(now, peer, artifact, pieces) {
            self.ban(peer, "announced more artifacts than a fleet has");
        }
    }

    fn peer_got(&mut self, now: Timestamp, peer: &NodeId, artifact: ArtifactId, pieces: &[u32]) {
        if self.members.got(now, peer, artifact, pieces)
            && let Some(transfer) = self.transfers.get_mut(&artifact)
        {
            transfer.moved_at = now;
        }
    }

    fn fetched(&mut self, now: Timestamp, id: FetchId, waited: Duration) {
        let Some(claim) = self.finish(id) else { return };
        let took = now.since(claim.since);
        self.members.succeeded(&claim.source, took);
        self.windows
            .arrived(claim.distance, took.saturating_sub(waited), self.tuning.in_flight_max);
        let brought_in = claim.distance != Distance::Inside;
        self.stored(now, claim.artifact, claim.piece, brought_in);
    }

    /// Notes a piece; `brought_in` from outside the rack, where others wait for it.
    fn stored(&mut self, now: Timestamp, artifact: ArtifactId, piece: u32, brought_in: bool) {
        for rival in self.claims.of_piece(&artifact, piece) {
            self.cancel(rival, false);
        }
        let Some(transfer) = self.transfers.get_mut(&artifact) else {
            return;
        };
        if transfer.have.insert(piece) {
            transfer.moved_at = now;
            transfer.arrived(now, &self.tuning);
            if brought_in {
                self.outputs.push_back(Output::Announce {
                    artifact,
                    pieces: vec![piece],
                    audience: Audience::Everyone,
                });
            } else {
                self.news.gather(now, artifact, piece);
            }
            self.tell_if_complete(now, artifact);
        }
    }

    fn lost(&mut self, artifact: ArtifactId, piece: u32) {
        let Some(transfer) = self.transfers.get_mut(&artifact) else {
            return;
        };
        if transfer.have.remove(piece) {
            transfer.complete_told = false;
            self.outputs.push_back(Output::Withdraw { artifact });
        }
    }

    fn failed(&mut self, now: Timestamp, id: FetchId, why: FetchFailure) {
        let Some(claim) = self.finish(id) else { return };
        let retry_at = now + self.tuning.backoff;
        match (&claim.source, why) {
            (Source::Peer(peer), FetchFailure::Corrupt) => {
                let peer = peer.clone();
                self.ban(&peer, "served bytes that do not hash to the artifact's root");
            }
            (Source::Peer(peer), FetchFailure::NotHeld) => {
                let strikes = self.members.not_held(peer, claim.artifact, claim.piece);
                if strikes >= self.tuning.false_announcements_max {
                    let peer = peer.clone();
                    self.ban(&peer, "announced pieces that it does not hold");
                }
            }
            (_, FetchFailure::LocalStore) => self.members.rest_everything_until(retry_at),
            (source, _) => self.members.failed(source, retry_at),
        }
    }

    /// Takes requests back that their source had enough time for, and leaves that source alone for a while.
    fn expire(&mut self, now: Timestamp) {
        if self.reserved.expire(now) {
            self.wake_at = Some(now);
        }
        for id in self.claims.overdue(now) {
            if let Some(claim) = self.cancel(id, true) {
                let waited = now.since(claim.since);
                self.wake_at = Some(now);
                self.members.overdue(&claim.source, waited, now + self.tuning.backoff);
            }
        }
    }

    fn cancel(&mut self, id: FetchId, overdue: bool) -> Option<claims::Claim> {
        let claim = self.finish(id);
        self.outputs.push_back(Output::Cancel { id, overdue });
        claim
    }

    fn finish(&mut self, id: FetchId) -> Option<claims::Claim> {
        let claim = self.claims.finish(id)?;
        self.members.asked_no_more(&claim.source);
        Some(claim)
    }

    fn ban(&mut self, peer: &NodeId, reason: &'static str) {
        if self.members.ban(peer, reason) {
            for id in self.claims.of_source(&Source::Peer(peer.clone())) {
                self.cancel(id, false);
            }
            self.outputs.push_back(Output::Ban {
                peer: peer.clone(),
                reason,
            });
        }
    }

    fn tell_if_complete(&mut self, now: Timestamp, artifact: ArtifactId) {
        let Some(transfer) = self.transfers.get_mut(&artifact) else {
            return;
        };
        if transfer.have.is_full() && !transfer.complete_told {
            transfer.complete_told = true;
            self.news.hurry(now, &artifact);
            self.outputs.push_back(Output::Complete { artifact });
        }
    }
}
