//! Credentials by profile: what is written once for many devices, and which of it counts for one of them.
//!
//! Invariants: the most specific profile counts, and it counts wholly; no two are as specific. A secret is read when a
//! device needs it, once, and never shown. A command that is asked for one runs without a shell, without our environment,
//! for a limited time, and what it prints is bounded.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use firmesh_protocol::ids::{DeviceId, TopologyPath};
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use serde::Deserialize;

use crate::config::Secret;

/// A secret is a line; what is longer is something else.
const SECRET_BYTES_MAX: usize = 4 << 10;

/// How long a command may take that is asked for a secret.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Profiles of one file: one for each device would be no profiles.
const PROFILES_MAX: usize = 1_000;

/// A file of profiles, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfilesConfig {
    /// The profiles.
    #[serde(rename = "profile")]
    pub profiles: Vec<ProfileConfig>,
}

/// One profile, as written. It is for everything, or for one of `site`, `rack`, `model` and `device`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileConfig {
    /// What it is called.
    pub name: String,
    /// The beginning of a node's path, such as `eu/fra1`.
    pub site: Option<String>,
    /// The same down to the rack, such as `eu/fra1/r1`.
    pub rack: Option<String>,
    /// The devices' model.
    pub model: Option<String>,
    /// One device.
    pub device: Option<DeviceId>,
    /// The account, where there is one.
    pub username: Option<String>,
    /// The password or token.
    pub secret: SecretSource,
}

/// Where a secret is.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// The first line of a file that nobody else can read (mode 0600).
    File(PathBuf),
    /// An environment variable of the node.
    Env(String),
    /// The first line that a program prints; its arguments follow it.
    Command(Vec<String>),
    /// In the profile itself, sealed for this node (see `firmesh-node --seal`).
    Sealed(String),
}

/// Opens what was sealed for this node under the name of its profile.
pub trait Unseal: fmt::Debug + Send + Sync {
    /// The secret; nothing if it was sealed elsewhere, or for another profile, or changed.
    fn unseal(&self, profile: &str, sealed: &str) -> Option<String>;
}

/// The profiles of a node.
#[derive(Debug)]
pub struct Profiles {
    profiles: Vec<Profile>,
    base: PathBuf,
    unseal: Option<Arc<dyn Unseal>>,
    read: Mutex<BTreeMap<String, Credentials>>,
}

#[derive(Debug)]
struct Profile {
    name: String,
    scope: Scope,
    username: Option<String>,
    source: SecretSource,
}

/// What a profile is for, the least specific first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Global,
    /// As many segments of a path; more are more specific.
    Site(usize, String),
    Rack(usize, String),
    Model(String),
    Device(DeviceId),
}

/// What is looked for: a device, where its node stands, and its model if the configuration names it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// Its model.
    pub model: Option<&'a str>,
    /// Where its node stands.
    pub path: &'a TopologyPath,
}

/// What a device is reached with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The profile it comes from.
    pub profile: String,
    /// The account.
    pub username: Option<String>,
    /// The password or token.
    pub secret: Secret,
}

/// Which profile a device has, without what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The profile's name.
    pub profile: String,
    /// What it is for.
    pub scope: String,
    /// The account.
    pub username: Option<String>,
    /// Where its secret is.
    pub source: String,
}

/// What is wrong with a file of profiles.
#[derive(Debug, thiserror::Error)]
pub enum ProfilesError {
    /// More than are kept.
    #[error("there are {0} profiles, at most {PROFILES_MAX} are read")]
    TooMany(usize),
    /// A profile for two things at once.
    #[error("profile {0}: name one of site, rack, model and device, or none for all devices")]
    Scope(String),
    /// Two of one name.
    #[error("there are two profiles {0}")]
    Name(String),
    /// Two that are as specific.
    #[error("profiles {0} and {1} are for the same: which one counts?")]
    Same(String, String),
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read it.
    #[error("{path} is readable by others (mode {mode:o}) and keeps a secret: chmod 600 it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is no such variable.
    #[error("the environment variable {0} is not set, or not text")]
    Unset(String),
    /// The program cannot be run.
    #[error("{program} cannot be run")]
    Start {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// The program took too long.
    #[error("{program} did not end within {COMMAND_LIMIT:?}")]
    TooSlow {
        /// The program.
        program: String,
    },
    /// The program failed.
    #[error("{program} failed: {status}")]
    Failed {
        /// The program.
        program: String,
        /// How.
        status: std::process::ExitStatus,
    },
    /// Nothing, or not a line.
    #[error("{origin} does not begin with a line of 1 to {SECRET_BYTES_MAX} bytes of text")]
    NotALine {
        /// Where it was looked for.
        origin: String,
    },
    /// It cannot be opened here.
    #[error("it is sealed, and not for this profile of this node: seal it again with firmesh-node --seal")]
    Sealed,
    /// There is nothing to open it with.
    #[error("it is sealed, and this node has no key: set store.key_file")]
    NoKey,
}

/// A profile whose secret cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the secret of profile {profile} cannot be had")]
pub struct CredentialsError {
    profile: String,
    source: SecretError,
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A command's arguments may be nobody's business, and neither is what was sealed.
        f.write_str(&self.describe())
    }
}

