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
    api::{AttemptView, CampaignState, CampaignView},
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256, TopologyPath},
    manifest::{Artifact, CampaignManifest, Caps, Plan},
    report::{AttemptReport, AttemptState, PermitKind},
    rollback::RollbackScope,
    time::Timestamp,
};

use crate::{
    attempts::{Attempt, AttemptRecord},
    campaign::{Campaign, CampaignRecord},
    caps::{STARTS_MAX, choose, may_be_permitted, may_be_permitted_again, permit},
    check::InFlight,
    close::Closing,
    domains::Domains,
    load::Load,
    possession::PossessionRecord,
    webhooks::WebhookAnswer,
};

/// How far two clocks may differ before a lapsed permit is taken for surely lapsed at the node.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Devices of one permit: small, because a permit that is out cannot be recalled.
const PERMIT_DEVICES_MAX: usize = 64;

/// What the engine is told once.
#[derive(Debug, Clone, Copy)]
pub struct EngineSettings {
    /// How long a permit is good for; one that lapses unused is issued again with the next sequence.
    pub permit_ttl: Duration,
}

/// What may happen.
#[derive(Debug)]
pub enum Input {
    /// Campaigns were published, or are read back after a restart: then all at once, so that all count from the start.
    Load(Vec<Loaded>),
    /// An operator starts a scheduled campaign.
    Start(CampaignId),
    /// An operator forbids new starts.
    Pause(CampaignId),
    /// An operator allows new starts again.
    Resume(CampaignId),
    /// An operator ends a campaign. Devices in flight end by themselves.
    Cancel(CampaignId),
    /// An operator ends an attempt that nobody reports the end of, or a whole campaign with all that is in flight.
    Close(Closing),
    /// People send devices of a campaign back although no gate has failed.
    RollBack(Rollback),
    /// An approver has said yes or no between two waves.
    Approve(Approval),
    /// An outside system has answered whether the next wave may open, or has not.
    WebhookAnswered(WebhookAnswer),
    /// Its approvers do not stand behind a campaign any more, or a release of it was recalled: it ends like a cancelled
    /// one.
    Withdraw(CampaignId),
    /// A node was heard of, with verified reports, oldest first (often none).
    Heard {
        /// The node, by its certificate.
        node: NodeId,
        /// What it reports.
        reports: Vec<AttemptReport>,
    },
    /// Proofs of a node that it holds images were checked. They count for every campaign that needs them.
    Proofs {
        /// The node, by its certificate.
        node: NodeId,
        /// The images whose proof holds.
        proven: BTreeSet<ArtifactId>,
        /// Those whose proof does not.
        wrong: BTreeSet<ArtifactId>,
    },
    /// A node has enrolled, perhaps with a new journal and an empty store: it counts its reports from the start, and what
    /// it had proven it has to prove again.
    Enrolled(NodeId),
    /// A person has looked at a quarantined device and put it back in service.
    Clear(DeviceId),
    /// Time has passed.
    Tick,
}

/// Who is to go back, and by whose word. The shell has checked that word before.
#[derive(Debug, Clone)]
pub struct Rollback {
    /// The campaign.
    pub campaign: CampaignId,
    /// Who goes back: those who run its release.
    pub scope: RollbackScope,
    /// Why, and who says so.
    pub reason: String,
    /// Digest of the approvers' signed order: nodes want to see it unless the manifest leaves this to operators.
    pub order: Option<Sha256>,
    /// Devices that run something else by now: another campaign, or a person, has moved them on.
    pub moved_on: BTreeSet<DeviceId>,
}

/// An approver's word between two waves. The shell has checked his signature before.
#[derive(Debug, Clone)]
pub struct Approval {
    /// The campaign.
    pub campaign: CampaignId,
    /// The wave that has passed.
    pub wave: u32,
    /// Yes or no.
    pub approved: bool,
    /// Why.
    pub reason: String,
    /// Whose keys signed it.
    pub by: Vec<String>,
    /// Digest of the signed word: nodes want to see it.
    pub document: Sha256,
    /// Devices that run something else by now, and stay if a no sends the others back.
    pub moved_on: BTreeSet<DeviceId>,
}

