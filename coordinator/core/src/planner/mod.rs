//! Planning: a pure function of the inventory, a campaign's draft, the releases and the time.
//!
//! Invariants: the same input gives the same bytes; every device that the selector matches stands in the plan exactly
//! once, in a wave or held with a reason; a rack gives each wave the same share of its devices (of those in the place the
//! wave is for), so that no wave is one rack's whole loss.

mod waves;

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::DeviceId,
    limits::{PLAN_DEVICES_MAX, WAVES_MAX},
    manifest::{
        CampaignManifest, HeldDevice, ManifestError, PLAN_SCHEMA, Plan, PlannedDevice, Release, ReleaseRef,
        Reversibility, Selector, Strategy,
    },
    time::WallTime,
};

use crate::fleet::{Inventory, KnownDevice, rack_of};

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
    #[error("the selector matches {0} devices, a campaign has at most {PLAN_DEVICES_MAX}: split it by place")]
    TooManyDevices(usize),
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
    let catalogue = Catalogue {
        new: resolve(&draft.releases, releases)?,
        previous: resolve(&draft.previous, releases)?,
        all: releases,
        executors: &draft.constraints.executors,
        one_way_accepted: draft.constraints.one_way_accepted,
    };
    catalogue.refuse_overlap()?;

    let matching: Vec<_> = inventory
        .devices
        .iter()
        .filter(|(id, device)| matches(&draft.selector, id, device))
        .collect();
    let unknown: Vec<_> = draft
        .selector
        .devices
        .iter()
        .filter(|id| !inventory.devices.contains_key(id))
        .collect();
    if matching.len() + unknown.len() > PLAN_DEVICES_MAX {
        return Err(PlanError::TooManyDevices(matching.len() + unknown.len()));
    }

    let (mut planned, mut nodes) = (Vec::new(), BTreeMap::new());
    let mut held: BTreeMap<DeviceId, String> = unknown
        .into_iter()
        .map(|id| {
            (
                id.clone(),
                "unknown: no node has reported a device of this name".to_owned(),
            )
        })
        .collect();
    for (id, device) in matching {
        let excluded = inventory
            .excluded
            .get(id)
            .map(|exclusion| exclusion.reason().to_owned());
        let may = excluded
            .map_or(Ok(()), Err)
            .and_then(|()| stands_in_order(&draft.strategy, device));
        match may.and_then(|()| catalogue.place(id, device)) {
            Ok(place) => {
                nodes.insert(place.node.clone(), device.node_key);
                planned.push((device.path.clone(), place));
            }
            Err(reason) => drop(held.insert(id.clone(), reason)),
        }
    }
    let waves = waves::of(planned, &draft.strategy);
    if waves.len() > WAVES_MAX {
        return Err(PlanError::TooManyWaves(waves.len()));
    }
    Ok(Plan {
        schema: PLAN_SCHEMA.to_owned(),
        campaign: draft.id.clone(),
        nodes,
        waves,
        held: held
            .into_iter()
            .map(|(device, reason)| HeldDevice { device, reason })
            .collect(),
    })
}

fn matches(selector: &Selector, id: &DeviceId, device: &KnownDevice) -> bool {
    let or_any = |empty: bool, hit: bool| empty || hit;
    or_any(
        selector.paths.is_empty(),
        selector.paths.iter().any(|path| device.path.is_within(path)),
    ) && or_any(
        selector.models.is_empty(),
        selector.models.contains(&device.facts.model),
    ) && or_any(selector.devices.is_empty(), selector.devices.contains(id))
}

/// A regional campaign is for the places it names, only.
fn stands_in_order(strategy: &Strategy, device: &KnownDevice) -> Result<(), String> {
    match strategy {
        Strategy::Regional { order, .. } if !order.iter().any(|place| device.path.is_within(place)) => Err(format!(
            "it stands at {}, in none of the places that the strategy goes through",
            device.path
        )),
        _ => Ok(()),
    }
}

fn resolve<'a>(wanted: &[ReleaseRef], releases: &'a [Release]) -> Result<Vec<&'a Release>, PlanError> {
    let find = |want: &ReleaseRef| {
        releases
            .iter()
            .find(|release| release.target == want.target && release.artifact.sha256 == want.sha256)
            .ok_or_else(|| PlanError::UnknownRelease {
                target: want.target.clone(),
                sha256: want.sha256,
            })
    };
    wanted.iter().map(find).collect()
}

