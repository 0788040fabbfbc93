//! What operators order, and what one does who finds a campaign waiting for him; and when a run is over.

use std::collections::BTreeSet;

use firmesh_coordinator_core::{Closing, Input, Rollback};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    ids::CampaignId,
    rollback::{RollbackOrder, RollbackScope},
};

use super::{Event, MAIN, OLD, Promise, World, faults::QUIET_AFTER_MS};

/// How long before an order that met nobody is repeated.
const ORDER_AGAIN_MS: u64 = 5_000;
/// How often the world looks whether everything is over.
pub(super) const REVIEW_MS: u64 = 30_000;
/// How long an operator leaves alone what has come to a stand.
const PATIENCE_MS: u64 = 3_600_000;
/// How long everything is looked at when the last lie is told.
const AFTER_LIES_MS: u64 = 600_000;
/// By when everything must be over, without windows and with.
const ENDS_MS: u64 = 10 * 3_600_000;
const ENDS_WITH_WINDOWS_MS: u64 = 5 * 24 * 3_600_000;

#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Start(usize),
    Pause(usize, u64),
    Resume(usize),
    Cancel(usize),
    /// A wave, or a device, or everybody.
    SendBack(usize, Option<u32>, Option<usize>),
    /// An attempt, or everything.
    Close(usize, Option<usize>),
}

impl World {
    pub(super) fn order(&mut self, order: Order) {
        let (Order::Start(number)
        | Order::Pause(number, _)
        | Order::Resume(number)
        | Order::Cancel(number)
        | Order::SendBack(number, ..)
        | Order::Close(number, _)) = order;
        let id = self.scenario.campaigns[number].campaign.manifest.id.clone();
        if !self.coordinators[MAIN].is_up() {
            return self.after(ORDER_AGAIN_MS, Event::Order(order));
        }
        let before = self.state(&id);
        if matches!(order, Order::Resume(_)) {
            // Its permits come with it.
            self.watch.paused(&id, false);
        }
        let input = match order {
            Order::Start(_) => Input::Start(id.clone()),
            Order::Pause(..) => Input::Pause(id.clone()),
            Order::Resume(_) => Input::Resume(id.clone()),
            Order::Cancel(_) => Input::Cancel(id.clone()),
            Order::Close(_, device) => Input::Close(Closing {
                campaign: id.clone(),
                device: device.map(|d| self.scenario.devices[d].id.clone()),
                reason: "nobody says how it ended".to_owned(),
            }),
            Order::SendBack(_, wave, device) => Input::RollBack(self.sent_back_by_order(&id, wave, device)),
        };
        let is_stored = self.command(MAIN, input);
        self.tell(|| format!("{order:?}: {is_stored}"));
        if !is_stored {
            self.note_paused();
        }
        match order {
            Order::Cancel(_) if is_stored => self.watch.stopped(self.now_ms, &id),
            Order::Pause(number, for_ms) if is_stored => {
                self.watch.paused(&id, true);
                self.after(for_ms, Event::Order(Order::Resume(number)));
            }
            // Perhaps there is nobody to send.
            Order::SendBack(..) => {}
            Order::Close(_, None) if is_stored => self.watch.stopped(self.now_ms, &id),
            Order::Close(..) => {}
            // Refused by the database, or nobody knows: said again, unless the state has moved on.
            _ if !is_stored
                && self
                    .state(&id)
                    .is_none_or(|state| Some(state) == before && self.is_sensible(order, before)) =>
            {
                self.after(ORDER_AGAIN_MS, Event::Order(order));
            }
            _ => {}
        }
    }

    /// An order may have been stored by a process that died over it.
    pub(super) fn note_paused(&mut self) {
        for approved in &self.scenario.campaigns {
            let id = &approved.campaign.manifest.id;
            let state = self.coordinators[MAIN].engine().and_then(|engine| engine.state(id));
            self.watch.paused(id, state == Some(CampaignState::Paused));
        }
    }

    fn is_sensible(&self, order: Order, state: Option<CampaignState>) -> bool {
        use CampaignState::{Active, Paused, RollingBack, Scheduled};
        let expired = |number: usize| {
            let expires = self.scenario.campaigns[number].campaign.manifest.expires;
            self.coordinators[MAIN].wall(&self.scenario, self.now_ms) >= expires
        };
        match order {
            Order::Start(number) => matches!(state, None | Some(Scheduled)) && !expired(number),
            Order::Pause(..) => matches!(state, None | Some(Active)),
            Order::Resume(_) => matches!(state, None | Some(Paused)),
            Order::Cancel(_) => matches!(state, None | Some(Scheduled | Active | Paused | RollingBack)),
            Order::SendBack(..) | Order::Close(..) => false,
        }
    }

    /// By an operator's word where the manifest leaves it to operators, by the approvers' signed order where it does not.
    fn sent_back_by_order(&mut self, id: &CampaignId, wave: Option<u32>, device: Option<usize>) -> Rollback {
        let scope = RollbackScope {
            waves: wave.into_iter().collect(),
            devices: device
                .map(|d| self.scenario.devices[d].id.clone())
                .into_iter()
                .collect(),
        };
        let approved = self.scenario.campaign(id).map(|approved| &approved.campaign);
        let takes_an_order = approved.filter(|campaign| !campaign.manifest.operator_rollback);
        let order = takes_an_order.map(|campaign| RollbackOrder {
            campaign: id.clone(),
            manifest_sha256: campaign.manifest_sha256,
            scope: scope.clone(),
            reason: "it turned out to be bad".to_owned(),
            issued: self.coordinators[MAIN].wall(&self.scenario, self.now_ms),
        });
        // It is signed, whatever the coordinator makes of it.
        let order = order.map(|order| {
            self.watch.ordered.push((id.clone(), order.scope.clone()));
            self.evidence.order(order)
        });
        Rollback {
            campaign: id.clone(),
            scope,
            reason: "an operator wants it".to_owned(),
            order,
            // Nodes look at the device itself.
            moved_on: BTreeSet::new(),
        }
    }

