//! Answers that know whether they have changed: `ETag`, `If-None-Match`, `If-Match`.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use firmesh_protocol::ids::Sha256;
use serde::Serialize;

use super::{App, problem::Failure};

/// The conditions of a request.
#[derive(Debug)]
pub(super) struct Conditions(HeaderMap);

impl FromRequestParts<Arc<App>> for Conditions {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Infallible> {
        let mut kept = HeaderMap::new();
        // Whoever has changed something is told of it, whatever he knew before.
        let reads = matches!(parts.method, Method::GET | Method::HEAD);
        for name in [header::IF_MATCH, header::IF_NONE_MATCH] {
            if name == header::IF_NONE_MATCH && !reads {
                continue;
            }
            for value in parts.headers.get_all(&name) {
                kept.append(&name, value.clone());
            }
        }
        Ok(Self(kept))
    }
}

impl Conditions {
    /// A resource with the tag of its bytes, or 304.
    pub(super) fn answer(&self, value: &impl Serialize) -> Response {
        let bytes = match serde_json::to_vec(value) {
            Ok(bytes) => bytes,
            Err(error) => {
                return Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "encoding", error.to_string()).into_response();
            }
        };
        let tag = format!("\"{}\"", &Sha256::of(&bytes).to_string()[..32]);
        self.tagged(&tag, || {
            ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
        })
    }

    /// A resource that has a version.
    pub(super) fn versioned(&self, version: u64, value: &impl Serialize) -> Response {
        self.tagged(&tag_of(version), || Json(value).into_response())
    }

    /// A resource of which a part has a version, and the rest changes by itself.
    pub(super) fn part_versioned(&self, version: u64, value: &impl Serialize) -> Response {
        let bytes = match serde_json::to_vec(value) {
            Ok(bytes) => bytes,
            Err(error) => {
                return Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "encoding", error.to_string()).into_response();
            }
        };
        let tag = format!("\"v{version}-{}\"", &Sha256::of(&bytes).to_string()[..32]);
        self.tagged(&tag, || {
            ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
        })
    }

    /// For a change of the part that has a version: any tag with that version will do.
    pub(super) fn require_part(&self, version: u64) -> Result<(), Failure> {
        let mut tags = self.0.get_all(header::IF_MATCH).iter();
        let mut tags = tags
            .by_ref()
            .flat_map(|value| value.to_str().unwrap_or_default().split(','));
        let wanted = format!("v{version}");
        let names = |tag: &str| tag == "*" || tag.trim_matches('"').split('-').next() == Some(&*wanted);
        match tags.any(|tag| names(tag.trim())) {
            true => Ok(()),
            false => self.require_match(version),
        }
    }

    /// The same for a change that may know what it changes.
    pub(super) fn check_part(&self, version: u64) -> Result<(), Failure> {
        match self.0.contains_key(header::IF_MATCH) {
            true => self.require_part(version),
            false => Ok(()),
        }
    }

    fn tagged(&self, tag: &str, body: impl FnOnce() -> Response) -> Response {
        let mut response = match self.names(&header::IF_NONE_MATCH, tag) {
            Some(true) => StatusCode::NOT_MODIFIED.into_response(),
            _ => body(),
        };
        let value = HeaderValue::from_str(tag).expect("a tag has quotes, letters and digits only");
        response.headers_mut().insert(header::ETAG, value);
        response
    }

    /// For a change that must know what it changes.
    pub(super) fn require_match(&self, version: u64) -> Result<(), Failure> {
        if !self.0.contains_key(header::IF_MATCH) {
            return Err(Failure::new(
                StatusCode::PRECONDITION_REQUIRED,
                "if_match_required",
                "send `If-Match` with the `ETag` of what you have read, so that nobody else's change is lost",
            ));
        }
        self.check_match(version)
    }

    /// For a change that may know what it changes.
    pub(super) fn check_match(&self, version: u64) -> Result<(), Failure> {
        match self.names(&header::IF_MATCH, &tag_of(version)) {
            Some(false) => Err(Failure::new(
                StatusCode::PRECONDITION_FAILED,
                "changed_meanwhile",
                format!(
                    "it has changed since you read it, its `ETag` is {} now: read it again",
                    tag_of(version)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether the header names this tag; `None` without the header. Tags of ours are strong and have no comma.
    fn names(&self, name: &header::HeaderName, tag: &str) -> Option<bool> {
        let mut values = self.0.get_all(name).iter().peekable();
        values.peek()?;
        let mut tags = values.flat_map(|value| value.to_str().unwrap_or_default().split(','));
        Some(tags.any(|one| {
            let one = one.trim();
            let weak = (*name == header::IF_NONE_MATCH)
                .then(|| one.strip_prefix("W/"))
                .flatten();
            one == "*" || weak.unwrap_or(one) == tag
        }))
    }
}

fn tag_of(version: u64) -> String {
    format!("\"v{version}\"")
}

/// What was read, and named by its `ETag`, was changed between the look and the change.
pub(super) fn changed_meanwhile(what: &str) -> Failure {
    let detail = format!("somebody else has changed the {what} at this moment: read it again");
    Failure::new(StatusCode::PRECONDITION_FAILED, "changed_meanwhile", detail)
}
