//! One file that brings a campaign to a site without a network: its signed metadata, manifest and plan, and its images,
//! piece by piece with their proofs.
//!
//! It is only a carrier. Nothing in it is believed for being in it: the metadata answers a node's ordinary refresh, the
//! pieces are checked against the signed roots like a neighbour's. What is checked here is that the file is whole, so that a
//! copy cut short or damaged on the way is named as such before a node is troubled.
//!
//! Form: [`MAGIC`], the head's length (8 bytes, little endian), the head (JSON), the head's SHA-256; then for every artifact
//! of the head, in its order, the length of each encoded piece (4 bytes each), the SHA-256 of those lengths, and the pieces
//! as [`crate::chunk::encode`] has them. Where a piece lies follows from the lengths, so an import that goes on reads only
//! what is still missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Seek, SeekFrom, Write},
};

use serde::{Deserialize, Serialize};

use crate::{
    chunk::{ENCODED_PIECE_BYTES_MAX, PieceLayout},
    ids::{ArtifactId, CampaignId, Sha256},
    limits::ARTIFACT_BYTES_MAX,
    manifest::Artifact,
    pieces::PieceSet,
};

/// The first bytes of a bundle; the last of them is the version.
pub const MAGIC: [u8; 16] = *b"firmesh bundle 2";

/// The longest head: the metadata and plan of the largest fleet.
pub const HEAD_BYTES_MAX: u64 = 192 << 20;

/// Artifacts in one bundle at most: as many as a campaign has releases, and room to spare.
pub const ARTIFACTS_MAX: usize = 64;

/// Everything but the images: what a node is shown first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// SHA-256 of the fleet CA's certificate, PEM: tells one fleet's bundles from another's before any signature does.
    pub fleet_ca_sha256: Sha256,
    /// The campaign.
    pub campaign: CampaignId,
    /// The signed metadata by the file name it is published under, each the exact text that was signed.
    pub metadata: BTreeMap<String, String>,
    /// The campaign's manifest, the exact text that was signed.
    pub manifest: String,
    /// The plan the manifest names.
    pub plan: String,
    /// The images that follow.
    pub artifacts: Vec<Artifact>,
}

/// What a node wants of a campaign that a bundle brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wants {
    /// The images it needs for its own devices.
    pub artifacts: Vec<WantedArtifact>,
}

/// One image a node needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WantedArtifact {
    /// The image.
    pub artifact: ArtifactId,
    /// Whether it takes pieces of it now; not before there is room for all of it.
    pub ready: bool,
    /// The pieces it holds.
    pub held: PieceSet,
    /// Why it is not ready, if there is more to it than a moment's patience.
    pub refusal: Option<String>,
}

/// Why a file cannot be used as a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It could not be read.
    #[error("the bundle cannot be read")]
    Read(#[source] io::Error),
    /// Another kind of file, or of another version.
    #[error("this is no firmesh bundle, or one of another version; `firmesh bundle export` makes one")]
    NotABundle,
    /// It ends early.
    #[error("the bundle ends early: {found} bytes of {expected}; copy it again")]
    Truncated {
        /// Its length.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// It is not what was exported.
    #[error("the bundle was altered or damaged on its way ({what}); copy or export it again")]
    Altered {
        /// Where.
        what: String,
    },
}

impl BundleError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "bundle_unreadable",
            Self::NotABundle => "not_a_bundle",
            Self::Truncated { .. } => "bundle_truncated",
            Self::Altered { .. } => "bundle_altered",
        }
    }
}

/// Writes a bundle's head. The artifacts follow in its order, with [`write_artifact`].
pub fn write_head(mut to: impl Write, head: &Head) -> io::Result<()> {
    let bytes = serde_json::to_vec(head).map_err(io::Error::other)?;
    to.write_all(&MAGIC)?;
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(&bytes)?;
    to.write_all(Sha256::of(&bytes).as_bytes())
}

/// Writes one artifact; `encoded` gives its pieces in order.
pub fn write_artifact<E: From<io::Error>>(
    mut to: impl Write + Seek,
    layout: PieceLayout,
    mut encoded: impl FnMut(u32) -> Result<Vec<u8>, E>,
) -> Result<(), E> {
    let lengths_at = to.stream_position()?;
    let mut lengths = vec![0; layout.pieces() as usize * 4];
    to.write_all(&lengths)?;
    to.write_all(&[0; 32])?;
    for (piece, place) in (0..layout.pieces()).zip(lengths.chunks_exact_mut(4)) {
        let bytes = encoded(piece)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        place.copy_from_slice(&length.to_le_bytes());
        to.write_all(&bytes)?;
    }
    let end = to.stream_position()?;
    to.seek(SeekFrom::Start(lengths_at))?;
    to.write_all(&lengths)?;
    to.write_all(Sha256::of(&lengths).as_bytes())?;
    to.seek(SeekFrom::Start(end))?;
    Ok(())
}

