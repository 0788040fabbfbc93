//! Fault domains in plans; campaigns split in parts; devices that come too late.

use firmesh_protocol::{
    ids::TopologyPath,
    labels::Labels,
    manifest::{AtMost, Dimension, DomainCap, NeverTogether},
};
use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

use super::{
    tests::{draft, fleet, now, releases},
    unit_tests::labels,
    *,
};
use crate::check;

fn by(dimension: &str, at_most: AtMost) -> DomainCap {
    DomainCap {
        by: dimension.parse().unwrap(),
        at_most,
    }
}

/// The devices of the first `fed` nodes of each rack hang on feed a, the others on feed b.
fn fed(nodes_of_racks: &[usize], on_a: usize) -> Inventory {
    let mut inventory = fleet(nodes_of_racks, 1);
    for device in inventory.devices.values_mut() {
        let node: usize = device.node.as_str().split_once('n').unwrap().1.parse().unwrap();
        device.facts.labels = labels(&[("power_feed", if node < on_a { "a" } else { "b" })]);
    }
    inventory
}

#[test]
fn a_plan_shows_how_large_its_fault_domains_are_and_what_the_caps_come_to() {
    let mut inventory = fed(&[150, 150], 101);
    // One that is not in the campaign is in its domain all the same.
    let first = inventory.devices.values_mut().next().unwrap();
    first.facts.model = "R9".to_owned();
    let mut draft = draft();
    draft.selector.models = vec!["R1".to_owned()];
    draft.caps.domains = vec![
        by("power_feed", AtMost::BelowPercent(1)),
        by("rack", AtMost::BelowPercent(10)),
        by("site", AtMost::Count(7)),
    ];
    draft.caps.never_together = vec![NeverTogether {
        by: "power_feed".parse().unwrap(),
        within: Some(Dimension::Site),
        domains: Vec::new(),
    }];
    let plan = plan(&inventory, &draft, &releases(), now()).unwrap();
    plan.check_caps(&draft).unwrap();
    assert_eq!(
        check::plan(&plan, &draft, &inventory, &releases()),
        Vec::<String>::new()
    );
    let shown: Vec<_> = plan
        .domains
        .iter()
        .flat_map(|(by, shares)| shares.iter().map(move |(domain, share)| (by, domain, share)))
        .map(|(by, domain, share)| format!("{by} {domain}: {} of {}", share.at_most, share.devices))
        .collect();
    assert_eq!(
        shown,
        [
            "site eu/fra1: 7 of 300",
            "rack eu/fra1/rack0: 14 of 150",
            "rack eu/fra1/rack1: 14 of 150",
            "power_feed a: 2 of 202",
            "power_feed b: 1 of 98",
        ]
    );
    let tampered = |edit: fn(&mut Plan)| {
        let mut plan = plan.clone();
        edit(&mut plan);
        let wrong = check::plan(&plan, &draft, &inventory, &releases());
        (plan.check_caps(&draft).is_err(), !wrong.is_empty())
    };
    assert_eq!(
        tampered(|plan| plan
            .domains
            .values_mut()
            .flatten()
            .for_each(|(_, share)| share.at_most += 1)),
        (true, true)
    );
    // Fewer are a delay, not a danger: but not what the manifest says.
    assert_eq!(
        tampered(|plan| plan
            .domains
            .values_mut()
            .flatten()
            .for_each(|(_, share)| share.at_most = 1)),
        (false, true)
    );
    assert_eq!(
        tampered(|plan| plan
            .domains
            .values_mut()
            .flatten()
            .for_each(|(_, share)| share.devices *= 10)),
        (false, true)
    );
    assert_eq!(tampered(|plan| drop(plan.domains.pop_last())), (true, true));
    assert_eq!(
        tampered(|plan| plan.waves[0][0].labels = Labels::default()),
        (true, true)
    );
}

#[test]
fn who_cannot_be_counted_is_held() {
    let mut inventory = fed(&[2], 2);
    let first = inventory.devices.values_mut().next().unwrap();
    first.facts.labels = labels(&[("cluster", "k3")]);
    let reason = |edit: fn(&mut CampaignManifest)| {
        let mut draft = draft();
        edit(&mut draft);
        let plan = plan(&inventory, &draft, &releases(), now()).unwrap();
        assert_eq!(
            check::plan(&plan, &draft, &inventory, &releases()),
            Vec::<String>::new()
        );
        plan.held
            .first()
            .map(|held| (held.device.to_string(), held.reason.clone()))
    };
    let (device, why) = reason(|draft| draft.caps.domains = vec![by("power_feed", AtMost::Count(1))]).unwrap();
    assert_eq!(device, "r0n0d0");
    assert_eq!(
        why,
        "it has no label power_feed, by which the caps count: give it one in its node's configuration"
    );
    let deep = reason(|draft| draft.caps.domains = vec![by("path/4", AtMost::Count(1))]).unwrap();
    assert!(deep.1.contains("which is in no path/4"), "{deep:?}");
    let apart = reason(|draft| {
        draft.caps.never_together = vec![NeverTogether {
            by: "cluster".parse().unwrap(),
            within: None,
            domains: Vec::new(),
        }];
    });
    assert_eq!(apart.unwrap().0, "r0n1d0");
    assert_eq!(reason(|_| ()), None);
}

