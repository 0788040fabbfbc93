//! A member of the fleet that has turned: enrolled like any node, it says it holds everything and serves lies.
//!
//! It lives in the lab because no product binary contains a way to misbehave. It speaks the real protocols, written from
//! their description: what it gets away with is what any attacker with one stolen node could.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use firmesh_node::BLOBS_ALPN;
use firmesh_protocol::{
    api::{AuditSeen, EnrolRequest, EnrolResponse, SyncRequest, SyncResponse, Traffic},
    identity::NodeIdentity,
    ids::{NodeId, TopologyPath},
    pieces::PieceSet,
    report::{NODE_RECORD_TYPE, NodeRecord},
    trust::{Envelope, SecretKey},
    wire::{CONTROL_ALPN, PeerMessage, WIRE_VERSION},
};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How it misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Manner {
    /// It asks an honest node for every slice it is asked for, and flips one bit of the answer.
    Corrupt,
    /// It says it holds everything and serves nothing.
    Liar,
}

/// Who it is and where its fleet is.
#[derive(Debug, Clone, Args)]
pub(crate) struct EvilPeerOptions {
    /// Its name in the fleet; the other nodes dial it if theirs come first in the alphabet.
    #[arg(long)]
    node: NodeId,
    /// Where it stands.
    #[arg(long)]
    path: TopologyPath,
    /// The coordinator's node listener.
    #[arg(long)]
    coordinator: String,
    /// The fleet CA's certificate.
    #[arg(long)]
    ca_file: PathBuf,
    /// Its one-time token.
    #[arg(long)]
    token_file: PathBuf,
    /// Where it listens (UDP).
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How it misbehaves.
    #[arg(long, value_enum)]
    manner: Manner,
}

/// A stolen identity.
struct Stolen {
    key: SecretKey,
    certificate: CertificateDer<'static>,
    fleet_ca: CertificateDer<'static>,
}

/// Everybody who has spoken to it, and where they can be asked. Honest, as far as it knows.
type Acquaintances = Arc<Mutex<BTreeMap<NodeId, SocketAddr>>>;

/// How a node says that it does not hold what it was asked for.
const NOT_HELD: quinn::VarInt = quinn::VarInt::from_u32(2);

/// An answer is a piece with its proof; anything longer was not asked for.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Misbehaves until `cancel`.
pub(crate) async fn run(options: EvilPeerOptions, cancel: CancellationToken) -> Result<()> {
    let stolen = Stolen::enrol(&options).await?;
    let endpoint = stolen.endpoint(options.listen)?;
    tracing::info!(node = %options.node, manner = ?options.manner, "an evil peer is at work");
    let tasks = TaskTracker::new();
    let known = Acquaintances::default();
    let heartbeat = stolen.pretend_to_live(&options, endpoint.local_addr()?);
    let misbehave = async {
        while let Some(incoming) = endpoint.accept().await {
            let (endpoint, manner, cancel) = (endpoint.clone(), options.manner, cancel.clone());
            let known = Arc::clone(&known);
            tasks.spawn(async move {
                let met = async { meet(&endpoint, incoming.await?, manner, &known).await };
                tokio::select! {
                    () = cancel.cancelled() => {}
                    met = met => if let Err(error) = met { tracing::info!(error = format!("{error:#}"), "a victim left") },
                }
            });
        }
        Ok(())
    };
    let outcome = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        outcome = heartbeat => outcome,
        outcome = misbehave => outcome,
    };
    endpoint.close(0_u32.into(), b"gone");
    cancel.cancel();
    tasks.close();
    tasks.wait().await;
    outcome
}

