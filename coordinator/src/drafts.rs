//! Campaigns that are planned here and wait for the signatures of their approvers. A draft allows nothing; once its
//! campaign is published, the campaign stands in its place.

use std::collections::BTreeMap;

use firmesh_protocol::{
    api::{CampaignDraftView, CampaignState, CampaignView, GateVerdict, PossessionView, WaveView},
    ids::{CampaignId, GroupId, Sha256},
    manifest::HeldDevice,
    report::AttemptState,
};
use serde::{Deserialize, Serialize};

use crate::records::{Kept, Record};

/// A draft as it is stored. Its plan stands where plans stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DraftRecord {
    /// The manifest, with the plan's digest: exact text.
    pub(crate) manifest: String,
    /// The plan's digest.
    pub(crate) plan_sha256: Sha256,
    /// Devices of each wave.
    pub(crate) waves: Vec<u32>,
    /// Devices that the plan leaves out.
    pub(crate) held: Vec<HeldDevice>,
    /// The baseline whose drift it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<GroupId>,
}

impl Record for DraftRecord {
    const KIND: &'static str = "campaign";
    const COUNT_MAX: i64 = 1_000;
}

/// As campaigns are shown.
pub(crate) fn as_campaign(id: CampaignId, record: DraftRecord) -> CampaignView {
    let pending = |devices: u32| BTreeMap::from([(AttemptState::Pending, devices)]);
    let wave = |(wave, devices): (u32, &u32)| WaveView {
        wave,
        devices: *devices,
        states: pending(*devices),
        open: false,
        gate: GateVerdict::Unknown,
    };
    CampaignView {
        id,
        state: CampaignState::PendingApproval,
        wave: 0,
        waves: (0..).zip(&record.waves).map(wave).collect(),
        states: pending(record.waves.iter().sum()),
        possession: PossessionView::default(),
        held: record.held,
        provisioning: None,
        reason: "it waits for the signatures of its approvers".to_owned(),
    }
}

/// As its author is told.
pub(crate) fn view(id: CampaignId, kept: Kept<DraftRecord>) -> CampaignDraftView {
    let Kept { version, record, .. } = kept;
    CampaignDraftView {
        id,
        state: CampaignState::PendingApproval,
        manifest_sha256: Sha256::of(record.manifest.as_bytes()),
        manifest: record.manifest,
        plan_sha256: record.plan_sha256,
        devices: record.waves.iter().sum(),
        waves: u32::try_from(record.waves.len()).unwrap_or(u32::MAX),
        held: u32::try_from(record.held.len()).unwrap_or(u32::MAX),
        version,
    }
}
