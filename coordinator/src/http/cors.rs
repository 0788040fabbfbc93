//! Which other pages may read answers (CORS): those whose origins are configured, and no other. Who asks has to prove who he
//! is all the same; there are no cookies.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// A browser asks again after so long.
const REMEMBERED: Duration = Duration::from_secs(600);

/// For these origins; for none, nothing is said, and browsers keep answers to this coordinator's own pages.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<_> = origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok())
        .collect();
    if origins.is_empty() {
        return None;
    }
    let named = |names: &[&'static str]| names.iter().copied().map(HeaderName::from_static).collect::<Vec<_>>();
    let mut asked = named(&["idempotency-key", "last-event-id", "traceparent", "x-request-id"]);
    asked.extend([
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::RANGE,
    ]);
    let mut shown = named(&[
        "idempotency-replayed",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "repr-digest",
        "x-request-id",
    ]);
    shown.extend([
        header::CONTENT_RANGE,
        header::ETAG,
        header::LINK,
        header::LOCATION,
        header::RETRY_AFTER,
    ]);
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers(asked)
        .expose_headers(shown)
        .max_age(REMEMBERED);
    Some(layer)
}
