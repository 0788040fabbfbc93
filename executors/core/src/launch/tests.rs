use std::time::Duration;

use firmesh_protocol::{ids::Sha256, time::Timestamp};
use proptest::prelude::*;

use super::{
    Ended, Launched, Launcher, LauncherInput, LauncherOutput, NodeSlots, NotStarted, Program, ProgramError,
    check_program, version_said,
};
use crate::boot::{Slot, SlotContent};

const PACKAGED: &str = "1.0.0 (abc)";
const WITHIN_S: u32 = 60;

fn ready(version: &str) -> SlotContent {
    SlotContent::Ready {
        version: version.to_owned(),
        sha256: Sha256::of(version.as_bytes()),
        length: 7,
    }
}

fn armed(slot: Slot) -> NodeSlots {
    let mut slots = NodeSlots::default();
    slots.fill(slot, ready("1.1.0"));
    slots.arm(slot, PACKAGED, WITHIN_S);
    slots
}

fn next(slots: &NodeSlots) -> (Program, NodeSlots) {
    slots.next(PACKAGED, |_, _| true)
}

#[test]
fn without_any_slot_the_packaged_program_starts_and_nothing_is_written() {
    let slots = NodeSlots::default();
    assert_eq!(next(&slots), (Program::Packaged, slots));
}

#[test]
fn a_trial_is_counted_before_each_start_and_started_three_times() {
    let mut slots = armed(Slot::A);
    for starts in 1..=3 {
        let (program, kept) = next(&slots);
        assert_eq!(program, Program::Slot(Slot::A));
        assert_eq!(kept.trial.as_ref().map(|trial| trial.starts), Some(starts));
        slots = kept;
    }
    let (program, kept) = next(&slots);
    assert_eq!((program, &kept.trial), (Program::Packaged, &None));
    let why = kept.last.unwrap().why;
    assert!(why.contains("started 3 times"), "{why}");
}

#[test]
fn what_was_confirmed_is_started_again_and_its_predecessor_when_it_is_damaged() {
    let mut slots = armed(Slot::A);
    slots.confirm(Slot::A);
    assert_eq!(next(&slots).0, Program::Slot(Slot::A));
    slots.fill(Slot::B, ready("1.2.0"));
    slots.arm(Slot::B, PACKAGED, WITHIN_S);
    slots.confirm(Slot::B);
    assert_eq!((slots.confirmed, slots.previous), (Some(Slot::B), Some(Slot::A)));
    let (program, kept) = slots.next(PACKAGED, |slot, _| slot == Slot::A);
    assert_eq!((program, kept.confirmed), (Program::Slot(Slot::A), Some(Slot::A)));
    assert_eq!(kept.b, SlotContent::Empty);
    assert_eq!(kept.next(PACKAGED, |_, _| false).0, Program::Packaged);
}

/// A slot that failed its trial is no place to fall back to.
#[test]
fn a_failed_trial_is_never_fallen_back_to() {
    let mut slots = armed(Slot::A);
    slots.confirm(Slot::A);
    slots.fill(Slot::B, ready("1.2.0"));
    slots.arm(Slot::B, PACKAGED, WITHIN_S);
    let (_, mut slots) = next(&slots);
    slots.give_up("it fell silent");
    assert_eq!(slots.next(PACKAGED, |slot, _| slot == Slot::B).0, Program::Packaged);
}

/// The attempt that armed a second trial saw the first one's failure as the state of its own.
#[test]
fn what_became_of_the_last_trial_is_no_word_about_the_next() {
    let mut slots = armed(Slot::A);
    (_, slots) = next(&slots);
    slots.give_up("it fell silent");
    assert!(slots.task().unwrap().message.contains("it fell silent"));
    slots.arm(Slot::A, PACKAGED, WITHIN_S);
    assert_eq!(slots.task(), None);
}

#[test]
fn a_package_that_was_installed_since_wins_over_slots_and_trials() {
    let mut slots = armed(Slot::A);
    slots.confirm(Slot::A);
    slots.fill(Slot::B, ready("1.2.0"));
    slots.arm(Slot::B, PACKAGED, WITHIN_S);
    let (_, slots) = next(&slots);
    let (program, kept) = slots.next("1.3.0 (def)", |_, _| true);
    assert_eq!((program, kept.confirmed), (Program::Packaged, None));
    assert!(kept.last.as_ref().unwrap().why.contains("another package"), "{kept:?}");
    assert_eq!(kept.next("1.3.0 (def)", |_, _| true).0, Program::Packaged);
}

