//! One campaign's course: what each device does, and when it is over.
//!
//! Affected by a failed gate are the devices of the failed wave that run the new version when their attempt has ended;
//! those in flight are let end first, because a permit that is out cannot be recalled. Devices of earlier waves passed
//! their own gate and stay, and those of waves that are open beside it stay if theirs passes. Devices that were never
//! permitted are cancelled and never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use firmesh_protocol::{
    api::{CampaignState, Explanation, GateVerdict},
    approval::WaveApprovalView,
    ids::{CampaignId, DeviceId, Sha256, TopologyPath},
    limits::REASON_BYTES_MAX,
    manifest::{Artifact, CampaignManifest, Dimension, DomainShare, HeldDevice, Plan, PlannedDevice},
    report::{AttemptReport, AttemptState, FailureClass, PermitKind},
    rollback::RollbackScope,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    attempts::{Attempt, AttemptRecord, Attempts, Look, Names},
    domains::OwnRules,
    index::Index,
    possession::{Possession, PossessionRecord},
    seat::Seats,
    servers::Servers,
    webhooks::WebhookRecord,
};

/// A campaign as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CampaignRecord {
    /// The campaign.
    pub id: CampaignId,
    /// Where it stands.
    pub state: CampaignState,
    /// The gates of the waves that are open; there are no others.
    pub gates: Vec<GateVerdict>,
    /// The last permit sequence given out: never given out again.
    pub last_permit: u64,
    /// Why it stands where it stands.
    pub reason: String,
    /// What was decided, in order.
    pub decisions: Vec<Explanation>,
    /// Who was sent back by people, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollbacks: Vec<RollbackRecord>,
    /// What approvers were asked between waves, in order, and what they said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<WaveApprovalView>,
    /// What webhooks were asked between waves, in order, and what they said last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<WebhookRecord>,
    /// Whether those who go back are a part of a campaign that is to go on without them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumable: bool,
    /// The final validation of servers, by their place in the plan: what was wrong, if something was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validated: BTreeMap<u32, Option<String>>,
}

/// A rollback that people have ordered, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRecord {
    /// Who was to go back.
    pub scope: RollbackScope,
    /// Why, and who said so.
    pub reason: String,
    /// Digest of the approvers' signed order, if it took one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Sha256>,
}

#[derive(Debug)]
pub(crate) struct Campaign {
    pub(crate) manifest: CampaignManifest,
    /// Who is left out.
    pub(crate) held: Vec<HeldDevice>,
    /// The fault domains that its caps count by.
    pub(crate) shares: BTreeMap<Dimension, BTreeMap<TopologyPath, DomainShare>>,
    pub(crate) images: BTreeMap<String, Artifact>,
    pub(crate) possession: Possession,
    pub(crate) record: CampaignRecord,
    pub(crate) attempts: Attempts,
    pub(crate) servers: Servers,
    /// What is counted of the attempts.
    pub(crate) index: Index,
    /// Whether some of its devices follow one another.
    pub(crate) has_units: bool,
    /// Its own rules of fault domains.
    pub(crate) rules: Arc<OwnRules>,
    pub(crate) expires_at: Timestamp,
    /// How long a permit is good for.
    pub(crate) permit_ttl: Duration,
    /// Until when waves are watched that have passed.
    pub(crate) soaks: BTreeMap<usize, Timestamp>,
    /// Until when no wave opens after the last one, where several are open at once.
    pub(crate) paced_until: Option<Timestamp>,
    /// When the last waves were opened, as far as this process knows.
    pub(crate) opened: BTreeMap<usize, Timestamp>,
    /// When a wave that was open beside a failed one is to be judged.
    pub(crate) settles_at: Option<Timestamp>,
    /// Waves whose gate failed and whose devices have to go back.
    pub(crate) sent_back: BTreeSet<u32>,
    pub(crate) is_dirty: bool,
    pub(crate) dirty: BTreeSet<DeviceId>,
}

