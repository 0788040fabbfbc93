//! Files, whole or not at all.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// Why a file could not be written. Whatever was there before is untouched.
#[derive(Debug, thiserror::Error)]
pub enum WriteFileError {
    /// Something is there already, and nobody said to replace it.
    #[error("{} exists already; choose another name or say --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFileError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is longer than any of its kind.
    #[error("{} is longer than the {bytes_max} bytes that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        bytes_max: u64,
    },
}

impl ReadFileError {
    /// Whether there is simply no such file.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file of bounded length.
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ReadFileError> {
    let failed = |source| ReadFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(ReadFileError::TooLarge {
            path: path.to_owned(),
            bytes_max,
        });
    }
    Ok(bytes)
}

/// Writes a file that everybody may read, replacing what was there.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WriteFileError> {
    write(path, bytes, 0o644, true)
}

/// Writes a file that only its owner may read; over another one only if `force`d.
pub fn write_secret(path: &Path, bytes: &[u8], force: bool) -> Result<(), WriteFileError> {
    write(path, bytes, 0o600, force)
}

/// A temporary neighbour is filled, synced and moved into place, and the folder synced.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32, replace: bool) -> Result<(), WriteFileError> {
    let failed = |source| WriteFileError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut file = NamedTempFile::new_in(folder).map_err(failed)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.as_file().set_permissions(Permissions::from_mode(mode)));
    written.and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    let moved = if replace {
        file.persist(path)
    } else {
        file.persist_noclobber(path)
    };
    match moved {
        Ok(_) => File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(WriteFileError::Exists { path: path.to_owned() })
        }
        Err(error) => Err(failed(error.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_private_and_never_replaces_a_file_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/secret");
        write_secret(&path, b"one", false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(
            write_secret(&path, b"two", false),
            Err(WriteFileError::Exists { .. })
        ));
        assert_eq!(read_bounded(&path, 3).unwrap(), b"one");
        write_secret(&path, b"two", true).unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"two");
        assert!(matches!(read_bounded(&path, 2), Err(ReadFileError::TooLarge { .. })));
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "a temporary file was left behind"
        );
    }
}
