//! Plans: who gets what, in which wave, and why others get nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ManifestError;
use crate::{
    ids::{CampaignId, DeviceId, NodeId, TopologyPath},
    limits::{PLAN_DEVICES_MAX, REASON_BYTES_MAX, WAVES_MAX},
    trust::PublicKey,
};

/// The schema name of a plan.
pub const PLAN_SCHEMA: &str = "firmesh-plan/1";
/// One device's place in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedDevice {
    /// The device.
    pub device: DeviceId,
    /// The node that looks after it.
    pub node: NodeId,
    /// The rack whose cap it counts against.
    pub rack: TopologyPath,
    /// The release it gets: a target of the manifest's `releases`.
    pub release: String,
    /// The version it was seen running.
    pub from_version: String,
    /// What it goes back to: a target of the manifest's `previous`, if one matches `from_version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
}

/// A device that matches the selector and is left out, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeldDevice {
    /// The device.
    pub device: DeviceId,
    /// Why, for a person.
    pub reason: String,
}

/// The immutable result of planning: who gets what, in which wave, and a reason for everybody held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_SCHEMA`].
    pub schema: String,
    /// The campaign.
    pub campaign: CampaignId,
    /// The waves, in order.
    pub waves: Vec<Vec<PlannedDevice>>,
    /// The key of every node that looks after a planned device: approvers sign whose reports count as evidence.
    pub nodes: BTreeMap<NodeId, PublicKey>,
    /// Who is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldDevice>,
}

impl Plan {
    /// Reads and checks a plan. The caller has compared the bytes with the manifest's `plan_sha256` before.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let plan: Self =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { what: "plan", source })?;
        plan.check()?;
        Ok(plan)
    }

    /// The plan's bytes, the same for the same plan: what `plan_sha256` is taken of.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a plan has only names, numbers and lists")
    }

    /// Every planned device with the number of its wave, counted from 0.
    pub fn devices(&self) -> impl Iterator<Item = (usize, &PlannedDevice)> {
        self.waves
            .iter()
            .enumerate()
            .flat_map(|(number, wave)| wave.iter().map(move |device| (number, device)))
    }

    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bounds = |field, problem: String| {
            Err(ManifestError::Bounds {
                what: "plan",
                field,
                problem,
            })
        };
        if self.schema != PLAN_SCHEMA {
            return Err(ManifestError::Schema {
                what: "plan",
                found: self.schema.chars().take(80).collect(),
                expected: PLAN_SCHEMA,
            });
        }
        if self.waves.len() > WAVES_MAX {
            return bounds(
                "waves",
                format!("are {}, at most {WAVES_MAX} are allowed", self.waves.len()),
            );
        }
        let mut devices: Vec<_> = self.devices().map(|(_, planned)| &planned.device).collect();
        if devices.len() + self.held.len() > PLAN_DEVICES_MAX {
            return bounds("waves", format!("name more than {PLAN_DEVICES_MAX} devices"));
        }
        if self.held.iter().any(|held| held.reason.len() > REASON_BYTES_MAX) {
            return bounds("held", format!("has a reason of more than {REASON_BYTES_MAX} bytes"));
        }
        if let Some((_, planned)) = self
            .devices()
            .find(|(_, planned)| !self.nodes.contains_key(&planned.node))
        {
            return bounds("nodes", format!("do not name the key of {}", planned.node));
        }
        devices.sort();
        if let Some(pair) = devices.windows(2).find(|pair| pair[0] == pair[1]) {
            return bounds("waves", format!("name the device {} twice", pair[0]));
        }
        Ok(())
    }
}
