//! Hosts that step aside for their devices: the machine's outputs carried out as the node's runtime does, on hosts that a
//! controller of clusters looks after. What it was told goes on when the node dies, and what comes after that is not asked.

use std::{collections::BTreeMap, time::Duration};

use firmesh_executors_core::{
    ActError, Attempt, AttemptRecord, ClusterLimits, ClusterSeen, Goal, Host, HostInput, HostOutput, HostRecord,
    HostSeen, HostState, HostStep, OtherHost,
};
use firmesh_protocol::{brake::Braked, report::AttemptState};

use super::{
    Event, NodeEvent, Promise, World, coordinator::at, faults::QUIET_AFTER_MS, node::Killed, scenario::PlacedHost,
};

/// How long an attempt waits for its host at most.
const WITHIN: Duration = Duration::from_secs(900);
/// What a cluster allows.
const LIMITS: ClusterLimits = ClusterLimits {
    at_once: 1,
    serving_min: 0,
};

/// A host as its controller has it.
#[derive(Debug, Default)]
pub(super) struct RealHost {
    pub(super) aside: bool,
    /// An administrator had it step aside.
    pub(super) by_admin: bool,
    /// When it will have stepped aside, whoever listens then.
    entering_until: Option<u64>,
}

impl RealHost {
    pub(super) fn new(placed: &PlacedHost) -> Self {
        Self {
            aside: placed.aside_before,
            by_admin: placed.aside_before,
            entering_until: None,
        }
    }

    fn settle(&mut self, now_ms: u64) {
        if self.entering_until.is_some_and(|until| until <= now_ms) {
            (self.aside, self.entering_until) = (true, None);
        }
    }
}

/// The hosts of a node's process, and who waits for them.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    hosts: BTreeMap<usize, Kept>,
    waiting: BTreeMap<usize, Waiting>,
    /// Interrupted, and not to be gone on with yet: their images are looked at.
    parked: BTreeMap<usize, AttemptRecord>,
}

#[derive(Debug)]
struct Kept {
    machine: Host,
    /// The answer of the act under way, if it is known already.
    act: Option<(HostStep, Option<HostInput>)>,
    /// Names the tick that is waited for.
    tick: u64,
}

#[derive(Debug)]
struct Waiting {
    record: AttemptRecord,
    since_ms: u64,
}

impl Hosts {
    /// Whether an attempt on a device is under way that does not run.
    pub(super) fn has(&self, d: usize) -> bool {
        self.waiting.contains_key(&d) || self.parked.contains_key(&d)
    }

    /// Whether an attempt on a device that does not run is for a campaign.
    pub(super) fn goal(&self, d: usize) -> Option<&Goal> {
        let waiting = self.waiting.get(&d).map(|waiting| &waiting.record);
        waiting.or_else(|| self.parked.get(&d)).map(|record| &record.goal)
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = usize> {
        self.waiting.keys().chain(self.parked.keys()).copied()
    }

    /// Whether nobody waits, and every host is back.
    pub(super) fn is_idle(&self) -> bool {
        let is_back = |kept: &Kept| kept.machine.state() == HostState::Back && !kept.machine.is_owed();
        self.waiting.is_empty() && self.parked.is_empty() && self.hosts.values().all(is_back)
    }
}

impl World {
    /// Makes the machines of a process that begins, with what it has kept and who must not find his host given back.
    pub(super) fn make_hosts(&mut self, n: usize, resumed: &[(usize, AttemptRecord)]) {
        let now = at(self.now_ms);
        for h in 0..self.scenario.hosts.len() {
            if self.scenario.hosts[h].node != n {
                continue;
            }
            let record = self.nodes[n].disk.hosts.get(&h).map(|record| match self.is_sampled {
                true => HostRecord::from_bytes(&record.to_bytes()).expect("a record reads back"),
                false => record.clone(),
            });
            let mut machine = Host::new(record.as_ref(), 0x9e37_79b9 * (h as u64 + 1), now);
            for (d, record) in resumed {
                let goes_on = record
                    .outcome()
                    .is_none_or(|outcome| record.goal.whole(outcome.clone()).is_none());
                if self.scenario.devices[*d].host == Some(h) && goes_on {
                    machine.keep(&record.goal.device);
                }
            }
            machine.begin(now);
            let kept = Kept {
                machine,
                act: None,
                tick: 0,
            };
            if let Some(life) = &mut self.nodes[n].life {
                life.hosts.hosts.insert(h, kept);
            }
        }
    }

