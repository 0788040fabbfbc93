//! Slices of artifacts, asked for and served: one request and one answer a stream, paid for out of the budgets.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use bytes::BytesMut;
use firmesh_protocol::{
    chunk::{ChunkRanges, ENCODED_PIECE_BYTES_MAX, PIECE_BYTES_MAX, PieceLayout, SLICE_BYTES_MAX},
    groups::Groups,
    ids::{ArtifactId, NodeId, TopologyPath},
    time::WallTime,
};
use futures_util::{StreamExt as _, stream};
use iroh_blobs::protocol::{GetRequest, Request};
use tracing::debug;

use super::{
    FetchError, Inner, Received, Transport,
    budget::{Scope, Way},
    class::Class,
    identity_of,
};

/// A request names one hash and one range: far less than this.
const REQUEST_BYTES_MAX: usize = 4 << 10;

/// The peer does not hold what was asked for.
const RESET_NOT_HELD: quinn::VarInt = quinn::VarInt::from_u32(2);

/// The peer could not serve, for reasons of its own.
const RESET_TROUBLE: quinn::VarInt = quinn::VarInt::from_u32(3);

/// Bytes that go at once under a budget.
const PAID_BYTES: usize = 16 << 10;

impl Transport {
    /// Waits until the budgets let a piece in from a peer, or from the origin if there is none.
    pub async fn await_budget(&self, from: Option<&NodeId>, bytes: usize) {
        self.pay(Way::In, from, bytes).await;
    }

    pub(super) async fn pay(&self, way: Way, peer: Option<&NodeId>, bytes: usize) {
        if self.0.budgets.are_none() {
            return;
        }
        let wait = {
            let peers = self.peers();
            let scope_of = |id: &NodeId| {
                peers
                    .roster
                    .get(id)
                    .map_or(Scope::Site, |member| self.0.boundary_to(&member.path))
            };
            let widest = peer.map_or(Scope::Site, scope_of);
            // This node, and those of the same rack or site that are there.
            let sharers = |scope| {
                let inside = |id: &&NodeId| match scope {
                    Scope::Node => false,
                    Scope::Rack => scope_of(id) == Scope::Node,
                    Scope::Site => scope_of(id) <= Scope::Rack,
                };
                1 + peers.control.keys().filter(inside).count()
            };
            let now = (tokio::time::Instant::now(), wall_time());
            self.0.budgets.pay(way, widest, bytes, sharers, now)
        };
        // Even a wait of nothing takes a tick of the timer.
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks a peer for a piece; the answer is not verified yet.
    pub async fn fetch(
        &self,
        peer: &NodeId,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
    ) -> Result<Received, FetchError> {
        self.fetch_chunks(peer, artifact, layout.chunks(piece)).await
    }

    /// Asks a peer for some chunk groups of a piece; the answer is not verified yet.
    pub async fn fetch_groups(
        &self,
        peer: &NodeId,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
        groups: Groups,
    ) -> Result<Received, FetchError> {
        self.fetch_chunks(peer, artifact, groups.chunks(layout, piece)).await
    }

    pub(super) async fn fetch_chunks(
        &self,
        peer: &NodeId,
        artifact: ArtifactId,
        chunks: ChunkRanges,
    ) -> Result<Received, FetchError> {
        let unreachable = |error: Box<dyn std::error::Error + Send + Sync>| FetchError::Unreachable(error);
        let connection = self.blobs_connection(peer).await.map_err(unreachable)?;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| unreachable(error.into()))?;
        let hash = iroh_blobs::Hash::from_bytes(*artifact.as_bytes());
        let request = Request::Get(GetRequest::blob_ranges(hash, chunks));
        let request = postcard::to_allocvec(&request).map_err(|error| unreachable(error.into()))?;
        send.write_all(&request)
            .await
            .map_err(|error| unreachable(error.into()))?;
        send.finish().map_err(|error| unreachable(error.into()))?;
        let (asked, mut waited) = (Instant::now(), None);
        let mut answer = BytesMut::with_capacity(ENCODED_PIECE_BYTES_MAX);
        loop {
            let read = recv.read_chunk(ENCODED_PIECE_BYTES_MAX, true).await;
            let waited = *waited.get_or_insert_with(|| asked.elapsed());
            match read {
                Ok(Some(chunk)) if answer.len() + chunk.bytes.len() > ENCODED_PIECE_BYTES_MAX => {
                    return Err(FetchError::TooLong);
                }
                Ok(Some(chunk)) => answer.extend_from_slice(&chunk.bytes),
                Ok(None) => {
                    let bytes = answer.freeze();
                    return Ok(Received { bytes, waited });
                }
                Err(quinn::ReadError::Reset(RESET_NOT_HELD)) => return Err(FetchError::NotServed),
                Err(error) => return Err(unreachable(error.into())),
            }
        }
    }

