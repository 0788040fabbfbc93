//! Releases: what an image is and which devices may take it.

use serde::{Deserialize, Serialize};

use super::{ManifestError, is_label};
use crate::{
    ids::{ArtifactId, Component, Sha256},
    limits::{ARTIFACT_BYTES_MAX, REQUIREMENTS_MAX},
    version::VersionScheme,
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
    /// How its versions are written; without it none is later than another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_scheme: Option<VersionScheme>,
    /// The first version from which this release may be installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_from: Option<String>,
    /// What other components of the same unit have to run before, and with, this release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<OtherComponent>,
    /// What no other component of the same unit may run with this release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<OtherComponent>,
    /// What it takes to go back.
    pub reversibility: Reversibility,
    /// What shows where the image comes from, as the one who staged the release has judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// Versions of another component of the same unit: those that are listed, and those from a first one on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OtherComponent {
    /// The component.
    pub component: Component,
    /// Exactly these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<String>,
    /// This one and later ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<String>,
    /// How the other component's versions are written: goes with `min_version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_scheme: Option<VersionScheme>,
}

impl OtherComponent {
    /// Whether the version is one of these; nothing if there is no telling.
    #[must_use]
    pub fn names(&self, version: &str) -> Option<bool> {
        if self.versions.iter().any(|known| known == version) {
            return Some(true);
        }
        match (&self.min_version, &self.version_scheme) {
            (Some(least), Some(scheme)) => Some(scheme.compare(version, least)?.is_ge()),
            _ => Some(false),
        }
    }

    fn problem(&self) -> Option<String> {
        let problem = if self.versions.is_empty() && self.min_version.is_none() {
            "needs `versions` or `min_version`".to_owned()
        } else if self.min_version.is_some() != self.version_scheme.is_some() {
            "needs `min_version` and `version_scheme` together".to_owned()
        } else if self.versions.len() > 256 || !self.versions.iter().chain(&self.min_version).all(|v| is_label(v)) {
            "must name at most 256 versions of 1 to 128 printable characters".to_owned()
        } else {
            format!("version_scheme {}", self.version_scheme.as_ref()?.problem()?)
        };
        Some(format!("about the {}: {problem}", self.component))
    }
}

impl std::fmt::Display for OtherComponent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.component)?;
        let more = if self.versions.len() > 5 { " ..." } else { "" };
        let listed = self.versions.iter().take(5).cloned().collect::<Vec<_>>().join(", ") + more;
        match (&self.min_version, listed.is_empty()) {
            (Some(least), true) => write!(f, "{least} or later"),
            (Some(least), false) => write!(f, "{listed}, or {least} or later"),
            (None, _) => f.write_str(&listed),
        }
    }
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
    /// Whether a device that runs `version` may go to this release: its version is listed, if any are, and surely not
    /// before the first one allowed.
    #[must_use]
    pub fn may_follow(&self, version: &str) -> bool {
        let is_listed = self.from_versions.is_empty() || self.from_versions.iter().any(|from| from == version);
        let is_late_enough = self.min_from.as_ref().is_none_or(|least| {
            let scheme = self.version_scheme.as_ref();
            scheme.is_some_and(|scheme| scheme.is_at_least(version, least))
        });
        is_listed && is_late_enough
    }

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
        if let Some(problem) = self.version_scheme.as_ref().and_then(VersionScheme::problem) {
            return bounds("version_scheme", &problem);
        }
        match (&self.min_from, &self.version_scheme) {
            (Some(_), None) => return bounds("min_from", "needs a `version_scheme`: without one no version is later"),
            (Some(least), Some(scheme)) if !is_label(least) || scheme.compare(least, &self.version).is_none() => {
                return bounds("min_from", "has no order with `version` under the version scheme");
            }
            _ => {}
        }
        for (field, rules) in [("requires", &self.requires), ("conflicts", &self.conflicts)] {
            if rules.len() > REQUIREMENTS_MAX {
                return bounds(field, &format!("must have at most {REQUIREMENTS_MAX} entries"));
            }
            if let Some(problem) = rules.iter().find_map(OtherComponent::problem) {
                return bounds(field, &problem);
            }
            if rules.iter().any(|rule| rule.component == self.component) {
                return bounds(field, "are about other components than the release's own");
            }
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
