//! The fleet as a whole: places, baselines and how far devices are from them, and what campaigns rest on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CampaignState, DeviceStatus, OperationView, Reconciliation};
use crate::{
    ids::{CampaignId, Component, DeviceId, GroupId, NodeId, Sha256, TopologyPath},
    report::PermitKind,
    time::WallTime,
    trust::Envelope,
};

/// `GET /api/v1/sites`, `.../regions`: a place with all that stands at or below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlaceView {
    /// The place.
    pub path: TopologyPath,
    /// Its nodes.
    pub nodes: u32,
    /// Those that were not heard of lately.
    pub nodes_silent: u32,
    /// Devices that its nodes tell of.
    pub devices: u32,
    /// Devices by status.
    pub statuses: BTreeMap<DeviceStatus, u32>,
    /// Devices by what they are and run: vendor, model and component, then the version (empty: no answer).
    pub versions: BTreeMap<String, BTreeMap<String, u32>>,
}

/// `POST /api/v1/baselines`: what devices are to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBaseline {
    /// The baseline.
    pub id: GroupId,
    /// What it is for, for a person.
    #[serde(default)]
    #[schema(max_length = 2000)]
    pub description: String,
    /// The devices it is for; all, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Published releases by target name: one for each component of a model.
    #[schema(min_items = 1, max_items = 1000)]
    pub releases: Vec<String>,
    /// How devices that drift are brought back to it, if they are: by campaigns that approvers sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<Reconciliation>,
}

/// `PUT /api/v1/baselines/{id}`: what the baseline is from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BaselineEdit {
    /// What it is for, for a person.
    #[serde(default)]
    #[schema(max_length = 2000)]
    pub description: String,
    /// As in [`NewBaseline`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// As in [`NewBaseline`].
    #[schema(min_items = 1, max_items = 1000)]
    pub releases: Vec<String>,
    /// How devices that drift are brought back to it, if they are: by campaigns that approvers sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<Reconciliation>,
}

/// `GET /api/v1/baselines/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BaselineView {
    /// The baseline.
    pub id: GroupId,
    /// What it is for, for a person.
    pub description: String,
    /// The devices it is for, as the coordinator prints it; all, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Its releases.
    pub releases: Vec<String>,
    /// Those of them that nobody signs for any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// How devices that drift are brought back to it, if they are: by campaigns that approvers sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<Reconciliation>,
    /// Another one with every change: the number in the `ETag`.
    pub version: u64,
}

/// How a device stands to a baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriftState {
    /// It runs what it is to run.
    Compliant,
    /// It runs something older, or the same under another name.
    Behind,
    /// It runs something newer.
    Ahead,
    /// It does not say what it runs.
    Unknown,
    /// The baseline has no release for it.
    NotCovered,
}

impl DriftState {
    /// Whether it runs something else than it is to run.
    #[must_use]
    pub fn is_drift(self) -> bool {
        matches!(self, Self::Behind | Self::Ahead)
    }
}

/// `GET /api/v1/baselines/{id}/drift`: one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DriftView {
    /// The device.
    pub device: DeviceId,
    /// Where its node stands.
    pub path: TopologyPath,
    /// The component that is updated.
    pub component: Component,
    /// What it runs.
    pub version: Option<String>,
    /// What it is to run.
    pub wanted: Option<String>,
    /// The release of that.
    pub release: Option<String>,
    /// How the two compare.
    pub state: DriftState,
}

/// `GET /api/v1/compliance`: one baseline in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ComplianceView {
    /// The baseline.
    pub baseline: GroupId,
    /// Devices that it is for.
    pub devices: u32,
    /// Those by state.
    pub states: BTreeMap<DriftState, u32>,
    /// Those by site and state.
    #[schema(value_type = Object)]
    pub sites: BTreeMap<TopologyPath, BTreeMap<DriftState, u32>>,
}

