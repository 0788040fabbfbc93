//! Servers with several components: their order, what goes together, and paths over several releases.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{Component, LabelName, LabelValue},
    labels::Labels,
    manifest::{OtherComponent, ReleaseRef, Sequence},
    version::VersionScheme,
};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

use super::{
    tests::{draft, fleet, now, releases},
    *,
};
use crate::check;

pub(crate) fn labels(labels: &[(&str, &str)]) -> Labels {
    let label = |(name, value): &(&str, &str)| (LabelName::new(*name).unwrap(), LabelValue::new(*value).unwrap());
    labels.iter().map(label).collect::<BTreeMap<_, _>>().try_into().unwrap()
}

/// Racks of so many nodes, every node with so many servers of these components; a device is called `r0n0s0-bmc`.
pub(crate) fn servers(nodes_of_racks: &[usize], servers: usize, components: &[&str]) -> Inventory {
    let mut inventory = Inventory::default();
    for (id, node) in fleet(nodes_of_racks, servers).devices {
        let (node_name, server) = id.as_str().split_once('d').unwrap();
        for component in components {
            let mut device = node.clone();
            let id = DeviceId::new(format!("{node_name}s{server}-{component}")).unwrap();
            device.facts.device = id.clone();
            device.facts.component = Component::new(component.split('.').next().unwrap()).unwrap();
            device.facts.labels = labels(&[("unit", &format!("s{server}"))]);
            inventory.devices.insert(id, device);
        }
    }
    inventory
}

/// A release of version 1.1 for each component, and the campaign that brings them; versions are dotted integers.
pub(crate) fn campaign(components: &[&str]) -> (CampaignManifest, Vec<Release>) {
    let [new, _] = releases().try_into().unwrap();
    let release = |component: &&str| {
        let mut release: Release = new.clone();
        release.target = format!("firmware/{component}.bin");
        release.artifact.sha256 = firmesh_protocol::ids::Sha256::of(component.as_bytes());
        release.info.component = Component::new(*component).unwrap();
        release.info.from_versions = Vec::new();
        release.info.version_scheme = Some(VersionScheme::Dotted);
        release
    };
    let releases: Vec<_> = components.iter().map(release).collect();
    let draft = CampaignManifest {
        releases: releases.iter().map(pin).collect(),
        previous: Vec::new(),
        strategy: Strategy::Direct {},
        ..draft()
    };
    (draft, releases)
}

pub(super) fn at_least(component: &str, version: &str) -> OtherComponent {
    OtherComponent {
        component: Component::new(component).unwrap(),
        versions: Vec::new(),
        min_version: Some(version.to_owned()),
        version_scheme: Some(VersionScheme::Dotted),
    }
}

fn planned(inventory: &Inventory, draft: &CampaignManifest, releases: &[Release]) -> Plan {
    let plan = plan(inventory, draft, releases, now()).unwrap();
    plan.check().unwrap();
    assert_eq!(check::plan(&plan, draft, inventory, releases), Vec::<String>::new());
    plan
}

fn order(plan: &Plan) -> Vec<&str> {
    let names = plan.devices().map(|(_, planned)| planned.device.as_str());
    names.map(|name| name.split_once('-').unwrap().1).collect()
}

fn reason<'a>(plan: &'a Plan, device: &str) -> &'a str {
    let held = plan.held.iter().find(|held| held.device.as_str() == device);
    &held.unwrap_or_else(|| panic!("{device} is not held")).reason
}

