//! Whatever a campaign or a device waits for, `explain` names it, with what shows it.

use std::{collections::BTreeSet, time::Duration};

use firmesh_coordinator_core::{Approval, Input, Rollback, Subject, WebhookAnswer};
use firmesh_protocol::{
    api::{CampaignState, Explanation, GateVerdict},
    approval::ApprovalRule,
    ids::{DeviceId, Sha256},
    manifest::AtMost,
    report::AttemptState,
    rollback::RollbackScope,
};

use super::world::{NEW, Rules, World, id};

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

fn why(world: &World, campaign: &str, name: &str) -> Explanation {
    let subject = Subject::Device(device(name));
    world.engine.explain(&id(campaign), &subject).unwrap().remove(0)
}

/// That a device is explained with this finding, and with evidence that says this.
#[track_caller]
fn shows(world: &World, name: &str, finding: &str, evidence: &str) {
    let found = why(world, "spring", name);
    assert!(found.finding.contains(finding), "{found:#?}");
    let has = evidence.is_empty() || found.evidence.iter().any(|line| line.contains(evidence));
    assert!(has, "{found:#?}");
}

fn world(rules: Rules) -> World {
    World::new(&[("spring", rules)])
}

/// All in one wave, in one rack, one at a time.
fn one_by_one() -> Rules {
    Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 1,
        shares: vec![10_000],
        advance: 5_000,
        rollback: 0,
        ..Rules::default()
    }
}

/// Two devices, then two more.
fn two_waves() -> Rules {
    Rules {
        racks: 1,
        per_rack: 4,
        cap_rack: 4,
        shares: vec![5_000, 10_000],
        ..Rules::default()
    }
}

fn send_back(scope: RollbackScope) -> Input {
    Input::RollBack(Rollback {
        campaign: id("spring"),
        scope,
        reason: "fans stop".to_owned(),
        order: None,
        moved_on: BTreeSet::new(),
    })
}

#[test]
fn before_its_wave_a_device_waits_for_what_the_wave_waits_for() {
    let rules = Rules {
        soak_s: 300,
        webhooks: vec!["board"],
        approval: Some(ApprovalRule::default()),
        ..two_waves()
    };
    let mut world = world(rules);
    shows(&world, "d3", "not started: `firmesh campaign start spring`", "wave 1");
    world.start("spring");
    shows(
        &world,
        "d3",
        "wave 1 is not open: wave 0 is running",
        "0 of 0 ended attempts are good",
    );
    world.report(&device("d0"), AttemptState::Success);
    shows(
        &world,
        "d3",
        "wave 0 is running",
        "1 of 1 ended attempts are good, the wave has 2 devices",
    );
    world.report(&device("d1"), AttemptState::Success);
    world.run_clock(Duration::from_secs(100));
    shows(&world, "d3", "is watched for 300 s", "watched for 200 s more");
    world.run_clock(Duration::from_secs(300));
    shows(
        &world,
        "d3",
        "the webhook board, which was not asked yet",
        "webhook board: unknown",
    );
    let says = |verdict, reason: &str| {
        Input::WebhookAnswered(WebhookAnswer {
            campaign: id("spring"),
            wave: 0,
            webhook: "board".to_owned(),
            act: None,
            verdict,
            reason: reason.to_owned(),
        })
    };
    world
        .input(says(GateVerdict::Unknown, "no answer within 10 s"))
        .unwrap();
    shows(&world, "d3", "which has given no answer: no answer within 10 s", "");
    world.input(says(GateVerdict::Hold, "freeze")).unwrap();
    shows(&world, "d3", "which says hold: freeze", "webhook board: hold freeze");
    world.input(says(GateVerdict::Pass, "CHG0042")).unwrap();
    shows(
        &world,
        "d3",
        "waits for an approver",
        "an approver was asked and has not answered",
    );
    shows(&world, "d3", "wave 1 is not open", "webhook board: pass CHG0042");
    let found = world.engine.explain(&id("spring"), &Subject::Wave(1)).unwrap();
    assert!(
        found[0]
            .finding
            .contains("not open: wave 0 passed and waits for an approver"),
        "{found:#?}"
    );
    let found = world.engine.explain(&id("spring"), &Subject::Campaign).unwrap();
    assert!(
        found[0]
            .evidence
            .iter()
            .any(|line| line.contains("was asked and has not answered")),
        "{found:#?}"
    );
    world.input(Input::Pause(id("spring"))).unwrap();
    shows(
        &world,
        "d3",
        "paused by an operator: nothing new starts: `firmesh campaign resume spring`",
        "",
    );
    let approval = Approval {
        campaign: id("spring"),
        wave: 0,
        approved: false,
        reason: "too hot".to_owned(),
        by: Vec::new(),
        document: Sha256::of(b""),
        moved_on: BTreeSet::new(),
    };
    world.input(Input::Approve(approval)).unwrap();
    shows(
        &world,
        "d3",
        "cancelled: an approver refused to go on",
        "the coordinator says so",
    );
}

