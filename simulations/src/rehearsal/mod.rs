//! A whole fleet under faults, in virtual time: the campaign engine, the nodes' install rules and the attempt machine as
//! they run in production, in processes that are killed, over a network that loses things, with devices that lie.
//!
//! A run is a function of its seed, its profile and its list of faults: the same three give the same trace, on any number
//! of threads. After every event the promises are checked; the first broken one ends the run.

mod aftermath;
mod answers;
mod attempts;
mod between;
mod coordinator;
mod device;
pub(crate) mod dice;
mod evidence;
mod faults;
mod hosts;
mod hunt;
mod judge;
mod liar;
mod network;
mod node;
mod operator;
mod promises;
mod scenario;
mod signed;
#[cfg(test)]
mod tests;

use std::{
    cmp::Ordering,
    collections::{BTreeSet, BinaryHeap},
    sync::Arc,
};

use clap::ValueEnum;
use firmesh_coordinator_core::Input;
use firmesh_protocol::{
    api::CampaignState,
    brake::Braked,
    ids::{ArtifactId, CampaignId, Sha256},
    manifest::Strategy,
};
use serde::{Deserialize, Serialize};

pub use faults::{Fault, Planned};
pub use hunt::{Finding, Hunt, Progress, Total, hunt};
pub use promises::{Broken, Promise, Tally};

use answers::ASK_MS;
use coordinator::{Answer, Coordinator, Heartbeat, Outcome};
use device::Device;
use dice::Dice;
use evidence::Evidence;
use hosts::RealHost;
use network::Links;
use node::Node;
use operator::{Order, REVIEW_MS};
use promises::Watch;
use scenario::{Approved, Scenario};
use signed::Signed;

/// Of so many seeds, one is run with every signature checked by everybody and every record read back from its bytes.
const SAMPLED: u64 = 16;
/// What was added to the world when the corpus had seeds already happens in so many seeds of so many: the others keep the
/// fleets and faults that they had.
const LATER: (u64, u64) = (2, 8);
/// Which seeds of so many of `orders` take an approvers' signed order to send devices back: in the others the manifest leaves
/// that to operators.
const ORDERED: (u64, u64) = (3, 4);

/// What a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Devices that stall, lie, brick and come back late; processes that die.
    Devices,
    /// Hosts with two slots that lose power, mostly while a slot is written.
    Power,
    /// Images that turn out to be bad when many devices have them already.
    Rollback,
    /// Messages lost, delayed and cut off one way; clocks that are off; coordinators that are left behind.
    Network,
    /// All of it, with operators who pause, cancel and brake.
    Chaos,
    /// A coordinator that signs what nobody should follow.
    Liar,
    /// Hosts whose power fails at every other write of a slot, or of what the boot loader goes by.
    Slots,
    /// Operators who send devices back, again and again, while the campaign runs and after it, in the middle of all else.
    Orders,
    /// Approvers and webhooks that say yes, no or nothing between two waves, and operators who close attempts and campaigns by
    /// force, in the middle of all else.
    Answers,
    /// Servers of several components on power feeds that stand in for each other, under everything that `chaos` has.
    Units,
    /// Campaigns that begin failed devices again, some of them under a coordinator that lies.
    Retries,
    /// Rolling campaigns with two to four batches under way at once, of which some fail, in the middle of all else and under a
    /// coordinator that lies.
    Batches,
    /// Releases that may not be installed directly: devices go over one, two or three others, and some of them stop halfway.
    Hops,
    /// Blue-green campaigns: one pool after the other, with a balancer that drains and switches, in the middle of all else.
    Pools,
    /// Hosts that step aside for their devices, one of a cluster at a time; nodes that die over it, administrators who take
    /// hosts into service in the middle, and devices of which half go over other releases.
    Hosts,
}

impl Profile {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Power => "power",
            Self::Rollback => "rollback",
            Self::Network => "network",
            Self::Chaos => "chaos",
            Self::Liar => "liar",
            Self::Slots => "slots",
            Self::Orders => "orders",
            Self::Answers => "answers",
            Self::Units => "units",
            Self::Retries => "retries",
            Self::Batches => "batches",
            Self::Hops => "hops",
            Self::Pools => "pools",
            Self::Hosts => "hosts",
        }
    }
}

/// How a run went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The first promise that was broken, if one was.
    pub broken: Option<Broken>,
    /// What happened.
    pub tally: Tally,
    /// Events gone through.
    pub events: u64,
    /// Names the whole course of events.
    pub trace: u64,
    /// When it was over, in milliseconds of virtual time.
    pub ended_ms: u64,
}

