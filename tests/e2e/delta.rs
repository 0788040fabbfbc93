//! A new version of an image costs the network what changed, and nobody has to be believed for it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, chunk::PieceLayout, ids::ArtifactId};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{MODEL, NEW, NEXT, rules, stage_release},
    wait::{Seen, until},
};

const WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(120);
const IMAGE_BYTES: usize = 24 << 20;

/// Some bytes more near the beginning, so that everything behind lies elsewhere; a changed word; a longer end.
fn next_version(mut image: Vec<u8>) -> Vec<u8> {
    let (early, late) = (image.len() / 5, image.len() * 3 / 4);
    image.splice(early..early, [0x5a; 777]);
    image[late..late + 4].copy_from_slice(b"v1.2");
    image.extend([7; 5_000]);
    image
}

const SHAPE: Shape = Shape {
    racks: 2,
    nodes: 2,
    bmcs: 1,
    hosts: 0,
    uboot: false,
    image_bytes: IMAGE_BYTES,
    next: Some(next_version),
    evil_peer: None,
    boot_ms: 300,
    coordinators: 1,
    bucket: false,
    certificates: "90d",
};

#[tokio::test]
async fn a_new_version_costs_the_network_what_changed() -> Result<()> {
    Cluster::with(SHAPE, async |fleet| {
        let before = update_to_the_old_version(fleet).await?;
        fleet.operator.ok(&["artifact", "add", "next.bin"])?;
        approve_next(fleet)?;
        // One of them dies in the middle of it, and begins anew with what is durable.
        let victim = fleet.node("r2-n2")?;
        until("the node to take part", WITHIN, async || {
            let (_, total) = victim.pieces().await?;
            let of_image = u64::from(PieceLayout::new(IMAGE_BYTES as u64).pieces());
            Ok(Seen::when(total > 2 * of_image, || format!("{total} pieces")))
        })
        .await?;
        victim.process.kill()?;
        victim.restart().await?;
        fleet.operator.ok(&["campaign", "start", "summer"])?;
        let next = completed(fleet).await?;
        for (name, (received, reused)) in &next {
            // The traffic of a node that was started again begins anew.
            let (received, reused) = match name.as_str() {
                "r2-n2" => (*received, None),
                _ => (received - before[name].0, Some(reused - before[name].1)),
            };
            println!("{name} fetched {received} bytes of {IMAGE_BYTES} and reused {reused:?}");
            ensure!(received < IMAGE_BYTES as u64 / 10, "{name} fetched {received} bytes");
            ensure!(
                reused.is_none_or(|reused| reused > IMAGE_BYTES as u64 * 9 / 10),
                "{name} reused {reused:?} bytes"
            );
        }
        Ok(())
    })
    .await
}

/// A coordinator that names the old image's recipe as the new one's: every node refuses it by name, and fetches the whole
/// image.
#[tokio::test]
async fn a_lying_recipe_is_refused_and_the_whole_image_is_fetched() -> Result<()> {
    Cluster::with(SHAPE, async |fleet| {
        let before = update_to_the_old_version(fleet).await?;
        fleet.operator.ok(&["artifact", "add", "next.bin"])?;
        let recipe = |folder: &Path, image: &str| -> Result<_> {
            let image = ArtifactId::of(&fs::read(folder.join(image))?);
            Ok(folder.join(format!("coordinator/artifacts/{image}.recipe")))
        };
        let honest = recipe(fleet.folder(), "next.bin")?;
        ensure!(honest.exists(), "{} is not there", honest.display());
        fs::copy(recipe(fleet.folder(), "image.bin")?, honest)?;
        approve_next(fleet)?;
        fleet.operator.ok(&["campaign", "start", "summer"])?;
        let next = completed(fleet).await?;
        let mut received = 0;
        for (name, (all, reused)) in &next {
            ensure!(*reused == before[name].1, "{name} reused something by a lie");
            received = received.max(all - before[name].0);
            let status = fleet.node(name)?.status().await?;
            let refusals = status["refusals"].as_array().context("a node says what it refused")?;
            ensure!(
                refusals.iter().any(|refusal| refusal["code"] == "recipe_length"),
                "{name} refused something else: {refusals:?}"
            );
        }
        println!("the most that a node fetched: {received} bytes of {IMAGE_BYTES}");
        ensure!(
            received >= IMAGE_BYTES as u64,
            "{received} bytes are less than the image"
        );
        Ok(())
    })
    .await
}

/// Everybody runs `1.1.0`. What each node has received and reused by then.
async fn update_to_the_old_version(fleet: &mut Cluster) -> Result<BTreeMap<String, (u64, u64)>> {
    fleet.start_campaign("spring", &rules(2, (120, 20)))?;
    let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
    ensure!(view.state == CampaignState::Completed, "{view:?}");
    ensure!(fleet.running(NEW).await? == fleet.device_count());
    traffic(fleet).await
}

/// Signs and publishes `1.2.0` and a campaign that brings it: nodes fetch the image before the campaign is started.
fn approve_next(fleet: &Cluster) -> Result<()> {
    stage_release(&fleet.operator, "next.bin", MODEL, "bmc", NEXT)?;
    fleet.operator.sign("release")?;
    fleet.operator.ok(&["trust", "publish"])?;
    fleet.approve_update("summer", (NEXT, NEW), &rules(2, (120, 20)))
}

async fn completed(fleet: &mut Cluster) -> Result<BTreeMap<String, (u64, u64)>> {
    let view = fleet.campaign_ends("summer", ENDS_WITHIN).await?;
    ensure!(view.state == CampaignState::Completed, "{view:?}");
    // A device takes an image by its SHA-256 only: this version runs, so the image is right.
    ensure!(
        fleet.running(NEXT).await? == fleet.device_count(),
        "{:?}",
        fleet.versions().await?
    );
    traffic(fleet).await
}

/// What each node has received and reused since it was started.
async fn traffic(fleet: &mut Cluster) -> Result<BTreeMap<String, (u64, u64)>> {
    let names: Vec<_> = fleet.nodes.keys().cloned().collect();
    let mut traffic = BTreeMap::new();
    for name in names {
        let status = fleet.node(&name)?.status().await?;
        let of = |part: &str| status["traffic"][part].as_u64().unwrap_or_default();
        let again = status["traffic"]["fetched_again"] == 0;
        ensure!(again, "{name} fetched something twice: {status}");
        traffic.insert(
            name,
            (
                of("from_origin") + of("from_rack") + of("from_other_racks"),
                of("reused"),
            ),
        );
    }
    Ok(traffic)
}
