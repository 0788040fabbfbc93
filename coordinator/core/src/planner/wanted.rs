//! Whom a selector is for, and whom a plan looks at.

use std::collections::BTreeSet;

use firmesh_protocol::{
    ids::{DeviceId, TopologyPath},
    manifest::{CampaignManifest, Selector},
};

/// A selector, for asking it about many devices.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    selector: &'a Selector,
    named: BTreeSet<&'a DeviceId>,
}

impl<'a> Wanted<'a> {
    /// By this selector.
    pub(super) fn by(selector: &'a Selector) -> Self {
        let named = selector.devices.iter().collect();
        Self { selector, named }
    }

    /// The devices that it names, if it does.
    pub(super) fn named(&self) -> impl Iterator<Item = &'a DeviceId> {
        self.named.iter().copied()
    }

    /// Whether it is for a device of this model at this place.
    pub(super) fn has(&self, device: &DeviceId, model: &str, path: &TopologyPath) -> bool {
        let Selector { paths, models, .. } = self.selector;
        (self.named.is_empty() || self.named.contains(device))
            && (models.is_empty() || models.iter().any(|wanted| wanted == model))
            && (paths.is_empty() || paths.iter().any(|place| path.is_within(place)))
    }
}

/// Whom a plan looks at: an inventory of these, and of whoever shares a unit with one of them, gives the same plan as one of
/// everybody.
#[derive(Debug)]
pub struct Concerned<'a> {
    wanted: Wanted<'a>,
    /// Fault domains that are capped by a share are as large as all that is in them.
    everybody: bool,
}

impl<'a> Concerned<'a> {
    /// By a campaign of this manifest.
    #[must_use]
    pub fn by(manifest: &'a CampaignManifest) -> Self {
        Self {
            wanted: Wanted::by(&manifest.selector),
            everybody: !manifest.caps.domains.is_empty(),
        }
    }

    /// Whether the plan depends on a device of this model at this place.
    #[must_use]
    pub fn has(&self, device: &DeviceId, model: &str, path: &TopologyPath) -> bool {
        // Named, and not to be had for another reason: nobody is to be told that it is unknown.
        self.everybody || self.wanted.has(device, model, path) || self.wanted.named.contains(device)
    }
}
