//! Publishing: signed files are checked exactly as a node would check them, then snapshot and timestamp are signed anew.
//!
//! Pure but for the keys it is handed. Nothing is published that a node would refuse, and nothing in part.

use std::collections::BTreeMap;

use bytes::Bytes;
use firmesh_protocol::{
    api::Publication,
    brake::Braked,
    ids::{ArtifactId, CampaignId, Sha256},
    limits::{MANIFEST_BYTES_MAX, TARGETS_BYTES_MAX},
    manifest::{Artifact, CampaignManifest, campaign_target},
    time::WallTime,
    trust::{
        Input, MetadataError, PolicyError, PublishError, Refresh, RefreshError, Repository, RepositoryError, Role,
        Root, SecretKey, SignedFile, StoredMetadata, Targets, TrustedFleet,
    },
};

use crate::config::MetadataValidity;

/// Snapshots kept for nodes in the middle of a refresh.
const SNAPSHOTS_KEPT: u64 = 16;

/// Why a publication was refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublicationError {
    /// A file of an unknown role.
    #[error("{0:?} is no metadata that is published: send N.root.json, targets, releases or campaigns")]
    UnknownFile(String),
    /// A file that cannot be read.
    #[error("a published file cannot be read")]
    Malformed(#[from] MetadataError),
    /// An older version than the one in force.
    #[error("{file} has version {found}, version {current} is in force: give it a higher version and sign it again")]
    Older {
        /// Which file.
        file: String,
        /// Its version.
        found: u64,
        /// The version in force.
        current: u64,
    },
    /// Other content under a version that was published before.
    #[error("{file} version {version} was published with other content: give it a higher version and sign it again")]
    Changed {
        /// Which file.
        file: String,
        /// Its version.
        version: u64,
    },
    /// The files do not make up a repository.
    #[error(
        "the files do not make up a repository: the first publication needs every N.root.json, targets, releases and campaigns"
    )]
    Repository(#[from] RepositoryError),
    /// The root does not name this coordinator.
    #[error(
        "the root does not list this coordinator's online key {0} for snapshot and timestamp: add it, see `GET /api/v1/about`"
    )]
    NotOnline(String),
    /// A node would refuse the result.
    #[error("a node would refuse this publication")]
    Refused(#[from] PublishError),
    /// A node would refuse the result.
    #[error("a node would refuse this publication")]
    Refresh(#[from] RefreshError),
    /// Signed, and against the rules.
    #[error("a signed target cannot be used")]
    Policy(#[from] PolicyError),
    /// A release without its image.
    #[error("{target} is signed, but its image (SHA-256 {sha256}) is not stored here: `firmesh artifact add` it first")]
    NoArtifact {
        /// The target.
        target: String,
        /// The image.
        sha256: Sha256,
    },
    /// A campaign without its manifest.
    #[error("{target} is signed, but its manifest was not sent along")]
    NoManifest {
        /// The target.
        target: String,
    },
    /// A manifest nobody signed for.
    #[error("{target} was sent along, but approvers have not signed for it")]
    Unsigned {
        /// The target.
        target: String,
    },
    /// A manifest whose plan was not made here.
    #[error(
        "the plan {sha256} of campaign {campaign} is not stored here: plan it with `POST /api/v1/plans`, and sign what comes back"
    )]
    NoPlan {
        /// The campaign.
        campaign: CampaignId,
        /// The plan.
        sha256: Sha256,
    },
    /// A manifest that another coordinator is to run.
    #[error(
        "campaign {campaign} does not list this coordinator's permit key {key}: its permits would count for nothing"
    )]
    NotPermitted {
        /// The campaign.
        campaign: CampaignId,
        /// The key.
        key: String,
    },
    /// Something that was stopped for good.
    #[error("a brake was pulled: {0} is stopped for good; go on with another edition or another image")]
    Braked(Braked),
    /// A release that the provenance policy has not accepted.
    #[error("{target} is signed, but the provenance policy of this coordinator has not accepted it")]
    Unvetted {
        /// The target.
        target: String,
    },
    /// A manifest that was replaced too late.
    #[error("campaign {0} has been started: a new edition needs a new name")]
    Started(CampaignId),
    /// Nothing to publish, and nothing published.
    #[error("nothing is published yet: send root, targets, releases and campaigns")]
    Nothing,
}

impl PublicationError {
    /// Whether a signature or a rule refused it, rather than a mistake in the request.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::UnknownFile(_) | Self::Malformed(_) | Self::Nothing | Self::NoManifest { .. }
        )
    }
}

