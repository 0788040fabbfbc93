//! The data plane: one QUIC endpoint, mutual TLS, two protocols told apart by ALPN.
//!
//! On `firmesh/control/1` two nodes tell each other what they hold; on the iroh-blobs ALPN one asks the other for a slice.
//! A peer is whoever the fleet CA and the roster both know. Nothing here decides whom to ask or what to believe: it
//! carries, bounds, counts and reports.
//!
//! Invariants: only members of the roster get past the handshake; a banned node is refused; requests served to one peer,
//! and the bytes of any answer, are bounded.

pub mod budget;
mod precedence;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use firmesh_node_core::swarm::Audience;
use firmesh_protocol::{
    chunk::{ChunkRanges, ENCODED_PIECE_BYTES_MAX, PieceLayout, SLICE_BYTES_MAX},
    groups::Groups,
    identity::NodeIdentity,
    ids::{ArtifactId, NodeId, TopologyPath},
    manifest::Priority,
    time::WallTime,
    trust::PublicKey,
    wire::{CONTROL_ALPN, PeerMessage, WIRE_VERSION},
};
use futures_util::{StreamExt as _, stream};
use iroh_blobs::protocol::{GetRequest, Request};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    identity::{Identity, IdentityFileError},
    store::ChunkStore,
};
use budget::{Budget, Budgets, Scope, Way};
use precedence::Precedence;

/// The ALPN of slice requests: iroh-blobs' own.
pub const BLOBS_ALPN: &[u8] = iroh_blobs::ALPN;

/// A request names one hash and one range: far less than this.
const REQUEST_BYTES_MAX: usize = 4 << 10;

/// Slices served to one peer at once; the requester's own bound is lower.
const STREAMS_MAX: u32 = 32;

/// Messages waiting for one peer before it counts as not listening and is dropped: many seconds' worth.
const OUTBOX_MAX: usize = 4_096;

/// How long a handshake may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The peer does not hold what was asked for.
const RESET_NOT_HELD: quinn::VarInt = quinn::VarInt::from_u32(2);

/// The peer could not serve, for reasons of its own.
const RESET_TROUBLE: quinn::VarInt = quinn::VarInt::from_u32(3);

/// The search for the largest datagram that fits ends when it is known to so many bytes: each costs every packet.
const MTU_STEP: u16 = 8;

/// Bytes that go at once under a budget.
const PAID_BYTES: usize = 16 << 10;

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
}

