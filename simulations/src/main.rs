//! Rehearsals: the cores that run in production, in a world of virtual time.

#![expect(
    clippy::disallowed_methods,
    reason = "a command takes real time; what it goes through does not"
)]

mod gate;
mod mesh_hunt;
mod planning;
mod planted;
mod spread;
mod steering;

use std::{
    num::NonZeroUsize,
    ops::Range,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use firmesh_coordinator_core::TURNS;
use firmesh_node_core::swarm::Tuning;
use firmesh_simulations::{
    kills,
    mesh::{Adversity, Day, Fault, Summary, TopologyArgs, World},
    rehearsal::{self, Finding, Hunt, Profile, Progress, Total},
};

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
    /// Looks for seeds that break a promise of the mesh: small sites with liars, crashes, losses and bad disks.
    MeshHunt(mesh_hunt::MeshHuntArgs),
    /// Looks for seeds that break a promise: whole fleets under faults, in virtual time, on all processors.
    Hunt(HuntArgs),
    /// Goes through one seed again and tells what happens.
    Replay(ReplayArgs),
    /// Plants bugs into a copy of the sources, and hunts for each: shows that the hunt finds what it is for.
    Planted(planted::PlantedArgs),
    /// Shows how soon a gate stops a bad image: the sequential test beside a fixed share, wave after wave.
    Gate(gate::GateArgs),
    /// Plans a campaign for a large fleet, in parts of what one campaign may have: how long it takes, in how much memory.
    Plan(planning::PlanArgs),
    /// What the campaign engine takes to steer large campaigns: heartbeats and reports in, permits out.
    Steer(steering::SteerArgs),
    /// Spreads one image over a fleet of hundreds of thousands of nodes, site by site, on all processors.
    Scale(spread::ScaleArgs),
    /// Kills at every boundary of every executor's attempts, on good devices and on faulty ones.
    Kills(KillsArgs),
}

