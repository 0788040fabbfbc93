//! An image as a file, for programs that want one.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use firmesh_executors_core::Image;
use firmesh_protocol::ids::Sha256;
use sha2::Digest as _;
use tokio::{io::AsyncReadExt as _, task::spawn_blocking};

use crate::image::{ImageError, ImageSource};

/// What is copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// Why an image could not be made a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the image could not be had")]
    Image(#[source] ImageError),
    #[error("the image's stream broke")]
    Stream(#[source] io::Error),
    #[error("the image's stream is not the image: {length} bytes or more with the digest {found}")]
    WrongStream { length: u64, found: Sha256 },
    #[error("could not write {path}")]
    Write { path: PathBuf, source: io::Error },
}

impl FetchError {
    pub(crate) fn retry(&self) -> bool {
        match self {
            Self::Image(error) => error.retry,
            Self::Stream(_) => true,
            Self::WrongStream { .. } => false,
            Self::Write { source, .. } => source.kind() != io::ErrorKind::StorageFull,
        }
    }
}

/// Writes an image into `path`, durably, and never anything else; a file that holds it already is left.
pub(crate) async fn fetch(images: &dyn ImageSource, image: &Image, path: &Path) -> Result<(), FetchError> {
    let (wanted, length) = (image.artifact.sha256, image.artifact.length);
    let failed = |source| FetchError::Write {
        path: path.to_owned(),
        source,
    };
    let there = path.to_owned();
    let held = blocking(move || match fs::metadata(&there) {
        Ok(found) if found.len() == length => digest_of(&there).map(Some),
        _ => Ok(None),
    });
    if held.await.map_err(failed)? == Some(wanted) {
        return Ok(());
    }
    let reader = images.open(image.artifact.id).await.map_err(FetchError::Image)?;
    let mut reader = reader.take(length + 1);
    let mut file = File::create(path).map_err(failed)?;
    let (mut hash, mut total) = (sha2::Sha256::new(), 0);
    loop {
        let mut chunk = Vec::new();
        let read = (&mut reader).take(COPY_BYTES).read_to_end(&mut chunk).await;
        if read.map_err(FetchError::Stream)? == 0 {
            break;
        }
        hash.update(&chunk);
        total += chunk.len() as u64;
        file = blocking(move || {
            file.write_all(&chunk)?;
            Ok(file)
        })
        .await
        .map_err(failed)?;
    }
    blocking(move || file.sync_all()).await.map_err(failed)?;
    let found: [u8; 32] = hash.finalize().into();
    let found = Sha256::from(found);
    if (found, total) == (wanted, length) {
        Ok(())
    } else {
        Err(FetchError::WrongStream { length: total, found })
    }
}

/// The digest of a whole file.
pub(crate) fn digest_of(path: &Path) -> io::Result<Sha256> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, sha2::Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    Ok(digest.into())
}

pub(super) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(act).await.map_err(io::Error::other)?
}
