//! Provisioning: whole servers, brought up firmware first and the BIOS's settings last.
//!
//! Invariants of a plan that has passed [`Plan::check_servers`]: every planned device is a component of one server, that of its unit; of a server
//! either everything is planned that its components are due for, or nothing; no firmware comes after the BIOS's settings.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{CampaignManifest, ManifestError, Plan, PlannedDevice};
use crate::{
    ids::{Component, DeviceId, NodeId},
    limits::{REASON_BYTES_MAX, SERVER_COMPONENTS_MAX, SERVERS_MAX},
};

/// The component that the settings of a server's BIOS are.
pub const BIOS_SETTINGS: &str = "bios-settings";

/// What a campaign is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CampaignKind {
    /// Devices get releases, each for itself.
    #[default]
    Update,
    /// Servers are brought up: all components of one, or none of it.
    Provisioning,
}

impl CampaignKind {
    pub(super) fn is_update(&self) -> bool {
        *self == Self::Update
    }
}

/// The phases that a server goes through, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProvisioningPhase {
    /// Before anything is touched: its components answer, nobody holds them, and none waits for a person. By the plan, and once
    /// more by the node before each start.
    Preflight,
    /// What is current, what is due, and over which releases the way leads.
    VersionAnalysis,
    /// Firmware, component by component: each is read back before the next begins.
    Updates,
    /// The settings of the BIOS.
    BiosConfiguration,
    /// Every component is read once more, and runs what was planned.
    FinalValidation,
}

impl ProvisioningPhase {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Preflight,
        Self::VersionAnalysis,
        Self::Updates,
        Self::BiosConfiguration,
        Self::FinalValidation,
    ];

    /// The phase in which a component is brought where it is to be.
    #[must_use]
    pub fn of(component: &Component) -> Self {
        match component.as_str() {
            BIOS_SETTINGS => Self::BiosConfiguration,
            _ => Self::Updates,
        }
    }

    /// Its place, counted from 1.
    #[must_use]
    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// Its name, for a person.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::VersionAnalysis => "version analysis",
            Self::Updates => "updates",
            Self::BiosConfiguration => "BIOS configuration",
            Self::FinalValidation => "final validation",
        }
    }
}

impl std::fmt::Display for ProvisioningPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A server of a provisioning campaign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedServer {
    /// Its name: `NODE/UNIT`, or that of its one device where there is no unit.
    pub server: String,
    /// The node that looks after it.
    pub node: NodeId,
    /// Its components that the campaign has a release for, in the order in which they are brought where they are to be.
    pub components: Vec<PlannedComponent>,
    /// Why nothing of it is touched, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldServer>,
}

/// Why nothing of a server is touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldServer {
    /// In which phase that was found: preflight, or version analysis.
    pub phase: ProvisioningPhase,
    /// Which component, and why.
    pub reason: String,
}

/// A component of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedComponent {
    /// The device.
    pub device: DeviceId,
    /// What it is.
    pub component: Component,
    /// The release it is to run: a target of the manifest's `releases`.
    pub release: String,
    /// The version it was seen running, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The version it is to show at the end.
    pub to: String,
    /// What the version analysis says of it.
    pub analysis: Analysis,
}

/// What the version analysis says of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "snake_case", deny_unknown_fields)]
pub enum Analysis {
    /// It runs what it is to run: nothing is done, and it is read at the end like the others.
    Current {},
    /// It is to be brought there.
    Due {
        /// The versions that it goes over first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        over: Vec<String>,
    },
    /// It cannot be brought there, and so nothing of its server is touched.
    Unfit {
        /// Why.
        reason: String,
    },
}

impl PlannedServer {
    /// The components that something is done to.
    pub fn due(&self) -> impl Iterator<Item = &PlannedComponent> {
        let is_due = |one: &&PlannedComponent| matches!(one.analysis, Analysis::Due { .. });
        self.components.iter().filter(is_due).filter(|_| self.held.is_none())
    }

    /// Where the first thing is that is done to it.
    #[must_use]
    pub fn first_phase(&self) -> ProvisioningPhase {
        let first = self.due().next();
        first.map_or(ProvisioningPhase::FinalValidation, |one| {
            ProvisioningPhase::of(&one.component)
        })
    }
}

