//! Devices that go over other releases on their way: one permit from the first step to the last, and what becomes of those
//! that stop halfway.

use std::{collections::BTreeSet, time::Duration};

use firmesh_coordinator_core::{Input, Rollback, Subject};
use firmesh_protocol::{
    api::CampaignState,
    ids::DeviceId,
    manifest::{Retries, RetryBudget, RetryRule},
    report::{AttemptState, FailureClass, PermitKind},
    rollback::RollbackScope,
};

use super::world::{HOPS, NEW, OLD, Rules, World, id};

/// Four devices in one wave, that go over two releases; two may be in flight.
fn rules() -> Rules {
    Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 2,
        cap_total: 2,
        shares: vec![10_000],
        advance: 10_000,
        rollback: 9_000,
        hops: 2,
        ..Rules::default()
    }
}

fn in_flight(world: &World) -> Vec<DeviceId> {
    world.engine.in_flight().into_keys().collect()
}

fn attempt(world: &World, device: &DeviceId) -> (AttemptState, Option<String>) {
    let view = world.engine.attempt(&id("spring"), device).unwrap();
    (view.state, view.version)
}

fn rollbacks(world: &World) -> Vec<DeviceId> {
    let back = world
        .permits
        .iter()
        .filter(|permit| permit.kind == PermitKind::Rollback);
    back.flat_map(|permit| permit.devices.clone()).collect()
}

/// Says that a device is done with its first step, and at the second.
fn goes_on(world: &mut World, device: &DeviceId) {
    world.report_at(device, AttemptState::Installing, "1.0");
    world.report_at(device, AttemptState::Rebooting, "1.0");
    world.report_at(device, AttemptState::Validating, "1.1");
    world.report_at(device, AttemptState::Installing, "1.1");
}

#[test]
fn nobody_starts_before_its_node_has_proven_every_image_of_its_way() {
    let mut world = World::unproven(&[("spring", rules())]);
    world.start("spring");
    let node = world.nodes().remove(0);
    for target in [NEW, OLD, HOPS[0]] {
        world.prove(&node, target, true);
        assert!(world.permits.is_empty(), "{target}");
    }
    world.prove(&node, HOPS[1], true);
    assert_eq!(in_flight(&world).len(), 2);
}

#[test]
fn a_device_keeps_its_place_from_the_first_step_to_the_last_and_has_time_for_all() {
    let mut world = World::new(&[("spring", rules())]);
    world.start("spring");
    let first = in_flight(&world);
    // Two steps of ten minutes are over; it was permitted for fifteen.
    for device in &first {
        goes_on(&mut world, device);
    }
    world.run_clock(Duration::from_secs(600 + 900 + 1));
    assert_eq!((in_flight(&world), world.permits.len()), (first.clone(), 1));
    world.restart();
    world.report_at(&first[0], AttemptState::Success, "2.0");
    assert_eq!(in_flight(&world).len(), 2, "another one has its place");
    // After three times the deadline it is not waited for any more.
    world.run_clock(Duration::from_secs(3 * 600 + 900));
    assert_eq!(attempt(&world, &first[1]).0, AttemptState::Quarantined);
}

#[test]
fn who_stopped_halfway_goes_back_with_its_wave_and_stays_a_failure() {
    let mut world = World::new(&[("spring", rules())]);
    world.start("spring");
    let [good, bad] = <[DeviceId; 2]>::try_from(in_flight(&world)).unwrap();
    goes_on(&mut world, &bad);
    world.report_at(&bad, AttemptState::RolledBack, "1.1");
    world.restart();
    world.report_at(&good, AttemptState::Success, "2.0");
    // The gate fails by the first of four; the other two of the wave are ended where they were.
    let started: BTreeSet<_> = in_flight(&world).into_iter().collect();
    for device in started.iter().filter(|device| **device != bad && **device != good) {
        world.report_at(device, AttemptState::Failed, "1.0");
    }
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    let mut back = rollbacks(&world);
    back.sort();
    assert_eq!(
        back,
        [good.clone(), bad.clone()],
        "and nobody who runs what it ran before"
    );
    world.restart();
    world.report_at(&bad, AttemptState::RolledBack, "1.0");
    world.report_at(&good, AttemptState::RolledBack, "1.0");
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    let found = world.engine.explain(&id("spring"), &Subject::Wave(0)).unwrap();
    assert!(found[0].finding.contains("Fail"), "{found:?}");
}

#[test]
fn people_send_one_back_that_stopped_halfway() {
    let mut world = World::new(&[(
        "spring",
        Rules {
            automatic: false,
            advance: 5_000,
            rollback: 1_000,
            ..rules()
        },
    )]);
    world.start("spring");
    let bad = in_flight(&world).remove(0);
    goes_on(&mut world, &bad);
    world.report_at(&bad, AttemptState::Failed, "1.1");
    world.run_until_quiet(|_| AttemptState::Success);
    let order = |device: &DeviceId| Rollback {
        campaign: id("spring"),
        scope: RollbackScope {
            devices: [device.clone()].into(),
            ..RollbackScope::default()
        },
        reason: "it is neither here nor there".to_owned(),
        order: None,
        moved_on: BTreeSet::new(),
    };
    world.input(Input::RollBack(order(&bad))).unwrap();
    assert_eq!(rollbacks(&world), std::slice::from_ref(&bad));
    world.report_at(&bad, AttemptState::RolledBack, "1.0");
    assert_eq!(
        attempt(&world, &bad),
        (AttemptState::RolledBack, Some("1.0".to_owned()))
    );
    // Once it is back, there is nothing to send back.
    assert!(world.input(Input::RollBack(order(&bad))).is_err());
}

#[test]
fn who_failed_before_its_first_step_was_done_runs_what_it_ran_and_stays() {
    let mut world = World::new(&[("spring", rules())]);
    world.start("spring");
    let bad = in_flight(&world).remove(0);
    world.report_at(&bad, AttemptState::Installing, "1.0");
    world.report_at(&bad, AttemptState::Failed, "1.0");
    for device in in_flight(&world) {
        world.report_at(&device, AttemptState::Failed, "1.0");
    }
    assert_eq!(rollbacks(&world), []);
}

#[test]
fn who_stopped_halfway_may_be_begun_again_and_arrives() {
    let retries = Retries {
        rules: vec![RetryRule {
            class: FailureClass::Install,
            times: 1,
            pause_s: 60,
        }],
        budget: RetryBudget::Count(1),
    };
    let mut world = World::new(&[(
        "spring",
        Rules {
            retries: Some(retries),
            ..rules()
        },
    )]);
    world.start("spring");
    let bad = in_flight(&world).remove(0);
    goes_on(&mut world, &bad);
    world.report_at(&bad, AttemptState::Failed, "1.1");
    assert_eq!(attempt(&world, &bad).0, AttemptState::Pending);
    world.restart();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
    assert_eq!(rollbacks(&world), []);
}
