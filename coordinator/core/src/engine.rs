//! The campaign engine: every campaign of the fleet under one set of caps.
//!
//! Invariants: a device is in flight from its permit until its end is reported, and a quarantined one until a person
//! clears it; no permit takes a rack or the total above the cap of any campaign that has devices in flight there; a
//! permit's sequence is used once; no update is permitted before the device's node has proven that it holds the new image
//! and the one to go back to (going back needs no proof: it was given before); a [`Output::Persist`] comes before the
//! permit that relies on it, and the shell makes all outputs of one `handle` durable together.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use firmesh_protocol::{
    api::CampaignState,
    ids::{CampaignId, DeviceId, NodeId},
    manifest::Caps,
    report::PermitKind,
    time::Timestamp,
};

use crate::{
    attempts::{Look, Names},
    campaign::Campaign,
    caps::{STARTS_MAX, choose, may_be_permitted, permit},
    domains::Domains,
    input::{Input, InputError, Loaded, Output, PermitOrder, Record},
    load::Load,
};

/// Devices of one permit: small, because a permit that is out cannot be recalled.
const PERMIT_DEVICES_MAX: usize = 64;

/// What the engine is told once.
#[derive(Debug, Clone, Copy)]
pub struct EngineSettings {
    /// How long a permit is good for; one that lapses unused is issued again with the next sequence.
    pub permit_ttl: Duration,
}

/// Every campaign of the fleet.
#[derive(Debug)]
pub struct Engine {
    pub(crate) settings: EngineSettings,
    pub(crate) campaigns: BTreeMap<CampaignId, Campaign>,
    pub(crate) domains: Domains,
    names: Names,
    /// What is in flight anywhere.
    pub(crate) load: Load,
    pub(crate) heard: BTreeMap<NodeId, Timestamp>,
    /// When the first running attempt is to be looked at.
    pub(crate) next_due: Option<Timestamp>,
    /// The campaign some of whose devices may start and have to wait for the next input.
    cut_short_at: Option<CampaignId>,
    /// The last input has brought campaigns: the next one starts what may start.
    pub(crate) has_loaded: bool,
    outputs: VecDeque<Output>,
    pub(crate) now: Timestamp,
}

impl Engine {
    /// An engine without campaigns.
    #[must_use]
    pub fn new(settings: EngineSettings) -> Self {
        Self {
            settings,
            campaigns: BTreeMap::new(),
            domains: Domains::default(),
            names: Names::default(),
            load: Load::default(),
            heard: BTreeMap::new(),
            next_due: None,
            cut_short_at: None,
            has_loaded: false,
            outputs: VecDeque::new(),
            now: Timestamp::default(),
        }
    }

    /// Takes one input. Afterwards `poll` until it gives nothing.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Result<(), InputError> {
        self.now = self.now.max(now);
        let loads = matches!(input, Input::Load(_));
        self.accept(input)?;
        self.has_loaded = loads;
        self.count();
        self.end_overdue_attempts();
        self.count();
        self.advance();
        self.count();
        // What stops a campaign may not have been told yet: nothing starts before the next input.
        let permits = match self.has_loaded {
            true => Vec::new(),
            false => self.issue_permits(),
        };
        self.count();
        self.next_due = self.find_next_due();
        self.flush();
        self.outputs.extend(permits.into_iter().map(Output::IssuePermit));
        Ok(())
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When `Tick` is due, if nothing happens before: at once while more devices may start than one input starts.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        if self.has_loaded || self.cut_short_at.is_some() {
            return Some(self.now);
        }
        let of_campaign = |campaign: &Campaign| {
            let is_open = matches!(campaign.record.state, CampaignState::Active | CampaignState::Paused);
            let due = campaign.waits_until().filter(|at| *at > self.now).min();
            [due, is_open.then_some(campaign.expires_at)]
        };
        let campaigns = self.campaigns.values().flat_map(of_campaign).flatten();
        campaigns.chain(self.next_due).filter(|at| *at > self.now).min()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Campaign> {
        self.campaigns.values()
    }

    pub(crate) fn find(&self, id: &CampaignId) -> Option<&Campaign> {
        self.campaigns.get(id)
    }

