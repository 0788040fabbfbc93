//! A host with two slots, act by act.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use firmesh_executors_core::{
    ActError, BootEnv, BootEnvError, Image, Observed, Rung, Seen, Slot, SlotContent, SlotsSeen, Staged,
};
use firmesh_protocol::{
    health::HealthSample,
    ids::{Component, Sha256},
    time::WallTime,
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tokio::{io::AsyncReadExt as _, process::Command, task::spawn_blocking};

use super::disk::{Disk, digest, file_error, read_small};
use crate::{
    backend::{DeviceBackend, chain},
    config::AbSlotSettings,
    image::{ImageError, ImageSource},
    swupdate::{Writer, WriterError},
};

/// A status is a handful of fields.
const STATUS_BYTES_MAX: u64 = 64 << 10;
/// How old a reading may be: anything older says nothing about now.
const HEALTH_AGE_MAX: Duration = Duration::from_secs(60);
/// What is copied at once.
const COPY_BYTES: usize = 1 << 20;

/// What the running system writes about itself at each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The slot it was started from.
    pub slot: Slot,
    /// Differs at every start.
    pub boot_id: String,
    /// Its version.
    pub version: String,
    /// The host's model.
    pub model: String,
    /// Who makes the host.
    pub vendor: String,
    /// The digest of the image it runs, if it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

/// What the running system says of how it is, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthStatus {
    /// When it was written, by the clock of the host.
    pub at: WallTime,
    /// The reading.
    pub sample: HealthSample,
}

/// A device with two slots.
#[derive(Debug)]
pub struct AbSlotBackend {
    settings: Arc<AbSlotSettings>,
    component: Component,
    images: Arc<dyn ImageSource>,
    disk: Arc<Disk>,
    /// What writes slots, if we do not.
    writer: Option<Writer>,
}

/// Why an act on the slots failed.
#[derive(Debug, thiserror::Error)]
pub enum AbSlotError {
    /// A file could not be read or written.
    #[error("could not {operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The status is not what a system writes.
    #[error("{path} is not a status")]
    Status {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The boot environment makes no sense.
    #[error("the boot environment {path} cannot be used")]
    Env {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BootEnvError,
    },
    /// Nobody waits for it any more.
    #[error("it took too long and was given up")]
    GivenUp,
    /// The slot runs, or is what the next boot starts.
    #[error("slot {0} is in use")]
    SlotInUse(Slot),
    /// Nobody said which slot.
    #[error("no slot was named")]
    NoSlot,
    /// The slot does not hold what it should.
    #[error("slot {slot} read back does not have the digest {expected}")]
    ReadBack {
        /// The slot.
        slot: Slot,
        /// The image's digest.
        expected: Sha256,
    },
    /// The stream of bytes was not the image.
    #[error("the image's stream is not the image: {0}")]
    WrongStream(String),
    /// The image could not be opened.
    #[error("the image could not be had")]
    Image(#[source] ImageError),
    /// The image could not be read.
    #[error("the image's stream broke")]
    Stream(#[source] io::Error),
    /// The command that restarts the host failed.
    #[error("{program} {problem}")]
    Reset {
        /// The program.
        program: String,
        /// What happened.
        problem: String,
    },
    /// SWUpdate did not write the slot.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// A worker thread died.
    #[error("a worker thread died")]
    Worker(#[source] tokio::task::JoinError),
}

impl AbSlotError {
    /// Whether the same act may succeed later.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::File { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem
            ),
            Self::Image(error) => error.retry,
            Self::Writer(error) => error.retry(),
            Self::ReadBack { .. } | Self::Stream(_) | Self::Reset { .. } | Self::Worker(_) => true,
            _ => false,
        }
    }
}

impl AbSlotBackend {
    /// A backend for the slots of `settings`. Touches nothing.
    #[must_use]
    pub fn new(settings: AbSlotSettings, component: Component, images: Arc<dyn ImageSource>) -> Self {
        Self {
            settings: Arc::new(settings),
            component,
            images,
            disk: Arc::new(Disk::default()),
            writer: None,
        }
    }

    pub(super) fn settings(&self) -> &AbSlotSettings {
        &self.settings
    }

    pub(super) fn is_written_by_swupdate(&self) -> bool {
        self.writer.is_some()
    }

    /// The same, its slots written by SWUpdate.
    pub(crate) fn written_by(mut self, writer: Writer) -> Self {
        self.writer = Some(writer);
        self
    }

    #[cfg(test)]
    pub(super) fn losing_power_after(mut self, writes: usize) -> Self {
        self.disk = Arc::new(Disk {
            writes_left: Some(writes.into()),
        });
        self
    }

    /// Runs a blocking act on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&AbSlotSettings, &Disk) -> Result<T, AbSlotError> + Send + 'static,
    ) -> Result<T, AbSlotError> {
        let (settings, disk) = (Arc::clone(&self.settings), Arc::clone(&self.disk));
        spawn_blocking(move || act(&settings, &disk))
            .await
            .map_err(AbSlotError::Worker)?
    }

