//! A coordinator's process around the campaign engine: what it stores, what it tells nodes, and how it comes back after a
//! crash.
//!
//! As in production, everything that follows from one input is stored in one commit, and nothing is told before. A commit
//! that the database refuses is as if the input had never come.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use firmesh_coordinator_core::{
    AttemptRecord, CampaignRecord, Engine, EngineSettings, Input, Loaded, Output, PermitOrder, PossessionRecord, Record,
};
use firmesh_protocol::{
    api::CampaignState,
    brake::Braked,
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256},
    report::{AttemptReport, Permit, PermitKind},
    time::{Timestamp, WallTime},
};

use super::{evidence::Evidence, scenario::Scenario, signed::Signed};

/// What a node says in one heartbeat.
#[derive(Debug, Clone)]
pub(super) struct Heartbeat {
    pub(super) node: usize,
    pub(super) reports: Vec<AttemptReport>,
    /// Images that are whole and proven.
    pub(super) complete: BTreeSet<ArtifactId>,
    pub(super) permits_seen: BTreeMap<CampaignId, u64>,
    pub(super) brakes: BTreeSet<Braked>,
}

/// What a node is answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) acked: u64,
    pub(super) permits: Vec<Signed>,
    pub(super) campaigns: Vec<CampaignId>,
    pub(super) brakes: BTreeSet<Braked>,
}

/// Everything that is stored.
#[derive(Debug, Clone, Default)]
struct Database {
    campaigns: BTreeMap<CampaignId, CampaignRecord>,
    attempts: BTreeMap<(CampaignId, DeviceId), AttemptRecord>,
    possession: BTreeMap<(CampaignId, NodeId, ArtifactId), PossessionRecord>,
    permits: BTreeMap<(CampaignId, u64), (Arc<Permit>, BTreeSet<usize>)>,
    acked: BTreeMap<usize, u64>,
    reports: BTreeMap<(usize, u64), AttemptReport>,
    brakes: BTreeSet<Braked>,
    epoch: u64,
}

/// A process with its database.
#[derive(Debug)]
pub(super) struct Coordinator {
    database: Database,
    /// The process, while it runs.
    engine: Option<Engine>,
    permits: BTreeMap<(CampaignId, u64), (Arc<Permit>, BTreeSet<usize>)>,
    /// Digests of the evidence for gates that passed.
    evidence: BTreeMap<(CampaignId, u32), Vec<Sha256>>,
    pub(super) skew_ms: i64,
    /// Killed when so many commits more have been tried; whether that one still counts.
    pub(super) dies_at: Option<(u64, bool, u64)>,
    /// Commits to be refused.
    pub(super) refusing: u64,
    /// Permits to go forward of campaigns that did not when they were decided.
    pub(super) halted: BTreeMap<(CampaignId, u64), CampaignState>,
}

/// What has become of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Stored; these permits are new.
    Stored(Vec<Arc<Permit>>),
    /// The engine refused it, or the database did: nothing has happened.
    Refused,
    /// The process died over it, and comes back after so many milliseconds.
    Died { down_ms: u64 },
}

impl Coordinator {
    pub(super) fn new() -> Self {
        Self {
            database: Database::default(),
            engine: None,
            permits: BTreeMap::new(),
            evidence: BTreeMap::new(),
            skew_ms: 0,
            dies_at: None,
            refusing: 0,
            halted: BTreeMap::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.engine.is_some()
    }

    pub(super) fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }

    pub(super) fn kill(&mut self) {
        self.engine = None;
        self.dies_at = None;
    }

    /// Another process on a copy of the database.
    pub(super) fn copy(&self) -> Self {
        Self {
            database: self.database.clone(),
            skew_ms: self.skew_ms,
            ..Self::new()
        }
    }

    /// Starts the process on what is stored: a new epoch, in which permits that are still good are signed again.
    pub(super) fn start(&mut self, scenario: &Scenario, now_ms: u64) {
        self.database.epoch += 1;
        let (epoch, wall) = (self.database.epoch, self.wall(scenario, now_ms));
        for (permit, _) in self
            .database
            .permits
            .values_mut()
            .filter(|(permit, _)| permit.expires > wall)
        {
            *permit = Arc::new(Permit {
                epoch,
                ..Permit::clone(permit)
            });
        }
        self.restore(scenario, now_ms);
    }

