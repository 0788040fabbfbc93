//! An attempt in few bytes. Of the millions that campaigns plan, most wait or have ended: such a one is what many others are
//! too, kept once for all of them, and three numbers of its own.
//!
//! Invariant: what is unpacked is what was packed, but for times that nobody may ask of an attempt that does not run.

use std::{collections::BTreeSet, ops::Deref, sync::Arc};

use firmesh_protocol::{
    health::DeviceHealth,
    ids::DeviceId,
    report::{AttemptState, FailureClass, PermitKind},
};

use super::{Attempt, AttemptRecord};
use crate::{
    index::{Counted, Standing},
    seat::{Own, Stand},
};

/// One attempt, packed if it can be.
#[derive(Debug)]
pub(super) struct Packed {
    /// Kept once for all campaigns that plan the device.
    pub(super) device: Arc<DeviceId>,
    pub(super) stand: Arc<Stand>,
    own: Arc<Own>,
    rest: Rest,
}

#[derive(Debug)]
enum Rest {
    Still {
        still: Arc<Still>,
        numbers: Numbers,
    },
    /// It runs, or something is kept of it that few others have.
    Whole(Box<Attempt>),
}

/// What is the same of many attempts that do not run.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Still {
    kind: PermitKind,
    state: AttemptState,
    reason: String,
    version: Option<String>,
    failure: Option<FailureClass>,
    health: Option<DeviceHealth>,
    presumed: bool,
    cleared: bool,
    ordered_back: bool,
    is_proven: bool,
    standing: Option<Standing>,
    counted: Counted,
}

/// What is a packed attempt's own; 0 where there is none.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    permit: u32,
    report_sequence: u32,
    end_report: u32,
}

/// An attempt to be read.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives as long as somebody looks at it")]
pub(crate) enum Look<'a> {
    Kept(&'a Attempt),
    Unpacked(Attempt),
}

impl Deref for Look<'_> {
    type Target = Attempt;
    fn deref(&self) -> &Attempt {
        match self {
            Self::Kept(attempt) => attempt,
            Self::Unpacked(attempt) => attempt,
        }
    }
}

impl Packed {
    /// `stills`: what was packed before is kept there, and what is new.
    pub(super) fn of(device: Arc<DeviceId>, attempt: Attempt, stills: &mut BTreeSet<Arc<Still>>) -> Self {
        let (stand, own) = (Arc::clone(&attempt.stand), Arc::clone(&attempt.own));
        let rest = match Numbers::of(&attempt) {
            Some(numbers) if is_still(&attempt) => {
                let still = Still::of(attempt);
                let known = stills.get(&still).cloned();
                let still = known.unwrap_or_else(|| {
                    let still = Arc::new(still);
                    stills.insert(Arc::clone(&still));
                    still
                });
                Rest::Still { still, numbers }
            }
            _ => Rest::Whole(Box::new(attempt)),
        };
        Self {
            device,
            stand,
            own,
            rest,
        }
    }

    pub(super) fn state(&self) -> AttemptState {
        match &self.rest {
            Rest::Still { still, .. } => still.state,
            Rest::Whole(attempt) => attempt.record.state,
        }
    }

