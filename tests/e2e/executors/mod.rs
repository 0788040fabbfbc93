//! Executors against software that we did not write: each with a campaign through coordinator, mesh and node, and with attempts
//! that are killed at every boundary.

mod credentials;
mod ddi;
mod described;
mod doctor;
mod fwupd;
mod hosts;
mod ipmi;
mod launcher;
mod machine;
mod node_self;
mod rauc;
mod redfish;
mod swupdate;
mod transcripts;
mod uboot;
mod vcenter;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use firmesh_protocol::{
    api::{CampaignState, CampaignView},
    report::AttemptState,
};
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::{NEW, OLD, release_name, rules, stage_release},
    wait::{Seen, until},
};
use serde_json::Value;

const NODE: &str = "r1-n1";
/// The one device of these fleets.
const DEVICE: &str = "lab-1";
const ENDS_WITHIN: Duration = Duration::from_secs(180);

/// A fleet of one node, to which a device is brought.
async fn one_node(story: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let shape = Shape {
        racks: 1,
        nodes: 1,
        bmcs: 0,
        hosts: 0,
        ..Shape::default()
    };
    Cluster::with(shape, story).await
}

/// Brings the node a device with this executor, and signs releases of these files for it.
async fn bring(fleet: &mut Cluster, component: &str, executor: &str, images: &[(&Path, &str)]) -> Result<()> {
    for (file, version) in images {
        let file = file.display().to_string();
        fleet.operator.ok(&["artifact", "add", &file])?;
        stage_release(&fleet.operator, &file, "R1", component, version)?;
    }
    adopt(fleet, component, executor).await
}

/// Signs what is staged, and gives the node a device with this executor.
async fn adopt(fleet: &mut Cluster, component: &str, executor: &str) -> Result<()> {
    adopt_with(fleet, component, executor, "").await
}

/// The same, with more of the device's configuration and of the node's after it.
async fn adopt_with(fleet: &mut Cluster, component: &str, executor: &str, more: &str) -> Result<()> {
    fleet.operator.sign("release")?;
    fleet.operator.ok(&["trust", "publish"])?;
    let node = fleet.node(NODE)?;
    let file = node.folder().join("node.toml");
    let mut config = fs::read_to_string(&file)?;
    write!(
        config,
        "[[device]]\nid = {DEVICE:?}\ncomponent = {component:?}\nexecutor = {{ {executor} }}\n{more}\n"
    )?;
    fs::write(&file, config)?;
    node.process.stop(ENDS_WITHIN).await?;
    node.restart().await?;
    until("the device to be known", ENDS_WITHIN, async || {
        let views = fleet.device_views().await?;
        let known = views.iter().any(|view| view.facts.version.is_some());
        Ok(Seen::when(known, || format!("{views:?}")))
    })
    .await
}

/// Has a campaign approved and started that brings the device this version.
fn begin(fleet: &Cluster, id: &str, component: &str, (to, back): (&str, &str), back_s: u32) -> Result<()> {
    let [to, back] = [to, back].map(|version| release_name(component, version));
    begin_of(fleet, id, (&to, &back), back_s)
}

/// The same, the releases named.
fn begin_of(fleet: &Cluster, id: &str, releases: (&str, &str), back_s: u32) -> Result<()> {
    approve_of(fleet, id, releases, back_s)?;
    fleet.operator.ok(&["campaign", "start", id]).map(drop)
}

/// The same without the start.
fn approve_of(fleet: &Cluster, id: &str, releases: (&str, &str), back_s: u32) -> Result<()> {
    approve_within(fleet, id, releases, (120, back_s))
}

/// The same with both deadlines: of the attempt, and of a restart.
fn approve_within(fleet: &Cluster, id: &str, (to, back): (&str, &str), deadlines: (u32, u32)) -> Result<()> {
    let file = format!(
        "id = {id:?}\nexpires = \"2099-01-01T00:00:00Z\"\nreleases = [{to:?}]\nprevious = [{back:?}]\n{}\n",
        rules(1, deadlines)
    );
    fs::write(fleet.folder().join(format!("{id}.toml")), file)?;
    fleet
        .operator
        .ok(&["campaign", "create", "--file", &format!("{id}.toml")])?;
    fleet.operator.ok(&["campaign", "plan", id])?;
    fleet.operator.sign("approver")?;
    fleet.operator.ok(&["campaign", "publish"]).map(drop)
}

/// The same, and it goes well.
async fn succeeds(fleet: &Cluster, id: &str, component: &str) -> Result<()> {
    begin(fleet, id, component, (NEW, OLD), 10)?;
    let view = fleet.campaign_ends(id, ENDS_WITHIN).await?;
    ensure!(view.state == CampaignState::Completed, "{view:?}");
    ensure!(count(&view, AttemptState::Success) == 1, "{view:?}");
    ensure!(
        version(fleet).await?.as_deref() == Some(NEW),
        "{:?}",
        fleet.device_views().await?
    );
    Ok(())
}

fn count(view: &CampaignView, state: AttemptState) -> u64 {
    view.states.get(&state).copied().map_or(0, u64::from)
}

/// What the coordinator believes the device runs.
async fn version(fleet: &Cluster) -> Result<Option<String>> {
    Ok(fleet
        .device_views()
        .await?
        .into_iter()
        .find_map(|view| view.facts.version))
}

/// What the campaign has to say of the device.
fn explained(fleet: &Cluster, id: &str) -> Result<String> {
    let why: Value = fleet.operator.ok(&["campaign", "explain", id, "--device", DEVICE])?;
    Ok(why.to_string())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}
