//! Maintenance windows: when devices may start, in the local time of a place.
//!
//! Invariants: zones come from the time zone database inside the binary, so that every node reads the same rules; what is
//! open is a function of the rules and of the time alone. A local time that the clocks skip is taken as much after the gap
//! as it lies in it, one that comes twice as its first occurrence; the end is the given span later on the real time line.

mod rule;
mod series;
#[cfg(test)]
mod tests;
mod timetable;

use std::collections::BTreeSet;

use jiff::civil::{self, Date, DateTime};
use serde::{Deserialize, Serialize};

use self::series::Series;
use crate::{
    ids::{DeviceId, TopologyPath},
    time::WallTime,
};

pub use rule::{COUNT_MAX, COUNTED_YEARS, RRULE_BYTES_MAX};
pub use timetable::{Closed, HORIZON, Opening, Timetable};

/// Windows, or blackouts, of one campaign at most.
pub const WINDOWS_MAX: usize = 64;

/// The longest window: a week, after which it would overlap itself.
pub const WINDOW_SECONDS_MAX: u32 = 7 * 24 * 3_600;

/// The longest blackout of a calendar: a quarter of a year.
pub const CALENDAR_SECONDS_MAX: u32 = 92 * 24 * 3_600;

/// Dates beside a rule, or left out of it.
pub const DATES_MAX: usize = 366;

/// Paths, models or devices that a rule may be restricted to.
pub const APPLIES_TO_MAX: usize = 1_000;

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

/// A span of time that recurs: every week on some days, or by a rule of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// IANA zone, such as `Europe/Berlin`.
    pub zone: String,
    /// The days on which it opens; none if it recurs by a rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Weekday>,
    /// When it opens on these days, local time: `HH:MM`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// For how long, in seconds.
    pub duration_s: u32,
    /// When it opens, if not on days of every week.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recurs: Option<Recurrence>,
    /// Which devices it is for; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<AppliesTo>,
}

/// When something recurs, in words of RFC 5545; all times are local times of a zone, of the form `2027-01-31T22:00:00`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurrence {
    /// Nothing of the rule lies before this. It also gives the rule what it does not say itself, such as the time of day.
    pub dtstart: String,
    /// The rule, such as `FREQ=MONTHLY;BYDAY=2TU`; without one, `dtstart` is a start.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rrule: String,
    /// Starts beside those of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rdate: Vec<String>,
    /// Starts that are left out after all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exdate: Vec<String>,
}

/// Which devices a rule is for: all that match every non-empty list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppliesTo {
    /// Places, racks at the finest; a device matches if its rack stands at or below one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<TopologyPath>,
    /// Models, exactly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Devices by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
}

/// The device that a timetable is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    device: Option<(&'a DeviceId, &'a TopologyPath, &'a str)>,
}

impl<'a> Subject<'a> {
    /// Only rules that are for all devices are for it.
    pub const NOBODY: Self = Self { device: None };

    /// A device of a model, in its rack.
    #[must_use]
    pub fn new(device: &'a DeviceId, rack: &'a TopologyPath, model: &'a str) -> Self {
        Self {
            device: Some((device, rack, model)),
        }
    }
}

impl AppliesTo {
    /// Whether the rule is for a device.
    #[must_use]
    pub fn includes(&self, subject: Subject<'_>) -> bool {
        let Some((device, rack, model)) = subject.device else {
            return false;
        };
        (self.paths.is_empty() || self.paths.iter().any(|place| rack.is_within(place)))
            && (self.models.is_empty() || self.models.iter().any(|each| each == model))
            && (self.devices.is_empty() || self.devices.contains(device))
    }

    fn problem(&self) -> Option<String> {
        let most = [self.paths.len(), self.models.len(), self.devices.len()]
            .into_iter()
            .max();
        if most == Some(0) {
            return Some("is for no paths, models or devices in `only`: leave it out to mean all".to_owned());
        }
        (most > Some(APPLIES_TO_MAX)).then(|| format!("is for more than {APPLIES_TO_MAX} paths, models or devices"))
    }
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

/// Spans that recur in which nothing starts, whatever the windows say: the end of every quarter, say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlackoutCalendar {
    /// What it is called, for those who wait for its end.
    pub name: String,
    /// IANA zone, such as `Europe/Berlin`.
    pub zone: String,
    /// For how long each time, in seconds.
    pub duration_s: u32,
    /// When its spans begin.
    pub recurs: Recurrence,
    /// Which devices it is for; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<AppliesTo>,
}

