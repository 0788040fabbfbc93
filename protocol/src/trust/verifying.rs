//! Which keys may speak, and verification under each kind that the TUF specification names.
//!
//! Invariants: Firmesh's own metadata is ed25519 only; other kinds count where a caller says so with
//! [`KeyPolicy::Standard`] and nowhere else; a key is checked when it is loaded, and a kind that the policy does not
//! accept never counts.

use std::fmt;

use ring::signature::{ECDSA_P256_SHA256_ASN1, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use x509_parser::{
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION},
    pem::parse_x509_pem,
    prelude::FromDer as _,
    public_key::PublicKey as ParsedKey,
    x509::SubjectPublicKeyInfo,
};

use super::keys::{KeyError, PublicKey};
use crate::ids::Sha256;

/// Which kinds of keys count in metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyPolicy {
    /// Ed25519 with strict verification and nothing else: what a fleet's metadata is signed with.
    #[default]
    Ed25519Only,
    /// What the TUF specification names: also ECDSA P-256 (SHA-256) and RSASSA-PSS (SHA-256, 2048 to 8192 bits). For
    /// reading other people's repositories.
    Standard,
}

/// A public key of a kind that can be verified with. Equal keys are equal values, however metadata wrote them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VerifyingKey {
    /// Ed25519, strict.
    Ed25519(PublicKey),
    /// ECDSA on P-256 with SHA-256, signatures in DER; the uncompressed point.
    EcdsaP256(Box<[u8]>),
    /// RSASSA-PSS with SHA-256, a salt as long as the digest; the PKCS#1 public key in DER.
    RsaPssSha256(Box<[u8]>),
}

impl VerifyingKey {
    /// Whether `signature` is this key's over exactly these bytes.
    #[must_use]
    pub fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => signature
                .try_into()
                .is_ok_and(|signature| key.verifies(bytes, signature)),
            Self::EcdsaP256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
                .verify(bytes, signature)
                .is_ok(),
            Self::RsaPssSha256(key) => UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key)
                .verify(bytes, signature)
                .is_ok(),
        }
    }

    /// The key, if it is ed25519.
    #[must_use]
    pub fn ed25519(&self) -> Option<&PublicKey> {
        match self {
            Self::Ed25519(key) => Some(key),
            Self::EcdsaP256(_) | Self::RsaPssSha256(_) => None,
        }
    }

    /// A P-256 key from `-----BEGIN PUBLIC KEY-----`.
    pub(super) fn ecdsa_p256(pem: &str) -> Result<Self, KeyError> {
        with_public_key(pem, |info| {
            let on_p256 = info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
                && (info.algorithm.parameters.as_ref())
                    .is_some_and(|parameters| parameters.as_oid().is_ok_and(|curve| curve == OID_EC_P256));
            let point = info.subject_public_key.as_ref();
            (on_p256 && point.len() == 65 && point[0] == 4).then(|| Self::EcdsaP256(point.into()))
        })
    }

    /// An RSA key of 2048 to 8192 bits from `-----BEGIN PUBLIC KEY-----`.
    pub(super) fn rsa_pss_sha256(pem: &str) -> Result<Self, KeyError> {
        with_public_key(pem, |info| {
            let size = match info.parsed() {
                Ok(ParsedKey::RSA(key)) if info.algorithm.algorithm == OID_PKCS1_RSAENCRYPTION => key.key_size(),
                _ => 0,
            };
            (2_048..=8_192)
                .contains(&size)
                .then(|| Self::RsaPssSha256(info.subject_public_key.as_ref().into()))
        })
    }
}

fn with_public_key<T>(pem: &str, read: impl FnOnce(&SubjectPublicKeyInfo<'_>) -> Option<T>) -> Result<T, KeyError> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|_| KeyError::NotSpki)?;
    let (rest, info) = SubjectPublicKeyInfo::from_der(&pem.contents).map_err(|_| KeyError::NotSpki)?;
    if pem.label != "PUBLIC KEY" || !rest.is_empty() {
        return Err(KeyError::NotSpki);
    }
    read(&info).ok_or(KeyError::NotSpki)
}

impl From<PublicKey> for VerifyingKey {
    fn from(key: PublicKey) -> Self {
        Self::Ed25519(key)
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ed25519(key) => key.fmt(f),
            Self::EcdsaP256(point) => write!(f, "ecdsa-p256 {}", hex::encode(point)),
            Self::RsaPssSha256(key) => write!(f, "rsa sha256:{}", Sha256::of(key)),
        }
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::{super::keys::Key, *};

    /// Key objects and signatures that securesystemslib made, one of each kind, all over the same message.
    #[derive(Deserialize)]
    struct Golden {
        message: String,
        keys: Vec<Signed>,
    }

    #[derive(Deserialize)]
    struct Signed {
        key: Key,
        sig: String,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../tests/golden/foreign_keys.json")).unwrap()
    }

    #[test]
    fn signatures_of_securesystemslib_verify_under_every_kind_of_key_of_the_specification() {
        let golden = golden();
        let mut kinds = Vec::new();
        for Signed { key, sig } in golden.keys {
            let verifying = key.verifying(KeyPolicy::Standard).unwrap().unwrap();
            let mut signature = hex::decode(sig).unwrap();
            assert!(verifying.verifies(golden.message.as_bytes(), &signature), "{key:?}");
            assert!(!verifying.verifies(b"another message", &signature), "{key:?}");
            assert!(!verifying.verifies(golden.message.as_bytes(), &[]), "{key:?}");
            let last = signature.len() - 1;
            signature[last] ^= 1;
            assert!(!verifying.verifies(golden.message.as_bytes(), &signature), "{key:?}");
            kinds.push(key.scheme);
        }
        assert_eq!(kinds, ["ed25519", "ecdsa-sha2-nistp256", "rsassa-pss-sha256"]);
    }

    #[test]
    fn a_fleet_counts_ed25519_and_nothing_else() {
        let counted = |key: &Key| key.verifying(KeyPolicy::default()).unwrap().is_some();
        let kinds: Vec<_> = golden().keys.iter().map(|signed| counted(&signed.key)).collect();
        assert_eq!(kinds, [true, false, false]);
    }

    #[test]
    fn a_scheme_nobody_named_never_counts_and_a_key_of_another_kind_is_refused() {
        let mut keys = golden().keys.into_iter().map(|signed| signed.key);
        let (_, mut ecdsa, mut rsa) = (keys.next(), keys.next().unwrap(), keys.next().unwrap());
        std::mem::swap(&mut ecdsa.keyval, &mut rsa.keyval);
        assert_eq!(ecdsa.verifying(KeyPolicy::Standard), Err(KeyError::NotSpki));
        assert_eq!(rsa.verifying(KeyPolicy::Standard), Err(KeyError::NotSpki));
        rsa.scheme = "rsassa-pss-md5".to_owned();
        assert_eq!(rsa.verifying(KeyPolicy::Standard), Ok(None));
        let small = include_str!("../../tests/golden/rsa_1024.pem");
        assert_eq!(VerifyingKey::rsa_pss_sha256(small), Err(KeyError::NotSpki));
        assert_eq!(
            VerifyingKey::ecdsa_p256("-----BEGIN PUBLIC KEY-----\n"),
            Err(KeyError::NotSpki)
        );
    }
}
