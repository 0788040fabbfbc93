//! A fleet and its campaigns, made from a seed: small enough to be gone through in a millisecond, and different enough
//! that racks, caps, waves, windows and overlapping campaigns all meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use firmesh_coordinator_core::{Inventory, KnownDevice, plan};
use firmesh_node_core::approved::ApprovedCampaign;
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, DeviceId, LabelName, LabelValue, NodeId, Sha256, TopologyPath},
    labels::Labels,
    manifest::{
        Artifact, AtMost, CampaignManifest, Caps, Constraints, Deadlines, Dimension, DomainCap, GateRule,
        MANIFEST_SCHEMA, NeverTogether, OtherComponent, PLAN_SCHEMA, Plan, Priority, RELEASE_SCHEMA, Release,
        ReleaseInfo, ReleaseRef, Retries, RetryBudget, RetryRule, Reversibility, Selector, Sequence, Strategy,
    },
    report::DeviceFacts,
    time::WallTime,
    trust::SecretKey,
    units::BasisPoints,
    window::{Blackout, Weekday, Window},
};

use super::{Profile, answers, dice::Dice};
use crate::device::{Catalogue, Firmware, Identity};

/// The version every device runs at first.
pub(super) const FIRST_VERSION: &str = "1.0";
const VENDOR: &str = "Acme";
/// The webhook that switches traffic from pool to pool, and drains them, where no other one does.
pub(super) const BALANCER: &str = "balancer";
/// Nodes whose keys are kept ready: making one costs more than a whole look at a device.
const NODES_MAX: usize = 9;
/// Thursday, 2026-01-15, midnight in UTC: no zone of the windows below changes its clocks for weeks.
const MIDNIGHT: i64 = 1_768_435_200;
/// Campaigns that come one after the other over the same hosts, where it is about slots.
const SLOT_CAMPAIGNS: u32 = 6;
/// Zones of windows, with the seconds that their clocks are ahead of UTC on that day.
const ZONES: [(&str, i64); 4] = [
    ("UTC", 0),
    ("America/New_York", -5 * 3_600),
    ("Asia/Kolkata", 5 * 3_600 + 1_800),
    ("Pacific/Auckland", 13 * 3_600),
];

/// What kind of device: which executor looks after it, and what can go wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A management controller behind Redfish.
    Bmc,
    /// A BIOS behind Redfish: only a restart of the system brings its image to life.
    Bios,
    /// A host with two slots.
    Host,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Bmc, Self::Bios, Self::Host];

    pub(super) fn component(self) -> &'static str {
        match self {
            Self::Bmc => "bmc",
            Self::Bios => "bios",
            Self::Host => "host",
        }
    }

    fn executor(self) -> &'static str {
        match self {
            Self::Bmc | Self::Bios => "redfish",
            Self::Host => "ab_slot",
        }
    }

    pub(super) fn identity(self) -> Identity {
        Identity {
            vendor: VENDOR.to_owned(),
            model: format!("{}-model", self.component()),
            component: Component::new(self.component()).expect("a short name"),
        }
    }
}

/// A node and where it stands.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: NodeId,
    pub(super) path: TopologyPath,
    pub(super) rack: TopologyPath,
    pub(super) key: &'static SecretKey,
}

/// A device and who looks after it.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) id: DeviceId,
    pub(super) node: usize,
    pub(super) kind: Kind,
    pub(super) labels: Labels,
    /// The host that steps aside for it.
    pub(super) host: Option<usize>,
}

/// A host that steps aside for its devices.
#[derive(Debug)]
pub(super) struct PlacedHost {
    pub(super) node: usize,
    /// Of the hosts of one cluster, one may be aside at a time.
    pub(super) cluster: usize,
    /// An administrator has it aside from the beginning.
    pub(super) aside_before: bool,
}

impl Placed {
    /// The power feed that it hangs on.
    pub(super) fn feed(&self) -> Option<&LabelValue> {
        self.labels.get("power_feed")
    }
}

