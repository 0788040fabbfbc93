//! Points 2, 3 and 4: the transfer survives a killed node, a dead origin and evil peers, and never moves a byte twice.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, NodeView, Page},
    chunk::PIECE_BYTES_MAX,
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{NEW, get, rules},
    wait::{Seen, until},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Point 2.
#[tokio::test]
async fn a_killed_node_asks_for_no_piece_again_that_was_durable() -> Result<()> {
    Cluster::with(
        Shape {
            image_bytes: 96 << 20,
            ..Shape::default()
        },
        async |fleet| {
            fleet.start_campaign("spring", &rules(2, (120, 20)))?;
            let node = fleet.node("r2-n2")?;
            let (killed_at, total) = until("the node to hold a part of the images", WITHIN, async || {
                let (held, total) = node.pieces().await?;
                Ok(match held {
                    held if held * 3 >= total && held < total && total > 1 => Seen::Yes((held, total)),
                    held => Seen::NotYet(format!("{held} of {total} pieces")),
                })
            })
            .await?;
            node.process.kill()?;
            node.restart().await?;
            let status = until("the node to hold everything", WITHIN, async || {
                let (held, total) = node.pieces().await?;
                let status = node.status().await?;
                Ok(if total > 1 && held == total {
                    Seen::Yes(status)
                } else {
                    Seen::NotYet(format!("{held} of {total}"))
                })
            })
            .await?;
            let durable: u64 = status["durable_at_start"]
                .as_object()
                .context("a node says what it found")?
                .values()
                .filter_map(Value::as_u64)
                .sum();
            let fetched = received(&status);
            println!(
                "killed with {killed_at} of {total} pieces, found {durable} durable, then fetched {fetched} bytes"
            );
            ensure!(durable > 0, "nothing survived the kill: {status}");
            ensure!(
                status["traffic"]["fetched_again"] == 0,
                "something was fetched again: {status}"
            );
            // Whatever was found was not fetched.
            ensure!(
                fetched <= (total - durable) * PIECE_BYTES_MAX,
                "{fetched} bytes for {} pieces: {status}",
                total - durable
            );
            let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
            ensure!(view.state == CampaignState::Completed, "{view:?}");
            ensure!(fleet.running(NEW).await? == fleet.device_count());
            Ok(())
        },
    )
    .await
}

/// Point 3. Half of the nodes sleep while the others bring the one copy in, so that they have to take it all from peers.
#[tokio::test]
async fn coordinator_and_origin_may_die_once_a_copy_is_in_the_mesh() -> Result<()> {
    Cluster::with(
        Shape {
            image_bytes: 48 << 20,
            ..Shape::default()
        },
        async |fleet| {
            fleet.start_campaign("spring", &rules(2, (120, 20)))?;
            let sleepers = ["r1-n2", "r2-n2"];
            for name in sleepers {
                let node = fleet.node(name)?;
                until("the node to take part", WITHIN, async || {
                    let (held, total) = node.pieces().await?;
                    Ok(Seen::when(total > 1, || format!("{held} of {total}")))
                })
                .await?;
                node.process.signal(Signal::SIGSTOP)?;
            }
            for name in ["r1-n1", "r2-n1"] {
                holds_everything(fleet, name).await?;
            }
            fleet.coordinator.kill()?;
            for name in sleepers {
                fleet.node(name)?.process.signal(Signal::SIGCONT)?;
            }
            for name in sleepers {
                let (before, status) = holds_everything(fleet, name).await?;
                println!(
                    "{name} held {before} pieces when the origin died; traffic {}",
                    status["traffic"]
                );
                ensure!(
                    status["coordinator_reachable"] == false,
                    "the coordinator is dead: {status}"
                );
            }
            fleet.restart_coordinator().await?;
            let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
            ensure!(view.state == CampaignState::Completed, "{view:?}");
            ensure!(fleet.running(NEW).await? == fleet.device_count());
            Ok(())
        },
    )
    .await
}

