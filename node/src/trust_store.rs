//! Verified metadata on disk: drives the trust core's refresh over files and a way to fetch.
//!
//! Invariants: what the core has not accepted is never written; files change only by write-fsync-rename; the clock that
//! judges expiry never goes below the latest time this node has proof of; a node stopped in the middle of a refresh goes on
//! with the last whole set it had verified, under the newest root.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use firmesh_protocol::{
    time::WallTime,
    trust::{Input, Output, PolicyError, Refresh, RefreshError, StoredMetadata, TrustedFleet},
};

use crate::files::{remove_durably, write_durably};

/// The metadata folder of a node.
#[derive(Debug)]
pub struct TrustStore {
    folder: PathBuf,
    stored: StoredMetadata,
    latest_known: WallTime,
}

/// Why metadata is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The metadata folder cannot be used.
    #[error("{path} cannot be {operation}; check the disk and its permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The verifier refused.
    #[error(transparent)]
    Refresh(#[from] RefreshError),
    /// The metadata is well signed and breaks Firmesh's rules.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl TrustError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "local_store",
            Self::Refresh(error) => error.code(),
            Self::Policy(error) => error.code(),
        }
    }

    /// Whether the refusal is only that nobody answered.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Refresh(error) if error.retry())
    }
}

/// The latest time this node has proof of.
const LATEST_TIME_FILE: &str = "latest-time";

/// The files of the last refresh that came to its end, in one: a later one may be cut off between two files.
const WHOLE_FILE: &str = "last-whole";

impl TrustStore {
    /// Opens the folder, which begins with the pinned root.
    pub fn open(folder: &Path, pinned_root: &[u8]) -> Result<Self, TrustError> {
        file(folder, "written", fs::create_dir_all(folder))?;
        let mut stored = BTreeMap::new();
        for entry in file(folder, "read", fs::read_dir(folder))? {
            let path = file(folder, "read", entry)?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default()
                .to_owned();
            if path.extension().is_some_and(|extension| extension == "json") && !name.starts_with('.') {
                stored.insert(name, file(&path, "read", fs::read(&path))?);
            }
        }
        if !stored.contains_key("root.json") {
            let path = folder.join("root.json");
            file(&path, "written", write_durably(&path, pinned_root, 0o644))?;
            stored.insert("root.json".to_owned(), pinned_root.to_vec());
        }
        let path = folder.join(LATEST_TIME_FILE);
        let latest_known = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().unwrap_or_else(|_| WallTime::from_unix_seconds(0)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => WallTime::from_unix_seconds(0),
            Err(source) => {
                return Err(TrustError::File {
                    path,
                    operation: "read",
                    source,
                });
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            stored,
            latest_known,
        })
    }

    /// The time: the system's, but never earlier than the latest this node has proof of.
    #[must_use]
    pub fn now(&self) -> WallTime {
        system_time().max(self.latest_known)
    }

    /// The latest time this node has proof of.
    #[must_use]
    pub fn known_time(&self) -> WallTime {
        self.latest_known
    }

    /// Brings the metadata up to date. `fetch` gets a file's name and the most bytes worth reading.
    pub async fn refresh<F>(&mut self, fetch: impl Fn(String, u64) -> F) -> Result<TrustedFleet, TrustError>
    where
        F: Future<Output = Input>,
    {
        let mut refresh = Refresh::new(self.stored.clone(), self.now())?;
        while let Some(output) = refresh.poll() {
            match output {
                Output::Fetch { name, bytes_max } => refresh.handle(fetch(name, bytes_max).await),
                Output::Persist { name, bytes } => {
                    let path = self.folder.join(&name);
                    file(&path, "written", write_durably(&path, &bytes, 0o644))?;
                    self.stored.insert(name, bytes);
                }
                Output::Remove { name } => {
                    let path = self.folder.join(&name);
                    file(&path, "written", remove_durably(&path))?;
                    self.stored.remove(&name);
                }
            }
        }
        let fleet = TrustedFleet::new(refresh.finish()?)?;
        self.keep_whole()?;
        self.advance_clock()?;
        Ok(fleet)
    }

    /// What is stored, as if it had just been fetched: for a start without a coordinator.
    pub async fn stored_fleet(&mut self) -> Result<TrustedFleet, TrustError> {
        let stored = self.stored.clone();
        let refused = match self
            .refresh(move |name, _| std::future::ready(answer(&stored, &name)))
            .await
        {
            Ok(fleet) => return Ok(fleet),
            Err(refused) => refused,
        };
        // Perhaps cut off between two files. Nothing here touches what is stored: its versions stay the floor.
        let Some(whole) = self.whole() else {
            return Err(refused);
        };
        let newest_root = self.stored.get("root.json").cloned();
        let mut memory: StoredMetadata = newest_root
            .map(|root| ("root.json".to_owned(), root))
            .into_iter()
            .collect();
        let refresh = Refresh::new(memory.clone(), self.now())?;
        match refresh.run(&mut memory, |name, _| answer(&whole, name)) {
            Ok(metadata) => Ok(TrustedFleet::new(metadata)?),
            Err(_) => Err(refused),
        }
    }