/// When devices may start, in a form that a second opinion can compute with.
#[derive(Debug, Clone, Copy)]
pub(super) struct DailyWindow {
    /// Seconds after midnight UTC at which it opens, every day.
    pub(super) opens_s: i64,
    /// For how long.
    pub(super) lasts_s: i64,
}

/// One campaign, approved, with what a second opinion needs.
#[derive(Debug)]
pub(super) struct Approved {
    pub(super) campaign: Arc<ApprovedCampaign>,
    pub(super) images: BTreeMap<String, Artifact>,
    /// None: at any time.
    pub(super) windows: Vec<DailyWindow>,
    /// When an operator starts it, in milliseconds.
    pub(super) starts_ms: u64,
}

/// Everything that does not change in a run.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) places: Vec<Place>,
    pub(super) devices: Vec<Placed>,
    pub(super) hosts: Vec<PlacedHost>,
    pub(super) campaigns: Vec<Approved>,
    pub(super) catalogue: Catalogue,
    /// The moment at which virtual time begins.
    pub(super) begins: WallTime,
    pub(super) permit_ttl_s: u64,
    /// How often in a thousand the answer of a device is lost.
    pub(super) deaf_permille: u64,
}

impl Scenario {
    /// The fleet of a seed.
    pub(super) fn new(profile: Profile, dice: &mut Dice, mut later: Option<&mut Dice>) -> Self {
        // Few nodes with many hosts: what is not about slots is kept short there.
        let is_about_slots = profile == Profile::Slots;
        let racks = match profile {
            Profile::Slots => 1,
            // A pool is a rack.
            Profile::Pools => dice.between(2, 3),
            _ => dice.between(1, 3),
        };
        let mut places = Vec::new();
        let mut devices = Vec::new();
        for rack in 1..=racks {
            let rack_path: TopologyPath = format!("s/r{rack}").parse().expect("a short path");
            for number in 1..=if is_about_slots { 1 } else { dice.between(1, 3) } {
                let name = format!("r{rack}n{number}");
                let node = places.len();
                places.push(Place {
                    id: NodeId::new(name.clone()).expect("a short name"),
                    path: format!("s/r{rack}/{name}").parse().expect("a short path"),
                    rack: rack_path.clone(),
                    key: &keys()[node],
                });
                if profile == Profile::Units {
                    devices.extend(servers(&name, node, dice));
                    continue;
                }
                let devices_max = if profile == Profile::Batches { 5 } else { 3 };
                for device in 1..=if is_about_slots {
                    8
                } else {
                    dice.between(1, devices_max)
                } {
                    let kind = match profile {
                        Profile::Power | Profile::Slots => Kind::Host,
                        _ => *dice.pick(&Kind::ALL),
                    };
                    devices.push(Placed {
                        id: DeviceId::new(format!("{name}d{device}")).expect("a short name"),
                        node,
                        kind,
                        labels: Labels::default(),
                        host: None,
                    });
                }
            }
        }
        let hosts = match profile {
            Profile::Hosts => hosts(&places, &mut devices, dice),
            _ => Vec::new(),
        };
        let begins = WallTime::from_unix_seconds(MIDNIGHT + dice.below(86_400).cast_signed());
        let mut scenario = Self {
            places,
            devices,
            hosts,
            campaigns: Vec::new(),
            catalogue: Catalogue::new(),
            begins,
            permit_ttl_s: 60 * dice.between(2, 8),
            deaf_permille: if dice.one_in(3) { dice.below(100) } else { 0 },
        };
        let mut inventory = scenario.inventory();
        let first = scenario.approve(profile, 0, &inventory, 0, dice, later.as_deref_mut());
        scenario.campaigns.push(first);
        if is_about_slots {
            for number in 1..SLOT_CAMPAIGNS {
                let starts_ms = u64::from(number) * 300_000;
                let next = scenario.approve(profile, number, &inventory, starts_ms, dice, None);
                scenario.campaigns.push(next);
            }
        } else if dice.one_in(3) {
            // Planned against the same fleet as the first: whichever comes later finds devices engaged, or moved on.
            let starts_ms = dice.below(900_000);
            if dice.one_in(2) {
                let kept: BTreeSet<_> = inventory.devices.keys().filter(|_| dice.one_in(2)).cloned().collect();
                inventory.devices.retain(|id, _| kept.contains(id));
            }
            let second = scenario.approve(profile, 1, &inventory, starts_ms, dice, later);
            scenario.campaigns.push(second);
        }
        scenario
    }

