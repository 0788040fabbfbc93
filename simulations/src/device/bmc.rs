//! A BMC: sessions, tasks, an inventory, and an image that becomes the running version only at a restart.

use std::collections::BTreeMap;

use firmesh_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

use super::{
    Bios, Catalogue, EventKind, EventLog, Identity, Misbehaviour,
    faulty::{Conduct, Fault},
};

/// Tasks remembered, as on real BMCs: a handful.
const TASKS_MAX: usize = 16;
/// Sessions at once, as on real BMCs.
const SESSIONS_MAX: usize = 16;

/// What a BMC is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BmcSettings {
    /// What it is.
    pub identity: Identity,
    /// The images it accepts.
    pub catalogue: Catalogue,
    /// Its one account.
    pub username: String,
    /// The account's password.
    pub password: String,
    /// How long it writes an image, in milliseconds.
    pub flash_ms: u64,
    /// How long a restart takes, in milliseconds.
    pub boot_ms: u64,
}

/// A BMC and the device behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmc {
    /// What it is made of.
    pub settings: BmcSettings,
    /// How it misbehaves.
    pub misbehaviour: Option<Misbehaviour>,
    /// The version that runs.
    pub version: String,
    pub(super) pending: Option<String>,
    pub(super) tasks: BTreeMap<u32, BmcTask>,
    sessions: BTreeMap<u32, String>,
    counter: u32,
    pub(super) manager: Power,
    pub(super) system: Power,
    #[serde(default)]
    pub(super) conduct: Conduct,
    /// The settings of its server's BIOS.
    #[serde(default)]
    pub bios: Bios,
    /// What happened.
    pub log: EventLog,
}

/// One restartable part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Power {
    pub(super) last_reset_ms: u64,
    pub(super) up_at: Option<u64>,
    starting: bool,
}

/// An update task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BmcTask {
    /// When it began.
    pub begun_ms: u64,
    /// Where it stands.
    pub phase: TaskPhase,
}

/// Where an update task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskPhase {
    /// The image is on its way.
    Receiving,
    /// The image is being written.
    Flashing {
        /// When that began.
        since_ms: u64,
        /// The image's version.
        version: String,
    },
    /// The image lies ready, to be written at the next restart.
    Waiting {
        /// The image's version.
        version: String,
    },
    /// Ended well, it says.
    Completed,
    /// Ended badly.
    Exception {
        /// Why.
        reason: String,
    },
}

impl BmcTask {
    /// Whether the task has not ended.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, TaskPhase::Receiving | TaskPhase::Flashing { .. })
    }
}

/// What a reset restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResetTarget {
    /// The BMC itself.
    Manager,
    /// The system behind it.
    System,
}

/// How thoroughly a reset restarts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Strength {
    /// With the power on.
    #[default]
    Warm,
    /// The power goes off and on.
    Cold,
    /// The input power goes away and comes back.
    Ac,
}

/// Another update is under way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another update is in progress")]
pub struct Busy;

impl Bmc {
    /// A BMC that runs `version`.
    #[must_use]
    pub fn new(settings: BmcSettings, version: String, now_ms: u64) -> Self {
        let power = Power {
            last_reset_ms: now_ms,
            up_at: Some(now_ms),
            starting: false,
        };
        Self {
            settings,
            misbehaviour: None,
            version,
            pending: None,
            tasks: BTreeMap::new(),
            sessions: BTreeMap::new(),
            counter: 0,
            manager: power,
            system: power,
            conduct: Conduct::default(),
            bios: Bios::default(),
            log: EventLog::default(),
        }
    }

