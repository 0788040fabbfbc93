//! The trust folder: the metadata under its authors' hands, campaign manifests beside it, passed from signer to signer.
//!
//! Invariants: one process at a time changes it; what was fully signed once is kept under `signed/`, so that a signer sees
//! what a new version changes.

mod bundle;
mod changes;
mod describe;
mod history;
mod lock;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use firmesh_protocol::{
    api::Publication,
    ids::{CampaignId, Sha256},
    limits::MANIFEST_BYTES_MAX,
    manifest::{CampaignManifest, campaign_target},
    time::WallTime,
    trust::{Ceremony, FileStatus, Kind, PublicKey, Repository, RepositoryError, SignerRole, Signers, Target},
};

use self::lock::FolderLock;
use super::{
    files::{ReadFileError, WriteFileError, read_bounded, write_file},
    keys::{Signer, TokenError},
};

pub use self::{
    bundle::{BundleError, Imported, Outcome, TrustBundle},
    changes::{Change, ChangeKind},
    lock::LockError,
};

/// Why the trust folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteFileError),
    /// Somebody else is changing it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Somebody else has changed it.
    #[error("{} has been changed by somebody else meanwhile: look at it again (firmesh trust show), and repeat", path.display())]
    Changed {
        /// The folder.
        path: PathBuf,
    },
    /// The key did not sign.
    #[error("{file} was not signed")]
    Sign {
        /// Which file.
        file: String,
        /// Why.
        source: Box<TokenError>,
    },
    /// There is a trust folder already.
    #[error("{} holds a trust folder already; its keys are replaced by rotation, not by starting again", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The metadata is not as it should be.
    #[error("the trust folder {}", path.display())]
    Repository {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        source: RepositoryError,
    },
    /// A file cannot be published yet.
    #[error("{file} version {version} has {have} of the {need} signatures of {role}")]
    Incomplete {
        /// Which file.
        file: String,
        /// Its version.
        version: u64,
        /// Whose signatures.
        role: String,
        /// Good signatures.
        have: usize,
        /// Signatures needed.
        need: usize,
    },
    /// The key has nothing to do in this folder.
    #[error("the key {key} is not listed for {files} in this trust folder")]
    Stranger {
        /// The key.
        key: PublicKey,
        /// The files looked at.
        files: String,
    },
    /// A manifest that the signed digest does not match.
    #[error("{} is not the manifest that campaigns.json names (its sha256 digest is {found})", path.display())]
    OtherManifest {
        /// The manifest's file.
        path: PathBuf,
        /// Its digest.
        found: Sha256,
    },
}

impl FolderError {
    /// Whether a rule or a signature is in the way, rather than a mistake or a fault.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Incomplete { .. } | Self::Stranger { .. } | Self::OtherManifest { .. }
        ) || matches!(
            self,
            Self::Repository {
                source: RepositoryError::NotAuthorised { .. }
                    | RepositoryError::SharedKey { .. }
                    | RepositoryError::Unreachable { .. },
                ..
            }
        )
    }
}

/// A file that was just signed, with exactly what the signature covers.
#[derive(Debug, Clone)]
pub struct SignedNow {
    /// How far the file is now.
    pub status: FileStatus,
    /// What it says, line by line, for a person.
    pub summary: Vec<String>,
    /// What it changes.
    pub changes: Vec<Change>,
}

/// A trust folder on disk.
#[derive(Debug)]
pub struct TrustFolder {
    path: PathBuf,
    repository: Repository,
    lock: Option<FolderLock>,
}

impl TrustFolder {
    /// Starts a folder with the first, unsigned versions of every file.
    pub fn create(path: &Path, ceremony: &Ceremony) -> Result<Self, FolderError> {
        if path.join("1.root.json").exists() || path.join("targets.json").exists() {
            return Err(FolderError::Exists { path: path.to_owned() });
        }
        let repository = Repository::create(ceremony).map_err(|source| FolderError::Repository {
            path: path.to_owned(),
            source,
        })?;
        let _alone = FolderLock::take(path)?;
        let folder = Self {
            path: path.to_owned(),
            repository,
            lock: None,
        };
        folder.save()?;
        Ok(folder)
    }

