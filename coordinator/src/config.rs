//! The coordinator's configuration: [`Config`] as written, [`Settings`] as checked. Nothing starts before everything is
//! checked. Flag beats environment beats file beats default.

use std::{
    env, io,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use firmesh_coordinator_core::TURNS;
use firmesh_protocol::{time::WallTime, trust::OnlineExpiry};
use firmesh_telemetry::{TelemetryConfig, TelemetrySettings};
use serde::Deserialize;

use crate::{
    access::{AccessConfig, AccessSettings},
    archive::{Retention, RetentionConfig},
    ceremony::{ReadFileError, read_bounded},
    cluster::{ClusterConfig, ClusterSettings},
    files::{Bucketed, FilesConfig, S3Config},
    notify::{self, Destination, GateWebhook, GateWebhookConfig, NotificationConfig},
    sources::{RepositoryConfig, Sources},
    store::{DatabaseConfig, Place, Server},
};

/// The configuration as written in `coordinator.toml`. Relative paths start at the file's folder.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything lies: database, keys, artifacts. Default: `$XDG_STATE_HOME/firmesh-coordinator`, or
    /// `firmesh-coordinator-state` in the working folder, so that a first try leaves nothing in odd places.
    pub state_dir: Option<PathBuf>,
    /// Images, evidence and verdicts.
    pub files: FilesConfig,
    /// The database.
    pub database: DatabaseConfig,
    /// Several coordinators on one database.
    pub cluster: ClusterConfig,
    /// The face towards operators.
    pub operators: OperatorsConfig,
    /// The face towards nodes.
    pub nodes: NodesConfig,
    /// The metadata that this coordinator signs.
    pub metadata: MetadataConfig,
    /// Permits.
    pub permits: PermitsConfig,
    /// Where images come from.
    pub provenance: ProvenanceConfig,
    /// Where images are mirrored from. Default: from nowhere.
    pub repository: RepositoryConfig,
    /// How long what is kept.
    pub retention: RetentionConfig,
    /// Who may do what. Default: whoever has the operators' token does everything.
    pub access: AccessConfig,
    /// Who is told what happens. Default: nobody.
    pub notifications: Vec<NotificationConfig>,
    /// Who is asked between two waves, where a manifest names them. Default: nobody.
    pub gate_webhooks: Vec<GateWebhookConfig>,
    /// Logs.
    pub log: LogConfig,
    /// Traces. Default: none.
    pub telemetry: TelemetryConfig,
}

/// The face towards operators: plain HTTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OperatorsConfig {
    /// Where to listen. Default: loopback, because plain HTTP carries the token.
    pub listen: SocketAddr,
    /// Whether reading needs the token too. Default: no, as long as only this machine can read.
    pub token_for_reads: bool,
    /// Whether `listen` may be another address than loopback: put a TLS proxy before it.
    pub allow_remote_operators: bool,
    /// Origins of other pages that may read answers, such as `https://portal.example.com`. Default: none.
    pub cors_origins: Vec<String>,
    /// Requests a second in the long run, of each identity, and of those together who read without one. Default: 1,000.
    pub requests_per_second: NonZeroU32,
    /// Requests at once, after a pause. Default: 5,000.
    pub requests_burst: NonZeroU32,
}

impl Default for OperatorsConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8640)),
            token_for_reads: false,
            allow_remote_operators: false,
            cors_origins: Vec::new(),
            requests_per_second: NonZeroU32::new(1_000).expect("not zero"),
            requests_burst: NonZeroU32::new(5_000).expect("not zero"),
        }
    }
}

