//! The machine's words: what goes in, what comes out.

use firmesh_protocol::{
    health::DeviceHealth,
    report::{AttemptState, FailureClass},
};
use serde::{Deserialize, Serialize};

use crate::{boot::Slot, goal::Image, observed::Observed, record::AttemptRecord};

/// What the shell tells the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The answer to [`Step::Observe`].
    Observed(Observed),
    /// The answer to [`Step::Stage`], carried out: the task that installs the image, if the device runs one.
    Staged {
        /// The task's name on the device.
        task: Option<String>,
    },
    /// The answer to any other step, carried out.
    Acted,
    /// The answer to a step that failed, or that was still under way at [`crate::Attempt::deadline`].
    ActFailed(ActError),
    /// Time passed.
    Tick,
}

/// Why a step was not carried out, or perhaps was: only the next look tells.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ActError {
    /// The whole chain of causes, for a person.
    pub reason: String,
    /// Whether the same step may succeed later.
    pub retry: bool,
}

/// What the machine tells the shell, in order: an output is dealt with before the next one is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Make this durable before going on.
    Persist(Box<AttemptRecord>),
    /// Tell the campaign.
    Report(Report),
    /// Carry this out and hand back its answer.
    Step(Step),
    /// The attempt is over.
    Done(Outcome),
}

/// One act on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Look at the device, and at its update task if it has one.
    Observe {
        /// The task's name on the device.
        task: Option<String>,
    },
    /// Bring the image onto the device, inactive.
    Stage {
        /// The image.
        image: Box<Image>,
        /// The slot to write, on devices with slots: never the running or the saved one.
        slot: Option<Slot>,
    },
    /// Make the next reset start the staged image, once.
    Activate {
        /// The slot that holds it, on devices with slots.
        slot: Option<Slot>,
    },
    /// Restart.
    Reset(Rung),
    /// Keep the image that is on trial.
    Confirm,
    /// Give up what is staged or under way.
    Abort {
        /// The task's name on the device.
        task: Option<String>,
    },
}

/// The reset ladder, gentlest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// The management controller alone.
    Bmc,
    /// The system, asked to shut down first where it can.
    Warm,
    /// The system's power off and on.
    Cold,
    /// The power supplies' input off and on: what a person does by pulling the plug. Offered only where somebody said that
    /// the device may be treated so.
    Ac,
}

/// News of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Where it stands.
    pub state: AttemptState,
    /// Why, for a person; empty when the state says it all.
    pub reason: String,
    /// The version last read back, if the device answered.
    pub version: Option<String>,
    /// In which way it failed, if it did.
    pub failure: Option<FailureClass>,
    /// How the device is after the update, if it was watched.
    pub health: Option<DeviceHealth>,
}

impl Report {
    /// Where an attempt stands that has not ended.
    #[must_use]
    pub fn on_the_way(state: AttemptState, version: Option<String>) -> Self {
        Self {
            state,
            reason: String::new(),
            version,
            failure: None,
            health: None,
        }
    }
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Self {
        let Outcome {
            state,
            reason,
            version,
            failure,
            health,
        } = outcome;
        Self {
            state,
            reason,
            version,
            failure,
            health,
        }
    }
}

impl From<Report> for Outcome {
    fn from(report: Report) -> Self {
        let Report {
            state,
            reason,
            version,
            failure,
            health,
        } = report;
        Self {
            state,
            reason,
            version,
            failure,
            health,
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// A terminal state.
    pub state: AttemptState,
    /// Why, for a person; empty when the state says it all.
    pub reason: String,
    /// The version last read back, if the device ever answered.
    pub version: Option<String>,
    /// In which way it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureClass>,
    /// How the device is after the update, if it was watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<DeviceHealth>,
}
