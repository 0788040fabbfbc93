//! Who may say what runs where, and the proof that they said it.
//!
//! TUF metadata (specification 1.0.x, ed25519) delegates `firmware/*` to release keys and `campaigns/*` to approver
//! keys; DSSE envelopes carry everything else that is signed. Nothing here reads a clock, a file or a socket, and the
//! randomness of a new key is the caller's.
//!
//! Invariants: a [`Verified`] value was covered by enough good signatures before it was parsed, and only this module
//! can make one; what was accepted once is never replaced by something older.

mod dsse;
mod fleet;
mod json;
mod keys;
mod metadata;
mod repository;
mod verify;

use std::ops::Deref;

pub use dsse::{Envelope, EnvelopeError};
pub use fleet::{PolicyError, TrustedFleet};
pub use keys::{Key, KeyError, KeyId, KeySet, KeySetError, PublicKey, SecretKey, Signature, SignatureError};
pub use metadata::{
    DelegatedRole, Delegations, Extra, Header, Kind, MetaFile, MetadataError, ReadError, Role, RoleKeys, Root,
    SPEC_VERSION, SignedFile, Snapshot, Target, Targets, Timestamp, TimestampMeta,
};
pub use repository::{
    Ceremony, FileStatus, PublishError, PublishedMetadata, Repository, RepositoryError, RoleStatus, Signers,
};
pub use verify::{CAMPAIGNS, Input, Output, RELEASES, Refresh, RefreshError, StoredMetadata, TrustedMetadata};

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