    /// Reads the world back from what is stored.
    fn restore(&mut self, scenario: &Scenario, now_ms: u64) {
        let permit_ttl = Duration::from_secs(scenario.permit_ttl_s);
        let mut engine = Engine::new(EngineSettings { permit_ttl });
        let (now, wall) = (at(now_ms), self.wall(scenario, now_ms));
        let stored = scenario.campaigns.iter().map(|approved| {
            let manifest = &approved.campaign.manifest;
            let of = |id: &CampaignId| *id == manifest.id;
            let left = manifest.expires.unix_seconds() - wall.unix_seconds();
            Loaded {
                manifest: manifest.clone(),
                plan: approved.campaign.plan.clone(),
                images: approved.images.clone(),
                expires_at: now + Duration::from_secs(left.max(0).cast_unsigned()),
                record: self.database.campaigns.get(&manifest.id).cloned(),
                attempts: self
                    .database
                    .attempts
                    .iter()
                    .filter(|(key, _)| of(&key.0))
                    .map(|(_, a)| a.clone())
                    .collect(),
                possession: self
                    .database
                    .possession
                    .iter()
                    .filter(|(key, _)| of(&key.0))
                    .map(|(_, p)| p.clone())
                    .collect(),
            }
        });
        let loaded = engine.handle(now, Input::Load(stored.collect()));
        assert!(loaded.is_ok(), "approved campaigns load: {loaded:?}");
        self.engine = Some(engine);
        self.evidence.clear();
        let good = self
            .database
            .permits
            .iter()
            .filter(|(_, (permit, _))| permit.expires > wall);
        self.permits = good.map(|(key, permit)| (key.clone(), permit.clone())).collect();
    }

    pub(super) fn wall(&self, scenario: &Scenario, now_ms: u64) -> WallTime {
        wall(scenario, now_ms, self.skew_ms)
    }

    /// When the engine wants to be woken, in milliseconds.
    pub(super) fn wakes_at(&self) -> Option<u64> {
        let at = self.engine.as_ref()?.deadline()?;
        Some(u64::try_from(at.since_start().as_micros().div_ceil(1_000)).unwrap_or(u64::MAX))
    }

