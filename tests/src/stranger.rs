//! Whoever comes to a listener of the fleet: with a card of the fleet's CA, of another one, or with none, on each of the
//! three planes of the wire. Each way in answers with the other side's own words when it stays shut.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use firmesh_protocol::{
    api::{AuditSeen, EnrolRequest, EnrolResponse, SyncRequest, Traffic},
    identity::PATH_URI_PREFIX,
    report::{NODE_RECORD_TYPE, NodeRecord},
    trust::{Envelope, SecretKey},
    wire::{CONTROL_ALPN, PeerMessage, WIRE_VERSION},
};
use futures_util::StreamExt as _;
use libp2p::{Multiaddr, SwarmBuilder, identify, swarm::SwarmEvent};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519, SanType,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _},
};

/// How long a way in may take to open, or to say that it stays shut.
const WITHIN: Duration = Duration::from_secs(20);

/// A key, and a certificate for it.
#[derive(Debug)]
pub struct Card {
    seed: [u8; 32],
    /// The certificate, DER.
    pub certificate: CertificateDer<'static>,
}

/// A certificate authority: another one than the fleet's.
#[derive(Debug)]
pub struct OtherCa(Issuer<'static, KeyPair>);

/// Why a way in stayed shut, in the words of whoever shut it.
pub type Shut = String;

impl Card {
    /// A member like any other: enrolled with a one-time token.
    pub async fn enrol(url: &str, fleet_ca: &Path, node: &str, token: String) -> Result<Self> {
        let seed = random()?;
        let csr_pem = request(node)?.serialize_request(&key_pair(&seed)?)?.pem()?;
        let node = node.parse()?;
        let tls = config(Some(fleet_ca), None, &[&rustls::version::TLS13])?;
        let answer = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .build()?
            .post(format!("{url}/node/v1/enrol"))
            .json(&EnrolRequest { node, token, csr_pem })
            .send()
            .await?;
        ensure!(answer.status().is_success(), "not enrolled: {}", answer.text().await?);
        let answer: EnrolResponse = answer.json().await?;
        let certificate = CertificateDer::from_pem_slice(answer.certificate_pem.as_bytes())?;
        Ok(Self { seed, certificate })
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        let pem = SecretKey::from_seed(&self.seed).to_pem();
        Ok(PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())?.into())
    }

    /// A heartbeat whose record is this card's, as an HTTP request.
    pub fn heartbeat(&self, node: &str, path: &str) -> Result<Vec<u8>> {
        self.sync(node, path, |_| ())
    }

    /// The same, with whatever else it says.
    pub fn sync(&self, node: &str, path: &str, says: impl FnOnce(&mut SyncRequest)) -> Result<Vec<u8>> {
        let record = NodeRecord {
            node: node.parse()?,
            path: path.parse()?,
            certificate: hex::encode(&self.certificate),
            data_addr: "127.0.0.1:9".to_owned(),
            mesh_addr: "/ip4/127.0.0.1/udp/9/quic-v1".to_owned(),
            sequence: 1,
        };
        let key = SecretKey::from_seed(&self.seed);
        let mut request = SyncRequest {
            record: Envelope::sign(NODE_RECORD_TYPE, serde_json::to_vec(&record)?, [&key]),
            devices: Vec::new(),
            reports: Vec::new(),
            holdings: Vec::new(),
            traffic: Traffic::default(),
            banned: [].into(),
            roster_version: 0,
            permits_seen: [].into(),
            brakes: Vec::new(),
            brakes_version: 0,
            revocations_version: 0,
            audit: AuditSeen::default(),
            possession: Vec::new(),
            feeders: Vec::new(),
        };
        says(&mut request);
        let body = serde_json::to_string(&request)?;
        let head = format!(
            "POST /node/v1/sync HTTP/1.1\r\nhost: coordinator\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        Ok((head + &body).into_bytes())
    }
}

impl OtherCa {
    /// A new one.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(Issuer::new(params, key)))
    }

    /// A card with everything a member's has, but for the fleet's word.
    pub fn card(&self, node: &str, path: &str) -> Result<Card> {
        let seed = random()?;
        let mut params = request(node)?;
        params
            .subject_alt_names
            .push(SanType::URI(format!("{PATH_URI_PREFIX}{path}").try_into()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key_pair(&seed)?, &self.0)?.der().clone();
        Ok(Card { seed, certificate })
    }
}

/// TLS of these versions, with this card. Whoever answers is believed if there is no `fleet_ca` to check it with.
pub fn config(
    fleet_ca: Option<&Path>,
    card: Option<&Card>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let builder = match fleet_ca {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(&fs::read(file)?)?)?;
            builder.with_root_certificates(roots)
        }
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous(provider()))),
    };
    Ok(match card {
        Some(card) => builder.with_client_auth_cert(vec![card.certificate.clone()], card.private_key()?)?,
        None => builder.with_no_client_auth(),
    })
}

