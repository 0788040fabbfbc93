//! A ceremony's round as one file that goes from person to person: drafts, the signatures gathered so far, manifests and
//! plans.
//!
//! Invariants: taking in a bundle never replaces what is fully signed here by something else or older, and never adds a
//! signature that is not good; what cannot be read whole changes nothing.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use firmesh_protocol::{
    ids::{CampaignId, Sha256},
    limits::{MANIFEST_BYTES_MAX, PLAN_BYTES_MAX, ROOT_BYTES_MAX, TARGETS_BYTES_MAX},
    manifest::{CampaignManifest, campaign_target},
    trust::{FileStatus, Repository, RepositoryError},
};
use serde::{Deserialize, Serialize};

use super::{
    super::files::{ReadFileError, read_bounded, write_file},
    FolderError, TrustFolder,
    lock::FolderLock,
};

const SCHEMA: &str = "firmesh.trust-bundle/1";

/// Three files of targets, a chain of roots, and as much again for manifests and plans.
const BUNDLE_BYTES_MAX: u64 = 4 * TARGETS_BYTES_MAX + 64 * ROOT_BYTES_MAX + PLAN_BYTES_MAX;

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// Not a bundle.
    #[error("{} is not a bundle of a ceremony (firmesh trust export makes one)", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another kind or version of bundle.
    #[error("the bundle is a {found:?}, this version reads {SCHEMA:?}")]
    Schema {
        /// What it says to be.
        found: String,
    },
    /// Its metadata do not hold together.
    #[error("the bundle's metadata cannot be used")]
    Repository(#[from] RepositoryError),
    /// It says something else than what is fully signed here.
    #[error(
        "the bundle has other content under {file} version {version}, which is fully signed here: it is of another fleet, or forged"
    )]
    Conflict {
        /// Which file.
        file: String,
        /// Its version.
        version: u64,
    },
    /// Drafts upon drafts.
    #[error(
        "the bundle's {file} is not fully signed, and there is a newer root: only the newest may wait for signatures"
    )]
    OpenChain {
        /// Which root.
        file: String,
    },
    /// A manifest or plan that is not what the campaign names.
    #[error("the bundle's {what} is not what {by} names (sha256 {found})")]
    OtherDocument {
        /// Manifest or plan.
        what: String,
        /// What names it.
        by: String,
        /// Its digest.
        found: Sha256,
    },
    /// The folder could not be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl BundleError {
    /// Whether a signature or rule is in the way, rather than a mistake or a fault.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. } | Self::OpenChain { .. } | Self::OtherDocument { .. }
        )
    }
}

/// A ceremony's round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustBundle {
    /// [`SCHEMA`].
    schema: String,
    /// Metadata by file name.
    metadata: BTreeMap<String, String>,
    /// Campaign manifests by target name.
    #[serde(default)]
    manifests: BTreeMap<String, String>,
    /// Plans by campaign.
    #[serde(default)]
    plans: BTreeMap<CampaignId, String>,
}

/// What became of one file of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was not here.
    New,
    /// It takes the place of an older version, or of a draft.
    Replaced,
    /// The same content, with so many new signatures.
    Signatures(usize),
    /// Nothing new in it.
    Same,
    /// Older than what is here: left alone.
    Older,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Replaced => f.write_str("replaces what was here"),
            Self::Signatures(1) => f.write_str("1 new signature"),
            Self::Signatures(count) => write!(f, "{count} new signatures"),
            Self::Same => f.write_str("nothing new"),
            Self::Older => f.write_str("older than what is here, left alone"),
        }
    }
}

/// One file of a bundle that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// How far it is now.
    pub status: FileStatus,
    /// What became of it.
    pub outcome: Outcome,
}

impl TrustBundle {
    /// Reads a bundle.
    pub fn load(path: &Path) -> Result<Self, BundleError> {
        Self::from_bytes(&read_bounded(path, BUNDLE_BYTES_MAX)?, path)
    }

