//! A whole fleet under faults, in virtual time: the campaign engine, the nodes' install rules and the attempt machine as
//! they run in production, in processes that are killed, over a network that loses things, with devices that lie.
//!
//! A run is a function of its seed, its profile and its list of faults: the same three give the same trace, on any number
//! of threads. After every event the promises are checked; the first broken one ends the run.

mod coordinator;
mod device;
mod dice;
mod evidence;
mod faults;
mod hunt;
mod node;
mod promises;
mod scenario;
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
    api::{CampaignState, GateVerdict},
    brake::Braked,
    ids::{ArtifactId, CampaignId, DeviceId, Sha256},
    report::{Permit, PermitKind},
};
use serde::{Deserialize, Serialize};

pub use faults::{Fault, Planned};
pub use hunt::{Finding, Hunt, Progress, Total, hunt};
pub use promises::{Broken, Promise, Tally};

use coordinator::{Answer, Coordinator, Heartbeat, Outcome};
use device::Device;
use dice::Dice;
use evidence::Evidence;
use faults::QUIET_AFTER_MS;
use node::Node;
use promises::Watch;
use scenario::Scenario;

use crate::device::Misbehaviour;

/// How long a heartbeat waits for its answer.
const SLOW_ANSWER_MS: u64 = 10_000;
/// How long before an operator's order that met nobody is repeated.
const ORDER_AGAIN_MS: u64 = 5_000;
/// How often the world looks whether everything is over.
const REVIEW_MS: u64 = 30_000;
/// How long an operator leaves alone what has come to a stand.
const PATIENCE_MS: u64 = 3_600_000;
/// By when everything must be over, without windows and with.
const ENDS_MS: u64 = 10 * 3_600_000;
const ENDS_WITH_WINDOWS_MS: u64 = 5 * 24 * 3_600_000;
/// Of so many seeds, one is run with every signature checked by everybody and every record read back from its bytes.
const SAMPLED: u64 = 16;

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
    let mut dice = Dice::new(seed);
    let scenario = Scenario::new(profile, &mut dice);
    faults::draw(profile, &scenario, &mut dice)
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
    CoordinatorUp(usize),
    Tick(usize, u64),
    Fault(usize),
    PowerCut(usize),
    Order(Order),
    /// The coordinator that was left behind is gone.
    OldGone,
    Review,
}

