//! A program of the operator's that has hosts step aside: one program, three verbs, judged by its exit status.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use firmesh_executors_core::{ActError, HostSeen};
use serde::{Deserialize, Serialize};

use super::config::ScriptSettings;
use crate::{
    backend::chain,
    tool::{Ended, Errand, ErrandError, Invocation, ToolError, ask},
};

/// What `state` ends with for a host that has stepped aside; 0 is for one in service, anything else says that nobody knows.
const ASIDE: i32 = 10;
/// What `enter` ends with if it may work later, by the custom of `sysexits.h`; anything else but 0 is a refusal.
const NOT_NOW: i32 = 75;
/// What the program may say.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Script {
    settings: ScriptSettings,
    host: String,
    /// What changes the host goes on when this process dies, and is found again: half a drain is nobody's.
    errand: Errand,
    folder: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verb {
    Enter,
    Exit,
    State,
}

/// What is under way.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    verb: Verb,
    /// Since when, in seconds of Unix time; nobody knows of one that an earlier version wrote.
    #[serde(default)]
    since_unix_s: Option<u64>,
}

impl Note {
    fn now(verb: Verb) -> Self {
        let since_unix_s = Some(unix_s());
        Self { verb, since_unix_s }
    }
}

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[derive(Debug, thiserror::Error)]
enum ScriptError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Errand(#[from] ErrandError),
    #[error("the arguments name {{{0}}}, for which there is nothing")]
    Placeholder(String),
    #[error("an earlier run of it has not ended")]
    Busy,
    #[error("{words}")]
    Failed { words: String, retry: bool },
}

impl ScriptError {
    fn retry(&self) -> bool {
        match self {
            Self::Tool(error) => error.retry(),
            Self::Failed { retry, .. } => *retry,
            Self::Errand(_) | Self::Busy => true,
            Self::Placeholder(_) => false,
        }
    }
}

impl Script {
    pub(super) fn new(settings: ScriptSettings, host: &str, folder: PathBuf) -> Self {
        Self {
            settings,
            host: host.to_owned(),
            errand: Errand::new(folder.clone()),
            folder,
        }
    }

    pub(super) async fn look(&self) -> HostSeen {
        match self.state().await {
            Ok(seen) => seen,
            Err(error) => HostSeen::Unknown {
                why: self.act_error(&error).reason,
            },
        }
    }

    pub(super) async fn enter(&self) -> Result<(), ActError> {
        let ended = self.change(Verb::Enter).await;
        let judged = ended.and_then(|(program, ended)| match ended.status.code() {
            Some(0) => Ok(()),
            code => Err(ScriptError::Failed {
                words: self.words(&ended, &program),
                // Whoever was killed did not say no.
                retry: code.is_none_or(|code| code == NOT_NOW),
            }),
        });
        judged.map_err(|error| self.act_error(&error))
    }

    pub(super) async fn leave(&self) -> Result<(), ActError> {
        let ended = async {
            self.end_earlier().await?;
            self.change(Verb::Exit).await
        };
        let judged = ended.await.and_then(|(program, ended)| match ended.status.success() {
            true => Ok(()),
            false => Err(ScriptError::Failed {
                words: self.words(&ended, &program),
                retry: true,
            }),
        });
        judged.map_err(|error| self.act_error(&error))
    }

    async fn state(&self) -> Result<HostSeen, ScriptError> {
        self.errand.prepare()?;
        if self.errand.is_running()? {
            return Err(ScriptError::Busy);
        }
        let invocation = self.invocation(Verb::State)?;
        let ended = ask(&invocation).await?;
        Ok(match ended.status.code() {
            Some(0) => HostSeen::InService,
            Some(ASIDE) => HostSeen::Aside,
            _ => HostSeen::Unknown {
                why: self.words(&ended, &invocation.program),
            },
        })
    }

