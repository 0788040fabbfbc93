//! The control plane of the mesh: who is here, and news that must reach everybody with or without a coordinator.
//!
//! libp2p over QUIC: identify, mDNS inside a site, Kademlia across sites, gossipsub. It carries node records and permits,
//! never bulk. Only peers whose key the fleet CA certified may connect (the allow list), every message is signed by its
//! author (strict mode), and none is passed on before the runtime has judged it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{limits::ENVELOPE_BYTES_MAX, trust::PublicKey};
use futures_util::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, TransportError, allow_block_list,
    gossipsub::{self, IdentTopic, MessageAcceptance, MessageId},
    identify, identity, kad, mdns,
    multiaddr::Protocol,
    swarm::{NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// What the mesh carries, each in a topic of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Signed node records: who is here and how to reach them.
    Records,
    /// Signed permits.
    Permits,
    /// Signed checkpoints of the audit log.
    Checkpoints,
    /// Signed evidence for gates.
    Evidence,
    /// Signed brakes.
    Brakes,
    /// The signed list of revoked keys.
    Revocations,
    /// Which traces campaigns belong to. Hints that nobody signs but the node that passes them on.
    Traces,
}

impl Topic {
    const ALL: [Self; 7] = [
        Self::Records,
        Self::Permits,
        Self::Checkpoints,
        Self::Evidence,
        Self::Brakes,
        Self::Revocations,
        Self::Traces,
    ];

    fn ident(self) -> IdentTopic {
        IdentTopic::new(match self {
            Self::Records => "firmesh/records/1",
            Self::Permits => "firmesh/permits/1",
            Self::Checkpoints => "firmesh/checkpoints/1",
            Self::Evidence => "firmesh/evidence/1",
            Self::Brakes => "firmesh/brakes/1",
            Self::Revocations => "firmesh/revocations/1",
            Self::Traces => "firmesh/traces/1",
        })
    }
}

/// A message that waits for the runtime's judgement.
#[derive(Debug)]
pub struct Gossip {
    /// Its topic.
    pub topic: Topic,
    /// Its bytes: an envelope or a note, not verified yet.
    pub payload: Vec<u8>,
    /// Whether to pass it on.
    pub verdict: oneshot::Sender<bool>,
}

/// What the runtime tells the mesh.
#[derive(Debug)]
pub enum MeshCommand {
    /// The members now: their keys, and where those listen that a connection is kept with.
    Members(BTreeMap<PeerId, Option<Multiaddr>>),
    /// Tell everybody.
    Publish(Topic, Vec<u8>),
}

/// Why the control plane could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A multiaddress is malformed.
    #[error("{field}: {text:?} is not a multiaddress such as /ip4/127.0.0.1/udp/9000/quic-v1")]
    Address {
        /// The setting.
        field: &'static str,
        /// What was written.
        text: String,
        /// Why not.
        source: libp2p::multiaddr::Error,
    },
    /// The address is not to be had.
    #[error("the mesh cannot listen on {listen}; is another node running there?")]
    Listen {
        /// The address.
        listen: Multiaddr,
        /// Why not.
        source: TransportError<std::io::Error>,
    },
    /// It did not begin to listen in time, or ended before.
    #[error("the mesh did not begin to listen on {0}")]
    NotListening(Multiaddr),
    /// A behaviour cannot be set up.
    #[error("the mesh cannot be set up: {0}")]
    Setup(String),
}

/// A control plane that listens.
#[derive(Debug)]
pub struct Mesh {
    /// Where it listens, its peer id included.
    pub address: Multiaddr,
    /// What the runtime tells it.
    pub commands: mpsc::Sender<MeshCommand>,
    /// What it hears.
    pub gossip: mpsc::Receiver<Gossip>,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    allowed: allow_block_list::Behaviour<allow_block_list::AllowedPeers>,
    identify: identify::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    kad: kad::Behaviour<kad::store::MemoryStore>,
    gossip: gossipsub::Behaviour,
}

