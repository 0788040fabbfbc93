//! The keys of a role, and when enough of them have signed.
//!
//! Invariants: a key counts once, however often it is listed or signs; a signature that is not one is only not counted.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    keys::{KeyError, KeyId, PublicKey, lower_hex},
    verifying::VerifyingKey,
};
use crate::limits::SIGNATURES_MAX;

/// One signature of a metadata file or envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Whose.
    pub keyid: KeyId,
    /// The bytes in lower-case hexadecimal. Anything else (some tools write `""` for "still missing") never counts.
    pub sig: String,
}

/// Why signatures were not enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Too few of the role's keys signed.
    #[error("{role}: {have} of the {need} signatures needed are good")]
    Threshold {
        /// The role.
        role: String,
        /// Keys of the role with a good signature.
        have: usize,
        /// The role's threshold.
        need: usize,
    },
    /// Two signatures bear one key id.
    #[error("{role}: the key {keyid} stands under two signatures, and a key counts once")]
    DuplicateSignature {
        /// The role.
        role: String,
        /// The key.
        keyid: KeyId,
    },
    /// More signatures than any threshold needs.
    #[error("{role}: {count} signatures, at most {SIGNATURES_MAX} are read")]
    TooManySignatures {
        /// The role.
        role: String,
        /// How many there are.
        count: usize,
    },
}

/// Why a role's keys were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// A key of the role is unusable.
    #[error("{role}: the key {keyid} is unusable")]
    BadKey {
        /// The role.
        role: String,
        /// The key.
        keyid: KeyId,
        /// Why.
        source: KeyError,
    },
    /// One key stands twice in a role, perhaps under two ids.
    #[error("{role}: the key {key} is listed twice, and a key counts once")]
    DuplicateKey {
        /// The role.
        role: String,
        /// The key.
        key: Box<VerifyingKey>,
    },
    /// A threshold of zero, or above the number of keys that can be listed.
    #[error("{role}: a threshold of {threshold} is not between 1 and {SIGNATURES_MAX}")]
    BadThreshold {
        /// The role.
        role: String,
        /// The threshold.
        threshold: u64,
    },
    /// More keys than a role may have.
    #[error("{role}: more than the {SIGNATURES_MAX} keys that are allowed")]
    TooManyKeys {
        /// The role.
        role: String,
    },
}

/// The keys of one role and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    role: String,
    threshold: usize,
    keys: BTreeMap<KeyId, VerifyingKey>,
}

impl KeySet {
    /// Gathers a role's keys; each may stand in it once, under one id.
    pub fn new(
        role: &str,
        threshold: u64,
        keys: impl IntoIterator<Item = (KeyId, impl Into<VerifyingKey>)>,
    ) -> Result<Self, KeySetError> {
        let role = role.to_owned();
        let mut by_id = BTreeMap::new();
        for (id, key) in keys {
            let key = key.into();
            if by_id.values().any(|known| *known == key) || by_id.contains_key(&id) {
                let key = Box::new(key);
                return Err(KeySetError::DuplicateKey { role, key });
            }
            if by_id.len() == SIGNATURES_MAX {
                return Err(KeySetError::TooManyKeys { role });
            }
            by_id.insert(id, key);
        }
        match usize::try_from(threshold) {
            Ok(threshold @ 1..=SIGNATURES_MAX) => Ok(Self {
                role,
                threshold,
                keys: by_id,
            }),
            _ => Err(KeySetError::BadThreshold { role, threshold }),
        }
    }

    /// A set of keys under their own ids.
    pub fn of(role: &str, threshold: u64, keys: impl IntoIterator<Item = PublicKey>) -> Result<Self, KeySetError> {
        Self::new(role, threshold, keys.into_iter().map(|key| (key.id(), key)))
    }

