//! Failed devices that are begun again, where the manifest allows it.

use std::time::Duration;

use firmesh_coordinator_core::{Input, Subject};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    ids::DeviceId,
    manifest::{Retries, RetryBudget, RetryRule},
    report::{AttemptState, FailureClass, PermitKind},
};

use super::world::{Rules, World, id};

fn rule(class: FailureClass, times: u32, pause_s: u32) -> RetryRule {
    RetryRule { class, times, pause_s }
}

/// Twelve devices in waves of 3 and 9, one rack each. Failed installs are tried three times in all, after 600 s and 1200 s.
fn rules(budget: RetryBudget) -> Rules {
    Rules {
        racks: 3,
        per_rack: 4,
        cap_rack: 4,
        cap_total: 12,
        shares: vec![2_500, 10_000],
        retries: Some(Retries {
            rules: vec![rule(FailureClass::Install, 2, 600)],
            budget,
        }),
        ..Rules::default()
    }
}

fn world(budget: RetryBudget) -> World {
    let mut world = World::new(&[("spring", rules(budget))]);
    world.start("spring");
    world
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn state(world: &World, device: &DeviceId) -> AttemptState {
    world.engine.attempt(&id("spring"), device).unwrap().state
}

fn why(world: &World, device: &DeviceId) -> (String, Vec<String>) {
    let found = world.engine.explain(&id("spring"), &Subject::Device(device.clone()));
    let found = found.unwrap().remove(0);
    (found.finding, found.evidence)
}

/// Ends what is in flight: these devices as failed, the others well.
fn settle(world: &mut World, bad: &[DeviceId]) {
    world.settle_in_flight(|device| match bad.contains(device) {
        true => AttemptState::Failed,
        false => AttemptState::Success,
    });
}

fn in_flight(world: &World) -> Vec<DeviceId> {
    world.engine.in_flight().into_keys().collect()
}

#[test]
fn a_device_that_failed_is_started_again_after_its_pause_and_the_gate_waits_for_it() {
    let mut world = world(RetryBudget::Count(1));
    let bad = in_flight(&world)[..1].to_vec();
    settle(&mut world, &bad);
    assert_eq!(state(&world, &bad[0]), AttemptState::Pending);
    assert!(in_flight(&world).is_empty(), "it gives its place up meanwhile");
    let (finding, evidence) = why(&world, &bad[0]);
    assert_eq!(finding, "waits for its retry for 600 s more: attempt 2 of 3");
    assert!(
        evidence.contains(&"attempt 1 of 3 failed in install: so it was told".to_owned()),
        "{evidence:?}"
    );
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(
        view.waves[0].gate,
        GateVerdict::Unknown,
        "a device that may do better holds"
    );
    world.run_clock(seconds(599));
    assert_eq!(world.permits.len(), 1);
    // A restart begins the pause anew: better late than early.
    world.restart();
    world.run_clock(seconds(599));
    assert_eq!(world.permits.len(), 1);
    world.run_clock(seconds(1));
    let permit = world.permits[1].clone();
    assert_eq!((permit.attempt, permit.wave, permit.devices), (2, 0, bad.clone()));
    assert_eq!(world.engine.attempt(&id("spring"), &bad[0]).unwrap().attempt, 2);
    settle(&mut world, &bad);
    world.run_clock(seconds(1_199));
    assert_eq!(world.permits.len(), 2, "twice as long");
    world.run_clock(seconds(1));
    assert_eq!(world.permits[2].attempt, 3);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
    assert_eq!(
        world.engine.ended_reports(&id("spring"), 0).len(),
        3,
        "each device once"
    );
}

#[test]
fn what_fails_as_often_as_it_may_has_failed() {
    let mut world = world(RetryBudget::Count(1));
    let bad = in_flight(&world)[..1].to_vec();
    for pause in [600, 1_200] {
        settle(&mut world, &bad);
        world.run_clock(seconds(pause));
    }
    settle(&mut world, &bad);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(state(&world, &bad[0]), AttemptState::Failed);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    let starts = world.permits.iter().filter(|order| order.kind == PermitKind::Update);
    let starts = starts
        .filter(|order| order.devices.contains(&bad[0]))
        .map(|order| order.attempt);
    let mut starts: Vec<_> = starts.collect();
    starts.dedup();
    assert_eq!(starts, [1, 2, 3]);
}

#[test]
fn more_failures_than_the_budget_is_for_count_at_once() {
    let mut world = world(RetryBudget::Count(1));
    let bad = in_flight(&world)[..2].to_vec();
    world.report(&bad[0], AttemptState::Failed);
    assert_eq!(state(&world, &bad[0]), AttemptState::Pending);
    world.report(&bad[1], AttemptState::Failed);
    assert_eq!(state(&world, &bad[0]), AttemptState::Failed);
    assert_eq!(state(&world, &bad[1]), AttemptState::Failed);
    let (finding, _) = why(&world, &bad[0]);
    assert!(
        finding.contains("no failure is taken for bad luck any more"),
        "{finding}"
    );
    assert_eq!(
        world.state("spring"),
        CampaignState::RollingBack,
        "the gate need not wait"
    );
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    assert!(world.permits.iter().all(|order| order.attempt == 1));
}

#[test]
fn a_share_is_a_budget_of_each_wave() {
    let share = |value| RetryBudget::Share(firmesh_protocol::units::BasisPoints::new(value).unwrap());
    assert_eq!([0, 1, 20, 21].map(|devices| share(500).of(devices)), [0, 1, 1, 2]);
    let mut rules = rules(share(1_500));
    rules.rollback = 5_000;
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let first = in_flight(&world)[..1].to_vec();
    settle(&mut world, &first);
    world.run_clock(seconds(600));
    settle(&mut world, &[]);
    let second = in_flight(&world)[..2].to_vec();
    assert_eq!(in_flight(&world).len(), 9);
    settle(&mut world, &second);
    let states = second.iter().map(|device| state(&world, device));
    assert!(
        states.into_iter().all(|state| state == AttemptState::Pending),
        "two of nine"
    );
}

#[test]
fn who_waits_is_no_more_than_failed_when_the_campaign_ends_or_somebody_closes_it() {
    for close in [false, true] {
        let mut world = world(RetryBudget::Count(3));
        let bad = in_flight(&world)[..1].to_vec();
        settle(&mut world, &bad);
        world.input(Input::Pause(id("spring"))).unwrap();
        world.run_clock(seconds(10_000));
        assert_eq!(world.permits.len(), 1, "nothing starts in a pause");
        assert_eq!(state(&world, &bad[0]), AttemptState::Pending);
        world.restart();
        let input = match close {
            false => Input::Cancel(id("spring")),
            true => Input::Close(firmesh_coordinator_core::Closing {
                campaign: id("spring"),
                device: Some(bad[0].clone()),
                reason: "its rack is gone".to_owned(),
            }),
        };
        world.input(input).unwrap();
        assert_eq!(state(&world, &bad[0]), AttemptState::Failed);
        let (finding, _) = why(&world, &bad[0]);
        assert!(finding.contains("so it was told; not started again"), "{finding}");
        world.run_clock(seconds(10_000));
        assert_eq!(world.permits.len(), 1);
        assert!(in_flight(&world).is_empty());
    }
}

#[test]
fn what_nobody_knows_the_state_of_and_what_has_no_way_back_is_final() {
    let mut world = world(RetryBudget::Count(3));
    let device = in_flight(&world)[0].clone();
    for (state_of, is_final) in [
        (AttemptState::Quarantined, true),
        (AttemptState::RolledBack, true),
        (AttemptState::Failed, false),
    ] {
        let mut world = self::world(RetryBudget::Count(3));
        world.report(&device, state_of);
        assert_eq!(state(&world, &device).is_terminal(), is_final, "{state_of}");
    }
    world.run_clock(seconds(100_000));
    assert_eq!(
        state(&world, &device),
        AttemptState::Quarantined,
        "its node fell silent"
    );
    let mut rules = rules(RetryBudget::Count(3));
    rules.one_way = vec![0];
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.report(&"d0".parse().unwrap(), AttemptState::Failed);
    assert_eq!(state(&world, &"d0".parse().unwrap()), AttemptState::Failed);
}

/// One that comes after it in its unit waits for the last attempt, not for the first.
#[test]
fn a_unit_waits_for_its_first_to_do_better() {
    let rules = Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 4,
        cap_total: 12,
        unit: 2,
        shares: vec![10_000],
        retries: rules(RetryBudget::Count(1)).retries,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let first: DeviceId = "d0".parse().unwrap();
    settle(&mut world, std::slice::from_ref(&first));
    let (finding, _) = why(&world, &"d1".parse().unwrap());
    assert!(
        finding.contains("d0, which comes before it in its unit, has not ended well yet"),
        "{finding}"
    );
    world.run_clock(seconds(600));
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}