impl SecretSource {
    fn describe(&self) -> String {
        match self {
            Self::File(path) => format!("file {}", path.display()),
            Self::Env(name) => format!("environment {name}"),
            Self::Command(words) => format!("command {}", words.first().map_or("", String::as_str)),
            Self::Sealed(_) => "sealed".to_owned(),
        }
    }

    /// Reads it; relative paths start at `base`. What is sealed is not read here.
    pub fn read(&self, base: &Path) -> Result<Secret, SecretError> {
        match self {
            Self::File(path) => file(&base.join(path)),
            Self::Env(name) => {
                let text = std::env::var(name).map_err(|_| SecretError::Unset(name.clone()))?;
                first_line(text.as_bytes(), name)
            }
            Self::Command(words) => command(words, base, COMMAND_LIMIT),
            Self::Sealed(_) => Err(SecretError::NoKey),
        }
    }
}

impl Profiles {
    /// Checks what was written. Reads no secret.
    pub fn new(config: ProfilesConfig, base: &Path, unseal: Option<Arc<dyn Unseal>>) -> Result<Self, ProfilesError> {
        if config.profiles.len() > PROFILES_MAX {
            return Err(ProfilesError::TooMany(config.profiles.len()));
        }
        let mut profiles: Vec<Profile> = Vec::new();
        for written in config.profiles {
            let name = written.name.clone();
            let profile = Profile::check(written)?;
            if profiles.iter().any(|other| other.name == name) {
                return Err(ProfilesError::Name(name));
            }
            if let Some(other) = profiles.iter().find(|other| other.scope == profile.scope) {
                return Err(ProfilesError::Same(other.name.clone(), name));
            }
            profiles.push(profile);
        }
        Ok(Self {
            profiles,
            base: base.to_owned(),
            unseal,
            read: Mutex::default(),
        })
    }

    fn most_specific(&self, subject: &Subject<'_>) -> Option<&Profile> {
        let fitting = self.profiles.iter().filter(|profile| profile.scope.covers(subject));
        fitting.max_by(|a, b| a.scope.cmp(&b.scope))
    }

    /// Which profile a device has.
    #[must_use]
    pub fn resolve(&self, subject: &Subject<'_>) -> Option<Resolved> {
        self.most_specific(subject).map(|profile| Resolved {
            profile: profile.name.clone(),
            scope: profile.scope.to_string(),
            username: profile.username.clone(),
            source: profile.source.describe(),
        })
    }

    /// What a device is reached with, if it has a profile.
    pub fn credentials(&self, subject: &Subject<'_>) -> Result<Option<Credentials>, CredentialsError> {
        self.most_specific(subject)
            .map(|profile| self.credentials_of(profile))
            .transpose()
    }

    /// What the profile of this name has, whatever it is for; nothing if there is none.
    pub fn named(&self, name: &str) -> Result<Option<Credentials>, CredentialsError> {
        let profile = self.profiles.iter().find(|profile| profile.name == name);
        profile.map(|profile| self.credentials_of(profile)).transpose()
    }

    fn credentials_of(&self, profile: &Profile) -> Result<Credentials, CredentialsError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.get(&profile.name) {
            return Ok(known.clone());
        }
        let secret = self.secret(profile).map_err(|source| CredentialsError {
            profile: profile.name.clone(),
            source,
        })?;
        let credentials = Credentials {
            profile: profile.name.clone(),
            username: profile.username.clone(),
            secret,
        };
        read.insert(profile.name.clone(), credentials.clone());
        Ok(credentials)
    }

    fn secret(&self, profile: &Profile) -> Result<Secret, SecretError> {
        match (&profile.source, &self.unseal) {
            (SecretSource::Sealed(sealed), Some(key)) => {
                let text = key.unseal(&profile.name, sealed).ok_or(SecretError::Sealed)?;
                first_line(text.as_bytes(), "what was sealed")
            }
            (source, _) => source.read(&self.base),
        }
    }
}

impl Profile {
    fn check(written: ProfileConfig) -> Result<Self, ProfilesError> {
        let segments = |path: &str| path.split('/').count();
        let scopes = [
            written.site.map(|site| Scope::Site(segments(&site), site)),
            written.rack.map(|rack| Scope::Rack(segments(&rack), rack)),
            written.model.map(Scope::Model),
            written.device.map(Scope::Device),
        ];
        let mut scopes = scopes.into_iter().flatten();
        let scope = scopes.next().unwrap_or(Scope::Global);
        if scopes.next().is_some() {
            return Err(ProfilesError::Scope(written.name));
        }
        Ok(Self {
            name: written.name,
            scope,
            username: written.username,
            source: written.secret,
        })
    }
}

