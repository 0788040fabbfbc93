//! A fleet around the engine: obeys permits, keeps what is persisted, and checks the promises after every input.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_coordinator_core::{
    AttemptRecord, CampaignRecord, Engine, EngineSettings, Input, InputError, Loaded, Output, PermitOrder,
    PossessionRecord, Record, check,
};
use firmesh_protocol::{
    api::CampaignState,
    approval::ApprovalRule,
    health::{DeviceHealth, HealthRule},
    ids::{ArtifactId, CampaignId, Component, DeviceId, NodeId, Sha256},
    manifest::{
        Analysis, Artifact, AtMost, BIOS_SETTINGS, CampaignKind, CampaignManifest, Caps, Constraints, Deadlines,
        DomainCap, DomainShare, GateRule, HeldDevice, HeldServer, MANIFEST_SCHEMA, NeverTogether, PLAN_SCHEMA, Plan,
        PlannedComponent, PlannedDevice, PlannedServer, ProvisioningPhase, ReleaseRef, Retries, Selector, Strategy,
    },
    report::{AttemptReport, AttemptState, FailureClass, Permit, PermitKind},
    time::{Timestamp, WallTime},
    trust::SecretKey,
    units::BasisPoints,
};
use proptest::sample::Index;

const PERMIT_TTL: Duration = Duration::from_secs(900);

#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) racks: usize,
    pub(crate) per_rack: usize,
    pub(crate) first_device: usize,
    pub(crate) cap_rack: u32,
    pub(crate) cap_total: u32,
    pub(crate) advance: u32,
    pub(crate) rollback: u32,
    pub(crate) sample_min: u32,
    pub(crate) soak_s: u32,
    pub(crate) shares: Vec<u32>,
    pub(crate) goes_back: bool,
    /// Whether a failed gate sends devices back by itself.
    pub(crate) automatic: bool,
    /// The devices without a way back, if others have one.
    pub(crate) one_way: Vec<usize>,
    /// Whether the gate asks for the devices' health.
    pub(crate) health: bool,
    pub(crate) expires_s: u64,
    /// So many devices one after the other are a unit.
    pub(crate) unit: usize,
    /// So many power feeds are dealt out to units, `f0`, `f1` ...
    pub(crate) feeds: usize,
    pub(crate) domains: Vec<(&'static str, AtMost)>,
    /// Whether no two feeds may be in flight at once.
    pub(crate) feeds_apart: bool,
    pub(crate) approval: Option<ApprovalRule>,
    pub(crate) webhooks: Vec<&'static str>,
    pub(crate) retries: Option<Retries>,
    /// Whether the waves are pools.
    pub(crate) pools: bool,
    /// How many waves may be open at once.
    pub(crate) at_once: u32,
    /// How many releases devices go over on their way.
    pub(crate) hops: usize,
    /// Whether units are servers that are brought up, the last device of each the settings of its BIOS. Beside them stand one that is
    /// current and one that is held.
    pub(crate) provisioning: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            racks: 2,
            per_rack: 3,
            first_device: 0,
            cap_rack: 2,
            cap_total: 100,
            advance: 9_900,
            rollback: 9_000,
            sample_min: 1,
            soak_s: 0,
            shares: vec![1_000, 5_000, 10_000],
            goes_back: true,
            automatic: true,
            one_way: Vec::new(),
            health: false,
            expires_s: 10_000_000,
            unit: 1,
            feeds: 1,
            domains: Vec::new(),
            feeds_apart: false,
            approval: None,
            webhooks: Vec::new(),
            retries: None,
            pools: false,
            at_once: 1,
            hops: 0,
            provisioning: false,
        }
    }
}

pub(crate) fn id(name: &str) -> CampaignId {
    CampaignId::new(name).unwrap()
}

struct Stored {
    manifest: CampaignManifest,
    plan: Plan,
    expires_at: Timestamp,
    record: Option<CampaignRecord>,
    attempts: BTreeMap<DeviceId, AttemptRecord>,
    possession: BTreeMap<(NodeId, ArtifactId), PossessionRecord>,
}

pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) permits: Vec<PermitOrder>,
    pub(crate) now: Timestamp,
    stored: BTreeMap<CampaignId, Stored>,
    report_sequence: u64,
    /// What reports on ended updates say of the device's health.
    pub(crate) health: Option<DeviceHealth>,
    /// The ends of updates that were reported, as a stranger has them.
    ended: BTreeMap<CampaignId, BTreeMap<DeviceId, Vec<check::Ended>>>,
    /// Who has proven what, as this side has it.
    proven: BTreeSet<(NodeId, ArtifactId)>,
}

impl World {
    /// A fleet whose nodes have proven everything.
    pub(crate) fn new(campaigns: &[(&str, Rules)]) -> Self {
        let mut world = Self::unproven(campaigns);
        world.prove_everything();
        world
    }

    /// A fleet whose nodes have proven nothing yet.
    pub(crate) fn unproven(campaigns: &[(&str, Rules)]) -> Self {
        let stored = campaigns
            .iter()
            .map(|(name, rules)| (id(name), stored(name, rules)))
            .collect();
        let engine = Engine::new(EngineSettings { permit_ttl: PERMIT_TTL });
        let mut world = Self {
            engine,
            permits: Vec::new(),
            now: Timestamp::default(),
            stored,
            report_sequence: 0,
            health: None,
            ended: BTreeMap::new(),
            proven: BTreeSet::new(),
        };
        world.load();
        world
    }

    fn load(&mut self) {
        let loaded: Vec<_> = self
            .stored
            .values()
            .map(|stored| Loaded {
                manifest: stored.manifest.clone(),
                plan: stored.plan.clone(),
                images: images(),
                expires_at: stored.expires_at,
                record: stored.record.clone(),
                attempts: stored.attempts.values().cloned().collect(),
                possession: stored.possession.values().cloned().collect(),
            })
            .collect();
        self.input(Input::Load(loaded)).unwrap();
    }

    pub(crate) fn start(&mut self, name: &str) {
        self.input(Input::Start(id(name))).unwrap();
    }

    pub(crate) fn state(&self, name: &str) -> CampaignState {
        self.engine.campaign(&id(name)).unwrap().state
    }

    pub(crate) fn devices(&self) -> Vec<DeviceId> {
        self.stored
            .values()
            .flat_map(|stored| stored.plan.devices().map(|(_, planned)| planned.device.clone()))
            .collect()
    }

