//! Which permits a node takes up at all, before [`install`](crate::install) asks what they allow.
//!
//! Invariants: a permit counts only under a key that the approvers named in the manifest of its own campaign; one whose
//! time is over is never taken up, nor one of a coordinator that another has taken over from.

use std::collections::BTreeSet;

use firmesh_protocol::{
    ids::CampaignId,
    report::{PERMIT_TYPE, Permit},
    time::WallTime,
    trust::{Envelope, KeySet, PublicKey},
};

use crate::approved::ApprovedCampaign;

/// Why a permit that verifies is not taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PermitRefusal {
    /// Its time is over.
    #[error("permit {sequence} of campaign {campaign} expired at {expires}")]
    Expired {
        /// The campaign.
        campaign: CampaignId,
        /// The permit.
        sequence: u64,
        /// When.
        expires: WallTime,
    },
    /// Its coordinator has a successor.
    #[error(
        "permit {sequence} of campaign {campaign} is of epoch {epoch}, a coordinator of epoch {successor} has taken over"
    )]
    StaleEpoch {
        /// The campaign.
        campaign: CampaignId,
        /// The permit.
        sequence: u64,
        /// Its epoch.
        epoch: u64,
        /// The highest that this node has seen.
        successor: u64,
    },
}

impl PermitRefusal {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired_permit",
            Self::StaleEpoch { .. } => "stale_epoch",
        }
    }
}

/// Whether a node takes up a permit, where `seen` is the highest epoch it has seen. If so, the permit's epoch is to be
/// kept before the permit is: from then on, older coordinators start nothing here.
pub fn check_permit(permit: &Permit, now: WallTime, seen: u64) -> Result<(), PermitRefusal> {
    let (campaign, sequence) = (permit.campaign.clone(), permit.sequence);
    if permit.expires <= now {
        return Err(PermitRefusal::Expired {
            campaign,
            sequence,
            expires: permit.expires,
        });
    }
    if permit.epoch < seen {
        return Err(PermitRefusal::StaleEpoch {
            campaign,
            sequence,
            epoch: permit.epoch,
            successor: seen,
        });
    }
    Ok(())
}

impl ApprovedCampaign {
    /// The coordinators' keys that the approvers named: one of them is enough for a permit, or for evidence.
    #[must_use]
    pub fn permit_keys(&self) -> KeySet {
        let keys: BTreeSet<_> = self
            .manifest
            .permit_keys
            .iter()
            .filter_map(|key| key.parse::<PublicKey>().ok())
            .collect();
        KeySet::of("permits", 1, keys).expect("a checked manifest names at most 16 keys, and a set has each once")
    }

    /// Opens a permit for this campaign; nothing if it is another's, or signed by nobody the approvers named.
    #[must_use]
    pub fn open_permit(&self, envelope: &Envelope) -> Option<Permit> {
        let permit = envelope
            .open::<Permit>(&self.permit_keys(), PERMIT_TYPE)
            .ok()?
            .into_inner();
        (permit.campaign == self.manifest.id).then_some(permit)
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::{ids::Sha256, report::PermitKind};

    use super::*;

    #[test]
    fn what_is_over_or_of_a_coordinator_left_behind_is_not_taken_up() {
        let at = WallTime::from_unix_seconds;
        let permit = Permit {
            campaign: CampaignId::new("spring").unwrap(),
            manifest_sha256: Sha256::of(b"manifest"),
            kind: PermitKind::Update,
            wave: 0,
            attempt: 1,
            sequence: 7,
            epoch: 3,
            issued: at(0),
            expires: at(100),
            devices: Vec::new(),
            evidence: Vec::new(),
        };
        let code = |now, seen| check_permit(&permit, at(now), seen).err().map(|refusal| refusal.code());
        assert_eq!(code(99, 3), None);
        assert_eq!(code(99, 2), None);
        assert_eq!(code(100, 3), Some("expired_permit"));
        assert_eq!(code(99, 4), Some("stale_epoch"));
    }
}
