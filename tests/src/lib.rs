//! What the end-to-end tests stand on: the real binaries, started as processes on loopback.
//!
//! Nothing here sleeps for a fixed time: whatever is waited for is a condition with a deadline.

pub mod attempts;
pub mod binaries;
pub mod cluster;
pub mod debian_source;
pub mod first_packet;
pub mod kernel;
pub mod operator;
pub mod packages;
pub mod postgres;
pub mod process;
pub mod python;
pub mod replicas;
pub mod rogue;
pub mod s3;
pub mod setup;
pub mod stranger;
pub mod wait;
