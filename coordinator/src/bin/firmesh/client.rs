//! The coordinator's public API, from outside.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use firmesh_protocol::{
    api::{Page, Problem},
    trace::TraceContext,
};
use futures_util::StreamExt as _;
use reqwest::{Method, Response, StatusCode, Url, header};
use serde::{Serialize, de::DeserializeOwned};

/// The longest answer that is read: a plan of the largest campaign.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// Pages of a list that are followed: ten million rows.
const PAGES_MAX: usize = 10_000;

/// Why a request did not give an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no answer from the coordinator at {url} (choose another with --coordinator)")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{}: {}", .0.title, .0.detail)]
    Problem(Problem),
    #[error("{url} answered {status}: {text}")]
    Status {
        url: String,
        status: StatusCode,
        text: String,
    },
    #[error("{url} gave an answer of more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge { url: String },
    #[error("{url} is not an address")]
    Address { url: String },
    #[error("{url} names a next page that is not its own, or has more than {PAGES_MAX} pages")]
    Pages { url: String },
    #[error("{url} gave an answer this version does not understand")]
    Malformed { url: String, source: serde_json::Error },
}

impl RequestError {
    /// Whether a policy or a signature refused, rather than a mistake or a fault.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.refused)
    }
}

/// A connection to one coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
    token: Option<String>,
    /// The trace that this command is part of, where whoever runs it says so as OpenTelemetry's tools do.
    trace: Option<TraceContext>,
}

fn builder(ca_file: Option<&Path>, is_tls: bool) -> anyhow::Result<reqwest::ClientBuilder> {
    // Fails only if somebody installed one before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(10));
    let Some(path) = ca_file else {
        // Without TLS there is nothing to verify: do not depend on the system's certificates.
        return Ok(if is_tls { builder } else { builder.tls_certs_only([]) });
    };
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certificate = reqwest::Certificate::from_pem(&pem)
        .with_context(|| format!("{} is not a certificate in PEM", path.display()))?;
    Ok(builder.tls_certs_only([certificate]))
}

/// A client for any server; gives up when nothing arrives for `timeout`.
pub(crate) fn http_client(ca_file: Option<&Path>, is_tls: bool, timeout: Duration) -> anyhow::Result<reqwest::Client> {
    let client = builder(ca_file, is_tls)?.read_timeout(timeout).build();
    client.context("cannot start the HTTP client")
}

