//! A node's process around the install rules and the attempt machine: what it keeps, what it says, and how it takes up
//! its work after a crash.
//!
//! Follows the node's runtime step by step: a standing is durable before an attempt begins, a record before the act that
//! it names, a report before it is sent. Any of these writes may be the last one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use firmesh_executors_core::{AttemptRecord, Goal, HostRecord, Outcome, Report};
use firmesh_node_core::{
    install::{Admission, AttemptStanding, Facts, Hold, Neighbour, admit},
    permits::check_permit,
    retries::{Tries, may_start_again},
};
use firmesh_protocol::{
    approval::WaveApproval,
    brake::Braked,
    evidence::WaveEvidence,
    ids::{ArtifactId, CampaignId, DeviceId, Sha256},
    report::{AttemptReport, AttemptState, DeviceFacts, FailureClass, Permit, PermitKind},
    rollback::RollbackOrder,
    time::WallTime,
};

use super::{
    Event, NodeEvent, Promise, World,
    attempts::Running,
    coordinator::{Answer, Heartbeat, wall},
    device::Runs,
    hosts::Hosts,
    scenario::{Placed, facts},
    signed::Signed,
};

/// Between two heartbeats of a node that has nothing to say.
const POLL_MS: u64 = 20_000;
/// The shortest time between two.
const SYNC_GAP_MS: u64 = 200;
/// How often idle devices are looked at, and what is held is considered again.
const LOOK_MS: u64 = 15_000;
/// Reports in one heartbeat.
const REPORTS_MAX: usize = 200;

type StandingKey = (CampaignId, DeviceId, PermitKind);

/// What survives a crash.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) permits: BTreeMap<(CampaignId, u64), Arc<Permit>>,
    pub(super) standings: BTreeMap<StandingKey, AttemptStanding>,
    pub(super) records: BTreeMap<usize, AttemptRecord>,
    /// Hosts that are owed their way back.
    pub(super) hosts: BTreeMap<usize, HostRecord>,
    pub(super) outcomes: BTreeMap<StandingKey, Outcome>,
    /// How updates ended, by campaign.
    pub(super) tries: BTreeMap<CampaignId, BTreeMap<DeviceId, Tries>>,
    declined: BTreeSet<(StandingKey, u64)>,
    reports: BTreeMap<u64, AttemptReport>,
    /// Acknowledged and forgotten, but not for good before the next write.
    forgotten: BTreeMap<u64, AttemptReport>,
    pub(super) last_report: u64,
    pub(super) floors: BTreeMap<usize, u32>,
    pub(super) epoch: u64,
    pub(super) halted: BTreeSet<CampaignId>,
    pub(super) brakes: BTreeSet<Braked>,
    pub(super) images: BTreeSet<ArtifactId>,
}

/// What does not.
#[derive(Debug, Default)]
pub(super) struct Life {
    pub(super) running: BTreeMap<usize, Running>,
    /// Done with a step of a longer way, and by when that and the wait after it are over; the next one is not begun.
    pub(super) between: BTreeMap<usize, (Goal, u64)>,
    pub(super) hosts: Hosts,
    pub(super) versions: BTreeMap<usize, Option<String>>,
    /// What each device ran when it last answered.
    pub(super) last_versions: BTreeMap<usize, String>,
    told: BTreeMap<StandingKey, (AttemptState, String, u64)>,
    permits_seen: BTreeMap<CampaignId, u64>,
    waves_known: BTreeMap<(CampaignId, u32), WallTime>,
    evidence: BTreeSet<Sha256>,
    fetching: BTreeSet<Sha256>,
    syncing: bool,
    sync_at: u64,
    last_sync: u64,
}

/// A node.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) disk: Disk,
    /// While the process runs.
    pub(super) life: Option<Life>,
    pub(super) incarnation: u32,
    /// It never comes back.
    pub(super) is_lost: bool,
    pub(super) skew_ms: i64,
    pub(super) drift_ppm: i64,
    /// Killed at the so-manieth write from now; whether that one is durable.
    pub(super) dies_at: Option<(u64, bool, u64)>,
}

/// What the evidence of a permit shows.
#[derive(Debug)]
pub(super) struct Shown {
    gates: Vec<WaveEvidence>,
    approvals: Vec<WaveApproval>,
    orders: Vec<RollbackOrder>,
    is_here: bool,
}

