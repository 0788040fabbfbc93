//! The authoring side: metadata files as they are drawn up, signed by several people in turn, and published.
//!
//! Invariants: changing a file takes its signatures away, and starts the next version if it was complete; a signature is
//! only taken from a key that the file's role lists; what [`Repository::publish`] gives out, a client accepts.

mod rotation;

use std::collections::{BTreeMap, BTreeSet};

pub use rotation::{SignerRole, UnknownRole};

use super::{
    delegation::{DelegatedRole, Delegations},
    errors::RefreshError,
    fleet::{PolicyError, TrustedFleet},
    key_set::{KeySet, KeySetError, SignatureError},
    keys::{Key, PublicKey, SecretKey},
    metadata::{
        Extra, Header, Kind, MetaFile, MetadataError, Role, RoleKeys, Root, SignedFile, Snapshot, Target, Targets,
        Timestamp, TimestampMeta,
    },
    verify::{CAMPAIGNS, Input, RELEASES, Refresh, StoredMetadata},
};
use crate::{ids::Sha256, time::WallTime};

/// Why the folder of metadata could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A file is missing.
    #[error("there is no {file}")]
    NoFile {
        /// Which file.
        file: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A role's keys are unusable.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// A file bears signatures that could not be counted.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A threshold that the keys cannot meet.
    #[error("{role}: {keys} keys cannot meet a threshold of {threshold}")]
    Unreachable {
        /// Which role.
        role: String,
        /// How many keys it has.
        keys: usize,
        /// How many must sign.
        threshold: u64,
    },
    /// One key in two groups that must be separate people.
    #[error("the key {key} stands both in {first} and in {second}; these must be separate")]
    SharedKey {
        /// The key.
        key: PublicKey,
        /// One group.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// The key may not sign the file.
    #[error("the key {key} may not sign {file}: {allowed} can")]
    NotAuthorised {
        /// The key.
        key: PublicKey,
        /// Which file.
        file: String,
        /// The role whose keys can.
        allowed: String,
    },
    /// A signature that is not the key's over this file.
    #[error("the signature of {key} under {file} is not good: it was made over another version, or damaged")]
    BadSignature {
        /// The key.
        key: PublicKey,
        /// Which file.
        file: String,
    },
    /// Two versions of a file say to be the same one, or a version is missing in the chain.
    #[error("{file} has version {found}, expected {expected}")]
    WrongVersion {
        /// Which file.
        file: String,
        /// The version its name or place says.
        expected: u64,
        /// The version inside.
        found: u64,
    },
}

/// Why a repository cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The files cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A file lacks signatures.
    #[error("{file} version {version} has {have} of the {need} signatures of {role}")]
    Incomplete {
        /// Which file.
        file: String,
        /// Its version.
        version: u64,
        /// The role that signs it.
        role: String,
        /// Good signatures.
        have: usize,
        /// Signatures needed.
        need: usize,
    },
    /// A client that trusts what was published before would refuse it.
    #[error("clients would refuse the new metadata")]
    Refused(#[from] RefreshError),
    /// A client would find the metadata against Firmesh's rules.
    #[error("clients would refuse the new delegations")]
    Policy(#[from] PolicyError),
}

impl PublishError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Repository(_) => "malformed",
            Self::Incomplete { .. } => "signature_threshold",
            Self::Refused(error) => error.code(),
            Self::Policy(error) => error.code(),
        }
    }
}

/// A group of keys and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    /// The keys.
    pub keys: Vec<PublicKey>,
    /// How many must sign.
    pub threshold: u64,
}

/// The groups of people (and the one machine) that a new fleet begins with.
#[derive(Debug, Clone)]
pub struct Ceremony {
    /// Sign root and top-level targets.
    pub root: Signers,
    /// Sign releases.
    pub releases: Signers,
    /// Approve campaigns.
    pub campaigns: Signers,
    /// The coordinator's keys for snapshot and timestamp.
    pub online: Signers,
    /// When the first versions expire.
    pub expires: WallTime,
}

/// How far the signing of a file is for one role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleStatus {
    /// The role; `previous root` for the keys a new root takes over from.
    pub role: String,
    /// Good signatures.
    pub have: usize,
    /// Signatures needed.
    pub need: usize,
}

