//! Two clocks that never mix: [`Timestamp`] orders events inside a process, [`WallTime`] is what signatures and windows name.

use std::{fmt, ops::Add, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Monotonic time since a process (or a simulation) began. Never leaves the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// The instant `since_start` after the beginning.
    #[must_use]
    pub const fn after_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Time since the beginning.
    #[must_use]
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to this instant; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// A moment in UTC, in whole seconds since 1970: text such as `2026-01-31T12:00:00Z` on the wire, as TUF has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WallTime(i64);

crate::ids::text_schema!(
    WallTime,
    Some("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
);

/// A text that is not a moment in UTC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a UTC time of the form 2026-01-31T12:00:00Z")]
pub struct WallTimeError {
    text: String,
}

impl WallTime {
    /// The moment `seconds` after the beginning of 1970, clamped to the years that RFC 3339 can name.
    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.clamp(-62_167_219_200, 253_402_207_200))
    }

    /// Seconds since the beginning of 1970.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        self.0
    }
}

impl Add<Duration> for WallTime {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self::from_unix_seconds(self.0.saturating_add_unsigned(span.as_secs()))
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = jiff::Timestamp::from_second(self.0).map_err(|_| fmt::Error)?;
        write!(f, "{}", at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WallTime({self})")
    }
}

impl FromStr for WallTime {
    type Err = WallTimeError;
    fn from_str(text: &str) -> Result<Self, WallTimeError> {
        let refused = || WallTimeError {
            text: text.chars().take(40).collect(),
        };
        let shape = text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T';
        let at: jiff::Timestamp = if shape {
            text.parse().map_err(|_| refused())?
        } else {
            return Err(refused());
        };
        Ok(Self(at.as_second()))
    }
}

impl TryFrom<String> for WallTime {
    type Error = WallTimeError;
    fn try_from(text: String) -> Result<Self, WallTimeError> {
        text.parse()
    }
}

impl From<WallTime> for String {
    fn from(at: WallTime) -> Self {
        at.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_reads_and_writes_the_form_tuf_uses_and_no_other() {
        let at: WallTime = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(at.to_string(), "2026-01-31T12:00:00Z");
        assert_eq!((at + Duration::from_secs(3600)).to_string(), "2026-01-31T13:00:00Z");
        for bad in [
            "2026-01-31",
            "2026-01-31T12:00:00+01:00",
            "2026-13-31T12:00:00Z",
            "now",
            "2026-01-31 12:00:00Z",
        ] {
            assert!(bad.parse::<WallTime>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn wall_time_far_outside_the_calendar_still_prints() {
        assert_eq!(WallTime::from_unix_seconds(i64::MAX).to_string().len(), 20);
        assert_eq!(
            WallTime::from_unix_seconds(i64::MIN).to_string(),
            "0000-01-01T00:00:00Z"
        );
    }
}
