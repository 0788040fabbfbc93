//! What is in flight anywhere, and the caps that bind there: kept up to date with every attempt that comes and goes.
//!
//! Invariants: a device counts once in every place, in however many campaigns it is in flight; what was added is taken out
//! with the same facts; the caps are the tightest of the campaigns that have a device in flight in the place.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{ids::DeviceId, manifest::Caps, report::PermitKind};

use crate::{attempts::Attempt, campaign::Campaign, domains::OwnRules, index::Flight};

/// How often each of some things is there.
#[derive(Debug)]
struct Bag<K>(BTreeMap<K, u32>);

impl<K> Default for Bag<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Bag<K> {
    fn add(&mut self, thing: &K) {
        match self.0.get_mut(thing) {
            Some(count) => *count += 1,
            None => drop(self.0.insert(thing.clone(), 1)),
        }
    }

    fn remove(&mut self, thing: &K) {
        if let Some(count) = self.0.get_mut(thing) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(thing);
            }
        }
    }

    fn contains(&self, thing: &K) -> bool {
        self.0.contains_key(thing)
    }

    fn least(&self) -> Option<&K> {
        self.0.keys().next()
    }

    /// How many different ones.
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// What is in flight, and the caps of the campaigns it belongs to.
#[derive(Debug, Default)]
pub(crate) struct Load {
    devices: Bag<DeviceId>,
    racks: BTreeMap<u32, Bag<DeviceId>>,
    rack_caps: BTreeMap<u32, Bag<u32>>,
    total_caps: Bag<u32>,
    domains: BTreeMap<u32, Bag<DeviceId>>,
    domain_caps: BTreeMap<u32, Bag<u32>>,
    /// By rule and group: its domains that have devices in flight.
    seats: BTreeMap<(u32, u32), Bag<u32>>,
    /// Rules of redundancy that campaigns with devices in flight have.
    together: Bag<u32>,
    units: Bag<u32>,
    /// Devices that wait for their way back in one campaign: no other one moves them on meanwhile.
    going_back: Bag<DeviceId>,
    /// Racks in which something made room since that was asked last.
    released: BTreeSet<u32>,
    /// How often anything has made room.
    releases: u64,
}

/// Whether one more device may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// Nobody may.
    TotalFull,
    /// Nobody of its rack may.
    RackFull,
    /// It may not, others of its rack perhaps.
    NotForIt,
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

