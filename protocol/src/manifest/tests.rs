use std::collections::BTreeMap;

use super::*;
use crate::{
    ids::{ArtifactId, Component, DeviceId, NodeId},
    labels::Labels,
    trust::SecretKey,
    units::BasisPoints,
    window::{Blackout, Window},
};

fn manifest() -> CampaignManifest {
    CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: CampaignId::new("spring").unwrap(),
        sequence: 1,
        expires: WallTime::from_unix_seconds(2_000_000_000),
        releases: vec![ReleaseRef {
            target: "firmware/a.bin".to_owned(),
            sha256: Sha256::of(b"a"),
        }],
        previous: Vec::new(),
        selector: Selector::default(),
        strategy: Strategy::Canary {
            shares: [1_000, 5_000, 10_000]
                .map(|share| BasisPoints::new(share).unwrap())
                .to_vec(),
        },
        caps: Caps::new(1, 10),
        gate: GateRule::shares(BasisPoints::new(9_900).unwrap(), BasisPoints::new(9_000).unwrap()),
        deadlines: Deadlines {
            attempt_s: 600,
            back_s: 60,
        },
        constraints: Constraints::default(),
        priority: Priority::Emergency,
        automatic_rollback: true,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![format!("58{}", "66".repeat(31))],
        plan_sha256: Sha256::of(b"plan"),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: CampaignKind::Update,
    }
}

/// Manifests that were signed before there were rehearsals keep their bytes, and so do those without one.
#[test]
fn a_rehearsal_is_a_last_field_that_others_leave_out() {
    let without = serde_json::to_string(&manifest()).unwrap();
    assert!(
        without.ends_with(&format!("\"plan_sha256\":\"{}\"}}", Sha256::of(b"plan"))),
        "{without}"
    );
    let rehearsed = CampaignManifest {
        rehearsal_sha256: Some(Sha256::of(b"rehearsal")),
        ..manifest()
    };
    let with = serde_json::to_vec(&rehearsed).unwrap();
    assert_eq!(CampaignManifest::from_bytes(&with).unwrap(), rehearsed);
    assert_eq!(rehearsed.rules_sha256(), manifest().rules_sha256());
}

/// Manifests and plans that were signed before there was provisioning keep their bytes.
#[test]
fn a_campaign_for_devices_does_not_say_so() {
    let text = serde_json::to_string(&manifest()).unwrap();
    assert!(!text.contains("\"kind\":\"update\""), "{text}");
    let servers = CampaignManifest {
        kind: CampaignKind::Provisioning,
        ..manifest()
    };
    let text = serde_json::to_string(&servers).unwrap();
    assert!(text.contains("\"kind\":\"provisioning\""), "{text}");
    assert_eq!(CampaignManifest::from_bytes(text.as_bytes()).unwrap(), servers);
    assert_ne!(servers.rules_sha256(), manifest().rules_sha256());
    let names: Vec<_> = ProvisioningPhase::ALL
        .iter()
        .map(|phase| format!("{} {phase}", phase.number()))
        .collect();
    assert_eq!(
        names,
        [
            "1 preflight",
            "2 version analysis",
            "3 updates",
            "4 BIOS configuration",
            "5 final validation"
        ]
    );
}

#[test]
fn a_manifest_survives_its_own_bytes_and_nothing_unknown_slips_in() {
    let bytes = serde_json::to_vec(&manifest()).unwrap();
    assert_eq!(CampaignManifest::from_bytes(&bytes).unwrap(), manifest());
    let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    value["hurry"] = true.into();
    assert!(CampaignManifest::from_bytes(&serde_json::to_vec(&value).unwrap()).is_err());
}

