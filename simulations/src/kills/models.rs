//! The devices of every executor, each with what its executor does to it and what it leaves behind when it dies.

use firmesh_executors_core::{
    ActError, BootEnv, Goal, Image, Input, Observed, Rung, Seen, Slot, SlotContent, Staged, Step, TaskSeen, TaskState,
};
use firmesh_protocol::{
    health::HealthSample,
    ids::{ArtifactId, CampaignId, Component, DeviceId, Sha256},
    manifest::{Artifact, Deadlines, RELEASE_SCHEMA, ReleaseInfo, Reversibility},
    report::PermitKind,
};

use super::course::{Model, Truth};
use crate::device::{
    Bmc, BmcSettings, Catalogue, Firmware, Host, HostSettings, HostState, Identity, Misbehaviour, TaskPhase,
    faulty::Fault, redfish, slotted::SlottedHost,
};

pub(crate) const OLD: &str = "1.0.0";
pub(crate) const NEW: &str = "1.1.0";
/// What a good BMC takes to restart, and to write an image, in milliseconds.
const BOOT_MS: u64 = 60_000;
const FLASH_MS: u64 = 120_000;
/// How long a tool is at work.
const TOOL_MS: u64 = 60_000;

fn identity(component: &str) -> Identity {
    Identity {
        vendor: "Acme".to_owned(),
        model: "R1".to_owned(),
        component: Component::new(component).expect("a name"),
    }
}

fn catalogue() -> Catalogue {
    let firmware = |version: &str| Firmware {
        version: version.to_owned(),
        model: "R1".to_owned(),
    };
    [OLD, NEW].map(|version| (digest(version), firmware(version))).into()
}

fn digest(version: &str) -> Sha256 {
    Sha256::of(version.as_bytes())
}

/// An update of `component` to the new version, with the time limits that are advised for servers.
pub(crate) fn goal(component: &str) -> Goal {
    let Identity {
        vendor,
        model,
        component,
    } = identity(component);
    let id = ArtifactId::of(NEW.as_bytes());
    Goal {
        device: DeviceId::new("d").expect("a name"),
        campaign: CampaignId::new("spring").expect("a name"),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        image: Image {
            target: "firmware/r1.bin".to_owned(),
            artifact: Artifact {
                id,
                sha256: digest(NEW),
                length: 1 << 20,
            },
            info: ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: id,
                vendor,
                models: vec![model],
                component,
                version: NEW.to_owned(),
                security_epoch: 1,
                from_versions: Vec::new(),
                reversibility: Reversibility::Reversible,
                provenance: None,
                version_scheme: None,
                min_from: None,
                requires: Vec::new(),
                conflicts: Vec::new(),
            },
        },
        security_epoch_min: 0,
        deadlines: Deadlines {
            attempt_s: 7_200,
            back_s: 480,
        },
        health: None,
        answers_min: Goal::ANSWERS_MIN,
        answers_apart_ms: None,
        step: None,
        pace_ms: 2_000,
    }
}

/// What the executors of [`super::Executor`] act on.
pub(crate) fn redfish(component: &str, fault: Option<Fault>) -> Redfish {
    let settings = BmcSettings {
        identity: identity(component),
        catalogue: catalogue(),
        username: String::new(),
        password: String::new(),
        flash_ms: FLASH_MS,
        boot_ms: BOOT_MS,
    };
    let mut bmc = Bmc::new(settings, OLD.to_owned(), 0);
    bmc.misbehaviour = fault.map(|fault| Misbehaviour::Faulty { fault });
    Redfish { bmc, answer: None }
}

/// A BMC behind Redfish.
#[derive(Debug)]
pub(crate) struct Redfish {
    bmc: Bmc,
    answer: Option<Input>,
}

impl Model for Redfish {
    fn look(&mut self, now_ms: u64, task: Option<&str>) -> Observed {
        self.bmc.advance(now_ms);
        redfish::look(&self.bmc, now_ms, task)
    }

    fn begin(&mut self, now_ms: u64, step: &Step) -> u64 {
        self.answer = Some(redfish::act(&mut self.bmc, now_ms, step));
        2_000
    }

