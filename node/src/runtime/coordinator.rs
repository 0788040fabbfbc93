//! What comes from the coordinator or, in its absence, from the mesh: metadata, campaigns, roster, permits. And what
//! goes up: heartbeats, inventory and signed reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use firmesh_executors::JournalError;
use firmesh_node_core::{approved::ApprovedCampaign, permits::check_permit, swarm};
use firmesh_protocol::{
    api::{Feeder, SyncRequest, SyncResponse},
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    limits::FEEDERS_MAX,
    report::{NodeRecord, Permit, PermitKind},
    time::WallTime,
    trust::{Envelope, Input, TrustedFleet},
};
use tracing::{debug, info, warn};

use super::{Chain, Event, Refreshed, Runtime, restart::Coordinator};
use crate::{
    campaigns,
    mesh::{Gossip, MeshCommand, Topic},
    trust_store::system_time,
    uplink::{Uplink, UplinkError},
};

/// Reports sent in one sync.
const REPORTS_MAX: usize = 200;

/// The shortest time between two syncs, however much there is to tell.
const SYNC_GAP: Duration = Duration::from_millis(200);

/// How long before metadata that was refused is asked for again.
const REFUSED_AGAIN: Duration = Duration::from_secs(30);

/// What this node knows of the fleet.
pub(super) struct Fleet {
    pub(super) coordinator_reachable: bool,
    pub(super) timestamp_version: u64,
    /// Whether the audit log was forked: then nothing starts on this coordinator's permits.
    pub(super) log_is_forked: bool,
    /// Nothing new starts after this moment: the signed word that the metadata is current ends then.
    trusted_until: Option<WallTime>,
    /// The latest time this node has proof of.
    clock_floor: WallTime,
    pub(super) campaigns: BTreeMap<CampaignId, ApprovedCampaign>,
    halted: BTreeSet<CampaignId>,
    permits: BTreeMap<(CampaignId, u64), Permit>,
    permits_synced: BTreeMap<CampaignId, u64>,
    /// When this process first knew of a permit for a wave's updates. What a permit says of its own age is its signer's
    /// word, and an early one would let devices go back before their wave had its time.
    waves_known: BTreeMap<(CampaignId, u32), WallTime>,
    pub(super) roster: BTreeMap<NodeId, (NodeRecord, Envelope)>,
    roster_version: u64,
    /// When the whole roster is asked for, because a part of it could not be taken, or was dropped.
    pub(super) roster_again: Option<Instant>,
    own_record: Envelope,
    /// The highest epoch of a coordinator that was seen.
    epoch: u64,
    sync_at: Instant,
    last_sync: Instant,
    syncing: bool,
    /// When a peer last spoke of something that only the coordinator can explain.
    rumour_at: Option<Instant>,
    /// Whether the coordinator asks who has fed this node.
    wants_feeders: bool,
    refreshing: bool,
    /// The metadata version that was refused last, and when: it is not asked for again at once.
    refused: Option<(u64, Instant)>,
}

impl Fleet {
    pub(super) fn new(own_record: Envelope) -> Self {
        let now = Instant::now();
        Self {
            coordinator_reachable: false,
            timestamp_version: 0,
            log_is_forked: false,
            trusted_until: None,
            clock_floor: WallTime::from_unix_seconds(0),
            campaigns: BTreeMap::new(),
            halted: BTreeSet::new(),
            permits: BTreeMap::new(),
            permits_synced: BTreeMap::new(),
            waves_known: BTreeMap::new(),
            roster: BTreeMap::new(),
            roster_version: 0,
            roster_again: None,
            own_record,
            epoch: 0,
            sync_at: now,
            last_sync: now.checked_sub(SYNC_GAP).unwrap_or(now),
            syncing: false,
            rumour_at: None,
            wants_feeders: false,
            refreshing: false,
            refused: None,
        }
    }

    /// The time: the system's, but never earlier than the latest this node has proof of.
    pub(super) fn now(&self) -> WallTime {
        system_time().max(self.clock_floor)
    }

