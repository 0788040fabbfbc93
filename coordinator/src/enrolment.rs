//! Who belongs to the fleet: enrolment with a one-time token, certificates renewed for the same key, keys revoked for
//! good.
//!
//! Invariants: a certificate is issued for a key whose owner has shown a token or the certificate in force; a revoked key
//! never gets another; a revocation is durable before it is told.

use firmesh_coordinator_core::Input;
use firmesh_protocol::{
    api::{EnrolRequest, EnrolResponse, EnrolmentTicket, NewNode, RenewRequest, RevokeRequest},
    identity::NodeIdentity,
    ids::{NodeId, Sha256},
    revocation::{REVOCATION_REASON_BYTES_MAX, REVOCATIONS_MAX, RevocationList, Revoked},
    trust::{Envelope, PublicKey},
};
use tracing::{info, warn};

use crate::{
    authority::{IssueError, new_token},
    runtime::{ActionError, Runtime},
    store::{StoredNode, Ticket, Write},
    world::NodeState,
};

/// Why a node was not enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    /// No ticket, one used by another key, an expired one or another token: which of them is nobody's business.
    #[error("no open enrolment for node {0} has this token: make a new one with `firmesh node enrol`")]
    BadToken(NodeId),
    /// The request for the certificate.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// Storing it failed.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A key that was revoked.
    #[error(
        "the key of node {0} was revoked: it stays so; remove its state folder, and enrol it with a new key and a new token"
    )]
    Revoked(NodeId),
    /// A renewal for another key, or not with the certificate in force.
    #[error("node {0} may renew the certificate in force, for the key in it, and nothing else")]
    NotCurrent(NodeId),
    /// No node of this name, or one without a key.
    #[error("there is no enrolled node {0}")]
    Unknown(NodeId),
    /// A reason that is none, or endless; or a list that is full.
    #[error("{0}")]
    BadRevocation(String),
    /// The system gave no randomness.
    #[error("the system gave no randomness for a token")]
    NoRandomness(#[source] getrandom::Error),
}

/// The revoked keys, as a list and as it was signed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Revocations {
    pub(crate) list: RevocationList,
    pub(crate) envelope: Option<Envelope>,
}

impl Revocations {
    /// Takes over a list that this coordinator signed and stored.
    pub(crate) fn restore(envelope: Envelope) -> Self {
        Self {
            list: RevocationList::from_own_store(&envelope).unwrap_or_default(),
            envelope: Some(envelope),
        }
    }
}

impl StoredNode {
    /// The key that its certificate is for.
    pub(crate) fn key(&self) -> Option<PublicKey> {
        let certificate = self.certificate.as_ref()?;
        Some(NodeIdentity::from_verified_certificate(certificate).ok()?.key)
    }

    /// Whether `certificate` is the one in force, or the one that it is to replace.
    pub(crate) fn has(&self, certificate: &[u8]) -> bool {
        [&self.certificate, &self.certificate_before]
            .into_iter()
            .flatten()
            .any(|known| known == certificate)
    }
}

impl Runtime {
    pub(crate) async fn new_node(&mut self, new: NewNode) -> Result<EnrolmentTicket, EnrolError> {
        let token = new_token().map_err(EnrolError::NoRandomness)?;
        let expires = self.clock.wall() + self.settings.enrolment_token_ttl;
        let ticket = Ticket {
            path: new.path.clone(),
            token_sha256: Sha256::of(token.as_bytes()),
            expires,
            key: None,
        };
        let known = self.world.nodes.get(&new.node).map(|node| node.stored.clone());
        let mut stored = known.unwrap_or_else(|| StoredNode {
            node: new.node.clone(),
            path: new.path.clone(),
            ticket: None,
            certificate: None,
            certificate_before: None,
            record: None,
            acked: 0,
            last_seen: None,
            silent: false,
        });
        stored.ticket = Some(ticket);
        self.commit(vec![Write::Node(Box::new(stored.clone()))])
            .await
            .map_err(ActionError::from)?;
        let fresh = NodeState::new(stored.clone());
        self.world.nodes.entry(new.node.clone()).or_insert(fresh).stored = stored;
        Ok(EnrolmentTicket {
            node: new.node,
            path: new.path,
            token,
            fleet_ca_pem: self.authority.ca_pem().to_owned(),
            node_url: self.node_url.clone(),
            expires,
        })
    }

