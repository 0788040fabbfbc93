//! Maintenance windows: when devices may start, in the local time of a place.
//!
//! Invariants: a start must fit with its whole worst-case duration into one window and outside every blackout; zones
//! come from the time zone database inside the binary, so that every node reads the same rules. A local time that the
//! clocks skip is taken as the moment after the gap, one that comes twice as its first occurrence; the end is the given
//! span later on the real time line.

use std::time::Duration;

use jiff::{
    ToSpan as _,
    civil::{self, Date},
    tz::{TimeZone, TimeZoneDatabase},
};
use serde::{Deserialize, Serialize};

use crate::time::WallTime;

/// Windows, or blackouts, of one campaign at most.
pub const WINDOWS_MAX: usize = 64;

/// The longest window: a week, after which it would overlap itself.
pub const WINDOW_SECONDS_MAX: u32 = 7 * 24 * 3_600;

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Weekday {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Weekday {
    fn is(self, date: Date) -> bool {
        date.weekday().to_monday_zero_offset() == self as i8
    }
}

/// A span of time that recurs every week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// IANA zone, such as `Europe/Berlin`.
    pub zone: String,
    /// The days on which it opens.
    pub days: Vec<Weekday>,
    /// When it opens, local time: `HH:MM`.
    pub from: String,
    /// For how long, in seconds.
    pub duration_s: u32,
}

/// A span in which nothing starts, whatever the windows say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    /// Its first moment.
    pub from: WallTime,
    /// The moment after it.
    pub until: WallTime,
}

impl Window {
    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<String> {
        let days: std::collections::BTreeSet<_> = self.days.iter().collect();
        if self.days.is_empty() || days.len() != self.days.len() {
            return Some("must open on at least one day, each named once".to_owned());
        }
        if self.duration_s == 0 || self.duration_s > WINDOW_SECONDS_MAX {
            return Some(format!("must last 1 to {WINDOW_SECONDS_MAX} seconds"));
        }
        if self.opens_at().is_none() {
            return Some("must open at a local time of the form HH:MM".to_owned());
        }
        self.zone()
            .is_none()
            .then(|| "names no IANA time zone such as Europe/Berlin".to_owned())
    }

    fn zone(&self) -> Option<TimeZone> {
        TimeZoneDatabase::bundled().get(&self.zone).ok()
    }

    fn opens_at(&self) -> Option<civil::Time> {
        let (hour, minute) = self.from.split_once(':')?;
        let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(hour) || !digits(minute) {
            return None;
        }
        civil::Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
    }

    /// The spans that end after `now` and begin at most a week later, in order.
    fn spans(&self, now: WallTime) -> Vec<(WallTime, WallTime)> {
        let (Some(zone), Some(opens)) = (self.zone(), self.opens_at()) else {
            return Vec::new();
        };
        let Ok(at) = jiff::Timestamp::from_second(now.unix_seconds()) else {
            return Vec::new();
        };
        let today = zone.to_datetime(at).date();
        let dates = (-8..=8).filter_map(|offset: i64| today.checked_add(offset.days()).ok());
        let span = |date: Date| {
            let start = zone.to_ambiguous_zoned(date.to_datetime(opens)).compatible().ok()?;
            let start = WallTime::from_unix_seconds(start.timestamp().as_second());
            Some((start, start + Duration::from_secs(self.duration_s.into())))
        };
        dates
            .filter(|date| self.days.iter().any(|day| day.is(*date)))
            .filter_map(span)
            .filter(|(_, end)| *end > now)
            .collect()
    }
}

/// Why nothing may start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// The next moment at which a start fits, as far as it can be seen within a week.
    pub opens: Option<WallTime>,
}

