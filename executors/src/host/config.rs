//! A host as an operator writes it down, and as checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use firmesh_executors_core::ClusterLimits;
use firmesh_protocol::ids::DeviceId;
use reqwest::Url;
use serde::Deserialize;

use crate::{
    command::{Template, is_name},
    config::Secret,
    credentials::{CredentialsError, Profiles},
};

/// A day: whoever waits longer has lost the host.
const LIMIT_S_MAX: u32 = 86_400;
/// A look answers soon.
const STATE_LIMIT_S_MAX: u32 = 600;
/// Arguments, secrets, variables.
const ITEMS_MAX: usize = 64;
/// Text in a configuration: an argument.
pub(super) const TEXT_BYTES_MAX: usize = 4 << 10;
/// Certificates and passwords are small.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Hosts of a cluster that may be named in a limit.
const CLUSTER_HOSTS_MAX: u32 = 1_000;
/// Who stands before a host in the configuration of scripts.
const OURS: [&str; 2] = ["verb", "host"];

/// A host that steps aside before an attempt on one of its devices, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Its name, by which devices say that they belong to it.
    pub name: String,
    /// How long an attempt waits for it in seconds, and never longer than half of what the campaign gives it. Default: 1800.
    #[serde(default = "half_an_hour")]
    pub within_s: u32,
    /// What has it step aside.
    pub prepare: PreparationConfig,
}

/// What has a host step aside, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PreparationConfig {
    /// A program of the operator's.
    Script(ScriptConfig),
    /// vCenter's maintenance mode.
    Vcenter(VcenterConfig),
}

/// A program of the operator's, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptConfig {
    /// The program and its arguments, each as it is: there is no shell. `{verb}` is `enter`, `exit` or `state`; `{host}` the name.
    pub run: Vec<String>,
    /// How long `enter` and `exit` may take. Default: 1800.
    #[serde(default = "half_an_hour")]
    pub limit_s: u32,
    /// How long `state` may take. Default: 30.
    #[serde(default = "half_a_minute")]
    pub state_limit_s: u32,
    /// Variables of the program; they may have secrets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Files whose first lines are secrets, by the names that `env` has for them.
    #[serde(default)]
    pub secret_files: BTreeMap<String, PathBuf>,
}

/// vCenter's maintenance mode, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcenterConfig {
    /// The vCenter's root, such as `https://vcenter.example`.
    pub url: String,
    /// The host: its path in the inventory, such as `/DC/host/Cluster/esx-17.example`, or its DNS name there.
    pub host: String,
    /// The certificates, in PEM, one of which must have issued the vCenter's.
    pub ca_file: Option<PathBuf>,
    /// Instead of it, the SHA-256 of the vCenter's own certificate, in hexadecimal, with or without colons.
    pub fingerprint: Option<String>,
    /// The account. Default: that of the profile.
    pub username: Option<String>,
    /// A file whose first line is the password.
    pub password_file: Option<PathBuf>,
    /// An environment variable that holds the password.
    pub password_env: Option<String>,
    /// Instead of them, the name of a profile in the node's `credentials_file`.
    pub profile: Option<String>,
    /// Hosts of a cluster that may be in maintenance mode at once, whoever had them enter it. Default: 1.
    #[serde(default = "one")]
    pub at_once: u32,
    /// Other hosts of the cluster that must be connected and in service. Default: 1.
    #[serde(default = "one")]
    pub serving_min: u32,
    /// How long maintenance mode may take to be entered or left. Default: 1800.
    #[serde(default = "half_an_hour")]
    pub limit_s: u32,
}

/// A host, checked.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Its name.
    pub name: String,
    /// How long an attempt waits for it.
    pub within_s: u32,
    pub(crate) preparation: PreparationSettings,
}

/// What has a host step aside, checked.
#[derive(Debug, Clone)]
pub(crate) enum PreparationSettings {
    Script(ScriptSettings),
    Vcenter(VcenterSettings),
}

