//! The campaign engine in stories and under random reports, orders and restarts.

mod approval;
mod batches;
mod close;
mod domains;
mod explain;
mod hops;
mod pools;
mod retries;
mod rollback;
mod servers;
mod webhooks;
mod world;

use std::{collections::BTreeSet, time::Duration};

use firmesh_coordinator_core::{Input, InputError, Rollback, STARTS_MAX, Subject};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    manifest::{AtMost, Retries, RetryBudget, RetryRule},
    report::{AttemptState, FailureClass, PermitKind},
    rollback::RollbackScope,
};
use proptest::prelude::*;
use world::{NEW, OLD, Rules, World, id};

#[test]
fn a_healthy_campaign_opens_wave_after_wave_and_completes() {
    let mut world = World::new(&[(
        "spring",
        Rules {
            racks: 3,
            per_rack: 4,
            cap_rack: 1,
            cap_total: 10,
            ..Rules::default()
        },
    )]);
    world.start("spring");
    assert_eq!(world.engine.in_flight().len(), 2, "10 % of 12 devices");
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
    assert!(world.permits.iter().all(|permit| permit.kind == PermitKind::Update));
}

#[test]
fn a_failed_wave_goes_back_and_the_rest_is_never_touched() {
    let mut world = World::new(&[(
        "spring",
        Rules {
            racks: 4,
            per_rack: 10,
            cap_rack: 1,
            ..Rules::default()
        },
    )]);
    world.start("spring");
    let bad = world.engine.in_flight().into_keys().next().unwrap();
    world.run_until_quiet(|device| {
        if *device == bad {
            AttemptState::Failed
        } else {
            AttemptState::Success
        }
    });
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(view.states[&AttemptState::RolledBack], 3);
    assert_eq!(view.states[&AttemptState::Cancelled], 36);
    assert_eq!(view.waves[0].gate, GateVerdict::Fail);
    assert!(!view.waves[1].open);
    let why = world.engine.explain(&id("spring"), &Subject::Campaign).unwrap();
    let gate = why.iter().find(|found| found.finding == "the gate failed").unwrap();
    assert!(gate.evidence.iter().any(|line| line.contains(bad.as_str())), "{gate:?}");
}

/// A brake was pulled while the coordinator was away: it is obeyed before anything else.
#[test]
fn nothing_starts_before_the_first_word_after_a_restart() {
    for is_withdrawn in [true, false] {
        let whole = Rules {
            shares: vec![10_000],
            ..Rules::default()
        };
        let mut world = World::new(&[("spring", whole)]);
        world.start("spring");
        // There is room for others as soon as one has ended, and that was the last word before the end.
        let ended = world.engine.in_flight().into_keys().next().unwrap();
        world.store_as_ended(&ended);
        let issued = world.permits.len();
        world.reload();
        assert_eq!(world.permits.len(), issued);
        assert_eq!(world.engine.deadline(), Some(world.now));
        match is_withdrawn {
            true => world.input(Input::Withdraw(id("spring"))).unwrap(),
            false => world.input(Input::Tick).unwrap(),
        }
        assert_eq!(world.permits.len() == issued, is_withdrawn);
    }
}

#[test]
fn a_quarantined_device_keeps_its_place_until_a_person_clears_it() {
    let rules = Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 1,
        shares: vec![10_000],
        advance: 5_000,
        rollback: 0,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let stuck = world.engine.in_flight().into_keys().next().unwrap();
    world.report(&stuck, AttemptState::Quarantined);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.permits.len(), 1, "the rack is full");
    let waiting = world.engine.attempts(&id("spring")).unwrap().pop().unwrap().device;
    let why = &world.engine.explain(&id("spring"), &Subject::Device(waiting)).unwrap()[0];
    assert!(why.finding.contains("the cap is 1"), "{why:?}");
    assert!(why.evidence.iter().any(|line| line.contains("quarantined")), "{why:?}");
    world.input(Input::Clear(stuck)).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(
        world.state("spring"),
        CampaignState::Failed,
        "three of four are not the goal"
    );
}

