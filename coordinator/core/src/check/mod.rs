//! A second opinion: does a plan follow from its manifest, does a permit follow from its plan? Shares no code with the
//! planner or the engine, and lists everything that is wrong rather than the first thing.

mod gates;
mod hops;
mod permit;
mod retries;
mod rules;
mod servers;
mod waves;

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::DeviceId,
    manifest::{CampaignManifest, Plan, Release, Reversibility},
};

use crate::fleet::Inventory;

pub use gates::gates;
pub use permit::{InFlight, permit};
pub use retries::{Ended, again};

/// What is wrong with `plan` as a plan of `manifest` for `inventory`; nothing if it is right.
#[must_use]
pub fn plan(plan: &Plan, manifest: &CampaignManifest, inventory: &Inventory, releases: &[Release]) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Err(error) = plan.check() {
        wrong.push(error.to_string());
    }
    if plan.campaign != manifest.id {
        wrong.push(format!(
            "the plan is for the campaign {}, the manifest for {}",
            plan.campaign, manifest.id
        ));
    }
    check_places(plan, manifest, inventory, releases, &mut wrong);
    check_everybody_is_named(plan, manifest, inventory, &mut wrong);
    waves::check(plan, manifest, inventory, &mut wrong);
    rules::check_domains(plan, manifest, inventory, &mut wrong);
    rules::check_units(plan, manifest, inventory, releases, &mut wrong);
    servers::check(plan, manifest, inventory, releases, &mut wrong);
    wrong
}

fn check_places(
    plan: &Plan,
    manifest: &CampaignManifest,
    inventory: &Inventory,
    releases: &[Release],
    wrong: &mut Vec<String>,
) {
    let by_target: BTreeMap<&str, &Release> = releases
        .iter()
        .map(|release| (release.target.as_str(), release))
        .collect();
    let find = |target: &str| by_target.get(target).copied();
    for planned in plan.waves.iter().flatten() {
        let id = &planned.device;
        let Some(known) = inventory.devices.get(id) else {
            wrong.push(format!("{id} is planned but not in the inventory"));
            continue;
        };
        let mut must = |holds: bool, otherwise: &str| {
            if !holds {
                wrong.push(format!("{id} {otherwise}"));
            }
        };
        must(
            !inventory.excluded.contains_key(id),
            "is planned although an operator has taken it out of updates",
        );
        must(known.node == planned.node, "is planned at another node than its own");
        must(
            plan.nodes.get(&planned.node) == Some(&known.node_key),
            "is planned with another key of its node than the inventory has",
        );
        must(
            known.path.is_within(&planned.rack),
            "is counted against a rack it does not stand in",
        );
        must(
            known.path.depth() <= planned.rack.depth() + 1,
            "is counted against more than its rack",
        );
        must(
            known.facts.version.as_ref() == Some(&planned.from_version),
            "is planned from a version it does not run",
        );
        must(
            known.node_reachable && !known.quarantined,
            "is planned although it is out of reach or quarantined",
        );
        must(
            known.held_by_operator.is_none(),
            "is planned although an operator holds it",
        );
        must(
            known.facts.labels == planned.labels,
            "is planned with other labels than it has",
        );
        let pinned = manifest.releases.iter().any(|pin| {
            pin.target == planned.release && find(&pin.target).is_some_and(|found| found.artifact.sha256 == pin.sha256)
        });
        must(pinned, "gets a release that the manifest does not pin");
        let Some(release) = find(&planned.release) else {
            continue;
        };
        must(
            release.info.models.contains(&known.facts.model),
            "gets a release for another model",
        );
        must(
            release.info.vendor == known.facts.vendor,
            "gets a release of another vendor",
        );
        must(
            release.info.component == known.facts.component,
            "gets a release for another component",
        );
        must(
            release.info.version != planned.from_version,
            "gets the version it runs already",
        );
        let way = hops::way(planned, release, manifest, &find, known, inventory, &mut must);
        must(
            !inventory.revoked.contains(&release.artifact.sha256),
            "gets a release that was revoked",
        );
        if let Some(previous) = &planned.previous {
            must(
                manifest.previous.iter().any(|pin| pin.target == *previous),
                "goes back to what the manifest does not pin",
            );
            must(
                way.iter().all(|step| step.info.reversibility != Reversibility::OneWay),
                "is promised a way back from a one-way release",
            );
            let leads_back = find(previous).is_some_and(|found| found.info.version == planned.from_version);
            must(leads_back, "goes back to another version than it came from");
        }
    }
}

fn check_everybody_is_named(plan: &Plan, manifest: &CampaignManifest, inventory: &Inventory, wrong: &mut Vec<String>) {
    let mut named = BTreeMap::<&DeviceId, u32>::new();
    let held = plan.held.iter().map(|held| &held.device);
    for id in plan.waves.iter().flatten().map(|planned| &planned.device).chain(held) {
        *named.entry(id).or_default() += 1;
    }
    wrong.extend(
        named
            .iter()
            .filter(|(_, times)| **times > 1)
            .map(|(id, _)| format!("{id} is named more than once")),
    );
    let s = &manifest.selector;
    let chosen: BTreeSet<_> = s.devices.iter().collect();
    for (id, device) in &inventory.devices {
        let place = s.paths.is_empty() || s.paths.iter().any(|path| device.path.is_within(path));
        let model = s.models.is_empty() || s.models.contains(&device.facts.model);
        let name = chosen.is_empty() || chosen.contains(id);
        match (place && model && name, named.contains_key(id)) {
            (true, false) => wrong.push(format!("{id} matches the selector and is neither planned nor held")),
            (false, true) => wrong.push(format!("{id} is named and does not match the selector")),
            _ => {}
        }
    }
    wrong.extend(
        plan.held
            .iter()
            .filter(|h| h.reason.is_empty())
            .map(|h| format!("{} is held for no reason", h.device)),
    );
}
