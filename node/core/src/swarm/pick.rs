//! Which piece to ask for next, and of whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{
    ids::{ArtifactId, NodeId},
    time::Timestamp,
};
use rand_chacha::{ChaCha8Rng, rand_core::Rng as _};

use super::{Output, Source, Swarm, claims::Claim, members::Member};

/// A request later than its source's mean by this factor is late.
const HEDGE_FACTOR: u32 = 3;

/// The rendezvous weights of one artifact's pieces, by node.
pub(super) type Weights = BTreeMap<NodeId, Vec<u64>>;

/// The rendezvous weights of a node for every piece (Thaler and Ravishankar's highest random weight). They do not depend
/// on the level of the topology, so the first of a site is also the first of its rack.
fn weights(artifact: &ArtifactId, node: &NodeId, pieces: u32) -> Vec<u64> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(artifact.as_bytes()).update(node.as_str().as_bytes());
    let mut stream = hasher.finalize_xof();
    let mut word = [0; 8];
    (0..pieces)
        .map(|_| {
            stream.fill(&mut word);
            u64::from_le_bytes(word)
        })
        .collect()
}

/// What a round of picking looks at: computed once, asked for every missing piece.
struct View<'a> {
    artifact: &'a ArtifactId,
    me: &'a NodeId,
    mine: &'a [u64],
    depth: usize,
    /// Members that count as importers: name, weights, levels shared with this node.
    importers: Vec<(&'a NodeId, &'a [u64], usize)>,
    /// Peers that may be asked: name, what is known of them, levels shared with this node.
    peers: Vec<(&'a NodeId, &'a Member, usize)>,
    origin: bool,
    per_peer_max: usize,
    per_origin_max: usize,
    load: BTreeMap<Source, usize>,
}

impl View<'_> {
    /// How many leading levels of its path a source must share with this node: all above the node itself for a piece
    /// that a neighbour imports, none for a piece that this node imports into its outermost group.
    fn reach(&self, piece: u32) -> usize {
        let at = piece as usize;
        let mine = (self.mine[at], self.me);
        let ahead = self
            .importers
            .iter()
            .filter(|(id, weights, _)| (weights[at], *id) > mine);
        ahead
            .map(|(_, _, shared)| *shared)
            .max()
            .unwrap_or(0)
            .min(self.depth - 1)
    }

    fn holders(&self, piece: u32) -> impl Iterator<Item = &(&NodeId, &Member, usize)> {
        self.peers
            .iter()
            .filter(move |(_, member, _)| member.holds(self.artifact, piece))
    }

    /// The least loaded of the nearest holders this node may take the piece from; the origin only if no peer will do.
    /// A busy neighbour is waited for: crossing a boundary because of it would pay that wire twice.
    fn source(&self, piece: u32) -> Option<Source> {
        let reach = self.reach(piece);
        let Some(nearest) = self
            .holders(piece)
            .map(|(_, _, shared)| *shared)
            .filter(|shared| *shared >= reach)
            .max()
        else {
            return (reach == 0 && self.origin && self.has_room(&Source::Origin)).then_some(Source::Origin);
        };
        self.holders(piece)
            .filter(|(_, _, shared)| *shared == nearest)
            .map(|(id, _, _)| Source::Peer((*id).clone()))
            .filter(|source| self.has_room(source))
            .min_by_key(|source| self.load_of(source))
    }

    fn load_of(&self, source: &Source) -> usize {
        self.load.get(source).copied().unwrap_or(0)
    }

    fn has_room(&self, source: &Source) -> bool {
        let bound = match source {
            Source::Origin => self.per_origin_max,
            Source::Peer(_) => self.per_peer_max,
        };
        self.load_of(source) < bound
    }
}

impl Swarm {
    /// Asks for as many pieces as the bounds allow, most urgent artifact first.
    pub(super) fn fill(&mut self, now: Timestamp) {
        let mut order: Vec<_> = self
            .transfers
            .iter()
            .filter(|(_, transfer)| !transfer.have.is_full())
            .map(|(artifact, transfer)| (u8::MAX - transfer.priority, *artifact))
            .collect();
        order.sort_unstable();
        // Somebody may drop out of the ranking, or a source may end its rest, without any further word: look again.
        let look_again = now + (self.tuning.stall_after / 4).min(self.tuning.backoff);
        self.wake_at = (!order.is_empty()).then_some(look_again);
        for (_, artifact) in order {
            let free = self.tuning.in_flight_max.saturating_sub(self.claims.count());
            if free == 0 {
                return;
            }
            self.learn_weights(artifact);
            let mut rng = self.rng.clone();
            let mut picks = self.pick(now, &artifact, free, &mut rng);
            self.rng = rng;
            if picks.is_empty() {
                picks.extend(self.hedge(now, &artifact));
            }
            for (piece, source) in picks {
                self.begin(now, artifact, piece, source);
            }
        }
    }

