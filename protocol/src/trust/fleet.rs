//! What a finished refresh means for Firmesh: releases that release keys vouch for, campaigns that approvers vouch for.
//!
//! Invariants: the two groups of keys are disjoint from each other and from the keys held online; a release counts only
//! in the `releases` role and a campaign only in the `campaigns` role, so an install needs both thresholds.

use super::{
    Verified,
    key_set::{KeySet, KeySetError},
    keys::PublicKey,
    metadata::{Kind, Target, Targets},
    verify::{CAMPAIGNS, RELEASES, TrustedMetadata},
};
use crate::{
    ids::{CampaignId, Sha256},
    limits::{ARTIFACT_BYTES_MAX, MANIFEST_BYTES_MAX},
    manifest::{
        Artifact, CampaignManifest, ManifestError, Plan, Release, ReleaseInfo, ReleaseRef, campaign_target,
        is_release_target,
    },
};

/// Why something signed does not count for Firmesh.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A role is missing.
    #[error("the top-level targets delegate nothing to the role {role:?}")]
    NotDelegated {
        /// The role.
        role: &'static str,
    },
    /// A role may speak about something else than it should.
    #[error("the role {role:?} is delegated {found:?}, expected exactly {expected:?}")]
    WrongPaths {
        /// The role.
        role: &'static str,
        /// The one pattern it should have.
        expected: &'static str,
        /// What it has.
        found: Vec<String>,
    },
    /// A role's keys are unusable.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// One key speaks for two groups that must be separate people.
    #[error("the key {key} stands both in {first} and in {second}; these must be separate")]
    SharedKey {
        /// The key.
        key: PublicKey,
        /// One role.
        first: String,
        /// The other.
        second: String,
    },
    /// Nobody vouches for the target.
    #[error("nobody has signed for {target}")]
    Unknown {
        /// The target.
        target: String,
    },
    /// Approvers vouch for a release.
    #[error("{target} is signed by campaign approvers only, a release needs release keys")]
    ReleaseByApprovers {
        /// The target.
        target: String,
    },
    /// Release keys vouch for a campaign.
    #[error("{target} is signed by release keys only, a campaign needs its approvers")]
    CampaignByReleaseKeys {
        /// The target.
        target: String,
    },
    /// A target without a SHA-256 digest.
    #[error("{target} has no well-formed sha256 digest")]
    NoSha256 {
        /// The target.
        target: String,
    },
    /// Bytes of another length than the signed one.
    #[error("{target} has {found} bytes, its signed length is {expected}")]
    LengthMismatch {
        /// The target.
        target: String,
        /// The signed length.
        expected: u64,
        /// The length of the bytes.
        found: u64,
    },
    /// Bytes with another digest than the signed one.
    #[error("{target} has the sha256 digest {found}, signed is {expected}")]
    HashMismatch {
        /// The target.
        target: String,
        /// The signed digest.
        expected: Sha256,
        /// The digest of the bytes.
        found: Sha256,
    },
    /// Signed, and still not of the expected form.
    #[error("{target} is signed, but cannot be used")]
    Content {
        /// The target.
        target: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// A document about another campaign than its name says.
    #[error("{target} is about the campaign {found}")]
    WrongCampaign {
        /// The target.
        target: String,
        /// The campaign it names.
        found: CampaignId,
    },
    /// The release was signed again with other bytes after the campaign was approved.
    #[error("{target} is now {found}, the campaign approved {approved}")]
    ReleaseChanged {
        /// The target.
        target: String,
        /// What the approvers signed for.
        approved: Sha256,
        /// What the release keys sign for now.
        found: Sha256,
    },
    /// The plan gives a device something that the campaign does not name.
    #[error("the plan of {campaign} uses {target}, which the campaign does not name")]
    PlanOutsideCampaign {
        /// The campaign.
        campaign: CampaignId,
        /// The target.
        target: String,
    },
}

impl PolicyError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotDelegated { .. } => "not_delegated",
            Self::WrongPaths { .. } => "wrong_paths",
            Self::Keys(error) => error.code(),
            Self::SharedKey { .. } => "shared_key",
            Self::Unknown { .. } => "unknown_target",
            Self::ReleaseByApprovers { .. } => "release_by_approvers",
            Self::CampaignByReleaseKeys { .. } => "campaign_by_release_keys",
            Self::NoSha256 { .. } => "no_known_hash",
            Self::LengthMismatch { .. } => "length_mismatch",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::Content { .. } => "malformed",
            Self::WrongCampaign { .. } => "wrong_campaign",
            Self::ReleaseChanged { .. } => "release_changed",
            Self::PlanOutsideCampaign { .. } => "plan_outside_campaign",
        }
    }
}

