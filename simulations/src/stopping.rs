//! How soon a gate stops a bad image: one wave after the other through the gate that nodes and coordinators judge by, once
//! with the sequential test and once with a fixed share of no less power against good images.
//!
//! Devices start in the order of the plan as places under the cap get free, and whether one fails does not depend on the
//! others; failures are quicker or slower to be known than successes, as asked. A device is exposed once it has started.

use std::{cmp::Reverse, collections::BinaryHeap};

use firmesh_protocol::{
    api::GateVerdict,
    gate::{Fate, Sequential, judge},
    manifest::GateRule,
    units::BasisPoints,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use serde::Serialize;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// Devices of the wave.
    pub devices: u32,
    /// The cap.
    pub in_flight: u32,
    /// The test.
    pub sequential: Sequential,
    /// Seconds until a success is known; each device takes up to half of it more or less.
    pub success_s: u32,
    /// Seconds until a failure is known.
    pub failure_s: u32,
    /// Waves for each image.
    pub waves: u32,
    /// The seed of all of them.
    pub seed: u64,
}

/// What became of the waves of one image under one gate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stopped {
    /// Of 10,000 waves, those that were stopped.
    pub stopped_bp: u32,
    /// Devices that had started when the wave was stopped, or had ended: the mean, in hundredths.
    pub exposed_mean_x100: u64,
    /// Of 100 waves, 95 exposed no more.
    pub exposed_p95: u32,
    /// Devices that failed until then: the mean, in hundredths.
    pub failed_mean_x100: u64,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The share of devices that the image breaks, in basis points.
    pub failing_bp: u32,
    /// Under the sequential test.
    pub sequential: Stopped,
    /// Under the fixed share.
    pub fixed: Stopped,
}

/// The table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// The failures at which the fixed share stops the wave.
    pub fixed_failures: u32,
    /// The chance that the fixed share stops a good image, exactly, in parts of a million.
    pub fixed_alpha_ppm: u32,
    /// By share of failing devices.
    pub lines: Vec<Line>,
}

impl Trial {
    /// Goes through the waves of images of several qualities.
    #[must_use]
    pub fn table(&self) -> Table {
        let Sequential { good, bad, .. } = self.sequential;
        let (fixed_failures, alpha) = self.fixed();
        let alone = GateRule::shares(BasisPoints::WHOLE, share(0));
        let sequential = GateRule {
            sequential: Some(self.sequential),
            ..alone.clone()
        };
        let fixed = GateRule {
            rollback: share(self.fixed_rollback(fixed_failures)),
            ..alone
        };
        let worse = |times: u32| (bad.get() * times).min(10_000);
        let mut qualities = vec![0, good.get(), bad.get() / 2, bad.get(), worse(2), worse(4), 10_000];
        qualities.sort_unstable();
        qualities.dedup();
        let line = |failing_bp| Line {
            failing_bp,
            sequential: self.stopped(&sequential, failing_bp),
            fixed: self.stopped(&fixed, failing_bp),
        };
        Table {
            fixed_failures,
            fixed_alpha_ppm: (alpha * 1e6) as u32,
            lines: qualities.into_iter().map(line).collect(),
        }
    }

    /// The least number of failures of a wave that a good image reaches no oftener than `alpha`, and how often that is: the
    /// fixed share with the most power that keeps to it.
    fn fixed(&self) -> (u32, f64) {
        let failing = f64::from(self.sequential.good.get()) / 1e4;
        let alpha = f64::from(self.sequential.alpha.get()) / 1e4;
        // P(k failures), one k after the other.
        let mut chance = (1.0 - failing).powf(f64::from(self.devices));
        let mut above = 1.0;
        for failures in 0..=self.devices {
            if above <= alpha {
                return (failures, above);
            }
            above -= chance;
            let left = f64::from(self.devices - failures);
            chance *= left / f64::from(failures + 1) * failing / (1.0 - failing);
        }
        (self.devices + 1, 0.0)
    }

    /// The rollback share below which a wave falls with so many failures and not with one less.
    fn fixed_rollback(&self, failures: u32) -> u32 {
        let left = u64::from((self.devices + 1).saturating_sub(failures));
        u32::try_from(left * 10_000 / u64::from(self.devices)).map_or(10_000, |share| share.min(10_000))
    }

