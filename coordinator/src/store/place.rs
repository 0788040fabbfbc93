//! `[database]` of the configuration: as written, and as checked.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::Url;
use serde::Deserialize;

use crate::notify::{Secret, SecretConfig};

/// Where the database is, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatabaseConfig {
    /// `postgres://user@host:port/name`, with `?sslmode=verify-full&sslrootcert=FILE` if it is not on this machine. Default:
    /// the file `coordinator.sqlite` in the state folder, for one coordinator.
    pub url: Option<String>,
    /// The user's password. Default: none, or what `PGPASSWORD` or `PGPASSFILE` say.
    pub password: Option<SecretConfig>,
    /// Connections to the server that are kept open. Default: 10.
    pub connections_min: u32,
    /// The most connections to the server. Default: 100.
    pub connections_max: u32,
    /// How long a server is waited for at the start. Default: half a minute, for a machine whose services all start at once.
    pub reach_within: String,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: None,
            password: None,
            connections_min: 10,
            connections_max: 100,
            reach_within: "30s".to_owned(),
        }
    }
}

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    File(PathBuf),
    Server(Server),
}

/// A PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Never with a password.
    pub(super) url: String,
    pub(super) password: Option<Secret>,
    pub(super) connections_min: u32,
    pub(super) connections_max: u32,
    pub(super) reach_within: Duration,
}

/// Servers allow some hundreds.
const CONNECTIONS_MAX: u32 = 1_000;

impl DatabaseConfig {
    /// Lets the paths in it start at the configuration's folder.
    pub(crate) fn start_at(&mut self, folder: &Path) {
        if let Some(file) = self.password.as_mut().and_then(|secret| secret.file.as_mut()) {
            *file = folder.join(&*file);
        }
    }

    /// The server, if there is one; or the field that is wrong, and what about it.
    pub(crate) fn check(
        self,
        duration: impl Fn(&'static str, &str) -> Result<Duration, crate::ConfigError>,
    ) -> Result<Option<Server>, crate::ConfigError> {
        let wrong = |field, problem: &str| crate::ConfigError::Value {
            field,
            problem: problem.to_owned(),
        };
        let password = self.password.map(Secret::new).transpose();
        let password = password.map_err(|problem| wrong("database.password", problem))?;
        let reach_within = duration("database.reach_within", &self.reach_within)?;
        let Some(url) = self.url else {
            return match password {
                Some(_) => Err(wrong("database.password", "is set, but database.url is not")),
                None => Ok(None),
            };
        };
        let form = "must be postgres://user@host:port/name, without a password: that is set with database.password";
        let parsed = Url::parse(&url).map_err(|_| wrong("database.url", form))?;
        let is_server = matches!(parsed.scheme(), "postgres" | "postgresql") && parsed.has_host();
        let names_password = parsed.password().is_some() || parsed.query_pairs().any(|(key, _)| key == "password");
        if !is_server || names_password {
            return Err(wrong("database.url", form));
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections_max) || self.connections_min > self.connections_max {
            let problem = "and database.connections_max must be a smaller and a greater number up to 1000";
            return Err(wrong("database.connections_min", problem));
        }
        Ok(Some(Server {
            url,
            password,
            connections_min: self.connections_min,
            connections_max: self.connections_max,
            reach_within,
        }))
    }
}

impl Place {
    /// How long it is waited for at the start.
    pub(crate) fn reach_within(&self) -> Duration {
        match self {
            Self::File(_) => Duration::ZERO,
            Self::Server(server) => server.reach_within,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Server(server) => server.fmt(f),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}
