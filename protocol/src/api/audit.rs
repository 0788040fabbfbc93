//! The audit log and signed brakes, over HTTP.

use serde::{Deserialize, Serialize};

use crate::{audit::LoggedEntry, brake::Brake, ids::Sha256, trust::Envelope};

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
