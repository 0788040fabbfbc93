//! The lease: which of several coordinators leads. One row, and the clock of the database. Beside it a lifeline: a session of the
//! leader's that holds an advisory lock. A server notices at once when a process is gone, so others need not wait until the
//! lease has run out.
//!
//! Invariants: every term has a higher epoch than all before it; between two terms there is a moment at which the old one
//! can write no more and the new one has not begun (see [`Database::begin`]). That rests on the epoch alone, whatever lease and
//! lifeline say: they only decide when somebody tries. With SQLite there is one coordinator: it takes the lease at every
//! start, and keeps it.

use std::{collections::BTreeMap, time::Duration};

use firmesh_protocol::ids::Sha256;
use sqlx::{AnyConnection, Connection as _, Row as _};

use super::{
    StoreError,
    database::{Database, Kind},
};
use crate::authority::Authority;

/// A time of leading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Term {
    epoch: i64,
}

impl Term {
    pub(super) fn epoch(self) -> i64 {
        self.epoch
    }
}

/// A coordinator, and where others reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its name in logs.
    pub(crate) name: String,
    /// `host:port` of its face towards operators.
    pub(crate) operators: String,
    /// `host:port` of its face towards nodes.
    pub(crate) nodes: String,
}

/// Who led last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) epoch: u64,
    pub(crate) member: Member,
    /// Whether the lease still holds.
    pub(crate) leads: bool,
    /// Whether its lifeline is there.
    pub(crate) is_alive: bool,
}

/// A session of the leader's that has the advisory lock (1179472712, epoch). It ends with the process at the latest.
#[derive(Debug)]
pub(crate) struct Lifeline(AnyConnection);

impl Lifeline {
    /// Whether the server still has it.
    pub(crate) async fn holds(&mut self) -> bool {
        self.0.ping().await.is_ok()
    }
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

impl Database {
    /// Whether several coordinators may share it.
    pub(crate) fn is_shared(&self) -> bool {
        self.kind() == Kind::Postgres
    }

    /// Takes the lease, if nobody has it, or from the leader of the epoch `gone`, however long it would last.
    pub(crate) async fn take_lead(
        &self,
        member: &Member,
        lease: Duration,
        gone: Option<u64>,
    ) -> Result<Option<Term>, StoreError> {
        let take = match self.kind() {
            Kind::Sqlite => {
                "UPDATE leadership SET epoch = epoch + 1, holder = $1, operators = $2, nodes = $3, expires_ms = $4 \
                 RETURNING epoch"
            }
            Kind::Postgres => {
                "UPDATE leadership SET epoch = epoch + 1, holder = $1, operators = $2, nodes = $3, \
                 expires_ms = CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + $4 \
                 WHERE expires_ms < CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) OR epoch = $5 \
                 RETURNING epoch"
            }
        };
        let mut transaction = self.begin_unfenced().await.map_err(StoreError::written)?;
        let mut taking = sqlx::query_scalar(take)
            .bind(member.name.clone())
            .bind(member.operators.clone())
            .bind(member.nodes.clone())
            .bind(millis(lease));
        if self.is_shared() {
            // No epoch is below zero.
            taking = taking.bind(gone.map_or(-1, u64::cast_signed));
        }
        let taken = taking.fetch_optional(&mut *transaction).await;
        let taken = taken.map_err(StoreError::written)?;
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(taken.map(|epoch| Term { epoch }))
    }

    /// Takes hold of a lifeline, over a session of its own; `None` if another session has that of this epoch.
    pub(crate) async fn lifeline(&self, term: Term) -> Result<Option<Lifeline>, StoreError> {
        let mut connection = self.apart().acquire().await.map_err(StoreError::read)?.detach();
        let take = "SELECT CAST(pg_try_advisory_lock(1179472712, CAST($1 % 2147483648 AS INT)) AS INT)";
        let taken = sqlx::query_scalar(take).bind(term.epoch).fetch_one(&mut connection);
        let held: i32 = taken.await.map_err(StoreError::read)?;
        Ok((held == 1).then_some(Lifeline(connection)))
    }

    /// Has the lease last longer; false if somebody else has it by now.
    pub(crate) async fn keep_lead(&self, term: Term, lease: Duration) -> Result<bool, StoreError> {
        let keep = match self.kind() {
            Kind::Sqlite => "UPDATE leadership SET expires_ms = $2 WHERE epoch = $1",
            Kind::Postgres => {
                "UPDATE leadership SET expires_ms = CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) + $2 \
                 WHERE epoch = $1"
            }
        };
        self.set_expiry(keep, term, lease).await
    }

    /// Lets go of the lease at once, for another to take it.
    pub(crate) async fn give_up_lead(&self, term: Term) -> Result<bool, StoreError> {
        let give_up = "UPDATE leadership SET expires_ms = $2 WHERE epoch = $1";
        self.set_expiry(give_up, term, Duration::ZERO).await
    }

    async fn set_expiry(&self, update: &'static str, term: Term, lease: Duration) -> Result<bool, StoreError> {
        let mut transaction = self.begin_unfenced().await.map_err(StoreError::written)?;
        let kept = sqlx::query(update)
            .bind(term.epoch)
            .bind(millis(lease))
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(kept.rows_affected() > 0)
    }

    /// Makes sure that whoever leads after another has the same keys: the first one notes what they are.
    pub(crate) async fn check_secrets(&self, authority: &Authority) -> Result<(), StoreError> {
        if !self.is_shared() {
            return Ok(());
        }
        let own: BTreeMap<String, Sha256> = authority.digests().into();
        let text = serde_json::to_string(&own).expect("names and digests always encode");
        let mut transaction = self.begin_unfenced().await.map_err(StoreError::written)?;
        sqlx::query("INSERT INTO meta VALUES ('secrets', $1) ON CONFLICT (key) DO NOTHING")
            .bind(text)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        let noted: String = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'secrets'")
            .fetch_one(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        transaction.commit().await.map_err(StoreError::written)?;
        let noted: BTreeMap<String, Sha256> = serde_json::from_str(&noted).map_err(|error| StoreError::Row {
            table: "meta",
            source: error.into(),
        })?;
        let differs = |(name, digest): (String, Sha256)| (noted.get(&name) != Some(&digest)).then_some(name);
        let names: Vec<_> = own.into_iter().filter_map(differs).collect();
        match names.is_empty() {
            true => Ok(()),
            false => Err(StoreError::OtherSecrets { names }),
        }
    }

    /// Who leads, or led last.
    pub(crate) async fn leader(&self) -> Result<Leader, StoreError> {
        let look = match self.kind() {
            Kind::Sqlite => "SELECT epoch, holder, operators, nodes, expires_ms, 0 FROM leadership",
            Kind::Postgres => {
                "SELECT epoch, holder, operators, nodes, \
                 expires_ms - CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT), \
                 (SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 \
                 AND CAST(classid AS BIGINT) = 1179472712 AND CAST(objid AS BIGINT) = epoch % 2147483648 \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) FROM leadership"
            }
        };
        let row = sqlx::query(look).fetch_one(self.apart()).await;
        let row = row.map_err(StoreError::read)?;
        let read = || -> Result<Leader, sqlx::Error> {
            Ok(Leader {
                epoch: row.try_get::<i64, _>(0)?.cast_unsigned(),
                member: Member {
                    name: row.try_get(1)?,
                    operators: row.try_get(2)?,
                    nodes: row.try_get(3)?,
                },
                leads: row.try_get::<i64, _>(4)? >= 0,
                is_alive: row.try_get::<i64, _>(5)? > 0,
            })
        };
        read().map_err(StoreError::read)
    }
}
