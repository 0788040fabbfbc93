//! Approvers are asked between waves, where the manifest says so.

use std::{collections::BTreeSet, time::Duration};

use firmesh_coordinator_core::{Approval, Input, InputError, Subject};
use firmesh_protocol::{
    api::CampaignState,
    approval::{ApprovalRule, Refused},
    ids::Sha256,
    report::{AttemptState, PermitKind},
};

use super::world::{Rules, World, id};

/// Twelve devices in waves of 3, 3 and 6.
fn world(rule: ApprovalRule) -> World {
    let rules = Rules {
        racks: 3,
        per_rack: 4,
        cap_rack: 4,
        cap_total: 12,
        shares: vec![2_500, 5_000, 10_000],
        soak_s: 300,
        approval: Some(rule),
        ..Rules::default()
    };
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world
}

fn answer(wave: u32, approved: bool) -> Input {
    Input::Approve(Approval {
        campaign: id("spring"),
        wave,
        approved,
        reason: "looked at the graphs".to_owned(),
        by: vec!["ab12".to_owned()],
        document: Sha256::of(&[u8::try_from(wave).unwrap()]),
        moved_on: BTreeSet::new(),
    })
}

/// The same answer, signed by somebody else.
fn by_another(answer: Input) -> Input {
    let Input::Approve(said) = answer else { unreachable!() };
    Input::Approve(Approval {
        by: vec!["cd34".to_owned()],
        document: Sha256::of(b"another"),
        ..said
    })
}

fn open_waves(world: &World) -> usize {
    let view = world.engine.campaign(&id("spring")).unwrap();
    view.waves.iter().filter(|wave| wave.open).count()
}

/// Whether somebody is asked about the wave and nobody has answered.
fn is_asked(world: &World, wave: u32) -> bool {
    let asked = world.engine.approvals(&id("spring")).unwrap();
    asked.iter().any(|asked| asked.wave == wave && asked.approved.is_none())
}

#[test]
fn the_next_wave_waits_for_a_yes_after_the_soak_also_over_a_restart() {
    let mut world = world(ApprovalRule::default());
    let early = world.input(answer(0, true));
    assert!(matches!(early, Err(InputError::NothingToApprove(_))), "{early:?}");
    world.settle_in_flight(|_| AttemptState::Success);
    world.run_clock(Duration::from_secs(60));
    assert!(!is_asked(&world, 0), "it is watched first");
    world.run_clock(Duration::from_secs(86_400));
    assert!(is_asked(&world, 0));
    assert_eq!(open_waves(&world), 1);
    world.restart();
    world.run_clock(Duration::from_secs(1));
    let reason = world.engine.campaign(&id("spring")).unwrap().reason;
    assert!(reason.contains("waits for an approver"), "{reason}");

    let other = world.input(answer(1, true));
    assert!(matches!(other, Err(InputError::NothingToApprove(_))), "{other:?}");
    world.input(answer(0, true)).unwrap();
    assert_eq!(open_waves(&world), 2);
    assert_eq!(world.engine.approval_of(&id("spring"), 0), Some(Sha256::of(&[0])));
    let twice = world.input(answer(0, true));
    assert!(matches!(twice, Err(InputError::NothingToApprove(_))), "{twice:?}");
    // Whose key is replaced meanwhile is believed no more: somebody else says the same.
    let no = world.input(by_another(answer(0, false)));
    assert!(matches!(no, Err(InputError::NothingToApprove(_))), "{no:?}");
    world.input(by_another(answer(0, true))).unwrap();
    assert_eq!(world.engine.approval_of(&id("spring"), 0), Some(Sha256::of(b"another")));
    world.restart();
    assert_eq!(world.engine.approval_of(&id("spring"), 0), Some(Sha256::of(b"another")));
    assert_eq!(open_waves(&world), 2);
    let why = world.engine.explain(&id("spring"), &Subject::Wave(0)).unwrap();
    let said = why.iter().find(|found| found.finding == "approved").unwrap();
    assert_eq!(said.evidence, ["looked at the graphs", "signed with ab12"]);

    world.run_until_quiet(|_| AttemptState::Success);
    world.run_clock(Duration::from_secs(600));
    world.input(answer(1, true)).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(
        world.state("spring"),
        CampaignState::Completed,
        "nobody is asked after the last wave"
    );
}

#[test]
fn only_the_named_waves_are_asked_about_and_a_pause_loses_no_answer() {
    let mut world = world(ApprovalRule {
        after: [1].into(),
        refused: Refused::Cancel,
    });
    world.run_until_quiet(|_| AttemptState::Success);
    world.run_clock(Duration::from_secs(600));
    world.run_until_quiet(|_| AttemptState::Success);
    world.run_clock(Duration::from_secs(600));
    assert_eq!(open_waves(&world), 2);
    world.input(Input::Pause(id("spring"))).unwrap();
    world.input(answer(1, true)).unwrap();
    assert_eq!(open_waves(&world), 2, "it is paused");
    world.input(Input::Resume(id("spring"))).unwrap();
    assert_eq!(open_waves(&world), 3);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn a_no_ends_the_campaign_and_what_runs_the_new_version_keeps_it() {
    let mut world = world(ApprovalRule::default());
    world.run_until_quiet(|_| AttemptState::Success);
    world.run_clock(Duration::from_secs(600));
    world.input(answer(0, false)).unwrap();
    assert_eq!(world.state("spring"), CampaignState::Cancelled);
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(view.states[&AttemptState::Success], 3);
    assert_eq!(view.states[&AttemptState::Cancelled], 9);
    assert!(view.reason.contains("looked at the graphs"), "{}", view.reason);
}

#[test]
fn a_no_sends_everybody_back_where_the_manifest_says_so() {
    let mut world = world(ApprovalRule {
        after: BTreeSet::new(),
        refused: Refused::RollBack,
    });
    world.run_until_quiet(|_| AttemptState::Success);
    world.run_clock(Duration::from_secs(600));
    world.input(answer(0, true)).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    world.run_clock(Duration::from_secs(600));
    world.input(answer(1, false)).unwrap();
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    let back = world.permits.last().unwrap();
    assert_eq!(back.kind, PermitKind::Rollback);
    let (orders, suffices) = world.engine.orders_for(&id("spring"), back.wave, &back.devices);
    assert_eq!(
        (orders, suffices),
        (vec![Sha256::of(&[1])], true),
        "nodes are shown the no"
    );
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(view.states[&AttemptState::RolledBack], 6);
}
