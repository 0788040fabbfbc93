//! Are the fault domains counted as they are, and do units hold together?

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{DeviceId, TopologyPath},
    labels::Labels,
    manifest::{AtMost, CampaignKind, CampaignManifest, Dimension, OtherComponent, Plan, PlannedDevice, Release},
};

use crate::fleet::{Inventory, KnownDevice};

/// The domain that a device of this place and with these labels stands in, spelled out once more.
pub(super) fn domain_of(by: &Dimension, rack: &TopologyPath, labels: &Labels) -> Option<String> {
    let segments: Vec<_> = rack.segments().collect();
    let first = |levels: usize| Some(segments.get(..levels)?.join("/"));
    match by {
        Dimension::Region => first(1),
        Dimension::Site => first(2),
        Dimension::Rack => first(segments.len()),
        Dimension::Path(levels) => first(usize::from(*levels)),
        Dimension::Label(name) => {
            let mut labels = labels.iter();
            labels
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.to_string())
        }
    }
}

fn rack_of(device: &KnownDevice) -> TopologyPath {
    let levels = device.path.depth();
    device.path.prefix(levels.saturating_sub(1))
}

pub(super) fn check_domains(plan: &Plan, manifest: &CampaignManifest, inventory: &Inventory, wrong: &mut Vec<String>) {
    let capped: BTreeSet<_> = manifest.caps.domains.iter().map(|cap| &cap.by).collect();
    if let Some(by) = plan.domains.keys().find(|by| !capped.contains(by)) {
        wrong.push(format!("the plan counts by {by}, which no cap asks for"));
    }
    for cap in &manifest.caps.domains {
        let mut counts = BTreeMap::<String, u64>::new();
        for device in inventory.devices.values() {
            if let Some(domain) = domain_of(&cap.by, &rack_of(device), &device.facts.labels) {
                *counts.entry(domain).or_default() += 1;
            }
        }
        let mut used = BTreeSet::new();
        for planned in plan.waves.iter().flatten() {
            match domain_of(&cap.by, &planned.rack, &planned.labels) {
                Some(domain) => drop(used.insert(domain)),
                None => wrong.push(format!(
                    "{} is planned without a {} to count it by",
                    planned.device, cap.by
                )),
            }
        }
        let shown: BTreeMap<String, _> = plan
            .domains
            .get(&cap.by)
            .into_iter()
            .flatten()
            .map(|(domain, share)| (domain.to_string(), share))
            .collect();
        if !shown.keys().eq(used.iter()) {
            wrong.push(format!(
                "the plan does not show the domains of its devices by {}",
                cap.by
            ));
        }
        for (domain, share) in shown {
            let devices = counts.get(&domain).copied().unwrap_or_default();
            if u64::from(share.devices) != devices {
                wrong.push(format!(
                    "{domain} has {devices} devices, the plan says {}",
                    share.devices
                ));
            }
            if u64::from(share.at_most) != largest(cap.at_most, devices) {
                wrong.push(format!(
                    "{domain} is not capped as the manifest says: at {}",
                    share.at_most
                ));
            }
        }
    }
    for rule in &manifest.caps.never_together {
        for planned in plan.waves.iter().flatten() {
            let is_known = |by: &Dimension| domain_of(by, &planned.rack, &planned.labels).is_some();
            if !is_known(&rule.by) || !rule.within.as_ref().is_none_or(is_known) {
                let by = &rule.by;
                wrong.push(format!(
                    "{} is planned without a {by} that never stands alone",
                    planned.device
                ));
            }
        }
    }
}

/// The largest number that the bound allows, found by its definition.
fn largest(at_most: AtMost, devices: u64) -> u64 {
    match at_most {
        AtMost::Count(count) => count.into(),
        AtMost::BelowPercent(percent) => {
            let mut count = devices * u64::from(percent) / 100;
            if count * 100 == devices * u64::from(percent) {
                count = count.saturating_sub(1);
            }
            count.max(1)
        }
    }
}

/// What a component's place in the usual order is.
fn place_in_order(component: &str) -> usize {
    match component {
        "rot" => 0,
        "bmc" => 1,
        "bios" => 2,
        "cpld" => 3,
        "psu" => 4,
        "ssd" => 5,
        "gpu" => 6,
        "dpu" => 7,
        "nic" => 9,
        "bios-settings" => 10,
        _ => 8,
    }
}

pub(super) fn check_units(
    plan: &Plan,
    manifest: &CampaignManifest,
    inventory: &Inventory,
    releases: &[Release],
    wrong: &mut Vec<String>,
) {
    let releases: BTreeMap<&str, &Release> = releases.iter().map(|r| (r.target.as_str(), r)).collect();
    let mut planned_units = BTreeMap::<_, Vec<(usize, &PlannedDevice)>>::new();
    for (wave, devices) in plan.waves.iter().enumerate() {
        for planned in devices {
            let needs_others = way(planned, &releases).any(|release| !release.info.requires.is_empty());
            match planned.labels.unit() {
                Some(unit) => planned_units
                    .entry((&planned.node, unit))
                    .or_default()
                    .push((wave, planned)),
                None if needs_others => {
                    wrong.push(format!("{} needs others of its unit and has none", planned.device));
                }
                None => {}
            }
        }
    }
    if planned_units.is_empty() {
        return;
    }
    let mut known_units = BTreeMap::<_, BTreeMap<&DeviceId, &KnownDevice>>::new();
    for (id, device) in &inventory.devices {
        if let Some(unit) = device.facts.labels.unit() {
            known_units.entry((&device.node, unit)).or_default().insert(id, device);
        }
    }
    for (unit, members) in planned_units {
        let known = known_units.get(&unit).cloned().unwrap_or_default();
        check_unit(&members, &known, manifest, &releases, wrong);
    }
}