/// How far the signing of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStatus {
    /// The file's name in the folder.
    pub file: String,
    /// Its version.
    pub version: u64,
    /// When it expires.
    pub expires: WallTime,
    /// SHA-256 of the bytes that signatures cover: what signers compare.
    pub digest: Sha256,
    /// Every role that must sign.
    pub roles: Vec<RoleStatus>,
}

impl FileStatus {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.roles.iter().all(|role| role.have >= role.need)
    }
}

/// Until when snapshot and timestamp are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlineExpiry {
    /// The snapshot.
    pub snapshot: WallTime,
    /// The timestamp: how long a client can be kept in the past.
    pub timestamp: WallTime,
}

impl From<WallTime> for OnlineExpiry {
    fn from(both: WallTime) -> Self {
        Self {
            snapshot: both,
            timestamp: both,
        }
    }
}

/// What goes to clients.
#[derive(Debug, Clone)]
pub struct PublishedMetadata {
    /// Every file by its name in the repository.
    pub files: BTreeMap<String, Vec<u8>>,
    /// What a client holds after a refresh from it: to be given to the next [`Repository::publish`].
    pub stored: StoredMetadata,
}

#[derive(Debug, Clone)]
struct Draft<T> {
    content: T,
    file: SignedFile,
}

impl<T: Role> Draft<T> {
    fn new(content: T) -> Self {
        Self {
            file: SignedFile::unsigned(&content),
            content,
        }
    }

    fn read(name: &str, bytes: &[u8]) -> Result<Self, RepositoryError> {
        let file = SignedFile::from_bytes(name, bytes)?;
        Ok(Self {
            content: file.unverified(name)?,
            file,
        })
    }

    fn version(&self) -> u64 {
        self.content.header().version
    }

    /// The draft with a change: the next version if this one is complete, else the same one again. Unsigned.
    fn changed(&self, complete: bool, expires: WallTime, change: impl FnOnce(&mut T)) -> Self
    where
        T: Clone,
    {
        let mut content = self.content.clone();
        let header = content.header_mut();
        header.version = header.version.saturating_add(u64::from(complete));
        header.expires = expires;
        change(&mut content);
        Self::new(content)
    }
}

/// A folder of metadata under the authors' hands: `N.root.json` for every N, `targets.json`, `releases.json` and
/// `campaigns.json`.
#[derive(Debug, Clone)]
pub struct Repository {
    roots: Vec<Draft<Root>>,
    targets: Draft<Targets>,
    releases: Draft<Targets>,
    campaigns: Draft<Targets>,
}

impl Repository {
    /// The first, unsigned versions of every file.
    pub fn create(ceremony: &Ceremony) -> Result<Self, RepositoryError> {
        let Ceremony {
            root,
            releases,
            campaigns,
            online,
            expires,
        } = ceremony;
        for (role, signers) in [
            ("root", root),
            (RELEASES, releases),
            (CAMPAIGNS, campaigns),
            ("online", online),
        ] {
            check_reachable(role, signers)?;
        }
        check_separate(ceremony)?;
        let mut content = Root {
            header: Header::first(Kind::Root, *expires),
            consistent_snapshot: true,
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
            extra: Extra::new(),
        };
        set_root_signers(&mut content, &[Kind::Root, Kind::Targets], root);
        set_root_signers(&mut content, &[Kind::Snapshot, Kind::Timestamp], online);
        let mut targets = Targets::first(*expires);
        let delegations = targets.delegations.insert(Delegations::default());
        set_delegate(delegations, RELEASES, "firmware/*", releases);
        set_delegate(delegations, CAMPAIGNS, "campaigns/*", campaigns);
        Ok(Self {
            roots: vec![Draft::new(content)],
            targets: Draft::new(targets),
            releases: Draft::new(Targets::first(*expires)),
            campaigns: Draft::new(Targets::first(*expires)),
        })
    }

