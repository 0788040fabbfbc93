//! What is done to a coordinator's database beside its running: an import, a backup, and what follows a restore.

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};

use firmesh_protocol::ids::Sha256;

use crate::{
    config::Settings,
    lock::Lock,
    server::{RunError, prepare},
    store::{BackupError, CopyError, Database, Place, StoreError},
};

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The state folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to import into.
    #[error("database.url is not set: an import goes from a file to a PostgreSQL server")]
    NoServer,
    /// There is nothing to import.
    #[error("there is no database at {}", .0.display())]
    NoFile(PathBuf),
    /// The coordinator that has it runs.
    #[error("a coordinator uses {}: stop it first", .0.display())]
    InUse(PathBuf),
    /// The import.
    #[error("nothing was imported")]
    Import(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The backup.
    #[error("{what}")]
    Backup {
        /// What was not done.
        what: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A table that was imported: its name, its rows, and the digest over all of them, here as there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedTable {
    /// The table.
    pub table: String,
    /// Rows.
    pub rows: u64,
    /// Digest of all values in the order of the key.
    pub sha256: Sha256,
}

/// Copies the whole database in `file` to the server that the settings name, on which nothing is stored yet. Neither is in use.
pub async fn import(settings: &Settings, file: &Path) -> Result<Vec<ImportedTable>, OfflineError> {
    if settings.database.is_none() {
        return Err(OfflineError::NoServer);
    }
    if !file.is_file() {
        return Err(OfflineError::NoFile(file.to_owned()));
    }
    // The file's coordinator holds the lock of the folder that it lies in; it may be this one's own.
    let _own = prepare(settings)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let _other = match folder.unwrap_or_else(|| Path::new(".")) {
        folder if is_same(folder, &settings.state_dir) => None,
        folder => locked(folder, file)?,
    };
    let source = Database::connect(&Place::File(file.to_owned())).await?;
    let target = Database::connect(&settings.place()).await?;
    let copied = target.fill_from(&source).await;
    source.close().await;
    target.close().await;
    let copied = copied.map_err(|error: CopyError| OfflineError::Import(error.into()))?;
    let told = copied.into_iter().map(|copied| ImportedTable {
        table: copied.table,
        rows: copied.rows,
        sha256: copied.sha256,
    });
    Ok(told.collect())
}

/// Copies the database file while its coordinator runs; with `identity_keys`, what opens the identities of devices goes there.
pub async fn back_up(settings: &Settings, to: &Path, identity_keys: Option<&Path>) -> Result<(), OfflineError> {
    let place = settings.place();
    if let Place::File(file) = &place
        && !file.is_file()
    {
        return Err(OfflineError::NoFile(file.clone()));
    }
    // Its coordinator runs, and may be of an older version than this program.
    let database = Database::open(&place).await?;
    let outcome = database.back_up(to, identity_keys).await;
    database.close().await;
    outcome.map_err(|error: BackupError| OfflineError::Backup {
        what: "there is no backup",
        source: error.into(),
    })
}

/// Makes a database ready that was restored to an earlier moment: what was given out after it is given out no more. Answers with
/// the epoch that is left out last. What opens the identities of devices comes from `identity_keys`, if the backup was made without.
pub async fn after_restore(settings: &Settings, identity_keys: Option<&Path>) -> Result<u64, OfflineError> {
    let _own = prepare(settings)?;
    let database = Database::connect(&settings.place()).await?;
    let outcome = match identity_keys {
        Some(keys) => database.put_keys_back(keys).await,
        None => Ok(()),
    };
    let outcome = match outcome {
        Ok(()) => database.leave_out().await,
        Err(error) => Err(error),
    };
    database.close().await;
    outcome.map_err(|error| OfflineError::Backup {
        what: "the restored database was not made ready",
        source: error.into(),
    })
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

/// A folder that no coordinator has used has no lock in it.
fn locked(folder: &Path, file: &Path) -> Result<Option<Lock>, OfflineError> {
    let Ok(lock) = File::options().write(true).open(folder.join("lock")) else {
        return Ok(None);
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(Lock::held(lock))),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Err(OfflineError::InUse(file.to_owned())),
    }
}
