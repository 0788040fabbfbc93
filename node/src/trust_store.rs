//! Verified metadata on disk: drives the trust core's refresh over files and a way to fetch.
//!
//! Invariants: what the core has not accepted is never written; files change only by write-fsync-rename; the clock that
//! judges expiry never goes below the latest time this node has proof of.

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
        self.advance_clock()?;
        Ok(fleet)
    }

    /// What is stored, as if it had just been fetched: for a start without a coordinator.
    pub async fn stored_fleet(&mut self) -> Result<TrustedFleet, TrustError> {
        let stored = self.stored.clone();
        self.refresh(move |name, _| {
            // The stored timestamp, snapshot and targets answer for themselves; there is no newer root here.
            let plain = name.split_once('.').map_or(name.as_str(), |(version, rest)| {
                if version.bytes().all(|b| b.is_ascii_digit()) {
                    rest
                } else {
                    &name
                }
            });
            let is_newer_root = plain == "root.json";
            let found = stored.get(plain).filter(|_| !is_newer_root).cloned();
            std::future::ready(found.map_or(Input::NotFound, Input::Fetched))
        })
        .await
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
