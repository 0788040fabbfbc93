//! From the drift of a baseline to the draft of a campaign. Pure: who has drifted and what is published go in, a manifest that
//! is not planned yet comes out.
//!
//! Invariants: a draft is all that is ever made; it names devices, and each of them has drifted; of one baseline there is
//! at most one campaign at a time; a draft that somebody removed is not proposed again by itself, until other devices
//! or releases are concerned.

use std::{collections::BTreeSet, time::Duration};

use firmesh_protocol::{
    api::{DriftState, DriftView, Reconciliation},
    ids::{CampaignId, DeviceId, GroupId, NameError, Sha256},
    manifest::{CampaignManifest, MANIFEST_SCHEMA, Release, ReleaseRef, Selector},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use crate::records::Record;

/// Devices of one draft, so that its manifest stays within bounds; the others are taken up by the next.
pub(crate) const DEVICES_MAX: usize = 10_000;

/// Releases to go back to, at most: as many as a manifest names.
const PREVIOUS_MAX: usize = 1_000;

/// A draft is good for so long, if the rules do not say.
const VALID_S: u32 = 7 * 86_400;

/// A baseline's name in that of a campaign, so that there is room for any number; longer ones are cut.
const NAME_BYTES: usize = 38;

/// What was drafted last for a baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReconcileRecord {
    /// The campaign.
    pub(crate) campaign: CampaignId,
    /// Counts the drafts of the baseline.
    pub(crate) number: u64,
    /// Names what it was about: devices with their releases.
    pub(crate) about: Sha256,
}

impl Record for ReconcileRecord {
    const KIND: &'static str = "reconcile";
    const COUNT_MAX: i64 = 1_000;
}

/// How the campaign that was drafted last stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// There was none.
    None,
    /// It waits for its approvers.
    Waits,
    /// It is signed and not over.
    Runs,
    /// It is over.
    Over,
    /// Somebody has removed it before it was signed.
    Removed,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A draft is made.
    Draft,
    /// Nothing.
    Rest(&'static str),
}

/// Decides. `is_same`: the draft would be about what the last one was about; `is_asked`: a person wants it now.
pub(crate) fn step(last: Last, drifted: usize, is_same: bool, is_asked: bool) -> Step {
    match last {
        Last::Waits => Step::Rest("a draft waits for its approvers"),
        Last::Runs => Step::Rest("the campaign for the baseline is not over"),
        _ if drifted == 0 => Step::Rest("no device is to be brought back"),
        Last::Removed if is_same && !is_asked => {
            Step::Rest("a draft for the same devices was removed: it is made again when somebody asks for it")
        }
        Last::None | Last::Over | Last::Removed => Step::Draft,
    }
}

/// What is wrong with rules, if they are not as they should be. The rest is checked with the manifest.
pub(crate) fn problem(rules: &Reconciliation) -> Option<String> {
    let within = |field: &str, value: Option<u32>, bounds: std::ops::RangeInclusive<u32>| {
        let is_wrong = value.is_some_and(|value| !bounds.contains(&value));
        is_wrong.then(|| {
            format!(
                "reconcile.{field} must be {} to {} seconds",
                bounds.start(),
                bounds.end()
            )
        })
    };
    within("valid_s", rules.valid_s, 3_600..=90 * 86_400).or_else(|| within("every_s", rules.every_s, 60..=30 * 86_400))
}

/// Those who are brought back, in order.
pub(crate) fn wanted<'a>(views: &'a [DriftView], rules: &Reconciliation) -> Vec<&'a DriftView> {
    let is_wanted = |view: &&DriftView| match view.state {
        DriftState::Behind => true,
        DriftState::Ahead => rules.ahead,
        DriftState::Compliant | DriftState::Unknown | DriftState::NotCovered => false,
    };
    views.iter().filter(is_wanted).take(DEVICES_MAX).collect()
}

/// Names what a draft would be about.
pub(crate) fn about(wanted: &[&DriftView]) -> Sha256 {
    let of = |view: &&DriftView| (view.device.clone(), view.release.clone());
    let about: Vec<(DeviceId, Option<String>)> = wanted.iter().map(of).collect();
    Sha256::of(&serde_json::to_vec(&about).expect("names always encode"))
}

