//! Who the members of the fleet are, as their signed records say: kept for a restart without a coordinator, and told to
//! the transport, the mesh and the swarm.
//!
//! Invariant: a record counts only with a certificate of the fleet's CA whose key is not revoked, and never replaces one that
//! is as new.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use firmesh_executors::JournalError;
use firmesh_node_core::swarm;
use firmesh_protocol::{
    identity::{NodeIdentity, verify_node_record},
    ids::NodeId,
    limits::PEERS_MAX,
    report::{NODE_RECORD_TYPE, NodeRecord},
    trust::Envelope,
};

use super::{Chain, Runtime};
use crate::{
    files::write_durably,
    identity::NodeKey,
    mesh::{MeshCommand, peer_id},
    transport::Member,
};

/// The roster as last heard, so that a restart without a coordinator finds its peers.
const ROSTER_FILE: &str = "roster.json";

/// How long it takes until a roster that could not be taken as it is is asked for again: all of it.
const ROSTER_AGAIN: Duration = Duration::from_secs(600);

impl Runtime {
    pub(super) fn begin_roster(&mut self) -> Result<(), JournalError> {
        let stored = std::fs::read(self.settings.state_dir.join(ROSTER_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Vec<Envelope>>(&bytes).ok());
        self.learn_records(stored.unwrap_or_default())?;
        Ok(())
    }

    /// Takes over what the coordinator tells of the roster. What could not be taken, because of the clock or for want of
    /// room, is asked for again later: nobody tells it by himself.
    pub(super) fn learn_roster(&mut self, envelopes: Vec<Envelope>) -> Result<(), JournalError> {
        let told = envelopes.len();
        let all_good = self.learn_records(envelopes)?;
        if !all_good || (told > 0 && self.fleet.roster.len() >= PEERS_MAX) {
            self.ask_for_roster_again();
        }
        Ok(())
    }

    /// The roster here is not all that it should be.
    pub(super) fn ask_for_roster_again(&mut self) {
        let again = || Instant::now() + ROSTER_AGAIN;
        self.fleet.roster_again.get_or_insert_with(again);
    }

    /// Takes over every record that verifies and is newer than the one known. Answers whether all verified.
    pub(super) fn learn_records(&mut self, envelopes: Vec<Envelope>) -> Result<bool, JournalError> {
        let (mut all_good, mut changed) = (true, false);
        for envelope in envelopes {
            match verify_node_record(&envelope, &self.identity.fleet_ca, self.fleet.now()) {
                Ok((record, identity)) if self.revocations.list.contains(&identity.key) => {
                    all_good = false;
                    self.refuse("revoked", format!("the key of node {} was revoked", record.node));
                }
                Ok((record, _)) => {
                    let known = self.fleet.roster.get(&record.node).map(|(known, _)| known.sequence);
                    let room = known.is_some() || self.fleet.roster.len() < PEERS_MAX;
                    if known.is_none_or(|known| known < record.sequence) && room {
                        self.fleet.roster.insert(record.node.clone(), (record, envelope));
                        changed = true;
                    }
                }
                Err(error) => {
                    all_good = false;
                    self.refuse("node_record", Chain(&error).to_string());
                }
            }
        }
        if changed {
            self.roster_changed()?;
        }
        Ok(all_good)
    }

    /// These are no peers any more.
    pub(super) fn forget(&mut self, left: &[NodeId]) -> Result<(), JournalError> {
        let before = self.fleet.roster.len();
        for node in left.iter().filter(|node| **node != self.settings.node) {
            self.fleet.roster.remove(node);
        }
        match self.fleet.roster.len() < before {
            true => self.roster_changed(),
            false => Ok(()),
        }
    }

    /// A whole roster: who is not in it any more is no peer any more.
    pub(super) fn forget_leavers(&mut self, roster: &[Envelope]) -> Result<(), JournalError> {
        let listed: BTreeSet<NodeId> = roster
            .iter()
            .filter_map(|envelope| verify_node_record(envelope, &self.identity.fleet_ca, self.fleet.now()).ok())
            .map(|(record, _)| record.node)
            .collect();
        // If nothing verifies, something is wrong here (the clock?): that is no reason to forget everybody.
        if listed.is_empty() {
            return Ok(());
        }
        let before = self.fleet.roster.len();
        self.fleet
            .roster
            .retain(|node, _| listed.contains(node) || *node == self.settings.node);
        if self.fleet.roster.len() < before {
            self.roster_changed()?;
        }
        Ok(())
    }

    pub(super) fn roster_changed(&mut self) -> Result<(), JournalError> {
        let records = || self.fleet.roster.values().map(|(record, _)| record);
        let places = records().map(|record| (record.node.clone(), record.path.clone()));
        let roster: Arc<swarm::Roster> = Arc::new(places.collect());
        let neighbours = roster.neighbours(&self.settings.node, &self.settings.path);
        let known: Vec<_> = records()
            .filter_map(|record| {
                let certificate = hex::decode(&record.certificate).ok()?;
                Some((record, NodeIdentity::from_verified_certificate(&certificate).ok()?.key))
            })
            .collect();
        let peers = known
            .iter()
            .filter_map(|(record, key)| {
                let addr = record.data_addr.parse().ok()?;
                let member = Member {
                    path: record.path.clone(),
                    addr,
                    key: *key,
                    is_neighbour: neighbours.contains(&record.node),
                };
                Some((record.node.clone(), member))
            })
            .collect();
        let members = known
            .iter()
            .filter_map(|(record, key)| {
                let is_neighbour = neighbours.contains(&record.node);
                let addr = is_neighbour.then(|| record.mesh_addr.parse().ok()).flatten();
                Some((peer_id(key)?, addr))
            })
            .collect();
        let envelopes: Vec<_> = self.fleet.roster.values().map(|(_, envelope)| envelope).collect();
        let stored = serde_json::to_vec(&envelopes)
            .map_err(io::Error::other)
            .and_then(|bytes| write_durably(&self.settings.state_dir.join(ROSTER_FILE), &bytes, 0o644));
        if let Err(error) = stored {
            self.local_error(&error);
        }
        self.transport.set_roster(peers);
        self.tell_mesh(MeshCommand::Members(members));
        self.tell_swarm(swarm::Input::Roster { members: roster })?;
        self.transport.dial_missing();
        Ok(())
    }
}

/// This node's record, signed.
pub(super) fn sign_record(record: &NodeRecord, key: &NodeKey) -> Envelope {
    let payload = serde_json::to_vec(record).expect("a record has only names and numbers");
    Envelope::sign(NODE_RECORD_TYPE, payload, [&key.secret()])
}
