#![doc = include_str!("README.md")]

mod backend;
mod client;
mod dialect;
mod discovery;
pub mod search;
mod stage;
mod task;
#[cfg(test)]
mod tests;
mod wire;

pub use backend::RedfishBackend;
pub use client::ClientError;
pub use dialect::Dialects;
pub(crate) use dialect::file_name;
