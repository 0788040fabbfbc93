//! A device behind a described tool, act by act.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use firmesh_executors_core::{ActError, Image, Observed, Rung, Seen, Slot, Staged, TaskSeen, TaskState};
use firmesh_protocol::{
    health::HealthSample,
    ids::{Component, Sha256},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    CommandSettings,
    description::Meaning,
    runs::{CommandError, Tool},
};
use crate::{
    backend::{DeviceBackend, chain},
    image::ImageSource,
    tool::{Errand, ToolError, fetch},
};

/// What a device reads as whose contents are neither the old nor the new image.
const INCOMPLETE: &str = "incomplete";

/// How long a look waits for the device to be read back; the reading goes on between looks.
const READ_BACK_PATIENCE: Duration = Duration::from_secs(10);

/// A device that a tool of its vendor updates.
#[derive(Debug)]
pub struct CommandBackend {
    tool: Arc<Tool>,
    component: Component,
    images: Arc<dyn ImageSource>,
    /// Held by every act and every look: nobody asks the device while its tool works, or the other way round.
    turn: Mutex<()>,
    /// Vendor and model, as long as the device answers and its version stays: another one may be in its place after that.
    identity: Mutex<Option<Identity>>,
    /// The device being read back, because nobody heard how the tool ended.
    reading: Mutex<Option<Reading>>,
    /// Whether a tool was seen at work that nobody here waits for.
    was_running: AtomicBool,
}

/// What a device is, and the version that it had then.
#[derive(Debug)]
struct Identity {
    vendor: String,
    model: String,
    with: Option<String>,
}

/// Ends in the digest of what the device holds.
type Reading = AbortOnDropHandle<Result<Option<Sha256>, CommandError>>;

/// What is on disk from before the tool is run until it is known what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    state: NoteState,
    /// The image's version and digest.
    version: String,
    sha256: Sha256,
    /// What ran before, and where: asked of the device before the tool had it.
    from: Option<String>,
    vendor: String,
    model: String,
    boot_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NoteState {
    /// The tool runs, or nobody knows how it ended.
    Begun,
    /// The device was read back, and holds neither the old contents nor the image.
    Torn,
    /// The tool has installed the image, and it waits for a reset.
    Waits,
}

impl CommandBackend {
    /// A backend for the tool of `settings`. Runs nothing.
    #[must_use]
    pub fn new(settings: CommandSettings, component: Component, images: Arc<dyn ImageSource>) -> Self {
        let errand = Errand::new(settings.work_dir.clone());
        Self {
            tool: Arc::new(Tool { settings, errand }),
            component,
            images,
            turn: Mutex::default(),
            identity: Mutex::default(),
            reading: Mutex::default(),
            was_running: AtomicBool::default(),
        }
    }

    pub(super) fn tool(&self) -> &Tool {
        &self.tool
    }