#[test]
fn the_packaged_program_stands_for_the_slot_that_is_not_written_first() {
    let slots = NodeSlots::default();
    let seen = slots.seen(Program::Packaged).unwrap();
    assert_eq!((seen.running.other(), seen.on_trial()), (Slot::A, false));
    let slots = armed(Slot::A);
    assert!(slots.seen(Program::Slot(Slot::A)).unwrap().on_trial());
    let mut slots = slots;
    slots.confirm(Slot::A);
    assert!(!slots.seen(Program::Slot(Slot::A)).unwrap().on_trial());
    assert_eq!(slots.seen(Program::Packaged), None);
}

#[test]
fn what_the_file_does_not_know_is_ignored_and_what_it_cannot_be_is_refused() {
    let slots = armed(Slot::A);
    assert_eq!(NodeSlots::from_bytes(&slots.to_bytes()).unwrap(), slots);
    let later = String::from_utf8(slots.to_bytes())
        .unwrap()
        .replacen('{', "{\"later\": 1,", 1);
    assert_eq!(NodeSlots::from_bytes(later.as_bytes()).unwrap(), slots);
    let other = later.replace("slots/1", "slots/2");
    assert!(NodeSlots::from_bytes(other.as_bytes()).is_err());
    assert!(NodeSlots::from_bytes(b"").is_err());
    let launched = Launched {
        pid: 7,
        dir: "/var/lib/firmesh-node/self".to_owned(),
        program: Program::Slot(Slot::B),
        packaged: PACKAGED.to_owned(),
    };
    assert_eq!(Launched::parse(&launched.to_text()).unwrap(), launched);
    assert!(Launched::parse("7").is_err() && Launched::parse(&"[".repeat(20_000)).is_err());
}

#[test]
fn programs_of_other_machines_and_halves_of_programs_are_refused_by_name() {
    let mut header = [0; 64];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (header[16], header[18]) = (3, 62);
    header[40..48].copy_from_slice(&900_u64.to_le_bytes());
    (header[58], header[60]) = (64, 2);
    let check = |header: &[u8], length| check_program(header, length, "x86_64");
    assert_eq!(check(&header, 1_028), Ok(()));
    assert!(matches!(
        check(&header, 1_027),
        Err(ProgramError::CutOff { needed: 1_028, .. })
    ));
    assert_eq!(check(&header[..63], 1_028), Err(ProgramError::NotElf));
    assert_eq!(check(b"#!/bin/sh\n", 10), Err(ProgramError::NotElf));
    let error = check_program(&header, 1_028, "aarch64").unwrap_err().to_string();
    assert!(error.contains("for x86_64, this machine is aarch64"), "{error}");
    header[16] = 1;
    assert_eq!(check(&header, 1_028), Err(ProgramError::NotExecutable(1)));
    assert_eq!(version_said("firmesh-node 1.1.0 (abc)\n"), Some("1.1.0"));
    assert_eq!((version_said("nginx 1.1.0"), version_said("")), (None, None));
}

/// A machine with a launcher: what is on disk, what runs.
#[derive(Debug)]
struct Machine {
    launcher: Launcher,
    disk: NodeSlots,
    whole: Vec<Slot>,
    now: Timestamp,
    runs: Option<Program>,
    started: Vec<Program>,
    said: Vec<String>,
    asked_to_stop: u32,
    killed: u32,
    exit: Option<u8>,
    /// Whether the disk takes what is to be kept.
    writable: bool,
    /// What the system does not start.
    refused: Option<Program>,
}

impl Machine {
    fn new(disk: NodeSlots) -> Self {
        Self {
            launcher: Launcher::new(PACKAGED.to_owned()),
            disk,
            whole: vec![Slot::A, Slot::B],
            now: Timestamp::default(),
            runs: None,
            started: vec![],
            said: vec![],
            asked_to_stop: 0,
            killed: 0,
            exit: None,
            writable: true,
            refused: None,
        }
    }

    fn booted(mut self) -> Self {
        self.settle();
        self
    }

    /// Power was away: whatever ran is gone, and what is on disk is there.
    fn boot_again(&mut self) {
        self.launcher = Launcher::new(PACKAGED.to_owned());
        (self.runs, self.exit) = (None, None);
        self.settle();
    }

    fn tell(&mut self, input: LauncherInput) {
        self.launcher.handle(self.now, input);
        self.settle();
    }

    fn ends(&mut self, how: &str, status: u8) {
        assert!(self.runs.take().is_some(), "nothing runs: {self:?}");
        let how = how.to_owned();
        self.tell(LauncherInput::Ended(Ended { how, status }));
    }

