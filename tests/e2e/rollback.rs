//! People send devices back that did well: approvers by a signed order that every node checks, operators where the approvers
//! left it to them.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    operator::key_file,
    setup::{NEW, OLD, rules},
    wait::{Seen, until},
};

const ENDS_WITHIN: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_campaign_that_went_well_goes_back_by_the_approvers_order_and_by_no_other_word() -> Result<()> {
    let shape = Shape {
        racks: 2,
        nodes: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        fleet.start_campaign("spring", &rules(2, (60, 15)))?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        let operator = &fleet.operator;
        let why = ["--reason", "fans stop"];
        let word = [&["campaign", "rollback", "spring"], &why[..]].concat();
        let refused = operator.refused(3, &word)?;
        ensure!(refused.contains("approvers sign an order"), "{refused}");

        // One approver is one too few; the second signs what the first has drawn up.
        let (first, second) = (key_file("approver", 1), key_file("approver", 2));
        let alone = operator.refused(3, &[&word, &["--key", &first][..]].concat())?;
        ensure!(alone.contains("approvers"), "{alone}");
        operator.ok(&[&word, &["--key", &first, "--out", "back.json"][..]].concat())?;
        let forged = fs::read_to_string(operator.folder().join("back.json"))?.replace("payloadType", "payloadtype");
        fs::write(operator.folder().join("forged.json"), forged)?;
        operator.refused(1, &["campaign", "rollback", "spring", "--order", "forged.json"])?;
        let view = operator.ok(&[
            "campaign",
            "rollback",
            "spring",
            "--order",
            "back.json",
            "--key",
            &second,
        ])?;
        ensure!(view["state"] == "rolling_back", "{view}");
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        ensure!(view.state == CampaignState::RolledBack, "{view:?}");
        ensure!(
            fleet.running(OLD).await? == fleet.device_count(),
            "{:?}",
            fleet.versions().await?
        );

        let url = format!("{}/api/v1/deployments/spring/rollbacks", fleet.url());
        let history: serde_json::Value = fleet.http().get(url).send().await?.json().await?;
        let back = &history["items"][0];
        ensure!(
            back["states"]["rolled_back"] == fleet.device_count()
                && back["reason"] == "fans stop"
                && back["order"].is_string(),
            "{history}"
        );
        fleet.operator.ok(&["audit", "verify"]).map(drop)
    })
    .await
}

#[tokio::test]
async fn operators_send_one_device_back_and_go_on_with_the_others_after_a_crash() -> Result<()> {
    let shape = Shape {
        racks: 2,
        nodes: 1,
        bmcs: 0,
        hosts: 2,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let rules = format!(
            "operator_rollback = true\n{}",
            rules(2, (60, 15)).replace("soak_s = 0", "soak_s = 2")
        );
        fleet.start_campaign("spring", &rules)?;
        let first = until("a device to run the new version", ENDS_WITHIN, async || {
            let found = fleet
                .versions()
                .await?
                .into_iter()
                .find(|(_, version)| version.as_deref() == Some(NEW));
            Ok(found.map_or_else(|| Seen::NotYet("none".to_owned()), |(device, _)| Seen::Yes(device)))
        })
        .await?;
        fleet.operator.ok(&[
            "campaign",
            "rollback",
            "spring",
            "--device",
            &first,
            "--reason",
            "look at it",
        ])?;
        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;
        until("the others to wait for a person", ENDS_WITHIN, async || {
            let view = fleet.campaign("spring").await?;
            Ok(match view.state {
                CampaignState::Paused => Seen::Yes(()),
                _ => Seen::NotYet(format!("{view:?}")),
            })
        })
        .await?;
        ensure!(
            fleet.versions().await?[&first].as_deref() == Some(OLD),
            "{first} is not back"
        );
        fleet.operator.ok(&["campaign", "resume", "spring"])?;
        let view = fleet.campaign_ends("spring", ENDS_WITHIN).await?;
        let count = |state| view.states.get(&state).copied().unwrap_or_default() as usize;
        ensure!(count(AttemptState::RolledBack) == 1, "{view:?}");
        ensure!(count(AttemptState::Success) == fleet.device_count() - 1, "{view:?}");
        let why = fleet
            .operator
            .ok(&["campaign", "explain", "spring", "--device", &first])?;
        ensure!(why.to_string().contains("rolled_back"), "{why}");
        Ok(())
    })
    .await
    .context("operators may")
}
