//! Restarts, and what the device is afterwards: the reset ladder, the answers that count as "back", and what to make of a
//! device that is back with the wrong version.
//!
//! Invariants: a stronger reset is sent only after the one before had its time, was refused, or brought nothing; none is
//! sent while the device installs.

use firmesh_protocol::{
    report::{AttemptState, PermitKind},
    time::Timestamp,
};

use super::{Attempt, LastAct};
use crate::{
    observed::{Seen, Staged, TaskState},
    record::{Phase, Why},
    step::{Rung, Step},
};

const EVERY_RESET: &str = "every reset the device offers";

/// Good answers in a row, all with one version.
#[derive(Debug, Default)]
pub(super) struct Answers {
    count: u32,
    version: Option<String>,
    last: Timestamp,
}

impl Attempt {
    /// Restarts the device into the staged image.
    pub(super) fn start(&mut self, now: Timestamp) {
        self.report(AttemptState::Staged);
        self.reset(now, Why::Start);
    }

    pub(super) fn reset(&mut self, now: Timestamp, why: Why) {
        // A stalled task lives in the management controller; resetting the host under it would be no kindness.
        let rung = if matches!(why, Why::EndTask { .. }) {
            Rung::Bmc
        } else {
            self.first_rung()
        };
        self.reset_by(now, rung, why);
    }

    fn reset_by(&mut self, now: Timestamp, rung: Rung, why: Why) {
        if let Some(seen) = &self.seen {
            self.record.boot_before.clone_from(&seen.boot_id);
        }
        let phase = Phase::Resetting { rung, why };
        self.act(now, phase, AttemptState::Rebooting, Step::Reset(rung));
    }

    pub(super) fn resetting(&self, why: Why) -> Phase {
        Phase::Resetting {
            rung: self.first_rung(),
            why,
        }
    }

    fn first_rung(&self) -> Rung {
        self.record.resets.first().copied().unwrap_or(Rung::Warm)
    }

    fn stronger(&self, rung: Rung) -> Option<Rung> {
        self.record.resets.iter().copied().filter(|&next| next > rung).min()
    }

    /// A device that does not answer while it restarts, or has not finished starting.
    pub(super) fn resetted_unseen(&mut self, now: Timestamp, rung: Rung, why: Why) {
        // Some install between the restart and the start: the attempt's own deadline is the bound.
        let installs = self.seen.as_ref().is_some_and(|seen| seen.task_is_active());
        if why != Why::Start || !installs {
            self.climb(now, rung, why);
        }
    }

    /// A reset did not do what it was for in time: the next stronger one, or the end.
    fn climb(&mut self, now: Timestamp, rung: Rung, why: Why) {
        let again = (self.last_act == LastAct::Unknown).then_some(rung);
        if let Some(next) = again.or_else(|| self.stronger(rung)) {
            return self.reset_by(now, next, why);
        }
        let limit = self.record.goal.deadlines.back_s;
        let Some(seen) = self.seen.clone().filter(|seen| seen.ready) else {
            let silence = self.silence();
            let reason = format!("the device did not come back within {limit} s of its last reset: {silence}");
            return self.end(now, AttemptState::Quarantined, reason);
        };
        let refusal = match &self.last_act {
            LastAct::Failed(error) => format!(" (the last one failed: {error})"),
            LastAct::Unknown | LastAct::Done => String::new(),
        };
        match why {
            Why::Start => self.came_back_wrong(now, &seen, &format!("{EVERY_RESET}{refusal}")),
            Why::FallBack { reason, .. } => {
                let reason = format!("{reason}; the device did not return to its saved image{refusal}");
                self.end(now, AttemptState::Quarantined, reason);
            }
            Why::EndTask { reason } => {
                let reason = format!("{reason}; resets did not end it{refusal}");
                self.end(now, AttemptState::Quarantined, reason);
            }
        }
    }

    pub(super) fn resetted(&mut self, now: Timestamp, seen: &Seen, rung: Rung, why: Why, over: bool) {
        let told_apart = seen.boot_id.is_some() && self.record.boot_before.is_some();
        let restarted = told_apart && seen.boot_id != self.record.boot_before;
        let is_from = seen.version.is_some() && seen.version == self.record.from;
        match &why {
            Why::Start if self.runs_goal(seen) => {
                self.report(AttemptState::Validating);
                // What is still being written is waited for, though not for ever: some tasks never end.
                if seen.task_is_active() && !over {
                    self.answers = Answers::default();
                    return;
                }
                if self.good_answer(now, seen) {
                    self.came_up(now, seen);
                }
                // A device that answers as it should is given the time to do so often enough.
                return;
            }
            Why::Start if seen.on_trial() && (restarted || !told_apart) => {
                let version = seen.version.as_deref().unwrap_or("nothing it can name");
                let reason = format!(
                    "the trial slot runs {version} instead of {}",
                    self.record.goal.version()
                );
                let is_unwell = false;
                return self.reset(now, Why::FallBack { reason, is_unwell });
            }
            // It installs at its restart: nobody resets it meanwhile, and what it runs until then says nothing.
            Why::Start if seen.task_is_active() => {
                self.answers = Answers::default();
                return;
            }
            Why::Start if restarted && seen.version.is_some() => {
                if self.good_answer(now, seen) {
                    return self.came_back_old(now, seen, rung);
                }
            }
            Why::FallBack { reason, .. } if !seen.on_trial() && is_from => {
                if self.good_answer(now, seen) {
                    return self.end(now, self.fell_back(), reason.clone());
                }
            }
            Why::EndTask { reason } if !seen.task_is_active() && is_from => {
                if self.good_answer(now, seen) {
                    return self.given_up(now, seen, AttemptState::TimedOut, reason.clone());
                }
            }
            _ => self.answers = Answers::default(),
        }
        let refused = !restarted && matches!(&self.last_act, LastAct::Failed(error) if !error.retry);
        if over || refused {
            self.climb(now, rung, why);
        }
    }

