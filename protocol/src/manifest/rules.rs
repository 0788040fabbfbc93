//! The rules of a campaign: for whom, how it widens, how many at once, what stands between two waves, and when.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    domains::{self, Dimension, DomainCap, NeverTogether},
    is_label,
};
use crate::{
    approval::ApprovalRule,
    gate::{ABORT_RULES_MAX, AbortRule, Fate, Sequential},
    health::{DeviceHealth, HealthRule},
    ids::{Component, DeviceId, TopologyPath},
    limits::WAVES_MAX,
    report::{AttemptState, FailureClass},
    units::BasisPoints,
    window::{Blackout, BlackoutCalendar, Subject, Timetable, WINDOWS_MAX, Window},
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
        /// Batches that may be under way at once, at most [`BATCHES_AT_ONCE_MAX`]: a batch opens when the one so many before
        /// it has passed. One after the other if left out, as in manifests from before there was such a field.
        #[serde(default = "Strategy::one", skip_serializing_if = "Strategy::is_one")]
        max_concurrent_batches: u32,
    },
    /// Batches that grow with every one that succeeds, cut across racks.
    Growing {
        /// Devices of the first batch.
        first: u32,
        /// How large a batch is, measured by the one before it, in percent: 200 doubles. Above 100.
        percent: u32,
    },
    /// One of two pools while the other one serves; when it has proven itself, traffic is switched to it, and the other one
    /// is drained and comes next. Outside systems do both: without them there is no such campaign.
    BlueGreen {
        /// What sorts devices into pools: a label, or a level of their place.
        by: Dimension,
        /// The pool that serves nothing and is updated first, and the one that serves. Devices of others are held.
        order: Vec<TopologyPath>,
        /// The webhook that is asked to switch traffic to a pool, by the name that the coordinator has for it.
        #[serde(default)]
        switch: String,
        /// The webhook that is asked to take whatever is left from a pool before it is updated, likewise.
        #[serde(default)]
        drain: String,
    },
}

/// What an outside system is asked to do with a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolAct {
    /// Nothing is served by it any more.
    Drain,
    /// Everything is served by it.
    Switch,
}

impl PoolAct {
    /// Its name, as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Switch => "switch",
        }
    }
}

/// Places that a regional campaign goes through at most.
const REGIONS_MAX: usize = 1_000;

