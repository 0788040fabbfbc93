//! Brakes at the coordinator: taken in from operators and nodes, kept for good, told to every node; and the campaigns
//! they stop.

use std::collections::BTreeMap;

use firmesh_coordinator_core::Input;
use firmesh_protocol::{
    brake::{BRAKES_MAX, Brake, BrakeError, BrakeKeys, Braked},
    ids::Sha256,
    manifest::CampaignManifest,
    trust::Envelope,
};
use tracing::warn;

use crate::{
    runtime::{ActionError, Runtime},
    store::Write,
    telemetry::chain,
};

/// Why a brake was not pulled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrakeActionError {
    /// Nobody entitled signed it.
    #[error(transparent)]
    Refused(#[from] BrakeError),
    /// No keys to check it with.
    #[error(
        "nothing is published here whose keys could verify a brake; nodes verify it themselves: `firmesh brake send --node`"
    )]
    NothingPublished,
    /// The list is full.
    #[error("{BRAKES_MAX} brakes are kept already")]
    Full,
    /// Storing it failed.
    #[error(transparent)]
    Action(#[from] ActionError),
}

/// Every brake that was ever pulled: no two on the same thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Brakes {
    pulled: BTreeMap<Braked, (Brake, Envelope)>,
}

impl Brakes {
    /// Takes over brakes that were verified before they were stored.
    pub(crate) fn restore(envelopes: Vec<Envelope>) -> Self {
        let read = |envelope: Envelope| {
            let brake = Brake::from_own_store(&envelope)?;
            Some((brake.braked.clone(), (brake, envelope)))
        };
        Self {
            pulled: envelopes.into_iter().filter_map(read).collect(),
        }
    }

    /// How many there are: they are never taken back, so this is their version.
    pub(crate) fn version(&self) -> u64 {
        self.pulled.len() as u64
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &(Brake, Envelope)> {
        self.pulled.values()
    }

    /// The images that were stopped.
    pub(crate) fn images(&self) -> impl Iterator<Item = Sha256> {
        self.pulled.keys().filter_map(|braked| match braked {
            Braked::Release { sha256, .. } => Some(*sha256),
            Braked::Campaign { .. } => None,
        })
    }

    /// The brake that stops this edition of a campaign, if one does.
    pub(crate) fn on(&self, manifest: &CampaignManifest, manifest_sha256: Sha256) -> Option<&Braked> {
        let edition = Braked::Campaign {
            id: manifest.id.clone(),
            manifest_sha256,
        };
        let forward = manifest.releases.iter().chain(&manifest.hops);
        let images = forward.map(|release| Braked::Release {
            target: release.target.clone(),
            sha256: release.sha256,
        });
        let mut subjects = [edition].into_iter().chain(images);
        subjects.find_map(|subject| Some(self.pulled.get_key_value(&subject)?.0))
    }
}

impl Runtime {
    /// Verifies and keeps a brake, and ends the campaigns that it stops.
    pub(crate) async fn brake(&mut self, envelope: &Envelope) -> Result<Brake, BrakeActionError> {
        let fleet = self.world.published.fleet.as_ref();
        let fleet = fleet.ok_or(BrakeActionError::NothingPublished)?;
        let brake = BrakeKeys::of(fleet)?.open(envelope)?;
        if self.world.brakes.pulled.contains_key(&brake.braked) {
            // It may have been cut off between the brake and what it stops.
            self.stop_braked().await?;
            return Ok(brake);
        }
        if self.world.brakes.pulled.len() >= BRAKES_MAX {
            return Err(BrakeActionError::Full);
        }
        warn!(braked = %brake.braked, reason = brake.reason, "a brake was pulled");
        let digest = Sha256::of(&envelope.to_bytes());
        self.commit(vec![Write::Brake(digest, envelope.clone())])
            .await
            .map_err(ActionError::from)?;
        self.world
            .brakes
            .pulled
            .insert(brake.braked.clone(), (brake.clone(), envelope.clone()));
        self.stop_braked().await?;
        Ok(brake)
    }

    /// Pulls the brakes that nodes have passed on.
    pub(crate) async fn pull_passed_on(&mut self) {
        while let Some((node, envelope)) = self.passed_on.pop_front() {
            if let Err(error) = self.brake(&envelope).await {
                warn!(%node, error = %chain(&error), "a node passed on a brake that does not count here");
            }
        }
    }

    /// Ends every campaign that a brake stops.
    pub(crate) async fn stop_braked(&mut self) -> Result<(), ActionError> {
        let states = self.world.engine.states();
        let is_stopped = |id| {
            let bytes = self.world.published.manifests.get(id)?;
            let manifest = CampaignManifest::from_bytes(bytes).ok()?;
            self.world.brakes.on(&manifest, Sha256::of(bytes))
        };
        let stopped: Vec<_> = states
            .filter(|(id, state)| !state.is_terminal() && is_stopped(id).is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in stopped {
            self.apply(Input::Withdraw(id), Vec::new()).await?;
        }
        Ok(())
    }
}
