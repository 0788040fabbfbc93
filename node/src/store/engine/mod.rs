//! The piece store on disk: partial artifacts that survive SIGKILL and power loss, encrypted if there is a key.
//!
//! A folder holds `format.json` (version, cipher, a check value of the key), `lock`, and for every artifact
//! `<root>.<length>.content` and `<root>.<length>.records`; see [`artifact`] for what is in them and [`seal`] for the keys.
//! Encryption hides content from whoever gets the disk. It does not hide which artifacts the node has, how long they are
//! and which pieces are here (file names, lengths, records), nor their tree hashes, which prove a guess of a chunk group's
//! content to somebody who has the group.
//!
//! Everything here blocks and is called on tokio's blocking threads; what is acknowledged is durable, so stopping needs
//! no work.

mod artifact;
mod header;
mod medium;
mod reader;
mod seal;
mod tree;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bao_tree::{
    BaoTree, ChunkRanges, TreeNode,
    io::sync::{Outboard, ReadAt, encode_ranges_validated},
};
use bytes::Bytes;
use firmesh_protocol::{
    chunk::{BLOCK_SIZE, GROUP_BYTES, PIECE_BYTES, PieceLayout, SLICE_BYTES_MAX, chunks_of},
    groups::Groups,
    ids::ArtifactId,
    limits::ARTIFACT_BYTES_MAX,
    pieces::PieceSet,
};
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;

use super::{ChunkStore, Lost, PutError, Read, StoreError};
use artifact::{Artifact, PutFailure};
use reader::PieceReader;
use seal::Seal;
use tree::Shape;

pub use header::OpenError;
pub use seal::{KeyError, StoreKey};

/// The piece store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PieceStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    key: Option<StoreKey>,
    slots: Mutex<BTreeMap<ArtifactId, Arc<Slot>>>,
    lost: mpsc::Sender<Lost>,
    _lock: File,
}

/// An artifact that has files. It is opened when it is first asked for.
#[derive(Debug)]
struct Slot {
    layout: PieceLayout,
    opened: Mutex<Option<Arc<Artifact>>>,
}

impl PieceStore {
    /// Opens or creates the store in `folder`, encrypted if there is a key. What is found damaged later is told to `lost`;
    /// where that is full, the next look at the piece tells it again.
    pub async fn open(folder: &Path, key: Option<StoreKey>, lost: mpsc::Sender<Lost>) -> Result<Self, OpenError> {
        let folder = folder.to_owned();
        let opened = tokio::task::spawn_blocking({
            let folder = folder.clone();
            move || Self::open_now(folder, key, lost)
        });
        opened.await.unwrap_or_else(|error| {
            let source = blocking_failed(&error);
            Err(OpenError::Folder { folder, source })
        })
    }

