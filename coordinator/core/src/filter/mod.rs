//! The filter language: which devices, in one line of text.
//!
//! ```text
//! filter = and { "or" and }
//! and    = unary { "and" unary }
//! unary  = "not" unary | "(" filter ")" | test
//! test   = field "==" text | field "!=" text | field "in" "[" text { "," text } "]" | "path" "under" text
//! field  = "device" | "vendor" | "model" | "component" | "version" | "executor" | "node" | "path" | "state" | "campaign"
//!        | "label" text | "hardware_id" | "hostname" | "asset_tag" | "address" | "owner" | "contact"
//! text   = '"' characters '"', with \" and \\ for a quote and a backslash
//! ```
//!
//! `state` and `campaign` are those of the device's running or last attempt, `label "power_feed"` is what its node's configuration
//! says under that name. A field that a device does not have (the
//! version of one that does not answer, the state of one that was never in a campaign) equals nothing: `==` and `in` do
//! not match it, `!=` does.
//!
//! `hardware_id` to `contact` identify a device to people ([`Field::is_of_identity`]). Nothing here knows them: who does puts the
//! devices in their place ([`Filter::with_devices`]); where nobody has, they are fields that no device has.
//!
//! Invariants: parsing never panics, and takes a bounded time and stack ([`FILTER_BYTES_MAX`], [`FILTER_DEPTH_MAX`]); what
//! a filter prints parses to the same filter; an error names its column, counted from 1 in characters.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt;

use firmesh_protocol::{
    ids::{LabelName, TopologyPath},
    report::Facts,
};

pub use parse::FilterError;

/// The longest filter: some hundred names.
pub const FILTER_BYTES_MAX: usize = 4_096;

/// How deep parentheses and `not` may stand in each other.
pub const FILTER_DEPTH_MAX: usize = 32;

/// A filter, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Any of them holds. At least two.
    Any(Vec<Self>),
    /// All of them hold. At least two.
    All(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// One field of the device.
    Test(Field, Test),
    /// One label of the device.
    Label(LabelName, Test),
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The device's name.
    Device,
    /// Its vendor.
    Vendor,
    /// Its model.
    Model,
    /// The component that is updated.
    Component,
    /// The version it runs.
    Version,
    /// The executor in charge.
    Executor,
    /// The node that looks after it.
    Node,
    /// Where that node stands.
    Path,
    /// The state of its running or last attempt.
    State,
    /// The campaign of that attempt.
    Campaign,
    /// What stands on it: its serial number, MAC address or the like.
    HardwareId,
    /// Its host name.
    Hostname,
    /// The number that its owner has put on it.
    AssetTag,
    /// One of its addresses.
    Address,
    /// Whose it is.
    Owner,
    /// Who is to be asked.
    Contact,
}

/// What must be true of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// It is this.
    Is(String),
    /// It is not this, or the device does not have it.
    IsNot(String),
    /// It is one of these. At least one.
    In(Vec<String>),
    /// It is this place or stands below it. For [`Field::Path`] only.
    Under(TopologyPath),
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Device,
        Self::Vendor,
        Self::Model,
        Self::Component,
        Self::Version,
        Self::Executor,
        Self::Node,
        Self::Path,
        Self::State,
        Self::Campaign,
        Self::HardwareId,
        Self::Hostname,
        Self::AssetTag,
        Self::Address,
        Self::Owner,
        Self::Contact,
    ];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Vendor => "vendor",
            Self::Model => "model",
            Self::Component => "component",
            Self::Version => "version",
            Self::Executor => "executor",
            Self::Node => "node",
            Self::Path => "path",
            Self::State => "state",
            Self::Campaign => "campaign",
            Self::HardwareId => "hardware_id",
            Self::Hostname => "hostname",
            Self::AssetTag => "asset_tag",
            Self::Address => "address",
            Self::Owner => "owner",
            Self::Contact => "contact",
        }
    }

    /// Whether it is of the device's attempt.
    #[must_use]
    pub fn is_of_attempt(self) -> bool {
        matches!(self, Self::State | Self::Campaign)
    }

    /// Whether it identifies a device to people.
    #[must_use]
    pub fn is_of_identity(self) -> bool {
        use Field::{Address, AssetTag, Contact, HardwareId, Hostname, Owner};
        matches!(self, HardwareId | Hostname | AssetTag | Address | Owner | Contact)
    }
}

/// One device, as a filter sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What was last read from it.
    pub facts: Facts<'a>,
    /// The node that looks after it.
    pub node: &'a str,
    /// Where the node stands.
    pub path: &'a TopologyPath,
    /// State and campaign of its running or last attempt.
    pub attempt: Option<(&'a str, &'a str)>,
}

impl Filter {
    /// Whether it holds for the device.
    #[must_use]
    pub fn matches(&self, device: &Candidate<'_>) -> bool {
        match self {
            Self::Any(filters) => filters.iter().any(|filter| filter.matches(device)),
            Self::All(filters) => filters.iter().all(|filter| filter.matches(device)),
            Self::Not(filter) => !filter.matches(device),
            Self::Test(field, test) => test.holds(*field, device),
            Self::Label(name, test) => {
                let found = device.facts.labels.get(name.as_str());
                test.holds_for(found.map(|value| value.as_str()))
            }
        }
    }

