//! Plans of small fleets, and the independent checker's opinion on random ones.

use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, NodeId, Sha256},
    manifest::{Artifact, Caps, Constraints, Deadlines, GateRule, MANIFEST_SCHEMA, RELEASE_SCHEMA, ReleaseInfo},
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
        shares in prop::collection::btree_set(1_u32..10_000, 0..6),
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
        draft.strategy = Strategy::Canary {
            shares: shares.into_iter().chain([10_000]).map(|share| BasisPoints::new(share).unwrap()).collect(),
        };
        let first = plan(&inventory, &draft, &releases(), now()).unwrap();
        prop_assert_eq!(check::plan(&first, &draft, &inventory, &releases()), Vec::<String>::new());
        let again = plan(&inventory.clone(), &draft, &releases(), now()).unwrap();
        prop_assert_eq!(first.to_bytes(), again.to_bytes());
    }
}

fn now() -> WallTime {
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
        },
    }
}

fn releases() -> Vec<Release> {
    let mut new = release("new", "1.1");
    new.info.from_versions = vec!["1.0".to_owned()];
    vec![new, release("old", "1.0")]
}

fn draft() -> CampaignManifest {
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
        caps: Caps { per_rack: 1, total: 10 },
        gate: GateRule {
            advance: BasisPoints::WHOLE,
            rollback: BasisPoints::WHOLE,
            sample_min: 1,
            soak_s: 0,
        },
        deadlines: Deadlines {
            attempt_s: 600,
            back_s: 60,
        },
        constraints: Constraints::default(),
        priority: firmesh_protocol::manifest::Priority::default(),
        automatic_rollback: true,
        permit_keys: vec![format!("58{}", "66".repeat(31))],
        plan_sha256: Sha256::of(b""),
        rehearsal_sha256: None,
    }
}

/// Racks of so many nodes each, every node with so many devices.
fn fleet(nodes_of_racks: &[usize], devices_per_node: usize) -> Inventory {
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
                    },
                    node: NodeId::new(format!("r{rack}n{node}")).unwrap(),
                    path: format!("eu/fra1/rack{rack}/n{node}").parse().unwrap(),
                    node_reachable: true,
                    quarantined: false,
                },
            );
        }
    }
    inventory
}
