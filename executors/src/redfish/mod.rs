#![doc = include_str!("README.md")]

mod backend;
mod bios;
mod client;
mod dialect;
mod discovery;
mod examine;
pub mod search;
mod stage;
mod task;
#[cfg(test)]
mod tests;
mod transcript;
mod wire;

pub use backend::RedfishBackend;
pub use bios::{BiosBackend, BiosSettings, BiosSettingsConfig};
pub use client::ClientError;
pub use dialect::Dialects;
pub(crate) use dialect::file_name;
pub(crate) use transcript::Spoken;
pub use transcript::{NotRecorded, Transcript, TranscriptError, pack};
