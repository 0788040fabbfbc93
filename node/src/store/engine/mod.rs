//! The piece store on disk: partial artifacts that survive SIGKILL and power loss, encrypted if there is a key.
//!
//! A folder holds `format.json` (version, cipher, a check value of the key), `lock`, `ledger.json` (see [`ledger`]), and for
//! every artifact `<root>.<length>.content` and `<root>.<length>.records`; see [`artifact`] for what is in them, [`seal`] for
//! the keys, [`eviction`] for how they go, [`scrub`] for how they are looked after.
//! Encryption hides content from whoever gets the disk. It does not hide which artifacts the node has, how long they are
//! and which pieces are here (file names, lengths, records), nor their tree hashes, which prove a guess of a chunk group's
//! content to somebody who has the group.
//!
//! Everything here blocks and is called on tokio's blocking threads; what is acknowledged is durable, so stopping has only
//! the ledger to write.

mod artifact;
mod eviction;
mod header;
mod ledger;
mod medium;
mod reader;
mod scrub;
mod seal;
mod survey;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use bao_tree::{
    BaoTree, ChunkRanges, TreeNode,
    io::sync::{Outboard, ReadAt, encode_ranges_validated},
};
use bytes::Bytes;
use firmesh_protocol::{
    chunk::{BLOCK_SIZE, GROUP_BYTES, PieceLayout, SLICE_BYTES_MAX, chunks_of},
    groups::Groups,
    ids::{ArtifactId, Sha256},
    limits::ARTIFACT_BYTES_MAX,
    piece_shape::Shape,
    pieces::PieceSet,
    time::WallTime,
};
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;

use super::{ChunkStore, Lost, PutError, Read, StoreError};
use artifact::{Artifact, PutFailure};
use eviction::artifacts_in;
use ledger::Ledger;
use reader::PieceReader;
use seal::Seal;

pub use header::OpenError;
pub use ledger::Scrubbed;
pub use scrub::Pace;
pub use seal::{KeyError, StoreKey};
pub use survey::{Survey, Surveyed, bytes_whole};

/// The piece store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PieceStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    key: Option<StoreKey>,
    slots: Mutex<BTreeMap<ArtifactId, Arc<Slot>>>,
    ledger: Mutex<Ledger>,
    lost: mpsc::Sender<Lost>,
    opened_at: Instant,
    /// When a piece was last stored or served, in milliseconds after `opened_at`: the scrub stands back.
    used_ms: AtomicU64,
    _lock: File,
}

/// An artifact that has files. Its lock is taken before that of all slots, never after.
#[derive(Debug)]
struct Slot {
    layout: PieceLayout,
    state: Mutex<SlotState>,
    /// Whether a peer was served since needs were noted last.
    served: AtomicBool,
}

