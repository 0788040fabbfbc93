//! Outside systems are asked between waves, where the manifest names them.

use std::time::Duration;

use firmesh_coordinator_core::{Input, InputError, Subject, WebhookAnswer};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    approval::ApprovalRule,
    report::AttemptState,
};

use super::world::{Rules, World, id};

/// Twelve devices in waves of 3 and 9, and two webhooks between them.
fn world(approval: Option<ApprovalRule>) -> World {
    let rules = Rules {
        racks: 3,
        per_rack: 4,
        cap_rack: 4,
        cap_total: 12,
        shares: vec![2_500, 10_000],
        soak_s: 300,
        webhooks: vec!["board", "graphs"],
        approval,
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world.settle_in_flight(|_| AttemptState::Success);
    world
}

fn says(webhook: &str, verdict: GateVerdict) -> Input {
    Input::WebhookAnswered(WebhookAnswer {
        campaign: id("spring"),
        wave: 0,
        webhook: webhook.to_owned(),
        verdict,
        reason: "CHG0042".to_owned(),
    })
}

fn asked(world: &World) -> Vec<String> {
    world
        .engine
        .questions()
        .into_iter()
        .map(|question| question.webhook)
        .collect()
}

fn reason(world: &World) -> String {
    world.engine.campaign(&id("spring")).unwrap().reason
}

#[test]
fn both_are_asked_after_the_soak_and_both_have_to_pass_over_restarts() {
    let mut world = world(Some(ApprovalRule::default()));
    assert!(asked(&world).is_empty(), "it is watched first");
    world.run_clock(Duration::from_secs(301));
    assert_eq!(asked(&world), ["board", "graphs"]);
    let question = &world.engine.questions()[0];
    assert_eq!((question.wave, question.devices), (0, 3));
    assert!(
        question.evidence[0].contains("3 of 3 ended attempts are good"),
        "{question:?}"
    );
    world.restart();
    assert_eq!(asked(&world), ["board", "graphs"], "and no second soak");
    world.input(says("board", GateVerdict::Pass)).unwrap();
    for holds in [GateVerdict::Unknown, GateVerdict::Hold, GateVerdict::Unknown] {
        world.input(says("graphs", holds)).unwrap();
        assert!(reason(&world).contains("the webhook graphs"), "{}", reason(&world));
        assert!(
            world.engine.approvals(&id("spring")).unwrap().is_empty(),
            "a person is asked last"
        );
    }
    world.restart();
    assert_eq!(asked(&world), ["graphs"], "a pass stands");
    let late = world.input(says("board", GateVerdict::Fail));
    assert!(matches!(late, Err(InputError::NotAsked { .. })), "{late:?}");
    let stranger = world.input(says("somebody", GateVerdict::Pass));
    assert!(matches!(stranger, Err(InputError::NotAsked { .. })), "{stranger:?}");
    world.input(says("graphs", GateVerdict::Pass)).unwrap();
    assert!(asked(&world).is_empty());
    assert!(reason(&world).contains("waits for an approver"), "{}", reason(&world));
}

#[test]
fn one_that_answers_now_and_then_is_one_decision() {
    let mut world = world(None);
    world.run_clock(Duration::from_secs(301));
    let decisions = |world: &World| {
        let why = world.engine.explain(&id("spring"), &Subject::Wave(0)).unwrap();
        why.iter().filter(|found| found.finding.contains("board says")).count()
    };
    for _ in 0..50 {
        world.input(says("board", GateVerdict::Hold)).unwrap();
        world.input(says("board", GateVerdict::Unknown)).unwrap();
    }
    assert_eq!(decisions(&world), 1);
    world.input(says("board", GateVerdict::Pass)).unwrap();
    assert_eq!(decisions(&world), 2);
}

#[test]
fn a_pause_asks_nobody_and_the_last_wave_neither() {
    let mut world = world(None);
    world.run_clock(Duration::from_secs(301));
    world.input(Input::Pause(id("spring"))).unwrap();
    assert!(asked(&world).is_empty());
    world.input(says("board", GateVerdict::Pass)).unwrap();
    world.input(Input::Resume(id("spring"))).unwrap();
    assert_eq!(asked(&world), ["graphs"]);
    world.input(says("graphs", GateVerdict::Pass)).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn a_fail_ends_the_campaign_and_nothing_goes_back() {
    let mut world = world(None);
    world.run_clock(Duration::from_secs(301));
    world.input(says("board", GateVerdict::Fail)).unwrap();
    assert_eq!(world.state("spring"), CampaignState::Failed);
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(view.states[&AttemptState::Success], 3);
    assert_eq!(view.states[&AttemptState::Cancelled], 9);
    assert!(view.reason.contains("CHG0042") && asked(&world).is_empty(), "{view:?}");
}