impl Load {
    /// What campaigns have quarantined, by itself.
    pub(crate) fn of_quarantined<'a>(campaigns: impl Iterator<Item = &'a Campaign>) -> Self {
        let mut load = Self::default();
        for campaign in campaigns {
            for attempt in campaign.quarantined() {
                load.add(&attempt, campaign, Flight::of(&attempt));
            }
        }
        load
    }

    /// Counts an attempt that is in flight.
    pub(crate) fn add(&mut self, attempt: &Attempt, campaign: &Campaign, flight: Flight) {
        if flight == Flight::No {
            return;
        }
        let (device, rack) = (&attempt.record.device, attempt.stand.rack_number);
        self.devices.add(device);
        self.racks.entry(rack).or_default().add(device);
        for domain in attempt.stand.takes.iter().flat_map(|takes| &takes.domains) {
            self.domains.entry(*domain).or_default().add(device);
        }
        for seat in attempt.stand.takes.iter().flat_map(|takes| &takes.groups) {
            self.seats.entry((seat.rule, seat.group)).or_default().add(&seat.domain);
        }
        attempt.own.unit.iter().for_each(|unit| self.units.add(unit));
        if flight == Flight::Binds {
            let caps = &campaign.manifest.caps;
            self.total_caps.add(&caps.total);
            self.rack_caps.entry(rack).or_default().add(&caps.per_rack);
            for (domain, cap) in own_caps(attempt, campaign) {
                self.domain_caps.entry(domain).or_default().add(&cap);
            }
            campaign.rules.together.iter().for_each(|rule| self.together.add(rule));
        }
    }

    /// Takes an attempt out that was counted.
    pub(crate) fn remove(&mut self, attempt: &Attempt, campaign: &Campaign, flight: Flight) {
        if flight == Flight::No {
            return;
        }
        let (device, rack) = (&attempt.record.device, attempt.stand.rack_number);
        self.devices.remove(device);
        take_out(&mut self.racks, &rack, device);
        for domain in attempt.stand.takes.iter().flat_map(|takes| &takes.domains) {
            take_out(&mut self.domains, domain, device);
        }
        for seat in attempt.stand.takes.iter().flat_map(|takes| &takes.groups) {
            take_out(&mut self.seats, &(seat.rule, seat.group), &seat.domain);
        }
        attempt.own.unit.iter().for_each(|unit| self.units.remove(unit));
        if flight == Flight::Binds {
            let caps = &campaign.manifest.caps;
            self.total_caps.remove(&caps.total);
            take_out(&mut self.rack_caps, &rack, &caps.per_rack);
            for (domain, cap) in own_caps(attempt, campaign) {
                take_out(&mut self.domain_caps, &domain, &cap);
            }
            let rules = campaign.rules.together.iter();
            rules.for_each(|rule| self.together.remove(rule));
        }
        self.released.insert(rack);
        self.releases += 1;
    }

    /// A device waits for its way back from now on.
    pub(crate) fn add_going_back(&mut self, device: &DeviceId) {
        self.going_back.add(device);
    }

    /// A device does not wait for its way back any more.
    pub(crate) fn remove_going_back(&mut self, device: &DeviceId) {
        self.going_back.remove(device);
        self.releases += 1;
    }

    /// Racks in which something has made room since this was asked last.
    pub(crate) fn take_released(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.released)
    }

    /// How often anything has made room.
    pub(crate) fn releases(&self) -> u64 {
        self.releases
    }

    /// Devices in flight.
    pub(crate) fn total(&self) -> usize {
        self.devices.len()
    }

    pub(crate) fn contains(&self, device: &DeviceId) -> bool {
        self.devices.contains(device)
    }

    /// The devices in flight in a rack.
    pub(crate) fn of_rack(&self, rack: u32) -> impl Iterator<Item = &DeviceId> {
        self.racks.get(&rack).into_iter().flat_map(|devices| devices.0.keys())
    }

    fn in_rack(&self, rack: u32) -> usize {
        self.racks.get(&rack).map_or(0, Bag::len)
    }

    /// The most devices that may be in flight in the rack, and in all, once a campaign with these caps has one there.
    pub(crate) fn caps(&self, rack: u32, caps: &Caps) -> (usize, usize) {
        let per_rack = self.rack_caps.get(&rack).and_then(Bag::least);
        let per_rack = per_rack.map_or(caps.per_rack, |cap| (*cap).min(caps.per_rack));
        let total = self.total_caps.least();
        let total = total.map_or(caps.total, |cap| (*cap).min(caps.total));
        (per_rack as usize, total as usize)
    }

    /// Whether a device that is to be updated waits for its way back in another campaign.
    pub(crate) fn is_taken_back(&self, attempt: &Attempt) -> bool {
        attempt.record.kind == PermitKind::Update && self.going_back.contains(&attempt.record.device)
    }

    /// Whether nothing that is counted here will make room for the device by itself.
    pub(crate) fn shuts_out(&self, attempt: &Attempt, caps: &Caps, rules: &OwnRules) -> bool {
        let (per_rack, total) = self.caps(attempt.stand.rack_number, caps);
        self.in_rack(attempt.stand.rack_number) >= per_rack
            || self.total() >= total
            || self.contains(&attempt.record.device)
            || self.in_the_way(attempt, rules).is_some()
    }

    /// Whether one more device may start. One in flight elsewhere may not.
    pub(crate) fn room(&self, attempt: &Attempt, campaign: &Campaign) -> Room {
        let (per_rack, total) = self.caps(attempt.stand.rack_number, &campaign.manifest.caps);
        if self.total() >= total {
            Room::TotalFull
        } else if self.in_rack(attempt.stand.rack_number) >= per_rack {
            Room::RackFull
        } else if self.contains(&attempt.record.device) || self.in_the_way(attempt, &campaign.rules).is_some() {
            Room::NotForIt
        } else {
            Room::Yes
        }
    }

    /// Whether what is in flight keeps the caps: a device that comes back to life after a person cleared it may not.
    pub(crate) fn is_within(&self, attempt: &Attempt, campaign: &Campaign) -> bool {
        let (per_rack, total) = self.caps(attempt.stand.rack_number, &campaign.manifest.caps);
        let is_over = |domain: &u32| {
            let cap = self.domain_cap(*domain, &campaign.rules);
            cap.is_some_and(|cap| self.in_domain(*domain) > cap as usize)
        };
        self.in_rack(attempt.stand.rack_number) <= per_rack
            && self.total() <= total
            && !attempt.stand.takes.iter().flat_map(|takes| &takes.domains).any(is_over)
            && self.seat_taken(attempt, &campaign.rules).is_none()
    }

    /// What keeps one more device from starting beside racks and totals: a full domain, one that stands in for its own, or
    /// its unit.
    pub(crate) fn in_the_way(&self, attempt: &Attempt, rules: &OwnRules) -> Option<InTheWay> {
        if let Some(takes) = &attempt.stand.takes {
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
        let unit = attempt.own.unit.filter(|unit| self.units.contains(unit));
        unit.map(|_| InTheWay::Unit)
    }

    /// Another domain of a redundancy group of the device that has devices in flight.
    fn seat_taken(&self, attempt: &Attempt, rules: &OwnRules) -> Option<u32> {
        let seats = attempt.stand.takes.iter().flat_map(|takes| &takes.groups);
        let mut bound = seats.filter(|seat| rules.together.contains(&seat.rule) || self.together.contains(&seat.rule));
        bound.find_map(|seat| {
            let taken = self.seats.get(&(seat.rule, seat.group))?;
            taken.0.keys().copied().find(|domain| *domain != seat.domain)
        })
    }

    fn in_domain(&self, domain: u32) -> usize {
        self.domains.get(&domain).map_or(0, Bag::len)
    }

    fn domain_cap(&self, domain: u32, rules: &OwnRules) -> Option<u32> {
        let bound = self.domain_caps.get(&domain).and_then(Bag::least);
        [bound, rules.caps.get(&domain)].into_iter().flatten().copied().min()
    }
}

/// The caps that its own campaign has for the domains of an attempt.
fn own_caps(attempt: &Attempt, campaign: &Campaign) -> impl Iterator<Item = (u32, u32)> {
    let domains = attempt.stand.takes.iter().flat_map(|takes| &takes.domains);
    domains.filter_map(|domain| Some((*domain, *campaign.rules.caps.get(domain)?)))
}

fn take_out<P: Ord, K: Ord + Clone>(places: &mut BTreeMap<P, Bag<K>>, place: &P, thing: &K) {
    if let Some(bag) = places.get_mut(place) {
        bag.remove(thing);
        if bag.len() == 0 {
            places.remove(place);
        }
    }
}
