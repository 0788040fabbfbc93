//! The sequential test: stops a bad image after as few devices as its error rates allow.
//!
//! The sequential probability ratio test of A. Wald ("Sequential Tests of Statistical Hypotheses", 1945), truncated at the
//! end of the wave, over the devices of a wave in the order of the signed plan. Invariants: integers only, rounded so that
//! the likelihood ratio is never overstated, so that nodes and coordinators find the same; and the order is the plan's,
//! not that in which reports come in, with a device that is not reported taken for a good one. So a verdict depends on
//! what is known and not on when it was learnt, stays what it is when more becomes known, and cannot be brought about by
//! showing failures and holding successes back, nor by failures being quicker to report than successes.
//!
//! Error rates: if each device fails with a probability of at most `good`, whatever became of those before it, the ratio
//! is a supermartingale, and the chance that it ever reaches 1/`alpha` is at most `alpha` (Ville 1939), however often it is
//! looked at. Failures with a common cause other than the image (a rack's power) break that assumption: then the test stops
//! too early rather than too late.

use serde::{Deserialize, Serialize};

use crate::units::BasisPoints;

/// Fraction bits of a [`Bits`].
const FRACTION: u32 = 32;

/// A logarithm to the base 2, in units of 2^-32.
type Bits = i64;

/// Two hypotheses about the share of devices that fail, and how often the test may be wrong; all in basis points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequential {
    /// The share of failures that is accepted: an image that is no worse is stopped with at most the chance `alpha`.
    pub good: BasisPoints,
    /// The share that is not accepted.
    pub bad: BasisPoints,
    /// The chance at most to stop a good image.
    pub alpha: BasisPoints,
    /// The chance at most that the test takes a bad image for a good one: until it has taken the image for good, a wave
    /// does not pass before all its devices have ended.
    pub beta: BasisPoints,
}

impl Sequential {
    /// What is wrong with it, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<&'static str> {
        let is_chance = |chance: BasisPoints| (1..=5_000).contains(&chance.get());
        if self.good.get() == 0 || self.good >= self.bad || self.bad >= BasisPoints::WHOLE {
            Some("must have a share of failures `good` above 0, and `bad` above it and below 10000 basis points")
        } else if !is_chance(self.alpha) || !is_chance(self.beta) {
            Some("must have chances `alpha` and `beta` of 1 to 5000 basis points")
        } else {
            None
        }
    }

    /// What the test makes of outcomes.
    #[must_use]
    pub fn test(&self) -> SequentialTest {
        let whole = BasisPoints::WHOLE.get();
        let (good, bad) = (self.good.get(), self.bad.get());
        SequentialTest {
            failure: log2(bad, good),
            success: log2(whole - good, whole - bad),
            stops_at: log2(whole, self.alpha.get()).most,
            accepts_at: -log2(whole, self.beta.get()).most,
            ratio: Range::default(),
            failures: 0,
            devices: 0,
            stopped: None,
        }
    }
}

/// Where a logarithm lies.
#[derive(Debug, Clone, Copy, Default)]
struct Range {
    least: Bits,
    most: Bits,
}

/// A run of the test: one outcome after the other, in the order of the plan.
#[derive(Debug, Clone, Copy)]
pub struct SequentialTest {
    failure: Range,
    /// What a success takes away.
    success: Range,
    stops_at: Bits,
    accepts_at: Bits,
    /// How much more likely the outcomes are of a bad image than of a good one.
    ratio: Range,
    failures: u32,
    devices: u32,
    /// After how many devices, and failures among them, the test said stop.
    stopped: Option<(u32, u32)>,
}

impl SequentialTest {
    /// Takes in the next device's outcome.
    pub fn add(&mut self, is_failure: bool) {
        self.devices += 1;
        self.failures += u32::from(is_failure);
        if is_failure {
            self.ratio.least += self.failure.least;
            self.ratio.most += self.failure.most;
        } else {
            self.ratio.least -= self.success.most;
            self.ratio.most -= self.success.least;
        }
        if self.ratio.least >= self.stops_at {
            self.stopped.get_or_insert((self.devices, self.failures));
        }
    }

    /// After how many devices of the plan, and failures among them, the test said stop, if it has.
    #[must_use]
    pub fn stopped(&self) -> Option<(u32, u32)> {
        self.stopped
    }

    /// Whether the image is taken for a good one by all that was taken in.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.ratio.most <= self.accepts_at
    }
}

