use firmesh_protocol::{
    approval::ApprovalRule,
    ids::{CampaignId, Sha256},
    labels::Labels,
    manifest::{
        Caps, Constraints, Deadlines, GateRule, MANIFEST_SCHEMA, PLAN_SCHEMA, PlannedDevice, Priority, ReleaseRef,
        Selector, Strategy,
    },
    rehearsal::{Ending, Scenario, Source},
    report::{AttemptReport, AttemptState, PermitKind},
    trust::SecretKey,
    units::BasisPoints,
    window::{Weekday, Window},
};

use super::*;

const NEW: &str = "firmware/new.bin";
const OLD: &str = "firmware/old.bin";
const MIB: u64 = 1 << 20;

#[test]
fn a_bad_image_is_stopped_in_the_first_wave_and_touches_no_other() {
    let facts = facts(4, 10, |_| ());
    let told = rehearsed(&facts, &asked("unhealthy=100%"));
    let (first, bad) = (&facts.plan.waves[0], &told.scenarios[1]);
    assert_eq!(first.len(), 4);
    assert_eq!(bad.endings, BTreeMap::from([(Ending::RolledBack, 25)]));
    assert_eq!(bad.stopped_in, BTreeMap::from([(0, 25)]));
    assert_eq!(
        (bad.exposed.p50, bad.exposed.max),
        (4, 4),
        "all of the first wave, and nobody else"
    );
    assert_eq!((bad.went_back.max, bad.harmed.max, bad.updated.max), (4, 0, 0));
    let undisturbed = &told.scenarios[0];
    assert_eq!(undisturbed.endings, BTreeMap::from([(Ending::Completed, 25)]));
    assert_eq!((undisturbed.exposed.p50, undisturbed.updated.p50), (40, 40));
}

#[test]
fn a_gate_is_judged_before_the_whole_wave_is_exposed_where_the_cap_is_small() {
    let narrow = facts(4, 10, |m| m.caps = Caps::new(10, 1));
    let bad = &rehearsed(&narrow, &asked("unhealthy=100%")).scenarios[1];
    assert_eq!(bad.exposed.max, 1, "one of four is below 90 % already");
}

#[test]
fn the_engine_keeps_the_caps_by_our_own_book_and_fills_them() {
    let told = rehearsed(&facts(3, 20, |m| m.caps = Caps::new(2, 5)), &asked("brick=5%"));
    let last = told.waves.last().unwrap();
    assert_eq!(last.in_flight.total, 5);
    assert_eq!(last.in_flight.sites[&path("eu/s1")], 5);
    for wave in &told.waves {
        assert!(
            wave.in_flight.total <= 5 && wave.in_flight.racks.values().all(|peak| *peak <= 2),
            "{wave:?}"
        );
    }
    assert!(told.timeline.iter().all(|(_, in_flight)| *in_flight <= 5));
    assert_eq!(told.timeline.last().unwrap().1, 0);
}

#[test]
fn a_quarantined_device_keeps_its_place_until_the_campaign_waits_for_a_person() {
    let stuck = facts(1, 4, |m| m.caps = Caps::new(1, 10));
    let told = rehearsed(&stuck, &asked("brick=100%"));
    let brick = &told.scenarios[1];
    assert_eq!((brick.exposed.max, brick.harmed.max), (1, 1));
    assert_eq!(brick.stopped_in, BTreeMap::from([(0, 25)]));
    // Between the thresholds nobody but a person decides.
    let lenient = facts(1, 4, |m| {
        m.caps = Caps::new(1, 10);
        m.strategy = Strategy::Canary {
            shares: vec![BasisPoints::WHOLE],
        };
        m.gate.rollback = BasisPoints::new(1_000).unwrap();
    });
    let brick = &rehearsed(&lenient, &asked("brick=100%")).scenarios[1];
    assert_eq!(brick.endings, BTreeMap::from([(Ending::Waits, 25)]), "{brick:?}");
    assert_eq!(brick.stopped_in, BTreeMap::from([(0, 25)]));
}

