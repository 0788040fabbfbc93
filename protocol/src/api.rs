//! HTTP bodies: what the coordinator, the nodes, the operator CLI, the dashboard and the tests say to each other in JSON.
//!
//! Two faces. Operators: `/api/v1` (see `coordinator/README.md`). Nodes: `/node/v1`, over mutual TLS. Nothing here is
//! trusted for what it says: whatever decides about a device travels inside, in signed metadata or DSSE envelopes.

mod notifications;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    audit::LoggedEntry,
    brake::Brake,
    ids::{ArtifactId, CampaignId, DeviceId, GroupId, NodeId, Sha256, TopologyPath},
    manifest::{Artifact, CampaignManifest, HeldDevice, Release},
    possession::{Answer, Challenge},
    report::{AttemptState, DeviceFacts},
    time::WallTime,
    trust::Envelope,
};

pub use notifications::{NotificationError, NotificationTested, NotificationView, ReplayRequest, ReplayStarted};

/// An error as RFC 9457 has it, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// A stable name of the kind of problem: `urn:firmesh:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, for a person.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time, where, and what to do.
    pub detail: String,
    /// Whether a policy or a signature refused it (the CLI exits with 3), rather than a mistake or a fault.
    #[serde(default)]
    pub refused: bool,
    /// The request that it answers, as `X-Request-Id` and the coordinator's log name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A page of a listing, in the order of ids. If there is more, the answer's `Link` header names the next page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
}

/// `GET /api/v1/about`: which coordinator this is, and the public keys that ceremonies and manifests need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct About {
    /// Version and commit.
    pub version: String,
    /// The ed25519 key (hex) that signs TUF snapshot and timestamp.
    pub online_key: String,
    /// The ed25519 key (hex) that signs permits.
    pub permit_key: String,
    /// The fleet CA's certificate, PEM.
    pub fleet_ca_pem: String,
    /// The address nodes talk to, `https://host:port`.
    pub node_url: String,
}

/// `POST /api/v1/metadata`: signed files published together, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// TUF metadata by role or file name: `root` (every new `N.root.json`), `targets`, `releases`, `campaigns`; each
    /// the exact text that was signed.
    pub metadata: BTreeMap<String, String>,
    /// Campaign manifests by target name (`campaigns/<id>.json`): the exact text whose digest was signed.
    #[serde(default)]
    pub manifests: BTreeMap<String, String>,
}

/// The answer to a [`Publication`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Published {
    /// The versions now in force, by role.
    pub versions: BTreeMap<String, u64>,
}

/// `POST /api/v1/nodes`: allows one node to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNode {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
}

/// What a new node needs to enrol: give it to the node over a safe channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnrolmentTicket {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// The one-time token. A secret.
    pub token: String,
    /// The fleet CA's certificate, PEM: pins the coordinator.
    pub fleet_ca_pem: String,
    /// Where to enrol, `https://host:port`.
    pub node_url: String,
    /// The token is void after this moment.
    pub expires: WallTime,
}

/// `POST /node/v1/enrol`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The node.
    pub node: NodeId,
    /// The one-time token.
    pub token: String,
    /// A PKCS#10 request for the node's own ed25519 key, PEM.
    pub csr_pem: String,
}

/// The node's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolResponse {
    /// The certificate, PEM: subject CN = node id, SAN DNS = node id, SAN URI = `firmesh:path/<topology path>`.
    pub certificate_pem: String,
    /// The fleet CA's certificate, PEM.
    pub fleet_ca_pem: String,
}

/// How much of an artifact a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Pieces verified and durable.
    pub pieces: u32,
    /// Pieces in all.
    pub pieces_total: u32,
}

