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
    chunk::{EncodeError, HashTree, encode},
    ids::{ArtifactId, Sha256},
    limits::ARTIFACT_BYTES_MAX,
    manifest::Artifact,
};
use futures_util::{Stream, StreamExt as _};
use sha2::Digest as _;
use tokio::io::AsyncWriteExt as _;

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
}

/// The artifact folder.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    folder: Arc<Path>,
    trees: Arc<Mutex<BTreeMap<ArtifactId, Arc<HashTree>>>>,
}

/// Trees kept in memory: what a few campaigns at once need. One takes 4 MiB for each GiB of its artifact.
const TREES_MAX: usize = 16;

impl Origin {
    /// Uses `folder`, which exists. Uploads that a crash cut off are removed.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self {
            folder: folder.into(),
            trees: Arc::default(),
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
        let tree = HashTree::build(io::BufReader::with_capacity(1 << 20, part.reopen()?), length)?;
        let mut nodes = tempfile::Builder::new().suffix(".part").tempfile_in(&self.folder)?;
        io::Write::write_all(&mut nodes, &tree.nodes)?;
        nodes.as_file().sync_all()?;
        nodes.persist(self.tree_path(tree.root))?;
        part.persist(self.data_path(tree.root))?;
        File::open(&self.folder)?.sync_all()?;
        Ok(Artifact {
            id: tree.root,
            sha256,
            length,
        })
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

    fn tree_path(&self, id: ArtifactId) -> PathBuf {
        self.folder.join(format!("{id}.tree"))
    }
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
