//! One piece as the tree sees it: which hash pairs prove it, in which order they cross the wire, and the check of them.
//!
//! A piece's proof is the way from the root to the piece's subtree and the subtree itself, in pre-order. The encoding is
//! the one of [`encode`](crate::chunk::encode): length, then pairs and chunk groups in that order.

use bao_tree::{
    BaoTree, ChunkNum, ChunkRanges, TreeNode,
    io::DecodeError,
    iter::{BaoChunk, ResponseIter},
};
use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::{
    chunk::{BLOCK_SIZE, PieceLayout},
    ids::ArtifactId,
};

/// Two hashes of 32 bytes.
pub const PAIR_BYTES: usize = 64;

/// The artifact's length in front of an encoding.
pub const LENGTH_BYTES: usize = 8;

/// Where the parts of one piece lie in its encoding.
#[derive(Debug)]
pub struct Shape {
    steps: Vec<Step>,
    /// The encoding's length.
    pub encoded_bytes: usize,
}

/// Offsets count from the beginning of the encoding.
#[derive(Debug, Clone, Copy)]
enum Step {
    Pair {
        at: usize,
        node: TreeNode,
        is_root: bool,
        left: bool,
        right: bool,
    },
    Group {
        at: usize,
        bytes: usize,
        start: ChunkNum,
        is_root: bool,
    },
}

impl Shape {
    /// The shape of a piece that exists.
    pub fn of(layout: PieceLayout, piece: u32) -> Self {
        let range = layout.bytes(piece);
        let first = ChunkNum::full_chunks(range.start);
        // A range that reaches the end has no end: the tree counts whole chunks, and the last one may be short.
        let chunks = if range.end == layout.length() {
            ChunkRanges::from(first..)
        } else {
            ChunkRanges::from(first..ChunkNum::chunks(range.end))
        };
        let mut at = LENGTH_BYTES;
        let steps = ResponseIter::new(BaoTree::new(layout.length(), BLOCK_SIZE), chunks)
            .map(|chunk| match chunk {
                BaoChunk::Parent {
                    node,
                    is_root,
                    left,
                    right,
                    ..
                } => {
                    let step = Step::Pair {
                        at,
                        node,
                        is_root,
                        left,
                        right,
                    };
                    at += PAIR_BYTES;
                    step
                }
                BaoChunk::Leaf {
                    start_chunk,
                    size,
                    is_root,
                    ..
                } => {
                    let step = Step::Group {
                        at,
                        bytes: size,
                        start: start_chunk,
                        is_root,
                    };
                    at += size;
                    step
                }
            })
            .collect();
        Self {
            steps,
            encoded_bytes: at,
        }
    }

    /// Where each chunk group lies in the encoding, in order: offset and length.
    pub fn groups(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.steps.iter().filter_map(|step| match *step {
            Step::Group { at, bytes, .. } => Some((at, bytes)),
            Step::Pair { .. } => None,
        })
    }

    /// Where each pair of hashes lies in the encoding, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, TreeNode)> + '_ {
        self.steps.iter().filter_map(|step| match *step {
            Step::Pair { at, node, .. } => Some((at, node)),
            Step::Group { .. } => None,
        })
    }

    /// Checks every pair of hashes against the root, and with `contents` every chunk group against its pair.
    pub fn check(&self, encoded: &[u8], root: ArtifactId, contents: bool) -> Result<(), DecodeError> {
        let mut expected = vec![*root.as_bytes()];
        for step in &self.steps {
            let hash = expected
                .pop()
                .expect("the tree's own order leaves a hash for every step");
            match *step {
                Step::Pair {
                    at,
                    node,
                    is_root,
                    left,
                    right,
                } => {
                    let (pair, _) = encoded
                        .get(at..)
                        .and_then(|rest| rest.split_first_chunk::<PAIR_BYTES>())
                        .ok_or(DecodeError::ParentNotFound(node))?;
                    let (mut l, mut r) = ([0; 32], [0; 32]);
                    l.copy_from_slice(&pair[..32]);
                    r.copy_from_slice(&pair[32..]);
                    let found = match is_root {
                        true => *merge_subtrees_root(&l, &r, Mode::Hash).as_bytes(),
                        false => merge_subtrees_non_root(&l, &r, Mode::Hash),
                    };
                    if found != hash {
                        return Err(DecodeError::ParentHashMismatch(node));
                    }
                    expected.extend(right.then_some(r));
                    expected.extend(left.then_some(l));
                }
                Step::Group {
                    at,
                    bytes,
                    start,
                    is_root,
                } => {
                    let content = encoded.get(at..at + bytes).ok_or(DecodeError::LeafNotFound(start))?;
                    if contents && group_hash(content, start, is_root) != hash {
                        return Err(DecodeError::LeafHashMismatch(start));
                    }
                }
            }
        }
        Ok(())
    }
}

fn group_hash(content: &[u8], start: ChunkNum, is_root: bool) -> [u8; 32] {
    if is_root {
        return *blake3::hash(content).as_bytes();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(start.to_bytes());
    hasher.update(content);
    hasher.finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{GROUP_BYTES, HashTree, PIECE_BYTES_MIN, encode};
    use proptest::prelude::*;

    /// Lengths around every boundary of the tree.
    fn lengths() -> impl Strategy<Value = u64> {
        let near =
            |unit: u64, most: u64| (1..=most, -1_i64..=1).prop_map(move |(n, d)| (n * unit).saturating_add_signed(d));
        prop_oneof![
            1_u64..5_000,
            near(1024, 70),
            near(GROUP_BYTES, 200),
            near(PIECE_BYTES_MIN, 4),
            1_u64..4_000_000
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_shape_is_the_encoding_of_the_reference_and_checks_it(length in lengths(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let data: Vec<u8> = (0..length).map(|at| (at * 31 + at / 257) as u8).collect();
            let tree = HashTree::build(&data[..], length).unwrap();
            let layout = PieceLayout::new(length);
            for piece in 0..layout.pieces() {
                let range = layout.bytes(piece);
                let mut encoded = encode(&data[..], &tree, &range).unwrap();
                let shape = Shape::of(layout, piece);
                prop_assert_eq!(shape.encoded_bytes, encoded.len());
                shape.check(&encoded, tree.root, true).unwrap();
                let content: Vec<u8> = shape.groups().flat_map(|(at, bytes)| encoded[at..at + bytes].to_vec()).collect();
                prop_assert_eq!(&content[..], &data[range.start as usize..range.end as usize]);
                let at = LENGTH_BYTES + at.index(encoded.len() - LENGTH_BYTES);
                encoded[at] ^= 1 << bit;
                prop_assert!(shape.check(&encoded, tree.root, true).is_err());
                encoded[at] ^= 1 << bit;
                encoded.truncate(at);
                prop_assert!(matches!(
                    shape.check(&encoded, tree.root, true),
                    Err(DecodeError::ParentNotFound(_) | DecodeError::LeafNotFound(_))
                ));
            }
        }
    }
}
