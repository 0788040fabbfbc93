//! A release that may not be installed directly: one campaign carries its devices over the one between, each step read back by
//! the device's own word, through the death of a node, and back again.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    operator::key_file,
    setup::{MODEL, NEW, NEXT, OLD, VENDOR, release_name, rules},
    wait::{Seen, until},
};
use serde_json::{Value, json};

const ENDS_WITHIN: Duration = Duration::from_secs(180);

fn next_version(mut image: Vec<u8>) -> Vec<u8> {
    image.extend([7; 5_000]);
    image
}

const SHAPE: Shape = Shape {
    racks: 2,
    nodes: 1,
    bmcs: 1,
    hosts: 1,
    uboot: false,
    image_bytes: 4 << 20,
    next: Some(next_version),
    evil_peer: None,
    boot_ms: 300,
    coordinators: 1,
    bucket: false,
    certificates: "90d",
};

/// Signs `1.2.0`, which may be installed from `1.1.0` only.
fn stage_next(fleet: &Cluster) -> Result<()> {
    let operator = &fleet.operator;
    operator.ok(&["artifact", "add", "next.bin"])?;
    for component in ["bmc", "host"] {
        operator.ok(&[
            "release",
            "create",
            "--file",
            "next.bin",
            "--vendor",
            VENDOR,
            "--model",
            MODEL,
            "--component",
            component,
            "--release-version",
            NEXT,
            "--from-version",
            NEW,
        ])?;
    }
    operator.sign("release")?;
    operator.ok(&["trust", "publish"]).map(drop)
}

fn over(version: &str) -> String {
    let names = ["bmc", "host"].map(|component| release_name(component, version));
    format!("hops = {}\n{}", json!(names), rules(2, (60, 15)))
}

#[tokio::test]
async fn one_campaign_carries_devices_over_two_releases_and_back() -> Result<()> {
    Cluster::with(SHAPE, async |fleet| {
        stage_next(fleet)?;
        // Nobody is carried over what approvers have not named.
        let names = |version: &str| json!(["bmc", "host"].map(|component| release_name(component, version)));
        let file = format!(
            "id = \"spring\"\nexpires = \"2099-01-01T00:00:00Z\"\nreleases = {}\nprevious = {}\n{}\n",
            names(NEXT),
            names(OLD),
            rules(2, (60, 15))
        );
        fs::write(fleet.folder().join("spring.toml"), file)?;
        fleet.operator.ok(&["campaign", "create", "--file", "spring.toml"])?;
        let planned = fleet.operator.ok(&["campaign", "plan", "spring"])?;
        let held = planned["plan"]["held"].as_array().context("nobody is held")?;
        let says = |held: &Value| held["reason"].as_str().is_some_and(|why| why.contains("under `hops`"));
        ensure!(held.len() == fleet.device_count() && held.iter().all(says), "{planned}");

        fleet.approve_update("spring", (NEXT, OLD), &over(NEW))?;
        fleet.operator.ok(&["campaign", "start", "spring"])?;
        // A node dies when one of its devices is between its steps or at its second one.
        let victim = until("a device to be on its way", ENDS_WITHIN, async || {
            let versions = fleet.versions().await?;
            let found = versions.iter().find(|(_, version)| version.as_deref() == Some(NEW));
            Ok(found.map_or_else(
                || Seen::NotYet(format!("{versions:?}")),
                |(device, _)| Seen::Yes(device.clone()),
            ))
        })
        .await?;
        let (node, _) = victim.rsplit_once('-').context("a device is called after its node")?;
        let node = fleet.node(node)?;
        node.process.kill()?;
        node.restart().await?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(
            view.states.get(&AttemptState::Success).copied() == u32::try_from(fleet.device_count()).ok(),
            "{view:?}"
        );
        ensure!(
            fleet.running(NEXT).await? == fleet.device_count(),
            "{:?}",
            fleet.versions().await?
        );
        // By the devices' own logs, nobody left out the one between, or went over it twice.
        let events = fleet.device_events().await?;
        for device in fleet.versions().await?.keys() {
            let booted = |event: &&Value| event["device"] == device.as_str() && event["event"] == "booted";
            let booted = events
                .iter()
                .filter(booted)
                .filter_map(|event| event["version"].as_str());
            let mut ran: Vec<_> = booted.filter(|version| *version != OLD).collect();
            ran.dedup();
            ensure!(ran == [NEW, NEXT], "{device} ran {ran:?}");
        }
        let why = fleet
            .operator
            .ok(&["campaign", "explain", "spring", "--device", &victim])?
            .to_string();
        ensure!(why.contains("goes from 1.0.0 to its release in 2 steps"), "{why}");
        let device = ["--campaign", "spring", "--device", &victim, "--out", "proof.json"];
        fleet.operator.ok(&[&["audit", "prove"], &device[..]].concat())?;

        // What it ran before is still held by its node: it goes back in one step.
        let back = ["campaign", "rollback", "spring", "--reason", "fans stop"];
        let (first, second) = (key_file("approver", 1), key_file("approver", 2));
        fleet
            .operator
            .ok(&[&back[..], &["--key", &first, "--key", &second]].concat())?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::RolledBack, "{view:?}");
        ensure!(
            fleet.running(OLD).await? == fleet.device_count(),
            "{:?}",
            fleet.versions().await?
        );
        Ok(())
    })
    .await
}

/// The node dies in the moment in which its device comes up with the version between: what was installed is not installed again.
#[tokio::test]
async fn a_node_that_is_killed_between_two_steps_installs_each_once() -> Result<()> {
    let shape = Shape {
        racks: 1,
        hosts: 0,
        ..SHAPE
    };
    Cluster::with(shape, async |fleet| {
        stage_next(fleet)?;
        let hops = format!("hops = [{:?}]\n{}", release_name("bmc", NEW), rules(2, (60, 15)));
        fleet.approve_update("spring", (NEXT, OLD), &hops)?;
        fleet.operator.ok(&["campaign", "start", "spring"])?;
        until(
            "the device to come up with the version between",
            ENDS_WITHIN,
            async || {
                let booted = count(fleet, "booted", Some(NEW)).await?;
                Ok(Seen::when(booted == 1, || format!("{booted} times")))
            },
        )
        .await?;
        let node = fleet.nodes.keys().next().context("there is one node")?.clone();
        fleet.node(&node)?.process.kill()?;
        ensure!(
            count(fleet, "update_begun", None).await? == 1,
            "it was killed too late to be between the steps"
        );
        fleet.node(&node)?.restart().await?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(fleet.running(NEXT).await? == 1, "{:?}", fleet.versions().await?);
        let begun = count(fleet, "update_begun", None).await?;
        let [between, last] = [
            count(fleet, "booted", Some(NEW)).await?,
            count(fleet, "booted", Some(NEXT)).await?,
        ];
        ensure!(
            (begun, between, last) == (2, 1, 1),
            "{:?}",
            fleet.device_events().await?
        );
        Ok(())
    })
    .await
}

/// How often this has happened to a device.
async fn count(fleet: &Cluster, event: &str, version: Option<&str>) -> Result<usize> {
    let events = fleet.device_events().await?;
    let is_one = |one: &&Value| one["event"] == event && version.is_none_or(|version| one["version"] == version);
    Ok(events.iter().filter(is_one).count())
}
