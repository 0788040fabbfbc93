//! Units: servers with several components. Which of them fit together, and in which order they are updated.
//!
//! Invariants: what a device's new release requires of the others in its unit holds when its turn comes, still holds when
//! the whole unit is done, and when all that can go back have done so.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{Component, DeviceId, LabelValue, NodeId},
    manifest::{BIOS_SETTINGS, CampaignKind, OtherComponent, PlannedDevice, Release, ReleaseInfo, Sequence},
};

use crate::fleet::{Inventory, KnownDevice};

/// Components in the order in which they are updated; what is not named here comes between these and [`LAST`].
const ORDER: [&str; 8] = ["rot", "bmc", "bios", "cpld", "psu", "ssd", "gpu", "dpu"];

/// What carries the bytes to everything else. After it come the settings of the BIOS, which are no firmware.
const LAST: &str = "nic";

/// By which rules the components of a unit follow one another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ordering<'a> {
    /// Where a vendor's order differs from the usual one.
    pub(super) sequences: &'a [Sequence],
    /// Servers are brought up firmware first, whatever a vendor's order says of the BIOS's settings.
    pub(super) kind: CampaignKind,
}

/// A device that may be planned as far as it alone is concerned.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) device: &'a KnownDevice,
    pub(super) planned: PlannedDevice,
    pub(super) release: &'a Release,
    /// What it goes over first.
    pub(super) hops: Vec<&'a Release>,
}

impl<'a> Candidate<'a> {
    /// What is installed on it, one after the other.
    fn way(&self) -> impl Iterator<Item = &'a ReleaseInfo> {
        let way = self.hops.iter().copied().chain([self.release]);
        way.map(|release| &release.info)
    }

    /// The first thing that its way requires of others.
    fn requirement(&self) -> Option<&'a OtherComponent> {
        self.rules().find_map(|(_, rule, wanted)| wanted.then_some(rule))
    }

    /// What its way requires of others, and does not go with: whether a version is to be one of these.
    fn rules(&self) -> impl Iterator<Item = (&'a ReleaseInfo, &'a OtherComponent, bool)> {
        self.way().flat_map(|info| {
            let requires = info.requires.iter().map(move |rule| (info, rule, true));
            requires.chain(info.conflicts.iter().map(move |rule| (info, rule, false)))
        })
    }
}

/// The devices of one unit.
#[derive(Debug, Default)]
struct Unit<'a> {
    candidates: BTreeMap<DeviceId, Candidate<'a>>,
    /// All that are known, candidates or not.
    known: Vec<(&'a DeviceId, &'a KnownDevice)>,
}

/// What is planned: alone, or as a unit in the order of its updates. What is not is held, with the reason.
pub(super) fn arrange<'a>(
    candidates: Vec<Candidate<'a>>,
    inventory: &'a Inventory,
    ordering: Ordering<'_>,
    held: &mut BTreeMap<DeviceId, String>,
) -> Vec<Vec<Candidate<'a>>> {
    let mut arranged = Vec::with_capacity(candidates.len());
    let mut units: BTreeMap<(&'a NodeId, &'a LabelValue), Unit<'a>> = BTreeMap::new();
    for candidate in candidates {
        let id = candidate.planned.device.clone();
        match unit_of(candidate.device) {
            Some(unit) => drop(units.entry(unit).or_default().candidates.insert(id, candidate)),
            None => match candidate.requirement() {
                Some(rule) => drop(held.insert(
                    id,
                    format!(
                        "{} requires {rule} in the same unit, but it has no label unit: give it one in its node's \
                         configuration",
                        candidate.release.target
                    ),
                )),
                None => arranged.push(vec![candidate]),
            },
        }
    }
    if !units.is_empty() {
        for (id, device) in &inventory.devices {
            if let Some(unit) = unit_of(device).and_then(|unit| units.get_mut(&unit)) {
                unit.known.push((id, device));
            }
        }
    }
    for mut unit in units.into_values() {
        unit.hold_what_does_not_fit(held);
        let in_order = unit.into_order(ordering, held);
        if !in_order.is_empty() {
            arranged.push(in_order);
        }
    }
    arranged
}

