//! Checking a whole log, entry by entry, and saying which one is wrong.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::{
    checkpoint::Checkpoint,
    entry::{Entry, EntryError},
    tree::{Tree, leaf_hash},
};
use crate::ids::Sha256;

/// An entry as it is handed out: a line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoggedEntry {
    /// The exact text that is hashed.
    pub entry: String,
    /// Its hash. Not needed to check the log: it tells a changed entry from a missing one.
    pub leaf: Sha256,
    /// The document, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

impl LoggedEntry {
    /// An entry with its document.
    #[must_use]
    pub fn new(entry: String, document: Option<&[u8]>) -> Self {
        Self {
            leaf: leaf_hash(entry.as_bytes()),
            entry,
            document: document.map(|bytes| BASE64.encode(bytes)),
        }
    }
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// An entry is not what was hashed.
    #[error("entry {index} was changed: its hash is {found}, it was logged with {logged}")]
    Changed {
        /// Its place.
        index: u64,
        /// Its hash.
        found: Sha256,
        /// The hash beside it.
        logged: Sha256,
    },
    /// Another entry stands in its place.
    #[error("entry {index} is missing or was moved: entry {found} stands in its place")]
    Missing {
        /// The place.
        index: u64,
        /// What the entry there says of itself.
        found: u64,
    },
    /// An entry cannot be read.
    #[error("entry {index} cannot be read")]
    Unreadable {
        /// Its place.
        index: u64,
        /// Why not.
        source: EntryError,
    },
    /// A document is not the one that was logged.
    #[error("the document of entry {index} was changed or is missing: it is not the {expected} that was logged")]
    Document {
        /// The entry's place.
        index: u64,
        /// The digest in the entry.
        expected: Sha256,
    },
    /// A document that the entry knows nothing of.
    #[error("entry {0} comes with a document that it does not name")]
    StrayDocument(u64),
    /// Fewer entries than the checkpoint vouches for.
    #[error("the log ends after {found} entries, the checkpoint vouches for {size}")]
    Truncated {
        /// Entries there are.
        found: u64,
        /// Entries there must be.
        size: u64,
    },
    /// More entries than were signed for.
    #[error("the log has {found} entries, only {size} were signed for")]
    Surplus {
        /// Entries there are.
        found: u64,
        /// Entries that were signed for.
        size: u64,
    },
    /// The entries are not those of the checkpoint.
    #[error(
        "the log was forked or changed among its first {size} entries: their root is {found}, a signed checkpoint says {signed}"
    )]
    Forked {
        /// The checkpoint's size.
        size: u64,
        /// The root of the entries.
        found: Sha256,
        /// The checkpoint's root.
        signed: Sha256,
    },
}

impl LogError {
    /// A stable name for machines.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Changed { .. } | Self::Unreadable { .. } => "audit_entry_changed",
            Self::Missing { .. } => "audit_entry_missing",
            Self::Document { .. } | Self::StrayDocument(_) => "audit_document_changed",
            Self::Truncated { .. } => "audit_truncated",
            Self::Surplus { .. } => "audit_unsigned_entries",
            Self::Forked { .. } => "audit_fork",
        }
    }

    /// The place that is wrong, if it can be told.
    #[must_use]
    pub fn index(&self) -> Option<u64> {
        match self {
            Self::Changed { index, .. }
            | Self::Missing { index, .. }
            | Self::Unreadable { index, .. }
            | Self::Document { index, .. }
            | Self::StrayDocument(index) => Some(*index),
            Self::Truncated { .. } | Self::Surplus { .. } | Self::Forked { .. } => None,
        }
    }
}

/// A log that is being read from its beginning.
#[derive(Debug, Default)]
pub struct LogCheck {
    tree: Tree,
    /// Checkpoints not reached yet, the largest first.
    checkpoints: Vec<Checkpoint>,
}

impl LogCheck {
    /// A log that must agree with all of these checkpoints, whose signatures were verified before.
    #[must_use]
    pub fn new(mut checkpoints: Vec<Checkpoint>) -> Self {
        checkpoints.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.size));
        Self {
            tree: Tree::default(),
            checkpoints,
        }
    }

    /// The same for what comes after a beginning that is known by its tree.
    #[must_use]
    pub fn after(tree: Tree, checkpoints: Vec<Checkpoint>) -> Self {
        Self {
            tree,
            ..Self::new(checkpoints)
        }
    }

    /// Entries so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// The root so far.
    #[must_use]
    pub fn root(&self) -> Sha256 {
        self.tree.root()
    }

    /// Takes the next entry with its document.
    pub fn push(&mut self, logged: &LoggedEntry) -> Result<Entry, LogError> {
        let entry = self.push_entry(logged)?;
        document(&entry, logged.document.as_deref())?;
        Ok(entry)
    }

    /// Takes the next entry, whatever has become of its document.
    pub fn push_entry(&mut self, logged: &LoggedEntry) -> Result<Entry, LogError> {
        let index = self.size();
        let found = leaf_hash(logged.entry.as_bytes());
        if found != logged.leaf {
            return Err(LogError::Changed {
                index,
                found,
                logged: logged.leaf,
            });
        }
        self.agree()?;
        let entry =
            Entry::from_bytes(logged.entry.as_bytes()).map_err(|source| LogError::Unreadable { index, source })?;
        if entry.index != index {
            return Err(LogError::Missing {
                index,
                found: entry.index,
            });
        }
        self.tree.push(found);
        Ok(entry)
    }

    /// Ends the log.
    pub fn finish(mut self) -> Result<Tree, LogError> {
        self.agree()?;
        match self.checkpoints.pop() {
            None => Ok(self.tree),
            Some(checkpoint) => Err(LogError::Truncated {
                found: self.tree.size(),
                size: checkpoint.size,
            }),
        }
    }

    /// Compares with the checkpoints of exactly the present size.
    fn agree(&mut self) -> Result<(), LogError> {
        let size = self.size();
        while let Some(checkpoint) = self.checkpoints.pop_if(|checkpoint| checkpoint.size == size) {
            let found = self.tree.root();
            if found != checkpoint.root {
                return Err(LogError::Forked {
                    size,
                    found,
                    signed: checkpoint.root,
                });
            }
        }
        Ok(())
    }
}

