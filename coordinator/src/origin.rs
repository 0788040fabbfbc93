//! Artifacts: where images come from first. They lie in a folder, or in a bucket with the stretches that are asked for on the
//! local disk.
//!
//! Invariant: a file or object under its artifact's name is whole, durable and was hashed on the way in; what is served is
//! checked against the tree again on the way out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bao_tree::io::sync::ReadAt;
use bytes::Bytes;
use firmesh_protocol::{
    chunk::{EncodeError, HashTree, PieceLayout, encode, encode_groups},
    groups::Groups,
    ids::{ArtifactId, NodeId, Sha256},
    limits::ARTIFACT_BYTES_MAX,
    manifest::Artifact,
    possession::{Challenge, Proof, Prover, WrongGroup},
    recipe::Recipe,
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use sha2::Digest as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
    runtime::Handle,
    sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
};
use tokio_util::io::ReaderStream;
use tracing::warn;

use crate::{
    config::remedy,
    files::{BlockReader, Blocks, Bucket, Found},
    telemetry::chain,
};

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
    /// The bucket refused.
    #[error("the image cannot be stored in the bucket: check the server and the keys in [files.s3], and send it again")]
    Bucket(#[source] io::Error),
}

/// Why a slice was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SliceError {
    /// No such artifact here.
    #[error("artifact {0} is not stored here")]
    Unknown(ArtifactId),
    /// The files or objects cannot be read.
    #[error("the stored artifact {id} cannot be read: check the disk or the bucket, or import it again")]
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

/// The artifacts. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Where they lie, or are on their way to the bucket.
    folder: Arc<Path>,
    shared: Option<Shared>,
    trees: Arc<Mutex<BTreeMap<ArtifactId, Arc<HashTree>>>>,
    /// The recipes of images, by their own names: artifacts that nobody imported.
    recipes: Arc<Mutex<Recipes>>,
    /// Held for writing while files are removed.
    places: Arc<RwLock<()>>,
}

/// An image that has come to its place. Files are removed only once this is dropped, and by then somebody should have
/// written down that the image is here.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) artifact: Artifact,
    _stays: OwnedRwLockReadGuard<()>,
}

/// The bucket, and what is here of it.
#[derive(Debug, Clone)]
struct Shared {
    bucket: Bucket,
    blocks: Blocks,
}

#[derive(Debug, Default)]
struct Recipes {
    by_id: BTreeMap<ArtifactId, Artifact>,
    /// The images whose recipes these are, as far as they are known from the bucket.
    of: BTreeSet<String>,
    /// When the bucket was looked through.
    looked: Option<Instant>,
}

/// What names of files end with that name an image's recipe.
const RECIPE: &str = "recipe";

/// The folder of a bucket.
const OBJECTS: &str = "artifacts";

/// Between two looks through the bucket for recipes that nobody here has heard of.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A sender that sends nothing for so long is gone.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// An artifact's description.
const RECIPE_BYTES_MAX: u64 = 4 << 10;

/// How files end that are on their way to their names.
pub(crate) const PART: &str = ".part";

/// Read at once while an image is given out.
const CHUNK_BYTES: usize = 256 << 10;

/// Trees kept in memory: what a few campaigns at once need. One takes 4 MiB for each GiB of its artifact.
const TREES_MAX: usize = 16;

