//! `firmesh tuf`: a plain TUF client, for any repository that follows the specification: the same verifier that runs in
//! every node, with its metadata and targets in two folders.
//!
//! Invariants: what the verifier has not accepted is never written; files change whole or not at all; an error leaves
//! what was trusted before it. Unlike other commands, everything that goes wrong ends with status 1, as the public
//! conformance suite for TUF clients asks.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{read_bounded, write_file};
use firmesh_protocol::{
    limits::{ROOT_BYTES_MAX, TARGETS_BYTES_MAX},
    trust::{
        Found, Input, KeyPolicy, Output as Step, Refresh, RefreshError, Search, StoredMetadata, Target, TargetCheck,
        TrustedMetadata, quoted,
    },
};
use futures_util::StreamExt as _;
use reqwest::{Response, StatusCode};
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::{Global, client::http_client, now, output::Output};

/// Slower than this on average is treated as an attack (slow retrieval), once the first timeout has passed.
const BYTES_PER_SECOND_MIN: u64 = 1_024;

/// Names of metadata files and targets in URLs have no room for more; file systems end at 255.
const TARGET_FILE_NAME_BYTES_MAX: usize = 255;

#[derive(Debug, Args)]
pub(crate) struct Tuf {
    /// The folder of trusted metadata.
    #[arg(long, global = true, value_name = "FOLDER")]
    metadata_dir: Option<PathBuf>,
    /// Where the repository's metadata is.
    #[arg(long, global = true, value_name = "URL")]
    metadata_url: Option<String>,
    /// A target to download (repeat; they are taken in this order).
    #[arg(long, global = true, value_name = "NAME")]
    target_name: Vec<String>,
    /// Where the repository's targets are.
    #[arg(long, global = true, value_name = "URL")]
    target_base_url: Option<String>,
    /// The folder that targets are downloaded to.
    #[arg(long, global = true, value_name = "FOLDER")]
    target_dir: Option<PathBuf>,
    /// Count ed25519 keys only, as a Firmesh node does.
    #[arg(long, global = true)]
    ed25519_only: bool,
    /// Give up when nothing arrives for this many seconds.
    #[arg(long, global = true, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pins a root that was brought by hand. Offline.
    Init {
        /// The root's metadata.
        root: PathBuf,
    },
    /// Brings the metadata up to date.
    Refresh,
    /// Brings the metadata up to date, then downloads and verifies targets. What is there already is not fetched again.
    Download,
}

/// What a refresh or download ended with.
#[derive(Debug, Serialize)]
struct Answer {
    /// Trusted versions by role.
    trusted: BTreeMap<String, u64>,
    /// What was asked for, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<Downloaded>,
}

#[derive(Debug, Serialize)]
struct Downloaded {
    name: String,
    /// The role that vouches for it.
    role: String,
    length: u64,
    hashes: BTreeMap<String, String>,
    path: PathBuf,
    /// Whether it was fetched now.
    fetched: bool,
}

pub(crate) async fn run(global: &Global, tuf: Tuf, output: &Output) -> anyhow::Result<()> {
    let folder = needed(tuf.metadata_dir.as_ref(), "--metadata-dir")?;
    if let Command::Init { root } = &tuf.command {
        return init(folder, root, tuf.policy(), output);
    }
    let _lock = lock(folder)?;
    let metadata_url = needed(tuf.metadata_url.as_ref(), "--metadata-url")?.clone();
    let is_tls = (tuf.target_base_url.iter().chain([&metadata_url])).any(|url| url.starts_with("https://"));
    let timeout = Duration::from_secs(tuf.timeout);
    let mut client = Client {
        store: Store::open(folder)?,
        origin: Origin {
            http: http_client(global.ca_file.as_deref(), is_tls, timeout)?,
            metadata_url,
            timeout,
        },
    };
    let trusted = client
        .refresh(tuf.policy())
        .await
        .context("the metadata is not up to date")?;
    let mut targets = Vec::new();
    if matches!(tuf.command, Command::Download) {
        let url = needed(tuf.target_base_url.as_ref(), "--target-base-url")?;
        let folder = needed(tuf.target_dir.as_ref(), "--target-dir")?;
        ensure!(
            !tuf.target_name.is_empty(),
            "say which target to download with --target-name"
        );
        for name in &tuf.target_name {
            let downloaded = client.download(&trusted, name, url, folder).await;
            targets.push(downloaded.with_context(|| format!("{name:?} is not downloaded"))?);
        }
    }
    let answer = Answer {
        trusted: versions(&trusted),
        targets,
    };
    output.show(&answer, || {
        let versions: Vec<_> = answer
            .trusted
            .iter()
            .map(|(role, version)| format!("{role} {version}"))
            .collect();
        let mut lines = vec![format!("trusted: {}", versions.join(", "))];
        lines.extend(answer.targets.iter().map(|target| {
            let how = if target.fetched {
                "downloaded"
            } else {
                "is there already"
            };
            format!(
                "{} {how}: {} (signed by {})",
                target.name,
                target.path.display(),
                target.role
            )
        }));
        lines
    })
}