/// The document's bytes, once they are found to be those that the entry names.
pub(super) fn document(entry: &Entry, encoded: Option<&str>) -> Result<Option<Vec<u8>>, LogError> {
    let index = entry.index;
    match (&entry.document, encoded) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(LogError::StrayDocument(index)),
        (Some(named), encoded) => {
            let bytes = encoded.and_then(|text| BASE64.decode(text.as_bytes()).ok());
            let bytes = bytes.filter(|bytes| named.names(bytes));
            bytes.map(Some).ok_or(LogError::Document {
                index,
                expected: named.sha256,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        audit::{DocumentRef, ENTRY_SCHEMA, Event},
        time::WallTime,
    };

    fn entry(index: u64, note: &str) -> LoggedEntry {
        let document = format!("document {index} {note}").into_bytes();
        let entry = Entry {
            schema: ENTRY_SCHEMA.to_owned(),
            index,
            at: WallTime::from_unix_seconds(0),
            event: Event::Brake { scope: note.to_owned() },
            document: Some(DocumentRef::of(&document)),
        };
        LoggedEntry::new(entry.to_text(), Some(&document))
    }

    fn log(size: u64) -> Vec<LoggedEntry> {
        (0..size).map(|index| entry(index, "all")).collect()
    }

    fn checkpoint(entries: &[LoggedEntry]) -> Checkpoint {
        let mut tree = Tree::default();
        entries.iter().for_each(|entry| tree.push(entry.leaf));
        Checkpoint {
            origin: "log".to_owned(),
            size: tree.size(),
            root: tree.root(),
            at: WallTime::from_unix_seconds(0),
        }
    }

    fn check(entries: &[LoggedEntry], checkpoints: Vec<Checkpoint>) -> Result<Tree, LogError> {
        let mut check = LogCheck::new(checkpoints);
        for entry in entries {
            check.push(entry)?;
        }
        check.finish()
    }

    #[test]
    fn a_whole_log_agrees_with_every_checkpoint_it_went_through() {
        let entries = log(20);
        let checkpoints = [0, 7, 20].map(|size| checkpoint(&entries[..size])).to_vec();
        assert_eq!(check(&entries, checkpoints).unwrap().size(), 20);
        // An export may be taken between two checkpoints.
        assert!(check(&entries, vec![checkpoint(&entries[..7])]).is_ok());
    }

    #[test]
    fn a_flipped_dropped_moved_or_forked_entry_is_named() {
        let entries = log(20);
        let signed = vec![checkpoint(&entries[..10]), checkpoint(&entries)];
        let verdict = |change: &dyn Fn(&mut Vec<LoggedEntry>)| {
            let mut entries = entries.clone();
            change(&mut entries);
            let error = check(&entries, signed.clone()).unwrap_err();
            (error.code(), error.index())
        };
        let flipped = verdict(&|log| log[5].entry = log[5].entry.replace("all", "a1l"));
        assert_eq!(flipped, ("audit_entry_changed", Some(5)));
        assert_eq!(verdict(&|log| drop(log.remove(5))), ("audit_entry_missing", Some(5)));
        assert_eq!(verdict(&|log| log.swap(5, 6)), ("audit_entry_missing", Some(5)));
        assert_eq!(verdict(&|log| log.truncate(15)), ("audit_truncated", None));
        let swapped = verdict(&|log| log[5].document = log[6].document.clone());
        assert_eq!(swapped, ("audit_document_changed", Some(5)));
        assert_eq!(
            verdict(&|log| log[5].document = None),
            ("audit_document_changed", Some(5))
        );
        // A forger who mends everything that he can meets the first checkpoint that he cannot sign.
        let error = check(
            &{
                let mut log = entries.clone();
                log[5] = entry(5, "none");
                log
            },
            signed.clone(),
        );
        assert!(matches!(error, Err(LogError::Forked { size: 10, .. })), "{error:?}");
    }

    proptest! {
        #[test]
        fn no_bit_of_a_log_is_free_to_change(at in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1_u8..128, part in 0..3) {
            let mut entries = log(12);
            let signed = checkpoint(&entries);
            let at = at.index(entries.len());
            let change = |text: &str| {
                let mut bytes = text.as_bytes().to_vec();
                let byte = byte.index(bytes.len());
                bytes[byte] ^= flip;
                String::from_utf8_lossy(&bytes).into_owned()
            };
            let entry = &mut entries[at];
            match part {
                0 => entry.entry = change(&entry.entry),
                1 => entry.document = entry.document.as_deref().map(change),
                _ => match change(&entry.leaf.to_string()).parse() {
                    Ok(leaf) => entry.leaf = leaf,
                    Err(_) => return Ok(()),
                },
            }
            prop_assert!(check(&entries, vec![signed]).is_err());
        }
    }
}