/// A program of the operator's, checked.
#[derive(Debug, Clone)]
pub(crate) struct ScriptSettings {
    /// At least the program.
    pub(crate) run: Vec<Template>,
    pub(crate) limit_s: u32,
    pub(crate) state_limit_s: u32,
    pub(crate) env: Vec<(String, Template)>,
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// vCenter's maintenance mode, checked.
#[derive(Debug, Clone)]
pub(crate) struct VcenterSettings {
    pub(crate) access: VcenterAccess,
    pub(crate) host: String,
    pub(crate) limits: ClusterLimits,
    pub(crate) limit_s: u32,
}

/// A vCenter and the account there, checked.
#[derive(Debug, Clone)]
pub struct VcenterAccess {
    pub(crate) url: Url,
    pub(crate) trust: Trust,
    pub(crate) username: String,
    pub(crate) password: Secret,
}

impl VcenterAccess {
    /// Checks what was written of a vCenter and reads the files it names; relative paths start at `base`. The host and what is
    /// said of its cluster count for nothing.
    pub fn check(written: &VcenterConfig, base: &Path) -> Result<Self, HostConfigError> {
        let check = Check {
            of: "vCenter".to_owned(),
            base,
            profiles: None,
        };
        check.access(written)
    }
}

/// How a vCenter is known.
#[derive(Debug, Clone)]
pub(crate) enum Trust {
    /// By who issued its certificate.
    Authority(Vec<u8>),
    /// By its certificate.
    Certificate([u8; 32]),
}

/// What is wrong with a host's configuration.
#[derive(Debug, thiserror::Error)]
pub enum HostConfigError {
    /// A value that cannot be.
    #[error("{of}: {field} {problem}")]
    Value {
        /// What it is of: a host by its name, or a vCenter.
        of: String,
        /// The field at fault.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A file that could not be read.
    #[error("{of}: {field}: {path} cannot be read")]
    File {
        /// What it is of: a host by its name, or a vCenter.
        of: String,
        /// The field that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its profile has no secret that can be had.
    #[error("{of}")]
    Credentials {
        /// What it is of: a host by its name, or a vCenter.
        of: String,
        /// Why not.
        source: CredentialsError,
    },
}

impl HostConfig {
    /// Checks what was written and reads the files it names; relative paths start at `base`.
    pub fn check(self, base: &Path, profiles: Option<&Profiles>) -> Result<HostSettings, HostConfigError> {
        let Self {
            name,
            within_s,
            prepare,
        } = self;
        let check = Check {
            of: format!("host {name}"),
            base,
            profiles,
        };
        // As devices are called, so that a folder can be.
        if let Err(error) = DeviceId::new(name.clone()) {
            return Err(check.value("name", format!("cannot be: {error}")));
        }
        check.seconds("within_s", within_s, LIMIT_S_MAX)?;
        let preparation = match prepare {
            PreparationConfig::Script(script) => PreparationSettings::Script(check.script(script)?),
            PreparationConfig::Vcenter(vcenter) => PreparationSettings::Vcenter(check.vcenter(vcenter)?),
        };
        Ok(HostSettings {
            name,
            within_s,
            preparation,
        })
    }
}

impl HostSettings {
    /// Whether both are one host, by what is done to have them step aside. Two machines for it would give it back under each
    /// other's attempts.
    #[must_use]
    pub fn is_also(&self, other: &Self) -> bool {
        match (&self.preparation, &other.preparation) {
            (PreparationSettings::Script(one), PreparationSettings::Script(two)) => {
                let (one, two) = (one.filled(&self.name), two.filled(&other.name));
                one.is_some() && one == two
            }
            (PreparationSettings::Vcenter(one), PreparationSettings::Vcenter(two)) => {
                // A path in the inventory, or a DNS name, which has no case.
                let named = |name: &str| match name.starts_with('/') {
                    true => name.trim_matches('/').to_owned(),
                    false => name.trim_end_matches('.').to_ascii_lowercase(),
                };
                let is_path = |name: &str| name.starts_with('/');
                one.access.url == two.access.url
                    && is_path(&one.host) == is_path(&two.host)
                    && named(&one.host) == named(&two.host)
            }
            _ => false,
        }
    }
}

impl ScriptSettings {
    /// What is run for a host of this name, and with what; nothing if that cannot be said.
    fn filled(&self, host: &str) -> Option<(Vec<String>, BTreeMap<String, String>)> {
        let mut values = BTreeMap::from(
            [("verb", "state"), ("host", host)].map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let run = self.run.iter().map(|text| text.fill(&values).ok());
        let run = run.collect::<Option<Vec<_>>>()?;
        let secrets = self.secrets.iter();
        values.extend(secrets.map(|(name, secret)| (name.clone(), secret.expose().to_owned())));
        let env = self
            .env
            .iter()
            .map(|(name, text)| Some((name.clone(), text.fill(&values).ok()?)));
        Some((run, env.collect::<Option<_>>()?))
    }
}

struct Check<'a> {
    of: String,
    base: &'a Path,
    profiles: Option<&'a Profiles>,
}

impl Check<'_> {
    fn script(&self, config: ScriptConfig) -> Result<ScriptSettings, HostConfigError> {
        self.seconds("limit_s", config.limit_s, LIMIT_S_MAX)?;
        self.seconds("state_limit_s", config.state_limit_s, STATE_LIMIT_S_MAX)?;
        if [config.run.len(), config.env.len(), config.secret_files.len()]
            .into_iter()
            .any(|count| count > ITEMS_MAX)
        {
            return Err(self.value("run, env or secret_files", format!("has more than {ITEMS_MAX} entries")));
        }
        let templates = config
            .run
            .iter()
            .map(|text| self.template("run", text, |name| OURS.contains(&name)));
        let run = templates.collect::<Result<Vec<_>, _>>()?;
        match config.run.first() {
            Some(program) if !program.is_empty() => {}
            _ => return Err(self.value("run", "names no program")),
        }
        if !run.iter().any(|text| text.names().any(|name| name == "verb")) {
            return Err(self.value(
                "run",
                "does not say {verb}: how is the program to know what it is run for?",
            ));
        }
        let mut secrets = BTreeMap::new();
        for (name, path) in &config.secret_files {
            if !is_name(name) || OURS.contains(&name.as_str()) {
                return Err(self.value(
                    "secret_files",
                    format!("has the name {name:?}: must be a-z, 0-9 and _, and neither verb nor host"),
                ));
            }
            secrets.insert(name.clone(), self.secret("secret_files", path)?);
        }
        let known: BTreeSet<&str> = secrets.keys().map(String::as_str).chain(OURS).collect();
        let mut env = Vec::new();
        for (name, text) in &config.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(self.value("env", format!("has {name:?} for the name of a variable")));
            }
            env.push((name.clone(), self.template("env", text, |name| known.contains(name))?));
        }
        Ok(ScriptSettings {
            run,
            limit_s: config.limit_s,
            state_limit_s: config.state_limit_s,
            env,
            secrets,
        })
    }

