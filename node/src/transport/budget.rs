//! Budgets: how many bytes per second may come and go, here, over the rack's boundary and over the site's.
//!
//! A budget of a rack or a site is shared out evenly among the nodes that are connected there: importers are chosen by
//! hash, so each needs about the same. Bytes are paid for before they move, in the order in which they were asked for
//! (a virtual scheduling algorithm, ITU-T I.371), with what headers and acknowledgements add to them.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use firmesh_protocol::{
    chunk::PIECE_BYTES_MAX,
    time::WallTime,
    window::{Timetable, Window},
};
use serde::Deserialize;
use tokio::time::Instant;

/// What a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything that this node sends and receives for images.
    Node,
    /// What crosses the boundary of its rack, for all nodes of the rack together.
    Rack,
    /// What crosses the boundary of its site, for all nodes of the site together.
    Site,
}

/// A rate that is not exceeded, each way.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// What it is for.
    pub scope: Scope,
    /// Megabits (10^6) per second on the wire.
    pub mbit_per_s: u32,
    /// When it holds; always if empty.
    #[serde(default)]
    pub windows: Vec<Window>,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

/// How much of what is paid for is content with its proof; the rest is headers and acknowledgements, as measured.
const CONTENT_PERCENT: f64 = 95.0;

/// What may go at once after a rest: less would make a timer's resolution count.
const REST: Duration = Duration::from_millis(20);

/// A slower rate would give a piece longer than its request has.
const MBIT_MIN: u32 = 1;

impl Budget {
    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let windows = self.windows.iter().find_map(Window::problem);
        let problem = windows.map(|problem| format!("names a window that {problem}"));
        let too_slow = (self.mbit_per_s < MBIT_MIN).then(|| format!("must be at least {MBIT_MIN} Mbit/s"));
        problem.or(too_slow)
    }

    /// Bytes of content and proof per second.
    fn rate(&self) -> f64 {
        f64::from(self.mbit_per_s) * 1e6 / 8.0 * CONTENT_PERCENT / 100.0
    }
}

/// How many pieces are worth having in flight under some budgets: half a second's worth of the least of the node's own.
pub(crate) fn pieces_in_flight(budgets: &[Budget], most: usize) -> usize {
    let own = budgets.iter().filter(|budget| budget.scope == Scope::Node);
    let least = own.map(Budget::rate).fold(f64::INFINITY, f64::min);
    let pieces = least * 0.5 / PIECE_BYTES_MAX as f64;
    (pieces.min(most as f64) as usize).max(1)
}

/// All budgets of a node.
#[derive(Debug)]
pub(super) struct Budgets(Vec<(Budget, Mutex<[Account; 2]>)>);

impl Budgets {
    pub(super) fn new(budgets: Vec<Budget>) -> Self {
        Self(budgets.into_iter().map(|budget| (budget, Mutex::default())).collect())
    }

    /// Whether nothing is ever held back.
    pub(super) fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// How long bytes have to wait that cross the boundaries up to `widest`; `sharers` are the nodes that share a scope.
    pub(super) fn pay(
        &self,
        way: Way,
        widest: Scope,
        bytes: usize,
        sharers: impl Fn(Scope) -> usize,
        (now, wall): (Instant, WallTime),
    ) -> Duration {
        let holds = |budget: &Budget| {
            budget.scope <= widest
                && (budget.windows.is_empty()
                    || Timetable::of_windows(&budget.windows)
                        .check(wall, Duration::ZERO)
                        .is_ok())
        };
        let due = self
            .0
            .iter()
            .filter(|(budget, _)| holds(budget))
            .map(|(budget, accounts)| {
                let rate = budget.rate() / sharers(budget.scope).max(1) as f64;
                let mut accounts = accounts.lock().unwrap_or_else(PoisonError::into_inner);
                accounts[way as usize].pay(now, bytes, rate)
            });
        due.max().unwrap_or_default()
    }
}

/// When the bytes that were paid for will have gone.
#[derive(Debug, Default)]
struct Account(Option<Instant>);

