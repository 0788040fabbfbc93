//! Who belongs to the fleet, whom of them a node keeps connections with, and what is expected of the others.
//!
//! In a small fleet everybody is everybody's neighbour. In a large one a node keeps to its own group where that is small,
//! and to twelve members of each larger group: its two neighbours on each of six circles, on which the whole group stands in
//! an order of chance (the union of random Hamiltonian cycles of Law and Siu, "Distributed Construction of Random Expander
//! Networks", INFOCOM 2003). Who is next to whom both sides work out alike, nobody is cut off while the members on one
//! circle live, and any piece is few hops away.
//!
//! Everybody else is a stranger: nothing is heard of it but its pieces, by way of neighbours. It is counted on as importer
//! by its rank, and passed over rank by rank when nothing comes any more.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use firmesh_protocol::ids::{ArtifactId, NodeId, TopologyPath};

/// In a group up to this size everybody is everybody's neighbour.
const EVERYBODY: usize = 33;
/// Circles on which a node has two neighbours.
const CIRCLES: u64 = 6;
/// So many strangers in the ranks of a piece can be passed over one by one; then all are.
pub(super) const PASSED_OVER_MAX: usize = 8;

/// The nodes of the fleet with their places, this one included or not.
#[derive(Debug, Clone, Default)]
pub struct Roster(BTreeMap<NodeId, Place>);

/// Where a node stands, and what its ranks follow from.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: TopologyPath,
    pub(super) key: NodeKey,
}

/// What a node's rendezvous weights follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeKey(u64);

/// What a piece's rendezvous weights follow from.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceKey(u64);

/// A bijection of 64 bits in which every bit of the outcome depends on all (the finaliser of Steele, Lea and Flood's
/// SplitMix, OOPSLA 2014).
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

fn first_word(hash: &[u8; 32]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(word)
}

impl NodeKey {
    pub(super) fn of(node: &NodeId) -> Self {
        Self(first_word(blake3::hash(node.as_str().as_bytes()).as_bytes()))
    }

    /// The rendezvous weight of the node for a piece (Thaler and Ravishankar's highest random weight). It does not depend
    /// on the level of the topology, so the first of a site is also the first of its rack.
    pub(super) fn weight(self, piece: PieceKey) -> u64 {
        mix(self.0 ^ piece.0)
    }

    /// Where on a circle the node stands.
    fn on_circle(self, circle: u64) -> u64 {
        mix(self.0 ^ mix(circle + 1))
    }
}

impl PieceKey {
    /// The keys of all pieces of an artifact, in order.
    pub(super) fn all(artifact: &ArtifactId, pieces: u32) -> impl Iterator<Item = Self> + use<> {
        let of_artifact = first_word(artifact.as_bytes());
        (0..pieces).map(move |piece| Self::nth(of_artifact, piece))
    }

    pub(super) fn of(artifact: &ArtifactId, piece: u32) -> Self {
        Self::nth(first_word(artifact.as_bytes()), piece)
    }

    fn nth(of_artifact: u64, piece: u32) -> Self {
        // Odd, so that no two pieces meet.
        Self(mix(
            of_artifact.wrapping_add(u64::from(piece).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        ))
    }
}

impl FromIterator<(NodeId, TopologyPath)> for Roster {
    fn from_iter<I: IntoIterator<Item = (NodeId, TopologyPath)>>(members: I) -> Self {
        let place = |(id, path)| {
            let key = NodeKey::of(&id);
            (id, Place { path, key })
        };
        Self(members.into_iter().map(place).collect())
    }
}

impl Roster {
    /// Whom a node that stands at `path` keeps connections with; each of them says the same of it.
    #[must_use]
    pub fn neighbours(&self, me: &NodeId, path: &TopologyPath) -> BTreeSet<NodeId> {
        let others: Vec<_> = self
            .0
            .iter()
            .filter(|(id, _)| *id != me)
            .map(|(id, place)| (place.path.shared_levels(path), place.key, id))
            .collect();
        let levels: BTreeSet<usize> = others.iter().map(|(shared, ..)| *shared).collect();
        let mine = NodeKey::of(me);
        let mut neighbours = BTreeSet::new();
        for shared in levels {
            let group = || others.iter().filter(|(theirs, ..)| *theirs >= shared);
            if group().count() < EVERYBODY {
                neighbours.extend(group().map(|(.., id)| NodeId::clone(id)));
                // Groups further in are parts of this one.
                break;
            }
            for circle in 0..CIRCLES {
                // How far ahead of this node another one stands, all the way round.
                let here = mine.on_circle(circle);
                let ahead = |key: &NodeKey| key.on_circle(circle).wrapping_sub(here);
                let next = group().min_by_key(|(_, key, _)| ahead(key));
                let last = group().max_by_key(|(_, key, _)| ahead(key));
                neighbours.extend(next.into_iter().chain(last).map(|(.., id)| NodeId::clone(id)));
            }
        }
        neighbours
    }

