//! The client workflow of the TUF specification (section 5) as a core: bytes and a time go in, instructions come out.
//!
//! Invariants: a file is asked to be persisted only after every check on it passed; instructions are in an order that a
//! crash after any of them leaves a store the next refresh can start from; expiry never stops root catch-up; the time
//! is fixed when the refresh begins. After a refusal the instructions of what was accepted before it still come out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sha2::Digest as _;

use super::{
    keys::{KeySet, KeySetError, SignatureError},
    metadata::{Kind, MetaFile, MetadataError, ReadError, Role, Root, SignedFile, Snapshot, Targets, Timestamp},
};
use crate::{limits::ROOT_ROTATIONS_MAX, time::WallTime};

/// The role that release keys sign for.
pub const RELEASES: &str = "releases";
/// The role that campaign approvers sign for.
pub const CAMPAIGNS: &str = "campaigns";

/// Metadata files by the name they are stored under: `root.json` (at least), `timestamp.json`, `snapshot.json`,
/// `targets.json` and one per delegated role.
pub type StoredMetadata = BTreeMap<String, Vec<u8>>;

/// What the caller is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Fetch the file `name` of the repository and answer with an [`Input`]; stop reading after `bytes_max`.
    Fetch {
        /// The file's name in the repository.
        name: String,
        /// The longest answer worth reading.
        bytes_max: u64,
    },
    /// Store these bytes durably under `name` before carrying on.
    Persist {
        /// The name among the [`StoredMetadata`].
        name: String,
        /// The exact bytes received.
        bytes: Vec<u8>,
    },
    /// Remove `name` from the store durably before carrying on.
    Remove {
        /// The name among the [`StoredMetadata`].
        name: String,
    },
}

/// The answer to a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The file's bytes.
    Fetched(Vec<u8>),
    /// The repository answered that there is no such file.
    NotFound,
    /// No answer, for a reason meant for people.
    Failed(String),
}

/// Why a refresh was refused. Nothing that failed a check has been asked to be persisted.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// There is no root to start from.
    #[error("no trusted root.json: pin one first")]
    NoRoot,
    /// A file could not be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A file is not signed by enough of its role's keys.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A role's keys are unusable.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// A file is longer than anything signed allows.
    #[error("{file} has {length} bytes, at most {bytes_max} are read")]
    TooLarge {
        /// Which file.
        file: String,
        /// Its length.
        length: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A file's length is not the signed one.
    #[error("{file} has {found} bytes, its signed length is {expected}")]
    LengthMismatch {
        /// Which file.
        file: String,
        /// The signed length.
        expected: u64,
        /// Its length.
        found: u64,
    },
    /// A file's digest is not the signed one.
    #[error("{file} does not have its signed {algorithm} digest")]
    HashMismatch {
        /// Which file.
        file: String,
        /// The digest that differs.
        algorithm: String,
    },
    /// A file's digests are all of kinds this version cannot compute.
    #[error("{file} is signed with no digest this version can check (sha256, sha512)")]
    NoKnownHash {
        /// Which file.
        file: String,
    },
    /// A file is not believed any longer.
    #[error("{role} version {version} expired at {expires}, it is {now}")]
    Expired {
        /// Which role.
        role: String,
        /// The file's version.
        version: u64,
        /// When it expired.
        expires: WallTime,
        /// When the refresh began.
        now: WallTime,
    },
    /// A file is older than one already trusted.
    #[error("{role} went back from version {trusted} to {offered}")]
    Rollback {
        /// Which role (or file, as named by a snapshot).
        role: String,
        /// The version already trusted.
        trusted: u64,
        /// The version offered.
        offered: u64,
    },
    /// A file that the trusted snapshot names is gone from the new one.
    #[error("{file} has disappeared from the snapshot")]
    Disappeared {
        /// Which file.
        file: String,
    },
    /// A file is not of the version that the file naming it says.
    #[error("{role} has version {found}, expected {expected}")]
    WrongVersion {
        /// Which role.
        role: String,
        /// The version expected.
        expected: u64,
        /// The version found.
        found: u64,
    },
    /// The snapshot does not name a role's file.
    #[error("the snapshot does not name {file}")]
    NotInSnapshot {
        /// Which file.
        file: String,
    },
    /// More new roots than a fleet sees in its life.
    #[error("more than {ROOT_ROTATIONS_MAX} new roots in one refresh")]
    TooManyRoots,
    /// The repository lacks a file it must have.
    #[error("the repository has no {file}")]
    NotFound {
        /// Which file.
        file: String,
    },
    /// A file could not be fetched; the one refusal where trying again may help.
    #[error("fetching {file} failed: {reason}")]
    Fetch {
        /// Which file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The caller asked for the outcome before the refresh was over.
    #[error("the refresh is not finished")]
    Unfinished,
}

impl From<ReadError> for RefreshError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Metadata(error) => Self::Metadata(error),
            ReadError::Signature(error) => Self::Signature(error),
        }
    }
}