    /// This node's record was signed anew.
    pub(super) fn set_own_record(&mut self, record: Envelope) {
        self.own_record = record;
    }

    /// Since when this process has known of a wave.
    pub(super) fn wave_opened(&self, campaign: &CampaignId, wave: u32) -> Option<WallTime> {
        self.waves_known.get(&(campaign.clone(), wave)).copied()
    }

    fn take_permit(&mut self, permit: Permit) {
        if permit.kind == PermitKind::Update {
            let now = self.now();
            let wave = (permit.campaign.clone(), permit.wave);
            self.waves_known.entry(wave).or_insert(now);
        }
        self.permits.insert((permit.campaign.clone(), permit.sequence), permit);
    }

    /// Whether a campaign may go on: approved, listed when the coordinator was last heard, and not over by its own date.
    pub(super) fn is_on(&self, id: &CampaignId) -> bool {
        let known = self.campaigns.get(id);
        known.is_some_and(|campaign| !self.halted.contains(id) && self.now() < campaign.manifest.expires)
    }

    /// Lets the next sync begin as soon as the last one is over.
    pub(super) fn sync_soon(&mut self) {
        self.sync_at = self.sync_at.min(self.last_sync + SYNC_GAP);
    }

    /// A peer speaks of an image that this node has not heard of: the next sync begins early, so that a fleet hears of a
    /// campaign about when its first node does. The nodes spread out over a tenth of the polls' interval, by name, and each
    /// does it once in an interval at most: peers may lie.
    pub(super) fn heed_rumour(&mut self, me: &NodeId, poll_interval: Duration) {
        let now = Instant::now();
        if self.rumour_at.is_none_or(|at| now.duration_since(at) >= poll_interval) {
            self.rumour_at = Some(now);
            let byte = blake3::hash(me.as_str().as_bytes()).as_bytes()[0];
            let spread = poll_interval / 10 * u32::from(byte) / 256;
            self.sync_at = self.sync_at.min(now.max(self.last_sync + SYNC_GAP) + spread);
        }
    }

    /// Permits that name a device and have not lapsed, of campaigns that are on, oldest first.
    /// Permits that were given and are not over, by edition of the campaign and sequence.
    pub(super) fn permits_given(&self) -> BTreeSet<(Sha256, u64)> {
        let permits = self.permits.values();
        permits
            .map(|permit| (permit.manifest_sha256, permit.sequence))
            .collect()
    }

    pub(super) fn permits_for(&self, device: &DeviceId) -> Vec<Permit> {
        let now = self.now();
        let current = self.trusted_until.is_some_and(|until| now < until) && !self.log_is_forked;
        self.permits
            .values()
            .filter(|permit| current && now < permit.expires && permit.devices.contains(device))
            .filter(|permit| !self.halted.contains(&permit.campaign))
            .cloned()
            .collect()
    }

    /// Opens a permit with the keys that its approved campaign names for it.
    fn open_permit(&self, envelope: &Envelope) -> Option<Permit> {
        self.campaigns
            .values()
            .find_map(|campaign| campaign.open_permit(envelope))
    }
}

impl Runtime {
    /// Takes up what is on disk: roster, metadata, campaigns, permits. A node needs no coordinator for what was approved.
    pub(super) async fn begin_fleet(&mut self) -> Result<(), JournalError> {
        self.begin_safety();
        self.fleet.epoch = self.journal.epoch()?;
        self.begin_roster()?;
        let refreshed = {
            let mut trust = self.trust.lock().await;
            let fleet = trust.stored_fleet().await;
            let folder = self.settings.state_dir.join("campaigns");
            let campaigns = fleet
                .as_ref()
                .map_or_else(|_| BTreeMap::new(), |fleet| campaigns::load(fleet, &folder));
            Refreshed {
                fleet,
                broken_off: None,
                campaigns,
                offered_version: 0,
                known_time: trust.known_time(),
            }
        };
        if refreshed.fleet.is_ok() {
            self.on_refreshed(refreshed)?;
        } else if let Err(error) = &refreshed.fleet
            && !error.is_absence()
        {
            self.refuse(error.code(), format!("stored metadata: {}", Chain(error)));
        }
        for envelope in self.journal.permits()? {
            if let Some(permit) = self.fleet.open_permit(&envelope) {
                self.fleet.take_permit(permit);
            }
        }
        let permits: Vec<_> = self.fleet.permits.values().cloned().collect();
        self.prune_evidence(permits.iter());
        permits.iter().for_each(|permit| self.want_evidence(permit));
        Ok(())
    }

