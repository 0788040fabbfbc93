//! The process that starts the node and outlives it.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use firmesh_protocol::time::Timestamp;

use super::{
    program::Program,
    slots::{NodeSlots, STARTS_MAX},
};
use crate::boot::Slot;

/// Before the second start of a trial, and how many times as long before the next: what took one down may be over by then, and three
/// starts in a row would be spent in the seconds that a network or a disk is away.
const PAUSE: Duration = Duration::from_secs(3);
const PAUSE_GROWS: u32 = 5;

/// How long a trial that is given up has for a clean end.
const GRACE: Duration = Duration::from_secs(10);

/// What the shell tells the launcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LauncherInput {
    /// The answer to [`LauncherOutput::Look`].
    Found {
        /// The slots' file; why it cannot be read.
        slots: Result<Box<NodeSlots>, String>,
        /// The slots whose file is there and whole.
        whole: Vec<Slot>,
    },
    /// The answer to [`LauncherOutput::Keep`]: whether the file is durable.
    Kept(Result<(), String>),
    /// The answer to [`LauncherOutput::Start`].
    Started(Result<(), NotStarted>),
    /// What was started has ended.
    Ended(Ended),
    /// What was started says that it works.
    Works,
    /// The launcher is asked to stop.
    Stop,
    /// Time passed.
    Tick,
}

/// Why a program could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStarted {
    /// For a person.
    pub why: String,
    /// Whether the same may succeed later.
    pub retry: bool,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// For a person.
    pub how: String,
    /// Its exit status, or 128 and the number of the signal.
    pub status: u8,
}

/// What the launcher tells the shell, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LauncherOutput {
    /// Read the slots' file, and look at the slots.
    Look,
    /// Make this durable before going on.
    Keep(Box<NodeSlots>),
    /// Start this.
    Start(Program),
    /// Ask what was started to end.
    Stop,
    /// End it.
    Kill,
    /// Tell whoever reads the log.
    Say(String),
    /// End with this status.
    Exit(u8),
}

/// Decides what is started, and when. One at a time; feed it with [`handle`](Self::handle), deal with every
/// [`poll`](Self::poll)ed output in order, and hand in a [`LauncherInput::Tick`] when [`deadline`](Self::deadline) passes.
#[derive(Debug)]
pub struct Launcher {
    packaged: String,
    state: State,
    /// What was started last.
    last: Option<Run>,
    /// Slots whose program the system does not start, though it is there.
    unstartable: BTreeSet<Slot>,
    stopping: bool,
    outputs: VecDeque<LauncherOutput>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    program: Program,
    trial: Option<u64>,
    ended: Option<Ended>,
    /// Whether it was ended because it did not say that it works.
    was_silent: bool,
    /// Whether there was a moment since it ended.
    has_paused: bool,
}

impl Run {
    fn of(program: Program) -> Self {
        Self {
            program,
            trial: None,
            ended: None,
            was_silent: false,
            has_paused: false,
        }
    }
}

#[derive(Debug)]
enum State {
    /// Waits for the slots.
    Looking,
    /// Waits for the slots to be durable.
    Keeping {
        run: Run,
        within: Duration,
        /// What is started if they cannot be.
        otherwise: Program,
    },
    /// Waits a moment before the next start of a trial.
    Pausing { until: Timestamp },
    /// Waits for a start.
    Starting { within: Duration },
    /// Something runs.
    Running {
        watch: Option<Watch>,
        kill_at: Option<Timestamp>,
    },
    /// It was asked to stop, and a trial has ended for that: the start is given back.
    Leaving { status: u8 },
    /// Over.
    Over,
}

/// A trial is watched until somebody has confirmed it.
#[derive(Debug, Clone, Copy)]
struct Watch {
    within: Duration,
    by: Timestamp,
    /// Whether the time is over and the slots are being looked at for a confirmation.
    is_asking: bool,
}

impl Launcher {
    /// A launcher of this version.
    #[must_use]
    pub fn new(packaged: String) -> Self {
        Self {
            packaged,
            state: State::Looking,
            last: None,
            unstartable: BTreeSet::new(),
            stopping: false,
            outputs: [LauncherOutput::Look].into(),
        }
    }

    /// The next instruction, if there is one.
    pub fn poll(&mut self) -> Option<LauncherOutput> {
        self.outputs.pop_front()
    }