impl Campaign {
    /// A campaign whose every planned release has its image among `images`.
    pub(crate) fn new(
        manifest: CampaignManifest,
        plan: Plan,
        images: BTreeMap<String, Artifact>,
        expires_at: Timestamp,
        permit_ttl: Duration,
        names: &mut Names,
    ) -> Self {
        let record = CampaignRecord {
            id: manifest.id.clone(),
            state: CampaignState::Scheduled,
            gates: Vec::new(),
            last_permit: 0,
            reason: "published with both thresholds, not started".to_owned(),
            decisions: Vec::new(),
            rollbacks: Vec::new(),
            approvals: Vec::new(),
            webhooks: Vec::new(),
            resumable: false,
            validated: BTreeMap::new(),
        };
        let (mut possession, mut seats) = (Possession::default(), Seats::default());
        let mut befores = Vec::new();
        let mut attempt = |wave: usize, mut planned: PlannedDevice| {
            if let Some(before) = planned.after.take() {
                befores.push((planned.device.clone(), before));
            }
            let attempt = seats.attempt(wave, planned, &images);
            possession.need(&attempt.stand.seat.node, &attempt.stand.course.needs);
            attempt
        };
        let waves = plan.waves.into_iter().enumerate();
        let mut attempts = Attempts::default();
        for (wave, planned) in waves {
            attempts.add_wave(planned.into_iter().map(|planned| attempt(wave, planned)), names);
        }
        attempts.find_by_name();
        for (device, before) in &befores {
            if let (Some(place), Some(before)) = (attempts.place(device), attempts.place(before)) {
                attempts.change(place, |attempt| Arc::make_mut(&mut attempt.own).after = Some(before));
                attempts.change(before, |attempt| Arc::make_mut(&mut attempt.own).next = Some(place));
            }
        }
        let has_units = !befores.is_empty();
        let dirty = BTreeSet::new();
        let servers = Servers::new(plan.servers, attempts.len(), |device| attempts.place(device));
        Self {
            manifest,
            attempts,
            held: plan.held,
            servers,
            shares: plan.domains,
            images,
            possession,
            record,
            index: Index::default(),
            has_units,
            rules: Arc::default(),
            expires_at,
            permit_ttl,
            soaks: BTreeMap::new(),
            paced_until: None,
            opened: BTreeMap::new(),
            settles_at: None,
            sent_back: BTreeSet::new(),
            is_dirty: true,
            dirty,
        }
    }

    /// How long after its start, or after the last word of its node, an attempt is given up. Back it is one step.
    pub(crate) fn limit(&self, attempt: &Attempt) -> Duration {
        let steps = match attempt.record.kind {
            PermitKind::Update => attempt.stand.course.steps().map_or(1, |(steps, _)| steps),
            PermitKind::Rollback => 1,
        };
        self.manifest.worst_case_of(steps) + self.permit_ttl
    }

    /// Puts stored records in place of the fresh ones; what they do not name stays fresh.
    pub(crate) fn restore(
        &mut self,
        record: CampaignRecord,
        attempts: Vec<AttemptRecord>,
        possession: Vec<PossessionRecord>,
        now: Timestamp,
    ) {
        self.is_dirty = false;
        self.record = record;
        for stored in attempts {
            if let Some(place) = self.attempts.place(&stored.device) {
                self.attempts.change(place, |attempt| {
                    attempt.record = stored;
                    (attempt.permitted_at, attempt.awaited_since) = (now, now);
                    attempt.started_at = attempt.has_started().then_some(now);
                });
            }
        }
        for place in 0..self.attempts.end_of_first_waves(usize::MAX) {
            if let Some(pause) = self.pause_of(&self.attempts.at(place)) {
                self.attempts
                    .change(place, |attempt| attempt.pauses_until = Some(now + pause));
            }
        }
        self.restore_proofs(possession);
        self.opened_now(now);
    }

