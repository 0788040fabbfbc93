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
        let say = |text: &str| fs::write(root.join("verdict"), text);
        say("no idea")?;
        let (_board, port) = board(&python, &root).await?;

        // The manifest names a webhook that the coordinator does not know yet.
        let rules = rules(2, (60, 15)).replace("soak_s = 0", "soak_s = 0, webhooks = [\"change-board\"]");
        fleet.start_campaign("spring", &rules)?;
        waits(fleet, "this coordinator has no [[gate_webhooks]] of the name").await?;
        configure(fleet, "change-board", &port).await?;
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

/// The pools are the two racks: the balancer takes one away, has everything moved to it when it is updated, and then the other.
#[tokio::test]
async fn a_balancer_drains_and_switches_pools() -> Result<()> {
    let python = python_with(Path::new(VENVS), "standardwebhooks", &["standardwebhooks==1.0.0"])?;
    Cluster::with(Shape::default(), async |fleet| {
        let root = fleet.folder().to_owned();
        let say = |text: &str| fs::write(root.join("verdict"), text);
        say(r#"{ "verdict": "hold", "reason": "sessions are closing" }"#)?;
        let (_board, port) = board(&python, &root).await?;
        configure(fleet, "balancer", &port).await?;
        let rules = "strategy = { kind = \"blue_green\", by = \"rack\", order = [\"eu/hall-1/rack-2\", \"eu/hall-1/rack-1\"], \
                     switch = \"balancer\", drain = \"balancer\" }\n\
                     caps = { per_rack = 2, total = 100 }\ngate = { soak = \"PT1S\" }\n\
                     deadlines = { attempt = \"PT1M\", back = \"PT15S\" }";
        fleet.start_campaign("spring", rules)?;
        waits(fleet, "did drain eu/hall-1/rack-2, which says hold: sessions are closing").await?;
        ensure!(fleet.running(NEW).await? == 0, "{:?}", fleet.versions().await?);
        say(r#"{ "verdict": "pass", "reason": "done" }"#)?;
        let view = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(view.state == CampaignState::Completed, "{view:?}");
        ensure!(fleet.running(NEW).await? == fleet.device_count(), "{:?}", fleet.versions().await?);
        let text = fs::read_to_string(root.join("asked.jsonl"))?;
        let asked: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let mut acts: Vec<_> = asked
            .iter()
            .map(|asked| (asked["act"].clone(), asked["pool"].clone(), asked["webhook_id"].clone()))
            .collect();
        acts.dedup();
        let words: Vec<_> = acts.iter().map(|(act, pool, _)| (act.as_str(), pool.as_str())).collect();
        let [drain, switch] = [Some("drain"), Some("switch")];
        let [one, two] = [Some("eu/hall-1/rack-1"), Some("eu/hall-1/rack-2")];
        ensure!(words == [(drain, two), (switch, two), (drain, one)], "{acts:?}");
        ensure!(asked.iter().filter(|asked| asked["webhook_id"] == acts[0].2).count() >= 2, "{asked:?}");
        Ok(())
    })
    .await
}

/// Starts the outside system; answers where it listens.
async fn board(python: &Path, root: &Path) -> Result<(Process, String)> {
    let names = ["127.0.0.1".to_owned()];
    let pair = rcgen::generate_simple_self_signed(names)?;
    fs::write(root.join("board.pem"), pair.cert.pem())?;
    fs::write(root.join("board.key"), pair.signing_key.serialize_pem())?;
    fs::write(root.join("change_board.py"), include_str!("change_board.py"))?;
    fs::write(root.join("hook.secret"), SECRET)?;
    fs::set_permissions(root.join("hook.secret"), fs::Permissions::from_mode(0o600))?;
    let mut command = Command::new(python);
    command.args(["change_board.py", SECRET]).current_dir(root);
    let board = Process::spawn("the change board", command, &root.join("board.log"))?;
    let port = until("the change board", WITHIN, async || {
        Ok(Seen::Yes(fs::read_to_string(root.join("board.port"))?))
    })
    .await
    .with_context(|| board.log())?;
    Ok((board, port))
}

/// Has the coordinator know it by this name.
async fn configure(fleet: &mut Cluster, name: &str, port: &str) -> Result<()> {
    let config = format!(
        "[[gate_webhooks]]\nname = \"{name}\"\nurl = \"https://127.0.0.1:{port}/gate\"\n\
         secrets = [{{ file = \"hook.secret\" }}]\nca_file = \"board.pem\"\nevery = \"1s\"\n"
    );
    fs::write(fleet.folder().join("coordinator-more.toml"), config)?;
    fleet.coordinator.kill()?;
    fleet.restart_coordinator().await
}

async fn waits(fleet: &Cluster, why: &str) -> Result<()> {
    until("the campaign to say why it waits", WITHIN, async || {
        let view = fleet.campaign("spring").await?;
        Ok(Seen::when(view.reason.contains(why), || format!("{view:?}")))
    })
    .await
}
