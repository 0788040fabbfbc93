//! Several batches of a rolling campaign at once.

use std::{collections::BTreeSet, time::Duration};

use firmesh_coordinator_core::{Approval, Input, Subject, WebhookAnswer};
use firmesh_protocol::{
    api::{
        CampaignState,
        GateVerdict::{self, Fail, Hold, Pass, Unknown},
    },
    approval::ApprovalRule,
    ids::{DeviceId, Sha256},
    report::{
        AttemptState::{self, Cancelled, Failed, RolledBack, Success},
        PermitKind,
    },
};

use super::world::{Rules, World, id};

/// Twelve devices in six batches of two, `d0` and `d1` first, of which three may be open at once.
fn six_batches() -> Rules {
    Rules {
        racks: 3,
        per_rack: 4,
        cap_rack: 4,
        cap_total: 12,
        shares: vec![1_666, 3_333, 5_000, 6_666, 8_333, 10_000],
        at_once: 3,
        ..Rules::default()
    }
}

fn started(rules: Rules) -> World {
    let mut world = World::new(&[("spring", rules)]);
    world.start("spring");
    world
}

fn device(number: usize) -> DeviceId {
    DeviceId::new(format!("d{number}")).unwrap()
}

fn report(world: &mut World, devices: &[usize], state: AttemptState) {
    devices.iter().for_each(|number| world.report(&device(*number), state));
}

/// The gates of the waves that are open, in their order.
fn gates(world: &World) -> Vec<GateVerdict> {
    let view = world.engine.campaign(&id("spring")).unwrap();
    let open = view.waves.iter().filter(|wave| wave.open);
    open.map(|wave| wave.gate).collect()
}

fn reason(world: &World) -> String {
    world.engine.campaign(&id("spring")).unwrap().reason
}

fn state_of(world: &World, number: usize) -> AttemptState {
    world.engine.attempt(&id("spring"), &device(number)).unwrap().state
}

/// The devices of the permits to go back, in the order of their issue.
fn sent_back(world: &World) -> Vec<DeviceId> {
    let back = world
        .permits
        .iter()
        .filter(|permit| permit.kind == PermitKind::Rollback);
    back.flat_map(|permit| permit.devices.clone()).collect()
}