    fn accept(&mut self, input: Input) -> Result<(), InputError> {
        use CampaignState::{Active, Paused, Scheduled};
        let now = self.now;
        match input {
            Input::Load(loaded) => self.load(loaded),
            Input::Start(id) => {
                let campaign = self.in_state(&id, &[Scheduled], "start")?;
                if now >= campaign.expires_at {
                    return Err(InputError::Expired(id));
                }
                campaign.enter(Active, "started");
                Ok(())
            }
            Input::Pause(id) => {
                self.in_state(&id, &[Active], "be paused")?
                    .enter(Paused, "paused by an operator: nothing new starts");
                Ok(())
            }
            Input::Resume(id) => {
                self.in_state(&id, &[Paused], "be resumed")?
                    .enter(Active, "resumed by an operator");
                Ok(())
            }
            Input::Cancel(id) => self.cancel(&id, "cancelled by an operator"),
            Input::Close(closing) => {
                let id = closing.campaign.clone();
                let campaign = self.campaigns.get_mut(&id).ok_or(InputError::UnknownCampaign(id))?;
                campaign.close(closing)
            }
            Input::RollBack(rollback) => {
                use CampaignState::{Cancelled, Completed, Failed, RolledBack, RollingBack};
                let ended = [Completed, Failed, Cancelled, RolledBack];
                let allowed = [&[Active, Paused, RollingBack], &ended[..]].concat();
                let id = rollback.campaign.clone();
                self.in_state(&id, &allowed, "be rolled back")?.send_back(rollback)
            }
            Input::Approve(approval) => {
                let id = approval.campaign.clone();
                self.in_state(&id, &[Active, Paused], "be approved or refused")?
                    .answer(approval)
            }
            Input::WebhookAnswered(answer) => {
                let id = answer.campaign.clone();
                self.in_state(&id, &[Active, Paused], "be told what a webhook says")?
                    .hear_webhook(answer)
            }
            Input::Withdraw(id) => self.cancel(&id, "withdrawn by those who signed for it"),
            Input::Heard { node, reports } => {
                for report in &reports {
                    let campaign = self.campaigns.get_mut(&report.campaign);
                    let is_planned_there = |campaign: &Campaign| {
                        campaign
                            .attempts
                            .get(&report.device)
                            .is_some_and(|attempt| attempt.stand.seat.node == node)
                    };
                    if let Some(campaign) = campaign.filter(|campaign| is_planned_there(campaign)) {
                        campaign.report(now, report);
                    }
                }
                self.heard.insert(node, now);
                Ok(())
            }
            Input::Read { node, versions } => {
                for campaign in self.campaigns.values_mut() {
                    campaign.read(now, &node, &versions);
                }
                Ok(())
            }
            Input::Proofs { node, proven, wrong } => {
                // Going back needs no proof.
                let may_go_forward = |campaign: &&mut Campaign| match campaign.record.state {
                    Scheduled | Active | Paused => true,
                    CampaignState::RollingBack => campaign.record.resumable,
                    _ => false,
                };
                for campaign in self.campaigns.values_mut().filter(may_go_forward) {
                    campaign.judge_proofs(&node, &proven, &wrong);
                }
                Ok(())
            }
            Input::Enrolled(node) => {
                for campaign in self.campaigns.values_mut() {
                    if !campaign.record.state.is_terminal() {
                        campaign.forget_proofs(&node);
                    }
                    for place in campaign.attempts.of_node(&node).to_vec() {
                        let record = &campaign.attempts.at(place).record;
                        if record.report_sequence > 0 {
                            let device = record.device.clone();
                            campaign.edit(&device, |attempt| attempt.record.report_sequence = 0);
                        }
                    }
                }
                Ok(())
            }
            Input::Clear(device) => self.clear(device),
            Input::Tick => Ok(()),
        }
    }

