//! A vendor's tool as a stranger describes it, and as checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;

use super::template::{Template, Values, is_name};
use crate::config::{Check, DeviceConfigError, Secret};

/// The schema of descriptions that this version reads.
const SCHEMA: &str = "firmesh-tool/1";
/// Descriptions that come with Firmesh.
const BUILT_IN: [(&str, &str); 3] = [
    ("flashrom", include_str!("../../tools/flashrom.toml")),
    ("fwupd", include_str!("../../tools/fwupd.toml")),
    ("ipmi", include_str!("../../tools/ipmi.toml")),
];
/// The executors that are no descriptions: none may take their names.
const KINDS: [&str; 6] = ["redfish", "ab_slot", "rauc", "swupdate", "ddi", "node-self"];

/// How long a question may take: longer than that, a look at the device is over anyway.
const QUERY_LIMIT_S: u32 = 15;
/// How long the other runs may take if the description does not say.
const RUN_LIMIT_S: u32 = 1_800;
/// A day: whoever waits longer has lost the device.
const LIMIT_S_MAX: u32 = 86_400;
/// Arguments of a run, parameters, variables.
const ITEMS_MAX: usize = 64;
/// Text in a description: an argument, a pattern.
const TEXT_BYTES_MAX: usize = 4 << 10;
/// What a pattern may take when it is compiled.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// A device behind a vendor's tool, as written in a node's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The description: the name of one that comes with Firmesh (`flashrom`), or a file.
    pub tool: String,
    /// A folder for the tool's files; each device has one of its own below it. Images are kept there while they are installed.
    pub work_dir: PathBuf,
    /// What the description's parameters stand for on this device.
    #[serde(default)]
    pub params: BTreeMap<String, String>,
    /// Files whose first lines are the description's secrets.
    #[serde(default)]
    pub secret_files: BTreeMap<String, PathBuf>,
    /// Variables for the tool on this device, beside the description's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where the version is in what the tool says, if not where the description looks.
    pub version_regex: Option<String>,
    /// Who makes the device, if the tool does not tell.
    pub vendor: Option<String>,
    /// Its model, if the tool does not tell.
    pub model: Option<String>,
}

/// A tool, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct DescriptionConfig {
    schema: String,
    name: String,
    #[serde(default)]
    params: Vec<String>,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    version: QueryConfig,
    vendor: Option<QueryConfig>,
    model: Option<QueryConfig>,
    boot_id: Option<QueryConfig>,
    install: InstallConfig,
    read_back: Option<RunConfig>,
    #[serde(default)]
    reset: ResetConfig,
}

/// A question, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryConfig {
    run: Vec<String>,
    #[serde(default = "query_limit_s")]
    limit_s: u32,
    regex: Option<String>,
    pointer: Option<String>,
}

/// A run, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunConfig {
    run: Vec<String>,
    #[serde(default = "run_limit_s")]
    limit_s: u32,
    folder: Option<String>,
}

/// The run that installs, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct InstallConfig {
    run: Vec<String>,
    #[serde(default = "run_limit_s")]
    limit_s: u32,
    folder: Option<String>,
    /// Exit statuses that mean: installed.
    #[serde(default = "zero")]
    done: Vec<u8>,
    /// Exit statuses that mean: installed, and in force after a reset.
    #[serde(default)]
    needs_reset: Vec<u8>,
    /// Exit statuses that mean: nothing was done, and may be later.
    #[serde(default)]
    retry: Vec<u8>,
    /// What the tool says when it failed, whatever its exit status.
    fails_if: Option<String>,
    /// Whether it does no harm to install what was perhaps installed already.
    #[serde(default)]
    may_repeat: bool,
}

/// How to restart the device, as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResetConfig {
    bmc: Option<RunConfig>,
    warm: Option<RunConfig>,
    cold: Option<RunConfig>,
    /// Such as a program that switches the outlets of a power strip.
    ac: Option<RunConfig>,
}