    async fn see(&self) -> Result<Seen, AbSlotError> {
        if let Some(writer) = &self.writer {
            writer.is_idle()?;
        }
        let (status, env, health) = self
            .blocking(|settings, _disk| Ok((read_status(settings)?, settings.env.read()?, read_health(settings))))
            .await?;
        let staged = match env.slot(status.slot.other()) {
            SlotContent::Ready { version, sha256, .. } => Staged::Image {
                version: version.clone(),
                sha256: *sha256,
                armed: env.trial == Some(status.slot.other()),
            },
            SlotContent::Empty | SlotContent::Writing => Staged::Nothing,
        };
        Ok(Seen {
            vendor: status.vendor,
            model: status.model,
            component: self.component.clone(),
            version: Some(status.version),
            ready: true,
            boot_id: Some(status.boot_id),
            staged,
            task: None,
            slots: Some(SlotsSeen {
                running: status.slot,
                saved: env.saved,
            }),
            image_bytes_max: None,
            resets: vec![Rung::Warm],
            health,
            clock_off_s: None,
        })
    }

    async fn write_slot(&self, image: &Image, slot: Slot) -> Result<(), AbSlotError> {
        if let Some(writer) = &self.writer {
            writer.is_idle()?;
        }
        self.blocking(move |settings, disk| {
            refuse_in_use(settings, slot)?;
            change_env(settings, disk, |env| {
                env.trial = env.trial.filter(|&trial| trial != slot);
                *env.slot_mut(slot) = SlotContent::Writing;
            })
        })
        .await?;
        match &self.writer {
            None => self.copy(image, slot).await?,
            Some(writer) => {
                let path = slot_path(&self.settings, slot).to_owned();
                writer.write(self.images.as_ref(), image, slot, path).await?;
            }
        }
        let found = match &self.writer {
            None => None,
            Some(writer) => Some(writer.contents(slot, image.artifact.sha256)?),
        };
        let (expected, length, version) = (image.artifact.sha256, image.artifact.length, image.info.version.clone());
        self.blocking(move |settings, disk| {
            let (content, bytes) = found.unwrap_or((expected, length));
            read_back(settings, slot, content, bytes)?;
            change_env(settings, disk, |env| {
                *env.slot_mut(slot) = SlotContent::Ready {
                    version,
                    sha256: expected,
                    length,
                };
            })
        })
        .await
    }

    /// Streams the image into the slot; returns once it is durable.
    async fn copy(&self, image: &Image, slot: Slot) -> Result<(), AbSlotError> {
        let mut reader = self
            .images
            .open(image.artifact.id)
            .await
            .map_err(AbSlotError::Image)?
            .take(image.artifact.length + 1);
        let path = slot_path(&self.settings, slot).to_owned();
        let opened = path.clone();
        let file = self
            .blocking(move |_settings, disk| disk.open_slot(&opened).map_err(file_error("open", &opened)))
            .await?;
        let file = Arc::new(file);
        let (mut hash, mut length) = (sha2::Sha256::new(), 0);
        loop {
            let mut chunk = Vec::with_capacity(COPY_BYTES);
            while chunk.len() < COPY_BYTES
                && (&mut reader)
                    .take((COPY_BYTES - chunk.len()) as u64)
                    .read_buf(&mut chunk)
                    .await
                    .map_err(AbSlotError::Stream)?
                    > 0
            {}
            if chunk.is_empty() {
                break;
            }
            hash.update(&chunk);
            length += chunk.len() as u64;
            let (file, path) = (Arc::clone(&file), path.clone());
            self.blocking(move |_settings, disk| disk.write(&file, &chunk).map_err(file_error("write", &path)))
                .await?;
        }
        self.blocking(move |_settings, disk| disk.sync(&file).map_err(file_error("flush", &path)))
            .await?;
        let found: [u8; 32] = hash.finalize().into();
        let found = Sha256::from(found);
        if (found, length) == (image.artifact.sha256, image.artifact.length) {
            Ok(())
        } else {
            Err(AbSlotError::WrongStream(format!(
                "{length} bytes or more with the digest {found}"
            )))
        }
    }