/// The node's process was killed: whatever it was at is not gone on with.
#[derive(Debug)]
pub(super) struct Killed;

impl World {
    pub(super) fn node_wall(&self, n: usize) -> WallTime {
        let node = &self.nodes[n];
        let drift = self.now_ms.cast_signed() / 1_000 * node.drift_ppm / 1_000;
        wall(&self.scenario, self.now_ms, node.skew_ms + drift)
    }

    /// Starts a node's process on what it has kept.
    pub(super) fn start_node(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.incarnation += 1;
        node.life = Some(Life::default());
        let mut taken_up = BTreeSet::new();
        let mut resumed = Vec::new();
        for (d, record) in &node.disk.records {
            let (goal, device) = (&record.goal, &self.scenario.devices[*d].id);
            let key = (goal.campaign.clone(), device.clone(), goal.kind);
            let tries = node.disk.tries.get(&key.0).and_then(|tries| tries.get(device));
            let is_of_earlier_one = goal.kind == PermitKind::Update
                && record.outcome().is_some()
                && tries.is_some_and(|tries| {
                    tries.permit >= goal.permit_sequence
                        && !tries.state.is_success()
                        && tries.state != AttemptState::Quarantined
                });
            if node.disk.standings.get(&key) == Some(&AttemptStanding::InFlight) && !is_of_earlier_one {
                taken_up.insert((key.0.clone(), device.clone(), PermitKind::Update));
                taken_up.insert(key);
                let record = match self.is_sampled {
                    true => AttemptRecord::from_bytes(&record.to_bytes()).expect("a record reads back"),
                    false => record.clone(),
                };
                resumed.push((*d, record));
            }
        }
        // Started, but killed before the first record: not started after all.
        let mut dropped = Vec::new();
        let Disk { standings, tries, .. } = &mut node.disk;
        standings.retain(|key, standing| {
            if *standing == AttemptStanding::Ended || taken_up.contains(key) {
                return true;
            }
            dropped.push(key.clone());
            *standing = AttemptStanding::Ended;
            let (campaign, device, kind) = key;
            *kind == PermitKind::Update && tries.get(campaign).is_some_and(|tries| tries.contains_key(device))
        });
        for (campaign, device, kind) in dropped {
            self.watch.not_started(&campaign, &device, kind);
        }
        for permit in self.nodes[n].disk.permits.values().cloned().collect::<Vec<_>>() {
            // The process has only just begun: it cannot have been killed.
            let _: Result<(), Killed> = self.know_wave(n, &permit);
        }
        let first = 1 + self.dice.below(500);
        self.after(first, Event::Node(n, self.nodes[n].incarnation, NodeEvent::Look));
        self.after(first, Event::Node(n, self.nodes[n].incarnation, NodeEvent::Sync));
        self.make_hosts(n, &resumed);
        // A crash in the middle leaves the rest for the next start.
        let _: Result<(), Killed> = self.take_up(n, resumed);
    }

    fn take_up(&mut self, n: usize, resumed: Vec<(usize, AttemptRecord)>) -> Result<(), Killed> {
        for (d, record) in resumed {
            self.life(n)?;
            self.watch.resumed(d, self.now_ms);
            self.report(n, &record.goal, record.last_known().into())?;
            match record.outcome().is_none() && self.scenario.devices[d].host.is_some() {
                true => self.park(n, d, record)?,
                false => self.resume_attempt(n, d, record)?,
            }
        }
        self.begin_hosts(n)
    }

    pub(super) fn kill_node(&mut self, n: usize, down_ms: u64) {
        let node = &mut self.nodes[n];
        let Some(life) = node.life.take() else { return };
        if let Some(story) = &mut self.story {
            story.push(format!(
                "{:>10.3} node {n} is killed for {down_ms} ms",
                self.now_ms as f64 / 1e3
            ));
        }
        node.incarnation += 1;
        node.dies_at = None;
        let forgotten = std::mem::take(&mut node.disk.forgotten);
        node.disk.reports.extend(forgotten);
        for (d, running) in life.running {
            if running.is_acting() {
                self.devices[d].break_off(self.now_ms);
            }
            self.watch.interrupted(d, self.now_ms);
        }
        for d in life.between.keys().copied().chain(life.hosts.devices()) {
            self.watch.interrupted(d, self.now_ms);
        }
        self.after(down_ms, Event::NodeUp(n));
    }

