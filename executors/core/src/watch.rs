//! Watching a device after its update: which limits it passes, and for how long.
//!
//! Invariants: a limit is passed only by readings without a break, so what cannot be read passes none; and it clears none
//! either, because at the end what is required has to be known.

use firmesh_protocol::{
    health::{DeviceHealth, HealthLimit, HealthRule, HealthSample},
    time::Timestamp,
    units::BasisPoints,
};

/// A device's readings so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct HealthWatch {
    silent_since: Option<Timestamp>,
    /// Since when each limit has been passed, in the order of the rule.
    over_since: Vec<Option<Timestamp>>,
    last: Option<HealthSample>,
}

impl HealthWatch {
    /// Takes in a look at the device, without a reading if it did not answer; says what is wrong with it, if anything.
    pub(crate) fn look(
        &mut self,
        now: Timestamp,
        rule: &HealthRule,
        baseline: HealthSample,
        seen: Option<HealthSample>,
    ) -> Option<String> {
        self.last = seen;
        self.over_since.resize(rule.limits.len(), None);
        let Some(sample) = seen else {
            self.over_since.fill(None);
            let silent_s = seconds(*self.silent_since.get_or_insert(now), now);
            return (silent_s >= u64::from(rule.offline_s))
                .then(|| format!("it has been out of reach for {silent_s} s"));
        };
        self.silent_since = None;
        for (limit, over_since) in rule.limits.iter().zip(&mut self.over_since) {
            let value = sample.get(limit.input);
            let Some(value) = value.filter(|value| most(limit, baseline).is_some_and(|most| value.get() > most)) else {
                *over_since = None;
                continue;
            };
            let over_s = seconds(*over_since.get_or_insert(now), now);
            if over_s >= u64::from(limit.for_s) {
                return Some(told(limit, value, baseline, over_s));
            }
        }
        None
    }

    /// What there is to say of a device that has passed no limit.
    pub(crate) fn verdict(&self, rule: &HealthRule, baseline: HealthSample) -> DeviceHealth {
        let is_known = |input| {
            let mut limits = rule.limits.iter().filter(|limit| limit.input == input);
            self.last.is_some_and(|last| last.get(input).is_some())
                && limits.all(|limit| most(limit, baseline).is_some())
        };
        match rule.required.iter().copied().all(is_known) {
            true => DeviceHealth::Healthy,
            false => DeviceHealth::Unknown,
        }
    }
}

/// The most that a limit allows, in basis points; nothing if it goes by a baseline that is not known.
fn most(limit: &HealthLimit, baseline: HealthSample) -> Option<u32> {
    match (limit.above, limit.rise) {
        (Some(above), _) => Some(above.get()),
        (None, Some(rise)) => Some(baseline.get(limit.input)?.get() + rise.get()),
        (None, None) => None,
    }
}

fn told(limit: &HealthLimit, value: BasisPoints, baseline: HealthSample, over_s: u64) -> String {
    let input = limit.input;
    match (limit.above, baseline.get(input)) {
        (None, Some(before)) => {
            format!("its {input} have been at {value} for {over_s} s, they were at {before} before")
        }
        _ => {
            let above = limit.above.unwrap_or(BasisPoints::WHOLE);
            format!("its {input} have been above {above} for {over_s} s, now at {value}")
        }
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    to.since(from).as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use firmesh_protocol::health::HealthInput;

    use super::*;

    fn share(value: u32) -> BasisPoints {
        BasisPoints::new(value).unwrap()
    }

    fn sample(cpu: u32) -> Option<HealthSample> {
        Some(HealthSample {
            cpu: Some(share(cpu)),
            ..HealthSample::default()
        })
    }

    /// The second at which something is wrong, for readings ten seconds apart.
    fn breach(
        rule: &HealthRule,
        baseline: HealthSample,
        samples: impl Iterator<Item = Option<HealthSample>>,
    ) -> Option<u64> {
        let mut watch = HealthWatch::default();
        let mut at = (0_u64..).step_by(10).zip(samples);
        at.find_map(|(second, sample)| {
            let now = Timestamp::after_start(Duration::from_secs(second));
            watch.look(now, rule, baseline, sample).map(|_| second)
        })
    }

    #[test]
    fn the_hard_stops_are_those_of_the_requirements() {
        let rule = HealthRule::hard_stops();
        let before = HealthSample::default();
        let of = |sample: HealthSample| breach(&rule, before, std::iter::repeat_n(Some(sample), 60));
        let with = |change: fn(&mut HealthSample)| {
            let mut sample = HealthSample::default();
            change(&mut sample);
            of(sample)
        };
        assert_eq!(with(|s| s.cpu = Some(share(9_501))), Some(300));
        assert_eq!(with(|s| s.cpu = Some(share(9_500))), None);
        assert_eq!(with(|s| s.memory = Some(share(9_001))), Some(300));
        assert_eq!(with(|s| s.errors = Some(share(1_001))), Some(0));
        assert_eq!(with(|_| ()), None);
        assert_eq!(breach(&rule, before, std::iter::repeat_n(None, 60)), Some(120));
    }

    #[test]
    fn a_break_begins_the_count_again_and_what_cannot_be_read_is_one() {
        let rule = HealthRule::hard_stops();
        let baseline = HealthSample::default();
        for pause in [sample(100), Some(baseline), None] {
            let busy = |count| std::iter::repeat_n(sample(10_000), count);
            let samples = busy(30).chain([pause]).chain(busy(40));
            assert_eq!(breach(&rule, baseline, samples), Some(310 + 300), "{pause:?}");
        }
    }

    #[test]
    fn a_rise_is_measured_by_the_devices_own_baseline_and_needs_one() {
        let rule = HealthRule {
            limits: vec![HealthLimit {
                input: HealthInput::Cpu,
                above: None,
                rise: Some(share(2_000)),
                for_s: 20,
            }],
            required: vec![HealthInput::Cpu],
            ..HealthRule::hard_stops()
        };
        let samples = || std::iter::repeat_n(sample(5_001), 60);
        assert_eq!(breach(&rule, sample(3_000).unwrap(), samples()), Some(20));
        assert_eq!(breach(&rule, sample(3_001).unwrap(), samples()), None);
        assert_eq!(breach(&rule, HealthSample::default(), samples()), None);
        let verdict = |baseline, last| {
            let mut watch = HealthWatch::default();
            assert_eq!(watch.look(Timestamp::default(), &rule, baseline, last), None);
            watch.verdict(&rule, baseline)
        };
        assert_eq!(verdict(sample(3_001).unwrap(), sample(5_001)), DeviceHealth::Healthy);
        assert_eq!(verdict(HealthSample::default(), sample(5_001)), DeviceHealth::Unknown);
        assert_eq!(
            verdict(sample(3_001).unwrap(), Some(HealthSample::default())),
            DeviceHealth::Unknown
        );
        assert_eq!(verdict(sample(3_001).unwrap(), None), DeviceHealth::Unknown);
    }
}
