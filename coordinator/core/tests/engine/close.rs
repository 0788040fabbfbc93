//! What nobody reports the end of is ended by force, and nothing of it is left that waits.

use std::time::Duration;

use firmesh_coordinator_core::{Closing, Input, InputError};
use firmesh_protocol::{api::CampaignState, ids::DeviceId, report::AttemptState};

use super::world::{Rules, World, id};

fn close(device: Option<&str>) -> Input {
    Input::Close(Closing {
        campaign: id("spring"),
        device: device.map(|device| device.parse().unwrap()),
        reason: "its rack is gone".to_owned(),
    })
}

fn state(world: &World, device: &str) -> AttemptState {
    let device: DeviceId = device.parse().unwrap();
    world.engine.attempt(&id("spring"), &device).unwrap().state
}

/// Four devices of a rack, one at a time, in waves of two.
fn world() -> World {
    let rules = Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 1,
        shares: vec![5_000, 10_000],
        advance: 5_000,
        rollback: 0,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world
}

#[test]
fn an_attempt_that_never_ends_is_quarantined_and_its_late_word_still_counts() {
    let mut world = world();
    world.report(&"d0".parse().unwrap(), AttemptState::Installing);
    world.input(close(Some("d0"))).unwrap();
    assert_eq!(state(&world, "d0"), AttemptState::Quarantined);
    assert_eq!(world.engine.in_flight().len(), 1, "it keeps its place");
    let twice = world.input(close(Some("d0")));
    assert!(matches!(twice, Err(InputError::NothingToClose(_))), "{twice:?}");
    world.restart();
    // Its node was only slow: the device is fine, and gives its place up.
    world.report(&"d0".parse().unwrap(), AttemptState::Success);
    assert_eq!(state(&world, "d0"), AttemptState::Success);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn a_device_whose_turn_has_not_come_is_only_cancelled() {
    let mut world = world();
    world.input(close(Some("d1"))).unwrap();
    assert_eq!(state(&world, "d1"), AttemptState::Cancelled);
    assert!(world.engine.in_flight().contains_key(&"d0".parse().unwrap()));
    let stranger = world.input(close(Some("d99")));
    assert!(matches!(stranger, Err(InputError::NothingToClose(_))), "{stranger:?}");
    let other = world.input(Input::Close(Closing {
        campaign: id("autumn"),
        device: None,
        reason: "why not".to_owned(),
    }));
    assert!(matches!(other, Err(InputError::UnknownCampaign(_))), "{other:?}");
}

#[test]
fn a_campaign_that_is_closed_leaves_nothing_that_waits() {
    let mut world = world();
    world.input(close(None)).unwrap();
    assert_eq!(world.state("spring"), CampaignState::Cancelled);
    assert_eq!(state(&world, "d0"), AttemptState::Quarantined);
    for untouched in ["d1", "d2", "d3"] {
        assert_eq!(state(&world, untouched), AttemptState::Cancelled);
    }
    assert_eq!(world.engine.deadline(), None, "nothing is waited for");
    let permits = world.permits.len();
    world.input(Input::Clear("d0".parse().unwrap())).unwrap();
    world.run_clock(Duration::from_secs(100_000));
    assert_eq!(world.permits.len(), permits);
    assert!(world.engine.in_flight().is_empty());
    let again = world.input(close(None));
    assert!(matches!(again, Err(InputError::NothingToClose(_))), "{again:?}");
}

#[test]
fn what_a_cancelled_campaign_has_in_flight_can_be_closed() {
    let mut world = world();
    world.input(Input::Cancel(id("spring"))).unwrap();
    assert_eq!(state(&world, "d0"), AttemptState::Pending, "it ends by itself");
    world.input(close(None)).unwrap();
    assert_eq!(world.state("spring"), CampaignState::Cancelled);
    assert_eq!(state(&world, "d0"), AttemptState::Quarantined);
}
