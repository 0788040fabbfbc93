use std::time::Duration;

use firmesh_protocol::{
    health::{DeviceHealth, HealthInput, HealthRule, HealthSample},
    ids::{ArtifactId, CampaignId, Component, DeviceId, Sha256},
    manifest::{Artifact, Deadlines, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility, WayStep},
    report::{AttemptState, FailureClass, PermitKind},
    time::Timestamp,
    units::BasisPoints,
};
use proptest::prelude::*;

use super::Attempt;
use crate::{
    boot::Slot,
    goal::Goal,
    observed::{Observed, Seen, SlotsSeen, Staged, TaskSeen, TaskState},
    record::{AttemptRecord, Phase},
    step::{ActError, Input, Outcome, Output, Report, Rung, Step},
};

const OLD: &str = "1.0.0";
const NEW: &str = "1.1.0";
const ATTEMPT_S: u32 = 600;
const BACK_S: u32 = 30;

#[test]
fn a_bmc_is_updated_and_its_new_version_read_back() {
    let run = Run::of(Device::bmc(Habit::Good)).end();
    assert_eq!(
        (run.outcome.state, run.device.version()),
        (AttemptState::Success, NEW.to_owned()),
        "{run:?}"
    );
    assert_eq!(
        run.states,
        [
            AttemptState::Installing,
            AttemptState::Staged,
            AttemptState::Rebooting,
            AttemptState::Validating,
            AttemptState::Success
        ]
    );
    assert_eq!(run.device.stagings, 1);
}

#[test]
fn an_ab_host_is_updated_by_a_confirmed_trial_and_keeps_its_previous_image() {
    let run = Run::of(Device::slots(Habit::Good)).end();
    assert_eq!(run.outcome.state, AttemptState::Success, "{run:?}");
    assert_eq!((run.device.running, run.device.saved), (Slot::B, Slot::B));
    assert_eq!(run.device.slots[0].as_deref(), Some(OLD));
}

/// Whoever brings a trial back knows why it failed; that it did not come up is the reason all the same.
#[test]
fn what_became_of_a_trial_is_told_with_what_the_device_runs_instead() {
    let run = Run::of(Device::slots(Habit::TrialFailsAloud)).end();
    let Outcome {
        state, reason, failure, ..
    } = &run.outcome;
    assert_eq!(
        (*state, *failure),
        (AttemptState::Failed, Some(FailureClass::Boot)),
        "{run:?}"
    );
    assert!(
        reason.contains("runs 1.0.0") && reason.ends_with(": bad image"),
        "{reason}"
    );
}

#[test]
fn going_back_to_the_kept_image_needs_no_staging() {
    let mut device = Device::slots(Habit::Good).updated();
    device.slots[0] = Some(OLD.to_owned());
    let run = Run::back_to(device).end();
    assert_eq!(
        (run.outcome.state, run.device.version()),
        (AttemptState::RolledBack, OLD.to_owned()),
        "{run:?}"
    );
    assert_eq!((run.device.stagings, run.device.saved), (0, Slot::A));
}

#[test]
fn an_image_for_another_device_is_refused_before_any_write() {
    let refused = |change: fn(&mut Goal), reason: &str| {
        let mut run = Run::of(Device::bmc(Habit::Good));
        change(&mut run.goal);
        let run = run.end();
        assert_eq!((run.outcome.state, run.acts), (AttemptState::Failed, 0), "{run:?}");
        assert!(run.outcome.reason.contains(reason), "{}", run.outcome.reason);
    };
    refused(|goal| goal.image.info.models = vec!["R2".to_owned()], "wrong model");
    refused(|goal| goal.image.info.vendor = "Other".to_owned(), "wrong vendor");
    refused(
        |goal| goal.image.info.component = Component::new("bios").unwrap(),
        "wrong component",
    );
    refused(
        |goal| goal.image.info.from_versions = vec!["0.9".to_owned()],
        "installs only from 0.9",
    );
    refused(|goal| goal.security_epoch_min = 9, "security epoch");
    refused(|goal| goal.image.artifact.length = 1 << 40, "bytes");
}

#[test]
fn a_device_that_already_runs_the_image_is_left_alone() {
    let run = Run {
        goal: goal(PermitKind::Update, OLD),
        ..Run::of(Device::bmc(Habit::Good))
    }
    .end();
    assert_eq!((run.outcome.state, run.acts), (AttemptState::Skipped, 0), "{run:?}");
}