    /// Makes a change durable, unless the process dies over it.
    pub(super) fn write<T>(&mut self, n: usize, change: impl FnOnce(&mut Disk) -> T) -> Result<T, Killed> {
        let node = &mut self.nodes[n];
        let dies = node.dies_at.as_mut().and_then(|(writes, durable, down_ms)| {
            *writes = writes.saturating_sub(1);
            (*writes == 0).then_some((*durable, *down_ms))
        });
        if let Some((false, down_ms)) = dies {
            self.kill_node(n, down_ms);
            return Err(Killed);
        }
        node.disk.forgotten.clear();
        let changed = change(&mut node.disk);
        if let Some((true, down_ms)) = dies {
            self.kill_node(n, down_ms);
            return Err(Killed);
        }
        Ok(changed)
    }

    pub(super) fn life(&mut self, n: usize) -> Result<&mut Life, Killed> {
        self.nodes[n].life.as_mut().ok_or(Killed)
    }

    pub(super) fn on_node(&mut self, n: usize, event: NodeEvent) -> Result<(), Killed> {
        match event {
            NodeEvent::Look => {
                self.after(LOOK_MS, Event::Node(n, self.nodes[n].incarnation, NodeEvent::Look));
                self.look(n)
            }
            NodeEvent::Sync => self.sync(n),
            NodeEvent::Answer(answer) => self.answered(n, answer.map(|answer| *answer)),
            NodeEvent::Attempt { device, token } => self.wake_attempt(n, device, token),
            NodeEvent::Permit(signed) => {
                self.learn_permit(n, &signed)?;
                self.consider(n)
            }
            NodeEvent::Evidence(digest) => {
                let is_here = self.reaches_coordinator(n);
                let life = self.life(n)?;
                life.fetching.remove(&digest);
                if is_here {
                    life.evidence.insert(digest);
                    self.consider(n)?;
                }
                Ok(())
            }
            NodeEvent::Image(image) => {
                self.nodes[n].disk.images.insert(image);
                self.sync_soon(n)?;
                self.consider(n)
            }
            NodeEvent::Brake(braked) => self.learn_brake(n, braked),
            NodeEvent::Unpark(d) => self.unpark(n, d),
            NodeEvent::HostActed(h) => self.host_acted(n, h),
            NodeEvent::HostTick { host, token } => self.tick_host(n, host, token),
        }
    }

    /// Looks at idle devices.
    pub(super) fn look(&mut self, n: usize) -> Result<(), Killed> {
        for d in 0..self.devices.len() {
            let is_here = self.scenario.devices[d].node == n;
            let life = self.life(n)?;
            if !is_here || life.running.contains_key(&d) || life.hosts.has(d) {
                continue;
            }
            let version = match self.devices[d].runs(self.now_ms) {
                Runs::Kept(version) | Runs::OnTrial(version) if self.devices[d].answers(self.now_ms) => Some(version),
                _ => None,
            };
            let life = self.life(n)?;
            if let Some(version) = &version {
                life.last_versions.insert(d, version.clone());
            }
            // A device that never answered is not known at all.
            if version.is_some() || life.versions.contains_key(&d) {
                life.versions.insert(d, version);
            }
        }
        self.consider(n)
    }

    fn sync(&mut self, n: usize) -> Result<(), Killed> {
        let now_ms = self.now_ms;
        let life = self.life(n)?;
        if life.syncing || now_ms < life.sync_at {
            return Ok(());
        }
        (life.syncing, life.last_sync) = (true, now_ms);
        let permits_seen = life.permits_seen.clone();
        let disk = &self.nodes[n].disk;
        let heartbeat = Heartbeat {
            node: n,
            reports: disk.reports.values().take(REPORTS_MAX).cloned().collect(),
            complete: disk.images.clone(),
            permits_seen,
            brakes: disk.brakes.clone(),
        };
        self.send_heartbeat(n, heartbeat);
        Ok(())
    }

    fn sync_soon(&mut self, n: usize) -> Result<(), Killed> {
        let now_ms = self.now_ms;
        let life = self.life(n)?;
        let at = now_ms.max(life.last_sync + SYNC_GAP_MS);
        if at < life.sync_at || life.sync_at <= now_ms {
            life.sync_at = at;
            let incarnation = self.nodes[n].incarnation;
            self.after(at - now_ms, Event::Node(n, incarnation, NodeEvent::Sync));
        }
        Ok(())
    }

