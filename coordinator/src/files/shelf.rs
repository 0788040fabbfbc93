//! Whole files under names that are given once: archives.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::Bucket;
use crate::ceremony::{ReadFileError, read_bounded, write_secret};

/// A folder, or the bucket. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum Shelf {
    Folder(PathBuf),
    Bucket(Bucket),
}

impl Shelf {
    /// Stores a file durably. One of this name that is there already is left alone: names have digests in them.
    pub(crate) async fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                blocking(move || match path.exists() {
                    true => Ok(()),
                    false => write_secret(&path, &bytes, true).map_err(io::Error::other),
                })
                .await
            }
            Self::Bucket(bucket) => bucket.put_new(name, bytes).await.map(drop),
        }
    }

    /// A file of at most so many bytes, if it is there.
    pub(crate) async fn get(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                blocking(move || read(&path, bytes_max)).await
            }
            Self::Bucket(bucket) => bucket.get(name, bytes_max).await,
        }
    }

    /// Removes a file, if it is there.
    pub(crate) async fn remove(&self, name: &str) -> io::Result<()> {
        match self {
            Self::Folder(folder) => match tokio::fs::remove_file(folder.join(name)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            Self::Bucket(bucket) => bucket.remove(name).await,
        }
    }
}

fn read(path: &Path, bytes_max: u64) -> io::Result<Option<Bytes>> {
    match read_bounded(path, bytes_max) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(ReadFileError::Io { source, .. }) => Err(source),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