/// Batches under way at once at most: a permit shows the gates of as many batches, and every node checks all of them.
pub const BATCHES_AT_ONCE_MAX: u32 = 16;

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

    fn one() -> u32 {
        1
    }

    fn is_one(count: &u32) -> bool {
        *count == 1
    }

    /// Batches of one size, one after the other.
    #[must_use]
    pub fn rolling(batch: u32) -> Self {
        Self::Rolling {
            batch,
            max_concurrent_batches: 1,
        }
    }

    /// How many waves may be open at once that have not passed their gates. A wave opens when the one so many before it has
    /// passed, so by one each opens when the one right before it has.
    #[must_use]
    pub fn waves_at_once(&self) -> u32 {
        match self {
            Self::Rolling {
                max_concurrent_batches, ..
            } => (*max_concurrent_batches).max(1),
            _ => 1,
        }
    }

    /// What has to be done with which pool before a wave opens, in this order, and by which webhook.
    #[must_use]
    pub fn acts_before(&self, wave: u32) -> Vec<(PoolAct, &TopologyPath, &str)> {
        let Self::BlueGreen {
            order, switch, drain, ..
        } = self
        else {
            return Vec::new();
        };
        let pool = |at: u32| order.get(at as usize);
        let before = wave.checked_sub(1).and_then(pool).filter(|_| pool(wave).is_some());
        let switched = before.map(|pool| (PoolAct::Switch, pool, switch.as_str()));
        let drained = pool(wave).map(|pool| (PoolAct::Drain, pool, drain.as_str()));
        switched.into_iter().chain(drained).collect()
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
            Self::BlueGreen { order, .. } if order.len() != 2 || order[0] == order[1] => Some((
                "strategy.order",
                "must name two pools: the one that is updated first, and the one that serves meanwhile".to_owned(),
            )),
            Self::BlueGreen { switch, drain, .. } => [("strategy.switch", switch), ("strategy.drain", drain)]
                .into_iter()
                .find(|(_, hook)| !is_webhook(hook))
                .map(|(field, _)| {
                    let problem = "must name a webhook of the coordinator that does it, in up to 64 lower case letters, digits \
                                   and dashes: without one the strategy is refused rather than pretended";
                    (field, problem.to_owned())
                }),
            Self::Rolling { batch: 0, .. } => Some(("strategy.batch", "must be at least one device".to_owned())),
            Self::Rolling {
                max_concurrent_batches: at_once,
                ..
            } if !(1..=BATCHES_AT_ONCE_MAX).contains(at_once) => Some((
                "strategy.max_concurrent_batches",
                format!("must be 1 to {BATCHES_AT_ONCE_MAX}"),
            )),
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Per rack (the parent of the node's path).
    pub per_rack: u32,
    /// In the whole campaign.
    pub total: u32,
    /// Per fault domain, of any number of overlapping kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<DomainCap>,
    /// Domains that stand in for each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub never_together: Vec<NeverTogether>,
}

impl Caps {
    /// Caps of racks and of the whole.
    #[must_use]
    pub fn new(per_rack: u32, total: u32) -> Self {
        Self {
            per_rack,
            total,
            domains: Vec::new(),
            never_together: Vec::new(),
        }
    }

    /// What is wrong with them.
    pub(super) fn problem(&self) -> Option<String> {
        if self.per_rack == 0 || self.total == 0 {
            return Some("must be at least 1, or nothing could ever start".to_owned());
        }
        domains::problem(&self.domains, &self.never_together)
    }
}

/// The order in which components of one unit are updated, for one vendor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequence {
    /// The vendor, exactly as its devices report it.
    pub vendor: String,
    /// Components, first to last. Those that are not named come after them, in the usual order.
    pub order: Vec<Component>,
}

/// The test between two waves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A test that may fail the wave earlier than the share does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequential: Option<Sequential>,
    /// Kinds of failures of which a few fail the wave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abort: Vec<AbortRule>,
    /// How long each device is watched after its update, and what it may not do meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthRule>,
    /// Whether a person has to say yes before the next wave opens. Nodes check that one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
    /// Outside systems that have to say pass before the next wave opens, by the names that the coordinator has for them. No
    /// node looks at it: it can only hold a campaign up, or end it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<String>,
}

impl GateRule {
    /// A gate that looks at the success rate alone, from the first ended attempt on.
    #[must_use]
    pub fn shares(advance: BasisPoints, rollback: BasisPoints) -> Self {
        Self {
            advance,
            rollback,
            sample_min: 1,
            soak_s: 0,
            sequential: None,
            abort: Vec::new(),
            health: None,
            approval: None,
            webhooks: Vec::new(),
        }
    }

    /// What the gate makes of an attempt that stands so. An update whose device's health nobody knows is not good and not
    /// bad: it holds.
    #[must_use]
    pub fn fate(&self, state: AttemptState, failure: Option<FailureClass>, health: Option<DeviceHealth>) -> Fate {
        match (state, health) {
            (AttemptState::Success, Some(DeviceHealth::Breached)) => Fate::Bad(Some(FailureClass::Health)),
            (AttemptState::Success, Some(DeviceHealth::Unknown) | None) if self.health.is_some() => Fate::Pending,
            (AttemptState::Success | AttemptState::Skipped, _) => Fate::Good,
            (state, _) if state.is_terminal() => Fate::Bad(failure),
            _ => Fate::Pending,
        }
    }

