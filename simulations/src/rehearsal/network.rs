//! Messages between nodes and coordinators, and what is done to them: lost, delayed, cut off one way, and lied in.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use firmesh_protocol::{
    brake::Braked,
    ids::{CampaignId, DeviceId, Sha256},
    report::{Permit, PermitKind},
    time::WallTime,
};

use super::{
    Event, MAIN, NodeEvent, World,
    coordinator::{Answer, Heartbeat, Outcome},
};

/// How long a heartbeat waits for its answer.
const SLOW_ANSWER_MS: u64 = 10_000;

/// What the network does to messages.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) up_cut_until: Vec<u64>,
    pub(super) down_cut_until: Vec<u64>,
    pub(super) mesh_cut_until: u64,
    pub(super) lose: (u64, u64),
    pub(super) slow: (u64, u64),
    pub(super) lies_until: u64,
}

impl World {
    /// How long a message is under way; nothing if it is lost.
    fn under_way(&mut self) -> Option<u64> {
        let (permille, until) = self.links.lose;
        let is_lost = self.dice.below(1_000) < permille && self.now_ms < until;
        let (by_ms, slow_until) = self.links.slow;
        let slow = if self.now_ms < slow_until {
            self.dice.below(by_ms + 1)
        } else {
            0
        };
        let delay = 1 + self.dice.below(80) + slow;
        (!is_lost).then_some(delay)
    }

    pub(super) fn reaches_coordinator(&self, n: usize) -> bool {
        let links = &self.links;
        let is_cut = self.now_ms < links.up_cut_until[n].max(links.down_cut_until[n]);
        !is_cut && self.coordinators[self.follows[n]].is_up()
    }

    pub(super) fn send_heartbeat(&mut self, n: usize, heartbeat: Heartbeat) {
        let incarnation = self.nodes[n].incarnation;
        let is_cut = self.now_ms < self.links.up_cut_until[n];
        match self.under_way().filter(|_| !is_cut) {
            Some(delay) => self.after(
                delay,
                Event::Heartbeat(self.follows[n], incarnation, Box::new(heartbeat)),
            ),
            None => self.after(SLOW_ANSWER_MS, Event::Node(n, incarnation, NodeEvent::Answer(None))),
        }
    }

    pub(super) fn hear(&mut self, c: usize, incarnation: u32, heartbeat: &Heartbeat) {
        let n = heartbeat.node;
        let scenario = Arc::clone(&self.scenario);
        let (outcome, mut answer) = self.coordinators[c].hear(&scenario, self.now_ms, heartbeat, &mut self.evidence);
        self.followed(c, &outcome);
        if c == MAIN && !matches!(outcome, Outcome::Died { .. }) {
            for braked in self.coordinators[c].brakes() {
                if let Braked::Campaign { id, .. } = braked {
                    self.watch.stopped(self.now_ms, id);
                }
            }
        }
        if let Some(answer) = answer.as_mut().filter(|_| self.now_ms < self.links.lies_until) {
            self.lie(n, answer);
        }
        let is_cut = self.now_ms < self.links.down_cut_until[n];
        let delay = self.under_way().filter(|_| !is_cut && answer.is_some());
        let (delay, answer) = match delay {
            Some(delay) => (delay, answer.map(Box::new)),
            None => (SLOW_ANSWER_MS, None),
        };
        self.after(delay, Event::Node(n, incarnation, NodeEvent::Answer(answer)));
    }

    /// Adds permits that no sound coordinator would sign.
    fn lie(&mut self, n: usize, answer: &mut Answer) {
        let scenario = Arc::clone(&self.scenario);
        for _ in 0..self.dice.below(5) / 4 {
            let approved = self.dice.pick(&scenario.campaigns);
            let (manifest, plan) = (&approved.campaign.manifest, &approved.campaign.plan);
            if plan.waves.is_empty() {
                continue;
            }
            let wave = self.dice.index(plan.waves.len() + 1);
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
            let wall = self.coordinators[MAIN].wall(&scenario, self.now_ms);
            let evidence = self.false_evidence(&manifest.id, wave as u32);
            let ago = self.dice.below(40_000).cast_signed();
            let permit = Permit {
                campaign: manifest.id.clone(),
                manifest_sha256: match self.dice.below(8) {
                    0 => Sha256::of(b"another edition"),
                    _ => approved.campaign.manifest_sha256,
                },
                kind,
                wave: wave as u32,
                sequence: self.dice.below(1 << 16),
                epoch: self.coordinators[MAIN].epoch() + self.dice.below(3),
                issued: WallTime::from_unix_seconds(wall.unix_seconds() - ago),
                expires: wall + Duration::from_secs(self.dice.below(7 * 86_400)),
                devices,
                evidence: evidence.into_iter().collect(),
            };
            answer.permits.push(Arc::new(permit));
        }
        // It hides what was stopped, too.
        if self.dice.one_in(2) {
            answer.campaigns = scenario
                .campaigns
                .iter()
                .map(|approved| approved.campaign.manifest.id.clone())
                .collect();
            answer.brakes.clear();
        }
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
            let fits = report.wave == wave && report.state.is_terminal() && report.kind == PermitKind::Update;
            let is_taken = if fits {
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

    /// Tells every other node.
    pub(super) fn gossip(&mut self, from: usize, news: &NodeEvent) {
        if self.now_ms < self.links.mesh_cut_until {
            return;
        }
        for n in (0..self.nodes.len()).filter(|n| *n != from) {
            let incarnation = self.nodes[n].incarnation;
            if let Some(delay) = self.under_way() {
                self.after(delay, Event::Node(n, incarnation, news.clone()));
            }
        }
    }
}