    /// Gives back what nobody needs any more.
    pub(super) fn begin_hosts(&mut self, n: usize) -> Result<(), Killed> {
        let all: Vec<_> = self.life(n)?.hosts.hosts.keys().copied().collect();
        all.into_iter().try_for_each(|h| self.drive_host(n, h))
    }

    /// Has an interrupted attempt that needs its host wait until its image was looked at.
    pub(super) fn park(&mut self, n: usize, d: usize, record: AttemptRecord) -> Result<(), Killed> {
        self.life(n)?.hosts.parked.insert(d, record);
        let after = self.dice.below(10_000);
        let incarnation = self.nodes[n].incarnation;
        self.after(after, Event::Node(n, incarnation, NodeEvent::Unpark(d)));
        Ok(())
    }

    pub(super) fn unpark(&mut self, n: usize, d: usize) -> Result<(), Killed> {
        match self.life(n)?.hosts.parked.remove(&d) {
            Some(record) => self.await_host(n, d, record),
            None => Ok(()),
        }
    }

    /// Begins an attempt, once its host has stepped aside if it has one.
    pub(super) fn begin_attempt(&mut self, n: usize, d: usize, goal: Goal) -> Result<(), Killed> {
        if self.scenario.devices[d].host.is_none() {
            let (left, attempt) = (goal.attempt_limit(), Attempt::new(goal.clone(), at(self.now_ms)));
            return self.run_attempt(n, d, goal, attempt, left);
        }
        let record = AttemptRecord::waiting(goal);
        self.write(n, |disk| disk.records.insert(d, record.clone()))?;
        self.await_host(n, d, record)
    }

    fn await_host(&mut self, n: usize, d: usize, record: AttemptRecord) -> Result<(), Killed> {
        let (now, since_ms) = (at(self.now_ms), self.now_ms);
        let until = now + WITHIN.min(record.may_wait());
        let device = record.goal.device.clone();
        let Some(h) = self.scenario.devices[d].host else {
            return Ok(());
        };
        let hosts = &mut self.life(n)?.hosts;
        hosts.waiting.insert(d, Waiting { record, since_ms });
        if let Some(kept) = hosts.hosts.get_mut(&h) {
            kept.machine.want(&device, until, now);
        }
        self.drive_host(n, h)
    }

    /// The attempt on a device has ended.
    pub(super) fn release_host(&mut self, n: usize, d: usize) -> Result<(), Killed> {
        let (now, placed) = (at(self.now_ms), &self.scenario.devices[d]);
        let Some(h) = placed.host else { return Ok(()) };
        let device = placed.id.clone();
        let hosts = &mut self.life(n)?.hosts;
        hosts.waiting.remove(&d);
        if let Some(kept) = hosts.hosts.get_mut(&h) {
            kept.machine.release(&device, now);
        }
        self.drive_host(n, h)
    }

    /// Attempts that have done nothing yet are over when what they would install was stopped for good.
    pub(super) fn give_up_braked(&mut self, n: usize) -> Result<(), Killed> {
        let brakes = &self.nodes[n].disk.brakes;
        let is_braked = |waiting: &Waiting| {
            let goal = &waiting.record.goal;
            let (id, manifest_sha256) = (goal.campaign.clone(), goal.manifest_sha256);
            waiting.record.is_untouched() && brakes.contains(&Braked::Campaign { id, manifest_sha256 })
        };
        let Some(life) = &self.nodes[n].life else {
            return Err(Killed);
        };
        let waiting = life.hosts.waiting.iter();
        let braked: Vec<_> = waiting.filter(|(_, one)| is_braked(one)).map(|(d, _)| *d).collect();
        for d in braked {
            if let Some(Waiting { record, .. }) = self.life(n)?.hosts.waiting.remove(&d) {
                let reason = "a brake was pulled while its host stepped aside".to_owned();
                // It is over before the host is given back.
                self.give_up(n, d, record, AttemptState::Cancelled, reason)?;
                self.release_host(n, d)?;
            }
        }
        Ok(())
    }