    /// The fault that it has.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match self.misbehaviour {
            Some(Misbehaviour::Faulty { fault }) => Some(fault),
            _ => None,
        }
    }

    /// The image that waits to be started.
    #[must_use]
    pub fn pending(&self) -> Option<&str> {
        self.pending.as_deref()
    }

    /// Whether it is writing an image just now, so that a restart would tear it.
    #[must_use]
    pub fn is_writing(&self, now_ms: u64) -> bool {
        let writing = self
            .tasks
            .values()
            .any(|task| matches!(&task.phase, TaskPhase::Flashing { since_ms, .. } if now_ms < since_ms + self.writes_for_ms()));
        writing && !self.stalls()
    }

    /// Opens a session named by `token`, for the right user; answers its number.
    pub fn log_in(&mut self, username: &str, password: &str, token: String) -> Option<u32> {
        if (username, password) != (&*self.settings.username, &*self.settings.password) {
            return None;
        }
        if self.sessions.len() >= SESSIONS_MAX {
            self.sessions.pop_first();
        }
        self.counter += 1;
        self.sessions.insert(self.counter, token);
        Some(self.counter)
    }

    /// Whether a session goes by this token.
    #[must_use]
    pub fn knows(&self, token: &str) -> bool {
        self.sessions.values().any(|known| known == token)
    }

    /// Ends a session; whether there was one.
    pub fn log_out(&mut self, session: u32) -> bool {
        self.sessions.remove(&session).is_some()
    }

    /// Whether the BMC answers.
    #[must_use]
    pub fn answers(&self, now_ms: u64) -> bool {
        self.manager.is_up(now_ms)
    }

    /// Whether the system behind it is up.
    #[must_use]
    pub fn system_is_up(&self, now_ms: u64) -> bool {
        self.system.is_up(now_ms)
    }

    /// When a part was last reset.
    #[must_use]
    pub fn last_reset_ms(&self, target: ResetTarget) -> u64 {
        match target {
            ResetTarget::Manager => self.manager.last_reset_ms,
            ResetTarget::System => self.system.last_reset_ms,
        }
    }

    /// The tasks, oldest first.
    pub fn tasks(&self) -> impl Iterator<Item = (u32, &BmcTask)> {
        self.tasks.iter().map(|(&id, task)| (id, task))
    }

    /// One task.
    #[must_use]
    pub fn task(&self, id: u32) -> Option<&BmcTask> {
        self.tasks.get(&id)
    }

    /// How far a task is, in percent.
    #[must_use]
    pub fn percent(&self, task: &BmcTask, now_ms: u64) -> u64 {
        match task.phase {
            TaskPhase::Receiving => 10,
            TaskPhase::Waiting { .. } => 20,
            TaskPhase::Flashing { .. } if self.stalls() => 40,
            TaskPhase::Flashing { since_ms, .. } => {
                let takes_ms = self.writes_for_ms();
                20 + 80 * now_ms.saturating_sub(since_ms).min(takes_ms) / takes_ms.max(1)
            }
            TaskPhase::Completed | TaskPhase::Exception { .. } => 100,
        }
    }

    /// Begins an update; the image follows.
    pub fn begin_update(&mut self, now_ms: u64) -> Result<u32, Busy> {
        self.advance(now_ms);
        if self.tasks.values().any(BmcTask::is_active) || self.is_engaged() {
            return Err(Busy);
        }
        self.conduct.begun += 1;
        if self.tasks.len() >= TASKS_MAX {
            self.tasks.pop_first();
        }
        self.counter += 1;
        self.tasks.insert(
            self.counter,
            BmcTask {
                begun_ms: now_ms,
                phase: TaskPhase::Receiving,
            },
        );
        self.log.add(now_ms, EventKind::UpdateBegun);
        Ok(self.counter)
    }

    /// The image has arrived: it is known and fits, or the task ends in an exception.
    pub fn image_arrived(&mut self, now_ms: u64, task: u32, sha256: Sha256, length: u64) {
        self.log.add(now_ms, EventKind::ImageReceived { sha256, length });
        let model = &self.settings.identity.model;
        let version = match self.settings.catalogue.get(&sha256) {
            None => Err("the image is not one of the maker's".to_owned()),
            Some(firmware) if firmware.model != *model => Err(format!("the image is for {}", firmware.model)),
            Some(firmware) => match self.rejects_image() {
                Some(reason) => Err(reason.to_owned()),
                None => Ok(firmware.version.clone()),
            },
        };
        match (self.tasks.get_mut(&task), version) {
            (
                Some(BmcTask {
                    phase: phase @ TaskPhase::Receiving,
                    ..
                }),
                Ok(version),
            ) => {
                *phase = TaskPhase::Flashing {
                    since_ms: now_ms,
                    version,
                };
            }
            (
                Some(BmcTask {
                    phase: TaskPhase::Receiving,
                    ..
                }),
                Err(reason),
            ) => self.update_failed(now_ms, task, reason),
            // The task was cancelled meanwhile.
            _ => {}
        }
    }

    /// The update ends in an exception. Unheard if it has ended before.
    pub fn update_failed(&mut self, now_ms: u64, task: u32, reason: String) {
        if let Some(task) = self.tasks.get_mut(&task).filter(|task| task.is_active()) {
            task.phase = TaskPhase::Exception { reason: reason.clone() };
            self.log.add(now_ms, EventKind::UpdateFailed { reason });
        }
    }

    /// Restarts a part of the device. A stalled task ends with the manager it lives in.
    pub fn reset(&mut self, now_ms: u64, target: ResetTarget) {
        self.advance(now_ms);
        self.start_again(now_ms, target, Strength::Warm);
    }

    pub(super) fn start_again(&mut self, now_ms: u64, target: ResetTarget, strength: Strength) {
        let name = if target == ResetTarget::Manager {
            "manager"
        } else {
            "system"
        };
        self.log.add(
            now_ms,
            EventKind::Reset {
                target: name.to_owned(),
            },
        );
        if target == ResetTarget::Manager {
            self.sessions.clear();
            let active: Vec<u32> = self
                .tasks()
                .filter(|(_, task)| task.is_active())
                .map(|(id, _)| id)
                .collect();
            for task in active {
                self.update_failed(now_ms, task, "interrupted by a reset".to_owned());
            }
        }
        let installs_ms = self.restarts(now_ms, target, strength);
        let starts_image = target == self.starts_with() && self.pending.is_some();
        let never_back = self.misbehaviour == Some(Misbehaviour::NeverBack) || self.fault() == Some(Fault::NeverBack);
        let dies = starts_image && never_back;
        if dies {
            self.log.add(now_ms, EventKind::Died);
        }
        let slow_ms = match self.misbehaviour {
            Some(Misbehaviour::SlowBoot { ms }) => ms,
            _ if starts_image => self.slow_ms(),
            _ => 0,
        };
        let stays_down = dies || self.stays_off(target, strength);
        let up_at = (!stays_down).then_some(now_ms + self.settings.boot_ms + slow_ms + installs_ms);
        let power = Power {
            last_reset_ms: now_ms,
            up_at,
            starting: true,
        };
        match target {
            ResetTarget::Manager => self.manager = power,
            ResetTarget::System => self.system = power,
        }
    }

    /// Lets time pass: writing ends, restarts end. Whether anything changed.
    pub fn advance(&mut self, now_ms: u64) -> bool {
        let before = (self.log.events().len(), self.manager, self.system);
        self.finish_flashing(now_ms);
        self.does_by_itself(now_ms);
        for target in [ResetTarget::Manager, ResetTarget::System] {
            let power = if target == ResetTarget::Manager {
                &mut self.manager
            } else {
                &mut self.system
            };
            if !(power.starting && power.is_up(now_ms)) {
                continue;
            }
            power.starting = false;
            if target == ResetTarget::System {
                self.bios.start(self.misbehaviour == Some(Misbehaviour::Lie));
            }
            if target == self.starts_with() {
                if self.is_strong_enough()
                    && let Some(version) = self.pending.take()
                {
                    let old = std::mem::replace(&mut self.version, version);
                    self.has_started_new(now_ms, old);
                }
                let version = self.version.clone();
                self.log.add(now_ms, EventKind::Booted { version, slot: None });
            }
        }
        before != (self.log.events().len(), self.manager, self.system)
    }

    fn finish_flashing(&mut self, now_ms: u64) {
        if self.stalls() {
            return;
        }
        let takes_ms = self.writes_for_ms();
        let written = self.tasks.iter().find_map(|(&id, task)| match &task.phase {
            TaskPhase::Flashing { since_ms, version } if now_ms >= since_ms + takes_ms => Some((id, version.clone())),
            _ => None,
        });
        let Some((id, version)) = written else { return };
        if self.misbehaviour == Some(Misbehaviour::FailUpdate) {
            return self.update_failed(now_ms, id, "the flash part could not be verified".to_owned());
        }
        if let Some(phase) = self.ends_otherwise(now_ms, id, &version) {
            if let Some(phase) = phase
                && let Some(task) = self.tasks.get_mut(&id)
            {
                task.phase = phase;
            }
            return;
        }
        if self.misbehaviour != Some(Misbehaviour::Lie) {
            self.pending = Some(version);
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            task.phase = TaskPhase::Completed;
        }
        self.log.add(now_ms, EventKind::UpdateCompleted);
    }

    /// The reset that starts a new image of the component.
    pub(super) fn starts_with(&self) -> ResetTarget {
        if self.settings.identity.component.as_str() == "bmc" {
            ResetTarget::Manager
        } else {
            ResetTarget::System
        }
    }
}

