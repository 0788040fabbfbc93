//! Ways over other releases: whether every step may follow the one before it.

use std::cmp::Ordering;

use firmesh_protocol::manifest::{CampaignManifest, PlannedDevice, Release, ReleaseInfo, Reversibility};

use crate::fleet::{Inventory, KnownDevice};

/// The releases that are installed on a device, one after the other, as far as they are known. What is wrong with them is said
/// to `must`.
pub(super) fn way<'a>(
    planned: &PlannedDevice,
    release: &'a Release,
    manifest: &CampaignManifest,
    find: &dyn Fn(&str) -> Option<&'a Release>,
    known: &KnownDevice,
    inventory: &Inventory,
    must: &mut dyn FnMut(bool, &str),
) -> Vec<&'a Release> {
    let mut way = Vec::with_capacity(planned.hops.len() + 1);
    for target in &planned.hops {
        let hop = find(target);
        let is_pinned = |hop: &Release| {
            let mut pins = manifest.hops.iter();
            pins.any(|pin| pin.target == hop.target && pin.sha256 == hop.artifact.sha256)
        };
        must(
            hop.is_some_and(is_pinned),
            "goes over a release that the manifest does not pin for that",
        );
        let Some(hop) = hop else { continue };
        let (info, facts) = (&hop.info, &known.facts);
        must(
            (&info.vendor, &info.component) == (&facts.vendor, &facts.component) && info.models.contains(&facts.model),
            "goes over a release for other devices",
        );
        must(
            !inventory.revoked.contains(&hop.artifact.sha256),
            "goes over a release that was revoked",
        );
        way.push(hop);
    }
    way.push(release);
    let mut from = (&planned.from_version, 0);
    for step in &way {
        let info = &step.info;
        if let Some(why) = refusal(info, from.0) {
            must(false, why);
        }
        must(
            info.security_epoch >= from.1,
            "goes to a lower security epoch on its way",
        );
        must(
            info.reversibility != Reversibility::OneWay || manifest.constraints.one_way_accepted,
            "goes through a one-way release that nobody has accepted",
        );
        from = (&info.version, info.security_epoch);
    }
    // Nothing stands in its way that could be left out.
    let versions = [&planned.from_version]
        .into_iter()
        .chain(way.iter().map(|step| &step.info.version));
    for (at, version) in versions.enumerate() {
        let mut later = way.iter().skip(at + 1);
        must(
            later.all(|step| refusal(&step.info, version).is_some()),
            "goes over a release that it does not need to",
        );
    }
    let takes = u64::from(manifest.deadlines.attempt_s) * way.len() as u64;
    let windows = &manifest.constraints.windows;
    must(
        windows.is_empty() || windows.iter().any(|window| u64::from(window.duration_s) >= takes),
        "has a way that no window is long enough for",
    );
    way
}

/// Why a release may not be installed on a device that runs this version.
fn refusal(info: &ReleaseInfo, from: &String) -> Option<&'static str> {
    if !(info.from_versions.is_empty() || info.from_versions.contains(from)) {
        return Some("comes from a version the release does not allow");
    }
    let is_before = |least: &String| match &info.version_scheme {
        Some(scheme) => !matches!(scheme.compare(least, from), Some(Ordering::Less | Ordering::Equal)),
        None => true,
    };
    (info.min_from.as_ref().is_some_and(is_before))
        .then_some("comes from a version before the first that the release allows")
}