#[test]
fn a_task_that_lies_about_its_success_is_not_believed() {
    let run = Run::of(Device::bmc(Habit::Lie)).end();
    assert_eq!(run.outcome.state, AttemptState::Failed, "{run:?}");
    assert!(
        run.outcome.reason.contains("says it completed, yet"),
        "{}",
        run.outcome.reason
    );
}

#[test]
fn a_failed_task_fails_the_attempt_with_the_devices_own_words() {
    let run = Run::of(Device::bmc(Habit::FailTask)).end();
    assert_eq!(run.outcome.state, AttemptState::Failed);
    assert!(run.outcome.reason.contains("bad image"), "{}", run.outcome.reason);
}

#[test]
fn a_device_that_never_comes_back_is_quarantined_after_every_rung() {
    for device in [Device::bmc(Habit::NeverBack), Device::slots(Habit::NeverBack)] {
        let run = Run::of(device).end();
        assert_eq!(run.outcome.state, AttemptState::Quarantined, "{run:?}");
        assert!(
            run.outcome.reason.contains("did not come back within 30 s"),
            "{}",
            run.outcome.reason
        );
    }
}

#[test]
fn a_stalled_task_is_given_up_and_the_controller_reset() {
    let run = Run::of(Device::bmc(Habit::Stall)).end();
    assert_eq!(
        (run.outcome.state, run.device.version()),
        (AttemptState::TimedOut, OLD.to_owned()),
        "{run:?}"
    );
    assert!(run.outcome.reason.contains("stalled at 40 %"), "{}", run.outcome.reason);
}

/// What it holds would run after its next restart, whoever causes it.
#[test]
fn a_task_that_is_done_just_as_it_is_given_up_leaves_no_known_device() {
    let run = Run::of(Device::bmc(Habit::DoneWhenAborted)).end();
    assert_eq!(run.outcome.state, AttemptState::Quarantined, "{run:?}");
    assert!(
        run.outcome.reason.contains("the next restart may bring up 1.1.0"),
        "{}",
        run.outcome.reason
    );
}

#[test]
fn a_trial_that_does_not_hold_fails_on_the_old_slot() {
    let run = Run::of(Device::slots(Habit::TrialFails)).end();
    assert_eq!(
        (run.outcome.state, run.device.running),
        (AttemptState::Failed, Slot::A),
        "{run:?}"
    );
}

#[test]
fn a_trial_of_something_else_is_ended_by_a_restart() {
    let run = Run::of(Device::slots(Habit::WrongVersion)).end();
    assert_eq!(
        (run.outcome.state, run.device.version()),
        (AttemptState::RolledBack, OLD.to_owned()),
        "{run:?}"
    );
}

#[test]
fn a_way_back_that_falls_back_itself_is_no_rollback() {
    let run = Run::back_to(Device::slots(Habit::WrongVersion).updated()).end();
    assert_eq!(
        (run.outcome.state, run.device.version()),
        (AttemptState::Failed, NEW.to_owned()),
        "{run:?}"
    );
}

#[test]
fn a_silent_device_is_not_touched() {
    let mut device = Device::bmc(Habit::Good);
    device.up_at = None;
    let run = Run::of(device).end();
    assert_eq!((run.outcome.state, run.acts), (AttemptState::TimedOut, 0));
    assert!(
        run.outcome.reason.contains("nothing was written"),
        "{}",
        run.outcome.reason
    );
}

