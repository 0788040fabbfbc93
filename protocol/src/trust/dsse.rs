//! DSSE envelopes: signatures over exact bytes, for everything signed that is not TUF (permits, reports, evidence).
//!
//! Invariant: the payload is out of reach until enough keys have been verified over it; parsing comes after.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Verified,
    key_set::{KeySet, SignatureError},
    keys::{KeyId, PublicKey, SecretKey},
};
use crate::limits::ENVELOPE_BYTES_MAX;

/// Why an envelope was refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Longer than any envelope.
    #[error("envelope of {length} bytes, at most {ENVELOPE_BYTES_MAX} are read")]
    TooLarge {
        /// Its length.
        length: usize,
    },
    /// Not the JSON form of an envelope.
    #[error("not a DSSE envelope")]
    Malformed(#[source] serde_json::Error),
    /// The envelope carries something else.
    #[error("the envelope holds {found:?}, expected {expected:?}")]
    PayloadType {
        /// What it says it holds.
        found: String,
        /// What the reader asked for.
        expected: String,
    },
    /// Not enough good signatures.
    #[error("the envelope's signatures are not enough")]
    Signature(#[from] SignatureError),
    /// Signed, and still not of the expected form.
    #[error("the signed payload does not have the form of {payload_type}")]
    Payload {
        /// What it was read as.
        payload_type: String,
        /// Where and why.
        source: serde_json::Error,
    },
}

impl EnvelopeError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Malformed(_) | Self::Payload { .. } => "malformed",
            Self::PayloadType { .. } => "payload_type",
            Self::Signature(error) => error.code(),
        }
    }
}

/// Bytes, what they are, and signatures over both. Serialises as the standard JSON form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    #[serde(with = "base64")]
    payload: Vec<u8>,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EnvelopeSignature {
    keyid: KeyId,
    #[serde(with = "base64")]
    sig: Vec<u8>,
}

impl Envelope {
    /// Signs `payload` as a `payload_type` with every one of `keys`.
    #[must_use]
    pub fn sign<'k>(payload_type: &str, payload: Vec<u8>, keys: impl IntoIterator<Item = &'k SecretKey>) -> Self {
        let pae = pre_authentication_encoding(payload_type, &payload);
        let by = |key: &SecretKey| (key.public(), key.sign(&pae));
        let signatures: Vec<_> = keys.into_iter().map(by).collect();
        Self::with_signatures(payload_type, payload, signatures)
    }

    /// What has to be signed for `payload` to count as a `payload_type`: for keys that are not in memory.
    #[must_use]
    pub fn to_be_signed(payload_type: &str, payload: &[u8]) -> Vec<u8> {
        pre_authentication_encoding(payload_type, payload)
    }

    /// Puts an envelope together from signatures over [`Self::to_be_signed`].
    #[must_use]
    pub fn with_signatures(
        payload_type: &str,
        payload: Vec<u8>,
        signatures: impl IntoIterator<Item = (PublicKey, [u8; 64])>,
    ) -> Self {
        let signed = |(key, sig): (PublicKey, [u8; 64])| EnvelopeSignature {
            keyid: key.id(),
            sig: sig.to_vec(),
        };
        Self {
            payload,
            payload_type: payload_type.to_owned(),
            signatures: signatures.into_iter().map(signed).collect(),
        }
    }

    /// What it claims to be: only [`Envelope::verify`] says whether that is so.
    #[must_use]
    pub fn claimed_type(&self) -> &str {
        &self.payload_type
    }

    /// What has to be signed for one more signature of the same bytes.
    #[must_use]
    pub fn to_be_signed_again(&self) -> Vec<u8> {
        pre_authentication_encoding(&self.payload_type, &self.payload)
    }

    /// Adds a signature of the same bytes, in place of an earlier one with this key.
    pub fn add_signature(&mut self, key: PublicKey, signature: [u8; 64]) {
        let keyid = key.id();
        self.signatures.retain(|known| known.keyid != keyid);
        let sig = signature.to_vec();
        self.signatures.push(EnvelopeSignature { keyid, sig });
    }

    /// Reads the JSON form. Says nothing about the signatures.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge { length: bytes.len() });
        }
        serde_json::from_slice(bytes).map_err(EnvelopeError::Malformed)
    }

    /// The JSON form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an envelope has only text")
    }

    /// The ids of the keys that claim to have signed: a hint for finding them, never a proof.
    pub fn claimed_signers(&self) -> impl Iterator<Item = &KeyId> {
        self.signatures.iter().map(|signature| &signature.keyid)
    }

    /// The payload while nobody vouches for it: good for finding the key that must have signed it, and nothing else.
    pub(crate) fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// The exact payload bytes, once enough of `keys` are found to have signed them as a `payload_type`.
    pub fn verify(&self, keys: &KeySet, payload_type: &str) -> Result<&[u8], EnvelopeError> {
        if self.payload_type != payload_type {
            return Err(EnvelopeError::PayloadType {
                found: self.payload_type.chars().take(80).collect(),
                expected: payload_type.to_owned(),
            });
        }
        let pae = pre_authentication_encoding(payload_type, &self.payload);
        let signatures = self
            .signatures
            .iter()
            .map(|signed| (&signed.keyid, Some(signed.sig.as_slice())));
        keys.enough(keys.good(&pae, signatures)?.len())?;
        Ok(&self.payload)
    }

    /// Verifies, and only then parses.
    pub fn open<T: DeserializeOwned>(&self, keys: &KeySet, payload_type: &str) -> Result<Verified<T>, EnvelopeError> {
        let payload = self.verify(keys, payload_type)?;
        serde_json::from_slice(payload)
            .map(Verified)
            .map_err(|source| EnvelopeError::Payload {
                payload_type: payload_type.to_owned(),
                source,
            })
    }
}

