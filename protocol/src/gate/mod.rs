//! The test between two waves: what became of its devices in, verdict out. The coordinator judges by it, and every node
//! judges again from the signed reports before it follows.
//!
//! Invariants: a verdict of pass or fail is final, because it is given only when nothing that is still to come can change
//! it; what is not known holds; no rule passes a wave that another one fails.

mod sequential;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{api::GateVerdict, manifest::GateRule, report::FailureClass, units::BasisPoints};

pub use sequential::{Sequential, SequentialTest};

/// Abort rules of one gate: one or two for each class.
pub const ABORT_RULES_MAX: usize = 16;

/// What became of a device of the wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Its attempt has not ended, or nobody has said how.
    Pending,
    /// It ended well.
    Good,
    /// It ended badly: in which way, if that is known.
    Bad(Option<FailureClass>),
    /// It never had its turn, because one before it in its unit ended badly. It is missing like one that failed, and says
    /// nothing about the image.
    Dropped,
}

impl Fate {
    /// The fate of a device of which there is no report, and which otherwise would have this one, in the light of the one
    /// before it in its unit.
    #[must_use]
    pub fn unreported_after(self, before: Option<Self>) -> Self {
        match before {
            Some(Self::Bad(_) | Self::Dropped) => Self::Dropped,
            _ => self,
        }
    }
}

/// A kind of failure of which a few are enough: the gate fails as soon as there are so many of them. Exactly one of
/// `count` and `share` is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbortRule {
    /// The kind.
    pub class: FailureClass,
    /// So many devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Such a share of the wave's devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<BasisPoints>,
}

impl AbortRule {
    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let is_some = match (self.count, self.share) {
            (Some(count), None) => count > 0,
            (None, Some(share)) => share.get() > 0,
            _ => return Some("must have either a `count` or a `share` for each class"),
        };
        (!is_some).then_some("must have a `count` or `share` above 0, or no wave could pass")
    }

    /// How many failures of the kind are enough in a wave.
    fn limit(&self, devices: usize) -> usize {
        let share = self.share.map(|share| share.of_rounded_up(devices).max(1));
        let count = self.count.map(|count| count as usize);
        count.or(share).unwrap_or(usize::MAX)
    }
}

/// How many devices of a wave met which fate. One that changes is taken out and put in again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices of the wave.
    pub devices: usize,
    /// Attempts that ended.
    pub ended: usize,
    /// Attempts that ended well.
    pub good: usize,
    /// Failures of which the kind is known.
    failures: BTreeMap<FailureClass, usize>,
}

impl Counts {
    /// Counts one more device.
    pub fn add(&mut self, fate: Fate) {
        self.devices += 1;
        self.ended += usize::from(fate != Fate::Pending);
        self.good += usize::from(fate == Fate::Good);
        if let Fate::Bad(Some(class)) = fate {
            *self.failures.entry(class).or_default() += 1;
        }
    }

    /// Takes a device back that was counted with this fate.
    pub fn remove(&mut self, fate: Fate) {
        self.devices -= 1;
        self.ended -= usize::from(fate != Fate::Pending);
        self.good -= usize::from(fate == Fate::Good);
        if let Fate::Bad(Some(class)) = fate
            && let Some(count) = self.failures.get_mut(&class)
        {
            *count -= 1;
        }
    }
}

/// What a gate looks at.
#[derive(Debug, Clone)]
pub struct Tally<'a> {
    rule: &'a GateRule,
    counts: Counts,
    /// The test in the best case, where what is pending ends well, and in the worst.
    tests: Option<(SequentialTest, SequentialTest)>,
}

impl<'a> Tally<'a> {
    /// Counts the devices of a wave, in the order of the plan.
    #[must_use]
    pub fn of(rule: &'a GateRule, fates: impl Iterator<Item = Fate>) -> Self {
        let mut tally = Self {
            rule,
            counts: Counts::default(),
            tests: rule.sequential.map(|rule| (rule.test(), rule.test())),
        };
        fates.for_each(|fate| tally.add(fate));
        tally
    }

    /// What was counted before; `None` where the order of the devices counts as well.
    #[must_use]
    pub fn of_counts(rule: &'a GateRule, counts: &Counts) -> Option<Self> {
        rule.sequential.is_none().then(|| Self {
            rule,
            counts: counts.clone(),
            tests: None,
        })
    }

