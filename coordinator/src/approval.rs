//! Approvers say yes or no between two waves: their signature is verified, and the engine does the rest. The signed word
//! becomes durable with the change, and nodes fetch it as they fetch evidence.

use firmesh_coordinator_core::{Approval, Input, InputError};
use firmesh_protocol::{
    approval::{WaveApproval, WaveApprovalError},
    brake::Braked,
    ids::{CampaignId, Sha256},
    manifest::{CampaignManifest, ManifestError},
    rollback::RollbackScope,
    trust::{Envelope, PolicyError},
};
use tracing::warn;

use crate::{
    runtime::{ActionError, Runtime},
    store::Write,
};

/// Why nothing was approved or refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApprovalError {
    /// The signed word does not count.
    #[error(transparent)]
    Approval(#[from] WaveApprovalError),
    /// Nothing opens any more, whoever says yes.
    #[error("a brake was pulled: {0} is stopped for good")]
    Braked(Braked),
    /// Nothing verified to look the approvers up in.
    #[error("nothing is published here whose approvers could have signed this")]
    NothingPublished,
    /// The approvers cannot be found.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The stored manifest cannot be read.
    #[error("the manifest of the campaign cannot be read")]
    Manifest(#[from] ManifestError),
    /// The engine refused, or storing failed.
    #[error(transparent)]
    Action(#[from] ActionError),
}

impl Runtime {
    /// Takes an approver's yes or no.
    pub(crate) async fn approve(&mut self, id: CampaignId, envelope: &Envelope) -> Result<(), ApprovalError> {
        self.refuse_archived(&id)?;
        let published = &self.world.published;
        let unknown = || ActionError::from(InputError::UnknownCampaign(id.clone()));
        let bytes = published.manifests.get(&id).ok_or_else(unknown)?;
        let (manifest, sha256) = (CampaignManifest::from_bytes(bytes)?, Sha256::of(bytes));
        let fleet = published.fleet.as_ref().ok_or(ApprovalError::NothingPublished)?;
        let approvers = fleet.approver_keys()?;
        let said = WaveApproval::open(envelope, &approvers, &id, sha256)?;
        let braked = self.world.brakes.on(&manifest, sha256).filter(|_| said.approved);
        if let Some(braked) = braked {
            return Err(ApprovalError::Braked(braked.clone()));
        }
        let by = WaveApproval::signers(envelope, &approvers).map_err(WaveApprovalError::from)?;
        let document = envelope.to_bytes();
        let WaveApproval {
            wave, approved, reason, ..
        } = said;
        warn!(campaign = %id, wave, approved, reason, "an approver has answered");
        // Permits name the newest word.
        self.world.evidence.remove(&(id.clone(), wave));
        let approval = Approval {
            campaign: id.clone(),
            wave,
            approved,
            reason: reason.clone(),
            by: by.clone(),
            document: Sha256::of(&document),
            moved_on: self.moved_on(&id, &RollbackScope::default()),
        };
        let write = Write::Approval {
            campaign: id,
            wave,
            approved,
            reason,
            by,
            document,
        };
        Ok(self.apply(Input::Approve(approval), vec![write]).await?)
    }
}