fn unit_of(device: &KnownDevice) -> Option<(&NodeId, &LabelValue)> {
    Some((&device.node, device.facts.labels.unit()?))
}

impl<'a> Unit<'a> {
    /// Until nothing more has to be held: who is held is not there for others to rely on.
    fn hold_what_does_not_fit(&mut self, held: &mut BTreeMap<DeviceId, String>) {
        let quarantined = self
            .known
            .iter()
            .find(|(_, device)| device.quarantined)
            .map(|(id, _)| *id);
        loop {
            let problem = |candidate: &Candidate<'a>| match quarantined {
                Some(other) => Some(format!(
                    "{other} of the same unit is quarantined: a person has to clear it first"
                )),
                None => self.problem(candidate),
            };
            let unfit: Vec<_> = self
                .candidates
                .iter()
                .filter_map(|(id, candidate)| Some((id.clone(), problem(candidate)?)))
                .collect();
            if unfit.is_empty() {
                return;
            }
            for (id, reason) in unfit {
                self.candidates.remove(&id);
                held.insert(id, reason);
            }
        }
    }

    /// The others of the unit that are such a component.
    fn others(&self, id: &DeviceId, component: &Component) -> impl Iterator<Item = (&'a DeviceId, &'a KnownDevice)> {
        let others = self.known.iter().copied();
        others.filter(move |(other, device)| *other != id && device.facts.component == *component)
    }

    /// The version that a device runs when the unit is done.
    fn final_version(&self, id: &DeviceId, device: &'a KnownDevice) -> Option<&'a str> {
        match self.candidates.get(id) {
            Some(candidate) => Some(&candidate.release.info.version),
            None => device.facts.version.as_deref(),
        }
    }

    /// What speaks against a candidate when the whole unit is done; and on its way, where others are done before it.
    fn problem(&self, candidate: &Candidate<'a>) -> Option<String> {
        let id = &candidate.planned.device;
        for (info, rule, wanted) in candidate.rules() {
            let mut others = self.others(id, &rule.component).peekable();
            if wanted && others.peek().is_none() {
                return Some(format!("{} requires {rule}, and its unit has none", info.version));
            }
            for (other, device) in others {
                let version = self.final_version(other, device);
                if version.and_then(|version| rule.names(version)) != Some(wanted) {
                    let verb = if wanted { "requires" } else { "does not go with" };
                    return Some(self.why(&format!("{} {verb} {rule}", info.version), other, version));
                }
            }
        }
        for hop in &candidate.hops {
            let others = self.candidates.values().filter(|other| other.planned.device != *id);
            for (other, (info, rule, wanted)) in others.flat_map(|other| other.rules().map(move |rule| (other, rule))) {
                if rule.component == hop.info.component && rule.names(&hop.info.version) != Some(wanted) {
                    let verb = if wanted { "requires" } else { "does not go with" };
                    return Some(format!(
                        "it goes over {} on its way, but {} for {} of the same unit {verb} {rule}",
                        hop.info.version, info.version, other.planned.device
                    ));
                }
            }
        }
        None
    }

    fn why(&self, rule: &str, other: &DeviceId, version: Option<&str>) -> String {
        let has = match (self.candidates.contains_key(other), version) {
            (true, Some(version)) => format!("gets {version} in this campaign"),
            (_, Some(version)) => format!("runs {version}, and this campaign does not change that"),
            (_, None) => "does not answer".to_owned(),
        };
        format!("{rule}, but {other} of the same unit {has}")
    }

    /// The candidates that have to come before one: what they run now would not do.
    fn prerequisites(&self, candidate: &Candidate<'a>) -> BTreeSet<&DeviceId> {
        let id = &candidate.planned.device;
        let would_do = |rule: &OtherComponent, device: &KnownDevice, wanted: bool| {
            let version = device.facts.version.as_deref();
            version.and_then(|version| rule.names(version)) == Some(wanted)
        };
        candidate
            .rules()
            .flat_map(|(_, rule, wanted)| {
                self.others(id, &rule.component)
                    .filter(move |(_, device)| !would_do(rule, device, wanted))
                    .map(|(other, _)| other)
            })
            .filter(|other| self.candidates.contains_key(*other))
            .collect()
    }

    /// Where servers are brought up, all firmware comes before the BIOS's settings.
    fn firmware_before(&self, candidate: &Candidate<'a>, kind: CampaignKind) -> impl Iterator<Item = &DeviceId> {
        let comes_last = kind == CampaignKind::Provisioning && is_settings(&candidate.release.info);
        let firmware = self
            .candidates
            .iter()
            .filter(|(_, other)| !is_settings(&other.release.info));
        firmware.filter(move |_| comes_last).map(|(id, _)| id)
    }

    /// One after the other: by component, but for what has to wait for another.
    fn into_order(self, ordering: Ordering<'_>, held: &mut BTreeMap<DeviceId, String>) -> Vec<Candidate<'a>> {
        let prerequisites: BTreeMap<DeviceId, BTreeSet<DeviceId>> = self
            .candidates
            .iter()
            .map(|(id, candidate)| {
                let required = self.prerequisites(candidate).into_iter();
                let firmware = self.firmware_before(candidate, ordering.kind);
                (id.clone(), required.chain(firmware).cloned().collect())
            })
            .collect();
        let mut waiting: Vec<_> = self.candidates.into_values().collect();
        waiting.sort_by_key(|candidate| rank(&candidate.release.info, ordering));
        let mut order: Vec<Candidate<'a>> = Vec::with_capacity(waiting.len());
        let mut done = BTreeSet::new();
        while let Some(next) = waiting
            .iter()
            .position(|candidate| prerequisites[&candidate.planned.device].is_subset(&done))
        {
            let mut candidate = waiting.remove(next);
            candidate.planned.after = order.last().map(|before| before.planned.device.clone());
            done.insert(candidate.planned.device.clone());
            order.push(candidate);
        }
        for candidate in waiting {
            let others: Vec<_> = prerequisites[&candidate.planned.device]
                .difference(&done)
                .map(ToString::to_string)
                .collect();
            let reason = format!(
                "what the releases of its unit require runs in a circle: it would have to come after {}",
                others.join(", ")
            );
            held.insert(candidate.planned.device, reason);
        }
        keep_what_is_relied_on(&mut order);
        order
    }
}

/// Leaves no way back to those whose version before would not do for one that stays. The last first: who has no way back
/// stays as well.
fn keep_what_is_relied_on(order: &mut [Candidate<'_>]) {
    for at in (0..order.len()).rev() {
        let (going, from) = (&order[at].release.info.component, &order[at].planned.from_version);
        let says = |rules: &[OtherComponent], wanted: bool| {
            let mut about = rules.iter().filter(|rule| rule.component == *going);
            about.all(|rule| rule.names(from) == Some(wanted))
        };
        let stays = |candidate: &&Candidate<'_>| candidate.planned.previous.is_none();
        let would_do = |info: &ReleaseInfo| says(&info.requires, true) && says(&info.conflicts, false);
        let mut others = order.iter().enumerate().filter(|(other, _)| *other != at);
        if others.any(|(_, other)| stays(&other) && !would_do(&other.release.info)) {
            order[at].planned.previous = None;
        }
    }
}

fn is_settings(info: &ReleaseInfo) -> bool {
    info.component.as_str() == BIOS_SETTINGS
}

/// Where a component stands in the order of a unit. Settings are what the firmware is told: they come after all of it.
pub(super) fn rank(info: &ReleaseInfo, ordering: Ordering<'_>) -> (usize, usize) {
    let (after_all, is_settings) = (ORDER.len() + 2, is_settings(info));
    if is_settings && ordering.kind == CampaignKind::Provisioning {
        return (usize::MAX, after_all);
    }
    let own = ordering
        .sequences
        .iter()
        .find(|sequence| sequence.vendor == info.vendor);
    let listed = own.and_then(|sequence| sequence.order.iter().position(|name| *name == info.component));
    let name = info.component.as_str();
    let usual = match is_settings {
        true => after_all,
        false => ORDER
            .iter()
            .position(|known| *known == name)
            .unwrap_or_else(|| ORDER.len() + usize::from(name == LAST)),
    };
    (listed.unwrap_or(usize::MAX), usual)
}
