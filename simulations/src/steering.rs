//! `firmesh-sim steer`: what the campaign engine takes for large campaigns, without sockets, signatures and a database. A
//! made-up fleet sends a heartbeat of every node in every 30 seconds, does what it is permitted, and all of it goes well.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use firmesh_coordinator_core::{Engine, EngineSettings, Input, Loaded, Output, plan};
use firmesh_protocol::{
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    manifest::{Caps, GateRule, Plan, Selector},
    report::{AttemptReport, AttemptState, PermitKind},
    time::{Timestamp, WallTime},
    units::BasisPoints,
};
use serde::Serialize;

use crate::{
    planning::{PlanArgs, draft, fleet, releases},
    spread::memory_peak_mib,
};

/// Every node speaks once in this time.
const ROUND: Duration = Duration::from_secs(30);

/// What a device tells of its attempt, one state a heartbeat.
const COURSE: [AttemptState; 4] = [
    AttemptState::Downloading,
    AttemptState::Installing,
    AttemptState::Validating,
    AttemptState::Success,
];

/// Regions of the made-up fleet.
const REGIONS: u64 = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct SteerArgs {
    /// Devices of the fleet, in ten regions.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    devices: u64,
    /// Campaigns at once, each for one region: more than ten are for the same devices again.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    campaigns: u64,
    /// End after so many rounds of heartbeats, if the campaigns have not ended before.
    #[arg(long, default_value_t = 1_000)]
    rounds: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    devices: u64,
    nodes: usize,
    campaigns: u64,
    attempts: usize,
    loading_s: f64,
    /// Heartbeats, with what they report.
    heartbeats: u64,
    reports: u64,
    /// Devices that permits let start.
    initiations: u64,
    permits: u64,
    ended_well: usize,
    /// Time in the engine alone, for all of the above but the loading.
    engine_s: f64,
    initiations_per_minute: f64,
    heartbeats_per_s: f64,
    heartbeat_p50_us: f64,
    heartbeat_p99_us: f64,
    heartbeat_max_us: f64,
    memory_peak_mib: Option<u64>,
}

/// A node of the made-up fleet: what its devices are at.
#[derive(Debug, Default)]
struct Member {
    reported: u64,
    at_work: VecDeque<(usize, DeviceId, usize)>,
}

/// Whether every campaign has ended well, or the rounds were over.
pub(crate) fn steering(args: &SteerArgs) -> anyhow::Result<bool> {
    let mut world = World::new(args)?;
    for _ in 0..args.rounds {
        if world.is_over() {
            break;
        }
        world.round()?;
    }
    let report = world.report();
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => tell(&report),
    }
    Ok(true)
}

struct World {
    engine: Engine,
    campaigns: Vec<CampaignId>,
    /// The node of each planned device, by campaign.
    nodes_of: Vec<BTreeMap<DeviceId, NodeId>>,
    members: BTreeMap<NodeId, Member>,
    now: Timestamp,
    took: Vec<Duration>,
    report: Report,
}

impl World {
    fn new(args: &SteerArgs) -> anyhow::Result<Self> {
        let fleet_of = PlanArgs::alone(args.devices);
        let (inventory, releases) = (fleet(&fleet_of)?, releases(&fleet_of));
        let draft = draft(&fleet_of, &releases)?;
        let mut plans: Vec<(_, Plan)> = Vec::new();
        for region in 0..args.campaigns.min(REGIONS) {
            let mut part = draft.clone();
            part.selector = Selector {
                paths: vec![format!("g{region}").parse()?],
                ..draft.selector.clone()
            };
            part.id = CampaignId::new(format!("c{region}"))?;
            part.caps = Caps::new(4, u32::try_from(args.devices)?);
            let whole = BasisPoints::WHOLE;
            part.gate = GateRule::shares(whole, whole);
            let made = plan(&inventory, &part, &releases, WallTime::from_unix_seconds(0))?;
            plans.push((part, made));
        }
        let images: BTreeMap<_, _> = releases
            .iter()
            .map(|release| (release.target.clone(), release.artifact.clone()))
            .collect();
        let mut world = Self {
            engine: Engine::new(EngineSettings {
                permit_ttl: Duration::from_secs(900),
            }),
            campaigns: Vec::new(),
            nodes_of: Vec::new(),
            members: BTreeMap::new(),
            now: Timestamp::default(),
            took: Vec::new(),
            report: Report {
                devices: args.devices,
                campaigns: args.campaigns,
                ..Report::default()
            },
        };
        let mut loading = Duration::ZERO;
        for number in 0..args.campaigns {
            let (mut manifest, mut plan) = plans[usize::try_from(number % REGIONS)?].clone();
            let id = CampaignId::new(format!("c{number}"))?;
            manifest.id = id.clone();
            plan.campaign = id.clone();
            let places = plan
                .devices()
                .map(|(_, planned)| (planned.device.clone(), planned.node.clone()));
            let nodes: BTreeMap<_, _> = places.collect();
            for node in nodes.values() {
                world.members.entry(node.clone()).or_default();
            }
            world.report.attempts += nodes.len();
            world.nodes_of.push(nodes);
            world.campaigns.push(id);
            let loaded = Loaded {
                manifest,
                plan,
                images: images.clone(),
                expires_at: Timestamp::after_start(Duration::from_secs(10_000_000)),
                record: None,
                attempts: Vec::new(),
                possession: Vec::new(),
            };
            let began = Instant::now();
            world.hand(Input::Load(vec![loaded]))?;
            loading += began.elapsed();
        }
        world.report.nodes = world.members.len();
        world.report.loading_s = loading.as_secs_f64();
        let proven: BTreeSet<_> = images.values().map(|image| image.id).collect();
        for node in world.members.keys().cloned().collect::<Vec<_>>() {
            world.hand(Input::Proofs {
                node,
                proven: proven.clone(),
                wrong: BTreeSet::new(),
            })?;
        }
        for id in world.campaigns.clone() {
            world.hand(Input::Start(id))?;
        }
        world.took.clear();
        world.report.engine_s = 0.0;
        Ok(world)
    }

