//! What each fault does to a BMC, and what it makes the BMC say. Times are multiples of the BMC's own restart, so that a
//! fault is the same one in virtual minutes and in a test's milliseconds.

use serde::{Deserialize, Serialize};

use super::Fault;
use crate::device::{Bmc, BmcTask, ResetTarget, Strength, TaskPhase};

/// What a misbehaving BMC has to remember.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Conduct {
    /// Updates begun.
    pub(crate) begun: u32,
    /// How thorough the restart under way is.
    strength: Strength,
    /// A restart of its own, or one that it was told to do a while ago.
    to_come: Option<(u64, ResetTarget, Strength)>,
    /// When the new image was started, and what it replaced.
    started_new: Option<(u64, String)>,
    /// Whether it has begun to write at a restart.
    writes_at_restart: bool,
}

/// A restart is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The action Reset was submitted with the invalid parameter {0:?}.")]
pub struct Refused(pub Strength);

/// Why every request is answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// The HTTP status.
    pub status: u16,
    /// What it says.
    pub words: &'static str,
}

/// What becomes of a request to update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// It is answered as it should be.
    Told,
    /// It is carried out, and its answer never comes.
    Lost,
    /// It is carried out, and answered with an error.
    CarriedOutAnd(Trouble),
    /// It is not carried out.
    Refused(Trouble),
    /// It is not carried out: the connection breaks.
    Breaks,
}

/// What a BMC says of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// What it knows.
    AsItIs,
    /// That it runs.
    Running,
    /// That it is completed, with a critical status.
    Critical,
    /// That there is no such task.
    NotFound,
}

/// How far behind a clock is that is far behind, in seconds: as reported.
const CLOCK_BEHIND_S: i64 = 43_973;

const STARTING: Trouble = Trouble {
    status: 503,
    words: "the BMC is starting",
};

impl Bmc {
    fn has(&self, any_of: &[Fault]) -> bool {
        self.fault().is_some_and(|fault| any_of.contains(&fault))
    }

    /// So many restarts long, in milliseconds.
    fn boots(&self, quarters: u64) -> u64 {
        self.settings.boot_ms * quarters / 4
    }

    // What it does.

    pub(in crate::device) fn stalls(&self) -> bool {
        let again = matches!(self.fault(), Some(Fault::StallsForEver));
        again
            || self.misbehaviour == Some(crate::device::Misbehaviour::Stall)
            || (self.has(&[Fault::StallsOnce]) && self.conduct.begun <= 1)
    }

    pub(in crate::device) fn writes_for_ms(&self) -> u64 {
        match self.fault() {
            Some(Fault::DoneBeforeTheFirstLook) => 0,
            Some(Fault::WaitsForARestart) if self.conduct.writes_at_restart => self.boots(4),
            Some(Fault::InstallsLongAfterTheRestart) if self.conduct.writes_at_restart => self.boots(48),
            _ => self.settings.flash_ms,
        }
    }

    pub(in crate::device) fn is_engaged(&self) -> bool {
        self.has(&[Fault::BusyWithAnotherUpdate, Fault::AnotherUpdateWaits])
    }

