//! Tokens by coordinator, in `$XDG_CONFIG_HOME/firmesh/credentials.json`, which only this user can read.

use std::{collections::BTreeMap, env, path::PathBuf};

use anyhow::{Context as _, ensure};
use firmesh_coordinator::ceremony::{KeyFileError, load_secret, write_secret};
use firmesh_protocol::time::WallTime;
use serde::{Deserialize, Serialize};

/// A token, and until when it is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credential {
    pub(crate) token: String,
    pub(crate) expires: WallTime,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    path: PathBuf,
    by_coordinator: BTreeMap<String, Credential>,
}

impl Credentials {
    /// Reads them; none if there is no file.
    pub(crate) fn load() -> anyhow::Result<Self> {
        // Who has no home has not logged in either.
        let Some(path) = place() else {
            return Ok(Self::default());
        };
        let by_coordinator = match load_secret(&path) {
            Err(KeyFileError::Read(error)) if error.is_not_found() => BTreeMap::new(),
            text => serde_json::from_str(&text?)
                .with_context(|| format!("{} cannot be read: remove it and log in again", path.display()))?,
        };
        Ok(Self { path, by_coordinator })
    }

    /// The token for a coordinator.
    pub(crate) fn get(&self, coordinator: &str) -> Option<&Credential> {
        self.by_coordinator.get(named(coordinator))
    }

    pub(crate) fn put(&mut self, coordinator: &str, credential: Credential) {
        self.by_coordinator.insert(named(coordinator).to_owned(), credential);
    }

    pub(crate) fn remove(&mut self, coordinator: &str) {
        self.by_coordinator.remove(named(coordinator));
    }

    /// Writes them, and says where.
    pub(crate) fn save(&self) -> anyhow::Result<&PathBuf> {
        ensure!(
            !self.path.as_os_str().is_empty(),
            "neither XDG_CONFIG_HOME nor HOME says where to keep tokens"
        );
        let text = serde_json::to_vec_pretty(&self.by_coordinator)?;
        write_secret(&self.path, &text, true)?;
        Ok(&self.path)
    }
}

fn named(coordinator: &str) -> &str {
    coordinator.trim_end_matches('/')
}

fn place() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(config.join("firmesh/credentials.json"))
}