/// The binary logarithm of a fraction of at least 1, between two bounds: bit by bit, by squaring (Knuth, The Art of Computer
/// Programming 1, 1.2.2, exercise 28).
fn log2(numerator: u32, denominator: u32) -> Range {
    const ONE: u128 = 1 << 62;
    debug_assert!(0 < denominator && denominator <= numerator);
    let whole = (numerator / denominator).ilog2();
    let mut rest = (u128::from(numerator) << 62) / (u128::from(denominator) << whole);
    let mut bits = i64::from(whole);
    for _ in 0..FRACTION {
        rest = (rest * rest) >> 62;
        bits <<= 1;
        if rest >= 2 * ONE {
            rest >>= 1;
            bits |= 1;
        }
    }
    // Everything is rounded down: by less than one unit for the bits that are not computed, and by far less than another
    // for the squares.
    Range {
        least: bits,
        most: bits + 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(good: u32, bad: u32, alpha: u32, beta: u32) -> Sequential {
        let share = |value| BasisPoints::new(value).unwrap();
        Sequential {
            good: share(good),
            bad: share(bad),
            alpha: share(alpha),
            beta: share(beta),
        }
    }

    /// The chance that a wave of some devices is stopped, and the mean number of devices until then (or until its end), when
    /// each fails with a chance of its own: exactly, state by state.
    fn exactly(rule: Sequential, devices: u32, failing: f64) -> (f64, f64) {
        let test = rule.test();
        let stops = |count: u32, failures: u32| {
            i64::from(failures) * test.failure.least - i64::from(count - failures) * test.success.most >= test.stops_at
        };
        let mut running = vec![1.0];
        let (mut stopped, mut mean) = (0.0, 0.0);
        for count in 1..=devices {
            mean += running.iter().sum::<f64>();
            let mut next = vec![0.0; running.len() + 1];
            for (failures, chance) in running.iter().enumerate() {
                next[failures] += chance * (1.0 - failing);
                next[failures + 1] += chance * failing;
            }
            for (failures, chance) in (0..).zip(&mut next) {
                if stops(count, failures) {
                    stopped += std::mem::take(chance);
                }
            }
            running = next;
        }
        (stopped, mean)
    }

    #[test]
    fn logarithms_lie_between_their_bounds() {
        for (numerator, denominator) in [
            (10_000, 9_999),
            (10_000, 1),
            (3, 2),
            (5, 5),
            (9_999, 5_000),
            (1_000, 100),
        ] {
            let (range, exact) = (
                log2(numerator, denominator),
                (f64::from(numerator) / f64::from(denominator)).log2() * f64::from(FRACTION).exp2(),
            );
            assert!(
                range.least as f64 <= exact + 0.01 && exact <= range.most as f64 + 0.01,
                "{numerator}/{denominator}: {range:?} {exact}"
            );
        }
    }

    #[test]
    fn a_good_image_is_stopped_no_oftener_than_stated_and_a_bad_one_surely() {
        for (good, bad, alpha) in [
            (100, 1_000, 500),
            (50, 500, 100),
            (10, 200, 1_000),
            (500, 2_000, 10),
            (100, 150, 500),
        ] {
            let rule = rule(good, bad, alpha, 1_000);
            for devices in [10, 100, 1_000] {
                let (wrongly, _) = exactly(rule, devices, f64::from(good) / 1e4);
                assert!(
                    wrongly <= f64::from(alpha) / 1e4,
                    "{rule:?}, {devices} devices: {wrongly}"
                );
            }
            let (rightly, _) = exactly(rule, 2_000, f64::from(bad) / 1e4);
            let is_close = bad < 2 * good;
            assert!(rightly > if is_close { 0.3 } else { 0.999 }, "{rule:?}: {rightly}");
        }
    }

    /// At the same chance of stopping a good image, a fixed share needs more devices before it can say stop.
    #[test]
    fn a_bad_image_is_stopped_after_fewer_devices_than_by_a_fixed_share_of_no_more_power() {
        let (rule, devices) = (rule(100, 1_000, 500, 1_000), 100);
        let (_, mean) = exactly(rule, devices, 0.1);
        let (power, _) = exactly(rule, devices, 0.1);
        // The fixed rule: stop at the c-th failure, with the least c that stops a good image no oftener than alpha.
        let at_least = |c: u32, failing: f64| {
            let mut chances = vec![1.0];
            let (mut stopped, mut mean) = (0.0, 0.0);
            for _ in 0..devices {
                mean += chances.iter().sum::<f64>();
                let mut next = vec![0.0; chances.len() + 1];
                for (failures, chance) in chances.iter().enumerate() {
                    next[failures] += chance * (1.0 - failing);
                    next[failures + 1] += chance * failing;
                }
                if let Some(chance) = next.get_mut(c as usize) {
                    stopped += std::mem::take(chance);
                }
                chances = next;
            }
            (stopped, mean)
        };
        let fixed = (1..devices).find(|c| at_least(*c, 0.01).0 <= 0.05).unwrap();
        let (fixed_power, fixed_mean) = at_least(fixed, 0.1);
        assert!(
            power > 0.97 && (power - fixed_power).abs() < 0.02,
            "{power} {fixed_power}"
        );
        assert!(mean < 0.75 * fixed_mean, "{mean} of {fixed_mean}");
    }

    proptest! {
        #[test]
        fn a_stop_is_final_and_more_failures_never_undo_it(
            outcomes in prop::collection::vec(any::<bool>(), 1..200),
            worse in any::<prop::sample::Index>(),
        ) {
            let stops = |outcomes: &[bool]| {
                let mut test = rule(200, 1_500, 500, 500).test();
                outcomes.iter().for_each(|failed| test.add(*failed));
                test.stopped()
            };
            let before = stops(&outcomes);
            let mut more = outcomes.clone();
            more.push(false);
            prop_assert!(before.is_none() || stops(&more) == before);
            let at = worse.index(outcomes.len());
            more[at] = true;
            if let Some((devices, _)) = before {
                prop_assert!(stops(&more).is_some_and(|(earlier, _)| earlier <= devices));
            }
        }
    }
}
