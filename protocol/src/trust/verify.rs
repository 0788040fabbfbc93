//! The client workflow of the TUF specification (section 5) up to the targets roles, as a core: bytes and a time go in,
//! instructions come out. The search for one target among delegated roles is [`Search`](super::Search).
//!
//! Invariants: a file is asked to be persisted only after every check on it passed; instructions are in an order that a
//! crash after any of them leaves a store the next refresh can start from; expiry never stops root catch-up; the time
//! is fixed when the refresh begins. After a refusal the instructions of what was accepted before it still come out.

use std::collections::{BTreeMap, VecDeque};

use super::{
    checks::{check_bytes, check_expiry, check_rollback, check_targets, check_version, snapshot_meta},
    errors::RefreshError,
    key_set::{KeySet, KeySetError},
    metadata::{Kind, Role, Root, SignedFile, Snapshot, Targets, Timestamp},
    names::{repository_name, stored_name},
    verifying::KeyPolicy,
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

/// What a finished refresh found, every check passed.
#[derive(Debug, Clone)]
pub struct TrustedMetadata {
    pub(super) policy: KeyPolicy,
    pub(super) now: WallTime,
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
    policy: KeyPolicy,
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
    /// A fleet's refresh, with the roles for releases and campaigns, ed25519 only. Starts from what is stored; at least
    /// `root.json` must be there. `now` is the time for every expiry check.
    pub fn new(stored: StoredMetadata, now: WallTime) -> Result<Self, RefreshError> {
        Self::begin(stored, now, KeyPolicy::default(), &[RELEASES, CAMPAIGNS])
    }

    /// The refresh of any TUF repository, up to the top-level targets. Delegated roles are left to a
    /// [`Search`](super::Search).
    pub fn top_level(stored: StoredMetadata, now: WallTime, policy: KeyPolicy) -> Result<Self, RefreshError> {
        Self::begin(stored, now, policy, &[])
    }

    fn begin(
        stored: StoredMetadata,
        now: WallTime,
        policy: KeyPolicy,
        delegated: &[&'static str],
    ) -> Result<Self, RefreshError> {
        let pinned = SignedFile::from_bytes("root.json", stored.get("root.json").ok_or(RefreshError::NoRoot)?)?;
        let root: Root = pinned.unverified("root.json")?;
        check_keys(&root, policy)?;
        pinned.verified::<Root>("root.json", &root.key_set_under(Kind::Root, policy)?)?;
        let mut refresh = Self {
            policy,
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
            roles_left: delegated.iter().copied().collect(),
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
                policy: self.policy,
                now: self.now,
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
                let targets = self.check_targets("targets", &self.keys(Kind::Targets)?, &bytes)?;
                self.persist("targets.json", bytes);
                self.start_delegated(targets)
            }
            Stage::Delegated { role, keys } => {
                let targets = self.check_targets(role, &keys, &bytes)?;
                self.persist(&stored_name(role), bytes);
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
        let root: Root = signed.verified(file, &self.keys(Kind::Root)?)?;
        check_keys(&root, self.policy)?;
        signed.verified::<Root>(file, &root.key_set_under(Kind::Root, self.policy)?)?;
        check_version("root", self.root.header.version.saturating_add(1), root.header.version)?;
        let rotated = |kind| {
            let new = root.key_set_under(kind, self.policy)?;
            Ok::<_, KeySetError>(!new.same_keys(&self.keys(kind)?))
        };
        if rotated(Kind::Timestamp)? || rotated(Kind::Snapshot)? {
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
        check_expiry("root", &self.root, self.now)?;
        let keys = self.keys(Kind::Timestamp)?;
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
        let keys = self.keys(Kind::Timestamp)?;
        let new: Timestamp = SignedFile::from_bytes("timestamp.json", &bytes)?.verified("timestamp.json", &keys)?;
        let current = match self.timestamp.take() {
            Some(old) if new.header.version == old.header.version => old,
            old => {
                if let Some(old) = old {
                    check_rollback("timestamp", old.header.version, new.header.version)?;
                    check_rollback("snapshot.json", old.meta.snapshot.version, new.meta.snapshot.version)?;
                }
                check_expiry("timestamp", &new, self.now)?;
                self.persist("timestamp.json", bytes);
                new
            }
        };
        check_expiry("timestamp", &current, self.now)?;
        self.start_snapshot(current)
    }

    fn start_snapshot(&mut self, timestamp: Timestamp) -> Result<(), RefreshError> {
        let meta = timestamp.meta.snapshot.clone();
        self.timestamp = Some(timestamp);
        self.snapshot = self.stored_file("snapshot.json", &self.keys(Kind::Snapshot)?);
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
        let keys = self.keys(Kind::Snapshot)?;
        let new: Snapshot = SignedFile::from_bytes(file, bytes)?.verified(file, &keys)?;
        check_version("snapshot", meta.version, new.header.version)?;
        for (file, old) in self.snapshot.iter().flat_map(|trusted| &trusted.meta) {
            let offered = new
                .meta
                .get(file)
                .ok_or_else(|| RefreshError::Disappeared { file: file.clone() })?;
            check_rollback(file, old.version, offered.version)?;
        }
        check_expiry("snapshot", &new, self.now)?;
        Ok(new)
    }

    // Section 5.6: the targets roles, each as the snapshot names it.

    fn start_targets(&mut self, snapshot: Snapshot) -> Result<(), RefreshError> {
        self.snapshot = Some(snapshot);
        let keys = self.keys(Kind::Targets)?;
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
        let meta = snapshot_meta(self.current_snapshot()?, role)?;
        let (name, bytes_max) = (
            self.versioned(role, meta.version),
            meta.length.unwrap_or_else(|| Kind::Targets.bytes_max()),
        );
        self.fetch(stage, name, bytes_max);
        Ok(())
    }

    fn check_targets(&self, role: &str, keys: &KeySet, bytes: &[u8]) -> Result<Targets, RefreshError> {
        check_targets(self.current_snapshot()?, role, keys, bytes, self.now)
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
        self.check_targets(role, keys, self.stored.get(&stored_name(role))?)
            .ok()
    }

    fn current_snapshot(&self) -> Result<&Snapshot, RefreshError> {
        self.snapshot.as_ref().ok_or(RefreshError::Unfinished)
    }

    fn keys(&self, kind: Kind) -> Result<KeySet, KeySetError> {
        self.root.key_set_under(kind, self.policy)
    }

    fn versioned(&self, role: &str, version: u64) -> String {
        repository_name(role, version, self.root.consistent_snapshot)
    }
}

/// Every top-level role of a root must have usable keys, or a later step would fail half-way.
fn check_keys(root: &Root, policy: KeyPolicy) -> Result<(), KeySetError> {
    [Kind::Root, Kind::Timestamp, Kind::Snapshot, Kind::Targets]
        .iter()
        .try_for_each(|&kind| root.key_set_under(kind, policy).map(drop))
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
