//! A second opinion: does a plan follow from its manifest, does a permit follow from its plan? Shares no code with the
//! planner or the engine, and lists everything that is wrong rather than the first thing.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{DeviceId, TopologyPath},
    manifest::{CampaignManifest, Plan, PlannedDevice, Release, Reversibility, Strategy},
    report::{Permit, PermitKind},
    units::BasisPoints,
};

use crate::fleet::Inventory;

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
    check_waves(plan, manifest, inventory, &mut wrong);
    wrong
}

fn check_places(
    plan: &Plan,
    manifest: &CampaignManifest,
    inventory: &Inventory,
    releases: &[Release],
    wrong: &mut Vec<String>,
) {
    let find = |target: &str| releases.iter().find(|release| release.target == target);
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
        let from = &release.info.from_versions;
        must(
            from.is_empty() || from.contains(&planned.from_version),
            "comes from a version the release does not allow",
        );
        if let Some(previous) = &planned.previous {
            must(
                manifest.previous.iter().any(|pin| pin.target == *previous),
                "goes back to what the manifest does not pin",
            );
            must(
                release.info.reversibility != Reversibility::OneWay,
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
    for (id, device) in &inventory.devices {
        let s = &manifest.selector;
        let place = s.paths.is_empty() || s.paths.iter().any(|path| device.path.is_within(path));
        let model = s.models.is_empty() || s.models.contains(&device.facts.model);
        let name = s.devices.is_empty() || s.devices.contains(id);
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

/// A stretch of a plan's waves, in which every rack is to give each wave its share.
struct Stretch<'a> {
    /// The number of its first wave.
    first: usize,
    waves: Vec<&'a [PlannedDevice]>,
}

impl Stretch<'_> {
    fn total(&self) -> u64 {
        self.waves.iter().map(|wave| wave.len() as u64).sum()
    }

    /// Per rack: its devices in one wave, and in all of them.
    fn of_racks(&self, wave: usize) -> BTreeMap<&TopologyPath, (u64, u64)> {
        let mut shares = BTreeMap::<_, (u64, u64)>::new();
        for (number, planned) in self
            .waves
            .iter()
            .enumerate()
            .flat_map(|(n, wave)| wave.iter().map(move |d| (n, d)))
        {
            let share = shares.entry(&planned.rack).or_default();
            share.0 += u64::from(number == wave);
            share.1 += 1;
        }
        shares
    }
}

fn check_waves(plan: &Plan, manifest: &CampaignManifest, inventory: &Inventory, wrong: &mut Vec<String>) {
    let all = || Stretch {
        first: 0,
        waves: plan.waves.iter().map(Vec::as_slice).collect(),
    };
    let ends_at_shares = |total: u64, shares: &[BasisPoints]| -> BTreeSet<u64> {
        shares
            .iter()
            .map(|share| (total * u64::from(share.get())).div_ceil(10_000))
            .collect()
    };
    match &manifest.strategy {
        Strategy::Direct {} => check_stretch(&all(), &BTreeSet::from([all().total()]), wrong),
        Strategy::Canary { shares } => check_stretch(&all(), &ends_at_shares(all().total(), shares), wrong),
        Strategy::Regional { order, shares } => {
            for stretch in by_place(plan, order, inventory, wrong) {
                check_stretch(&stretch, &ends_at_shares(stretch.total(), shares), wrong);
            }
        }
        Strategy::Rolling { batch } => {
            let (total, batch) = (all().total(), u64::from(*batch));
            let ends = (1..=total.div_ceil(batch)).map(|number| (number * batch).min(total));
            check_stretch(&all(), &ends.collect(), wrong);
        }
        Strategy::Growing { first, percent } => {
            let total = all().total();
            let (mut ends, mut end, mut batch) = (BTreeSet::new(), 0, u64::from(*first));
            while end < total {
                end = total.min(end + batch);
                ends.insert(end);
                batch = u64::from(u32::MAX).min((batch * u64::from(*percent)).div_ceil(100));
            }
            check_stretch(&all(), &ends, wrong);
        }
    }
}

/// The waves of each place, in the order of the places; waves that mix places or stand in another order are wrong.
fn by_place<'a>(
    plan: &'a Plan,
    order: &[TopologyPath],
    inventory: &Inventory,
    wrong: &mut Vec<String>,
) -> Vec<Stretch<'a>> {
    let place_of = |planned: &PlannedDevice| {
        let path = &inventory.devices.get(&planned.device)?.path;
        order.iter().position(|place| path.is_within(place))
    };
    let mut stretches = BTreeMap::<usize, Stretch<'a>>::new();
    let mut last = None;
    for (number, wave) in plan.waves.iter().enumerate() {
        let places: BTreeSet<_> = wave.iter().map(place_of).collect();
        match (places.first(), places.len()) {
            (Some(Some(place)), 1) => {
                if last > Some(*place) {
                    wrong.push(format!("wave {number} is for {}, whose turn is over", order[*place]));
                }
                last = Some(*place);
                let stretch = stretches.entry(*place).or_insert(Stretch {
                    first: number,
                    waves: Vec::new(),
                });
                stretch.waves.push(wave);
            }
            _ => wrong.push(format!("wave {number} is not for one place of the strategy")),
        }
    }
    stretches.into_values().collect()
}

