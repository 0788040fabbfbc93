//! An approver is asked between waves: his yes opens the next one, his no sends the campaign back. Nodes look for his signature.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    operator::key_file,
    setup::{NEW, OLD, rules},
    wait::{Seen, until},
};

const WITHIN: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_wave_waits_for_an_approver_over_a_crash_and_his_no_sends_everybody_back() -> Result<()> {
    // Four devices, in waves of one, one and two.
    Cluster::with(Shape::default(), async |fleet| {
        let rules = rules(2, (60, 15)).replace("soak_s = 0", "soak_s = 0, approval = { refused = \"roll_back\" }");
        fleet.start_campaign("spring", &rules)?;
        is_asked(fleet, 0).await?;
        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;
        let view = is_asked(fleet, 0).await?;
        ensure!(!view.waves[1].open, "{view:?}");
        let why = ["--reason", "looked at the graphs"];
        let answer = |word: &'static str| [&["campaign", word, "spring"][..], &why].concat();
        let key = key_file("approver", 1);
        let release_key = key_file("release", 1);
        let refused = fleet
            .operator
            .refused(3, &[&answer("approve")[..], &["--key", &release_key]].concat())?;
        ensure!(refused.contains("not signed by an approver"), "{refused}");
        let about_another = [&answer("approve")[..], &["--wave", "1", "--key", &key]].concat();
        let refused = fleet.operator.refused(3, &about_another)?;
        ensure!(refused.contains("wave 0 waits for an answer"), "{refused}");

        fleet
            .operator
            .ok(&[&answer("approve")[..], &["--key", &key]].concat())?;
        let view = is_asked(fleet, 1).await?;
        let devices = view.waves[0].devices + view.waves[1].devices;
        ensure!(view.states.get(&AttemptState::Success) == Some(&devices), "{view:?}");
        ensure!(fleet.running(NEW).await? == devices as usize, "{view:?}");

        let second = key_file("approver", 2);
        fleet
            .operator
            .ok(&[&answer("refuse")[..], &["--key", &second]].concat())?;
        let view = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(view.state == CampaignState::RolledBack, "{view:?}");
        ensure!(
            fleet.running(OLD).await? == fleet.device_count(),
            "{:?}",
            fleet.versions().await?
        );

        let url = format!("{}/api/v1/rollouts/spring/approvals", fleet.url());
        let asked: serde_json::Value = fleet.http().get(url).send().await?.json().await?;
        let (yes, no) = (&asked["items"][0], &asked["items"][1]);
        ensure!(
            yes["approved"] == true && yes["reason"] == "looked at the graphs",
            "{asked}"
        );
        ensure!(
            no["approved"] == false && no["by"][0].is_string() && no["by"] != yes["by"],
            "{asked}"
        );
        fleet.operator.ok(&["audit", "export", "--out", "log"])?;
        let log = fs::read_to_string(fleet.operator.folder().join("log"))?.replace('\\', "");
        for answer in ["asked", "approved", "refused"] {
            ensure!(log.contains(&format!("\"answer\":\"{answer}\"")), "{log}");
        }
        fleet.operator.ok(&["audit", "verify"]).map(drop)
    })
    .await
}

async fn is_asked(fleet: &Cluster, wave: u32) -> Result<firmesh_protocol::api::CampaignView> {
    until("an approver to be asked", WITHIN, async || {
        let view = fleet.campaign("spring").await?;
        let reason = format!("wave {wave} passed and waits for an approver");
        Ok(match view.reason.starts_with(&reason) {
            true => Seen::Yes(view),
            false => Seen::NotYet(format!("{view:?}")),
        })
    })
    .await
}
