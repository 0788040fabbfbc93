//! Who is there, what they hold, and how well they answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId, TopologyPath},
    pieces::PieceSet,
    time::Timestamp,
};

use super::{
    Source,
    roster::{NodeKey, Place, Roster},
    window::Distance,
};

/// Artifacts that one peer may announce: more than a fleet has in campaigns at once.
const ARTIFACTS_MAX: usize = 256;

/// After so many requests in a row that brought nothing, a member is not counted on as importer any more.
const FAILURES_MAX: u32 = 2;

/// A member lags if it takes so many times what the quick ones take, and this long at least.
const LAG_FACTOR: u32 = 4;
const LAG_MIN: Duration = Duration::from_millis(700);
/// A member that has never served anything is doubtful while it owes an answer for so many times what the quick ones take
/// (as for one that lags), this long at least, and at most.
const OWES_MIN: Duration = Duration::from_millis(250);
const OWES_MAX: Duration = Duration::from_millis(1_000);
/// So many members must have answered before it is known what is quick.
const QUICK_MIN: usize = 3;

/// What is to be expected of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It serves.
    Proven,
    /// It has not been seen to serve anything yet, and may well.
    New,
    /// It takes many times as long as others, or its last requests brought nothing.
    Doubtful,
}

/// What a peer holds of one artifact, and when that last grew.
#[derive(Debug)]
struct Held {
    pieces: PieceSet,
    grew_at: Timestamp,
}

/// One other node that is, or is to be, connected.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) key: NodeKey,
    /// Levels of the topology shared with this node.
    pub(super) shared: usize,
    /// Requests to it that are in flight.
    pub(super) asked: usize,
    /// Since when there are any.
    asked_since: Option<Timestamp>,
    connected: bool,
    held: BTreeMap<ArtifactId, Held>,
    service: Service,
    false_announcements: u32,
    banned: Option<&'static str>,
}

impl Member {
    fn new(place: &Place, from: &TopologyPath) -> Self {
        Self {
            key: place.key,
            shared: place.path.shared_levels(from),
            asked: 0,
            asked_since: None,
            connected: false,
            held: BTreeMap::new(),
            service: Service::default(),
            false_announcements: 0,
            banned: None,
        }
    }

    /// Where the quick members take `quick`.
    pub(super) fn standing(&self, now: Timestamp, quick: Option<Duration>) -> Standing {
        let Service {
            mean,
            failures,
            has_served,
            ..
        } = self.service;
        let lags = |quick: Duration| mean.is_some_and(|mean| mean > (quick * LAG_FACTOR).max(LAG_MIN));
        match has_served {
            true if failures >= FAILURES_MAX || quick.is_some_and(lags) => Standing::Doubtful,
            true => Standing::Proven,
            false if failures > 0 || self.owes(now, quick) => Standing::Doubtful,
            false => Standing::New,
        }
    }

    /// Whether it has never served anything, and owes an answer for long.
    fn owes(&self, now: Timestamp, quick: Option<Duration>) -> bool {
        let long = quick.map_or(OWES_MAX, |quick| (quick * LAG_FACTOR).clamp(OWES_MIN, OWES_MAX));
        let waits = self.asked_since.is_some_and(|since| now.since(since) > long);
        waits && !self.service.has_served
    }

    /// What a request to it takes on average.
    pub(super) fn mean(&self) -> Option<Duration> {
        self.service.mean
    }

    pub(super) fn pieces(&self, artifact: &ArtifactId) -> Option<&PieceSet> {
        self.held.get(artifact).map(|held| &held.pieces)
    }
}

/// How a source answers.
#[derive(Debug, Default, Clone, Copy)]
struct Service {
    /// A moving average of the time from request to durable piece.
    mean: Option<Duration>,
    rests_until: Option<Timestamp>,
    /// Requests in a row that brought nothing.
    failures: u32,
    /// Whether any request ever brought its piece.
    has_served: bool,
}

impl Service {
    fn succeeded(&mut self, took: Duration) {
        self.mean = Some(self.mean.map_or(took, |mean| (mean * 7 + took) / 8));
        self.rests_until = None;
        self.failures = 0;
        self.has_served = true;
    }

    fn failed(&mut self, rests_until: Timestamp) {
        self.rests_until = Some(rests_until);
        self.failures += 1;
    }

    /// A request was given up after `waited`: the next one gets more time, or a slow link would never deliver anything.
    fn overdue(&mut self, waited: Duration, rests_until: Timestamp) {
        self.mean = Some(self.mean.unwrap_or_default().max(waited / 4));
        self.failed(rests_until);
    }

    fn rests(&self, now: Timestamp) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }
}