/// A campaign with what is stored about it.
#[derive(Debug)]
pub struct Loaded {
    /// The verified manifest.
    pub manifest: CampaignManifest,
    /// The plan whose digest the manifest names.
    pub plan: Plan,
    /// The images of the releases that the manifest pins, by target.
    pub images: BTreeMap<String, Artifact>,
    /// `manifest.expires` on the process's clock.
    pub expires_at: Timestamp,
    /// The stored record; `None` for a campaign just published.
    pub record: Option<CampaignRecord>,
    /// The stored attempts.
    pub attempts: Vec<AttemptRecord>,
    /// What is stored about its nodes' proofs.
    pub possession: Vec<PossessionRecord>,
}

/// Something to be stored: replaces what was stored under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A campaign.
    Campaign(CampaignRecord),
    /// An attempt of the campaign.
    Attempt(CampaignId, AttemptRecord),
    /// How a node of the campaign stands towards an image.
    Possession(CampaignId, PossessionRecord),
}

/// A permit to be signed, stored and handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermitOrder {
    /// The campaign.
    pub campaign: CampaignId,
    /// Update or rollback.
    pub kind: PermitKind,
    /// The wave, counted from 0.
    pub wave: u32,
    /// Which attempt of its devices it is for.
    pub attempt: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Who may start.
    pub devices: Vec<DeviceId>,
}

/// What the shell has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Store this, and tell whoever watches.
    Persist(Record),
    /// Sign and hand out this permit.
    IssuePermit(PermitOrder),
}

/// Why an input was refused; nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// No campaign of this name.
    #[error("there is no campaign {0}: publish it first")]
    UnknownCampaign(CampaignId),
    /// The campaign is not in a state for this.
    #[error("campaign {id} is {state:?}: it cannot {verb}")]
    WrongState {
        /// The campaign.
        id: CampaignId,
        /// Where it stands.
        state: CampaignState,
        /// What was asked of it.
        verb: &'static str,
    },
    /// The approval is over.
    #[error("the approval of campaign {0} has expired: sign and publish a new edition")]
    Expired(CampaignId),
    /// Manifest and plan do not belong together, or the plan is no plan.
    #[error("campaign {id} does not go with its plan: {problem}")]
    BadPlan {
        /// The campaign.
        id: CampaignId,
        /// What is wrong.
        problem: String,
    },
    /// Nobody of the scope can go back.
    #[error("nothing goes back: {0}")]
    NothingToRollBack(String),
    /// Nothing of this is open.
    #[error("there is nothing to close: {0}")]
    NothingToClose(String),
    /// Nobody is asked, or not about this.
    #[error("there is nothing to approve: {0}")]
    NothingToApprove(String),
    /// A webhook that nobody asks.
    #[error("the webhook {webhook} is not asked about wave {wave}")]
    NotAsked {
        /// The wave.
        wave: u32,
        /// Its name.
        webhook: String,
    },
    /// No quarantined device of this name.
    #[error("device {0} is not quarantined")]
    NotQuarantined(DeviceId),
}

/// Every campaign of the fleet.
#[derive(Debug)]
pub struct Engine {
    settings: EngineSettings,
    pub(crate) campaigns: BTreeMap<CampaignId, Campaign>,
    pub(crate) domains: Domains,
    /// What is in flight anywhere.
    pub(crate) load: Load,
    pub(crate) heard: BTreeMap<NodeId, Timestamp>,
    /// When the first running attempt is to be looked at.
    next_due: Option<Timestamp>,
    /// The campaign some of whose devices may start and have to wait for the next input.
    cut_short_at: Option<CampaignId>,
    /// The last input has brought campaigns: the next one starts what may start.
    has_loaded: bool,
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

