//! Changing who may sign, keeping what is signed from expiring, and signatures made elsewhere.
//!
//! Invariants: groups that must be separate people stay separate after every change; a role is never left with fewer
//! keys than its threshold; what a changed role signs is unsigned again.

use std::{fmt, str::FromStr};

use super::{
    super::{
        keys::{KeyId, PublicKey},
        metadata::Kind,
        verify::{CAMPAIGNS, RELEASES},
    },
    Repository, RepositoryError, Signers, check_reachable, set_root_signers,
};
use crate::time::WallTime;

/// A role whose keys people change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SignerRole {
    /// Says who holds every other top-level role.
    Root,
    /// Delegates to releases and campaigns.
    Targets,
    /// Vouches for releases.
    Releases,
    /// Approves campaigns.
    Campaigns,
    /// Says which versions belong together. Held online.
    Snapshot,
    /// Says what is newest. Held online.
    Timestamp,
}

impl SignerRole {
    /// Every role, from the top.
    pub const ALL: [Self; 6] = [
        Self::Root,
        Self::Targets,
        Self::Releases,
        Self::Campaigns,
        Self::Snapshot,
        Self::Timestamp,
    ];

    /// The role's name in metadata.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => Kind::Root.name(),
            Self::Targets => Kind::Targets.name(),
            Self::Releases => RELEASES,
            Self::Campaigns => CAMPAIGNS,
            Self::Snapshot => Kind::Snapshot.name(),
            Self::Timestamp => Kind::Timestamp.name(),
        }
    }

    /// Whether a machine holds the keys, so that nothing it says can install anything.
    #[must_use]
    pub fn is_online(self) -> bool {
        matches!(self, Self::Snapshot | Self::Timestamp)
    }

    /// Whether no key may stand in both roles.
    #[must_use]
    pub fn must_differ_from(self, other: Self) -> bool {
        let pair = [self, other];
        self.is_online() != other.is_online() || (pair.contains(&Self::Releases) && pair.contains(&Self::Campaigns))
    }

    fn kind(self) -> Option<Kind> {
        match self {
            Self::Root => Some(Kind::Root),
            Self::Targets => Some(Kind::Targets),
            Self::Snapshot => Some(Kind::Snapshot),
            Self::Timestamp => Some(Kind::Timestamp),
            Self::Releases | Self::Campaigns => None,
        }
    }
}

impl fmt::Display for SignerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: root, targets, releases, campaigns, snapshot or timestamp")]
pub struct UnknownRole(String);

impl FromStr for SignerRole {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let known = Self::ALL.into_iter().find(|role| role.name() == text);
        known.ok_or_else(|| UnknownRole(text.chars().take(40).collect()))
    }
}

impl Repository {
    /// Who signs for a role, as the newest files say, in force or not.
    pub fn signers(&self, role: SignerRole) -> Result<Signers, RepositoryError> {
        let set = match role.kind() {
            Some(kind) => Some(self.root().key_set(kind)?),
            None => self.targets().delegated_keys(role.name())?,
        };
        Ok(set.map_or(
            Signers {
                keys: Vec::new(),
                threshold: 0,
            },
            |set| Signers {
                keys: set.keys().copied().collect(),
                threshold: set.threshold() as u64,
            },
        ))
    }

    /// Replaces the keys of one role. The file that names them, and what they sign, become unsigned new versions that
    /// expire at `expires`; a new root needs the old root keys too.
    pub fn set_signers(
        &mut self,
        role: SignerRole,
        signers: &Signers,
        expires: WallTime,
    ) -> Result<(), RepositoryError> {
        check_reachable(role.name(), signers)?;
        let mut changed = self.clone();
        match role {
            SignerRole::Releases => changed.set_release_signers(signers, expires)?,
            SignerRole::Campaigns => changed.set_campaign_signers(signers, expires)?,
            SignerRole::Root | SignerRole::Targets | SignerRole::Snapshot | SignerRole::Timestamp => {
                let kind = role.kind().expect("a top-level role has a kind");
                let complete = changed.is_complete("targets.json")?;
                changed.edit_root(expires, |root| set_root_signers(root, &[kind], signers))?;
                if role == SignerRole::Targets {
                    changed.targets = changed.targets.changed(complete, expires, |_| ());
                }
            }
        }
        changed.check_groups()?;
        *self = changed;
        Ok(())
    }

