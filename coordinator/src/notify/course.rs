//! How far a destination has been told, and what an outcome makes of it: a plain function of facts, without clock or I/O.
//!
//! Invariants: the cursor moves over a message only when it is delivered, refused for good or given up, and goes back only for
//! a replay; what waits longest goes first.

use std::time::Duration;

use firmesh_protocol::{api::NotificationError, time::WallTime};
use serde::{Deserialize, Serialize};

/// The first wait; doubled with every failure in a row.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// The longest wait of our own.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(3_600);

/// The longest wait that a receiver may ask for.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    /// The receiver will not take it, however often it is sent.
    Refused(String),
    /// It may go better later, not before the time that the receiver asks for.
    Failed {
        why: String,
        retry_after: Option<Duration>,
    },
}

impl Outcome {
    pub(crate) fn failed(why: impl Into<String>) -> Self {
        Self::Failed {
            why: why.into(),
            retry_after: None,
        }
    }
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Delivered,
    Refused,
    /// The same message again at this moment.
    Again(WallTime),
    GivenUp,
}

/// How far a destination has come, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Everything up to this number is settled.
    pub(crate) cursor: u64,
    pub(crate) delivered: u64,
    pub(crate) refused: u64,
    pub(crate) given_up: u64,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// Since when nothing gets through. Time in which no coordinator ran does not count.
    pub(crate) failing_since: Option<WallTime>,
    pub(crate) last_delivered: Option<WallTime>,
    pub(crate) last_error: Option<NotificationError>,
    #[serde(skip)]
    pub(crate) next_attempt: Option<WallTime>,
}

impl Progress {
    /// A process begins: it tries at once, and what nobody could try has not aged.
    pub(crate) fn begin(&mut self, now: WallTime) {
        self.failing_since = self.failing_since.map(|_| now);
        self.next_attempt = None;
    }

    /// Whether a message has waited too long at a destination that does not answer.
    pub(crate) fn is_expired(&self, at: WallTime, now: WallTime, give_up_after: Duration) -> bool {
        self.failing_since
            .is_some_and(|since| since.max(at) + give_up_after <= now)
    }

    /// Takes in what came of an attempt to deliver message `number` of `at`. `jitter` is anything random.
    pub(crate) fn settle(
        &mut self,
        (number, at): (u64, WallTime),
        outcome: Outcome,
        now: WallTime,
        give_up_after: Duration,
        jitter: u32,
    ) -> Verdict {
        let mut note = |reason| {
            self.last_error = Some(NotificationError {
                at: now,
                number,
                reason,
            })
        };
        match outcome {
            Outcome::Delivered => {
                self.delivered += 1;
                self.last_delivered = Some(now);
                self.answered(number);
                Verdict::Delivered
            }
            Outcome::Refused(why) => {
                note(why);
                self.refused += 1;
                self.answered(number);
                Verdict::Refused
            }
            Outcome::Failed { why, retry_after } => {
                note(why);
                self.failing_since.get_or_insert(now);
                let wait = backoff(self.failures, jitter).max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX));
                self.failures = self.failures.saturating_add(1);
                let next = now + wait.max(Duration::from_secs(1));
                self.next_attempt = Some(next);
                if self.is_expired(at, now, give_up_after) {
                    self.give_up(number);
                    return Verdict::GivenUp;
                }
                Verdict::Again(next)
            }
        }
    }

    /// Goes on without a message.
    pub(crate) fn give_up(&mut self, number: u64) {
        self.given_up += 1;
        self.cursor = self.cursor.max(number);
    }

    /// Tells everything from `number` on again.
    pub(crate) fn replay(&mut self, number: u64) {
        self.cursor = number.saturating_sub(1);
        (self.failures, self.failing_since, self.next_attempt) = (0, None, None);
    }

    /// The receiver is there, whatever it said.
    fn answered(&mut self, number: u64) {
        self.cursor = self.cursor.max(number);
        (self.failures, self.failing_since, self.next_attempt) = (0, None, None);
    }
}

