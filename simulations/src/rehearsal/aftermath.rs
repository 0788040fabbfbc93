//! The promises, judged when a campaign or everything is over.

use std::sync::Arc;

use firmesh_protocol::{
    api::{AttemptView, CampaignState, GateVerdict},
    ids::DeviceId,
    manifest::AtMost,
    report::{AttemptState, PermitKind},
};

use super::{
    MAIN, World,
    device::Runs,
    promises::Promise,
    scenario::{Approved, FIRST_VERSION, Placed},
};

impl World {
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
            self.judge_left(d);
        }
        self.judge_given_back();
        if self.watch.coordinator_is_sound {
            self.judge_records();
        }
    }

    /// A campaign that says it is rolled back has sent back what could go; one that failed at it has tried, unless
    /// quarantined devices took the places. One that ends well only after that keeps what it runs: its node was silent for
    /// so long that it counted as lost.
    pub(super) fn judge_rolled_back(&mut self) {
        let scenario = Arc::clone(&self.scenario);
        let Some(engine) = self.coordinators[MAIN].engine() else {
            return;
        };
        let is_over = |state| matches!(state, CampaignState::RolledBack | CampaignState::Failed);
        let ended = engine
            .states()
            .filter(|(id, state)| is_over(*state) && !self.watch.judged.contains(*id));
        let ended: Vec<_> = ended.map(|(id, state)| (id.clone(), state)).collect();
        for (id, state) in ended {
            let approved = scenario
                .campaign(&id)
                .expect("the engine knows approved campaigns only");
            let engine = self.coordinators[MAIN].engine();
            let attempts = engine.and_then(|engine| engine.attempts(&id)).unwrap_or_default();
            let left = attempts.iter().find(|attempt| {
                let key = (id.clone(), attempt.device.clone(), PermitKind::Rollback);
                let was_tried = match state {
                    CampaignState::RolledBack => self.watch.started.contains_key(&key),
                    _ => self.watch.sent_back.contains(&(key.0, key.1)) || self.is_shut_out(&attempt.device),
                };
                self.is_to_go_back(approved, attempt) && !was_tried
            });
            if let Some(left) = left.filter(|_| approved.campaign.manifest.automatic_rollback) {
                let how = format!("{id} is {state:?}, {} was never sent back", left.device);
                self.watch.blame(self.now_ms, Promise::Live, how);
            }
            self.watch.judged.insert(id);
        }
    }

    /// Whether a device was updated in a wave that failed, and can go back.
    pub(super) fn is_to_go_back(&self, approved: &Approved, attempt: &AttemptView) -> bool {
        let (manifest, plan) = (&approved.campaign.manifest, &approved.campaign.plan);
        // A wave that failed because devices were silent, and did well by what they say after all, keeps the rest.
        let did_well = || {
            let planned = &plan.waves[attempt.wave as usize];
            let words = planned
                .iter()
                .filter_map(|p| self.watch.ended.get(&(manifest.id.clone(), p.device.clone())));
            let good = words.filter(|words| words.iter().any(|word| word.good)).count();
            good * 10_000 >= manifest.gate.rollback.get() as usize * planned.len()
        };
        let view = self.coordinators[MAIN]
            .engine()
            .and_then(|engine| engine.campaign(&manifest.id));
        let has_failed = view.is_some_and(|view| {
            view.waves
                .iter()
                .any(|view| view.wave == attempt.wave && view.gate == GateVerdict::Fail)
        });
        let planned = approved.campaign.planned(&attempt.device);
        let can_go_back = planned.is_some_and(|(_, planned)| planned.previous.is_some());
        // Who has stopped on its way runs neither what it ran before nor the new version.
        let versions = planned.into_iter().flat_map(|(_, planned)| &planned.hops);
        let mut versions = versions.map(|hop| &approved.campaign.releases[hop].info.version);
        let has_stopped = matches!(
            attempt.state,
            AttemptState::Failed | AttemptState::RolledBack | AttemptState::TimedOut
        );
        let back = (manifest.id.clone(), attempt.device.clone(), PermitKind::Rollback);
        let was_tried = self.watch.started.contains_key(&back);
        let is_halfway = has_stopped && !was_tried && versions.any(|version| attempt.version.as_ref() == Some(version));
        (attempt.state == AttemptState::Success || is_halfway) && can_go_back && has_failed && !did_well()
    }

    /// Whether quarantined devices may take the place of one that should go back, by anybody's caps.
    fn is_shut_out(&self, device: &DeviceId) -> bool {
        let scenario = &self.scenario;
        let Some(engine) = self.coordinators[MAIN].engine() else {
            return true;
        };
        let rack_of = |placed: &Placed| &scenario.places[placed.node].rack;
        let rack = scenario.device(device).map(|d| rack_of(&scenario.devices[d]));
        let quarantined = || {
            let devices = scenario.devices.iter();
            devices.filter(|placed| engine.is_quarantined(&placed.id))
        };
        let (here, all) = (
            quarantined().filter(|placed| Some(rack_of(placed)) == rack).count(),
            quarantined().count(),
        );
        let place = scenario.device(device).map(|d| &scenario.devices[d]);
        // A quarantined neighbour in its unit, or on the other feed, or enough on its own.
        let is_in_the_way = place.is_some_and(|place| {
            let in_unit = |other: &&Placed| {
                other.node == place.node && other.labels.unit().is_some() && other.labels.unit() == place.labels.unit()
            };
            let (on_feed, off_feed): (Vec<_>, Vec<_>) = quarantined().partition(|other| other.feed() == place.feed());
            quarantined().any(|other| in_unit(&other))
                || scenario.campaigns.iter().any(|approved| {
                    let caps = &approved.campaign.manifest.caps;
                    let is_full = caps.domains.iter().any(|cap| match cap.at_most {
                        AtMost::Count(count) => on_feed.len() >= count as usize,
                        AtMost::BelowPercent(_) => false,
                    });
                    is_full || (!caps.never_together.is_empty() && !off_feed.is_empty())
                })
        });
        engine.is_quarantined(device)
            || is_in_the_way
            || scenario.campaigns.iter().any(|approved| {
                let caps = &approved.campaign.manifest.caps;
                here >= caps.per_rack as usize || all >= caps.total as usize
            })
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