    fn inventory(&self) -> Inventory {
        let known = |device: &Placed| {
            let place = &self.places[device.node];
            let known = KnownDevice {
                facts: facts(device, Some(FIRST_VERSION)),
                node: place.id.clone(),
                node_key: place.key.public(),
                path: place.path.clone(),
                node_reachable: true,
                quarantined: false,
                held_by_operator: None,
            };
            (device.id.clone(), known)
        };
        Inventory {
            devices: self.devices.iter().map(known).collect(),
            ..Inventory::default()
        }
    }

    fn approve(
        &mut self,
        profile: Profile,
        number: u32,
        inventory: &Inventory,
        starts_ms: u64,
        dice: &mut Dice,
        later: Option<&mut Dice>,
    ) -> Approved {
        let version = &format!("{}.0", number + 2);
        // A later campaign may bring an image that is older by its security epoch, and nothing leads back from a higher one.
        let epoch = if dice.one_in(3) { dice.between(1, 3) as u32 } else { 1 };
        let one_way_accepted = dice.one_in(2);
        let (mut releases, mut previous) = (Vec::new(), Vec::new());
        for kind in Kind::ALL {
            let reversibility = match (kind, dice.below(8)) {
                (_, 0) => Reversibility::OneWay,
                (Kind::Host, _) => Reversibility::Reversible,
                _ => Reversibility::Reflash,
            };
            releases.push(release(kind, version, epoch, reversibility));
            previous.push(release(kind, FIRST_VERSION, 1, Reversibility::Reflash));
        }
        let hops = match profile {
            Profile::Hops => releases
                .iter_mut()
                .flat_map(|release| lead_over(release, dice))
                .collect(),
            Profile::Hosts if dice.one_in(2) => releases
                .iter_mut()
                .flat_map(|release| lead_over(release, dice))
                .collect(),
            _ => Vec::new(),
        };
        for Release { artifact, info, .. } in releases.iter().chain(&previous).chain(&hops) {
            let (version, model) = (info.version.clone(), info.models[0].clone());
            self.catalogue.insert(artifact.sha256, Firmware { version, model });
        }
        let mut windows: Vec<_> = dice.one_in(4).then(|| self.window(dice)).into_iter().collect();
        let deadlines = Deadlines {
            attempt_s: 60 * dice.between(5, 10) as u32,
            back_s: 60,
        };
        let mut soon_over_s = None;
        let is_later = later.is_some();
        if let Some(dice) = later {
            if dice.one_in(3) {
                windows = self.brief_windows(dice, deadlines.attempt_s).into();
            }
            if dice.one_in(6) {
                soon_over_s = Some(60 * dice.between(3, 20));
            }
        }
        if profile == Profile::Slots {
            windows.clear();
        }
        let advance = 100 * dice.between(60, 100) as u32;
        let usual_s = if dice.one_in(8) { 1_800 } else { 7 * 86_400 };
        let mut manifest = CampaignManifest {
            schema: MANIFEST_SCHEMA.to_owned(),
            id: CampaignId::new(format!("c{number}")).expect("a short name"),
            sequence: u64::from(number) + 1,
            expires: self.begins + std::time::Duration::from_secs(soon_over_s.unwrap_or(usual_s)),
            releases: releases.iter().map(pin).collect(),
            previous: previous.iter().map(pin).collect(),
            selector: Selector {
                devices: inventory.devices.keys().cloned().collect(),
                ..Selector::default()
            },
            strategy: Strategy::Canary { shares: shares(dice) },
            caps: Caps::new(dice.between(1, 3) as u32, dice.between(1, 6) as u32),
            gate: GateRule {
                advance: share(advance),
                rollback: share(dice.between(u64::from(advance) * 3 / 4, u64::from(advance)) as u32),
                sample_min: dice.between(1, 3) as u32,
                soak_s: if dice.one_in(2) {
                    0
                } else {
                    60 * dice.between(1, 5) as u32
                },
                ..GateRule::shares(BasisPoints::WHOLE, BasisPoints::WHOLE)
            },
            constraints: Constraints {
                windows: windows.iter().map(|(window, _)| window.clone()).collect(),
                blackouts: self.blackout(dice),
                one_way_accepted,
                ..Constraints::default()
            },
            deadlines,
            priority: Priority::Normal,
            automatic_rollback: !dice.one_in(6),
            operator_rollback: false,
            retries: None,
            permit_keys: vec![coordinator_key().public().to_string()],
            plan_sha256: Sha256::of(b""),
            hops: hops.iter().map(pin).collect(),
            rehearsal_sha256: None,
            kind: firmesh_protocol::manifest::CampaignKind::Update,
        };
        manifest.operator_rollback = profile == Profile::Orders && !is_later;
        if profile == Profile::Answers || (profile == Profile::Liar && dice.one_in(2)) {
            answers::ask(&mut manifest, dice);
        }
        if profile == Profile::Hops {
            manifest.retries = dice.one_in(2).then(|| retries(dice));
            manifest.operator_rollback = dice.one_in(2);
        }
        if profile == Profile::Hosts {
            // Hosts are waited for, one after the other: there is time for that, and several devices want theirs at once.
            manifest.deadlines.attempt_s = 60 * dice.between(15, 40) as u32;
            (manifest.caps.per_rack, manifest.caps.total) = (dice.between(2, 5) as u32, dice.between(3, 8) as u32);
            manifest.retries = dice.one_in(4).then(|| retries(dice));
            manifest.operator_rollback = dice.one_in(2);
        }
        if profile == Profile::Retries {
            manifest.retries = Some(retries(dice));
            let advance = 100 * dice.between(30, 95) as u32;
            (manifest.gate.advance, manifest.gate.rollback) = (share(advance), share(advance * 3 / 4));
            (manifest.caps.per_rack, manifest.caps.total) = (dice.between(1, 4) as u32, dice.between(2, 8) as u32);
        }
        if profile == Profile::Batches {
            manifest.strategy = Strategy::Rolling {
                batch: dice.between(1, 3) as u32,
                max_concurrent_batches: dice.between(2, 4) as u32,
            };
            // Now and then a batch fails only when most of it has, so that others are open and far on.
            let advance = 100 * dice.between(30, 100) as u32;
            (manifest.gate.advance, manifest.gate.rollback) = (share(advance), share(advance * 3 / 4));
            (manifest.caps.per_rack, manifest.caps.total) = (dice.between(1, 4) as u32, dice.between(2, 8) as u32);
            if dice.one_in(3) {
                answers::ask(&mut manifest, dice);
            }
            if dice.one_in(4) {
                manifest.retries = Some(retries(dice));
            }
        }
        if profile == Profile::Pools {
            manifest.strategy = self.pools(dice);
            (manifest.caps.per_rack, manifest.caps.total) = (dice.between(1, 4) as u32, dice.between(2, 8) as u32);
        }
        if profile == Profile::Rollback {
            // One wave that is well on its way when it fails: all of it goes back.
            manifest.strategy = Strategy::Canary {
                shares: vec![share(10_000)],
            };
            (manifest.gate.advance, manifest.gate.rollback) = (share(9_500), share(9_000));
            (manifest.caps, manifest.automatic_rollback) = (Caps::new(3, 6), true);
        }
        if profile == Profile::Slots {
            // Everybody at once, and half of the campaigns take back what they brought.
            manifest.strategy = Strategy::Canary {
                shares: vec![share(10_000)],
            };
            let passes = share(if dice.one_in(2) { 10_000 } else { 0 });
            (manifest.gate.advance, manifest.gate.rollback) = (passes, passes);
            (manifest.caps, manifest.automatic_rollback) = (Caps::new(8, 8), true);
            (manifest.constraints.blackouts, manifest.constraints.one_way_accepted) = (Vec::new(), true);
            manifest.expires = self.begins + std::time::Duration::from_secs(7 * 86_400);
        }
        if profile == Profile::Units {
            // Now and then all of a rack could go at once, were it not for its feeds.
            (manifest.caps.per_rack, manifest.caps.total) = (dice.between(2, 6) as u32, dice.between(2, 8) as u32);
            if dice.one_in(2) {
                manifest.caps.domains = vec![DomainCap {
                    by: "power_feed".parse().expect("a short name"),
                    at_most: AtMost::Count(dice.between(1, 3) as u32),
                }];
            }
            if dice.one_in(2) {
                manifest.caps.never_together = vec![NeverTogether {
                    by: "power_feed".parse().expect("a short name"),
                    within: None,
                    domains: Vec::new(),
                }];
            }
            if dice.one_in(2) {
                let order = ["host", "bios"].map(|name| Component::new(name).expect("a short name"));
                manifest.constraints.sequence = vec![Sequence {
                    vendor: VENDOR.to_owned(),
                    order: order.to_vec(),
                }];
            }
            if dice.one_in(3) {
                let bmc = OtherComponent {
                    component: Component::new(Kind::Bmc.component()).expect("a short name"),
                    versions: vec![version.clone()],
                    min_version: None,
                    version_scheme: None,
                };
                let bios = releases
                    .iter_mut()
                    .find(|release| release.info.component.as_str() == Kind::Bios.component());
                bios.expect("there is one of each kind").info.requires = vec![bmc];
            }
        }
        let published: Vec<_> = releases.iter().chain(&previous).chain(&hops).cloned().collect();
        let plan = match plan(inventory, &manifest, &published, self.begins) {
            Ok(plan) => plan,
            // Nothing can be planned: a campaign without devices is one, too.
            Err(_) => Plan {
                schema: PLAN_SCHEMA.to_owned(),
                campaign: manifest.id.clone(),
                waves: Vec::new(),
                nodes: BTreeMap::new(),
                held: Vec::new(),
                domains: BTreeMap::new(),
                servers: Vec::new(),
            },
        };
        manifest.plan_sha256 = Sha256::of(&plan.to_bytes());
        let campaign = ApprovedCampaign {
            manifest_sha256: Sha256::of(&serde_json::to_vec(&manifest).expect("a manifest is text and numbers")),
            manifest,
            plan,
            releases: published
                .iter()
                .map(|release| (release.target.clone(), release.clone()))
                .collect(),
        };
        Approved {
            images: published
                .into_iter()
                .map(|release| (release.target, release.artifact))
                .collect(),
            campaign: Arc::new(campaign),
            windows: windows.into_iter().map(|(_, daily)| daily).collect(),
            starts_ms,
        }
    }

