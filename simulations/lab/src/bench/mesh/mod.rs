//! The mesh: racks built from network namespaces with shaped links, real processes in them, one image to everybody; what it
//! took, and what crossed every link, against what is least possible.

mod chart;
mod faults;
mod fleet;
mod network;
pub(super) mod report;
mod tools;
mod validate;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use firmesh_protocol::manifest::Priority;
use firmesh_simulations::mesh::{Fault, Topology, TopologyArgs};
use serde::Serialize;

use self::{
    network::Network,
    report::{Outcome, Row},
};

/// What to measure, and where.
#[derive(Debug, Args)]
pub(crate) struct MeshArgs {
    #[command(flatten)]
    topology: TopologyArgs,
    /// Interleaved runs; the median counts.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50))]
    runs: u32,
    /// What else to measure on the same network, in turn with Firmesh; tools that are not installed are named.
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Contender>,
    /// A budget of every node, such as `node=40` or `rack=120` (Mbit/s), and what came of it; repeat.
    #[arg(long, value_parser = budget, value_name = "SCOPE=MBIT", conflicts_with = "peers")]
    budget: Vec<(String, u32)>,
    /// What goes wrong in the middle; other tools are measured with origin-killed and peers-killed.
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    /// Run the simulator on the same network with the same fault, and say by how much it differs from what was measured.
    #[arg(long)]
    validate: bool,
    /// Print JSON, with every run.
    #[arg(long)]
    json: bool,
    /// Write a chart.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Where the nodes' state goes while a run lasts; in the system's temporary folder if absent.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Leave the processes' logs and state of every run in the work folder.
    #[arg(long)]
    keep: bool,
    /// Give a run up after so many seconds. Default: ten times the bound and a minute.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// The most nodes that one machine carries, each a process.
const NODES_MAX: u32 = 128;

/// A way of distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Contender {
    /// This project.
    Firmesh,
    /// This project: the image is an emergency, and a background image of the same length has begun to move before it.
    FirmeshBeside,
    /// This project: the image may wait, and makes room for other traffic. There is none here: what its caution costs.
    FirmeshBackground,
    /// aria2 with BitTorrent: one seed and a tracker at the origin; not encrypted.
    Aria2,
    /// libtorrent with BitTorrent: the same; not encrypted.
    Libtorrent,
    /// The same, with an origin that gives each piece away once before it gives any a second time.
    LibtorrentSuperSeed,
    /// A pipe from node to node that each writes to its disk too; neither encrypted nor verified.
    Chain,
    /// curl from an nginx cache in each rack, which fetches from the nginx at the origin; neither encrypted nor verified.
    NginxCache,
    /// curl from one nginx at the origin, everybody at once; not encrypted.
    Curl,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Firmesh => "firmesh",
            Self::FirmeshBeside => "firmesh-beside",
            Self::FirmeshBackground => "firmesh-background",
            Self::Aria2 => "aria2",
            Self::Libtorrent => "libtorrent",
            Self::LibtorrentSuperSeed => "libtorrent-super-seed",
            Self::Chain => "chain",
            Self::NginxCache => "nginx-cache",
            Self::Curl => "curl",
        }
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Figures<'a> {
    topology: Topology,
    bound_s: f64,
    fault: Option<Fault>,
    origin_is_delayed: bool,
    medians: &'a [Row],
    #[serde(skip_serializing_if = "Option::is_none")]
    validation: Option<validate::Validation>,
    runs: &'a BTreeMap<Contender, Vec<Outcome>>,
}