    /// Up to `free` pieces with their sources: the rarest first, ties broken at random so that neighbours do not all
    /// ask for the same piece.
    fn pick(&self, now: Timestamp, artifact: &ArtifactId, free: usize, rng: &mut ChaCha8Rng) -> Vec<(u32, Source)> {
        let Some(mut view) = self.view(now, artifact) else {
            return Vec::new();
        };
        let claimed: BTreeSet<u32> = self
            .claims
            .iter()
            .filter(|claim| claim.artifact == *artifact)
            .map(|claim| claim.piece)
            .collect();
        let mut candidates: Vec<(usize, u32, u32)> = self.transfers[artifact]
            .have
            .missing()
            .filter(|piece| !claimed.contains(piece) && view.source(*piece).is_some())
            .map(|piece| (view.holders(piece).count(), rng.next_u32(), piece))
            .collect();
        candidates.sort_unstable();
        let mut picks = Vec::new();
        for (_, _, piece) in candidates {
            if picks.len() == free {
                break;
            }
            if let Some(source) = view.source(piece) {
                *view.load.entry(source.clone()).or_default() += 1;
                picks.push((piece, source));
            }
        }
        picks
    }

    /// With nothing else to ask for: a second source for the request that is late the longest.
    fn hedge(&self, now: Timestamp, artifact: &ArtifactId) -> Option<(u32, Source)> {
        let view = self.view(now, artifact)?;
        let late = self
            .claims
            .iter()
            .filter(|claim| claim.artifact == *artifact && self.claims.of_piece(artifact, claim.piece).len() == 1)
            .filter(|claim| {
                let mean = self
                    .members
                    .mean_service(&claim.source)
                    .unwrap_or(self.tuning.request_min);
                now.since(claim.since) > mean * HEDGE_FACTOR
            })
            .min_by_key(|claim| claim.since)?;
        view.holders(late.piece)
            .map(|(id, _, shared)| (view.depth - shared, Source::Peer((*id).clone())))
            .filter(|(_, source)| *source != late.source && view.has_room(source))
            .min()
            .map(|(_, source)| (late.piece, source))
    }

    fn view<'a>(&'a self, now: Timestamp, artifact: &'a ArtifactId) -> Option<View<'a>> {
        let transfer = self.transfers.get(artifact)?;
        let weights = self.weights.get(artifact)?;
        let grace = now.since(transfer.wanted_since) < self.tuning.join_grace;
        let stalled_before = Timestamp::after_start(now.since_start().saturating_sub(self.tuning.stall_after));
        let mut load = BTreeMap::new();
        for claim in self.claims.iter() {
            *load.entry(claim.source.clone()).or_default() += 1;
        }
        Some(View {
            artifact,
            me: &self.me,
            mine: weights.get(&self.me)?,
            depth: self.path.depth(),
            importers: self
                .members
                .importers(artifact, grace, stalled_before)
                .filter_map(|(id, path)| Some((id, &weights.get(id)?[..], path.shared_levels(&self.path))))
                .collect(),
            peers: self
                .members
                .usable(now)
                .map(|(id, member)| (id, member, member.path.shared_levels(&self.path)))
                .collect(),
            origin: self.members.origin_is_usable(now),
            per_peer_max: self.tuning.per_peer_max,
            per_origin_max: self.tuning.per_origin_max,
            load,
        })
    }

    fn learn_weights(&mut self, artifact: ArtifactId) {
        let pieces = self.transfers[&artifact].have.total();
        let known = self.weights.entry(artifact).or_default();
        for node in self.members.names().chain([&self.me]) {
            if !known.contains_key(node) {
                known.insert(node.clone(), weights(&artifact, node, pieces));
            }
        }
    }

    fn begin(&mut self, now: Timestamp, artifact: ArtifactId, piece: u32, source: Source) {
        let expected = self.members.mean_service(&source).unwrap_or(Duration::ZERO) * 8;
        let allowed = expected.clamp(self.tuning.request_min, self.tuning.request_max);
        let claim = Claim {
            source: source.clone(),
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
