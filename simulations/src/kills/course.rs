//! One attempt on one model in virtual time, with a process that dies where it is told to.
//!
//! A process can die before and after each record and act, and in the middle of an act. The next one begins with the record
//! that was durable, as the node does.

use std::{collections::BTreeMap, fmt, time::Duration};

use firmesh_executors_core::{Attempt, AttemptRecord, Goal, Input, Observed, Outcome, Output, Step};
use firmesh_protocol::time::Timestamp;

/// No attempt takes so many looks and acts: it is bounded in time, and looks have a pace.
const STEPS_MAX: u64 = 200_000;
/// How long a look takes, in milliseconds.
const LOOK_MS: u64 = 300;

/// A device as its executor meets it.
pub(crate) trait Model: fmt::Debug {
    /// A look.
    fn look(&mut self, now_ms: u64, task: Option<&str>) -> Observed;
    /// Begins an act; how long it takes, in milliseconds.
    fn begin(&mut self, now_ms: u64, step: &Step) -> u64;
    /// Ends the act that was begun.
    fn end(&mut self, now_ms: u64, step: &Step) -> Input;
    /// Whoever acts dies in the middle of it.
    fn abandon(&mut self, now_ms: u64, step: &Step);
    /// What must not be asked of it now.
    fn breach(&mut self, now_ms: u64, step: &Step) -> Option<String>;
    /// What it is, whatever it says.
    fn truth(&mut self, now_ms: u64) -> Truth;
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Truth {
    /// What it runs, or will once it has started; nothing if it never will.
    pub(crate) version: Option<String>,
    /// What a restart would bring up instead.
    pub(crate) pending: Option<String>,
}

/// How an attempt went.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    /// How it ended; nothing if it never did.
    pub(crate) outcome: Option<Outcome>,
    /// Places passed at which the process could have died.
    pub(crate) boundaries: u64,
    /// How often it died.
    pub(crate) kills: u64,
    /// The acts asked for, by kind.
    pub(crate) acts: BTreeMap<&'static str, u32>,
    /// The first thing that must not happen and did.
    pub(crate) breach: Option<String>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Runs an attempt to its end. `dies` is asked at every boundary: if the process is to die there, how many milliseconds pass
/// until the next one starts.
pub(crate) fn run(model: &mut dyn Model, goal: &Goal, dies: &mut dyn FnMut(u64) -> Option<u64>) -> Course {
    let mut course = Course {
        outcome: None,
        boundaries: 0,
        kills: 0,
        acts: BTreeMap::new(),
        breach: None,
        took: Duration::ZERO,
    };
    let (mut now_ms, mut durable, mut steps) = (1_000, None::<Vec<u8>>, 0);
    loop {
        let attempt = match &durable {
            None => Attempt::new(goal.clone(), at(now_ms)),
            Some(bytes) => {
                let record = AttemptRecord::from_bytes(bytes).expect("what was written can be read");
                Attempt::resume(record, at(now_ms))
            }
        };
        let mut life = Life {
            attempt,
            model,
            durable: &mut durable,
            course: &mut course,
            dies,
            now_ms: &mut now_ms,
            steps: &mut steps,
        };
        let is_over = life.live();
        if is_over {
            course.took = Duration::from_millis(now_ms);
            return course;
        }
    }
}

/// From one start of the process to its death or to the attempt's end.
struct Life<'a> {
    attempt: Attempt,
    model: &'a mut dyn Model,
    durable: &'a mut Option<Vec<u8>>,
    course: &'a mut Course,
    dies: &'a mut dyn FnMut(u64) -> Option<u64>,
    now_ms: &'a mut u64,
    steps: &'a mut u64,
}

impl Life<'_> {
    /// Whether the attempt is over, and not only the process.
    fn live(&mut self) -> bool {
        loop {
            *self.steps += 1;
            if *self.steps > STEPS_MAX {
                self.breach("it never ends".to_owned());
                return true;
            }
            match self.attempt.poll() {
                None => {
                    let Some(deadline) = self.attempt.deadline() else {
                        self.breach("it neither ends nor waits".to_owned());
                        return true;
                    };
                    *self.now_ms = millis(deadline).max(*self.now_ms);
                    self.attempt.handle(at(*self.now_ms), Input::Tick);
                }
                Some(Output::Persist(record)) => {
                    if self.passes() {
                        return false;
                    }
                    *self.durable = Some(record.to_bytes());
                    if self.passes() {
                        return false;
                    }
                }
                Some(Output::Report(_)) => {}
                Some(Output::Done(outcome)) => {
                    self.is_durable(&outcome);
                    self.course.outcome = Some(outcome);
                    return true;
                }
                Some(Output::Step(Step::Observe { task })) => {
                    *self.now_ms += LOOK_MS;
                    let seen = self.model.look(*self.now_ms, task.as_deref());
                    self.attempt.handle(at(*self.now_ms), Input::Observed(seen));
                }
                Some(Output::Step(step)) => {
                    if self.act(&step) {
                        return false;
                    }
                }
            }
        }
    }

    /// Whether the process died of it.
    fn act(&mut self, step: &Step) -> bool {
        if self.passes() {
            return true;
        }
        let name = match step {
            Step::Stage { .. } => "stage",
            Step::Activate { .. } => "activate",
            Step::Reset(_) => "reset",
            Step::Confirm => "confirm",
            Step::Abort { .. } => "abort",
            Step::Observe { .. } => "observe",
        };
        *self.course.acts.entry(name).or_default() += 1;
        if let Some(breach) = self.model.breach(*self.now_ms, step) {
            self.breach(breach);
        }
        if let Some(away_ms) = self.boundary() {
            self.model.abandon(*self.now_ms, step);
            *self.now_ms += away_ms;
            return true;
        }
        let ends_ms = *self.now_ms + self.model.begin(*self.now_ms, step);
        let deadline_ms = self.attempt.deadline().map_or(ends_ms, millis);
        *self.now_ms = ends_ms.min(deadline_ms).max(*self.now_ms);
        let input = if ends_ms > deadline_ms {
            Input::ActFailed(firmesh_executors_core::ActError {
                reason: "not done by its deadline".to_owned(),
                retry: true,
            })
        } else {
            self.model.end(*self.now_ms, step)
        };
        if self.passes() {
            return true;
        }
        self.attempt.handle(at(*self.now_ms), input);
        false
    }

    /// Whether the process dies here.
    fn passes(&mut self) -> bool {
        let away_ms = self.boundary();
        *self.now_ms += away_ms.unwrap_or_default();
        away_ms.is_some()
    }

    fn boundary(&mut self) -> Option<u64> {
        let away_ms = (self.dies)(self.course.boundaries);
        self.course.boundaries += 1;
        self.course.kills += u64::from(away_ms.is_some());
        away_ms
    }

    fn is_durable(&mut self, outcome: &Outcome) {
        let record = self
            .durable
            .as_deref()
            .and_then(|bytes| AttemptRecord::from_bytes(bytes).ok());
        if record.and_then(|record| record.outcome().cloned()).as_ref() != Some(outcome) {
            self.breach("the outcome is told and not durable".to_owned());
        }
    }

    fn breach(&mut self, breach: String) {
        let at_s = *self.now_ms / 1_000;
        self.course
            .breach
            .get_or_insert_with(|| format!("after {at_s} s: {breach}"));
    }
}

fn at(now_ms: u64) -> Timestamp {
    Timestamp::after_start(Duration::from_millis(now_ms))
}

fn millis(timestamp: Timestamp) -> u64 {
    u64::try_from(timestamp.since_start().as_millis()).unwrap_or(u64::MAX)
}
