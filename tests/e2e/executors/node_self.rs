//! The node updates its own program, through its own campaign, started by its own launcher.
//!
//! Builds of other versions are copies of the real program with some of its text replaced by other text of the same length: its version
//! string, and in those that are not to work a word that they need. Nothing in the product knows of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, CampaignView},
    report::AttemptState,
};
use firmesh_tests::{
    binaries::Program,
    cluster::{Cluster, Node, Shape},
    process::Process,
    python::run,
    setup::rules,
    wait::{Seen, until},
};
use serde_json::{Value, json};

use super::{DEVICE, ENDS_WITHIN, NODE, count, explained};

const COMPONENT: &str = "firmesh-node";
/// What is built, and what the versions of the copies are made of by another last digit.
const BUILT: &str = env!("CARGO_PKG_VERSION");
/// Works.
const GOOD: &str = "0.1.1";
/// Ends when it is started: it looks for its certificate where there is none, and has no token for another.
const CRASHES: &str = "0.1.2";
/// Starts, and asks the coordinator for something that it does not have.
const HEARS_NOBODY: &str = "0.1.3";
/// Half of a program.
const HALF: &str = "0.1.4";

#[tokio::test]
async fn a_campaign_updates_the_node_itself_and_it_comes_back_from_versions_that_do_not_work() -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 1,
        ..Shape::default()
    };
    Cluster::with(shape, async |fleet| {
        let builds = Builds::make(fleet.folder())?;
        for (version, file) in [
            (BUILT, &builds.built),
            (GOOD, &builds.good),
            (CRASHES, &builds.crashes),
            (HEARS_NOBODY, &builds.hears_nobody),
            (HALF, &builds.half),
        ] {
            release(fleet, version, file)?;
        }
        fleet.operator.sign("release")?;
        fleet.operator.ok(&["trust", "publish"])?;
        under_its_launcher(fleet).await?;
        runs(fleet, BUILT).await?;

        // Half a program is not even tried.
        let view = update(fleet, "half", HALF).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "half")?;
        ensure!(why.contains("the image is refused: it is cut off"), "{why}");

        let view = update(fleet, "crashes", CRASHES).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "crashes")?;
        ensure!(why.contains(&format!("runs {BUILT}")), "{why}");
        ensure!(why.contains("was started 3 times and was not confirmed"), "{why}");
        runs(fleet, BUILT).await?;

        // Somebody else is at work: the node does not end under it. What it would start lies in its slot already.
        fleet.misbehave("r1-n1-bmc1", json!({ "kind": "stall" })).await?;
        fleet.start_campaign("others", &rules(2, (120, 10)))?;
        until("an attempt on the other device", ENDS_WITHIN, async || {
            let events = fleet.device_events().await?;
            Ok(Seen::when(!events.is_empty(), || {
                "nothing has happened to it".to_owned()
            }))
        })
        .await?;
        let view = update(fleet, "too-early", CRASHES).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "too-early")?;
        ensure!(why.contains("were at work all the time: r1-n1-bmc1"), "{why}");
        ensure!(running(fleet).await?.as_deref() == Some(BUILT), "it was restarted");
        fleet.misbehave("r1-n1-bmc1", Value::Null).await?;
        fleet.campaign_ends("others", ENDS_WITHIN).await?;

        let view = update(fleet, "spring", GOOD).await?;
        ensure!(
            view.state == CampaignState::Completed,
            "{view:?}, {}",
            explained(fleet, "spring")?
        );
        ensure!(count(&view, AttemptState::Success) == 1, "{view:?}");
        runs(fleet, GOOD).await?;
        let slots = slots(fleet)?;
        ensure!(slots["confirmed"] == "a" && slots["trial"].is_null(), "{slots}");

        let view = update(fleet, "deaf", HEARS_NOBODY).await?;
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}");
        let why = explained(fleet, "deaf")?;
        ensure!(why.contains(&format!("runs {GOOD}")), "{why}");
        ensure!(why.contains("did not say for 20 s that it works"), "{why}");
        runs(fleet, GOOD).await?;

        // A launcher that is killed takes its node with it, and the next one starts what was confirmed.
        let node = fleet.node(NODE)?;
        node.process.kill()?;
        until("the node to be gone with its launcher", ENDS_WITHIN, async || {
            Ok(Seen::when(node.status().await.is_err(), || "it answers".to_owned()))
        })
        .await?;
        start_launcher(fleet).await?;
        runs(fleet, GOOD).await?;
        // Asked to stop, it stops its node, and says so.
        let ended = fleet.node(NODE)?.process.stop(ENDS_WITHIN).await?;
        ensure!(ended.success(), "{ended}");
        Ok(())
    })
    .await
}

/// The builds, as files.
struct Builds {
    built: PathBuf,
    good: PathBuf,
    crashes: PathBuf,
    hears_nobody: PathBuf,
    half: PathBuf,
}

