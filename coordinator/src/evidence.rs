//! Evidence for gates: the nodes' signed reports that a permit rests on, put together for nodes to check; and the epoch,
//! by which nodes tell this coordinator from one that was left behind.

use firmesh_coordinator_core::PermitOrder;
use firmesh_protocol::{
    evidence::{EVIDENCE_REPORTS_MAX, GateEvidence, WaveEvidence},
    ids::{CampaignId, NodeId, Sha256},
    manifest::{CampaignManifest, Plan},
    report::{PERMIT_TYPE, Permit, PermitKind},
    trust::{Envelope, KeySet},
};
use tracing::warn;

use crate::{
    runtime::{ActionError, Runtime},
    store::{StoreError, StoredPermit, Write},
};

impl Runtime {
    /// The digests of the evidence for a permit; what is not stored yet is added to `writes`.
    pub(crate) async fn evidence_for(
        &mut self,
        order: &PermitOrder,
        writes: &mut Vec<Write>,
    ) -> Result<Vec<Sha256>, ActionError> {
        let Some(campaign) = self.world.engine.manifest(&order.campaign) else {
            return Ok(Vec::new());
        };
        let gates = order.kind.gates(order.wave, &campaign.strategy);
        let (mut digests, suffices) = match order.kind {
            PermitKind::Update => (Vec::new(), false),
            PermitKind::Rollback => self
                .world
                .engine
                .orders_for(&order.campaign, order.wave, &order.devices),
        };
        if suffices {
            return Ok(digests);
        }
        for wave in gates {
            digests.extend(self.evidence_on(order, wave, writes).await?);
        }
        Ok(digests)
    }

    /// The digests of the evidence on one gate that a permit rests on.
    async fn evidence_on(
        &mut self,
        order: &PermitOrder,
        wave: u32,
        writes: &mut Vec<Write>,
    ) -> Result<Vec<Sha256>, ActionError> {
        // A gate that passed is passed for good; after one that failed more reports come in, and say more.
        let key = (order.campaign.clone(), wave);
        if order.kind == PermitKind::Update
            && let Some(known) = self.world.evidence.get(&key)
        {
            return Ok(known.clone());
        }
        let Some((manifest, manifest_sha256, plan)) = self.documents(&order.campaign).await? else {
            return Ok(Vec::new());
        };
        let mut digests = Vec::new();
        let reports = self
            .reports_on(&order.campaign, wave, &manifest, manifest_sha256, &plan, writes)
            .await?;
        for reports in reports.chunks(EVIDENCE_REPORTS_MAX) {
            let evidence = GateEvidence {
                campaign: order.campaign.clone(),
                manifest_sha256,
                wave,
                reports: reports.to_vec(),
            };
            let bytes = self.authority.sign_evidence(&evidence).to_bytes();
            let digest = Sha256::of(&bytes);
            digests.push(digest);
            writes.push(Write::Evidence(digest, bytes));
        }
        if order.kind == PermitKind::Update {
            digests.extend(self.world.engine.approval_of(&order.campaign, wave));
        }
        if order.kind == PermitKind::Update {
            self.world.evidence.insert(key, digests.clone());
        }
        Ok(digests)
    }

    async fn documents(&self, id: &CampaignId) -> Result<Option<(CampaignManifest, Sha256, Plan)>, StoreError> {
        let Some(bytes) = self.world.published.manifests.get(id) else {
            return Ok(None);
        };
        let Ok(manifest) = CampaignManifest::from_bytes(bytes) else {
            return Ok(None);
        };
        let plan = self.store.plan(manifest.plan_sha256).await?;
        let plan = plan.and_then(|plan| Plan::from_bytes(&plan).ok());
        Ok(plan.map(|plan| (manifest, Sha256::of(bytes), plan)))
    }

    /// The reports on a wave that nodes will accept: signed with the keys that the approvers signed for.
    async fn reports_on(
        &self,
        id: &CampaignId,
        wave: u32,
        manifest: &CampaignManifest,
        manifest_sha256: Sha256,
        plan: &Plan,
        writes: &[Write],
    ) -> Result<Vec<Envelope>, StoreError> {
        let mut good = Vec::new();
        let ended = self.world.engine.ended_reports(id, wave);
        let mut stored = self.store.reports_of(&ended).await?;
        for (node, sequence) in ended {
            let on_its_way = self
                .under_way
                .as_ref()
                .and_then(|under_way| under_way.report(&node, sequence));
            let mut found: Vec<_> = being_written(writes, &node, sequence);
            found.extend(on_its_way.cloned());
            found.extend(stored.remove(&(node.clone(), sequence)).unwrap_or_default());
            let counts = |report: &Envelope| {
                let evidence = GateEvidence {
                    campaign: id.clone(),
                    manifest_sha256,
                    wave,
                    reports: vec![report.clone()],
                };
                WaveEvidence::new(wave)
                    .add(manifest_sha256, manifest, plan, &evidence)
                    .is_ok()
            };
            match found.into_iter().find(counts) {
                Some(report) => good.push(report),
                None => warn!(
                    %node, campaign = %id, wave, sequence,
                    "a report is signed with another key than the approved plan has for its node: it is no evidence"
                ),
            }
        }
        Ok(good)
    }

    /// Takes over from whoever was the coordinator before: permits that are still good for somebody are signed again. Whoever
    /// has ended needs none, and nobody waits until those of a quarter of an hour are written.
    pub(crate) async fn begin_epoch(&mut self) -> Result<(), StoreError> {
        let epoch = self.store.epoch();
        self.world.epoch = epoch;
        let Ok(keys) = KeySet::of("permits", 1, [self.authority.permit_key().public()]) else {
            return Ok(());
        };
        let again = |stored: &StoredPermit| {
            let permit = stored.envelope.open::<Permit>(&keys, PERMIT_TYPE).ok()?.into_inner();
            let engine = &self.world.engine;
            let attempts = permit
                .devices
                .iter()
                .filter_map(|device| engine.attempt(&permit.campaign, device));
            if attempts.into_iter().all(|attempt| attempt.state.is_terminal()) {
                return None;
            }
            let envelope = self.authority.sign_permit(&Permit { epoch, ..permit });
            Some(StoredPermit {
                envelope,
                ..stored.clone()
            })
        };
        let permits: Vec<_> = self.world.permits.all().filter_map(again).collect();
        let writes = permits.iter().cloned().map(Write::PermitAgain).collect();
        self.store.commit(writes, self.clock.wall()).await?;
        self.world.permits = permits.into_iter().collect();
        Ok(())
    }
}

/// A report that is stored with the same commit.
fn being_written(writes: &[Write], wanted: &NodeId, number: u64) -> Vec<Envelope> {
    let is_it = |write: &Write| match write {
        Write::Report(report, envelope) if report.node == *wanted && report.sequence == number => {
            Some(envelope.clone())
        }
        _ => None,
    };
    writes.iter().filter_map(is_it).collect()
}
