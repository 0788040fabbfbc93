//! The product's promises, each shown with the real programs running as processes of their own.

mod ceremony;
mod audit;
mod at_rest;
mod cli;
mod demo;
mod gates;
mod layering;
mod misfortune;
mod power_loss;
mod provenance;
mod refusals;
mod second_opinion;
mod transfer;
