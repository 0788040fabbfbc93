//! Late joiners: devices that a campaign would be for and that its plan does not know.
//!
//! What approvers signed is a list of devices, so nobody joins a running campaign by appearing: a late device waits for an
//! edition that names it, under the same caps.

use firmesh_protocol::{
    ids::{DeviceId, TopologyPath},
    manifest::CampaignManifest,
};

use super::Wanted;
use crate::fleet::Inventory;

/// A device as far as a selector looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// Its model.
    pub model: &'a str,
    /// Where its node stands.
    pub path: &'a TopologyPath,
}

impl Inventory {
    /// All devices, as far as selectors look at them.
    pub fn standing(&self) -> impl Iterator<Item = Standing<'_>> {
        self.devices.iter().map(|(device, known)| Standing {
            device,
            model: &known.facts.model,
            path: &known.path,
        })
    }
}

/// Those of the fleet that match a campaign's selector and that its plan does not name, in the order of the fleet.
#[must_use]
pub fn late<'a>(
    fleet: impl Iterator<Item = Standing<'a>>,
    manifest: &CampaignManifest,
    is_named: impl Fn(&DeviceId) -> bool,
) -> Vec<Standing<'a>> {
    let wanted = Wanted::by(&manifest.selector);
    let is_late = |standing: &Standing<'a>| {
        wanted.has(standing.device, standing.model, standing.path) && !is_named(standing.device)
    };
    fleet.filter(is_late).collect()
}
