//! One device that asks for its updates, as the face that serves it and the attempt that updates it both see it.
//!
//! Invariant: what a device was answered is durable before it hears it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use firmesh_executors_core::{Image, Observed, Seen, Staged, TaskSeen, TaskState};
use firmesh_protocol::{
    health::HealthSample,
    ids::{ArtifactId, Component, DeviceId},
};
use md5::Md5;
use serde_json::Value;
use sha1::Sha1;
use sha2::Digest as _;
use tokio::{
    io::AsyncReadExt as _,
    sync::{Mutex as AsyncMutex, OnceCell},
    time::Instant,
};

use super::{
    DdiSettings, VersionFrom,
    ledger::{Action, ActionError, ActionState, Ledger, LedgerError, Offer},
    wire::{self, BodyError, ConfigData, Feedback},
};
use crate::{
    image::{ImageError, ImageSource},
    journal::{Journal, JournalError},
};

/// How often a device is asked anew what it is: it may have been changed by others.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// How many times its interval a device may be late before it counts as silent, and what it is granted beside that.
const LATE_POLLS: u32 = 3;
const LATE_BY: Duration = Duration::from_secs(30);

/// Images whose digests are remembered.
const DIGESTS_MAX: usize = 64;

/// What all devices of a node that ask for their updates have in common: where they are remembered, and the digests of
/// images.
#[derive(Debug)]
pub struct Desk {
    notes: Arc<dyn Journal>,
    digests: Mutex<BTreeMap<ArtifactId, Arc<OnceCell<Digests>>>>,
}

#[derive(Debug, Clone)]
struct Digests {
    sha1: String,
    md5: String,
}

/// One device that asks for its updates.
pub struct Device {
    id: DeviceId,
    component: Component,
    settings: DdiSettings,
    desk: Arc<Desk>,
    images: Arc<dyn ImageSource>,
    ledger: Arc<AsyncMutex<Ledger>>,
    contact: Arc<Mutex<Contact>>,
}

/// What is known of it since the node has started.
#[derive(Debug, Default)]
struct Contact {
    heard: Option<Instant>,
    /// When it last said what it is.
    described: Option<Instant>,
    downloads: u32,
}

/// An image that is on its way to the device: as long as this lives, the device is not silent.
#[derive(Debug)]
pub struct Download {
    /// Which image.
    pub artifact: ArtifactId,
    contact: Arc<Mutex<Contact>>,
}

