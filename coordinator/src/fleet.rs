//! The fleet's devices in memory: a million of them are of a few thousand kinds, and each of these is kept once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeBounds,
    sync::Arc,
};

use firmesh_protocol::{
    ids::{Component, DeviceId, LabelValue, NodeId},
    labels::Labels,
    report::{DeviceFacts, Facts},
    time::WallTime,
};

use crate::store::StoredDevice;

/// So many kinds are kept before it is looked whether any device is of them.
const KINDS_MIN: usize = 64;

/// All devices, by name.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    devices: BTreeMap<DeviceId, Known>,
    kinds: BTreeSet<Arc<Kind>>,
    /// How many kinds there may be until those are looked for that no device is of any more.
    kinds_most: usize,
}

/// A device that is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Device<'a> {
    /// What was last read from it.
    pub(crate) facts: Facts<'a>,
    /// The node that looks after it.
    pub(crate) node: &'a NodeId,
    /// When the node last told.
    pub(crate) last_seen: WallTime,
}

impl<'a> Device<'a> {
    /// The unit it is a part of: named at its node.
    pub(crate) fn unit(self) -> Option<(&'a NodeId, &'a LabelValue)> {
        Some((self.node, self.facts.labels.unit()?))
    }
}

#[derive(Debug)]
struct Known {
    kind: Arc<Kind>,
    labels: Labels,
    node: NodeId,
    last_seen: WallTime,
}

/// What is the same of many devices.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    vendor: String,
    model: String,
    component: Component,
    version: Option<String>,
    executor: String,
}

impl Known {
    fn as_device<'a>(&'a self, device: &'a DeviceId) -> Device<'a> {
        let kind = &*self.kind;
        Device {
            facts: Facts {
                device,
                vendor: &kind.vendor,
                model: &kind.model,
                component: &kind.component,
                version: kind.version.as_deref(),
                executor: &kind.executor,
                labels: &self.labels,
            },
            node: &self.node,
            last_seen: self.last_seen,
        }
    }
}

impl Fleet {
    pub(crate) fn len(&self) -> usize {
        self.devices.len()
    }

    pub(crate) fn contains(&self, device: &DeviceId) -> bool {
        self.devices.contains_key(device)
    }

    pub(crate) fn get(&self, device: &DeviceId) -> Option<Device<'_>> {
        let (device, known) = self.devices.get_key_value(device)?;
        Some(known.as_device(device))
    }

    /// All, in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Device<'_>> {
        self.range(..)
    }

    /// Those of these names, in their order.
    pub(crate) fn range(&self, names: impl RangeBounds<DeviceId>) -> impl Iterator<Item = Device<'_>> {
        let devices = self.devices.range(names);
        devices.map(|(device, known)| known.as_device(device))
    }

    /// A device that is new, or of which something is.
    pub(crate) fn keep(&mut self, device: StoredDevice) {
        let StoredDevice { facts, node, last_seen } = device;
        let DeviceFacts {
            device,
            vendor,
            model,
            component,
            version,
            executor,
            labels,
        } = facts;
        let kind = self.kind(Kind {
            vendor,
            model,
            component,
            version,
            executor,
        });
        let known = Known {
            kind,
            labels,
            node,
            last_seen,
        };
        self.devices.insert(device, known);
    }

    /// Its node has told of a device, and nothing is new.
    pub(crate) fn seen(&mut self, device: &DeviceId, at: WallTime) {
        if let Some(known) = self.devices.get_mut(device) {
            known.last_seen = at;
        }
    }

    /// Forgets a device.
    pub(crate) fn remove(&mut self, device: &DeviceId) {
        self.devices.remove(device);
    }

    fn kind(&mut self, kind: Kind) -> Arc<Kind> {
        if let Some(known) = self.kinds.get(&kind) {
            return Arc::clone(known);
        }
        if self.kinds.len() >= self.kinds_most {
            self.kinds.retain(|kind| Arc::strong_count(kind) > 1);
            self.kinds_most = KINDS_MIN.max(2 * self.kinds.len());
        }
        let kind = Arc::new(kind);
        self.kinds.insert(Arc::clone(&kind));
        kind
    }
}

impl FromIterator<StoredDevice> for Fleet {
    fn from_iter<T: IntoIterator<Item = StoredDevice>>(devices: T) -> Self {
        let mut fleet = Self::default();
        devices.into_iter().for_each(|device| fleet.keep(device));
        fleet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: u32, version: u32) -> StoredDevice {
        StoredDevice {
            facts: DeviceFacts {
                device: DeviceId::new(format!("d{number}")).unwrap(),
                vendor: "Acme".to_owned(),
                model: "R1".to_owned(),
                component: Component::new("bmc").unwrap(),
                version: (version > 0).then(|| format!("1.{version}")),
                executor: "redfish".to_owned(),
                labels: Labels::default(),
            },
            node: "r1-n1".parse().unwrap(),
            last_seen: WallTime::from_unix_seconds(7),
        }
    }

    #[test]
    fn a_device_is_what_was_kept_of_it() {
        let mut fleet: Fleet = [device(1, 0), device(2, 3)].into_iter().collect();
        fleet.keep(device(1, 4));
        fleet.seen(&"d2".parse().unwrap(), WallTime::from_unix_seconds(9));
        let told = |device: Device<'_>| (device.facts.to_kept(), device.node.clone(), device.last_seen);
        let (first, second) = (device(1, 4), device(2, 3));
        let at = WallTime::from_unix_seconds;
        let kept = [(first.facts, first.node, at(7)), (second.facts, second.node, at(9))];
        assert_eq!(fleet.iter().map(told).collect::<Vec<_>>(), kept);
        fleet.remove(&"d1".parse().unwrap());
        assert!(!fleet.contains(&"d1".parse().unwrap()) && fleet.len() == 1);
    }

    #[test]
    fn kinds_that_no_device_is_of_any_more_are_let_go() {
        let mut fleet = Fleet::default();
        (1..1_000).for_each(|version| fleet.keep(device(version % 10, version)));
        assert!(fleet.kinds.len() <= KINDS_MIN, "{} kinds", fleet.kinds.len());
        assert!(size_of::<Known>() <= 56);
    }
}
