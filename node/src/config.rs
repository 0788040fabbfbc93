//! The node's configuration: [`Config`] as written, [`Settings`] as checked. Nothing starts before everything is checked.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firmesh_executors::{
    DeviceConfig, DeviceConfigError, DeviceSettings, ExecutorSettings, Profiles, ProfilesConfig, ProfilesError,
    Resolved, Unseal,
    host::{HostConfig, HostConfigError, HostSettings},
};
use firmesh_node_core::{retention::ARTIFACTS_MAX, swarm::Tuning};
use firmesh_protocol::{
    ids::{ArtifactId, DeviceId, NodeId, TopologyPath},
    limits::NODE_DEVICES_MAX,
};
use firmesh_telemetry::{TelemetryConfig, TelemetryProblem, TelemetrySettings};
use serde::Deserialize;

use crate::{
    ddi::{DdiConfig, DdiError, DdiSettings},
    sealing::Sealing,
    store::{KeyError, Pace, StoreKey},
    transport::{
        DatagramBound, DscpMarks,
        budget::{Budget, pieces_in_flight},
    },
};

/// The configuration as written in `node.toml`. Relative paths start at the file's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name in the fleet.
    pub node: NodeId,
    /// Where it stands; the last segment is the node itself.
    pub path: TopologyPath,
    /// Where everything that must survive lies: keys, metadata, store, journal.
    pub state_dir: PathBuf,
    /// The pinned TUF root, brought by hand. Read once; later roots follow from it.
    pub root_file: PathBuf,
    /// How to reach the coordinator.
    pub coordinator: CoordinatorConfig,
    /// The data plane (QUIC).
    #[serde(default)]
    pub data: DataConfig,
    /// The control plane of the mesh (libp2p).
    #[serde(default)]
    pub mesh: MeshConfig,
    /// The local status API.
    #[serde(default)]
    pub status: StatusConfig,
    /// Images for BMCs that pull them.
    #[serde(default)]
    pub images: ImagesConfig,
    /// Where devices ask that fetch their updates themselves. Nobody listens as long as there are none.
    #[serde(default)]
    pub ddi: DdiConfig,
    /// A file of profiles: credentials of many devices, by place, model and name.
    pub credentials_file: Option<PathBuf>,
    /// The piece store.
    #[serde(default)]
    pub store: StoreConfig,
    /// How many bytes per second may come and go, and when; anything if there are none.
    #[serde(default, rename = "budget")]
    pub budgets: Vec<Budget>,
    /// Hosts that step aside before an attempt touches a device of theirs.
    #[serde(default, rename = "host")]
    pub hosts: Vec<HostConfig>,
    /// The devices this node looks after.
    #[serde(default, rename = "device")]
    pub devices: Vec<DeviceConfig>,
    /// Traces. Default: none.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

/// How to reach the coordinator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorConfig {
    /// Its node listener, such as `https://coordinator:8641`.
    pub url: String,
    /// The fleet CA's certificate, PEM: pins the coordinator and every peer.
    pub ca_file: PathBuf,
    /// The one-time token's file; needed only until the node is enrolled.
    pub token_file: Option<PathBuf>,
    /// How often to report. Default: 5 s, so that an operator sees a wave move while it moves.
    #[serde(default = "five_seconds")]
    pub poll_interval: String,
    /// How long the coordinator may be silent, and its answers slower than 1 KiB/s, before they are given up and named
    /// among the refusals. Default: 20 s.
    #[serde(default = "twenty_seconds")]
    pub patience: String,
}

/// The data plane.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Where to listen (UDP). Default: a free port on loopback, so that nothing is exposed unasked.
    pub listen: SocketAddr,
    /// The address peers should use, if it is another one.
    pub advertise: Option<SocketAddr>,
    /// The largest datagram that is taken from peers and tried towards them, in bytes of UDP payload, from 1200 to 6500.
    /// Default: 6500, because what fits a path is found out by trying, and large ones cost half. Less where larger packets go
    /// astray on the way, in a tunnel that cuts them up or a switch that counts them as broken.
    pub datagram_bytes_max: DatagramBound,
    /// The code points of differentiated services that slices are sent with, by the urgency of their campaign, for networks
    /// that go by them. What a campaign calls `background` makes room for other traffic in any case.
    pub dscp: DscpMarks,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            listen: loopback(),
            advertise: None,
            datagram_bytes_max: DatagramBound::default(),
            dscp: DscpMarks::default(),
        }
    }
}

