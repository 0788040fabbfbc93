//! Which request is which: `X-Request-Id` from the asker or made here, on every answer, in every problem and in the log;
//! `traceparent` (W3C Trace Context) in the log.

use axum::{
    Json,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_LENGTH},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use firmesh_protocol::{api::Problem, trace::TraceContext};
use tracing::{Instrument as _, Span, field::Empty, info_span};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The outermost layer.
pub(super) async fn identify(request: Request, next: Next) -> Response {
    let (id, span) = named(&request);
    let mut response = next.run(request).instrument(span).await;
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        problem.request_id = Some(id.clone());
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(CONTENT_LENGTH);
        response = Response::from_parts(parts, Json(problem).into_response().into_body());
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The request's id, and the span that its log lines stand in.
fn named(request: &Request) -> (String, Span) {
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let id = match text("x-request-id").filter(|id| is_request_id(id)) {
        Some(id) => id.to_owned(),
        None => format!("{:032x}", fastrand::u128(..)),
    };
    let (method, path) = (request.method(), request.uri().path());
    let span = info_span!("request", request_id = id, %method, path, trace_id = Empty, parent_id = Empty);
    if let Some(asker) = asker(request.headers()) {
        let parent = format!("{:016x}", u64::from_be_bytes(asker.span()));
        span.record("trace_id", asker.trace_hex()).record("parent_id", parent);
    }
    (id, span)
}

/// Such as stands in a log line, and in a person's mail about it.
fn is_request_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=64).contains(&id.len()) && id.bytes().all(plain)
}

/// The span of whoever asks, if he tells of one that is well-formed.
pub(super) fn asker(headers: &HeaderMap) -> Option<TraceContext> {
    TraceContext::parse(headers.get("traceparent")?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_short_and_plain() {
        assert!(is_request_id("req-1.A_b"));
        for bad in ["", "a b", "a\"b", &"x".repeat(65), "ä"] {
            assert!(!is_request_id(bad), "{bad}");
        }
    }
}
