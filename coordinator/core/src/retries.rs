//! Updates that failed and are begun again, where the manifest allows it.
//!
//! Invariants: a device that waits for its next attempt counts as not ended, and as what it was if there is none; the
//! report on how its last attempt ended stays evidence until the next one has ended; when more devices of a wave have failed
//! than the budget is for, none of them is permitted again.

use std::time::Duration;

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    report::{AttemptReport, AttemptState, FailureClass, PermitKind},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    attempts::{Attempt, AttemptRecord},
    campaign::{Campaign, bounded},
};

/// What is kept of a device that failed in a way after which it may be started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryRecord {
    /// Which attempt the device is at, or was at last.
    pub attempt: u32,
    /// Permits up to this one were for earlier attempts.
    pub after_permit: u64,
    /// How the one before ended, while this one has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<FailedAttempt>,
}

/// An attempt that failed: what becomes of the device if no other one follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// How it ended.
    pub state: AttemptState,
    /// In which way it failed.
    pub failure: FailureClass,
    /// Why.
    pub reason: String,
}

impl AttemptRecord {
    /// Which attempt the device is at, or was at last.
    pub(crate) fn attempt(&self) -> u32 {
        self.retry.as_ref().map_or(1, |retry| retry.attempt)
    }

    /// How the attempt before failed, while the present one has not ended.
    pub(crate) fn last_failed(&self) -> Option<&FailedAttempt> {
        self.retry.as_ref()?.last.as_ref()
    }

    /// Whether a report is a late word on an attempt that has failed, and that another one follows.
    pub(crate) fn is_of_earlier_attempt(&self, report: &AttemptReport) -> bool {
        let is_earlier = |retry: &RetryRecord| retry.last.is_some() && report.permit_sequence <= retry.after_permit;
        self.kind == PermitKind::Update && self.retry.as_deref().is_some_and(is_earlier)
    }

    /// An update has ended.
    pub(crate) fn note_end(&mut self, report: &AttemptReport) {
        if let Some(retry) = self.retry.as_mut().filter(|_| self.kind == PermitKind::Update) {
            retry.attempt = retry.attempt.max(report.attempt);
            retry.last = None;
        }
    }
}

impl Attempt {
    /// Ends a device that waits for another attempt, or was permitted one and has not begun it, as what it was. Whether it
    /// did.
    pub(crate) fn gives_up(&mut self, why: &str) -> bool {
        let record = &mut self.record;
        let Some(retry) = record.retry.as_mut().filter(|_| !record.state.is_terminal()) else {
            return false;
        };
        let Some(FailedAttempt { state, failure, reason }) = retry.last.take() else {
            return false;
        };
        retry.attempt -= 1;
        record.state = state;
        record.failure = Some(failure);
        record.reason = bounded(&format!("{reason}; not started again: {why}"));
        record.presumed = true;
        self.pauses_until = None;
        true
    }
}

impl Campaign {
    /// How long a device is to be left alone that waits for its next attempt.
    pub(crate) fn pause_of(&self, attempt: &Attempt) -> Option<Duration> {
        let FailedAttempt { state, failure, .. } = attempt.record.last_failed().filter(|_| attempt.is_untouched())?;
        let ended = attempt.record.attempt() - 1;
        self.manifest
            .retry_pause(attempt.stand.course.can_go_back(), *state, Some(*failure), ended)
    }

    /// How often a device may be started in all whose last attempt failed like this.
    pub(crate) fn starts_after(&self, failure: FailureClass) -> u32 {
        let rules = self.manifest.retries.iter().flat_map(|retries| &retries.rules);
        let times = rules.filter(|rule| rule.class == failure).map(|rule| rule.times);
        1 + times.max().unwrap_or_default()
    }

    /// Has a device started again later whose update has just ended, if the manifest allows it.
    pub(crate) fn take_up_again(&mut self, now: Timestamp, report: &AttemptReport) {
        let Some(place) = self.attempts.place(&report.device) else {
            return;
        };
        let attempt = self.attempts.at(place);
        let (wave, record) = (attempt.stand.wave, &attempt.record);
        let ended = record.attempt().max(report.attempt);
        let is_over = record.kind == PermitKind::Update && record.state.is_terminal();
        let Some(failure) = record.failure.filter(|_| is_over) else {
            return;
        };
        let pause = self
            .manifest
            .retry_pause(attempt.stand.course.can_go_back(), record.state, Some(failure), ended);
        let Some(pause) = pause else {
            return;
        };
        let after_permit = record.permit.unwrap_or_default().max(report.permit_sequence);
        self.edit(&report.device, |attempt| {
            attempt.record.retry = Some(Box::new(RetryRecord {
                attempt: ended,
                after_permit,
                last: None,
            }));
        });
        if self.budget_is_spent(wave) {
            let budget = self.retry_budget(wave);
            let why = format!(
                "more than {budget} devices of wave {wave} have failed, no failure is taken for bad luck any more"
            );
            for device in self.waiting_again(wave) {
                self.presume(&[device], AttemptState::Cancelled, &why);
            }
        } else if self.may_take_up(now, &self.attempts.at(place)) {
            self.edit(&report.device, |attempt| {
                let record = &mut attempt.record;
                let failed = FailedAttempt {
                    state: record.state,
                    failure,
                    reason: record.reason.clone(),
                };
                record.retry = Some(Box::new(RetryRecord {
                    attempt: ended.saturating_add(1),
                    after_permit,
                    last: Some(failed),
                }));
                record.reason = bounded(&format!("attempt {ended} ended as {}: {}", record.state, record.reason));
                record.state = AttemptState::Pending;
                record.failure = None;
                record.permit = None;
                attempt.pauses_until = Some(now + pause);
            });
        }
    }

    /// How many devices of a wave may be begun again.
    fn retry_budget(&self, wave: u32) -> usize {
        self.manifest.retry_budget(self.attempts.of_wave(wave as usize).len())
    }

    /// Whether more devices of a wave have failed than may be begun again: then none of them is.
    pub(crate) fn budget_is_spent(&self, wave: u32) -> bool {
        self.unlucky(wave) > self.retry_budget(wave)
    }

    /// Whether a device that failed can be permitted again at all.
    fn may_take_up(&self, now: Timestamp, attempt: &Attempt) -> bool {
        let goes_on = match self.record.state {
            CampaignState::Active | CampaignState::Paused => true,
            CampaignState::RollingBack => self.record.resumable,
            _ => false,
        };
        let gate = self.record.gates.get(attempt.stand.wave as usize);
        goes_on && now < self.expires_at && gate != Some(&GateVerdict::Fail) && !attempt.record.ordered_back
    }
}