    fn wait(&mut self) {
        self.now = self.launcher.deadline().expect("it waits for something");
        self.tell(LauncherInput::Tick);
    }

    fn settle(&mut self) {
        while let Some(output) = self.launcher.poll() {
            let input = match output {
                LauncherOutput::Look => LauncherInput::Found {
                    slots: Ok(Box::new(self.disk.clone())),
                    whole: self.whole.clone(),
                },
                LauncherOutput::Keep(slots) => LauncherInput::Kept(match self.writable {
                    true => {
                        self.disk = *slots;
                        Ok(())
                    }
                    false => Err("no space left on device".to_owned()),
                }),
                LauncherOutput::Start(program) => {
                    assert_eq!(self.runs, None, "two at a time");
                    if let Program::Slot(slot) = program {
                        let trial = self.disk.trial.as_ref().filter(|trial| trial.slot == slot);
                        assert!(self.disk.confirmed == Some(slot) || trial.is_some_and(|trial| trial.starts > 0));
                    }
                    self.started.push(program);
                    LauncherInput::Started(match self.refused == Some(program) {
                        true => Err(NotStarted {
                            why: "exec format error".to_owned(),
                            retry: false,
                        }),
                        false => {
                            self.runs = Some(program);
                            Ok(())
                        }
                    })
                }
                LauncherOutput::Stop => {
                    self.asked_to_stop += 1;
                    continue;
                }
                LauncherOutput::Kill => {
                    self.killed += 1;
                    continue;
                }
                LauncherOutput::Say(text) => {
                    self.said.push(text);
                    continue;
                }
                LauncherOutput::Exit(status) => {
                    self.exit = Some(status);
                    continue;
                }
            };
            self.launcher.handle(self.now, input);
        }
    }
}

#[test]
fn a_trial_that_dies_is_started_three_times_with_pauses_and_then_the_confirmed_one() {
    let mut machine = Machine::new(armed(Slot::A)).booted();
    for pause_s in [3, 15] {
        let ended = machine.now;
        machine.ends("it ended with exit status 1", 1);
        assert_eq!(machine.runs, None, "no pause");
        machine.wait();
        assert_eq!(machine.now, ended + Duration::from_secs(pause_s));
    }
    machine.ends("it was killed by signal 11", 139);
    assert_eq!(machine.runs, Some(Program::Packaged), "{machine:?}");
    assert_eq!(machine.started.len(), 4);
    let why = machine.disk.last.clone().unwrap().why;
    assert!(why.contains("3 times") && why.contains("signal 11"), "{why}");
    assert!(
        machine
            .said
            .iter()
            .any(|text| text.contains("back to the packaged program"))
    );
}

#[test]
fn a_silent_trial_is_ended_and_not_tried_again_but_one_that_works_or_was_confirmed_goes_on() {
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.now = machine.now + Duration::from_secs(59);
    machine.tell(LauncherInput::Works);
    machine.now = machine.now + Duration::from_secs(59);
    machine.tell(LauncherInput::Tick);
    assert_eq!(machine.asked_to_stop, 0);
    machine.wait();
    assert_eq!((machine.asked_to_stop, machine.killed), (1, 0));
    machine.wait();
    assert_eq!(machine.killed, 1);
    machine.ends("it was killed by signal 9", 137);
    assert_eq!(machine.runs, Some(Program::Packaged));
    assert!(
        machine.disk.last.as_ref().unwrap().why.contains("for 60 s"),
        "{machine:?}"
    );

    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.disk.confirm(Slot::A);
    machine.wait();
    assert_eq!((machine.asked_to_stop, machine.launcher.deadline()), (0, None));

    // One that was given up, and hangs before it ends.
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.disk.give_up("it is not well");
    machine.wait();
    assert_eq!(machine.asked_to_stop, 1);
    machine.wait();
    assert_eq!(machine.killed, 1);
    machine.ends("it was killed by signal 9", 137);
    assert_eq!(machine.runs, Some(Program::Packaged));
    assert_eq!(machine.disk.last.as_ref().unwrap().why, "it is not well");
}

#[test]
fn a_node_that_armed_a_slot_and_ended_is_followed_by_the_slot_and_another_by_the_service_manager() {
    let mut machine = Machine::new(NodeSlots::default()).booted();
    assert_eq!(machine.runs, Some(Program::Packaged));
    machine.disk = armed(Slot::A);
    machine.ends("it ended with exit status 0", 0);
    assert_eq!(machine.runs, Some(Program::Slot(Slot::A)));
    machine.disk.confirm(Slot::A);
    machine.ends("it ended with exit status 3", 3);
    assert_eq!((machine.runs, machine.exit), (None, Some(3)));
}