impl SignatureError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Threshold { .. } => "signature_threshold",
            Self::DuplicateSignature { .. } => "duplicate_key",
            Self::TooManySignatures { .. } => "too_many_signatures",
        }
    }
}

impl KeySetError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::BadKey { .. } => "bad_key",
            Self::BadThreshold { .. } => "bad_threshold",
            Self::TooManyKeys { .. } => "too_many_keys",
        }
    }
}

impl RefreshError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRoot => "no_root",
            Self::Metadata(_) => "malformed",
            Self::Signature(error) => error.code(),
            Self::Keys(error) => error.code(),
            Self::TooLarge { .. } => "too_large",
            Self::LengthMismatch { .. } => "length_mismatch",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::NoKnownHash { .. } => "no_known_hash",
            Self::Expired { .. } => "expired",
            Self::Rollback { .. } => "rollback",
            Self::Disappeared { .. } => "disappeared",
            Self::WrongVersion { .. } => "wrong_version",
            Self::NotInSnapshot { .. } => "not_in_snapshot",
            Self::TooManyRoots => "too_many_roots",
            Self::NotFound { .. } => "not_found",
            Self::Fetch { .. } => "fetch_failed",
            Self::Unfinished => "unfinished",
        }
    }

    /// Whether the same refresh may succeed later without anybody signing anything.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(self, Self::Fetch { .. } | Self::NotFound { .. } | Self::Unfinished)
    }
}

/// What a finished refresh found, every check passed.
#[derive(Debug, Clone)]
pub struct TrustedMetadata {
    pub(super) root: Root,
    pub(super) timestamp: Timestamp,
    pub(super) snapshot: Snapshot,
    pub(super) targets: Targets,
    pub(super) delegated: BTreeMap<String, Targets>,
}

impl TrustedMetadata {
    /// The root.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The timestamp.
    #[must_use]
    pub fn timestamp(&self) -> &Timestamp {
        &self.timestamp
    }

    /// The snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The top-level targets.
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// A delegated role's targets.
    #[must_use]
    pub fn delegated(&self, role: &str) -> Option<&Targets> {
        self.delegated.get(role)
    }
}

/// One refresh: from the metadata stored last time to the repository's current metadata, or to a refusal.
///
/// Drive it with `while let Some(output) = refresh.poll()`, answering each [`Output::Fetch`] with [`Refresh::handle`],
/// then take [`Refresh::finish`].
#[derive(Debug)]
pub struct Refresh {
    now: WallTime,
    stored: StoredMetadata,
    outputs: VecDeque<Output>,
    stage: Stage,
    awaited: Option<(String, u64)>,
    root: Root,
    roots_accepted: usize,
    timestamp: Option<Timestamp>,
    snapshot: Option<Snapshot>,
    targets: Option<Targets>,
    delegated: BTreeMap<String, Targets>,
    roles_left: VecDeque<&'static str>,
}

#[derive(Debug)]
enum Stage {
    Root,
    Timestamp,
    Snapshot,
    Targets,
    Delegated { role: &'static str, keys: KeySet },
    Done,
    Refused(RefreshError),
}

impl Refresh {
    /// Starts from what is stored; at least `root.json` must be there. `now` is the time for every expiry check.
    pub fn new(stored: StoredMetadata, now: WallTime) -> Result<Self, RefreshError> {
        let pinned = SignedFile::from_bytes("root.json", stored.get("root.json").ok_or(RefreshError::NoRoot)?)?;
        let root: Root = pinned.unverified("root.json")?;
        check_keys(&root)?;
        pinned.verified::<Root>("root.json", &root.key_set(Kind::Root)?)?;
        let mut refresh = Self {
            now,
            stored,
            outputs: VecDeque::new(),
            stage: Stage::Root,
            awaited: None,
            root,
            roots_accepted: 0,
            timestamp: None,
            snapshot: None,
            targets: None,
            delegated: BTreeMap::new(),
            roles_left: VecDeque::from([RELEASES, CAMPAIGNS]),
        };
        refresh.fetch_next_root();
        Ok(refresh)
    }

