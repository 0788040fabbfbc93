//! A new image out of old ones: the chunks that a recipe names are looked for in other images that this node holds, and
//! pieces are put together from them.
//!
//! Invariants: what is put together hashes to its piece of the image's root, or is thrown away; memory is bounded by the
//! recipe (48 bytes for each of its chunks) and one piece for each piece that is worked on; the search ends at its deadline
//! with what it has found. Old images are read through the store, which checks what it reads.

use std::{
    collections::BTreeMap,
    io::{self, SeekFrom},
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use firmesh_protocol::{
    chunk::{GROUP_BYTES, PIECE_BYTES_MAX, PieceLayout},
    groups::Groups,
    ids::ArtifactId,
    limits::ARTIFACT_BYTES_MAX,
    pieces::PieceSet,
    recipe::{CHUNK_SIZES, Chunk, ChunkName, Chunker, RECIPE_BYTES_MAX, Recipe, RecipeError},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::store::{ChunkStore, Read};

/// Other images that are looked through for one: a version resembles its predecessor, seldom what came long before.
const SOURCES_MAX: usize = 4;

/// Below this a new version costs less than the questions about it.
pub(crate) const DELTA_BYTES_MIN: u64 = 4 * PIECE_BYTES_MAX;

/// How long an image is not asked for while its recipe is on the way: after a restart the peers have to be met first, and
/// an importer of the recipe that died is waited for up to 5 s.
pub(crate) const RECIPE_HOLD: Duration = Duration::from_secs(8);

/// Looking through old images, and putting pieces together, may each take this long, and as long as the image would take
/// at [`HOLD_BYTES_PER_SECOND`]. An idle machine needs a fraction; one that is busy reads slowly.
const HOLD_MIN: Duration = Duration::from_secs(8);
const HOLD_BYTES_PER_SECOND: u64 = 64 << 20;

/// How long the pieces of an image of `length` bytes are not asked for while they are looked for, or put together.
#[must_use]
pub(crate) fn hold(length: u64) -> Duration {
    HOLD_MIN + Duration::from_millis(length * 1_000 / HOLD_BYTES_PER_SECOND)
}

/// Why an image cannot be put together from others.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeltaError {
    /// The recipe is no good.
    #[error("the recipe of artifact {image} is refused")]
    Recipe {
        /// The image.
        image: ArtifactId,
        /// Why.
        source: RecipeError,
    },
    /// The recipe could not be read from the store.
    #[error("the recipe of artifact {image} cannot be read from the store")]
    Unreadable {
        /// The image.
        image: ArtifactId,
        /// Why not.
        source: io::Error,
    },
}

impl DeltaError {
    /// A stable name for machines.
    #[must_use]
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Recipe { source, .. } => source.code(),
            Self::Unreadable { .. } => "recipe_unreadable",
        }
    }
}

/// Where the chunks of an image lie in others.
#[derive(Debug)]
pub(crate) struct Plan {
    recipe: Recipe,
    /// Where each chunk begins in the image.
    starts: Vec<u64>,
    found: Vec<Place>,
    sources: Vec<ArtifactId>,
    /// Pieces whose parts turned out to be something else.
    spoiled: Mutex<PieceSet>,
}

/// Where a chunk was found: in which source, and at which byte of it. One word, because there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place(u64);

impl Place {
    const NOWHERE: Self = Self(u64::MAX);
    const SOURCE_SHIFT: u32 = 56;

    fn at(source: u8, byte: u64) -> Self {
        Self(u64::from(source) << Self::SOURCE_SHIFT | byte)
    }

    fn get(self) -> Option<(u8, u64)> {
        let byte = self.0 & !(u64::MAX << Self::SOURCE_SHIFT);
        (self != Self::NOWHERE).then_some(((self.0 >> Self::SOURCE_SHIFT) as u8, byte))
    }
}

const _: () = assert!(ARTIFACT_BYTES_MAX >> Place::SOURCE_SHIFT == 0 && SOURCES_MAX < 255);

