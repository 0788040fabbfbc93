//! The tree: appended to, asked for roots and proofs.
//!
//! It keeps the hashes of whole tiles (256 leaves) and everything above them: a quarter of a byte per entry. What lies inside
//! a whole tile is asked for when a proof needs it ([`RangeError::Tile`]), so a proof reads at most a few tiles however
//! long the log is.

use std::collections::BTreeMap;

use sha2::Digest as _;

use crate::ids::Sha256;

/// Leaves of one tile: few enough to hash again for a proof, many enough that the rest of the tree fits in memory.
pub const TILE_LEAVES: u64 = 256;
const TILE_LEVELS: u32 = TILE_LEAVES.trailing_zeros();

/// The hash of an entry (RFC 6962, section 2.1).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Sha256 {
    digest(&[&[0], entry])
}

/// The hash of two subtrees (RFC 6962, section 2.1).
#[must_use]
pub fn node_hash(left: &Sha256, right: &Sha256) -> Sha256 {
    digest(&[&[1], left.as_bytes(), right.as_bytes()])
}

fn digest(parts: &[&[u8]]) -> Sha256 {
    let mut hasher = sha2::Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    Sha256::from(<[u8; 32]>::from(hasher.finalize()))
}

/// Leaf hashes of whole tiles, by the tile's number.
pub type Tiles = BTreeMap<u64, Vec<Sha256>>;

/// Why a root or a proof could not be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The leaf hashes of a whole tile are needed: load them and ask again.
    #[error("the leaf hashes of tile {0} are needed")]
    Tile(u64),
    /// Asked about something beyond the tree.
    #[error("{asked} is beyond the {size} entries of the log")]
    Beyond {
        /// The index or size that was asked about.
        asked: u64,
        /// Entries there are.
        size: u64,
    },
}

/// An append-only Merkle tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// `whole[l][i]` is the hash of the `i`-th complete subtree of `2^l` tiles.
    whole: Vec<Vec<Sha256>>,
    /// Leaf hashes after the last whole tile.
    tail: Vec<Sha256>,
}

