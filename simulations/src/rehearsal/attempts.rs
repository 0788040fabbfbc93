//! Attempts on a node: the machine's outputs carried out one by one, as the executors' runner does.

use std::{sync::Arc, time::Duration};

use firmesh_executors_core::{Attempt, Goal, Input, Outcome, Output, Report, Step};
use firmesh_node_core::{
    install::{Admission, AttemptStanding, Next, next},
    retries::Tries,
};
use firmesh_protocol::report::{AttemptState, Permit, PermitKind};

use super::{
    Event, NodeEvent, World,
    coordinator::at,
    device::{Device, failed},
    faults::QUIET_AFTER_MS,
    node::Killed,
    scenario::Kind,
};

/// Between two looks at a device in an attempt: a BMC is asked twice a second in production, and nothing but events comes
/// of it.
const PACE_MS: u64 = 4_000;
/// How much of a wait between two steps a restart may forget.
const WAIT_KEPT_EVERY: Duration = Duration::from_secs(10);

/// An attempt under way.
#[derive(Debug)]
pub(super) struct Running {
    attempt: Attempt,
    pub(super) goal: Goal,
    act: Option<Act>,
    /// By when it is over, with the wait after it if it is a step of a longer way.
    ends_ms: u64,
    /// Names the event that is waited for.
    token: u64,
}

#[derive(Debug)]
struct Act {
    step: Step,
    /// The answer, if it is known already.
    answer: Option<Input>,
    is_lost: bool,
    is_late: bool,
}

impl Running {
    /// Whether an act is under way.
    pub(super) fn is_acting(&self) -> bool {
        self.act.is_some()
    }
}

impl World {
    pub(super) fn start_fresh(
        &mut self,
        n: usize,
        d: usize,
        permit: &Permit,
        admission: Admission,
    ) -> Result<(), Killed> {
        let scenario = Arc::clone(&self.scenario);
        let approved = scenario.campaign(&permit.campaign).expect("it was decided on");
        let device = scenario.devices[d].id.clone();
        let goal = Goal {
            device: device.clone(),
            campaign: permit.campaign.clone(),
            manifest_sha256: permit.manifest_sha256,
            wave: admission.wave,
            kind: permit.kind,
            permit_sequence: permit.sequence,
            image: admission.release,
            security_epoch_min: match permit.kind {
                PermitKind::Update => self.nodes[n].disk.floors.get(&d).copied().unwrap_or_default(),
                PermitKind::Rollback => 0,
            },
            deadlines: approved.campaign.manifest.deadlines,
            health: approved
                .campaign
                .manifest
                .gate
                .health
                .clone()
                .filter(|_| permit.kind == PermitKind::Update),
            answers_min: Goal::ANSWERS_MIN,
            answers_apart_ms: None,
            step: admission.step,
            pace_ms: PACE_MS,
        };
        let key = (permit.campaign.clone(), device, permit.kind);
        self.write(n, |disk| disk.standings.insert(key, AttemptStanding::InFlight))?;
        self.judge_start(n, d, permit, &goal);
        self.report(n, &goal, Report::on_the_way(AttemptState::Installing, None))?;
        self.begin_attempt(n, d, goal)
    }

    pub(super) fn run_attempt(
        &mut self,
        n: usize,
        d: usize,
        goal: Goal,
        attempt: Attempt,
        left: Duration,
    ) -> Result<(), Killed> {
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let running = Running {
            attempt,
            goal,
            act: None,
            ends_ms: self.now_ms.saturating_add(left_ms),
            token: 0,
        };
        self.life(n)?.running.insert(d, running);
        self.drive(n, d)
    }

