//! Writing down what was said, as it is said: a file for each attempt, and one for what was said between two.
//!
//! A file begins with the last answers that were known, so that it can be replayed by itself. What a BMC answers as it did
//! before is not written again: a device that is looked at every ten seconds fills no disk.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use reqwest::StatusCode;
use serde_json::Value;

use super::{super::client::Answer, Act, Asked, Exchange, Head, Line, Redaction, Told};
use crate::config::TranscriptSettings;

/// Writes the transcripts of one device.
#[derive(Debug)]
pub(in crate::redfish) struct Recorder {
    settings: TranscriptSettings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Option<(File, PathBuf)>,
    began: Instant,
    written: u64,
    /// There is no room in the file any more, or it cannot be written.
    is_closed: bool,
    /// An attempt is over: the next one has a file of its own.
    is_over: bool,
    /// The file of that one.
    ended: Option<PathBuf>,
    /// The image that the file is about, once one was brought.
    image: Option<firmesh_protocol::ids::ArtifactId>,
    /// The last answer to each question, and their length in all.
    last: BTreeMap<String, (Asked, Told, usize)>,
    last_bytes: usize,
}

impl Recorder {
    pub(in crate::redfish) fn new(settings: TranscriptSettings) -> Self {
        let state = State {
            file: None,
            began: Instant::now(),
            written: 0,
            is_closed: false,
            is_over: false,
            ended: None,
            image: None,
            last: BTreeMap::new(),
            last_bytes: 0,
        };
        let state = Mutex::new(state);
        Self { settings, state }
    }

    /// Keeps an exchange. Small and rare enough to be written where it is met.
    pub(in crate::redfish) fn keep(&self, asked: Asked, answer: Result<&Answer, String>, redaction: &Redaction) {
        let told = match answer {
            Ok(answer) => Told::of(answer, redaction),
            Err(failed) => Told {
                failed: Some(failed),
                ..Told::default()
            },
        };
        self.with(|recorder, state| {
            if asked.method == "GET" && !state.is_news(&asked, &told, recorder.settings.bytes_max) {
                return Ok(());
            }
            let at_ms = u64::try_from(state.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let (request, answer) = (asked, told);
            recorder.write(state, &Line::Exchange(Exchange { at_ms, request, answer }))
        });
    }

    /// Keeps what the executor is asked to do.
    pub(in crate::redfish) fn act(&self, act: Act) {
        self.with(|recorder, state| {
            if let Act::Stage { image } = &act {
                // An image that is brought again is the same attempt, unless that was over.
                if state.is_over || state.image != Some(image.artifact.id) {
                    recorder.begin(state)?;
                }
                state.image = Some(image.artifact.id);
            }
            recorder.write(state, &Line::Act(act))
        });
    }

    /// The file of the attempt that was over last, if it has one: one that ended before an image was brought has none of its own.
    pub(in crate::redfish) fn file(&self) -> Option<PathBuf> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ended.clone()
    }

    /// The attempt is over.
    pub(in crate::redfish) fn over(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ended = match state.is_over {
            true => None,
            false => state.file.as_ref().map(|(_, path)| path.clone()),
        };
        state.is_over = true;
    }

    fn with(&self, write: impl FnOnce(&Self, &mut State) -> io::Result<()>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write(self, &mut state) {
            let (device, dir) = (&self.settings.device, self.settings.dir.display());
            tracing::warn!(%device, %dir, %error, "the transcript cannot be written and ends here");
            state.is_closed = true;
        }
    }

    fn write(&self, state: &mut State, line: &Line) -> io::Result<()> {
        if state.file.is_none() && !state.is_closed {
            self.begin(state)?;
        }
        if state.is_closed {
            return Ok(());
        }
        let full = text(&Line::Full)?;
        let text = text(line)?;
        let has_room = state.written + (text.len() + full.len()) as u64 <= self.settings.bytes_max;
        state.is_closed = !has_room;
        let text = if has_room { text } else { full };
        state.written += text.len() as u64;
        match &mut state.file {
            Some((file, _)) => file.write_all(&text),
            None => Ok(()),
        }
    }

    /// Begins a file with what is known.
    fn begin(&self, state: &mut State) -> io::Result<()> {
        let settings = &self.settings;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&settings.dir)?;
        let at = jiff::Timestamp::now();
        self.make_room()?;
        // Sorts by time; a second file of one millisecond has another number.
        let opened = (0..1000)
            .find_map(|number| {
                let name = format!("{}{:013}-{number:03}.jsonl", self.prefix(), at.as_millisecond());
                let path = settings.dir.join(name);
                let opened = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path);
                match opened {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                    opened => Some(opened.map(|file| (file, path))),
                }
            })
            .unwrap_or_else(|| Err(io::Error::other("a thousand transcripts in one millisecond")))?;
        state.file = Some(opened);
        (state.began, state.written) = (Instant::now(), 0);
        (state.is_closed, state.is_over, state.image) = (false, false, None);
        self.write(state, &Line::Head(Head::of(settings, at.to_string())))?;
        let known: Vec<Line> = state
            .last
            .values()
            .map(|(asked, told, _)| {
                Line::Exchange(Exchange {
                    at_ms: 0,
                    request: asked.clone(),
                    answer: told.clone(),
                })
            })
            .collect();
        known.iter().try_for_each(|line| self.write(state, line))
    }

    /// What the names of this device's transcripts begin with.
    fn prefix(&self) -> String {
        format!("{}.{}.", self.settings.device, self.settings.component)
    }

    /// Removes the oldest transcripts of this device, so that one more is not too many.
    fn make_room(&self) -> io::Result<()> {
        let prefix = self.prefix();
        let mut own: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(&self.settings.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".jsonl") {
                own.push(entry.path());
            }
        }
        own.sort();
        let too_many = (own.len() + 1).saturating_sub(self.settings.files_max);
        own.iter().take(too_many).try_for_each(fs::remove_file)
    }
}

impl State {
    /// Whether an answer says something new; remembers it.
    fn is_news(&mut self, asked: &Asked, told: &Told, bytes_max: u64) -> bool {
        let key = asked.key();
        if self.last.get(&key).is_some_and(|(_, last, _)| last == told) {
            return false;
        }
        if let Some((_, _, length)) = self.last.remove(&key) {
            self.last_bytes -= length;
        }
        let length = key.len() + told.body.as_ref().map_or(0, |body| body.to_string().len());
        // What has no room at the head of the next file is not carried over to it.
        if (self.last_bytes + length) as u64 <= bytes_max / 2 {
            self.last_bytes += length;
            self.last.insert(key, (asked.clone(), told.clone(), length));
        }
        true
    }
}

fn text(line: &Line) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
    text.push(b'\n');
    Ok(text)
}

impl Told {
    fn of(answer: &Answer, redaction: &Redaction) -> Self {
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let is_other = body.is_none() && !answer.body.is_empty();
        Self {
            status: answer.status.as_u16(),
            failed: None,
            location: answer.location.as_ref().map(|location| redaction.text(location)),
            retry_after_s: answer.retry_after.map(|asked| asked.as_secs()),
            session: answer.token.is_some() && answer.status != StatusCode::UNAUTHORIZED,
            body: body.map(|body| redaction.value(body)),
            other_bytes: is_other.then_some(answer.body.len()),
        }
    }
}
