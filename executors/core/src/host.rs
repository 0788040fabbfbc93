//! A host that steps aside before the first act of an attempt, and is given back after its end: decided here, carried out by a
//! shell.
//!
//! Invariants: a host is entered only after a record that says so is durable, and that record goes only after the host was seen
//! back in service, so that whoever has a record owes the host its way back; nobody is granted a host that was not seen aside
//! since he came, nor one that was told to step aside without a good end of that, for its end asks what a look does not see; a
//! host that was aside before we came is owed nothing and left as it is; giving back is tried for ever.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use firmesh_protocol::{ids::DeviceId, time::Timestamp};
use serde::{Deserialize, Serialize};

use crate::step::ActError;

/// The schema this version writes. Readers refuse any other.
const RECORD_SCHEMA: &str = "firmesh-host/1";
/// A record is two words.
const RECORD_BYTES_MAX: usize = 1 << 10;

/// Before the first repetition; doubled with each.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
/// Before later repetitions while somebody waits, and while a host is given back: it has its people's attention by then.
const AGAIN_WAITED_FOR: Duration = Duration::from_secs(60);
const AGAIN_GIVING_BACK: Duration = Duration::from_secs(300);

/// Where a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// In service, as far as we are concerned.
    Back,
    /// Somebody wants it aside: it is looked at.
    Wanted,
    /// It is told to step aside.
    Entering,
    /// It was seen aside; whoever comes later has it looked at again.
    Aside,
    /// It is given back.
    Leaving,
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Back => "back",
            Self::Wanted => "wanted",
            Self::Entering => "entering",
            Self::Aside => "aside",
            Self::Leaving => "leaving",
        })
    }
}

/// What survives a crash: as long as there is one, the host is owed its way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    schema: String,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Entering,
    Aside,
    Leaving,
}

/// Why stored bytes are not a host's record.
#[derive(Debug, thiserror::Error)]
pub enum HostRecordError {
    /// Too long to be ours.
    #[error("the host's record has {0} bytes, at most {RECORD_BYTES_MAX} are read")]
    TooLong(usize),
    /// Not JSON of the expected shape.
    #[error("the host's record does not have the expected form")]
    Malformed(#[source] serde_json::Error),
    /// Written by another version.
    #[error("the host's record has the schema {0:?}, this version reads {RECORD_SCHEMA:?}")]
    Schema(String),
}

impl HostRecord {
    fn new(stage: Stage) -> Self {
        let schema = RECORD_SCHEMA.to_owned();
        Self { schema, stage }
    }

    /// What a record that cannot be read says all the same: that the host is owed its way back.
    #[must_use]
    pub fn unreadable() -> Self {
        Self::new(Stage::Entering)
    }

    /// The record as stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record has only words")
    }

    /// Reads a stored record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HostRecordError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(HostRecordError::TooLong(bytes.len()));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(HostRecordError::Malformed)?;
        if record.schema != RECORD_SCHEMA {
            return Err(HostRecordError::Schema(record.schema.chars().take(80).collect()));
        }
        Ok(record)
    }
}

/// What a look at a host shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostSeen {
    /// It serves.
    InService,
    /// It has stepped aside, wholly.
    Aside,
    /// Nobody can tell, or something in between.
    Unknown {
        /// Why.
        why: String,
    },
}

/// One act on a host. All of them may be repeated, and are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostStep {
    /// See where it stands.
    Look,
    /// Have it step aside; it may be there already, partly or wholly. What must hold of the hosts around it holds when this
    /// has ended well.
    Enter,
    /// Give it back; it may be there already, or an `Enter` of before a crash be under way.
    Leave,
}

/// What the shell tells the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostInput {
    /// The answer to [`HostStep::Look`].
    Looked(HostSeen),
    /// The answer to another step, carried out.
    Acted,
    /// The answer to another step that failed, perhaps half-way. Without `retry`, entering is given up.
    ActFailed(ActError),
    /// Time passed.
    Tick,
}

/// What the machine tells the shell, in order: an output is dealt with before the next one is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostOutput {
    /// Make this durable before going on; `None`: forget the record, the host is owed nothing.
    Persist(Option<HostRecord>),
    /// Carry this out and hand back its answer. One at a time.
    Step(HostStep),
    /// The host was seen aside just now: the device's attempt may act.
    Granted(DeviceId),
    /// The host does not step aside: the device is forgotten here.
    Refused {
        /// The device.
        device: DeviceId,
        /// Why not.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    /// Its attempt cannot go on yet for another reason, and must not find the host back.
    Kept,
    Waiting {
        until: Timestamp,
    },
    Granted,
}

