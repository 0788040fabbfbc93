//! What people do offline: make keys, draw up metadata, sign it, and hand it to a coordinator.
//!
//! The operator CLI and the lab's demo are two callers of the same functions. Nothing here speaks to the network.
//!
//! Invariants: every file is written whole or not at all; a secret is written with mode 0600, never over another file
//! unasked, and never read if others could have read it; what is signed is what was shown.

mod campaign;
mod campaign_file;
mod doctor;
mod files;
mod folder;
mod keys;
mod provisioning_file;
mod release;

pub use campaign::{CampaignError, adopt_plan, bind_rehearsal, draft_campaign, load_draft, load_planned, save_draft};
pub use campaign_file::{CampaignFile, DeadlinesFile, GateFile, HealthFile, RetriesFile, RetryRuleFile, Seconds};
pub use doctor::{Examination, Finding, Level};
pub use files::{ReadFileError, WriteFileError, read_bounded, write_file, write_secret};
pub use folder::{
    BundleError, Change, ChangeKind, FolderError, Imported, LockError, Outcome, SignedNow, TrustBundle, TrustFolder,
};
pub use keys::{
    EncryptionError, KeyFileError, KeyRef, KeyRefError, Prompt, SecretError, Secrets, Signer, SigningKey, TokenError,
    TokenKey, TokenUri, UriError, generate_key, is_encrypted_file, load_public_key, load_secret, load_secret_key,
    unlock_secret_key, write_encrypted_key, write_key, write_public_key,
};
pub use release::{Compatibility, NewRelease, ReleaseError, measure, stage_release};

#[cfg(test)]
mod tests;
