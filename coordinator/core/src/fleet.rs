//! The view of the fleet that campaigns are planned against: a snapshot, never a live handle.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::{DeviceId, NodeId, TopologyPath},
    report::DeviceFacts,
    trust::PublicKey,
};

/// One device as the coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDevice {
    /// What was last read from it.
    pub facts: DeviceFacts,
    /// The node that looks after it.
    pub node: NodeId,
    /// The node's key: reports signed with it are evidence.
    pub node_key: PublicKey,
    /// Where the node stands.
    pub path: TopologyPath,
    /// Whether its node was heard of lately.
    pub node_reachable: bool,
    /// Whether an earlier attempt left it quarantined and nobody has cleared it since.
    pub quarantined: bool,
}

/// All known devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The devices by name.
    pub devices: BTreeMap<DeviceId, KnownDevice>,
    /// Devices that operators have taken out of updates.
    pub excluded: BTreeMap<DeviceId, Exclusion>,
}

/// Why a device is not to be updated, whatever a campaign says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// An operator has disabled it.
    Disabled,
    /// An operator has removed it, and its node tells of it all the same.
    Removed,
}

impl Exclusion {
    /// Why it is held, for a person.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Disabled => "disabled: an operator has taken it out of updates",
            Self::Removed => "removed: an operator has removed it; register it again, or enable it",
        }
    }
}

/// The rack of a node's path: its parent, or the path itself at the top of the topology.
#[must_use]
pub fn rack_of(path: &TopologyPath) -> TopologyPath {
    path.parent().unwrap_or_else(|| path.clone())
}