/// The releases of one campaign, and all there are.
struct Catalogue<'a> {
    new: Vec<&'a Release>,
    previous: Vec<&'a Release>,
    all: &'a [Release],
    executors: &'a [String],
    one_way_accepted: bool,
}

impl Catalogue<'_> {
    fn refuse_overlap(&self) -> Result<(), PlanError> {
        for (at, first) in self.new.iter().enumerate() {
            for second in &self.new[at + 1..] {
                let (a, b) = (&first.info, &second.info);
                let shared = a.models.iter().find(|model| b.models.contains(model));
                if let Some(model) = shared.filter(|_| a.vendor == b.vendor && a.component == b.component) {
                    return Err(PlanError::TwoReleases {
                        first: first.target.clone(),
                        second: second.target.clone(),
                        vendor: a.vendor.clone(),
                        model: model.clone(),
                        component: a.component.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The device's place in the plan, or why it has none.
    fn place(&self, id: &DeviceId, device: &KnownDevice) -> Result<PlannedDevice, String> {
        let facts = &device.facts;
        let release = self.new.iter().find(|release| is_for(release, device)).ok_or_else(|| {
            format!(
                "no release of this campaign is for the {} of {} {}",
                facts.component, facts.vendor, facts.model
            )
        })?;
        let info = &release.info;
        if device.quarantined {
            return Err("quarantined: a person has to look at it and clear it first".to_owned());
        }
        if !device.node_reachable {
            return Err(format!(
                "deferred: its node {} has not been heard of lately",
                device.node
            ));
        }
        let Some(from) = &facts.version else {
            return Err(format!("deferred: it does not answer its node {}", device.node));
        };
        if *from == info.version {
            return Err(format!("current: it runs {from} already"));
        }
        if !self.executors.is_empty() && !self.executors.contains(&facts.executor) {
            return Err(format!(
                "its executor {} is not one of those the campaign allows: {}",
                facts.executor,
                brief_list(self.executors)
            ));
        }
        if info.reversibility == Reversibility::OneWay && !self.one_way_accepted {
            return Err(format!(
                "{} is one-way: say `one_way_accepted` in the campaign if there may be no way back",
                release.target
            ));
        }
        if !info.from_versions.is_empty() && !info.from_versions.contains(from) {
            return Err(format!(
                "it runs {from}, from which {} may not be installed (allowed: {})",
                info.version,
                brief_list(&info.from_versions)
            ));
        }
        let running = self
            .all
            .iter()
            .filter(|known| is_for(known, device) && known.info.version == *from);
        let floor = running.map(|known| known.info.security_epoch).max();
        if let Some(floor) = floor.filter(|floor| *floor > info.security_epoch) {
            return Err(format!(
                "it runs {from} of security epoch {floor}; {} has the lower epoch {}",
                info.version, info.security_epoch
            ));
        }
        Ok(PlannedDevice {
            device: id.clone(),
            node: device.node.clone(),
            rack: rack_of(&device.path),
            release: release.target.clone(),
            from_version: from.clone(),
            previous: self
                .way_back(release, device, from)
                .map(|release| release.target.clone()),
        })
    }

    /// What the device can go back to: nothing if the hardware or the security epoch forbids it.
    fn way_back(&self, release: &Release, device: &KnownDevice, from: &str) -> Option<&Release> {
        if release.info.reversibility == Reversibility::OneWay {
            return None;
        }
        let fits = |previous: &&&Release| {
            is_for(previous, device)
                && previous.info.version == from
                && previous.info.security_epoch >= release.info.security_epoch
        };
        self.previous.iter().find(fits).copied()
    }
}

fn is_for(release: &Release, device: &KnownDevice) -> bool {
    let (info, facts) = (&release.info, &device.facts);
    info.vendor == facts.vendor && info.component == facts.component && info.models.contains(&facts.model)
}

fn brief_list(versions: &[String]) -> String {
    let shown = versions.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if versions.len() > 5 {
        format!("{shown} and {} more", versions.len() - 5)
    } else {
        shown
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
