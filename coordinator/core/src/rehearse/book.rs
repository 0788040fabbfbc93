//! The run's own book of what is in flight: from permits and ends, without a look at the engine's caps.
//!
//! Invariant: a device enters with its permit and leaves with its end, unless it is quarantined: then it keeps its place.

use std::collections::BTreeSet;

use firmesh_protocol::time::Timestamp;

/// How many devices are in flight where; places are numbers of racks and sites.
#[derive(Debug, Clone, Default)]
struct Count {
    total: u32,
    sites: Vec<u32>,
    racks: Vec<u32>,
}

/// The most there ever were while a wave was the newest.
#[derive(Debug, Clone)]
pub(super) struct Peak {
    pub(super) total: u32,
    pub(super) sites: Vec<u32>,
    pub(super) racks: Vec<u32>,
}

impl Peak {
    pub(super) fn none(sites: usize, racks: usize) -> Self {
        Self {
            total: 0,
            sites: vec![0; sites],
            racks: vec![0; racks],
        }
    }

    /// Takes in what another run has seen.
    pub(super) fn raise(&mut self, other: &Self) {
        let raise = |own: &mut Vec<u32>, other: &Vec<u32>| {
            own.iter_mut()
                .zip(other)
                .for_each(|(own, other)| *own = (*own).max(*other))
        };
        self.total = self.total.max(other.total);
        raise(&mut self.sites, &other.sites);
        raise(&mut self.racks, &other.racks);
    }
}

#[derive(Debug)]
pub(super) struct Book {
    now: Count,
    devices: BTreeSet<usize>,
    /// By wave.
    pub(super) peaks: Vec<Peak>,
    /// What is in flight from each moment on.
    pub(super) timeline: Vec<(Timestamp, u32)>,
}

impl Book {
    pub(super) fn new(sites: usize, racks: usize, waves: usize) -> Self {
        Self {
            now: Count {
                total: 0,
                sites: vec![0; sites],
                racks: vec![0; racks],
            },
            devices: BTreeSet::new(),
            peaks: vec![Peak::none(sites, racks); waves],
            timeline: Vec::new(),
        }
    }

    /// A device was permitted while `wave` was the newest.
    pub(super) fn enter(&mut self, device: usize, (site, rack): (usize, usize), wave: usize, at: Timestamp) {
        if !self.devices.insert(device) {
            return;
        }
        self.now.total += 1;
        self.now.sites[site] += 1;
        self.now.racks[rack] += 1;
        self.timeline.push((at, self.now.total));
        self.look(wave, site, rack);
    }

    /// A device ended and makes room.
    pub(super) fn leave(&mut self, device: usize, (site, rack): (usize, usize), at: Timestamp) {
        if !self.devices.remove(&device) {
            return;
        }
        self.now.total -= 1;
        self.now.sites[site] -= 1;
        self.now.racks[rack] -= 1;
        self.timeline.push((at, self.now.total));
    }

    /// A wave opens with whatever is in flight.
    pub(super) fn open(&mut self, wave: usize) {
        let Count { total, sites, racks } = &self.now;
        let now = Peak {
            total: *total,
            sites: sites.clone(),
            racks: racks.clone(),
        };
        if let Some(peak) = self.peaks.get_mut(wave) {
            peak.raise(&now);
        }
    }

    fn look(&mut self, wave: usize, site: usize, rack: usize) {
        if let Some(peak) = self.peaks.get_mut(wave) {
            peak.total = peak.total.max(self.now.total);
            peak.sites[site] = peak.sites[site].max(self.now.sites[site]);
            peak.racks[rack] = peak.racks[rack].max(self.now.racks[rack]);
        }
    }
}
