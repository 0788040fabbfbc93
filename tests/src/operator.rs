//! An operator at work: the real command line in a folder of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::binaries::Program;

/// How many keys each group of people has, and how many of them must sign.
pub const KEYS: u32 = 3;
/// How many of them must sign.
pub const THRESHOLD: u32 = 2;

/// An operator: a working folder with keys and trust folder, and a coordinator to talk to.
#[derive(Debug, Clone)]
pub struct Operator {
    folder: PathBuf,
    coordinator: String,
    token_file: Option<PathBuf>,
    variables: Vec<(String, String)>,
}

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// Standard output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {self:?}"))
    }
}

impl Operator {
    /// An operator without a coordinator: everything offline.
    #[must_use]
    pub fn offline(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            coordinator: "http://127.0.0.1:9".to_owned(),
            token_file: None,
            variables: Vec::new(),
        }
    }

    /// The same operator with one more environment variable.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same operator, now with a coordinator.
    #[must_use]
    pub fn with_coordinator(self, url: &str, token_file: &Path) -> Self {
        Self {
            coordinator: url.to_owned(),
            token_file: Some(token_file.to_owned()),
            ..self
        }
    }

    /// The same operator, with a coordinator and without a token: what `firmesh login` has left counts.
    #[must_use]
    pub fn with_login_at(self, url: &str) -> Self {
        Self {
            coordinator: url.to_owned(),
            token_file: None,
            ..self
        }
    }

    /// The working folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a command, whatever it says.
    pub fn run(&self, args: &[&str]) -> Result<Answer> {
        let mut command = Command::new(Program::Operator.path()?);
        command
            .args(args)
            .args(["--coordinator", &self.coordinator])
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
            .env("NO_COLOR", "1")
            .env_remove("FIRMESH_TOKEN")
            .env_remove("FIRMESH_COORDINATOR")
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        if let Some(file) = &self.token_file {
            command.arg("--token-file").arg(file);
        }
        let output = command.output().context("the command line cannot be started")?;
        Ok(Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
        })
    }

    /// Runs a command that must succeed; answers its JSON.
    pub fn ok(&self, args: &[&str]) -> Result<Value> {
        let answer = self.run(&[args, &["--json"]].concat())?;
        ensure!(answer.code == 0, "firmesh {} failed: {answer:?}", args.join(" "));
        answer.json()
    }

    /// Runs a command that must end with exit status `code`; answers what it said.
    pub fn refused(&self, code: i32, args: &[&str]) -> Result<String> {
        let answer = self.run(args)?;
        ensure!(
            answer.code == code,
            "firmesh {} should have ended with {code}: {answer:?}",
            args.join(" ")
        );
        Ok(answer.stderr)
    }

    /// Makes the keys of all people and draws up the first metadata, for a coordinator with this online key.
    pub fn hold_ceremony(&self, online_key: &str) -> Result<()> {
        std::fs::write(self.folder.join("online.pub"), format!("{online_key}\n"))?;
        let mut init = vec![
            "trust".to_owned(),
            "init".to_owned(),
            "--threshold".to_owned(),
            THRESHOLD.to_string(),
        ];
        for group in ["root", "release", "approver"] {
            for number in 1..=KEYS {
                let file = key_file(group, number);
                self.ok(&["key", "generate", "--unencrypted", &file])?;
                init.extend([format!("--{group}-key"), format!("{file}.pub")]);
            }
        }
        init.extend(["--online-key".to_owned(), "online.pub".to_owned()]);
        self.ok(&init.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.sign("root")
    }

    /// As many keys of a group as must sign, sign what waits for them.
    pub fn sign(&self, group: &str) -> Result<()> {
        for number in 1..=THRESHOLD {
            self.ok(&["trust", "sign", "--key", &key_file(group, number)])?;
        }
        Ok(())
    }
}

/// Where a person's key lies in the working folder.
#[must_use]
pub fn key_file(group: &str, number: u32) -> String {
    format!("keys/{group}-{number}")
}
