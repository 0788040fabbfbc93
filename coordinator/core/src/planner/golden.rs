//! Every strategy's plan of one small fleet, as a person would draw it: `golden.txt`. A plan that changes shows there.

use firmesh_protocol::{
    manifest::{Analysis, AtMost, CampaignManifest, Dimension, DomainCap, Plan, PlannedComponent, Strategy},
    report::PermitKind,
    units::BasisPoints,
};

use crate::check;

use super::{
    hop_tests::hops_scene,
    plan,
    server_tests::provisioning_scene,
    tests::{draft, fleet, now, releases},
    unit_tests::{at_least, campaign, labels, servers},
};

/// Two racks in Frankfurt, one in New York; among the first rack's devices one of everything that is left out.
fn scene(strategy: Strategy) -> Plan {
    let mut inventory = fleet(&[6, 4, 4], 1);
    for (id, device) in &mut inventory.devices {
        match id.as_str() {
            "r0n0d0" => device.facts.version = Some("1.1".to_owned()),
            "r0n1d0" => device.node_reachable = false,
            "r0n2d0" => device.quarantined = true,
            name if name.starts_with("r2") => {
                device.path = format!("us/nyc1/rack2/{}", device.node).parse().unwrap();
            }
            _ => {}
        }
    }
    let draft = CampaignManifest { strategy, ..draft() };
    plan(&inventory, &draft, &releases(), now()).unwrap()
}

fn drawn(title: &str, plan: &Plan) -> String {
    let mut lines = vec![title.to_owned()];
    for (number, wave) in plan.waves.iter().enumerate() {
        let mut racks = std::collections::BTreeMap::<String, Vec<&str>>::new();
        for planned in wave {
            racks
                .entry(planned.rack.to_string())
                .or_default()
                .push(planned.device.as_str());
        }
        let racks: Vec<_> = racks
            .iter()
            .map(|(rack, devices)| format!("{rack}: {}", devices.join(" ")))
            .collect();
        lines.push(format!("  wave {}  {}", number + 1, racks.join("  |  ")));
    }
    for (by, shares) in &plan.domains {
        for (domain, share) in shares {
            lines.push(format!(
                "  {by} {domain}: at most {} of {}",
                share.at_most, share.devices
            ));
        }
    }
    for (_, planned) in plan.devices().filter(|(_, planned)| !planned.hops.is_empty()) {
        let way: Vec<_> = planned.way().map(String::as_str).collect();
        lines.push(format!(
            "  way     {}: {} -> {}; back to {}",
            planned.device,
            planned.from_version,
            way.join(" -> "),
            planned.previous.as_deref().unwrap_or("nothing")
        ));
    }
    for server in &plan.servers {
        let of_component = |one: &PlannedComponent| match &one.analysis {
            Analysis::Current {} => format!("{} current", one.component),
            Analysis::Due { over } => [&[one.component.to_string()], &over[..], std::slice::from_ref(&one.to)]
                .concat()
                .join(" "),
            Analysis::Unfit { .. } => format!("{} unfit", one.component),
        };
        let components: Vec<_> = server.components.iter().map(of_component).collect();
        lines.push(format!("  server  {}: {}", server.server, components.join(", ")));
        let held = server.held.iter();
        lines.extend(held.map(|held| format!("          held in {}: {}", held.phase, held.reason)));
    }
    let held = plan
        .held
        .iter()
        .map(|held| format!("  held    {}: {}", held.device, held.reason));
    lines.extend(held);
    lines.push(String::new());
    lines.join("\n")
}