#[test]
fn components_of_a_server_follow_one_another_and_the_nic_is_last() {
    let components = ["nic", "fan", "ssd", "bios", "bmc", "rot"];
    let (mut draft, releases) = campaign(&components);
    let inventory = servers(&[1], 1, &components);
    let plan = planned(&inventory, &draft, &releases);
    assert_eq!(order(&plan), ["rot", "bmc", "bios", "ssd", "fan", "nic"]);
    let after: Vec<_> = plan.devices().map(|(_, planned)| planned.after.as_ref()).collect();
    assert_eq!(after[0], None);
    assert_eq!(after[5].unwrap().as_str(), "r0n0s0-fan");

    draft.constraints.sequence = vec![Sequence {
        vendor: "Acme".to_owned(),
        order: ["bios", "nic"].map(|name| Component::new(name).unwrap()).to_vec(),
    }];
    let theirs = planned(&inventory, &draft, &releases);
    assert_eq!(order(&theirs), ["bios", "nic", "rot", "bmc", "ssd", "fan"]);
    let wrong = check::plan(&plan, &draft, &inventory, &releases);
    assert!(wrong.iter().any(|line| line.contains("for no reason")), "{wrong:?}");
}

#[test]
fn a_release_waits_for_what_it_requires_or_is_held() {
    let components = ["bmc", "bios", "nic"];
    let (draft, mut releases) = campaign(&components);
    let mut inventory = servers(&[1], 1, &components);
    // The BMC's release requires the new NIC: the usual order gives way.
    releases[0].info.requires = vec![at_least("nic", "1.1")];
    let plan = planned(&inventory, &draft, &releases);
    assert_eq!(order(&plan), ["bios", "nic", "bmc"]);

    // The NIC stays as it is.
    let held_back = |inventory: &Inventory, device: &str| {
        let plan = planned(inventory, &draft, &releases);
        assert_eq!(order(&plan), ["bios"]);
        reason(&plan, device).to_owned()
    };
    let nic = DeviceId::new("r0n0s0-nic").unwrap();
    let edit = |inventory: &mut Inventory, edit: fn(&mut KnownDevice)| edit(inventory.devices.get_mut(&nic).unwrap());
    edit(&mut inventory, |nic| nic.held_by_operator = Some("on loan".to_owned()));
    let why = held_back(&inventory, "r0n0s0-bmc");
    assert_eq!(
        why,
        "1.1 requires nic 1.1 or later, but r0n0s0-nic of the same unit runs 1.0, and this campaign does not change that"
    );
    assert_eq!(held_back(&inventory, "r0n0s0-nic"), "held by an operator: on loan");
    edit(&mut inventory, |nic| nic.facts.version = None);
    assert!(held_back(&inventory, "r0n0s0-bmc").ends_with("does not answer"));
    inventory.devices.remove(&nic);
    assert!(held_back(&inventory, "r0n0s0-bmc").ends_with("its unit has none"));
    let bmc = inventory
        .devices
        .get_mut(&DeviceId::new("r0n0s0-bmc").unwrap())
        .unwrap();
    bmc.facts.labels = Labels::default();
    assert!(held_back(&inventory, "r0n0s0-bmc").contains("it has no label unit"));
}

#[test]
fn what_does_not_go_together_is_not_brought_together() {
    let components = ["bmc", "bios"];
    let (draft, mut releases) = campaign(&components);
    let mut inventory = servers(&[1], 1, &components);
    releases[1].info.conflicts = vec![at_least("bmc", "1.1")];
    let plan = planned(&inventory, &draft, &releases);
    assert_eq!(order(&plan), ["bmc"]);
    assert!(reason(&plan, "r0n0s0-bios").ends_with("gets 1.1 in this campaign"));
    // An old BMC that does not go with the new BIOS is updated first.
    let listed = OtherComponent {
        versions: vec!["1.0".to_owned()],
        min_version: None,
        version_scheme: None,
        ..at_least("bios", "1")
    };
    (releases[0].info.conflicts, releases[1].info.conflicts) = (vec![listed], Vec::new());
    assert_eq!(order(&planned(&inventory, &draft, &releases)), ["bios", "bmc"]);
    // Each would have to come after the other.
    releases[1].info.requires = vec![at_least("bmc", "1.1")];
    let plan = planned(&inventory, &draft, &releases);
    assert!(plan.waves.is_empty());
    assert!(reason(&plan, "r0n0s0-bmc").contains("runs in a circle"));
    // One device that waits for a person keeps the others of its unit.
    releases
        .iter_mut()
        .for_each(|release| release.info.requires = Vec::new());
    let bmc = inventory
        .devices
        .get_mut(&DeviceId::new("r0n0s0-bmc").unwrap())
        .unwrap();
    bmc.quarantined = true;
    let plan = planned(&inventory, &draft, &releases);
    assert!(reason(&plan, "r0n0s0-bios").starts_with("r0n0s0-bmc of the same unit is quarantined"));
}