/// Where the data plane listens, and how much it may move.
#[derive(Debug, Clone)]
pub struct Plane {
    /// UDP.
    pub listen: SocketAddr,
    /// What may come and go; anything if empty.
    pub budgets: Vec<Budget>,
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
        Plane { listen, budgets }: Plane,
        store: Arc<dyn ChunkStore>,
        events: mpsc::Sender<TransportEvent>,
        cancel: CancellationToken,
    ) -> Result<Self, OpenError> {
        let mut server = identity.peer_server_config()?;
        server.alpn_protocols = vec![CONTROL_ALPN.to_vec(), BLOBS_ALPN.to_vec()];
        let server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
        let endpoint = socket::bind(listen).and_then(|socket| {
            let runtime = Arc::new(quinn::TokioRuntime);
            let config = quinn::EndpointConfig::default();
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

    /// Connects to every member of the roster that this node is the one to dial, and is not connected to: of two nodes
    /// the one with the smaller name dials.
    pub fn dial_missing(&self) {
        let mut peers = self.peers();
        let missing: Vec<_> = peers
            .roster
            .iter()
            .filter(|(id, _)| self.0.me < **id && !peers.banned.contains(*id))
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

    /// Waits until the budgets let a piece in from a peer, or from the origin if there is none.
    pub async fn await_budget(&self, from: Option<&NodeId>, bytes: usize) {
        self.pay(Way::In, from, bytes).await;
    }

    async fn pay(&self, way: Way, peer: Option<&NodeId>, bytes: usize) {
        if self.0.budgets.are_none() {
            return;
        }
        let wait = {
            let peers = self.peers();
            let scope_of = |id: &NodeId| {
                peers
                    .roster
                    .get(id)
                    .map_or(Scope::Site, |member| self.0.shared_with(&member.path))
            };
            let widest = peer.map_or(Scope::Site, scope_of);
            // This node, and those of the same rack or site that are there.
            let sharers = |scope| {
                let inside = |id: &&NodeId| match scope {
                    Scope::Node => false,
                    Scope::Rack => scope_of(id) == Scope::Node,
                    Scope::Site => scope_of(id) <= Scope::Rack,
                };
                1 + peers.control.keys().filter(inside).count()
            };
            let now = (tokio::time::Instant::now(), wall_time());
            self.0.budgets.pay(way, widest, bytes, sharers, now)
        };
        tokio::time::sleep(wait).await;
    }

    /// Asks a peer for a piece; the answer is not verified yet.
    pub async fn fetch(
        &self,
        peer: &NodeId,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
    ) -> Result<Bytes, FetchError> {
        self.fetch_chunks(peer, artifact, layout.chunks(piece)).await
    }

    /// Asks a peer for some chunk groups of a piece; the answer is not verified yet.
    pub async fn fetch_groups(
        &self,
        peer: &NodeId,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
        groups: Groups,
    ) -> Result<Bytes, FetchError> {
        self.fetch_chunks(peer, artifact, groups.chunks(layout, piece)).await
    }

    async fn fetch_chunks(
        &self,
        peer: &NodeId,
        artifact: ArtifactId,
        chunks: ChunkRanges,
    ) -> Result<Bytes, FetchError> {
        let unreachable = |error: Box<dyn std::error::Error + Send + Sync>| FetchError::Unreachable(error);
        let connection = self.blobs_connection(peer).await.map_err(unreachable)?;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| unreachable(error.into()))?;
        let hash = iroh_blobs::Hash::from_bytes(*artifact.as_bytes());
        let request = Request::Get(GetRequest::blob_ranges(hash, chunks));
        let request = postcard::to_allocvec(&request).map_err(|error| unreachable(error.into()))?;
        send.write_all(&request)
            .await
            .map_err(|error| unreachable(error.into()))?;
        send.finish().map_err(|error| unreachable(error.into()))?;
        let mut answer = BytesMut::with_capacity(ENCODED_PIECE_BYTES_MAX);
        loop {
            match recv.read_chunk(ENCODED_PIECE_BYTES_MAX, true).await {
                Ok(Some(chunk)) if answer.len() + chunk.bytes.len() > ENCODED_PIECE_BYTES_MAX => {
                    return Err(FetchError::TooLong);
                }
                Ok(Some(chunk)) => answer.extend_from_slice(&chunk.bytes),
                Ok(None) => return Ok(answer.freeze()),
                Err(quinn::ReadError::Reset(RESET_NOT_HELD)) => return Err(FetchError::NotServed),
                Err(error) => return Err(unreachable(error.into())),
            }
        }
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
            config.transport_config(transport_config(incoming.remote_address()));
            let connecting = match incoming.accept_with(Arc::new(config)) {
                Ok(connecting) => connecting,
                Err(error) => {
                    debug!(%error, "a handshake failed");
                    continue;
                }
            };
            self.spawn(async move {
                match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                    Ok(Ok(connection)) => transport.accepted(connection).await,
                    Ok(Err(error)) => debug!(%error, "a handshake failed"),
                    Err(_elapsed) => debug!("a handshake took too long"),
                }
            });
        }
    }

    async fn accepted(self, connection: quinn::Connection) {
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
                self.serve(&peer, &connection).await;
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
        config.transport_config(transport_config(addr));
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

    /// Carries messages both ways until one side ends it.
    async fn talk(
        self,
        peer: NodeId,
        connection: quinn::Connection,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let (outbox, mut messages) = mpsc::channel(OUTBOX_MAX);
        let control = Control {
            connection: connection.clone(),
            outbox,
        };
        let replaced = self.peers().control.insert(peer.clone(), control);
        if let Some(old) = replaced {
            old.connection.close(0_u32.into(), b"replaced by a newer connection");
        }
        let hello = PeerMessage::Hello { version: WIRE_VERSION }.to_frame();
        let greeted = send.write_all(&hello).await.is_ok();
        if greeted {
            self.report(TransportEvent::Up(peer.clone())).await;
            let sending = async {
                while let Some(message) = messages.recv().await {
                    if send.write_all(&message.to_frame()).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = sending => {}
                () = self.listen(&peer, &mut recv) => {}
            }
        }
        connection.close(0_u32.into(), b"done");
        let was_current = {
            let mut peers = self.peers();
            let current = peers
                .control
                .get(&peer)
                .is_some_and(|control| control.connection.stable_id() == connection.stable_id());
            if current {
                peers.control.remove(&peer);
                peers.blobs.remove(&peer);
            }
            current
        };
        if was_current {
            self.report(TransportEvent::Down(peer)).await;
        }
    }

    async fn listen(&self, peer: &NodeId, recv: &mut quinn::RecvStream) {
        let mut greeted = false;
        loop {
            let message = match read_frame(recv).await {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(reason) => {
                    self.report(TransportEvent::Misbehaved(peer.clone(), reason)).await;
                    return;
                }
            };
            match (greeted, &message) {
                (false, PeerMessage::Hello { .. }) => greeted = true,
                (true, PeerMessage::Hello { .. }) | (false, _) => {
                    let reason = "sent a message out of turn";
                    self.report(TransportEvent::Misbehaved(peer.clone(), reason)).await;
                    return;
                }
                (true, _) => {
                    self.report(TransportEvent::Said(peer.clone(), message)).await;
                }
            }
        }
    }

    /// Answers slice requests until the peer goes.
    async fn serve(&self, peer: &NodeId, connection: &quinn::Connection) {
        let Ok(identity) = identity_of(connection) else {
            return;
        };
        while let Ok((send, recv)) = connection.accept_bi().await {
            // Whoever was revoked or banned since the handshake is served no more.
            if let Err(reason) = self.listed(&identity) {
                connection.close(1_u32.into(), reason.as_bytes());
                return;
            }
            let (transport, peer) = (self.clone(), peer.clone());
            // Not ended by `cancel`: a half answer that ends in order would look like a lie. Closing the endpoint ends it.
            self.0.tasks.spawn(async move {
                let mut send = send;
                if let Err(error) = transport.serve_slice(&peer, &mut send, recv).await {
                    // A stream that is dropped ends in order, and a half answer that does looks like a lie.
                    send.reset(RESET_TROUBLE).ok(); // it may have been reset for a better reason already
                    debug!(%peer, %error, "a slice was not served");
                }
            });
        }
    }

    async fn serve_slice(
        &self,
        peer: &NodeId,
        send: &mut quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let request = recv.read_to_end(REQUEST_BYTES_MAX).await?;
        let Request::Get(request) = postcard::from_bytes::<Request>(&request)? else {
            send.reset(1_u32.into())?;
            return Err("only get requests are served".into());
        };
        let Some(wanted) = Wanted::of(&request) else {
            send.reset(1_u32.into())?;
            return Err("only one bounded range of one artifact, or groups of one piece, are served".into());
        };
        let their_rack = self.peers().roster.get(peer).and_then(|member| member.path.parent());
        let same_rack = their_rack.as_ref() == Some(&self.0.rack);
        let counter = if same_rack {
            &self.0.served.to_rack
        } else {
            &self.0.served.to_other_racks
        };
        let artifact = ArtifactId::from(*request.hash.as_bytes());
        let _turn = self.0.precedence.turn(artifact).await;
        let mut slice = match wanted {
            Wanted::Range(range) => self.0.store.slice(artifact, range),
            Wanted::Groups(piece, groups) => stream::once(self.0.store.groups(artifact, piece, groups)).boxed(),
        };
        while let Some(part) = slice.next().await {
            match part {
                Ok(mut part) => {
                    counter.fetch_add(part.len() as u64, Ordering::Relaxed);
                    while !part.is_empty() {
                        let next = match self.0.budgets.are_none() {
                            true => part.len(),
                            false => PAID_BYTES.min(part.len()),
                        };
                        self.pay(Way::Out, Some(peer), next).await;
                        send.write_chunk(part.split_to(next)).await?;
                    }
                }
                Err(error) => {
                    // "Not held" is a lie if it was announced; "in trouble" is not.
                    let unknown = error.kind() == io::ErrorKind::NotFound;
                    send.reset(if unknown { RESET_NOT_HELD } else { RESET_TROUBLE })?;
                    return Err(error.into());
                }
            }
        }
        send.finish()?;
        Ok(())
    }

    async fn blobs_connection(
        &self,
        peer: &NodeId,
    ) -> Result<quinn::Connection, Box<dyn std::error::Error + Send + Sync>> {
        let addr = {
            let mut peers = self.peers();
            match peers.blobs.get(peer) {
                Some(connection) if connection.close_reason().is_none() => return Ok(connection.clone()),
                _ => peers.blobs.remove(peer),
            };
            if peers.banned.contains(peer) {
                return Err("banned".into());
            }
            peers
                .roster
                .get(peer)
                .map(|member| member.addr)
                .ok_or("not in the roster")?
        };
        let connection = self.connect(peer, addr, self.0.blobs_client.clone()).await?;
        let mut peers = self.peers();
        // Two requests may have dialled at once: the first one's connection stays.
        let kept = peers.blobs.entry(peer.clone()).or_insert(connection);
        Ok(kept.clone())
    }
}

impl Inner {
    /// The widest boundary between this node and one that stands at `path`.
    fn shared_with(&self, path: &TopologyPath) -> Scope {
        let rack = path.parent();
        match rack.as_ref() == Some(&self.rack) {
            true => Scope::Node,
            false if rack.and_then(|rack| rack.parent()) == self.rack.parent() => Scope::Rack,
            false => Scope::Site,
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

async fn read_frame(recv: &mut quinn::RecvStream) -> Result<Option<PeerMessage>, &'static str> {
    let mut header = [0; 4];
    if recv.read_exact(&mut header).await.is_err() {
        return Ok(None);
    }
    let length = PeerMessage::body_length(header).map_err(|_| "announced a frame that is too long")?;
    let mut body = vec![0; length];
    if recv.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    let message = PeerMessage::from_body(&body).map_err(|error| {
        warn!(%error, "a frame was refused");
        "sent a frame that is not a message of this version"
    })?;
    Ok(Some(message))
}

/// What a request asks for.
enum Wanted {
    Range(std::ops::Range<u64>),
    Groups(u32, Groups),
}

impl Wanted {
    /// One bounded range of one artifact, or groups here and there in one piece; `None` for anything else.
    fn of(request: &GetRequest) -> Option<Self> {
        let (0, chunks) = request.ranges.as_single()? else {
            return None;
        };
        let [start, end] = chunks.boundaries() else {
            return Groups::of_chunks(chunks).map(|(piece, groups)| Self::Groups(piece, groups));
        };
        let (start, end) = (start.0.checked_mul(1024)?, end.0.checked_mul(1024)?);
        (start < end && end - start <= SLICE_BYTES_MAX).then_some(Self::Range(start..end))
    }
}

fn wall_time() -> WallTime {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    WallTime::from_unix_seconds(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX))
}

fn transport_config(peer: SocketAddr) -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(socket::datagram_bound(peer)).minimum_change(MTU_STEP);
    // Every other packet acknowledged costs the way back 2 % of what the way there carries.
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(10_u32.into());
    config
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window((4_u32 << 20).into())
        .receive_window((16_u32 << 20).into())
        .send_window(16 << 20)
        .keep_alive_interval(Some(Duration::from_secs(2)))
        .max_idle_timeout(Some(quinn::IdleTimeout::from(quinn::VarInt::from_u32(6_000))))
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks));
    Arc::new(config)
}

#[cfg(test)]
mod tests;
