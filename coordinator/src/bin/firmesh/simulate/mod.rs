//! `firmesh campaign simulate`: what the campaign would do, before anybody signs it.

mod html;
mod picture;
mod text;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use firmesh_coordinator::ceremony::{load_planned, read_bounded, write_file};
use firmesh_protocol::{
    ids::CampaignId,
    rehearsal::{Fault, REHEARSAL_BYTES_MAX, Rehearsal, RehearsalRequest, RehearsalResponse, Step},
    time::WallTime,
};

use crate::{Folder, Global, output::Output};

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    #[command(flatten)]
    folder: Folder,
    /// The campaign: as it is planned, or else its draft.
    campaign: CampaignId,
    /// What goes wrong, each in a scenario of its own: brick=2%, unhealthy=100%, stall=1%, silent, silent=region/site/rack
    /// (repeat). These four if absent.
    #[arg(long, value_name = "FAULT")]
    fault: Vec<Fault>,
    /// What a step takes, instead of what was learned: install=600s, reboot=..., validate=..., restore=... (repeat).
    #[arg(long, value_name = "STEP=SECONDS", value_parser = assumption)]
    assume: Vec<(Step, u32)>,
    /// Runs of each scenario; 25, fewer for large campaigns, if absent.
    #[arg(long)]
    runs: Option<u32>,
    /// Where the dice begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// When the campaign would be started; now if absent.
    #[arg(long, value_name = "2027-01-31T12:00:00Z")]
    starts: Option<WallTime>,
    /// Writes the rehearsal here, byte by byte, for `firmesh campaign plan --rehearsal`.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Writes a page with pictures here, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn run(global: &Global, args: &Simulate, output: &Output) -> anyhow::Result<()> {
    let manifest = load_planned(&args.folder.open()?, &args.campaign)?;
    let request = RehearsalRequest {
        manifest,
        seed: args.seed,
        runs: args.runs,
        starts: args.starts,
        assume: args.assume.iter().copied().collect(),
        faults: match args.fault.is_empty() {
            true => Fault::usual(),
            false => args.fault.clone(),
        },
    };
    let answer: RehearsalResponse = global.client()?.post("/api/v1/simulations", &request).await?;
    let rehearsal = Rehearsal::from_bytes(answer.rehearsal.as_bytes()).context("the coordinator's rehearsal")?;
    anyhow::ensure!(
        rehearsal.sha256() == answer.rehearsal_sha256,
        "the coordinator's rehearsal is not the one whose digest it announced: use the firmesh of its version"
    );
    if let Some(path) = &args.out {
        write_file(path, answer.rehearsal.as_bytes())?;
    }
    if let Some(path) = &args.html {
        write_file(path, html::page(&rehearsal).as_bytes())?;
    }
    match output.is_json() {
        true => output.text(&format!("{}\n", answer.rehearsal)),
        false => output.text(&format!("{}\n", text::lines(&rehearsal).join("\n"))),
    }
}

/// A rehearsal from a file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Rehearsal> {
    let bytes = read_bounded(path, REHEARSAL_BYTES_MAX)?;
    Rehearsal::from_bytes(&bytes).with_context(|| format!("{} is not a rehearsal", path.display()))
}

/// `install=600s`, or `install=600`.
fn assumption(text: &str) -> Result<(Step, u32), String> {
    let parse = || {
        let (step, seconds) = text.split_once('=')?;
        let step = Step::ALL.into_iter().find(|known| known.as_str() == step)?;
        let seconds = seconds.strip_suffix('s').unwrap_or(seconds);
        Some((step, seconds.parse().ok()?))
    };
    parse().ok_or_else(|| "say install=600s, reboot=..., validate=... or restore=..., in whole seconds".to_owned())
}

/// A span as people say it: at most two units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {:02} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours:02} h"),
    }
}

/// Bytes as people say them.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut tenths = u128::from(count) * 10;
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths /= 1_024;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{}.{} {}", tenths / 10, tenths % 10, units[unit]),
    }
}
