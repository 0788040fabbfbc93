//! What was said to a BMC and what it answered, as a file: for whoever has to find out what went wrong, and to be replayed
//! without the BMC.
//!
//! Invariants: a secret is taken out before anything is written, not after; a transcript is bounded, and says so where it
//! ends early; of headers only those are kept that decide something; a transcript that cannot be written stops nothing.

mod pack;
mod record;
mod redact;
mod replay;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead as _, BufReader},
    path::Path,
};

use firmesh_executors_core::{Image, Rung};
use firmesh_protocol::ids::{Component, DeviceId};
use reqwest::Request;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::pack::pack;
pub(super) use self::{record::Recorder, redact::Redaction, replay::Replay};
use crate::config::{RedfishSettings, TranscriptSettings, UpdateMethod};

/// The schema this version writes, and the only one it reads.
const SCHEMA: &str = "firmesh-redfish-transcript/1";
/// A line is one exchange: an answer has at most 4 MiB, and grows when it is written.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// Lines of one transcript that are read.
const LINES_MAX: usize = 100_000;

/// A transcript that was read: one attempt, or what was said while there was none.
#[derive(Debug, Clone)]
pub struct Transcript {
    head: Head,
    lines: Vec<Line>,
}

/// Why a file is not a transcript.
#[derive(Debug, thiserror::Error)]
pub enum TranscriptError {
    /// It could not be read.
    #[error("the transcript {path} cannot be read")]
    File {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A line that is none of a transcript.
    #[error("line {line} of the transcript {path} is none of a transcript")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Not what a transcript looks like.
    #[error("the transcript {path} {problem}")]
    Shape {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// Whose transcript it is, and what of its configuration decides what is said.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    schema: String,
    device: DeviceId,
    component: Component,
    /// When it begins.
    at: String,
    settings: Spoken,
}

/// The part of a BMC's configuration that a replay needs. Where it is, and its account, are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Spoken {
    pub(crate) system: Option<String>,
    pub(crate) manager: Option<String>,
    pub(crate) inventory: Option<String>,
    pub(crate) update: UpdateMethod,
    pub(crate) dialect: Option<String>,
    pub(crate) vendor: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) image_name: Option<String>,
    pub(crate) ac_reset: bool,
    /// Whether it is the BIOS's settings that are updated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) bios_settings: bool,
}

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Head(Head),
    Exchange(Exchange),
    /// What was asked of the executor, before what it said for that.
    Act(Act),
    /// There was no room for more.
    Full,
}

/// What an executor was asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Act {
    /// To bring this image.
    Stage { image: Box<Image> },
    /// To restart.
    Reset { rung: Rung },
    /// To give up what is under way.
    Abort,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    /// Milliseconds since the transcript began.
    at_ms: u64,
    request: Asked,
    answer: Told,
}

/// A request, without what is nobody's business.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    method: String,
    /// The path and the query.
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
}

/// An answer, without what is nobody's business.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Told {
    /// 0 if there was no answer.
    status: u16,
    /// Why there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_s: Option<u64>,
    /// Whether it opened a session.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    session: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    /// The length of a body that is no JSON, which is not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    other_bytes: Option<usize>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        match &self.body {
            Some(body) => write!(f, " {}", super::wire::short(&body.to_string())),
            None => Ok(()),
        }
    }
}

impl Asked {
    pub(super) fn of(request: &Request, parts: Option<Value>, redaction: &Redaction) -> Self {
        let url = request.url();
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let bytes = request.body().and_then(reqwest::Body::as_bytes);
        let body = parts.or_else(|| serde_json::from_slice(bytes?).ok());
        Self {
            method: request.method().to_string(),
            path: redaction.text(&path),
            body: body.map(|body| redaction.value(body)),
        }
    }

    /// Whether it changes nothing but who is logged in.
    fn is_harmless(&self) -> bool {
        self.method == "GET" || self.path.contains("/Sessions")
    }

    fn key(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// A question that was not asked when the transcript was made.
#[derive(Debug, thiserror::Error)]
#[error("the transcript has no answer to {asked}{instead}")]
pub struct NotRecorded {
    asked: String,
    /// What was said then.
    instead: String,
}

impl Transcript {
    /// Reads a transcript.
    ///
    /// # Errors
    /// If the file is none, by line.
    pub fn read(path: &Path) -> Result<Self, TranscriptError> {
        let name = path.display().to_string();
        let file = |source| TranscriptError::File {
            path: name.clone(),
            source,
        };
        let shape = |problem: &str| TranscriptError::Shape {
            path: name.clone(),
            problem: problem.to_owned(),
        };
        let mut reader = BufReader::new(File::open(path).map_err(file)?);
        let mut lines = Vec::new();
        loop {
            let mut text = String::new();
            let taken = io::Read::take(&mut reader, LINE_BYTES_MAX + 1).read_line(&mut text);
            let length = taken.map_err(file)?;
            if length == 0 {
                break;
            }
            if length as u64 > LINE_BYTES_MAX || lines.len() >= LINES_MAX {
                return Err(shape("is longer than any that is written"));
            }
            // A line without an end was being written when the process died.
            if !text.ends_with('\n') {
                break;
            }
            let line = serde_json::from_str(&text).map_err(|source| TranscriptError::Line {
                path: name.clone(),
                line: lines.len() + 1,
                source,
            })?;
            lines.push(line);
        }
        let mut lines = lines.into_iter();
        match lines.next() {
            Some(Line::Head(head)) if head.schema == SCHEMA => Ok(Self {
                head,
                lines: lines.collect(),
            }),
            _ => Err(shape(&format!("does not begin as one of {SCHEMA}"))),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn device(&self) -> &DeviceId {
        &self.head.device
    }

    /// The component that was looked at.
    #[must_use]
    pub fn component(&self) -> &Component {
        &self.head.component
    }

    /// The first image that was brought, if one was.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        self.lines.iter().find_map(|line| match line {
            Line::Act(Act::Stage { image }) => Some(&**image),
            _ => None,
        })
    }

    /// What the executor was asked to do.
    pub(super) fn settings(&self) -> &Spoken {
        &self.head.settings
    }
}

impl Head {
    fn of(settings: &TranscriptSettings, at: String) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            device: settings.device.clone(),
            component: settings.component.clone(),
            at,
            settings: settings.spoken.clone(),
        }
    }
}

impl Spoken {
    /// A BMC's configuration again, with an account and an address that are none.
    pub(super) fn settings(&self) -> Result<RedfishSettings, String> {
        let Self {
            system,
            manager,
            inventory,
            update,
            dialect,
            vendor,
            model,
            image_name,
            ac_reset,
            bios_settings,
        } = self.clone();
        if bios_settings {
            // What a node has known of the documents is in no transcript.
            return Err("transcripts of BIOS settings are for reading, and cannot be replayed".to_owned());
        }
        let url = "http://127.0.0.1:1/".parse();
        Ok(RedfishSettings {
            url: url.map_err(|error| format!("{error}"))?,
            username: "replayed-user".to_owned(),
            password: crate::Secret::new("replayed-password".to_owned()),
            ca_pem: Vec::new(),
            system,
            manager,
            inventory,
            update,
            dialects: std::sync::Arc::new(super::Dialects::new(&[], dialect)?),
            vendor,
            model,
            image_name,
            ac_reset,
            transcript: None,
            bios_settings: None,
        })
    }
}

#[cfg(test)]
mod attempts;
#[cfg(test)]
mod tests;