    /// Carries out what an attempt asks for, until it waits.
    fn drive(&mut self, n: usize, d: usize) -> Result<(), Killed> {
        loop {
            let Some(running) = self.life(n)?.running.get_mut(&d) else {
                return Ok(());
            };
            match running.attempt.poll() {
                None => break,
                Some(Output::Persist(record)) => {
                    self.write(n, |disk| disk.records.insert(d, *record))?;
                }
                Some(Output::Report(report)) => {
                    let goal = running.goal.clone();
                    if let Some(version) = &report.version {
                        let life = self.life(n)?;
                        life.versions.insert(d, Some(version.clone()));
                        life.last_versions.insert(d, version.clone());
                    }
                    self.report(n, &goal, report)?;
                }
                Some(Output::Done(outcome)) => return self.attempt_ended(n, d, &outcome),
                Some(Output::Step(step)) => self.begin_act(n, d, step)?,
            }
        }
        let now_ms = self.now_ms;
        let (token, drawn) = (self.next_token(), self.dice.below(1 << 20));
        let running = self.life(n)?.running.get_mut(&d).ok_or(Killed)?;
        running.token = token;
        let deadline = running
            .attempt
            .deadline()
            .expect("an attempt without a deadline is over");
        let deadline = u64::try_from(deadline.since_start().as_millis()).unwrap_or(u64::MAX);
        let wake = match &mut running.act {
            None => deadline,
            Some(act) => {
                let ends = now_ms + Device::takes_ms(&act.step, drawn);
                act.is_late = ends > deadline;
                ends.min(deadline)
            }
        };
        let writes_slot = running
            .act
            .as_ref()
            .is_some_and(|act| matches!(act.step, Step::Stage { .. }) && act.answer.is_none());
        if writes_slot
            && self.scenario.devices[d].kind == Kind::Host
            && let Some(permille) = self.cut_of_write(d)
        {
            let after = (wake - now_ms) * permille / 1_000;
            self.after(after, Event::PowerCut(d));
        }
        let incarnation = self.nodes[n].incarnation;
        let event = Event::Node(n, incarnation, NodeEvent::Attempt { device: d, token });
        self.after(wake.saturating_sub(now_ms), event);
        Ok(())
    }

    fn begin_act(&mut self, n: usize, d: usize, step: Step) -> Result<(), Killed> {
        let goal = self.life(n)?.running.get(&d).ok_or(Killed)?.goal.clone();
        self.judge_act(n, d, &goal, &step);
        let is_cut = !matches!(step, Step::Observe { .. } | Step::Stage { .. }) && self.shakes(d);
        let is_before = is_cut && self.dice.one_in(2);
        if is_before {
            self.cut_power(d);
        }
        let answer = self.devices[d].begin(self.now_ms, &step);
        if is_cut && !is_before {
            self.cut_power(d);
        }
        let is_lost = self.dice.below(1_000) < self.scenario.deaf_permille && self.now_ms < QUIET_AFTER_MS;
        let running = self.life(n)?.running.get_mut(&d).ok_or(Killed)?;
        running.act = Some(Act {
            step,
            answer,
            is_lost,
            is_late: false,
        });
        Ok(())
    }

    /// After which part of a write, in thousandths, the power of a host fails, if it does.
    fn cut_of_write(&mut self, d: usize) -> Option<u64> {
        let planned = self.cuts_in_write[d].pop();
        planned.or_else(|| self.shakes(d).then(|| self.dice.below(1_001)))
    }

    fn shakes(&mut self, d: usize) -> bool {
        self.shaky[d] > 0 && self.now_ms < QUIET_AFTER_MS && self.dice.below(1_000) < self.shaky[d]
    }

    pub(super) fn wake_attempt(&mut self, n: usize, d: usize, token: u64) -> Result<(), Killed> {
        let now_ms = self.now_ms;
        let life = self.nodes[n].life.as_mut().ok_or(Killed)?;
        let Some(running) = life.running.get_mut(&d).filter(|running| running.token == token) else {
            return Ok(());
        };
        let input = match running.act.take() {
            None => Input::Tick,
            Some(act) if act.is_late => {
                self.devices[d].break_off(now_ms);
                failed("not done by its deadline", true)
            }
            Some(act) => {
                let answer = act.answer.unwrap_or_else(|| self.devices[d].end(now_ms, &act.step));
                match act.is_lost {
                    true => failed("the answer was lost", true),
                    false => answer,
                }
            }
        };
        running.attempt.handle(at(now_ms), input);
        let goal = running.goal.clone();
        self.judge_time(&goal);
        self.drive(n, d)
    }