    fn end(&mut self, now_ms: u64, _step: &Step) -> Input {
        self.bmc.advance(now_ms);
        self.answer.take().unwrap_or_else(|| failed("nothing was begun", true))
    }

    fn abandon(&mut self, now_ms: u64, step: &Step) {
        self.bmc.advance(now_ms);
        // An upload that breaks off leaves a task that failed; every other request is one packet.
        if matches!(step, Step::Stage { .. })
            && self.bmc.trouble(now_ms).is_none()
            && let Ok(task) = self.bmc.begin_update(now_ms)
        {
            self.bmc
                .update_failed(now_ms, task, "the connection was closed".to_owned());
        }
    }

    fn breach(&mut self, now_ms: u64, step: &Step) -> Option<String> {
        self.bmc.advance(now_ms);
        let holds = |version: Option<&str>| version == Some(NEW);
        let waits = self
            .bmc
            .tasks()
            .any(|(_, task)| matches!(task.phase, TaskPhase::Waiting { .. }));
        match step {
            Step::Stage { .. } if holds(Some(&self.bmc.version)) => Some("it is flashed with what it runs".to_owned()),
            Step::Stage { .. } if holds(self.bmc.pending()) || waits => {
                Some("it is flashed with what waits to be started".to_owned())
            }
            Step::Stage { .. } if self.bmc.is_writing(now_ms) => Some("it is flashed while it writes".to_owned()),
            Step::Reset(_) if self.bmc.is_writing(now_ms) => Some("it is reset while it writes".to_owned()),
            _ => None,
        }
    }

    fn truth(&mut self, now_ms: u64) -> Truth {
        self.bmc.advance(now_ms);
        let lives = self.bmc.answers(now_ms + (1 << 40));
        Truth {
            version: lives.then(|| self.bmc.version.clone()),
            pending: self.bmc.pending().map(str::to_owned),
        }
    }
}

/// Who writes the slots of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotWriter {
    /// Firmesh: the write ends with it.
    Ours,
    /// SWUpdate, a process of its own: Firmesh marks the slot once it has heard of the end.
    Swupdate,
    /// RAUC, a process of its own that keeps its own books, and arms what it has written.
    Rauc,
}

pub(crate) fn slotted(writer: SlotWriter) -> Slotted {
    let mut host = Host::new(HostSettings {
        identity: identity("host"),
        catalogue: catalogue(),
        boot_ms: BOOT_MS,
    });
    host.state = HostState::Up {
        slot: Slot::A,
        sha256: digest(OLD),
        version: OLD.to_owned(),
    };
    let content = SlotContent::Ready {
        version: OLD.to_owned(),
        sha256: digest(OLD),
        length: 1 << 20,
    };
    Slotted {
        writer,
        host: SlottedHost {
            host,
            env: BootEnv::new(Slot::A, content),
            slots: [Some(digest(OLD)), None],
            writing: None,
            trials: 0,
        },
        answer: None,
        writes_until_ms: None,
    }
}

/// A host with two slots.
#[derive(Debug)]
pub(crate) struct Slotted {
    writer: SlotWriter,
    host: SlottedHost,
    answer: Option<Input>,
    /// Until when a writer of its own is at work.
    writes_until_ms: Option<u64>,
}

impl Slotted {
    fn advance(&mut self, now_ms: u64) {
        self.host.host.advance(now_ms);
        let ended = self.writes_until_ms.is_some_and(|until_ms| until_ms <= now_ms);
        if ended && self.writer == SlotWriter::Rauc {
            self.finish();
        }
        if ended {
            self.writes_until_ms = None;
        }
    }

    fn is_at_work(&self) -> bool {
        self.writes_until_ms.is_some()
    }

    /// The slot is written; RAUC makes it the next one to start.
    fn finish(&mut self) -> Input {
        let Some((slot, sha256)) = self.host.writing else {
            return failed("nothing is being written", true);
        };
        let done = self.host.finish_write(Some(slot), sha256, NEW);
        if self.writer == SlotWriter::Rauc {
            self.host.env.trial = Some(slot);
        }
        done
    }
}

