//! CMS detached signatures (RFC 5652): `SignedData` with signed attributes, by a code-signing certificate that chains to
//! a CA certificate of the vendor (RFC 5280).
//!
//! Chains are built and checked by webpki: signatures, validity, basic constraints, name constraints, extended key
//! usage, revocation lists. Signatures without signed attributes are refused: they say nothing about what kind of bytes
//! they were made for.

use std::time::Duration;

use ::cms::{
    cert::CertificateChoices,
    content_info::ContentInfo,
    signed_data::{SignedData, SignerIdentifier, SignerInfo},
};
use firmesh_protocol::{ids::Sha256, time::WallTime};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime, pem::PemObject as _};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, anchor_from_trusted_cert, ring as algorithms,
};
use x509_cert::{
    Certificate,
    attr::Attribute,
    der::{
        self, Decode as _, Encode as _,
        asn1::{ObjectIdentifier, OctetStringRef, SetOfVec},
        referenced::OwnedToRef as _,
    },
    ext::pkix::{self, ExtendedKeyUsage, SubjectKeyIdentifier},
    time::Time,
};

use super::{
    rsa::{check_bits, modulus_bits, rsa_parts},
    signature::{CLOCK_SLACK_S, Image, SignatureError, SignedBy},
};

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const SIGNING_TIME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.5");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const CODE_SIGNING_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3");
/// The same, as webpki wants it.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];

/// Certificates in one signature: a chain is seldom longer than four.
const CERTIFICATES_MAX: usize = 32;
/// Signers of one signature.
const SIGNERS_MAX: usize = 8;

const CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
];