/// What one step among several is for the whole update, and what is told of it meanwhile.
#[test]
fn the_end_of_a_step_is_the_end_of_the_update_only_if_it_is_the_last_or_fails() {
    let at = |number| Goal {
        step: Some(WayStep {
            number,
            of: 2,
            from: OLD.to_owned(),
        }),
        ..goal(PermitKind::Update, NEW)
    };
    let ended = |state, version: Option<&str>, health| Outcome {
        state,
        reason: "so it was".to_owned(),
        version: version.map(str::to_owned),
        failure: (!AttemptState::is_success(state)).then_some(FailureClass::Boot),
        health,
    };
    let well = ended(AttemptState::Success, Some(NEW), None);
    assert_eq!(at(1).whole(well.clone()), None);
    assert_eq!(at(1).whole(ended(AttemptState::Skipped, Some(NEW), None)), None);
    assert_eq!(at(2).whole(well.clone()), Some(well.clone()));
    assert_eq!(goal(PermitKind::Update, NEW).whole(well.clone()), Some(well.clone()));
    let told = at(1).told(well.into());
    assert_eq!(
        (told.state, told.reason.as_str()),
        (AttemptState::Validating, "step 1 of 2, to 1.1.0 is done")
    );
    let told = at(2).told(Report::on_the_way(AttemptState::Installing, None));
    assert_eq!(
        (told.state, told.reason.as_str()),
        (AttemptState::Installing, "step 2 of 2, to 1.1.0")
    );

    // A device that is not well is not taken further, and that is a failure; at the end of its way that is its wave's to judge.
    let unwell = ended(AttemptState::Success, Some(NEW), Some(DeviceHealth::Breached));
    let stopped = at(1).whole(unwell.clone()).unwrap();
    assert_eq!(
        (stopped.state, stopped.failure, stopped.version.as_deref()),
        (AttemptState::Failed, Some(FailureClass::Health), Some(NEW))
    );
    assert_eq!(at(2).whole(unwell.clone()), Some(unwell));
    // What was not read back is what ran before the step.
    let silent = at(2).whole(ended(AttemptState::TimedOut, None, None)).unwrap();
    assert_eq!(
        (silent.version.as_deref(), silent.failure),
        (Some(OLD), Some(FailureClass::Boot))
    );
    assert_eq!(silent.reason, "step 2 of 2, to 1.1.0: so it was");
    let given_up = at(1).given_up("a brake was pulled");
    assert_eq!(
        (given_up.state, given_up.version.as_deref()),
        (AttemptState::Failed, Some(NEW))
    );
}

#[test]
fn a_silent_device_that_was_to_go_back_is_quarantined() {
    let mut device = Device::bmc(Habit::Good);
    device.up_at = None;
    let run = Run::back_to(device).end();
    assert_eq!((run.outcome.state, run.acts), (AttemptState::Quarantined, 0));
}

#[test]
fn a_crash_after_the_answer_was_lost_does_not_flash_twice() {
    let faults = vec![Fault::None, Fault::CrashAfter];
    let run = Run {
        faults,
        ..Run::of(Device::bmc(Habit::Good))
    }
    .end();
    assert_eq!(
        (run.outcome.state, run.device.stagings),
        (AttemptState::Success, 1),
        "{run:?}"
    );
}

#[test]
fn a_record_of_another_schema_or_shape_is_refused() {
    let record = AttemptRecord::new(goal(PermitKind::Update, NEW));
    assert_eq!(AttemptRecord::from_bytes(&record.to_bytes()).unwrap(), record);
    let text = String::from_utf8(record.to_bytes()).unwrap();
    assert!(AttemptRecord::from_bytes(text.replace("attempt/1", "attempt/2").as_bytes()).is_err());
    assert!(AttemptRecord::from_bytes(text.replace("\"phase\"", "\"stage\"").as_bytes()).is_err());
    assert!(AttemptRecord::from_bytes(&[b' '; 1 << 20]).is_err());
}

/// Two minutes of watching, a few seconds of patience.
fn watched(device: Device) -> Run {
    let mut run = Run::of(device);
    let mut rule = HealthRule::hard_stops();
    (rule.watch_s, rule.offline_s) = (120, 30);
    rule.limits
        .iter_mut()
        .for_each(|limit| limit.for_s = limit.for_s.min(20));
    rule.required = vec![HealthInput::Cpu];
    run.goal.health = Some(rule);
    run
}

#[test]
fn a_device_that_stays_well_is_updated_once_it_has_been_watched() {
    for device in [Device::bmc(Habit::Good), Device::slots(Habit::Good)] {
        let run = watched(device).end();
        assert_eq!(
            (run.outcome.state, run.outcome.health),
            (AttemptState::Success, Some(DeviceHealth::Healthy)),
            "{run:?}"
        );
        assert!(run.counted >= Duration::from_secs(120), "{:?}", run.counted);
        assert_eq!(run.device.saved, run.device.running);
    }
}

