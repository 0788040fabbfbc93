//! Rollback orders: people's signed word that devices of a campaign go back, although no gate has failed.
//!
//! Invariants: an order changes what devices run, so it takes as many approvers as the campaign itself did, unless they
//! have left it to the operators in the manifest; it is for one edition of one campaign, and leads nowhere but to the
//! previous release that the approved plan has for a device.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{CampaignId, DeviceId, Sha256},
    limits::{REASON_BYTES_MAX, WAVES_MAX},
    report::AttemptState,
    time::WallTime,
    trust::{Envelope, EnvelopeError, KeySet},
};

/// DSSE payload type of a [`RollbackOrder`].
pub const ROLLBACK_ORDER_TYPE: &str = "application/vnd.firmesh.rollback-order.v1+json";

/// Devices that one order names at most: it has to fit the evidence of a permit. More are a wave, or the campaign.
pub const ROLLBACK_DEVICES_MAX: usize = 1_000;

/// Who goes back: all devices that run the campaign's release and are in what is named; everybody if nothing is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackScope {
    /// Waves, counted from 0.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<u32>)]
    pub waves: BTreeSet<u32>,
    /// Devices by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub devices: BTreeSet<DeviceId>,
}

impl RollbackScope {
    /// Whether it is the whole campaign.
    #[must_use]
    pub fn is_everybody(&self) -> bool {
        self.waves.is_empty() && self.devices.is_empty()
    }

    /// Whether it has the device, which is planned in this wave.
    #[must_use]
    pub fn has(&self, wave: u32, device: &DeviceId) -> bool {
        self.is_everybody() || self.waves.contains(&wave) || self.devices.contains(device)
    }

    /// What is wrong with it, if anything.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.devices.len() > ROLLBACK_DEVICES_MAX {
            return Some(format!(
                "names {} devices, an order has at most {ROLLBACK_DEVICES_MAX}: name their waves, or nothing for the whole campaign",
                self.devices.len()
            ));
        }
        let beyond = self.waves.iter().find(|wave| **wave as usize >= WAVES_MAX);
        beyond.map(|wave| format!("names the wave {wave}, a campaign has at most {WAVES_MAX}"))
    }
}

impl std::fmt::Display for RollbackScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_everybody() {
            return f.write_str("the whole campaign");
        }
        let waves = self.waves.iter().map(|wave| format!("wave {wave}"));
        let devices = match self.devices.len() {
            0..=5 => self.devices.iter().map(ToString::to_string).collect(),
            many => vec![format!("{many} devices")],
        };
        f.write_str(&waves.chain(devices).collect::<Vec<_>>().join(", "))
    }
}

/// `POST /api/v1/campaigns/{id}/rollback`: who goes back and why, or the approvers' signed order, which says so itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Who goes back, if the manifest leaves that to operators.
    #[serde(default)]
    pub scope: RollbackScope,
    /// Why, for a person.
    #[serde(default)]
    pub reason: String,
    /// A [`RollbackOrder`] in a DSSE envelope: in place of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub order: Option<Envelope>,
}

/// `GET /api/v1/campaigns/{id}/rollbacks`: one rollback that people have ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RollbackView {
    /// Who was sent back.
    pub scope: RollbackScope,
    /// Why.
    pub reason: String,
    /// Digest of the approvers' signed order, if it took one.
    #[schema(value_type = Option<String>)]
    pub order: Option<Sha256>,
    /// What became of those who were sent back, by state; who waits for his turn counts as `success` still.
    #[schema(value_type = Object)]
    pub states: BTreeMap<AttemptState, u32>,
}

/// A signed word that devices go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackOrder {
    /// The campaign.
    pub campaign: CampaignId,
    /// SHA-256 of the manifest's bytes.
    pub manifest_sha256: Sha256,
    /// Who goes back.
    pub scope: RollbackScope,
    /// Why, for a person.
    pub reason: String,
    /// When it was drawn up, by that person's clock.
    pub issued: WallTime,
}

