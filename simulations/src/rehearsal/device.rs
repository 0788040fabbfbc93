//! A device as an executor's backend meets it: the models of [`crate::device`], one act at a time, with power that fails
//! in the middle of one.
//!
//! An act on a management controller takes effect when it is begun, and its answer comes later or never. An image is
//! written to a slot from the beginning of the act to its end, in the order of the `ab_slot` executor: mark the slot as
//! being written, write, flush, read back, mark it as ready.

use firmesh_executors_core::{ActError, BootEnv, Input, Observed, Rung, Slot, SlotContent, Step};
use firmesh_protocol::ids::Sha256;

use super::scenario::{FIRST_VERSION, Kind, image};
use crate::device::{
    Bmc, BmcSettings, Catalogue, Firmware, Host, HostSettings, HostState, Misbehaviour, ResetTarget, TaskPhase,
    redfish, slotted::SlottedHost,
};

/// How long devices take for things, in milliseconds.
const FLASH_MS: u64 = 20_000;
const BOOT_MS: u64 = 15_000;

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    what: What,
    /// Nobody gets an answer from it between these.
    silent: (u64, u64),
    /// Whether it was told to die some day: then it is no surprise.
    may_die: bool,
}

#[derive(Debug)]
enum What {
    Bmc(Box<Bmc>),
    Host(Box<SlottedHost>),
}

/// What a device runs, by its own word: nobody else's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Runs {
    /// A version, for good: it comes back with it after a power cut.
    Kept(String),
    /// A version on trial.
    OnTrial(String),
    /// It is starting, or silent for good.
    Nothing,
}

impl Device {
    /// A device that runs the first version.
    pub(super) fn new(kind: Kind, catalogue: &Catalogue) -> Self {
        let mut catalogue = catalogue.clone();
        let first = image(kind, FIRST_VERSION);
        let identity = kind.identity();
        let (version, model) = (FIRST_VERSION.to_owned(), identity.model.clone());
        catalogue.insert(
            first,
            Firmware {
                version: version.clone(),
                model,
            },
        );
        let what = match kind {
            Kind::Bmc | Kind::Bios => {
                let settings = BmcSettings {
                    identity,
                    catalogue,
                    username: String::new(),
                    password: String::new(),
                    flash_ms: FLASH_MS,
                    boot_ms: BOOT_MS,
                };
                What::Bmc(Box::new(Bmc::new(settings, version, 0)))
            }
            Kind::Host => {
                let mut host = Host::new(HostSettings {
                    identity,
                    catalogue,
                    boot_ms: BOOT_MS,
                });
                host.state = HostState::Up {
                    slot: Slot::A,
                    sha256: first,
                    version: version.clone(),
                };
                let content = SlotContent::Ready {
                    version,
                    sha256: first,
                    length: 1 << 20,
                };
                What::Host(Box::new(SlottedHost {
                    host,
                    env: BootEnv::new(Slot::A, content),
                    slots: [Some(first), None],
                    writing: None,
                    trials: 0,
                }))
            }
        };
        Self {
            what,
            silent: (0, 0),
            may_die: false,
        }
    }

    pub(super) fn misbehave(&mut self, how: Misbehaviour) {
        self.may_die |= how == Misbehaviour::NeverBack;
        match &mut self.what {
            What::Bmc(bmc) => bmc.misbehaviour = Some(how),
            What::Host(slotted) => slotted.host.misbehaviour = Some(how),
        }
    }

    /// It goes on with what it does, and answers nobody until then.
    pub(super) fn silence(&mut self, now_ms: u64, until_ms: u64) {
        let since = if self.answers(now_ms) { now_ms } else { self.silent.0 };
        self.silent = (since, until_ms.max(self.silent.1));
    }

    pub(super) fn answers(&self, now_ms: u64) -> bool {
        now_ms >= self.silent.1
    }

