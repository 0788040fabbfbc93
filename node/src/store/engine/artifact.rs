//! One artifact on disk: its content, one record per piece, and which pieces are held.
//!
//! The content lies at its own offsets, sealed group by group or plain. A piece's record has a page-aligned place of its
//! own in the second file: a keyed hash of the rest, the tags of its groups, and its whole proof from the root down. A
//! piece is held if, and only if, its record is intact: that is the bitmap.
//!
//! Invariants: bytes are checked against the root before anything is written; a record is written only after its piece's
//! content is durable, and a piece counts as held only after its record is; what leaves the disk was checked again on the
//! way out (the content by its tag, or by its hash where it is not sealed, and the proof up to the root), but for plain
//! content that goes to a neighbour, who checks it, too, and was hashed here less than [`HASHED_FOR`] ago; what fails that
//! check is dropped, and its record with it. What came in last is served from memory, as it was verified.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, IoSlice, IoSliceMut},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use bao_tree::io::DecodeError as TreeError;
use bytes::{Bytes, BytesMut};
use firmesh_protocol::{
    chunk::{DecodeError, GROUP_BYTES, PieceLayout},
    groups::PIECE_GROUPS,
    ids::ArtifactId,
    piece_shape::{LENGTH_BYTES, PAIR_BYTES, Shape},
    pieces::{PIECES_MAX, PieceSet},
};
use nix::errno::Errno;
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    medium::Medium,
    seal::{Seal, TAG_BYTES},
};
use crate::store::Lost;

/// A record's place: a page, so that no write of one touches a page of another.
pub(super) const RECORD_BYTES: usize = 4 << 10;
const HASH_BYTES: usize = 32;
const GROUPS_MAX: usize = PIECE_GROUPS as usize;
const TAGS_AT: usize = HASH_BYTES;
const PAIRS_AT: usize = TAGS_AT + GROUPS_MAX * TAG_BYTES;
/// The pairs of a piece's subtree, and those above it in the tallest tree.
const PAIRS_MAX: usize = GROUPS_MAX - 1 + PIECES_MAX.ilog2() as usize;
const _: () = assert!(PAIRS_AT + PAIRS_MAX * PAIR_BYTES <= RECORD_BYTES && PIECES_MAX.is_power_of_two());

/// Pieces kept in memory after they came in.
const RECENT_MAX: usize = 32;

/// How long a neighbour gets a piece without its content being hashed again. Whoever gets it hashes it, too; this is for disks
/// that rot, so that a node is not taken for a liar.
const HASHED_FOR: Duration = Duration::from_secs(3_600);

/// Records read at once when an artifact is opened.
const RECORDS_AT_ONCE: u32 = 64;

/// One artifact.
#[derive(Debug)]
pub(super) struct Artifact {
    root: ArtifactId,
    layout: PieceLayout,
    seal: Seal,
    content: Box<dyn Medium>,
    records: Box<dyn Medium>,
    state: Mutex<State>,
    /// Pieces as they came in and were verified, newest last: neighbours ask for them right after.
    recent: Mutex<VecDeque<(u32, Bytes)>>,
    waiting: Mutex<Vec<Arc<Waiting>>>,
    /// Whoever holds it writes records: for itself and for everybody who waits.
    leader: Mutex<()>,
    lost: mpsc::Sender<Lost>,
}

#[derive(Debug)]
struct State {
    held: PieceSet,
    /// Held once, found damaged since, not here again yet.
    damaged: BTreeSet<u32>,
    hashed: Hashed,
}

/// The pieces whose content was hashed lately.
#[derive(Debug)]
struct Hashed {
    pieces: PieceSet,
    since: Instant,
}

impl Hashed {
    fn none(pieces: u32) -> Self {
        Self {
            pieces: PieceSet::empty(pieces),
            since: Instant::now(),
        }
    }

    fn contains(&mut self, piece: u32) -> bool {
        if self.since.elapsed() > HASHED_FOR {
            *self = Self::none(self.pieces.total());
        }
        self.pieces.contains(piece)
    }
}

/// A piece whose content is written and whose record is not.
#[derive(Debug)]
struct Waiting {
    piece: u32,
    record: Vec<u8>,
    outcome: OnceLock<Result<(), Arc<io::Error>>>,
}

