//! From runs to the report: percentiles over runs, peaks over runs, and what was taken for granted.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::TopologyPath,
    rehearsal::{Assumptions, Fault, InFlight, REHEARSAL_SCHEMA, Rehearsal, RehearsedWave, Scenario, Spread, Wires},
    time::Timestamp,
};

use super::{
    RehearsalFacts, RehearsalQuestion,
    book::Peak,
    play::{Played, SYNC},
    stage::Stage,
    wires::{WIRE_PER_10000, wires},
};

/// Points of the timeline at most: a picture has no more.
const TIMELINE_MAX: u64 = 400;

/// What is true of every rehearsal.
const NOTES: [&str; 6] = [
    "every node holds its images, and has proven it, before the campaign starts",
    "bytes are the mesh's plan, not measured: an image once over the WAN into each site and once into each rack, none where a \
     node has proven that it holds it",
    "undisturbed means that every device does well; a share of failures is a fault to ask for",
    "a usual time (nothing learned) is half of deadlines.attempt_s: 50 % install, 40 % reboot, 10 % validate, drawn between \
     70 % and 130 %; a way back takes as long as a whole update",
    "a device whose time passes deadlines.attempt_s ends quarantined; one that fails its health checks takes one more reboot",
    "no other campaign is in flight, and nobody clears a quarantined device",
];

pub(super) fn of(
    facts: &RehearsalFacts,
    question: &RehearsalQuestion,
    stage: &Stage<'_>,
    played: &[(Option<Fault>, Vec<Played>)],
) -> Rehearsal {
    let (manifest, plan) = (&facts.manifest, &facts.plan);
    let undisturbed = played.first().map_or(&[][..], |(_, runs)| runs);
    let wires = wires(facts);
    let wave = |(number, (planned, bytes)): (usize, (&Vec<_>, Wires))| RehearsedWave {
        wave: count(number),
        devices: count(planned.len()),
        ..of_wave(stage, undisturbed, number, bytes)
    };
    let notes = NOTES
        .iter()
        .map(|note| (*note).to_owned())
        .chain(facts.notes.iter().cloned());
    Rehearsal {
        schema: REHEARSAL_SCHEMA.to_owned(),
        version: facts.version.clone(),
        campaign: manifest.id.clone(),
        rules_sha256: manifest.rules_sha256(),
        plan_sha256: manifest.plan_sha256,
        seed: question.seed,
        runs: question.runs,
        starts: question.starts,
        devices: count(plan.devices().count()),
        held: count(plan.held.len()),
        nodes: count(plan.nodes.len()),
        cap_per_rack: manifest.caps.per_rack,
        cap_total: manifest.caps.total,
        assumptions: Assumptions {
            permit_ttl_s: facts.permit_ttl.as_secs(),
            sync_s: SYNC.as_secs(),
            wire_per_10000: WIRE_PER_10000,
            steps: stage.step_times(),
            notes: notes.collect(),
        },
        waves: plan.waves.iter().zip(wires).enumerate().map(wave).collect(),
        scenarios: played
            .iter()
            .map(|(fault, runs)| scenario(fault.clone(), runs))
            .collect(),
        timeline: undisturbed
            .first()
            .map_or_else(Vec::new, |run| timeline(&run.timeline, run.ends_s)),
    }
}

fn of_wave(stage: &Stage<'_>, runs: &[Played], number: usize, bytes: Wires) -> RehearsedWave {
    let passed_s = |run: &Played| run.passed_s.get(number).copied().flatten();
    let takes = |run: &Played| Some(passed_s(run)?.saturating_sub(*run.opened_s.get(number)?));
    let mut peak = Peak::none(stage.sites.len(), stage.racks.len());
    for seen in runs.iter().filter_map(|run| run.peaks.get(number)) {
        peak.raise(seen);
    }
    RehearsedWave {
        wave: 0,
        devices: 0,
        passed: count(runs.iter().filter_map(passed_s).count()),
        opens_s: Spread::of(
            runs.iter()
                .filter_map(|run| run.opened_s.get(number).copied())
                .collect(),
        ),
        takes_s: Spread::of(runs.iter().filter_map(takes).collect()),
        ended_s: Spread::of(
            runs.iter()
                .filter_map(|run| run.ended_s.get(number).copied().flatten())
                .collect(),
        ),
        in_flight: InFlight {
            total: peak.total,
            sites: named(&stage.sites, &peak.sites),
            racks: named(&stage.racks, &peak.racks),
        },
        bytes,
    }
}

fn named(places: &[TopologyPath], counts: &[u32]) -> BTreeMap<TopologyPath, u32> {
    let counted = places.iter().cloned().zip(counts.iter().copied());
    counted.filter(|(_, count)| *count > 0).collect()
}

fn scenario(fault: Option<Fault>, runs: &[Played]) -> Scenario {
    let spread = |value: fn(&Played) -> u64| Spread::of(runs.iter().map(value).collect()).unwrap_or_default();
    let (mut endings, mut stopped_in) = (BTreeMap::new(), BTreeMap::new());
    for run in runs {
        *endings.entry(run.ending).or_default() += 1;
        if let Some((wave, _)) = run.stopped {
            *stopped_in.entry(wave).or_default() += 1;
        }
    }
    Scenario {
        fault,
        endings,
        stopped_in,
        stopped_s: Spread::of(runs.iter().filter_map(|run| Some(run.stopped?.1)).collect()),
        exposed: spread(|run| run.exposed),
        harmed: spread(|run| run.harmed),
        went_back: spread(|run| run.went_back),
        updated: spread(|run| run.updated),
        ends_s: spread(|run| run.ends_s),
        reason: runs.first().map(|run| run.reason.clone()).unwrap_or_default(),
    }
}

/// The most devices in flight in each of so many equal spans, where that changes.
fn timeline(seen: &[(Timestamp, u32)], ends_s: u64) -> Vec<(u64, u32)> {
    let span = ends_s.div_ceil(TIMELINE_MAX).max(1);
    let mut points: Vec<(u64, u32)> = Vec::new();
    let mut in_flight = 0;
    for (at, now) in seen {
        let begins = at.since_start().as_secs() / span * span;
        match points.last_mut() {
            Some((last, most)) if *last == begins => *most = (*most).max(*now),
            last => {
                // What the span before left in flight counts until now, and in this span too.
                if last.is_some_and(|(last, _)| *last + span < begins) {
                    points.push((points[points.len() - 1].0 + span, in_flight));
                }
                points.push((begins, in_flight.max(*now)));
            }
        }
        in_flight = *now;
    }
    if let Some((last, _)) = points.last() {
        points.push((last + span, in_flight));
    }
    points.dedup_by_key(|(_, in_flight)| *in_flight);
    points
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
