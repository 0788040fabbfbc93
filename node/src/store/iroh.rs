//! The first engine of the piece store: iroh-blobs' `FsStore`.
//!
//! It verifies on the way in (we do, before it sees the bytes) and on the way out, re-hashes a partial artifact on first
//! touch after a crash, and knows nothing of peers. What it lacks (quota, eviction, a barrier before "complete") is why it
//! stands behind [`ChunkStore`].

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    pin::Pin,
};

use bytes::Bytes;
use firmesh_protocol::{
    chunk::{PieceLayout, chunks_of, verified_items},
    ids::ArtifactId,
    pieces::PieceSet,
};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use iroh_blobs::{
    Hash,
    api::Store,
    store::fs::{FsStore, options::PathOptions},
};

use super::{ChunkStore, PutError, Read, StoreError};

/// A chunk of BLAKE3.
const CHUNK_BYTES: u64 = 1024;

/// Content items in flight between verification and the engine: one piece has 64 groups and as many tree nodes.
const ITEMS_IN_FLIGHT: usize = 32;

/// The piece store over iroh-blobs.
#[derive(Debug, Clone)]
pub struct IrohStore {
    folder: PathBuf,
    store: Store,
}

impl IrohStore {
    /// Opens or creates the store in `folder`.
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
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

    async fn holds_range(&self, artifact: ArtifactId, range: Range<u64>) -> Result<bool, StoreError> {
        let held = self.store.blobs().observe(hash(artifact)).await;
        let held = held.map_err(|error| self.failed("look up an artifact", &error))?;
        Ok((chunks_of(&range) - held.ranges).is_empty())
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

    fn holds(&self, artifact: ArtifactId, range: Range<u64>) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.holds_range(artifact, range).boxed()
    }

    fn slice(&self, artifact: ArtifactId, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let export = self.store.blobs().export_bao(hash(artifact), chunks_of(&range));
        export
            .into_byte_stream()
            .map(|item| item.map_err(io::Error::other))
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

#[cfg(test)]
mod tests {
    use super::*;
    use firmesh_protocol::chunk::{HashTree, PIECE_BYTES, encode};
    use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

    fn image() -> (Vec<u8>, HashTree, PieceLayout) {
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES + 70_000)
            .map(|at| (at * 7 + at / 999) as u8)
            .collect();
        let tree = HashTree::build(&bytes[..], bytes.len() as u64).unwrap();
        let layout = PieceLayout::new(tree.length);
        (bytes, tree, layout)
    }

    async fn collect(store: &IrohStore, artifact: ArtifactId, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut slice = store.slice(artifact, range);
        let mut bytes = Vec::new();
        while let Some(part) = slice.next().await {
            bytes.extend_from_slice(&part?);
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn pieces_go_in_verified_survive_and_come_out_encoded_alike() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, tree, layout) = image();
        let store = IrohStore::open(folder.path()).await.unwrap();
        for piece in [2, 0] {
            let encoded = encode(&bytes[..], &tree, &layout.bytes(piece)).unwrap();
            store.put(tree.root, layout, piece, encoded.into()).await.unwrap();
        }
        let held = store.pieces(tree.root, layout).await.unwrap();
        assert_eq!(held.iter().collect::<Vec<_>>(), [0, 2]);
        let sent = collect(&store, tree.root, layout.bytes(2)).await.unwrap();
        assert_eq!(sent, encode(&bytes[..], &tree, &layout.bytes(2)).unwrap());
        assert!(collect(&store, tree.root, layout.bytes(1)).await.is_err());
        store.shutdown().await.unwrap();

        let store = IrohStore::open(folder.path()).await.unwrap();
        assert_eq!(store.pieces(tree.root, layout).await.unwrap(), held);
        let encoded = encode(&bytes[..], &tree, &layout.bytes(1)).unwrap();
        store.put(tree.root, layout, 1, encoded.into()).await.unwrap();
        assert!(store.pieces(tree.root, layout).await.unwrap().is_full());
        let mut reader = store.reader(tree.root);
        let mut read = Vec::new();
        reader.seek(io::SeekFrom::Start(PIECE_BYTES - 5)).await.unwrap();
        reader.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, bytes[PIECE_BYTES as usize - 5..]);
        store.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn an_artifact_too_small_for_a_file_is_read_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = b"a few bytes of firmware".to_vec();
        let tree = HashTree::build(&bytes[..], bytes.len() as u64).unwrap();
        let layout = PieceLayout::new(tree.length);
        let store = IrohStore::open(folder.path()).await.unwrap();
        let encoded = encode(&bytes[..], &tree, &layout.bytes(0)).unwrap();
        store.put(tree.root, layout, 0, encoded.into()).await.unwrap();
        let mut read = Vec::new();
        store.reader(tree.root).read_to_end(&mut read).await.unwrap();
        assert_eq!(read, bytes);
        store.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_corrupt_piece_is_refused_and_nothing_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, tree, layout) = image();
        let store = IrohStore::open(folder.path()).await.unwrap();
        let mut encoded = encode(&bytes[..], &tree, &layout.bytes(0)).unwrap();
        let last = encoded.len() - 1;
        encoded[last] ^= 1;
        let refused = store.put(tree.root, layout, 0, encoded.into()).await;
        assert!(matches!(refused, Err(PutError::Corrupt(_))), "{refused:?}");
        assert_eq!(store.pieces(tree.root, layout).await.unwrap().count(), 0);
        store.shutdown().await.unwrap();
    }
}
