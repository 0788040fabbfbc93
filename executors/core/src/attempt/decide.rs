//! The decisions: what one look at the device means in each phase.

use firmesh_protocol::{
    health::{DeviceHealth, HealthSample},
    report::{AttemptState, PermitKind},
    time::Timestamp,
};

use super::{Attempt, LastAct, restart::Answers};
use crate::{
    observed::{Seen, Staged, TaskState},
    preflight,
    record::{Phase, Why},
    step::{Rung, Step},
    watch::HealthWatch,
};

/// How often an act is tried before its failure stands: once for a hiccup, once for a device that was busy.
const TRIES_MAX: u8 = 3;

impl Attempt {
    pub(super) fn decide(&mut self, now: Timestamp) {
        let over = now >= self.phase_ends;
        let Some(seen) = self.seen.clone().filter(|seen| seen.ready) else {
            return self.decide_unseen(now, over);
        };
        match self.record.phase.clone() {
            Phase::Looking => self.looking(now, &seen, over, true),
            Phase::Clearing => self.looking(now, &seen, over, false),
            Phase::Staging { .. } | Phase::Watching | Phase::Activating { .. } if self.runs_goal(&seen) => {
                self.enter(now, self.resetting(Why::Start), AttemptState::Validating);
            }
            Phase::Staging { tries } => self.staging(now, &seen, tries),
            Phase::Watching => self.watching(now, &seen, over),
            Phase::Activating { tries } => self.activating(now, &seen, tries),
            Phase::Resetting { rung, why } => self.resetted(now, &seen, rung, why, over),
            Phase::Soaking { .. } => self.soaking(now, &seen, over),
            Phase::Confirming { tries } => self.confirming(now, &seen, tries),
            Phase::Aborting { state, reason } => self.aborting(now, &seen, state, reason, over),
            Phase::Ended { .. } => {}
        }
    }

    /// The attempt's deadline passed; the last look decides between "old version still runs" and "nobody knows".
    pub(super) fn out_of_time(&mut self, now: Timestamp) {
        let limit = self.record.goal.deadlines.attempt_s;
        let doing = match &self.record.phase {
            Phase::Looking | Phase::Clearing => "before anything was written",
            Phase::Staging { .. } => "while the image was brought onto the device",
            Phase::Watching => "while the device was installing",
            Phase::Activating { .. } => "while the image was being armed",
            Phase::Resetting { .. } => "while the device was restarting",
            Phase::Soaking { .. } => "while the new image was being watched",
            Phase::Confirming { .. } => "while the new image was being confirmed",
            Phase::Aborting { reason, .. } => reason.as_str(),
            Phase::Ended { .. } => return,
        };
        let condition = match &self.seen {
            Some(seen) if !seen.ready => "the device answers but has not finished starting".to_owned(),
            Some(seen) => format!(
                "the device answers and runs {}",
                seen.version.as_deref().unwrap_or("an unknown version")
            ),
            None => format!("the device does not answer: {}", self.silence),
        };
        let reason = format!("the attempt's {limit} s passed {doing}; {condition}");
        let untouched = self.record.phase == Phase::Looking;
        let state = if untouched || self.old_version_is_safe() {
            AttemptState::TimedOut
        } else {
            AttemptState::Quarantined
        };
        self.end(now, state, reason);
    }

    /// Whether the old version runs and nothing is left behind that could change that.
    fn old_version_is_safe(&self) -> bool {
        let may_hide_an_image = !matches!(self.record.phase, Phase::Clearing | Phase::Staging { .. });
        self.seen.as_ref().is_some_and(|seen| {
            seen.ready
                && seen.version == self.record.from
                && seen.version.is_some()
                && !seen.on_trial()
                && !seen.task_is_open()
                && match seen.staged {
                    Staged::Hidden => !may_hide_an_image,
                    Staged::Nothing => true,
                    Staged::Image { armed, .. } => !armed,
                }
        })
    }

    fn decide_unseen(&mut self, now: Timestamp, over: bool) {
        self.answers = Answers::default();
        if let Phase::Soaking { .. } = self.record.phase {
            if let Some(problem) = self.look_at_health(now, None) {
                self.unwell(now, None, &problem);
            }
            return;
        }
        if !over {
            return;
        }
        match self.record.phase.clone() {
            Phase::Looking => {
                let limit = self.record.goal.deadlines.back_s;
                let silence = self.silence();
                let reason = format!("the device did not answer for {limit} s, nothing was written: {silence}");
                // A device that is to go back is already out of its old state: nobody knows what it runs.
                let state = match self.record.goal.kind {
                    PermitKind::Update => AttemptState::TimedOut,
                    PermitKind::Rollback => AttemptState::Quarantined,
                };
                self.end(now, state, reason);
            }
            Phase::Resetting { rung, why } => self.resetted_unseen(now, rung, why),
            Phase::Confirming { .. } => {
                let reason = "the new image fell silent before it was confirmed".to_owned();
                let is_unwell = true;
                self.reset(now, Why::FallBack { reason, is_unwell });
            }
            // Flashing devices fall silent; the attempt's own deadline is the bound.
            _ => {}
        }
    }

