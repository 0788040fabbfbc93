//! A coordinator that signs what nobody should follow: with its own key and with others, on real evidence and on false,
//! for what was stopped and for what is not due.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use firmesh_protocol::{
    ids::{CampaignId, DeviceId, Sha256},
    report::{AttemptReport, AttemptState, Permit, PermitKind},
    time::WallTime,
};

use super::{
    MAIN, World,
    coordinator::Answer,
    evidence::FORGED,
    scenario::Approved,
    signed::{Signed, Signer},
};

impl World {
    /// Adds permits that no sound coordinator would sign, and hides what was stopped.
    pub(super) fn lie(&mut self, n: usize, answer: &mut Answer) {
        let scenario = Arc::clone(&self.scenario);
        let approved = self.dice.pick(&scenario.campaigns);
        let lies = match self.dice.below(24) {
            0 => self.made_up(n, approved),
            1..=4 => self.hurried(n, approved),
            5 => self.old(approved),
            _ => None,
        };
        answer.permits.extend(lies);
        if self.dice.one_in(2) {
            answer.campaigns = scenario
                .campaigns
                .iter()
                .map(|approved| approved.campaign.manifest.id.clone())
                .collect();
            answer.brakes.clear();
        }
    }

    /// A permit for anything, on whatever evidence.
    fn made_up(&mut self, n: usize, approved: &Approved) -> Option<Signed> {
        let wave = self.a_wave(approved, 1)?;
        let scenario = Arc::clone(&self.scenario);
        let own = scenario
            .devices
            .iter()
            .filter(|placed| placed.node == n || self.dice.one_in(4));
        let devices: Vec<DeviceId> = own.map(|placed| placed.id.clone()).collect();
        let kind = if self.dice.one_in(3) {
            PermitKind::Rollback
        } else {
            PermitKind::Update
        };
        let evidence = self.false_evidence(&approved.campaign.manifest.id, wave);
        let ago = self.dice.below(40_000).cast_signed();
        let epoch = self.coordinators[MAIN].epoch() + self.dice.below(3);
        let wall = self.coordinators[MAIN].wall(&scenario, self.now_ms);
        let permit = Permit {
            campaign: approved.campaign.manifest.id.clone(),
            manifest_sha256: match self.dice.below(8) {
                0 => Sha256::of(b"another edition"),
                _ => approved.campaign.manifest_sha256,
            },
            kind,
            wave,
            attempt: 1 + (self.now_ms % 3) as u32,
            sequence: self.dice.below(1 << 16),
            epoch,
            issued: WallTime::from_unix_seconds(wall.unix_seconds() - ago),
            expires: wall + Duration::from_secs(self.dice.below(3_600)),
            devices,
            evidence: evidence.into_iter().collect(),
        };
        let by = match self.dice.below(8) {
            0 => Signer::Stranger,
            1 => Signer::Forger,
            2 => Signer::Nobody,
            _ => Signer::Coordinator,
        };
        let permit = Arc::new(permit);
        Some(Signed { permit, by })
    }

    /// A permit that might be due, if only it were not for soak time, a brake, a window, an approval that is over or was
    /// never given, or a device that has not ended yet.
    fn hurried(&mut self, n: usize, approved: &Approved) -> Option<Signed> {
        let wave = self.a_wave(approved, 0)?;
        let manifest = &approved.campaign.manifest;
        let scenario = Arc::clone(&self.scenario);
        // Where people have ordered devices back, that is what there is to lie about.
        let way_back = if self.evidence.has_orders() { 2 } else { 4 };
        let (kind, evidence) = match self.dice.one_in(way_back) {
            true => (PermitKind::Rollback, vec![self.worst_evidence(approved, wave)]),
            false => {
                let mut gates: Vec<_> = PermitKind::Update.gates(wave, &manifest.strategy).collect();
                // By the last of several alone it could go on past others that failed.
                if gates.len() > 1 && self.dice.one_in(2) {
                    gates.drain(..gates.len() - 1);
                }
                let shown = gates.into_iter().map(|before| self.best_evidence(approved, before));
                (PermitKind::Update, shown.collect())
            }
        };
        // Whatever approvers have signed, of this campaign or another, and now and then nothing of it.
        let said = self.evidence.all_words();
        let said = (!said.is_empty() && !self.dice.one_in(3)).then(|| *self.dice.pick(&said));
        let wall = self.coordinators[MAIN].wall(&scenario, self.now_ms);
        let planned = &approved.campaign.plan.waves[wave as usize];
        let here = planned
            .iter()
            .filter(|planned| planned.node == scenario.places[n].id)
            .map(|planned| planned.device.clone());
        let permit = Permit {
            campaign: manifest.id.clone(),
            manifest_sha256: approved.campaign.manifest_sha256,
            kind,
            wave,
            attempt: 1 + (self.now_ms % 3) as u32,
            sequence: self.dice.below(1 << 16),
            // It knows what its nodes have seen.
            epoch: self.coordinators[MAIN].epoch().max(self.nodes[n].disk.epoch),
            issued: wall,
            expires: wall + Duration::from_secs(self.dice.below(900)),
            devices: here.collect(),
            evidence: evidence.into_iter().chain(said).collect(),
        };
        Some(Signed::own(Arc::new(permit)))
    }

