//! The keys this coordinator holds, and what it signs with them: snapshot and timestamp, permits, certificates.
//!
//! None of them can install anything: releases and campaigns are signed offline. Invariants: keys are made once, at the
//! first start, with mode 0600; a certificate is issued for a key whose owner has shown that he holds it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use firmesh_protocol::{
    evidence::{EVIDENCE_TYPE, GateEvidence},
    identity::{IdentityError, NodeIdentity, PATH_URI_PREFIX},
    ids::{NodeId, Sha256, TopologyPath},
    report::{PERMIT_TYPE, Permit},
    revocation::{REVOCATIONS_TYPE, RevocationList},
    time::WallTime,
    trust::{Envelope, PublicKey, SecretKey},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use crate::ceremony::{
    KeyFileError, ReadFileError, WriteFileError, generate_key, load_secret, load_secret_key, read_bounded, write_file,
    write_secret,
};

const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);
/// The coordinator's own certificate is made at every start, and renewed.
const OWN_CERTIFICATE: Duration = Duration::from_secs(2 * 365 * 86_400);
/// A day of slack forgives a node whose clock is behind.
const CLOCK_SLACK: Duration = Duration::from_secs(86_400);

/// Why the coordinator has no usable keys.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key file cannot be used.
    #[error("a key of the coordinator cannot be used")]
    Key(#[from] KeyFileError),
    /// A file cannot be written.
    #[error("a key of the coordinator cannot be stored")]
    Write(#[from] WriteFileError),
    /// A file cannot be read.
    #[error("the fleet CA's certificate cannot be read")]
    Read(#[from] ReadFileError),
    /// The certificate file holds something else.
    #[error("{} does not hold a certificate in PEM: restore it from a backup, nodes pin it", path.display())]
    NotACertificate {
        /// The file.
        path: PathBuf,
    },
    /// A key is gone that nodes or campaigns rely on.
    #[error("{} is missing, and a new key would be a stranger to this fleet: restore it from a backup", path.display())]
    KeyGone {
        /// The key's file.
        path: PathBuf,
    },
    /// The fleet CA's key and certificate are of two minds.
    #[error("{} is not the certificate of the key beside it: restore both from one backup", path.display())]
    OtherCertificate {
        /// The certificate's file.
        path: PathBuf,
    },
    /// X.509 refused.
    #[error("a certificate cannot be made")]
    X509(#[from] rcgen::Error),
    /// The operator token is too short to be a secret.
    #[error("{} holds less than 32 characters: remove it, and a new token is made", path.display())]
    ShortToken {
        /// The file.
        path: PathBuf,
    },
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request is not one, or is not signed by its own key.
    #[error("the request is not a PKCS#10 request in PEM, signed by its own key")]
    BadRequest(#[source] rcgen::Error),
    /// Another kind of key.
    #[error("the request is for another kind of key, it must be ed25519")]
    NotEd25519,
    /// The node asks for a name of the coordinator.
    #[error("the request names {0}, which is the coordinator's own address")]
    CoordinatorAddress(IpAddr),
    /// The node is called like the coordinator.
    #[error("a node cannot be called {0}: others take this name for the coordinator's own")]
    CoordinatorName(NodeId),
    /// X.509 refused.
    #[error("the certificate cannot be made")]
    X509(#[source] rcgen::Error),
    /// Nodes would not believe the certificate: the key is weak.
    #[error("the request's key cannot be used: make another")]
    Unusable(#[source] IdentityError),
}

/// A node's certificate, fresh.
#[derive(Debug)]
pub struct Issued {
    /// The certificate, PEM.
    pub pem: String,
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// The key it is for.
    pub key: PublicKey,
}

/// The coordinator's keys.
pub struct Authority {
    online: SecretKey,
    permit: SecretKey,
    ca: SecretKey,
    issuer: Issuer<'static, KeyPair>,
    ca_der: CertificateDer<'static>,
    ca_pem: String,
    operator_token: Sha256,
    names: Vec<String>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("online", &self.online)
            .field("permit", &self.permit)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the keys in `state_dir`, making those that are not there yet. `names` are the coordinator's own.
    pub fn load_or_create(state_dir: &Path, names: Vec<String>, now: WallTime) -> Result<Self, AuthorityError> {
        let keys = state_dir.join("keys");
        let certificate_path = keys.join("fleet-ca.crt");
        // Written last: once it is there, so were all keys.
        let is_first_start = !certificate_path.exists();
        let load = |name: &str| load_or_create_key(&keys.join(name), is_first_start);
        let (online, permit) = (load("online.pem")?, load("permit.pem")?);
        let ca = load("fleet-ca.pem")?;
        let ca_key = key_pair(&ca)?;
        let ca_pem = match read_bounded(&certificate_path, 64 << 10) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.is_not_found() => {
                let pem = ca_params(now).self_signed(&ca_key)?.pem();
                write_file(&certificate_path, pem.as_bytes())?;
                pem
            }
            Err(error) => return Err(error.into()),
        };
        let ca_der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| AuthorityError::NotACertificate {
                path: certificate_path.clone(),
            })?;
        if !certifies(&ca_der, &ca_key) {
            return Err(AuthorityError::OtherCertificate { path: certificate_path });
        }
        let issuer = Issuer::from_ca_cert_der(&ca_der, ca_key)?;
        let operator_token = load_or_create_token(&state_dir.join("operator.token"))?;
        Ok(Self {
            online,
            permit,
            ca,
            issuer,
            ca_der,
            ca_pem,
            operator_token,
            names,
        })
    }

    /// The key for snapshot and timestamp.
    #[must_use]
    pub fn online_key(&self) -> &SecretKey {
        &self.online
    }

    /// The key for permits.
    #[must_use]
    pub fn permit_key(&self) -> &SecretKey {
        &self.permit
    }

    /// The key that signs access tokens. It is made from the permit key, so all coordinators of a fleet have the same.
    #[must_use]
    pub(crate) fn token_key(&self) -> SecretKey {
        let seed = blake3::derive_key(
            "firmesh coordinator 2026-11 access tokens",
            self.permit.to_pem().as_bytes(),
        );
        SecretKey::from_seed(&seed)
    }

    /// The fleet CA's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The fleet CA's certificate, DER.
    #[must_use]
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// What tells these keys from others, and gives none of them away: all coordinators of a fleet have the same.
    #[must_use]
    pub fn digests(&self) -> [(String, Sha256); 4] {
        let of = |name: &str, bytes: &[u8]| {
            let labelled = [b"firmesh coordinator's ", name.as_bytes(), b"\0", bytes].concat();
            (name.to_owned(), Sha256::of(&labelled))
        };
        [
            of("fleet CA", &self.ca_der),
            of("online key", self.online.public().to_string().as_bytes()),
            of("permit key", self.permit.public().to_string().as_bytes()),
            of("operator token", self.operator_token.as_bytes()),
        ]
    }

    /// Whether `token` is the operators'. Digests are compared, so the time it takes tells nothing about the token.
    #[must_use]
    pub fn is_operator_token(&self, token: &str) -> bool {
        Sha256::of(token.as_bytes()) == self.operator_token
    }

    /// Signs a permit.
    #[must_use]
    pub fn sign_permit(&self, permit: &Permit) -> Envelope {
        let payload = serde_json::to_vec(permit).expect("a permit has only names, numbers and lists");
        Envelope::sign(PERMIT_TYPE, payload, [&self.permit])
    }

    /// Signs evidence for a gate.
    #[must_use]
    pub fn sign_evidence(&self, evidence: &GateEvidence) -> Envelope {
        let payload = serde_json::to_vec(evidence).expect("evidence has only names, numbers and envelopes");
        Envelope::sign(EVIDENCE_TYPE, payload, [&self.permit])
    }

    /// Signs the list of revoked nodes with the fleet CA's key.
    #[must_use]
    pub fn sign_revocations(&self, list: &RevocationList) -> Envelope {
        let payload = serde_json::to_vec(list).expect("a list has only names, keys and times");
        Envelope::sign(REVOCATIONS_TYPE, payload, [&self.ca])
    }

    /// Issues a node's certificate. Names come from the enrolment, never from the request; addresses at which BMCs
    /// reach the node come from the request.
    pub fn issue_node(
        &self,
        node: &NodeId,
        path: &TopologyPath,
        csr_pem: &str,
        now: WallTime,
        validity: Duration,
    ) -> Result<Issued, IssueError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(IssueError::BadRequest)?;
        if *rcgen::PublicKeyData::algorithm(&request.public_key) != rcgen::PKCS_ED25519 {
            return Err(IssueError::NotEd25519);
        }
        let addresses: Vec<_> = request
            .params
            .subject_alt_names
            .iter()
            .filter_map(address_of)
            .take(16)
            .collect();
        let own = |address: &IpAddr| !address.is_loopback() && self.names.contains(&address.to_string());
        if let Some(address) = addresses.iter().find(|address| own(address)) {
            return Err(IssueError::CoordinatorAddress(*address));
        }
        let is_ours = |name: &String| name.eq_ignore_ascii_case(node.as_str());
        if node.as_str().eq_ignore_ascii_case("localhost") || self.names.iter().any(is_ours) {
            return Err(IssueError::CoordinatorName(node.clone()));
        }
        let mut params = leaf_params(node.as_str(), now, validity);
        params.subject_alt_names = vec![
            SanType::DnsName(node.as_str().try_into().map_err(IssueError::X509)?),
            SanType::URI(
                format!("{PATH_URI_PREFIX}{path}")
                    .try_into()
                    .map_err(IssueError::X509)?,
            ),
        ];
        params
            .subject_alt_names
            .extend(addresses.into_iter().map(SanType::IpAddress));
        request.params = params;
        let certificate = request.signed_by(&self.issuer).map_err(IssueError::X509)?;
        let identity = NodeIdentity::from_verified_certificate(certificate.der()).map_err(IssueError::Unusable)?;
        Ok(Issued {
            pem: certificate.pem(),
            der: certificate.der().to_vec(),
            key: identity.key,
        })
    }

    /// A fresh certificate and key for the coordinator's own listener.
    pub fn own_certificate(
        &self,
        now: WallTime,
    ) -> Result<(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>), AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut params = leaf_params("firmesh-coordinator", now, OWN_CERTIFICATE);
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.extend(
            self.names
                .iter()
                .filter(|name| !["localhost", "127.0.0.1", "::1"].contains(&name.as_str()))
                .cloned(),
        );
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}

/// 32 random bytes in hexadecimal.
pub(crate) fn new_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn load_or_create_key(path: &Path, is_first_start: bool) -> Result<SecretKey, AuthorityError> {
    match load_secret_key(path) {
        Err(KeyFileError::Read(error)) if error.is_not_found() && !is_first_start => {
            Err(AuthorityError::KeyGone { path: path.to_owned() })
        }
        Err(KeyFileError::Read(error)) if error.is_not_found() => {
            let key = generate_key()?;
            write_secret(path, key.to_pem().as_bytes(), false)?;
            Ok(key)
        }
        result => Ok(result?),
    }
}

fn load_or_create_token(path: &Path) -> Result<Sha256, AuthorityError> {
    let token = match load_secret(path) {
        Err(KeyFileError::Read(error)) if error.is_not_found() => {
            let token = new_token().map_err(KeyFileError::NoRandomness)?;
            write_secret(path, token.as_bytes(), false)?;
            token
        }
        result => result?,
    };
    match token.trim() {
        token if token.len() >= 32 => Ok(Sha256::of(token.as_bytes())),
        _ => Err(AuthorityError::ShortToken { path: path.to_owned() }),
    }
}

fn key_pair(key: &SecretKey) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_pem_and_sign_algo(&key.to_pem(), &rcgen::PKCS_ED25519)
}

fn certifies(certificate: &[u8], key: &KeyPair) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| *parsed.public_key().subject_public_key.data == *key.public_key_raw())
}