/// A device behind a vendor's tool, checked.
#[derive(Debug, Clone)]
pub struct CommandSettings {
    pub(super) name: String,
    pub(super) work_dir: PathBuf,
    /// Parameters; what changes with each run comes to them.
    pub(super) values: Values,
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) env: Vec<(String, Template)>,
    pub(super) version: Query,
    pub(super) vendor: Fact,
    pub(super) model: Fact,
    pub(super) boot_id: Option<Query>,
    pub(super) install: Install,
    pub(super) read_back: Option<Run>,
    pub(super) resets: [Option<Run>; 4],
}

/// A run, checked.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) program: Template,
    pub(super) args: Vec<Template>,
    pub(super) folder: Option<Template>,
    pub(super) limit: Duration,
}

/// A question, checked.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) run: Run,
    /// Whether the answer is in the file `{out}`.
    pub(super) answers_in_file: bool,
    pub(super) within: Within,
}

/// Where the answer is in what a tool says.
#[derive(Debug, Clone)]
pub(super) enum Within {
    /// All of it.
    Whole,
    /// The first group of the first match, or the match.
    Regex(Regex),
    /// A value in JSON.
    Pointer(String),
}

/// What is known without asking, or by asking.
#[derive(Debug, Clone)]
pub(super) enum Fact {
    Known(String),
    Asked(Box<Query>),
}

/// The run that installs, checked.
#[derive(Debug, Clone)]
pub(super) struct Install {
    pub(super) run: Run,
    done: BTreeSet<u8>,
    needs_reset: BTreeSet<u8>,
    retry: BTreeSet<u8>,
    fails_if: Option<Regex>,
    pub(super) may_repeat: bool,
}

/// What the end of an installation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Done,
    NeedsReset,
    Retry,
    Fatal,
}

impl Install {
    /// What an exit status (none after a signal) and a tool's words mean.
    pub(super) fn meaning(&self, code: Option<i32>, said: &[u8]) -> Meaning {
        let code = code.and_then(|code| u8::try_from(code).ok());
        let is_in = |set: &BTreeSet<u8>| code.is_some_and(|code| set.contains(&code));
        if is_in(&self.retry) {
            Meaning::Retry
        } else if self.fails_if.as_ref().is_some_and(|words| words.is_match(said)) {
            Meaning::Fatal
        } else if is_in(&self.done) {
            Meaning::Done
        } else if is_in(&self.needs_reset) {
            Meaning::NeedsReset
        } else {
            Meaning::Fatal
        }
    }
}

impl Query {
    /// The answer in what a tool said; the error says what was looked for.
    pub(super) fn answer(&self, said: &[u8]) -> Result<String, String> {
        let found = match &self.within {
            Within::Whole => Some(String::from_utf8_lossy(said).into_owned()),
            Within::Regex(regex) => regex.captures(said).and_then(|captures| {
                let found = captures.get(1).or_else(|| captures.get(0))?;
                Some(String::from_utf8_lossy(found.as_bytes()).into_owned())
            }),
            Within::Pointer(pointer) => {
                let json: serde_json::Value =
                    serde_json::from_slice(said).map_err(|error| format!("the answer is not JSON: {error}"))?;
                json.pointer(pointer).and_then(|value| match value {
                    serde_json::Value::String(text) => Some(text.clone()),
                    serde_json::Value::Number(number) => Some(number.to_string()),
                    _ => None,
                })
            }
        };
        let found = found.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let found = found.ok_or_else(|| match &self.within {
            Within::Whole => "the answer is empty".to_owned(),
            Within::Regex(regex) => format!("nothing in the answer matches {:?}", regex.as_str()),
            Within::Pointer(pointer) => format!("the answer has neither text nor a number at {pointer:?}"),
        })?;
        if found.len() > 128 || found.chars().any(char::is_control) {
            return Err(format!("the answer is no short line: it has {} bytes", found.len()));
        }
        Ok(found)
    }
}