    pub(super) fn place_of(&self, node: &NodeId) -> Option<&Place> {
        self.0.get(node)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = (&NodeId, &Place)> {
        self.0.iter()
    }
}

/// The strangers of a node: those with which it shares most levels first.
#[derive(Debug, Default)]
pub(super) struct Strangers(Vec<(usize, NodeKey)>);

impl Strangers {
    /// Those of a node that stands at `path`.
    pub(super) fn of<'a>(strangers: impl Iterator<Item = &'a Place>, path: &TopologyPath) -> Self {
        let mut all: Vec<_> = strangers
            .map(|place| (place.path.shared_levels(path), place.key))
            .collect();
        all.sort_unstable_by_key(|(shared, _)| Reverse(*shared));
        Self(all)
    }

    pub(super) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Levels that the nearest stranger shares which ranks above `mine` for a piece, if the first few in its ranks are passed
    /// over; above a node that is relieved of the piece any stranger does.
    pub(super) fn nearest(&self, piece: PieceKey, passed_over: usize, mine: Option<u64>) -> Option<usize> {
        let ahead = || {
            let weights = self.0.iter().map(|(shared, key)| (key.weight(piece), *shared));
            weights.filter(|(weight, _)| mine.is_none_or(|mine| *weight > mine))
        };
        match passed_over {
            // The usual case: of two that are asked one is ahead, mostly.
            0 => ahead().next().map(|(_, shared)| shared),
            1..PASSED_OVER_MAX => {
                let mut ranks: Vec<_> = ahead().collect();
                ranks.sort_unstable_by_key(|(weight, _)| Reverse(*weight));
                ranks.iter().skip(passed_over).map(|(_, shared)| *shared).max()
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn fleet(sites: usize, nodes: usize) -> BTreeMap<NodeId, TopologyPath> {
        let place = |site, node| {
            let id = NodeId::new(format!("s{site}n{node}")).unwrap();
            let path = format!("eu/s{site}/{id}").parse().unwrap();
            (id, path)
        };
        (0..sites)
            .flat_map(|site| (0..nodes).map(move |node| place(site, node)))
            .collect()
    }

    #[test]
    fn in_a_small_fleet_everybody_is_everybodys_neighbour() {
        let fleet = fleet(3, 11);
        let roster: Roster = fleet.clone().into_iter().collect();
        for (id, path) in &fleet {
            assert_eq!(roster.neighbours(id, path).len(), 32);
        }
    }

    #[test]
    fn in_a_large_fleet_neighbours_are_few_agree_and_reach_everybody() {
        let fleet = fleet(4, 100);
        let roster: Roster = fleet.clone().into_iter().collect();
        let of: BTreeMap<_, _> = fleet
            .iter()
            .map(|(id, path)| (id, roster.neighbours(id, path)))
            .collect();
        for (id, neighbours) in &of {
            assert!((12..=24).contains(&neighbours.len()), "{id}: {}", neighbours.len());
            assert!(!neighbours.contains(*id));
            for other in neighbours {
                assert!(of[other].contains(*id), "{other} does not know {id}");
            }
            let in_site = neighbours
                .iter()
                .filter(|other| fleet[*other].shared_levels(&fleet[*id]) == 2);
            assert!(in_site.count() >= 6);
        }
        let mut reached: BTreeSet<&NodeId> = of.keys().take(1).copied().collect();
        for _ in 0..4 {
            reached = reached
                .iter()
                .flat_map(|id| &of[*id])
                .chain(reached.iter().copied())
                .collect();
        }
        assert_eq!(reached.len(), fleet.len(), "more than four hops");
    }

    #[test]
    fn strangers_are_passed_over_in_the_order_of_their_ranks() {
        let fleet = fleet(2, 20);
        let roster: Roster = fleet.clone().into_iter().collect();
        let (me, path) = fleet.iter().next().unwrap();
        let artifact = ArtifactId::of(b"image");
        let strangers = || roster.places().filter(|(id, _)| *id != me).map(|(_, place)| place);
        let ranks = Strangers::of(strangers(), path);
        for key in PieceKey::all(&artifact, 50) {
            let mine = NodeKey::of(me).weight(key);
            let mut ahead: Vec<_> = strangers()
                .filter(|place| place.key.weight(key) > mine)
                .map(|place| (place.key.weight(key), place.path.shared_levels(path)))
                .collect();
            ahead.sort_unstable_by(|a, b| b.cmp(a));
            for passed_over in 0..PASSED_OVER_MAX {
                let expected = ahead.iter().skip(passed_over).map(|(_, shared)| *shared).max();
                assert_eq!(ranks.nearest(key, passed_over, Some(mine)), expected);
            }
            assert_eq!(ranks.nearest(key, PASSED_OVER_MAX, Some(mine)), None);
            assert_eq!(ranks.nearest(key, 0, None), Some(2));
        }
    }
}