/// The face towards nodes: HTTPS with client certificates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodesConfig {
    /// Where to listen. Default: loopback, so that nothing is exposed unasked.
    pub listen: SocketAddr,
    /// The `https://host:port` that nodes are told. Default: the listening address.
    pub url: Option<String>,
    /// More names and addresses for the coordinator's certificate, beside localhost, 127.0.0.1 and `listen`.
    pub names: Vec<String>,
    /// Slices of images served at once, 1 to 1,024; other requests for slices wait in line. Default: 24, which keep an uplink busy
    /// and let a piece come soon: see [`firmesh_coordinator_core::TURNS`].
    pub slices_at_once: NonZeroUsize,
    /// A node not heard of for so long is taken as out of reach when planning. Default: a minute, some heartbeats.
    pub silent_after: String,
    /// How long an enrolment token is good for. Default: a day, to carry it to a rack.
    pub enrolment_token_ttl: String,
    /// How long a node's certificate is good for. Nodes renew it when two thirds are over. Default: 90 days, so that a
    /// node switched off for a month comes back by itself.
    pub certificate_validity: String,
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8641)),
            url: None,
            names: Vec::new(),
            slices_at_once: TURNS,
            silent_after: "1m".to_owned(),
            enrolment_token_ttl: "1d".to_owned(),
            certificate_validity: "90d".to_owned(),
        }
    }
}

/// The metadata that this coordinator signs: snapshot and timestamp.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetadataConfig {
    /// How long a timestamp is good for; both are renewed at half of the shorter. Default: a day, the longest that a
    /// node can be kept in the past.
    pub timestamp_validity: String,
    /// How long a snapshot is good for. Default: a day; longer changes nothing while one key signs both.
    pub snapshot_validity: String,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self {
            timestamp_validity: "1d".to_owned(),
            snapshot_validity: "1d".to_owned(),
        }
    }
}

/// Permits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PermitsConfig {
    /// How long a permit is good for. Default: 15 minutes; a permit that is out cannot be recalled.
    pub ttl: String,
}

impl Default for PermitsConfig {
    fn default() -> Self {
        Self { ttl: "15m".to_owned() }
    }
}

/// Where images come from.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvenanceConfig {
    /// The policy that new releases must meet before they are published. It is read anew for every publication, with
    /// the keys and advisories it names. Default: none, and the release keys' word is enough.
    pub policy: Option<PathBuf>,
}

/// Logs, on standard error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged, such as `info` or `firmesh_coordinator=debug,warn`.
    pub filter: String,
    /// Whether each line is a JSON object.
    pub json: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            json: false,
        }
    }
}

