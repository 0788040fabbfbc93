//! Entries: what is written down, and the document it is about.
//!
//! A leaf of the tree is the exact JSON text of an [`Entry`]. The document (a manifest, an envelope, a certificate) is
//! named in it by digest and travels beside it, byte by byte as it was signed.

use serde::{Deserialize, Serialize};

use crate::{
    api::{CampaignState, GateVerdict},
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256, TopologyPath},
    report::{AttemptState, PermitKind},
    time::WallTime,
    trust::PublicKey,
};

/// The schema name of an entry.
pub const ENTRY_SCHEMA: &str = "firmesh-audit/1";

/// An entry is a few names and a reason.
const ENTRY_BYTES_MAX: usize = 64 << 10;

/// Why an entry was refused.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Longer than any entry.
    #[error("an audit entry of {0} bytes, at most {ENTRY_BYTES_MAX} are read")]
    TooLarge(usize),
    /// Not JSON of the expected shape.
    #[error("an audit entry does not have the expected form")]
    Malformed(#[source] serde_json::Error),
    /// A later or foreign schema.
    #[error("an audit entry has the schema {0:?}, this version reads {ENTRY_SCHEMA:?}")]
    Schema(String),
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// [`ENTRY_SCHEMA`].
    pub schema: String,
    /// Its place, counted from 0.
    pub index: u64,
    /// When it was written, by the coordinator's clock.
    pub at: WallTime,
    /// What happened.
    pub event: Event,
    /// The document it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentRef>,
}

/// Names bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentRef {
    /// Their digest.
    pub sha256: Sha256,
    /// Their number.
    pub length: u64,
}

impl DocumentRef {
    /// The name of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            sha256: Sha256::of(bytes),
            length: bytes.len() as u64,
        }
    }

    /// Whether it names these bytes.
    #[must_use]
    pub fn names(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.length && Sha256::of(bytes) == self.sha256
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The log begins. The document is the fleet CA's certificate (DER).
    Log {
        /// The log's name.
        origin: String,
    },
    /// Metadata came into force: keys (root, targets), releases or approvals (campaigns), and the snapshot and timestamp
    /// that bind them together. The document is the signed file.
    Metadata {
        /// The name that clients fetch it by, such as `2.campaigns.json`.
        file: String,
    },
    /// A campaign was approved. The document is its manifest.
    Manifest {
        /// The campaign.
        campaign: CampaignId,
    },
    /// The plan of an approved campaign. The document is the plan.
    Plan {
        /// The campaign.
        campaign: CampaignId,
    },
    /// A campaign changed its state: started, paused, withdrawn, ended.
    Campaign {
        /// The campaign.
        campaign: CampaignId,
        /// The state it entered.
        state: CampaignState,
        /// Why, for a person.
        reason: String,
    },
    /// A gate was decided.
    Gate {
        /// The campaign.
        campaign: CampaignId,
        /// The wave, counted from 0.
        wave: u32,
        /// The verdict; `unknown` when the wave was opened.
        verdict: GateVerdict,
        /// Why, for a person.
        reason: String,
    },
    /// A permit was issued. The document is its envelope.
    Permit {
        /// The campaign.
        campaign: CampaignId,
        /// Update or rollback.
        what: PermitKind,
        /// Its sequence in the campaign.
        sequence: u64,
    },
    /// An attempt ended. The document is the node's signed report.
    Result {
        /// The campaign.
        campaign: CampaignId,
        /// Update or rollback.
        what: PermitKind,
        /// The device.
        device: DeviceId,
        /// The node that reports.
        node: NodeId,
        /// How it ended.
        state: AttemptState,
    },
    /// A node was allowed to enrol.
    Invitation {
        /// The node.
        node: NodeId,
        /// Where it will stand.
        path: TopologyPath,
    },
    /// A node was given a certificate. The document is the certificate (DER).
    Enrolment {
        /// The node.
        node: NodeId,
        /// Where it stands.
        path: TopologyPath,
        /// Its key.
        key: PublicKey,
    },
    /// A node was taken out of the fleet. The document, if any, is the signed order.
    Revocation {
        /// The node.
        node: NodeId,
        /// Why, for a person.
        reason: String,
    },
    /// A brake was published or released. The document is the signed order.
    Brake {
        /// What it stops, for a person.
        scope: String,
    },
    /// Devices of a campaign were sent back by people. The document, if any, is the approvers' signed order.
    Rollback {
        /// The campaign.
        campaign: CampaignId,
        /// Who goes back, for a person.
        scope: String,
        /// Why, for a person.
        reason: String,
    },
    /// An operator has closed an attempt, or a whole campaign, by force.
    Closing {
        /// The campaign.
        campaign: CampaignId,
        /// The device whose attempt it was; the whole campaign if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<DeviceId>,
        /// Why, for a person.
        reason: String,
    },
    /// An approver was asked between two waves, or has answered. The document of an answer is the signed word.
    Approval {
        /// The campaign.
        campaign: CampaignId,
        /// The wave that has passed, counted from 0.
        wave: u32,
        /// `asked`, `approved` or `refused`.
        answer: String,
        /// Why, for a person.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
        /// The approvers' keys that signed the answer, in hexadecimal.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        by: Vec<String>,
    },
    /// An outside system was asked between two waves (`unknown`), or has said something else than before.
    Webhook {
        /// The campaign.
        campaign: CampaignId,
        /// The wave that has passed, counted from 0.
        wave: u32,
        /// The name of the webhook.
        webhook: String,
        /// What it said.
        verdict: GateVerdict,
        /// Why.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// Somebody made a request that changed something, and was allowed to.
    Access {
        /// Who, such as `key:9f2c...`, `oidc:alice` or `bootstrap`.
        by: String,
        /// How he has proven it: `bootstrap`, `api_key`, `oidc` or `ldap`.
        means: String,
        /// The permission that allowed it.
        permission: String,
        /// Method and path.
        request: String,
    },
    /// An API key was made, given another secret, or revoked.
    Key {
        /// The key.
        key: String,
        /// Whose it is, or what it is for.
        name: String,
        /// Its role.
        role: String,
        /// `made`, `rotated` or `revoked`.
        what: String,
        /// Who did it.
        by: String,
    },
    /// An operator was given an image, or a part of it.
    Export {
        /// The release's target, such as `firmware/acme-r1-bmc-1.1.0`.
        target: String,
        /// The image.
        artifact: ArtifactId,
        /// The first byte that was asked for.
        first: u64,
        /// How many bytes.
        length: u64,
        /// Who was given it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// An operator changed something that the coordinator keeps and nobody signs.
    Change {
        /// What kind of thing: `device`, `firmware`, `baseline` ...
        subject: String,
        /// Its name.
        name: String,
        /// What was done to it: `registered`, `removed` ...
        change: String,
    },
}

impl Entry {
    /// Reads an entry. The caller has found its hash in the tree before, or is about to.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EntryError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge(bytes.len()));
        }
        let entry: Self = serde_json::from_slice(bytes).map_err(EntryError::Malformed)?;
        if entry.schema == ENTRY_SCHEMA {
            Ok(entry)
        } else {
            Err(EntryError::Schema(entry.schema.chars().take(80).collect()))
        }
    }

    /// The text that is hashed.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("an entry has only names, numbers and text")
    }
}