/// A node that asks the coordinator every two minutes hears of a campaign from its neighbours at once.
#[tokio::test]
async fn a_fleet_hears_of_a_campaign_when_its_first_node_does() -> Result<()> {
    Cluster::with(Shape::default(), async |fleet| {
        let node = fleet.node("r1-n2")?;
        node.process.stop(WITHIN).await?;
        let file = node.folder().join("node.toml");
        let config = fs::read_to_string(&file)?;
        ensure!(config.contains(r#"poll_interval = "300ms""#), "{config}");
        fs::write(&file, config.replace("300ms", "2m"))?;
        node.restart().await?;
        until("the node to reach the coordinator", WITHIN, async || {
            let status = node.status().await?;
            Ok(Seen::when(status["coordinator_reachable"] == true, || {
                status.to_string()
            }))
        })
        .await?;
        let polled_at = Instant::now();
        fleet.start_campaign("spring", &rules(2, (120, 20)))?;
        let node = fleet.node("r1-n2")?;
        until("the node to hear of the campaign", WITHIN, async || {
            let status = node.status().await?;
            Ok(Seen::when(status["campaigns"][0] == "spring", || status.to_string()))
        })
        .await?;
        println!("heard {:?} after its last poll", polled_at.elapsed());
        Ok(())
    })
    .await
}

/// Point 4, first half.
#[tokio::test]
async fn a_peer_that_corrupts_pieces_is_banned_and_the_image_completes() -> Result<()> {
    evil_peer("corrupt", "do not hash").await
}

/// Point 4, second half.
#[tokio::test]
async fn a_peer_that_lies_about_what_it_holds_is_banned_and_the_image_completes() -> Result<()> {
    evil_peer("liar", "does not hold").await
}

async fn evil_peer(manner: &'static str, reason: &str) -> Result<()> {
    let shape = Shape {
        image_bytes: 32 << 20,
        hosts: 1,
        evil_peer: Some(manner),
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        fleet.start_campaign("spring", &rules(4, (120, 20)))?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(
            fleet.running(NEW).await? == fleet.device_count(),
            "{:?}",
            fleet.versions().await?
        );
        let (mut banned, mut failures) = (0, 0);
        let names: Vec<_> = fleet.nodes.keys().cloned().collect();
        for name in &names {
            let status = fleet.node(name)?.status().await?;
            failures += status["traffic"]["verification_failures"].as_u64().unwrap_or_default();
            for (peer, why) in status["banned"].as_object().context("a node says whom it banned")? {
                ensure!(peer == "x-evil", "{name} banned the honest {peer}: {why}");
                ensure!(why.to_string().contains(reason), "{name} banned {peer} for {why}");
                banned += 1;
            }
        }
        println!(
            "{banned} of {} nodes banned the {manner} peer after {failures} bad slices",
            names.len()
        );
        ensure!(banned > 0, "nobody banned the {manner} peer");
        ensure!(
            (failures > 0) == (manner == "corrupt"),
            "{failures} verification failures"
        );
        // What the hosts run is byte for byte the image.
        let image = fs::read(fleet.folder().join("image.bin"))?;
        for name in names {
            let slot = fs::read(fleet.folder().join(format!("devices/hosts/{name}-host1/slot_b")))?;
            ensure!(slot.starts_with(&image), "{name}-host1 was given something else");
        }
        // The operator sees it too.
        let listed: Page<NodeView> = get(fleet.http(), &format!("{}/api/v1/nodes", fleet.url())).await?;
        ensure!(
            listed.items.iter().any(|node| !node.banned.is_empty()),
            "no ban reached the coordinator: {listed:?}"
        );
        Ok(())
    })
    .await
}

/// Waits until a node holds everything; answers what it held at the first look, and its status at the last.
async fn holds_everything(fleet: &mut Cluster, name: &str) -> Result<(u64, Value)> {
    let node = fleet.node(name)?;
    let mut first = None;
    let status = until(&format!("{name} to hold everything"), WITHIN, async || {
        let (held, total) = node.pieces().await?;
        first.get_or_insert(held);
        let status = node.status().await?;
        Ok(if total > 1 && held == total {
            Seen::Yes(status)
        } else {
            Seen::NotYet(format!("{held} of {total}"))
        })
    })
    .await?;
    Ok((first.unwrap_or_default(), status))
}

fn received(status: &Value) -> u64 {
    let part = |name: &str| status["traffic"][name].as_u64().unwrap_or_default();
    part("from_origin") + part("from_rack") + part("from_other_racks")
}