/// `ends` are the numbers of devices after which waves have to end.
fn check_stretch(stretch: &Stretch<'_>, ends: &BTreeSet<u64>, wrong: &mut Vec<String>) {
    let total = stretch.total();
    let mut reached = BTreeSet::new();
    let mut sum = 0;
    for (at, wave) in stretch.waves.iter().enumerate() {
        let number = stretch.first + at;
        sum += wave.len() as u64;
        if wave.is_empty() || !ends.contains(&sum) {
            wrong.push(format!(
                "wave {number} ends after {sum} of {total} devices, which is not what the strategy says"
            ));
        }
        reached.insert(sum);
        // A rack may give a wave its own share and one device of rounding, for itself and for the cut before.
        for (rack, (here, all)) in stretch.of_racks(at) {
            if here * total > wave.len() as u64 * all + 2 * total {
                wrong.push(format!(
                    "wave {number} takes {here} of the {all} devices of {rack}, more than its share"
                ));
            }
        }
    }
    if total > 0 && reached != *ends {
        wrong.push("the plan leaves out a wave that the strategy names".to_owned());
    }
}

/// What is wrong with `permit` under `plan`, given the devices in flight anywhere in the fleet before it, each with its
/// rack, and the highest sequence issued before.
#[must_use]
pub fn permit(
    permit: &Permit,
    plan: &Plan,
    manifest: &CampaignManifest,
    in_flight: &BTreeMap<DeviceId, TopologyPath>,
    last_sequence: u64,
) -> Vec<String> {
    let mut wrong = Vec::new();
    if permit.campaign != plan.campaign {
        wrong.push("the permit is for another campaign".to_owned());
    }
    if permit.sequence <= last_sequence {
        wrong.push(format!("sequence {} was issued before", permit.sequence));
    }
    if permit.expires <= permit.issued {
        wrong.push("the permit is void from the start".to_owned());
    }
    let wave: BTreeMap<_, _> = plan
        .waves
        .get(permit.wave as usize)
        .into_iter()
        .flatten()
        .map(|planned| (&planned.device, planned))
        .collect();
    let mut after = in_flight.clone();
    for id in &permit.devices {
        let Some(planned) = wave.get(id) else {
            wrong.push(format!("{id} does not stand in wave {}", permit.wave));
            continue;
        };
        if permit.kind == PermitKind::Rollback && planned.previous.is_none() {
            wrong.push(format!("{id} has nothing to go back to"));
        }
        after.insert(id.clone(), planned.rack.clone());
    }
    let in_rack = |devices: &BTreeMap<DeviceId, TopologyPath>, rack| devices.values().filter(|at| *at == rack).count();
    for rack in permit
        .devices
        .iter()
        .filter_map(|id| wave.get(id))
        .map(|planned| &planned.rack)
        .collect::<BTreeSet<_>>()
    {
        let (before, then) = (in_rack(in_flight, rack), in_rack(&after, rack));
        if then > before && then > manifest.caps.per_rack as usize {
            wrong.push(format!(
                "{then} devices of {rack} would be in flight, the cap is {}",
                manifest.caps.per_rack
            ));
        }
    }
    if after.len() > manifest.caps.total as usize && after.len() > in_flight.len() {
        wrong.push(format!(
            "{} devices would be in flight, the cap is {}",
            after.len(),
            manifest.caps.total
        ));
    }
    wrong
}
