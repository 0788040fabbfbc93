//! Which pieces of an artifact somebody holds.

use serde::{Deserialize, Serialize};

use crate::{chunk::PIECE_BYTES, limits::ARTIFACT_BYTES_MAX};

/// Pieces of the largest artifact.
pub const PIECES_MAX: u32 = (ARTIFACT_BYTES_MAX / PIECE_BYTES) as u32;

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
        let mut set = Self::empty(total);
        (0..total).for_each(|piece| {
            set.insert(piece);
        });
        set
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

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.total).filter(|&piece| self.contains(piece))
    }

    /// The pieces not in the set, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.total).filter(|&piece| !self.contains(piece))
    }
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
