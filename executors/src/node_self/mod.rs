#![doc = include_str!("README.md")]

mod backend;
mod config;
mod examine;
mod folder;
#[cfg(test)]
mod tests;

pub use backend::{NodeSelfBackend, NodeSelfError};
pub use config::{NodeSelfConfig, NodeSelfSettings};
pub use firmesh_executors_core::launch::{
    Ended, Launched, LaunchedError, Launcher, LauncherInput, LauncherOutput, NodeSlots, NotStarted, Program,
};
pub use folder::SlotsFolder;

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;

/// The node that runs the executor, which is its own device.
pub trait Own: fmt::Debug + Send + Sync {
    /// The version that runs, as `--version` has it: `1.2.0 (commit)`.
    fn version(&self) -> &str;

    /// Differs at every start.
    fn start_id(&self) -> &str;

    /// What the launcher said when it started the node; nothing if none did.
    fn launched(&self) -> Option<&Launched>;

    /// Whether it works; if not, what is missing, for a person.
    fn works(&self) -> Result<(), String>;

    /// Whether an attempt on it is under way, which is going to confirm what is on trial, or to give it up.
    fn updates_itself(&self) -> bool;

    /// Ends the node, cleanly, as soon as no other attempt of it is at work, so that its launcher starts what is to start. Does not answer
    /// if that is done; the error says who was at work for so long. A node that `must` ends then all the same.
    fn restart(&self, within: Duration, must: bool) -> BoxFuture<'_, Result<(), String>>;
}