    fn looking(&mut self, now: Timestamp, seen: &Seen, over: bool, may_clear: bool) {
        // Inventories fill up after everything else.
        if seen.version.is_none() && !over {
            return;
        }
        if let Err(reason) = preflight::check(&self.record.goal, seen) {
            return self.end(now, AttemptState::Failed, reason);
        }
        let (at_goal, armed) = (
            self.runs_goal(seen),
            matches!(seen.staged, Staged::Image { armed: true, .. }),
        );
        if at_goal && seen.on_trial() {
            return self.enter(now, self.resetting(Why::Start), AttemptState::Validating);
        }
        if seen.task_is_open() {
            if over {
                let doing = if seen.task_is_active() {
                    "was busy with another update"
                } else {
                    "holds another update that waits for a restart: let it finish, or delete its task"
                };
                let reason = format!("the device {doing}; nothing was written");
                self.end(now, AttemptState::TimedOut, reason);
            }
            return;
        }
        if seen.on_trial() || (at_goal && armed) {
            self.clear(now, seen, over, may_clear);
        } else if at_goal {
            let already = format!("the device already runs {}", self.record.goal.version());
            match self.record.goal.kind {
                PermitKind::Update => self.end(now, AttemptState::Skipped, already),
                PermitKind::Rollback => self.end(now, AttemptState::RolledBack, already),
            }
        } else {
            self.record.from.clone_from(&seen.version);
            self.record.baseline = Some(seen.health);
            self.record.boot_before.clone_from(&seen.boot_id);
            if self.holds_goal(seen) {
                self.activate(now, seen, 1)
            } else {
                self.stage(now, seen, 1)
            }
        }
    }

    /// Ends somebody's trial, or disarms their image, once; then the device is looked at afresh.
    fn clear(&mut self, now: Timestamp, seen: &Seen, over: bool, may_clear: bool) {
        let rung = seen.resets.first().copied().unwrap_or(Rung::Warm);
        if may_clear {
            let step = if seen.on_trial() {
                Step::Reset(rung)
            } else {
                Step::Abort { task: None }
            };
            let state = if seen.on_trial() {
                AttemptState::Rebooting
            } else {
                AttemptState::Installing
            };
            self.act(now, Phase::Clearing, state, step);
        } else if over {
            let reason = "an earlier image is armed or on trial and could not be cleared away".to_owned();
            self.end(now, AttemptState::Quarantined, reason);
        }
    }

    pub(super) fn stage(&mut self, now: Timestamp, seen: &Seen, tries: u8) {
        assert!(!seen.on_trial(), "a slot would be written during a trial");
        let slot = seen.slots.map(|slots| slots.running.other());
        let step = Step::Stage {
            image: Box::new(self.record.goal.image.clone()),
            slot,
        };
        self.record.task = None;
        self.record.task_before.clone_from(&self.newest_task);
        self.act(now, Phase::Staging { tries }, AttemptState::Installing, step);
    }

    fn staging(&mut self, now: Timestamp, seen: &Seen, tries: u8) {
        if seen.on_trial() {
            let reason = "the device restarted into an unconfirmed trial while the image was being staged".to_owned();
            return self.end(now, AttemptState::Quarantined, reason);
        }
        if self.holds_goal(seen) {
            return self.activate(now, seen, 1);
        }
        if let Some(task) = &seen.task {
            // Whoever sends an image and dies leaves a task that failed for that.
            let broke_off = match &self.last_act {
                LastAct::Unknown => true,
                LastAct::Failed(error) => error.retry,
                LastAct::Done => false,
            };
            if broke_off && task.state == TaskState::Failed && task.name.is_some() && tries < TRIES_MAX {
                return self.stage(now, seen, tries + 1);
            }
            // Ours, though nobody heard of it: the answer was lost, or we were.
            if self.record.task.is_none() {
                self.record.task.clone_from(&task.name);
            }
            self.enter(now, Phase::Watching, AttemptState::Installing);
            return self.watching(now, seen, false);
        }
        match self.last_act.clone() {
            LastAct::Done if seen.staged == Staged::Hidden => {
                // It shows no task, so it may be writing: it is given the time that it has to come back.
                let had_time = now.since(self.acted_at) >= self.record.goal.back_limit();
                if self.good_answer(now, seen) && had_time {
                    self.start(now);
                }
            }
            LastAct::Done => self.fail(
                now,
                seen,
                "the image was written, but the device does not show it".to_owned(),
            ),
            LastAct::Failed(error) if !error.retry => self.fail(now, seen, format!("staging failed: {error}")),
            // Whether it has begun may show late: what is not seen three times is not there. And what was busy needs time.
            LastAct::Failed(_) if !self.good_answer(now, seen) => {}
            LastAct::Unknown if seen.staged == Staged::Hidden && !self.good_answer(now, seen) => {}
            LastAct::Failed(error) if tries >= TRIES_MAX => {
                self.fail(now, seen, format!("staging failed {tries} times: {error}"));
            }
            LastAct::Unknown if tries >= TRIES_MAX => {
                self.fail(now, seen, format!("staging was cut short {tries} times"));
            }
            LastAct::Failed(_) | LastAct::Unknown => self.stage(now, seen, tries + 1),
        }
    }

