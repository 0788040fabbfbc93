//! Which piece to ask for next, and of whom.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId},
    pieces::PieceSet,
    time::Timestamp,
};
use rand_chacha::{ChaCha8Rng, rand_core::Rng as _};

use super::{
    Output, Source, Swarm,
    claims::Claim,
    members::Standing,
    reach::{Basis, Importer, Reach},
    roster::{NodeKey, PieceKey, Strangers},
    window::{Distance, Windows, per_peer},
};

/// A request later than its source's mean by this factor is late.
const HEDGE_FACTOR: u32 = 3;

/// A request is not late before this: a busy machine delays any answer by so much.
const HEDGE_MIN: Duration = Duration::from_millis(300);

/// The same across a boundary of the topology: that wire would be paid twice.
const HEDGE_FACTOR_ACROSS: u32 = 8;
const HEDGE_MIN_ACROSS: Duration = Duration::from_secs(1);

/// How often it is looked for late requests once everything is asked for.
const LATE_LOOK: Duration = Duration::from_millis(100);

/// Differences below this between holders are noise.
const MEAN_MIN: Duration = Duration::from_millis(10);

/// Requests in flight to doubtful members, all together: enough to find out who serves again, and not the room that
/// others fill.
const DOUBTFUL_MAX: usize = 2;

/// Classes of an importer's pieces.
const CLASSES: u64 = 4;
/// Fewer pieces than this say nothing about how fast a member is.
const MIDDLE_MIN: u32 = 16;

/// What a round of picking looks at: computed once, asked for every piece that somebody may have room for.
struct View<'a> {
    mine: NodeKey,
    artifact: &'a ArtifactId,
    depth: usize,
    reach: &'a Reach,
    /// Peers that may be asked and hold something of the artifact.
    peers: Vec<Holder<'a>>,
    /// Requests that still fit the windows towards peers.
    room: Windows<usize>,
    /// Requests that still fit the origin, if it can be asked at all.
    origin_room: Option<usize>,
    /// Members that have never served anything, and owe an answer for long.
    owing: Vec<&'a NodeId>,
    /// Requests that may still go to members that have not served anything yet, and to doubtful ones.
    new_room: usize,
    doubtful_room: usize,
}

/// The class of an importer's piece: it brings in the lower classes first, and who lags is relieved of the higher ones.
pub(super) fn class(weight: u64) -> u64 {
    weight % CLASSES
}

/// Of how many classes a member has time that holds `held` pieces where the middle one of all that still collect holds
/// `middle`.
fn classes_for(held: u32, middle: u32, total: u32) -> u64 {
    // Early on, differences are chance.
    if middle < MIDDLE_MIN.max(total / 20) {
        return CLASSES;
    }
    match u64::from(held) * 100 / u64::from(middle) {
        0..25 => 0,
        25..50 => 1,
        50..75 => 2,
        _ => CLASSES,
    }
}

/// A peer that may be asked.
struct Holder<'a> {
    id: &'a NodeId,
    pieces: &'a PieceSet,
    shared: usize,
    /// Requests in flight to it.
    load: usize,
    /// Requests it may have in flight.
    load_max: usize,
    /// What it takes to bring a piece, as far as is known.
    mean: Duration,
    standing: Standing,
}

impl Holder<'_> {
    /// How long one more request to it may take. Means hold the load of everybody who asks it, so that a busy uploader is
    /// spared by all.
    fn wait(&self) -> (Duration, usize) {
        let ahead = u32::try_from(self.load + 1).unwrap_or(u32::MAX);
        (self.mean.max(MEAN_MIN).saturating_mul(ahead), self.load)
    }

    fn has_room(&self) -> bool {
        self.load < self.load_max
    }

    /// Whether it is counted on.
    fn serves(&self) -> bool {
        self.standing != Standing::Doubtful
    }
}

/// What a look among some peers found.
#[derive(Default)]
struct Nearest {
    holders: usize,
    /// Levels shared with the nearest holders.
    shared: Option<usize>,
    /// Of those that have room the one that is likely to answer first: its wait and place.
    best: Option<((Duration, usize), usize)>,
}