impl Event {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Log { .. } => "log",
            Self::Metadata { .. } => "metadata",
            Self::Manifest { .. } => "manifest",
            Self::Plan { .. } => "plan",
            Self::Campaign { .. } => "campaign",
            Self::Gate { .. } => "gate",
            Self::Permit { .. } => "permit",
            Self::Result { .. } => "result",
            Self::Invitation { .. } => "invitation",
            Self::Enrolment { .. } => "enrolment",
            Self::Revocation { .. } => "revocation",
            Self::Brake { .. } => "brake",
            Self::Rollback { .. } => "rollback",
            Self::Closing { .. } => "closing",
            Self::Approval { .. } => "approval",
            Self::Webhook { .. } => "webhook",
            Self::Access { .. } => "access",
            Self::Key { .. } => "key",
            Self::Export { .. } => "export",
            Self::Change { .. } => "change",
        }
    }

    /// The campaign it is about.
    #[must_use]
    pub fn campaign(&self) -> Option<&CampaignId> {
        match self {
            Self::Manifest { campaign }
            | Self::Plan { campaign }
            | Self::Campaign { campaign, .. }
            | Self::Gate { campaign, .. }
            | Self::Permit { campaign, .. }
            | Self::Rollback { campaign, .. }
            | Self::Closing { campaign, .. }
            | Self::Approval { campaign, .. }
            | Self::Webhook { campaign, .. }
            | Self::Result { campaign, .. } => Some(campaign),
            _ => None,
        }
    }

    /// The device it is about.
    #[must_use]
    pub fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::Result { device, .. } => Some(device),
            _ => None,
        }
    }

    /// The node it is about.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Result { node, .. }
            | Self::Invitation { node, .. }
            | Self::Enrolment { node, .. }
            | Self::Revocation { node, .. } => Some(node),
            _ => None,
        }
    }
}

/// The name of a fleet's log: the fleet CA's certificate (DER) tells fleets apart, and outlives every other key.
#[must_use]
pub fn log_origin(fleet_ca: &[u8]) -> String {
    let digest = Sha256::of(fleet_ca).to_string();
    format!("firmesh/audit/{}", &digest[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text is hashed: another spelling of old entries would be another log.
    #[test]
    fn an_entry_keeps_its_text() {
        let entry = Entry {
            schema: ENTRY_SCHEMA.to_owned(),
            index: 7,
            at: WallTime::from_unix_seconds(0),
            event: Event::Permit {
                campaign: CampaignId::new("spring").unwrap(),
                what: PermitKind::Update,
                sequence: 3,
            },
            document: Some(DocumentRef::of(b"permit")),
        };
        let text = include_str!("../../tests/golden/audit_entry.json").trim_end();
        assert_eq!(entry.to_text(), text);
        assert_eq!(Entry::from_bytes(text.as_bytes()).unwrap(), entry);
        let later = text.replace("audit/1", "audit/2");
        assert!(matches!(
            Entry::from_bytes(later.as_bytes()),
            Err(EntryError::Schema(_))
        ));
        let more = text.replace("\"sequence\":3", "\"sequence\":3,\"hurry\":true");
        assert!(matches!(
            Entry::from_bytes(more.as_bytes()),
            Err(EntryError::Malformed(_))
        ));
    }
}