    fn watching(&mut self, now: Timestamp, seen: &Seen, over: bool) {
        let task = seen.task.as_ref();
        match task.map_or(TaskState::Gone, |task| task.state) {
            TaskState::Active => {
                self.answers = Answers::default();
                if over {
                    self.stalled(now, seen);
                }
            }
            TaskState::Failed => {
                let message = task.map_or("", |task| task.message.as_str());
                self.fail(now, seen, format!("the device's update task failed: {message}"));
            }
            _ if self.holds_goal(seen) => self.activate(now, seen, 1),
            TaskState::Completed | TaskState::AwaitsReset if seen.staged == Staged::Hidden => self.start(now),
            // Some forget a task before they have done what it is for, and some forget it for a moment.
            TaskState::Gone if seen.staged == Staged::Hidden => {
                if self.good_answer(now, seen) {
                    self.start(now);
                }
            }
            TaskState::Completed | TaskState::AwaitsReset | TaskState::Gone => {
                self.fail(
                    now,
                    seen,
                    "the update task ended, but the device does not show the image".to_owned(),
                );
            }
        }
    }

    fn stalled(&mut self, now: Timestamp, seen: &Seen) {
        let percent = seen.task.as_ref().and_then(|task| task.percent);
        let at = percent.map_or_else(String::new, |percent| format!(" at {percent} %"));
        let again = if self.record.task_retried { ", twice" } else { "" };
        let reason = format!("the device's update task stalled{at}{again}");
        let state = AttemptState::TimedOut;
        let task = self.record.task.clone();
        let phase = Phase::Aborting { state, reason };
        self.act(now, phase, AttemptState::Installing, Step::Abort { task });
    }

    fn activate(&mut self, now: Timestamp, seen: &Seen, tries: u8) {
        if matches!(seen.staged, Staged::Image { armed: true, .. }) {
            return self.start(now);
        }
        let slot = seen.slots.map(|slots| slots.running.other());
        self.act(
            now,
            Phase::Activating { tries },
            AttemptState::Staged,
            Step::Activate { slot },
        );
    }

    fn activating(&mut self, now: Timestamp, seen: &Seen, tries: u8) {
        if !self.holds_goal(seen) || seen.on_trial() {
            let reason = "the staged image was no longer there when it was to be armed".to_owned();
            return self.fail(now, seen, reason);
        }
        match &self.last_act {
            _ if matches!(seen.staged, Staged::Image { armed: true, .. }) => self.start(now),
            LastAct::Failed(error) if !error.retry || tries >= TRIES_MAX => {
                self.fail(now, seen, format!("the image could not be armed: {error}"));
            }
            _ if tries >= TRIES_MAX => self.fail(now, seen, format!("the image was not armed after {tries} tries")),
            _ => self.activate(now, seen, tries + 1),
        }
    }

    /// The new image runs: it is watched first, if that was asked for, and a trial stays one until then.
    pub(super) fn came_up(&mut self, now: Timestamp, seen: &Seen) {
        let on_trial = seen.on_trial();
        if self.record.goal.health.is_some() && self.record.health.is_none() {
            self.watch = HealthWatch::default();
            self.enter(now, Phase::Soaking { on_trial }, AttemptState::Validating);
        } else if on_trial {
            self.confirm(now, 1);
        } else {
            self.succeed(now);
        }
    }

    fn look_at_health(&mut self, now: Timestamp, seen: Option<HealthSample>) -> Option<String> {
        let rule = self.record.goal.health.as_ref()?;
        self.watch
            .look(now, rule, self.record.baseline.unwrap_or_default(), seen)
    }