#[test]
fn rules_that_could_never_or_always_start_are_refused() {
    let refused = |change: fn(&mut CampaignManifest)| {
        let mut changed = manifest();
        change(&mut changed);
        assert!(changed.check().is_err());
    };
    refused(|m| m.caps.per_rack = 0);
    refused(|m| {
        m.strategy = Strategy::Canary {
            shares: vec![BasisPoints::new(5_000).unwrap()],
        }
    });
    refused(|m| {
        m.strategy = Strategy::Canary {
            shares: vec![BasisPoints::WHOLE, BasisPoints::WHOLE],
        }
    });
    refused(|m| m.strategy = Strategy::rolling(0));
    for max_concurrent_batches in [0, 17] {
        let mut changed = manifest();
        changed.strategy = Strategy::Rolling {
            batch: 1,
            max_concurrent_batches,
        };
        let refused = changed.check().unwrap_err().to_string();
        assert!(
            refused.contains("strategy.max_concurrent_batches must be 1 to 16"),
            "{refused}"
        );
    }
    refused(|m| m.strategy = Strategy::Growing { first: 0, percent: 200 });
    refused(|m| m.strategy = Strategy::Growing { first: 1, percent: 100 });
    refused(|m| m.strategy = blue_green(&["green"], "lb", "lb"));
    refused(|m| m.strategy = blue_green(&["green", "green"], "lb", "lb"));
    refused(|m| m.strategy = blue_green(&["green", "blue", "red"], "lb", "lb"));
    refused(|m| m.strategy = blue_green(&["green", "blue"], "", "lb"));
    refused(|m| m.strategy = blue_green(&["green", "blue"], "lb", "A hook"));
    refused(|m| m.strategy = regional(&[]));
    refused(|m| m.strategy = regional(&["us", "us"]));
    refused(|m| m.strategy = regional(&["eu/ber/hall2", "us", "eu/ber/hall10", "eu", "eu/fra"]));
    refused(|m| m.gate.rollback = BasisPoints::WHOLE);
    refused(|m| m.permit_keys.clear());
    refused(|m| m.permit_keys = vec!["00".repeat(32)]);
    refused(|m| m.releases[0].target = "firmware/../../etc/passwd".to_owned());
    refused(|m| m.releases[0].target = "campaigns/a.json".to_owned());
    refused(|m| m.schema = "firmesh-campaign/2".to_owned());
    refused(|m| m.constraints.executors = vec!["redfish".to_owned(), "redfish".to_owned()]);
    refused(|m| {
        let at = WallTime::from_unix_seconds(0);
        m.constraints.blackouts = vec![Blackout { from: at, until: at }];
    });
    refused(|m| {
        m.constraints.windows = vec![Window::weekly("UTC", &[crate::window::Weekday::Mon], "22:00", 599)];
    });
}

fn blue_green(order: &[&str], switch: &str, drain: &str) -> Strategy {
    Strategy::BlueGreen {
        by: "pool".parse().unwrap(),
        order: order.iter().map(|pool| pool.parse().unwrap()).collect(),
        switch: switch.to_owned(),
        drain: drain.to_owned(),
    }
}

#[test]
fn a_pool_is_drained_before_it_is_updated_and_traffic_switched_in_between() {
    let strategy = blue_green(&["green", "blue"], "mover", "drainer");
    let acts = |wave| -> Vec<_> {
        let acts = strategy.acts_before(wave).into_iter();
        acts.map(|(act, pool, hook)| format!("{hook}: {} {pool}", act.as_str()))
            .collect()
    };
    assert_eq!(acts(0), ["drainer: drain green"]);
    assert_eq!(acts(1), ["mover: switch green", "drainer: drain blue"]);
    assert!(acts(2).is_empty() && regional(&["us"]).acts_before(1).is_empty());
}

fn regional(order: &[&str]) -> Strategy {
    Strategy::Regional {
        order: order.iter().map(|place| place.parse().unwrap()).collect(),
        shares: vec![BasisPoints::WHOLE],
    }
}

