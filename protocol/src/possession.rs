//! Possession: how a node shows that it holds the whole of an artifact, instead of saying so.
//!
//! The coordinator draws a [`Nonce`] for one node and one artifact. The nonce picks a sample of the artifact's 16 KiB
//! chunk groups, which nobody knows beforehand, and keys the hash of the answer:
//!
//! - *Sample*: the first and the last group, and 254 of those between, each as likely as any other; all of them, where
//!   there are no more than [`SAMPLE_GROUPS_MAX`]. Drawn by Floyd's algorithm from BLAKE3's extendable output over the
//!   nonce, as 64-bit numbers, little endian, scaled by multiplication.
//! - *Answer*: BLAKE3, keyed with a key derived from the nonce, over the length of the node's name (8 bytes, little
//!   endian), the name, the artifact's root, its length in bytes (8), and for each group of the sample in order its
//!   number (8) and its bytes.
//!
//! What it proves: whoever answered had the sampled bytes at hand after the nonce was drawn. A node that lacks a fraction
//! *f* of the groups between first and last passes with a probability of at most (1 - *f*)^254: two in a million
//! where one in twenty is missing, 8 % where one in a hundred is. The first and the last are always asked for.
//!
//! What it does not prove: that the bytes lie on the node's own disk. The name in the answer makes one that was given
//! before, or to another node, worthless; a node that hands its challenge to another one which holds the artifact, and
//! gets the answer under its own name, passes. So does one that fetches what is asked for. Neither is any help to a
//! device: before it starts, the node itself checks the whole against what was signed. The proof keeps a node from being
//! counted on that is mistaken about its store, or says what it has not looked at.

use std::{collections::BTreeSet, fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    chunk::GROUP_BYTES,
    ids::{ArtifactId, DigestError, NodeId, digest_type},
};

/// Chunk groups of one sample: 4 MiB are read to give an answer, and as many to check it.
pub const SAMPLE_GROUPS_MAX: u64 = 256;

const SAMPLE_CONTEXT: &str = "firmesh 2026-11-22 possession sample v1";
const ANSWER_CONTEXT: &str = "firmesh 2026-11-22 possession answer v1";

digest_type!(
    /// 32 random bytes that were never used before.
    Nonce
);
digest_type!(
    /// What only somebody who has the sampled bytes can say.
    Proof
);

impl Proof {
    /// Whether it is the same as the one that was worked out here. Takes as long wherever the two differ.
    #[must_use]
    pub fn is(&self, expected: &Self) -> bool {
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(expected.0)
    }
}

/// Asks a node to prove that it holds an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Drawn for this node and artifact.
    pub nonce: Nonce,
}

/// The answer to a [`Challenge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// What it answers: one that was given up since is not taken for a lie.
    pub challenge: Challenge,
    /// The proof.
    pub proof: Proof,
}

/// Bytes that are not those of the group that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("a chunk group of {expected} bytes was asked for, {found} came")]
pub struct WrongGroup {
    expected: u64,
    found: u64,
}

/// Works out a proof, one group of the sample after the other: at the node, and again at the coordinator.
#[derive(Debug)]
pub struct Prover {
    hasher: blake3::Hasher,
    rest: std::vec::IntoIter<u64>,
    group: Option<u64>,
    length: u64,
}

impl Prover {
    /// Begins the proof of `node` for an artifact of `length` bytes.
    #[must_use]
    pub fn new(challenge: &Challenge, node: &NodeId, length: u64) -> Self {
        let key = blake3::derive_key(ANSWER_CONTEXT, challenge.nonce.as_bytes());
        let mut hasher = blake3::Hasher::new_keyed(&key);
        let name = node.as_str().as_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(challenge.artifact.as_bytes());
        hasher.update(&length.to_le_bytes());
        let mut rest = sample(&challenge.nonce, length).into_iter();
        Self {
            hasher,
            group: rest.next(),
            rest,
            length,
        }
    }

    /// Where the next group lies in the artifact, in bytes; `None` after the last one.
    #[must_use]
    pub fn wants(&self) -> Option<Range<u64>> {
        let start = self.group? * GROUP_BYTES;
        Some(start..(start + GROUP_BYTES).min(self.length))
    }

