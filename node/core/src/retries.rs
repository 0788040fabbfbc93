//! Whether a device whose update has failed may be begun again: by this node's own records, and by what approvers signed.
//!
//! Invariant: an attempt counts once, however often its end is kept; a permit starts a device once, and only if it was issued
//! for its next attempt: one that was issued before the coordinator heard of the last failure is for that one.

use std::collections::BTreeMap;

use firmesh_protocol::{
    ids::DeviceId,
    report::{AttemptState, FailureClass, Permit, PermitKind},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use crate::approved::ApprovedCampaign;

/// The updates of one device in one campaign that have ended here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tries {
    /// How many.
    pub ended: u32,
    /// The permit of the last one.
    pub permit: u64,
    /// How that one ended.
    pub state: AttemptState,
    /// In which way it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureClass>,
    /// When, by this node's clock.
    pub at: WallTime,
}

impl Tries {
    /// Counts an attempt that has ended now, unless it was counted before.
    #[must_use]
    pub fn counted(
        before: Option<&Self>,
        permit: u64,
        state: AttemptState,
        failure: Option<FailureClass>,
        at: WallTime,
    ) -> Self {
        match before {
            Some(before) if before.permit >= permit => before.clone(),
            before => Self {
                ended: before.map_or(0, |before| before.ended).saturating_add(1),
                permit,
                state,
                failure,
                at,
            },
        }
    }
}

/// From when on a permit may start a device whose update has ended before; nothing if it may not, whatever time it is. `tries`
/// are those of all devices of this node in the campaign: of the budget of a wave, a node sees its own share.
#[must_use]
pub fn may_start_again(
    campaign: &ApprovedCampaign,
    permit: &Permit,
    device: &DeviceId,
    tries: &BTreeMap<DeviceId, Tries>,
) -> Option<WallTime> {
    let manifest = &campaign.manifest;
    let is_next = |last: &&Tries| permit.sequence > last.permit && permit.attempt == last.ended.saturating_add(1);
    let last = tries.get(device).filter(is_next)?;
    let wave = campaign.plan.waves.get(permit.wave as usize)?;
    let pause_of = |device: &DeviceId, tries: &Tries| {
        let planned = wave.iter().find(|planned| planned.device == *device)?;
        manifest.retry_pause(planned.previous.is_some(), tries.state, tries.failure, tries.ended)
    };
    let is_update = permit.kind == PermitKind::Update && manifest.retries.is_some();
    let pause = pause_of(device, last).filter(|_| is_update)?;
    let budget = manifest.retry_budget(wave.len());
    // Most devices have ended well the first time, and nobody has to look for their place.
    let may_be_unlucky = |(_, tries): &(&DeviceId, &Tries)| tries.ended > 1 || !tries.state.is_success();
    let is_unlucky = |(device, tries): &(&DeviceId, &Tries)| {
        let stands_here = wave.iter().any(|planned| planned.device == **device);
        stands_here && (tries.ended > 1 || pause_of(device, tries).is_some())
    };
    let unlucky = tries.iter().filter(may_be_unlucky).filter(is_unlucky).take(budget + 1);
    (unlucky.count() <= budget).then(|| last.at + pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_kept_twice_is_counted_once() {
        let at = WallTime::from_unix_seconds;
        let failed = |before: Option<&Tries>, permit, when| {
            Tries::counted(
                before,
                permit,
                AttemptState::Failed,
                Some(FailureClass::Install),
                at(when),
            )
        };
        let first = failed(None, 7, 100);
        assert_eq!((first.ended, first.at), (1, at(100)));
        assert_eq!(failed(Some(&first), 7, 500), first);
        let second = failed(Some(&first), 9, 900);
        assert_eq!((second.ended, second.permit), (2, 9));
        let text = serde_json::to_vec(&second).unwrap();
        assert_eq!(serde_json::from_slice::<Tries>(&text).unwrap(), second);
    }
}
