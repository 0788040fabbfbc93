//! Some chunk groups of one piece: what is asked for of a piece that is partly here.

use std::{num::ParseIntError, ops::Range, str::FromStr};

use bao_tree::{ChunkNum, ChunkRanges};

use crate::chunk::{GROUP_BYTES, PIECE_BYTES_MAX, PieceLayout};

/// Chunk groups of the longest piece.
pub const PIECE_GROUPS: u32 = (PIECE_BYTES_MAX / GROUP_BYTES) as u32;
const _: () = assert!(PIECE_GROUPS == u16::BITS);

/// A set of a piece's chunk groups. As text: four hexadecimal digits, the first group being the lowest bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Groups(u16);

impl Groups {
    /// All groups of a piece; none of one that does not exist.
    #[must_use]
    pub fn all(layout: PieceLayout, piece: u32) -> Self {
        let bytes = layout.bytes(piece);
        let count = (bytes.end - bytes.start).div_ceil(GROUP_BYTES) as u32;
        Self(u16::MAX.checked_shr(PIECE_GROUPS - count).unwrap_or(0))
    }

    /// Adds a group below [`PIECE_GROUPS`].
    pub fn insert(&mut self, group: u32) {
        debug_assert!(group < PIECE_GROUPS);
        self.0 |= 1_u16.checked_shl(group).unwrap_or(0);
    }

    /// Whether a group is in the set.
    #[must_use]
    pub fn contains(self, group: u32) -> bool {
        self.0.checked_shr(group).is_some_and(|rest| rest & 1 == 1)
    }

    /// Those of this set that are not in another.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The groups, in order.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        (0..PIECE_GROUPS).filter(move |group| self.contains(*group))
    }

    /// Where a group of a piece lies in the artifact; empty behind the end.
    #[must_use]
    pub fn bytes_of(layout: PieceLayout, piece: u32, group: u32) -> Range<u64> {
        let range = layout.bytes(piece);
        let start = (range.start + u64::from(group) * GROUP_BYTES).min(range.end);
        start..(start + GROUP_BYTES).min(range.end)
    }

    /// How many bytes the groups have, in a piece.
    #[must_use]
    pub fn bytes(self, layout: PieceLayout, piece: u32) -> u64 {
        let ranges = self.iter().map(|group| Self::bytes_of(layout, piece, group));
        ranges.map(|range| range.end - range.start).sum()
    }

    /// The groups of a piece as the tree counts: in chunks. Those that do not exist have none.
    #[must_use]
    pub fn chunks(self, layout: PieceLayout, piece: u32) -> ChunkRanges {
        let beyond = self.without(Self::all(layout, piece));
        let existing = self.without(beyond).iter();
        let ranges = existing.map(|group| Self::bytes_of(layout, piece, group));
        ranges.fold(ChunkRanges::empty(), |chunks, range| {
            chunks | ChunkRanges::from(ChunkNum::full_chunks(range.start)..ChunkNum::chunks(range.end))
        })
    }

    /// The piece whose groups these chunks are, and which; `None` for what is not some whole groups of one piece.
    #[must_use]
    pub fn of_chunks(layout: PieceLayout, chunks: &ChunkRanges) -> Option<(u32, Self)> {
        const GROUP: u64 = GROUP_BYTES / 1024;
        let boundaries = chunks.boundaries();
        let first = boundaries.first()?.0;
        let piece_chunks = layout.piece_bytes() / 1024;
        let piece = first / piece_chunks;
        let piece_start = piece * piece_chunks;
        let mut groups = Self::default();
        if !boundaries.len().is_multiple_of(2) {
            return None;
        }
        for range in boundaries.chunks_exact(2) {
            let (start, end) = (range[0].0 - piece_start, range[1].0 - piece_start);
            if !start.is_multiple_of(GROUP) || end > piece_chunks {
                return None;
            }
            // The last group of an artifact may be short.
            (start / GROUP..end.div_ceil(GROUP)).for_each(|group| groups.insert(group as u32));
        }
        Some((u32::try_from(piece).ok()?, groups))
    }
}

impl std::fmt::Display for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl FromStr for Groups {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u16::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::PIECE_BYTES_MIN;
    use proptest::prelude::*;

    #[test]
    fn the_last_piece_has_as_many_groups_as_it_has_bytes_for() {
        let layout = PieceLayout::new(PIECE_BYTES_MIN + GROUP_BYTES + 1);
        let counts = [0, 1, 2].map(|piece| Groups::all(layout, piece).count());
        assert_eq!(counts, [4, 2, 0]);
        assert_eq!(Groups::all(layout, 1).bytes(layout, 1), GROUP_BYTES + 1);
        // Groups behind a chunk that is not whole were once counted as that chunk.
        assert_eq!(Groups(0xfffe).chunks(layout, 1), Groups(2).chunks(layout, 1));
        assert!(Groups(0xfffc).chunks(layout, 1).is_empty());
    }

    proptest! {
        #[test]
        fn groups_survive_the_wire(bits in 1_u16.., length in 1_u64..100_000_000, at in any::<prop::sample::Index>()) {
            let layout = PieceLayout::new(length);
            let piece = at.index(layout.pieces() as usize) as u32;
            let outside = Groups(bits).without(Groups::all(layout, piece));
            let groups = Groups(bits).without(outside);
            prop_assert_eq!(groups.to_string().parse::<Groups>().unwrap(), groups);
            if !groups.is_empty() {
                prop_assert_eq!(Groups::of_chunks(layout, &groups.chunks(layout, piece)), Some((piece, groups)));
            }
        }

        #[test]
        fn foreign_ranges_never_panic(bounds in prop::collection::vec(any::<u64>(), 0..6)) {
            let ranges = bounds.chunks(2).filter(|pair| pair.len() == 2 && pair[0] < pair[1]);
            let chunks = ranges.fold(ChunkRanges::empty(), |all, pair| {
                all | ChunkRanges::from(ChunkNum(pair[0])..ChunkNum(pair[1]))
            });
            let layout = PieceLayout::new(1 << 34);
            if let Some((piece, groups)) = Groups::of_chunks(layout, &chunks) {
                let covered = groups.chunks(layout, piece);
                prop_assert!(groups.is_empty() || piece >= 1 << 16 || covered.is_superset(&chunks));
            }
        }
    }
}