/// `GET /api/v1/permits`: one permit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PermitView {
    /// The campaign.
    pub campaign: CampaignId,
    /// Its sequence in the campaign.
    pub sequence: u64,
    /// Update or rollback.
    #[schema(value_type = String)]
    pub kind: PermitKind,
    /// The nodes of its devices.
    pub nodes: Vec<NodeId>,
    /// No start after this moment.
    pub expires: WallTime,
    /// Whether that is still to come.
    pub in_force: bool,
    /// What was signed.
    #[schema(value_type = Object)]
    pub envelope: Envelope,
}

/// `GET /api/v1/approvals`: a signed file in force, or a campaign that waits for signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApprovalView {
    /// The file, as it is fetched; or the target name of a campaign's manifest that is not signed yet.
    pub file: String,
    /// Its version, where it is in force.
    pub version: Option<u64>,
    /// Whether it has the signatures that it needs.
    pub approved: bool,
    /// How many keys must sign.
    pub threshold: u32,
    /// The ids of the keys that may sign.
    pub key_ids: Vec<String>,
    /// The ids of the keys that have signed.
    pub signed_by: Vec<String>,
}

/// `GET /api/v1/windows`: when a campaign's devices may start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WindowsView {
    /// The campaign.
    pub campaign: CampaignId,
    /// Its state.
    pub state: CampaignState,
    /// The windows, as signed; any time if empty.
    #[schema(value_type = Vec<Object>)]
    pub windows: Vec<crate::window::Window>,
    /// When nothing starts, as signed.
    #[schema(value_type = Vec<Object>)]
    pub blackouts: Vec<crate::window::Blackout>,
}

/// `GET /api/v1/policies`: the rules that a campaign's approvers have signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyView {
    /// The campaign.
    pub campaign: CampaignId,
    /// Its state.
    pub state: CampaignState,
    /// SHA-256 of its plan.
    pub plan_sha256: Sha256,
    /// The manifest's rules: strategy, caps, gate, deadlines, constraints, priority.
    #[schema(value_type = Object)]
    pub rules: serde_json::Map<String, serde_json::Value>,
}

/// `POST /api/firmware/check`: what devices run, and what there is for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FirmwareCheck {
    /// These devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1000)]
    pub devices: Vec<DeviceId>,
    /// Devices for which this holds; not together with `devices`. The first 1,000 of all, if neither is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// One device of a [`FirmwareCheck`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FirmwareChecked {
    /// The device.
    pub device: DeviceId,
    /// The component that is updated.
    pub component: Component,
    /// What it runs.
    pub version: Option<String>,
    /// The newest release that is approved for it.
    pub newest: Option<String>,
    /// That release.
    pub release: Option<String>,
    /// Whether the newest is newer than what it runs; null if it does not say what it runs.
    pub update_available: Option<bool>,
    /// The campaign that is going to update it, or does.
    pub campaign: Option<CampaignId>,
}

/// `POST /api/firmware/update`: starts a campaign that is approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FirmwareUpdate {
    /// The campaign: what it updates is in what its approvers have signed.
    pub campaign: CampaignId,
}

/// `GET /api/firmware/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FirmwareStatus {
    /// Devices that nodes tell of, by status.
    pub devices: BTreeMap<DeviceStatus, u32>,
    /// Devices that are registered, told of or not.
    pub registered: u64,
    /// Campaigns by state.
    pub campaigns: BTreeMap<CampaignState, u32>,
    /// Images at the origin.
    pub images: u32,
    /// Their bytes.
    pub image_bytes: u64,
    /// The newest repository sync.
    pub last_sync: Option<OperationView>,
}

/// `POST /api/v1/campaigns`: a campaign that waits for its approvers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CampaignDraftView {
    /// The campaign.
    pub id: CampaignId,
    /// `pending_approval`.
    pub state: CampaignState,
    /// The manifest as it is to be signed, with the plan's digest: exact text.
    pub manifest: String,
    /// SHA-256 of that text.
    pub manifest_sha256: Sha256,
    /// SHA-256 of the plan, which is at `/api/v1/plans/{sha256}`.
    pub plan_sha256: Sha256,
    /// Planned devices.
    pub devices: u32,
    /// Waves.
    pub waves: u32,
    /// Devices that the plan leaves out.
    pub held: u32,
    /// Another one with every change: the number in the `ETag`.
    pub version: u64,
}
