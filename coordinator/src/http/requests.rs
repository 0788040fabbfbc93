//! Which request is which: `X-Request-Id` from the asker or made here, on every answer, in every problem and in the log;
//! `traceparent` (W3C Trace Context) in the log.

use axum::{
    Json,
    extract::Request,
    http::{HeaderName, HeaderValue, header::CONTENT_LENGTH},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use firmesh_protocol::api::Problem;
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
    if let Some((trace, parent)) = text("traceparent").and_then(trace_of) {
        span.record("trace_id", trace).record("parent_id", parent);
    }
    (id, span)
}

/// Such as stands in a log line, and in a person's mail about it.
fn is_request_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=64).contains(&id.len()) && id.bytes().all(plain)
}

/// Trace and parent span of a `traceparent`. Later versions may go on after the flags.
fn trace_of(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.splitn(5, '-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
    let is_known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    (is_known && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2)).then_some((trace, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_as_the_standard_has_it_or_not_at_all() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{parent}-01");
        assert_eq!(trace_of(&good), Some((trace, parent)));
        assert_eq!(trace_of(&format!("01-{trace}-{parent}-01-more")), Some((trace, parent)));
        for bad in [
            "",
            &good.to_uppercase(),
            &format!("{good}-more"),
            &format!("ff-{trace}-{parent}-01"),
            &format!("00-{}-{parent}-01", "0".repeat(32)),
            &format!("00-{trace}-{}-01", "0".repeat(16)),
            &format!("00-{trace}-{parent}"),
            &format!("00-{trace}x-{parent}-01"),
        ] {
            assert_eq!(trace_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_request_id_is_short_and_plain() {
        assert!(is_request_id("req-1.A_b"));
        for bad in ["", "a b", "a\"b", &"x".repeat(65), "ä"] {
            assert!(!is_request_id(bad), "{bad}");
        }
    }
}