    /// Two racks in some order, and a balancer that does both, or two.
    fn pools(&self, dice: &mut Dice) -> Strategy {
        let mut order: Vec<_> = self.places.iter().map(|place| place.rack.clone()).collect();
        order.dedup();
        let first = dice.index(order.len());
        order.rotate_left(first);
        order.truncate(2);
        let drain = if dice.one_in(2) { BALANCER } else { "drainer" };
        Strategy::BlueGreen {
            by: Dimension::Rack,
            order,
            switch: BALANCER.to_owned(),
            drain: drain.to_owned(),
        }
    }

    /// A window that opens every day, within an hour of the beginning or before it.
    fn window(&self, dice: &mut Dice) -> (Window, DailyWindow) {
        let zone = *dice.pick(&ZONES);
        let lasts_s = 3_600 * dice.between(2, 12).cast_signed();
        let from_s = 3_600 - dice.below(lasts_s.cast_unsigned()).cast_signed();
        self.daily(zone, from_s, lasts_s)
    }

    /// One that closes while the campaign is at it, and one that opens when everybody has had to wait for it.
    fn brief_windows(&self, dice: &mut Dice, attempt_s: u32) -> [(Window, DailyWindow); 2] {
        let zone = *dice.pick(&ZONES);
        let lasts_s = i64::from(attempt_s) + 60 * dice.between(1, 30).cast_signed();
        let closes_s = 60 * dice.between(3, 40).cast_signed();
        let opens_s = closes_s + 60 * dice.between(5, 20).cast_signed();
        [
            self.daily(zone, closes_s - lasts_s, lasts_s),
            self.daily(zone, opens_s, 4 * 3_600),
        ]
    }