    /// Hands an input to the engine, keeps what it persists, and checks each permit as a stranger would.
    pub(crate) fn input(&mut self, input: Input) -> Result<(), InputError> {
        let mut in_flight = self.engine.in_flight_places();
        let sequences: BTreeMap<_, _> = self
            .stored
            .iter()
            .map(|(id, s)| (id.clone(), s.record.as_ref().map_or(0, |r| r.last_permit)))
            .collect();
        let mut last = sequences;
        let result = self.engine.handle(self.now, input);
        let mut permits = Vec::new();
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Persist(Record::Campaign(record)) => {
                    assert!(permits.is_empty(), "a permit came before what it relies on");
                    let id = record.id.clone();
                    self.stored.get_mut(&id).unwrap().record = Some(record);
                }
                Output::Persist(Record::Attempt(campaign, record)) => {
                    assert!(permits.is_empty(), "a permit came before what it relies on");
                    self.stored
                        .get_mut(&campaign)
                        .unwrap()
                        .attempts
                        .insert(record.device.clone(), record);
                }
                Output::Persist(Record::Possession(campaign, record)) => {
                    assert!(permits.is_empty(), "a permit came before what it relies on");
                    let key = (record.node.clone(), record.artifact);
                    assert_eq!(record.proven, self.proven.contains(&key), "{record:?}");
                    self.stored.get_mut(&campaign).unwrap().possession.insert(key, record);
                }
                Output::IssuePermit(order) => permits.push(order),
            }
        }
        let latest = self.engine.latest();
        let mut along = latest.along();
        for device in BTreeSet::from_iter(self.devices()) {
            let state = latest.attempt(&device).map(|attempt| attempt.state);
            assert_eq!(along.state(&device), state, "{device}");
        }
        // What the input itself ended is no longer in flight when the permits are issued.
        let after = self.engine.in_flight();
        in_flight.retain(|device, _| after.contains_key(device));
        for order in permits {
            self.check(&order, &in_flight, last[&order.campaign]);
            last.insert(order.campaign.clone(), order.sequence);
            let plan = &self.stored[&order.campaign].plan;
            for (_, planned) in plan
                .devices()
                .filter(|(_, planned)| order.devices.contains(&planned.device))
            {
                let place = check::InFlight {
                    node: planned.node.clone(),
                    rack: planned.rack.clone(),
                    labels: planned.labels.clone(),
                };
                in_flight.insert(planned.device.clone(), place);
            }
            self.permits.push(order);
        }
        result
    }

    fn check(&self, order: &PermitOrder, in_flight: &BTreeMap<DeviceId, check::InFlight>, last: u64) {
        let stored = &self.stored[&order.campaign];
        let issued = WallTime::from_unix_seconds(0);
        let permit = Permit {
            campaign: order.campaign.clone(),
            manifest_sha256: Sha256::of(b""),
            kind: order.kind,
            wave: order.wave,
            attempt: order.attempt,
            sequence: order.sequence,
            epoch: 1,
            evidence: Vec::new(),
            issued,
            expires: issued + PERMIT_TTL,
            devices: order.devices.clone(),
        };
        let is_updated = |device: &DeviceId| {
            stored.attempts.get(device).is_some_and(|attempt| match order.kind {
                PermitKind::Update => attempt.state.is_success(),
                PermitKind::Rollback => (attempt.kind, attempt.state) == (PermitKind::Update, AttemptState::Success),
            })
        };
        let planned = stored.plan.devices().map(|(_, planned)| planned.device.clone());
        let updated: BTreeSet<_> = planned.filter(is_updated).collect();
        assert_eq!(
            check::permit(&permit, &stored.plan, &stored.manifest, in_flight, &updated, last),
            Vec::<String>::new()
        );
        let nothing = BTreeMap::new();
        let ended = self.ended.get(&order.campaign).unwrap_or(&nothing);
        assert_eq!(
            check::again(
                &permit,
                &stored.plan,
                &stored.manifest,
                ended,
                self.now.since_start().as_secs()
            ),
            Vec::<String>::new()
        );
        let view = self.engine.campaign(&order.campaign).unwrap();
        let expected = match order.kind {
            PermitKind::Update => CampaignState::Active,
            PermitKind::Rollback => CampaignState::RollingBack,
        };
        assert_eq!(view.state, expected, "a permit of a stopped campaign");
        let open = view.waves.iter().filter(|wave| wave.open);
        let verdicts: Vec<_> = open.map(|wave| wave.gate).collect();
        assert_eq!(check::gates(&permit, &stored.manifest, &verdicts), Vec::<String>::new());
        if order.kind == PermitKind::Update {
            let permitted = stored.plan.devices().map(|(_, planned)| planned);
            for planned in permitted.filter(|planned| order.devices.contains(&planned.device)) {
                for target in planned.targets() {
                    let proof = (planned.node.clone(), images()[target].id);
                    assert!(self.proven.contains(&proof), "{} without {target}", planned.device);
                }
            }
        }
    }

    pub(crate) fn run_clock(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.engine.deadline().filter(|at| *at <= end) {
            self.now = at;
            self.input(Input::Tick).unwrap();
        }
        self.now = end;
        self.input(Input::Tick).unwrap();
    }

    pub(crate) fn hear(&mut self, node: &str) {
        let (node, reports) = (node.parse().unwrap(), Vec::new());
        self.input(Input::Heard { node, reports }).unwrap();
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        let plans = self.stored.values().map(|stored| stored.plan.nodes.keys().cloned());
        plans.flatten().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// A node's proof that it holds an image, of which another may not hold.
    pub(crate) fn prove(&mut self, node: &NodeId, target: &str, holds: bool) {
        let image = BTreeSet::from([images()[target].id]);
        let (proven, wrong) = match holds {
            true => (image, BTreeSet::new()),
            false => (BTreeSet::new(), image),
        };
        self.proven.extend(proven.iter().map(|id| (node.clone(), *id)));
        let node = node.clone();
        self.input(Input::Proofs { node, proven, wrong }).unwrap();
    }

    pub(crate) fn prove_everything(&mut self) {
        for node in self.nodes() {
            for target in [NEW, OLD, HOPS[0], HOPS[1]] {
                self.prove(&node, target, true);
            }
        }
    }

    pub(crate) fn enrol_again(&mut self, node: &str) {
        self.proven.retain(|(known, _)| known.as_str() != node);
        self.input(Input::Enrolled(node.parse().unwrap())).unwrap();
        self.report_sequence = 0;
    }

    pub(crate) fn report(&mut self, device: &DeviceId, state: AttemptState) {
        self.report_sequence += 1;
        self.send(device, state, (self.report_sequence, None), "so it was told");
    }

    /// A word on a device that runs this version.
    pub(crate) fn report_at(&mut self, device: &DeviceId, state: AttemptState, version: &str) {
        self.report_sequence += 1;
        self.send(device, state, (self.report_sequence, Some(version)), "so it was told");
    }

    fn send(&mut self, device: &DeviceId, state: AttemptState, (sequence, version): (u64, Option<&str>), reason: &str) {
        // The campaign that has it in flight, or the first that plans it.
        let runs = |stored: &&Stored| {
            stored
                .attempts
                .get(device)
                .is_some_and(|a| a.permit.is_some() && !a.state.is_terminal())
        };
        let plans = |stored: &&Stored| stored.plan.devices().any(|(_, planned)| planned.device == *device);
        let stored = self
            .stored
            .values()
            .find(runs)
            .or_else(|| self.stored.values().find(plans))
            .unwrap();
        let (wave, planned) = stored
            .plan
            .devices()
            .find(|(_, planned)| planned.device == *device)
            .unwrap();
        // Nodes number their attempts by themselves; here all that were permitted have begun.
        let attempt = stored.attempts.get(device);
        let permit = attempt.and_then(|attempt| attempt.permit).unwrap_or_default();
        let attempt = attempt
            .and_then(|attempt| attempt.retry.as_ref())
            .map_or(1, |retry| retry.attempt);
        let report = AttemptReport {
            campaign: stored.manifest.id.clone(),
            manifest_sha256: Sha256::of(b""),
            wave: u32::try_from(wave).unwrap(),
            kind: stored
                .attempts
                .get(device)
                .map_or(PermitKind::Update, |attempt| attempt.kind),
            permit_sequence: permit,
            attempt,
            device: device.clone(),
            node: planned.node.clone(),
            sequence,
            state,
            reason: reason.to_owned(),
            version: version.map(str::to_owned),
            failure: class_of(state).filter(|_| stored.manifest.retries.is_some()),
            health: self.health.filter(|_| state.is_success()),
            at: WallTime::from_unix_seconds(0),
        };
        let node = planned.node.clone();
        // Also of one that nobody here knows to have permitted: permits may be lost with a database, what nodes did is not.
        if report.kind == PermitKind::Update && state.is_terminal() && sequence > 0 {
            let of_campaign = self.ended.entry(report.campaign.clone()).or_default();
            let ended = of_campaign.entry(device.clone()).or_default();
            // What is said again of the same attempt is no other one.
            if ended.last().is_none_or(|last| last.permit < permit) {
                ended.push(check::Ended {
                    permit,
                    state,
                    failure: report.failure,
                    at_s: self.now.since_start().as_secs(),
                });
            }
        }
        self.input(Input::Heard {
            node,
            reports: vec![report],
        })
        .unwrap();
    }

    /// A node's word on some device: about one it was permitted to touch, whatever that word is; about another, only
    /// that it prepares.
    pub(crate) fn report_any(&mut self, device: Index, state: Index) {
        use AttemptState::*;
        let devices = self.devices();
        let device = device.get(&devices);
        let any = [
            Downloading,
            Verifying,
            Staged,
            Installing,
            Rebooting,
            Validating,
            Success,
            Success,
            Success,
            Success,
            Success,
            Failed,
            RolledBack,
            Skipped,
            Cancelled,
            TimedOut,
            Quarantined,
            Blocked,
            WaitingWindow,
        ];
        let is_permitted = self.engine.in_flight().contains_key(device);
        let state = if is_permitted {
            *state.get(&any)
        } else {
            *state.get(&[Downloading, Blocked, Verifying])
        };
        self.report(device, state);
    }

    pub(crate) fn report_stale(&mut self, device: Index) {
        let devices = self.devices();
        self.send(device.get(&devices), AttemptState::Quarantined, (0, None), "stale");
        assert!(
            devices
                .iter()
                .filter_map(|device| self.engine.latest().attempt(device))
                .all(|attempt| attempt.reason != "stale")
        );
    }

    /// Ends everything in flight once.
    pub(crate) fn settle_in_flight(&mut self, outcome: impl Fn(&DeviceId) -> AttemptState) {
        let running = |device: &DeviceId| {
            let attempts = self.stored.values().filter_map(|stored| stored.attempts.get(device));
            attempts
                .into_iter()
                .find(|a| a.permit.is_some() && !a.state.is_terminal())
                .map(|a| a.kind)
        };
        let ends: Vec<_> = self
            .devices()
            .into_iter()
            .filter_map(|device| Some((running(&device)?, device)))
            .collect();
        for (kind, device) in ends {
            let state = if kind == PermitKind::Rollback {
                AttemptState::RolledBack
            } else {
                outcome(&device)
            };
            self.report(&device, state);
        }
    }

    /// Ends whatever is in flight until nothing new starts.
    pub(crate) fn run_until_quiet(&mut self, outcome: impl Fn(&DeviceId) -> AttemptState + Copy) {
        for _ in 0..1_000 {
            let before = self.permits.len();
            self.settle_in_flight(outcome);
            self.run_clock(Duration::from_secs(60));
            if self.permits.len() == before {
                return;
            }
        }
        panic!("the campaign never comes to rest");
    }

    /// Throws the engine away and builds another from what was persisted.
    /// A new engine goes on with what was stored.
    pub(crate) fn reload(&mut self) {
        self.engine = Engine::new(EngineSettings { permit_ttl: PERMIT_TTL });
        self.load();
    }

    /// What a device's last report did was stored, and nothing that followed from it.
    pub(crate) fn store_as_ended(&mut self, device: &DeviceId) {
        let mut attempts = self.stored.values_mut().flat_map(|stored| stored.attempts.values_mut());
        let attempt = attempts.find(|attempt| attempt.device == *device).unwrap();
        (attempt.state, attempt.version) = (AttemptState::Success, Some("2".to_owned()));
    }

    pub(crate) fn restart(&mut self) {
        let names: Vec<_> = self.stored.keys().cloned().collect();
        let views = |engine: &Engine| -> Vec<_> {
            names
                .iter()
                .map(|id| (engine.campaign(id), engine.attempts(id)))
                .collect()
        };
        let (before, in_flight, issued) = (views(&self.engine), self.engine.in_flight(), self.permits.len());
        self.reload();
        if self.permits.len() == issued {
            assert_eq!(views(&self.engine), before);
            assert_eq!(self.engine.in_flight(), in_flight);
        }
    }
}

