//! Do the waves follow from the strategy, and does each take its share of every rack?

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::TopologyPath,
    manifest::{CampaignManifest, Plan, PlannedDevice, Strategy},
    units::BasisPoints,
};

use super::rules::domain_of;
use crate::fleet::Inventory;

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

    /// The devices of each rack.
    fn of_racks(&self) -> BTreeMap<&TopologyPath, u64> {
        count(self.waves.iter().copied().flatten())
    }

    /// The devices of the largest unit, by what the waves say: one where there are no units.
    fn largest_unit(&self) -> u64 {
        let mut units = BTreeMap::<_, u64>::new();
        for planned in self.waves.iter().copied().flatten() {
            if let Some(unit) = planned.labels.unit() {
                *units.entry((&planned.node, unit)).or_default() += 1;
            }
        }
        units.into_values().max().unwrap_or(1)
    }
}

fn count<'a>(devices: impl Iterator<Item = &'a PlannedDevice>) -> BTreeMap<&'a TopologyPath, u64> {
    let mut counts = BTreeMap::new();
    for planned in devices {
        *counts.entry(&planned.rack).or_default() += 1;
    }
    counts
}

/// Where waves have to end.
enum Ends {
    /// After so many devices, each.
    At(BTreeSet<u64>),
    /// After so many more than the wave before, one wave after the other.
    Sizes(Vec<u64>),
}

pub(super) fn check(plan: &Plan, manifest: &CampaignManifest, inventory: &Inventory, wrong: &mut Vec<String>) {
    let all = || Stretch {
        first: 0,
        waves: plan.waves.iter().map(Vec::as_slice).collect(),
    };
    let at_shares = |total: u64, shares: &[BasisPoints]| {
        let ends = shares
            .iter()
            .map(|share| (total * u64::from(share.get())).div_ceil(10_000));
        Ends::At(ends.collect())
    };
    let waves = plan.waves.len();
    match &manifest.strategy {
        Strategy::Direct {} => check_stretch(&all(), &Ends::At(BTreeSet::from([all().total()])), wrong),
        Strategy::Canary { shares } => check_stretch(&all(), &at_shares(all().total(), shares), wrong),
        Strategy::Regional { order, shares } => {
            for stretch in by_place(plan, order, inventory, wrong) {
                check_stretch(&stretch, &at_shares(stretch.total(), shares), wrong);
            }
        }
        Strategy::BlueGreen { by, order, .. } => {
            for (number, wave) in plan.waves.iter().enumerate() {
                let pool = order.get(number).map(ToString::to_string);
                let is_in =
                    |planned: &&PlannedDevice| pool.is_some() && domain_of(by, &planned.rack, &planned.labels) == pool;
                if let Some(other) = wave.iter().find(|planned| !is_in(planned)) {
                    wrong.push(format!("wave {number} has {}, which is not of its pool", other.device));
                }
            }
            if waves != order.len() {
                wrong.push(format!("there are {waves} waves, and {} pools", order.len()));
            }
        }
        Strategy::Rolling { batch, .. } => {
            check_stretch(&all(), &Ends::Sizes(vec![u64::from(*batch); waves]), wrong);
        }
        Strategy::Growing { first, percent } => {
            let mut sizes = vec![u64::from(*first)];
            while sizes.len() < waves {
                let last = sizes[sizes.len() - 1];
                sizes.push(u64::from(u32::MAX).min((last * u64::from(*percent)).div_ceil(100)));
            }
            check_stretch(&all(), &Ends::Sizes(sizes), wrong);
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

fn check_stretch(stretch: &Stretch<'_>, ends: &Ends, wrong: &mut Vec<String>) {
    let (total, racks, unit) = (stretch.total(), stretch.of_racks(), stretch.largest_unit());
    let mut sum = 0;
    for (at, wave) in stretch.waves.iter().enumerate() {
        let number = stretch.first + at;
        let here = wave.len() as u64;
        // A wave that would end inside a unit goes to its end, and so may pass by where the next one was to end.
        let end = match ends {
            Ends::At(ends) => ends.range(sum + 1..).next().copied(),
            Ends::Sizes(sizes) => sizes.get(at).map(|size| total.min(sum + size)),
        };
        sum += here;
        if !end.is_some_and(|end| here > 0 && sum >= end && sum < end + unit) {
            wrong.push(format!(
                "wave {number} ends after {sum} of {total} devices, which is not what the strategy says"
            ));
        }
        // A rack may give a wave its own share and one unit of rounding, for itself and for the cut before.
        for (rack, of_rack) in count(wave.iter()) {
            let all = racks[rack];
            if of_rack * total > here * all + 2 * unit * total {
                wrong.push(format!(
                    "wave {number} takes {of_rack} of the {all} devices of {rack}, more than its share"
                ));
            }
        }
    }
    if let Ends::At(ends) = ends
        && total > 0
        && ends.last() != Some(&total)
    {
        wrong.push("the plan leaves out a wave that the strategy names".to_owned());
    }
}
