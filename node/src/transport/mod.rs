//! The data plane: one QUIC endpoint, mutual TLS, two protocols told apart by ALPN.
//!
//! On `firmesh/control/1` two nodes tell each other what they hold; on the iroh-blobs ALPN one asks the other for a slice.
//! A peer is whoever the fleet CA and the roster both know. Nothing here decides whom to ask or what to believe: it
//! carries, bounds, counts and reports.
//!
//! Invariants: only members of the roster get past the handshake; a banned node is refused; requests served to one peer,
//! and the bytes of any answer, are bounded.

pub mod budget;
mod class;
mod ledbat;
mod precedence;
mod slices;
mod socket;
mod talk;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use firmesh_node_core::swarm::Audience;
use firmesh_protocol::{
    identity::NodeIdentity,
    ids::{ArtifactId, NodeId, TopologyPath},
    manifest::Priority,
    trust::PublicKey,
    wire::{CONTROL_ALPN, PeerMessage},
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    identity::{Identity, IdentityFileError},
    store::ChunkStore,
};
use budget::{Budget, Budgets};
use class::{ByClass, Class, Marking};
pub use class::{Dscp, DscpError, DscpMarks};
use precedence::Precedence;
pub use socket::{DatagramBound, DatagramBoundError, RECEIVE_BUFFER_BYTES};

/// The ALPN of slice requests: iroh-blobs' own.
pub const BLOBS_ALPN: &[u8] = iroh_blobs::ALPN;

/// Slices served to one peer at once; the requester's own bound is lower.
const STREAMS_MAX: u32 = 32;

/// How long a handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The search for the largest datagram that fits ends when it is known to so many bytes: each costs every packet.
const MTU_STEP: u16 = 8;

/// Connections one peer may have open for slices: one, and some while it loses and replaces it.
const SLICE_CONNECTIONS_MAX: usize = 4;

/// What the transport reports.
#[derive(Debug)]
pub enum TransportEvent {
    /// A peer's control stream stands.
    Up(NodeId),
    /// A peer's control stream is gone.
    Down(NodeId),
    /// A peer said something.
    Said(NodeId, PeerMessage),
    /// A peer broke the protocol.
    Misbehaved(NodeId, &'static str),
}

/// A node that may be a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it stands.
    pub path: TopologyPath,
    /// Where its data plane listens.
    pub addr: SocketAddr,
    /// The key it has now: a certificate for an earlier one opens nothing.
    pub key: PublicKey,
    /// Whether to keep a connection with it; any other member may still connect.
    pub is_neighbour: bool,
}

/// Where the data plane listens, and how much it may move.
#[derive(Debug, Clone)]
pub struct Plane {
    /// UDP.
    pub listen: SocketAddr,
    /// What may come and go; anything if empty.
    pub budgets: Vec<Budget>,
    /// The largest datagram that is taken, and tried.
    pub datagram_bytes_max: DatagramBound,
    /// How datagrams are marked.
    pub dscp: DscpMarks,
}

/// Who may be a peer.
pub type Roster = BTreeMap<NodeId, Member>;

/// Why the data plane could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address is not to be had.
    #[error("the data plane cannot listen on {listen} (UDP); is another node running there?")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// The TLS configuration has no cipher that QUIC needs.
    #[error("TLS offers no cipher suite for QUIC")]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// What was answered to a request. Not verified.
#[derive(Debug)]
pub struct Received {
    /// All of it.
    pub bytes: Bytes,
    /// How long the first byte took.
    pub waited: Duration,
}

/// A slice that did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The peer could not be reached, or broke off.
    #[error("the peer could not be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The peer ended the answer before it was whole.
    #[error("the peer does not serve the piece")]
    NotServed,
    /// The answer is longer than the piece can be.
    #[error("the peer's answer is longer than the piece can be")]
    TooLong,
}

/// The bytes of verified content this node has served, by distance.
#[derive(Debug, Default)]
pub struct Served {
    /// To peers in the same rack.
    pub to_rack: AtomicU64,
    /// To peers in other racks.
    pub to_other_racks: AtomicU64,
}