    fn open_now(folder: PathBuf, key: Option<StoreKey>, lost: mpsc::Sender<Lost>) -> Result<Self, OpenError> {
        let lock = header::open(&folder, key.as_ref(), || Ok(!artifacts_in(&folder)?.is_empty()))?;
        let found = artifacts_in(&folder).map_err(|source| OpenError::Folder {
            folder: folder.clone(),
            source,
        })?;
        let slots = found.into_iter().map(|(root, length)| (root, Slot::new(length)));
        Ok(Self(Arc::new(Inner {
            slots: Mutex::new(slots.collect()),
            folder,
            key,
            lost,
            _lock: lock,
        })))
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<ArtifactId, Arc<Slot>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An artifact that has files; `NotFound` otherwise.
    fn opened(&self, root: ArtifactId) -> io::Result<Arc<Artifact>> {
        let slot = self.slots().get(&root).cloned();
        let slot = slot.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nothing of the artifact is held"))?;
        self.artifact(root, &slot)
    }

    fn artifact(&self, root: ArtifactId, slot: &Slot) -> io::Result<Arc<Artifact>> {
        let mut opened = slot.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(artifact) = &*opened {
            return Ok(Arc::clone(artifact));
        }
        let length = slot.layout.length();
        let file = |kind| -> io::Result<_> {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(self.0.folder.join(file_name(root, length, kind)))?;
            Ok(Box::new(file))
        };
        let (content, records) = (file(CONTENT)?, file(RECORDS)?);
        File::open(&self.0.folder)?.sync_all()?;
        let seal = Seal::of(self.0.key.as_ref(), root, length);
        let lost = self.0.lost.clone();
        let artifact = Arc::new(Artifact::open(root, slot.layout, seal, content, records, lost)?);
        Ok(Arc::clone(opened.insert(artifact)))
    }

    fn held_now(&self, root: ArtifactId, layout: PieceLayout) -> io::Result<PieceSet> {
        let slot = self.slots().get(&root).cloned();
        let Some(slot) = slot else {
            return Ok(PieceSet::empty(layout.pieces()));
        };
        same_length(&slot, layout)?;
        Ok(self.artifact(root, &slot)?.held())
    }

    fn put_now(&self, root: ArtifactId, layout: PieceLayout, piece: u32, encoded: Bytes) -> Result<(), PutError> {
        let failed = |error| PutError::Store(self.failed("store a piece", error));
        if piece >= layout.pieces() || layout.length() > ARTIFACT_BYTES_MAX {
            let problem = format!("an artifact of {} bytes has no piece {piece}", layout.length());
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        let slot = Arc::clone(self.slots().entry(root).or_insert_with(|| Slot::new(layout.length())));
        same_length(&slot, layout).map_err(failed)?;
        let artifact = self.artifact(root, &slot).map_err(failed)?;
        artifact.put(piece, encoded).map_err(|failure| match failure {
            PutFailure::Corrupt(error) => error.into(),
            PutFailure::Disk(error) => PutError::Store(StoreError {
                operation: "store a piece",
                folder: self.0.folder.clone(),
                source: error.into(),
            }),
        })
    }

    fn slice_now(&self, root: ArtifactId, range: &Range<u64>) -> io::Result<Bytes> {
        let artifact = self.opened(root)?;
        let layout = artifact.layout();
        // A request counts in chunks and may end a little behind the last byte.
        let range = range.start..range.end.min(layout.length());
        if range.is_empty() || range.end - range.start > SLICE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a slice of the artifact",
            ));
        }
        let [first, last] = [range.start, range.end - 1].map(|at| u32::try_from(at / PIECE_BYTES));
        let (first, last) = (first.map_err(io::Error::other)?, last.map_err(io::Error::other)?);
        if layout.bytes(first) == range {
            return artifact.encoded_for_peer(first);
        }
        let pieces = (first..=last)
            .map(|piece| artifact.encoded(piece))
            .collect::<Result<_, _>>()?;
        let view = View {
            root,
            layout,
            first,
            pieces,
        };
        view.encode(&chunks_of(&range))
    }

    fn groups_now(&self, root: ArtifactId, piece: u32, groups: Groups) -> io::Result<Bytes> {
        let artifact = self.opened(root)?;
        let layout = artifact.layout();
        if groups.is_empty() || !groups.without(Groups::all(layout, piece)).is_empty() {
            let problem = format!("piece {piece} has not the groups {groups}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let view = View {
            root,
            layout,
            first: piece,
            pieces: vec![artifact.encoded(piece)?],
        };
        view.encode(&groups.chunks(layout, piece))
    }

    /// One that cannot be opened is not whole.
    fn whole_now(&self) -> Vec<(ArtifactId, u64)> {
        let slots: Vec<_> = self
            .slots()
            .iter()
            .map(|(root, slot)| (*root, Arc::clone(slot)))
            .collect();
        let whole = slots.into_iter().filter(|(root, slot)| {
            let opened = self.artifact(*root, slot);
            opened.is_ok_and(|artifact| artifact.held().is_full())
        });
        whole.map(|(root, slot)| (root, slot.layout.length())).collect()
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> StoreError {
        StoreError {
            operation,
            folder: self.0.folder.clone(),
            source: source.into(),
        }
    }
}

impl ChunkStore for PieceStore {
    fn pieces(&self, artifact: ArtifactId, layout: PieceLayout) -> BoxFuture<'_, Result<PieceSet, StoreError>> {
        let store = self.clone();
        let work = blocking(move || store.held_now(artifact, layout));
        async move { work.await.map_err(|error| self.failed("look up an artifact", error)) }.boxed()
    }

    fn put(
        &self,
        artifact: ArtifactId,
        layout: PieceLayout,
        piece: u32,
        encoded: Bytes,
    ) -> BoxFuture<'_, Result<(), PutError>> {
        let store = self.clone();
        let work = blocking(move || Ok(store.put_now(artifact, layout, piece, encoded)));
        async move {
            work.await
                .unwrap_or_else(|error| Err(self.failed("store a piece", error).into()))
        }
        .boxed()
    }

    fn slice(&self, artifact: ArtifactId, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let store = self.clone();
        stream::once(async move { blocking(move || store.slice_now(artifact, &range)).await }).boxed()
    }

    fn groups(&self, artifact: ArtifactId, piece: u32, groups: Groups) -> BoxFuture<'static, io::Result<Bytes>> {
        let store = self.clone();
        blocking(move || store.groups_now(artifact, piece, groups)).boxed()
    }

    fn whole(&self) -> BoxFuture<'_, Result<Vec<(ArtifactId, u64)>, StoreError>> {
        let store = self.clone();
        let work = blocking(move || Ok(store.whole_now()));
        async move { work.await.map_err(|error| self.failed("look up its artifacts", error)) }.boxed()
    }

    fn reader(&self, artifact: ArtifactId) -> Pin<Box<dyn Read>> {
        let length = self.slots().get(&artifact).map(|slot| slot.layout.length());
        // Of what is not here the first byte is an error, not the end.
        Box::pin(PieceReader::new(self.clone(), artifact, length.unwrap_or(1)))
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }
}

