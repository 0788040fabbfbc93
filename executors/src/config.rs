//! A device as an operator writes it down, and as checked.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firmesh_executors_core::{Goal, parse_fw_env_config};
use firmesh_protocol::{
    ids::{Component, DeviceId, TopologyPath},
    labels::Labels,
};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::{
    ab_slot::BootEnvPlace,
    command::{CommandConfig, CommandSettings},
    credentials::{Credentials, CredentialsError, Profiles, Resolved, Subject},
    ddi::{DdiConfig, DdiSettings},
    node_self::{NodeSelfConfig, NodeSelfSettings},
    rauc::{RaucConfig, RaucSettings},
    redfish::{BiosSettings, BiosSettingsConfig, Dialects, Spoken, file_name},
    swupdate::{SwupdateConfig, SwupdateSettings},
};

/// A device behind a node, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Its name in the fleet.
    pub id: DeviceId,
    /// The component Firmesh updates on it.
    pub component: Component,
    /// What it hangs on and what it is a part of: power feed, cooling loop, cluster, `unit` (its server) and the like.
    #[serde(default)]
    pub labels: Labels,
    /// Good answers in a row that count as "back" after a restart. Default 3.
    pub answers_min: Option<u32>,
    /// Seconds between two of them. Default: a sixteenth of the time that a campaign gives a device to come back, at most 30.
    pub answers_apart_s: Option<u32>,
    /// The host that steps aside before an attempt touches the device, by its name among the node's hosts. Default: none.
    pub host: Option<String>,
    /// What acts on it.
    pub executor: ExecutorConfig,
}

/// What acts on a device, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExecutorConfig {
    /// A BMC that speaks Redfish.
    Redfish(RedfishConfig),
    /// A host with two slots and a boot environment.
    AbSlot(AbSlotConfig),
    /// Anything a described tool updates.
    Command(CommandConfig),
    /// A host that RAUC updates.
    Rauc(RaucConfig),
    /// A host with two slots and a boot environment, whose slots SWUpdate writes.
    Swupdate(SwupdateConfig),
    /// A device that asks for its updates over hawkBit's DDI.
    Ddi(DdiConfig),
    /// The node itself.
    #[serde(rename = "node-self")]
    NodeSelf(NodeSelfConfig),
}

/// A BMC that speaks Redfish, as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedfishConfig {
    /// The BMC's root, such as `https://10.0.0.7`. Plain HTTP only on loopback.
    pub url: String,
    /// The account. Default: that of the device's profile.
    #[serde(default)]
    pub username: String,
    /// A file whose first line is the password. Without it and `password_env`, the device's profile has one.
    pub password_file: Option<PathBuf>,
    /// An environment variable that holds the password.
    pub password_env: Option<String>,
    /// The certificates, in PEM, one of which must have issued the BMC's.
    pub ca_file: Option<PathBuf>,
    /// The `@odata.id` of the system, where a BMC has several. Default: the first one.
    pub system: Option<String>,
    /// The `@odata.id` of the manager, where a BMC has several. Default: the first one.
    pub manager: Option<String>,
    /// The `Id` or a part of the `Name` of the firmware inventory's entry. Default: what the dialect knows of the component, else
    /// the component's name.
    pub inventory: Option<String>,
    /// How the image reaches the BMC. Default: `auto`, what the dialect prefers and the BMC offers.
    #[serde(default)]
    pub update: UpdateMethod,
    /// The dialect to speak. Default: the one that fits what the BMC says of itself.
    pub dialect: Option<String>,
    /// A folder of dialects (`*.toml`) beside, or of the same name instead of, those that come with Firmesh.
    pub dialects_dir: Option<PathBuf>,
    /// Who makes the device, if its BMC does not say.
    pub vendor: Option<String>,
    /// Its model, if its BMC does not say.
    pub model: Option<String>,
    /// What an uploaded image is called: some BMCs go by the ending. Default: what the dialect says.
    pub image_name: Option<String>,
    /// Whether the device may be cut off from its input power (`FullPowerCycle`) where nothing else starts a new version.
    #[serde(default)]
    pub ac_reset: bool,
    /// Where to write down what is said to the BMC and what it answers, without secrets. Default: nowhere.
    pub transcript: Option<TranscriptConfig>,
    /// That it is the BIOS's settings that are updated, by documents of attributes. Default: firmware is.
    pub bios_settings: Option<BiosSettingsConfig>,
}

