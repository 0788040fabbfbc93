//! Plans of small fleets, and the independent checker's opinion on random ones.

use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, NodeId, Sha256, TopologyPath},
    labels::Labels,
    manifest::{
        Artifact, Caps, Constraints, Deadlines, GateRule, MANIFEST_SCHEMA, RELEASE_SCHEMA, ReleaseInfo, ReleaseRef,
        Reversibility, Selector,
    },
    report::DeviceFacts,
    trust::SecretKey,
    units::BasisPoints,
};
use proptest::prelude::{any, prop, prop_assert_eq, proptest};

use super::*;
use crate::check;

#[test]
fn every_device_is_planned_or_held_with_its_reason() {
    let mut inventory = fleet(&[4, 4, 4], 2);
    let mut names = inventory.devices.keys().cloned().collect::<Vec<_>>().into_iter();
    let mut change = |edit: fn(&mut KnownDevice)| {
        let id = names.next().unwrap();
        edit(inventory.devices.get_mut(&id).unwrap());
        id
    };
    let expected = [
        (
            change(|d| d.facts.version = Some("1.1".to_owned())),
            "current: it runs 1.1",
        ),
        (
            change(|d| d.facts.model = "R9".to_owned()),
            "no release of this campaign is for the bmc of Acme R9",
        ),
        (
            change(|d| d.facts.version = Some("0.3".to_owned())),
            "it runs 0.3, from which 1.1 may not be installed",
        ),
        (change(|d| d.facts.version = None), "deferred: it does not answer"),
        (change(|d| d.node_reachable = false), "deferred: its node"),
        (change(|d| d.quarantined = true), "quarantined"),
    ];
    let plan = plan(&inventory, &draft(), &releases(), now()).unwrap();
    assert_eq!(plan.devices().count() + plan.held.len(), inventory.devices.len());
    assert_eq!(plan.held.len(), expected.len());
    for (id, reason) in expected {
        let held = plan.held.iter().find(|held| held.device == id).unwrap();
        assert!(held.reason.starts_with(reason), "{id}: {}", held.reason);
    }
    assert!(
        plan.devices()
            .all(|(_, planned)| planned.previous.as_deref() == Some("firmware/old.bin"))
    );
}

#[test]
fn waves_take_their_share_of_every_rack() {
    let plan = plan(&fleet(&[10, 10, 20], 1), &draft(), &releases(), now()).unwrap();
    let sizes: Vec<_> = plan.waves.iter().map(Vec::len).collect();
    assert_eq!(sizes, [4, 16, 20]);
    let first: Vec<_> = plan.waves[0].iter().map(|planned| planned.rack.to_string()).collect();
    assert_eq!(first.iter().filter(|rack| rack.ends_with("rack2")).count(), 2);
    assert_eq!(first.iter().filter(|rack| rack.ends_with("rack0")).count(), 1);
}

#[test]
fn a_regional_campaign_goes_from_place_to_place_and_holds_who_stands_elsewhere() {
    let mut inventory = fleet(&[2, 2, 2], 1);
    for device in inventory
        .devices
        .values_mut()
        .filter(|device| device.node.as_str().starts_with("r1"))
    {
        device.path = format!("us/nyc1/rack1/{}", device.node).parse().unwrap();
    }
    let mut draft = draft();
    let places = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    draft.strategy = Strategy::Regional {
        order: places(&["us", "eu/fra1/rack0"]),
        shares: [5_000, 10_000].map(|share| BasisPoints::new(share).unwrap()).to_vec(),
    };
    let plan = plan(&inventory, &draft, &releases(), now()).unwrap();
    let racks = plan
        .waves
        .iter()
        .map(|wave| wave.iter().map(|planned| planned.rack.to_string()).collect::<Vec<_>>());
    let (us, eu) = (vec!["us/nyc1/rack1".to_owned()], vec!["eu/fra1/rack0".to_owned()]);
    assert_eq!(racks.collect::<Vec<_>>(), [us.clone(), us, eu.clone(), eu]);
    assert_eq!(plan.held.len(), 2);
    assert!(
        plan.held
            .iter()
            .all(|held| held.reason.contains("stands at eu/fra1/rack2/")),
        "{:?}",
        plan.held
    );
    assert_eq!(
        check::plan(&plan, &draft, &inventory, &releases()),
        Vec::<String>::new()
    );
}

