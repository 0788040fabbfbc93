//! Secrets of destinations: from a file that only its owner can read, or from the environment. They are read anew for every
//! attempt, so that a file can be replaced without a restart, and never printed.

use std::{env, path::PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::ceremony::{KeyFileError, load_secret};

/// Where a secret stands, as written: one of the two.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretConfig {
    /// A file of mode 0600.
    pub file: Option<PathBuf>,
    /// A variable of the environment.
    pub env: Option<String>,
}

/// Where a secret stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    File(PathBuf),
    Env(String),
}

/// Why a secret is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the secret cannot be read")]
    File(#[from] KeyFileError),
    #[error("the variable {0} is not set, or is no text")]
    Env(String),
    #[error("the secret in {0} is empty")]
    Empty(String),
}

impl Secret {
    pub(crate) fn new(config: SecretConfig) -> Result<Self, &'static str> {
        match (config.file, config.env) {
            (Some(file), None) => Ok(Self::File(file)),
            (None, Some(name)) => Ok(Self::Env(name)),
            _ => Err("a secret is { file = \"...\" } or { env = \"...\" }"),
        }
    }

    /// The secret, without the end of its line.
    pub(crate) fn read(&self) -> Result<Zeroizing<String>, SecretError> {
        let (text, place) = match self {
            Self::File(path) => (Zeroizing::new(load_secret(path)?), path.display().to_string()),
            Self::Env(name) => {
                let text = env::var(name).map_err(|_| SecretError::Env(name.clone()))?;
                (Zeroizing::new(text), name.clone())
            }
        };
        let line = Zeroizing::new(text.trim().to_owned());
        match line.is_empty() {
            true => Err(SecretError::Empty(place)),
            false => Ok(line),
        }
    }
}
