//! Rows of one table, many to a statement: each statement is a round trip, to a thread or to a server.

use std::fmt::Write as _;

use sqlx::{Any, AnyConnection, AssertSqlSafe};

/// Rows to a statement, the most first: few statements, and few kinds of them, so that prepared ones are used again. SQLite
/// looks for each value's place among all of a statement, so that more rows would cost more each.
const SIZES: [usize; 4] = [64, 16, 4, 1];

/// What stands in a column.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Text(String),
    Perhaps(Option<String>),
    Integer(i64),
    Blob(Vec<u8>),
}

/// Rows to be inserted.
#[derive(Debug)]
pub(crate) struct Bulk<const COLUMNS: usize> {
    /// `INSERT INTO table`, perhaps with the names of its columns.
    into: &'static str,
    /// `ON CONFLICT` and what then, or nothing. Rows of one statement must have different keys where that is an update.
    conflict: &'static str,
    rows: Vec<[Value; COLUMNS]>,
}

impl<const COLUMNS: usize> Bulk<COLUMNS> {
    pub(crate) fn of(
        into: &'static str,
        conflict: &'static str,
        rows: impl IntoIterator<Item = [Value; COLUMNS]>,
    ) -> Self {
        Self {
            into,
            conflict,
            rows: rows.into_iter().collect(),
        }
    }

    /// Inserts them, in order.
    pub(crate) async fn insert(mut self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        let mut rows = std::mem::take(&mut self.rows).into_iter();
        for size in SIZES {
            while rows.len() >= size {
                let mut query = sqlx::query::<Any>(AssertSqlSafe(self.statement(size)));
                for value in rows.by_ref().take(size).flatten() {
                    query = match value {
                        Value::Text(text) => query.bind(text),
                        Value::Perhaps(text) => query.bind(text),
                        Value::Integer(number) => query.bind(number),
                        Value::Blob(bytes) => query.bind(bytes),
                    };
                }
                query.execute(&mut *connection).await?;
            }
        }
        Ok(())
    }

    fn statement(&self, rows: usize) -> String {
        let mut statement = format!("{} VALUES ", self.into);
        for row in 0..rows {
            for column in 0..COLUMNS {
                let before = match (row, column) {
                    (0, 0) => "(",
                    (_, 0) => "), (",
                    _ => ", ",
                };
                // Writing to a string does not fail.
                let _ = write!(statement, "{before}${}", row * COLUMNS + column + 1);
            }
        }
        statement.push_str(") ");
        statement.push_str(self.conflict);
        statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_a_place_for_every_value() {
        let bulk = Bulk::<2>::of("INSERT INTO pairs", "ON CONFLICT DO NOTHING", []);
        assert_eq!(
            bulk.statement(2),
            "INSERT INTO pairs VALUES ($1, $2), ($3, $4) ON CONFLICT DO NOTHING"
        );
    }
}