/// Something that reaches a node's process, if it is still the same.
#[derive(Debug, Clone)]
enum NodeEvent {
    Look,
    Sync,
    Answer(Option<Box<Answer>>),
    Attempt { device: usize, token: u64 },
    Permit(Arc<Permit>),
    Evidence(Sha256),
    Image(ArtifactId),
    Brake(Braked),
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Start(usize),
    Pause(usize, u64),
    Resume(usize),
    Cancel(usize),
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

/// What the network does to messages.
#[derive(Debug, Default)]
struct Links {
    up_cut_until: Vec<u64>,
    down_cut_until: Vec<u64>,
    mesh_cut_until: u64,
    lose: (u64, u64),
    slow: (u64, u64),
    lies_until: u64,
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
        let mut dice = Dice::new(seed);
        let scenario = Arc::new(Scenario::new(profile, &mut dice));
        let drawn = faults::draw(profile, &scenario, &mut dice);
        let faults = faults.unwrap_or(drawn);
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
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            coordinators: [Coordinator::new(), Coordinator::new()],
            ticks: [0; 2],
            follows: vec![MAIN; nodes],
            links: Links {
                up_cut_until: vec![0; nodes],
                down_cut_until: vec![0; nodes],
                ..Links::default()
            },
            evidence: Evidence::new(is_sampled),
            watch: Watch::new(faults.iter().all(is_sound)),
            cuts_in_write: vec![Vec::new(); scenario.devices.len()],
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
                    NodeEvent::Permit(permit) => 5 + (permit.sequence << 8),
                    NodeEvent::Evidence(_) => 6,
                    NodeEvent::Image(_) => 7,
                    NodeEvent::Brake(_) => 8,
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
                if self.nodes[n].life.is_none() {
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
                    self.judge_permit(permit);
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

    /// How long a message is under way; nothing if it is lost.
    fn under_way(&mut self) -> Option<u64> {
        let (permille, until) = self.links.lose;
        let is_lost = self.dice.below(1_000) < permille && self.now_ms < until;
        let (by_ms, slow_until) = self.links.slow;
        let slow = if self.now_ms < slow_until {
            self.dice.below(by_ms + 1)
        } else {
            0
        };
        let delay = 1 + self.dice.below(80) + slow;
        (!is_lost).then_some(delay)
    }

    fn reaches_coordinator(&self, n: usize) -> bool {
        let links = &self.links;
        let is_cut = self.now_ms < links.up_cut_until[n].max(links.down_cut_until[n]);
        !is_cut && self.coordinators[self.follows[n]].is_up()
    }

    fn send_heartbeat(&mut self, n: usize, heartbeat: Heartbeat) {
        let incarnation = self.nodes[n].incarnation;
        let is_cut = self.now_ms < self.links.up_cut_until[n];
        match self.under_way().filter(|_| !is_cut) {
            Some(delay) => self.after(
                delay,
                Event::Heartbeat(self.follows[n], incarnation, Box::new(heartbeat)),
            ),
            None => self.after(SLOW_ANSWER_MS, Event::Node(n, incarnation, NodeEvent::Answer(None))),
        }
    }

    fn hear(&mut self, c: usize, incarnation: u32, heartbeat: &Heartbeat) {
        let n = heartbeat.node;
        let scenario = Arc::clone(&self.scenario);
        let (outcome, mut answer) = self.coordinators[c].hear(&scenario, self.now_ms, heartbeat, &mut self.evidence);
        self.followed(c, &outcome);
        if c == MAIN && !matches!(outcome, Outcome::Died { .. }) {
            for braked in self.coordinators[c].brakes() {
                if let Braked::Campaign { id, .. } = braked {
                    self.watch.stopped(self.now_ms, id);
                }
            }
        }
        if let Some(answer) = answer.as_mut().filter(|_| self.now_ms < self.links.lies_until) {
            self.lie(n, answer);
        }
        let is_cut = self.now_ms < self.links.down_cut_until[n];
        let delay = self.under_way().filter(|_| !is_cut && answer.is_some());
        let (delay, answer) = match delay {
            Some(delay) => (delay, answer.map(Box::new)),
            None => (SLOW_ANSWER_MS, None),
        };
        self.after(delay, Event::Node(n, incarnation, NodeEvent::Answer(answer)));
    }

    /// Adds permits that no sound coordinator would sign.
    fn lie(&mut self, n: usize, answer: &mut Answer) {
        let scenario = Arc::clone(&self.scenario);
        for _ in 0..self.dice.below(5) / 4 {
            let approved = self.dice.pick(&scenario.campaigns);
            let (manifest, plan) = (&approved.campaign.manifest, &approved.campaign.plan);
            if plan.waves.is_empty() {
                continue;
            }
            let wave = self.dice.index(plan.waves.len() + 1);
            let own = scenario
                .devices
                .iter()
                .filter(|placed| placed.node == n || self.dice.one_in(4));
            let devices: Vec<DeviceId> = own.map(|placed| placed.id.clone()).collect();
            let kind = if self.dice.one_in(3) {
                PermitKind::Rollback
            } else {
                PermitKind::Update
            };
            let wall = self.coordinators[MAIN].wall(&scenario, self.now_ms);
            let evidence = self.false_evidence(&manifest.id, wave as u32);
            let ago = self.dice.below(40_000).cast_signed();
            let permit = Permit {
                campaign: manifest.id.clone(),
                manifest_sha256: match self.dice.below(8) {
                    0 => Sha256::of(b"another edition"),
                    _ => approved.campaign.manifest_sha256,
                },
                kind,
                wave: wave as u32,
                sequence: self.dice.below(1 << 16),
                epoch: self.coordinators[MAIN].epoch() + self.dice.below(3),
                issued: firmesh_protocol::time::WallTime::from_unix_seconds(wall.unix_seconds() - ago),
                expires: wall + std::time::Duration::from_secs(self.dice.below(7 * 86_400)),
                devices,
                evidence: evidence.into_iter().collect(),
            };
            answer.permits.push(Arc::new(permit));
        }
        // It hides what was stopped, too.
        if self.dice.one_in(2) {
            answer.campaigns = scenario
                .campaigns
                .iter()
                .map(|approved| approved.campaign.manifest.id.clone())
                .collect();
            answer.brakes.clear();
        }
    }

    /// A choice of what nodes really signed, called evidence for some wave.
    fn false_evidence(&mut self, campaign: &CampaignId, wave: u32) -> Option<Sha256> {
        if self.dice.one_in(4) {
            return None;
        }
        let reports = self.coordinators[MAIN].reports(campaign);
        let mut chosen = Vec::new();
        let mut named = BTreeSet::new();
        for report in reports {
            let fits = report.wave == wave && report.state.is_terminal() && report.kind == PermitKind::Update;
            let is_taken = if fits {
                !self.dice.one_in(4)
            } else {
                self.dice.one_in(24)
            };
            if is_taken && (named.insert(report.device.clone()) || self.dice.one_in(16)) {
                chosen.push(report);
            }
        }
        let about = if self.dice.one_in(8) { wave + 1 } else { wave };
        Some(self.evidence.collect(campaign, about, chosen))
    }

    /// Tells every other node.
    fn gossip(&mut self, from: usize, news: &NodeEvent) {
        if self.now_ms < self.links.mesh_cut_until {
            return;
        }
        for n in (0..self.nodes.len()).filter(|n| *n != from) {
            let incarnation = self.nodes[n].incarnation;
            if let Some(delay) = self.under_way() {
                self.after(delay, Event::Node(n, incarnation, news.clone()));
            }
        }
    }

    fn cut_power(&mut self, d: usize) {
        self.tell(|| format!("power cut at device {d}"));
        self.watch.tally.power_cuts += 1;
        self.watch.dark.insert(d, self.now_ms);
        if self.devices[d].cut_power(self.now_ms) {
            self.watch.tally.cuts_in_write += 1;
        }
        self.judge_restart(d);
    }

    fn order(&mut self, order: Order) {
        let (Order::Start(number) | Order::Pause(number, _) | Order::Resume(number) | Order::Cancel(number)) = order;
        let id = self.scenario.campaigns[number].campaign.manifest.id.clone();
        if !self.coordinators[MAIN].is_up() {
            return self.after(ORDER_AGAIN_MS, Event::Order(order));
        }
        let before = self.state(&id);
        if matches!(order, Order::Resume(_)) {
            // Its permits come with it.
            self.watch.paused(&id, false);
        }
        let input = match order {
            Order::Start(_) => Input::Start(id.clone()),
            Order::Pause(..) => Input::Pause(id.clone()),
            Order::Resume(_) => Input::Resume(id.clone()),
            Order::Cancel(_) => Input::Cancel(id.clone()),
        };
        let is_stored = self.command(MAIN, input);
        self.tell(|| format!("{order:?}: {is_stored}"));
        if !is_stored {
            self.note_paused();
        }
        match order {
            Order::Cancel(_) if is_stored => self.watch.stopped(self.now_ms, &id),
            Order::Pause(number, for_ms) if is_stored => {
                self.watch.paused(&id, true);
                self.after(for_ms, Event::Order(Order::Resume(number)));
            }
            // Refused by the database, or nobody knows: said again, unless the state has moved on.
            _ if !is_stored
                && self
                    .state(&id)
                    .is_none_or(|state| Some(state) == before && self.is_sensible(order, before)) =>
            {
                self.after(ORDER_AGAIN_MS, Event::Order(order));
            }
            _ => {}
        }
    }

    /// An order may have been stored by a process that died over it.
    fn note_paused(&mut self) {
        for approved in &self.scenario.campaigns {
            let id = &approved.campaign.manifest.id;
            let state = self.coordinators[MAIN].engine().and_then(|engine| engine.state(id));
            self.watch.paused(id, state == Some(CampaignState::Paused));
        }
    }

    fn is_sensible(&self, order: Order, state: Option<CampaignState>) -> bool {
        use CampaignState::{Active, Paused, RollingBack, Scheduled};
        let expired = |number: usize| {
            let expires = self.scenario.campaigns[number].campaign.manifest.expires;
            self.coordinators[MAIN].wall(&self.scenario, self.now_ms) >= expires
        };
        match order {
            Order::Start(number) => matches!(state, None | Some(Scheduled)) && !expired(number),
            Order::Pause(..) => matches!(state, None | Some(Active)),
            Order::Resume(_) => matches!(state, None | Some(Paused)),
            Order::Cancel(_) => matches!(state, None | Some(Scheduled | Active | Paused | RollingBack)),
        }
    }

    fn state(&self, id: &CampaignId) -> Option<CampaignState> {
        self.coordinators[MAIN].engine()?.state(id)
    }

    fn strike(&mut self, number: usize) {
        let now_ms = self.now_ms;
        let fault = self.faults[number].fault.clone();
        self.tell(|| format!("fault {number}: {fault:?}"));
        let until = |for_ms: u64| (now_ms + for_ms).min(QUIET_AFTER_MS);
        match fault {
            Fault::Misbehave { device, how } => self.misbehave(device, how),
            Fault::PowerCut { device } => self.cut_power(device),
            Fault::PowerCutInWrite { device, permille } => self.cuts_in_write[device].push(permille),
            Fault::KillNode { node, down_ms } => {
                self.watch.tally.kills += 1;
                self.kill_node(node, down_ms);
            }
            Fault::KillNodeAtWrite {
                node,
                writes,
                durable,
                down_ms,
            } => {
                self.watch.tally.kills += 1;
                self.nodes[node].dies_at = Some((writes, durable, down_ms));
            }
            Fault::KillCoordinator { down_ms } => {
                self.watch.tally.kills += 1;
                self.coordinators[MAIN].kill();
                self.after(down_ms, Event::CoordinatorUp(MAIN));
            }
            Fault::KillCoordinatorAtCommit {
                commits,
                durable,
                down_ms,
            } => self.coordinators[MAIN].dies_at = Some((commits, durable, down_ms)),
            Fault::RefuseCommits { commits } => self.coordinators[MAIN].refusing = commits,
            Fault::TakeOver { old_keeps, for_ms } => {
                if self.coordinators[MAIN].is_up() && !self.coordinators[OLD].is_up() {
                    let new = self.coordinators[MAIN].copy();
                    self.coordinators[OLD] = std::mem::replace(&mut self.coordinators[MAIN], new);
                    self.coordinators[MAIN].start(&self.scenario, now_ms);
                    old_keeps.into_iter().for_each(|n| self.follows[n] = OLD);
                    self.ask_for_tick(OLD);
                    self.command(MAIN, Input::Tick);
                    self.after(until(for_ms) - now_ms, Event::OldGone);
                }
            }
            Fault::Cut { node, up, down, for_ms } => {
                if up {
                    self.links.up_cut_until[node] = until(for_ms);
                }
                if down {
                    self.links.down_cut_until[node] = until(for_ms);
                }
            }
            Fault::CutMesh { for_ms } => self.links.mesh_cut_until = until(for_ms),
            Fault::Lose { permille, for_ms } => self.links.lose = (permille, until(for_ms)),
            Fault::Slow { by_ms, for_ms } => self.links.slow = (by_ms, until(for_ms)),
            Fault::Skew { node, by_ms, drift_ppm } => {
                (self.nodes[node].skew_ms, self.nodes[node].drift_ppm) = (by_ms, drift_ppm);
            }
            Fault::SkewCoordinator { by_ms } => self.coordinators[MAIN].skew_ms = by_ms,
            Fault::Lie { for_ms } => self.links.lies_until = until(for_ms),
            Fault::Pause { campaign, for_ms } => self.order(Order::Pause(campaign, for_ms)),
            Fault::Cancel { campaign } => self.order(Order::Cancel(campaign)),
            Fault::Brake { campaign, node } => {
                let approved = &self.scenario.campaigns[campaign].campaign;
                let braked = Braked::Campaign {
                    id: approved.manifest.id.clone(),
                    manifest_sha256: approved.manifest_sha256,
                };
                let incarnation = self.nodes[node].incarnation;
                self.after(0, Event::Node(node, incarnation, NodeEvent::Brake(braked)));
            }
        }
    }

    fn misbehave(&mut self, d: usize, how: Misbehaviour) {
        // An image that has come up on a host comes up again.
        let is_proven = |sha256| self.devices[d].has_run(sha256);
        match how {
            Misbehaviour::FailBoot { sha256 } if is_proven(sha256) => {}
            _ => self.devices[d].misbehave(how),
        }
    }

    /// Looks whether everything is over, and does what an operator does who finds a campaign waiting for him.
    fn review(&mut self) {
        self.after(REVIEW_MS, Event::Review);
        let states: Vec<_> = (0..self.scenario.campaigns.len())
            .map(|number| {
                let id = &self.scenario.campaigns[number].campaign.manifest.id;
                (number, id.clone(), self.state(id))
            })
            .collect();
        self.tell(|| format!("{states:?}"));
        let is_due = |number: usize| self.now_ms > self.scenario.campaigns[number].starts_ms + ORDER_AGAIN_MS;
        let is_ended = |(number, _, state): &(usize, CampaignId, Option<CampaignState>)| {
            is_due(*number)
                && state.is_some_and(|state| {
                    state.is_terminal()
                        || (state == CampaignState::Scheduled && !self.is_sensible(Order::Start(*number), Some(state)))
                })
        };
        let nodes_are_idle = (0..self.nodes.len()).all(|n| self.is_node_idle(n));
        if nodes_are_idle && states.iter().all(is_ended) && !self.coordinators[OLD].is_up() {
            self.judge_all();
            self.is_over = true;
            return;
        }
        if self.now_ms < QUIET_AFTER_MS {
            return;
        }
        let has_windows = self.scenario.campaigns.iter().any(|approved| approved.window.is_some());
        let ends_ms = if has_windows { ENDS_WITH_WINDOWS_MS } else { ENDS_MS };
        // A liar can delay for good; that is all it can.
        let is_lied_to = self.links.lies_until > 0;
        if self.now_ms > ends_ms || (is_lied_to && self.now_ms > 2 * QUIET_AFTER_MS) {
            if !is_lied_to {
                let waits: Vec<_> = states
                    .iter()
                    .filter(|state| !is_ended(state))
                    .map(|(_, id, _)| self.waits(id))
                    .collect();
                let busy: Vec<_> = (0..self.nodes.len()).filter(|n| !self.is_node_idle(*n)).collect();
                let how = format!(
                    "after {} s nodes {busy:?} are busy; {}",
                    self.now_ms / 1_000,
                    waits.join("; ")
                );
                self.watch.blame(self.now_ms, Promise::Live, how);
            }
            self.judge_all();
            self.is_over = true;
            return;
        }
        self.stuck_since = self.is_stuck().then(|| self.stuck_since.unwrap_or(self.now_ms));
        for (number, id, state) in states {
            match state {
                Some(CampaignState::Paused) => self.order(Order::Resume(number)),
                Some(CampaignState::Active | CampaignState::RollingBack) if self.waits_for_a_person(&id) => {
                    self.order(Order::Cancel(number));
                }
                _ => {}
            }
        }
    }

    /// What a campaign waits for, by the engine's own word.
    fn waits(&self, id: &CampaignId) -> String {
        let engine = self.coordinators[MAIN].engine();
        let reason = engine.and_then(|engine| engine.campaign(id)).map(|view| view.reason);
        let attempts = engine.and_then(|engine| engine.attempts(id)).unwrap_or_default();
        let open = attempts.iter().filter(|view| !view.state.is_terminal()).take(3);
        let open: Vec<_> = open
            .map(|view| format!("{} {} {}", view.device, view.state, view.reason))
            .collect();
        format!("{id}: {} ({})", reason.unwrap_or_default(), open.join(", "))
    }

    /// Whether nothing but a person can help: a gate holds, or for an hour nothing has been in flight but devices that
    /// wait for somebody to look at them.
    fn waits_for_a_person(&self, id: &CampaignId) -> bool {
        let engine = self.coordinators[MAIN].engine();
        let view = engine.and_then(|engine| engine.campaign(id));
        let holds = view.is_some_and(|view| {
            view.waves
                .iter()
                .any(|wave| wave.open && wave.gate == GateVerdict::Hold)
        });
        // What two coordinators have made of it, or a liar, is a person's to end.
        let is_muddled = !self.watch.coordinator_is_sound && self.now_ms > 2 * QUIET_AFTER_MS;
        holds || is_muddled || self.stuck_since.is_some_and(|since| since + PATIENCE_MS < self.now_ms)
    }

    /// Whether there is something in flight by somebody's books, and all of it is quarantined.
    fn is_stuck(&self) -> bool {
        let Some(engine) = self.coordinators[MAIN].engine() else {
            return false;
        };
        let in_flight = engine.in_flight();
        let kept_by_nodes = self.watch.quarantined().next().is_some();
        let is_idle = in_flight.keys().all(|device| engine.is_quarantined(device));
        is_idle && (kept_by_nodes || !in_flight.is_empty())
    }
}
