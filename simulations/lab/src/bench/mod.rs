//! Measurements that anybody can repeat. Every claim is a ratio between things run side by side in one run.

mod control;
mod delta;
mod failover;
mod fs_store;
mod link;
mod mesh;
mod reopen;
mod store;
mod trust;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use firmesh_node::store::{ChunkStore, PieceStore, StoreKey};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use fs_store::IrohStore;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// The control plane: a real coordinator under the load of simulated nodes over real connections.
    Control(control::ControlArgs),
    /// Pairs of consecutive versions of an image: the bytes that must travel to a node that holds the old one.
    Delta(delta::DeltaArgs),
    /// Leaders killed under load: how long until another one takes a write, and whether anything that was acknowledged is lost.
    Failover(failover::FailoverArgs),
    /// One link: two nodes' data planes and stores over loopback, against a plain QUIC stream, iroh-blobs, nginx with HTTPS,
    /// hashing and the disk.
    Link(link::LinkArgs),
    /// A whole mesh in racks of network namespaces with shaped links: time, and bytes on every link, against what is least
    /// possible. Needs root.
    Mesh(mesh::MeshArgs),
    /// A restart with a large image in the store: time and memory until it is known what is held, others served meanwhile.
    Reopen(MeasureArgs),
    /// One piece store: pieces verified and made durable, served, read; plain, encrypted, and iroh-blobs' `FsStore`.
    Store(MeasureArgs),
    /// Verifying metadata: our verifier, python-tuf and the crate tough, each in a release build of its own.
    Trust(TrustArgs),
}

/// How to measure.
#[derive(Debug, Args)]
pub(crate) struct MeasureArgs {
    /// Image size in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=4096))]
    size: u64,
    /// Interleaved runs; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How to measure verification.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// Targets in the large file.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    targets: u32,
    /// Interleaved runs; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Where what is compared with is built, and kept for the next time; in the system's temporary folder if absent.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs a measurement.
pub(crate) async fn run(bench: Bench, cancel: CancellationToken) -> anyhow::Result<()> {
    match bench {
        // What was made is removed on the way out, also of an interruption.
        Bench::Mesh(args) => tokio::select! {
            done = mesh::run(&args) => done,
            () = cancel.cancelled() => anyhow::bail!("interrupted; every process and network was removed"),
        },
        Bench::Control(args) => tokio::select! {
            done = control::run(&args) => done,
            () = cancel.cancelled() => anyhow::bail!("interrupted; the coordinator was ended"),
        },
        Bench::Failover(args) => tokio::select! {
            done = failover::run(&args) => done,
            () = cancel.cancelled() => anyhow::bail!("interrupted; every process was ended"),
        },
        Bench::Delta(args) => delta::run(&args),
        Bench::Link(args) => tokio::select! {
            done = link::run(&args) => done,
            () = cancel.cancelled() => anyhow::bail!("interrupted; every process was ended"),
        },
        Bench::Reopen(args) => reopen::run(&args).await,
        Bench::Store(args) => store::run(&args).await,
        Bench::Trust(args) => trust::run(&args),
    }
}

/// A piece store to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Engine {
    Plain,
    Encrypted,
    FsStore,
}

impl Engine {
    const ALL: [Self; 3] = [Self::Plain, Self::Encrypted, Self::FsStore];

    async fn open(self, folder: &Path) -> anyhow::Result<Arc<dyn ChunkStore>> {
        let (lost, _) = mpsc::channel(1);
        Ok(match self {
            Self::Plain => Arc::new(PieceStore::open(folder, None, lost).await?),
            Self::Encrypted => Arc::new(PieceStore::open(folder, Some(StoreKey::from([1; 32])), lost).await?),
            Self::FsStore => Arc::new(IrohStore::open(folder).await?),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Encrypted => "AES-256-GCM",
            Self::FsStore => "FsStore",
        }
    }
}

/// What one piece of work took.
#[derive(Debug, Clone, Copy)]
struct Spent {
    wall: Duration,
    /// User and system time of the whole process.
    cpu: Duration,
}

impl Spent {
    async fn on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(Self, T)> {
        let (start, before) = (std::time::Instant::now(), cpu_time()?);
        let done = work.await?;
        let (wall, cpu) = (start.elapsed(), cpu_time()? - before);
        Ok((Self { wall, cpu }, done))
    }
}

/// The medians of some runs over `length` bytes.
#[derive(Debug, Clone, Copy, Serialize)]
struct Rate {
    mb_per_s: f64,
    cpu_s_per_gib: f64,
}

impl Rate {
    fn of(runs: &[Spent], length: u64) -> Self {
        let wall = median(runs.iter().map(|spent| spent.wall).collect()).as_secs_f64();
        let cpu = median(runs.iter().map(|spent| spent.cpu).collect()).as_secs_f64();
        Self {
            mb_per_s: length as f64 / 1e6 / wall,
            cpu_s_per_gib: cpu * f64::from(1 << 30) / length as f64,
        }
    }
}

/// User and system time of this process.
pub(crate) fn cpu_time() -> anyhow::Result<Duration> {
    cpu_time_of(UsageWho::RUSAGE_SELF)
}

/// User and system time of this process, or of all its children that have ended and were waited for.
fn cpu_time_of(who: UsageWho) -> anyhow::Result<Duration> {
    let usage = getrusage(who).context("the CPU time spent so far")?;
    let micros = |time: nix::sys::time::TimeVal| -> anyhow::Result<Duration> {
        Ok(Duration::from_secs(time.tv_sec().try_into()?) + Duration::from_micros(time.tv_usec().try_into()?))
    };
    Ok(micros(usage.user_time())? + micros(usage.system_time())?)
}

/// Where a program is installed, also one for administrators only.
fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Bytes that do not compress and are the same every time.
fn image(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(b"firmesh bench image")
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// The middle one of some durations; the mean of the two middle ones where their number is even.
fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    let middle = durations.len() / 2;
    match durations.len() {
        0 => Duration::ZERO,
        n if n % 2 == 1 => durations[middle],
        _ => (durations[middle - 1] + durations[middle]) / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let of = |list: &[u64]| median(list.iter().map(|s| Duration::from_secs(*s)).collect()).as_secs();
        assert_eq!((of(&[]), of(&[3]), of(&[9, 1, 5]), of(&[4, 2])), (0, 3, 5, 3));
    }
}