    pub(super) fn sync_due_at(&self) -> Option<Instant> {
        (!self.fleet.syncing).then_some(self.fleet.sync_at)
    }

    pub(super) fn sync_if_due(&mut self) -> Result<(), JournalError> {
        if self.fleet.syncing || Instant::now() < self.fleet.sync_at {
            return Ok(());
        }
        if self.fleet.roster_again.is_some_and(|at| at <= Instant::now()) {
            (self.fleet.roster_version, self.fleet.roster_again) = (0, None);
        }
        let request = SyncRequest {
            record: self.fleet.own_record.clone(),
            devices: self.devices.facts(),
            reports: self.journal.reports(REPORTS_MAX)?,
            holdings: self.holdings(),
            traffic: self.traffic(),
            banned: self.banned(),
            roster_version: self.fleet.roster_version,
            permits_seen: self.fleet.permits_synced.clone(),
            brakes: self.brakes.untold(),
            brakes_version: self.brakes.version,
            revocations_version: self.revocations.list.version,
            audit: self.audit.ask(),
            possession: self.possession.answers(),
            feeders: match self.fleet.wants_feeders {
                true => busiest(&self.fed_by),
                false => Vec::new(),
            },
        };
        self.fleet.syncing = true;
        self.fleet.last_sync = Instant::now();
        let uplink = self.uplink.clone();
        self.spawn(async move { Event::Synced(Box::new(uplink.sync(&request).await)) });
        Ok(())
    }

