//! What a store remembers of its artifacts beside their pieces: when each was needed last, which SHA-256 the whole was found
//! to have, and how far the scrub has come.
//!
//! All of it is a matter of order and speed, not of trust: a ledger that is lost or damaged is begun anew. It is one small
//! file, written at most once an hour for needs, and once a minute while a scrub is under way. That bytes with this BLAKE3
//! root have this SHA-256 stays true for good, so a restart need not read 4 GiB again to know it.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::Path,
};

use firmesh_protocol::{
    ids::{ArtifactId, Sha256},
    time::WallTime,
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::files::write_durably;

/// The ledger's file in the store's folder.
pub(super) const LEDGER: &str = "ledger.json";

/// A ledger has a line for each of at most a few hundred artifacts.
const LEDGER_BYTES_MAX: u64 = 1 << 20;

/// A need is noted again when the last note of it is this old, in seconds.
const NOTE_AGAIN_S: i64 = 3_600;

/// What is remembered.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ledger {
    version: Version,
    artifacts: BTreeMap<ArtifactId, Entry>,
    pub(super) scrub: Scrubbed,
    #[serde(skip)]
    changed: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    #[default]
    #[serde(rename = "1")]
    One,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// When it was needed last, in seconds since 1970.
    needed: i64,
    /// What the whole was found to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256>,
}

/// How far the scrub has come.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrubbed {
    /// Where the pass that is under way stands: the next piece to look at. `None` between two passes.
    pub at: Option<(ArtifactId, u32)>,
    /// When the pass that is under way began, or the last one; seconds since 1970.
    pub began_s: i64,
    /// When the last whole pass ended; seconds since 1970. 0 before the first.
    pub ended_s: i64,
    /// Whole passes.
    pub passes: u64,
    /// Bytes of content that were checked, in all passes.
    pub bytes_checked: u64,
    /// Pieces that were found damaged, in all passes.
    pub pieces_lost: u64,
}

impl Ledger {
    /// Reads the ledger of a store that has these artifacts.
    pub(super) fn read(folder: &Path, has: impl Fn(&ArtifactId) -> bool) -> Self {
        let path = folder.join(LEDGER);
        let bytes = std::fs::File::open(&path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(LEDGER_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let read = match bytes {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => Err(error),
            Ok(bytes) => serde_json::from_slice::<Self>(&bytes).map_err(io::Error::other),
        };
        let mut ledger = read.unwrap_or_else(|error| {
            warn!(path = %path.display(), %error, "the store's ledger cannot be read; it is begun anew");
            Self::default()
        });
        ledger.artifacts.retain(|artifact, _| has(artifact));
        ledger
    }

    /// Writes it, if it changed.
    pub(super) fn write(&mut self, folder: &Path) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        write_durably(&folder.join(LEDGER), &bytes, 0o600)?;
        self.changed = false;
        Ok(())
    }

    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    pub(super) fn last_needed(&self, artifact: &ArtifactId) -> Option<WallTime> {
        let entry = self.artifacts.get(artifact)?;
        Some(WallTime::from_unix_seconds(entry.needed))
    }

    /// Notes that an artifact is needed now. Needs never move back.
    pub(super) fn note_need(&mut self, artifact: ArtifactId, now: WallTime) {
        let (entry, now) = (self.artifacts.entry(artifact), now.unix_seconds());
        let mut is_news = false;
        let entry = entry.or_insert_with(|| {
            is_news = true;
            Entry {
                needed: now,
                sha256: None,
            }
        });
        if now.saturating_sub(entry.needed) >= NOTE_AGAIN_S {
            entry.needed = now;
            is_news = true;
        }
        self.changed |= is_news;
    }

    pub(super) fn whole(&self, artifact: &ArtifactId) -> Option<Sha256> {
        self.artifacts.get(artifact)?.sha256
    }

    pub(super) fn note_whole(&mut self, artifact: ArtifactId, sha256: Sha256, now: WallTime) {
        self.note_need(artifact, now);
        if let Some(entry) = self.artifacts.get_mut(&artifact) {
            self.changed |= entry.sha256 != Some(sha256);
            entry.sha256 = Some(sha256);
        }
    }

    pub(super) fn forget(&mut self, artifact: &ArtifactId) {
        self.changed |= self.artifacts.remove(artifact).is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_outlives_a_restart_and_is_written_only_when_it_is_news() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = [b"a", b"b"].map(|name| ArtifactId::of(name));
        let at = WallTime::from_unix_seconds;
        let path = folder.path().join(LEDGER);
        let mut ledger = Ledger::read(folder.path(), |_| true);
        ledger.write(folder.path()).unwrap();
        assert!(!path.exists(), "nothing was to be written");
        ledger.note_need(a, at(1_000));
        ledger.note_whole(b, Sha256::of(b"b"), at(2_000));
        ledger.write(folder.path()).unwrap();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        ledger.note_need(a, at(1_000 + NOTE_AGAIN_S - 1));
        ledger.note_need(a, at(10));
        ledger.note_whole(b, Sha256::of(b"b"), at(2_001));
        ledger.write(folder.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
        ledger.note_need(a, at(1_000 + NOTE_AGAIN_S));
        ledger.write(folder.path()).unwrap();

        let read = Ledger::read(folder.path(), |_| true);
        assert_eq!(read, ledger);
        assert_eq!(read.last_needed(&a), Some(at(1_000 + NOTE_AGAIN_S)));
        assert_eq!((read.whole(&a), read.whole(&b)), (None, Some(Sha256::of(b"b"))));
        let without = Ledger::read(folder.path(), |id| *id != b);
        assert_eq!(without.whole(&b), None);
    }

    #[test]
    fn a_ledger_cut_off_or_of_another_kind_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::default();
        ledger.note_need(ArtifactId::of(b"a"), WallTime::from_unix_seconds(5));
        ledger.write(folder.path()).unwrap();
        let whole = std::fs::read(folder.path().join(LEDGER)).unwrap();
        for bad in [
            &whole[..0],
            &whole[..whole.len() / 2],
            b"[]",
            b"{\"version\":\"9\"}",
            &[0xff; 40],
        ] {
            std::fs::write(folder.path().join(LEDGER), bad).unwrap();
            assert_eq!(Ledger::read(folder.path(), |_| true), Ledger::default());
        }
    }
}