#[test]
fn a_node_that_falls_silent_leaves_its_device_quarantined_not_forgotten() {
    let mut world = World::new(&[(
        "spring",
        Rules {
            racks: 1,
            per_rack: 1,
            ..Rules::default()
        },
    )]);
    world.start("spring");
    world.run_clock(Duration::from_secs(100_000));
    let attempt = world.engine.attempts(&id("spring")).unwrap().remove(0);
    assert_eq!(attempt.state, AttemptState::Quarantined);
    assert!(attempt.reason.contains("has not reported"));
    assert!(world.permits.len() > 1, "lapsed permits were issued again");
    assert_eq!(world.engine.deadline(), None);
}

#[test]
fn a_huge_start_is_many_small_changes_and_campaigns_take_turns() {
    let rules = Rules {
        racks: 30,
        per_rack: 50,
        cap_rack: 100,
        cap_total: 10_000,
        shares: vec![10_000],
        ..Rules::default()
    };
    let later = Rules {
        first_device: 1_500,
        ..rules.clone()
    };
    let mut world = World::new(&[("autumn", later), ("spring", rules)]);
    let started = |world: &World, name: &str| {
        let orders = world.permits.iter().filter(|order| order.campaign == id(name));
        orders.map(|order| order.devices.len()).sum::<usize>()
    };
    world.start("autumn");
    assert_eq!(started(&world, "autumn"), STARTS_MAX);
    world.start("spring");
    assert_eq!(started(&world, "autumn"), STARTS_MAX, "it is the other's turn");
    assert_eq!(started(&world, "spring"), STARTS_MAX);
    world.run_clock(Duration::ZERO);
    assert_eq!((started(&world, "autumn"), started(&world, "spring")), (1_500, 1_500));
}

/// Found by the hunt: a campaign was permitted a device before the one that had updated it failed, and permitted it again
/// and again when it waited to be sent back.
#[test]
fn what_waits_for_its_way_back_is_not_permitted_again_by_another_campaign() {
    let rules = Rules {
        racks: 1,
        per_rack: 2,
        shares: vec![10_000],
        advance: 10_000,
        rollback: 10_000,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules.clone()), ("autumn", rules)]);
    let (good, bad) = (world.devices().remove(0), world.devices().remove(1));
    world.start("spring");
    world.report(&good, AttemptState::Success);
    world.start("autumn");
    world.report(&bad, AttemptState::Failed);
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    let permitted = |world: &World, name: &str, kind| {
        let orders = world.permits.iter();
        let of =
            orders.filter(|order| order.campaign == id(name) && order.kind == kind && order.devices.contains(&good));
        of.count()
    };
    assert_eq!(permitted(&world, "autumn", PermitKind::Update), 1);
    for _ in 0..20 {
        world.run_clock(Duration::from_secs(60));
        for node in world.nodes() {
            world.hear(node.as_str());
        }
    }
    assert_eq!(permitted(&world, "autumn", PermitKind::Update), 1);
    assert!(permitted(&world, "spring", PermitKind::Rollback) > 0);
    world.report(&good, AttemptState::RolledBack);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    assert_eq!(permitted(&world, "autumn", PermitKind::Update), 2, "its turn has come");
}

#[test]
fn what_waits_for_its_way_back_is_not_moved_on_under_wider_caps() {
    let tight = Rules {
        racks: 2,
        per_rack: 3,
        cap_rack: 1,
        shares: vec![10_000],
        advance: 10_000,
        rollback: 10_000,
        ..Rules::default()
    };
    let wide = Rules {
        cap_rack: 2,
        ..tight.clone()
    };
    let mut world = World::new(&[("spring", tight), ("autumn", wide)]);
    world.start("spring");
    let rack = world.engine.in_flight().into_values().next().unwrap();
    let in_rack = |world: &World, is_this: bool| {
        let in_flight = world.engine.in_flight().into_iter();
        let here: Vec<_> = in_flight.filter(|(_, other)| (*other == rack) == is_this).collect();
        here.into_iter().map(|(device, _)| device).collect::<Vec<_>>()
    };
    let updated: Vec<_> = (0..3)
        .map(|_| {
            let device = in_rack(&world, true).remove(0);
            world.report(&device, AttemptState::Success);
            device
        })
        .collect();
    world.start("autumn");
    let moved_on = in_rack(&world, true);
    assert_eq!(moved_on.len(), 2);
    let bad = in_rack(&world, false).remove(0);
    world.report(&bad, AttemptState::Failed);
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    let waiting = updated.iter().find(|device| !moved_on.contains(device)).unwrap();
    world.report(&moved_on[0], AttemptState::Success);
    assert_eq!(
        in_rack(&world, true),
        [moved_on[1].clone()],
        "{waiting} stays where it is"
    );
}

