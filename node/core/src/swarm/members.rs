//! Who is there, what they hold, and how well they answer.

use std::{collections::BTreeMap, time::Duration};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId, TopologyPath},
    pieces::PieceSet,
    time::Timestamp,
};

use super::Source;

/// What a peer holds of one artifact, and when that last grew.
#[derive(Debug)]
struct Held {
    pieces: PieceSet,
    grew_at: Timestamp,
}

/// One other node.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) path: TopologyPath,
    connected: bool,
    held: BTreeMap<ArtifactId, Held>,
    service: Service,
    false_announcements: u32,
    banned: Option<&'static str>,
}

impl Member {
    pub(super) fn holds(&self, artifact: &ArtifactId, piece: u32) -> bool {
        self.held.get(artifact).is_some_and(|held| held.pieces.contains(piece))
    }
}

/// How a source answers.
#[derive(Debug, Default, Clone, Copy)]
struct Service {
    /// A moving average of the time from request to durable piece.
    mean: Option<Duration>,
    rests_until: Option<Timestamp>,
}

impl Service {
    fn succeeded(&mut self, took: Duration) {
        self.mean = Some(self.mean.map_or(took, |mean| (mean * 7 + took) / 8));
        self.rests_until = None;
    }

    fn rests(&self, now: Timestamp) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

/// The other nodes of the fleet, and the origin.
#[derive(Debug, Default)]
pub(super) struct Members {
    nodes: BTreeMap<NodeId, Member>,
    origin_available: bool,
    origin: Service,
    rest_all_until: Option<Timestamp>,
}

impl Members {
    /// Takes over the roster: newcomers appear, leavers go, what is known of the others stays.
    pub(super) fn set_roster(&mut self, roster: BTreeMap<NodeId, TopologyPath>, me: &NodeId) {
        self.nodes.retain(|id, _| roster.contains_key(id));
        for (id, path) in roster {
            if id == *me {
                continue;
            }
            self.nodes
                .entry(id)
                .and_modify(|member| member.path = path.clone())
                .or_insert_with(|| Member {
                    path,
                    connected: false,
                    held: BTreeMap::new(),
                    service: Service::default(),
                    false_announcements: 0,
                    banned: None,
                });
        }
    }

    pub(super) fn up(&mut self, peer: &NodeId) {
        self.change(peer, |member| member.connected = true);
    }

    pub(super) fn down(&mut self, peer: &NodeId) {
        self.change(peer, |member| {
            member.connected = false;
            member.held.clear();
        });
    }

    pub(super) fn holds(&mut self, now: Timestamp, peer: &NodeId, artifact: ArtifactId, pieces: PieceSet) {
        self.change(peer, |member| {
            member.held.insert(artifact, Held { pieces, grew_at: now });
        });
    }

    pub(super) fn got(&mut self, now: Timestamp, peer: &NodeId, artifact: ArtifactId, pieces: &[u32]) {
        self.change(peer, |member| {
            if let Some(held) = member.held.get_mut(&artifact) {
                for &piece in pieces {
                    held.pieces.insert(piece);
                }
                held.grew_at = now;
            }
        });
    }

    pub(super) fn dropped(&mut self, peer: &NodeId, artifact: ArtifactId) {
        self.change(peer, |member| {
            member.held.remove(&artifact);
        });
    }

    /// Notes that a peer did not serve what it announced; returns how often that has happened.
    pub(super) fn not_held(&mut self, peer: &NodeId, artifact: ArtifactId, piece: u32) -> u32 {
        let mut strikes = 0;
        self.change(peer, |member| {
            if let Some(held) = member.held.get_mut(&artifact) {
                held.pieces.remove(piece);
            }
            member.false_announcements += 1;
            strikes = member.false_announcements;
        });
        strikes
    }

    /// Bans a peer; false if it was banned already or is not a member.
    pub(super) fn ban(&mut self, peer: &NodeId, reason: &'static str) -> bool {
        let Some(member) = self.nodes.get_mut(peer) else {
            return false;
        };
        let first = member.banned.is_none();
        member.banned.get_or_insert(reason);
        member.connected = false;
        member.held.clear();
        first
    }

    pub(super) fn banned(&self) -> impl Iterator<Item = (&NodeId, &'static str)> {
        self.nodes
            .iter()
            .filter_map(|(id, member)| member.banned.map(|reason| (id, reason)))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys()
    }

    pub(super) fn path_of(&self, peer: &NodeId) -> Option<&TopologyPath> {
        self.nodes.get(peer).map(|member| &member.path)
    }

    pub(super) fn set_origin(&mut self, available: bool) {
        self.origin_available = available;
    }

    pub(super) fn origin_is_usable(&self, now: Timestamp) -> bool {
        self.origin_available && !self.origin.rests(now) && !self.all_rest(now)
    }

    pub(super) fn succeeded(&mut self, source: &Source, took: Duration) {
        match source {
            Source::Origin => self.origin.succeeded(took),
            Source::Peer(peer) => self.change(peer, |member| member.service.succeeded(took)),
        }
    }

    pub(super) fn rest_until(&mut self, source: &Source, until: Timestamp) {
        match source {
            Source::Origin => self.origin.rests_until = Some(until),
            Source::Peer(peer) => self.change(peer, |member| member.service.rests_until = Some(until)),
        }
    }

    pub(super) fn rest_everything_until(&mut self, until: Timestamp) {
        self.rest_all_until = Some(until);
    }

    pub(super) fn all_rest(&self, now: Timestamp) -> bool {
        self.rest_all_until.is_some_and(|until| now < until)
    }

    pub(super) fn mean_service(&self, source: &Source) -> Option<Duration> {
        match source {
            Source::Origin => self.origin.mean,
            Source::Peer(peer) => self.nodes.get(peer).and_then(|member| member.service.mean),
        }
    }

    /// Peers that may be asked now, in order of name.
    pub(super) fn usable(&self, now: Timestamp) -> impl Iterator<Item = (&NodeId, &Member)> {
        let rest = self.all_rest(now);
        self.nodes.iter().filter(move |(_, member)| {
            !rest && member.connected && member.banned.is_none() && !member.service.rests(now)
        })
    }

    /// Members that may be counted on to bring pieces of `artifact` into their groups: those not banned that are still
    /// awaited (`grace`), or are connected, take part, and are complete or have grown since `stalled_before`.
    pub(super) fn importers<'a>(
        &'a self,
        artifact: &'a ArtifactId,
        grace: bool,
        stalled_before: Timestamp,
    ) -> impl Iterator<Item = (&'a NodeId, &'a TopologyPath)> {
        self.nodes.iter().filter_map(move |(id, member)| {
            let held = member.held.get(artifact);
            let moving = held.is_some_and(|held| held.pieces.is_full() || held.grew_at >= stalled_before);
            let awaited = grace && held.is_none();
            (member.banned.is_none() && (awaited || (member.connected && moving))).then_some((id, &member.path))
        })
    }

    fn change(&mut self, peer: &NodeId, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.nodes.get_mut(peer).filter(|member| member.banned.is_none()) {
            change(member);
        }
    }
}
