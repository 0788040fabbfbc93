//! One run of a program that is asked something: it ends, or it is ended.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
};

use super::PROGRAM_PATH;

/// The most of a program's own words that goes into one of ours.
const WORDS_MAX: usize = 300;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Invocation {
    /// The program: a name on [`PROGRAM_PATH`], or a path.
    pub(crate) program: String,
    /// Its arguments, each as it is.
    pub(crate) args: Vec<String>,
    /// Its environment, beside the path, the locale and a home.
    pub(crate) env: BTreeMap<String, String>,
    /// Where it runs.
    pub(crate) folder: PathBuf,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// How much it may say on each of its outputs.
    pub(crate) output_bytes_max: usize,
}

/// How a program ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Why a program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// It could not be started.
    #[error("{program} could not be started; is it installed?")]
    NotStarted { program: String, source: io::Error },
    /// It took too long.
    #[error("{program} took longer than {limit_s} s and was ended with all it had started")]
    Limit { program: String, limit_s: u64 },
    /// It said too much.
    #[error("{program} said more than {bytes_max} bytes and was ended with all it had started")]
    TooMuch { program: String, bytes_max: usize },
    /// It ended with a status that does not mean success.
    #[error("{program} ended with {status}{words}")]
    Status {
        program: String,
        status: ExitStatus,
        words: String,
    },
    /// Its output could not be read.
    #[error("what {program} says could not be read")]
    Read { program: String, source: io::Error },
}

impl ToolError {
    /// Whether the same run may succeed later: a program that is not there or says no stays so.
    pub(crate) fn retry(&self) -> bool {
        match self {
            Self::NotStarted { source, .. } => {
                use io::ErrorKind::{NotFound, PermissionDenied};
                !matches!(source.kind(), NotFound | PermissionDenied)
            }
            Self::Limit { .. } | Self::Read { .. } => true,
            Self::TooMuch { .. } | Self::Status { .. } => false,
        }
    }
}

impl Ended {
    /// What it said last, for a message: of its errors, else of its output.
    pub(crate) fn words(&self) -> String {
        let said = if self.stderr.iter().any(|byte| !byte.is_ascii_whitespace()) {
            &self.stderr
        } else {
            &self.stdout
        };
        last_words(said)
    }

    pub(crate) fn failure(&self, program: &str) -> ToolError {
        ToolError::Status {
            program: program.to_owned(),
            status: self.status,
            words: self.words(),
        }
    }
}

/// The end of what a program said, in one line that begins with a colon; nothing if it said nothing.
pub(crate) fn last_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: Vec<char> = line.chars().filter(|c| !c.is_control()).collect();
    let end: String = line[line.len().saturating_sub(WORDS_MAX)..].iter().collect();
    if end.is_empty() { end } else { format!(": {end}") }
}

/// Runs a program that only asks: it ends with us, and whatever it started ends with it.
pub(crate) async fn ask(invocation: &Invocation) -> Result<Ended, ToolError> {
    let program = &invocation.program;
    let mut child = command(invocation)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| not_started(program, source))?;
    let group = Group::of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let most = invocation.output_bytes_max;
    // The leader is not waited for before its outputs have ended: until then its number is nobody else's.
    let said = tokio::time::timeout(invocation.limit, async {
        tokio::try_join!(read(stdout, most), read(stderr, most))
    });
    let (stdout, stderr) = match said.await {
        Err(_elapsed) => {
            let (program, limit_s) = (program.clone(), invocation.limit.as_secs());
            return Err(ToolError::Limit { program, limit_s });
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
            let (program, bytes_max) = (program.clone(), most);
            return Err(ToolError::TooMuch { program, bytes_max });
        }
        Ok(said) => said.map_err(|source| unread(program, source))?,
    };
    // It may close its outputs and go on.
    match tokio::time::timeout(invocation.limit, child.wait()).await {
        Err(_elapsed) => {
            let (program, limit_s) = (program.clone(), invocation.limit.as_secs());
            Err(ToolError::Limit { program, limit_s })
        }
        Ok(status) => {
            group.leave();
            let status = status.map_err(|source| unread(program, source))?;
            Ok(Ended { status, stdout, stderr })
        }
    }
}

/// The command, with nothing of our own environment.
pub(super) fn command(invocation: &Invocation) -> Command {
    let mut command = Command::new(located(&invocation.program));
    command
        .args(&invocation.args)
        .current_dir(&invocation.folder)
        .process_group(0)
        .env_clear()
        .env("PATH", PROGRAM_PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", &invocation.folder)
        .envs(&invocation.env);
    command
}

/// Where a program is; as named if it is nowhere, so that the start says so.
fn located(program: &str) -> PathBuf {
    let named = PathBuf::from(program);
    if program.contains('/') {
        return named;
    }
    let mut places = PROGRAM_PATH.split(':').map(|folder| Path::new(folder).join(program));
    places.find(|path| path.is_file()).unwrap_or(named)
}

pub(super) fn not_started(program: &str, source: io::Error) -> ToolError {
    let program = program.to_owned();
    ToolError::NotStarted { program, source }
}

pub(super) fn unread(program: &str, source: io::Error) -> ToolError {
    let program = program.to_owned();
    ToolError::Read { program, source }
}

async fn read(output: Option<impl AsyncRead + Unpin>, most: usize) -> io::Result<Vec<u8>> {
    let Some(output) = output else { return Ok(Vec::new()) };
    let mut said = Vec::new();
    output.take(most as u64 + 1).read_to_end(&mut said).await?;
    if said.len() > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(said)
}

/// A process group that ends with this value, unless it is gone already.
#[derive(Debug)]
pub(super) struct Group(Option<Pid>);

impl Group {
    pub(super) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// Its leader has been waited for: its number may soon be somebody else's.
    pub(super) fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(leader) = self.0 else { return };
        match killpg(leader, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(%leader, %error, "a process group could not be ended"),
        }
    }
}