/// The faults of a seed.
#[must_use]
pub fn faults_of(profile: Profile, seed: u64) -> Vec<Planned> {
    draw(profile, seed).1
}

/// The fleet of a seed, and what goes wrong in it.
fn draw(profile: Profile, seed: u64) -> (Scenario, Vec<Planned>) {
    let mut dice = Dice::new(seed);
    let is_later = match profile {
        Profile::Liar => true,
        Profile::Slots
        | Profile::Answers
        | Profile::Units
        | Profile::Retries
        | Profile::Batches
        | Profile::Hops
        | Profile::Pools
        | Profile::Hosts => false,
        // None of these is in the corpus.
        Profile::Orders => seed % ORDERED.1 == ORDERED.0,
        _ => seed % LATER.1 < LATER.0,
    };
    let mut later = is_later.then(|| Dice::new(seed ^ 0x1a7e));
    let scenario = Scenario::new(profile, &mut dice, later.as_mut());
    let faults = faults::draw(profile, &scenario, &mut dice, later.as_mut());
    (scenario, faults)
}

/// Goes through a seed with its own faults, or with others in their place.
#[must_use]
pub fn run(profile: Profile, seed: u64, faults: Option<Vec<Planned>>) -> Verdict {
    World::new(profile, seed, faults).go_through()
}

/// Goes through a seed with these faults, and tells what happens in it, a line each.
#[must_use]
pub fn narrate(profile: Profile, seed: u64, faults: Vec<Planned>) -> (Verdict, Vec<String>) {
    let mut world = World::new(profile, seed, Some(faults));
    world.story = Some(Vec::new());
    let verdict = world.go_through();
    (verdict, world.story.unwrap_or_default())
}

#[derive(Debug)]
enum Event {
    Node(usize, u32, NodeEvent),
    NodeUp(usize),
    Image(usize, ArtifactId),
    Heartbeat(usize, u32, Box<Heartbeat>),
    /// A heartbeat that was heard before: nobody waits for the answer.
    HeartbeatAgain(usize, Box<Heartbeat>),
    /// News from the mesh that was heard before, perhaps by an earlier process.
    Again(usize, NodeEvent),
    CoordinatorUp(usize),
    Tick(usize, u64),
    Fault(usize),
    PowerCut(usize),
    Order(Order),
    /// The coordinator that was left behind is gone.
    OldGone,
    Review,
    /// Whoever is asked between two waves looks whether he is.
    Ask,
}

/// Something that reaches a node's process, if it is still the same.
#[derive(Debug, Clone)]
enum NodeEvent {
    Look,
    Sync,
    Answer(Option<Box<Answer>>),
    Attempt {
        device: usize,
        token: u64,
    },
    Permit(Signed),
    Evidence(Sha256),
    Image(ArtifactId),
    Brake(Braked),
    /// The image of an interrupted attempt was looked at.
    Unpark(usize),
    /// An act on a host is over.
    HostActed(usize),
    /// A host wants to be heard again.
    HostTick {
        host: usize,
        token: u64,
    },
}

#[derive(Debug)]
struct Scheduled {
    at_ms: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The earliest is the greatest, as heaps want it.
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ms, other.order).cmp(&(self.at_ms, self.order))
    }
}

/// The coordinator that everybody follows, and one that was left behind.
const MAIN: usize = 0;
const OLD: usize = 1;

struct World {
    scenario: Arc<Scenario>,
    faults: Vec<Planned>,
    is_sampled: bool,
    now_ms: u64,
    queue: BinaryHeap<Scheduled>,
    scheduled: u64,
    tokens: u64,
    dice: Dice,
    devices: Vec<Device>,
    hosts: Vec<RealHost>,
    nodes: Vec<Node>,
    coordinators: [Coordinator; 2],
    /// Names the last tick that was asked for.
    ticks: [u64; 2],
    /// Which coordinator a node reaches.
    follows: Vec<usize>,
    links: Links,
    evidence: Evidence,
    watch: Watch,
    /// Power cuts that wait for a device's next writes of a slot, the last first.
    cuts_in_write: Vec<Vec<u64>>,
    /// At how many of a thousand writes a device's power fails.
    shaky: Vec<u64>,
    events: u64,
    trace: u64,
    is_over: bool,
    /// Since when everything in flight has been quarantined.
    stuck_since: Option<u64>,
    /// What happened, if somebody wants to read it.
    story: Option<Vec<String>>,
}

