//! Who belongs to the mesh, and what stops it: revocation and the brake with the coordinator dead, certificates renewed
//! without anybody noticing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    cluster::{Cluster, Shape},
    operator::key_file,
    setup::{NEW, rules},
    wait::{Seen, until},
};
use serde_json::{Value, json};

use crate::refusals::now;

const WITHIN: Duration = Duration::from_secs(60);
const STOLEN: &str = "r2-n2";
const MEMBERS: [&str; 3] = ["r1-n1", "r1-n2", "r2-n1"];

/// Every member's status holds what is asked of it.
async fn all_members(fleet: &mut Cluster, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
    for name in MEMBERS {
        let node = fleet.node(name)?;
        until(&format!("{name}: {what}"), WITHIN, async || {
            let status = node.status().await?;
            Ok(Seen::when(holds(&status), || status.to_string()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_revoked_node_is_shut_out_and_a_brake_spreads_with_the_coordinator_dead() -> Result<()> {
    Cluster::with(Shape::default(), async |fleet| {
        fleet.approve_campaign("spring", &rules(2, (120, 20)))?;
        all_members(fleet, "the campaign is known", |status| {
            status["campaigns"] == json!(["spring"])
        })
        .await?;

        fleet
            .operator
            .ok(&["node", "revoke", STOLEN, "--reason", "stolen from the rack"])?;
        let without_it =
            |status: &Value| status["revocations_version"] == 1 && status["members"] == 3 && status["connected"] == 2;
        all_members(fleet, "the stolen node is no member", without_it).await?;
        let stolen = fleet.node(STOLEN)?;
        until("the stolen node to stand alone", WITHIN, async || {
            let status = stolen.status().await?;
            let alone = status["connected"] == 0 && status["coordinator_reachable"] == false;
            Ok(Seen::when(alone, || status.to_string()))
        })
        .await?;

        fleet.coordinator.kill()?;
        let forgetful = fleet.node(MEMBERS[0])?;
        forgetful.process.kill()?;
        forgetful.restart().await?;
        all_members(fleet, "the revocation is remembered", without_it).await?;

        let node = fleet.node(MEMBERS[1])?.status_url()?;
        let approver = key_file("approver", 1);
        let pull = [
            "brake",
            "campaign",
            "spring",
            "--key",
            &approver,
            "--reason",
            "it bricks fans",
            "--node",
            &node,
        ];
        fleet.operator.ok(&pull)?;
        all_members(fleet, "the brake is known", |status| {
            status["brakes"][0]["id"] == "spring"
        })
        .await?;

        fleet.restart_coordinator().await?;
        let stopped = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(stopped.state == CampaignState::Cancelled, "{stopped:?}");
        let pulled = fleet.operator.ok(&["brake", "list"])?;
        ensure!(pulled["items"][0]["brake"]["reason"] == "it bricks fans", "{pulled}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn certificates_are_renewed_while_a_campaign_runs() -> Result<()> {
    let shape = Shape {
        certificates: "20s",
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let until_when = |status: &Value| status["certificate_until"].as_str().map(str::to_owned);
        let first = until_when(&fleet.node(MEMBERS[0])?.status().await?).context("a node has a certificate")?;
        fleet.start_campaign("spring", &rules(2, (120, 20)))?;
        let ended = fleet.campaign_ends("spring", Duration::from_secs(120)).await?;
        ensure!(ended.state == CampaignState::Completed, "{ended:?}");
        ensure!(
            fleet.running(NEW).await? == fleet.device_count(),
            "not every device runs {NEW}"
        );
        // The first certificate is over, and everybody is still here.
        let node = fleet.node(MEMBERS[0])?;
        until("the first certificate to be over", WITHIN, async || {
            let status = node.status().await?;
            let now = now().to_string();
            let is_renewed = until_when(&status).is_some_and(|until| until > first) && now > first;
            let is_here = status["connected"] == 3 && status["coordinator_reachable"] == true;
            Ok(Seen::when(is_renewed && is_here, || status.to_string()))
        })
        .await
    })
    .await
}