#[test]
fn batches_are_of_one_size_or_grow() {
    let sizes = |strategy: Strategy| {
        let draft = CampaignManifest { strategy, ..draft() };
        let plan = plan(&fleet(&[10, 10, 20], 1), &draft, &releases(), now()).unwrap();
        plan.waves.iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(sizes(Strategy::Direct {}), [40]);
    assert_eq!(sizes(Strategy::rolling(15)), [15, 15, 10]);
    assert_eq!(sizes(Strategy::Growing { first: 2, percent: 250 }), [2, 5, 13, 20]);
}

#[test]
fn a_strategy_of_too_many_waves_says_what_to_do() {
    let draft = CampaignManifest {
        strategy: Strategy::rolling(1),
        ..draft()
    };
    let refused = plan(&fleet(&[1_001], 1), &draft, &releases(), now()).unwrap_err();
    assert!(refused.to_string().contains("make its batches larger"), "{refused}");
}

/// A plan that follows another strategy than it says is found out by the checker, whatever the two are.
#[test]
fn the_checker_knows_the_strategies_apart() {
    let order = || vec!["eu/fra1/rack1".parse().unwrap(), "eu/fra1/rack0".parse().unwrap()];
    let whole = || vec![BasisPoints::WHOLE];
    let strategies = [
        Strategy::Direct {},
        Strategy::Canary {
            shares: [1_000, 10_000].map(|share| BasisPoints::new(share).unwrap()).to_vec(),
        },
        Strategy::Regional {
            order: order(),
            shares: whole(),
        },
        Strategy::Regional {
            order: order().into_iter().rev().collect(),
            shares: whole(),
        },
        Strategy::rolling(4),
        Strategy::Growing { first: 1, percent: 200 },
    ];
    let inventory = fleet(&[8, 8], 1);
    for planned in &strategies {
        for said in &strategies {
            let [by, signed] = [planned, said].map(|strategy| CampaignManifest {
                strategy: strategy.clone(),
                ..draft()
            });
            let plan = plan(&inventory, &by, &releases(), now()).unwrap();
            let wrong = check::plan(&plan, &signed, &inventory, &releases());
            assert_eq!(wrong.is_empty(), planned == said, "{planned:?} as {said:?}: {wrong:?}");
        }
    }
}

#[test]
fn a_way_back_is_not_promised_where_hardware_or_epoch_refuse_it() {
    let planned = |edit: fn(&mut Vec<Release>)| {
        let (mut draft, mut releases) = (draft(), releases());
        draft.constraints.one_way_accepted = true;
        edit(&mut releases);
        let plan = plan(&fleet(&[1], 1), &draft, &releases, now()).unwrap();
        plan.waves[0][0].previous.clone()
    };
    assert!(planned(|_| ()).is_some());
    assert_eq!(planned(|r| r[0].info.reversibility = Reversibility::OneWay), None);
    assert_eq!(planned(|r| r[0].info.security_epoch = 2), None);
}

#[test]
fn what_the_draft_does_not_allow_is_held() {
    let reason = |edit: fn(&mut CampaignManifest, &mut Vec<Release>)| {
        let (mut draft, mut releases) = (draft(), releases());
        edit(&mut draft, &mut releases);
        let plan = plan(&fleet(&[1], 1), &draft, &releases, now()).unwrap();
        plan.held[0].reason.clone()
    };
    let one_way = reason(|_, releases| releases[0].info.reversibility = Reversibility::OneWay);
    assert!(one_way.contains("is one-way"), "{one_way}");
    let executor = reason(|draft, _| draft.constraints.executors = vec!["fwupd".to_owned()]);
    assert!(
        executor.contains("is not one of those the campaign allows: fwupd"),
        "{executor}"
    );
}

#[test]
fn drafts_that_cannot_be_planned_say_what_to_do() {
    let refused = |edit: fn(&mut CampaignManifest, &mut Vec<Release>)| {
        let (mut draft, mut releases) = (draft(), releases());
        edit(&mut draft, &mut releases);
        plan(&fleet(&[1], 1), &draft, &releases, now()).unwrap_err()
    };
    assert!(matches!(refused(|d, _| d.expires = now()), PlanError::Expired { .. }));
    assert!(matches!(
        refused(|d, _| d.releases[0].sha256 = Sha256::of(b"?")),
        PlanError::UnknownRelease { .. }
    ));
    assert!(matches!(refused(|d, _| d.caps.total = 0), PlanError::Draft(_)));
    let twice = refused(|d, r| {
        let mut again = r[0].clone();
        again.target = "firmware/again.bin".to_owned();
        d.releases.push(ReleaseRef {
            target: again.target.clone(),
            sha256: again.artifact.sha256,
        });
        r.push(again);
    });
    assert!(matches!(twice, PlanError::TwoReleases { .. }));
}

#[test]
fn what_an_operator_has_taken_out_is_held_and_the_checker_would_see_it_planned() {
    let mut inventory = fleet(&[2], 1);
    let planned = plan(&inventory, &draft(), &releases(), now()).unwrap();
    let ids: Vec<_> = inventory.devices.keys().cloned().collect();
    inventory.excluded.insert(ids[0].clone(), crate::Exclusion::Disabled);
    inventory.excluded.insert(ids[1].clone(), crate::Exclusion::Removed);
    let wrong = check::plan(&planned, &draft(), &inventory, &releases());
    assert!(
        wrong.iter().all(|line| line.contains("taken it out")) && wrong.len() == 2,
        "{wrong:?}"
    );
    let held = plan(&inventory, &draft(), &releases(), now()).unwrap();
    assert!(held.waves.is_empty());
    let reasons: Vec<_> = held
        .held
        .iter()
        .map(|held| held.reason.split(':').next().unwrap())
        .collect();
    assert_eq!(reasons, ["disabled", "removed"]);
}

#[test]
fn a_device_named_but_never_seen_is_held() {
    let mut draft = draft();
    draft.selector.devices = vec![DeviceId::new("ghost").unwrap()];
    let plan = plan(&fleet(&[1], 1), &draft, &releases(), now()).unwrap();
    assert!(plan.waves.is_empty());
    assert!(plan.held[0].reason.starts_with("unknown"));
}

proptest! {
    #[test]
    fn the_checker_accepts_every_plan_and_the_bytes_repeat(
        racks in prop::collection::vec(0_usize..12, 1..8),
        per_node in 1_usize..4,
        strategy in strategy(),
        odd in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..5), 0..10),
    ) {
        let mut inventory = fleet(&racks, per_node);
        let ids: Vec<_> = inventory.devices.keys().cloned().collect();
        for (index, kind) in odd.into_iter().filter(|_| !ids.is_empty()) {
            let device = inventory.devices.get_mut(index.get(&ids)).unwrap();
            match kind {
                0 => device.facts.version = None,
                1 => device.facts.version = Some("1.1".to_owned()),
                2 => device.facts.model = "R9".to_owned(),
                3 => device.node_reachable = false,
                _ => device.quarantined = true,
            }
        }
        let mut draft = draft();
        draft.strategy = strategy;
        let first = plan(&inventory, &draft, &releases(), now()).unwrap();
        prop_assert_eq!(check::plan(&first, &draft, &inventory, &releases()), Vec::<String>::new());
        let again = plan(&inventory.clone(), &draft, &releases(), now()).unwrap();
        prop_assert_eq!(first.to_bytes(), again.to_bytes());
    }
}