/// Twice as long with every failure, up to an hour; the upper half of it at random, so that many that failed together do
/// not come back together.
fn backoff(failures: u32, jitter: u32) -> Duration {
    let longest = BACKOFF_FIRST.saturating_mul(1 << failures.min(12)).min(BACKOFF_MAX);
    let half = longest / 2;
    half + half.mul_f64(f64::from(jitter) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE_DAYS: Duration = Duration::from_secs(3 * 86_400);

    fn at(seconds: i64) -> WallTime {
        WallTime::from_unix_seconds(1_800_000_000 + seconds)
    }

    /// Three days against a wall, second by second of a clock that nobody waits for.
    #[test]
    fn a_receiver_that_never_answers_is_asked_ever_more_seldom_and_given_up_after_three_days() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut progress, mut now, mut waits) = (Progress::default(), at(0), Vec::new());
        let verdict = loop {
            let outcome = Outcome::failed("nobody there");
            match progress.settle((1, at(0)), outcome, now, THREE_DAYS, random.u32(..)) {
                Verdict::Again(next) => {
                    waits.push(next.unix_seconds() - now.unix_seconds());
                    now = next;
                }
                verdict => break verdict,
            }
        };
        assert_eq!(verdict, Verdict::GivenUp);
        assert!(
            now >= at(0) + THREE_DAYS && now <= at(0) + THREE_DAYS + BACKOFF_MAX,
            "{now}"
        );
        for (failures, wait) in waits.iter().enumerate() {
            let longest = (1_i64 << failures.min(12)).min(3_600);
            assert!(
                (longest / 2..=longest.max(1)).contains(wait),
                "wait {failures}: {wait} s"
            );
        }
        assert!((80..160).contains(&waits.len()), "{} attempts", waits.len());
        assert_eq!((progress.cursor, progress.given_up), (1, 1));
        // The next message is as old: it goes as well. One from this morning has its own three days.
        assert!(progress.is_expired(at(60), now, THREE_DAYS - Duration::from_secs(7_200)));
        assert!(!progress.is_expired(now, now, THREE_DAYS));
    }

    #[test]
    fn an_answer_ends_the_outage_and_a_refusal_is_an_answer() {
        let mut progress = Progress::default();
        for _ in 0..20 {
            progress.settle((1, at(0)), Outcome::failed("503"), at(5), THREE_DAYS, 0);
        }
        let refused = Outcome::Refused("400".to_owned());
        assert_eq!(
            progress.settle((1, at(0)), refused, at(9), THREE_DAYS, 0),
            Verdict::Refused
        );
        assert_eq!(
            (progress.cursor, progress.failures, progress.failing_since),
            (1, 0, None)
        );
        let again = progress.settle((2, at(0)), Outcome::failed("503"), at(9), THREE_DAYS, 0);
        assert_eq!(again, Verdict::Again(at(10)), "the first wait again");
    }

    #[test]
    fn a_receiver_may_ask_for_more_time_but_not_for_ever() {
        let wait = |asked: u64| {
            let outcome = Outcome::Failed {
                why: "429".to_owned(),
                retry_after: Some(Duration::from_secs(asked)),
            };
            Progress::default().settle((1, at(0)), outcome, at(0), THREE_DAYS, 0)
        };
        assert_eq!(wait(120), Verdict::Again(at(120)));
        assert_eq!(wait(u64::MAX), Verdict::Again(at(86_400)));
        assert_eq!(wait(0), Verdict::Again(at(1)));
    }

    #[test]
    fn time_without_a_coordinator_does_not_age_a_message() {
        let mut progress = Progress::default();
        progress.settle((1, at(0)), Outcome::failed("nobody there"), at(0), THREE_DAYS, 0);
        let week = 7 * 86_400;
        let mut back: Progress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
        assert!(back.is_expired(at(0), at(week), THREE_DAYS));
        back.begin(at(week));
        assert!(!back.is_expired(at(0), at(week), THREE_DAYS));
    }

    #[test]
    fn a_replay_goes_back_and_keeps_the_counts() {
        let mut progress = Progress::default();
        for number in 1..=9 {
            progress.settle((number, at(0)), Outcome::Delivered, at(1), THREE_DAYS, 0);
        }
        progress.replay(4);
        assert_eq!((progress.cursor, progress.delivered), (3, 9));
    }
}