/// A vendor's CAs, and whom of theirs the policy believes.
#[derive(Debug)]
pub(super) struct VendorCa {
    anchors: Vec<(Certificate, TrustAnchor<'static>)>,
    crls: Vec<CertRevocationList<'static>>,
    subject: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl VendorCa {
    /// Reads CA certificates in PEM; `crls` are revocation lists in PEM or DER. If there are any, every signer's
    /// certificate must be covered by one. `subject` narrows the CA's people down to one (RFC 4514).
    pub(super) fn new(ca_pem: &[u8], crls: &[Vec<u8>], subject: Option<String>) -> Result<Self, SignatureError> {
        let malformed = |detail: String| SignatureError::new("malformed", detail);
        let mut anchors = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            let bytes = certificate.map_err(|error| malformed(format!("not a certificate in PEM: {error}")))?;
            let parsed =
                Certificate::from_der(&bytes).map_err(|error| malformed(format!("a CA certificate: {error}")))?;
            let anchor = anchor_from_trusted_cert(&bytes)
                .map_err(|error| malformed(format!("{} cannot be a CA: {error}", parsed.tbs_certificate.subject)))?;
            anchors.push((parsed, anchor.to_owned()));
        }
        if anchors.is_empty() || anchors.len() > CERTIFICATES_MAX {
            return Err(malformed(format!(
                "it must hold 1 to {CERTIFICATES_MAX} CA certificates in PEM"
            )));
        }
        let crls = crls.iter().map(|bytes| read_crl(bytes)).collect::<Result<_, _>>()?;
        Ok(Self { anchors, crls, subject })
    }

    /// Checks a detached signature of the image. Of several signers one that the policy believes is enough.
    pub(super) fn verify(&self, bytes: &[u8], image: &Image, now: WallTime) -> Result<SignedBy, SignatureError> {
        let data = read_signed_data(bytes)?;
        let certificates = certificates(&data)?;
        let mut worst: Option<SignatureError> = None;
        for signer in data.signer_infos.0.iter() {
            match self.verify_signer(signer, &certificates, image, now) {
                Ok(signed) => return Ok(signed),
                Err(error) if worst.as_ref().is_none_or(|worst| worst.progress() < error.progress()) => {
                    worst = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(worst.unwrap_or_else(|| SignatureError::new("malformed", "nobody has signed")))
    }

    fn verify_signer(
        &self,
        signer: &SignerInfo,
        certificates: &[&Certificate],
        image: &Image,
        now: WallTime,
    ) -> Result<SignedBy, SignatureError> {
        let hash = hash_of(&signer.digest_alg.oid)?;
        let certificate = find(&signer.sid, certificates)?;
        let key = check_key(certificate)?;
        let (attributes, signed_at) = check_attributes(signer, hash, image, now)?;
        let malformed = |error: der::Error| SignatureError::new("malformed", format!("the certificate: {error}"));
        let der = CertificateDer::from(certificate.to_der().map_err(malformed)?);
        let end_entity = EndEntityCert::try_from(&der)
            .map_err(|error| SignatureError::new("bad_certificate", format!("the signer's certificate: {error}")))?;
        let algorithm = algorithm(signer, &key, hash)?;
        end_entity
            .verify_signature(algorithm, &attributes, signer.signature.as_bytes())
            .map_err(|error| {
                let detail = format!("it does not verify with the key of its certificate: {error}");
                SignatureError::new("bad_signature", detail)
            })?;
        self.check_chain(&end_entity, certificate, certificates, now)?;
        check_usages(certificate)?;
        let subject = certificate.tbs_certificate.subject.to_string();
        if let Some(wanted) = self.subject.as_ref().filter(|wanted| **wanted != subject) {
            let detail = format!("the signer is {subject}, the policy asks for {wanted}");
            return Err(SignatureError::new("wrong_subject", detail));
        }
        Ok(SignedBy {
            signer: String::new(),
            fingerprint: Sha256::of(&der).to_string(),
            subject: Some(subject),
            algorithm: format!("{key}-{}", hash.name()),
            signed_at,
        })
    }

    fn check_chain(
        &self,
        end_entity: &EndEntityCert<'_>,
        certificate: &Certificate,
        others: &[&Certificate],
        now: WallTime,
    ) -> Result<(), SignatureError> {
        let seconds = now.unix_seconds().try_into().unwrap_or(0);
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let intermediates = others.iter().filter(|other| **other != certificate);
        let intermediates: Vec<_> = intermediates
            .filter_map(|other| Some(CertificateDer::from(other.to_der().ok()?)))
            .collect();
        let crls: Vec<_> = self.crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls).ok();
        let revocation = revocation.map(|options| options.with_depth(RevocationCheckDepth::EndEntity).build());
        // webpki does not look at the dates of a trust anchor; a CA that has expired vouches for nobody.
        let (mut anchors, mut expired) = (Vec::new(), None);
        for (ca, anchor) in &self.anchors {
            match check_validity(ca, now) {
                Ok(()) => anchors.push(anchor.clone()),
                Err(error) => expired = Some(error),
            }
        }
        // Of an issuer no usage is asked; where it states some, code signing must be among them.
        let usage = KeyUsage::required_if_present(CODE_SIGNING);
        match end_entity.verify_for_usage(
            CHAIN_ALGORITHMS,
            &anchors,
            &intermediates,
            time,
            usage,
            revocation,
            None,
        ) {
            Ok(_) => Ok(()),
            Err(webpki::Error::UnknownIssuer) if expired.is_some() && anchors.is_empty() => {
                Err(expired.unwrap_or_else(|| chain_error(&webpki::Error::UnknownIssuer, certificate)))
            }
            Err(error) => Err(chain_error(&error, certificate)),
        }
    }
}

impl Hash {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

fn read_crl(bytes: &[u8]) -> Result<CertRevocationList<'static>, SignatureError> {
    let malformed = |error: String| SignatureError::new("malformed", format!("a revocation list: {error}"));
    let der = if bytes.starts_with(b"-----") {
        let (label, der) = der::pem::decode_vec(bytes).map_err(|error| malformed(error.to_string()))?;
        match label {
            "X509 CRL" => der,
            other => return Err(malformed(format!("not a {other:?}"))),
        }
    } else {
        bytes.to_vec()
    };
    let list = OwnedCertRevocationList::from_der(&der).map_err(|error| malformed(error.to_string()))?;
    Ok(CertRevocationList::Owned(list))
}

fn read_signed_data(bytes: &[u8]) -> Result<SignedData, SignatureError> {
    let malformed = |detail: String| SignatureError::new("malformed", detail);
    let pem = bytes.trim_ascii();
    let der = if pem.starts_with(b"-----") {
        let (label, der) = der::pem::decode_vec(pem).map_err(|error| malformed(format!("not PEM: {error}")))?;
        if !matches!(label, "CMS" | "PKCS7") {
            return Err(malformed(format!("it must be a CMS signature, not a {label:?}")));
        }
        der
    } else {
        bytes.to_vec()
    };
    let not_der = |error: der::Error| malformed(format!("it must be a CMS SignedData in DER or PEM: {error}"));
    let content = ContentInfo::from_der(&der).map_err(not_der)?;
    if content.content_type != SIGNED_DATA {
        return Err(malformed(format!(
            "it must be a CMS SignedData, not {}",
            content.content_type
        )));
    }
    let data: SignedData = content.content.decode_as().map_err(not_der)?;
    if data.encap_content_info.econtent.is_some() {
        let detail = "the content is inside: the signature must be detached, and is not compared with the image";
        return Err(SignatureError::new("not_detached", detail));
    }
    if data.encap_content_info.econtent_type != DATA {
        let detail = format!(
            "the content's type is {}, it must be plain data",
            data.encap_content_info.econtent_type
        );
        return Err(SignatureError::new("malformed", detail));
    }
    if data.signer_infos.0.len() > SIGNERS_MAX {
        return Err(malformed(format!("more than {SIGNERS_MAX} signers")));
    }
    Ok(data)
}

fn certificates(data: &SignedData) -> Result<Vec<&Certificate>, SignatureError> {
    let set = data.certificates.as_ref().map(|set| &set.0);
    if set.is_some_and(|set| set.len() > CERTIFICATES_MAX) {
        let detail = format!("more than {CERTIFICATES_MAX} certificates");
        return Err(SignatureError::new("malformed", detail));
    }
    let set = set.into_iter().flat_map(|set| set.iter());
    Ok(set
        .filter_map(|choice| match choice {
            CertificateChoices::Certificate(certificate) => Some(certificate),
            CertificateChoices::Other(_) => None,
        })
        .collect())
}

fn find<'a>(sid: &SignerIdentifier, certificates: &[&'a Certificate]) -> Result<&'a Certificate, SignatureError> {
    let is_meant = |certificate: &&&Certificate| {
        let tbs = &certificate.tbs_certificate;
        match sid {
            SignerIdentifier::IssuerAndSerialNumber(id) => {
                id.issuer == tbs.issuer && id.serial_number == tbs.serial_number
            }
            SignerIdentifier::SubjectKeyIdentifier(id) => {
                matches!(tbs.get::<SubjectKeyIdentifier>(), Ok(Some((_, found))) if found == *id)
            }
        }
    };
    certificates
        .iter()
        .find(is_meant)
        .copied()
        .ok_or_else(|| SignatureError::new("no_certificate", "the signer's certificate is not inside the signature"))
}

