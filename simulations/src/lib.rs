//! A second shell around the cores: virtual devices, and the worlds they live in.
//!
//! Pure: time is an argument, randomness is seeded, no socket is opened.

pub mod device;
pub mod kills;
pub mod mesh;
pub mod rehearsal;
pub mod scale;
pub mod stopping;
