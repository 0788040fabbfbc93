//! The store: everything that outlives the process, written in transactions that are on disk when they return.
//!
//! Invariants: what one [`Store::commit`] is given becomes durable together or not at all, and so do the entries of the
//! audit log that follow from it. A store is good for one term of leading: after that it reads, and every write of it fails
//! with [`StoreError::Deposed`]. Which database there is, only [`database`] and its neighbours know.

mod backup;
mod bulk;
mod copy;
mod database;
mod lease;
mod pending;
mod place;
mod queries;
mod reads;
mod records;
mod schema;

use std::{path::PathBuf, sync::Arc};

use firmesh_protocol::{audit::Event, time::WallTime};
use sqlx::{Any, AnyPool, any::AnyRow};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard, watch};

use self::pending::Pending;
pub use self::place::DatabaseConfig;
pub(crate) use self::{
    backup::BackupError,
    bulk::{Bulk, Value},
    copy::CopyError,
    database::{Database, Transaction},
    lease::{Leader, Lifeline, Member, Term},
    place::{Place, Server},
    records::{Stored, StoredDevice, StoredNode, StoredPermit, Ticket, Write},
};
use crate::{
    audit::{Document, Draft, Drafts, Log, LogKey, LogProblem},
    authority::Authority,
    notify,
};

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("the database {} cannot be opened: check that this user may write there and that the disk is not full", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
    /// The server cannot be reached.
    #[error(
        "the database {server} cannot be reached: check that it runs, and the address, user and password in [database]"
    )]
    Unreachable {
        /// The server, without the password.
        server: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// The server's password is not there.
    #[error("the setting database.password")]
    Password(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It belongs to another version.
    #[error(
        "the database {place} cannot be brought to this version: check that it is neither full nor read-only, nor of a newer version"
    )]
    Migrate {
        /// The file or server.
        place: String,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// It cannot be read or written.
    #[error("the database cannot be {operation}: check that the disk is neither full nor read-only")]
    Access {
        /// `read` or `written`.
        operation: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// Another coordinator leads by now.
    #[error("another coordinator leads: ask again, and it answers")]
    Deposed,
    /// Not the keys of the others.
    #[error(
        "this coordinator has not the {} that the other coordinators on this database have: copy the folder keys and the file \
         operator.token from the state folder of one of them (see the README, \"Several coordinators\")", names.join(", ")
    )]
    OtherSecrets {
        /// What differs.
        names: Vec<String>,
    },
    /// It holds something that this version cannot read.
    #[error(
        "the database holds a row of {table} that cannot be read: restore a backup, or use the version that wrote it"
    )]
    Row {
        /// The table.
        table: &'static str,
        /// Why not.
        source: RowError,
    },
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] LogProblem),
}

impl StoreError {
    /// Whether it may be gone by itself: where several coordinators share a database, the next one tries, or the same again.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Access { .. } | Self::Deposed => true,
            Self::Audit(LogProblem::Database(_)) => true,
            Self::Migrate { source, .. } => matches!(source, sqlx::migrate::MigrateError::Execute(_)),
            _ => false,
        }
    }

    pub(crate) fn read(source: sqlx::Error) -> Self {
        let operation = "read";
        Self::Access { operation, source }
    }

    pub(crate) fn written(source: sqlx::Error) -> Self {
        let operation = "written";
        Self::Access { operation, source }
    }
}

pub(crate) type RowError = Box<dyn std::error::Error + Send + Sync>;

/// A statement with its values.
pub(crate) type Query<'q> = sqlx::query::Query<'q, Any, sqlx::any::AnyArguments>;

/// What is stored, during one term.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    database: Database,
    term: Term,
    key: LogKey,
    /// `None` after a commit of which nobody knows whether it came about: then it is read again.
    log: Arc<Mutex<Option<Log>>>,
    /// Changes with every commit that tells people something.
    notices: Arc<watch::Sender<()>>,
}

impl Store {
    /// Reads the audit log, beginning it in a new database.
    pub(crate) async fn open(
        database: Database,
        term: Term,
        authority: Arc<Authority>,
        now: WallTime,
    ) -> Result<Self, StoreError> {
        let store = Self {
            database,
            term,
            key: LogKey::new(authority),
            log: Arc::default(),
            notices: Arc::default(),
        };
        store.begin_log(now).await?;
        Ok(store)
    }

    /// The first entries: whose log it is, and what was stored before there was one.
    async fn begin_log(&self, now: WallTime) -> Result<(), StoreError> {
        if !self.log().await?.is_empty() {
            return Ok(());
        }
        let mut drafted = vec![Draft {
            event: Event::Log {
                origin: self.key.origin().to_owned(),
            },
            document: Document::Bytes(self.key.fleet_ca().to_vec()),
        }];
        drafted.extend(Drafts::of_the_past(&self.load().await?));
        self.write(Vec::new(), now, drafted).await
    }