impl Tuf {
    fn policy(&self) -> KeyPolicy {
        if self.ed25519_only {
            KeyPolicy::Ed25519Only
        } else {
            KeyPolicy::Standard
        }
    }
}

fn needed<'a, T>(option: Option<&'a T>, name: &str) -> anyhow::Result<&'a T> {
    option.with_context(|| format!("{name} is needed here: see firmesh tuf --help"))
}

fn init(folder: &Path, root: &Path, policy: KeyPolicy, output: &Output) -> anyhow::Result<()> {
    let bytes = read_bounded(root, ROOT_BYTES_MAX)?;
    let stored = StoredMetadata::from([("root.json".to_owned(), bytes.clone())]);
    // Refused now rather than at the first refresh: nobody is there to bring another root then.
    Refresh::top_level(stored, now(), policy).with_context(|| format!("{} cannot be trusted", root.display()))?;
    let path = folder.join("root.json");
    match read_bounded(&path, ROOT_BYTES_MAX) {
        Ok(pinned) if pinned == bytes => (),
        Ok(_) => bail!("{} holds another root: pin this one in another folder", path.display()),
        Err(error) if error.is_not_found() => write_file(&path, &bytes)?,
        Err(error) => return Err(error.into()),
    }
    output.show(&serde_json::json!({ "pinned": path }), || {
        vec![format!(
            "pinned {}: bring the rest with: firmesh tuf refresh",
            path.display()
        )]
    })
}

/// Two clients at once would undo each other's steps.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let missing = || {
        format!(
            "cannot use {}: pin a root first with: firmesh tuf init",
            folder.display()
        )
    };
    let path = folder.join(".lock");
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(missing)?;
    file.lock()
        .with_context(|| format!("cannot lock {}", folder.display()))?;
    Ok(file)
}

/// Trusted metadata on disk and in memory.
#[derive(Debug)]
struct Store {
    folder: PathBuf,
    files: StoredMetadata,
}

impl Store {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let mut files = StoredMetadata::new();
        let reading = || format!("cannot read {}", folder.display());
        for entry in fs::read_dir(folder).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            if let Some(name) = entry.file_name().to_str().filter(|name| name.ends_with(".json")) {
                files.insert(name.to_owned(), read_bounded(&entry.path(), TARGETS_BYTES_MAX)?);
            }
        }
        let folder = folder.to_owned();
        Ok(Self { folder, files })
    }

    fn persist(&mut self, name: String, bytes: Vec<u8>) -> anyhow::Result<()> {
        write_file(&self.folder.join(&name), &bytes)?;
        self.files.insert(name, bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let synced = fs::remove_file(&path).and_then(|()| File::open(&self.folder)?.sync_all());
        synced.with_context(|| format!("cannot remove {}", path.display()))?;
        self.files.remove(name);
        Ok(())
    }
}

/// A repository behind URLs.
#[derive(Debug)]
struct Origin {
    http: reqwest::Client,
    metadata_url: String,
    timeout: Duration,
}

impl Origin {
    async fn metadata(&self, name: &str, bytes_max: u64) -> Input {
        let url = format!("{}/{name}", self.metadata_url.trim_end_matches('/'));
        let mut bytes = Vec::new();
        let response = match self.http.get(&url).send().await.and_then(Response::error_for_status) {
            Ok(response) => response,
            // Buckets answer 403 for what is not there.
            Err(error) if matches!(error.status(), Some(StatusCode::NOT_FOUND | StatusCode::FORBIDDEN)) => {
                return Input::NotFound;
            }
            Err(error) => return Input::Failed(causes(&error)),
        };
        let received = self.receive(response, |chunk| {
            bytes.extend_from_slice(chunk);
            // One chunk too much is enough to show that there is too much.
            Ok(bytes.len() as u64 <= bytes_max)
        });
        match received.await {
            Ok(()) => Input::Fetched(bytes),
            Err(error) => Input::Failed(format!("{error:#}")),
        }
    }

    /// Hands on what arrives until it ends or `take` wants no more.
    async fn receive(
        &self,
        response: Response,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let (begun, mut received) = (Instant::now(), 0);
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| anyhow::anyhow!(causes(&error)))?;
            received += chunk.len() as u64;
            let spent = begun.elapsed();
            let is_slow = received < spent.as_secs() * BYTES_PER_SECOND_MIN;
            ensure!(
                spent < self.timeout || !is_slow,
                "it arrives at less than {BYTES_PER_SECOND_MIN} bytes per second"
            );
            if !take(&chunk)? {
                break;
            }
        }
        Ok(())
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[derive(Debug)]
struct Client {
    store: Store,
    origin: Origin,
}