impl Check<'_> {
    pub(crate) fn command(&self, config: CommandConfig) -> Result<CommandSettings, DeviceConfigError> {
        let built_in = BUILT_IN.iter().find(|(name, _)| *name == config.tool);
        let text = match built_in {
            Some((_, text)) => (*text).to_owned(),
            None => String::from_utf8(self.read("tool", config.tool.as_ref())?)
                .map_err(|_not_utf8| self.value("tool", "names a file that is not text"))?,
        };
        let described: DescriptionConfig = toml::from_str(&text).map_err(|error| {
            let problem = format!("{} is not the description of a tool: {error}", config.tool);
            self.value("tool", problem)
        })?;
        let mut secrets = BTreeMap::new();
        for (name, path) in &config.secret_files {
            secrets.insert(name.clone(), self.secret("secret_files", path)?);
        }
        let work_dir = self.base.join(&config.work_dir).join(self.device.as_str());
        described
            .check(config, work_dir, secrets)
            .map_err(|problem| self.value("tool", problem))
    }
}

impl DescriptionConfig {
    fn check(
        self,
        config: CommandConfig,
        work_dir: PathBuf,
        secrets: BTreeMap<String, Secret>,
    ) -> Result<CommandSettings, String> {
        if self.schema != SCHEMA {
            return Err(format!("has the schema {:?}, must be {SCHEMA:?}", self.schema));
        }
        if !is_name(&self.name) || KINDS.contains(&self.name.as_str()) {
            let name = &self.name;
            return Err(format!(
                "has the name {name:?}: must be a-z, 0-9 and _, and none of {}",
                KINDS.join(", ")
            ));
        }
        let same = |what: &str, described: &[String], given: Vec<&String>| {
            let (described, given): (BTreeSet<_>, BTreeSet<_>) =
                (described.iter().collect(), given.into_iter().collect());
            let wrong: Vec<_> = described
                .symmetric_difference(&given)
                .map(|name| name.as_str())
                .collect();
            match wrong.first() {
                None if described.iter().all(|name| is_name(name)) => Ok(()),
                None => Err(format!("has {what} whose names are not a-z, 0-9 and _")),
                Some(name) if given.iter().any(|given| given == name) => {
                    Err(format!("has none of the {what} called {name}, which the device gives"))
                }
                Some(name) => Err(format!("needs {name} among the device's {what}")),
            }
        };
        same("params", &self.params, config.params.keys().collect())?;
        same("secret_files", &self.secrets, secrets.keys().collect())?;
        let names = Names {
            params: &self.params,
            secrets: &self.secrets,
        };
        if [self.params.len(), self.secrets.len(), self.env.len()]
            .into_iter()
            .any(|count| count > ITEMS_MAX)
        {
            return Err(format!("has more than {ITEMS_MAX} params, secrets or variables"));
        }
        let mut env = Vec::new();
        if config.env.len() > ITEMS_MAX {
            return Err(format!("is given more than {ITEMS_MAX} variables by the device"));
        }
        for (name, text) in self.env.into_iter().chain(config.env) {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("has {name:?} for the name of a variable"));
            }
            env.push((name, names.template("env", &text, &["scratch"], true)?));
        }
        let mut version = self.version;
        if let Some(regex) = config.version_regex {
            (version.regex, version.pointer) = (Some(regex), None);
        }
        let fact = |what: &str, known: Option<String>, asked: Option<QueryConfig>| match (known, asked) {
            (Some(known), _) => Ok(Fact::Known(known)),
            (None, Some(asked)) => Ok(Fact::Asked(Box::new(names.query(what, asked)?))),
            (None, None) => Err(format!("does not ask for the {what}: write it with the device")),
        };
        let reset = |run: Option<RunConfig>| run.map(|run| names.run("reset", run, &["scratch"])).transpose();
        let install = self.install;
        let run = RunConfig {
            run: install.run,
            limit_s: install.limit_s,
            folder: install.folder,
        };
        let mut meanings = BTreeSet::new();
        if ![&install.done, &install.needs_reset, &install.retry]
            .into_iter()
            .flatten()
            .all(|code| meanings.insert(*code))
        {
            return Err("gives an exit status two meanings".to_owned());
        }
        let read_back = self
            .read_back
            .map(|run| names.run("read_back", run, &["scratch", "out"]))
            .transpose()?;
        if read_back.as_ref().is_some_and(|run| !run.uses("out")) {
            return Err("has a read_back that does not say {out}, the file to read into".to_owned());
        }
        Ok(CommandSettings {
            vendor: fact("vendor", config.vendor, self.vendor)?,
            model: fact("model", config.model, self.model)?,
            version: names.query("version", version)?,
            boot_id: self.boot_id.map(|query| names.query("boot_id", query)).transpose()?,
            install: Install {
                run: names.run("install", run, &["scratch", "image", "version"])?,
                done: install.done.into_iter().collect(),
                needs_reset: install.needs_reset.into_iter().collect(),
                retry: install.retry.into_iter().collect(),
                fails_if: install.fails_if.as_deref().map(regex).transpose()?,
                may_repeat: install.may_repeat,
            },
            read_back,
            resets: [
                reset(self.reset.bmc)?,
                reset(self.reset.warm)?,
                reset(self.reset.cold)?,
                reset(self.reset.ac)?,
            ],
            name: self.name,
            work_dir,
            values: config.params,
            secrets,
            env,
        })
    }
}

