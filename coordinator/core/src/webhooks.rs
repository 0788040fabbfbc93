//! Between two waves outside systems are asked, where the manifest names them: after the gate has passed and the wave was
//! watched, and before a person is asked. Who they are and how they are reached is the shell's. Some are not asked for their
//! opinion but to do something with a pool before a wave opens: they are asked until it is done, one after the other.
//!
//! Invariants: only a pass lets the next wave open, and it stands; what is not known holds; a fail ends the campaign. So an
//! answer can hold a campaign up or stop it, and never allow what its gates do not.

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    ids::{CampaignId, TopologyPath},
    manifest::PoolAct,
};
use serde::{Deserialize, Serialize};

use crate::{
    campaign::{Campaign, bounded},
    engine::Engine,
    input::InputError,
};

/// What an outside system has said of a wave, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookRecord {
    /// The wave that has passed its gate; or with something to do, the one that may open when it is done.
    pub wave: u32,
    /// The name of the webhook.
    pub webhook: String,
    /// What it is asked to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<PoolAct>,
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
    /// The wave that has passed its gate, counted from 0; or with something to do, the one that may open when it is done.
    pub wave: u32,
    /// The name of the webhook.
    pub webhook: String,
    /// What it is asked to do, and with which pool.
    pub act: Option<(PoolAct, TopologyPath)>,
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
    /// What it was asked to do.
    pub act: Option<PoolAct>,
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
            let passed = match asked.act {
                Some(_) => asked.wave.checked_sub(1),
                None => Some(asked.wave),
            };
            let subject = passed.map_or_else(String::new, |wave| format!("wave {wave}"));
            let acts = self.manifest.strategy.acts_before(asked.wave).into_iter();
            let act = acts.filter(|(act, ..)| Some(*act) == asked.act);
            let mut decisions = self.record.decisions.iter();
            let passed = decisions.rfind(|found| found.subject == subject && found.finding == GATE_PASSED);
            let devices = self.attempts.of_wave(asked.wave as usize).len();
            Question {
                campaign: self.record.id.clone(),
                wave: asked.wave,
                webhook: asked.webhook.clone(),
                act: act.map(|(act, pool, _)| (act, pool.clone())).next(),
                devices: u32::try_from(devices).unwrap_or(u32::MAX),
                evidence: passed.map_or_else(Vec::new, |found| found.evidence.clone()),
            }
        })
    }

    /// Whether webhooks were asked about a wave, or to do something after it.
    pub(crate) fn has_asked_webhooks(&self, wave: u32) -> bool {
        let is_about = |asked: &WebhookRecord| match asked.act {
            None => asked.wave == wave,
            Some(_) => asked.wave == wave + 1,
        };
        self.record.webhooks.iter().any(is_about)
    }

    /// Whether everything was done that is to be done before a wave opens. Has the next of it done if not.
    pub(crate) fn pools_are_ready(&mut self, wave: u32) -> bool {
        let acts = self.manifest.strategy.acts_before(wave).into_iter();
        let acts: Vec<_> = acts
            .map(|(act, pool, hook)| (act, format!("{} {pool}", act.as_str()), hook.to_owned()))
            .collect();
        for (act, what, webhook) in acts {
            let is_it = |asked: &&WebhookRecord| (asked.wave, asked.act) == (wave, Some(act));
            let asked = match self.record.webhooks.iter().find(is_it) {
                Some(asked) if asked.verdict == GateVerdict::Pass => continue,
                Some(asked) => asked.clone(),
                None => {
                    let asked = WebhookRecord {
                        wave,
                        webhook: webhook.clone(),
                        act: Some(act),
                        verdict: GateVerdict::Unknown,
                        reason: String::new(),
                    };
                    self.decide(
                        format!("wave {wave}"),
                        format!("the webhook {webhook} is asked to {what}"),
                        Vec::new(),
                    );
                    self.record.webhooks.push(asked.clone());
                    asked
                }
            };
            let reason = format!(
                "wave {wave} waits until the webhook {webhook} says that it did {what}, {}",
                how(&asked)
            );
            self.enter(CampaignState::Active, reason);
            return false;
        }
        true
    }

    /// For which webhook a wave that has passed waits, if for one. Has them asked if they were not.
    pub(crate) fn waits_for_webhooks(&mut self, wave: u32) -> Option<String> {
        if self.manifest.gate.webhooks.is_empty() {
            return None;
        }
        let was_asked = |asked: &WebhookRecord| asked.wave == wave && asked.act.is_none();
        if !self.record.webhooks.iter().any(was_asked) {
            let names = self.manifest.gate.webhooks.clone();
            self.decide(format!("wave {wave}"), "webhooks are asked".to_owned(), names.clone());
            self.record
                .webhooks
                .extend(names.into_iter().map(|webhook| WebhookRecord {
                    wave,
                    webhook,
                    act: None,
                    verdict: GateVerdict::Unknown,
                    reason: String::new(),
                }));
        }
        let is_open = |asked: &&WebhookRecord| was_asked(asked) && asked.verdict != GateVerdict::Pass;
        let open = self.record.webhooks.iter().find(is_open)?;
        let webhook = &open.webhook;
        Some(format!(
            "wave {wave} passed and waits for the webhook {webhook}, {}",
            how(open)
        ))
    }

    /// Takes an answer.
    pub(crate) fn hear_webhook(&mut self, said: WebhookAnswer) -> Result<(), InputError> {
        let WebhookAnswer {
            wave,
            webhook,
            act,
            verdict,
            reason,
            ..
        } = said;
        let reason = bounded(&reason);
        let is_asked = |asked: &&mut WebhookRecord| {
            (asked.wave, &asked.webhook, asked.act) == (wave, &webhook, act) && asked.verdict != GateVerdict::Pass
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
            let asked_to = act.map_or_else(String::new, |act| format!(", asked to {},", act.as_str()));
            let (subject, word) = (format!("wave {wave}"), format!("the webhook {webhook}{asked_to} says "));
            let mut said = self.record.decisions.iter().rev();
            let last = said.find(|decision| decision.subject == subject && decision.finding.starts_with(&word));
            let finding = word + says;
            if last.is_none_or(|last| last.finding != finding) {
                self.decide(subject, finding, vec![reason.clone()]);
            }
        }
        if verdict == GateVerdict::Fail {
            let why = match act {
                None => format!("the webhook {webhook} refused to go on after wave {wave}: {reason}"),
                Some(act) => {
                    let act = act.as_str();
                    format!("the webhook {webhook} refused to {act} before wave {wave}: {reason}")
                }
            };
            self.cancel_untouched(&why);
            self.enter(CampaignState::Failed, why);
        }
        Ok(())
    }
}

/// What a webhook has said that did not say pass.
fn how(asked: &WebhookRecord) -> String {
    let reason = &asked.reason;
    match (asked.verdict, reason.is_empty()) {
        (GateVerdict::Unknown, true) => "which was not asked yet".to_owned(),
        (GateVerdict::Unknown, false) => format!("which has given no answer: {reason}"),
        (_, true) => "which says hold".to_owned(),
        (_, false) => format!("which says hold: {reason}"),
    }
}

/// What is decided of a gate that passes, and of one that fails.
pub(crate) const GATE_PASSED: &str = "the gate passed";
pub(crate) const GATE_FAILED: &str = "the gate failed";