#[test]
fn no_wave_ends_inside_a_unit() {
    let components = ["bmc", "bios", "nic"];
    let (mut draft, releases) = campaign(&components);
    let inventory = servers(&[2, 2], 2, &components);
    let sizes = |draft: &CampaignManifest| -> Vec<_> {
        planned(&inventory, draft, &releases)
            .waves
            .iter()
            .map(Vec::len)
            .collect()
    };
    draft.strategy = Strategy::rolling(4);
    assert_eq!(sizes(&draft), [6, 6, 6, 6]);
    let shares = [100, 5_000, 10_000].map(|share| firmesh_protocol::units::BasisPoints::new(share).unwrap());
    draft.strategy = Strategy::Canary {
        shares: shares.to_vec(),
    };
    assert_eq!(sizes(&draft), [3, 9, 12]);
}

#[test]
fn a_plan_that_breaks_a_unit_is_found_out() {
    let components = ["bmc", "bios"];
    let (mut draft, releases) = campaign(&components);
    draft.strategy = Strategy::rolling(2);
    let inventory = servers(&[2], 1, &components);
    let good = planned(&inventory, &draft, &releases);
    let broken = |edit: fn(&mut Plan)| {
        let mut plan = good.clone();
        edit(&mut plan);
        let wrong = check::plan(&plan, &draft, &inventory, &releases);
        assert!(!wrong.is_empty());
        (plan.check().is_err(), wrong)
    };
    assert!(broken(|plan| plan.waves[0].swap(0, 1)).0);
    assert!(broken(|plan| plan.waves[0][1].after = None).0);
    assert!(broken(|plan| plan.waves[1][0].after = Some(plan.waves[0][1].device.clone())).0);
    let parted = broken(|plan| {
        let (a, b) = (plan.waves[0].remove(1), plan.waves[1].remove(1));
        plan.waves[0].push(b);
        plan.waves[1].push(a);
    });
    assert!(
        parted.0 && parted.1.iter().any(|line| line.contains("wave of its unit")),
        "{parted:?}"
    );
    broken(|plan| plan.waves[0][0].labels = Labels::default());
}

/// Releases of versions 1.1 to 1.5, of which each may be installed only from the one before.
pub(super) fn steps() -> Vec<Release> {
    let step = |step: u32| {
        let [mut release, _] = <[Release; 2]>::try_from(releases()).unwrap();
        let (version, from) = (format!("1.{step}"), format!("1.{}", step - 1));
        release.target = format!("firmware/{version}.bin");
        release.artifact.sha256 = firmesh_protocol::ids::Sha256::of(version.as_bytes());
        (release.info.version, release.info.from_versions) = (version, vec![from]);
        release
    };
    (1..=5).map(step).collect()
}

/// A campaign for version 1.3.
fn stairs(edit: impl FnOnce(&mut Vec<Release>)) -> String {
    let mut releases = steps();
    edit(&mut releases);
    let mut draft = draft();
    draft.previous = Vec::new();
    draft.releases = vec![pin(&releases[2])];
    let plan = plan(&fleet(&[1], 1), &draft, &releases, now()).unwrap();
    plan.held[0].reason.clone()
}

pub(super) fn pin(release: &Release) -> ReleaseRef {
    ReleaseRef {
        target: release.target.clone(),
        sha256: release.artifact.sha256,
    }
}