    fn give_up(
        &mut self,
        n: usize,
        d: usize,
        record: AttemptRecord,
        otherwise: AttemptState,
        reason: String,
    ) -> Result<(), Killed> {
        let record = record.given_up(otherwise, reason);
        self.write(n, |disk| disk.records.insert(d, record.clone()))?;
        self.resume_attempt(n, d, record)
    }

    /// Goes on with an attempt from its record.
    pub(super) fn resume_attempt(&mut self, n: usize, d: usize, record: AttemptRecord) -> Result<(), Killed> {
        let (goal, left) = (record.goal.clone(), record.left());
        let attempt = Attempt::resume(record, at(self.now_ms));
        self.run_attempt(n, d, goal, attempt, left)
    }

    /// Turns a host's decisions into acts, until it waits.
    fn drive_host(&mut self, n: usize, h: usize) -> Result<(), Killed> {
        loop {
            let Some(kept) = self.life(n)?.hosts.hosts.get_mut(&h) else {
                return Ok(());
            };
            match kept.machine.poll() {
                None => break,
                Some(HostOutput::Persist(record)) => {
                    if record.is_none() {
                        self.judge_forgotten(h);
                    }
                    self.write(n, |disk| match record {
                        Some(record) => disk.hosts.insert(h, record),
                        None => disk.hosts.remove(&h),
                    })?;
                }
                Some(HostOutput::Step(step)) => self.begin_host_act(n, h, step)?,
                Some(HostOutput::Granted(device)) => {
                    let d = self.scenario.device(&device).expect("a device of the fleet");
                    if let Some(Waiting { record, since_ms }) = self.life(n)?.hosts.waiting.remove(&d) {
                        let record = record.having_waited(Duration::from_millis(self.now_ms - since_ms));
                        self.write(n, |disk| disk.records.insert(d, record.clone()))?;
                        self.watch.tally.stepped_aside += 1;
                        self.resume_attempt(n, d, record)?;
                    }
                }
                Some(HostOutput::Refused { device, reason }) => {
                    let d = self.scenario.device(&device).expect("a device of the fleet");
                    if let Some(Waiting { record, .. }) = self.life(n)?.hosts.waiting.remove(&d) {
                        self.give_up(n, d, record, AttemptState::Failed, reason)?;
                    }
                }
            }
        }
        let (now_ms, tick) = (self.now_ms, self.next_token());
        let Some(kept) = self.life(n)?.hosts.hosts.get_mut(&h) else {
            return Ok(());
        };
        kept.tick = tick;
        if let Some(due) = kept.machine.deadline() {
            let due = u64::try_from(due.since_start().as_millis()).unwrap_or(u64::MAX);
            let incarnation = self.nodes[n].incarnation;
            let event = NodeEvent::HostTick { host: h, token: tick };
            self.after(due.saturating_sub(now_ms), Event::Node(n, incarnation, event));
        }
        Ok(())
    }

