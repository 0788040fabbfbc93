//! How far away the source of each piece may be: by rendezvous hashing over the members that count as importers.
//!
//! It depends on who takes part and how well they keep up, which changes seldom, and is asked at every pick: so it is
//! kept, as one set of pieces per level of the topology, until something it rests on changes.

use firmesh_protocol::{ids::ArtifactId, pieces::PieceSet};

use super::{
    pick::class,
    roster::{NodeKey, PieceKey, Strangers},
};

/// A member that counts as an importer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Importer {
    pub(super) key: NodeKey,
    /// Levels shared with this node.
    pub(super) shared: usize,
    /// Of the classes of pieces, those that it has time for.
    pub(super) classes: u64,
}

/// What the sets rest on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Basis {
    /// Who is a stranger.
    pub(super) epoch: u64,
    /// How many strangers are passed over in the ranks of every piece.
    pub(super) passed_over: usize,
    /// The others that count as importers, this node not among them.
    pub(super) importers: Vec<Importer>,
    /// The classes that this node itself has time for.
    pub(super) my_classes: u64,
    /// Levels of this node's path.
    pub(super) depth: usize,
    /// Pieces in all.
    pub(super) pieces: u32,
}

/// For the origin, and then for every number of shared levels, the pieces that may be asked there.
#[derive(Debug)]
pub(super) struct Reach {
    basis: Basis,
    within: Vec<PieceSet>,
}

impl Reach {
    /// Works it out for the node with that key.
    pub(super) fn of(basis: Basis, me: NodeKey, artifact: &ArtifactId, strangers: &Strangers) -> Self {
        let mut within = vec![PieceSet::empty(basis.pieces); basis.depth.max(1) + 1];
        for (piece, key) in (0..basis.pieces).zip(PieceKey::all(artifact, basis.pieces)) {
            let own = me.weight(key);
            // Whoever was relieved of it leaves it to all that have time for it.
            let mine = (class(own) < basis.my_classes).then_some((own, me));
            let ahead = basis.importers.iter().filter_map(|importer| {
                let theirs = importer.key.weight(key);
                let is_ahead = Some((theirs, importer.key)) > mine && class(theirs) < importer.classes;
                is_ahead.then_some(importer.shared)
            });
            let stranger = strangers.nearest(key, basis.passed_over, mine.map(|_| own));
            // The first of all asks the origin; everybody else the largest group in which it is the first.
            let nearest = |shared: usize| 1 + shared.min(basis.depth.saturating_sub(1));
            for set in &mut within[ahead.max().max(stranger).map_or(0, nearest)..] {
                set.insert(piece);
            }
        }
        Self { basis, within }
    }

    /// Whether it still holds.
    pub(super) fn rests_on(&self, basis: &Basis) -> bool {
        self.basis == *basis
    }

    /// The pieces that may be asked of a peer that shares so many levels with this node.
    pub(super) fn within(&self, shared: usize) -> &PieceSet {
        &self.within[(1 + shared).min(self.within.len() - 1)]
    }

    /// The pieces that may be asked of the origin.
    pub(super) fn of_origin(&self) -> &PieceSet {
        &self.within[0]
    }
}
