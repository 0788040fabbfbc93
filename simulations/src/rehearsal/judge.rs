//! The promises, judged where something happens: a permit that is stored, a start, an act, an end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use firmesh_executors_core::{Goal, Outcome, Step};
use firmesh_protocol::{
    api::CampaignState,
    approval::Refused,
    brake::Braked,
    ids::{CampaignId, DeviceId},
    manifest::{AtMost, CampaignManifest, RetryBudget, Reversibility, Strategy},
    report::{AttemptReport, AttemptState, FailureClass, Permit, PermitKind},
};

use super::{
    MAIN, World,
    device::Runs,
    promises::{Promise, Started, Word},
    scenario::{Approved, DailyWindow, Kind},
    signed::{Signed, Signer},
};

/// How far honest clocks differ at most, in milliseconds: what nodes forgive.
const CLOCKS_DIFFER_MS: u64 = 60_000;
/// How long after a power cut a device may be silent, in milliseconds.
const DARK_MS: u64 = 120_000;
/// How long an attempt may go on after its deadline: the last act is given up, and the device looked at once more.
const OVERTIME_S: u64 = 60;

impl World {
    /// A coordinator has stored a permit.
    pub(super) fn judge_permit(&mut self, c: usize, permit: &Permit) {
        self.watch.issued(self.now_ms, permit);
        let Some(approved) = self.scenario.campaign(&permit.campaign) else {
            return;
        };
        if permit.kind == PermitKind::Rollback {
            if let Some(how) = self.names_no_order(c, permit, approved) {
                let how = format!("permit {} of {}: {how}", permit.sequence, permit.campaign);
                self.watch.blame(self.now_ms, Promise::Authorised, how);
            }
            return;
        }
        let expires = approved.campaign.manifest.expires.unix_seconds();
        let late = self.node_wall(0).unix_seconds() - expires;
        let unheld = permit.devices.iter().find(|device| {
            let d = self.scenario.device(device).expect("a device of the fleet");
            !self.holds_images(self.scenario.devices[d].node, device, approved)
        });
        let unheld = unheld.map(|device| format!("{device} is permitted before its node holds both images"));
        let problems = [
            self.without_hooks(permit, approved).map(|how| (Promise::Gate, how)),
            self.beyond_budget(permit, approved).map(|how| (Promise::Once, how)),
            self.not_going_forward(c, permit).map(|how| (Promise::Halted, how)),
        ];
        if late > i64::try_from(2 * CLOCKS_DIFFER_MS / 1_000).unwrap_or_default() {
            let how = format!(
                "permit {} of {}, {late} s after it expired",
                permit.sequence, permit.campaign
            );
            self.watch.blame(self.now_ms, Promise::Authorised, how);
        }
        if c == MAIN {
            self.judge_moved_on(permit);
        }
        if let Some(how) = unheld {
            self.watch.blame(self.now_ms, Promise::Held, how);
        }
        for (promise, how) in problems.into_iter().flatten() {
            let how = format!("permit {} of {}: {how}", permit.sequence, permit.campaign);
            self.watch.blame(self.now_ms, promise, how);
        }
    }

    /// What waits for its way back in one campaign is not moved on by another.
    fn judge_moved_on(&mut self, permit: &Permit) {
        let engine = self.coordinators[MAIN].engine();
        let others = self.scenario.campaigns.iter().filter(|other| {
            let id = &other.campaign.manifest.id;
            *id != permit.campaign && engine.and_then(|engine| engine.state(id)) == Some(CampaignState::RollingBack)
        });
        let waiting = others.flat_map(|other| {
            let id = &other.campaign.manifest.id;
            let views = permit.devices.iter().filter_map(|device| engine?.attempt(id, device));
            views.filter(|view| self.is_to_go_back(other, view))
        });
        let moved = waiting.map(|view| format!("{} waits for its way back in {}", view.device, view.campaign));
        if let Some(how) = moved.take(1).collect::<Vec<_>>().pop() {
            let how = format!("permit {} of {}: {how}", permit.sequence, permit.campaign);
            self.watch.blame(self.now_ms, Promise::Once, how);
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
            let how = format!(
                "node {n} keeps permit {} of {}, {what}",
                permit.sequence, permit.campaign
            );
            self.watch.blame(self.now_ms, Promise::Authorised, how);
        }
    }