pub(crate) const NEW: &str = "firmware/new.bin";
pub(crate) const OLD: &str = "firmware/old.bin";
pub(crate) const HOPS: [&str; 2] = ["firmware/hop1.bin", "firmware/hop2.bin"];

/// In which way attempts fail here that end so.
fn class_of(state: AttemptState) -> Option<FailureClass> {
    match state {
        AttemptState::Failed => Some(FailureClass::Install),
        AttemptState::RolledBack => Some(FailureClass::Boot),
        AttemptState::TimedOut => Some(FailureClass::Timeout),
        AttemptState::Quarantined => Some(FailureClass::Quarantine),
        _ => None,
    }
}

fn images() -> BTreeMap<String, Artifact> {
    let image = |target: &str| {
        let (id, sha256) = (ArtifactId::of(target.as_bytes()), Sha256::of(target.as_bytes()));
        let artifact = Artifact { id, sha256, length: 9 };
        (target.to_owned(), artifact)
    };
    [NEW, OLD, HOPS[0], HOPS[1]].map(image).into()
}

/// Devices that are servers by themselves, and of which nothing is touched: one is current, one is held.
const BESIDE: [&str; 2] = ["s-current", "s-held"];

/// The units of a plan as servers, in the order of their names.
fn servers(waves: &[Vec<PlannedDevice>]) -> Vec<PlannedServer> {
    let component = |device: &DeviceId, is_last: bool, analysis| PlannedComponent {
        device: device.clone(),
        component: Component::new(if is_last { BIOS_SETTINGS } else { "bmc" }).unwrap(),
        release: NEW.to_owned(),
        from: Some("1.0".to_owned()),
        to: "1.1".to_owned(),
        analysis,
    };
    let server = |name: &str, components| PlannedServer {
        server: name.to_owned(),
        node: "r0n1".parse().unwrap(),
        components,
        held: None,
    };
    let mut of_unit = BTreeMap::<String, Vec<&PlannedDevice>>::new();
    for planned in waves.iter().flatten() {
        let (node, unit) = planned.unit().unwrap();
        of_unit.entry(format!("{node}/{unit}")).or_default().push(planned);
    }
    let due = || Analysis::Due { over: Vec::new() };
    let mut servers: Vec<_> = of_unit
        .into_iter()
        .map(|(name, devices)| {
            let last = devices.len() - 1;
            let components = devices.iter().enumerate();
            let components = components.map(|(at, planned)| component(&planned.device, at == last, due()));
            PlannedServer {
                node: devices[0].node.clone(),
                ..server(&name, components.collect())
            }
        })
        .collect();
    let [current, held] = BESIDE.map(|name| DeviceId::new(name).unwrap());
    let of_current = PlannedComponent {
        from: Some("1.1".to_owned()),
        ..component(&current, false, Analysis::Current {})
    };
    servers.push(server(BESIDE[0], vec![of_current]));
    servers.push(PlannedServer {
        held: Some(HeldServer {
            phase: ProvisioningPhase::Preflight,
            reason: "held: it does not answer".to_owned(),
        }),
        ..server(BESIDE[1], vec![component(&held, false, due())])
    });
    servers
}

