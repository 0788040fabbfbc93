//! Who a certificate of the fleet CA speaks for.
//!
//! A node's certificate names it twice (CN and SAN DNS), says where it stands (SAN URI `firmesh:path/<path>`), and holds
//! the node's only key, which signs its reports and is its identity in the mesh.

use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    ids::{NodeId, TopologyPath},
    report::{NODE_RECORD_TYPE, NodeRecord},
    time::WallTime,
    trust::{Envelope, EnvelopeError, KeySet, KeySetError, PublicKey},
};

/// How a certificate's SAN names the place.
pub const PATH_URI_PREFIX: &str = "firmesh:path/";

/// The longest certificate worth parsing: a fleet certificate has about 500 bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 8 << 10;

/// Whom a certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// Its key.
    pub key: PublicKey,
}

/// Why a certificate does not speak for a node of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not an X.509 certificate of bounded size.
    #[error("the certificate cannot be read")]
    Malformed,
    /// The key is not ed25519, or is weak.
    #[error("the certificate's key is not a usable ed25519 key")]
    BadKey,
    /// A name is missing or malformed.
    #[error("the certificate has no well-formed {0}")]
    Missing(&'static str),
    /// The fleet CA did not sign it.
    #[error("the certificate of {0} is not signed by the fleet CA")]
    NotIssued(NodeId),
    /// It is not valid yet, or no longer.
    #[error("the certificate of {node} is valid from {from} to {to}, it is {now}")]
    OutsideValidity {
        /// The node.
        node: NodeId,
        /// The first moment.
        from: WallTime,
        /// The last moment.
        to: WallTime,
        /// The time of the check.
        now: WallTime,
    },
}

impl NodeIdentity {
    /// Reads a certificate (DER) whose chain somebody else has verified, such as the TLS handshake it came from.
    pub fn from_verified_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        read(&parse(der)?)
    }

    /// Reads a certificate (DER) after checking that `fleet_ca` (DER) signed it and that it is valid at `now`.
    pub fn verify(der: &[u8], fleet_ca: &[u8], now: WallTime) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        let identity = read(&certificate)?;
        let ca_key = certificate_key(fleet_ca)?;
        let signature: &[u8; 64] = certificate
            .signature_value
            .data
            .as_ref()
            .try_into()
            .map_err(|_| IdentityError::NotIssued(identity.node.clone()))?;
        if !ca_key.verifies(certificate.tbs_certificate.as_ref(), signature) {
            return Err(IdentityError::NotIssued(identity.node));
        }
        let (from, to) = certificate_validity(der)?;
        if now < from || now > to {
            return Err(IdentityError::OutsideValidity {
                node: identity.node,
                from,
                to,
                now,
            });
        }
        Ok(identity)
    }
}

/// The ed25519 key of a certificate (DER), such as the fleet CA's own.
pub fn certificate_key(der: &[u8]) -> Result<PublicKey, IdentityError> {
    key_of(&parse(der)?)
}

/// The first and the last moment of a certificate (DER).
pub fn certificate_validity(der: &[u8]) -> Result<(WallTime, WallTime), IdentityError> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    let moment = |at: x509_parser::time::ASN1Time| WallTime::from_unix_seconds(at.timestamp());
    Ok((moment(validity.not_before), moment(validity.not_after)))
}

/// Why a node record is not believed.
#[derive(Debug, thiserror::Error)]
pub enum NodeRecordError {
    /// It holds no certificate to check it with.
    #[error("the node record holds no certificate")]
    NoCertificate,
    /// Its certificate does not speak for a node of the fleet.
    #[error(transparent)]
    Certificate(#[from] IdentityError),
    /// Its certificate's key cannot be used.
    #[error(transparent)]
    Key(#[from] KeySetError),
    /// It is not signed with its certificate's key.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It speaks for another node or place than its certificate.
    #[error("the node record is about {claimed}, its certificate is for {certified}")]
    OtherNode {
        /// What the record says.
        claimed: String,
        /// What the fleet CA says.
        certified: String,
    },
}

/// Opens a node record: the fleet CA signed the certificate in it, the certificate's key signed the record, and both are
/// about the same node at the same place.
pub fn verify_node_record(
    envelope: &Envelope,
    fleet_ca: &[u8],
    now: WallTime,
) -> Result<(NodeRecord, NodeIdentity), NodeRecordError> {
    #[derive(serde::Deserialize)]
    struct Claim {
        certificate: String,
    }
    let claim: Claim =
        serde_json::from_slice(envelope.unverified_payload()).map_err(|_| NodeRecordError::NoCertificate)?;
    let certificate = hex::decode(claim.certificate).map_err(|_| NodeRecordError::NoCertificate)?;
    let identity = NodeIdentity::verify(&certificate, fleet_ca, now)?;
    let keys = KeySet::of(identity.node.as_str(), 1, [identity.key])?;
    let record = envelope.open::<NodeRecord>(&keys, NODE_RECORD_TYPE)?.into_inner();
    if record.node != identity.node || record.path != identity.path {
        return Err(NodeRecordError::OtherNode {
            claimed: format!("{} at {}", record.node, record.path),
            certified: format!("{} at {}", identity.node, identity.path),
        });
    }
    Ok((record, identity))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(IdentityError::Malformed);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(IdentityError::Malformed),
    }
}

fn key_of(certificate: &X509Certificate<'_>) -> Result<PublicKey, IdentityError> {
    let bytes: &[u8; 32] = certificate
        .public_key()
        .subject_public_key
        .data
        .as_ref()
        .try_into()
        .map_err(|_| IdentityError::BadKey)?;
    PublicKey::from_bytes(bytes).map_err(|_| IdentityError::BadKey)
}

fn read(certificate: &X509Certificate<'_>) -> Result<NodeIdentity, IdentityError> {
    let key = key_of(certificate)?;
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|extension| &extension.value.general_names[..])
        .unwrap_or_default();
    let node = names
        .iter()
        .find_map(|name| match name {
            GeneralName::DNSName(name) => NodeId::new(*name).ok(),
            _ => None,
        })
        .ok_or(IdentityError::Missing("node name (SAN DNS)"))?;
    let path = names
        .iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(PATH_URI_PREFIX)?.parse().ok(),
            _ => None,
        })
        .ok_or(IdentityError::Missing("topology path (SAN URI)"))?;
    Ok(NodeIdentity { node, path, key })
}