    /// What is wrong with it, if anything.
    pub(super) fn problem(&self, deadlines: &Deadlines) -> Option<(&'static str, String)> {
        let health = self.health.as_ref().and_then(|health| health.problem(deadlines));
        let sequential = self.sequential.as_ref().and_then(Sequential::problem);
        let abort = self.abort.iter().find_map(AbortRule::problem);
        if self.rollback > self.advance {
            Some((
                "gate",
                "has a rollback threshold above its advance threshold".to_owned(),
            ))
        } else if let Some(problem) = sequential {
            Some(("gate.sequential", problem.to_owned()))
        } else if let Some(problem) = health {
            Some(("gate.health", problem))
        } else if let Some(problem) = self.approval.as_ref().and_then(ApprovalRule::problem) {
            Some(("gate.approval", problem))
        } else if self.webhooks.len() > WEBHOOKS_MAX || !self.webhooks.iter().all(|name| is_webhook(name)) {
            let problem = "must be at most 8 names of up to 64 lower case letters, digits and dashes";
            Some(("gate.webhooks", problem.to_owned()))
        } else if self.webhooks.iter().collect::<BTreeSet<_>>().len() != self.webhooks.len() {
            Some(("gate.webhooks", "must name each once".to_owned()))
        } else if self.abort.len() > ABORT_RULES_MAX {
            Some(("gate.abort", format!("must have at most {ABORT_RULES_MAX} rules")))
        } else {
            abort.map(|problem| ("gate.abort", problem.to_owned()))
        }
    }
}

/// Webhooks of one gate: each is asked by itself.
const WEBHOOKS_MAX: usize = 8;

fn is_webhook(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
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
    pub(crate) fn is_normal(&self) -> bool {
        *self == Self::Normal
    }
}

/// What else must hold before a device starts; all of it is checked by the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// When devices may start; any time if empty. A device that none of them is for never starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// When nothing starts, whatever the windows say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blackouts: Vec<Blackout>,
    /// Blackouts that recur.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blackout_calendars: Vec<BlackoutCalendar>,
    /// Executors that may act, by name; any that fits the device if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub executors: Vec<String>,
    /// Whether releases that cannot be taken back may be installed: approvers say so, or such a release is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_way_accepted: bool,
    /// The order of components in a unit, where a vendor's differs from the usual one: root of trust, BMC, BIOS, CPLD, PSU,
    /// SSD, GPU, DPU, whatever else there is, and NIC last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sequence: Vec<Sequence>,
}

impl Constraints {
    /// When a device may start.
    #[must_use]
    pub fn timetable(&self, device: Subject<'_>) -> Timetable {
        Timetable::new(&self.windows, &self.blackouts, &self.blackout_calendars, device)
    }

    /// Whether some of the windows or calendars are for some devices only.
    #[must_use]
    pub fn has_selective_times(&self) -> bool {
        let windows = self.windows.iter().map(|window| &window.only);
        windows
            .chain(self.blackout_calendars.iter().map(|calendar| &calendar.only))
            .any(Option::is_some)
    }

    /// The first field that is wrong, and how.
    pub(super) fn problem(&self, deadlines: &Deadlines) -> Option<(&'static str, String)> {
        let executors: BTreeSet<_> = self.executors.iter().collect();
        let vendors: BTreeSet<_> = self.sequence.iter().map(|sequence| &sequence.vendor).collect();
        let is_sound = |sequence: &Sequence| {
            let components: BTreeSet<_> = sequence.order.iter().collect();
            is_label(&sequence.vendor) && components.len() == sequence.order.len() && components.len() <= 64
        };
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
        } else if self.blackout_calendars.len() > WINDOWS_MAX {
            Some(("blackout_calendars", format!("must be at most {WINDOWS_MAX}")))
        } else if let Some(problem) = self.blackout_calendars.iter().find_map(BlackoutCalendar::problem) {
            Some(("blackout_calendars", problem))
        } else if vendors.len() != self.sequence.len() || vendors.len() > 64 || !self.sequence.iter().all(is_sound) {
            let problem = "must name at most 64 vendors once, and of each at most 64 components once";
            Some(("sequence", problem.to_owned()))
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