    /// Gives the engine an input, and stores what follows with `write`.
    pub(super) fn apply(
        &mut self,
        scenario: &Scenario,
        now_ms: u64,
        input: Input,
        evidence: &mut Evidence,
        write: impl FnOnce(&mut Stored<'_>),
    ) -> Outcome {
        let Some(engine) = &mut self.engine else {
            return Outcome::Refused;
        };
        if engine.handle(at(now_ms), input).is_err() {
            return Outcome::Refused;
        }
        let mut orders = Vec::new();
        let mut records = Vec::new();
        while let Some(output) = engine.poll() {
            match output {
                Output::Persist(record) => records.push(record),
                Output::IssuePermit(order) => orders.push(order),
            }
        }
        for order in orders.iter().filter(|order| order.kind == PermitKind::Update) {
            let key = (order.campaign.clone(), order.sequence);
            match engine.state(&order.campaign) {
                Some(CampaignState::Active) | None => drop(self.halted.remove(&key)),
                Some(halted) => drop(self.halted.insert(key, halted)),
            }
        }
        let dies = self.dies_at.as_mut().and_then(|(commits, durable, down_ms)| {
            *commits = commits.saturating_sub(1);
            (*commits == 0).then_some((*durable, *down_ms))
        });
        if let Some((false, down_ms)) = dies {
            self.kill();
            return Outcome::Died { down_ms };
        }
        if self.refusing > 0 {
            self.refusing -= 1;
            self.restore(scenario, now_ms);
            return Outcome::Refused;
        }
        write(&mut Stored(&mut self.database));
        let issued: Vec<_> = orders
            .into_iter()
            .map(|order| self.sign(scenario, now_ms, order, evidence))
            .collect();
        for record in records {
            self.store(record);
        }
        for (permit, nodes) in &issued {
            let key = (permit.campaign.clone(), permit.sequence);
            self.database.permits.insert(key, (Arc::clone(permit), nodes.clone()));
        }
        if let Some((_, down_ms)) = dies {
            self.kill();
            return Outcome::Died { down_ms };
        }
        for (permit, nodes) in &issued {
            let key = (permit.campaign.clone(), permit.sequence);
            self.permits.insert(key, (Arc::clone(permit), nodes.clone()));
        }
        Outcome::Stored(issued.into_iter().map(|(permit, _)| permit).collect())
    }

    fn store(&mut self, record: Record) {
        match record {
            Record::Campaign(record) => {
                self.database.campaigns.insert(record.id.clone(), record);
            }
            Record::Attempt(campaign, record) => {
                self.database.attempts.insert((campaign, record.device.clone()), record);
            }
            Record::Possession(campaign, record) => {
                let key = (campaign, record.node.clone(), record.artifact);
                self.database.possession.insert(key, record);
            }
        }
    }

    fn sign(
        &mut self,
        scenario: &Scenario,
        now_ms: u64,
        order: PermitOrder,
        evidence: &mut Evidence,
    ) -> (Arc<Permit>, BTreeSet<usize>) {
        let issued = self.wall(scenario, now_ms);
        let approved = scenario
            .campaign(&order.campaign)
            .expect("the engine knows approved campaigns only");
        let manifest_sha256 = approved.campaign.manifest_sha256;
        let nodes = order
            .devices
            .iter()
            .filter_map(|id| Some(scenario.devices[scenario.device(id)?].node));
        let nodes = nodes.collect();
        let digests = self.evidence_for(scenario, &order, evidence);
        let permit = Permit {
            campaign: order.campaign,
            manifest_sha256,
            kind: order.kind,
            wave: order.wave,
            attempt: order.attempt,
            sequence: order.sequence,
            epoch: self.database.epoch,
            issued,
            expires: issued + Duration::from_secs(scenario.permit_ttl_s),
            devices: order.devices,
            evidence: digests,
        };
        (Arc::new(permit), nodes)
    }

    fn evidence_for(&mut self, scenario: &Scenario, order: &PermitOrder, evidence: &mut Evidence) -> Vec<Sha256> {
        let mut digests = match (order.kind, self.engine.as_ref()) {
            (PermitKind::Rollback, Some(engine)) => engine.orders_for(&order.campaign, order.wave, &order.devices).0,
            _ => Vec::new(),
        };
        if let Some(approved) = scenario.campaign(&order.campaign) {
            let gates = order.kind.gates(order.wave, &approved.campaign.manifest.strategy);
            digests.extend(gates.flat_map(|wave| self.evidence_on(order, wave, evidence)));
        }
        digests
    }

    fn evidence_on(&mut self, order: &PermitOrder, wave: u32, evidence: &mut Evidence) -> Vec<Sha256> {
        let key = (order.campaign.clone(), wave);
        if order.kind == PermitKind::Update
            && let Some(known) = self.evidence.get(&key)
        {
            return known.clone();
        }
        let ended = self
            .engine
            .as_ref()
            .map(|engine| engine.ended_reports(&order.campaign, wave))
            .unwrap_or_default();
        let reports = ended.into_iter().filter_map(|(node, sequence)| {
            let stored = self.database.reports.values();
            stored
                .clone()
                .find(|report| report.node == node && report.sequence == sequence)
                .cloned()
        });
        let mut digests = vec![evidence.collect(&order.campaign, wave, reports.collect())];
        if order.kind == PermitKind::Update {
            let engine = self.engine.as_ref();
            digests.extend(engine.and_then(|engine| engine.approval_of(&order.campaign, wave)));
            self.evidence.insert(key, digests.clone());
        }
        digests
    }

    /// Takes a heartbeat in; answers what is told once it is stored.
    pub(super) fn hear(
        &mut self,
        scenario: &Scenario,
        now_ms: u64,
        heartbeat: &Heartbeat,
        evidence: &mut Evidence,
    ) -> (Outcome, Option<Answer>) {
        let place = &scenario.places[heartbeat.node];
        let before = self.database.acked.get(&heartbeat.node).copied().unwrap_or_default();
        let new = heartbeat.reports.iter().filter(|report| report.sequence > before);
        let reports: Vec<_> = new.cloned().collect();
        let acked = reports
            .iter()
            .map(|report| report.sequence)
            .max()
            .unwrap_or(before)
            .max(before);
        let heard = Input::Heard {
            node: place.id.clone(),
            reports: reports.clone(),
        };
        let mut outcome = self.apply(scenario, now_ms, heard, evidence, |stored| {
            stored.0.acked.insert(heartbeat.node, acked);
            for report in reports {
                stored.0.reports.insert((heartbeat.node, report.sequence), report);
            }
        });
        let Outcome::Stored(permits) = &mut outcome else {
            return (outcome, None);
        };
        for braked in heartbeat.brakes.difference(&self.database.brakes.clone()) {
            match self.brake(scenario, now_ms, braked, evidence) {
                Outcome::Stored(more) => permits.extend(more),
                Outcome::Refused => {}
                died @ Outcome::Died { .. } => return (died, None),
            }
        }
        let unproven = self
            .engine
            .as_ref()
            .map(|engine| engine.unproven(&place.id))
            .unwrap_or_default();
        let proven: BTreeSet<_> = unproven
            .keys()
            .filter(|id| heartbeat.complete.contains(*id))
            .copied()
            .collect();
        if !proven.is_empty() {
            let proofs = Input::Proofs {
                node: place.id.clone(),
                proven,
                wrong: BTreeSet::new(),
            };
            match self.apply(scenario, now_ms, proofs, evidence, |_| {}) {
                Outcome::Stored(more) => permits.extend(more),
                Outcome::Refused => {}
                died @ Outcome::Died { .. } => return (died, None),
            }
        }
        let answer = self.answer(scenario, now_ms, heartbeat);
        (outcome, answer)
    }

    /// Somebody entitled has stopped a campaign for good.
    fn brake(&mut self, scenario: &Scenario, now_ms: u64, braked: &Braked, evidence: &mut Evidence) -> Outcome {
        let Braked::Campaign { id, .. } = braked else {
            return Outcome::Refused;
        };
        let stored = self.apply(scenario, now_ms, Input::Withdraw(id.clone()), evidence, |stored| {
            stored.0.brakes.insert(braked.clone());
        });
        if stored == Outcome::Refused && self.is_up() {
            // Over already: the brake is kept all the same.
            self.database.brakes.insert(braked.clone());
        }
        stored
    }

    fn answer(&self, scenario: &Scenario, now_ms: u64, heartbeat: &Heartbeat) -> Option<Answer> {
        use CampaignState::{Active, RollingBack, Scheduled};
        let engine = self.engine.as_ref()?;
        let wall = self.wall(scenario, now_ms);
        let campaigns: Vec<_> = engine
            .states()
            .filter(|(_, state)| matches!(state, Scheduled | Active | RollingBack))
            .map(|(id, _)| id.clone())
            .collect();
        let permits = self.permits.iter().filter(|((campaign, sequence), (permit, nodes))| {
            let seen = heartbeat.permits_seen.get(campaign).copied().unwrap_or_default();
            let goes_back = engine.state(campaign) == Some(RollingBack);
            let is_in_force = permit.expires > wall && (!goes_back || permit.kind == PermitKind::Rollback);
            campaigns.contains(campaign) && *sequence > seen && is_in_force && nodes.contains(&heartbeat.node)
        });
        Some(Answer {
            acked: self.database.acked.get(&heartbeat.node).copied().unwrap_or_default(),
            permits: permits
                .map(|(_, (permit, _))| Signed::own(Arc::clone(permit)))
                .collect(),
            campaigns,
            brakes: self.database.brakes.clone(),
        })
    }

    pub(super) fn epoch(&self) -> u64 {
        self.database.epoch
    }

    /// Every permit of a campaign that is stored, also those whose time is over.
    pub(super) fn issued(&self, campaign: &CampaignId) -> Vec<Arc<Permit>> {
        let permits = self.database.permits.iter().filter(|(key, _)| key.0 == *campaign);
        permits.map(|(_, (permit, _))| Arc::clone(permit)).collect()
    }

    /// The brakes that are stored.
    pub(super) fn brakes(&self) -> impl Iterator<Item = &Braked> {
        self.database.brakes.iter()
    }

    pub(super) fn has_report(&self, node: usize, sequence: u64) -> bool {
        self.database.reports.contains_key(&(node, sequence))
    }

    /// Everything that nodes have reported on a campaign.
    pub(super) fn reports(&self, campaign: &CampaignId) -> Vec<AttemptReport> {
        let reports = self.database.reports.values();
        reports.filter(|report| report.campaign == *campaign).cloned().collect()
    }
}

/// The database in the middle of a commit.
#[derive(Debug)]
pub(super) struct Stored<'a>(&'a mut Database);

/// A moment of virtual time on the cores' clock.
pub(super) fn at(now_ms: u64) -> Timestamp {
    Timestamp::after_start(Duration::from_millis(now_ms))
}

/// The time of day by a clock that is off by `skew_ms`.
pub(super) fn wall(scenario: &Scenario, now_ms: u64, skew_ms: i64) -> WallTime {
    let since_ms = now_ms.cast_signed().saturating_add(skew_ms);
    WallTime::from_unix_seconds(scenario.begins.unix_seconds() + since_ms.div_euclid(1_000))
}
