//! Between two waves a person is asked, where the manifest says so: after the gate has passed and the wave was watched, and
//! before the next one opens.
//!
//! Invariants: a wave is asked about once, and answered once; without a yes nothing opens that rests on it.

use std::collections::BTreeSet;

use firmesh_protocol::{
    api::CampaignState,
    approval::{Refused, WaveApprovalView},
    ids::{CampaignId, DeviceId, Sha256},
    rollback::RollbackScope,
};

use crate::{
    campaign::Campaign,
    engine::Engine,
    input::{Approval, InputError, Rollback},
};

impl Engine {
    /// What approvers were asked between the waves of a campaign, and what they said.
    #[must_use]
    pub fn approvals(&self, id: &CampaignId) -> Option<&[WaveApprovalView]> {
        Some(&self.find(id)?.record.approvals)
    }

    /// The approver's signed yes that the wave after this one rests on, if it takes one.
    #[must_use]
    pub fn approval_of(&self, id: &CampaignId, wave: u32) -> Option<Sha256> {
        self.find(id)?.asked(wave)?.document
    }
}

impl Campaign {
    fn asked(&self, wave: u32) -> Option<&WaveApprovalView> {
        self.record.approvals.iter().find(|asked| asked.wave == wave)
    }

    /// Whether somebody was asked about a wave: a person, or a webhook before him.
    pub(crate) fn has_asked(&self, wave: usize) -> bool {
        let has_asked = |wave| self.asked(wave).is_some() || self.has_asked_webhooks(wave);
        u32::try_from(wave).is_ok_and(has_asked)
    }

    /// The waves that answers are awaited about.
    fn unanswered(&self) -> Vec<u32> {
        let open = self.record.approvals.iter().filter(|asked| asked.approved.is_none());
        open.map(|asked| asked.wave).collect()
    }

    /// For whom a wave that has passed waits, if an approver has to say yes. Asks if nobody was.
    pub(crate) fn waits_for_approver(&mut self, wave: u32) -> Option<String> {
        let rule = self.manifest.gate.approval.as_ref();
        if !rule.is_some_and(|rule| rule.asks_after(wave)) {
            return None;
        }
        if let Some(asked) = self.asked(wave) {
            if asked.approved == Some(true) {
                return None;
            }
        } else {
            self.record.approvals.push(WaveApprovalView {
                wave,
                approved: None,
                reason: String::new(),
                by: Vec::new(),
                document: None,
            });
            let evidence = vec!["the manifest asks for an approver's signed yes before the next wave".to_owned()];
            self.decide(format!("wave {wave}"), "an approver is asked".to_owned(), evidence);
        }
        Some(format!(
            "wave {wave} passed and waits for an approver: `firmesh campaign approve` or `refuse`"
        ))
    }

    fn said_yes_by_another(&self, wave: u32, document: Sha256) -> bool {
        let mut asked = self.record.approvals.iter();
        asked.any(|asked| asked.wave == wave && asked.approved == Some(true) && asked.document != Some(document))
    }

    /// Another signature takes the place of the one that stood for a wave.
    fn say_again(&mut self, wave: u32, reason: String, by: Vec<String>, document: Sha256) -> Result<(), InputError> {
        let answered = self.record.approvals.iter_mut().filter(|asked| asked.wave == wave);
        for asked in answered {
            asked.by.clone_from(&by);
            asked.document = Some(document);
        }
        self.is_dirty = true;
        let mut evidence = vec![reason];
        evidence.extend(by.iter().map(|key| format!("signed with {key}")));
        self.decide(format!("wave {wave}"), "approved again".to_owned(), evidence);
        Ok(())
    }

    /// Takes an answer.
    pub(crate) fn answer(&mut self, said: Approval) -> Result<(), InputError> {
        let Approval {
            wave,
            approved,
            reason,
            by,
            document,
            moved_on,
            ..
        } = said;
        let unanswered = self.unanswered();
        match unanswered.first() {
            Some(_) if unanswered.contains(&wave) => {}
            // Nodes believe only keys that are in force: another approver may say the same when one was replaced.
            _ if approved && self.said_yes_by_another(wave, document) => {
                return self.say_again(wave, reason, by, document);
            }
            Some(asked) => {
                let why = format!("wave {asked} waits for an answer, wave {wave} does not");
                return Err(InputError::NothingToApprove(why));
            }
            None => {
                let why = format!("nobody is asked about wave {wave}: {}", self.record.reason);
                return Err(InputError::NothingToApprove(why));
            }
        }
        for asked in self.record.approvals.iter_mut().filter(|asked| asked.wave == wave) {
            asked.approved = Some(approved);
            asked.reason.clone_from(&reason);
            asked.by.clone_from(&by);
            asked.document = Some(document);
        }
        let finding = if approved { "approved" } else { "refused" };
        let mut evidence = vec![reason.clone()];
        evidence.extend(by.iter().map(|key| format!("signed with {key}")));
        self.decide(format!("wave {wave}"), finding.to_owned(), evidence);
        if !approved {
            self.end_refused(wave, &reason, document, moved_on);
        }
        Ok(())
    }

    fn end_refused(&mut self, wave: u32, reason: &str, document: Sha256, moved_on: BTreeSet<DeviceId>) {
        let why = format!("an approver refused to go on after wave {wave}: {reason}");
        let rule = self.manifest.gate.approval.as_ref();
        let goes_back = rule.is_some_and(|rule| rule.refused == Refused::RollBack);
        let rollback = Rollback {
            campaign: self.record.id.clone(),
            scope: RollbackScope::default(),
            reason: why.clone(),
            order: Some(document),
            moved_on,
        };
        // Perhaps nobody runs the new version, or nothing leads back from it: then it only ends.
        if !goes_back || self.send_back(rollback).is_err() {
            self.cancel_untouched("an approver refused to go on");
            self.enter(CampaignState::Cancelled, why);
        }
    }
}
