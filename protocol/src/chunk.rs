//! Verified slices of artifacts: BLAKE3 trees over 16 KiB chunk groups, and the pieces that the swarm schedules.
//!
//! Invariant: [`encode`] hands out nothing that does not hash to the root, and a receiver accepts nothing that does not.
//! The encoding of a slice is the one iroh-blobs has: the artifact's length (8 bytes, little endian), then the tree
//! nodes and chunk groups of the slice in pre-order.

use std::{
    io::{self, Read},
    ops::Range,
};

pub use bao_tree::ChunkRanges;
use bao_tree::{
    BaoTree, BlockSize, ChunkNum,
    io::{
        BaoContentItem,
        outboard::PostOrderOutboard,
        sync::{DecodeResponseIter, ReadAt, encode_ranges_validated, outboard_post_order},
    },
};

use crate::{groups::Groups, ids::ArtifactId};

/// Chunk groups of 16 chunks: 16 KiB.
pub const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(4);

/// The unit of verification, in bytes.
pub const GROUP_BYTES: u64 = 16 << 10;

/// The longest piece, in bytes: 21 ms at 100 Mbit/s. Its proof is 0.6 % of it.
pub const PIECE_BYTES_MAX: u64 = 256 << 10;

/// The shortest piece of an artifact that has several. Its proof is 1 % of it.
pub const PIECE_BYTES_MIN: u64 = 64 << 10;

/// With fewer pieces than this the way to the last node is long, with more each costs more than it brings (decision 0017).
const PIECES_AIMED_AT: u64 = 256;

/// The most bytes one request may ask for: 64 pieces.
pub const SLICE_BYTES_MAX: u64 = 16 << 20;

/// How an artifact is cut into pieces, the unit of swarm scheduling: what a node passes on it must hold whole, so each hop
/// costs the time of one piece. The length decides, so everybody cuts alike. The last piece may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceLayout {
    length: u64,
    piece_bytes: u64,
}

impl PieceLayout {
    /// The layout of an artifact of `length` bytes.
    #[must_use]
    pub fn new(length: u64) -> Self {
        Self {
            length,
            piece_bytes: (length / PIECES_AIMED_AT)
                .next_power_of_two()
                .clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX),
        }
    }

    /// The artifact's length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The length of every piece but the last, in bytes: a power of two.
    #[must_use]
    pub fn piece_bytes(&self) -> u64 {
        self.piece_bytes
    }

    /// The piece that a byte lies in, or would behind the end.
    #[must_use]
    pub fn piece_at(&self, byte: u64) -> u32 {
        u32::try_from(byte / self.piece_bytes).unwrap_or(u32::MAX)
    }

    /// The number of pieces.
    #[must_use]
    pub fn pieces(&self) -> u32 {
        u32::try_from(self.length.div_ceil(self.piece_bytes)).expect("artifacts are bounded to 32 GiB")
    }

    /// The byte range of a piece; empty for a piece that does not exist.
    #[must_use]
    pub fn bytes(&self, piece: u32) -> Range<u64> {
        let start = (u64::from(piece) * self.piece_bytes).min(self.length);
        start..(start + self.piece_bytes).min(self.length)
    }

    /// The pieces that lie whole inside a byte range.
    pub fn whole_pieces(&self, bytes: Range<u64>) -> impl Iterator<Item = u32> + use<> {
        let first = bytes.start.div_ceil(self.piece_bytes);
        let end = match bytes.end >= self.length {
            true => u64::from(self.pieces()),
            false => bytes.end / self.piece_bytes,
        };
        (first..end).map(|piece| u32::try_from(piece).expect("bounded by the number of pieces"))
    }

    /// The chunks of a piece, as the tree counts them.
    #[must_use]
    pub fn chunks(&self, piece: u32) -> ChunkRanges {
        chunks_of(&self.bytes(piece))
    }
}

/// The chunks that cover a byte range.
#[must_use]
pub fn chunks_of(bytes: &Range<u64>) -> ChunkRanges {
    ChunkRanges::from(ChunkNum::full_chunks(bytes.start)..ChunkNum::chunks(bytes.end))
}

/// The hash tree of one artifact without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashTree {
    /// The artifact.
    pub root: ArtifactId,
    /// Its length in bytes.
    pub length: u64,
    /// The tree's nodes in post-order.
    pub nodes: Vec<u8>,
}

impl HashTree {
    /// Hashes exactly `length` bytes of `data`.
    pub fn build(data: impl Read, length: u64) -> io::Result<Self> {
        let tree = BaoTree::new(length, BLOCK_SIZE);
        let mut nodes = Vec::new();
        let root = outboard_post_order(data, tree, &mut nodes)?;
        Ok(Self {
            root: ArtifactId::from(*root.as_bytes()),
            length,
            nodes,
        })
    }

    fn outboard(&self) -> PostOrderOutboard<&[u8]> {
        PostOrderOutboard {
            root: blake3::Hash::from_bytes(*self.root.as_bytes()),
            tree: BaoTree::new(self.length, BLOCK_SIZE),
            data: &self.nodes,
        }
    }
}