fn left_out(name: &str) -> HeldDevice {
    HeldDevice {
        device: DeviceId::new(name).unwrap(),
        reason: "it is current, or does not answer".to_owned(),
    }
}

fn stored(name: &str, rules: &Rules) -> Stored {
    let device = |number: usize| DeviceId::new(format!("d{}", rules.first_device + number)).unwrap();
    let place = |number: usize| {
        let unit = number / rules.unit;
        let rack = unit % rules.racks;
        let mut labels = BTreeMap::from([("power_feed", format!("f{}", unit % rules.feeds))]);
        if rules.unit > 1 {
            labels.insert("unit", format!("u{}", rules.first_device + unit));
        }
        let label = |(name, value): (&str, String)| (name.parse().unwrap(), value.parse().unwrap());
        PlannedDevice {
            device: device(number),
            node: format!("r{rack}n1").parse().unwrap(),
            rack: format!("eu/s1/r{rack}").parse().unwrap(),
            release: NEW.to_owned(),
            from_version: "1.0".to_owned(),
            hops: HOPS[..rules.hops].iter().map(|hop| (*hop).to_owned()).collect(),
            previous: (rules.goes_back && !rules.one_way.contains(&number)).then(|| OLD.to_owned()),
            labels: labels
                .into_iter()
                .map(label)
                .collect::<BTreeMap<_, _>>()
                .try_into()
                .unwrap(),
            after: (!number.is_multiple_of(rules.unit)).then(|| device(number - 1)),
        }
    };
    let total = rules.racks * rules.per_rack;
    let shares: Vec<_> = rules
        .shares
        .iter()
        .map(|share| BasisPoints::new(*share).unwrap())
        .collect();
    let mut waves = Vec::new();
    let mut from = 0;
    let whole_units = |count: usize| count.next_multiple_of(rules.unit).min(total);
    for to in shares.iter().map(|share| whole_units(share.of_rounded_up(total))) {
        if to > from {
            waves.push((from..to).map(place).collect());
            from = to;
        }
    }
    let share = |value| BasisPoints::new(value).unwrap();
    let mut caps = Caps::new(rules.cap_rack, rules.cap_total);
    let cap = |(by, at_most): &(&str, AtMost)| DomainCap {
        by: by.parse().unwrap(),
        at_most: *at_most,
    };
    caps.domains = rules.domains.iter().map(cap).collect();
    if rules.feeds_apart {
        caps.never_together = vec![NeverTogether {
            by: "power_feed".parse().unwrap(),
            within: None,
            domains: Vec::new(),
        }];
    }
    let mut domains = BTreeMap::<_, BTreeMap<_, DomainShare>>::new();
    for cap in &caps.domains {
        let shares = domains.entry(cap.by.clone()).or_default();
        for planned in waves.iter().flatten() {
            let planned: &PlannedDevice = planned;
            let domain = cap.by.domain(&planned.rack, &planned.labels).unwrap();
            let share = shares.entry(domain).or_insert(DomainShare { devices: 0, at_most: 1 });
            share.devices += 1;
            share.at_most = cap.at_most.of(share.devices);
        }
    }
    let manifest = CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id: id(name),
        sequence: 1,
        expires: WallTime::from_unix_seconds(0),
        releases: vec![ReleaseRef {
            target: NEW.to_owned(),
            sha256: Sha256::of(b"new"),
        }],
        previous: Vec::new(),
        selector: Selector::default(),
        strategy: match rules.pools {
            false if rules.at_once > 1 => Strategy::Rolling {
                batch: 1,
                max_concurrent_batches: rules.at_once,
            },
            false => Strategy::Canary { shares },
            true => Strategy::BlueGreen {
                by: "pool".parse().unwrap(),
                order: ["green", "blue"].map(|pool| pool.parse().unwrap()).to_vec(),
                switch: "balancer".to_owned(),
                drain: "balancer".to_owned(),
            },
        },
        caps,
        gate: GateRule {
            sample_min: rules.sample_min,
            soak_s: rules.soak_s,
            approval: rules.approval.clone(),
            webhooks: rules.webhooks.iter().map(|name| (*name).to_owned()).collect(),
            health: rules.health.then(HealthRule::hard_stops),
            ..GateRule::shares(share(rules.advance), share(rules.rollback))
        },
        deadlines: Deadlines {
            attempt_s: if rules.health { 1_800 } else { 600 },
            back_s: 60,
        },
        constraints: Constraints::default(),
        priority: firmesh_protocol::manifest::Priority::default(),
        automatic_rollback: rules.automatic,
        operator_rollback: false,
        retries: rules.retries.clone(),
        permit_keys: vec![format!("58{}", "66".repeat(31))],
        plan_sha256: Sha256::of(b""),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: match rules.provisioning {
            true => CampaignKind::Provisioning,
            false => CampaignKind::Update,
        },
    };
    let plan = Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign: id(name),
        nodes: waves
            .iter()
            .flatten()
            .map(|planned: &PlannedDevice| (planned.node.clone(), SecretKey::from_seed(&[1; 32]).public()))
            .collect(),
        servers: match rules.provisioning {
            true => servers(&waves),
            false => Vec::new(),
        },
        waves,
        held: match rules.provisioning {
            true => BESIDE.map(left_out).into(),
            false => Vec::new(),
        },
        domains,
    };
    let expires_at = Timestamp::after_start(Duration::from_secs(rules.expires_s));
    Stored {
        manifest,
        plan,
        expires_at,
        record: None,
        attempts: BTreeMap::new(),
        possession: BTreeMap::new(),
    }
}
