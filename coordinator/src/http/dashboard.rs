//! The dashboard: built pages, embedded, that use the public API and nothing else (`dashboard/`, `build.rs`).
//!
//! Invariants: a page may load and ask nothing but this coordinator; what has another content has another name, or is asked
//! for anew each time.

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::problem;

/// One file of the dashboard.
struct Page {
    path: &'static str,
    /// Its `ETag`.
    tag: &'static str,
    bytes: &'static [u8],
    gzip: Option<&'static [u8]>,
}

static PAGES: &[Page] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// The first segments of the addresses that the pages have for themselves: each is answered with the one page there is.
const ADDRESSES: [&str; 9] = [
    "artifacts",
    "audit",
    "campaigns",
    "compliance",
    "devices",
    "fleet",
    "login",
    "mesh",
    "settings",
];

/// Nothing inline, nothing from elsewhere, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Names with a digest of the content in them: these never change.
const HASHED: &str = "/assets/";

/// What no route answers: a page, or nothing that there is.
pub(super) async fn page_or_problem(request: Request) -> Response {
    let found = matches!(*request.method(), Method::GET | Method::HEAD).then(|| page(request.uri().path()));
    match found.flatten() {
        Some(page) => answer(page, request.headers()),
        None => problem::no_such_route(request).await.into_response(),
    }
}

fn page(path: &str) -> Option<&'static Page> {
    let named = |name: &str| PAGES.iter().find(|page| page.path == name);
    let first = path.split('/').nth(1).unwrap_or_default();
    match first.is_empty() || ADDRESSES.contains(&first) {
        true => named("/index.html"),
        false => named(path),
    }
}

fn answer(page: &'static Page, asked: &HeaderMap) -> Response {
    let has = |name: HeaderName, wanted: &str| {
        let values = asked.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|one| one.split(';').next().is_some_and(|one| one.trim() == wanted))
    };
    let keep = match page.path.starts_with(HASHED) {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    };
    let headers = [
        (header::CONTENT_TYPE, kind(page.path)),
        (header::CACHE_CONTROL, keep),
        (header::ETAG, page.tag),
        (header::VARY, "accept-encoding"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    if has(header::IF_NONE_MATCH, page.tag) || has(header::IF_NONE_MATCH, "*") {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    match page.gzip.filter(|_| has(header::ACCEPT_ENCODING, "gzip")) {
        Some(packed) => {
            let encoding = [(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))];
            (headers, encoding, packed).into_response()
        }
        None => (headers, page.bytes).into_response(),
    }
}

fn kind(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        Some("woff2") => "font/woff2",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    async fn got(method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        page_or_problem(request.body(Body::empty()).unwrap()).await
    }

    #[tokio::test]
    async fn addresses_of_pages_are_answered_with_the_page_and_nothing_else_is() {
        for path in [
            "/",
            "/campaigns",
            "/campaigns/spring",
            "/fleet/eu/fra1",
            "/devices/r1.example",
        ] {
            let answer = got(Method::GET, path, &[]).await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            assert_eq!(
                answer.headers()[header::CONTENT_TYPE],
                "text/html; charset=utf-8",
                "{path}"
            );
            assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-cache", "{path}");
            let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(
                policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
                "{policy}"
            );
        }
        for path in [
            "/api/v1/nothing",
            "/nothing",
            "/assets/nothing.js",
            "/../Cargo.toml",
            "/index.htm",
        ] {
            assert_eq!(
                got(Method::GET, path, &[]).await.status(),
                StatusCode::NOT_FOUND,
                "{path}"
            );
        }
        assert_eq!(
            got(Method::POST, "/campaigns", &[]).await.status(),
            StatusCode::NOT_FOUND
        );
    }

    #[tokio::test]
    async fn what_a_browser_has_is_not_sent_again() {
        let first = got(Method::GET, "/", &[]).await;
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        let again = got(Method::GET, "/campaigns", &[(header::IF_NONE_MATCH, &tag)]).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        let other = got(Method::GET, "/", &[(header::IF_NONE_MATCH, "\"other\"")]).await;
        assert_eq!(other.status(), StatusCode::OK);
    }

    /// Hashed names may be kept for ever, which the others may not; packed bytes come only to those who ask.
    #[tokio::test]
    async fn every_file_has_a_type_and_is_kept_as_long_as_its_name_allows() {
        for page in PAGES {
            let answer = got(Method::GET, page.path, &[(header::ACCEPT_ENCODING, "br, gzip;q=0.8")]).await;
            assert_eq!(answer.status(), StatusCode::OK, "{}", page.path);
            assert_ne!(kind(page.path), "application/octet-stream", "{}", page.path);
            let headers = answer.headers();
            let keeps = headers
                .get(header::CACHE_CONTROL)
                .is_some_and(|value| value.to_str().unwrap().contains("immutable"));
            assert_eq!(keeps, page.path.starts_with(HASHED), "{}", page.path);
            assert_eq!(
                headers.contains_key(header::CONTENT_ENCODING),
                page.gzip.is_some(),
                "{}",
                page.path
            );
            let plain = got(Method::GET, page.path, &[]).await;
            assert!(!plain.headers().contains_key(header::CONTENT_ENCODING), "{}", page.path);
        }
    }
}