#[test]
fn every_strategy_comes_back_as_it_was_written() {
    for strategy in [
        Strategy::Direct {},
        Strategy::Canary {
            shares: Strategy::canary_shares(),
        },
        regional(&["us/nyc", "eu", "us/nyc2"]),
        blue_green(&["green", "blue"], "lb", "lb"),
        Strategy::rolling(100),
        Strategy::Rolling {
            batch: 100,
            max_concurrent_batches: 3,
        },
        Strategy::Growing { first: 1, percent: 200 },
    ] {
        let written = CampaignManifest { strategy, ..manifest() };
        let bytes = serde_json::to_vec(&written).unwrap();
        assert_eq!(CampaignManifest::from_bytes(&bytes).unwrap(), written);
    }
}

/// Old manifests have one batch after the other, and keep their bytes; those of a node from before there were several at once
/// refuse one that has them.
#[test]
fn batches_follow_one_another_unless_the_signed_bytes_say_otherwise() {
    let text = |strategy: &Strategy| serde_json::to_string(strategy).unwrap();
    let old = r#"{"kind":"rolling","batch":100}"#;
    assert_eq!(serde_json::from_str::<Strategy>(old).unwrap(), Strategy::rolling(100));
    assert_eq!(text(&Strategy::rolling(100)), old);
    assert_eq!(Strategy::rolling(100).waves_at_once(), 1);
    let three = Strategy::Rolling {
        batch: 100,
        max_concurrent_batches: 3,
    };
    let written = r#"{"kind":"rolling","batch":100,"max_concurrent_batches":3}"#;
    assert_eq!((text(&three).as_str(), three.waves_at_once()), (written, 3));
}

/// What a permit rests on: of one batch after the other, the one before; of three at once, the three up to the third before.
#[test]
fn a_permit_rests_on_as_many_gates_as_batches_are_at_once() {
    use crate::report::PermitKind::{Rollback, Update};
    let one = Strategy::rolling(1);
    let three = Strategy::Rolling {
        batch: 1,
        max_concurrent_batches: 3,
    };
    for strategy in [&one, &Strategy::Direct {}] {
        assert_eq!(Update.gates(0, strategy), 0..0);
        assert_eq!(Update.gates(1, strategy), 0..1);
        assert_eq!(Update.gates(7, strategy), 6..7);
    }
    for first in 0..3 {
        assert!(Update.gates(first, &three).is_empty());
    }
    assert_eq!(Update.gates(3, &three), 0..1);
    assert_eq!(Update.gates(4, &three), 0..2);
    assert_eq!(Update.gates(5, &three), 0..3);
    assert_eq!(Update.gates(6, &three), 1..4);
    assert_eq!(Update.gates(u32::MAX, &three).len(), 3);
    assert_eq!(Rollback.gates(5, &three), 5..6);
    // Whoever looks at these, and at those that they looked at, has seen all up to there.
    let mut seen = std::collections::BTreeSet::new();
    let mut next = vec![20];
    while let Some(wave) = next.pop() {
        next.extend(Update.gates(wave, &three).filter(|gate| seen.insert(*gate)));
    }
    assert_eq!(seen, (0..=17).collect());
}

/// Releases that were signed before there was provenance keep their bytes; with it, the bytes are these.
#[test]
fn a_release_has_the_bytes_that_were_signed() {
    let digest = |text: &str| Sha256::of(text.as_bytes());
    let mut info = ReleaseInfo {
        schema: RELEASE_SCHEMA.to_owned(),
        blake3: ArtifactId::from([7; 32]),
        vendor: "Acme".to_owned(),
        models: vec!["R1".to_owned()],
        component: Component::new("bmc").unwrap(),
        version: "1.1.0".to_owned(),
        security_epoch: 1,
        from_versions: Vec::new(),
        reversibility: Reversibility::Reflash,
        provenance: None,
        version_scheme: None,
        min_from: None,
        requires: Vec::new(),
        conflicts: Vec::new(),
    };
    let golden = include_str!("../../tests/golden/release.json").trim_end();
    assert_eq!(serde_json::to_string(&info).unwrap(), golden);
    info.provenance = Some(Provenance {
        verdict: FileRef {
            sha256: digest("verdict"),
            length: 7,
        },
        sbom: Some(FileRef {
            sha256: digest("sbom"),
            length: 4,
        }),
    });
    let golden = include_str!("../../tests/golden/release_provenance.json").trim_end();
    assert_eq!(serde_json::to_string(&info).unwrap(), golden);
    assert_eq!(serde_json::from_str::<ReleaseInfo>(golden).unwrap(), info);
}

