//! Checkpoints of the audit log: what the coordinator shows, what neighbours heard, and what follows from a fork.

use std::time::Instant;

use firmesh_protocol::{
    api::AuditNews,
    trust::{Kind, TrustedFleet},
};
use tracing::debug;

use super::{Chain, Runtime};
use crate::{
    audit::AuditError,
    mesh::{MeshCommand, Topic},
};

impl Runtime {
    /// Takes what the coordinator shows of its log. Answers whether its permits may be taken: those of a coordinator
    /// that shows two histories, or hides the one it has, are not.
    pub(super) fn heed_audit(&mut self, news: Option<&AuditNews>) -> bool {
        let learned = self.audit.learn(news, self.fleet.now());
        self.fleet.log_is_forked = self.audit.fork().is_some();
        if let Err(error) = &learned {
            self.complain(error);
        }
        self.tell_checkpoints();
        learned.is_ok()
    }

    /// Takes a checkpoint from the mesh. Answers whether to pass it on.
    pub(super) fn hear_checkpoint(&mut self, note: &[u8]) -> bool {
        let heard = self.audit.hear(note, self.fleet.now());
        match heard {
            Ok(()) => true,
            // Before the first metadata, or while the keys change, nobody can say whose it is.
            Err(AuditError::Checkpoint(error)) => {
                debug!(%error, "a checkpoint from the mesh was not believed");
                false
            }
            Err(error) => {
                self.fleet.log_is_forked = self.audit.fork().is_some();
                self.complain(&error);
                self.tell_checkpoints();
                self.fleet.sync_soon();
                matches!(error, AuditError::Fork(_))
            }
        }
    }

    /// The keys of the timestamp role sign the log: they are as online, and as easily replaced.
    pub(super) fn trust_log_keys(&mut self, fleet: &TrustedFleet) {
        let keys = fleet.metadata().root().key_set(Kind::Timestamp);
        let keys = keys.map(|keys| keys.keys().copied().collect()).unwrap_or_default();
        if let Err(error) = self.audit.trust(keys) {
            self.complain(&error);
        }
        self.fleet.log_is_forked = self.audit.fork().is_some();
    }

    fn complain(&mut self, error: &AuditError) {
        match error {
            AuditError::File { .. } | AuditError::Evidence { .. } => self.local_error(error),
            _ => self.refuse(error.code(), Chain(error).to_string()),
        }
    }

    /// With or without a coordinator: what it told this node, others may have heard differently.
    pub(super) fn tell_checkpoints(&mut self) {
        for note in self.audit.announcements(Instant::now()) {
            self.tell_mesh(MeshCommand::Publish(Topic::Checkpoints, note.into_bytes()));
        }
    }
}
