//! May the devices of a permit be begun again? By what nodes have signed, and by what approvers have.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::successors,
};

use firmesh_protocol::{
    ids::DeviceId,
    manifest::{CampaignManifest, Plan, PlannedDevice, RetryBudget},
    report::{AttemptState, FailureClass, Permit, PermitKind},
};

/// An update that has ended, by its node's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The last permit before the end.
    pub permit: u64,
    /// How.
    pub state: AttemptState,
    /// In which way it failed.
    pub failure: Option<FailureClass>,
    /// When the report came, in seconds on the coordinator's clock.
    pub at_s: u64,
}

/// A day: no pause is longer.
const DAY_S: u64 = 86_400;

/// What is wrong with an update permit for devices of which some have been at it before, when so many seconds have gone by.
#[must_use]
pub fn again(
    permit: &Permit,
    plan: &Plan,
    manifest: &CampaignManifest,
    ended: &BTreeMap<DeviceId, Vec<Ended>>,
    now_s: u64,
) -> Vec<String> {
    if permit.kind != PermitKind::Update {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let attempts: BTreeSet<_> = permit
        .devices
        .iter()
        .map(|id| 1 + ended.get(id).map_or(0, Vec::len))
        .collect();
    if attempts.iter().any(|attempt| *attempt != permit.attempt as usize) {
        wrong.push(format!(
            "permit {} is for attempt {}, its devices are at {attempts:?}",
            permit.sequence, permit.attempt
        ));
    }
    let wave = || plan.waves.get(permit.wave as usize).into_iter().flatten();
    for id in &permit.devices {
        let Some(ends) = ended.get(id).filter(|ends| !ends.is_empty()) else {
            continue;
        };
        let has_way_back = wave().any(|planned| planned.device == *id && planned.previous.is_some());
        if !has_way_back {
            wrong.push(format!("{id} is begun again and has no way back"));
        }
        let last = &ends[ends.len() - 1];
        match rest_s(manifest, last, ends.len()) {
            None => wrong.push(format!(
                "{id} is begun again after {} attempts, the last of which ended {} ({:?})",
                ends.len(),
                last.state,
                last.failure
            )),
            Some(rest_s) if last.at_s + rest_s > now_s => wrong.push(format!(
                "{id} is begun again {} s after its failure, {rest_s} s are asked for",
                now_s - last.at_s
            )),
            Some(_) => {}
        }
    }
    // Whoever has failed in a way that is forgiven, once or often, takes one of the budget.
    let is_forgiven = |planned: &&PlannedDevice| {
        let ends = ended.get(&planned.device).map_or(&[][..], Vec::as_slice);
        let mut heads = (1..=ends.len()).map(|count| (count, &ends[count - 1]));
        planned.previous.is_some() && heads.any(|(count, end)| rest_s(manifest, end, count).is_some())
    };
    let (forgiven, all) = (wave().filter(is_forgiven).count(), wave().count());
    let budget = match manifest.retries.as_ref().map(|retries| retries.budget) {
        None => 0,
        Some(RetryBudget::Count(count)) => count as usize,
        Some(RetryBudget::Share(share)) => (all * share.get() as usize).div_ceil(10_000),
    };
    if permit.attempt > 1 && forgiven > budget {
        wrong.push(format!(
            "{forgiven} devices of wave {} have failed, and no more than {budget} of them may be begun again",
            permit.wave
        ));
    }
    wrong
}

/// For how long a device rests after its so-manieth attempt has ended like this; nothing if that was its last one.
fn rest_s(manifest: &CampaignManifest, end: &Ended, count: usize) -> Option<u64> {
    let is_known = matches!(
        end.state,
        AttemptState::Failed | AttemptState::RolledBack | AttemptState::TimedOut
    );
    let class = end.failure.filter(|_| is_known)?;
    let rule = manifest
        .retries
        .iter()
        .flat_map(|retries| &retries.rules)
        .find(|rule| rule.class == class)?;
    let mut pauses = successors(Some(u64::from(rule.pause_s)), |pause| Some((pause * 2).min(DAY_S)));
    pauses
        .nth(count.checked_sub(1)?)
        .filter(|_| count <= rule.times as usize)
}