    /// The device has restarted, and runs something else than the new image. Some images need a stronger reset than others,
    /// and the device does not say which.
    fn came_back_old(&mut self, now: Timestamp, seen: &Seen, rung: Rung) {
        let is_from = seen.version == self.record.from;
        let task = seen.task.as_ref().map(|task| task.state);
        // With slots a task that failed is what became of the trial: the device did not come up with the new image.
        if is_from && task == Some(TaskState::Failed) && seen.slots.is_none() {
            let message = seen.task.as_ref().map_or("", |task| task.message.as_str());
            let reason = format!("the device's update task failed at its restart: {message}");
            self.record.phase = Phase::Watching;
            return self.fail(now, seen, reason);
        }
        match self.stronger(rung) {
            Some(next) if is_from && seen.staged == Staged::Hidden && seen.slots.is_none() => {
                self.reset_by(now, next, Why::Start);
            }
            _ if rung != self.first_rung() => self.came_back_wrong(now, seen, EVERY_RESET),
            _ => self.came_back_wrong(now, seen, "its reset"),
        }
    }

    /// The device answers after its reset, but not with the goal's version.
    pub(super) fn came_back_wrong(&mut self, now: Timestamp, seen: &Seen, after: &str) {
        let (version, from) = (seen.version.as_deref(), self.record.from.as_deref());
        let claim = match seen.task.as_ref().map(|task| task.state) {
            Some(TaskState::Completed) => "the update task says it completed, yet ",
            Some(TaskState::AwaitsReset) => "the update task still waits for a restart, and ",
            Some(TaskState::Gone) => "the update task vanished, and ",
            _ => "",
        };
        let runs = version.unwrap_or("an unknown version");
        let tried_all = self.record.resets.len() > 1 && after.starts_with(EVERY_RESET);
        let hint = match seen.staged == Staged::Hidden && tried_all && !self.record.resets.contains(&Rung::Ac) {
            true => "; some images need their input power taken away, and no such reset is offered here",
            false => "",
        };
        let failed = match &seen.task {
            Some(task) if task.state == TaskState::Failed => format!(": {}", task.message),
            _ => String::new(),
        };
        let reason = format!(
            "{claim}the device runs {runs} after {after}, not {}{hint}{failed}",
            self.record.goal.version()
        );
        let never_restarted = seen.boot_id.is_some() && seen.boot_id == self.record.boot_before;
        if version.is_some() && version == from && never_restarted && may_hold_the_image(seen) {
            self.given_up(now, seen, AttemptState::Failed, reason);
        } else if version.is_some() && version == from && !seen.on_trial() {
            self.fail(now, seen, reason);
        } else {
            self.end(now, AttemptState::Quarantined, reason);
        }
    }

    /// Ends what was given up, on the old version. What stalled once is tried once more.
    pub(super) fn given_up(&mut self, now: Timestamp, seen: &Seen, state: AttemptState, reason: String) {
        if may_hold_the_image(seen) {
            let version = self.record.goal.version();
            let claim = match seen.task.as_ref().map(|task| task.state) {
                Some(TaskState::AwaitsReset) => "its task waits for a restart",
                _ => "its task says that it completed",
            };
            let reason = format!("{reason}; {claim}: the next restart may bring up {version}");
            return self.end(now, AttemptState::Quarantined, reason);
        }
        let time_is_left = self.ends.since(now) >= self.record.goal.attempt_limit() / 4;
        if state == AttemptState::TimedOut && !self.record.task_retried && time_is_left {
            self.record.task_retried = true;
            return self.stage(now, seen, 1);
        }
        self.end(now, state, reason);
    }

    /// How an attempt ends whose device fell back to what it ran before. For a way back that is a failure: it runs what it
    /// should have left.
    fn fell_back(&self) -> AttemptState {
        match self.record.goal.kind {
            PermitKind::Update => AttemptState::RolledBack,
            PermitKind::Rollback => AttemptState::Failed,
        }
    }

    /// Counts an answer, unless it comes too soon after the one before; whether there have been enough in a row with one
    /// version. The next look is set to the pace that this takes.
    pub(super) fn good_answer(&mut self, now: Timestamp, seen: &Seen) -> bool {
        let goal = &self.record.goal;
        let apart = goal.answers_apart();
        if self.answers.count == 0 || self.answers.version != seen.version {
            self.answers = Answers {
                count: 1,
                version: seen.version.clone(),
                last: now,
            };
        } else if now.since(self.answers.last) >= apart {
            self.answers.count += 1;
            self.answers.last = now;
        }
        self.wake = (now + goal.pace().max(apart / 4)).min(self.ends);
        self.answers.count >= goal.answers_min
    }
}

/// Whether a device that shows no images says of its task that it is done: the image may wait for a restart.
fn may_hold_the_image(seen: &Seen) -> bool {
    let task = seen.task.as_ref().map(|task| task.state);
    let is_done = matches!(task, Some(TaskState::Completed | TaskState::AwaitsReset));
    is_done && seen.staged == Staged::Hidden
}
