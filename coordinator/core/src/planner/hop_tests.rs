//! Ways over other releases: which one is planned, who is held, and what the checker says of ways that are none.

use firmesh_protocol::{ids::Sha256, manifest::Reversibility, window::Window};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::{
    tests::{draft, fleet, now, releases},
    unit_tests::{at_least, campaign, pin, servers, steps},
    *,
};
use crate::check;

/// A campaign for version 1.3 over what is named, of 1.1 and 1.2, and all releases there are.
fn over(named: &[usize]) -> (CampaignManifest, Vec<Release>) {
    let [_, old] = <[Release; 2]>::try_from(releases()).unwrap();
    let mut releases = steps();
    let mut draft = draft();
    draft.strategy = Strategy::Direct {};
    draft.releases = vec![pin(&releases[2])];
    draft.hops = named.iter().map(|step| pin(&releases[*step])).collect();
    releases.push(old);
    (draft, releases)
}

/// Two nodes with two devices each, one of them a step further than the others, and one that nothing leads on from.
pub(super) fn hops_scene() -> Plan {
    let (mut draft, mut releases) = over(&[0, 1]);
    releases[2].info.security_epoch = 2;
    let mut before = releases[0].clone();
    before.info.security_epoch = 2;
    draft.previous.push(pin(&before));
    releases[0] = before;
    releases[1].info.security_epoch = 2;
    let mut inventory = fleet(&[2], 2);
    for (id, device) in &mut inventory.devices {
        match id.as_str() {
            "r0n0d1" => device.facts.version = Some("1.1".to_owned()),
            "r0n1d1" => device.facts.version = Some("0.7".to_owned()),
            _ => {}
        }
    }
    let plan = plan(&inventory, &draft, &releases, now()).unwrap();
    assert_eq!(check::plan(&plan, &draft, &inventory, &releases), Vec::<String>::new());
    plan
}

fn hops(plan: &Plan) -> Vec<Vec<&str>> {
    let hops = plan.devices().map(|(_, planned)| &planned.hops);
    hops.map(|hops| hops.iter().map(String::as_str).collect()).collect()
}

fn held(draft: &CampaignManifest, releases: &[Release]) -> String {
    let plan = plan(&fleet(&[1], 1), draft, releases, now()).unwrap();
    plan.held[0].reason.clone()
}

#[test]
fn devices_go_over_what_the_campaign_names_and_only_as_far_as_they_have_to() {
    let (draft, releases) = over(&[0, 1]);
    let mut inventory = fleet(&[3], 1);
    for (device, version) in inventory.devices.values_mut().zip(["1.0", "1.1", "1.2"]) {
        device.facts.version = Some(version.to_owned());
    }
    let plan = plan(&inventory, &draft, &releases, now()).unwrap();
    let all = ["firmware/1.1.bin", "firmware/1.2.bin"];
    assert_eq!(hops(&plan), [&all[..], &all[1..], &[]]);
    assert_eq!(plan.waves[0][0].previous.as_deref(), Some("firmware/old.bin"));
    assert_eq!(check::plan(&plan, &draft, &inventory, &releases), Vec::<String>::new());
}

#[test]
fn a_way_that_is_not_named_whole_is_shown_and_not_taken() {
    for named in [&[][..], &[0], &[1]] {
        let (draft, releases) = over(named);
        let why = held(&draft, &releases);
        assert!(
            why.contains("name firmware/1.1.bin and firmware/1.2.bin under `hops`"),
            "{named:?}: {why}"
        );
    }
}

#[test]
fn a_way_is_held_that_hardware_windows_or_epochs_do_not_allow() {
    let (mut draft, mut releases) = over(&[0, 1]);
    releases[1].info.reversibility = Reversibility::OneWay;
    assert!(held(&draft, &releases).starts_with("firmware/1.2.bin is one-way"));
    draft.constraints.one_way_accepted = true;
    let one_way = plan(&fleet(&[1], 1), &draft, &releases, now()).unwrap();
    assert_eq!(
        one_way.waves[0][0].previous, None,
        "nothing leads back through a one-way door"
    );
    assert_eq!(hops(&one_way)[0].len(), 2);

    let (mut draft, mut releases) = over(&[0, 1]);
    let days = [firmesh_protocol::window::Weekday::Mon];
    draft.constraints.windows = vec![Window::weekly("UTC", &days, "01:00", 1_799)];
    let why = held(&draft, &releases);
    assert!(
        why.contains("3 times deadlines.attempt_s is 1800 s, and no window lasts that long"),
        "{why}"
    );
    draft.constraints.windows = vec![Window::weekly("UTC", &days, "01:00", 1_800)];
    assert_eq!(
        plan(&fleet(&[1], 1), &draft, &releases, now())
            .unwrap()
            .devices()
            .count(),
        1
    );
    draft.constraints.windows.clear();
    releases[0].info.security_epoch = 2;
    let why = held(&draft, &releases);
    assert!(why.contains("no published releases lead there"), "{why}");
}

#[test]
fn a_hop_that_was_revoked_is_refused() {
    let (draft, releases) = over(&[0, 1]);
    let mut inventory = fleet(&[1], 1);
    inventory.revoked.insert(releases[1].artifact.sha256);
    let refused = plan(&inventory, &draft, &releases, now()).unwrap_err();
    assert!(matches!(refused, PlanError::Revoked { .. }), "{refused}");
}