    fn add(&mut self, fate: Fate) {
        self.counts.add(fate);
        if let Some((best, worst)) = self.tests.as_mut().filter(|_| fate != Fate::Dropped) {
            best.add(matches!(fate, Fate::Bad(_)));
            worst.add(fate != Fate::Good);
        }
    }

    /// The gate's verdict. Too few ended attempts are [`GateVerdict::Unknown`], which holds; so is everything that is
    /// neither certain nor complete.
    #[must_use]
    pub fn verdict(&self) -> GateVerdict {
        let rule = self.rule;
        let Counts {
            devices, ended, good, ..
        } = self.counts;
        let best_case = devices - (ended - good);
        if devices == 0 {
            return GateVerdict::Pass;
        }
        if !rule.rollback.is_reached_by(best_case, devices) {
            return GateVerdict::Fail;
        }
        if self.aborted().next().is_some() || self.tests.is_some_and(|(best, _)| best.stopped().is_some()) {
            return GateVerdict::Fail;
        }
        if ended < devices.min(rule.sample_min as usize) {
            return GateVerdict::Unknown;
        }
        if rule.advance.is_reached_by(good, devices) && self.stays_unbroken() {
            return GateVerdict::Pass;
        }
        if ended < devices {
            GateVerdict::Unknown
        } else {
            GateVerdict::Hold
        }
    }

    /// Abort rules that are reached, with how many failures.
    fn aborted(&self) -> impl Iterator<Item = (&AbortRule, usize)> {
        self.failures()
            .filter(|(rule, count)| *count >= rule.limit(self.counts.devices))
    }

    /// The abort rules, with how many failures of their kind there are.
    fn failures(&self) -> impl Iterator<Item = (&AbortRule, usize)> {
        let count = |rule: &AbortRule| self.counts.failures.get(&rule.class).copied().unwrap_or_default();
        self.rule.abort.iter().map(move |rule| (rule, count(rule)))
    }

    /// Whether no other rule fails the wave, whatever becomes of what is pending; and whether the sequential test takes the
    /// image for a good one, while there is something pending.
    fn stays_unbroken(&self) -> bool {
        let Counts { devices, ended, .. } = self.counts;
        let pending = devices - ended;
        let no_abort = self
            .failures()
            .all(|(rule, count)| count + pending < rule.limit(devices));
        let is_accepted = |(_, worst): (SequentialTest, SequentialTest)| {
            worst.stopped().is_none() && (pending == 0 || worst.accepts())
        };
        no_abort && self.tests.is_none_or(is_accepted)
    }

    /// What the verdict rests on, for a person.
    #[must_use]
    pub fn evidence(&self) -> Vec<String> {
        let rule = self.rule;
        let Counts {
            devices, ended, good, ..
        } = self.counts;
        let mut lines = vec![
            format!("{good} of {ended} ended attempts are good, the wave has {devices} devices"),
            format!("advances at {}, fails below {}", rule.advance, rule.rollback),
        ];
        let aborted = self.aborted().map(|(rule, count)| {
            let (class, limit) = (rule.class, rule.limit(devices));
            format!("{count} devices failed in {class}, {limit} are enough to fail the wave")
        });
        lines.extend(aborted);
        if let (Some(rule), Some((best, _))) = (rule.sequential, self.tests) {
            let wrongly = format!(
                "in a wave it stops {} of the images that fail on {} at most",
                rule.alpha, rule.good
            );
            lines.push(match best.stopped() {
                Some((devices, failures)) => {
                    format!("the sequential test says stop: {failures} of the plan's first {devices} devices failed; {wrongly}")
                }
                None => format!("the sequential test goes on; {wrongly}"),
            });
        }
        lines
    }
}

