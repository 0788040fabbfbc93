//! A host that RAUC updates, act by act.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firmesh_executors_core::{ActError, Image, Observed, Rung, Seen, Slot, SlotsSeen, Staged, TaskSeen, TaskState};
use firmesh_protocol::{
    health::HealthSample,
    ids::{Component, Sha256},
};
use serde::{Deserialize, Serialize};

use super::{
    RaucSettings,
    status::{Content, SlotTold, Slots, version_id},
};
use crate::{
    ab_slot::read_small,
    backend::{DeviceBackend, chain},
    image::ImageSource,
    tool::{Ended, Errand, ErrandError, FetchError, Invocation, ToolError, ask, fetch},
};

const RAUC: &str = "rauc";
/// How long RAUC may take to answer, or to change a mark.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long the command that restarts the host may take.
const RESET_LIMIT: Duration = Duration::from_secs(60);
/// A status of two slots is a few KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// `os-release` and the like.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A host that RAUC updates.
#[derive(Debug)]
pub struct RaucBackend {
    settings: RaucSettings,
    component: Component,
    images: Arc<dyn ImageSource>,
    errand: Errand,
}

/// What RAUC does not keep: which bundle is in a slot, and which slot is on trial.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Books {
    /// What is being installed.
    begun: Option<Begun>,
    /// The bundle of each slot, by RAUC's name for the slot.
    #[serde(default)]
    held: BTreeMap<String, Held>,
    /// The slot that is to run, or runs, unconfirmed.
    trial: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    slot: String,
    sha256: Sha256,
    version: String,
    /// How often something had been installed into the slot before.
    count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    sha256: Sha256,
    version: String,
    content: Content,
}

/// Why an act failed.
#[derive(Debug, thiserror::Error)]
enum RaucError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Errand(#[from] ErrandError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("RAUC cannot be understood: {0}")]
    Status(String),
    #[error("could not read {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("RAUC did not install the bundle: {0}")]
    NotInstalled(String),
    #[error("an earlier installation has not ended")]
    Busy,
    #[error("slot {0} runs")]
    SlotInUse(Slot),
    #[error("no slot was named")]
    NoSlot,
    #[error("RAUC does not show the bundle in slot {0}, which it says it has installed")]
    NotShown(Slot),
}

impl RaucError {
    fn retry(&self) -> bool {
        match self {
            Self::Tool(error) => error.retry(),
            Self::Fetch(error) => error.retry(),
            Self::Status(_) | Self::File { .. } | Self::Busy => true,
            // Signatures, models and sizes do not mend.
            Self::NotInstalled(_) | Self::Errand(_) | Self::SlotInUse(_) | Self::NoSlot | Self::NotShown(_) => false,
        }
    }
}

impl RaucBackend {
    pub(super) fn settings(&self) -> &RaucSettings {
        &self.settings
    }

    /// A backend for the host of `settings`. Touches nothing.
    #[must_use]
    pub fn new(settings: RaucSettings, component: Component, images: Arc<dyn ImageSource>) -> Self {
        let errand = Errand::new(settings.work_dir.clone());
        Self {
            settings,
            component,
            images,
            errand,
        }
    }

    async fn see(&self) -> Result<Seen, RaucError> {
        self.errand.prepare()?;
        let is_running = self.errand.is_running()?;
        let slots = self.slots().await?;
        let (running, other) = (slots.running, slots.running.other());
        let books = self.settled(&slots, is_running)?;
        let on_trial = books.trial.as_ref() == Some(&slots.slot(running).name);
        let task = is_running.then(|| TaskSeen {
            name: None,
            state: TaskState::Active,
            percent: None,
            message: "RAUC installs".to_owned(),
        });
        let version = match version_id(&self.text(&self.settings.os_release)?) {
            Some(version) => Some(version),
            None => slots.slot(running).version.clone(),
        };
        Ok(Seen {
            vendor: self.settings.vendor.clone(),
            model: self.settings.model.clone(),
            component: self.component.clone(),
            version,
            ready: true,
            boot_id: Some(self.text(&self.settings.boot_id_file)?.trim().to_owned()),
            staged: match is_running {
                true => Staged::Nothing,
                false => staged(&books, slots.slot(other), slots.primary == Some(other)),
            },
            task,
            slots: Some(SlotsSeen {
                running,
                saved: if on_trial { other } else { running },
            }),
            image_bytes_max: None,
            resets: vec![Rung::Warm],
            health: HealthSample::default(),
            clock_off_s: None,
        })
    }