pub(super) async fn run(args: &MeshArgs) -> Result<()> {
    let topology = args.topology.topology();
    let topology = args.fault.map_or(topology, |fault| fault.topology(topology));
    ensure!(
        topology.count() <= NODES_MAX,
        "--racks and --nodes make {} nodes, one machine carries at most {NODES_MAX}",
        topology.count()
    );
    if let Some(refusal) = args.refusal() {
        bail!(refusal);
    }
    Network::check_machine()?;
    let folder = match &args.work {
        Some(work) => tempfile::Builder::new().prefix("firmesh-mesh-").tempdir_in(work),
        None => tempfile::Builder::new().prefix("firmesh-mesh-").tempdir(),
    };
    let mut folder = folder.context("no folder to work in (--work)")?;
    folder.disable_cleanup(args.keep);
    let image = folder.path().join("image.bin");
    std::fs::write(&image, super::image(usize::try_from(topology.image_bytes())?))?;
    let (mut runs, mut is_delayed) = (BTreeMap::<Contender, Vec<Outcome>>::new(), false);
    let contenders = args.contenders();
    for run in 1..=args.runs {
        for (at, contender) in (0_u32..).zip(&contenders) {
            let state = folder.path().join(format!("run-{run}-{}", contender.name()));
            std::fs::create_dir(&state)?;
            let outcome = {
                let spare = u32::from(args.fault == Some(Fault::GarbagePeer));
                let network = Network::build(topology, run * 10 + at, spare)?;
                is_delayed = network.is_delayed;
                let limit = args.limit(&topology);
                match contender {
                    Contender::Firmesh | Contender::FirmeshBeside | Contender::FirmeshBackground => {
                        let (priority, beside) = match contender {
                            Contender::FirmeshBeside => (Priority::Emergency, true),
                            Contender::FirmeshBackground => (Priority::Background, false),
                            _ => (Priority::Normal, false),
                        };
                        let case = fleet::Case {
                            fault: args.fault,
                            budgets: args.budget.clone(),
                            priority,
                            beside,
                        };
                        fleet::run(&network, &topology, &image, &state, case, limit).await
                    }
                    other => tools::run(*other, &network, &topology, &image, &state, args.fault, limit).await,
                }
            };
            let outcome = outcome.with_context(|| match args.keep {
                true => format!("the logs lie in {}", state.join("logs").display()),
                false => "--keep leaves the logs behind".to_owned(),
            })?;
            progress(*contender, run, args.runs, &topology, &outcome);
            runs.entry(*contender).or_default().push(outcome);
            if !args.keep {
                remove(&state)?;
            }
        }
    }
    let rows: Vec<_> = runs
        .iter()
        .map(|(contender, runs)| Row::of(*contender, &topology, runs))
        .collect();
    if let Some(path) = &args.svg {
        std::fs::write(path, chart::svg(&topology, &rows))
            .with_context(|| format!("--svg: {} cannot be written", path.display()))?;
    }
    let ours = rows
        .iter()
        .find(|row| row.contender == Contender::Firmesh)
        .filter(|_| args.validate);
    let validation = ours.map(|row| validate::Validation::of(row, topology, args.fault));
    if args.json {
        let figures = Figures {
            topology,
            bound_s: topology.bound_s(),
            fault: args.fault,
            origin_is_delayed: is_delayed,
            medians: &rows,
            validation,
            runs: &runs,
        };
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print(&topology, args.fault, is_delayed, &rows);
        if let Some(validation) = &validation {
            println!("{validation}");
        }
        let ours = runs.get(&Contender::Firmesh).map_or(&[][..], Vec::as_slice);
        for (scope, mbit) in &args.budget {
            println!("{}", report::budget_line(scope, *mbit, ours));
        }
    }
    Ok(())
}

/// A scope and its Mbit/s.
fn budget(text: &str) -> Result<(String, u32), String> {
    let (scope, mbit) = text.split_once('=').ok_or("not of the form node=40")?;
    if !["node", "rack"].contains(&scope) {
        return Err(format!("{scope:?} is neither node nor rack"));
    }
    let mbit = mbit
        .parse()
        .map_err(|_| format!("{mbit:?} is not a number of Mbit/s"))?;
    Ok((scope.to_owned(), mbit))
}

impl MeshArgs {
    /// Firmesh, and those of the others that can be measured here.
    fn contenders(&self) -> Vec<Contender> {
        let mut contenders = vec![Contender::Firmesh];
        for other in &self.peers {
            let missing = tools::missing(*other);
            if !missing.is_empty() {
                eprintln!("{} is left out: {} not installed", other.name(), missing.join(" and "));
            } else if !contenders.contains(other) {
                contenders.push(*other);
            }
        }
        contenders
    }

    /// Why this is not measured.
    fn refusal(&self) -> Option<String> {
        let fault = self.fault?;
        self.peers.iter().find_map(|other| tools::refusal(*other, fault))
    }

    fn limit(&self, topology: &Topology) -> Duration {
        let usual = Duration::from_secs_f64(topology.bound_s() * 10.0 + 60.0);
        self.timeout.map_or(usual, Duration::from_secs)
    }
}

fn progress(contender: Contender, run: u32, runs: u32, topology: &Topology, outcome: &Outcome) {
    eprintln!(
        "run {run} of {runs}: {} {}/{} nodes, last after {:.2} s ({:.3} of the bound), heard within {:.2} s, machine {:.0} % \
         busy ({:.0} % not these processes), load before {:.2}",
        contender.name(),
        outcome.complete,
        outcome.nodes,
        outcome.last_s,
        outcome.last_s / topology.bound_s(),
        outcome.heard_s,
        outcome.usage.machine_busy * 100.0,
        outcome.usage.others_busy * 100.0,
        outcome.usage.load_before,
    );
}

fn print(topology: &Topology, fault: Option<Fault>, is_delayed: bool, rows: &[Row]) {
    println!(
        "{} racks x {} nodes, {} MiB; origin {}, rack {}, node {} Mbit/s; bound T = {:.2} s; F is the image",
        topology.racks,
        topology.nodes,
        topology.size_mib,
        topology.origin_mbit,
        topology.rack_mbit,
        topology.node_mbit,
        topology.bound_s()
    );
    if let Some(fault) = fault {
        println!("fault: {fault:?}");
    }
    if !is_delayed {
        println!("the kernel has no netem: the origin is next door, not 20 ms away");
    }
    println!("{}", Row::head());
    for row in rows {
        println!("{}", row.line());
    }
}

fn remove(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder).with_context(|| format!("{} was not removed", folder.display()))
}