    /// A permit that was good once.
    fn old(&mut self, approved: &Approved) -> Option<Signed> {
        let issued = self.coordinators[MAIN].issued(&approved.campaign.manifest.id);
        let permit = (!issued.is_empty()).then(|| self.dice.pick(&issued))?;
        Some(Signed::own(Arc::clone(permit)))
    }

    /// A wave of the plan, or one of so many after the last.
    fn a_wave(&mut self, approved: &Approved, more: usize) -> Option<u32> {
        let waves = approved.campaign.plan.waves.len();
        (waves > 0).then(|| self.dice.index(waves + more) as u32)
    }

    /// Everything that nodes really signed about how a wave ended, and now and then a word that they did not.
    fn best_evidence(&mut self, approved: &Approved, wave: u32) -> Sha256 {
        let id = &approved.campaign.manifest.id;
        let reports = self.coordinators[MAIN].reports(id).into_iter();
        let ended = reports.filter(|report| is_end(report, wave));
        let mut last: BTreeMap<_, _> = ended.map(|report| (report.device.clone(), report)).collect();
        if self.dice.one_in(6) {
            for planned in &approved.campaign.plan.waves[wave as usize] {
                let forged = AttemptReport {
                    campaign: id.clone(),
                    manifest_sha256: approved.campaign.manifest_sha256,
                    wave,
                    kind: PermitKind::Update,
                    permit_sequence: 1,
                    attempt: 1,
                    device: planned.device.clone(),
                    node: planned.node.clone(),
                    sequence: FORGED + self.next_token(),
                    state: AttemptState::Success,
                    reason: String::new(),
                    version: None,
                    failure: None,
                    health: None,
                    at: self.scenario.begins,
                };
                last.entry(planned.device.clone()).or_insert(forged);
            }
        }
        self.evidence.collect(id, wave, last.into_values().collect())
    }

    /// What nodes signed about a wave that has not gone well, or not yet.
    fn worst_evidence(&mut self, approved: &Approved, wave: u32) -> Sha256 {
        let id = &approved.campaign.manifest.id;
        let all_ended = self.dice.one_in(2);
        let reports = self.coordinators[MAIN].reports(id).into_iter();
        let words = reports.filter(|report| report.wave == wave && (!all_ended || is_end(report, wave)));
        let mut worst = BTreeMap::new();
        for report in words {
            let known = worst.entry(report.device.clone()).or_insert_with(|| report.clone());
            if !report.state.is_success() {
                *known = report;
            }
        }
        self.evidence.collect(id, wave, worst.into_values().collect())
    }

    /// A choice of what nodes really signed, called evidence for some wave.
    fn false_evidence(&mut self, campaign: &CampaignId, wave: u32) -> Option<Sha256> {
        if self.dice.one_in(4) {
            return None;
        }
        let reports = self.coordinators[MAIN].reports(campaign);
        let mut chosen = Vec::new();
        let mut named = BTreeSet::new();
        for report in reports {
            let is_taken = if is_end(&report, wave) {
                !self.dice.one_in(4)
            } else {
                self.dice.one_in(24)
            };
            if is_taken && (named.insert(report.device.clone()) || self.dice.one_in(16)) {
                chosen.push(report);
            }
        }
        let about = if self.dice.one_in(8) { wave + 1 } else { wave };
        Some(self.evidence.collect(campaign, about, chosen))
    }
}

fn is_end(report: &AttemptReport, wave: u32) -> bool {
    report.wave == wave && report.state.is_terminal() && report.kind == PermitKind::Update
}
