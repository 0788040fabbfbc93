//! Who is asked between two waves: an approver, a webhook and a balancer, who say yes, no or nothing. Once nothing goes wrong
//! any more they say yes.

use firmesh_coordinator_core::{Approval, Input, Question, WebhookAnswer};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    approval::{ApprovalRule, Refused, WaveApproval},
    ids::CampaignId,
    manifest::{CampaignManifest, PoolAct},
};

use super::{Event, MAIN, World, dice::Dice, faults::QUIET_AFTER_MS, scenario::BALANCER};

/// How often they look whether they are asked.
pub(super) const ASK_MS: u64 = 7_000;

/// Has a campaign ask between its waves.
pub(super) fn ask(manifest: &mut CampaignManifest, dice: &mut Dice) {
    if !dice.one_in(4) {
        let after = if dice.one_in(2) { [0].into() } else { [].into() };
        let refused = if dice.one_in(2) {
            Refused::RollBack
        } else {
            Refused::Cancel
        };
        manifest.gate.approval = Some(ApprovalRule { after, refused });
    }
    if !dice.one_in(3) {
        manifest.gate.webhooks = vec!["board".to_owned()];
    }
}

impl World {
    pub(super) fn answer(&mut self) {
        self.after(ASK_MS, Event::Ask);
        let is_quiet = self.now_ms > QUIET_AFTER_MS;
        let questions = self.coordinators[MAIN].engine().map(|engine| engine.questions());
        for question in questions.unwrap_or_default() {
            self.judge_question(&question);
            let act = question.act.as_ref().map(|(act, _)| *act);
            if act == Some(PoolAct::Drain) && self.dice.one_in(2) {
                self.say_again(&question);
            }
            let verdict = match self.dice.below(20) {
                _ if is_quiet => GateVerdict::Pass,
                0 => GateVerdict::Fail,
                1..=4 => GateVerdict::Hold,
                5..=8 => GateVerdict::Unknown,
                _ => GateVerdict::Pass,
            };
            let id = question.campaign.clone();
            if verdict == GateVerdict::Pass {
                // It is so, whatever the coordinator makes of it.
                self.watch.passed.insert((id.clone(), question.wave, act));
            }
            let is_stored = self.command(
                MAIN,
                Input::WebhookAnswered(WebhookAnswer {
                    campaign: question.campaign,
                    wave: question.wave,
                    webhook: question.webhook,
                    act,
                    verdict,
                    reason: "it says so".to_owned(),
                }),
            );
            self.tell(|| format!("the webhook says {verdict:?} of {id} {act:?}: {is_stored}"));
            if is_stored && verdict == GateVerdict::Fail {
                self.watch.stopped(self.now_ms, &id);
            }
        }
        for (id, wave) in self.unanswered() {
            // Now and then nobody is there.
            if !is_quiet && self.dice.one_in(3) {
                continue;
            }
            let approved = is_quiet || !self.dice.one_in(6);
            self.say(&id, wave, approved);
        }
    }

    /// What the balancer said of the switch before comes a second time.
    fn say_again(&mut self, question: &Question) {
        let what = (question.campaign.clone(), question.wave, Some(PoolAct::Switch));
        if self.watch.passed.contains(&what) {
            let (campaign, wave, act) = what;
            self.command(
                MAIN,
                Input::WebhookAnswered(WebhookAnswer {
                    campaign,
                    wave,
                    webhook: BALANCER.to_owned(),
                    act,
                    verdict: GateVerdict::Pass,
                    reason: "it says so".to_owned(),
                }),
            );
        }
    }

    fn unanswered(&self) -> Vec<(CampaignId, u32)> {
        let Some(engine) = self.coordinators[MAIN].engine() else {
            return Vec::new();
        };
        let of_campaign = |id: &CampaignId| {
            let is_open = matches!(engine.state(id), Some(CampaignState::Active | CampaignState::Paused));
            let asked = engine.approvals(id).unwrap_or_default().iter();
            let open = asked.filter(|asked| asked.approved.is_none() && is_open);
            open.map(|asked| (id.clone(), asked.wave)).collect::<Vec<_>>()
        };
        let campaigns = self.scenario.campaigns.iter();
        campaigns
            .flat_map(|approved| of_campaign(&approved.campaign.manifest.id))
            .collect()
    }

    fn say(&mut self, id: &CampaignId, wave: u32, approved: bool) {
        let scenario = std::sync::Arc::clone(&self.scenario);
        let Some(campaign) = scenario.campaign(id) else {
            return;
        };
        let document = self.evidence.say(WaveApproval {
            campaign: id.clone(),
            manifest_sha256: campaign.campaign.manifest_sha256,
            wave,
            approved,
            reason: "looked at it".to_owned(),
            issued: self.coordinators[MAIN].wall(&scenario, self.now_ms),
        });
        // It is signed, whatever the coordinator makes of it.
        self.watch.said.insert((id.clone(), wave, approved));
        let is_stored = self.command(
            MAIN,
            Input::Approve(Approval {
                campaign: id.clone(),
                wave,
                approved,
                reason: "looked at it".to_owned(),
                by: Vec::new(),
                document,
                // Nodes look at the device itself.
                moved_on: [].into(),
            }),
        );
        self.tell(|| format!("an approver says {approved} after wave {wave} of {id}: {is_stored}"));
        if is_stored && !approved {
            self.watch.stopped(self.now_ms, id);
        }
    }
}