/// Also where several questions are open at once.
#[test]
fn batches_that_overlap_are_through_sooner_and_show_a_bad_image_to_no_more_than_may_be_open() {
    let batches = |max_concurrent_batches| {
        let mut facts = facts(4, 5, |m| {
            let share = |tenth: u32| BasisPoints::new(1_000 * tenth).unwrap();
            m.strategy = Strategy::Canary {
                shares: (1..=10).map(share).collect(),
            };
            m.gate.approval = Some(ApprovalRule::default());
            m.gate.webhooks = ["board", "graphs"].map(str::to_owned).to_vec();
        });
        facts.manifest.strategy = Strategy::Rolling {
            batch: 2,
            max_concurrent_batches,
        };
        rehearsed(&facts, &asked("unhealthy=100%"))
    };
    let (one, three) = (batches(1), batches(3));
    for told in [&one, &three] {
        assert_eq!(told.scenarios[0].endings, BTreeMap::from([(Ending::Completed, 25)]));
        assert_eq!(told.scenarios[1].endings, BTreeMap::from([(Ending::RolledBack, 25)]));
    }
    let ends = |told: &Rehearsal| told.scenarios[0].ends_s.p50;
    assert!(2 * ends(&three) < ends(&one), "{} and {}", ends(&three), ends(&one));
    let exposed = |told: &Rehearsal| told.scenarios[1].exposed.max;
    assert_eq!(exposed(&one), 2);
    assert!((2..=6).contains(&exposed(&three)), "{}", exposed(&three));
}

#[test]
fn stalled_devices_end_at_their_deadline_with_the_old_version() {
    let told = rehearsed(&facts(2, 2, |_| ()), &asked("stall=100%"));
    let stall = &told.scenarios[1];
    assert_eq!((stall.harmed.max, stall.went_back.max, stall.updated.max), (0, 0, 0));
    assert!(stall.stopped_s.unwrap().p50 >= 600, "{stall:?}");
}

#[test]
fn the_devices_of_a_silent_rack_are_presumed_quarantined_and_the_others_go_on_only_if_the_gate_lets_them() {
    let strict = rehearsed(&facts(4, 10, |_| ()), &asked("silent"));
    let silent = &strict.scenarios[1];
    assert_eq!(
        silent.fault,
        Some(Fault::Silent {
            rack: Some(path("eu/s1/r00"))
        })
    );
    assert!(
        silent.harmed.max > 0 && silent.stopped_in.values().sum::<u32>() == 25,
        "{silent:?}"
    );
    // Permit lifetime plus attempt deadline without a word.
    assert!(silent.stopped_s.unwrap().p50 >= 900 + 600, "{silent:?}");
    let unknown = rehearse(&facts(4, 10, |_| ()), &asked("silent=eu/s1/r99"), &|| true);
    assert!(matches!(unknown, Err(RehearseError::UnknownRack(_))), "{unknown:?}");
}

#[test]
fn waiting_for_windows_shows_in_the_duration_of_waves() {
    let open = rehearsed(&facts(2, 5, |_| ()), &asked("brick=2%"));
    // The question starts on a Sunday at noon, UTC.
    let windowed = facts(2, 5, |m| {
        m.constraints.windows = vec![Window::weekly("UTC", &[Weekday::Mon, Weekday::Tue], "02:00", 900)];
        m.caps = Caps::new(1, 2);
    });
    let told = rehearsed(&windowed, &asked("brick=2%"));
    let takes = |told: &Rehearsal, wave: usize| told.waves[wave].takes_s.unwrap().p50;
    assert!(
        takes(&open, 0) < 3_600 && takes(&told, 0) >= 14 * 3_600,
        "{:?}",
        told.waves[0]
    );
    // A window fits one start in each rack: five of them are Monday, Tuesday, and again, and again.
    assert!(told.scenarios[0].ends_s.p50 >= 14 * 86_400, "{:?}", told.scenarios[0]);
    assert_eq!(told.scenarios[0].endings, BTreeMap::from([(Ending::Completed, 25)]));
}

#[test]
fn a_campaign_that_expires_first_says_so() {
    let short = facts(1, 10, |m| {
        m.caps = Caps::new(1, 1);
        m.expires = noon() + Duration::from_secs(1_000);
    });
    let told = rehearsed(&short, &asked("brick=2%"));
    assert_eq!(told.scenarios[0].endings, BTreeMap::from([(Ending::Failed, 25)]));
    assert!(
        told.scenarios[0].reason.contains("expired"),
        "{}",
        told.scenarios[0].reason
    );
}

