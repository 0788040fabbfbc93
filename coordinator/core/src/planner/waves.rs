//! Waves: an order that spreads devices over racks and nodes, cut as the strategy says.

use std::{cmp::Ordering, collections::BTreeMap};

use firmesh_protocol::{
    ids::TopologyPath,
    manifest::{PlannedDevice, Strategy},
    units::BasisPoints,
};

/// The waves of devices that come with where they stand; none is empty. The planner has held those that a regional
/// strategy names no place for.
pub(super) fn of(devices: Vec<(TopologyPath, PlannedDevice)>, strategy: &Strategy) -> Vec<Vec<PlannedDevice>> {
    let (at, devices): (Vec<_>, Vec<_>) = devices.into_iter().unzip();
    match strategy {
        Strategy::Direct {} => cut_at_shares(spread(devices), &[BasisPoints::WHOLE]),
        Strategy::Canary { shares } => cut_at_shares(spread(devices), shares),
        Strategy::Regional { order, shares } => {
            let mut places: Vec<Vec<PlannedDevice>> = order.iter().map(|_| Vec::new()).collect();
            for (path, device) in at.into_iter().zip(devices) {
                if let Some(place) = order.iter().position(|place| path.is_within(place)) {
                    places[place].push(device);
                }
            }
            let waves = |place| cut_at_shares(spread(place), shares);
            places.into_iter().flat_map(waves).collect()
        }
        Strategy::Rolling { batch } => cut_by_size(spread(devices), std::iter::repeat(*batch)),
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
/// every node.
fn spread(devices: Vec<PlannedDevice>) -> Vec<PlannedDevice> {
    let racks = group_by(devices, |device| device.rack.clone());
    interleave(racks.into_values().map(|rack| {
        let mut nodes = group_by(rack, |device| device.node.clone());
        nodes
            .values_mut()
            .for_each(|node| node.sort_by(|a, b| a.device.cmp(&b.device)));
        interleave(nodes.into_values())
    }))
}

/// Cuts the order at cumulative shares, each rounded up; a share that adds nobody makes no wave.
fn cut_at_shares(devices: Vec<PlannedDevice>, shares: &[BasisPoints]) -> Vec<Vec<PlannedDevice>> {
    let total = devices.len();
    let mut before = 0;
    let sizes = shares.iter().map(|share| {
        let upto = share.of_rounded_up(total);
        u32::try_from(upto - std::mem::replace(&mut before, upto)).unwrap_or(u32::MAX)
    });
    cut_by_size(devices, sizes)
}

/// Cuts the order into waves of these sizes; the last one has what is left.
fn cut_by_size(devices: Vec<PlannedDevice>, sizes: impl Iterator<Item = u32>) -> Vec<Vec<PlannedDevice>> {
    let mut rest = devices.into_iter();
    let mut waves = Vec::new();
    for size in sizes {
        if rest.len() == 0 {
            break;
        }
        let wave: Vec<_> = rest.by_ref().take(size as usize).collect();
        if !wave.is_empty() {
            waves.push(wave);
        }
    }
    waves
}

fn group_by<K: Ord>(devices: Vec<PlannedDevice>, key: impl Fn(&PlannedDevice) -> K) -> BTreeMap<K, Vec<PlannedDevice>> {
    let mut groups: BTreeMap<K, Vec<_>> = BTreeMap::new();
    for device in devices {
        groups.entry(key(&device)).or_default().push(device);
    }
    groups
}

/// Merges groups by relative position: member k of n stands at (2k + 1) / 2n, ties in the order of the groups. Groups
/// of one size are thereby dealt round-robin.
fn interleave<T>(groups: impl Iterator<Item = Vec<T>>) -> Vec<T> {
    let mut placed: Vec<(u64, u64, T)> = Vec::new();
    for group in groups {
        let size = group.len() as u64;
        placed.extend(
            (0..)
                .zip(group)
                .map(|(k, member): (u64, T)| (2 * k + 1, 2 * size, member)),
        );
    }
    placed.sort_by(|(a, of_a, _), (b, of_b, _)| -> Ordering { (a * of_b).cmp(&(b * of_a)) });
    placed.into_iter().map(|(_, _, member)| member).collect()
}
