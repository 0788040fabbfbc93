//! What was said to a BMC in an attempt that failed can be read at the coordinator, and the name of the profile that its password
//! comes from: neither says the password, or who logs in.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, DeviceView, Page, TranscriptView},
    ids::Sha256,
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::rules,
    wait::{Seen, until},
};
use serde_json::{Value, json};

use super::{ENDS_WITHIN, NODE};

const PASSWORD: &str = "e2e-password";

#[tokio::test]
async fn the_transcript_of_a_failed_attempt_is_read_at_the_coordinator_and_shows_no_password() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let device = format!("{NODE}-bmc1");
        let node = fleet.node(NODE)?;
        let (folder, file) = (node.folder().to_owned(), node.folder().join("node.toml"));
        node.process.stop(ENDS_WITHIN).await?;
        let written = fs::read_to_string(&file)?;
        let own = " username = \"admin\", password_file = \"bmc-password\",";
        let recorded = written.replace(own, " transcript = { dir = \"transcripts\" },");
        ensure!(recorded != written, "{written}");
        fs::write(&file, format!("credentials_file = \"profiles.toml\"\n{recorded}"))?;
        fs::set_permissions(folder.join("bmc-password"), fs::Permissions::from_mode(0o600))?;
        let profiles = "[[profile]]\nname = \"rack 1\"\nrack = \"eu/hall-1/rack-1\"\nusername = \"admin\"\n\
                        secret = { file = \"bmc-password\" }\n";
        fs::write(folder.join("profiles.toml"), profiles)?;
        node.restart().await?;

        let path = format!("{}/api/v1/devices/{device}", fleet.url());
        until("the device with its profile", ENDS_WITHIN, async || {
            let view: Value = fleet.http().get(&path).send().await?.json().await?;
            let is_known = view["credentials_profile"] == "rack 1" && view["facts"]["version"].is_string();
            Ok(Seen::when(is_known, || view.to_string()))
        })
        .await?;
        let view: DeviceView = serde_json::from_value(fleet.operator.ok(&["device", "show", &device])?)?;
        ensure!(view.credentials_profile.as_deref() == Some("rack 1"), "{view:?}");
        // Not in lists, of which the longest has a million devices.
        ensure!(fleet.device_views().await?[0].credentials_profile.is_none());

        fleet.misbehave(&device, json!({ "kind": "fail_update" })).await?;
        fleet.start_campaign("spring", &rules(1, (60, 15)))?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state != CampaignState::Completed, "{view:?}");
        let mut listed = Vec::new();
        until("the transcript", ENDS_WITHIN, async || {
            let page = fleet.operator.ok(&["device", "transcripts", &device])?;
            let page: Page<TranscriptView> = serde_json::from_value(page)?;
            listed = page.items;
            let is_there = listed.iter().any(|view| view.kept_bytes > 0);
            Ok(Seen::when(is_there, || format!("{listed:?}")))
        })
        .await?;
        let told = listed.iter().find(|view| view.kept_bytes > 0);
        let told = told.context("no transcript has words")?;
        ensure!(
            told.campaign.as_str() == "spring" && told.node.as_str() == NODE,
            "{told:?}"
        );
        ensure!(!told.state.is_success() && told.exchanges > 0, "{told:?}");

        let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
        let at = format!("{path}/transcripts/{}", told.number);
        let refused = fleet.http().get(&at).send().await?.status();
        ensure!(refused == 401, "whoever may only look at the fleet reads it: {refused}");
        let words = fleet.http().get(&at).bearer_auth(token.trim()).send().await?;
        let words = words.error_for_status()?.text().await?;
        ensure!(
            told.left_out == 0 && Sha256::of(words.as_bytes()) == told.sha256,
            "{told:?}: {words}"
        );
        ensure!(
            words.contains("\"act\":\"stage\"") && words.contains("/redfish/v1/"),
            "{words}"
        );
        for secret in [PASSWORD, "admin"] {
            ensure!(!words.contains(secret), "{secret} is in {words}");
        }
        let number = told.number.to_string();
        let shown = fleet
            .operator
            .ok(&["device", "transcripts", &device, "--number", &number])?;
        let lines = shown.as_array().context("not the lines")?;
        ensure!(
            lines.len() == words.lines().count() && lines[0]["line"] == "head",
            "{shown}"
        );
        Ok(())
    })
    .await
}