    /// A window that opens so many seconds after the beginning, and every day at that time.
    fn daily(&self, (zone, ahead_s): (&str, i64), from_s: i64, lasts_s: i64) -> (Window, DailyWindow) {
        let day = 86_400;
        let from = self.begins.unix_seconds().rem_euclid(day) + from_s;
        let opens_s = from.rem_euclid(day) / 60 * 60;
        let local = (opens_s + ahead_s).rem_euclid(day);
        let days = [
            Weekday::Mon,
            Weekday::Tue,
            Weekday::Wed,
            Weekday::Thu,
            Weekday::Fri,
            Weekday::Sat,
            Weekday::Sun,
        ];
        let from = format!("{:02}:{:02}", local / 3_600, local % 3_600 / 60);
        let duration_s = u32::try_from(lasts_s).expect("a part of a day");
        let window = Window::weekly(zone, &days, &from, duration_s);
        (window, DailyWindow { opens_s, lasts_s })
    }

    fn blackout(&self, dice: &mut Dice) -> Vec<Blackout> {
        if !dice.one_in(8) {
            return Vec::new();
        }
        let from = self.begins + std::time::Duration::from_secs(dice.below(1_200));
        let until = from + std::time::Duration::from_secs(60 * dice.between(1, 30));
        vec![Blackout { from, until }]
    }

