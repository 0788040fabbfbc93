//! The machine's frame: inputs, outputs and deadlines. What to do next stands in `decide`.

mod decide;
mod restart;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use firmesh_protocol::{
    report::{AttemptState, FailureClass, PermitKind},
    time::Timestamp,
};

use self::restart::Answers;
use crate::{
    goal::Goal,
    observed::{Observed, Seen},
    record::{AttemptRecord, Phase, Why, bounded},
    step::{ActError, Input, Outcome, Output, Report, Step},
    watch::HealthWatch,
};

/// How long a single look may take: a slow BMC needs a few seconds for a few small resources.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

/// How often a device is looked at that is only watched: often enough to act within a minute.
const SOAK_PACE: Duration = Duration::from_secs(10);

/// A device's clock may be so far off before it is suspected: certificates are made a little earlier than they are used.
const CLOCK_OFF_MAX_S: u64 = 300;

/// One device going through one campaign step.
///
/// Feed it with [`handle`](Self::handle), deal with every [`poll`](Self::poll)ed output in order, and hand in a
/// [`Input::Tick`] when [`deadline`](Self::deadline) passes. A step still under way at the deadline is given up and
/// answered with [`Input::ActFailed`].
#[derive(Debug)]
pub struct Attempt {
    record: AttemptRecord,
    /// The end of the whole attempt.
    ends: Timestamp,
    /// The end of the phase: what happens then is the phase's business.
    phase_ends: Timestamp,
    /// When to look again, or by when the step under way must be answered.
    wake: Timestamp,
    waiting_for: WaitingFor,
    last_act: LastAct,
    /// The last look, if the device answered.
    seen: Option<Box<Seen>>,
    /// Why the last look failed.
    silence: String,
    /// How the device has been since it is watched.
    watch: HealthWatch,
    answers: Answers,
    /// When the last act was done, or we came back.
    acted_at: Timestamp,
    /// The newest update task that the device has shown, whoever began it.
    newest_task: Option<String>,
    /// How far the device's clock was off when it last said so, in seconds.
    clock_off_s: Option<i64>,
    /// The version last read back, however long ago.
    version: Option<String>,
    reported: Option<AttemptState>,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitingFor {
    NextLook,
    Look,
    Act,
    Nothing,
}

/// What is known about the act that the record names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum LastAct {
    /// The record is from before a crash: it may have happened.
    Unknown,
    Done,
    Failed(ActError),
}

impl Attempt {
    /// Begins an attempt.
    #[must_use]
    pub fn new(goal: Goal, now: Timestamp) -> Self {
        let mut attempt = Self::at(AttemptRecord::new(goal), now);
        attempt.persist(now);
        attempt.look(now);
        attempt
    }

    /// Continues the attempt of a record, first of all with a look at the device.
    #[must_use]
    pub fn resume(record: AttemptRecord, now: Timestamp) -> Self {
        let mut attempt = Self::at(record, now);
        match attempt.record.outcome().cloned() {
            Some(outcome) => attempt.announce(outcome),
            None => attempt.look(now),
        }
        attempt
    }

    fn at(record: AttemptRecord, now: Timestamp) -> Self {
        let left = record
            .goal
            .attempt_limit()
            .saturating_sub(Duration::from_millis(record.elapsed_ms));
        let mut attempt = Self {
            ends: now + left,
            phase_ends: now,
            wake: now,
            waiting_for: WaitingFor::Nothing,
            last_act: LastAct::Unknown,
            seen: None,
            silence: String::new(),
            watch: HealthWatch::default(),
            answers: Answers::default(),
            acted_at: now,
            newest_task: None,
            clock_off_s: None,
            version: record.from.clone(),
            reported: None,
            outputs: VecDeque::new(),
            record,
        };
        attempt.start_phase_clock(now);
        attempt
    }

    /// What the attempt is for.
    #[must_use]
    pub fn goal(&self) -> &Goal {
        &self.record.goal
    }