    /// Reads a folder. Signatures are counted by [`Self::status`], not here.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, RepositoryError> {
        let file = |name: &str| {
            files
                .get(name)
                .ok_or_else(|| RepositoryError::NoFile { file: name.to_owned() })
        };
        let number = |name: &String| name.strip_suffix(".root.json")?.parse::<u64>().ok();
        let numbers: BTreeSet<u64> = files.keys().filter_map(number).collect();
        let first = *numbers.first().ok_or_else(|| RepositoryError::NoFile {
            file: "1.root.json".to_owned(),
        })?;
        let mut roots = Vec::new();
        for expected in (first..).take(numbers.len()) {
            let name = format!("{expected}.root.json");
            let root = Draft::<Root>::read(&name, file(&name)?)?;
            if root.version() != expected {
                return Err(RepositoryError::WrongVersion {
                    file: name,
                    expected,
                    found: root.version(),
                });
            }
            roots.push(root);
        }
        let targets = |name| Draft::read(name, file(name)?);
        Ok(Self {
            roots,
            targets: targets("targets.json")?,
            releases: targets("releases.json")?,
            campaigns: targets("campaigns.json")?,
        })
    }

    /// The folder's files.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.parts()
            .into_iter()
            .map(|(name, file, _)| (name, file.to_bytes()))
            .collect()
    }

    /// The newest root.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.newest_root().content
    }

    /// The top-level targets.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets.content
    }

    /// What the release keys sign for.
    #[must_use]
    pub fn releases(&self) -> &Targets {
        &self.releases.content
    }

    /// What the approvers sign for.
    #[must_use]
    pub fn campaigns(&self) -> &Targets {
        &self.campaigns.content
    }

    /// Adds a release, or replaces the one of this name.
    pub fn set_release(&mut self, name: &str, target: Target, expires: WallTime) -> Result<(), RepositoryError> {
        self.edit_releases(expires, |targets| _ = targets.insert(name.to_owned(), target))
    }

    /// Takes a release back.
    pub fn remove_release(&mut self, name: &str, expires: WallTime) -> Result<(), RepositoryError> {
        self.edit_releases(expires, |targets| _ = targets.remove(name))
    }

    /// Adds a campaign, or replaces the one of this name.
    pub fn set_campaign(&mut self, name: &str, target: Target, expires: WallTime) -> Result<(), RepositoryError> {
        self.edit_campaigns(expires, |targets| _ = targets.insert(name.to_owned(), target))
    }

    /// Takes a campaign back.
    pub fn remove_campaign(&mut self, name: &str, expires: WallTime) -> Result<(), RepositoryError> {
        self.edit_campaigns(expires, |targets| _ = targets.remove(name))
    }

    /// Replaces the keys of root and top-level targets. The old keys have to sign the new root too.
    pub fn set_root_signers(&mut self, signers: &Signers, expires: WallTime) -> Result<(), RepositoryError> {
        check_reachable("root", signers)?;
        let complete = self.is_complete("targets.json")?;
        self.edit_root(expires, |root| {
            set_root_signers(root, &[Kind::Root, Kind::Targets], signers)
        })?;
        self.targets = self.targets.changed(complete, expires, |_| ());
        Ok(())
    }

    /// Replaces the keys of snapshot and timestamp.
    pub fn set_online_signers(&mut self, signers: &Signers, expires: WallTime) -> Result<(), RepositoryError> {
        check_reachable("online", signers)?;
        self.edit_root(expires, |root| {
            set_root_signers(root, &[Kind::Snapshot, Kind::Timestamp], signers)
        })
    }

    /// Replaces the release keys. The releases have to be signed again by the new ones.
    pub fn set_release_signers(&mut self, signers: &Signers, expires: WallTime) -> Result<(), RepositoryError> {
        check_reachable(RELEASES, signers)?;
        self.edit_releases(expires, |_| ())?;
        self.edit_delegation(expires, RELEASES, "firmware/*", signers)
    }

    /// Replaces the approver keys. The campaigns have to be signed again by the new ones.
    pub fn set_campaign_signers(&mut self, signers: &Signers, expires: WallTime) -> Result<(), RepositoryError> {
        check_reachable(CAMPAIGNS, signers)?;
        self.edit_campaigns(expires, |_| ())?;
        self.edit_delegation(expires, CAMPAIGNS, "campaigns/*", signers)
    }

    /// The keys that must sign a file, role by role.
    pub fn key_sets(&self, file: &str) -> Result<Vec<KeySet>, RepositoryError> {
        let delegated = |role| Ok(self.targets.content.delegated_keys(role)?.into_iter().collect());
        match file {
            "targets.json" => Ok(vec![self.root().key_set(Kind::Targets)?]),
            "releases.json" => delegated(RELEASES),
            "campaigns.json" => delegated(CAMPAIGNS),
            root => {
                let at = self.roots.iter().position(|draft| root_name(draft) == root);
                let at = at.ok_or_else(|| RepositoryError::NoFile { file: file.to_owned() })?;
                let before = at.checked_sub(1).map(|before| &self.roots[before]);
                let drafts = [Some(&self.roots[at]), before].into_iter().flatten();
                Ok(drafts
                    .map(|draft| draft.content.key_set(Kind::Root))
                    .collect::<Result<_, _>>()?)
            }
        }
    }

    /// How far the signing of every file is.
    pub fn status(&self) -> Result<Vec<FileStatus>, RepositoryError> {
        self.parts()
            .into_iter()
            .map(|(name, file, header)| self.file_status(name, file, header))
            .collect()
    }

    /// The files that `key` may sign, of those that are not complete.
    pub fn signable(&self, key: &PublicKey) -> Result<Vec<FileStatus>, RepositoryError> {
        let mut status = self.status()?;
        let mut listed = BTreeSet::new();
        for entry in status.iter().filter(|entry| !entry.is_complete()) {
            if self.key_sets(&entry.file)?.iter().any(|set| set.id_of(key).is_some()) {
                listed.insert(entry.file.clone());
            }
        }
        status.retain(|entry| listed.contains(&entry.file));
        Ok(status)
    }

    /// Signs a file, if its role lists the key.
    pub fn sign(&mut self, file: &str, key: &SecretKey) -> Result<(), RepositoryError> {
        let signature = key.sign(self.signed_bytes(file)?);
        self.add_signature(file, &key.public(), &signature)
    }

    /// Signs snapshot and timestamp over the complete files and checks the result as a client would, starting from what
    /// was published before (`stored`; nothing at first).
    pub fn publish(
        &self,
        stored: &StoredMetadata,
        now: WallTime,
        expires: impl Into<OnlineExpiry>,
        keys: &[&SecretKey],
    ) -> Result<PublishedMetadata, PublishError> {
        if let Some(incomplete) = self.status()?.into_iter().find(|status| !status.is_complete()) {
            let FileStatus {
                file, version, roles, ..
            } = incomplete;
            let missing = roles.into_iter().find(|role| role.have < role.need);
            let RoleStatus { role, have, need } = missing.expect("an incomplete file lacks a role's signatures");
            return Err(PublishError::Incomplete {
                file,
                version,
                role,
                have,
                need,
            });
        }
        let (mut files, mut meta) = (BTreeMap::new(), BTreeMap::new());
        for (name, file, header) in self.parts() {
            let bytes = file.to_bytes();
            if header.kind == Kind::Root {
                files.insert(name, bytes);
            } else {
                meta.insert(name.clone(), MetaFile::of(header.version, &bytes));
                files.insert(format!("{}.{name}", header.version), bytes);
            }
        }
        let sign = |mut file: SignedFile, kind| {
            let set = self.root().key_set(kind).map_err(RepositoryError::from)?;
            for key in keys {
                if let Some(id) = set.id_of(&key.public()) {
                    file.sign(id, key);
                }
            }
            Ok::<_, PublishError>(file.to_bytes())
        };
        let expires = expires.into();
        let header = |kind, expires| Header {
            version: version_after(stored),
            ..Header::first(kind, expires)
        };
        let snapshot = Snapshot {
            header: header(Kind::Snapshot, expires.snapshot),
            meta,
            extra: Extra::new(),
        };
        let version = snapshot.header.version;
        let snapshot = sign(SignedFile::unsigned(&snapshot), Kind::Snapshot)?;
        let meta = TimestampMeta {
            snapshot: MetaFile::of(version, &snapshot),
        };
        let timestamp = Timestamp {
            header: header(Kind::Timestamp, expires.timestamp),
            meta,
            extra: Extra::new(),
        };
        files.insert(format!("{version}.snapshot.json"), snapshot);
        files.insert(
            "timestamp.json".to_owned(),
            sign(SignedFile::unsigned(&timestamp), Kind::Timestamp)?,
        );

        let mut stored = stored.clone();
        stored
            .entry("root.json".to_owned())
            .or_insert_with(|| self.roots[0].file.to_bytes());
        let answer = |name: &str, _| {
            files
                .get(name)
                .map_or(Input::NotFound, |bytes| Input::Fetched(bytes.clone()))
        };
        let metadata = Refresh::new(stored.clone(), now)?.run(&mut stored, answer)?;
        TrustedFleet::new(metadata)?;
        Ok(PublishedMetadata { files, stored })
    }

    fn newest_root(&self) -> &Draft<Root> {
        self.roots.last().expect("a repository has a root")
    }

    fn parts(&self) -> Vec<(String, &SignedFile, &Header)> {
        let roots = self
            .roots
            .iter()
            .map(|draft| (root_name(draft), &draft.file, &draft.content.header));
        let targets = [
            ("targets.json", &self.targets),
            ("releases.json", &self.releases),
            ("campaigns.json", &self.campaigns),
        ];
        let targets = targets.map(|(name, draft)| (name.to_owned(), &draft.file, &draft.content.header));
        roots.chain(targets).collect()
    }

    fn file_status(&self, file: String, signed: &SignedFile, header: &Header) -> Result<FileStatus, RepositoryError> {
        let mut roles = Vec::new();
        for (at, set) in self.key_sets(&file)?.iter().enumerate() {
            let have = set.signers(signed.signed_bytes(), signed.signatures())?.len();
            let role = if at == 0 {
                set.role().to_owned()
            } else {
                format!("previous {}", set.role())
            };
            roles.push(RoleStatus {
                role,
                have,
                need: set.threshold(),
            });
        }
        let digest = Sha256::of(signed.signed_bytes());
        Ok(FileStatus {
            file,
            version: header.version,
            expires: header.expires,
            digest,
            roles,
        })
    }

    fn file(&self, file: &str) -> Result<&SignedFile, RepositoryError> {
        match file {
            "targets.json" => Ok(&self.targets.file),
            "releases.json" => Ok(&self.releases.file),
            "campaigns.json" => Ok(&self.campaigns.file),
            root => match self.roots.iter().find(|draft| root_name(draft) == root) {
                Some(draft) => Ok(&draft.file),
                None => Err(RepositoryError::NoFile { file: file.to_owned() }),
            },
        }
    }

    fn file_mut(&mut self, file: &str) -> Result<&mut SignedFile, RepositoryError> {
        match file {
            "targets.json" => Ok(&mut self.targets.file),
            "releases.json" => Ok(&mut self.releases.file),
            "campaigns.json" => Ok(&mut self.campaigns.file),
            root => match self.roots.iter_mut().find(|draft| root_name(draft) == root) {
                Some(draft) => Ok(&mut draft.file),
                None => Err(RepositoryError::NoFile { file: file.to_owned() }),
            },
        }
    }

    fn is_complete(&self, file: &str) -> Result<bool, RepositoryError> {
        Ok(self
            .status()?
            .iter()
            .any(|status| status.file == file && status.is_complete()))
    }

    fn edit_root(&mut self, expires: WallTime, change: impl FnOnce(&mut Root)) -> Result<(), RepositoryError> {
        let complete = self.is_complete(&root_name(self.newest_root()))?;
        let next = self.newest_root().changed(complete, expires, change);
        if !complete {
            self.roots.pop();
        }
        self.roots.push(next);
        Ok(())
    }

    fn edit_releases(
        &mut self,
        expires: WallTime,
        change: impl FnOnce(&mut BTreeMap<String, Target>),
    ) -> Result<(), RepositoryError> {
        let complete = self.is_complete("releases.json")?;
        self.releases = self
            .releases
            .changed(complete, expires, |content| change(&mut content.targets));
        Ok(())
    }

    fn edit_campaigns(
        &mut self,
        expires: WallTime,
        change: impl FnOnce(&mut BTreeMap<String, Target>),
    ) -> Result<(), RepositoryError> {
        let complete = self.is_complete("campaigns.json")?;
        self.campaigns = self
            .campaigns
            .changed(complete, expires, |content| change(&mut content.targets));
        Ok(())
    }

    fn edit_delegation(
        &mut self,
        expires: WallTime,
        role: &'static str,
        path: &'static str,
        signers: &Signers,
    ) -> Result<(), RepositoryError> {
        let complete = self.is_complete("targets.json")?;
        self.targets = self.targets.changed(complete, expires, |targets| {
            set_delegate(targets.delegations.get_or_insert_default(), role, path, signers);
        });
        Ok(())
    }
}