    /// Where a campaign stands.
    #[must_use]
    pub fn campaign(&self, id: &CampaignId) -> Option<CampaignView> {
        self.campaigns.get(id).map(Campaign::view)
    }

    /// The signed rules of a campaign.
    #[must_use]
    pub fn manifest(&self, id: &CampaignId) -> Option<&CampaignManifest> {
        self.campaigns.get(id).map(|campaign| &campaign.manifest)
    }

    /// The state of a campaign, without the cost of a view.
    #[must_use]
    pub fn state(&self, id: &CampaignId) -> Option<CampaignState> {
        self.campaigns.get(id).map(|campaign| campaign.record.state)
    }

    /// The state of every campaign, without the cost of a view.
    pub fn states(&self) -> impl Iterator<Item = (&CampaignId, CampaignState)> {
        self.campaigns.iter().map(|(id, campaign)| (id, campaign.record.state))
    }

    /// Where all campaigns stand.
    pub fn campaigns(&self) -> impl Iterator<Item = CampaignView> {
        self.campaigns.values().map(Campaign::view)
    }

    /// The attempts of a campaign, in the order of its plan.
    #[must_use]
    pub fn attempts(&self, id: &CampaignId) -> Option<Vec<AttemptView>> {
        let campaign = self.campaigns.get(id)?;
        Some(
            campaign
                .select(|_| true)
                .iter()
                .filter_map(|device| campaign.attempt_view(device))
                .collect(),
        )
    }

    /// One attempt of a campaign.
    #[must_use]
    pub fn attempt(&self, id: &CampaignId, device: &DeviceId) -> Option<AttemptView> {
        self.campaigns.get(id)?.attempt_view(device)
    }

    /// The node that looks after a device in a campaign.
    #[must_use]
    pub fn node_of(&self, id: &CampaignId, device: &DeviceId) -> Option<&NodeId> {
        Some(&self.campaigns.get(id)?.attempts.get(device)?.seat.node)
    }

    /// The images that a node has to prove that it holds, for campaigns that are or may be started.
    #[must_use]
    pub fn unproven(&self, node: &NodeId) -> BTreeMap<ArtifactId, &Artifact> {
        let is_asked =
            |campaign: &&Campaign| matches!(campaign.record.state, CampaignState::Scheduled | CampaignState::Active);
        let asked = self.campaigns.values().filter(is_asked);
        asked
            .flat_map(|campaign| campaign.unproven_images(node))
            .map(|image| (image.id, image))
            .collect()
    }

    /// The image that a device gets in a campaign.
    #[must_use]
    pub fn image_of(&self, id: &CampaignId, device: &DeviceId) -> Option<ArtifactId> {
        self.campaigns
            .get(id)?
            .attempts
            .get(device)?
            .course
            .needs
            .first()
            .copied()
    }

    /// Which nodes have proven to hold which image, in whatever campaign.
    pub fn proven(&self) -> impl Iterator<Item = (&NodeId, ArtifactId)> {
        self.campaigns
            .values()
            .flat_map(|campaign| campaign.possession.proven())
    }

    /// The reports on a wave's updates that have ended, by node and sequence: what its gate was judged by.
    #[must_use]
    pub fn ended_reports(&self, id: &CampaignId, wave: u32) -> Vec<(NodeId, u64)> {
        let Some(campaign) = self.campaigns.get(id) else {
            return Vec::new();
        };
        let of_wave = campaign.attempts.by_device().filter(|attempt| attempt.wave == wave);
        of_wave
            .filter_map(|attempt| Some((attempt.seat.node.clone(), attempt.record.end_report?)))
            .collect()
    }

    /// Whether an attempt left the device quarantined and nobody has cleared it.
    #[must_use]
    pub fn is_quarantined(&self, device: &DeviceId) -> bool {
        let attempts = self
            .campaigns
            .values()
            .filter_map(|campaign| campaign.attempts.get(device));
        attempts.into_iter().any(Attempt::is_quarantined)
    }

