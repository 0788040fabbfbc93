//! What modules with tables of their own share.

use crate::store::{RowError, StoreError};

/// A row of this table cannot be read.
pub(crate) fn unreadable(table: &'static str) -> impl Fn(RowError) -> StoreError {
    move |source| StoreError::Row { table, source }
}

/// The next version of whatever has one. Asked for first of all in a transaction, so that it waits for its turn to write
/// rather than failing later.
pub(crate) const NEXT_VERSION: &str = "INSERT INTO meta VALUES ('group_version', '1') ON CONFLICT (key) \
     DO UPDATE SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT) RETURNING CAST(value AS BIGINT)";

/// A record as it is stored.
pub(crate) fn text(record: &impl serde::Serialize) -> String {
    serde_json::to_string(record).expect("stored records have only names, numbers, text and lists")
}
