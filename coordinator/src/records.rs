//! Named records that operators keep here and nobody signs, each with a version that no record ever had before: firmware
//! drafts and marks, baselines, drafts of campaigns.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    rows::{NEXT_VERSION, text, unreadable},
    store::{RowError, Store, StoreError},
};

/// A kind of record.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// Its name in the database.
    const KIND: &'static str;
    /// The most of them.
    const COUNT_MAX: i64;
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept<T> {
    pub(crate) id: String,
    pub(crate) version: u64,
    pub(crate) record: T,
}

/// What came of a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// It was made; the version from now on.
    Yes(u64),
    /// The record has another version, or is no more (or, for a new one, is there already).
    Meanwhile,
    /// There are as many as there may be.
    Full,
}

type Row = (String, i64, String);

impl Store {
    /// Those of a kind after `after` in the order of their ids, at most `count`.
    pub(crate) async fn records_after<T: Record>(&self, after: &str, count: usize) -> Result<Vec<Kept<T>>, StoreError> {
        let query = "SELECT id, version, record FROM records WHERE kind = $1 AND id > $2 ORDER BY id LIMIT $3";
        let rows: Vec<Row> = sqlx::query_as(query)
            .bind(T::KIND)
            .bind(after)
            .bind(i64::try_from(count).unwrap_or(i64::MAX))
            .fetch_all(self.reader())
            .await
            .map_err(StoreError::read)?;
        rows.into_iter()
            .map(|row| kept(row).map_err(unreadable("records")))
            .collect()
    }

    /// All of a kind.
    pub(crate) async fn records<T: Record>(&self) -> Result<Vec<Kept<T>>, StoreError> {
        self.records_after("", usize::try_from(T::COUNT_MAX).unwrap_or(usize::MAX))
            .await
    }

    /// One record.
    pub(crate) async fn record<T: Record>(&self, id: &str) -> Result<Option<Kept<T>>, StoreError> {
        let query = "SELECT id, version, record FROM records WHERE kind = $1 AND id = $2";
        let row = sqlx::query_as(query)
            .bind(T::KIND)
            .bind(id)
            .fetch_optional(self.reader());
        let row: Option<Row> = row.await.map_err(StoreError::read)?;
        row.map(|row| kept(row).map_err(unreadable("records"))).transpose()
    }

    /// Makes a record (`before` is `None`), or changes the one of this version.
    pub(crate) async fn put_record<T: Record>(
        &self,
        id: &str,
        before: Option<u64>,
        record: &T,
    ) -> Result<Changed, StoreError> {
        let mut transaction = self.begin().await?;
        let next = sqlx::query_as(NEXT_VERSION).fetch_one(&mut *transaction).await;
        let (version,): (i64,) = next.map_err(StoreError::written)?;
        let changed = match before {
            Some(before) => {
                sqlx::query("UPDATE records SET version = $1, record = $2 WHERE kind = $3 AND id = $4 AND version = $5")
                    .bind(version)
                    .bind(text(record))
                    .bind(T::KIND)
                    .bind(id)
                    .bind(before.cast_signed())
            }
            None => {
                let count = sqlx::query_as("SELECT COUNT(*) FROM records WHERE kind = $1").bind(T::KIND);
                let (count,): (i64,) = count.fetch_one(&mut *transaction).await.map_err(StoreError::read)?;
                if count >= T::COUNT_MAX {
                    return Ok(Changed::Full);
                }
                let query =
                    "INSERT INTO records (version, record, kind, id) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
                sqlx::query(query)
                    .bind(version)
                    .bind(text(record))
                    .bind(T::KIND)
                    .bind(id)
            }
        };
        let changed = changed.execute(&mut *transaction).await.map_err(StoreError::written)?;
        if changed.rows_affected() == 0 {
            return Ok(Changed::Meanwhile);
        }
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(Changed::Yes(version.cast_unsigned()))
    }

    /// Removes the record of this version; false if it is another one by now.
    pub(crate) async fn remove_record<T: Record>(&self, id: &str, version: u64) -> Result<bool, StoreError> {
        let query = sqlx::query("DELETE FROM records WHERE kind = $1 AND id = $2 AND version = $3")
            .bind(T::KIND)
            .bind(id)
            .bind(version.cast_signed());
        let removed = self.execute(query).await?;
        Ok(removed > 0)
    }
}

fn kept<T: Record>((id, version, record): Row) -> Result<Kept<T>, RowError> {
    Ok(Kept {
        id,
        version: version.cast_unsigned(),
        record: serde_json::from_str(&record)?,
    })
}
