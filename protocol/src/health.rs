//! How a device is after an update: what is looked at, which limits it may not pass, and what its node makes of it.
//!
//! Invariants: what is not known is `None`, never zero, and never well: an input that a rule requires and that nobody could
//! read leaves the device's health unknown, which holds its wave. Shares are of the whole, so that nothing signed has a
//! float.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{manifest::Deadlines, units::BasisPoints};

/// Limits of one rule.
pub const HEALTH_LIMITS_MAX: usize = 16;

/// What is read from a device beside its reachability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthInput {
    /// How busy its processors are.
    Cpu,
    /// How full its memory is.
    Memory,
    /// The share of its application's requests that fail.
    Errors,
}

impl std::fmt::Display for HealthInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Errors => "errors",
        })
    }
}

/// One reading. What a device does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthSample {
    /// How busy its processors are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<BasisPoints>,
    /// How full its memory is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<BasisPoints>,
    /// The share of its application's requests that fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<BasisPoints>,
    /// Seconds since its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
}

impl HealthSample {
    /// One input.
    #[must_use]
    pub fn get(&self, input: HealthInput) -> Option<BasisPoints> {
        match input {
            HealthInput::Cpu => self.cpu,
            HealthInput::Memory => self.memory,
            HealthInput::Errors => self.errors,
        }
    }
}

/// A limit that an input may not be above for some time: either a share, or so much more than before the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthLimit {
    /// The input.
    pub input: HealthInput,
    /// Above this ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<BasisPoints>,
    /// ... or by more than this above the device's own baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<BasisPoints>,
    /// For so many seconds without a break.
    pub for_s: u32,
}

/// How long a device is watched after its update, before the update counts, and what it may not do meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthRule {
    /// So many seconds, which are a part of the attempt.
    pub watch_s: u32,
    /// It may not be out of reach for so many seconds.
    pub offline_s: u32,
    /// The limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<HealthLimit>,
    /// Inputs that must be known at the end: a wave does not pass on devices where one is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<HealthInput>,
}

impl HealthRule {
    /// The hard stops: two minutes offline, five minutes of processors above 95 % or memory above 90 %, application errors
    /// above 10 %.
    #[must_use]
    pub fn hard_stops() -> Self {
        let limit = |input, above, for_s| HealthLimit {
            input,
            above: BasisPoints::new(above).ok(),
            rise: None,
            for_s,
        };
        Self {
            watch_s: 600,
            offline_s: 120,
            limits: vec![
                limit(HealthInput::Cpu, 9_500, 300),
                limit(HealthInput::Memory, 9_000, 300),
                limit(HealthInput::Errors, 1_000, 0),
            ],
            required: Vec::new(),
        }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self, deadlines: &Deadlines) -> Option<String> {
        let required: BTreeSet<_> = self.required.iter().collect();
        let needed_s = u64::from(self.watch_s) + u64::from(deadlines.back_s);
        if self.watch_s == 0 || self.offline_s == 0 {
            Some("must watch, and allow to be out of reach, for at least one second".to_owned())
        } else if needed_s >= u64::from(deadlines.attempt_s) {
            Some(format!(
                "watches for {} s, for which deadlines.attempt_s has no time beside deadlines.back_s",
                self.watch_s
            ))
        } else if self.limits.len() > HEALTH_LIMITS_MAX || required.len() != self.required.len() {
            Some(format!(
                "must have at most {HEALTH_LIMITS_MAX} limits, and each required input once"
            ))
        } else if self
            .limits
            .iter()
            .any(|limit| limit.above.is_some() == limit.rise.is_some())
        {
            Some("must have either `above` or `rise` in each limit".to_owned())
        } else if self.offline_s > self.watch_s || self.limits.iter().any(|limit| limit.for_s > self.watch_s) {
            Some("has a limit for longer than it watches".to_owned())
        } else {
            None
        }
    }
}

/// What a node makes of a device that it has watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceHealth {
    /// Within all limits, and everything required is known.
    Healthy,
    /// It passed a limit.
    Breached,
    /// Within all limits as far as they can be known, which is not far enough.
    Unknown,
}