#[test]
fn the_shortest_allowed_path_is_shown_where_none_leads_directly() {
    assert_eq!(
        stairs(|_| ()),
        "it runs 1.0, from which 1.3 may not be installed directly; the shortest allowed path is 1.0 -> 1.1 \
         (firmware/1.1.bin) -> 1.2 (firmware/1.2.bin) -> 1.3 (firmware/1.3.bin): name firmware/1.1.bin and \
         firmware/1.2.bin under `hops` in the campaign"
    );
    let shortcut = stairs(|releases| releases[1].info.from_versions.push("1.0".to_owned()));
    assert!(
        shortcut.contains("path is 1.0 -> 1.2 (firmware/1.2.bin) -> 1.3"),
        "{shortcut}"
    );
    // A step down in security epochs is none.
    let epochs = stairs(|releases| releases[0].info.security_epoch = 7);
    assert!(
        epochs.contains("no published releases lead there step by step"),
        "{epochs}"
    );
    let by_order = stairs(|releases| {
        releases[2].info.from_versions = Vec::new();
        releases[2].info.min_from = Some("1.2".to_owned());
        releases[2].info.version_scheme = Some(VersionScheme::Dotted);
    });
    assert!(by_order.contains("1.2 (firmware/1.2.bin) -> 1.3"), "{by_order}");
}

#[test]
fn a_first_version_counts_only_where_there_is_an_order() {
    let (mut draft, mut releases) = (draft(), releases());
    draft.strategy = Strategy::Direct {};
    let info = &mut releases[0].info;
    info.from_versions = Vec::new();
    (info.min_from, info.version_scheme) = (Some("0.9.9".to_owned()), Some(VersionScheme::Dotted));
    let mut inventory = fleet(&[3], 1);
    let versions = ["1.0", "0.9.8", "1.x"];
    for (device, version) in inventory.devices.values_mut().zip(versions) {
        device.facts.version = Some(version.to_owned());
    }
    let plan = planned(&inventory, &draft, &releases);
    assert_eq!(plan.devices().count(), 1);
    assert!(
        reason(&plan, "r0n1d0").contains("path is 0.9.8 -> 1.0 (firmware/old.bin) -> 1.1"),
        "{:?}",
        plan.held
    );
    releases[1].info.from_versions = vec!["0.5".to_owned()];
    let plan = planned(&inventory, &draft, &releases);
    assert!(
        reason(&plan, "r0n1d0").contains("(allowed: 0.9.9 or later)"),
        "{:?}",
        plan.held
    );
    assert!(reason(&plan, "r0n2d0").starts_with("it runs 1.x"));
}