/// The control plane of the mesh.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Where to listen. Default: a free QUIC port on loopback.
    pub listen: String,
    /// Multiaddresses of nodes to begin with, beside those the roster names.
    pub seeds: Vec<String>,
    /// Whether to look for neighbours by multicast. Default: yes; it finds a rack without any configuration.
    pub mdns: bool,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            listen: "/ip4/127.0.0.1/udp/0/quic-v1".to_owned(),
            seeds: Vec::new(),
            mdns: true,
        }
    }
}

/// The local status API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusConfig {
    /// Where to listen. Only loopback is allowed: the API has no login.
    pub listen: SocketAddr,
}

impl Default for StatusConfig {
    fn default() -> Self {
        Self { listen: loopback() }
    }
}

/// Images for BMCs that pull them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Where to listen (HTTPS).
    pub listen: SocketAddr,
    /// The host name or address in the URLs given to BMCs, if it is not the listening address.
    pub advertise_host: Option<String>,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        Self {
            listen: loopback(),
            advertise_host: None,
        }
    }
}

/// The piece store.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// A file (mode 0600) with the key that the store is encrypted under: 64 hexadecimal digits. `FIRMESH_STORE_KEY` in the
    /// environment goes before it. Default: none, and the store is not encrypted.
    pub key_file: Option<PathBuf>,
    /// The most bytes that all images together may take, records included (1.6 % of an image). Default: no bound but
    /// `reserve_bytes`, because a disk that is there is better used than not.
    pub quota_bytes: Option<u64>,
    /// Bytes of the disk that stay free. Default: a twentieth of it, at most 1 GiB: journal and logs live there too.
    pub reserve_bytes: Option<u64>,
    /// Artifacts (BLAKE3 roots, as `/status` and `firmesh` name them) that stay whatever happens. What campaigns need, what
    /// devices run and what they ran before stays in any case. A pin keeps, it does not fetch.
    pub pin: Vec<ArtifactId>,
    /// How fast the scrub reads what is held and checks it; 0 for never. Default: 4 MiB in a second, which a disk that serves
    /// a rack does not notice: 100 GiB in 7 hours.
    pub scrub_bytes_per_second: u64,
    /// From the beginning of one pass of the scrub to that of the next; one begins with every start, too. Default: a week.
    pub scrub_every: String,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            key_file: None,
            quota_bytes: None,
            reserve_bytes: None,
            pin: Vec::new(),
            scrub_bytes_per_second: 4 << 20,
            scrub_every: "168h".to_owned(),
        }
    }
}

/// How much the store may use, and what must stay in it.
#[derive(Debug, Clone, Default)]
pub struct RoomSettings {
    /// The most bytes, if that is bounded.
    pub quota_bytes: Option<u64>,
    /// Bytes of the disk that stay free, if not the usual share.
    pub reserve_bytes: Option<u64>,
    /// What stays whatever happens.
    pub pins: BTreeSet<ArtifactId>,
}