    /// Answers slice requests until the peer goes.
    pub(super) async fn serve(&self, peer: &NodeId, connection: &quinn::Connection, class: &Arc<Class>) {
        let Ok(identity) = identity_of(connection) else {
            return;
        };
        while let Ok((send, recv)) = connection.accept_bi().await {
            // Whoever was revoked or banned since the handshake is served no more.
            if let Err(reason) = self.listed(&identity) {
                connection.close(1_u32.into(), reason.as_bytes());
                return;
            }
            let (transport, peer, class) = (self.clone(), peer.clone(), Arc::clone(class));
            // Not ended by `cancel`: a half answer that ends in order would look like a lie. Closing the endpoint ends it.
            self.0.tasks.spawn(async move {
                let mut send = send;
                if let Err(error) = transport.serve_slice(&peer, &class, &mut send, recv).await {
                    // A stream that is dropped ends in order, and a half answer that does looks like a lie.
                    send.reset(RESET_TROUBLE).ok(); // it may have been reset for a better reason already
                    debug!(%peer, %error, "a slice was not served");
                }
            });
        }
    }

    pub(super) async fn serve_slice(
        &self,
        peer: &NodeId,
        class: &Class,
        send: &mut quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let request = recv.read_to_end(REQUEST_BYTES_MAX).await?;
        let Request::Get(request) = postcard::from_bytes::<Request>(&request)? else {
            send.reset(1_u32.into())?;
            return Err("only get requests are served".into());
        };
        let Some(wanted) = Wanted::of(&request) else {
            send.reset(1_u32.into())?;
            return Err("only one bounded range of one artifact, or groups of one piece, are served".into());
        };
        let their_rack = self.peers().roster.get(peer).and_then(|member| member.path.parent());
        let same_rack = their_rack.as_ref() == Some(&self.0.rack);
        let counter = if same_rack {
            &self.0.served.to_rack
        } else {
            &self.0.served.to_other_racks
        };
        let artifact = ArtifactId::from(*request.hash.as_bytes());
        let turn = self.0.precedence.turn(artifact).await;
        let _carried = class.carry(turn.priority());
        let mut slice = match wanted {
            Wanted::Range(range) => self.0.store.slice(artifact, range),
            Wanted::Groups(chunks) => stream::once(self.0.store.groups(artifact, chunks)).boxed(),
        };
        while let Some(part) = slice.next().await {
            match part {
                Ok(mut part) => {
                    counter.fetch_add(part.len() as u64, Ordering::Relaxed);
                    while !part.is_empty() {
                        let next = match self.0.budgets.are_none() {
                            true => part.len(),
                            false => PAID_BYTES.min(part.len()),
                        };
                        self.pay(Way::Out, Some(peer), next).await;
                        send.write_chunk(part.split_to(next)).await?;
                    }
                }
                Err(error) => {
                    // "Not held" is a lie if it was announced; "in trouble" is not.
                    let unknown = error.kind() == io::ErrorKind::NotFound;
                    send.reset(if unknown { RESET_NOT_HELD } else { RESET_TROUBLE })?;
                    return Err(error.into());
                }
            }
        }
        send.finish()?;
        Ok(())
    }

    pub(super) async fn blobs_connection(
        &self,
        peer: &NodeId,
    ) -> Result<quinn::Connection, Box<dyn std::error::Error + Send + Sync>> {
        let addr = {
            let mut peers = self.peers();
            match peers.blobs.get(peer) {
                Some(connection) if connection.close_reason().is_none() => return Ok(connection.clone()),
                _ => peers.blobs.remove(peer),
            };
            if peers.banned.contains(peer) {
                return Err("banned".into());
            }
            peers
                .roster
                .get(peer)
                .map(|member| member.addr)
                .ok_or("not in the roster")?
        };
        let connection = self.connect(peer, addr, self.0.blobs_client.clone()).await?;
        let mut peers = self.peers();
        // Two requests may have dialled at once: the first one's connection stays.
        let kept = peers.blobs.entry(peer.clone()).or_insert(connection);
        Ok(kept.clone())
    }
}

/// What a request asks for.
pub(super) enum Wanted {
    Range(std::ops::Range<u64>),
    /// Which piece they are of, and whether they are groups at all, the store knows, which knows the artifact's length.
    Groups(ChunkRanges),
}

impl Wanted {
    /// One bounded range of one artifact, or groups here and there in one piece; `None` for anything else.
    pub(super) fn of(request: &GetRequest) -> Option<Self> {
        let (0, chunks) = request.ranges.as_single()? else {
            return None;
        };
        let [start, end] = chunks.boundaries() else {
            let (first, last) = (chunks.boundaries().first()?.0, chunks.boundaries().last()?.0);
            let is_bounded = chunks.boundaries().len().is_multiple_of(2) && last - first <= PIECE_BYTES_MAX / 1024;
            return is_bounded.then(|| Self::Groups(chunks.clone()));
        };
        let (start, end) = (start.0.checked_mul(1024)?, end.0.checked_mul(1024)?);
        (start < end && end - start <= SLICE_BYTES_MAX).then_some(Self::Range(start..end))
    }
}

fn wall_time() -> WallTime {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    WallTime::from_unix_seconds(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX))
}

impl Inner {
    /// The widest boundary between this node and one that stands at `path`.
    fn boundary_to(&self, path: &TopologyPath) -> Scope {
        let rack = path.parent();
        match rack.as_ref() == Some(&self.rack) {
            true => Scope::Node,
            false if rack.and_then(|rack| rack.parent()) == self.rack.parent() => Scope::Rack,
            false => Scope::Site,
        }
    }
}
