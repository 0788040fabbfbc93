//! Where images come from: the node's store of verified bytes.

use std::{error::Error, fmt, pin::Pin};

use firmesh_protocol::ids::ArtifactId;
use futures_util::future::BoxFuture;
use tokio::io::AsyncRead;

/// A stream of verified bytes.
pub type ImageReader = Pin<Box<dyn AsyncRead + Send>>;

/// The node's store, as backends see it.
pub trait ImageSource: fmt::Debug + Send + Sync {
    /// Opens a complete artifact from its first byte. Every byte read has been verified against the artifact's root.
    fn open(&self, artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>>;

    /// Where a BMC can pull the artifact from, over HTTPS.
    fn url(&self, artifact: ArtifactId) -> String;
}

/// An artifact that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("artifact {artifact} could not be opened")]
pub struct ImageError {
    /// Which one.
    pub artifact: ArtifactId,
    /// Whether it may be there later.
    pub retry: bool,
    /// What the store said.
    pub source: Box<dyn Error + Send + Sync>,
}
