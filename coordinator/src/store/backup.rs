//! A copy of a SQLite file while its coordinator runs, and what has to be done to a database that was restored.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use firmesh_coordinator_core::CampaignRecord;
use sqlx::Row as _;

use super::{Database, StoreError};
use crate::rows::{text, unreadable};

/// Epochs and permits that a restored database leaves out: more than anybody gave out since the backup.
const LEFT_OUT: u64 = 1_000_000;

impl Database {
    /// Writes a consistent copy of the file to `path`, where there is none, and looks through it. The coordinator that uses it goes on.
    pub(crate) async fn back_up(&self, path: &Path) -> Result<(), BackupError> {
        if self.is_shared() {
            return Err(BackupError::Server);
        }
        let failed = |source| BackupError::Write(path.display().to_string(), source);
        let name = path
            .to_str()
            .ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        // It is made here, so that nobody else reads along.
        let file = File::create_new(path).map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        let mut connection = self.apart().acquire().await.map_err(StoreError::read)?;
        let copied = sqlx::query("VACUUM INTO $1").bind(name.to_owned());
        copied.execute(&mut *connection).await.map_err(StoreError::read)?;
        file.sync_all().map_err(failed)?;
        let copy = Self::open(&super::Place::File(path.to_owned())).await?;
        let checked = sqlx::query("PRAGMA integrity_check").fetch_one(copy.reader()).await;
        let said: String = checked.map_err(StoreError::read)?.get(0);
        copy.close().await;
        match said.as_str() {
            "ok" => Ok(()),
            _ => Err(BackupError::Damaged(said)),
        }
    }

    /// Makes sure that nothing that was given out after the backup is given out again: no epoch, and no permit of a campaign
    /// that goes on. Answers with the epoch that the next term is above of.
    pub(crate) async fn leave_out(&self) -> Result<u64, BackupError> {
        let leader = self.leader().await?;
        if self.is_shared() && leader.leads {
            return Err(BackupError::Led(leader.member.name));
        }
        let mut transaction = self.begin_unfenced().await.map_err(StoreError::written)?;
        let query = "UPDATE leadership SET epoch = epoch + $1, expires_ms = 0 RETURNING epoch";
        let epoch: i64 = sqlx::query_scalar(query)
            .bind(LEFT_OUT.cast_signed())
            .fetch_one(&mut *transaction)
            .await
            .map_err(StoreError::written)?;
        let records: Vec<String> = sqlx::query_scalar("SELECT record FROM campaigns ORDER BY campaign")
            .fetch_all(&mut *transaction)
            .await
            .map_err(StoreError::read)?;
        for record in records {
            let mut record: CampaignRecord =
                serde_json::from_str(&record).map_err(|error| unreadable("campaigns")(error.into()))?;
            // Also of those that are over: people may send their devices back.
            record.last_permit += LEFT_OUT;
            sqlx::query("UPDATE campaigns SET record = $2 WHERE campaign = $1")
                .bind(record.id.to_string())
                .bind(text(&record))
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::written)?;
        }
        transaction.commit().await.map_err(StoreError::written)?;
        Ok(epoch.cast_unsigned())
    }
}

/// Why there is no backup, or a restored database was not made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It has tools of its own.
    #[error("the database is a PostgreSQL server: back it up with pg_basebackup and archive_command (see the README)")]
    Server,
    /// Somebody leads.
    #[error("{0} leads: stop all coordinators first")]
    Led(String),
    /// The file.
    #[error("{0} cannot be written: choose a file that does not exist yet, where this user may write")]
    Write(String, #[source] io::Error),
    /// What was written is not a whole database.
    #[error("the copy is damaged: {0}")]
    Damaged(String),
}
