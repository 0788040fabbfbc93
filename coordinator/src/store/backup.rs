//! A copy of a SQLite file while its coordinator runs, and what has to be done to a database that was restored.
//!
//! What opens identities may go into a file of its own: then a copy from before a device was erased says of it no more than the
//! database, as long as of those files only the newest is kept.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use firmesh_coordinator_core::CampaignRecord;
use sqlx::{Connection as _, Row as _};

use super::{Database, StoreError};
use crate::rows::{text, unreadable};

/// Epochs and permits that a restored database leaves out: more than anybody gave out since the backup.
const LEFT_OUT: u64 = 1_000_000;

impl Database {
    /// Writes a consistent copy of the file to `path`, where there is none, and looks through it. The coordinator that uses it goes on.
    /// With `keys`, what opens identities goes there, and not into the copy.
    pub(crate) async fn back_up(&self, path: &Path, keys: Option<&Path>) -> Result<(), BackupError> {
        if self.is_shared() {
            return Err(BackupError::Server);
        }
        let (file, name) = made(path)?;
        let kept = keys.map(made).transpose()?;
        let mut connection = self.apart().acquire().await.map_err(StoreError::read)?;
        let copied = sqlx::query("VACUUM INTO $1").bind(name);
        copied.execute(&mut *connection).await.map_err(StoreError::read)?;
        let copy = Self::open(&super::Place::File(path.to_owned())).await?;
        if let Some((kept, name)) = kept {
            copy.attached(name.clone(), &PART_KEYS).await?;
            kept.sync_all().map_err(|source| BackupError::Write(name, source))?;
        }
        file.sync_all()
            .map_err(|source| BackupError::Write(path.display().to_string(), source))?;
        let checked = sqlx::query("PRAGMA integrity_check").fetch_one(copy.reader()).await;
        let said: String = checked.map_err(StoreError::read)?.get(0);
        copy.close().await;
        match said.as_str() {
            "ok" => Ok(()),
            _ => Err(BackupError::Damaged(said)),
        }
    }

    /// Puts back what opens identities, as it was when `keys` was written: of devices that were erased until then nothing comes back.
    pub(crate) async fn put_keys_back(&self, keys: &Path) -> Result<(), BackupError> {
        if self.is_shared() {
            return Err(BackupError::Server);
        }
        let name = keys.to_str().filter(|_| keys.is_file());
        let name = name.ok_or_else(|| BackupError::NoKeys(keys.display().to_string()))?;
        self.attached(name.to_owned(), &PUT_KEYS_BACK).await
    }

    /// Carries out statements with another file as `kept`.
    async fn attached(&self, name: String, statements: &[&'static str]) -> Result<(), BackupError> {
        let mut connection = self.apart().acquire().await.map_err(StoreError::read)?;
        let attach = sqlx::query("ATTACH DATABASE $1 AS kept").bind(name);
        attach.execute(&mut *connection).await.map_err(StoreError::written)?;
        let mut transaction = connection.begin().await.map_err(StoreError::written)?;
        for statement in statements {
            let done = sqlx::query(*statement).execute(&mut *transaction).await;
            done.map_err(StoreError::written)?;
        }
        transaction.commit().await.map_err(StoreError::written)?;
        let detach = sqlx::query("DETACH DATABASE kept").execute(&mut *connection).await;
        detach.map_err(StoreError::written)?;
        Ok(())
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

/// Out of a copy.
const PART_KEYS: [&str; 8] = [
    "CREATE TABLE kept.identity_keys (device TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT",
    "CREATE TABLE kept.identity_digests (device TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (device, digest)) STRICT",
    "CREATE TABLE kept.erased_devices (device TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT",
    "INSERT INTO kept.identity_keys SELECT device, key FROM main.identity_keys",
    "INSERT INTO kept.identity_digests SELECT device, digest FROM main.identity_digests",
    "INSERT INTO kept.erased_devices SELECT device, at FROM main.erased_devices",
    "DELETE FROM main.identity_keys",
    "DELETE FROM main.identity_digests",
];

/// Into a copy that may be older: what was erased meanwhile goes, and keys come for what is there.
const PUT_KEYS_BACK: [&str; 9] = [
    "INSERT INTO main.erased_devices SELECT device, at FROM kept.erased_devices WHERE true ON CONFLICT DO NOTHING",
    "DELETE FROM main.registrations WHERE device IN (SELECT device FROM main.erased_devices)",
    "DELETE FROM main.self_reports WHERE device IN (SELECT device FROM main.erased_devices)",
    "DELETE FROM main.devices WHERE device IN (SELECT device FROM main.erased_devices)",
    "DELETE FROM main.transcripts WHERE device IN (SELECT device FROM main.erased_devices)",
    "DELETE FROM main.credential_profiles WHERE device IN (SELECT device FROM main.erased_devices)",
    "DELETE FROM main.removed_devices WHERE device IN (SELECT device FROM main.erased_devices)",
    "INSERT INTO main.identity_keys SELECT device, key FROM kept.identity_keys \
     WHERE device = '' OR device IN (SELECT device FROM main.registrations) \
     OR device IN (SELECT device FROM main.transcripts) ON CONFLICT DO NOTHING",
    "INSERT INTO main.identity_digests SELECT device, digest FROM kept.identity_digests \
     WHERE device IN (SELECT device FROM main.registrations) ON CONFLICT DO NOTHING",
];

/// A new file, which nobody else reads along, with its name.
fn made(path: &Path) -> Result<(File, String), BackupError> {
    let failed = |source| BackupError::Write(path.display().to_string(), source);
    let name = path
        .to_str()
        .ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
    let file = File::create_new(path).map_err(failed)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((file, name.to_owned()))
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
    /// The keys are not there.
    #[error("{0} is no file: name the newest that `backup --identity-keys` has written")]
    NoKeys(String),
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