impl Scope {
    fn covers(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Global => true,
            Self::Site(_, place) | Self::Rack(_, place) => {
                let mut segments = subject.path.segments();
                place
                    .split('/')
                    .all(|wanted| segments.next().is_some_and(|found| found == wanted))
            }
            Self::Model(model) => subject.model == Some(model),
            Self::Device(device) => subject.device == device,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Site(_, place) => write!(f, "site {place}"),
            Self::Rack(_, place) => write!(f, "rack {place}"),
            Self::Model(model) => write!(f, "model {model}"),
            Self::Device(device) => write!(f, "device {device}"),
        }
    }
}

fn file(path: &Path) -> Result<Secret, SecretError> {
    let failed = |source| SecretError::File {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX as u64 + 2)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    first_line(&bytes, &path.display().to_string())
}

fn first_line(bytes: &[u8], origin: &str) -> Result<Secret, SecretError> {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match std::str::from_utf8(line) {
        Ok(text) if !text.is_empty() && text.len() <= SECRET_BYTES_MAX => Ok(Secret::new(text.to_owned())),
        _ => Err(SecretError::NotALine {
            origin: origin.to_owned(),
        }),
    }
}

/// Runs a program in a process group of its own, which ends with it, or at the limit.
fn command(words: &[String], base: &Path, limit: Duration) -> Result<Secret, SecretError> {
    let Some((program, args)) = words.split_first() else {
        return Err(SecretError::NotALine {
            origin: "a command without a program".to_owned(),
        });
    };
    let mut command = Command::new(program);
    command.args(args).current_dir(base).env_clear();
    command.envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "HOME"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.process_group(0).spawn().map_err(|source| SecretError::Start {
        program: program.clone(),
        source,
    })?;
    let stdout = child.stdout.take();
    let (told, said) = mpsc::sync_channel(1);
    // It ends when the last of the group has closed its output, which `end` sees to.
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.map(|stdout| stdout.take(SECRET_BYTES_MAX as u64 + 2).read_to_end(&mut bytes));
        told.send((read, bytes)).ok(); // whoever waited may have given up
    });
    let heard = said.recv_timeout(limit);
    let in_time = heard.is_ok() && exits_within(&child, limit);
    let status = end(&mut child);
    reading.join().ok(); // it cannot panic, and has nothing more to say
    match (heard, status) {
        (Ok((_, bytes)), Ok(status)) if in_time && status.success() => first_line(&bytes, program),
        (_, Ok(status)) if in_time => Err(SecretError::Failed {
            program: program.clone(),
            status,
        }),
        (_, Err(source)) => Err(SecretError::Start {
            program: program.clone(),
            source,
        }),
        _ => Err(SecretError::TooSlow {
            program: program.clone(),
        }),
    }
}

