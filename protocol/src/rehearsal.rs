//! A campaign's rehearsal as data: what an operator asks, and what the coordinator answers after it has played the campaign.
//!
//! Invariants: no floats; the same rehearsal has the same bytes, so that approvers can sign its digest. Nothing here is
//! evidence of anything: it says what the campaign engine would do if devices took the times that stand in it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CampaignId, Component, Sha256, TopologyPath},
    manifest::{CampaignManifest, ManifestError},
    time::WallTime,
    units::BasisPoints,
};

/// The schema name of a rehearsal.
pub const REHEARSAL_SCHEMA: &str = "firmesh-rehearsal/1";

/// A rehearsal's bytes: a few numbers for each rack and wave of the largest plan.
pub const REHEARSAL_BYTES_MAX: u64 = 64 << 20;

/// Device-attempts of one rehearsal at most: devices times scenarios times runs.
pub const REHEARSED_ATTEMPTS_MAX: u64 = 1_000_000;

/// Runs of each scenario at most, and faults asked for at most: more tell nobody more.
pub const RUNS_MAX: u32 = 1_000;

/// Faults of one rehearsal at most.
pub const FAULTS_MAX: usize = 16;

/// What an attempt consists of, as far as its time goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// From the start until the device is told to restart.
    Install,
    /// Until it answers again.
    Reboot,
    /// Until the new version is confirmed.
    Validate,
    /// A whole way back to the previous release, on a permit of its own.
    Restore,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Install, Self::Reboot, Self::Validate, Self::Restore];

    /// The step's name, as it stands in JSON and on command lines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Reboot => "reboot",
            Self::Validate => "validate",
            Self::Restore => "restore",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What goes wrong in a scenario.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The image bricks this share of the devices that start: they never come back, and are quarantined at their
    /// deadline.
    Brick {
        /// The share.
        share: BasisPoints,
    },
    /// The image fails its health checks on this share: the device falls back by itself.
    Unhealthy {
        /// The share.
        share: BasisPoints,
    },
    /// This share stalls until the attempt's deadline, the old version running.
    Stall {
        /// The share.
        share: BasisPoints,
    },
    /// The nodes of one rack fall silent as soon as the first of its devices has started.
    Silent {
        /// The rack; the one with most devices in the first wave if nobody names one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rack: Option<TopologyPath>,
    },
}

impl Fault {
    /// What is rehearsed when nobody asks for faults.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let share = |basis_points| BasisPoints::new(basis_points).expect("at most the whole");
        vec![
            Self::Brick { share: share(200) },
            Self::Unhealthy { share: share(10_000) },
            Self::Stall { share: share(100) },
            Self::Silent { rack: None },
        ]
    }

    /// What goes wrong, for a person.
    #[must_use]
    pub fn title(&self) -> String {
        match self {
            Self::Brick { share } => format!("the image bricks {share}"),
            Self::Unhealthy { share } => format!("the image fails on {share}"),
            Self::Stall { share } => format!("{share} stall until their deadline"),
            Self::Silent { rack: Some(rack) } => format!("rack {rack} falls silent"),
            Self::Silent { rack: None } => "a rack falls silent".to_owned(),
        }
    }
}

/// A text that is no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no fault: say brick=2%, unhealthy=100%, stall=1% (0.01% to 100%), silent, or silent=region/site/rack"
)]
pub struct FaultError {
    text: String,
}

impl FromStr for Fault {
    type Err = FaultError;
    fn from_str(text: &str) -> Result<Self, FaultError> {
        let parse = || match text.split_once('=') {
            None if text == "silent" => Some(Self::Silent { rack: None }),
            Some(("silent", rack)) => Some(Self::Silent {
                rack: Some(rack.parse().ok()?),
            }),
            Some(("brick", share)) => Some(Self::Brick { share: percent(share)? }),
            Some(("unhealthy", share)) => Some(Self::Unhealthy { share: percent(share)? }),
            Some(("stall", share)) => Some(Self::Stall { share: percent(share)? }),
            _ => None,
        };
        parse().ok_or_else(|| FaultError {
            text: text.chars().take(80).collect(),
        })
    }
}

