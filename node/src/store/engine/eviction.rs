//! Taking an artifact off the disk, and what a crash in the middle of that leaves.
//!
//! Invariant: an artifact has both of its files or counts as having none. The records go first and for good before the
//! content does: without them no byte of it is believed. What is found with one file only, of an artifact that was being
//! removed or begun, is removed when the store is opened.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
};

use firmesh_protocol::{ids::ArtifactId, limits::ARTIFACT_BYTES_MAX};
use tracing::info;

use super::{CONTENT, RECORDS, file_name};

/// A folder whose files can be removed.
pub(super) trait Folder {
    /// Removes a file; an absent one is no error.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Whatever was removed before stays removed once this returns.
    fn sync(&self) -> io::Result<()>;
}

impl Folder for Path {
    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(self)?.sync_all()
    }
}

/// Removes an artifact's files.
pub(super) fn remove<F: Folder + ?Sized>(folder: &F, root: ArtifactId, length: u64) -> io::Result<()> {
    for kind in [RECORDS, CONTENT] {
        folder.remove(&file_name(root, length, kind))?;
        folder.sync()?;
    }
    Ok(())
}

/// The artifacts that have both files here, with their lengths. What else lies there is not ours.
pub(super) fn artifacts_in(folder: &Path) -> io::Result<BTreeMap<ArtifactId, u64>> {
    Ok(files_in(folder)?
        .into_iter()
        .filter(|(_, kinds)| kinds.is_whole())
        .map(|(artifact, _)| artifact)
        .collect())
}

/// Removes what is left of artifacts that were being removed or begun.
pub(super) fn remove_remains(folder: &Path) -> io::Result<()> {
    for ((artifact, length), kinds) in files_in(folder)? {
        if !kinds.is_whole() {
            info!(%artifact, "what is left of an artifact that was being removed or begun is removed");
            remove(folder, artifact, length)?;
        }
    }
    Ok(())
}

#[derive(Debug, Default, Clone, Copy)]
struct Kinds {
    content: bool,
    records: bool,
}

impl Kinds {
    fn is_whole(self) -> bool {
        self.content && self.records
    }
}

fn files_in(folder: &Path) -> io::Result<BTreeMap<(ArtifactId, u64), Kinds>> {
    let mut found: BTreeMap<_, Kinds> = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let parsed = name.to_str().and_then(|name| {
            let (root, rest) = name.split_once('.')?;
            let (length, kind) = rest.split_once('.')?;
            Some(((root.parse::<ArtifactId>().ok()?, length.parse::<u64>().ok()?), kind))
        });
        let Some((artifact, kind)) = parsed.filter(|((_, length), _)| (1..=ARTIFACT_BYTES_MAX).contains(length)) else {
            continue;
        };
        match kind {
            CONTENT => found.entry(artifact).or_default().content = true,
            RECORDS => found.entry(artifact).or_default().records = true,
            _ => {}
        }
    }
    Ok(found)
}
