#![doc = include_str!("README.md")]

mod backend;
mod description;
mod examine;
mod runs;
mod template;
#[cfg(test)]
mod tests;

pub use backend::CommandBackend;
pub use description::{CommandConfig, CommandSettings};
pub(crate) use template::{Template, is_name};