/// What DSSE signatures are made over.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

mod base64 {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::BASE64;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "application/vnd.firmesh.test+json";

    fn key(number: u8) -> SecretKey {
        SecretKey::from_seed(&[number; 32])
    }

    fn keys(threshold: u64) -> KeySet {
        KeySet::of("coordinator", threshold, [key(1).public(), key(2).public()]).unwrap()
    }

    #[test]
    fn the_bytes_signed_and_the_envelope_agree_with_securesystemslib() {
        let pae = pre_authentication_encoding(TYPE, b"hello \x00world");
        assert_eq!(pae, include_bytes!("../../tests/golden/dsse_pae.bin"));
        let theirs = Envelope::from_bytes(include_bytes!("../../tests/golden/dsse_envelope.json")).unwrap();
        assert_eq!(theirs, Envelope::sign(TYPE, b"hello \x00world".to_vec(), [&key(1)]));
        assert_eq!(theirs.verify(&keys(1), TYPE).unwrap(), b"hello \x00world");
    }

    #[test]
    fn a_payload_is_given_out_only_under_its_own_type_and_enough_signatures() {
        let envelope = Envelope::sign(TYPE, b"[1,2]".to_vec(), [&key(1)]);
        assert_eq!(*envelope.open::<Vec<u8>>(&keys(1), TYPE).unwrap(), [1, 2]);
        assert_eq!(
            envelope.verify(&keys(1), "text/plain").unwrap_err().code(),
            "payload_type"
        );
        assert_eq!(
            envelope.verify(&keys(2), TYPE).unwrap_err().code(),
            "signature_threshold"
        );
        let twice = Envelope::sign(TYPE, b"[1,2]".to_vec(), [&key(1), &key(1)]);
        assert_eq!(twice.verify(&keys(2), TYPE).unwrap_err().code(), "duplicate_key");
        let stranger = Envelope::sign(TYPE, b"[1,2]".to_vec(), [&key(9)]);
        assert_eq!(
            stranger.verify(&keys(1), TYPE).unwrap_err().code(),
            "signature_threshold"
        );
        assert_eq!(
            Envelope::sign(TYPE, b"x".to_vec(), [&key(1)])
                .open::<u8>(&keys(1), TYPE)
                .unwrap_err()
                .code(),
            "malformed"
        );
    }

    proptest! {
        #[test]
        fn no_byte_of_an_envelope_is_free_to_change(at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut bytes = Envelope::sign(TYPE, b"{\"device\":\"d-1\"}".to_vec(), [&key(1), &key(2)]).to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let accepted = Envelope::from_bytes(&bytes).and_then(|e| e.verify(&keys(2), TYPE).map(<[u8]>::to_vec));
            prop_assert!(accepted.is_err());
        }

        #[test]
        fn reading_envelopes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = Envelope::from_bytes(&bytes);
        }
    }
}
