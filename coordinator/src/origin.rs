//! Artifacts on the local disk: where images come from first.
//!
//! Invariant: a file under its artifact's name is whole, durable and was hashed on the way in; what is served is checked
//! against the tree again on the way out.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use firmesh_protocol::{
    chunk::{EncodeError, HashTree, encode, encode_groups},
    groups::Groups,
    ids::{ArtifactId, NodeId, Sha256},
    limits::ARTIFACT_BYTES_MAX,
    manifest::Artifact,
    possession::{Challenge, Proof, Prover, WrongGroup},
    recipe::Recipe,
};
use futures_util::{Stream, StreamExt as _};
use sha2::Digest as _;
use tokio::io::AsyncWriteExt as _;
use tracing::warn;

use crate::config::remedy;

/// Why an artifact was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    /// Nothing was sent.
    #[error("the artifact is empty")]
    Empty,
    /// More than any artifact has.
    #[error("the artifact has more than {ARTIFACT_BYTES_MAX} bytes")]
    TooLarge,
    /// Not the bytes that were announced.
    #[error("the bytes received have the SHA-256 {found}, announced was {expected}: send the file again")]
    WrongDigest {
        /// What was announced.
        expected: Sha256,
        /// What came.
        found: Sha256,
    },
    /// The sender broke off.
    #[error("the upload broke off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The disk refused.
    #[error("{} cannot be written: {}", path.display(), remedy(source))]
    Disk {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why a slice was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SliceError {
    /// No such artifact here.
    #[error("artifact {0} is not stored here")]
    Unknown(ArtifactId),
    /// The files cannot be read.
    #[error("the stored artifact {id} cannot be read: check the disk, or import it again")]
    Disk {
        /// The artifact.
        id: ArtifactId,
        /// Why not.
        source: io::Error,
    },
    /// Not a slice of the artifact, or its bytes have changed on the disk.
    #[error("the slice cannot be served")]
    Encode(#[from] EncodeError),
    /// The artifact has another length than is stored of it.
    #[error("the stored artifact does not have the groups that a proof is about")]
    Group(#[from] WrongGroup),
}

/// The artifact folder.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    folder: Arc<Path>,
    trees: Arc<Mutex<BTreeMap<ArtifactId, Arc<HashTree>>>>,
    /// The recipes of images, by their own names: artifacts that nobody imported.
    recipes: Arc<Mutex<BTreeMap<ArtifactId, Artifact>>>,
}

/// What names of files end with that name an image's recipe.
const RECIPE: &str = "recipe";

/// Trees kept in memory: what a few campaigns at once need. One takes 4 MiB for each GiB of its artifact.
const TREES_MAX: usize = 16;

impl Origin {
    /// Uses `folder`, which exists. Uploads that a crash cut off are removed.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        let mut recipes = BTreeMap::new();
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            match extension {
                Some("part") => std::fs::remove_file(path)?,
                Some(RECIPE) => match named_recipe(&path) {
                    Ok(recipe) => drop(recipes.insert(recipe.id, recipe)),
                    Err(error) => {
                        warn!(path = %path.display(), %error, "an image has no recipe: its name cannot be read")
                    }
                },
                _ => {}
            }
        }
        Ok(Self {
            folder: folder.into(),
            trees: Arc::default(),
            recipes: Arc::new(Mutex::new(recipes)),
        })
    }

    /// Takes in a stream of bytes. Nothing stays behind unless all of it is good.
    pub(crate) async fn import<E>(
        &self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        expected: Option<Sha256>,
    ) -> Result<Artifact, ImportError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let disk = |source| ImportError::Disk {
            path: self.folder.to_path_buf(),
            source,
        };
        let part = tempfile::Builder::new()
            .suffix(".part")
            .tempfile_in(&self.folder)
            .map_err(disk)?;
        let mut file = tokio::fs::File::from_std(part.reopen().map_err(disk)?);
        let (mut digest, mut length) = (sha2::Sha256::new(), 0_u64);
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|source| ImportError::Broken(source.into()))?;
            length += bytes.len() as u64;
            if length > ARTIFACT_BYTES_MAX {
                return Err(ImportError::TooLarge);
            }
            digest.update(&bytes);
            file.write_all(&bytes).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        file.sync_all().await.map_err(disk)?;
        let found = Sha256::from(<[u8; 32]>::from(digest.finalize()));
        match expected {
            _ if length == 0 => return Err(ImportError::Empty),
            Some(expected) if expected != found => return Err(ImportError::WrongDigest { expected, found }),
            _ => {}
        }
        let origin = self.clone();
        let finish = tokio::task::spawn_blocking(move || origin.settle(part, found, length));
        finish
            .await
            .map_err(|error| disk(io::Error::other(error)))?
            .map_err(disk)
    }

    fn settle(&self, part: tempfile::NamedTempFile, sha256: Sha256, length: u64) -> io::Result<Artifact> {
        let reader = || io::Result::Ok(io::BufReader::with_capacity(1 << 20, part.reopen()?));
        let tree = HashTree::build(reader()?, length)?;
        let recipe = Recipe::build(reader()?, tree.root, length)?;
        let image = self.keep(part, &tree, sha256)?;
        // The recipe's name is written last: what it names is there.
        if let Some(recipe) = recipe {
            let bytes = recipe.to_bytes();
            let mut part = tempfile::Builder::new().suffix(".part").tempfile_in(&self.folder)?;
            io::Write::write_all(&mut part, &bytes)?;
            part.as_file().sync_all()?;
            let tree = HashTree::build(&bytes[..], bytes.len() as u64)?;
            let recipe = self.keep(part, &tree, Sha256::of(&bytes))?;
            let mut name = tempfile::Builder::new().suffix(".part").tempfile_in(&self.folder)?;
            io::Write::write_all(&mut name, &serde_json::to_vec(&recipe)?)?;
            name.as_file().sync_all()?;
            name.persist(self.recipe_path(image.id))?;
            File::open(&self.folder)?.sync_all()?;
            self.recipes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(recipe.id, recipe);
        }
        Ok(image)
    }

    /// Puts a durable file and its tree in their places.
    fn keep(&self, part: tempfile::NamedTempFile, tree: &HashTree, sha256: Sha256) -> io::Result<Artifact> {
        let mut nodes = tempfile::Builder::new().suffix(".part").tempfile_in(&self.folder)?;
        io::Write::write_all(&mut nodes, &tree.nodes)?;
        nodes.as_file().sync_all()?;
        nodes.persist(self.tree_path(tree.root))?;
        part.persist(self.data_path(tree.root))?;
        File::open(&self.folder)?.sync_all()?;
        Ok(Artifact {
            id: tree.root,
            sha256,
            length: tree.length,
        })
    }

    /// The recipe of an image, if it has one: see [`firmesh_protocol::recipe`]. Blocks.
    pub(crate) fn recipe_of(&self, image: ArtifactId) -> Result<Option<Artifact>, SliceError> {
        match named_recipe(&self.recipe_path(image)) {
            Ok(recipe) => Ok(Some(recipe)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SliceError::Disk { id: image, source }),
        }
    }

    /// A recipe by its own name.
    pub(crate) fn recipe(&self, id: ArtifactId) -> Option<Artifact> {
        let recipes = self.recipes.lock().unwrap_or_else(PoisonError::into_inner);
        recipes.get(&id).cloned()
    }

    /// The whole artifact, to be read from its beginning. Whoever reads it checks it.
    pub(crate) async fn file(&self, artifact: &Artifact) -> Result<tokio::fs::File, SliceError> {
        let opened = tokio::fs::File::open(self.data_path(artifact.id)).await;
        opened.map_err(|source| unreadable(artifact.id, source))
    }

    /// Reads one slice, encoded with its proof. Blocks.
    pub(crate) fn slice(&self, artifact: &Artifact, range: &Range<u64>) -> Result<Vec<u8>, SliceError> {
        let disk = |source| unreadable(artifact.id, source);
        let data = File::open(self.data_path(artifact.id)).map_err(disk)?;
        let tree = self.tree(artifact).map_err(disk)?;
        Ok(encode(data, &tree, range)?)
    }

    /// The same for some chunk groups of a piece.
    pub(crate) fn groups(&self, artifact: &Artifact, piece: u32, groups: Groups) -> Result<Vec<u8>, SliceError> {
        let disk = |source| unreadable(artifact.id, source);
        let data = File::open(self.data_path(artifact.id)).map_err(disk)?;
        let tree = self.tree(artifact).map_err(disk)?;
        Ok(encode_groups(data, &tree, piece, groups)?)
    }

    /// What a node that holds the artifact answers to a challenge. Reads the groups of the sample, each checked against
    /// the tree, so that nobody is blamed for damage here. Blocks.
    pub(crate) fn proof(&self, artifact: &Artifact, challenge: &Challenge, node: &NodeId) -> Result<Proof, SliceError> {
        let disk = |source| unreadable(artifact.id, source);
        let data = File::open(self.data_path(artifact.id)).map_err(disk)?;
        let tree = self.tree(artifact).map_err(disk)?;
        let mut prover = Prover::new(challenge, node, artifact.length);
        while let Some(range) = prover.wants() {
            let encoded = encode(&data, &tree, &range)?;
            // One group's encoding ends with the group.
            let bytes = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            prover.add(&encoded[encoded.len().saturating_sub(bytes)..])?;
        }
        Ok(prover.finish().expect("every group that was wanted was added"))
    }

    fn tree(&self, artifact: &Artifact) -> io::Result<Arc<HashTree>> {
        if let Some(tree) = self
            .trees
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&artifact.id)
        {
            return Ok(tree.clone());
        }
        let nodes = std::fs::read(self.tree_path(artifact.id))?;
        let tree = Arc::new(HashTree {
            root: artifact.id,
            length: artifact.length,
            nodes,
        });
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if trees.len() >= TREES_MAX {
            trees.pop_first();
        }
        trees.insert(artifact.id, tree.clone());
        Ok(tree)
    }

    pub(crate) fn data_path(&self, id: ArtifactId) -> PathBuf {
        self.folder.join(format!("{id}.bin"))
    }

    fn recipe_path(&self, image: ArtifactId) -> PathBuf {
        self.folder.join(format!("{image}.{RECIPE}"))
    }

    fn tree_path(&self, id: ArtifactId) -> PathBuf {
        self.folder.join(format!("{id}.tree"))
    }
}