/// Verified metadata that keeps Firmesh's rules: the only source of verified releases and campaigns.
#[derive(Debug, Clone)]
pub struct TrustedFleet {
    metadata: TrustedMetadata,
    releases: Targets,
    campaigns: Targets,
}

impl TrustedFleet {
    /// Checks that releases and campaigns are delegated, each to its own pattern and to separate people.
    pub fn new(metadata: TrustedMetadata) -> Result<Self, PolicyError> {
        let release_keys = delegated(&metadata.targets, RELEASES, "firmware/*")?;
        let approver_keys = delegated(&metadata.targets, CAMPAIGNS, "campaigns/*")?;
        check_separate(&release_keys, &approver_keys)?;
        let root_keys = [
            metadata.root.key_set(Kind::Root)?,
            metadata.root.key_set(Kind::Targets)?,
        ];
        for online in [
            metadata.root.key_set(Kind::Snapshot)?,
            metadata.root.key_set(Kind::Timestamp)?,
        ] {
            for offline in root_keys.iter().chain([&release_keys, &approver_keys]) {
                check_separate(&online, offline)?;
            }
        }
        let role = |role| {
            metadata
                .delegated(role)
                .cloned()
                .ok_or(PolicyError::NotDelegated { role })
        };
        let (releases, campaigns) = (role(RELEASES)?, role(CAMPAIGNS)?);
        Ok(Self {
            metadata,
            releases,
            campaigns,
        })
    }

    /// The metadata this rests on.
    #[must_use]
    pub fn metadata(&self) -> &TrustedMetadata {
        &self.metadata
    }

    /// The keys that vouch for releases, with their threshold.
    pub fn release_keys(&self) -> Result<KeySet, PolicyError> {
        delegated(&self.metadata.targets, RELEASES, "firmware/*")
    }

    /// The keys that approve campaigns, with their threshold.
    pub fn approver_keys(&self) -> Result<KeySet, PolicyError> {
        delegated(&self.metadata.targets, CAMPAIGNS, "campaigns/*")
    }

    /// The target names of all releases.
    pub fn releases(&self) -> impl Iterator<Item = &str> {
        self.releases
            .targets
            .keys()
            .map(String::as_str)
            .filter(|name| is_release_target(name))
    }

    /// The ids of all campaigns.
    pub fn campaigns(&self) -> impl Iterator<Item = CampaignId> {
        let id = |name: &String| CampaignId::new(name.strip_prefix("campaigns/")?.strip_suffix(".json")?).ok();
        self.campaigns.targets.keys().filter_map(id)
    }

    /// The release behind a target name such as `firmware/acme-bmc-1.1.0.bin`.
    pub fn release(&self, target: &str) -> Result<Verified<Release>, PolicyError> {
        let name = || target.to_owned();
        let found = self.releases.targets.get(target).filter(|_| is_release_target(target));
        let Some(found) = found else {
            return Err(if self.campaigns.targets.contains_key(target) {
                PolicyError::ReleaseByApprovers { target: name() }
            } else {
                PolicyError::Unknown { target: name() }
            });
        };
        let unusable = |source| PolicyError::Content { target: name(), source };
        let info: ReleaseInfo = serde_json::from_value(found.custom.clone().unwrap_or_default()).map_err(|source| {
            unusable(ManifestError::Malformed {
                what: "release",
                source,
            })
        })?;
        info.check().map_err(unusable)?;
        let artifact = Artifact {
            id: info.blake3,
            sha256: sha256(target, found)?,
            length: found.length,
        };
        if !artifact.length_is_allowed() {
            let problem = format!("is {}, it must be 1 to {ARTIFACT_BYTES_MAX} bytes", found.length);
            return Err(unusable(ManifestError::Bounds {
                what: "release",
                field: "length",
                problem,
            }));
        }
        Ok(Verified(Release {
            target: name(),
            artifact,
            info,
        }))
    }

