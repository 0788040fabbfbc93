//! Who may start now: what is in flight anywhere, counted against every cap that binds there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firmesh_protocol::{
    api::CampaignState,
    ids::{DeviceId, TopologyPath},
    manifest::Caps,
    report::{AttemptState, PermitKind},
    time::Timestamp,
};

use crate::{
    campaign::{Attempt, Campaign},
    engine::PermitOrder,
};

pub(crate) fn may_be_permitted(campaign: &Campaign, kind: PermitKind, now: Timestamp) -> bool {
    match kind {
        PermitKind::Update => campaign.record.state == CampaignState::Active && now < campaign.expires_at,
        PermitKind::Rollback => campaign.record.state == CampaignState::RollingBack,
    }
}

pub(crate) fn may_be_permitted_again(campaign: &Campaign, attempt: &Attempt, now: Timestamp) -> bool {
    let kind = attempt.record.kind;
    let is_held = match campaign.record.state {
        CampaignState::Paused => true,
        CampaignState::RollingBack => campaign.record.resumable,
        _ => false,
    };
    let is_paused = is_held && now < campaign.expires_at;
    let is_wanted = kind == PermitKind::Update || attempt.record.ordered_back || campaign.goes_back(attempt.wave);
    let goes_on = is_paused && kind == PermitKind::Update && !attempt.record.ordered_back;
    goes_on || (is_wanted && may_be_permitted(campaign, kind, now))
}

/// The devices that may start now, by wave, and those whose permit lapsed unused.
pub(crate) fn choose(
    campaign: &Campaign,
    kind: PermitKind,
    load: &mut Load,
    now: Timestamp,
    ttl: Duration,
) -> BTreeMap<u32, Vec<DeviceId>> {
    let mut chosen: BTreeMap<u32, Vec<DeviceId>> = BTreeMap::new();
    for attempt in campaign.attempts.of_first_waves(campaign.record.gates.len()) {
        let record = &attempt.record;
        let is_running = attempt.is_running() && record.kind == kind;
        let is_lapsed = is_running
            && attempt.started_at.is_none()
            && attempt.permitted_at + ttl <= now
            && may_be_permitted_again(campaign, attempt, now)
            && !load.is_taken_back(attempt)
            && load.is_within(&attempt.rack, campaign);
        let is_new = match kind {
            PermitKind::Update => attempt.is_untouched() && !load.is_taken_back(attempt),
            PermitKind::Rollback => campaign.must_go_back(attempt),
        };
        // What a device goes back to was proven before it went forward.
        let is_proven = attempt.is_proven || kind == PermitKind::Rollback;
        if is_proven && (is_lapsed || (is_new && load.admit(&record.device, &attempt.rack, campaign))) {
            chosen.entry(attempt.wave).or_default().push(record.device.clone());
        }
    }
    chosen
}

pub(crate) fn permit(
    campaign: &mut Campaign,
    kind: PermitKind,
    wave: u32,
    devices: &[DeviceId],
    now: Timestamp,
) -> PermitOrder {
    campaign.record.last_permit += 1;
    campaign.is_dirty = true;
    let sequence = campaign.record.last_permit;
    for device in devices {
        campaign.edit(device, |attempt| {
            if attempt.record.kind != kind || attempt.record.permit.is_none() {
                attempt.awaited_since = now;
            }
            if attempt.record.kind != kind {
                attempt.record.kind = kind;
                attempt.record.state = AttemptState::Pending;
                attempt.record.reason = "on its way back to the previous version".to_owned();
            }
            attempt.record.permit = Some(sequence);
            attempt.permitted_at = now;
            attempt.started_at = None;
        });
    }
    PermitOrder {
        campaign: campaign.record.id.clone(),
        kind,
        wave,
        sequence,
        devices: devices.to_vec(),
    }
}

/// What is in flight, and the tightest caps of the campaigns it belongs to.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) devices: BTreeMap<DeviceId, TopologyPath>,
    racks: BTreeMap<TopologyPath, usize>,
    rack_caps: BTreeMap<TopologyPath, u32>,
    total_cap: u32,
    /// Devices that wait for their way back in one campaign: no other one moves them on meanwhile.
    going_back: BTreeSet<DeviceId>,
}

