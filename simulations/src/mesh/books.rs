//! The promises of the mesh, judged after every event from the world's own books: what was served, what is on a disk, who was
//! banned. The core that keeps the promises is asked only what it believes.

use std::collections::BTreeSet;

use firmesh_node_core::swarm::Source;
use firmesh_protocol::{pieces::PieceSet, time::Timestamp};
use serde::Serialize;

use super::World;

/// What holds whatever goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promise {
    /// No byte is counted as held, announced or served that does not hash to the root.
    Verified,
    /// What was announced or acknowledged survives the process, and is never fetched again.
    Durable,
    /// Requests in flight stay within the tuning, and a piece is asked for at most twice at once.
    Bounded,
    /// A peer that was banned is not asked again.
    Banned,
    /// Nobody honest is banned.
    Just,
    /// Every honest node has the image soon after the last trouble.
    Live,
    /// No assertion of ours fails.
    Sound,
}

impl Promise {
    /// As in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Durable => "durable",
            Self::Bounded => "bounded",
            Self::Banned => "banned",
            Self::Just => "just",
            Self::Live => "live",
            Self::Sound => "sound",
        }
    }
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Which.
    pub promise: Promise,
    /// When, in virtual milliseconds.
    pub at_ms: u64,
    /// How.
    pub how: String,
}

/// What the world knows, whatever the nodes say.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) broken: Option<Broken>,
    /// By node, the pieces that it announced or acknowledged in any of its lives.
    pub(super) said: Vec<PieceSet>,
    /// Who has banned whom, in the present life.
    pub(super) bans: BTreeSet<(usize, usize)>,
}

/// Some piece of `pieces` that is not in `of`.
fn beyond(pieces: &PieceSet, of: &PieceSet) -> Option<u32> {
    let mut rest = pieces.clone();
    rest.subtract(of);
    rest.iter().next()
}

impl World {
    /// The first broken promise is kept: what follows may be its doing.
    pub(super) fn blame(&mut self, promise: Promise, how: String) {
        let at = self.now.since(Timestamp::default());
        self.books.broken.get_or_insert_with(|| Broken {
            promise,
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            how,
        });
    }

    /// A node has dealt with something: what it counts as held is right, and on its disk for good.
    pub(super) fn judge_node(&mut self, at: usize) {
        let node = &self.nodes[at];
        let have = node.swarm.as_ref().and_then(|swarm| swarm.have(&self.artifact));
        let Some(have) = have.filter(|_| node.lie.is_none()) else {
            return;
        };
        if let Some(piece) = beyond(have, &node.right) {
            let how = format!("{} counts piece {piece}, of which it has no right bytes", node.id);
            self.blame(Promise::Verified, how);
        } else if let Some(piece) = beyond(have, &node.held) {
            let how = format!("{} counts piece {piece}, which is not durable yet", node.id);
            self.blame(Promise::Durable, how);
        }
    }

    /// A node tells others what it holds.
    pub(super) fn judge_word(&mut self, at: usize, pieces: &[u32]) {
        let node = &self.nodes[at];
        if node.lie.is_some() {
            return;
        }
        let early = pieces.iter().find(|piece| !node.held.contains(**piece));
        if let Some(piece) = early {
            let how = format!("{} announces piece {piece} before it is durable", node.id);
            self.blame(Promise::Durable, how);
        }
        for piece in pieces {
            self.books.said[at].insert(*piece);
        }
    }

    /// A node asks for a piece; the request is in its list already.
    pub(super) fn judge_request(&mut self, at: usize, source: &Source, piece: u32) {
        let node = &self.nodes[at];
        let of = |wanted: &Source| node.fetches.values().filter(|fetch| fetch.source == *wanted).count();
        let rivals = node.fetches.values().filter(|fetch| fetch.piece == piece).count();
        let most = match source {
            Source::Peer(_) => self.tuning.per_peer_max,
            Source::Origin => self.tuning.in_flight_max,
        };
        let (all, to_it, id) = (node.fetches.len(), of(source), node.id.clone());
        let asked_again = node.held.contains(piece);
        let is_banned = self
            .place(source)
            .is_some_and(|peer| self.books.bans.contains(&(at, peer)));
        if asked_again {
            self.blame(
                Promise::Durable,
                format!("{id} asks for piece {piece}, which it has on its disk"),
            );
        }
        if is_banned {
            self.blame(Promise::Banned, format!("{id} asks {source:?}, which it has banned"));
        }
        if all > self.tuning.in_flight_max || to_it > most || rivals > 2 {
            let how =
                format!("{id} has {all} requests in flight, {to_it} of them to {source:?}, {rivals} for piece {piece}");
            self.blame(Promise::Bounded, how);
        }
    }

    /// A node has banned a peer.
    pub(super) fn judge_ban(&mut self, at: usize, peer: usize, reason: &str) {
        self.books.bans.insert((at, peer));
        if self.nodes[peer].lie.is_none() {
            let how = format!("{} bans {}: {reason}", self.nodes[at].id, self.nodes[peer].id);
            self.blame(Promise::Just, how);
        }
    }

    /// A process has looked at what its disk holds.
    pub(super) fn judge_start(&mut self, at: usize) {
        let node = &self.nodes[at];
        if node.lie.is_some() {
            return;
        }
        if let Some(piece) = beyond(&self.books.said[at], &node.held) {
            let how = format!("{} announced piece {piece} and has lost it with its process", node.id);
            self.blame(Promise::Durable, how);
        } else if let Some(piece) = beyond(&node.held, &node.right) {
            let how = format!("{} finds piece {piece} and takes it for right", node.id);
            self.blame(Promise::Verified, how);
        }
    }

    /// The time is over: whoever could have the image by now has it.
    pub(super) fn judge_end(&mut self) {
        let expected = || self.nodes.iter().filter(|node| Self::is_expected(node));
        let mut there = PieceSet::empty(self.layout.pieces());
        expected().for_each(|node| there.unite(&node.held));
        let can_be = self.origin_is_alive || there.is_full();
        let lacking = expected().find(|node| node.whole_at.is_none());
        if let Some(node) = lacking.filter(|_| can_be) {
            let count = expected().filter(|node| node.whole_at.is_none()).count();
            let how = format!(
                "{count} nodes still lack the image; {} has {} of {} pieces",
                node.id,
                node.held.count(),
                self.layout.pieces()
            );
            self.blame(Promise::Live, how);
        }
    }
}
