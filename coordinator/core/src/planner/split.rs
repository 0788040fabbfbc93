//! Splitting: a campaign for more devices than one may have becomes several, each for places of its own.
//!
//! Invariants: the children's places cover every device that the campaign's selector matches, and none twice; no child has
//! more devices than a campaign may have; the same fleet gives the same children. Caps bind over all of them together, as over
//! any campaigns.

use std::collections::{BTreeMap, BTreeSet};

use firmesh_protocol::{
    ids::{CampaignId, NameError, TopologyPath},
    limits::PLAN_DEVICES_MAX,
    manifest::{CampaignManifest, Selector, Strategy},
};

use super::{Wanted, matching};
use crate::fleet::Inventory;

/// Why a campaign cannot be split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// One place has too many devices by itself.
    #[error("{place} alone has {devices} devices, a campaign has at most {PLAN_DEVICES_MAX}: name models or devices")]
    Place {
        /// The place, which no other is inside of.
        place: TopologyPath,
        /// Its devices.
        devices: usize,
    },
    /// The campaign's name leaves no room for a number.
    #[error("the campaign needs a shorter name, to which the number of each part is added")]
    Name(#[from] NameError),
}

/// A place and what is in it.
struct Place<'a> {
    path: TopologyPath,
    /// Where devices stand, with how many: sorted, so that what is inside one place stands side by side.
    nodes: &'a [(&'a TopologyPath, usize)],
}

impl Place<'_> {
    fn devices(&self) -> usize {
        self.nodes.iter().map(|(_, devices)| devices).sum()
    }
}

/// The campaign itself if it is small enough, or else the drafts of its parts, in the order of their places. A draft's plan is
/// made from it like any other.
pub fn split(inventory: &Inventory, draft: &CampaignManifest) -> Result<Vec<CampaignManifest>, SplitError> {
    let wanted = Wanted::by(&draft.selector);
    let mut standing: BTreeMap<&TopologyPath, usize> = BTreeMap::new();
    let mut at_nodes = BTreeMap::new();
    for (_, device) in matching(inventory, &wanted) {
        let (_, devices) = at_nodes.entry(&device.node).or_insert((&device.path, 0_usize));
        *devices += 1;
    }
    for (path, devices) in at_nodes.into_values() {
        *standing.entry(path).or_default() += devices;
    }
    let nodes: Vec<_> = standing.into_iter().collect();
    let total: usize = nodes.iter().map(|(_, devices)| devices).sum();
    if total <= PLAN_DEVICES_MAX {
        return Ok(vec![draft.clone()]);
    }
    let mut places = Vec::new();
    for region in groups(&nodes, 1) {
        divide(region, &mut places)?;
    }
    let mut parts: Vec<(usize, Vec<TopologyPath>)> = Vec::new();
    for place in places {
        let devices = place.devices();
        match parts.last_mut() {
            Some((sum, paths)) if *sum + devices <= PLAN_DEVICES_MAX => {
                *sum += devices;
                paths.extend(narrowed(&place.path, &draft.selector));
            }
            _ => parts.push((devices, narrowed(&place.path, &draft.selector))),
        }
    }
    let part = |(number, (_, paths)): (usize, (usize, Vec<TopologyPath>))| {
        Ok(CampaignManifest {
            id: CampaignId::new(format!("{}-{}", draft.id, number + 1))?,
            sequence: draft.sequence.saturating_add(number as u64),
            strategy: strategy(&draft.strategy, &paths),
            selector: Selector {
                paths,
                ..draft.selector.clone()
            },
            ..draft.clone()
        })
    };
    parts.into_iter().enumerate().map(part).collect()
}

/// What of a place the selector is for.
fn narrowed(place: &TopologyPath, selector: &Selector) -> Vec<TopologyPath> {
    let is_whole = selector.paths.is_empty() || selector.paths.iter().any(|path| place.is_within(path));
    if is_whole {
        return vec![place.clone()];
    }
    let inside = selector.paths.iter().filter(|path| path.is_within(place));
    inside.cloned().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Those that share so many levels of their place; whoever stands higher up stands alone.
fn groups<'a>(nodes: &'a [(&'a TopologyPath, usize)], levels: usize) -> impl Iterator<Item = Place<'a>> {
    let shares = move |a: &(&TopologyPath, usize), b: &(&TopologyPath, usize)| a.0.prefix(levels) == b.0.prefix(levels);
    nodes.chunk_by(shares).map(move |nodes| Place {
        path: nodes[0].0.prefix(levels),
        nodes,
    })
}

/// The largest places that are small enough.
fn divide<'a>(place: Place<'a>, into: &mut Vec<Place<'a>>) -> Result<(), SplitError> {
    let devices = place.devices();
    if devices <= PLAN_DEVICES_MAX {
        into.push(place);
        return Ok(());
    }
    let levels = place.path.depth() + 1;
    // A node that stands at the place itself could not be told from what is below it.
    if place.nodes.iter().any(|(path, _)| path.depth() < levels) {
        return Err(SplitError::Place {
            place: place.path,
            devices,
        });
    }
    groups(place.nodes, levels).try_for_each(|inner| divide(inner, into))
}

/// A regional campaign goes only through the places that its part has to do with.
fn strategy(strategy: &Strategy, paths: &[TopologyPath]) -> Strategy {
    match strategy {
        Strategy::Regional { order, shares } => {
            let is_here = |place: &&TopologyPath| {
                let mut paths = paths.iter();
                paths.any(|path| path.is_within(place) || place.is_within(path))
            };
            let here: Vec<_> = order.iter().filter(is_here).cloned().collect();
            Strategy::Regional {
                // Devices elsewhere are held: by the plan, each with its reason.
                order: if here.is_empty() { order.clone() } else { here },
                shares: shares.clone(),
            }
        }
        other => other.clone(),
    }
}