    /// The release that a campaign pinned: the release keys must still sign for the very bytes the approvers approved.
    pub fn pinned_release(&self, pinned: &ReleaseRef) -> Result<Verified<Release>, PolicyError> {
        let release = self.release(&pinned.target)?;
        if release.artifact.sha256 == pinned.sha256 {
            return Ok(release);
        }
        let (approved, found) = (pinned.sha256, release.artifact.sha256);
        Err(PolicyError::ReleaseChanged {
            target: pinned.target.clone(),
            approved,
            found,
        })
    }

    /// Length and digest of a campaign's manifest, as its approvers signed them: what to fetch.
    pub fn campaign_file(&self, id: &CampaignId) -> Result<(u64, Sha256), PolicyError> {
        let target = campaign_target(id);
        match self.campaigns.targets.get(&target) {
            Some(found) => Ok((found.length, sha256(&target, found)?)),
            None if self.releases.targets.contains_key(&target) => Err(PolicyError::CampaignByReleaseKeys { target }),
            None => Err(PolicyError::Unknown { target }),
        }
    }

    /// The manifest of a campaign: `bytes` are compared with what the approvers signed, and only then parsed.
    pub fn campaign(&self, id: &CampaignId, bytes: &[u8]) -> Result<Verified<CampaignManifest>, PolicyError> {
        let (expected, digest) = self.campaign_file(id)?;
        let (target, found) = (campaign_target(id), bytes.len() as u64);
        if found != expected {
            return Err(PolicyError::LengthMismatch {
                target,
                expected,
                found,
            });
        }
        check_digest(&target, digest, bytes)?;
        let unusable = |source| PolicyError::Content {
            target: target.clone(),
            source,
        };
        if found > MANIFEST_BYTES_MAX {
            let problem = format!("is {found}, it must be at most {MANIFEST_BYTES_MAX} bytes");
            return Err(unusable(ManifestError::Bounds {
                what: "manifest",
                field: "length",
                problem,
            }));
        }
        let manifest = CampaignManifest::from_bytes(bytes).map_err(unusable)?;
        if manifest.id != *id {
            return Err(PolicyError::WrongCampaign {
                target,
                found: manifest.id,
            });
        }
        Ok(Verified(manifest))
    }
}

impl Verified<CampaignManifest> {
    /// The plan that the approvers approved together with the manifest, checked before it is parsed.
    pub fn plan(&self, bytes: &[u8]) -> Result<Verified<Plan>, PolicyError> {
        let target = format!("the plan of {}", self.id);
        check_digest(&target, self.plan_sha256, bytes)?;
        let plan = Plan::from_bytes(bytes).map_err(|source| PolicyError::Content {
            target: target.clone(),
            source,
        })?;
        if plan.campaign != self.id {
            return Err(PolicyError::WrongCampaign {
                target,
                found: plan.campaign,
            });
        }
        for (_, device) in plan.devices() {
            if let Some(target) = self.unnamed(device) {
                return Err(PolicyError::PlanOutsideCampaign {
                    campaign: self.id.clone(),
                    target: target.clone(),
                });
            }
        }
        Ok(Verified(plan))
    }
}

fn delegated(targets: &Targets, role: &'static str, expected: &'static str) -> Result<KeySet, PolicyError> {
    let delegation = targets.delegation(role).ok_or(PolicyError::NotDelegated { role })?;
    let found = delegation.paths.clone().unwrap_or_default();
    if found != [expected] {
        return Err(PolicyError::WrongPaths { role, expected, found });
    }
    targets.delegated_keys(role)?.ok_or(PolicyError::NotDelegated { role })
}

fn check_separate(first: &KeySet, second: &KeySet) -> Result<(), PolicyError> {
    match first.keys().find(|key| second.id_of(key).is_some()) {
        None => Ok(()),
        Some(&key) => {
            let (first, second) = (first.role().to_owned(), second.role().to_owned());
            Err(PolicyError::SharedKey { key, first, second })
        }
    }
}

fn sha256(target: &str, found: &Target) -> Result<Sha256, PolicyError> {
    found.sha256().ok_or_else(|| PolicyError::NoSha256 {
        target: target.to_owned(),
    })
}

fn check_digest(target: &str, expected: Sha256, bytes: &[u8]) -> Result<(), PolicyError> {
    let found = Sha256::of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(PolicyError::HashMismatch {
        target: target.to_owned(),
        expected,
        found,
    })
}