    pub(super) fn look(&self) -> Look<'_> {
        match &self.rest {
            Rest::Still { still, numbers } => Look::Unpacked(self.of_still(still, *numbers)),
            Rest::Whole(attempt) => Look::Kept(attempt),
        }
    }

    /// Changes it in its place.
    pub(super) fn change<T>(&mut self, stills: &mut BTreeSet<Arc<Still>>, change: impl FnOnce(&mut Attempt) -> T) -> T {
        let (answer, attempt) = match &mut self.rest {
            Rest::Still { still, numbers } => {
                let (still, numbers) = (Arc::clone(still), *numbers);
                let mut attempt = self.of_still(&still, numbers);
                (change(&mut attempt), attempt)
            }
            Rest::Whole(attempt) => {
                let answer = change(attempt);
                if !can_be_packed(attempt) {
                    self.stand = Arc::clone(&attempt.stand);
                    self.own = Arc::clone(&attempt.own);
                    return answer;
                }
                (answer, Attempt::clone(attempt))
            }
        };
        *self = Self::of(Arc::clone(&self.device), attempt, stills);
        answer
    }

    fn of_still(&self, still: &Still, numbers: Numbers) -> Attempt {
        let some = |number: u32| (number > 0).then_some(u64::from(number));
        let fresh = Attempt::fresh(
            DeviceId::clone(&self.device),
            Arc::clone(&self.stand),
            Arc::clone(&self.own),
        );
        Attempt {
            record: AttemptRecord {
                kind: still.kind,
                state: still.state,
                reason: still.reason.clone(),
                version: still.version.clone(),
                failure: still.failure,
                health: still.health,
                permit: some(numbers.permit),
                report_sequence: u64::from(numbers.report_sequence),
                end_report: some(numbers.end_report),
                presumed: still.presumed,
                cleared: still.cleared,
                ordered_back: still.ordered_back,
                ..fresh.record
            },
            is_proven: still.is_proven,
            standing: still.standing,
            counted: still.counted,
            ..fresh
        }
    }
}

fn can_be_packed(attempt: &Attempt) -> bool {
    is_still(attempt) && Numbers::of(attempt).is_some()
}

/// Whether nothing is kept of it that a packed one has no room for. One that the coordinator has only presumed to have ended
/// may go on, and its times count then.
fn is_still(attempt: &Attempt) -> bool {
    let AttemptRecord {
        permit,
        presumed,
        halfway,
        retry,
        ..
    } = &attempt.record;
    let may_go_on = attempt.is_running() || (*presumed && permit.is_some());
    let has_more = halfway.is_some() || retry.is_some();
    let awaits = attempt.started_at.or(attempt.pauses_until).or(attempt.due).is_some();
    !(may_go_on || has_more || awaits)
}

impl Still {
    fn of(attempt: Attempt) -> Self {
        let record = attempt.record;
        Self {
            kind: record.kind,
            state: record.state,
            reason: record.reason,
            version: record.version,
            failure: record.failure,
            health: record.health,
            presumed: record.presumed,
            cleared: record.cleared,
            ordered_back: record.ordered_back,
            is_proven: attempt.is_proven,
            standing: attempt.standing,
            counted: attempt.counted,
        }
    }
}

impl Numbers {
    /// `None` if there is one that takes more room.
    fn of(attempt: &Attempt) -> Option<Self> {
        let AttemptRecord {
            permit,
            report_sequence,
            end_report,
            ..
        } = attempt.record;
        let small = |number: Option<u64>| match number {
            None => Some(0),
            Some(0) => None,
            Some(number) => u32::try_from(number).ok(),
        };
        Some(Self {
            permit: small(permit)?,
            report_sequence: u32::try_from(report_sequence).ok()?,
            end_report: small(end_report)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc, time::Duration};

    use firmesh_protocol::{
        health::DeviceHealth,
        ids::DeviceId,
        report::{AttemptState, FailureClass, PermitKind},
        time::Timestamp,
    };
    use proptest::prelude::*;

    use super::{Attempt, Packed, Rest};
    use crate::{
        retries::RetryRecord,
        seat::{Own, Stand},
    };

    const STATES: [AttemptState; 6] = [
        AttemptState::Pending,
        AttemptState::Downloading,
        AttemptState::Installing,
        AttemptState::Success,
        AttemptState::Cancelled,
        AttemptState::Quarantined,
    ];

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            1..9_u64,
            Just(u64::from(u32::MAX)),
            Just(u64::from(u32::MAX) + 1)
        ]
    }

    fn time() -> impl Strategy<Value = Option<Timestamp>> {
        prop_oneof![3 => Just(None), 1 => Just(Some(Timestamp::after_start(Duration::from_secs(7))))]
    }