    pub(super) fn on_synced(&mut self, result: Result<SyncResponse, UplinkError>) -> Result<(), JournalError> {
        self.fleet.syncing = false;
        self.fleet.sync_at = Instant::now() + self.settings.poll_interval;
        if self.fleet.rumour_at.is_some_and(|at| at > self.fleet.last_sync) {
            self.fleet.sync_soon();
        }
        self.drop_lapsed_members()?;
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                if self.fleet.coordinator_reachable || !error.is_unreachable() {
                    warn!(error = %Chain(&error), "no sync with the coordinator");
                }
                self.fleet.coordinator_reachable = false;
                // An older one may stand in for it, and refuses words that it does not know.
                self.fleet.wants_feeders = false;
                self.note_heard(Some(match error.is_unreachable() && !error.is_misconduct() {
                    true => Coordinator::Away,
                    false => Coordinator::Odd,
                }));
                self.name_misconduct(&error);
                self.tell_checkpoints();
                return self.tell_swarm(swarm::Input::Origin { available: false });
            }
        };
        if !self.fleet.coordinator_reachable {
            info!("the coordinator is reachable");
        }
        self.fleet.coordinator_reachable = true;
        self.note_heard(Some(Coordinator::Answers));
        self.tell_swarm(swarm::Input::Origin { available: true })?;
        self.journal.acknowledge(response.reports_acked)?;
        if !self.journal.reports(1)?.is_empty() {
            self.fleet.sync_soon();
        }
        if let Some(revocations) = &response.revocations {
            self.learn_revocations(revocations)?;
        }
        self.heed_brakes(response.brakes, response.brakes_version);
        if let Some(roster) = response.roster {
            self.forget_leavers(&roster)?;
            self.learn_roster(roster)?;
            self.fleet.roster_version = response.roster_version;
        } else if let Some(changes) = response.roster_changes {
            // An answer to an older question is asked for again.
            if changes.since == self.fleet.roster_version {
                self.forget(&changes.left)?;
                self.learn_roster(changes.records)?;
                self.fleet.roster_version = response.roster_version;
            }
        }
        self.tell_words();
        self.fleet.wants_feeders = response.wants_feeders;
        self.heed_traces(&response.traces);
        self.heed_halts(&response.campaigns)?;
        self.heed_challenges(&response.challenges);
        self.refresh_if_stale(response.timestamp_version, &response.campaigns);
        let is_logged = self.heed_audit(response.audit.as_ref());
        let no_campaign_is_missing = response
            .campaigns
            .iter()
            .all(|id| self.fleet.campaigns.contains_key(id));
        for envelope in response.permits.into_iter().filter(|_| is_logged) {
            if let Some(permit) = self.learn_permit(&envelope)? {
                let seen = self.fleet.permits_synced.entry(permit.campaign).or_default();
                *seen = permit.sequence.max(*seen);
                self.tell_mesh(MeshCommand::Publish(Topic::Permits, envelope.to_bytes()));
            } else if no_campaign_is_missing && self.fleet.open_permit(&envelope).is_none() {
                let detail = "a permit is signed by no key that the approvers of a campaign here named";
                self.refuse("forged_permit", detail.to_owned());
            }
        }
        self.consider()
    }

    /// A campaign that the coordinator does not list any more starts nothing.
    fn heed_halts(&mut self, listed: &[CampaignId]) -> Result<(), JournalError> {
        let known: Vec<_> = self.fleet.campaigns.keys().cloned().collect();
        for campaign in known {
            let halted = !listed.contains(&campaign);
            if halted != self.fleet.halted.contains(&campaign) {
                info!(%campaign, halted, "a campaign changed");
                self.journal.keep_halted(&campaign, halted)?;
                match halted {
                    true => self.fleet.halted.insert(campaign),
                    false => self.fleet.halted.remove(&campaign),
                };
            }
        }
        self.track_all()
    }

    fn refresh_if_stale(&mut self, offered_version: u64, listed: &[CampaignId]) {
        let missing: Vec<_> = listed
            .iter()
            .filter(|id| !self.fleet.campaigns.contains_key(*id))
            .cloned()
            .collect();
        let stale = offered_version != self.fleet.timestamp_version || !missing.is_empty();
        // What was refused is not asked for again at once, unless something else is offered.
        let refused = self.fleet.refused;
        let refused_lately =
            refused.is_some_and(|(version, at)| version == offered_version && at.elapsed() < REFUSED_AGAIN);
        if self.fleet.refreshing || !stale || refused_lately {
            return;
        }
        self.fleet.refreshing = true;
        let (trust, uplink) = (Arc::clone(&self.trust), self.uplink.clone());
        let folder = self.settings.state_dir.join("campaigns");
        let listed = listed.to_vec();
        self.spawn(async move {
            let mut trust = trust.lock().await;
            let broken_off = Arc::default();
            let fleet = trust
                .refresh(|name, bytes_max| fetch_metadata(uplink.clone(), name, bytes_max, Arc::clone(&broken_off)))
                .await;
            let mut found = BTreeMap::new();
            if let Ok(fleet) = &fleet {
                for id in listed {
                    let campaign = campaigns::fetch(fleet, &uplink, &folder, &id).await;
                    found.insert(id, campaign);
                }
            }
            Event::Refreshed(Box::new(Refreshed {
                fleet,
                broken_off: lock(&broken_off).take(),
                campaigns: found,
                offered_version,
                known_time: trust.known_time(),
            }))
        });
    }

    pub(super) fn on_refreshed(&mut self, refreshed: Refreshed) -> Result<(), JournalError> {
        self.fleet.refreshing = false;
        let fleet = match refreshed.fleet {
            Ok(fleet) => fleet,
            Err(error) => {
                if let Some(broken_off) = &refreshed.broken_off {
                    self.name_misconduct(broken_off);
                    // An answer without an end would come again and again.
                    if !broken_off.is_unreachable() {
                        self.fleet.refused = Some((refreshed.offered_version, Instant::now()));
                    }
                }
                if error.is_absence() {
                    debug!(error = %Chain(&error), "metadata could not be fetched");
                } else {
                    self.fleet.refused = Some((refreshed.offered_version, Instant::now()));
                    self.refuse(error.code(), format!("metadata: {}", Chain(&error)));
                }
                return Ok(());
            }
        };
        let header = &fleet.metadata().timestamp().header;
        info!(timestamp = header.version, "metadata verified");
        self.fleet.timestamp_version = header.version;
        self.fleet.trusted_until = Some(header.expires);
        self.fleet.refused = None;
        self.fleet.clock_floor = refreshed.known_time.max(self.fleet.clock_floor);
        self.trust_log_keys(&fleet);
        self.trust_brake_keys(&fleet)?;
        self.trust_approvers(&fleet);
        self.drop_withdrawn(&fleet)?;
        for (id, campaign) in refreshed.campaigns {
            match campaign {
                Ok(campaign) => self.take_up(id, campaign)?,
                Err(error) => {
                    if error.is_lasting() {
                        self.fleet.refused = Some((refreshed.offered_version, Instant::now()));
                    }
                    self.refuse(error.code(), format!("campaign {id}: {}", Chain(&error)));
                }
            }
        }
        self.consider()
    }

    /// Forgets campaigns that today's metadata does not carry as they were taken up: withdrawn, changed, or with a
    /// release that was recalled.
    fn drop_withdrawn(&mut self, fleet: &TrustedFleet) -> Result<(), JournalError> {
        let carried = |id: &CampaignId, campaign: &ApprovedCampaign| {
            let manifest = &campaign.manifest;
            fleet
                .campaign_file(id)
                .is_ok_and(|(_, digest)| digest == campaign.manifest_sha256)
                && manifest.pinned().all(|pinned| fleet.pinned_release(pinned).is_ok())
        };
        let withdrawn: Vec<_> = self
            .fleet
            .campaigns
            .iter()
            .filter(|(id, c)| !carried(id, c))
            .map(|(id, _)| id.clone())
            .collect();
        for id in withdrawn {
            self.refuse(
                "withdrawn",
                format!("campaign {id} is not approved any more as this node took it up"),
            );
            self.fleet.campaigns.remove(&id);
        }
        Ok(())
    }

    fn take_up(&mut self, id: CampaignId, campaign: ApprovedCampaign) -> Result<(), JournalError> {
        let wanted = campaign.artifacts_for(&self.settings.node).len();
        if self.journal.is_halted(&id)? {
            self.fleet.halted.insert(id.clone());
        }
        if self.fleet.campaigns.insert(id.clone(), campaign).is_none() {
            info!(campaign = %id, artifacts = wanted, "taking part in a campaign");
        }
        self.track_all()
    }

    /// Takes part in the artifacts of every campaign that is on. Of one that is over, in what is here already: a neighbour
    /// may be late.
    pub(super) fn track_all(&mut self) -> Result<(), JournalError> {
        let mut artifacts = Vec::new();
        for (id, campaign) in &self.fleet.campaigns {
            let (is_on, planned) = (self.fleet.is_on(id), campaign.artifacts_for(&self.settings.node));
            let of_node = campaign.releases.values().map(|release| &release.artifact);
            let of_node = of_node.filter(|artifact| planned.contains(&artifact.id));
            artifacts.extend(
                of_node
                    .filter(|artifact| is_on || self.room.store.lists(artifact.id))
                    .map(|artifact| (artifact.clone(), campaign.manifest.priority)),
            );
        }
        for (artifact, priority) in artifacts {
            self.track(&artifact, priority)?;
        }
        Ok(())
    }

    /// Verifies and keeps a permit. `None` if no approved campaign names the key that signed it.
    fn learn_permit(&mut self, envelope: &Envelope) -> Result<Option<Permit>, JournalError> {
        let Some(permit) = self.fleet.open_permit(envelope) else {
            debug!("a permit waits for its campaign, or is signed by nobody the approvers named");
            return Ok(None);
        };
        let key = (permit.campaign.clone(), permit.sequence);
        if self.fleet.permits.contains_key(&key) {
            return Ok(Some(permit));
        }
        if let Err(refusal) = check_permit(&permit, self.fleet.now(), self.fleet.epoch) {
            self.refuse(refusal.code(), refusal.to_string());
            return Ok(None);
        }
        if permit.epoch > self.fleet.epoch {
            self.journal.keep_epoch(permit.epoch)?;
            self.fleet.epoch = permit.epoch;
        }
        if self.journal.keep_permit(&permit.campaign, permit.sequence, envelope)? {
            let (campaign, sequence) = (&permit.campaign, permit.sequence);
            info!(%campaign, wave = permit.wave, sequence, devices = permit.devices.len(), kind = ?permit.kind, "a permit");
        }
        self.want_evidence(&permit);
        self.fleet.take_permit(permit.clone());
        self.tell_again(&permit)?;
        Ok(Some(permit))
    }

    /// Judges what the mesh brought; only what verifies is passed on.
    pub(super) fn on_gossip(&mut self, gossip: Gossip) -> Result<(), JournalError> {
        let Gossip {
            topic,
            payload,
            verdict,
        } = gossip;
        if topic == Topic::Checkpoints {
            verdict.send(self.hear_checkpoint(&payload)).ok(); // the mesh may be shutting down
            return Ok(());
        }
        if topic == Topic::Traces {
            verdict.send(self.hear_traces(&payload)).ok(); // as above
            return Ok(());
        }
        let good = match Envelope::from_bytes(&payload) {
            Err(error) => {
                debug!(%error, "gossip is not an envelope");
                false
            }
            Ok(envelope) => match topic {
                Topic::Permits => self.learn_permit(&envelope)?.is_some(),
                Topic::Records => self.learn_records(vec![envelope])?,
                Topic::Evidence => self.hear_evidence(&payload),
                Topic::Brakes => match self.learn_brake(&envelope) {
                    Ok(()) => true,
                    Err(refusal) => {
                        debug!(
                            code = refusal.code,
                            detail = refusal.detail,
                            "a brake from the mesh does not count here"
                        );
                        false
                    }
                },
                Topic::Revocations => self.learn_revocations(&envelope)?,
                Topic::Checkpoints | Topic::Traces => false,
            },
        };
        verdict.send(good).ok(); // the mesh may be shutting down
        if good { self.consider() } else { Ok(()) }
    }

    pub(super) fn tell_mesh(&self, command: MeshCommand) {
        // A full queue means the mesh is behind; the coordinator and the next change say the same again.
        if self.mesh.try_send(command).is_err() {
            warn!("the mesh is behind; news was not passed to it");
        }
    }
}

/// The peers that have given most, the busiest first.
fn busiest(fed_by: &BTreeMap<NodeId, u64>) -> Vec<Feeder> {
    let feeder = |(node, bytes): (&NodeId, &u64)| Feeder {
        node: node.clone(),
        bytes: *bytes,
    };
    let mut feeders: Vec<_> = fed_by.iter().map(feeder).collect();
    feeders.sort_by_key(|feeder| std::cmp::Reverse(feeder.bytes));
    feeders.truncate(FEEDERS_MAX);
    feeders
}

/// Where a fetch leaves the error it ended with: the trust core needs no more than its text.
type BrokenOff = Arc<Mutex<Option<UplinkError>>>;

async fn fetch_metadata(uplink: Uplink, name: String, bytes_max: u64, broken_off: BrokenOff) -> Input {
    match uplink.metadata(&name, bytes_max).await {
        Ok(input) => input,
        Err(error) => {
            let input = Input::Failed(error.to_string());
            *lock(&broken_off) = Some(error);
            input
        }
    }
}

fn lock(broken_off: &Mutex<Option<UplinkError>>) -> MutexGuard<'_, Option<UplinkError>> {
    broken_off.lock().unwrap_or_else(PoisonError::into_inner)
}
