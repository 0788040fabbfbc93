//! Devices and their attempts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::TranscriptView;
use crate::{
    ids::{ArtifactId, CampaignId, Component, DeviceId, GroupId, NodeId, Sha256, TopologyPath},
    report::{AttemptState, DeviceFacts},
    time::WallTime,
};

/// `GET /api/v1/devices`: one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceView {
    /// What was last read from it.
    pub facts: DeviceFacts,
    /// The node that looks after it; nobody has told of a device yet that was only registered.
    pub node: Option<NodeId>,
    /// Where the node stands, or the device was registered to stand.
    pub path: TopologyPath,
    /// When the node last told.
    pub last_seen: Option<WallTime>,
    /// Where it stands, over everything that is known of it.
    pub status: DeviceStatus,
    /// The same in one of four words.
    pub phase: DevicePhase,
    /// Whether campaigns that are planned from now on may touch it.
    pub enabled: bool,
    /// Its running or last attempt.
    pub attempt: Option<AttemptView>,
    /// What operators have said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
    /// What it last said of itself. Nobody decides anything by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Said>,
    /// The name of the profile that it has its credentials from, by its node's word. Only of one device at a time; absent where
    /// the device names credentials of its own, or needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_profile: Option<String>,
}

/// Where a device stands: the states of attempts, and what a device is outside of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceStatus {
    /// Registered, and not yet told of by any node.
    Registered,
    /// Nothing is planned for it.
    Idle,
    /// Taken out of updates by an operator.
    Disabled,
    /// It, or its node, does not answer.
    Offline,
    /// Planned, not permitted.
    Pending,
    /// Permitted, but its window is closed.
    WaitingWindow,
    /// Permitted, but something stands in the way.
    Blocked,
    /// The image is on its way.
    Downloading,
    /// The image is being checked.
    Verifying,
    /// The image lies on the device, inactive.
    Staged,
    /// The device is writing.
    Installing,
    /// The device restarts.
    Rebooting,
    /// The device answers again and is being checked.
    Validating,
    /// Its last attempt ended with the new version.
    Success,
    /// Its last attempt ended with the old version.
    Failed,
    /// Its last attempt ended with the previous version restored.
    RolledBack,
    /// Its last attempt had nothing to do.
    Skipped,
    /// Its last attempt ended before it touched the device.
    Cancelled,
    /// Its last attempt ended at a deadline.
    TimedOut,
    /// Out of service until a person looks at it.
    Quarantined,
}

/// A device's status in one of four words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DevicePhase {
    /// Nothing happens to it.
    Idle,
    /// An attempt is running.
    Updating,
    /// Its last attempt did not reach the new version.
    Failed,
    /// Its last attempt did.
    Success,
}

impl From<AttemptState> for DeviceStatus {
    fn from(state: AttemptState) -> Self {
        match state {
            AttemptState::Pending => Self::Pending,
            AttemptState::WaitingWindow => Self::WaitingWindow,
            AttemptState::Blocked => Self::Blocked,
            AttemptState::Downloading => Self::Downloading,
            AttemptState::Verifying => Self::Verifying,
            AttemptState::Staged => Self::Staged,
            AttemptState::Installing => Self::Installing,
            AttemptState::Rebooting => Self::Rebooting,
            AttemptState::Validating => Self::Validating,
            AttemptState::Success => Self::Success,
            AttemptState::Failed => Self::Failed,
            AttemptState::RolledBack => Self::RolledBack,
            AttemptState::Skipped => Self::Skipped,
            AttemptState::Cancelled => Self::Cancelled,
            AttemptState::TimedOut => Self::TimedOut,
            AttemptState::Quarantined => Self::Quarantined,
        }
    }
}

impl DeviceStatus {
    /// What a device is that a node has told of: what is running counts first, then what keeps it from being updated, then
    /// how its last attempt ended.
    #[must_use]
    pub fn of(attempt: Option<AttemptState>, enabled: bool, answers: bool) -> Self {
        match attempt {
            Some(state) if !state.is_terminal() => state.into(),
            _ if !enabled => Self::Disabled,
            Some(AttemptState::Quarantined) => Self::Quarantined,
            _ if !answers => Self::Offline,
            Some(state) => state.into(),
            None => Self::Idle,
        }
    }

    /// Its phase.
    #[must_use]
    pub fn phase(self) -> DevicePhase {
        match self {
            Self::Registered
            | Self::Idle
            | Self::Disabled
            | Self::Offline
            | Self::Pending
            | Self::Skipped
            | Self::Cancelled => DevicePhase::Idle,
            Self::WaitingWindow
            | Self::Blocked
            | Self::Downloading
            | Self::Verifying
            | Self::Staged
            | Self::Installing
            | Self::Rebooting
            | Self::Validating => DevicePhase::Updating,
            Self::Success => DevicePhase::Success,
            Self::Failed | Self::RolledBack | Self::TimedOut | Self::Quarantined => DevicePhase::Failed,
        }
    }
}

