//! Detached OpenPGP signatures (RFC 9580), verified against certificates of the vendor.
//!
//! The packets and the cryptography are rPGP's; what a certificate is worth is decided here. A signature counts if it is
//! over the bytes as they are, with a sound digest, by a primary key or signing subkey that its certificate binds, and
//! that is neither expired nor revoked now. What the certificate's owner has not signed himself is not looked at.

use std::io::Cursor;

use firmesh_protocol::time::WallTime;
use pgp::{
    composed::{Deserializable as _, DetachedSignature, SignedPublicKey, SignedPublicSubKey},
    crypto::hash::HashAlgorithm,
    packet::{Signature, SignatureType, SignatureVersion, SubpacketData},
    ser::Serialize,
    types::{EcdsaPublicParams, EddsaLegacyPublicParams, KeyDetails, PublicParams, Tag, VerifyingKey},
};

use super::{
    rsa::check_bits,
    signature::{CLOCK_SLACK_S, Image, SIGNATURES_MAX, SignatureError, SignedBy},
};

/// Certificates in one key file.
const CERTIFICATES_MAX: usize = 64;

/// A vendor's OpenPGP certificates.
#[derive(Debug)]
pub(super) struct Certificates(Vec<SignedPublicKey>);

impl Certificates {
    /// Reads certificates (transferable public keys), armoured or binary.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, SignatureError> {
        let malformed = |error: String| {
            let detail = format!("it must hold OpenPGP public keys (gpg --export): {error}");
            SignatureError::new("malformed", detail)
        };
        let (keys, _) =
            SignedPublicKey::from_reader_many_buf(Cursor::new(bytes)).map_err(|e| malformed(e.to_string()))?;
        let keys: Result<Vec<_>, _> = keys.take(CERTIFICATES_MAX + 1).collect();
        let keys = keys.map_err(|error| malformed(error.to_string()))?;
        if keys.is_empty() || keys.len() > CERTIFICATES_MAX {
            return Err(malformed(format!("1 to {CERTIFICATES_MAX} of them")));
        }
        Ok(Self(keys))
    }

    /// Checks detached signatures of the image. Of several one that counts is enough.
    pub(super) fn verify(&self, bytes: &[u8], image: &Image, now: WallTime) -> Result<SignedBy, SignatureError> {
        let malformed = |error: String| {
            SignatureError::new("malformed", format!("it must be a detached OpenPGP signature: {error}"))
        };
        let (found, _) =
            DetachedSignature::from_reader_many_buf(Cursor::new(bytes)).map_err(|e| malformed(e.to_string()))?;
        let mut worst: Option<SignatureError> = None;
        for (at, signature) in found.enumerate() {
            if at == SIGNATURES_MAX {
                return Err(malformed(format!("more than {SIGNATURES_MAX} signatures")));
            }
            let signature = signature.map_err(|error| malformed(error.to_string()))?.signature;
            match self.verify_one(&signature, image, now) {
                Ok(signed) => return Ok(signed),
                Err(error) if worst.as_ref().is_none_or(|worst| worst.progress() < error.progress()) => {
                    worst = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(worst.unwrap_or_else(|| malformed("there is none in it".to_owned())))
    }

    fn verify_one(&self, signature: &Signature, image: &Image, now: WallTime) -> Result<SignedBy, SignatureError> {
        let made = check_signature(signature, now)?;
        let (certificate, subkey) = self.find(signature)?;
        let primary = certificate.primary_key.fingerprint();
        check_primary(certificate, subkey.is_none(), made, now)?;
        let algorithm = match subkey {
            None => verify_image(signature, &certificate.primary_key, image)?,
            Some(subkey) => {
                check_subkey(certificate, subkey, made, now)?;
                verify_image(signature, &subkey.key, image)?
            }
        };
        Ok(SignedBy {
            signer: String::new(),
            fingerprint: subkey.map_or(primary, |subkey| subkey.key.fingerprint()).to_string(),
            subject: user_of(certificate),
            algorithm,
            signed_at: Some(WallTime::from_unix_seconds(made)),
        })
    }

    /// The key that a signature names. Names are hints: whether the key made it is checked later.
    fn find(&self, signature: &Signature) -> Result<(&SignedPublicKey, Option<&SignedPublicSubKey>), SignatureError> {
        let (prints, ids) = (signature.issuer_fingerprint(), signature.issuer_key_id());
        let is_named = |key: &dyn KeyDetails| {
            if prints.is_empty() {
                ids.contains(&&key.legacy_key_id())
            } else {
                prints.contains(&&key.fingerprint())
            }
        };
        for certificate in &self.0 {
            if is_named(&certificate.primary_key) {
                return Ok((certificate, None));
            }
            if let Some(subkey) = certificate.public_subkeys.iter().find(|subkey| is_named(&subkey.key)) {
                return Ok((certificate, Some(subkey)));
            }
        }
        let names: Vec<_> = match prints.is_empty() {
            true => ids.iter().map(ToString::to_string).collect(),
            false => prints.iter().map(ToString::to_string).collect(),
        };
        let detail = format!(
            "it was made with the key {}, which is not the vendor's",
            names.join(", ")
        );
        Err(SignatureError::new("unknown_key", detail))
    }
}

/// Checks what a signature says of itself, and returns when it was made.
fn check_signature(signature: &Signature, now: WallTime) -> Result<i64, SignatureError> {
    if !matches!(signature.version(), SignatureVersion::V4 | SignatureVersion::V6) {
        let detail = format!("signatures of version {:?} are too old: 4 or 6", signature.version());
        return Err(SignatureError::new("malformed", detail));
    }
    if signature.typ() != Some(SignatureType::Binary) {
        let detail = "it is not over the bytes as they are (a text signature, or a key's): sign without --textmode";
        return Err(SignatureError::new("wrong_type", detail));
    }
    check_hash(signature)?;
    check_critical(signature)?;
    let made = created(signature)?;
    if made > now.unix_seconds().saturating_add(CLOCK_SLACK_S) {
        let detail = format!(
            "it says it was made at {}, and it is {now}",
            WallTime::from_unix_seconds(made)
        );
        return Err(SignatureError::new("signed_in_the_future", detail));
    }
    if has_ended(made, signature.signature_expiration_time(), now) {
        return Err(SignatureError::new("signature_expired", "the signature has expired"));
    }
    Ok(made)
}

fn check_primary(
    certificate: &SignedPublicKey,
    signs_itself: bool,
    made: i64,
    now: WallTime,
) -> Result<(), SignatureError> {
    let key = &certificate.primary_key;
    let name = key.fingerprint();
    check_strength(key.public_params())?;
    let is_revocation =
        |sig: &&Signature| sig.typ() == Some(SignatureType::KeyRevocation) && sig.verify_key(key).is_ok();
    if certificate
        .details
        .revocation_signatures
        .iter()
        .any(|sig| is_revocation(&sig))
    {
        return Err(SignatureError::new(
            "key_revoked",
            format!("the vendor has revoked the key {name}"),
        ));
    }
    let own = own_signatures(certificate);
    let newest = newest(own.iter().copied(), now).ok_or_else(|| {
        let detail = format!("the key {name} has no self-signature that counts: export it again");
        SignatureError::new("no_self_signature", detail)
    })?;
    check_hash(newest)?;
    check_life(&name.to_string(), key.created_at().as_secs(), newest, made, now)?;
    if signs_itself && states_flags(newest) && !newest.key_flags().sign() {
        return Err(SignatureError::new(
            "wrong_usage",
            format!("the key {name} is not for signing data"),
        ));
    }
    Ok(())
}

/// The self-signatures over the key itself and over every user that is not revoked.
fn own_signatures(certificate: &SignedPublicKey) -> Vec<&Signature> {
    let key = &certificate.primary_key;
    let direct = certificate.details.direct_signatures.iter();
    let mut own: Vec<_> = direct
        .filter(|sig| sig.typ() == Some(SignatureType::Key) && sig.verify_key(key).is_ok())
        .collect();
    for user in &certificate.details.users {
        let good = user.signatures.iter();
        let good: Vec<_> = good
            .filter(|sig| sig.verify_certification(key, Tag::UserId, &user.id).is_ok())
            .collect();
        let (gone, said): (Vec<_>, Vec<_>) = good
            .into_iter()
            .partition(|sig| sig.typ() == Some(SignatureType::CertRevocation));
        let gone = gone.iter().filter_map(|sig| created(sig).ok()).max();
        own.extend(said.into_iter().filter(|sig| created(sig).ok() > gone));
    }
    own
}

fn check_subkey(
    certificate: &SignedPublicKey,
    subkey: &SignedPublicSubKey,
    made: i64,
    now: WallTime,
) -> Result<(), SignatureError> {
    let (primary, key) = (&certificate.primary_key, &subkey.key);
    let name = key.fingerprint();
    check_strength(key.public_params())?;
    let good: Vec<_> = subkey
        .signatures
        .iter()
        .filter(|sig| sig.verify_subkey_binding(primary, key).is_ok())
        .collect();
    if good
        .iter()
        .any(|sig| sig.typ() == Some(SignatureType::SubkeyRevocation))
    {
        return Err(SignatureError::new(
            "key_revoked",
            format!("the vendor has revoked the subkey {name}"),
        ));
    }
    let bindings = good
        .into_iter()
        .filter(|sig| sig.typ() == Some(SignatureType::SubkeyBinding));
    let binding = newest(bindings, now).ok_or_else(|| {
        SignatureError::new(
            "no_self_signature",
            format!("the primary key does not vouch for the subkey {name}"),
        )
    })?;
    check_hash(binding)?;
    check_life(&name.to_string(), key.created_at().as_secs(), binding, made, now)?;
    if !binding.key_flags().sign() {
        return Err(SignatureError::new(
            "wrong_usage",
            format!("the subkey {name} is not for signing data"),
        ));
    }
    let back = binding.embedded_signature();
    if !back.is_some_and(|back| check_hash(back).is_ok() && back.verify_primary_key_binding(key, primary).is_ok()) {
        let detail = format!("the subkey {name} does not vouch for its primary key");
        return Err(SignatureError::new("no_self_signature", detail));
    }
    Ok(())
}

fn verify_image(
    signature: &Signature,
    key: &(impl VerifyingKey + Serialize),
    image: &Image,
) -> Result<String, SignatureError> {
    let mut bytes = image.again()?;
    let verified = signature.verify(key, &mut bytes);
    if !bytes.was_same() {
        // Bytes that were not read to their end look changed, too; either way nothing is known about the image.
        let cause = verified
            .err()
            .map_or_else(|| "it changed while it was read".to_owned(), |e| e.to_string());
        return Err(SignatureError::new("image_unreadable", format!("the image: {cause}")));
    }
    verified.map_err(|_| {
        let detail = format!(
            "it does not verify with the key {}: another image, or a changed signature",
            key.fingerprint()
        );
        SignatureError::new("bad_signature", detail)
    })?;
    let hash = signature
        .hash_alg()
        .map_or_else(String::new, |hash| hash.to_string().to_ascii_lowercase());
    Ok(format!("{}-{hash}", key_name(key.public_params())))
}

fn check_life(name: &str, born: u32, signature: &Signature, made: i64, now: WallTime) -> Result<(), SignatureError> {
    let born = i64::from(born);
    if made < born {
        return Err(SignatureError::new(
            "bad_signature",
            format!("it is older than its key {name}"),
        ));
    }
    if has_ended(born, signature.key_expiration_time(), now) {
        return Err(SignatureError::new(
            "key_expired",
            format!("the key {name} has expired: ask the vendor for a fresh one"),
        ));
    }
    Ok(())
}

/// The newest signature that exists by now and has not ended.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>, now: WallTime) -> Option<&'a Signature> {
    let until = now.unix_seconds().saturating_add(CLOCK_SLACK_S);
    let in_force = signatures.filter_map(|signature| {
        let made = created(signature).ok()?;
        let counts = made <= until
            && !has_ended(made, signature.signature_expiration_time(), now)
            && check_critical(signature).is_ok();
        counts.then_some((made, signature))
    });
    in_force.max_by_key(|(made, _)| *made).map(|(_, signature)| signature)
}

fn has_ended(start: i64, life: Option<pgp::types::Duration>, now: WallTime) -> bool {
    let life = life.map_or(0, |life| i64::from(life.as_secs()));
    life > 0 && now.unix_seconds() >= start.saturating_add(life)
}

fn created(signature: &Signature) -> Result<i64, SignatureError> {
    let made = signature.created();
    made.map(|made| i64::from(made.as_secs()))
        .ok_or_else(|| SignatureError::new("malformed", "the signature does not say when it was made"))
}

fn states_flags(signature: &Signature) -> bool {
    let mut subpackets = signature
        .config()
        .into_iter()
        .flat_map(|config| config.hashed_subpackets.iter());
    subpackets.any(|subpacket| matches!(subpacket.data, SubpacketData::KeyFlags(_)))
}

/// What is marked critical and not understood makes a signature void (RFC 9580, section 5.2.3.7).
fn check_critical(signature: &Signature) -> Result<(), SignatureError> {
    let mut subpackets = signature
        .config()
        .into_iter()
        .flat_map(|config| config.hashed_subpackets.iter());
    let unknown = subpackets.find(|subpacket| {
        let foreign = matches!(
            subpacket.data,
            SubpacketData::Other(..) | SubpacketData::Experimental(..) | SubpacketData::Notation(_)
        );
        subpacket.is_critical && foreign
    });
    match unknown {
        None => Ok(()),
        Some(_) => Err(SignatureError::new(
            "unknown_critical",
            "the signature has a critical part that is not understood here",
        )),
    }
}

fn check_hash(signature: &Signature) -> Result<(), SignatureError> {
    match signature.hash_alg() {
        Some(
            HashAlgorithm::Sha256
            | HashAlgorithm::Sha384
            | HashAlgorithm::Sha512
            | HashAlgorithm::Sha3_256
            | HashAlgorithm::Sha3_512,
        ) => Ok(()),
        other => {
            let name = other.map_or_else(|| "unknown".to_owned(), |hash| hash.to_string());
            let detail = format!("the digest is {name}, it must be SHA-256, SHA-384, SHA-512 or SHA-3");
            Err(SignatureError::new("weak_digest", detail))
        }
    }
}

fn check_strength(params: &PublicParams) -> Result<(), SignatureError> {
    match params {
        PublicParams::RSA(rsa) => check_bits(::rsa::traits::PublicKeyParts::n(&rsa.key).bits()),
        PublicParams::ECDSA(
            EcdsaPublicParams::P256 { .. } | EcdsaPublicParams::P384 { .. } | EcdsaPublicParams::P521 { .. },
        )
        | PublicParams::EdDSALegacy(EddsaLegacyPublicParams::Ed25519 { .. })
        | PublicParams::Ed25519(_)
        | PublicParams::Ed448(_) => Ok(()),
        _ => Err(SignatureError::new(
            "unsupported_key",
            "the key must be RSA, ECDSA with a NIST curve, Ed25519 or Ed448",
        )),
    }
}

fn key_name(params: &PublicParams) -> String {
    match params {
        PublicParams::RSA(rsa) => format!("rsa-{}", ::rsa::traits::PublicKeyParts::n(&rsa.key).bits()),
        PublicParams::ECDSA(EcdsaPublicParams::P256 { .. }) => "ecdsa-p256".to_owned(),
        PublicParams::ECDSA(EcdsaPublicParams::P384 { .. }) => "ecdsa-p384".to_owned(),
        PublicParams::ECDSA(_) => "ecdsa-p521".to_owned(),
        PublicParams::Ed448(_) => "ed448".to_owned(),
        _ => "ed25519".to_owned(),
    }
}

/// The certificate's primary user, or its first.
fn user_of(certificate: &SignedPublicKey) -> Option<String> {
    let users = &certificate.details.users;
    let primary = users.iter().find(|user| user.is_primary()).or_else(|| users.first())?;
    let text = String::from_utf8_lossy(primary.id.id()).into_owned();
    Some(text.chars().filter(|c| !c.is_control()).take(256).collect())
}