/// A piece that was not stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutFailure {
    #[error(transparent)]
    Corrupt(#[from] DecodeError),
    #[error(transparent)]
    Disk(#[from] Arc<io::Error>),
}

impl Artifact {
    /// Reads which pieces are held.
    pub(super) fn open(
        root: ArtifactId,
        layout: PieceLayout,
        seal: Seal,
        content: Box<dyn Medium>,
        records: Box<dyn Medium>,
        lost: mpsc::Sender<Lost>,
    ) -> io::Result<Self> {
        let held = intact_records(layout, &seal, &*content, &*records)?;
        Ok(Self {
            root,
            layout,
            seal,
            content,
            records,
            state: Mutex::new(State {
                held,
                damaged: BTreeSet::new(),
                hashed: Hashed::none(layout.pieces()),
            }),
            recent: Mutex::default(),
            waiting: Mutex::default(),
            leader: Mutex::default(),
            lost,
        })
    }

    pub(super) fn layout(&self) -> PieceLayout {
        self.layout
    }

    /// The pieces that are verified and durable.
    pub(super) fn held(&self) -> PieceSet {
        self.state().held.clone()
    }

    /// Verifies an encoded piece and makes it durable. A piece that is held already is left alone.
    pub(super) fn put(&self, piece: u32, encoded: Bytes) -> Result<(), PutFailure> {
        let shape = Shape::of(self.layout, piece);
        self.verify(&shape, &encoded)?;
        if self.state().held.contains(piece) {
            return Ok(());
        }
        let mut record = vec![0; RECORD_BYTES];
        for (number, (at, _)) in shape.pairs().enumerate() {
            let place = PAIRS_AT + number * PAIR_BYTES;
            record[place..place + PAIR_BYTES].copy_from_slice(&encoded[at..at + PAIR_BYTES]);
        }
        // The sender's buffer is ours alone as a rule: then it is sealed where it lies.
        let content = if self.seal.encrypts() {
            let mut content = encoded
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            for (number, (at, bytes)) in shape.groups().enumerate() {
                let tag = self
                    .seal
                    .seal(self.first_group(piece) + number as u64, &mut content[at..at + bytes]);
                record[tag_at(number)].copy_from_slice(&tag);
            }
            content.freeze()
        } else {
            encoded
        };
        let hash = self.seal.record_hash(piece, &record[HASH_BYTES..]);
        record[..HASH_BYTES].copy_from_slice(&hash);
        let mut groups: Vec<_> = shape
            .groups()
            .map(|(at, bytes)| IoSlice::new(&content[at..at + bytes]))
            .collect();
        self.content
            .write(&mut groups, self.layout.bytes(piece).start)
            .map_err(Arc::new)?;
        self.commit(piece, record)?;
        // What is sealed was sealed in place: there is no plain copy of it, and none is made.
        if !self.seal.encrypts() {
            let mut recent = locked(&self.recent);
            if recent.len() >= RECENT_MAX {
                recent.pop_front();
            }
            recent.push_back((piece, content));
        }
        Ok(())
    }

    /// A held piece with its proof for a neighbour, from memory if it came in lately.
    pub(super) fn encoded_for_peer(&self, piece: u32) -> io::Result<Bytes> {
        match self.recent(piece) {
            Some(encoded) => Ok(encoded),
            None => {
                let is_hashed = self.state().hashed.contains(piece);
                Ok(self.encoded_and_checked(piece, !is_hashed)?.1)
            }
        }
    }

    /// Keeps nothing in memory of what came in: nobody has asked for it lately.
    pub(super) fn forget_recent(&self) {
        locked(&self.recent).clear();
    }

    fn recent(&self, piece: u32) -> Option<Bytes> {
        let recent = locked(&self.recent);
        let found = recent.iter().find(|(number, _)| *number == piece);
        found.map(|(_, encoded)| encoded.clone())
    }

    /// A held piece with its proof, as [`firmesh_protocol::chunk::encode`] has it. `NotFound` if it is not held,
    /// `InvalidData` if it is damaged.
    pub(super) fn encoded(&self, piece: u32) -> io::Result<(Shape, Bytes)> {
        self.encoded_and_checked(piece, true)
    }

    /// The same; with `contents` every chunk group is hashed, too.
    fn encoded_and_checked(&self, piece: u32, contents: bool) -> io::Result<(Shape, Bytes)> {
        let state = self.state();
        let (held, damaged) = (state.held.contains(piece), state.damaged.contains(&piece));
        drop(state);
        if damaged {
            self.tell_lost(piece);
            return Err(self.changed(piece));
        }
        if !held {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("piece {piece} is not held"),
            ));
        }
        let shape = Shape::of(self.layout, piece);
        let error = match self.read(piece, &shape, contents) {
            Ok(encoded) => {
                if contents {
                    self.state().hashed.pieces.insert(piece);
                }
                return Ok((shape, encoded.into()));
            }
            Err(error) => error,
        };
        let is_damage = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            || error.raw_os_error() == Some(Errno::EIO as i32);
        if is_damage {
            warn!(artifact = %self.root, piece, %error, "a stored piece is damaged; it will be fetched again");
            self.drop_piece(piece)?;
            return Err(self.changed(piece));
        }
        Err(error)
    }

    /// Looks at a piece as the disk has it. `None` if it is not held; otherwise its length, or that it is damaged.
    pub(super) fn scrub(&self, piece: u32) -> io::Result<Option<u64>> {
        if !self.state().held.contains(piece) {
            return Ok(None);
        }
        let bytes = self.layout.bytes(piece);
        self.content.let_go(bytes.clone());
        self.records
            .let_go(record_at(piece)..record_at(piece) + RECORD_BYTES as u64);
        self.encoded(piece)?;
        self.content.let_go(bytes.clone());
        Ok(Some(bytes.end - bytes.start))
    }

    fn read(&self, piece: u32, shape: &Shape, contents: bool) -> io::Result<Vec<u8>> {
        let mut record = vec![0; RECORD_BYTES];
        self.records
            .read(&mut [IoSliceMut::new(&mut record)], record_at(piece))?;
        if !is_intact(&self.seal, piece, &record) {
            return Err(damage(piece, "has a damaged record"));
        }
        let mut encoded = vec![0; shape.encoded_bytes];
        encoded[..LENGTH_BYTES].copy_from_slice(&self.layout.length().to_le_bytes());
        for (number, (at, _)) in shape.pairs().enumerate() {
            let place = PAIRS_AT + number * PAIR_BYTES;
            encoded[at..at + PAIR_BYTES].copy_from_slice(&record[place..place + PAIR_BYTES]);
        }
        let (mut rest, mut behind) = (&mut encoded[..], 0);
        let mut groups = Vec::with_capacity(GROUPS_MAX);
        for (at, bytes) in shape.groups() {
            let (group, after) = rest[at - behind..].split_at_mut(bytes);
            groups.push(IoSliceMut::new(group));
            (rest, behind) = (after, at + bytes);
        }
        self.content.read(&mut groups, self.layout.bytes(piece).start)?;
        for (number, (at, bytes)) in shape.groups().enumerate() {
            let tag = record[tag_at(number)].try_into().expect("a tag's bytes");
            let group = self.first_group(piece) + number as u64;
            if !self.seal.open(group, tag, &mut encoded[at..at + bytes]) {
                return Err(damage(piece, "does not open"));
            }
        }
        // What opens is what was verified before it was sealed: only the proof is left to check.
        shape
            .check(&encoded, self.root, contents && !self.seal.encrypts())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(encoded)
    }

    fn first_group(&self, piece: u32) -> u64 {
        self.layout.bytes(piece).start / GROUP_BYTES
    }

    fn verify(&self, shape: &Shape, encoded: &[u8]) -> Result<(), DecodeError> {
        let root = self.root;
        let head = encoded
            .first_chunk::<LENGTH_BYTES>()
            .ok_or(DecodeError::Truncated { root })?;
        let found = u64::from_le_bytes(*head);
        if found != self.layout.length() {
            let expected = self.layout.length();
            return Err(DecodeError::WrongLength { found, expected });
        }
        shape.check(encoded, root, true).map_err(|source| match source {
            TreeError::ParentNotFound(_) | TreeError::LeafNotFound(_) => DecodeError::Truncated { root },
            source => DecodeError::Corrupt { root, source },
        })
    }

    /// Makes a piece whose content is written durable, and held. Pieces that come together share the barriers.
    fn commit(&self, piece: u32, record: Vec<u8>) -> Result<(), Arc<io::Error>> {
        let mine = Arc::new(Waiting {
            piece,
            record,
            outcome: OnceLock::new(),
        });
        locked(&self.waiting).push(Arc::clone(&mine));
        let leader = locked(&self.leader);
        if mine.outcome.get().is_none() {
            let batch = std::mem::take(&mut *locked(&self.waiting));
            let written = self.write_records(&batch).map_err(Arc::new);
            if written.is_ok() {
                let mut state = self.state();
                for waiting in &batch {
                    state.held.insert(waiting.piece);
                    state.hashed.pieces.insert(waiting.piece);
                    state.damaged.remove(&waiting.piece);
                }
            }
            for waiting in &batch {
                waiting.outcome.get_or_init(|| written.clone());
            }
        }
        drop(leader);
        mine.outcome.get().expect("whoever took the batch answered it").clone()
    }

    fn write_records(&self, batch: &[Arc<Waiting>]) -> io::Result<()> {
        self.content.sync()?;
        for waiting in batch {
            self.records
                .write(&mut [IoSlice::new(&waiting.record)], record_at(waiting.piece))?;
        }
        self.records.sync()
    }

    /// Forgets a damaged piece, on disk too, and says so.
    fn drop_piece(&self, piece: u32) -> io::Result<()> {
        let leader = locked(&self.leader);
        let mut state = self.state();
        if state.held.remove(piece) {
            state.damaged.insert(piece);
            state.hashed.pieces.remove(piece);
        }
        drop(state);
        locked(&self.recent).retain(|(number, _)| *number != piece);
        self.tell_lost(piece);
        self.records
            .write(&mut [IoSlice::new(&[0; HASH_BYTES])], record_at(piece))?;
        self.records.sync()?;
        drop(leader);
        Ok(())
    }

    /// A full queue loses the notice; the next look at the piece gives it again.
    fn tell_lost(&self, piece: u32) {
        let artifact = self.root;
        if self.lost.try_send(Lost { artifact, piece }).is_err() {
            warn!(%artifact, piece, "nobody hears that a piece was lost");
        }
    }

    fn changed(&self, piece: u32) -> io::Error {
        let problem = format!(
            "piece {piece} of artifact {} changed on disk; it is fetched again",
            self.root
        );
        io::Error::new(io::ErrorKind::InvalidData, problem)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// The pieces whose record is intact and whose content is not cut off.
fn intact_records(
    layout: PieceLayout,
    seal: &Seal,
    content: &dyn Medium,
    records: &dyn Medium,
) -> io::Result<PieceSet> {
    let mut held = PieceSet::empty(layout.pieces());
    let (content_bytes, record_bytes) = (content.length()?, records.length()?);
    let whole = u32::try_from(record_bytes / RECORD_BYTES as u64).unwrap_or(u32::MAX);
    let pieces = layout.pieces().min(whole);
    let mut buffer = vec![0; RECORD_BYTES * RECORDS_AT_ONCE.min(pieces) as usize];
    let mut first = 0;
    while first < pieces {
        let count = RECORDS_AT_ONCE.min(pieces - first);
        let buffer = &mut buffer[..RECORD_BYTES * count as usize];
        records.read(&mut [IoSliceMut::new(buffer)], record_at(first))?;
        for (piece, record) in (first..).zip(buffer.chunks_exact(RECORD_BYTES)) {
            if layout.bytes(piece).end <= content_bytes && is_intact(seal, piece, record) {
                held.insert(piece);
            }
        }
        first += count;
    }
    Ok(held)
}

fn is_intact(seal: &Seal, piece: u32, record: &[u8]) -> bool {
    // Most records of a partial artifact were never written.
    record[..HASH_BYTES] != [0; HASH_BYTES] && seal.record_hash(piece, &record[HASH_BYTES..]) == record[..HASH_BYTES]
}

fn record_at(piece: u32) -> u64 {
    u64::from(piece) * RECORD_BYTES as u64
}

fn tag_at(number: usize) -> std::ops::Range<usize> {
    let at = TAGS_AT + number * TAG_BYTES;
    at..at + TAG_BYTES
}

fn damage(piece: u32, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("piece {piece} {what}"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