/// The signed attributes as they were signed, and the time they tell.
fn check_attributes(
    signer: &SignerInfo,
    hash: Hash,
    image: &Image,
    now: WallTime,
) -> Result<(Vec<u8>, Option<WallTime>), SignatureError> {
    let malformed = |detail: &str| SignatureError::new("malformed", detail);
    let attributes = signer.signed_attrs.as_ref().ok_or_else(|| {
        SignatureError::new(
            "no_signed_attributes",
            "the signature has no signed attributes: sign without -noattr",
        )
    })?;
    let content_type: ObjectIdentifier = single(attributes, CONTENT_TYPE)?
        .ok_or_else(|| malformed("the signed attributes lack the content type"))?
        .decode_as()
        .map_err(|_| malformed("the signed content type"))?;
    if content_type != DATA {
        return Err(malformed("the signed content type is not plain data"));
    }
    let digest =
        single(attributes, MESSAGE_DIGEST)?.ok_or_else(|| malformed("the signed attributes lack the digest"))?;
    let digest: OctetStringRef<'_> = digest.decode_as().map_err(|_| malformed("the signed digest"))?;
    let expected: &[u8] = match hash {
        Hash::Sha256 => image.sha256_bytes(),
        Hash::Sha384 => &image.long_digests()?.0,
        Hash::Sha512 => &image.long_digests()?.1,
    };
    if digest.as_bytes() != expected {
        let detail = "the signature is for other bytes than this image";
        return Err(SignatureError::new("other_content", detail));
    }
    let signed_at = match single(attributes, SIGNING_TIME)? {
        None => None,
        Some(time) => {
            let time = time
                .to_der()
                .and_then(|der| Time::from_der(&der))
                .map_err(|_| malformed("the signing time"))?;
            let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
            Some(WallTime::from_unix_seconds(seconds))
        }
    };
    if let Some(time) = signed_at.filter(|time| time.unix_seconds() > now.unix_seconds().saturating_add(CLOCK_SLACK_S))
    {
        let detail = format!("it says it was made at {time}, and it is {now}");
        return Err(SignatureError::new("signed_in_the_future", detail));
    }
    let bytes = attributes.to_der().map_err(|_| malformed("the signed attributes"))?;
    Ok((bytes, signed_at))
}

