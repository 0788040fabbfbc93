//! One attempt on one device, without a coordinator, a mesh or a node: the executor, its journal, and SIGKILL wherever it is
//! wanted. What the next process makes of it is what the tests ask.

use std::{
    fmt, fs,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use firmesh_executors::{
    ActError, AttemptRecord, Backend, DeviceBackend, DeviceConfig, Ended, Goal, Image, ImageError, ImageReader,
    ImageSource, Journal, JournalError, News, Observed, Outcome, Rung, Slot, Start, build, run_attempt,
};
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, DeviceId, Sha256},
    manifest::{Artifact, Deadlines, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility},
    report::PermitKind,
};
use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, raise};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What to do, and when to die.
#[derive(Debug, clap::Args)]
pub(crate) struct AttemptArgs {
    /// A file that names device, image and version; the journal is kept beside it.
    #[arg(long)]
    config: PathBuf,
    /// Dies of SIGKILL at this boundary, counted from 0: before and after each record, before and after each act.
    #[arg(long)]
    die_at: Option<u64>,
    /// Dies so many milliseconds later than that.
    #[arg(long, default_value_t = 0)]
    die_later_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    image: PathBuf,
    vendor: String,
    model: String,
    version: String,
    attempt_s: u32,
    back_s: u32,
    pace_ms: u64,
    device: DeviceConfig,
}

