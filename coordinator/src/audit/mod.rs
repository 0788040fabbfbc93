//! The audit log: every durable change that allows, decides or tells something becomes an entry in the same transaction.
//!
//! Invariants: entries are made from the writes themselves, so nothing can be stored and not be logged; the checkpoint of
//! the new size is signed and stored with them; at every start the tree is built from the hashes of its tiles and the text of
//! the last entries, and all other text is read soon after; a log that is not the one this coordinator signed is not gone on
//! with.

mod drafts;
mod log;
mod proofs;

pub(crate) use drafts::{Document, Draft, Drafts};
pub(crate) use log::Log;
pub use log::LogProblem;

use std::sync::Arc;

use firmesh_protocol::{
    audit::{Checkpoint, Tree, log_origin},
    time::WallTime,
};

use crate::authority::Authority;

/// What signs the log: the key of snapshot and timestamp, which nodes find in the root.
#[derive(Debug, Clone)]
pub(crate) struct LogKey {
    authority: Arc<Authority>,
    origin: String,
}

impl LogKey {
    pub(crate) fn new(authority: Arc<Authority>) -> Self {
        let origin = log_origin(authority.ca_der());
        Self { authority, origin }
    }

    /// The log's name.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn fleet_ca(&self) -> &[u8] {
        self.authority.ca_der()
    }

    /// The signed checkpoint of a tree.
    fn sign(&self, tree: &Tree, at: WallTime) -> String {
        let checkpoint = Checkpoint {
            origin: self.origin.clone(),
            size: tree.size(),
            root: tree.root(),
            at,
        };
        checkpoint.sign(self.authority.online_key())
    }

    /// Whether the present key has signed a note.
    fn has_signed(&self, note: &str) -> bool {
        Checkpoint::open(
            note.as_bytes(),
            Some(&self.origin),
            &[self.authority.online_key().public()],
        )
        .is_ok()
    }
}

#[cfg(test)]
mod tests;
