//! Fault domains and units under the engine. The world checks every permit by the independent checker.

use std::collections::BTreeMap;

use firmesh_coordinator_core::Subject;
use firmesh_protocol::{
    api::CampaignState,
    ids::DeviceId,
    manifest::AtMost,
    report::{AttemptState, PermitKind},
};

use crate::world::{Rules, World, id};

/// Everybody at once, if racks and total were all there is.
fn wide() -> Rules {
    Rules {
        cap_rack: 100,
        shares: vec![10_000],
        ..Rules::default()
    }
}

fn in_flight_by_feed(world: &World) -> BTreeMap<String, usize> {
    let mut feeds = BTreeMap::new();
    for place in world.engine.in_flight_places().values() {
        let feed = place.labels.get("power_feed").unwrap().to_string();
        *feeds.entry(feed).or_default() += 1;
    }
    feeds
}

fn waits(world: &World, campaign: &str, device: &str) -> String {
    let subject = Subject::Device(DeviceId::new(device).unwrap());
    let found = world.engine.explain(&id(campaign), &subject).unwrap();
    found[0].finding.clone()
}

fn state(world: &World, campaign: &str, device: &str) -> AttemptState {
    let device = DeviceId::new(device).unwrap();
    world.engine.attempt(&id(campaign), &device).unwrap().state
}

#[test]
fn a_fault_domain_has_no_more_in_flight_than_its_cap() {
    let mut world = World::new(&[(
        "spring",
        Rules {
            racks: 2,
            per_rack: 6,
            feeds: 3,
            domains: vec![("power_feed", AtMost::Count(1)), ("site", AtMost::BelowPercent(25))],
            ..wide()
        },
    )]);
    world.start("spring");
    // Fewer than 25 % of 12 are 2: the site's cap is the tighter one.
    assert_eq!(
        in_flight_by_feed(&world),
        BTreeMap::from([("f0".to_owned(), 1), ("f1".to_owned(), 1)])
    );
    assert_eq!(
        waits(&world, "spring", "d3"),
        "waits: 2 devices of site eu/s1 are in flight, the cap is 2"
    );
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn the_tightest_cap_of_all_campaigns_wins() {
    let narrow = Rules {
        domains: vec![("power_feed", AtMost::Count(1))],
        ..wide()
    };
    let other = Rules {
        first_device: 1_000,
        feeds: 2,
        ..wide()
    };
    let mut world = World::new(&[("narrow", narrow), ("other", other)]);
    world.start("narrow");
    assert_eq!(in_flight_by_feed(&world), BTreeMap::from([("f0".to_owned(), 1)]));
    world.start("other");
    // The other campaign asks for no cap, and is bound by that of the first where both have devices in flight.
    assert_eq!(
        in_flight_by_feed(&world),
        BTreeMap::from([("f0".to_owned(), 1), ("f1".to_owned(), 3)])
    );
    assert_eq!(
        waits(&world, "other", "d1000"),
        "waits: 1 devices of power_feed f0 are in flight, the cap is 1"
    );
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("other"), CampaignState::Completed);
    assert_eq!(world.state("narrow"), CampaignState::Completed);
}

#[test]
fn domains_that_stand_in_for_each_other_are_never_in_flight_together() {
    let rules = Rules {
        feeds: 2,
        feeds_apart: true,
        ..wide()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    assert_eq!(in_flight_by_feed(&world), BTreeMap::from([("f0".to_owned(), 3)]));
    assert_eq!(
        waits(&world, "spring", "d1"),
        "waits: devices of power_feed f0 are in flight, which stands in for its own"
    );
    world.settle_in_flight(|_| AttemptState::Success);
    assert_eq!(in_flight_by_feed(&world), BTreeMap::from([("f1".to_owned(), 3)]));
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn components_of_a_unit_start_one_after_the_other() {
    let rules = Rules {
        racks: 1,
        per_rack: 6,
        unit: 3,
        ..wide()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    let in_flight = |world: &World| {
        world
            .engine
            .in_flight()
            .into_keys()
            .map(|id| id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(in_flight(&world), ["d0", "d3"]);
    assert_eq!(
        waits(&world, "spring", "d1"),
        "waits: d0, which comes before it in its unit, has not ended well yet"
    );
    world.report(&DeviceId::new("d0").unwrap(), AttemptState::Success);
    assert_eq!(in_flight(&world), ["d1", "d3"]);
    world.restart();
    assert_eq!(in_flight(&world), ["d1", "d3"]);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn what_comes_after_a_failure_in_a_unit_is_never_touched() {
    let rules = Rules {
        racks: 1,
        per_rack: 6,
        unit: 3,
        advance: 1_000,
        rollback: 0,
        ..wide()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.report(&DeviceId::new("d0").unwrap(), AttemptState::Failed);
    assert_eq!(state(&world, "spring", "d1"), AttemptState::Cancelled);
    assert_eq!(
        waits(&world, "spring", "d1"),
        "cancelled: d0, which comes before it in its unit, ended as failed"
    );
    assert_eq!(
        waits(&world, "spring", "d2"),
        "cancelled: d1, which comes before it in its unit, ended as cancelled"
    );
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(state(&world, "spring", "d5"), AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Failed, "3 of 6 did not end well");
}

#[test]
fn a_unit_goes_back_in_reverse_order() {
    let rules = Rules {
        racks: 1,
        per_rack: 4,
        unit: 2,
        advance: 10_000,
        rollback: 10_000,
        ..wide()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    for device in ["d0", "d1"] {
        world.report(&DeviceId::new(device).unwrap(), AttemptState::Success);
    }
    world.report(&DeviceId::new("d2").unwrap(), AttemptState::Failed);
    world.run_until_quiet(|_| AttemptState::Success);
    let back = world
        .permits
        .iter()
        .filter(|permit| permit.kind == PermitKind::Rollback);
    let back: Vec<_> = back
        .flat_map(|permit| &permit.devices)
        .map(ToString::to_string)
        .collect();
    assert_eq!(back, ["d1", "d0"]);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
}

#[test]
fn a_quarantined_component_does_not_keep_its_unit_waiting_for_ever() {
    let rules = Rules {
        racks: 1,
        per_rack: 2,
        unit: 2,
        advance: 10_000,
        rollback: 10_000,
        ..wide()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.report(&DeviceId::new("d0").unwrap(), AttemptState::Success);
    world.report(&DeviceId::new("d1").unwrap(), AttemptState::Quarantined);
    world.run_until_quiet(|_| AttemptState::Success);
    // It could go back, but for its neighbour: a person has to look at the unit.
    assert_eq!(state(&world, "spring", "d0"), AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Failed);
}

#[test]
fn what_comes_after_an_unwell_component_in_its_unit_is_cancelled() {
    let rules = Rules {
        racks: 1,
        unit: 3,
        health: true,
        advance: 0,
        rollback: 0,
        shares: vec![10_000],
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.health = Some(firmesh_protocol::health::DeviceHealth::Breached);
    world.report(&"d0".parse().unwrap(), AttemptState::Success);
    for device in ["d1", "d2"] {
        let attempt = world.engine.attempt(&id("spring"), &device.parse().unwrap()).unwrap();
        assert_eq!(attempt.state, AttemptState::Cancelled, "{attempt:?}");
    }
}
