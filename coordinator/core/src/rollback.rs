//! Going back: which devices a failed gate sends, which ones people send, and when all of them are back.
//!
//! The way: what is wrong is found (a gate, or a person), nothing new starts, the devices that run the new version and their
//! previous one are identified, permits send them back under the same caps, what they run is read back, the campaign ends
//! or waits to be resumed, and what became of everybody stands among its decisions.

use std::collections::BTreeSet;

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    ids::{CampaignId, DeviceId, Sha256},
    report::{AttemptState, PermitKind},
    rollback::RollbackView,
};

use crate::{
    attempts::{Attempt, Look},
    campaign::{Campaign, RollbackRecord, tally},
    engine::Engine,
    index::{Light, runs_new},
    input::{InputError, Rollback},
};

/// Rollbacks that people order in one campaign at most: permits name their digests, and nodes fetch every one.
const ROLLBACKS_MAX: usize = 256;

impl Engine {
    /// The approvers' orders that a permit for these devices of a wave rests on, the newest first, and whether it needs
    /// nothing else.
    #[must_use]
    pub fn orders_for(&self, id: &CampaignId, wave: u32, devices: &[DeviceId]) -> (Vec<Sha256>, bool) {
        let Some(campaign) = self.find(id) else {
            return (Vec::new(), false);
        };
        // The newest that has a device: an older one may be signed with keys that do not count any more, and a permit is
        // worth nothing before all that it names is verified.
        let mut left: Vec<_> = devices.iter().collect();
        let mut digests = Vec::new();
        for record in campaign.record.rollbacks.iter().rev() {
            let before = left.len();
            if let Some(digest) = record.order {
                left.retain(|device| !record.scope.has(wave, device));
                digests.extend((left.len() < before).then_some(digest));
            }
        }
        (digests, campaign.are_ordered_back(devices))
    }

    /// What people have sent back, in order.
    #[must_use]
    pub fn rollbacks(&self, id: &CampaignId) -> Option<Vec<RollbackView>> {
        let campaign = self.find(id)?;
        let view = |record: &RollbackRecord| {
            let sent = |attempt: &Look<'_>| {
                attempt.record.ordered_back && record.scope.has(attempt.stand.wave, &attempt.record.device)
            };
            RollbackView {
                scope: record.scope.clone(),
                reason: record.reason.clone(),
                order: record.order,
                states: tally(campaign.attempts.iter().filter(sent)),
            }
        };
        Some(campaign.record.rollbacks.iter().map(view).collect())
    }
}

