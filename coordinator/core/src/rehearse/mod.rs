//! The rehearsal of a campaign: the campaign engine as it is in production, played against the nodes of the inventory in
//! virtual time, before anybody signs.
//!
//! Every scenario is run several times from the seed; run for run the same devices draw the same times in each of them, so
//! that scenarios differ by their fault alone. Invariants: who starts, which gate passes and what goes back is the engine's
//! decision and nobody else's; what is in flight is counted here from permits and ends, not asked of the engine's caps; the
//! same facts, question and seed give the same bytes.

mod book;
mod play;
mod stage;
mod summary;
mod times;
mod wires;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{
    ids::{ArtifactId, Component, DeviceId, TopologyPath},
    manifest::{Artifact, CampaignManifest, Plan},
    rehearsal::{FAULTS_MAX, Fault, REHEARSED_ATTEMPTS_MAX, RUNS_MAX, Rehearsal, Step},
    time::WallTime,
};

pub use times::{TimedAttempt, learn};

use crate::InputError;

/// What is known of the fleet and the campaign.
#[derive(Debug, Clone)]
pub struct RehearsalFacts {
    /// The campaign; its `plan_sha256` is that of the plan.
    pub manifest: CampaignManifest,
    /// The plan.
    pub plan: Plan,
    /// The images of the releases that the manifest pins, by target.
    pub images: BTreeMap<String, Artifact>,
    /// What each device is.
    pub kinds: BTreeMap<DeviceId, DeviceKind>,
    /// Finished attempts.
    pub learned: Vec<LearnedAttempt>,
    /// Nodes, by where they stand, that have proven that they hold an image.
    pub held: BTreeSet<(TopologyPath, ArtifactId)>,
    /// How long a permit is good for.
    pub permit_ttl: Duration,
    /// Version and commit of whoever rehearses.
    pub version: String,
    /// What else to say about the fleet as it is now.
    pub notes: Vec<String>,
}

/// What a device is, as far as its times go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceKind {
    /// Its model.
    pub model: String,
    /// Its component.
    pub component: Component,
}

/// A finished attempt that shows how long things take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedAttempt {
    /// What the device was.
    pub kind: DeviceKind,
    /// The image it got.
    pub image: ArtifactId,
    /// Seconds of its steps.
    pub seconds: BTreeMap<Step, u32>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct RehearsalQuestion {
    /// Where the dice begin.
    pub seed: u64,
    /// Runs of each scenario.
    pub runs: u32,
    /// When the campaign is started.
    pub starts: WallTime,
    /// Seconds of steps, instead of what was learned.
    pub assume: BTreeMap<Step, u32>,
    /// What goes wrong, each in a scenario of its own beside the undisturbed one.
    pub faults: Vec<Fault>,
}

/// Why a campaign cannot be rehearsed.
#[derive(Debug, thiserror::Error)]
pub enum RehearseError {
    /// Runs out of bounds.
    #[error("{0} runs are asked for, 1 to {RUNS_MAX} are possible")]
    Runs(u32),
    /// Too many faults.
    #[error("{0} faults are asked for, at most {FAULTS_MAX} are possible at once")]
    Faults(usize),
    /// Too much to play.
    #[error(
        "{devices} devices in {scenarios} scenarios of {runs} runs are more than {REHEARSED_ATTEMPTS_MAX} attempts: ask for \
         fewer runs or faults"
    )]
    TooMuch {
        /// Devices planned.
        devices: usize,
        /// Scenarios.
        scenarios: usize,
        /// Runs of each.
        runs: u32,
    },
    /// Nobody to update.
    #[error("the plan has no device: there is nothing to rehearse")]
    Nobody,
    /// A rack that is not in the plan.
    #[error("no planned device stands in rack {0}")]
    UnknownRack(TopologyPath),
    /// A device that is not in the inventory.
    #[error("the plan has the device {0}, which is not in the inventory any more: plan anew")]
    UnknownDevice(DeviceId),
    /// An image that is not here.
    #[error("the plan has the release {0}, which the manifest does not pin or whose image is not here")]
    NoImage(String),
    /// The campaign is over before it begins.
    #[error("the campaign expires at {expires}, the rehearsal starts at {starts}")]
    Expired {
        /// When it expires.
        expires: WallTime,
        /// When it would be started.
        starts: WallTime,
    },
    /// The engine does not take the campaign.
    #[error("the campaign engine refuses the campaign")]
    Refused(#[from] InputError),
    /// The caller's patience is over.
    #[error(
        "the rehearsal was given up after {done} of {runs} runs: ask for fewer runs or faults, or split the campaign"
    )]
    GivenUp {
        /// Runs played, of all scenarios.
        done: usize,
        /// Runs asked for.
        runs: usize,
    },
    /// A run that comes to no end.
    #[error("a run of the scenario {scenario:?} did not come to an end after {events} events")]
    Endless {
        /// What went wrong in it.
        scenario: String,
        /// How many there were.
        events: usize,
    },
}