#[derive(Debug, clap::Args)]
struct KillsArgs {
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of several deaths in a row, for each executor.
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct MeshArgs {
    #[command(flatten)]
    topology: TopologyArgs,
    /// What goes wrong in the middle.
    #[arg(long, value_enum)]
    fault: Option<Fault>,
    #[command(flatten)]
    adversity: Adversity,
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

#[derive(Debug, clap::Args)]
struct HuntArgs {
    /// The seeds, such as 0..100000: the last one is not gone through.
    #[arg(long, value_parser = range, default_value = "0..10000")]
    seeds: Range<u64>,
    /// What the runs are about.
    #[arg(long, value_enum, default_value_t = Profile::Chaos)]
    profile: Profile,
    /// Threads; as many as there are processors if not given.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// End after so many seconds, however many seeds are left.
    #[arg(long, value_name = "SECONDS")]
    within: Option<u64>,
    /// End with so many failures.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    findings: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ReplayArgs {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// What the run is about.
    #[arg(long, value_enum, default_value_t = Profile::Chaos)]
    profile: Profile,
    /// Of the seed's faults, only these (numbers as this command lists them).
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<usize>>,
    /// Tell everything that happens.
    #[arg(long)]
    story: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("give two numbers as in 0..10000")?;
    let number = |text: &str| text.parse().map_err(|error| format!("{text:?}: {error}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() {
        return Err(format!("{text} has no seeds: the first must be below the last"));
    }
    Ok(range)
}

fn main() -> ExitCode {
    let done = match Sim::parse().command {
        Command::Mesh(args) => mesh(&args),
        Command::Gate(args) => gate::gate(&args).map(|()| true),
        Command::MeshHunt(args) => mesh_hunt::mesh_hunt(&args),
        Command::Hunt(args) => hunt(&args),
        Command::Replay(args) => Ok(replay(&args)),
        Command::Planted(args) => planted::planted(&args),
        Command::Plan(args) => planning::planning(&args),
        Command::Steer(args) => steering::steering(&args),
        Command::Scale(args) => spread::scale(&args),
        Command::Kills(args) => kills(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every node that was to have the image has it, and no promise was broken.
fn mesh(args: &MeshArgs) -> anyhow::Result<bool> {
    let topology = args.topology.topology();
    let topology = args.fault.map_or(topology, |fault| fault.topology(topology));
    let mut whole = true;
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let run = |fault, troubles| {
            let day = Day {
                fault,
                troubles,
                is_real: false,
            };
            World::on(day, topology, Tuning::default(), args.turns, seed).run(Duration::from_secs(args.limit))
        };
        let summary = run(args.fault, args.adversity.draw(&topology, seed));
        whole &= summary.complete == summary.nodes && summary.broken.is_none();
        let quiet = (!args.adversity.is_none()).then(|| run(None, Vec::new()));
        let told = Told {
            slowdown_p50: quiet.as_ref().map(|quiet| summary.p50_s / quiet.p50_s),
            slowdown_last: quiet.as_ref().map(|quiet| summary.last_s / quiet.last_s),
            summary: &summary,
        };
        match args.json {
            true => println!("{}", serde_json::to_string(&told)?),
            false => {
                println!("{}", line(seed, &summary));
                if let Some(quiet) = &quiet {
                    println!("{}", beside(quiet, &summary));
                }
            }
        }
    }
    Ok(whole)
}

/// A run, and how it compares with the same without any fault.
#[derive(Debug, serde::Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    slowdown_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slowdown_last: Option<f64>,
}

fn beside(quiet: &Summary, summary: &Summary) -> String {
    let against = |now: f64, before: f64| format!("{now:.2} s ({:.2}x)", now / before);
    let broken = summary.broken.as_ref().map_or_else(String::new, |broken| {
        format!("; breaks `{}`: {}", broken.promise.as_str(), broken.how)
    });
    format!(
        "  against a day without faults: half {}, 99 % {}, last {}; {} liars, {} banned; {:.3} images wasted{broken}",
        against(summary.p50_s, quiet.p50_s),
        against(summary.p99_s, quiet.p99_s),
        against(summary.last_s, quiet.last_s),
        summary.liars,
        summary.banned,
        summary.wasted,
    )
}

/// Whether no death broke a promise.
fn kills(args: &KillsArgs) -> anyhow::Result<bool> {
    let began = Instant::now();
    let summary = kills::kill(args.seed, args.rounds);
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
        return Ok(summary.broken.is_empty());
    }
    println!(
        "{} attempts, {} kills in {:.1} s, seed {}",
        summary.attempts,
        summary.kills,
        began.elapsed().as_secs_f64(),
        args.seed
    );
    for (of, kills) in &summary.kills_of {
        let boundaries = summary.boundaries_of.get(of);
        let at = boundaries.map_or_else(String::new, |boundaries| format!(" at {boundaries} boundaries"));
        println!("  {of:<40} {kills:>6} kills{at}");
    }
    println!("  ended: {:?}", summary.ended);
    for broken in &summary.broken {
        println!("BROKEN {} killed at {:?}: {}", broken.of, broken.kills, broken.what);
    }
    println!("{} broken", summary.broken.len());
    Ok(summary.broken.is_empty())
}

/// Whether no seed broke a promise.
fn hunt(args: &HuntArgs) -> anyhow::Result<bool> {
    let threads = match args.threads {
        Some(threads) => threads,
        None => thread::available_parallelism()?,
    };
    let what = Hunt {
        profile: args.profile,
        seeds: args.seeds.clone(),
        threads,
        findings_max: usize::try_from(args.findings)?,
    };
    let began = Instant::now();
    let told = Mutex::new(began);
    let goes_on = |progress: Progress| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if !args.json && told.elapsed() >= Duration::from_secs(2) {
            *told = Instant::now();
            eprintln!("{}", progress_line(&progress, &what, began.elapsed()));
        }
        args.within
            .is_none_or(|seconds| began.elapsed() < Duration::from_secs(seconds))
    };
    let total = rehearsal::hunt(&what, &goes_on);
    match args.json {
        true => println!("{}", serde_json::to_string(&total)?),
        false => tell(&what, &total, began.elapsed()),
    }
    Ok(total.findings.is_empty())
}

fn progress_line(progress: &Progress, what: &Hunt, took: Duration) -> String {
    let all = what.seeds.end - what.seeds.start;
    let rate = progress.seeds as f64 / took.as_secs_f64();
    let left = (all - progress.seeds) as f64 / rate;
    format!(
        "{} of {all} seeds, {rate:.0}/s, {:.0} events/s, {} failures, {left:.0} s left",
        progress.seeds,
        progress.events as f64 / took.as_secs_f64(),
        progress.findings,
    )
}

fn tell(what: &Hunt, total: &Total, took: Duration) {
    for finding in &total.findings {
        tell_finding(finding);
    }
    let Total {
        seeds,
        events,
        tally,
        trace,
        findings,
    } = total;
    let processors_s = took.as_secs_f64() * what.threads.get() as f64;
    println!(
        "{}: {seeds} seeds, {events} events in {:.1} s on {} threads ({:.0} seeds a second and thread); trace {trace:016x}",
        what.profile.as_str(),
        took.as_secs_f64(),
        what.threads,
        *seeds as f64 / processors_s,
    );
    println!(
        "  attempts {}, updated {}, automatic rollbacks of devices {}, quarantined {}; processes killed {}, power cuts {}, of \
         these in the middle of writing a slot {}",
        tally.attempts,
        tally.updated,
        tally.rolled_back,
        tally.quarantined,
        tally.kills,
        tally.power_cuts,
        tally.cuts_in_write,
    );
    match findings.len() {
        0 => println!("  no promise was broken"),
        count => println!("  {count} seeds broke a promise"),
    }
}

fn tell_finding(finding: &Finding) {
    let Finding {
        profile,
        seed,
        broken,
        faults,
        faults_drawn,
    } = finding;
    println!(
        "seed {seed} breaks `{}` at {:.3} s: {}",
        broken.promise.as_str(),
        broken.at_ms as f64 / 1e3,
        broken.how
    );
    println!("  with {} of its {faults_drawn} faults:", faults.len());
    for fault in faults {
        println!("  {fault}");
    }
    let drawn = rehearsal::faults_of(*profile, *seed);
    let numbers: Vec<_> = faults
        .iter()
        .filter_map(|fault| drawn.iter().position(|other| other == fault))
        .collect();
    let only: Vec<_> = numbers.iter().map(usize::to_string).collect();
    println!(
        "  again: firmesh-sim replay --profile {} --seed {seed} --only {} --story",
        profile.as_str(),
        only.join(",")
    );
}

/// Whether the seed keeps all promises.
fn replay(args: &ReplayArgs) -> bool {
    let drawn = rehearsal::faults_of(args.profile, args.seed);
    let is_chosen = |number: &usize| args.only.as_ref().is_none_or(|only| only.contains(number));
    let chosen: Vec<_> = (0..drawn.len())
        .filter(is_chosen)
        .map(|number| drawn[number].clone())
        .collect();
    for (number, fault) in drawn.iter().enumerate() {
        println!("{} {number:>2} {fault}", if is_chosen(&number) { '*' } else { ' ' });
    }
    let (verdict, story) = rehearsal::narrate(args.profile, args.seed, chosen);
    if args.story {
        story.iter().for_each(|line| println!("{line}"));
    }
    println!(
        "over after {:.3} s and {} events, trace {:016x}",
        verdict.ended_ms as f64 / 1e3,
        verdict.events,
        verdict.trace
    );
    match &verdict.broken {
        Some(broken) => println!("broken: `{}`: {}", broken.promise.as_str(), broken.how),
        None => println!("no promise was broken"),
    }
    verdict.broken.is_none()
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