/// What of one piece was found here.
#[derive(Debug)]
pub(crate) struct Part {
    /// As many bytes as the piece has; zeros where nothing was found.
    content: Vec<u8>,
    /// The groups that are wholly here.
    pub(crate) groups: Groups,
}

impl Plan {
    /// Reads the recipe of `image` from the store and looks for its chunks in `sources`, until `deadline` at most.
    pub(crate) async fn make(
        store: &dyn ChunkStore,
        image: ArtifactId,
        length: u64,
        recipe: (ArtifactId, u64),
        mut sources: Vec<(ArtifactId, u64)>,
        deadline: Instant,
    ) -> Result<Self, DeltaError> {
        let unreadable = |source| DeltaError::Unreadable { image, source };
        let mut bytes = Vec::new();
        let reader = store.reader(recipe.0).take(RECIPE_BYTES_MAX + 1);
        tokio::pin!(reader);
        reader.read_to_end(&mut bytes).await.map_err(unreadable)?;
        let recipe =
            Recipe::from_bytes(&bytes, image, length).map_err(|source| DeltaError::Recipe { image, source })?;
        drop(bytes);
        // A version is about as long as its predecessor.
        sources.sort_unstable_by_key(|(id, bytes)| (bytes.abs_diff(length), *id));
        sources.truncate(SOURCES_MAX);
        let mut search = Search::new(&recipe);
        for (number, (source, _)) in (0..).zip(&sources) {
            // One that cannot be read, or not in time, gives what was read of it.
            match search.through(number, store.reader(*source), deadline).await {
                Ok(()) => {}
                Err(error) => tracing::debug!(artifact = %source, %error, "an old image could not be looked through"),
            }
        }
        let found = search.found;
        let mut at = 0;
        let starts = recipe.chunks().iter().map(|chunk| {
            let start = at;
            at += u64::from(chunk.bytes);
            start
        });
        Ok(Self {
            starts: starts.collect(),
            found,
            sources: sources.into_iter().map(|(id, _)| id).collect(),
            spoiled: Mutex::new(PieceSet::empty(recipe.tree().layout().pieces())),
            recipe,
        })
    }

    /// How the image is cut.
    #[must_use]
    pub(crate) fn layout(&self) -> PieceLayout {
        self.recipe.tree().layout()
    }

    /// The pieces of which everything was found.
    #[must_use]
    pub(crate) fn whole(&self) -> PieceSet {
        let layout = self.layout();
        let mut whole = PieceSet::full(layout.pieces());
        for (chunk, (start, found)) in self.recipe.chunks().iter().zip(self.starts.iter().zip(&self.found)) {
            if *found == Place::NOWHERE {
                let last = start + u64::from(chunk.bytes) - 1;
                for piece in layout.piece_at(*start)..=layout.piece_at(last) {
                    whole.remove(piece);
                }
            }
        }
        whole
    }

    /// The groups of a piece that were wholly found; none of a piece that was spoiled.
    #[must_use]
    pub(crate) fn groups(&self, piece: u32) -> Groups {
        let layout = self.layout();
        let range = layout.bytes(piece);
        if self
            .spoiled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(piece)
        {
            return Groups::default();
        }
        let mut missing = Groups::default();
        for number in self.chunks_of(piece) {
            if self.found[number] == Place::NOWHERE {
                let start = self.starts[number].max(range.start) - range.start;
                let end =
                    (self.starts[number] + u64::from(self.recipe.chunks()[number].bytes)).min(range.end) - range.start;
                (start / GROUP_BYTES..end.div_ceil(GROUP_BYTES)).for_each(|group| missing.insert(group as u32));
            }
        }
        Groups::all(layout, piece).without(missing)
    }