    fn load(&mut self, loaded: Vec<Loaded>) -> Result<(), InputError> {
        for Loaded {
            manifest, plan, images, ..
        } in &loaded
        {
            let id = manifest.id.clone();
            let refused = |problem: String| InputError::BadPlan {
                id: id.clone(),
                problem,
            };
            manifest
                .check()
                .and_then(|()| plan.check())
                .and_then(|()| plan.check_caps(manifest))
                .and_then(|()| plan.check_servers(manifest))
                .map_err(|error| refused(error.to_string()))?;
            if plan.campaign != id {
                return Err(refused(format!("the plan is for campaign {}", plan.campaign)));
            }
            let mut planned = plan.devices().flat_map(|(_, planned)| planned.targets());
            if let Some(target) = planned.find(|target| !images.contains_key(*target)) {
                return Err(refused(format!(
                    "it plans {target}, which the manifest does not pin or whose image is not here"
                )));
            }
            let state = self.campaigns.get(&id).map(|known| known.record.state);
            if let Some(state) = state.filter(|state| *state != CampaignState::Scheduled) {
                return Err(InputError::WrongState {
                    id,
                    state,
                    verb: "be published again",
                });
            }
        }
        let (mut has_new_rules, mut has_replaced) = (false, false);
        let mut fresh = BTreeSet::new();
        for Loaded { manifest, .. } in &loaded {
            has_new_rules |= self.domains.learn(&manifest.caps);
            fresh.insert(manifest.id.clone());
        }
        for Loaded {
            manifest,
            plan,
            images,
            expires_at,
            record,
            attempts,
            possession,
        } in loaded
        {
            let ttl = self.settings.permit_ttl;
            let mut campaign = Campaign::new(manifest, plan, images, expires_at, ttl, &mut self.names);
            if let Some(record) = record {
                campaign.restore(record, attempts, possession, self.now);
            }
            has_replaced |= self.campaigns.insert(campaign.record.id.clone(), campaign).is_some();
        }
        if has_replaced {
            self.names.forget();
        }
        for (id, campaign) in &mut self.campaigns {
            let is_fresh = fresh.contains(id);
            if has_new_rules || is_fresh {
                campaign.locate(&mut self.domains);
            }
            if is_fresh {
                campaign.judge_failed_waves();
            }
        }
        self.count_all();
        Ok(())
    }

    fn in_state(
        &mut self,
        id: &CampaignId,
        allowed: &[CampaignState],
        verb: &'static str,
    ) -> Result<&mut Campaign, InputError> {
        let campaign = self
            .campaigns
            .get_mut(id)
            .ok_or_else(|| InputError::UnknownCampaign(id.clone()))?;
        let state = campaign.record.state;
        if allowed.contains(&state) {
            campaign.index.is_changed = true;
            Ok(campaign)
        } else {
            Err(InputError::WrongState {
                id: id.clone(),
                state,
                verb,
            })
        }
    }

    fn cancel(&mut self, id: &CampaignId, by: &str) -> Result<(), InputError> {
        use CampaignState::{Active, Cancelled, Paused, RollingBack, Scheduled};
        let campaign = self.in_state(id, &[Scheduled, Active, Paused, RollingBack], "be cancelled")?;
        campaign.cancel_untouched(&format!("the campaign was {by}"));
        campaign.record.resumable = false;
        campaign.enter(Cancelled, format!("{by}; devices in flight end by themselves"));
        Ok(())
    }

    fn clear(&mut self, device: DeviceId) -> Result<(), InputError> {
        if !self.is_quarantined(&device) {
            return Err(InputError::NotQuarantined(device));
        }
        for campaign in self.campaigns.values_mut() {
            if campaign
                .attempts
                .get(&device)
                .is_some_and(|attempt| attempt.is_quarantined())
            {
                campaign.edit(&device, |attempt| attempt.record.cleared = true);
            }
        }
        Ok(())
    }

    /// Brings the load up to date with every attempt that has changed.
    fn count(&mut self) {
        for campaign in self.campaigns.values_mut() {
            for place in campaign.index.take_recount() {
                let attempt = campaign.attempts.at(place);
                let (before, after) = (attempt.counted, campaign.counts_as(&attempt));
                if before.flight != after.flight {
                    self.load.remove(&attempt, campaign, before.flight);
                    self.load.add(&attempt, campaign, after.flight);
                }
                match (before.goes_back, after.goes_back) {
                    (false, true) => self.load.add_going_back(&attempt.record.device),
                    (true, false) => self.load.remove_going_back(&attempt.record.device),
                    _ => {}
                }
                drop(attempt);
                campaign.attempts.change(place, |attempt| attempt.counted = after);
            }
        }
        let released = self.load.take_released();
        if !released.is_empty() {
            for campaign in self.campaigns.values_mut() {
                released.iter().for_each(|rack| campaign.index.wake(*rack));
            }
        }
    }