/// One host and the devices of it that an attempt is at.
#[derive(Debug)]
pub struct Host {
    state: HostState,
    /// What the record says; nothing if there is none.
    owed: Option<Stage>,
    users: BTreeMap<DeviceId, User>,
    under_way: Option<HostStep>,
    /// Whether the last step was an act, so that the look after it has to show its effect.
    acted: bool,
    /// Before then nothing is repeated.
    wake: Option<Timestamp>,
    tries: u32,
    problem: String,
    since: Timestamp,
    /// Tells the pauses of hosts apart that were in each other's way.
    seed: u64,
    outputs: VecDeque<HostOutput>,
}

impl Host {
    /// A host with the record that the journal has of it. Users come next, then [`Host::begin`].
    #[must_use]
    pub fn new(record: Option<&HostRecord>, seed: u64, now: Timestamp) -> Self {
        let owed = record.map(|record| record.stage);
        Self {
            state: match owed {
                None => HostState::Back,
                // It is looked at first: what the record names was intended, and people have hands.
                Some(Stage::Entering | Stage::Aside) => HostState::Wanted,
                Some(Stage::Leaving) => HostState::Leaving,
            },
            owed,
            users: BTreeMap::new(),
            under_way: None,
            acted: false,
            wake: None,
            tries: 0,
            problem: String::new(),
            since: now,
            seed,
            outputs: VecDeque::new(),
        }
    }

    /// Everybody who used the host before a crash has been named: go on.
    pub fn begin(&mut self, now: Timestamp) {
        self.go_on(now);
    }

    /// An attempt on a device must not find the host given back, and cannot use it yet.
    pub fn keep(&mut self, device: &DeviceId) {
        self.users.entry(device.clone()).or_insert(User::Kept);
    }

    /// An attempt on a device wants the host aside by `until`.
    pub fn want(&mut self, device: &DeviceId, until: Timestamp, now: Timestamp) {
        self.users.insert(device.clone(), User::Waiting { until });
        self.go_on(now);
    }

    /// The attempt on a device has ended, in whatever way.
    pub fn release(&mut self, device: &DeviceId, now: Timestamp) {
        self.users.remove(device);
        self.go_on(now);
    }

    /// Takes in a fact.
    pub fn handle(&mut self, now: Timestamp, input: HostInput) {
        match (input, self.under_way) {
            (HostInput::Looked(seen), Some(HostStep::Look)) => {
                self.under_way = None;
                self.looked(now, seen);
            }
            (HostInput::Acted, Some(HostStep::Enter | HostStep::Leave)) => {
                self.under_way = None;
                self.acted = true;
                self.ask(HostStep::Look);
            }
            (HostInput::ActFailed(error), Some(step @ (HostStep::Enter | HostStep::Leave))) => {
                self.under_way = None;
                if step == HostStep::Enter && !error.retry {
                    self.refuse(&error.reason, |_| true);
                }
                self.pause(now, error.reason);
            }
            _ => {}
        }
        self.go_on(now);
    }

    /// The next instruction, if there is one.
    pub fn poll(&mut self) -> Option<HostOutput> {
        self.outputs.pop_front()
    }

