//! A device that asks for its updates, as written and as checked.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    config::{Check, DeviceConfigError, Secret},
    credentials::SecretSource,
};

/// A device that asks for its updates over hawkBit's DDI, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdiConfig {
    /// What it calls itself. Default: its name in the fleet.
    pub controller_id: Option<String>,
    /// A file (mode 0600) whose first line is its target token.
    pub token_file: Option<PathBuf>,
    /// An environment variable that holds its target token.
    pub token_env: Option<String>,
    /// Who makes it.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// The attribute by which it says its model; `model` has to be the same then. Default: nobody asks it.
    pub model_attribute: Option<String>,
    /// The attribute by which it says what it runs. Default: `version`.
    pub version_attribute: Option<String>,
    /// What decides which version it runs. Default: what it says.
    #[serde(default)]
    pub version_from: VersionFrom,
    /// What it runs until it has confirmed an update; only where confirmations decide.
    pub first_version: Option<String>,
    /// The attribute that differs after each start, if it has one.
    pub boot_attribute: Option<String>,
    /// What an image is called towards it. Default: `update.swu`; SWUpdate takes no other ending.
    pub file_name: Option<String>,
    /// How often it is told to ask. Default: 60 s.
    #[serde(default = "poll_s")]
    pub poll_s: u32,
}

/// What decides which version a device runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionFrom {
    /// The attribute in which it says so.
    #[default]
    Attribute,
    /// The last update that it closed with success: for clients that send no version. A device that falls back later on is
    /// not noticed.
    Confirmation,
}

/// A device that asks for its updates, checked.
#[derive(Debug, Clone)]
pub struct DdiSettings {
    pub(super) controller_id: String,
    pub(super) token: Option<Secret>,
    pub(super) vendor: String,
    pub(super) model: String,
    pub(super) model_attribute: Option<String>,
    pub(super) version_attribute: String,
    pub(super) version_from: VersionFrom,
    pub(super) first_version: Option<String>,
    pub(super) boot_attribute: Option<String>,
    pub(super) file_name: String,
    pub(super) poll: Duration,
}

impl DdiSettings {
    /// What it calls itself.
    #[must_use]
    pub fn controller_id(&self) -> &str {
        &self.controller_id
    }

    /// Whether it has a target token.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }
}

/// Shorter ones can be guessed over a night: eight random bytes in hexadecimal digits have sixteen.
const TOKEN_BYTES_MIN: usize = 16;

/// What goes into a URL or a file's name without being escaped.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= 100 && text.chars().all(plain) && text.contains(|c| c != '.')
}

impl Check<'_> {
    pub(crate) fn ddi(&self, config: DdiConfig) -> Result<DdiSettings, DeviceConfigError> {
        let controller_id = config.controller_id.unwrap_or_else(|| self.device.to_string());
        let file_name = config.file_name.unwrap_or_else(|| "update.swu".to_owned());
        if !is_plain(&controller_id) || !is_plain(&file_name) {
            return Err(self.value(
                "controller_id and file_name",
                "must be 1 to 100 letters, digits, dots, dashes and underscores",
            ));
        }
        if !(1..=86_399).contains(&config.poll_s) {
            return Err(self.value(
                "poll_s",
                "must be 1 to 86399: it is told as hours, minutes and seconds of a day",
            ));
        }
        let by_confirmation = config.version_from == VersionFrom::Confirmation;
        if by_confirmation != config.first_version.is_some() {
            return Err(self.value(
                "first_version",
                "goes with version_from = \"confirmation\", and that with it",
            ));
        }
        if by_confirmation && config.version_attribute.is_some() {
            return Err(self.value("version_attribute", "is not asked for where confirmations decide"));
        }
        let token = self.token(config.token_file, config.token_env)?;
        Ok(DdiSettings {
            controller_id,
            token,
            vendor: config.vendor,
            model: config.model,
            model_attribute: config.model_attribute,
            version_attribute: config.version_attribute.unwrap_or_else(|| "version".to_owned()),
            version_from: config.version_from,
            first_version: config.first_version,
            boot_attribute: config.boot_attribute,
            file_name,
            poll: Duration::from_secs(config.poll_s.into()),
        })
    }

    fn token(&self, file: Option<PathBuf>, env: Option<String>) -> Result<Option<Secret>, DeviceConfigError> {
        let source = match (file, env) {
            (None, None) => None,
            (Some(file), None) => Some(SecretSource::File(file)),
            (None, Some(name)) => Some(SecretSource::Env(name)),
            (Some(_), Some(_)) => return Err(self.value("token_file and token_env", "are two tokens: name one")),
        };
        let token = match source {
            Some(source) => Some(source.read(self.base).map_err(|error| {
                let problem = format!("cannot be had: {}", crate::backend::chain(&error));
                self.value("the target token", problem)
            })?),
            None => self.credentials.map(|credentials| credentials.secret.clone()),
        };
        match token {
            Some(token) if token.length() < TOKEN_BYTES_MIN => Err(self.value(
                "the target token",
                format!("is shorter than {TOKEN_BYTES_MIN} characters: whoever guesses it is this device"),
            )),
            token => Ok(token),
        }
    }
}

fn poll_s() -> u32 {
    60
}
