//! Releases: what an image is and which devices may take it.

use serde::{Deserialize, Serialize};

use super::{ManifestError, is_label};
use crate::{
    ids::{ArtifactId, Component, Sha256},
    limits::ARTIFACT_BYTES_MAX,
};

/// The schema name of a release.
pub const RELEASE_SCHEMA: &str = "firmesh-release/1";

/// Immutable bytes, by every name they have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// BLAKE3 root: the name in the mesh.
    pub id: ArtifactId,
    /// SHA-256: the name in TUF and outside.
    pub sha256: Sha256,
    /// Length in bytes.
    pub length: u64,
}

/// What it takes to go back from a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reversibility {
    /// The previous image is still on the device (a slot, a backup bank).
    Reversible,
    /// The previous image has to be written again.
    Reflash,
    /// The hardware refuses older versions: never rolled back automatically.
    OneWay,
}

/// The `custom` object of a target under `firmware/`: what the image is and which devices may take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseInfo {
    /// [`RELEASE_SCHEMA`].
    pub schema: String,
    /// BLAKE3 root of the image.
    pub blake3: ArtifactId,
    /// Who makes the devices.
    pub vendor: String,
    /// Device models that may take the image, exactly as the devices report them.
    pub models: Vec<String>,
    /// The component the image is for.
    pub component: Component,
    /// The version a device reports once it runs the image.
    pub version: String,
    /// Counts security floors: a device never goes to a release with a lower epoch.
    pub security_epoch: u32,
    /// The versions from which this release may be installed; any if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_versions: Vec<String>,
    /// What it takes to go back.
    pub reversibility: Reversibility,
    /// What shows where the image comes from, as the one who staged the release has judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// The evidence that was presented for a release, by digest. Nodes do not need it; auditors do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The verdict, which names the vendor's signatures by their digests.
    pub verdict: FileRef,
    /// The software bill of materials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbom: Option<FileRef>,
}

/// A file by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// SHA-256 of its bytes.
    pub sha256: Sha256,
    /// Length in bytes.
    pub length: u64,
}

/// A release: a signed target under `firmware/`, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The TUF target name, such as `firmware/acme-r1-bmc-1.1.0.bin`.
    pub target: String,
    /// The image.
    pub artifact: Artifact,
    /// What it is for.
    pub info: ReleaseInfo,
}

impl ReleaseInfo {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bounds = |field, problem: &str| {
            Err(ManifestError::Bounds {
                what: "release",
                field,
                problem: problem.to_owned(),
            })
        };
        if self.schema != RELEASE_SCHEMA {
            return Err(ManifestError::Schema {
                what: "release",
                found: self.schema.chars().take(80).collect(),
                expected: RELEASE_SCHEMA,
            });
        }
        if !is_label(&self.vendor) {
            return bounds("vendor", "must have 1 to 128 printable characters");
        }
        if !is_label(&self.version) {
            return bounds("version", "must have 1 to 128 printable characters");
        }
        if self.models.is_empty() || self.models.len() > 256 || !self.models.iter().all(|m| is_label(m)) {
            return bounds("models", "must name 1 to 256 models of 1 to 128 printable characters");
        }
        if self.from_versions.len() > 256 || !self.from_versions.iter().all(|v| is_label(v)) {
            return bounds(
                "from_versions",
                "must name at most 256 versions of 1 to 128 printable characters",
            );
        }
        Ok(())
    }
}

/// One release of a campaign, pinned by digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRef {
    /// The TUF target name.
    pub target: String,
    /// SHA-256 of the image.
    pub sha256: Sha256,
}
impl Artifact {
    /// Whether the length is one Firmesh moves.
    #[must_use]
    pub fn length_is_allowed(&self) -> bool {
        (1..=ARTIFACT_BYTES_MAX).contains(&self.length)
    }
}
