//! A fleet of hundreds of thousands of nodes, site by site: the swarm core of every node, as it runs in production.
//!
//! A node's roster is its site, and the site's copy comes over its own link from the origin, so sites have nothing to do
//! with one another: they are gone through one after the other on all processors, and memory holds one for each. What
//! [`mesh`](crate::mesh) shares out among all transfers at once is booked here: a link carries one piece after the other, and the
//! time of a piece on it is known when it is asked for. So the work grows with the pieces that move, and with nothing else.
//!
//! Invariant: a [`Plan`] gives the same [`Total`] on any number of threads.

mod peers;
mod site;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use clap::Args;
use firmesh_protocol::chunk::PIECE_BYTES_MIN;
use serde::Serialize;

use site::Site;

/// A fleet and what goes wrong in it.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Plan {
    /// Regions.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub regions: u32,
    /// Sites in each region.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub sites: u32,
    /// Racks in each site, with a node in each.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub racks: u32,
    /// The image, such as 64MiB.
    #[arg(long, default_value = "64MiB", value_parser = bytes)]
    pub image: u64,
    /// The length of a piece. Nodes cut for links of 100 Mbit/s, into 256KiB at most: on these links four times the work for
    /// nothing.
    #[arg(long, default_value = "1MiB", value_parser = bytes)]
    pub piece: u64,
    /// Each site's link to the origin, Mbit/s.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub wan_mbit: u64,
    /// Each rack's link into its site, Mbit/s, in each direction.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub rack_mbit: u64,
    /// Of all nodes, in percent, those that serve wrong bytes, announce what they do not have, drip, keep silent, or serve one piece
    /// for another.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
    pub byzantine: u32,
    /// Of all packets, in percent, those that are lost.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=50))]
    pub loss: u32,
    /// Of all nodes, in percent, those whose process dies once and is started again.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub crashes: u32,
    /// Give a site up after so many virtual seconds.
    #[arg(long, default_value_t = 600)]
    pub limit: u64,
    /// The seed of everything that is left to chance.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A number of bytes: digits and perhaps KiB, MiB or GiB.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        unit => return Err(format!("{unit:?} is no unit: KiB, MiB or GiB")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{text:?}: {error}"))?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes >= PIECE_BYTES_MIN);
    bytes.ok_or_else(|| format!("{text:?} is less than {PIECE_BYTES_MIN} bytes, or too much"))
}

impl Plan {
    /// Sites in all.
    #[must_use]
    pub fn sites_in_all(&self) -> u64 {
        u64::from(self.regions) * u64::from(self.sites)
    }

    /// Nodes in all.
    #[must_use]
    pub fn nodes(&self) -> u64 {
        self.sites_in_all() * u64::from(self.racks)
    }

    /// The least seconds until a site can have the image, payload alone.
    #[must_use]
    pub fn bound_s(&self) -> f64 {
        self.image as f64 * 8e-6 / self.wan_mbit.min(self.rack_mbit) as f64
    }
}

/// What came of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// Sites gone through.
    pub sites: u64,
    /// Nodes that were to have the image: honest ones.
    pub nodes: u64,
    /// Nodes that have it.
    pub complete: u64,
    /// How many had it within so many milliseconds: by the millisecond in which they had.
    pub finished: BTreeMap<u32, u64>,
    /// Bytes over all sites' links to the origin.
    pub wan_bytes: u64,
    /// Bytes into all honest nodes' racks, those from the origin included.
    pub rack_bytes: u64,
    /// Of these, those that were of no use: wrong ones, and pieces that were there already.
    pub wasted_bytes: u64,
    /// Announcements from node to node.
    pub words: u64,
    /// Pieces that all of them name.
    pub words_pieces: u64,
    /// Wrong bytes that a node took for good. There can be none.
    pub wrong_taken: u64,
    /// Bans, each of one node by one other.
    pub bans: u64,
    /// Of these, those of honest nodes.
    pub bans_of_honest: u64,
    /// Events gone through.
    pub events: u64,
    /// All events of all sites in one number, whatever the order of the sites.
    pub trace: u64,
}

impl Total {
    /// Adds what came of a part of the fleet.
    fn add(&mut self, part: Self) {
        let Self {
            sites,
            nodes,
            complete,
            finished,
            wan_bytes,
            rack_bytes,
            wasted_bytes,
            words,
            words_pieces,
            wrong_taken,
            bans,
            bans_of_honest,
            events,
            trace,
        } = part;
        self.sites += sites;
        self.nodes += nodes;
        self.complete += complete;
        finished
            .into_iter()
            .for_each(|(at, count)| *self.finished.entry(at).or_default() += count);
        self.wan_bytes += wan_bytes;
        self.rack_bytes += rack_bytes;
        self.wasted_bytes += wasted_bytes;
        self.words += words;
        self.words_pieces += words_pieces;
        self.wrong_taken += wrong_taken;
        self.bans += bans;
        self.bans_of_honest += bans_of_honest;
        self.events += events;
        self.trace = self.trace.wrapping_add(trace);
    }

    /// Seconds within which so many thousandths of the nodes had the image, if that many had it at all.
    #[must_use]
    pub fn within_s(&self, thousandths: u64) -> Option<f64> {
        let wanted = (self.nodes * thousandths).div_ceil(1_000);
        let mut had = 0;
        let at = self.finished.iter().find(|(_, count)| {
            had += **count;
            had >= wanted
        });
        at.map(|(at, _)| f64::from(*at) / 1e3)
    }
}

/// Goes through all sites of a fleet on so many threads, until they are through or `goes_on`, asked after each, says no.
#[must_use]
pub fn run(plan: &Plan, threads: NonZeroUsize, goes_on: &(dyn Fn(&Total) -> bool + Sync)) -> Total {
    let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Total::default());
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let site = next.fetch_add(1, Ordering::Relaxed);
            if site >= plan.sites_in_all() {
                return;
            }
            let part = Site::new(plan, site).run(Duration::from_secs(plan.limit));
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.add(part);
            if !goes_on(&total) {
                is_over.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}