impl Client {
    pub(crate) fn new(base: &str, ca_file: Option<&Path>, token: Option<String>) -> anyhow::Result<Self> {
        let builder = builder(ca_file, base.starts_with("https://"))?;
        let http = builder.build().context("cannot start the HTTP client")?;
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            http,
            token,
            trace: std::env::var("TRACEPARENT")
                .ok()
                .and_then(|text| TraceContext::parse(&text)),
        })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestError> {
        self.read(self.send(Method::GET, path, |request| request).await?).await
    }

    /// A whole list, page by page.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Page<T>, RequestError> {
        let address = |url: &str| Url::parse(url).map_err(|_| RequestError::Address { url: url.to_owned() });
        let first = address(&format!("{}{path}", self.base))?;
        let mut next = first.clone();
        next.query_pairs_mut().append_pair("limit", "1000").extend_pairs(query);
        let mut items = Vec::new();
        for _ in 0..PAGES_MAX {
            let response = self.send_to(Method::GET, next.as_str(), |request| request).await?;
            let link = response
                .headers()
                .get(header::LINK)
                .and_then(|link| next_page(link.to_str().ok()?));
            // The token goes nowhere else.
            let following = link.map(|link| next.join(link).ok().filter(|url| url.path() == first.path()));
            let own = |url: &Url| url.origin() == first.origin();
            let page: Page<T> = self.read(response).await?;
            items.extend(page.items);
            next = match following {
                None => return Ok(Page { items }),
                Some(Some(url)) if own(&url) => url,
                Some(_) => break,
            };
        }
        Err(RequestError::Pages { url: first.into() })
    }

    /// Any request, and its answer.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        dress: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<T, RequestError> {
        self.read(self.send(method, path, dress).await?).await
    }

    /// A text, as it is.
    pub(crate) async fn get_text(&self, path: &str) -> Result<String, RequestError> {
        let response = self.send(Method::GET, path, |request| request).await?;
        let body = self.body(response).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, RequestError> {
        self.read(self.send(Method::POST, path, |request| request.json(body)).await?)
            .await
    }

    /// A `POST` of raw bytes of known length.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        length: u64,
        body: reqwest::Body,
    ) -> Result<T, RequestError> {
        let with_body = |request: reqwest::RequestBuilder| {
            let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
            request.header(header::CONTENT_LENGTH, length).body(body)
        };
        self.read(self.send(Method::POST, path, with_body).await?).await
    }

    /// An answer whose status is good, body unread.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        dress: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Response, RequestError> {
        self.send_to(method, &format!("{}{path}", self.base), dress).await
    }

    async fn send_to(
        &self,
        method: Method,
        url: &str,
        dress: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Response, RequestError> {
        let url = url.to_owned();
        let mut request = self.http.request(method, &url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(trace) = &self.trace {
            request = request.header("traceparent", trace.to_string());
        }
        let sent = dress(request).send().await;
        let response = sent.map_err(|source| RequestError::Unreachable {
            url: url.clone(),
            source,
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(response).await?;
        Err(match serde_json::from_slice(&body) {
            Ok(problem) => RequestError::Problem(problem),
            Err(_) => {
                let text = String::from_utf8_lossy(&body).chars().take(200).collect();
                RequestError::Status { url, status, text }
            }
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, RequestError> {
        let url = response.url().to_string();
        let body = self.body(response).await?;
        // An action without an answer (204) reads as null.
        let body = if body.is_empty() { b"null".to_vec() } else { body };
        serde_json::from_slice(&body).map_err(|source| RequestError::Malformed { url, source })
    }

    async fn body(&self, response: Response) -> Result<Vec<u8>, RequestError> {
        let url = response.url().to_string();
        let (mut body, mut stream) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = stream.next().await {
            body.extend(chunk.map_err(|source| RequestError::Unreachable {
                url: url.clone(),
                source,
            })?);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(RequestError::TooLarge { url });
            }
        }
        Ok(body)
    }
}

/// The reference of `rel="next"` in a `Link` header.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|one| {
        let (reference, parameters) = one.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| matches!(parameter.trim(), "rel=\"next\"" | "rel=next");
        parameters.split(';').any(is_next).then_some(reference)
    })
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, http::StatusCode, routing::post};
    use serde_json::{Value, json};

    use super::*;

    async fn client(router: Router) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, router).into_future());
        Client::new(&base, None, Some("secret".to_owned())).unwrap()
    }

    #[tokio::test]
    async fn an_upload_says_its_length_and_who_sends_it() {
        let echo = |headers: axum::http::HeaderMap, body: axum::body::Bytes| async move {
            let text = |name| headers[name].to_str().unwrap().to_owned();
            Json(json!([text("content-length"), text("authorization"), body.len()]))
        };
        let client = client(Router::new().route("/in", post(echo))).await;
        let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>("ab"), Ok("c")]);
        let answer: Value = client
            .upload("/in", 3, reqwest::Body::wrap_stream(chunks))
            .await
            .unwrap();
        assert_eq!(answer, json!(["3", "Bearer secret", 3]));
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_last_page_and_the_token_stays_at_home() {
        let page = |axum::extract::RawQuery(query): axum::extract::RawQuery| async move {
            let query = query.unwrap();
            assert!(
                query.contains("filter=a+%26+b") && query.contains("limit=1000"),
                "{query}"
            );
            let next = if query.contains("cursor=2") {
                None
            } else {
                Some("<?limit=1000&filter=a+%26+b&cursor=2>; rel=\"next\"")
            };
            let items = if next.is_some() { json!([1, 2]) } else { json!([3]) };
            let mut answer = axum::response::IntoResponse::into_response(Json(json!({ "items": items })));
            if let Some(next) = next {
                answer.headers_mut().insert("link", next.parse().unwrap());
            }
            answer
        };
        let astray = || async {
            (
                [("link", "<http://example.invalid/list>; rel=\"next\"")],
                Json(json!({ "items": [] })),
            )
        };
        let router = Router::new()
            .route("/list", axum::routing::get(page))
            .route("/astray", axum::routing::get(astray));
        let client = client(router).await;
        let page: Page<u32> = client.list("/list", &[("filter", "a & b")]).await.unwrap();
        assert_eq!(page.items, [1, 2, 3]);
        let astray = client.list::<u32>("/astray", &[]).await;
        assert!(matches!(astray, Err(RequestError::Pages { .. })), "{astray:?}");
    }

    #[tokio::test]
    async fn a_problem_keeps_whether_it_is_a_refusal_and_anything_else_names_the_place() {
        let refused = json!({
            "type": "urn:firmesh:problem:rollback", "title": "Older metadata", "status": 409,
            "detail": "releases went back from version 2 to 1", "refused": true,
        });
        let router = Router::new()
            .route("/refused", post(|| async { (StatusCode::CONFLICT, Json(refused)) }))
            .route("/broken", post(|| async { (StatusCode::BAD_GATEWAY, "proxy") }))
            .route("/empty", post(|| async { StatusCode::NO_CONTENT }));
        let client = client(router).await;
        let error = client.post::<Value>("/refused", &()).await.unwrap_err();
        assert!(error.is_refusal());
        assert_eq!(
            error.to_string(),
            "Older metadata: releases went back from version 2 to 1"
        );
        let error = client.post::<Value>("/broken", &()).await.unwrap_err().to_string();
        assert!(error.ends_with("/broken answered 502 Bad Gateway: proxy"), "{error}");
        assert_eq!(client.post::<Value>("/empty", &()).await.unwrap(), Value::Null);
        let nobody = Client::new("http://127.0.0.1:1", None, None).unwrap();
        assert!(matches!(
            nobody.get::<Value>("/x").await,
            Err(RequestError::Unreachable { .. })
        ));
    }
}
