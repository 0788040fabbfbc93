//! What an engine shows to those who read a part of it: pages of attempts, single devices, decisions.

use std::{cmp::Reverse, collections::BTreeMap};

use firmesh_protocol::{
    api::{AttemptView, Explanation},
    ids::{CampaignId, DeviceId},
    manifest::PlannedDevice,
    report::AttemptState,
};

use crate::{campaign::Campaign, engine::Engine};

impl Engine {
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
        Some((campaign.planned(attempt), attempt.record.permit))
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
}