/// Anomaly to rollback within a minute, with nobody asked: the trial was never confirmed.
#[test]
fn a_host_that_is_not_well_falls_back_and_a_bmc_is_left_to_its_wave() {
    let run = watched(Device::slots(Habit::Busy)).end();
    assert_eq!(
        (
            run.outcome.state,
            run.outcome.failure,
            run.device.running,
            run.device.saved
        ),
        (AttemptState::RolledBack, Some(FailureClass::Health), Slot::A, Slot::A),
        "{run:?}"
    );
    assert!(
        run.outcome.reason.contains("its cpu have been above"),
        "{}",
        run.outcome.reason
    );
    assert!(run.counted < Duration::from_secs(90), "{:?}", run.counted);
    let run = watched(Device::bmc(Habit::Busy)).end();
    assert_eq!(
        (run.outcome.state, run.outcome.health, run.device.version()),
        (AttemptState::Success, Some(DeviceHealth::Breached), NEW.to_owned()),
        "{run:?}"
    );
}

#[test]
fn a_device_that_falls_silent_while_it_is_watched_is_not_well() {
    let run = watched(Device::slots(Habit::FallsSilent)).end();
    assert_eq!(
        (run.outcome.state, run.outcome.failure, run.device.running),
        (AttemptState::RolledBack, Some(FailureClass::Health), Slot::A),
        "{run:?}"
    );
    let run = watched(Device::bmc(Habit::FallsSilent)).end();
    assert_eq!(
        (run.outcome.state, run.outcome.failure),
        (AttemptState::Quarantined, Some(FailureClass::Unreachable)),
        "{run:?}"
    );
    assert!(
        run.outcome.reason.contains("out of reach for 30 s"),
        "{}",
        run.outcome.reason
    );
}

#[test]
fn what_a_device_does_not_tell_is_unknown_and_not_well() {
    let run = watched(Device::bmc(Habit::SaysNothing)).end();
    assert_eq!(
        (run.outcome.state, run.outcome.health),
        (AttemptState::Success, Some(DeviceHealth::Unknown)),
        "{run:?}"
    );
}

#[test]
fn an_attempt_says_in_which_way_it_failed() {
    use FailureClass::{Boot, Install, Preflight, Timeout, Unreachable};
    for (device, class) in [
        (Device::bmc(Habit::Lie), Boot),
        (Device::bmc(Habit::FailTask), Install),
        (Device::bmc(Habit::NeverBack), Unreachable),
        (Device::bmc(Habit::Stall), Timeout),
        (Device::slots(Habit::TrialFails), Boot),
        (Device::slots(Habit::WrongVersion), Boot),
    ] {
        let run = Run::of(device).end();
        assert_eq!(run.outcome.failure, Some(class), "{run:?}");
    }
    let mut run = Run::of(Device::bmc(Habit::Good));
    run.goal.image.info.models = vec!["R2".to_owned()];
    assert_eq!(run.end().outcome.failure, Some(Preflight));
    assert_eq!(Run::of(Device::bmc(Habit::Good)).end().outcome.failure, None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    /// Whatever goes wrong, the attempt ends in time, and its word on the device is true.
    #[test]
    fn every_attempt_ends_in_time_with_the_truth(
        has_slots: bool,
        goes_back: bool,
        is_watched: bool,
        habit in prop::sample::select(vec![
            Habit::Good, Habit::Lie, Habit::Stall, Habit::DoneWhenAborted, Habit::FailTask, Habit::NeverBack, Habit::TrialFails, Habit::WrongVersion,
            Habit::Busy, Habit::FallsSilent, Habit::SaysNothing,
        ]),
        wrong_model in prop::bool::weighted(0.1),
        faults in proptest::collection::vec(
            prop::sample::select(vec![
                Fault::None, Fault::None, Fault::None, Fault::Refused, Fault::RefusedForGood, Fault::Lost,
                Fault::Hangs, Fault::CrashBefore, Fault::CrashAfter,
            ]),
            0..40,
        ),
    ) {
        let device = if has_slots { Device::slots(habit) } else { Device::bmc(habit) };
        let (from, to, reached) = if goes_back {
            (NEW, OLD, AttemptState::RolledBack)
        } else {
            (OLD, NEW, AttemptState::Success)
        };
        let run = if goes_back { Run::back_to(device.updated()) } else { Run::of(device) };
        let mut run = Run { faults, ..run };
        if is_watched && !goes_back {
            run.goal.health = watched(Device::bmc(habit)).goal.health;
        }
        if wrong_model {
            run.goal.image.info.models = vec!["R2".to_owned()];
        }
        let run = run.end();
        let (device, state) = (&run.device, run.outcome.state);
        let armed = device.trial.is_some() || device.pending.is_some();
        match state {
            state if state == reached =>
                prop_assert!(device.version() == to && device.running == device.saved, "{:?}", run),
            AttemptState::Failed | AttemptState::RolledBack =>
                prop_assert!(device.version() == from && device.running == device.saved && !armed, "{:?}", run),
            AttemptState::TimedOut => prop_assert!(device.version() == from && !armed, "{:?}", run),
            AttemptState::Quarantined => prop_assert!(!run.outcome.reason.is_empty()),
            other => prop_assert!(false, "ended {other}"),
        }
        prop_assert!(!wrong_model || run.acts == 0);
        prop_assert!(run.counted <= Duration::from_secs(u64::from(ATTEMPT_S) + 21), "took {:?}", run.counted);
    }
}

/// How a device misbehaves, all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Good,
    Lie,
    Stall,
    /// It stalls until it is told to end, and then it is done.
    DoneWhenAborted,
    FailTask,
    NeverBack,
    TrialFails,
    /// The same, and it says what became of the trial.
    TrialFailsAloud,
    WrongVersion,
    /// The new version keeps the processors busy.
    Busy,
    /// The new version answers for a minute.
    FallsSilent,
    /// It tells nothing of its health.
    SaysNothing,
}

