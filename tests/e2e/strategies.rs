//! Campaigns that do not widen by shares: the devices' own events say in which order they were touched.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::cluster::{Cluster, Shape};
use serde_json::Value;

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
