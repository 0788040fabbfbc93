//! One run: the engine, and everybody around it in virtual time.
//!
//! Nodes ask for permits at their own beat, start a device inside the windows only, say that it has started, and say how it
//! ended; as they do in production, they tell at once. What they are permitted, and what follows from what they say, is
//! the engine's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    approval::WaveApprovalView,
    health::DeviceHealth,
    ids::Sha256,
    rehearsal::{Ending, Fault},
    report::{AttemptReport, AttemptState, FailureClass, PermitKind},
    time::{Timestamp, WallTime},
    window::Subject,
};

use super::{
    RehearseError,
    book::{Book, Peak},
    stage::{Place, Stage},
    times::{Dice, Drawn},
};
use crate::{
    Approval, CampaignRecord, Engine, EngineSettings, Input, Output, PermitOrder, Record, WebhookAnswer, WebhookRecord,
};

/// How often a node asks for permits: `poll_interval` of a node that nobody has configured otherwise.
pub(super) const SYNC: Duration = Duration::from_secs(5);

/// Events of one run at most: months of waiting for a window, or a mistake.
const EVENTS_MAX: usize = 2_000_000;

/// Events between two looks at the caller's patience.
const EVENTS_BETWEEN_LOOKS: usize = 32;

/// What one run came to. Times are in seconds since the start of the campaign.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) ending: Ending,
    pub(super) reason: String,
    pub(super) ends_s: u64,
    /// By wave, as far as they opened.
    pub(super) opened_s: Vec<u64>,
    /// By wave, when its gate passed.
    pub(super) passed_s: Vec<Option<u64>>,
    /// By wave, when the last of its devices ended.
    pub(super) ended_s: Vec<Option<u64>>,
    pub(super) stopped: Option<(u32, u64)>,
    pub(super) exposed: u64,
    pub(super) harmed: u64,
    pub(super) went_back: u64,
    pub(super) updated: u64,
    pub(super) peaks: Vec<Peak>,
    pub(super) timeline: Vec<(Timestamp, u32)>,
}

/// Plays one run; `None` if the caller's patience is over.
pub(super) fn play(
    stage: &Stage<'_>,
    fault: Option<&Fault>,
    number: u32,
    goes_on: &dyn Fn() -> bool,
) -> Result<Option<Played>, RehearseError> {
    let mut run = Run::new(stage, fault, number)?;
    let mut events = 0;
    if !goes_on() {
        return Ok(None);
    }
    while run.step()? {
        events += 1;
        if events % EVENTS_BETWEEN_LOOKS == 0 && !goes_on() {
            return Ok(None);
        }
        if events > EVENTS_MAX {
            let scenario = fault.map_or_else(|| "undisturbed".to_owned(), Fault::title);
            return Err(RehearseError::Endless { scenario, events });
        }
    }
    Ok(Some(run.close()))
}

#[derive(Debug)]
enum Event {
    /// A permit is at a node.
    Permit {
        node: usize,
        kind: PermitKind,
        sequence: u64,
        expires: Timestamp,
        devices: Vec<usize>,
    },
    /// A device's attempt is over.
    End(usize),
    /// Nodes that have nothing to say are heard of.
    Beat,
}

/// What happens to a device that is started.
#[derive(Debug, Clone, Copy)]
struct Course {
    kind: PermitKind,
    sequence: u64,
    ends_as: AttemptState,
}

#[derive(Debug, Clone, Copy, Default)]
struct Device {
    drawn: Drawn,
    is_faulty: bool,
    has_started: bool,
    has_gone_back: bool,
    waits_for_window: bool,
    course: Option<Course>,
    /// How its last attempt ended.
    end: Option<AttemptState>,
}

struct Run<'a> {
    stage: &'a Stage<'a>,
    fault: Option<&'a Fault>,
    engine: Engine,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Event>,
    queued: u64,
    devices: Vec<Device>,
    /// When each node asks, within [`SYNC`].
    phases: Vec<Duration>,
    reports: Vec<u64>,
    /// Devices permitted and not started: their nodes have to be heard of.
    waiting: BTreeSet<usize>,
    beats: bool,
    silent_rack: Option<usize>,
    has_fallen_silent: bool,
    book: Book,
    gates: Vec<GateVerdict>,
    opened: Vec<Timestamp>,
    passed: Vec<Option<Timestamp>>,
    ended: Vec<Option<Timestamp>>,
    stopped: Option<(usize, Timestamp)>,
    over: Option<Timestamp>,
    /// The wave that an approver is asked about.
    asked: Option<u32>,
    /// Whether webhooks are asked.
    asks_webhooks: bool,
    reason: String,
}

