//! Keys: what Firmesh signs with is ed25519, checked when it is loaded; key objects of metadata may be of other kinds.
//!
//! Invariants: a [`PublicKey`] is a point of large order, so a signature under it names one message; verification is
//! always strict; a [`SecretKey`] never prints itself and is wiped when dropped.

use std::{collections::BTreeMap, fmt, ops::Deref, str::FromStr};

use ed25519_dalek::{
    Signature as RawSignature, Signer as _, SigningKey, VerifyingKey as RawKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes, spki::der::pem::LineEnding},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    json::canonical,
    verifying::{KeyPolicy, VerifyingKey},
};
use crate::ids::Sha256;

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
    /// The text is not a usable P-256 or RSA public key.
    #[error("not a P-256 key, nor an RSA key of 2048 to 8192 bits, in PEM (-----BEGIN PUBLIC KEY-----)")]
    NotSpki,
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
        let key = RawKey::from_bytes(bytes).map_err(|_| KeyError::NotAPoint {
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
        RawKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(bytes, &signature).is_ok())
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
        let bytes = Some(text).filter(|text| text.len() == 64).and_then(lower_hex);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        Self::from_bytes(&bytes.ok_or(KeyError::NotHex { length: text.len() })?)
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

/// A key object of TUF metadata. Kinds that a [`KeyPolicy`] does not accept are carried along and never count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// The kind of key, such as `ed25519`.
    pub keytype: String,
    /// How it signs, such as `ed25519`.
    pub scheme: String,
    /// `{"public": <text>}`: hexadecimal for ed25519, PEM for other kinds.
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

    /// The key to verify with; `None` for a kind that the policy does not accept.
    pub fn verifying(&self, policy: KeyPolicy) -> Result<Option<VerifyingKey>, KeyError> {
        let public = self.keyval.get("public").and_then(Value::as_str).unwrap_or_default();
        let standard = policy == KeyPolicy::Standard;
        match (self.keytype.as_str(), self.scheme.as_str()) {
            ("ed25519", "ed25519") => public.parse().map(VerifyingKey::Ed25519).map(Some),
            // Some repositories name the scheme in both fields.
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") if standard => {
                VerifyingKey::ecdsa_p256(public).map(Some)
            }
            ("rsa", "rsassa-pss-sha256") if standard => VerifyingKey::rsa_pss_sha256(public).map(Some),
            _ => Ok(None),
        }
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

/// Decodes lower-case hexadecimal: one text per value, so no byte of a signed file is free to change.
pub(super) fn lower_hex(text: &str) -> Option<Vec<u8>> {
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    lower.then(|| hex::decode(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> SecretKey {
        SecretKey::from_seed(&[number; 32])
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
}
