//! Devices are watched after their update: one that is not well fails its wave, and one whose health nobody knows holds it.
//! What the hosts say of themselves is written by the test in the place of the system that runs on them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    time::WallTime,
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{NEW, OLD},
    wait::{Seen, until},
};
use serde_json::{Value, json};

const ENDS_WITHIN: Duration = Duration::from_secs(180);

/// How often the systems of the hosts say how they are.
const SAYS_EVERY: Duration = Duration::from_secs(1);

fn hosts() -> Shape {
    Shape {
        racks: 1,
        nodes: 1,
        bmcs: 0,
        hosts: 3,
        ..Shape::default()
    }
}

fn rules(health: &str) -> String {
    format!(
        "strategy = {{ kind = \"rolling\", batch = 2, max_concurrent_batches = 1 }}\ncaps = {{ per_rack = 2, total = 2 }}\n\
         deadlines = {{ attempt_s = 120, back_s = 20 }}\n\
         gate = {{ advance = 9900, rollback = 9000, sample_min = 1, soak_s = 0, health = {health} }}"
    )
}

#[tokio::test]
async fn a_host_that_is_not_well_falls_back_and_takes_its_wave_with_it() -> Result<()> {
    Cluster::with(hosts(), async |fleet| {
        let files = health_files(fleet)?;
        let health = r#"{ watch = "PT5S", offline_s = 5, required = ["cpu"],
                          limits = [{ input = "cpu", rise = 3000, for_s = 0 }] }"#;
        fleet.approve_campaign("spring", &rules(&health.replace('\n', " ")))?;
        let waves = waves(fleet, "spring")?;
        let sick = waves[0][0].clone();
        let saying = say_health(files, move |device, version| match (device == sick, version) {
            (true, NEW) => json!({ "cpu": 6_000, "uptime_s": 60 }),
            _ => json!({ "cpu": 2_000, "uptime_s": 60 }),
        });
        fleet.operator.ok(&["campaign", "start", "spring"])?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        saying.abort();
        ensure!(view.state == CampaignState::RolledBack, "{view:?}");
        let versions = fleet.versions().await?;
        ensure!(
            versions.values().all(|version| version.as_deref() == Some(OLD)),
            "{versions:?}"
        );
        let explained = fleet.operator.ok(&["campaign", "explain", "spring"])?.to_string();
        ensure!(
            explained.contains("its cpu have been at 60 % for 0 s, they were at 20 % before"),
            "{explained}"
        );
        // The other one had been updated, and was well.
        let events = fleet.device_events().await?;
        let ran_new = |device: &str| {
            let is_it =
                |event: &Value| event["device"] == device && event["event"] == "booted" && event["version"] == NEW;
            events.iter().any(is_it)
        };
        ensure!(waves[0].iter().all(|device| ran_new(device)), "{events:?}");
        ensure!(!ran_new(&waves[1][0]), "the next wave was touched: {events:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn health_that_nobody_knows_holds_the_wave() -> Result<()> {
    Cluster::with(hosts(), async |fleet| {
        let files = health_files(fleet)?;
        let health = r#"{ watch_s = 2, offline_s = 2, limits = [], required = ["memory"] }"#;
        fleet.approve_campaign("spring", &rules(health))?;
        let waves = waves(fleet, "spring")?;
        let saying = say_health(files, |_, _| json!({ "cpu": 2_000 }));
        fleet.operator.ok(&["campaign", "start", "spring"])?;
        let view = until("the wave to hold", ENDS_WITHIN, async || {
            let view = fleet.campaign("spring").await?;
            Ok(match view.reason.contains("is not known") {
                true => Seen::Yes(view),
                false => Seen::NotYet(format!("{view:?}")),
            })
        })
        .await?;
        saying.abort();
        ensure!(
            view.state == CampaignState::Active && view.wave == 0 && view.waves[0].gate == GateVerdict::Unknown,
            "{view:?}"
        );
        ensure!(fleet.running(NEW).await? == waves[0].len(), "{view:?}");
        let explained = fleet
            .operator
            .ok(&["campaign", "explain", "spring", "--device", &waves[0][0]])?
            .to_string();
        ensure!(
            explained.contains("its health after the update is not known"),
            "{explained}"
        );
        Ok(())
    })
    .await
}

/// Where each host is to say how it is, by device.
fn health_files(fleet: &Cluster) -> Result<BTreeMap<String, PathBuf>> {
    let config = fs::read_to_string(fleet.folder().join("nodes/r1-n1/node.toml"))?;
    let config: toml::Value = toml::from_str(&config)?;
    let devices = config["device"].as_array().context("a node has devices")?;
    let file = |device: &toml::Value| {
        let id = device["id"].as_str()?.to_owned();
        Some((id, PathBuf::from(device["executor"]["health_file"].as_str()?)))
    };
    Ok(devices.iter().filter_map(file).collect())
}

/// Says again and again how the hosts are, by what each of them runs.
fn say_health(
    files: BTreeMap<String, PathBuf>,
    health: impl Fn(&str, &str) -> Value + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(SAYS_EVERY);
        loop {
            beat.tick().await;
            for (device, file) in &files {
                // A host that is starting has no version, and says nothing.
                let Some(version) = version(&file.with_file_name("status.json")) else {
                    continue;
                };
                let said = json!({ "at": now(), "sample": health(device, &version) });
                let fresh = file.with_extension("new");
                let written = fs::write(&fresh, said.to_string()).and_then(|()| fs::rename(&fresh, file));
                written.expect("a host can write");
            }
        }
    })
}

fn version(status: &Path) -> Option<String> {
    let status: Value = serde_json::from_slice(&fs::read(status).ok()?).ok()?;
    Some(status["version"].as_str()?.to_owned())
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime::from_unix_seconds(since.as_secs().cast_signed())
}

fn waves(fleet: &Cluster, campaign: &str) -> Result<Vec<Vec<String>>> {
    let plan = fs::read(fleet.folder().join(format!("trust/campaigns/{campaign}.plan.json")))?;
    let plan: Value = serde_json::from_slice(&plan)?;
    let names = |wave: &Value| {
        let devices = wave.as_array().into_iter().flatten();
        devices
            .filter_map(|planned| planned["device"].as_str().map(str::to_owned))
            .collect()
    };
    Ok(plan["waves"]
        .as_array()
        .context("a plan has waves")?
        .iter()
        .map(names)
        .collect())
}