    fn stopped(&self, rule: &GateRule, failing_bp: u32) -> Stopped {
        // The same devices under both gates.
        let mut dice = ChaCha8Rng::seed_from_u64(self.seed ^ u64::from(failing_bp) << 32);
        let waves: Vec<_> = (0..self.waves)
            .map(|_| self.wave(rule, failing_bp, &mut dice))
            .collect();
        let mut exposed: Vec<_> = waves.iter().map(|wave| wave.exposed).collect();
        exposed.sort_unstable();
        let mean_x100 = |all: u64| 100 * all / u64::from(self.waves.max(1));
        let stopped = waves.iter().filter(|wave| wave.is_stopped).count() as u64;
        Stopped {
            stopped_bp: (10_000 * stopped / u64::from(self.waves.max(1))) as u32,
            exposed_mean_x100: mean_x100(exposed.iter().copied().map(u64::from).sum()),
            exposed_p95: exposed.get(exposed.len() * 95 / 100).copied().unwrap_or_default(),
            failed_mean_x100: mean_x100(waves.iter().map(|wave| u64::from(wave.failed)).sum()),
        }
    }

    fn wave(&self, rule: &GateRule, failing_bp: u32, dice: &mut ChaCha8Rng) -> Wave {
        let devices = self.devices as usize;
        // Drawn for all at once: a gate that stops early leaves the next wave as it is.
        let drawn: Vec<_> = (0..devices)
            .map(|_| (dice.next_u32() % 10_000 < failing_bp, dice.next_u32() % 1_000))
            .collect();
        let mut fates = vec![Fate::Pending; devices];
        let mut running = BinaryHeap::new();
        let (mut started, mut failed, mut now_ms) = (0, 0, 0_u64);
        loop {
            while started < devices && running.len() < self.in_flight.max(1) as usize {
                let (fails, thousandths) = drawn[started];
                let seconds = if fails { self.failure_s } else { self.success_s };
                let takes_ms = u64::from(seconds) * u64::from(500 + thousandths);
                running.push(Reverse((now_ms + takes_ms, started)));
                started += 1;
            }
            let exposed = started as u32;
            let Some(Reverse((ends_ms, device))) = running.pop() else {
                return Wave {
                    is_stopped: false,
                    exposed,
                    failed,
                };
            };
            now_ms = ends_ms;
            failed += u32::from(drawn[device].0);
            fates[device] = match drawn[device].0 {
                true => Fate::Bad(None),
                false => Fate::Good,
            };
            // Only a failure can fail a wave.
            if drawn[device].0 && judge(rule, fates.iter().copied()) == GateVerdict::Fail {
                return Wave {
                    is_stopped: true,
                    exposed,
                    failed,
                };
            }
        }
    }
}

struct Wave {
    is_stopped: bool,
    exposed: u32,
    failed: u32,
}

fn share(basis_points: u32) -> BasisPoints {
    BasisPoints::new(basis_points).unwrap_or(BasisPoints::WHOLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(failure_s: u32) -> Trial {
        Trial {
            devices: 200,
            in_flight: 5,
            sequential: Sequential {
                good: share(100),
                bad: share(1_000),
                alpha: share(500),
                beta: share(1_000),
            },
            success_s: 600,
            failure_s,
            waves: 300,
            seed: 1,
        }
    }

    #[test]
    fn the_sequential_test_stops_a_bad_image_on_fewer_devices_at_no_less_power() {
        // Also when failures are known long before successes are, and long after.
        for failure_s in [60, 600, 1_800] {
            let table = trial(failure_s).table();
            let at = |failing_bp| table.lines.iter().find(|line| line.failing_bp == failing_bp).unwrap();
            let (good, bad, worse) = (at(100), at(1_000), at(4_000));
            assert!(
                good.sequential.stopped_bp <= 500 && good.fixed.stopped_bp <= 500,
                "{good:?}"
            );
            assert!(bad.sequential.stopped_bp + 100 >= bad.fixed.stopped_bp, "{bad:?}");
            for line in [bad, worse] {
                let (sequential, fixed) = (line.sequential.exposed_mean_x100, line.fixed.exposed_mean_x100);
                assert!(sequential * 10 < fixed * 9, "{failure_s}: {line:?}");
            }
            assert_eq!(at(0).sequential.stopped_bp, 0);
        }
    }

    #[test]
    fn the_same_seed_tells_the_same() {
        assert_eq!(trial(600).table(), trial(600).table());
    }
}
