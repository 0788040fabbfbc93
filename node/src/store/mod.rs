//! The piece store: verified bytes only, in and out.

mod engine;

use std::{fmt, io, ops::Range, pin::Pin, sync::Arc};

use bytes::Bytes;
use firmesh_protocol::{
    chunk::{ChunkRanges, PieceLayout},
    ids::ArtifactId,
    pieces::PieceSet,
};
use futures_util::{future::BoxFuture, stream::BoxStream};
use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncSeek};

pub use engine::{KeyError, OpenError, Pace, PieceStore, Scrubbed, StoreKey, Survey, Surveyed, bytes_whole};

/// A piece that was held and is not any more: its bytes on disk changed. It is to be fetched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The artifact.
    pub artifact: ArtifactId,
    /// The piece.
    pub piece: u32,
}

/// A reader over a complete artifact.
pub trait Read: AsyncRead + AsyncSeek + Send {}

impl<T: AsyncRead + AsyncSeek + Send> Read for T {}

/// Where a node keeps artifacts. An engine stores and serves nothing that it has not verified against the root.
pub trait ChunkStore: fmt::Debug + Send + Sync {
    /// The pieces that are verified and survive the death of this process.
    fn pieces(&self, artifact: ArtifactId, layout: PieceLayout) -> BoxFuture<'_, Result<PieceSet, StoreError>>;

    /// Verifies an encoded piece (see [`firmesh_protocol::chunk`]) and makes it durable.
    fn put(
        &self,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
        encoded: Bytes,
    ) -> BoxFuture<'_, Result<(), PutError>>;

    /// A byte range, encoded with its proof, as a stream. The stream ends with an error item if a part of the range is not
    /// held (`NotFound`), or cannot be given for another reason (any other kind).
    fn slice(&self, artifact: ArtifactId, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>>;

    /// Some chunk groups of one piece, as the tree counts them, encoded with their proof; errors as of
    /// [`slice`](Self::slice).
    fn groups(&self, artifact: ArtifactId, chunks: ChunkRanges) -> BoxFuture<'static, io::Result<Bytes>>;

    /// The artifacts whose every piece is held, with their lengths.
    fn whole(&self) -> BoxFuture<'_, Result<Vec<(ArtifactId, u64)>, StoreError>>;

    /// A reader over an artifact whose every piece is held: no one else's bytes are worth reading.
    fn reader(&self, artifact: ArtifactId) -> Pin<Box<dyn Read>>;

    /// Makes everything durable and stops.
    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// The store could not do its work.
#[derive(Debug, thiserror::Error)]
#[error("the piece store in {folder} could not {operation}; check its disk and permissions")]
pub struct StoreError {
    /// What was tried.
    pub operation: &'static str,
    /// The store's folder.
    pub folder: std::path::PathBuf,
    /// What the engine said.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    /// Whether there was no room on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let error = self.source.downcast_ref::<io::Error>();
        let shared = self.source.downcast_ref::<Arc<io::Error>>();
        let code = error
            .or_else(|| shared.map(|shared| &**shared))
            .and_then(io::Error::raw_os_error);
        let no_room = [Errno::ENOSPC, Errno::EDQUOT, Errno::EFBIG];
        code.is_some_and(|code| no_room.iter().any(|errno| *errno as i32 == code))
    }
}

/// A piece that was not stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The bytes do not belong to the artifact.
    #[error(transparent)]
    Corrupt(#[from] firmesh_protocol::chunk::DecodeError),
    /// The store could not do its work.
    #[error(transparent)]
    Store(#[from] StoreError),
}
