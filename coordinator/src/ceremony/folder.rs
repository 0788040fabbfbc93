//! The trust folder: the metadata under its authors' hands, campaign manifests beside it, passed from signer to signer.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use firmesh_protocol::{
    api::Publication,
    ids::{CampaignId, Sha256},
    limits::MANIFEST_BYTES_MAX,
    manifest::{CampaignManifest, ReleaseInfo, Strategy, campaign_target},
    time::WallTime,
    trust::{
        Ceremony, DelegatedRole, FileStatus, KeyId, Kind, PublicKey, Repository, RepositoryError, RoleKeys, Root,
        SecretKey, SignedFile, Target, Targets,
    },
};

use super::files::{ReadFileError, WriteFileError, read_bounded, write_file};

/// Why the trust folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file could not be read.
    #[error(transparent)]
    Read(#[from] ReadFileError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteFileError),
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
                source: RepositoryError::NotAuthorised { .. } | RepositoryError::SharedKey { .. },
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
}

/// A trust folder on disk.
#[derive(Debug)]
pub struct TrustFolder {
    path: PathBuf,
    repository: Repository,
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
        let folder = Self {
            path: path.to_owned(),
            repository,
        };
        folder.save()?;
        Ok(folder)
    }

    /// Opens a folder.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
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
        let repository = Repository::from_files(&files).map_err(|source| FolderError::Repository {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            repository,
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
        let mut changed = self.repository.clone();
        change(&mut changed).map_err(|source| self.unfit(source))?;
        self.repository = changed;
        self.save()
    }

    /// How far the signing of every file is.
    pub fn status(&self) -> Result<Vec<FileStatus>, FolderError> {
        self.repository.status().map_err(|source| self.unfit(source))
    }

    /// The incomplete files among `only` (all if empty) that `key` may sign. None at all is an error if the key could
    /// never sign any of them.
    pub fn signable(&self, key: &PublicKey, only: &[&str]) -> Result<Vec<FileStatus>, FolderError> {
        let looked_at = |file: &str| only.is_empty() || only.contains(&file);
        let mut waiting = self.repository.signable(key).map_err(|source| self.unfit(source))?;
        waiting.retain(|status| looked_at(&status.file));
        let mut listed = !waiting.is_empty();
        for status in self.status()?.iter().filter(|status| looked_at(&status.file)) {
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
    pub fn sign(&mut self, key: &SecretKey, only: &[&str]) -> Result<Vec<SignedNow>, FolderError> {
        let waiting = self.signable(&key.public(), only)?;
        let summaries = waiting
            .iter()
            .map(|status| self.describe(&status.file))
            .collect::<Result<Vec<_>, _>>()?;
        self.edit(|repository| waiting.iter().try_for_each(|status| repository.sign(&status.file, key)))?;
        let mut status = self.status()?;
        status.retain(|now| waiting.iter().any(|before| before.file == now.file));
        Ok(status
            .into_iter()
            .zip(summaries)
            .map(|(status, summary)| SignedNow { status, summary })
            .collect())
    }

    /// What a file says, line by line, for a person about to sign it.
    pub fn describe(&self, file: &str) -> Result<Vec<String>, FolderError> {
        match file {
            "targets.json" => Ok(self.describe_delegations()),
            "releases.json" => Ok(describe_releases(self.repository.releases())),
            "campaigns.json" => self.describe_campaigns(),
            root => self.describe_root(root),
        }
    }

    /// Where a campaign's manifest lies.
    #[must_use]
    pub fn manifest_path(&self, campaign: &CampaignId) -> PathBuf {
        self.path.join(campaign_target(campaign))
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
        let bytes = serde_json::to_vec_pretty(manifest).expect("a manifest has only names, numbers and lists");
        write_file(&self.manifest_path(&manifest.id), &bytes)?;
        let target = Target::new(bytes.len() as u64, Sha256::of(&bytes), None);
        self.edit(|repository| repository.set_campaign(&manifest.target(), target, expires))
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

    fn describe_root(&self, file: &str) -> Result<Vec<String>, FolderError> {
        let bytes = read_bounded(&self.path.join(file), Kind::Root.bytes_max())?;
        let root = SignedFile::from_bytes(file, &bytes).and_then(|signed| signed.unverified(file));
        let root: Root = root.map_err(|source| self.unfit(source.into()))?;
        let line =
            |(name, role): (&String, &RoleKeys)| format!("{name}: {} of {}", role.threshold, keys(role.keyids.iter()));
        Ok(root.roles.iter().map(line).collect())
    }

    fn describe_delegations(&self) -> Vec<String> {
        let delegations = self.repository.targets().delegations.as_ref();
        let line = |role: &DelegatedRole| {
            let paths = role.paths.as_deref().unwrap_or_default().join(", ");
            format!(
                "{paths} to {}: {} of {}",
                role.name,
                role.threshold,
                keys(role.keyids.iter())
            )
        };
        delegations.map_or_else(Vec::new, |delegations| delegations.roles.iter().map(line).collect())
    }

    fn describe_campaigns(&self) -> Result<Vec<String>, FolderError> {
        let (targets, manifests) = (&self.repository.campaigns().targets, self.manifests()?);
        let line = |(name, target): (&String, &Target)| {
            let digest = target
                .sha256()
                .map_or_else(|| "none".to_owned(), |digest| digest.to_string());
            let rules = manifests
                .get(name)
                .map(|text| CampaignManifest::from_bytes(text.as_bytes()));
            let rules = match rules {
                Some(Ok(manifest)) => describe_manifest(&manifest),
                Some(Err(error)) => format!("NOT A USABLE MANIFEST: {error}"),
                None => "ITS MANIFEST IS NOT IN THIS FOLDER, only the digest can be compared".to_owned(),
            };
            format!("{name} sha256 {digest}: {rules}")
        };
        Ok(targets.iter().map(line).collect())
    }
}

fn describe_releases(releases: &Targets) -> Vec<String> {
    let line = |(name, target): (&String, &Target)| {
        let digest = target
            .sha256()
            .map_or_else(|| "none".to_owned(), |digest| digest.to_string());
        let what = match serde_json::from_value::<ReleaseInfo>(target.custom.clone().unwrap_or_default()) {
            Ok(info) => format!(
                "{} {} {} {}, security epoch {}",
                info.vendor,
                info.models.join("/"),
                info.component,
                info.version,
                info.security_epoch
            ),
            Err(error) => format!("NOT A USABLE RELEASE: {error}"),
        };
        format!("{name} ({} bytes) sha256 {digest}: {what}", target.length)
    };
    releases.targets.iter().map(line).collect()
}

fn describe_manifest(manifest: &CampaignManifest) -> String {
    let Strategy::Canary { shares } = &manifest.strategy;
    let shares: Vec<_> = shares.iter().map(ToString::to_string).collect();
    let releases: Vec<_> = manifest.releases.iter().map(|pinned| pinned.target.as_str()).collect();
    format!(
        "installs {}; waves up to {}; at most {} per rack and {} in all; expires {}; plan sha256 {}",
        releases.join(", "),
        shares.join(", "),
        manifest.caps.per_rack,
        manifest.caps.total,
        manifest.expires,
        manifest.plan_sha256
    )
}

fn keys<'a>(ids: impl ExactSizeIterator<Item = &'a KeyId>) -> String {
    let count = ids.len();
    let short: Vec<_> = ids.map(|id| id.as_str().chars().take(12).collect::<String>()).collect();
    format!("{count} keys ({})", short.join(", "))
}
