//! What has to cross the wires for each wave: an image once over the WAN into each site, once into each rack, and nowhere
//! that a node has proven to hold it.
//!
//! This is what the mesh plans, times what it was measured to carry beyond that; it is not measured.

use std::collections::BTreeSet;

use firmesh_protocol::{
    ids::{ArtifactId, TopologyPath},
    manifest::PlannedDevice,
    rehearsal::Wires,
};

use super::RehearsalFacts;

/// Bytes that leave the origin, or enter a rack, for 10,000 bytes of images: 1.06, as `firmesh-lab bench mesh` has measured
/// it on most networks.
pub(super) const WIRE_PER_10000: u32 = 10_600;

/// Segments of a path that name its site: `region/site`.
const SITE_LEVELS: usize = 2;

/// The site of a rack or a node.
pub(super) fn site_of(path: &TopologyPath) -> TopologyPath {
    path.prefix(SITE_LEVELS)
}

/// By wave.
pub(super) fn wires(facts: &RehearsalFacts) -> Vec<Wires> {
    let held = || facts.held.iter();
    let mut sites: BTreeSet<(TopologyPath, ArtifactId)> = held().map(|(path, id)| (site_of(path), *id)).collect();
    let mut racks: BTreeSet<_> = held().map(|(path, id)| (crate::rack_of(path), *id)).collect();
    let wave = |planned: &Vec<PlannedDevice>| {
        let mut wires = Wires::default();
        for place in planned {
            for image in place.targets().filter_map(|target| facts.images.get(target)) {
                let bytes = u128::from(image.length) * u128::from(WIRE_PER_10000) / 10_000;
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                let site = site_of(&place.rack);
                if sites.insert((site.clone(), image.id)) {
                    *wires.sites.entry(site).or_default() += bytes;
                }
                if racks.insert((place.rack.clone(), image.id)) {
                    *wires.racks.entry(place.rack.clone()).or_default() += bytes;
                }
            }
        }
        wires
    };
    facts.plan.waves.iter().map(wave).collect()
}