    /// Reads what was found of a piece.
    pub(crate) async fn part(&self, store: &dyn ChunkStore, piece: u32) -> io::Result<Part> {
        let range = self.layout().bytes(piece);
        let mut content = vec![0; (range.end - range.start) as usize];
        let mut readers: BTreeMap<u8, Pin<Box<dyn Read>>> = BTreeMap::new();
        for number in self.chunks_of(piece) {
            let Some((source, at)) = self.found[number].get() else {
                continue;
            };
            let start = self.starts[number];
            let end = start + u64::from(self.recipe.chunks()[number].bytes);
            let (first, last) = (start.max(range.start), end.min(range.end));
            let reader = readers
                .entry(source)
                .or_insert_with(|| store.reader(self.sources[usize::from(source)]));
            reader.seek(SeekFrom::Start(at + (first - start))).await?;
            let place = &mut content[(first - range.start) as usize..(last - range.start) as usize];
            reader.read_exact(place).await?;
        }
        Ok(Part {
            content,
            groups: self.groups(piece),
        })
    }

    /// A piece as a store takes it in, out of what was found and of groups that were fetched; `None` if that is not the
    /// piece: then nothing is put together of it any more.
    #[must_use]
    pub(crate) fn encode(&self, piece: u32, mut part: Part, fetched: &[(u64, Bytes)]) -> Option<Bytes> {
        let start = self.layout().bytes(piece).start;
        for (at, bytes) in fetched {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            part.content.get_mut(from..from + bytes.len())?.copy_from_slice(bytes);
        }
        let encoded = self.recipe.tree().encode(piece, &part.content);
        if encoded.is_none() {
            self.spoil(piece);
        }
        encoded.map(Bytes::from)
    }

    /// Gives up on putting a piece together.
    pub(crate) fn spoil(&self, piece: u32) {
        self.spoiled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(piece);
    }

    /// The chunks that lie in a piece, at least partly.
    fn chunks_of(&self, piece: u32) -> std::ops::Range<usize> {
        let range = self.layout().bytes(piece);
        let first = self
            .starts
            .partition_point(|start| *start <= range.start)
            .saturating_sub(1);
        first..self.starts.partition_point(|start| *start < range.end)
    }
}

/// Chunks that are wanted, and where they were found so far.
struct Search {
    /// By name, then length, then number.
    wanted: Vec<(ChunkName, u32, u32)>,
    found: Vec<Place>,
    missing: usize,
}

impl Search {
    fn new(recipe: &Recipe) -> Self {
        let numbered = (0..).zip(recipe.chunks());
        let mut wanted: Vec<_> = numbered
            .map(|(number, chunk)| (chunk.name, chunk.bytes, number))
            .collect();
        wanted.sort_unstable();
        Self {
            missing: wanted.len(),
            found: vec![Place::NOWHERE; wanted.len()],
            wanted,
        }
    }

    async fn through(&mut self, source: u8, mut reader: Pin<Box<dyn Read>>, deadline: Instant) -> io::Result<()> {
        let mut chunker = Chunker::new(CHUNK_SIZES);
        let mut buffer = vec![0; PIECE_BYTES_MAX as usize];
        let mut at = 0;
        while self.missing > 0 && Instant::now() < deadline {
            match reader.read(&mut buffer).await? {
                0 => {
                    chunker.finish(|chunk| self.note(source, &mut at, chunk));
                    break;
                }
                read => chunker.push(&buffer[..read], |chunk| self.note(source, &mut at, chunk)),
            }
        }
        Ok(())
    }

    fn note(&mut self, source: u8, at: &mut u64, chunk: Chunk) {
        let key = (chunk.name, chunk.bytes);
        let first = self.wanted.partition_point(|(name, bytes, _)| (*name, *bytes) < key);
        for (name, bytes, number) in &self.wanted[first..] {
            // Whoever finds it first finds all its places.
            let place = &mut self.found[*number as usize];
            if (*name, *bytes) != key || *place != Place::NOWHERE {
                break;
            }
            *place = Place::at(source, *at);
            self.missing -= 1;
        }
        *at += u64::from(chunk.bytes);
    }
}

#[cfg(test)]
mod tests;