    fn soaking(&mut self, now: Timestamp, seen: &Seen, over: bool) {
        if !self.runs_goal(seen) {
            return self.came_back_wrong(now, seen, "a restart while it was watched");
        }
        if let Some(problem) = self.look_at_health(now, Some(seen.health)) {
            return self.unwell(now, Some(seen), &problem);
        }
        if over {
            let baseline = self.record.baseline.unwrap_or_default();
            let rule = self.record.goal.health.as_ref();
            self.record.health = rule.map(|rule| self.watch.verdict(rule, baseline));
            self.came_up(now, seen);
        }
    }

    /// The new image runs and the device is not well: a trial is given up at once, anything else is its wave's to take back.
    fn unwell(&mut self, now: Timestamp, seen: Option<&Seen>, problem: &str) {
        let on_trial = matches!(self.record.phase, Phase::Soaking { on_trial: true });
        let reason = format!("the device is not well after the update: {problem}");
        match seen {
            _ if on_trial => {
                let is_unwell = true;
                self.reset(now, Why::FallBack { reason, is_unwell });
            }
            Some(_) => {
                self.record.health = Some(DeviceHealth::Breached);
                self.end(now, AttemptState::Success, reason);
            }
            None => {
                let reason = format!("{reason}: {}", self.silence());
                self.end(now, AttemptState::Quarantined, reason);
            }
        }
    }

    fn confirm(&mut self, now: Timestamp, tries: u8) {
        self.act(
            now,
            Phase::Confirming { tries },
            AttemptState::Validating,
            Step::Confirm,
        );
    }

    fn confirming(&mut self, now: Timestamp, seen: &Seen, tries: u8) {
        match (self.runs_goal(seen), seen.on_trial()) {
            (true, false) => self.succeed(now),
            (true, true) if tries < TRIES_MAX => self.confirm(now, tries + 1),
            (_, true) => {
                let reason = "the new image could not be confirmed".to_owned();
                let is_unwell = true;
                self.reset(now, Why::FallBack { reason, is_unwell });
            }
            (false, false) => self.came_back_wrong(now, seen, "a restart before it was confirmed"),
        }
    }

    fn aborting(&mut self, now: Timestamp, seen: &Seen, state: AttemptState, reason: String, over: bool) {
        let refused = matches!(&self.last_act, LastAct::Failed(error) if !error.retry);
        let armed = matches!(seen.staged, Staged::Image { armed: true, .. });
        if self.runs_goal(seen) {
            self.enter(now, self.resetting(Why::Start), AttemptState::Validating);
        } else if !seen.task_is_active() && !armed {
            let state = if seen.version == self.record.from {
                state
            } else {
                AttemptState::Quarantined
            };
            self.given_up(now, seen, state, reason);
        } else if !(over || refused) {
            // The device is given its time to let go.
        } else if seen.task_is_active() {
            self.reset(now, Why::EndTask { reason });
        } else {
            self.end(
                now,
                AttemptState::Quarantined,
                format!("{reason}; the image could not be disarmed"),
            );
        }
    }

    /// The old version still runs and the new one will not be tried; an armed image is disarmed first.
    pub(super) fn fail(&mut self, now: Timestamp, seen: &Seen, reason: String) {
        let state = AttemptState::Failed;
        if matches!(seen.staged, Staged::Image { armed: true, .. }) {
            self.act(
                now,
                Phase::Aborting { state, reason },
                AttemptState::Installing,
                Step::Abort { task: None },
            );
        } else if seen.on_trial() || seen.version != self.record.from {
            let runs = seen.version.as_deref().unwrap_or("an unknown version");
            self.end(
                now,
                AttemptState::Quarantined,
                format!("{reason}; the device runs {runs}"),
            );
        } else {
            self.end(now, state, reason);
        }
    }

    fn succeed(&mut self, now: Timestamp) {
        let state = match self.record.goal.kind {
            PermitKind::Update => AttemptState::Success,
            PermitKind::Rollback => AttemptState::RolledBack,
        };
        self.end(now, state, String::new());
    }

    pub(super) fn silence(&self) -> &str {
        if self.seen.is_some() {
            "it answers, but has not finished starting"
        } else {
            &self.silence
        }
    }

    pub(super) fn runs_goal(&self, seen: &Seen) -> bool {
        seen.version.as_deref() == Some(self.record.goal.version())
    }

    fn holds_goal(&self, seen: &Seen) -> bool {
        matches!(&seen.staged, Staged::Image { sha256, .. } if *sha256 == self.record.goal.image.artifact.sha256)
    }
}
