//! What a node's two slots hold, and what starts next.

use serde::{Deserialize, Serialize};

use super::program::Program;
use crate::{
    boot::{Slot, SlotContent},
    observed::{SlotsSeen, TaskSeen, TaskState},
    record::bounded,
};

/// The schema this version writes. Launcher and node may be of different versions: what is added is optional and ignored by
/// those who do not know it; what they could not do without takes another schema.
const SCHEMA: &str = "firmesh-node-slots/1";

/// How often a trial is started: once for itself, and twice for power cuts and restarts that are none of its doing.
pub(super) const STARTS_MAX: u32 = 3;

/// How many starts of a trial that ended because the launcher was asked to stop do not count. Not any number: whoever watches the
/// service may stop it because of the trial, and it has to end.
const STOPS_MAX: u32 = 3;

/// What the packaged program counts as while no slot is confirmed: it has no slot, and the first update goes to the other one.
const STAND_IN: Slot = Slot::B;

/// A node's two slots, as their file has them. Without a file there is nothing but the packaged program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSlots {
    schema: String,
    /// The slot that a plain start starts; the packaged program if there is none.
    pub confirmed: Option<Slot>,
    /// The slot that was confirmed before, as long as it holds what it held then.
    pub previous: Option<Slot>,
    /// The packaged program's version when something was armed last.
    pub packaged: Option<String>,
    /// Slot A.
    pub a: SlotContent,
    /// Slot B.
    pub b: SlotContent,
    /// What is on trial, or armed for one.
    pub trial: Option<Trial>,
    /// Trials so far.
    pub trials: u64,
    /// How the last trial ended, if it did not end well.
    pub last: Option<TrialEnd>,
}

/// A slot on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The slot.
    pub slot: Slot,
    /// Which trial this is.
    pub number: u64,
    /// How often it was started.
    pub starts: u32,
    /// For how long it may be silent about whether it works, in seconds.
    pub works_within_s: u32,
    /// How it ended last.
    pub ended: Option<String>,
    /// How often it was stopped along with its launcher, which was not counted as a start.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stops: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A trial that did not end well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialEnd {
    /// Which trial it was.
    pub number: u64,
    /// Why it was given up, for a person.
    pub why: String,
}

/// Why bytes are not the slots' file.
#[derive(Debug, thiserror::Error)]
pub enum NodeSlotsError {
    /// Not JSON of the expected shape.
    #[error("the slots' file does not have the expected form")]
    Malformed(#[source] serde_json::Error),
    /// Written by another version.
    #[error("the slots' file has the schema {0:?}, this version reads {SCHEMA:?}")]
    Schema(String),
}

impl Default for NodeSlots {
    fn default() -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            confirmed: None,
            previous: None,
            packaged: None,
            a: SlotContent::Empty,
            b: SlotContent::Empty,
            trial: None,
            trials: 0,
            last: None,
        }
    }
}

impl NodeSlots {
    /// More than the file ever has.
    pub const BYTES_MAX: u64 = 64 << 10;