    /// Keeps a copy of what has just been verified from end to end.
    fn keep_whole(&self) -> Result<(), TrustError> {
        let text: BTreeMap<_, _> = self
            .stored
            .iter()
            .map(|(name, bytes)| (name, String::from_utf8_lossy(bytes)))
            .collect();
        let bytes = serde_json::to_vec(&text).expect("texts under names always encode");
        let path = self.folder.join(WHOLE_FILE);
        if fs::read(&path).is_ok_and(|known| known == bytes) {
            return Ok(());
        }
        file(&path, "written", write_durably(&path, &bytes, 0o644))
    }

    fn whole(&self) -> Option<StoredMetadata> {
        let bytes = fs::read(self.folder.join(WHOLE_FILE)).ok()?;
        let text: BTreeMap<String, String> = serde_json::from_slice(&bytes).ok()?;
        Some(text.into_iter().map(|(name, text)| (name, text.into_bytes())).collect())
    }

    /// A successful refresh proves that it is at least now: remembered, so that a clock set back later changes nothing.
    fn advance_clock(&mut self) -> Result<(), TrustError> {
        let now = self.now();
        // Once an hour is often enough: expiry is counted in days.
        if now.unix_seconds() - self.latest_known.unix_seconds() >= 3_600 {
            let path = self.folder.join(LATEST_TIME_FILE);
            file(
                &path,
                "written",
                write_durably(&path, format!("{now}\n").as_bytes(), 0o644),
            )?;
            self.latest_known = now;
        }
        Ok(())
    }
}

/// Answers a fetch from files at hand: they answer for themselves, and there is no newer root among them.
fn answer(files: &StoredMetadata, name: &str) -> Input {
    let plain = match name.split_once('.') {
        Some((version, rest)) if version.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => name,
    };
    let found = files.get(plain).filter(|_| plain != "root.json").cloned();
    found.map_or(Input::NotFound, Input::Fetched)
}

/// The system's idea of the time.
#[must_use]
pub fn system_time() -> WallTime {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    WallTime::from_unix_seconds(seconds)
}

fn file<T>(path: &Path, operation: &'static str, result: io::Result<T>) -> Result<T, TrustError> {
    result.map_err(|source| TrustError::File {
        path: path.to_owned(),
        operation,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use firmesh_protocol::trust::{Ceremony, PublishedMetadata, Repository, SecretKey, Signers};

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn repository() -> Repository {
        let signers = |seed| Signers {
            keys: vec![key(seed).public()],
            threshold: 1,
        };
        let mut repository = Repository::create(&Ceremony {
            root: signers(1),
            releases: signers(2),
            campaigns: signers(3),
            online: signers(4),
            expires: system_time() + Duration::from_secs(86_400),
        })
        .unwrap();
        for (file, seed) in [
            ("1.root.json", 1),
            ("targets.json", 1),
            ("releases.json", 2),
            ("campaigns.json", 3),
        ] {
            repository.sign(file, &key(seed)).unwrap();
        }
        repository
    }

    fn publish(repository: &Repository, before: &StoredMetadata) -> PublishedMetadata {
        let expires = system_time() + Duration::from_secs(3_600);
        repository.publish(before, system_time(), expires, &[&key(4)]).unwrap()
    }

    async fn refresh(store: &mut TrustStore, files: &StoredMetadata) -> Result<TrustedFleet, TrustError> {
        store
            .refresh(|name, _| {
                let found = files.get(&name).cloned();
                std::future::ready(found.map_or(Input::NotFound, Input::Fetched))
            })
            .await
    }

    #[tokio::test]
    async fn a_refresh_cut_off_between_two_files_leaves_the_last_whole_set_to_start_with() {
        let (folder, mut repository) = (tempfile::tempdir().unwrap(), repository());
        let first = publish(&repository, &StoredMetadata::new());
        let open = || TrustStore::open(folder.path(), &first.files["1.root.json"]).unwrap();
        refresh(&mut open(), &first.files).await.unwrap();

        let expires = system_time() + Duration::from_secs(86_400);
        let target = firmesh_protocol::trust::Target::new(1, firmesh_protocol::ids::Sha256::of(b"x"), None);
        repository
            .set_campaign("campaigns/spring.json", target, expires)
            .unwrap();
        repository.sign("campaigns.json", &key(3)).unwrap();
        let second = publish(&repository, &first.stored);
        let mut cut_off = second.files.clone();
        cut_off.retain(|name, _| name == "timestamp.json");
        refresh(&mut open(), &cut_off).await.unwrap_err();

        // Without a coordinator: what was whole before.
        let version = |fleet: TrustedFleet| fleet.metadata().timestamp().header.version;
        assert_eq!(version(open().stored_fleet().await.unwrap()), 1);
        // With one: onwards, and never back.
        let refused = refresh(&mut open(), &first.files).await.unwrap_err();
        assert_eq!(refused.code(), "rollback");
        assert_eq!(version(refresh(&mut open(), &second.files).await.unwrap()), 2);
        assert_eq!(version(open().stored_fleet().await.unwrap()), 2);
    }
}