    fn is_over(&self) -> bool {
        self.engine.states().all(|(_, state)| state.is_terminal())
    }

    /// One heartbeat of every node, evenly over the round.
    fn round(&mut self) -> anyhow::Result<()> {
        let nodes: Vec<_> = self.members.keys().cloned().collect();
        let begins = self.now;
        for (number, node) in (0_u32..).zip(&nodes) {
            let count = u32::try_from(nodes.len()).context("too many nodes")?;
            self.now = begins + ROUND * number / count;
            let reports = self.words_of(node);
            self.report.heartbeats += 1;
            self.report.reports += reports.len() as u64;
            let node = node.clone();
            self.hand(Input::Heard { node, reports })?;
        }
        self.now = begins + ROUND;
        self.hand(Input::Tick)
    }

    /// What a node has to tell of its devices that are at work: each is one step further.
    fn words_of(&mut self, node: &NodeId) -> Vec<AttemptReport> {
        let Some(member) = self.members.get_mut(node) else {
            return Vec::new();
        };
        let mut reports = Vec::new();
        for (campaign, device, step) in std::mem::take(&mut member.at_work) {
            member.reported += 1;
            reports.push(AttemptReport {
                campaign: self.campaigns[campaign].clone(),
                manifest_sha256: Sha256::of(b""),
                wave: 0,
                kind: PermitKind::Update,
                permit_sequence: 0,
                attempt: 1,
                device: device.clone(),
                node: node.clone(),
                sequence: member.reported,
                state: COURSE[step],
                reason: String::new(),
                version: None,
                failure: None,
                health: None,
                at: WallTime::from_unix_seconds(0),
            });
            if step + 1 < COURSE.len() {
                member.at_work.push_back((campaign, device, step + 1));
            }
        }
        reports
    }

    /// Hands an input to the engine, and its permits to the nodes.
    fn hand(&mut self, input: Input) -> anyhow::Result<()> {
        let is_heartbeat = matches!(input, Input::Heard { .. });
        let began = Instant::now();
        self.engine.handle(self.now, input)?;
        let outputs: Vec<_> = std::iter::from_fn(|| self.engine.poll()).collect();
        let took = began.elapsed();
        self.report.engine_s += took.as_secs_f64();
        if is_heartbeat {
            self.took.push(took);
        }
        for output in outputs {
            let Output::IssuePermit(order) = output else {
                continue;
            };
            self.report.permits += 1;
            self.report.initiations += order.devices.len() as u64;
            let campaign = self.campaigns.iter().position(|id| *id == order.campaign);
            let campaign = campaign.context("a permit of an unknown campaign")?;
            for device in order.devices {
                let node = self.nodes_of[campaign]
                    .get(&device)
                    .context("a permit of an unplanned device")?;
                let member = self.members.entry(node.clone()).or_default();
                member.at_work.push_back((campaign, device, 0));
            }
        }
        Ok(())
    }

    fn report(mut self) -> Report {
        self.took.sort_unstable();
        let at = |share: f64| {
            let last = self.took.len().saturating_sub(1);
            let took = self
                .took
                .get((share * last as f64) as usize)
                .copied()
                .unwrap_or_default();
            took.as_secs_f64() * 1e6
        };
        let seconds = self.report.engine_s.max(1e-9);
        let ended_well = self.engine.campaigns().map(|view| {
            let count = view.states.get(&AttemptState::Success).copied().unwrap_or_default();
            usize::try_from(count).unwrap_or(usize::MAX)
        });
        Report {
            ended_well: ended_well.sum(),
            initiations_per_minute: self.report.initiations as f64 / seconds * 60.0,
            heartbeats_per_s: self.report.heartbeats as f64 / seconds,
            heartbeat_p50_us: at(0.5),
            heartbeat_p99_us: at(0.99),
            heartbeat_max_us: at(1.0),
            memory_peak_mib: memory_peak_mib(),
            ..self.report
        }
    }
}

fn tell(report: &Report) {
    println!(
        "{} devices behind {} nodes, {} campaigns with {} attempts: loaded in {:.1} s, {} MiB at most",
        report.devices,
        report.nodes,
        report.campaigns,
        report.attempts,
        report.loading_s,
        report
            .memory_peak_mib
            .map_or_else(|| "unknown".to_owned(), |mib| mib.to_string()),
    );
    println!(
        "  {} heartbeats with {} reports, {} devices started by {} permits, {} ended well: {:.1} s in the engine on one processor",
        report.heartbeats, report.reports, report.initiations, report.permits, report.ended_well, report.engine_s,
    );
    println!(
        "  {:.0} devices started a minute, {:.0} heartbeats a second; one takes {:.0} us (p50), {:.0} us (p99), {:.0} us at most",
        report.initiations_per_minute,
        report.heartbeats_per_s,
        report.heartbeat_p50_us,
        report.heartbeat_p99_us,
        report.heartbeat_max_us,
    );
}