/// Where transcripts are written, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranscriptConfig {
    /// Their folder; made, for its owner alone, if it is not there.
    pub dir: PathBuf,
    /// The most that one transcript may have: what follows is left out. Default 4 MiB.
    #[serde(default = "transcript_bytes_max")]
    pub bytes_max: u64,
    /// Transcripts of a device and component that are kept: the oldest go. Default 8.
    #[serde(default = "transcript_files_max")]
    pub files_max: usize,
}

fn transcript_bytes_max() -> u64 {
    4 << 20
}

fn transcript_files_max() -> usize {
    8
}

/// How an image reaches a BMC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateMethod {
    /// What the dialect prefers, of what the BMC offers.
    #[default]
    Auto,
    /// `SimpleUpdate`: the BMC fetches the image from the node.
    Pull,
    /// An upload.
    Push,
}

/// A host with two slots, as written. Paths may name plain files or block devices.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbSlotConfig {
    /// Slot A.
    pub slot_a: PathBuf,
    /// Slot B.
    pub slot_b: PathBuf,
    /// The GRUB environment block, of a host that GRUB starts.
    pub env_file: Option<PathBuf>,
    /// The `fw_env.config` that says where the environment lies, of a host that U-Boot starts.
    pub fw_env_config: Option<PathBuf>,
    /// What the running system writes about itself at each start.
    pub status_file: PathBuf,
    /// Where the running system writes how it is, at least once a minute. Without it, nobody knows.
    pub health_file: Option<PathBuf>,
    /// The command, with its arguments, that restarts the host.
    pub reset_command: Vec<String>,
    /// Who makes the host.
    pub vendor: String,
    /// Its model.
    pub model: String,
}

/// A device whose configuration has been checked.
#[derive(Debug, Clone)]
pub struct DeviceSettings {
    /// Its name in the fleet.
    pub device: DeviceId,
    /// The component Firmesh updates on it.
    pub component: Component,
    /// Its labels.
    pub labels: Labels,
    /// Good answers in a row that count as "back".
    pub answers_min: u32,
    /// Time between two of them, if it is not left to the campaign's.
    pub answers_apart: Option<Duration>,
    /// The host that steps aside before an attempt touches the device, if one does.
    pub host: Option<String>,
    /// The name of the profile that its credentials come from, if they do.
    pub profile: Option<String>,
    /// What acts on it.
    pub executor: ExecutorSettings,
}

/// What acts on a device, checked.
#[derive(Debug, Clone)]
pub enum ExecutorSettings {
    /// A BMC that speaks Redfish.
    Redfish(RedfishSettings),
    /// A host with two slots and a boot environment.
    AbSlot(AbSlotSettings),
    /// Anything a described tool updates.
    Command(Box<CommandSettings>),
    /// A host that RAUC updates.
    Rauc(RaucSettings),
    /// A host with two slots and a boot environment, whose slots SWUpdate writes.
    Swupdate(SwupdateSettings),
    /// A device that asks for its updates over hawkBit's DDI.
    Ddi(DdiSettings),
    /// The node itself.
    NodeSelf(NodeSelfSettings),
}

