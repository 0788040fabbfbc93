#![doc = include_str!("README.md")]

mod backend;
mod client;
#[cfg(test)]
mod tests;
mod wire;

pub use backend::RedfishBackend;
pub use client::ClientError;
