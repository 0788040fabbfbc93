//! The promises, judged where something happens: a permit that is stored, a start, an act, an end.

use std::sync::Arc;

use firmesh_executors_core::{Goal, Outcome, Step};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    brake::Braked,
    ids::DeviceId,
    manifest::{CampaignManifest, Reversibility},
    report::{AttemptState, Permit, PermitKind},
};

use super::{
    MAIN, World,
    device::Runs,
    promises::{Promise, Started},
    scenario::{Approved, DailyWindow, FIRST_VERSION, Kind},
    signed::{Signed, Signer},
};
use crate::device::Misbehaviour;

/// How far honest clocks differ at most, in milliseconds: what nodes forgive.
const CLOCKS_DIFFER_MS: u64 = 60_000;
/// Stagings of one attempt at most.
const STAGINGS_MAX: u32 = 3;

impl World {
    /// A coordinator has stored a permit.
    pub(super) fn judge_permit(&mut self, permit: &Permit) {
        self.watch.issued(self.now_ms, permit);
        let Some(approved) = self
            .scenario
            .campaign(&permit.campaign)
            .filter(|_| permit.kind == PermitKind::Update)
        else {
            return;
        };
        let expires = approved.campaign.manifest.expires.unix_seconds();
        let late = self.node_wall(0).unix_seconds() - expires;
        let unheld = permit.devices.iter().find(|device| {
            let d = self.scenario.device(device).expect("a device of the fleet");
            !self.holds_images(self.scenario.devices[d].node, device, approved)
        });
        let unheld = unheld.map(|device| format!("{device} is permitted before its node holds both images"));
        if late > i64::try_from(2 * CLOCKS_DIFFER_MS / 1_000).unwrap_or_default() {
            let how = format!(
                "permit {} of {}, {late} s after it expired",
                permit.sequence, permit.campaign
            );
            self.watch.blame(self.now_ms, Promise::Authorised, how);
        }
        if let Some(how) = unheld {
            self.watch.blame(self.now_ms, Promise::Held, how);
        }
    }

    /// A node has kept a permit.
    pub(super) fn judge_kept(&mut self, n: usize, signed: &Signed, permit: &Permit) {
        self.watch.learned(self.now_ms, n, permit);
        let what = if signed.by != Signer::Coordinator {
            Some("that nobody entitled signed".to_owned())
        } else if permit.expires <= self.node_wall(n) {
            Some(format!("that was good until {}", permit.expires))
        } else {
            None
        };
        if let Some(what) = what {
            let how = format!("node {n} keeps permit {} of {}, {what}", permit.sequence, permit.campaign);
            self.watch.blame(self.now_ms, Promise::Authorised, how);
        }
    }

    fn holds_images(&self, n: usize, device: &DeviceId, approved: &Approved) -> bool {
        let planned = approved.campaign.planned(device);
        let targets = planned
            .into_iter()
            .flat_map(|(_, planned)| [Some(&planned.release), planned.previous.as_ref()]);
        let mut images = targets.flatten().filter_map(|target| approved.images.get(target));
        images.all(|image| self.nodes[n].disk.images.contains(&image.id))
    }