/// What is published.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    /// Every file by the name nodes fetch it by.
    pub files: BTreeMap<String, Bytes>,
    /// What a client trusts after a refresh.
    pub trusted: StoredMetadata,
    /// Manifests by campaign.
    pub manifests: BTreeMap<CampaignId, Bytes>,
    /// The verified view; `None` before the first publication, or while what was published has expired.
    pub fleet: Option<TrustedFleet>,
}

impl Published {
    /// The version of the timestamp in force; 0 before there is one.
    #[must_use]
    pub(crate) fn timestamp_version(&self) -> u64 {
        self.fleet
            .as_ref()
            .map_or(0, |fleet| fleet.metadata().timestamp().header.version)
    }

    /// The versions in force, by role.
    #[must_use]
    pub(crate) fn versions(&self) -> BTreeMap<String, u64> {
        let Some(fleet) = &self.fleet else {
            return BTreeMap::new();
        };
        let metadata = fleet.metadata();
        let mut versions: BTreeMap<_, _> = [
            ("root", metadata.root().header.version),
            ("timestamp", metadata.timestamp().header.version),
            ("snapshot", metadata.snapshot().header.version),
            ("targets", metadata.targets().header.version),
        ]
        .map(|(role, version)| (role.to_owned(), version))
        .into();
        for role in ["releases", "campaigns"] {
            versions.extend(
                metadata
                    .delegated(role)
                    .map(|targets| (role.to_owned(), targets.header.version)),
            );
        }
        versions
    }

    /// The files as their authors know them.
    fn authored(&self) -> BTreeMap<String, Vec<u8>> {
        let is_root = |name: &String| name.ends_with(".root.json");
        let roots = self
            .files
            .iter()
            .filter(|(name, _)| is_root(name))
            .map(|(name, bytes)| (name.clone(), bytes.to_vec()));
        let targets = ["targets.json", "releases.json", "campaigns.json"];
        let targets = targets
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.trusted.get(*name)?.clone())));
        roots.chain(targets).collect()
    }

    /// The next state: `self` with the publication's files, signed anew for as long as `validity` says.
    pub(crate) fn with(
        &self,
        publication: &Publication,
        online: &SecretKey,
        artifacts: &BTreeMap<ArtifactId, Artifact>,
        now: WallTime,
        validity: MetadataValidity,
    ) -> Result<Self, PublicationError> {
        let mut authored = self.authored();
        if authored.is_empty() && publication.metadata.is_empty() {
            return Err(PublicationError::Nothing);
        }
        for (name, text) in &publication.metadata {
            let file = file_name(name, text.as_bytes())?;
            if let Some(current) = authored.get(&file) {
                refuse_older(&file, current, text.as_bytes())?;
            }
            authored.insert(file, text.as_bytes().to_vec());
        }
        let repository = Repository::from_files(&authored)?;
        let key = online.public();
        let roles = [
            firmesh_protocol::trust::Kind::Snapshot,
            firmesh_protocol::trust::Kind::Timestamp,
        ];
        let lists_us = |kind| {
            repository
                .root()
                .key_set(kind)
                .is_ok_and(|set| set.id_of(&key).is_some())
        };
        if !roles.into_iter().all(lists_us) {
            return Err(PublicationError::NotOnline(key.to_string()));
        }
        let result = repository.publish(&self.trusted, now, validity.expiries(now), &[online])?;
        let mut trusted = result.stored;
        let fetch = |name: &str, _| {
            result
                .files
                .get(name)
                .map_or(Input::NotFound, |b| Input::Fetched(b.clone()))
        };
        let metadata = Refresh::new(trusted.clone(), now)?.run(&mut trusted, fetch)?;
        let fleet = TrustedFleet::new(metadata)?;
        check_releases(&fleet, artifacts)?;
        let manifests = self.check_manifests(&fleet, publication)?;
        let mut files = self.files.clone();
        files.extend(result.files.into_iter().map(|(name, bytes)| (name, Bytes::from(bytes))));
        let oldest = fleet
            .metadata()
            .snapshot()
            .header
            .version
            .saturating_sub(SNAPSHOTS_KEPT);
        files.retain(|name, _| snapshot_version(name).is_none_or(|version| version >= oldest));
        Ok(Self {
            files,
            trusted,
            manifests,
            fleet: Some(fleet),
        })
    }

    fn check_manifests(
        &self,
        fleet: &TrustedFleet,
        publication: &Publication,
    ) -> Result<BTreeMap<CampaignId, Bytes>, PublicationError> {
        let mut manifests = BTreeMap::new();
        for id in fleet.campaigns() {
            let target = campaign_target(&id);
            let sent = publication
                .manifests
                .get(&target)
                .map(|text| Bytes::copy_from_slice(text.as_bytes()));
            let bytes = sent
                .or_else(|| self.manifests.get(&id).cloned())
                .ok_or(PublicationError::NoManifest { target })?;
            fleet.campaign(&id, &bytes)?;
            manifests.insert(id, bytes);
        }
        let is_signed = |target: &&String| manifests.keys().any(|id| campaign_target(id) == **target);
        match publication.manifests.keys().find(|target| !is_signed(target)) {
            Some(target) => Err(PublicationError::Unsigned { target: target.clone() }),
            None => Ok(manifests),
        }
    }

    /// The campaigns of `self` that `before` does not have, or has in another edition.
    pub(crate) fn new_campaigns<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = (&'a CampaignId, &'a Bytes)> {
        self.manifests
            .iter()
            .filter(|(id, bytes)| before.manifests.get(*id) != Some(*bytes))
    }
}