/// What a file says that names an image's recipe.
fn named_recipe(path: &Path) -> io::Result<Artifact> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn unreadable(id: ArtifactId, source: io::Error) -> SliceError {
    match source.kind() {
        io::ErrorKind::NotFound => SliceError::Unknown(id),
        _ => SliceError::Disk { id, source },
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use firmesh_protocol::chunk::decode;

    use super::*;

    fn body(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Unpin + use<> {
        futures_util::stream::iter(
            bytes
                .chunks(1_000)
                .map(|part| Ok(Bytes::copy_from_slice(part)))
                .collect::<Vec<_>>(),
        )
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_in_verified_slices() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::open(folder.path().to_owned()).unwrap();
        let image: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        let artifact = origin.import(body(&image), Some(Sha256::of(&image))).await.unwrap();
        assert_eq!((artifact.id, artifact.length), (ArtifactId::of(&image), 100_000));
        let range = 16_384..49_152;
        let encoded = origin.slice(&artifact, &range).unwrap();
        assert!(decode(&encoded, artifact.id, artifact.length, &range).unwrap() == image[16_384..49_152]);
        assert!(matches!(
            origin.slice(&artifact, &(0..200_000)),
            Err(SliceError::Encode(_))
        ));

        std::fs::write(origin.data_path(artifact.id), vec![0; 100_000]).unwrap();
        assert!(matches!(
            origin.slice(&artifact, &range),
            Err(SliceError::Encode(EncodeError::Unreadable { .. }))
        ));
    }

    /// An artifact that rotted here must not be held against a node that has it.
    #[tokio::test]
    async fn a_proof_is_that_of_the_bytes_that_came_in_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::open(folder.path().to_owned()).unwrap();
        let image: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
        let artifact = origin.import(body(&image), None).await.unwrap();
        let challenge = Challenge {
            artifact: artifact.id,
            nonce: [7; 32].into(),
        };
        let node = "n1".parse().unwrap();
        let mut prover = Prover::new(&challenge, &node, artifact.length);
        let mut sampled = 0;
        while let Some(range) = prover.wants() {
            sampled = range.start;
            prover.add(&image[range.start as usize..range.end as usize]).unwrap();
        }
        let proof = origin.proof(&artifact, &challenge, &node).unwrap();
        assert!(proof.is(&prover.finish().unwrap()));

        let mut rotten = image;
        rotten[sampled as usize] ^= 1;
        std::fs::write(origin.data_path(artifact.id), rotten).unwrap();
        let refused = origin.proof(&artifact, &challenge, &node);
        assert!(matches!(
            refused,
            Err(SliceError::Encode(EncodeError::Unreadable { .. }))
        ));
    }

    #[tokio::test]
    async fn an_image_has_a_recipe_that_is_served_like_any_artifact() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::open(folder.path().to_owned()).unwrap();
        let image: Vec<u8> = (0..2_000_000_u32).map(|at| (at % 251) as u8).collect();
        let artifact = origin.import(body(&image), None).await.unwrap();
        let recipe = origin.recipe_of(artifact.id).unwrap().unwrap();
        assert_eq!(origin.recipe(artifact.id), None);
        assert!(origin.recipe_of(recipe.id).unwrap().is_none());
        // It is known by its own name after a restart too, and one that cannot be read costs only itself.
        std::fs::write(folder.path().join("x.recipe"), "{").unwrap();
        let origin = Origin::open(folder.path().to_owned()).unwrap();
        assert_eq!(origin.recipe(recipe.id).as_ref(), Some(&recipe));
        let encoded = origin.slice(&recipe, &(0..recipe.length)).unwrap();
        let bytes = decode(&encoded, recipe.id, recipe.length, &(0..recipe.length)).unwrap();
        assert_eq!(Sha256::of(&bytes), recipe.sha256);
        let read = Recipe::from_bytes(&bytes, artifact.id, artifact.length).unwrap();
        assert_eq!(read.tree().root(), artifact.id);
    }

    #[tokio::test]
    async fn a_refused_upload_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::open(folder.path().to_owned()).unwrap();
        let wrong = origin.import(body(b"image"), Some(Sha256::of(b"other"))).await;
        assert!(matches!(wrong, Err(ImportError::WrongDigest { .. })));
        assert!(matches!(origin.import(body(b""), None).await, Err(ImportError::Empty)));
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"im")), Err("the line went dead")]);
        assert!(matches!(origin.import(broken, None).await, Err(ImportError::Broken(_))));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn uploads_cut_off_by_a_crash_are_removed_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.part"), "half").unwrap();
        Origin::open(folder.path().to_owned()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
