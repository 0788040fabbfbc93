//! The control plane under load: one real coordinator, and as many simulated nodes as one likes over real connections, each with
//! its own key, certificate and TLS connection. Nodes enrol, tell of their devices, send heartbeats, prove that they hold
//! an image, take permits and report. Beside them somebody asks the operators' API all the time.
//!
//! What the nodes do in place of real ones: their devices are names, and an update ends well at once.
//!
//! Databases that are to be compared are loaded in turn, round by round, in one run on the same machine.

pub(super) mod crowd;
pub(super) mod node;
mod pages;
pub(super) mod report;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use firmesh_protocol::manifest::Caps;
use serde::Serialize;

use self::{
    crowd::Crowd,
    report::{Figures, Latencies},
};
use super::mesh::report::Usage;
use crate::{
    demo::{
        ceremony::People,
        layout::{Layout, Shape},
        world::{COORDINATOR, World},
    },
    postgres::Postgres,
};

const DATABASE: &str = "firmesh";

/// Longer than anybody looks at a fleet.
const FOREVER: Duration = Duration::from_secs(30 * 86_400);

/// How to load the coordinator.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// Nodes, each with a connection of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    nodes: u32,
    /// Devices of a node.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    devices: u32,
    /// Campaigns that run at once, each for its share of the nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    campaigns: u32,
    /// Campaigns that run at once for each of these shares: devices get one update after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    layers: u32,
    /// Devices in flight at once, in all; as many as there are if absent.
    #[arg(long, value_name = "DEVICES", value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: Option<u32>,
    /// With layers or a limit of what is in flight, the load ends when so many updates have ended; as many as there are
    /// devices if absent.
    #[arg(long, value_name = "UPDATES", value_parser = clap::value_parser!(u32).range(1..))]
    updates: Option<u32>,
    /// How often a node tells of its devices, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    every: u64,
    /// For how many seconds only heartbeats come.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    heartbeats: u64,
    /// Where the coordinator keeps its state; several, to see them side by side.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Database::Sqlite])]
    on: Vec<Database>,
    /// Look at every page of the dashboard as well, once the devices are known.
    #[arg(long)]
    pages: bool,
    /// Plan and start no campaigns.
    #[arg(long)]
    no_campaigns: bool,
    /// Stay until Ctrl-C when the devices are known, so that one can look at the fleet: says where.
    #[arg(long)]
    stay: bool,
    /// How often each of them is loaded, in turn. Rates are medians, latencies those of all rounds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Where state and logs go; a folder for temporary files if absent.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where a coordinator keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Database {
    /// A file of its own.
    Sqlite,
    /// A server that the lab starts beside it.
    #[value(name = "postgresql")]
    PostgreSql,
}

/// Loads coordinators, and says how they fared.
pub(super) async fn run(args: &ControlArgs) -> Result<()> {
    ensure!(
        args.campaigns <= args.nodes,
        "a campaign needs at least one node of its own"
    );
    let temporary = tempfile::tempdir()?;
    let folder = args.work.as_deref().unwrap_or_else(|| temporary.path());
    let mut all: BTreeMap<Database, Figures> = BTreeMap::new();
    for round in 1..=args.rounds {
        for database in &args.on {
            eprintln!("round {round} on {database:?}");
            let figures = once(args, *database, &folder.join(format!("{database:?}-{round}"))).await?;
            match all.entry(*database) {
                Entry::Vacant(entry) => drop(entry.insert(figures)),
                Entry::Occupied(mut entry) => entry.get_mut().add(figures),
            }
        }
    }
    report::show(&all, args.json)
}

async fn once(args: &ControlArgs, database: Database, folder: &Path) -> Result<Figures> {
    let shape = Shape {
        racks: 0,
        nodes: 0,
        bmcs: 0,
        hosts: 0,
    };
    fs::create_dir_all(folder)?;
    let mut layout = Layout::new(folder, &shape)?;
    // Ends with this round.
    let _server = match database {
        Database::Sqlite => None,
        Database::PostgreSql => {
            let server = Postgres::start()?;
            server.create_database(DATABASE)?;
            let password = layout.folder.join("database.password");
            fs::write(&password, server.password())?;
            fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
            layout.coordinator_more = toml::from_str(&format!(
                "[database]\nurl = {:?}\npassword = {{ file = {:?} }}\n",
                server.url(DATABASE),
                password.display().to_string(),
            ))?;
            Some(server)
        }
    };
    let mut world = World::begin(layout).await?;
    let figures = load(args, &mut world).await;
    world.processes.stop_all();
    figures.with_context(|| format!("logs lie in {}", folder.join("logs").display()))
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
        layers: args.layers,
    };
    let mut figures = Figures::new(args.nodes, args.devices, args.campaigns * args.layers);

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

    let release = crowd.release(world, &mut people).await?;
    if args.pages {
        step("looking at every page");
        let usage = Usage::begin(&pids);
        figures.pages = pages::look(&world.api, &release.target).await?;
        figures.looked(&usage.end(&pids));
    }
    if args.stay {
        let token = world.layout.coordinator_state().join("operator.token");
        eprintln!(
            "staying until Ctrl-C at {}, token in {}",
            world.api.base(),
            token.display()
        );
        let mut unmeasured = Latencies::default();
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            beaten = crowd.beat(every, FOREVER, &mut unmeasured) => drop(beaten?),
        }
    }
    if args.no_campaigns {
        return Ok(figures);
    }
    step("planning and approving");
    let usage = Usage::begin(&pids);
    let caps = args.in_flight.map(|total| Caps::new(total, total));
    figures.plans = crowd.plan(world, &mut people, &release, shape, caps.as_ref()).await?;
    figures.planned(&usage.end(&pids));
    step("proving");
    crowd.prove().await?;
    step("starting");
    let usage = Usage::begin(&pids);
    let asker = Latencies::asking(&world.api);
    match (args.layers, args.in_flight) {
        (1, None) => {
            let (permitted_s, done_s) = crowd.update(world, shape, &mut figures.reports).await?;
            figures.updated(permitted_s, done_s);
        }
        _ => {
            let updates = args.updates.unwrap_or(args.nodes * args.devices);
            let worked_s = crowd
                .update_in_turn(world, shape, updates as usize, &mut figures.reports)
                .await?;
            figures.worked(updates, worked_s);
        }
    }
    figures.asked_during_updates = asker.stop().await?;
    figures.ended(&usage.end(&pids));
    world.processes.check()?;
    Ok(figures)
}