impl Origin {
    /// Uses `folder`, which exists. Uploads that a crash cut off are removed.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        let mut recipes = Recipes::default();
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            match extension {
                _ if path.to_string_lossy().ends_with(PART) => std::fs::remove_file(path)?,
                Some(RECIPE) => match named_recipe(&path) {
                    Ok(recipe) => drop(recipes.by_id.insert(recipe.id, recipe)),
                    Err(error) => {
                        warn!(path = %path.display(), %error, "an image has no recipe: its name cannot be read")
                    }
                },
                _ => {}
            }
        }
        Ok(Self {
            folder: folder.into(),
            shared: None,
            trees: Arc::default(),
            recipes: Arc::new(Mutex::new(recipes)),
            places: Arc::default(),
        })
    }

    /// Whether everything that lies here is this fleet's.
    pub(crate) async fn belongs_to(&self, fleet: &str) -> io::Result<()> {
        match &self.shared {
            Some(Shared { bucket, .. }) => bucket.belongs_to(fleet).await,
            None => Ok(()),
        }
    }

    /// Until it is dropped, no image comes to its place.
    pub(crate) async fn alone(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.places).write_owned().await
    }

    /// The same with a bucket: `folder` holds only what is on its way there, and `blocks` what is asked for.
    pub(crate) fn shared(folder: PathBuf, bucket: Bucket, blocks: Blocks) -> io::Result<Self> {
        Ok(Self {
            shared: Some(Shared { bucket, blocks }),
            ..Self::open(folder)?
        })
    }

    /// Takes in a stream of bytes. Nothing stays behind unless all of it is good.
    pub(crate) async fn import<E>(
        &self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        expected: Option<Sha256>,
    ) -> Result<Arrived, ImportError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let disk = |source| ImportError::Disk {
            path: self.folder.to_path_buf(),
            source,
        };
        let part = tempfile::Builder::new()
            .suffix(PART)
            .tempfile_in(&self.folder)
            .map_err(disk)?;
        let mut file = tokio::fs::File::from_std(part.reopen().map_err(disk)?);
        let (mut digest, mut length) = (sha2::Sha256::new(), 0_u64);
        loop {
            let next = tokio::time::timeout(SILENT_MAX, body.next()).await;
            let Some(bytes) = next.map_err(|silent| ImportError::Broken(silent.into()))? else {
                break;
            };
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
        let stays = Arc::clone(&self.places).read_owned().await;
        let origin = self.clone();
        let finish = tokio::task::spawn_blocking(move || origin.settle(part, found, length));
        let settled = finish.await.map_err(|error| disk(io::Error::other(error)))?;
        let artifact = settled.map_err(|failure| match failure {
            Unsettled::Here(source) => disk(source),
            Unsettled::There(source) => ImportError::Bucket(source),
        })?;
        Ok(Arrived {
            artifact,
            _stays: stays,
        })
    }

    fn settle(&self, part: tempfile::NamedTempFile, sha256: Sha256, length: u64) -> Result<Artifact, Unsettled> {
        let reader = || io::Result::Ok(io::BufReader::with_capacity(1 << 20, part.reopen()?));
        let tree = HashTree::build(reader()?, length)?;
        let recipe = Recipe::build(reader()?, tree.root, length)?;
        let image = self.keep(part, &tree, sha256)?;
        // The recipe's name is written last: what it names is there.
        if let Some(recipe) = recipe {
            let bytes = recipe.to_bytes();
            let part = self.part(&bytes)?;
            let tree = HashTree::build(&bytes[..], bytes.len() as u64)?;
            let recipe = self.keep(part, &tree, Sha256::of(&bytes))?;
            let name = serde_json::to_vec(&recipe).map_err(io::Error::from)?;
            self.place(self.part(&name)?, &format!("{}.{RECIPE}", image.id))?;
            self.recipes().by_id.insert(recipe.id, recipe);
        }
        Ok(image)
    }

    /// Puts a durable file and its tree in their places.
    fn keep(&self, part: tempfile::NamedTempFile, tree: &HashTree, sha256: Sha256) -> Result<Artifact, Unsettled> {
        self.place(self.part(&tree.nodes)?, &format!("{}.tree", tree.root))?;
        self.place(part, &format!("{}.bin", tree.root))?;
        Ok(Artifact {
            id: tree.root,
            sha256,
            length: tree.length,
        })
    }

    /// A durable file that has no name yet.
    fn part(&self, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
        let mut part = tempfile::Builder::new().suffix(PART).tempfile_in(&self.folder)?;
        io::Write::write_all(&mut part, bytes)?;
        part.as_file().sync_all()?;
        Ok(part)
    }

    /// Gives it its name, here or in the bucket.
    fn place(&self, part: tempfile::NamedTempFile, name: &str) -> Result<(), Unsettled> {
        let Some(Shared { bucket, .. }) = &self.shared else {
            part.persist(self.folder.join(name)).map_err(io::Error::from)?;
            return Ok(File::open(&self.folder)?.sync_all()?);
        };
        let stored = Handle::current().block_on(bucket.put_file(&object(name), part.path()));
        stored.map_err(Unsettled::There)
    }

    /// The recipe of an image, if it has one: see [`firmesh_protocol::recipe`]. Blocks.
    pub(crate) fn recipe_of(&self, image: ArtifactId) -> Result<Option<Artifact>, SliceError> {
        let name = format!("{image}.{RECIPE}");
        let found = match &self.shared {
            None => named_recipe(&self.folder.join(name)),
            Some(shared) => Handle::current().block_on(shared.recipe(&name)),
        };
        match found {
            Ok(recipe) => {
                self.recipes().by_id.insert(recipe.id, recipe.clone());
                Ok(Some(recipe))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SliceError::Disk { id: image, source }),
        }
    }

    /// A recipe by its own name.
    pub(crate) async fn recipe(&self, id: ArtifactId) -> Option<Artifact> {
        let known = self.recipes().by_id.get(&id).cloned();
        let Some(shared) = self.shared.as_ref().filter(|_| known.is_none()) else {
            return known;
        };
        // Another coordinator may have stored it, and told a node its name.
        let unknown = {
            let mut recipes = self.recipes();
            if recipes.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
                return None;
            }
            recipes.looked = Some(Instant::now());
            recipes.of.clone()
        };
        let names = shared.bucket.list(OBJECTS).try_filter_map(|Found { name, .. }| {
            let is_new = name.ends_with(RECIPE) && !unknown.contains(&name);
            std::future::ready(Ok(is_new.then_some(name)))
        });
        let read = names.map_ok(|name| async { Ok((shared.recipe(&name).await?, name)) });
        let mut read = read.try_buffer_unordered(RECIPES_AT_ONCE);
        loop {
            match read.next().await {
                None => break,
                Some(Ok((recipe, name))) => {
                    let mut recipes = self.recipes();
                    recipes.of.insert(name);
                    recipes.by_id.insert(recipe.id, recipe);
                }
                Some(Err(error)) => warn!(error = %chain(&error), "an image's recipe cannot be read from the bucket"),
            }
        }
        self.recipes().by_id.get(&id).cloned()
    }

    fn recipes(&self) -> MutexGuard<'_, Recipes> {
        self.recipes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The artifact that a file with a recipe's name speaks of; `None` if it cannot be read.
    pub(crate) async fn recipe_named(&self, name: &str) -> io::Result<Option<ArtifactId>> {
        let read = match &self.shared {
            None => tokio::fs::read(self.folder.join(name)).await?,
            Some(Shared { bucket, .. }) => match bucket.get(&object(name), RECIPE_BYTES_MAX).await? {
                Some(bytes) => bytes.into(),
                None => return Ok(None),
            },
        };
        Ok(serde_json::from_slice::<Artifact>(&read).ok().map(|recipe| recipe.id))
    }

    /// A stretch of an artifact, as it lies there. Whoever reads it checks it.
    pub(crate) async fn read(
        &self,
        artifact: &Artifact,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, SliceError> {
        let unreadable = |source| unreadable(artifact.id, source);
        if let Some(Shared { bucket, .. }) = &self.shared {
            let name = object(&format!("{}.bin", artifact.id));
            return bucket.stream(&name, range).await.map_err(unreadable);
        }
        let opened = tokio::fs::File::open(self.data_path(artifact.id)).await;
        let mut file = opened.map_err(unreadable)?;
        file.seek(io::SeekFrom::Start(range.start)).await.map_err(unreadable)?;
        let stretch = file.take(range.end - range.start);
        Ok(ReaderStream::with_capacity(stretch, CHUNK_BYTES).boxed())
    }

    /// The whole artifact as a file, for who can read nothing else. Blocks.
    pub(crate) fn local(&self, artifact: &Artifact) -> io::Result<LocalFile> {
        let Some(Shared { bucket, .. }) = &self.shared else {
            return Ok(LocalFile::Own(self.data_path(artifact.id)));
        };
        let mut part = tempfile::Builder::new().suffix(PART).tempfile_in(&self.folder)?;
        let name = object(&format!("{}.bin", artifact.id));
        Handle::current().block_on(async {
            let mut stream = bucket.stream(&name, 0..artifact.length).await?;
            while let Some(bytes) = stream.next().await {
                io::Write::write_all(&mut part, &bytes?)?;
            }
            Ok(LocalFile::Copy(part.into_temp_path()))
        })
    }

    /// Reads one slice, encoded with its proof. Blocks.
    pub(crate) fn slice(&self, artifact: &Artifact, range: &Range<u64>) -> Result<Vec<u8>, SliceError> {
        self.again_if_rotten(artifact, range, |data, tree| encode(data, tree, range))
    }

    /// The same for some chunk groups of a piece.
    pub(crate) fn groups(&self, artifact: &Artifact, piece: u32, groups: Groups) -> Result<Vec<u8>, SliceError> {
        let range = PieceLayout::new(artifact.length).bytes(piece);
        self.again_if_rotten(artifact, &range, |data, tree| encode_groups(data, tree, piece, groups))
    }

    /// What lies on the local disk of a bucket may have rotted there: then it is fetched once more.
    fn again_if_rotten(
        &self,
        artifact: &Artifact,
        range: &Range<u64>,
        encode: impl Fn(&Data, &HashTree) -> Result<Vec<u8>, EncodeError>,
    ) -> Result<Vec<u8>, SliceError> {
        let disk = |source| unreadable(artifact.id, source);
        let data = self.data(artifact).map_err(disk)?;
        let tree = self.tree(artifact).map_err(disk)?;
        let encoded = encode(&data, &tree);
        match (&self.shared, encoded) {
            (Some(shared), Err(EncodeError::Unreadable { .. })) if shared.blocks.forget(artifact.id, range) => {
                warn!(artifact = %artifact.id, "what is kept of an image on the local disk has rotted: it is fetched again");
                Ok(encode(&self.data(artifact).map_err(disk)?, &tree)?)
            }
            (_, encoded) => Ok(encoded?),
        }
    }

    fn data(&self, artifact: &Artifact) -> io::Result<Data> {
        Ok(match &self.shared {
            None => Data::File(File::open(self.data_path(artifact.id))?),
            Some(Shared { blocks, .. }) => {
                let name = object(&format!("{}.bin", artifact.id));
                Data::Blocks(blocks.reader(artifact.id, name, artifact.length))
            }
        })
    }

    /// What a node that holds the artifact answers to a challenge. Reads the groups of the sample, each checked against
    /// the tree, so that nobody is blamed for damage here. Blocks.
    pub(crate) fn proof(&self, artifact: &Artifact, challenge: &Challenge, node: &NodeId) -> Result<Proof, SliceError> {
        let mut prover = Prover::new(challenge, node, artifact.length);
        while let Some(range) = prover.wants() {
            let encoded = self.slice(artifact, &range)?;
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
        let name = format!("{}.tree", artifact.id);
        let nodes = match &self.shared {
            None => std::fs::read(self.folder.join(name))?,
            Some(Shared { bucket, .. }) => {
                let nodes = Handle::current().block_on(bucket.get(&object(&name), TREE_BYTES_MAX))?;
                nodes.ok_or(io::ErrorKind::NotFound)?.into()
            }
        };
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

    fn data_path(&self, id: ArtifactId) -> PathBuf {
        self.folder.join(format!("{id}.bin"))
    }

    /// Everything that lies here: the names of files or objects, their lengths, and when they came.
    pub(crate) async fn all_files(&self) -> io::Result<Vec<Found>> {
        if let Some(Shared { bucket, .. }) = &self.shared {
            return bucket.list(OBJECTS).try_collect().await;
        }
        let folder = self.folder.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                found.push(Found {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    length: metadata.len(),
                    modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                });
            }
            Ok(found)
        });
        listed.await.map_err(io::Error::other)?
    }

    /// Removes a file or object that [`Self::all_files`] has named.
    pub(crate) async fn remove_file(&self, name: &str) -> io::Result<()> {
        let id = name.split('.').next().and_then(|id| id.parse::<ArtifactId>().ok());
        if let Some(id) = id {
            self.trees.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            self.recipes().by_id.remove(&id);
        }
        if let Some(Shared { bucket, blocks }) = &self.shared {
            if let Some(id) = id {
                blocks.forget(id, &(0..ARTIFACT_BYTES_MAX));
            }
            return bucket.remove(&object(name)).await;
        }
        match tokio::fs::remove_file(self.folder.join(name)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Recipes that are read from a bucket at the same time.
const RECIPES_AT_ONCE: usize = 32;

/// The tree of the largest artifact: 64 bytes for every 16 KiB.
const TREE_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX / 256 + 64;

impl Shared {
    async fn recipe(&self, name: &str) -> io::Result<Artifact> {
        let bytes = self.bucket.get(&object(name), RECIPE_BYTES_MAX).await?;
        Ok(serde_json::from_slice(&bytes.ok_or(io::ErrorKind::NotFound)?)?)
    }
}

fn object(name: &str) -> String {
    format!("{OBJECTS}/{name}")
}

/// Why an artifact did not get its name.
enum Unsettled {
    Here(io::Error),
    There(io::Error),
}

impl From<io::Error> for Unsettled {
    fn from(error: io::Error) -> Self {
        Self::Here(error)
    }
}

/// An artifact as a file.
#[derive(Debug)]
pub(crate) enum LocalFile {
    Own(PathBuf),
    /// Removed when it is dropped.
    Copy(tempfile::TempPath),
}

impl LocalFile {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Own(path) => path,
            Self::Copy(path) => path,
        }
    }
}

