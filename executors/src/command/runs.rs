//! What is run for a device: the tool itself, the questions, the resets.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use firmesh_executors_core::{ActError, Rung};
use firmesh_protocol::ids::Sha256;
use tokio::task::spawn_blocking;

use super::{
    CommandSettings,
    description::{Fact, Meaning, Query, Run},
    template::{Template, Values},
};
use crate::{
    backend::chain,
    tool::{Ended, Errand, ErrandError, FetchError, Invocation, ToolError, ask, digest_of},
    trace,
};

/// What a question's answer may be long.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What is read of a device at most, to find a version in it or to compare it.
const CONTENT_BYTES_MAX: u64 = 1 << 30;
/// What is run for the device, and where.
#[derive(Debug)]
pub(super) struct Tool {
    pub(super) settings: CommandSettings,
    pub(super) errand: Errand,
}

/// Why an act failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Errand(#[from] ErrandError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("could not read {path}, which {program} should have written")]
    Out {
        program: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("could not use the tool's folder {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("{program} did not tell: {problem}")]
    Answer { program: String, problem: String },
    #[error("what the tool says could not be kept within its bounds")]
    Output(#[source] io::Error),
    #[error("the device is {} {} now, and was {} {} when it was looked at: another is in its place", .found.0, .found.1, .known.0, .known.1)]
    Replaced {
        known: (String, String),
        found: (String, String),
    },
    /// Nobody knows how far it came.
    #[error("{words}: the device is looked at before anything else is done")]
    Killed { words: String },
    #[error("an earlier run of the tool has not ended")]
    Busy,
    #[error("the device is being read back")]
    Reading,
    /// The tool's own word.
    #[error("{words}")]
    Refused { words: String, retry: bool },
    #[error("the device was read back after the tool ran{words}: {difference}")]
    ReadBack { words: String, difference: String },
    #[error("{words}: the device is unchanged")]
    Unchanged { words: String, retry: bool },
    #[error("the tool says that it has installed {version}, but the device shows {shown} and no reset is described")]
    NoEffect { version: String, shown: String },
    #[error("the description has no {0:?} reset")]
    NoReset(Rung),
    #[error("the description has {{{0}}}, for which there is nothing")]
    Placeholder(String),
    #[error("a part of the executor died")]
    Worker(#[source] tokio::task::JoinError),
}

impl CommandError {
    pub(super) fn retry(&self) -> bool {
        match self {
            Self::Tool(error) => error.retry(),
            Self::Fetch(error) => error.retry(),
            Self::Refused { retry, .. } | Self::Unchanged { retry, .. } => *retry,
            Self::Busy
            | Self::Reading
            | Self::Out { .. }
            | Self::Answer { .. }
            | Self::ReadBack { .. }
            | Self::Killed { .. }
            | Self::Output(_)
            | Self::Worker(_) => true,
            Self::Replaced { .. }
            | Self::Errand(_)
            | Self::Folder { .. }
            | Self::NoEffect { .. }
            | Self::NoReset(_)
            | Self::Placeholder(_) => false,
        }
    }
}

impl Tool {
    /// What the end of the tool means, with its words. One that was ended at its limit, or by a signal, has left what only
    /// the next look tells.
    pub(super) fn judge(
        &self,
        program: &str,
        ended: Result<Ended, ToolError>,
    ) -> Result<(Meaning, String), CommandError> {
        match ended {
            Ok(ended) if ended.status.code().is_none() => {
                let words = self.without_secrets(ended).failure(program).to_string();
                match self.settings.read_back {
                    Some(_) => Ok((Meaning::Fatal, words)),
                    None => Err(CommandError::Killed { words }),
                }
            }
            Ok(ended) => {
                let meaning = self.settings.install.meaning(ended.status.code(), &ended.stdout);
                let ended = self.without_secrets(ended);
                let words = match meaning {
                    Meaning::Done | Meaning::NeedsReset => ended.words(),
                    Meaning::Retry | Meaning::Fatal => ended.failure(program).to_string(),
                };
                Ok((meaning, words))
            }
            Err(error) if self.settings.read_back.is_some() => Ok((Meaning::Fatal, self.redacted(chain(&error)))),
            Err(error) => Err(error.into()),
        }
    }

    /// The image has been dealt with.
    pub(super) fn done(&self) -> Result<(), CommandError> {
        self.errand.forget()?;
        // It may be gigabytes. One that stays is used, or replaced, by the next.
        if let Err(error) = fs::remove_file(self.errand.path("image"))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "an image that is no longer needed could not be removed");
        }
        Ok(())
    }

    pub(super) async fn fact(&self, fact: &Fact) -> Result<String, CommandError> {
        match fact {
            Fact::Known(text) => Ok(text.clone()),
            Fact::Asked(query) => self.query(query).await,
        }
    }

    pub(super) async fn version(&self) -> Result<String, CommandError> {
        self.query(&self.settings.version).await
    }

    pub(super) async fn boot_id(&self) -> Result<Option<String>, CommandError> {
        match &self.settings.boot_id {
            Some(query) => self.query(query).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn query(&self, query: &Query) -> Result<String, CommandError> {
        let (invocation, ended, out) = self.run_for(&query.run).await?;
        let program = invocation.program;
        let said = if query.answers_in_file {
            read_out(&program, out).await?
        } else {
            ended.stdout
        };
        query
            .answer(&said)
            .map_err(|problem| CommandError::Answer { program, problem })
    }

    /// The digest of what the device holds; nothing if it cannot be read back.
    pub(super) async fn read_back(&self) -> Result<Option<Sha256>, CommandError> {
        let Some(run) = &self.settings.read_back else {
            return Ok(None);
        };
        let (invocation, _ended, path) = self.run_for(run).await?;
        let digest = blocking({
            let path = path.clone();
            move || digest_of(&path)
        });
        let program = invocation.program;
        let digest = digest
            .await?
            .map_err(|source| CommandError::Out { program, path, source })?;
        Ok(Some(digest))
    }

    /// Where what was read back differs from the image, for a person.
    pub(super) async fn difference(&self) -> Result<String, CommandError> {
        let (image, out) = (self.errand.path("image"), self.errand.path("out"));
        let path = out.clone();
        let compared = blocking(move || first_difference(&image, &out)).await?;
        let program = "the tool".to_owned();
        let found = compared.map_err(|source| CommandError::Out { program, path, source })?;
        Ok(found.map_or_else(
            || "it differed from the image, and no longer does".to_owned(),
            |at| format!("it differs from the image at byte {at} ({at:#x}) first"),
        ))
    }

    /// Runs something that only asks, and must succeed; answers also where `{out}` is.
    pub(super) async fn run_for(&self, run: &Run) -> Result<(Invocation, Ended, PathBuf), CommandError> {
        let out = self.errand.path("out");
        match fs::remove_file(&out) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CommandError::Folder {
                    path: out,
                    source: error,
                });
            }
            _ => {}
        }
        let mut values = self.settings.values.clone();
        values.insert("out".to_owned(), out.display().to_string());
        let invocation = self.invocation(run, values)?;
        let ended = ask(&invocation).await?;
        if ended.status.success() {
            return Ok((invocation, ended, out));
        }
        let words = self.without_secrets(ended).failure(&invocation.program).to_string();
        Err(CommandError::Refused { words, retry: true })
    }

    pub(super) fn invocation(&self, run: &Run, mut values: Values) -> Result<Invocation, CommandError> {
        let scratch = self.errand.path("scratch");
        fs::create_dir_all(&scratch).map_err(|source| CommandError::Folder {
            path: scratch.clone(),
            source,
        })?;
        values.insert("scratch".to_owned(), scratch.display().to_string());
        let fill = |template: &Template| template.fill(&values).map_err(CommandError::Placeholder);
        let (program, folder) = (fill(&run.program)?, run.folder.as_ref().map(fill).transpose()?);
        let args = run.args.iter().map(fill).collect::<Result<_, _>>()?;
        let mut all = values.clone();
        all.extend(
            self.settings
                .secrets
                .iter()
                .map(|(name, secret)| (name.clone(), secret.expose().to_owned())),
        );
        let env = self.settings.env.iter();
        let env =
            env.map(|(name, template)| Ok((name.clone(), template.fill(&all).map_err(CommandError::Placeholder)?)));
        let mut env = env.collect::<Result<BTreeMap<_, _>, CommandError>>()?;
        if let Some(context) = trace::context() {
            // What the description says goes before it.
            env.entry(trace::VARIABLE.to_owned())
                .or_insert_with(|| context.to_string());
        }
        Ok(Invocation {
            program,
            args,
            env,
            folder: folder.map_or(scratch, PathBuf::from),
            limit: run.limit,
            output_bytes_max: ANSWER_BYTES_MAX,
        })
    }

    pub(super) fn may_reset(&self) -> bool {
        self.settings.resets.iter().any(Option::is_some)
    }

    pub(super) fn reset_of(&self, rung: Rung) -> Option<&Run> {
        let at = match rung {
            Rung::Bmc => 0,
            Rung::Warm => 1,
            Rung::Cold => 2,
            Rung::Ac => 3,
        };
        self.settings.resets[at].as_ref()
    }

    pub(super) async fn restart(&self, rung: Rung) -> Result<(), CommandError> {
        let run = self.reset_of(rung).ok_or(CommandError::NoReset(rung))?;
        self.run_for(run).await.map(drop)
    }

    /// Before words are cut: of a secret that is cut in two, neither half would be known.
    fn without_secrets(&self, mut ended: Ended) -> Ended {
        for said in [&mut ended.stdout, &mut ended.stderr] {
            *said = self.redacted(String::from_utf8_lossy(said).into_owned()).into_bytes();
        }
        ended
    }

    pub(super) fn redacted(&self, mut words: String) -> String {
        for secret in self.settings.secrets.values() {
            words = words.replace(secret.expose(), "(redacted)");
        }
        words
    }

    pub(super) fn act_error(&self, error: &CommandError) -> ActError {
        ActError {
            reason: self.redacted(chain(error)),
            retry: error.retry(),
        }
    }
}

async fn read_out(program: &str, path: PathBuf) -> Result<Vec<u8>, CommandError> {
    let program = program.to_owned();
    blocking(move || {
        let read = || {
            let mut said = Vec::new();
            File::open(&path)?.take(CONTENT_BYTES_MAX + 1).read_to_end(&mut said)?;
            match said.len() as u64 > CONTENT_BYTES_MAX {
                true => Err(io::Error::other(format!("it has more than {CONTENT_BYTES_MAX} bytes"))),
                false => Ok(said),
            }
        };
        read().map_err(|source| CommandError::Out { program, path, source })
    })
    .await?
}

/// The first byte in which two files differ, or where one of them ends.
fn first_difference(a: &Path, b: &Path) -> io::Result<Option<u64>> {
    let mut files = [File::open(a)?, File::open(b)?]
        .map(io::BufReader::new)
        .map(|file| file.bytes());
    for at in 0.. {
        let [a, b] = files.each_mut().map(Iterator::next);
        match (a.transpose()?, b.transpose()?) {
            (None, None) => break,
            (a, b) if a != b => return Ok(Some(at)),
            _ => {}
        }
    }
    Ok(None)
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, CommandError> {
    spawn_blocking(act).await.map_err(CommandError::Worker)
}
