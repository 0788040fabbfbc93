//! What an engine shows to those who read: campaigns, single devices and pages of them, what is in flight, decisions.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use firmesh_protocol::{
    api::{AttemptView, CampaignState, CampaignView, Explanation, GateVerdict, WaveView},
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, TopologyPath},
    manifest::{Artifact, CampaignManifest, PlannedDevice},
    report::AttemptState,
};

use crate::{
    attempts::Attempt,
    campaign::Campaign,
    check::InFlight,
    engine::{Engine, in_flight},
};

impl Engine {
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
        Some(&self.campaigns.get(id)?.attempts.stand(device)?.seat.node)
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
            .stand(device)?
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
        let of_wave = campaign
            .attempts
            .by_device()
            .filter(|attempt| attempt.stand.wave == wave);
        of_wave
            .filter_map(|attempt| Some((attempt.stand.seat.node.clone(), attempt.record.end_report?)))
            .collect()
    }

    /// Whether an attempt left the device quarantined and nobody has cleared it.
    #[must_use]
    pub fn is_quarantined(&self, device: &DeviceId) -> bool {
        let attempts = self
            .campaigns
            .values()
            .filter_map(|campaign| campaign.attempts.get(device));
        attempts.into_iter().any(|attempt| attempt.is_quarantined())
    }

    /// Devices that an attempt left quarantined and that nobody has cleared.
    #[must_use]
    pub fn quarantined(&self) -> BTreeSet<DeviceId> {
        let attempts = self.campaigns.values().flat_map(Campaign::quarantined);
        attempts.map(|attempt| attempt.record.device.clone()).collect()
    }

    /// Devices in flight anywhere, with their racks: what the caps count.
    #[must_use]
    pub fn in_flight(&self) -> BTreeMap<DeviceId, TopologyPath> {
        let attempts = self.campaigns.values().flat_map(in_flight);
        attempts
            .map(|attempt| (attempt.record.device.clone(), attempt.stand.seat.rack.clone()))
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
            node: attempt.stand.seat.node.clone(),
            rack: attempt.stand.seat.rack.clone(),
            labels: attempt.own.labels.clone(),
        };
        let attempts = self.campaigns.values().flat_map(in_flight);
        attempts
            .map(|attempt| (attempt.record.device.clone(), place(&attempt)))
            .collect()
    }

    /// The attempts of a campaign in the order of their devices: those after `after`, at most `count`.
    #[must_use]
    pub fn attempts_after(&self, id: &CampaignId, after: Option<&DeviceId>, count: usize) -> Option<Vec<AttemptView>> {
        let campaign = self.campaigns.get(id)?;
        let attempts = campaign.attempts.after(after).take(count);
        Some(
            attempts
                .filter_map(|attempt| campaign.attempt_view(&attempt.record.device))
                .collect(),
        )
    }

    /// What a campaign has decided, in order.
    #[must_use]
    pub fn decisions(&self, id: &CampaignId) -> Option<&[Explanation]> {
        Some(&self.campaigns.get(id)?.record.decisions)
    }

    /// What a campaign plans for a device, and the last permit that names it.
    #[must_use]
    pub fn planned(&self, id: &CampaignId, device: &DeviceId) -> Option<(PlannedDevice, Option<u64>)> {
        let campaign = self.campaigns.get(id)?;
        let attempt = campaign.attempts.get(device)?;
        Some((campaign.planned(&attempt), attempt.record.permit))
    }

    /// The campaigns whose plans name a device, in the order of their ids.
    pub fn campaigns_of<'a>(&'a self, device: &'a DeviceId) -> impl Iterator<Item = &'a CampaignId> {
        let names = move |(_, campaign): &(&CampaignId, &Campaign)| campaign.attempts.contains(device);
        self.campaigns.iter().filter(names).map(|(id, _)| id)
    }

    /// How many attempts run, and how many left a device quarantined that nobody has cleared, in all campaigns.
    #[must_use]
    pub fn running_and_quarantined(&self) -> (usize, usize) {
        let sizes = self
            .campaigns
            .values()
            .map(|campaign| campaign.index.running_and_quarantined());
        sizes.fold((0, 0), |(running, quarantined), (more, others)| {
            (running + more, quarantined + others)
        })
    }

    /// How many devices of campaigns that have not ended are in which state.
    #[must_use]
    pub fn attempt_states(&self) -> BTreeMap<AttemptState, usize> {
        let mut counts = BTreeMap::new();
        let at_work = self
            .campaigns
            .values()
            .filter(|campaign| !campaign.record.state.is_terminal());
        for (state, count) in at_work.flat_map(Campaign::states) {
            *counts.entry(state).or_default() += count as usize;
        }
        counts
    }

    /// For looking up devices' attempts, one by one.
    #[must_use]
    pub fn latest(&self) -> Latest<'_> {
        let mut campaigns: Vec<_> = self.campaigns.values().collect();
        campaigns.sort_by_key(|campaign| (campaign.record.state.is_terminal(), Reverse(campaign.manifest.sequence)));
        Latest(campaigns)
    }
}

