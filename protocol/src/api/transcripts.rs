//! What was said to a device in an attempt, and which profile its credentials come from: what nodes tell of both, and what
//! operators see. Neither has a secret in it: the node takes them out before it writes anything down.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    limits::{PROFILE_NAME_BYTES_MAX, TRANSCRIPT_PACKED_BYTES_MAX},
    report::{AttemptState, PermitKind},
    time::WallTime,
};

/// `POST /node/v1/transcripts`: an attempt on a device of this node has ended, and what was said was written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranscriptReport {
    /// The device.
    pub device: DeviceId,
    /// The campaign of the attempt.
    pub campaign: CampaignId,
    /// Whether it was to update the device, or to take it back.
    pub kind: PermitKind,
    /// How it ended.
    pub state: AttemptState,
    /// When it ended, by the node's clock.
    pub ended: WallTime,
    /// What was written down.
    pub transcript: PackedTranscript,
}

/// A transcript on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedTranscript {
    /// Questions with their answers, in all of it.
    pub exchanges: u64,
    /// Its bytes at the node.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: Sha256,
    /// Bytes that `content` leaves out, behind the first line: the end says more than the middle.
    pub left_out: u64,
    /// JSON lines, gzipped, in base64: at most [`TRANSCRIPT_PACKED_BYTES_MAX`] before that. Absent where the attempt ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Bytes of a [`TranscriptReport`] in JSON, at most: base64 makes four of three, and the rest is names and numbers.
pub const TRANSCRIPT_REPORT_BYTES_MAX: usize = TRANSCRIPT_PACKED_BYTES_MAX / 3 * 4 + (16 << 10);

/// `POST /node/v1/credentials`: which profile each of a node's devices has its credentials from, all of them. Names only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsReport {
    /// Profiles by device. A device that names credentials of its own, or needs none, is not there.
    pub profiles: BTreeMap<DeviceId, String>,
}

/// Whether this can be a profile's name: printable, and no longer than [`PROFILE_NAME_BYTES_MAX`].
#[must_use]
pub fn is_profile_name(name: &str) -> bool {
    (1..=PROFILE_NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// `GET /api/v1/devices/{id}/transcripts`: one transcript.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TranscriptView {
    /// Its number among the device's: the highest is the newest.
    pub number: u64,
    /// The campaign of the attempt.
    pub campaign: CampaignId,
    /// `update`, or `rollback` where it was to take the device back.
    #[schema(value_type = String)]
    pub kind: PermitKind,
    /// How it ended.
    pub state: AttemptState,
    /// When it ended, by its node's clock.
    pub ended: WallTime,
    /// The node that wrote it down.
    pub node: NodeId,
    /// Questions with their answers, in all of it.
    pub exchanges: u64,
    /// Its bytes at the node.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: Sha256,
    /// Bytes that can be downloaded here; 0 where the attempt ended well: the node has it.
    pub kept_bytes: u64,
    /// Bytes that are left out of what can be downloaded, behind its first line.
    pub left_out: u64,
}
