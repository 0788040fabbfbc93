mod policies;
mod proofs;
mod settings;