impl Builds {
    fn make(folder: &Path) -> Result<Self> {
        let built = Program::Node.path()?;
        let bytes = fs::read(&built)?;
        let said = String::from_utf8(run(&built, ["--version"])?.stdout)?;
        let said = said.trim().strip_prefix("firmesh-node ").context("no version")?;
        ensure!(said.starts_with(&format!("{BUILT} (")), "{said}");
        let other = |version: &str, more: Option<(&str, &str)>| -> Result<PathBuf> {
            let mut bytes = bytes.clone();
            replace(&mut bytes, said, &said.replacen(BUILT, version, 1))?;
            if let Some((from, to)) = more {
                replace(&mut bytes, from, to)?;
            }
            let file = folder.join(format!("firmesh-node-{version}"));
            fs::write(&file, bytes)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            let says = String::from_utf8(run(&file, ["--version"])?.stdout)?;
            ensure!(says.starts_with(&format!("firmesh-node {version} (")), "{says}");
            Ok(file)
        };
        let half = other(HALF, None)?;
        fs::File::options()
            .write(true)
            .open(&half)?
            .set_len(bytes.len() as u64 / 2)?;
        Ok(Self {
            good: other(GOOD, None)?,
            crashes: other(CRASHES, Some(("node.crt", "node.crx")))?,
            hears_nobody: other(HEARS_NOBODY, Some(("/node/v1/sync", "/node/v1/sinc")))?,
            half,
            built,
        })
    }
}

/// Replaces a text by another of the same length, wherever it stands.
fn replace(bytes: &mut [u8], from: &str, to: &str) -> Result<()> {
    ensure!(from.len() == to.len(), "{to:?} has another length than {from:?}");
    let mut found = 0;
    let mut at = 0;
    while let Some(next) = bytes[at..]
        .windows(from.len())
        .position(|window| window == from.as_bytes())
    {
        at += next;
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        found += 1;
    }
    ensure!(found > 0, "{from:?} is not in the program");
    Ok(())
}

fn name(version: &str) -> String {
    format!("firmware/firmesh-node-{version}")
}

fn release(fleet: &Cluster, version: &str, file: &Path) -> Result<()> {
    let file = file.display().to_string();
    let model = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    fleet.operator.ok(&["artifact", "add", &file])?;
    fleet.operator.ok(&[
        "release",
        "create",
        "--file",
        &file,
        "--vendor",
        "Firmesh",
        "--model",
        &model,
        "--component",
        COMPONENT,
        "--release-version",
        version,
        "--name",
        &name(version),
    ])?;
    Ok(())
}

/// The node gets itself as a device, and its launcher.
async fn under_its_launcher(fleet: &mut Cluster) -> Result<()> {
    let node = fleet.node(NODE)?;
    let file = node.folder().join("node.toml");
    let config = fs::read_to_string(&file)?;
    let executor = "kind = \"node-self\", works_within_s = 20, others_within_s = 3";
    let device = format!("[[device]]\nid = {DEVICE:?}\ncomponent = {COMPONENT:?}\nexecutor = {{ {executor} }}\n");
    fs::write(&file, format!("{config}{device}"))?;
    // It has its certificate, and nobody needs the token any more.
    fs::remove_file(node.folder().join("token"))?;
    node.process.stop(ENDS_WITHIN).await?;
    start_launcher(fleet).await
}

async fn start_launcher(fleet: &mut Cluster) -> Result<()> {
    let node = fleet.node(NODE)?;
    let folder = node.folder().to_owned();
    fs::remove_file(folder.join("state/addresses.json")).ok();
    let [slots, config] = ["state/self", "node.toml"].map(|name| folder.join(name).display().to_string());
    let args = ["--launch", &slots, "--", "--config", &config];
    let process = Process::start(Program::Node, args, &folder.join("node.log"), |_| ())?;
    node.replace(process).await
}

/// A campaign that brings the node this version, to its end.
async fn update(fleet: &Cluster, id: &str, version: &str) -> Result<CampaignView> {
    let file = format!(
        "id = {id:?}\nexpires = \"2099-01-01T00:00:00Z\"\nreleases = [{:?}]\nprevious = [{:?}]\n{}\n",
        name(version),
        name(BUILT),
        rules(2, (240, 60))
    );
    fs::write(fleet.folder().join(format!("{id}.toml")), file)?;
    fleet
        .operator
        .ok(&["campaign", "create", "--file", &format!("{id}.toml")])?;
    fleet.operator.ok(&["campaign", "plan", id])?;
    fleet.operator.sign("approver")?;
    fleet.operator.ok(&["campaign", "publish"])?;
    fleet.operator.ok(&["campaign", "start", id])?;
    fleet.campaign_ends(id, Duration::from_secs(300)).await
}

/// What the node says of itself.
async fn running(fleet: &Cluster) -> Result<Option<String>> {
    let status = node(fleet)?.status().await?;
    let devices = status["devices"].as_array().context("a node shows its devices")?;
    let own = devices.iter().find(|device| device["device"] == DEVICE);
    Ok(own.and_then(|own| own["version"].as_str()).map(str::to_owned))
}

/// So say the node, and the coordinator.
async fn runs(fleet: &Cluster, version: &str) -> Result<()> {
    until(&format!("the node to run {version}"), ENDS_WITHIN, async || {
        let found = running(fleet).await?;
        let views = fleet.device_views().await?;
        let told = views.iter().find(|view| view.facts.device.as_str() == DEVICE);
        let told = told.and_then(|view| view.facts.version.clone());
        let both = [found, told];
        Ok(Seen::when(
            both.iter().all(|one| one.as_deref() == Some(version)),
            || format!("{both:?}"),
        ))
    })
    .await
}

fn node(fleet: &Cluster) -> Result<&Node> {
    fleet.nodes.get(NODE).context("there is one node")
}

fn slots(fleet: &Cluster) -> Result<Value> {
    let file = node(fleet)?.folder().join("state/self/slots.json");
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}