impl Run {
    pub(super) fn uses(&self, name: &str) -> bool {
        self.args.iter().any(|arg| arg.names().any(|used| used == name))
    }
}

/// The names that a description may use.
struct Names<'a> {
    params: &'a [String],
    secrets: &'a [String],
}

impl Names<'_> {
    fn template(&self, what: &str, text: &str, ours: &[&str], may_be_secret: bool) -> Result<Template, String> {
        if text.len() > TEXT_BYTES_MAX || text.contains('\0') {
            return Err(format!(
                "has a text in {what} that is longer than {TEXT_BYTES_MAX} bytes, or has a zero byte"
            ));
        }
        let template = Template::parse(text).map_err(|problem| format!("in {what}: {problem}"))?;
        for name in template.names() {
            let is_secret = self.secrets.iter().any(|secret| secret == name);
            if is_secret && !may_be_secret {
                return Err(format!(
                    "has the secret {name} among the arguments of {what}, where every process could read it: put it into env"
                ));
            }
            if !is_secret && !ours.contains(&name) && !self.params.iter().any(|param| param == name) {
                return Err(format!(
                    "has {{{name}}} in {what}: what is that? It may say {} and params",
                    ours.join(", ")
                ));
            }
        }
        Ok(template)
    }

    fn run(&self, what: &str, config: RunConfig, ours: &[&str]) -> Result<Run, String> {
        if !(1..=LIMIT_S_MAX).contains(&config.limit_s) {
            return Err(format!(
                "has a limit_s of {} in {what}, must be 1 to {LIMIT_S_MAX}",
                config.limit_s
            ));
        }
        if config.run.len() > ITEMS_MAX {
            return Err(format!("has more than {ITEMS_MAX} arguments in {what}"));
        }
        let mut texts = config.run.iter().map(|text| self.template(what, text, ours, false));
        let program = texts
            .next()
            .ok_or_else(|| format!("runs nothing in {what}: name a program"))??;
        let args = texts.collect::<Result<_, _>>()?;
        let folder = config
            .folder
            .map(|text| self.template(what, &text, ours, false))
            .transpose()?;
        Ok(Run {
            program,
            args,
            folder,
            limit: Duration::from_secs(config.limit_s.into()),
        })
    }

    fn query(&self, what: &str, config: QueryConfig) -> Result<Query, String> {
        let within = match (config.regex, config.pointer) {
            (None, None) => Within::Whole,
            (Some(text), None) => Within::Regex(regex(&text)?),
            (None, Some(pointer)) if pointer.starts_with('/') => Within::Pointer(pointer),
            (None, Some(pointer)) => return Err(format!("has the pointer {pointer:?} in {what}, must begin with /")),
            (Some(_), Some(_)) => return Err(format!("has a regex and a pointer in {what}, can have one")),
        };
        let run = RunConfig {
            run: config.run,
            limit_s: config.limit_s,
            folder: None,
        };
        let run = self.run(what, run, &["scratch", "out"])?;
        Ok(Query {
            answers_in_file: run.uses("out"),
            run,
            within,
        })
    }
}

fn regex(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
    built.map_err(|error| format!("has a pattern that cannot be: {error}"))
}

fn query_limit_s() -> u32 {
    QUERY_LIMIT_S
}

fn run_limit_s() -> u32 {
    RUN_LIMIT_S
}

fn zero() -> Vec<u8> {
    vec![0]
}
