//! The rehearsal for a terminal of 100 columns.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::TopologyPath,
    rehearsal::{Rehearsal, RehearsedWave, Scenario, Source, Spread, StepTime},
};

use super::bytes;
use crate::output::Output;

/// Columns of the longest line.
const WIDTH: usize = 100;

/// Places listed before the rest is summed up.
const PLACES_SHOWN: usize = 8;

pub(super) fn lines(rehearsal: &Rehearsal) -> Vec<String> {
    let mut lines = vec![
        format!("rehearsal of {}, sha256 {}", rehearsal.campaign, rehearsal.sha256()),
        format!("plan sha256 {}", rehearsal.plan_sha256),
        format!(
            "{} devices, {} held back, {} nodes; {} runs of each scenario from seed {}, started {}",
            rehearsal.devices, rehearsal.held, rehearsal.nodes, rehearsal.runs, rehearsal.seed, rehearsal.starts
        ),
        String::new(),
        "Waves, undisturbed (half of the runs / 19 of 20)".to_owned(),
    ];
    let waves: Vec<_> = rehearsal.waves.iter().map(|wave| wave_row(rehearsal, wave)).collect();
    lines.extend(Output::table(
        [
            "wave",
            "devices",
            "opens after",
            "takes",
            "in flight",
            "in a rack",
            "WAN",
            "racks",
        ],
        &waves,
    ));
    let (sites, racks) = bytes_in_all(rehearsal);
    lines.push(format!(
        "caps: {} in all, {} per rack",
        rehearsal.cap_total, rehearsal.cap_per_rack
    ));
    lines.push(format!("WAN, by site: {}", places(&sites)));
    lines.push(format!("into racks: {}", places(&racks)));
    lines.push(String::new());
    lines.push("What would happen (devices: half of the runs / the worst run)".to_owned());
    let scenarios: Vec<_> = rehearsal
        .scenarios
        .iter()
        .map(|scenario| scenario_row(rehearsal, scenario))
        .collect();
    let table = Output::table(
        ["scenario", "started", "harmed", "went back", "stopped in", "after"],
        &scenarios,
    );
    let ends = |scenario| {
        format!(
            "    {}, after {}",
            endings(rehearsal, scenario),
            short(scenario.ends_s.p50)
        )
    };
    let under = std::iter::once(None).chain(rehearsal.scenarios.iter().map(|scenario| Some(ends(scenario))));
    lines.extend(
        table
            .into_iter()
            .zip(under)
            .flat_map(|(row, under)| std::iter::once(row).chain(under)),
    );
    lines.push(String::new());
    lines.push("Taken for granted".to_owned());
    lines.extend(rehearsal.assumptions.steps.iter().map(step_line));
    lines.extend(rehearsal.assumptions.notes.iter().map(|note| format!("- {note}")));
    lines.iter().flat_map(|line| wrap(line)).collect()
}

fn wave_row(rehearsal: &Rehearsal, wave: &RehearsedWave) -> [String; 8] {
    let rack = wave.in_flight.racks.values().max().copied().unwrap_or_default();
    let passed = match wave.passed == rehearsal.runs {
        true => times(wave.takes_s),
        false => format!("{} ({} of {} runs)", times(wave.takes_s), wave.passed, rehearsal.runs),
    };
    [
        (wave.wave + 1).to_string(),
        wave.devices.to_string(),
        times(wave.opens_s),
        passed,
        wave.in_flight.total.to_string(),
        rack.to_string(),
        bytes(wave.bytes.sites.values().sum()),
        bytes(wave.bytes.racks.values().sum()),
    ]
}

fn scenario_row(rehearsal: &Rehearsal, scenario: &Scenario) -> [String; 6] {
    let devices = |spread: Spread| match spread.p50 == spread.max {
        true => spread.max.to_string(),
        false => format!("{}/{}", spread.p50, spread.max),
    };
    [
        scenario.title(),
        devices(scenario.exposed),
        devices(scenario.harmed),
        devices(scenario.went_back),
        stopped(rehearsal, scenario),
        scenario
            .stopped_s
            .map_or_else(|| "-".to_owned(), |spread| short(spread.p50)),
    ]
}

