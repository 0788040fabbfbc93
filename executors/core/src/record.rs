//! What survives a crash of the node: the goal, and the last act that was intended.

use std::time::Duration;

use firmesh_protocol::{
    health::{DeviceHealth, HealthSample},
    limits::REASON_BYTES_MAX,
    report::{AttemptState, FailureClass},
};
use serde::{Deserialize, Serialize};

use crate::{
    goal::Goal,
    step::{Outcome, Rung},
};

/// The schema this version writes. Readers refuse any other; a later version reads this one and writes its own.
const RECORD_SCHEMA: &str = "firmesh-attempt/1";
/// A record is a goal and a few words; anything larger is not ours.
const RECORD_BYTES_MAX: usize = 256 << 10;

/// The journalled state of an attempt. Written before the act it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptRecord {
    schema: String,
    /// What the attempt is for.
    pub goal: Goal,
    /// Time spent when the record was made, in milliseconds: time while the node is down is not counted.
    pub elapsed_ms: u64,
    /// The version that ran before the first write.
    pub from: Option<String>,
    /// Names the start of the device that was current before the last reset.
    pub(crate) boot_before: Option<String>,
    /// The resets the device offered when it last answered.
    pub(crate) resets: Vec<Rung>,
    /// How the device was before the first write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<HealthSample>,
    /// What was found when it was watched after the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<DeviceHealth>,
    /// The update task's name on the device.
    pub(crate) task: Option<String>,
    /// The newest update task on the device before ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task_before: Option<String>,
    /// Whether the update was begun anew after its task had stalled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) task_retried: bool,
    pub(crate) phase: Phase,
}

/// What the attempt is doing. Every phase past `Looking` has been on disk before its act began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Phase {
    /// Nothing written yet.
    Looking,
    /// Somebody's armed image is being disarmed, or their trial ended, before looking again.
    Clearing,
    /// The image is being brought onto the device, for the `tries`th time.
    Staging { tries: u8 },
    /// The device installs.
    Watching,
    /// The staged image is being armed, for the `tries`th time.
    Activating { tries: u8 },
    /// A reset was, or is about to be, sent.
    Resetting { rung: Rung, why: Why },
    /// The new image runs, and is watched.
    Soaking { on_trial: bool },
    /// The image on trial is being kept, for the `tries`th time.
    Confirming { tries: u8 },
    /// What is under way or armed is being given up, to end in `state`.
    Aborting { state: AttemptState, reason: String },
    /// Over.
    Ended { outcome: Outcome },
}

/// What a reset is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Why {
    /// To start the staged image.
    Start,
    /// To fall back from a trial that failed.
    FallBack {
        reason: String,
        /// Whether the new image ran and could not be kept.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_unwell: bool,
    },
    /// To end a stalled task.
    EndTask { reason: String },
}

impl Phase {
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Ended { outcome } => Some(outcome),
            _ => None,
        }
    }
}

/// Why stored bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Too long to be ours.
    #[error("the attempt record has {0} bytes, at most {RECORD_BYTES_MAX} are read")]
    TooLong(usize),
    /// Not JSON of the expected shape.
    #[error("the attempt record does not have the expected form")]
    Malformed(#[source] serde_json::Error),
    /// Written by another version.
    #[error("the attempt record has the schema {0:?}, this version reads {RECORD_SCHEMA:?}")]
    Schema(String),
}

impl AttemptRecord {
    pub(crate) fn new(goal: Goal) -> Self {
        Self {
            schema: RECORD_SCHEMA.to_owned(),
            goal,
            elapsed_ms: 0,
            from: None,
            boot_before: None,
            resets: Vec::new(),
            baseline: None,
            health: None,
            task: None,
            task_before: None,
            task_retried: false,
            phase: Phase::Looking,
        }
    }

    /// The record of an attempt that has to wait for something before it may even look at its device.
    #[must_use]
    pub fn waiting(goal: Goal) -> Self {
        Self::new(goal)
    }

    /// Whether nothing was done to the device, and nothing was intended.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        matches!(self.phase, Phase::Looking)
    }

    /// Time was spent waiting: it counts as the attempt's, so that the campaign's limit on the whole holds.
    #[must_use]
    pub fn having_waited(mut self, spent: Duration) -> Self {
        let spent_ms = u64::try_from(spent.as_millis()).unwrap_or(u64::MAX);
        self.elapsed_ms = self.elapsed_ms.saturating_add(spent_ms);
        self
    }

    /// What is left of the time that the campaign gives the attempt. A step of a longer way shares it with the wait for the
    /// next one.
    #[must_use]
    pub fn left(&self) -> Duration {
        let spent = Duration::from_millis(self.elapsed_ms);
        self.goal.attempt_limit().saturating_sub(spent)
    }

    /// How long an attempt may wait before it goes on: half of what its campaign leaves it.
    #[must_use]
    pub fn may_wait(&self) -> Duration {
        self.left() / 2
    }

    /// The record of an attempt that is over because it may not act any more: `otherwise` if nothing was done to the
    /// device, and a person's to look at if something was.
    #[must_use]
    pub fn given_up(mut self, otherwise: AttemptState, reason: String) -> Self {
        let (state, failure) = match (self.is_untouched(), otherwise) {
            (false, _) => (AttemptState::Quarantined, Some(FailureClass::Quarantine)),
            (true, AttemptState::Failed) => (AttemptState::Failed, Some(FailureClass::Preflight)),
            (true, other) => (other, None),
        };
        let outcome = Outcome {
            state,
            reason: bounded(reason),
            version: self.from.clone(),
            failure,
            health: None,
        };
        self.phase = Phase::Ended { outcome };
        self
    }

    /// How the attempt ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.phase.outcome()
    }

    /// What is known of the attempt before its device has been asked again: how it ended, or what it is at.
    #[must_use]
    pub fn last_known(&self) -> Outcome {
        let state = match &self.phase {
            Phase::Ended { outcome } => return outcome.clone(),
            Phase::Looking
            | Phase::Clearing
            | Phase::Staging { .. }
            | Phase::Watching
            | Phase::Activating { .. }
            | Phase::Aborting { .. } => AttemptState::Installing,
            Phase::Resetting { .. } => AttemptState::Rebooting,
            Phase::Soaking { .. } | Phase::Confirming { .. } => AttemptState::Validating,
        };
        Outcome {
            state,
            reason: "taken up again after a restart of the node".to_owned(),
            version: None,
            failure: None,
            health: None,
        }
    }

    /// The record as stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has only names, numbers and text")
    }

    /// Reads a stored record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(RecordError::TooLong(bytes.len()));
        }
        let head: Head = serde_json::from_slice(bytes).map_err(RecordError::Malformed)?;
        if head.schema != RECORD_SCHEMA {
            return Err(RecordError::Schema(head.schema.chars().take(80).collect()));
        }
        serde_json::from_slice(bytes).map_err(RecordError::Malformed)
    }
}

/// Cuts a reason to what reports carry.
pub(crate) fn bounded(mut reason: String) -> String {
    if reason.len() > REASON_BYTES_MAX {
        let mut end = REASON_BYTES_MAX - 3;
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        reason.push('…');
    }
    reason
}
