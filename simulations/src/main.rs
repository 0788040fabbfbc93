//! Rehearsals: the cores that run in production, in a world of virtual time.

use std::{num::NonZeroUsize, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use firmesh_coordinator_core::TURNS;
use firmesh_node_core::swarm::Tuning;
use firmesh_simulations::mesh::{Fault, Summary, TopologyArgs, World};

#[derive(Debug, Parser)]
#[command(version, about)]
struct Sim {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Spreads one image over a site: what the swarm's scheduling makes of a network, without transport and processors.
    Mesh(MeshArgs),
}

#[derive(Debug, clap::Args)]
struct MeshArgs {
    #[command(flatten)]
    topology: TopologyArgs,
    /// What goes wrong in the middle.
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    /// How many the origin serves at once.
    #[arg(long, default_value_t = TURNS)]
    turns: NonZeroUsize,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many seeds, each a run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Give a run up after so many virtual seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Command::Mesh(args) = Sim::parse().command;
    match mesh(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every node that was to have the image has it.
fn mesh(args: &MeshArgs) -> anyhow::Result<bool> {
    let topology = args.topology.topology();
    let topology = args.fault.map_or(topology, |fault| fault.topology(topology));
    let mut whole = true;
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let mut world = World::new(topology, args.fault, Tuning::default(), args.turns, seed);
        let summary = world.run(Duration::from_secs(args.limit));
        whole &= summary.complete == summary.nodes;
        match args.json {
            true => println!("{}", serde_json::to_string(&summary)?),
            false => println!("{}", line(seed, &summary)),
        }
    }
    Ok(whole)
}

fn line(seed: u64, summary: &Summary) -> String {
    let export = summary
        .export
        .map_or_else(|| "-".to_owned(), |export| format!("{export:.3}"));
    format!(
        "seed {seed}: {}/{} nodes, last after {:.2} s, {:.3} of the bound; origin {:.3} images, rack import {:.3}, export \
         {export}",
        summary.complete,
        summary.nodes,
        summary.last_s,
        summary.to_bound(),
        summary.origin,
        summary.import,
    )
}