#[test]
fn the_same_question_has_the_same_bytes_and_another_seed_others() {
    let facts = facts(3, 10, |_| ());
    let question = asked("brick=10%");
    let bytes = rehearsed(&facts, &question).to_bytes();
    assert_eq!(rehearsed(&facts, &question).to_bytes(), bytes);
    let other = RehearsalQuestion { seed: 8, ..question };
    assert_ne!(rehearsed(&facts, &other).to_bytes(), bytes);
    assert_eq!(Rehearsal::from_bytes(&bytes).unwrap().to_bytes(), bytes);
}

#[test]
fn an_image_crosses_each_wire_once_and_none_where_it_is_held() {
    let mut held = facts(2, 10, |_| ());
    let bytes = |mib: u64| mib * MIB * 106 / 100;
    let first = &rehearsed(&held, &asked("brick=2%")).waves[0].bytes;
    assert_eq!(first.sites, BTreeMap::from([(path("eu/s1"), bytes(100) + bytes(50))]));
    assert_eq!(first.racks[&path("eu/s1/r00")], bytes(100) + bytes(50));
    let all = rehearsed(&held, &asked("brick=2%"));
    assert!(
        all.waves[1..]
            .iter()
            .all(|wave| wave.bytes.sites.is_empty() && wave.bytes.racks.is_empty())
    );
    let old = held.images[OLD].id;
    held.held.insert((path("eu/s1/r00/r00-n"), old));
    let told = rehearsed(&held, &asked("brick=2%"));
    let first = &told.waves[0].bytes;
    assert_eq!(first.sites[&path("eu/s1")], bytes(100));
    assert_eq!(first.racks[&path("eu/s1/r00")], bytes(100));
    assert_eq!(first.racks[&path("eu/s1/r01")], bytes(150));
}

#[test]
fn times_are_learned_where_there_are_enough_and_what_is_asked_wins() {
    let mut known = facts(2, 10, |_| ());
    let learned = |image: &str, install: u32| LearnedAttempt {
        kind: kind(),
        image: known.images[image].id,
        seconds: BTreeMap::from([(Step::Install, install), (Step::Reboot, 20), (Step::Validate, 10)]),
    };
    let source = |told: &Rehearsal, step: Step| {
        let times = told.assumptions.steps.iter().find(|time| time.step == step).unwrap();
        (times.source, times.samples, times.seconds.p50)
    };
    let few = vec![learned(NEW, 30), learned(NEW, 30), learned(OLD, 90)];
    let exact = vec![learned(NEW, 30), learned(NEW, 30), learned(OLD, 90), learned(NEW, 30)];
    assert_eq!(
        source(&rehearsed(&known, &asked("brick=2%")), Step::Install),
        (Source::Usual, 0, 150)
    );
    known.learned = few;
    assert_eq!(
        source(&rehearsed(&known, &asked("brick=2%")), Step::Install),
        (Source::Model, 3, 30)
    );
    known.learned = exact;
    let told = rehearsed(&known, &asked("brick=2%"));
    assert_eq!(source(&told, Step::Install), (Source::Release, 3, 30));
    assert_eq!(source(&told, Step::Restore).0, Source::Usual);
    // A minute for each device, at most five seconds until its node asks.
    assert!(
        (60..=65).contains(&told.waves[0].takes_s.unwrap().p50),
        "{:?}",
        told.waves[0]
    );
    let question = RehearsalQuestion {
        assume: BTreeMap::from([(Step::Install, 200)]),
        ..asked("brick=2%")
    };
    let told = rehearsed(&known, &question);
    assert_eq!(source(&told, Step::Install), (Source::Asked, 0, 200));
    assert!(
        (230..=235).contains(&told.waves[0].takes_s.unwrap().p50),
        "{:?}",
        told.waves[0]
    );
    // Longer than the approved deadline: nodes would not wait.
    let question = RehearsalQuestion {
        assume: BTreeMap::from([(Step::Install, 601)]),
        ..question
    };
    let slow = &rehearsed(&known, &question).scenarios[0];
    assert!(slow.harmed.p50 > 0 && slow.updated.max == 0, "{slow:?}");
}