    /// The next thing to do. `None` when nothing is left, or while a fetch is unanswered.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes the answer to the fetch that came last. An answer nobody asked for is ignored.
    pub fn handle(&mut self, input: Input) {
        let Some((file, bytes_max)) = self.awaited.take() else {
            return;
        };
        if let Err(error) = self.answer(file, bytes_max, input) {
            self.stage = Stage::Refused(error);
        }
    }

    /// Drives the refresh to its end over a store in memory. `fetch` answers for the repository.
    pub fn run(
        mut self,
        store: &mut StoredMetadata,
        mut fetch: impl FnMut(&str, u64) -> Input,
    ) -> Result<TrustedMetadata, RefreshError> {
        while let Some(output) = self.poll() {
            match output {
                Output::Fetch { name, bytes_max } => self.handle(fetch(&name, bytes_max)),
                Output::Persist { name, bytes } => _ = store.insert(name, bytes),
                Output::Remove { name } => _ = store.remove(&name),
            }
        }
        self.finish()
    }

    /// The outcome, once [`Self::poll`] has no more to do.
    pub fn finish(self) -> Result<TrustedMetadata, RefreshError> {
        match (self.stage, self.timestamp, self.snapshot, self.targets) {
            (Stage::Refused(error), ..) => Err(error),
            (Stage::Done, Some(timestamp), Some(snapshot), Some(targets)) => Ok(TrustedMetadata {
                root: self.root,
                timestamp,
                snapshot,
                targets,
                delegated: self.delegated,
            }),
            _ => Err(RefreshError::Unfinished),
        }
    }

    fn answer(&mut self, file: String, bytes_max: u64, input: Input) -> Result<(), RefreshError> {
        let bytes = match input {
            Input::Fetched(bytes) => bytes,
            Input::NotFound if matches!(self.stage, Stage::Root) => return self.roots_end(),
            Input::NotFound => return Err(RefreshError::NotFound { file }),
            Input::Failed(reason) => return Err(RefreshError::Fetch { file, reason }),
        };
        let length = bytes.len() as u64;
        if length > bytes_max {
            return Err(RefreshError::TooLarge {
                file,
                length,
                bytes_max,
            });
        }
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Root => self.accept_root(&file, bytes),
            Stage::Timestamp => self.accept_timestamp(bytes),
            Stage::Snapshot => {
                let snapshot = self.check_snapshot(&bytes)?;
                self.persist("snapshot.json", bytes);
                self.start_targets(snapshot)
            }
            Stage::Targets => {
                let targets = self.check_targets("targets", &self.root.key_set(Kind::Targets)?, &bytes)?;
                self.persist("targets.json", bytes);
                self.start_delegated(targets)
            }
            Stage::Delegated { role, keys } => {
                let targets = self.check_targets(role, &keys, &bytes)?;
                self.persist(&format!("{role}.json"), bytes);
                self.delegated.insert(role.to_owned(), targets);
                self.next_delegated()
            }
            Stage::Done | Stage::Refused(_) => unreachable!("nothing is awaited once a refresh is over"),
        }
    }

    // Section 5.3: the root, one version at a time.

    fn fetch_next_root(&mut self) {
        let name = format!("{}.root.json", self.root.header.version.saturating_add(1));
        self.fetch(Stage::Root, name, Kind::Root.bytes_max());
    }

    fn accept_root(&mut self, file: &str, bytes: Vec<u8>) -> Result<(), RefreshError> {
        if self.roots_accepted == ROOT_ROTATIONS_MAX {
            return Err(RefreshError::TooManyRoots);
        }
        let signed = SignedFile::from_bytes(file, &bytes)?;
        let root: Root = signed.verified(file, &self.root.key_set(Kind::Root)?)?;
        check_keys(&root)?;
        signed.verified::<Root>(file, &root.key_set(Kind::Root)?)?;
        check_version("root", self.root.header.version.saturating_add(1), root.header.version)?;
        if keys_differ(&self.root, &root, Kind::Timestamp)? || keys_differ(&self.root, &root, Kind::Snapshot)? {
            // Fast-forward recovery: whoever held the old keys may have signed absurdly high versions.
            self.remove("timestamp.json");
            self.remove("snapshot.json");
        }
        self.persist("root.json", bytes);
        self.root = root;
        self.roots_accepted += 1;
        self.fetch_next_root();
        Ok(())
    }

    fn roots_end(&mut self) -> Result<(), RefreshError> {
        self.check_expiry("root", &self.root)?;
        let keys = self.root.key_set(Kind::Timestamp)?;
        self.timestamp = self.stored_file("timestamp.json", &keys);
        self.fetch(
            Stage::Timestamp,
            "timestamp.json".to_owned(),
            Kind::Timestamp.bytes_max(),
        );
        Ok(())
    }