impl Tree {
    /// Entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.tiles() * TILE_LEAVES + self.tail.len() as u64
    }

    fn tiles(&self) -> u64 {
        self.whole.first().map_or(0, |tiles| tiles.len() as u64)
    }

    /// Appends the hash of an entry.
    pub fn push(&mut self, leaf: Sha256) {
        self.tail.push(leaf);
        if (self.tail.len() as u64) < TILE_LEAVES {
            return;
        }
        let hash = tile_hash(&self.tail);
        self.tail.clear();
        self.push_tile(hash);
    }

    /// Appends a whole tile by its hash alone. What is in it is whatever the root says that is compared with.
    ///
    /// # Panics
    /// There are entries after the last whole tile.
    pub fn push_tile(&mut self, tile: Sha256) {
        assert!(self.tail.is_empty(), "tiles come one after another");
        let mut hash = tile;
        for level in 0.. {
            if self.whole.len() == level {
                self.whole.push(Vec::new());
            }
            let row = &mut self.whole[level];
            row.push(hash);
            if !row.len().is_multiple_of(2) {
                return;
            }
            hash = node_hash(&row[row.len() - 2], &row[row.len() - 1]);
        }
    }

    /// The hashes of the whole tiles, in order.
    #[must_use]
    pub fn whole_tiles(&self) -> &[Sha256] {
        self.whole.first().map_or(&[], Vec::as_slice)
    }

    /// The root of the whole tree.
    #[must_use]
    pub fn root(&self) -> Sha256 {
        self.range(0, self.size(), &Tiles::new())
            .expect("the whole tree needs no tile but the last, which is kept")
    }

    /// The root of the first `size` entries.
    pub fn root_at(&self, size: u64, tiles: &Tiles) -> Result<Sha256, RangeError> {
        self.within(size)?;
        self.range(0, size, tiles)
    }

    /// The audit path of entry `index` in the tree of the first `size` entries (RFC 6962, section 2.1.1).
    pub fn inclusion(&self, index: u64, size: u64, tiles: &Tiles) -> Result<Vec<Sha256>, RangeError> {
        self.within(size)?;
        if index >= size {
            return Err(RangeError::Beyond { asked: index, size });
        }
        let (mut from, mut to, mut path) = (0, size, Vec::new());
        while to - from > 1 {
            let middle = from + split(to - from);
            let (other, rest) = if index < middle {
                ((middle, to), (from, middle))
            } else {
                ((from, middle), (middle, to))
            };
            path.push(self.range(other.0, other.1, tiles)?);
            (from, to) = rest;
        }
        path.reverse();
        Ok(path)
    }

    /// The proof that the tree of the first `old` entries is the beginning of that of the first `new` (RFC 6962, section
    /// 2.1.2). Empty if there is nothing to prove.
    pub fn consistency(&self, old: u64, new: u64, tiles: &Tiles) -> Result<Vec<Sha256>, RangeError> {
        self.within(new)?;
        if old > new {
            return Err(RangeError::Beyond { asked: old, size: new });
        }
        let (mut from, mut to, mut path, mut is_known) = (0, new, Vec::new(), true);
        if old == 0 {
            return Ok(path);
        }
        while to != old {
            let middle = from + split(to - from);
            if old <= middle {
                path.push(self.range(middle, to, tiles)?);
                to = middle;
            } else {
                path.push(self.range(from, middle, tiles)?);
                (from, is_known) = (middle, false);
            }
        }
        if !is_known {
            path.push(self.range(from, to, tiles)?);
        }
        path.reverse();
        Ok(path)
    }

    fn within(&self, size: u64) -> Result<(), RangeError> {
        let have = self.size();
        if size <= have {
            Ok(())
        } else {
            Err(RangeError::Beyond {
                asked: size,
                size: have,
            })
        }
    }

    /// The hash of the entries `from..to`, one of the ranges that RFC 6962 divides a tree into: `from` is a multiple of
    /// the smallest power of two that holds them.
    fn range(&self, from: u64, to: u64, tiles: &Tiles) -> Result<Sha256, RangeError> {
        let count = to - from;
        if count >= TILE_LEAVES && count.is_power_of_two() {
            let level = (count.trailing_zeros() - TILE_LEVELS) as usize;
            let row = usize::try_from(from / count).ok();
            let known = row.and_then(|row| self.whole.get(level)?.get(row));
            return Ok(*known.expect("complete subtrees of whole tiles are kept"));
        }
        if count <= TILE_LEAVES {
            let tile = from / TILE_LEAVES;
            let leaves = if tile == self.tiles() {
                &self.tail
            } else {
                tiles.get(&tile).ok_or(RangeError::Tile(tile))?
            };
            let [begin, end] = [from, to].map(|at| usize::try_from(at - tile * TILE_LEAVES).unwrap_or(usize::MAX));
            return leaves.get(begin..end).map(hash_of).ok_or(RangeError::Tile(tile));
        }
        let middle = from + split(count);
        Ok(node_hash(
            &self.range(from, middle, tiles)?,
            &self.range(middle, to, tiles)?,
        ))
    }
}

/// The hash of a whole tile.
#[must_use]
pub fn tile_hash(leaves: &[Sha256]) -> Sha256 {
    hash_of(leaves)
}

/// The largest power of two below `count`, which is at least 2.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