#[test]
fn what_is_out_of_bounds_is_refused_with_what_to_do() {
    let facts = facts(2, 10, |_| ());
    let refused = |question: RehearsalQuestion| rehearse(&facts, &question, &|| true).unwrap_err().to_string();
    assert!(
        refused(RehearsalQuestion {
            runs: 0,
            ..asked("brick=2%")
        })
        .contains("0 runs")
    );
    assert!(
        refused(RehearsalQuestion {
            runs: 1_001,
            ..asked("brick=2%")
        })
        .contains("1001 runs")
    );
    let faults = vec![Fault::Silent { rack: None }; 17];
    assert!(
        refused(RehearsalQuestion {
            faults,
            ..asked("brick=2%")
        })
        .contains("17 faults")
    );
    let late = RehearsalQuestion {
        starts: facts.manifest.expires,
        ..asked("brick=2%")
    };
    assert!(refused(late).contains("expires"));
    let large = self::facts(10, 4_000, |_| ());
    let too_much = rehearse(&large, &asked("brick=2%"), &|| true).unwrap_err().to_string();
    assert!(
        too_much.contains("40000 devices in 2 scenarios of 25 runs") && too_much.contains("fewer"),
        "{too_much}"
    );
    let given_up = rehearse(&facts, &asked("brick=2%"), &|| false).unwrap_err().to_string();
    assert!(given_up.contains("0 of 50"), "{given_up}");
    let nobody = RehearsalFacts {
        plan: Plan {
            waves: Vec::new(),
            ..facts.plan.clone()
        },
        ..facts.clone()
    };
    assert!(matches!(
        rehearse(&nobody, &asked("brick=2%"), &|| true),
        Err(RehearseError::Nobody)
    ));
    let homeless = RehearsalFacts {
        images: BTreeMap::new(),
        ..facts.clone()
    };
    assert!(matches!(
        rehearse(&homeless, &asked("brick=2%"), &|| true),
        Err(RehearseError::NoImage(_))
    ));
    let strangers = RehearsalFacts {
        kinds: BTreeMap::new(),
        ..facts.clone()
    };
    assert!(matches!(
        rehearse(&strangers, &asked("brick=2%"), &|| true),
        Err(RehearseError::UnknownDevice(_))
    ));
}

#[test]
fn times_are_read_from_reports_of_attempts_that_ended_well() {
    use AttemptState::*;
    let said = |device: &str, kind: PermitKind, states: &[(AttemptState, i64)]| -> Vec<AttemptReport> {
        let report = |(number, (state, at)): (u64, &(AttemptState, i64))| AttemptReport {
            campaign: CampaignId::new("before").unwrap(),
            manifest_sha256: Sha256::of(b""),
            wave: 0,
            kind,
            permit_sequence: 1,
            attempt: 1,
            device: DeviceId::new(device).unwrap(),
            node: "n1".parse().unwrap(),
            sequence: number,
            state: *state,
            reason: String::new(),
            version: None,
            failure: None,
            health: None,
            at: WallTime::from_unix_seconds(*at),
        };
        (1..).zip(states).map(report).collect()
    };
    let update = PermitKind::Update;
    let mut reports = said(
        "whole",
        update,
        &[
            (Downloading, 0),
            (Installing, 10),
            (Staged, 50),
            (Rebooting, 60),
            (Validating, 90),
            (Success, 100),
        ],
    );
    reports.reverse();
    reports.extend(said("quick", update, &[(Installing, 10), (Success, 17)]));
    reports.extend(said(
        "back",
        PermitKind::Rollback,
        &[(Installing, 10), (Rebooting, 20), (RolledBack, 40)],
    ));
    reports.extend(said("failed", update, &[(Installing, 10), (Failed, 17)]));
    reports.extend(said("running", update, &[(Installing, 10)]));
    reports.extend(said("clock", update, &[(Installing, 10), (Success, 5)]));
    let learned: Vec<_> = learn(reports)
        .into_iter()
        .map(|timed| (timed.device.to_string(), timed.seconds))
        .collect();
    let steps = |install, reboot, validate| {
        BTreeMap::from([
            (Step::Install, install),
            (Step::Reboot, reboot),
            (Step::Validate, validate),
        ])
    };
    let expected = [
        ("back".to_owned(), BTreeMap::from([(Step::Restore, 30)])),
        ("quick".to_owned(), steps(7, 0, 0)),
        ("whole".to_owned(), steps(50, 30, 10)),
    ];
    assert_eq!(learned, expected);
}