    fn answered(&mut self, n: usize, answer: Option<Answer>) -> Result<(), Killed> {
        let next = self.now_ms + POLL_MS;
        let life = self.life(n)?;
        life.syncing = false;
        life.sync_at = next;
        let incarnation = self.nodes[n].incarnation;
        self.after(POLL_MS, Event::Node(n, incarnation, NodeEvent::Sync));
        let Some(answer) = answer else { return Ok(()) };
        let disk = &mut self.nodes[n].disk;
        let kept = disk.reports.split_off(&(answer.acked + 1));
        let acknowledged = std::mem::replace(&mut disk.reports, kept);
        let is_stored = |sequence| self.coordinators.iter().any(|c| c.has_report(n, sequence));
        if let Some(lost) = acknowledged.keys().find(|sequence| !is_stored(**sequence)) {
            let how = format!("report {lost} of node {n} was acknowledged, and nobody has it");
            self.watch.blame(self.now_ms, Promise::Durable, how);
        }
        disk.forgotten.extend(acknowledged);
        if !disk.reports.is_empty() {
            self.sync_soon(n)?;
        }
        for braked in answer.brakes {
            self.learn_brake(n, braked)?;
        }
        for approved in 0..self.scenario.campaigns.len() {
            let id = self.scenario.campaigns[approved].campaign.manifest.id.clone();
            let halted = !answer.campaigns.contains(&id);
            if halted != self.nodes[n].disk.halted.contains(&id) {
                self.write(n, |disk| match halted {
                    true => disk.halted.insert(id),
                    false => disk.halted.remove(&id),
                })?;
            }
        }
        for signed in answer.permits {
            if self.learn_permit(n, &signed)? {
                let permit = &signed.permit;
                let seen = self.life(n)?.permits_seen.entry(permit.campaign.clone()).or_default();
                *seen = permit.sequence.max(*seen);
                self.gossip(n, &NodeEvent::Permit(signed));
            }
        }
        self.consider(n)
    }

    fn learn_brake(&mut self, n: usize, braked: Braked) -> Result<(), Killed> {
        if self.nodes[n].disk.brakes.contains(&braked) {
            return Ok(());
        }
        self.write(n, |disk| disk.brakes.insert(braked.clone()))?;
        self.watch.braked.insert((n, braked.clone()));
        self.gossip(n, &NodeEvent::Brake(braked));
        self.sync_soon(n)
    }

    /// Whether the permit counts here.
    fn learn_permit(&mut self, n: usize, signed: &Signed) -> Result<bool, Killed> {
        let Some(permit) = &self.open_permit(signed) else {
            return Ok(false);
        };
        let key = (permit.campaign.clone(), permit.sequence);
        if self.nodes[n].disk.permits.contains_key(&key) {
            return Ok(true);
        }
        let epoch = self.nodes[n].disk.epoch;
        if check_permit(permit, self.node_wall(n), epoch).is_err() {
            return Ok(false);
        }
        if permit.epoch > epoch {
            self.write(n, |disk| disk.epoch = permit.epoch)?;
        }
        let kept = self.write(n, |disk| disk.permits.insert(key.clone(), Arc::clone(permit)));
        // A process that dies over it may have kept it all the same, and knows of it when it is back.
        if self.nodes[n].disk.permits.contains_key(&key) {
            self.judge_kept(n, signed, permit);
        }
        kept?;
        self.know_wave(n, permit)?;
        self.want_evidence(n, permit)?;
        self.tell_again(n, permit)?;
        Ok(true)
    }

    fn know_wave(&mut self, n: usize, permit: &Permit) -> Result<(), Killed> {
        let now = self.node_wall(n);
        if permit.kind == PermitKind::Update {
            let wave = (permit.campaign.clone(), permit.wave);
            self.life(n)?.waves_known.entry(wave).or_insert(now);
        }
        Ok(())
    }

