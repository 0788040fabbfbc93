//! Sites, images, faults and troubles that a seed draws, many seeds on many threads, and of a failure the fewest troubles that
//! still break the same promise.

use std::{
    num::NonZeroUsize,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use clap::ValueEnum as _;
use firmesh_coordinator_core::TURNS;
use firmesh_node_core::swarm::Tuning;
use serde::Serialize;

use super::{Broken, Day, Fault, Lie, Promise, Summary, Topology, Trouble, World, trouble::Chance};

/// Every honest node has the image within so many times the bound, and so much more, from the moment the last trouble has
/// passed: requests are given a minute at most, and a stalled member is passed over after seconds.
const LIVE_BOUNDS: f64 = 10.0;
const LIVE_MORE: Duration = Duration::from_secs(90);
/// One seed in so many has real bytes.
const REAL_ONE_IN: u32 = 8;

/// One run.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The seed of everything.
    pub seed: u64,
    /// The site.
    pub topology: Topology,
    /// With the network as a whole.
    pub fault: Option<Fault>,
    /// With single nodes and connections.
    pub troubles: Vec<Trouble>,
    /// Whether bytes are real.
    pub is_real: bool,
}

impl Case {
    /// What a seed draws: at least one node is honest and comes back.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let topology = Topology {
            racks: chance.pick(&[1, 2, 2, 3, 4]),
            nodes: chance.pick(&[2, 3, 4, 5]),
            origin_mbit: chance.pick(&[20, 50, 100]),
            rack_mbit: chance.pick(&[50, 200, 400]),
            node_mbit: chance.pick(&[50, 100, 200]),
            size_mib: chance.pick(&[1, 2, 4, 8]),
        };
        let fault = chance.one_in(2).then(|| chance.pick(Fault::value_variants()));
        let is_real = chance.one_in(REAL_ONE_IN);
        let topology = fault.map_or(topology, |fault| fault.topology(topology));
        let mut nodes: Vec<_> = (0..topology.count() as usize).collect();
        chance.shuffle(&mut nodes);
        let span_ms = (topology.bound_s() * 1e3) as u64 + 1_000;
        let share = |percent: u64| nodes.len() * percent as usize / 100;
        let (liars, crashes) = (share(chance.pick(&[0, 20, 40, 60])), share(chance.pick(&[0, 20, 50])));
        let disks = share(chance.pick(&[0, 0, 30]));
        let mut troubles: Vec<_> = nodes[..liars]
            .iter()
            .map(|&node| chance.liar(node, Lie::value_variants()))
            .collect();
        let honest = &nodes[liars..];
        let last = honest.len().saturating_sub(1);
        troubles.extend(
            honest[..crashes.min(last)]
                .iter()
                .map(|&node| chance.crash(node, span_ms)),
        );
        troubles.extend(honest.iter().rev().take(disks).map(|&node| chance.disk(node, span_ms)));
        if chance.one_in(3) {
            troubles.push(Trouble::Loss {
                one_in: chance.pick(&[3, 10, 50]),
                until_ms: span_ms * 2,
            });
        }
        Self {
            seed,
            topology,
            fault,
            troubles,
            is_real,
        }
    }

    /// Goes through it.
    #[must_use]
    pub fn run(&self) -> Summary {
        let day = Day {
            fault: self.fault,
            troubles: self.troubles.clone(),
            is_real: self.is_real,
        };
        let mut world = World::on(day, self.topology, Tuning::default(), TURNS, self.seed);
        let within = Duration::from_secs_f64(self.topology.bound_s() * LIVE_BOUNDS) + LIVE_MORE;
        world.run(world.calm_at() + within)
    }

    /// The first promise that it breaks. A failed assertion of ours is one, too.
    fn broken(&self) -> Option<Broken> {
        let summary = catch_unwind(AssertUnwindSafe(|| self.run()));
        summary.map_or_else(
            |panic| {
                let words = panic.downcast_ref::<String>().map(String::as_str);
                let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
                Some(Broken {
                    promise: Promise::Sound,
                    at_ms: 0,
                    how: words.unwrap_or("no words").to_owned(),
                })
            },
            |summary| summary.broken,
        )
    }

    /// Leaves out troubles as long as the same promise is broken.
    fn shrunk(mut self, mut broken: Broken) -> Finding {
        let drawn = self.troubles.len();
        let mut at = 0;
        while at < self.troubles.len() {
            let mut fewer = self.clone();
            fewer.troubles.remove(at);
            match fewer.broken() {
                Some(other) if other.promise == broken.promise => (self, broken) = (fewer, other),
                _ => at += 1,
            }
        }
        Finding {
            case: self,
            drawn,
            broken,
        }
    }
}

/// What is hunted through.
#[derive(Debug, Clone)]
pub struct Hunt {
    /// The seeds.
    pub seeds: Range<u64>,
    /// Threads.
    pub threads: NonZeroUsize,
    /// End with so many failures.
    pub findings_max: usize,
}

/// A seed that broke a promise.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The run, with the fewest troubles that still break it.
    pub case: Case,
    /// How many troubles the seed has.
    pub drawn: usize,
    /// What was broken.
    pub broken: Broken,
}

/// What a hunt came to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Total {
    /// Seeds gone through.
    pub seeds: u64,
    /// Of these with real bytes.
    pub real: u64,
    /// What went wrong in all of them.
    pub troubles: usize,
    /// The failures, by seed.
    pub findings: Vec<Finding>,
}

/// Goes through seeds until they are through or `goes_on`, asked after each with how many there were, says no.
pub fn hunt(hunt: &Hunt, goes_on: &(dyn Fn(u64) -> bool + Sync)) -> Total {
    let (next, is_over) = (AtomicU64::new(hunt.seeds.start), AtomicBool::new(false));
    let total = Mutex::new(Total::default());
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= hunt.seeds.end {
                return;
            }
            let case = Case::drawn(seed);
            let (real, troubles) = (u64::from(case.is_real), case.troubles.len());
            let finding = case.broken().map(|broken| case.shrunk(broken));
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.seeds += 1;
            total.real += real;
            total.troubles += troubles;
            total.findings.extend(finding);
            if total.findings.len() >= hunt.findings_max || !goes_on(total.seeds) {
                is_over.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..hunt.threads.get() {
            scope.spawn(work);
        }
    });
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.findings.sort_by_key(|finding| finding.case.seed);
    total
}
