//! What a BIOS cannot tell: which document its settings come from. Kept beside the node's journal, and believed only as far as
//! the attributes read back bear it out.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use firmesh_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

use super::document::{DOCUMENT_BYTES_MAX, Document};
use crate::ab_slot::{Disk, read_small};

const SCHEMA: &str = "firmesh-bios-books/1";
const BOOKS: &str = "books.json";
/// Twice a document, escaped.
const BOOKS_BYTES_MAX: u64 = 8 * DOCUMENT_BYTES_MAX;

/// The documents of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Books {
    pub(super) schema: String,
    /// The document that was brought last.
    pub(super) wanted: Option<Held>,
    /// The last one before it that was found to hold.
    pub(super) held: Option<Held>,
}

/// A document, and the digest of the bytes that it was read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Held {
    pub(super) sha256: Sha256,
    pub(super) document: Document,
}

/// The books could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {path}")]
pub(super) struct BooksError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Books {
    /// What is kept in this folder; empty if nothing is.
    pub(super) fn read(folder: &Path) -> Result<Self, BooksError> {
        let path = folder.join(BOOKS);
        let failed = |source| BooksError {
            operation: "read",
            path: path.clone(),
            source,
        };
        match read_small(&path, BOOKS_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error)),
            Ok(bytes) => {
                let books: Self = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
                match books.schema == SCHEMA {
                    true => Ok(books),
                    false => Err(failed(io::Error::other(format!("its schema is not {SCHEMA}")))),
                }
            }
        }
    }

    /// Keeps them durably.
    pub(super) fn write(mut self, folder: &Path) -> Result<(), BooksError> {
        SCHEMA.clone_into(&mut self.schema);
        let path = folder.join(BOOKS);
        let written = fs::create_dir_all(folder)
            .and_then(|()| serde_json::to_vec(&self).map_err(io::Error::other))
            .and_then(|bytes| Disk::default().replace(&path, &bytes));
        written.map_err(|source| BooksError {
            operation: "write",
            path,
            source,
        })
    }
}
