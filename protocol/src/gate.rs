//! The test between two waves: counts in, verdict out. The coordinator judges by it, and every node judges again from
//! the signed reports before it follows.

use crate::{api::GateVerdict, manifest::GateRule};

/// What a gate looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateCount {
    /// Devices of the wave.
    pub devices: usize,
    /// Attempts that ended.
    pub ended: usize,
    /// Attempts that ended well.
    pub good: usize,
}

/// Judges a wave, early only when what is still to come cannot change the verdict. Too few ended attempts are
/// [`GateVerdict::Unknown`], which holds; so is everything that is neither certain nor complete.
#[must_use]
pub fn judge(rule: &GateRule, count: GateCount) -> GateVerdict {
    let GateCount { devices, ended, good } = count;
    let best_case = devices - (ended - good);
    if devices == 0 {
        return GateVerdict::Pass;
    }
    if !rule.rollback.is_reached_by(best_case, devices) {
        return GateVerdict::Fail;
    }
    if ended < devices.min(rule.sample_min as usize) {
        return GateVerdict::Unknown;
    }
    if rule.advance.is_reached_by(good, devices) {
        return GateVerdict::Pass;
    }
    if ended < devices {
        GateVerdict::Unknown
    } else {
        GateVerdict::Hold
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BasisPoints;
    use proptest::prelude::*;

    fn rule(advance: u32, rollback: u32, sample_min: u32) -> GateRule {
        let share = |value| BasisPoints::new(value).unwrap();
        GateRule {
            advance: share(advance),
            rollback: share(rollback),
            sample_min,
            soak_s: 0,
        }
    }

    fn verdict(rule: GateRule, devices: usize, ended: usize, good: usize) -> GateVerdict {
        judge(&rule, GateCount { devices, ended, good })
    }

    #[test]
    fn no_news_holds_and_the_middle_holds() {
        let rule = rule(9_000, 5_000, 5);
        assert_eq!(verdict(rule, 10, 0, 0), GateVerdict::Unknown);
        assert_eq!(verdict(rule, 10, 9, 8), GateVerdict::Unknown);
        assert_eq!(verdict(rule, 10, 9, 9), GateVerdict::Pass);
        assert_eq!(verdict(rule, 10, 10, 7), GateVerdict::Hold);
        assert_eq!(verdict(rule, 10, 5, 0), GateVerdict::Unknown);
        assert_eq!(verdict(rule, 10, 6, 0), GateVerdict::Fail);
        assert_eq!(verdict(rule, 3, 3, 3), GateVerdict::Pass);
    }

    #[test]
    fn a_pass_needs_the_minimum_sample_even_when_the_rate_is_certain() {
        assert_eq!(verdict(rule(1_000, 0, 8), 10, 5, 5), GateVerdict::Unknown);
        assert_eq!(verdict(rule(1_000, 0, 8), 10, 8, 5), GateVerdict::Pass);
    }

    proptest! {
        #[test]
        fn an_early_verdict_is_the_final_one(
            (devices, good, bad) in (1_usize..60).prop_flat_map(|d| (Just(d), 0..=d))
                .prop_flat_map(|(d, g)| (Just(d), Just(g), 0..=(d - g))),
            (advance, rollback) in (0_u32..=10_000).prop_flat_map(|a| (Just(a), 0..=a)),
            sample_min in 0_u32..70,
            later_good in any::<prop::sample::Index>(),
        ) {
            let rule = rule(advance, rollback, sample_min);
            let early = verdict(rule, devices, good + bad, good);
            let to_come = devices - good - bad;
            let end = verdict(rule, devices, devices, good + later_good.index(to_come + 1));
            if matches!(early, GateVerdict::Pass | GateVerdict::Fail) {
                prop_assert_eq!(early, end);
            }
            prop_assert_ne!(end, GateVerdict::Unknown);
        }
    }
}
