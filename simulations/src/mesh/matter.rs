//! The image's real bytes, for runs that hash them: what is served, stored and found again goes through the protocol's own
//! encoding and verification, and the world compares its verdicts with what it knows.

use firmesh_protocol::{
    chunk::{DecodeError, HashTree, PieceLayout, decode, encode},
    ids::ArtifactId,
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use super::trouble::Lie;

/// An image and its tree.
#[derive(Debug)]
pub(super) struct Matter {
    tree: HashTree,
    layout: PieceLayout,
    image: Vec<u8>,
}

/// The pieces that one node has written, right or not.
#[derive(Debug, Clone, Default)]
pub(super) struct Bytes(Vec<u8>);

impl Matter {
    /// Bytes that the seed makes up.
    pub(super) fn new(layout: PieceLayout, seed: u64) -> std::io::Result<Self> {
        let mut image = vec![0; usize::try_from(layout.length()).map_err(std::io::Error::other)?];
        ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut image);
        let tree = HashTree::build(&image[..], layout.length())?;
        Ok(Self { tree, layout, image })
    }

    pub(super) fn root(&self) -> ArtifactId {
        self.tree.root
    }

    /// What a source sends for a piece: an honest one from its own `bytes`, where the origin has none and serves the image.
    /// `None` if its bytes do not hash.
    fn sent(&self, piece: u32, bytes: Option<&Bytes>, lie: Option<Lie>) -> Option<Vec<u8>> {
        let of = |data: &[u8], piece| encode(data, &self.tree, &self.layout.bytes(piece)).ok();
        match lie {
            Some(Lie::Replay) => of(&self.image, (piece + 1) % self.layout.pieces()),
            Some(Lie::WrongBytes) => {
                let mut sent = of(&self.image, piece)?;
                let last = sent.last_mut()?;
                *last ^= 1;
                Some(sent)
            }
            // It has none of its own.
            Some(_) => of(&self.image, piece),
            None => of(bytes.map_or(&self.image[..], |bytes| &bytes.0), piece),
        }
    }

    /// Takes a piece over the wire into `to` if it verifies.
    pub(super) fn carry(&self, piece: u32, from: Option<&Bytes>, lie: Option<Lie>) -> Option<Vec<u8>> {
        let sent = self.sent(piece, from, lie)?;
        let range = self.layout.bytes(piece);
        let verified: Result<_, DecodeError> = decode(&sent, self.tree.root, self.tree.length, &range);
        verified.ok()
    }

    /// Writes the beginning of a verified piece, or all of it.
    pub(super) fn write(&self, to: &mut Bytes, piece: u32, verified: &[u8], share: f64) {
        to.0.resize(self.image.len(), 0);
        let count = (verified.len() as f64 * share) as usize;
        // An image fits memory.
        let start = self.layout.bytes(piece).start as usize;
        to.0[start..start + count].copy_from_slice(&verified[..count]);
    }

    /// Whether a piece that was read back hashes to the root.
    pub(super) fn is_right(&self, on: &Bytes, piece: u32) -> bool {
        !on.0.is_empty() && encode(&on.0[..], &self.tree, &self.layout.bytes(piece)).is_ok()
    }
}
