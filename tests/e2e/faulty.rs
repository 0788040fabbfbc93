//! BMCs with faults of the catalogue behind a real node: what shows on the wire alone, met by the real client.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Shape},
    setup::{NEW, rules},
};
use serde_json::{Value, json};

const ENDS_WITHIN: Duration = Duration::from_secs(180);

/// Faults that an update gets through, each on a device of its own.
const FAULTS: [&str; 8] = [
    "task_vanishes_when_done",
    "task_never_says_completed",
    "no_location",
    "location_elsewhere",
    "task_answers_without_a_body",
    "sessions_forgotten",
    "html_error_pages",
    "inventory_renamed",
];

#[tokio::test]
async fn a_campaign_gets_through_bmcs_whose_words_are_not_to_be_trusted() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: u32::try_from(FAULTS.len())?,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let mut devices: Vec<String> = fleet.versions().await?.into_keys().collect();
        devices.sort();
        ensure!(devices.len() == FAULTS.len(), "{devices:?}");
        for (device, fault) in devices.iter().zip(FAULTS) {
            fleet
                .misbehave(device, json!({ "kind": "faulty", "fault": fault }))
                .await?;
        }
        fleet.start_campaign("spring", &rules(8, (120, 8)))?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(
            fleet.running(NEW).await? == FAULTS.len(),
            "{:?}",
            fleet.versions().await?
        );
        let events = fleet.device_events().await?;
        for (device, fault) in devices.iter().zip(FAULTS) {
            let begun = events
                .iter()
                .filter(|event| event["device"] == **device && event["event"] == "update_begun")
                .count();
            ensure!(begun == 1, "{device}, which has {fault}, was flashed {begun} times");
        }
        Ok(())
    })
    .await
}

/// Whoever chooses a fault finds its name, its report and the end to expect.
#[test]
fn the_lab_lists_the_catalogue_for_programs() -> Result<()> {
    let listed = std::process::Command::new(Program::Lab.path()?)
        .args(["faults", "--json"])
        .output()?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let lines = String::from_utf8(listed.stdout)?;
    let entries = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    ensure!(entries.len() >= 50, "{} faults", entries.len());
    for fault in FAULTS {
        let entry = entries.iter().find(|entry| entry["fault"] == fault);
        let entry = entry.with_context(|| format!("{fault} is not listed"))?;
        ensure!(entry["end"] == "updated", "{entry}");
        let report = entry["report"].as_str().unwrap_or_default();
        ensure!(report.starts_with("https://github.com/"), "{entry}");
    }
    Ok(())
}