/// What the campaign of this number is called.
pub(crate) fn name(baseline: &GroupId, number: u64) -> Result<CampaignId, NameError> {
    let text = baseline.as_str();
    let name = match text.len() {
        0..=NAME_BYTES => text.to_owned(),
        _ => {
            let digest = Sha256::of(text.as_bytes()).to_string();
            format!("{}-{}", text.get(..NAME_BYTES - 9).unwrap_or("baseline"), &digest[..8])
        }
    };
    CampaignId::new(format!("{name}-heal-{number}"))
}

/// What surrounds a draft.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// One more than that of every known campaign.
    pub(crate) sequence: u64,
    pub(crate) permit_key: String,
    pub(crate) now: WallTime,
}

/// The manifest, not planned yet. `releases`: all that are published.
pub(crate) fn manifest(
    id: CampaignId,
    wanted: &[&DriftView],
    releases: &[Release],
    rules: &Reconciliation,
    surroundings: Surroundings,
) -> CampaignManifest {
    let pin = |release: &Release| ReleaseRef {
        target: release.target.clone(),
        sha256: release.artifact.sha256,
    };
    let targets: BTreeSet<_> = wanted.iter().filter_map(|view| view.release.as_deref()).collect();
    let new: Vec<_> = releases
        .iter()
        .filter(|release| targets.contains(release.target.as_str()))
        .collect();
    // What a device runs is what it goes back to, where it is published.
    let runs: BTreeSet<_> = wanted.iter().filter_map(|view| view.version.as_deref()).collect();
    let is_before = |release: &&Release| {
        let info = &release.info;
        let shares = |new: &&Release| {
            let same = new.info.vendor == info.vendor && new.info.component == info.component;
            same && new.info.models.iter().any(|model| info.models.contains(model))
        };
        runs.contains(info.version.as_str()) && new.iter().any(shares)
    };
    CampaignManifest {
        schema: MANIFEST_SCHEMA.to_owned(),
        id,
        sequence: surroundings.sequence,
        expires: surroundings.now + Duration::from_secs(u64::from(rules.valid_s.unwrap_or(VALID_S))),
        releases: new.iter().map(|release| pin(release)).collect(),
        previous: releases.iter().filter(is_before).take(PREVIOUS_MAX).map(pin).collect(),
        selector: Selector {
            devices: wanted.iter().map(|view| view.device.clone()).collect(),
            ..Selector::default()
        },
        strategy: rules.strategy.clone(),
        caps: rules.caps.clone(),
        gate: rules.gate.clone(),
        constraints: rules.constraints.clone(),
        deadlines: rules.deadlines,
        priority: rules.priority,
        automatic_rollback: rules.automatic_rollback,
        operator_rollback: false,
        retries: None,
        permit_keys: vec![surroundings.permit_key],
        plan_sha256: Sha256::from([0; 32]),
        hops: Vec::new(),
        rehearsal_sha256: None,
        kind: firmesh_protocol::manifest::CampaignKind::Update,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_campaign_at_a_time_and_a_refused_one_is_not_proposed_again() {
        for (last, drifted, is_same, is_asked, drafts) in [
            (Last::None, 3, false, false, true),
            (Last::None, 0, false, true, false),
            (Last::Waits, 3, true, true, false),
            (Last::Waits, 4, false, true, false),
            (Last::Runs, 3, false, true, false),
            // It drifts again.
            (Last::Over, 3, true, false, true),
            (Last::Over, 0, false, false, false),
            (Last::Removed, 3, true, false, false),
            (Last::Removed, 3, true, true, true),
            (Last::Removed, 4, false, false, true),
        ] {
            let step = step(last, drifted, is_same, is_asked);
            assert_eq!(
                step == Step::Draft,
                drafts,
                "{last:?} {drifted} {is_same} {is_asked}: {step:?}"
            );
        }
    }

    #[test]
    fn any_baseline_has_names_for_its_campaigns() {
        let short = GroupId::new("q3").unwrap();
        assert_eq!(name(&short, 7).unwrap().as_str(), "q3-heal-7");
        let long = |end: &str| GroupId::new(format!("{}{end}", "b".repeat(63))).unwrap();
        let (one, other) = [long("1"), long("2")]
            .map(|baseline| name(&baseline, u64::MAX).unwrap())
            .into();
        assert_ne!(one, other);
    }
}
