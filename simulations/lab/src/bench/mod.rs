//! Measurements that anybody can repeat. Every claim is a ratio between things run side by side in one run.

mod link;

use std::time::Duration;

use clap::{Args, Subcommand};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// One link: two nodes' data planes and stores over loopback, against hashing and against the disk.
    Link(LinkArgs),
}

/// How to measure one link.
#[derive(Debug, Args)]
pub(crate) struct LinkArgs {
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

/// Runs a measurement.
pub(crate) async fn run(bench: Bench) -> anyhow::Result<()> {
    match bench {
        Bench::Link(args) => link::run(&args).await,
    }
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