/// What goes wrong with one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Refused,
    RefusedForGood,
    /// It happens, and the answer is lost.
    Lost,
    /// It does not happen, and there is no answer before the deadline.
    Hangs,
    CrashBefore,
    CrashAfter,
}

#[derive(Debug)]
struct Device {
    habit: Habit,
    /// One image on a BMC, two on a host.
    slots: Vec<Option<String>>,
    running: Slot,
    saved: Slot,
    trial: Option<Slot>,
    pending: Option<String>,
    /// What the bytes of the last staging should be, whatever they run as.
    asked_for: String,
    task: Option<(TaskState, Timestamp)>,
    up_at: Option<Timestamp>,
    boots: u32,
    stagings: u32,
}

impl Device {
    fn bmc(habit: Habit) -> Self {
        Self {
            habit,
            slots: vec![Some(OLD.to_owned())],
            running: Slot::A,
            saved: Slot::A,
            trial: None,
            pending: None,
            asked_for: String::new(),
            task: None,
            up_at: Some(Timestamp::default()),
            boots: 1,
            stagings: 0,
        }
    }

    fn slots(habit: Habit) -> Self {
        Self {
            slots: vec![Some(OLD.to_owned()), None],
            ..Self::bmc(habit)
        }
    }

    /// Runs the new version; a host holds nothing else.
    fn updated(mut self) -> Self {
        self.slots.fill(None);
        self.running = if self.slots.len() == 2 { Slot::B } else { Slot::A };
        self.saved = self.running;
        self.slots[self.running as usize] = Some(NEW.to_owned());
        self
    }

    fn version(&self) -> String {
        self.slots[self.running as usize].clone().unwrap()
    }

    fn look(&self, now: Timestamp) -> Observed {
        if self.up_at.is_none_or(|up_at| now < up_at) {
            return Observed::Silent {
                why: "no answer".to_owned(),
            };
        }
        let runs_new = self.version() != OLD;
        let up_for = now.since(self.up_at.unwrap_or_default());
        if self.habit == Habit::FallsSilent && runs_new && self.boots > 1 && up_for > Duration::from_secs(60) {
            return Observed::Silent {
                why: "no answer any more".to_owned(),
            };
        }
        let share = |basis_points| BasisPoints::new(basis_points).ok();
        let health = HealthSample {
            cpu: match self.habit {
                Habit::SaysNothing => None,
                Habit::Busy if runs_new => share(9_900),
                _ => share(1_000),
            },
            ..HealthSample::default()
        };
        let has_slots = self.slots.len() == 2;
        let staged = match (has_slots, self.slots.get(self.running.other() as usize)) {
            (false, _) => Staged::Hidden,
            (true, Some(Some(version))) => Staged::Image {
                version: version.clone(),
                sha256: Sha256::of(if version == "9.9" { &self.asked_for } else { version }.as_bytes()),
                armed: self.trial == Some(self.running.other()),
            },
            (true, _) => Staged::Nothing,
        };
        let task = self.task.map(|(state, ends)| match state {
            TaskState::Active if now >= ends => self.task_end(),
            other => other,
        });
        Observed::Answering(Box::new(Seen {
            vendor: "Acme".to_owned(),
            model: "R1".to_owned(),
            component: Component::new("bmc").unwrap(),
            version: Some(self.version()),
            ready: true,
            boot_id: Some(self.boots.to_string()),
            staged,
            task: task.map(|state| TaskSeen {
                name: None,
                state,
                percent: Some(40),
                message: "bad image".to_owned(),
            }),
            slots: has_slots.then_some(SlotsSeen {
                running: self.running,
                saved: self.saved,
            }),
            image_bytes_max: Some(1 << 30),
            resets: if has_slots {
                vec![Rung::Warm]
            } else {
                vec![Rung::Bmc, Rung::Cold]
            },
            health,
            clock_off_s: None,
        }))
    }