    /// A node is about to begin an attempt: its standing is on disk.
    pub(super) fn judge_start(&mut self, n: usize, d: usize, permit: &Permit, goal: &Goal) {
        let scenario = Arc::clone(&self.scenario);
        let approved = scenario
            .campaign(&permit.campaign)
            .expect("nodes know approved campaigns only");
        let from = self.devices[d].runs(self.now_ms);
        self.tell(|| {
            format!(
                "{} starts for {} wave {} ({:?}) by permit {}, runs {from:?}",
                goal.device, goal.campaign, goal.wave, goal.kind, permit.sequence
            )
        });
        self.watch.tally.attempts += 1;
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        if self.watch.started.contains_key(&key) {
            let how = format!(
                "{} is started again for {} ({:?})",
                goal.device, goal.campaign, goal.kind
            );
            self.watch.blame(self.now_ms, Promise::Once, how);
        }
        let elsewhere = self
            .watch
            .started
            .iter()
            .any(|(other, started)| other.1 == goal.device && other.0 != goal.campaign && started.in_flight);
        if elsewhere {
            let how = format!(
                "{} is started for {} while another campaign has it",
                goal.device, goal.campaign
            );
            self.watch.blame(self.now_ms, Promise::Once, how);
        }
        let rack = scenario
            .places
            .iter()
            .position(|place| place.rack == scenario.places[n].rack)
            .unwrap_or(n);
        let started = Started {
            node: n,
            device: d,
            rack,
            from,
            since_ms: self.now_ms,
            worked_ms: 0,
            restarts: 0,
            stagings: 0,
            in_flight: true,
            ended: None,
        };
        self.watch.started.insert(key, started);
        let problems = [
            self.unauthorised(n, d, permit, goal, approved)
                .map(|how| (Promise::Authorised, how)),
            self.over_cap(n, rack, approved).map(|how| (Promise::Cap, how)),
            self.before_gate(n, permit, approved).map(|how| (Promise::Gate, how)),
            self.outside_window(n, permit, approved)
                .map(|how| (Promise::Window, how)),
            self.stopped(n, permit, approved).map(|how| (Promise::Halted, how)),
            self.backwards(d, goal).map(|how| (Promise::Monotonic, how)),
            (!self.holds_images(n, &goal.device, approved)).then(|| (Promise::Held, "an image is not here".to_owned())),
        ];
        for (promise, how) in problems.into_iter().flatten() {
            let how = format!(
                "{} starts for {} wave {} ({:?}): {how}",
                goal.device, goal.campaign, goal.wave, goal.kind
            );
            self.watch.blame(self.now_ms, promise, how);
        }
    }

    fn unauthorised(&self, n: usize, d: usize, permit: &Permit, goal: &Goal, approved: &Approved) -> Option<String> {
        let (manifest, plan) = (&approved.campaign.manifest, &approved.campaign.plan);
        let device = &self.scenario.devices[d].id;
        if permit.manifest_sha256 != approved.campaign.manifest_sha256 {
            return Some("the permit is for another edition".to_owned());
        }
        let wave = plan.waves.get(permit.wave as usize)?;
        let Some(planned) = wave.iter().find(|planned| planned.device == *device) else {
            return Some("it does not stand in this wave".to_owned());
        };
        if planned.node != self.scenario.places[n].id {
            return Some(format!("it is {}'s", planned.node));
        }
        let (pins, target) = match permit.kind {
            PermitKind::Update => (&manifest.releases, Some(&planned.release)),
            PermitKind::Rollback => (&manifest.previous, planned.previous.as_ref()),
        };
        let pinned = pins
            .iter()
            .any(|pin| Some(&pin.target) == target && pin.sha256 == goal.image.artifact.sha256);
        if !pinned || !permit.devices.contains(device) {
            return Some(format!("{} was not approved for it", goal.image.target));
        }
        let info = &goal.image.info;
        if !info.models.contains(&self.scenario.devices[d].kind.identity().model) {
            return Some("the image is for another model".to_owned());
        }
        let one_way = approved.campaign.releases[&planned.release].info.reversibility == Reversibility::OneWay;
        if one_way && (permit.kind == PermitKind::Rollback || !manifest.constraints.one_way_accepted) {
            return Some("the release is one-way".to_owned());
        }
        if permit.kind == PermitKind::Rollback && !manifest.automatic_rollback {
            return Some("no automatic rollback was approved".to_owned());
        }
        let now = self.node_wall(n);
        let is_over = permit.kind == PermitKind::Update && now >= manifest.expires;
        (now >= permit.expires || is_over).then(|| "permit or approval has expired".to_owned())
    }

