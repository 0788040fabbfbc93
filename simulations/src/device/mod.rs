//! Device models: what BMCs and A/B hosts do, and how they fail to. Served over HTTPS by the lab, driven in virtual time
//! by simulations, so a lying BMC is written once and met twice.
//!
//! Time is milliseconds since a beginning of the caller's choosing, so that a model can outlive a process.

mod bios;
mod bmc;
pub mod faulty;
mod host;
pub mod redfish;
pub(crate) mod slotted;

pub use bios::{Attributes, Bios};
pub use bmc::{Bmc, BmcSettings, BmcTask, Busy, ResetTarget, Strength, TaskPhase};
pub use host::{Host, HostSettings, HostState};

use std::collections::BTreeMap;

use firmesh_executors_core::Slot;
use firmesh_protocol::ids::{Component, Sha256};
use serde::{Deserialize, Serialize};

/// Events kept per device: many attempts' worth; the oldest go first.
const EVENTS_MAX: usize = 1_000;

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Who makes it.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// The component that can be updated.
    pub component: Component,
}

/// What an image is, by what its maker knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// The version a device reports once it runs the image.
    pub version: String,
    /// The model it is for.
    pub model: String,
}

/// Every image that a device would accept, by digest.
pub type Catalogue = BTreeMap<Sha256, Firmware>;

/// How a device misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Misbehaviour {
    /// Update tasks never end.
    Stall,
    /// Update tasks say Completed, and nothing changes.
    Lie,
    /// The restart that should bring the new version never ends.
    NeverBack,
    /// A BMC's update task ends in an exception; a host's trial does not boot.
    FailUpdate,
    /// A host does not boot this image.
    FailBoot {
        /// The image.
        sha256: Sha256,
    },
    /// Restarts take longer.
    SlowBoot {
        /// How much longer, in milliseconds.
        ms: u64,
    },
    /// A BMC has a fault of the catalogue.
    Faulty {
        /// Which one.
        fault: faulty::Fault,
    },
}

/// Something that happened to a device, as the device knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. From [`UpdateBegun`](Self::UpdateBegun) to the next [`Booted`](Self::Booted),
/// [`UpdateFailed`](Self::UpdateFailed) or the end of time, the device is in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// Somebody began to bring an image.
    UpdateBegun,
    /// An image arrived whole.
    ImageReceived {
        /// Its digest.
        sha256: Sha256,
        /// Its length in bytes.
        length: u64,
    },
    /// The update task ended, by its own word, well.
    UpdateCompleted,
    /// The update ended without a new version.
    UpdateFailed {
        /// Why.
        reason: String,
    },
    /// A restart began.
    Reset {
        /// Of what.
        target: String,
    },
    /// A slot was started and its system did not come up.
    BootFailed {
        /// The slot.
        slot: Slot,
    },
    /// A restart ended.
    Booted {
        /// The version that runs now.
        version: String,
        /// The slot, on a host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<Slot>,
    },
    /// The device will not answer again by itself.
    Died,
}

/// What happened to a device, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventLog(Vec<Event>);

impl EventLog {
    pub(crate) fn add(&mut self, at_ms: u64, kind: EventKind) {
        if self.0.len() == EVENTS_MAX {
            self.0.remove(0);
        }
        self.0.push(Event { at_ms, kind });
    }

    /// The events.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.0
    }

    /// Whether an update has begun and not ended.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        let turning = self.0.iter().rev().find_map(|event| match event.kind {
            EventKind::UpdateBegun => Some(true),
            EventKind::Booted { .. } | EventKind::UpdateFailed { .. } => Some(false),
            _ => None,
        });
        turning.unwrap_or(false)
    }
}
