//! Recurrence rules as RFC 5545 writes them, read into a form that answers "which local times of these days?" without
//! walking there from the beginning.
//!
//! Invariants: a rule that was read is cheap to evaluate whatever it says, because periods are found by division, a period
//! is at most a year of days, and only a rule with a COUNT is walked from its beginning, for [`COUNTED_YEARS`] at most.
//! Nothing recurs more often than daily; times of the day are BYHOUR and BYMINUTE. Where the RFC leaves the meaning open
//! (BYWEEKNO without BYDAY) the rule is refused, so that two implementations cannot disagree.

use jiff::{
    ToSpan as _,
    civil::{Date, DateTime, Weekday},
};

/// A rule's text: the longest useful ones list some fifty days of the year.
pub const RRULE_BYTES_MAX: usize = 512;

/// Starts that a COUNT may ask for.
pub const COUNT_MAX: u32 = 1_000;

/// Years within which a rule with a COUNT has to have its last start.
pub const COUNTED_YEARS: i16 = 20;

/// Days, weeks, months or years between two periods at most.
const INTERVAL_MAX: u32 = 1_000;

/// Starts on one day.
const TIMES_MAX: usize = 48;

/// Days that are looked at together when a start is searched.
pub(super) const DAYS_AT_ONCE: i64 = 31;

/// How often a rule recurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frequency {
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// When a rule ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    Never,
    Count(u32),
    /// The last moment, in UTC, in seconds since 1970.
    Until(i64),
}

/// A rule together with the local time it begins at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    begins: DateTime,
    frequency: Frequency,
    interval: i32,
    pub(super) ends: Ends,
    week_begins: Weekday,
    months: Vec<i16>,
    weeks: Vec<i16>,
    days_of_year: Vec<i16>,
    days_of_month: Vec<i16>,
    /// Weekdays, with which one of the month or the year; 0 for every one.
    weekdays: Vec<(i16, Weekday)>,
    times: Vec<jiff::civil::Time>,
    positions: Vec<i16>,
}