    pub(super) fn device(&self, id: &DeviceId) -> Option<usize> {
        self.devices.iter().position(|device| device.id == *id)
    }

    pub(super) fn place(&self, id: &NodeId) -> Option<usize> {
        self.places.iter().position(|place| place.id == *id)
    }

    pub(super) fn campaign(&self, id: &CampaignId) -> Option<&Approved> {
        self.campaigns
            .iter()
            .find(|approved| approved.campaign.manifest.id == *id)
    }
}

/// Rules for some classes of failures, and a budget that is spent now and then.
fn retries(dice: &mut Dice) -> Retries {
    use firmesh_protocol::report::FailureClass::{Boot, Install, Timeout};
    let mut rules = Vec::new();
    for class in [Install, Boot, Timeout] {
        if rules.is_empty() || !dice.one_in(4) {
            rules.push(RetryRule {
                class,
                times: dice.between(1, 4) as u32,
                pause_s: dice.below(400) as u32,
            });
        }
    }
    let budget = match dice.one_in(2) {
        true => RetryBudget::Count(dice.between(1, 6) as u32),
        false => RetryBudget::Share(share(1_000 * dice.between(1, 10) as u32)),
    };
    Retries { rules, budget }
}

/// One or two hosts of each node, which most of its devices belong to: of one cluster, or of one in each rack.
fn hosts(places: &[Place], devices: &mut [Placed], dice: &mut Dice) -> Vec<PlacedHost> {
    let mut hosts = Vec::new();
    let is_one_cluster = dice.one_in(2);
    for node in 0..places.len() {
        let in_rack = places.iter().position(|place| place.rack == places[node].rack);
        let (first, count) = (hosts.len(), dice.between(1, 2));
        for _ in 0..count {
            hosts.push(PlacedHost {
                node,
                cluster: in_rack.filter(|_| !is_one_cluster).unwrap_or_default(),
                aside_before: dice.one_in(10),
            });
        }
        for device in devices.iter_mut().filter(|device| device.node == node) {
            device.host = (!dice.one_in(6)).then(|| first + dice.index(hosts.len() - first));
        }
    }
    hosts
}

