//! Plans: who gets what, in which wave, and why others get nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{CampaignManifest, Dimension, DomainShare, ManifestError, PlannedServer};
use crate::{
    ids::{CampaignId, DeviceId, LabelValue, NodeId, TopologyPath},
    labels::Labels,
    limits::{DOMAIN_RULES_MAX, HOPS_MAX, PLAN_DEVICES_MAX, REASON_BYTES_MAX, WAVES_MAX},
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
    /// What it goes over first, in this order: targets of the manifest's `hops`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<String>,
    /// What it goes back to: a target of the manifest's `previous`, if one matches `from_version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Its labels: with the rack, they say in which fault domains it stands.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The device of the same unit that has to have ended well before this one starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DeviceId>,
}

impl PlannedDevice {
    /// What is installed on it, one after the other: what it goes over, and the release.
    pub fn way(&self) -> impl DoubleEndedIterator<Item = &String> {
        self.hops.iter().chain([&self.release])
    }

    /// All that its node has to hold: its way, and what it goes back to, if there is something.
    pub fn targets(&self) -> impl Iterator<Item = &String> {
        self.way().chain(&self.previous)
    }

    /// How many installs its way has.
    #[must_use]
    pub fn steps(&self) -> u32 {
        u32::try_from(self.hops.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// The unit that it is a part of, named with its node: there the name is unique.
    #[must_use]
    pub fn unit(&self) -> Option<(&NodeId, &LabelValue)> {
        Some((&self.node, self.labels.unit()?))
    }
}

/// Which step of a device's way an attempt is, where that has more than one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WayStep {
    /// Counted from 1.
    pub number: u32,
    /// How many there are.
    pub of: u32,
    /// The version that was read back before it.
    pub from: String,
}

impl WayStep {
    /// Whether the device has arrived when it ends well.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.number >= self.of
    }
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
    /// The fault domains that the manifest caps and that planned devices stand in, with what the caps come to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub domains: BTreeMap<Dimension, BTreeMap<TopologyPath, DomainShare>>,
    /// The key of every node that looks after a planned device: approvers sign whose reports count as evidence.
    pub nodes: BTreeMap<NodeId, PublicKey>,
    /// Who is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldDevice>,
    /// The servers of a provisioning campaign, in the order of their names: with those that are held, and with components that
    /// are current. See [`Plan::check_servers`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<PlannedServer>,
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
        if self.domains.len() > DOMAIN_RULES_MAX || self.domains.values().any(|of| of.len() > PLAN_DEVICES_MAX) {
            return bounds("domains", "are more than a plan may have".to_owned());
        }
        let goes_round = |planned: &&PlannedDevice| {
            let names: BTreeSet<_> = planned.way().collect();
            names.len() < planned.hops.len() + 1
        };
        if let Some((_, planned)) = self
            .devices()
            .find(|(_, planned)| planned.hops.len() > HOPS_MAX || goes_round(planned))
        {
            let problem = format!(
                "of {} are more than {HOPS_MAX}, or name a release twice",
                planned.device
            );
            return bounds("hops", problem);
        }
        if let Some(planned) = self.first_out_of_turn() {
            let problem = format!("do not keep the unit of {planned} together, one device after the other");
            return bounds("waves", problem);
        }
        if let Some(problem) = self.server_problem() {
            return bounds("servers", problem);
        }
        devices.sort();
        if let Some(pair) = devices.windows(2).find(|pair| pair[0] == pair[1]) {
            return bounds("waves", format!("name the device {} twice", pair[0]));
        }
        Ok(())
    }

    /// Checks that the caps of the manifest bind every planned device: its fault domains stand in the plan, and with no
    /// more than the rules come to.
    pub fn check_caps(&self, manifest: &CampaignManifest) -> Result<(), ManifestError> {
        for cap in &manifest.caps.domains {
            let of_dimension = self.domains.get(&cap.by);
            let is_bound = |planned: &PlannedDevice| {
                let domain = cap.by.domain(&planned.rack, &planned.labels)?;
                let share = of_dimension?.get(&domain)?;
                (1..=cap.at_most.of(share.devices))
                    .contains(&share.at_most)
                    .then_some(())
            };
            if let Some((_, planned)) = self.devices().find(|(_, planned)| is_bound(planned).is_none()) {
                return Err(ManifestError::Bounds {
                    what: "plan",
                    field: "domains",
                    problem: format!("do not have {} under the cap by {}", planned.device, cap.by),
                });
            }
        }
        Ok(())
    }

    /// The first device that does not come right after the one before it in its unit. Those of a unit stand in one wave.
    fn first_out_of_turn(&self) -> Option<&DeviceId> {
        let mut last = BTreeMap::new();
        for (wave, planned) in self.devices() {
            let Some(unit) = planned.unit() else {
                if planned.after.is_some() {
                    return Some(&planned.device);
                }
                continue;
            };
            let before = last.insert(unit, (wave, &planned.device));
            let is_in_turn = match before {
                None => planned.after.is_none(),
                Some((wave_before, device)) => wave_before == wave && planned.after.as_ref() == Some(device),
            };
            if !is_in_turn {
                return Some(&planned.device);
            }
        }
        None
    }
}
