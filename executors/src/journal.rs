//! Where attempts survive a crash.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    sync::{Mutex, PoisonError},
};

use firmesh_protocol::ids::DeviceId;

/// One record per device. Whatever returns has happened durably; calls may block and are made off the async threads.
pub trait Journal: fmt::Debug + Send + Sync {
    /// Replaces the device's record.
    fn save(&self, device: &DeviceId, record: &[u8]) -> Result<(), JournalError>;
    /// The device's record, if it has one.
    fn load(&self, device: &DeviceId) -> Result<Option<Vec<u8>>, JournalError>;
    /// Every device that has a record.
    fn list(&self) -> Result<Vec<DeviceId>, JournalError>;
}

/// A journal that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the attempt journal could not {operation}")]
pub struct JournalError {
    /// What was tried: `save`, `load` or `list`.
    pub operation: &'static str,
    /// What the storage said.
    pub source: Box<dyn Error + Send + Sync>,
}

/// A journal that survives only as long as its value: for tests.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<BTreeMap<DeviceId, Vec<u8>>>);

impl Journal for MemoryJournal {
    fn save(&self, device: &DeviceId, record: &[u8]) -> Result<(), JournalError> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(device.clone(), record.to_vec());
        Ok(())
    }

    fn load(&self, device: &DeviceId) -> Result<Option<Vec<u8>>, JournalError> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(device)
            .cloned())
    }

    fn list(&self) -> Result<Vec<DeviceId>, JournalError> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect())
    }
}
