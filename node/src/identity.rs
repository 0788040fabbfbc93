//! Who this node is: its one key, its certificate from the fleet CA, and the TLS configurations made of them.
//!
//! Invariants: the key never leaves its file (mode 0600) and this process; every connection is TLS 1.3, and both sides
//! are authenticated by the fleet CA wherever the other side is Firmesh.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding};
use firmesh_protocol::{
    identity::{IdentityError, NodeIdentity, certificate_validity},
    ids::{NodeId, TopologyPath},
    time::WallTime,
    trust::{PublicKey, SecretKey},
};
use rustls::{
    CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};

/// Why a node has no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// A file of the identity cannot be read or written.
    #[error("{path} cannot be {operation}")]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The key is readable by others.
    #[error("{path} is readable by others (mode {mode:o}); it is this node's secret: chmod 600 it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key file is not a key.
    #[error("{path} does not hold an ed25519 key in PKCS#8 PEM")]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// The certificate file is not a certificate.
    #[error("{path} does not hold a certificate in PEM")]
    NotACertificate {
        /// The file.
        path: PathBuf,
    },
    /// The certificate is not this node's.
    #[error("the certificate in {path} is for {found}, this node is {expected}; move it away to enrol again")]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Whom it speaks for.
        found: String,
        /// Who this node is.
        expected: String,
    },
    /// The certificate cannot be used.
    #[error("the certificate in {path} cannot be used")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: IdentityError,
    },
    /// A certificate request could not be made.
    #[error("the certificate request could not be made")]
    Request(#[from] rcgen::Error),
    /// TLS refused the key or the certificates.
    #[error("TLS cannot use this node's key and certificates")]
    Tls(#[from] rustls::Error),
    /// The fleet CA cannot be used to verify peers.
    #[error("the fleet CA's certificate cannot be used to verify peers")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A node's key, before and after enrolment.
#[derive(Clone)]
pub struct NodeKey {
    signing: ed25519_dalek::SigningKey,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Reads the key, or makes one if there is none yet.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityFileError> {
        match fs::read_to_string(path) {
            Ok(pem) => {
                let mode = file_error(path, "read", fs::metadata(path))?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(IdentityFileError::Exposed {
                        path: path.to_owned(),
                        mode,
                    });
                }
                let signing = ed25519_dalek::SigningKey::from_pkcs8_pem(&pem)
                    .map_err(|_| IdentityFileError::NotAKey { path: path.to_owned() })?;
                Ok(Self { signing })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(IdentityFileError::File {
                path: path.to_owned(),
                operation: "read",
                source,
            }),
        }
    }

    fn create(path: &Path) -> Result<Self, IdentityFileError> {
        let mut seed = [0; 32];
        file_error(path, "written", getrandom::fill(&mut seed).map_err(io::Error::other))?;
        let signing = ed25519_dalek::SigningKey::from_bytes(&seed);
        let pem = signing
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|_| IdentityFileError::NotAKey { path: path.to_owned() })?;
        file_error(
            path,
            "written",
            crate::files::write_durably(path, pem.as_bytes(), 0o600),
        )?;
        Ok(Self { signing })
    }

    /// The key as the trust core signs with it.
    #[must_use]
    pub fn secret(&self) -> SecretKey {
        SecretKey::from_seed(self.signing.as_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.secret().public()
    }

    /// The key as libp2p has it.
    #[must_use]
    pub fn libp2p(&self) -> libp2p::identity::Keypair {
        libp2p::identity::Keypair::ed25519_from_bytes(self.signing.to_bytes())
            .expect("32 bytes are an ed25519 secret key")
    }

    /// A PKCS#10 request, PEM, for this key: the node's name and the addresses BMCs will use.
    pub fn certificate_request(&self, node: &NodeId, addresses: &[IpAddr]) -> Result<String, IdentityFileError> {
        let names = [node.to_string()]
            .into_iter()
            .chain(addresses.iter().map(IpAddr::to_string));
        let mut params = rcgen::CertificateParams::new(names.collect::<Vec<_>>())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, node.as_str());
        Ok(params.serialize_request(&self.rcgen()?)?.pem()?)
    }

    fn rcgen(&self) -> Result<rcgen::KeyPair, IdentityFileError> {
        let der = self.der();
        Ok(rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
            &der,
            &rcgen::PKCS_ED25519,
        )?)
    }

    fn der(&self) -> PrivatePkcs8KeyDer<'static> {
        let document = self.signing.to_pkcs8_der().expect("an ed25519 key always encodes");
        PrivatePkcs8KeyDer::from(document.as_bytes().to_vec())
    }
}

/// An enrolled node. Clones share the certificate: a renewed one is shown in every handshake from then on.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The key.
    pub key: NodeKey,
    /// The fleet CA's certificate, DER.
    pub fleet_ca: CertificateDer<'static>,
    shown: Arc<Shown>,
}

