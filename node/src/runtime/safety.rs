//! What stops things and shuts members out: brakes and revocations. Both come from the coordinator, from the mesh, from a
//! peer at the first word, or (brakes) from a person at this node; both are signed, final, and kept over restarts.

use std::{collections::BTreeMap, io, path::Path};

use firmesh_executors::JournalError;
use firmesh_protocol::{
    brake::{BRAKES_MAX, Brake, BrakeKeys, Braked},
    identity::{certificate_validity, verify_node_record},
    ids::NodeId,
    report::NodeRecord,
    revocation::RevocationList,
    trust::{Envelope, EnvelopeError, TrustedFleet},
    wire::PeerMessage,
};
use tracing::{debug, info, warn};

use super::{Chain, Runtime};
use crate::{
    files::write_durably,
    mesh::{MeshCommand, Topic},
    status::Refusal,
};

/// Every brake that was ever pulled.
const BRAKES_FILE: &str = "brakes.json";

/// The revocation list in force.
const REVOCATIONS_FILE: &str = "revocations.json";

/// The brakes this node knows, and whose word it takes for new ones.
#[derive(Debug, Default)]
pub(super) struct Brakes {
    pulled: BTreeMap<Braked, Envelope>,
    /// Those that the coordinator has not told of.
    untold: BTreeMap<Braked, Envelope>,
    /// The coordinator's count, when it told last.
    pub(super) version: u64,
    keys: Option<BrakeKeys>,
    /// What came before there were keys to verify it with: judged when there are.
    unjudged: Vec<Envelope>,
}

impl Brakes {
    /// What is stopped.
    pub(super) fn all(&self) -> impl Iterator<Item = &Braked> {
        self.pulled.keys()
    }

    /// Brakes that the coordinator may not know.
    pub(super) fn untold(&self) -> Vec<Envelope> {
        self.untold.values().cloned().collect()
    }
}

/// The revocation list in force.
#[derive(Debug, Default)]
pub(super) struct Revocations {
    pub(super) list: RevocationList,
    envelope: Option<Envelope>,
}

/// Brakes that wait for keys at most.
const UNJUDGED_MAX: usize = 16;

impl Runtime {
    /// Takes up what is on disk. It was verified before it was written.
    pub(super) fn begin_safety(&mut self) {
        let brakes = self.read_envelopes(BRAKES_FILE);
        for envelope in brakes {
            if let Some(brake) = Brake::from_own_store(&envelope) {
                self.brakes.untold.insert(brake.braked.clone(), envelope.clone());
                self.brakes.pulled.insert(brake.braked, envelope);
            }
        }
        for envelope in self.read_envelopes(REVOCATIONS_FILE) {
            match RevocationList::open(&envelope, &self.identity.fleet_ca) {
                Ok(list) => {
                    let envelope = Some(envelope);
                    self.revocations = Revocations { list, envelope };
                }
                Err(error) => self.local_error(&error),
            }
        }
    }