impl Rule {
    /// Reads `text`, a list such as `FREQ=MONTHLY;BYDAY=2TU`; the error says what is wrong with it.
    pub(super) fn read(text: &str, begins: DateTime) -> Result<Self, String> {
        if text.len() > RRULE_BYTES_MAX {
            return Err(format!("is longer than {RRULE_BYTES_MAX} bytes"));
        }
        let mut parts: Vec<(&str, &str)> = Vec::new();
        for part in text.split(';') {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("has the part {part:?}, which is not of the form NAME=VALUE"))?;
            if parts.iter().any(|(known, _)| *known == name) {
                return Err(format!("says {name} twice"));
            }
            parts.push((name, value));
        }
        let known = [
            "FREQ",
            "INTERVAL",
            "COUNT",
            "UNTIL",
            "WKST",
            "BYMONTH",
            "BYWEEKNO",
            "BYYEARDAY",
            "BYMONTHDAY",
            "BYDAY",
            "BYHOUR",
            "BYMINUTE",
            "BYSETPOS",
        ];
        if let Some((name, _)) = parts.iter().find(|(name, _)| !known.contains(name)) {
            return Err(format!("has the part {name:?}; known are {}", known.join(", ")));
        }
        let get = |name: &str| parts.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let numbers = |name: &'static str, from: i16, to: i16, also_negative: bool| match get(name) {
            None => Ok(Vec::new()),
            Some(value) => read_numbers(name, value, from, to, also_negative),
        };
        let frequency = match get("FREQ") {
            Some("DAILY") => Frequency::Daily,
            Some("WEEKLY") => Frequency::Weekly,
            Some("MONTHLY") => Frequency::Monthly,
            Some("YEARLY") => Frequency::Yearly,
            _ => return Err("must say FREQ=DAILY, WEEKLY, MONTHLY or YEARLY".to_owned()),
        };
        let interval = match get("INTERVAL") {
            None => 1,
            Some(value) => read_number("INTERVAL", value, INTERVAL_MAX)?,
        };
        let ends = match (get("COUNT"), get("UNTIL")) {
            (None, None) => Ends::Never,
            (Some(value), None) => Ends::Count(read_number("COUNT", value, COUNT_MAX)?),
            (None, Some(value)) => Ends::Until(read_until(value)?),
            (Some(_), Some(_)) => return Err("has both COUNT and UNTIL".to_owned()),
        };
        let week_begins = match get("WKST") {
            None => Weekday::Monday,
            Some(name) => weekday(name).ok_or_else(|| format!("has WKST={name:?}, which is no weekday such as MO"))?,
        };
        let mut rule = Self {
            begins,
            frequency,
            interval: i32::try_from(interval).unwrap_or(i32::MAX),
            ends,
            week_begins,
            months: numbers("BYMONTH", 1, 12, false)?,
            weeks: numbers("BYWEEKNO", 1, 53, true)?,
            days_of_year: numbers("BYYEARDAY", 1, 366, true)?,
            days_of_month: numbers("BYMONTHDAY", 1, 31, true)?,
            weekdays: get("BYDAY").map_or(Ok(Vec::new()), read_weekdays)?,
            times: Vec::new(),
            positions: numbers("BYSETPOS", 1, 366, true)?,
        };
        rule.times = rule.read_times(&numbers("BYHOUR", 0, 23, false)?, &numbers("BYMINUTE", 0, 59, false)?);
        rule.check(
            parts
                .iter()
                .any(|(name, _)| name.starts_with("BY") && *name != "BYSETPOS"),
        )?;
        rule.fill_in();
        Ok(rule)
    }

    fn read_times(&self, hours: &[i16], minutes: &[i16]) -> Vec<jiff::civil::Time> {
        let begins = self.begins.time();
        let own = |list: &[i16], own: i8| match list {
            [] => vec![own],
            list => list.iter().map(|each| i8::try_from(*each).unwrap_or(own)).collect(),
        };
        let (hours, minutes) = (own(hours, begins.hour()), own(minutes, begins.minute()));
        let at = |hour: i8, minute: i8| jiff::civil::Time::new(hour, minute, begins.second(), 0).ok();
        let all = hours
            .iter()
            .flat_map(|hour| minutes.iter().filter_map(|minute| at(*hour, *minute)));
        let mut times: Vec<_> = all.collect();
        times.sort_unstable();
        times
    }

    /// What the RFC forbids, or leaves open.
    fn check(&self, is_selective: bool) -> Result<(), String> {
        use Frequency::{Daily, Monthly, Weekly, Yearly};
        let has_ordinals = self.weekdays.iter().any(|(which, _)| *which != 0);
        let refused = match self.frequency {
            Daily | Weekly if has_ordinals => "counts weekdays, which only a month or a year can",
            Daily | Weekly | Monthly if !self.days_of_year.is_empty() => "has BYYEARDAY without FREQ=YEARLY",
            Daily | Weekly | Monthly if !self.weeks.is_empty() => "has BYWEEKNO without FREQ=YEARLY",
            Weekly if !self.days_of_month.is_empty() => "has BYMONTHDAY with FREQ=WEEKLY",
            Yearly if !self.weeks.is_empty() && (self.weekdays.is_empty() || has_ordinals) => {
                "has BYWEEKNO without plain weekdays in BYDAY"
            }
            _ if self.times.len() > TIMES_MAX => "has more than 48 starts on one day",
            _ if !self.positions.is_empty() && !is_selective => "has BYSETPOS with nothing to choose from",
            _ => return Ok(()),
        };
        Err(refused.to_owned())
    }

    /// What a rule does not say is taken from its beginning.
    fn fill_in(&mut self) {
        let begins = self.begins;
        if !(self.weeks.is_empty()
            && self.days_of_year.is_empty()
            && self.days_of_month.is_empty()
            && self.weekdays.is_empty())
        {
            return;
        }
        match self.frequency {
            Frequency::Daily => {}
            Frequency::Weekly => self.weekdays = vec![(0, begins.weekday())],
            Frequency::Monthly => self.days_of_month = vec![begins.day().into()],
            Frequency::Yearly => {
                self.days_of_month = vec![begins.day().into()];
                if self.months.is_empty() {
                    self.months = vec![begins.month().into()];
                }
            }
        }
    }

    /// The number of the period that `date` lies in or, between two of them, after; the first one is 0.
    pub(super) fn period_of(&self, date: Date) -> i32 {
        let first = self.begins.date();
        let days = |from: Date, to: Date| days_between(from, to);
        let passed = match self.frequency {
            Frequency::Daily => days(first, date),
            Frequency::Weekly => days(self.week_of(first), date).div_euclid(7),
            Frequency::Monthly => months_of(date) - months_of(first),
            Frequency::Yearly => i32::from(date.year()) - i32::from(first.year()),
        };
        passed.div_euclid(self.interval)
    }

    /// The first and the last day of a period, as far as the calendar goes.
    fn period(&self, number: i32) -> Option<(Date, Date)> {
        let first = self.begins.date();
        let steps = number.checked_mul(self.interval)?;
        let (from, until) = match self.frequency {
            Frequency::Daily => {
                let day = first.checked_add(i64::from(steps).days()).ok()?;
                (day, day)
            }
            Frequency::Weekly => {
                let from = self.week_of(first).checked_add(i64::from(steps).weeks()).ok()?;
                (from, from.checked_add(6.days()).ok()?)
            }
            Frequency::Monthly => {
                let month = months_of(first).checked_add(steps)?;
                let year = i16::try_from(month.div_euclid(12)).ok()?;
                let from = Date::new(year, i8::try_from(month.rem_euclid(12) + 1).ok()?, 1).ok()?;
                (from, from.last_of_month())
            }
            Frequency::Yearly => {
                let year = i16::try_from(i32::from(first.year()).checked_add(steps)?).ok()?;
                (Date::new(year, 1, 1).ok()?, Date::new(year, 12, 31).ok()?)
            }
        };
        Some((from, until))
    }

    fn week_of(&self, date: Date) -> Date {
        week_of(date, self.week_begins)
    }

    /// The starts on some days, in order. Takes time for each of the days and, with BYSETPOS, for those of the periods that
    /// they lie in.
    pub(super) fn starts_between(&self, from: Date, to: Date) -> Vec<DateTime> {
        let mut starts = Vec::new();
        for number in self.period_of(from).max(0)..=self.period_of(to) {
            let Some((first, last)) = self.period(number) else {
                break;
            };
            if self.positions.is_empty() {
                starts.extend(self.starts_on(first.max(from), last.min(to)));
            } else {
                let all: Vec<_> = self.starts_on(first, last).collect();
                let chosen = self.at_positions(&all).into_iter();
                starts.extend(chosen.filter(|start| (from..=to).contains(&start.date())));
            }
        }
        starts.retain(|start| *start >= self.begins);
        starts
    }

    fn starts_on(&self, first: Date, last: Date) -> impl Iterator<Item = DateTime> {
        let days = std::iter::successors(Some(first), |day| day.tomorrow().ok());
        let days = days.take_while(move |day| *day <= last).filter(|day| self.is_on(*day));
        days.flat_map(|day| self.times.iter().map(move |time| day.to_datetime(*time)))
    }

    /// All starts of a rule with a COUNT; nothing if they are not over within [`COUNTED_YEARS`].
    pub(super) fn counted(&self, count: u32) -> Option<Vec<DateTime>> {
        let mut day = self.begins.date();
        let last = day.checked_add(i32::from(COUNTED_YEARS).years()).ok()?;
        let mut starts = Vec::new();
        while day <= last && starts.len() < count as usize {
            let chunk_ends = day.checked_add(DAYS_AT_ONCE.days()).ok()?;
            starts.extend(self.starts_between(day, chunk_ends));
            day = chunk_ends.tomorrow().ok()?;
        }
        (starts.len() >= count as usize).then(|| {
            starts.truncate(count as usize);
            starts
        })
    }

    fn at_positions(&self, starts: &[DateTime]) -> Vec<DateTime> {
        let place = |position: i16| match position {
            1.. => usize::try_from(position - 1).ok(),
            _ => starts.len().checked_sub(usize::from(position.unsigned_abs())),
        };
        let places: std::collections::BTreeSet<_> = self.positions.iter().filter_map(|each| place(*each)).collect();
        places
            .into_iter()
            .filter_map(|place| starts.get(place).copied())
            .collect()
    }

    /// Whether the rule has starts on a day of one of its periods.
    fn is_on(&self, day: Date) -> bool {
        let is_in = |list: &[i16], value: i16, length: i16| {
            list.is_empty() || list.iter().any(|each| *each == value || length + each + 1 == value)
        };
        (self.months.is_empty() || self.months.contains(&day.month().into()))
            && is_in(&self.days_of_month, day.day().into(), day.days_in_month().into())
            && is_in(&self.days_of_year, day.day_of_year(), day.days_in_year())
            && (self.weekdays.is_empty() || self.weekdays.iter().any(|each| self.is_weekday(day, *each)))
            && (self.weeks.is_empty() || self.is_in_week(day))
    }

    fn is_weekday(&self, day: Date, (which, weekday): (i16, Weekday)) -> bool {
        if day.weekday() != weekday {
            return false;
        }
        let of_month = self.frequency == Frequency::Monthly || !self.months.is_empty();
        let (place, length): (i16, i16) = match of_month {
            true => (day.day().into(), day.days_in_month().into()),
            false => (day.day_of_year(), day.days_in_year()),
        };
        match which {
            0 => true,
            1.. => (place - 1) / 7 + 1 == which,
            _ => (length - place) / 7 + 1 == -which,
        }
    }

    fn is_in_week(&self, day: Date) -> bool {
        // Week 1 is the first with four days in its year: the one that the fourth of January is in.
        let begin_of = |year: i16| Date::new(year, 1, 4).ok().map(|date| self.week_of(date));
        let own = self.week_of(day);
        let Some(year) = own.checked_add(3.days()).ok().map(Date::year) else {
            return false;
        };
        let (Some(first), Some(next)) = (begin_of(year), begin_of(year + 1)) else {
            return false;
        };
        let weeks = |from: Date, to: Date| i16::try_from(days_between(from, to) / 7).unwrap_or(i16::MAX);
        let (number, length) = (weeks(first, own) + 1, weeks(first, next));
        self.weeks
            .iter()
            .any(|each| *each == number || length + each + 1 == number)
    }
}