/// In which waves, and in how many of the runs.
pub(super) fn stopped(rehearsal: &Rehearsal, scenario: &Scenario) -> String {
    let of = |(wave, runs): (&u32, &u32)| match *runs == rehearsal.runs {
        true => format!("wave {wave}"),
        false => format!("wave {wave} ({runs})"),
    };
    let waves: Vec<_> = scenario.stopped_in.iter().map(of).collect();
    match waves.is_empty() {
        true => "-".to_owned(),
        false => waves.join(", "),
    }
}

/// How the runs ended.
pub(super) fn endings(rehearsal: &Rehearsal, scenario: &Scenario) -> String {
    let of = |(ending, runs): (&firmesh_protocol::rehearsal::Ending, &u32)| match *runs == rehearsal.runs {
        true => ending.as_str().to_owned(),
        false => format!("{} ({runs})", ending.as_str()),
    };
    scenario.endings.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// A span in as few letters as it takes.
fn short(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

fn times(spread: Option<Spread>) -> String {
    match spread {
        None => "never".to_owned(),
        Some(Spread { p50, p95, .. }) if p50 == p95 => short(p50),
        Some(Spread { p50, p95, .. }) => format!("{}/{}", short(p50), short(p95)),
    }
}

/// What was assumed of a step.
pub(super) fn step_line(step: &StepTime) -> String {
    let source = match step.source {
        Source::Release => format!("learned from {} attempts of this release", step.samples),
        Source::Model => format!("learned from {} attempts with other releases", step.samples),
        Source::Usual => "nothing learned, a share of the deadline".to_owned(),
        Source::Asked => "as asked".to_owned(),
    };
    let StepTime {
        model,
        component,
        release,
        step,
        seconds,
        ..
    } = step;
    let takes = times(Some(*seconds));
    format!("- {model} {component}, {release}: {step} {takes}, {source}")
}

/// Bytes of all waves, by site and by rack.
pub(super) fn bytes_in_all(rehearsal: &Rehearsal) -> (BTreeMap<&TopologyPath, u64>, BTreeMap<&TopologyPath, u64>) {
    let (mut sites, mut racks) = (BTreeMap::new(), BTreeMap::new());
    for wave in &rehearsal.waves {
        wave.bytes
            .sites
            .iter()
            .for_each(|(site, count)| *sites.entry(site).or_default() += count);
        wave.bytes
            .racks
            .iter()
            .for_each(|(rack, count)| *racks.entry(rack).or_default() += count);
    }
    (sites, racks)
}

fn places(counts: &BTreeMap<&TopologyPath, u64>) -> String {
    if counts.is_empty() {
        return "nothing, it is there already".to_owned();
    }
    let shown = counts
        .iter()
        .take(PLACES_SHOWN)
        .map(|(place, count)| format!("{place} {}", bytes(*count)));
    let rest: u64 = counts.values().skip(PLACES_SHOWN).sum();
    let more = (counts.len() > PLACES_SHOWN).then(|| format!("{} more {}", counts.len() - PLACES_SHOWN, bytes(rest)));
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// At most so many columns, what is left over indented.
fn wrap(line: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    if line.chars().count() <= WIDTH {
        return vec![line.to_owned()];
    }
    for word in line.split(' ') {
        let last = lines.len() - 1;
        if lines[last].chars().count() + 1 + word.chars().count() > WIDTH && !lines[last].trim().is_empty() {
            lines.push(format!("    {word}"));
        } else if last == 0 && lines[0].is_empty() {
            lines[0].push_str(word);
        } else {
            lines[last].push(' ');
            lines[last].push_str(word);
        }
    }
    lines
}