/// Why a device cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// It asks for what is not there.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// It says what cannot be.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// What it said could not be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why what was known of a device cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What it has is not a device's.
    #[error("what the journal has of device {device} cannot be read")]
    Malformed {
        /// The device.
        device: DeviceId,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why an image cannot be offered.
#[derive(Debug, thiserror::Error)]
pub(super) enum OfferError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("the image could not be read")]
    Read(#[source] std::io::Error),
    #[error("the image has {found} bytes instead of {length}")]
    Length { found: u64, length: u64 },
    #[error("the device has not yet let go of action {0}")]
    Busy(u32),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Desk {
    /// A desk that keeps what it knows of devices in `notes`, which are nobody else's.
    #[must_use]
    pub fn new(notes: Arc<dyn Journal>) -> Self {
        Self {
            notes,
            digests: Mutex::default(),
        }
    }

    /// The digests of an image by which clients know it, computed once.
    async fn digests(&self, images: &dyn ImageSource, image: &Image) -> Result<Digests, OfferError> {
        let cell = {
            let mut known = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= DIGESTS_MAX && !known.contains_key(&image.artifact.id) {
                known.clear();
            }
            Arc::clone(known.entry(image.artifact.id).or_default())
        };
        let compute = || async {
            let mut reader = images.open(image.artifact.id).await?;
            let (mut sha1, mut md5, mut found) = (Sha1::new(), Md5::new(), 0_u64);
            let mut buffer = vec![0; 256 << 10];
            loop {
                let count = reader.read(&mut buffer).await.map_err(OfferError::Read)?;
                if count == 0 {
                    break;
                }
                sha1.update(&buffer[..count]);
                md5.update(&buffer[..count]);
                found += count as u64;
            }
            let length = image.artifact.length;
            if found != length {
                return Err(OfferError::Length { found, length });
            }
            Ok(Digests {
                sha1: hex::encode(sha1.finalize()),
                md5: hex::encode(md5.finalize()),
            })
        };
        cell.get_or_try_init(compute).await.cloned()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("id", &self.id)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Takes up what is known of a device.
    pub(crate) fn open(
        id: DeviceId,
        component: Component,
        settings: DdiSettings,
        desk: Arc<Desk>,
        images: Arc<dyn ImageSource>,
    ) -> Result<Self, OpenError> {
        let ledger = match desk.notes.load(&id)? {
            Some(bytes) => Ledger::from_bytes(&bytes).map_err(|error: LedgerError| OpenError::Malformed {
                device: id.clone(),
                source: error.into(),
            })?,
            None => Ledger::default(),
        };
        Ok(Self {
            id,
            component,
            settings,
            desk,
            images,
            ledger: Arc::new(AsyncMutex::new(ledger)),
            contact: Arc::default(),
        })
    }

    /// Its name in the fleet.
    #[must_use]
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// What it calls itself.
    #[must_use]
    pub fn controller_id(&self) -> &str {
        &self.settings.controller_id
    }

    /// Whether this is its target token; never, if it has none.
    #[must_use]
    pub fn knows_token(&self, given: &str) -> bool {
        self.settings.token.as_ref().is_some_and(|token| token.is(given))
    }

    /// What its images are called.
    #[must_use]
    pub fn file_name(&self) -> &str {
        &self.settings.file_name
    }

    /// It has asked for something.
    pub fn heard(&self) {
        self.contact().heard = Some(Instant::now());
    }

    /// What there is for it. Links begin with `root`, which names the device.
    pub async fn controller_base(&self, root: &str) -> Value {
        let ledger = self.ledger.lock().await;
        let mut links = Vec::new();
        let described = self.contact().described;
        if ledger.is_stale || described.is_none_or(|at| at.elapsed() > ASK_AGAIN) {
            links.push(("configData", format!("{root}/configData")));
        }
        match &ledger.action {
            Some(action) if action.state == ActionState::Open => {
                links.push(("deploymentBase", format!("{root}/deploymentBase/{}", action.id)));
            }
            Some(action) if action.state == ActionState::Cancelling => {
                links.push(("cancelAction", format!("{root}/cancelAction/{}", action.id)));
            }
            Some(action) if action.state == ActionState::Done => {
                links.push(("installedBase", format!("{root}/installedBase/{}", action.id)));
            }
            _ => {}
        }
        wire::controller_base(self.settings.poll.as_secs(), &links)
    }

    /// What is to be installed.
    pub async fn deployment_base(&self, id: u32, root: &str) -> Result<Value, AnswerError> {
        let action = self
            .change(move |ledger| match ledger.open_action(id)?.state {
                ActionState::Open => Ok(ledger.seen(id)?.clone()),
                _ => Err(ActionError::Over.into()),
            })
            .await?;
        Ok(self.describe(&action, root))
    }

    /// What was installed last.
    pub async fn installed_base(&self, id: u32, root: &str) -> Result<Value, AnswerError> {
        let ledger = self.ledger.lock().await;
        let is_it = |action: &&Action| action.id == id && action.state == ActionState::Done;
        match ledger.action.as_ref().filter(is_it) {
            Some(action) => Ok(self.describe(action, root)),
            None => Err(ActionError::Unknown.into()),
        }
    }

    /// What is not to be installed any more.
    pub async fn cancel_action(&self, id: u32) -> Result<Value, AnswerError> {
        let ledger = self.ledger.lock().await;
        match ledger.open_action(id)? {
            action if action.state == ActionState::Cancelling => Ok(wire::cancellation(action)),
            _ => Err(ActionError::Unknown.into()),
        }
    }

    /// How an update goes, or how it went.
    pub async fn feedback(&self, id: u32, said: Feedback) -> Result<(), AnswerError> {
        tracing::debug!(device = %self.id, action = id, over = said.is_over, "feedback");
        self.change(move |ledger| Ok(ledger.feedback(id, said)?)).await
    }

    /// What it makes of a withdrawal.
    pub async fn cancel_feedback(&self, id: u32, said: Feedback) -> Result<(), AnswerError> {
        self.change(move |ledger| Ok(ledger.cancel_feedback(id, &said)?)).await
    }

    /// What it is.
    pub async fn config_data(&self, said: ConfigData) -> Result<(), AnswerError> {
        let version = self.settings.version_attribute.clone();
        self.change(move |ledger| Ok(ledger.config_data(said, &version)?))
            .await?;
        self.contact().described = Some(Instant::now());
        Ok(())
    }

    /// The image of the open action.
    pub async fn download(&self, id: u32) -> Result<Download, AnswerError> {
        let artifact = self.change(move |ledger| Ok(ledger.seen(id)?.artifact)).await?;
        self.contact().downloads += 1;
        Ok(Download {
            artifact,
            contact: Arc::clone(&self.contact),
        })
    }

    /// It is about to be given the last bytes of the image.
    pub async fn fetched(&self, id: u32) -> Result<(), AnswerError> {
        self.change(move |ledger| Ok(ledger.fetched(id)?)).await
    }

    /// Offers an image; its action's number.
    pub(super) async fn offer(&self, image: &Image) -> Result<u32, OfferError> {
        let digests = self.desk.digests(&*self.images, image).await?;
        let offer = Offer {
            artifact: image.artifact.id,
            length: image.artifact.length,
            sha256: image.artifact.sha256,
            sha1: digests.sha1,
            md5: digests.md5,
            version: image.info.version.clone(),
            name: self.component.to_string(),
        };
        match self.change_with(move |ledger| ledger.offer(offer)).await? {
            Ok(id) => Ok(id),
            Err(open) => Err(OfferError::Busy(open)),
        }
    }

    /// Withdraws what is offered, if something is.
    pub(crate) async fn withdraw(&self) -> Result<(), JournalError> {
        if self.change_with(Ledger::withdraw).await? {
            tracing::info!(device = %self.id, "its update was withdrawn");
        }
        Ok(())
    }

    /// How it looks, by all it has said.
    pub(super) async fn look(&self, task: Option<&str>) -> Observed {
        let silent = |why: String| Observed::Silent { why };
        let ledger = self.ledger.lock().await;
        let patience = self.settings.poll * LATE_POLLS + LATE_BY;
        {
            let contact = self.contact();
            match contact.heard {
                None => return silent("it has not asked for anything since the node started".to_owned()),
                Some(at) if contact.downloads == 0 && at.elapsed() > patience => {
                    let since = at.elapsed().as_secs();
                    return silent(format!("it has not asked for anything for {since} s"));
                }
                Some(_) => {}
            }
        }
        let attribute = |name: &Option<String>| name.as_ref().map(|name| ledger.attributes.get(name).cloned());
        let by_confirmation = self.settings.version_from == VersionFrom::Confirmation;
        let asks =
            !by_confirmation || self.settings.model_attribute.is_some() || self.settings.boot_attribute.is_some();
        if asks && ledger.is_stale {
            return silent("it asks for updates, but has not said what it runs since its last one".to_owned());
        }
        let model = match attribute(&self.settings.model_attribute) {
            None => self.settings.model.clone(),
            Some(Some(model)) => model,
            Some(None) => return silent("its attributes do not name its model".to_owned()),
        };
        let version = if by_confirmation {
            ledger.confirmed.clone().or_else(|| self.settings.first_version.clone())
        } else {
            let said = ledger.attributes.get(&self.settings.version_attribute).cloned();
            if said.is_none() {
                let name = &self.settings.version_attribute;
                return silent(format!("its attributes have no {name:?}, which names what it runs"));
            }
            said
        };
        // Without a name for each start, what it closed tells before from after.
        let boot_id = match attribute(&self.settings.boot_attribute) {
            Some(said) => said,
            None => Some(ledger.closed.to_string()),
        };
        Observed::Answering(Box::new(Seen {
            vendor: self.settings.vendor.clone(),
            model,
            component: self.component.clone(),
            version,
            ready: true,
            boot_id,
            staged: Staged::Hidden,
            task: task_seen(&ledger, task),
            slots: None,
            image_bytes_max: None,
            // It restarts by itself.
            resets: Vec::new(),
            health: HealthSample::default(),
            clock_off_s: None,
        }))
    }

    fn describe(&self, action: &Action, root: &str) -> Value {
        let file = &self.settings.file_name;
        let href = format!("{root}/softwaremodules/{}/artifacts/{file}", action.id);
        wire::deployment(action, file, &href)
    }

    async fn change<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Ledger) -> Result<T, AnswerError> + Send + 'static,
    ) -> Result<T, AnswerError> {
        self.change_with(act).await?
    }

    /// Changes what is known and makes it durable. A future that is dropped meanwhile does no harm: what was begun is done.
    async fn change_with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Ledger) -> T + Send + 'static,
    ) -> Result<T, JournalError> {
        let mut ledger = Arc::clone(&self.ledger).lock_owned().await;
        let mut next = ledger.clone();
        let value = act(&mut next);
        if next == *ledger {
            return Ok(value);
        }
        let (desk, device) = (Arc::clone(&self.desk), self.id.clone());
        let saving = tokio::task::spawn_blocking(move || {
            desk.notes.save(&device, &next.to_bytes())?;
            *ledger = next;
            Ok(value)
        });
        saving.await.unwrap_or_else(|died| {
            Err(JournalError {
                operation: "save",
                source: died.into(),
            })
        })
    }

    fn contact(&self) -> std::sync::MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let mut contact = self.contact.lock().unwrap_or_else(PoisonError::into_inner);
        contact.downloads = contact.downloads.saturating_sub(1);
        contact.heard = Some(Instant::now());
    }
}