    /// When the launcher wants to hear [`LauncherInput::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match &self.state {
            State::Pausing { until } => Some(*until),
            State::Running { watch, kill_at } => {
                let by = watch.as_ref().filter(|watch| !watch.is_asking).map(|watch| watch.by);
                kill_at.or(by)
            }
            State::Looking | State::Keeping { .. } | State::Starting { .. } | State::Leaving { .. } | State::Over => {
                None
            }
        }
    }

    /// Takes in a fact.
    pub fn handle(&mut self, now: Timestamp, input: LauncherInput) {
        let state = std::mem::replace(&mut self.state, State::Over);
        self.state = match (input, state) {
            (LauncherInput::Found { slots, whole }, State::Looking) => self.decide(now, slots, &whole),
            (
                LauncherInput::Found { slots, .. },
                State::Running {
                    watch: Some(watch),
                    kill_at,
                },
            ) if watch.is_asking => self.asked(now, slots.ok(), watch, kill_at),
            (LauncherInput::Kept(kept), State::Keeping { run, within, otherwise }) => {
                self.kept(kept, run, within, otherwise)
            }
            (LauncherInput::Found { slots, .. }, State::Leaving { status }) => self.leave(slots, status),
            (LauncherInput::Kept(kept), State::Leaving { status }) => {
                if let Err(why) = kept {
                    self.say(format!(
                        "the slots cannot be written, and the start of the trial counts: {why}"
                    ));
                }
                self.exit(status)
            }
            (LauncherInput::Started(started), State::Starting { within }) => self.started(now, started, within),
            (LauncherInput::Ended(ended), State::Running { .. }) => self.ended(ended),
            (
                LauncherInput::Works,
                State::Running {
                    watch: Some(watch),
                    kill_at,
                },
            ) if !watch.is_asking => {
                let by = now + watch.within;
                State::Running {
                    watch: Some(Watch { by, ..watch }),
                    kill_at,
                }
            }
            (LauncherInput::Stop, state) => self.stop(state),
            (LauncherInput::Tick, State::Pausing { until }) if now >= until => self.look(),
            (LauncherInput::Tick, State::Running { watch, kill_at }) => self.tick(now, watch, kill_at),
            (_, state) => state,
        };
    }

    fn look(&mut self) -> State {
        self.outputs.push_back(LauncherOutput::Look);
        State::Looking
    }

    fn exit(&mut self, status: u8) -> State {
        self.outputs.push_back(LauncherOutput::Exit(status));
        State::Over
    }

    fn say(&mut self, text: String) {
        self.outputs.push_back(LauncherOutput::Say(text));
    }

    fn stop(&mut self, state: State) -> State {
        self.stopping = true;
        match state {
            State::Running { watch, kill_at } => {
                self.outputs.push_back(LauncherOutput::Stop);
                State::Running { watch, kill_at }
            }
            // Whoever is being started is stopped once it runs.
            State::Starting { .. } | State::Leaving { .. } | State::Over => state,
            State::Looking | State::Keeping { .. } | State::Pausing { .. } => self.exit(0),
        }
    }

    fn decide(&mut self, now: Timestamp, slots: Result<Box<NodeSlots>, String>, whole: &[Slot]) -> State {
        let ended = self.last.as_ref().and_then(|run| run.ended.clone());
        let found = match (slots, ended) {
            (Ok(slots), _) => slots,
            (Err(_), Some(ended)) => return self.exit(ended.status),
            (Err(why), None) => {
                // What there is to start nobody knows, but for what came with the package.
                self.say(format!(
                    "the slots cannot be read, the packaged program is started: {why}"
                ));
                return self.start(Run::of(Program::Packaged), Duration::ZERO);
            }
        };
        let can_start = |slot: Slot, _: &_| whole.contains(&slot) && !self.unstartable.contains(&slot);
        let noted = self.noted(&found);
        let (program, next) = noted.next(&self.packaged, can_start);
        let trial = next.trial.as_ref().filter(|trial| Program::Slot(trial.slot) == program);
        let within = trial.map_or(Duration::ZERO, |trial| Duration::from_secs(trial.works_within_s.into()));
        let run = Run {
            trial: trial.map(|trial| trial.number),
            ..Run::of(program)
        };
        let otherwise = found.next_uncounted(&self.packaged, can_start);
        if let Some(Run {
            program,
            trial,
            ended: Some(ended),
            has_paused,
            ..
        }) = self.last.clone()
        {
            if (run.program, run.trial) == (program, None) && next == *found {
                // Nobody wants another one: how it is started again is the service manager's.
                return self.exit(ended.status);
            }
            if trial.is_some() && run.trial == trial && !has_paused {
                self.last = self.last.take().map(|run| Run {
                    has_paused: true,
                    ..run
                });
                let starts = found.trial.as_ref().map_or(1, |trial| trial.starts);
                let pause = PAUSE * PAUSE_GROWS.saturating_pow(starts.saturating_sub(1).min(STARTS_MAX));
                return State::Pausing { until: now + pause };
            }
        }
        if let Some(last) = next.last.as_ref().filter(|_| next.last != found.last) {
            self.say(format!("back to {program}: {}", last.why));
        }
        if next == *found {
            return self.start(run, within);
        }
        self.outputs.push_back(LauncherOutput::Keep(Box::new(next)));
        State::Keeping { run, within, otherwise }
    }

    /// The slots with how the last start of the trial ended. That is written down with what is decided by it.
    fn noted(&self, found: &NodeSlots) -> NodeSlots {
        let mut noted = found.clone();
        if let Some(run) = &self.last
            && let Some(ended) = &run.ended
            && let Some(trial) = noted.trial.as_mut().filter(|trial| Some(trial.number) == run.trial)
        {
            trial.ended = Some(ended.how.clone());
            if run.was_silent {
                let limit = trial.works_within_s;
                noted.give_up(&format!(
                    "the new version did not say for {limit} s that it works, and was ended"
                ));
            }
        }
        noted
    }

    fn kept(&mut self, kept: Result<(), String>, run: Run, within: Duration, otherwise: Program) -> State {
        match kept {
            Ok(()) => self.start(run, within),
            Err(why) => {
                // What cannot be counted is not tried: it might be started for ever.
                self.say(format!("the slots cannot be written, {otherwise} is started: {why}"));
                self.start(Run::of(otherwise), Duration::ZERO)
            }
        }
    }

    fn start(&mut self, run: Run, within: Duration) -> State {
        self.outputs.push_back(LauncherOutput::Start(run.program));
        self.last = Some(run);
        State::Starting { within }
    }

    fn started(&mut self, now: Timestamp, started: Result<(), NotStarted>, within: Duration) -> State {
        if let Err(NotStarted { why, retry }) = started {
            if let Some(Program::Slot(slot)) = self.last.as_ref().map(|run| run.program)
                && !retry
            {
                self.unstartable.insert(slot);
            }
            let how = format!("it could not be started: {why}");
            return self.ended(Ended { how, status: 1 });
        }
        if self.stopping {
            self.outputs.push_back(LauncherOutput::Stop);
        }
        // What kept another program from starting may be over when it is looked at next.
        self.unstartable.clear();
        let is_trial = self.last.as_ref().is_some_and(|run| run.trial.is_some());
        let by = now + within;
        let is_asking = false;
        let watch = is_trial.then_some(Watch { within, by, is_asking });
        State::Running { watch, kill_at: None }
    }

    fn ended(&mut self, ended: Ended) -> State {
        if self.stopping {
            let is_trial = self
                .last
                .as_ref()
                .is_some_and(|run| run.trial.is_some() && !run.was_silent);
            if !is_trial {
                return self.exit(ended.status);
            }
            self.outputs.push_back(LauncherOutput::Look);
            return State::Leaving { status: ended.status };
        }
        if let Some(run) = &mut self.last {
            let text = format!("{} ended: {}", run.program, ended.how);
            run.ended = Some(ended);
            self.say(text);
        }
        self.look()
    }

    /// A trial that somebody has stopped along with its launcher has not failed by that.
    fn leave(&mut self, slots: Result<Box<NodeSlots>, String>, status: u8) -> State {
        let number = self.last.as_ref().and_then(|run| run.trial);
        if let (Ok(mut slots), Some(number)) = (slots, number)
            && slots.give_back(number)
        {
            self.outputs.push_back(LauncherOutput::Keep(slots));
            return State::Leaving { status };
        }
        // It counts, as every start of which nobody knows better.
        self.exit(status)
    }

    fn tick(&mut self, now: Timestamp, watch: Option<Watch>, kill_at: Option<Timestamp>) -> State {
        if kill_at.is_some_and(|at| now >= at) {
            self.outputs.push_back(LauncherOutput::Kill);
            return State::Running { watch, kill_at: None };
        }
        let watch = watch.map(|watch| {
            let is_due = !watch.is_asking && now >= watch.by && kill_at.is_none();
            if is_due {
                self.outputs.push_back(LauncherOutput::Look);
            }
            Watch {
                is_asking: watch.is_asking || is_due,
                ..watch
            }
        });
        State::Running { watch, kill_at }
    }

    /// A trial was silent for too long, unless it was confirmed meanwhile.
    fn asked(
        &mut self,
        now: Timestamp,
        slots: Option<Box<NodeSlots>>,
        watch: Watch,
        kill_at: Option<Timestamp>,
    ) -> State {
        let Some(slots) = slots else {
            let by = now + watch.within;
            let watch = Some(Watch {
                by,
                is_asking: false,
                ..watch
            });
            return State::Running { watch, kill_at };
        };
        let confirmed = slots.confirmed.map(Program::Slot);
        if confirmed.is_some() && self.last.as_ref().map(|run| run.program) == confirmed {
            return State::Running { watch: None, kill_at };
        }
        // One that was given up was to end by itself.
        if let Some(run) = &mut self.last {
            run.was_silent = true;
        }
        self.say("the node on trial does not say that it works: it is ended".to_owned());
        self.outputs.push_back(LauncherOutput::Stop);
        State::Running {
            watch: None,
            kill_at: Some(now + GRACE),
        }
    }
}