impl Model for Slotted {
    fn look(&mut self, now_ms: u64, _task: Option<&str>) -> Observed {
        self.advance(now_ms);
        let mut seen = self.host.see();
        if let Observed::Answering(seen) = &mut seen
            && self.writer == SlotWriter::Rauc
            && self.is_at_work()
        {
            seen.staged = Staged::Nothing;
            seen.task = Some(at_work());
        }
        seen
    }

    fn begin(&mut self, now_ms: u64, step: &Step) -> u64 {
        self.advance(now_ms);
        if matches!(step, Step::Stage { .. }) && self.is_at_work() {
            self.answer = Some(failed("its writer is at work", true));
            return 100;
        }
        self.answer = self.host.begin(now_ms, step);
        match step {
            Step::Stage { .. } if self.answer.is_none() => {
                self.writes_until_ms = (self.writer != SlotWriter::Ours).then_some(now_ms + TOOL_MS);
                TOOL_MS
            }
            _ => 500,
        }
    }

    fn end(&mut self, now_ms: u64, step: &Step) -> Input {
        if let Some(answer) = self.answer.take() {
            return answer;
        }
        let heard = match (self.writer, step) {
            (SlotWriter::Rauc, _) => {
                self.advance(now_ms);
                Input::Staged { task: None }
            }
            _ => self.finish(),
        };
        self.writes_until_ms = None;
        heard
    }

    fn abandon(&mut self, now_ms: u64, step: &Step) {
        if !matches!(step, Step::Stage { .. }) {
            // One write to a file, or one command: it happens, and nobody hears of it.
            self.begin(now_ms, step);
            self.answer = None;
            return;
        }
        self.begin(now_ms, step);
        self.answer = None;
        match self.writer {
            SlotWriter::Ours => self.host.writing = None,
            // It goes on; what it has written counts for nothing while nobody has marked it.
            SlotWriter::Swupdate => self.host.writing = None,
            SlotWriter::Rauc => {}
        }
    }

    fn breach(&mut self, now_ms: u64, step: &Step) -> Option<String> {
        self.advance(now_ms);
        let slot = match step {
            Step::Stage { slot, .. } => (*slot)?,
            Step::Reset(_) if self.is_at_work() && self.writer == SlotWriter::Rauc => {
                return Some("it is reset while it is written".to_owned());
            }
            _ => return None,
        };
        let running = match self.host.host.state {
            HostState::Up { slot, .. } | HostState::Starting { slot, .. } => Some(slot),
            HostState::Dead => None,
        };
        if Some(slot) == running || slot == self.host.env.saved {
            return Some(format!("slot {slot} is written while it is in use"));
        }
        let holds = matches!(self.host.env.slot(slot), SlotContent::Ready { sha256, .. } if *sha256 == digest(NEW));
        holds.then(|| format!("slot {slot} is written with what it holds"))
    }

    fn truth(&mut self, now_ms: u64) -> Truth {
        let now_ms = now_ms + 10 * BOOT_MS;
        self.advance(now_ms);
        let version = match &self.host.host.state {
            HostState::Up { version, .. } => Some(version.clone()),
            HostState::Starting { .. } | HostState::Dead => None,
        };
        // What the next start brings up.
        let next = self.host.env.trial.unwrap_or(self.host.env.saved);
        let next = match self.host.env.slot(next) {
            SlotContent::Ready { version, .. } => Some(version.clone()),
            SlotContent::Empty | SlotContent::Writing => None,
        };
        Truth {
            pending: next.filter(|next| Some(next) != version.as_ref()),
            version,
        }
    }
}

pub(crate) fn tool() -> Tool {
    Tool {
        version: OLD.to_owned(),
        pending: None,
        until_ms: None,
        note: Note::None,
        boots: 1,
        up_at_ms: 0,
        answer: None,
    }
}

/// A device that a described tool updates, and a reset of which brings the version up.
#[derive(Debug)]
pub(crate) struct Tool {
    version: String,
    pending: Option<String>,
    /// Until when the tool is at work: it outlives who started it.
    until_ms: Option<u64>,
    note: Note,
    boots: u64,
    up_at_ms: u64,
    answer: Option<Input>,
}

/// What the executor has written down beside the tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Note {
    None,
    Begun,
    Waits { boots: u64 },
}