#[test]
fn three_batches_are_open_at_once_and_the_fourth_waits_for_the_first() {
    let mut world = started(six_batches());
    assert_eq!(gates(&world), [Unknown; 3]);
    assert_eq!(world.engine.in_flight().len(), 6);
    report(&mut world, &[2, 3], Success);
    assert_eq!(
        gates(&world),
        [Unknown, Pass, Unknown],
        "the second has passed before the first"
    );
    assert_eq!(reason(&world), "wave 0 is running");
    world.restart();
    assert_eq!(gates(&world), [Unknown, Pass, Unknown]);
    // The fourth rests on the first, the fifth on the second, the sixth on the third.
    report(&mut world, &[0, 1], Success);
    assert_eq!(gates(&world), [Pass, Pass, Unknown, Unknown, Unknown]);
    assert_eq!(reason(&world), "wave 2 is running");
    let why = world.engine.explain(&id("spring"), &Subject::Campaign).unwrap();
    let line = "wave 4: 0 of 0 ended attempts are good, the wave has 2 devices";
    assert!(why[0].evidence.iter().any(|found| found == line), "{why:#?}");
    world.run_until_quiet(|_| Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn the_cap_wins_over_the_number_of_batches() {
    let rules = Rules {
        cap_total: 3,
        ..six_batches()
    };
    let mut world = started(rules);
    assert_eq!(gates(&world), [Unknown; 3]);
    assert_eq!(world.engine.in_flight().len(), 3);
    world.run_until_quiet(|_| Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

/// A batch opens a soak after the one before it, and a soak after the third before it has passed.
#[test]
fn batches_open_one_after_the_other_and_soak() {
    let rules = Rules {
        soak_s: 300,
        ..six_batches()
    };
    let mut world = started(rules);
    let after = |world: &mut World, seconds: u64| {
        world.run_clock(Duration::from_secs(seconds));
        gates(world).len()
    };
    assert_eq!(after(&mut world, 299), 1);
    assert_eq!(reason(&world), "wave 1 opens 300 s after wave 0 was opened");
    assert_eq!(after(&mut world, 1), 2);
    assert_eq!(after(&mut world, 299), 2);
    assert_eq!(after(&mut world, 1), 3);
    assert_eq!(after(&mut world, 150), 3, "the first has not passed");
    report(&mut world, &[0, 1, 2, 3, 4, 5], Success);
    assert_eq!(gates(&world), [Pass; 3]);
    assert_eq!(
        reason(&world),
        "wave 3 opens 300 s after wave 2 was opened and wave 0 had passed"
    );
    assert_eq!(after(&mut world, 299), 3);
    assert_eq!(after(&mut world, 1), 4);
    assert_eq!(
        after(&mut world, 299),
        4,
        "the second has soaked as well, and opens nothing at once"
    );
    assert_eq!(after(&mut world, 1), 5);
    // A process that comes back does not know when the last one opened: it waits for as long again.
    world.run_clock(Duration::from_secs(200));
    world.restart();
    assert_eq!(after(&mut world, 299), 5);
    assert_eq!(after(&mut world, 1), 6);
    world.run_until_quiet(|_| Success);
    assert_eq!(world.state("spring"), CampaignState::Completed);
}

#[test]
fn a_batch_in_the_middle_that_fails_goes_back_and_those_beside_it_are_judged_by_their_own_gates() {
    let mut world = started(six_batches());
    report(&mut world, &[2], Failed);
    assert_eq!(gates(&world), [Unknown, Fail, Unknown]);
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    for number in 6..12 {
        assert_eq!(state_of(&world, number), Cancelled);
    }
    // What is in flight ends; nothing new opens, whatever passes.
    report(&mut world, &[0, 1, 3], Success);
    assert_eq!(gates(&world), [Pass, Fail, Unknown]);
    assert_eq!(sent_back(&world), [device(3)]);
    world.restart();
    assert_eq!(
        world.state("spring"),
        CampaignState::RollingBack,
        "two are on their way"
    );
    report(&mut world, &[4, 5], Success);
    report(&mut world, &[3], RolledBack);
    assert_eq!(gates(&world), [Pass, Fail, Pass]);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    let kept = [0, 1, 4, 5].map(|number| state_of(&world, number));
    assert_eq!((kept, state_of(&world, 3)), ([Success; 4], RolledBack));
}

/// It goes back as well: who never had his turn is missing. But not before nodes take him for lost, and so keeps no place from
/// those of the batch that failed.
#[test]
fn a_batch_that_was_cut_off_goes_back_when_its_time_is_over() {
    cut_off(0);
}

/// Nodes take who is missing for lost when all steps of its way could be over.
#[test]
fn a_batch_of_long_ways_has_time_for_all_steps() {
    cut_off(2);
}

fn cut_off(hops: usize) {
    let rules = Rules {
        cap_total: 5,
        hops,
        ..six_batches()
    };
    let time = 600 * (hops as u64 + 1);
    let mut world = started(rules);
    assert_eq!(state_of(&world, 5), AttemptState::Pending, "there is no room for it");
    report(&mut world, &[2], Failed);
    report(&mut world, &[0, 1, 3, 4], Success);
    assert_eq!(state_of(&world, 5), Cancelled);
    assert_eq!(
        (gates(&world), sent_back(&world)),
        (vec![Pass, Fail, Unknown], vec![device(3)])
    );
    report(&mut world, &[3], RolledBack);
    world.restart();
    world.run_clock(Duration::from_secs(time - 1));
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    assert_eq!(sent_back(&world).len(), 1);
    world.run_clock(Duration::from_secs(1));
    assert_eq!(
        (gates(&world), sent_back(&world)),
        (vec![Pass, Fail, Fail], vec![device(3), device(4)])
    );
    report(&mut world, &[4], RolledBack);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    let why = world.engine.explain(&id("spring"), &Subject::Wave(2)).unwrap();
    assert!(why.iter().any(|found| found.finding == "the gate failed"), "{why:#?}");
}

/// Between the thresholds a person decides: nothing opens meanwhile, although the batch that the next one rests on has passed.
#[test]
fn a_batch_that_holds_keeps_all_others_from_opening() {
    let rules = Rules {
        rollback: 4_000,
        ..six_batches()
    };
    let mut world = started(rules);
    report(&mut world, &[2], Failed);
    report(&mut world, &[3], Success);
    report(&mut world, &[0, 1], Success);
    assert_eq!(gates(&world), [Pass, Hold, Unknown]);
    assert_eq!(reason(&world), "wave 1 holds");
    // If another one fails, it keeps what it runs, and that is said.
    report(&mut world, &[4, 5], Failed);
    assert_eq!(gates(&world), [Pass, Hold, Fail]);
    assert_eq!(world.state("spring"), CampaignState::RolledBack);
    assert!(
        reason(&world)
            .contains("1 keep the new version because the gates of their waves have neither passed nor failed"),
        "{}",
        reason(&world)
    );
}

#[test]
fn each_batch_asks_for_itself_and_a_yes_opens_what_rests_on_it() {
    let rules = Rules {
        approval: Some(ApprovalRule::default()),
        webhooks: vec!["board"],
        ..six_batches()
    };
    let mut world = started(rules);
    let asked = |world: &World| -> Vec<u32> {
        let asked = world.engine.approvals(&id("spring")).unwrap().iter();
        asked
            .filter(|asked| asked.approved.is_none())
            .map(|asked| asked.wave)
            .collect()
    };
    let answer = |wave: u32, approved: bool| {
        Input::Approve(Approval {
            campaign: id("spring"),
            wave,
            approved,
            reason: "looked at the graphs".to_owned(),
            by: vec!["ab12".to_owned()],
            document: Sha256::of(&[u8::try_from(wave).unwrap()]),
            moved_on: BTreeSet::new(),
        })
    };
    report(&mut world, &[2, 3, 4, 5], Success);
    let waves: Vec<_> = world.engine.questions().iter().map(|question| question.wave).collect();
    assert_eq!(waves, [1, 2], "they have passed, whatever the first does");
    report(&mut world, &[0, 1], Success);
    for question in world.engine.questions() {
        let said = WebhookAnswer {
            campaign: id("spring"),
            wave: question.wave,
            webhook: question.webhook,
            act: None,
            verdict: Pass,
            reason: "CHG0042".to_owned(),
        };
        world.input(Input::WebhookAnswered(said)).unwrap();
    }
    let mut all = asked(&world);
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2]);
    assert!(
        reason(&world).contains("wave 0 passed and waits for an approver"),
        "{}",
        reason(&world)
    );
    world.restart();
    world.input(answer(1, true)).unwrap();
    assert_eq!(gates(&world), [Pass; 3]);
    world.input(answer(0, true)).unwrap();
    assert_eq!(gates(&world), [Pass, Pass, Pass, Unknown, Unknown]);
    assert_eq!(world.engine.approval_of(&id("spring"), 1), Some(Sha256::of(&[1])));
    // Nobody is asked about the last three: nothing rests on them.
    report(&mut world, &[6, 7, 8, 9], Success);
    assert_eq!(asked(&world), [2]);
    world.input(answer(2, false)).unwrap();
    assert_eq!(world.state("spring"), CampaignState::Cancelled);
    assert_eq!(state_of(&world, 10), Cancelled);
}
