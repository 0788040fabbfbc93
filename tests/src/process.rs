//! One process a test has started: its log is a file, and it never outlives the test.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    binaries::Program,
    wait::{Seen, until},
};

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program of the workspace. What it says is appended to `log`.
    pub fn start(
        program: Program,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        log: &Path,
        settle: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut command = Command::new(program.path()?);
        command.args(args).env("RUST_BACKTRACE", "1").env("NO_COLOR", "1");
        settle(&mut command);
        Self::spawn(program.name(), command, log)
    }

    /// Starts any command.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            child,
        })
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Prints the end of its log.
    pub fn print_last_words(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("-- the end of {}:", self.log.display());
        lines[lines.len().saturating_sub(25)..]
            .iter()
            .for_each(|line| eprintln!("{line}"));
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for it to end by itself.
    pub async fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let awaited = format!("{} to end", self.name);
        until(&awaited, within, async || {
            let ended = self.child.try_wait()?;
            Ok(ended.map_or_else(|| Seen::NotYet("it runs".to_owned()), Seen::Yes))
        })
        .await
    }

    /// SIGKILL: what a power cut looks like to everybody else.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends it any signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// SIGTERM, and the wait for its end.
    pub async fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(within).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _no_zombie = self.child.wait();
    }
}