/// The data plane of one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Transport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    me: NodeId,
    rack: TopologyPath,
    endpoint: quinn::Endpoint,
    server: quinn::ServerConfig,
    control_client: quinn::ClientConfig,
    blobs_client: quinn::ClientConfig,
    store: Arc<dyn ChunkStore>,
    events: mpsc::Sender<TransportEvent>,
    peers: Mutex<Peers>,
    served: Served,
    precedence: Precedence,
    budgets: Budgets,
    datagram_bytes_max: DatagramBound,
    marking: Arc<Marking>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct Peers {
    roster: Roster,
    banned: BTreeSet<NodeId>,
    control: HashMap<NodeId, Control>,
    dialling: BTreeSet<NodeId>,
    blobs: HashMap<NodeId, quinn::Connection>,
    /// Connections on which slices are served, by peer.
    serving: HashMap<NodeId, usize>,
}

#[derive(Debug)]
struct Control {
    connection: quinn::Connection,
    outbox: mpsc::Sender<PeerMessage>,
}

impl Transport {
    /// Opens the endpoint and starts to accept peers.
    pub fn open(
        identity: &Identity,
        me: NodeId,
        path: &TopologyPath,
        Plane {
            listen,
            budgets,
            datagram_bytes_max,
            dscp,
        }: Plane,
        store: Arc<dyn ChunkStore>,
        events: mpsc::Sender<TransportEvent>,
        cancel: CancellationToken,
    ) -> Result<Self, OpenError> {
        let mut server = identity.peer_server_config()?;
        server.alpn_protocols = vec![CONTROL_ALPN.to_vec(), BLOBS_ALPN.to_vec()];
        let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
        let marking = Arc::new(Marking::new(dscp));
        let endpoint = socket::bind(listen, Arc::clone(&marking)).and_then(|socket| {
            let runtime = Arc::new(quinn::TokioRuntime);
            let config = endpoint_config(datagram_bytes_max);
            quinn::Endpoint::new_with_abstract_socket(config, Some(server.clone()), socket, runtime)
        });
        let endpoint = endpoint.map_err(|source| OpenError::Listen { listen, source })?;
        let client = |alpn: &[u8]| -> Result<quinn::ClientConfig, OpenError> {
            let mut tls = identity.client_config()?;
            tls.alpn_protocols = vec![alpn.to_vec()];
            Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
        };
        let transport = Self(Arc::new(Inner {
            me,
            rack: path.parent().unwrap_or_else(|| path.clone()),
            endpoint,
            server,
            control_client: client(CONTROL_ALPN)?,
            blobs_client: client(BLOBS_ALPN)?,
            store,
            events,
            peers: Mutex::default(),
            served: Served::default(),
            precedence: Precedence::default(),
            budgets: Budgets::new(budgets),
            datagram_bytes_max,
            marking,
            tasks: TaskTracker::new(),
            cancel,
        }));
        transport.spawn(transport.clone().accept());
        Ok(transport)
    }

    /// The address the endpoint listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }

    /// What was served so far.
    #[must_use]
    pub fn served(&self) -> &Served {
        &self.0.served
    }

    /// Says how urgent an artifact is: slices of the less urgent stand back for it.
    pub fn set_priority(&self, artifact: ArtifactId, priority: Priority) {
        self.0.precedence.set(artifact, priority);
    }

    /// Takes over the roster: connections to nodes that left are closed.
    pub fn set_roster(&self, roster: Roster) {
        let mut peers = self.peers();
        let gone: Vec<_> = peers
            .control
            .keys()
            .filter(|id| roster.get(*id).map(|now| &now.key) != peers.roster.get(*id).map(|before| &before.key))
            .cloned()
            .collect();
        for peer in gone {
            peers.close(&peer, b"not in the roster");
        }
        peers.roster = roster;
    }

    /// Connects to every neighbour that this node is the one to dial, and is not connected to: of two nodes
    /// the one with the smaller name dials.
    pub fn dial_missing(&self) {
        let mut peers = self.peers();
        let missing: Vec<_> = peers
            .roster
            .iter()
            .filter(|(id, member)| self.0.me < **id && member.is_neighbour && !peers.banned.contains(*id))
            .filter(|(id, _)| !peers.control.contains_key(*id) && !peers.dialling.contains(*id))
            .map(|(id, member)| (id.clone(), member.addr))
            .collect();
        for (peer, addr) in missing {
            peers.dialling.insert(peer.clone());
            self.spawn(self.clone().dial(peer, addr));
        }
    }

