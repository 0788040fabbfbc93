//! Servers of a provisioning campaign: all of one is brought up, or nothing of it.
//!
//! Invariants: a server of which a component cannot be brought where it is to be is held whole, and every other component of it
//! says which one that is; a component that is current holds nobody; every matching component that the campaign has a release
//! for stands in exactly one server.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::DeviceId,
    limits::{SERVER_COMPONENTS_MAX, SERVERS_MAX},
    manifest::{
        Analysis, CampaignKind, HeldServer, PlannedComponent, PlannedDevice, PlannedServer, ProvisioningPhase, Release,
    },
};

use super::{
    PlanError,
    catalogue::Left,
    units::{Candidate, Ordering, rank},
};
use crate::{
    campaign::bounded,
    fleet::{Inventory, KnownDevice},
};

/// What was found of a component by itself.
#[derive(Debug)]
enum Found {
    Current,
    /// The versions that it goes over first.
    Due(Vec<String>),
    Unfit(ProvisioningPhase),
}

#[derive(Debug)]
struct Seen<'a> {
    device: &'a KnownDevice,
    release: &'a Release,
    found: Found,
}

/// The components that the campaign has releases for.
#[derive(Debug)]
pub(super) struct Servers<'a> {
    kind: CampaignKind,
    seen: BTreeMap<&'a DeviceId, Seen<'a>>,
    stopped: BTreeMap<String, HeldServer>,
}

/// The name of the server that a device is a part of. A device without a unit is one by itself; no device's name has a slash.
fn server_of(id: &DeviceId, device: &KnownDevice) -> String {
    match device.facts.labels.unit() {
        Some(unit) => format!("{}/{unit}", device.node),
        None => id.to_string(),
    }
}

impl<'a> Servers<'a> {
    pub(super) fn new(kind: CampaignKind) -> Self {
        Self {
            kind,
            seen: BTreeMap::new(),
            stopped: BTreeMap::new(),
        }
    }

    /// Takes note of what was found of a device. What the campaign has no release for is no part of it.
    pub(super) fn see(
        &mut self,
        id: &'a DeviceId,
        device: &'a KnownDevice,
        release: Option<&'a Release>,
        place: &Result<Candidate<'_>, Left>,
    ) {
        let Some(release) = release.filter(|_| self.kind == CampaignKind::Provisioning) else {
            return;
        };
        let found = match place {
            Ok(candidate) => Found::Due(candidate.hops.iter().map(|hop| hop.info.version.clone()).collect()),
            Err(Left::Current(_)) => Found::Current,
            Err(Left::Analysis(_)) => Found::Unfit(ProvisioningPhase::VersionAnalysis),
            Err(Left::Preflight(_) | Left::NotCovered(_)) => Found::Unfit(ProvisioningPhase::Preflight),
        };
        self.seen.insert(id, Seen { device, release, found });
    }

