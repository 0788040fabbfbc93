//! Work that takes longer than a request, as it is stored: what was begun, how far it is, what came of it.
//!
//! Invariants: what was running when a coordinator ended is called interrupted by the next one; the newest
//! [`OPERATIONS_MAX`] are kept.

use firmesh_protocol::{
    api::{OperationState, OperationView, SyncResult},
    time::WallTime,
};

use crate::{
    rows::{text, unreadable},
    store::{Store, StoreError},
};

/// The most operations that are kept.
const OPERATIONS_MAX: i64 = 1_000;

impl Store {
    /// Begins an operation, and drops the oldest if there are too many.
    pub(crate) async fn begin_operation(
        &self,
        kind: &str,
        subject: &str,
        now: WallTime,
    ) -> Result<OperationView, StoreError> {
        let operation = OperationView {
            id: format!("{:016x}{:016x}", now.unix_seconds().max(0), fastrand::u64(..)),
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            state: OperationState::Running,
            started: now,
            ended: None,
            progress: String::new(),
            result: None,
            problem: None,
        };
        self.put_operation(&operation).await?;
        let drop = "DELETE FROM operations WHERE id NOT IN (SELECT id FROM operations ORDER BY id DESC LIMIT $1)";
        self.execute(sqlx::query(drop).bind(OPERATIONS_MAX)).await?;
        Ok(operation)
    }

    /// Writes down how far it is.
    pub(crate) async fn put_operation(&self, operation: &OperationView) -> Result<(), StoreError> {
        let query = "INSERT INTO operations (id, record) VALUES ($1, $2) \
             ON CONFLICT (id) DO UPDATE SET record = excluded.record";
        let query = sqlx::query(query).bind(&operation.id).bind(text(operation));
        self.execute(query).await.map(drop)
    }

    /// Writes down what came of it.
    pub(crate) async fn end_operation(
        &self,
        mut operation: OperationView,
        outcome: Result<SyncResult, String>,
        now: WallTime,
    ) -> Result<(), StoreError> {
        operation.ended = Some(now);
        match outcome {
            Ok(result) => {
                operation.state = OperationState::Succeeded;
                operation.result = Some(result);
            }
            Err(problem) => {
                operation.state = OperationState::Failed;
                operation.problem = Some(problem);
            }
        }
        self.put_operation(&operation).await
    }

    /// One operation.
    pub(crate) async fn operation(&self, id: &str) -> Result<Option<OperationView>, StoreError> {
        let row = sqlx::query_as("SELECT record FROM operations WHERE id = $1").bind(id);
        let row: Option<(String,)> = row.fetch_optional(self.reader()).await.map_err(StoreError::read)?;
        let parse =
            |(text,): (String,)| serde_json::from_str(&text).map_err(|error| unreadable("operations")(error.into()));
        row.map(parse).transpose()
    }

    /// The operations after `after` in the order of their begins, at most `count`.
    pub(crate) async fn operations_after(&self, after: &str, count: usize) -> Result<Vec<OperationView>, StoreError> {
        let query = "SELECT record FROM operations WHERE id > $1 ORDER BY id LIMIT $2";
        let rows = sqlx::query_as(query)
            .bind(after)
            .bind(i64::try_from(count).unwrap_or(i64::MAX));
        let rows: Vec<(String,)> = rows.fetch_all(self.reader()).await.map_err(StoreError::read)?;
        let parse =
            |(text,): (String,)| serde_json::from_str(&text).map_err(|error| unreadable("operations")(error.into()));
        rows.into_iter().map(parse).collect()
    }

    /// At a start: what ran has been interrupted.
    pub(crate) async fn interrupt_operations(&self, now: WallTime) -> Result<(), StoreError> {
        let all = self
            .operations_after("", usize::try_from(OPERATIONS_MAX).unwrap_or(usize::MAX))
            .await?;
        for operation in all
            .into_iter()
            .filter(|operation| operation.state == OperationState::Running)
        {
            self.put_operation(&OperationView {
                state: OperationState::Interrupted,
                ended: Some(now),
                ..operation
            })
            .await?;
        }
        Ok(())
    }
}