    /// Makes a new, unsigned version of a file with nothing but another expiry. A file that waits for signatures keeps
    /// its version.
    pub fn renew(&mut self, file: &str, expires: WallTime) -> Result<(), RepositoryError> {
        match file {
            "targets.json" => {
                let complete = self.is_complete(file)?;
                self.targets = self.targets.changed(complete, expires, |_| ());
                Ok(())
            }
            "releases.json" => self.edit_releases(expires, |_| ()),
            "campaigns.json" => self.edit_campaigns(expires, |_| ()),
            root if root.ends_with("root.json") => self.edit_root(expires, |_| ()),
            _ => Err(RepositoryError::NoFile { file: file.to_owned() }),
        }
    }

    /// Exactly the bytes that the signatures of a file cover.
    pub fn signed_bytes(&self, file: &str) -> Result<&[u8], RepositoryError> {
        Ok(self.file(file)?.signed_bytes())
    }

    /// Takes a signature that was made elsewhere, if the file's role lists the key and the signature is good.
    pub fn add_signature(&mut self, file: &str, key: &PublicKey, signature: &[u8; 64]) -> Result<(), RepositoryError> {
        let sets = self.key_sets(file)?;
        let ids: Vec<KeyId> = sets.iter().filter_map(|set| set.id_of(key)).cloned().collect();
        if ids.is_empty() {
            let allowed: Vec<_> = sets.iter().map(|set| format!("a key of {}", set.role())).collect();
            return Err(RepositoryError::NotAuthorised {
                key: *key,
                file: file.to_owned(),
                allowed: allowed.join(" or "),
            });
        }
        let draft = self.file_mut(file)?;
        if !key.verifies(draft.signed_bytes(), signature) {
            return Err(RepositoryError::BadSignature {
                key: *key,
                file: file.to_owned(),
            });
        }
        ids.iter().for_each(|id| draft.attach(id, signature));
        Ok(())
    }

    /// Takes every good signature of another copy of a file over the same bytes; answers how many were new.
    pub fn merge_signatures(&mut self, file: &str, other: &Self) -> Result<usize, RepositoryError> {
        let theirs = other.file(file)?;
        if theirs.signed_bytes() != self.signed_bytes(file)? {
            return Ok(0);
        }
        let (sets, mut new) = (self.key_sets(file)?, 0);
        for set in &sets {
            let had = set
                .signers(self.signed_bytes(file)?, self.file(file)?.signatures())?
                .len();
            let good: Vec<_> = set
                .signers(theirs.signed_bytes(), theirs.signatures())?
                .into_iter()
                .cloned()
                .collect();
            let draft = self.file_mut(file)?;
            draft.adopt(theirs, &good);
            new += set.signers(draft.signed_bytes(), draft.signatures())?.len() - had;
        }
        Ok(new)
    }

    /// That groups which must be separate people are.
    fn check_groups(&self) -> Result<(), RepositoryError> {
        let groups = SignerRole::ALL
            .into_iter()
            .map(|role| Ok((role, self.signers(role)?)))
            .collect::<Result<Vec<_>, RepositoryError>>()?;
        for (at, (first, a)) in groups.iter().enumerate() {
            for (second, b) in &groups[at + 1..] {
                let shared = a.keys.iter().find(|key| b.keys.contains(key));
                if let Some(&key) = shared.filter(|_| first.must_differ_from(*second)) {
                    let (first, second) = (first.name(), second.name());
                    return Err(RepositoryError::SharedKey { key, first, second });
                }
            }
        }
        Ok(())
    }
}