impl Nearest {
    /// Counts in a holder at a place among the peers; with `room` it may be asked, if it has room itself.
    fn count_in(&mut self, at: usize, peer: &Holder<'_>, room: bool) {
        self.holders += 1;
        if self.shared.is_none_or(|nearest| peer.shared > nearest) {
            self.shared = Some(peer.shared);
            self.best = None;
        }
        let is_nearest = self.shared == Some(peer.shared);
        if is_nearest && room && peer.has_room() && self.best.is_none_or(|(wait, _)| peer.wait() < wait) {
            self.best = Some((peer.wait(), at));
        }
    }
}

/// A source as a place in a [`View`].
#[derive(Clone, Copy)]
enum Place {
    Peer(usize),
    Origin,
}

impl View<'_> {
    /// How many peers hold the piece, and the source to ask: the least loaded of the nearest holders in reach; the
    /// origin only if no peer in reach holds it; doubtful holders, a few at a time, only if nobody else can
    /// give it. A busy neighbour is waited for: crossing a boundary because of it would pay that wire twice.
    fn look(&self, piece: u32) -> (usize, Option<Place>) {
        let [mut answering, mut doubtful] = [Nearest::default(), Nearest::default()];
        for (at, peer) in self.peers.iter().enumerate() {
            if peer.pieces.contains(piece) {
                let found = match peer.standing {
                    Standing::Proven | Standing::New => &mut answering,
                    Standing::Doubtful => &mut doubtful,
                };
                found.count_in(at, peer, self.has_room_for(peer));
            }
        }
        let in_reach = |found: &Nearest| {
            found
                .shared
                .is_some_and(|shared| self.reach.within(shared).contains(piece))
        };
        let place = if in_reach(&answering) {
            answering.best.map(|(_, at)| Place::Peer(at))
        } else if self.origin_room.is_some() && self.reach.of_origin().contains(piece) {
            (self.origin_room > Some(0)).then_some(Place::Origin)
        } else if in_reach(&doubtful) {
            doubtful.best.map(|(_, at)| Place::Peer(at))
        } else {
            None
        };
        (answering.holders + doubtful.holders, place)
    }

    /// Whether a source has never served anything, and owes an answer for long.
    fn owes(&self, source: &Source) -> bool {
        source.peer().is_some_and(|peer| self.owing.contains(&peer))
    }

    /// Whether one more request to somebody like this peer, as far away, fits.
    fn has_room_for(&self, peer: &Holder<'_>) -> bool {
        let fits = match peer.standing {
            Standing::Proven => true,
            Standing::New => self.new_room > 0,
            Standing::Doubtful => self.doubtful_room > 0,
        };
        fits && *self.room.of(self.distance(peer)) > 0
    }

    /// Of the pieces in `open`, those for which somebody may have room: [`look`](Self::look) finds nobody for the others.
    fn askable(&self, open: &PieceSet) -> PieceSet {
        let mut askable = PieceSet::empty(open.total());
        let may_be_asked = |peer: &&Holder<'_>| self.has_room_for(peer) && peer.has_room();
        for peer in self.peers.iter().filter(may_be_asked) {
            askable.unite_common(self.reach.within(peer.shared), peer.pieces);
        }
        if self.origin_room > Some(0) {
            let mut nowhere_else = self.reach.of_origin().clone();
            let answering = self.peers.iter().filter(|peer| peer.serves());
            answering.for_each(|peer| nowhere_else.subtract(peer.pieces));
            askable.unite(&nowhere_else);
        }
        askable.intersect(open);
        askable
    }

    fn distance(&self, peer: &Holder<'_>) -> Distance {
        Distance::between(peer.shared, self.depth)
    }

    /// Books one request with a source and names it.
    fn book(&mut self, place: Place) -> Source {
        match place {
            Place::Peer(at) => {
                self.peers[at].load += 1;
                let counted = match self.peers[at].standing {
                    Standing::Proven => None,
                    Standing::New => Some(&mut self.new_room),
                    Standing::Doubtful => Some(&mut self.doubtful_room),
                };
                if let Some(room) = counted {
                    *room = room.saturating_sub(1);
                }
                let distance = self.distance(&self.peers[at]);
                let room = self.room.of_mut(distance);
                *room = room.saturating_sub(1);
                Source::Peer(self.peers[at].id.clone())
            }
            Place::Origin => {
                self.origin_room = self.origin_room.map(|room| room.saturating_sub(1));
                Source::Origin
            }
        }
    }
}