#[test]
fn revoked_releases_are_neither_planned_nor_stepped_over() {
    let mut inventory = fleet(&[1], 1);
    inventory.revoked = [releases()[0].artifact.sha256].into();
    let refused = plan(&inventory, &draft(), &releases(), now()).unwrap_err();
    assert!(matches!(refused, PlanError::Revoked { .. }), "{refused}");
}

#[test]
fn a_device_that_comes_after_the_plan_is_late() {
    let mut inventory = fleet(&[2, 2], 1);
    let mut draft = draft();
    draft.selector.paths = vec!["eu/fra1/rack0".parse().unwrap()];
    let newcomer = DeviceId::new("r0n1d0").unwrap();
    let device = inventory.devices.remove(&newcomer).unwrap();
    let plan = plan(&inventory, &draft, &releases(), now()).unwrap();
    let is_named = |device: &DeviceId| plan.devices().any(|(_, planned)| planned.device == *device);
    assert_eq!(late(inventory.standing(), &draft, is_named), []);
    inventory.devices.insert(newcomer.clone(), device);
    let found = late(inventory.standing(), &draft, is_named);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].device, found[0].path.to_string().as_str()),
        (&newcomer, "eu/fra1/rack0/n1")
    );
}

/// Sites of so many devices, each behind ten nodes in two racks.
fn sites(devices: &[usize]) -> Inventory {
    let mut inventory = Inventory::default();
    let [(_, like)] = <[_; 1]>::try_from(fleet(&[1], 1).devices.into_iter().collect::<Vec<_>>()).unwrap();
    for (site, count) in devices.iter().enumerate() {
        for number in 0..*count {
            let node = number % 10;
            let mut device = like.clone();
            let id = DeviceId::new(format!("s{site}-{number}")).unwrap();
            device.facts.device = id.clone();
            device.node = format!("s{site}n{node}").parse().unwrap();
            device.path = format!("r{}/s{site}/rack{}/s{site}n{node}", site % 2, node % 2)
                .parse()
                .unwrap();
            inventory.devices.insert(id, device);
        }
    }
    inventory
}

#[test]
fn what_is_too_large_for_one_campaign_is_split_by_place() {
    let inventory = sites(&[60_000, 30_000, 50_000, 120_000]);
    let parts = split(&inventory, &draft()).unwrap();
    let shown: Vec<_> = parts
        .iter()
        .map(|part| {
            let paths: Vec<_> = part.selector.paths.iter().map(ToString::to_string).collect();
            format!("{} {}: {}", part.id, part.sequence, paths.join(" "))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "spring-1 1: r0/s0",
            "spring-2 2: r0/s2 r1/s1",
            "spring-3 3: r1/s3/rack0",
            "spring-4 4: r1/s3/rack1",
        ]
    );
    let mut planned: Vec<_> = Vec::new();
    for part in &parts {
        let plan = plan(&inventory, part, &releases(), now()).unwrap();
        planned.extend(plan.devices().map(|(_, planned)| planned.device.clone()));
    }
    planned.sort();
    assert!(planned.iter().eq(inventory.devices.keys()), "everybody once");
    // What the selector leaves out stays out, however large the part's place is.
    let mut narrow = draft();
    narrow.selector.paths = ["r1/s3", "r0/s0/rack1"].map(|path| path.parse().unwrap()).to_vec();
    let parts = split(&inventory, &narrow).unwrap();
    let paths: Vec<Vec<String>> = parts
        .iter()
        .map(|part| part.selector.paths.iter().map(TopologyPath::to_string).collect())
        .collect();
    assert_eq!(paths, [vec!["r0/s0/rack1", "r1/s3/rack0"], vec!["r1/s3/rack1"]]);
    let small = fleet(&[3], 1);
    assert_eq!(split(&small, &draft()).unwrap(), [draft()]);
}

proptest! {
    #[test]
    fn plans_with_any_caps_are_right_by_the_checker(
        racks in prop::collection::vec(0_usize..12, 1..6),
        on_a in 0_usize..12,
        capped in prop::collection::btree_set(0_usize..6, 0..6),
        percent in 1_u32..=100,
    ) {
        let inventory = fed(&racks, on_a);
        let mut draft = draft();
        let dimensions = ["region", "site", "rack", "path/3", "power_feed", "cluster"];
        draft.caps.domains = capped
            .into_iter()
            .map(|which| by(dimensions[which], AtMost::BelowPercent(percent)))
            .collect();
        let plan = plan(&inventory, &draft, &releases(), now()).unwrap();
        prop_assert!(plan.check().is_ok() && plan.check_caps(&draft).is_ok());
        prop_assert_eq!(check::plan(&plan, &draft, &inventory, &releases()), Vec::<String>::new());
    }
}
