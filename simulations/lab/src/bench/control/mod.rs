//! The control plane under load: one real coordinator, and as many simulated nodes as one likes over real connections, each with
//! its own key, certificate and TLS connection. Nodes enrol, tell of their devices, send heartbeats, prove that they hold
//! an image, take permits and report. Beside them somebody asks the operators' API all the time.
//!
//! What the nodes do in place of real ones: their devices are names, and an update ends well at once.

pub(super) mod crowd;
pub(super) mod node;
pub(super) mod report;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::{
    crowd::Crowd,
    report::{Figures, Latencies},
};
use super::mesh::report::Usage;
use crate::demo::{
    ceremony::People,
    layout::{Layout, Shape},
    world::{COORDINATOR, World},
};

/// How to load the coordinator.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// Nodes, each with a connection of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    nodes: u32,
    /// Devices of a node.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    devices: u32,
    /// Campaigns that run at once, each for its share of the nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    campaigns: u32,
    /// How often a node tells of its devices, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: u64,
    /// For how many seconds only heartbeats come.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    heartbeats: u64,
    /// The database: lines for the coordinator's configuration, such as `[database]` with a `url`. SQLite if absent.
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
    /// Where state and logs go; a folder for temporary files if absent.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Loads a coordinator, and says how it fared.
pub(super) async fn run(args: &ControlArgs) -> Result<()> {
    ensure!(
        args.campaigns <= args.nodes,
        "a campaign needs at least one node of its own"
    );
    let temporary = tempfile::tempdir()?;
    let folder = args.work.as_deref().unwrap_or_else(|| temporary.path());
    let shape = Shape {
        racks: 0,
        nodes: 0,
        bmcs: 0,
        hosts: 0,
    };
    let mut layout = Layout::new(folder, &shape)?;
    if let Some(file) = &args.database {
        let lines = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        layout.coordinator_more = toml::from_str(&lines).with_context(|| format!("{} is no TOML", file.display()))?;
    }
    let mut world = World::begin(layout).await?;
    let figures = load(args, &mut world).await;
    world.processes.stop_all();
    let figures = figures.with_context(|| format!("logs lie in {}", folder.join("logs").display()))?;
    report::show(&figures, args.json)
}

async fn load(args: &ControlArgs, world: &mut World) -> Result<Figures> {
    let mut people = People::found(&world.layout, &world.about)?;
    people.sign("release")?;
    people.sign("approver")?;
    people.publish(&world.api).await?;
    let pids = BTreeMap::from([(
        COORDINATOR.to_owned(),
        world.processes.id(COORDINATOR).context("it runs")?,
    )]);
    let shape = crowd::Shape {
        devices: args.devices,
        campaigns: args.campaigns,
    };
    let mut figures = Figures::new(args.nodes, args.devices, args.campaigns);

    let step = |what: &str| eprintln!("{what} ...");
    step("enrolling");
    let usage = Usage::begin(&pids);
    let mut crowd = Crowd::enrol(world, args.nodes, shape, &mut figures.enrolment).await?;
    figures.enrolled(&usage.end(&pids));

    step("telling of devices");
    let usage = Usage::begin(&pids);
    crowd.tell_of_devices(&mut figures.registration).await?;
    figures.registered(&usage.end(&pids));

    step("heartbeats");
    let usage = Usage::begin(&pids);
    let every = Duration::from_secs(args.every);
    let asker = Latencies::asking(&world.api);
    let beats = crowd
        .beat(every, Duration::from_secs(args.heartbeats), &mut figures.heartbeats)
        .await?;
    figures.asked_meanwhile = asker.stop().await?;
    figures.beat(beats, &usage.end(&pids));

    step("planning and approving");
    let plans = crowd.plan(world, &mut people, args.campaigns, None).await?;
    figures.plans = plans;
    step("proving");
    crowd.prove().await?;
    step("starting");
    let usage = Usage::begin(&pids);
    let asker = Latencies::asking(&world.api);
    let (permitted_s, done_s) = crowd.update(world, args.campaigns, &mut figures.reports).await?;
    figures.asked_during_updates = asker.stop().await?;
    figures.updated(permitted_s, done_s, &usage.end(&pids));
    world.processes.check()?;
    Ok(figures)
}