/// What is installed on a device, one after the other, as far as it is known.
fn way<'a>(planned: &'a PlannedDevice, releases: &'a BTreeMap<&str, &'a Release>) -> impl Iterator<Item = &'a Release> {
    let targets = planned.hops.iter().chain([&planned.release]);
    targets.filter_map(|target| releases.get(target.as_str()).copied())
}

/// Plays the unit through, one device after the other.
fn check_unit(
    members: &[(usize, &PlannedDevice)],
    known: &BTreeMap<&DeviceId, &KnownDevice>,
    manifest: &CampaignManifest,
    releases: &BTreeMap<&str, &Release>,
    wrong: &mut Vec<String>,
) {
    let mut runs: BTreeMap<&DeviceId, Option<&str>> = known
        .iter()
        .map(|(id, device)| (*id, device.facts.version.as_deref()))
        .collect();
    if let Some((id, _)) = known.iter().find(|(_, device)| device.quarantined) {
        wrong.push(format!("a unit is planned although {id} in it is quarantined"));
    }
    let order: Vec<_> = members
        .iter()
        .filter_map(|(_, planned)| Some((*planned, *releases.get(planned.release.as_str())?)))
        .collect();
    let rank = |release: &Release| {
        let component = release.info.component.as_str();
        if manifest.kind == CampaignKind::Provisioning && component == "bios-settings" {
            return (usize::MAX, place_in_order(component));
        }
        let own = manifest
            .constraints
            .sequence
            .iter()
            .find(|s| s.vendor == release.info.vendor);
        let listed = own.and_then(|s| s.order.iter().position(|c| *c == release.info.component));
        (
            listed.unwrap_or(usize::MAX),
            place_in_order(release.info.component.as_str()),
        )
    };
    for (at, (planned, release)) in order.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| order[before].0);
        if members[at].0 != members[0].0 {
            wrong.push(format!("{} is not in the wave of its unit", planned.device));
        }
        if planned.after.as_ref() != before.map(|before| &before.device) {
            wrong.push(format!(
                "{} does not come after the one before it in its unit",
                planned.device
            ));
        }
        // Whoever comes later than its component says had to wait for somebody who was not done.
        for (later, _) in order[at + 1..].iter().filter(|(_, other)| rank(other) < rank(release)) {
            let had_to_wait = |(other, _): &&(&PlannedDevice, &Release)| {
                way(later, releases).any(|release| depends(release, other, known))
            };
            if !order[at..]
                .iter()
                .any(|other| other.0.device != later.device && had_to_wait(&other))
            {
                wrong.push(format!("{} comes after {} for no reason", later.device, planned.device));
            }
        }
        for step in way(planned, releases) {
            let complaint = problem(planned, step, &runs, known);
            wrong.extend(complaint.map(|why| format!("{} is updated while {why}", planned.device)));
            runs.insert(&planned.device, Some(&step.info.version));
            if step.target == release.target {
                break;
            }
            for (other, of_other) in &order[..at] {
                let complaint = problem(other, of_other, &runs, known);
                let told = |why| format!("{} goes over {} where {why}", planned.device, step.info.version);
                wrong.extend(complaint.map(told));
            }
        }
    }
    for (planned, release) in &order {
        let complaint = problem(planned, release, &runs, known);
        wrong.extend(complaint.map(|why| format!("{} ends up where {why}", planned.device)));
    }
    for (planned, _) in order.iter().filter(|(planned, _)| planned.previous.is_some()) {
        runs.insert(&planned.device, Some(&planned.from_version));
    }
    for (planned, release) in order.iter().filter(|(planned, _)| planned.previous.is_none()) {
        let complaint = problem(planned, release, &runs, known);
        wrong.extend(complaint.map(|why| format!("{} stays, when others go back, where {why}", planned.device)));
    }
}

/// Whether the release is not content with what another device of the unit runs before the campaign.
fn depends(release: &Release, other: &PlannedDevice, known: &BTreeMap<&DeviceId, &KnownDevice>) -> bool {
    let Some(device) = known.get(&other.device) else {
        return false;
    };
    let says = |rule: &OtherComponent| {
        let version = device.facts.version.as_deref();
        version.and_then(|version| rule.names(version))
    };
    let about = |rule: &&OtherComponent| rule.component == device.facts.component;
    let info = &release.info;
    info.requires.iter().filter(about).any(|rule| says(rule) != Some(true))
        || info
            .conflicts
            .iter()
            .filter(about)
            .any(|rule| says(rule) != Some(false))
}

/// What speaks against a release beside what the others of the unit run.
fn problem(
    planned: &PlannedDevice,
    release: &Release,
    runs: &BTreeMap<&DeviceId, Option<&str>>,
    known: &BTreeMap<&DeviceId, &KnownDevice>,
) -> Option<String> {
    let others = |rule: &OtherComponent| -> Vec<(&DeviceId, Option<bool>)> {
        runs.iter()
            .filter(|(id, _)| **id != &planned.device)
            .filter(|(id, _)| {
                known
                    .get(*id)
                    .is_some_and(|device| device.facts.component == rule.component)
            })
            .map(|(id, version)| (*id, version.and_then(|version| rule.names(version))))
            .collect()
    };
    for rule in &release.info.requires {
        let others = others(rule);
        if others.is_empty() || others.iter().any(|(_, is)| *is != Some(true)) {
            return Some(format!("its unit does not have the {rule} that it requires"));
        }
    }
    let mut conflicts = release.info.conflicts.iter();
    let rule = conflicts.find(|rule| others(rule).iter().any(|(_, is)| *is != Some(false)))?;
    Some(format!("its unit may have {rule}, which does not go with it"))
}