    /// Reads a bundle's bytes, which came from `path`.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, BundleError> {
        let bundle: Self = serde_json::from_slice(bytes).map_err(|source| BundleError::Malformed {
            path: path.to_owned(),
            source,
        })?;
        if bundle.schema == SCHEMA {
            Ok(bundle)
        } else {
            let found = bundle.schema.chars().take(80).collect();
            Err(BundleError::Schema { found })
        }
    }

    /// Writes a bundle.
    pub fn save(&self, path: &Path) -> Result<(), BundleError> {
        let bytes = serde_json::to_vec(self).expect("a bundle has only text");
        Ok(write_file(path, &bytes).map_err(FolderError::from)?)
    }

    /// Whether what it holds fits together. Says nothing about whose signatures there are.
    pub fn check(&self) -> Result<(), BundleError> {
        self.contents().map(drop)
    }

    /// The metadata, and the manifests and plans that it names, by file name.
    fn contents(&self) -> Result<(Repository, Documents<'_>), BundleError> {
        let repository = self.repository()?;
        let documents = documents(self, &repository)?;
        Ok((repository, documents))
    }

    fn repository(&self) -> Result<Repository, BundleError> {
        let files = self
            .metadata
            .iter()
            .map(|(name, text)| (name.clone(), text.clone().into_bytes()))
            .collect();
        let repository = Repository::from_files(&files)?;
        let status = repository.status()?;
        let is_root = |status: &&FileStatus| status.file.ends_with(".root.json");
        let roots: Vec<_> = status.iter().filter(is_root).collect();
        match roots.iter().rev().skip(1).find(|root| !root.is_complete()) {
            Some(open) => Err(BundleError::OpenChain {
                file: open.file.clone(),
            }),
            None => Ok(repository),
        }
    }
}

impl TrustFolder {
    /// Everything in the folder as one file to pass on.
    pub fn bundle(&self) -> Result<TrustBundle, FolderError> {
        let text = |bytes| String::from_utf8(bytes).expect("metadata is JSON text");
        let manifests = self.manifests()?;
        let mut plans = BTreeMap::new();
        for (id, _) in self.campaigns() {
            let Some(manifest) = manifests.get(&campaign_target(&id)) else {
                continue;
            };
            let Ok(manifest) = CampaignManifest::from_bytes(manifest.as_bytes()) else {
                continue;
            };
            match read_bounded(&self.plan_path(&id), PLAN_BYTES_MAX) {
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
                Ok(bytes) if Sha256::of(&bytes) == manifest.plan_sha256 => {
                    plans.extend(String::from_utf8(bytes).ok().map(|text| (id, text)));
                }
                // The plan of another edition; nobody signs for it.
                Ok(_) => {}
            }
        }
        Ok(TrustBundle {
            schema: SCHEMA.to_owned(),
            metadata: self
                .repository
                .files()
                .into_iter()
                .map(|(name, bytes)| (name, text(bytes)))
                .collect(),
            manifests,
            plans,
        })
    }

    /// Takes in a bundle where no trust folder is yet. Whoever does this compares the digest of the first root with the
    /// others, by another way than the bundle came.
    pub fn found_from(path: &Path, bundle: &TrustBundle) -> Result<(Self, Vec<Imported>), BundleError> {
        let (repository, documents) = bundle.contents()?;
        let lock = FolderLock::take(path).map_err(FolderError::from)?;
        if path.join("1.root.json").exists() || path.join("targets.json").exists() {
            return Err(FolderError::Exists { path: path.to_owned() }.into());
        }
        let mut folder = Self {
            path: path.to_owned(),
            repository: repository.clone(),
            lock: Some(lock),
        };
        folder.write_documents(&documents)?;
        folder.store(repository)?;
        folder.lock = None;
        let status = folder.status()?.into_iter();
        let imported = status.map(|status| Imported {
            status,
            outcome: Outcome::New,
        });
        let imported = imported.collect();
        Ok((folder, imported))
    }

    /// Takes in a bundle: newer files take the place of older ones and of drafts, signatures over the same content are
    /// added to those that are here.
    pub fn import(&mut self, bundle: &TrustBundle) -> Result<Vec<Imported>, BundleError> {
        let (theirs, documents) = bundle.contents()?;
        let mut result = Err(BundleError::Folder(FolderError::Changed {
            path: self.path.clone(),
        }));
        self.alone(|folder| {
            result = folder.merged(&theirs);
            let Ok((merged, outcomes)) = &result else { return Ok(()) };
            if outcomes.get("campaigns.json") != Some(&Outcome::Older) {
                folder.write_documents(&documents)?;
            }
            folder.store(merged.clone())
        })?;
        let (merged, outcomes) = result?;
        let status = merged.status()?;
        let taken = status.into_iter().filter_map(|status| {
            let outcome = *outcomes.get(&status.file)?;
            Some(Imported { status, outcome })
        });
        Ok(taken.collect())
    }