    /// Tells one peer something. A peer that does not listen is dropped.
    pub fn send(&self, peer: &NodeId, message: PeerMessage) {
        let mut peers = self.peers();
        let full = peers
            .control
            .get(peer)
            .is_some_and(|control| control.outbox.try_send(message).is_err());
        if full {
            peers.close(peer, b"not listening");
        }
    }

    /// Tells every connected peer something.
    pub fn broadcast(&self, message: &PeerMessage) {
        self.tell(Audience::Everyone, message);
    }

    /// Tells some of the connected peers something.
    pub fn tell(&self, audience: Audience, message: &PeerMessage) {
        let connected: Vec<_> = {
            let peers = self.peers();
            let in_rack = |peer: &NodeId| {
                let member = peers.roster.get(peer);
                member.and_then(|member| member.path.parent()).as_ref() == Some(&self.0.rack)
            };
            let is_told = |peer: &&NodeId| match audience {
                Audience::Everyone => true,
                Audience::Rack => in_rack(peer),
                Audience::OtherRacks => !in_rack(peer),
            };
            peers.control.keys().filter(is_told).cloned().collect()
        };
        for peer in connected {
            self.send(&peer, message.clone());
        }
    }

    /// Closes a peer's connections and refuses new ones.
    pub fn ban(&self, peer: &NodeId, reason: &str) {
        let mut peers = self.peers();
        peers.banned.insert(peer.clone());
        peers.close(peer, reason.as_bytes());
    }

    /// The number of peers with a control stream.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.peers().control.len()
    }

    /// Closes every connection and waits for the tasks to end.
    pub async fn shutdown(&self) {
        self.0.endpoint.close(0_u32.into(), b"shutting down");
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.endpoint.wait_idle().await;
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.0.cancel.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task => {}
            }
        });
    }

    async fn report(&self, event: TransportEvent) {
        // The runtime stops listening only when the node goes down.
        self.0.events.send(event).await.ok();
    }

    async fn accept(self) {
        while let Some(incoming) = self.0.endpoint.accept().await {
            let transport = self.clone();
            let mut config = self.0.server.clone();
            let peer = incoming.remote_address();
            let class = Arc::new(Class::default());
            let mut quic = transport_config(peer, self.0.datagram_bytes_max);
            quic.congestion_controller_factory(Arc::new(ByClass(Arc::clone(&class))));
            config.transport_config(Arc::new(quic));
            let connecting = match incoming.accept_with(Arc::new(config)) {
                Ok(connecting) => connecting,
                Err(error) => {
                    debug!(%error, "a handshake failed");
                    continue;
                }
            };
            self.spawn(async move {
                match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                    Ok(Ok(connection)) => transport.accepted(connection, class).await,
                    Ok(Err(error)) => debug!(%error, "a handshake failed"),
                    Err(_elapsed) => debug!("a handshake took too long"),
                }
            });
        }
    }

    async fn accepted(self, connection: quinn::Connection, class: Arc<Class>) {
        let peer = match self.member(&connection) {
            Ok(peer) => peer,
            Err(reason) => {
                debug!(remote = %connection.remote_address(), reason, "a connection was refused");
                connection.close(1_u32.into(), reason.as_bytes());
                return;
            }
        };
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
            .and_then(|data| data.protocol);
        if protocol.as_deref() == Some(BLOBS_ALPN) {
            let open = {
                let mut peers = self.peers();
                let open = peers.serving.entry(peer.clone()).or_default();
                *open += 1;
                *open
            };
            if open <= SLICE_CONNECTIONS_MAX {
                let remote = connection.remote_address();
                self.0.marking.begin(remote, Arc::clone(&class));
                self.serve(&peer, &connection, &class).await;
                self.0.marking.end(remote, &class);
                let quinn::ConnectionStats { udp_tx, path, .. } = connection.stats();
                debug!(
                    %peer, sent_bytes = udp_tx.bytes, sent = udp_tx.datagrams, sends = udp_tx.ios,
                    lost = path.lost_packets, lost_bytes = path.lost_bytes, mtu = path.current_mtu,
                    congested = path.congestion_events, "a peer's slices were served"
                );
            }
            connection.close(1_u32.into(), b"done");
            if let Some(open) = self.peers().serving.get_mut(&peer) {
                *open -= 1;
            }
        } else {
            match tokio::time::timeout(CONNECT_TIMEOUT, connection.accept_bi()).await {
                Ok(Ok((send, recv))) => self.talk(peer, connection, send, recv).await,
                _ => debug!(%peer, "no control stream was opened"),
            }
        }
    }

    /// Whom the other side's certificate speaks for, if the roster knows it and it is not banned.
    fn member(&self, connection: &quinn::Connection) -> Result<NodeId, &'static str> {
        let identity = identity_of(connection)?;
        self.listed(&identity)?;
        Ok(identity.node)
    }

    fn listed(&self, identity: &NodeIdentity) -> Result<(), &'static str> {
        let peers = self.peers();
        let listed = peers
            .roster
            .get(&identity.node)
            .is_some_and(|member| member.path == identity.path && member.key == identity.key);
        match (listed, peers.banned.contains(&identity.node)) {
            (_, true) => Err("banned"),
            (false, _) => Err("not in the roster"),
            (true, false) => Ok(()),
        }
    }

    async fn connect(
        &self,
        peer: &NodeId,
        addr: SocketAddr,
        mut config: quinn::ClientConfig,
    ) -> Result<quinn::Connection, Box<dyn std::error::Error + Send + Sync>> {
        config.transport_config(Arc::new(transport_config(addr, self.0.datagram_bytes_max)));
        let connecting = self.0.endpoint.connect_with(config, addr, peer.as_str())?;
        let connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
        match self.member(&connection) {
            Ok(member) if member == *peer => Ok(connection),
            Ok(_) => Err("another node answered".into()),
            Err(reason) => {
                connection.close(1_u32.into(), reason.as_bytes());
                Err(reason.into())
            }
        }
    }

    async fn dial(self, peer: NodeId, addr: SocketAddr) {
        let connected = self.connect(&peer, addr, self.0.control_client.clone()).await;
        let opened = match connected {
            Ok(connection) => connection
                .open_bi()
                .await
                .map(|streams| (connection, streams))
                .map_err(Into::into),
            Err(error) => Err(error),
        };
        self.peers().dialling.remove(&peer);
        match opened {
            Ok((connection, (send, recv))) => self.talk(peer, connection, send, recv).await,
            Err(error) => debug!(%peer, %addr, %error, "a peer could not be reached"),
        }
    }
}

