//! What a device shows of itself.

use firmesh_protocol::{
    health::HealthSample,
    ids::{Component, Sha256},
};

use crate::{boot::Slot, step::Rung};

/// One look at a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// It does not answer, or not sensibly.
    Silent {
        /// What went wrong, for a person.
        why: String,
    },
    /// It answers.
    Answering(Box<Seen>),
}

/// What an answering device shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Vendor, as the device reports it.
    pub vendor: String,
    /// Model, as the device reports it.
    pub model: String,
    /// The component in question.
    pub component: Component,
    /// The component's running version; `None` if the device does not list it.
    pub version: Option<String>,
    /// Whether the device has finished starting.
    pub ready: bool,
    /// Names the current start of whatever a reset restarts; `None` if the device does not tell starts apart.
    pub boot_id: Option<String>,
    /// What lies on the device, not running.
    pub staged: Staged,
    /// The update task that was asked for. If none was: the newest one with its name, whatever became of it, or one that
    /// is not over.
    pub task: Option<TaskSeen>,
    /// The slots, on devices that have them.
    pub slots: Option<SlotsSeen>,
    /// Whether images outside the device's slots can be refused by size; `None` if unbounded.
    pub image_bytes_max: Option<u64>,
    /// The resets that restart the component, gentlest first.
    pub resets: Vec<Rung>,
    /// How the device is, as far as it tells.
    pub health: HealthSample,
    /// How far its clock is ahead of ours, in seconds; `None` if it does not tell the time.
    pub clock_off_s: Option<i64>,
}

/// What lies on a device, not running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Staged {
    /// The device does not show it; only its version after a reset will.
    Hidden,
    /// Nothing usable.
    Nothing,
    /// A complete image.
    Image {
        /// Its version.
        version: String,
        /// Its digest.
        sha256: Sha256,
        /// Whether the next reset starts it.
        armed: bool,
    },
}

/// The two slots of an A/B device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotsSeen {
    /// The slot that runs.
    pub running: Slot,
    /// The slot that a plain restart starts. Differs from `running` during a trial.
    pub saved: Slot,
}

impl SlotsSeen {
    /// Whether the running slot is on an unconfirmed trial.
    #[must_use]
    pub fn on_trial(self) -> bool {
        self.running != self.saved
    }
}

/// An update task on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSeen {
    /// Its name on the device; `None` on devices whose tasks cannot be told apart.
    pub name: Option<String>,
    /// Where it stands.
    pub state: TaskState,
    /// Progress, if told.
    pub percent: Option<u8>,
    /// The device's last word on it.
    pub message: String,
}

/// Where an update task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// Not finished.
    Active,
    /// Goes on, or begins, with the next restart.
    AwaitsReset,
    /// Says it is finished well. Only the version read back says whether that is so.
    Completed,
    /// Says it failed.
    Failed,
    /// The device no longer knows it.
    Gone,
}

impl Seen {
    pub(crate) fn on_trial(&self) -> bool {
        self.slots.is_some_and(SlotsSeen::on_trial)
    }

    pub(crate) fn task_is_active(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.state == TaskState::Active)
    }

    /// Whether a task is not over, at work or not.
    pub(crate) fn task_is_open(&self) -> bool {
        let waits = |task: &TaskSeen| task.state == TaskState::AwaitsReset;
        self.task_is_active() || self.task.as_ref().is_some_and(waits)
    }
}