impl World {
    fn new(profile: Profile, seed: u64, faults: Option<Vec<Planned>>) -> Self {
        let (scenario, drawn) = draw(profile, seed);
        let (scenario, faults) = (Arc::new(scenario), faults.unwrap_or(drawn));
        let is_sound = |planned: &Planned| !matches!(planned.fault, Fault::Lie { .. } | Fault::TakeOver { .. });
        let nodes = scenario.places.len();
        let is_sampled = seed.is_multiple_of(SAMPLED);
        let mut world = Self {
            is_sampled,
            now_ms: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            tokens: 0,
            // What happens in the run does not depend on how many faults were drawn.
            dice: Dice::new(seed ^ 0x5eed),
            devices: scenario
                .devices
                .iter()
                .map(|placed| Device::new(placed.kind, &scenario.catalogue))
                .collect(),
            hosts: scenario.hosts.iter().map(RealHost::new).collect(),
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            coordinators: [Coordinator::new(), Coordinator::new()],
            ticks: [0; 2],
            follows: vec![MAIN; nodes],
            links: Links {
                up_cut_until: vec![0; nodes],
                down_cut_until: vec![0; nodes],
                flaps: vec![None; nodes],
                ..Links::default()
            },
            evidence: Evidence::new(is_sampled),
            watch: Watch::new(faults.iter().all(is_sound)),
            cuts_in_write: vec![Vec::new(); scenario.devices.len()],
            shaky: vec![0; scenario.devices.len()],
            events: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            is_over: false,
            stuck_since: None,
            story: None,
            scenario,
            faults,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let scenario = Arc::clone(&self.scenario);
        self.coordinators[MAIN].start(&scenario, 0);
        for n in 0..self.nodes.len() {
            self.start_node(n);
            let id = &scenario.places[n].id;
            let images: BTreeSet<_> = scenario
                .campaigns
                .iter()
                .flat_map(|a| a.campaign.artifacts_for(id))
                .collect();
            for image in images {
                let after = self.dice.below(120_000);
                self.after(after, Event::Image(n, image));
            }
        }
        for (number, approved) in scenario.campaigns.iter().enumerate() {
            self.after(approved.starts_ms, Event::Order(Order::Start(number)));
        }
        for number in 0..self.faults.len() {
            self.after(self.faults[number].at_ms, Event::Fault(number));
        }
        self.after(REVIEW_MS, Event::Review);
        let asks = |approved: &Approved| {
            let gate = &approved.campaign.manifest.gate;
            let has_pools = matches!(approved.campaign.manifest.strategy, Strategy::BlueGreen { .. });
            gate.approval.is_some() || !gate.webhooks.is_empty() || has_pools
        };
        if scenario.campaigns.iter().any(asks) {
            self.after(ASK_MS, Event::Ask);
        }
    }

    fn go_through(&mut self) -> Verdict {
        while self.watch.broken.is_none() && !self.is_over {
            let Some(Scheduled { at_ms, event, .. }) = self.queue.pop() else {
                self.watch.blame(self.now_ms, Promise::Live, "nothing happens any more");
                break;
            };
            self.now_ms = at_ms;
            self.events += 1;
            self.note(&event);
            self.happen(event);
        }
        Verdict {
            broken: self.watch.broken.clone(),
            tally: self.watch.tally,
            events: self.events,
            trace: self.trace,
            ended_ms: self.now_ms,
        }
    }

    /// Folds an event into the trace (FNV-1a).
    fn note(&mut self, event: &Event) {
        let (kind, who): (u64, usize) = match event {
            Event::Node(n, _, event) => (
                match event {
                    NodeEvent::Look => 1,
                    NodeEvent::Sync => 2,
                    NodeEvent::Answer(_) => 3,
                    NodeEvent::Attempt { token, .. } => 4 + (token << 8),
                    NodeEvent::Permit(signed) => 5 + (signed.permit.sequence << 8),
                    NodeEvent::Evidence(_) => 6,
                    NodeEvent::Image(_) => 7,
                    NodeEvent::Brake(_) => 8,
                    NodeEvent::Unpark(d) => 22 + ((*d as u64) << 8),
                    NodeEvent::HostActed(h) => 23 + ((*h as u64) << 8),
                    NodeEvent::HostTick { token, .. } => 24 + (token << 8),
                },
                *n,
            ),
            Event::NodeUp(n) => (9, *n),
            Event::Image(n, _) => (10, *n),
            Event::Heartbeat(c, _, heartbeat) => (11 + ((heartbeat.reports.len() as u64) << 8), *c),
            Event::CoordinatorUp(c) => (12, *c),
            Event::Tick(c, _) => (13, *c),
            Event::Fault(number) => (14, *number),
            Event::PowerCut(d) => (15, *d),
            Event::Order(_) => (16, 0),
            Event::OldGone => (17, 0),
            Event::Review => (18, 0),
            Event::HeartbeatAgain(c, heartbeat) => (19 + ((heartbeat.reports.len() as u64) << 8), *c),
            Event::Again(n, _) => (20, *n),
            Event::Ask => (21, 0),
        };
        for word in [self.now_ms, kind, who as u64] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Adds a line to the story.
    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>10.3} {}", self.now_ms as f64 / 1e3, line()));
        }
    }

    fn after(&mut self, after_ms: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled {
            at_ms: self.now_ms.saturating_add(after_ms),
            order: self.scheduled,
            event,
        });
    }

    fn next_token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Node(n, incarnation, event) => {
                if self.nodes[n].incarnation == incarnation {
                    // A node that was killed over it takes it up when it is back.
                    let _: Result<(), node::Killed> = self.on_node(n, event);
                }
            }
            Event::NodeUp(n) => {
                if self.nodes[n].life.is_none() && !self.nodes[n].is_lost {
                    self.start_node(n);
                }
            }
            Event::Image(n, image) => match self.nodes[n].life {
                Some(_) => {
                    let _: Result<(), node::Killed> = self.on_node(n, NodeEvent::Image(image));
                }
                None => self.after(REVIEW_MS, Event::Image(n, image)),
            },
            Event::Heartbeat(c, incarnation, heartbeat) => self.hear(c, incarnation, &heartbeat),
            Event::HeartbeatAgain(c, heartbeat) => {
                self.take_in(c, &heartbeat);
            }
            Event::Again(n, event) => {
                if self.nodes[n].life.is_some() {
                    let _: Result<(), node::Killed> = self.on_node(n, event);
                }
            }
            Event::CoordinatorUp(c) => {
                if !self.coordinators[c].is_up() {
                    self.coordinators[c].start(&self.scenario, self.now_ms);
                    self.note_paused();
                    self.ask_for_tick(c);
                    self.command(c, Input::Tick);
                }
            }
            Event::Tick(c, number) => {
                if self.ticks[c] == number {
                    self.command(c, Input::Tick);
                }
            }
            Event::Fault(number) => self.strike(number),
            Event::PowerCut(d) => self.cut_power(d),
            Event::Order(order) => self.order(order),
            Event::OldGone => {
                self.coordinators[OLD].kill();
                self.follows.fill(MAIN);
            }
            Event::Review => self.review(),
            Event::Ask => self.answer(),
        }
    }

    /// Gives a coordinator's engine an input. Whether it is stored.
    fn command(&mut self, c: usize, input: Input) -> bool {
        let scenario = Arc::clone(&self.scenario);
        let outcome = self.coordinators[c].apply(&scenario, self.now_ms, input, &mut self.evidence, |_| {});
        self.followed(c, &outcome)
    }

    fn followed(&mut self, c: usize, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Stored(permits) => {
                for permit in permits {
                    self.judge_permit(c, permit);
                    self.tell(|| format!("coordinator {c} issues {permit:?}"));
                }
            }
            Outcome::Refused => {}
            Outcome::Died { down_ms } => {
                self.watch.tally.kills += 1;
                if c == MAIN {
                    self.after(*down_ms, Event::CoordinatorUp(c));
                }
            }
        }
        self.ask_for_tick(c);
        if c == MAIN && matches!(outcome, Outcome::Stored(_)) {
            self.judge_rolled_back();
        }
        matches!(outcome, Outcome::Stored(_))
    }

    fn ask_for_tick(&mut self, c: usize) {
        self.ticks[c] += 1;
        if let Some(at_ms) = self.coordinators[c].wakes_at() {
            let tick = Event::Tick(c, self.ticks[c]);
            self.after(at_ms.saturating_sub(self.now_ms), tick);
        }
    }

    fn state(&self, id: &CampaignId) -> Option<CampaignState> {
        self.coordinators[MAIN].engine()?.state(id)
    }
}
