//! Who may say what runs where, and the proof that they said it.
//!
//! A fleet's TUF metadata (specification 1.0.x, ed25519 only) delegates `firmware/*` to release keys and `campaigns/*` to approver
//! keys; DSSE envelopes carry everything else that is signed. The same verifier reads any other TUF repository, with the
//! keys that a [`KeyPolicy`] names. Nothing here reads a clock, a file or a socket, and the
//! randomness of a new key is the caller's.
//!
//! Invariants: a [`Verified`] value was covered by enough good signatures before it was parsed, and only this module
//! can make one; what was accepted once is never replaced by something older.

mod checks;
mod delegation;
mod dsse;
mod errors;
mod fleet;
mod json;
mod key_set;
mod keys;
mod metadata;
mod names;
mod repository;
mod search;
#[cfg(test)]
mod simulator;
mod target_file;
mod verify;
mod verifying;
#[cfg(test)]
mod workflow_tests;

use std::ops::Deref;

pub use delegation::{BadDelegation, DelegatedRole, Delegations, SuccinctRoles};
pub use dsse::{Envelope, EnvelopeError};
pub use errors::RefreshError;
pub use fleet::{PolicyError, TrustedFleet};
pub use key_set::{KeySet, KeySetError, Signature, SignatureError};
pub use keys::{Key, KeyError, KeyId, PublicKey, SecretKey};
pub use metadata::{
    Extra, Header, Kind, MetaFile, MetadataError, ReadError, Role, RoleKeys, Root, SPEC_VERSION, SignedFile, Snapshot,
    Target, Targets, Timestamp, TimestampMeta,
};
pub use names::quoted;
pub use repository::{
    Ceremony, FileStatus, OnlineExpiry, PublishError, PublishedMetadata, Repository, RepositoryError, RoleStatus,
    SignerRole, Signers, UnknownRole,
};
pub use search::{Found, Search};
pub use target_file::{TargetCheck, TargetError};
pub use verify::{CAMPAIGNS, Input, Output, RELEASES, Refresh, StoredMetadata, TrustedMetadata};
pub use verifying::{KeyPolicy, VerifyingKey};

/// A value whose signatures were found good before it was parsed. Only the verifiers of this module make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// The value, without its proof.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}