fn address_of(name: &SanType) -> Option<IpAddr> {
    match name {
        SanType::IpAddress(address) => Some(*address),
        _ => None,
    }
}

fn named(name: &str, now: WallTime, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let mut serial = [0; 16];
    // Without randomness the serial number stays what rcgen makes of the key.
    params.serial_number = getrandom::fill(&mut serial).is_ok().then(|| {
        serial[0] &= 0x7f;
        SerialNumber::from_slice(&serial)
    });
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.unix_seconds()).unwrap_or(0));
    params.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
    params.not_after = epoch + (now + validity);
    params
}

fn ca_params(now: WallTime) -> CertificateParams {
    let mut params = named("Firmesh fleet CA", now, CA_VALIDITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(name: &str, now: WallTime, validity: Duration) -> CertificateParams {
    let mut params = named(name, now, validity);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    pub(crate) fn request(names: &[&str]) -> (KeyPair, String) {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let pem = CertificateParams::new(names)
            .unwrap()
            .serialize_request(&key)
            .unwrap()
            .pem()
            .unwrap();
        (key, pem)
    }

    fn authority(folder: &Path) -> Result<Authority, AuthorityError> {
        Authority::load_or_create(folder, vec!["10.0.0.1".to_owned()], WallTime::from_unix_seconds(NOW))
    }

    #[test]
    fn keys_are_private_and_stay_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let first = authority(folder.path()).unwrap();
        let second = authority(folder.path()).unwrap();
        assert_eq!(first.online_key().public(), second.online_key().public());
        assert_eq!(first.ca_pem(), second.ca_pem());
        for secret in [
            "keys/online.pem",
            "keys/permit.pem",
            "keys/fleet-ca.pem",
            "operator.token",
        ] {
            let mode = std::fs::metadata(folder.path().join(secret))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{secret}");
        }
        let token = std::fs::read_to_string(folder.path().join("operator.token")).unwrap();
        assert!(second.is_operator_token(&token));
        assert!(!second.is_operator_token("guess"));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        authority(folder.path()).unwrap();
        let path = folder.path().join("keys/permit.pem");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            authority(folder.path()),
            Err(AuthorityError::Key(KeyFileError::Exposed { .. }))
        ));
    }

    #[test]
    fn a_key_that_is_gone_is_missed_and_never_replaced() {
        for gone in ["online.pem", "permit.pem", "fleet-ca.pem"] {
            let folder = tempfile::tempdir().unwrap();
            authority(folder.path()).unwrap();
            let path = folder.path().join("keys").join(gone);
            std::fs::remove_file(&path).unwrap();
            let refused = authority(folder.path());
            assert!(matches!(refused, Err(AuthorityError::KeyGone { .. })), "{gone}");
            assert!(!path.exists());
        }
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        authority(folder.path()).unwrap();
        authority(other.path()).unwrap();
        std::fs::copy(
            other.path().join("keys/fleet-ca.pem"),
            folder.path().join("keys/fleet-ca.pem"),
        )
        .unwrap();
        assert!(matches!(
            authority(folder.path()),
            Err(AuthorityError::OtherCertificate { .. })
        ));
    }

    #[test]
    fn a_certificate_says_what_the_enrolment_says_not_what_the_request_says() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path()).unwrap();
        let (node, path) = (
            NodeId::new("n1").unwrap(),
            "eu/s1/r1/n1".parse::<TopologyPath>().unwrap(),
        );
        let (key, csr) = request(&["firmesh-coordinator", "other-node", "192.0.2.7"]);
        let now = WallTime::from_unix_seconds(NOW);
        let certificate = authority
            .issue_node(&node, &path, &csr, now, Duration::from_secs(86_400))
            .unwrap()
            .der;
        let identity = NodeIdentity::verify(&certificate, authority.ca_der(), now).unwrap();
        assert_eq!((identity.node, identity.path), (node.clone(), path.clone()));
        assert_eq!(identity.key.as_bytes()[..], *key.public_key_raw());
        let names = format!(
            "{:?}",
            x509_parser::parse_x509_certificate(&certificate)
                .unwrap()
                .1
                .subject_alternative_name()
        );
        assert!(!names.contains("other-node"));

        let issue = |csr: &str| authority.issue_node(&node, &path, csr, now, Duration::from_secs(86_400));
        assert!(matches!(issue("hello"), Err(IssueError::BadRequest(_))));
        assert!(matches!(
            issue(&request(&["10.0.0.1"]).1),
            Err(IssueError::CoordinatorAddress(_))
        ));
        let like_us = NodeId::new("localhost").unwrap();
        let impostor = authority.issue_node(&like_us, &path, &csr, now, Duration::from_secs(86_400));
        assert!(matches!(impostor, Err(IssueError::CoordinatorName(_))), "{impostor:?}");
        let ecdsa = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let ecdsa = CertificateParams::default()
            .serialize_request(&ecdsa)
            .unwrap()
            .pem()
            .unwrap();
        assert!(matches!(issue(&ecdsa), Err(IssueError::NotEd25519)));
    }
}