    async fn run_reset(&self) -> Result<(), AbSlotError> {
        let program = self.settings.reset_program.clone();
        let failed = |problem: String| AbSlotError::Reset {
            program: program.clone(),
            problem,
        };
        let output = Command::new(&program)
            .args(&self.settings.reset_args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| failed(format!("could not be started: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let words: String = String::from_utf8_lossy(&output.stderr).chars().take(300).collect();
        Err(failed(format!("ended with {}: {}", output.status, words.trim())))
    }
}

impl DeviceBackend for AbSlotBackend {
    async fn observe(&self, _task: Option<&str>) -> Observed {
        match self.see().await {
            Ok(seen) => Observed::Answering(Box::new(seen)),
            Err(error) => Observed::Silent { why: chain(&error) },
        }
    }

    async fn stage(&self, image: &Image, slot: Option<Slot>) -> Result<Option<String>, ActError> {
        let slot = slot.ok_or_else(|| act_error(AbSlotError::NoSlot))?;
        self.write_slot(image, slot).await.map_err(act_error)?;
        Ok(None)
    }

    async fn activate(&self, slot: Option<Slot>) -> Result<(), ActError> {
        let slot = slot.ok_or_else(|| act_error(AbSlotError::NoSlot))?;
        let writer = self.writer.clone();
        // Goes with this future. The thread goes on without it, and must not arm a slot that nobody waits for any more.
        let asked = Arc::new(());
        let is_asked = Arc::downgrade(&asked);
        let armed = self.blocking(move |settings, disk| {
            refuse_in_use(settings, slot)?;
            let SlotContent::Ready { sha256, length, .. } = settings.env.read()?.slot(slot).clone() else {
                return Err(AbSlotError::WrongStream(format!("slot {slot} holds no image")));
            };
            // The image may have lain there for months.
            let (content, bytes) = match writer {
                None => (sha256, length),
                Some(writer) => writer.contents(slot, sha256)?,
            };
            read_back(settings, slot, content, bytes)?;
            if is_asked.strong_count() == 0 {
                return Err(AbSlotError::GivenUp);
            }
            change_env(settings, disk, |env| env.trial = Some(slot))
        });
        let armed = armed.await;
        drop(asked);
        armed.map_err(act_error)
    }

    async fn reset(&self, _rung: Rung) -> Result<(), ActError> {
        self.run_reset().await.map_err(act_error)
    }

    async fn confirm(&self) -> Result<(), ActError> {
        let kept = self.blocking(|settings, disk| {
            let running = read_status(settings)?.slot;
            change_env(settings, disk, |env| (env.saved, env.trial) = (running, None))
        });
        kept.await.map_err(act_error)
    }

    async fn abort(&self, _task: Option<&str>) -> Result<(), ActError> {
        if let Some(writer) = &self.writer {
            writer.end().await.map_err(|error| act_error(error.into()))?;
        }
        self.blocking(|settings, disk| change_env(settings, disk, |env| env.trial = None))
            .await
            .map_err(act_error)
    }
}

fn slot_path(settings: &AbSlotSettings, slot: Slot) -> &Path {
    match slot {
        Slot::A => &settings.slot_a,
        Slot::B => &settings.slot_b,
    }
}

fn read_status(settings: &AbSlotSettings) -> Result<Status, AbSlotError> {
    let path = &settings.status_file;
    let bytes = read_small(path, STATUS_BYTES_MAX).map_err(file_error("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| AbSlotError::Status {
        path: path.clone(),
        source,
    })
}

/// The host's last reading; one that is old, or none, leaves everything unknown.
fn read_health(settings: &AbSlotSettings) -> HealthSample {
    let Some(path) = &settings.health_file else {
        return HealthSample::default();
    };
    let read = || -> io::Result<HealthStatus> { Ok(serde_json::from_slice(&read_small(path, STATUS_BYTES_MAX)?)?) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match read() {
        Ok(health) if health.at.unix_seconds().abs_diff(now.as_secs().cast_signed()) <= HEALTH_AGE_MAX.as_secs() => {
            health.sample
        }
        Ok(health) => {
            tracing::debug!(file = %path.display(), at = %health.at, "a host's reading is old");
            HealthSample::default()
        }
        Err(error) => {
            tracing::debug!(file = %path.display(), %error, "a host's health cannot be read");
            HealthSample::default()
        }
    }
}

fn change_env(settings: &AbSlotSettings, disk: &Disk, change: impl FnOnce(&mut BootEnv)) -> Result<(), AbSlotError> {
    settings.env.change(disk, change)
}

fn refuse_in_use(settings: &AbSlotSettings, slot: Slot) -> Result<(), AbSlotError> {
    let (running, saved) = (read_status(settings)?.slot, settings.env.read()?.saved);
    if slot == running || slot == saved {
        Err(AbSlotError::SlotInUse(slot))
    } else {
        Ok(())
    }
}

fn read_back(settings: &AbSlotSettings, slot: Slot, expected: Sha256, length: u64) -> Result<(), AbSlotError> {
    let path = slot_path(settings, slot);
    match digest(path, length).map_err(file_error("read back", path))? {
        Some(found) if found == expected => Ok(()),
        _ => Err(AbSlotError::ReadBack { slot, expected }),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "stands where map_err wants a function of the error"
)]
fn act_error(error: AbSlotError) -> ActError {
    ActError {
        reason: chain(&error),
        retry: error.retry(),
    }
}