impl Tool {
    fn advance(&mut self, now_ms: u64) {
        if self.until_ms.is_some_and(|until_ms| until_ms <= now_ms) {
            self.until_ms = None;
            self.pending = Some(NEW.to_owned());
        }
    }

    fn task(&mut self) -> Option<TaskSeen> {
        let task = |state| TaskSeen { state, ..at_work() };
        match self.note {
            _ if self.until_ms.is_some() => Some(at_work()),
            Note::None => None,
            _ if self.version == NEW => {
                self.note = Note::None;
                None
            }
            Note::Begun => Some(task(TaskState::Gone)),
            Note::Waits { boots } => {
                if boots != self.boots {
                    self.note = Note::None;
                }
                Some(task(TaskState::Completed))
            }
        }
    }

    fn restart(&mut self, now_ms: u64) {
        self.boots += 1;
        self.up_at_ms = now_ms + BOOT_MS;
        if let Some(pending) = self.pending.take() {
            self.version = pending;
        }
    }
}

impl Model for Tool {
    fn look(&mut self, now_ms: u64, _task: Option<&str>) -> Observed {
        self.advance(now_ms);
        if now_ms < self.up_at_ms {
            return Observed::Silent {
                why: "the tool says that there is no such device".to_owned(),
            };
        }
        let Identity {
            vendor,
            model,
            component,
        } = identity("nic");
        let task = self.task();
        Observed::Answering(Box::new(Seen {
            vendor,
            model,
            component,
            version: Some(self.version.clone()),
            ready: true,
            boot_id: self.until_ms.is_none().then(|| self.boots.to_string()),
            staged: Staged::Hidden,
            task,
            slots: None,
            image_bytes_max: None,
            resets: vec![Rung::Warm],
            health: HealthSample::default(),
            clock_off_s: None,
        }))
    }

    fn begin(&mut self, now_ms: u64, step: &Step) -> u64 {
        self.advance(now_ms);
        match step {
            Step::Stage { .. } if self.until_ms.is_some() => {
                self.answer = Some(failed("the tool is at work", true));
                100
            }
            Step::Stage { .. } => {
                (self.note, self.until_ms) = (Note::Begun, Some(now_ms + TOOL_MS));
                TOOL_MS
            }
            Step::Reset(_) => {
                self.restart(now_ms);
                self.answer = Some(Input::Acted);
                500
            }
            Step::Abort { .. } => {
                self.until_ms = None;
                self.answer = Some(Input::Acted);
                100
            }
            Step::Activate { .. } | Step::Confirm | Step::Observe { .. } => {
                self.answer = Some(failed("devices behind a described tool have no slots", false));
                100
            }
        }
    }

    fn end(&mut self, now_ms: u64, _step: &Step) -> Input {
        self.advance(now_ms);
        if let Some(answer) = self.answer.take() {
            return answer;
        }
        self.note = Note::Waits { boots: self.boots };
        Input::Staged {
            task: Some("waits for a reset".to_owned()),
        }
    }

    fn abandon(&mut self, now_ms: u64, step: &Step) {
        self.begin(now_ms, step);
        self.answer = None;
    }

    fn breach(&mut self, now_ms: u64, step: &Step) -> Option<String> {
        self.advance(now_ms);
        match step {
            Step::Stage { .. } if self.version == NEW || self.pending.is_some() => {
                Some("it is flashed with what it holds".to_owned())
            }
            Step::Reset(_) if self.until_ms.is_some() => Some("it is reset while the tool is at work".to_owned()),
            _ => None,
        }
    }

    fn truth(&mut self, now_ms: u64) -> Truth {
        self.advance(now_ms + 10 * BOOT_MS);
        Truth {
            version: Some(self.version.clone()),
            pending: self.pending.clone(),
        }
    }
}

fn at_work() -> TaskSeen {
    TaskSeen {
        name: None,
        state: TaskState::Active,
        percent: None,
        message: "it is at work".to_owned(),
    }
}

fn failed(reason: &str, retry: bool) -> Input {
    Input::ActFailed(ActError {
        reason: reason.to_owned(),
        retry,
    })
}