    // Sections 5.4 and 5.5: timestamp, then snapshot.

    fn accept_timestamp(&mut self, bytes: Vec<u8>) -> Result<(), RefreshError> {
        let keys = self.root.key_set(Kind::Timestamp)?;
        let new: Timestamp = SignedFile::from_bytes("timestamp.json", &bytes)?.verified("timestamp.json", &keys)?;
        let current = match self.timestamp.take() {
            Some(old) if new.header.version == old.header.version => old,
            old => {
                if let Some(old) = old {
                    check_rollback("timestamp", old.header.version, new.header.version)?;
                    check_rollback("snapshot.json", old.meta.snapshot.version, new.meta.snapshot.version)?;
                }
                self.check_expiry("timestamp", &new)?;
                self.persist("timestamp.json", bytes);
                new
            }
        };
        self.check_expiry("timestamp", &current)?;
        self.start_snapshot(current)
    }

    fn start_snapshot(&mut self, timestamp: Timestamp) -> Result<(), RefreshError> {
        let meta = timestamp.meta.snapshot.clone();
        self.timestamp = Some(timestamp);
        self.snapshot = self.stored_file("snapshot.json", &self.root.key_set(Kind::Snapshot)?);
        let usable = self
            .stored
            .get("snapshot.json")
            .and_then(|bytes| self.check_snapshot(bytes).ok());
        match usable {
            Some(snapshot) => self.start_targets(snapshot),
            None => {
                let name = self.versioned("snapshot", meta.version);
                self.fetch(
                    Stage::Snapshot,
                    name,
                    meta.length.unwrap_or_else(|| Kind::Snapshot.bytes_max()),
                );
                Ok(())
            }
        }
    }

    fn check_snapshot(&self, bytes: &[u8]) -> Result<Snapshot, RefreshError> {
        let file = "snapshot.json";
        let meta = &self.timestamp.as_ref().ok_or(RefreshError::Unfinished)?.meta.snapshot;
        check_bytes(file, meta, bytes)?;
        let keys = self.root.key_set(Kind::Snapshot)?;
        let new: Snapshot = SignedFile::from_bytes(file, bytes)?.verified(file, &keys)?;
        check_version("snapshot", meta.version, new.header.version)?;
        for (file, old) in self.snapshot.iter().flat_map(|trusted| &trusted.meta) {
            let offered = new
                .meta
                .get(file)
                .ok_or_else(|| RefreshError::Disappeared { file: file.clone() })?;
            check_rollback(file, old.version, offered.version)?;
        }
        self.check_expiry("snapshot", &new)?;
        Ok(new)
    }

    // Section 5.6: the targets roles, each as the snapshot names it.

    fn start_targets(&mut self, snapshot: Snapshot) -> Result<(), RefreshError> {
        self.snapshot = Some(snapshot);
        let keys = self.root.key_set(Kind::Targets)?;
        match self.stored_targets("targets", &keys) {
            Some(targets) => self.start_delegated(targets),
            None => self.fetch_targets("targets", Stage::Targets),
        }
    }

    fn start_delegated(&mut self, targets: Targets) -> Result<(), RefreshError> {
        self.targets = Some(targets);
        self.next_delegated()
    }

    fn next_delegated(&mut self) -> Result<(), RefreshError> {
        while let Some(role) = self.roles_left.pop_front() {
            let keys = self
                .targets
                .as_ref()
                .map(|targets| targets.delegated_keys(role))
                .transpose()?
                .flatten();
            let Some(keys) = keys else { continue };
            match self.stored_targets(role, &keys) {
                Some(targets) => _ = self.delegated.insert(role.to_owned(), targets),
                None => return self.fetch_targets(role, Stage::Delegated { role, keys }),
            }
        }
        self.stage = Stage::Done;
        Ok(())
    }

    fn fetch_targets(&mut self, role: &str, stage: Stage) -> Result<(), RefreshError> {
        let meta = self.snapshot_meta(role)?;
        let (name, bytes_max) = (
            self.versioned(role, meta.version),
            meta.length.unwrap_or_else(|| Kind::Targets.bytes_max()),
        );
        self.fetch(stage, name, bytes_max);
        Ok(())
    }

    fn check_targets(&self, role: &str, keys: &KeySet, bytes: &[u8]) -> Result<Targets, RefreshError> {
        let (file, meta) = (format!("{role}.json"), self.snapshot_meta(role)?);
        check_bytes(&file, meta, bytes)?;
        let targets: Targets = SignedFile::from_bytes(&file, bytes)?.verified(&file, keys)?;
        check_version(role, meta.version, targets.header.version)?;
        self.check_expiry(role, &targets)?;
        Ok(targets)
    }