    /// Takes in a fact.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        if self.record.outcome().is_some() {
            return;
        }
        match (input, self.waiting_for) {
            (Input::Observed(observed), WaitingFor::Look) => self.observe(now, observed),
            (Input::ActFailed(error), WaitingFor::Look) => self.observe(now, Observed::Silent { why: error.reason }),
            (Input::Staged { task }, WaitingFor::Act) => {
                self.record.task = task;
                self.persist(now);
                self.acted(now, LastAct::Done);
            }
            (Input::Acted, WaitingFor::Act) => self.acted(now, LastAct::Done),
            (Input::ActFailed(error), WaitingFor::Act) => self.acted(now, LastAct::Failed(error)),
            (Input::Tick, WaitingFor::NextLook) if now >= self.wake => self.look(now),
            _ => {}
        }
    }

    /// The next instruction, if there is one.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants to hear [`Input::Tick`], or by when the step under way must be answered; `None` once over.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match self.waiting_for {
            WaitingFor::Nothing => None,
            WaitingFor::NextLook | WaitingFor::Look | WaitingFor::Act => Some(self.wake),
        }
    }

    fn observe(&mut self, now: Timestamp, observed: Observed) {
        match observed {
            Observed::Silent { why } => {
                self.seen = None;
                self.silence = why;
            }
            Observed::Answering(mut seen) => {
                self.note_task(&mut seen);
                self.clock_off_s = seen.clock_off_s.or(self.clock_off_s);
                if seen.version.is_some() {
                    self.version.clone_from(&seen.version);
                }
                if !seen.resets.is_empty() {
                    self.record.resets.clone_from(&seen.resets);
                }
                self.seen = Some(seen);
            }
        }
        self.waiting_for = WaitingFor::NextLook;
        let pace = match self.record.phase {
            Phase::Soaking { .. } => self.record.goal.pace().max(SOAK_PACE),
            _ => self.record.goal.pace(),
        };
        self.wake = (now + pace).min(self.ends);
        if now >= self.ends {
            self.out_of_time(now)
        } else {
            self.decide(now)
        }
    }

    /// Tasks that had ended before ours began say nothing about ours.
    fn note_task(&mut self, seen: &mut Seen) {
        let Some(name) = seen.task.as_ref().and_then(|task| task.name.clone()) else {
            return;
        };
        let ended = !seen.task_is_open();
        let before = match self.record.phase {
            Phase::Looking | Phase::Clearing => true,
            _ => self.record.task.is_none() && self.record.task_before.as_ref() == Some(&name),
        };
        self.newest_task = Some(name);
        if before && ended {
            seen.task = None;
        }
    }

    fn acted(&mut self, now: Timestamp, how: LastAct) {
        self.last_act = how;
        self.acted_at = now;
        self.start_phase_clock(now);
        self.look(now);
    }

    fn look(&mut self, now: Timestamp) {
        self.waiting_for = WaitingFor::Look;
        // A last look is granted past the end: it tells a timed-out device from a quarantined one.
        self.wake = now + LOOK_LIMIT;
        self.outputs.push_back(Output::Step(Step::Observe {
            task: self.record.task.clone(),
        }));
    }

    /// Journals the phase, then asks for its act.
    fn act(&mut self, now: Timestamp, phase: Phase, state: AttemptState, step: Step) {
        let act_limit = match step {
            Step::Stage { .. } => self.ends.since(now) / 2,
            _ => self.record.goal.back_limit(),
        };
        self.record.phase = phase;
        self.answers = Answers::default();
        self.persist(now);
        self.report(state);
        self.waiting_for = WaitingFor::Act;
        self.wake = (now + act_limit).min(self.ends);
        self.outputs.push_back(Output::Step(step));
    }

    /// Goes on without an act.
    fn enter(&mut self, now: Timestamp, phase: Phase, state: AttemptState) {
        self.record.phase = phase;
        self.answers = Answers::default();
        self.persist(now);
        self.report(state);
        self.start_phase_clock(now);
    }

    fn end(&mut self, now: Timestamp, state: AttemptState, reason: String) {
        assert!(state.is_terminal(), "an attempt ended in {state}");
        let failure = self.failure_of(state);
        let hint = self.clock_hint(failure);
        let outcome = Outcome {
            state,
            reason: bounded(reason + &hint),
            version: self.version.clone(),
            failure,
            health: self.record.health.filter(|_| state == AttemptState::Success),
        };
        self.record.phase = Phase::Ended {
            outcome: outcome.clone(),
        };
        self.persist(now);
        self.announce(outcome);
    }

    /// What a clock that is far off may have to do with a failure.
    fn clock_hint(&self, failure: Option<FailureClass>) -> String {
        let concerned = matches!(
            failure,
            Some(FailureClass::Install | FailureClass::Timeout | FailureClass::Unreachable)
        );
        match self.clock_off_s {
            Some(off_s) if concerned && off_s.unsigned_abs() > CLOCK_OFF_MAX_S => {
                let way = if off_s < 0 { "behind" } else { "ahead of" };
                let off_s = off_s.unsigned_abs();
                format!(
                    "; the device's clock is {off_s} s {way} the node's, so it may refuse valid certificates: set it"
                )
            }
            _ => String::new(),
        }
    }

    /// In which way an attempt failed that ends so now, by what it was doing.
    fn failure_of(&self, state: AttemptState) -> Option<FailureClass> {
        let went_back = self.record.goal.kind == PermitKind::Rollback && state == AttemptState::RolledBack;
        Some(match state {
            _ if went_back => return None,
            AttemptState::TimedOut if self.seen.is_some() => FailureClass::Timeout,
            AttemptState::Quarantined if self.seen.is_some() => FailureClass::Quarantine,
            AttemptState::TimedOut | AttemptState::Quarantined => FailureClass::Unreachable,
            AttemptState::Failed | AttemptState::RolledBack => match &self.record.phase {
                Phase::Looking | Phase::Clearing => FailureClass::Preflight,
                Phase::Staging { .. } | Phase::Watching | Phase::Activating { .. } | Phase::Aborting { .. } => {
                    FailureClass::Install
                }
                Phase::Resetting { why, .. } => match why {
                    // A trial that did not run what it should never came to be judged.
                    Why::FallBack { is_unwell: true, .. } => FailureClass::Health,
                    Why::Start | Why::FallBack { .. } | Why::EndTask { .. } => FailureClass::Boot,
                },
                Phase::Soaking { .. } | Phase::Confirming { .. } => FailureClass::Health,
                Phase::Ended { outcome } => return outcome.failure,
            },
            _ => return None,
        })
    }

    fn announce(&mut self, outcome: Outcome) {
        self.waiting_for = WaitingFor::Nothing;
        self.outputs.push_back(Output::Report(outcome.clone().into()));
        self.outputs.push_back(Output::Done(outcome));
    }

    fn persist(&mut self, now: Timestamp) {
        let left = self.ends.since(now);
        let elapsed = self.record.goal.attempt_limit().saturating_sub(left);
        self.record.elapsed_ms = elapsed.as_millis().try_into().unwrap_or(u64::MAX);
        self.outputs.push_back(Output::Persist(Box::new(self.record.clone())));
    }

    fn report(&mut self, state: AttemptState) {
        if self.reported.replace(state) != Some(state) {
            let version = self.version.clone();
            self.outputs
                .push_back(Output::Report(Report::on_the_way(state, version)));
        }
    }

    fn start_phase_clock(&mut self, now: Timestamp) {
        let limit = match self.record.phase {
            Phase::Staging { .. } | Phase::Watching => self.ends.since(now) / 2,
            Phase::Soaking { .. } => self.record.goal.watch_limit(),
            _ => self.record.goal.back_limit(),
        };
        self.phase_ends = (now + limit).min(self.ends);
    }
}