/// What a node has moved since it was started, in bytes of verified content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Taken from the origin.
    pub from_origin: u64,
    /// Taken from peers in the same rack.
    pub from_rack: u64,
    /// Taken from peers in other racks.
    pub from_other_racks: u64,
    /// Served to peers in the same rack.
    pub to_rack: u64,
    /// Served to peers in other racks.
    pub to_other_racks: u64,
    /// Slices and files refused because they did not verify.
    pub verification_failures: u64,
    /// Bytes that were fetched although a durable copy was there already.
    pub fetched_again: u64,
    /// Taken from other images that this node held: what did not have to be fetched.
    #[serde(default)]
    pub reused: u64,
}

/// `POST /node/v1/sync`: a node's heartbeat, reports and inventory in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// The node's current record, a signed `NodeRecord`.
    pub record: Envelope,
    /// Its devices as last observed.
    pub devices: Vec<DeviceFacts>,
    /// Signed `AttemptReport`s not yet acknowledged, oldest first.
    pub reports: Vec<Envelope>,
    /// What it holds.
    pub holdings: Vec<Holding>,
    /// What it has moved.
    pub traffic: Traffic,
    /// Peers it has banned, with the reason.
    pub banned: BTreeMap<NodeId, String>,
    /// The roster version it has.
    pub roster_version: u64,
    /// The highest permit sequence it has per campaign.
    pub permits_seen: BTreeMap<CampaignId, u64>,
    /// Signed `Brake`s that it has and the coordinator has not told it: learned from its peers.
    pub brakes: Vec<Envelope>,
    /// The version of the brakes it has from the coordinator.
    pub brakes_version: u64,
    /// The version of the revocation list it has.
    pub revocations_version: u64,
    /// What it knows of the audit log.
    #[serde(default)]
    pub audit: AuditSeen,
    /// Proofs that it holds what it was asked for: at most [`ANSWERS_MAX`](crate::limits::ANSWERS_MAX), each until the
    /// coordinator has taken it. Left out where there are none: an older coordinator does not know the field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub possession: Vec<Answer>,
}

/// What a node knows of the audit log, and wants to have proven.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSeen {
    /// The size of the last checkpoint it verified; 0 before the first.
    pub size: u64,
    /// Sizes of checkpoints it heard in the mesh, which may be of another log.
    pub heard: Vec<u64>,
    /// Why it does not believe the log any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<String>,
}

/// A checkpoint of the audit log, with the proofs that it continues what the node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditNews {
    /// The newest checkpoint, a signed note.
    pub checkpoint: String,
    /// The consistency proof from [`AuditSeen::size`] to it.
    pub consistency: Vec<Sha256>,
    /// The consistency proofs from each of [`AuditSeen::heard`] to it.
    pub heard: Vec<Vec<Sha256>>,
}

/// `GET /api/v1/audit/entries`: a part of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntries {
    /// The entries, in order.
    pub items: Vec<LoggedEntry>,
    /// Entries in the log.
    pub size: u64,
}

/// `GET /api/v1/audit/proof/inclusion` and `.../consistency`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditPath {
    /// The hashes, from the leaf towards the root.
    pub path: Vec<Sha256>,
}

/// The answer to a [`SyncRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncResponse {
    /// Reports up to this sequence number are durable here and need not be sent again.
    pub reports_acked: u64,
    /// Signed permits newer than the node has seen, for its devices.
    pub permits: Vec<Envelope>,
    /// The version of the timestamp metadata in force; a node with another one refreshes.
    pub timestamp_version: u64,
    /// The campaigns a node should take part in (fetch, then wait for permits), by id; a paused or cancelled one is absent.
    pub campaigns: Vec<CampaignId>,
    /// Signed node records of the fleet, if the node's roster is older than `roster_version`.
    pub roster: Option<Vec<Envelope>>,
    /// The roster's version.
    pub roster_version: u64,
    /// The audit log as it is now.
    #[serde(default)]
    pub audit: Option<AuditNews>,
    /// Every signed `Brake`, if the node's are older than `brakes_version`.
    pub brakes: Option<Vec<Envelope>>,
    /// The version of the brakes: how many there are.
    pub brakes_version: u64,
    /// The signed `RevocationList`, if the node's is older.
    pub revocations: Option<Envelope>,
    /// What the node is to prove before its devices get a permit: at most
    /// [`CHALLENGES_MAX`](crate::limits::CHALLENGES_MAX), each until it is answered well. An older node does not know the
    /// field, and gets no permits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challenges: Vec<Challenge>,
}