    /// Ends attempts on the coordinator's own word.
    pub(crate) fn presume(&mut self, devices: &[DeviceId], state: AttemptState, reason: &str) {
        for device in devices {
            self.edit(device, |attempt| {
                if state == AttemptState::Cancelled && attempt.gives_up(reason) {
                    return;
                }
                attempt.record.state = state;
                attempt.record.reason = reason.to_owned();
                attempt.record.failure = (state == AttemptState::Quarantined).then_some(FailureClass::Unreachable);
                attempt.record.presumed = true;
            });
        }
    }

    pub(crate) fn select(&self, pick: impl Fn(&Attempt) -> bool) -> Vec<DeviceId> {
        let picked = self.attempts.iter().filter(|attempt| pick(attempt));
        picked.map(|attempt| attempt.record.device.clone()).collect()
    }

    pub(crate) fn enter(&mut self, state: CampaignState, reason: impl Into<String>) {
        let reason = reason.into();
        if self.record.state != state || self.record.reason != reason {
            self.record.state = state;
            self.record.reason = reason;
            self.is_dirty = true;
            self.wake_all();
        }
    }

    pub(crate) fn decide(&mut self, subject: String, finding: String, evidence: Vec<String>) {
        self.record.decisions.push(Explanation {
            subject,
            finding,
            evidence,
        });
        self.is_dirty = true;
    }

    /// Stops what has not begun.
    pub(crate) fn cancel_untouched(&mut self, reason: &str) {
        if self.untouched() > 0 {
            let untouched = self.select(Attempt::is_untouched);
            self.presume(&untouched, AttemptState::Cancelled, reason);
        }
    }

    /// Takes a report into account. The latest sequence counts; a later phase does not listen to an earlier one.
    pub(crate) fn report(&mut self, now: Timestamp, report: &AttemptReport) {
        let Some(attempt) = self.attempts.get(&report.device) else {
            return;
        };
        let known = &attempt.record;
        if report.sequence <= known.report_sequence {
            return;
        }
        let speaks_of_this_phase = report.kind == known.kind && !known.is_of_earlier_attempt(report);
        let may_change =
            !known.state.is_terminal() || (known.presumed && (known.permit.is_some() || report.state.is_terminal()));
        self.edit(&report.device, |attempt| {
            let known = &mut attempt.record;
            known.report_sequence = report.sequence;
            if !(speaks_of_this_phase && may_change) {
                return;
            }
            known.state = report.state;
            if report.kind == PermitKind::Update {
                // The report on the attempt before stays evidence until this one has ended.
                let before = known.end_report.filter(|_| known.last_failed().is_some());
                known.end_report = if report.state.is_terminal() {
                    Some(report.sequence)
                } else {
                    before
                };
                known.health = report.health;
            }
            known.failure = report.failure;
            known.reason = bounded(&report.reason);
            known.version = report.version.as_deref().map(bounded).or_else(|| known.version.take());
            known.presumed = false;
            known.cleared = false;
            if report.state.is_terminal() {
                known.note_end(report);
            }
            if report.kind == PermitKind::Update {
                attempt.note_place(report);
            }
            attempt.started_at = attempt.has_started().then(|| attempt.started_at.unwrap_or(now));
        });
        if speaks_of_this_phase && may_change {
            self.take_up_again(now, report);
        }
    }

