//! `firmesh-sim plan`: how long planning takes, and in how much memory, for a fleet that is made up.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use firmesh_coordinator_core::{Inventory, KnownDevice, check, plan, split};
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, DeviceId, LabelName, LabelValue, NodeId, Sha256},
    labels::Labels,
    manifest::{
        Artifact, AtMost, CampaignManifest, Caps, Constraints, Deadlines, DomainCap, GateRule, MANIFEST_SCHEMA,
        NeverTogether, OtherComponent, Priority, RELEASE_SCHEMA, Release, ReleaseInfo, ReleaseRef, Reversibility,
        Selector, Strategy,
    },
    report::DeviceFacts,
    time::WallTime,
    trust::SecretKey,
    units::BasisPoints,
    version::VersionScheme,
};
use serde::Serialize;

use crate::spread::memory_peak_mib;

/// Servers behind one node, nodes of a rack, racks of a site.
const SERVERS: usize = 12;
const NODES: usize = 4;
const RACKS: usize = 25;

/// The components of a server, in no order.
const COMPONENTS: [&str; 5] = ["nic", "bios", "bmc", "ssd", "cpld"];

#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    /// Devices of the fleet.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    devices: u64,
    /// Components of a server, each a device: 1 for devices that stand alone.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=COMPONENTS.len() as u64))]
    components: u64,
    /// Cap fault domains: racks and power feeds below 1 %, and never two feeds of a site at once.
    #[arg(long)]
    domains: bool,
    /// Have the independent checker judge every plan; its time is counted apart.
    #[arg(long)]
    check: bool,
    /// Fail if planning takes longer.
    #[arg(long, value_name = "SECONDS")]
    within_s: Option<u64>,
    /// Fail if the process was ever larger.
    #[arg(long, value_name = "MIB")]
    within_mib: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl PlanArgs {
    /// A fleet of devices that stand alone.
    pub(crate) fn alone(devices: u64) -> Self {
        Self {
            devices,
            components: 1,
            domains: false,
            check: false,
            within_s: None,
            within_mib: None,
            json: false,
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct Report {
    devices: u64,
    campaigns: usize,
    planned: usize,
    held: usize,
    waves: usize,
    domains: usize,
    plan_bytes: usize,
    /// From the inventory to the bytes of every plan, with their digests.
    planning_s: f64,
    checking_s: Option<f64>,
    memory_fleet_mib: Option<u64>,
    memory_peak_mib: Option<u64>,
}

/// Whether the plans are right, and were made in the time and memory that were allowed.
pub(crate) fn planning(args: &PlanArgs) -> anyhow::Result<bool> {
    let releases = releases(args);
    let draft = draft(args, &releases)?;
    let inventory = fleet(args)?;
    let now = WallTime::from_unix_seconds(0);
    let mut report = Report {
        devices: args.devices,
        memory_fleet_mib: memory_peak_mib(),
        ..Report::default()
    };
    let (mut planning, mut checking) = (Duration::ZERO, Duration::ZERO);
    let began = Instant::now();
    let parts = split(&inventory, &draft)?;
    planning += began.elapsed();
    report.campaigns = parts.len();
    let mut is_right = true;
    for part in &parts {
        let began = Instant::now();
        let plan = plan(&inventory, part, &releases, now)?;
        let bytes = plan.to_bytes();
        std::hint::black_box(Sha256::of(&bytes));
        planning += began.elapsed();
        report.planned += plan.devices().count();
        report.held += plan.held.len();
        report.waves += plan.waves.len();
        report.domains += plan.domains.values().map(BTreeMap::len).sum::<usize>();
        report.plan_bytes += bytes.len();
        if args.check {
            let began = Instant::now();
            let wrong = check::plan(&plan, part, &inventory, &releases);
            checking += began.elapsed();
            is_right &= wrong.is_empty();
            wrong.iter().take(20).for_each(|line| eprintln!("{}: {line}", part.id));
        }
    }
    report.planning_s = planning.as_secs_f64();
    report.checking_s = args.check.then_some(checking.as_secs_f64());
    report.memory_peak_mib = memory_peak_mib();
    match args.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => tell(&report),
    }
    let in_time = args
        .within_s
        .is_none_or(|seconds| planning <= Duration::from_secs(seconds));
    let in_memory = match (args.within_mib, report.memory_peak_mib) {
        (Some(most), peak) => peak.context("this system does not say how large the process was")? <= most,
        (None, _) => true,
    };
    Ok(is_right && in_time && in_memory)
}

fn tell(report: &Report) {
    let mib = |mib: Option<u64>| mib.map_or_else(|| "unknown".to_owned(), |mib| format!("{mib} MiB"));
    println!(
        "{} devices: {} campaigns, {} devices in {} waves, {} held, {} fault domains capped; {:.1} MiB of plans",
        report.devices,
        report.campaigns,
        report.planned,
        report.waves,
        report.held,
        report.domains,
        report.plan_bytes as f64 / f64::from(1 << 20),
    );
    println!(
        "  planned in {:.2} s on one processor; memory {} with the fleet alone, {} at most",
        report.planning_s,
        mib(report.memory_fleet_mib),
        mib(report.memory_peak_mib),
    );
    if let Some(seconds) = report.checking_s {
        println!("  judged by the independent checker in {seconds:.2} s");
    }
}

fn components(args: &PlanArgs) -> &'static [&'static str] {
    let count = usize::try_from(args.components).unwrap_or(COMPONENTS.len());
    // One component alone is the BMC.
    if count == 1 {
        &COMPONENTS[2..3]
    } else {
        &COMPONENTS[..count]
    }
}

pub(crate) fn fleet(args: &PlanArgs) -> anyhow::Result<Inventory> {
    let components = components(args);
    let key = SecretKey::from_seed(&[7; 32]).public();
    let mut inventory = Inventory::default();
    for number in 0..usize::try_from(args.devices)? {
        let server = number / components.len();
        let node = server / SERVERS;
        let (rack, site) = (node / NODES % RACKS, node / NODES / RACKS);
        let node_name = format!("s{site}-r{rack}-n{}", node % NODES);
        let component = components[number % components.len()];
        let device = DeviceId::new(format!("{node_name}-u{}-{component}", server % SERVERS))?;
        let mut labels = BTreeMap::from([
            (
                LabelName::new("power_feed")?,
                LabelValue::new(format!("s{site}-f{}", rack % 2))?,
            ),
            (LabelName::new("cluster")?, LabelValue::new(format!("k{}", node / 32))?),
        ]);
        if components.len() > 1 {
            labels.insert(
                LabelName::new("unit")?,
                LabelValue::new(format!("u{}", server % SERVERS))?,
            );
        }
        // A few of everything that is left out.
        let version = match number % 100 {
            0 => None,
            1 => Some("1.1.0"),
            2 => Some("0.9.0"),
            _ => Some("1.0.0"),
        };
        let known = KnownDevice {
            facts: DeviceFacts {
                device: device.clone(),
                vendor: "Acme".to_owned(),
                model: format!("R{}", server % 5),
                component: Component::new(component)?,
                version: version.map(str::to_owned),
                executor: "redfish".to_owned(),
                labels: Labels::try_from(labels)?,
            },
            node: NodeId::new(node_name.clone())?,
            node_key: key,
            path: format!("g{}/s{site}/hall{}/rack{rack}/{node_name}", site % 10, rack % 4).parse()?,
            node_reachable: number % 1_000 != 3,
            quarantined: false,
            held_by_operator: None,
        };
        inventory.devices.insert(device, known);
    }
    Ok(inventory)
}

pub(crate) fn releases(args: &PlanArgs) -> Vec<Release> {
    let version = |version: &'static str| {
        components(args).iter().filter_map(move |component| {
            let target = format!("firmware/{component}-{version}.bin");
            let id = ArtifactId::of(target.as_bytes());
            // The BIOS wants the new BMC, where there are both.
            let wants = (*component == "bios" && version == "1.1.0" && args.components > 2).then(|| OtherComponent {
                component: Component::new("bmc").expect("a short name"),
                versions: Vec::new(),
                min_version: Some("1.0.0".to_owned()),
                version_scheme: Some(VersionScheme::SemVer),
            });
            let info = ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: id,
                vendor: "Acme".to_owned(),
                models: (0..5).map(|model| format!("R{model}")).collect(),
                component: Component::new(*component).ok()?,
                version: version.to_owned(),
                security_epoch: 1,
                from_versions: Vec::new(),
                version_scheme: Some(VersionScheme::SemVer),
                min_from: (version == "1.1.0").then(|| "1.0.0".to_owned()),
                requires: wants.into_iter().collect(),
                conflicts: Vec::new(),
                reversibility: Reversibility::Reflash,
                provenance: None,
            };
            let artifact = Artifact {
                id,
                sha256: Sha256::of(target.as_bytes()),
                length: 1 << 20,
            };
            Some(Release { target, artifact, info })
        })
    };
    version("1.1.0").chain(version("1.0.0")).collect()
}

