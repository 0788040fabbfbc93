//! Points 6, 7 and 8: failures stop a campaign and are undone, what is not for a device never reaches it, and no cap is
//! ever passed: all of it by the devices' own word.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{NEW, OLD, rules, stage_release},
    wait::{Seen, until},
};
use serde_json::{Value, json};

const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// Point 6. Two devices in a wave, one of them fails: the wave fails its gate, the good one goes back, the rest stay.
#[tokio::test]
async fn a_failing_device_stops_the_campaign_and_its_wave_goes_back() -> Result<()> {
    Cluster::with(
        Shape {
            bmcs: 2,
            hosts: 1,
            ..Shape::default()
        },
        async |fleet| {
            fleet.approve_campaign("spring", &rules(2, (60, 15)))?;
            let waves = planned_waves(fleet, "spring")?;
            ensure!(waves[0].len() >= 2, "the first wave has one device per rack: {waves:?}");
            let failing = waves[0][0].clone();
            fleet.misbehave(&failing, json!({ "kind": "fail_update" })).await?;
            fleet.operator.ok(&["campaign", "start", "spring"])?;
            let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
            ensure!(view.state == CampaignState::RolledBack, "{view:?}");
            let versions = fleet.versions().await?;
            ensure!(
                versions.values().all(|version| version.as_deref() == Some(OLD)),
                "{versions:?}"
            );

            let events = fleet.device_events().await?;
            let touched = |device: &str| {
                events
                    .iter()
                    .any(|event| event["device"] == device && event["event"] == "update_begun")
            };
            let ran_new = |device: &str| {
                events
                    .iter()
                    .any(|event| event["device"] == device && event["event"] == "booted" && event["version"] == NEW)
            };
            for device in &waves[0] {
                ensure!(touched(device), "{device} stands in the first wave and was not touched");
                ensure!(
                    ran_new(device) != (*device == failing),
                    "{device} ran {NEW}: {}",
                    ran_new(device)
                );
            }
            for device in waves[1..].iter().flatten() {
                ensure!(!touched(device), "{device} stands in a later wave and was touched");
            }

            let explained = fleet.operator.ok(&["campaign", "explain", "spring"])?.to_string();
            ensure!(
                explained.contains("the gate failed") && explained.contains("went back"),
                "{explained}"
            );
            ensure!(
                explained.contains("could not be verified"),
                "the device's own reason is missing: {explained}"
            );
            let device = fleet
                .operator
                .ok(&["campaign", "explain", "spring", "--device", &failing])?
                .to_string();
            ensure!(device.contains(&failing), "{device}");
            println!("{explained}\n{device}");
            // A campaign that ended without reaching its goal: exit status 4.
            fleet.operator.refused(4, &["campaign", "watch", "spring"])?;
            Ok(())
        },
    )
    .await
}

/// Point 7, first half: signed, approved and permitted, and still for another model.
#[tokio::test]
async fn an_image_for_another_model_is_refused_before_any_write() -> Result<()> {
    Cluster::with(Shape {
        hosts: 1,
        bmcs: 0,
        ..Shape::default()
    }, async |fleet| {
    stage_release(&fleet.operator, "image.bin", "R9", "host", "9.0.0")?;
    fleet.operator.sign("release")?;
    fleet.operator.ok(&["release", "publish"])?;
    let file = format!(
        "id = \"wrong\"\nexpires = \"2099-01-01T00:00:00Z\"\nreleases = [\"firmware/acme-r9-host-9.0.0\"]\n{}\n",
        rules(1, (60, 15))
    );
    std::fs::write(fleet.folder().join("wrong.toml"), file)?;
    fleet.operator.ok(&["campaign", "create", "--file", "wrong.toml"])?;
    let plan = fleet.operator.ok(&["campaign", "plan", "wrong"])?;
    ensure!(
        plan["plan"]["waves"]
            .as_array()
            .is_none_or(|waves| waves.iter().all(|wave| wave == &json!([]))),
        "{plan}"
    );
    let held = plan["plan"]["held"]
        .as_array()
        .context("a plan says whom it leaves out")?;
    ensure!(held.len() == fleet.device_count(), "{plan}");
    ensure!(
        held.iter().all(|held| held["reason"].to_string().contains("R1")),
        "the reasons name the model: {plan}"
    );
    let events = fleet.device_events().await?;
    ensure!(
        events.iter().all(|event| event["event"] != "update_begun"),
        "a device was touched: {events:?}"
    );
    Ok(())
    }).await
}

