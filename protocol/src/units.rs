//! Quantities whose unit is their type.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A share in hundredths of a percent, 0 to 10,000: signed data has no floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BasisPoints(u32);

/// A share above 100 %.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a share of {0} basis points is more than the whole (10000)")]
pub struct ShareTooLarge(u32);

impl BasisPoints {
    /// All of it.
    pub const WHOLE: Self = Self(10_000);

    /// A share in hundredths of a percent.
    pub fn new(basis_points: u32) -> Result<Self, ShareTooLarge> {
        if basis_points > Self::WHOLE.0 {
            Err(ShareTooLarge(basis_points))
        } else {
            Ok(Self(basis_points))
        }
    }

    /// The share as a number of basis points.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// This share of `count`, rounded up, so that a share above zero of something is never nothing.
    #[must_use]
    pub fn of_rounded_up(self, count: usize) -> usize {
        (count * self.0 as usize).div_ceil(Self::WHOLE.0 as usize)
    }

    /// Whether `part` out of `whole` is at least this share. Nothing out of nothing is not.
    #[must_use]
    pub fn is_reached_by(self, part: usize, whole: usize) -> bool {
        whole > 0 && part * Self::WHOLE.0 as usize >= whole * self.0 as usize
    }
}

impl TryFrom<u32> for BasisPoints {
    type Error = ShareTooLarge;
    fn try_from(basis_points: u32) -> Result<Self, ShareTooLarge> {
        Self::new(basis_points)
    }
}

impl From<BasisPoints> for u32 {
    fn from(share: BasisPoints) -> Self {
        share.0
    }
}

impl fmt::Display for BasisPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, rest) = (self.0 / 100, self.0 % 100);
        match rest {
            0 => write!(f, "{percent} %"),
            _ => write!(f, "{percent}.{rest:02} %"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_up_and_compare_without_floats() {
        let tenth = BasisPoints::new(1_000).unwrap();
        assert_eq!(tenth.of_rounded_up(36), 4);
        assert_eq!(tenth.of_rounded_up(1), 1);
        assert_eq!(tenth.of_rounded_up(0), 0);
        assert!(BasisPoints::new(9_900).unwrap().is_reached_by(99, 100));
        assert!(!BasisPoints::new(9_900).unwrap().is_reached_by(98, 99));
        assert!(!tenth.is_reached_by(0, 0));
        assert_eq!(BasisPoints::new(9_950).unwrap().to_string(), "99.50 %");
        assert!(BasisPoints::new(10_001).is_err());
    }
}
