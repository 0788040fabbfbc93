//! Are the servers of a provisioning campaign whole, all of them there, and told the truth of?

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::DeviceId,
    manifest::{Analysis, CampaignKind, CampaignManifest, Plan, Release},
};

use crate::fleet::{Inventory, KnownDevice};

pub(super) fn check(
    plan: &Plan,
    manifest: &CampaignManifest,
    inventory: &Inventory,
    releases: &[Release],
    wrong: &mut Vec<String>,
) {
    if let Err(error) = plan.check_servers(manifest) {
        wrong.push(error.to_string());
    }
    if manifest.kind != CampaignKind::Provisioning {
        return;
    }
    let pinned = |release: &&Release| manifest.releases.iter().any(|pin| pin.target == release.target);
    let pinned: Vec<_> = releases.iter().filter(pinned).collect();
    let release_for = |device: &KnownDevice| {
        let (vendor, component, model) = (&device.facts.vendor, &device.facts.component, &device.facts.model);
        let is_for = |release: &&&Release| {
            let info = &release.info;
            info.vendor == *vendor && info.component == *component && info.models.contains(model)
        };
        pinned.iter().find(is_for).copied()
    };
    let planned: BTreeSet<_> = plan.waves.iter().flatten().map(|planned| &planned.device).collect();
    let named = planned.iter().copied().chain(plan.held.iter().map(|held| &held.device));
    let mut expected = BTreeMap::<String, BTreeMap<&DeviceId, (&KnownDevice, &Release)>>::new();
    for id in named {
        let known = inventory.devices.get(id);
        if let Some((device, release)) = known.and_then(|device| Some((device, release_for(device)?))) {
            let server = match device.facts.labels.unit() {
                Some(unit) => format!("{}/{unit}", device.node),
                None => id.to_string(),
            };
            expected.entry(server).or_default().insert(id, (device, release));
        }
    }
    if !expected.keys().eq(plan.servers.iter().map(|server| &server.server)) {
        wrong.push("the plan does not name the servers that there are".to_owned());
        return;
    }
    for (server, components) in plan.servers.iter().zip(expected.values()) {
        let name = &server.server;
        let told: BTreeMap<_, _> = server.components.iter().map(|one| (&one.device, one)).collect();
        if !told.keys().eq(components.keys()) {
            wrong.push(format!("{name} is told with other components than it has"));
            continue;
        }
        let is_current = |id: &DeviceId, device: &KnownDevice, release: &Release| {
            let is_free = device.node_reachable && !device.quarantined && device.held_by_operator.is_none();
            let runs_it = device.facts.version.as_ref() == Some(&release.info.version);
            is_free && runs_it && !inventory.excluded.contains_key(id)
        };
        let (mut touched, mut settled) = (0, 0);
        for (id, (device, release)) in components {
            let one = told[id];
            touched += usize::from(planned.contains(id));
            let is_current = is_current(id, device, release);
            settled += usize::from(is_current || planned.contains(id));
            if one.to != release.info.version || one.from != device.facts.version {
                wrong.push(format!("{id} is told with versions that are not its own"));
            }
            if one.component != device.facts.component || one.release != release.target {
                wrong.push(format!("{id} is told with another component or release than it has"));
            }
            if server.node != device.node {
                wrong.push(format!(
                    "{name} is told to be at {}, and {id} is at {}",
                    server.node, device.node
                ));
            }
            if is_current && !matches!(one.analysis, Analysis::Current {}) {
                wrong.push(format!("{id} is current, and told to be something else"));
            }
        }
        if touched > 0 && settled < components.len() {
            wrong.push(format!("{name} is touched although not all of it can be brought up"));
        }
        if server.held.is_some() != (settled < components.len()) {
            wrong.push(format!("{name} is held for nothing, or not held and left out"));
        }
    }
}
