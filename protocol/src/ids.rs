//! Names of things: validated once at the edge, then passed around as types that cannot be mixed up.
//!
//! Invariant: a value of any type here satisfies its grammar; parsing is the only way to make one from text.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::limits::{NAME_BYTES_MAX, PATH_SEGMENTS_MAX};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty names identify nothing.
    #[error("{kind} is empty")]
    Empty {
        /// What the name was meant to be.
        kind: &'static str,
    },
    /// The name is longer than the bound.
    #[error("{kind} is {length} bytes long, at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// What the name was meant to be.
        kind: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A character outside the grammar.
    #[error(
        "{kind} {name:?} has the character {character:?}; allowed are a-z, A-Z, 0-9, '.', '_' and '-', and the first must be a letter or digit"
    )]
    BadCharacter {
        /// What the name was meant to be.
        kind: &'static str,
        /// The name as given.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// A topology path with too many segments.
    #[error("topology path has {0} segments, at most {PATH_SEGMENTS_MAX} are allowed")]
    PathTooDeep(usize),
}

fn check_name(kind: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong {
            kind,
            length: name.len(),
        });
    }
    let bad = name
        .char_indices()
        .find(|&(at, c)| !(c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '.' | '_' | '-'))));
    match bad {
        None => Ok(()),
        Some((_, character)) => Err(NameError::BadCharacter {
            kind,
            name: name.to_owned(),
            character,
        }),
    }
}

/// How a type that is text on the wire stands in the OpenAPI document.
macro_rules! text_schema {
    ($type:ty, $pattern:expr) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                let text = utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String);
                text.pattern($pattern).into()
            }
        }

        impl utoipa::ToSchema for $type {}
    };
}
pub(crate) use text_schema;

// Millions of names are kept and cloned: short ones take no memory of their own.
macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "SmolStr")]
        pub struct $type(SmolStr);

        impl $type {
            /// Checks `name` against the grammar of names.
            pub fn new(name: impl Into<SmolStr>) -> Result<Self, NameError> {
                let name = name.into();
                check_name($kind, &name)?;
                Ok(Self(name))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<SmolStr> for $type {
            type Error = NameError;
            fn try_from(text: SmolStr) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.into()
            }
        }

        text_schema!($type, Some("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"));
    };
}

name_type!(
    /// A node: the Firmesh process on a rack or host. Unique in the fleet.
    NodeId, "node id"
);
name_type!(
    /// A device: something updated. Unique in the fleet.
    DeviceId, "device id"
);
name_type!(
    /// A campaign. Unique in the fleet, and the stem of its manifest's target name.
    CampaignId, "campaign id"
);
name_type!(
    /// A kind of component of a device: `bmc`, `bios`, `nic`, `host` ...
    Component, "component"
);
name_type!(
    /// A group of devices that operators have named.
    GroupId, "group id"
);

name_type!(
    /// What a label is about: `power_feed`, `cluster`, `unit` ...
    LabelName, "label name"
);
name_type!(
    /// What a label says.
    LabelValue, "label value"
);

/// Where something stands: `region/site/row/rack/node`, any depth from the fleet's root downwards.
///
/// The parent of a node's path is its rack; two paths share every level of their common prefix.
///
/// Paths are ordered segment by segment: a place comes right before all that is below it.
// One text, not a list of them: a fleet has a million of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SmolStr")]
pub struct TopologyPath(SmolStr);

text_schema!(TopologyPath, Some("^[^/]+(/[^/]+)*$"));

