//! What was fully signed once: `signed/<version>.<file>`, the last few versions of each.
//!
//! Only what still verifies is believed: under a complete root of the chain, or under delegations that do.

use std::{fs, path::PathBuf};

use firmesh_protocol::trust::{Kind, Role, Root, SignedFile, Targets};

use super::{
    super::files::{read_bounded, write_file},
    FolderError, ReadFileError, TrustFolder,
};

/// Versions kept of each file.
const KEPT: u64 = 8;

impl TrustFolder {
    /// Keeps every file that is complete now.
    pub(super) fn record_signed(&self) -> Result<(), FolderError> {
        let files = self.repository.files();
        for status in self.status()? {
            // The chain of roots keeps itself.
            if status.file.ends_with(".root.json") || !status.is_complete() {
                continue;
            }
            let path = self.record_path(status.version, &status.file);
            if let Some(bytes) = files.get(&status.file).filter(|_| !path.exists()) {
                write_file(&path, bytes)?;
            }
            let oldest = status.version.saturating_sub(KEPT);
            for (version, path) in self
                .records(&status.file)?
                .into_iter()
                .filter(|(version, _)| *version < oldest)
            {
                fs::remove_file(&path).map_err(|source| ReadFileError::Io {
                    path: self.record_path(version, &status.file),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The roots that are signed by their own threshold and by the one before, oldest first.
    pub(super) fn complete_roots(&self) -> Result<Vec<Root>, FolderError> {
        let (files, mut roots) = (self.repository.files(), Vec::new());
        let status = self.status()?;
        for root in status.iter().filter(|status| status.file.ends_with(".root.json")) {
            if !root.is_complete() {
                break;
            }
            let parsed = SignedFile::from_bytes(&root.file, files.get(&root.file).map_or(&[], Vec::as_slice))
                .and_then(|file| file.unverified(&root.file));
            roots.push(parsed.map_err(|source| self.unfit(source.into()))?);
        }
        Ok(roots)
    }

    /// The newest version of `targets.json`, `releases.json` or `campaigns.json` before `version` that was fully signed.
    pub(super) fn signed_before(&self, file: &str, version: u64) -> Result<Option<Targets>, FolderError> {
        let roots = self.complete_roots()?;
        let by_root = |signed: &SignedFile| {
            roots.iter().rev().find_map(|root| {
                let keys = root.key_set(Kind::Targets).ok()?;
                signed.verified::<Targets>("targets.json", &keys).ok()
            })
        };
        let role = match file {
            "targets.json" => None,
            other => other.strip_suffix(".json"),
        };
        let mut delegations = Vec::new();
        for (_, path) in self.records("targets.json")? {
            let read = SignedFile::from_bytes("targets.json", &read_bounded(&path, Kind::Targets.bytes_max())?);
            delegations.extend(read.ok().as_ref().and_then(by_root));
        }
        for (found, path) in self
            .records(file)?
            .into_iter()
            .rev()
            .filter(|(found, _)| *found < version)
        {
            let bytes = read_bounded(&path, Kind::Targets.bytes_max())?;
            let Ok(signed) = SignedFile::from_bytes(file, &bytes) else {
                continue;
            };
            let verified = match role {
                None => by_root(&signed),
                Some(role) => delegations.iter().rev().find_map(|targets| {
                    let keys = targets.delegated_keys(role).ok()??;
                    signed.verified::<Targets>(file, &keys).ok()
                }),
            };
            if let Some(targets) = verified.filter(|targets| targets.header().version == found) {
                return Ok(Some(targets));
            }
        }
        Ok(None)
    }

    fn record_path(&self, version: u64, file: &str) -> PathBuf {
        self.path.join(format!("signed/{version}.{file}"))
    }

    /// The kept versions of a file, oldest first.
    fn records(&self, file: &str) -> Result<Vec<(u64, PathBuf)>, FolderError> {
        let folder = self.path.join("signed");
        let unreadable = |source| ReadFileError::Io {
            path: folder.clone(),
            source,
        };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            let version = name
                .to_str()
                .and_then(|name| name.strip_suffix(file)?.strip_suffix('.')?.parse().ok());
            found.extend(version.map(|version| (version, entry.path())));
        }
        found.sort();
        Ok(found)
    }
}