/// `2%`, `0.5%` or `12.25%`: above 0, with at most two digits behind the point.
fn percent(text: &str) -> Option<BasisPoints> {
    let (whole, rest) = text
        .strip_suffix('%')?
        .split_once('.')
        .unwrap_or((text.strip_suffix('%')?, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 3 || rest.len() > 2 || !digits(whole) || !digits(rest) {
        return None;
    }
    let hundredths: u32 = format!("{rest:0<2}").parse().ok()?;
    let share = BasisPoints::new(whole.parse::<u32>().ok()? * 100 + hundredths).ok()?;
    (share.get() > 0).then_some(share)
}

/// `POST /api/v1/simulations`: rehearse a campaign. If the coordinator keeps a plan with the manifest's `plan_sha256`, that
/// plan is rehearsed, otherwise one that is made for it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RehearsalRequest {
    /// The campaign: a draft, or a planned manifest.
    pub manifest: CampaignManifest,
    /// Where the dice begin: the same seed and the same facts give the same bytes.
    #[serde(default)]
    pub seed: u64,
    /// Runs of each scenario, 1 to [`RUNS_MAX`]; if absent 25, fewer for large campaigns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<u32>,
    /// When the campaign would be started; now if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts: Option<WallTime>,
    /// Seconds that a step takes, instead of what was learned or is usual.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub assume: BTreeMap<Step, u32>,
    /// The faults, each a scenario of its own beside the undisturbed one; at most [`FAULTS_MAX`].
    pub faults: Vec<Fault>,
}

/// The rehearsal, as exact text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RehearsalResponse {
    /// The exact bytes (JSON) of a [`Rehearsal`].
    pub rehearsal: String,
    /// Their digest.
    pub rehearsal_sha256: Sha256,
}

/// What the runs of a scenario have between them. Nearest rank: each is a value that occurred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Half of the runs stay at or below it.
    pub p50: u64,
    /// Nineteen of twenty runs stay at or below it.
    pub p95: u64,
    /// All do.
    pub max: u64,
}

impl Spread {
    /// Of some values; `None` of none.
    #[must_use]
    pub fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let rank = |percent: usize| {
            values
                .get((values.len() * percent).div_ceil(100).saturating_sub(1))
                .copied()
        };
        Some(Self {
            p50: rank(50)?,
            p95: rank(95)?,
            max: *values.last()?,
        })
    }
}

/// Where the time of a step comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Finished attempts of this model, component and release.
    Release,
    /// Finished attempts of this model and component with other releases.
    Model,
    /// Nothing was learned: a share of half of the attempt's deadline.
    Usual,
    /// The operator said so.
    Asked,
}

/// The time of one step for one kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTime {
    /// The model.
    pub model: String,
    /// The component.
    pub component: Component,
    /// The release it gets.
    pub release: String,
    /// The step.
    pub step: Step,
    /// Where the time comes from.
    pub source: Source,
    /// How many finished attempts that is; 0 unless it was learned.
    pub samples: u32,
    /// Seconds, over the samples, or over what is drawn.
    pub seconds: Spread,
}

/// Devices in flight at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlight {
    /// In the whole campaign.
    pub total: u32,
    /// By site.
    pub sites: BTreeMap<TopologyPath, u32>,
    /// By rack.
    pub racks: BTreeMap<TopologyPath, u32>,
}

/// Bytes on the wire, as the mesh plans them: not measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wires {
    /// Over the WAN link into each site.
    pub sites: BTreeMap<TopologyPath, u64>,
    /// Into each rack.
    pub racks: BTreeMap<TopologyPath, u64>,
}

/// One wave of the undisturbed runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RehearsedWave {
    /// The wave, counted from 0.
    pub wave: u32,
    /// Devices in it.
    pub devices: u32,
    /// Runs in which its gate passed.
    pub passed: u32,
    /// Seconds from the start of the campaign until it opened, where it did.
    pub opens_s: Option<Spread>,
    /// Seconds from there until its gate passed, waiting for windows included.
    pub takes_s: Option<Spread>,
    /// Seconds from the start of the campaign until the last of its devices had ended.
    pub ended_s: Option<Spread>,
    /// The most devices in flight while it was the newest wave, over all runs.
    pub in_flight: InFlight,
    /// What has to have arrived before it starts and was not needed before.
    pub bytes: Wires,
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Every planned device ended well.
    Completed,
    /// A gate failed, and what could go back has gone back.
    RolledBack,
    /// It ended without reaching its goal.
    Failed,
    /// It rests: a gate holds, or quarantined devices fill the caps. A person has to decide.
    Waits,
}

impl Ending {
    /// The ending, for a person.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::RolledBack => "rolled back",
            Self::Failed => "failed",
            Self::Waits => "waits for a person",
        }
    }
}