#[test]
fn a_gate_that_holds_for_a_person_says_what_it_rests_on() {
    let mut world = world(Rules {
        rollback: 1_000,
        ..two_waves()
    });
    world.start("spring");
    world.report(&device("d0"), AttemptState::Success);
    world.report(&device("d1"), AttemptState::Failed);
    shows(&world, "d3", "wave 0 holds", "1 of 2 ended attempts are good");
    shows(
        &world,
        "d1",
        "failed: so it was told",
        "wave 0, rack eu/s1/r0, node r0n1",
    );
}

#[test]
fn a_device_whose_node_proves_nothing_waits_for_that() {
    let mut world = World::unproven(&[("spring", one_by_one())]);
    world.start("spring");
    shows(
        &world,
        "d0",
        "awaiting_possession: node r0n1 has not proven that it holds",
        "",
    );
    world.prove(&world.nodes()[0].clone(), NEW, false);
    shows(
        &world,
        "d0",
        "awaiting_possession",
        "wrong_possession_proof: 1 by node r0n1",
    );
}

#[test]
fn caps_are_named_with_those_who_fill_them() {
    let mut full = world(one_by_one());
    full.start("spring");
    shows(
        &full,
        "d1",
        "1 devices of its rack are in flight, the cap is 1",
        "d0 is in flight",
    );
    full.report(&device("d0"), AttemptState::Quarantined);
    shows(
        &full,
        "d1",
        "the cap is 1",
        "d0 is quarantined and keeps its place until it is cleared",
    );
    shows(&full, "d0", "quarantined: so it was told", "`firmesh device clear d0`");
    full.input(Input::Clear(device("d0"))).unwrap();
    let found = why(&full, "spring", "d0");
    assert!(!found.evidence.iter().any(|line| line.contains("clear")), "{found:#?}");

    let mut total = world(Rules {
        racks: 2,
        cap_total: 1,
        ..one_by_one()
    });
    total.start("spring");
    shows(
        &total,
        "d1",
        "1 devices are in flight, the cap is 1 in all",
        "d0 is in flight",
    );

    let feeds = |rules| Rules {
        per_rack: 4,
        cap_rack: 4,
        feeds: 2,
        ..rules
    };
    let mut domain = world(Rules {
        domains: vec![("power_feed", AtMost::Count(1))],
        ..feeds(one_by_one())
    });
    domain.start("spring");
    shows(
        &domain,
        "d2",
        "1 devices of power_feed f0 are in flight, the cap is 1",
        "",
    );
    let mut apart = world(Rules {
        feeds_apart: true,
        ..feeds(one_by_one())
    });
    apart.start("spring");
    shows(
        &apart,
        "d1",
        "devices of power_feed f0 are in flight, which stands in for its own",
        "",
    );
}

#[test]
fn components_of_a_unit_wait_for_each_other_in_both_directions() {
    let rules = Rules {
        unit: 2,
        cap_rack: 4,
        ..one_by_one()
    };
    let mut world = world(rules);
    world.start("spring");
    shows(
        &world,
        "d1",
        "d0, which comes before it in its unit, has not ended well yet",
        "",
    );
    world.run_until_quiet(|_| AttemptState::Success);
    world.input(send_back(RollbackScope::default())).unwrap();
    shows(
        &world,
        "d0",
        "d1, which comes after it in its unit, has not gone back yet",
        "",
    );
}

