//! Gate evidence: the nodes' own signed reports on one wave, so that nobody has to take the coordinator's word for a
//! verdict.
//!
//! Invariants: a report counts only if the key that the approvers signed for the device's node (in the plan) signed it,
//! and only for this edition of the campaign and this wave; a device counts once; what is not reported is not known. A
//! failure after which the device may be begun again counts as not ended, as long as so few of the wave have failed that it is.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    api::GateVerdict,
    gate::{Fate, Tally},
    ids::{CampaignId, DeviceId, NodeId, Sha256},
    manifest::{CampaignManifest, Plan, PlannedDevice},
    report::{AttemptReport, FailureClass, PermitKind, REPORT_TYPE},
    time::WallTime,
    trust::{Envelope, EnvelopeError, KeySet},
};

/// DSSE payload type of [`GateEvidence`].
pub const EVIDENCE_TYPE: &str = "application/vnd.firmesh.gate-evidence.v1+json";

/// Reports in one envelope: about 150 KiB, so that it fits one message of the mesh.
pub const EVIDENCE_REPORTS_MAX: usize = 100;

/// Reports on one wave, collected by a coordinator. Large waves need several of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateEvidence {
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes.
    pub manifest_sha256: Sha256,
    /// The wave that was judged, counted from 0.
    pub wave: u32,
    /// Signed `AttemptReport`s of ended attempts, at most [`EVIDENCE_REPORTS_MAX`].
    pub reports: Vec<Envelope>,
}

/// Why evidence does not count.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The evidence, or a report in it, belongs elsewhere.
    #[error("the evidence is about {0}")]
    Foreign(String),
    /// More than one envelope may hold.
    #[error("the evidence holds {0} reports in one envelope, at most {EVIDENCE_REPORTS_MAX} are read")]
    TooLong(usize),
    /// A report that the planned node did not sign.
    #[error("the report on {device} is not signed by {node} with the key in the approved plan")]
    Forged {
        /// The device.
        device: DeviceId,
        /// The node that looks after it.
        node: NodeId,
        /// Why not.
        source: EnvelopeError,
    },
    /// A report on nothing that can be checked.
    #[error("a report in the evidence names no device of wave {wave}")]
    Unplanned {
        /// The wave.
        wave: u32,
    },
    /// An attempt that has not ended.
    #[error("the report on {0} is not about an ended update")]
    NotEnded(DeviceId),
    /// The same device twice.
    #[error("{0} is reported on twice")]
    Twice(DeviceId),
}

impl EvidenceError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Foreign(_) | Self::Unplanned { .. } => "foreign_evidence",
            Self::TooLong(_) | Self::NotEnded(_) | Self::Twice(_) => "bad_evidence",
            Self::Forged { .. } => "forged_report",
        }
    }
}

/// What verified reports say about one wave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaveEvidence {
    wave: u32,
    ended: BTreeMap<DeviceId, Ended>,
    latest: WallTime,
}

/// What the last report on a device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ended {
    fate: Fate,
    /// Whether the manifest allows another attempt after it.
    may_go_on: bool,
    /// Whether the device needs, or needed, more than one.
    was_unlucky: bool,
}

impl WaveEvidence {
    /// Nothing known yet about a wave.
    #[must_use]
    pub fn new(wave: u32) -> Self {
        Self {
            wave,
            ended: BTreeMap::new(),
            latest: WallTime::from_unix_seconds(0),
        }
    }

    /// The wave.
    #[must_use]
    pub fn wave(&self) -> u32 {
        self.wave
    }

    /// Takes in one envelope's reports after checking every one of them; nothing has changed after an error.
    pub fn add(
        &mut self,
        manifest_sha256: Sha256,
        manifest: &CampaignManifest,
        plan: &Plan,
        evidence: &GateEvidence,
    ) -> Result<(), EvidenceError> {
        if (&evidence.campaign, evidence.manifest_sha256, evidence.wave) != (&manifest.id, manifest_sha256, self.wave) {
            return Err(EvidenceError::Foreign(format!(
                "wave {} of campaign {} with the manifest {}",
                evidence.wave, evidence.campaign, evidence.manifest_sha256
            )));
        }
        if evidence.reports.len() > EVIDENCE_REPORTS_MAX {
            return Err(EvidenceError::TooLong(evidence.reports.len()));
        }
        let planned = plan.waves.get(self.wave as usize).map_or(&[][..], Vec::as_slice);
        let planned: BTreeMap<_, _> = planned.iter().map(|place| (&place.device, place)).collect();
        let mut next = self.clone();
        for envelope in &evidence.reports {
            let report = open_report(envelope, manifest_sha256, manifest, plan, &planned, self.wave)?;
            let pause = |planned: &&PlannedDevice| {
                manifest.retry_pause(planned.previous.is_some(), report.state, report.failure, report.attempt)
            };
            let may_go_on = planned.get(&report.device).and_then(pause).is_some();
            let ended = Ended {
                fate: manifest.gate.fate(report.state, report.failure, report.health),
                may_go_on,
                was_unlucky: may_go_on || report.attempt > 1,
            };
            if next.ended.insert(report.device.clone(), ended).is_some() {
                return Err(EvidenceError::Twice(report.device));
            }
            next.latest = next.latest.max(report.at);
        }
        *self = next;
        Ok(())
    }