pub(crate) fn draft(args: &PlanArgs, releases: &[Release]) -> anyhow::Result<CampaignManifest> {
    let pins = |version: &str| {
        let of_version = releases.iter().filter(|release| release.info.version == version);
        let pin = |release: &Release| ReleaseRef {
            target: release.target.clone(),
            sha256: release.artifact.sha256,
        };
        of_version.map(pin).collect()
    };
    let mut caps = Caps::new(2, 10_000);
    if args.domains {
        for by in ["rack", "power_feed"] {
            caps.domains.push(DomainCap {
                by: by.parse()?,
                at_most: AtMost::BelowPercent(1),
            });
        }
        caps.never_together.push(NeverTogether {
            by: "power_feed".parse()?,
            within: Some("site".parse()?),
            domains: Vec::new(),
        });
    }
    let shares = [1_000, 3_000, 5_000, 10_000].map(BasisPoints::new);
    Ok(CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: CampaignId::new("million")?,
        sequence: 1,
        expires: WallTime::from_unix_seconds(86_400),
        releases: pins("1.1.0"),
        previous: pins("1.0.0"),
        selector: Selector::default(),
        strategy: Strategy::Canary {
            shares: shares.into_iter().collect::<Result<_, _>>()?,
        },
        caps,
        gate: GateRule {
            sample_min: 10,
            soak_s: 3_600,
            ..GateRule::shares(BasisPoints::WHOLE, BasisPoints::WHOLE)
        },
        constraints: Constraints::default(),
        deadlines: Deadlines {
            attempt_s: 1_800,
            back_s: 600,
        },
        priority: Priority::Normal,
        automatic_rollback: true,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![SecretKey::from_seed(&[8; 32]).public().to_string()],
        plan_sha256: Sha256::of(b""),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: firmesh_protocol::manifest::CampaignKind::Update,
    })
}
