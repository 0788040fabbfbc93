//! Devices and their attempts.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CampaignId, DeviceId, NodeId, TopologyPath},
    report::{AttemptState, DeviceFacts},
    time::WallTime,
};

/// `GET /api/v1/devices`: one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceView {
    /// What was last read from it.
    pub facts: DeviceFacts,
    /// The node that looks after it.
    pub node: NodeId,
    /// Where the node stands.
    pub path: TopologyPath,
    /// When the node last told.
    pub last_seen: WallTime,
    /// Its running or last attempt.
    pub attempt: Option<AttemptView>,
}

/// Where one device stands in one campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptView {
    /// The campaign.
    pub campaign: CampaignId,
    /// The device.
    pub device: DeviceId,
    /// The wave, counted from 0.
    pub wave: u32,
    /// The state.
    pub state: AttemptState,
    /// Why, for a person.
    pub reason: String,
    /// The version last read back.
    pub version: Option<String>,
}