/// Judges a wave by what became of its devices, in the order of the plan.
#[must_use]
pub fn judge(rule: &GateRule, fates: impl Iterator<Item = Fate>) -> GateVerdict {
    Tally::of(rule, fates).verdict()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(value: u32) -> BasisPoints {
        BasisPoints::new(value).unwrap()
    }

    fn rule(advance: u32, rollback: u32, sample_min: u32) -> GateRule {
        GateRule {
            sample_min,
            ..GateRule::shares(share(advance), share(rollback))
        }
    }

    /// A wave of which so many have ended, so many of them well: the bad ones last, then those that are pending.
    fn verdict(rule: GateRule, devices: usize, ended: usize, good: usize) -> GateVerdict {
        let fate = |number: usize| match number {
            _ if number < good => Fate::Good,
            _ if number < ended => Fate::Bad(Some(FailureClass::Boot)),
            _ => Fate::Pending,
        };
        judge(&rule, (0..devices).map(fate))
    }

    #[test]
    fn no_news_holds_and_the_middle_holds() {
        let rule = || rule(9_000, 5_000, 5);
        assert_eq!(verdict(rule(), 10, 0, 0), GateVerdict::Unknown);
        assert_eq!(verdict(rule(), 10, 9, 8), GateVerdict::Unknown);
        assert_eq!(verdict(rule(), 10, 9, 9), GateVerdict::Pass);
        assert_eq!(verdict(rule(), 10, 10, 7), GateVerdict::Hold);
        assert_eq!(verdict(rule(), 10, 5, 0), GateVerdict::Unknown);
        assert_eq!(verdict(rule(), 10, 6, 0), GateVerdict::Fail);
        assert_eq!(verdict(rule(), 3, 3, 3), GateVerdict::Pass);
    }

    #[test]
    fn a_pass_needs_the_minimum_sample_even_when_the_rate_is_certain() {
        assert_eq!(verdict(rule(1_000, 0, 8), 10, 5, 5), GateVerdict::Unknown);
        assert_eq!(verdict(rule(1_000, 0, 8), 10, 8, 5), GateVerdict::Pass);
    }

    #[test]
    fn a_few_failures_of_one_kind_are_enough_and_those_of_another_are_not() {
        let abort = |class, count, share_of| AbortRule {
            class,
            count,
            share: share_of,
        };
        let mut rule = rule(9_000, 5_000, 1);
        rule.abort = vec![
            abort(FailureClass::Boot, Some(2), None),
            abort(FailureClass::Timeout, None, Some(share(1_000))),
        ];
        let fates = |bad: &[FailureClass]| -> Vec<Fate> {
            let bad = bad.iter().map(|class| Fate::Bad(Some(*class)));
            bad.chain([Fate::Pending; 40]).take(40).collect()
        };
        let verdict = |bad: &[FailureClass]| judge(&rule, fates(bad).into_iter());
        use FailureClass::{Boot, Preflight, Timeout};
        assert_eq!(verdict(&[Boot]), GateVerdict::Unknown);
        assert_eq!(verdict(&[Preflight; 3]), GateVerdict::Unknown);
        assert_eq!(verdict(&[Boot, Preflight, Boot]), GateVerdict::Fail);
        assert_eq!(verdict(&[Timeout; 3]), GateVerdict::Unknown);
        assert_eq!(verdict(&[Timeout; 4]), GateVerdict::Fail);
        let lines = Tally::of(&rule, fates(&[Boot, Boot]).into_iter()).evidence();
        assert!(
            lines.contains(&"2 devices failed in boot, 2 are enough to fail the wave".to_owned()),
            "{lines:?}"
        );
        // Nine in ten are good and the rest could still abort it: not before they have ended.
        let mut fates = vec![Fate::Good; 38];
        fates.extend([Fate::Pending; 2]);
        assert_eq!(judge(&rule, fates.clone().into_iter()), GateVerdict::Unknown);
        fates[38] = Fate::Good;
        assert_eq!(judge(&rule, fates.into_iter()), GateVerdict::Pass);
    }

    #[test]
    fn health_that_is_not_known_holds_and_a_breach_is_a_failure() {
        use crate::health::{DeviceHealth, HealthRule};
        use crate::report::AttemptState::{RolledBack, Skipped, Success};
        let mut rule = rule(9_000, 5_000, 1);
        assert_eq!(rule.fate(Success, None, None), Fate::Good);
        rule.health = Some(HealthRule::hard_stops());
        assert_eq!(rule.fate(Success, None, Some(DeviceHealth::Healthy)), Fate::Good);
        assert_eq!(rule.fate(Skipped, None, None), Fate::Good);
        for unknown in [None, Some(DeviceHealth::Unknown)] {
            let fate = rule.fate(Success, None, unknown);
            assert_eq!(fate, Fate::Pending);
            assert_eq!(judge(&rule, [fate; 10].into_iter()), GateVerdict::Unknown);
        }
        let breached = rule.fate(Success, None, Some(DeviceHealth::Breached));
        assert_eq!(breached, Fate::Bad(Some(FailureClass::Health)));
        assert_eq!(judge(&rule, [breached; 10].into_iter()), GateVerdict::Fail);
        let fell_back = rule.fate(RolledBack, Some(FailureClass::Health), None);
        assert_eq!(fell_back, Fate::Bad(Some(FailureClass::Health)));
    }

    /// Failures that come in before the successes do are no reason to stop: where devices stand in the plan counts.
    #[test]
    fn quick_failures_do_not_look_like_many() {
        let mut rule = rule(9_000, 5_000, 1);
        rule.sequential = Some(Sequential {
            good: share(100),
            bad: share(1_000),
            alpha: share(500),
            beta: share(1_000),
        });
        let mut fates = [Fate::Pending; 200];
        for at in [60, 120] {
            fates[at] = Fate::Bad(None);
        }
        assert_eq!(judge(&rule, fates.into_iter()), GateVerdict::Unknown);
        fates[0] = Fate::Bad(None);
        fates[9] = Fate::Bad(None);
        assert_eq!(judge(&rule, fates.into_iter()), GateVerdict::Fail);
        let lines = Tally::of(&rule, fates.into_iter()).evidence();
        assert!(
            lines
                .iter()
                .any(|line| line.contains("2 of the plan's first 10 devices")),
            "{lines:?}"
        );
    }

    /// One failure in a unit is one failure, whatever else of the unit had to be left out for it.
    #[test]
    fn those_left_out_count_as_missing_and_say_nothing_about_the_image() {
        let mut rule = rule(9_000, 5_000, 1);
        rule.sequential = Some(Sequential {
            good: share(100),
            bad: share(1_000),
            alpha: share(500),
            beta: share(1_000),
        });
        let mut fates = [Fate::Good; 100];
        fates[0] = Fate::Bad(Some(FailureClass::Install));
        fates[1..5].fill(Fate::Bad(None));
        assert_eq!(judge(&rule, fates.into_iter()), GateVerdict::Fail);
        fates[1..5].fill(Fate::Dropped);
        assert_eq!(judge(&rule, fates.into_iter()), GateVerdict::Pass);
        // They count for the shares, and nothing waits for them.
        rule.sequential = None;
        rule.advance = share(9_600);
        assert_eq!(judge(&rule, fates.into_iter()), GateVerdict::Hold);
        rule.advance = share(9_500);
        rule.sample_min = 100;
        assert_eq!(judge(&rule, fates.into_iter()), GateVerdict::Pass);
    }

    fn any_fates() -> impl Strategy<Value = Vec<Fate>> {
        use FailureClass::{Boot, Unreachable};
        let fate = prop_oneof![
            4 => Just(Fate::Good),
            1 => prop::sample::select(vec![None, Some(Boot), Some(Unreachable)]).prop_map(Fate::Bad),
            1 => Just(Fate::Pending),
            1 => Just(Fate::Dropped),
        ];
        prop::collection::vec(fate, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn an_early_verdict_is_the_final_one(
            fates in any_fates(),
            ends in prop::collection::vec(0_u8..3, 60),
            (advance, rollback) in (0_u32..=10_000).prop_flat_map(|a| (Just(a), 0..=a)),
            sample_min in 0_u32..70,
            sequential in prop::option::of((1_u32..5_000, 1_u32..4_999, 1_u32..5_000, 1_u32..5_000)),
            aborts in prop::collection::vec((any::<bool>(), 1_u32..6), 0..3),
        ) {
            let mut rule = rule(advance, rollback, sample_min);
            rule.sequential = sequential.map(|(good, more, alpha, beta)| Sequential {
                good: share(good),
                bad: share(good + more),
                alpha: share(alpha),
                beta: share(beta),
            });
            let abort = |(is_boot, limit): (bool, u32)| AbortRule {
                class: if is_boot { FailureClass::Boot } else { FailureClass::Unreachable },
                count: Some(limit),
                share: None,
            };
            rule.abort = aborts.into_iter().map(abort).collect();
            let early = judge(&rule, fates.iter().copied());
            let ended = fates.iter().zip(&ends).map(|(fate, well)| match (fate, well) {
                (Fate::Pending, 0) => Fate::Good,
                (Fate::Pending, 1) => Fate::Dropped,
                (Fate::Pending, _) => Fate::Bad(Some(FailureClass::Boot)),
                (fate, _) => *fate,
            });
            let end = judge(&rule, ended);
            if matches!(early, GateVerdict::Pass | GateVerdict::Fail) {
                prop_assert_eq!(early, end);
            }
            prop_assert_ne!(end, GateVerdict::Unknown);
        }
    }
}
