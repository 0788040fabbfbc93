//! Waves: an order that spreads devices over racks and nodes, cut as the strategy says.
//!
//! Invariant: no cut goes through a unit. Where a wave would end inside one, it takes the whole of it.

use std::{cmp::Ordering, collections::BTreeMap};

use firmesh_protocol::{
    ids::{NodeId, TopologyPath},
    manifest::{PlannedDevice, Strategy},
    units::BasisPoints,
};

/// What goes into one wave together: a device, or those of a unit one after the other.
pub(super) type Together = Vec<PlannedDevice>;

/// The waves of devices that come with where they stand; none is empty, but for pools. The planner has held those that a regional
/// strategy names no place for, and those in no pool.
pub(super) fn of(devices: Vec<(&TopologyPath, Together)>, strategy: &Strategy) -> Vec<Vec<PlannedDevice>> {
    let (at, devices): (Vec<_>, Vec<_>) = devices.into_iter().unzip();
    match strategy {
        Strategy::Direct {} => cut_at_shares(spread(devices), &[BasisPoints::WHOLE]),
        Strategy::Canary { shares } => cut_at_shares(spread(devices), shares),
        Strategy::Regional { order, shares } => {
            let mut places: Vec<Vec<Together>> = order.iter().map(|_| Vec::new()).collect();
            for (path, device) in at.into_iter().zip(devices) {
                if let Some(place) = order.iter().position(|place| path.is_within(place)) {
                    places[place].push(device);
                }
            }
            let waves = |place| cut_at_shares(spread(place), shares);
            places.into_iter().flat_map(waves).collect()
        }
        Strategy::BlueGreen { by, order, .. } => {
            let mut pools: Vec<Vec<Together>> = order.iter().map(|_| Vec::new()).collect();
            for together in devices {
                let pool = together.first().and_then(|first| by.domain(&first.rack, &first.labels));
                if let Some(at) = order.iter().position(|name| Some(name) == pool.as_ref()) {
                    pools[at].push(together);
                }
            }
            // Also one without devices has its turn: the other one is still the other one.
            pools
                .into_iter()
                .map(|pool| spread(pool).into_iter().flatten().collect())
                .collect()
        }
        Strategy::Rolling { batch, .. } => cut_by_size(spread(devices), std::iter::repeat(*batch)),
        Strategy::Growing { first, percent } => {
            let larger = |batch: &u32| {
                let next = (u64::from(*batch) * u64::from(*percent)).div_ceil(100);
                Some(u32::try_from(next).unwrap_or(u32::MAX))
            };
            cut_by_size(spread(devices), std::iter::successors(Some(*first), larger))
        }
    }
}

/// Orders devices so that every stretch of the order takes about the same share of every rack, and within a rack of
/// every node. They come in the order of their names.
fn spread(devices: Vec<Together>) -> Vec<Together> {
    let mut nodes: BTreeMap<NodeId, Vec<Together>> = BTreeMap::new();
    for together in devices {
        let Some(node) = together.first().map(|first| &first.node) else {
            continue;
        };
        match nodes.get_mut(node) {
            Some(node) => node.push(together),
            None => drop(nodes.insert(node.clone(), vec![together])),
        }
    }
    let mut racks: BTreeMap<TopologyPath, Vec<Vec<Together>>> = BTreeMap::new();
    for node in nodes.into_values() {
        racks.entry(node[0][0].rack.clone()).or_default().push(node);
    }
    interleave(racks.into_values().map(interleave).collect())
}

/// Cuts the order at cumulative shares, each rounded up; a share that adds nobody makes no wave.
fn cut_at_shares(devices: Vec<Together>, shares: &[BasisPoints]) -> Vec<Vec<PlannedDevice>> {
    let total = devices.iter().map(Vec::len).sum();
    let mut ends = shares.iter().map(|share| share.of_rounded_up(total));
    cut(devices, |_| ends.next())
}

/// Cuts the order into waves of these sizes; the last one has what is left.
fn cut_by_size(devices: Vec<Together>, mut sizes: impl Iterator<Item = u32>) -> Vec<Vec<PlannedDevice>> {
    cut(devices, |taken| Some(taken + sizes.next()? as usize))
}

/// `next` says after how many devices a wave is to end that begins after so many.
fn cut(devices: Vec<Together>, mut next: impl FnMut(usize) -> Option<usize>) -> Vec<Vec<PlannedDevice>> {
    let mut rest = devices.into_iter();
    let (mut waves, mut taken) = (Vec::new(), 0);
    while rest.len() > 0
        && let Some(end) = next(taken)
    {
        let mut wave = Vec::with_capacity(end.saturating_sub(taken).min(rest.len()));
        while taken < end
            && let Some(together) = rest.next()
        {
            taken += together.len();
            wave.extend(together);
        }
        if !wave.is_empty() {
            waves.push(wave);
        }
    }
    waves
}

/// Merges groups by relative position: what stands in the middle of a group stands in the middle of all, ties in the order
/// of the groups. Groups of one size are thereby dealt round-robin.
fn interleave(groups: Vec<Vec<Together>>) -> Vec<Together> {
    let mut placed: Vec<(u64, u64, Together)> = Vec::with_capacity(groups.iter().map(Vec::len).sum());
    for group in groups {
        let size: u64 = group.iter().map(|together| together.len() as u64).sum();
        let mut before = 0;
        for together in group {
            let here = together.len() as u64;
            placed.push((2 * before + here, 2 * size, together));
            before += here;
        }
    }
    placed.sort_by(|(a, of_a, _), (b, of_b, _)| -> Ordering { (a * of_b).cmp(&(b * of_a)) });
    placed.into_iter().map(|(_, _, together)| together).collect()
}
