//! Why metadata is refused, each reason with a stable name for machines.

use super::{
    key_set::{KeySetError, SignatureError},
    metadata::{MetadataError, ReadError},
};
use crate::{
    limits::{ROLES_VISITED_MAX, ROOT_ROTATIONS_MAX},
    time::WallTime,
};

/// Why a refresh was refused. Nothing that failed a check has been asked to be persisted.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// There is no root to start from.
    #[error("no trusted root.json: pin one first")]
    NoRoot,
    /// A file could not be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A file is not signed by enough of its role's keys.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A role's keys are unusable.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// A file is longer than anything signed allows.
    #[error("{file} has {length} bytes, at most {bytes_max} are read")]
    TooLarge {
        /// Which file.
        file: String,
        /// Its length.
        length: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// A file's length is not the signed one.
    #[error("{file} has {found} bytes, its signed length is {expected}")]
    LengthMismatch {
        /// Which file.
        file: String,
        /// The signed length.
        expected: u64,
        /// Its length.
        found: u64,
    },
    /// A file's digest is not the signed one.
    #[error("{file} does not have its signed {algorithm} digest")]
    HashMismatch {
        /// Which file.
        file: String,
        /// The digest that differs.
        algorithm: String,
    },
    /// A file's digests are all of kinds this version cannot compute.
    #[error("{file} is signed with no digest this version can check (sha256, sha512)")]
    NoKnownHash {
        /// Which file.
        file: String,
    },
    /// A file is not believed any longer.
    #[error("{role} version {version} expired at {expires}, it is {now}")]
    Expired {
        /// Which role.
        role: String,
        /// The file's version.
        version: u64,
        /// When it expired.
        expires: WallTime,
        /// When the refresh began.
        now: WallTime,
    },
    /// A file is older than one already trusted.
    #[error("{role} went back from version {trusted} to {offered}")]
    Rollback {
        /// Which role (or file, as named by a snapshot).
        role: String,
        /// The version already trusted.
        trusted: u64,
        /// The version offered.
        offered: u64,
    },
    /// A file that the trusted snapshot names is gone from the new one.
    #[error("{file} has disappeared from the snapshot")]
    Disappeared {
        /// Which file.
        file: String,
    },
    /// A file is not of the version that the file naming it says.
    #[error("{role} has version {found}, expected {expected}")]
    WrongVersion {
        /// Which role.
        role: String,
        /// The version expected.
        expected: u64,
        /// The version found.
        found: u64,
    },
    /// The snapshot does not name a role's file.
    #[error("the snapshot does not name {file}")]
    NotInSnapshot {
        /// Which file.
        file: String,
    },
    /// More new roots than a fleet sees in its life.
    #[error(
        "more than {ROOT_ROTATIONS_MAX} new roots in one refresh; those are kept, and the next refresh goes on from them"
    )]
    TooManyRoots,
    /// The repository lacks a file it must have.
    #[error("the repository has no {file}")]
    NotFound {
        /// Which file.
        file: String,
    },
    /// A file could not be fetched; the one refusal where trying again may help.
    #[error("fetching {file} failed: {reason}")]
    Fetch {
        /// Which file.
        file: String,
        /// Why.
        reason: String,
    },
    /// A search for a target asked more roles than are plausible.
    #[error("{target} was not found in the first {ROLES_VISITED_MAX} delegated roles")]
    TooManyRoles {
        /// The target.
        target: String,
    },
    /// The caller asked for the outcome before the refresh was over.
    #[error("the refresh is not finished")]
    Unfinished,
}

impl From<ReadError> for RefreshError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Metadata(error) => Self::Metadata(error),
            ReadError::Signature(error) => Self::Signature(error),
        }
    }
}

impl SignatureError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Threshold { .. } => "signature_threshold",
            Self::DuplicateSignature { .. } => "duplicate_key",
            Self::TooManySignatures { .. } => "too_many_signatures",
        }
    }
}

impl KeySetError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::BadKey { .. } => "bad_key",
            Self::BadThreshold { .. } => "bad_threshold",
            Self::TooManyKeys { .. } => "too_many_keys",
        }
    }
}

impl RefreshError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRoot => "no_root",
            Self::Metadata(_) => "malformed",
            Self::Signature(error) => error.code(),
            Self::Keys(error) => error.code(),
            Self::TooLarge { .. } => "too_large",
            Self::LengthMismatch { .. } => "length_mismatch",
            Self::HashMismatch { .. } => "hash_mismatch",
            Self::NoKnownHash { .. } => "no_known_hash",
            Self::Expired { .. } => "expired",
            Self::Rollback { .. } => "rollback",
            Self::Disappeared { .. } => "disappeared",
            Self::WrongVersion { .. } => "wrong_version",
            Self::NotInSnapshot { .. } => "not_in_snapshot",
            Self::TooManyRoots => "too_many_roots",
            Self::TooManyRoles { .. } => "too_many_roles",
            Self::NotFound { .. } => "not_found",
            Self::Fetch { .. } => "fetch_failed",
            Self::Unfinished => "unfinished",
        }
    }

    /// Whether the same refresh may succeed later without anybody signing anything.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(self, Self::Fetch { .. } | Self::NotFound { .. } | Self::Unfinished)
    }
}
