//! What a node finds when it is asked what one of its devices can do, and what would be done with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{Component, DeviceId};

/// The schema of an examination.
pub const EXAMINATION_SCHEMA: &str = "firmesh-examination/1";

/// What was found at a device. Nothing on it was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceExamination {
    /// [`EXAMINATION_SCHEMA`].
    pub schema: String,
    /// The device.
    pub device: DeviceId,
    /// The component that is updated on it.
    pub component: Component,
    /// What acts on it.
    pub executor: String,
    /// What was found, in the order in which it was looked at.
    pub findings: Vec<DeviceFinding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFinding {
    /// What was looked at, for machines: `connection`, `dialect`, `inventory`, `way`, `resets` ...
    pub part: String,
    /// How it is.
    pub level: FindingLevel,
    /// What was found, for a person.
    pub says: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The same for machines, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Value>,
}

/// How something is that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingLevel {
    /// As it should be, or just so.
    Ok,
    /// An update may go well; somebody should see to it.
    Warning,
    /// An update would fail.
    Failure,
}

impl DeviceFinding {
    /// A finding without advice.
    #[must_use]
    pub fn new(part: &str, level: FindingLevel, says: impl Into<String>) -> Self {
        Self {
            part: part.to_owned(),
            level,
            says: says.into(),
            advice: None,
            facts: BTreeMap::new(),
        }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn advising(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same with a fact for machines.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

impl DeviceExamination {
    /// How many findings are as bad as this, or worse.
    #[must_use]
    pub fn count(&self, least: FindingLevel) -> usize {
        self.findings.iter().filter(|finding| finding.level >= least).count()
    }
}
