//! What our piece store is compared with: iroh-blobs' `FsStore`, behind the same trait.
//!
//! It verifies on the way in (we do, before it sees the bytes) and on the way out, and re-hashes a partial artifact on first
//! touch after a crash. It has no barrier before a piece counts as held, and no encryption.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    pin::Pin,
};

use bytes::Bytes;
use firmesh_node::store::{ChunkStore, PutError, Read, StoreError};
use firmesh_protocol::{
    chunk::{ChunkRanges, PieceLayout, chunks_of, verified_items},
    ids::ArtifactId,
    pieces::PieceSet,
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use iroh_blobs::{
    Hash,
    api::Store,
    store::fs::{FsStore, options::PathOptions},
};

/// A chunk of BLAKE3.
const CHUNK_BYTES: u64 = 1024;

/// Content items in flight between verification and the engine: one piece has 64 groups and as many tree nodes.
const ITEMS_IN_FLIGHT: usize = 32;

/// The piece store over iroh-blobs.
#[derive(Debug, Clone)]
pub(super) struct IrohStore {
    folder: PathBuf,
    store: Store,
}

impl IrohStore {
    /// Opens or creates the store in `folder`.
    pub(super) async fn open(folder: &Path) -> Result<Self, StoreError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError {
            operation: "open",
            folder: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(|error| failed(error.into()))?;
        let store = FsStore::load(folder)
            .await
            .map_err(|error| failed(error.to_string().into()))?;
        Ok(Self {
            folder: folder.to_owned(),
            store: store.into(),
        })
    }

    fn failed(&self, operation: &'static str, error: &impl std::fmt::Display) -> StoreError {
        StoreError {
            operation,
            folder: self.folder.clone(),
            source: format!("{error:#}").into(),
        }
    }

    async fn pieces_held(&self, artifact: ArtifactId, layout: PieceLayout) -> Result<PieceSet, StoreError> {
        let held = self
            .store
            .blobs()
            .observe(hash(artifact))
            .await
            .map_err(|error| self.failed("look up an artifact", &error))?;
        let mut pieces = PieceSet::empty(layout.pieces());
        // Boundaries come in pairs; a range without an end reaches to the end of the artifact.
        for range in held.ranges.boundaries().chunks(2) {
            let first = range[0].0 * CHUNK_BYTES;
            let end = range
                .get(1)
                .map_or(u64::MAX, |end| end.0 * CHUNK_BYTES)
                .min(layout.length());
            for piece in layout.whole_pieces(first..end) {
                pieces.insert(piece);
            }
        }
        Ok(pieces)
    }

    async fn put_piece(
        &self,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
        encoded: Bytes,
    ) -> Result<(), PutError> {
        let items = verified_items(&encoded, artifact, layout.length(), &layout.bytes(piece))?;
        let failed = |error: &dyn std::fmt::Display| self.failed("store a piece", &error);
        let size = layout.length().try_into().map_err(|error| failed(&error))?;
        let import = self
            .store
            .blobs()
            .import_bao(hash(artifact), size, ITEMS_IN_FLIGHT)
            .await
            .map_err(|error| failed(&error))?;
        for item in items {
            if import.tx.send(item).await.is_err() {
                break; // the outcome says why
            }
        }
        drop(import.tx);
        import
            .rx
            .await
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))?;
        Ok(())
    }
}

impl ChunkStore for IrohStore {
    fn pieces(&self, artifact: ArtifactId, layout: PieceLayout) -> BoxFuture<'_, Result<PieceSet, StoreError>> {
        self.pieces_held(artifact, layout).boxed()
    }

    fn put(
        &self,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
        encoded: Bytes,
    ) -> BoxFuture<'_, Result<(), PutError>> {
        self.put_piece(artifact, layout, piece, encoded).boxed()
    }

    fn slice(&self, artifact: ArtifactId, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let export = self.store.blobs().export_bao(hash(artifact), chunks_of(&range));
        export
            .into_byte_stream()
            .map(|item| item.map_err(io::Error::other))
            .boxed()
    }

    fn groups(&self, artifact: ArtifactId, chunks: ChunkRanges) -> BoxFuture<'static, io::Result<Bytes>> {
        let store = self.clone();
        async move {
            let export = store.store.blobs().export_bao(hash(artifact), chunks);
            export.bao_to_vec().await.map(Bytes::from).map_err(io::Error::other)
        }
        .boxed()
    }

    fn whole(&self) -> BoxFuture<'_, Result<Vec<(ArtifactId, u64)>, StoreError>> {
        async {
            let failed = |error: &dyn std::fmt::Display| self.failed("look up its artifacts", &error);
            let listed = self
                .store
                .blobs()
                .list()
                .hashes()
                .await
                .map_err(|error| failed(&error))?;
            let mut whole = Vec::new();
            for hash in listed {
                let observed = self.store.blobs().observe(hash).await.map_err(|error| failed(&error))?;
                if observed.is_complete() {
                    whole.push((ArtifactId::from(*hash.as_bytes()), observed.size()));
                }
            }
            Ok(whole)
        }
        .boxed()
    }

    fn reader(&self, artifact: ArtifactId) -> Pin<Box<dyn Read>> {
        // The engine's own reader goes through its inbox a KiB at a time; the data of all but the smallest artifacts lies
        // in a file, which is many times cheaper to read.
        let file = PathOptions::new(&self.folder).data_path(&hash(artifact));
        match std::fs::File::open(file) {
            Ok(file) => Box::pin(tokio::fs::File::from_std(file)),
            Err(_) => Box::pin(self.store.blobs().reader(hash(artifact))),
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            self.store
                .shutdown()
                .await
                .map_err(|error| self.failed("shut down", &error))
        }
        .boxed()
    }
}

fn hash(artifact: ArtifactId) -> Hash {
    Hash::from_bytes(*artifact.as_bytes())
}
