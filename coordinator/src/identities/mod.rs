//! The identity map: what identifies devices to people, each sealed with a key of its own, found by keyed digests, and gone with
//! the key (`docs/decisions/0045-erasing-a-device.md`).
//!
//! Invariants: nothing of an identity lies in the database in clear; a key is good for one device; what was sealed for one
//! device does not open as that of another; whoever erases destroys the key in the transaction that says so in the audit log.

mod erase;
mod map;
mod seal;

use firmesh_coordinator_core::Field;
use firmesh_protocol::api::{DeviceIdentity, Registration};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use self::{
    erase::Busy,
    map::{DESTROY, FOUND_MAX, Rows, other_with, put, seal, unsealed},
};

/// What identifies a device to people.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hardware_id: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<DeviceIdentity>,
}

/// It has no place in a log.
impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Takes it out of what is said of a device: the rest identifies nobody.
    pub(crate) fn taken_from(record: &mut Registration) -> Self {
        Self {
            hardware_id: record.hardware_id.take(),
            metadata: std::mem::take(&mut record.metadata),
            details: record.identity.take(),
        }
    }

    /// Puts it back.
    pub(crate) fn put_into(self, record: &mut Registration) {
        record.hardware_id = self.hardware_id;
        record.metadata = self.metadata;
        record.identity = self.details;
    }

    /// What it is found by.
    fn terms(&self) -> Vec<(Field, &str)> {
        let mut terms = vec![(Field::HardwareId, self.hardware_id.as_deref())];
        if let Some(details) = &self.details {
            terms.extend([
                (Field::Hostname, details.hostname.as_deref()),
                (Field::AssetTag, details.asset_tag.as_deref()),
                (Field::Owner, details.owner.as_deref()),
                (Field::Contact, details.contact.as_deref()),
            ]);
            terms.extend(
                details
                    .addresses
                    .iter()
                    .map(|text| (Field::Address, Some(text.as_str()))),
            );
        }
        terms
            .into_iter()
            .filter_map(|(field, text)| Some((field, text?)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