impl Campaign {
    /// Sends devices back by people's word. In a campaign that still runs, an order about a part of it holds the rest until
    /// somebody resumes it.
    pub(crate) fn send_back(&mut self, rollback: Rollback) -> Result<(), InputError> {
        let Rollback {
            scope,
            reason,
            order,
            moved_on,
            ..
        } = rollback;
        if let Some(stranger) = scope.devices.iter().find(|device| !self.attempts.contains(device)) {
            return Err(InputError::NothingToRollBack(format!(
                "{stranger} is not planned in this campaign"
            )));
        }
        if let Some(wave) = scope.waves.iter().find(|wave| **wave as usize >= self.attempts.waves()) {
            return Err(InputError::NothingToRollBack(format!(
                "the campaign has no wave {wave}"
            )));
        }
        let is_meant = |attempt: &Attempt| scope.has(attempt.stand.wave, &attempt.record.device);
        // Those in flight go back if they end on the new version.
        let may_run_new = |attempt: &Attempt| {
            let updates = attempt.record.kind == PermitKind::Update && attempt.is_running();
            runs_new(attempt) || updates || was_given_up(attempt)
        };
        // Said twice is said once while it is carried out; a new signature may be needed where the approvers' keys have changed.
        let is_under_way = self.record.state == CampaignState::RollingBack;
        let is_news = |attempt: &Attempt| !attempt.record.ordered_back || order.is_some() || !is_under_way;
        let is_known = |record: &RollbackRecord| order.is_some() && record.order == order;
        if self.record.rollbacks.iter().any(is_known) {
            return Err(InputError::NothingToRollBack("this order was given before".to_owned()));
        }
        if self.record.rollbacks.len() >= ROLLBACKS_MAX {
            let why = format!("{ROLLBACKS_MAX} orders were given before; nothing more can be ordered in this campaign");
            return Err(InputError::NothingToRollBack(why));
        }
        let has_moved = |attempt: &Attempt| moved_on.contains(&attempt.record.device);
        let meant = self
            .select(|a| is_meant(a) && may_run_new(a) && is_news(a) && a.stand.course.can_go_back() && !has_moved(a));
        let one_way = self.select(|a| is_meant(a) && runs_new(a) && !a.stand.course.can_go_back());
        let moved = self.select(|a| is_meant(a) && runs_new(a) && a.stand.course.can_go_back() && has_moved(a));
        let kept = |devices: &[_], why: &str| (!devices.is_empty()).then(|| format!("{} {why}", devices.len()));
        let kept = [
            kept(&one_way, "keep the new version because nothing leads back from it"),
            kept(&moved, "run another version by now, and keep it"),
        ];
        let kept: Vec<_> = kept.into_iter().flatten().collect();
        if meant.is_empty() {
            let why = match kept.is_empty() {
                true => format!("no more device of {scope} runs the new version or is on its way to it"),
                false => kept.join("; "),
            };
            return Err(InputError::NothingToRollBack(why));
        }
        self.check_units(&meant, |next| {
            may_run_new(next) && next.stand.course.can_go_back() && !has_moved(next)
        })?;
        let is_under_way = match self.record.state {
            CampaignState::Active | CampaignState::Paused => true,
            CampaignState::RollingBack => self.record.resumable,
            _ => false,
        };
        self.record.resumable = is_under_way && !scope.is_everybody();
        if self.record.resumable {
            let untouched = self.select(|a| is_meant(a) && a.is_untouched());
            let reason = "people sent it back before it was its turn";
            self.presume(&untouched, AttemptState::Cancelled, reason);
        }
        for device in &meant {
            self.edit(device, |attempt| {
                if was_given_up(attempt) {
                    attempt.record.kind = PermitKind::Update;
                    let halfway = attempt.record.halfway.as_ref();
                    attempt.record.state = halfway.map_or(AttemptState::Success, |failed| failed.state);
                    attempt.record.permit = None;
                    attempt.record.presumed = false;
                }
                attempt.record.ordered_back = true;
            });
        }
        let going = format!("{} devices of {scope} go back", meant.len());
        let mut evidence = vec![reason.clone()];
        evidence.extend(order.map(|digest| format!("by the approvers' order {digest}")));
        evidence.extend(kept);
        evidence.extend(one_way.iter().chain(&moved).take(20).map(|id| self.line(id)));
        self.decide(format!("campaign {}", self.record.id), going.clone(), evidence);
        self.enter(CampaignState::RollingBack, format!("{going}: {reason}"));
        self.record.rollbacks.push(RollbackRecord { scope, reason, order });
        self.is_dirty = true;
        Ok(())
    }

    /// Refuses to send a device back while the one after it in its unit stays on the new version, or on its way to it.
    fn check_units(&self, meant: &[DeviceId], may_stay: impl Fn(&Attempt) -> bool) -> Result<(), InputError> {
        if !self.has_units {
            return Ok(());
        }
        let meant: BTreeSet<_> = meant.iter().collect();
        let stays =
            |next: &Attempt| may_stay(next) && !next.record.ordered_back && !meant.contains(&next.record.device);
        for device in &meant {
            if let Some(next) = self
                .later_in_unit(&self.attempts.known(device))
                .find(|next| stays(next))
            {
                let next = &next.record.device;
                let why = format!("{next} comes after {device} in its unit: send both back, or the whole wave");
                return Err(InputError::NothingToRollBack(why));
            }
        }
        Ok(())
    }

    /// Whether people have sent all of these back.
    pub(crate) fn are_ordered_back(&self, devices: &[DeviceId]) -> bool {
        let ordered = |device: &DeviceId| self.attempts.get(device).is_some_and(|a| a.record.ordered_back);
        devices.iter().all(ordered)
    }

    /// Which failed waves go back: those that fail by what nodes have signed, where whoever has said nothing counts as lost.
    /// A wave that failed because its devices were silent may turn out to have done well, once they speak: then no node
    /// would follow, and what has not gone back stays.
    pub(crate) fn judge_failed_waves(&mut self) {
        let is_asked = self.manifest.automatic_rollback;
        let failed = (0..)
            .zip(self.record.gates.clone())
            .filter(|(_, gate)| is_asked && *gate == GateVerdict::Fail);
        let fails = |wave: &u32| self.judged(*wave as usize, Light::Silent) == GateVerdict::Fail;
        let sent_back = failed.map(|(wave, _)| wave).filter(fails).collect();
        if self.sent_back != sent_back {
            self.sent_back = sent_back;
            self.look_at_updated();
        }
    }

    /// Whether devices of a wave are to go back.
    pub(crate) fn goes_back(&self, wave: u32) -> bool {
        self.sent_back.contains(&wave)
    }