    /// The name of the description.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.tool.settings.name
    }

    async fn see(&self) -> Result<Seen, CommandError> {
        let errand = &self.tool.errand;
        errand.prepare()?;
        let is_running = errand.is_running()?;
        if is_running {
            errand.bound_output().map_err(CommandError::Output)?;
        }
        let note: Option<Note> = errand.note()?;
        // A tool at work is left alone: asking the device would be a second one.
        if let (true, Some(note)) = (is_running, &note) {
            self.was_running.store(true, Relaxed);
            let task = task(TaskState::Active, "the tool is at work");
            let identity = (note.vendor.clone(), note.model.clone());
            return Ok(self.seen(identity, note.from.clone(), None, Some(task)));
        }
        if is_running {
            return Err(CommandError::Busy);
        }
        let note = match note {
            Some(note) if note.state == NoteState::Begun && self.tool.settings.read_back.is_some() => {
                self.find_out(note).await?
            }
            other => other,
        };
        if note.as_ref().is_some_and(|note| note.state == NoteState::Torn) {
            // What says the new version may be the first half of it.
            let failed = "the tool was cut short, and the device holds neither the old contents nor the image";
            let task = self.was_running.load(Relaxed).then(|| task(TaskState::Failed, failed));
            let identity = self.identity(None).await?;
            return Ok(self.seen(identity, Some(INCOMPLETE.to_owned()), None, task));
        }
        let (version, boot_id) = (self.tool.version().await?, self.tool.boot_id().await?);
        let identity = self.identity(Some(&version)).await?;
        let task = match note {
            None => None,
            Some(note) if note.version == version => {
                self.tool.done()?;
                None
            }
            Some(note) if note.state == NoteState::Waits => {
                let restarted = note.boot_id.is_some() && boot_id.is_some() && note.boot_id != boot_id;
                if restarted {
                    self.tool.done()?;
                }
                let told = "the tool has installed the image; it waits for a reset";
                Some(task(TaskState::Completed, told))
            }
            Some(_) if self.tool.settings.install.may_repeat => None,
            Some(_) => Some(task(
                TaskState::Gone,
                "the tool was cut short, or nobody heard how it ended",
            )),
        };
        Ok(self.seen(identity, Some(version), boot_id, task))
    }

    /// What came of a run that nobody heard the end of, by the device's contents.
    async fn find_out(&self, mut note: Note) -> Result<Option<Note>, CommandError> {
        let mut reading = self.reading.lock().await;
        let handle = reading.get_or_insert_with(|| {
            let tool = Arc::clone(&self.tool);
            AbortOnDropHandle::new(tokio::spawn(async move { tool.read_back().await }))
        });
        let Ok(read) = timeout(READ_BACK_PATIENCE, handle).await else {
            return Err(CommandError::Reading);
        };
        *reading = None;
        let found = read.map_err(CommandError::Worker)??;
        if found != Some(note.sha256) {
            note.state = NoteState::Torn;
        } else if self.tool.may_reset() {
            note.state = NoteState::Waits;
        } else {
            self.tool.done()?;
            return Ok(None);
        }
        self.tool.errand.write_note(&note)?;
        Ok(Some(note))
    }

    fn seen(
        &self,
        (vendor, model): (String, String),
        version: Option<String>,
        boot_id: Option<String>,
        task: Option<TaskSeen>,
    ) -> Seen {
        let rungs = [Rung::Bmc, Rung::Warm, Rung::Cold, Rung::Ac];
        let resets = rungs.into_iter().filter(|&rung| self.tool.reset_of(rung).is_some());
        Seen {
            vendor,
            model,
            component: self.component.clone(),
            version,
            ready: true,
            boot_id,
            staged: Staged::Hidden,
            task,
            slots: None,
            image_bytes_max: None,
            resets: resets.collect(),
            health: HealthSample::default(),
            clock_off_s: None,
        }
    }

    async fn install(&self, image: &Image) -> Result<Option<String>, CommandError> {
        let tool = &self.tool;
        let errand = &tool.errand;
        errand.prepare()?;
        if errand.is_running()? {
            return Err(CommandError::Busy);
        }
        self.was_running.store(false, Relaxed);
        *self.reading.lock().await = None;
        let path = errand.path("image");
        fetch(self.images.as_ref(), image, &path).await?;
        let before = tool.read_back().await?;
        if before == Some(image.artifact.sha256) {
            tool.done()?;
            return Ok(None);
        }
        let noted = errand.note::<Note>()?;
        let earlier = noted.clone().filter(|note| note.state != NoteState::Waits);
        let was_whole = earlier.is_none();
        let (vendor, model) = self.same_as_looked_at().await?;
        let mut note = Note {
            state: NoteState::Begun,
            version: image.info.version.clone(),
            sha256: image.artifact.sha256,
            from: match earlier {
                Some(earlier) => earlier.from,
                None => Some(tool.version().await?),
            },
            vendor,
            model,
            boot_id: tool.boot_id().await?,
        };
        let mut values = tool.settings.values.clone();
        values.insert("image".to_owned(), path.display().to_string());
        values.insert("version".to_owned(), note.version.clone());
        let invocation = tool.invocation(&tool.settings.install.run, values)?;
        errand.write_note(&note)?;
        let ended = errand.run(&invocation).await;
        // Whoever looked meanwhile saw ours.
        self.was_running.store(false, Relaxed);
        if let Err(error @ ToolError::NotStarted { .. }) = ended {
            // A tool that never began changed nothing: what was known before is known still.
            match noted {
                Some(noted) => errand.write_note(&noted)?,
                None => errand.forget()?,
            }
            return Err(error.into());
        }
        let (meaning, words) = tool.judge(&invocation.program, ended)?;
        let done = matches!(meaning, Meaning::Done | Meaning::NeedsReset);
        if let Some(after) = tool.read_back().await? {
            let retry = meaning != Meaning::Fatal;
            // What is as it was before is as good as it was before.
            if Some(after) == before && was_whole {
                tool.done()?;
                let words = if done {
                    format!("the tool ended well{words}")
                } else {
                    words
                };
                return Err(CommandError::Unchanged { words, retry });
            }
            if after != image.artifact.sha256 {
                let difference = tool.difference().await?;
                note.state = NoteState::Torn;
                errand.write_note(&note)?;
                return Err(CommandError::ReadBack { words, difference });
            }
            if !done {
                tracing::warn!(%words, "a tool complained, and the device holds the image nevertheless");
            }
        } else if !done {
            tool.done()?;
            let retry = meaning == Meaning::Retry;
            return Err(CommandError::Refused { words, retry });
        }
        if meaning == Meaning::NeedsReset {
            note.state = NoteState::Waits;
            errand.write_note(&note)?;
            return Ok(Some("waits for a reset".to_owned()));
        }
        let shown = tool.version().await?;
        if shown != note.version && tool.may_reset() {
            note.state = NoteState::Waits;
            errand.write_note(&note)?;
            return Ok(Some("waits for a reset".to_owned()));
        }
        tool.done()?;
        if shown != note.version {
            let version = note.version;
            return Err(CommandError::NoEffect { version, shown });
        }
        Ok(None)
    }

    /// Vendor and model of a device that shows this version; whatever version, if none is named.
    async fn identity(&self, version: Option<&str>) -> Result<(String, String), CommandError> {
        let mut known = self.identity.lock().await;
        let holds = |known: &&Identity| version.is_none() || known.with.as_deref() == version;
        if let Some(known) = known.as_ref().filter(holds) {
            return Ok((known.vendor.clone(), known.model.clone()));
        }
        let (vendor, model) = self.ask_identity().await?;
        *known = Some(Identity {
            vendor: vendor.clone(),
            model: model.clone(),
            with: version.map(str::to_owned),
        });
        Ok((vendor, model))
    }

    async fn ask_identity(&self) -> Result<(String, String), CommandError> {
        let settings = &self.tool.settings;
        let (vendor, model) = (&settings.vendor, &settings.model);
        Ok((self.tool.fact(vendor).await?, self.tool.fact(model).await?))
    }

    /// Vendor and model, asked anew: it was decided for the device that was looked at, not for one that took its place.
    async fn same_as_looked_at(&self) -> Result<(String, String), CommandError> {
        let found = self.ask_identity().await?;
        let known = self.identity.lock().await.take();
        let known = known.map(|known| (known.vendor, known.model));
        match known.filter(|known| *known != found) {
            Some(known) => Err(CommandError::Replaced { known, found }),
            None => Ok(found),
        }
    }
}

