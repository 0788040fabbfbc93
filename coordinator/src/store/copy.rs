//! A whole database from a SQLite file to a server: every table, in one transaction, and read back before it counts.
//!
//! Invariants: nothing is written to a server on which anything is stored, or that somebody leads; what was read and what was
//! written have the same digest, table by table; the next term there has a higher epoch than all before here.

use firmesh_protocol::ids::Sha256;
use futures_util::TryStreamExt as _;
use sha2::Digest as _;
use sqlx::{Any, AnyPool, AssertSqlSafe, Row as _, any::AnyRow};

use super::{Database, StoreError, Transaction};

/// A table that was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) table: String,
    pub(crate) rows: u64,
    /// Over all values in the order of the key.
    pub(crate) sha256: Sha256,
}

/// Why a database was not copied. Nothing is changed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// One of the two.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target is in use.
    #[error("the server has {rows} rows in {table}: import into a new database")]
    NotEmpty { table: String, rows: i64 },
    /// What was read back is not what was read.
    #[error("table {table} is not the same there as here: {expected:?} was read, {found:?} is there")]
    Differs {
        table: String,
        expected: (u64, Sha256),
        found: (u64, Sha256),
    },
}

/// A column, by the type that the schema gives it.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Blob,
}

struct Table {
    name: String,
    columns: Vec<(String, Kind)>,
    key: Vec<String>,
}

/// A row's digest is taken from these.
enum Value {
    Text(Option<String>),
    Integer(Option<i64>),
    Blob(Option<Vec<u8>>),
}

impl Database {
    /// Copies everything from a file that nobody uses.
    pub(crate) async fn fill_from(&self, source: &Self) -> Result<Vec<Copied>, CopyError> {
        let tables = tables(source.reader()).await?;
        let mut transaction = self.begin_unfenced().await.map_err(StoreError::written)?;
        // Nobody takes the lead before this is over.
        sqlx::query("UPDATE leadership SET holder = holder")
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        for table in &tables {
            refuse_rows(&mut transaction, &table.name).await?;
        }
        let mut copied = Vec::new();
        for table in tables.iter().filter(|table| table.name != "leadership") {
            copied.push(copy(source.reader(), &mut transaction, table).await?);
        }
        sqlx::query("UPDATE leadership SET epoch = $1, expires_ms = 0")
            .bind(source.leader().await?.epoch.cast_signed())
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        for (table, last) in counters(source.reader()).await? {
            // Numbers that were given once are given never again.
            sqlx::query("SELECT setval(pg_get_serial_sequence($1, 'number'), $2)")
                .bind(table)
                .bind(last.max(1))
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::written)?;
        }
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(copied)
    }
}

async fn refuse_rows(transaction: &mut Transaction, table: &str) -> Result<(), CopyError> {
    let query = match table {
        // It has one row from the beginning, which is changed by whoever leads.
        "leadership" => "SELECT COUNT(*) FROM leadership WHERE epoch > 0".to_owned(),
        _ => format!("SELECT COUNT(*) FROM {table}"),
    };
    let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(query));
    let rows = query.fetch_one(&mut **transaction).await.map_err(StoreError::read)?;
    match rows {
        0 => Ok(()),
        rows => Err(CopyError::NotEmpty {
            table: table.to_owned(),
            rows,
        }),
    }
}