    /// Whether any look at it that ends now was in vain.
    pub(super) fn is_long_silent(&self, now_ms: u64) -> bool {
        !self.answers(now_ms) && self.silent.0 + 30_000 < now_ms
    }

    /// Whether a host runs this image, or is starting it: it is no surprise to it any more.
    pub(super) fn has_run(&self, wanted: Sha256) -> bool {
        match &self.what {
            What::Bmc(_) => false,
            What::Host(slotted) => match slotted.host.state {
                HostState::Up { sha256, .. } | HostState::Starting { sha256, .. } => sha256 == wanted,
                HostState::Dead => false,
            },
        }
    }

    pub(super) fn may_die(&self) -> bool {
        self.may_die
    }

    /// What it runs now.
    pub(super) fn runs(&mut self, now_ms: u64) -> Runs {
        self.advance(now_ms);
        match &self.what {
            What::Bmc(bmc) if bmc.answers(now_ms) && bmc.system_is_up(now_ms) => Runs::Kept(bmc.version.clone()),
            What::Bmc(_) => Runs::Nothing,
            What::Host(slotted) => match &slotted.host.state {
                HostState::Up { slot, version, .. } if *slot == slotted.env.saved => Runs::Kept(version.clone()),
                HostState::Up { version, .. } => Runs::OnTrial(version.clone()),
                _ => Runs::Nothing,
            },
        }
    }

    /// Whether it will never answer again by itself.
    pub(super) fn is_dead(&self, now_ms: u64) -> bool {
        match &self.what {
            What::Bmc(bmc) => !bmc.answers(now_ms.saturating_add(1 << 40)),
            What::Host(slotted) => slotted.host.state == HostState::Dead,
        }
    }

    /// How often an image on trial was started since it was armed.
    pub(super) fn trials(&self) -> u32 {
        match &self.what {
            What::Bmc(_) => 0,
            What::Host(slotted) => slotted.trials,
        }
    }

    /// The slots that must not be written: the one that runs, and the one that the next start uses.
    pub(super) fn slots_in_use(&self) -> Vec<Slot> {
        match &self.what {
            What::Bmc(_) => Vec::new(),
            What::Host(slotted) => {
                let running = match slotted.host.state {
                    HostState::Up { slot, .. } | HostState::Starting { slot, .. } => Some(slot),
                    HostState::Dead => None,
                };
                running.into_iter().chain([slotted.env.saved]).collect()
            }
        }
    }

    /// Power fails and comes back. Whether a slot was being written.
    pub(super) fn cut_power(&mut self, now_ms: u64) -> bool {
        self.advance(now_ms);
        match &mut self.what {
            What::Bmc(bmc) => {
                bmc.reset(now_ms, ResetTarget::Manager);
                bmc.reset(now_ms, ResetTarget::System);
                false
            }
            What::Host(slotted) => {
                let was_writing = slotted.writing.take().is_some();
                slotted.restart(now_ms);
                was_writing
            }
        }
    }

    /// How long an act takes, in milliseconds, if all goes well.
    pub(super) fn takes_ms(step: &Step, drawn: u64) -> u64 {
        match step {
            Step::Observe { .. } => 50 + drawn % 250,
            Step::Stage { .. } => 5_000 + drawn % 20_000,
            Step::Activate { .. } => 200 + drawn % 2_000,
            Step::Reset(_) | Step::Confirm | Step::Abort { .. } => 100 + drawn % 400,
        }
    }

    /// Begins an act. What is done at once is done; the answer is kept for the end.
    pub(super) fn begin(&mut self, now_ms: u64, step: &Step) -> Option<Input> {
        self.advance(now_ms);
        if !self.answers(now_ms) {
            return (!matches!(step, Step::Observe { .. })).then(|| failed("it is not to be reached", true));
        }
        match &mut self.what {
            What::Bmc(bmc) => begin_on_bmc(bmc, now_ms, step),
            What::Host(slotted) => slotted.begin(now_ms, step),
        }
    }