impl Account {
    /// Pays for some bytes, and says how long they wait for their turn.
    fn pay(&mut self, now: Instant, bytes: usize, rate: f64) -> Duration {
        let rested = now.checked_sub(REST).unwrap_or(now);
        let begins = self.0.map_or(rested, |at| at.max(rested));
        self.0 = Some(begins + Duration::from_secs_f64(bytes as f64 / rate));
        begins.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(scope: Scope, mbit_per_s: u32) -> Budget {
        Budget {
            scope,
            mbit_per_s,
            windows: Vec::new(),
        }
    }

    #[test]
    fn a_budget_is_met_to_the_percent_and_shared() {
        let start = Instant::now();
        let wall = WallTime::from_unix_seconds(1_790_000_000);
        for (scope, sharers, expected) in [(Scope::Node, 1, 80.0), (Scope::Rack, 4, 20.0)] {
            let budgets = Budgets::new(vec![budget(scope, 80)]);
            let (mut at, mut bytes) = (start, 0_usize);
            while at - start < Duration::from_secs(10) {
                at += budgets.pay(Way::Out, Scope::Site, 16 << 10, |_| sharers, (at, wall));
                bytes += 16 << 10;
            }
            let wire = bytes as f64 * 8.0 / 10.0 / 1e6 * 100.0 / CONTENT_PERCENT;
            assert!((wire / expected - 1.0).abs() < 0.01, "{wire} Mbit/s of {expected}");
        }
    }

    #[test]
    fn what_stays_inside_is_free_and_each_way_has_its_own() {
        let at = (Instant::now(), WallTime::from_unix_seconds(1_790_000_000));
        let budgets = Budgets::new(vec![budget(Scope::Rack, 8)]);
        for _ in 0..10 {
            assert_eq!(budgets.pay(Way::Out, Scope::Node, 1 << 20, |_| 1, at), Duration::ZERO);
        }
        assert_eq!(budgets.pay(Way::Out, Scope::Rack, 1 << 20, |_| 1, at), Duration::ZERO);
        assert!(budgets.pay(Way::Out, Scope::Rack, 1, |_| 1, at) > Duration::from_secs(1));
        assert_eq!(budgets.pay(Way::In, Scope::Site, 1, |_| 1, at), Duration::ZERO);
    }

    #[test]
    fn a_budget_holds_at_its_time_only() {
        let window = r#"{"zone": "Europe/Berlin", "days": ["mon"], "from": "08:00", "duration_s": 3600}"#;
        let mut office_hours = budget(Scope::Node, 1);
        office_hours.windows = vec![serde_json::from_str(window).unwrap()];
        assert_eq!(office_hours.problem(), None);
        let budgets = Budgets::new(vec![office_hours]);
        let waits = |wall: &str| {
            let at = (Instant::now(), wall.parse().unwrap());
            budgets.pay(Way::In, Scope::Node, 10 << 20, |_| 1, at);
            budgets.pay(Way::In, Scope::Node, 1, |_| 1, at) > Duration::ZERO
        };
        assert!(!waits("2026-11-22T07:30:00Z")); // a Sunday
        assert!(waits("2026-11-23T07:30:00Z"));
        assert!(!waits("2026-11-23T08:30:00Z"));
    }

    #[test]
    fn few_pieces_are_in_flight_under_a_small_budget() {
        let under = |mbit| pieces_in_flight(&[budget(Scope::Node, mbit), budget(Scope::Site, 1)], 16);
        assert_eq!([1, 40, 100, 10_000].map(under), [1, 9, 16, 16]);
        assert_eq!(pieces_in_flight(&[], 16), 16);
    }

    proptest! {
        /// Whoever asks, however much, and whenever: never more than the rate and one rest's worth.
        #[test]
        fn no_more_goes_than_was_set(asked in prop::collection::vec((0_u64..50, 1_usize..300_000), 1..200)) {
            let (start, rate) = (Instant::now() + REST, 1e6);
            let (mut account, mut now, mut sent, mut last) = (Account::default(), start, 0_usize, start);
            for (pause, bytes) in asked {
                now += Duration::from_millis(pause);
                let goes = now + account.pay(now, bytes, rate);
                prop_assert!(goes >= last);
                let allowed = ((goes - start) + REST).as_secs_f64() * rate;
                prop_assert!(sent as f64 <= allowed + 1.0, "{sent} of {allowed}");
                (sent, last) = (sent + bytes, goes);
            }
        }
    }
}
