//! Planning: a pure function of the inventory, a campaign's draft, the releases and the time.
//!
//! Invariants: the same input gives the same bytes; every device that the selector matches stands in the plan exactly
//! once, in a wave or held with a reason; a rack gives each wave the same share of its devices (of those in the place the
//! wave is for), so that no wave is one rack's whole loss; the devices of a unit stand in one wave, in the order of their
//! updates.

mod catalogue;
mod domains;
mod late;
mod servers;
mod split;
mod units;
mod wanted;
mod waves;

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::{DeviceId, TopologyPath},
    limits::{PLAN_DEVICES_MAX, SERVER_COMPONENTS_MAX, SERVERS_MAX, WAVES_MAX},
    manifest::{
        CampaignKind, CampaignManifest, Dimension, HeldDevice, ManifestError, PLAN_SCHEMA, Plan, Release, Strategy,
    },
    time::WallTime,
};

use self::{
    catalogue::{Catalogue, Left},
    domains::Domains,
    servers::Servers,
    units::Ordering,
};
use crate::{
    campaign::bounded,
    fleet::{Inventory, KnownDevice, rack_of},
};

pub use late::{Standing, late};
pub use split::{SplitError, split};
pub use wanted::Concerned;
use wanted::Wanted;

/// Why a draft cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The draft breaks its own rules.
    #[error("the draft is not a valid campaign")]
    Draft(#[from] ManifestError),
    /// The draft is over before it begins.
    #[error("the campaign expires at {expires}, it is {now} already: give it a later `expires`")]
    Expired {
        /// When the campaign expires.
        expires: WallTime,
        /// When it was planned.
        now: WallTime,
    },
    /// A release that is not published.
    #[error("{target} with SHA-256 {sha256} is not a published release: publish it first, or name one that is")]
    UnknownRelease {
        /// The target named.
        target: String,
        /// The digest named.
        sha256: firmesh_protocol::ids::Sha256,
    },
    /// A release that was stopped for good.
    #[error("{target} was revoked: name another release")]
    Revoked {
        /// The target named.
        target: String,
    },
    /// Two releases claim the same devices.
    #[error(
        "{first} and {second} are both for the {component} of {vendor} {model}: a campaign has one release for each"
    )]
    TwoReleases {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// The vendor of both.
        vendor: String,
        /// The model of both.
        model: String,
        /// The component of both.
        component: String,
    },
    /// More devices than one campaign may have.
    #[error(
        "the selector matches {0} devices, a campaign has at most {PLAN_DEVICES_MAX}: split it by place with `campaign split`"
    )]
    TooManyDevices(usize),
    /// More servers than one campaign may have.
    #[error(
        "the selector matches {0} servers, a provisioning campaign has at most {SERVERS_MAX}: name fewer places, or fewer devices"
    )]
    TooManyServers(usize),
    /// A server of more components than there are.
    #[error(
        "{0} has more than {SERVER_COMPONENTS_MAX} components that the campaign is for: is its label `unit` one server's?"
    )]
    TooManyComponents(String),
    /// More waves than one campaign may have.
    #[error(
        "the strategy cuts its devices into {0} waves, a campaign has at most {WAVES_MAX}: make its batches larger"
    )]
    TooManyWaves(usize),
}

