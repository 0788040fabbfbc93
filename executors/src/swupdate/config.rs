//! A host whose slots SWUpdate writes, as written and as checked.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::config::{AbSlotConfig, AbSlotSettings, Check, DeviceConfigError};

/// A host whose slots SWUpdate writes, as written. The node runs on it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwupdateConfig {
    /// The slots and the boot environment, as the `ab_slot` executor has them.
    pub slots: AbSlotConfig,
    /// What `sw-description` calls the software for slot A: a set and a mode, such as `stable,a`.
    pub select_a: String,
    /// The same for slot B.
    pub select_b: String,
    /// The certificate or public key that images must be signed by.
    pub key_file: PathBuf,
    /// Board and revision, such as `r1:1.0`, if `sw-description` asks for them and `/etc/hwrevision` does not say.
    pub hardware: Option<String>,
    /// A folder for images while they are installed, and for what is known of the slots.
    pub work_dir: PathBuf,
    /// How long an installation may take.
    #[serde(default = "install_limit_s")]
    pub install_limit_s: u32,
}

/// A host whose slots SWUpdate writes, checked.
#[derive(Debug, Clone)]
pub struct SwupdateSettings {
    pub(crate) slots: AbSlotSettings,
    pub(super) select: [String; 2],
    pub(super) key_file: PathBuf,
    pub(super) hardware: Option<String>,
    pub(super) work_dir: PathBuf,
    pub(super) install_limit: Duration,
}

impl Check<'_> {
    pub(crate) fn swupdate(&self, config: SwupdateConfig) -> Result<SwupdateSettings, DeviceConfigError> {
        let is_selection = |text: &str| {
            text.split_once(',')
                .is_some_and(|(set, mode)| !set.is_empty() && !mode.is_empty() && !mode.contains(','))
        };
        if !is_selection(&config.select_a) || !is_selection(&config.select_b) {
            return Err(self.value(
                "select_a and select_b",
                "must be a set and a mode, such as \"stable,a\"",
            ));
        }
        if config.select_a == config.select_b {
            return Err(self.value("select_b", "is the same as select_a: the running slot would be written"));
        }
        if !(1..=86_400).contains(&config.install_limit_s) {
            return Err(self.value("install_limit_s", "must be 1 to 86400"));
        }
        // Without it SWUpdate would take what anybody has signed, or nobody.
        self.read("key_file", &config.key_file)?;
        Ok(SwupdateSettings {
            slots: self.ab_slot(config.slots)?,
            select: [config.select_a, config.select_b],
            key_file: self.base.join(config.key_file),
            hardware: config.hardware,
            work_dir: self.base.join(config.work_dir).join(self.device.as_str()),
            install_limit: Duration::from_secs(config.install_limit_s.into()),
        })
    }
}

fn install_limit_s() -> u32 {
    1_800
}
