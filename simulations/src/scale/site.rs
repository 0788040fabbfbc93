//! One site: its nodes, what they ask of one another, and when it comes.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use firmesh_node_core::swarm::{Audience, FetchFailure, FetchId, Input, Output, Roster, Source, Swarm, Tuning};
use firmesh_protocol::{
    ids::{ArtifactId, NodeId, TopologyPath},
    manifest::Priority,
    pieces::PieceSet,
    time::Timestamp,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::{
    Plan, Total,
    peers::{Answer, Manner},
    wire::Wire,
};

/// From node to node.
const LATENCY: Duration = Duration::from_millis(1);
/// From the origin to a node.
const ORIGIN_LATENCY: Duration = Duration::from_millis(10);
/// Until a piece is verified and durable.
const DISK: Duration = Duration::from_millis(3);
/// Nodes hear of a campaign within this.
const HEARD_WITHIN_MS: u64 = 100;
/// Until a process that died takes part again.
const RESTART: Duration = Duration::from_secs(2);
/// Until what was lost on the way is sent again: a QUIC probe timeout on these links (RFC 9002, section 6.2), the delay of an
/// acknowledgement in it.
const SENT_AGAIN: Duration = Duration::from_millis(30);
/// Thousandths of bytes on the wire per byte of an image: headers of QUIC and UDP, and the hash tree.
const WIRE: u64 = 1_058;
/// Bytes of a packet's payload.
const PACKET: u64 = 1_400;

/// Something that happens.
#[derive(Debug)]
enum Event {
    /// A node hears what another has got.
    Got { from: u32, pieces: Rc<[u32]> },
    /// A node hears all that another holds.
    Holds { from: u32, pieces: Rc<PieceSet> },
    /// The bytes of a request are there and looked at.
    Arrived {
        id: FetchId,
        right: bool,
        /// The node they came from, and its life when it began to send; the origin if there is none.
        from: Option<(u32, u32)>,
    },
    /// A request is answered by a word.
    Refused { id: FetchId, why: FetchFailure },
    /// A request is at the origin.
    Asked { id: FetchId },
    /// The link to the origin has carried what it carried for this node.
    Served,
    /// A node's core wants to be called.
    Tick,
    /// A node hears of the campaign.
    Heard,
    /// A process dies.
    Crash,
    /// It is started again.
    Restart,
    /// A node has lost its connection to another.
    Gone { from: u32 },
    /// A node has a connection to another.
    Met { from: u32 },
}

/// An event of a node's life, by time and then in the order in which events were foreseen.
#[derive(Debug)]
struct Due {
    at: Timestamp,
    serial: u64,
    node: u32,
    life: u32,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// A request under way.
#[derive(Debug)]
struct Fetch {
    piece: u32,
    /// Whether it was asked of the origin.
    from_origin: bool,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    path: TopologyPath,
    manner: Manner,
    neighbours: Vec<u32>,
    swarm: Option<Swarm>,
    life: u32,
    held: PieceSet,
    fetches: BTreeMap<FetchId, Fetch>,
    /// When its core is called next.
    tick: Option<Timestamp>,
    up: Wire,
    down: Wire,
    whole_at: Option<Timestamp>,
}

/// A site and what has happened in it.
pub(super) struct Site<'a> {
    plan: &'a Plan,
    artifact: ArtifactId,
    pieces: u32,
    now: Timestamp,
    wan: Wire,
    /// Requests that wait for the origin: node, life, request.
    waiting: VecDeque<(u32, u32, FetchId)>,
    is_serving: bool,
    nodes: Vec<Node>,
    by_id: BTreeMap<NodeId, u32>,
    roster: Arc<Roster>,
    events: BinaryHeap<Reverse<Due>>,
    serial: u64,
    missing: usize,
    rng: ChaCha8Rng,
    seed: u64,
    total: Total,
}

impl<'a> Site<'a> {
    /// The site of that number in the fleet, about to hear of a campaign.
    pub(super) fn new(plan: &'a Plan, number: u64) -> Self {
        let seed = plan.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(number);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let pieces = u32::try_from(plan.image.div_ceil(plan.piece)).unwrap_or(u32::MAX);
        let (region, site) = (number / u64::from(plan.sites), number % u64::from(plan.sites));
        let bad = u64::from(plan.byzantine);
        let nodes: Vec<_> = (0..plan.racks)
            .filter_map(|rack| {
                let id = NodeId::new(format!("r{region}s{site}n{rack}")).ok()?;
                let manner = match rng.next_u64() % 100 < bad {
                    true => Manner::bad(rng.next_u64()),
                    false => Manner::Honest,
                };
                Some(Node {
                    path: format!("r{region}/s{site}/{id}").parse().ok()?,
                    id,
                    manner,
                    neighbours: Vec::new(),
                    swarm: None,
                    life: 0,
                    held: PieceSet::empty(pieces),
                    fetches: BTreeMap::new(),
                    tick: None,
                    up: Wire::of(plan.rack_mbit),
                    down: Wire::of(plan.rack_mbit),
                    whole_at: None,
                })
            })
            .collect();
        let places = nodes.iter().map(|node| (node.id.clone(), node.path.clone()));
        let mut site = Self {
            plan,
            artifact: ArtifactId::of(&seed.to_le_bytes()),
            pieces,
            now: Timestamp::default(),
            wan: Wire::of(plan.wan_mbit),
            waiting: VecDeque::new(),
            is_serving: false,
            by_id: (0..).zip(&nodes).map(|(at, node)| (node.id.clone(), at)).collect(),
            roster: Arc::new(places.collect()),
            missing: nodes.iter().filter(|node| node.manner.is_honest()).count(),
            nodes,
            events: BinaryHeap::new(),
            serial: 0,
            rng,
            seed,
            total: Total::default(),
        };
        site.begin();
        site
    }

    fn begin(&mut self) {
        let lives = 0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        for at in lives.clone() {
            self.start(at);
            let node = self.node(at);
            let number = |id: &NodeId| self.by_id.get(id).copied();
            self.nodes[at as usize].neighbours = match &node.swarm {
                Some(swarm) => swarm.neighbours().filter_map(number).collect(),
                None => self
                    .roster
                    .neighbours(&node.id, &node.path)
                    .iter()
                    .filter_map(number)
                    .collect(),
            };
        }
        for at in lives {
            for peer in self.node(at).neighbours.clone() {
                let peer = self.node(peer).id.clone();
                self.tell(at, Input::PeerUp { peer });
            }
            let heard = Duration::from_millis(self.rng.next_u64() % HEARD_WITHIN_MS);
            self.later(heard, at, Event::Heard);
            if self.node(at).manner.is_honest() && self.by_chance(self.plan.crashes) {
                let longest = Duration::from_secs_f64(self.plan.bound_s() * 1.5);
                let dies = longest.mul_f64(f64::from(self.rng.next_u32()) / f64::from(u32::MAX));
                self.later(dies, at, Event::Crash);
            }
        }
    }

    /// Runs until every honest node has the image, or the time is over.
    pub(super) fn run(mut self, limit: Duration) -> Total {
        let end = Timestamp::after_start(limit);
        while self.missing > 0
            && let Some(Reverse(due)) = self.events.pop()
            && due.at < end
        {
            self.now = due.at;
            // What was meant for an earlier life is lost; the link to the origin has none.
            if self.node(due.node).life != due.life && !matches!(due.event, Event::Served) {
                continue;
            }
            self.total.events += 1;
            let nanos = due.at.since_start().subsec_nanos();
            self.total.trace = (self.total.trace ^ u64::from(nanos) ^ u64::from(due.node) << 32)
                .rotate_left(5)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15);
            self.happen(due.node, due.event);
        }
        self.total.sites = 1;
        let honest = self.nodes.iter().filter(|node| node.manner.is_honest());
        self.total.nodes = honest.clone().count() as u64;
        for at in honest.filter_map(|node| node.whole_at) {
            let ms = u32::try_from(at.since_start().as_millis()).unwrap_or(u32::MAX);
            *self.total.finished.entry(ms).or_default() += 1;
            self.total.complete += 1;
        }
        self.total
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn by_chance(&mut self, percent: u32) -> bool {
        percent > 0 && self.rng.next_u32() % 100 < percent
    }

    fn later(&mut self, after: Duration, node: u32, event: Event) {
        self.at(self.now + after, node, event);
    }

    fn at(&mut self, at: Timestamp, node: u32, event: Event) {
        let (serial, life) = (self.serial, self.node(node).life);
        self.serial += 1;
        self.events.push(Reverse(Due {
            at,
            serial,
            node,
            life,
            event,
        }));
    }

    /// How long a word takes to a neighbour: it is sent again if it is lost.
    fn word(&mut self) -> Duration {
        let again = if self.by_chance(self.plan.loss) {
            SENT_AGAIN
        } else {
            Duration::ZERO
        };
        LATENCY + again
    }

    fn happen(&mut self, at: u32, event: Event) {
        match event {
            Event::Got { from, pieces } => {
                let (peer, artifact, pieces) = (self.node(from).id.clone(), self.artifact, pieces.to_vec());
                self.tell(at, Input::PeerGot { peer, artifact, pieces });
            }
            Event::Holds { from, pieces } => {
                let (peer, artifact, pieces) = (self.node(from).id.clone(), self.artifact, (*pieces).clone());
                self.tell(at, Input::PeerHolds { peer, artifact, pieces });
            }
            Event::Arrived { id, right, from } => self.arrived(at, id, right, from),
            Event::Refused { id, why } => {
                self.nodes[at as usize].fetches.remove(&id);
                self.tell(at, Input::Failed { id, why });
            }
            Event::Asked { id } => {
                let life = self.node(at).life;
                self.waiting.push_back((at, life, id));
                self.serve();
            }
            Event::Served => {
                self.is_serving = false;
                self.serve();
            }
            Event::Tick => {
                if self.node(at).tick == Some(self.now) {
                    self.nodes[at as usize].tick = None;
                    self.tell(at, Input::Tick);
                }
            }
            Event::Heard => self.hear(at),
            Event::Crash => self.crash(at),
            Event::Restart => self.restart(at),
            Event::Gone { from } => {
                let peer = self.node(from).id.clone();
                self.tell(at, Input::PeerDown { peer });
            }
            Event::Met { from } => {
                let peer = self.node(from).id.clone();
                self.tell(at, Input::PeerUp { peer });
            }
        }
    }

    fn tell(&mut self, at: u32, input: Input) {
        let Some(swarm) = self.nodes[at as usize].swarm.as_mut() else {
            return;
        };
        swarm.handle(self.now, input);
        while let Some(output) = self.nodes[at as usize].swarm.as_mut().and_then(Swarm::poll) {
            self.carry_out(at, output);
        }
        let node = &mut self.nodes[at as usize];
        let due = node.swarm.as_ref().and_then(Swarm::deadline);
        if let Some(due) = due.map(|due| due.max(self.now))
            && node.tick.is_none_or(|tick| due < tick)
        {
            node.tick = Some(due);
            self.at(due, at, Event::Tick);
        }
    }

    fn carry_out(&mut self, at: u32, output: Output) {
        match output {
            Output::Fetch { id, source, piece, .. } => self.fetch(at, id, &source, piece),
            Output::Cancel { id, .. } => {
                self.nodes[at as usize].fetches.remove(&id);
            }
            // The rack is the site's innermost group here; there is nobody else.
            Output::Announce { pieces, audience, .. } if audience != Audience::OtherRacks => {
                let pieces: Rc<[u32]> = pieces.into();
                for peer in self.node(at).neighbours.clone() {
                    let after = self.word();
                    let pieces = Rc::clone(&pieces);
                    self.total.words += 1;
                    self.total.words_pieces += pieces.len() as u64;
                    self.later(after, peer, Event::Got { from: at, pieces });
                }
            }
            Output::Ban { peer, .. } => {
                let banned = self.by_id.get(&peer).map(|peer| self.node(*peer).manner.is_honest());
                self.total.bans += 1;
                self.total.bans_of_honest += u64::from(banned == Some(true));
            }
            Output::Complete { .. } => {
                let now = self.now;
                let first = self.nodes[at as usize].whole_at.is_none();
                self.nodes[at as usize].whole_at.get_or_insert(now);
                self.missing -= usize::from(first);
            }
            // No piece is ever lost here.
            Output::Announce { .. } | Output::Withdraw { .. } => {}
        }
    }

    /// Bytes of a piece on the wire; what is lost of them is sent again.
    fn wire_bytes(&self, piece: u32) -> u64 {
        let start = u64::from(piece) * self.plan.piece;
        let payload = self.plan.piece.min(self.plan.image - start);
        payload * WIRE / 1_000 * 100 / u64::from(100 - self.plan.loss)
    }

    /// Until the last packet of a piece is there that was lost on the way: somewhere among so many one is, mostly.
    fn sent_again(&mut self, bytes: u64) -> Duration {
        let last = (bytes / PACKET).min(1);
        if last > 0 && self.by_chance(self.plan.loss) {
            SENT_AGAIN
        } else {
            Duration::ZERO
        }
    }

    fn fetch(&mut self, at: u32, id: FetchId, source: &Source, piece: u32) {
        let from_origin = source.peer().is_none();
        self.nodes[at as usize].fetches.insert(id, Fetch { piece, from_origin });
        let Some(from) = source.peer().and_then(|peer| self.by_id.get(peer).copied()) else {
            return self.later(ORIGIN_LATENCY, at, Event::Asked { id });
        };
        let asked = self.now + self.word();
        let bytes = self.wire_bytes(piece);
        let source = self.node(from);
        // A dead process says nothing.
        if source.swarm.is_none() && source.manner.is_honest() {
            return;
        }
        let (life, holds) = (source.life, source.held.contains(piece));
        match source.manner.answer(holds, bytes) {
            Answer::Nothing => {}
            Answer::Word(why) => self.at(asked + LATENCY, at, Event::Refused { id, why }),
            Answer::Late(took) => {
                let from = Some((from, life));
                self.at(asked + took, at, Event::Arrived { id, right: true, from });
            }
            Answer::Bytes { right } => {
                let mut down = self.node(at).down;
                let there = self.nodes[from as usize].up.book(&mut down, asked, bytes);
                self.nodes[at as usize].down = down;
                let durable = there + LATENCY + DISK + self.sent_again(bytes);
                self.total.rack_bytes += bytes;
                let from = Some((from, life));
                self.at(durable, at, Event::Arrived { id, right, from });
            }
        }
    }

    /// The origin serves who has waited the longest, and whoever gave up loses its place.
    fn serve(&mut self) {
        while !self.is_serving
            && let Some((at, life, id)) = self.waiting.pop_front()
        {
            let node = self.node(at);
            let Some(piece) = node
                .fetches
                .get(&id)
                .filter(|_| node.life == life)
                .map(|fetch| fetch.piece)
            else {
                continue;
            };
            let bytes = self.wire_bytes(piece);
            let mut down = node.down;
            let there = self.wan.book(&mut down, self.now, bytes);
            self.nodes[at as usize].down = down;
            self.total.wan_bytes += bytes;
            self.total.rack_bytes += bytes;
            self.is_serving = true;
            self.at(self.wan.free_at(), at, Event::Served);
            let arrives = there + ORIGIN_LATENCY + DISK + self.sent_again(bytes);
            self.at(
                arrives,
                at,
                Event::Arrived {
                    id,
                    right: true,
                    from: None,
                },
            );
        }
    }

    fn arrived(&mut self, at: u32, id: FetchId, right: bool, from: Option<(u32, u32)>) {
        let bytes = self.node(at).fetches.get(&id).map(|fetch| self.wire_bytes(fetch.piece));
        let Some(Fetch { piece, from_origin }) = self.nodes[at as usize].fetches.remove(&id) else {
            // It was given up meanwhile: the bytes came for nothing.
            self.total.wasted_bytes += self.wire_bytes(0);
            return;
        };
        // Who died on the way has sent nothing.
        if from.is_some_and(|(from, life)| self.node(from).life != life) {
            return;
        }
        let latency = if from_origin { ORIGIN_LATENCY } else { LATENCY };
        let input = match right {
            true => {
                self.nodes[at as usize].held.insert(piece);
                Input::Fetched {
                    id,
                    waited: latency * 2,
                }
            }
            false => {
                self.total.wasted_bytes += bytes.unwrap_or_default();
                let why = FetchFailure::Corrupt;
                Input::Failed { id, why }
            }
        };
        self.tell(at, input);
    }

    fn start(&mut self, at: u32) {
        let seed = self.seed.wrapping_mul(1_000).wrapping_add(u64::from(at));
        let node = &mut self.nodes[at as usize];
        if !node.manner.is_honest() {
            return;
        }
        node.swarm = Some(Swarm::new(node.id.clone(), node.path.clone(), Tuning::default(), seed));
        let members = Arc::clone(&self.roster);
        self.tell(at, Input::Roster { members });
        self.tell(at, Input::Origin { available: true });
    }

    fn hear(&mut self, at: u32) {
        let node = self.node(at);
        let have = match node.manner.is_honest() {
            true => node.held.clone(),
            false => PieceSet::full(self.pieces),
        };
        let pieces = Rc::new(have.clone());
        for peer in node.neighbours.clone() {
            let (after, pieces) = (self.word(), Rc::clone(&pieces));
            self.later(after, peer, Event::Holds { from: at, pieces });
        }
        let (artifact, priority) = (self.artifact, Priority::Normal);
        self.tell(
            at,
            Input::Want {
                artifact,
                have,
                priority,
            },
        );
    }

    fn crash(&mut self, at: u32) {
        let node = &mut self.nodes[at as usize];
        node.swarm = None;
        node.life += 1;
        node.fetches.clear();
        node.tick = None;
        self.later(RESTART, at, Event::Restart);
    }

    /// It knows what its disk holds, and connects anew: then only its peers notice that it was away.
    fn restart(&mut self, at: u32) {
        self.start(at);
        for peer in self.node(at).neighbours.clone() {
            let alive = !self.node(peer).manner.is_honest() || self.node(peer).swarm.is_some();
            if alive {
                self.later(LATENCY, peer, Event::Gone { from: at });
                self.later(LATENCY, peer, Event::Met { from: at });
                self.later(LATENCY, at, Event::Met { from: peer });
                let pieces = match self.node(peer).manner.is_honest() {
                    true => self.node(peer).held.clone(),
                    false => PieceSet::full(self.pieces),
                };
                let pieces = Rc::new(pieces);
                self.later(LATENCY * 2, at, Event::Holds { from: peer, pieces });
            }
        }
        self.later(LATENCY, at, Event::Heard);
    }
}
