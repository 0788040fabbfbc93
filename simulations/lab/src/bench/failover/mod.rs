//! Leaders killed under load: three real coordinators behind HAProxy on a PostgreSQL of their own, simulated nodes that take permits
//! and report over real connections, people who write all the time; and somebody who kills whoever leads, again and again.
//!
//! What is measured is the time from the kill to the first write that was sent after it and acknowledged. What is checked at the
//! end, against the audit log and the API: nothing that was acknowledged is lost, no sequence stands for two permits, and no
//! rack ever had more devices in flight than its cap.

mod log;
mod trio;
mod writers;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use firmesh_protocol::{
    api::{CampaignState, CampaignView},
    manifest::Caps,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::{trio::Trio, writers::Writers};
use super::control::{
    crowd::{Crowd, Shape},
    report::Latencies,
};
use crate::demo::ceremony::People;

/// Somebody else continues within it, or the measurement is over.
const CONTINUES_WITHIN: Duration = Duration::from_secs(30);

/// Devices of a rack in flight, and each node is a rack.
const PER_RACK: u32 = 1;

/// How many to kill.
#[derive(Debug, Args)]
pub(crate) struct FailoverArgs {
    /// Leaders to kill.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// Nodes, each with a connection of its own.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    nodes: u32,
    /// Devices of a node; the campaign should last longer than the kills.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    devices: u32,
    /// How often a node speaks, in milliseconds.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    every: u64,
    /// People who write, one write after another.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    writers: u32,
    /// `cluster.lease` of the coordinators; their default if absent.
    #[arg(long)]
    lease: Option<String>,
    /// Where state and logs go; a folder for temporary files if absent.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Figures {
    kills: u32,
    /// From the kill to the first write acknowledged by another leader.
    first_write: Latencies,
    max_ms: f64,
    writes_acknowledged: usize,
    writes_lost: usize,
    permits: usize,
    permits_in_epochs: usize,
    permits_of_nodes_lost: usize,
    sequences_used_twice: usize,
    reports_acknowledged: usize,
    reports_lost: usize,
    in_flight_max: usize,
    entries: u64,
}

/// Kills, and says how everybody else fared.
pub(super) async fn run(args: &FailoverArgs) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = args.work.as_deref().unwrap_or_else(|| temporary.path());
    let mut trio = Trio::begin(folder, args.lease.as_deref()).await?;
    let figures = kill(args, &mut trio).await;
    trio.world.processes.stop_all();
    let figures = figures.with_context(|| format!("logs lie in {}", folder.join("logs").display()))?;
    show(&figures, args.json)?;
    let Figures {
        writes_lost,
        permits_of_nodes_lost,
        sequences_used_twice,
        reports_lost,
        in_flight_max,
        ..
    } = figures;
    ensure!(
        writes_lost + permits_of_nodes_lost + sequences_used_twice + reports_lost == 0
            && in_flight_max <= PER_RACK as usize,
        "something that was acknowledged is lost, or was done twice"
    );
    Ok(())
}

async fn kill(args: &FailoverArgs, trio: &mut Trio) -> Result<Figures> {
    let mut people = People::found(&trio.world.layout, &trio.world.about)?;
    people.sign("release")?;
    people.sign("approver")?;
    people.publish(&trio.world.api).await?;
    let shape = Shape {
        devices: args.devices,
        campaigns: 1,
        layers: 1,
    };
    eprintln!("enrolling ...");
    let mut crowd = Crowd::enrol(&trio.world, args.nodes, shape, &mut Latencies::default()).await?;
    crowd.tell_of_devices(&mut Latencies::default()).await?;
    let caps = Caps::new(PER_RACK, args.nodes * PER_RACK);
    let release = crowd.release(&trio.world, &mut people).await?;
    crowd
        .plan(&trio.world, &mut people, &release, shape, Some(&caps))
        .await?;
    crowd.prove().await?;
    crowd.start_first(&trio.world).await?;

    eprintln!("killing ...");
    let stop = CancellationToken::new();
    let working = tokio::spawn({
        let (stop, every) = (stop.clone(), Duration::from_millis(args.every));
        async move {
            let worked = crowd.work(every, &stop).await;
            worked.map(|()| crowd)
        }
    });
    let mut writers = Writers::begin(trio, args.writers)?;
    let mut first_write = Latencies::default();
    let mut max = Duration::ZERO;
    for number in 0..args.kills {
        // The moment has nothing to do with anybody's clock.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(300..1_300))).await;
        let leader = trio.leader().await?;
        let begun = Instant::now();
        trio.world.processes.kill(leader)?;
        let gone = Instant::now();
        let acknowledged = tokio::time::timeout(CONTINUES_WITHIN, writers.first_after(gone)).await;
        let acknowledged = acknowledged.with_context(|| format!("after kill {number} nobody took a write"))??;
        let took = acknowledged.saturating_duration_since(begun);
        first_write.add(took);
        max = max.max(took);
        eprintln!("kill {}: {leader}, {:.0} ms", number + 1, took.as_secs_f64() * 1e3);
        trio.again(leader).await?;
    }
    let view: CampaignView = trio
        .world
        .api
        .get(&format!("/api/v1/campaigns/{}", Crowd::first()?))
        .await?;
    ensure!(
        view.state == CampaignState::Active,
        "the campaign was {:?} before the last kill: it needs more devices",
        view.state
    );
    let acknowledged = writers.end().await?;
    stop.cancel();
    let crowd = working.await??;
    eprintln!("reading the audit log ...");
    let found = log::read(&trio.world).await?;
    let known = writers::registered(&trio.world).await?;
    Ok(Figures {
        kills: args.kills,
        first_write,
        max_ms: max.as_secs_f64() * 1e3,
        writes_acknowledged: acknowledged.len(),
        writes_lost: acknowledged.iter().filter(|name| !known.contains(*name)).count(),
        permits: found.permits.len(),
        permits_in_epochs: found.epochs.len(),
        permits_of_nodes_lost: crowd.permits().filter(|permit| !found.has(permit)).count(),
        sequences_used_twice: found.used_twice,
        reports_acknowledged: crowd.acknowledged().count(),
        reports_lost: crowd
            .acknowledged()
            .filter(|device| !found.results.contains(*device))
            .count(),
        in_flight_max: found.in_flight_max,
        entries: found.entries,
    })
}

fn show(figures: &Figures, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(figures)?);
        return Ok(());
    }
    let [p50, p95, p99] = [500, 950, 990].map(|permille| figures.first_write.at(permille));
    println!(
        "{} leaders killed; the first write was acknowledged after (ms): p50 {p50:.0}, p95 {p95:.0}, p99 {p99:.0}, max {:.0}",
        figures.kills, figures.max_ms
    );
    println!(
        "{} writes acknowledged, {} lost; {} reports acknowledged, {} lost",
        figures.writes_acknowledged, figures.writes_lost, figures.reports_acknowledged, figures.reports_lost
    );
    println!(
        "{} permits signed in {} epochs, {} sequences used twice, {} that nodes have and the log has not; at most {} in flight in a rack, cap {PER_RACK}",
        figures.permits,
        figures.permits_in_epochs,
        figures.sequences_used_twice,
        figures.permits_of_nodes_lost,
        figures.in_flight_max
    );
    println!("{} entries in the audit log at the end", figures.entries);
    Ok(())
}