/// A BMC, checked.
#[derive(Debug, Clone)]
pub struct RedfishSettings {
    /// The BMC's root, without a path.
    pub url: Url,
    /// The account.
    pub username: String,
    /// Its password.
    pub password: Secret,
    /// PEM of the certificates that may have issued the BMC's; empty for plain HTTP.
    pub ca_pem: Vec<u8>,
    /// The system's `@odata.id`.
    pub system: Option<String>,
    /// The manager's `@odata.id`.
    pub manager: Option<String>,
    /// What to look for in the firmware inventory, if not for what the dialect knows.
    pub inventory: Option<String>,
    /// How the image reaches the BMC.
    pub update: UpdateMethod,
    /// The dialects it may speak.
    pub dialects: Arc<Dialects>,
    /// Who makes the device, if its BMC does not say.
    pub vendor: Option<String>,
    /// Its model, if its BMC does not say.
    pub model: Option<String>,
    /// What an uploaded image is called.
    pub image_name: Option<String>,
    /// Whether the device may be cut off from its input power.
    pub ac_reset: bool,
    /// Where transcripts are written, if they are.
    pub transcript: Option<TranscriptSettings>,
    /// That the BIOS's settings are updated, if not firmware.
    pub bios_settings: Option<BiosSettings>,
}

/// Where transcripts are written, checked.
#[derive(Debug, Clone)]
pub struct TranscriptSettings {
    /// Their folder.
    pub dir: PathBuf,
    /// The most that one may have.
    pub bytes_max: u64,
    /// Transcripts of a device and component that are kept.
    pub files_max: usize,
    pub(crate) device: DeviceId,
    pub(crate) component: Component,
    pub(crate) spoken: Spoken,
}

/// A host with two slots, checked.
#[derive(Debug, Clone)]
pub struct AbSlotSettings {
    /// Slot A.
    pub slot_a: PathBuf,
    /// Slot B.
    pub slot_b: PathBuf,
    /// Where the boot environment lies.
    pub env: BootEnvPlace,
    /// What the running system writes about itself.
    pub status_file: PathBuf,
    /// Where the running system writes how it is.
    pub health_file: Option<PathBuf>,
    /// The program that restarts the host.
    pub reset_program: String,
    /// Its arguments.
    pub reset_args: Vec<String>,
    /// Who makes the host.
    pub vendor: String,
    /// Its model.
    pub model: String,
}