#[derive(Debug)]
enum SlotState {
    /// It is opened when it is first asked for.
    Closed,
    Open(Arc<Artifact>),
    /// Its files were removed, and the slot is in nobody's list any more.
    Gone,
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
        let found = eviction::remove_remains(&folder).and_then(|()| artifacts_in(&folder));
        let found = found.map_err(|source| OpenError::Folder {
            folder: folder.clone(),
            source,
        })?;
        let ledger = Ledger::read(&folder, |artifact| found.contains_key(artifact));
        let slots = found.into_iter().map(|(root, length)| (root, Slot::new(length)));
        Ok(Self(Arc::new(Inner {
            slots: Mutex::new(slots.collect()),
            ledger: Mutex::new(ledger),
            folder,
            key,
            lost,
            opened_at: Instant::now(),
            used_ms: AtomicU64::default(),
            _lock: lock,
        })))
    }

    /// Whether there is anything of an artifact.
    #[must_use]
    pub fn lists(&self, artifact: ArtifactId) -> bool {
        self.slots().contains_key(&artifact)
    }

    /// Removes an artifact from the disk. Whoever reads it keeps what it has opened, and is refused (`NotFound`) what it
    /// opens later.
    pub fn evict(&self, artifact: ArtifactId) -> BoxFuture<'_, Result<(), StoreError>> {
        let store = self.clone();
        let work = blocking(move || store.evict_now(artifact));
        async move { work.await.map_err(|error| self.failed("remove an artifact", error)) }.boxed()
    }

    /// Notes that artifacts are needed now; those that peers were served of are needed, too. Of the others nothing more is
    /// kept in memory.
    pub fn note_needs(&self, artifacts: impl IntoIterator<Item = ArtifactId>, now: WallTime) {
        let slots = self.slots().clone();
        let mut needed: Vec<_> = artifacts.into_iter().collect();
        for (artifact, slot) in &slots {
            if slot.served.swap(false, Ordering::Relaxed) {
                needed.push(*artifact);
            } else if let Ok(state) = slot.state.try_lock()
                && let SlotState::Open(opened) = &*state
            {
                opened.forget_recent();
            }
        }
        let mut ledger = self.ledger();
        needed.retain(|artifact| slots.contains_key(artifact));
        needed.into_iter().for_each(|artifact| ledger.note_need(artifact, now));
    }

    /// The SHA-256 that the whole of an artifact was found to have. It holds for good: it is about bytes of this root.
    #[must_use]
    pub fn sha256(&self, artifact: ArtifactId) -> Option<Sha256> {
        self.ledger().whole(&artifact)
    }

    /// Notes the SHA-256 that the whole of an artifact was found to have.
    pub fn note_sha256(&self, artifact: ArtifactId, sha256: Sha256, now: WallTime) {
        self.ledger().note_whole(artifact, sha256, now);
    }

    /// Writes what was noted, if there is news.
    pub fn keep_notes(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let store = self.clone();
        let work = blocking(move || store.ledger().write(&store.0.folder));
        async move { work.await.map_err(|error| self.failed("keep its ledger", error)) }.boxed()
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<ArtifactId, Arc<Slot>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_use(&self) {
        self.0.used_ms.store(self.since_opened_ms(), Ordering::Relaxed);
    }

    fn since_opened_ms(&self) -> u64 {
        u64::try_from(self.0.opened_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// An artifact that has files; `NotFound` otherwise.
    fn opened(&self, root: ArtifactId) -> io::Result<Arc<Artifact>> {
        let nothing = || io::Error::new(io::ErrorKind::NotFound, "nothing of the artifact is held");
        let slot = self.slots().get(&root).cloned().ok_or_else(nothing)?;
        self.artifact(root, &slot)?.ok_or_else(nothing)
    }

    /// A slot's artifact; nothing if it was removed since.
    fn artifact(&self, root: ArtifactId, slot: &Slot) -> io::Result<Option<Arc<Artifact>>> {
        let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            SlotState::Open(artifact) => return Ok(Some(Arc::clone(artifact))),
            SlotState::Gone => return Ok(None),
            SlotState::Closed => {}
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
        *state = SlotState::Open(Arc::clone(&artifact));
        Ok(Some(artifact))
    }

    fn evict_now(&self, root: ArtifactId) -> io::Result<()> {
        let Some(slot) = self.slots().get(&root).cloned() else {
            return Ok(());
        };
        let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, SlotState::Gone) {
            return Ok(());
        }
        // Nothing more is written to it or found in it, even if the disk refuses: then it is looked at anew.
        *state = SlotState::Closed;
        eviction::remove(&*self.0.folder, root, slot.layout.length())?;
        *state = SlotState::Gone;
        self.slots().remove(&root);
        // Not worth a write of its own: of what is not there nothing is read from the ledger either.
        self.ledger().forget(&root);
        Ok(())
    }

    fn held_now(&self, root: ArtifactId, layout: PieceLayout) -> io::Result<PieceSet> {
        let slot = self.slots().get(&root).cloned();
        let Some(slot) = slot else {
            return Ok(PieceSet::empty(layout.pieces()));
        };
        same_length(&slot, layout)?;
        let artifact = self.artifact(root, &slot)?;
        Ok(artifact.map_or_else(|| PieceSet::empty(layout.pieces()), |artifact| artifact.held()))
    }

    fn put_now(&self, root: ArtifactId, layout: PieceLayout, piece: u32, encoded: Bytes) -> Result<(), PutError> {
        let failed = |error| PutError::Store(self.failed("store a piece", error));
        if piece >= layout.pieces() || layout.length() > ARTIFACT_BYTES_MAX {
            let problem = format!("an artifact of {} bytes has no piece {piece}", layout.length());
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, problem)));
        }
        self.note_use();
        let artifact = loop {
            let slot = Arc::clone(self.slots().entry(root).or_insert_with(|| Slot::new(layout.length())));
            same_length(&slot, layout).map_err(failed)?;
            // One that was removed this moment is in the list no more: it is begun anew.
            if let Some(artifact) = self.artifact(root, &slot).map_err(failed)? {
                break artifact;
            }
        };
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
        self.note_use();
        let artifact = self.opened(root)?;
        if let Some(slot) = self.slots().get(&root) {
            slot.served.store(true, Ordering::Relaxed);
        }
        let layout = artifact.layout();
        // A request counts in chunks and may end a little behind the last byte.
        let range = range.start..range.end.min(layout.length());
        if range.is_empty() || range.end - range.start > SLICE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a slice of the artifact",
            ));
        }
        let [first, last] = [range.start, range.end - 1].map(|at| layout.piece_at(at));
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

    fn groups_now(&self, root: ArtifactId, chunks: &ChunkRanges) -> io::Result<Bytes> {
        let artifact = self.opened(root)?;
        let layout = artifact.layout();
        let groups = Groups::of_chunks(layout, chunks)
            .filter(|(piece, groups)| !groups.is_empty() && groups.without(Groups::all(layout, *piece)).is_empty());
        let Some((piece, groups)) = groups else {
            let problem = "not some groups of one of the artifact's pieces";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        };
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
            matches!(opened, Ok(Some(artifact)) if artifact.held().is_full())
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

    fn groups(&self, artifact: ArtifactId, chunks: ChunkRanges) -> BoxFuture<'static, io::Result<Bytes>> {
        let store = self.clone();
        blocking(move || store.groups_now(artifact, &chunks)).boxed()
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
        self.keep_notes()
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
        let piece = self.layout.piece_at(position).checked_sub(self.first);
        let loaded = piece.and_then(|piece| self.pieces.get(usize::try_from(piece).ok()?));
        let (shape, encoded) = loaded.ok_or(io::ErrorKind::UnexpectedEof)?;
        let skip = position % self.layout.piece_bytes();
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
            state: Mutex::new(SlotState::Closed),
            served: AtomicBool::default(),
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

fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send {
    let task = tokio::task::spawn_blocking(work);
    async move { task.await.unwrap_or_else(|error| Err(blocking_failed(&error))) }
}

fn blocking_failed(error: &tokio::task::JoinError) -> io::Error {
    io::Error::other(format!("work on the store's files was broken off: {error}"))
}