impl<'a> Run<'a> {
    fn new(stage: &'a Stage<'a>, fault: Option<&'a Fault>, number: u32) -> Result<Self, RehearseError> {
        let mut dice = Dice::of_run(stage.question.seed, number);
        let share = match fault {
            Some(Fault::Brick { share } | Fault::Unhealthy { share } | Fault::Stall { share }) => share.get(),
            Some(Fault::Silent { .. }) | None => 0,
        };
        let device = |place: &Place| Device {
            drawn: stage.times[place.times].draw(&mut dice),
            is_faulty: dice.below(10_000) < u64::from(share),
            ..Device::default()
        };
        let devices = stage.places.iter().map(device).collect();
        let sync = u64::try_from(SYNC.as_millis()).unwrap_or(u64::MAX);
        let phases = stage
            .nodes
            .iter()
            .map(|_| Duration::from_millis(dice.below(sync)))
            .collect();
        let silent_rack = match fault {
            Some(Fault::Silent { rack }) => stage.racks.iter().position(|known| Some(known) == rack.as_ref()),
            _ => None,
        };
        let waves = stage.facts.plan.waves.len();
        let mut run = Self {
            stage,
            fault,
            engine: Engine::new(EngineSettings {
                permit_ttl: stage.facts.permit_ttl,
            }),
            now: Timestamp::default(),
            queue: BTreeMap::new(),
            queued: 0,
            devices,
            phases,
            reports: vec![0; stage.nodes.len()],
            waiting: BTreeSet::new(),
            beats: false,
            silent_rack,
            has_fallen_silent: false,
            book: Book::new(stage.sites.len(), stage.racks.len(), waves),
            gates: Vec::new(),
            opened: Vec::new(),
            passed: vec![None; waves],
            ended: vec![None; waves],
            stopped: None,
            over: None,
            asked: None,
            asks_webhooks: false,
            reason: String::new(),
        };
        run.input(Input::Load(vec![stage.loaded()]))?;
        run.input(Input::Start(stage.facts.manifest.id.clone()))?;
        Ok(run)
    }

    /// Does what comes next; false when nothing does.
    fn step(&mut self) -> Result<bool, RehearseError> {
        let is_beat = |event: &Event| matches!(event, Event::Beat);
        // A campaign that is over lets devices in flight end.
        if self.over.is_some() && self.queue.values().all(is_beat) {
            return Ok(false);
        }
        let event = self.queue.first_key_value().map(|(key, _)| *key);
        let deadline = self.engine.deadline();
        // Only its expiry is left: whatever keeps the campaign, time does not help.
        if event.is_none() && deadline.is_none_or(|at| at >= self.stage.expires_at) {
            return Ok(false);
        }
        match event.filter(|(at, _)| deadline.is_none_or(|deadline| *at <= deadline)) {
            Some(key) => {
                self.now = key.0;
                match self.queue.remove(&key) {
                    Some(Event::Permit {
                        node,
                        kind,
                        sequence,
                        expires,
                        devices,
                    }) => {
                        self.permitted(node, kind, (sequence, expires), &devices)?;
                    }
                    Some(Event::End(device)) => self.end(device)?,
                    Some(Event::Beat) => self.beat()?,
                    None => {}
                }
            }
            None => {
                self.now = deadline.unwrap_or(self.now);
                self.input(Input::Tick)?;
            }
        }
        Ok(true)
    }