/// Some pieces of an artifact, one after the other, for ranges that are not one whole piece.
#[derive(Debug)]
struct View {
    root: ArtifactId,
    layout: PieceLayout,
    first: u32,
    pieces: Vec<(Shape, Bytes)>,
}

impl View {
    fn encode(&self, chunks: &ChunkRanges) -> io::Result<Bytes> {
        let mut encoded = self.layout.length().to_le_bytes().to_vec();
        encode_ranges_validated(self, self, chunks, &mut encoded).map_err(io::Error::other)?;
        Ok(encoded.into())
    }
}

impl ReadAt for View {
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = (position / PIECE_BYTES).checked_sub(self.first.into());
        let loaded = piece.and_then(|piece| self.pieces.get(usize::try_from(piece).ok()?));
        let (shape, encoded) = loaded.ok_or(io::ErrorKind::UnexpectedEof)?;
        let skip = position % PIECE_BYTES;
        let group = shape.groups().nth((skip / GROUP_BYTES) as usize);
        let (at, bytes) = group.ok_or(io::ErrorKind::UnexpectedEof)?;
        let part = &encoded[at..at + bytes];
        let part = part.get((skip % GROUP_BYTES) as usize..).unwrap_or_default();
        let count = part.len().min(buffer.len());
        buffer[..count].copy_from_slice(&part[..count]);
        Ok(count)
    }
}

impl Outboard for View {
    fn root(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(*self.root.as_bytes())
    }

    fn tree(&self) -> BaoTree {
        BaoTree::new(self.layout.length(), BLOCK_SIZE)
    }

    fn load(&self, node: TreeNode) -> io::Result<Option<(blake3::Hash, blake3::Hash)>> {
        let pair = self.pieces.iter().find_map(|(shape, encoded)| {
            let (at, _) = shape.pairs().find(|(_, found)| *found == node)?;
            let hash = |at| encoded.get(at..at + 32)?.try_into().ok().map(blake3::Hash::from_bytes);
            Some((hash(at)?, hash(at + 32)?))
        });
        Ok(pair)
    }
}

impl Slot {
    fn new(length: u64) -> Arc<Self> {
        Arc::new(Self {
            layout: PieceLayout::new(length),
            opened: Mutex::default(),
        })
    }
}

fn same_length(slot: &Slot, layout: PieceLayout) -> io::Result<()> {
    if slot.layout == layout {
        return Ok(());
    }
    let problem = format!(
        "the artifact is stored with {} bytes and asked for with {}",
        slot.layout.length(),
        layout.length()
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
}

const CONTENT: &str = "content";
const RECORDS: &str = "records";

fn file_name(root: ArtifactId, length: u64, kind: &str) -> String {
    format!("{root}.{length}.{kind}")
}

/// The artifacts that have files here, with their lengths. What else lies there is not ours.
fn artifacts_in(folder: &Path) -> io::Result<BTreeMap<ArtifactId, u64>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let parsed = name.to_str().and_then(|name| {
            let (root, rest) = name.split_once('.')?;
            let length = rest.strip_suffix(".content")?.parse().ok()?;
            Some((root.parse::<ArtifactId>().ok()?, length))
        });
        found.extend(parsed.filter(|(_, length)| (1..=ARTIFACT_BYTES_MAX).contains(length)));
    }
    Ok(found)
}

fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send {
    let task = tokio::task::spawn_blocking(work);
    async move { task.await.unwrap_or_else(|error| Err(blocking_failed(&error))) }
}

fn blocking_failed(error: &tokio::task::JoinError) -> io::Error {
    io::Error::other(format!("work on the store's files was broken off: {error}"))
}