/// The certificate shown in handshakes.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Identity {
    /// Checks that the certificate in `certificate_path` is this node's, for this key, and valid at `now`.
    pub fn load(
        key: NodeKey,
        certificate_path: &Path,
        fleet_ca_pem: &str,
        node: &NodeId,
        path: &TopologyPath,
        now: WallTime,
    ) -> Result<Self, IdentityFileError> {
        let pem = file_error(certificate_path, "read", fs::read(certificate_path))?;
        let fleet_ca = fleet_ca(fleet_ca_pem)?;
        let certificate = own_certificate(&pem, certificate_path, &fleet_ca, &key, node, path, now)?;
        Self::new(key, certificate, fleet_ca)
    }

    /// An identity of parts that nobody has checked against each other: the other side of every connection will.
    pub fn new(
        key: NodeKey,
        certificate: CertificateDer<'static>,
        fleet_ca: CertificateDer<'static>,
    ) -> Result<Self, IdentityFileError> {
        Ok(Self {
            shown: Arc::new(Shown(RwLock::new(certified(certificate, &key)?))),
            key,
            fleet_ca,
        })
    }

    /// The certificate in force, DER.
    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.shown.current().cert[0].clone()
    }

    /// When the certificate in force should be renewed: when two thirds of its time are over.
    pub fn renewal_due(&self) -> Result<WallTime, IdentityError> {
        let (from, to) = certificate_validity(&self.certificate())?;
        // The issuer dates certificates back by a day for clocks that are behind: what counts is what is left.
        let whole = to
            .unix_seconds()
            .saturating_sub(from.unix_seconds())
            .saturating_sub(86_400)
            .max(0);
        Ok(WallTime::from_unix_seconds(to.unix_seconds().saturating_sub(whole / 3)))
    }

    /// Checks a renewed certificate (PEM), keeps it in `certificate_path`, and shows it from now on. Connections that
    /// stand are not touched.
    pub fn renew(
        &self,
        pem: &str,
        certificate_path: &Path,
        node: &NodeId,
        path: &TopologyPath,
        now: WallTime,
    ) -> Result<(), IdentityFileError> {
        let pem = pem.as_bytes();
        let certificate = own_certificate(pem, certificate_path, &self.fleet_ca, &self.key, node, path, now)?;
        let certified = certified(certificate, &self.key)?;
        let written = crate::files::write_durably(certificate_path, pem, 0o644);
        file_error(certificate_path, "written", written)?;
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    /// TLS towards peers and the coordinator: our certificate, and theirs from the fleet CA.
    pub fn client_config(&self) -> Result<ClientConfig, IdentityFileError> {
        Ok(ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(&self.fleet_ca)?)
            .with_client_cert_resolver(self.shown.clone()))
    }

    /// TLS for peers that connect: both certificates from the fleet CA.
    pub fn peer_server_config(&self) -> Result<ServerConfig, IdentityFileError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.fleet_ca)?), provider()).build()?;
        Ok(ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.shown.clone()))
    }

    /// TLS for BMCs that pull images: they check us, we do not know them. Old BMCs speak TLS 1.2 only, and an image is
    /// no secret.
    pub fn image_server_config(&self) -> Result<ServerConfig, IdentityFileError> {
        Ok(ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(self.shown.clone()))
    }
}

/// Reads a certificate that must be this node's, for this key, from the fleet CA and valid.
fn own_certificate(
    pem: &[u8],
    certificate_path: &Path,
    fleet_ca: &CertificateDer<'static>,
    key: &NodeKey,
    node: &NodeId,
    path: &TopologyPath,
    now: WallTime,
) -> Result<CertificateDer<'static>, IdentityFileError> {
    let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| IdentityFileError::NotACertificate {
        path: certificate_path.to_owned(),
    })?;
    let found = NodeIdentity::verify(&certificate, fleet_ca, now).map_err(|source| IdentityFileError::Unusable {
        path: certificate_path.to_owned(),
        source,
    })?;
    if found.node != *node || found.path != *path || found.key != key.public() {
        return Err(IdentityFileError::OtherNode {
            path: certificate_path.to_owned(),
            found: format!("{} at {}", found.node, found.path),
            expected: format!("{node} at {path}, with the key beside it"),
        });
    }
    Ok(certificate)
}

fn certified(certificate: CertificateDer<'static>, key: &NodeKey) -> Result<Arc<CertifiedKey>, rustls::Error> {
    CertifiedKey::from_der(vec![certificate], key.der().into(), &provider()).map(Arc::new)
}

/// TLS towards the coordinator before enrolment: it must be the fleet CA's, we have no certificate yet.
pub fn enrolment_client_config(fleet_ca_pem: &str) -> Result<ClientConfig, IdentityFileError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&fleet_ca(fleet_ca_pem)?)?)
        .with_no_client_auth())
}

fn fleet_ca(pem: &str) -> Result<CertificateDer<'static>, IdentityFileError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| IdentityFileError::NotACertificate {
        path: "coordinator.ca_file".into(),
    })
}

fn roots(fleet_ca: &CertificateDer<'static>) -> Result<RootCertStore, IdentityFileError> {
    let mut roots = RootCertStore::empty();
    roots.add(fleet_ca.clone())?;
    Ok(roots)
}

/// AES-128 first: as safe for this, and a third cheaper than AES-256 on every packet.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    let is_other = |suite: &SupportedCipherSuite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(is_other);
    Arc::new(provider)
}

fn file_error<T>(path: &Path, operation: &'static str, result: io::Result<T>) -> Result<T, IdentityFileError> {
    result.map_err(|source| IdentityFileError::File {
        path: path.to_owned(),
        operation,
        source,
    })
}
