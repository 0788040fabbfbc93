//! Between two waves outside systems are asked, where the manifest names them: after the gate has passed and the wave was
//! watched, and before a person is asked. Who they are and how they are reached is the shell's.
//!
//! Invariants: only a pass lets the next wave open, and it stands; what is not known holds; a fail ends the campaign. So an
//! answer can hold a campaign up or stop it, and never allow what its gates do not.

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    ids::CampaignId,
};
use serde::{Deserialize, Serialize};

use crate::{
    campaign::{Campaign, bounded},
    engine::{Engine, InputError},
};

/// What an outside system has said of a wave, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookRecord {
    /// The wave that has passed its gate.
    pub wave: u32,
    /// The name of the webhook.
    pub webhook: String,
    /// What it said last; `unknown` if it said nothing, or nobody could read it.
    pub verdict: GateVerdict,
    /// Why.
    pub reason: String,
}

/// A question to an outside system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The campaign.
    pub campaign: CampaignId,
    /// The wave that has passed its gate, counted from 0.
    pub wave: u32,
    /// The name of the webhook.
    pub webhook: String,
    /// Devices of the wave.
    pub devices: u32,
    /// What its gate rests on.
    pub evidence: Vec<String>,
}

/// An answer, or that there was none.
#[derive(Debug, Clone)]
pub struct WebhookAnswer {
    /// The campaign.
    pub campaign: CampaignId,
    /// The wave that was asked about.
    pub wave: u32,
    /// The name of the webhook.
    pub webhook: String,
    /// What it said; `unknown` if nothing.
    pub verdict: GateVerdict,
    /// Why.
    pub reason: String,
}

impl Engine {
    /// Who is to be asked now, and about what; again and again until the question is gone.
    #[must_use]
    pub fn questions(&self) -> Vec<Question> {
        let active = self
            .all()
            .filter(|campaign| campaign.record.state == CampaignState::Active);
        active.flat_map(Campaign::questions).collect()
    }
}

impl Campaign {
    fn questions(&self) -> impl Iterator<Item = Question> {
        let open = self
            .record
            .webhooks
            .iter()
            .filter(|asked| asked.verdict != GateVerdict::Pass);
        open.map(|asked| {
            let subject = format!("wave {}", asked.wave);
            let mut decisions = self.record.decisions.iter();
            let passed = decisions.rfind(|found| found.subject == subject && found.finding == GATE_PASSED);
            let devices = self.plan.waves.get(asked.wave as usize).map_or(0, Vec::len);
            Question {
                campaign: self.record.id.clone(),
                wave: asked.wave,
                webhook: asked.webhook.clone(),
                devices: u32::try_from(devices).unwrap_or(u32::MAX),
                evidence: passed.map_or_else(Vec::new, |found| found.evidence.clone()),
            }
        })
    }

    /// Whether webhooks were asked about a wave.
    pub(crate) fn has_asked_webhooks(&self, wave: u32) -> bool {
        self.record.webhooks.iter().any(|asked| asked.wave == wave)
    }

    /// Whether the wave after this one may open as far as webhooks are asked. Has them asked if they were not.
    pub(crate) fn webhooks_pass(&mut self, wave: u32) -> bool {
        if self.manifest.gate.webhooks.is_empty() {
            return true;
        }
        if !self.has_asked_webhooks(wave) {
            let names = self.manifest.gate.webhooks.clone();
            self.decide(format!("wave {wave}"), "webhooks are asked".to_owned(), names.clone());
            self.record
                .webhooks
                .extend(names.into_iter().map(|webhook| WebhookRecord {
                    wave,
                    webhook,
                    verdict: GateVerdict::Unknown,
                    reason: String::new(),
                }));
        }
        let is_open = |asked: &&WebhookRecord| asked.wave == wave && asked.verdict != GateVerdict::Pass;
        let Some(open) = self.record.webhooks.iter().find(is_open) else {
            return true;
        };
        let WebhookRecord { webhook, reason, .. } = open;
        let how = match (open.verdict, reason.is_empty()) {
            (GateVerdict::Unknown, true) => "which was not asked yet".to_owned(),
            (GateVerdict::Unknown, false) => format!("which has given no answer: {reason}"),
            (_, true) => "which says hold".to_owned(),
            (_, false) => format!("which says hold: {reason}"),
        };
        let reason = format!("wave {wave} passed and waits for the webhook {webhook}, {how}");
        self.enter(CampaignState::Active, reason);
        false
    }

    /// Takes an answer.
    pub(crate) fn hear_webhook(&mut self, said: WebhookAnswer) -> Result<(), InputError> {
        let WebhookAnswer {
            wave,
            webhook,
            verdict,
            reason,
            ..
        } = said;
        let reason = bounded(&reason);
        let is_asked = |asked: &&mut WebhookRecord| {
            (asked.wave, &asked.webhook) == (wave, &webhook) && asked.verdict != GateVerdict::Pass
        };
        let Some(asked) = self.record.webhooks.iter_mut().find(is_asked) else {
            return Err(InputError::NotAsked { wave, webhook });
        };
        if (asked.verdict, &asked.reason) == (verdict, &reason) {
            return Ok(());
        }
        asked.verdict = verdict;
        asked.reason.clone_from(&reason);
        self.is_dirty = true;
        // One that cannot be reached now and then, and says the same again afterwards, is no decision each time.
        if verdict != GateVerdict::Unknown {
            let says = match verdict {
                GateVerdict::Pass => "pass",
                GateVerdict::Fail => "fail",
                GateVerdict::Hold | GateVerdict::Unknown => "hold",
            };
            let (subject, word) = (format!("wave {wave}"), format!("the webhook {webhook} says "));
            let mut said = self.record.decisions.iter().rev();
            let last = said.find(|decision| decision.subject == subject && decision.finding.starts_with(&word));
            let finding = word + says;
            if last.is_none_or(|last| last.finding != finding) {
                self.decide(subject, finding, vec![reason.clone()]);
            }
        }
        if verdict == GateVerdict::Fail {
            let why = format!("the webhook {webhook} refused to go on after wave {wave}: {reason}");
            self.cancel_untouched(&why);
            self.enter(CampaignState::Failed, why);
        }
        Ok(())
    }
}

/// What is decided of a gate that passes.
pub(crate) const GATE_PASSED: &str = "the gate passed";