impl DeviceBackend for CommandBackend {
    async fn observe(&self, _task: Option<&str>) -> Observed {
        let _turn = self.turn.lock().await;
        match self.see().await {
            Ok(seen) => Observed::Answering(Box::new(seen)),
            Err(error) => {
                *self.identity.lock().await = None;
                Observed::Silent {
                    why: self.tool.redacted(chain(&error)),
                }
            }
        }
    }

    async fn stage(&self, image: &Image, _slot: Option<Slot>) -> Result<Option<String>, ActError> {
        let _turn = self.turn.lock().await;
        self.install(image).await.map_err(|error| self.tool.act_error(&error))
    }

    async fn activate(&self, _slot: Option<Slot>) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn reset(&self, rung: Rung) -> Result<(), ActError> {
        let _turn = self.turn.lock().await;
        self.tool
            .restart(rung)
            .await
            .map_err(|error| self.tool.act_error(&error))
    }

    async fn confirm(&self) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn abort(&self, _task: Option<&str>) -> Result<(), ActError> {
        let _turn = self.turn.lock().await;
        self.tool
            .errand
            .end()
            .await
            .map_err(|error| self.tool.act_error(&error.into()))
    }
}

fn no_slots() -> ActError {
    ActError {
        reason: "devices behind a described tool have no slots".to_owned(),
        retry: false,
    }
}

fn task(state: TaskState, message: &str) -> TaskSeen {
    TaskSeen {
        name: None,
        state,
        percent: None,
        message: message.to_owned(),
    }
}
