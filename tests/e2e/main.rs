//! The product's promises, each shown with the real programs running as processes of their own.

mod at_rest;
mod ceremony;
mod cli;
mod demo;
mod gates;
mod layering;
mod misfortune;
mod power_loss;
mod refusals;
mod transfer;
