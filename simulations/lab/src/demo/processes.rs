//! The processes the demo has started: each in a process group of its own, with a log of its own, and none outlives it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::place::Place;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Every process, by name. Dropping this ends them all.
#[derive(Debug)]
pub(crate) struct Processes {
    logs: PathBuf,
    running: BTreeMap<String, Running>,
}

#[derive(Debug)]
struct Running {
    place: Place,
    program: PathBuf,
    args: Vec<OsString>,
    child: Child,
    /// It was ended here, on purpose, and has been waited for.
    killed: bool,
}

impl Processes {
    /// None yet; logs go to `logs`.
    pub(crate) fn new(logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("{} cannot be made", logs.display()))?;
        Ok(Self {
            logs: logs.to_owned(),
            running: BTreeMap::new(),
        })
    }

    /// Starts this very program with other arguments at some place.
    pub(crate) fn start(&mut self, name: &str, place: &Place, args: Vec<OsString>) -> Result<()> {
        self.start_program(name, place, std::env::current_exe()?, args)
    }

    /// Starts any program at some place.
    pub(crate) fn start_program(
        &mut self,
        name: &str,
        place: &Place,
        program: PathBuf,
        args: Vec<OsString>,
    ) -> Result<()> {
        let log = self.log(name);
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("{} cannot be written", log.display()))?;
        let child = place
            .command(&program)
            .args(&args)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        self.running.insert(
            name.to_owned(),
            Running {
                place: place.clone(),
                program,
                args,
                child,
                killed: false,
            },
        );
        Ok(())
    }

    /// SIGKILL: what a power cut looks like to everybody else.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        let running = self
            .running
            .get_mut(name)
            .with_context(|| format!("{name} does not run"))?;
        running.signal(Signal::SIGKILL);
        running.child.wait()?;
        running.killed = true;
        Ok(())
    }

    /// Starts a process again that was killed.
    pub(crate) fn restart(&mut self, name: &str) -> Result<()> {
        let running = self
            .running
            .remove(name)
            .with_context(|| format!("{name} was never started"))?;
        self.start_program(name, &running.place, running.program, running.args)
    }

    /// Fails if a process has ended that was not killed here.
    pub(crate) fn check(&mut self) -> Result<()> {
        for (name, running) in self.running.iter_mut().filter(|(_, running)| !running.killed) {
            if let Some(status) = running.child.try_wait()? {
                let log = self.logs.join(format!("{name}.log"));
                bail!(
                    "{name} has ended by itself ({status}); the end of {}:\n{}",
                    log.display(),
                    tail(&log)
                );
            }
        }
        Ok(())
    }

    /// The system's number of a process that runs.
    pub(crate) fn id(&self, name: &str) -> Option<u32> {
        let running = self.running.get(name).filter(|running| !running.killed)?;
        Some(running.child.id())
    }

    /// Where a process writes its log.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// SIGTERM for all, SIGKILL for those that do not listen.
    pub(crate) fn stop_all(&mut self) {
        self.running
            .retain(|_, running| matches!(running.child.try_wait(), Ok(None)));
        self.running
            .values()
            .for_each(|running| running.signal(Signal::SIGTERM));
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && !self.running.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
            self.running
                .retain(|_, running| matches!(running.child.try_wait(), Ok(None)));
        }
        for (name, mut running) in std::mem::take(&mut self.running) {
            running.signal(Signal::SIGKILL);
            if let Err(error) = running.child.wait() {
                tracing::warn!(name, %error, "a process could not be waited for");
            }
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl Running {
    /// To the process and all it has started. One that has gone meanwhile is as it should be.
    fn signal(&self, signal: Signal) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _gone = killpg(Pid::from_raw(id), signal);
        }
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