/// The one value of an attribute; the same attribute twice is an ambush.
fn single(attributes: &SetOfVec<Attribute>, oid: ObjectIdentifier) -> Result<Option<&der::Any>, SignatureError> {
    let mut found = attributes.iter().filter(|attribute| attribute.oid == oid);
    let Some(attribute) = found.next() else {
        return Ok(None);
    };
    match (attribute.values.as_slice(), found.next()) {
        ([value], None) => Ok(Some(value)),
        _ => Err(SignatureError::new(
            "malformed",
            format!("the signed attribute {oid} has several values"),
        )),
    }
}

fn hash_of(oid: &ObjectIdentifier) -> Result<Hash, SignatureError> {
    match oid.to_string().as_str() {
        "2.16.840.1.101.3.4.2.1" => Ok(Hash::Sha256),
        "2.16.840.1.101.3.4.2.2" => Ok(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Ok(Hash::Sha512),
        other => {
            let name = match other {
                "1.3.14.3.2.26" => "SHA-1",
                "1.2.840.113549.2.5" => "MD5",
                "2.16.840.1.101.3.4.2.4" => "SHA-224",
                _ => other,
            };
            let detail = format!("the digest is {name}, it must be SHA-256, SHA-384 or SHA-512");
            Err(SignatureError::new("weak_digest", detail))
        }
    }
}

/// The name of a certificate's key, such as `rsa-3072`, once it is found to be of use.
fn check_key(certificate: &Certificate) -> Result<String, SignatureError> {
    let info = &certificate.tbs_certificate.subject_public_key_info;
    match info.algorithm.oid {
        RSA => {
            let bits = modulus_bits(rsa_parts(&info.owned_to_ref())?)?;
            check_bits(bits)?;
            Ok(format!("rsa-{bits}"))
        }
        EC => match info.algorithm.parameters.as_ref().and_then(|any| any.decode_as().ok()) {
            Some(P256) => Ok("ecdsa-p256".to_owned()),
            Some(P384) => Ok("ecdsa-p384".to_owned()),
            _ => Err(SignatureError::new(
                "unsupported_key",
                "the signer's curve must be P-256 or P-384",
            )),
        },
        other => {
            let detail = format!("the signer's key is {other}, it must be RSA or ECDSA");
            Err(SignatureError::new("unsupported_key", detail))
        }
    }
}

fn algorithm(
    signer: &SignerInfo,
    key: &str,
    hash: Hash,
) -> Result<&'static dyn SignatureVerificationAlgorithm, SignatureError> {
    let oid = signer.signature_algorithm.oid.to_string();
    let rsa = |with: &str| oid == "1.2.840.113549.1.1.1" || oid == with;
    let found: Option<&'static dyn SignatureVerificationAlgorithm> = match (key, hash) {
        ("ecdsa-p256", Hash::Sha256) if oid == "1.2.840.10045.4.3.2" => Some(algorithms::ECDSA_P256_SHA256),
        ("ecdsa-p256", Hash::Sha384) if oid == "1.2.840.10045.4.3.3" => Some(algorithms::ECDSA_P256_SHA384),
        ("ecdsa-p384", Hash::Sha256) if oid == "1.2.840.10045.4.3.2" => Some(algorithms::ECDSA_P384_SHA256),
        ("ecdsa-p384", Hash::Sha384) if oid == "1.2.840.10045.4.3.3" => Some(algorithms::ECDSA_P384_SHA384),
        (key, _) if key.starts_with("ecdsa") => None,
        (_, Hash::Sha256) if rsa("1.2.840.113549.1.1.11") => Some(algorithms::RSA_PKCS1_2048_8192_SHA256),
        (_, Hash::Sha384) if rsa("1.2.840.113549.1.1.12") => Some(algorithms::RSA_PKCS1_2048_8192_SHA384),
        (_, Hash::Sha512) if rsa("1.2.840.113549.1.1.13") => Some(algorithms::RSA_PKCS1_2048_8192_SHA512),
        _ => None,
    };
    found.ok_or_else(|| {
        let detail = format!(
            "the signature algorithm {oid} with {} and a key {key} is not accepted: RSA PKCS#1 v1.5, or ECDSA P-256 or \
             P-384 with SHA-256 or SHA-384",
            hash.name()
        );
        SignatureError::new("unsupported_algorithm", detail)
    })
}