/// Any strategy that fits [`fleet`]; not every place of the fleet need be in it.
fn strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    use proptest::strategy::Strategy as _;
    let shares = || {
        prop::collection::btree_set(1_u32..10_000, 0..6).prop_map(|shares| {
            let shares = shares.into_iter().chain([10_000]);
            shares.map(|share| BasisPoints::new(share).unwrap()).collect::<Vec<_>>()
        })
    };
    let order = prop::sample::subsequence((0..8).collect::<Vec<u32>>(), 1..=8)
        .prop_shuffle()
        .prop_map(|racks| {
            let paths = racks
                .into_iter()
                .map(|rack| format!("eu/fra1/rack{rack}").parse().unwrap());
            paths.collect::<Vec<TopologyPath>>()
        });
    prop::strategy::Union::new([
        prop::strategy::Just(Strategy::Direct {}).boxed(),
        shares().prop_map(|shares| Strategy::Canary { shares }).boxed(),
        (order, shares())
            .prop_map(|(order, shares)| Strategy::Regional { order, shares })
            .boxed(),
        (1_u32..50, 1_u32..5)
            .prop_map(|(batch, max_concurrent_batches)| Strategy::Rolling {
                batch,
                max_concurrent_batches,
            })
            .boxed(),
        (1_u32..20, 101_u32..1_000)
            .prop_map(|(first, percent)| Strategy::Growing { first, percent })
            .boxed(),
    ])
}

