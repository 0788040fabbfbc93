//! What a node says of a device when somebody asks it, before a campaign does.

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::cluster::{Cluster, Shape};

use super::NODE;

/// The emulated BMC is asked through its node; nothing on it changes, and no secret is told.
#[tokio::test]
async fn the_doctor_tells_what_a_bmc_supports_and_changes_nothing() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let node = fleet.node(NODE)?.status_url()?;
        let before = fleet.device_events().await?.len();
        let found = fleet
            .operator
            .ok(&["device", "doctor", "r1-n1-bmc1", "--node", &node])?;
        let findings = found["findings"].as_array().context("no findings")?;
        let says = |part: &str, words: &str| {
            let text = |finding: &serde_json::Value| finding["says"].as_str().unwrap_or_default().contains(words);
            let found = findings.iter().any(|finding| finding["part"] == part && text(finding));
            ensure!(found, "{part} does not say {words:?}: {findings:?}");
            Ok(())
        };
        says("connection", "shows a certificate that is trusted, until ")?;
        says("service", "it speaks Redfish 1.15.0")?;
        says("sessions", "it opens sessions")?;
        says("dialect", "it is spoken to in the dialect \"generic\"")?;
        says("inventory", "found by the component's name")?;
        says("version", "it runs 1.0.0")?;
        says("size", "it takes images up to 4294967296 bytes")?;
        says("clock", "its clock is 0 s ")?;
        says("resets", "a new version is started by a restart of the BMC")?;
        let used: Vec<_> = findings
            .iter()
            .filter(|finding| finding["facts"]["used"] == true)
            .collect();
        ensure!(
            used.len() == 1 && used[0]["facts"]["name"] == "simple_update",
            "{used:?}"
        );
        ensure!(!found.to_string().contains("e2e-password"), "{found}");
        ensure!(
            fleet.device_events().await?.len() == before,
            "something happened to the device"
        );
        let unknown = fleet.operator.run(&["device", "doctor", "nobody", "--node", &node])?;
        ensure!(
            unknown.code != 0 && unknown.stderr.contains("has no device nobody"),
            "{unknown:?}"
        );
        Ok(())
    })
    .await
}
