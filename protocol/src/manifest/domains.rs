//! Fault domains: devices that one failure takes with it, how many of them may be in flight at once, and which domains stand
//! in for each other.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{LabelName, NameError, TopologyPath},
    labels::{Labels, UNIT},
    limits::{DOMAIN_RULES_MAX, PATH_SEGMENTS_MAX},
};

/// Domains that one rule of redundancy names at most.
const REDUNDANT_MAX: usize = 256;

/// What sorts devices into fault domains: a level of their place, or a label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Dimension {
    /// The first level of the place.
    Region,
    /// The first two levels of the place.
    Site,
    /// The parent of the node's place.
    Rack,
    /// So many levels of the place, written `path/3`.
    Path(u8),
    /// A label: one domain for each of its values, in the whole fleet.
    Label(LabelName),
}

/// Why a text names no dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DimensionError {
    /// Not a label's name either.
    #[error("a domain is `region`, `site`, `rack`, `path/<levels>` or the name of a label")]
    Name(#[from] NameError),
    /// Levels that no place has.
    #[error("{0:?} is not `path/` and a number of levels from 1 to {max}", max = PATH_SEGMENTS_MAX - 1)]
    Levels(String),
}

impl Dimension {
    /// The domain of a device that stands in `rack` and has `labels`; none if it is not that deep, or has no such label.
    #[must_use]
    pub fn domain(&self, rack: &TopologyPath, labels: &Labels) -> Option<TopologyPath> {
        let levels = match self {
            Self::Region => 1,
            Self::Site => 2,
            Self::Rack => rack.depth(),
            Self::Path(levels) => usize::from(*levels),
            Self::Label(name) => {
                let value = labels.get(name.as_str())?;
                return value.as_str().parse().ok();
            }
        };
        (levels <= rack.depth()).then(|| rack.prefix(levels))
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region => f.write_str("region"),
            Self::Site => f.write_str("site"),
            Self::Rack => f.write_str("rack"),
            Self::Path(levels) => write!(f, "path/{levels}"),
            Self::Label(name) => name.fmt(f),
        }
    }
}

impl FromStr for Dimension {
    type Err = DimensionError;
    fn from_str(text: &str) -> Result<Self, DimensionError> {
        match (text, text.strip_prefix("path/")) {
            ("region", _) => Ok(Self::Region),
            ("site", _) => Ok(Self::Site),
            ("rack", _) => Ok(Self::Rack),
            (_, Some(levels)) => levels
                .parse()
                .ok()
                .filter(|count| (1..PATH_SEGMENTS_MAX).contains(&usize::from(*count)))
                .filter(|count: &u8| count.to_string() == levels)
                .map(Self::Path)
                .ok_or_else(|| DimensionError::Levels(text.chars().take(80).collect())),
            _ => Ok(Self::Label(LabelName::new(text)?)),
        }
    }
}

impl TryFrom<String> for Dimension {
    type Error = DimensionError;
    fn try_from(text: String) -> Result<Self, DimensionError> {
        text.parse()
    }
}

impl From<Dimension> for String {
    fn from(dimension: Dimension) -> Self {
        dimension.to_string()
    }
}

/// A bound on the devices of one domain that are in flight at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AtMost {
    /// So many.
    Count(u32),
    /// Fewer than this share of the domain's devices, in percent, but always one.
    BelowPercent(u32),
}

impl AtMost {
    /// The bound for a domain of so many devices: for a share, the largest whole number strictly below it, but at least 1.
    #[must_use]
    pub fn of(self, devices: u32) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::BelowPercent(percent) => {
                let above = (u64::from(devices) * u64::from(percent)).div_ceil(100);
                u32::try_from(above.saturating_sub(1)).unwrap_or(u32::MAX).max(1)
            }
        }
    }
}

/// The most devices of every domain of one dimension that may be in flight at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainCap {
    /// The dimension.
    pub by: Dimension,
    /// The bound on each of its domains.
    pub at_most: AtMost,
}

/// Domains that stand in for each other: never are devices of two of them in flight at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeverTogether {
    /// The dimension of the domains.
    pub by: Dimension,
    /// Where: never two of them inside one domain of this dimension; in the whole fleet if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Dimension>,
    /// The domains that the rule is about; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<TopologyPath>,
}

impl NeverTogether {
    /// What a device takes while it is in flight: a place in one domain of a redundancy group. Nothing if the rule is not
    /// about it.
    #[must_use]
    pub fn takes(&self, rack: &TopologyPath, labels: &Labels) -> Option<(Option<TopologyPath>, TopologyPath)> {
        let domain = self.by.domain(rack, labels)?;
        if !self.domains.is_empty() && !self.domains.contains(&domain) {
            return None;
        }
        match &self.within {
            None => Some((None, domain)),
            Some(within) => Some((Some(within.domain(rack, labels)?), domain)),
        }
    }
}