/// The longest message: a permit may name many devices, evidence holds a hundred reports.
pub(crate) const GOSSIP_BYTES_MAX: usize = 256 << 10;
const _: () = assert!(GOSSIP_BYTES_MAX <= ENVELOPE_BYTES_MAX);

/// How often members that are not connected are dialled again.
const REDIAL: Duration = Duration::from_secs(2);

/// The peer id that belongs to a node's key.
#[must_use]
pub fn peer_id(key: &PublicKey) -> Option<PeerId> {
    let key = identity::ed25519::PublicKey::try_from_bytes(key.as_bytes()).ok()?;
    Some(identity::PublicKey::from(key).to_peer_id())
}

/// Opens the control plane; its task runs until `cancel`.
pub async fn open(
    keypair: identity::Keypair,
    listen: &str,
    seeds: &[String],
    use_mdns: bool,
    cancel: CancellationToken,
) -> Result<(Mesh, tokio::task::JoinHandle<()>), OpenError> {
    let listen = address("mesh.listen", listen)?;
    let seeds = seeds
        .iter()
        .map(|seed| address("mesh.seeds", seed))
        .collect::<Result<Vec<_>, _>>()?;
    let mut swarm = build(keypair, use_mdns)?;
    swarm.listen_on(listen.clone()).map_err(|source| OpenError::Listen {
        listen: listen.clone(),
        source,
    })?;
    let first = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => return Some(address),
                SwarmEvent::ListenerClosed { .. } | SwarmEvent::ListenerError { .. } => return None,
                _ => {}
            }
        }
    };
    let listening = tokio::time::timeout(Duration::from_secs(5), first).await.ok().flatten();
    let address = listening
        .ok_or_else(|| OpenError::NotListening(listen))?
        .with(Protocol::P2p(*swarm.local_peer_id()));
    let (commands, command_rx) = mpsc::channel(64);
    let (gossip_tx, gossip) = mpsc::channel(64);
    let task = MeshTask {
        swarm,
        seeds,
        members: BTreeMap::new(),
        gossip: gossip_tx,
        unsent: BTreeSet::new(),
    };
    let handle = tokio::spawn(task.run(command_rx, cancel));
    Ok((
        Mesh {
            address,
            commands,
            gossip,
        },
        handle,
    ))
}

fn address(field: &'static str, text: &str) -> Result<Multiaddr, OpenError> {
    text.parse().map_err(|source| OpenError::Address {
        field,
        text: text.to_owned(),
        source,
    })
}

fn build(keypair: identity::Keypair, use_mdns: bool) -> Result<Swarm<Behaviour>, OpenError> {
    let setup = |error: String| OpenError::Setup(error);
    let config = gossipsub::ConfigBuilder::default()
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(GOSSIP_BYTES_MAX)
        .heartbeat_interval(Duration::from_millis(500))
        .build()
        .map_err(|error| setup(error.to_string()))?;
    let signed = gossipsub::MessageAuthenticity::Signed(keypair.clone());
    let mut gossip = gossipsub::Behaviour::new(signed, config).map_err(|error| setup(error.to_owned()))?;
    for topic in Topic::ALL {
        gossip
            .subscribe(&topic.ident())
            .map_err(|error| setup(error.to_string()))?;
    }
    let me = keypair.public().to_peer_id();
    let mdns = use_mdns
        .then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), me))
        .transpose()
        .map_err(|error| setup(error.to_string()))?;
    let behaviour = Behaviour {
        allowed: allow_block_list::Behaviour::default(),
        identify: identify::Behaviour::new(identify::Config::new("/firmesh/1".to_owned(), keypair.public())),
        mdns: mdns.into(),
        kad: kad::Behaviour::new(me, kad::store::MemoryStore::new(me)),
        gossip,
    };
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| behaviour)
        .map_err(|error| setup(error.to_string()))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    Ok(swarm)
}

struct MeshTask {
    swarm: Swarm<Behaviour>,
    seeds: Vec<Multiaddr>,
    members: BTreeMap<PeerId, Option<Multiaddr>>,
    gossip: mpsc::Sender<Gossip>,
    /// Messages that nobody was there to hear; said again when somebody is.
    unsent: BTreeSet<(Topic, Vec<u8>)>,
}

