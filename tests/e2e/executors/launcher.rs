//! The node's launcher, as it is, with programs in its slots that do what the real node cannot be made to do: hang.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::ids::Sha256;
use firmesh_tests::{
    binaries::Program,
    process::Process,
    python::run,
    wait::{Seen, until},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(60);

/// Runs until it is asked to end.
const CONFIRMED: &str = "trap 'exit 0' TERM; echo confirmed >> log";
/// Says nothing of whether it works, and ends when it is asked to.
const SILENT: &str = "trap 'echo asked >> log; exit 0' TERM; echo trial >> log";
/// Says nothing, and does not end.
const DEAF: &str = "trap '' TERM; echo trial >> log";

/// A launcher with this program on trial in slot A, and a confirmed one in slot B.
struct Launcher {
    folder: TempDir,
    process: Process,
}

impl Launcher {
    fn start(trial: &str, works_within_s: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let said = String::from_utf8(run(&Program::Node.path()?, ["--version"])?.stdout)?;
        let packaged = said.trim().strip_prefix("firmesh-node ").context("no version")?;
        let ready = |slot: &str, does: &str| -> Result<Value> {
            // Whatever becomes of the test, it ends some time.
            let script = format!(
                "#!/bin/sh\ncd {:?} || exit 1\n{does}\nfor _ in $(seq 900); do sleep 0.1; done\n",
                folder.path()
            );
            let file = folder.path().join(slot).join("firmesh-node");
            fs::create_dir_all(folder.path().join(slot))?;
            fs::write(&file, &script)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            let sha256 = Sha256::of(script.as_bytes()).to_string();
            Ok(json!({ "ready": { "version": slot, "sha256": sha256, "length": script.len() } }))
        };
        let slots = json!({
            "schema": "firmesh-node-slots/1",
            "confirmed": "b",
            "previous": null,
            "packaged": packaged,
            "a": ready("a", trial)?,
            "b": ready("b", CONFIRMED)?,
            "trial": { "slot": "a", "number": 1, "starts": 0, "works_within_s": works_within_s, "ended": null },
            "trials": 1,
            "last": null,
        });
        fs::write(folder.path().join("slots.json"), slots.to_string())?;
        let process = launch(folder.path())?;
        Ok(Self { folder, process })
    }

    fn slots(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(
            self.folder.path().join("slots.json"),
        )?)?)
    }

    /// What the programs have noted so far is this.
    async fn notes(&self, expected: &[&str]) -> Result<()> {
        let wanted = format!("{expected:?}");
        until(&wanted, WITHIN, async || {
            let noted = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let is_so = noted.lines().eq(expected.iter().copied());
            Ok(Seen::when(is_so, || format!("{noted:?}, {}", self.process.log())))
        })
        .await
    }
}

fn launch(folder: &Path) -> Result<Process> {
    let args = [
        "--launch".as_ref(),
        folder.as_os_str(),
        "--".as_ref(),
        "--version".as_ref(),
    ];
    Process::start(Program::Node, args, &folder.join("launcher.log"), |_| ())
}

#[tokio::test]
async fn a_trial_that_hangs_is_ended_and_the_version_before_comes_back() -> Result<()> {
    let mut launcher = Launcher::start(SILENT, 1)?;
    launcher.notes(&["trial", "asked", "confirmed"]).await?;
    let slots = launcher.slots()?;
    ensure!(slots["trial"].is_null() && slots["confirmed"] == "b", "{slots}");
    let why = slots["last"]["why"].as_str().unwrap_or_default();
    ensure!(why.contains("did not say for 1 s that it works"), "{slots}");
    let ended = launcher.process.stop(WITHIN).await?;
    ensure!(ended.success(), "{ended}: {}", launcher.process.log());
    // The next launcher does not try it again.
    launcher.process = launch(launcher.folder.path())?;
    launcher.notes(&["trial", "asked", "confirmed", "confirmed"]).await?;
    launcher.process.stop(WITHIN).await?;
    Ok(())
}

#[tokio::test]
async fn a_trial_whose_end_hangs_is_killed_and_the_version_before_comes_back() -> Result<()> {
    let mut launcher = Launcher::start(DEAF, 1)?;
    launcher.notes(&["trial", "confirmed"]).await?;
    let slots = launcher.slots()?;
    ensure!(slots["trial"].is_null() && slots["confirmed"] == "b", "{slots}");
    let log = launcher.process.log();
    ensure!(log.contains("it was killed by signal 9"), "{log}");
    launcher.process.stop(WITHIN).await?;
    Ok(())
}

/// Restarting the service three times was the end of any trial.
#[tokio::test]
async fn a_launcher_that_is_stopped_during_a_trial_spends_no_start_of_it() -> Result<()> {
    let mut launcher = Launcher::start(SILENT, 600)?;
    let mut notes = vec![];
    for stops in 1..=3 {
        notes.push("trial");
        launcher.notes(&notes).await?;
        let trial = launcher.slots()?["trial"].clone();
        ensure!(trial["starts"] == 1, "{trial}");
        let ended = launcher.process.stop(WITHIN).await?;
        ensure!(ended.success(), "{ended}: {}", launcher.process.log());
        notes.push("asked");
        launcher.notes(&notes).await?;
        let trial = launcher.slots()?["trial"].clone();
        ensure!(trial["starts"] == 0 && trial["stops"] == stops, "{trial}");
        launcher.process = launch(launcher.folder.path())?;
    }
    // From now on each counts: whoever stops the service may do so because of the trial.
    notes.push("trial");
    launcher.notes(&notes).await?;
    launcher.process.stop(WITHIN).await?;
    let trial = launcher.slots()?["trial"].clone();
    ensure!(trial["starts"] == 1, "{trial}");
    Ok(())
}
