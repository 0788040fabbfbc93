//! The checks that a refresh and a search share: version, rollback, expiry, length and digest.

use std::collections::BTreeMap;

use sha2::Digest as _;

use super::{
    errors::RefreshError,
    key_set::KeySet,
    metadata::{MetaFile, Role, SignedFile, Snapshot, Targets},
};
use crate::time::WallTime;

/// A role's targets, if they are exactly what the snapshot names and enough of `keys` signed them.
pub(super) fn check_targets(
    snapshot: &Snapshot,
    role: &str,
    keys: &KeySet,
    bytes: &[u8],
    now: WallTime,
) -> Result<Targets, RefreshError> {
    let (file, meta) = (format!("{role}.json"), snapshot_meta(snapshot, role)?);
    check_bytes(&file, meta, bytes)?;
    let targets: Targets = SignedFile::from_bytes(&file, bytes)?.verified(&file, keys)?;
    check_version(role, meta.version, targets.header.version)?;
    check_expiry(role, &targets, now)?;
    Ok(targets)
}

/// What the snapshot says about a role's file.
pub(super) fn snapshot_meta<'a>(snapshot: &'a Snapshot, role: &str) -> Result<&'a MetaFile, RefreshError> {
    let file = format!("{role}.json");
    (snapshot.meta.get(&file)).ok_or(RefreshError::NotInSnapshot { file })
}

/// Whether metadata is still believed at `now`.
pub(super) fn check_expiry(role: &str, content: &impl Role, now: WallTime) -> Result<(), RefreshError> {
    let header = content.header();
    if header.expires > now {
        return Ok(());
    }
    let (version, expires) = (header.version, header.expires);
    Err(RefreshError::Expired {
        role: role.to_owned(),
        version,
        expires,
        now,
    })
}

pub(super) fn check_version(role: &str, expected: u64, found: u64) -> Result<(), RefreshError> {
    if expected == found {
        Ok(())
    } else {
        Err(RefreshError::WrongVersion {
            role: role.to_owned(),
            expected,
            found,
        })
    }
}

pub(super) fn check_rollback(role: &str, trusted: u64, offered: u64) -> Result<(), RefreshError> {
    if offered >= trusted {
        Ok(())
    } else {
        Err(RefreshError::Rollback {
            role: role.to_owned(),
            trusted,
            offered,
        })
    }
}

/// Length and digests, as far as they are given.
pub(super) fn check_bytes(file: &str, meta: &MetaFile, bytes: &[u8]) -> Result<(), RefreshError> {
    let found = bytes.len() as u64;
    if let Some(expected) = meta.length.filter(|&length| length != found) {
        return Err(RefreshError::LengthMismatch {
            file: file.to_owned(),
            expected,
            found,
        });
    }
    meta.hashes
        .as_ref()
        .map_or(Ok(()), |hashes| check_hashes(file, hashes, bytes))
}

/// Every digest that can be computed here must match, and there must be one.
fn check_hashes(file: &str, hashes: &BTreeMap<String, String>, bytes: &[u8]) -> Result<(), RefreshError> {
    let mut known = 0;
    for (algorithm, expected) in hashes {
        let found = match algorithm.as_str() {
            "sha256" => hex::encode(sha2::Sha256::digest(bytes)),
            "sha512" => hex::encode(sha2::Sha512::digest(bytes)),
            _ => continue,
        };
        known += 1;
        if found != *expected {
            return Err(RefreshError::HashMismatch {
                file: file.to_owned(),
                algorithm: algorithm.clone(),
            });
        }
    }
    if known == 0 {
        Err(RefreshError::NoKnownHash { file: file.to_owned() })
    } else {
        Ok(())
    }
}
