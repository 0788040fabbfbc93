//! The mesh in virtual time: the swarm core of every node, as it runs in production, over links whose bytes are a fluid.
//!
//! It shows what scheduling makes of a network, apart from what transport and processors add: the same topologies and
//! faults as the lab's bench, the same ratios, in seconds and the same at every run.
//!
//! Invariants: the same topology, day and seed give the same [`Summary`]; an honest node serves nothing that it does not
//! hold; a word that would cross a cut link is lost; every [`Promise`] is judged after every event.

mod books;
mod fault;
mod fluid;
mod hunt;
mod matter;
mod member;
mod origin;
mod summary;
#[cfg(test)]
mod tests;
mod topology;
mod trouble;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    time::Duration,
};

use firmesh_node_core::swarm::{Audience, FetchFailure, FetchId, Input, Output, Source, Swarm, Tuning};
use firmesh_protocol::{
    chunk::PieceLayout,
    ids::{ArtifactId, NodeId, TopologyPath},
    pieces::PieceSet,
    time::Timestamp,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use books::Books;
pub use books::{Broken, Promise};
pub use fault::{CUT, Fault, ORIGIN_PERCENT};
pub use firmesh_coordinator_core::TURNS;
use fluid::{FlowId, Fluid, LinkId};
pub use hunt::{Case, Finding, Hunt, Total, hunt};
use matter::{Bytes, Matter};
use origin::Line;
pub use summary::Summary;
pub use topology::{Topology, TopologyArgs};
use trouble::Chance;
pub use trouble::{Adversity, Lie, Trouble};

/// From node to node.
const LATENCY: Duration = Duration::from_millis(1);
/// From the origin to a node.
const ORIGIN_LATENCY: Duration = Duration::from_millis(10);
/// Until a piece is verified and durable.
const DISK: Duration = Duration::from_millis(3);
/// Nodes hear of a campaign within this.
const HEARD_WITHIN_MS: u64 = 100;
/// Until a process that was started takes part.
const START: Duration = Duration::from_secs(1);
/// Until the end of a connection is noticed whose other side is silent.
const SILENCE: Duration = Duration::from_secs(6);
/// Bytes on the wire per byte of an image: headers of QUIC and UDP, and the hash tree.
const WIRE: f64 = 1.058;
/// In the place of a node's number, for the origin.
const ORIGIN: usize = usize::MAX;

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub struct Day {
    /// With the network as a whole, when a transfer is half done.
    pub fault: Option<Fault>,
    /// With single nodes and connections.
    pub troubles: Vec<Trouble>,
    /// Whether real bytes are sent, hashed and read back. It needs an image in memory per node.
    pub is_real: bool,
}

/// Something that happens at a moment that is known before.
#[derive(Debug, Clone)]
enum Event {
    /// A node is told something, if it still lives the life in which it was to be told.
    Told(usize, u32, Input),
    /// A request arrives where it is to be answered.
    Asked(usize, u32, FetchId),
    /// A piece is durable at the node that asked for it.
    Durable(usize, u32, FetchId),
    /// A node hears of the campaign.
    Heard(usize, u32),
    /// A process begins, knowing what its disk holds.
    Started(usize),
    /// Two nodes have connected.
    Met(usize, usize),
    /// A node notices that another, in that life, is silent.
    Missed(usize, usize, u32),
    /// The cut uplink is mended.
    Mended,
    /// A node's process is killed, and started again after a while.
    Crash(usize, Option<Duration>),
    /// A transfer between nodes breaks off if it still lasts.
    BrokenOff(FlowId),
    /// A liar says something again.
    Repeats(usize, u32),
    /// A turn at the origin has had its time.
    TurnDue,
}

/// One request of a node.
#[derive(Debug)]
struct Fetch {
    source: Source,
    piece: u32,
    flow: Option<FlowId>,
    /// What came and is being written; empty where bytes are not real.
    written: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    path: TopologyPath,
    rack: usize,
    up: LinkId,
    down: LinkId,
    /// If it lies, how.
    lie: Option<Lie>,
    /// A link that a liar slows its uploads with.
    drip: Option<LinkId>,
    is_late: bool,
    is_dead: bool,
    /// The process, if it runs.
    swarm: Option<Swarm>,
    /// Counts the process's starts and ends: what was meant for an earlier life is lost.
    life: u32,
    /// What it goes by: pieces verified and durable, or what a liar claims.
    held: PieceSet,
    /// Pieces whose bytes on its disk are right, as the world knows.
    right: PieceSet,
    /// The disk, where bytes are real.
    disk: Bytes,
    /// Pieces that were being written when the process ended, and whether all of their bytes got to the disk.
    unsynced: Vec<(u32, bool)>,
    heard: bool,
    /// By peer, the life of it that was met.
    connected: BTreeMap<usize, u32>,
    fetches: BTreeMap<FetchId, Fetch>,
    imported: u64,
    whole_at: Option<Timestamp>,
}

/// A site, its network and its nodes.
#[derive(Debug)]
pub struct World {
    topology: Topology,
    fault: Option<Fault>,
    tuning: Tuning,
    artifact: ArtifactId,
    layout: PieceLayout,
    now: Timestamp,
    fluid: Fluid,
    origin_up: LinkId,
    /// Of each rack, out and in.
    uplinks: Vec<(LinkId, LinkId)>,
    is_cut: bool,
    origin_is_alive: bool,
    line: Line,
    nodes: Vec<Node>,
    flows: BTreeMap<FlowId, (usize, FetchId)>,
    /// By time, then in the order in which they were foreseen.
    events: BTreeMap<(Timestamp, u64), Event>,
    serial: u64,
    struck: bool,
    /// By name, the places in `nodes`.
    places: BTreeMap<NodeId, usize>,
    slow: Option<usize>,
    troubles: Vec<Trouble>,
    books: Books,
    /// Nodes that somebody has banned at some time.
    banned: BTreeSet<usize>,
    matter: Option<Matter>,
    rng: ChaCha8Rng,
    /// For what goes wrong.
    chance: Chance,
    seed: u64,
}

impl World {
    /// A site in which every node that takes part from the beginning is connected, and the campaign is about to be heard of.
    /// The origin serves `turns` at once.
    #[must_use]
    pub fn new(topology: Topology, fault: Option<Fault>, tuning: Tuning, turns: NonZeroUsize, seed: u64) -> Self {
        let day = Day {
            fault,
            ..Day::default()
        };
        Self::on(day, topology, tuning, turns, seed)
    }

    /// The same on a day of more troubles. The image must fit memory if its bytes are real.
    #[must_use]
    pub fn on(day: Day, topology: Topology, tuning: Tuning, turns: NonZeroUsize, seed: u64) -> Self {
        let Day {
            fault,
            troubles,
            is_real,
        } = day;
        let mut fluid = Fluid::default();
        let mbit = |mbit: u64| mbit as f64;
        let origin_up = fluid.link(mbit(topology.origin_mbit));
        let [racks, per_rack] = [topology.racks, topology.nodes].map(|count| count as usize);
        let uplinks = (0..racks)
            .map(|_| {
                let rate = mbit(topology.rack_mbit);
                (fluid.link(rate), fluid.link(rate))
            })
            .collect();
        let layout = PieceLayout::new(topology.image_bytes());
        let late = fault.map_or(0, |fault| fault.late_per_rack(topology.racks)) as usize;
        let mut places: Vec<_> = (0..racks)
            .flat_map(|rack| (0..per_rack).map(move |number| (rack, number, false)))
            .collect();
        if fault == Some(Fault::GarbagePeer) {
            places.push((0, per_rack, true));
        }
        let slow = (fault == Some(Fault::SlowNode)).then_some((racks - 1, per_rack - 1));
        let nodes: Vec<_> = places
            .into_iter()
            .filter_map(|(rack, number, is_garbage)| {
                let rate = match slow == Some((rack, number)) {
                    true => mbit(topology.node_mbit) / 10.0,
                    false => mbit(topology.node_mbit),
                };
                let name = format!("r{}n{}", rack + 1, number + 1);
                Some(Node {
                    path: format!("site/r{}/{name}", rack + 1).parse().ok()?,
                    id: NodeId::new(name).ok()?,
                    rack,
                    up: fluid.link(rate),
                    down: fluid.link(rate),
                    lie: is_garbage.then_some(Lie::WrongBytes),
                    drip: None,
                    is_late: number + late >= per_rack && !is_garbage,
                    is_dead: false,
                    swarm: None,
                    life: 0,
                    held: match is_garbage {
                        true => PieceSet::full(layout.pieces()),
                        false => PieceSet::empty(layout.pieces()),
                    },
                    right: PieceSet::empty(layout.pieces()),
                    disk: Bytes::default(),
                    unsynced: Vec::new(),
                    heard: false,
                    connected: BTreeMap::new(),
                    fetches: BTreeMap::new(),
                    imported: 0,
                    whole_at: None,
                })
            })
            .collect();
        let matter = is_real.then(|| Matter::new(layout, seed).expect("the image fits memory"));
        let names = (0_usize..)
            .zip(&nodes)
            .map(|(at, node): (_, &Node)| (node.id.clone(), at));
        let mut world = Self {
            topology,
            fault,
            tuning,
            artifact: matter
                .as_ref()
                .map_or_else(|| ArtifactId::of(&seed.to_le_bytes()), Matter::root),
            layout,
            now: Timestamp::default(),
            fluid,
            origin_up,
            uplinks,
            is_cut: false,
            origin_is_alive: true,
            line: Line::new(turns),
            places: names.collect(),
            slow: slow.map(|(rack, number)| rack * per_rack + number),
            troubles: Vec::new(),
            books: Books {
                said: vec![PieceSet::empty(layout.pieces()); nodes.len()],
                ..Books::default()
            },
            banned: BTreeSet::new(),
            matter,
            nodes,
            flows: BTreeMap::new(),
            events: BTreeMap::new(),
            serial: 0,
            struck: matches!(fault, None | Some(Fault::SlowNode | Fault::GarbagePeer)),
            rng: ChaCha8Rng::seed_from_u64(seed),
            chance: Chance::new(!seed),
            seed,
        };
        world.beset(troubles);
        let early: Vec<_> = (0..world.nodes.len()).filter(|at| !world.nodes[*at].is_late).collect();
        for &at in &early {
            world.start(at);
        }
        for (place, &at) in early.iter().enumerate() {
            for &other in &early[..place] {
                world.meet(at, other);
            }
            let after = Duration::from_millis(world.rng.next_u64() % HEARD_WITHIN_MS);
            let life = world.nodes[at].life;
            world.later(after, Event::Heard(at, life));
        }
        world
    }

    /// Runs until every node that is expected to has the image, a promise is broken, or the time is over, in which every node
    /// was to have it.
    pub fn run(&mut self, limit: Duration) -> Summary {
        let end = Timestamp::after_start(limit);
        while !self.is_over() && self.books.broken.is_none() {
            let event = self.events.keys().next().map(|(at, _)| *at);
            let ticks = self.nodes.iter().filter_map(|node| node.swarm.as_ref()?.deadline());
            let next = ticks.chain(event).chain(self.fluid.next_end()).min();
            let Some(next) = next.filter(|next| *next < end) else {
                break;
            };
            self.now = self.now.max(next);
            self.step();
        }
        self.judge_end();
        self.summary()
    }

    fn step(&mut self) {
        for flow in self.fluid.advance(self.now) {
            if let Some((at, id)) = self.flows.remove(&flow) {
                let node = &mut self.nodes[at];
                let Some(fetch) = node.fetches.get_mut(&id) else {
                    continue;
                };
                fetch.flow = None;
                let source = fetch.source.clone();
                self.line.ended(flow);
                // After half of a piece nothing more comes from who stalls.
                if self.lie_of(&source) != Some(Lie::Stall) {
                    self.came(at, id);
                }
            }
        }
        while let Some(event) = self.events.first_entry().filter(|event| event.key().0 <= self.now) {
            let event = event.remove();
            self.happen(event);
        }
        self.serve();
        for at in 0..self.nodes.len() {
            let due = self.nodes[at].swarm.as_ref().and_then(Swarm::deadline);
            if due.is_some_and(|due| due <= self.now) {
                self.tell(at, Input::Tick);
            }
        }
        self.strike();
        self.serve();
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.events.insert((self.now + after, self.serial), event);
        self.serial += 1;
    }

    fn happen(&mut self, event: Event) {
        let lives = |node: &Node, life| node.life == life && node.swarm.is_some();
        match event {
            Event::Told(at, life, input) if lives(&self.nodes[at], life) => self.tell(at, input),
            Event::Asked(at, life, id) if lives(&self.nodes[at], life) => self.answer(at, id),
            Event::Durable(at, life, id) if lives(&self.nodes[at], life) => self.durable(at, id),
            Event::Heard(at, life) if lives(&self.nodes[at], life) => self.hear(at),
            Event::Repeats(at, life) if lives(&self.nodes[at], life) => self.repeat(at),
            Event::Told(..) | Event::Asked(..) | Event::Durable(..) | Event::Heard(..) | Event::Repeats(..) => {}
            Event::Crash(at, back) => self.crash(at, back),
            Event::BrokenOff(flow) => self.broken_off(flow),
            Event::Started(at) if self.nodes[at].swarm.is_some() || self.nodes[at].is_dead => {}
            Event::Started(at) => {
                self.start(at);
                let life = self.nodes[at].life;
                self.later(Duration::ZERO, Event::Heard(at, life));
                (0..self.nodes.len())
                    .filter(|other| *other != at)
                    .for_each(|other| self.later(START, Event::Met(at, other)));
            }
            Event::Met(one, other) => self.meet(one, other),
            Event::Missed(at, other, life) => {
                let gone = self.nodes[other].life != life || self.is_apart(at, other);
                let connected = &mut self.nodes[at].connected;
                // They may have met again.
                if gone && connected.get(&other) == Some(&life) {
                    connected.remove(&other);
                    let peer = self.nodes[other].id.clone();
                    self.tell(at, Input::PeerDown { peer });
                }
            }
            Event::Mended => {
                self.cut(false);
                self.each_across(|world, one, other| world.later(START, Event::Met(one, other)));
            }
            // Whoever is next is served when all that happens now has happened.
            Event::TurnDue => self.line.looked(),
        }
    }

    fn tell(&mut self, at: usize, input: Input) {
        let node = &mut self.nodes[at];
        if let Input::Failed { id, .. } = &input {
            node.fetches.remove(id);
        }
        // A liar does not collect.
        let Some(swarm) = node.swarm.as_mut().filter(|_| node.lie.is_none()) else {
            return;
        };
        swarm.handle(self.now, input);
        let outputs: Vec<_> = std::iter::from_fn(|| swarm.poll()).collect();
        for output in outputs {
            self.carry_out(at, output);
        }
        self.judge_node(at);
    }

    fn carry_out(&mut self, at: usize, output: Output) {
        let node = &mut self.nodes[at];
        match output {
            Output::Fetch { id, source, piece, .. } => {
                let (after, life) = (latency(&source), node.life);
                let fetch = Fetch {
                    source: source.clone(),
                    piece,
                    flow: None,
                    written: None,
                };
                node.fetches.insert(id, fetch);
                self.judge_request(at, &source, piece);
                if !self.loses_request() {
                    self.later(after, Event::Asked(at, life, id));
                }
            }
            Output::Cancel { id, .. } => {
                if let Some(flow) = node.fetches.remove(&id).and_then(|fetch| fetch.flow) {
                    self.fluid.stop(flow);
                    self.flows.remove(&flow);
                    self.line.ended(flow);
                }
            }
            Output::Announce {
                artifact,
                pieces,
                audience,
            } => {
                let (peer, rack) = (node.id.clone(), node.rack);
                self.judge_word(at, &pieces);
                let node = &self.nodes[at];
                for other in node.connected.keys().copied().collect::<Vec<_>>() {
                    let in_rack = self.nodes[other].rack == rack;
                    if audience == Audience::Everyone || in_rack == (audience == Audience::Rack) {
                        let (peer, pieces) = (peer.clone(), pieces.clone());
                        self.say(at, other, Input::PeerGot { peer, artifact, pieces });
                    }
                }
            }
            Output::Ban { peer, reason } => {
                if let Some(&other) = self.places.get(&peer) {
                    self.banned.insert(other);
                    self.judge_ban(at, other, reason);
                    self.part(at, other);
                }
            }
            Output::Complete { .. } => {
                node.whole_at.get_or_insert(self.now);
            }
            // No piece is ever lost here.
            Output::Withdraw { .. } => {}
        }
    }

    /// Sends a word from node to node; it is lost if it cannot arrive.
    fn say(&mut self, from: usize, to: usize, input: Input) {
        if !self.is_apart(from, to) && !self.loses_word(from, to) {
            let life = self.nodes[to].life;
            self.later(LATENCY, Event::Told(to, life, input));
        }
    }

    fn answer(&mut self, at: usize, id: FetchId) {
        let Some(fetch) = self.nodes[at].fetches.get(&id) else {
            return;
        };
        let (piece, life, rack, down) = (
            fetch.piece,
            self.nodes[at].life,
            self.nodes[at].rack,
            self.nodes[at].down,
        );
        let why = match &fetch.source {
            Source::Origin => {
                if self.origin_is_alive {
                    self.line.join(at, life, id);
                    return;
                }
                FetchFailure::Unreachable
            }
            Source::Peer(peer) => {
                let Some(&from) = self.places.get(peer) else { return };
                let source = &self.nodes[from];
                // Who is dead, or out of reach, says nothing; nor does many a liar.
                if source.swarm.is_none() || source.lie.is_some_and(Lie::is_mute) {
                    return;
                }
                if source.held.contains(piece) && source.lie != Some(Lie::NotHeld) {
                    let mut route = vec![source.up, down];
                    if source.rack != rack {
                        route.extend([self.uplinks[source.rack].0, self.uplinks[rack].1]);
                    }
                    route.extend(source.drip);
                    let flow = self.flow((from, at), route, id, piece);
                    self.endanger(flow);
                    return;
                }
                FetchFailure::NotHeld
            }
        };
        let after = latency(&fetch.source);
        self.later(after, Event::Told(at, life, Input::Failed { id, why }));
    }

    fn flow(&mut self, ends: fluid::Ends, route: Vec<LinkId>, id: FetchId, piece: u32) -> FlowId {
        let bytes = self.layout.bytes(piece);
        let is_all = ends.0 == ORIGIN || self.nodes[ends.0].lie != Some(Lie::Stall);
        let share = if is_all { WIRE } else { WIRE / 2.0 };
        let flow = self
            .fluid
            .begin(ends, || route, (bytes.end - bytes.start) as f64 * share);
        self.flows.insert(flow, (ends.1, id));
        if let Some(fetch) = self.nodes[ends.1].fetches.get_mut(&id) {
            fetch.flow = Some(flow);
        }
        flow
    }

    /// Whether no word gets from one node to another.
    fn is_apart(&self, one: usize, other: usize) -> bool {
        self.is_cut && (self.nodes[one].rack == 0) != (self.nodes[other].rack == 0)
    }

    /// Ends transfers by whom they are for and what was asked; answers which requests they were of.
    fn break_off(&mut self, of: impl Fn(usize, Option<&Fetch>) -> bool) -> Vec<(usize, FetchId)> {
        let nodes = &self.nodes;
        let gone = self
            .flows
            .extract_if(.., |_, (to, id)| of(*to, nodes[*to].fetches.get(id)));
        let gone: Vec<_> = gone.collect();
        for (flow, _) in &gone {
            self.fluid.stop(*flow);
            self.line.ended(*flow);
        }
        gone.into_iter().map(|(_, request)| request).collect()
    }

    fn is_expected(node: &Node) -> bool {
        !node.is_dead && node.lie.is_none()
    }

    /// Which node a source is, if it is one.
    fn place(&self, source: &Source) -> Option<usize> {
        self.places.get(source.peer()?).copied()
    }

    fn is_over(&self) -> bool {
        let mut expected = self.nodes.iter().filter(|node| Self::is_expected(node));
        self.struck && expected.all(|node| node.whole_at.is_some())
    }
}

fn latency(source: &Source) -> Duration {
    match source {
        Source::Origin => ORIGIN_LATENCY,
        Source::Peer(_) => LATENCY,
    }
}