/// A slice that could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The range is empty, too long, or beyond the end.
    #[error("bytes {}..{} are not a slice of an artifact of {length} bytes, or are more than {SLICE_BYTES_MAX}", range.start, range.end)]
    OutOfRange {
        /// What was asked for.
        range: Range<u64>,
        /// The artifact's length.
        length: u64,
    },
    /// The stored bytes do not hash to the root any more, or could not be read.
    #[error("the stored bytes of artifact {root} cannot be served")]
    Unreadable {
        /// The artifact.
        root: ArtifactId,
        /// What the tree found.
        source: bao_tree::io::EncodeError,
    },
}

/// Encodes a byte range of an artifact with the proof that it belongs to the root, checking the data on the way out.
pub fn encode(data: impl ReadAt, tree: &HashTree, range: &Range<u64>) -> Result<Vec<u8>, EncodeError> {
    let in_bounds = range.start < range.end && range.end <= tree.length && range.end - range.start <= SLICE_BYTES_MAX;
    if !in_bounds {
        return Err(EncodeError::OutOfRange {
            range: range.clone(),
            length: tree.length,
        });
    }
    encode_chunks(data, tree, &chunks_of(range))
}

/// The same for some chunk groups of a piece, all of which exist.
pub fn encode_groups(data: impl ReadAt, tree: &HashTree, piece: u32, groups: Groups) -> Result<Vec<u8>, EncodeError> {
    let layout = PieceLayout::new(tree.length);
    if groups.is_empty() || !groups.without(Groups::all(layout, piece)).is_empty() {
        return Err(EncodeError::OutOfRange {
            range: layout.bytes(piece),
            length: tree.length,
        });
    }
    encode_chunks(data, tree, &groups.chunks(layout, piece))
}

fn encode_chunks(data: impl ReadAt, tree: &HashTree, chunks: &ChunkRanges) -> Result<Vec<u8>, EncodeError> {
    let mut encoded = tree.length.to_le_bytes().to_vec();
    encode_ranges_validated(data, tree.outboard(), chunks, &mut encoded).map_err(|source| EncodeError::Unreadable {
        root: tree.root,
        source,
    })?;
    Ok(encoded)
}

/// Why an encoded slice was not believed.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The encoding names another length than the signed one.
    #[error("the slice says the artifact has {found} bytes, the signed length is {expected}")]
    WrongLength {
        /// What the slice says.
        found: u64,
        /// What was signed.
        expected: u64,
    },
    /// The bytes end early, which may be nobody's fault.
    #[error("the slice of artifact {root} ends early")]
    Truncated {
        /// The artifact.
        root: ArtifactId,
    },
    /// The bytes do not hash to the root.
    #[error("the slice does not belong to artifact {root}")]
    Corrupt {
        /// The artifact.
        root: ArtifactId,
        /// Where it failed.
        source: bao_tree::io::DecodeError,
    },
}

/// Checks every chunk group of a slice that [`encode`] made against the root, and returns its tree nodes and chunk
/// groups in order: what a store takes in.
pub fn verified_items(
    encoded: &[u8],
    root: ArtifactId,
    length: u64,
    range: &Range<u64>,
) -> Result<Vec<BaoContentItem>, DecodeError> {
    verified_chunks(encoded, root, length, &chunks_of(range))
}

/// The same for a slice of some chunk groups that [`encode_groups`] made: each with the place of its first byte.
pub fn decode_groups(
    encoded: &[u8],
    root: ArtifactId,
    layout: PieceLayout,
    piece: u32,
    groups: Groups,
) -> Result<Vec<(u64, bytes::Bytes)>, DecodeError> {
    let items = verified_chunks(encoded, root, layout.length(), &groups.chunks(layout, piece))?;
    let leaves = items.into_iter().filter_map(|item| match item {
        BaoContentItem::Leaf(leaf) => Some((leaf.offset, leaf.data)),
        BaoContentItem::Parent(_) => None,
    });
    Ok(leaves.collect())
}

fn verified_chunks(
    encoded: &[u8],
    root: ArtifactId,
    length: u64,
    chunks: &ChunkRanges,
) -> Result<Vec<BaoContentItem>, DecodeError> {
    let head = encoded.first_chunk::<8>().ok_or(DecodeError::Truncated { root })?;
    let found = u64::from_le_bytes(*head);
    if found != length {
        return Err(DecodeError::WrongLength {
            found,
            expected: length,
        });
    }
    let tree = BaoTree::new(length, BLOCK_SIZE);
    let hash = blake3::Hash::from_bytes(*root.as_bytes());
    DecodeResponseIter::new(hash, tree, &encoded[8..], chunks)
        .collect::<Result<_, _>>()
        .map_err(|source| match source {
            bao_tree::io::DecodeError::ParentNotFound(_) | bao_tree::io::DecodeError::LeafNotFound(_) => {
                DecodeError::Truncated { root }
            }
            source => DecodeError::Corrupt { root, source },
        })
}

