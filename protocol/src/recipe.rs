//! A recipe: how to put an image together from what one has already.
//!
//! It lists the image's content-defined chunks, by length and a short hash, and the hashes of its pieces. Whoever holds
//! another image cuts that in the same way, and finds in it the chunks that both have, wherever they lie.
//!
//! Nobody vouches for a recipe. Its piece hashes give the image's signed root or it is refused; its chunks are a hint:
//! what is put together by them counts only if it hashes to its piece. A recipe that lies costs bounded work, no more.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::{
    chunk::{PIECE_BYTES_MAX, PieceLayout},
    ids::ArtifactId,
    piece_tree::{HASH_BYTES, PieceTree, TreeError, piece_hash},
};

/// How an image is cut: no chunk but the last is shorter than `min`, none is longer than `max`. All are even.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSizes {
    /// The shortest chunk, in bytes.
    pub min: usize,
    /// What is aimed at, in bytes.
    pub mean: usize,
    /// The longest chunk, in bytes.
    pub max: usize,
}

impl ChunkSizes {
    /// Sizes around a mean: a quarter of it to eight times it.
    #[must_use]
    pub const fn around(mean: usize) -> Self {
        Self {
            min: mean / 4,
            mean,
            max: mean * 8,
        }
    }
}

/// How every recipe of this version cuts (decision 0010).
pub const CHUNK_SIZES: ChunkSizes = ChunkSizes::around(4 << 10);

/// Chunks of one recipe: they take 48 MiB of memory while they are looked for, and half of it afterwards.
pub const CHUNKS_MAX: usize = 1 << 20;

/// The longest image that has a recipe, 4 GiB: cut to the mean it has as many chunks as there may be.
pub const RECIPE_IMAGE_BYTES_MAX: u64 = (CHUNKS_MAX * CHUNK_SIZES.mean) as u64;

/// The longest recipe.
pub const RECIPE_BYTES_MAX: u64 =
    (MAGIC.len() + CHUNKS_MAX * ENTRY_BYTES) as u64 + RECIPE_IMAGE_BYTES_MAX / PIECE_BYTES_MAX * HASH_BYTES as u64;

/// In front of every recipe; the last byte is its version.
const MAGIC: &[u8; 8] = b"FMRECIP\x02";

/// A chunk in a recipe: its length less one (2 bytes, little endian), and its name.
const ENTRY_BYTES: usize = 2 + 8;
const _: () = assert!(CHUNK_SIZES.max <= 1 << 16);

/// The first eight bytes of a chunk's BLAKE3 hash: enough to find it by; whether it is the right one shows in the piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName(pub u64);

/// A piece of content with boundaries that its bytes decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its name.
    pub name: ChunkName,
    /// Its length.
    pub bytes: u32,
}

/// Cuts a stream into chunks by FastCDC (Xia et al., 2020: a rolling gear hash, normalised to the mean).
#[derive(Debug)]
pub struct Chunker {
    sizes: ChunkSizes,
    buffer: Vec<u8>,
    cut: usize,
}

impl Chunker {
    /// Begins with the first byte of a stream.
    #[must_use]
    pub fn new(sizes: ChunkSizes) -> Self {
        Self {
            sizes,
            buffer: Vec::with_capacity(4 * sizes.max),
            cut: 0,
        }
    }

    /// Takes the bytes that come next, and gives the chunks that end in them.
    pub fn push(&mut self, mut bytes: &[u8], mut found: impl FnMut(Chunk)) {
        while !bytes.is_empty() {
            let room = 4 * self.sizes.max - self.buffer.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.buffer.extend_from_slice(now);
            bytes = later;
            // Where a chunk ends does not depend on more than the longest chunk.
            while self.buffer.len() - self.cut >= self.sizes.max {
                found(self.next());
            }
            self.buffer.drain(..self.cut);
            self.cut = 0;
        }
    }

    /// The stream has ended: gives the chunks that are left.
    pub fn finish(mut self, mut found: impl FnMut(Chunk)) {
        while self.cut < self.buffer.len() {
            found(self.next());
        }
    }

    fn next(&mut self) -> Chunk {
        let rest = &self.buffer[self.cut..];
        let ChunkSizes { min, mean, max } = self.sizes;
        let (_, end) = fastcdc::v2020::FastCDC::new(rest, min, mean, max).cut(0, rest.len());
        let content = &rest[..end];
        self.cut += end;
        Chunk {
            name: ChunkName::of(content),
            bytes: content.len() as u32,
        }
    }
}

impl ChunkName {
    /// The name of a chunk.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let hash = blake3::hash(content);
        let first = hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
        Self(u64::from_le_bytes(*first))
    }
}

/// A recipe whose piece hashes give its image's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    tree: PieceTree,
    chunks: Vec<Chunk>,
}