impl Client {
    async fn refresh(&mut self, policy: KeyPolicy) -> anyhow::Result<TrustedMetadata> {
        let mut refresh = Refresh::top_level(self.store.files.clone(), now(), policy)?;
        while let Some(step) = refresh.poll() {
            if let Some(input) = self.take(step).await? {
                refresh.handle(input);
            }
        }
        Ok(refresh.finish()?)
    }

    async fn search(&mut self, trusted: &TrustedMetadata, name: &str) -> anyhow::Result<Option<Found>> {
        let mut search = Search::new(trusted, &self.store.files, name);
        while let Some(step) = search.poll() {
            if let Some(input) = self.take(step).await? {
                search.handle(input);
            }
        }
        Ok(search.finish()?)
    }

    /// Does one step of a core; the answer, if it was a question.
    async fn take(&mut self, step: Step) -> anyhow::Result<Option<Input>> {
        match step {
            Step::Fetch { name, bytes_max } => return Ok(Some(self.origin.metadata(&name, bytes_max).await)),
            Step::Persist { name, bytes } => self.store.persist(name, bytes)?,
            Step::Remove { name } => self.store.remove(&name)?,
        }
        Ok(None)
    }

    async fn download(
        &mut self,
        trusted: &TrustedMetadata,
        name: &str,
        url: &str,
        folder: &Path,
    ) -> anyhow::Result<Downloaded> {
        let found = self.search(trusted, name).await?;
        let Found { role, target } = found.context("no role that may speak for this target names it")?;
        let url = format!(
            "{}/{}",
            url.trim_end_matches('/'),
            target.repository_path(name, trusted.root())?
        );
        let file = quoted(name);
        ensure!(
            (1..=TARGET_FILE_NAME_BYTES_MAX).contains(&file.len()),
            "its name is empty or too long for a file name"
        );
        let path = folder.join(file);
        let fetched = !is_there(&path, &target)?;
        if fetched {
            self.fetch_target(&url, &target, &path)
                .await
                .with_context(|| format!("{url} is refused"))?;
        }
        Ok(Downloaded {
            name: name.to_owned(),
            role,
            length: target.length,
            hashes: target.hashes,
            path,
            fetched,
        })
    }

    /// A temporary neighbour is filled while it is checked, and moved into place when every byte was right.
    async fn fetch_target(&self, url: &str, target: &Target, path: &Path) -> anyhow::Result<()> {
        let mut check = TargetCheck::new(target)?;
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        let writing = || format!("cannot write {}", path.display());
        fs::create_dir_all(folder).with_context(writing)?;
        let mut file = NamedTempFile::new_in(folder).with_context(writing)?;
        let response = self
            .origin
            .http
            .get(url)
            .send()
            .await
            .and_then(Response::error_for_status);
        let response = response.map_err(|error| anyhow::anyhow!(causes(&error)))?;
        let taken = self.origin.receive(response, |chunk| {
            check.update(chunk)?;
            file.write_all(chunk).with_context(writing)?;
            Ok(true)
        });
        taken.await?;
        check.finish()?;
        file.as_file().sync_all().with_context(writing)?;
        file.persist(path).map_err(|error| error.error).with_context(writing)?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .with_context(writing)
    }
}

/// Whether a file holds exactly the target's bytes.
fn is_there(path: &Path, target: &Target) -> anyhow::Result<bool> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(reading),
    };
    let (mut check, mut buffer) = (TargetCheck::new(target)?, vec![0; 64 << 10]);
    loop {
        let read = file.read(&mut buffer).with_context(reading)?;
        if read == 0 {
            return Ok(check.finish().is_ok());
        }
        if check.update(&buffer[..read]).is_err() {
            return Ok(false);
        }
    }
}

fn versions(trusted: &TrustedMetadata) -> BTreeMap<String, u64> {
    let roles = [
        ("root", &trusted.root().header),
        ("timestamp", &trusted.timestamp().header),
        ("snapshot", &trusted.snapshot().header),
        ("targets", &trusted.targets().header),
    ];
    roles.map(|(role, header)| (role.to_owned(), header.version)).into()
}

/// The name machines know a refusal by, if an error is one.
pub(crate) fn refusal_code(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let refresh = cause.downcast_ref().map(RefreshError::code);
        refresh.or_else(|| cause.downcast_ref().map(firmesh_protocol::trust::TargetError::code))
    })
}

#[cfg(test)]
mod tests;
