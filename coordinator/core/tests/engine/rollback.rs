//! People send devices back: a device, a wave, everybody; while the campaign runs and after it has ended.

use std::collections::BTreeSet;

use firmesh_coordinator_core::{Input, InputError, Rollback};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    ids::{DeviceId, Sha256},
    report::{AttemptState, PermitKind},
    rollback::RollbackScope,
};

use super::world::{Rules, World, id};

fn rollback(scope: RollbackScope) -> Rollback {
    Rollback {
        campaign: id("spring"),
        scope,
        reason: "fans stop".to_owned(),
        order: None,
        moved_on: BTreeSet::new(),
    }
}

fn wave(number: u32) -> RollbackScope {
    RollbackScope {
        waves: [number].into(),
        ..RollbackScope::default()
    }
}

fn device(device: &DeviceId) -> RollbackScope {
    RollbackScope {
        devices: [device.clone()].into(),
        ..RollbackScope::default()
    }
}

/// Twelve devices in waves of 3 and 9.
fn world() -> World {
    let rules = Rules {
        racks: 3,
        per_rack: 4,
        cap_rack: 4,
        cap_total: 12,
        shares: vec![2_500, 10_000],
        ..Rules::default()
    };
    World::new(&[("spring", rules)])
}

fn in_state(world: &World, state: AttemptState) -> Vec<DeviceId> {
    let attempts = world.engine.attempts(&id("spring")).unwrap();
    let found = attempts.into_iter().filter(|attempt| attempt.state == state);
    found.map(|attempt| attempt.device).collect()
}

#[test]
fn a_campaign_that_went_well_goes_back_under_its_caps_and_says_what_became_of_it() {
    let mut world = world();
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
    let digest = Sha256::of(b"order");
    world
        .input(Input::RollBack(Rollback {
            order: Some(digest),
            ..rollback(RollbackScope::default())
        }))
        .unwrap();
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    let back: Vec<_> = world
        .permits
        .iter()
        .filter(|permit| permit.kind == PermitKind::Rollback)
        .collect();
    let (orders, suffices) = world.engine.orders_for(&id("spring"), back[0].wave, &back[0].devices);
    assert_eq!((orders, suffices), (vec![digest], true));
    world.restart();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    assert_eq!(in_state(&world, AttemptState::RolledBack).len(), 12);
    let history = world.engine.rollbacks(&id("spring")).unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].states[&AttemptState::RolledBack], 12);
    assert!(
        world
            .engine
            .campaign(&id("spring"))
            .unwrap()
            .reason
            .starts_with("12 devices went back")
    );
}