    /// The books, after what has ended meanwhile: an installation that nobody heard the end of, a trial that fell back.
    fn settled(&self, slots: &Slots, is_running: bool) -> Result<Books, RaucError> {
        let mut books = self.books()?;
        let before = books.clone();
        if !is_running && let Some(begun) = books.begun.take() {
            enter(&mut books, &begun, slots);
        }
        let is_over = |trial: &String| {
            let is = |slot: Slot| slots.slot(slot).name == *trial;
            !is(slots.running) && slots.primary.is_some_and(|primary| !is(primary))
        };
        books.trial = books.trial.filter(|trial| !is_over(trial));
        if books != before {
            self.errand.write_note(&books)?;
        }
        Ok(books)
    }

    async fn install(&self, image: &Image, slot: Slot) -> Result<(), RaucError> {
        self.errand.prepare()?;
        if self.errand.is_running()? {
            return Err(RaucError::Busy);
        }
        let slots = self.slots().await?;
        if slot == slots.running {
            return Err(RaucError::SlotInUse(slot));
        }
        let path = self.errand.path("bundle.raucb");
        fetch(self.images.as_ref(), image, &path).await?;
        let mut books = self.settled(&slots, false)?;
        let name = slots.slot(slot).name.clone();
        let begun = Begun {
            sha256: image.artifact.sha256,
            version: image.info.version.clone(),
            count: slots.slot(slot).count,
            slot: name.clone(),
        };
        books.held.remove(&name);
        // RAUC may make the slot the next one to start as soon as it is written.
        books.trial = Some(name);
        books.begun = Some(begun.clone());
        self.errand.write_note(&books)?;
        let path = path.display().to_string();
        let run = self.invocation(&["install", &path], self.settings.install_limit);
        let ended = self.errand.run(&run).await?;
        if !ended.status.success() {
            // Whatever was written is not whole, and RAUC keeps saying so.
            let words = last_error(&ended);
            self.settled(&self.slots().await?, false)?;
            return Err(RaucError::NotInstalled(words));
        }
        let slots = self.slots().await?;
        books.begun = None;
        let entered = enter(&mut books, &begun, &slots);
        self.errand.write_note(&books)?;
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, %path, "a bundle that is no longer needed could not be removed");
        }
        if entered {
            Ok(())
        } else {
            Err(RaucError::NotShown(slot))
        }
    }

    /// Makes the next restart start this slot.
    async fn mark_active(&self, slots: &Slots, slot: Slot) -> Result<(), RaucError> {
        self.mark("mark-active", &slots.slot(slot).name).await
    }

    async fn arm(&self, slot: Slot) -> Result<(), RaucError> {
        let slots = self.slots().await?;
        if slot == slots.running {
            return Err(RaucError::SlotInUse(slot));
        }
        let mut books = self.settled(&slots, self.errand.is_running()?)?;
        books.trial = Some(slots.slot(slot).name.clone());
        self.errand.write_note(&books)?;
        self.mark_active(&slots, slot).await
    }

    /// Restarts. During a trial that means: back to the other slot, for what is kept is confirmed first.
    async fn restart(&self) -> Result<(), RaucError> {
        let slots = self.slots().await?;
        let running = slots.running;
        let books = self.settled(&slots, self.errand.is_running()?)?;
        if books.trial.as_ref() == Some(&slots.slot(running).name) {
            self.mark("mark-bad", &slots.slot(running).name).await?;
            self.mark_active(&slots, running.other()).await?;
        }
        let [program, args @ ..] = self.settings.reset_command.as_slice() else {
            return Ok(());
        };
        let run = Invocation {
            program: program.clone(),
            args: args.to_vec(),
            limit: RESET_LIMIT,
            ..self.invocation(&[], RESET_LIMIT)
        };
        success(&run, ask(&run).await?)?;
        Ok(())
    }

    async fn keep(&self) -> Result<(), RaucError> {
        let slots = self.slots().await?;
        let mut books = self.settled(&slots, self.errand.is_running()?)?;
        self.mark("mark-good", &slots.slot(slots.running).name).await?;
        if slots.primary != Some(slots.running) {
            self.mark_active(&slots, slots.running).await?;
        }
        books.trial = None;
        Ok(self.errand.write_note(&books)?)
    }

    async fn give_up(&self) -> Result<(), RaucError> {
        if self.errand.is_running()? {
            self.errand.end().await?;
        }
        let slots = self.slots().await?;
        self.mark_active(&slots, slots.running).await?;
        self.settled(&self.slots().await?, false).map(drop)
    }

    async fn slots(&self) -> Result<Slots, RaucError> {
        let run = self.invocation(&["status", "--detailed", "--output-format=json"], ANSWER_LIMIT);
        let ended = success(&run, ask(&run).await?)?;
        Slots::read(&ended.stdout).map_err(RaucError::Status)
    }

    async fn mark(&self, how: &str, slot: &str) -> Result<(), RaucError> {
        let run = self.invocation(&["status", how, slot], ANSWER_LIMIT);
        success(&run, ask(&run).await?)?;
        Ok(())
    }

    fn invocation(&self, args: &[&str], limit: Duration) -> Invocation {
        let bus = self.settings.bus.clone();
        Invocation {
            program: RAUC.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: bus
                .map(|bus| ("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), bus))
                .into_iter()
                .collect(),
            folder: self.settings.work_dir.clone(),
            limit,
            output_bytes_max: ANSWER_BYTES_MAX,
        }
    }

    fn books(&self) -> Result<Books, RaucError> {
        Ok(self.errand.note()?.unwrap_or_default())
    }

    fn text(&self, path: &Path) -> Result<String, RaucError> {
        let bytes = read_small(path, FILE_BYTES_MAX).map_err(|source| RaucError::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl DeviceBackend for RaucBackend {
    async fn observe(&self, _task: Option<&str>) -> Observed {
        match self.see().await {
            Ok(seen) => Observed::Answering(Box::new(seen)),
            Err(error) => Observed::Silent { why: chain(&error) },
        }
    }

    async fn stage(&self, image: &Image, slot: Option<Slot>) -> Result<Option<String>, ActError> {
        let slot = slot.ok_or_else(|| act_error(&RaucError::NoSlot))?;
        let installed = self.install(image, slot).await;
        installed.map(|()| None).map_err(|error| act_error(&error))
    }

    async fn activate(&self, slot: Option<Slot>) -> Result<(), ActError> {
        let slot = slot.ok_or_else(|| act_error(&RaucError::NoSlot))?;
        self.arm(slot).await.map_err(|error| act_error(&error))
    }

    async fn reset(&self, _rung: Rung) -> Result<(), ActError> {
        self.restart().await.map_err(|error| act_error(&error))
    }

    async fn confirm(&self) -> Result<(), ActError> {
        self.keep().await.map_err(|error| act_error(&error))
    }

    async fn abort(&self, _task: Option<&str>) -> Result<(), ActError> {
        self.give_up().await.map_err(|error| act_error(&error))
    }
}

/// Enters a bundle into the books if RAUC shows it, installed since; whether it does.
fn enter(books: &mut Books, begun: &Begun, slots: &Slots) -> bool {
    let mut found = slots.slots.iter().filter(|slot| slot.name == begun.slot);
    let Some(slot) = found.next().filter(|slot| slot.count > begun.count) else {
        return false;
    };
    let Some(content) = slot
        .content
        .clone()
        .filter(|_| slot.version.as_ref() == Some(&begun.version))
    else {
        return false;
    };
    let held = Held {
        sha256: begun.sha256,
        version: begun.version.clone(),
        content,
    };
    books.held.insert(begun.slot.clone(), held);
    true
}

/// What lies in the slot that does not run.
fn staged(books: &Books, slot: &SlotTold, armed: bool) -> Staged {
    let Some(content) = &slot.content else {
        return Staged::Nothing;
    };
    match books.held.get(&slot.name).filter(|held| held.content == *content) {
        Some(held) => Staged::Image {
            version: held.version.clone(),
            sha256: held.sha256,
            armed,
        },
        // Somebody else's: no bundle of ours has this digest.
        None => Staged::Image {
            version: slot.version.clone().unwrap_or_default(),
            sha256: content.checksum,
            armed,
        },
    }
}

/// The reason in what `rauc install` says; everything it says last if there is none.
fn last_error(ended: &Ended) -> String {
    let said = String::from_utf8_lossy(&ended.stdout);
    let reason = said.lines().rev().find_map(|line| line.strip_prefix("LastError: "));
    match reason {
        Some(reason) => reason.chars().filter(|c| !c.is_control()).take(300).collect(),
        None => ended.failure(RAUC).to_string(),
    }
}

fn success(run: &Invocation, ended: Ended) -> Result<Ended, ToolError> {
    if ended.status.success() {
        Ok(ended)
    } else {
        Err(ended.failure(&run.program))
    }
}

fn act_error(error: &RaucError) -> ActError {
    ActError {
        reason: chain(error),
        retry: error.retry(),
    }
}