/// The action of this number as a task; without a number, the open one, whatever became of it.
fn task_seen(ledger: &Ledger, task: Option<&str>) -> Option<TaskSeen> {
    let state = match task {
        None => {
            ledger.open()?;
            TaskState::Active
        }
        Some(task) => match ledger.action.as_ref().filter(|action| action.id.to_string() == task) {
            None => TaskState::Gone,
            Some(action) => match action.state {
                ActionState::Done => TaskState::Completed,
                ActionState::Failed => TaskState::Failed,
                ActionState::Cancelled => TaskState::Gone,
                // Installed, and waiting for its restart.
                ActionState::Open if action.was_fetched && is_all(action.progress) => TaskState::Completed,
                ActionState::Open | ActionState::Cancelling => TaskState::Active,
            },
        },
    };
    let action = ledger.action.as_ref();
    let (progress, message) = action.map_or((None, String::new()), |action| {
        (action.progress, action.message.clone())
    });
    let percent = |(done, of): (u32, u32)| (u64::from(done.min(of)) * 100).checked_div(of.into());
    Some(TaskSeen {
        name: None,
        state,
        percent: progress
            .and_then(percent)
            .and_then(|percent| u8::try_from(percent).ok()),
        message,
    })
}

fn is_all(progress: Option<(u32, u32)>) -> bool {
    progress.is_some_and(|(done, of)| of > 0 && done >= of)
}