impl Swarm {
    /// Picks if news came or something may have changed without any word.
    pub(super) fn fill_if_due(&mut self, now: Timestamp) {
        if self.wake_at.is_some_and(|due| due <= now) {
            self.fill(now);
        }
    }

    /// Asks for as many pieces as the bounds allow, most urgent artifact first.
    fn fill(&mut self, now: Timestamp) {
        let mut order: Vec<_> = self
            .transfers
            .iter()
            .filter(|(_, transfer)| !transfer.have.is_full())
            .map(|(artifact, transfer)| (Reverse(transfer.priority), *artifact))
            .collect();
        order.sort_unstable();
        // Somebody may drop out of the ranking, or a source may end its rest, without any further word: look again.
        let look_again = now + (self.tuning.stall_after / 4).min(self.tuning.backoff);
        self.wake_at = (!order.is_empty()).then_some(look_again);
        let mut moving = None;
        for (Reverse(priority), artifact) in order {
            // What is less urgent gets nothing that the urgent one could use, unless that one is stuck.
            if moving.is_some_and(|urgent| priority < urgent) {
                return;
            }
            let is_moving = now.since(self.transfers[&artifact].moved_at) < self.tuning.stall_after;
            moving = moving.or_else(|| is_moving.then_some(priority));
            let free = self.tuning.in_flight_max.saturating_sub(self.claims.count());
            if free == 0 {
                return;
            }
            self.learn_reach(now, artifact);
            let mut rng = self.rng.clone();
            let mut picks = self.pick(now, &artifact, free, &mut rng);
            self.rng = rng;
            if picks.is_empty() {
                picks.extend(self.hedge(now, &artifact));
            }
            for (piece, source) in picks {
                self.begin(now, artifact, piece, source);
            }
            let have = &self.transfers[&artifact].have;
            let (asked, missing) = (self.claims.of_artifact(&artifact).len(), have.total() - have.count());
            if asked >= missing as usize {
                // The end: whoever is late is soon to be hedged.
                self.wake_by(now + LATE_LOOK);
            }
            if !self.strangers.1.are_none() {
                self.wake_by(self.transfers[&artifact].next_passed_over(now, &self.tuning));
            }
        }
    }