/// Runs of each scenario if nobody says otherwise: enough for a 95th percentile.
const RUNS_USUAL: u64 = 25;

/// What the engine does for a report grows with the campaign, so a run's work grows with its square: that of this many
/// devices leaves room for all runs.
const DEVICES_USUAL: u64 = 1_000;

/// Runs of each scenario if nobody says otherwise: 25, and for large campaigns fewer, but five.
#[must_use]
pub fn usual_runs(plan: &Plan) -> u32 {
    let devices = plan.devices().count() as u64;
    let runs = RUNS_USUAL * DEVICES_USUAL.pow(2) / devices.pow(2).max(DEVICES_USUAL.pow(2));
    u32::try_from(runs.max(5)).unwrap_or(5)
}

/// Plays the campaign. `goes_on` is asked now and then whether there is time left.
pub fn rehearse(
    facts: &RehearsalFacts,
    question: &RehearsalQuestion,
    goes_on: &dyn Fn() -> bool,
) -> Result<Rehearsal, RehearseError> {
    check(facts, question)?;
    let stage = stage::Stage::new(facts, question)?;
    let mut scenarios = vec![None];
    for fault in &question.faults {
        scenarios.push(Some(stage.settle(fault)?));
    }
    let runs_in_all = scenarios.len() * question.runs as usize;
    let mut played = Vec::new();
    for fault in scenarios {
        let mut runs = Vec::new();
        for number in 0..question.runs {
            let done = played.iter().map(|(_, runs): &(_, Vec<_>)| runs.len()).sum::<usize>() + runs.len();
            let given_up = || RehearseError::GivenUp {
                done,
                runs: runs_in_all,
            };
            runs.push(play::play(&stage, fault.as_ref(), number, goes_on)?.ok_or_else(given_up)?);
        }
        played.push((fault, runs));
    }
    Ok(summary::of(facts, question, &stage, &played))
}

fn check(facts: &RehearsalFacts, question: &RehearsalQuestion) -> Result<(), RehearseError> {
    let (devices, scenarios) = (facts.plan.devices().count(), question.faults.len() + 1);
    if question.faults.len() > FAULTS_MAX {
        return Err(RehearseError::Faults(question.faults.len()));
    }
    if !(1..=RUNS_MAX).contains(&question.runs) {
        return Err(RehearseError::Runs(question.runs));
    }
    if devices == 0 {
        return Err(RehearseError::Nobody);
    }
    if devices as u64 * scenarios as u64 * u64::from(question.runs) > REHEARSED_ATTEMPTS_MAX {
        return Err(RehearseError::TooMuch {
            devices,
            scenarios,
            runs: question.runs,
        });
    }
    if facts.manifest.expires <= question.starts {
        return Err(RehearseError::Expired {
            expires: facts.manifest.expires,
            starts: question.starts,
        });
    }
    Ok(())
}