    fn over_cap(&self, n: usize, rack: usize, approved: &Approved) -> Option<String> {
        let caps = &approved.campaign.manifest.caps;
        let here = self.watch.in_flight(|started| started.node == n).len();
        if here > caps.per_rack.min(caps.total) as usize {
            return Some(format!("{here} in flight at this node"));
        }
        if !self.watch.coordinator_is_sound {
            return None;
        }
        let (in_rack, all) = (
            self.watch.in_flight(|started| started.rack == rack).len(),
            self.watch.in_flight(|_| true).len(),
        );
        let runs = |manifest: &CampaignManifest, pick: &dyn Fn(&Started) -> bool| {
            self.watch.started.iter().any(|(key, started)| {
                key.0 == manifest.id && started.in_flight && started.ended.is_none() && pick(started)
            })
        };
        self.scenario.campaigns.iter().find_map(|other| {
            let manifest = &other.campaign.manifest;
            let (per_rack, total) = (manifest.caps.per_rack as usize, manifest.caps.total as usize);
            if runs(manifest, &|started| started.rack == rack) && in_rack > per_rack {
                Some(format!(
                    "{in_rack} in flight in the rack, {} allows {per_rack}",
                    manifest.id
                ))
            } else if runs(manifest, &|_| true) && all > total {
                Some(format!("{all} in flight, {} allows {total}", manifest.id))
            } else {
                None
            }
        })
    }

    fn before_gate(&self, n: usize, permit: &Permit, approved: &Approved) -> Option<String> {
        let (manifest, plan) = (&approved.campaign.manifest, &approved.campaign.plan);
        let wave = match permit.kind {
            PermitKind::Update => permit.wave.checked_sub(1)?,
            PermitKind::Rollback => permit.wave,
        };
        let planned = plan.waves.get(wave as usize)?;
        let words = planned
            .iter()
            .filter_map(|planned| self.watch.ended.get(&(manifest.id.clone(), planned.device.clone())));
        let words: Vec<_> = words.collect();
        let devices = planned.len();
        let bad = words.iter().filter(|words| words.iter().any(|(good, _)| !good)).count();
        let mut good: Vec<_> = words
            .iter()
            .filter_map(|words| words.iter().filter(|(good, _)| *good).map(|(_, at)| *at).min())
            .collect();
        good.sort();
        let reaches = |part: usize, basis_points: u32| part * 10_000 >= basis_points as usize * devices;
        if permit.kind == PermitKind::Rollback {
            let known_for = self
                .watch
                .waves
                .get(&(n, manifest.id.clone(), wave))
                .map_or(0, |at| self.now_ms - at);
            let patience = u64::from(manifest.deadlines.attempt_s) * 1_000;
            let is_overdue = known_for + CLOCKS_DIFFER_MS >= patience;
            if is_overdue {
                // Who is silent for that long counts as lost, also if he reports well in the end.
                return None;
            }
            return reaches(devices - bad, manifest.gate.rollback.get()).then(|| {
                format!(
                    "{bad} of {devices} ended badly, {} well: wave {wave} has not failed",
                    good.len()
                )
            });
        }
        let needed = (0..=devices)
            .find(|part| reaches(*part, manifest.gate.advance.get()))
            .unwrap_or(devices);
        if good.len() < needed || words.len() < devices.min(manifest.gate.sample_min as usize) {
            return Some(format!(
                "{} of {devices} ended, {} well, {needed} are needed: wave {wave} has not passed",
                words.len(),
                good.len()
            ));
        }
        let passed = needed.checked_sub(1).map(|last| good[last])?;
        let soaked = passed.unix_seconds() + i64::from(manifest.gate.soak_s);
        let slack = i64::try_from(CLOCKS_DIFFER_MS / 1_000).unwrap_or_default() + 1;
        (self.node_wall(n).unix_seconds() + slack < soaked).then(|| format!("wave {wave} is watched for longer"))
    }

    fn outside_window(&self, n: usize, permit: &Permit, approved: &Approved) -> Option<String> {
        if permit.kind == PermitKind::Rollback {
            return None;
        }
        let manifest = &approved.campaign.manifest;
        let (now, takes) = (
            self.node_wall(n).unix_seconds(),
            i64::from(manifest.deadlines.attempt_s),
        );
        let fits = |window: &DailyWindow| (now - window.opens_s).rem_euclid(86_400) + takes <= window.lasts_s;
        if !approved.windows.is_empty() && !approved.windows.iter().any(fits) {
            return Some(format!("{takes} s from {now} fit into none of {:?}", approved.windows));
        }
        let blackouts = &manifest.constraints.blackouts;
        let hit = blackouts
            .iter()
            .find(|dark| now < dark.until.unix_seconds() && now + takes > dark.from.unix_seconds());
        hit.map(|dark| format!("there is a blackout until {}", dark.until))
    }