/// What one scenario came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What goes wrong; nothing in the first scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// How the runs ended.
    pub endings: BTreeMap<Ending, u32>,
    /// In how many runs the gate of which wave stopped the campaign, by failing or by holding.
    pub stopped_in: BTreeMap<u32, u32>,
    /// Seconds from the start of the campaign until then, in those runs.
    pub stopped_s: Option<Spread>,
    /// Devices that were started: touched by the new image.
    pub exposed: Spread,
    /// Devices that ended quarantined.
    pub harmed: Spread,
    /// Devices that went back, by themselves or with their wave.
    pub went_back: Spread,
    /// Devices that run the new version in the end.
    pub updated: Spread,
    /// Seconds from the start of the campaign until it ended, or rested.
    pub ends_s: Spread,
    /// What the engine said of the first run's end.
    pub reason: String,
}

impl Scenario {
    /// What goes wrong, for a person.
    #[must_use]
    pub fn title(&self) -> String {
        self.fault
            .as_ref()
            .map_or_else(|| "undisturbed".to_owned(), Fault::title)
    }
}

/// What was taken for granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assumptions {
    /// How long a permit is good for, in seconds.
    pub permit_ttl_s: u64,
    /// How often a node asks for permits, in seconds.
    pub sync_s: u64,
    /// Bytes on the wire for 10,000 bytes of images.
    pub wire_per_10000: u32,
    /// What each step takes.
    pub steps: Vec<StepTime>,
    /// What else, for a person.
    pub notes: Vec<String>,
}

/// A rehearsed campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// [`REHEARSAL_SCHEMA`].
    pub schema: String,
    /// Version and commit of the coordinator that played it.
    pub version: String,
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes without a rehearsal, with the plan's digest.
    pub rules_sha256: Sha256,
    /// SHA-256 of the plan's bytes.
    pub plan_sha256: Sha256,
    /// Where the dice began.
    pub seed: u64,
    /// Runs of each scenario.
    pub runs: u32,
    /// When the campaign was started in them.
    pub starts: WallTime,
    /// Devices planned.
    pub devices: u32,
    /// Devices held back by the plan.
    pub held: u32,
    /// Nodes that look after them.
    pub nodes: u32,
    /// The most devices of one rack that may be in flight.
    pub cap_per_rack: u32,
    /// The most devices in all.
    pub cap_total: u32,
    /// What was taken for granted.
    pub assumptions: Assumptions,
    /// The waves, undisturbed.
    pub waves: Vec<RehearsedWave>,
    /// The scenarios, the undisturbed one first.
    pub scenarios: Vec<Scenario>,
    /// Devices in flight in the first undisturbed run: second since the start, devices from then on.
    pub timeline: Vec<(u64, u32)>,
}

impl Rehearsal {
    /// Reads a rehearsal and checks its schema.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let what = "rehearsal";
        let read: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { what, source })?;
        match read.schema == REHEARSAL_SCHEMA {
            true => Ok(read),
            false => Err(ManifestError::Schema {
                what,
                found: read.schema.chars().take(80).collect(),
                expected: REHEARSAL_SCHEMA,
            }),
        }
    }

    /// Its bytes, the same for the same rehearsal.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a rehearsal has only names, numbers and lists")
    }

    /// SHA-256 of its bytes.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        Sha256::of(&self.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_written_on_command_lines() {
        let share = |basis_points| BasisPoints::new(basis_points).unwrap();
        for (text, fault) in [
            ("brick=2%", Fault::Brick { share: share(200) }),
            ("unhealthy=100%", Fault::Unhealthy { share: share(10_000) }),
            ("stall=0.5%", Fault::Stall { share: share(50) }),
            ("stall=12.25%", Fault::Stall { share: share(1_225) }),
            ("silent", Fault::Silent { rack: None }),
            (
                "silent=eu/s1/r1",
                Fault::Silent {
                    rack: Some("eu/s1/r1".parse().unwrap()),
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(fault), "{text}");
        }
        for bad in [
            "brick",
            "brick=2",
            "brick=0%",
            "brick=101%",
            "brick=1.234%",
            "brick=-1%",
            "silent=a b",
            "melt=1%",
            "brick=%",
            "brick=.5%",
        ] {
            assert!(bad.parse::<Fault>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_spread_names_values_that_occurred() {
        assert_eq!(Spread::of(Vec::new()), None);
        let one_to = |last: u64| Spread::of((1..=last).rev().collect());
        assert_eq!(one_to(1), Some(Spread { p50: 1, p95: 1, max: 1 }));
        assert_eq!(
            one_to(25),
            Some(Spread {
                p50: 13,
                p95: 24,
                max: 25
            })
        );
        assert_eq!(
            one_to(100),
            Some(Spread {
                p50: 50,
                p95: 95,
                max: 100
            })
        );
    }
}