/// The version after the newest of what was published before.
fn version_after(stored: &StoredMetadata) -> u64 {
    let version = |name: &str| {
        let file = SignedFile::from_bytes(name, stored.get(name)?).ok()?;
        if name == "timestamp.json" {
            file.unverified::<Timestamp>(name)
                .ok()
                .map(|content| content.header.version)
        } else {
            file.unverified::<Snapshot>(name)
                .ok()
                .map(|content| content.header.version)
        }
    };
    version("timestamp.json")
        .max(version("snapshot.json"))
        .map_or(1, |version| version.saturating_add(1))
}

fn root_name(draft: &Draft<Root>) -> String {
    format!("{}.root.json", draft.version())
}

fn check_reachable(role: &str, signers: &Signers) -> Result<(), RepositoryError> {
    KeySet::of(role, signers.threshold, signers.keys.iter().copied())?;
    if (signers.keys.len() as u64) < signers.threshold {
        let (keys, threshold) = (signers.keys.len(), signers.threshold);
        return Err(RepositoryError::Unreachable {
            role: role.to_owned(),
            keys,
            threshold,
        });
    }
    Ok(())
}

fn check_separate(ceremony: &Ceremony) -> Result<(), RepositoryError> {
    let Ceremony {
        root,
        releases,
        campaigns,
        online,
        ..
    } = ceremony;
    let pairs = [
        (RELEASES, releases, CAMPAIGNS, campaigns),
        ("online", online, "root", root),
        ("online", online, RELEASES, releases),
        ("online", online, CAMPAIGNS, campaigns),
    ];
    for (first, a, second, b) in pairs {
        if let Some(&key) = a.keys.iter().find(|key| b.keys.contains(key)) {
            return Err(RepositoryError::SharedKey { key, first, second });
        }
    }
    Ok(())
}

