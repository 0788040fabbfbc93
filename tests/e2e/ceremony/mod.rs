//! People who sign: two of three of each group, files passed between their folders, keys in files, in the environment and
//! in a token, every role's keys changed, and every role's keys stolen.

mod fleet;
mod people;
mod stolen;
