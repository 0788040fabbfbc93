//! `devices.toml`: what to emulate.

use std::{net::SocketAddr, path::PathBuf};

use firmesh_protocol::ids::{Component, DeviceId, Sha256};
use firmesh_simulations::device::{Catalogue, Firmware, Identity, Misbehaviour};
use serde::{Deserialize, Serialize};

/// The emulator's configuration. Relative paths start at the folder of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DevicesConfig {
    /// Where state is kept.
    pub(crate) state: PathBuf,
    /// Where the control endpoint listens, plain HTTP. Default: a free port on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<SocketAddr>,
    /// The certificates, in PEM, one of which issued those of the nodes that BMCs pull from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pull_ca_file: Option<PathBuf>,
    /// The BMCs' certificate. Default: made at the first start by a CA of the emulator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tls: Option<TlsConfig>,
    /// Every BMC's account.
    #[serde(default = "default_username")]
    pub(crate) username: String,
    /// Its password.
    #[serde(default = "default_password")]
    pub(crate) password: String,
    /// The images that devices accept.
    #[serde(default)]
    pub(crate) catalogue: Vec<CatalogueConfig>,
    /// The devices.
    #[serde(default)]
    pub(crate) devices: Vec<DeviceConfig>,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsConfig {
    /// The chain, leaf first.
    pub(crate) cert_file: PathBuf,
    /// The key.
    pub(crate) key_file: PathBuf,
}

/// One image that devices accept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CatalogueConfig {
    /// Its digest.
    pub sha256: Sha256,
    /// The version a device reports once it runs it.
    pub(crate) version: String,
    /// The model it is for.
    pub(crate) model: String,
}

/// One device.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceConfig {
    /// Its name.
    pub(crate) id: DeviceId,
    /// Who makes it.
    pub(crate) vendor: String,
    /// Its model.
    pub(crate) model: String,
    /// The component that can be updated.
    pub(crate) component: Component,
    /// The version it runs at first.
    pub(crate) version: String,
    /// How long a restart takes, in milliseconds. Default 1500: long enough to be seen, short enough for a demo.
    #[serde(default = "default_boot_ms")]
    pub(crate) boot_ms: u64,
    /// How it misbehaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) misbehaviour: Option<Misbehaviour>,
    /// What it is.
    pub(crate) kind: DeviceKind,
}

/// What a device is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum DeviceKind {
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
        /// What starts it. Default: GRUB.
        #[serde(default)]
        boot_loader: BootLoader,
    },
}

/// What starts a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BootLoader {
    /// GRUB, with its environment block.
    #[default]
    Grub,
    /// U-Boot, with two copies of its environment and its boot counter.
    Uboot,
}

impl DevicesConfig {
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