    /// Devices in flight anywhere, with their racks: what the caps count.
    #[must_use]
    pub fn in_flight(&self) -> BTreeMap<DeviceId, TopologyPath> {
        let attempts = self.campaigns.values().flat_map(in_flight);
        attempts
            .map(|attempt| (attempt.record.device.clone(), attempt.seat.rack.clone()))
            .collect()
    }

    /// How many devices are in flight anywhere.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.load.total()
    }

    /// Whether a device is in flight anywhere.
    #[must_use]
    pub fn is_in_flight(&self, device: &DeviceId) -> bool {
        self.load.contains(device)
    }

    /// Devices in flight anywhere, with all that caps look at.
    #[must_use]
    pub fn in_flight_places(&self) -> BTreeMap<DeviceId, InFlight> {
        let place = |attempt: &Attempt| InFlight {
            node: attempt.seat.node.clone(),
            rack: attempt.seat.rack.clone(),
            labels: attempt.labels.clone(),
        };
        let attempts = self.campaigns.values().flat_map(in_flight);
        attempts
            .map(|attempt| (attempt.record.device.clone(), place(attempt)))
            .collect()
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
                            .is_some_and(|attempt| attempt.seat.node == node)
                    };
                    if let Some(campaign) = campaign.filter(|campaign| is_planned_there(campaign)) {
                        campaign.report(now, report);
                    }
                }
                self.heard.insert(node, now);
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
        let mut has_new_rules = false;
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
            let mut campaign = Campaign::new(manifest, plan, images, expires_at, ttl, self.now);
            if let Some(record) = record {
                campaign.restore(record, attempts, possession, self.now);
            }
            self.campaigns.insert(campaign.record.id.clone(), campaign);
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
            if campaign.attempts.get(&device).is_some_and(Attempt::is_quarantined) {
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
                let (before, after) = (attempt.counted, campaign.counts_as(attempt));
                if before.flight != after.flight {
                    self.load.remove(attempt, campaign, before.flight);
                    self.load.add(attempt, campaign, after.flight);
                }
                match (before.goes_back, after.goes_back) {
                    (false, true) => self.load.add_going_back(&attempt.record.device),
                    (true, false) => self.load.remove_going_back(&attempt.record.device),
                    _ => {}
                }
                campaign.attempts.at_mut(place).counted = after;
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

    /// When something has to happen to a running attempt that nobody speaks of.
    fn dues(&self, campaign: &Campaign, attempt: &Attempt) -> [Option<Timestamp>; 2] {
        if let Some(until) = attempt.pauses_until {
            return [Some(until), None];
        }
        let lapses = attempt.permitted_at + self.settings.permit_ttl;
        match attempt.started_at {
            Some(started) => [Some(started + campaign.limit(attempt)), None],
            None => [Some(self.last_sign_of(attempt) + campaign.limit(attempt)), Some(lapses)],
        }
    }

    fn last_sign_of(&self, attempt: &Attempt) -> Timestamp {
        let heard = self.heard.get(&attempt.seat.node).copied().unwrap_or_default();
        heard.max(attempt.awaited_since)
    }

    /// When the first running attempt is to be looked at. What nodes have said meanwhile has put many off.
    fn find_next_due(&mut self) -> Option<Timestamp> {
        loop {
            let due = |(id, campaign): (_, &Campaign)| Some((campaign.index.first_due()?, id));
            let ((at, place), id) = self.campaigns.iter().filter_map(due).min()?;
            let (id, campaign) = (id.clone(), &self.campaigns[id]);
            let attempt = campaign.attempts.at(place);
            let is_due = |at: &Timestamp| *at > self.now;
            let really = self.dues(campaign, attempt).into_iter().flatten().filter(is_due).min();
            if really == Some(at) {
                return really;
            }
            if let Some(campaign) = self.campaigns.get_mut(&id) {
                campaign.await_until(place, really);
            }
        }
    }

    /// Looks at the attempts that are due: answers those that nobody will say the end of, and remembers whose permit is over.
    fn look_at_dues(&mut self) -> BTreeSet<(CampaignId, DeviceId)> {
        let now = self.now;
        let mut silent = BTreeSet::new();
        let is_due = |campaign: &Campaign| campaign.index.first_due().is_some_and(|(at, _)| at <= now);
        let due = self.campaigns.iter().filter(|(_, campaign)| is_due(campaign));
        for id in due.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            while let Some(campaign) = self.campaigns.get(&id)
                && let Some((_, place)) = campaign.index.first_due().filter(|(at, _)| *at <= now)
            {
                let attempt = campaign.attempts.at(place);
                if attempt.pauses_until.is_some() {
                    if let Some(campaign) = self.campaigns.get_mut(&id) {
                        campaign.end_pause(place);
                    }
                    continue;
                }
                let [silent_at, lapses] = self.dues(campaign, attempt);
                let [is_silent, has_lapsed] = [silent_at, lapses].map(|at| at.is_some_and(|at| at <= now));
                let next = [silent_at, lapses].into_iter().flatten().filter(|at| *at > now).min();
                if is_silent {
                    silent.insert((id.clone(), attempt.record.device.clone()));
                }
                if let Some(campaign) = self.campaigns.get_mut(&id) {
                    if has_lapsed {
                        campaign.index.lapsed.insert(place);
                    }
                    campaign.await_until(place, next);
                }
            }
        }
        silent
    }

    /// Ends attempts whose end nobody will report. A device that may have been touched is quarantined, and so keeps its
    /// place under the caps; one whose node is alive and let the permit lapse was not touched. Such a one gives its place up
    /// if another campaign waits to take the device back, or its own to take others back.
    fn end_overdue_attempts(&mut self) {
        let silent = self.look_at_dues();
        let (mut lapsed, mut returned) = (Vec::new(), Vec::new());
        for (id, campaign) in &self.campaigns {
            for place in &campaign.index.lapsed {
                let attempt = campaign.attempts.at(*place);
                let lapses = attempt.permitted_at + self.settings.permit_ttl + CLOCK_SLACK;
                let spoke_since = self.heard.get(&attempt.seat.node).is_some_and(|heard| *heard > lapses);
                let device = (id.clone(), attempt.record.device.clone());
                if !spoke_since || silent.contains(&device) {
                    continue;
                }
                if !may_be_permitted_again(campaign, attempt, self.now) {
                    lapsed.push(device);
                } else if self.load.is_taken_back(attempt) || is_held(campaign) {
                    returned.push(device);
                }
            }
        }
        let mut end = |(id, device): (CampaignId, DeviceId), state, reason: &str| {
            if let Some(campaign) = self.campaigns.get_mut(&id) {
                campaign.presume(&[device], state, reason);
            }
        };
        for each in silent {
            end(
                each,
                AttemptState::Quarantined,
                "its deadline passed and its node has not reported how it ended",
            );
        }
        for each in lapsed {
            end(each, AttemptState::Cancelled, "its permit lapsed before it started");
        }
        for (id, device) in returned {
            if let Some(campaign) = self.campaigns.get_mut(&id) {
                campaign.edit(&device, |attempt| {
                    attempt.record.permit = None;
                    attempt.record.state = AttemptState::Pending;
                    attempt.record.reason = "its permit lapsed before it started, and it may not start now".to_owned();
                });
            }
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
                        devices.sort_by(|a, b| campaign.attempts[a].seat.node.cmp(&campaign.attempts[b].seat.node));
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
                let record = campaign.attempts[&device].record.clone();
                self.outputs
                    .push_back(Output::Persist(Record::Attempt(id.clone(), record)));
            }
        }
    }
}

/// Whether nothing new starts until somebody resumes the campaign: its lapsed permits keep no place from others.
fn is_held(campaign: &Campaign) -> bool {
    campaign.record.state == CampaignState::Paused || campaign.record.resumable
}

fn in_flight(campaign: &Campaign) -> impl Iterator<Item = &Attempt> {
    campaign.running().chain(campaign.quarantined())
}