    /// The file's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("slots have only names, numbers and text")
    }

    /// Reads the file's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NodeSlotsError> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(NodeSlotsError::Malformed)?;
        if head.schema != SCHEMA {
            return Err(NodeSlotsError::Schema(head.schema.chars().take(80).collect()));
        }
        serde_json::from_slice(bytes).map_err(NodeSlotsError::Malformed)
    }

    /// What a slot holds.
    #[must_use]
    pub fn slot(&self, slot: Slot) -> &SlotContent {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }

    /// A slot is about to be written, or was: nothing may start it meanwhile, and it is not what was confirmed before.
    pub fn fill(&mut self, slot: Slot, content: SlotContent) {
        if self.trial.as_ref().is_some_and(|trial| trial.slot == slot) {
            self.trial = None;
        }
        self.previous = self.previous.filter(|previous| *previous != slot);
        match slot {
            Slot::A => self.a = content,
            Slot::B => self.b = content,
        }
    }

    /// The slots as a device with slots shows them; nothing if what runs is not what should, because the file could not be written.
    #[must_use]
    pub fn seen(&self, running: Program) -> Option<SlotsSeen> {
        let saved = self.confirmed.unwrap_or(STAND_IN);
        let running = match running {
            Program::Slot(slot) => slot,
            Program::Packaged if self.confirmed.is_none() => STAND_IN,
            Program::Packaged => return None,
        };
        Some(SlotsSeen { running, saved })
    }

    /// What became of the last trial, as a device shows a task that failed.
    #[must_use]
    pub fn task(&self) -> Option<TaskSeen> {
        let last = self.last.as_ref()?;
        Some(TaskSeen {
            name: Some(format!("trial {}", last.number)),
            state: TaskState::Failed,
            percent: None,
            message: last.why.clone(),
        })
    }

    /// The next start is a trial of this slot. How the one before ended is no word about it.
    pub fn arm(&mut self, slot: Slot, packaged: &str, works_within_s: u32) {
        self.trials += 1;
        self.packaged = Some(packaged.to_owned());
        self.last = None;
        self.trial = Some(Trial {
            slot,
            number: self.trials,
            starts: 0,
            works_within_s,
            ended: None,
            stops: 0,
        });
    }

    /// A start of this trial does not count: it was ended by whoever stopped the launcher. Whether that is so.
    pub fn give_back(&mut self, number: u64) -> bool {
        match &mut self.trial {
            Some(trial) if trial.number == number && trial.starts > 0 && trial.stops < STOPS_MAX => {
                trial.starts -= 1;
                trial.stops += 1;
                true
            }
            _ => false,
        }
    }

    /// What is on trial is kept.
    pub fn confirm(&mut self, slot: Slot) {
        if self.confirmed != Some(slot) {
            self.previous = self.confirmed;
        }
        (self.confirmed, self.trial, self.last) = (Some(slot), None, None);
    }

    /// What is armed is not tried after all; a trial that has begun ends.
    pub fn give_up(&mut self, why: &str) {
        if let Some(trial) = self.trial.take()
            && trial.starts > 0
        {
            let number = trial.number;
            let why = bounded(why.to_owned());
            self.last = Some(TrialEnd { number, why });
        }
    }

    /// What starts next, and the slots as they must be on disk before it does. `packaged` is the version of the packaged
    /// program, `can_start` says whether the file in a slot is there and whole.
    ///
    /// A package that was installed since something was armed wins over all slots: whoever installed it meant it.
    #[must_use]
    pub fn next(&self, packaged: &str, can_start: impl Fn(Slot, &SlotContent) -> bool) -> (Program, Self) {
        let mut next = self.clone();
        let is_whole = |slots: &Self, slot: Slot| {
            let content = slots.slot(slot);
            matches!(content, SlotContent::Ready { .. }) && can_start(slot, content)
        };
        if next.packaged.as_deref().is_some_and(|known| known != packaged) {
            next.give_up("another package of the node was installed, which is started in its place");
            (next.confirmed, next.previous, next.trial) = (None, None, None);
            next.packaged = Some(packaged.to_owned());
        }
        if let Some(mut trial) = next.trial.clone() {
            let slot = trial.slot;
            if !is_whole(&next, slot) {
                trial.starts = trial.starts.max(1);
                next.trial = Some(trial);
                let ended = next.trial.as_ref().and_then(|trial| trial.ended.clone());
                let ended = ended.unwrap_or_else(|| "it is not there, or not whole".to_owned());
                next.give_up(&format!("the new version in slot {slot} was not started: {ended}"));
            } else if trial.starts >= STARTS_MAX {
                let ended = trial.ended.unwrap_or_else(|| "it ended, nobody saw how".to_owned());
                next.give_up(&format!(
                    "the new version was started {} times and was not confirmed; the last time, {ended}",
                    trial.starts
                ));
            } else {
                trial.starts += 1;
                next.trial = Some(trial);
                return (Program::Slot(slot), next);
            }
        }
        for slot in [next.confirmed, next.previous].into_iter().flatten() {
            if is_whole(&next, slot) {
                next.previous = next.previous.filter(|previous| *previous != slot);
                next.confirmed = Some(slot);
                return (Program::Slot(slot), next);
            }
            next.fill(slot, SlotContent::Empty);
        }
        (next.confirmed, next.previous) = (None, None);
        (Program::Packaged, next)
    }

    /// The same, of a file that cannot be written: nothing that would have to be counted.
    #[must_use]
    pub fn next_uncounted(&self, packaged: &str, can_start: impl Fn(Slot, &SlotContent) -> bool) -> Program {
        let settled = Self {
            trial: None,
            ..self.clone()
        };
        settled.next(packaged, can_start).0
    }
}
