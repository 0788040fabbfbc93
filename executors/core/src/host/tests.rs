use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const NOTHING: [&str; 0] = [];

/// The story of a host that steps aside for one device and is given back.
#[test]
fn a_host_is_entered_after_its_record_and_forgotten_after_it_was_seen_back() {
    let mut host = Host::new(None, 7, at(0));
    host.begin(at(0));
    assert_eq!(told(&mut host), NOTHING);
    host.want(&device(1), at(60), at(0));
    assert_eq!(told(&mut host), ["look"]);
    host.handle(at(1), looked(HostSeen::InService));
    assert_eq!(told(&mut host), ["record entering", "enter"]);
    host.handle(at(2), HostInput::Acted);
    assert_eq!(told(&mut host), ["look"]);
    host.handle(at(3), looked(HostSeen::Aside));
    assert_eq!(told(&mut host), ["record aside", "granted d1"]);
    // Another device of it comes and goes.
    host.want(&device(2), at(60), at(4));
    assert_eq!(told(&mut host), ["look"]);
    host.handle(at(4), looked(HostSeen::Aside));
    assert_eq!(told(&mut host), ["granted d2"]);
    host.release(&device(1), at(5));
    assert_eq!(told(&mut host), NOTHING);
    host.release(&device(2), at(6));
    assert_eq!(told(&mut host), ["record leaving", "leave"]);
    host.handle(at(7), HostInput::Acted);
    assert_eq!(told(&mut host), ["look"]);
    host.handle(at(8), looked(HostSeen::InService));
    assert_eq!(told(&mut host), ["forget"]);
    assert_eq!((host.state(), host.deadline()), (HostState::Back, None));
}

#[test]
fn a_host_that_was_aside_before_is_left_aside() {
    let mut host = Host::new(None, 7, at(0));
    host.want(&device(1), at(60), at(0));
    told(&mut host);
    host.handle(at(1), looked(HostSeen::Aside));
    assert_eq!(told(&mut host), ["granted d1"]);
    host.release(&device(1), at(5));
    assert_eq!(told(&mut host), NOTHING);
    assert_eq!((host.state(), host.is_owed()), (HostState::Back, false));
}

#[test]
fn what_is_refused_is_given_back_at_once_and_what_fails_is_tried_again_until_the_deadline() {
    let mut host = Host::new(None, 0, at(0));
    host.want(&device(1), at(60), at(0));
    host.handle(at(0), looked(HostSeen::InService));
    told(&mut host);
    host.handle(at(1), failed("no DRS", false));
    assert_eq!(told(&mut host), ["refused d1: no DRS", "record leaving", "leave"]);
    host.handle(at(1), HostInput::Acted);
    host.handle(at(1), looked(HostSeen::InService));
    assert_eq!(told(&mut host), ["look", "forget"]);

    host.want(&device(1), at(60), at(0));
    host.handle(at(0), looked(HostSeen::InService));
    host.handle(at(1), failed("busy", true));
    assert_eq!(told(&mut host), ["look", "record entering", "enter"]);
    assert_eq!((host.deadline(), host.problem()), (Some(at(3)), Some(("busy", 1))));
    host.handle(at(3), HostInput::Tick);
    assert_eq!(told(&mut host), ["look"]);
    // Its deadline comes while somebody looks.
    host.handle(at(61), HostInput::Tick);
    assert_eq!(
        told(&mut host),
        ["refused d1: it did not step aside in time (entering): busy"]
    );
    host.handle(at(61), unknown("silence"));
    assert_eq!(told(&mut host), ["record leaving", "leave"]);
}

/// An administrator took it out of maintenance mode while another device of it was written: the next one was granted it
/// unseen.
#[test]
fn who_comes_later_is_granted_the_host_only_after_another_look() {
    let mut host = aside_for_one();
    host.want(&device(2), at(60), at(4));
    assert_eq!(told(&mut host), ["look"]);
    // One that nobody can make sense of is no yes.
    host.handle(at(5), unknown("silence"));
    assert_eq!((told(&mut host).len(), host.deadline()), (0, Some(at(7))));
    host.handle(at(7), HostInput::Tick);
    host.handle(at(8), looked(HostSeen::InService));
    assert_eq!(told(&mut host), ["look", "record entering", "enter"]);
    host.handle(at(9), HostInput::Acted);
    host.handle(at(10), looked(HostSeen::Aside));
    assert_eq!(told(&mut host), ["look", "record aside", "granted d2"]);
    // Who waits in vain for a look is refused like anybody else, and the first one keeps the host.
    host.want(&device(3), at(20), at(11));
    host.handle(at(20), HostInput::Tick);
    assert_eq!(
        told(&mut host),
        ["look", "refused d3: it did not step aside in time (aside)"]
    );
    host.handle(at(21), unknown("silence"));
    assert_eq!((told(&mut host).len(), host.state()), (0, HostState::Aside));
}