    /// A new permit for what was started before it came: its coordinator does not know how that ended.
    fn tell_again(&mut self, n: usize, permit: &Permit) -> Result<(), Killed> {
        let scenario = Arc::clone(&self.scenario);
        for d in 0..scenario.devices.len() {
            let device = &scenario.devices[d].id;
            let key = (permit.campaign.clone(), device.clone(), permit.kind);
            let life = self.life(n)?;
            let goes_on = life
                .running
                .get(&d)
                .is_some_and(|running| running.goal.campaign == key.0)
                || (life.between.get(&d)).is_some_and(|(goal, _)| goal.campaign == key.0)
                || life.hosts.goal(d).is_some_and(|goal| goal.campaign == key.0);
            let disk = &self.nodes[n].disk;
            if scenario.devices[d].node != n
                || !permit.devices.contains(device)
                || goes_on
                || !disk.standings.contains_key(&key)
                || self.may_start_again(n, device, permit)
            {
                continue;
            }
            let Some(outcome) = disk.outcomes.get(&key).cloned() else {
                continue;
            };
            let mut report = self.word(n, permit, d, outcome.state, outcome.reason);
            (report.version, report.failure, report.health) = (outcome.version, outcome.failure, outcome.health);
            if permit.kind == PermitKind::Update {
                report.attempt = self.tries(n, &key.0, device).map_or(1, |tries| tries.ended);
            }
            self.keep_report(n, report)?;
        }
        Ok(())
    }

    fn tries(&self, n: usize, campaign: &CampaignId, device: &DeviceId) -> Option<&Tries> {
        self.nodes[n].disk.tries.get(campaign)?.get(device)
    }

    /// Whether the permit may start a device again that was started in the campaign before, now or later.
    fn may_start_again(&self, n: usize, device: &DeviceId, permit: &Permit) -> bool {
        let disk = &self.nodes[n].disk;
        let key = |kind| (permit.campaign.clone(), device.clone(), kind);
        let is_over = disk.standings.get(&key(PermitKind::Update)) == Some(&AttemptStanding::Ended)
            && !disk.standings.contains_key(&key(PermitKind::Rollback));
        let approved = self.scenario.campaign(&permit.campaign);
        let tries = disk.tries.get(&permit.campaign);
        let from = approved
            .zip(tries)
            .and_then(|(approved, tries)| may_start_again(&approved.campaign, permit, device, tries));
        is_over && from.is_some()
    }

    /// A report on a device under a permit, not numbered yet.
    fn word(&self, n: usize, permit: &Permit, d: usize, state: AttemptState, reason: String) -> AttemptReport {
        let life = self.nodes[n].life.as_ref();
        AttemptReport {
            campaign: permit.campaign.clone(),
            manifest_sha256: permit.manifest_sha256,
            wave: permit.wave,
            kind: permit.kind,
            permit_sequence: permit.sequence,
            attempt: 1,
            device: self.scenario.devices[d].id.clone(),
            node: self.scenario.places[n].id.clone(),
            sequence: 0,
            state,
            reason,
            version: life.and_then(|life| life.versions.get(&d).cloned().flatten()),
            failure: None,
            health: None,
            at: self.node_wall(n),
        }
    }

    fn want_evidence(&mut self, n: usize, permit: &Permit) -> Result<(), Killed> {
        for digest in &permit.evidence {
            let life = self.life(n)?;
            if !life.evidence.contains(digest) && life.fetching.insert(*digest) {
                let after = 50 + self.dice.below(3_000);
                let incarnation = self.nodes[n].incarnation;
                self.after(after, Event::Node(n, incarnation, NodeEvent::Evidence(*digest)));
            }
        }
        Ok(())
    }