    fn stopped(&self, n: usize, permit: &Permit, approved: &Approved) -> Option<String> {
        let (manifest, disk) = (&approved.campaign.manifest, &self.nodes[n].disk);
        let edition = Braked::Campaign {
            id: manifest.id.clone(),
            manifest_sha256: approved.campaign.manifest_sha256,
        };
        if disk.brakes.contains(&edition) {
            return Some("the node knows that its brake was pulled".to_owned());
        }
        if disk.halted.contains(&manifest.id) {
            return Some("the node was told that it is halted".to_owned());
        }
        let stopped = *self.watch.stopped.get(&manifest.id)?;
        let lapses = stopped + self.scenario.permit_ttl_s * 1_000 + CLOCKS_DIFFER_MS;
        let is_late = permit.kind == PermitKind::Update && self.watch.coordinator_is_sound && self.now_ms > lapses;
        is_late.then(|| format!("it was stopped after {} s", stopped / 1_000))
    }

    fn backwards(&self, d: usize, goal: &Goal) -> Option<String> {
        let (epoch, reached) = (
            goal.image.info.security_epoch,
            self.watch.epochs.get(&d).copied().unwrap_or_default(),
        );
        (goal.kind == PermitKind::Update && epoch < reached).then(|| format!("epoch {epoch} after {reached}"))
    }

    /// A node is about to act on a device.
    pub(super) fn judge_act(&mut self, n: usize, d: usize, goal: &Goal, step: &Step) {
        if matches!(step, Step::Observe { .. }) {
            return;
        }
        let now_ms = self.now_ms;
        self.tell(|| format!("{}: {}", goal.device, act_name(step)));
        let record = self.nodes[n].disk.records.get(&d).filter(|record| record.goal == *goal);
        let phase = record
            .and_then(|record| serde_json::to_value(record).ok())
            .map(|record| record["phase"].clone());
        if !phase.as_ref().is_some_and(|phase| names(phase, step)) {
            let how = format!("{} on {}, on record is {phase:?}", act_name(step), goal.device);
            self.watch.blame(now_ms, Promise::Durable, how);
        }
        let Step::Stage { image, slot } = step else {
            return;
        };
        if image.artifact.sha256 != goal.image.artifact.sha256 {
            let how = format!("{} is written with {}", goal.device, image.target);
            self.watch.blame(now_ms, Promise::Authorised, how);
        }
        let in_use = self.devices[d].slots_in_use();
        if self.scenario.devices[d].kind == Kind::Host && slot.is_none_or(|slot| in_use.contains(&slot)) {
            let how = format!("slot {slot:?} of {} is written, in use are {in_use:?}", goal.device);
            self.watch.blame(now_ms, Promise::Bootable, how);
        }
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let stagings = self.watch.started.get_mut(&key).map(|started| {
            started.stagings += 1;
            started.stagings
        });
        if stagings.is_none_or(|stagings| stagings > STAGINGS_MAX) {
            let how = format!("{} is written for the {stagings:?}th time in one attempt", goal.device);
            self.watch.blame(now_ms, Promise::Bounded, how);
        }
    }

    /// A device has been restarted, by whatever.
    pub(super) fn judge_restart(&mut self, d: usize) {
        let device = &self.devices[d];
        if device.is_dead(self.now_ms) && device.misbehaviour() != Some(Misbehaviour::NeverBack) {
            let how = format!("{} starts no more", self.scenario.devices[d].id);
            self.watch.blame(self.now_ms, Promise::Bootable, how);
        }
    }

