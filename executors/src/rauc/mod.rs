#![doc = include_str!("README.md")]

mod backend;
mod config;
mod examine;
mod status;

pub use backend::RaucBackend;
pub use config::{RaucConfig, RaucSettings};
