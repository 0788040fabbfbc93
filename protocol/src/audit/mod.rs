//! The audit log: what was allowed, decided and done, as an append-only Merkle tree that a stranger can check.
//!
//! Hashing is that of RFC 6962 (SHA-256), a checkpoint is a signed note as C2SP's `tlog-checkpoint` has it, signed by a
//! key that the root metadata lists for the timestamp role. Pure: entries, proofs and keys come from the caller.
//!
//! Invariants: an entry's place is part of what is hashed, so that a missing or moved one can be named; the bytes that
//! are hashed are the bytes that are stored, and nothing is parsed before its hash was found in the tree.

mod check;
mod checkpoint;
mod entry;
mod proof;
mod tree;
mod update;

pub use check::{LogCheck, LogError, LoggedEntry};
pub use checkpoint::{Checkpoint, CheckpointError, NOTE_BYTES_MAX, parse_verifier_key, verifier_key};
pub use entry::{DocumentRef, ENTRY_SCHEMA, Entry, EntryError, Event, log_origin};
pub use proof::{ProofError, verify_consistency, verify_inclusion};
pub use tree::{RangeError, TILE_LEAVES, Tiles, Tree, leaf_hash, node_hash, tile_hash};
pub use update::{ProofFile, ProofFileError, ProvenEntry, UpdateProof};
