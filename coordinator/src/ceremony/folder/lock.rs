//! One process at a time changes a trust folder.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use crate::lock::Lock;

/// Why the folder could not be had alone.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process changes it.
    #[error("{} is being changed by another firmesh{holder}: wait until it has ended", folder.display())]
    Busy {
        /// The folder.
        folder: PathBuf,
        /// Which process, if it says so.
        holder: String,
    },
    /// The file system refused.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The right to change a folder; it ends with the value, or with the process.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "it is let go of with the value")] Lock);

impl FolderLock {
    /// Takes the lock, or says who has it. Makes the folder if need be.
    pub(super) fn take(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(".lock");
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // A holder that has not written its number yet is a holder all the same.
                let _unknown = (&file).take(20).read_to_string(&mut holder);
                let digits = holder.trim();
                let known = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                return Err(LockError::Busy {
                    folder: folder.to_owned(),
                    holder: if known {
                        format!(" (process {digits})")
                    } else {
                        String::new()
                    },
                });
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self(Lock::held(file)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_has_it_until_the_first_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        FolderLock::take(folder.path()).unwrap();
    }
}
