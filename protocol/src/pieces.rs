//! Which pieces of an artifact somebody holds.

use serde::{Deserialize, Serialize};

use crate::{chunk::PIECE_BYTES_MAX, limits::ARTIFACT_BYTES_MAX};

/// Pieces of the largest artifact.
pub const PIECES_MAX: u32 = (ARTIFACT_BYTES_MAX / PIECE_BYTES_MAX) as u32;

/// A set of piece numbers below a fixed total.
///
/// Invariant: no member is at or above the total, so counts and iteration need no checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PieceSetWire", into = "PieceSetWire")]
pub struct PieceSet {
    words: Vec<u64>,
    total: u32,
    count: u32,
}

/// The form on the wire: the total, then the bits, least significant first.
#[derive(Serialize, Deserialize)]
struct PieceSetWire {
    total: u32,
    words: Vec<u64>,
}

/// A piece set that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a piece set of {total} pieces came with {words} words of bits, or with bits beyond its end, or has none or too many pieces"
)]
pub struct PieceSetError {
    total: u32,
    words: usize,
}

impl TryFrom<PieceSetWire> for PieceSet {
    type Error = PieceSetError;
    fn try_from(wire: PieceSetWire) -> Result<Self, PieceSetError> {
        let error = PieceSetError {
            total: wire.total,
            words: wire.words.len(),
        };
        let tail = wire.total % 64;
        let beyond = tail != 0 && wire.words.last().is_some_and(|last| last >> tail != 0);
        if !(1..=PIECES_MAX).contains(&wire.total) || wire.words.len() != words_for(wire.total) || beyond {
            return Err(error);
        }
        let count = wire.words.iter().map(|word| word.count_ones()).sum();
        Ok(Self {
            words: wire.words,
            total: wire.total,
            count,
        })
    }
}

impl From<PieceSet> for PieceSetWire {
    fn from(set: PieceSet) -> Self {
        Self {
            total: set.total,
            words: set.words,
        }
    }
}

fn words_for(total: u32) -> usize {
    total.div_ceil(64) as usize
}

impl PieceSet {
    /// None of `total` pieces.
    #[must_use]
    pub fn empty(total: u32) -> Self {
        Self {
            words: vec![0; words_for(total)],
            total,
            count: 0,
        }
    }

    /// All of `total` pieces.
    #[must_use]
    pub fn full(total: u32) -> Self {
        let mut words = vec![u64::MAX; words_for(total)];
        if let (Some(last), tail @ 1..) = (words.last_mut(), total % 64) {
            *last = u64::MAX >> (64 - tail);
        }
        Self {
            words,
            total,
            count: total,
        }
    }

    /// How many pieces there could be.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total
    }

    /// How many pieces are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether every piece is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == self.total
    }

    /// Whether `piece` is in the set.
    #[must_use]
    pub fn contains(&self, piece: u32) -> bool {
        piece < self.total && self.words[piece as usize / 64] >> (piece % 64) & 1 == 1
    }

    /// Adds a piece; false if it was there already or does not exist.
    pub fn insert(&mut self, piece: u32) -> bool {
        if piece >= self.total || self.contains(piece) {
            return false;
        }
        self.words[piece as usize / 64] |= 1 << (piece % 64);
        self.count += 1;
        true
    }

    /// Removes a piece; false if it was not there.
    pub fn remove(&mut self, piece: u32) -> bool {
        if !self.contains(piece) {
            return false;
        }
        self.words[piece as usize / 64] &= !(1 << (piece % 64));
        self.count -= 1;
        true
    }

    /// Adds what `other`, a set of pieces of the same artifact, holds.
    pub fn unite(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine | theirs);
    }

    /// Removes what `other`, a set of pieces of the same artifact, holds.
    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & !theirs);
    }

    /// Keeps what `other`, a set of pieces of the same artifact, holds too.
    pub fn intersect(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & theirs);
    }

    /// Adds what two other sets of pieces of the same artifact both hold.
    pub fn unite_common(&mut self, one: &Self, other: &Self) {
        debug_assert_eq!([one.total, other.total], [self.total; 2], "sets of different artifacts");
        for (mine, (one, other)) in self.words.iter_mut().zip(one.words.iter().zip(&other.words)) {
            *mine |= one & other;
        }
        self.keep_to_total();
    }

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        ones(self.words.iter().copied())
    }

    /// The pieces not in the set, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        ones(self.words.iter().map(|word| !word)).take_while(|piece| *piece < self.total)
    }

    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        debug_assert_eq!(self.total, other.total, "sets of different artifacts");
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine = with(*mine, *theirs);
        }
        self.keep_to_total();
    }

    /// Where totals differ all the same, nothing gets in beyond this one's end.
    fn keep_to_total(&mut self) {
        if let (Some(last), tail @ 1..) = (self.words.last_mut(), self.total % 64) {
            *last &= u64::MAX >> (64 - tail);
        }
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }
}

