//! The dashboard in a real browser: what people see, what they may click, and what becomes of a page whose coordinator goes away.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    binaries::workspace,
    cluster::{Cluster, Shape},
    packages::ensure_command,
    process::Process,
    setup::rules,
    wait::{Seen, until},
};

/// Some hundred page views with axe in each, on a machine that has other things to do.
const WITHIN: Duration = Duration::from_secs(900);

#[tokio::test]
async fn people_work_in_a_browser_and_a_restart_does_not_disturb_them() -> Result<()> {
    let browser = ensure_command("chromium", "chromium")?;
    let npm = ensure_command("npm", "npm")?;
    Cluster::with(Shape::default(), async |fleet| {
        let page = fleet.http().get(fleet.url()).send().await?.text().await?;
        ensure!(
            page.contains("/assets/"),
            "this coordinator was built without its dashboard: {page}"
        );
        // The gate takes its time: the campaign is still there to be paused and sent back.
        let rules = rules(2, (60, 15)).replace("soak_s = 0", "soak_s = 600") + "\noperator_rollback = true";
        fleet.approve_campaign("spring", &rules)?;

        let folder = fleet.folder().join("browser");
        let scripts = install(&npm, &folder, "run.mjs");
        scripts.with_context(|| format!("the browser's scripts cannot be installed in {}", folder.display()))?;
        let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
        // The script asks for it, and waits until it is done.
        let please = |what: &str| format!("touch {what}; until [ -e {what}.done ]; do sleep 0.1; done");
        let mut command = Command::new("node");
        command
            .arg("e2e/run.mjs")
            .current_dir(&folder)
            .env("CHROMIUM", &browser)
            .env("FIRMESH_URL", fleet.url())
            .env("FIRMESH_TOKEN", token.trim())
            .env("FIRMESH_CAMPAIGN", "spring")
            .env("FIRMESH_STOP", please("stop"))
            .env("FIRMESH_START", please("start"));
        let mut story = Process::spawn("the browser's story", command, &folder.join("log"))?;

        if is_asked(&mut story, &folder.join("stop")).await? {
            fleet.coordinator.kill()?;
            fs::write(folder.join("stop.done"), "")?;
        }
        if is_asked(&mut story, &folder.join("start")).await? {
            fleet.restart_coordinator().await?;
            fs::write(folder.join("start.done"), "")?;
        }
        let status = story.wait(WITHIN).await?;
        ensure!(status.success(), "{}", story.log());
        ensure!(!story.log().contains("skipped"), "{}", story.log());
        // What was clicked has happened.
        let view = fleet.campaign_ends("spring", Duration::from_secs(60)).await?;
        ensure!(view.state == CampaignState::RolledBack, "{view:?}");
        Ok(())
    })
    .await
}

/// Waits until the script asks; false if it has ended instead.
async fn is_asked(story: &mut Process, file: &Path) -> Result<bool> {
    until("the browser's story to go on", WITHIN, async || {
        Ok(match (file.exists(), story.ended()?) {
            (true, _) => Seen::Yes(true),
            (false, Some(_)) => Seen::Yes(false),
            (false, None) => Seen::NotYet(story.log()),
        })
    })
    .await
}

/// A script with what it needs, beside the source tree rather than in it.
pub(crate) fn install(npm: &Path, folder: &Path, script: &str) -> Result<()> {
    let source = workspace().join("coordinator/dashboard");
    fs::create_dir_all(folder.join("e2e"))?;
    let script = format!("e2e/{script}");
    for file in ["package.json", "package-lock.json", "e2e/browser.mjs", &script] {
        fs::copy(source.join(file), folder.join(file))?;
    }
    let output = Command::new(npm)
        .args(["ci", "--no-audit", "--no-fund", "--prefer-offline"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "npm ci failed: {said}");
    Ok(())
}
