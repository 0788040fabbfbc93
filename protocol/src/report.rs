//! What nodes and coordinators tell each other in signed envelopes: permits down, reports up, node records sideways.
//!
//! Each document travels as the payload of a DSSE envelope with its own payload type, so that a signature made for one
//! kind can never pass for another. The envelope is verified before any of these is parsed.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    health::DeviceHealth,
    ids::{CampaignId, Component, DeviceId, NodeId, Sha256, TopologyPath},
    labels::Labels,
    manifest::Strategy,
    time::WallTime,
};

/// DSSE payload type of a [`Permit`].
pub const PERMIT_TYPE: &str = "application/vnd.firmesh.permit.v1+json";
/// DSSE payload type of an [`AttemptReport`].
pub const REPORT_TYPE: &str = "application/vnd.firmesh.report.v1+json";
/// DSSE payload type of a [`NodeRecord`].
pub const NODE_RECORD_TYPE: &str = "application/vnd.firmesh.node-record.v1+json";

/// What a permit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PermitKind {
    /// Install the planned release.
    Update,
    /// Go back to the planned previous release.
    Rollback,
}

impl PermitKind {
    /// The waves whose gates a permit of this kind for `wave` rests on: for going back, that of the wave itself failed; for
    /// going forward, those of the waves before it passed. Where *k* waves may be open at once, these are the *k* waves up to
    /// the *k*-th before it, as far as there are so many. On that one alone a coordinator that lies could go on by every
    /// *k*-th wave past others that failed; as it is, every wave up to the *k*-th before has passed, because the nodes of that
    /// one have looked at those before theirs.
    #[must_use]
    pub fn gates(self, wave: u32, strategy: &Strategy) -> Range<u32> {
        let at_once = strategy.waves_at_once();
        let end = wave.saturating_add(1);
        match self {
            Self::Update => end.saturating_sub(at_once.saturating_mul(2))..end.saturating_sub(at_once),
            Self::Rollback => wave..end,
        }
    }
}

/// The coordinator's signed, expiring word that named devices may start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permit {
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes: a permit for another edition of the campaign is worth nothing.
    pub manifest_sha256: Sha256,
    /// What it allows.
    pub kind: PermitKind,
    /// The wave, counted from 0.
    pub wave: u32,
    /// Which attempt at updating its devices it is for: above 1 for those that have failed and are begun again.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub attempt: u32,
    /// Grows with every permit of the campaign: a node acts on each number once.
    pub sequence: u64,
    /// Grows whenever another process, or another copy of the database, takes over as coordinator: a node that has seen
    /// a higher one ignores those who were left behind.
    pub epoch: u64,
    /// When it was issued.
    pub issued: WallTime,
    /// No start after this moment.
    pub expires: WallTime,
    /// The devices that may start; all of them stand in this wave of the plan.
    pub devices: Vec<DeviceId>,
    /// SHA-256 of the envelopes with the evidence that the wave may start: the gates before it passed, or for a rollback, the
    /// gate of this wave failed. See [`PermitKind::gates`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Sha256>,
}

impl Permit {
    /// The waves whose gates the permit rests on: their evidence goes with the permit.
    #[must_use]
    pub fn gates(&self, strategy: &Strategy) -> Range<u32> {
        self.kind.gates(self.wave, strategy)
    }
}

/// Where a device stands in its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptState {
    /// Planned, not permitted.
    Pending,
    /// Permitted, but the node's window is closed.
    WaitingWindow,
    /// Permitted, but something the reason names stands in the way.
    Blocked,
    /// The image is on its way.
    Downloading,
    /// The whole image is being checked.
    Verifying,
    /// The image lies on the device, inactive.
    Staged,
    /// The device is writing.
    Installing,
    /// The device was told to restart.
    Rebooting,
    /// The device answers again and is being checked.
    Validating,
    /// Ended: the new version was read back and confirmed.
    Success,
    /// Ended: the old version still runs.
    Failed,
    /// Ended: the previous version was restored and read back.
    RolledBack,
    /// Ended: nothing to do.
    Skipped,
    /// Ended before it touched the device.
    Cancelled,
    /// Ended: a deadline passed while the old version still ran.
    TimedOut,
    /// Ended: out of service until a person looks at it.
    Quarantined,
}

