//! SIGKILL at every boundary of every executor's attempts: before and after each record, before, in the middle of and after
//! each act, once and several times in a row, on good devices and on those of the catalogue.
//!
//! What must hold however often a process dies: no image is flashed onto a device that has it, nothing is reset while it is
//! written, no attempt is lost, its last word is true, and every device runs something.

mod course;
mod models;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use firmesh_executors_core::Outcome;
use firmesh_protocol::report::AttemptState;
use serde::Serialize;

pub(crate) use self::{
    course::{Course, run},
    models::{NEW, OLD, goal, redfish},
};
use self::{
    course::{Model, Truth},
    models::{SlotWriter, slotted, tool},
};
use crate::{
    device::faulty::{CATALOGUE, Fault, Layer},
    rehearsal::dice::Dice,
};

/// How long a device that was updated is looked at afterwards, in milliseconds: it must keep what it is said to run.
const KEEPS_FOR_MS: u64 = 600_000;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Executor {
    /// `redfish`, updating a BIOS.
    RedfishBios,
    /// `redfish`, updating the BMC itself.
    RedfishBmc,
    /// `ab_slot`.
    AbSlot,
    /// `swupdate`.
    Swupdate,
    /// `rauc`.
    Rauc,
    /// `command`, with any described tool.
    Command,
}

impl Executor {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RedfishBios,
        Self::RedfishBmc,
        Self::AbSlot,
        Self::Swupdate,
        Self::Rauc,
        Self::Command,
    ];

    fn model(self) -> (Box<dyn Model>, &'static str) {
        match self {
            Self::RedfishBios => (Box::new(redfish("bios", None)), "bios"),
            Self::RedfishBmc => (Box::new(redfish("bmc", None)), "bmc"),
            Self::AbSlot => (Box::new(slotted(SlotWriter::Ours)), "host"),
            Self::Swupdate => (Box::new(slotted(SlotWriter::Swupdate)), "host"),
            Self::Rauc => (Box::new(slotted(SlotWriter::Rauc)), "host"),
            Self::Command => (Box::new(tool()), "nic"),
        }
    }
}

/// What came of killing.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Attempts run.
    pub attempts: u64,
    /// Processes killed.
    pub kills: u64,
    /// Kills by executor; those on devices of the catalogue by fault.
    pub kills_of: BTreeMap<String, u64>,
    /// How attempts ended.
    pub ended: BTreeMap<String, u64>,
    /// Boundaries of each executor's plain attempt, every one of which was a place to die.
    pub boundaries_of: BTreeMap<String, u64>,
    /// What must not happen and did: which attempt, and what.
    pub broken: Vec<Broken>,
}

/// An attempt that broke a promise.
#[derive(Debug, Clone, Serialize)]
pub struct Broken {
    /// The executor or the fault.
    pub of: String,
    /// Where the process died, and for how many milliseconds nothing ran.
    pub kills: Vec<(u64, u64)>,
    /// What happened.
    pub what: String,
}

/// Kills at every boundary of every executor once, then `rounds` times more with several deaths in a row drawn from `seed`;
/// and once at every boundary on every device of the catalogue.
#[must_use]
pub fn kill(seed: u64, rounds: u64) -> Summary {
    let mut summary = Summary::default();
    let mut dice = Dice::new(seed);
    for executor in Executor::ALL {
        let name = format!("{executor:?}");
        let plain = attempt(&mut summary, &name, executor.model(), &[], None);
        summary.boundaries_of.insert(name.clone(), plain.boundaries);
        for boundary in 0..plain.boundaries {
            for away_ms in [500, 40_000, 400_000] {
                attempt(&mut summary, &name, executor.model(), &[(boundary, away_ms)], None);
            }
        }
        for _ in 0..rounds {
            let deaths: BTreeSet<u64> = (0..dice.between(2, 6))
                .map(|_| dice.below(2 * plain.boundaries))
                .collect();
            let kills: Vec<_> = deaths.into_iter().map(|at| (at, dice.below(300_000))).collect();
            attempt(&mut summary, &name, executor.model(), &kills, None);
        }
    }
    for entry in CATALOGUE.iter().filter(|entry| entry.layer == Layer::Device) {
        let model = || -> (Box<dyn Model>, &'static str) {
            (Box::new(redfish(entry.component, Some(entry.fault))), entry.component)
        };
        let name = entry.fault.name();
        let plain = attempt(&mut summary, &name, model(), &[], Some(entry.fault));
        for boundary in 0..plain.boundaries {
            let kills = [(boundary, dice.below(100_000))];
            attempt(&mut summary, &name, model(), &kills, Some(entry.fault));
        }
    }
    summary
}