    fn input(&mut self, input: Input) -> Result<(), RehearseError> {
        self.engine.handle(self.now, input)?;
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Persist(Record::Campaign(record)) => self.note(&record),
                Output::Persist(Record::Attempt(_, record)) => {
                    let number = self.stage.numbers[&record.device];
                    if record.presumed && record.state.is_terminal() {
                        self.waiting.remove(&number);
                        self.ends(number, record.state);
                    }
                }
                Output::Persist(Record::Possession(..)) => {}
                Output::IssuePermit(order) => self.issue(&order),
            }
        }
        self.say_yes()
    }

    /// People and webhooks are taken to say yes at once: how long they think about it is not known.
    fn say_yes(&mut self) -> Result<(), RehearseError> {
        // What is answered may lead to other questions, which are answered on the way.
        while std::mem::take(&mut self.asks_webhooks) {
            if let Some(question) = self.engine.questions().into_iter().next() {
                self.input(Input::WebhookAnswered(WebhookAnswer {
                    campaign: question.campaign,
                    wave: question.wave,
                    webhook: question.webhook,
                    act: question.act.map(|(act, _)| act),
                    verdict: GateVerdict::Pass,
                    reason: "rehearsed".to_owned(),
                }))?;
            }
        }
        let Some(wave) = self.asked.take() else {
            return Ok(());
        };
        self.input(Input::Approve(Approval {
            campaign: self.stage.facts.manifest.id.clone(),
            wave,
            approved: true,
            reason: "rehearsed".to_owned(),
            by: Vec::new(),
            document: Sha256::of(b""),
            moved_on: BTreeSet::new(),
        }))
    }

    fn note(&mut self, record: &CampaignRecord) {
        let is_open = |asked: &&WaveApprovalView| asked.approved.is_none() && !record.state.is_terminal();
        let is_asked = |asked: &WebhookRecord| asked.verdict == GateVerdict::Unknown;
        self.asks_webhooks = record.webhooks.iter().any(is_asked);
        self.asked = record.approvals.iter().find(is_open).map(|asked| asked.wave);
        for (wave, gate) in record.gates.iter().enumerate() {
            if wave == self.gates.len() {
                self.gates.push(GateVerdict::Unknown);
                self.opened.push(self.now);
                self.book.open(wave);
            }
            if self.gates[wave] == *gate {
                continue;
            }
            self.gates[wave] = *gate;
            match gate {
                GateVerdict::Pass => {
                    self.passed[wave] = Some(self.now);
                    self.stopped = self.stopped.filter(|(stopped, _)| *stopped != wave);
                }
                GateVerdict::Fail | GateVerdict::Hold => self.stopped = self.stopped.or(Some((wave, self.now))),
                GateVerdict::Unknown => {}
            }
        }
        self.reason.clone_from(&record.reason);
        if record.state.is_terminal() {
            self.over = self.over.or(Some(self.now));
        }
    }

    /// Permits go out with each node's next word.
    fn issue(&mut self, order: &PermitOrder) {
        let mut by_node: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for device in &order.devices {
            let number = self.stage.numbers[device];
            let place = &self.stage.places[number];
            by_node.entry(place.node).or_default().push(number);
            self.book.enter(
                number,
                (place.site, place.rack),
                self.opened.len().saturating_sub(1),
                self.now,
            );
            self.waiting.insert(number);
        }
        let (kind, sequence) = (order.kind, order.sequence);
        let expires = self.now + self.stage.facts.permit_ttl;
        for (node, devices) in by_node {
            self.at(
                self.now + self.phases[node],
                Event::Permit {
                    node,
                    kind,
                    sequence,
                    expires,
                    devices,
                },
            );
        }
        self.expect_beats();
    }

    /// A node has a permit, or its window has opened.
    fn permitted(
        &mut self,
        node: usize,
        kind: PermitKind,
        (sequence, expires): (u64, Timestamp),
        devices: &[usize],
    ) -> Result<(), RehearseError> {
        if self.is_silent(node) || self.now >= expires {
            return Ok(());
        }
        let (manifest, wall) = (&self.stage.facts.manifest, self.wall());
        let goes_forward = kind == PermitKind::Update;
        let rules = &manifest.constraints;
        // One for all devices of the node, unless there are rules that are for some only.
        let shared = rules.timetable(Subject::NOBODY).check(wall, manifest.worst_case_of(1));
        let (stage, is_shared) = (self.stage, !rules.has_selective_times());
        let rack = &stage.racks[stage.node_racks[node]];
        let window = |place: &Place| match (goes_forward, is_shared && place.steps == 1) {
            (false, _) => Ok(()),
            (true, true) => shared,
            (true, false) => {
                let device = &place.device;
                let model = stage.facts.kinds.get(device).map_or("", |kind| kind.model.as_str());
                rules
                    .timetable(Subject::new(device, rack, model))
                    .check(wall, manifest.worst_case_of(place.steps))
            }
        };
        let (mut told, mut later) = (Vec::new(), Vec::new());
        let mut opens: Option<WallTime> = None;
        for &number in devices {
            let device = &mut self.devices[number];
            let was_started = if goes_forward {
                device.has_started
            } else {
                device.has_gone_back
            };
            if was_started || !self.waiting.contains(&number) {
                continue;
            }
            if goes_forward && wall >= manifest.expires {
                self.waiting.remove(&number);
                self.ends(number, AttemptState::Cancelled);
                told.push((number, AttemptState::Cancelled));
            } else if let Err(closed) = window(&stage.places[number]) {
                opens = [opens, closed.opens].into_iter().flatten().min();
                if !std::mem::replace(&mut device.waits_for_window, true) {
                    told.push((number, AttemptState::WaitingWindow));
                }
                later.push(number);
            } else {
                self.waiting.remove(&number);
                self.start(number, kind, sequence);
                told.push((number, AttemptState::Installing));
            }
        }
        if let Some(at) = opens.filter(|_| !later.is_empty()) {
            let opens = at.unix_seconds() - self.stage.question.starts.unix_seconds();
            let opens = Timestamp::after_start(Duration::from_secs(opens.max(0).cast_unsigned()));
            if opens < expires {
                self.at(
                    opens,
                    Event::Permit {
                        node,
                        kind,
                        sequence,
                        expires,
                        devices: later,
                    },
                );
            }
        }
        self.tell(node, kind, sequence, &told)?;
        let has_started = told.iter().any(|(_, state)| *state == AttemptState::Installing);
        self.has_fallen_silent |= has_started && self.silent_rack == Some(self.stage.node_racks[node]);
        Ok(())
    }

    fn start(&mut self, number: usize, kind: PermitKind, sequence: u64) {
        let manifest = &self.stage.facts.manifest;
        let steps = self.stage.places[number].steps;
        let device = &mut self.devices[number];
        // Being watched is a part of the attempt.
        let health = self.stage.facts.manifest.gate.health.as_ref();
        let watched = health.map_or(0, |health| 1_000 * u64::from(health.watch_s));
        // What goes wrong goes wrong in the first step.
        let (takes, ends_as, steps) = match kind {
            PermitKind::Rollback => {
                device.has_gone_back = true;
                (device.drawn.restore, AttemptState::RolledBack, 1)
            }
            PermitKind::Update => {
                device.has_started = true;
                match self.fault.filter(|_| device.is_faulty) {
                    Some(Fault::Brick { .. }) => (u64::MAX, AttemptState::Quarantined, 1),
                    // It comes up once more, with the old version.
                    Some(Fault::Unhealthy { .. }) => {
                        let takes = device.drawn.forward() + device.drawn.reboot;
                        (takes, AttemptState::RolledBack, 1)
                    }
                    Some(Fault::Stall { .. }) => (u64::MAX, AttemptState::TimedOut, 1),
                    Some(Fault::Silent { .. }) | None => {
                        let takes = (device.drawn.forward() + watched).saturating_mul(steps.into());
                        (takes, AttemptState::Success, steps)
                    }
                }
            }
        };
        let (takes, worst_case) = (Duration::from_millis(takes), manifest.worst_case_of(steps));
        // Nodes end an attempt at its deadline, and whatever the device is in the middle of then is a person's to judge.
        let (takes, ends_as) = match (takes > worst_case, ends_as) {
            (true, AttemptState::TimedOut) => (worst_case, AttemptState::TimedOut),
            (true, _) => (worst_case, AttemptState::Quarantined),
            (false, ends_as) => (takes, ends_as),
        };
        device.course = Some(Course {
            kind,
            sequence,
            ends_as,
        });
        self.at(self.now + takes, Event::End(number));
    }

    fn end(&mut self, number: usize) -> Result<(), RehearseError> {
        let node = self.stage.places[number].node;
        let Some(Course {
            kind,
            sequence,
            ends_as,
        }) = self.devices[number].course.take()
        else {
            return Ok(());
        };
        if self.is_silent(node) {
            return Ok(());
        }
        self.ends(number, ends_as);
        self.tell(node, kind, sequence, &[(number, ends_as)])
    }

    /// Notes how an attempt ended; before the engine hears of it, which may fill its place at once.
    fn ends(&mut self, number: usize, state: AttemptState) {
        let place = &self.stage.places[number];
        if state != AttemptState::Quarantined {
            self.book.leave(number, (place.site, place.rack), self.now);
        }
        let device = &mut self.devices[number];
        device.end = Some(state);
        if device.has_started {
            self.ended[place.wave] = Some(self.now);
        }
    }

    fn beat(&mut self) -> Result<(), RehearseError> {
        self.beats = false;
        let nodes: BTreeSet<_> = self
            .waiting
            .iter()
            .map(|number| self.stage.places[*number].node)
            .collect();
        for node in nodes
            .into_iter()
            .filter(|node| !self.is_silent(*node))
            .collect::<Vec<_>>()
        {
            self.heard(node, Vec::new())?;
        }
        self.expect_beats();
        Ok(())
    }

    /// Waiting nodes are heard of often enough not to be taken for silent.
    fn expect_beats(&mut self) {
        let waits = self
            .waiting
            .iter()
            .any(|number| !self.is_silent(self.stage.places[*number].node));
        if waits && !self.beats {
            self.beats = true;
            self.at(self.now + self.stage.facts.permit_ttl.max(SYNC) / 2, Event::Beat);
        }
    }

    fn tell(
        &mut self,
        node: usize,
        kind: PermitKind,
        permit_sequence: u64,
        told: &[(usize, AttemptState)],
    ) -> Result<(), RehearseError> {
        if told.is_empty() {
            return Ok(());
        }
        let (at, manifest) = (self.wall(), &self.stage.facts.manifest);
        let report = |(number, state): &(usize, AttemptState)| {
            let place = &self.stage.places[*number];
            self.reports[node] += 1;
            AttemptReport {
                campaign: manifest.id.clone(),
                // The engine is told what was checked already: digests are the shell's.
                manifest_sha256: Sha256::from([0; 32]),
                wave: u32::try_from(place.wave).unwrap_or(u32::MAX),
                kind,
                permit_sequence,
                attempt: 1,
                device: place.device.clone(),
                node: self.stage.nodes[node].clone(),
                sequence: self.reports[node],
                state: *state,
                reason: String::new(),
                version: None,
                failure: match state {
                    AttemptState::Quarantined => Some(FailureClass::Unreachable),
                    AttemptState::TimedOut => Some(FailureClass::Timeout),
                    AttemptState::RolledBack if kind == PermitKind::Update => Some(FailureClass::Health),
                    _ => None,
                },
                health: (*state == AttemptState::Success && manifest.gate.health.is_some())
                    .then_some(DeviceHealth::Healthy),
                at,
            }
        };
        let reports = told.iter().map(report).collect();
        self.heard(node, reports)
    }

    fn heard(&mut self, node: usize, reports: Vec<AttemptReport>) -> Result<(), RehearseError> {
        let node = self.stage.nodes[node].clone();
        self.input(Input::Heard { node, reports })
    }

    fn at(&mut self, at: Timestamp, event: Event) {
        self.queued += 1;
        self.queue.insert((at, self.queued), event);
    }

    fn wall(&self) -> WallTime {
        self.stage.question.starts + self.now.since_start()
    }

    fn is_silent(&self, node: usize) -> bool {
        self.has_fallen_silent && self.silent_rack == Some(self.stage.node_racks[node])
    }

    fn close(self) -> Played {
        let seconds = |at: Timestamp| {
            at.since_start()
                .as_millis()
                .div_ceil(1_000)
                .try_into()
                .unwrap_or(u64::MAX)
        };
        let all = |times: &[Option<Timestamp>]| times.iter().map(|at| at.map(seconds)).collect();
        let count = |is: fn(&Device) -> bool| self.devices.iter().filter(|device| is(device)).count() as u64;
        let ending = match self.engine.state(&self.stage.facts.manifest.id) {
            Some(CampaignState::Completed) => Ending::Completed,
            Some(CampaignState::RolledBack) => Ending::RolledBack,
            Some(CampaignState::Failed | CampaignState::Cancelled) => Ending::Failed,
            Some(
                CampaignState::PendingApproval
                | CampaignState::Scheduled
                | CampaignState::Active
                | CampaignState::Paused
                | CampaignState::RollingBack,
            )
            | None => Ending::Waits,
        };
        // What waits for a person was stopped, if not by a gate, then by quarantined devices that fill the caps.
        let newest = self.opened.len().checked_sub(1).filter(|_| ending == Ending::Waits);
        let stopped = self.stopped.or_else(|| Some((newest?, self.now)));
        Played {
            ending,
            ends_s: seconds(self.over.unwrap_or(self.now)),
            opened_s: self.opened.iter().copied().map(seconds).collect(),
            passed_s: all(&self.passed),
            ended_s: all(&self.ended),
            stopped: stopped.map(|(wave, at)| (u32::try_from(wave).unwrap_or(u32::MAX), seconds(at))),
            exposed: count(|device| device.has_started),
            harmed: count(|device| device.end == Some(AttemptState::Quarantined)),
            went_back: count(|device| device.end == Some(AttemptState::RolledBack)),
            updated: count(|device| device.end == Some(AttemptState::Success)),
            peaks: self.book.peaks,
            timeline: self.book.timeline,
            reason: self.reason,
        }
    }
}