impl AttemptState {
    /// Whether the attempt is over.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Success
                | Self::Failed
                | Self::RolledBack
                | Self::Skipped
                | Self::Cancelled
                | Self::TimedOut
                | Self::Quarantined
        )
    }

    /// Whether a gate counts the ended attempt as good.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Success | Self::Skipped)
    }

    /// The state's name, as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::WaitingWindow => "waiting_window",
            Self::Blocked => "blocked",
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Staged => "staged",
            Self::Installing => "installing",
            Self::Rebooting => "rebooting",
            Self::Validating => "validating",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Quarantined => "quarantined",
        }
    }
}

impl std::fmt::Display for AttemptState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// In which way an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// Refused before anything was written: the device, or the release for it, is not as approved.
    Preflight,
    /// The image was not brought onto the device, or the device did not install it.
    Install,
    /// The device did not start the new image.
    Boot,
    /// The new image ran and was not well.
    Health,
    /// A deadline passed while the old image ran.
    Timeout,
    /// Nobody knows what it runs: it does not answer, or its node does not.
    Unreachable,
    /// It answers, and is not in a state that it can be left in.
    Quarantine,
}

impl FailureClass {
    /// The class's name, as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Install => "install",
            Self::Boot => "boot",
            Self::Health => "health",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Quarantine => "quarantine",
        }
    }
}

impl std::fmt::Display for FailureClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node's signed word on one attempt. The latest sequence number of an attempt counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptReport {
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes: a report on one edition is no evidence for another.
    pub manifest_sha256: Sha256,
    /// The wave, counted from 0.
    pub wave: u32,
    /// Update or rollback.
    pub kind: PermitKind,
    /// The permit that allowed the start; 0 before one was acted upon.
    pub permit_sequence: u64,
    /// Which attempt of its node at updating the device in this campaign it was: 1 but where failed ones are begun again.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub attempt: u32,
    /// The device.
    pub device: DeviceId,
    /// The node that reports.
    pub node: NodeId,
    /// Grows with every report of the node, over restarts too.
    pub sequence: u64,
    /// Where the attempt stands.
    pub state: AttemptState,
    /// Why, for a person; empty when the state says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The version last read back from the device, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// In which way it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureClass>,
    /// What its node makes of the device after the update, if it was to watch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<DeviceHealth>,
    /// When, by the node's clock.
    pub at: WallTime,
}

fn first() -> u32 {
    1
}

fn is_first(attempt: &u32) -> bool {
    *attempt == 1
}

/// What a node last read from one of its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// The device.
    pub device: DeviceId,
    /// Vendor, as the device reports it.
    pub vendor: String,
    /// Model, as the device reports it.
    pub model: String,
    /// The component Firmesh updates on it.
    pub component: Component,
    /// The running version; `None` while the device does not answer.
    pub version: Option<String>,
    /// The executor in charge.
    pub executor: String,
    /// What the node's configuration says of it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// [`DeviceFacts`], wherever they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// Vendor, as the device reports it.
    pub vendor: &'a str,
    /// Model, as the device reports it.
    pub model: &'a str,
    /// The component Firmesh updates on it.
    pub component: &'a Component,
    /// The running version; `None` while the device does not answer.
    pub version: Option<&'a str>,
    /// The executor in charge.
    pub executor: &'a str,
    /// What the node's configuration says of it.
    pub labels: &'a Labels,
}

impl Facts<'_> {
    /// A copy to keep.
    #[must_use]
    pub fn to_kept(self) -> DeviceFacts {
        DeviceFacts {
            device: self.device.clone(),
            vendor: self.vendor.to_owned(),
            model: self.model.to_owned(),
            component: self.component.clone(),
            version: self.version.map(str::to_owned),
            executor: self.executor.to_owned(),
            labels: self.labels.clone(),
        }
    }
}

impl<'a> From<&'a DeviceFacts> for Facts<'a> {
    fn from(facts: &'a DeviceFacts) -> Self {
        Self {
            device: &facts.device,
            vendor: &facts.vendor,
            model: &facts.model,
            component: &facts.component,
            version: facts.version.as_deref(),
            executor: &facts.executor,
            labels: &facts.labels,
        }
    }
}

/// How a node can be reached: signed by the node's own key, believed together with its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// The node's certificate, DER in hexadecimal, issued by the fleet CA.
    pub certificate: String,
    /// The data plane's address: `ip:port`, QUIC.
    pub data_addr: String,
    /// The control plane's multiaddress, libp2p.
    pub mesh_addr: String,
    /// Grows with every edition.
    pub sequence: u64,
}