fn hash_of(leaves: &[Sha256]) -> Sha256 {
    match leaves {
        [] => digest(&[]),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(1 << (leaves.len() - 1).ilog2());
            node_hash(&hash_of(left), &hash_of(right))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{ProofError, verify_consistency, verify_inclusion};

    /// A tree of numbered entries, with every tile at hand.
    pub(in crate::audit) fn tree(size: u64) -> (Tree, Tiles) {
        let (mut tree, mut tiles) = (Tree::default(), Tiles::new());
        for index in 0..size {
            let leaf = leaf_hash(&index.to_be_bytes());
            tiles.entry(index / TILE_LEAVES).or_default().push(leaf);
            tree.push(leaf);
        }
        (tree, tiles)
    }

    /// A log is read back from the hashes of its tiles and the entries after them.
    #[test]
    fn tiles_and_the_rest_make_the_same_tree() {
        for size in [0, 1, 255, 256, 257, 512, 1_000, 5_000] {
            let (tree, tiles) = tree(size);
            let mut again = Tree::default();
            for (tile, hash) in (0..).zip(tree.whole_tiles()) {
                assert_eq!(tile_hash(&tiles[&tile]), *hash);
                again.push_tile(*hash);
            }
            for index in again.size()..size {
                again.push(leaf_hash(&index.to_be_bytes()));
            }
            assert_eq!(again, tree);
        }
    }

    fn reference_root(leaves: &[Sha256]) -> Sha256 {
        hash_of(leaves)
    }

    /// The vectors of the certificate-transparency project (`merkletree/merkle_tree_test.cc`, `testonly/constants.go`).
    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Tree::default();
        assert_eq!(tree.root().to_string(), roots[0]);
        for (leaf, root) in leaves.iter().zip(&roots[1..]) {
            tree.push(leaf_hash(leaf));
            assert_eq!(tree.root().to_string(), *root, "at {} leaves", tree.size());
        }
    }

    /// Section 2.1.3 of RFC 6962 draws a tree of seven leaves and names the nodes of its proofs.
    #[test]
    fn proofs_have_the_nodes_that_the_rfc_draws() {
        let (tree, tiles) = tree(7);
        let leaf = |index: u64| leaf_hash(&index.to_be_bytes());
        let (a, b, c, d, e, f, j) = (leaf(0), leaf(1), leaf(2), leaf(3), leaf(4), leaf(5), leaf(6));
        let (g, h, i) = (node_hash(&a, &b), node_hash(&c, &d), node_hash(&e, &f));
        let (k, l) = (node_hash(&g, &h), node_hash(&i, &j));
        let inclusion = |index| tree.inclusion(index, 7, &tiles).unwrap();
        assert_eq!(inclusion(0), [b, h, l]);
        assert_eq!(inclusion(3), [c, g, l]);
        assert_eq!(inclusion(4), [f, j, k]);
        assert_eq!(inclusion(6), [i, k]);
        let consistency = |old| tree.consistency(old, 7, &tiles).unwrap();
        assert_eq!(consistency(3), [c, d, g, l]);
        assert_eq!(consistency(4), [l]);
        assert_eq!(consistency(6), [i, j, k]);
    }

    /// `tests/golden/audit_tree.json` was made by `golang.org/x/mod/sumdb/tlog` (see `tests/golden/README.md`).
    #[test]
    fn an_independent_implementation_agrees_on_roots_and_proofs() {
        #[derive(serde::Deserialize)]
        struct Golden {
            roots: BTreeMap<u64, Sha256>,
            inclusion: Vec<(u64, u64, Vec<Sha256>)>,
            consistency: Vec<(u64, u64, Vec<Sha256>)>,
        }
        let golden: Golden = serde_json::from_str(include_str!("../../tests/golden/audit_tree.json")).unwrap();
        let most = *golden.roots.keys().max().unwrap();
        let (tree, tiles) = tree(most);
        for (size, root) in &golden.roots {
            assert_eq!(tree.root_at(*size, &tiles).unwrap(), *root, "root of {size}");
        }
        assert!(golden.inclusion.len() > 50 && golden.consistency.len() > 50);
        for (index, size, path) in &golden.inclusion {
            assert_eq!(
                tree.inclusion(*index, *size, &tiles).unwrap(),
                *path,
                "{index} in {size}"
            );
        }
        for (old, new, path) in &golden.consistency {
            assert_eq!(tree.consistency(*old, *new, &tiles).unwrap(), *path, "{old} in {new}");
        }
    }

    #[test]
    fn a_proof_asks_for_the_few_tiles_it_needs_and_for_nothing_beyond_the_tree() {
        let (tree, all) = tree(5 * TILE_LEAVES + 9);
        let mut tiles = Tiles::new();
        let mut asked = Vec::new();
        let proof = loop {
            match tree.inclusion(300, 5 * TILE_LEAVES + 3, &tiles) {
                Err(RangeError::Tile(tile)) => {
                    asked.push(tile);
                    tiles.insert(tile, all[&tile].clone());
                }
                other => break other.unwrap(),
            }
        };
        assert_eq!(asked, [1]);
        assert_eq!(proof, tree.inclusion(300, 5 * TILE_LEAVES + 3, &all).unwrap());
        let size = tree.size();
        assert_eq!(
            tree.inclusion(0, size + 1, &all),
            Err(RangeError::Beyond { asked: size + 1, size })
        );
        assert!(tree.inclusion(size, size, &all).is_err());
        assert!(tree.consistency(size, size - 1, &all).is_err());
        assert_eq!(tree.consistency(0, size, &all).unwrap(), []);
    }

    fn sizes() -> impl Strategy<Value = (u64, u64)> {
        (1_u64..1_200).prop_flat_map(|new| (1..=new, Just(new)))
    }

    proptest! {
        #[test]
        fn every_proof_verifies_and_no_flipped_bit_does((old, new) in sizes(), at in any::<prop::sample::Index>(), bit in 0_usize..256) {
            let (tree, tiles) = tree(new);
            let leaves: Vec<_> = tiles.values().flatten().copied().collect();
            let (root, old_root) = (reference_root(&leaves), reference_root(&leaves[..usize::try_from(old).unwrap()]));
            prop_assert_eq!(tree.root(), root);
            prop_assert_eq!(tree.root_at(old, &tiles).unwrap(), old_root);
            let flip = |hash: Sha256| {
                let mut bytes = *hash.as_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                Sha256::from(bytes)
            };
            let index = old - 1;
            let leaf = leaf_hash(&index.to_be_bytes());
            let path = tree.inclusion(index, new, &tiles).unwrap();
            prop_assert_eq!(verify_inclusion(index, new, &leaf, &path, &root), Ok(()));
            prop_assert!(verify_inclusion(index, new, &flip(leaf), &path, &root).is_err());
            prop_assert!(verify_inclusion(index, new, &leaf, &path, &flip(root)).is_err());
            let proof = tree.consistency(old, new, &tiles).unwrap();
            prop_assert_eq!(verify_consistency((old, &old_root), (new, &root), &proof), Ok(()));
            prop_assert!(verify_consistency((old, &flip(old_root)), (new, &root), &proof).is_err());
            prop_assert!(verify_consistency((old, &old_root), (new, &flip(root)), &proof).is_err());
            for proven in [path.clone(), proof.clone()] {
                if proven.is_empty() {
                    continue;
                }
                let mut bad = proven.clone();
                let at = at.index(bad.len());
                bad[at] = flip(bad[at]);
                let mut longer = proven.clone();
                longer.push(root);
                let shorter = proven[..proven.len() - 1].to_vec();
                for wrong in [bad, longer, shorter] {
                    if proven == path {
                        prop_assert!(verify_inclusion(index, new, &leaf, &wrong, &root).is_err());
                    }
                    if proven == proof {
                        prop_assert!(verify_consistency((old, &old_root), (new, &root), &wrong).is_err());
                    }
                }
            }
        }

        #[test]
        fn another_place_in_the_log_is_refused((index, size) in (1_u64..300).prop_flat_map(|n| (0..n, Just(n))), other in 0_u64..300) {
            let (tree, tiles) = tree(size);
            let (root, path) = (tree.root(), tree.inclusion(index, size, &tiles).unwrap());
            let leaf = leaf_hash(&index.to_be_bytes());
            if other != index {
                prop_assert!(verify_inclusion(other, size, &leaf, &path, &root).is_err());
            }
        }

        /// A history that was changed anywhere before the old size is never proven to continue it.
        #[test]
        fn a_fork_is_found((old, new) in sizes(), at in any::<prop::sample::Index>()) {
            let (honest, tiles) = tree(new);
            let changed = at.index(usize::try_from(old).unwrap()) as u64;
            let (mut forked, mut forked_tiles) = (Tree::default(), Tiles::new());
            for index in 0..new {
                let number = if index == changed { u64::MAX } else { index };
                let leaf = leaf_hash(&number.to_be_bytes());
                forked_tiles.entry(index / TILE_LEAVES).or_default().push(leaf);
                forked.push(leaf);
            }
            let known = honest.root_at(old, &tiles).unwrap();
            let proof = forked.consistency(old, new, &forked_tiles).unwrap();
            let verdict = verify_consistency((old, &known), (new, &forked.root()), &proof);
            prop_assert!(matches!(verdict, Err(ProofError::Root | ProofError::OldRoot)));
        }

        #[test]
        fn verifying_never_panics(old in any::<u64>(), new in any::<u64>(), path in prop::collection::vec(any::<[u8; 32]>(), 0..70)) {
            let path: Vec<_> = path.into_iter().map(Sha256::from).collect();
            let root = Sha256::of(b"root");
            let _ = verify_inclusion(old, new, &root, &path, &root);
            let _ = verify_consistency((old, &root), (new, &root), &path);
        }
    }
}
