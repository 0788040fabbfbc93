//! Keys: ed25519 and nothing else, checked when they are loaded.
//!
//! Invariants: a [`PublicKey`] is a point of large order, so a signature under it names one message; verification is
//! always strict; a [`SecretKey`] never prints itself and is wiped when dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Deref,
    str::FromStr,
};

use ed25519_dalek::{
    Signature as RawSignature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes, spki::der::pem::LineEnding},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::json::canonical;
use crate::{ids::Sha256, limits::SIGNATURES_MAX};

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 64 lower-case hexadecimal characters.
    #[error(
        "a public key is 64 lower-case hexadecimal characters, this text has {length} characters or is not hexadecimal"
    )]
    NotHex {
        /// Length of the text.
        length: usize,
    },
    /// The bytes name no point of the curve.
    #[error("the bytes {hex} are not an ed25519 public key")]
    NotAPoint {
        /// The bytes.
        hex: String,
    },
    /// A key of small order: some signatures under it are good for every message.
    #[error("the ed25519 public key {hex} has small order: anyone can sign for it")]
    Weak {
        /// The key.
        hex: String,
    },
    /// The text is not an ed25519 key in PKCS#8 PEM.
    #[error("not an ed25519 secret key in PKCS#8 PEM (-----BEGIN PRIVATE KEY-----)")]
    NotPkcs8,
    /// A key id outside its bounds.
    #[error("a key id has 1 to 128 letters, digits, '-' or '_', {0:?} does not")]
    BadKeyId(String),
}

/// An ed25519 public key that is safe to verify with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Checks that the bytes are a point and that its order is large.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPoint {
            hex: hex::encode(bytes),
        })?;
        if key.is_weak() {
            Err(KeyError::Weak {
                hex: hex::encode(bytes),
            })
        } else {
            Ok(Self(*bytes))
        }
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id that TUF and securesystemslib give the key: SHA-256 of its canonical key object.
    #[must_use]
    pub fn id(&self) -> KeyId {
        Key::from(*self).id()
    }

    /// Whether `signature` is this key's over exactly these bytes.
    #[must_use]
    pub fn verifies(&self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        let signature = RawSignature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(bytes, &signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = lower_hex(text).ok_or(KeyError::NotHex { length: text.len() })?;
        Self::from_bytes(&bytes)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// An ed25519 secret key.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key grown from 32 bytes of the caller's randomness.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads PKCS#8 PEM, as written by [`Self::to_pem`] or `openssl genpkey -algorithm ed25519`.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(text.trim_start())
            .map(Self)
            .map_err(|_| KeyError::NotPkcs8)
    }

    /// PKCS#8 PEM, version 1 (which every tool reads), in memory that is wiped when dropped.
    #[must_use]
    pub fn to_pem(&self) -> impl Deref<Target = String> + use<> {
        let pair = KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        pair.to_pkcs8_pem(LineEnding::LF).expect("32 bytes always encode")
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs exactly these bytes.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// The name of a key inside metadata. Opaque to readers: what counts is the key behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl KeyId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if (1..=128).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text))
        } else {
            Err(KeyError::BadKeyId(text.chars().take(40).collect()))
        }
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key object of TUF metadata. Kinds that Firmesh does not verify with are carried along and never count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `ed25519`, for a key that can count.
    pub keytype: String,
    /// `ed25519`, for a key that can count.
    pub scheme: String,
    /// `{"public": <hex>}`, for a key that can count.
    pub keyval: Value,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Key {
    /// The key's id: SHA-256 of its canonical JSON, in hexadecimal.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let object = serde_json::to_value(self).expect("a key object has only text and JSON values");
        KeyId(Sha256::of(&canonical(&object)).to_string())
    }

    /// The ed25519 key; `None` for other kinds of key.
    pub fn ed25519(&self) -> Result<Option<PublicKey>, KeyError> {
        if (self.keytype.as_str(), self.scheme.as_str()) != ("ed25519", "ed25519") {
            return Ok(None);
        }
        let public = self.keyval.get("public").and_then(Value::as_str).unwrap_or_default();
        public.parse().map(Some)
    }
}

impl From<PublicKey> for Key {
    fn from(key: PublicKey) -> Self {
        Self {
            keytype: "ed25519".to_owned(),
            scheme: "ed25519".to_owned(),
            keyval: json!({ "public": key.to_string() }),
            extra: BTreeMap::new(),
        }
    }
}

/// One signature of a metadata file or envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Whose.
    pub keyid: KeyId,
    /// 64 bytes in lower-case hexadecimal. Anything else (some tools write `""` for "still missing") never counts.
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
        key: PublicKey,
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
    keys: BTreeMap<KeyId, PublicKey>,
}

impl KeySet {
    /// Gathers a role's keys; each may stand in it once, under one id.
    pub fn new(
        role: &str,
        threshold: u64,
        keys: impl IntoIterator<Item = (KeyId, PublicKey)>,
    ) -> Result<Self, KeySetError> {
        let role = role.to_owned();
        let mut by_id = BTreeMap::new();
        for (id, key) in keys {
            if by_id.values().any(|known| *known == key) || by_id.contains_key(&id) {
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

    /// The keys, by their bytes.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.values()
    }

    /// The id under which the set lists `key`.
    #[must_use]
    pub fn id_of(&self, key: &PublicKey) -> Option<&KeyId> {
        self.keys.iter().find(|(_, known)| *known == key).map(|(id, _)| id)
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
        signatures: impl ExactSizeIterator<Item = (&'a KeyId, Option<[u8; 64]>)>,
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
            if signature.is_some_and(|signature| key.verifies(bytes, &signature)) {
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

/// Decodes exactly `N` bytes of lower-case hexadecimal: one text per value, so no byte of a signed file is free to change.
fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_key_id_is_what_securesystemslib_computes() {
        let golden = include_str!("../../tests/golden/key_id.txt");
        let (public, id) = golden.trim_end().split_once(' ').unwrap();
        assert_eq!(key(1).public().to_string(), public);
        assert_eq!(key(1).public().id().as_str(), id);
    }

    #[test]
    fn keys_of_small_order_are_refused_when_loaded() {
        let identity = format!("01{}", "00".repeat(31));
        assert!(matches!(identity.parse::<PublicKey>(), Err(KeyError::Weak { .. })));
        assert!(matches!(
            "02".repeat(32).parse::<PublicKey>(),
            Err(KeyError::NotAPoint { .. })
        ));
        assert!(matches!("ab".parse::<PublicKey>(), Err(KeyError::NotHex { length: 2 })));
        let upper = key(1).public().to_string().to_uppercase();
        assert!(matches!(upper.parse::<PublicKey>(), Err(KeyError::NotHex { .. })));
    }

    #[test]
    fn a_secret_key_survives_pem_and_never_prints_itself() {
        let pem = key(7).to_pem();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(SecretKey::from_pem(&pem).unwrap().public(), key(7).public());
        assert!(!format!("{:?}", key(7)).contains(&hex::encode([7; 32])));
        assert_eq!(
            SecretKey::from_pem("-----BEGIN PRIVATE KEY-----\n").unwrap_err(),
            KeyError::NotPkcs8
        );
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
