//! Campaigns, their waves and plans.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ProvisioningView;
use crate::{
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    manifest::{CampaignManifest, HeldDevice},
    report::AttemptState,
};

/// Where a campaign stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CampaignState {
    /// Planned, and waiting for the signatures of its approvers. Nobody but the coordinator knows it.
    PendingApproval,
    /// Published with both thresholds, not started.
    Scheduled,
    /// Waves are opening.
    Active,
    /// No new starts until resumed.
    Paused,
    /// A gate failed: affected devices are going back.
    RollingBack,
    /// Every planned device ended as success or skipped.
    Completed,
    /// A gate failed, and every affected device that could go back has gone back.
    RolledBack,
    /// Ended without reaching its goal.
    Failed,
    /// Stopped by an operator.
    Cancelled,
}

impl CampaignState {
    /// Whether the campaign is over.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::RolledBack | Self::Failed | Self::Cancelled
        )
    }
}

/// A gate's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateVerdict {
    /// Not enough ended attempts to judge: holds.
    Unknown,
    /// Good enough to go on.
    Pass,
    /// Between the two thresholds: holds for a person.
    Hold,
    /// Below the rollback threshold.
    Fail,
}

/// One wave of a running campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WaveView {
    /// The wave, counted from 0.
    pub wave: u32,
    /// Devices in it.
    pub devices: u32,
    /// Devices by state.
    pub states: BTreeMap<AttemptState, u32>,
    /// Whether the wave was opened.
    pub open: bool,
    /// Its gate.
    pub gate: GateVerdict,
}

/// How many of a campaign's nodes have proven that they hold the images of their devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PossessionView {
    /// Nodes that look after a planned device.
    pub nodes: u32,
    /// Those that have proven every image they need, the ones to go back to included.
    pub proven: u32,
    /// Proofs that did not hold, by node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub wrong_proofs: BTreeMap<NodeId, u32>,
}

/// `GET /api/v1/campaigns/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CampaignView {
    /// The campaign.
    pub id: CampaignId,
    /// Where it stands.
    pub state: CampaignState,
    /// The wave that was opened last, counted from 0. A rolling campaign may have others open before it.
    pub wave: u32,
    /// All waves.
    pub waves: Vec<WaveView>,
    /// All planned devices by state.
    pub states: BTreeMap<AttemptState, u32>,
    /// Which nodes have proven that they hold what their devices get.
    #[serde(default)]
    pub possession: PossessionView,
    /// Devices left out by the plan.
    pub held: Vec<HeldDevice>,
    /// How its servers stand, if it is for provisioning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioning: Option<ProvisioningView>,
    /// Why it stands where it stands.
    pub reason: String,
}

/// One thing a campaign waits for or has decided, with what shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explanation {
    /// What it is about: the campaign, a wave, a device.
    pub subject: String,
    /// What holds or what was decided, for a person.
    pub finding: String,
    /// Facts that show it.
    pub evidence: Vec<String>,
}

/// `POST /api/v1/campaigns/{id}/close`: ends an attempt that nobody reports the end of, or a whole campaign with all that is
/// in flight. What may have been touched is quarantined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloseRequest {
    /// The device whose attempt is closed; the whole campaign if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    /// Why, for those who will ask.
    pub reason: String,
}

/// `POST /api/v1/plans`: plan a draft against the inventory as it is now. The draft's `plan_sha256` is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The draft.
    #[schema(value_type = Object)]
    pub manifest: CampaignManifest,
}

/// The plan, as exact text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlanResponse {
    /// The plan's exact bytes (JSON).
    pub plan: String,
    /// Their digest, for the manifest.
    pub plan_sha256: Sha256,
}

/// The parts of a campaign that is for more devices than one may have: drafts, each for places of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SplitResponse {
    /// The drafts; the one that was sent, if it is small enough.
    #[schema(value_type = Vec<Object>)]
    pub parts: Vec<CampaignManifest>,
}

/// `GET /api/v1/campaigns/{id}/status`: where a campaign stands, in a few lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CampaignStatus {
    /// The campaign.
    pub id: CampaignId,
    /// Where it stands.
    pub state: CampaignState,
    /// The wave in progress, counted from 0.
    pub wave: u32,
    /// How many waves it has.
    pub waves: u32,
    /// Whether it is over.
    pub ended: bool,
    /// Why it stands where it stands.
    pub reason: String,
}

/// `GET /api/v1/campaigns/{id}/metrics`: the campaign in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CampaignMetrics {
    /// The campaign.
    pub id: CampaignId,
    /// Planned devices.
    pub devices: u32,
    /// Those whose attempt is over, however it ended.
    pub ended: u32,
    /// Those that ended well.
    pub succeeded: u32,
    /// Planned devices by state.
    pub states: BTreeMap<AttemptState, u32>,
    /// The waves, each with its devices by state and its gate.
    pub waves: Vec<WaveView>,
    /// Devices that the plan left out.
    pub held: u32,
    /// Which nodes have proven that they hold what their devices get.
    pub possession: PossessionView,
}
