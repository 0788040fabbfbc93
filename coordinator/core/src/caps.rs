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
    domains::OwnRules,
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
            && load.is_within(attempt, campaign);
        let is_new = match kind {
            PermitKind::Update => attempt.is_untouched() && !load.is_taken_back(attempt),
            PermitKind::Rollback => campaign.must_go_back(attempt),
        } && campaign.is_turn(attempt, kind);
        // What a device goes back to was proven before it went forward.
        let is_proven = attempt.is_proven || kind == PermitKind::Rollback;
        if is_proven && (is_lapsed || (is_new && load.admit(attempt, campaign))) {
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
    domains: BTreeMap<u32, usize>,
    domain_caps: BTreeMap<u32, u32>,
    /// By rule and group: its domains that have devices in flight.
    seats: BTreeMap<(u32, u32), BTreeSet<u32>>,
    /// Rules of redundancy that campaigns with devices in flight have.
    together: BTreeSet<u32>,
    units: BTreeSet<u32>,
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
            domains: BTreeMap::new(),
            domain_caps: BTreeMap::new(),
            seats: BTreeMap::new(),
            together: BTreeSet::new(),
            units: BTreeSet::new(),
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
                load.add(attempt);
                // What an old campaign left quarantined takes a place, but its caps bind nobody any more. What is only
                // presumed so may be at it still: its node was not heard of, and goes on when it is back.
                if attempt.is_running() || attempt.record.presumed {
                    load.tighten(attempt, campaign);
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
    pub(crate) fn shuts_out(&self, attempt: &Attempt, caps: &Caps, rules: &OwnRules) -> bool {
        let (per_rack, total) = self.caps(&attempt.rack, caps);
        self.in_rack(&attempt.rack) >= per_rack
            || self.devices.len() >= total
            || self.devices.contains_key(&attempt.record.device)
            || self.in_the_way(attempt, rules).is_some()
    }

    /// Whether one more device may start; counts it if so. A device in flight elsewhere may not.
    fn admit(&mut self, attempt: &Attempt, campaign: &Campaign) -> bool {
        let (own, rack) = (&campaign.manifest.caps, &attempt.rack);
        // Most devices of a large wave are asked about in vain: the campaign's own caps say so sooner than all others' do.
        if self.devices.len() >= own.total as usize || self.in_rack(rack) >= own.per_rack as usize {
            return false;
        }
        let (per_rack, total) = self.caps(rack, own);
        let fits = self.in_rack(rack) < per_rack && self.devices.len() < total;
        let admitted = fits
            && self.in_the_way(attempt, &campaign.rules).is_none()
            && !self.devices.contains_key(&attempt.record.device);
        if admitted {
            self.add(attempt);
            self.tighten(attempt, campaign);
        }
        admitted
    }

    /// Whether what is in flight keeps the caps: a device that comes back to life after a person cleared it may not.
    fn is_within(&self, attempt: &Attempt, campaign: &Campaign) -> bool {
        let (per_rack, total) = self.caps(&attempt.rack, &campaign.manifest.caps);
        let is_over = |domain: &u32| {
            let cap = self.domain_cap(*domain, &campaign.rules);
            cap.is_some_and(|cap| self.in_domain(*domain) > cap as usize)
        };
        self.in_rack(&attempt.rack) <= per_rack
            && self.devices.len() <= total
            && !attempt.takes.iter().flat_map(|takes| &takes.domains).any(is_over)
            && self.seat_taken(attempt, &campaign.rules).is_none()
    }

    /// What keeps one more device from starting beside racks and totals: a full domain, one that stands in for its own, or
    /// its unit.
    pub(crate) fn in_the_way(&self, attempt: &Attempt, rules: &OwnRules) -> Option<InTheWay> {
        if let Some(takes) = &attempt.takes {
            for domain in &takes.domains {
                let in_flight = self.in_domain(*domain);
                if let Some(cap) = self.domain_cap(*domain, rules)
                    && in_flight >= cap as usize
                {
                    return Some(InTheWay::Domain {
                        domain: *domain,
                        in_flight,
                        cap,
                    });
                }
            }
            if let Some(domain) = self.seat_taken(attempt, rules) {
                return Some(InTheWay::StandsIn { domain });
            }
        }
        attempt
            .unit
            .filter(|unit| self.units.contains(unit))
            .map(|_| InTheWay::Unit)
    }

    /// Another domain of a redundancy group of the device that has devices in flight.
    fn seat_taken(&self, attempt: &Attempt, rules: &OwnRules) -> Option<u32> {
        let seats = attempt.takes.iter().flat_map(|takes| &takes.groups);
        let mut bound = seats.filter(|seat| rules.together.contains(&seat.rule) || self.together.contains(&seat.rule));
        bound.find_map(|seat| {
            let taken = self.seats.get(&(seat.rule, seat.group))?;
            taken.iter().copied().find(|domain| *domain != seat.domain)
        })
    }

    fn in_domain(&self, domain: u32) -> usize {
        self.domains.get(&domain).copied().unwrap_or_default()
    }

    fn domain_cap(&self, domain: u32, rules: &OwnRules) -> Option<u32> {
        let caps = [self.domain_caps.get(&domain), rules.caps.get(&domain)];
        caps.into_iter().flatten().copied().min()
    }

    fn add(&mut self, attempt: &Attempt) {
        let (device, rack) = (&attempt.record.device, &attempt.rack);
        if self.devices.insert(device.clone(), rack.clone()).is_none() {
            *self.racks.entry(rack.clone()).or_default() += 1;
            for domain in attempt.takes.iter().flat_map(|takes| &takes.domains) {
                *self.domains.entry(*domain).or_default() += 1;
            }
            for seat in attempt.takes.iter().flat_map(|takes| &takes.groups) {
                self.seats
                    .entry((seat.rule, seat.group))
                    .or_default()
                    .insert(seat.domain);
            }
            self.units.extend(attempt.unit);
        }
    }

    fn tighten(&mut self, attempt: &Attempt, campaign: &Campaign) {
        let (per_rack, total) = self.caps(&attempt.rack, &campaign.manifest.caps);
        self.rack_caps
            .insert(attempt.rack.clone(), u32::try_from(per_rack).unwrap_or(u32::MAX));
        self.total_cap = u32::try_from(total).unwrap_or(u32::MAX);
        for domain in attempt.takes.iter().flat_map(|takes| &takes.domains) {
            if let Some(cap) = self.domain_cap(*domain, &campaign.rules) {
                self.domain_caps.insert(*domain, cap);
            }
        }
        self.together.extend(&campaign.rules.together);
    }
}

/// What keeps a device from starting, beside racks and totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// Its domain is full.
    Domain { domain: u32, in_flight: usize, cap: u32 },
    /// A domain that stands in for its own has devices in flight.
    StandsIn { domain: u32 },
    /// Another device of its unit is in flight.
    Unit,
}