/// The configuration as checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The node's name in the fleet.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// Where everything that must survive lies.
    pub state_dir: PathBuf,
    /// The pinned TUF root.
    pub root_json: Vec<u8>,
    /// The coordinator's node listener, without a trailing slash.
    pub coordinator_url: String,
    /// The fleet CA's certificate, PEM.
    pub fleet_ca_pem: String,
    /// Where the one-time token may lie.
    pub token_file: Option<PathBuf>,
    /// How often to report.
    pub poll_interval: Duration,
    /// How long the coordinator may be silent or slow.
    pub patience: Duration,
    /// The data plane.
    pub data: DataConfig,
    /// The control plane of the mesh.
    pub mesh: MeshConfig,
    /// Where the status API listens.
    pub status_listen: SocketAddr,
    /// Images for BMCs.
    pub images: ImagesConfig,
    /// Where devices ask that fetch their updates themselves, if there are such.
    pub ddi: Option<DdiSettings>,
    /// What the piece store is encrypted under.
    pub store_key: Option<StoreKey>,
    /// How many bytes per second may come and go, and when.
    pub budgets: Vec<Budget>,
    /// How much the piece store may use, and what must stay in it.
    pub room: RoomSettings,
    /// How fast and how often the piece store is checked.
    pub scrub: Pace,
    /// Hosts that step aside before an attempt touches a device of theirs.
    pub hosts: Vec<HostSettings>,
    /// The devices this node looks after.
    pub devices: Vec<DeviceSettings>,
    /// Bounds and time spans of the swarm.
    pub tuning: Tuning,
    /// Where traces go, if anywhere.
    pub telemetry: Option<TelemetrySettings>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("{field}: {path} cannot be read")]
    File {
        /// The setting that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not TOML of the expected shape.
    #[error("{path} is not a node's configuration")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{field} {problem}")]
    Value {
        /// The setting.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The piece store's key.
    #[error(transparent)]
    StoreKey(#[from] KeyError),
    /// A device's configuration.
    #[error(transparent)]
    Device(#[from] DeviceConfigError),
    /// A host's configuration.
    #[error(transparent)]
    Host(#[from] HostConfigError),
    /// The face towards devices that ask.
    #[error(transparent)]
    Ddi(#[from] DdiError),
    /// The profiles.
    #[error("credentials_file: {path}")]
    Profiles {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: ProfilesError,
    },
}

/// The piece store's key in the environment, for those who keep secrets out of files.
const STORE_KEY_VARIABLE: &str = "FIRMESH_STORE_KEY";

/// A year: bytes that nobody has looked at for longer are not looked after.
const SCRUB_EVERY_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Configurations and the files they name are small.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl Settings {
    /// Reads and checks `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Config::load(path)?.check(&base_of(path)?)
    }
}

/// Where relative paths of a configuration begin. Tools run in folders of their own: it does not depend on where we are.
fn base_of(path: &Path) -> Result<PathBuf, ConfigError> {
    let base = path.parent().unwrap_or_else(|| Path::new(""));
    let base = match base.as_os_str().is_empty() {
        true => std::env::current_dir(),
        false => std::path::absolute(base),
    };
    base.map_err(|source| ConfigError::File {
        field: "--config",
        path: path.to_owned(),
        source,
    })
}

fn parsed<T: serde::de::DeserializeOwned>(field: &'static str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(&read(field, path)?).map_err(|source| ConfigError::Malformed {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Which profile a device of the configuration at `path` has, if it has one. Reads no secret.
pub fn profile_of(path: &Path, device: &DeviceId) -> Result<Option<Resolved>, ConfigError> {
    let (config, base) = (Config::load(path)?, base_of(path)?);
    let Some(found) = config.devices.iter().find(|found| found.id == *device) else {
        let problem = format!("do not name {device}");
        return Err(ConfigError::Value {
            field: "devices",
            problem,
        });
    };
    let profiles = config.profiles(&base, None)?;
    Ok(profiles.and_then(|profiles| found.profile(&profiles, &config.path)))
}

/// What seals secrets for the node whose configuration is at `path`.
pub fn sealing(path: &Path) -> Result<Sealing, ConfigError> {
    let key = Config::load(path)?.store_key(&base_of(path)?)?;
    key.as_ref().map(Sealing::by).ok_or_else(|| ConfigError::Value {
        field: "store.key_file",
        problem: "is not set: there is no key to seal with".to_owned(),
    })
}

impl Config {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        parsed("--config", path)
    }

    fn store_key(&self, base: &Path) -> Result<Option<StoreKey>, ConfigError> {
        if let Some(text) = std::env::var_os(STORE_KEY_VARIABLE) {
            return Ok(Some(StoreKey::parse(&text.to_string_lossy(), STORE_KEY_VARIABLE)?));
        }
        let file = self.store.key_file.as_ref();
        Ok(file.map(|file| StoreKey::load(&base.join(file))).transpose()?)
    }

    fn profiles(&self, base: &Path, key: Option<&StoreKey>) -> Result<Option<Profiles>, ConfigError> {
        let Some(file) = &self.credentials_file else {
            return Ok(None);
        };
        let path = base.join(file);
        let written: ProfilesConfig = parsed("credentials_file", &path)?;
        let unseal = key.map(|key| Arc::new(Sealing::by(key)) as Arc<dyn Unseal>);
        let profiles = Profiles::new(written, &base_of(&path)?, unseal);
        Ok(Some(profiles.map_err(|source| ConfigError::Profiles { path, source })?))
    }

    /// Checks what was written and reads the files it names.
    pub fn check(self, base: &Path) -> Result<Settings, ConfigError> {
        if self.path.segments().next_back() != Some(self.node.as_str()) || self.path.depth() < 3 {
            let problem = format!("must name at least site/rack/node and end with the node, {}", self.node);
            return Err(ConfigError::Value { field: "path", problem });
        }
        if !self.status.listen.ip().is_loopback() {
            let problem = "must be a loopback address: the status API has no login".to_owned();
            return Err(ConfigError::Value {
                field: "status.listen",
                problem,
            });
        }
        if !self.coordinator.url.starts_with("https://") {
            let problem = "must begin with https://".to_owned();
            return Err(ConfigError::Value {
                field: "coordinator.url",
                problem,
            });
        }
        if self.devices.len() > NODE_DEVICES_MAX {
            let problem = format!(
                "are {}, a node looks after at most {NODE_DEVICES_MAX}",
                self.devices.len()
            );
            return Err(ConfigError::Value {
                field: "devices",
                problem,
            });
        }
        if let Some(problem) = self.budgets.iter().find_map(Budget::problem) {
            let field = "budget";
            return Err(ConfigError::Value { field, problem });
        }
        let mut tuning = Tuning::default();
        tuning.in_flight_max = pieces_in_flight(&self.budgets, tuning.in_flight_max);
        let store_key = self.store_key(base)?;
        let profiles = self.profiles(base, store_key.as_ref())?;
        let hosts = checked_hosts(self.hosts, base, profiles.as_ref())?;
        let profiles = profiles.as_ref().map(|profiles| (profiles, &self.path));
        let mut devices = Vec::new();
        for device in self.devices {
            let device = device.check_with(base, profiles)?;
            if devices
                .iter()
                .any(|other: &DeviceSettings| other.device == device.device)
            {
                let problem = format!("name {} twice", device.device);
                return Err(ConfigError::Value {
                    field: "devices",
                    problem,
                });
            }
            if let Some(named) = &device.host
                && !hosts.iter().any(|host| host.name == *named)
            {
                let problem = format!(
                    "has {} of host {named:?}, and there is no [[host]] of that name",
                    device.device
                );
                return Err(ConfigError::Value {
                    field: "devices",
                    problem,
                });
            }
            devices.push(device);
        }
        let of_the_node = devices
            .iter()
            .filter(|device| matches!(device.executor, ExecutorSettings::NodeSelf(_)));
        if of_the_node.count() > 1 {
            let problem = "have the executor node-self more than once: a node updates itself as one device".to_owned();
            return Err(ConfigError::Value {
                field: "devices",
                problem,
            });
        }
        if self.store.pin.len() > ARTIFACTS_MAX {
            let problem = format!(
                "names {} artifacts, a store keeps {ARTIFACTS_MAX}",
                self.store.pin.len()
            );
            return Err(ConfigError::Value {
                field: "store.pin",
                problem,
            });
        }
        Ok(Settings {
            node: self.node,
            path: self.path,
            state_dir: base.join(self.state_dir),
            root_json: read("root_file", &base.join(self.root_file))?.into_bytes(),
            coordinator_url: self.coordinator.url.trim_end_matches('/').to_owned(),
            fleet_ca_pem: read("coordinator.ca_file", &base.join(self.coordinator.ca_file))?,
            token_file: self.coordinator.token_file.map(|file| base.join(file)),
            poll_interval: span("coordinator.poll_interval", &self.coordinator.poll_interval)?,
            patience: span("coordinator.patience", &self.coordinator.patience)?,
            data: self.data,
            mesh: self.mesh,
            status_listen: self.status.listen,
            images: self.images,
            ddi: match devices
                .iter()
                .any(|device| matches!(device.executor, ExecutorSettings::Ddi(_)))
            {
                true => Some(self.ddi.check(base, &devices)?),
                false => None,
            },
            store_key,
            budgets: self.budgets,
            room: RoomSettings {
                quota_bytes: self.store.quota_bytes,
                reserve_bytes: self.store.reserve_bytes,
                pins: self.store.pin.into_iter().collect(),
            },
            scrub: Pace {
                bytes_per_second: self.store.scrub_bytes_per_second,
                every: span_of("store.scrub_every", &self.store.scrub_every, SCRUB_EVERY_MAX)?,
            },
            hosts,
            devices,
            tuning,
            telemetry: self
                .telemetry
                .check()
                .map_err(|TelemetryProblem { field, problem }| ConfigError::Value { field, problem })?,
        })
    }
}

fn checked_hosts(
    hosts: Vec<HostConfig>,
    base: &Path,
    profiles: Option<&Profiles>,
) -> Result<Vec<HostSettings>, ConfigError> {
    let field = "hosts";
    if hosts.len() > NODE_DEVICES_MAX {
        let problem = format!("are {}, a node has at most {NODE_DEVICES_MAX}", hosts.len());
        return Err(ConfigError::Value { field, problem });
    }
    let mut checked: Vec<HostSettings> = Vec::new();
    for host in hosts {
        let host = host.check(base, profiles)?;
        if checked.iter().any(|other| other.name == host.name) {
            let problem = format!("name {} twice", host.name);
            return Err(ConfigError::Value { field, problem });
        }
        if let Some(other) = checked.iter().find(|other| other.is_also(&host)) {
            let problem = format!(
                "have one host under two names, {} and {}: write it once, and let its devices name that one (a script has to be told \
                 {{host}}, in run or env)",
                other.name, host.name
            );
            return Err(ConfigError::Value { field, problem });
        }
        checked.push(host);
    }
    Ok(checked)
}

fn read(field: &'static str, path: &Path) -> Result<String, ConfigError> {
    let text = std::fs::metadata(path).and_then(|metadata| match metadata.len() {
        length if length > FILE_BYTES_MAX => Err(io::Error::other(format!("it has {length} bytes, too many"))),
        _ => std::fs::read_to_string(path),
    });
    text.map_err(|source| ConfigError::File {
        field,
        path: path.to_owned(),
        source,
    })
}

fn span(field: &'static str, text: &str) -> Result<Duration, ConfigError> {
    span_of(field, text, Duration::from_secs(3600))
}

fn span_of(field: &'static str, text: &str, most: Duration) -> Result<Duration, ConfigError> {
    let parsed = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|span| Duration::try_from(span).ok());
    parsed
        .filter(|span| !span.is_zero() && *span <= most)
        .ok_or_else(|| ConfigError::Value {
            field,
            problem: format!(
                "{text:?} is not a time span such as \"500ms\", \"5s\" or \"2m\", at most {} hours",
                most.as_secs() / 3600
            ),
        })
}

fn five_seconds() -> String {
    "5s".to_owned()
}

fn twenty_seconds() -> String {
    "20s".to_owned()
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        for file in ["root.json", "ca.pem"] {
            std::fs::write(folder.path().join(file), "x").unwrap();
        }
        let file = folder.path().join("node.toml");
        std::fs::write(&file, text).unwrap();
        Settings::load(&file).map_err(|error| format!("{error}: {:?}", std::error::Error::source(&error)))
    }

    const GOOD: &str = r#"
        node = "n1"
        path = "eu/s1/r1/n1"
        state_dir = "state"
        root_file = "root.json"
        [coordinator]
        url = "https://localhost:8641/"
        ca_file = "ca.pem"
        poll_interval = "500ms"
    "#;

    #[test]
    fn a_short_configuration_has_sane_defaults() {
        let settings = check(GOOD).unwrap();
        assert_eq!(settings.poll_interval, Duration::from_millis(500));
        assert_eq!(settings.patience, Duration::from_secs(20));
        assert!(settings.data.listen.ip().is_loopback() && settings.status_listen.ip().is_loopback());
        assert_eq!(settings.data.datagram_bytes_max.bytes(), 6_500);
        assert_eq!(settings.coordinator_url, "https://localhost:8641");
        assert!(settings.state_dir.is_absolute());
        assert_eq!((settings.room.quota_bytes, settings.room.pins.len()), (None, 0));
        let (bytes_per_second, every) = (4 << 20, Duration::from_secs(7 * 86_400));
        assert_eq!(
            settings.scrub,
            Pace {
                bytes_per_second,
                every
            }
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        let refused = |from: &str, to: &str, names: &str| {
            let error = check(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(names), "{error}");
        };
        refused("eu/s1/r1/n1", "eu/s1/r1/n2", "path");
        refused("https://", "http://", "coordinator.url");
        refused("500ms", "soon", "poll_interval");
        refused("500ms\"", "500ms\"\npatience = \"0s\"", "patience");
        refused("\"root.json\"", "\"absent.json\"", "root_file");
        refused("state_dir", "stat_dir", "stat_dir");
        let budget = |fields: &str| format!("[[budget]]\n{fields}\n[coordinator]");
        refused(
            "[coordinator]",
            &budget("scope = \"rack\"\nmbit_per_s = 0"),
            "at least 1 Mbit/s",
        );
        refused("[coordinator]", &budget("scope = \"row\"\nmbit_per_s = 9"), "row");
        let host = "[[host]]\nname = \"h1\"\nprepare = { kind = \"script\", run = [\"aside\", \"{verb}\"] }\n";
        assert_eq!(check(&format!("{GOOD}\n{host}")).unwrap().hosts[0].within_s, 1_800);
        refused("[coordinator]", &format!("{host}{host}[coordinator]"), "name h1 twice");
        let other_name = host.replace("h1", "h2");
        refused(
            "[coordinator]",
            &format!("{host}{other_name}[coordinator]"),
            "one host under two names, h1 and h2",
        );
        refused(
            "[coordinator]",
            &format!("{}[coordinator]", host.replace("{verb}", "x")),
            "does not say {verb}",
        );
        let device = "[[device]]\nid = \"d1\"\ncomponent = \"bmc\"\nhost = \"h2\"\nexecutor = { kind = \"redfish\", \
                      url = \"http://127.0.0.1:8000\", username = \"u\", password_env = \"PATH\" }\n";
        refused(
            "[coordinator]",
            &format!("{host}{device}[coordinator]"),
            "no [[host]] of that name",
        );
        let midnight = r#"windows = [{ zone = "Mars/Base", days = ["mon"], from = "00:00", duration_s = 60 }]"#;
        refused(
            "[coordinator]",
            &budget(&format!("scope = \"site\"\nmbit_per_s = 9\n{midnight}")),
            "time zone",
        );
        for bytes in ["1199", "6501", "70000", "-1"] {
            let data = format!("[data]\ndatagram_bytes_max = {bytes}\n[coordinator]");
            refused("[coordinator]", &data, bytes);
        }
        let dscp = "[data]\ndscp = { background = 64 }\n[coordinator]";
        refused("[coordinator]", dscp, "code point 64");
        for (line, names) in [
            ("quota_bytes = -1", "quota_bytes"),
            ("reserve_bytes = \"much\"", "reserve_bytes"),
            ("pin = [\"abc\"]", "pin"),
            ("scrub_every = \"0s\"", "store.scrub_every"),
            ("scrub_every = \"9999999h\"", "store.scrub_every"),
        ] {
            refused("[coordinator]", &format!("[store]\n{line}\n[coordinator]"), names);
        }
        refused(
            "[coordinator]",
            "[store]\nkey_file = \"absent\"\n[coordinator]",
            "absent",
        );
        refused(
            "[coordinator]",
            "[store]\nkey_file = \"ca.pem\"\n[coordinator]",
            "chmod 600",
        );
    }
}
