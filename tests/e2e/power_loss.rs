//! Point 9: the power fails between any two writes to a slot, and at every later stage of an update. The host always
//! boots something whole, and its attempt goes on.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    process::Process,
    setup::{NEW, OLD, rules},
    wait::{Seen, at_the_moment, until},
};
use serde_json::Value;

const NODE: &str = "r1-n1";
const DEVICE: &str = "r1-n1-host1";
const IMAGE_BYTES: usize = 32 << 20;
const WITHIN: Duration = Duration::from_secs(60);

/// An attempt starts writing at most three times, so four hosts are cut off twice each.
#[tokio::test]
async fn the_old_slot_boots_after_a_power_cut_at_any_point_of_a_write() -> Result<()> {
    hosts(4, async |fleet| {
        fleet.start_campaign("spring", &rules(1, (300, 20)))?;
        let hosts: Vec<_> = (1..=4).map(|number| Host::of(fleet, number)).collect();
        let (mut cut_at, mut cuts) = (Vec::new(), [0; 4]);
        for eighths in 0..8 {
            let from = IMAGE_BYTES as u64 / 8 * eighths;
            let (at, written) = at_the_moment("a slot to be written", WITHIN, async || {
                let mut seen = Vec::new();
                for (at, host) in hosts.iter().enumerate().filter(|(at, _)| cuts[*at] < 2) {
                    let written = host.written()?;
                    if written.is_some_and(|length| (from..IMAGE_BYTES as u64).contains(&length)) {
                        return Ok(Seen::Yes((at, written)));
                    }
                    seen.push(written);
                }
                Ok(Seen::NotYet(format!("{seen:?} bytes, to be cut from {from}")))
            })
            .await?;
            fleet.node(NODE)?.process.kill()?;
            cuts[at] += 1;
            cut_at.extend(written);
            // The power is back: the boot loader finds half an image in slot B.
            let came_up = hosts[at].power_cycle(fleet).await?;
            ensure!(
                came_up == ("a".to_owned(), OLD.to_owned()),
                "after {written:?} bytes: {came_up:?}"
            );
            fleet.node(NODE)?.restart().await?;
        }
        println!("power was cut at {cut_at:?} of {IMAGE_BYTES} bytes; slot a booted {OLD} every time");
        finishes(fleet).await?;
        for host in hosts {
            let came_up = host.power_cycle(fleet).await?;
            ensure!(
                came_up == ("b".to_owned(), NEW.to_owned()),
                "the new image was not kept: {came_up:?}"
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_node_killed_at_any_later_stage_takes_the_attempt_up_again() -> Result<()> {
    hosts(1, async |fleet| {
        fleet.start_campaign("spring", &rules(1, (300, 20)))?;
        let host = Host::of(fleet, 1);
        for stage in ["ready", "trial", "booting", "unconfirmed"] {
            at_the_moment(&format!("the stage {stage}"), WITHIN, async || {
                let (env, up) = (host.env()?, host.status().ok());
                let slot = up
                    .as_ref()
                    .and_then(|status| status["slot"].as_str())
                    .unwrap_or_default();
                let holds = match stage {
                    "ready" => env.contains("slot_b_state=ready"),
                    "trial" => env.contains("try_slot=b"),
                    "booting" => slot.is_empty() || slot == "b",
                    _ => slot == "b",
                };
                Ok(Seen::when(holds, || format!("{env:?}, running from {slot:?}")))
            })
            .await?;
            fleet.node(NODE)?.process.kill()?;
            fleet.node(NODE)?.restart().await?;
        }
        finishes(fleet).await?;
        let (slot, version) = host.power_cycle(fleet).await?;
        ensure!(
            (slot.as_str(), version.as_str()) == ("b", NEW),
            "the new image was not kept: {version} in {slot}"
        );
        Ok(())
    })
    .await
}

/// A trial that loses its power before anybody confirmed it: the old image boots, and the report says what the host runs.

#[tokio::test]
async fn an_unconfirmed_trial_that_loses_its_power_falls_back_to_the_old_slot() -> Result<()> {
    hosts(1, async |fleet| {
        fleet.start_campaign("spring", &rules(1, (60, 10)))?;
        let host = Host::of(fleet, 1);
        at_the_moment("the trial to boot", WITHIN, async || {
            let trial = host.status().is_ok_and(|status| status["slot"] == "b") && host.env()?.contains("saved_slot=a");
            Ok(Seen::when(trial, || format!("{:?}", host.env())))
        })
        .await?;
        fleet.node(NODE)?.process.kill()?;
        let confirmed = host.env()?.contains("saved_slot=b");
        let (slot, version) = host.power_cycle(fleet).await?;
        ensure!(
            confirmed || (slot.as_str(), version.as_str()) == ("a", OLD),
            "it booted {version} from {slot}"
        );
        fleet.node(NODE)?.restart().await?;
        let view = fleet.campaign_ends("spring", Duration::from_secs(120)).await?;
        let version = fleet.versions().await?[DEVICE]
            .clone()
            .context("the host runs nothing")?;
        let updated = view.states.get(&AttemptState::Success) == Some(&1);
        ensure!(
            (version == NEW) == updated,
            "the host runs {version}, the campaign says {view:?}"
        );
        ensure!([OLD, NEW].contains(&version.as_str()), "the host runs {version}");
        println!(
            "confirmed before the cut: {confirmed}; ended as {:?} with {version}",
            view.states
        );
        Ok(())
    })
    .await
}

async fn hosts(hosts: u32, story: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 0,
        hosts,
        image_bytes: IMAGE_BYTES,
        boot_ms: 600,
        ..Shape::default()
    };
    Cluster::with(shape, story).await
}

async fn finishes(fleet: &Cluster) -> Result<()> {
    let view = fleet.campaign_ends("spring", Duration::from_secs(120)).await?;
    ensure!(view.state == CampaignState::Completed, "{view:?}");
    ensure!(
        fleet.running(NEW).await? == fleet.device_count(),
        "{:?}",
        fleet.versions().await?
    );
    Ok(())
}

/// The folder of the one host: its slots, its boot environment and what its system writes at each start.
struct Host(PathBuf);

impl Host {
    fn of(fleet: &Cluster, number: u32) -> Self {
        Self(fleet.folder().join(format!("devices/hosts/{NODE}-host{number}")))
    }

    /// Bytes in slot B, while it is being written.
    fn written(&self) -> Result<Option<u64>> {
        let writing = self.env()?.contains("slot_b_state=writing");
        Ok(if writing {
            Some(fs::metadata(self.0.join("slot_b"))?.len())
        } else {
            None
        })
    }

    fn env(&self) -> Result<String> {
        Ok(fs::read_to_string(self.0.join("grubenv"))?)
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.0.join("status.json"))?)?)
    }

    /// Takes the power away and gives it back; answers the slot and the version that came up.
    async fn power_cycle(&self, fleet: &Cluster) -> Result<(String, String)> {
        let before = self.status().ok().map(|status| status["boot_id"].clone());
        let log = fleet.folder().join("host-reset.log");
        let dir = self.0.clone().into_os_string();
        let args = ["host-reset".into(), "--dir".into(), dir];
        let mut reset = Process::start(firmesh_tests::binaries::Program::Lab, args, &log, |_| ())?;
        ensure!(reset.wait(WITHIN).await?.success(), "{}", reset.log());
        let status = until("the host to come up again", WITHIN, async || {
            let status = self.status()?;
            let again = Some(&status["boot_id"]) != before.as_ref();
            Ok(if again {
                Seen::Yes(status)
            } else {
                Seen::NotYet(status.to_string())
            })
        })
        .await?;
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        Ok((text("slot"), text("version")))
    }
}
