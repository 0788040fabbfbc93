//! Labels: what a node's configuration says of a device beyond its place, such as who feeds it and what it is a part of.
//!
//! Invariants: at most [`LABELS_MAX`], each name once, none of a name that a place has already.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{LabelName, LabelValue},
    limits::LABELS_MAX,
};

/// The label that names the server or chassis a device is a part of, unique at its node.
pub const UNIT: &str = "unit";

/// What places are called: no label may have these names.
const RESERVED: [&str; 6] = ["region", "site", "rack", "path", "node", "total"];

/// Why labels were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// More than the bound.
    #[error("labels are {0}, at most {LABELS_MAX} are allowed")]
    TooMany(usize),
    /// A name that is taken.
    #[error("no label may be called {0:?}: that is known from where the device stands")]
    Reserved(LabelName),
}

/// The labels of a device, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<LabelName, LabelValue>",
    into = "BTreeMap<LabelName, LabelValue>"
)]
// A list, sorted by name: a fleet has a million of these, and a map of three entries takes ten times the room.
pub struct Labels(Box<[(LabelName, LabelValue)]>);

impl Labels {
    /// What the label of this name says.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&LabelValue> {
        let found = self.0.iter().find(|(known, _)| known.as_str() == name);
        found.map(|(_, value)| value)
    }

    /// The server or chassis that the device is a part of.
    #[must_use]
    pub fn unit(&self) -> Option<&LabelValue> {
        self.get(UNIT)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&LabelName, &LabelValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }
}

impl std::fmt::Display for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, (name, value)) in self.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {value}")?;
        }
        match self.is_empty() {
            true => f.write_str("none"),
            false => Ok(()),
        }
    }
}

impl TryFrom<BTreeMap<LabelName, LabelValue>> for Labels {
    type Error = LabelsError;
    fn try_from(labels: BTreeMap<LabelName, LabelValue>) -> Result<Self, LabelsError> {
        if labels.len() > LABELS_MAX {
            return Err(LabelsError::TooMany(labels.len()));
        }
        if let Some(name) = labels.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(LabelsError::Reserved(name.clone()));
        }
        Ok(Self(labels.into_iter().collect()))
    }
}

impl From<Labels> for BTreeMap<LabelName, LabelValue> {
    fn from(labels: Labels) -> Self {
        labels.0.into_vec().into_iter().collect()
    }
}

impl utoipa::PartialSchema for Labels {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let text = utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String);
        let map = utoipa::openapi::ObjectBuilder::new().additional_properties(Some(text));
        map.into()
    }
}

impl utoipa::ToSchema for Labels {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few_and_none_is_called_like_a_place() {
        let read = |json: &str| serde_json::from_str::<Labels>(json);
        let labels = read(r#"{"unit":"srv1","power_feed":"a1"}"#).unwrap();
        assert_eq!(labels.unit().unwrap().as_str(), "srv1");
        assert_eq!(labels.get("power_feed").unwrap().as_str(), "a1");
        assert_eq!(labels.get("cluster"), None);
        assert_eq!(
            serde_json::to_string(&labels).unwrap(),
            r#"{"power_feed":"a1","unit":"srv1"}"#
        );
        assert!(read("{}").unwrap().is_empty());
        let wrong = |json: &str| read(json).unwrap_err().to_string();
        assert!(wrong(r#"{"rack":"r1"}"#).contains("no label may be called"));
        assert!(wrong(r#"{"a b":"r1"}"#).contains("label name"));
        assert!(wrong(r#"{"feed":"a/1"}"#).contains("label value"));
        let many: Vec<_> = (0..17).map(|n| format!("\"l{n}\":\"x\"")).collect();
        assert!(wrong(&format!("{{{}}}", many.join(","))).contains("at most 16"));
    }
}