impl Peers {
    fn close(&mut self, peer: &NodeId, reason: &[u8]) {
        if let Some(control) = self.control.get(peer) {
            control.connection.close(1_u32.into(), reason);
        }
        if let Some(connection) = self.blobs.remove(peer) {
            connection.close(1_u32.into(), reason);
        }
    }
}

/// Whom the other side's certificate, which the handshake has verified, speaks for.
fn identity_of(connection: &quinn::Connection) -> Result<NodeIdentity, &'static str> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| {
            identity
                .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
                .ok()
        })
        .ok_or("no certificate")?;
    let certificate = certificates.first().ok_or("no certificate")?;
    NodeIdentity::from_verified_certificate(certificate).map_err(|_| "not a node's certificate")
}

/// What the data plane's endpoint tells its peers: also for whoever measures against it. Nobody sends more than the other
/// side says it takes, which is 1,472 bytes unless it says otherwise.
#[must_use]
pub fn endpoint_config(datagram_bytes_max: DatagramBound) -> quinn::EndpointConfig {
    let mut config = quinn::EndpointConfig::default();
    config
        .max_udp_payload_size(datagram_bytes_max.bytes())
        .expect("QUIC takes every size from 1,200 bytes");
    config
}

/// QUIC as the data plane has it towards `peer`: also for whoever measures against it.
#[must_use]
pub fn transport_config(peer: SocketAddr, datagram_bytes_max: DatagramBound) -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(datagram_bytes_max.towards(peer))
        .minimum_change(MTU_STEP);
    // Every other packet acknowledged costs the way back 2 % of what the way there carries, and every acknowledgement as
    // much work as a burst of data.
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(30_u32.into());
    config
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window((4_u32 << 20).into())
        .receive_window((16_u32 << 20).into())
        .send_window(16 << 20)
        // The piece that was asked for first is whole first, and can be passed on, instead of all at the same time.
        .send_fairness(false)
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .max_idle_timeout(Some(quinn::IdleTimeout::from(quinn::VarInt::from_u32(6_000))))
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks));
    config
}

#[cfg(test)]
mod tests;