/// `POST /node/v1/renew`: another certificate for the same key, asked for with the one in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// A PKCS#10 request for the node's own ed25519 key, PEM.
    pub csr_pem: String,
}

/// `POST /api/v1/nodes/{id}/revoke`: this node's key is no member's any more.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// Why, for a person.
    pub reason: String,
}

/// `GET /api/v1/brakes`: one brake.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BrakeView {
    /// What it says.
    #[schema(value_type = Object)]
    pub brake: Brake,
    /// What was signed.
    #[schema(value_type = Object)]
    pub envelope: Envelope,
}

/// `GET /api/v1/nodes`: one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// Whether its certificate was issued.
    pub enrolled: bool,
    /// Whether its key was revoked.
    #[serde(default)]
    pub revoked: bool,
    /// When it was last heard of.
    pub last_seen: Option<WallTime>,
    /// What it holds.
    pub holdings: Vec<Holding>,
    /// What it has moved.
    pub traffic: Traffic,
    /// Peers it has banned, with the reason.
    pub banned: BTreeMap<NodeId, String>,
    /// Why it does not believe the audit log any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_fork: Option<String>,
}

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

/// Where a campaign stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CampaignState {
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
    /// The wave in progress, counted from 0.
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

/// `GET /api/v1/releases`: one release with where its image lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseView {
    /// The release as signed.
    pub release: Release,
    /// Whether the origin holds the image.
    pub stored: bool,
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

/// `POST /api/v1/device-groups`: a group of devices with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDeviceGroup {
    /// The group.
    pub id: GroupId,
    /// What it is for, for a person.
    #[serde(default)]
    pub description: String,
    /// A dynamic group: the devices for which this filter holds whenever somebody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// A static group: these devices. Not together with `filter`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

/// `PUT /api/v1/device-groups/{id}`: what the group is from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceGroupEdit {
    /// What it is for, for a person.
    #[serde(default)]
    pub description: String,
    /// As in [`NewDeviceGroup`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// As in [`NewDeviceGroup`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

/// `POST /api/v1/device-groups/{id}/devices`: members of a static group that come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MembersEdit {
    /// Who comes. Members already are no mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<DeviceId>,
    /// Who goes. Strangers are no mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<DeviceId>,
}

/// `GET /api/v1/device-groups/{id}`: a group. Its members are at `/api/v1/device-groups/{id}/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeviceGroup {
    /// The group.
    pub id: GroupId,
    /// What it is for, for a person.
    pub description: String,
    /// The rule of a dynamic group, as the coordinator prints it; absent for a static one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// How many members a static group has; absent for a dynamic one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
    /// Another one with every change: the number in the `ETag`.
    pub version: u64,
}

/// One event of `GET /api/v1/events` (Server-Sent Events; the SSE id is `id`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// Grows by one.
    pub id: u64,
    /// When.
    pub at: WallTime,
    /// What happened.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What happened: `kind` and `data`, because a view in `data` may have an `id` of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", content = "data", rename_all = "snake_case")]
pub enum EventKind {
    /// A campaign changed its state, or opened a wave.
    Campaign(CampaignView),
    /// A device changed its state.
    Attempt(AttemptView),
    /// A node was heard of; sent at most once a second per node.
    Node(NodeView),
    /// An artifact was imported.
    Artifact(Artifact),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A campaign's view has an `id` too: side by side with the event's, readers refused every such event.
    #[test]
    fn an_event_about_something_with_an_id_of_its_own_reads_back() {
        let artifact = Artifact {
            id: ArtifactId::of(b"a"),
            sha256: Sha256::of(b"a"),
            length: 1,
        };
        let event = Event {
            id: 7,
            at: WallTime::from_unix_seconds(0),
            what: EventKind::Artifact(artifact),
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