    /// Starts every device that may start now, and says why the others may not.
    pub(super) fn consider(&mut self, n: usize) -> Result<(), Killed> {
        self.give_up_braked(n)?;
        let between: Vec<_> = self.life(n)?.between.keys().copied().collect();
        for d in between {
            self.go_on(n, d)?;
        }
        let now = self.node_wall(n);
        let disk = &self.nodes[n].disk;
        let live = disk
            .permits
            .values()
            .filter(|permit| now < permit.expires && !disk.halted.contains(&permit.campaign));
        let live: Vec<_> = live.cloned().collect();
        if live.is_empty() {
            return Ok(());
        }
        let idle: Vec<_> = {
            let life = self.life(n)?;
            life.versions
                .keys()
                .filter(|d| !life.running.contains_key(d) && !life.between.contains_key(d) && !life.hosts.has(**d))
                .copied()
                .collect()
        };
        for d in idle {
            let device = self.scenario.devices[d].id.clone();
            for permit in live.iter().filter(|permit| permit.devices.contains(&device)) {
                let key = (permit.campaign.clone(), device.clone(), permit.kind);
                let disk = &self.nodes[n].disk;
                if disk.standings.contains_key(&key) && !self.may_start_again(n, &device, permit) {
                    continue;
                }
                let is_declined = disk.declined.contains(&(key, permit.sequence));
                match self.decide(n, d, permit)? {
                    Some(Ok(_)) if is_declined => {}
                    Some(Ok(admission)) => {
                        self.start_fresh(n, d, permit, admission)?;
                        break;
                    }
                    Some(Err(hold)) => self.report_hold(n, d, permit, &hold)?,
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn decide(&mut self, n: usize, d: usize, permit: &Permit) -> Result<Option<Result<Admission, Hold>>, Killed> {
        let scenario = Arc::clone(&self.scenario);
        let Some(approved) = scenario.campaign(&permit.campaign) else {
            return Ok(None);
        };
        let rests_on = permit.gates(&approved.campaign.manifest.strategy);
        let wants = !rests_on.is_empty() && !permit.evidence.is_empty();
        let here = permit.evidence.iter().all(|digest| {
            self.nodes[n]
                .life
                .as_ref()
                .is_some_and(|life| life.evidence.contains(digest))
        });
        if wants && !here {
            self.want_evidence(n, permit)?;
        }
        let gates = match wants && here {
            true => self.evidence.shown(&scenario, &approved.campaign, permit),
            false => Vec::new(),
        };
        let (approvals, orders) = match wants && here {
            true => (self.evidence.approvals(permit), self.evidence.orders(permit)),
            false => (Vec::new(), Vec::new()),
        };
        let shown = Shown {
            gates,
            approvals,
            orders,
            is_here: !wants || here,
        };
        let campaign = (&permit.campaign, permit.wave);
        let decided = self.with_facts(n, d, campaign, Some(&shown), |facts| {
            admit(&approved.campaign, permit, facts)
        });
        decided.map(Some)
    }

    /// Looks at all that a node knows of a device in a campaign and a wave of it.
    pub(super) fn with_facts<T>(
        &mut self,
        n: usize,
        d: usize,
        (campaign, wave): (&CampaignId, u32),
        shown: Option<&Shown>,
        look: impl FnOnce(&Facts<'_>) -> T,
    ) -> Result<T, Killed> {
        let scenario = Arc::clone(&self.scenario);
        let life = self.life(n)?;
        let (version, last_version) = (
            life.versions.get(&d).cloned().flatten(),
            life.last_versions.get(&d).cloned(),
        );
        let neighbours = self.neighbours(n)?;
        let (disk, place) = (&self.nodes[n].disk, &scenario.places[n]);
        let device: DeviceFacts = facts(&scenario.devices[d], version.as_deref());
        let id = &device.device;
        let of_campaign = disk.standings.iter().filter(|(key, _)| key.0 == *campaign);
        let attempts = of_campaign
            .map(|((_, device, kind), standing)| ((device.clone(), *kind), *standing))
            .collect();
        let elsewhere = || {
            let others = disk.standings.iter().filter(|(key, _)| key.0 != *campaign);
            others.filter(|(_, standing)| **standing == AttemptStanding::InFlight)
        };
        let wave = (campaign.clone(), wave);
        let no_tries = BTreeMap::new();
        let facts = Facts {
            now: self.node_wall(n),
            node: &place.id,
            key: place.key.public(),
            path: &place.path,
            device: &device,
            last_version: last_version.as_deref(),
            complete: &disk.images,
            attempts: &attempts,
            tries: disk.tries.get(campaign).unwrap_or(&no_tries),
            other_in_flight: elsewhere().count(),
            engaged_elsewhere: elsewhere().find(|(key, _)| key.1 == *id).map(|(key, _)| key.0.clone()),
            security_epoch: disk.floors.get(&d).copied().unwrap_or_default(),
            brakes: &disk.brakes,
            gates: shown.map_or(&[], |shown| &shown.gates),
            orders: shown.map_or(&[], |shown| &shown.orders),
            approvals: shown.map_or(&[], |shown| &shown.approvals),
            evidence_is_here: shown.is_none_or(|shown| shown.is_here),
            neighbours: &neighbours,
            wave_opened: self.nodes[n]
                .life
                .as_ref()
                .and_then(|life| life.waves_known.get(&wave).copied()),
        };
        Ok(look(&facts))
    }

    /// All devices of a node as others there look at them.
    fn neighbours(&mut self, n: usize) -> Result<BTreeMap<DeviceId, Neighbour>, Killed> {
        let versions = self.life(n)?.versions.clone();
        let in_flight: BTreeSet<_> = self.nodes[n]
            .disk
            .standings
            .iter()
            .filter(|(_, standing)| **standing == AttemptStanding::InFlight)
            .map(|((_, device, _), _)| device.clone())
            .collect();
        let here = (0..).zip(&self.scenario.devices).filter(|(_, placed)| placed.node == n);
        let neighbour = |(d, placed): (usize, &Placed)| {
            let version = versions.get(&d).cloned().flatten();
            let facts = facts(placed, version.as_deref());
            let neighbour = Neighbour {
                in_flight: in_flight.contains(&placed.id),
                labels: facts.labels,
                component: facts.component,
                version,
            };
            (placed.id.clone(), neighbour)
        };
        Ok(here.map(neighbour).collect())
    }

    fn report_hold(&mut self, n: usize, d: usize, permit: &Permit, hold: &Hold) -> Result<(), Killed> {
        let Some(state) = hold.state() else {
            return Ok(());
        };
        if state.is_terminal() {
            let key = (
                permit.campaign.clone(),
                self.scenario.devices[d].id.clone(),
                permit.kind,
            );
            if !self.nodes[n].disk.declined.contains(&(key.clone(), permit.sequence)) {
                self.write(n, |disk| disk.declined.insert((key, permit.sequence)))?;
            }
        }
        let mut report = self.word(n, permit, d, state, hold.code().to_owned());
        report.failure = (state == AttemptState::Failed).then_some(FailureClass::Preflight);
        self.keep_report(n, report)
    }

    pub(super) fn report(&mut self, n: usize, goal: &Goal, news: Report) -> Result<(), Killed> {
        let Report {
            state,
            reason,
            version,
            failure,
            health,
        } = goal.told(news);
        let tries = self.tries(n, &goal.campaign, &goal.device);
        let attempt = match tries.filter(|_| goal.kind == PermitKind::Update) {
            Some(tries) if goal.permit_sequence <= tries.permit => tries.ended,
            Some(tries) => tries.ended + 1,
            None => 1,
        };
        let report = AttemptReport {
            campaign: goal.campaign.clone(),
            manifest_sha256: goal.manifest_sha256,
            wave: goal.wave,
            kind: goal.kind,
            permit_sequence: goal.permit_sequence,
            attempt,
            device: goal.device.clone(),
            node: self.scenario.places[n].id.clone(),
            sequence: 0,
            state,
            reason,
            version,
            failure,
            health,
            at: self.node_wall(n),
        };
        self.keep_report(n, report)
    }

    /// Numbers news, keeps it, and sends it with the next heartbeat. The same news twice is said once, but for an end that
    /// the coordinator does not seem to know.
    fn keep_report(&mut self, n: usize, mut report: AttemptReport) -> Result<(), Killed> {
        let key = (report.campaign.clone(), report.device.clone(), report.kind);
        let told = (report.state, report.reason.clone(), report.permit_sequence);
        let is_same = self.life(n)?.told.get(&key).is_some_and(|old| {
            let is_asked_again = told.0.is_terminal() && told.2 > old.2;
            (old.0, &old.1) == (told.0, &told.1) && !is_asked_again
        });
        if is_same {
            return Ok(());
        }
        report.sequence = self.write(n, |disk| {
            disk.last_report += 1;
            disk.last_report
        })?;
        let may_go_on = self.may_go_on(&report);
        self.watch.reported(self.now_ms, n, &report, may_go_on);
        self.tell(|| {
            format!(
                "{} reports {} {} ({:?}): {} {}",
                report.node, report.sequence, report.device, report.kind, report.state, report.reason
            )
        });
        self.write(n, |disk| disk.reports.insert(report.sequence, report))?;
        self.life(n)?.told.insert(key, told);
        self.sync_soon(n)
    }

    /// Whether nothing is left to be done or said here.
    pub(super) fn is_node_idle(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.is_lost
            || node.disk.reports.is_empty()
                && node
                    .life
                    .as_ref()
                    .is_some_and(|life| life.running.is_empty() && life.between.is_empty() && life.hosts.is_idle())
    }
}
