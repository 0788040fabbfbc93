//! Point 11, and what the README promises of its first command.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use firmesh_tests::{
    binaries::Program,
    process::Process,
    wait::{Seen, Turn, until},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(180);

#[tokio::test]
async fn the_demo_updates_every_device_though_a_node_a_peer_and_the_coordinator_fail() -> Result<()> {
    let _turn = Turn::take().await?;
    let folder = tempfile::tempdir()?;
    let image = write_image(folder.path(), 32 << 20)?;
    let log = folder.path().join("demo.log");
    let args = [
        "demo",
        "--json",
        "--racks",
        "2",
        "--nodes",
        "2",
        "--devices",
        "1",
        "--hosts",
        "1",
        "--fault",
        "kill-node,corrupt-peer,coordinator-down",
        "--image",
        &image,
    ];
    let mut demo = Process::start(Program::Lab, args, &log, |command| in_folder(command, folder.path()))?;
    let status = demo.wait(WITHIN).await?;
    let lines: Vec<Value> = demo
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let summary = lines
        .iter()
        .find(|line| line["event"] == "summary")
        .with_context(|| demo.log())?;
    println!("{summary:#}");
    ensure!(status.success(), "{status}: {summary:#}");
    ensure!(
        summary["success"] == true && summary["versions"] == json!({ "1.1.0": 8 }),
        "{summary:#}"
    );
    ensure!(summary["results"] == json!({ "success": 8 }), "{summary:#}");
    ensure!(
        summary["banned"]["x-evil-peer"].is_string(),
        "the evil peer was not banned: {summary:#}"
    );
    for fault in [
        "was killed with",
        "was started again",
        "the coordinator was killed",
        "the coordinator was started",
    ] {
        ensure!(
            lines.iter().any(|line| line["message"].to_string().contains(fault)),
            "no fault: {fault}"
        );
    }
    ensure!(
        lines
            .iter()
            .any(|line| line["event"] == "progress" && line["racks"].is_object()),
        "no progress was shown"
    );
    Ok(())
}

#[tokio::test]
async fn ctrl_c_ends_everything_the_demo_has_started() -> Result<()> {
    let _turn = Turn::take().await?;
    let folder = tempfile::tempdir()?;
    let image = write_image(folder.path(), 4 << 20)?;
    let log = folder.path().join("demo.log");
    let args = [
        "--racks",
        "1",
        "--nodes",
        "2",
        "--devices",
        "1",
        "--hosts",
        "0",
        "--keep",
        "--image",
        &image,
    ];
    let mut demo = Process::start(Program::Lab, args, &log, |command| in_folder(command, folder.path()))?;
    let mark = folder.path().display().to_string();
    until("coordinator, devices and nodes to run", WITHIN, async || {
        let running = running(&mark)?;
        Ok(Seen::when(running.len() >= 5, || format!("{running:?}")))
    })
    .await?;
    demo.signal(Signal::SIGINT)?;
    let status = demo.wait(Duration::from_secs(20)).await?;
    ensure!(!status.success(), "an interrupted demo has shown nothing");
    let left = running(&mark)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    let states = fs::read_dir(folder.path())?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .count();
    ensure!(states == 0, "its temporary folder was left behind");
    Ok(())
}

#[tokio::test]
async fn the_demo_says_what_is_wrong_with_its_options() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let occupied = folder.path().join("occupied");
    fs::create_dir(&occupied)?;
    fs::write(occupied.join("file"), "")?;
    let occupied = occupied.display().to_string();
    for (args, says) in [
        (vec!["--image", "/absent/image.bin"], "/absent/image.bin"),
        (vec!["--fault", "flood"], "kill-node"),
        (vec!["--racks", "0"], "--racks"),
        (vec!["--state", &occupied], "not empty"),
    ] {
        let mut command = Command::new(Program::Lab.path()?);
        in_folder(&mut command, folder.path());
        let output = command.args(&args).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(!output.status.success() && said.contains(says), "{args:?}: {said}");
        ensure!(!said.contains("panicked"), "{args:?}: {said}");
    }
    Ok(())
}

/// Its temporary folders go where the test can see them.
fn in_folder(command: &mut Command, folder: &Path) {
    command.env("TMPDIR", folder);
}

/// Random bytes, as any image looks to the mesh.
fn write_image(folder: &Path, bytes: usize) -> Result<String> {
    let mut image = vec![0; bytes];
    getrandom::fill(&mut image).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let path = folder.join("image.bin");
    fs::write(&path, image)?;
    Ok(path.display().to_string())
}

/// Command lines of processes that mention `mark`.
fn running(mark: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(mark) {
            found.push(line);
        }
    }
    Ok(found)
}
