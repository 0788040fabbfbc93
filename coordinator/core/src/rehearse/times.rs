//! How long things take: learned from what nodes have reported, or a stated share of the deadline.
//!
//! Invariant: the steps of one past attempt are drawn together, so that a device that was slow to write is the one that was
//! slow to restart.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, DeviceId},
    rehearsal::{Source, Spread, Step, StepTime},
    report::{AttemptReport, AttemptState, PermitKind},
    time::WallTime,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::{DeviceKind, LearnedAttempt};

/// Finished attempts of a kind below which they are taken for chance.
const SAMPLES_MIN: usize = 3;

/// Finished attempts of a kind that are drawn from: the first ones that the caller names.
const SAMPLES_MAX: usize = 1_000;

/// What a usual attempt spends on each step, in hundredths.
const USUAL: [(Step, u64); 3] = [(Step::Install, 50), (Step::Reboot, 40), (Step::Validate, 10)];

/// A usual time is drawn evenly between these hundredths of it.
const USUAL_SPREAD: (u64, u64) = (70, 130);

/// What an attempt's reports say about its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedAttempt {
    /// The campaign.
    pub campaign: CampaignId,
    /// The device.
    pub device: DeviceId,
    /// Seconds of its steps.
    pub seconds: BTreeMap<Step, u32>,
}

/// Reads times from reports, in any order: of attempts that ended well, by the node's own clock.
#[must_use]
pub fn learn(reports: impl IntoIterator<Item = AttemptReport>) -> Vec<TimedAttempt> {
    let mut attempts: BTreeMap<_, Vec<(u64, AttemptState, WallTime)>> = BTreeMap::new();
    for report in reports {
        // A node that lost its journal counts its reports anew: they are of another attempt, under another permit.
        let key = (report.campaign, report.device, report.kind, report.permit_sequence);
        let said = (report.sequence, report.state, report.at);
        attempts.entry(key).or_default().push(said);
    }
    let timed = |((campaign, device, kind, _), mut said): ((CampaignId, DeviceId, PermitKind, u64), Vec<_>)| {
        said.sort_by_key(|(sequence, _, _)| *sequence);
        Some(TimedAttempt {
            campaign,
            device,
            seconds: steps(kind, &said)?,
        })
    };
    attempts.into_iter().filter_map(timed).collect()
}

fn steps(kind: PermitKind, said: &[(u64, AttemptState, WallTime)]) -> Option<BTreeMap<Step, u32>> {
    use AttemptState::{Installing, Rebooting, RolledBack, Staged, Success, Validating};
    // Of an update that went over other releases, the last step: the release's own.
    let begins_anew = |pair: &[(u64, AttemptState, WallTime)]| (pair[0].1, pair[1].1) == (Validating, Installing);
    let last_step = said.windows(2).rposition(begins_anew).map_or(0, |at| at + 1);
    let said = &said[last_step..];
    let first = |states: &[AttemptState]| {
        said.iter()
            .find(|(_, state, _)| states.contains(state))
            .map(|(_, _, at)| *at)
    };
    let end = match kind {
        PermitKind::Update => first(&[Success])?,
        PermitKind::Rollback => first(&[RolledBack])?,
    };
    let start = first(&[Staged, Installing, Rebooting, Validating])?;
    let between = |from: WallTime, to: WallTime| u32::try_from(to.unix_seconds() - from.unix_seconds()).ok();
    if kind == PermitKind::Rollback {
        return Some(BTreeMap::from([(Step::Restore, between(start, end)?)]));
    }
    // A state too short to be reported took no time.
    let validating = first(&[Validating]).unwrap_or(end);
    let rebooting = first(&[Rebooting]).unwrap_or(validating);
    Some(BTreeMap::from([
        (Step::Install, between(start, rebooting)?),
        (Step::Reboot, between(rebooting, validating)?),
        (Step::Validate, between(validating, end)?),
    ]))
}

/// A seeded generator.
#[derive(Debug)]
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// The dice of one run: the same in every scenario.
    pub(super) fn of_run(seed: u64, run: u32) -> Self {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        dice.set_stream(run.into());
        Self(dice)
    }

    /// Less than `bound`; 0 if that is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64().checked_rem(bound).unwrap_or(0)
    }
}

/// Milliseconds of one device's steps, as drawn.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drawn {
    pub(super) install: u64,
    pub(super) reboot: u64,
    pub(super) validate: u64,
    pub(super) restore: u64,
}

impl Drawn {
    pub(super) fn forward(self) -> u64 {
        self.install + self.reboot + self.validate
    }
}

