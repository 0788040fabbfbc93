//! A node's decisions: who fetches which piece from whom ([`swarm`]), when an image of a campaign ([`approved`]) may go to
//! a device by whose permit ([`permits`], [`install`]) and how often ([`retries`]), what the store gives up when it needs room ([`retention`]),
//! and when a node that updates itself works ([`own`]).
//!
//! Pure: facts and the time go in, instructions come out. The node and the simulator run this same code.

pub mod approved;
pub mod install;
pub mod own;
pub mod permits;
pub mod retention;
pub mod retries;
pub mod swarm;