    fn template(
        &self,
        field: &'static str,
        text: &str,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<Template, HostConfigError> {
        if text.len() > TEXT_BYTES_MAX || text.contains('\0') {
            let problem = format!("has a text that is longer than {TEXT_BYTES_MAX} bytes, or has a zero byte");
            return Err(self.value(field, problem));
        }
        let template = Template::parse(text).map_err(|problem| self.value(field, problem))?;
        if let Some(name) = template.names().find(|name| !is_known(name)) {
            let problem = match field {
                "run" => format!(
                    "says {{{name}}}, may say {{verb}} and {{host}}; a secret belongs into env, for every process can read arguments"
                ),
                _ => format!("says {{{name}}}, may say {{verb}}, {{host}} and what secret_files names"),
            };
            return Err(self.value(field, problem));
        }
        Ok(template)
    }

    fn vcenter(&self, config: VcenterConfig) -> Result<VcenterSettings, HostConfigError> {
        let access = self.access(&config)?;
        if config.host.trim_matches('/').is_empty() || config.host.len() > TEXT_BYTES_MAX {
            return Err(self.value("host", "must be a path in the inventory, or a DNS name"));
        }
        self.seconds("limit_s", config.limit_s, LIMIT_S_MAX)?;
        if !(1..=CLUSTER_HOSTS_MAX).contains(&config.at_once) {
            return Err(self.value("at_once", format!("must be from 1 to {CLUSTER_HOSTS_MAX}")));
        }
        if config.serving_min > CLUSTER_HOSTS_MAX {
            return Err(self.value("serving_min", format!("must be at most {CLUSTER_HOSTS_MAX}")));
        }
        Ok(VcenterSettings {
            access,
            host: config.host,
            limits: ClusterLimits {
                at_once: config.at_once,
                serving_min: config.serving_min,
            },
            limit_s: config.limit_s,
        })
    }

    fn access(&self, config: &VcenterConfig) -> Result<VcenterAccess, HostConfigError> {
        let url = self.url(&config.url)?;
        let trust = match (&config.ca_file, &config.fingerprint) {
            (Some(path), None) => Trust::Authority(self.read("ca_file", path)?),
            (None, Some(text)) => Trust::Certificate(self.fingerprint(text)?),
            _ => return Err(self.value("ca_file or fingerprint", "must be given, and only one of them")),
        };
        let (username, password) = self.account(config)?;
        Ok(VcenterAccess {
            url,
            trust,
            username,
            password,
        })
    }

    fn account(&self, config: &VcenterConfig) -> Result<(String, Secret), HostConfigError> {
        let field = "profile, password_file or password_env";
        let (of_profile, password) = match (&config.profile, &config.password_file, &config.password_env) {
            (Some(name), None, None) => {
                let profiles = self
                    .profiles
                    .ok_or_else(|| self.value("profile", "needs a credentials_file in the node's configuration"))?;
                let found = profiles.named(name).map_err(|source| HostConfigError::Credentials {
                    of: self.of.clone(),
                    source,
                })?;
                let found =
                    found.ok_or_else(|| self.value("profile", format!("{name:?} is not in the credentials_file")))?;
                (found.username, found.secret)
            }
            (None, Some(path), None) => (None, self.secret("password_file", path)?),
            (None, None, Some(name)) => match std::env::var(name) {
                Ok(text) if !text.is_empty() => (None, Secret::new(text)),
                _ => {
                    return Err(self.value(
                        "password_env",
                        format!("names {name}, which is not set, empty or not text"),
                    ));
                }
            },
            _ => return Err(self.value(field, "must be given, and only one of them")),
        };
        let username = config.username.clone().or(of_profile).filter(|name| !name.is_empty());
        let username = username.ok_or_else(|| self.value("username", "is missing, here and in the profile"))?;
        Ok((username, password))
    }

    fn url(&self, text: &str) -> Result<Url, HostConfigError> {
        let url = Url::parse(text).map_err(|error| self.value("url", format!("{text:?} is not a URL: {error}")))?;
        let is_here = url.host_str().is_some_and(|host| {
            host == "localhost"
                || host
                    .trim_matches(['[', ']'])
                    .parse()
                    .is_ok_and(|ip: IpAddr| ip.is_loopback())
        });
        match url.scheme() {
            "https" if url.host_str().is_some() => {}
            "http" if is_here => {}
            _ => return Err(self.value("url", "must be https: a password would travel in the clear")),
        }
        if url.path() != "/" || url.query().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(self.value(
                "url",
                "must be a root such as https://vcenter.example, without a path or a user",
            ));
        }
        Ok(url)
    }

