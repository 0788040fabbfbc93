//! What gets signed, as data: artifacts, releases, campaigns and plans.
//!
//! Invariants: no floats, every list bounded, unknown fields refused in what Firmesh alone defines; a value that was
//! read from bytes has passed `check`.

mod domains;
mod plan;
mod provisioning;
mod release;
mod retries;
mod rules;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CampaignId, Sha256},
    limits::PLAN_DEVICES_MAX,
    time::WallTime,
    trust::PublicKey,
};

pub use domains::{AtMost, Dimension, DimensionError, DomainCap, DomainShare, NeverTogether};
pub use plan::{HeldDevice, PLAN_SCHEMA, Plan, PlannedDevice, WayStep};
pub use provisioning::{
    Analysis, BIOS_SETTINGS, CampaignKind, HeldServer, PlannedComponent, PlannedServer, ProvisioningPhase,
};
pub use release::{
    Artifact, FileRef, OtherComponent, Provenance, RELEASE_SCHEMA, Release, ReleaseInfo, ReleaseRef, Reversibility,
};
pub use retries::{Retries, RetryBudget, RetryRule};
pub use rules::{
    BATCHES_AT_ONCE_MAX, Caps, Constraints, Deadlines, GateRule, PoolAct, Priority, Selector, Sequence, Strategy,
};

/// The schema name of a campaign manifest.
pub const MANIFEST_SCHEMA: &str = "firmesh-campaign/1";

/// Why a manifest, release or plan was refused after its signatures were found good.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the expected shape.
    #[error("{what} does not have the expected form")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A later or foreign schema.
    #[error("{what} has the schema {found:?}, this version reads {expected:?}")]
    Schema {
        /// Which document.
        what: &'static str,
        /// The schema it names.
        found: String,
        /// The schema this version reads.
        expected: &'static str,
    },
    /// A value outside its bounds.
    #[error("{what}: {field} {problem}")]
    Bounds {
        /// Which document.
        what: &'static str,
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// The rules of one campaign, signed by the approvers: the target `campaigns/<id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CampaignManifest {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// The campaign.
    pub id: CampaignId,
    /// What it is for. A node from before there was such a field refuses a manifest that has it.
    #[serde(default, skip_serializing_if = "CampaignKind::is_update")]
    pub kind: CampaignKind,
    /// Grows with every campaign of the fleet; names the order of approvals in the audit.
    pub sequence: u64,
    /// No device starts after this moment.
    pub expires: WallTime,
    /// What is installed: one release per (model, component).
    pub releases: Vec<ReleaseRef>,
    /// What devices go back to, and therefore what nodes fetch and pin before the first start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<ReleaseRef>,
    /// What devices go over on their way where a release may not be installed directly: every one is installed and read
    /// back like a release of the campaign. A node from before there was such a field refuses a manifest that has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<ReleaseRef>,
    /// For which devices.
    pub selector: Selector,
    /// How it widens.
    pub strategy: Strategy,
    /// How many at once.
    pub caps: Caps,
    /// The test between waves.
    pub gate: GateRule,
    /// When, by what, and at what price devices may be updated.
    #[serde(default)]
    pub constraints: Constraints,
    /// Time limits.
    pub deadlines: Deadlines,
    /// How urgent its images are in the mesh.
    #[serde(default, skip_serializing_if = "Priority::is_normal")]
    pub priority: Priority,
    /// Whether a failed gate rolls the wave back by itself.
    pub automatic_rollback: bool,
    /// Whether operators may send devices back that pass their gates: without it, that takes a
    /// [`RollbackOrder`](crate::rollback::RollbackOrder) of the approvers. With it, nodes take the coordinator's word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub operator_rollback: bool,
    /// Which failed updates are begun again; none if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// The coordinators' ed25519 public keys, in hexadecimal, whose permits count for this campaign.
    pub permit_keys: Vec<String>,
    /// SHA-256 of the plan's bytes: approval is of who gets what and when, not only of the rules.
    pub plan_sha256: Sha256,
    /// SHA-256 of the rehearsal that approvers were shown. For people: nothing that installs looks at it. A node from
    /// before there was such a field refuses a manifest that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal_sha256: Option<Sha256>,
}

impl CampaignManifest {
    /// Reads and checks a manifest. The caller has verified the bytes' digest against signed metadata before.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed {
            what: "manifest",
            source,
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// SHA-256 of what is rehearsed: the manifest with its plan, whatever its layout.
    #[must_use]
    pub fn rules_sha256(&self) -> Sha256 {
        let rules = Self {
            rehearsal_sha256: None,
            ..self.clone()
        };
        Sha256::of(&serde_json::to_vec(&rules).expect("a manifest has only names, numbers and lists"))
    }