impl Load {
    pub(crate) fn of<'a>(campaigns: impl Iterator<Item = &'a Campaign>) -> Self {
        Self::count(campaigns, |attempt| attempt.is_running() || attempt.is_quarantined())
    }

    pub(crate) fn of_quarantined<'a>(campaigns: impl Iterator<Item = &'a Campaign>) -> Self {
        Self::count(campaigns, Attempt::is_quarantined)
    }

    fn count<'a>(campaigns: impl Iterator<Item = &'a Campaign>, counts: impl Fn(&Attempt) -> bool) -> Self {
        let mut load = Self {
            devices: BTreeMap::new(),
            racks: BTreeMap::new(),
            rack_caps: BTreeMap::new(),
            total_cap: u32::MAX,
            going_back: BTreeSet::new(),
        };
        for campaign in campaigns {
            if campaign.record.state == CampaignState::RollingBack {
                let waiting = campaign
                    .attempts
                    .iter()
                    .filter(|attempt| campaign.must_go_back(attempt));
                load.going_back
                    .extend(waiting.map(|attempt| attempt.record.device.clone()));
            }
            for attempt in campaign.attempts.iter().filter(|attempt| counts(attempt)) {
                load.add(&attempt.record.device, &attempt.rack);
                // What an old campaign left quarantined takes a place, but its caps bind nobody any more. What is only
                // presumed so may be at it still: its node was not heard of, and goes on when it is back.
                if attempt.is_running() || attempt.record.presumed {
                    load.tighten(&attempt.rack, campaign);
                }
            }
        }
        load
    }

    pub(crate) fn in_rack(&self, rack: &TopologyPath) -> usize {
        self.racks.get(rack).copied().unwrap_or_default()
    }

    /// The most devices that may be in flight in the rack, and in all, once a campaign with these caps has one there.
    pub(crate) fn caps(&self, rack: &TopologyPath, caps: &Caps) -> (usize, usize) {
        let per_rack = self
            .rack_caps
            .get(rack)
            .map_or(caps.per_rack, |cap| (*cap).min(caps.per_rack));
        (per_rack as usize, self.total_cap.min(caps.total) as usize)
    }

    /// Whether a device that is to be updated waits for its way back in another campaign.
    pub(crate) fn is_taken_back(&self, attempt: &Attempt) -> bool {
        attempt.record.kind == PermitKind::Update && self.going_back.contains(&attempt.record.device)
    }

    /// Whether nothing that is counted here will make room for the device by itself.
    pub(crate) fn shuts_out(&self, device: &DeviceId, rack: &TopologyPath, caps: &Caps) -> bool {
        let (per_rack, total) = self.caps(rack, caps);
        self.in_rack(rack) >= per_rack || self.devices.len() >= total || self.devices.contains_key(device)
    }

    /// Whether one more device may start; counts it if so. A device in flight elsewhere may not.
    fn admit(&mut self, device: &DeviceId, rack: &TopologyPath, campaign: &Campaign) -> bool {
        let own = &campaign.manifest.caps;
        // Most devices of a large wave are asked about in vain: the campaign's own caps say so sooner than all others' do.
        if self.devices.len() >= own.total as usize || self.in_rack(rack) >= own.per_rack as usize {
            return false;
        }
        let (per_rack, total) = self.caps(rack, own);
        let fits = self.in_rack(rack) < per_rack && self.devices.len() < total;
        let admitted = fits && !self.devices.contains_key(device);
        if admitted {
            self.add(device, rack);
            self.tighten(rack, campaign);
        }
        admitted
    }

    /// Whether what is in flight keeps the caps: a device that comes back to life after a person cleared it may not.
    fn is_within(&self, rack: &TopologyPath, campaign: &Campaign) -> bool {
        let (per_rack, total) = self.caps(rack, &campaign.manifest.caps);
        self.in_rack(rack) <= per_rack && self.devices.len() <= total
    }

    fn add(&mut self, device: &DeviceId, rack: &TopologyPath) {
        if self.devices.insert(device.clone(), rack.clone()).is_none() {
            *self.racks.entry(rack.clone()).or_default() += 1;
        }
    }

    fn tighten(&mut self, rack: &TopologyPath, campaign: &Campaign) {
        let (per_rack, total) = self.caps(rack, &campaign.manifest.caps);
        self.rack_caps
            .insert(rack.clone(), u32::try_from(per_rack).unwrap_or(u32::MAX));
        self.total_cap = u32::try_from(total).unwrap_or(u32::MAX);
    }
}