/// The numbers of the bits that are set.
fn ones(words: impl Iterator<Item = u64>) -> impl Iterator<Item = u32> {
    (0_u32..).step_by(64).zip(words).flat_map(|(first, word)| {
        let next = |rest: &u64| Some(rest & (rest - 1)).filter(|rest| *rest != 0);
        std::iter::successors(Some(word).filter(|word| *word != 0), next).map(move |rest| first + rest.trailing_zeros())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_counts_what_it_holds_and_ignores_what_does_not_exist() {
        let mut set = PieceSet::empty(70);
        assert!(set.insert(0) && set.insert(69) && !set.insert(69) && !set.insert(70));
        assert_eq!((set.count(), set.iter().collect::<Vec<_>>()), (2, vec![0, 69]));
        assert!(set.remove(0) && !set.remove(0));
        assert_eq!(set.missing().count(), 69);
        assert!(PieceSet::full(70).is_full());
    }

    #[test]
    fn sets_are_combined_and_walked_like_sets() {
        let set = |pieces: &[u32]| {
            let mut set = PieceSet::empty(130);
            pieces.iter().for_each(|piece| assert!(set.insert(*piece)));
            set
        };
        let (one, other) = (set(&[0, 5, 63, 64, 129]), set(&[5, 64, 100]));
        let combined = |with: fn(&mut PieceSet, &PieceSet)| {
            let mut result = one.clone();
            with(&mut result, &other);
            assert_eq!(result.count() as usize, result.iter().count());
            result.iter().collect::<Vec<_>>()
        };
        assert_eq!(combined(PieceSet::unite), [0, 5, 63, 64, 100, 129]);
        assert_eq!(combined(PieceSet::subtract), [0, 63, 129]);
        assert_eq!(combined(PieceSet::intersect), [5, 64]);
        for total in [1, 63, 64, 65, 130] {
            let full = PieceSet::full(total);
            assert_eq!(full.iter().collect::<Vec<_>>(), (0..total).collect::<Vec<_>>());
            assert_eq!(full.missing().count(), 0);
            let mut none = full.clone();
            none.subtract(&full);
            assert_eq!(none, PieceSet::empty(total));
            assert_eq!(none.missing().collect::<Vec<_>>(), (0..total).collect::<Vec<_>>());
        }
    }

    #[test]
    fn bits_beyond_the_end_are_refused() {
        assert!(
            PieceSet::try_from(PieceSetWire {
                total: 3,
                words: vec![0b1000]
            })
            .is_err()
        );
        assert!(
            PieceSet::try_from(PieceSetWire {
                total: 3,
                words: vec![0, 0]
            })
            .is_err()
        );
        assert!(
            PieceSet::try_from(PieceSetWire {
                total: u32::MAX,
                words: vec![]
            })
            .is_err()
        );
        assert_eq!(
            PieceSet::try_from(PieceSetWire {
                total: 3,
                words: vec![0b101]
            })
            .unwrap()
            .count(),
            2
        );
    }
}