/// A bundle that is whole, to read pieces from.
#[derive(Debug)]
pub struct Bundle<F> {
    file: F,
    head: Head,
    /// For every artifact of the head: where each piece begins, and where the last one ends.
    starts: Vec<Vec<u64>>,
}

impl<F: Read + Seek> Bundle<F> {
    /// Reads the head and the lengths, and checks that nothing is missing behind them.
    pub fn open(mut file: F) -> Result<Self, BundleError> {
        let found = file.seek(SeekFrom::End(0)).map_err(BundleError::Read)?;
        file.seek(SeekFrom::Start(0)).map_err(BundleError::Read)?;
        let mut at = 0;
        let mut magic = [0; MAGIC.len()];
        take(&mut file, &mut at, found, &mut magic).map_err(|error| match error {
            BundleError::Truncated { .. } => BundleError::NotABundle,
            error => error,
        })?;
        if magic != MAGIC {
            return Err(BundleError::NotABundle);
        }
        let mut length = [0; 8];
        take(&mut file, &mut at, found, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > HEAD_BYTES_MAX {
            return Err(altered("its head has a length that no head has"));
        }
        let head = take_signed(&mut file, &mut at, found, length, "its head")?;
        let head: Head = serde_json::from_slice(&head).map_err(|_| BundleError::NotABundle)?;
        let fits = |artifact: &Artifact| (1..=ARTIFACT_BYTES_MAX).contains(&artifact.length);
        if head.artifacts.len() > ARTIFACTS_MAX || !head.artifacts.iter().all(fits) {
            return Err(altered("it names more or larger images than there can be"));
        }
        let names: BTreeSet<_> = head.artifacts.iter().map(|artifact| artifact.id).collect();
        if names.len() < head.artifacts.len() {
            return Err(altered("it names an image twice"));
        }
        let mut starts = Vec::new();
        for artifact in &head.artifacts {
            let pieces = u64::from(PieceLayout::new(artifact.length).pieces());
            let lengths = take_signed(&mut file, &mut at, found, pieces * 4, "its list of pieces")?;
            let mut ends = vec![at];
            for length in lengths.chunks_exact(4) {
                let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
                if length as usize > ENCODED_PIECE_BYTES_MAX {
                    return Err(altered("a piece is longer than pieces are"));
                }
                at += u64::from(length);
                ends.push(at);
            }
            if at > found {
                return Err(BundleError::Truncated { found, expected: at });
            }
            file.seek(SeekFrom::Start(at)).map_err(BundleError::Read)?;
            starts.push(ends);
        }
        match at == found {
            true => Ok(Self { file, head, starts }),
            false => Err(altered("there is something behind its end")),
        }
    }

    /// What stands in front of the images.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// An encoded piece; `None` if the bundle does not have it.
    pub fn piece(&mut self, artifact: ArtifactId, piece: u32) -> Result<Option<Vec<u8>>, BundleError> {
        let place = self.head.artifacts.iter().position(|known| known.id == artifact);
        let starts = place.and_then(|place| self.starts.get(place));
        let Some([start, end]) = starts.and_then(|starts| starts.get(piece as usize..piece as usize + 2)) else {
            return Ok(None);
        };
        let mut bytes =
            vec![0; usize::try_from(end - start).map_err(|error| BundleError::Read(io::Error::other(error)))?];
        self.file.seek(SeekFrom::Start(*start)).map_err(BundleError::Read)?;
        self.file.read_exact(&mut bytes).map_err(BundleError::Read)?;
        Ok(Some(bytes))
    }
}

fn altered(what: &str) -> BundleError {
    BundleError::Altered { what: what.to_owned() }
}

/// Reads so many bytes and the SHA-256 behind them, which must be theirs. It keeps accidents apart from pieces that no
/// longer verify; against people there are the signatures.
fn take_signed(
    file: &mut impl Read,
    at: &mut u64,
    found: u64,
    length: u64,
    what: &str,
) -> Result<Vec<u8>, BundleError> {
    let expected = at.saturating_add(length).saturating_add(32);
    // Nothing is made room for that the file does not have.
    if expected > found {
        return Err(BundleError::Truncated { found, expected });
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|error| BundleError::Read(io::Error::other(error)))?];
    take(file, at, found, &mut bytes)?;
    let mut digest = [0; 32];
    take(file, at, found, &mut digest)?;
    match Sha256::of(&bytes).as_bytes() == &digest {
        true => Ok(bytes),
        false => Err(altered(what)),
    }
}

