//! Servers that are brought up: their phases, what stops one of them, and the final validation.

use std::{collections::BTreeMap, time::Duration};

use firmesh_coordinator_core::{Input, READ_AFTER, Subject};
use firmesh_protocol::{
    api::{CampaignState, ServerState, ServerView},
    ids::DeviceId,
    manifest::ProvisioningPhase,
    report::AttemptState,
};

use super::world::{Rules, World, id};

/// Three servers of three components in one wave, beside one that is current and one that is held.
fn rules() -> Rules {
    Rules {
        racks: 1,
        per_rack: 9,
        unit: 3,
        cap_rack: 9,
        shares: vec![10_000],
        advance: 0,
        rollback: 0,
        provisioning: true,
        ..Rules::default()
    }
}

fn server(world: &World, name: &str) -> ServerView {
    let all = world.engine.servers_after(&id("spring"), None, 100).unwrap();
    all.into_iter().find(|view| view.server == name).unwrap()
}

fn stands(world: &World, name: &str) -> (ServerState, ProvisioningPhase) {
    let view = server(world, name);
    (view.state, view.phase)
}

fn reported(world: &mut World, device: &str, state: AttemptState) {
    world.report_at(&device.parse().unwrap(), state, "1.1");
}

/// Its node tells what its devices run: all the new version, but for these.
fn read(world: &mut World, but: &[(&str, Option<&str>)]) {
    let names = (0..9)
        .map(|number| format!("d{number}"))
        .chain(["s-current".to_owned()]);
    let mut versions: BTreeMap<DeviceId, Option<String>> = names
        .map(|name| (name.parse().unwrap(), Some("1.1".to_owned())))
        .collect();
    for (device, version) in but {
        versions.insert(device.parse().unwrap(), version.map(str::to_owned));
    }
    let node = "r0n1".parse().unwrap();
    world.input(Input::Read { node, versions }).unwrap();
}

#[test]
fn a_server_goes_through_its_phases_and_is_provisioned_when_all_of_it_was_read_again() {
    use ProvisioningPhase::{BiosConfiguration, FinalValidation, Preflight, Updates};
    let mut world = World::new(&[("spring", rules())]);
    assert_eq!(stands(&world, "r0n1/u0"), (ServerState::Waiting, Preflight));
    assert_eq!(stands(&world, "s-current"), (ServerState::Waiting, FinalValidation));
    world.start("spring");
    assert_eq!(stands(&world, "s-held"), (ServerState::Held, Preflight));
    assert_eq!(stands(&world, "r0n1/u0"), (ServerState::UnderWay, Updates));
    reported(&mut world, "d0", AttemptState::Success);
    assert_eq!(stands(&world, "r0n1/u0"), (ServerState::UnderWay, Updates));
    reported(&mut world, "d1", AttemptState::Success);
    assert_eq!(stands(&world, "r0n1/u0"), (ServerState::UnderWay, BiosConfiguration));
    reported(&mut world, "d2", AttemptState::Success);
    assert_eq!(stands(&world, "r0n1/u0"), (ServerState::UnderWay, FinalValidation));
    let node = "r0n1".parse().unwrap();
    assert!(world.engine.awaits_reading(&node));
    // What was read so early may be from before.
    read(&mut world, &[]);
    assert_eq!(stands(&world, "r0n1/u0").0, ServerState::UnderWay);
    world.run_clock(READ_AFTER);
    read(&mut world, &[("d1", Some("1.0"))]);
    let view = server(&world, "r0n1/u0");
    assert_eq!(view.state, ServerState::UnderWay);
    assert_eq!(view.reason, "d1 runs 1.0, and is to run 1.1");
    assert_eq!(stands(&world, "s-current").0, ServerState::Provisioned);
    read(&mut world, &[]);
    assert_eq!(stands(&world, "r0n1/u0"), (ServerState::Provisioned, FinalValidation));
    // It stays so, whatever is read later, over a restart as well.
    read(&mut world, &[("d1", Some("1.0"))]);
    world.restart();
    assert_eq!(stands(&world, "r0n1/u0").0, ServerState::Provisioned);
    assert!(!world.engine.awaits_reading(&node));
}