impl Window {
    /// A window that opens on some days of every week, for all devices.
    #[must_use]
    pub fn weekly(zone: &str, days: &[Weekday], from: &str, duration_s: u32) -> Self {
        Self {
            zone: zone.to_owned(),
            days: days.to_vec(),
            from: from.to_owned(),
            duration_s,
            recurs: None,
            only: None,
        }
    }

    /// A window that opens by a rule, for all devices.
    #[must_use]
    pub fn recurring(zone: &str, recurs: Recurrence, duration_s: u32) -> Self {
        Self {
            zone: zone.to_owned(),
            days: Vec::new(),
            from: String::new(),
            duration_s,
            recurs: Some(recurs),
            only: None,
        }
    }

    /// What is wrong with it, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let only = self.only.as_ref().and_then(AppliesTo::problem);
        self.series().err().or(only)
    }

    /// The window as it recurs; the error says what is wrong with it.
    fn series(&self) -> Result<Series, String> {
        if self.duration_s == 0 || self.duration_s > WINDOW_SECONDS_MAX {
            return Err(format!("must last 1 to {WINDOW_SECONDS_MAX} seconds"));
        }
        let zone = series::zone(&self.zone).ok_or_else(no_zone);
        if let Some(recurs) = &self.recurs {
            if !self.days.is_empty() || !self.from.is_empty() {
                return Err("must have either `days` and `from`, or `recurs`".to_owned());
            }
            return Series::recurring(zone?, recurs, self.duration_s);
        }
        let days: BTreeSet<_> = self.days.iter().collect();
        if self.days.is_empty() || days.len() != self.days.len() {
            return Err("must open on at least one day, each named once".to_owned());
        }
        let opens = self.opens_at().ok_or("must open at a local time of the form HH:MM")?;
        Ok(Series::weekly(zone?, &self.days, opens, self.duration_s))
    }

    fn opens_at(&self) -> Option<civil::Time> {
        let (hour, minute) = self.from.split_once(':')?;
        let digits = |text: &str| text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(hour) || !digits(minute) {
            return None;
        }
        civil::Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok()
    }
}

impl BlackoutCalendar {
    /// What is wrong with it, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.name.is_empty() || self.name.len() > 64 || self.name.chars().any(char::is_control) {
            return Some("must have a name of 1 to 64 printable characters".to_owned());
        }
        let only = self.only.as_ref().and_then(AppliesTo::problem);
        let problem = self.series().err().or(only);
        problem.map(|problem| format!("{:?} {problem}", self.name))
    }

    fn series(&self) -> Result<Series, String> {
        if self.duration_s == 0 || self.duration_s > CALENDAR_SECONDS_MAX {
            return Err(format!("must last 1 to {CALENDAR_SECONDS_MAX} seconds each time"));
        }
        let zone = series::zone(&self.zone).ok_or_else(no_zone)?;
        Series::recurring(zone, &self.recurs, self.duration_s)
    }
}

impl Recurrence {
    /// The beginning, the starts beside the rule's, and those left out; the error says which is no local time.
    fn read(&self) -> Result<(DateTime, BTreeSet<DateTime>, BTreeSet<DateTime>), String> {
        if self.rdate.len() > DATES_MAX || self.exdate.len() > DATES_MAX {
            return Err(format!("names more than {DATES_MAX} dates in `rdate` or `exdate`"));
        }
        let all = |dates: &[String]| dates.iter().map(|date| local_time(date)).collect::<Result<_, _>>();
        Ok((local_time(&self.dtstart)?, all(&self.rdate)?, all(&self.exdate)?))
    }
}

/// A local time of the form `2027-01-31T22:00:00`, of years that a calendar is kept for.
fn local_time(text: &str) -> Result<DateTime, String> {
    let read: Option<DateTime> = text.parse().ok();
    let is_plain = |at: &DateTime| at.to_string() == text && at.subsec_nanosecond() == 0;
    let plain = read.filter(|at| is_plain(at) && (1970..=2200).contains(&at.year()));
    plain.ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        format!("has {shown:?} for a local time, which would be of the form 2027-01-31T22:00:00")
    })
}

fn no_zone() -> String {
    "names no IANA time zone such as Europe/Berlin".to_owned()
}