    /// Counts the load anew: campaigns have come, or what devices take is named anew.
    fn count_all(&mut self) {
        self.load = Load::default();
        for campaign in self.campaigns.values_mut() {
            campaign.count_anew();
        }
    }

    fn advance(&mut self) {
        use CampaignState::{Active, RollingBack};
        // Whether a rollback is at its end has to do with who is quarantined, in whatever campaign.
        let may_go_back = |campaign: &Campaign| matches!(campaign.record.state, Active | RollingBack);
        let quarantined = match self.campaigns.values().any(may_go_back) {
            true => Load::of_quarantined(self.campaigns.values()),
            false => Load::default(),
        };
        let now = self.now;
        for campaign in self.campaigns.values_mut() {
            if !campaign.may_advance(now) {
                continue;
            }
            let caps = Caps::new(campaign.manifest.caps.per_rack, campaign.manifest.caps.total);
            let rules = Arc::clone(&campaign.rules);
            campaign.advance(now, |attempt| quarantined.shuts_out(attempt, &caps, &rules));
        }
    }

    /// Fills the caps: rollbacks first, then waves in order, no more than [`STARTS_MAX`] devices at once. Where it had to
    /// stop, the next input goes on, with the campaign behind.
    fn issue_permits(&mut self) -> Vec<PermitOrder> {
        let (mut orders, mut left) = (Vec::new(), STARTS_MAX);
        let stopped_at = self.cut_short_at.take();
        for kind in [PermitKind::Rollback, PermitKind::Update] {
            for id in self.wanting(kind, stopped_at.as_ref()) {
                let Some(campaign) = self.campaigns.get_mut(&id) else {
                    continue;
                };
                let chosen = choose(campaign, kind, &mut self.load, left, self.now);
                left -= chosen.count;
                for ((wave, attempt), mut devices) in chosen.devices {
                    // Every node fetches the permits that name one of its devices: as few as there can be.
                    if devices.len() > PERMIT_DEVICES_MAX {
                        let node = |device: &DeviceId| Some(campaign.attempts.stand(device)?.seat.node.clone());
                        devices.sort_by_cached_key(node);
                    }
                    for devices in devices.chunks(PERMIT_DEVICES_MAX) {
                        orders.push(permit(campaign, kind, (wave, attempt), devices, self.now));
                    }
                }
                if chosen.is_cut_short {
                    self.cut_short_at = Some(id);
                    return orders;
                }
            }
        }
        orders
    }

    /// The campaigns that may have permits of a kind, those after `stopped_at` first.
    fn wanting(&self, kind: PermitKind, stopped_at: Option<&CampaignId>) -> Vec<CampaignId> {
        let may_have = |campaign: &&Campaign| may_be_permitted(campaign, kind, self.now);
        let campaigns = self.campaigns.values().filter(may_have);
        let mut ids: Vec<_> = campaigns.map(|campaign| campaign.record.id.clone()).collect();
        let first = stopped_at.map_or(0, |last| ids.partition_point(|id| id <= last));
        ids.rotate_left(first);
        ids
    }

    /// Hands out what changed, before the permits that rely on it.
    fn flush(&mut self) {
        for (id, campaign) in &mut self.campaigns {
            if std::mem::take(&mut campaign.is_dirty) {
                self.outputs
                    .push_back(Output::Persist(Record::Campaign(campaign.record.clone())));
            }
            for record in campaign.possession.changed() {
                self.outputs
                    .push_back(Output::Persist(Record::Possession(id.clone(), record)));
            }
            for device in std::mem::take(&mut campaign.dirty) {
                let record = campaign.attempts.known(&device).record.clone();
                self.outputs
                    .push_back(Output::Persist(Record::Attempt(id.clone(), record)));
            }
        }
    }
}

pub(crate) fn in_flight(campaign: &Campaign) -> impl Iterator<Item = Look<'_>> {
    campaign.running().chain(campaign.quarantined())
}
