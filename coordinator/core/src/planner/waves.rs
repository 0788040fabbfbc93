//! Waves: an order that spreads devices over racks and nodes, cut at cumulative shares.

use std::{cmp::Ordering, collections::BTreeMap};

use firmesh_protocol::{manifest::PlannedDevice, units::BasisPoints};

/// Orders devices so that every stretch of the order takes about the same share of every rack, and within a rack of
/// every node.
pub(super) fn spread(devices: Vec<PlannedDevice>) -> Vec<PlannedDevice> {
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
pub(super) fn cut(devices: Vec<PlannedDevice>, shares: &[BasisPoints]) -> Vec<Vec<PlannedDevice>> {
    let total = devices.len();
    let mut rest = devices.into_iter();
    let mut taken = 0;
    let mut waves = Vec::new();
    for share in shares {
        let wave: Vec<_> = rest.by_ref().take(share.of_rounded_up(total) - taken).collect();
        taken += wave.len();
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
