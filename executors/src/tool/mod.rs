//! Other people's programs, run for a device: without a shell, in a process group of their own, within limits.
//!
//! Invariants: whoever is past its limit is ended with everything it started; what it says is bounded; what changes a device
//! goes on when this process dies, and is found again.

mod errand;
mod fetch;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use errand::{Errand, ErrandError};
pub(crate) use fetch::{FetchError, digest_of, fetch};
pub(crate) use run::{Ended, Invocation, ToolError, ask};

/// What a program is told about where programs are; nothing else of our own environment reaches it.
pub(crate) const PROGRAM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