/// More than this many unsent messages are not worth keeping: the coordinator's roster says the same.
const UNSENT_MAX: usize = 256;

/// A verdict the runtime has given, to be passed to gossipsub.
type Verdict = (MessageId, PeerId, bool);

impl MeshTask {
    async fn run(mut self, mut commands: mpsc::Receiver<MeshCommand>, cancel: CancellationToken) {
        let (verdict_tx, mut verdicts) = mpsc::channel::<Verdict>(64);
        let mut redial = tokio::time::interval(REDIAL);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                event = self.swarm.select_next_some() => self.on_event(event, &verdict_tx),
                Some(command) = commands.recv() => self.on_command(command),
                Some((id, from, accept)) = verdicts.recv() => self.judge(&id, &from, accept),
                _ = redial.tick() => self.dial_missing(),
            }
        }
    }

    fn on_command(&mut self, command: MeshCommand) {
        match command {
            MeshCommand::Members(members) => {
                let me = *self.swarm.local_peer_id();
                let behaviour = self.swarm.behaviour_mut();
                for gone in self.members.keys().filter(|peer| !members.contains_key(*peer)) {
                    behaviour.allowed.disallow_peer(*gone);
                }
                for (peer, address) in members.iter().filter(|(peer, _)| **peer != me) {
                    behaviour.allowed.allow_peer(*peer);
                    if let Some(address) = address {
                        behaviour.kad.add_address(peer, address.clone());
                    }
                }
                self.members = members;
                self.dial_missing();
            }
            MeshCommand::Publish(topic, payload) => self.publish(topic, payload),
        }
    }

    fn publish(&mut self, topic: Topic, payload: Vec<u8>) {
        match self
            .swarm
            .behaviour_mut()
            .gossip
            .publish(topic.ident(), payload.clone())
        {
            Ok(_) | Err(gossipsub::PublishError::Duplicate) => {}
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) if self.unsent.len() < UNSENT_MAX => {
                self.unsent.insert((topic, payload));
            }
            Err(error) => debug!(%error, "a message was not published"),
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>, verdicts: &mpsc::Sender<Verdict>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    if self.members.contains_key(&peer) {
                        self.swarm.behaviour_mut().kad.add_address(&peer, address);
                    }
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. })) => {
                for (topic, payload) in std::mem::take(&mut self.unsent) {
                    self.publish(topic, payload);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            })) => {
                let topic = Topic::ALL
                    .into_iter()
                    .find(|topic| topic.ident().hash() == message.topic);
                let Some(topic) = topic else { return };
                let (verdict, answer) = oneshot::channel();
                let gossip = Gossip {
                    topic,
                    payload: message.data,
                    verdict,
                };
                // A full queue means the runtime is behind: the message is ignored here and comes by other ways.
                if self.gossip.try_send(gossip).is_err() {
                    self.judge(&message_id, &propagation_source, false);
                    return;
                }
                let verdicts = verdicts.clone();
                tokio::spawn(async move {
                    let accept = answer.await.unwrap_or(false);
                    verdicts.send((message_id, propagation_source, accept)).await.ok();
                });
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "the mesh listener has a problem"),
            _ => {}
        }
    }

    fn judge(&mut self, id: &MessageId, from: &PeerId, accept: bool) {
        let acceptance = if accept {
            MessageAcceptance::Accept
        } else {
            MessageAcceptance::Ignore
        };
        self.swarm
            .behaviour_mut()
            .gossip
            .report_message_validation_result(id, from, acceptance);
    }

    fn dial_missing(&mut self) {
        let me = *self.swarm.local_peer_id();
        for (peer, address) in &self.members {
            if let Some(address) = address
                && *peer > me
                && !self.swarm.is_connected(peer)
            {
                self.swarm.dial(address.clone()).ok(); // the outcome comes as an event; the next round tries again
            }
        }
        if self.swarm.connected_peers().next().is_none() {
            for seed in &self.seeds {
                self.swarm.dial(seed.clone()).ok(); // as above
            }
        }
    }
}
