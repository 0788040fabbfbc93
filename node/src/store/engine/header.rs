//! The store's folder: who uses it, whether it is encrypted and under which key, and what an earlier engine left there.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::seal::StoreKey;
use crate::files::write_durably;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("the piece store in {folder} could not be opened; check its disk and permissions")]
    Folder {
        /// The store's folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("the piece store in {folder} is in use; is another node running on it?")]
    InUse {
        /// The store's folder.
        folder: PathBuf,
    },
    /// The store is encrypted, and there is no key.
    #[error(
        "the piece store in {folder} is encrypted and no key is configured; set store.key_file or FIRMESH_STORE_KEY, \
         or remove the folder: what it holds is fetched again"
    )]
    KeyMissing {
        /// The store's folder.
        folder: PathBuf,
    },
    /// The store is encrypted under another key.
    #[error(
        "the piece store in {folder} is encrypted under another key than the configured one; configure its key, \
         or remove the folder: what it holds is fetched again"
    )]
    WrongKey {
        /// The store's folder.
        folder: PathBuf,
    },
    /// The store is not encrypted, and a key is configured.
    #[error(
        "the piece store in {folder} was written without encryption and a key is configured; remove the folder: \
         what it holds is fetched again, encrypted (overwrite the disk if the images were secret)"
    )]
    NotEncrypted {
        /// The store's folder.
        folder: PathBuf,
    },
    /// The header is damaged or of a later version.
    #[error(
        "{path} is not a piece store's header of this version; remove the folder it lies in: what it holds is fetched again"
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl OpenError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "store_folder",
            Self::InUse { .. } => "store_in_use",
            Self::KeyMissing { .. } => "store_key_missing",
            Self::WrongKey { .. } => "store_wrong_key",
            Self::NotEncrypted { .. } => "store_not_encrypted",
            Self::Header { .. } => "store_header",
        }
    }
}

/// What `format.json` says. It changes only while the store holds nothing.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: Version,
    cipher: Cipher,
    /// Tells the right key from a wrong one, and says nothing about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    key_check: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    #[serde(rename = "1")]
    One,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Cipher {
    #[serde(rename = "none")]
    None,
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// A header has three short fields.
const HEADER_BYTES_MAX: u64 = 4 << 10;

/// What iroh-blobs' store, the first engine, kept in the same place. It was a cache, and would be a plaintext one.
const EARLIER_ENGINE: [&str; 3] = ["blobs.db", "data", "temp"];

/// Takes the folder into use: the lock lasts as long as the file is open. `holds_something` is asked only if the header
/// does not fit the key.
pub(super) fn open(
    folder: &Path,
    key: Option<&StoreKey>,
    holds_something: impl FnOnce() -> io::Result<bool>,
) -> Result<File, OpenError> {
    let failed = |source| OpenError::Folder {
        folder: folder.to_owned(),
        source,
    };
    fs::create_dir_all(folder).map_err(failed)?;
    // Opened for writing, so that a read-only disk is known now and not at the first piece.
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(folder.join("lock"))
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse {
                folder: folder.to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    remove_earlier_engine(folder).map_err(failed)?;
    let expected = Header {
        version: Version::One,
        cipher: key.map_or(Cipher::None, |_| Cipher::Aes256Gcm),
        key_check: key.map(StoreKey::check_value),
    };
    let path = folder.join("format.json");
    let found = match read_header(&path).map_err(failed)? {
        Some(bytes) => Some(
            serde_json::from_slice::<Header>(&bytes).map_err(|source| OpenError::Header {
                path: path.clone(),
                source,
            })?,
        ),
        None => None,
    };
    match found {
        Some(found) if found == expected => return Ok(lock),
        Some(found) if holds_something().map_err(failed)? => {
            let folder = folder.to_owned();
            return Err(match (found.cipher, expected.cipher) {
                (Cipher::Aes256Gcm, Cipher::None) => OpenError::KeyMissing { folder },
                (Cipher::None, Cipher::Aes256Gcm) => OpenError::NotEncrypted { folder },
                _ => OpenError::WrongKey { folder },
            });
        }
        _ => {}
    }
    let bytes = serde_json::to_vec(&expected).expect("a header has only text");
    write_durably(&path, &bytes, 0o600).map_err(failed)?;
    Ok(lock)
}

fn read_header(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(HEADER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn remove_earlier_engine(folder: &Path) -> io::Result<()> {
    if !folder.join(EARLIER_ENGINE[0]).is_file() {
        return Ok(());
    }
    warn!(folder = %folder.display(), "the cache of an earlier version is removed; what it held is fetched again");
    // The database goes last: it is what the rest is known by.
    for name in EARLIER_ENGINE.iter().rev() {
        let path = folder.join(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
