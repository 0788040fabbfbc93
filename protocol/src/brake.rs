//! The brake: one signed word that stops a release or a campaign everywhere, carried from peer to peer.
//!
//! Invariants: one key of those whose threshold started a thing is enough to stop it, because a brake can only delay; a
//! brake is final (going on takes a new edition with another digest), so it can be repeated by anybody and never be
//! replayed against anything else.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CampaignId, Sha256},
    limits::REASON_BYTES_MAX,
    time::WallTime,
    trust::{Envelope, EnvelopeError, KeySet, KeySetError, PolicyError, TrustedFleet},
};

/// DSSE payload type of a [`Brake`].
pub const BRAKE_TYPE: &str = "application/vnd.firmesh.brake.v1+json";

/// Brakes a node or a coordinator keeps at most: more recalls than a fleet sees in its life.
pub const BRAKES_MAX: usize = 4_096;

/// What is stopped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Braked {
    /// One edition of a campaign: nothing of it starts any more. Signed by one of its approvers.
    Campaign {
        /// The campaign.
        id: CampaignId,
        /// SHA-256 of the manifest's bytes.
        manifest_sha256: Sha256,
    },
    /// One image: no campaign installs it any more, forward or back. Signed by one release key or one approver.
    Release {
        /// The TUF target name.
        target: String,
        /// SHA-256 of the image.
        sha256: Sha256,
    },
}

impl std::fmt::Display for Braked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Campaign { id, manifest_sha256 } => write!(f, "campaign {id} (manifest {manifest_sha256})"),
            Self::Release { target, sha256 } => write!(f, "release {target} (sha256 {sha256})"),
        }
    }
}

/// A signed stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Brake {
    /// What is stopped.
    pub braked: Braked,
    /// Why, for a person.
    pub reason: String,
    /// When it was signed, by the signer's clock.
    pub issued: WallTime,
}

impl Brake {
    /// Reads a brake back from this process's own store, where it was verified before it was put.
    #[must_use]
    pub fn from_own_store(envelope: &Envelope) -> Option<Self> {
        serde_json::from_slice(envelope.unverified_payload()).ok()
    }
}

/// Why a brake is not believed.
#[derive(Debug, thiserror::Error)]
pub enum BrakeError {
    /// Nobody entitled signed it.
    #[error("the brake is not signed by a key that may stop this")]
    Envelope(#[from] EnvelopeError),
    /// The keys in force cannot be used.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// The keys in force cannot be found.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A reason that is no reason.
    #[error("the brake's reason must have 1 to {REASON_BYTES_MAX} bytes")]
    Reason,
}

impl BrakeError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Envelope(error) => error.code(),
            Self::Keys(error) => error.code(),
            Self::Policy(error) => error.code(),
            Self::Reason => "bad_brake",
        }
    }
}

/// Whose word stops what: any one release key, any one approver.
#[derive(Debug, Clone)]
pub struct BrakeKeys {
    releases: KeySet,
    approvers: KeySet,
}

impl BrakeKeys {
    /// The keys in force in `fleet`. They serve after its metadata has expired too: stopping is never too late.
    pub fn of(fleet: &TrustedFleet) -> Result<Self, BrakeError> {
        let one_of = |role, keys: KeySet| KeySet::of(role, 1, keys.keys().copied());
        Ok(Self {
            releases: one_of("releases", fleet.release_keys()?)?,
            approvers: one_of("campaigns", fleet.approver_keys()?)?,
        })
    }

    /// Opens a brake. A release key has no say about campaigns.
    pub fn open(&self, envelope: &Envelope) -> Result<Brake, BrakeError> {
        let by_approver = envelope.open::<Brake>(&self.approvers, BRAKE_TYPE);
        let brake = match by_approver {
            Ok(brake) => brake.into_inner(),
            Err(refused) => {
                let brake = envelope.open::<Brake>(&self.releases, BRAKE_TYPE)?.into_inner();
                match brake.braked {
                    Braked::Release { .. } => brake,
                    Braked::Campaign { .. } => return Err(refused.into()),
                }
            }
        };
        if brake.reason.is_empty() || brake.reason.len() > REASON_BYTES_MAX {
            return Err(BrakeError::Reason);
        }
        Ok(brake)
    }
}