/// The attempt gives a trial up by itself: it says so in the file, and the node ends.
#[test]
fn a_trial_that_gave_itself_up_is_not_started_again() {
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.disk.give_up("it is not well");
    machine.ends("it ended with exit status 0", 0);
    assert_eq!(machine.runs, Some(Program::Packaged));
}

#[test]
fn a_stop_is_passed_on_and_starts_nothing_more() {
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.tell(LauncherInput::Stop);
    assert_eq!(machine.asked_to_stop, 1);
    machine.ends("it ended with exit status 0", 0);
    assert_eq!((machine.exit, machine.started.len()), (Some(0), 1));
    // Its start was given back, but not for ever: the trial may be why it is stopped.
    let starts = |machine: &Machine| machine.disk.trial.as_ref().map(|trial| trial.starts);
    assert_eq!(starts(&machine), Some(0));
    for stops in 0..6 {
        machine.boot_again();
        assert_eq!(
            machine.runs == Some(Program::Slot(Slot::A)),
            stops < 5,
            "{stops}: {machine:?}"
        );
        machine.tell(LauncherInput::Stop);
        machine.ends("it ended with exit status 0", 0);
    }
    assert_eq!((machine.runs, machine.disk.trial.as_ref()), (None, None));
    // What was confirmed meanwhile, or ended for its silence, is nothing to give back.
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.disk.confirm(Slot::A);
    machine.tell(LauncherInput::Stop);
    machine.ends("it ended with exit status 0", 0);
    assert_eq!((machine.exit, machine.disk.confirmed), (Some(0), Some(Slot::A)));
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.wait();
    machine.tell(LauncherInput::Stop);
    machine.ends("it was killed by signal 15", 143);
    assert_eq!((machine.exit, starts(&machine)), (Some(143), Some(1)));
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.writable = false;
    machine.tell(LauncherInput::Stop);
    machine.ends("it ended with exit status 0", 0);
    assert_eq!((machine.exit, starts(&machine)), (Some(0), Some(1)));
    let mut machine = Machine::new(armed(Slot::A)).booted();
    machine.ends("it ended with exit status 1", 1);
    machine.tell(LauncherInput::Stop);
    assert_eq!((machine.exit, machine.asked_to_stop), (Some(0), 0));
}

#[test]
fn what_cannot_be_counted_is_not_tried() {
    let mut machine = Machine::new(armed(Slot::A));
    machine.writable = false;
    let machine = machine.booted();
    assert_eq!(machine.runs, Some(Program::Packaged));
    assert!(machine.said[0].contains("no space left"), "{machine:?}");
}

#[test]
fn what_the_system_does_not_start_is_left_for_what_it_does() {
    let mut machine = Machine::new(armed(Slot::A));
    machine.refused = Some(Program::Slot(Slot::A));
    machine.settle();
    assert_eq!(machine.runs, Some(Program::Packaged), "{machine:?}");
    let why = machine.disk.last.clone().unwrap().why;
    assert!(why.contains("exec format error"), "{why}");

    let mut confirmed = armed(Slot::A);
    confirmed.confirm(Slot::A);
    let mut machine = Machine::new(confirmed);
    machine.refused = Some(Program::Slot(Slot::A));
    machine.settle();
    assert_eq!((machine.runs, machine.disk.confirmed), (Some(Program::Packaged), None));

    let mut machine = Machine::new(NodeSlots::default());
    machine.refused = Some(Program::Packaged);
    machine.settle();
    assert_eq!((machine.runs, machine.exit), (None, Some(1)));
}

#[test]
fn unreadable_slots_start_the_packaged_program_and_are_left_as_they_are() {
    let mut launcher = Launcher::new(PACKAGED.to_owned());
    assert_eq!(launcher.poll(), Some(LauncherOutput::Look));
    let slots = Err("the slots' file does not have the expected form".to_owned());
    launcher.handle(Timestamp::default(), LauncherInput::Found { slots, whole: vec![] });
    assert!(matches!(launcher.poll(), Some(LauncherOutput::Say(_))));
    assert_eq!(launcher.poll(), Some(LauncherOutput::Start(Program::Packaged)));
}