#[test]
fn the_checker_finds_every_way_that_is_none() {
    let (draft, releases) = over(&[0, 1]);
    let inventory = fleet(&[1], 1);
    let sound = plan(&inventory, &draft, &releases, now()).unwrap();
    let wrong = |edit: &dyn Fn(&mut Plan, &mut CampaignManifest, &mut Vec<Release>)| {
        let (mut plan, mut draft, mut releases) = (sound.clone(), draft.clone(), releases.clone());
        edit(&mut plan, &mut draft, &mut releases);
        check::plan(&plan, &draft, &inventory, &releases).join("; ")
    };
    assert_eq!(wrong(&|_, _, _| ()), "");
    let found = |edit: &dyn Fn(&mut Plan, &mut CampaignManifest, &mut Vec<Release>), why: &str| {
        let wrong = wrong(edit);
        assert!(wrong.contains(why), "{why}: {wrong}");
    };
    found(
        &|plan, _, _| plan.waves[0][0].hops.reverse(),
        "comes from a version the release does not allow",
    );
    found(
        &|plan, _, _| drop(plan.waves[0][0].hops.remove(0)),
        "comes from a version the release does not allow",
    );
    found(&|_, draft, _| drop(draft.hops.remove(0)), "does not pin for that");
    found(
        &|_, draft, _| draft.hops[0].sha256 = Sha256::of(b"?"),
        "does not pin for that",
    );
    found(
        &|_, _, releases| releases[0].info.security_epoch = 2,
        "lower security epoch on its way",
    );
    found(
        &|_, _, releases| releases[0].info.models = vec!["R9".to_owned()],
        "for other devices",
    );
    found(
        &|_, _, releases| releases[0].info.reversibility = Reversibility::OneWay,
        "one-way",
    );
    found(
        &|_, _, releases| releases[2].info.from_versions.clear(),
        "does not need to",
    );
    found(
        &|plan, _, _| plan.waves[0][0].hops[1] = plan.waves[0][0].hops[0].clone(),
        "name a release twice",
    );
}

/// The BIOS goes over 1.05, beside which the new NIC does not work: whichever of them came first, it would not do.
#[test]
fn what_others_of_the_unit_require_holds_on_the_way_as_well() {
    let components = ["bmc", "bios"];
    let inventory = servers(&[1], 1, &components);
    let (mut draft, mut releases) = campaign(&components);
    let mut hop = releases[1].clone();
    hop.target = "firmware/bios-hop.bin".to_owned();
    hop.artifact.sha256 = Sha256::of(b"bios-hop");
    hop.info.version = "1.0.5".to_owned();
    releases[1].info.from_versions = vec!["1.0.5".to_owned()];
    draft.hops = vec![pin(&hop)];
    releases.push(hop);
    let order = |releases: &[Release]| {
        let plan = plan(&inventory, &draft, releases, now()).unwrap();
        assert_eq!(check::plan(&plan, &draft, &inventory, releases), Vec::<String>::new());
        let names = plan.devices().map(|(_, planned)| planned.device.to_string());
        let held = plan.held.iter().map(|held| held.reason.clone());
        (names.collect::<Vec<_>>(), held.collect::<Vec<_>>())
    };
    assert_eq!(order(&releases).0, ["r0n0s0-bmc", "r0n0s0-bios"]);
    // The hop itself needs the new BMC, which comes first anyway.
    releases[2].info.requires = vec![at_least("bmc", "1.1")];
    assert_eq!(order(&releases).0, ["r0n0s0-bmc", "r0n0s0-bios"]);
    // It does not go with it.
    releases[2].info.requires = Vec::new();
    releases[2].info.conflicts = vec![at_least("bmc", "1.1")];
    let (planned, held) = order(&releases);
    assert_eq!(planned, ["r0n0s0-bmc"]);
    assert!(held[0].contains("1.0.5 does not go with bmc 1.1 or later"), "{held:?}");
    // The new BMC does not go with it.
    releases[2].info.conflicts = Vec::new();
    let mut odd = at_least("bios", "9");
    odd.versions = vec!["1.0.5".to_owned()];
    releases[0].info.conflicts = vec![odd];
    let (planned, held) = order(&releases);
    assert_eq!(planned, ["r0n0s0-bmc"]);
    assert!(held[0].starts_with("it goes over 1.0.5 on its way"), "{held:?}");
}

proptest! {
    /// Whatever is published, named and running: the plan is in order by the checker's book.
    #[test]
    fn the_checker_accepts_every_plan_with_ways(
        versions in prop::collection::vec(0_u32..6, 1..8),
        named in prop::collection::vec(any::<bool>(), 5),
        more in prop::collection::vec((0_usize..5, 0_u32..6), 0..6),
        epochs in prop::collection::vec(1_u32..3, 5),
        doors in prop::collection::vec(0_u8..8, 5),
        accepted in any::<bool>(),
        goal in 1_usize..5,
    ) {
        let mut releases = steps();
        for (number, release) in releases.iter_mut().enumerate() {
            release.info.security_epoch = epochs[number];
            if doors[number] == 0 {
                release.info.reversibility = Reversibility::OneWay;
            }
        }
        for (of, from) in more {
            releases[of].info.from_versions.push(format!("1.{from}"));
        }
        let mut draft = draft();
        draft.strategy = Strategy::Direct {};
        draft.releases = vec![pin(&releases[goal])];
        draft.hops = (0..5).filter(|at| named[*at]).map(|at| pin(&releases[at])).collect();
        draft.previous = releases[..goal].iter().map(pin).collect();
        draft.constraints.one_way_accepted = accepted;
        let mut inventory = fleet(&[versions.len()], 1);
        for (device, version) in inventory.devices.values_mut().zip(versions) {
            device.facts.version = Some(format!("1.{version}"));
        }
        let plan = plan(&inventory, &draft, &releases, now()).unwrap();
        prop_assert!(plan.check().is_ok());
        prop_assert_eq!(check::plan(&plan, &draft, &inventory, &releases), Vec::<String>::new());
        prop_assert_eq!(Plan::from_bytes(&plan.to_bytes()).unwrap(), plan);
    }
}