/// Found by the hunt: a gate passed on a device that was only presumed to have ended, its evidence could never show that,
/// and no node followed.
#[test]
fn what_is_only_presumed_does_not_pass_a_gate() {
    let rules = Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 4,
        shares: vec![5_000, 10_000],
        advance: 5_000,
        rollback: 0,
        sample_min: 2,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let wave: Vec<_> = world.engine.in_flight().into_keys().collect();
    assert_eq!(wave.len(), 2);
    world.report(&wave[0], AttemptState::Success);
    world.run_clock(Duration::from_secs(100_000));
    assert!(world.engine.is_quarantined(&wave[1]), "nobody said how it ended");
    let gate = |world: &World| world.engine.campaign(&id("spring")).unwrap().waves[0].gate;
    assert_eq!(gate(&world), GateVerdict::Hold, "one of two has spoken");
    world.report(&wave[1], AttemptState::Failed);
    assert_eq!(
        gate(&world),
        GateVerdict::Pass,
        "one of two did well, and both have spoken"
    );
}

/// Found by the hunt: a node that was cut off went on with its device, while another campaign filled the rack to its own,
/// larger cap.
#[test]
fn the_caps_of_a_device_that_is_only_presumed_quarantined_go_on_to_bind_others() {
    let rules = |cap_rack, first_device| Rules {
        racks: 1,
        per_rack: 3,
        cap_rack,
        first_device,
        shares: vec![10_000],
        rollback: 0,
        advance: 1,
        ..Rules::default()
    };
    let mut world = World::new(&[("one", rules(1, 0)), ("two", rules(3, 100))]);
    world.start("one");
    let cut_off = world.engine.in_flight().into_keys().next().unwrap();
    world.report(&cut_off, AttemptState::Installing);
    world.run_clock(Duration::from_secs(100_000));
    assert!(world.engine.is_quarantined(&cut_off));
    world.input(Input::Cancel(id("one"))).unwrap();
    world.start("two");
    assert_eq!(world.engine.in_flight().len(), 1, "its node may be at it still");
    world.report(&cut_off, AttemptState::Quarantined);
    assert_eq!(
        world.engine.in_flight().len(),
        3,
        "now that it has spoken, only its place counts"
    );
}

/// Found by the hunt: a wave failed because its nodes were silent. They came back and had done well; no node followed a
/// permit to go back any more, and the campaign went on to ask for ever.
#[test]
fn a_wave_that_did_well_after_all_keeps_what_has_not_gone_back() {
    let rules = Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 4,
        shares: vec![10_000],
        advance: 9_000,
        rollback: 9_000,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let wave: Vec<_> = world.engine.in_flight().into_keys().collect();
    let (spoke, silent) = wave.split_at(2);
    spoke
        .iter()
        .for_each(|device| world.report(device, AttemptState::Success));
    silent
        .iter()
        .for_each(|device| world.report(device, AttemptState::Installing));
    world.run_clock(Duration::from_secs(1_600));
    assert_eq!(
        world.state("spring"),
        CampaignState::RollingBack,
        "half of it counts as lost"
    );
    let back = world.permits.last().unwrap();
    assert_eq!((back.kind, back.devices.len()), (PermitKind::Rollback, 2));
    silent
        .iter()
        .for_each(|device| world.report(device, AttemptState::Success));
    let permits = world.permits.len();
    for _ in 0..10 {
        world.run_clock(Duration::from_secs(1_000));
        world.nodes().iter().for_each(|node| world.hear(node.as_str()));
    }
    assert_eq!(world.permits.len(), permits, "nobody is sent back from what works");
    assert!(world.state("spring").is_terminal(), "{:?}", world.state("spring"));
}

