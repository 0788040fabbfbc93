//! What a load found.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{super::mesh::report::Usage, Database, pages::Pages};
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

/// One figure of each round.
#[derive(Debug, Default)]
struct Rate(Vec<f64>);

impl Rate {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// As the median.
impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.median())
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
    enrolled_per_s: Rate,
    devices_registered_per_s: Rate,
    device_heartbeats_per_s: Rate,
    initiations_per_minute: Rate,
    reports_per_s: Rate,
    /// Processor seconds of the coordinator in each step, and the share of the machine that others took.
    steps: Vec<Step>,
    peak_mib: f64,
    /// What each page of the dashboard waits for.
    #[serde(skip_serializing_if = "Pages::is_empty")]
    pub(super) pages: Pages,
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    wall_s: f64,
    coordinator_cpu_s: f64,
    machine_busy: f64,
    /// The most memory that the coordinator has held until then.
    peak_mib: f64,
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
            enrolled_per_s: Rate::default(),
            devices_registered_per_s: Rate::default(),
            device_heartbeats_per_s: Rate::default(),
            initiations_per_minute: Rate::default(),
            reports_per_s: Rate::default(),
            steps: Vec::new(),
            peak_mib: 0.0,
            pages: Pages::new(),
        }
    }

    fn step(&mut self, name: &'static str, usage: &Usage) -> f64 {
        let (cpu, kib) = usage.processes.get(COORDINATOR).copied().unwrap_or_default();
        let peak_mib = kib as f64 / 1024.0;
        self.peak_mib = self.peak_mib.max(peak_mib);
        self.steps.push(Step {
            name,
            wall_s: usage.wall_s,
            coordinator_cpu_s: cpu,
            machine_busy: usage.machine_busy,
            peak_mib,
        });
        usage.wall_s
    }

    pub(super) fn enrolled(&mut self, usage: &Usage) {
        let seconds = self.step("enrolment", usage);
        self.enrolled_per_s.0.push(f64::from(self.nodes) / seconds);
    }

    pub(super) fn registered(&mut self, usage: &Usage) {
        let seconds = self.step("registration", usage);
        self.devices_registered_per_s.0.push(self.devices as f64 / seconds);
    }

    pub(super) fn beat(&mut self, beats: usize, usage: &Usage) {
        let devices = beats as f64 * self.devices as f64 / f64::from(self.nodes);
        let seconds = self.step("heartbeats", usage);
        self.device_heartbeats_per_s.0.push(devices / seconds);
    }

    pub(super) fn looked(&mut self, usage: &Usage) {
        self.step("pages", usage);
    }

    pub(super) fn planned(&mut self, usage: &Usage) {
        self.step("planning and approving", usage);
    }

    /// Everybody was permitted first, and everybody reported then.
    pub(super) fn updated(&mut self, permitted_s: f64, done_s: f64) {
        self.initiations_per_minute
            .0
            .push(self.devices as f64 / permitted_s * 60.0);
        self.reports_per_s.0.push(self.devices as f64 / done_s);
    }

    /// Devices were permitted as others reported.
    pub(super) fn worked(&mut self, updates: u32, seconds: f64) {
        let per_second = f64::from(updates) / seconds;
        self.initiations_per_minute.0.push(per_second * 60.0);
        self.reports_per_s.0.push(per_second);
    }

    pub(super) fn ended(&mut self, usage: &Usage) {
        self.step("updates", usage);
    }

    /// What another round found.
    pub(super) fn add(&mut self, other: Self) {
        for (mine, theirs) in self.latencies_mut().into_iter().zip(other.latencies()) {
            mine.0.extend(&theirs.1.0);
        }
        for (mine, theirs) in self.rates_mut().into_iter().zip(other.rates()) {
            mine.0.extend(&theirs.1.0);
        }
        for (what, took) in other.pages {
            self.pages.entry(what).or_default().0.extend(took.0);
        }
        self.steps.extend(other.steps);
        self.peak_mib = self.peak_mib.max(other.peak_mib);
    }

    fn rates(&self) -> [(&'static str, &Rate); 5] {
        [
            ("nodes enrolled a second", &self.enrolled_per_s),
            ("devices registered a second", &self.devices_registered_per_s),
            ("device heartbeats a second", &self.device_heartbeats_per_s),
            ("devices permitted a minute", &self.initiations_per_minute),
            ("reports a second", &self.reports_per_s),
        ]
    }

    fn rates_mut(&mut self) -> [&mut Rate; 5] {
        [
            &mut self.enrolled_per_s,
            &mut self.devices_registered_per_s,
            &mut self.device_heartbeats_per_s,
            &mut self.initiations_per_minute,
            &mut self.reports_per_s,
        ]
    }

    fn latencies(&self) -> [(&'static str, &Latencies); 7] {
        [
            ("enrolment of a node", &self.enrolment),
            ("first heartbeat of a node", &self.registration),
            ("heartbeat", &self.heartbeats),
            ("operators' API meanwhile", &self.asked_meanwhile),
            ("planning of a campaign", &self.plans),
            ("heartbeat with reports", &self.reports),
            ("operators' API during updates", &self.asked_during_updates),
        ]
    }

    fn latencies_mut(&mut self) -> [&mut Latencies; 7] {
        [
            &mut self.enrolment,
            &mut self.registration,
            &mut self.heartbeats,
            &mut self.asked_meanwhile,
            &mut self.plans,
            &mut self.reports,
            &mut self.asked_during_updates,
        ]
    }
}

pub(super) fn show(all: &BTreeMap<Database, Figures>, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(all)?);
        return Ok(());
    }
    for (database, figures) in all {
        show_one(*database, figures);
    }
    if let (Some(sqlite), Some(postgres)) = (all.get(&Database::Sqlite), all.get(&Database::PostgreSql)) {
        println!("PostgreSQL / SQLite");
        for ((name, one), (_, other)) in sqlite.rates().into_iter().zip(postgres.rates()) {
            println!("{:>12.2} {name}", other.median() / one.median());
        }
        for ((name, one), (_, other)) in sqlite.latencies().into_iter().zip(postgres.latencies()) {
            println!("{:>12.2} p99 of {name}", other.at(990) / one.at(990));
        }
    }
    Ok(())
}

