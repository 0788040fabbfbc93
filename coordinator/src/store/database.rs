//! Connections to the one database there is: a SQLite file, or a PostgreSQL server that several coordinators share.
//!
//! This module and its neighbours `schema` and `lease` are the only ones that know which of the two it is; every other query
//! is written once, in words that both know: `$1`, `ON CONFLICT`, no `rowid`, integers read as `i64`. Invariants: who does not
//! lead writes nothing: every transaction that writes begins with a look at the lease, which nobody else can take before
//! the transaction is over; on PostgreSQL, whatever is sent outside of such a transaction can only read.

use std::{fmt::Write as _, path::Path, str::FromStr as _, time::Duration};

use sqlx::{
    Any, AnyConnection, AnyPool, Connection as _, Executor as _, Row as _,
    any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers},
};

use super::{Place, StoreError, lease::Term, schema};

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

impl Kind {
    fn of(place: &Place) -> Self {
        match place {
            Place::File(_) => Self::Sqlite,
            Place::Server(_) => Self::Postgres,
        }
    }
}

fn unusable(place: &Place, source: sqlx::Error) -> StoreError {
    match place {
        Place::File(path) => StoreError::Open {
            path: path.clone(),
            source,
        },
        Place::Server(server) => StoreError::Unreachable {
            server: server.to_string(),
            source,
        },
    }
}

/// A transaction of whoever leads. Dropping it takes everything back.
pub(crate) type Transaction = sqlx::Transaction<'static, Any>;

/// Connections that read a SQLite file.
const FILE_CONNECTIONS_MAX: u32 = 4;

/// A connection that is not there by then is an error.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(10);

/// Acknowledged is durable: WAL alone may lose the last commits in a power cut. The log is folded into the file every 32 MiB
/// rather than every 4: under load that would be every other commit, and each time pages are written twice.
/// What is deleted is overwritten: the key of an erased device must not lie in a page that is free, nor in the one that a row was moved
/// out of years ago.
const FILE_SESSION: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 8192; \
     PRAGMA secure_delete = ON";

/// SQLite has one writer, which keeps 32 MiB of pages: it alone changes them.
const FILE_WRITER_SESSION: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 8192; \
     PRAGMA secure_delete = ON; PRAGMA cache_size = -32768";

/// Reads only, but for [`Database::begin`]. A coordinator that stands still in the midst of a transaction keeps the lease from
/// being taken, until the server ends its session.
const SERVER_SESSION: &str = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; \
     SET idle_in_transaction_session_timeout = 2000; \
     SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// The database. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pool: AnyPool,
    /// For whoever leads: with a file one connection, with a server those of the pool.
    writer: AnyPool,
    /// For the lease alone, which must not wait behind everything else.
    apart: AnyPool,
    kind: Kind,
}

impl Database {
    /// Opens it, and brings it to this version. Of several coordinators that do so at once, one does it and the others wait.
    pub(crate) async fn connect(place: &Place) -> Result<Self, StoreError> {
        install_default_drivers();
        let kind = Kind::of(place);
        let failed = |source| unusable(place, source);
        let options = options(place)?;
        // A machine that has vanished says nothing, for minutes.
        let connecting = tokio::time::timeout(ACQUIRE_WITHIN, AnyConnection::connect_with(&options)).await;
        let connected = connecting.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let mut connection = connected.map_err(failed)?;
        if kind == Kind::Sqlite {
            connection.execute(FILE_SESSION).await.map_err(failed)?;
        }
        let migrated = schema::migrator(kind).run_direct(None, &mut connection, false).await;
        migrated.map_err(|source| StoreError::Migrate {
            place: place.to_string(),
            source,
        })?;
        connection.close().await.map_err(failed)?;
        Self::open(place).await
    }