    fn merged(&self, theirs: &Repository) -> Result<(Repository, BTreeMap<String, Outcome>), BundleError> {
        let ours = &self.repository;
        let here: BTreeMap<_, _> = ours
            .status()?
            .into_iter()
            .map(|status| (status.file.clone(), status))
            .collect();
        let (mut files, their_files) = (ours.files(), theirs.files());
        let (mut outcomes, mut same) = (BTreeMap::new(), Vec::new());
        for status in theirs.status()? {
            let file = status.file;
            let outcome = match here.get(&file) {
                None => Outcome::New,
                Some(known) if known.version > status.version => Outcome::Older,
                Some(known) if known.digest == status.digest => {
                    same.push(file.clone());
                    Outcome::Same
                }
                Some(known) if known.version == status.version && known.is_complete() => {
                    let version = known.version;
                    return Err(BundleError::Conflict { file, version });
                }
                Some(_) => Outcome::Replaced,
            };
            if matches!(outcome, Outcome::New | Outcome::Replaced) {
                files.insert(file.clone(), their_files.get(&file).cloned().unwrap_or_default());
            }
            outcomes.insert(file, outcome);
        }
        let mut merged = Repository::from_files(&files)?;
        for file in same {
            let new = merged.merge_signatures(&file, theirs)?;
            if new > 0 {
                outcomes.insert(file, Outcome::Signatures(new));
            }
        }
        // A root that was replaced under a complete one, or signatures that cannot be counted.
        let status = merged.status()?;
        let roots = status.iter().rev().filter(|status| status.file.ends_with(".root.json"));
        if let Some(open) = roots.skip(1).find(|root| !root.is_complete()) {
            let file = open.file.clone();
            return Err(BundleError::OpenChain { file });
        }
        Ok((merged, outcomes))
    }

    fn write_documents(&self, documents: &[(String, &str)]) -> Result<(), FolderError> {
        for (name, text) in documents {
            write_file(&self.path.join(name), text.as_bytes())?;
        }
        Ok(())
    }
}

/// The manifests and plans of a bundle by the name they are stored under; each is what its campaign names.
/// Manifests and plans, by the name of their file in a trust folder.
type Documents<'a> = Vec<(String, &'a str)>;

fn documents<'a>(bundle: &'a TrustBundle, theirs: &Repository) -> Result<Documents<'a>, BundleError> {
    let mut found = Vec::new();
    for (name, text) in &bundle.manifests {
        let other = || BundleError::OtherDocument {
            what: name.chars().take(80).collect(),
            by: "campaigns.json".to_owned(),
            found: Sha256::of(text.as_bytes()),
        };
        let id = name
            .strip_prefix("campaigns/")
            .and_then(|name| name.strip_suffix(".json"));
        let id = id.and_then(|id| CampaignId::new(id).ok()).ok_or_else(other)?;
        let named = theirs.campaigns().targets.get(name).and_then(|target| target.sha256());
        if named != Some(Sha256::of(text.as_bytes())) || text.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(other());
        }
        found.push((campaign_target(&id), text.as_str()));
        let Some(plan) = bundle.plans.get(&id) else { continue };
        let wanted = CampaignManifest::from_bytes(text.as_bytes())
            .ok()
            .map(|manifest| manifest.plan_sha256);
        if wanted != Some(Sha256::of(plan.as_bytes())) || plan.len() as u64 > PLAN_BYTES_MAX {
            return Err(BundleError::OtherDocument {
                what: format!("plan of {id}"),
                by: "its manifest".to_owned(),
                found: Sha256::of(plan.as_bytes()),
            });
        }
        found.push((format!("campaigns/{id}.plan.json"), plan.as_str()));
    }
    Ok(found)
}