fn show_one(database: Database, figures: &Figures) {
    println!(
        "{database:?}: {} nodes, {} devices, {} campaigns; the coordinator's memory peaked at {:.0} MiB",
        figures.nodes, figures.devices, figures.campaigns, figures.peak_mib
    );
    for (name, rate) in figures.rates().into_iter().filter(|(_, rate)| !rate.0.is_empty()) {
        println!("{:>12.0} {name}", rate.median());
    }
    println!(
        "\n{:30} {:>7} {:>9} {:>9} {:>9}",
        "latency in ms", "count", "p50", "p95", "p99"
    );
    let pages = figures.pages.iter().map(|(name, latencies)| (*name, latencies));
    let all = figures.latencies().into_iter().chain(pages);
    for (name, latencies) in all.filter(|(_, latencies)| !latencies.0.is_empty()) {
        let [p50, p95, p99] = [500, 950, 990].map(|permille| latencies.at(permille));
        println!("{name:30} {:>7} {p50:>9.1} {p95:>9.1} {p99:>9.1}", latencies.0.len());
    }
    println!(
        "\n{:30} {:>9} {:>12} {:>12} {:>12}",
        "step", "wall s", "its CPU s", "machine busy", "peak MiB"
    );
    for step in &figures.steps {
        println!(
            "{:30} {:>9.1} {:>12.1} {:>11.0}% {:>12.0}",
            step.name,
            step.wall_s,
            step.coordinator_cpu_s,
            step.machine_busy * 100.0,
            step.peak_mib
        );
    }
    println!();
}