/// Whether something that takes `span` may start at `now`: inside one of the windows (any time, if there are none), and
/// outside all blackouts.
pub fn check(windows: &[Window], blackouts: &[Blackout], now: WallTime, span: Duration) -> Result<(), Closed> {
    let fits_at = |at: WallTime| {
        let end = at + span;
        let is_clear = blackouts
            .iter()
            .all(|blackout| end <= blackout.from || at >= blackout.until);
        let within = |(from, until): (WallTime, WallTime)| from <= at && end <= until;
        is_clear && (windows.is_empty() || windows.iter().any(|window| window.spans(at).into_iter().any(within)))
    };
    if fits_at(now) {
        return Ok(());
    }
    // A start can only begin to fit where a window opens or a blackout ends.
    let openings = windows
        .iter()
        .flat_map(|window| window.spans(now))
        .map(|(from, _)| from);
    let opens = openings
        .chain(blackouts.iter().map(|blackout| blackout.until))
        .filter(|at| *at > now && fits_at(*at))
        .min();
    Err(Closed { opens })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> WallTime {
        text.parse().unwrap()
    }

    fn night(zone: &str, days: &[Weekday]) -> Window {
        Window {
            zone: zone.to_owned(),
            days: days.to_vec(),
            from: "22:00".to_owned(),
            duration_s: 4 * 3_600,
        }
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_start_must_fit_the_window_with_its_whole_duration() {
        let windows = [night("Europe/Berlin", &[Weekday::Sat])];
        let may = |now: &str, span| check(&windows, &[], at(now), span);
        // 2026-11-21 is a Saturday; 22:00 in Berlin is 21:00 UTC, and the window ends on Sunday at 01:00 UTC.
        let opens = Some(at("2026-11-21T21:00:00Z"));
        assert_eq!(may("2026-11-21T20:59:59Z", HOUR), Err(Closed { opens }));
        assert_eq!(may("2026-11-21T21:00:00Z", HOUR), Ok(()));
        assert_eq!(may("2026-11-22T00:00:00Z", HOUR), Ok(()));
        let next = Some(at("2026-11-28T21:00:00Z"));
        assert_eq!(may("2026-11-22T00:00:01Z", HOUR), Err(Closed { opens: next }));
        assert_eq!(may("2026-11-21T21:00:00Z", HOUR * 5), Err(Closed { opens: None }));
    }

    #[test]
    fn a_blackout_wins_over_a_window_and_over_no_window() {
        let blackout = Blackout {
            from: at("2026-12-24T00:00:00Z"),
            until: at("2026-12-27T00:00:00Z"),
        };
        let opens = Some(blackout.until);
        assert_eq!(
            check(&[], &[blackout], at("2026-12-23T23:30:00Z"), HOUR),
            Err(Closed { opens })
        );
        assert_eq!(check(&[], &[blackout], at("2026-12-23T23:00:00Z"), HOUR), Ok(()));
        assert_eq!(check(&[], &[blackout], at("2026-12-27T00:00:00Z"), HOUR), Ok(()));
    }

    #[test]
    fn local_time_follows_the_clocks_through_gap_and_fold() {
        let mut window = night("Europe/Berlin", &[Weekday::Sun]);
        window.from = "02:30".to_owned();
        window.duration_s = 3_600;
        // 2026-03-29: 02:00 becomes 03:00, so 02:30 is taken as 03:30 CEST. 2026-10-25: 02:30 comes twice.
        let windows = [window];
        for (open, before) in [
            ("2026-03-29T01:30:00Z", "2026-03-29T01:29:59Z"),
            ("2026-10-25T00:30:00Z", "2026-10-25T00:29:59Z"),
        ] {
            assert_eq!(check(&windows, &[], at(open), HOUR), Ok(()));
            let opens = Some(at(open));
            assert_eq!(check(&windows, &[], at(before), HOUR), Err(Closed { opens }));
        }
    }

    #[test]
    fn what_is_no_window_is_named() {
        let good = night("Asia/Kolkata", &[Weekday::Mon, Weekday::Sun]);
        assert_eq!(good.problem(), None);
        for bad in [
            Window {
                zone: "Mars/Olympus".to_owned(),
                ..good.clone()
            },
            Window {
                days: Vec::new(),
                ..good.clone()
            },
            Window {
                days: vec![Weekday::Mon, Weekday::Mon],
                ..good.clone()
            },
            Window {
                from: "24:00".to_owned(),
                ..good.clone()
            },
            Window {
                from: "9:00".to_owned(),
                ..good.clone()
            },
            Window {
                duration_s: 0,
                ..good.clone()
            },
            Window {
                duration_s: WINDOW_SECONDS_MAX + 1,
                ..good.clone()
            },
        ] {
            assert!(bad.problem().is_some(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_announced_opening_is_one(now in 1_700_000_000_i64..2_000_000_000, zone in 0..4_usize, hours in 1..6_u64) {
            let zone = ["America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"][zone];
            let windows = [night(zone, &[Weekday::Tue, Weekday::Fri])];
            let (now, span) = (WallTime::from_unix_seconds(now), HOUR * u32::try_from(hours).unwrap());
            if let Err(closed) = check(&windows, &[], now, span) {
                prop_assert_eq!(closed.opens.is_some(), hours <= 4);
                if let Some(opens) = closed.opens {
                    prop_assert!(opens > now && check(&windows, &[], opens, span).is_ok());
                    prop_assert!(check(&windows, &[], WallTime::from_unix_seconds(opens.unix_seconds() - 1), span).is_err());
                }
            }
        }
    }
}