async fn copy(source: &AnyPool, transaction: &mut Transaction, table: &Table) -> Result<Copied, CopyError> {
    let names: Vec<_> = table.columns.iter().map(|(name, _)| name.as_str()).collect();
    let places: Vec<_> = (1..=names.len()).map(|place| format!("${place}")).collect();
    let insert = format!(
        "INSERT INTO {} ({}) VALUES ({})",
        table.name,
        names.join(", "),
        places.join(", ")
    );
    let select = format!(
        "SELECT {} FROM {} ORDER BY {}",
        names.join(", "),
        table.name,
        table.key.join(", ")
    );
    let (mut digest, mut rows) = (sha2::Sha256::new(), 0);
    let mut read = sqlx::query(AssertSqlSafe(select.clone())).fetch(source);
    while let Some(row) = read.try_next().await.map_err(StoreError::read)? {
        let mut query = sqlx::query::<Any>(AssertSqlSafe(insert.clone()));
        for value in values(table, &row)? {
            value.feed(&mut digest);
            query = match value {
                Value::Text(text) => query.bind(text),
                Value::Integer(number) => query.bind(number),
                Value::Blob(bytes) => query.bind(bytes),
            };
        }
        query.execute(&mut **transaction).await.map_err(StoreError::written)?;
        rows += 1;
    }
    drop(read);
    let expected = (rows, Sha256::from(<[u8; 32]>::from(digest.finalize())));
    let (mut digest, mut rows) = (sha2::Sha256::new(), 0);
    {
        let mut read = sqlx::query(AssertSqlSafe(select)).fetch(&mut **transaction);
        while let Some(row) = read.try_next().await.map_err(StoreError::read)? {
            values(table, &row)?.iter().for_each(|value| value.feed(&mut digest));
            rows += 1;
        }
    }
    let found = (rows, Sha256::from(<[u8; 32]>::from(digest.finalize())));
    match found == expected {
        true => Ok(Copied {
            table: table.name.clone(),
            rows,
            sha256: found.1,
        }),
        false => Err(CopyError::Differs {
            table: table.name.clone(),
            expected,
            found,
        }),
    }
}

fn values(table: &Table, row: &AnyRow) -> Result<Vec<Value>, StoreError> {
    let read = |(place, (_, kind)): (usize, &(String, Kind))| {
        Ok(match kind {
            Kind::Text => Value::Text(row.try_get(place)?),
            Kind::Integer => Value::Integer(row.try_get(place)?),
            Kind::Blob => Value::Blob(row.try_get(place)?),
        })
    };
    let values: Result<Vec<_>, sqlx::Error> = table.columns.iter().enumerate().map(read).collect();
    values.map_err(StoreError::read)
}

impl Value {
    fn feed(&self, digest: &mut sha2::Sha256) {
        let (tag, bytes): (u8, &[u8]) = match self {
            Self::Text(None) | Self::Integer(None) | Self::Blob(None) => (0, &[]),
            Self::Text(Some(text)) => (1, text.as_bytes()),
            Self::Integer(Some(number)) => (2, &number.to_be_bytes()),
            Self::Blob(Some(bytes)) => (3, bytes),
        };
        digest.update([tag]);
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    }
}

async fn tables(source: &AnyPool) -> Result<Vec<Table>, StoreError> {
    let query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' \
                 AND name <> '_sqlx_migrations' ORDER BY name";
    let names: Vec<String> = sqlx::query_scalar(query)
        .fetch_all(source)
        .await
        .map_err(StoreError::read)?;
    let mut tables = Vec::new();
    for name in names {
        let query = "SELECT name, type, pk FROM pragma_table_info($1) ORDER BY cid";
        let query = sqlx::query_as::<_, (String, String, i64)>(query).bind(name.clone());
        let rows = query.fetch_all(source).await.map_err(StoreError::read)?;
        let mut key: Vec<_> = rows.iter().filter(|(_, _, place)| *place > 0).collect();
        key.sort_by_key(|(_, _, place)| *place);
        let column = |(name, kind, _): &(String, String, i64)| {
            let kind = match kind.as_str() {
                "INTEGER" => Kind::Integer,
                "BLOB" => Kind::Blob,
                _ => Kind::Text,
            };
            (name.clone(), kind)
        };
        tables.push(Table {
            key: key.into_iter().map(|(name, ..)| name.clone()).collect(),
            columns: rows.iter().map(column).collect(),
            name,
        });
    }
    Ok(tables)
}

/// The last numbers of the tables that count by themselves.
async fn counters(source: &AnyPool) -> Result<Vec<(String, i64)>, StoreError> {
    let query = sqlx::query_as("SELECT CAST(name AS TEXT), CAST(seq AS INTEGER) FROM sqlite_sequence ORDER BY name");
    query.fetch_all(source).await.map_err(StoreError::read)
}