    pub(crate) async fn enrol(&mut self, request: EnrolRequest) -> Result<EnrolResponse, EnrolError> {
        let wall = self.clock.wall();
        let bad_token = || EnrolError::BadToken(request.node.clone());
        let node = self.world.nodes.get(&request.node).ok_or_else(bad_token)?;
        let good = |ticket: &&Ticket| {
            ticket.token_sha256 == Sha256::of(request.token.trim().as_bytes()) && wall <= ticket.expires
        };
        let ticket = node.stored.ticket.as_ref().filter(good).ok_or_else(bad_token)?;
        let issued = self.authority.issue_node(
            &request.node,
            &ticket.path,
            &request.csr_pem,
            wall,
            self.settings.certificate_validity,
        )?;
        if ticket.key.is_some_and(|enrolled| enrolled != issued.key) {
            return Err(bad_token());
        }
        if self.world.revocations.list.contains(&issued.key) {
            return Err(EnrolError::Revoked(request.node));
        }
        let ticket = Ticket {
            key: Some(issued.key),
            ..ticket.clone()
        };
        let stored = StoredNode {
            path: ticket.path.clone(),
            ticket: Some(ticket),
            certificate: Some(issued.der),
            certificate_before: None,
            // Perhaps another node process, with a new journal: its record and its reports start again.
            record: None,
            acked: 0,
            ..node.stored.clone()
        };
        let mut writes = vec![Write::Node(Box::new(stored.clone()))];
        // Where it stood nobody is to look for it any more.
        let left = node.stored.record.as_ref().map(|(record, _)| record.path.clone());
        let roster_version = self.world.roster_version + u64::from(left.is_some());
        if left.is_some() {
            writes.push(Write::RosterVersion(roster_version));
        }
        self.apply(Input::Enrolled(request.node.clone()), writes).await?;
        info!(node = %request.node, path = %stored.path, key = %issued.key, "node enrolled");
        if let Some(node) = self.world.nodes.get_mut(&request.node) {
            node.stored = stored;
        }
        if let Some(left) = left {
            self.world.roster_is(roster_version, request.node, [Some(&left), None]);
        }
        Ok(EnrolResponse {
            certificate_pem: issued.pem,
            fleet_ca_pem: self.authority.ca_pem().to_owned(),
        })
    }

    /// Another certificate for the same key. The one it replaces stays good until the new one is shown, so that an
    /// answer which never arrives locks nobody out.
    pub(crate) async fn renew_certificate(
        &mut self,
        identity: &NodeIdentity,
        certificate: &[u8],
        request: &RenewRequest,
    ) -> Result<EnrolResponse, EnrolError> {
        let not_current = || EnrolError::NotCurrent(identity.node.clone());
        let node = self.world.nodes.get(&identity.node).ok_or_else(not_current)?;
        if self.world.revocations.list.contains(&identity.key) {
            return Err(EnrolError::Revoked(identity.node.clone()));
        }
        if !node.stored.has(certificate) {
            return Err(not_current());
        }
        let (wall, validity) = (self.clock.wall(), self.settings.certificate_validity);
        let issued = self
            .authority
            .issue_node(&identity.node, &node.stored.path, &request.csr_pem, wall, validity)?;
        if issued.key != identity.key {
            return Err(not_current());
        }
        let stored = StoredNode {
            certificate: Some(issued.der),
            certificate_before: Some(certificate.to_vec()),
            ..node.stored.clone()
        };
        self.commit(vec![Write::Node(Box::new(stored.clone()))])
            .await
            .map_err(ActionError::from)?;
        info!(node = %identity.node, "certificate renewed");
        if let Some(node) = self.world.nodes.get_mut(&identity.node) {
            node.stored = stored;
        }
        Ok(EnrolResponse {
            certificate_pem: issued.pem,
            fleet_ca_pem: self.authority.ca_pem().to_owned(),
        })
    }

    /// Revokes the key a node has now. The node is a member no more; enrolled again with another key it is another one.
    pub(crate) async fn revoke(&mut self, id: &NodeId, request: RevokeRequest) -> Result<(), EnrolError> {
        let unknown = || EnrolError::Unknown(id.clone());
        let node = self.world.nodes.get(id).ok_or_else(unknown)?;
        let key = node.stored.key().ok_or_else(unknown)?;
        let reason = request.reason;
        if reason.trim().is_empty() || reason.len() > REVOCATION_REASON_BYTES_MAX {
            let problem = format!("say why, in 1 to {REVOCATION_REASON_BYTES_MAX} bytes");
            return Err(EnrolError::BadRevocation(problem));
        }
        let mut list = self.world.revocations.list.clone();
        if list.contains(&key) {
            return Ok(());
        }
        if list.revoked.len() >= REVOCATIONS_MAX {
            let problem = format!("{REVOCATIONS_MAX} keys are revoked already: begin a new fleet CA");
            return Err(EnrolError::BadRevocation(problem));
        }
        list.version += 1;
        let at = self.clock.wall();
        let entry = Revoked {
            node: id.clone(),
            at,
            reason: reason.clone(),
        };
        list.revoked.insert(key, entry);
        let envelope = self.authority.sign_revocations(&list);
        let stored = StoredNode {
            ticket: None,
            record: None,
            ..node.stored.clone()
        };
        let roster_version = self.world.roster_version + 1;
        let writes = vec![
            Write::Revocations {
                node: id.clone(),
                reason,
                envelope: envelope.clone(),
            },
            Write::Node(Box::new(stored.clone())),
            Write::RosterVersion(roster_version),
        ];
        self.commit(writes).await.map_err(ActionError::from)?;
        warn!(node = %id, %key, "node revoked");
        let mut stood = None;
        if let Some(node) = self.world.nodes.get_mut(id) {
            let before = std::mem::replace(&mut node.stored, stored);
            stood = before.record.map(|(record, _)| record.path);
        }
        self.world.roster_is(roster_version, id.clone(), [stood.as_ref(), None]);
        self.world.revocations = Revocations {
            list,
            envelope: Some(envelope),
        };
        Ok(())
    }
}