    /// When the machine wants to hear [`HostInput::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let late = self.users.values().filter_map(|user| match user {
            User::Waiting { until } => Some(*until),
            _ => None,
        });
        let goes_on = self.state == HostState::Leaving || self.is_waited_for();
        let wake = self.wake.filter(|_| self.under_way.is_none() && goes_on);
        late.chain(wake).min()
    }

    /// Where the host stands.
    #[must_use]
    pub fn state(&self) -> HostState {
        self.state
    }

    /// Since when it has stood there.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Whether we have to give it back.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.owed.is_some()
    }

    /// What failed last since it stands there, and how often something has.
    #[must_use]
    pub fn problem(&self) -> Option<(&str, u32)> {
        (!self.problem.is_empty()).then_some((self.problem.as_str(), self.tries))
    }

    /// The devices that an attempt is at.
    pub fn users(&self) -> impl Iterator<Item = &DeviceId> {
        self.users.keys()
    }

    fn is_waited_for(&self) -> bool {
        self.users.values().any(|user| matches!(user, User::Waiting { .. }))
    }

    fn go_on(&mut self, now: Timestamp) {
        self.refuse_late(now);
        if self.under_way.is_some() {
            return;
        }
        let is_used = !self.users.is_empty();
        let is_waited_for = self.is_waited_for();
        let is_time = self.wake.is_none_or(|wake| wake <= now);
        match self.state {
            HostState::Back if is_waited_for => {
                self.enter(HostState::Wanted, now);
                self.ask(HostStep::Look);
            }
            HostState::Wanted | HostState::Entering | HostState::Aside if !is_used => self.give_back(now),
            // One that was seen aside as well: people have hands, and more than one of them uses it.
            HostState::Wanted | HostState::Entering | HostState::Aside if is_waited_for && is_time => {
                self.ask(HostStep::Look);
            }
            HostState::Leaving if is_time => self.ask(HostStep::Leave),
            _ => {}
        }
    }

    fn looked(&mut self, now: Timestamp, seen: HostSeen) {
        let acted = std::mem::take(&mut self.acted);
        match (self.state, seen) {
            // It may have stepped aside after nobody listened any more: what is asked at the end of that is asked now.
            (HostState::Wanted | HostState::Entering, HostSeen::Aside)
                if self.owed == Some(Stage::Entering) && !acted =>
            {
                if self.is_waited_for() {
                    self.ask(HostStep::Enter);
                }
            }
            (HostState::Wanted | HostState::Entering, HostSeen::Aside) => {
                if self.owed.is_some() {
                    self.persist(Some(Stage::Aside));
                }
                self.enter(HostState::Aside, now);
                self.grant();
            }
            (HostState::Aside, HostSeen::Aside) => {
                (self.tries, self.wake) = (0, None);
                self.problem.clear();
                self.grant();
            }
            (HostState::Wanted | HostState::Entering, HostSeen::InService) if acted => {
                self.pause(now, "it was told to step aside, and is still in service".to_owned());
            }
            (HostState::Wanted | HostState::Entering | HostState::Aside, HostSeen::InService)
                if self.is_waited_for() =>
            {
                self.persist(Some(Stage::Entering));
                if self.state != HostState::Entering {
                    self.enter(HostState::Entering, now);
                }
                self.ask(HostStep::Enter);
            }
            (HostState::Leaving, HostSeen::InService) => {
                self.persist(None);
                self.enter(HostState::Back, now);
            }
            (HostState::Leaving, HostSeen::Aside) => {
                self.pause(now, "it was given back, and is still aside".to_owned());
            }
            (_, HostSeen::Unknown { why }) => self.pause(now, why),
            // Nobody waits for it any more.
            (_, HostSeen::InService | HostSeen::Aside) => {}
        }
    }

    fn give_back(&mut self, now: Timestamp) {
        if self.owed.is_none() {
            return self.enter(HostState::Back, now);
        }
        self.persist(Some(Stage::Leaving));
        self.enter(HostState::Leaving, now);
        self.ask(HostStep::Leave);
    }

    fn grant(&mut self) {
        for (device, user) in &mut self.users {
            if matches!(user, User::Waiting { .. }) {
                *user = User::Granted;
                self.outputs.push_back(HostOutput::Granted(device.clone()));
            }
        }
    }

    fn refuse_late(&mut self, now: Timestamp) {
        let reason = match self.problem.as_str() {
            "" => format!("it did not step aside in time ({})", self.state),
            problem => format!("it did not step aside in time ({}): {problem}", self.state),
        };
        self.refuse(&reason, |until| until <= now);
    }

    fn refuse(&mut self, reason: &str, which: impl Fn(Timestamp) -> bool) {
        let outputs = &mut self.outputs;
        self.users.retain(|device, user| match user {
            User::Waiting { until } if which(*until) => {
                let (device, reason) = (device.clone(), reason.to_owned());
                outputs.push_back(HostOutput::Refused { device, reason });
                false
            }
            _ => true,
        });
    }

    fn ask(&mut self, step: HostStep) {
        self.wake = None;
        self.under_way = Some(step);
        self.outputs.push_back(HostOutput::Step(step));
    }

    fn enter(&mut self, state: HostState, now: Timestamp) {
        self.state = state;
        self.since = now;
        self.tries = 0;
        self.problem.clear();
        self.wake = None;
        self.acted = false;
    }

    fn pause(&mut self, now: Timestamp, why: String) {
        let most = match self.state {
            HostState::Leaving => AGAIN_GIVING_BACK,
            _ => AGAIN_WAITED_FOR,
        };
        let pause = AGAIN_FIRST.saturating_mul(1 << self.tries.min(16)).min(most);
        // Up to a half more, so that two that were in each other's way are not so again.
        let more = self.seed.rotate_left(self.tries % 64) % 50;
        self.wake = Some(now + pause + pause * u32::try_from(more).unwrap_or(0) / 100);
        self.tries = self.tries.saturating_add(1);
        self.problem = why;
        self.acted = false;
    }

    fn persist(&mut self, stage: Option<Stage>) {
        if self.owed != stage {
            self.owed = stage;
            self.outputs.push_back(HostOutput::Persist(stage.map(HostRecord::new)));
        }
    }
}