    /// An attempt has ended, by the node's word.
    pub(super) fn judge_end(&mut self, d: usize, goal: &Goal, outcome: &Outcome) {
        let (now_ms, runs) = (self.now_ms, self.devices[d].runs(self.now_ms));
        self.tell(|| {
            format!(
                "{} ends {} ({}), runs {runs:?}",
                goal.device, outcome.state, outcome.reason
            )
        });
        let dark = self.watch.dark.get(&d).is_some_and(|dark| dark + 120_000 > now_ms);
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let Some(started) = self.watch.started.get_mut(&key) else {
            let how = format!("an attempt on {} ends that never began", goal.device);
            return self.watch.blame(now_ms, Promise::Once, how);
        };
        if started.ended.replace(outcome.state).is_some() {
            // Told again by a process that came back.
            return;
        }
        let (limit_s, restarts) = (u64::from(goal.deadlines.attempt_s), started.restarts);
        let worked_s = (started.worked_ms + now_ms - started.since_ms) / 1_000;
        let (from, is_quarantined) = (started.from.clone(), outcome.state == AttemptState::Quarantined);
        started.in_flight = is_quarantined;
        if goal.kind == PermitKind::Rollback && !is_quarantined {
            let forward = (goal.campaign.clone(), goal.device.clone(), PermitKind::Update);
            if let Some(forward) = self.watch.started.get_mut(&forward) {
                forward.in_flight = false;
            }
        }
        let tally = &mut self.watch.tally;
        match outcome.state {
            AttemptState::Success => tally.updated += 1,
            AttemptState::RolledBack if goal.kind == PermitKind::Rollback => tally.rolled_back += 1,
            AttemptState::Quarantined => tally.quarantined += 1,
            _ => {}
        }
        if outcome.state.is_success() {
            let epoch = self.watch.epochs.entry(d).or_default();
            *epoch = goal.image.info.security_epoch.max(*epoch);
        }
        if worked_s > limit_s * (1 + restarts) + 60 {
            let how = format!(
                "the attempt on {} took {worked_s} s, {limit_s} s are allowed",
                goal.device
            );
            self.watch.blame(now_ms, Promise::Bounded, how);
        }
        let reached = Runs::Kept(goal.image.info.version.clone());
        let is_true = match outcome.state {
            AttemptState::Success | AttemptState::Skipped => runs == reached,
            AttemptState::RolledBack if goal.kind == PermitKind::Rollback => runs == reached,
            AttemptState::Failed | AttemptState::TimedOut | AttemptState::RolledBack => {
                runs == from
                    || matches!(
                        (&from, &runs),
                        (Runs::Nothing | Runs::OnTrial(_), _) | (_, Runs::Nothing)
                    )
            }
            _ => true,
        };
        // Whoever came back tells what it had found before.
        let may_have_changed = restarts > 0 || dark;
        if !(is_true || (may_have_changed && runs == Runs::Nothing)) {
            let how = format!(
                "{} ended {} ({}), it ran {from:?} and runs {runs:?}",
                goal.device, outcome.state, outcome.reason
            );
            self.watch.blame(now_ms, Promise::Truthful, how);
        }
    }

    /// What is checked when everything is over.
    pub(super) fn judge_all(&mut self) {
        for d in 0..self.devices.len() {
            let version = match self.devices[d].runs(self.now_ms) {
                Runs::Kept(version) | Runs::OnTrial(version) => version,
                Runs::Nothing => continue,
            };
            let id = &self.scenario.devices[d].id;
            let was_sent = self.watch.started.iter().any(|(key, _)| {
                let approved = self.scenario.campaign(&key.0);
                let releases = approved
                    .into_iter()
                    .flat_map(|approved| approved.campaign.releases.values());
                key.1 == *id && releases.into_iter().any(|release| release.info.version == version)
            });
            if version != FIRST_VERSION && !was_sent {
                let how = format!("{id} runs {version}, which nobody sent it");
                self.watch.blame(self.now_ms, Promise::Authorised, how);
            }
            self.judge_restart(d);
        }
        if self.watch.coordinator_is_sound {
            self.judge_records();
        }
    }

