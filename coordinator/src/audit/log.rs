//! The log in memory: the tree, the newest checkpoint, and what was logged last. Read from the database at every start: the
//! hashes of its tiles and its last entries before anything is served, the rest afterwards ([`recheck`]).

use firmesh_protocol::{
    audit::{
        Checkpoint, DocumentRef, ENTRY_SCHEMA, Entry, LogCheck, LogError, LoggedEntry, TILE_LEAVES, Tiles, Tree,
        leaf_hash, tile_hash,
    },
    ids::Sha256,
    time::WallTime,
};
use futures_util::TryStreamExt as _;
use sqlx::{AnyConnection, AnyPool, Row as _};
use tracing::error;

use super::{
    LogKey,
    drafts::{Document, Draft, Drafted, Drafts},
};
use crate::store::{Bulk, Value};

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

/// Whole tiles at the end whose entries are read at a start: some ten milliseconds' worth.
const TILES_READ: u64 = 16;

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    pub(super) tree: Tree,
    /// So many of its tiles have their hashes stored.
    tiles_stored: u64,
    /// The entries before this one were not read at the start.
    pub(super) read_from: u64,
    pub(super) note: String,
    pub(super) tiles: Tiles,
    pub(crate) drafts: Drafts,
}

/// Entries that are written and not yet committed.
#[derive(Debug)]
pub(crate) struct Appended {
    tree: Tree,
    tiles_stored: u64,
    note: String,
}

impl Log {
    /// Whether it has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.tree.size() == 0
    }

    /// Reads the stored log and compares it with the stored checkpoint: its last entries, and what is before them by the hashes
    /// of its tiles, whose root the checkpoint signs. Where these do not go with it, every entry is read, to say which one.
    pub(crate) async fn load(pool: &AnyPool, key: &LogKey, drafts: Drafts) -> Result<Self, LogProblem> {
        let row = sqlx::query("SELECT note FROM audit_checkpoint")
            .fetch_optional(pool)
            .await?;
        let note: Option<String> = row.map(|row| row.get(0));
        let checkpoint = note.as_deref().map(Checkpoint::read_stored).transpose();
        let checkpoint = checkpoint.map_err(LogProblem::Checkpoint)?;
        let beginning = beginning(pool, checkpoint.as_ref()).await?;
        let (mut read_from, mut tiles_stored) = (beginning.size(), beginning.whole_tiles().len() as u64);
        let checked = match read_from {
            0 => None,
            _ => Self::check(pool, beginning, checkpoint.clone()).await?.ok(),
        };
        let tree = match checked {
            Some(tree) => tree,
            None => {
                (read_from, tiles_stored) = (0, 0);
                let checked = Self::check(pool, Tree::default(), checkpoint.clone()).await?;
                checked.map_err(LogProblem::Changed)?
            }
        };
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
            tiles_stored,
            read_from,
            note,
            tiles: Tiles::new(),
            drafts,
        })
    }

    /// Reads the entries after a beginning.
    async fn check(
        pool: &AnyPool,
        beginning: Tree,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Result<Tree, LogError>, LogProblem> {
        let from = beginning.size().cast_signed();
        let mut check = LogCheck::after(beginning, checkpoint.into_iter().collect());
        let query = "SELECT entry, leaf FROM audit_entries WHERE idx >= $1 ORDER BY idx";
        // Nothing has an index below zero, unless somebody has put it there.
        let mut rows = sqlx::query(query)
            .bind(if from == 0 { i64::MIN } else { from })
            .fetch(pool);
        while let Some(row) = rows.try_next().await? {
            let leaf: Option<[u8; 32]> = row.get::<Vec<u8>, _>(1).try_into().ok();
            let logged = LoggedEntry {
                entry: row.get(0),
                leaf: leaf.unwrap_or_default().into(),
                document: None,
            };
            if let Err(error) = check.push_entry(&logged) {
                return Ok(Err(error));
            }
        }
        Ok(check.finish())
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
        let (mut entries, mut documents) = (Vec::new(), Vec::new());
        for Draft { event, document } in drafted {
            let document = match document {
                Document::None => None,
                Document::Bytes(bytes) => {
                    let named = DocumentRef::of(&bytes);
                    documents.push([Value::Text(named.sha256.to_string()), Value::Blob(bytes)]);
                    Some(named)
                }
                Document::Plan(sha256) => Some(plan(connection, sha256).await?),
            };
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
            entries.push([
                Value::Integer(entry.index.cast_signed()),
                Value::Text(text),
                Value::Blob(leaf.as_bytes().to_vec()),
                Value::Text(event.name().to_owned()),
                Value::Perhaps(event.campaign().map(ToString::to_string)),
                Value::Perhaps(event.device().map(ToString::to_string)),
                Value::Perhaps(event.node().map(ToString::to_string)),
                Value::Perhaps(entry.document.map(|document| document.sha256.to_string())),
            ]);
            tree.push(leaf);
        }
        Bulk::of("INSERT INTO audit_documents", "ON CONFLICT DO NOTHING", documents)
            .insert(connection)
            .await?;
        Bulk::of("INSERT INTO audit_entries", "", entries)
            .insert(connection)
            .await?;
        let mut tiles_stored = self.tiles_stored;
        for hash in tree
            .whole_tiles()
            .iter()
            .skip(usize::try_from(tiles_stored).unwrap_or(usize::MAX))
        {
            let query = "INSERT INTO audit_tiles VALUES ($1, $2) ON CONFLICT (tile) DO UPDATE SET hash = excluded.hash";
            sqlx::query(query)
                .bind(tiles_stored.cast_signed())
                .bind(hash.as_bytes().to_vec())
                .execute(&mut *connection)
                .await?;
            tiles_stored += 1;
        }
        let note = key.sign(&tree, at);
        sqlx::query("INSERT INTO audit_checkpoint VALUES (1, $1) ON CONFLICT (one) DO UPDATE SET note = excluded.note")
            .bind(note.clone())
            .execute(&mut *connection)
            .await?;
        Ok(Appended {
            tree,
            tiles_stored,
            note,
        })
    }

    /// What was appended is durable.
    pub(crate) fn committed(&mut self, appended: Option<Appended>, drafted: Drafted) {
        if let Some(appended) = appended {
            (self.tree, self.tiles_stored, self.note) = (appended.tree, appended.tiles_stored, appended.note);
        }
        self.drafts.committed(drafted);
    }

    /// Keeps a tile that was read.
    pub(super) fn keep(&mut self, tile: u64, leaves: Vec<Sha256>) {
        self.tiles.insert(tile, leaves);
        while self.tiles.len() > TILES_KEPT {
            self.tiles.pop_first();
        }
    }
}