/// Plans `draft` for the devices in `inventory`. `releases` are all published releases; the draft's `plan_sha256` is
/// not looked at.
pub fn plan(
    inventory: &Inventory,
    draft: &CampaignManifest,
    releases: &[Release],
    now: WallTime,
) -> Result<Plan, PlanError> {
    draft.check()?;
    if draft.expires <= now {
        return Err(PlanError::Expired {
            expires: draft.expires,
            now,
        });
    }
    let catalogue = Catalogue::new(draft, releases, &inventory.revoked)?;
    let wanted = Wanted::by(&draft.selector);
    let matching: Vec<_> = matching(inventory, &wanted).collect();
    let unknown: Vec<_> = wanted
        .named()
        .filter(|id| !inventory.devices.contains_key(*id))
        .collect();
    if matching.len() + unknown.len() > PLAN_DEVICES_MAX {
        return Err(PlanError::TooManyDevices(matching.len() + unknown.len()));
    }

    let mut held: BTreeMap<DeviceId, String> = unknown
        .into_iter()
        .map(|id| {
            (
                id.clone(),
                "unknown: no node has reported a device of this name".to_owned(),
            )
        })
        .collect();
    let domains = Domains::count(inventory, &draft.caps);
    let mut candidates = Vec::with_capacity(matching.len());
    let mut servers = Servers::new(draft.kind);
    for (id, device) in matching {
        let excluded = inventory
            .excluded
            .get(id)
            .map(|exclusion| exclusion.reason().to_owned());
        let may = excluded
            .map_or(Ok(()), Err)
            .and_then(|()| stands_in_order(&draft.strategy, device))
            .map_err(Left::Preflight);
        let place = may.and_then(|()| catalogue.place(device)).and_then(|candidate| {
            let problem = domains.problem(&candidate.planned);
            problem.map_or(Ok(candidate), |reason| Err(Left::Preflight(reason)))
        });
        servers.see(id, device, catalogue.release(device), &place);
        match place {
            Ok(candidate) => candidates.push(candidate),
            Err(left) => drop(held.insert(id.clone(), left.reason().to_owned())),
        }
    }
    let ordering = Ordering {
        sequences: &draft.constraints.sequence,
        kind: draft.kind,
    };
    let arranged = units::arrange(candidates, inventory, ordering, &mut held);
    let arranged = match draft.kind {
        CampaignKind::Update => arranged,
        CampaignKind::Provisioning => servers.keep_whole(arranged, inventory, &mut held),
    };
    let mut nodes = BTreeMap::new();
    let mut planned = Vec::with_capacity(arranged.len());
    for together in arranged {
        let Some(first) = together.first() else {
            continue;
        };
        let device = first.device;
        if let Strategy::BlueGreen { by, .. } = &draft.strategy
            && together
                .iter()
                .any(|other| pool_of(by, other.device) != pool_of(by, device))
        {
            let reason = "its unit is in both pools: give all of it one";
            held.extend(together.into_iter().map(|one| (one.planned.device, reason.to_owned())));
            continue;
        }
        if !nodes.contains_key(&device.node) {
            nodes.insert(device.node.clone(), device.node_key);
        }
        planned.push((
            &device.path,
            together
                .into_iter()
                .map(|candidate| candidate.planned)
                .collect::<Vec<_>>(),
        ));
    }
    let servers = servers.listed(&planned, &held, ordering)?;
    let waves = waves::of(planned, &draft.strategy);
    if waves.len() > WAVES_MAX {
        return Err(PlanError::TooManyWaves(waves.len()));
    }
    Ok(Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign: draft.id.clone(),
        domains: domains.of(&waves),
        nodes,
        waves,
        servers,
        held: held
            .into_iter()
            .map(|(device, reason)| HeldDevice {
                device,
                reason: bounded(&reason),
            })
            .collect(),
    })
}

/// The devices that a selector is for, in the order of their names.
fn matching<'a>(
    inventory: &'a Inventory,
    wanted: &'a Wanted<'a>,
) -> impl Iterator<Item = (&'a DeviceId, &'a KnownDevice)> {
    let devices = inventory.devices.iter();
    devices.filter(|(id, device)| wanted.has(id, &device.facts.model, &device.path))
}

/// A regional campaign is for the places it names only, a blue-green one for its pools.
fn stands_in_order(strategy: &Strategy, device: &KnownDevice) -> Result<(), String> {
    match strategy {
        Strategy::Regional { order, .. } if !order.iter().any(|place| device.path.is_within(place)) => Err(format!(
            "it stands at {}, in none of the places that the strategy goes through",
            device.path
        )),
        Strategy::BlueGreen { by, order, .. } => match pool_of(by, device) {
            Some(pool) if order.contains(&pool) => Ok(()),
            Some(pool) => Err(format!("it is in the {by} {pool}, which is none of the two pools")),
            None => Err(format!("it is in no pool: it has no {by}")),
        },
        _ => Ok(()),
    }
}

/// The pool of a device, in a blue-green campaign.
fn pool_of(by: &Dimension, device: &KnownDevice) -> Option<TopologyPath> {
    by.domain(&rack_of(&device.path), &device.facts.labels)
}

#[cfg(test)]
mod domain_tests;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hop_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
pub(crate) mod unit_tests;