    /// The log, read first if need be.
    pub(crate) async fn log(&self) -> Result<MappedMutexGuard<'_, Log>, StoreError> {
        let log = self.held_log().await?;
        Ok(MutexGuard::map(log, |log| log.as_mut().expect("it was just read")))
    }

    async fn held_log(&self) -> Result<MutexGuard<'_, Option<Log>>, StoreError> {
        let mut log = self.log.lock().await;
        if log.is_none() {
            let drafts = Drafts::of(&self.load_logged().await?);
            *log = Some(Log::load(self.reader(), &self.key, drafts).await?);
        }
        Ok(log)
    }

    /// The epoch of this term: every term has a higher one than all before on this database.
    pub(crate) fn epoch(&self) -> u64 {
        self.term.epoch().cast_unsigned()
    }

    /// Makes all changes durable together, and what they add to the audit log at `now`.
    pub(crate) async fn commit(&self, writes: Vec<Write>, now: WallTime) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        self.write(writes, now, Vec::new()).await
    }

    /// Logs what no write of a commit says, durably: an image that is about to be given out, a change in a table of its own
    /// that is about to be made.
    pub(crate) async fn log_event(&self, event: Event, now: WallTime) -> Result<(), StoreError> {
        let document = Document::None;
        self.write(Vec::new(), now, vec![Draft { event, document }]).await
    }

    /// Comes to its end even if whoever asked goes away in the midst of it: what is durable and what is in memory stay one.
    async fn write(&self, writes: Vec<Write>, now: WallTime, first: Vec<Draft>) -> Result<(), StoreError> {
        let store = self.clone();
        let written = tokio::spawn(async move { store.write_whole(writes, now, first).await }).await;
        match written {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process is about to end.
                Err(_) => Err(StoreError::written(sqlx::Error::PoolClosed)),
            },
        }
    }

    async fn write_whole(&self, writes: Vec<Write>, now: WallTime, first: Vec<Draft>) -> Result<(), StoreError> {
        let failed = StoreError::written;
        // Held throughout, so that entries are appended in the order in which they become durable. It is put back only when
        // that is certain: after anything else what is durable is read again.
        let mut held = self.held_log().await?;
        let mut log = held.take().expect("it was just read");
        let mut drafts = first;
        let (entries, drafted) = log.drafts.of_writes(&writes);
        let of_entries = notify::of_entries(|id| log.drafts.state(id), &entries);
        drafts.extend(entries);
        let mut transaction = self.begin().await?;
        let (mut notices, mut pending) = (Vec::new(), Pending::default());
        for write in writes {
            if matches!(write, Write::Restart(_)) || notify::asks_before(&write) {
                pending.insert(&mut transaction).await.map_err(failed)?;
            }
            let before = notify::attempt_before(&mut transaction, &write).await.map_err(failed)?;
            notices.extend(notify::of_write(&write, before.as_ref()));
            for query in pending.take(write).into_iter().flat_map(queries::of_write) {
                query.execute(&mut *transaction).await.map_err(failed)?;
            }
        }
        pending.insert(&mut transaction).await.map_err(failed)?;
        // What happened to devices comes before what the campaign makes of it.
        notices.extend(of_entries);
        notify::insert(&mut transaction, &notices, now).await.map_err(failed)?;
        let appended = match drafts.is_empty() {
            true => None,
            false => Some(log.append(&mut transaction, &self.key, drafts, now).await?),
        };
        // Even if it fails it may have come about.
        transaction.commit().await.map_err(failed)?;
        log.committed(appended, drafted);
        *held = Some(log);
        drop(held);
        if !notices.is_empty() {
            self.notices.send_replace(());
        }
        Ok(())
    }

    /// Changes whenever there is something new to tell people.
    pub(crate) fn notices(&self) -> watch::Receiver<()> {
        self.notices.subscribe()
    }

    /// The fleet's name, that of its audit log.
    pub(crate) fn fleet(&self) -> String {
        format!("urn:{}", self.key.origin().replace('/', ":"))
    }

    /// For queries that change nothing.
    pub(crate) fn reader(&self) -> &AnyPool {
        self.database.reader()
    }

    /// Begins to write: the only way to do so, and only for who leads.
    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        self.database.begin(self.term).await
    }

    /// One change by itself; the number of rows that it changed.
    pub(crate) async fn execute(&self, query: Query<'_>) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let changed = query.execute(&mut *transaction).await.map_err(StoreError::written)?;
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(changed.rows_affected())
    }

    /// All rows of a query without values.
    pub(crate) async fn rows<R, T>(
        &self,
        table: &'static str,
        query: &'static str,
        read: impl Fn(R) -> Result<T, RowError>,
    ) -> Result<Vec<T>, StoreError>
    where
        R: for<'r> sqlx::FromRow<'r, AnyRow> + Send + Unpin,
    {
        let rows: Vec<R> = sqlx::query_as(query)
            .fetch_all(self.reader())
            .await
            .map_err(StoreError::read)?;
        rows.into_iter()
            .map(|row| read(row).map_err(|source| StoreError::Row { table, source }))
            .collect()
    }

    /// Has what was overwritten gone from the database's own log; false if it is there still, or a server decides by itself.
    pub(crate) async fn cut_past(&self) -> Result<bool, StoreError> {
        self.database.cut_past().await
    }

    /// Whether it is a server, which several coordinators share.
    pub(crate) fn is_on_a_server(&self) -> bool {
        self.database.is_shared()
    }

    /// Closes the database, folding its log into it.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.database.close().await;
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
