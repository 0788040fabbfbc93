//! What is stored, as data: the records and the changes to them.

use std::collections::BTreeSet;

use firmesh_coordinator_core::{AttemptRecord, CampaignRecord, PossessionRecord};
use firmesh_protocol::{
    api::ArchiveView,
    ids::{CampaignId, DeviceId, NodeId, Sha256, TopologyPath},
    report::{AttemptReport, DeviceFacts, NodeRecord, PermitKind},
    time::WallTime,
    trust::{Envelope, PublicKey},
};
use serde::{Deserialize, Serialize};

use crate::{
    access::{ApiKey, KeyChange},
    notify::Notice,
};

/// A permission to enrol one key, without its token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ticket {
    /// Where the node will stand.
    pub path: TopologyPath,
    /// Digest of the token.
    pub token_sha256: Sha256,
    /// The token is void after this moment.
    pub expires: WallTime,
    /// The key that was enrolled with it: from then on it is good for this key only, whose owner may have died before
    /// he could keep the answer.
    #[serde(default)]
    pub key: Option<PublicKey>,
}

/// A node as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredNode {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// Its open ticket.
    pub ticket: Option<Ticket>,
    /// Its certificate, DER.
    pub certificate: Option<Vec<u8>>,
    /// The certificate before that, for the same key: good until the node shows the new one.
    #[serde(default)]
    pub certificate_before: Option<Vec<u8>>,
    /// Its signed record.
    pub record: Option<(NodeRecord, Envelope)>,
    /// Reports up to this one are stored.
    pub acked: u64,
    /// When it was last heard of, as far as it was written down.
    pub last_seen: Option<WallTime>,
    /// Whether people were told that it is silent.
    #[serde(default)]
    pub silent: bool,
}

/// A device as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredDevice {
    /// What was last read from it.
    pub facts: DeviceFacts,
    /// The node that looks after it.
    pub node: NodeId,
    /// When the node last told, as far as it was written down.
    pub last_seen: WallTime,
}

/// A permit as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredPermit {
    /// The campaign.
    pub campaign: CampaignId,
    /// Update or rollback.
    pub kind: PermitKind,
    /// Its sequence.
    pub sequence: u64,
    /// The nodes of its devices.
    pub nodes: Vec<NodeId>,
    /// No start after this moment.
    pub expires: WallTime,
    /// The signed permit.
    pub envelope: Envelope,
}

/// One change. Rows replace what was stored under the same key.
#[derive(Debug)]
pub(crate) enum Write {
    /// A file that nodes fetch.
    Metadata(String, Vec<u8>),
    /// A file that is fetched no more.
    DropMetadata(String),
    /// A file as a client trusts it.
    Trusted(String, Vec<u8>),
    /// A campaign's manifest.
    Manifest(CampaignId, Vec<u8>),
    /// A node.
    Node(Box<StoredNode>),
    /// A device.
    Device(StoredDevice),
    /// A campaign's record.
    Campaign(CampaignRecord),
    /// An attempt.
    Attempt(CampaignId, AttemptRecord),
    /// How a node of a campaign stands towards an image.
    Possession(CampaignId, PossessionRecord),
    /// A campaign's attempts, permits and proofs are forgotten: another edition takes its place before it has started.
    Restart(CampaignId),
    /// A permit.
    Permit(StoredPermit),
    /// A report, verified.
    Report(Box<AttemptReport>, Envelope),
    /// A permit that was given out, signed again for another epoch.
    PermitAgain(StoredPermit),
    /// The roster's version.
    RosterVersion(u64),
    /// A brake, by the digest of its bytes.
    Brake(Sha256, Envelope),
    /// Evidence for a gate, by the digest of its bytes.
    Evidence(Sha256, Vec<u8>),
    /// Devices are sent back by people.
    Rollback {
        /// The campaign.
        campaign: CampaignId,
        /// Who.
        scope: String,
        /// Why.
        reason: String,
        /// The approvers' signed order, with the digest of its bytes.
        order: Option<(Sha256, Vec<u8>)>,
    },
    /// An operator has closed an attempt, or a campaign.
    Closing {
        /// The campaign.
        campaign: CampaignId,
        /// The device whose attempt it was; the whole campaign if absent.
        device: Option<DeviceId>,
        /// Why.
        reason: String,
    },
    /// An approver has said yes or no between two waves.
    Approval {
        /// The campaign.
        campaign: CampaignId,
        /// The wave that has passed.
        wave: u32,
        /// Yes or no.
        approved: bool,
        /// Why.
        reason: String,
        /// The keys that signed.
        by: Vec<String>,
        /// The signed word.
        document: Vec<u8>,
    },
    /// The revocation list, one node longer.
    Revocations {
        /// Whose key was added.
        node: NodeId,
        /// Why.
        reason: String,
        /// The list.
        envelope: Envelope,
    },
    /// A device's key is destroyed, and all that is stored of it but what was signed.
    Erasure(DeviceId, WallTime),
    /// All that is stored of a device goes, but its attempts and reports.
    Removal(DeviceId, WallTime),
    /// A campaign's devices are in the archive, or not even there any more.
    Archived(Box<ArchiveView>),
    /// Something to tell people, beside what other writes tell.
    Notice(Box<Notice>),
    /// An API key.
    ApiKey {
        /// The key.
        key: Box<ApiKey>,
        /// What became of it.
        change: KeyChange,
        /// Who did it.
        by: String,
    },
}

/// Everything stored, for a start.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub metadata: Vec<(String, Vec<u8>)>,
    pub trusted: Vec<(String, Vec<u8>)>,
    pub manifests: Vec<(CampaignId, Vec<u8>)>,
    pub nodes: Vec<StoredNode>,
    pub devices: Vec<StoredDevice>,
    pub campaigns: Vec<CampaignRecord>,
    pub attempts: Vec<(CampaignId, AttemptRecord)>,
    pub possession: Vec<(CampaignId, PossessionRecord)>,
    pub permits: Vec<StoredPermit>,
    pub roster_version: u64,
    pub brakes: Vec<Envelope>,
    pub revocations: Option<Envelope>,
    pub archived: BTreeSet<CampaignId>,
    pub erased: BTreeSet<DeviceId>,
}
