//! What Firmesh's parts say to each other, and why they may believe it.
//!
//! Pure: no clock, socket, file or thread. Time is an argument, randomness is an argument, bytes come from the caller.

pub mod api;
pub mod approval;
pub mod audit;
pub mod brake;
pub mod chunk;
pub mod evidence;
pub mod gate;
pub mod groups;
pub mod health;
pub mod identity;
pub mod ids;
pub mod labels;
pub mod limits;
pub mod manifest;
pub mod piece_shape;
pub mod piece_tree;
pub mod pieces;
pub mod possession;
pub mod recipe;
pub mod rehearsal;
pub mod report;
pub mod revocation;
pub mod rollback;
pub mod site_bundle;
pub mod time;
pub mod trace;
pub mod trust;
pub mod units;
pub mod version;
pub mod window;
pub mod wire;