proptest! {
    /// Whatever a fleet of servers looks like and whatever releases ask of each other: the plan is in order by the checker's
    /// book, which plays every unit through.
    #[test]
    fn the_checker_accepts_every_plan_of_servers(
        racks in prop::collection::vec(0_usize..4, 1..4),
        per_node in 1_usize..3,
        rules in prop::collection::vec((0_usize..4, 0_usize..4, any::<bool>(), any::<bool>()), 0..5),
        odd in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..6), 0..10),
        batch in 1_u32..9,
        reversed in any::<bool>(),
        narrowed in (0_u8..8, any::<prop::sample::Index>()),
    ) {
        let components = ["bmc", "bios", "nic", "fan"];
        let mut inventory = servers(&racks, per_node, &["bmc", "bios", "nic", "nic.2", "fan"]);
        let (mut draft, mut releases) = campaign(&components);
        for (of, about, requires, new) in rules.into_iter().filter(|(of, about, ..)| of != about) {
            let rule = at_least(components[about], if new { "1.1" } else { "1.0" });
            let info = &mut releases[of].info;
            if requires { &mut info.requires } else { &mut info.conflicts }.push(rule);
        }
        draft.strategy = Strategy::rolling(batch);
        if reversed {
            draft.constraints.sequence = vec![Sequence {
                vendor: "Acme".to_owned(),
                order: ["nic", "bios"].map(|name| Component::new(name).unwrap()).to_vec(),
            }];
        }
        let ids: Vec<_> = inventory.devices.keys().cloned().collect();
        for (index, kind) in odd.into_iter().filter(|_| !ids.is_empty()) {
            let device = inventory.devices.get_mut(index.get(&ids)).unwrap();
            match kind {
                0 => device.facts.version = None,
                1 => device.facts.version = Some("1.1".to_owned()),
                2 => device.facts.version = Some("odd".to_owned()),
                3 => device.held_by_operator = Some("mine".to_owned()),
                4 => device.facts.labels = Labels::default(),
                _ => device.quarantined = true,
            }
        }
        let plan = plan(&inventory, &draft, &releases, now()).unwrap();
        prop_assert!(plan.check().is_ok());
        prop_assert_eq!(check::plan(&plan, &draft, &inventory, &releases), Vec::<String>::new());

        // Whoever the selector is for, those who do not concern the plan may be left out.
        let (narrow, which) = narrowed;
        if !ids.is_empty() {
            let device = &inventory.devices[which.get(&ids)];
            let selector = &mut draft.selector;
            selector.paths = (narrow & 1 > 0).then(|| device.path.clone()).into_iter().collect();
            selector.models = (narrow & 2 > 0).then(|| device.facts.model.clone()).into_iter().collect();
            selector.devices = (narrow & 4 > 0).then(|| which.get(&ids).clone()).into_iter().collect();
        }
        let concerned = Concerned::by(&draft);
        let has = |id: &DeviceId, device: &KnownDevice| concerned.has(id, &device.facts.model, &device.path);
        let unit = |device: &KnownDevice| Some((device.node.clone(), device.facts.labels.unit()?.clone()));
        let wanted = inventory.devices.iter().filter(|(id, device)| has(id, device));
        let units: BTreeSet<_> = wanted.filter_map(|(_, device)| unit(device)).collect();
        let mut fewer = inventory.clone();
        fewer
            .devices
            .retain(|id, device| has(id, device) || unit(device).is_some_and(|unit| units.contains(&unit)));
        let of = |inventory| super::plan(inventory, &draft, &releases, now()).map_err(|error| error.to_string());
        prop_assert_eq!(of(&fewer), of(&inventory));
    }
}

/// The BIOS stays whatever happens, and was made for the new BMC; the NIC is on its own.
#[test]
fn what_a_one_way_release_relies_on_has_no_way_back_either() {
    let components = ["bmc", "bios", "nic"];
    let inventory = servers(&[1], 1, &components);
    let (mut draft, mut releases) = campaign(&components);
    let before: Vec<_> = releases
        .iter()
        .map(|release| {
            let mut before = release.clone();
            before.target = format!("{}.before", release.target);
            before.artifact.sha256 = firmesh_protocol::ids::Sha256::of(before.target.as_bytes());
            before.info.version = "1.0".to_owned();
            before
        })
        .collect();
    draft.previous = before.iter().map(pin).collect();
    draft.constraints.one_way_accepted = true;
    let bios = &mut releases[1].info;
    bios.reversibility = firmesh_protocol::manifest::Reversibility::OneWay;
    let ways_back = |releases: &[Release]| {
        let all: Vec<_> = releases.iter().chain(&before).cloned().collect();
        let plan = planned(&inventory, &draft, &all);
        let ways: Vec<_> = plan.devices().map(|(_, planned)| planned.previous.is_some()).collect();
        ways
    };
    assert_eq!(ways_back(&releases), [true, false, true]);
    releases[1].info.requires = vec![at_least("bmc", "1.1")];
    assert_eq!(ways_back(&releases), [false, false, true]);
    releases[1].info.requires = vec![at_least("bmc", "1.0")];
    assert_eq!(ways_back(&releases), [true, false, true]);
}
