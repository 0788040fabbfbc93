//! Waiting for a condition, with a deadline; and taking turns, so that two cores are not asked to run ten fleets.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Between two looks at something that does not last.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(2);

/// Fleets that run at the same time, over all test processes.
const FLEETS_MAX: usize = 2;

/// Looks until `condition` answers with something; says what was `awaited` and what was seen last if it never does.
///
/// An error of the condition is something seen, not the end: a process may not be listening yet.
pub async fn until<T>(awaited: &str, within: Duration, condition: impl AsyncFnMut() -> Result<Seen<T>>) -> Result<T> {
    look(awaited, within, LOOK_EVERY, condition).await
}

/// The same for a moment that is over soon.
pub async fn at_the_moment<T>(
    awaited: &str,
    within: Duration,
    condition: impl AsyncFnMut() -> Result<Seen<T>>,
) -> Result<T> {
    look(awaited, within, LOOK_CLOSELY_EVERY, condition).await
}

async fn look<T>(
    awaited: &str,
    within: Duration,
    every: Duration,
    mut condition: impl AsyncFnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let last = match condition().await {
            Ok(Seen::Yes(value)) => return Ok(value),
            Ok(Seen::NotYet(what)) => what,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= deadline {
            bail!("waited {within:?} for {awaited}; last seen: {last}");
        }
        tokio::time::sleep(every).await;
    }
}

/// What one look at a condition showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// It holds.
    Yes(T),
    /// It does not; this is what there is instead.
    NotYet(String),
}

impl Seen<()> {
    /// A plain condition.
    pub fn when(holds: bool, instead: impl FnOnce() -> String) -> Self {
        if holds { Self::Yes(()) } else { Self::NotYet(instead()) }
    }
}

/// The right to run a fleet, kept until it is dropped; over test threads and test processes alike.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "the lock ends when the file is closed")] File);

impl Turn {
    /// Waits until fewer than two fleets run.
    pub async fn take() -> Result<Self> {
        let folder = std::env::current_exe()?
            .parent()
            .context("the test executable lies in no folder")?
            .to_owned();
        loop {
            for place in 0..FLEETS_MAX {
                let file = File::create(folder.join(format!("firmesh-e2e-turn-{place}.lock")))?;
                if file.try_lock().is_ok() {
                    return Ok(Self(file));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