    // What the stages lean on.

    fn fetch(&mut self, stage: Stage, name: String, bytes_max: u64) {
        self.stage = stage;
        self.awaited = Some((name.clone(), bytes_max));
        self.outputs.push_back(Output::Fetch { name, bytes_max });
    }

    fn persist(&mut self, name: &str, bytes: Vec<u8>) {
        self.outputs.push_back(Output::Persist {
            name: name.to_owned(),
            bytes,
        });
    }

    fn remove(&mut self, name: &str) {
        if self.stored.remove(name).is_some() {
            self.outputs.push_back(Output::Remove { name: name.to_owned() });
        }
    }

    /// A stored file that still verifies under the current keys. Its age is judged by what replaces it.
    fn stored_file<T: Role>(&self, name: &str, keys: &KeySet) -> Option<T> {
        SignedFile::from_bytes(name, self.stored.get(name)?)
            .ok()?
            .verified(name, keys)
            .ok()
    }

    /// A stored targets file that is exactly what the snapshot names: no need to fetch it again.
    fn stored_targets(&self, role: &str, keys: &KeySet) -> Option<Targets> {
        self.check_targets(role, keys, self.stored.get(&format!("{role}.json"))?)
            .ok()
    }

    fn snapshot_meta(&self, role: &str) -> Result<&MetaFile, RefreshError> {
        let file = format!("{role}.json");
        let meta = self.snapshot.as_ref().and_then(|snapshot| snapshot.meta.get(&file));
        meta.ok_or(RefreshError::NotInSnapshot { file })
    }

    fn versioned(&self, role: &str, version: u64) -> String {
        if self.root.consistent_snapshot {
            format!("{version}.{role}.json")
        } else {
            format!("{role}.json")
        }
    }

    fn check_expiry(&self, role: &str, content: &impl Role) -> Result<(), RefreshError> {
        let header = content.header();
        if header.expires > self.now {
            return Ok(());
        }
        let (version, expires) = (header.version, header.expires);
        Err(RefreshError::Expired {
            role: role.to_owned(),
            version,
            expires,
            now: self.now,
        })
    }
}

fn keys_differ(a: &Root, b: &Root, kind: Kind) -> Result<bool, KeySetError> {
    let keys = |root: &Root| {
        root.key_set(kind)
            .map(|set| set.keys().copied().collect::<BTreeSet<_>>())
    };
    Ok(keys(a)? != keys(b)?)
}

/// Every top-level role of a root must have usable keys, or a later step would fail half-way.
fn check_keys(root: &Root) -> Result<(), KeySetError> {
    [Kind::Root, Kind::Timestamp, Kind::Snapshot, Kind::Targets]
        .iter()
        .try_for_each(|&kind| root.key_set(kind).map(drop))
}

fn check_version(role: &str, expected: u64, found: u64) -> Result<(), RefreshError> {
    if expected == found {
        Ok(())
    } else {
        Err(RefreshError::WrongVersion {
            role: role.to_owned(),
            expected,
            found,
        })
    }
}

fn check_rollback(role: &str, trusted: u64, offered: u64) -> Result<(), RefreshError> {
    if offered >= trusted {
        Ok(())
    } else {
        Err(RefreshError::Rollback {
            role: role.to_owned(),
            trusted,
            offered,
        })
    }
}

/// Length and digests, as far as they are given.
fn check_bytes(file: &str, meta: &MetaFile, bytes: &[u8]) -> Result<(), RefreshError> {
    let found = bytes.len() as u64;
    if let Some(expected) = meta.length.filter(|&length| length != found) {
        return Err(RefreshError::LengthMismatch {
            file: file.to_owned(),
            expected,
            found,
        });
    }
    meta.hashes
        .as_ref()
        .map_or(Ok(()), |hashes| check_hashes(file, hashes, bytes))
}

/// Every digest that can be computed here must match, and there must be one.
fn check_hashes(file: &str, hashes: &BTreeMap<String, String>, bytes: &[u8]) -> Result<(), RefreshError> {
    let mut known = 0;
    for (algorithm, expected) in hashes {
        let found = match algorithm.as_str() {
            "sha256" => hex::encode(sha2::Sha256::digest(bytes)),
            "sha512" => hex::encode(sha2::Sha512::digest(bytes)),
            _ => continue,
        };
        known += 1;
        if found != *expected {
            return Err(RefreshError::HashMismatch {
                file: file.to_owned(),
                algorithm: algorithm.clone(),
            });
        }
    }
    if known == 0 {
        Err(RefreshError::NoKnownHash { file: file.to_owned() })
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