/// The node was killed, or had no answer, while the host was told to step aside: what is asked after that, of its cluster as
/// well, was never asked, and the host was granted because it was aside.
#[test]
fn a_host_that_was_entered_without_an_end_is_entered_once_more_though_it_looks_aside() {
    let record = HostRecord::new(Stage::Entering);
    let mut reborn = Host::new(Some(&record), 0, at(0));
    reborn.want(&device(1), at(60), at(0));
    reborn.begin(at(0));
    let mut failed_once = Host::new(None, 0, at(0));
    failed_once.want(&device(1), at(60), at(0));
    failed_once.handle(at(0), looked(HostSeen::InService));
    failed_once.handle(at(0), failed("no answer", true));
    assert_eq!(told(&mut failed_once), ["look", "record entering", "enter"]);
    failed_once.handle(at(3), HostInput::Tick);
    for host in [&mut reborn, &mut failed_once] {
        assert_eq!(told(host), ["look"]);
        host.handle(at(4), looked(HostSeen::Aside));
        assert_eq!(told(host), ["enter"]);
        // Its cluster has another one aside by now: this one is back in service.
        host.handle(at(5), failed("h2 is aside", true));
        let again = host.deadline().unwrap();
        host.handle(again, HostInput::Tick);
        host.handle(again, looked(HostSeen::InService));
        host.handle(again, HostInput::Acted);
        host.handle(again, looked(HostSeen::Aside));
        assert_eq!(told(host), ["look", "enter", "look", "record aside", "granted d1"]);
    }
    // Nobody waits for the end any more, and somebody keeps the host: it was not granted, and is not held to be aside.
    let mut kept = Host::new(Some(&record), 0, at(0));
    kept.keep(&device(2));
    kept.want(&device(1), at(3), at(0));
    kept.handle(at(3), HostInput::Tick);
    kept.handle(at(4), looked(HostSeen::Aside));
    assert_eq!(told(&mut kept).len(), 2);
    assert_eq!(kept.state(), HostState::Wanted);
    kept.want(&device(2), at(60), at(5));
    kept.handle(at(6), looked(HostSeen::Aside));
    assert_eq!(told(&mut kept), ["look", "enter"]);
}

/// Somebody says that the host has stepped aside, and it has not.
#[test]
fn a_word_without_effect_grants_nothing() {
    let mut host = Host::new(None, 0, at(0));
    host.want(&device(1), at(60), at(0));
    host.handle(at(0), looked(HostSeen::InService));
    host.handle(at(1), HostInput::Acted);
    host.handle(at(2), looked(HostSeen::InService));
    assert_eq!(told(&mut host), ["look", "record entering", "enter", "look"]);
    assert!(host.problem().unwrap().0.contains("still in service"));
}

#[test]
fn giving_back_is_tried_for_ever_at_a_bounded_pace() {
    let record = HostRecord::new(Stage::Aside);
    let mut host = Host::new(Some(&record), 99, at(0));
    host.begin(at(0));
    assert_eq!(told(&mut host), ["record leaving", "leave"]);
    let mut now = 0;
    for tries in 1..200 {
        host.handle(at(now), failed("not connected", false));
        assert_eq!(host.problem(), Some(("not connected", tries)));
        let next = host.deadline().unwrap();
        let pause = next.since(at(now));
        assert!(pause >= AGAIN_FIRST && pause <= AGAIN_GIVING_BACK * 3 / 2, "{pause:?}");
        now = next.since_start().as_secs() + 1;
        host.handle(at(now), HostInput::Tick);
        assert_eq!(told(&mut host), ["leave"]);
    }
}

/// A device whose image is on its way again after a crash keeps the host aside, and does not have it step aside.
#[test]
fn who_cannot_use_the_host_yet_keeps_it() {
    let mut host = Host::new(None, 0, at(0));
    host.keep(&device(1));
    host.begin(at(0));
    assert_eq!(told(&mut host), NOTHING);
    let record = HostRecord::new(Stage::Aside);
    let mut host = Host::new(Some(&record), 0, at(0));
    host.keep(&device(1));
    host.begin(at(0));
    assert_eq!(told(&mut host), NOTHING);
    // Meanwhile somebody has taken it into service.
    host.want(&device(1), at(60), at(5));
    host.handle(at(6), looked(HostSeen::InService));
    assert_eq!(told(&mut host), ["look", "record entering", "enter"]);
    // One that waits is refused: nothing is due for the other one.
    host.keep(&device(2));
    host.handle(at(7), failed("no", false));
    assert_eq!(told(&mut host), ["refused d1: no"]);
    assert_eq!((host.state(), host.deadline()), (HostState::Entering, None));
    host.release(&device(2), at(8));
    assert_eq!(told(&mut host), ["record leaving", "leave"]);
}