    fn task_end(&self) -> TaskState {
        if self.habit == Habit::FailTask {
            TaskState::Failed
        } else {
            TaskState::Completed
        }
    }

    fn act(&mut self, now: Timestamp, step: &Step) {
        match step {
            Step::Stage { image, slot } => self.stage(now, &image.info.version, *slot),
            Step::Activate { slot } => self.trial = *slot,
            Step::Reset(_) => self.reset(now),
            Step::Confirm => self.saved = self.running,
            Step::Abort { .. } => {
                self.trial = None;
                if self.habit == Habit::DoneWhenAborted {
                    self.task = self.task.map(|_| (TaskState::Active, now));
                }
            }
            Step::Observe { .. } => unreachable!("a look is no act"),
        }
    }

    fn stage(&mut self, now: Timestamp, version: &str, slot: Option<Slot>) {
        self.stagings += 1;
        version.clone_into(&mut self.asked_for);
        let version = if self.habit == Habit::WrongVersion {
            "9.9"
        } else {
            version
        }
        .to_owned();
        if let Some(slot) = slot {
            assert!(
                slot != self.running && slot != self.saved,
                "slot {slot} was written while in use"
            );
            self.slots[slot as usize] = Some(version);
        } else {
            let takes = Duration::from_secs(if matches!(self.habit, Habit::Stall | Habit::DoneWhenAborted) {
                1 << 20
            } else {
                5
            });
            self.task = Some((TaskState::Active, now + takes));
            self.pending = (!matches!(self.habit, Habit::Lie | Habit::FailTask | Habit::Stall)).then_some(version);
        }
    }

    fn reset(&mut self, now: Timestamp) {
        self.boots += 1;
        self.task = self
            .task
            .take()
            .filter(|(_, ends)| now >= *ends)
            .map(|_| (self.task_end(), now));
        if let Some(version) = self.pending.take() {
            self.slots[0] = Some(version);
        }
        self.running = match self.trial.take() {
            Some(trial) if !matches!(self.habit, Habit::TrialFails | Habit::TrialFailsAloud) => trial,
            _ => self.saved,
        };
        if self.habit == Habit::TrialFailsAloud {
            self.task = Some((TaskState::Failed, now));
        }
        self.up_at = (self.habit != Habit::NeverBack).then(|| now + Duration::from_secs(10));
    }
}

#[derive(Debug)]
struct Run {
    goal: Goal,
    device: Device,
    faults: Vec<Fault>,
    states: Vec<AttemptState>,
    acts: u32,
    /// Time that counts against the deadline: a crash forgets what passed since the last record.
    counted: Duration,
    outcome: Outcome,
}

impl Run {
    fn of(device: Device) -> Self {
        let outcome = Outcome {
            state: AttemptState::Pending,
            reason: String::new(),
            version: None,
            failure: None,
            health: None,
        };
        Self {
            goal: goal(PermitKind::Update, NEW),
            device,
            faults: Vec::new(),
            states: Vec::new(),
            acts: 0,
            counted: Duration::ZERO,
            outcome,
        }
    }

    /// A rollback of an updated device.
    fn back_to(device: Device) -> Self {
        Self {
            goal: goal(PermitKind::Rollback, OLD),
            ..Self::of(device)
        }
    }