    fn holds_images(&self, n: usize, device: &DeviceId, approved: &Approved) -> bool {
        let planned = approved.campaign.planned(device);
        let targets = planned.into_iter().flat_map(|(_, planned)| {
            let ends = [Some(&planned.release), planned.previous.as_ref()];
            planned.hops.iter().chain(ends.into_iter().flatten())
        });
        let mut images = targets.filter_map(|target| approved.images.get(target));
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
        let before = self.watch.started.remove(&key).map(Box::new);
        if let Some(before) = &before {
            self.watch.tally.began_again += 1;
            if let Some(why) = self.not_again(n, before, permit, goal, approved) {
                let how = format!(
                    "{} is started again for {} ({:?}): {why}",
                    goal.device, goal.campaign, goal.kind
                );
                self.watch.blame(self.now_ms, Promise::Once, how);
            }
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
        self.judge_left(d);
        self.watch.left.remove(&d);
        self.watch.asked.insert(d, self.now_ms);
        let rack = scenario
            .places
            .iter()
            .position(|place| place.rack == scenario.places[n].rack)
            .unwrap_or(n);
        let started = Started {
            node: n,
            device: d,
            rack,
            from: from.clone(),
            since_ms: self.now_ms,
            worked_ms: 0,
            restarts: 0,
            acts: BTreeMap::new(),
            in_flight: true,
            ended: None,
            failure: None,
            ended_at: None,
            steps: 1,
            before,
        };
        self.watch.started.insert(key, started);
        let problems = [
            self.unauthorised(n, d, permit, goal, approved, &from)
                .map(|how| (Promise::Authorised, how)),
            self.over_cap(n, rack, approved).map(|how| (Promise::Cap, how)),
            self.over_domain(n, d, approved).map(|how| (Promise::Cap, how)),
            self.out_of_turn(n, d, permit, approved).map(|how| (Promise::Unit, how)),
            self.before_gate(n, d, permit, approved).map(|how| (Promise::Gate, how)),
            self.outside_window(n, permit, goal, approved)
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

    /// Why a device may not be started for the same campaign again.
    fn not_again(
        &self,
        n: usize,
        before: &Started,
        permit: &Permit,
        goal: &Goal,
        approved: &Approved,
    ) -> Option<String> {
        let manifest = &approved.campaign.manifest;
        let went_back = (goal.campaign.clone(), goal.device.clone(), PermitKind::Rollback);
        let (_, planned) = approved.campaign.planned(&goal.device)?;
        let one_way = has_door(approved, &goal.device) || planned.previous.is_none();
        if goal.kind == PermitKind::Rollback || self.watch.started.contains_key(&went_back) || one_way {
            return Some("nothing allows that".to_owned());
        }
        let starts = before.starts();
        if permit.attempt != starts + 1 {
            return Some(format!(
                "it was started {starts} times, by a permit for attempt {}",
                permit.attempt
            ));
        }
        let (state, failure) = (before.ended, before.failure);
        let Some(pause_s) = pause_s(manifest, state, failure, starts) else {
            return Some(format!(
                "it was started {starts} times, and ended {state:?} {failure:?}"
            ));
        };
        let rested_s = before
            .ended_at
            .map_or(0, |ended| self.node_wall(n).unix_seconds() - ended.unix_seconds());
        if rested_s < pause_s {
            return Some(format!("it has rested for {rested_s} s, {pause_s} s are asked for"));
        }
        let is_sound = self.watch.coordinator_is_sound;
        let wave = approved.campaign.plan.waves.get(goal.wave as usize)?;
        let again = wave.iter().filter(|planned| {
            let key = (goal.campaign.clone(), planned.device.clone(), PermitKind::Update);
            let started = self.watch.started.get(&key);
            started.is_some_and(|started| started.starts() > 1 && (is_sound || started.node == n))
        });
        let (again, budget) = (again.count() + 1, retry_budget(manifest, wave.len()));
        (again > budget).then(|| format!("{again} of the wave were, the budget is {budget}"))
    }

    /// Whether another attempt may follow the one that a report is about, by the manifest alone.
    pub(super) fn may_go_on(&self, report: &AttemptReport) -> bool {
        let Some(approved) = self.scenario.campaign(&report.campaign) else {
            return false;
        };
        let planned = approved.campaign.planned(&report.device);
        let has_way_back = planned.is_some_and(|(_, planned)| planned.previous.is_some());
        let manifest = &approved.campaign.manifest;
        let pause = pause_s(manifest, Some(report.state), report.failure, report.attempt);
        report.kind == PermitKind::Update && has_way_back && pause.is_some()
    }

    fn unauthorised(
        &self,
        n: usize,
        d: usize,
        permit: &Permit,
        goal: &Goal,
        approved: &Approved,
        from: &Runs,
    ) -> Option<String> {
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
        let way = way_of(approved, device);
        let version_of = |target: &String| approved.campaign.releases[target].info.version.clone();
        let (pins, target) = match permit.kind {
            PermitKind::Update if way.len() == 1 => (&manifest.releases, Some(&planned.release)),
            // The step that comes after what it runs, if anybody can say.
            PermitKind::Update => {
                let runs = |version: &String| match from {
                    Runs::Kept(runs) | Runs::OnTrial(runs) => runs == version,
                    Runs::Nothing => goal.step.as_ref().is_some_and(|step| step.from == *version),
                };
                let done = way.iter().position(|target| runs(&version_of(target)));
                let next = match done {
                    Some(done) => Some((done + 1).min(way.len() - 1)),
                    None => runs(&planned.from_version).then_some(0),
                };
                let is_last = next == Some(way.len() - 1);
                (
                    if is_last { &manifest.releases } else { &manifest.hops },
                    next.map(|next| &way[next]),
                )
            }
            PermitKind::Rollback => (&manifest.previous, planned.previous.as_ref()),
        };
        let pinned = pins
            .iter()
            .any(|pin| Some(&pin.target) == target && pin.sha256 == goal.image.artifact.sha256);
        if !pinned || !permit.devices.contains(device) {
            return Some(format!("{} was not approved for it", goal.image.target));
        }
        if permit.kind == PermitKind::Rollback {
            let forward = (goal.campaign.clone(), device.clone(), PermitKind::Update);
            if !self.watch.started.contains_key(&forward) {
                return Some("it never went forward".to_owned());
            }
            let versions: Vec<_> = way.iter().chain(&planned.previous).map(version_of).collect();
            if let Runs::Kept(version) = from
                && !versions.contains(version)
            {
                return Some(format!("it runs {version}, which the campaign knows nothing of"));
            }
        }
        let info = &goal.image.info;
        if !info.models.contains(&self.scenario.devices[d].kind.identity().model) {
            return Some("the image is for another model".to_owned());
        }
        let one_way = has_door(approved, device);
        if one_way && (permit.kind == PermitKind::Rollback || !manifest.constraints.one_way_accepted) {
            return Some("the release is one-way".to_owned());
        }
        let is_allowed = manifest.automatic_rollback
            || manifest.operator_rollback
            || self.is_refused(manifest)
            || self.is_ordered(manifest, permit.wave, device);
        if permit.kind == PermitKind::Rollback && !is_allowed {
            return Some("no rollback was approved".to_owned());
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

    /// Power feeds, counted by what is plugged in where.
    fn over_domain(&self, n: usize, d: usize, approved: &Approved) -> Option<String> {
        let devices = &self.scenario.devices;
        let feed = devices[d].feed()?;
        let is_sound = self.watch.coordinator_is_sound;
        // Where coordinators cannot be trusted, a node keeps its own share of its own campaign's rules.
        let in_flight = self.watch.in_flight(|started| is_sound || started.node == n);
        let (here, elsewhere): (Vec<_>, Vec<_>) = in_flight
            .into_iter()
            .partition(|other| devices[*other].feed() == Some(feed));
        let runs = |manifest: &CampaignManifest, is_here: bool| {
            self.watch.started.iter().any(|(key, started)| {
                let is_there = !is_here || devices[started.device].feed() == Some(feed);
                key.0 == manifest.id && started.in_flight && started.ended.is_none() && is_there
            })
        };
        self.scenario.campaigns.iter().find_map(|other| {
            let manifest = &other.campaign.manifest;
            let is_own = manifest.id == approved.campaign.manifest.id;
            let caps = &manifest.caps;
            let cap = caps.domains.iter().find_map(|cap| match cap.at_most {
                AtMost::Count(count) => Some(count as usize),
                AtMost::BelowPercent(_) => None,
            });
            if cap.is_some_and(|cap| here.len() > cap) && (is_own || is_sound && runs(manifest, true)) {
                return Some(format!("{} in flight on {feed}, against {}", here.len(), manifest.id));
            }
            let apart = !caps.never_together.is_empty() && !elsewhere.is_empty();
            (apart && (is_own || is_sound && runs(manifest, false))).then(|| {
                format!(
                    "{} in flight on the other feed, against {}",
                    elsewhere.len(),
                    manifest.id
                )
            })
        })
    }

    fn out_of_turn(&self, n: usize, d: usize, permit: &Permit, approved: &Approved) -> Option<String> {
        let devices = &self.scenario.devices;
        let unit = devices[d].labels.unit()?;
        let is_neighbour = |other: &usize| *other != d && devices[*other].labels.unit() == Some(unit);
        let in_flight = self.watch.in_flight(|started| started.node == n);
        if let Some(other) = in_flight.into_iter().find(is_neighbour) {
            return Some(format!("{} of the same unit is in flight", devices[other].id));
        }
        if permit.kind == PermitKind::Rollback || !self.watch.coordinator_is_sound {
            return None;
        }
        let id = &approved.campaign.manifest.id;
        let (_, planned) = approved.campaign.planned(&devices[d].id)?;
        let before = planned.after.as_ref()?;
        let words = self.watch.ended.get(&(id.clone(), before.clone()));
        let ended_well = words.is_some_and(|words| words.iter().any(|word| word.good));
        (!ended_well).then(|| format!("{before} of the same unit has not ended well"))
    }

    fn before_gate(&self, n: usize, d: usize, permit: &Permit, approved: &Approved) -> Option<String> {
        let manifest = &approved.campaign.manifest;
        match permit.kind {
            // All of them, not only those that the permit shows: the others follow, or there is no point in showing any.
            PermitKind::Update => {
                let at_once = waves_at_once(manifest);
                let mut before = 0..(permit.wave + 1).saturating_sub(at_once);
                // Those that are not shown were looked at by other clocks.
                before.find_map(|wave| {
                    let is_shown = wave + 2 * at_once > permit.wave;
                    self.gate_is_not(n, permit.kind, wave, is_shown, approved)
                })
            }
            PermitKind::Rollback if manifest.operator_rollback || self.is_refused(manifest) => None,
            PermitKind::Rollback if self.is_ordered(manifest, permit.wave, &self.scenario.devices[d].id) => None,
            PermitKind::Rollback => self.gate_is_not(n, permit.kind, permit.wave, true, approved),
        }
    }

    /// Why the gate of a wave has not passed, or for a way back, not failed.
    fn gate_is_not(
        &self,
        n: usize,
        kind: PermitKind,
        wave: u32,
        is_shown: bool,
        approved: &Approved,
    ) -> Option<String> {
        let (manifest, plan) = (&approved.campaign.manifest, &approved.campaign.plan);
        let planned = plan.waves.get(wave as usize)?;
        let words_on = |device: &DeviceId| self.watch.ended.get(&(manifest.id.clone(), device.clone()));
        let devices = planned.len();
        // What may be tried again has not failed yet, unless too many have.
        let has = |device: &DeviceId, what: &dyn Fn(&Word) -> bool| {
            words_on(device).is_some_and(|words| words.iter().any(what))
        };
        let is_unlucky = |word: &Word| word.is_again || word.may_go_on;
        let unlucky = planned
            .iter()
            .filter(|planned| has(&planned.device, &is_unlucky))
            .count();
        let is_spent = unlucky > retry_budget(manifest, devices);
        let is_final = |word: &Word| is_spent || !word.may_go_on;
        let words: Vec<_> = planned
            .iter()
            .filter(|planned| has(&planned.device, &is_final))
            .filter_map(|planned| words_on(&planned.device))
            .collect();
        // Whoever comes after a failure in its unit and has said nothing is left out, and missing.
        let failed = |device: &DeviceId| has(device, &|word| !word.good && is_final(word));
        let mut missing = BTreeSet::new();
        for planned in planned {
            let follows = |before: &DeviceId| failed(before) || missing.contains(before);
            if words_on(&planned.device).is_none() && planned.after.as_ref().is_some_and(follows) {
                missing.insert(planned.device.clone());
            }
        }
        let bad = planned.iter().filter(|planned| failed(&planned.device)).count() + missing.len();
        let mut good: Vec<_> = words
            .iter()
            .filter_map(|words| words.iter().filter(|word| word.good).map(|word| word.at).min())
            .collect();
        good.sort();
        let reaches = |part: usize, basis_points: u32| part * 10_000 >= basis_points as usize * devices;
        if kind == PermitKind::Rollback {
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
        if good.len() < needed || words.len() + missing.len() < devices.min(manifest.gate.sample_min as usize) {
            return Some(format!(
                "{} of {devices} ended, {} well, {needed} are needed: wave {wave} has not passed",
                words.len(),
                good.len()
            ));
        }
        let passed = needed.checked_sub(1).map(|last| good[last])?;
        let soaked = passed.unix_seconds() + i64::from(manifest.gate.soak_s);
        let slack = i64::try_from(CLOCKS_DIFFER_MS / 1_000).unwrap_or_default() + 1;
        if is_shown && self.node_wall(n).unix_seconds() + slack < soaked {
            return Some(format!("wave {wave} is watched for longer"));
        }
        let rule = manifest.gate.approval.as_ref()?;
        let is_asked = rule.after.is_empty() || rule.after.contains(&wave);
        let has_yes = self.watch.said.contains(&(manifest.id.clone(), wave, true));
        (is_asked && !has_yes).then(|| format!("no approver has said yes after wave {wave}"))
    }

    /// Whether an approver has said no where that sends everybody back.
    fn is_refused(&self, manifest: &CampaignManifest) -> bool {
        let Some(rule) = &manifest.gate.approval else {
            return false;
        };
        let is_no = |(id, wave, approved): &(CampaignId, u32, bool)| {
            *id == manifest.id && !approved && (rule.after.is_empty() || rule.after.contains(wave))
        };
        rule.refused == Refused::RollBack && self.watch.said.iter().any(is_no)
    }

    fn outside_window(&self, n: usize, permit: &Permit, goal: &Goal, approved: &Approved) -> Option<String> {
        if permit.kind == PermitKind::Rollback {
            return None;
        }
        let manifest = &approved.campaign.manifest;
        let way = way_of(approved, &goal.device);
        let done = way.iter().position(|target| *target == goal.image.target).unwrap_or(0);
        let steps = i64::try_from(way.len() - done).unwrap_or(i64::MAX);
        let (now, takes) = (
            self.node_wall(n).unix_seconds(),
            i64::from(manifest.deadlines.attempt_s) * steps,
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
        if self.watch.braked.contains(&(n, edition)) {
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
        self.judge_tries(goal, step);
        self.judge_aside(d, goal);
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
    }

    /// Nothing is tried without end: not even by a process that is killed over it, but for resets, of which nobody can
    /// know whether they came about.
    fn judge_tries(&mut self, goal: &Goal, step: &Step) {
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let Some(started) = self.watch.started.get_mut(&key) else {
            return;
        };
        let (act, tries_max) = match step {
            Step::Observe { .. } => return,
            Step::Stage { .. } => ("written", 3),
            Step::Activate { .. } => ("armed", 3),
            Step::Confirm => ("confirmed", 3),
            Step::Reset(_) => ("reset", 8 + 2 * started.restarts),
            Step::Abort { .. } => ("disarmed", 4 + started.restarts),
        };
        let tries = started.acts.entry(act).or_default();
        *tries += 1;
        if *tries > tries_max {
            let how = format!("{} is {act} for the {tries}th time in one attempt", goal.device);
            self.watch.blame(self.now_ms, Promise::Bounded, how);
        }
    }

    /// A node is at an attempt.
    pub(super) fn judge_time(&mut self, goal: &Goal) {
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let Some(started) = self.watch.started.get(&key).filter(|started| started.ended.is_none()) else {
            return;
        };
        let worked_s = (started.worked_ms + self.now_ms - started.since_ms) / 1_000;
        let limit_s = u64::from(goal.deadlines.attempt_s) * (1 + started.restarts);
        if worked_s > limit_s + OVERTIME_S {
            let how = format!(
                "the attempt on {} is at it for {worked_s} s, {limit_s} s are allowed",
                goal.device
            );
            self.watch.blame(self.now_ms, Promise::Bounded, how);
        }
    }

    /// A device that an attempt left in a known state is in that state still.
    pub(super) fn judge_left(&mut self, d: usize) {
        let runs = self.devices[d].runs(self.now_ms);
        let left = self.watch.left.get(&d).filter(|left| **left != runs);
        if let (Some(left), Runs::Kept(_)) = (left, &runs) {
            let how = format!(
                "{} was left running {left:?}, and has come to run {runs:?} by itself",
                self.scenario.devices[d].id
            );
            self.watch.blame(self.now_ms, Promise::Truthful, how);
        }
    }

    /// A device has been restarted, by whatever.
    pub(super) fn judge_restart(&mut self, d: usize) {
        let device = &self.devices[d];
        if device.is_dead(self.now_ms) && !device.may_die() {
            let how = format!("{} starts no more", self.scenario.devices[d].id);
            self.watch.blame(self.now_ms, Promise::Bootable, how);
        }
        let trials = device.trials();
        if trials > 1 {
            let how = format!("{} starts the same trial {trials} times", self.scenario.devices[d].id);
            self.watch.blame(self.now_ms, Promise::Bootable, how);
        }
    }

    /// A step of a device's way has ended well, and another is to follow.
    pub(super) fn judge_step_end(&mut self, d: usize, goal: &Goal, outcome: &Outcome) {
        let (now_ms, runs) = (self.now_ms, self.devices[d].runs(self.now_ms));
        self.tell(|| format!("{} is done with a step: {}, runs {runs:?}", goal.device, outcome.state));
        self.judge_time(goal);
        let epoch = self.watch.epochs.entry(d).or_default();
        *epoch = goal.image.info.security_epoch.max(*epoch);
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let dark = self.watch.dark.get(&d).is_some_and(|dark| dark + DARK_MS > now_ms);
        let Some(started) = self
            .watch
            .started
            .get_mut(&key)
            .filter(|started| started.ended.is_none())
        else {
            return;
        };
        let reached = Runs::Kept(goal.image.info.version.clone());
        let may_have_changed = started.restarts > 0 || dark;
        let is_true = runs == reached || (may_have_changed && runs == Runs::Nothing);
        // What is waited for now counts as the step's.
        started.from = reached;
        if !is_true {
            let how = format!("{} ended {} on its way, and runs {runs:?}", goal.device, outcome.state);
            self.watch.blame(now_ms, Promise::Truthful, how);
        }
    }

    /// A node is about to take the next step of a device's way.
    pub(super) fn judge_step(&mut self, n: usize, d: usize, goal: &Goal) {
        let scenario = Arc::clone(&self.scenario);
        let approved = scenario
            .campaign(&goal.campaign)
            .expect("nodes know approved campaigns only");
        let now_ms = self.now_ms;
        self.tell(|| format!("{} goes on for {}: {}", goal.device, goal.campaign, goal.image.target));
        self.judge_time(goal);
        self.watch.asked.insert(d, now_ms);
        self.watch.tally.gone_over += 1;
        let way = way_of(approved, &goal.device);
        let place = way.iter().position(|target| *target == goal.image.target);
        let edition = Braked::Campaign {
            id: goal.campaign.clone(),
            manifest_sha256: approved.campaign.manifest_sha256,
        };
        let is_braked = self.watch.braked.contains(&(n, edition));
        let is_held = self.nodes[n].disk.images.contains(&goal.image.artifact.id);
        let backwards = self.backwards(d, goal);
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let started = self
            .watch
            .started
            .get_mut(&key)
            .filter(|started| started.in_flight && started.ended.is_none());
        let Some(started) = started else {
            let how = format!("{} goes on with a way that it is not on", goal.device);
            return self.watch.blame(now_ms, Promise::Once, how);
        };
        let before = place.and_then(|place| place.checked_sub(1)).map(|before| &way[before]);
        let wanted = before.map(|target| Runs::Kept(approved.campaign.releases[target].info.version.clone()));
        let (is_next, pins) = (wanted.as_ref() == Some(&started.from), [&goal.image]);
        let allowed = goal
            .image
            .info
            .from_versions
            .iter()
            .any(|from| started.from == Runs::Kept(from.clone()));
        (started.steps, started.since_ms, started.worked_ms, started.restarts) = (started.steps + 1, now_ms, 0, 0);
        started.acts.clear();
        let is_pinned = pins.iter().all(|image| {
            let mut named = approved
                .campaign
                .manifest
                .hops
                .iter()
                .chain(&approved.campaign.manifest.releases);
            named.any(|pin| (&pin.target, pin.sha256) == (&image.target, image.artifact.sha256))
        });
        let problems = [
            (!is_pinned).then_some((Promise::Authorised, "which nobody approved".to_owned())),
            (!is_next).then(|| (Promise::Authorised, format!("which does not come after {wanted:?}"))),
            (!allowed).then_some((Promise::Authorised, "which may not be installed from there".to_owned())),
            is_braked.then_some((Promise::Halted, "although its brake was pulled".to_owned())),
            backwards.map(|how| (Promise::Monotonic, how)),
            (!is_held).then_some((Promise::Held, "whose image is not here".to_owned())),
        ];
        for (promise, how) in problems.into_iter().flatten() {
            let how = format!("{} goes on to {}, {how}", goal.device, goal.image.target);
            self.watch.blame(now_ms, promise, how);
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
        self.judge_time(goal);
        self.judge_restart(d);
        for devices in self.watch.leaning.values_mut() {
            devices.remove(&d);
        }
        let dark = self.watch.dark.get(&d).is_some_and(|dark| dark + DARK_MS > now_ms);
        let ended_at = Some(self.node_wall(self.scenario.devices[d].node));
        let key = (goal.campaign.clone(), goal.device.clone(), goal.kind);
        let Some(started) = self.watch.started.get_mut(&key) else {
            let how = format!("an attempt on {} ends that never began", goal.device);
            return self.watch.blame(now_ms, Promise::Once, how);
        };
        if started.ended.replace(outcome.state).is_some() {
            // Told again by a process that came back.
            return;
        }
        (started.failure, started.ended_at) = (outcome.failure, ended_at);
        let (restarts, was_written) = (started.restarts, started.acts.contains_key("written"));
        let (from, is_quarantined) = (started.from.clone(), outcome.state == AttemptState::Quarantined);
        started.in_flight = is_quarantined;
        if goal.kind == PermitKind::Rollback && !is_quarantined {
            let forward = (goal.campaign.clone(), goal.device.clone(), PermitKind::Update);
            if let Some(forward) = self.watch.started.get_mut(&forward) {
                forward.in_flight = false;
            }
        }
        let first = goal.step.as_ref().is_none_or(|step| step.number == 1);
        let is_halfway = !first && !outcome.state.is_success() && !is_quarantined;
        let tally = &mut self.watch.tally;
        tally.halfway += u64::from(is_halfway);
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
        let says_unchanged = matches!(outcome.state, AttemptState::Failed | AttemptState::TimedOut);
        let is_unknown = runs == Runs::Nothing || self.devices[d].is_long_silent(now_ms);
        let may_differ = was_written || goal.kind == PermitKind::Rollback;
        if says_unchanged && may_differ && is_unknown && !may_have_changed {
            let how = format!(
                "{} ended {} ({}): it answers nobody, and nobody knows what it runs",
                goal.device, outcome.state, outcome.reason
            );
            self.watch.blame(now_ms, Promise::Truthful, how);
        }
        match runs {
            Runs::Kept(_) if !is_quarantined => self.watch.left.insert(d, runs),
            _ => self.watch.left.remove(&d),
        };
    }
}

/// For how many seconds a device rests that was started so often and has ended so; nothing if that was it.
fn pause_s(
    manifest: &CampaignManifest,
    state: Option<AttemptState>,
    failure: Option<FailureClass>,
    starts: u32,
) -> Option<i64> {
    use AttemptState::{Failed, RolledBack, TimedOut};
    let rules = &manifest.retries.as_ref()?.rules;
    let rule = rules.iter().find(|rule| Some(rule.class) == failure)?;
    let is_known = matches!(state, Some(Failed | RolledBack | TimedOut));
    let pause = i64::from(rule.pause_s) << (starts - 1).min(16);
    (is_known && starts <= rule.times).then_some(pause.min(86_400))
}

/// How many waves may be open at once, by the manifest alone.
pub(super) fn waves_at_once(manifest: &CampaignManifest) -> u32 {
    match manifest.strategy {
        Strategy::Rolling {
            max_concurrent_batches, ..
        } => max_concurrent_batches,
        _ => 1,
    }
}

/// What is installed on a device for a campaign, one after the other.
fn way_of(approved: &Approved, device: &DeviceId) -> Vec<String> {
    let planned = approved.campaign.planned(device);
    let way = planned.map(|(_, planned)| [planned.hops.clone(), vec![planned.release.clone()]].concat());
    way.unwrap_or_default()
}

/// Whether nothing leads back from somewhere on its way.
fn has_door(approved: &Approved, device: &DeviceId) -> bool {
    let way = way_of(approved, device);
    let is_door = |target| approved.campaign.releases[target].info.reversibility == Reversibility::OneWay;
    way.iter().any(is_door)
}

pub(super) fn retry_budget(manifest: &CampaignManifest, devices: usize) -> usize {
    match manifest.retries.as_ref().map(|retries| retries.budget) {
        None => 0,
        Some(RetryBudget::Count(count)) => count as usize,
        Some(RetryBudget::Share(share)) => (devices * share.get() as usize).div_ceil(10_000),
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
