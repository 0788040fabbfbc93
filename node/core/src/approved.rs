//! An approved campaign as a node acts on it: manifest, plan and releases, put together from parts that belong together.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{ArtifactId, DeviceId, NodeId, Sha256},
    manifest::{CampaignManifest, Plan, PlannedDevice, Release, ReleaseRef},
};

/// A verified campaign as a node acts on it: the manifest, the plan it names, and the releases it pins.
#[derive(Debug, Clone)]
pub struct ApprovedCampaign {
    /// The manifest.
    pub manifest: CampaignManifest,
    /// SHA-256 of the manifest's bytes.
    pub manifest_sha256: Sha256,
    /// The plan.
    pub plan: Plan,
    /// All releases that the manifest pins, by target name.
    pub releases: BTreeMap<String, Release>,
}

/// Why an approved campaign could not be put together from its parts.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The plan's bytes are not the approved ones.
    #[error("the plan has the digest {found}, the approvers signed {approved}")]
    WrongPlan {
        /// The digest of the plan at hand.
        found: Sha256,
        /// The digest in the manifest.
        approved: Sha256,
    },
    /// The plan was not readable.
    #[error("the approved plan cannot be used")]
    BadPlan(#[source] firmesh_protocol::manifest::ManifestError),
    /// The plan belongs to another campaign.
    #[error("the plan names the campaign {0}")]
    OtherCampaign(String),
    /// A release is not signed by the release keys.
    #[error("release {0} is not signed by the release keys")]
    UnsignedRelease(String),
    /// A release has another image than the campaign pins.
    #[error("release {target} has the image {found}, the approvers signed {approved}")]
    OtherImage {
        /// The release.
        target: String,
        /// The image's digest in the release.
        found: Sha256,
        /// The digest in the manifest.
        approved: Sha256,
    },
    /// The plan gives a device a release that the manifest does not name.
    #[error("the plan gives {device} the release {target}, which the manifest does not name")]
    UnplannedRelease {
        /// The device.
        device: DeviceId,
        /// The release.
        target: String,
    },
}

impl ApprovedCampaign {
    /// Puts a campaign together. `signed_release` answers with releases that the release keys signed, and no others.
    pub fn assemble(
        manifest: CampaignManifest,
        manifest_sha256: Sha256,
        plan_bytes: &[u8],
        signed_release: impl Fn(&str) -> Option<Release>,
    ) -> Result<Self, AssembleError> {
        let found = Sha256::of(plan_bytes);
        if found != manifest.plan_sha256 {
            return Err(AssembleError::WrongPlan {
                found,
                approved: manifest.plan_sha256,
            });
        }
        let plan = Plan::from_bytes(plan_bytes).map_err(AssembleError::BadPlan)?;
        if plan.campaign != manifest.id {
            return Err(AssembleError::OtherCampaign(plan.campaign.to_string()));
        }
        plan.check_caps(&manifest).map_err(AssembleError::BadPlan)?;
        plan.check_servers(&manifest).map_err(AssembleError::BadPlan)?;
        let mut releases = BTreeMap::new();
        for ReleaseRef { target, sha256 } in manifest.pinned() {
            let release = signed_release(target).ok_or_else(|| AssembleError::UnsignedRelease(target.clone()))?;
            if release.artifact.sha256 != *sha256 {
                let found = release.artifact.sha256;
                return Err(AssembleError::OtherImage {
                    target: target.clone(),
                    found,
                    approved: *sha256,
                });
            }
            releases.insert(target.clone(), release);
        }
        for (_, planned) in plan.devices() {
            if let Some(target) = manifest.unnamed(planned) {
                return Err(AssembleError::UnplannedRelease {
                    device: planned.device.clone(),
                    target: target.clone(),
                });
            }
        }
        Ok(Self {
            manifest,
            manifest_sha256,
            plan,
            releases,
        })
    }

    /// The artifacts a node needs for its own devices: every release planned for them, on the way and to go back to as well.
    #[must_use]
    pub fn artifacts_for(&self, node: &NodeId) -> BTreeSet<ArtifactId> {
        self.plan
            .devices()
            .filter(|(_, planned)| planned.node == *node)
            .flat_map(|(_, planned)| planned.targets())
            .filter_map(|target| self.releases.get(target))
            .map(|release| release.artifact.id)
            .collect()
    }

    /// Every artifact of the campaign.
    #[must_use]
    pub fn artifacts(&self) -> BTreeSet<ArtifactId> {
        self.releases.values().map(|release| release.artifact.id).collect()
    }

    /// What is installed on a device, one after the other: what it goes over, and the release.
    pub fn way<'a>(&'a self, planned: &'a PlannedDevice) -> impl DoubleEndedIterator<Item = &'a Release> {
        planned.way().filter_map(|target| self.releases.get(target))
    }

    /// A device's place in the plan, with its wave.
    #[must_use]
    pub fn planned(&self, device: &DeviceId) -> Option<(u32, &PlannedDevice)> {
        self.plan
            .devices()
            .find(|(_, planned)| planned.device == *device)
            .map(|(wave, planned)| (u32::try_from(wave).expect("waves are bounded"), planned))
    }
}