    fn read_envelopes(&mut self, file: &str) -> Vec<Envelope> {
        let read = |path: &Path| serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::other);
        match read(&self.settings.state_dir.join(file)) {
            Ok(envelopes) => envelopes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                self.local_error(&error);
                Vec::new()
            }
        }
    }

    fn write_envelopes<'a>(&self, file: &str, envelopes: impl Iterator<Item = &'a Envelope>) -> io::Result<()> {
        let bytes = serde_json::to_vec(&envelopes.collect::<Vec<_>>()).map_err(io::Error::other)?;
        write_durably(&self.settings.state_dir.join(file), &bytes, 0o644)
    }

    /// Whose word counts from now on; judges what came before there was anybody's.
    pub(super) fn trust_brake_keys(&mut self, fleet: &TrustedFleet) -> Result<(), JournalError> {
        match BrakeKeys::of(fleet) {
            Ok(keys) => self.brakes.keys = Some(keys),
            Err(error) => self.refuse(error.code(), Chain(&error).to_string()),
        }
        for envelope in std::mem::take(&mut self.brakes.unjudged) {
            if let Err(refusal) = self.learn_brake(&envelope) {
                self.refuse(&refusal.code, refusal.detail);
            }
        }
        Ok(())
    }

    /// Takes a brake in, durably, and passes it on if it is new.
    pub(super) fn learn_brake(&mut self, envelope: &Envelope) -> Result<(), Refusal> {
        let refusal = |code: &str, detail: String| Refusal {
            code: code.to_owned(),
            detail,
        };
        let Some(keys) = &self.brakes.keys else {
            if self.brakes.unjudged.len() < UNJUDGED_MAX && !self.brakes.unjudged.contains(envelope) {
                self.brakes.unjudged.push(envelope.clone());
            }
            let detail = "there is no verified metadata here yet to judge a brake by: it is kept and judged then";
            return Err(refusal("no_metadata", detail.to_owned()));
        };
        let brake = keys.open(envelope);
        let brake = brake.map_err(|error| refusal(error.code(), format!("brake: {}", Chain(&error))))?;
        if self.brakes.pulled.contains_key(&brake.braked) {
            return Ok(());
        }
        if self.brakes.pulled.len() >= BRAKES_MAX {
            return Err(refusal(
                "brakes_full",
                format!("{BRAKES_MAX} brakes are kept here already"),
            ));
        }
        warn!(braked = %brake.braked, reason = brake.reason, "a brake was pulled: nothing of it starts any more");
        self.brakes.pulled.insert(brake.braked.clone(), envelope.clone());
        self.brakes.untold.insert(brake.braked, envelope.clone());
        if let Err(error) = self.write_envelopes(BRAKES_FILE, self.brakes.pulled.values()) {
            // It holds as long as this process lives, and peers tell it again after that.
            self.local_error(&error);
        }
        let bytes = envelope.to_bytes();
        self.transport.broadcast(&PeerMessage::Brake {
            envelope: bytes.clone(),
        });
        self.tell_mesh(MeshCommand::Publish(Topic::Brakes, bytes));
        self.fleet.sync_soon();
        Ok(())
    }

    /// Takes over the coordinator's brakes. Those it did not list it is told again.
    pub(super) fn heed_brakes(&mut self, told: Option<Vec<Envelope>>, version: u64) {
        for envelope in told.into_iter().flatten() {
            if let Err(refusal) = self.learn_brake(&envelope) {
                self.refuse(&refusal.code, refusal.detail);
            }
            if let Some(brake) = Brake::from_own_store(&envelope) {
                self.brakes.untold.remove(&brake.braked);
            }
        }
        self.brakes.version = version;
    }

    /// Takes a revocation list in; answers whether it is the fleet CA's.
    pub(super) fn learn_revocations(&mut self, envelope: &Envelope) -> Result<bool, JournalError> {
        let list = match RevocationList::open(envelope, &self.identity.fleet_ca) {
            Ok(list) => list,
            Err(error) => {
                self.refuse("bad_revocations", Chain(&error).to_string());
                return Ok(false);
            }
        };
        if list.version <= self.revocations.list.version {
            return Ok(true);
        }
        if !list.supersedes(&self.revocations.list) {
            let detail = format!(
                "revocation list {} leaves out keys that were revoked before",
                list.version
            );
            self.refuse("revocation_taken_back", detail);
            return Ok(false);
        }
        info!(version = list.version, revoked = list.revoked.len(), "revocation list");
        if let Some(revoked) = list.revoked.get(&self.identity.key.public()) {
            let detail = format!("this node's own key was revoked: {}", revoked.reason);
            self.refuse("revoked", detail);
        }
        if let Err(error) = self.write_envelopes(REVOCATIONS_FILE, [envelope].into_iter()) {
            self.local_error(&error);
        }
        self.revocations = Revocations {
            list,
            envelope: Some(envelope.clone()),
        };
        self.drop_invalid_members()?;
        let bytes = envelope.to_bytes();
        self.transport.broadcast(&PeerMessage::Revocations {
            envelope: bytes.clone(),
        });
        self.tell_mesh(MeshCommand::Publish(Topic::Revocations, bytes));
        Ok(true)
    }

    /// Drops members whose certificate has expired since they were taken in: no handshake tells, where one is open or where
    /// only keys are looked at.
    pub(super) fn drop_lapsed_members(&mut self) -> Result<(), JournalError> {
        let now = self.fleet.now();
        let is_lapsed = |(node, (record, _)): (&NodeId, &(NodeRecord, Envelope))| {
            let validity = hex::decode(&record.certificate)
                .ok()
                .and_then(|der| certificate_validity(&der).ok());
            *node != self.settings.node && validity.is_none_or(|(_, until)| until < now)
        };
        match self.fleet.roster.iter().any(is_lapsed) {
            true => self.drop_invalid_members(),
            false => Ok(()),
        }
    }

    /// Drops members whose key was revoked, or whose certificate has expired since they were taken in.
    fn drop_invalid_members(&mut self) -> Result<(), JournalError> {
        let now = self.fleet.now();
        let is_valid = |node: &NodeId, envelope: &Envelope| {
            let verified = verify_node_record(envelope, &self.identity.fleet_ca, now);
            *node == self.settings.node
                || verified.is_ok_and(|(_, identity)| !self.revocations.list.contains(&identity.key))
        };
        let invalid: Vec<_> = self
            .fleet
            .roster
            .iter()
            .filter(|(node, (_, envelope))| !is_valid(node, envelope))
            .map(|(node, _)| node.clone())
            .collect();
        if invalid.is_empty() {
            return Ok(());
        }
        for node in invalid {
            warn!(%node, "no member any more: its key was revoked, or its certificate has expired");
            self.fleet.roster.remove(&node);
        }
        // Perhaps it is the clock here that was wrong.
        self.ask_for_roster_again();
        self.roster_changed()
    }

    /// Tells a peer that has just connected what it may have missed.
    pub(super) fn tell_newcomer(&self, peer: &NodeId) {
        for envelope in self.brakes.pulled.values() {
            let envelope = envelope.to_bytes();
            self.transport.send(peer, PeerMessage::Brake { envelope });
        }
        if let Some(envelope) = &self.revocations.envelope {
            let envelope = envelope.to_bytes();
            self.transport.send(peer, PeerMessage::Revocations { envelope });
        }
    }

    /// What a peer said at the first word or since. Nothing it could say harms: it is signed by others or ignored.
    pub(super) fn on_peer_word(&mut self, peer: &NodeId, message: &PeerMessage) -> Result<(), JournalError> {
        let (PeerMessage::Brake { envelope } | PeerMessage::Revocations { envelope }) = message else {
            return Ok(());
        };
        let envelope = match Envelope::from_bytes(envelope) {
            Ok(envelope) => envelope,
            Err(error) => return self.not_believed(peer, &error),
        };
        match message {
            PeerMessage::Brake { .. } => {
                if let Err(refusal) = self.learn_brake(&envelope) {
                    debug!(%peer, code = refusal.code, detail = refusal.detail, "a peer's brake does not count here");
                }
            }
            _ => drop(self.learn_revocations(&envelope)?),
        }
        self.consider()
    }

    fn not_believed(&mut self, peer: &NodeId, error: &EnvelopeError) -> Result<(), JournalError> {
        debug!(%peer, %error, "a peer passed on what is no envelope");
        Ok(())
    }
}