    /// Opens it as it is: whoever works with it may be of another version.
    pub(crate) async fn open(place: &Place) -> Result<Self, StoreError> {
        install_default_drivers();
        let (kind, options) = (Kind::of(place), options(place)?);
        let failed = |source| unusable(place, source);
        let (min, max, session) = match place {
            Place::File(_) => (0, FILE_CONNECTIONS_MAX, FILE_SESSION),
            Place::Server(server) => (server.connections_min, server.connections_max, SERVER_SESSION),
        };
        let pool = |min, max, session| {
            AnyPoolOptions::new()
                .min_connections(min)
                .max_connections(max)
                .acquire_timeout(ACQUIRE_WITHIN)
                .after_connect(move |connection, _| {
                    Box::pin(async move { connection.execute(session).await.map(drop) })
                })
        };
        let apart = pool(0, 1, session)
            .connect_with(options.clone())
            .await
            .map_err(failed)?;
        let shared = pool(min, max, session).connect_with(options.clone());
        let shared = shared.await.map_err(failed)?;
        let writer = match kind {
            Kind::Sqlite => pool(0, 1, FILE_WRITER_SESSION)
                .connect_with(options)
                .await
                .map_err(failed)?,
            Kind::Postgres => shared.clone(),
        };
        Ok(Self {
            pool: shared,
            writer,
            apart,
            kind,
        })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// For queries that change nothing.
    pub(super) fn reader(&self) -> &AnyPool {
        &self.pool
    }

    /// Where the lease is looked at.
    pub(super) fn apart(&self) -> &AnyPool {
        &self.apart
    }

    /// Begins to write, whoever leads: for the lease itself, and what has to be settled before anybody leads.
    pub(super) async fn begin_unfenced(&self) -> Result<Transaction, sqlx::Error> {
        self.apart.begin_with(self.begin_writing()).await
    }

    fn begin_writing(&self) -> &'static str {
        match self.kind {
            // It reads before it writes: begun as a reader it would fail where another connection has written in between.
            Kind::Sqlite => "BEGIN IMMEDIATE",
            Kind::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        }
    }

    /// Begins to write as the one who leads, or fails.
    pub(super) async fn begin(&self, term: Term) -> Result<Transaction, StoreError> {
        let is_ours = match self.kind {
            Kind::Sqlite => "SELECT epoch FROM leadership WHERE epoch = $1",
            // Who takes the lease changes the epoch, which is a key, and waits until this lock is gone; who only keeps it
            // does not wait.
            Kind::Postgres => "SELECT epoch FROM leadership WHERE epoch = $1 FOR KEY SHARE",
        };
        let begun = self.writer.begin_with(self.begin_writing()).await;
        let mut transaction = begun.map_err(StoreError::written)?;
        let found = sqlx::query(is_ours)
            .bind(term.epoch())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        found.ok_or(StoreError::Deposed)?;
        Ok(transaction)
    }

    /// Cuts the log in which a file keeps what was changed lately, so that what was overwritten is gone from there as well. False if
    /// somebody reads meanwhile: then the next one does it. A server has its own ways.
    pub(super) async fn cut_past(&self) -> Result<bool, StoreError> {
        if self.kind != Kind::Sqlite {
            return Ok(true);
        }
        let cut = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&self.pool)
            .await;
        let busy: i64 = cut
            .map_err(StoreError::written)?
            .try_get(0)
            .map_err(StoreError::written)?;
        Ok(busy == 0)
    }

    /// Closes all connections; SQLite folds its log into the file.
    pub(crate) async fn close(&self) {
        self.apart.close().await;
        self.writer.close().await;
        self.pool.close().await;
    }
}

pub(super) fn options(place: &Place) -> Result<AnyConnectOptions, StoreError> {
    match place {
        Place::File(path) => {
            let failed = |source| StoreError::Open {
                path: path.clone(),
                source,
            };
            AnyConnectOptions::from_str(&file_url(path)).map_err(failed)
        }
        Place::Server(server) => {
            let failed = |source| StoreError::Unreachable {
                server: server.to_string(),
                source,
            };
            let mut options = AnyConnectOptions::from_str(&server.url).map_err(failed)?;
            if let Some(password) = &server.password {
                let password = password.read().map_err(|error| StoreError::Password(Box::new(error)))?;
                // Fails for a URL without a host, which then names no password either.
                let _ = options.database_url.set_password(Some(&password));
            }
            Ok(options)
        }
    }
}

/// A path in a URL, encoded so that nothing in it means anything: neither `?` nor `..`.
fn file_url(path: &Path) -> String {
    let mut url = "sqlite:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => url.push(char::from(*byte)),
            // Writing to a text does not fail.
            other => drop(write!(url, "%{other:02X}")),
        }
    }
    url + "?mode=rwc"
}
