//! Many seeds on many threads, and of a failure the fewest faults that still break the same promise.

use std::{
    num::NonZeroUsize,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use serde::Serialize;

use super::{Broken, Planned, Profile, Promise, Tally, Verdict, faults_of, run};

/// What is hunted through.
#[derive(Debug, Clone)]
pub struct Hunt {
    /// What the runs are about.
    pub profile: Profile,
    /// The seeds.
    pub seeds: Range<u64>,
    /// Threads.
    pub threads: NonZeroUsize,
    /// End with so many failures.
    pub findings_max: usize,
}

/// How far a hunt is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Seeds gone through.
    pub seeds: u64,
    /// Events gone through.
    pub events: u64,
    /// Failures found.
    pub findings: usize,
}

/// A seed that broke a promise.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What the run was about.
    pub profile: Profile,
    /// The seed.
    pub seed: u64,
    /// What was broken.
    #[serde(flatten)]
    pub broken: Broken,
    /// The fewest of the seed's faults that still break it.
    pub faults: Vec<Planned>,
    /// How many faults the seed has.
    pub faults_drawn: usize,
}

/// What a hunt came to.
#[derive(Debug, Clone, Serialize)]
pub struct Total {
    /// Seeds gone through.
    pub seeds: u64,
    /// Events gone through.
    pub events: u64,
    /// What happened in all of them.
    pub tally: Tally,
    /// The traces of all seeds in one, whatever their order.
    pub trace: u64,
    /// The failures, by seed.
    pub findings: Vec<Finding>,
}

/// Goes through seeds until they are through or `goes_on`, asked after each, says no.
pub fn hunt(hunt: &Hunt, goes_on: &(dyn Fn(Progress) -> bool + Sync)) -> Total {
    let (next, is_over) = (AtomicU64::new(hunt.seeds.start), AtomicBool::new(false));
    let total = Mutex::new(Total {
        seeds: 0,
        events: 0,
        tally: Tally::default(),
        trace: 0,
        findings: Vec::new(),
    });
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= hunt.seeds.end {
                return;
            }
            let verdict = run_safely(hunt.profile, seed, None);
            let finding = verdict.broken.clone().map(|broken| shrink(hunt.profile, seed, broken));
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            total.seeds += 1;
            total.events += verdict.events;
            total.tally.add(&verdict.tally);
            total.trace = total.trace.wrapping_add(mix(seed, verdict.trace));
            total.findings.extend(finding);
            let progress = Progress {
                seeds: total.seeds,
                events: total.events,
                findings: total.findings.len(),
            };
            let has_enough = progress.findings >= hunt.findings_max;
            drop(total);
            if has_enough || !goes_on(progress) {
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
    total.findings.sort_by_key(|finding| finding.seed);
    total
}

/// A failed assertion of ours is a broken promise like any other.
fn run_safely(profile: Profile, seed: u64, faults: Option<Vec<Planned>>) -> Verdict {
    catch_unwind(AssertUnwindSafe(|| run(profile, seed, faults))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no words");
        Verdict {
            broken: Some(Broken {
                promise: Promise::Sound,
                at_ms: 0,
                how: words.to_owned(),
            }),
            tally: Tally::default(),
            events: 0,
            trace: 0,
            ended_ms: 0,
        }
    })
}

/// Leaves out faults, many at once and then one by one, as long as the same promise is broken (after Zeller's ddmin).
fn shrink(profile: Profile, seed: u64, broken: Broken) -> Finding {
    let mut faults = faults_of(profile, seed);
    let faults_drawn = faults.len();
    let mut last = broken;
    let mut size = faults.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        while start < faults.len() {
            let mut fewer = faults.clone();
            fewer.drain(start..faults.len().min(start + size));
            match run_safely(profile, seed, Some(fewer.clone())).broken {
                Some(broken) if broken.promise == last.promise => (faults, last) = (fewer, broken),
                _ => start += size,
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    Finding {
        profile,
        seed,
        broken: last,
        faults,
        faults_drawn,
    }
}

/// Splitmix64's finaliser.
fn mix(seed: u64, trace: u64) -> u64 {
    let mut z = trace ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