fn set_root_signers(root: &mut Root, kinds: &[Kind], signers: &Signers) {
    for kind in kinds {
        let keyids = signers.keys.iter().map(PublicKey::id).collect();
        let role = RoleKeys {
            keyids,
            threshold: signers.threshold,
            extra: Extra::new(),
        };
        root.roles.insert(kind.name().to_owned(), role);
    }
    root.keys
        .extend(signers.keys.iter().map(|key| (key.id(), Key::from(*key))));
    let listed: BTreeSet<_> = root.roles.values().flat_map(|role| &role.keyids).cloned().collect();
    root.keys.retain(|id, _| listed.contains(id));
}

fn set_delegate(delegations: &mut Delegations, role: &str, path: &str, signers: &Signers) {
    let delegated = DelegatedRole {
        name: role.to_owned(),
        keyids: signers.keys.iter().map(PublicKey::id).collect(),
        threshold: signers.threshold,
        terminating: true,
        paths: Some(vec![path.to_owned()]),
        path_hash_prefixes: None,
        extra: Extra::new(),
    };
    match delegations.roles.iter_mut().find(|known| known.name == role) {
        Some(known) => *known = delegated,
        None => delegations.roles.push(delegated),
    }
    delegations
        .keys
        .extend(signers.keys.iter().map(|key| (key.id(), Key::from(*key))));
    let listed: BTreeSet<_> = delegations
        .roles
        .iter()
        .flat_map(|role| &role.keyids)
        .cloned()
        .collect();
    delegations.keys.retain(|id, _| listed.contains(id));
}