    async fn change(&self, verb: Verb) -> Result<(String, Ended), ScriptError> {
        self.errand.prepare()?;
        if self.errand.is_running()? {
            return Err(ScriptError::Busy);
        }
        let invocation = self.invocation(verb)?;
        self.errand.write_note(&Note::now(verb))?;
        let ended = self.errand.run(&invocation).await?;
        Ok((invocation.program, ended))
    }

    /// A preparation of before a crash that is still at it would undo what comes; a giving back has its limit, whoever waits for
    /// it.
    async fn end_earlier(&self) -> Result<(), ScriptError> {
        self.errand.prepare()?;
        let note: Option<Note> = self.errand.note()?;
        let Some(Note { verb, since_unix_s }) = note else {
            return Ok(());
        };
        if !self.errand.is_running()? {
            return Ok(());
        }
        let age_s = since_unix_s.and_then(|since| unix_s().checked_sub(since));
        match (verb, age_s) {
            (Verb::Enter, _) => self.errand.end().await?,
            (_, Some(age_s)) if age_s >= u64::from(self.settings.limit_s) => self.errand.end().await?,
            (_, Some(_)) => {}
            // Nobody knows for how long, or the clock was set back: from now on.
            (verb, None) => self.errand.write_note(&Note::now(verb))?,
        }
        Ok(())
    }

