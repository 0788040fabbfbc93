//! The rules of a campaign: for whom, how it widens, how many at once, what stands between two waves, and when.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::is_label;
use crate::{
    ids::{DeviceId, TopologyPath},
    limits::WAVES_MAX,
    units::BasisPoints,
    window::{Blackout, WINDOWS_MAX, Window},
};

/// Which devices a campaign is for: all that match every non-empty list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// Places; a device matches if it stands at or below one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<TopologyPath>,
    /// Models, exactly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Devices by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

/// How a campaign widens: what its waves are. Between two waves stands the gate, whatever the strategy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// Everybody in one wave: for one device, or a few.
    Direct {},
    /// Waves by growing share of the devices, cut across racks.
    Canary {
        /// Cumulative shares in basis points, strictly growing, the last one 10,000.
        #[serde(default = "Strategy::canary_shares")]
        shares: Vec<BasisPoints>,
    },
    /// One place after another, each in waves of its own.
    Regional {
        /// The places, none inside another. Devices elsewhere are held.
        order: Vec<TopologyPath>,
        /// Cumulative shares of a place's devices, as for [`Strategy::Canary`]; the whole place at once if left out.
        #[serde(default = "Strategy::whole_place")]
        shares: Vec<BasisPoints>,
    },
    /// Batches of one size, cut across racks.
    Rolling {
        /// Devices of a batch.
        #[serde(default = "Strategy::rolling_batch")]
        batch: u32,
    },
    /// Batches that grow with every one that succeeds, cut across racks.
    Growing {
        /// Devices of the first batch.
        first: u32,
        /// How large a batch is, measured by the one before it, in percent: 200 doubles. Above 100.
        percent: u32,
    },
}

/// Places that a regional campaign goes through at most.
const REGIONS_MAX: usize = 1_000;

impl Strategy {
    pub(super) fn canary_shares() -> Vec<BasisPoints> {
        [1_000, 3_000, 5_000, 10_000]
            .into_iter()
            .filter_map(|share| BasisPoints::new(share).ok())
            .collect()
    }

    fn whole_place() -> Vec<BasisPoints> {
        vec![BasisPoints::WHOLE]
    }

    fn rolling_batch() -> u32 {
        100
    }

    /// The first field that is wrong, and how.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let grow = |shares: &[BasisPoints]| {
            let growing = shares.windows(2).all(|pair| pair[0] < pair[1]);
            let starts = shares.first().is_some_and(|share| share.get() > 0);
            growing && starts && shares.last() == Some(&BasisPoints::WHOLE) && shares.len() <= WAVES_MAX
        };
        match self {
            Self::Canary { shares } | Self::Regional { shares, .. } if !grow(shares) => Some((
                "strategy.shares",
                "must grow from above 0 to exactly 10000 basis points".to_owned(),
            )),
            Self::Regional { order, .. } if order.is_empty() || order.len() > REGIONS_MAX => {
                Some(("strategy.order", format!("must name 1 to {REGIONS_MAX} places")))
            }
            Self::Regional { order, .. } => {
                let mut sorted: Vec<_> = order.iter().collect();
                // A place comes right before what is inside it.
                sorted.sort();
                let pair = sorted.windows(2).find(|pair| pair[1].is_within(pair[0]))?;
                let problem = format!("names {} and, inside it, {}", pair[0], pair[1]);
                Some(("strategy.order", problem))
            }
            Self::Rolling { batch: 0 } => Some(("strategy.batch", "must be at least one device".to_owned())),
            Self::Growing { first: 0, .. } => Some(("strategy.first", "must be at least one device".to_owned())),
            Self::Growing { percent: ..=100, .. } => Some((
                "strategy.percent",
                "must be above 100, or no batch would grow".to_owned(),
            )),
            Self::Direct {} | Self::Canary { .. } | Self::Rolling { .. } | Self::Growing { .. } => None,
        }
    }
}

/// The most devices in flight at once. In flight: permitted and not yet ended; a quarantined device stays in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Per rack (the parent of the node's path).
    pub per_rack: u32,
    /// In the whole campaign.
    pub total: u32,
}

/// The test between two waves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateRule {
    /// The wave advances at this success rate or above ...
    pub advance: BasisPoints,
    /// ... is rolled back below this one, and holds between the two.
    pub rollback: BasisPoints,
    /// Ended attempts needed before the gate is judged; fewer is "unknown", which holds. A wave with fewer devices
    /// needs all of them.
    pub sample_min: u32,
    /// How long a wave that passed is watched before the next one starts, in seconds.
    pub soak_s: u32,
}

/// Deadlines, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadlines {
    /// From a permitted start to the end of the attempt; after it the device is quarantined.
    pub attempt_s: u32,
    /// From a reset to N good answers, before the next rung of the reset ladder.
    pub back_s: u32,
}

/// How urgent the images of a campaign are in the mesh. It hurries their bytes only: caps, gates and windows stay as
/// they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Whenever nothing else moves.
    Background,
    /// As everything else.
    #[default]
    Normal,
    /// Before everything else: transfers of a lower priority wait while this one moves.
    Emergency,
}

impl Priority {
    pub(super) fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

/// What else must hold before a device starts; all of it is checked by the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// When devices may start; any time if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// When nothing starts, whatever the windows say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blackouts: Vec<Blackout>,
    /// Executors that may act, by name; any that fits the device if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub executors: Vec<String>,
    /// Whether releases that cannot be taken back may be installed: approvers say so, or such a release is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_way_accepted: bool,
}
impl Constraints {
    /// The first field that is wrong, and how.
    pub(super) fn problem(&self, deadlines: &Deadlines) -> Option<(&'static str, String)> {
        let executors: BTreeSet<_> = self.executors.iter().collect();
        if self.windows.len() > WINDOWS_MAX || self.blackouts.len() > WINDOWS_MAX {
            Some(("windows", format!("and blackouts must be at most {WINDOWS_MAX} each")))
        } else if let Some(problem) = self.windows.iter().find_map(Window::problem) {
            Some(("windows", problem))
        } else if self
            .windows
            .iter()
            .any(|window| window.duration_s < deadlines.attempt_s)
        {
            let problem = "are shorter than deadlines.attempt_s, so that nothing could ever start in them";
            Some(("windows", problem.to_owned()))
        } else if self.blackouts.iter().any(|blackout| blackout.from >= blackout.until) {
            Some(("blackouts", "must end after they begin".to_owned()))
        } else if executors.len() > 64 || executors.len() != self.executors.len() {
            Some(("executors", "must be at most 64, each named once".to_owned()))
        } else if !self.executors.iter().all(|name| is_label(name)) {
            Some((
                "executors",
                "must have names of 1 to 128 printable characters".to_owned(),
            ))
        } else {
            None
        }
    }
}