/// The times of one kind of device.
#[derive(Debug)]
pub(super) struct Times {
    /// Whole updates that were seen: install, reboot, validate.
    updates: Vec<[u32; 3]>,
    /// Ways back that were seen.
    restores: Vec<u32>,
    usual: BTreeMap<Step, u64>,
    asked: BTreeMap<Step, u32>,
    /// Where they come from, for the record.
    pub(super) said: Vec<StepTime>,
}

impl Times {
    /// Of devices of `kind` that get `image`, the release `release`, with this deadline.
    pub(super) fn new(
        kind: &DeviceKind,
        (release, image): (&str, ArtifactId),
        learned: &[LearnedAttempt],
        asked: &BTreeMap<Step, u32>,
        attempt_s: u32,
    ) -> Self {
        let whole = u64::from(attempt_s) * 1_000 / 2;
        let mut usual: BTreeMap<_, _> = USUAL.iter().map(|(step, share)| (*step, whole * share / 100)).collect();
        usual.insert(Step::Restore, whole);
        let of = |step: &[Step]| -> (Source, Vec<Vec<u32>>) {
            let of_kind = learned.iter().filter(|attempt| attempt.kind == *kind);
            let seconds = |attempt: &LearnedAttempt| -> Option<Vec<u32>> {
                step.iter().map(|step| attempt.seconds.get(step).copied()).collect()
            };
            let exact: Vec<_> = of_kind
                .clone()
                .filter(|a| a.image == image)
                .filter_map(seconds)
                .take(SAMPLES_MAX)
                .collect();
            if exact.len() >= SAMPLES_MIN {
                return (Source::Release, exact);
            }
            let wider: Vec<_> = of_kind.filter_map(seconds).take(SAMPLES_MAX).collect();
            match wider.len() >= SAMPLES_MIN {
                true => (Source::Model, wider),
                false => (Source::Usual, Vec::new()),
            }
        };
        let (updates_from, updates) = of(&[Step::Install, Step::Reboot, Step::Validate]);
        let (restores_from, restores) = of(&[Step::Restore]);
        let column = |at: usize| updates.iter().map(move |update| u64::from(update[at])).collect();
        let said = Step::ALL.iter().map(|step| {
            let (source, seen): (_, Vec<u64>) = match step {
                Step::Install => (updates_from, column(0)),
                Step::Reboot => (updates_from, column(1)),
                Step::Validate => (updates_from, column(2)),
                Step::Restore => (
                    restores_from,
                    restores.iter().map(|restore| restore[0].into()).collect(),
                ),
            };
            let samples = u32::try_from(seen.len()).unwrap_or(u32::MAX);
            let (source, samples, seconds) = match (asked.get(step), Spread::of(seen)) {
                (Some(seconds), _) => (Source::Asked, 0, even(*seconds)),
                (None, Some(seconds)) => (source, samples, seconds),
                (None, None) => (source, 0, spread_of_usual(usual[step] / 1_000)),
            };
            let (model, component, release) = (kind.model.clone(), kind.component.clone(), release.to_owned());
            StepTime {
                model,
                component,
                release,
                step: *step,
                source,
                samples,
                seconds,
            }
        });
        Self {
            said: said.collect(),
            updates: updates.iter().map(|update| [update[0], update[1], update[2]]).collect(),
            restores: restores.iter().map(|restore| restore[0]).collect(),
            usual,
            asked: asked.clone(),
        }
    }

    pub(super) fn draw(&self, dice: &mut Dice) -> Drawn {
        let (update, restore, slower) = (
            dice.below(u64::MAX),
            dice.below(u64::MAX),
            dice.below(USUAL_SPREAD.1 - USUAL_SPREAD.0 + 1),
        );
        let pick = |length: usize, drawn: u64| usize::try_from(drawn % length.max(1) as u64).unwrap_or(0);
        let seen = self.updates.get(pick(self.updates.len(), update));
        let back = self.restores.get(pick(self.restores.len(), restore));
        let time = |step: Step, seen: Option<u32>| match self.asked.get(&step).copied().or(seen) {
            Some(seconds) => u64::from(seconds) * 1_000,
            None => self.usual[&step] * (USUAL_SPREAD.0 + slower) / 100,
        };
        Drawn {
            install: time(Step::Install, seen.map(|seen| seen[0])),
            reboot: time(Step::Reboot, seen.map(|seen| seen[1])),
            validate: time(Step::Validate, seen.map(|seen| seen[2])),
            restore: time(Step::Restore, back.copied()),
        }
    }
}

fn even(seconds: u32) -> Spread {
    let seconds = seconds.into();
    Spread {
        p50: seconds,
        p95: seconds,
        max: seconds,
    }
}

fn spread_of_usual(seconds: u64) -> Spread {
    let (low, high) = USUAL_SPREAD;
    let at = |percent: u64| seconds * (low * 100 + (high - low) * percent) / 10_000;
    Spread {
        p50: at(50),
        p95: at(95),
        max: at(100),
    }
}