    /// Takes in the bytes of the group that is wanted.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), WrongGroup> {
        let expected = self.wants().map_or(0, |range| range.end - range.start);
        let found = bytes.len() as u64;
        if found != expected {
            return Err(WrongGroup { expected, found });
        }
        if let Some(group) = self.group {
            self.hasher.update(&group.to_le_bytes());
            self.hasher.update(bytes);
            self.group = self.rest.next();
        }
        Ok(())
    }

    /// The proof; `None` while a group is wanted.
    #[must_use]
    pub fn finish(self) -> Option<Proof> {
        let is_whole = self.group.is_none();
        is_whole.then(|| Proof(*self.hasher.finalize().as_bytes()))
    }
}

/// The chunk groups that a nonce picks of an artifact of `length` bytes: in order, each once, at most
/// [`SAMPLE_GROUPS_MAX`].
fn sample(nonce: &Nonce, length: u64) -> Vec<u64> {
    let groups = length.div_ceil(GROUP_BYTES);
    if groups <= SAMPLE_GROUPS_MAX {
        return (0..groups).collect();
    }
    let mut output = blake3::Hasher::new_derive_key(SAMPLE_CONTEXT)
        .update(nonce.as_bytes())
        .finalize_xof();
    // Favours no number by more than one part in 2^64 / `bound`.
    let mut below = |bound: u64| {
        let mut bytes = [0; 8];
        output.fill(&mut bytes);
        ((u128::from(u64::from_le_bytes(bytes)) * u128::from(bound)) >> 64) as u64
    };
    let (between, wanted) = (groups - 2, SAMPLE_GROUPS_MAX - 2);
    let mut picked = BTreeSet::new();
    for last in between - wanted..between {
        let number = below(last + 1);
        if !picked.insert(number) {
            picked.insert(last);
        }
    }
    let ends = [0, groups - 1];
    let mut sample: Vec<_> = picked.into_iter().map(|number| number + 1).chain(ends).collect();
    sample.sort_unstable();
    sample
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: usize = GROUP_BYTES as usize;

    fn node() -> NodeId {
        NodeId::new("r1-n1").unwrap()
    }

    fn challenge(nonce: [u8; 32]) -> Challenge {
        Challenge {
            artifact: ArtifactId::of(b"image"),
            nonce: nonce.into(),
        }
    }

    /// No two groups are alike.
    fn image(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8 ^ (at / GROUP) as u8).collect()
    }

    fn prove(challenge: &Challenge, node: &NodeId, image: &[u8]) -> Proof {
        let mut prover = Prover::new(challenge, node, image.len() as u64);
        while let Some(range) = prover.wants() {
            prover.add(&image[range.start as usize..range.end as usize]).unwrap();
        }
        prover.finish().unwrap()
    }

    /// Another implementation would have to say the same: put together here by hand, from the module's text.
    #[test]
    fn the_answer_is_the_keyed_hash_of_what_the_text_says() {
        let image = image(2 * GROUP + 5);
        let key = blake3::derive_key("firmesh 2026-11-22 possession answer v1", &[7; 32]);
        let mut said = vec![5, 0, 0, 0, 0, 0, 0, 0];
        said.extend(b"r1-n1");
        said.extend(ArtifactId::of(b"image").as_bytes());
        said.extend((image.len() as u64).to_le_bytes());
        for (number, group) in image.chunks(GROUP).enumerate() {
            said.extend((number as u64).to_le_bytes());
            said.extend(group);
        }
        let expected = Proof::from(*blake3::keyed_hash(&key, &said).as_bytes());
        assert!(prove(&challenge([7; 32]), &node(), &image).is(&expected));
        assert_eq!(
            expected.to_string(),
            "51777c7a735fab533517fa908d05a3aaff619a9967e1d6082a85eb993020111f"
        );
    }

    /// What a nonce picks is part of the protocol: both sides draw it for themselves.
    #[test]
    fn a_nonce_picks_the_same_groups_for_ever() {
        let picked = sample(&Nonce::from([7; 32]), 100_000 * GROUP_BYTES);
        assert_eq!(picked[..6], [0, 67, 1_209, 1_939, 1_982, 2_509]);
    }

    #[test]
    fn every_group_between_the_ends_is_as_likely_as_any_other() {
        let groups = 2_560;
        let mut times = vec![0_u32; groups as usize];
        for round in 0_u32..2_000 {
            let nonce = Nonce::from(*blake3::hash(&round.to_le_bytes()).as_bytes());
            for group in sample(&nonce, groups * GROUP_BYTES) {
                times[group as usize] += 1;
            }
        }
        assert_eq!((times[0], times[2_559]), (2_000, 2_000));
        // 2,000 x 254 / 2,558 = 199 on average; the standard deviation is 13.4.
        let between = &times[1..2_559];
        assert!(between.iter().all(|times| (130..270).contains(times)), "{between:?}");
    }

    #[test]
    fn a_prover_takes_nothing_but_the_group_it_wants() {
        let mut prover = Prover::new(&challenge([1; 32]), &node(), GROUP_BYTES + 5);
        assert!(prover.add(&[0; GROUP - 1]).is_err());
        prover.add(&[0; GROUP]).unwrap();
        assert_eq!(prover.wants(), Some(GROUP_BYTES..GROUP_BYTES + 5));
        assert!(prover.add(&[0; GROUP]).is_err());
        assert!(prover.finish().is_none(), "a part is no proof");
    }

    proptest! {
        #[test]
        fn a_sample_is_in_range_in_order_each_once_bounded_and_has_both_ends(
            nonce in any::<[u8; 32]>(),
            length in prop_oneof![0_u64..600 * GROUP_BYTES, 0..=crate::limits::ARTIFACT_BYTES_MAX],
        ) {
            let picked = sample(&nonce.into(), length);
            let groups = length.div_ceil(GROUP_BYTES);
            prop_assert_eq!(picked.len() as u64, groups.min(SAMPLE_GROUPS_MAX));
            prop_assert!(picked.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(picked.first().copied(), (groups > 0).then_some(0));
            prop_assert_eq!(picked.last().copied(), groups.checked_sub(1));
        }

        #[test]
        fn the_same_bytes_give_the_same_answer_and_any_other_byte_of_the_sample_another(
            nonce in any::<[u8; 32]>(),
            length in 1_usize..300 * GROUP,
            at in any::<prop::sample::Index>(),
            byte in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let (challenge, whole) = (challenge(nonce), image(length));
            let proof = prove(&challenge, &node(), &whole);
            prop_assert!(prove(&challenge, &node(), &whole).is(&proof));
            let picked = sample(&challenge.nonce, length as u64);
            let start = picked[at.index(picked.len())] as usize * GROUP;
            let end = (start + GROUP).min(length);
            let mut rotten = whole.clone();
            rotten[start + byte.index(end - start)] ^= 1 << bit;
            prop_assert!(!prove(&challenge, &node(), &rotten).is(&proof));
            // A group that is not there, answered with another one's bytes or with none.
            let mut hollow = whole.clone();
            hollow[start..end].fill(0);
            prop_assert!(hollow == whole || !prove(&challenge, &node(), &hollow).is(&proof));
        }

        #[test]
        fn an_answer_is_good_for_one_node_one_artifact_one_nonce_and_one_length(
            nonce in any::<[u8; 32]>(),
            other in any::<[u8; 32]>(),
            length in 1_usize..3 * GROUP,
        ) {
            let (challenge, image) = (challenge(nonce), image(length));
            let proof = prove(&challenge, &node(), &image);
            let another = NodeId::new("r1-n2").unwrap();
            prop_assert!(!prove(&challenge, &another, &image).is(&proof));
            let elsewhere = Challenge { artifact: ArtifactId::of(b"another"), ..challenge };
            prop_assert!(!prove(&elsewhere, &node(), &image).is(&proof));
            let again = Challenge { nonce: other.into(), ..challenge };
            prop_assert!(other == nonce || !prove(&again, &node(), &image).is(&proof));
            prop_assert!(!prove(&challenge, &node(), &image[..length - 1]).is(&proof));
        }

        #[test]
        fn foreign_answers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<Answer>(&bytes);
            let _ = serde_json::from_slice::<Challenge>(&bytes);
        }
    }
}