/// One request over HTTPS: the whole answer, or what the other side said instead.
pub async fn https(address: SocketAddr, tls: ClientConfig, request: Vec<u8>) -> Result<Result<String, Shut>> {
    tokio::task::spawn_blocking(move || {
        let connection = ClientConnection::new(Arc::new(tls), ServerName::from(address.ip()))?;
        let mut stream = StreamOwned::new(connection, connect(address)?);
        let sent = stream.write_all(&request);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // A whole answer may end without TLS's farewell.
        if !answer.is_empty() {
            return Ok(Ok(String::from_utf8_lossy(&answer).into_owned()));
        }
        let said = [sent.err(), read.err()].into_iter().flatten();
        let said: Vec<_> = said.map(|error| error.to_string()).collect();
        Ok(Err(format!("closed: {}", said.join("; "))))
    })
    .await?
}

/// Bytes over plain TCP, and everything that comes back before the other side closes.
pub async fn plain_tcp(address: SocketAddr, bytes: Vec<u8>) -> Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        let mut stream = connect(address)?;
        stream.write_all(&bytes)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => Ok(answer),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(answer),
            Err(error) => Err(error).context("the connection stays open"),
        }
    })
    .await?
}

/// A control stream on a node's data plane: in once the node has greeted.
pub async fn data_plane(address: SocketAddr, node: &str, tls: ClientConfig) -> Result<Result<(), Shut>> {
    let (_endpoint, connection) = match quic(address, node, tls, CONTROL_ALPN).await? {
        Ok(connected) => connected,
        Err(shut) => return Ok(Err(shut)),
    };
    let greeting = async {
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&PeerMessage::Hello { version: WIRE_VERSION }.to_frame())
            .await?;
        let mut header = [0; 4];
        recv.read_exact(&mut header).await?;
        anyhow::Ok(())
    };
    match tokio::time::timeout(WITHIN, greeting).await? {
        Ok(()) => Ok(Ok(())),
        Err(_) => Ok(Err(farewell(&connection).await?)),
    }
}

/// A TLS handshake with the control plane of the mesh that is not libp2p's: what the other side says to it.
pub async fn foreign_handshake(address: SocketAddr, tls: ClientConfig) -> Result<Shut> {
    match quic(address, "libp2p", tls, b"libp2p").await? {
        Ok((_endpoint, connection)) => farewell(&connection).await,
        Err(shut) => Ok(shut),
    }
}

/// A libp2p peer with a card's key: in once the node has identified itself to it.
pub async fn mesh(address: &Multiaddr, card: &Card) -> Result<Result<(), Shut>> {
    let keypair = libp2p::identity::Keypair::ed25519_from_bytes(card.seed)?;
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_quic()
        .with_behaviour(|key| identify::Behaviour::new(identify::Config::new("/firmesh/1".to_owned(), key.public())))
        .map_err(|error| anyhow!("{error}"))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(WITHIN))
        .build();
    swarm.dial(address.clone())?;
    let outcome = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(identify::Event::Received { .. }) => return Ok(()),
                SwarmEvent::ConnectionClosed { cause, .. } => {
                    return Err(cause.map_or_else(|| "closed".to_owned(), |cause| format!("{cause:?}")));
                }
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(format!("{error:?}")),
                _ => {}
            }
        }
    };
    tokio::time::timeout(WITHIN, outcome)
        .await
        .context("neither let in nor shut out")
}

type Connected = (quinn::Endpoint, quinn::Connection);

async fn quic(address: SocketAddr, name: &str, mut tls: ClientConfig, alpn: &[u8]) -> Result<Result<Connected, Shut>> {
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let connecting = endpoint.connect_with(config, address, name)?;
    Ok(match tokio::time::timeout(WITHIN, connecting).await? {
        Ok(connection) => Ok((endpoint, connection)),
        Err(error) => Err(error.to_string()),
    })
}

/// The last word on a connection that the other side closes.
async fn farewell(connection: &quinn::Connection) -> Result<Shut> {
    let closed = tokio::time::timeout(WITHIN, connection.closed()).await;
    Ok(closed.context("the connection stays open")?.to_string())
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    Ok(stream)
}

fn request(node: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(vec![node.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node);
    Ok(params)
}

fn key_pair(seed: &[u8; 32]) -> Result<KeyPair> {
    Ok(KeyPair::from_pem(&SecretKey::from_seed(seed).to_pem())?)
}

fn random() -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow!("no randomness: {error}"))?;
    Ok(seed)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Believes any server: a stranger does not care whom it attacks.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
