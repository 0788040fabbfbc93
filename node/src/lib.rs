//! The node: caches and shares verified pieces with its peers, and runs the executors of its devices.
//!
//! Everything here is shell: sockets, disks, clocks and BMCs. What to do is decided by `firmesh-node-core`,
//! `firmesh-executors-core` and the trust verifier of `firmesh-protocol`.

pub mod config;
mod files;
pub mod identity;
pub mod images;
pub mod journal;
pub mod mesh;
pub mod store;
pub mod transport;
pub mod trust_store;
pub mod uplink;