    prop_compose! {
        fn attempt()(
            state in prop::sample::select(&STATES[..]),
            (back, presumed, cleared, ordered_back, is_proven) in any::<(bool, bool, bool, bool, bool)>(),
            (permit, report_sequence, end_report) in (prop::option::of(number()), number(), prop::option::of(number())),
            (started_at, pauses_until, due) in (time(), time(), time()),
            retry in prop_oneof![4 => Just(None), 1 => (1..3_u32).prop_map(Some)],
            failure in prop_oneof![Just(None), Just(Some(FailureClass::Install))],
            health in prop_oneof![Just(None), Just(Some(DeviceHealth::Healthy))],
            reason in prop_oneof![Just(""), Just("its fans stopped")],
            version in prop_oneof![Just(None), Just(Some("1.1.0"))],
        ) -> Attempt {
            let (stand, own) = (Arc::new(Stand::any()), Arc::new(Own::default()));
            let mut attempt = Attempt::fresh("r1-bmc-1".parse().unwrap(), stand, own);
            let record = &mut attempt.record;
            record.kind = if back { PermitKind::Rollback } else { PermitKind::Update };
            (record.state, record.permit, record.report_sequence, record.end_report) = (state, permit, report_sequence, end_report);
            (record.presumed, record.cleared, record.ordered_back) = (presumed, cleared, ordered_back);
            (record.failure, record.health) = (failure, health);
            (record.reason, record.version) = (reason.to_owned(), version.map(str::to_owned));
            record.retry = retry.map(|attempt| Box::new(RetryRecord { attempt, after_permit: 0, last: None }));
            (attempt.is_proven, attempt.started_at, attempt.pauses_until, attempt.due) = (is_proven, started_at, pauses_until, due);
            attempt
        }
    }

    proptest! {
        #[test]
        fn what_is_unpacked_is_what_was_packed(attempts in prop::collection::vec(attempt(), 1..8)) {
            let mut stills = BTreeSet::new();
            for attempt in attempts {
                let device = Arc::new(attempt.record.device.clone());
                let mut packed = Packed::of(device, attempt.clone(), &mut stills);
                prop_assert_eq!(&*packed.look(), &attempt);
                prop_assert_eq!(packed.state(), attempt.record.state);
                let is_still = |packed: &Packed| matches!(packed.rest, Rest::Still { .. });
                let was_still = is_still(&packed);
                prop_assert!(!was_still || !attempt.is_running());

                // However it is changed, and back: it is packed whenever it can be.
                packed.change(&mut stills, |attempt| attempt.due = Some(Timestamp::after_start(Duration::from_secs(9))));
                prop_assert!(!is_still(&packed));
                packed.change(&mut stills, |changed| changed.due = attempt.due);
                prop_assert_eq!(&*packed.look(), &attempt);
                prop_assert_eq!(is_still(&packed), was_still);
            }
        }
    }

    #[test]
    fn what_waits_or_has_ended_is_small_and_shared() {
        let (stand, own) = (Arc::new(Stand::any()), Arc::new(Own::default()));
        let mut stills = BTreeSet::new();
        let fresh = |number: u32| {
            let device = DeviceId::new(format!("d{number}")).unwrap();
            let attempt = Attempt::fresh(device.clone(), Arc::clone(&stand), Arc::clone(&own));
            Packed::of(Arc::new(device), attempt, &mut stills)
        };
        let mut all: Vec<_> = (0..9).map(fresh).collect();
        assert_eq!(stills.len(), 1);
        for packed in &mut all {
            packed.change(&mut stills, |attempt| {
                attempt.record.state = AttemptState::Success;
                attempt.record.permit = Some(3);
                attempt.record.end_report = Some(8);
            });
        }
        assert!(all.iter().all(|packed| matches!(packed.rest, Rest::Still { .. })));
        assert_eq!(stills.len(), 2);
        assert!(size_of::<Packed>() <= 48);
    }
}
