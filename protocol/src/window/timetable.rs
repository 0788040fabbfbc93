//! When something may start: windows and blackouts put together for one device.
//!
//! Invariants: a start must fit with its whole worst-case duration into one window and outside every blackout; an opening
//! that is announced is the first one, and none is announced that lies after [`HORIZON`]; the work is bounded by the
//! number of rules, whatever they say.

use std::time::Duration;

use super::{AppliesTo, Blackout, BlackoutCalendar, Subject, Window, series::Series};
use crate::time::WallTime;

/// How far ahead openings are looked for: nine years, in which every rule that still recurs has recurred (a leap day may
/// be eight years away).
pub const HORIZON: Duration = Duration::from_secs(9 * 366 * 86_400);

/// Blackouts that are stepped over in search of an opening; more of them in a row are as good as none in sight.
const STEPS_MAX: usize = 128;

/// Why nothing may start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// The next moment at which a start fits, if there is one within [`HORIZON`].
    pub opens: Option<WallTime>,
}

/// One span of a window, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Which window, counted from 0.
    pub window: usize,
    /// Its first moment.
    pub from: WallTime,
    /// The moment after it.
    pub until: WallTime,
    /// What takes some of it away: the names of blackout calendars, or `blackout`.
    pub blackouts: Vec<String>,
}

/// The windows and blackouts that are for one device, read.
#[derive(Debug, Clone)]
pub struct Timetable {
    /// Whether there are windows at all, for this device or for others.
    is_windowed: bool,
    windows: Vec<(usize, Series)>,
    blackouts: Vec<Blackout>,
    calendars: Vec<(String, Series)>,
}

impl Timetable {
    /// Puts rules together for a device. Rules that have a problem never open, or black everything out: nobody starts
    /// because of a mistake.
    #[must_use]
    pub fn new(
        windows: &[Window],
        blackouts: &[Blackout],
        calendars: &[BlackoutCalendar],
        device: Subject<'_>,
    ) -> Self {
        let is_for_it = |only: &Option<AppliesTo>| only.as_ref().is_none_or(|only| only.includes(device));
        let of_device = windows.iter().enumerate().filter(|(_, window)| is_for_it(&window.only));
        let mut table = Self {
            is_windowed: !windows.is_empty(),
            windows: of_device
                .filter_map(|(number, window)| Some((number, window.series().ok()?)))
                .collect(),
            blackouts: blackouts.to_vec(),
            calendars: Vec::new(),
        };
        for calendar in calendars.iter().filter(|calendar| is_for_it(&calendar.only)) {
            match calendar.series() {
                Ok(series) => table.calendars.push((calendar.name.clone(), series)),
                Err(_) => (table.is_windowed, table.windows) = (true, Vec::new()),
            }
        }
        table
    }

    /// Windows that are for every device.
    #[must_use]
    pub fn of_windows(windows: &[Window]) -> Self {
        Self::new(windows, &[], &[], Subject::NOBODY)
    }

    /// Whether something that takes `span` may start at `now`: inside one of the windows (any time, if there are none), and
    /// outside all blackouts.
    pub fn check(&self, now: WallTime, span: Duration) -> Result<(), Closed> {
        match self.next(now, span) {
            Some(at) if at == now => Ok(()),
            opens => Err(Closed { opens }),
        }
    }

    /// The first moment from `now` on at which something that takes `span` may start.
    fn next(&self, now: WallTime, span: Duration) -> Option<WallTime> {
        let limit = now + HORIZON;
        let mut at = now;
        let mut known = vec![Known::Nothing; self.windows.len()];
        for _ in 0..STEPS_MAX {
            let fits = self.in_a_window(at, span, limit, &mut known)?;
            match self.blocked_until(fits, span) {
                None => return Some(fits),
                Some(until) => at = until,
            }
        }
        None
    }

    /// The first moment from `at` on that has `span` before the end of a window. What was found for an earlier moment is
    /// kept in `known`.
    fn in_a_window(&self, at: WallTime, span: Duration, limit: WallTime, known: &mut [Known]) -> Option<WallTime> {
        if !self.is_windowed {
            return Some(at);
        }
        let mut first: Option<WallTime> = None;
        for ((_, series), known) in self.windows.iter().zip(known) {
            let Some(spare_s) = u64::from(series.lasts_s()).checked_sub(span.as_secs()) else {
                continue;
            };
            // The window that begins first of those that end late enough.
            let since = before(at, spare_s);
            let start = match *known {
                Known::Start(start) if start >= since => Some(start),
                Known::None => None,
                Known::Start(_) | Known::Nothing => series.first_from(since, limit),
            };
            *known = start.map_or(Known::None, Known::Start);
            let fits = start.map(|start| start.max(at));
            first = [first, fits].into_iter().flatten().min();
        }
        first
    }

    /// When the last of the blackouts is over that something of this length would run into.
    fn blocked_until(&self, at: WallTime, span: Duration) -> Option<WallTime> {
        let end = at + span;
        let is_clear = |blackout: &&Blackout| end <= blackout.from || at >= blackout.until;
        let absolute = self
            .blackouts
            .iter()
            .filter(|blackout| !is_clear(blackout))
            .map(|blackout| blackout.until);
        let recurring = self.calendars.iter().filter_map(|(_, series)| hit(series, at, end));
        absolute.chain(recurring).max()
    }

    /// The next spans of the windows that are not over at `now`, in order, at most `count`.
    #[must_use]
    pub fn openings(&self, now: WallTime, count: usize) -> Vec<Opening> {
        let limit = now + HORIZON;
        let mut next: Vec<_> = self
            .windows
            .iter()
            .map(|(_, series)| series.first_from(before(now, u64::from(series.lasts_s())) + SECOND, limit))
            .collect();
        let mut openings = Vec::new();
        while openings.len() < count {
            let first = next
                .iter()
                .enumerate()
                .filter_map(|(place, from)| Some(((*from)?, place)))
                .min();
            let Some((from, place)) = first else { break };
            let (window, series) = &self.windows[place];
            let until = from + Duration::from_secs(series.lasts_s().into());
            openings.push(Opening {
                window: *window,
                from,
                until,
                blackouts: self.blackouts_in(from, until),
            });
            next[place] = series.first_from(from + SECOND, limit);
        }
        openings
    }

    fn blackouts_in(&self, from: WallTime, until: WallTime) -> Vec<String> {
        let absolute = self
            .blackouts
            .iter()
            .filter(|blackout| until > blackout.from && from < blackout.until);
        let mut names: Vec<_> = absolute.take(1).map(|_| "blackout".to_owned()).collect();
        let hits = self
            .calendars
            .iter()
            .filter(|(_, series)| hit(series, from, until).is_some());
        names.extend(hits.map(|(name, _)| name.clone()));
        names
    }
}

/// What a search has found so far for one window.
#[derive(Debug, Clone, Copy)]
enum Known {
    Nothing,
    Start(WallTime),
    None,
}

const SECOND: Duration = Duration::from_secs(1);

/// The end of the first span of a series that has something in common with `[at, end)`.
fn hit(series: &Series, at: WallTime, end: WallTime) -> Option<WallTime> {
    let lasts = Duration::from_secs(series.lasts_s().into());
    let begins_after = before(at, u64::from(series.lasts_s())) + SECOND;
    let begins = series.first_from(begins_after, end)?;
    (begins < end).then(|| begins + lasts)
}

fn before(at: WallTime, seconds: u64) -> WallTime {
    WallTime::from_unix_seconds(at.unix_seconds().saturating_sub_unsigned(seconds))
}
