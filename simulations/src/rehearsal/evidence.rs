//! The reports that nodes have signed, and the evidence made of them.
//!
//! A signature is made when somebody looks at it: most reports are never evidence, and a run goes through thousands of
//! them. What nodes believe goes through the production verifier; its answer for one document is kept, but for runs that
//! are sampled, in which every node verifies by itself.

use std::{collections::BTreeMap, sync::Arc};

use firmesh_node_core::approved::ApprovedCampaign;
use firmesh_protocol::{
    approval::WaveApproval,
    evidence::{GateEvidence, WaveEvidence},
    ids::{CampaignId, Sha256},
    report::{AttemptReport, Permit, REPORT_TYPE},
    rollback::RollbackOrder,
    trust::Envelope,
};

use super::scenario::{Scenario, coordinator_key};

/// Reports with this number and above were made up by a coordinator, and bear its signature.
pub(super) const FORGED: u64 = 1 << 40;

/// All evidence of a run.
#[derive(Debug)]
pub(super) struct Evidence {
    documents: BTreeMap<Sha256, Arc<Document>>,
    /// By the node's number and the report's.
    signed: BTreeMap<(usize, u64), Envelope>,
    shown: BTreeMap<(Sha256, u64), Option<WaveEvidence>>,
    /// What approvers have signed between waves, of whatever campaign.
    approvals: BTreeMap<Sha256, WaveApproval>,
    /// Their orders to go back, likewise.
    orders: BTreeMap<Sha256, RollbackOrder>,
    is_sampled: bool,
}

#[derive(Debug)]
struct Document {
    campaign: CampaignId,
    wave: u32,
    reports: Vec<AttemptReport>,
}

impl Evidence {
    pub(super) fn new(is_sampled: bool) -> Self {
        Self {
            documents: BTreeMap::new(),
            signed: BTreeMap::new(),
            shown: BTreeMap::new(),
            approvals: BTreeMap::new(),
            orders: BTreeMap::new(),
            is_sampled,
        }
    }

    /// Puts reports on a wave together; answers the name of the document.
    pub(super) fn collect(&mut self, campaign: &CampaignId, wave: u32, reports: Vec<AttemptReport>) -> Sha256 {
        let mut name = format!("{campaign} {wave}");
        for report in &reports {
            name.push_str(&format!(" {}/{}", report.node, report.sequence));
        }
        let digest = Sha256::of(name.as_bytes());
        self.documents.entry(digest).or_insert_with(|| {
            Arc::new(Document {
                campaign: campaign.clone(),
                wave,
                reports,
            })
        });
        digest
    }

    /// An approver signs his word; answers the name of the document.
    pub(super) fn say(&mut self, said: WaveApproval) -> Sha256 {
        let digest = Sha256::of(format!("{said:?}").as_bytes());
        self.approvals.insert(digest, said);
        digest
    }

    /// What approvers have said, among the documents that a permit names.
    pub(super) fn approvals(&self, permit: &Permit) -> Vec<WaveApproval> {
        let named = permit.evidence.iter().filter_map(|digest| self.approvals.get(digest));
        named.cloned().collect()
    }

    /// Approvers sign an order to go back; answers the name of the document.
    pub(super) fn order(&mut self, order: RollbackOrder) -> Sha256 {
        let digest = Sha256::of(format!("{order:?}").as_bytes());
        self.orders.insert(digest, order);
        digest
    }

    /// The orders to go back, among the documents that a permit names.
    pub(super) fn orders(&self, permit: &Permit) -> Vec<RollbackOrder> {
        let named = permit.evidence.iter().filter_map(|digest| self.orders.get(digest));
        named.cloned().collect()
    }

    /// Whether approvers have ordered anything back.
    pub(super) fn has_orders(&self) -> bool {
        !self.orders.is_empty()
    }

    /// The names of all that approvers have said and ordered.
    pub(super) fn all_words(&self) -> Vec<Sha256> {
        self.approvals.keys().chain(self.orders.keys()).copied().collect()
    }

    /// What the documents that a permit names show to a node, wave by wave; nothing if one of them does not hold, or is
    /// about a wave that the permit does not rest on.
    pub(super) fn shown(
        &mut self,
        scenario: &Scenario,
        approved: &ApprovedCampaign,
        permit: &Permit,
    ) -> Vec<WaveEvidence> {
        let gates = permit.gates(&approved.manifest.strategy);
        let named = permit.evidence.iter();
        let documents: Vec<_> = named
            .filter_map(|digest| Some((*digest, self.documents.get(digest)?.wave)))
            .collect();
        let mut shown = Vec::<WaveEvidence>::new();
        for (digest, about) in documents {
            // Where it is one, a document about another is looked at, and found to be foreign.
            let wave = if gates.len() == 1 { gates.start } else { about };
            let is_known = shown.iter().any(|known| known.wave() == wave);
            match self.shown_of(scenario, approved, wave, digest) {
                Some(found) if gates.contains(&wave) && !is_known => shown.push(found),
                _ => return Vec::new(),
            }
        }
        shown
    }

    fn shown_of(
        &mut self,
        scenario: &Scenario,
        approved: &ApprovedCampaign,
        wave: u32,
        digest: Sha256,
    ) -> Option<WaveEvidence> {
        // The wave it is looked at for belongs to the question: a liar may name a document about another.
        let key = (digest, u64::from(wave) << 8 | approved.manifest.sequence);
        if !self.is_sampled
            && let Some(known) = self.shown.get(&key)
        {
            return known.clone();
        }
        let document = Arc::clone(self.documents.get(&digest)?);
        let gate = GateEvidence {
            campaign: document.campaign.clone(),
            manifest_sha256: approved.manifest_sha256,
            wave: document.wave,
            reports: document
                .reports
                .iter()
                .map(|report| self.envelope(scenario, report))
                .collect(),
        };
        let mut shown = WaveEvidence::new(wave);
        let held = shown.add(approved.manifest_sha256, &approved.manifest, &approved.plan, &gate);
        let shown = held.is_ok().then_some(shown);
        self.shown.insert(key, shown.clone());
        shown
    }

    fn envelope(&mut self, scenario: &Scenario, report: &AttemptReport) -> Envelope {
        let node = scenario
            .place(&report.node)
            .expect("reports are made by nodes of the fleet");
        let signed = self.signed.entry((node, report.sequence)).or_insert_with(|| {
            let payload = serde_json::to_vec(report).expect("a report has only names, numbers and text");
            let key = match report.sequence < FORGED {
                true => scenario.places[node].key,
                false => coordinator_key(),
            };
            Envelope::sign(REPORT_TYPE, payload, [key])
        });
        signed.clone()
    }
}
