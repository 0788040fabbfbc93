//! What is kept where: images that nothing refers to, campaigns that ended long ago.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::campaigns::CampaignState;
use crate::{
    ids::{CampaignId, DeviceId, Sha256},
    manifest::Artifact,
    time::WallTime,
};

/// What is to become of images that nothing refers to.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectImages {
    /// Only those that came at least so many seconds ago. Default: 30 days.
    #[serde(default = "thirty_days")]
    pub older_than_s: u32,
    /// Only tell.
    #[serde(default)]
    pub dry_run: bool,
}

fn thirty_days() -> u32 {
    30 * 86_400
}

/// Images that nothing refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CollectedImages {
    /// Whether they are still there.
    pub dry_run: bool,
    /// The images, without the files that belong to them.
    pub images: Vec<Artifact>,
    /// Files or objects, with hash trees, recipes and what uploads left behind.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Images that something refers to, or that are not old enough.
    pub kept: u64,
}

/// A campaign of which everything about single devices lies in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArchiveView {
    /// The campaign.
    pub campaign: CampaignId,
    /// How it ended.
    pub state: CampaignState,
    /// When it ended.
    pub ended: WallTime,
    /// When it was archived.
    pub archived: WallTime,
    /// Attempts by how they ended.
    pub states: BTreeMap<String, u64>,
    /// The files, in order. None, once they have been removed as their time was over.
    pub segments: Vec<ArchiveSegment>,
    /// When the files were removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<WallTime>,
}

/// A file of an archive: JSON Lines, compressed with gzip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArchiveSegment {
    /// Its name, below the folder or the prefix of the bucket.
    pub name: String,
    /// Digest of the file.
    pub sha256: Sha256,
    /// Bytes of the file.
    pub length: u64,
    /// Lines.
    pub rows: u64,
    /// The first device that it has an attempt of, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_device: Option<DeviceId>,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_device: Option<DeviceId>,
}

/// An attempt as it was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArchivedAttempt {
    /// The device.
    pub device: DeviceId,
    /// The record.
    #[schema(value_type = Object)]
    pub record: serde_json::Value,
}

/// Which campaigns are to be archived now.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveRun {
    /// Those that ended at least so many seconds ago. Default: what the settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than_s: Option<u32>,
    /// Only tell.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a run of the archive has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ArchiveResult {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Campaigns that were archived.
    pub archived: Vec<CampaignId>,
    /// Rows that went out of the tables.
    pub rows: u64,
    /// Ended campaigns that stay, with the reason.
    pub kept: BTreeMap<CampaignId, String>,
    /// Campaigns whose files were removed, as their time was over.
    pub removed: Vec<CampaignId>,
}