pub(crate) fn now() -> WallTime {
    WallTime::from_unix_seconds(1_800_000_000)
}

fn release(name: &str, version: &str) -> Release {
    Release {
        target: format!("firmware/{name}.bin"),
        artifact: Artifact {
            id: ArtifactId::of(name.as_bytes()),
            sha256: Sha256::of(name.as_bytes()),
            length: 9,
        },
        info: ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: ArtifactId::of(name.as_bytes()),
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned()],
            component: Component::new("bmc").unwrap(),
            version: version.to_owned(),
            security_epoch: 1,
            from_versions: Vec::new(),
            reversibility: Reversibility::Reflash,
            provenance: None,
            version_scheme: None,
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
        },
    }
}

pub(super) fn releases() -> Vec<Release> {
    let mut new = release("new", "1.1");
    new.info.from_versions = vec!["1.0".to_owned()];
    vec![new, release("old", "1.0")]
}

pub(super) fn draft() -> CampaignManifest {
    let [new, old] = ["new", "old"].map(|name| ReleaseRef {
        target: format!("firmware/{name}.bin"),
        sha256: Sha256::of(name.as_bytes()),
    });
    CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: CampaignId::new("spring").unwrap(),
        sequence: 1,
        expires: WallTime::from_unix_seconds(1_900_000_000),
        releases: vec![new],
        previous: vec![old],
        selector: Selector::default(),
        strategy: Strategy::Canary {
            shares: [1_000, 5_000, 10_000].map(|s| BasisPoints::new(s).unwrap()).to_vec(),
        },
        caps: Caps::new(1, 10),
        gate: GateRule::shares(BasisPoints::WHOLE, BasisPoints::WHOLE),
        deadlines: Deadlines {
            attempt_s: 600,
            back_s: 60,
        },
        constraints: Constraints::default(),
        priority: firmesh_protocol::manifest::Priority::default(),
        automatic_rollback: true,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![format!("58{}", "66".repeat(31))],
        plan_sha256: Sha256::of(b""),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: firmesh_protocol::manifest::CampaignKind::Update,
    }
}

/// Racks of so many nodes each, every node with so many devices.
pub(super) fn fleet(nodes_of_racks: &[usize], devices_per_node: usize) -> Inventory {
    let mut inventory = Inventory::default();
    for (rack, nodes) in nodes_of_racks.iter().enumerate() {
        for (node, device) in (0..*nodes).flat_map(|node| (0..devices_per_node).map(move |device| (node, device))) {
            let id = DeviceId::new(format!("r{rack}n{node}d{device}")).unwrap();
            inventory.devices.insert(
                id.clone(),
                KnownDevice {
                    node_key: SecretKey::from_seed(Sha256::of(format!("r{rack}n{node}").as_bytes()).as_bytes())
                        .public(),
                    facts: DeviceFacts {
                        device: id,
                        vendor: "Acme".to_owned(),
                        model: "R1".to_owned(),
                        component: Component::new("bmc").unwrap(),
                        version: Some("1.0".to_owned()),
                        executor: "redfish".to_owned(),
                        labels: Labels::default(),
                    },
                    node: NodeId::new(format!("r{rack}n{node}")).unwrap(),
                    path: format!("eu/fra1/rack{rack}/n{node}").parse().unwrap(),
                    node_reachable: true,
                    quarantined: false,
                    held_by_operator: None,
                },
            );
        }
    }
    inventory
}
