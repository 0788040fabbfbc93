//! The node as a device of its own, act by act.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use firmesh_executors_core::{
    ActError, Image, Observed, Rung, Seen, Slot, SlotContent, SlotsSeen, Staged,
    launch::{Launched, NodeSlots, Program, ProgramError, check_program, version_said},
};
use firmesh_protocol::{
    health::HealthSample,
    ids::{Component, Sha256},
};
use nix::sys::signal::Signal;
use tokio::task::spawn_blocking;

use super::{NodeSelfSettings, Own, SlotsFolder};
use crate::{
    ab_slot::Disk,
    backend::{DeviceBackend, chain},
    image::ImageSource,
    tool::{FetchError, Invocation, ToolError, ask, digest_of, fetch},
};

/// Who makes nodes, as releases of them say.
const VENDOR: &str = "Firmesh";
/// How long a program may take to say its version; less in tests, one of which waits for it.
const VERSION_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 15 });
/// How long others are waited for when a new version is given up: it is worse for them than an interruption, which they survive.
const FALL_BACK_WITHIN: Duration = Duration::from_secs(30);
/// A line.
const VERSION_BYTES_MAX: usize = 4 << 10;
/// A node has some tens of MiB; debugging information makes it hundreds.
const PROGRAM_BYTES_MAX: u64 = 2 << 30;

/// The node itself.
#[derive(Debug)]
pub struct NodeSelfBackend {
    settings: NodeSelfSettings,
    component: Component,
    images: Arc<dyn ImageSource>,
    own: Option<Arc<dyn Own>>,
    disk: Arc<Disk>,
    /// How often it was said that the node works.
    words: AtomicU64,
}

/// Why an act on the node's own slots failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeSelfError {
    /// Nobody runs that could update itself.
    #[error("the node does not run: only the running node updates itself")]
    NotRunning,
    /// Nothing would start another version, and nothing would fall back.
    #[error(
        "the node was not started by its launcher: nothing would start another version, or go back to this one; start it as its package \
         does, by `firmesh-node --launch DIR -- --config FILE`"
    )]
    NotLaunched,
    /// The slots' file cannot be read.
    #[error("the slots cannot be read: {0}")]
    Slots(String),
    /// The slots' file does not say what the launcher did.
    #[error("{runs} runs, though {confirmed} is confirmed: the launcher could not write the slots' file; see its log")]
    OutOfStep {
        /// What runs.
        runs: Program,
        /// What should.
        confirmed: Program,
    },
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
    /// The slot runs, or is what the next start starts.
    #[error("slot {0} is in use")]
    SlotInUse(Slot),
    /// Nobody said which slot.
    #[error("no slot was named")]
    NoSlot,
    /// The slot holds no program.
    #[error("slot {0} holds no whole program")]
    NoProgram(Slot),
    /// The slot does not hold what it should.
    #[error("slot {slot} read back does not have the digest {expected}")]
    ReadBack {
        /// The slot.
        slot: Slot,
        /// The image's digest.
        expected: Sha256,
    },
    /// The image is not a program for this machine.
    #[error("the image is refused: {0}")]
    Program(#[from] ProgramError),
    /// The image is a program that is not what its release says.
    #[error("the image is refused: its release is of firmesh-node {release}, and `--version` says {said:?}")]
    Version {
        /// What its release says.
        release: String,
        /// What it says.
        said: String,
    },
    /// The image did not say its version.
    #[error("the image is refused: it does not say its version: {0}")]
    Mute(String),
    /// The image could not be asked, or had no time to answer.
    #[error("the image could not be asked for its version: {0}")]
    NotAsked(String),
    /// The image could not be had.
    #[error("{0}")]
    Fetch(String, bool),
    /// It does not work, so it is not kept.
    #[error("the new version does not work yet: {0}")]
    DoesNotWork(String),
    /// Others are at work.
    #[error("the node was not restarted: {0}")]
    Busy(String),
    /// Nothing of it is on trial.
    #[error("what runs is not on trial")]
    NoTrial,
    /// A worker thread died.
    #[error("a worker thread died")]
    Worker(#[source] tokio::task::JoinError),
}

impl NodeSelfError {
    /// Whether the same act may succeed later.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::File { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
            ),
            Self::Fetch(_, retry) => *retry,
            Self::ReadBack { .. } | Self::NotAsked(_) | Self::DoesNotWork(_) | Self::Worker(_) => true,
            _ => false,
        }
    }
}