/// An artifact's bytes.
enum Data {
    File(File),
    Blocks(BlockReader),
}

impl ReadAt for &Data {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Data::File(file) => file.read_at(at, buffer),
            Data::Blocks(blocks) => blocks.read_at(at, buffer),
        }
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
        let artifact = origin
            .import(body(&image), Some(Sha256::of(&image)))
            .await
            .unwrap()
            .artifact;
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
        let artifact = origin.import(body(&image), None).await.unwrap().artifact;
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
        let artifact = origin.import(body(&image), None).await.unwrap().artifact;
        let recipe = origin.recipe_of(artifact.id).unwrap().unwrap();
        assert_eq!(origin.recipe(artifact.id).await, None);
        assert!(origin.recipe_of(recipe.id).unwrap().is_none());
        // It is known by its own name after a restart too, and one that cannot be read costs only itself.
        std::fs::write(folder.path().join("x.recipe"), "{").unwrap();
        let origin = Origin::open(folder.path().to_owned()).unwrap();
        assert_eq!(origin.recipe(recipe.id).await.as_ref(), Some(&recipe));
        let encoded = origin.slice(&recipe, &(0..recipe.length)).unwrap();
        let bytes = decode(&encoded, recipe.id, recipe.length, &(0..recipe.length)).unwrap();
        assert_eq!(Sha256::of(&bytes), recipe.sha256);
        let read = Recipe::from_bytes(&bytes, artifact.id, artifact.length).unwrap();
        assert_eq!(read.tree().root(), artifact.id);
    }

    /// Two coordinators with nothing in common but the bucket.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_one_stores_in_a_bucket_another_serves_and_rot_on_its_disk_is_fetched_again() {
        let bucket = Bucket::in_memory();
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = |folder: &tempfile::TempDir| {
            let (staging, cache) = (folder.path().join("artifacts"), folder.path().join("cache"));
            std::fs::create_dir_all(&staging).unwrap();
            let blocks = Blocks::open(bucket.clone(), cache, 64 << 20).unwrap();
            Origin::shared(staging, bucket.clone(), blocks).unwrap()
        };
        let [one, other] = [open(&folders[0]), open(&folders[1])];
        let image: Vec<u8> = (0..9_000_000_u32).map(|at| (at % 251) as u8).collect();
        let artifact = one.import(body(&image), None).await.unwrap().artifact;
        assert_eq!(
            std::fs::read_dir(folders[0].path().join("artifacts")).unwrap().count(),
            0
        );
        let recipe = tokio::task::spawn_blocking({
            let (one, artifact) = (one.clone(), artifact.clone());
            move || one.recipe_of(artifact.id).unwrap().unwrap()
        });
        let recipe = recipe.await.unwrap();
        assert_eq!(other.recipe(recipe.id).await.as_ref(), Some(&recipe));
        assert_eq!(other.recipe(artifact.id).await, None);

        let range = 4_190_208..4_210_688;
        let cached = folders[1].path().join(format!("cache/{}.1", artifact.id));
        let slice = |origin: &Origin| {
            let (origin, artifact, range) = (origin.clone(), artifact.clone(), range.clone());
            tokio::task::spawn_blocking(move || origin.slice(&artifact, &range))
        };
        let expected = slice(&one).await.unwrap().unwrap();
        assert!(slice(&other).await.unwrap().unwrap() == expected);
        std::fs::write(&cached, vec![1; 4 << 20]).unwrap();
        assert!(slice(&other).await.unwrap().unwrap() == expected);
        // What has rotted in the bucket is not served.
        bucket
            .put(&object(&format!("{}.bin", artifact.id)), vec![0; image.len()].into())
            .await
            .unwrap();
        std::fs::remove_dir_all(folders[1].path().join("cache")).unwrap();
        std::fs::create_dir_all(folders[1].path().join("cache")).unwrap();
        let refused = slice(&open(&folders[1])).await.unwrap();
        assert!(
            matches!(refused, Err(SliceError::Encode(EncodeError::Unreadable { .. }))),
            "{refused:?}"
        );

        for found in one.all_files().await.unwrap() {
            one.remove_file(&found.name).await.unwrap();
        }
        assert!(matches!(
            slice(&open(&folders[1])).await.unwrap(),
            Err(SliceError::Unknown(_))
        ));
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
