//! Permits as they travel: what they say, and whose signature they bear.
//!
//! The named coordinator's own are believed without looking, but for sampled runs; everybody else's go through the
//! production verifier.

use std::sync::{Arc, OnceLock};

use firmesh_protocol::{
    report::{PERMIT_TYPE, Permit},
    trust::{Envelope, SecretKey},
};

use super::{World, scenario::coordinator_key};

/// A permit with its signer.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    pub(super) permit: Arc<Permit>,
    pub(super) by: Signer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signer {
    /// The key that the approvers named.
    Coordinator,
    /// A key that nobody named.
    Stranger,
    /// A stranger, in the named key's name.
    Forger,
    /// Nobody at all.
    Nobody,
}

impl Signed {
    /// The named coordinator's.
    pub(super) fn own(permit: Arc<Permit>) -> Self {
        Self {
            permit,
            by: Signer::Coordinator,
        }
    }

    fn envelope(&self) -> Envelope {
        let payload = serde_json::to_vec(&*self.permit).expect("a permit has only names and numbers");
        let named = coordinator_key();
        let signature = |key: &SecretKey| key.sign(&Envelope::to_be_signed(PERMIT_TYPE, &payload));
        let signatures = match self.by {
            Signer::Coordinator => Some((named.public(), signature(named))),
            Signer::Stranger => Some((stranger().public(), signature(stranger()))),
            Signer::Forger => Some((named.public(), signature(stranger()))),
            Signer::Nobody => None,
        };
        Envelope::with_signatures(PERMIT_TYPE, payload.clone(), signatures)
    }
}

impl World {
    /// The permit, if it counts under the keys of an approved campaign.
    pub(super) fn open_permit(&self, signed: &Signed) -> Option<Arc<Permit>> {
        if signed.by == Signer::Coordinator && !self.is_sampled {
            return Some(Arc::clone(&signed.permit));
        }
        let envelope = signed.envelope();
        let mut campaigns = self.scenario.campaigns.iter();
        campaigns
            .find_map(|approved| approved.campaign.open_permit(&envelope))
            .map(Arc::new)
    }
}

fn stranger() -> &'static SecretKey {
    static KEY: OnceLock<SecretKey> = OnceLock::new();
    KEY.get_or_init(|| SecretKey::from_seed(&[0xee; 32]))
}
