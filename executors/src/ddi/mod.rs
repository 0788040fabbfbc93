#![doc = include_str!("README.md")]

mod backend;
mod config;
mod device;
mod ledger;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use backend::DdiBackend;
pub use config::{DdiConfig, DdiSettings, VersionFrom};
pub use device::{AnswerError, Desk, Device, Download, OpenError};
pub use ledger::ActionError;
pub use wire::{BODY_BYTES_MAX, BodyError, ConfigData, Feedback};
