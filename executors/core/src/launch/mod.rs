//! A node's own update, as far as it is decided outside of the node: which program is started next, and when one on trial has had
//! its chance.
//!
//! - `slots`: what a node's two slots hold, and the rule of what starts next
//! - `launcher`: the process that starts the node, and outlives it
//! - `program`: what the launcher tells the node, and whether bytes are a program for this machine
//!
//! Invariants: there is always something to start, for the packaged program is the launcher itself; a trial is counted, durably,
//! before it is started; what was not confirmed is started so many times and no more; only the side whose turn it is changes
//! the slots' file: the node while it runs, the launcher while no node does.

mod launcher;
mod program;
mod slots;
#[cfg(test)]
mod tests;

pub use launcher::{Ended, Launcher, LauncherInput, LauncherOutput, NotStarted};
pub use program::{Launched, LaunchedError, Program, ProgramError, check_program, version_said};
pub use slots::{NodeSlots, NodeSlotsError, Trial, TrialEnd};
