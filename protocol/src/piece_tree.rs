//! The upper part of an artifact's hash tree: one hash per piece, and what follows from them up to the root.
//!
//! With it a piece that was put together from bytes found elsewhere can be checked alone, and given the proof that a piece
//! from a peer brings along.
//!
//! Invariant: the hashes of a [`PieceTree`] give the artifact's root, so nobody has to be believed for them.

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::{
    chunk::{GROUP_BYTES, PIECE_BYTES_MAX, PIECE_BYTES_MIN, PieceLayout},
    ids::ArtifactId,
};

/// Bytes of one hash.
pub const HASH_BYTES: usize = 32;

/// The length in front of an encoding.
const LENGTH_BYTES: usize = 8;

/// The hashes of all pieces of one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceTree {
    root: ArtifactId,
    layout: PieceLayout,
    /// One per piece; of an artifact of one piece the root itself.
    pieces: Vec<ChainingValue>,
    /// The two hashes under each node above the pieces, by the number of the first piece on the right side. The first
    /// is unused.
    pairs: Vec<Pair>,
}

type Pair = (ChainingValue, ChainingValue);

/// Hashes that are not the artifact's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Another number of hashes than the artifact has pieces.
    #[error("there are {found} piece hashes, an artifact of {length} bytes has {expected}")]
    Count {
        /// How many came.
        found: usize,
        /// How many there must be.
        expected: u32,
        /// The artifact's length.
        length: u64,
    },
    /// They do not give the root.
    #[error("the piece hashes do not give the root of artifact {root}")]
    OtherRoot {
        /// The artifact.
        root: ArtifactId,
    },
}

impl PieceTree {
    /// Takes hashes as somebody gave them, if they give the artifact's root.
    pub fn new(root: ArtifactId, length: u64, pieces: Vec<[u8; HASH_BYTES]>) -> Result<Self, TreeError> {
        let layout = PieceLayout::new(length);
        if pieces.len() != layout.pieces() as usize || pieces.is_empty() {
            return Err(TreeError::Count {
                found: pieces.len(),
                expected: layout.pieces(),
                length,
            });
        }
        let mut pairs = vec![([0; HASH_BYTES], [0; HASH_BYTES]); pieces.len()];
        let found = match pieces.len() {
            1 => pieces[0],
            count => {
                let whole = upper(&pieces, 0..count, &mut pairs);
                *merge_subtrees_root(&whole.0, &whole.1, Mode::Hash).as_bytes()
            }
        };
        match found == *root.as_bytes() {
            true => Ok(Self {
                root,
                layout,
                pieces,
                pairs,
            }),
            false => Err(TreeError::OtherRoot { root }),
        }
    }

    /// The artifact.
    #[must_use]
    pub fn root(&self) -> ArtifactId {
        self.root
    }

    /// How the artifact is cut.
    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The hashes, by piece.
    #[must_use]
    pub fn hashes(&self) -> &[[u8; HASH_BYTES]] {
        &self.pieces
    }

    /// A piece as [`encode`](crate::chunk::encode) has it, proof included. `None` if these are not the piece's bytes.
    #[must_use]
    pub fn encode(&self, piece: u32, content: &[u8]) -> Option<Vec<u8>> {
        let range = self.layout.bytes(piece);
        if range.is_empty() || content.len() as u64 != range.end - range.start {
            return None;
        }
        let (number, only) = (piece as usize, self.pieces.len() == 1);
        let groups: Vec<_> = content
            .chunks(GROUP_BYTES as usize)
            .zip((range.start..).step_by(GROUP_BYTES as usize))
            .map(|(group, at)| subtree_hash(group, at))
            .collect();
        let mut pairs = vec![([0; HASH_BYTES], [0; HASH_BYTES]); groups.len()];
        let hash = match groups.len() {
            1 if only => *blake3::hash(content).as_bytes(),
            1 => groups[0],
            count => {
                let (left, right) = upper(&groups, 0..count, &mut pairs);
                match only {
                    true => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
                    false => merge_subtrees_non_root(&left, &right, Mode::Hash),
                }
            }
        };
        if hash != self.pieces[number] {
            return None;
        }
        let depth = usize::BITS as usize;
        let mut encoded = Vec::with_capacity(LENGTH_BYTES + content.len() + (groups.len() + depth) * 2 * HASH_BYTES);
        encoded.extend_from_slice(&self.layout.length().to_le_bytes());
        let (mut from, mut to) = (0, self.pieces.len());
        while to - from > 1 {
            let middle = from + left_of(to - from);
            push_pair(&mut encoded, &self.pairs[middle]);
            if number < middle {
                to = middle;
            } else {
                from = middle;
            }
        }
        push_groups(&mut encoded, content, &pairs, 0..groups.len());
        Some(encoded)
    }
}