    /// Holds every server whole of which a component is held by now.
    pub(super) fn keep_whole<'b>(
        &mut self,
        arranged: Vec<Vec<Candidate<'b>>>,
        inventory: &Inventory,
        held: &mut BTreeMap<DeviceId, String>,
    ) -> Vec<Vec<Candidate<'b>>> {
        let quarantined = inventory.devices.iter().filter(|(_, device)| device.quarantined);
        let quarantined: BTreeSet<_> = quarantined.map(|(id, device)| server_of(id, device)).collect();
        for (id, seen) in &mut self.seen {
            // It would do by itself, and does not go with the others.
            if matches!(seen.found, Found::Due(_)) && held.contains_key(*id) {
                seen.found = Found::Unfit(match quarantined.contains(&server_of(id, seen.device)) {
                    true => ProvisioningPhase::Preflight,
                    false => ProvisioningPhase::VersionAnalysis,
                });
            }
        }
        let stopped = self.stopped(held);
        let mut whole = Vec::with_capacity(arranged.len());
        for together in arranged {
            let server = together
                .first()
                .map(|first| server_of(&first.planned.device, first.device));
            let Some(HeldServer { phase, reason }) = server.and_then(|server| stopped.get(&server)) else {
                whole.push(together);
                continue;
            };
            let why = bounded(&format!(
                "{phase}: nothing of its server is touched, because of {reason}"
            ));
            held.extend(together.into_iter().map(|one| (one.planned.device, why.clone())));
        }
        self.stopped = stopped;
        whole
    }

    /// The servers of which nothing is touched, with the component that was found first.
    fn stopped(&self, held: &BTreeMap<DeviceId, String>) -> BTreeMap<String, HeldServer> {
        let mut stopped: BTreeMap<String, HeldServer> = BTreeMap::new();
        for (id, seen) in &self.seen {
            let (Found::Unfit(phase), Some(reason)) = (&seen.found, held.get(*id)) else {
                continue;
            };
            let server = server_of(id, seen.device);
            if stopped.get(&server).is_none_or(|known| *phase < known.phase) {
                let (phase, reason) = (*phase, bounded(&format!("{id}: {reason}")));
                stopped.insert(server, HeldServer { phase, reason });
            }
        }
        stopped
    }

    /// The servers as the plan has them. `planned`: what goes into waves, the devices of one server together.
    pub(super) fn listed<T>(
        mut self,
        planned: &[(T, Vec<PlannedDevice>)],
        held: &BTreeMap<DeviceId, String>,
        ordering: Ordering<'_>,
    ) -> Result<Vec<PlannedServer>, PlanError> {
        let mut order: BTreeMap<&DeviceId, usize> = BTreeMap::new();
        for (place, device) in planned.iter().flat_map(|(_, devices)| devices).enumerate() {
            order.insert(&device.device, place);
        }
        let mut of_server: BTreeMap<String, Vec<&DeviceId>> = BTreeMap::new();
        for (id, seen) in &self.seen {
            of_server.entry(server_of(id, seen.device)).or_default().push(id);
        }
        if of_server.len() > SERVERS_MAX {
            return Err(PlanError::TooManyServers(of_server.len()));
        }
        let mut servers = Vec::with_capacity(of_server.len());
        for (server, mut devices) in of_server {
            if devices.len() > SERVER_COMPONENTS_MAX {
                return Err(PlanError::TooManyComponents(server));
            }
            devices.sort_by_key(|id| rank(&self.seen[id].release.info, ordering));
            // What something is done to stands in the order in which it is done.
            let mut due: Vec<_> = devices.iter().copied().filter(|id| order.contains_key(id)).collect();
            due.sort_by_key(|id| order[id]);
            let mut due = due.into_iter();
            for slot in &mut devices {
                if order.contains_key(slot) {
                    *slot = due.next().unwrap_or(slot);
                }
            }
            // A strategy may hold a whole server as well.
            let waits = devices.iter().find(|id| self.is_due(id) && !order.contains_key(*id));
            let held_server = self.stopped.remove(&server).or_else(|| {
                let reason = held.get(*waits?).map_or("", String::as_str);
                Some(HeldServer {
                    phase: ProvisioningPhase::Preflight,
                    reason: bounded(&format!("{}: {reason}", waits?)),
                })
            });
            let node = self.seen[devices[0]].device.node.clone();
            let components = devices.iter().map(|id| self.component(id, held)).collect();
            servers.push(PlannedServer {
                server,
                node,
                components,
                held: held_server,
            });
        }
        Ok(servers)
    }

    fn is_due(&self, id: &DeviceId) -> bool {
        let seen = self.seen.get(id);
        seen.is_some_and(|seen| matches!(seen.found, Found::Due(_)))
    }

    fn component(&self, id: &DeviceId, held: &BTreeMap<DeviceId, String>) -> PlannedComponent {
        let Seen { device, release, found } = &self.seen[id];
        PlannedComponent {
            device: id.clone(),
            component: device.facts.component.clone(),
            release: release.target.clone(),
            from: device.facts.version.clone(),
            to: release.info.version.clone(),
            analysis: match found {
                Found::Current => Analysis::Current {},
                Found::Due(over) => Analysis::Due { over: over.clone() },
                Found::Unfit(_) => Analysis::Unfit {
                    reason: bounded(held.get(id).map_or("", String::as_str)),
                },
            },
        }
    }
}
