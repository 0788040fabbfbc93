//! A host that RAUC updates, as written and as checked.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::config::{Check, DeviceConfigError};

/// A host that RAUC updates, as written. The node runs on it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaucConfig {
    /// A folder for bundles while they are installed, and for what is known of the slots.
    pub work_dir: PathBuf,
    /// The command, with its arguments, that restarts the host.
    pub reset_command: Vec<String>,
    /// Who makes the host.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// Where the running system says its version, as `VERSION_ID`.
    #[serde(default = "os_release")]
    pub os_release: PathBuf,
    /// What differs at every start.
    #[serde(default = "boot_id_file")]
    pub boot_id_file: PathBuf,
    /// The bus on which RAUC's service is, if not the system's.
    pub bus: Option<String>,
    /// How long an installation may take.
    #[serde(default = "install_limit_s")]
    pub install_limit_s: u32,
}

/// A host that RAUC updates, checked.
#[derive(Debug, Clone)]
pub struct RaucSettings {
    pub(super) work_dir: PathBuf,
    pub(super) reset_command: Vec<String>,
    pub(super) vendor: String,
    pub(super) model: String,
    pub(super) os_release: PathBuf,
    pub(super) boot_id_file: PathBuf,
    pub(super) bus: Option<String>,
    pub(super) install_limit: Duration,
}

impl Check<'_> {
    pub(crate) fn rauc(&self, config: RaucConfig) -> Result<RaucSettings, DeviceConfigError> {
        if config.reset_command.first().is_none_or(String::is_empty) {
            return Err(self.value("reset_command", "is empty: name the program that restarts the host"));
        }
        if !(1..=86_400).contains(&config.install_limit_s) {
            return Err(self.value("install_limit_s", "must be 1 to 86400"));
        }
        let at = |path: &Path| self.base.join(path);
        Ok(RaucSettings {
            work_dir: at(&config.work_dir).join(self.device.as_str()),
            os_release: at(&config.os_release),
            boot_id_file: at(&config.boot_id_file),
            reset_command: config.reset_command,
            vendor: config.vendor,
            model: config.model,
            bus: config.bus,
            install_limit: Duration::from_secs(config.install_limit_s.into()),
        })
    }
}

fn os_release() -> PathBuf {
    "/etc/os-release".into()
}

fn boot_id_file() -> PathBuf {
    "/proc/sys/kernel/random/boot_id".into()
}

fn install_limit_s() -> u32 {
    1_800
}
