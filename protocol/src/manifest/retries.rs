//! Which failed updates are begun again, how often, after which pause, and of how many devices.
//!
//! Invariants: only a device that is known to run what it ran before, and that has a way back, is begun again; a wave in
//! which more devices fail than the budget is for begins none again, so that a bad image is not taken for bad luck.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::CampaignManifest;
use crate::{
    report::{AttemptState, FailureClass},
    units::BasisPoints,
};

/// Further starts of one device at most: what fails five times in a row fails.
const TIMES_MAX: u32 = 5;

/// The longest pause, in seconds, however often it was doubled.
const PAUSE_MAX_S: u32 = 86_400;

/// When a device whose update failed may be started again in the same campaign. Coordinators permit it, and its node checks
/// class, number and pause by its own records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// By the way in which the last attempt failed; other failures are final.
    pub rules: Vec<RetryRule>,
    /// Of so many devices of each wave. When more have failed, none of the wave is started again, and all failures count.
    #[serde(default)]
    pub budget: RetryBudget,
}

/// Further starts after one kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryRule {
    /// How the last attempt failed: `install`, `boot` or `timeout`.
    pub class: FailureClass,
    /// How often the device may be started beyond the first time, whatever failed before.
    #[serde(default = "RetryRule::once")]
    pub times: u32,
    /// How long its node leaves it alone before the second start, in seconds; twice as long before each one after it, a day
    /// at most.
    #[serde(default = "RetryRule::ten_minutes")]
    pub pause_s: u32,
}

impl RetryRule {
    /// Further starts, if nobody says how many.
    pub const TIMES: u32 = 1;
    /// The first pause, if nobody says how long: ten minutes.
    pub const PAUSE_S: u32 = 600;

    fn once() -> u32 {
        Self::TIMES
    }

    fn ten_minutes() -> u32 {
        Self::PAUSE_S
    }
}

/// How many devices of a wave may need more than one start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryBudget {
    /// So many.
    Count(u32),
    /// Such a share of the wave's devices, in basis points, rounded up.
    Share(BasisPoints),
}

impl Default for RetryBudget {
    /// One in twenty.
    fn default() -> Self {
        Self::Share(BasisPoints::new(500).unwrap_or(BasisPoints::WHOLE))
    }
}

impl RetryBudget {
    /// The budget of a wave of so many devices.
    #[must_use]
    pub fn of(self, devices: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Share(share) => share.of_rounded_up(devices),
        }
    }
}

impl Retries {
    /// What is wrong with them, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let classes: BTreeSet<_> = self.rules.iter().map(|rule| rule.class).collect();
        let is_none = match self.budget {
            RetryBudget::Count(count) => count == 0,
            RetryBudget::Share(share) => share.get() == 0,
        };
        if self.rules.is_empty() || classes.len() != self.rules.len() {
            return Some("must have at least one rule, and one for each class of failures".to_owned());
        }
        if let Some(class) = classes.into_iter().find(|class| !may_be_luck(*class)) {
            let why = match class {
                FailureClass::Preflight => "nothing was begun, and what was refused is refused again",
                FailureClass::Health => "the image has run and was not well: that is its verdict",
                _ => "nobody knows what the device runs, or it is not in a state to be left in: a person looks at it",
            };
            return Some(format!("must not be about {class} failures: {why}"));
        }
        if let Some(rule) = self.rules.iter().find(|rule| !(1..=TIMES_MAX).contains(&rule.times)) {
            return Some(format!(
                "allow {} further starts after {} failures, 1 to {TIMES_MAX} are allowed",
                rule.times, rule.class
            ));
        }
        if let Some(rule) = self.rules.iter().find(|rule| rule.pause_s > PAUSE_MAX_S) {
            return Some(format!(
                "have a pause of {} s after {} failures, at most {PAUSE_MAX_S} are allowed",
                rule.pause_s, rule.class
            ));
        }
        is_none.then(|| "have a budget of no device: leave them out".to_owned())
    }

    /// How long a device is left alone whose update has ended so often, the last time in this class; nothing if it is not
    /// started again.
    fn pause(&self, class: FailureClass, ended: u32) -> Option<Duration> {
        let rule = self.rules.iter().find(|rule| rule.class == class)?;
        let pause_s = rule.pause_s.checked_mul(1 << ended.saturating_sub(1).min(TIMES_MAX));
        let pause = Duration::from_secs(pause_s.unwrap_or(PAUSE_MAX_S).min(PAUSE_MAX_S).into());
        (ended <= rule.times).then_some(pause)
    }
}

/// Whether a device that failed in such a way runs what it ran before, and may do better another time.
fn may_be_luck(class: FailureClass) -> bool {
    matches!(
        class,
        FailureClass::Install | FailureClass::Boot | FailureClass::Timeout
    )
}

impl CampaignManifest {
    /// How long a device is left alone before it is started again whose update has ended so often, the last time in this
    /// state and class; nothing if that was the last time. A device without a way back is never started again. Whether the
    /// budget of its wave is spent is not looked at.
    #[must_use]
    pub fn retry_pause(
        &self,
        can_go_back: bool,
        state: AttemptState,
        failure: Option<FailureClass>,
        ended: u32,
    ) -> Option<Duration> {
        use AttemptState::{Failed, RolledBack, TimedOut};
        let runs_old = matches!(state, Failed | RolledBack | TimedOut);
        let class = failure.filter(|class| runs_old && can_go_back && may_be_luck(*class))?;
        self.retries.as_ref()?.pause(class, ended)
    }

    /// How many devices of a wave of so many may need more than one start.
    #[must_use]
    pub fn retry_budget(&self, devices: usize) -> usize {
        self.retries.as_ref().map_or(0, |retries| retries.budget.of(devices))
    }
}