impl NodeSelfBackend {
    /// A backend for the node that `own` is; without one, only for looking.
    #[must_use]
    pub fn new(
        settings: NodeSelfSettings,
        component: Component,
        images: Arc<dyn ImageSource>,
        own: Option<Arc<dyn Own>>,
    ) -> Self {
        Self {
            settings,
            component,
            images,
            own,
            disk: Arc::new(Disk::default()),
            words: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    pub(super) fn losing_power_after(mut self, writes: usize) -> Self {
        self.disk = Arc::new(Disk {
            writes_left: Some(writes.into()),
        });
        self
    }

    pub(super) fn own(&self) -> Result<&Arc<dyn Own>, NodeSelfError> {
        self.own.as_ref().ok_or(NodeSelfError::NotRunning)
    }

    fn launched(&self) -> Result<(&Arc<dyn Own>, &Launched, SlotsFolder), NodeSelfError> {
        let own = self.own()?;
        let launched = own.launched().ok_or(NodeSelfError::NotLaunched)?;
        Ok((own, launched, SlotsFolder::new(launched.dir.clone().into())))
    }

    /// What the slots' file says, and what of it runs.
    async fn slots(&self) -> Result<(SlotsFolder, NodeSlots, SlotsSeen), NodeSelfError> {
        let (_, launched, folder) = self.launched()?;
        let read = folder.clone();
        let slots = blocking(move || read.read().map_err(NodeSelfError::Slots)).await?;
        let seen = slots.seen(launched.program).ok_or_else(|| NodeSelfError::OutOfStep {
            runs: launched.program,
            confirmed: slots.confirmed.map_or(Program::Packaged, Program::Slot),
        })?;
        Ok((folder, slots, seen))
    }

    /// The same for a slot that is to be changed.
    async fn slots_but(&self, slot: Option<Slot>) -> Result<(SlotsFolder, NodeSlots, Slot), NodeSelfError> {
        let slot = slot.ok_or(NodeSelfError::NoSlot)?;
        let (folder, slots, seen) = self.slots().await?;
        if slot == seen.running || slot == seen.saved {
            return Err(NodeSelfError::SlotInUse(slot));
        }
        Ok((folder, slots, slot))
    }

    async fn keep(&self, folder: &SlotsFolder, slots: &NodeSlots) -> Result<(), NodeSelfError> {
        let (folder, slots, disk) = (folder.clone(), slots.clone(), Arc::clone(&self.disk));
        blocking(move || {
            let kept = folder.keep_on(&disk, &slots);
            kept.map_err(file_error("replace", &folder.file()))
        })
        .await
    }

    async fn see(&self) -> Result<Seen, NodeSelfError> {
        let own = self.own()?;
        let (staged, task, seen) = match self.slots().await {
            // Nobody can update it, and what it runs is known all the same.
            Err(NodeSelfError::NotLaunched) => (Staged::Nothing, None, None),
            Err(error) => return Err(error),
            Ok((folder, slots, seen)) => {
                // What nobody is going to confirm is not kept alive: the launcher goes back by itself.
                let is_tried = slots.trial.as_ref().is_some_and(|trial| trial.slot == seen.running);
                if seen.on_trial() && is_tried && own.updates_itself() {
                    own.works().map_err(NodeSelfError::DoesNotWork)?;
                    self.say(own.start_id(), &folder).await?;
                }
                let other = seen.running.other();
                let staged = match slots.slot(other) {
                    SlotContent::Ready { version, sha256, .. } if other != seen.saved || slots.confirmed.is_some() => {
                        Staged::Image {
                            version: version.clone(),
                            sha256: *sha256,
                            armed: slots.trial.as_ref().is_some_and(|trial| trial.slot == other),
                        }
                    }
                    _ => Staged::Nothing,
                };
                (staged, slots.task(), Some(seen))
            }
        };
        Ok(Seen {
            vendor: VENDOR.to_owned(),
            model: model(),
            component: self.component.clone(),
            version: Some(version_of(own.version()).to_owned()),
            ready: true,
            boot_id: Some(own.start_id().to_owned()),
            staged,
            task,
            slots: seen,
            image_bytes_max: Some(PROGRAM_BYTES_MAX),
            resets: vec![Rung::Warm],
            health: HealthSample::default(),
            clock_off_s: None,
        })
    }

    /// Tells the launcher that the node on trial works.
    async fn say(&self, start: &str, folder: &SlotsFolder) -> Result<(), NodeSelfError> {
        let word = format!("{start} {}\n", self.words.fetch_add(1, Ordering::Relaxed));
        let folder = folder.clone();
        blocking(move || folder.say(&word).map_err(file_error("write into", folder.path()))).await
    }

    async fn write_slot(&self, image: &Image, slot: Option<Slot>) -> Result<(), NodeSelfError> {
        let (folder, mut slots, slot) = self.slots_but(slot).await?;
        slots.fill(slot, SlotContent::Writing);
        self.keep(&folder, &slots).await?;
        let fresh = folder.fresh_program(slot);
        let parent = fresh.parent().unwrap_or_else(|| folder.path()).to_owned();
        blocking({
            let parent = parent.clone();
            move || fs::create_dir_all(&parent).map_err(file_error("make", &parent))
        })
        .await?;
        let fetched = fetch(self.images.as_ref(), image, &fresh).await;
        fetched.map_err(|error: FetchError| NodeSelfError::Fetch(chain(&error), error.retry()))?;
        self.is_what_it_says(image, &fresh, &parent).await?;
        let put = folder.clone();
        blocking(move || put.put(slot).map_err(file_error("rename to", &put.program(slot)))).await?;
        let content = SlotContent::Ready {
            version: image.info.version.clone(),
            sha256: image.artifact.sha256,
            length: image.artifact.length,
        };
        slots.fill(slot, content);
        self.keep(&folder, &slots).await
    }

    /// A program for this machine, which runs here and has the version of its release. That it works is for its trial to show.
    async fn is_what_it_says(&self, image: &Image, path: &Path, folder: &Path) -> Result<(), NodeSelfError> {
        let file = path.to_owned();
        let length = image.artifact.length;
        blocking(move || {
            let mut header = Vec::new();
            let opened = fs::File::open(&file).map_err(file_error("read", &file))?;
            opened
                .take(64)
                .read_to_end(&mut header)
                .map_err(file_error("read", &file))?;
            check_program(&header, length, std::env::consts::ARCH)?;
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(&file, mode).map_err(file_error("make executable", &file))
        })
        .await?;
        let invocation = Invocation {
            program: path.display().to_string(),
            args: vec!["--version".to_owned()],
            env: BTreeMap::new(),
            folder: folder.to_owned(),
            limit: VERSION_LIMIT,
            output_bytes_max: VERSION_BYTES_MAX,
        };
        let ended = ask(&invocation).await.map_err(|error| match &error {
            ToolError::NotStarted { source, .. } if source.kind() != io::ErrorKind::ExecutableFileBusy => {
                NodeSelfError::Mute(chain(&error))
            }
            // A machine that is busy today is not the program's fault.
            error if error.retry() => NodeSelfError::NotAsked(chain(error)),
            error => NodeSelfError::Mute(chain(error)),
        })?;
        if ended.status.signal() == Some(Signal::SIGKILL as i32) {
            // It does not do that to itself: there was no memory for it, or somebody ended it.
            return Err(NodeSelfError::NotAsked("it was killed".to_owned()));
        }
        if !ended.status.success() {
            return Err(NodeSelfError::Mute(format!(
                "it ended with {}{}",
                ended.status,
                ended.words()
            )));
        }
        let said = String::from_utf8_lossy(&ended.stdout);
        if version_said(&said) == Some(image.info.version.as_str()) {
            return Ok(());
        }
        let line: String = said
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(100)
            .collect();
        Err(NodeSelfError::Version {
            release: image.info.version.clone(),
            said: line,
        })
    }

    async fn arm(&self, slot: Option<Slot>) -> Result<(), NodeSelfError> {
        let (folder, mut slots, slot) = self.slots_but(slot).await?;
        let (_, launched, _) = self.launched()?;
        let SlotContent::Ready { sha256, .. } = slots.slot(slot).clone() else {
            return Err(NodeSelfError::NoProgram(slot));
        };
        // It may have lain there for months.
        let path = folder.program(slot);
        let found = blocking(move || digest_of(&path).map_err(file_error("read back", &path))).await?;
        if found != sha256 {
            return Err(NodeSelfError::ReadBack { slot, expected: sha256 });
        }
        slots.arm(slot, &launched.packaged, self.settings.works_within_s);
        self.keep(&folder, &slots).await
    }

    async fn restart(&self) -> Result<(), NodeSelfError> {
        let (own, ..) = self.launched()?;
        let (folder, mut slots, seen) = self.slots().await?;
        let falls_back = seen.on_trial();
        if falls_back && slots.trial.as_ref().is_some_and(|trial| trial.slot == seen.running) {
            let why = own.works().err();
            slots.give_up(&why.unwrap_or_else(|| "the attempt gave the new version up".to_owned()));
            self.keep(&folder, &slots).await?;
        }
        let within = self.settings.others_within;
        let within = if falls_back {
            within.min(FALL_BACK_WITHIN)
        } else {
            within
        };
        own.restart(within, falls_back).await.map_err(NodeSelfError::Busy)
    }

    async fn keep_trial(&self) -> Result<(), NodeSelfError> {
        let (own, launched, _) = self.launched()?;
        own.works().map_err(NodeSelfError::DoesNotWork)?;
        let (folder, mut slots, _) = self.slots().await?;
        match (launched.program, &slots.trial) {
            (Program::Slot(slot), Some(trial)) if trial.slot == slot => slots.confirm(slot),
            _ => return Err(NodeSelfError::NoTrial),
        }
        self.keep(&folder, &slots).await
    }

    async fn disarm(&self) -> Result<(), NodeSelfError> {
        let (folder, mut slots, seen) = self.slots().await?;
        match &slots.trial {
            Some(trial) if trial.slot != seen.running => {
                slots.give_up("its attempt was given up");
                self.keep(&folder, &slots).await
            }
            _ => Ok(()),
        }
    }
}

impl DeviceBackend for NodeSelfBackend {
    async fn observe(&self, _task: Option<&str>) -> Observed {
        match self.see().await {
            Ok(seen) => Observed::Answering(Box::new(seen)),
            Err(error) => Observed::Silent { why: chain(&error) },
        }
    }

    async fn stage(&self, image: &Image, slot: Option<Slot>) -> Result<Option<String>, ActError> {
        self.launched().map_err(act_error)?;
        self.write_slot(image, slot).await.map_err(act_error)?;
        Ok(None)
    }

    async fn activate(&self, slot: Option<Slot>) -> Result<(), ActError> {
        self.arm(slot).await.map_err(act_error)
    }

    async fn reset(&self, _rung: Rung) -> Result<(), ActError> {
        self.restart().await.map_err(act_error)
    }

    async fn confirm(&self) -> Result<(), ActError> {
        self.keep_trial().await.map_err(act_error)
    }

    async fn abort(&self, _task: Option<&str>) -> Result<(), ActError> {
        self.disarm().await.map_err(act_error)
    }
}

/// What releases for this node name as their model: the machine that the program is for.
pub(super) fn model() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// `1.2.0` of `1.2.0 (commit)`.
pub(super) fn version_of(version: &str) -> &str {
    version.split_whitespace().next().unwrap_or_default()
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, NodeSelfError> + Send + 'static,
) -> Result<T, NodeSelfError> {
    spawn_blocking(act).await.map_err(NodeSelfError::Worker)?
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NodeSelfError {
    let path = path.to_owned();
    move |source| NodeSelfError::File {
        operation,
        path,
        source,
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "stands where map_err wants a function of the error"
)]
fn act_error(error: NodeSelfError) -> ActError {
    ActError {
        reason: chain(&error),
        retry: error.retry(),
    }
}
