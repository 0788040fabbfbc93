//! `devices.toml`: what to emulate.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use firmesh_protocol::ids::{Component, DeviceId, Sha256};
use firmesh_simulations::device::{Catalogue, Firmware, Identity, Misbehaviour};
use serde::{Deserialize, Serialize};

/// The emulator's configuration. Relative paths start at the folder of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicesConfig {
    /// Where state is kept.
    pub state: PathBuf,
    /// Where the control endpoint listens, plain HTTP. Default: a free port on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<SocketAddr>,
    /// The certificates, in PEM, one of which issued those of the nodes that BMCs pull from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_ca_file: Option<PathBuf>,
    /// The BMCs' certificate. Default: made at the first start by a CA of the emulator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Every BMC's account.
    #[serde(default = "default_username")]
    pub username: String,
    /// Its password.
    #[serde(default = "default_password")]
    pub password: String,
    /// The images that devices accept.
    #[serde(default)]
    pub catalogue: Vec<CatalogueConfig>,
    /// The devices.
    #[serde(default)]
    pub devices: Vec<DeviceConfig>,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The chain, leaf first.
    pub cert_file: PathBuf,
    /// The key.
    pub key_file: PathBuf,
}

/// One image that devices accept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueConfig {
    /// Its digest.
    pub sha256: Sha256,
    /// The version a device reports once it runs it.
    pub version: String,
    /// The model it is for.
    pub model: String,
}

/// One device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Its name.
    pub id: DeviceId,
    /// Who makes it.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// The component that can be updated.
    pub component: Component,
    /// The version it runs at first.
    pub version: String,
    /// How long a restart takes, in milliseconds. Default 1500: long enough to be seen, short enough for a demo.
    #[serde(default = "default_boot_ms")]
    pub boot_ms: u64,
    /// How it misbehaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misbehaviour: Option<Misbehaviour>,
    /// What it is.
    pub kind: DeviceKind,
}

/// What a device is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DeviceKind {
    /// A BMC behind Redfish.
    Bmc {
        /// Where it listens. Default: a free port on loopback, the same one after a restart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listen: Option<SocketAddr>,
        /// How long it writes an image, in milliseconds. Default 1000.
        #[serde(default = "default_flash_ms")]
        flash_ms: u64,
    },
    /// A host with two slots.
    Host {
        /// Its folder. Default: `hosts/<id>` in the state folder.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dir: Option<PathBuf>,
        /// The image in slot A at first. Default: a few bytes made from model and version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<PathBuf>,
    },
}

impl DevicesConfig {
    /// Reads a configuration file.
    pub fn load(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        toml::from_str(&text).with_context(|| format!("reading {}", file.display()))
    }

    pub(super) fn catalogue(&self) -> Catalogue {
        let firmware = |c: &CatalogueConfig| Firmware {
            version: c.version.clone(),
            model: c.model.clone(),
        };
        self.catalogue
            .iter()
            .map(|entry| (entry.sha256, firmware(entry)))
            .collect()
    }
}

impl DeviceConfig {
    pub(super) fn identity(&self) -> Identity {
        let Self {
            vendor,
            model,
            component,
            ..
        } = self.clone();
        Identity {
            vendor,
            model,
            component,
        }
    }
}

fn default_username() -> String {
    "admin".to_owned()
}

fn default_password() -> String {
    "firmesh-lab".to_owned()
}

fn default_boot_ms() -> u64 {
    1_500
}

fn default_flash_ms() -> u64 {
    1_000
}
