//! placeholder

pub mod ceremony;