#[test]
fn one_device_goes_back_and_the_others_wait_until_somebody_resumes() {
    let mut world = world();
    world.start("spring");
    let bad = world.engine.in_flight().into_keys().next().unwrap();
    // Ordered while it is in flight: it goes back when it has ended on the new version.
    world.input(Input::RollBack(rollback(device(&bad)))).unwrap();
    world.restart();
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(in_state(&world, AttemptState::RolledBack), std::slice::from_ref(&bad));
    assert_eq!(world.state("spring"), CampaignState::Paused);
    let updates = |world: &World| {
        world
            .permits
            .iter()
            .filter(|p| p.kind == PermitKind::Update && p.wave == 1)
            .count()
    };
    assert_eq!(
        updates(&world),
        0,
        "nothing new starts while some go back, nor before somebody resumes"
    );
    world.input(Input::Resume(id("spring"))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    // Its update did well, so the gate of its wave passes as nodes see it.
    assert_eq!(in_state(&world, AttemptState::Success).len(), 11);
    assert_eq!(in_state(&world, AttemptState::RolledBack), [bad]);
    assert_eq!(
        world.state("spring"),
        CampaignState::Failed,
        "one planned device does not run the new version"
    );
}

#[test]
fn a_wave_goes_back_and_its_devices_that_have_not_begun_never_begin() {
    let mut world = world();
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
    world.input(Input::RollBack(rollback(wave(0)))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(in_state(&world, AttemptState::RolledBack).len(), 3);
    assert_eq!(in_state(&world, AttemptState::Success).len(), 9);
    // The rest can still follow.
    world
        .input(Input::RollBack(rollback(RollbackScope::default())))
        .unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(in_state(&world, AttemptState::RolledBack).len(), 12);
    assert_eq!(world.engine.rollbacks(&id("spring")).unwrap().len(), 2);
}

#[test]
fn what_moved_on_stays_and_an_order_for_nobody_changes_nothing() {
    let mut world = world();
    let nobody = world.input(Input::RollBack(rollback(RollbackScope::default())));
    assert!(
        matches!(nobody, Err(InputError::WrongState { .. })),
        "it has not started: {nobody:?}"
    );
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    let all: BTreeSet<_> = world.devices().into_iter().collect();
    let moved = Rollback {
        moved_on: all.clone(),
        ..rollback(RollbackScope::default())
    };
    let refused = world.input(Input::RollBack(moved)).unwrap_err();
    assert!(refused.to_string().contains("12 run another version"), "{refused}");
    let stranger = rollback(device(&"nobody".parse().unwrap()));
    assert!(matches!(
        world.input(Input::RollBack(stranger)),
        Err(InputError::NothingToRollBack(_))
    ));
    assert!(matches!(
        world.input(Input::RollBack(rollback(wave(7)))),
        Err(InputError::NothingToRollBack(_))
    ));
    assert_eq!(world.state("spring"), CampaignState::Completed);
    let stays = all.first().unwrap().clone();
    let most = Rollback {
        moved_on: [stays.clone()].into(),
        ..rollback(RollbackScope::default())
    };
    world.input(Input::RollBack(most)).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(in_state(&world, AttemptState::Success), [stays]);
}

#[test]
fn a_rollback_can_be_cancelled_and_ordered_again() {
    let rules = Rules {
        cap_total: 1,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    world.input(Input::RollBack(rollback(wave(0)))).unwrap();
    world.input(Input::Cancel(id("spring"))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Cancelled);
    for attempt in world.engine.attempts(&id("spring")).unwrap() {
        assert!(attempt.state.is_terminal(), "{attempt:?}");
    }
    assert_eq!(in_state(&world, AttemptState::Success).len(), 5, "one was on its way");
    world.input(Input::RollBack(rollback(wave(0)))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    assert_eq!(in_state(&world, AttemptState::RolledBack).len(), 6);
}

/// Its node looks after it no more, and speaks all the same.
#[test]
fn a_rollback_that_a_node_does_not_take_up_ends_and_can_be_ordered_again() {
    let mut world = world();
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    world.input(Input::RollBack(rollback(wave(0)))).unwrap();
    let going: Vec<_> = world.engine.in_flight().into_keys().collect();
    for device in &going[1..] {
        world.report(device, AttemptState::RolledBack);
    }
    for _ in 0..5 {
        world.run_clock(std::time::Duration::from_secs(600));
        world.nodes().iter().for_each(|node| world.hear(node.as_str()));
    }
    assert_eq!(world.state("spring"), CampaignState::Failed);
    assert!(
        world
            .engine
            .campaign(&id("spring"))
            .unwrap()
            .reason
            .contains("1 could not")
    );
    assert!(world.engine.in_flight().is_empty(), "its place is free again");
    world.input(Input::RollBack(rollback(device(&going[0])))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(in_state(&world, AttemptState::RolledBack).len(), going.len());
}

#[test]
fn a_failed_gate_without_automatic_rollback_sends_nobody_but_those_that_were_ordered() {
    let rules = Rules {
        automatic: false,
        cap_rack: 3,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let all: Vec<_> = world.engine.in_flight().into_keys().collect();
    for (number, device) in all.iter().enumerate() {
        let state = [AttemptState::Success, AttemptState::Failed][usize::from(number > 2)];
        world.report(device, state);
    }
    assert_eq!(world.state("spring"), CampaignState::Failed);
    let issued = world.permits.len();
    world.input(Input::RollBack(rollback(device(&all[0])))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.permits[issued..].len(), 1);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    assert_eq!(in_state(&world, AttemptState::RolledBack), [all[0].clone()]);
}

#[test]
fn a_unit_goes_back_in_reverse_past_one_that_stays() {
    let rules = Rules {
        racks: 1,
        unit: 3,
        one_way: vec![1],
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    let issued = world.permits.len();
    let alone = device(&"d0".parse().unwrap());
    assert!(
        world.input(Input::RollBack(rollback(alone))).is_err(),
        "d2 comes after it"
    );
    world.input(Input::RollBack(rollback(wave(0)))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    let order: Vec<_> = world.permits[issued..]
        .iter()
        .flat_map(|permit| &permit.devices)
        .collect();
    assert_eq!(
        order.iter().map(|device| device.as_str()).collect::<Vec<_>>(),
        ["d2", "d0"]
    );
}

/// An older one may be signed with keys that do not count any more.
#[test]
fn a_permit_rests_on_the_newest_order_for_each_device() {
    let mut world = world();
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    let digests = [b"one", b"two"].map(|text| Sha256::of(text));
    let signed = |scope, order| Rollback {
        order: Some(order),
        ..rollback(scope)
    };
    world.input(Input::RollBack(signed(wave(1), digests[0]))).unwrap();
    let going: Vec<_> = world.engine.in_flight().into_keys().collect();
    world.input(Input::Cancel(id("spring"))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    let _ = world.input(Input::RollBack(signed(RollbackScope::default(), digests[1])));
    let orders = world.engine.orders_for(&id("spring"), 1, &going[..1]).0;
    assert_eq!(orders, [digests[1]]);
}

/// Nodes judge by the reports on the updates, whatever became of the devices since.
#[test]
fn a_device_that_went_back_is_no_better_known_than_before() {
    let rules = Rules {
        health: true,
        shares: vec![5_000, 10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    let gate = |world: &World| world.engine.campaign(&id("spring")).unwrap().waves[0].gate;
    assert_eq!(gate(&world), GateVerdict::Unknown);
    world.input(Input::RollBack(rollback(wave(0)))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    world.input(Input::Resume(id("spring"))).unwrap();
    assert_eq!(gate(&world), GateVerdict::Unknown);
    assert_eq!(world.state("spring"), CampaignState::Active);
}

/// The hunt's seeds orders 33 and 1000058: permits that wait for their window, or lapse, do not keep a rollback from its end.
#[test]
fn permits_that_nobody_used_do_not_hold_up_the_end_of_a_rollback() {
    let mut world = world();
    world.start("spring");
    let waiting = world.engine.in_flight().into_keys().collect::<Vec<_>>();
    world.report(&waiting[0], AttemptState::Success);
    for device in &waiting[1..] {
        world.report(device, AttemptState::WaitingWindow);
    }
    let mut scope = device(&waiting[0]);
    scope.devices.insert(waiting[1].clone());
    world.input(Input::RollBack(rollback(scope))).unwrap();
    world.report(&waiting[0], AttemptState::RolledBack);
    // Their nodes live, and let the permits lapse.
    for _ in 0..5 {
        world.run_clock(std::time::Duration::from_secs(600));
        for node in world.nodes() {
            world.hear(node.as_str());
        }
    }
    assert_eq!(world.state("spring"), CampaignState::Paused);
    assert_eq!(in_state(&world, AttemptState::Cancelled), waiting[1..2]);
}

/// The hunt's seed orders 69: under a cap of one, a permit that lapsed unused made no room for who goes back.
#[test]
fn a_lapsed_permit_makes_room_for_those_who_go_back() {
    let rules = Rules {
        racks: 1,
        per_rack: 2,
        cap_total: 1,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let first = world.engine.in_flight().into_keys().next().unwrap();
    world.report(&first, AttemptState::Success);
    let second = world.engine.in_flight().into_keys().next().unwrap();
    world.input(Input::RollBack(rollback(device(&first)))).unwrap();
    world.run_clock(std::time::Duration::from_secs(1_000));
    for node in world.nodes() {
        world.hear(node.as_str());
    }
    world.run_clock(std::time::Duration::from_secs(1));
    assert_eq!(world.engine.in_flight().into_keys().next(), Some(first.clone()));
    world.report(&first, AttemptState::RolledBack);
    assert_eq!(world.state("spring"), CampaignState::Paused);
    world.input(Input::Resume(id("spring"))).unwrap();
    assert_eq!(world.engine.in_flight().into_keys().next(), Some(second));
}

/// Otherwise whoever may order it once could let the record grow without end.
#[test]
fn what_is_ordered_twice_is_ordered_once() {
    let mut world = world();
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    let order = Rollback {
        order: Some(Sha256::of(b"signed")),
        ..rollback(wave(0))
    };
    world.input(Input::RollBack(order.clone())).unwrap();
    for again in [order, rollback(wave(0))] {
        let again = world.input(Input::RollBack(again));
        assert!(matches!(again, Err(InputError::NothingToRollBack(_))), "{again:?}");
    }
    assert_eq!(world.engine.rollbacks(&id("spring")).unwrap().len(), 1);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(in_state(&world, AttemptState::RolledBack).len(), 3);
}

/// Otherwise a component would stand before one that was made for its newer version.
#[test]
fn a_device_does_not_go_back_without_those_after_it_in_its_unit() {
    let rules = Rules {
        racks: 1,
        unit: 3,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.run_until_quiet(|_| AttemptState::Success);
    let devices = |names: &[&str]| RollbackScope {
        devices: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..RollbackScope::default()
    };
    for alone in [&["d0"][..], &["d1"], &["d0", "d2"]] {
        let refused = world.input(Input::RollBack(rollback(devices(alone)))).unwrap_err();
        assert!(refused.to_string().contains("in its unit: send both back"), "{refused}");
    }
    world.input(Input::RollBack(rollback(devices(&["d2"])))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    world.input(Input::RollBack(rollback(devices(&["d0", "d1"])))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(in_state(&world, AttemptState::RolledBack).len(), 3);
}
