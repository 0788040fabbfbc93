//! What a store has and what it takes, and what the disk has left: the facts that an eviction is decided by.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use firmesh_protocol::{chunk::PieceLayout, ids::ArtifactId, time::WallTime};
use futures_util::{FutureExt as _, future::BoxFuture};
use nix::sys::statvfs::statvfs;

use super::{CONTENT, PieceStore, RECORDS, artifact::RECORD_BYTES, blocking, file_name};
use crate::store::StoreError;

/// What the disk's blocks are counted in.
const BLOCK_BYTES: u64 = 512;

/// A store and its disk at one moment.
#[derive(Debug, Clone)]
pub struct Survey {
    /// Every artifact, whole or in part.
    pub artifacts: Vec<Surveyed>,
    /// Bytes of the disk that are free for this process.
    pub free_bytes: u64,
    /// Bytes of the disk.
    pub disk_bytes: u64,
}

/// One artifact in a store.
#[derive(Debug, Clone)]
pub struct Surveyed {
    /// The artifact.
    pub artifact: ArtifactId,
    /// Its length.
    pub length: u64,
    /// Bytes it takes on the disk now, records included.
    pub bytes_now: u64,
    /// When it was needed last.
    pub last_needed: WallTime,
}

/// Bytes that an artifact of `length` bytes takes on the disk once it is whole, records included.
#[must_use]
pub fn bytes_whole(length: u64) -> u64 {
    length + u64::from(PieceLayout::new(length).pieces()) * RECORD_BYTES as u64
}

impl PieceStore {
    /// Looks at every artifact's files, but not into them.
    pub fn survey(&self) -> BoxFuture<'_, Result<Survey, StoreError>> {
        let store = self.clone();
        let work = blocking(move || store.survey_now());
        async move { work.await.map_err(|error| self.failed("look at its disk", error)) }.boxed()
    }

    fn survey_now(&self) -> io::Result<Survey> {
        let folder = &self.0.folder;
        let disk = statvfs(&**folder)?;
        let slots: Vec<_> = {
            let slots = self.slots();
            slots
                .iter()
                .map(|(artifact, slot)| (*artifact, slot.layout.length()))
                .collect()
        };
        let mut artifacts = Vec::with_capacity(slots.len());
        for (artifact, length) in slots {
            let mut bytes_now = 0;
            for kind in [CONTENT, RECORDS] {
                bytes_now += bytes_of(&folder.join(file_name(artifact, length, kind)))?;
            }
            let noted = self.ledger().last_needed(&artifact);
            artifacts.push(Surveyed {
                artifact,
                length,
                bytes_now,
                last_needed: noted.unwrap_or_else(|| changed_at(&folder.join(file_name(artifact, length, CONTENT)))),
            });
        }
        Ok(Survey {
            artifacts,
            free_bytes: disk.blocks_available().saturating_mul(disk.fragment_size()),
            disk_bytes: disk.blocks().saturating_mul(disk.fragment_size()),
        })
    }
}

/// Bytes a file takes on the disk: what was never written takes nothing. An absent file, of an artifact whose first piece
/// is on its way, takes nothing either.
fn bytes_of(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.blocks() * BLOCK_BYTES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// When a file was written last: what is taken for the last need where none was noted.
fn changed_at(path: &Path) -> WallTime {
    let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
    let since = changed.unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH);
    WallTime::from_unix_seconds(since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX)))
}