#[test]
fn a_soak_is_waited_out_and_a_pause_stops_new_starts() {
    let rules = Rules {
        racks: 2,
        per_rack: 5,
        soak_s: 30,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.settle_in_flight(|_| AttemptState::Success);
    assert!(world.engine.in_flight().is_empty());
    world.input(Input::Pause(id("spring"))).unwrap();
    world.run_clock(Duration::from_secs(40));
    assert!(world.engine.in_flight().is_empty());
    world.input(Input::Resume(id("spring"))).unwrap();
    assert!(!world.engine.in_flight().is_empty());
}

#[test]
fn the_approval_s_end_is_the_end_of_starts() {
    let rules = Rules {
        racks: 2,
        per_rack: 5,
        expires_s: 1_000,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules.clone()), ("late", rules)]);
    world.start("spring");
    world.run_clock(Duration::from_secs(1_001));
    assert_eq!(world.state("spring"), CampaignState::Failed);
    assert_eq!(
        world.input(Input::Start(id("late"))),
        Err(InputError::Expired(id("late")))
    );
}

/// A permitted device that its node never speaks of must not keep an expired campaign, and its permits, alive.
#[test]
fn an_expired_campaign_issues_no_permit_again_and_ends() {
    let rules = Rules {
        racks: 1,
        per_rack: 1,
        shares: vec![10_000],
        expires_s: 1_000,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.run_clock(Duration::from_secs(1_000));
    let issued = world.permits.len();
    for _ in 0..40 {
        world.hear("r0n1");
        world.run_clock(Duration::from_secs(60));
    }
    assert_eq!(world.permits.len(), issued);
    assert!(world.state("spring").is_terminal());
}

/// A node that lost its journal counts from one again: what it says then still counts.
#[test]
fn a_node_enrolled_again_is_listened_to() {
    let rules = Rules {
        racks: 1,
        per_rack: 1,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let device = world.devices()[0].clone();
    for _ in 0..5 {
        world.report(&device, AttemptState::Installing);
    }
    world.enrol_again("r0n1");
    world.report(&device, AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn two_campaigns_share_the_caps_of_a_rack() {
    let rules = Rules {
        racks: 1,
        per_rack: 6,
        cap_rack: 2,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[
        ("one", rules.clone()),
        (
            "two",
            Rules {
                cap_rack: 4,
                first_device: 100,
                ..rules
            },
        ),
    ]);
    world.start("one");
    world.start("two");
    assert_eq!(world.engine.in_flight().len(), 2);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!([world.state("one"), world.state("two")], [CampaignState::Completed; 2]);
}

#[test]
fn no_device_starts_before_its_node_has_proven_both_images_of_it() {
    let rules = Rules {
        racks: 2,
        per_rack: 1,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::unproven(&[("spring", rules)]);
    let [first, second] = [0, 1].map(|at| world.nodes()[at].clone());
    assert_eq!(world.engine.unproven(&first).len(), 2, "asked for ahead of the start");
    world.prove(&first, NEW, true);
    world.start("spring");
    assert!(world.permits.is_empty(), "the way back is not proven");
    let device = world.devices()[0].clone();
    world.prove(&first, OLD, false);
    let why = |world: &World| {
        world
            .engine
            .explain(&id("spring"), &Subject::Device(device.clone()))
            .unwrap()
    };
    let waits = &why(&world)[0];
    assert_eq!(
        waits.finding,
        "waits: awaiting_possession: node r0n1 has not proven that it holds firmware/old.bin"
    );
    let named = "wrong_possession_proof: 1 by node r0n1 for firmware/old.bin";
    assert!(waits.evidence.iter().any(|line| line == named), "{waits:?}");
    world.restart();
    let view = world.engine.campaign(&id("spring")).unwrap().possession;
    assert_eq!((view.nodes, view.proven, view.wrong_proofs[&first]), (2, 0, 1));

    world.prove(&first, OLD, true);
    assert_eq!(world.permits.len(), 1);
    assert_eq!(world.permits[0].devices, [device]);
    assert!(world.engine.unproven(&first).is_empty());
    assert_eq!(world.engine.unproven(&second).len(), 2);
    // What was proven is not asked for again, nor taken back by what is said later.
    world.prove(&first, OLD, false);
    world.prove(&second, NEW, true);
    world.prove(&second, OLD, true);
    let view = world.engine.campaign(&id("spring")).unwrap().possession;
    assert_eq!((view.nodes, view.proven, view.wrong_proofs[&first]), (2, 2, 1));
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

/// It may have lost its store with its journal.
#[test]
fn a_node_enrolled_again_proves_again_before_anything_new_starts_and_its_devices_go_back_without() {
    let rules = Rules {
        racks: 1,
        per_rack: 3,
        cap_rack: 1,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let first = world.engine.in_flight().into_keys().next().unwrap();
    world.enrol_again("r0n1");
    world.report(&first, AttemptState::Success);
    assert_eq!(world.permits.len(), 1, "the next device waits");
    world.prove_everything();
    assert_eq!(world.permits.len(), 2);
    let second = world.engine.in_flight().into_keys().next().unwrap();
    world.enrol_again("r0n1");
    world.report(&second, AttemptState::Failed);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    let back = world.permits.last().unwrap();
    assert_eq!((back.kind, &back.devices[..]), (PermitKind::Rollback, &[first][..]));
}

#[test]
fn orders_out_of_place_are_refused_and_change_nothing() {
    let mut world = World::new(&[("spring", Rules::default())]);
    assert!(matches!(
        world.input(Input::Pause(id("spring"))),
        Err(InputError::WrongState { .. })
    ));
    assert!(matches!(
        world.input(Input::Start(id("autumn"))),
        Err(InputError::UnknownCampaign(_))
    ));
    world.input(Input::Cancel(id("spring"))).unwrap();
    assert!(matches!(
        world.input(Input::Start(id("spring"))),
        Err(InputError::WrongState { .. })
    ));
    assert!(world.permits.is_empty());
}

#[derive(Debug, Clone)]
enum Act {
    Report(prop::sample::Index, prop::sample::Index),
    Stale(prop::sample::Index),
    Wait(u64),
    Pause(bool),
    Resume(bool),
    Cancel(bool),
    Clear(prop::sample::Index),
    RollBack(bool, Option<u32>, Option<prop::sample::Index>),
    Prove(prop::sample::Index, bool, bool),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        30 => (index(), index()).prop_map(|(device, state)| Act::Report(device, state)),
        2 => index().prop_map(Act::Stale),
        4 => (1_u64..2_000).prop_map(Act::Wait),
        1 => any::<bool>().prop_map(Act::Pause),
        2 => any::<bool>().prop_map(Act::Resume),
        1 => prop::bool::weighted(0.2).prop_map(Act::Cancel),
        1 => index().prop_map(Act::Clear),
        2 => (any::<bool>(), prop::option::of(0_u32..3), prop::option::of(index()))
            .prop_map(|(which, wave, device)| Act::RollBack(which, wave, device)),
        6 => (index(), any::<bool>(), prop::bool::weighted(0.8))
            .prop_map(|(node, new, holds)| Act::Prove(node, new, holds)),
        3 => Just(Act::Restart),
    ]
}

fn retries() -> impl Strategy<Value = Option<Retries>> {
    use FailureClass::{Boot, Install, Timeout};
    let classes = prop::sample::subsequence(vec![Install, Boot, Timeout], 1..=3);
    let retries = (classes, 1_u32..4, 0_u32..200, 1_u32..5).prop_map(|(classes, times, pause_s, budget)| Retries {
        rules: classes
            .into_iter()
            .map(|class| RetryRule { class, times, pause_s })
            .collect(),
        budget: RetryBudget::Count(budget),
    });
    prop::option::of(retries)
}

fn rules() -> impl Strategy<Value = Rules> {
    let gates = (0_u32..=10_000).prop_flat_map(|advance| (Just(advance), 0..=advance));
    let shares = prop::collection::btree_set(1_u32..10_000, 0..4);
    (
        1_usize..4,
        1_usize..6,
        1_u32..4,
        1_u32..8,
        gates,
        shares,
        any::<bool>(),
        0_u32..4,
        prop_oneof![Just(0_u32), Just(50)],
        (
            1_usize..4,
            1_usize..4,
            any::<bool>(),
            prop::option::of(1_u32..3),
            retries(),
            1_u32..4,
        ),
    )
        .prop_map(
            |(
                racks,
                per_rack,
                cap_rack,
                cap_total,
                (advance, rollback),
                shares,
                goes_back,
                sample_min,
                soak_s,
                more,
            )| {
                let (unit, feeds, feeds_apart, per_feed, retries, at_once) = more;
                Rules {
                    racks,
                    per_rack,
                    cap_rack,
                    cap_total,
                    advance,
                    rollback,
                    shares: shares.into_iter().chain([10_000]).collect(),
                    goes_back,
                    sample_min,
                    soak_s,
                    unit,
                    feeds,
                    feeds_apart,
                    retries,
                    at_once,
                    domains: per_feed
                        .map(|count| ("power_feed", AtMost::Count(count)))
                        .into_iter()
                        .collect(),
                    ..Rules::default()
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The world checks after every input: caps, sequences, wave order, also of several at once, no permit for a stopped campaign, none without
    /// proofs, and that the engine rebuilt from what was persisted says the same.
    #[test]
    fn nothing_random_breaks_a_promise_and_every_device_ends(
        one in rules(),
        two in rules(),
        shared in any::<bool>(),
        acts in prop::collection::vec(act(), 0..150),
    ) {
        // The same devices stand in the same racks.
        let two = match shared {
            true => Rules { racks: one.racks, unit: one.unit, feeds: one.feeds, ..two },
            false => Rules { first_device: 1_000, ..two },
        };
        let mut world = World::unproven(&[("one", one), ("two", two)]);
        world.start("one");
        world.start("two");
        let name = |which| id(if which { "one" } else { "two" });
        for act in acts {
            match act {
                Act::Report(device, state) => world.report_any(device, state),
                Act::Stale(device) => world.report_stale(device),
                Act::Wait(seconds) => world.run_clock(Duration::from_secs(seconds)),
                Act::Pause(which) => drop(world.input(Input::Pause(name(which)))),
                Act::Resume(which) => drop(world.input(Input::Resume(name(which)))),
                Act::Cancel(which) => drop(world.input(Input::Cancel(name(which)))),
                Act::Clear(index) => {
                    let devices = world.devices();
                    drop(world.input(Input::Clear(index.get(&devices).clone())));
                }
                Act::RollBack(which, wave, device) => {
                    let devices = world.devices();
                    let scope = RollbackScope {
                        waves: wave.into_iter().collect(),
                        devices: device.iter().map(|index| index.get(&devices).clone()).collect(),
                    };
                    drop(world.input(Input::RollBack(Rollback {
                        campaign: name(which),
                        scope,
                        reason: "somebody wants it".to_owned(),
                        order: None,
                        moved_on: BTreeSet::new(),
                    })));
                }
                Act::Prove(node, new, holds) => {
                    let node = node.get(&world.nodes()).clone();
                    world.prove(&node, if new { NEW } else { OLD }, holds);
                }
                Act::Restart => world.restart(),
            }
        }
        for which in [true, false] {
            drop(world.input(Input::Resume(name(which))));
        }
        world.prove_everything();
        world.run_until_quiet(|_| AttemptState::Success);
        for campaign in ["one", "two"] {
            // What a gate or a full rack still holds, a person ends.
            drop(world.input(Input::Cancel(id(campaign))));
        }
        world.run_clock(Duration::from_secs(100_000));
        for campaign in ["one", "two"] {
            prop_assert!(world.state(campaign).is_terminal());
            for attempt in world.engine.attempts(&id(campaign)).unwrap() {
                prop_assert!(attempt.state.is_terminal(), "{attempt:?}");
            }
        }
    }
}
