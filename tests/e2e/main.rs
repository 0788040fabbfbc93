//! The product's promises, each shown with the real programs running as processes of their own.

mod at_rest;
mod audit;
mod calendar_opinion;
mod ceremony;
mod cli;
mod delta;
mod demo;
mod gates;
mod layering;
mod lies;
mod membership;
mod misfortune;
mod notifications;
mod possession;
mod power_loss;
mod provenance;
mod refusals;
mod repository_attacks;
mod second_opinion;
mod site_bundle;
mod starve;
mod store;
mod strategies;
mod transfer;
mod victim;
mod wire;
