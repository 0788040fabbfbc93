//! The product's promises, each shown with the real programs running as processes of their own.

mod layering;
mod refusals;