/// Runs an attempt, or goes on with the one in the journal; prints how it ended.
pub(crate) async fn run(args: AttemptArgs, cancel: CancellationToken) -> Result<()> {
    let text = fs::read_to_string(&args.config).with_context(|| format!("{} cannot be read", args.config.display()))?;
    let config: Config = toml::from_str(&text).with_context(|| format!("{} is no attempt", args.config.display()))?;
    let base = args.config.parent().context("--config names no file")?;
    let image = base.join(&config.image);
    let bytes = fs::read(&image).with_context(|| format!("{} cannot be read", image.display()))?;
    let goal = goal(&config, &bytes)?;
    let settings = config.device.check(base)?;
    let images: Arc<dyn ImageSource> = Arc::new(OneFile(image));
    let boundaries = Arc::new(Boundaries {
        passed: AtomicU64::new(0),
        die_at: args.die_at,
        die_later: Duration::from_millis(args.die_later_ms),
    });
    let backend = Watched {
        backend: build(&settings, images)?,
        boundaries: Arc::clone(&boundaries),
        log: base.join("acts.log"),
    };
    let record = base.join("record.json");
    let start = match fs::read(&record) {
        Ok(bytes) => Start::Resumed(AttemptRecord::from_bytes(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Start::Fresh(goal),
        Err(error) => bail!("{} cannot be read: {error}", record.display()),
    };
    let journal: Arc<dyn Journal> = Arc::new(OneRecord {
        path: record,
        boundaries: Arc::clone(&boundaries),
    });
    let (reports, mut news) = mpsc::channel::<News>(64);
    let told = tokio::spawn(async move { while news.recv().await.is_some() {} });
    let ended = run_attempt(&backend, start, &journal, &reports, &cancel).await?;
    drop(reports);
    told.await?;
    let Ended::Over(Outcome {
        state, reason, version, ..
    }) = ended
    else {
        bail!("interrupted")
    };
    let boundaries = boundaries.passed.load(Relaxed);
    let said = serde_json::json!({ "state": state, "reason": reason, "version": version, "boundaries": boundaries });
    println!("{said}");
    Ok(())
}

/// Places at which the process can be told to die.
#[derive(Debug)]
struct Boundaries {
    passed: AtomicU64,
    die_at: Option<u64>,
    die_later: Duration,
}

impl Boundaries {
    fn pass(&self) {
        if Some(self.passed.fetch_add(1, Relaxed)) != self.die_at {
            return;
        }
        let later = self.die_later;
        if later.is_zero() {
            return die();
        }
        std::thread::spawn(move || {
            std::thread::sleep(later);
            die();
        });
    }
}

fn die() {
    if let Err(error) = raise(Signal::SIGKILL) {
        tracing::error!(%error, "a process did not die");
    }
}

/// A backend that says in a file what it is told to do, and passes boundaries.
struct Watched {
    backend: Backend,
    boundaries: Arc<Boundaries>,
    log: PathBuf,
}

impl Watched {
    async fn act<T>(&self, name: &str, act: impl Future<Output = Result<T, ActError>>) -> Result<T, ActError> {
        self.say(&format!("begin {name}"))?;
        self.boundaries.pass();
        let done = act.await;
        match &done {
            Ok(_) => self.say(&format!("end {name}"))?,
            Err(error) => self.say(&format!("fail {name} {error}"))?,
        }
        self.boundaries.pass();
        done
    }

    fn say(&self, line: &str) -> Result<(), ActError> {
        let write = || {
            let mut log = File::options().create(true).append(true).open(&self.log)?;
            writeln!(log, "{line}")
        };
        write().map_err(|error| ActError {
            reason: format!("the log of acts cannot be written: {error}"),
            retry: false,
        })
    }
}

impl DeviceBackend for Watched {
    async fn observe(&self, task: Option<&str>) -> Observed {
        self.backend.observe(task).await
    }

    async fn stage(&self, image: &Image, slot: Option<Slot>) -> Result<Option<String>, ActError> {
        self.act("stage", self.backend.stage(image, slot)).await
    }

    async fn activate(&self, slot: Option<Slot>) -> Result<(), ActError> {
        self.act("activate", self.backend.activate(slot)).await
    }

    async fn reset(&self, rung: Rung) -> Result<(), ActError> {
        self.act("reset", self.backend.reset(rung)).await
    }

    async fn confirm(&self) -> Result<(), ActError> {
        self.act("confirm", self.backend.confirm()).await
    }

    async fn abort(&self, task: Option<&str>) -> Result<(), ActError> {
        self.act("abort", self.backend.abort(task)).await
    }
}

/// A journal with one record in one file.
#[derive(Debug)]
struct OneRecord {
    path: PathBuf,
    boundaries: Arc<Boundaries>,
}

impl Journal for OneRecord {
    fn save(&self, _device: &DeviceId, record: &[u8]) -> Result<(), JournalError> {
        self.boundaries.pass();
        let fresh = self.path.with_extension("new");
        let saved = fs::write(&fresh, record).and_then(|()| fs::rename(&fresh, &self.path));
        self.boundaries.pass();
        saved.map_err(|error| JournalError {
            operation: "save",
            source: error.into(),
        })
    }

    fn load(&self, _device: &DeviceId) -> Result<Option<Vec<u8>>, JournalError> {
        match fs::read(&self.path) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(JournalError {
                operation: "load",
                source: error.into(),
            }),
        }
    }

    fn list(&self) -> Result<Vec<DeviceId>, JournalError> {
        Ok(Vec::new())
    }
}

/// An image that is a file.
struct OneFile(PathBuf);

impl fmt::Debug for OneFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

impl ImageSource for OneFile {
    fn open(&self, artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        let path: &Path = &self.0;
        Box::pin(async move {
            let opened = tokio::fs::File::open(path).await.map_err(|error| ImageError {
                artifact,
                retry: false,
                source: error.into(),
            })?;
            Ok(Box::pin(opened) as ImageReader)
        })
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        format!("file://{}", self.0.display())
    }
}

fn goal(config: &Config, bytes: &[u8]) -> Result<Goal> {
    let artifact = Artifact {
        id: ArtifactId::of(bytes),
        sha256: Sha256::of(bytes),
        length: bytes.len() as u64,
    };
    Ok(Goal {
        device: config.device.id.clone(),
        campaign: CampaignId::new("attempt")?,
        manifest_sha256: Sha256::of(b"no manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        image: Release {
            target: "firmware/image".to_owned(),
            info: ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: artifact.id,
                vendor: config.vendor.clone(),
                models: vec![config.model.clone()],
                component: config.device.component.clone(),
                version: config.version.clone(),
                security_epoch: 1,
                from_versions: Vec::new(),
                reversibility: Reversibility::Reversible,
                provenance: None,
                version_scheme: None,
                min_from: None,
                requires: Vec::new(),
                conflicts: Vec::new(),
            },
            artifact,
        },
        security_epoch_min: 0,
        deadlines: Deadlines {
            attempt_s: config.attempt_s,
            back_s: config.back_s,
        },
        health: None,
        answers_min: Goal::ANSWERS_MIN,
        answers_apart_ms: None,
        step: None,
        pace_ms: config.pace_ms,
    })
}