    fn is_sent_back(&self, attempt: &Attempt) -> bool {
        let failed = self.record.gates.get(attempt.stand.wave as usize) == Some(&GateVerdict::Fail);
        (failed && self.manifest.automatic_rollback) || attempt.record.ordered_back
    }

    /// Whether the device runs the new version, or one on the way, and goes back, by its wave's gate or by an order.
    pub(crate) fn must_go_back(&self, attempt: &Attempt) -> bool {
        runs_new(attempt)
            && attempt.stand.course.can_go_back()
            && (attempt.record.ordered_back || self.goes_back(attempt.stand.wave))
    }

    /// Ends a rollback when nobody is on his way any more. `is_stuck` says whether quarantined devices alone keep a device
    /// from being permitted.
    pub(crate) fn finish_rollback(&mut self, is_stuck: impl Fn(&Attempt) -> bool) {
        // Those of a part that goes on are waited for by themselves: who is neither on his way back nor to go back may
        // have a permit that waits for somebody to resume the campaign.
        let counts = |attempt: &Attempt| {
            let is_meant = attempt.record.ordered_back || attempt.record.kind == PermitKind::Rollback;
            is_meant || !self.record.resumable
        };
        // Whoever waits for a stuck device of its own unit is stuck with it.
        let waits_in_vain = |attempt: &Attempt| {
            let mut later = self.later_in_unit(attempt).filter(|later| self.must_go_back(later));
            is_stuck(attempt) || later.any(|later| is_stuck(&later))
        };
        let is_undecided = self.settles_at.is_some();
        if is_undecided
            || self.running().any(|attempt| counts(&attempt))
            || self.going_back().any(|attempt| !waits_in_vain(&attempt))
        {
            return;
        }
        let is_back = |state| {
            matches!(
                state,
                AttemptState::RolledBack | AttemptState::Success | AttemptState::Skipped
            )
        };
        let sent_back = |attempt: &Attempt| attempt.record.kind == PermitKind::Rollback;
        let back = self.select(|a| sent_back(a) && is_back(a.record.state));
        let lost = self.select(|a| (sent_back(a) && !is_back(a.record.state)) || self.must_go_back(a));
        let one_way = self.select(|a| {
            self.is_sent_back(a) && !a.stand.course.can_go_back() && a.record.state == AttemptState::Success
        });
        let turned_out_well = |a: &Attempt| {
            let failed = self.is_sent_back(a) && !a.record.ordered_back;
            failed
                && !self.goes_back(a.stand.wave)
                && a.stand.course.can_go_back()
                && a.record.kind == PermitKind::Update
        };
        let kept = self.select(|a| turned_out_well(a) && a.record.state == AttemptState::Success);
        // Waves that were open beside the one that failed.
        let has_failed = self.record.gates.contains(&GateVerdict::Fail);
        let is_undecided = |gate: &GateVerdict| matches!(gate, GateVerdict::Unknown | GateVerdict::Hold);
        let undecided = self.select(|a| {
            let gate = self.record.gates.get(a.stand.wave as usize);
            has_failed && runs_new(a) && !a.record.ordered_back && gate.is_some_and(is_undecided)
        });
        let mut reason = format!("{} devices went back", back.len());
        if !kept.is_empty() {
            reason += &format!(
                ", {} keep the new version because their wave did well after all",
                kept.len()
            );
        }
        if !undecided.is_empty() {
            reason += &format!(
                ", {} keep the new version because the gates of their waves have neither passed nor failed",
                undecided.len()
            );
        }
        if !lost.is_empty() {
            reason += &format!(", {} could not", lost.len());
        }
        if !one_way.is_empty() {
            reason += &format!(
                ", {} keep the new version because nothing leads back from it",
                one_way.len()
            );
        }
        let evidence = lost.iter().chain(&one_way).take(20).map(|id| self.line(id)).collect();
        let reached_goal = lost.is_empty() && (one_way.is_empty() || !back.is_empty());
        let state = match (self.record.resumable, reached_goal) {
            (true, _) => CampaignState::Paused,
            (false, true) => CampaignState::RolledBack,
            (false, false) => CampaignState::Failed,
        };
        if std::mem::take(&mut self.record.resumable) {
            reason += ": `resume` goes on with the others, `cancel` ends the campaign";
        }
        self.decide(format!("campaign {}", self.record.id), reason.clone(), evidence);
        self.enter(state, reason);
    }
}

/// Whether the device was to go back, and its node has not taken that up: it runs the new version still.
fn was_given_up(attempt: &Attempt) -> bool {
    let record = &attempt.record;
    record.kind == PermitKind::Rollback && record.state == AttemptState::Cancelled && record.presumed
}
