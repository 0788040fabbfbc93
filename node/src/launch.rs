//! The launcher: starts the node's program of the slot whose turn it is, and outlives it. What is started when is decided by
//! `firmesh-executors-core`; here are the processes, signals, files and the clock.
//!
//! Invariants: one node at a time; a node dies with its launcher, so that the next launcher finds none; the slots' file is only written
//! while no node runs.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use firmesh_executors::{
    Slot,
    node_self::{Ended, Launched, Launcher, LauncherInput, LauncherOutput, NotStarted, Program, SlotsFolder},
};
use firmesh_protocol::time::Timestamp;
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, getppid},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use tracing::{info, warn};

use crate::own::launched;

/// How often a node on trial is looked at for its word that it works.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What this process runs, whatever has become of its file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The folder's name cannot be used.
    #[error("--launch: {path} cannot be used as the folder of the slots")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No runtime, no signals.
    #[error("the launcher cannot begin")]
    Begin(#[source] io::Error),
    /// The program that runs cannot be waited for.
    #[error("the node cannot be waited for")]
    Wait(#[source] io::Error),
}

/// Starts nodes with these arguments until there is nothing more to start; answers the status to end with.
pub fn launch(dir: &Path, args: &[OsString]) -> Result<u8, LaunchError> {
    let folder = std::path::absolute(dir).and_then(|dir| match dir.to_str() {
        Some(_) => Ok(SlotsFolder::new(dir)),
        None => Err(io::Error::other("its path is not UTF-8")),
    });
    let folder = folder.map_err(|source| LaunchError::Folder {
        path: dir.to_owned(),
        source,
    })?;
    // One thread, the first: what a node is tied to is the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LaunchError::Begin)?;
    let shell = Shell {
        folder,
        args,
        launcher: Launcher::new(crate::VERSION.to_owned()),
        began: Instant::now(),
        child: None,
        word: None,
        signal: Signal::SIGTERM,
    };
    runtime.block_on(shell.run())
}

/// Ties this process to the launcher that started it, if one did: it dies with its launcher, as it may at any moment.
pub fn stay_with_launcher() -> Result<(), &'static str> {
    let Some(launched) = launched() else { return Ok(()) };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL) {
        warn!(%error, "this node would outlive its launcher");
    }
    // It may have died before it was asked.
    let parent = u32::try_from(getppid().as_raw()).unwrap_or(0);
    if parent == launched.pid {
        Ok(())
    } else {
        Err("the launcher that started this node is gone; the next one starts another")
    }
}

struct Shell<'a> {
    folder: SlotsFolder,
    args: &'a [OsString],
    launcher: Launcher,
    began: Instant,
    child: Option<Child>,
    /// What the node last said of whether it works.
    word: Option<Vec<u8>>,
    /// What it is asked to end by: what we were asked by, if we were.
    signal: Signal,
}

