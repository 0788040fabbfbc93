//! The audit log after the kills, read from its first entry to its last.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use firmesh_protocol::{
    api::AuditEntries,
    audit::{Entry, Event},
    ids::DeviceId,
    report::{AttemptState, PERMIT_TYPE, Permit},
    trust::{Envelope, KeySet},
};

use crate::{bench::control::node::rack_of, demo::world::World};

/// What stands in it.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) entries: u64,
    /// By sequence, as signed last.
    pub(super) permits: BTreeMap<u64, Permit>,
    pub(super) epochs: BTreeSet<u64>,
    /// Devices whose update ended well.
    pub(super) results: BTreeSet<DeviceId>,
    pub(super) used_twice: usize,
    pub(super) in_flight_max: usize,
}

impl Found {
    /// Whether a permit that a node has was given by this log.
    pub(super) fn has(&self, permit: &Permit) -> bool {
        let known = self.permits.get(&permit.sequence);
        known.is_some_and(|known| same(known, permit))
    }
}

/// Whether they are one permit; a new leader signs those of the one before again.
fn same(one: &Permit, other: &Permit) -> bool {
    let of_epoch = |permit: &Permit| Permit {
        epoch: 0,
        ..permit.clone()
    };
    of_epoch(one) == of_epoch(other)
}

/// Reads all of it.
pub(super) async fn read(world: &World) -> Result<Found> {
    let keys = KeySet::of("permits", 1, [world.about.permit_key.parse()?])?;
    let (mut found, mut epoch) = (Found::default(), 0);
    let mut under_way: BTreeMap<String, BTreeSet<DeviceId>> = BTreeMap::new();
    loop {
        let path = format!("/api/v1/audit/entries?from={}", found.entries);
        let page: AuditEntries = world.api.get(&path).await?;
        if page.items.is_empty() {
            return Ok(found);
        }
        found.entries += page.items.len() as u64;
        for logged in page.items {
            match Entry::from_bytes(logged.entry.as_bytes())?.event {
                Event::Permit { sequence, .. } => {
                    let document = BASE64.decode(logged.document.context("a permit has a document")?.as_bytes())?;
                    let permit = Envelope::from_bytes(&document)?
                        .open::<Permit>(&keys, PERMIT_TYPE)?
                        .into_inner();
                    ensure!(permit.sequence == sequence, "entry and permit differ: {permit:?}");
                    ensure!(permit.epoch >= epoch, "signed by one that led no more: {permit:?}");
                    epoch = permit.epoch;
                    found.epochs.insert(epoch);
                    match found.permits.get(&sequence) {
                        Some(known) if same(known, &permit) && permit.epoch > known.epoch => {}
                        Some(_) => found.used_twice += 1,
                        None => {
                            for device in &permit.devices {
                                let rack = under_way.entry(rack_of(device)).or_default();
                                rack.insert(device.clone());
                                found.in_flight_max = found.in_flight_max.max(rack.len());
                            }
                        }
                    }
                    found.permits.insert(sequence, permit);
                }
                Event::Result { device, state, .. } => {
                    ensure!(state == AttemptState::Success, "{device}: {state:?}");
                    under_way.entry(rack_of(&device)).or_default().remove(&device);
                    ensure!(found.results.insert(device.clone()), "{device} was updated twice");
                }
                _ => {}
            }
        }
    }
}