impl TopologyPath {
    /// The segments, outermost first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.0.split('/')
    }

    /// How many segments there are.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.segments().count()
    }

    /// The path one level up, if there is one: the rack of a node's path.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (parent, _) = self.0.rsplit_once('/')?;
        Some(Self(parent.into()))
    }

    /// The first `levels` segments as a path; the whole path if it is not that deep. `levels` is at least 1.
    #[must_use]
    pub fn prefix(&self, levels: usize) -> Self {
        match self.0.match_indices('/').nth(levels.max(1) - 1) {
            Some((end, _)) => Self(self.0[..end].into()),
            None => self.clone(),
        }
    }

    /// Whether `self` is `other` or stands below it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        let below = self.0.strip_prefix(other.0.as_str());
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }

    /// How many leading segments two paths share.
    #[must_use]
    pub fn shared_levels(&self, other: &Self) -> usize {
        self.segments()
            .zip(other.segments())
            .take_while(|(a, b)| a == b)
            .count()
    }
}

impl Ord for TopologyPath {
    fn cmp(&self, other: &Self) -> Ordering {
        self.segments().cmp(other.segments())
    }
}

impl PartialOrd for TopologyPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TopologyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopologyPath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        SmolStr::from(text).try_into()
    }
}

impl TryFrom<SmolStr> for TopologyPath {
    type Error = NameError;
    /// Checks the segments and their number.
    fn try_from(text: SmolStr) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty { kind: "topology path" });
        }
        let path = Self(text);
        let depth = path.depth();
        if depth > PATH_SEGMENTS_MAX {
            return Err(NameError::PathTooDeep(depth));
        }
        for segment in path.segments() {
            check_name("topology path segment", segment)?;
        }
        Ok(path)
    }
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type([u8; 32]);

        impl $type {
            /// The digest's bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl From<[u8; 32]> for $type {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), hex::encode(self.0))
            }
        }

        impl FromStr for $type {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<Self, DigestError> {
                let mut bytes = [0; 32];
                let lowercase = !text.bytes().any(|b| b.is_ascii_uppercase());
                if !lowercase || hex::decode_to_slice(text, &mut bytes).is_err() {
                    return Err(DigestError { length: text.len() });
                }
                Ok(Self(bytes))
            }
        }

        impl TryFrom<String> for $type {
            type Error = DigestError;
            fn try_from(text: String) -> Result<Self, DigestError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(digest: $type) -> Self {
                digest.to_string()
            }
        }

        crate::ids::text_schema!($type, Some("^[0-9a-f]{64}$"));
    };
}

pub(crate) use digest_type;

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 lower-case hexadecimal characters, this text has {length} characters or is not hexadecimal")]
pub struct DigestError {
    pub(crate) length: usize,
}

digest_type!(
    /// The BLAKE3 root of an artifact's bytes: its name in the mesh.
    ArtifactId
);
digest_type!(
    /// A SHA-256 digest: what TUF targets and the outside world name bytes by.
    Sha256
);

impl ArtifactId {
    /// Hashes bytes held in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl Sha256 {
    /// Hashes bytes held in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_path_separator_or_a_leading_dot_is_refused() {
        assert!(NodeId::new("rack-1.node_2").is_ok());
        for bad in ["", "../etc", ".hidden", "a b", "a/b", "ü"] {
            assert!(NodeId::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(matches!(
            NodeId::new("x".repeat(NAME_BYTES_MAX + 1)),
            Err(NameError::TooLong { .. })
        ));
    }

    #[test]
    fn topology_paths_know_their_rack_and_what_they_share() {
        let a: TopologyPath = "eu/fra1/row1/rack1/n1".parse().unwrap();
        let b: TopologyPath = "eu/fra1/row1/rack2/n1".parse().unwrap();
        assert_eq!(a.parent().unwrap().to_string(), "eu/fra1/row1/rack1");
        assert_eq!(a.shared_levels(&b), 3);
        assert!(a.is_within(&"eu/fra1".parse().unwrap()));
        assert!(!a.is_within(&"eu/fra".parse().unwrap()));
    }

    #[test]
    fn digests_are_lower_case_hexadecimal_of_the_right_length() {
        let digest = Sha256::of(b"");
        assert_eq!(
            digest.to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest.to_string().parse::<Sha256>().unwrap(), digest);
        assert!(digest.to_string().to_uppercase().parse::<Sha256>().is_err());
        assert!("abcd".parse::<Sha256>().is_err());
    }
}
