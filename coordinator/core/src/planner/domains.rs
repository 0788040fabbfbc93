//! How large the capped fault domains are, and what the caps come to.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::{NodeId, TopologyPath},
    manifest::{Caps, Dimension, DomainShare, PlannedDevice},
};

use crate::fleet::{Inventory, KnownDevice, rack_of};

type Shares = BTreeMap<TopologyPath, DomainShare>;

/// The domains of every capped dimension, with all known devices counted.
#[derive(Debug)]
pub(super) struct Domains<'a> {
    caps: &'a Caps,
    shares: BTreeMap<Dimension, Shares>,
}

impl<'a> Domains<'a> {
    pub(super) fn count(inventory: &Inventory, caps: &'a Caps) -> Self {
        let mut shares = BTreeMap::new();
        if !caps.domains.is_empty() {
            let mut nodes: BTreeMap<&NodeId, Vec<&KnownDevice>> = BTreeMap::new();
            for device in inventory.devices.values() {
                nodes.entry(&device.node).or_default().push(device);
            }
            for cap in &caps.domains {
                let mut counts: BTreeMap<TopologyPath, u32> = BTreeMap::new();
                for devices in nodes.values() {
                    count_node(&cap.by, devices, &mut counts);
                }
                let share = |devices| DomainShare {
                    devices,
                    at_most: cap.at_most.of(devices),
                };
                let of_dimension: Shares = counts
                    .into_iter()
                    .map(|(domain, count)| (domain, share(count)))
                    .collect();
                shares.insert(cap.by.clone(), of_dimension);
            }
        }
        Self { caps, shares }
    }

    /// Why the caps cannot tell where a device stands, if they cannot: what is not known holds.
    pub(super) fn problem(&self, planned: &PlannedDevice) -> Option<String> {
        let of_rule = |rule: &'a firmesh_protocol::manifest::NeverTogether| [Some(&rule.by), rule.within.as_ref()];
        let asked = self.caps.domains.iter().map(|cap| &cap.by);
        let mut asked = asked.chain(self.caps.never_together.iter().flat_map(of_rule).flatten());
        let missing = asked.find(|by| by.domain(&planned.rack, &planned.labels).is_none())?;
        Some(match missing {
            Dimension::Label(name) => {
                format!("it has no label {name}, by which the caps count: give it one in its node's configuration")
            }
            level => format!(
                "it stands at {}, which is in no {level}, by which the caps count",
                planned.rack
            ),
        })
    }

    /// The domains in which planned devices stand.
    pub(super) fn of(&self, waves: &[Vec<PlannedDevice>]) -> BTreeMap<Dimension, Shares> {
        let mut used: BTreeMap<Dimension, Shares> = BTreeMap::new();
        for (by, shares) in &self.shares {
            let of_dimension = used.entry(by.clone()).or_default();
            for planned in waves.iter().flatten() {
                if let Some(domain) = by.domain(&planned.rack, &planned.labels)
                    && let Some(share) = shares.get(&domain)
                {
                    of_dimension.insert(domain, *share);
                }
            }
        }
        used.retain(|_, shares| !shares.is_empty());
        used
    }
}

/// Counts the devices of one node, which stand in one place.
fn count_node(by: &Dimension, devices: &[&KnownDevice], counts: &mut BTreeMap<TopologyPath, u32>) {
    let Some(first) = devices.first() else {
        return;
    };
    let rack = rack_of(&first.path);
    let mut add = |device: &KnownDevice, count: usize| {
        if let Some(domain) = by.domain(&rack, &device.facts.labels) {
            *counts.entry(domain).or_default() += u32::try_from(count).unwrap_or(u32::MAX);
        }
    };
    match by {
        Dimension::Label(_) => devices.iter().for_each(|device| add(device, 1)),
        _ => add(first, devices.len()),
    }
}
