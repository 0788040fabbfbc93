//! Blue-green: one pool after the other, and outside systems that move traffic in between.

use std::time::Duration;

use firmesh_coordinator_core::{Input, WebhookAnswer};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    manifest::PoolAct,
    report::AttemptState,
};

use super::world::{Rules, World, id};

/// Six green devices and six blue ones; a pool is watched for two hours.
fn world() -> World {
    let rules = Rules {
        racks: 3,
        per_rack: 4,
        cap_rack: 4,
        cap_total: 12,
        advance: 9_950,
        shares: vec![5_000, 10_000],
        soak_s: 7_200,
        pools: true,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world
}

fn says(world: &mut World, wave: u32, act: PoolAct, verdict: GateVerdict) {
    let answer = WebhookAnswer {
        campaign: id("spring"),
        wave,
        webhook: "balancer".to_owned(),
        act: Some(act),
        verdict,
        reason: "LB1".to_owned(),
    };
    world.input(Input::WebhookAnswered(answer)).unwrap();
}

fn asked(world: &World) -> Vec<String> {
    let questions = world.engine.questions().into_iter();
    questions
        .map(|question| {
            let (act, pool) = question.act.unwrap();
            format!("{} {pool} before wave {}", act.as_str(), question.wave)
        })
        .collect()
}

fn reason(world: &World) -> String {
    world.engine.campaign(&id("spring")).unwrap().reason
}

#[test]
fn a_pool_is_drained_updated_watched_and_switched_to_before_the_other_one_comes() {
    use GateVerdict::{Hold, Pass, Unknown};
    let mut world = world();
    assert_eq!(asked(&world), ["drain green before wave 0"]);
    assert!(world.permits.is_empty(), "nothing starts in a pool that may serve");
    for (verdict, why) in [(Unknown, "has given no answer: LB1"), (Hold, "says hold: LB1")] {
        says(&mut world, 0, PoolAct::Drain, verdict);
        assert!(reason(&world).contains(why), "{}", reason(&world));
        world.restart();
    }
    assert!(world.permits.is_empty());
    says(&mut world, 0, PoolAct::Drain, Pass);
    assert_eq!(
        world.engine.in_flight().len(),
        6,
        "all of the pool at once, as far as caps allow"
    );
    let first = world.engine.in_flight().into_keys().next().unwrap();
    let last = world.engine.in_flight().into_keys().next_back().unwrap();
    for device in world.engine.in_flight().into_keys().filter(|device| *device != last) {
        world.report(&device, AttemptState::Success);
    }
    assert_ne!(first, last);
    world.run_clock(Duration::from_secs(500));
    assert!(asked(&world).is_empty(), "the pool is not updated wholly");
    world.report(&last, AttemptState::Success);
    world.run_clock(Duration::from_secs(7_199));
    assert!(
        asked(&world).is_empty() && reason(&world).contains("is watched"),
        "{}",
        reason(&world)
    );
    world.run_clock(Duration::from_secs(1));
    assert_eq!(asked(&world), ["switch green before wave 1"]);
    world.restart();
    assert_eq!(asked(&world), ["switch green before wave 1"], "and no second watch");
    says(&mut world, 1, PoolAct::Switch, Pass);
    assert_eq!(asked(&world), ["drain blue before wave 1"]);
    assert!(world.engine.in_flight().is_empty());
    says(&mut world, 1, PoolAct::Drain, Pass);
    assert_eq!(world.engine.in_flight().len(), 6);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn a_pool_that_fails_goes_back_and_traffic_stays_where_it_is() {
    let mut world = world();
    says(&mut world, 0, PoolAct::Drain, GateVerdict::Pass);
    let bad = world.engine.in_flight().into_keys().next().unwrap();
    world.run_until_quiet(|device| match *device == bad {
        true => AttemptState::Failed,
        false => AttemptState::Success,
    });
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    assert!(asked(&world).is_empty());
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(
        view.states[&AttemptState::Cancelled],
        6,
        "the pool that serves is not touched"
    );
}

#[test]
fn a_hook_that_refuses_ends_the_campaign_and_a_pause_asks_nothing() {
    let mut world = world();
    world.input(Input::Pause(id("spring"))).unwrap();
    assert!(asked(&world).is_empty());
    world.input(Input::Resume(id("spring"))).unwrap();
    says(&mut world, 0, PoolAct::Drain, GateVerdict::Fail);
    assert_eq!(world.state("spring"), CampaignState::Failed);
    assert!(
        reason(&world).contains("refused to drain before wave 0: LB1"),
        "{}",
        reason(&world)
    );
    assert!(world.permits.is_empty() && asked(&world).is_empty());
}
