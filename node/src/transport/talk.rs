//! The control stream between two nodes: frames both ways, in the order of their being said.

use firmesh_protocol::{
    ids::NodeId,
    wire::{PeerMessage, WIRE_VERSION},
};
use tokio::sync::mpsc;
use tracing::warn;

use super::{Control, Transport, TransportEvent};

/// Messages waiting for one peer before it counts as not listening and is dropped: many seconds' worth.
const OUTBOX_MAX: usize = 4_096;

impl Transport {
    /// Carries messages both ways until one side ends it.
    pub(super) async fn talk(
        self,
        peer: NodeId,
        connection: quinn::Connection,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let (outbox, mut messages) = mpsc::channel(OUTBOX_MAX);
        let control = Control {
            connection: connection.clone(),
            outbox,
        };
        let replaced = self.peers().control.insert(peer.clone(), control);
        if let Some(old) = replaced {
            old.connection.close(0_u32.into(), b"replaced by a newer connection");
        }
        let hello = PeerMessage::Hello { version: WIRE_VERSION }.to_frame();
        let greeted = send.write_all(&hello).await.is_ok();
        if greeted {
            self.report(TransportEvent::Up(peer.clone())).await;
            let sending = async {
                while let Some(message) = messages.recv().await {
                    if send.write_all(&message.to_frame()).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = sending => {}
                () = self.listen(&peer, &mut recv) => {}
            }
        }
        connection.close(0_u32.into(), b"done");
        let was_current = {
            let mut peers = self.peers();
            let current = peers
                .control
                .get(&peer)
                .is_some_and(|control| control.connection.stable_id() == connection.stable_id());
            if current {
                peers.control.remove(&peer);
                peers.blobs.remove(&peer);
            }
            current
        };
        if was_current {
            self.report(TransportEvent::Down(peer)).await;
        }
    }

    pub(super) async fn listen(&self, peer: &NodeId, recv: &mut quinn::RecvStream) {
        let mut greeted = false;
        loop {
            let message = match read_frame(recv).await {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(reason) => {
                    self.report(TransportEvent::Misbehaved(peer.clone(), reason)).await;
                    return;
                }
            };
            match (greeted, &message) {
                (false, PeerMessage::Hello { .. }) => greeted = true,
                (true, PeerMessage::Hello { .. }) | (false, _) => {
                    let reason = "sent a message out of turn";
                    self.report(TransportEvent::Misbehaved(peer.clone(), reason)).await;
                    return;
                }
                (true, _) => {
                    self.report(TransportEvent::Said(peer.clone(), message)).await;
                }
            }
        }
    }
}

async fn read_frame(recv: &mut quinn::RecvStream) -> Result<Option<PeerMessage>, &'static str> {
    let mut header = [0; 4];
    if recv.read_exact(&mut header).await.is_err() {
        return Ok(None);
    }
    let length = PeerMessage::body_length(header).map_err(|_| "announced a frame that is too long")?;
    let mut body = vec![0; length];
    if recv.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    let message = PeerMessage::from_body(&body).map_err(|error| {
        warn!(%error, "a frame was refused");
        "sent a frame that is not a message of this version"
    })?;
    Ok(Some(message))
}