    fn end(mut self) -> Self {
        let mut now = Timestamp::default();
        let mut faults = std::mem::take(&mut self.faults).into_iter();
        let mut attempt = Attempt::new(self.goal.clone(), now);
        let mut durable: Option<AttemptRecord> = None;
        loop {
            assert!(
                now.since_start() < Duration::from_secs(20_000),
                "never ends: {self:?}\n{attempt:?}"
            );
            let Some(output) = attempt.poll() else {
                let next = attempt.deadline().expect("neither over nor waiting");
                self.counted += next.since(now);
                now = now.max(next);
                attempt.handle(now, Input::Tick);
                continue;
            };
            match output {
                Output::Persist(record) => durable = Some(AttemptRecord::from_bytes(&record.to_bytes()).unwrap()),
                Output::Report(report) => self.states.push(report.state),
                Output::Done(outcome) => {
                    assert!(attempt.poll().is_none() && attempt.deadline().is_none());
                    assert_eq!(durable.unwrap().outcome(), Some(&outcome), "the outcome is not durable");
                    return Self { outcome, ..self };
                }
                Output::Step(step) => {
                    self.check(&step, durable.as_ref().unwrap());
                    let fault = faults.next().unwrap_or(Fault::None);
                    let took = self.carry_out(&mut attempt, now, &step, fault);
                    self.counted += took.unwrap_or_default();
                    now = now + took.unwrap_or(Duration::from_secs(3));
                    if took.is_none() {
                        self.counted = Duration::from_millis(durable.as_ref().unwrap().elapsed_ms);
                        attempt = Attempt::resume(durable.clone().unwrap(), now);
                    }
                }
            }
        }
    }

    /// Every act but a look is journalled before, and only asked of the right device.
    fn check(&mut self, step: &Step, durable: &AttemptRecord) {
        let journalled = match step {
            Step::Observe { .. } => return,
            Step::Stage { .. } => matches!(durable.phase, Phase::Staging { .. }),
            Step::Activate { .. } => matches!(durable.phase, Phase::Activating { .. }),
            Step::Reset(_) => matches!(durable.phase, Phase::Resetting { .. } | Phase::Clearing),
            Step::Confirm => matches!(durable.phase, Phase::Confirming { .. }),
            Step::Abort { .. } => matches!(durable.phase, Phase::Aborting { .. } | Phase::Clearing),
        };
        assert!(
            journalled,
            "{step:?} was asked for with the record at {:?}",
            durable.phase
        );
        assert!(
            self.goal.image.info.models.contains(&"R1".to_owned()),
            "{step:?} on the wrong model"
        );
        self.acts += 1;
    }

    /// Carries a step out as the fault has it; the time it took, or `None` for a crash.
    fn carry_out(&mut self, attempt: &mut Attempt, now: Timestamp, step: &Step, fault: Fault) -> Option<Duration> {
        let look = matches!(step, Step::Observe { .. });
        let second = Duration::from_secs(1);
        let failed = |retry| {
            Input::ActFailed(ActError {
                reason: "it broke".to_owned(),
                retry,
            })
        };
        if !look && matches!(fault, Fault::None | Fault::Lost | Fault::CrashAfter) {
            self.device.act(now, step);
        }
        let (took, input) = match fault {
            Fault::CrashBefore | Fault::CrashAfter => return None,
            Fault::None if look => (Duration::ZERO, Input::Observed(self.device.look(now))),
            Fault::None => match step {
                Step::Stage { slot: None, .. } => (
                    second,
                    Input::Staged {
                        task: Some("/tasks/1".to_owned()),
                    },
                ),
                Step::Stage { .. } => (second, Input::Staged { task: None }),
                _ => (second, Input::Acted),
            },
            Fault::Refused | Fault::Lost => (second, failed(true)),
            Fault::RefusedForGood => (second, failed(false)),
            Fault::Hangs => (attempt.deadline().unwrap().since(now), failed(true)),
        };
        attempt.handle(now + took, input);
        Some(took)
    }
}

fn goal(kind: PermitKind, version: &str) -> Goal {
    Goal {
        device: DeviceId::new("d1").unwrap(),
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind,
        permit_sequence: 1,
        image: Release {
            target: "firmware/r1.bin".to_owned(),
            artifact: Artifact {
                id: ArtifactId::of(version.as_bytes()),
                sha256: Sha256::of(version.as_bytes()),
                length: 5,
            },
            info: ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: ArtifactId::of(version.as_bytes()),
                vendor: "Acme".to_owned(),
                models: vec!["R1".to_owned()],
                component: Component::new("bmc").unwrap(),
                version: version.to_owned(),
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
        security_epoch_min: 1,
        deadlines: Deadlines {
            attempt_s: ATTEMPT_S,
            back_s: BACK_S,
        },
        health: None,
        answers_min: 3,
        answers_apart_ms: None,
        step: None,
        pace_ms: 1_000,
    }
}
