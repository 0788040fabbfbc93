//! Every strategy's plan of one small fleet, as a person would draw it: `golden.txt`. A plan that changes shows there.

use firmesh_protocol::{
    manifest::{CampaignManifest, Plan, Strategy},
    units::BasisPoints,
};

use super::{
    plan,
    tests::{draft, fleet, now, releases},
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
    let held = plan
        .held
        .iter()
        .map(|held| format!("  held    {}: {}", held.device, held.reason));
    lines.extend(held);
    lines.push(String::new());
    lines.join("\n")
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
        ("rolling 4", Strategy::Rolling { batch: 4 }),
        ("growing 1, doubling", Strategy::Growing { first: 1, percent: 200 }),
    ]
    .map(|(title, strategy)| drawn(title, &scene(strategy)))
    .join("\n");
    let golden = include_str!("golden.txt");
    assert!(drawn == golden, "golden.txt is to be:\n{drawn}");
}
