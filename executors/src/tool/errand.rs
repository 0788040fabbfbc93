//! The run of a program that changes a device. It may outlive this process, for a flash that is cut short is worse than one
//! that nobody waits for.
//!
//! The program holds a lock from its first moment to its last: the lock is on its standard input, which everything it starts
//! inherits. So a process that takes over knows whether it still runs, with no number of a process to go by that could be
//! somebody else's by then. What it says goes into a file, not into a pipe that would break.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::{Pid, getpgid, getpgrp},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep, timeout};

use super::run::{Ended, Invocation, ToolError, command, not_started, unread};
use crate::ab_slot::{Disk, read_small};

/// Between two looks at a program that runs.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a program may say before its file is emptied.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// How long a program that was asked to end may take to leave things in order.
const GRACE: Duration = Duration::from_secs(3);
/// How long a killed program may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// A note is a few fields.
const NOTE_BYTES_MAX: u64 = 64 << 10;

/// A folder in which one program at a time is run for one device.
#[derive(Debug)]
pub(crate) struct Errand {
    folder: PathBuf,
    /// Whoever looks at the lock takes it for a moment.
    turn: Mutex<()>,
}

/// Why an errand's folder could not be used.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {path}")]
pub(crate) struct ErrandError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Errand {
    pub(crate) fn new(folder: PathBuf) -> Self {
        let turn = Mutex::new(());
        Self { folder, turn }
    }

    /// A file of this errand.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes the folder, if it is not there.
    pub(crate) fn prepare(&self) -> Result<(), ErrandError> {
        fs::create_dir_all(&self.folder).map_err(|error| self.failed("make", "", error))
    }

    /// What was noted before the program was run; `None` if there is no note.
    pub(crate) fn note<T: DeserializeOwned>(&self) -> Result<Option<T>, ErrandError> {
        let bytes = match read_small(&self.path("note.json"), NOTE_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| self.failed("read", "note.json", error))?,
        };
        let note = serde_json::from_slice(&bytes);
        note.map(Some)
            .map_err(|error| self.failed("read", "note.json", error.into()))
    }

    /// Notes durably what is about to be done, or how it stands.
    pub(crate) fn write_note(&self, note: &impl Serialize) -> Result<(), ErrandError> {
        let bytes = serde_json::to_vec(note).map_err(|error| self.failed("write", "note.json", error.into()))?;
        Disk::default()
            .replace(&self.path("note.json"), &bytes)
            .map_err(|error| self.failed("write", "note.json", error))
    }

    /// Forgets the note: nothing is under way.
    pub(crate) fn forget(&self) -> Result<(), ErrandError> {
        let forgotten = match fs::remove_file(self.path("note.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(&self.folder).and_then(|folder| folder.sync_all()),
        };
        forgotten.map_err(|error| self.failed("remove", "note.json", error))
    }

    /// Whether the program, or anything it started, runs.
    pub(crate) fn is_running(&self) -> Result<bool, ErrandError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = match File::open(self.path("running")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(|error| self.failed("open", "running", error))?,
        };
        match lock.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(self.failed("lock", "running", error)),
        }
    }

    /// Runs a program to its end or its limit. If this is given up in between, the program goes on.
    pub(crate) async fn run(&self, invocation: &Invocation) -> Result<Ended, ToolError> {
        let program = &invocation.program;
        let mut child = {
            let (lock, output, errors) = self.take().map_err(|source| not_started(program, source))?;
            command(invocation)
                .stdin(Stdio::from(lock))
                .stdout(output)
                .stderr(errors)
                .spawn()
                .map_err(|source| not_started(program, source))?
        };
        let ends = Instant::now() + invocation.limit;
        let mut status = None;
        loop {
            if status.is_none() {
                status = child.try_wait().map_err(|source| unread(program, source))?;
            }
            let gone = status.is_some() && !self.is_running().map_err(|error| unread(program, error.source))?;
            if gone && let Some(status) = status {
                let stdout = self.said().map_err(|source| unread(program, source))?;
                let stderr = Vec::new();
                return Ok(Ended { status, stdout, stderr });
            }
            if Instant::now() >= ends {
                self.end().await?;
                let (program, limit_s) = (program.clone(), invocation.limit.as_secs());
                return Err(ToolError::Limit { program, limit_s });
            }
            self.bound_output().map_err(|source| unread(program, source))?;
            // Wakes at once when it ends, which most do soon.
            if status.is_none() {
                let _ended_or_not_yet = timeout(LOOK_EVERY, child.wait()).await;
            } else {
                sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Ends the program and everything it started: asked first, then made to.
    pub(crate) async fn end(&self) -> Result<(), ToolError> {
        for (signal, within) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, GONE_WITHIN)] {
            let until = Instant::now() + within;
            self.signal(signal).map_err(|source| unread("/proc", source))?;
            while Instant::now() < until {
                if !self.is_running().map_err(|error| unread("the lock", error.source))? {
                    return Ok(());
                }
                sleep(LOOK_EVERY).await;
            }
        }
        let stuck = io::Error::other("a process that was killed is still there");
        Err(unread("the program under way", stuck))
    }

    /// What the program said, as far as it was kept.
    pub(crate) fn said(&self) -> io::Result<Vec<u8>> {
        let mut output = File::open(self.path("output"))?;
        let length = output.metadata()?.len();
        output.seek(io::SeekFrom::Start(length.saturating_sub(OUTPUT_BYTES_MAX)))?;
        let mut words = Vec::new();
        output.take(OUTPUT_BYTES_MAX).read_to_end(&mut words)?;
        Ok(words)
    }

    /// Takes the lock for a new program, with an empty file for what it says.
    fn take(&self) -> io::Result<(File, File, File)> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path("running");
        // An empty file: to read from it is to be at its end.
        File::options().create(true).append(true).open(&path)?;
        let lock = File::open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("an earlier run has not ended")),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let output = File::options().create(true).append(true).open(self.path("output"))?;
        output.set_len(0)?;
        let errors = output.try_clone()?;
        Ok((lock, output, errors))
    }

    /// Empties what it has said if that is too much.
    pub(crate) fn bound_output(&self) -> io::Result<()> {
        let output = File::options().append(true).open(self.path("output"))?;
        if output.metadata()?.len() > OUTPUT_BYTES_MAX {
            output.set_len(0)?;
        }
        Ok(())
    }

    /// Sends a signal to the groups of all processes that hold the lock on their standard input.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let lock = fs::metadata(self.path("running"))?;
        for process in fs::read_dir("/proc")? {
            let folder = process?.path();
            let holds = fs::metadata(folder.join("fd/0")).is_ok_and(|held| same(&held, &lock));
            let Some(pid) = pid_of(&folder).filter(|_| holds) else {
                continue;
            };
            match getpgid(Some(pid)) {
                Ok(group) if group != getpgrp() => match killpg(group, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error.into()),
                },
                Ok(_) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn failed(&self, operation: &'static str, name: &str, source: io::Error) -> ErrandError {
        let path = self.path(name);
        ErrandError {
            operation,
            path,
            source,
        }
    }
}

fn same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn pid_of(folder: &Path) -> Option<Pid> {
    let number = folder.file_name()?.to_str()?.parse().ok()?;
    Some(Pid::from_raw(number))
}