/// What the command line says in place of the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// In place of `state_dir`.
    pub state_dir: Option<PathBuf>,
    /// In place of `operators.listen`.
    pub operators: Option<SocketAddr>,
    /// In place of `nodes.listen`.
    pub nodes: Option<SocketAddr>,
    /// In place of `log.filter`.
    pub log_filter: Option<String>,
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where everything lies.
    pub state_dir: PathBuf,
    /// Where images, evidence and verdicts lie.
    pub files_dir: PathBuf,
    /// The bucket in which they lie, if there is one.
    pub(crate) bucket: Option<Bucketed>,
    /// The database's server, if it is not a file.
    pub(crate) database: Option<Server>,
    /// Several coordinators.
    pub(crate) cluster: ClusterSettings,
    /// Where operators are listened to.
    pub operators: SocketAddr,
    /// Whether reading needs the token too.
    pub token_for_reads: bool,
    /// Origins of other pages that may read answers.
    pub cors_origins: Vec<String>,
    /// Requests a second, of each identity.
    pub requests_per_second: NonZeroU32,
    /// Requests at once, after a pause.
    pub requests_burst: NonZeroU32,
    /// Where nodes are listened to.
    pub nodes: SocketAddr,
    /// What nodes are told, if it is not the listening address.
    pub node_url: Option<String>,
    /// More names for the coordinator's certificate.
    pub names: Vec<String>,
    /// Slices of images served at once.
    pub slices_at_once: NonZeroUsize,
    /// When a node counts as out of reach.
    pub silent_after: Duration,
    /// How long an enrolment token is good for.
    pub enrolment_token_ttl: Duration,
    /// How long a node's certificate is good for.
    pub certificate_validity: Duration,
    /// How long snapshot and timestamp are good for.
    pub metadata_validity: MetadataValidity,
    /// How long a permit is good for.
    pub permit_ttl: Duration,
    /// What is logged.
    pub log_filter: String,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// Where traces go, if anywhere.
    pub telemetry: Option<TelemetrySettings>,
    /// The policy that new releases must meet.
    pub provenance_policy: Option<PathBuf>,
    /// Where images are mirrored from.
    pub(crate) sources: Sources,
    /// How long what is kept.
    pub(crate) retention: Retention,
    /// Who may do what.
    pub access: AccessSettings,
    /// Who is told what happens.
    pub notifications: Vec<Destination>,
    /// Who is asked between two waves.
    pub gate_webhooks: Vec<GateWebhook>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration cannot be read")]
    Read(#[from] ReadFileError),
    /// The file is not the TOML expected.
    #[error("{} is not a coordinator configuration", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense.
    #[error("{field} {problem}")]
    Value {
        /// The field.
        field: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// Each is up to 16 MiB in memory.
const SLICES_AT_ONCE_MAX: usize = 1_024;

const CONFIG_BYTES_MAX: u64 = 1 << 20;

impl Config {
    /// Reads a file; relative paths in it start at its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let bytes = read_bounded(path, CONFIG_BYTES_MAX)?;
        let malformed = |source| ConfigError::Malformed {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let mut config: Self = toml::from_slice(&bytes).map_err(malformed)?;
        if let (Some(folder), Some(dir)) = (path.parent(), &mut config.state_dir) {
            *dir = folder.join(&*dir);
        }
        if let (Some(folder), Some(policy)) = (path.parent(), &mut config.provenance.policy) {
            *policy = folder.join(&*policy);
        }
        if let Some(folder) = path.parent() {
            config.access.start_at(folder);
            config.notifications.iter_mut().for_each(|to| to.start_at(folder));
            config.gate_webhooks.iter_mut().for_each(|to| to.start_at(folder));
            config.database.start_at(folder);
            config.files.start_at(folder);
        }
        Ok(config)
    }

    /// Applies the command line and checks everything.
    pub fn check(self, overrides: Overrides) -> Result<Settings, ConfigError> {
        let operators = overrides.operators.unwrap_or(self.operators.listen);
        let is_guarded = self.operators.allow_remote_operators && self.operators.token_for_reads;
        if !(operators.ip().is_loopback() || is_guarded) {
            return Err(value(
                "operators.listen",
                format!(
                    "is {operators}, which other machines reach: set operators.token_for_reads and \
                     operators.allow_remote_operators to true, and put TLS before it, or listen on 127.0.0.1"
                ),
            ));
        }
        if let Some(origin) = self.operators.cors_origins.iter().find(|origin| !is_origin(origin)) {
            let problem =
                format!("has {origin:?}, it must be as browsers write it, such as https://portal.example.com");
            return Err(value("operators.cors_origins", problem));
        }
        if let Some(url) = &self.nodes.url {
            let host = url
                .strip_prefix("https://")
                .filter(|rest| !rest.is_empty() && !rest.contains('/'));
            host.ok_or_else(|| value("nodes.url", format!("is {url:?}, it must be https://host:port")))?;
        }
        let is_name = |name: &String| name.parse::<IpAddr>().is_ok() || is_dns_name(name);
        if let Some(name) = self.nodes.names.iter().find(|name| !is_name(name)) {
            return Err(value(
                "nodes.names",
                format!("has {name:?}, which is neither a host name nor an address"),
            ));
        }
        if self.nodes.slices_at_once.get() > SLICES_AT_ONCE_MAX {
            return Err(value(
                "nodes.slices_at_once",
                format!("is {}, it must be 1 to {SLICES_AT_ONCE_MAX}", self.nodes.slices_at_once),
            ));
        }
        let nodes = overrides.nodes.unwrap_or(self.nodes.listen);
        let database = self.database.check(duration)?;
        let cluster = self.cluster.check(database.is_some(), [operators, nodes], duration)?;
        let state_dir = overrides.state_dir.or(self.state_dir).unwrap_or_else(default_state_dir);
        Ok(Settings {
            files_dir: self.files.dir.unwrap_or_else(|| state_dir.clone()),
            bucket: self.files.s3.map(S3Config::check).transpose()?,
            state_dir,
            database,
            cluster,
            operators,
            token_for_reads: self.operators.token_for_reads,
            cors_origins: self.operators.cors_origins,
            requests_per_second: self.operators.requests_per_second,
            requests_burst: self.operators.requests_burst,
            nodes,
            node_url: self.nodes.url,
            names: self.nodes.names,
            slices_at_once: self.nodes.slices_at_once,
            silent_after: duration("nodes.silent_after", &self.nodes.silent_after)?,
            enrolment_token_ttl: duration("nodes.enrolment_token_ttl", &self.nodes.enrolment_token_ttl)?,
            certificate_validity: duration("nodes.certificate_validity", &self.nodes.certificate_validity)?,
            metadata_validity: MetadataValidity {
                timestamp: duration("metadata.timestamp_validity", &self.metadata.timestamp_validity)?,
                snapshot: duration("metadata.snapshot_validity", &self.metadata.snapshot_validity)?,
            },
            permit_ttl: duration("permits.ttl", &self.permits.ttl)?,
            provenance_policy: self.provenance.policy,
            sources: (self.repository.check()).map_err(|problem| value("repository.sources", problem))?,
            retention: self.retention.check(duration)?,
            access: (self.access)
                .check(|text| duration("", text).map_err(|error| error.to_string().trim_start().to_owned()))
                .map_err(|(field, problem)| value(field, problem))?,
            notifications: notify::check(self.notifications, |text| {
                duration("", text).map_err(|error| error.to_string().trim_start().to_owned())
            })
            .map_err(|problem| value("notifications", problem))?,
            gate_webhooks: notify::check_gates(self.gate_webhooks, |text| {
                duration("", text).map_err(|error| error.to_string().trim_start().to_owned())
            })
            .map_err(|problem| value("gate_webhooks", problem))?,
            log_filter: overrides.log_filter.unwrap_or(self.log.filter),
            log_json: self.log.json,
            telemetry: (self.telemetry.check()).map_err(|wrong| value(wrong.field, wrong.problem))?,
        })
    }
}

/// How long what this coordinator signs is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataValidity {
    /// Of a timestamp.
    pub timestamp: Duration,
    /// Of a snapshot.
    pub snapshot: Duration,
}

impl MetadataValidity {
    /// The shorter of the two: at half of it, both are signed anew.
    #[must_use]
    pub fn shorter(self) -> Duration {
        self.timestamp.min(self.snapshot)
    }

    /// Until when what is signed now is good.
    #[must_use]
    pub fn expiries(self, now: WallTime) -> OnlineExpiry {
        OnlineExpiry {
            snapshot: now + self.snapshot,
            timestamp: now + self.timestamp,
        }
    }
}

impl Settings {
    /// Where the database is.
    pub(crate) fn place(&self) -> Place {
        match &self.database {
            Some(server) => Place::Server(server.clone()),
            None => Place::File(self.state_dir.join("coordinator.sqlite")),
        }
    }

    /// The settings as text, for `--check-config`. There are no secrets among them, only where they stand.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{self:#?}")
    }
}