/// Text that never shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// How many bytes it has.
    #[must_use]
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Whether `given` is the same, in a time that says nothing of how much of it is.
    #[must_use]
    pub fn is(&self, given: &str) -> bool {
        let digests = [self.0.as_str(), given].map(|text| sha2::Sha256::digest(text.as_bytes()));
        let differing = digests[0].iter().zip(digests[1].iter());
        std::hint::black_box(differing.fold(0, |so_far, (a, b)| so_far | (a ^ b))) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// What is wrong with a device's configuration.
#[derive(Debug, thiserror::Error)]
pub enum DeviceConfigError {
    /// A value that cannot be.
    #[error("device {device}: {field} {problem}")]
    Value {
        /// The device.
        device: DeviceId,
        /// The field at fault.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A file that could not be read.
    #[error("device {device}: {field}: {path} cannot be read")]
    File {
        /// The device.
        device: DeviceId,
        /// The field that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its profile has no secret that can be had.
    #[error("device {device}")]
    Credentials {
        /// The device.
        device: DeviceId,
        /// Why not.
        source: CredentialsError,
    },
}

/// Files named in a configuration are small: a password, a few certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Good answers that may be asked for, and how far apart: ten an hour are as good as none.
const ANSWERS_MAX: u32 = 20;
const ANSWERS_APART_MAX_S: u32 = 600;

/// Dialects in one folder: there are a dozen makers of BMCs.
const DIALECTS_MAX: usize = 64;

impl DeviceConfig {
    /// Checks what was written and reads the files it names; relative paths start at `base`, the configuration's folder.
    pub fn check(self, base: &Path) -> Result<DeviceSettings, DeviceConfigError> {
        self.check_with(base, None)
    }

    /// The same for a device of a node that has profiles: one that names no credentials has those of its profile.
    pub fn check_with(
        self,
        base: &Path,
        profiles: Option<(&Profiles, &TopologyPath)>,
    ) -> Result<DeviceSettings, DeviceConfigError> {
        let credentials = match profiles {
            Some((profiles, path)) if self.needs_credentials() => {
                let found = profiles.credentials(&self.subject(path));
                found.map_err(|source| DeviceConfigError::Credentials {
                    device: self.id.clone(),
                    source,
                })?
            }
            _ => None,
        };
        let credentials = credentials.as_ref();
        let Self {
            id,
            component,
            labels,
            answers_min,
            answers_apart_s,
            host,
            executor,
        } = self;
        let check = Check {
            device: &id,
            base,
            credentials,
        };
        let answers_min = answers_min.unwrap_or(Goal::ANSWERS_MIN);
        if !(1..=ANSWERS_MAX).contains(&answers_min) {
            return Err(check.value("answers_min", format!("must be from 1 to {ANSWERS_MAX}")));
        }
        if answers_apart_s.is_some_and(|apart_s| apart_s > ANSWERS_APART_MAX_S) {
            return Err(check.value("answers_apart_s", format!("must be at most {ANSWERS_APART_MAX_S}")));
        }
        let executor = match executor {
            ExecutorConfig::Redfish(redfish) => ExecutorSettings::Redfish(check.redfish(redfish, &component)?),
            ExecutorConfig::AbSlot(ab_slot) => ExecutorSettings::AbSlot(check.ab_slot(ab_slot)?),
            ExecutorConfig::Swupdate(swupdate) => ExecutorSettings::Swupdate(check.swupdate(swupdate)?),
            ExecutorConfig::Rauc(rauc) => ExecutorSettings::Rauc(check.rauc(rauc)?),
            ExecutorConfig::Command(command) => ExecutorSettings::Command(Box::new(check.command(command)?)),
            ExecutorConfig::Ddi(ddi) => ExecutorSettings::Ddi(check.ddi(ddi)?),
            ExecutorConfig::NodeSelf(node) => ExecutorSettings::NodeSelf(check.node_self(node)?),
        };
        Ok(DeviceSettings {
            device: id,
            component,
            labels,
            answers_min,
            answers_apart: answers_apart_s.map(|apart_s| Duration::from_secs(apart_s.into())),
            host,
            profile: credentials.map(|credentials| credentials.profile.clone()),
            executor,
        })
    }

    /// Which profile it has; nothing if it has none, or names credentials of its own.
    #[must_use]
    pub fn profile(&self, profiles: &Profiles, path: &TopologyPath) -> Option<Resolved> {
        let found = || profiles.resolve(&self.subject(path));
        self.needs_credentials().then(found).flatten()
    }

    fn needs_credentials(&self) -> bool {
        match &self.executor {
            ExecutorConfig::Redfish(redfish) => redfish.password_file.is_none() && redfish.password_env.is_none(),
            ExecutorConfig::Ddi(ddi) => ddi.token_file.is_none() && ddi.token_env.is_none(),
            _ => false,
        }
    }

    /// A BMC says its model when it is asked; before that it has the one of its label.
    fn subject<'a>(&'a self, path: &'a TopologyPath) -> Subject<'a> {
        let model = match &self.executor {
            ExecutorConfig::Ddi(ddi) => Some(ddi.model.as_str()),
            _ => self.labels.get("model").map(|model| model.as_str()),
        };
        let device = &self.id;
        Subject { device, model, path }
    }
}

/// The checks of one device's configuration.
pub(crate) struct Check<'a> {
    pub(crate) device: &'a DeviceId,
    /// Where relative paths begin.
    pub(crate) base: &'a Path,
    /// What its profile has.
    pub(crate) credentials: Option<&'a Credentials>,
}

impl Check<'_> {
    fn redfish(&self, config: RedfishConfig, component: &Component) -> Result<RedfishSettings, DeviceConfigError> {
        let url = self.bmc_url(&config.url)?;
        let ca_pem = match &config.ca_file {
            Some(path) => self.read("ca_file", path)?,
            None if url.scheme() == "https" => {
                return Err(self.value("ca_file", "is missing: name the certificate that issued the BMC's"));
            }
            None => Vec::new(),
        };
        for path in [&config.system, &config.manager].into_iter().flatten() {
            if !path.starts_with("/redfish/") {
                return Err(self.value("system and manager", "must begin with /redfish/"));
            }
        }
        if let Some(name) = &config.image_name {
            file_name("the image", name).map_err(|problem| self.value("image_name", problem))?;
        }
        let files = match &config.dialects_dir {
            Some(folder) => self.dialects(folder)?,
            None => Vec::new(),
        };
        let dialects = Dialects::new(&files, config.dialect.clone());
        let dialects = dialects.map_err(|problem| self.value("dialect", problem))?;
        let bios_settings = match &config.bios_settings {
            Some(bios) => Some(BiosSettings::check(self, bios)?),
            None => None,
        };
        let transcript = match &config.transcript {
            Some(transcript) => Some(self.transcript(transcript, &config, component)?),
            None => None,
        };
        Ok(RedfishSettings {
            url,
            dialects: Arc::new(dialects),
            password: self.password(&config)?,
            username: self.username(&config)?,
            transcript,
            bios_settings,
            ca_pem,
            system: config.system,
            manager: config.manager,
            inventory: config.inventory,
            update: config.update,
            vendor: config.vendor,
            model: config.model,
            image_name: config.image_name,
            ac_reset: config.ac_reset,
        })
    }

    fn transcript(
        &self,
        transcript: &TranscriptConfig,
        config: &RedfishConfig,
        component: &Component,
    ) -> Result<TranscriptSettings, DeviceConfigError> {
        /// Room for one inventory, and not for all of a disk.
        const BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=256 << 20;
        const FILES: std::ops::RangeInclusive<usize> = 1..=1_000;
        if !BYTES.contains(&transcript.bytes_max) || !FILES.contains(&transcript.files_max) {
            let problem = "must have bytes_max from 65536 to 268435456 and files_max from 1 to 1000";
            return Err(self.value("transcript", problem));
        }
        Ok(TranscriptSettings {
            dir: self.base.join(&transcript.dir),
            bytes_max: transcript.bytes_max,
            files_max: transcript.files_max,
            device: self.device.clone(),
            component: component.clone(),
            spoken: Spoken {
                system: config.system.clone(),
                manager: config.manager.clone(),
                inventory: config.inventory.clone(),
                update: config.update,
                dialect: config.dialect.clone(),
                vendor: config.vendor.clone(),
                model: config.model.clone(),
                image_name: config.image_name.clone(),
                ac_reset: config.ac_reset,
                bios_settings: config.bios_settings.is_some(),
            },
        })
    }

    /// The dialects in a folder, by name and contents, in order.
    fn dialects(&self, folder: &Path) -> Result<Vec<(String, String)>, DeviceConfigError> {
        let field = "dialects_dir";
        let listed = std::fs::read_dir(self.base.join(folder)).and_then(|entries| {
            let entries = entries.map(|entry| Ok(entry?.path()));
            entries.collect::<io::Result<Vec<PathBuf>>>()
        });
        let mut paths = listed.map_err(|source| DeviceConfigError::File {
            device: self.device.clone(),
            field,
            path: self.base.join(folder),
            source,
        })?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        if paths.len() > DIALECTS_MAX {
            return Err(self.value(field, format!("has more than {DIALECTS_MAX} dialects")));
        }
        paths.sort();
        let read = paths.into_iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match String::from_utf8(self.read(field, &path)?) {
                Ok(text) => Ok((name, text)),
                Err(_not_utf8) => Err(self.value(field, format!("has {name}, which is not text"))),
            }
        });
        read.collect()
    }

    fn bmc_url(&self, text: &str) -> Result<Url, DeviceConfigError> {
        let url = Url::parse(text).map_err(|error| self.value("url", format!("{text:?} is not a URL: {error}")))?;
        let loopback = match url.host_str() {
            Some("localhost") => true,
            Some(host) => host
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
            None => return Err(self.value("url", "names no host")),
        };
        match url.scheme() {
            "https" => {}
            "http" if loopback => {}
            "http" => return Err(self.value("url", "must be https: a password would travel in the clear")),
            other => return Err(self.value("url", format!("has the scheme {other:?}, must be https"))),
        }
        if url.path() != "/" || url.query().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(self.value(
                "url",
                "must be a root such as https://10.0.0.7, without a path or a user",
            ));
        }
        Ok(url)
    }

    fn username(&self, config: &RedfishConfig) -> Result<String, DeviceConfigError> {
        let of_profile = self.credentials.and_then(|credentials| credentials.username.clone());
        let given = Some(config.username.clone()).filter(|name| !name.is_empty());
        given
            .or(of_profile)
            .ok_or_else(|| self.value("username", "is missing, here and in the device's profile"))
    }

    fn password(&self, config: &RedfishConfig) -> Result<Secret, DeviceConfigError> {
        let text = match (&config.password_file, &config.password_env, self.credentials) {
            (None, None, Some(credentials)) => return Ok(credentials.secret.clone()),
            (Some(path), None, _) => return self.secret("password_file", path),
            (None, Some(name), _) => std::env::var(name)
                .map_err(|_unset| self.value("password_env", format!("names {name}, which is not set or not text")))?,
            _ => return Err(self.value("password_file or password_env", "must be given, and only one of them")),
        };
        if text.is_empty() {
            Err(self.value("password", "is empty"))
        } else {
            Ok(Secret(text))
        }
    }

    /// The first line of a file that keeps a secret.
    pub(crate) fn secret(&self, field: &'static str, path: &Path) -> Result<Secret, DeviceConfigError> {
        let text = String::from_utf8(self.read(field, path)?).map_err(|_not_utf8| self.value(field, "is not text"))?;
        match text.lines().next() {
            None | Some("") => Err(self.value(field, format!("{} has an empty first line", path.display()))),
            Some(line) => Ok(Secret(line.to_owned())),
        }
    }

    pub(crate) fn ab_slot(&self, config: AbSlotConfig) -> Result<AbSlotSettings, DeviceConfigError> {
        let mut command = config.reset_command.into_iter();
        let reset_program = command
            .next()
            .filter(|program| !program.is_empty())
            .ok_or_else(|| self.value("reset_command", "is empty: name the program that restarts the host"))?;
        let [slot_a, slot_b, status_file] =
            [config.slot_a, config.slot_b, config.status_file].map(|path| self.base.join(path));
        let env = match (config.env_file, config.fw_env_config) {
            (Some(path), None) => BootEnvPlace::Grub(self.base.join(path)),
            (None, Some(path)) => self.uboot(&path)?,
            _ => {
                return Err(self.value(
                    "env_file (GRUB) or fw_env_config (U-Boot)",
                    "must be given, and only one of them",
                ));
            }
        };
        let health_file = config.health_file.map(|path| self.base.join(path));
        if slot_a == slot_b {
            return Err(self.value("slot_b", "is the same file as slot_a"));
        }
        let is_slot = |path: &Path| path == slot_a || path == slot_b;
        if is_slot(&status_file) || env.paths().any(is_slot) {
            return Err(self.value("the boot environment and status_file", "must not be slots"));
        }
        Ok(AbSlotSettings {
            slot_a,
            slot_b,
            env,
            status_file,
            health_file,
            reset_program,
            reset_args: command.collect(),
            vendor: config.vendor,
            model: config.model,
        })
    }

    fn uboot(&self, path: &Path) -> Result<BootEnvPlace, DeviceConfigError> {
        let field = "fw_env_config";
        let text = String::from_utf8(self.read(field, path)?).map_err(|_not_utf8| self.value(field, "is not text"))?;
        let copies = parse_fw_env_config(&text);
        let copies = copies.map_err(|problem| self.value(field, format!("{}: {problem}", path.display())))?;
        Ok(BootEnvPlace::Uboot(copies))
    }

    pub(crate) fn read(&self, field: &'static str, path: &Path) -> Result<Vec<u8>, DeviceConfigError> {
        let path = self.base.join(path);
        let read = std::fs::metadata(&path).and_then(|metadata| match metadata.len() {
            length if length > FILE_BYTES_MAX => Err(io::Error::other("the file is larger than 1 MiB")),
            _ => std::fs::read(&path),
        });
        read.map_err(|source| DeviceConfigError::File {
            device: self.device.clone(),
            field,
            path,
            source,
        })
    }

    pub(crate) fn value(&self, field: &'static str, problem: impl Into<String>) -> DeviceConfigError {
        DeviceConfigError::Value {
            device: self.device.clone(),
            field,
            problem: problem.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_device_is_known_to_be_back_is_its_own_within_bounds() {
        let check = |more: &str| {
            let text = format!(
                "id = \"d1\"\ncomponent = \"bmc\"\n{more}\n[executor]\nkind = \"redfish\"\n\
                 url = \"http://127.0.0.1:8000\"\nusername = \"admin\"\npassword_env = \"PATH\"\n"
            );
            let config: DeviceConfig = toml::from_str(&text).unwrap();
            config.check(Path::new("/"))
        };
        let plain = check("").unwrap();
        assert_eq!((plain.answers_min, plain.answers_apart), (Goal::ANSWERS_MIN, None));
        let own = check("answers_min = 5\nanswers_apart_s = 60").unwrap();
        assert_eq!((own.answers_min, own.answers_apart), (5, Some(Duration::from_secs(60))));
        for (more, words) in [
            ("answers_min = 0", "answers_min must be from 1 to 20"),
            ("answers_min = 21", "answers_min must be from 1 to 20"),
            ("answers_apart_s = 601", "answers_apart_s must be at most 600"),
        ] {
            let error = check(more).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_bmc_without_tls_password_or_certificate_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("password"), "secret\n").unwrap();
        std::fs::write(dir.path().join("ca.pem"), "").unwrap();
        let check = |change: fn(&mut RedfishConfig)| {
            let mut config = bmc();
            change(&mut config);
            let id = DeviceId::new("d1").unwrap();
            let component = Component::new("bmc").unwrap();
            DeviceConfig {
                id,
                component,
                labels: Labels::default(),
                answers_min: None,
                answers_apart_s: None,
                host: None,
                executor: ExecutorConfig::Redfish(config),
            }
            .check(dir.path())
        };
        let refused = |change: fn(&mut RedfishConfig), words: &str| {
            let error = check(change).unwrap_err().to_string();
            assert!(error.contains("device d1") && error.contains(words), "{error}");
        };
        let settings = check(|_| {}).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
        assert!(check(|c| c.url = "http://127.0.0.1:8000".to_owned()).is_ok());
        refused(|c| c.url = "http://10.0.0.7".to_owned(), "must be https");
        refused(|c| c.url = "ftp://10.0.0.7".to_owned(), "must be https");
        refused(|c| c.url = "not a url".to_owned(), "is not a URL");
        refused(|c| c.url = "https://10.0.0.7/redfish".to_owned(), "without a path");
        refused(|c| c.ca_file = None, "ca_file is missing");
        refused(|c| c.ca_file = Some("absent.pem".into()), "absent.pem cannot be read");
        refused(|c| c.password_file = None, "must be given, and only one");
        refused(|c| c.password_env = Some("X".to_owned()), "must be given, and only one");
        refused(
            |c| c.system = Some("https://evil/".to_owned()),
            "must begin with /redfish/",
        );
        refused(|c| c.image_name = Some("../x".to_owned()), "has the name \"../x\"");
        refused(|c| c.dialect = Some("klingon".to_owned()), "\"klingon\" is no dialect");
        refused(|c| c.dialects_dir = Some("none".into()), "cannot be read");
        std::fs::create_dir(dir.path().join("dialects")).unwrap();
        let own = "schema = \"firmesh-redfish/1\"\nname = \"own\"\n[update]\nmethods = [\"http_push\"]\n";
        std::fs::write(dir.path().join("dialects/own.toml"), own).unwrap();
        let spoken = |c: &mut RedfishConfig| {
            c.dialects_dir = Some("dialects".into());
            c.dialect = Some("own".to_owned());
        };
        assert!(check(spoken).is_ok());
        std::fs::write(dir.path().join("dialects/two.toml"), "schema = 1").unwrap();
        refused(
            |c| c.dialects_dir = Some("dialects".into()),
            "two.toml is not a dialect of Redfish",
        );
    }

    #[test]
    fn slots_that_coincide_environments_that_are_none_and_empty_commands_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |change: fn(&mut AbSlotConfig)| {
            let mut config = AbSlotConfig {
                slot_a: "a".into(),
                slot_b: "b".into(),
                env_file: Some("grubenv".into()),
                fw_env_config: None,
                status_file: "status.json".into(),
                health_file: None,
                reset_command: vec!["reboot".to_owned()],
                vendor: "Acme".to_owned(),
                model: "H1".to_owned(),
            };
            change(&mut config);
            let (id, component) = (DeviceId::new("h1").unwrap(), Component::new("host").unwrap());
            DeviceConfig {
                id,
                component,
                labels: Labels::default(),
                answers_min: None,
                answers_apart_s: None,
                host: None,
                executor: ExecutorConfig::AbSlot(config),
            }
            .check(dir.path())
        };
        let ExecutorSettings::AbSlot(settings) = check(|_| {}).unwrap().executor else {
            panic!("not slots")
        };
        assert_eq!(settings.slot_a, dir.path().join("a"));
        assert!(check(|c| c.slot_b = "a".into()).is_err());
        assert!(check(|c| c.env_file = Some("a".into())).is_err());
        assert!(check(|c| c.reset_command.clear()).is_err());

        let refused = |change: fn(&mut AbSlotConfig), words: &str| {
            let error = check(change).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(|c| c.env_file = None, "must be given, and only one of them");
        refused(|c| c.fw_env_config = Some("fw_env.config".into()), "only one of them");
        let uboot = |c: &mut AbSlotConfig| (c.env_file, c.fw_env_config) = (None, Some("fw_env.config".into()));
        refused(uboot, "fw_env.config cannot be read");
        std::fs::write(dir.path().join("fw_env.config"), "/dev/mmcblk0 0xc0000\n").unwrap();
        refused(uboot, "fw_env.config: line 1 has less than three words");
        let slot = format!("{} 0 40\n", dir.path().join("a").display());
        std::fs::write(dir.path().join("fw_env.config"), slot).unwrap();
        refused(uboot, "must not be slots");
        std::fs::write(dir.path().join("fw_env.config"), "/dev/mmcblk0 0xc0000 20000\n").unwrap();
        assert!(check(uboot).is_ok());
    }

    fn bmc() -> RedfishConfig {
        RedfishConfig {
            url: "https://10.0.0.7".to_owned(),
            username: "admin".to_owned(),
            password_file: Some("password".into()),
            password_env: None,
            ca_file: Some("ca.pem".into()),
            ..RedfishConfig::default()
        }
    }
}