/// Whether it exits in time. Its number stays its own until it is waited for.
fn exits_within(child: &Child, limit: Duration) -> bool {
    const LOOK_EVERY: Duration = Duration::from_millis(10);
    let Ok(pid) = i32::try_from(child.id()) else {
        return false;
    };
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let mut waited = Duration::ZERO;
    loop {
        match waitid(Id::Pid(Pid::from_raw(pid)), look) {
            Ok(WaitStatus::StillAlive) if waited < limit => {}
            Ok(WaitStatus::StillAlive) | Err(_) => return false,
            Ok(_) => return true,
        }
        std::thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
}

/// Ends whatever is left of its group, and it.
fn end(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    if let Ok(group) = i32::try_from(child.id()) {
        killpg(Pid::from_raw(group), Signal::SIGKILL).ok(); // there may be nobody left of it
    }
    child.wait()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[derive(Debug)]
    struct Reversed;

    impl Unseal for Reversed {
        fn unseal(&self, profile: &str, sealed: &str) -> Option<String> {
            let text: String = sealed.chars().rev().collect();
            text.strip_prefix(profile).map(str::to_owned)
        }
    }

    fn profiles(text: &str, base: &Path) -> Result<Profiles, String> {
        let config: ProfilesConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        Profiles::new(config, base, Some(Arc::new(Reversed))).map_err(|error| error.to_string())
    }

    fn found(profiles: &Profiles, device: &str, model: Option<&str>, path: &str) -> Option<String> {
        let (device, path) = (DeviceId::new(device).unwrap(), path.parse().unwrap());
        let (device, path) = (&device, &path);
        profiles
            .resolve(&Subject { device, model, path })
            .map(|found| found.profile)
    }

    const ALL: &str = r#"
        [[profile]]
        name = "all"
        username = "root"
        secret = { env = "FIRMESH_NO_SUCH_VARIABLE" }
        [[profile]]
        name = "site"
        site = "eu/fra1"
        secret = { sealed = "terces-ehtetis" }
        [[profile]]
        name = "region"
        site = "eu"
        secret = { file = "secret" }
        [[profile]]
        name = "rack"
        rack = "eu/fra1/r1"
        secret = { command = ["echo", "said", "so"] }
        [[profile]]
        name = "model"
        model = "R1"
        secret = { file = "secret" }
        [[profile]]
        name = "device"
        device = "d1"
        secret = { file = "secret" }
    "#;

    #[test]
    fn the_most_specific_profile_counts() {
        let profiles = profiles(ALL, Path::new("/")).unwrap();
        let found = |device, model, path| found(&profiles, device, model, path).unwrap();
        assert_eq!(found("d1", Some("R1"), "eu/fra1/r1/n1"), "device");
        assert_eq!(found("d2", Some("R1"), "eu/fra1/r1/n1"), "model");
        assert_eq!(found("d2", Some("R2"), "eu/fra1/r1/n1"), "rack");
        assert_eq!(found("d2", None, "eu/fra1/r2/n1"), "site");
        assert_eq!(found("d2", None, "eu/fra11/r2/n1"), "region");
        assert_eq!(found("d2", None, "us/fra1/r1/n1"), "all");
    }

    #[test]
    fn secrets_come_from_where_they_are_and_never_show() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "hush hush\nsecond line\n").unwrap();
        let profiles = profiles(ALL, folder.path()).unwrap();
        let read = |device: &str, path: &str| {
            let (device, path) = (&DeviceId::new(device).unwrap(), &path.parse().unwrap());
            let model = None;
            let found = profiles.credentials(&Subject { device, model, path });
            found
                .map(|found| found.unwrap().secret.expose().to_owned())
                .map_err(|error| error.source.to_string())
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read("d1", "eu/fra1/r1/n1").unwrap_err().contains("mode 644"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read("d1", "eu/fra1/r1/n1").unwrap(), "hush hush");
        fs::remove_file(&file).unwrap();
        assert_eq!(read("d1", "eu/fra1/r1/n1").unwrap(), "hush hush", "it is read once");
        assert_eq!(read("d2", "eu/fra1/r1/n1").unwrap(), "said so");
        assert_eq!(read("d2", "eu/fra1/r2/n1").unwrap(), "the-secret");
        assert!(
            read("d2", "us/x/y/n1")
                .unwrap_err()
                .contains("FIRMESH_NO_SUCH_VARIABLE")
        );
        let shown = format!("{profiles:?}");
        for secret in ["hush", "the-secret", "terces", "said"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn profiles_that_leave_open_which_one_counts_are_refused() {
        let refused = |text: &str, words: &str| {
            let error = profiles(text, Path::new("/")).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        let profile =
            |name: &str, scope: &str| format!("[[profile]]\nname = {name:?}\n{scope}\nsecret = {{ env = \"X\" }}\n");
        refused(
            &(profile("a", "") + &profile("b", "")),
            "profiles a and b are for the same",
        );
        refused(&(profile("a", "") + &profile("a", "model = \"m\"")), "two profiles a");
        refused(&profile("a", "model = \"m\"\nsite = \"s\""), "name one of");
        refused(&profile("a", "modell = \"m\""), "modell");
        refused(
            "[[profile]]\nname = \"a\"\nsecret = { file = \"a\", env = \"B\" }\n",
            "secret",
        );
    }

    #[test]
    fn commands_are_bounded_in_time_and_output_and_end_with_their_group() {
        let folder = tempfile::tempdir().unwrap();
        let run = |words: &[&str], limit_ms| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            let found = command(&words, folder.path(), Duration::from_millis(limit_ms));
            found
                .map(|secret| secret.expose().to_owned())
                .map_err(|error| error.to_string())
        };
        assert_eq!(run(&["printf", "a\\nb"], 5_000).unwrap(), "a");
        assert!(run(&["false"], 5_000).unwrap_err().contains("failed"));
        assert!(run(&["/no/such/program"], 5_000).unwrap_err().contains("cannot be run"));
        assert!(
            run(&["sh", "-c", "sleep 60 & sleep 60"], 100)
                .unwrap_err()
                .contains("did not end")
        );
        assert!(run(&["true"], 5_000).unwrap_err().contains("does not begin"));
        assert!(
            run(&["yes", "xxxxxxxxxxxxxxx"], 5_000).is_err(),
            "it is not listened to for ever"
        );
        assert!(run(&[], 5_000).is_err());
        assert_eq!(
            run(&["sh", "-c", "echo x$CARGO$CARGO_PKG_NAME"], 5_000).unwrap(),
            "x",
            "not our environment"
        );
    }
}