/// What operators have said of a device. What identifies it to people (`hardware_id`, `metadata`, `identity`) is shown to those
/// only who have `identity:read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Registration {
    /// What stands on the device: its serial number, MAC address or the like. Unique in the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_id: Option<String>,
    /// Who makes it.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// The component that is updated.
    pub component: Component,
    /// Where it is to stand; the first segment is its region.
    pub region: TopologyPath,
    /// Labels, in order, each once. Whoever may see the device sees them.
    pub tags: Vec<String>,
    /// Whatever else is worth knowing.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// What else identifies it to people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<DeviceIdentity>,
    /// Whether the coordinator made its name, which then says nothing of it and may stay when the device is erased.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pseudonymous: bool,
    /// When it was registered.
    pub registered: WallTime,
    /// What does not fit what the device's node has read from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
    /// Why it is to stay as it is: campaigns that are planned leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub held: Option<String>,
}

/// What identifies a device to people, beside its hardware id. It is kept encrypted under a key of the device's own, and is gone
/// with that key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceIdentity {
    /// Its host name; found whether large or small letters are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub hostname: Option<String>,
    /// The number that its owner has put on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub asset_tag: Option<String>,
    /// At most 16 addresses; found whether large or small letters are asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub owner: Option<String>,
    /// Who is to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub contact: Option<String>,
    /// Labels that are nobody else's business: at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// `POST /api/v1/devices` and `POST /api/v1/devices/register`: a device that a node is going to tell of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDevice {
    /// Its name, under which its node will tell of it. If absent: a name that the coordinator makes and that says nothing of
    /// the device, where there is an `identity`; otherwise its hardware id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// As in [`Registration`].
    #[schema(min_length = 1, max_length = 128, pattern = "^[!-~]([ -~]*[!-~])?$")]
    pub hardware_id: String,
    /// Who makes it, as in published releases.
    #[schema(min_length = 1, max_length = 128)]
    pub vendor: String,
    /// Its model, as in published releases.
    #[schema(min_length = 1, max_length = 128)]
    pub model: String,
    /// The component that is updated.
    pub component: Component,
    /// As in [`Registration`]; `default`, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<TopologyPath>,
    /// At most 32 labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// At most 8 KiB.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// What identifies it to people; may be empty, for the sake of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<DeviceIdentity>,
    /// Whether campaigns may touch it; yes, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// `PUT /api/v1/devices/{id}`: what operators say of it from now on. What is absent is emptied, but for the region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceEdit {
    /// As in [`Registration`]; what it was, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<TopologyPath>,
    /// At most 32 labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// At most 8 KiB; what it was, whatever is written here, for those who may not see it.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// What identifies it to people; what it was, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<DeviceIdentity>,
    /// Whether campaigns that are planned from now on may touch it.
    pub enabled: bool,
    /// Why it is to stay as it is: campaigns that are planned leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 256)]
    pub held: Option<String>,
}

/// What a device says of itself: `POST /api/v1/devices/{id}/status` (without `device`) and `POST /api/v1/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StatusReport {
    /// Which device, where the path does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// What it is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<DeviceStatus>,
    /// What it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub version: Option<String>,
    /// How far it is, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 100)]
    pub progress: Option<u8>,
    /// For a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2000)]
    pub message: Option<String>,
    /// How it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<SaidHealth>,
}

/// How a device says it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaidHealth {
    /// Processor use in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 100)]
    pub cpu_percent: Option<f64>,
    /// Memory use in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 100)]
    pub memory_percent: Option<f64>,
    /// Seconds since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
    /// What its sensors read, by name: at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sensor_readings: BTreeMap<String, f64>,
    /// Errors of its applications in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 100)]
    pub error_percent: Option<f64>,
}

/// `POST /api/v1/validation`: whether a device is content with what it runs now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidationReport {
    /// Which device.
    pub device: DeviceId,
    /// What it runs.
    #[schema(min_length = 1, max_length = 256)]
    pub version: String,
    /// Whether it is content.
    pub ok: bool,
    /// For a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 2000)]
    pub message: Option<String>,
}

/// What a device last said of itself, kept beside what its node has signed. Gates and permits do not look at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Said {
    /// When it last said something.
    pub at: WallTime,
    /// Its last status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusReport>,
    /// Its last validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationReport>,
}

/// The answer to what a device says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SaidAnswer {
    /// The device.
    pub device: DeviceId,
    /// When it was written down.
    pub at: WallTime,
    /// What the coordinator knows from the device's node, which counts.
    pub status: DeviceStatus,
    /// After a validation: whether the node has read the same version back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<bool>,
}