    fn attempt_ended(&mut self, n: usize, d: usize, outcome: &Outcome) -> Result<(), Killed> {
        let Some(running) = self.life(n)?.running.remove(&d) else {
            return Ok(());
        };
        let (goal, ends_ms) = (running.goal, running.ends_ms);
        if outcome.state.is_success() {
            let epoch = goal.image.info.security_epoch;
            self.write(n, |disk| {
                let floor = disk.floors.entry(d).or_default();
                *floor = epoch.max(*floor);
            })?;
        }
        let Some(whole) = goal.whole(outcome.clone()) else {
            self.judge_step_end(d, &goal, outcome);
            self.life(n)?.between.insert(d, (goal, ends_ms));
            return self.look(n);
        };
        self.update_ended(n, d, &goal, &whole)
    }

    /// Takes the next step of a device's way, or ends its update where it is.
    pub(super) fn go_on(&mut self, n: usize, d: usize) -> Result<(), Killed> {
        let Some((done, ends_ms)) = self.life(n)?.between.get(&d).cloned() else {
            return Ok(());
        };
        let scenario = Arc::clone(&self.scenario);
        let approved = scenario.campaign(&done.campaign).expect("it was decided on");
        let left = Duration::from_millis(ends_ms.saturating_sub(self.now_ms));
        let campaign = (&done.campaign, done.wave);
        let next = self.with_facts(n, d, campaign, None, |facts| {
            next(&done, Some((&approved.campaign, facts)), left)
        })?;
        match next {
            Next::Step(admission) => {
                let goal = Goal {
                    image: admission.release,
                    step: admission.step,
                    security_epoch_min: self.nodes[n].disk.floors.get(&d).copied().unwrap_or_default(),
                    ..done
                };
                self.life(n)?.between.remove(&d);
                self.judge_step(n, d, &goal);
                self.report(n, &goal, Report::on_the_way(AttemptState::Installing, None))?;
                self.begin_attempt(n, d, goal)
            }
            Next::Wait(_) => {
                let record = self.nodes[n].disk.records.get(&d).cloned();
                let waited = record.as_ref().map(|record| record.left().saturating_sub(left));
                if let (Some(record), Some(waited)) = (record, waited)
                    && waited >= WAIT_KEPT_EVERY
                {
                    let record = record.having_waited(waited);
                    self.write(n, |disk| disk.records.insert(d, record))?;
                }
                Ok(())
            }
            Next::End(_, outcome) => {
                self.life(n)?.between.remove(&d);
                self.update_ended(n, d, &done, &outcome)?;
                self.report(n, &done, outcome.into())
            }
        }
    }

    fn update_ended(&mut self, n: usize, d: usize, goal: &Goal, outcome: &Outcome) -> Result<(), Killed> {
        self.judge_end(d, goal, outcome);
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let at = self.node_wall(n);
        self.write(n, |disk| {
            if goal.kind == PermitKind::Update {
                let of_campaign = disk.tries.entry(goal.campaign.clone()).or_default();
                let before = of_campaign.get(&goal.device);
                let tries = Tries::counted(before, goal.permit_sequence, outcome.state, outcome.failure, at);
                of_campaign.insert(goal.device.clone(), tries);
            }
            disk.outcomes.insert(key, outcome.clone())
        })?;
        if outcome.state != AttemptState::Quarantined {
            let key = |kind| (goal.campaign.clone(), goal.device.clone(), kind);
            self.write(n, |disk| disk.standings.insert(key(goal.kind), AttemptStanding::Ended))?;
            if goal.kind == PermitKind::Rollback {
                self.write(n, |disk| {
                    disk.standings.insert(key(PermitKind::Update), AttemptStanding::Ended)
                })?;
            }
        }
        self.release_host(n, d)?;
        self.look(n)
    }
}