    /// Whether it looks at a field for which this holds.
    pub fn looks_at(&self, is_asked: &dyn Fn(Field) -> bool) -> bool {
        match self {
            Self::Any(filters) | Self::All(filters) => filters.iter().any(|filter| filter.looks_at(is_asked)),
            Self::Not(filter) => filter.looks_at(is_asked),
            Self::Test(field, _) => is_asked(*field),
            Self::Label(..) => false,
        }
    }

    /// The texts that it compares with what identifies devices to people, in the order in which they stand.
    #[must_use]
    pub fn identities(&self) -> Vec<(Field, &str)> {
        match self {
            Self::Any(filters) | Self::All(filters) => filters.iter().flat_map(Self::identities).collect(),
            Self::Not(filter) => filter.identities(),
            Self::Test(field, test) if field.is_of_identity() => match test {
                Test::Is(text) | Test::IsNot(text) => vec![(*field, text)],
                Test::In(texts) => texts.iter().map(|text| (*field, text.as_str())).collect(),
                Test::Under(_) => Vec::new(),
            },
            Self::Test(..) | Self::Label(..) => Vec::new(),
        }
    }

    /// The same, with the devices that `found` knows in place of what identifies them.
    #[must_use]
    pub fn with_devices(self, found: &dyn Fn(Field, &str) -> Vec<String>) -> Self {
        let all = |filters: Vec<Self>| filters.into_iter().map(|filter| filter.with_devices(found)).collect();
        let among = |devices| Self::Test(Field::Device, Test::In(devices));
        match self {
            Self::Any(filters) => Self::Any(all(filters)),
            Self::All(filters) => Self::All(all(filters)),
            Self::Not(filter) => Self::Not(Box::new(filter.with_devices(found))),
            Self::Test(field, test) if field.is_of_identity() => match test {
                Test::Is(text) => among(found(field, &text)),
                Test::IsNot(text) => Self::Not(Box::new(among(found(field, &text)))),
                Test::In(texts) => among(texts.iter().flat_map(|text| found(field, text)).collect()),
                Test::Under(_) => among(Vec::new()),
            },
            other => other,
        }
    }
}

impl Test {
    fn holds(&self, field: Field, device: &Candidate<'_>) -> bool {
        if let Self::Under(place) = self {
            return device.path.is_within(place);
        }
        let path;
        let facts = device.facts;
        let found = match field {
            Field::Device => Some(facts.device.as_str()),
            Field::Vendor => Some(facts.vendor),
            Field::Model => Some(facts.model),
            Field::Component => Some(facts.component.as_str()),
            Field::Version => facts.version,
            Field::Executor => Some(facts.executor),
            Field::Node => Some(device.node),
            Field::Path => {
                path = device.path.to_string();
                Some(path.as_str())
            }
            Field::State => device.attempt.map(|(state, _)| state),
            Field::Campaign => device.attempt.map(|(_, campaign)| campaign),
            Field::HardwareId | Field::Hostname | Field::AssetTag | Field::Address | Field::Owner | Field::Contact => {
                None
            }
        };
        self.holds_for(found)
    }

    /// Whether it holds for what was found; nothing stands below a text.
    fn holds_for(&self, found: Option<&str>) -> bool {
        match self {
            Self::Is(wanted) => found == Some(wanted),
            Self::IsNot(unwanted) => found != Some(unwanted),
            Self::In(wanted) => found.is_some_and(|found| wanted.iter().any(|wanted| wanted == found)),
            Self::Under(_) => false,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, filters: &[Self], word: &str| {
            for (at, filter) in filters.iter().enumerate() {
                if at > 0 {
                    write!(f, " {word} ")?;
                }
                filter.write_within(f)?;
            }
            Ok(())
        };
        match self {
            Self::Any(filters) => joined(f, filters, "or"),
            Self::All(filters) => joined(f, filters, "and"),
            Self::Not(filter) => {
                f.write_str("not ")?;
                filter.write_within(f)
            }
            Self::Test(field, test) => {
                f.write_str(field.as_str())?;
                test.fmt(f)
            }
            Self::Label(name, test) => write!(f, "label \"{name}\"{test}"),
        }
    }
}

impl Filter {
    /// As a part of another filter.
    fn write_within(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(_) | Self::All(_) => write!(f, "({self})"),
            Self::Not(_) | Self::Test(..) | Self::Label(..) => write!(f, "{self}"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(text) => write!(f, " == {}", Quoted(text)),
            Self::IsNot(text) => write!(f, " != {}", Quoted(text)),
            Self::In(texts) => {
                f.write_str(" in [")?;
                for (at, text) in texts.iter().enumerate() {
                    let comma = if at > 0 { ", " } else { "" };
                    write!(f, "{comma}{}", Quoted(text))?;
                }
                f.write_str("]")
            }
            Self::Under(path) => write!(f, " under \"{path}\""),
        }
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
    }
}