#[test]
fn a_component_that_fails_stops_its_server_and_not_the_batch() {
    let mut world = World::new(&[("spring", rules())]);
    world.start("spring");
    reported(&mut world, "d0", AttemptState::Success);
    world.report(&"d1".parse().unwrap(), AttemptState::Failed);
    for device in ["d3", "d4", "d5", "d6", "d7", "d8"] {
        reported(&mut world, device, AttemptState::Success);
    }
    let failed = server(&world, "r0n1/u0");
    assert_eq!(
        (failed.state, failed.phase),
        (ServerState::NotProvisioned, ProvisioningPhase::Updates)
    );
    assert_eq!(failed.reason, "d1 ended as failed: so it was told");
    assert_eq!(failed.components[2].state, Some(AttemptState::Cancelled));
    // The campaign is not over before the others were read.
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(view.state, CampaignState::Active);
    assert!(view.reason.contains("3 servers are read once more"), "{}", view.reason);
    world.run_clock(READ_AFTER);
    read(&mut world, &[]);
    let view = world.engine.campaign(&id("spring")).unwrap();
    assert_eq!(view.state, CampaignState::Failed);
    assert_eq!(
        view.reason,
        "1 of 4 servers are not provisioned; 1 were held by the plan"
    );
    let states = view.provisioning.unwrap().states;
    assert_eq!(
        states,
        BTreeMap::from([
            (ServerState::Held, 1),
            (ServerState::Provisioned, 3),
            (ServerState::NotProvisioned, 1),
        ])
    );
    let told = world.engine.explain(&id("spring"), &Subject::Campaign).unwrap();
    let servers = told.iter().find(|found| found.subject == "servers").unwrap();
    assert_eq!(servers.finding, "3 of 5 are provisioned");
    assert_eq!(
        servers.evidence,
        [
            "server r0n1/u0 is not provisioned, phase 3 of 5 (updates): d1 ended as failed: so it was told",
            "server s-held is held, phase 1 of 5 (preflight): held: it does not answer",
        ]
    );
    let page = world.engine.servers_after(&id("spring"), Some("r0n1/u1"), 2).unwrap();
    let names: Vec<_> = page.iter().map(|view| view.server.as_str()).collect();
    assert_eq!(names, ["r0n1/u2", "s-current"]);
}

#[test]
fn what_is_not_read_as_planned_in_time_is_not_provisioned() {
    let mut world = World::new(&[("spring", rules())]);
    world.start("spring");
    for number in 0..9 {
        reported(&mut world, &format!("d{number}"), AttemptState::Success);
    }
    world.run_clock(READ_AFTER + Duration::from_secs(30));
    read(&mut world, &[("d0", None), ("d4", Some("0.9"))]);
    assert_eq!(world.state("spring"), CampaignState::Active);
    // Nobody reads them again.
    world.run_clock(Duration::from_secs(300));
    assert_eq!(server(&world, "r0n1/u0").reason, "d0 does not answer");
    let other = server(&world, "r0n1/u1");
    assert_eq!(
        (other.state, other.phase, other.reason.as_str()),
        (
            ServerState::NotProvisioned,
            ProvisioningPhase::FinalValidation,
            "d4 runs 0.9, and is to run 1.1"
        )
    );
    assert_eq!(stands(&world, "r0n1/u2").0, ServerState::Provisioned);
    assert_eq!(world.state("spring"), CampaignState::Failed);
}

#[test]
fn a_server_that_goes_back_is_not_validated() {
    let mut world = World::new(&[(
        "spring",
        Rules {
            advance: 10_000,
            rollback: 10_000,
            ..rules()
        },
    )]);
    world.start("spring");
    for device in ["d0", "d1", "d2"] {
        reported(&mut world, device, AttemptState::Success);
    }
    world.report(&"d3".parse().unwrap(), AttemptState::Failed);
    assert_eq!(world.state("spring"), CampaignState::RollingBack);
    world.run_until_quiet(|_| AttemptState::RolledBack);
    world.run_clock(READ_AFTER);
    read(&mut world, &[]);
    let view = server(&world, "r0n1/u0");
    assert_eq!(view.state, ServerState::NotProvisioned);
    assert!(view.reason.contains("was sent back"), "{}", view.reason);
}
