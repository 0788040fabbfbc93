//! The node's own restart, for an update of itself: it waits for the attempts that are at work, begins none meanwhile, and is given up in
//! time.

use firmesh_node_core::own::holds_restart_up;
use firmesh_protocol::ids::DeviceId;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Runtime;
use crate::own::RestartRequest;

/// What is wanted of this node itself.
#[derive(Debug, Default)]
pub(super) struct Restart {
    asked: Option<RestartRequest>,
    /// Who was at work when it was looked last.
    held_up_by: Vec<DeviceId>,
}

impl Restart {
    /// Whether nothing is begun, because the node is about to restart.
    pub(super) fn is_near(&self) -> bool {
        self.asked.is_some()
    }
}

impl Runtime {
    /// Somebody's restart of this node.
    pub(super) fn on_restart_asked(&mut self, request: RestartRequest) {
        self.restart = Restart {
            asked: Some(request),
            held_up_by: Vec::new(),
        };
    }

    /// Restarts the node if that is wanted and nothing speaks against it; what is held back goes on if it is given up.
    pub(super) fn restart_if_quiet(&mut self) -> Result<(), firmesh_executors::JournalError> {
        let Some(request) = &self.restart.asked else {
            return Ok(());
        };
        if request.refused.is_closed() {
            info!("the restart of this node is not wanted any more");
            self.restart = Restart::default();
            return self.consider();
        }
        let at_work = self.devices.at_work(holds_restart_up);
        if at_work.is_empty() || (request.must && Instant::now() >= request.by) {
            if at_work.is_empty() {
                info!("this node ends, to be started again by its launcher");
            } else {
                warn!(devices = ?at_work, "this node ends, to be started again by its launcher; attempts go on after it");
            }
            self.cancel.cancel();
            return Ok(());
        }
        if Instant::now() >= request.by {
            let names: Vec<_> = at_work.iter().map(DeviceId::as_str).collect();
            let why = format!(
                "other attempts of this node were at work all the time: {}",
                names.join(", ")
            );
            warn!(why, "this node does not restart");
            if let Some(request) = self.restart.asked.take() {
                request.refused.send(why).ok(); // whoever asked may have gone
            }
            return self.consider();
        }
        if at_work != self.restart.held_up_by {
            info!(devices = ?at_work, "the restart of this node waits for other attempts");
            self.restart.held_up_by = at_work;
        }
        Ok(())
    }

    /// Whom this node has heard, as far as that changed.
    pub(super) fn note_heard(&mut self, coordinator: Option<bool>) {
        let peers = self.transport.connected();
        self.heard.send_if_modified(|heard| {
            let before = *heard;
            heard.peers = peers;
            match coordinator {
                Some(true) => heard.coordinator = true,
                Some(false) => heard.coordinator_away = true,
                None => {}
            }
            *heard != before
        });
    }
}