/// Point 7, second half.
#[tokio::test]
async fn a_device_that_never_comes_back_is_quarantined_and_still_counts() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 3,
        hosts: 0,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        fleet.approve_campaign("spring", &rules(1, (25, 3)))?;
        let waves = planned_waves(fleet, "spring")?;
        let lost = waves[0][0].clone();
        fleet.misbehave(&lost, json!({ "kind": "never_back" })).await?;
        fleet.operator.ok(&["campaign", "start", "spring"])?;
        let attempt = until("the lost device to be quarantined", ENDS_WITHIN, async || {
            let views = fleet.device_views().await?;
            let attempt = views
                .iter()
                .find(|view| view.facts.device.as_str() == lost)
                .and_then(|view| view.attempt.clone());
            Ok(match attempt {
                Some(attempt) if attempt.state == AttemptState::Quarantined => Seen::Yes(attempt),
                other => Seen::NotYet(format!("{other:?}")),
            })
        })
        .await?;
        ensure!(!attempt.reason.is_empty(), "a quarantine has a reason: {attempt:?}");
        println!("{lost} is quarantined: {}", attempt.reason);
        // It stays in flight: with a cap of one per rack, nothing else may start.
        let explained = fleet.operator.ok(&["campaign", "explain", "spring"])?;
        let events = fleet.device_events().await?;
        let begun: Vec<_> = events
            .iter()
            .filter(|event| event["event"] == "update_begun")
            .map(|e| &e["device"])
            .collect();
        ensure!(
            begun.iter().all(|device| **device == lost),
            "another device was started: {begun:?}; {explained}"
        );
        let shown = fleet.operator.ok(&["device", "show", &lost])?;
        ensure!(shown.to_string().contains("quarantined"), "{shown}");
        Ok(())
    })
    .await
}

/// Point 8: how many devices of a rack were in flight at any moment, counted from the devices' own logs.
#[tokio::test]
async fn devices_in_flight_never_pass_the_cap_of_a_rack() -> Result<()> {
    const CAP: u32 = 2;
    Cluster::with(
        Shape {
            bmcs: 3,
            hosts: 1,
            ..Shape::default()
        },
        async |fleet| {
            fleet.start_campaign("spring", &rules(CAP, (120, 20)))?;
            let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
            ensure!(view.state == CampaignState::Completed, "{view:?}");
            ensure!(fleet.running(NEW).await? == fleet.device_count());

            let events = fleet.device_events().await?;
            let (mut in_flight, mut most): (BTreeMap<String, bool>, BTreeMap<String, u32>) = Default::default();
            for event in &events {
                let device = event["device"].as_str().context("an event has a device")?;
                match event["event"].as_str() {
                    Some("update_begun") => drop(in_flight.insert(device.to_owned(), true)),
                    Some("booted" | "update_failed") => drop(in_flight.insert(device.to_owned(), false)),
                    _ => {}
                }
                let rack = rack_of(device);
                let now = in_flight
                    .iter()
                    .filter(|(device, busy)| **busy && rack_of(device) == rack)
                    .count();
                let most = most.entry(rack.to_owned()).or_default();
                *most = (*most).max(u32::try_from(now)?);
            }
            println!("most devices of a rack in flight at once, by their own logs: {most:?}; the cap is {CAP}");
            ensure!(most.len() == 2, "both racks took part: {most:?}");
            ensure!(most.values().all(|most| *most <= CAP), "a cap was passed: {most:?}");
            // Otherwise the cap was never put to the test.
            ensure!(
                most.values().any(|most| *most == CAP),
                "the cap was never reached: {most:?}"
            );
            Ok(())
        },
    )
    .await
}

/// Planned devices by wave.
fn planned_waves(fleet: &Cluster, campaign: &str) -> Result<Vec<Vec<String>>> {
    let plan: Value = serde_json::from_slice(&std::fs::read(
        fleet.folder().join(format!("trust/campaigns/{campaign}.plan.json")),
    )?)?;
    let waves = plan["waves"].as_array().context("a plan has waves")?;
    let names = |wave: &Value| {
        wave.as_array()
            .into_iter()
            .flatten()
            .filter_map(|planned| planned["device"].as_str().map(str::to_owned))
            .collect()
    };
    Ok(waves.iter().map(names).collect())
}

/// `r1` of `r1-n2-bmc3`.
fn rack_of(device: &str) -> &str {
    device.split('-').next().unwrap_or(device)
}
