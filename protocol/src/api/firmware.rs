//! Releases and their images.

use serde::{Deserialize, Serialize};

use crate::manifest::Release;

/// `GET /api/v1/releases`: one release with where its image lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReleaseView {
    /// The release as signed.
    pub release: Release,
    /// Whether the origin holds the image.
    pub stored: bool,
}
