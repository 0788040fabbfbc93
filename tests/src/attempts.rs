//! Attempts that are killed wherever it hurts: one harness for all executors.
//!
//! The lab runs an attempt on a device in a process of its own, which dies of SIGKILL at one boundary; another process goes on
//! with its journal. Boundaries are before and after every record and every act, and moments while an act is under way.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use firmesh_protocol::report::AttemptState;
use serde::Deserialize;

use crate::{binaries::Program, process::Process};

/// How long one attempt may take here.
const WITHIN: Duration = Duration::from_secs(60);

/// More boundaries than any attempt has.
const BOUNDARIES_MAX: u64 = 200;

/// How an attempt ended.
#[derive(Debug, Clone, Deserialize)]
pub struct Ended {
    /// In which state.
    pub state: AttemptState,
    /// Why.
    pub reason: String,
    /// The version read back.
    pub version: Option<String>,
    /// Boundaries that the last process passed.
    pub boundaries: u64,
    /// What the executor was told to do, in order and over all processes: `begin stage`, `end stage`, ...
    #[serde(skip)]
    pub acts: Vec<String>,
}

impl Ended {
    /// How often an act was carried out to its end.
    #[must_use]
    pub fn times(&self, act: &str) -> usize {
        self.acts.iter().filter(|line| **line == format!("end {act}")).count()
    }
}

/// Runs the attempt of `folder/attempt.toml` to its end.
pub async fn attempt(folder: &Path) -> Result<Ended> {
    let ended = run(folder, None).await?;
    ended.context("the attempt was killed, by nobody here")
}

/// Kills an attempt at every boundary, and at each of these times after the boundaries at which an act begins; each time in a
/// folder that `make` has filled, and each time `judge` looks at how it ended in the end. Answers how often it was killed.
pub async fn killed_everywhere<World>(
    folder: &Path,
    later_ms: &[u64],
    make: impl AsyncFn(&Path) -> Result<World>,
    judge: impl AsyncFn(&World, &Ended) -> Result<()>,
) -> Result<u32> {
    let mut kills = 0;
    for later in [0].iter().chain(later_ms) {
        // Later ones are meant for acts, which begin at every other boundary at most.
        let step = if *later == 0 { 1 } else { 2 };
        for at in (0..).step_by(step) {
            ensure!(at < BOUNDARIES_MAX, "the attempt never ends");
            let place = folder.join(format!("killed-at-{at}-{later}"));
            fs::create_dir_all(&place)?;
            let world = make(&place).await.context("the world cannot be made")?;
            let alive = run(&place, Some((at, *later))).await?;
            let told = || format!("killed {later} ms after boundary {at}, in {}", place.display());
            let ended = match &alive {
                Some(ended) => ended.clone(),
                None => attempt(&place).await.with_context(told)?,
            };
            judge(&world, &ended)
                .await
                .with_context(|| format!("{}: {ended:?}", told()))?;
            // Late in the attempt it may be over before the time has come.
            kills += u32::from(alive.is_none());
            let is_past = alive.is_some_and(|ended| ended.boundaries <= at);
            drop(world);
            fs::remove_dir_all(&place)?;
            if is_past {
                break;
            }
        }
    }
    Ok(kills)
}

/// Runs the attempt, or a part of it; nothing if it was killed.
async fn run(folder: &Path, die: Option<(u64, u64)>) -> Result<Option<Ended>> {
    let config = folder.join("attempt.toml");
    let mut args = vec!["attempt".to_owned(), format!("--config={}", config.display())];
    if let Some((at, later)) = die {
        args.extend([format!("--die-at={at}"), format!("--die-later-ms={later}")]);
    }
    let log = folder.join("attempt.log");
    let mut process = Process::start(Program::Lab, args, &log, |_| ())?;
    let status = process.wait(WITHIN).await.with_context(|| process.log())?;
    if !status.success() {
        use std::os::unix::process::ExitStatusExt as _;
        ensure!(
            status.signal() == Some(9),
            "the attempt ended with {status}: {}",
            process.log()
        );
        return Ok(None);
    }
    let log = process.log();
    let Some(line) = log
        .lines()
        .rev()
        .find(|line| line.starts_with('{') && line.contains("\"boundaries\""))
    else {
        bail!("the attempt said nothing of its end: {log}")
    };
    let mut ended: Ended = serde_json::from_str(line).context("the attempt's end is not JSON")?;
    let acts = fs::read_to_string(folder.join("acts.log")).unwrap_or_default();
    ended.acts = acts.lines().map(str::to_owned).collect();
    Ok(Some(ended))
}