    /// The TUF target name of this campaign.
    #[must_use]
    pub fn target(&self) -> String {
        campaign_target(&self.id)
    }

    /// Every release that it pins: what is installed, on the way as well, and what devices go back to.
    pub fn pinned(&self) -> impl Iterator<Item = &ReleaseRef> {
        self.releases.iter().chain(&self.hops).chain(&self.previous)
    }

    /// The first release of a device's place in a plan that the manifest does not name for that: to install, to go over, or
    /// to go back to.
    #[must_use]
    pub fn unnamed<'a>(&self, planned: &'a PlannedDevice) -> Option<&'a String> {
        let is_named = |refs: &[ReleaseRef], target: &String| refs.iter().any(|pinned| pinned.target == *target);
        let mut hops = planned.hops.iter();
        hops.find(|target| !is_named(&self.hops, target))
            .or_else(|| Some(&planned.release).filter(|target| !is_named(&self.releases, target)))
            .or_else(|| {
                planned
                    .previous
                    .as_ref()
                    .filter(|target| !is_named(&self.previous, target))
            })
    }

    /// How long the updates of a device with this place in the plan take at most, all its steps together.
    #[must_use]
    pub fn worst_case(&self, planned: &PlannedDevice) -> Duration {
        self.worst_case_of(planned.steps())
    }

    /// How long so many steps of a device's update take at most.
    #[must_use]
    pub fn worst_case_of(&self, steps: u32) -> Duration {
        Duration::from_secs(self.deadlines.attempt_s.into()) * steps
    }

    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bounds = |field, problem: &str| {
            Err(ManifestError::Bounds {
                what: "manifest",
                field,
                problem: problem.to_owned(),
            })
        };
        if self.schema != MANIFEST_SCHEMA {
            return Err(ManifestError::Schema {
                what: "manifest",
                found: self.schema.chars().take(80).collect(),
                expected: MANIFEST_SCHEMA,
            });
        }
        if self.releases.is_empty() || self.releases.len() > 1_000 {
            return bounds("releases", "must name 1 to 1000 releases");
        }
        if self.previous.len() > 1_000 {
            return bounds("previous", "must name at most 1000 releases");
        }
        if self.hops.len() > 1_000 {
            return bounds("hops", "must name at most 1000 releases");
        }
        if !self.pinned().all(|r| is_target(&r.target, "firmware/")) {
            return bounds("releases", "must be targets of the form firmware/<name>");
        }
        if let Some((field, problem)) = self.strategy.problem() {
            return bounds(field, &problem);
        }
        if let Some(problem) = self.caps.problem() {
            return bounds("caps", &problem);
        }
        if let Some((field, problem)) = self.gate.problem(&self.deadlines) {
            return bounds(field, &problem);
        }
        if let Some(problem) = self.retries.as_ref().and_then(Retries::problem) {
            return bounds("retries", &problem);
        }
        if self.deadlines.attempt_s == 0 || self.deadlines.back_s == 0 {
            return bounds("deadlines", "must be at least one second");
        }
        if self.permit_keys.is_empty() || self.permit_keys.len() > 16 {
            return bounds("permit_keys", "must name 1 to 16 coordinator keys");
        }
        if let Some(error) = self.permit_keys.iter().find_map(|key| key.parse::<PublicKey>().err()) {
            return bounds("permit_keys", &format!("names a key that is none: {error}"));
        }
        if let Some((field, problem)) = self.constraints.problem(&self.deadlines) {
            return bounds(field, &problem);
        }
        if self.selector.devices.len() > PLAN_DEVICES_MAX
            || self.selector.paths.len() > 10_000
            || self.selector.models.len() > 1_000
        {
            return bounds("selector", "names more devices, places or models than a campaign may");
        }
        Ok(())
    }
}

/// The TUF target name of a campaign's manifest.
#[must_use]
pub fn campaign_target(id: &CampaignId) -> String {
    format!("campaigns/{id}.json")
}

/// Text that vendors choose (models, versions): printable, neither empty nor endless.
fn is_label(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A target name directly under `folder`, safe as a file name.
fn is_target(name: &str, folder: &str) -> bool {
    name.strip_prefix(folder).is_some_and(|rest| {
        (1..=200).contains(&rest.len())
            && !rest.starts_with('.')
            && rest
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'))
    })
}

/// Whether `name` is a legal name for a release's target: `firmware/<letters, digits, '.', '_', '-', '+'>`.
#[must_use]
pub fn is_release_target(name: &str) -> bool {
    is_target(name, "firmware/")
}

#[cfg(test)]
mod tests;
