//! A node that updates itself, as written and as checked.

use std::time::Duration;

use serde::Deserialize;

use crate::config::{Check, DeviceConfigError};

/// A node that updates itself, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSelfConfig {
    /// For how long a new version on trial may be silent about whether it works before the launcher ends it, in seconds. Default
    /// 300: a coordinator that is restarted is back in less.
    #[serde(default = "five_minutes")]
    pub works_within_s: u32,
    /// How long the restart waits for other attempts of the node, in seconds. Default 300; a campaign whose devices may take less time
    /// to come back gives up first.
    #[serde(default = "five_minutes")]
    pub others_within_s: u32,
}

/// A node that updates itself, checked.
#[derive(Debug, Clone)]
pub struct NodeSelfSettings {
    pub(super) works_within_s: u32,
    pub(super) others_within: Duration,
}

/// An idle or watched device is looked at every ten seconds, and says so then: half of that many looks may fail.
const WORKS_WITHIN_S: std::ops::RangeInclusive<u32> = 20..=3_600;

impl Check<'_> {
    #[expect(clippy::needless_pass_by_value, reason = "as all configurations are checked")]
    pub(crate) fn node_self(&self, config: NodeSelfConfig) -> Result<NodeSelfSettings, DeviceConfigError> {
        if !WORKS_WITHIN_S.contains(&config.works_within_s) {
            return Err(self.value("works_within_s", "must be 20 to 3600"));
        }
        if !(1..=86_400).contains(&config.others_within_s) {
            return Err(self.value("others_within_s", "must be 1 to 86400"));
        }
        Ok(NodeSelfSettings {
            works_within_s: config.works_within_s,
            others_within: Duration::from_secs(config.others_within_s.into()),
        })
    }
}

fn five_minutes() -> u32 {
    300
}
