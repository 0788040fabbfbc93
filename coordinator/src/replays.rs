//! Answers that are kept for those who ask again with the same `Idempotency-Key`: in the database for a day.
//!
//! Invariants: at most [`ANSWERS_MAX`] answers of at most [`ANSWER_BYTES_MAX`] bytes, [`ANSWERS_BYTES_MAX`] in all; one is
//! never dropped before its day is over, rather is no other taken.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use firmesh_protocol::{ids::Sha256, time::WallTime};

use crate::store::{Store, StoreError};

/// How long an answer is kept.
const KEPT_FOR: Duration = Duration::from_secs(86_400);

/// The most answers.
const ANSWERS_MAX: i64 = 10_000;

/// The longest answer that is kept.
pub(crate) const ANSWER_BYTES_MAX: usize = 256 << 10;

/// The most bytes of all answers.
const ANSWERS_BYTES_MAX: i64 = 256 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// What identifies the request that it answered.
    pub(crate) request: Sha256,
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    /// `None` if it was too long, or a secret.
    pub(crate) body: Option<Vec<u8>>,
}

/// The requests that are being carried out in this process, by scope and key. A crash ends them all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running(Arc<Mutex<BTreeSet<(String, String)>>>);

/// A request that is being carried out, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    running: Running,
    of: (String, String),
}

impl Running {
    /// `None` if it is being carried out already.
    pub(crate) fn begin(&self, scope: &str, key: &str) -> Option<Turn> {
        let of = (scope.to_owned(), key.to_owned());
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(of.clone()).then(|| Turn {
            running: self.clone(),
            of,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = self.running.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.of);
    }
}

impl Store {
    /// The answer that is kept under a key.
    pub(crate) async fn kept_answer(&self, scope: &str, key: &str, now: WallTime) -> Result<Option<Kept>, StoreError> {
        let query = "SELECT request_sha256, status, content_type, body FROM idempotency \
                     WHERE scope = $1 AND key = $2 AND expires > $3";
        let query = sqlx::query_as(query).bind(scope).bind(key).bind(now.unix_seconds());
        type Row = (String, i64, Option<String>, Option<Vec<u8>>);
        let row: Option<Row> = query.fetch_optional(self.reader()).await.map_err(StoreError::read)?;
        let Some((request, status, content_type, body)) = row else {
            return Ok(None);
        };
        let request = request
            .parse()
            .map_err(|error: firmesh_protocol::ids::DigestError| StoreError::Row {
                table: "idempotency",
                source: error.into(),
            })?;
        let status = u16::try_from(status).map_err(|error| StoreError::Row {
            table: "idempotency",
            source: error.into(),
        })?;
        Ok(Some(Kept {
            request,
            status,
            content_type,
            body,
        }))
    }

    /// Whether another answer can be kept, after those whose day is over are gone.
    pub(crate) async fn has_room_for_answer(&self, now: WallTime) -> Result<bool, StoreError> {
        let expired = sqlx::query("DELETE FROM idempotency WHERE expires <= $1").bind(now.unix_seconds());
        self.execute(expired).await?;
        let query = sqlx::query_as("SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM idempotency");
        let (count, bytes): (i64, i64) = query.fetch_one(self.reader()).await.map_err(StoreError::read)?;
        Ok(count < ANSWERS_MAX && bytes < ANSWERS_BYTES_MAX)
    }

    /// Keeps an answer for a day.
    pub(crate) async fn keep_answer(
        &self,
        scope: &str,
        key: &str,
        kept: &Kept,
        now: WallTime,
    ) -> Result<(), StoreError> {
        let query = "INSERT INTO idempotency VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (scope, key) DO UPDATE SET \
                     request_sha256 = excluded.request_sha256, status = excluded.status, \
                     content_type = excluded.content_type, body = excluded.body, expires = excluded.expires";
        let query = sqlx::query(query)
            .bind(scope)
            .bind(key)
            .bind(kept.request.to_string())
            .bind(i64::from(kept.status))
            .bind(kept.content_type.as_deref())
            .bind(kept.body.as_deref())
            .bind((now + KEPT_FOR).unix_seconds());
        self.execute(query).await.map(drop)
    }
}