/// The waves of a strategy that has several open at once, with the waves whose gates each rests on.
fn drawn_with_gates(title: &str, strategy: &Strategy) -> String {
    let plan = scene(strategy.clone());
    let mut lines = vec![drawn(title, &plan).trim_end().to_owned()];
    for number in 0..u32::try_from(plan.waves.len()).unwrap() {
        let gates: Vec<_> = PermitKind::Update
            .gates(number, strategy)
            .map(|gate| (gate + 1).to_string())
            .collect();
        lines.push(match gates.is_empty() {
            true => format!("  wave {} rests on no gate", number + 1),
            false => format!("  wave {} rests on the gates of {}", number + 1, gates.join(", ")),
        });
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Two racks of which every other device is green; one is red, and one nobody has given a pool.
fn pools_scene() -> Plan {
    let mut inventory = fleet(&[4, 4], 1);
    for (number, (id, device)) in inventory.devices.iter_mut().enumerate() {
        let pool = match id.as_str() {
            "r0n3d0" => "red",
            "r1n3d0" => continue,
            _ if number % 2 == 0 => "green",
            _ => "blue",
        };
        device.facts.labels = labels(&[("pool", pool)]);
    }
    let draft = CampaignManifest {
        strategy: Strategy::BlueGreen {
            by: "pool".parse().unwrap(),
            order: ["green", "blue"].map(|pool| pool.parse().unwrap()).to_vec(),
            switch: "balancer".to_owned(),
            drain: "balancer".to_owned(),
        },
        ..draft()
    };
    let plan = plan(&inventory, &draft, &releases(), now()).unwrap();
    assert_eq!(
        check::plan(&plan, &draft, &inventory, &releases()),
        Vec::<String>::new()
    );
    plan
}

/// Servers of four components in two racks. The first one's NIC is an operator's, so that its BIOS does not get what it
/// requires; the second one's BMC is current; of the third, one of the SSDs does not answer.
fn servers_scene(strategy: Strategy) -> Plan {
    let components = ["nic", "bios", "bmc", "ssd"];
    let mut inventory = servers(&[2, 1], 1, &["nic", "bios", "bmc", "ssd", "ssd.2"]);
    let (mut draft, mut releases) = campaign(&components);
    draft.strategy = strategy;
    draft.caps.domains = vec![DomainCap {
        by: Dimension::Rack,
        at_most: AtMost::BelowPercent(25),
    }];
    releases[1].info.requires = vec![at_least("nic", "1.1"), at_least("bmc", "1.0")];
    for (id, device) in &mut inventory.devices {
        match id.as_str() {
            "r0n0s0-nic" => device.held_by_operator = Some("pinned until the switches are new".to_owned()),
            "r0n1s0-bmc" => device.facts.version = Some("1.1".to_owned()),
            "r1n0s0-ssd.2" => device.facts.version = None,
            _ => {}
        }
    }
    plan(&inventory, &draft, &releases, now()).unwrap()
}

/// Feeds, a cluster and a site, some too small for the share that may be in flight; one device of which nobody knows.
fn domains_scene() -> Plan {
    let mut inventory = fleet(&[6, 4], 1);
    for (number, (id, device)) in inventory.devices.iter_mut().enumerate() {
        let feed = if number % 3 == 0 { "a" } else { "b" };
        if id.as_str() != "r1n3d0" {
            device.facts.labels = labels(&[("power_feed", feed), ("cluster", "k3")]);
        }
    }
    let mut draft = CampaignManifest {
        strategy: Strategy::Direct {},
        ..draft()
    };
    let cap = |by: &str, at_most| DomainCap {
        by: by.parse().unwrap(),
        at_most,
    };
    draft.caps.domains = vec![
        cap("power_feed", AtMost::BelowPercent(1)),
        cap("cluster", AtMost::BelowPercent(50)),
        cap("site", AtMost::Count(3)),
    ];
    plan(&inventory, &draft, &releases(), now()).unwrap()
}

#[test]
fn plans_are_as_they_are_drawn() {
    let shares = |shares: &[u32]| shares.iter().map(|share| BasisPoints::new(*share).unwrap()).collect();
    let order = || ["us", "eu/fra1"].map(|place| place.parse().unwrap()).to_vec();
    let drawn = [
        ("direct", Strategy::Direct {}),
        (
            "canary 10, 30, 50, 100 %",
            Strategy::Canary {
                shares: shares(&[1_000, 3_000, 5_000, 10_000]),
            },
        ),
        (
            "regional us, eu/fra1",
            Strategy::Regional {
                order: order(),
                shares: shares(&[10_000]),
            },
        ),
        (
            "regional us, eu/fra1, each 25, 100 %",
            Strategy::Regional {
                order: order(),
                shares: shares(&[2_500, 10_000]),
            },
        ),
        (
            "regional us only",
            Strategy::Regional {
                order: order()[..1].to_vec(),
                shares: shares(&[10_000]),
            },
        ),
        ("rolling 4", Strategy::rolling(4)),
        ("growing 1, doubling", Strategy::Growing { first: 1, percent: 200 }),
    ]
    .map(|(title, strategy)| drawn(title, &scene(strategy)))
    .into_iter()
    .chain([
        drawn_with_gates(
            "rolling 2, 3 at once",
            &Strategy::Rolling {
                batch: 2,
                max_concurrent_batches: 3,
            },
        ),
        drawn("blue-green, green first", &pools_scene()),
        drawn("direct, capped by power feed, cluster and site", &domains_scene()),
        drawn("servers, rolling 4", &servers_scene(Strategy::rolling(4))),
        drawn(
            "servers, growing 1, doubling",
            &servers_scene(Strategy::Growing { first: 1, percent: 200 }),
        ),
        drawn("direct, over what was named", &hops_scene()),
        drawn("servers of two vendors, brought up", &provisioning_scene()),
    ])
    .collect::<Vec<_>>()
    .join("\n");
    let golden = include_str!("golden.txt");
    assert!(drawn == golden, "golden.txt is to be:\n{drawn}");
}