/// The other nodes of the fleet, and the origin.
#[derive(Debug, Default)]
pub(super) struct Members {
    roster: Arc<Roster>,
    /// The neighbours, and whoever else has connected.
    nodes: BTreeMap<NodeId, Member>,
    /// Grows when who is a stranger changes.
    epoch: u64,
    /// What it takes the quick ones to bring a piece, once that is known.
    quick: Option<Duration>,
    origin_available: bool,
    origin: Service,
    rest_all_until: Option<Timestamp>,
}

impl Members {
    /// Takes over the roster: newcomers appear, leavers go, what is known of the others stays.
    pub(super) fn set_roster(&mut self, roster: Arc<Roster>, me: &NodeId, path: &TopologyPath) {
        let neighbours = roster.neighbours(me, path);
        let is_known = |member: &Member| member.connected || member.banned.is_some();
        self.nodes.retain(|id, member| match roster.place_of(id) {
            Some(place) => {
                member.shared = place.path.shared_levels(path);
                neighbours.contains(id) || is_known(member)
            }
            None => false,
        });
        for id in neighbours {
            if let Some(place) = roster.place_of(&id) {
                self.nodes.entry(id).or_insert_with(|| Member::new(place, path));
            }
        }
        self.roster = roster;
        self.epoch += 1;
        self.learn_quick();
    }

    /// A peer's connection stands: a stranger is none any more.
    pub(super) fn up(&mut self, peer: &NodeId, path: &TopologyPath) {
        if let (false, Some(place)) = (self.nodes.contains_key(peer), self.roster.place_of(peer)) {
            self.nodes.insert(peer.clone(), Member::new(place, path));
            self.epoch += 1;
        }
        self.change(peer, |member| member.connected = true);
    }