    /// Looks whether everything is over, and does what an operator does who finds a campaign waiting for him.
    pub(super) fn review(&mut self) {
        self.after(REVIEW_MS, Event::Review);
        let states: Vec<_> = (0..self.scenario.campaigns.len())
            .map(|number| {
                let id = &self.scenario.campaigns[number].campaign.manifest.id;
                (number, id.clone(), self.state(id))
            })
            .collect();
        self.tell(|| format!("{states:?}"));
        let is_due = |number: usize| self.now_ms > self.scenario.campaigns[number].starts_ms + ORDER_AGAIN_MS;
        let is_ended = |(number, _, state): &(usize, CampaignId, Option<CampaignState>)| {
            is_due(*number)
                && state.is_some_and(|state| {
                    state.is_terminal()
                        || (state == CampaignState::Scheduled && !self.is_sensible(Order::Start(*number), Some(state)))
                })
        };
        let nodes_are_idle = (0..self.nodes.len()).all(|n| self.is_node_idle(n));
        if nodes_are_idle && states.iter().all(is_ended) && !self.coordinators[OLD].is_up() {
            self.judge_all();
            self.is_over = true;
            return;
        }
        if self.now_ms < QUIET_AFTER_MS {
            return;
        }
        let has_windows = self
            .scenario
            .campaigns
            .iter()
            .any(|approved| !approved.windows.is_empty());
        let ends_ms = if has_windows { ENDS_WITH_WINDOWS_MS } else { ENDS_MS };
        // A liar can delay for good; that is all it can.
        let is_lied_to = self.links.lies_until > 0;
        if self.now_ms > ends_ms || (is_lied_to && self.now_ms > QUIET_AFTER_MS + AFTER_LIES_MS) {
            if !is_lied_to {
                let waits: Vec<_> = states
                    .iter()
                    .filter(|state| !is_ended(state))
                    .map(|(_, id, _)| self.waits(id))
                    .collect();
                let busy: Vec<_> = (0..self.nodes.len()).filter(|n| !self.is_node_idle(*n)).collect();
                let how = format!(
                    "after {} s nodes {busy:?} are busy; {}",
                    self.now_ms / 1_000,
                    waits.join("; ")
                );
                self.watch.blame(self.now_ms, Promise::Live, how);
            }
            self.judge_all();
            self.is_over = true;
            return;
        }
        self.stuck_since = self.is_stuck().then(|| self.stuck_since.unwrap_or(self.now_ms));
        for (number, id, state) in states {
            match state {
                Some(CampaignState::Paused) => self.order(Order::Resume(number)),
                Some(CampaignState::Active | CampaignState::RollingBack) if self.waits_for_a_person(&id) => {
                    self.order(Order::Cancel(number));
                }
                _ => {}
            }
        }
    }

    /// What a campaign waits for, by the engine's own word.
    fn waits(&self, id: &CampaignId) -> String {
        let engine = self.coordinators[MAIN].engine();
        let reason = engine.and_then(|engine| engine.campaign(id)).map(|view| view.reason);
        let attempts = engine.and_then(|engine| engine.attempts(id)).unwrap_or_default();
        let open = attempts.iter().filter(|view| !view.state.is_terminal()).take(3);
        let open: Vec<_> = open
            .map(|view| format!("{} {} {}", view.device, view.state, view.reason))
            .collect();
        format!("{id}: {} ({})", reason.unwrap_or_default(), open.join(", "))
    }

    /// Whether nothing but a person can help: a gate holds, or for an hour nothing has been in flight but devices that
    /// wait for somebody to look at them.
    fn waits_for_a_person(&self, id: &CampaignId) -> bool {
        let engine = self.coordinators[MAIN].engine();
        let view = engine.and_then(|engine| engine.campaign(id));
        let holds = view.is_some_and(|view| {
            view.waves
                .iter()
                .any(|wave| wave.open && wave.gate == GateVerdict::Hold && view.state == CampaignState::Active)
        });
        // What two coordinators have made of it, or a liar, is a person's to end.
        let is_muddled = !self.watch.coordinator_is_sound && self.now_ms > 2 * QUIET_AFTER_MS;
        holds || is_muddled || self.stuck_since.is_some_and(|since| since + PATIENCE_MS < self.now_ms)
    }

    /// Whether there is something in flight by somebody's books, and all of it is quarantined.
    fn is_stuck(&self) -> bool {
        let Some(engine) = self.coordinators[MAIN].engine() else {
            return false;
        };
        let in_flight = engine.in_flight();
        let kept_by_nodes = self.watch.quarantined().next().is_some();
        let is_idle = in_flight.keys().all(|device| engine.is_quarantined(device));
        // Or what is left to do is a lost node's.
        let is_one_lost = self.nodes.iter().any(|node| node.is_lost);
        is_idle && (is_one_lost || kept_by_nodes || !in_flight.is_empty())
    }
}
