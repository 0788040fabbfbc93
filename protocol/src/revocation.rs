//! Node revocation: the fleet CA's signed list of keys that are no members any more.
//!
//! Invariants: lists only grow (a list that leaves out what an earlier one revoked is refused), so that an old or a
//! shorter one can be replayed without effect; a revoked key stays revoked, whatever certificate is shown for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    identity::{IdentityError, certificate_key},
    ids::NodeId,
    time::WallTime,
    trust::{Envelope, EnvelopeError, KeySet, KeySetError, PublicKey},
};

/// DSSE payload type of a [`RevocationList`].
pub const REVOCATIONS_TYPE: &str = "application/vnd.firmesh.revocations.v1+json";

/// Keys on one list: with the longest names and reasons it still fits one frame between peers.
pub const REVOCATIONS_MAX: usize = 256;

/// A reason for a revocation: a sentence.
pub const REVOCATION_REASON_BYTES_MAX: usize = 200;

/// One revoked key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// The node it belonged to.
    pub node: NodeId,
    /// When it was revoked, by the coordinator's clock.
    pub at: WallTime,
    /// Why, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Every key that was ever revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationList {
    /// Grows with every edition.
    pub version: u64,
    /// The keys.
    pub revoked: BTreeMap<PublicKey, Revoked>,
}

/// Why a list is not believed.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// The fleet CA's certificate has no usable key.
    #[error("the fleet CA's certificate cannot be used")]
    FleetCa(#[from] IdentityError),
    /// The same.
    #[error("the fleet CA's key cannot be used")]
    Key(#[from] KeySetError),
    /// The fleet CA did not sign it.
    #[error("the revocation list is not signed by the fleet CA")]
    Envelope(#[from] EnvelopeError),
    /// Larger than a list may be.
    #[error(
        "the revocation list names {0} keys or a reason of more than {REVOCATION_REASON_BYTES_MAX} bytes; at most {REVOCATIONS_MAX} keys are read"
    )]
    TooLong(usize),
}

impl RevocationList {
    /// Opens a list signed by the fleet CA (its certificate, DER).
    pub fn open(envelope: &Envelope, fleet_ca: &[u8]) -> Result<Self, RevocationError> {
        let keys = KeySet::of("fleet CA", 1, [certificate_key(fleet_ca)?])?;
        let list = envelope.open::<Self>(&keys, REVOCATIONS_TYPE)?.into_inner();
        let bounded = list
            .revoked
            .values()
            .all(|revoked| revoked.reason.len() <= REVOCATION_REASON_BYTES_MAX);
        if list.revoked.len() > REVOCATIONS_MAX || !bounded {
            return Err(RevocationError::TooLong(list.revoked.len()));
        }
        Ok(list)
    }

    /// Reads a list back from this process's own store, where it was verified before it was put.
    #[must_use]
    pub fn from_own_store(envelope: &Envelope) -> Option<Self> {
        serde_json::from_slice(envelope.unverified_payload()).ok()
    }

    /// Whether this list says more than `known`, and all that `known` says.
    #[must_use]
    pub fn supersedes(&self, known: &Self) -> bool {
        self.version > known.version && known.revoked.keys().all(|key| self.revoked.contains_key(key))
    }

    /// Whether a key is revoked.
    #[must_use]
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.revoked.contains_key(key)
    }
}
