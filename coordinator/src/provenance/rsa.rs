//! Bare RSA signatures: PKCS#1 v1.5 with SHA-256 (RFC 8017, section 8.2.2), keys of 2048 to 8192 bits.
//!
//! The padded block is compared as a whole, so nothing in it can be made up by a forger. Only after that comparison
//! has failed is the block looked at again, to tell people what is wrong; nothing is accepted there.

use ::rsa::{BigUint, Pkcs1v15Sign, RsaPublicKey, pkcs1, pkcs8::EncodePublicKey as _, traits::PublicKeyParts as _};
use firmesh_protocol::ids::Sha256;
use x509_cert::{
    der::{self, Decode as _},
    spki::SubjectPublicKeyInfoRef,
};

use super::signature::{Image, RSA_BITS_MAX, RSA_BITS_MIN, SignatureError, SignedBy};

/// A vendor's RSA key.
#[derive(Debug, Clone)]
pub(super) struct RsaKey {
    key: RsaPublicKey,
    fingerprint: Sha256,
}

/// `DigestInfo` up to the digest itself, by algorithm (RFC 8017, section 9.2, note 1).
const SHA256_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20,
];
const OTHER_INFOS: [(&str, &[u8]); 5] = [
    (
        "MD5",
        &[
            0x30, 0x20, 0x30, 0x0c, 0x06, 0x08, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05,
        ],
    ),
    (
        "SHA-1",
        &[0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a],
    ),
    (
        "SHA-384",
        &[
            0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02,
        ],
    ),
    (
        "SHA-512",
        &[
            0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03,
        ],
    ),
    (
        "SHA-224",
        &[
            0x30, 0x2d, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x04,
        ],
    ),
];

impl RsaKey {
    /// Reads `PUBLIC KEY` or `RSA PUBLIC KEY` in PEM.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, SignatureError> {
        let malformed = |error: der::Error| {
            SignatureError::new("malformed", format!("it must be an RSA public key in PEM: {error}"))
        };
        let (label, bytes) = der::pem::decode_vec(text).map_err(|error| malformed(error.into()))?;
        let parts = match label {
            "RSA PUBLIC KEY" => bytes,
            "PUBLIC KEY" => {
                let info = SubjectPublicKeyInfoRef::from_der(&bytes).map_err(malformed)?;
                rsa_parts(&info)?.to_vec()
            }
            other => {
                let detail = format!("it must be an RSA public key in PEM, not a {other:?}");
                return Err(SignatureError::new("malformed", detail));
            }
        };
        let parts = pkcs1::RsaPublicKey::from_der(&parts).map_err(malformed)?;
        let [n, e] = [parts.modulus, parts.public_exponent].map(|part| BigUint::from_bytes_be(part.as_bytes()));
        check_bits(n.bits())?;
        let unusable = |detail: String| SignatureError::new("weak_key", detail);
        if e.bits() < 2 || e.to_bytes_be().last().is_none_or(|byte| byte % 2 == 0) {
            return Err(unusable(
                "the RSA key's public exponent must be odd and at least 3".to_owned(),
            ));
        }
        let key = RsaPublicKey::new_with_max_size(n, e, RSA_BITS_MAX).map_err(|error| unusable(error.to_string()))?;
        let encoded = key.to_public_key_der();
        let encoded = encoded.map_err(|error| SignatureError::new("malformed", error.to_string()))?;
        Ok(Self {
            key,
            fingerprint: Sha256::of(encoded.as_bytes()),
        })
    }

    /// Checks a signature of the image.
    pub(super) fn verify(&self, signature: &[u8], image: &Image) -> Result<SignedBy, SignatureError> {
        let scheme = Pkcs1v15Sign {
            hash_len: Some(32),
            prefix: SHA256_INFO.into(),
        };
        match self.key.verify(scheme, image.sha256().as_bytes(), signature) {
            Ok(()) => Ok(SignedBy {
                signer: String::new(),
                fingerprint: self.fingerprint.to_string(),
                subject: None,
                algorithm: format!("rsa-{}-sha256", self.key.n().bits()),
                signed_at: None,
            }),
            Err(_) => Err(self.explain(signature)),
        }
    }

    fn explain(&self, signature: &[u8]) -> SignatureError {
        let size = self.key.size();
        if signature.len() != size {
            let detail = format!(
                "the signature has {} bytes, this key makes signatures of {size} bytes",
                signature.len()
            );
            return SignatureError::new("wrong_key", detail);
        }
        let value = BigUint::from_bytes_be(signature)
            .modpow(self.key.e(), self.key.n())
            .to_bytes_be();
        // The leading zero of 00 01 FF ... is lost in the number.
        let block = match value.strip_prefix(&[1]) {
            Some(rest) if value.len() + 1 == size => rest,
            _ => return SignatureError::new("wrong_key", "the signature was not made with this key"),
        };
        let padding = block.iter().take_while(|byte| **byte == 0xff).count();
        let Some(info) = block[padding..].strip_prefix(&[0]) else {
            return SignatureError::new(
                "bad_padding",
                "the padding is not that of PKCS#1 v1.5: a forgery, or PSS",
            );
        };
        if padding + 54 == size && info.starts_with(&SHA256_INFO) {
            return SignatureError::new(
                "other_content",
                "the signature is good, and for other bytes than this image",
            );
        }
        match OTHER_INFOS.iter().find(|(_, prefix)| info.starts_with(prefix)) {
            Some((name, _)) => SignatureError::new("weak_digest", format!("the digest is {name}, it must be SHA-256")),
            None => SignatureError::new(
                "bad_padding",
                "the padding does not fill the block up to the digest: a forgery, or another scheme",
            ),
        }
    }
}

/// Whether an RSA modulus of so many bits is worth something.
pub(super) fn check_bits(bits: usize) -> Result<(), SignatureError> {
    if (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits) {
        return Ok(());
    }
    let detail = format!("the RSA key has {bits} bits, it must have {RSA_BITS_MIN} to {RSA_BITS_MAX}");
    Err(SignatureError::new("weak_key", detail))
}

/// The PKCS#1 part of a public key that says it is RSA.
pub(super) fn rsa_parts<'a>(info: &SubjectPublicKeyInfoRef<'a>) -> Result<&'a [u8], SignatureError> {
    if info.algorithm.oid != pkcs1::ALGORITHM_OID {
        let detail = format!("the key's algorithm is {}, it must be RSA", info.algorithm.oid);
        return Err(SignatureError::new("malformed", detail));
    }
    let bits = info.subject_public_key.as_bytes();
    bits.ok_or_else(|| SignatureError::new("malformed", "the RSA key is not made of whole bytes"))
}

/// The length of the modulus in a PKCS#1 public key.
pub(super) fn modulus_bits(parts: &[u8]) -> Result<usize, SignatureError> {
    let parts = pkcs1::RsaPublicKey::from_der(parts);
    let parts = parts.map_err(|error| SignatureError::new("malformed", format!("the RSA key: {error}")))?;
    Ok(BigUint::from_bytes_be(parts.modulus.as_bytes()).bits())
}