fn rehearsed(facts: &RehearsalFacts, question: &RehearsalQuestion) -> Rehearsal {
    let told = rehearse(facts, question, &|| true).unwrap();
    let adds_up = |s: &Scenario| s.endings.values().sum::<u32>() == question.runs && s.updated.max <= s.exposed.max;
    assert!(told.scenarios.iter().all(adds_up), "{told:?}");
    told
}

fn path(text: &str) -> TopologyPath {
    text.parse().unwrap()
}

fn noon() -> WallTime {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn kind() -> DeviceKind {
    DeviceKind {
        model: "R1".to_owned(),
        component: Component::new("bmc").unwrap(),
    }
}

fn asked(fault: &str) -> RehearsalQuestion {
    RehearsalQuestion {
        seed: 7,
        runs: 25,
        starts: noon(),
        assume: BTreeMap::new(),
        faults: vec![fault.parse().unwrap()],
    }
}

/// A fleet with one node per rack, and a canary campaign of 10, 50 and 100 % on it that asks for 99 % and goes back
/// below 90 %.
fn facts(racks: usize, per_rack: usize, change: fn(&mut CampaignManifest)) -> RehearsalFacts {
    let share = |basis_points| BasisPoints::new(basis_points).unwrap();
    let pin = |target: &str| ReleaseRef {
        target: target.to_owned(),
        sha256: Sha256::of(target.as_bytes()),
    };
    let mut manifest = CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: CampaignId::new("spring").unwrap(),
        sequence: 1,
        expires: noon() + Duration::from_secs(90 * 86_400),
        releases: vec![pin(NEW)],
        previous: vec![pin(OLD)],
        selector: Selector::default(),
        strategy: Strategy::Canary {
            shares: [1_000, 5_000, 10_000].map(share).to_vec(),
        },
        caps: Caps::new(100, 1_000),
        gate: GateRule {
            soak_s: 60,
            ..GateRule::shares(share(9_900), share(9_000))
        },
        deadlines: Deadlines {
            attempt_s: 600,
            back_s: 60,
        },
        constraints: Constraints::default(),
        priority: Priority::default(),
        automatic_rollback: true,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![format!("58{}", "66".repeat(31))],
        plan_sha256: Sha256::of(b""),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: firmesh_protocol::manifest::CampaignKind::Update,
    };
    change(&mut manifest);
    let place = |number: usize| {
        let rack = number % racks;
        PlannedDevice {
            device: DeviceId::new(format!("d{number:05}")).unwrap(),
            node: format!("r{rack:02}-n").parse().unwrap(),
            rack: path(&format!("eu/s1/r{rack:02}")),
            release: NEW.to_owned(),
            from_version: "1.0".to_owned(),
            previous: Some(OLD.to_owned()),
            labels: Labels::default(),
            hops: Vec::new(),
            after: None,
        }
    };
    let total = racks * per_rack;
    let Strategy::Canary { shares } = &manifest.strategy else {
        panic!("these fleets are for canaries");
    };
    let mut from = 0;
    let wave = |share: &BasisPoints| {
        let to = share.of_rounded_up(total);
        (std::mem::replace(&mut from, to)..to).map(place).collect()
    };
    let plan = Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign: manifest.id.clone(),
        waves: shares.iter().map(wave).collect(),
        nodes: (0..racks)
            .map(|rack| {
                (
                    format!("r{rack:02}-n").parse().unwrap(),
                    SecretKey::from_seed(&[1; 32]).public(),
                )
            })
            .collect(),
        held: Vec::new(),
        domains: BTreeMap::new(),
        servers: Vec::new(),
    };
    let image = |(target, mib): (&str, u64)| {
        let (id, sha256) = (ArtifactId::of(target.as_bytes()), Sha256::of(target.as_bytes()));
        (
            target.to_owned(),
            Artifact {
                id,
                sha256,
                length: mib * MIB,
            },
        )
    };
    manifest.plan_sha256 = Sha256::of(&plan.to_bytes());
    RehearsalFacts {
        kinds: plan
            .devices()
            .map(|(_, planned)| (planned.device.clone(), kind()))
            .collect(),
        images: [(NEW, 100), (OLD, 50)].map(image).into(),
        manifest,
        plan,
        learned: Vec::new(),
        held: BTreeSet::new(),
        permit_ttl: Duration::from_secs(900),
        version: "0 (test)".to_owned(),
        notes: Vec::new(),
    }
}
