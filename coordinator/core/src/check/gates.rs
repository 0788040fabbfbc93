//! May the wave of a permit be open, by what its campaign's gates have said?

use firmesh_protocol::{
    api::GateVerdict,
    manifest::{CampaignManifest, Strategy},
    report::{Permit, PermitKind},
};

/// What is wrong with an update permit, when the gates of the waves that were opened say this, in their order.
#[must_use]
pub fn gates(permit: &Permit, manifest: &CampaignManifest, verdicts: &[GateVerdict]) -> Vec<String> {
    if permit.kind != PermitKind::Update {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let at_once = match &manifest.strategy {
        Strategy::Rolling {
            max_concurrent_batches, ..
        } => *max_concurrent_batches as usize,
        _ => 1,
    };
    let wave = permit.wave as usize;
    if wave >= verdicts.len() {
        wrong.push(format!("wave {wave} was not opened"));
    }
    for (number, verdict) in verdicts.iter().enumerate() {
        if *verdict == GateVerdict::Fail {
            wrong.push(format!(
                "devices of wave {wave} may start although wave {number} failed"
            ));
        }
        if number + at_once <= wave && *verdict != GateVerdict::Pass {
            wrong.push(format!(
                "devices of wave {wave} may start before wave {number} has passed: {verdict:?}"
            ));
        }
    }
    let open = verdicts.iter().filter(|verdict| **verdict != GateVerdict::Pass).count();
    if open > at_once {
        wrong.push(format!("{open} waves are open that have not passed, {at_once} may be"));
    }
    wrong
}