/// The signer's certificate must say that it is for code signing; if it limits its key, signing must be left.
fn check_usages(certificate: &Certificate) -> Result<(), SignatureError> {
    let name = &certificate.tbs_certificate.subject;
    let wrong = |problem: &str| SignatureError::new("wrong_usage", format!("the certificate of {name} {problem}"));
    let malformed = |_| SignatureError::new("bad_certificate", format!("the usages of the certificate of {name}"));
    let usages = certificate
        .tbs_certificate
        .get::<ExtendedKeyUsage>()
        .map_err(malformed)?;
    if !usages.is_some_and(|(_, usages)| usages.0.contains(&CODE_SIGNING_OID)) {
        return Err(wrong("is not for code signing (extended key usage)"));
    }
    match certificate.tbs_certificate.get::<pkix::KeyUsage>().map_err(malformed)? {
        Some((_, usage)) if !usage.digital_signature() && !usage.non_repudiation() => {
            Err(wrong("is not for signing (key usage)"))
        }
        _ => Ok(()),
    }
}

fn check_validity(certificate: &Certificate, now: WallTime) -> Result<(), SignatureError> {
    let tbs = &certificate.tbs_certificate;
    let seconds = |time: &Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    let (from, until) = (seconds(&tbs.validity.not_before), seconds(&tbs.validity.not_after));
    let name = &tbs.subject;
    if now.unix_seconds() < from {
        let detail = format!(
            "the certificate of {name} is not valid yet: from {}",
            WallTime::from_unix_seconds(from)
        );
        return Err(SignatureError::new("certificate_not_yet_valid", detail));
    }
    if now.unix_seconds() > until {
        let detail = format!(
            "the certificate of {name} has expired: {}",
            WallTime::from_unix_seconds(until)
        );
        return Err(SignatureError::new("certificate_expired", detail));
    }
    Ok(())
}

fn chain_error(error: &webpki::Error, certificate: &Certificate) -> SignatureError {
    use webpki::Error;
    let name = &certificate.tbs_certificate.subject;
    let (code, detail) = match error {
        Error::CertExpired { not_after, .. } => {
            let until = WallTime::from_unix_seconds(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX));
            (
                "certificate_expired",
                format!("a certificate on the way from {name} to the vendor's CA has expired: {until}"),
            )
        }
        Error::CertNotValidYet { not_before, .. } => {
            let from = WallTime::from_unix_seconds(i64::try_from(not_before.as_secs()).unwrap_or(i64::MAX));
            (
                "certificate_not_yet_valid",
                format!("a certificate on the way from {name} to the vendor's CA is not valid yet: from {from}"),
            )
        }
        // A CA that only has the name of the vendor's.
        Error::InvalidSignatureForPublicKey => (
            "unknown_issuer",
            format!("{name} was not issued with the key of the CA that it names"),
        ),
        Error::UnknownIssuer => (
            "unknown_issuer",
            format!("{name} does not chain to a CA of this vendor's policy"),
        ),
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => (
            "wrong_usage",
            format!("the certificate of {name} is not for code signing (extended key usage)"),
        ),
        Error::CertRevoked => (
            "certificate_revoked",
            format!("the certificate of {name} has been revoked"),
        ),
        Error::UnknownRevocationStatus | Error::CrlExpired { .. } => (
            "revocation_unknown",
            format!("no current revocation list of the policy covers the certificate of {name}"),
        ),
        Error::CaUsedAsEndEntity => (
            "wrong_usage",
            format!("{name} is a CA, which does not sign images itself"),
        ),
        other => ("bad_certificate", format!("the certificate of {name}: {other}")),
    };
    SignatureError::new(code, detail)
}