/// One to three servers of a node, each with two or three components; nodes hang on two feeds in turn.
fn servers(node_name: &str, node: usize, dice: &mut Dice) -> Vec<Placed> {
    let mut devices = Vec::new();
    for server in 1..=dice.between(1, 3) {
        let components = 2 + dice.index(2);
        for kind in Kind::ALL.into_iter().take(components) {
            let labels = [("power_feed", format!("f{}", node % 2)), ("unit", format!("u{server}"))];
            let label = |(name, value): (&str, String)| {
                let name = LabelName::new(name).expect("a short name");
                (name, LabelValue::new(value).expect("a short name"))
            };
            let labels: BTreeMap<_, _> = labels.map(label).into();
            devices.push(Placed {
                id: DeviceId::new(format!("{node_name}u{server}-{}", kind.component())).expect("a short name"),
                node,
                kind,
                labels: Labels::try_from(labels).expect("two labels"),
                host: None,
            });
        }
    }
    devices
}

/// What a node reads from a device.
pub(super) fn facts(device: &Placed, version: Option<&str>) -> DeviceFacts {
    let Identity {
        vendor,
        model,
        component,
    } = device.kind.identity();
    DeviceFacts {
        device: device.id.clone(),
        vendor,
        model,
        component,
        version: version.map(str::to_owned),
        executor: device.kind.executor().to_owned(),
        labels: device.labels.clone(),
    }
}

/// The digest of the image of a version.
pub(super) fn image(kind: Kind, version: &str) -> Sha256 {
    Sha256::of(target(kind, version).as_bytes())
}

/// The key that signs permits and evidence.
pub(super) fn coordinator_key() -> &'static SecretKey {
    &keys()[NODES_MAX]
}

fn keys() -> &'static [SecretKey] {
    static KEYS: OnceLock<Vec<SecretKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        (0..=NODES_MAX)
            .map(|number| SecretKey::from_seed(&[u8::try_from(number).expect("a handful") + 1; 32]))
            .collect()
    })
}

fn target(kind: Kind, version: &str) -> String {
    format!("firmware/{}-{version}.bin", kind.component())
}

fn release(kind: Kind, version: &str, security_epoch: u32, reversibility: Reversibility) -> Release {
    let target = target(kind, version);
    let Identity {
        vendor,
        model,
        component,
    } = kind.identity();
    let id = ArtifactId::of(target.as_bytes());
    Release {
        artifact: Artifact {
            id,
            sha256: image(kind, version),
            length: 1 << 20,
        },
        info: ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: id,
            vendor,
            models: vec![model],
            component,
            version: version.to_owned(),
            security_epoch,
            from_versions: Vec::new(),
            reversibility,
            provenance: None,
            version_scheme: None,
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
        },
        target,
    }
}

/// Lets a release be installed from others only, up to three one after the other, which are returned.
fn lead_over(release: &mut Release, dice: &mut Dice) -> Vec<Release> {
    let major = release
        .info
        .version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    let before = major.unwrap_or(2) - 1;
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.component() == release.info.component.as_str());
    let kind = kind.expect("a release of ours");
    let (mut from, mut epoch) = (FIRST_VERSION.to_owned(), 1);
    let mut hops = Vec::new();
    for step in 1..=dice.below(4) {
        if dice.one_in(3) {
            epoch = release.info.security_epoch;
        }
        let reversibility = if dice.one_in(12) {
            Reversibility::OneWay
        } else {
            Reversibility::Reflash
        };
        let version = format!("{before}.{step}");
        let mut hop = self::release(kind, &version, epoch, reversibility);
        hop.info.from_versions = vec![std::mem::replace(&mut from, version)];
        hops.push(hop);
    }
    if !hops.is_empty() {
        release.info.from_versions = vec![from];
    }
    hops
}

fn pin(release: &Release) -> ReleaseRef {
    ReleaseRef {
        target: release.target.clone(),
        sha256: release.artifact.sha256,
    }
}

fn shares(dice: &mut Dice) -> Vec<BasisPoints> {
    const CUTS: [&[u32]; 4] = [&[10_000], &[3_000, 10_000], &[5_000, 10_000], &[1_000, 4_000, 10_000]];
    dice.pick(&CUTS).iter().copied().map(share).collect()
}

fn share(basis_points: u32) -> BasisPoints {
    BasisPoints::new(basis_points).expect("at most the whole")
}
