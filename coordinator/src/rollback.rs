//! People send devices back: an approvers' signed order is verified, or the manifest looked up that leaves it to operators.
//! The engine does the rest. An order becomes durable with the change, and nodes fetch it as they fetch evidence.

use std::collections::BTreeSet;

use firmesh_coordinator_core::{Input, InputError, Rollback};
use firmesh_protocol::{
    brake::Braked,
    ids::{CampaignId, DeviceId, Sha256},
    limits::REASON_BYTES_MAX,
    manifest::{CampaignManifest, ManifestError},
    rollback::{RollbackOrder, RollbackOrderError, RollbackRequest, RollbackScope},
    trust::PolicyError,
};
use tracing::warn;

use crate::{
    runtime::{ActionError, Runtime},
    store::Write,
};

/// Why nothing was sent back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RollbackError {
    /// The order does not count.
    #[error(transparent)]
    Order(#[from] RollbackOrderError),
    /// Approvers have not left it to operators.
    #[error(
        "the manifest of campaign {0} does not leave this to operators: approvers sign an order (`firmesh campaign rollback \
         --key`)"
    )]
    NeedsApprovers(CampaignId),
    /// An order says everything itself.
    #[error("the signed order says who goes back and why: leave `scope` and `reason` out")]
    SaidTwice,
    /// No reason, an endless one, or a scope that is none.
    #[error("the request {0}")]
    Request(String),
    /// Stopped for good, also on the way back.
    #[error("a brake was pulled: {0} is stopped for good, nodes take nothing back either")]
    Braked(Braked),
    /// Nothing verified to look the approvers up in.
    #[error("nothing is published here whose approvers could have signed an order")]
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
    /// Sends devices of a campaign back.
    pub(crate) async fn roll_back(&mut self, id: CampaignId, request: RollbackRequest) -> Result<(), RollbackError> {
        self.refuse_archived(&id)?;
        let published = &self.world.published;
        let unknown = || ActionError::from(InputError::UnknownCampaign(id.clone()));
        let bytes = published.manifests.get(&id).ok_or_else(unknown)?;
        let (manifest, sha256) = (CampaignManifest::from_bytes(bytes)?, Sha256::of(bytes));
        if let Some(braked) = self.world.brakes.on(&manifest, sha256) {
            return Err(RollbackError::Braked(braked.clone()));
        }
        let (scope, reason, order) = match request.order {
            Some(_) if !request.scope.is_everybody() || !request.reason.is_empty() => {
                return Err(RollbackError::SaidTwice);
            }
            Some(envelope) => {
                let fleet = published.fleet.as_ref().ok_or(RollbackError::NothingPublished)?;
                let order = RollbackOrder::open(&envelope, &fleet.approver_keys()?, &id, sha256)?;
                let bytes = envelope.to_bytes();
                (order.scope, order.reason, Some((Sha256::of(&bytes), bytes)))
            }
            None if manifest.operator_rollback => (request.scope, checked(&request.reason)?, None),
            None => return Err(RollbackError::NeedsApprovers(id)),
        };
        if let Some(problem) = scope.problem() {
            return Err(RollbackError::Request(problem));
        }
        warn!(campaign = %id, %scope, reason, ordered = order.is_some(), "devices are sent back");
        let rollback = Rollback {
            campaign: id.clone(),
            reason: reason.clone(),
            order: order.as_ref().map(|(digest, _)| *digest),
            moved_on: self.moved_on(&id, &scope),
            scope: scope.clone(),
        };
        let write = Write::Rollback {
            campaign: id,
            scope: scope.to_string(),
            reason,
            order,
        };
        Ok(self.apply(Input::RollBack(rollback), vec![write]).await?)
    }

    /// Devices that answer with another version than the campaign left them with.
    pub(crate) fn moved_on(&self, id: &CampaignId, scope: &RollbackScope) -> BTreeSet<DeviceId> {
        let attempts = self.world.engine.attempts(id).unwrap_or_default();
        let moved = attempts
            .into_iter()
            .filter(|attempt| attempt.state.is_success() && scope.has(attempt.wave, &attempt.device))
            .filter(|attempt| {
                let known = self.world.devices.get(&attempt.device);
                let runs = known.and_then(|known| known.facts.version);
                runs.is_some_and(|runs| attempt.version.as_ref().is_some_and(|left| left != runs))
            });
        moved.map(|attempt| attempt.device).collect()
    }
}

fn checked(reason: &str) -> Result<String, RollbackError> {
    match reason.len() {
        1..=REASON_BYTES_MAX => Ok(reason.to_owned()),
        _ => Err(RollbackError::Request(format!(
            "needs a reason of 1 to {REASON_BYTES_MAX} bytes, for those who will ask"
        ))),
    }
}