    fn begin_host_act(&mut self, n: usize, h: usize, step: HostStep) -> Result<(), Killed> {
        let now_ms = self.now_ms;
        self.settle_hosts();
        self.tell(|| format!("host {h}: {step:?}"));
        let goes_wrong = now_ms < QUIET_AFTER_MS;
        let (after, answer) = match step {
            HostStep::Look => (self.dice.between(100, 2_000), None),
            HostStep::Leave => {
                self.judge_leave(h);
                let answer = match self.dice.below(12) {
                    0 | 1 if goes_wrong => Some(failed("it does not listen", true)),
                    // A word without effect.
                    2 if goes_wrong => Some(HostInput::Acted),
                    _ => None,
                };
                (self.dice.between(500, 20_000), answer)
            }
            HostStep::Enter => {
                if !self.nodes[n].disk.hosts.contains_key(&h) {
                    let how = format!("host {h} is told to step aside, and nothing on record says so");
                    self.watch.blame(now_ms, Promise::Durable, how);
                }
                let may = match self.hosts[h].aside {
                    true => Ok(()),
                    false => self.cluster(h).may_step_aside(0, LIMITS),
                };
                let takes = self.dice.between(3_000, 60_000);
                match may {
                    Err(error) => (500, Some(HostInput::ActFailed(error))),
                    Ok(()) if goes_wrong && self.dice.one_in(25) => (500, Some(failed("not this one", false))),
                    Ok(()) => {
                        let real = &mut self.hosts[h];
                        if !real.aside && real.entering_until.is_none() {
                            real.entering_until = Some(now_ms + takes);
                        }
                        let until = real.entering_until.unwrap_or(now_ms);
                        // The controller goes on, whether anybody hears of it or not.
                        match goes_wrong && self.dice.one_in(6) {
                            true => (self.dice.below(3_000), Some(failed("the answer was lost", true))),
                            false => (until - now_ms + 500, None),
                        }
                    }
                }
            }
        };
        if let Some(kept) = self.life(n)?.hosts.hosts.get_mut(&h) {
            kept.act = Some((step, answer));
        }
        let incarnation = self.nodes[n].incarnation;
        self.after(after, Event::Node(n, incarnation, NodeEvent::HostActed(h)));
        Ok(())
    }

    pub(super) fn host_acted(&mut self, n: usize, h: usize) -> Result<(), Killed> {
        self.settle_hosts();
        let act = self.life(n)?.hosts.hosts.get_mut(&h).and_then(|kept| kept.act.take());
        let Some((step, answer)) = act else { return Ok(()) };
        let input = match (answer, step) {
            (Some(answer), _) => answer,
            (None, HostStep::Look) => HostInput::Looked(self.look_at_host(h)),
            (None, HostStep::Enter) => self.entered(h),
            (None, HostStep::Leave) => {
                let real = &mut self.hosts[h];
                let is_others = std::mem::take(&mut real.aside) && real.by_admin;
                real.entering_until = None;
                if is_others {
                    let how = format!("host {h} is taken into service, and it was an administrator's");
                    self.watch.blame(self.now_ms, Promise::Aside, how);
                }
                HostInput::Acted
            }
        };
        self.tell(|| format!("host {h}: {input:?}"));
        let now = at(self.now_ms);
        if let Some(kept) = self.life(n)?.hosts.hosts.get_mut(&h) {
            kept.machine.handle(now, input);
        }
        self.drive_host(n, h)
    }

    pub(super) fn tick_host(&mut self, n: usize, h: usize, token: u64) -> Result<(), Killed> {
        let now = at(self.now_ms);
        let kept = self.life(n)?.hosts.hosts.get_mut(&h);
        let Some(kept) = kept.filter(|kept| kept.tick == token) else {
            return Ok(());
        };
        kept.machine.handle(now, HostInput::Tick);
        self.drive_host(n, h)
    }

    fn look_at_host(&mut self, h: usize) -> HostSeen {
        let unknown = |why: &str| HostSeen::Unknown { why: why.to_owned() };
        if self.now_ms < QUIET_AFTER_MS && self.dice.one_in(10) {
            return unknown("nobody answers");
        }
        let real = &self.hosts[h];
        if real.entering_until.is_some() {
            return unknown("it is on its way");
        }
        if !real.aside {
            return HostSeen::InService;
        }
        self.watch.seen_aside.insert(h, self.now_ms);
        HostSeen::Aside
    }

    /// The end of having it step aside: it has, and its cluster still has room for that.
    fn entered(&mut self, h: usize) -> HostInput {
        if !self.hosts[h].aside {
            return failed("it is still in service", true);
        }
        match self.cluster(h).has_place(LIMITS) {
            Ok(()) => HostInput::Acted,
            Err(error) => {
                self.hosts[h].aside = false;
                HostInput::ActFailed(error)
            }
        }
    }