impl Shell<'_> {
    async fn run(mut self) -> Result<u8, LaunchError> {
        let mut asked = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
            .map(signal)
            .into_iter()
            .collect::<io::Result<Vec<_>>>()
            .map_err(LaunchError::Begin)?;
        loop {
            while let Some(output) = self.launcher.poll() {
                if let LauncherOutput::Exit(status) = output {
                    return Ok(status);
                }
                if let Some(input) = self.act(output) {
                    self.tell(input);
                }
            }
            let deadline = self.launcher.deadline();
            let wait = deadline.map(|at| at.since(self.now()).min(LOOK_EVERY));
            let [terminate, interrupt, hangup] = &mut asked[..] else {
                unreachable!("three were asked for")
            };
            tokio::select! {
                _ = terminate.recv() => self.asked_to_stop(Signal::SIGTERM),
                _ = interrupt.recv() => self.asked_to_stop(Signal::SIGINT),
                _ = hangup.recv() => self.asked_to_stop(Signal::SIGHUP),
                ended = ended(&mut self.child) => {
                    self.child = None;
                    self.tell(LauncherInput::Ended(said_of(ended.map_err(LaunchError::Wait)?)));
                }
                () = waited(wait) => self.look_and_tick(),
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::after_start(self.began.elapsed())
    }

    fn tell(&mut self, input: LauncherInput) {
        let now = self.now();
        self.launcher.handle(now, input);
    }

    fn asked_to_stop(&mut self, by: Signal) {
        self.signal = by;
        self.tell(LauncherInput::Stop);
    }

    /// Somebody is waited for: of what runs, that is only what is on trial.
    fn look_and_tick(&mut self) {
        if self.child.is_some() {
            let word = self.folder.word();
            if word.is_some() && word != self.word {
                self.word = word;
                self.tell(LauncherInput::Works);
            }
        }
        self.tell(LauncherInput::Tick);
    }

    fn act(&mut self, output: LauncherOutput) -> Option<LauncherInput> {
        match output {
            LauncherOutput::Look => {
                let slots = self.folder.read();
                let is_whole = |slot: &Slot| slots.as_ref().is_ok_and(|slots| self.folder.is_whole(slots, *slot));
                let whole = [Slot::A, Slot::B].into_iter().filter(is_whole).collect();
                let slots = slots.map(Box::new);
                Some(LauncherInput::Found { slots, whole })
            }
            LauncherOutput::Keep(slots) => {
                let kept = self.folder.keep(&slots);
                let kept = kept.map_err(|error| format!("{}: {error}", self.folder.file().display()));
                Some(LauncherInput::Kept(kept))
            }
            LauncherOutput::Start(program) => Some(LauncherInput::Started(self.start(program))),
            LauncherOutput::Stop => {
                self.send(self.signal);
                None
            }
            LauncherOutput::Kill => {
                self.send(Signal::SIGKILL);
                None
            }
            LauncherOutput::Say(text) => {
                warn!("{text}");
                None
            }
            LauncherOutput::Exit(_) => None,
        }
    }

    fn start(&mut self, program: Program) -> Result<(), NotStarted> {
        let path = match program {
            Program::Packaged => PathBuf::from(OWN_PROGRAM),
            Program::Slot(slot) => self.folder.program(slot),
        };
        let launched = Launched {
            pid: std::process::id(),
            dir: self.folder.path().display().to_string(),
            program,
            packaged: crate::VERSION.to_owned(),
        };
        // What another one has said there is not this one's word.
        self.word = self.folder.word();
        let started = Command::new(path)
            .arg0("firmesh-node")
            .args(self.args)
            .env(Launched::VARIABLE, launched.to_text())
            .stdin(Stdio::null())
            .spawn();
        match started {
            Ok(child) => {
                info!(program = %program, pid = child.id(), "started the node");
                self.child = Some(child);
                Ok(())
            }
            Err(error) => {
                use io::ErrorKind::{NotFound, PermissionDenied};
                let is_no_program = error.raw_os_error() == Some(nix::errno::Errno::ENOEXEC as i32);
                Err(NotStarted {
                    why: error.to_string(),
                    retry: !is_no_program && !matches!(error.kind(), NotFound | PermissionDenied),
                })
            }
        }
    }

    fn send(&self, signal: Signal) {
        // Not waited for yet, so the number is still its own.
        let id = self
            .child
            .as_ref()
            .and_then(Child::id)
            .and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id
            && let Err(error) = kill(Pid::from_raw(id), signal)
        {
            warn!(%error, %signal, "the node cannot be signalled");
        }
    }
}

async fn waited(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

async fn ended(child: &mut Option<Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn said_of(status: ExitStatus) -> Ended {
    let (how, status) = match (status.code(), status.signal()) {
        (Some(code), _) => (format!("it ended with exit status {code}"), code),
        (None, Some(signal)) => (format!("it was killed by signal {signal}"), 128 + signal),
        (None, None) => (format!("it ended with {status}"), 1),
    };
    Ended {
        how,
        status: u8::try_from(status).unwrap_or(1),
    }
}