    /// Ends an act that [`begin`](Self::begin) did not answer.
    pub(super) fn end(&mut self, now_ms: u64, step: &Step) -> Input {
        self.advance(now_ms);
        if !self.answers(now_ms) {
            return match step {
                Step::Observe { .. } => Input::Observed(silent("it is not to be reached")),
                _ => {
                    self.break_off(now_ms);
                    failed("the connection broke", true)
                }
            };
        }
        match (&mut self.what, step) {
            (What::Bmc(bmc), Step::Observe { task }) => Input::Observed(redfish::look(bmc, now_ms, task.as_deref())),
            (What::Bmc(bmc), Step::Stage { image, .. }) => receive(bmc, now_ms, image.artifact.sha256),
            (What::Host(slotted), Step::Observe { .. }) => Input::Observed(slotted.see()),
            (What::Host(slotted), Step::Stage { image, slot }) => {
                slotted.finish_write(*slot, image.artifact.sha256, &image.info.version)
            }
            _ => failed("the device did nothing", true),
        }
    }

    /// Whoever acted is gone: what was under way stays as it is.
    pub(super) fn break_off(&mut self, now_ms: u64) {
        match &mut self.what {
            What::Bmc(bmc) => {
                let receiving: Vec<_> = bmc
                    .tasks()
                    .filter(|(_, task)| task.phase == TaskPhase::Receiving)
                    .map(|(id, _)| id)
                    .collect();
                for task in receiving {
                    bmc.update_failed(now_ms, task, "the connection was closed".to_owned());
                }
            }
            What::Host(slotted) => slotted.writing = None,
        }
    }

    fn advance(&mut self, now_ms: u64) {
        match &mut self.what {
            What::Bmc(bmc) => {
                bmc.advance(now_ms);
            }
            What::Host(slotted) => {
                slotted.host.advance(now_ms);
            }
        }
    }
}

fn begin_on_bmc(bmc: &mut Bmc, now_ms: u64, step: &Step) -> Option<Input> {
    if matches!(step, Step::Observe { .. }) {
        return None;
    }
    if !bmc.answers(now_ms) {
        return Some(failed("the BMC does not answer", true));
    }
    match step {
        Step::Observe { .. } => None,
        Step::Stage { .. } => match bmc.begin_update(now_ms) {
            Ok(_) => None,
            Err(busy) => Some(failed(&busy.to_string(), true)),
        },
        Step::Activate { .. } => Some(failed("the BMC arms images by itself", false)),
        Step::Reset(rung) => {
            let target = match rung {
                Rung::Bmc => ResetTarget::Manager,
                Rung::Warm | Rung::Cold | Rung::Ac => ResetTarget::System,
            };
            bmc.reset(now_ms, target);
            Some(Input::Acted)
        }
        Step::Confirm => Some(Input::Acted),
        Step::Abort { task } => {
            // A task that stalls does not listen either.
            if let Some(id) = task.as_deref().and_then(|task| task.parse().ok())
                && bmc.misbehaviour != Some(Misbehaviour::Stall)
            {
                bmc.update_failed(now_ms, id, "cancelled".to_owned());
            }
            Some(Input::Acted)
        }
    }
}

fn receive(bmc: &mut Bmc, now_ms: u64, sha256: Sha256) -> Input {
    let receiving = bmc.tasks().find(|(_, task)| task.phase == TaskPhase::Receiving);
    match receiving.map(|(id, _)| id) {
        Some(task) => {
            bmc.image_arrived(now_ms, task, sha256, 1 << 20);
            Input::Staged {
                task: Some(task.to_string()),
            }
        }
        None => failed("the connection was closed", true),
    }
}

fn silent(why: &str) -> Observed {
    Observed::Silent { why: why.to_owned() }
}

pub(super) fn failed(reason: &str, retry: bool) -> Input {
    Input::ActFailed(ActError {
        reason: reason.to_owned(),
        retry,
    })
}
