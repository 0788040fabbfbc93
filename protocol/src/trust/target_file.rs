//! A target's bytes against what was signed about them, while they arrive.
//!
//! Invariants: no byte after the signed length is taken; every digest that can be computed must match, and there must be
//! one.

use sha2::{Digest as _, Sha256, Sha512};

use super::{
    metadata::{Root, Target},
    names::quoted_path,
};

/// Why bytes are not the target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// More bytes than were signed for.
    #[error("there are more bytes than the signed length of {length}")]
    TooLong {
        /// The signed length.
        length: u64,
    },
    /// Fewer bytes than were signed for.
    #[error("there are {found} bytes, the signed length is {length}")]
    TooShort {
        /// The signed length.
        length: u64,
        /// How many came.
        found: u64,
    },
    /// Other bytes than were signed for.
    #[error("the {algorithm} digest is {found}, signed is {expected}")]
    HashMismatch {
        /// The digest.
        algorithm: &'static str,
        /// The signed digest.
        expected: String,
        /// The digest of the bytes.
        found: String,
    },
    /// Only digests that this version cannot compute.
    #[error("it is signed with no digest this version can check (sha256, sha512)")]
    NoKnownHash,
    /// A name that leads out of the folder of targets.
    #[error("a target name has no segment \".\" or \"..\"")]
    BadName,
}

impl TargetError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_large",
            Self::TooShort { .. } => "length_mismatch",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::NoKnownHash => "no_known_hash",
            Self::BadName => "bad_target_name",
        }
    }
}

/// Compares bytes with a signed length and signed digests.
#[derive(Debug)]
pub struct TargetCheck {
    length: u64,
    found: u64,
    sha256: Option<(String, Sha256)>,
    sha512: Option<(String, Sha512)>,
}

impl TargetCheck {
    /// Begins with the first byte of `target`.
    pub fn new(target: &Target) -> Result<Self, TargetError> {
        let digest = |name: &str| target.hashes.get(name).cloned();
        let check = Self {
            length: target.length,
            found: 0,
            sha256: digest("sha256").map(|expected| (expected, Sha256::new())),
            sha512: digest("sha512").map(|expected| (expected, Sha512::new())),
        };
        match (&check.sha256, &check.sha512) {
            (None, None) => Err(TargetError::NoKnownHash),
            _ => Ok(check),
        }
    }

    /// Takes the bytes that come next.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), TargetError> {
        self.found = self.found.saturating_add(bytes.len() as u64);
        if self.found > self.length {
            return Err(TargetError::TooLong { length: self.length });
        }
        if let Some((_, hasher)) = &mut self.sha256 {
            hasher.update(bytes);
        }
        if let Some((_, hasher)) = &mut self.sha512 {
            hasher.update(bytes);
        }
        Ok(())
    }

    /// Whether the bytes were the target.
    pub fn finish(self) -> Result<(), TargetError> {
        let Self { length, found, .. } = self;
        if found != length {
            return Err(TargetError::TooShort { length, found });
        }
        let compare = |algorithm, expected: String, found: String| {
            if expected == found {
                Ok(())
            } else {
                Err(TargetError::HashMismatch {
                    algorithm,
                    expected,
                    found,
                })
            }
        };
        if let Some((expected, hasher)) = self.sha256 {
            compare("sha256", expected, hex::encode(hasher.finalize()))?;
        }
        if let Some((expected, hasher)) = self.sha512 {
            compare("sha512", expected, hex::encode(hasher.finalize()))?;
        }
        Ok(())
    }
}

impl Target {
    /// Where a repository keeps this target's bytes, as the end of a URL: under its name, with a digest in front if the
    /// repository uses consistent snapshots.
    pub fn repository_path(&self, name: &str, root: &Root) -> Result<String, TargetError> {
        let (folder, file) = name
            .rsplit_once('/')
            .map_or(("", name), |(folder, file)| (folder, file));
        if name.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(TargetError::BadName);
        }
        let file = if root.consistent_snapshot {
            let digest = self.hashes.get("sha256").or_else(|| self.hashes.get("sha512"));
            let digest = digest.ok_or(TargetError::NoKnownHash)?;
            format!("{digest}.{file}")
        } else {
            file.to_owned()
        };
        let path = if folder.is_empty() {
            file
        } else {
            format!("{folder}/{file}")
        };
        Ok(quoted_path(&path))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::trust::Extra;

    const BYTES: &[u8] = b"firmware";

    fn target(algorithms: &[&str]) -> Target {
        let digest = |algorithm: &&str| match *algorithm {
            "sha256" => hex::encode(Sha256::digest(BYTES)),
            _ => hex::encode(Sha512::digest(BYTES)),
        };
        Target {
            length: BYTES.len() as u64,
            hashes: algorithms
                .iter()
                .map(|name| ((*name).to_owned(), digest(name)))
                .collect(),
            custom: None,
            extra: Extra::new(),
        }
    }

    fn checked(target: &Target, bytes: &[u8]) -> Result<(), TargetError> {
        let mut check = TargetCheck::new(target)?;
        for part in bytes.chunks(3) {
            check.update(part)?;
        }
        check.finish()
    }

    #[test]
    fn only_the_signed_bytes_pass_under_either_digest() {
        for algorithms in [&["sha256"][..], &["sha512"], &["sha256", "sha512"]] {
            let target = target(algorithms);
            assert_eq!(checked(&target, BYTES), Ok(()));
            assert_eq!(checked(&target, b"f1rmware").unwrap_err().code(), "hash_mismatch");
            assert_eq!(checked(&target, b"firmwar").unwrap_err().code(), "length_mismatch");
            assert_eq!(checked(&target, b"firmwares").unwrap_err().code(), "too_large");
        }
        let mut one_wrong = target(&["sha256", "sha512"]);
        one_wrong.hashes.insert("sha512".to_owned(), "00".repeat(64));
        assert_eq!(checked(&one_wrong, BYTES).unwrap_err().code(), "hash_mismatch");
        assert_eq!(checked(&target(&["md5"]), BYTES), Err(TargetError::NoKnownHash));
    }

    #[test]
    fn a_target_lies_under_its_digest_only_in_consistent_snapshots_and_never_outside() {
        let root = |consistent_snapshot| Root {
            header: crate::trust::Header::first(crate::trust::Kind::Root, crate::time::WallTime::from_unix_seconds(0)),
            consistent_snapshot,
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
            extra: Extra::new(),
        };
        let target = target(&["sha256"]);
        let digest = &target.hashes["sha256"];
        let path = |name: &str, consistent| target.repository_path(name, &root(consistent));
        assert_eq!(path("a b/c.bin", false).unwrap(), "a%20b/c.bin");
        assert_eq!(path("a b/c.bin", true).unwrap(), format!("a%20b/{digest}.c.bin"));
        assert_eq!(path("c.bin", true).unwrap(), format!("{digest}.c.bin"));
        for name in ["../c.bin", "a/./c", ".."] {
            assert_eq!(path(name, false), Err(TargetError::BadName));
        }
    }
}