/// The bytes of a slice that [`encode`] made, every chunk group checked against the root.
pub fn decode(encoded: &[u8], root: ArtifactId, length: u64, range: &Range<u64>) -> Result<Vec<u8>, DecodeError> {
    let mut bytes = Vec::new();
    for item in verified_items(encoded, root, length, range)? {
        if let BaoContentItem::Leaf(leaf) = item {
            bytes.extend_from_slice(&leaf.data);
        }
    }
    Ok(bytes)
}

/// The most bytes an encoded piece can have: its content, 64 bytes of tree per chunk group, and the way to the root.
pub const ENCODED_PIECE_BYTES_MAX: usize =
    (PIECE_BYTES_MAX + PIECE_BYTES_MAX / GROUP_BYTES * 64 + 8 + 64 * 64) as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 + at / 257) as u8).collect()
    }

    #[test]
    fn the_tree_has_the_plain_blake3_root_and_serves_any_piece() {
        let data = image(3 * PIECE_BYTES_MIN as usize + 5_000);
        let tree = HashTree::build(&data[..], data.len() as u64).unwrap();
        assert_eq!(tree.root, ArtifactId::of(&data));
        let layout = PieceLayout::new(data.len() as u64);
        assert_eq!(layout.pieces(), 4);
        for piece in 0..layout.pieces() {
            let range = layout.bytes(piece);
            let encoded = encode(&data[..], &tree, &range).unwrap();
            let decoded = decode(&encoded, tree.root, tree.length, &range).unwrap();
            assert_eq!(decoded, data[range.start as usize..range.end as usize]);
        }
        assert!(encode(&data[..], &tree, &(0..data.len() as u64 + 1)).is_err());
    }

    #[test]
    fn bit_rot_is_found_before_it_is_served() {
        let mut data = image(100_000);
        let tree = HashTree::build(&data[..], data.len() as u64).unwrap();
        data[50_000] ^= 1;
        assert!(matches!(
            encode(&data[..], &tree, &(0..100_000)),
            Err(EncodeError::Unreadable { .. })
        ));
    }

    #[test]
    fn a_half_answer_is_told_from_a_lie() {
        let data = image(100_000);
        let tree = HashTree::build(&data[..], data.len() as u64).unwrap();
        let encoded = encode(&data[..], &tree, &(0..100_000)).unwrap();
        for length in [0, 7, 8, 100, encoded.len() - 1] {
            let decoded = decode(&encoded[..length], tree.root, tree.length, &(0..100_000));
            assert!(
                matches!(decoded, Err(DecodeError::Truncated { .. })),
                "{length}: {decoded:?}"
            );
        }
    }

    #[test]
    fn small_images_have_small_pieces() {
        const MIB: u64 = 1 << 20;
        let cut = |length: u64| {
            let layout = PieceLayout::new(length);
            (layout.piece_bytes() >> 10, layout.pieces())
        };
        let lengths = [1, MIB, 16 * MIB, 17 * MIB, 32 * MIB, 64 * MIB, 65 * MIB, 4096 * MIB];
        let expected = [
            (64, 1),
            (64, 16),
            (64, 256),
            (128, 136),
            (128, 256),
            (256, 256),
            (256, 260),
            (256, 16_384),
        ];
        assert_eq!(lengths.map(cut), expected);
        let layout = PieceLayout::new(20 * MIB);
        assert_eq!(
            [0, 131_071, 131_072, 20 * MIB].map(|byte| layout.piece_at(byte)),
            [0, 0, 1, 160]
        );
    }

    #[test]
    fn pieces_that_lie_whole_in_a_range_are_counted_to_the_short_last_one() {
        let layout = PieceLayout::new(2 * PIECE_BYTES_MIN + 10);
        let whole = |range| layout.whole_pieces(range).collect::<Vec<_>>();
        assert_eq!(whole(0..layout.length()), [0, 1, 2]);
        assert_eq!(whole(1..layout.length()), [1, 2]);
        assert_eq!(whole(0..2 * PIECE_BYTES_MIN), [0, 1]);
        assert_eq!(whole(0..PIECE_BYTES_MIN - 1), [0_u32; 0]);
    }

    proptest! {
        #[test]
        fn no_flipped_byte_survives(length in 1_usize..200_000, at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let data = image(length);
            let tree = HashTree::build(&data[..], length as u64).unwrap();
            let range = 0..length as u64;
            let mut encoded = encode(&data[..], &tree, &range).unwrap();
            let at = at.index(encoded.len());
            encoded[at] ^= 1 << bit;
            prop_assert!(decode(&encoded, tree.root, tree.length, &range).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000), length in 1_u64..1_000_000) {
            let _ = decode(&bytes, ArtifactId::of(b"x"), length, &(0..length.min(SLICE_BYTES_MAX)));
        }
    }
}