#[test]
fn records_come_back_as_they_were_and_others_are_refused() {
    for stage in [Stage::Entering, Stage::Aside, Stage::Leaving] {
        let record = HostRecord::new(stage);
        assert_eq!(HostRecord::from_bytes(&record.to_bytes()).unwrap(), record);
    }
    for wrong in [
        "",
        "{}",
        r#"{"schema":"firmesh-host/2","stage":"aside"}"#,
        &"x".repeat(2_000),
    ] {
        assert!(HostRecord::from_bytes(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

/// A host, its people, and a node that dies between any two outputs.
#[derive(Debug)]
struct World {
    aside: bool,
    /// Stepped aside half-way, as a drain that was cut short leaves it.
    half: bool,
    record: Option<HostRecord>,
    /// Attempts that have begun and not ended, by the node's own journal.
    in_flight: BTreeSet<DeviceId>,
    granted: BTreeSet<DeviceId>,
    left: u32,
    entered_without_record: bool,
}

#[derive(Debug, Clone)]
enum Event {
    Want(u8),
    End(u8),
    Crash,
    /// An administrator takes it into service.
    TakenBack,
    /// How the step under way goes: whether it has its effect, half of it, and what is said of it.
    Step {
        works: bool,
        half: bool,
        says: bool,
        retry: bool,
    },
    /// Time passes.
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1..4_u8).prop_map(Event::Want),
        2 => (1..4_u8).prop_map(Event::End),
        1 => Just(Event::Crash),
        1 => Just(Event::TakenBack),
        2 => Just(Event::Wait),
        6 => (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(works, half, says, retry)| Event::Step { works, half, says, retry }),
    ]
}

impl World {
    /// Deals with all outputs, and says which step is under way then.
    fn take(&mut self, host: &mut Host) -> Option<HostStep> {
        let mut under_way = None;
        while let Some(output) = host.poll() {
            match output {
                HostOutput::Persist(record) => {
                    // The promise: a record goes only when the host is wholly back.
                    assert!(
                        record.is_some() || (!self.aside && !self.half),
                        "forgotten while {self:?}"
                    );
                    self.record = record;
                }
                HostOutput::Granted(device) => {
                    assert!(self.aside, "granted in service: {self:?}");
                    self.granted.insert(device);
                }
                HostOutput::Refused { device, .. } => {
                    assert!(!self.granted.contains(&device));
                    self.in_flight.remove(&device);
                }
                HostOutput::Step(step) => {
                    self.entered_without_record |= step == HostStep::Enter && self.record.is_none();
                    assert_eq!(under_way.replace(step), None, "two steps at once");
                }
            }
        }
        under_way
    }

    fn carry_out(&mut self, step: HostStep, how: &Event) -> HostInput {
        let Event::Step {
            works,
            half,
            says,
            retry,
        } = *how
        else {
            unreachable!()
        };
        let answer = |says: bool| match says {
            true => HostInput::Acted,
            false => failed("it failed", retry),
        };
        match step {
            HostStep::Look if !says => looked(HostSeen::Unknown {
                why: "silence".to_owned(),
            }),
            HostStep::Look => looked(match (self.aside, self.half) {
                (true, _) => HostSeen::Aside,
                // As much as a look can tell of a host that was entered half-way.
                (false, _) => HostSeen::InService,
            }),
            HostStep::Enter => {
                if works {
                    (self.aside, self.half) = (true, true);
                } else {
                    self.half |= half;
                }
                answer(says)
            }
            HostStep::Leave => {
                self.left += 1;
                if works {
                    (self.aside, self.half) = (false, false);
                }
                // One that says that it worked has worked, where the host does not look aside.
                answer(says && (works || self.aside))
            }
        }
    }

    fn reborn(&self, now: Timestamp) -> Host {
        let mut host = Host::new(self.record.as_ref(), 3, now);
        for device in &self.in_flight {
            host.keep(device);
        }
        for device in &self.in_flight {
            host.want(device, now + Duration::from_secs(50), now);
        }
        host.begin(now);
        host
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever fails, lies or crashes: nobody is granted a host in service, nothing is entered without a record, no record
    /// goes before the host is back, and in the end it is as it was before.
    #[test]
    fn a_host_is_given_back_whatever_happens(
        events in prop::collection::vec(event(), 1..80),
        aside_before in prop::bool::weighted(0.2),
        cuts in prop::collection::vec(any::<bool>(), 80),
    ) {
        let mut world = World {
            aside: aside_before, half: aside_before, record: None, in_flight: BTreeSet::new(), granted: BTreeSet::new(), left: 0,
            entered_without_record: false,
        };
        let (mut now, mut under_way, mut taken_back) = (0, None, false);
        let mut host = Host::new(None, 3, at(0));
        for (event, cut) in events.iter().zip(cuts) {
            now += 1;
            match event {
                Event::Want(number) => {
                    let device = device(*number);
                    if world.in_flight.insert(device.clone()) {
                        host.want(&device, at(now + 50), at(now));
                    }
                }
                Event::End(number) => {
                    let device = device(*number);
                    // Only who may act ends by itself.
                    if world.granted.remove(&device) {
                        world.in_flight.remove(&device);
                        host.release(&device, at(now));
                    }
                }
                Event::Crash => {
                    // What was under way may still have its effect, or not.
                    if let Some(step) = under_way.take() && step != HostStep::Look {
                        let how = Event::Step { works: cut, half: true, says: true, retry: true };
                        world.carry_out(step, &how);
                    }
                    world.granted.clear();
                    host = world.reborn(at(now));
                }
                Event::TakenBack => {
                    taken_back = true;
                    (world.aside, world.half) = (false, false);
                }
                Event::Step { .. } => if let Some(step) = under_way.take() {
                    let input = world.carry_out(step, event);
                    host.handle(at(now), input);
                },
                Event::Wait => {
                    now += 10;
                    host.handle(at(now), HostInput::Tick);
                    prop_assert!(host.deadline().is_none_or(|due| due > at(now)), "due for ever");
                }
            }
            // The node may die right after a record, before the step that follows it.
            if cut && matches!(host.outputs.front(), Some(HostOutput::Persist(_))) && let Some(HostOutput::Persist(record)) = host.poll() {
                world.record = record;
                world.granted.clear();
                host = world.reborn(at(now));
            }
            if let Some(step) = world.take(&mut host) {
                prop_assert!(under_way.is_none());
                under_way = Some(step);
            }
            prop_assert!(!world.entered_without_record);
            let users: BTreeSet<_> = host.users().cloned().collect();
            prop_assert_eq!(&users, &world.in_flight);
        }
        // From now on everything works.
        let fine = Event::Step { works: true, half: false, says: true, retry: true };
        for device in world.in_flight.clone() {
            host.release(&device, at(now));
        }
        world.in_flight.clear();
        for _ in 0..50 {
            if let Some(step) = under_way.take().or_else(|| world.take(&mut host)) {
                let input = world.carry_out(step, &fine);
                host.handle(at(now), input);
            } else if let Some(due) = host.deadline() {
                now = now.max(due.since_start().as_secs() + 1);
                host.handle(at(now), HostInput::Tick);
            }
        }
        prop_assert_eq!(host.state(), HostState::Back);
        prop_assert_eq!(world.record, None);
        prop_assert_eq!(world.aside, aside_before && !taken_back && world.left == 0);
        if aside_before && !taken_back {
            prop_assert_eq!(world.left, 0, "it was aside before we came");
        }
    }
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::after_start(Duration::from_secs(seconds))
}

fn device(number: u8) -> DeviceId {
    DeviceId::new(format!("d{number}")).unwrap()
}

fn looked(seen: HostSeen) -> HostInput {
    HostInput::Looked(seen)
}

fn unknown(why: &str) -> HostInput {
    let why = why.to_owned();
    looked(HostSeen::Unknown { why })
}

/// A host that we had step aside for the first device.
fn aside_for_one() -> Host {
    let mut host = Host::new(None, 0, at(0));
    host.want(&device(1), at(60), at(0));
    host.handle(at(1), looked(HostSeen::InService));
    host.handle(at(2), HostInput::Acted);
    host.handle(at(3), looked(HostSeen::Aside));
    assert_eq!(told(&mut host).last().map(String::as_str), Some("granted d1"));
    host
}

fn failed(reason: &str, retry: bool) -> HostInput {
    HostInput::ActFailed(ActError {
        reason: reason.to_owned(),
        retry,
    })
}

fn told(host: &mut Host) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(output) = host.poll() {
        all.push(match output {
            HostOutput::Persist(Some(record)) => format!("record {:?}", record.stage).to_lowercase(),
            HostOutput::Persist(None) => "forget".to_owned(),
            HostOutput::Step(step) => format!("{step:?}").to_lowercase(),
            HostOutput::Granted(device) => format!("granted {device}"),
            HostOutput::Refused { device, reason } => format!("refused {device}: {reason}"),
        });
    }
    all
}