fn attempt(
    summary: &mut Summary,
    name: &str,
    (mut model, component): (Box<dyn Model>, &'static str),
    kills: &[(u64, u64)],
    fault: Option<Fault>,
) -> Course {
    let mut dies = |boundary| {
        kills
            .iter()
            .find(|(at, _)| *at == boundary)
            .map(|(_, away_ms)| *away_ms)
    };
    let course = run(&mut *model, &goal(component), &mut dies);
    let now_ms = u64::try_from(course.took.as_millis()).unwrap_or(u64::MAX);
    let truth = model.truth(now_ms);
    summary.attempts += 1;
    summary.kills += course.kills;
    *summary.kills_of.entry(name.to_owned()).or_default() += course.kills;
    let state = course
        .outcome
        .as_ref()
        .map_or_else(|| "lost".to_owned(), |outcome| outcome.state.to_string());
    *summary.ended.entry(state).or_default() += 1;
    let later = model.truth(now_ms + KEEPS_FOR_MS);
    if let Some(what) = problem(&course, &truth, &later, fault) {
        summary.broken.push(Broken {
            of: name.to_owned(),
            kills: kills.to_vec(),
            what,
        });
    }
    course
}

/// What is wrong with how an attempt went, if anything.
fn problem(course: &Course, truth: &Truth, later: &Truth, fault: Option<Fault>) -> Option<String> {
    // What shows neither tasks nor images can be known only by flashing it again.
    let is_mute = fault == Some(Fault::NoTaskAtAll);
    if let Some(breach) = course.breach.clone().filter(|_| !is_mute) {
        return Some(breach);
    }
    let Some(outcome) = &course.outcome else {
        return Some("the attempt was lost".to_owned());
    };
    if truth.version.is_none() && fault != Some(Fault::NeverBack) {
        return Some(format!("the device runs nothing; the attempt ended as {outcome:?}"));
    }
    let is_right = match (fault, outcome.state) {
        // A good device is updated, however often its node dies, unless the same act was cut short once too often.
        (None, AttemptState::Success | AttemptState::Skipped) => true,
        (None, AttemptState::Failed) => outcome.reason.contains("staging was cut short"),
        (None, AttemptState::RolledBack) => outcome.reason.contains("could not be confirmed"),
        (None, _) => false,
        // A faulty one may mend while its node is down: that it runs the image is asked below.
        (Some(_), state) => state == AttemptState::Success || !outcome.reason.is_empty(),
    };
    let is_true = is_true(outcome, truth, fault);
    if is_true && outcome.state.is_success() && later.version != truth.version {
        return Some(format!(
            "the attempt ended as {outcome:?}, and minutes later the device is {later:?}"
        ));
    }
    (!is_true || !is_right).then(|| format!("the attempt ended as {outcome:?}, and the device is {truth:?}"))
}

/// Whether what is said of the device is so.
fn is_true(outcome: &Outcome, truth: &Truth, fault: Option<Fault>) -> bool {
    let runs = |version: &str| truth.version.as_deref() == Some(version);
    // Nobody can see what waits for its input power to go away.
    let hides = fault == Some(Fault::NeedsAnAcCycleAndHasNone);
    match outcome.state {
        AttemptState::Success | AttemptState::Skipped => runs(NEW),
        AttemptState::Failed | AttemptState::TimedOut | AttemptState::RolledBack => {
            runs(OLD) && (truth.pending.is_none() || hides)
        }
        _ => true,
    }
}
