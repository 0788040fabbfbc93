//! The promises about what outside systems and people have a say in: webhooks and balancers between two waves, approvers'
//! orders to go back, and what the budget of a wave says of beginning it again. Judged where a coordinator asks, and where
//! it permits.
//!
//! A coordinator that lies can leave webhooks and balancers out: nodes do not know what they say. So that is asked of sound
//! ones only.

use std::collections::BTreeSet;

use firmesh_coordinator_core::Question;
use firmesh_protocol::{
    api::GateVerdict,
    ids::DeviceId,
    manifest::{CampaignManifest, PoolAct, Strategy},
    report::{Permit, PermitKind},
};

use super::{
    MAIN, World,
    judge::{retry_budget, waves_at_once},
    promises::Promise,
    scenario::Approved,
};

impl World {
    /// A webhook is asked.
    pub(super) fn judge_question(&mut self, question: &Question) {
        let (id, wave) = (&question.campaign, question.wave);
        let Some((act, pool)) = question.act.as_ref().filter(|_| self.watch.coordinator_is_sound) else {
            return;
        };
        let is_switched = self.watch.passed.contains(&(id.clone(), wave, Some(PoolAct::Switch)));
        let problem = match act {
            PoolAct::Drain if wave > 0 && !is_switched => Some("it serves still".to_owned()),
            PoolAct::Drain => None,
            PoolAct::Switch => {
                let engine = self.coordinators[MAIN].engine();
                let views = engine.and_then(|engine| engine.attempts(id)).unwrap_or_default();
                let mut views = views.into_iter();
                let busy = views.find(|view| view.wave + 1 == wave && !view.state.is_terminal());
                busy.map(|view| format!("{} of it is {}", view.device, view.state))
            }
        };
        if let Some(problem) = problem {
            let how = format!("{id} has {pool} {}ed before wave {wave}: {problem}", act.as_str());
            self.watch.blame(self.now_ms, Promise::Gate, how);
        }
    }

    /// Why an update permit should not have been issued yet, by what webhooks have said and balancers have done.
    pub(super) fn without_hooks(&self, permit: &Permit, approved: &Approved) -> Option<String> {
        if permit.kind != PermitKind::Update || !self.watch.coordinator_is_sound {
            return None;
        }
        let (manifest, wave) = (&approved.campaign.manifest, permit.wave);
        let has_passed = |wave, act| self.watch.passed.contains(&(manifest.id.clone(), wave, act));
        let mut before = 0..(wave + 1).saturating_sub(waves_at_once(manifest));
        let unasked = before.find(|before| !manifest.gate.webhooks.is_empty() && !has_passed(*before, None));
        if let Some(before) = unasked {
            return Some(format!("no webhook has said yes after wave {before}"));
        }
        let before = wave.checked_sub(1);
        let has_pools = matches!(manifest.strategy, Strategy::BlueGreen { .. });
        let acts = before.map(|_| PoolAct::Switch).into_iter().chain([PoolAct::Drain]);
        let undone = acts.filter(|_| has_pools).find(|act| !has_passed(wave, Some(*act)));
        undone.map(|act| format!("nobody has said that it did {} before wave {wave}", act.as_str()))
    }

    /// Why devices should not be permitted again, if more of their wave have failed than its budget is for.
    pub(super) fn beyond_budget(&self, permit: &Permit, approved: &Approved) -> Option<String> {
        if permit.attempt < 2 || permit.kind != PermitKind::Update || !self.watch.coordinator_is_sound {
            return None;
        }
        let devices = approved.campaign.plan.waves.get(permit.wave as usize)?.len();
        let reports = self.coordinators[MAIN].reports(&permit.campaign);
        let ends = reports.iter().filter(|report| {
            (report.kind, report.wave) == (PermitKind::Update, permit.wave) && report.state.is_terminal()
        });
        let unlucky: BTreeSet<_> = ends
            .filter(|report| report.attempt > 1 || self.may_go_on(report))
            .map(|report| &report.device)
            .collect();
        let (unlucky, budget) = (unlucky.len(), retry_budget(&approved.campaign.manifest, devices));
        (unlucky > budget).then(|| {
            format!(
                "attempt {} is permitted, {unlucky} of the wave have failed, the budget is {budget}",
                permit.attempt
            )
        })
    }

    /// Why nothing should start: the campaign was not going forward when this was decided.
    pub(super) fn not_going_forward(&self, c: usize, permit: &Permit) -> Option<String> {
        if permit.kind != PermitKind::Update || !self.watch.coordinator_is_sound {
            return None;
        }
        let key = (permit.campaign.clone(), permit.sequence);
        let state = self.coordinators[c].halted.get(&key)?;
        Some(format!("it is {state:?}"))
    }

    /// Why nodes cannot follow a rollback permit: its wave has not failed, and it names nobody's word that has its devices.
    pub(super) fn names_no_order(&self, c: usize, permit: &Permit, approved: &Approved) -> Option<String> {
        let manifest = &approved.campaign.manifest;
        if permit.kind == PermitKind::Update || manifest.operator_rollback || !self.watch.coordinator_is_sound {
            return None;
        }
        let waves = self.coordinators[c].engine()?.campaign(&manifest.id)?.waves;
        let mut failed = waves.iter().filter(|view| view.gate == GateVerdict::Fail);
        let is_refused = self.evidence.approvals(permit).iter().any(|said| !said.approved);
        if is_refused || failed.any(|view| view.wave == permit.wave) {
            return None;
        }
        let orders = self.evidence.orders(permit);
        let is_named = |device: &DeviceId| {
            let mut orders = orders.iter().filter(|order| order.campaign == manifest.id);
            orders.any(|order| order.scope.has(permit.wave, device))
        };
        let unnamed = permit.devices.iter().find(|device| !is_named(device));
        unnamed.map(|device| format!("{device} is to go back, and no order that has it is named"))
    }

    /// Whether approvers have ordered a device back.
    pub(super) fn is_ordered(&self, manifest: &CampaignManifest, wave: u32, device: &DeviceId) -> bool {
        let mut orders = self.watch.ordered.iter().filter(|(id, _)| *id == manifest.id);
        orders.any(|(_, scope)| {
            let is_everybody = scope.waves.is_empty() && scope.devices.is_empty();
            is_everybody || scope.waves.contains(&wave) || scope.devices.contains(device)
        })
    }
}