    /// Opens a folder.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        Ok(Self {
            path: path.to_owned(),
            repository: read(path)?,
            lock: None,
        })
    }

    /// Opens a folder and keeps everybody else from changing it, until it is dropped.
    pub fn open_locked(path: &Path) -> Result<Self, FolderError> {
        // A folder that is none gets no lock file either.
        read(path)?;
        let lock = FolderLock::take(path)?;
        Ok(Self {
            path: path.to_owned(),
            repository: read(path)?,
            lock: Some(lock),
        })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Changes the metadata and stores it.
    pub fn edit(
        &mut self,
        change: impl FnOnce(&mut Repository) -> Result<(), RepositoryError>,
    ) -> Result<(), FolderError> {
        self.alone(|folder| {
            let mut changed = folder.repository.clone();
            change(&mut changed).map_err(|source| folder.unfit(source))?;
            folder.store(changed)
        })
    }

    /// Does something while nobody else changes the folder. What is in memory has to be what is on the disk.
    fn alone<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, FolderError>) -> Result<T, FolderError> {
        if self.lock.is_some() {
            return act(self);
        }
        self.lock = Some(FolderLock::take(&self.path)?);
        let done = match read(&self.path) {
            Ok(found) if found.files() == self.repository.files() => act(self),
            Ok(_) => Err(FolderError::Changed {
                path: self.path.clone(),
            }),
            Err(error) => Err(error),
        };
        self.lock = None;
        done
    }

    fn store(&mut self, changed: Repository) -> Result<(), FolderError> {
        self.record_signed()?;
        self.repository = changed;
        self.save()?;
        self.record_signed()
    }

    /// How far the signing of every file is.
    pub fn status(&self) -> Result<Vec<FileStatus>, FolderError> {
        self.repository.status().map_err(|source| self.unfit(source))
    }

    /// Who signs for a role, as the newest files say.
    pub fn signers(&self, role: SignerRole) -> Result<Signers, FolderError> {
        self.repository.signers(role).map_err(|source| self.unfit(source))
    }

    /// The incomplete files among `only` (all if empty) that `key` may sign. None at all is an error if the key could
    /// never sign any of them.
    pub fn signable(&self, key: &PublicKey, only: &[&str]) -> Result<Vec<FileStatus>, FolderError> {
        let looked_at = |file: &str| only.is_empty() || only.contains(&file);
        let mut waiting = self.repository.signable(key).map_err(|source| self.unfit(source))?;
        waiting.retain(|status| looked_at(&status.file));
        let mut listed = !waiting.is_empty();
        let files = self.status()?;
        // Whoever signed an old root has nothing to do here any longer.
        let newest = files
            .iter()
            .rposition(|status| status.file.ends_with(".root.json"))
            .unwrap_or(0);
        for status in files[newest..].iter().filter(|status| looked_at(&status.file)) {
            let sets = self
                .repository
                .key_sets(&status.file)
                .map_err(|source| self.unfit(source))?;
            listed |= sets.iter().any(|set| set.id_of(key).is_some());
        }
        if listed {
            return Ok(waiting);
        }
        let files = if only.is_empty() {
            "any file".to_owned()
        } else {
            only.join(", ")
        };
        Err(FolderError::Stranger { key: *key, files })
    }

    /// Signs what [`Self::signable`] lists, stores it, and tells what was signed.
    pub fn sign(&mut self, key: &impl Signer, only: &[&str]) -> Result<Vec<SignedNow>, FolderError> {
        self.alone(|folder| folder.sign_alone(key, only))
    }

    fn sign_alone(&mut self, key: &impl Signer, only: &[&str]) -> Result<Vec<SignedNow>, FolderError> {
        let (public, mut told) = (key.public_key(), Vec::new());
        let waiting = self.signable(&public, only)?;
        let mut changed = self.repository.clone();
        for FileStatus { file, .. } in &waiting {
            told.push((self.describe(file)?, self.changes(file)?));
            let bytes = changed.signed_bytes(file).map_err(|source| self.unfit(source))?;
            let signature = key.signature(bytes).map_err(|source| FolderError::Sign {
                file: file.clone(),
                source: Box::new(source),
            })?;
            changed
                .add_signature(file, &public, &signature)
                .map_err(|source| self.unfit(source))?;
        }
        self.store(changed)?;
        let mut status = self.status()?;
        status.retain(|now| waiting.iter().any(|before| before.file == now.file));
        let signed = status.into_iter().zip(told);
        Ok(signed
            .map(|(status, (summary, changes))| SignedNow {
                status,
                summary,
                changes,
            })
            .collect())
    }

    /// Where a campaign's manifest lies.
    #[must_use]
    pub fn manifest_path(&self, campaign: &CampaignId) -> PathBuf {
        self.path.join(campaign_target(campaign))
    }

    /// Where the plan of a campaign lies once it is planned.
    #[must_use]
    pub fn plan_path(&self, campaign: &CampaignId) -> PathBuf {
        self.path.join(format!("campaigns/{campaign}.plan.json"))
    }

    /// The campaigns that `campaigns.json` names. Names that are not a campaign's are left out: they may come from
    /// somebody else's folder, and no path is made of them.
    pub fn campaigns(&self) -> impl Iterator<Item = (CampaignId, &Target)> {
        let id = |name: &str| CampaignId::new(name.strip_prefix("campaigns/")?.strip_suffix(".json")?).ok();
        let targets = &self.repository.campaigns().targets;
        targets
            .iter()
            .filter_map(move |(name, target)| Some((id(name)?, target)))
    }

    /// The files (`only` these; all if empty) as a coordinator takes them, with the manifests that `campaigns.json`
    /// names. A file that lacks signatures stops it.
    pub fn publication(&self, only: &[&str]) -> Result<Publication, FolderError> {
        let taken = |file: &str| only.is_empty() || only.contains(&file);
        for FileStatus {
            file, version, roles, ..
        } in self.status()?
        {
            let missing = roles.into_iter().find(|role| role.have < role.need);
            if let Some(missing) = missing.filter(|_| taken(&file)) {
                let (role, have, need) = (missing.role, missing.have, missing.need);
                return Err(FolderError::Incomplete {
                    file,
                    version,
                    role,
                    have,
                    need,
                });
            }
        }
        let text = |bytes| String::from_utf8(bytes).expect("metadata is JSON text");
        let files = self.repository.files().into_iter().filter(|(file, _)| taken(file));
        let metadata = files.map(|(file, bytes)| (file, text(bytes))).collect();
        let manifests = if taken("campaigns.json") {
            self.manifests()?
        } else {
            BTreeMap::new()
        };
        Ok(Publication { metadata, manifests })
    }

    /// Writes a campaign's manifest under its target name, and stages it for the approvers.
    pub(super) fn set_manifest(&mut self, manifest: &CampaignManifest, expires: WallTime) -> Result<(), FolderError> {
        self.alone(|folder| {
            let bytes = serde_json::to_vec_pretty(manifest).expect("a manifest has only names, numbers and lists");
            write_file(&folder.manifest_path(&manifest.id), &bytes)?;
            let target = Target::new(bytes.len() as u64, Sha256::of(&bytes), None);
            folder.edit(|repository| repository.set_campaign(&manifest.target(), target, expires))
        })
    }

    /// Every manifest of `campaigns.json` that lies in the folder, as text. One that is not what was signed is an error.
    fn manifests(&self) -> Result<BTreeMap<String, String>, FolderError> {
        let mut manifests = BTreeMap::new();
        for (id, target) in self.campaigns() {
            let path = self.manifest_path(&id);
            match read_bounded(&path, MANIFEST_BYTES_MAX) {
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
                Ok(bytes) => {
                    let found = Sha256::of(&bytes);
                    let signed = target.sha256() == Some(found);
                    match String::from_utf8(bytes) {
                        Ok(text) if signed => _ = manifests.insert(campaign_target(&id), text),
                        _ => return Err(FolderError::OtherManifest { path, found }),
                    }
                }
            }
        }
        Ok(manifests)
    }

    fn save(&self) -> Result<(), FolderError> {
        for (name, bytes) in self.repository.files() {
            let path = self.path.join(name);
            if read_bounded(&path, bytes.len() as u64).is_ok_and(|stored| stored == bytes) {
                continue;
            }
            write_file(&path, &bytes)?;
        }
        Ok(())
    }

    fn unfit(&self, source: RepositoryError) -> FolderError {
        FolderError::Repository {
            path: self.path.clone(),
            source,
        }
    }
}

fn read(path: &Path) -> Result<Repository, FolderError> {
    let unreadable = |source| ReadFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let Ok(name) = entry.map_err(unreadable)?.file_name().into_string() else {
            continue;
        };
        let kind = match name.as_str() {
            "targets.json" | "releases.json" | "campaigns.json" => Kind::Targets,
            other if other.ends_with(".root.json") => Kind::Root,
            _ => continue,
        };
        let bytes = read_bounded(&path.join(&name), kind.bytes_max())?;
        files.insert(name, bytes);
    }
    Repository::from_files(&files).map_err(|source| FolderError::Repository {
        path: path.to_owned(),
        source,
    })
}