    fn wake_by(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |due| due.min(at)));
    }

    /// Up to `free` pieces with their sources: first what this node is to bring into a group, because others wait for it,
    /// by class, then the rarest; ties are broken at random so that neighbours do not all ask for the same piece.
    fn pick(&self, now: Timestamp, artifact: &ArtifactId, free: usize, rng: &mut ChaCha8Rng) -> Vec<(u32, Source)> {
        let Some(mut view) = self.view(now, artifact) else {
            return Vec::new();
        };
        if view.room.are_full() {
            return Vec::new();
        }
        let have = &self.transfers[artifact].have;
        let mut open = PieceSet::full(have.total());
        open.subtract(have);
        // What only one was asked for who will hardly answer is asked of another.
        let mut owed = PieceSet::empty(have.total());
        for claim in self.claims.iter().filter(|claim| claim.artifact == *artifact) {
            if !view.owes(&claim.source) || !owed.insert(claim.piece) {
                open.remove(claim.piece);
            }
        }
        if let Some(reserved) = self.reserved.pieces(artifact) {
            open.subtract(reserved);
        }
        let mut candidates: Vec<(u64, usize, u32, u32)> = view
            .askable(&open)
            .iter()
            .filter_map(|piece| {
                let (holders, place) = view.look(piece);
                let crosses = match place? {
                    Place::Origin => true,
                    Place::Peer(at) => view.distance(&view.peers[at]) == Distance::Across,
                };
                let order = if crosses {
                    class(view.mine.weight(PieceKey::of(view.artifact, piece)))
                } else {
                    CLASSES
                };
                Some((order, holders, rng.next_u32(), piece))
            })
            .collect();
        candidates.sort_unstable();
        let mut picks = Vec::new();
        for (.., piece) in candidates {
            if picks.len() == free {
                break;
            }
            // The source may have filled up by the picks before.
            if let (_, Some(place)) = view.look(piece) {
                picks.push((piece, view.book(place)));
            }
        }
        picks
    }

    /// With every missing piece asked for: a second source for the request that is late the longest.
    fn hedge(&self, now: Timestamp, artifact: &ArtifactId) -> Option<(u32, Source)> {
        let transfer = self.transfers.get(artifact)?;
        let of_it = || self.claims.iter().filter(|claim| claim.artifact == *artifact);
        let asked: BTreeSet<u32> = of_it().map(|claim| claim.piece).collect();
        let unasked = |piece| !asked.contains(&piece) && !self.reserved.covers(artifact, piece);
        if transfer.have.missing().any(unasked) {
            return None;
        }
        let view = self.view(now, artifact)?;
        let mut late: Vec<_> = of_it()
            .filter(|claim| self.claims.of_piece(artifact, claim.piece).len() == 1)
            .collect();
        late.sort_unstable_by_key(|claim| claim.since);
        late.into_iter().find_map(|claim| {
            let mean = self
                .members
                .mean_service(&claim.source)
                .unwrap_or(self.tuning.request_min);
            let waited = now.since(claim.since);
            let holders = view.peers.iter().filter(|peer| {
                let (factor, least) = match view.distance(peer) {
                    Distance::Inside => (HEDGE_FACTOR, HEDGE_MIN),
                    Distance::Across | Distance::Origin => (HEDGE_FACTOR_ACROSS, HEDGE_MIN_ACROSS),
                };
                let is_late = waited > mean.max(least / factor) * factor;
                is_late && peer.serves() && peer.pieces.contains(claim.piece) && peer.has_room()
            });
            holders
                .map(|peer| (view.depth - peer.shared, peer.wait(), Source::Peer(peer.id.clone())))
                .filter(|(.., source)| *source != claim.source)
                .min()
                .map(|(.., source)| (claim.piece, source))
        })
    }

    fn view<'a>(&'a self, now: Timestamp, artifact: &'a ArtifactId) -> Option<View<'a>> {
        let quick = self.members.quick();
        let mut peers = Vec::with_capacity(self.members.count());
        peers.extend(self.members.usable(now).filter_map(|(id, member)| {
            Some(Holder {
                id,
                pieces: member.pieces(artifact)?,
                shared: member.shared,
                load: member.asked,
                load_max: member.mean().map_or(self.tuning.per_peer, |mean| {
                    per_peer(mean, self.tuning.per_peer, self.tuning.per_peer_max)
                }),
                mean: member.mean().unwrap_or_default(),
                standing: member.standing(now, quick),
            })
        }));
        let mut room = self.windows.requests(self.tuning.in_flight_max);
        // What will hardly be answered takes no link's time.
        let owing = self.members.owing(now, quick);
        let is_alive = |source: &Source| source.peer().is_none_or(|peer| !owing.contains(&peer));
        for claim in self.claims.iter().filter(|claim| is_alive(&claim.source)) {
            let room = room.of_mut(claim.distance);
            *room = room.saturating_sub(1);
        }
        let loads = |wanted: Standing| -> usize {
            let asked = peers.iter().filter(|peer: &&Holder<'_>| peer.standing == wanted);
            asked.map(|peer| peer.load).sum()
        };
        let (new, doubtful) = (loads(Standing::New), loads(Standing::Doubtful));
        let is_usable = self.members.origin_is_usable(now);
        let origin_room = is_usable.then(|| *room.of(Distance::Origin));
        Some(View {
            mine: self.key,
            artifact,
            depth: self.path.depth(),
            reach: self.reach.get(artifact)?,
            peers,
            room,
            origin_room,
            new_room: (self.tuning.in_flight_max / 2).saturating_sub(new),
            owing,
            doubtful_room: DOUBTFUL_MAX.saturating_sub(doubtful),
        })
    }

    /// Whether nothing of an artifact has moved anywhere for long: whoever was counted on is no use, and anybody may fetch
    /// anything.
    fn is_anarchy(&self, now: Timestamp, artifact: &ArtifactId) -> bool {
        let moved_at = self.transfers.get(artifact).map(|transfer| transfer.moved_at);
        moved_at.is_some_and(|moved_at| now.since(moved_at) > self.tuning.stall_after * 2)
    }

    /// Who is to bring in what, worked out anew if something it rests on has changed.
    fn learn_reach(&mut self, now: Timestamp, artifact: ArtifactId) {
        self.learn_strangers();
        let transfer = &self.transfers[&artifact];
        let total = transfer.have.total();
        let age = now.since(transfer.wanted_since);
        let stalled_before = now.since_start().saturating_sub(self.tuning.stall_after);
        let middle = self.middle_held(&artifact);
        let anarchy = self.is_anarchy(now, &artifact);
        let mut importers = Vec::with_capacity(self.members.count());
        let count_on = self
            .members
            .importers(
                &artifact,
                age < self.tuning.join_grace,
                age < self.tuning.join_grace_connected,
                Timestamp::after_start(stalled_before),
                now,
            )
            .filter(|_| !anarchy)
            .map(|member| Importer {
                key: member.key,
                shared: member.shared,
                // Who has not said anything yet is awaited for a while.
                classes: member
                    .pieces(&artifact)
                    .map_or(CLASSES, |held| classes_for(held.count(), middle, total)),
            });
        importers.extend(count_on);
        let basis = Basis {
            epoch: self.members.epoch(),
            passed_over: self.passed_over(now, &artifact),
            importers,
            my_classes: classes_for(transfer.have.count(), middle, total),
            depth: self.path.depth(),
            pieces: total,
        };
        if self.reach.get(&artifact).is_some_and(|reach| reach.rests_on(&basis)) {
            return;
        }
        let reach = Reach::of(basis, self.key, &artifact, &self.strangers.1);
        self.reach.insert(artifact, reach);
    }

    fn learn_strangers(&mut self) {
        let epoch = self.members.epoch();
        if self.strangers.0 != epoch {
            self.strangers = (epoch, Strangers::of(self.members.strangers(&self.me), &self.path));
        }
    }

    /// How many strangers are passed over in the ranks of every piece; none if there are none.
    fn passed_over(&self, now: Timestamp, artifact: &ArtifactId) -> usize {
        let transfer = self.transfers.get(artifact);
        match transfer.filter(|_| !self.strangers.1.are_none()) {
            None => 0,
            Some(_) if self.is_anarchy(now, artifact) => usize::MAX,
            Some(transfer) => transfer.passed_over(now, &self.tuning),
        }
    }

    /// What the middle one of all that still collect an artifact holds of it; half of what the middle one of all holds if
    /// that is more, for in the end those that only seem to collect may be the most of those that are left.
    fn middle_held(&self, artifact: &ArtifactId) -> u32 {
        let mine = self.have(artifact).map(|have| (have.count(), have.is_full()));
        let mut all = Vec::with_capacity(self.members.count() + 1);
        all.extend(self.members.held_of(artifact).chain(mine));
        all.sort_unstable();
        let middle = |held: &[(u32, bool)]| held.get(held.len() / 2).map_or(0, |(held, _)| *held);
        // Who is complete holds the most.
        let collecting = all.partition_point(|(_, is_full)| !is_full);
        middle(&all[..collecting]).max(middle(&all) / 2)
    }

    fn begin(&mut self, now: Timestamp, artifact: ArtifactId, piece: u32, source: Source) {
        let allowed = match self.members.mean_service(&source) {
            Some(mean) => (mean * 8).clamp(self.tuning.request_min, self.tuning.request_max),
            None => {
                let origin = || self.members.mean_service(&Source::Origin);
                let quick = self.members.quick().or_else(origin);
                let allowed = quick.map(|quick| (quick * 8).max(self.tuning.request_min));
                allowed.map_or(self.tuning.request_first, |allowed| {
                    allowed.min(self.tuning.request_first)
                })
            }
        };
        let claim = Claim {
            source: source.clone(),
            distance: self.members.ask(now, &source, self.path.depth()),
            artifact,
            piece,
            since: now,
            answer_by: now + allowed,
        };
        let id = self.claims.begin(claim);
        self.outputs.push_back(Output::Fetch {
            id,
            source,
            artifact,
            piece,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lags_is_relieved_by_degrees() {
        let classes = |held| classes_for(held, 400, 1_000);
        assert_eq!(
            [0, 99, 100, 199, 200, 299, 300, 1_000].map(classes),
            [0, 0, 1, 1, 2, 2, 4, 4]
        );
        assert_eq!(classes_for(0, 49, 1_000), CLASSES);
        assert_eq!(classes_for(0, 15, 100), CLASSES);
    }
}