/// The campaigns in the order in which a device's attempt is looked for: those that run, the newest first.
#[derive(Debug)]
pub struct Latest<'a>(Vec<&'a Campaign>);

impl Latest<'_> {
    /// The device's running attempt, or its last one.
    #[must_use]
    pub fn attempt(&self, device: &DeviceId) -> Option<AttemptView> {
        self.0.iter().find_map(|campaign| campaign.attempt_view(device))
    }

    /// For going along the devices in their order: no device is searched for.
    #[must_use]
    pub fn along(&self) -> Along<'_> {
        let campaigns = self.0.iter().map(|campaign| (*campaign, None));
        Along(campaigns.collect())
    }
}

/// The states of attempts for who goes along the devices in their order.
#[derive(Debug)]
pub struct Along<'a>(Vec<(&'a Campaign, Option<usize>)>);

impl Along<'_> {
    /// The state of the device's running attempt, or of its last one. Devices must be asked for in their order.
    pub fn state(&mut self, device: &DeviceId) -> Option<AttemptState> {
        let states = self.0.iter_mut().map(|(campaign, rank)| {
            let (next, state) = campaign.attempts.seek(*rank, device);
            *rank = Some(next);
            state
        });
        // Everyone moves on, also behind the one that knows the device.
        states.fold(None, Option::or)
    }
}

impl Campaign {
    pub(crate) fn view(&self) -> CampaignView {
        let waves = (0..).take(self.attempts.waves()).map(|number: u32| {
            let gate = self.record.gates.get(number as usize);
            let devices = self.attempts.of_wave(number as usize).len();
            WaveView {
                wave: number,
                devices: u32::try_from(devices).unwrap_or(u32::MAX),
                states: self.states_of(number as usize).clone(),
                open: gate.is_some(),
                gate: gate.copied().unwrap_or(GateVerdict::Unknown),
            }
        });
        CampaignView {
            id: self.record.id.clone(),
            state: self.record.state,
            wave: u32::try_from(self.record.gates.len().saturating_sub(1)).unwrap_or(u32::MAX),
            waves: waves.collect(),
            states: self.states(),
            possession: self.possession.view(),
            held: self.held.clone(),
            provisioning: self.provisioning(),
            reason: self.record.reason.clone(),
        }
    }

    pub(crate) fn attempt_view(&self, device: &DeviceId) -> Option<AttemptView> {
        let attempt = self.attempts.get(device)?;
        Some(AttemptView {
            campaign: self.record.id.clone(),
            device: device.clone(),
            wave: attempt.stand.wave,
            state: attempt.record.state,
            attempt: attempt.record.attempt(),
            reason: attempt.record.reason.clone(),
            version: attempt.record.version.clone(),
        })
    }
}