/// Why an order is not followed.
#[derive(Debug, thiserror::Error)]
pub enum RollbackOrderError {
    /// Not enough of those entitled signed it.
    #[error("the rollback order is not signed by as many approvers as the campaign needs")]
    Envelope(#[from] EnvelopeError),
    /// It is about something else.
    #[error("the rollback order is for campaign {campaign} with the manifest {manifest_sha256}")]
    Foreign {
        /// The campaign that it names.
        campaign: CampaignId,
        /// The edition that it names.
        manifest_sha256: Sha256,
    },
    /// A reason that is no reason.
    #[error("the rollback order's reason must have 1 to {REASON_BYTES_MAX} bytes")]
    Reason,
    /// A scope beyond its bounds.
    #[error("the rollback order {0}")]
    Scope(String),
}

impl RollbackOrderError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Envelope(error) => error.code(),
            Self::Foreign { .. } => "foreign_rollback_order",
            Self::Reason | Self::Scope(_) => "bad_rollback_order",
        }
    }
}

impl RollbackOrder {
    /// What an envelope claims to order: for a person who is about to sign it, never to be acted on.
    #[must_use]
    pub fn claimed_by(envelope: &Envelope) -> Option<Self> {
        serde_json::from_slice(envelope.unverified_payload()).ok()
    }

    /// Opens an order for this edition of a campaign. `approvers` are those who sign campaigns, with their threshold.
    pub fn open(
        envelope: &Envelope,
        approvers: &KeySet,
        campaign: &CampaignId,
        manifest_sha256: Sha256,
    ) -> Result<Self, RollbackOrderError> {
        let order = envelope.open::<Self>(approvers, ROLLBACK_ORDER_TYPE)?.into_inner();
        if (&order.campaign, order.manifest_sha256) != (campaign, manifest_sha256) {
            return Err(RollbackOrderError::Foreign {
                campaign: order.campaign,
                manifest_sha256: order.manifest_sha256,
            });
        }
        if order.reason.is_empty() || order.reason.len() > REASON_BYTES_MAX {
            return Err(RollbackOrderError::Reason);
        }
        match order.scope.problem() {
            Some(problem) => Err(RollbackOrderError::Scope(problem)),
            None => Ok(order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SecretKey;

    fn order() -> RollbackOrder {
        RollbackOrder {
            campaign: CampaignId::new("spring").unwrap(),
            manifest_sha256: Sha256::of(b"manifest"),
            scope: RollbackScope {
                waves: [1].into(),
                devices: ["d7".parse().unwrap()].into(),
            },
            reason: "fans stop".to_owned(),
            issued: WallTime::from_unix_seconds(1),
        }
    }

    fn signed(order: &RollbackOrder, keys: &[&SecretKey]) -> Envelope {
        let payload = serde_json::to_vec(order).unwrap();
        Envelope::sign(ROLLBACK_ORDER_TYPE, payload, keys.iter().copied())
    }

    #[test]
    fn an_order_takes_the_approvers_threshold_and_is_for_one_edition() {
        let keys = [1, 2, 3].map(|seed| SecretKey::from_seed(&[seed; 32]));
        let approvers = KeySet::of("campaigns", 2, keys.iter().map(SecretKey::public)).unwrap();
        let open = |order: &RollbackOrder, keys: &[&SecretKey]| {
            let (id, sha256) = (CampaignId::new("spring").unwrap(), Sha256::of(b"manifest"));
            RollbackOrder::open(&signed(order, keys), &approvers, &id, sha256)
        };
        assert_eq!(open(&order(), &[&keys[0], &keys[2]]).unwrap(), order());
        let refused = |order: RollbackOrder, keys: &[&SecretKey]| open(&order, keys).unwrap_err().code();
        assert_eq!(refused(order(), &[&keys[0]]), "signature_threshold");
        assert_eq!(refused(order(), &[&keys[0], &keys[0]]), "duplicate_key");
        let both = [&keys[0], &keys[1]];
        let other = RollbackOrder {
            manifest_sha256: Sha256::of(b"another edition"),
            ..order()
        };
        assert_eq!(refused(other, &both), "foreign_rollback_order");
        let silent = RollbackOrder {
            reason: String::new(),
            ..order()
        };
        assert_eq!(refused(silent, &both), "bad_rollback_order");
        let mut endless = order();
        endless.scope.waves = [WAVES_MAX as u32].into();
        assert_eq!(refused(endless, &both), "bad_rollback_order");
    }

    #[test]
    fn a_scope_has_what_it_names_and_everybody_if_it_names_nothing() {
        let (named, other) = ("d7".parse().unwrap(), "d8".parse().unwrap());
        let scope = order().scope;
        assert!(scope.has(0, &named) && scope.has(1, &other) && !scope.has(0, &other));
        assert!(RollbackScope::default().has(5, &other));
        assert_eq!(scope.to_string(), "wave 1, d7");
    }
}
