#![doc = include_str!("README.md")]

mod backend;
mod disk;
mod examine;
#[cfg(test)]
mod tests;

pub use backend::{AbSlotBackend, AbSlotError, HealthStatus, Status};
pub(crate) use disk::{Disk, read_small};
