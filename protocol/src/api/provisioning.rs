//! Servers of a provisioning campaign, as operators see them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Component, DeviceId, NodeId},
    manifest::ProvisioningPhase,
    report::AttemptState,
};

/// How a server stands in a provisioning campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// The plan leaves it out: nothing of it is touched.
    Held,
    /// Nothing has been done to it yet.
    Waiting,
    /// It is on its way.
    UnderWay,
    /// Every component was read at the end and runs what was planned.
    Provisioned,
    /// It has stopped on its way, or was found otherwise at the end.
    NotProvisioned,
}

impl ServerState {
    /// Whether nothing more is done to it.
    #[must_use]
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Waiting | Self::UnderWay)
    }

    /// Its name, for a person.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Waiting => "waiting",
            Self::UnderWay => "under way",
            Self::Provisioned => "provisioned",
            Self::NotProvisioned => "not provisioned",
        }
    }
}

impl std::fmt::Display for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The servers of a provisioning campaign, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProvisioningView {
    /// All of them.
    pub servers: u32,
    /// By how they stand.
    pub states: BTreeMap<ServerState, u32>,
    /// By the phase they are in, or have ended in.
    pub phases: BTreeMap<ProvisioningPhase, u32>,
}

/// `GET /api/v1/campaigns/{id}/servers`: one server of a provisioning campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServerView {
    /// Its name: `NODE/UNIT`, or that of its one device where there is no unit.
    pub server: String,
    /// The node that looks after it.
    pub node: NodeId,
    /// The phase it is in, or has ended in.
    pub phase: ProvisioningPhase,
    /// How it stands.
    pub state: ServerState,
    /// Why; empty when the state says it all.
    pub reason: String,
    /// Its components, in the order in which they are brought where they are to be.
    pub components: Vec<ComponentView>,
}

/// One component of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ComponentView {
    /// The device.
    pub device: DeviceId,
    /// What it is.
    pub component: Component,
    /// The phase in which something is done to it.
    pub phase: ProvisioningPhase,
    /// The version it ran when the campaign was planned, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The versions that it goes over first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over: Vec<String>,
    /// The version that it is to run.
    pub to: String,
    /// Whether it ran that already, so that nothing is done to it.
    pub current: bool,
    /// Where its attempt stands, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AttemptState>,
    /// The version read last in this campaign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it stands so, or is held; empty when there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
