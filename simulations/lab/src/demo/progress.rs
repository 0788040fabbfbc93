//! How far the demo is, shown three ways: bars on a terminal, plain lines elsewhere, JSON for machines.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use firmesh_node::status::Status;
use firmesh_protocol::{
    api::{CampaignState, CampaignView},
    ids::NodeId,
    report::AttemptState,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

/// Plain lines are for logs: one every so often is enough.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// What is known at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Snapshot {
    /// Seconds since the campaign was started.
    pub(super) seconds: f64,
    /// Pieces held and wanted, by rack.
    pub(super) racks: BTreeMap<String, Pieces>,
    /// Verified content that nodes took in, in MiB per second.
    pub(super) mib_per_s: f64,
    /// Planned devices by state.
    pub(super) devices: BTreeMap<AttemptState, u32>,
    /// The wave in progress and the last one, counted from 0.
    pub(super) wave: Option<(u32, usize)>,
    /// Where the campaign stands; `None` while the coordinator does not answer.
    pub(super) campaign: Option<CampaignState>,
}

/// Pieces of one rack's nodes, over all artifacts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Pieces {
    pub(super) held: u64,
    pub(super) wanted: u64,
}

/// Turns what nodes and coordinator say into snapshots.
#[derive(Debug)]
pub(super) struct Observer {
    begun: Instant,
    /// Pieces every node will hold.
    wanted: u64,
    last: Option<(Instant, u64)>,
    last_rate: f64,
}

impl Observer {
    /// Every node is to hold `wanted` pieces.
    pub(super) fn new(wanted: u64) -> Self {
        Self {
            begun: Instant::now(),
            wanted,
            last: None,
            last_rate: 0.0,
        }
    }

    /// Time since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn look(&mut self, nodes: &BTreeMap<NodeId, Status>, campaign: Option<&CampaignView>) -> Snapshot {
        let mut racks: BTreeMap<String, Pieces> = BTreeMap::new();
        for status in nodes.values() {
            let rack = status.path.parent().map_or_else(String::new, |rack| rack.to_string());
            let pieces = racks.entry(rack).or_default();
            pieces.held += held(status);
            pieces.wanted += self.wanted;
        }
        let taken: u64 = nodes.values().map(received).sum();
        let (now, before) = (Instant::now(), self.last);
        let (since, bytes) = before.map_or((Duration::ZERO, 0), |(at, bytes)| (now - at, bytes));
        // Over half a second, or the rate jumps; a restarted node counts from 0 again.
        if before.is_none() || since > Duration::from_millis(500) {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let moved = taken.saturating_sub(bytes) as f64 / f64::from(1 << 20);
            self.last_rate = if since.is_zero() {
                0.0
            } else {
                moved / since.as_secs_f64()
            };
            self.last = Some((now, taken));
        }
        Snapshot {
            seconds: self.begun.elapsed().as_secs_f64(),
            racks,
            mib_per_s: self.last_rate,
            devices: campaign.map(|view| view.states.clone()).unwrap_or_default(),
            wave: campaign.map(|view| (view.wave, view.waves.len().saturating_sub(1))),
            campaign: campaign.map(|view| view.state),
        }
    }
}

/// Pieces a node holds, over all artifacts.
pub(super) fn held(status: &Status) -> u64 {
    status.holdings.iter().map(|holding| u64::from(holding.pieces)).sum()
}

/// Bytes a node took in.
fn received(status: &Status) -> u64 {
    status.traffic.from_origin + status.traffic.from_rack + status.traffic.from_other_racks
}

/// Where progress is shown.
pub(super) enum Screen {
    /// A terminal: a bar per rack, and a line below.
    Bars {
        all: MultiProgress,
        racks: BTreeMap<String, ProgressBar>,
        devices: ProgressBar,
    },
    /// Lines.
    Lines { last: Option<Instant> },
    /// One JSON object per line.
    Json,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bars { .. } => "Bars",
            Self::Lines { .. } => "Lines",
            Self::Json => "Json",
        })
    }
}

impl Screen {
    /// The screen for this standard output.
    pub(super) fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !std::io::stdout().is_terminal() {
            return Self::Lines { last: None };
        }
        let all = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::stdout());
        let devices = all.add(ProgressBar::new_spinner().with_style(style("{spinner} {msg}")));
        Self::Bars {
            all,
            racks: BTreeMap::new(),
            devices,
        }
    }

    /// Something was done or decided.
    pub(super) fn say(&self, text: &str) {
        match self {
            Self::Bars { all, .. } => drop(all.println(text)),
            Self::Lines { .. } => print(text),
            Self::Json => print_json("step", &json!({ "message": text })),
        }
    }

    /// This is how far it is.
    pub(super) fn show(&mut self, snapshot: &Snapshot) {
        match self {
            Self::Bars { all, racks, devices } => {
                for (name, pieces) in &snapshot.racks {
                    let bar = racks.entry(name.clone()).or_insert_with(|| {
                        let bar = ProgressBar::new(pieces.wanted).with_prefix(name.clone());
                        all.insert_before(
                            devices,
                            bar.with_style(style("  {prefix:18} [{bar:32}] {pos:>5}/{len} pieces")),
                        )
                    });
                    bar.set_length(pieces.wanted);
                    bar.set_position(pieces.held);
                }
                devices.set_message(line(snapshot));
                devices.tick();
            }
            Self::Lines { last } => {
                if last.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
                    let racks = snapshot.racks.iter().map(|(name, pieces)| {
                        let short = name.rsplit('/').next().unwrap_or(name);
                        format!("{short} {}/{}", pieces.held, pieces.wanted)
                    });
                    let racks = racks.collect::<Vec<_>>().join(", ");
                    print(&format!(
                        "{:6.1} s  pieces: {racks}; {}",
                        snapshot.seconds,
                        line(snapshot)
                    ));
                    *last = Some(Instant::now());
                }
            }
            Self::Json => print_json("progress", snapshot),
        }
    }

    /// Leaves the last picture standing.
    pub(super) fn end(&mut self, snapshot: &Snapshot) {
        if let Self::Lines { last } = self {
            *last = None;
        }
        self.show(snapshot);
        if let Self::Bars { racks, devices, .. } = self {
            racks.values().chain([&*devices]).for_each(ProgressBar::abandon);
        }
    }

    /// One JSON object if that is what is asked for, else `text`.
    pub(super) fn conclude(&self, text: &str, value: &impl Serialize) {
        match self {
            Self::Json => print_json("summary", value),
            Self::Bars { .. } | Self::Lines { .. } => print(text),
        }
    }
}

/// Devices by state, wave and throughput.
fn line(snapshot: &Snapshot) -> String {
    let states: Vec<_> = snapshot
        .devices
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let devices = if states.is_empty() {
        "coordinator silent".to_owned()
    } else {
        states.join(", ")
    };
    let wave = snapshot
        .wave
        .map_or_else(String::new, |(wave, of)| format!("wave {wave} of 0 to {of}: "));
    format!("{wave}{devices}; {:.0} MiB/s", snapshot.mib_per_s)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

fn print_json(event: &str, value: &impl Serialize) {
    let mut object = serde_json::to_value(value).unwrap_or_default();
    object["event"] = event.into();
    print(&object.to_string());
}

/// A reader that has gone away is no reason to stop.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _gone = writeln!(out, "{text}").and_then(|()| out.flush());
}