fn days_between(from: Date, to: Date) -> i32 {
    from.until(to).map_or(0, |span| span.get_days())
}

/// Months since the beginning of the calendar.
fn months_of(date: Date) -> i32 {
    i32::from(date.year()) * 12 + i32::from(date.month()) - 1
}

fn week_of(date: Date, begins: Weekday) -> Date {
    let since = begins.until(date.weekday());
    date.checked_sub(i64::from(since).days()).unwrap_or(date)
}

fn read_number(name: &str, text: &str, most: u32) -> Result<u32, String> {
    let wrong = || format!("has {name}={:?}, which is not 1 to {most}", shown(text));
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u32> = text.parse().ok().filter(|_| is_plain);
    number.filter(|number| (1..=most).contains(number)).ok_or_else(wrong)
}

fn read_numbers(name: &str, text: &str, from: i16, to: i16, also_negative: bool) -> Result<Vec<i16>, String> {
    let signs = if also_negative { ", or as many from the end" } else { "" };
    let read = |item: &str| {
        let (digits, sign) = match item.strip_prefix('-') {
            Some(rest) if also_negative => (rest, -1),
            _ => (item.strip_prefix('+').unwrap_or(item), 1),
        };
        let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: Option<i16> = digits.parse().ok().filter(|_| is_plain);
        let number = number.filter(|number| (from..=to).contains(number));
        number.map(|number| number * sign).ok_or_else(|| {
            format!(
                "has {name}={:?}, of which not each is {from} to {to}{signs}",
                shown(text)
            )
        })
    };
    let mut all = text.split(',').map(read).collect::<Result<Vec<_>, _>>()?;
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

fn read_weekdays(text: &str) -> Result<Vec<(i16, Weekday)>, String> {
    let read = |item: &str| {
        let at = item.len().checked_sub(2).filter(|at| item.is_char_boundary(*at))?;
        let (which, name) = item.split_at(at);
        let which = match which {
            "" => 0,
            which => *read_numbers("BYDAY", which, 1, 53, true).ok()?.first()?,
        };
        Some((which, weekday(name)?))
    };
    let all: Option<Vec<_>> = text.split(',').map(read).collect();
    all.ok_or_else(|| {
        format!(
            "has BYDAY={:?}, of which not each is a weekday such as MO, 2TU or -1FR",
            shown(text)
        )
    })
}

/// A moment in UTC as RFC 5545 writes it: `20271231T235959Z`.
fn read_until(text: &str) -> Result<i64, String> {
    let wrong = || {
        format!(
            "has UNTIL={:?}, which is not a UTC time such as 20271231T235959Z",
            shown(text)
        )
    };
    let is_shaped = text.len() == 16 && text.as_bytes()[8] == b'T' && text.ends_with('Z');
    let digits = |from: usize, to: usize| {
        let part = text.get(from..to)?;
        part.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| part.parse::<i16>().ok())?
    };
    let part = |from: usize, to: usize| i8::try_from(digits(from, to)?).ok();
    let read = || {
        let date = Date::new(digits(0, 4)?, part(4, 6)?, part(6, 8)?).ok()?;
        let time = jiff::civil::Time::new(part(9, 11)?, part(11, 13)?, part(13, 15)?, 0).ok()?;
        let at = date.to_datetime(time).to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(at.timestamp().as_second())
    };
    match is_shaped && text.is_ascii() {
        true => read().ok_or_else(wrong),
        false => Err(wrong()),
    }
}

fn weekday(name: &str) -> Option<Weekday> {
    Some(match name {
        "MO" => Weekday::Monday,
        "TU" => Weekday::Tuesday,
        "WE" => Weekday::Wednesday,
        "TH" => Weekday::Thursday,
        "FR" => Weekday::Friday,
        "SA" => Weekday::Saturday,
        "SU" => Weekday::Sunday,
        _ => return None,
    })
}

fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}