impl Stolen {
    async fn enrol(options: &EvilPeerOptions) -> Result<Self> {
        let ca_pem = std::fs::read_to_string(&options.ca_file)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| anyhow!("no randomness: {error}"))?;
        let key = SecretKey::from_seed(&seed);
        let mut params = rcgen::CertificateParams::new(vec![options.node.to_string()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, options.node.as_str());
        let csr_pem = params
            .serialize_request(&rcgen::KeyPair::from_pem(&key.to_pem())?)?
            .pem()?;
        let token = std::fs::read_to_string(&options.token_file)?.trim().to_owned();
        let fleet_ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())?;
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(&fleet_ca)?)
            .with_no_client_auth();
        let answer = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .build()?
            .post(format!("{}/node/v1/enrol", options.coordinator))
            .json(&EnrolRequest {
                node: options.node.clone(),
                token,
                csr_pem,
            })
            .send()
            .await?;
        ensure!(answer.status().is_success(), "not enrolled: {}", answer.text().await?);
        let answer: EnrolResponse = answer.json().await?;
        let certificate = CertificateDer::from_pem_slice(answer.certificate_pem.as_bytes())?;
        Ok(Self {
            key,
            certificate,
            fleet_ca,
        })
    }

    fn endpoint(&self, listen: SocketAddr) -> Result<quinn::Endpoint> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&self.fleet_ca)?), provider()).build()?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.clone()], self.private_key()?)?;
        server.alpn_protocols = vec![CONTROL_ALPN.to_vec(), BLOBS_ALPN.to_vec()];
        let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
        let mut endpoint = quinn::Endpoint::server(server, listen)?;
        let mut client = self.client()?;
        client.alpn_protocols = vec![BLOBS_ALPN.to_vec()];
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?)));
        Ok(endpoint)
    }

    /// Heartbeats with an impeccable record, so that it stays in everybody's roster.
    async fn pretend_to_live(&self, options: &EvilPeerOptions, data_addr: SocketAddr) -> Result<()> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(self.client()?)
            .build()?;
        let record = NodeRecord {
            node: options.node.clone(),
            path: options.path.clone(),
            certificate: hex::encode(&self.certificate),
            data_addr: data_addr.to_string(),
            mesh_addr: "/ip4/127.0.0.1/udp/9/quic-v1".to_owned(),
            sequence: 1,
        };
        let request = SyncRequest {
            record: Envelope::sign(NODE_RECORD_TYPE, serde_json::to_vec(&record)?, [&self.key]),
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
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            every.tick().await;
            let sent = client
                .post(format!("{}/node/v1/sync", options.coordinator))
                .json(&request)
                .send()
                .await;
            match sent.and_then(reqwest::Response::error_for_status) {
                Ok(answer) => drop(answer.json::<SyncResponse>().await),
                Err(error) => tracing::info!(%error, "the coordinator does not hear"),
            }
        }
    }

    fn client(&self) -> Result<rustls::ClientConfig> {
        Ok(rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots(&self.fleet_ca)?)
            .with_client_auth_cert(vec![self.certificate.clone()], self.private_key()?)?)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        Ok(PrivatePkcs8KeyDer::from_pem_slice(self.key.to_pem().as_bytes())?.into())
    }
}

/// One connection: the control stream of a victim, or its requests.
async fn meet(
    endpoint: &quinn::Endpoint,
    connection: quinn::Connection,
    manner: Manner,
    known: &Acquaintances,
) -> Result<()> {
    let identity = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let certificate = identity
        .as_deref()
        .and_then(|chain| chain.first())
        .context("no certificate")?;
    let victim = NodeIdentity::from_verified_certificate(certificate)?.node;
    known
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(victim.clone(), connection.remote_address());
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok());
    if protocol.and_then(|data| data.protocol).as_deref() == Some(CONTROL_ALPN) {
        return boast(&connection).await;
    }
    loop {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let request = recv.read_to_end(ANSWER_BYTES_MAX).await?;
        match manner {
            Manner::Liar => send.reset(NOT_HELD)?,
            Manner::Corrupt => {
                let mut others = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                others.remove(&victim);
                let mut answer = honest_answer(endpoint, others, &request).await;
                // The last bytes of an answer are content; the first ones its length and the hash tree.
                if let Some(byte) = answer.iter_mut().rev().nth(100) {
                    *byte ^= 1;
                }
                send.write_all(&answer).await?;
                send.finish()?;
            }
        }
    }
}

/// Whatever artifact the victim speaks of, this peer holds all of it, it says.
async fn boast(connection: &quinn::Connection) -> Result<()> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    send.write_all(&PeerMessage::Hello { version: WIRE_VERSION }.to_frame())
        .await?;
    loop {
        let mut header = [0; 4];
        recv.read_exact(&mut header).await?;
        let mut body = vec![0; PeerMessage::body_length(header)?];
        recv.read_exact(&mut body).await?;
        if let PeerMessage::Holds { artifact, pieces } = PeerMessage::from_body(&body)? {
            let pieces = PieceSet::full(pieces.total());
            send.write_all(&PeerMessage::Holds { artifact, pieces }.to_frame())
                .await?;
        }
    }
}

/// What somebody else answers to the request; zeros if nobody does.
async fn honest_answer(endpoint: &quinn::Endpoint, others: BTreeMap<NodeId, SocketAddr>, request: &[u8]) -> Vec<u8> {
    for (node, address) in others {
        if let Ok(answer) = ask(endpoint, &node, address, request).await {
            return answer;
        }
    }
    vec![0; 1 << 20]
}

async fn ask(endpoint: &quinn::Endpoint, node: &NodeId, address: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let connection = endpoint.connect(address, node.as_str())?.await?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(request).await?;
    send.finish()?;
    Ok(recv.read_to_end(ANSWER_BYTES_MAX).await?)
}

fn roots(fleet_ca: &CertificateDer<'static>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(fleet_ca.clone())?;
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