    fn invocation(&self, verb: Verb) -> Result<Invocation, ScriptError> {
        let (word, limit_s) = match verb {
            Verb::Enter => ("enter", self.settings.limit_s),
            Verb::Exit => ("exit", self.settings.limit_s),
            Verb::State => ("state", self.settings.state_limit_s),
        };
        let mut values = BTreeMap::from(
            [("verb", word), ("host", &self.host)].map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let run = &self.settings.run;
        let args = run
            .iter()
            .map(|text| text.fill(&values).map_err(ScriptError::Placeholder));
        let mut args = args.collect::<Result<Vec<_>, _>>()?;
        let secrets = self.settings.secrets.iter();
        values.extend(secrets.map(|(name, secret)| (name.clone(), secret.expose().to_owned())));
        let env = self.settings.env.iter().map(|(name, text)| {
            let text = text.fill(&values).map_err(ScriptError::Placeholder)?;
            Ok((name.clone(), text))
        });
        Ok(Invocation {
            env: env.collect::<Result<_, ScriptError>>()?,
            // Its configuration has been checked: it names a program.
            program: if args.is_empty() { String::new() } else { args.remove(0) },
            args,
            folder: self.folder.clone(),
            limit: Duration::from_secs(limit_s.into()),
            output_bytes_max: OUTPUT_BYTES_MAX,
        })
    }

    /// Redacted before it is cut: of a secret that is cut in two, neither half would be known.
    fn words(&self, ended: &Ended, program: &str) -> String {
        let said = |said: &[u8]| self.redacted(String::from_utf8_lossy(said).into_owned()).into_bytes();
        let ended = Ended {
            status: ended.status,
            stdout: said(&ended.stdout),
            stderr: said(&ended.stderr),
        };
        ended.failure(program).to_string()
    }

    fn redacted(&self, mut words: String) -> String {
        for secret in self.settings.secrets.values() {
            words = words.replace(secret.expose(), "(redacted)");
        }
        words
    }

    fn act_error(&self, error: &ScriptError) -> ActError {
        ActError {
            reason: self.redacted(chain(error)),
            retry: error.retry(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::host::config::{HostConfig, PreparationSettings};

    /// A host that is a file, and a program that says what it is told to.
    fn script(folder: &Path, body: &str) -> Script {
        fs::write(folder.join("aside"), body).unwrap();
        fs::write(folder.join("token"), "s3cret\n").unwrap();
        let text = format!(
            "name = \"h1\"\nprepare = {{ kind = \"script\", run = [\"sh\", {:?}, \"{{verb}}\", \"{{host}}\"], limit_s = 20, \
             secret_files = {{ token = \"token\" }}, env = {{ TOKEN = \"{{token}}\", PLACE = {:?} }} }}",
            folder.join("aside"),
            folder
        );
        let config: HostConfig = toml::from_str(&text).unwrap();
        let settings = config.check(folder, None).unwrap();
        let PreparationSettings::Script(settings) = settings.preparation else {
            panic!("a script")
        };
        Script::new(settings, "h1", folder.join("work"))
    }

    #[tokio::test]
    async fn verbs_are_judged_by_their_exit_status_and_no_word_has_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let body = "case $1 in state) test -e $PLACE/$2.aside && exit 10; exit 0;; enter) touch $PLACE/$2.aside;; \
                    exit) rm -f $PLACE/$2.aside;; esac";
        let script = script(folder.path(), body);
        assert_eq!(script.look().await, HostSeen::InService);
        assert_eq!(script.enter().await, Ok(()));
        assert_eq!(script.look().await, HostSeen::Aside);
        assert_eq!(script.leave().await, Ok(()));
        assert_eq!(script.leave().await, Ok(()));
        assert_eq!(script.look().await, HostSeen::InService);
    }

    #[tokio::test]
    async fn not_now_is_tried_again_and_no_is_no() {
        let folder = tempfile::tempdir().unwrap();
        let script = script(
            folder.path(),
            "echo \"my token is $TOKEN\"; cat $PLACE/status >&2; exit $(cat $PLACE/status)",
        );
        for (status, retry) in [("75", true), ("1", false)] {
            fs::write(folder.path().join("status"), status).unwrap();
            let error = script.enter().await.unwrap_err();
            assert_eq!(error.retry, retry, "{error}");
            assert!(
                !error.reason.contains("s3cret") && error.reason.contains("(redacted)"),
                "{error}"
            );
            assert!(script.leave().await.unwrap_err().retry);
            assert!(matches!(script.look().await, HostSeen::Unknown { .. }));
        }
    }

    /// The node was killed while the host was entered: the program has gone on alone.
    #[tokio::test]
    async fn what_has_a_host_step_aside_is_ended_before_the_host_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let body = "case $1 in enter) touch $PLACE/began; sleep 60; touch $PLACE/done;; exit) touch $PLACE/left;; esac";
        let script = script(folder.path(), body);
        let given_up = async {
            while !folder.path().join("began").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = script.enter() => panic!("it has ended"),
            () = given_up => {}
        }
        assert!(matches!(script.look().await, HostSeen::Unknown { why } if why.contains("has not ended")));
        assert_eq!(script.leave().await, Ok(()));
        assert!(folder.path().join("left").exists() && !folder.path().join("done").exists());
        assert!(!script.errand.is_running().unwrap());
    }
    /// The node was killed while the host was given back, and the program hangs: nobody ended it, and the host stayed aside.
    #[tokio::test]
    async fn a_giving_back_that_outlived_its_node_and_hangs_is_ended_at_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let body =
            "case $1 in exit) test -e $PLACE/began && touch $PLACE/left && exit 0; touch $PLACE/began; sleep 60;; esac";
        let script = script(folder.path(), body);
        let given_up = async {
            while !folder.path().join("began").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = script.leave() => panic!("it has ended"),
            () = given_up => {}
        }
        // It has its time, also where nobody knows when it began, or that seems to be later.
        for since_unix_s in [Some(unix_s() - 10), None, Some(unix_s() + 3_600)] {
            let verb = Verb::Exit;
            script.errand.write_note(&Note { verb, since_unix_s }).unwrap();
            let error = script.leave().await.unwrap_err();
            assert!(error.retry && error.reason.contains("has not ended"), "{error}");
            let note: Note = script.errand.note().unwrap().unwrap();
            assert!(note.since_unix_s.is_some_and(|since| since <= unix_s()));
        }
        let (verb, since_unix_s) = (Verb::Exit, Some(unix_s() - 20));
        script.errand.write_note(&Note { verb, since_unix_s }).unwrap();
        assert_eq!(script.leave().await, Ok(()));
        assert!(folder.path().join("left").exists() && !script.errand.is_running().unwrap());
    }
}