    /// How many of the keys must sign.
    #[must_use]
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The role the keys speak for.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// The ed25519 keys: all of them, unless the set was read under [`KeyPolicy::Standard`](super::KeyPolicy::Standard).
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.values().filter_map(VerifyingKey::ed25519)
    }

    /// Whether both sets have the same keys, whatever their ids and thresholds.
    #[must_use]
    pub fn same_keys(&self, other: &Self) -> bool {
        let keys = |set: &Self| set.keys.values().cloned().collect::<BTreeSet<_>>();
        keys(self) == keys(other)
    }

    /// The id under which the set lists `key`.
    #[must_use]
    pub fn id_of(&self, key: &PublicKey) -> Option<&KeyId> {
        self.keys
            .iter()
            .find(|(_, known)| known.ed25519() == Some(key))
            .map(|(id, _)| id)
    }

    /// The keys of the set with a good signature over `bytes`. Signatures under other keys are ignored.
    pub fn signers(&self, bytes: &[u8], signatures: &[Signature]) -> Result<Vec<&KeyId>, SignatureError> {
        self.good(
            bytes,
            signatures
                .iter()
                .map(|signature| (&signature.keyid, lower_hex(&signature.sig))),
        )
    }

    /// Whether enough of the keys signed exactly these bytes.
    pub fn verify(&self, bytes: &[u8], signatures: &[Signature]) -> Result<(), SignatureError> {
        self.enough(self.signers(bytes, signatures)?.len())
    }

    /// The keys among `signatures` that are good; a malformed signature is `None` and never counts.
    pub(super) fn good<'a>(
        &self,
        bytes: &[u8],
        signatures: impl ExactSizeIterator<Item = (&'a KeyId, Option<impl AsRef<[u8]>>)>,
    ) -> Result<Vec<&KeyId>, SignatureError> {
        if signatures.len() > SIGNATURES_MAX {
            return Err(SignatureError::TooManySignatures {
                role: self.role.clone(),
                count: signatures.len(),
            });
        }
        let (mut seen, mut good) = (BTreeSet::new(), Vec::new());
        for (keyid, signature) in signatures {
            if !seen.insert(keyid) {
                return Err(SignatureError::DuplicateSignature {
                    role: self.role.clone(),
                    keyid: keyid.clone(),
                });
            }
            let Some((id, key)) = self.keys.get_key_value(keyid) else {
                continue;
            };
            if signature.is_some_and(|signature| key.verifies(bytes, signature.as_ref())) {
                good.push(id);
            }
        }
        Ok(good)
    }

    /// Whether `have` good signatures reach the threshold.
    pub(super) fn enough(&self, have: usize) -> Result<(), SignatureError> {
        if have >= self.threshold {
            Ok(())
        } else {
            Err(SignatureError::Threshold {
                role: self.role.clone(),
                have,
                need: self.threshold,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::keys::SecretKey, *};

    fn key(number: u8) -> SecretKey {
        SecretKey::from_seed(&[number; 32])
    }

    fn signature(by: &SecretKey, bytes: &[u8]) -> Signature {
        Signature {
            keyid: by.public().id(),
            sig: hex::encode(by.sign(bytes)),
        }
    }

    #[test]
    fn a_key_counts_once_however_often_it_signs_or_is_listed() {
        let (a, b) = (key(1), key(2));
        let set = KeySet::of("releases", 2, [a.public(), b.public()]).unwrap();
        let (by_a, by_b) = (signature(&a, b"x"), signature(&b, b"x"));
        assert!(set.verify(b"x", &[by_a.clone(), by_b]).is_ok());
        let twice = set.verify(b"x", &[by_a.clone(), by_a.clone()]);
        assert!(matches!(twice, Err(SignatureError::DuplicateSignature { .. })));
        let alias = KeyId::try_from("alias".to_owned()).unwrap();
        let listed = KeySet::new("releases", 2, [(a.public().id(), a.public()), (alias, a.public())]);
        assert!(matches!(listed, Err(KeySetError::DuplicateKey { .. })));
        assert!(matches!(
            set.verify(b"x", &[by_a, signature(&key(3), b"x")]),
            Err(SignatureError::Threshold { have: 1, need: 2, .. })
        ));
    }

    #[test]
    fn a_threshold_of_nothing_is_refused() {
        assert!(matches!(
            KeySet::of("root", 0, [key(1).public()]),
            Err(KeySetError::BadThreshold { .. })
        ));
    }
}