/// Why bytes are not the recipe of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// Another format, or a later version.
    #[error("a recipe begins with {MAGIC:?}: this is another format, or a later version")]
    Format,
    /// It is cut off, or has something behind its end.
    #[error(
        "a recipe of {found} bytes for an image of {length} bytes is cut off, or has something behind its end, \
         or too many chunks"
    )]
    Length {
        /// The recipe's length.
        found: usize,
        /// The image's length.
        length: u64,
    },
    /// Images of this length have none.
    #[error("an image of {length} bytes has no recipe: they are made for 1 to {RECIPE_IMAGE_BYTES_MAX} bytes")]
    NoRecipe {
        /// The image's length.
        length: u64,
    },
    /// The piece hashes are not the image's.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A chunk that this cut does not give.
    #[error("chunk {chunk} of the recipe has {bytes} bytes, chunks have {} to {}", CHUNK_SIZES.min, CHUNK_SIZES.max)]
    ChunkLength {
        /// Which.
        chunk: usize,
        /// Its length.
        bytes: u32,
    },
    /// The chunks do not make up the image.
    #[error("the chunks of the recipe have {found} bytes together, the image has {length}")]
    Total {
        /// The chunks' bytes.
        found: u64,
        /// The image's.
        length: u64,
    },
}

impl RecipeError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Format => "recipe_format",
            Self::Length { .. } => "recipe_length",
            Self::NoRecipe { .. } => "recipe_unexpected",
            Self::Tree(_) => "recipe_root",
            Self::ChunkLength { .. } | Self::Total { .. } => "recipe_chunks",
        }
    }
}

impl Recipe {
    /// Makes the recipe of an image of exactly `length` bytes; `None` for one that is too long to have one.
    pub fn build(mut image: impl Read, root: ArtifactId, length: u64) -> io::Result<Option<Self>> {
        if !(1..=RECIPE_IMAGE_BYTES_MAX).contains(&length) {
            return Ok(None);
        }
        let layout = PieceLayout::new(length);
        let mut chunker = Chunker::new(CHUNK_SIZES);
        let (mut chunks, mut hashes) = (Vec::new(), Vec::new());
        let mut content = vec![0; layout.piece_bytes() as usize];
        for piece in 0..layout.pieces() {
            let range = layout.bytes(piece);
            let content = &mut content[..(range.end - range.start) as usize];
            image.read_exact(content)?;
            chunker.push(content, |chunk| chunks.push(chunk));
            hashes.push(piece_hash(content, range.start, layout.pieces() == 1));
        }
        chunker.finish(|chunk| chunks.push(chunk));
        if chunks.len() > CHUNKS_MAX {
            return Ok(None);
        }
        let tree =
            PieceTree::new(root, length, hashes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some(Self { tree, chunks }))
    }

    /// The recipe as it is kept and sent: format and version, piece hashes, chunks.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let hashes = self.tree.hashes().as_flattened();
        let mut bytes = Vec::with_capacity(MAGIC.len() + hashes.len() + self.chunks.len() * ENTRY_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(hashes);
        for chunk in &self.chunks {
            bytes.extend_from_slice(&((chunk.bytes - 1) as u16).to_le_bytes());
            bytes.extend_from_slice(&chunk.name.0.to_le_bytes());
        }
        bytes
    }

    /// Reads a recipe that somebody gave for an image.
    pub fn from_bytes(bytes: &[u8], root: ArtifactId, length: u64) -> Result<Self, RecipeError> {
        if !(1..=RECIPE_IMAGE_BYTES_MAX).contains(&length) {
            return Err(RecipeError::NoRecipe { length });
        }
        let wrong_length = || RecipeError::Length {
            found: bytes.len(),
            length,
        };
        let rest = bytes.strip_prefix(MAGIC).ok_or(RecipeError::Format)?;
        let hash_bytes = PieceLayout::new(length).pieces() as usize * HASH_BYTES;
        let (hashes, entries) = rest.split_at_checked(hash_bytes).ok_or_else(wrong_length)?;
        let (entries, behind) = entries.as_chunks::<ENTRY_BYTES>();
        if !behind.is_empty() || entries.len() > CHUNKS_MAX {
            return Err(wrong_length());
        }
        let tree = PieceTree::new(root, length, hashes.as_chunks().0.to_vec())?;
        let (mut chunks, mut found) = (Vec::with_capacity(entries.len()), 0_u64);
        for (number, entry) in entries.iter().enumerate() {
            let [low, high, name @ ..] = *entry;
            let bytes = u32::from(u16::from_le_bytes([low, high])) + 1;
            let is_last = number + 1 == entries.len();
            if bytes as usize > CHUNK_SIZES.max || ((bytes as usize) < CHUNK_SIZES.min && !is_last) {
                return Err(RecipeError::ChunkLength { chunk: number, bytes });
            }
            found += u64::from(bytes);
            chunks.push(Chunk {
                name: ChunkName(u64::from_le_bytes(name)),
                bytes,
            });
        }
        match found == length {
            true => Ok(Self { tree, chunks }),
            false => Err(RecipeError::Total { found, length }),
        }
    }

    /// The hashes of the image's pieces.
    #[must_use]
    pub fn tree(&self) -> &PieceTree {
        &self.tree
    }

    /// The image's chunks, in order: together they have its length.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}