fn default_state_dir() -> PathBuf {
    let home = env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute());
    home.map_or_else(
        || "firmesh-coordinator-state".into(),
        |home| home.join("firmesh-coordinator"),
    )
}

fn value(field: &'static str, problem: String) -> ConfigError {
    ConfigError::Value { field, problem }
}

/// Scheme, host, and port where it is not the scheme's own: browsers compare it letter by letter.
fn is_origin(text: &str) -> bool {
    let url = text.parse::<reqwest::Url>();
    url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text)
}

fn is_dns_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

/// `90s`, `15m`, `12h`, `7d`: a whole number and a unit, one second to a year.
fn duration(field: &'static str, text: &str) -> Result<Duration, ConfigError> {
    let wrong = || {
        value(
            field,
            format!("is {text:?}, it must be a time such as \"30s\", \"15m\", \"12h\" or \"1d\""),
        )
    };
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let total = count
        .checked_mul(seconds)
        .filter(|total| (1..=366 * 86_400).contains(total));
    total
        .map(Duration::from_secs)
        .ok_or_else(|| value(field, format!("is {text:?}, it must be one second to a year")))
}

/// A remedy for the usual reasons that a file system says no.
pub(crate) fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "make it writable for this user, or choose another state_dir",
        io::ErrorKind::ReadOnlyFilesystem => "it is mounted read-only: choose another state_dir",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full: free space and start again",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "something else is in the way: choose another state_dir"
        }
        _ => "check the disk, or choose another state_dir",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coordinator.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)?.check(Overrides::default())
    }

    #[test]
    fn nothing_has_to_be_configured() {
        let settings = Config::default().check(Overrides::default()).unwrap();
        assert_eq!(settings.operators.to_string(), "127.0.0.1:8640");
        assert_eq!(settings.permit_ttl, Duration::from_secs(900));
        let validity = parse("[metadata]\ntimestamp_validity = \"6h\"")
            .unwrap()
            .metadata_validity;
        assert_eq!(validity.snapshot, Duration::from_secs(86_400));
        assert_eq!(validity.shorter(), Duration::from_secs(6 * 3_600));
    }

    #[test]
    fn every_mistake_names_its_field() {
        for (text, field) in [
            ("[operators]\nlisten = \"0.0.0.0:80\"", "operators.listen"),
            (
                "[operators]\nlisten = \"0.0.0.0:80\"\nallow_remote_operators = true",
                "operators.listen",
            ),
            ("[nodes]\nurl = \"http://x\"", "nodes.url"),
            ("[nodes]\nnames = [\"a b\"]", "nodes.names"),
            ("[nodes]\nslices_at_once = 1025", "nodes.slices_at_once"),
            ("[database]\nurl = \"mysql://u@h/d\"", "database.url"),
            ("[database]\nurl = \"postgres://u:secret@h/d\"", "database.url"),
            ("[database]\npassword = { env = \"P\" }", "database.password"),
            (
                "[database]\nurl = \"postgres://u@h/d\"\nconnections_max = 9",
                "database.connections_min",
            ),
            ("[cluster]\nnodes = \"a:1\"", "cluster.nodes"),
            (
                "[database]\nurl = \"postgres://u@h/d\"\n[cluster]\noperators = \"a\"",
                "cluster.operators",
            ),
            (
                "[database]\nurl = \"postgres://u@h/d\"\n[nodes]\nlisten = \"0.0.0.0:1\"",
                "cluster.nodes",
            ),
            ("[cluster]\nlease = \"1s\"", "cluster.lease"),
            ("[permits]\nttl = \"soon\"", "permits.ttl"),
            ("[permits]\nttl = \"0s\"", "permits.ttl"),
            ("[permits]\nttl = \"1ü\"", "permits.ttl"),
        ] {
            match parse(text) {
                Err(ConfigError::Value { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(matches!(
            parse("[permits]\nttll = \"1s\""),
            Err(ConfigError::Malformed { .. })
        ));
        let remote = "[operators]\nlisten = \"0.0.0.0:80\"\nallow_remote_operators = true\ntoken_for_reads = true";
        assert!(parse(remote).is_ok());
    }

    #[test]
    fn a_flag_beats_the_file_and_paths_start_at_the_file() {
        assert!(parse("state_dir = \"state\"").unwrap().state_dir.is_absolute());
        let overrides = Overrides {
            state_dir: Some("x".into()),
            ..Overrides::default()
        };
        let config = Config {
            state_dir: Some("y".into()),
            ..Config::default()
        };
        assert_eq!(config.check(overrides).unwrap().state_dir, Path::new("x"));
    }
}
