//! The outbox: notices as they became durable, and how far every destination has been told.
//!
//! Invariants: a notice is inserted in the transaction of the change it tells of ([`crate::store::Store`] calls [`insert`]
//! there); numbers grow and are never given twice; what some destination has yet to be told is not dropped.

use std::time::Duration;

use firmesh_coordinator_core::AttemptRecord;
use firmesh_protocol::{report::AttemptState, time::WallTime};
use sqlx::{AnyConnection, Row as _, any::AnyRow};

use super::{
    course::Progress,
    notice::{Message, Notice},
};
use crate::store::{Bulk, RowError, Store, StoreError, Value, Write};

/// Notices are kept so long for replays.
const KEPT: Duration = Duration::from_secs(90 * 86_400);

/// Random bytes of an id.
const ID_BYTES: usize = 16;

/// Why a notice has no name.
#[derive(Debug, thiserror::Error)]
#[error("no randomness for a message's id: {0}")]
pub(crate) struct NoRandomness(getrandom::Error);

/// A name that no other message has.
pub(crate) fn new_id() -> Result<String, NoRandomness> {
    let mut bytes = [0; ID_BYTES];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(format!("msg_{}", hex::encode(bytes)))
}

/// Whether what a write tells depends on what was stored before.
pub(crate) fn asks_before(write: &Write) -> bool {
    matches!(write, Write::Attempt(_, record) if record.state == AttemptState::Quarantined)
}

/// How an attempt stood before a write that may tell of it.
pub(crate) async fn attempt_before(
    connection: &mut AnyConnection,
    write: &Write,
) -> Result<Option<AttemptRecord>, sqlx::Error> {
    let Write::Attempt(campaign, record) = write else {
        return Ok(None);
    };
    if !asks_before(write) {
        return Ok(None);
    }
    let row = sqlx::query("SELECT record FROM attempts WHERE campaign = $1 AND device = $2")
        .bind(campaign.to_string())
        .bind(record.device.to_string())
        .fetch_optional(connection)
        .await?;
    let text: Option<String> = row.map(|row| row.get(0));
    text.map(|text| serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into())))
        .transpose()
}

/// Inserts notices into the transaction that makes true what they tell.
pub(crate) async fn insert(
    connection: &mut AnyConnection,
    notices: &[Notice],
    now: WallTime,
) -> Result<(), sqlx::Error> {
    let row = |notice: &Notice| {
        let id = new_id().map_err(|error| sqlx::Error::Encode(error.into()))?;
        let text = serde_json::to_string(notice).map_err(|error| sqlx::Error::Encode(error.into()))?;
        Ok([Value::Integer(now.unix_seconds()), Value::Text(id), Value::Text(text)])
    };
    let rows = notices.iter().map(row).collect::<Result<Vec<_>, sqlx::Error>>()?;
    Bulk::of("INSERT INTO notices (at, id, notice)", "", rows)
        .insert(connection)
        .await
}

impl Store {
    /// The next notices after `cursor`, at most so many.
    pub(crate) async fn notices_after(&self, cursor: u64, count: u32) -> Result<Vec<Message>, StoreError> {
        let query = "SELECT number, at, id, notice FROM notices WHERE number > $1 ORDER BY number LIMIT $2";
        let rows = sqlx::query(query)
            .bind(i64::try_from(cursor).unwrap_or(i64::MAX))
            .bind(i64::from(count))
            .fetch_all(self.reader())
            .await
            .map_err(StoreError::read)?;
        let source = self.fleet();
        let message = |row: &AnyRow| {
            Ok::<_, RowError>(Message {
                number: row.get::<i64, _>(0).cast_unsigned(),
                at: WallTime::from_unix_seconds(row.get(1)),
                id: row.get(2),
                source: source.clone(),
                notice: serde_json::from_str(row.get(3))?,
            })
        };
        let unreadable = |source| StoreError::Row {
            table: "notices",
            source,
        };
        rows.iter().map(|row| message(row).map_err(unreadable)).collect()
    }

    /// The number of the newest notice; 0 if there was none yet.
    pub(crate) async fn newest_notice(&self) -> Result<u64, StoreError> {
        let query = "SELECT COALESCE(MAX(number), 0) FROM notices";
        let row = sqlx::query(query)
            .fetch_one(self.reader())
            .await
            .map_err(StoreError::read)?;
        Ok(row.get::<i64, _>(0).cast_unsigned())
    }

    /// The first notice that is kept from a number on, or from a moment on.
    pub(crate) async fn first_notice(&self, number: u64, at: WallTime) -> Result<Option<u64>, StoreError> {
        let row = sqlx::query("SELECT MIN(number) FROM notices WHERE number >= $1 AND at >= $2")
            .bind(i64::try_from(number).unwrap_or(i64::MAX))
            .bind(at.unix_seconds())
            .fetch_one(self.reader())
            .await
            .map_err(StoreError::read)?;
        Ok(row.get::<Option<i64>, _>(0).map(i64::cast_unsigned))
    }

    /// How far a destination has come; one that is new begins with what happens from now on.
    pub(crate) async fn progress(&self, destination: &str) -> Result<Progress, StoreError> {
        let row = sqlx::query("SELECT record FROM notified WHERE destination = $1")
            .bind(destination)
            .fetch_optional(self.reader())
            .await
            .map_err(StoreError::read)?;
        if let Some(row) = row {
            return serde_json::from_str(row.get(0)).map_err(|error| StoreError::Row {
                table: "notified",
                source: error.into(),
            });
        }
        let progress = Progress {
            cursor: self.newest_notice().await?,
            ..Progress::default()
        };
        self.put_progress(destination, &progress).await?;
        Ok(progress)
    }

    /// Remembers how far a destination has come.
    pub(crate) async fn put_progress(&self, destination: &str, progress: &Progress) -> Result<(), StoreError> {
        let text = serde_json::to_string(progress).map_err(|error| StoreError::Row {
            table: "notified",
            source: error.into(),
        })?;
        let query = "INSERT INTO notified VALUES ($1, $2) \
                     ON CONFLICT (destination) DO UPDATE SET record = excluded.record";
        let query = sqlx::query(query).bind(destination).bind(text);
        self.execute(query).await.map(drop)
    }

    /// Drops what is old and everybody was told; the newest stays.
    pub(crate) async fn drop_old_notices(&self, told: u64, now: WallTime) -> Result<u64, StoreError> {
        let before = now.unix_seconds().saturating_sub(KEPT.as_secs().cast_signed());
        let query = "DELETE FROM notices WHERE number <= $1 AND at < $2 AND number < (SELECT MAX(number) FROM notices)";
        let query = sqlx::query(query)
            .bind(i64::try_from(told).unwrap_or(i64::MAX))
            .bind(before);
        self.execute(query).await
    }
}