fn take(file: &mut impl Read, at: &mut u64, found: u64, bytes: &mut [u8]) -> Result<(), BundleError> {
    let expected = at.saturating_add(bytes.len() as u64);
    if expected > found {
        return Err(BundleError::Truncated { found, expected });
    }
    file.read_exact(bytes).map_err(BundleError::Read)?;
    *at = expected;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::chunk::{HashTree, PIECE_BYTES_MIN, decode, encode};

    fn bundle(lengths: &[u64]) -> (Head, Vec<Vec<u8>>, Vec<u8>) {
        let images: Vec<Vec<u8>> = lengths
            .iter()
            .map(|length| (0..*length).map(|at| (at * 7 + at / 301 + length) as u8).collect())
            .collect();
        let trees: Vec<_> = images
            .iter()
            .map(|image| HashTree::build(&image[..], image.len() as u64).unwrap())
            .collect();
        let artifact = |(image, tree): (&Vec<u8>, &HashTree)| Artifact {
            id: tree.root,
            length: tree.length,
            sha256: Sha256::of(image),
        };
        let head = Head {
            fleet_ca_sha256: Sha256::of(b"ca"),
            campaign: CampaignId::new("spring").unwrap(),
            metadata: [("timestamp.json".to_owned(), "{}".to_owned())].into(),
            manifest: "{\"a\":1}".to_owned(),
            plan: "{}".to_owned(),
            artifacts: images.iter().zip(&trees).map(artifact).collect(),
        };
        let mut file = Cursor::new(Vec::new());
        write_head(&mut file, &head).unwrap();
        for (image, tree) in images.iter().zip(&trees) {
            let layout = PieceLayout::new(tree.length);
            write_artifact(&mut file, layout, |piece| {
                encode(&image[..], tree, &layout.bytes(piece)).map_err(io::Error::other)
            })
            .unwrap();
        }
        (head, images, file.into_inner())
    }

    #[test]
    fn what_goes_in_comes_out_piece_by_piece_in_any_order() {
        let (head, images, bytes) = bundle(&[2 * PIECE_BYTES_MIN + 5, 1]);
        let mut bundle = Bundle::open(Cursor::new(&bytes)).unwrap();
        assert_eq!(bundle.head(), &head);
        for (artifact, image) in head.artifacts.iter().zip(&images).rev() {
            let layout = PieceLayout::new(artifact.length);
            for piece in (0..layout.pieces()).rev() {
                let encoded = bundle.piece(artifact.id, piece).unwrap().unwrap();
                let range = layout.bytes(piece);
                let content = decode(&encoded, artifact.id, artifact.length, &range).unwrap();
                assert_eq!(content, image[range.start as usize..range.end as usize]);
            }
            assert_eq!(bundle.piece(artifact.id, layout.pieces()).unwrap(), None);
            assert_eq!(bundle.piece(artifact.id, u32::MAX).unwrap(), None);
        }
        assert_eq!(bundle.piece(ArtifactId::of(b"another"), 0).unwrap(), None);
    }

    #[test]
    fn what_is_cut_off_lengthened_or_another_thing_is_named_so() {
        let (_, _, bytes) = bundle(&[PIECE_BYTES_MIN + 1]);
        let code = |bytes: &[u8]| Bundle::open(Cursor::new(bytes)).unwrap_err().code();
        for cut in 0..bytes.len().min(2_000) {
            let expected = if cut < MAGIC.len() {
                "not_a_bundle"
            } else {
                "bundle_truncated"
            };
            assert_eq!(code(&bytes[..cut]), expected, "{cut}");
        }
        assert_eq!(code(&bytes[..bytes.len() - 1]), "bundle_truncated");
        assert_eq!(code(&[&bytes[..], b"x"].concat()), "bundle_altered");
        assert_eq!(code(b"{\"signed\": {}, \"signatures\": []}"), "not_a_bundle");
        let mut huge = bytes.clone();
        huge[MAGIC.len()..MAGIC.len() + 8].fill(0xff);
        assert_eq!(code(&huge), "bundle_altered");
    }

    proptest! {
        #[test]
        fn a_changed_bit_is_found_here_or_leaves_a_piece_that_does_not_verify(
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let (head, _, mut bytes) = bundle(&[PIECE_BYTES_MIN + 20_000]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(mut bundle) = Bundle::open(Cursor::new(&bytes)) {
                prop_assert_eq!(bundle.head(), &head);
                let artifact = &head.artifacts[0];
                let layout = PieceLayout::new(artifact.length);
                let sound = (0..layout.pieces()).filter(|piece| {
                    let encoded = bundle.piece(artifact.id, *piece).unwrap().unwrap();
                    decode(&encoded, artifact.id, artifact.length, &layout.bytes(*piece)).is_ok()
                });
                prop_assert_eq!(sound.count() as u32, layout.pieces() - 1);
            }
        }

        #[test]
        fn any_bytes_are_refused_and_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), after_magic in any::<bool>()) {
            let bytes = if after_magic { [&MAGIC[..], &bytes].concat() } else { bytes };
            prop_assert!(Bundle::open(Cursor::new(&bytes)).is_err());
        }
    }
}