    /// Members of the fleet that this node does not connect with, and what changes when they do.
    pub(super) fn strangers<'a>(&'a self, me: &'a NodeId) -> impl Iterator<Item = &'a Place> + 'a {
        let is_stranger = move |id: &NodeId| id != me && !self.nodes.contains_key(id);
        self.roster
            .places()
            .filter(move |(id, _)| is_stranger(id))
            .map(|(_, place)| place)
    }

    pub(super) fn neighbours(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.keys()
    }

    /// Neighbours, and whoever else has connected.
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn down(&mut self, peer: &NodeId) {
        self.change(peer, |member| {
            member.connected = false;
            member.held.clear();
        });
    }

    /// Takes over all that a peer says it holds; false if it names more artifacts than there can be.
    pub(super) fn holds_all(&mut self, now: Timestamp, peer: &NodeId, artifact: ArtifactId, pieces: PieceSet) -> bool {
        let mut within_bounds = true;
        self.change(peer, |member| {
            within_bounds = member.held.contains_key(&artifact) || member.held.len() < ARTIFACTS_MAX;
            if within_bounds {
                let known = member.held.get(&artifact);
                let grew_at = known
                    .filter(|held| held.pieces.count() >= pieces.count())
                    .map_or(now, |held| held.grew_at);
                member.held.insert(artifact, Held { pieces, grew_at });
            }
        });
        within_bounds
    }

    /// Adds pieces that a peer verified; true if any of them is news.
    pub(super) fn got(&mut self, now: Timestamp, peer: &NodeId, artifact: ArtifactId, pieces: &[u32]) -> bool {
        let mut grew = false;
        self.change(peer, |member| {
            if let Some(held) = member.held.get_mut(&artifact) {
                for &piece in pieces {
                    grew |= held.pieces.insert(piece);
                }
                if grew {
                    held.grew_at = now;
                }
            }
        });
        grew
    }

    /// Members that announced another number of pieces than `total`.
    pub(super) fn contradicting(&self, artifact: &ArtifactId, total: u32) -> Vec<NodeId> {
        let contradicts = |member: &Member| {
            member
                .held
                .get(artifact)
                .is_some_and(|held| held.pieces.total() != total)
        };
        self.nodes
            .iter()
            .filter(|(_, member)| contradicts(member))
            .map(|(id, _)| id.clone())
            .collect()
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

    pub(super) fn path_of(&self, peer: &NodeId) -> Option<&TopologyPath> {
        self.roster.place_of(peer).map(|place| &place.path)
    }

    pub(super) fn set_origin(&mut self, available: bool) {
        self.origin_available = available;
    }

    pub(super) fn origin_is_usable(&self, now: Timestamp) -> bool {
        self.origin_available && !self.origin.rests(now) && !self.all_rest(now)
    }

    /// A request goes out; answers how far.
    pub(super) fn ask(&mut self, now: Timestamp, source: &Source, depth: usize) -> Distance {
        let Source::Peer(peer) = source else {
            return Distance::Origin;
        };
        let member = self.nodes.get_mut(peer);
        let shared = member.map_or(0, |member| {
            member.asked += 1;
            member.asked_since.get_or_insert(now);
            member.shared
        });
        Distance::between(shared, depth)
    }

    /// A request is in flight no more, however it ended.
    pub(super) fn asked_no_more(&mut self, source: &Source) {
        if let Some(member) = source.peer().and_then(|peer| self.nodes.get_mut(peer)) {
            member.asked = member.asked.saturating_sub(1);
            member.asked_since = member.asked_since.filter(|_| member.asked > 0);
        }
    }

    /// A request brought its piece; a peer that serves is forgiven one false announcement.
    pub(super) fn succeeded(&mut self, source: &Source, took: Duration) {
        if let Source::Peer(peer) = source {
            self.change(peer, |member| {
                member.false_announcements = member.false_announcements.saturating_sub(1)
            });
        }
        self.change_service(source, |service| service.succeeded(took));
        self.learn_quick();
    }

    /// A request brought nothing: the source is left alone for a while.
    pub(super) fn failed(&mut self, source: &Source, rests_until: Timestamp) {
        self.change_service(source, |service| service.failed(rests_until));
    }

    /// A request was given up after `waited`.
    pub(super) fn overdue(&mut self, source: &Source, waited: Duration, rests_until: Timestamp) {
        self.change_service(source, |service| service.overdue(waited, rests_until));
        self.learn_quick();
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

    /// What the quick ones of the members take: three in four of those that serve take longer. Slow ones do not move it, however many.
    pub(super) fn quick(&self) -> Option<Duration> {
        self.quick
    }

    fn learn_quick(&mut self) {
        let serving = self.nodes.values().filter(|member| member.service.has_served);
        let mut means = Vec::with_capacity(self.nodes.len());
        means.extend(serving.filter_map(|member| member.service.mean));
        let quarter = means.len() / 4;
        self.quick = (means.len() >= QUICK_MIN).then(|| *means.select_nth_unstable(quarter).1);
    }

    /// Members that have never served anything, and owe an answer for long: few at any time, and none mostly.
    pub(super) fn owing(&self, now: Timestamp, quick: Option<Duration>) -> Vec<&NodeId> {
        let owing = self.nodes.iter().filter(|(_, member)| member.owes(now, quick));
        owing.map(|(id, _)| id).collect()
    }

    /// How many members hold something of an artifact.
    pub(super) fn holders(&self, artifact: &ArtifactId) -> usize {
        let of_it = self.nodes.values().filter_map(|member| member.pieces(artifact));
        of_it.filter(|pieces| pieces.count() > 0).count()
    }

    /// How many pieces each member holds that takes part in an artifact, and whether these are all.
    pub(super) fn held_of<'a>(&'a self, artifact: &'a ArtifactId) -> impl Iterator<Item = (u32, bool)> + 'a {
        let of_it = self.nodes.values().filter_map(|member| member.pieces(artifact));
        of_it.map(|pieces| (pieces.count(), pieces.is_full()))
    }

    /// Peers that may be asked now, in order of name.
    pub(super) fn usable(&self, now: Timestamp) -> impl Iterator<Item = (&NodeId, &Member)> {
        let rest = self.all_rest(now);
        self.nodes.iter().filter(move |(_, member)| {
            !rest && member.connected && member.banned.is_none() && !member.service.rests(now)
        })
    }

    /// Members that may be counted on to bring pieces of `artifact` into their groups: those not banned that answer, and
    /// that are still awaited, or take part and are complete or have grown since `stalled_before`. A member that has
    /// not said anything yet is awaited for a short while, and longer if it is connected.
    pub(super) fn importers<'a>(
        &'a self,
        artifact: &'a ArtifactId,
        awaited: bool,
        awaited_if_connected: bool,
        stalled_before: Timestamp,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a Member> {
        let quick = self.quick();
        self.nodes.values().filter(move |member| {
            let answers = member.banned.is_none() && member.standing(now, quick) != Standing::Doubtful;
            let counts = match member.held.get(artifact) {
                Some(held) => member.connected && (held.pieces.is_full() || held.grew_at >= stalled_before),
                None => awaited || (awaited_if_connected && member.connected),
            };
            answers && counts
        })
    }

    fn change_service(&mut self, source: &Source, change: impl FnOnce(&mut Service)) {
        match source {
            Source::Origin => change(&mut self.origin),
            Source::Peer(peer) => self.change(peer, |member| change(&mut member.service)),
        }
    }

    fn change(&mut self, peer: &NodeId, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.nodes.get_mut(peer).filter(|member| member.banned.is_none()) {
            change(member);
        }
    }
}
