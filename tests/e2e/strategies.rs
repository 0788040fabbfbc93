//! Campaigns that do not widen by shares, and devices that are begun again: the devices' own events say how often they were touched,
//! and in which order.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::{CampaignState, GateVerdict};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{NEW, rules},
    wait::{Seen, until},
};
use serde_json::{Value, json};

const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// One place after the other, in the order of the file; the plan that was approved is compared with what would be planned
/// before and after.
#[tokio::test]
async fn a_regional_campaign_finishes_one_place_before_it_touches_the_next() -> Result<()> {
    Cluster::with(
        Shape {
            bmcs: 0,
            hosts: 1,
            ..Shape::default()
        },
        async |fleet| {
            let rules = "strategy = { kind = \"regional\", order = [\"eu/hall-1/rack-2\", \"eu/hall-1/rack-1\"] }\n\
                         caps = { per_rack = 2, total = 100 }\n\
                         gate = { soak = \"PT1S\" }\n\
                         deadlines = { attempt = \"PT1M\", back = \"PT15S\" }";
            fleet.approve_campaign("spring", rules)?;
            let unchanged = fleet.operator.ok(&["campaign", "diff", "spring"])?;
            ensure!(unchanged.as_array().is_some_and(Vec::is_empty), "{unchanged}");

            fleet.operator.ok(&["campaign", "start", "spring"])?;
            let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
            ensure!(view.state == CampaignState::Completed, "{view:?}");

            let racks: Vec<_> = fleet.device_views().await?;
            let rack_of = |device: &Value| {
                let view = racks.iter().find(|view| device == view.facts.device.as_str());
                view.map(|view| view.path.to_string()).context("an unknown device")
            };
            let mut touched = Vec::new();
            for event in fleet.device_events().await? {
                if event["event"] == "update_begun" {
                    touched.push(rack_of(&event["device"])?);
                }
            }
            let second = touched.iter().position(|path| path.starts_with("eu/hall-1/rack-1"));
            let second = second.context("nobody in rack-1 was touched")?;
            ensure!(
                second > 0
                    && touched[second..]
                        .iter()
                        .all(|path| path.starts_with("eu/hall-1/rack-1")),
                "{touched:?}"
            );

            let done = fleet.operator.ok(&["campaign", "diff", "spring"])?;
            let done = done.as_array().context("a list of differences")?;
            ensure!(done.len() == fleet.device_count(), "{done:?}");
            for difference in done {
                let reason = difference["after"]["held"]["reason"].as_str().unwrap_or_default();
                ensure!(reason.starts_with("current"), "{difference}");
            }
            Ok(())
        },
    )
    .await
}

/// Its flash fails, it is left alone, it fails once more, is mended, and the third attempt does it. The gate waits meanwhile.
#[tokio::test]
async fn a_device_that_fails_once_is_begun_again_and_the_campaign_completes() -> Result<()> {
    Cluster::with(
        Shape {
            bmcs: 1,
            hosts: 0,
            ..Shape::default()
        },
        async |fleet| {
            let retries =
                "retries = { rules = [{ class = \"install\", times = 5, pause = \"PT1S\" }], budget = { count = 1 } }";
            fleet.approve_campaign("spring", &format!("{}\n{retries}", rules(2, (60, 15))))?;
            let plan = fleet.operator.ok(&["campaign", "explain", "spring", "--wave", "0"])?;
            let first = plan
                .as_array()
                .and_then(|found| found.get(1))
                .context("a device of the first wave")?;
            let failing = first["subject"]
                .as_str()
                .and_then(|subject| subject.strip_prefix("device "));
            let failing = failing.with_context(|| first.to_string())?.to_owned();
            fleet.misbehave(&failing, json!({ "kind": "fail_update" })).await?;
            fleet.operator.ok(&["campaign", "start", "spring"])?;
            until("the device to be at its third attempt", ENDS_WITHIN, async || {
                let why = fleet
                    .operator
                    .ok(&["campaign", "explain", "spring", "--device", &failing])?
                    .to_string();
                let is_at_it = why.contains("of 6 failed in install") && !why.contains("attempt 1 of 6");
                Ok(Seen::when(is_at_it, || why))
            })
            .await?;
            fleet.misbehave(&failing, Value::Null).await?;
            let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
            ensure!(view.state == CampaignState::Completed, "{view:?}");
            ensure!(
                fleet.running(NEW).await? == fleet.device_count(),
                "{:?}",
                fleet.versions().await?
            );
            let events = fleet.device_events().await?;
            let begun = |device: &str| {
                let of = events
                    .iter()
                    .filter(|event| event["device"] == device && event["event"] == "update_begun");
                of.count()
            };
            ensure!(begun(&failing) >= 3, "{failing} was begun {} times", begun(&failing));
            for device in fleet.versions().await?.keys().filter(|device| **device != failing) {
                ensure!(begun(device) == 1, "{device} was begun {} times", begun(device));
            }
            Ok(())
        },
    )
    .await
}

/// Three of four batches are under way at once, as a campaign file has it that does not say; the fourth rests on the first, whose
/// device fails and is begun again for a while. Nodes have seen the first one's gate when the fourth begins.
#[tokio::test]
async fn three_batches_are_under_way_at_once_and_the_fourth_waits_for_the_first() -> Result<()> {
    Cluster::with(
        Shape {
            bmcs: 1,
            hosts: 0,
            ..Shape::default()
        },
        async |fleet| {
            let rules = "strategy = { kind = \"rolling\", batch = 1 }\n\
                         caps = { per_rack = 2, total = 100 }\n\
                         gate = { soak = \"PT1S\" }\n\
                         deadlines = { attempt = \"PT1M\", back = \"PT15S\" }\n\
                         retries = { rules = [{ class = \"install\", times = 5, pause = \"PT1S\" }], budget = { count = 1 } }";
            fleet.approve_campaign("spring", rules)?;
            let in_wave = |wave: &str| -> Result<String> {
                let found = fleet.operator.ok(&["campaign", "explain", "spring", "--wave", wave])?;
                let subject = found.as_array().and_then(|found| found.get(1)?["subject"].as_str());
                let device = subject.and_then(|subject| subject.strip_prefix("device "));
                Ok(device.with_context(|| found.to_string())?.to_owned())
            };
            let (first, last) = (in_wave("0")?, in_wave("3")?);
            fleet.misbehave(&first, json!({ "kind": "fail_update" })).await?;
            fleet.operator.ok(&["campaign", "start", "spring"])?;
            let view = until("the second and third batch to pass", ENDS_WITHIN, async || {
                let view = fleet.campaign("spring").await?;
                let is_so = view.waves[1..3].iter().all(|wave| wave.gate == GateVerdict::Pass);
                Ok(match is_so {
                    true => Seen::Yes(view),
                    false => Seen::NotYet(format!("{view:?}")),
                })
            })
            .await?;
            ensure!(view.waves[0].gate == GateVerdict::Unknown && !view.waves[3].open, "{view:?}");
            fleet.misbehave(&first, Value::Null).await?;
            let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
            ensure!(view.state == CampaignState::Completed, "{view:?}");
            let begun: Vec<_> = fleet.device_events().await?;
            let begun: Vec<_> = begun
                .iter()
                .filter(|event| event["event"] == "update_begun")
                .filter_map(|event| event["device"].as_str())
                .collect();
            ensure!(
                begun.last() == Some(&last.as_str()) && begun.iter().filter(|device| **device == last).count() == 1,
                "{begun:?}"
            );
            Ok(())
        },
    )
    .await
}
