//! The node's own restart, for an update of itself: it waits for the attempts that are at work, begins none meanwhile, and is given up in
//! time.

use std::{thread, time::Duration};

use firmesh_node_core::own::holds_restart_up;
use firmesh_protocol::ids::DeviceId;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Runtime;
use crate::own::RestartRequest;

/// How the coordinator was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coordinator {
    /// It answers as it should.
    Answers,
    /// Nobody is there.
    Away,
    /// Somebody is there, and does not answer as it should.
    Odd,
}

/// How long the node has for its own end, once that is decided: what is durable by then is enough.
const END_WITHIN: Duration = Duration::from_secs(30);

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
            end_within(END_WITHIN);
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

    /// Whom this node has heard, and that its own loop goes round.
    pub(super) fn note_heard(&mut self, coordinator: Option<Coordinator>) {
        let (peers, updates_itself) = (self.transport.connected(), self.devices.updates_node());
        self.heard.send_modify(|(heard, at)| {
            *at = Instant::now();
            (heard.peers, heard.updates_itself) = (peers, updates_itself);
            match coordinator {
                Some(Coordinator::Answers) => heard.coordinator = true,
                Some(Coordinator::Away) => heard.coordinator_away = true,
                Some(Coordinator::Odd) => heard.coordinator_away = false,
                None => {}
            }
        });
    }
}

/// Ends the process if it has not ended by itself: whoever waits for a disk that hangs does not come back otherwise. A unit
/// that is stopped has its manager for that.
fn end_within(time: Duration) {
    let end = move || {
        thread::sleep(time);
        warn!("this node has not ended by itself: it is ended");
        std::process::exit(1);
    };
    if let Err(error) = thread::Builder::new().name("end".to_owned()).spawn(end) {
        warn!(%error, "nobody ends this node if it does not end by itself");
    }
}