/// `GET /api/v1/devices/{id}/health`. What is not known is null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceHealth {
    /// The device.
    pub device_id: DeviceId,
    /// Its status.
    pub status: DeviceStatus,
    /// Whether it answers its node, and its node answers; null before a node has told of it.
    pub online: Option<bool>,
    /// What its node has read back.
    pub firmware_version: Option<String>,
    /// Processor use in percent.
    pub cpu_usage: Option<f64>,
    /// Memory use in percent.
    pub memory_usage: Option<f64>,
    /// Seconds since it started.
    pub uptime: Option<u64>,
    /// When its node last told of it.
    pub last_heartbeat: Option<WallTime>,
    /// What its applications say.
    pub application_metrics: ApplicationMetrics,
    /// When it said the numbers itself; null if nobody has.
    pub self_reported: Option<WallTime>,
}

/// What a device's applications say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationMetrics {
    /// What its sensors read, by name.
    pub sensor_readings: Option<BTreeMap<String, f64>>,
    /// Errors in percent.
    pub error_rate: Option<f64>,
}

/// `GET /api/v1/devices/{id}/updates`: one attempt of a device, past or present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UpdateView {
    /// The campaign.
    pub campaign: CampaignId,
    /// The device.
    pub device: DeviceId,
    /// The wave, counted from 0.
    pub wave: u32,
    /// The release it was planned to get.
    pub release: String,
    /// The version it came from.
    pub from_version: String,
    /// Where it stands.
    pub state: AttemptState,
    /// How far that is, in percent: a step's share is a guess, only 100 is a fact.
    pub progress: u8,
    /// Why, for a person.
    pub reason: String,
    /// The version last read back.
    pub version: Option<String>,
    /// When it ended, as its node has signed; null while it runs.
    pub ended: Option<WallTime>,
}

/// `GET /api/v1/updates/check`: what an approved campaign plans for a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UpdateCheck {
    /// Whether there is something to install.
    pub available: bool,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<PlannedUpdate>,
}

/// What a campaign plans for a device. It is an offer: whoever installs has to verify the signatures by the pinned root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedUpdate {
    /// The campaign.
    pub campaign: CampaignId,
    /// Where the attempt stands.
    pub state: AttemptState,
    /// Whether a permit that is in force names the device: without one nothing may be installed.
    pub permitted: bool,
    /// The version it would run.
    pub version: String,
    /// The release's target name.
    pub target: String,
    /// Where the image is, relative to the coordinator.
    pub url: String,
    /// Its length in bytes.
    pub length: u64,
    /// SHA-256 of the image.
    pub sha256: Sha256,
    /// BLAKE3 root of the image.
    pub blake3: ArtifactId,
    /// Who has signed for it.
    pub signature: SignatureInfo,
}

/// Where the signatures are: TUF metadata, which any TUF client verifies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignatureInfo {
    /// `tuf`.
    pub scheme: String,
    /// Where the metadata is, relative to the coordinator.
    pub metadata_url: String,
    /// The role that signs releases, and its keys.
    pub releases: SignatureRole,
    /// The role that signs campaigns, and its keys.
    pub campaigns: SignatureRole,
}

/// A role of the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignatureRole {
    /// Its name.
    pub role: String,
    /// How many of the keys must have signed.
    pub threshold: u32,
    /// The ids of its keys.
    pub key_ids: Vec<String>,
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
    /// Which attempt this is, where failed ones are begun again: left out for the first.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub attempt: u32,
    /// Why, for a person.
    pub reason: String,
    /// The version last read back.
    pub version: Option<String>,
}

fn first() -> u32 {
    1
}

fn is_first(attempt: &u32) -> bool {
    *attempt == 1
}

/// `POST /api/v1/devices/{id}/erasure`: what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Erasure {
    /// The device's name: from now on nobody knows whose it was.
    pub device: DeviceId,
    /// When it was erased.
    pub at: WallTime,
    /// Whether the coordinator made that name. Another one, which people chose, stays in what was signed.
    pub pseudonymous: bool,
    /// What is still to be done, or stays, where and until when: for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remains: Vec<String>,
}

/// `GET /api/v1/devices/{id}/data`: what is held of a device, for whoever has a right to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceData {
    /// When it was put together.
    pub at: WallTime,
    /// What it is, what it runs, whose it is and what it said.
    pub device: DeviceView,
    /// Its attempts in campaigns that are not archived. The signed report of each: `GET /api/v1/audit/proof/update`.
    pub updates: Vec<UpdateView>,
    /// The groups that name it.
    pub groups: Vec<GroupId>,
    /// The API keys that speak for it, by their ids.
    pub keys: Vec<String>,
    /// What people were told of it in the last 90 days, oldest first, at most 1,000 times.
    #[schema(value_type = Vec<Object>)]
    pub notices: Vec<serde_json::Value>,
    /// What was said to it in its last attempts: `GET /api/v1/devices/{id}/transcripts/{number}` has the words.
    #[serde(default)]
    pub transcripts: Vec<TranscriptView>,
}