/// What comes before the entries that are read at a start, by the stored hashes of its tiles. Nothing, if there are few.
async fn beginning(pool: &AnyPool, checkpoint: Option<&Checkpoint>) -> Result<Tree, LogProblem> {
    let whole = checkpoint.map_or(0, |checkpoint| checkpoint.size / TILE_LEAVES);
    let (unread, mut tree) = (whole.saturating_sub(TILES_READ), Tree::default());
    let mut rows = sqlx::query("SELECT tile, hash FROM audit_tiles WHERE tile < $1 ORDER BY tile")
        .bind(unread.cast_signed())
        .fetch(pool);
    while let Some(row) = rows.try_next().await? {
        let hash: Result<[u8; 32], _> = row.get::<Vec<u8>, _>(1).try_into();
        let is_next = row.get::<i64, _>(0).cast_unsigned() == tree.whole_tiles().len() as u64;
        match hash {
            Ok(hash) if is_next => tree.push_tile(hash.into()),
            _ => return Ok(Tree::default()),
        }
    }
    Ok(tree)
}

/// Reads the entries of whole tiles, which were not read at the start, and compares them with the hashes that the start stood
/// on. A few at a time: others read as well.
pub(super) async fn recheck(pool: &AnyPool, first: u64, hashes: &[Sha256]) -> Result<(), LogProblem> {
    let query = "SELECT idx, entry, leaf FROM audit_entries WHERE idx >= $1 AND idx < $2 ORDER BY idx";
    for (tile, hash) in (first..).zip(hashes) {
        let from = tile * TILE_LEAVES;
        let rows = sqlx::query(query)
            .bind(from.cast_signed())
            .bind((from + TILE_LEAVES).cast_signed())
            .fetch_all(pool)
            .await?;
        let mut leaves = Vec::new();
        for (index, row) in (from..).zip(&rows) {
            let (found, leaf) = (
                row.get::<i64, _>(0).cast_unsigned(),
                leaf_hash(row.get::<&str, _>(1).as_bytes()),
            );
            if found != index {
                return Err(LogProblem::Changed(LogError::Missing { index, found }));
            }
            let logged: Option<[u8; 32]> = row.get::<Vec<u8>, _>(2).try_into().ok();
            let logged = Sha256::from(logged.unwrap_or_default());
            if logged != leaf {
                return Err(LogProblem::Changed(LogError::Changed {
                    index,
                    found: leaf,
                    logged,
                }));
            }
            leaves.push(leaf);
        }
        if (leaves.len() as u64) < TILE_LEAVES {
            let index = from + leaves.len() as u64;
            return Err(LogProblem::Changed(LogError::Missing {
                index,
                found: index + 1,
            }));
        }
        let found = tile_hash(&leaves);
        if found != *hash {
            return Err(LogProblem::Changed(LogError::Forked {
                size: from + TILE_LEAVES,
                found,
                signed: *hash,
            }));
        }
    }
    Ok(())
}

/// The stored plan of this digest, as the document of an entry.
async fn plan(connection: &mut AnyConnection, sha256: Sha256) -> Result<DocumentRef, LogProblem> {
    let row = sqlx::query("SELECT length(bytes) FROM plans WHERE sha256 = $1")
        .bind(sha256.to_string())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        error!(plan = %sha256, "a campaign was published without its plan");
        return Err(LogProblem::NoDocument(sha256));
    };
    Ok(DocumentRef {
        sha256,
        length: row.get::<i64, _>(0).cast_unsigned(),
    })
}
