//! `firmesh-sim scale`: how far an image has come in a large fleet, and what it cost.

use std::{
    fs,
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use firmesh_simulations::scale::{self, Plan, Total};
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    plan: Plan,
    /// Threads; as many as there are processors if not given.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a run is told as.
#[derive(Debug, Serialize)]
struct Report<'a> {
    plan: &'a Plan,
    nodes_in_all: u64,
    bound_s: f64,
    p50_s: Option<f64>,
    p99_s: Option<f64>,
    last_s: Option<f64>,
    /// Images that came over the sites' links, per site; 1 and what is on the wire besides is the least.
    wan_images_per_site: f64,
    /// Images that came into the racks of honest nodes, each.
    rack_images_per_node: f64,
    wasted_images_per_node: f64,
    words_per_node: f64,
    words_pieces_per_node: f64,
    cpu_s: Option<f64>,
    memory_peak_mib: Option<u64>,
    took_s: f64,
    #[serde(flatten)]
    total: &'a Total,
}

/// Whether every honest node has the image, and nothing wrong.
pub(crate) fn scale(args: &ScaleArgs) -> anyhow::Result<bool> {
    let plan = &args.plan;
    let threads = match args.threads {
        Some(threads) => threads,
        None => thread::available_parallelism().context("how many processors there are")?,
    };
    let began = Instant::now();
    let told = Mutex::new(began);
    let goes_on = |total: &Total| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if !args.json && told.elapsed() >= Duration::from_secs(2) {
            *told = Instant::now();
            let (done, all) = (total.sites, plan.sites_in_all());
            let left = began.elapsed().as_secs_f64() / done as f64 * (all - done) as f64;
            eprintln!(
                "{done} of {all} sites, {} of {} nodes have it, {left:.0} s left",
                total.complete, total.nodes
            );
        }
        true
    };
    let total = scale::run(plan, threads, &goes_on);
    let report = report(plan, &total, began.elapsed());
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => tell(&report),
    }
    Ok(total.complete == total.nodes && total.wrong_taken == 0)
}

fn report<'a>(plan: &'a Plan, total: &'a Total, took: Duration) -> Report<'a> {
    let images = |bytes: u64, among: u64| bytes as f64 / plan.image as f64 / among.max(1) as f64;
    let each = |count: u64| count as f64 / total.nodes.max(1) as f64;
    Report {
        plan,
        nodes_in_all: plan.nodes(),
        bound_s: plan.bound_s(),
        p50_s: total.within_s(500),
        p99_s: total.within_s(990),
        last_s: total.within_s(1_000),
        wan_images_per_site: images(total.wan_bytes, total.sites),
        rack_images_per_node: images(total.rack_bytes, total.nodes),
        wasted_images_per_node: images(total.wasted_bytes, total.nodes),
        words_per_node: each(total.words),
        words_pieces_per_node: each(total.words_pieces),
        cpu_s: cpu_s(),
        memory_peak_mib: memory_peak_mib(),
        took_s: took.as_secs_f64(),
        total,
    }
}

fn tell(report: &Report<'_>) {
    let Report { plan, total, .. } = report;
    let seconds = |at: Option<f64>| at.map_or_else(|| "never".to_owned(), |at| format!("{at:.3} s"));
    println!(
        "{} regions x {} sites x {} racks: {} nodes; {} MiB in pieces of {} KiB, sites at {} Mbit/s",
        plan.regions,
        plan.sites,
        plan.racks,
        report.nodes_in_all,
        plan.image >> 20,
        plan.piece >> 10,
        plan.wan_mbit
    );
    println!(
        "  {} of {} honest nodes complete; p50 {}, p99 {}, last {}; bound {:.3} s",
        total.complete,
        total.nodes,
        seconds(report.p50_s),
        seconds(report.p99_s),
        seconds(report.last_s),
        report.bound_s
    );
    println!(
        "  images over each site's link {:.3}, into each rack {:.3}, of no use {:.3} (headers and proofs make 1 of them 1.058)",
        report.wan_images_per_site, report.rack_images_per_node, report.wasted_images_per_node
    );
    println!(
        "  announcements per node {:.0}, naming {:.0} pieces; bans {}, of honest nodes {}; wrong bytes taken {}",
        report.words_per_node, report.words_pieces_per_node, total.bans, total.bans_of_honest, total.wrong_taken
    );
    let per_node = |cpu_s: f64| cpu_s * 1e6 / report.nodes_in_all as f64;
    let rate = |cpu_s: f64| total.events as f64 / cpu_s;
    println!(
        "  {} events in {:.1} s{}{}; trace {:016x}",
        total.events,
        report.took_s,
        report.cpu_s.map_or_else(String::new, |cpu_s| format!(
            ", {cpu_s:.1} CPU s: {:.0} us a node, {:.0} events a CPU second",
            per_node(cpu_s),
            rate(cpu_s)
        )),
        report
            .memory_peak_mib
            .map_or_else(String::new, |mib| format!("; {mib} MiB at most")),
        total.trace
    );
}

/// Seconds of processor time that this process took, where the system tells (proc_pid_stat(5): fields 14 and 15, in
/// hundredths of a second on every architecture that Linux has today).
fn cpu_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything.
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = ticks.filter_map(|ticks| ticks.parse().ok()).collect();
    (ticks.len() == 2).then(|| ticks.iter().sum::<f64>() / 100.0)
}

/// The most memory this process had, in MiB, where the system tells (proc_pid_status(5)).
pub(crate) fn memory_peak_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib >> 10)
}