/// Checks a campaign that is about to be run here: `plan` is what is stored under the digest it names.
pub(crate) fn check_campaign(
    fleet: &TrustedFleet,
    id: &CampaignId,
    manifest: &[u8],
    plan: Option<&[u8]>,
    permit: &SecretKey,
) -> Result<(CampaignManifest, firmesh_protocol::manifest::Plan), PublicationError> {
    let manifest = fleet.campaign(id, manifest)?;
    let key = permit.public().to_string();
    if !manifest.permit_keys.contains(&key) {
        return Err(PublicationError::NotPermitted {
            campaign: id.clone(),
            key,
        });
    }
    for pinned in manifest.pinned() {
        fleet.pinned_release(pinned)?;
    }
    let no_plan = || PublicationError::NoPlan {
        campaign: id.clone(),
        sha256: manifest.plan_sha256,
    };
    let plan = manifest.plan(plan.ok_or_else(no_plan)?)?;
    Ok((manifest.into_inner(), plan.into_inner()))
}

fn check_releases(fleet: &TrustedFleet, artifacts: &BTreeMap<ArtifactId, Artifact>) -> Result<(), PublicationError> {
    for target in fleet.releases() {
        let release = fleet.release(target)?;
        if artifacts.get(&release.artifact.id) != Some(&release.artifact) {
            return Err(PublicationError::NoArtifact {
                target: target.to_owned(),
                sha256: release.artifact.sha256,
            });
        }
    }
    Ok(())
}

/// The authors' name of a file sent as `role`, `role.json` or `N.role.json`.
fn file_name(name: &str, bytes: &[u8]) -> Result<String, PublicationError> {
    let stem = name.strip_suffix(".json").unwrap_or(name);
    let role = match stem.split_once('.') {
        Some((version, role)) if version.bytes().all(|b| b.is_ascii_digit()) => role,
        _ => stem,
    };
    match role {
        "root" => {
            let file = SignedFile::from_bytes(name, bytes)?;
            Ok(format!("{}.root.json", file.unverified::<Root>(name)?.header.version))
        }
        "targets" | "releases" | "campaigns" => Ok(format!("{role}.json")),
        _ => Err(PublicationError::UnknownFile(name.chars().take(80).collect())),
    }
}

fn refuse_older(file: &str, current: &[u8], new: &[u8]) -> Result<(), PublicationError> {
    fn version<T: Role>(file: &str, bytes: &[u8]) -> Result<u64, MetadataError> {
        Ok(SignedFile::from_bytes(file, bytes)?
            .unverified::<T>(file)?
            .header()
            .version)
    }
    let of = |bytes| match file.ends_with("root.json") {
        true => version::<Root>(file, bytes),
        false => version::<Targets>(file, bytes),
    };
    let (current_version, found) = (of(current)?, of(new)?);
    let file = file.to_owned();
    if found < current_version {
        return Err(PublicationError::Older {
            file,
            found,
            current: current_version,
        });
    }
    if found == current_version && current != new {
        return Err(PublicationError::Changed { file, version: found });
    }
    Ok(())
}

fn snapshot_version(name: &str) -> Option<u64> {
    name.strip_suffix(".snapshot.json")?.parse().ok()
}

/// The longest body of a publication.
pub(crate) const PUBLICATION_BYTES_MAX: usize = TARGETS_BYTES_MAX as usize + 16 * MANIFEST_BYTES_MAX as usize;