    /// A campaign that says it is rolled back has sent back what could go. One that ends well only after that keeps what
    /// it runs: its node was silent for so long that it counted as lost.
    pub(super) fn judge_rolled_back(&mut self) {
        let scenario = Arc::clone(&self.scenario);
        let Some(engine) = self.coordinators[MAIN].engine() else {
            return;
        };
        let is_back = |state| state == CampaignState::RolledBack;
        let ended = engine
            .states()
            .filter(|(id, state)| is_back(*state) && !self.watch.rolled_back.contains(*id));
        let ended: Vec<_> = ended.map(|(id, _)| id.clone()).collect();
        for id in ended {
            let approved = scenario
                .campaign(&id)
                .expect("the engine knows approved campaigns only");
            let engine = self.coordinators[MAIN].engine();
            let view = engine.and_then(|engine| engine.campaign(&id));
            let attempts = engine.and_then(|engine| engine.attempts(&id)).unwrap_or_default();
            let waves = view.map(|view| view.waves).unwrap_or_default();
            // A wave that failed because devices were silent, and did well by what they say after all, keeps the rest.
            let did_well = |wave: u32| {
                let planned = &approved.campaign.plan.waves[wave as usize];
                let words = planned
                    .iter()
                    .filter_map(|p| self.watch.ended.get(&(id.clone(), p.device.clone())));
                let good = words.filter(|words| words.iter().any(|(good, _)| *good)).count();
                good * 10_000 >= approved.campaign.manifest.gate.rollback.get() as usize * planned.len()
            };
            let failed = |wave: u32| {
                let is_failed = waves
                    .iter()
                    .any(|view| view.wave == wave && view.gate == GateVerdict::Fail);
                is_failed && !did_well(wave)
            };
            let left = attempts.iter().find(|attempt| {
                let planned = approved.campaign.planned(&attempt.device);
                let can_go_back = planned.is_some_and(|(_, planned)| planned.previous.is_some());
                let key = (id.clone(), attempt.device.clone(), PermitKind::Rollback);
                let was_sent = self.watch.started.contains_key(&key);
                attempt.state == AttemptState::Success && failed(attempt.wave) && can_go_back && !was_sent
            });
            if let Some(left) = left {
                let how = format!("{id} is rolled back, {} was never sent back", left.device);
                self.watch.blame(self.now_ms, Promise::Live, how);
            }
            self.watch.rolled_back.insert(id);
        }
    }

    /// What the coordinator believes of devices that only one campaign was for.
    fn judge_records(&mut self) {
        let scenario = Arc::clone(&self.scenario);
        for approved in &scenario.campaigns {
            let id = &approved.campaign.manifest.id;
            let attempts = self.coordinators[MAIN].engine().and_then(|engine| engine.attempts(id));
            for view in attempts
                .into_iter()
                .flatten()
                .filter(|view| view.state == AttemptState::Success)
            {
                let others = self
                    .watch
                    .started
                    .keys()
                    .any(|key| key.1 == view.device && key.0 != *id);
                let Some(d) = scenario.device(&view.device).filter(|_| !others) else {
                    continue;
                };
                let planned = approved.campaign.planned(&view.device);
                let version =
                    planned.map(|(_, planned)| approved.campaign.releases[&planned.release].info.version.clone());
                let runs = self.devices[d].runs(self.now_ms);
                if matches!(&runs, Runs::Kept(found) if Some(found) != version.as_ref()) {
                    let how = format!(
                        "{} is on record as updated to {version:?}, it runs {runs:?}",
                        view.device
                    );
                    self.watch.blame(self.now_ms, Promise::Truthful, how);
                }
            }
        }
    }
}

/// Whether a recorded phase, as it is stored, is that of an act.
fn names(phase: &serde_json::Value, step: &Step) -> bool {
    let phases: &[&str] = match step {
        Step::Observe { .. } => return true,
        Step::Stage { .. } => &["staging"],
        Step::Activate { .. } => &["activating"],
        Step::Reset(_) => &["resetting", "clearing"],
        Step::Confirm => &["confirming"],
        Step::Abort { .. } => &["aborting", "clearing"],
    };
    phases
        .iter()
        .any(|name| phase.as_str() == Some(name) || phase.get(name).is_some())
}

fn act_name(step: &Step) -> String {
    match step {
        Step::Stage { image, slot } => format!("stage {} {slot:?}", image.target),
        other => format!("{other:?}"),
    }
}