    pub(in crate::device) fn rejects_image(&self) -> Option<&'static str> {
        match self.fault()? {
            Fault::SignatureRefused => Some("RED007: Unable to verify Update Package signature."),
            Fault::ClockFarBehind => Some("the image could not be fetched: the server's certificate is not yet valid"),
            _ => None,
        }
    }

    /// How an update ends that does not end in the usual way: the phase of its task, if the task is still there.
    pub(in crate::device) fn ends_otherwise(
        &mut self,
        now_ms: u64,
        id: u32,
        version: &str,
    ) -> Option<Option<TaskPhase>> {
        let own = self.starts_with();
        let fault = self.fault()?;
        match fault {
            Fault::CompletedButUnchanged | Fault::CompletedWithCriticalStatus => Some(Some(TaskPhase::Completed)),
            Fault::TaskIsDeletedByAnother => {
                self.tasks.remove(&id);
                Some(None)
            }
            Fault::WaitsForARestart | Fault::InstallsLongAfterTheRestart if !self.conduct.writes_at_restart => {
                Some(Some(TaskPhase::Waiting {
                    version: version.to_owned(),
                }))
            }
            Fault::TaskNeverSaysCompleted | Fault::TaskIsLostByItsOwnRestart | Fault::RestartsBeforeItSaysCompleted => {
                self.pending = Some(version.to_owned());
                self.conduct.to_come = Some((now_ms, own, Strength::Warm));
                match fault {
                    Fault::TaskIsLostByItsOwnRestart => {
                        self.tasks.clear();
                        Some(None)
                    }
                    Fault::TaskNeverSaysCompleted => Some(Some(TaskPhase::Completed)),
                    // Still at work by its own word: the restart interrupts it.
                    _ => Some(Some(TaskPhase::Receiving)),
                }
            }
            Fault::RestartsItself => {
                self.pending = Some(version.to_owned());
                self.conduct.to_come = Some((now_ms + self.boots(1), own, Strength::Warm));
                Some(Some(TaskPhase::Completed))
            }
            _ => None,
        }
    }

    /// A part restarts; answers how much longer that takes because something is written meanwhile.
    pub(in crate::device) fn restarts(&mut self, now_ms: u64, target: ResetTarget, strength: Strength) -> u64 {
        if target != self.starts_with() {
            return 0;
        }
        self.conduct.strength = strength;
        let waiting = self.tasks.values_mut().find_map(|task| match &task.phase {
            TaskPhase::Waiting { version } => Some((version.clone(), task)),
            _ => None,
        });
        let Some((version, task)) = waiting else { return 0 };
        task.phase = TaskPhase::Flashing {
            since_ms: now_ms,
            version,
        };
        self.conduct.writes_at_restart = true;
        // And then it restarts once more.
        self.writes_for_ms() + self.settings.boot_ms
    }

    pub(in crate::device) fn is_strong_enough(&self) -> bool {
        let needed = match self.fault() {
            Some(Fault::NeedsAColdRestart) => Strength::Cold,
            Some(Fault::NeedsAnAcCycle | Fault::NeedsAnAcCycleAndHasNone) => Strength::Ac,
            _ => Strength::Warm,
        };
        self.conduct.strength >= needed
    }

    pub(in crate::device) fn slow_ms(&self) -> u64 {
        match self.fault() {
            Some(Fault::SlowRestart) => self.boots(9),
            Some(Fault::SilentForAQuarterOfAnHour) => self.boots(56),
            _ => 0,
        }
    }

    pub(in crate::device) fn stays_off(&self, target: ResetTarget, strength: Strength) -> bool {
        let graceful = target == ResetTarget::System && strength == Strength::Warm;
        graceful && self.has(&[Fault::StaysOffAfterAGracefulRestart])
    }

    pub(in crate::device) fn has_started_new(&mut self, now_ms: u64, old: String) {
        if self.has(&[Fault::FallsBackAfterAMinute]) {
            self.conduct.to_come = Some((now_ms + self.boots(2), self.starts_with(), Strength::Warm));
        }
        self.conduct.started_new = Some((now_ms, old));
    }

    pub(in crate::device) fn does_by_itself(&mut self, now_ms: u64) {
        let Some((at_ms, target, strength)) = self.conduct.to_come.filter(|(at_ms, ..)| *at_ms <= now_ms) else {
            return;
        };
        self.conduct.to_come = None;
        if self.has(&[Fault::FallsBackAfterAMinute])
            && let Some((_, old)) = self.conduct.started_new.take()
        {
            self.version = old;
        }
        self.start_again(at_ms, target, strength);
    }

    /// Restarts a part, as thoroughly as asked.
    pub fn restart(&mut self, now_ms: u64, target: ResetTarget, strength: Strength) -> Result<(), Refused> {
        self.advance(now_ms);
        let on_system = target == ResetTarget::System;
        match self.fault() {
            Some(Fault::EveryRestartRefused) if on_system => return Err(Refused(strength)),
            Some(Fault::RestartRefused) if on_system && strength == Strength::Warm => return Err(Refused(strength)),
            Some(Fault::RestartIgnored) if on_system && strength == Strength::Warm => return Ok(()),
            Some(Fault::RestartBeginsLate) => {
                let asked = Some((now_ms + self.boots(6), target, strength));
                self.conduct.to_come = self.conduct.to_come.or(asked);
                return Ok(());
            }
            _ => {}
        }
        self.start_again(now_ms, target, strength);
        Ok(())
    }

    /// The resets beyond those of every BMC that may be asked for.
    #[must_use]
    pub fn may_lose_its_input_power(&self) -> bool {
        self.has(&[Fault::NeedsAnAcCycle])
    }

    /// What becomes of a request to update that has just begun, or is to begin.
    #[must_use]
    pub fn request(&self) -> Request {
        let tried = self.conduct.begun;
        match self.fault() {
            Some(Fault::LicenceMissing) => Request::Refused(Trouble {
                status: 403,
                words: "Not licensed to perform this request.",
            }),
            Some(Fault::FirstUploadBreaks) if tried == 0 => Request::Breaks,
            Some(Fault::DoneBeforeTheFirstLook) => Request::Lost,
            Some(Fault::RefusesAndBeginsNevertheless) => Request::CarriedOutAnd(Trouble {
                status: 503,
                words: "The service is temporarily unavailable.",
            }),
            _ => Request::Told,
        }
    }

    /// Notes a request that was not carried out.
    pub fn note_broken_request(&mut self) {
        self.conduct.begun += 1;
    }

    /// Whether the answer to a restart is lost.
    #[must_use]
    pub fn goes_before_it_answers(&self) -> bool {
        self.has(&[Fault::ConnectionBreaksAtRestart])
    }

    // What it says.

    /// Why it answers nothing else, if it does not.
    #[must_use]
    pub fn trouble(&self, now_ms: u64) -> Option<Trouble> {
        if !self.answers(now_ms) {
            return Some(STARTING);
        }
        let since_up = self.manager.up_at.map_or(0, |up_at| now_ms.saturating_sub(up_at));
        let was_restarted = self.manager.last_reset_ms > 0 && self.conduct.started_new.is_some();
        let quarter = self.boots(1).max(1);
        match self.fault()? {
            Fault::SessionsExhausted => Some(Trouble {
                status: 503,
                words: "The maximum number of user sessions is reached.",
            }),
            Fault::GatewayTimeouts => Some(Trouble {
                status: 504,
                words: "Gateway Timeout",
            }),
            Fault::CredentialsGone if was_restarted => Some(Trouble {
                status: 401,
                words: "refuses the user name or the password",
            }),
            Fault::AnswersLongBeforeItWorks if was_restarted && since_up < self.boots(6) => Some(STARTING),
            Fault::FirstAnswersAreErrors if was_restarted && since_up < self.boots(12) => {
                (since_up / quarter % 3 == 2).then_some(STARTING)
            }
            Fault::BlipsWhileInstalling if self.is_writing(now_ms) => (now_ms / quarter % 4 == 3).then_some(Trouble {
                status: 500,
                words: "The request failed due to an internal service error.",
            }),
            _ => None,
        }
    }

    /// The version, as it says; nothing where it does not.
    #[must_use]
    pub fn told_version(&self, now_ms: u64) -> Option<String> {
        let since_new = self
            .conduct
            .started_new
            .as_ref()
            .map(|(at_ms, _)| now_ms.saturating_sub(*at_ms));
        match (self.fault(), since_new) {
            (Some(Fault::VersionMissingForAMinute), Some(since)) if since < self.boots(4) => None,
            (Some(Fault::VersionGone), Some(_)) => None,
            (Some(Fault::VersionInOtherWords), Some(_)) => Some(format!("{}.0", self.version)),
            _ => Some(self.version.clone()),
        }
    }

    /// Whether a new image has been started.
    #[must_use]
    pub fn has_started_an_image(&self) -> bool {
        self.conduct.started_new.is_some()
    }

    /// Whether the component has finished starting, as it says.
    #[must_use]
    pub fn told_ready(&self, now_ms: u64) -> bool {
        match self.starts_with() {
            ResetTarget::System => self.system_is_up(now_ms),
            ResetTarget::Manager => self.conduct.started_new.is_none() || !self.has(&[Fault::NeverReady]),
        }
    }

    /// When a part was last restarted, as it says.
    #[must_use]
    pub fn told_reset_ms(&self, target: ResetTarget) -> u64 {
        match self.fault() {
            Some(Fault::RestartTimeNeverChanges) => 0,
            _ => self.last_reset_ms(target),
        }
    }

    /// What it says of a task.
    #[must_use]
    pub fn told_task(&self, task: &BmcTask, now_ms: u64) -> Told {
        let since = now_ms.saturating_sub(task.begun_ms);
        let done = task.phase == TaskPhase::Completed;
        match self.fault() {
            Some(Fault::CompletedWithCriticalStatus) if done => Told::Critical,
            Some(Fault::TaskNeverSaysCompleted) if done => Told::Running,
            Some(Fault::TaskVanishesWhenDone) if done => Told::NotFound,
            Some(Fault::TaskVanishesForAMoment) if (self.boots(2)..self.boots(3)).contains(&since) && !done => {
                Told::NotFound
            }
            Some(Fault::RefusesAndBeginsNevertheless) if since < self.boots(1) => Told::NotFound,
            _ => Told::AsItIs,
        }
    }

    /// Another's update: whether it is at work, or waits for a restart.
    #[must_use]
    pub fn told_foreign_task(&self) -> Option<bool> {
        match self.fault()? {
            Fault::BusyWithAnotherUpdate => Some(true),
            Fault::AnotherUpdateWaits => Some(false),
            _ => None,
        }
    }

    /// Whether it has a list of tasks, and names the one that it begins.
    #[must_use]
    pub fn tells_of_tasks(&self) -> bool {
        !self.has(&[Fault::NoTaskAtAll])
    }

    /// How far its clock is ahead, in seconds.
    #[must_use]
    pub fn clock_off_s(&self) -> i64 {
        if self.has(&[Fault::ClockFarBehind]) {
            -CLOCK_BEHIND_S
        } else {
            0
        }
    }
}
