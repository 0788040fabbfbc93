//! Files that one process at a time has locked.

use std::fs::File;

/// A locked file. Its lock ends with the value.
///
/// Said rather than left to the closing of the file: a process that is being started holds a copy of it until it is another
/// program, and with it the lock.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// A file that was just locked.
    pub(crate) fn held(file: File) -> Self {
        Self(file)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it lets go as well, only later.
        let _ = self.0.unlock();
    }
}
