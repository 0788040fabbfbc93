//! Files that every coordinator of a fleet needs: images first of all. They lie in a folder (`files.dir`), or in a bucket of an
//! S3 server (`[files.s3]`), which coordinators share without sharing a file system.
//!
//! Invariants: names and layout are the same in both, so that a folder may be copied into a bucket; what is read from a bucket
//! is checked by whoever reads it, as what is read from a disk is; what was written is durable once it is said to be.

mod blocks;
mod bucket;
mod config;
mod connection;
mod shelf;

pub use self::config::{FilesConfig, S3Config};
pub(crate) use self::{
    blocks::{BlockReader, Blocks},
    bucket::{Bucket, Found},
    config::Bucketed,
    shelf::Shelf,
};