impl Plan {
    /// What the types cannot say of servers, without a look at the manifest.
    pub(super) fn server_problem(&self) -> Option<String> {
        if self.servers.len() > SERVERS_MAX {
            return Some(format!("are {}, at most {SERVERS_MAX} are allowed", self.servers.len()));
        }
        if let Some(pair) = self.servers.windows(2).find(|pair| pair[0].server >= pair[1].server) {
            return Some(format!("are not in the order of their names at {}", pair[1].server));
        }
        let is_wrong = |server: &&PlannedServer| {
            let reason = server.held.as_ref().map_or(0, |held| held.reason.len());
            let of_components = server.components.iter().map(|one| match &one.analysis {
                Analysis::Unfit { reason } => reason.len(),
                Analysis::Current {} | Analysis::Due { .. } => 0,
            });
            server.server.is_empty()
                || server.server.len() > 160
                || !(1..=SERVER_COMPONENTS_MAX).contains(&server.components.len())
                || of_components.chain([reason]).any(|length| length > REASON_BYTES_MAX)
        };
        let wrong = self.servers.iter().find(is_wrong)?;
        Some(format!(
            "have one, {:?}, without components, with more than {SERVER_COMPONENTS_MAX}, or with a text that is too long",
            wrong.server.chars().take(80).collect::<String>()
        ))
    }

    /// Checks that the plan is of whole servers, firmware first, if the manifest says that it is for provisioning; and that it
    /// says nothing of servers if not.
    pub fn check_servers(&self, manifest: &CampaignManifest) -> Result<(), ManifestError> {
        let wrong = |problem: String| {
            Err(ManifestError::Bounds {
                what: "plan",
                field: "servers",
                problem,
            })
        };
        if manifest.kind == CampaignKind::Update {
            return match self.servers.first() {
                Some(_) => wrong("are of provisioning campaigns only".to_owned()),
                None => Ok(()),
            };
        }
        let mut planned: BTreeMap<&DeviceId, (usize, &PlannedDevice)> = BTreeMap::new();
        for (place, (_, device)) in self.devices().enumerate() {
            planned.insert(&device.device, (place, device));
        }
        let held: BTreeSet<_> = self.held.iter().map(|held| &held.device).collect();
        let mut named = BTreeMap::new();
        for server in &self.servers {
            let is_its_name = match (server.server.split_once('/'), &server.components[..]) {
                (Some((node, _)), _) => node == server.node.as_str(),
                (None, [one]) => one.device.as_str() == server.server,
                (None, _) => false,
            };
            if !is_its_name {
                return wrong(format!(
                    "have {}, which is neither a unit of its node nor its one device",
                    server.server
                ));
            }
            for one in &server.components {
                if named.insert(&one.device, ()).is_some() {
                    return wrong(format!("name {} twice", one.device));
                }
            }
            if server.held.is_none() {
                for one in &server.components {
                    match &one.analysis {
                        Analysis::Unfit { .. } => {
                            return wrong(format!("have {} as unfit, and its server not held", one.device));
                        }
                        Analysis::Current {} if one.from.as_ref() != Some(&one.to) => {
                            return wrong(format!("have {} as current, which does not run {}", one.device, one.to));
                        }
                        Analysis::Current {} | Analysis::Due { .. } => {}
                    }
                }
            }
            for one in &server.components {
                let is_due = server.held.is_none() && matches!(one.analysis, Analysis::Due { .. });
                if !is_due && !planned.contains_key(&one.device) && !held.contains(&one.device) {
                    let device = &one.device;
                    return wrong(format!("name {device}, which the plan neither touches nor leaves out"));
                }
            }
            let mut last: Option<(usize, &PlannedDevice, &PlannedComponent)> = None;
            for one in server.due() {
                let Some((place, device)) = planned.remove(&one.device) else {
                    return wrong(format!("have {} as due, which is in no wave", one.device));
                };
                let over = match &one.analysis {
                    Analysis::Due { over } => over.len(),
                    Analysis::Current {} | Analysis::Unfit { .. } => 0,
                };
                let says_the_same = device.release == one.release
                    && device.node == server.node
                    && Some(&device.from_version) == one.from.as_ref()
                    && device.hops.len() == over;
                if !says_the_same {
                    return wrong(format!("say something else of {} than its wave", one.device));
                }
                let of_unit = device.unit().map(|(node, unit)| format!("{node}/{unit}"));
                if of_unit.as_deref().unwrap_or(device.device.as_str()) != server.server {
                    return wrong(format!(
                        "have {} in {}, which is not its unit",
                        one.device, server.server
                    ));
                }
                let follows = match last {
                    None => device.after.is_none(),
                    Some((before, earlier, _)) => before < place && device.after.as_ref() == Some(&earlier.device),
                };
                if !follows {
                    return wrong(format!("have {} out of its turn", one.device));
                }
                let is_late = last.is_some_and(|(_, _, earlier)| {
                    ProvisioningPhase::of(&earlier.component) > ProvisioningPhase::of(&one.component)
                });
                if is_late {
                    return wrong(format!("have {} after the settings of the BIOS", one.device));
                }
                last = Some((place, device, one));
            }
        }
        match planned.keys().next() {
            Some(device) => wrong(format!(
                "do not name {device}, or hold its server, and a wave has it all the same"
            )),
            None => Ok(()),
        }
    }
}