/// The hash of one piece of an artifact, at byte `at`; `only` if the artifact has no other.
#[must_use]
pub fn piece_hash(content: &[u8], at: u64, only: bool) -> [u8; HASH_BYTES] {
    debug_assert!(content.len() as u64 <= PIECE_BYTES_MAX && at.is_multiple_of(PIECE_BYTES_MIN));
    match only {
        true => *blake3::hash(content).as_bytes(),
        false => subtree_hash(content, at),
    }
}

fn subtree_hash(content: &[u8], at: u64) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(at);
    hasher.update(content);
    hasher.finalize_non_root()
}

/// How many leaves of `count` stand on the left side: BLAKE3's trees are full there.
fn left_of(count: usize) -> usize {
    1 << (count - 1).ilog2()
}

/// The two hashes under the node over some leaves, at least two; keeps them, and those of all nodes below, in `pairs`.
fn upper(leaves: &[ChainingValue], range: std::ops::Range<usize>, pairs: &mut [Pair]) -> Pair {
    let middle = range.start + left_of(range.len());
    let side = |range: std::ops::Range<usize>, pairs: &mut [Pair]| match range.len() {
        1 => leaves[range.start],
        _ => {
            let (left, right) = upper(leaves, range, pairs);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    };
    let left = side(range.start..middle, pairs);
    let right = side(middle..range.end, pairs);
    pairs[middle] = (left, right);
    (left, right)
}

/// A piece's own tree in pre-order with its chunk groups.
fn push_groups(encoded: &mut Vec<u8>, content: &[u8], pairs: &[Pair], range: std::ops::Range<usize>) {
    if range.len() == 1 {
        let group = GROUP_BYTES as usize;
        let end = (range.end * group).min(content.len());
        return encoded.extend_from_slice(&content[range.start * group..end]);
    }
    let middle = range.start + left_of(range.len());
    push_pair(encoded, &pairs[middle]);
    push_groups(encoded, content, pairs, range.start..middle);
    push_groups(encoded, content, pairs, middle..range.end);
}

fn push_pair(encoded: &mut Vec<u8>, pair: &Pair) {
    encoded.extend_from_slice(&pair.0);
    encoded.extend_from_slice(&pair.1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{HashTree, encode};
    use proptest::prelude::*;

    fn tree_of(data: &[u8]) -> Result<PieceTree, TreeError> {
        let only = data.len() as u64 <= PIECE_BYTES_MIN;
        let pieces = data
            .chunks(PIECE_BYTES_MIN as usize)
            .zip((0..).step_by(PIECE_BYTES_MIN as usize));
        let hashes = pieces.map(|(piece, at)| piece_hash(piece, at, only)).collect();
        PieceTree::new(ArtifactId::of(data), data.len() as u64, hashes)
    }

    /// Lengths around every boundary of the tree.
    fn lengths() -> impl Strategy<Value = u64> {
        let near =
            |unit: u64, most: u64| (1..=most, -1_i64..=1).prop_map(move |(n, d)| (n * unit).saturating_add_signed(d));
        prop_oneof![
            1_u64..5_000,
            near(1024, 70),
            near(GROUP_BYTES, 80),
            near(PIECE_BYTES_MIN, 9)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_encoded_from_a_list_of_hashes_is_the_encoding_of_the_reference(
            length in lengths(), at in any::<prop::sample::Index>(), bit in 0_u8..8
        ) {
            let mut data: Vec<u8> = (0..length).map(|at| (at * 31 + at / 257) as u8).collect();
            let reference = HashTree::build(&data[..], length).unwrap();
            let tree = tree_of(&data).unwrap();
            for piece in 0..tree.layout().pieces() {
                let range = tree.layout().bytes(piece);
                let content = &data[range.start as usize..range.end as usize];
                prop_assert!(tree.encode(piece, content).unwrap() == encode(&data[..], &reference, &range).unwrap());
            }
            let at = at.index(data.len());
            data[at] ^= 1 << bit;
            let piece = (at as u64 / PIECE_BYTES_MIN) as u32;
            let range = tree.layout().bytes(piece);
            prop_assert!(tree.encode(piece, &data[range.start as usize..range.end as usize]).is_none());
            prop_assert!(tree.encode(tree.layout().pieces(), &[]).is_none());
            let mut hashes = tree.hashes().to_vec();
            hashes[piece as usize][0] ^= 1;
            let changed = PieceTree::new(tree.root(), length, hashes.clone());
            prop_assert_eq!(changed, Err(TreeError::OtherRoot { root: tree.root() }));
            hashes.push([0; 32]);
            let too_many = matches!(PieceTree::new(tree.root(), length, hashes), Err(TreeError::Count { .. }));
            prop_assert!(too_many);
        }
    }
}