    /// Moves the campaign on as far as the facts allow. `is_stuck` says whether quarantined devices alone keep a
    /// device from being permitted.
    pub(crate) fn advance(&mut self, now: Timestamp, is_stuck: impl Fn(&Attempt) -> bool) {
        if matches!(self.record.state, CampaignState::Active | CampaignState::Paused) && now >= self.expires_at {
            self.expire();
        }
        if matches!(self.record.state, CampaignState::Active | CampaignState::Paused) {
            self.cancel_out_of_turn();
        }
        self.look_at_servers(now);
        while self.record.state == CampaignState::Active && self.step(now) {}
        if self.record.state == CampaignState::RollingBack {
            self.judge_beside(now);
            self.judge_failed_waves();
        }
        let is_at_its_end = self.record.state == CampaignState::RollingBack && !self.record.resumable;
        if is_at_its_end || self.record.state.is_terminal() {
            // Also for a device that was reported as busy without a permit and says now that it is not.
            self.cancel_untouched("the campaign ended before it was this device's turn");
        }
        if self.record.state == CampaignState::RollingBack {
            self.finish_rollback(is_stuck);
        }
        // Those who went back may have been the last, and others follow them in their units.
        if self.record.state == CampaignState::Paused {
            self.cancel_out_of_turn();
        }
    }

    /// Whether anything has happened that could move it on. A way back also ends by what other campaigns have quarantined.
    pub(crate) fn may_advance(&mut self, now: Timestamp) -> bool {
        let is_open = matches!(self.record.state, CampaignState::Active | CampaignState::Paused);
        std::mem::take(&mut self.index.is_changed)
            || self.record.state == CampaignState::RollingBack
            || (is_open && now >= self.expires_at)
            || self.waits_until().any(|until| now >= until)
    }

    pub(crate) fn finish(&mut self) {
        let missed = self
            .attempts
            .iter()
            .filter(|attempt| !attempt.ended_well(&self.manifest.gate))
            .count();
        let all = self.attempts.len();
        if let Some((all_are, reason, evidence)) = self.provisioned() {
            let state = match all_are {
                true => CampaignState::Completed,
                false => CampaignState::Failed,
            };
            self.enter(state, reason.clone());
            return self.decide(format!("campaign {}", self.record.id), reason, evidence);
        }
        if missed == 0 {
            self.enter(
                CampaignState::Completed,
                format!("all {all} planned devices ended well"),
            );
        } else {
            self.enter(
                CampaignState::Failed,
                format!("every gate passed, but {missed} of {all} planned devices did not end well"),
            );
        }
        let evidence = self.bad_devices(|_| true);
        self.decide(
            format!("campaign {}", self.record.id),
            self.record.reason.clone(),
            evidence,
        );
    }

    fn expire(&mut self) {
        let left = self.untouched();
        if left == 0 {
            return;
        }
        let reason = format!(
            "the approval expired at {} with {left} devices not started",
            self.manifest.expires
        );
        self.cancel_untouched("the campaign's approval expired");
        self.decide(format!("campaign {}", self.record.id), reason.clone(), Vec::new());
        self.enter(CampaignState::Failed, reason);
    }

    /// Ended badly, with reasons; the first twenty, so that a record stays small.
    pub(crate) fn bad_devices(&self, pick: impl Fn(&Attempt) -> bool) -> Vec<String> {
        let bad: Vec<_> =
            self.select(|a| pick(a) && a.record.state.is_terminal() && !a.ended_well(&self.manifest.gate));
        let mut lines: Vec<_> = bad.iter().take(20).map(|id| self.line(id)).collect();
        if bad.len() > lines.len() {
            lines.push(format!("and {} more", bad.len() - lines.len()));
        }
        lines
    }

    pub(crate) fn line(&self, id: &DeviceId) -> String {
        let AttemptRecord { state, reason, .. } = &self.attempts.known(id).record;
        if reason.is_empty() {
            format!("{id}: {state}")
        } else {
            format!("{id}: {state}: {reason}")
        }
    }
}

pub(crate) fn tally<'a>(attempts: impl Iterator<Item = Look<'a>>) -> BTreeMap<AttemptState, u32> {
    let mut states = BTreeMap::new();
    for attempt in attempts {
        *states.entry(attempt.record.state).or_default() += 1;
    }
    states
}

pub(crate) fn bounded(text: &str) -> String {
    let end = (0..=text.len().min(REASON_BYTES_MAX))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0);
    text[..end].to_owned()
}
