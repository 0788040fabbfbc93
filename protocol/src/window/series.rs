//! One recurring span as it stands on the real time line: which starts it has, and when.
//!
//! Invariants: a local time that the clocks skip is taken with the offset before the gap, so it becomes the moment as much
//! after it; one that comes twice is its first occurrence (RFC 5545, 3.3.5); a span lasts its duration in real seconds.

use std::collections::BTreeSet;

use jiff::{
    ToSpan as _,
    civil::{Date, DateTime, Time},
    tz::{TimeZone, TimeZoneDatabase},
};

use super::{
    Recurrence, Weekday,
    rule::{DAYS_AT_ONCE, Ends, Rule},
};
use crate::time::WallTime;

/// A zone of the database inside the binary, so that every node reads the same rules.
pub(super) fn zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

#[derive(Debug, Clone)]
enum Pattern {
    Weekly { days: Vec<Weekday>, opens: Time },
    Rule(Box<Rule>),
    Listed,
}

/// A recurring span, read.
#[derive(Debug, Clone)]
pub(super) struct Series {
    zone: TimeZone,
    pattern: Pattern,
    /// No start of the pattern after this moment, in seconds since 1970.
    until: i64,
    /// Starts beside the pattern's, in order.
    listed: Vec<WallTime>,
    except: BTreeSet<DateTime>,
    lasts_s: u32,
}

impl Series {
    /// On some days of every week at the same time.
    pub(super) fn weekly(zone: TimeZone, days: &[Weekday], opens: Time, lasts_s: u32) -> Self {
        Self {
            zone,
            pattern: Pattern::Weekly {
                days: days.to_vec(),
                opens,
            },
            until: i64::MAX,
            listed: Vec::new(),
            except: BTreeSet::new(),
            lasts_s,
        }
    }

    /// By a recurrence; the error says what is wrong with it.
    pub(super) fn recurring(zone: TimeZone, recurs: &Recurrence, lasts_s: u32) -> Result<Self, String> {
        let (begins, added, except) = recurs.read()?;
        let mut series = Self {
            zone,
            pattern: Pattern::Listed,
            until: i64::MAX,
            listed: Vec::new(),
            except,
            lasts_s,
        };
        let mut listed = added;
        if recurs.rrule.is_empty() {
            listed.insert(begins);
        } else {
            let rule = Rule::read(&recurs.rrule, begins).map_err(|problem| format!("has an rrule that {problem}"))?;
            match rule.ends {
                Ends::Never => series.pattern = Pattern::Rule(Box::new(rule)),
                Ends::Until(until) => {
                    series.until = until;
                    series.pattern = Pattern::Rule(Box::new(rule));
                }
                Ends::Count(count) => listed.extend(rule.counted(count).ok_or_else(|| {
                    format!(
                        "has an rrule whose COUNT is not over within {} years",
                        super::rule::COUNTED_YEARS
                    )
                })?),
            }
        }
        let starts = listed.difference(&series.except);
        let mut starts: Vec<_> = starts.filter_map(|start| series.instant(*start)).collect();
        starts.sort_unstable();
        series.listed = starts;
        Ok(series)
    }

    pub(super) fn lasts_s(&self) -> u32 {
        self.lasts_s
    }

    /// The moment of a local time.
    fn instant(&self, start: DateTime) -> Option<WallTime> {
        let zoned = self.zone.to_ambiguous_zoned(start).compatible().ok()?;
        Some(WallTime::from_unix_seconds(zoned.timestamp().as_second()))
    }

    fn local_date(&self, at: WallTime) -> Option<Date> {
        let at = jiff::Timestamp::from_second(at.unix_seconds()).ok()?;
        Some(self.zone.to_datetime(at).date())
    }

    /// The first start at `from` or later, and not after `limit`.
    pub(super) fn first_from(&self, from: WallTime, limit: WallTime) -> Option<WallTime> {
        let listed = self.listed.partition_point(|start| *start < from);
        let listed = self.listed.get(listed).copied();
        listed
            .into_iter()
            .chain(self.first_of_pattern(from, limit))
            .filter(|start| *start <= limit)
            .min()
    }

    fn first_of_pattern(&self, from: WallTime, limit: WallTime) -> Option<WallTime> {
        if matches!(self.pattern, Pattern::Listed) {
            return None;
        }
        // Where clocks change, a day's times may come before those of the day before: a place may even skip a day.
        let mut day = self.local_date(from)?.checked_sub(2.days()).ok()?;
        let last = self.local_date(limit)?.saturating_add(1.day());
        let mut found: Option<(WallTime, Date)> = None;
        while day <= last && found.is_none_or(|(_, found_on)| day <= found_on.saturating_add(2.days())) {
            let to = day.saturating_add(DAYS_AT_ONCE.days());
            for start in self.starts_between(day, to) {
                let at = self
                    .instant(start)
                    .filter(|at| *at >= from && at.unix_seconds() <= self.until);
                if let Some(at) = at.filter(|at| found.is_none_or(|(earliest, _)| *at < earliest)) {
                    found = Some((at, start.date()));
                } else if found.is_some_and(|(_, found_on)| start.date() > found_on.saturating_add(2.days())) {
                    break;
                }
            }
            let Ok(next) = to.tomorrow() else { break };
            day = next;
        }
        found.map(|(at, _)| at)
    }

    fn starts_between(&self, from: Date, to: Date) -> Vec<DateTime> {
        let mut starts = match &self.pattern {
            Pattern::Listed => Vec::new(),
            Pattern::Rule(rule) => rule.starts_between(from, to),
            Pattern::Weekly { days, opens } => {
                let dates = std::iter::successors(Some(from), |day| day.tomorrow().ok()).take_while(|day| *day <= to);
                let open = dates.filter(|date| days.iter().any(|day| day.is(*date)));
                open.map(|date| date.to_datetime(*opens)).collect()
            }
        };
        starts.retain(|start| !self.except.contains(start));
        starts
    }
}
