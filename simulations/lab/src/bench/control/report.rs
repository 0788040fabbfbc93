//! What a load found.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::mesh::report::Usage;
use crate::demo::{api::Api, world::COORDINATOR};

/// How often the operators' API is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// What operators look at all day.
const ASKED: [&str; 5] = [
    "/api/v1/campaigns",
    "/api/v1/devices?limit=100",
    "/api/v1/devices/d0-0",
    "/api/v1/nodes?limit=100",
    "/api/v1/about",
];

/// How long requests took.
#[derive(Debug, Default)]
pub(in crate::bench) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(in crate::bench) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// Asks the operators' API at a steady pace until it is stopped.
    pub(super) fn asking(api: &Api) -> Asker {
        let (api, stop) = (api.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut latencies, mut pace) = (Self::default(), tokio::time::interval(ASK_EVERY));
            for path in ASKED.iter().cycle() {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    due = pace.tick() => {
                        let _answer: serde_json::Value = api.get(path).await?;
                        latencies.add(Instant::now() - due.into_std());
                    }
                }
            }
            Ok(latencies)
        });
        Asker { task, stop }
    }

    pub(in crate::bench) fn at(&self, permille: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        let place = (sorted.len() * permille / 1_000).min(sorted.len().saturating_sub(1));
        sorted.get(place).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

/// As milliseconds at three percentiles.
impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Latencies", 4)?;
        fields.serialize_field("count", &self.0.len())?;
        for (name, permille) in [("p50_ms", 500), ("p95_ms", 950), ("p99_ms", 990)] {
            fields.serialize_field(name, &self.at(permille))?;
        }
        fields.end()
    }
}

/// Somebody who asks.
pub(super) struct Asker {
    task: JoinHandle<Result<Latencies>>,
    stop: CancellationToken,
}

impl Asker {
    pub(super) async fn stop(self) -> Result<Latencies> {
        self.stop.cancel();
        self.task.await?
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    nodes: u32,
    devices: u64,
    campaigns: u32,
    pub(super) enrolment: Latencies,
    /// First heartbeats: all devices of a node are new.
    pub(super) registration: Latencies,
    pub(super) heartbeats: Latencies,
    pub(super) asked_meanwhile: Latencies,
    pub(super) plans: Latencies,
    /// Heartbeats that bring reports.
    pub(super) reports: Latencies,
    pub(super) asked_during_updates: Latencies,
    enrolled_per_s: f64,
    devices_registered_per_s: f64,
    device_heartbeats_per_s: f64,
    initiations_per_minute: f64,
    reports_per_s: f64,
    /// Processor seconds of the coordinator in each step, and the share of the machine that others took.
    steps: Vec<Step>,
    peak_mib: f64,
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    wall_s: f64,
    coordinator_cpu_s: f64,
    machine_busy: f64,
}

impl Figures {
    pub(super) fn new(nodes: u32, devices: u32, campaigns: u32) -> Self {
        Self {
            nodes,
            devices: u64::from(nodes) * u64::from(devices),
            campaigns,
            enrolment: Latencies::default(),
            registration: Latencies::default(),
            heartbeats: Latencies::default(),
            asked_meanwhile: Latencies::default(),
            plans: Latencies::default(),
            reports: Latencies::default(),
            asked_during_updates: Latencies::default(),
            enrolled_per_s: 0.0,
            devices_registered_per_s: 0.0,
            device_heartbeats_per_s: 0.0,
            initiations_per_minute: 0.0,
            reports_per_s: 0.0,
            steps: Vec::new(),
            peak_mib: 0.0,
        }
    }

    fn step(&mut self, name: &'static str, usage: &Usage) -> f64 {
        let (cpu, kib) = usage.processes.get(COORDINATOR).copied().unwrap_or_default();
        self.peak_mib = self.peak_mib.max(kib as f64 / 1024.0);
        self.steps.push(Step {
            name,
            wall_s: usage.wall_s,
            coordinator_cpu_s: cpu,
            machine_busy: usage.machine_busy,
        });
        usage.wall_s
    }

    pub(super) fn enrolled(&mut self, usage: &Usage) {
        self.enrolled_per_s = f64::from(self.nodes) / self.step("enrolment", usage);
    }

    pub(super) fn registered(&mut self, usage: &Usage) {
        self.devices_registered_per_s = self.devices as f64 / self.step("registration", usage);
    }

    pub(super) fn beat(&mut self, beats: usize, usage: &Usage) {
        let devices = beats as f64 * self.devices as f64 / f64::from(self.nodes);
        self.device_heartbeats_per_s = devices / self.step("heartbeats", usage);
    }

    pub(super) fn updated(&mut self, permitted_s: f64, done_s: f64, usage: &Usage) {
        self.initiations_per_minute = self.devices as f64 / permitted_s * 60.0;
        self.reports_per_s = self.devices as f64 / done_s;
        self.step("updates", usage);
    }
}

pub(super) fn show(figures: &Figures, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(figures)?);
        return Ok(());
    }
    println!(
        "{} nodes, {} devices, {} campaigns; the coordinator's memory peaked at {:.0} MiB",
        figures.nodes, figures.devices, figures.campaigns, figures.peak_mib
    );
    println!("{:>12.0} nodes enrolled a second", figures.enrolled_per_s);
    println!("{:>12.0} devices registered a second", figures.devices_registered_per_s);
    println!("{:>12.0} device heartbeats a second", figures.device_heartbeats_per_s);
    println!("{:>12.0} devices permitted a minute", figures.initiations_per_minute);
    println!("{:>12.0} reports a second", figures.reports_per_s);
    println!(
        "\n{:28} {:>7} {:>9} {:>9} {:>9}",
        "latency in ms", "count", "p50", "p95", "p99"
    );
    for (name, latencies) in [
        ("enrolment of a node", &figures.enrolment),
        ("first heartbeat of a node", &figures.registration),
        ("heartbeat", &figures.heartbeats),
        ("operators' API meanwhile", &figures.asked_meanwhile),
        ("planning of a campaign", &figures.plans),
        ("heartbeat with reports", &figures.reports),
        ("operators' API during updates", &figures.asked_during_updates),
    ] {
        let [p50, p95, p99] = [500, 950, 990].map(|permille| latencies.at(permille));
        println!("{name:28} {:>7} {p50:>9.1} {p95:>9.1} {p99:>9.1}", latencies.0.len());
    }
    println!(
        "\n{:28} {:>9} {:>12} {:>12}",
        "step", "wall s", "its CPU s", "machine busy"
    );
    for step in &figures.steps {
        println!(
            "{:28} {:>9.1} {:>12.1} {:>11.0}%",
            step.name,
            step.wall_s,
            step.coordinator_cpu_s,
            step.machine_busy * 100.0
        );
    }
    Ok(())
}