/// What can happen to a machine.
#[derive(Debug, Clone)]
enum Happening {
    Fill(bool, bool),
    Arm,
    Confirm,
    GiveUp,
    Ends(u8),
    Works,
    Waits,
    PowerCut,
    Stopped,
    Damaged(bool),
    DiskFull(bool),
    NotExecutable(Option<bool>),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (any::<bool>(), any::<bool>()).prop_map(|(a, whole)| Happening::Fill(a, whole)),
        Just(Happening::Arm),
        Just(Happening::Arm),
        Just(Happening::Confirm),
        Just(Happening::GiveUp),
        any::<u8>().prop_map(Happening::Ends),
        Just(Happening::Ends(1)),
        Just(Happening::Works),
        Just(Happening::Waits),
        Just(Happening::PowerCut),
        Just(Happening::Stopped),
        any::<bool>().prop_map(Happening::Damaged),
        any::<bool>().prop_map(Happening::DiskFull),
        proptest::option::of(any::<bool>()).prop_map(Happening::NotExecutable),
    ]
}

proptest! {
    /// Whatever happens, and wherever it is cut off: something runs, or the launcher has ended and the next one starts something;
    /// what runs was confirmed, is counted as a trial, or came with the package; and no trial is started more than three times, but
    /// for those that were stopped with their launchers, which are three at most.
    #[test]
    fn there_is_always_something_that_starts(happenings in proptest::collection::vec(happening(), 0..60)) {
        let slot = |a: bool| if a { Slot::A } else { Slot::B };
        let mut machine = Machine::new(NodeSlots::default()).booted();
        let mut starts = std::collections::BTreeMap::<u64, u32>::new();
        for happening in happenings {
            let before = machine.started.len();
            match happening {
                Happening::Fill(..) | Happening::Arm | Happening::Confirm | Happening::GiveUp if machine.runs.is_none() => {}
                Happening::Fill(a, whole) => {
                    let seen = machine.runs.and_then(|runs| machine.disk.seen(runs));
                    if seen.is_some_and(|seen| slot(a) != seen.running && slot(a) != seen.saved) && machine.writable {
                        let content = if whole { ready("x") } else { SlotContent::Writing };
                        machine.disk.fill(slot(a), content);
                        machine.whole = vec![Slot::A, Slot::B];
                    }
                }
                Happening::Arm => {
                    let seen = machine.runs.and_then(|runs| machine.disk.seen(runs));
                    if let Some(seen) = seen.filter(|seen| !seen.on_trial() && machine.writable)
                        && matches!(machine.disk.slot(seen.running.other()), SlotContent::Ready { .. })
                    {
                        machine.disk.arm(seen.running.other(), PACKAGED, WITHIN_S);
                    }
                }
                Happening::Confirm => {
                    if let (Some(Program::Slot(slot)), Some(trial)) = (machine.runs, &machine.disk.trial)
                        && trial.slot == slot && machine.writable
                    {
                        machine.disk.confirm(slot);
                    }
                }
                Happening::GiveUp => if machine.writable { machine.disk.give_up("it is not well") },
                Happening::Ends(status) => if machine.runs.is_some() { machine.ends("it ended", status) },
                Happening::Works => machine.tell(LauncherInput::Works),
                Happening::Waits => if machine.launcher.deadline().is_some() { machine.wait() },
                Happening::PowerCut => machine.boot_again(),
                Happening::Stopped => {
                    machine.tell(LauncherInput::Stop);
                    if machine.runs.is_some() {
                        machine.ends("it ended", 0);
                    }
                }
                Happening::Damaged(a) => machine.whole.retain(|whole| *whole != slot(a)),
                Happening::DiskFull(full) => machine.writable = !full,
                Happening::NotExecutable(which) => machine.refused = which.map(|a| Program::Slot(slot(a))),
            }
            for program in &machine.started[before..] {
                if let (Program::Slot(slot), Some(trial)) = (program, &machine.disk.trial) && trial.slot == *slot {
                    *starts.entry(trial.number).or_default() += 1;
                }
            }
            prop_assert!(starts.values().all(|starts| *starts <= 6), "{:?}", machine);
            let counted = machine.disk.trial.as_ref().is_none_or(|trial| {
                starts.get(&trial.number).copied().unwrap_or(0) <= trial.starts + trial.stops
            });
            prop_assert!(counted, "{:?} {:?}", starts, machine);
            let waits = machine.launcher.deadline().is_some();
            prop_assert!(machine.runs.is_some() || waits || machine.exit.is_some(), "{:?}", machine);
            if machine.exit.is_some() {
                machine.boot_again();
            }
            let bytes = machine.disk.to_bytes();
            prop_assert_eq!(&NodeSlots::from_bytes(&bytes).unwrap(), &machine.disk);
        }
        // Nothing is in the way any more, and whoever ends is followed by something, in the end by what came with the package.
        machine.refused = None;
        machine.boot_again();
        prop_assert!(machine.runs.is_some(), "{:?}", machine);
    }
}