    /// Devices that are reported on.
    #[must_use]
    pub fn reports(&self) -> usize {
        self.ended.len()
    }

    /// The gate's verdict, where devices without a report count as not ended.
    #[must_use]
    pub fn verdict(&self, manifest: &CampaignManifest, plan: &Plan) -> GateVerdict {
        self.tally(manifest, plan, Fate::Pending).verdict()
    }

    /// The gate's verdict, where devices without a report count as lost, and those that might be begun again as failed: for a
    /// wave whose deadline has passed.
    #[must_use]
    pub fn verdict_after_deadline(&self, manifest: &CampaignManifest, plan: &Plan) -> GateVerdict {
        let lost = Fate::Bad(Some(FailureClass::Unreachable));
        self.tally(manifest, plan, lost).verdict()
    }

    /// The first moment at which the next wave may start: the last report and the soak time after it.
    #[must_use]
    pub fn soaked_at(&self, manifest: &CampaignManifest) -> WallTime {
        self.latest + Duration::from_secs(manifest.gate.soak_s.into())
    }

    /// What the gate looks at, where the devices without a report are `missing`.
    fn tally<'a>(&self, manifest: &'a CampaignManifest, plan: &Plan, missing: Fate) -> Tally<'a> {
        let planned = plan.waves.get(self.wave as usize).map_or(&[][..], Vec::as_slice);
        let unlucky = self.ended.values().filter(|ended| ended.was_unlucky).count();
        let goes_on = missing == Fate::Pending && unlucky <= manifest.retry_budget(planned.len());
        // A checked plan has those of a unit one after the other.
        let mut before: Option<(&DeviceId, Fate)> = None;
        let fates = planned.iter().map(|planned| {
            let earlier = before.filter(|(device, _)| planned.after.as_ref() == Some(*device));
            let fate = match self.ended.get(&planned.device) {
                Some(ended) if ended.may_go_on && goes_on => Fate::Pending,
                Some(ended) => ended.fate,
                None => missing.unreported_after(earlier.map(|(_, fate)| fate)),
            };
            before = Some((&planned.device, fate));
            fate
        });
        Tally::of(&manifest.gate, fates)
    }
}

/// Opens one report with the key that the plan names for the node of the device it is about.
fn open_report(
    envelope: &Envelope,
    manifest_sha256: Sha256,
    manifest: &CampaignManifest,
    plan: &Plan,
    planned: &BTreeMap<&DeviceId, &PlannedDevice>,
    wave: u32,
) -> Result<AttemptReport, EvidenceError> {
    #[derive(Deserialize)]
    struct Claim {
        device: DeviceId,
    }
    let claim: Option<Claim> = serde_json::from_slice(envelope.unverified_payload()).ok();
    let place = claim.and_then(|claim| planned.get(&claim.device));
    let place = place.ok_or(EvidenceError::Unplanned { wave })?;
    let key = plan.nodes.get(&place.node).ok_or(EvidenceError::Unplanned { wave })?;
    let forged = |source| EvidenceError::Forged {
        device: place.device.clone(),
        node: place.node.clone(),
        source,
    };
    let keys = KeySet::of("node", 1, [*key]).map_err(|_| EvidenceError::Unplanned { wave })?;
    let report = envelope
        .open::<AttemptReport>(&keys, REPORT_TYPE)
        .map_err(forged)?
        .into_inner();
    let is_ours = report.campaign == manifest.id
        && report.manifest_sha256 == manifest_sha256
        && report.wave == wave
        && report.node == place.node
        && report.device == place.device;
    if !is_ours {
        return Err(EvidenceError::Foreign(format!(
            "wave {} of campaign {} with the manifest {}",
            report.wave, report.campaign, report.manifest_sha256
        )));
    }
    if report.kind != PermitKind::Update || !report.state.is_terminal() {
        return Err(EvidenceError::NotEnded(report.device));
    }
    Ok(report)
}
