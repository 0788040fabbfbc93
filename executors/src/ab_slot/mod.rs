#![doc = include_str!("README.md")]

mod backend;
mod boot_env;
mod disk;
mod examine;
#[cfg(test)]
mod tests;

pub use backend::{AbSlotBackend, AbSlotError, HealthStatus, Status};
pub use boot_env::BootEnvPlace;
pub(crate) use disk::{Disk, read_small};
