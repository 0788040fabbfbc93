//! What people and machines see, and how a command ends.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use firmesh_coordinator::ceremony::{BundleError, FolderError};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::{client::RequestError, tuf::refusal_code};

/// An end that is neither success nor a fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Verdict {
    /// Exit status 3.
    #[error("refused: {0}")]
    Refused(String),
    /// Exit status 4.
    #[error("{0}")]
    NotConverged(String),
}

/// Standard output in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a machine reads.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// One answer: a value for machines, or lines for people.
    pub(crate) fn show(self, value: &impl Serialize, lines: impl FnOnce() -> Vec<String>) -> anyhow::Result<()> {
        if self.json {
            return self.text(&format!("{}\n", serde_json::to_string(value)?));
        }
        lines().iter().try_for_each(|line| self.text(&format!("{line}\n")))
    }

    /// Rows under headings, every column as wide as its widest cell.
    pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> Vec<String> {
        let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(|at| width(at).max(headings[at].len()));
        let line = |cells: [&str; N]| {
            let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let body = rows.iter().map(|row| line(std::array::from_fn(|at| row[at].as_str())));
        std::iter::once(line(headings)).chain(body).collect()
    }

    /// What a person should know, beside the answer.
    pub(crate) fn warn(self, text: &str) {
        // Nobody is left to tell if standard error is closed.
        let _ = writeln!(io::stderr(), "firmesh: {text}");
    }

    /// Whether a person at a terminal agrees; without one there is nobody to ask, and the command itself is the word.
    pub(crate) fn confirms(self, question: &str) -> anyhow::Result<bool> {
        if self.json || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(true);
        }
        self.text(&format!("{question} [y/N] "))?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
    }

    /// What a person at a terminal types; nothing where there is nobody to ask.
    pub(crate) fn asks(self, question: &str) -> anyhow::Result<Option<String>> {
        if self.json || !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(None);
        }
        self.text(question)?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(Some(answer.trim().to_owned()))
    }

    /// Text as it is.
    pub(crate) fn text(self, text: &str) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// A bar for `bytes`, on a terminal only.
    pub(crate) fn bar(self, doing: &'static str, bytes: u64) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        ProgressBar::new(bytes)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(doing)
    }

    /// Says what went wrong, once, and with which status the process ends.
    pub(crate) fn fail(self, error: &anyhow::Error) -> ExitCode {
        let is_closed_pipe = |cause: &(dyn std::error::Error + 'static)| {
            cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        };
        if error.chain().any(is_closed_pipe) {
            return ExitCode::SUCCESS;
        }
        let status = exit_status(error);
        let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        causes.dedup();
        let text = if self.json {
            let code = refusal_code(error);
            json!({ "error": causes[0], "causes": causes[1..], "code": code, "exit_status": status }).to_string()
        } else {
            format!("firmesh: {}", causes.join(": "))
        };
        // Nobody is left to tell if standard error is closed too.
        let _ = writeln!(io::stderr(), "{text}");
        ExitCode::from(status)
    }
}

fn exit_status(error: &anyhow::Error) -> u8 {
    let status = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(Verdict::Refused(_)) => Some(3),
        Some(Verdict::NotConverged(_)) => Some(4),
        None if cause.downcast_ref().is_some_and(FolderError::is_refusal) => Some(3),
        None if cause.downcast_ref().is_some_and(BundleError::is_refusal) => Some(3),
        None if cause.downcast_ref().is_some_and(RequestError::is_refusal) => Some(3),
        None => None,
    };
    error.chain().find_map(status).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_exit_status_tells_refusals_and_unfinished_campaigns_from_faults() {
        let refused = Err::<(), _>(Verdict::Refused("k of n".to_owned()))
            .context("publishing")
            .unwrap_err();
        assert_eq!(exit_status(&refused), 3);
        assert_eq!(exit_status(&Verdict::NotConverged("paused".to_owned()).into()), 4);
        let incomplete = FolderError::Incomplete {
            file: "root".to_owned(),
            version: 1,
            role: "root".to_owned(),
            have: 1,
            need: 2,
        };
        assert_eq!(exit_status(&incomplete.into()), 3);
        assert_eq!(exit_status(&anyhow::anyhow!("disk full")), 1);
    }

    #[test]
    fn tables_line_up() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(
            Output::table(["NAME", "N"], &rows),
            ["NAME    N", "a       1", "longer"]
        );
    }
}