#[test]
fn a_plan_naming_a_device_twice_is_refused() {
    let planned = PlannedDevice {
        device: DeviceId::new("d1").unwrap(),
        node: NodeId::new("n1").unwrap(),
        rack: "eu/s1/r1".parse().unwrap(),
        release: "firmware/a.bin".to_owned(),
        from_version: "1".to_owned(),
        previous: None,
        labels: Labels::default(),
        hops: Vec::new(),
        after: None,
    };
    let plan = Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign: CampaignId::new("spring").unwrap(),
        waves: vec![vec![planned.clone()], vec![planned]],
        nodes: [(NodeId::new("n1").unwrap(), SecretKey::from_seed(&[1; 32]).public())].into(),
        held: Vec::new(),
        domains: BTreeMap::new(),
        servers: Vec::new(),
    };
    let refused = Plan::from_bytes(&plan.to_bytes()).unwrap_err();
    assert!(refused.to_string().contains("twice"), "{refused}");
    let keyless = Plan {
        nodes: BTreeMap::new(),
        waves: plan.waves[..1].to_vec(),
        ..plan
    };
    let refused = Plan::from_bytes(&keyless.to_bytes()).unwrap_err();
    assert!(refused.to_string().contains("key of n1"), "{refused}");
}

/// Manifests without retries keep their bytes; with them, only what may be bad luck is begun again.
#[test]
fn retries_are_left_out_unless_said_and_never_follow_what_nobody_knows() {
    use crate::report::{AttemptState, FailureClass};
    let without = serde_json::to_string(&manifest()).unwrap();
    assert!(!without.contains("retries"), "{without}");
    let with = |rules: &str, budget: &str| {
        let text = without.replace(
            "\"permit_keys\"",
            &format!("\"retries\":{{\"rules\":{rules}{budget}}},\"permit_keys\""),
        );
        CampaignManifest::from_bytes(text.as_bytes()).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error} {}", source.unwrap_or_default())
        })
    };
    let manifest = with(
        r#"[{"class":"install"},{"class":"boot","times":2,"pause_s":50000}]"#,
        "",
    )
    .unwrap();
    let retries = manifest.retries.clone().unwrap();
    assert_eq!((retries.rules[0].times, retries.rules[0].pause_s), (1, 600));
    assert_eq!((manifest.retry_budget(100), manifest.retry_budget(3)), (5, 1));
    let pause = |state, class, ended| {
        let pause = manifest.retry_pause(true, state, Some(class), ended);
        pause.map(|pause| pause.as_secs())
    };
    use AttemptState::{Failed, Quarantined, RolledBack, Success};
    use FailureClass::{Boot, Health, Install, Timeout};
    assert_eq!(pause(Failed, Install, 1), Some(600));
    assert_eq!(pause(Failed, Install, 2), None);
    assert_eq!(pause(RolledBack, Boot, 1), Some(50_000));
    assert_eq!(pause(RolledBack, Boot, 2), Some(86_400), "a day at most");
    assert_eq!(pause(RolledBack, Boot, 3), None);
    for (state, class) in [(Quarantined, Install), (Success, Health), (Failed, Timeout)] {
        assert_eq!(pause(state, class, 1), None, "{state} {class}");
    }
    assert_eq!(
        manifest.retry_pause(false, Failed, Some(Install), 1),
        None,
        "no way back"
    );
    assert_eq!(manifest.retry_pause(true, Failed, None, 1), None);
    for (rules, budget, why) in [
        ("[]", "", "at least one rule"),
        (r#"[{"class":"boot"},{"class":"boot"}]"#, "", "one for each class"),
        (r#"[{"class":"preflight"}]"#, "", "what was refused is refused again"),
        (r#"[{"class":"health"}]"#, "", "that is its verdict"),
        (r#"[{"class":"unreachable"}]"#, "", "nobody knows what the device runs"),
        (r#"[{"class":"quarantine"}]"#, "", "a person looks at it"),
        (r#"[{"class":"boot","times":0}]"#, "", "allow 0 further starts"),
        (r#"[{"class":"boot","times":6}]"#, "", "allow 6 further starts"),
        (r#"[{"class":"boot","pause_s":86401}]"#, "", "at most 86400"),
        (r#"[{"class":"boot"}]"#, r#","budget":{"count":0}"#, "leave them out"),
        (
            r#"[{"class":"boot"}]"#,
            r#","budget":{"share":10001}"#,
            "more than the whole",
        ),
        (r#"[{"class":"boot","often":1}]"#, "", "unknown field"),
    ] {
        let refused = with(rules, budget).unwrap_err();
        assert!(refused.contains(why), "{rules} {budget}: {refused}");
    }
}

/// Manifests and plans without hops keep their bytes; a way is bounded, goes over each release once, and over named ones only.
#[test]
fn ways_are_left_out_unless_there_are_some_and_are_of_named_releases() {
    let mut manifest = manifest();
    assert!(!serde_json::to_string(&manifest).unwrap().contains("hops"));
    let pin = |target: &str| ReleaseRef {
        target: target.to_owned(),
        sha256: Sha256::of(target.as_bytes()),
    };
    let release = manifest.releases[0].target.clone();
    let node = NodeId::new("n1").unwrap();
    let planned = |hops: &[String]| PlannedDevice {
        device: DeviceId::new("d1").unwrap(),
        node: node.clone(),
        rack: "eu/s1/r1".parse().unwrap(),
        release: release.clone(),
        from_version: "1".to_owned(),
        hops: hops.to_vec(),
        previous: None,
        labels: Labels::default(),
        after: None,
    };
    let plan = |planned: PlannedDevice| Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign: CampaignId::new("spring").unwrap(),
        waves: vec![vec![planned]],
        nodes: [(node.clone(), SecretKey::from_seed(&[1; 32]).public())].into(),
        held: Vec::new(),
        domains: BTreeMap::new(),
        servers: Vec::new(),
    };
    let direct = plan(planned(&[]));
    assert!(!String::from_utf8(direct.to_bytes()).unwrap().contains("hops"));
    let hops: Vec<_> = (0..9).map(|number| format!("firmware/hop{number}")).collect();
    let over = planned(&hops[..2]);
    assert_eq!(
        (over.steps(), manifest.worst_case(&over).as_secs()),
        (3, 3 * u64::from(manifest.deadlines.attempt_s))
    );
    let way: Vec<_> = over.way().cloned().collect();
    assert_eq!(way, [hops[0].clone(), hops[1].clone(), release.clone()]);
    let read = |planned: PlannedDevice| Plan::from_bytes(&plan(planned).to_bytes());
    assert_eq!(read(planned(&hops[..8])).unwrap().waves[0][0].hops, hops[..8]);
    for odd in [
        &hops[..],
        &[hops[0].clone(), hops[0].clone()],
        std::slice::from_ref(&release),
    ] {
        let refused = read(planned(odd)).unwrap_err();
        assert!(refused.to_string().contains("or name a release twice"), "{refused}");
    }
    // A release of the campaign, or one to go back to, is none to go over.
    manifest.previous = vec![pin(&hops[0])];
    manifest.hops = vec![pin(&hops[1])];
    assert_eq!(manifest.unnamed(&over), Some(&hops[0]));
    manifest.hops.push(pin(&hops[0]));
    assert_eq!(manifest.unnamed(&over), None);
    assert_eq!(
        CampaignManifest::from_bytes(&serde_json::to_vec(&manifest).unwrap()).unwrap(),
        manifest
    );
    manifest.hops[0].target = "firmware/../../etc/passwd".to_owned();
    assert!(manifest.check().is_err());
}
