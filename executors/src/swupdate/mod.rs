#![doc = include_str!("README.md")]

mod config;
mod writer;

pub use config::{SwupdateConfig, SwupdateSettings};
pub(crate) use writer::Writer;
pub use writer::WriterError;