#[test]
fn what_another_campaign_does_with_a_device_is_named() {
    let mut world = World::new(&[("autumn", one_by_one()), ("spring", one_by_one())]);
    world.start("autumn");
    world.start("spring");
    shows(&world, "d0", "waits: campaign autumn has it in flight", "");
    world.input(Input::Pause(id("spring"))).unwrap();
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("autumn"), CampaignState::Completed);
    let back = Rollback {
        campaign: id("autumn"),
        scope: RollbackScope::default(),
        reason: "fans stop".to_owned(),
        order: None,
        moved_on: BTreeSet::new(),
    };
    world.input(Input::RollBack(back)).unwrap();
    world.input(Input::Resume(id("spring"))).unwrap();
    shows(&world, "d3", "waits: campaign autumn takes it back first", "");
}

#[test]
fn every_state_of_a_device_in_flight_says_what_happens_and_when_its_node_was_heard() {
    let mut world = world(one_by_one());
    world.start("spring");
    shows(
        &world,
        "d0",
        "pending: permitted, and its node has said nothing of it yet",
        "named by permit 1",
    );
    world.run_clock(Duration::from_secs(40));
    shows(
        &world,
        "d0",
        "pending",
        "node r0n1 was not heard of since this coordinator started",
    );
    for (state, says) in [
        (AttemptState::WaitingWindow, "waiting_window: so it was told"),
        (AttemptState::Blocked, "blocked: so it was told"),
        (AttemptState::Downloading, "downloading: so it was told"),
        (AttemptState::Verifying, "verifying: so it was told"),
        (AttemptState::Staged, "staged: so it was told"),
        (AttemptState::Installing, "installing: so it was told"),
        (AttemptState::Rebooting, "rebooting: so it was told"),
        (AttemptState::Validating, "validating: so it was told"),
    ] {
        world.report(&device("d0"), state);
        world.run_clock(Duration::from_secs(2));
        shows(&world, "d0", says, "node r0n1 was last heard of 2 s ago");
    }
    world.run_clock(Duration::from_secs(100_000));
    shows(
        &world,
        "d0",
        "quarantined: its deadline passed",
        "a late word of it still counts",
    );
}

#[test]
fn devices_that_go_back_and_those_that_wait_meanwhile_are_explained() {
    let mut world = world(Rules {
        cap_rack: 2,
        ..two_waves()
    });
    world.start("spring");
    world.settle_in_flight(|_| AttemptState::Success);
    world
        .input(send_back(RollbackScope {
            waves: [0].into(),
            ..RollbackScope::default()
        }))
        .unwrap();
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    world.run_until_quiet(|_| AttemptState::Success);
    assert_eq!(world.state("spring"), CampaignState::Paused);
    shows(&world, "d0", "rolled_back", "");

    let mut narrow = self::world(Rules {
        cap_total: 1,
        ..one_by_one()
    });
    narrow.start("spring");
    narrow.run_until_quiet(|_| AttemptState::Success);
    narrow.input(send_back(RollbackScope::default())).unwrap();
    shows(
        &narrow,
        "d3",
        "waits: 1 devices of its rack are in flight, the cap is 1",
        "d0 is in flight",
    );
    shows(
        &narrow,
        "d0",
        "pending: on its way back to the previous version",
        "permit",
    );
    let part = RollbackScope {
        devices: [device("d0")].into(),
        ..RollbackScope::default()
    };
    let mut part_of_it = self::world(two_waves());
    part_of_it.start("spring");
    part_of_it.report(&device("d0"), AttemptState::Success);
    part_of_it.input(send_back(part)).unwrap();
    shows(
        &part_of_it,
        "d3",
        "other devices of the campaign are going back, then somebody has to resume it",
        "",
    );
}
