//! The log in memory: the tree, the newest checkpoint, and what was logged last. Read from the database at every start.

use firmesh_protocol::{
    audit::{Checkpoint, DocumentRef, ENTRY_SCHEMA, Entry, LogCheck, LogError, LoggedEntry, Tiles, Tree, leaf_hash},
    ids::Sha256,
    time::WallTime,
};
use futures_util::TryStreamExt as _;
use sqlx::{AnyConnection, AnyPool, Row as _};
use tracing::error;

use super::{
    LogKey,
    drafts::{Document, Draft, Drafts},
};

/// Why the stored log is not gone on with.
#[derive(Debug, thiserror::Error)]
pub enum LogProblem {
    /// The database.
    #[error("the audit log cannot be read or written")]
    Database(#[from] sqlx::Error),
    /// Somebody changed it.
    #[error(
        "the audit log in the database is not the one this coordinator signed: find out who changed it, and restore it from an export"
    )]
    Changed(#[source] LogError),
    /// There is nothing to compare it with.
    #[error("the audit log has {0} entries and no checkpoint: somebody removed it, restore the database from a backup")]
    NoCheckpoint(u64),
    /// The checkpoint cannot be read.
    #[error("the stored checkpoint of the audit log cannot be read: restore the database from a backup")]
    Checkpoint(#[source] firmesh_protocol::audit::CheckpointError),
    /// A document that an entry is about.
    #[error("the document {0} of the audit log is not stored: restore the database from a backup")]
    NoDocument(Sha256),
    /// Asked for more than there is.
    #[error(transparent)]
    Beyond(#[from] firmesh_protocol::audit::RangeError),
}

/// Whole tiles whose leaf hashes are kept: nodes ask about the recent past.
const TILES_KEPT: usize = 64;

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    pub(super) tree: Tree,
    pub(super) note: String,
    pub(super) tiles: Tiles,
    pub(crate) drafts: Drafts,
}

/// Entries that are written and not yet committed.
#[derive(Debug)]
pub(crate) struct Appended {
    tree: Tree,
    note: String,
}

impl Log {
    /// Whether it has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.tree.size() == 0
    }

    /// Reads the stored log, entry by entry, and compares it with the stored checkpoint.
    pub(crate) async fn load(pool: &AnyPool, key: &LogKey, drafts: Drafts) -> Result<Self, LogProblem> {
        let row = sqlx::query("SELECT note FROM audit_checkpoint")
            .fetch_optional(pool)
            .await?;
        let note: Option<String> = row.map(|row| row.get(0));
        let checkpoint = note.as_deref().map(Checkpoint::read_stored).transpose();
        let checkpoint = checkpoint.map_err(LogProblem::Checkpoint)?;
        let mut check = LogCheck::new(checkpoint.iter().cloned().collect());
        {
            let mut rows = sqlx::query("SELECT entry, leaf FROM audit_entries ORDER BY idx").fetch(pool);
            while let Some(row) = rows.try_next().await? {
                let leaf: Option<[u8; 32]> = row.get::<Vec<u8>, _>(1).try_into().ok();
                let logged = LoggedEntry {
                    entry: row.get(0),
                    leaf: leaf.unwrap_or_default().into(),
                    document: None,
                };
                check.push_entry(&logged).map_err(LogProblem::Changed)?;
            }
        }
        let tree = check.finish().map_err(LogProblem::Changed)?;
        let note = match (note, checkpoint) {
            (Some(note), Some(checkpoint)) if checkpoint.size == tree.size() && key.has_signed(&note) => note,
            // The key was replaced: the log goes on under the new one.
            (Some(_), Some(checkpoint)) if checkpoint.size == tree.size() => key.sign(&tree, checkpoint.at),
            (Some(_), Some(checkpoint)) => {
                return Err(LogProblem::Changed(LogError::Surplus {
                    found: tree.size(),
                    size: checkpoint.size,
                }));
            }
            _ if tree.size() > 0 => return Err(LogProblem::NoCheckpoint(tree.size())),
            _ => key.sign(&tree, WallTime::from_unix_seconds(0)),
        };
        Ok(Self {
            tree,
            note,
            tiles: Tiles::new(),
            drafts,
        })
    }

    /// Writes entries and the checkpoint of the new size. Nothing here changes before [`Self::committed`].
    pub(crate) async fn append(
        &self,
        connection: &mut AnyConnection,
        key: &LogKey,
        drafted: Vec<Draft>,
        at: WallTime,
    ) -> Result<Appended, LogProblem> {
        let mut tree = self.tree.clone();
        for Draft { event, document } in drafted {
            let document = put_document(connection, document).await?;
            let entry = Entry {
                schema: ENTRY_SCHEMA.to_owned(),
                index: tree.size(),
                at,
                event,
                document,
            };
            let text = entry.to_text();
            let leaf = leaf_hash(text.as_bytes());
            let event = &entry.event;
            sqlx::query("INSERT INTO audit_entries VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
                .bind(entry.index.cast_signed())
                .bind(text)
                .bind(leaf.as_bytes().to_vec())
                .bind(event.name())
                .bind(event.campaign().map(ToString::to_string))
                .bind(event.device().map(ToString::to_string))
                .bind(event.node().map(ToString::to_string))
                .bind(entry.document.map(|document| document.sha256.to_string()))
                .execute(&mut *connection)
                .await?;
            tree.push(leaf);
        }
        let note = key.sign(&tree, at);
        sqlx::query("INSERT INTO audit_checkpoint VALUES (1, $1) ON CONFLICT (one) DO UPDATE SET note = excluded.note")
            .bind(note.clone())
            .execute(&mut *connection)
            .await?;
        Ok(Appended { tree, note })
    }

    /// What was appended is durable.
    pub(crate) fn committed(&mut self, appended: Option<Appended>, drafts: Drafts) {
        if let Some(Appended { tree, note }) = appended {
            (self.tree, self.note) = (tree, note);
        }
        self.drafts = drafts;
    }

    /// Keeps a tile that was read.
    pub(super) fn keep(&mut self, tile: u64, leaves: Vec<Sha256>) {
        self.tiles.insert(tile, leaves);
        while self.tiles.len() > TILES_KEPT {
            self.tiles.pop_first();
        }
    }
}

async fn put_document(connection: &mut AnyConnection, document: Document) -> Result<Option<DocumentRef>, LogProblem> {
    match document {
        Document::None => Ok(None),
        Document::Bytes(bytes) => {
            let named = DocumentRef::of(&bytes);
            sqlx::query("INSERT INTO audit_documents VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(named.sha256.to_string())
                .bind(bytes)
                .execute(connection)
                .await?;
            Ok(Some(named))
        }
        Document::Plan(sha256) => {
            let row = sqlx::query("SELECT length(bytes) FROM plans WHERE sha256 = $1")
                .bind(sha256.to_string())
                .fetch_optional(connection)
                .await?;
            let Some(row) = row else {
                error!(plan = %sha256, "a campaign was published without its plan");
                return Err(LogProblem::NoDocument(sha256));
            };
            Ok(Some(DocumentRef {
                sha256,
                length: row.get::<i64, _>(0).cast_unsigned(),
            }))
        }
    }
}