/// How large a domain is, and what its cap comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainShare {
    /// Its known devices, in this campaign or not.
    pub devices: u32,
    /// The most of them that may be in flight at once.
    pub at_most: u32,
}

/// The first of the rules that is wrong, and how.
pub(super) fn problem(caps: &[DomainCap], rules: &[NeverTogether]) -> Option<String> {
    let is_unit = |by: &Dimension| matches!(by, Dimension::Label(name) if name.as_str() == UNIT);
    let dimensions: BTreeSet<_> = caps.iter().map(|cap| &cap.by).collect();
    if caps.len() > DOMAIN_RULES_MAX || rules.len() > DOMAIN_RULES_MAX {
        Some(format!(
            "must have at most {DOMAIN_RULES_MAX} entries in `domains` and in `never_together`"
        ))
    } else if dimensions.len() != caps.len() {
        Some("have two entries in `domains` for the same domains".to_owned())
    } else if caps.iter().any(|cap| is_unit(&cap.by)) || rules.iter().any(|rule| is_unit(&rule.by)) {
        Some("need no entry for `unit`: devices of one unit are never in flight together".to_owned())
    } else if let Some(cap) = caps.iter().find(|cap| cap.at_most == AtMost::Count(0)) {
        Some(format!("let no device of a {} start", cap.by))
    } else if let Some(cap) = caps.iter().find(|cap| match cap.at_most {
        AtMost::Count(_) => false,
        AtMost::BelowPercent(percent) => !(1..=100).contains(&percent),
    }) {
        Some(format!("by {} must have a `below_percent` from 1 to 100", cap.by))
    } else if rules.iter().any(|rule| rule.domains.len() > REDUNDANT_MAX) {
        Some(format!(
            "name more than {REDUNDANT_MAX} domains in one `never_together`"
        ))
    } else {
        let one = rules.iter().find(|rule| rule.domains.len() == 1)?;
        Some(format!(
            "have a `never_together` by {} of one domain: it needs two, or none for all",
            one.by
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(json: &str) -> Labels {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn below_a_percent_is_the_largest_number_below_it_but_one_at_least() {
        let of = |devices| AtMost::BelowPercent(1).of(devices);
        assert_eq!([0, 1, 99, 100, 101, 200, 201].map(of), [1, 1, 1, 1, 1, 1, 2]);
        assert_eq!((of(10_000), of(10_001), of(u32::MAX)), (99, 100, 42_949_672));
        for devices in 0..2_000_u32 {
            for percent in 1..=100 {
                let most = AtMost::BelowPercent(percent).of(devices);
                let is_below = |count: u32| u64::from(count) * 100 < u64::from(devices) * u64::from(percent);
                assert!(most == 1 || is_below(most), "{percent} % of {devices}");
                assert!(!is_below(most + 1), "{percent} % of {devices}");
            }
        }
    }

    #[test]
    fn a_device_stands_in_the_domains_of_its_place_and_labels() {
        let rack = "eu/fra1/h2/r3".parse().unwrap();
        let labels = labels(r#"{"power_feed":"a1"}"#);
        let domain = |by: &str| {
            let found = by.parse::<Dimension>().unwrap().domain(&rack, &labels);
            found.map(|domain| domain.to_string())
        };
        assert_eq!(domain("region").as_deref(), Some("eu"));
        assert_eq!(domain("site").as_deref(), Some("eu/fra1"));
        assert_eq!(domain("path/3").as_deref(), Some("eu/fra1/h2"));
        assert_eq!(domain("rack").as_deref(), Some("eu/fra1/h2/r3"));
        assert_eq!(domain("path/5"), None);
        assert_eq!(domain("power_feed").as_deref(), Some("a1"));
        assert_eq!(domain("cluster"), None);
        for wrong in ["path/0", "path/8", "path/03", "path/x", "a b", ""] {
            assert!(wrong.parse::<Dimension>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rule_of_redundancy_is_about_its_own_domains_inside_one_place() {
        let rule: NeverTogether =
            serde_json::from_str(r#"{"by":"power_feed","within":"site","domains":["a","b"]}"#).unwrap();
        let takes = |rack: &str, feed: &str| {
            let (within, domain) = rule.takes(&rack.parse().unwrap(), &labels(feed))?;
            Some(format!("{}: {domain}", within.unwrap()))
        };
        let a = r#"{"power_feed":"a"}"#;
        assert_eq!(takes("eu/fra1/r1", a).as_deref(), Some("eu/fra1: a"));
        assert_eq!(takes("eu/fra1/r1", r#"{"power_feed":"c"}"#), None);
        assert_eq!(takes("eu/fra1/r1", "{}"), None);
        assert_eq!(takes("eu", a), None);
    }
}
