//! Checking proofs, without the tree: the algorithms of RFC 9162, sections 2.1.3.2 and 2.1.4.2.

use super::tree::node_hash;
use crate::ids::Sha256;

/// Why a proof does not show what it was to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The sizes make no sense.
    #[error("the proof is about entry or size {first}, which is not within a log of {size} entries")]
    Sizes {
        /// The index, or the older size.
        first: u64,
        /// The size.
        size: u64,
    },
    /// More or fewer hashes than such a proof has.
    #[error("the proof has {found} hashes, which is not what such a proof has")]
    Length {
        /// Its hashes.
        found: usize,
    },
    /// It leads to another root.
    #[error("the proof leads to another root than the checkpoint's")]
    Root,
    /// It leads to another older root.
    #[error("the proof leads to another root than the earlier checkpoint's")]
    OldRoot,
}

/// Whether the entry with this leaf hash is entry `index` of the log with `size` entries and this root.
pub fn verify_inclusion(
    index: u64,
    size: u64,
    leaf: &Sha256,
    path: &[Sha256],
    root: &Sha256,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Sizes { first: index, size });
    }
    let length = || ProofError::Length { found: path.len() };
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return Err(length());
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(length());
    }
    if hash == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Whether the log of the second size and root begins with the log of the first size and root.
pub fn verify_consistency(
    (old, old_root): (u64, &Sha256),
    (new, root): (u64, &Sha256),
    path: &[Sha256],
) -> Result<(), ProofError> {
    let length = || ProofError::Length { found: path.len() };
    if old > new {
        return Err(ProofError::Sizes { first: old, size: new });
    }
    if old == new || old == 0 {
        return match path {
            [] if old == 0 || old_root == root => Ok(()),
            [] => Err(ProofError::Root),
            _ => Err(length()),
        };
    }
    // A whole subtree at the left needs no hash of its own: it is the older root.
    let (first, rest) = if old.is_power_of_two() {
        (old_root, path)
    } else {
        path.split_first().ok_or_else(length)?
    };
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let (mut older, mut newer) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(length());
        }
        if at & 1 == 1 || at == last {
            older = node_hash(sibling, &older);
            newer = node_hash(sibling, &newer);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            newer = node_hash(&newer, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(length());
    }
    if older != *old_root {
        return Err(ProofError::OldRoot);
    }
    if newer == *root { Ok(()) } else { Err(ProofError::Root) }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use serde::Deserialize;

    use super::*;

    /// A name, two numbers, two hashes, a proof, and whether it must be refused.
    type Case = (String, u64, u64, String, String, Vec<String>, bool);

    #[derive(Deserialize)]
    struct Golden {
        inclusion: Vec<Case>,
        consistency: Vec<Case>,
    }

    /// Some cases have a few bytes of text for a hash: another hash, the same for the same text. No hash at all cannot
    /// be written down here.
    fn hash(text: &String) -> Option<Sha256> {
        let bytes = BASE64.decode(text.as_bytes()).unwrap();
        let hash = <[u8; 32]>::try_from(bytes.as_slice())
            .map_or_else(|_| Sha256::of(&[b"text", &bytes[..]].concat()), Sha256::from);
        (!bytes.is_empty()).then_some(hash)
    }

    fn accepts(case: &Case, verify: impl Fn(u64, u64, &Sha256, &Sha256, &[Sha256]) -> bool) -> bool {
        let (_, first, second, a, b, path, _) = case;
        let path: Option<Vec<_>> = path.iter().map(hash).collect();
        match (hash(a), hash(b), path) {
            (Some(a), Some(b), Some(path)) => verify(*first, *second, &a, &b, &path),
            _ => false,
        }
    }

    /// The test vectors of transparency-dev/merkle, good and bad (see `tests/golden/README.md`).
    #[test]
    fn good_and_bad_proofs_of_an_independent_implementation_are_told_apart() {
        let golden: Golden = serde_json::from_str(include_str!("../../tests/golden/audit_proofs.json")).unwrap();
        assert_eq!((golden.inclusion.len(), golden.consistency.len()), (98, 98));
        for case in &golden.inclusion {
            let accepted = accepts(case, |index, size, leaf, root, path| {
                verify_inclusion(index, size, leaf, path, root).is_ok()
            });
            assert_eq!(accepted, !case.6, "{case:?}");
        }
        // After nothing anything may follow: where others refuse the question, the answer here is yes.
        for case in golden.consistency.iter().filter(|case| case.1 > 0) {
            let accepted = accepts(case, |old, new, older, newer, path| {
                verify_consistency((old, older), (new, newer), path).is_ok()
            });
            assert_eq!(accepted, !case.6, "{case:?}");
        }
    }
}