impl Power {
    fn is_up(self, now_ms: u64) -> bool {
        self.up_at.is_some_and(|up_at| now_ms >= up_at)
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::ids::Component;

    use super::*;
    use crate::device::Firmware;

    #[test]
    fn a_staged_image_runs_only_after_the_right_reset() {
        let mut bmc = bmc("bios");
        let task = bmc.begin_update(0).unwrap();
        assert_eq!(bmc.begin_update(1), Err(Busy));
        bmc.image_arrived(10, task, image(), 3);
        bmc.advance(1_000);
        assert_eq!(bmc.task(task).unwrap().phase, TaskPhase::Completed);
        bmc.reset(1_000, ResetTarget::Manager);
        bmc.advance(3_000);
        assert_eq!(bmc.version, "1");
        bmc.reset(3_000, ResetTarget::System);
        assert!(bmc.log.in_flight() && !bmc.system_is_up(3_001));
        bmc.advance(5_000);
        assert_eq!(bmc.version, "2");
        assert!(!bmc.log.in_flight());
    }

    #[test]
    fn unknown_images_and_those_of_other_models_end_in_an_exception() {
        let mut bmc = bmc("bmc");
        for digest in [Sha256::of(b"unknown"), Sha256::of(b"other")] {
            let task = bmc.begin_update(0).unwrap();
            bmc.image_arrived(10, task, digest, 3);
            assert!(matches!(bmc.task(task).unwrap().phase, TaskPhase::Exception { .. }));
        }
    }

    #[test]
    fn each_misbehaviour_shows() {
        let updated = |misbehaviour| {
            let mut bmc = Bmc {
                misbehaviour: Some(misbehaviour),
                ..bmc("bmc")
            };
            let task = bmc.begin_update(0).unwrap();
            bmc.image_arrived(0, task, image(), 3);
            bmc.advance(1_000);
            let phase = bmc.task(task).unwrap().phase.clone();
            bmc.reset(1_000, ResetTarget::Manager);
            bmc.advance(3_000);
            (phase, bmc)
        };
        assert!(matches!(updated(Misbehaviour::Stall).0, TaskPhase::Flashing { .. }));
        let (phase, liar) = updated(Misbehaviour::Lie);
        assert_eq!((phase, &*liar.version), (TaskPhase::Completed, "1"));
        assert!(matches!(
            updated(Misbehaviour::FailUpdate).0,
            TaskPhase::Exception { .. }
        ));
        let dead = updated(Misbehaviour::NeverBack).1;
        assert!(!dead.answers(1 << 40) && dead.log.in_flight());
        let slow = updated(Misbehaviour::SlowBoot { ms: 60_000 }).1;
        assert!(!slow.answers(3_000) && slow.answers(70_000));
    }

    #[test]
    fn a_restarted_manager_has_forgotten_its_sessions() {
        let mut bmc = bmc("bmc");
        assert_eq!(bmc.log_in("admin", "wrong", "t".to_owned()), None);
        bmc.log_in("admin", "secret", "t".to_owned()).unwrap();
        assert!(bmc.knows("t"));
        bmc.reset(0, ResetTarget::Manager);
        assert!(!bmc.knows("t"));
    }

    fn image() -> Sha256 {
        Sha256::of(b"two")
    }

    fn bmc(component: &str) -> Bmc {
        let firmware = |model: &str| Firmware {
            version: "2".to_owned(),
            model: model.to_owned(),
        };
        let settings = BmcSettings {
            identity: Identity {
                vendor: "Acme".to_owned(),
                model: "R1".to_owned(),
                component: Component::new(component).unwrap(),
            },
            catalogue: [(image(), firmware("R1")), (Sha256::of(b"other"), firmware("R2"))].into(),
            username: "admin".to_owned(),
            password: "secret".to_owned(),
            flash_ms: 100,
            boot_ms: 1_000,
        };
        Bmc::new(settings, "1".to_owned(), 0)
    }
}