    fn fingerprint(&self, text: &str) -> Result<[u8; 32], HostConfigError> {
        let bare: String = text.chars().filter(|c| *c != ':').collect();
        let bytes = hex::decode(bare).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| {
            let how = "`openssl s_client -connect vcenter:443 </dev/null | openssl x509 -noout -fingerprint -sha256` prints it";
            self.value("fingerprint", format!("is no SHA-256 of a certificate, 64 hexadecimal digits: {how}"))
        })
    }

    fn seconds(&self, field: &'static str, given: u32, most: u32) -> Result<(), HostConfigError> {
        match (1..=most).contains(&given) {
            true => Ok(()),
            false => Err(self.value(field, format!("is {given}, must be from 1 to {most} seconds"))),
        }
    }

    fn secret(&self, field: &'static str, path: &Path) -> Result<Secret, HostConfigError> {
        let text = String::from_utf8(self.read(field, path)?).map_err(|_not_utf8| self.value(field, "is not text"))?;
        match text.lines().next() {
            None | Some("") => Err(self.value(field, format!("{} has an empty first line", path.display()))),
            Some(line) => Ok(Secret::new(line.to_owned())),
        }
    }

    fn read(&self, field: &'static str, path: &Path) -> Result<Vec<u8>, HostConfigError> {
        let path = self.base.join(path);
        let read = std::fs::metadata(&path).and_then(|metadata| match metadata.len() {
            length if length > FILE_BYTES_MAX => Err(io::Error::other("the file is larger than 1 MiB")),
            _ => std::fs::read(&path),
        });
        read.map_err(|source| HostConfigError::File {
            of: self.of.clone(),
            field,
            path,
            source,
        })
    }

    fn value(&self, field: &'static str, problem: impl Into<String>) -> HostConfigError {
        HostConfigError::Value {
            of: self.of.clone(),
            field,
            problem: problem.into(),
        }
    }
}

fn half_an_hour() -> u32 {
    1_800
}

fn half_a_minute() -> u32 {
    30
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests;
