//! An outside system is asked between two waves. It is other people's program, with TLS and their own check of the signature.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    cluster::{Cluster, Shape},
    process::Process,
    python::python_with,
    setup::{NEW, rules},
    wait::{Seen, until},
};
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(120);

/// Kept between runs, for pip's sake.
const VENVS: &str = env!("CARGO_TARGET_TMPDIR");

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test]
async fn a_change_board_holds_lets_through_and_stops_and_silence_holds() -> Result<()> {
    let python = python_with(Path::new(VENVS), "standardwebhooks", &["standardwebhooks==1.0.0"])?;
    // Four devices, in waves of one, one and two.
    Cluster::with(Shape::default(), async |fleet| {
        let root = fleet.folder().to_owned();
        let names = ["127.0.0.1".to_owned()];
        let pair = rcgen::generate_simple_self_signed(names)?;
        fs::write(root.join("board.pem"), pair.cert.pem())?;
        fs::write(root.join("board.key"), pair.signing_key.serialize_pem())?;
        fs::write(root.join("change_board.py"), include_str!("change_board.py"))?;
        fs::write(root.join("hook.secret"), SECRET)?;
        fs::set_permissions(root.join("hook.secret"), fs::Permissions::from_mode(0o600))?;
        let say = |text: &str| fs::write(root.join("verdict"), text);
        say("no idea")?;
        let mut command = Command::new(&python);
        command.args(["change_board.py", SECRET]).current_dir(&root);
        let board = Process::spawn("the change board", command, &root.join("board.log"))?;
        let port = until("the change board", WITHIN, async || {
            Ok(Seen::Yes(fs::read_to_string(root.join("board.port"))?))
        })
        .await
        .with_context(|| board.log())?;

        // The manifest names a webhook that the coordinator does not know yet.
        let rules = rules(2, (60, 15)).replace("soak_s = 0", "soak_s = 0, webhooks = [\"change-board\"]");
        fleet.start_campaign("spring", &rules)?;
        waits(fleet, "this coordinator has no [[gate_webhooks]] of the name").await?;
        let config = format!(
            "[[gate_webhooks]]\nname = \"change-board\"\nurl = \"https://127.0.0.1:{port}/gate\"\n\
             secrets = [{{ file = \"hook.secret\" }}]\nca_file = \"board.pem\"\nevery = \"1s\"\n"
        );
        fs::write(root.join("coordinator-more.toml"), config)?;
        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;
        waits(fleet, "its answer is not").await?;
        say(r#"{ "verdict": "hold", "reason": "freeze until Monday" }"#)?;
        waits(fleet, "which says hold: freeze until Monday").await?;
        let view = fleet.campaign("spring").await?;
        ensure!(!view.waves[1].open, "{view:?}");

        say(r#"{ "verdict": "pass", "reason": "CHG0042" }"#)?;
        until("the next wave", WITHIN, async || {
            let view = fleet.campaign("spring").await?;
            Ok(Seen::when(view.waves[1].open, || format!("{view:?}")))
        })
        .await?;
        say(r#"{ "verdict": "fail", "reason": "too many tickets" }"#)?;
        let view = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(view.state == CampaignState::Failed, "{view:?}");
        ensure!(view.reason.contains("too many tickets"), "{view:?}");
        let updated = (view.waves[0].devices + view.waves[1].devices) as usize;
        ensure!(fleet.running(NEW).await? == updated, "{:?}", fleet.versions().await?);

        let text = fs::read_to_string(root.join("asked.jsonl"))?;
        let asked: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let of_wave = |wave: u64| asked.iter().filter(move |asked| asked["wave"] == wave);
        ensure!(of_wave(0).count() >= 3 && of_wave(1).count() >= 1, "{asked:?}");
        let first = &asked[0];
        ensure!(
            first["campaign"] == "spring" && first["schema"] == "firmesh-gate/1",
            "{first}"
        );
        ensure!(
            first["evidence"][0]
                .as_str()
                .is_some_and(|line| line.contains("are good")),
            "{first}"
        );
        ensure!(
            of_wave(0).all(|asked| asked["webhook_id"] == first["webhook_id"]),
            "{asked:?}"
        );
        ensure!(
            of_wave(1).all(|asked| asked["webhook_id"] != first["webhook_id"]),
            "{asked:?}"
        );
        fleet.operator.ok(&["audit", "export", "--out", "log"])?;
        let log = fs::read_to_string(fleet.operator.folder().join("log"))?;
        for said in ["freeze until Monday", "CHG0042", "too many tickets"] {
            ensure!(log.contains(said), "{said} is not in the audit log");
        }
        fleet.operator.ok(&["audit", "verify"]).map(drop)
    })
    .await
}

async fn waits(fleet: &Cluster, why: &str) -> Result<()> {
    until("the campaign to say why it waits", WITHIN, async || {
        let view = fleet.campaign("spring").await?;
        Ok(Seen::when(view.reason.contains(why), || format!("{view:?}")))
    })
    .await
}
