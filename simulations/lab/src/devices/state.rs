//! What the emulator keeps: one JSON file per device, and where everything listens.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use firmesh_protocol::ids::DeviceId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A value whose every change is on disk before it is seen.
#[derive(Debug)]
pub(super) struct Kept<T> {
    path: PathBuf,
    value: Mutex<T>,
}

impl<T: Serialize + DeserializeOwned + PartialEq + Clone> Kept<T> {
    pub(super) fn open(path: PathBuf, fresh: impl FnOnce() -> T, renew: impl FnOnce(&mut T)) -> Result<Self> {
        let mut value = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        renew(&mut value);
        replace(&path, &serde_json::to_vec(&value)?)?;
        Ok(Self {
            path,
            value: Mutex::new(value),
        })
    }

    /// Changes the value; a changed one is written before anybody else sees it.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let before = value.clone();
        let result = change(&mut value);
        if *value != before {
            let written = serde_json::to_vec(&*value)
                .map_err(Into::into)
                .and_then(|bytes| replace(&self.path, &bytes));
            if let Err(error) = written {
                tracing::error!(path = %self.path.display(), %error, "a device's state was not kept");
            }
        }
        result
    }
}

/// Where everything is: `endpoints.json` in the state folder.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoints {
    /// The control endpoint.
    pub(crate) control: String,
    /// The certificate that issued the BMCs', if the emulator made it.
    pub(crate) ca_file: Option<PathBuf>,
    /// The devices.
    pub(crate) devices: BTreeMap<DeviceId, EndpointKind>,
}

/// Where one device is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum EndpointKind {
    /// A BMC.
    Bmc {
        /// Its root.
        url: String,
    },
    /// A host.
    Host {
        /// Its folder, with `slot_a`, `slot_b`, `status.json`, and `grubenv` or `fw_env.config`.
        dir: PathBuf,
    },
}

impl Endpoints {
    /// Reads what an emulator with this state folder has written; empty if it never ran.
    pub(crate) fn load(state: &Path) -> Result<Self> {
        let path = state.join("endpoints.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    pub(super) fn save(&self, state: &Path) -> Result<()> {
        replace(&state.join("endpoints.json"), &serde_json::to_vec_pretty(self)?)
    }

    pub(super) fn add(&mut self, device: &DeviceId, endpoint: EndpointKind) {
        self.devices.insert(device.clone(), endpoint);
    }

    pub(super) fn port(&self, device: &DeviceId) -> Option<u16> {
        match self.devices.get(device)? {
            EndpointKind::Bmc { url } => port_of(url),
            EndpointKind::Host { .. } => None,
        }
    }

    pub(super) fn control_port(&self) -> Option<u16> {
        port_of(&self.control)
    }
}

fn port_of(url: &str) -> Option<u16> {
    url.rsplit(':').next()?.parse().ok()
}

/// Replaces a file as a whole.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    fs::write(&fresh, bytes).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("replacing {}", path.display()))
}
