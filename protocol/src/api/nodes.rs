//! What nodes and the coordinator say to each other, and what operators see of nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AuditNews, AuditSeen};
use crate::{
    ids::{ArtifactId, CampaignId, NodeId, TopologyPath},
    possession::{Answer, Challenge},
    report::DeviceFacts,
    time::WallTime,
    trace::TraceHint,
    trust::Envelope,
};

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

/// A peer that a node has taken pieces from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feeder {
    /// The peer.
    pub node: NodeId,
    /// Bytes of verified content that it has given since the one who tells was started.
    pub bytes: u64,
}

/// `GET /api/v1/mesh/links`: who feeds whom, by the word of those who were fed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MeshLinks {
    /// The links, the busiest first.
    pub links: Vec<MeshLink>,
    /// Links that are left out, as there are too many.
    pub left_out: u64,
    /// Bytes that peers gave whom nodes did not name: of more than [`FEEDERS_MAX`](crate::limits::FEEDERS_MAX) they name those
    /// that gave most.
    pub unnamed_bytes: u64,
}

/// What came one way between two places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MeshLink {
    /// The rack or the node that gave; absent where it was the origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<TopologyPath>,
    /// The rack or the node that was given.
    pub to: TopologyPath,
    /// Bytes of verified content, since each node that was given was started.
    pub bytes: u64,
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
    /// The peers that have given it most, at most [`FEEDERS_MAX`](crate::limits::FEEDERS_MAX), each once. Left out unless the
    /// last answer asked for them: an older coordinator does not know the field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub feeders: Vec<Feeder>,
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
    /// Signed node records of everybody that the node is to know, if its roster is older than `roster_version`: of the fleet, or
    /// of its site where the fleet is large.
    pub roster: Option<Vec<Envelope>>,
    /// What has changed of its roster, in place of all of it. An older node does not know the field, asks for the same
    /// again, and is told everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roster_changes: Option<RosterChanges>,
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
    /// Which traces the campaigns belong to: at most [`TRACE_HINTS_MAX`](crate::trace::TRACE_HINTS_MAX), none where nobody
    /// traces. Not signed, and nothing is decided by them; an older node does not know the field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traces: Vec<TraceHint>,
    /// Whether the next heartbeat is to say who has fed the node. An older node does not know the field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wants_feeders: bool,
}

/// What has changed of a node's roster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterChanges {
    /// The version of the roster that they apply to.
    pub since: u64,
    /// Signed node records that are new.
    pub records: Vec<Envelope>,
    /// Who is no member any more that this node is to know.
    pub left: Vec<NodeId>,
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
