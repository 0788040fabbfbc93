mod policies;
mod proofs;
mod provider;
mod settings;
