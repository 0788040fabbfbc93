//! Does a permit follow from its plan, with what is in flight?

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{DeviceId, NodeId, TopologyPath},
    labels::Labels,
    manifest::{CampaignManifest, NeverTogether, Plan, PlannedDevice},
    report::{Permit, PermitKind},
};

use super::rules::domain_of;

/// A device in flight, as far as caps look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// The node that looks after it.
    pub node: NodeId,
    /// Its rack.
    pub rack: TopologyPath,
    /// Its labels.
    pub labels: Labels,
}

impl InFlight {
    fn of(planned: &PlannedDevice) -> Self {
        Self {
            node: planned.node.clone(),
            rack: planned.rack.clone(),
            labels: planned.labels.clone(),
        }
    }
}

/// What is wrong with `permit` under `plan`, given the devices in flight anywhere in the fleet before it, the devices of the
/// plan that ended well and still run the new version, and the highest sequence issued before.
#[must_use]
pub fn permit(
    permit: &Permit,
    plan: &Plan,
    manifest: &CampaignManifest,
    in_flight: &BTreeMap<DeviceId, InFlight>,
    updated: &BTreeSet<DeviceId>,
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
    let mut permitted = Vec::new();
    for id in &permit.devices {
        let Some(planned) = wave.get(id) else {
            wrong.push(format!("{id} does not stand in wave {}", permit.wave));
            continue;
        };
        if permit.kind == PermitKind::Rollback && planned.previous.is_none() {
            wrong.push(format!("{id} has nothing to go back to"));
        }
        check_turn(permit.kind, planned, &wave, updated, &mut wrong);
        after.insert(id.clone(), InFlight::of(planned));
        permitted.push(*planned);
    }
    check_racks(&permitted, manifest, in_flight, &after, &mut wrong);
    if after.len() > manifest.caps.total as usize && after.len() > in_flight.len() {
        wrong.push(format!(
            "{} devices would be in flight, the cap is {}",
            after.len(),
            manifest.caps.total
        ));
    }
    // Of a device that was in flight before nothing is asked again: it may be permitted once more.
    let fresh: Vec<_> = permitted
        .iter()
        .copied()
        .filter(|p| !in_flight.contains_key(&p.device))
        .collect();
    for planned in fresh {
        check_domains(planned, plan, manifest, &after, &mut wrong);
        for rule in &manifest.caps.never_together {
            check_together(planned, rule, &after, &mut wrong);
        }
        let shares_unit = |(id, other): &(&DeviceId, &InFlight)| {
            let (own, its) = (planned.labels.unit(), other.labels.unit());
            **id != planned.device && own.is_some() && (own, &planned.node) == (its, &other.node)
        };
        if let Some((other, _)) = after.iter().find(shares_unit) {
            wrong.push(format!(
                "{} would be in flight with {other} of its unit",
                planned.device
            ));
        }
    }
    wrong
}

/// Forwards, whoever comes before it in its unit has ended well; backwards, whoever comes after it has gone back.
fn check_turn(
    kind: PermitKind,
    planned: &PlannedDevice,
    wave: &BTreeMap<&DeviceId, &PlannedDevice>,
    updated: &BTreeSet<DeviceId>,
    wrong: &mut Vec<String>,
) {
    let id = &planned.device;
    match kind {
        PermitKind::Update => {
            if let Some(before) = planned.after.as_ref().filter(|before| !updated.contains(before)) {
                wrong.push(format!("{id} may not start before {before} of its unit has ended well"));
            }
        }
        PermitKind::Rollback => {
            // A device that has no way back stays; those after it go back all the same.
            let after = |id: &DeviceId| wave.values().find(|other| other.after.as_ref() == Some(id));
            let later = std::iter::successors(after(id), |other| after(&other.device)).take(wave.len());
            let mut later = later.filter(|other| other.previous.is_some());
            if let Some(other) = later.find(|other| updated.contains(&other.device)) {
                wrong.push(format!("{id} may not go back before {} of its unit has", other.device));
            }
        }
    }
}

fn check_racks(
    permitted: &[&PlannedDevice],
    manifest: &CampaignManifest,
    before: &BTreeMap<DeviceId, InFlight>,
    after: &BTreeMap<DeviceId, InFlight>,
    wrong: &mut Vec<String>,
) {
    let in_rack = |devices: &BTreeMap<DeviceId, InFlight>, rack: &TopologyPath| {
        devices.values().filter(|at| at.rack == *rack).count()
    };
    for rack in permitted.iter().map(|planned| &planned.rack).collect::<BTreeSet<_>>() {
        let (before, then) = (in_rack(before, rack), in_rack(after, rack));
        if then > before && then > manifest.caps.per_rack as usize {
            wrong.push(format!(
                "{then} devices of {rack} would be in flight, the cap is {}",
                manifest.caps.per_rack
            ));
        }
    }
}

fn check_domains(
    planned: &PlannedDevice,
    plan: &Plan,
    manifest: &CampaignManifest,
    after: &BTreeMap<DeviceId, InFlight>,
    wrong: &mut Vec<String>,
) {
    for cap in &manifest.caps.domains {
        let domain = domain_of(&cap.by, &planned.rack, &planned.labels);
        let mut shares = plan.domains.get(&cap.by).into_iter().flatten();
        let share = shares.find(|(name, _)| Some(name.to_string()) == domain);
        let there = |other: &&InFlight| domain_of(&cap.by, &other.rack, &other.labels) == domain;
        let count = after.values().filter(there).count();
        match share {
            Some((name, share)) if count > share.at_most as usize => wrong.push(format!(
                "{count} devices of {name} would be in flight, the cap by {} is {}",
                cap.by, share.at_most
            )),
            Some(_) => {}
            None => wrong.push(format!("{} stands in no {} of the plan", planned.device, cap.by)),
        }
    }
}

fn check_together(
    planned: &PlannedDevice,
    rule: &NeverTogether,
    after: &BTreeMap<DeviceId, InFlight>,
    wrong: &mut Vec<String>,
) {
    let place = |rack: &TopologyPath, labels: &Labels| {
        let domain = domain_of(&rule.by, rack, labels)?;
        let is_named = rule.domains.is_empty() || rule.domains.iter().any(|named| named.to_string() == domain);
        let within = match &rule.within {
            Some(within) => domain_of(within, rack, labels)?,
            None => String::new(),
        };
        is_named.then_some((within, domain))
    };
    let Some((within, domain)) = place(&planned.rack, &planned.labels) else {
        return;
    };
    let stands_in = |other: &&InFlight| {
        place(&other.rack, &other.labels).is_some_and(|(where_else, other)| where_else == within && other != domain)
    };
    if after.values().any(|other| stands_in(&other)) {
        wrong.push(format!(
            "{} of {domain} would be in flight together with what stands in for it by {}",
            planned.device, rule.by
        ));
    }
}