    /// A cluster as the controller tells it.
    fn cluster(&self, h: usize) -> ClusterSeen {
        let other = |other: usize| OtherHost {
            name: other.to_string(),
            connected: true,
            aside: self.hosts[other].aside,
        };
        ClusterSeen {
            name: self.scenario.hosts[h].cluster.to_string(),
            moves_machines: true,
            others: self.others_of(h).map(other).collect(),
        }
    }

    fn others_of(&self, h: usize) -> impl Iterator<Item = usize> {
        let cluster = self.scenario.hosts[h].cluster;
        let all = self.scenario.hosts.iter().enumerate();
        all.filter(move |(other, placed)| *other != h && placed.cluster == cluster)
            .map(|(other, _)| other)
    }

    fn settle_hosts(&mut self) {
        let now_ms = self.now_ms;
        self.hosts.iter_mut().for_each(|real| real.settle(now_ms));
    }

    /// An administrator takes a host into service.
    pub(super) fn take_back(&mut self, h: usize) {
        self.settle_hosts();
        if self.hosts[h].aside {
            (self.hosts[h].aside, self.hosts[h].by_admin) = (false, false);
        }
    }

    /// Something is about to be done to a device.
    pub(super) fn judge_aside(&mut self, d: usize, goal: &Goal) {
        let Some(h) = self.scenario.devices[d].host else {
            return;
        };
        self.settle_hosts();
        let (asked, seen) = (self.watch.asked.get(&d), self.watch.seen_aside.get(&h));
        if seen.is_none() || seen < asked {
            let how = format!("{} is touched, and its host {h} was not seen aside for it", goal.device);
            self.watch.blame(self.now_ms, Promise::Aside, how);
        }
        self.watch.leaning.entry(h).or_default().insert(d, self.now_ms);
        let counts = |h: &usize| self.hosts[*h].aside && !self.hosts[*h].by_admin;
        // One that is asked for anew has to show that there is room for it, and may be aside until it has.
        let is_touched = |(d, touched): (&usize, &u64)| self.watch.asked.get(d) <= Some(touched);
        let leans = |h: &usize| {
            let devices = self.watch.leaning.get(h);
            devices.is_some_and(|devices| devices.iter().any(is_touched))
        };
        let other = self
            .others_of(h)
            .find(|other| counts(&h) && counts(other) && leans(other));
        if let Some(other) = other {
            let how = format!(
                "{} is touched while hosts {h} and {other} of one cluster are aside, where one may be",
                goal.device
            );
            self.watch.blame(self.now_ms, Promise::Aside, how);
        }
    }

    /// A host is about to be given back.
    fn judge_leave(&mut self, h: usize) {
        let leaning = self.watch.leaning.get(&h).and_then(|devices| devices.keys().next());
        if let Some(d) = leaning {
            let how = format!("host {h} is given back in the middle of the update of device {d}");
            self.watch.blame(self.now_ms, Promise::Aside, how);
        }
    }

    /// A node is about to forget that it owes a host its way back.
    fn judge_forgotten(&mut self, h: usize) {
        self.settle_hosts();
        if self.hosts[h].aside || self.hosts[h].entering_until.is_some() {
            let how = format!("host {h} is aside, and its record is forgotten");
            self.watch.blame(self.now_ms, Promise::Aside, how);
        }
    }

    /// Everything is over: every host that was in service is again.
    pub(super) fn judge_given_back(&mut self) {
        self.settle_hosts();
        for h in 0..self.hosts.len() {
            let n = self.scenario.hosts[h].node;
            let is_aside = self.hosts[h].aside && !self.hosts[h].by_admin;
            let is_owed = is_aside || self.nodes[n].disk.hosts.contains_key(&h);
            if is_owed && !self.nodes[n].is_lost && self.is_node_idle(n) {
                let how = format!("host {h} was never given back");
                self.watch.blame(self.now_ms, Promise::Aside, how);
            }
        }
    }
}

fn failed(reason: &str, retry: bool) -> HostInput {
    let reason = reason.to_owned();
    HostInput::ActFailed(ActError { reason, retry })
}
