//! HTTP as the demo speaks it: to the coordinator as an operator, to nodes and emulated devices as a neighbour.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use firmesh_protocol::api::{Page, Problem};
use serde::{Serialize, de::DeserializeOwned};

use super::place::Inside;

/// Whoever does not answer within this is as good as down: everything here is on loopback.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// An HTTP client with the operator's token.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    inside: Option<Inside>,
}

impl Api {
    /// Talks to `base`, such as `http://127.0.0.1:8640`, from inside another network if there is one.
    pub(crate) fn new(base: &str, token: Option<String>, inside: Option<Inside>) -> Result<Self> {
        // Plain HTTP on loopback: the system's certificates have no say.
        let http = reqwest::Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .timeout(ANSWER_WITHIN)
            .build()?;
        Ok(Self {
            http,
            base: base.to_owned(),
            token,
            inside,
        })
    }

    /// Where it is.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.answer(path, self.http.get(self.url(path))).await
    }

    /// A whole list, page by page: the query of the next one stands in the header `Link`.
    pub(crate) async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let (mut items, mut query) = (Vec::new(), "?limit=1000".to_owned());
        loop {
            let path = format!("{path}{query}");
            let (next, page): (_, Page<T>) = self.answer_and_next(&path, self.http.get(self.url(&path))).await?;
            items.extend(page.items);
            match next {
                Some(next) => query = next,
                None => return Ok(items),
            }
        }
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.answer(path, self.http.post(self.url(path)).json(body)).await
    }

    /// Sends a file as it is.
    pub(crate) async fn upload<T: DeserializeOwned>(&self, path: &str, file: &Path) -> Result<T> {
        let open = tokio::fs::File::open(file)
            .await
            .with_context(|| format!("{} cannot be read", file.display()))?;
        let length = open.metadata().await?.len();
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(open, 1 << 18));
        let request = self
            .http
            .post(self.url(path))
            .timeout(Duration::from_secs(600))
            .body(body);
        let request = request
            .header("content-length", length)
            .header("content-type", "application/octet-stream");
        self.answer(path, request).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn answer<T: DeserializeOwned>(&self, path: &str, request: reqwest::RequestBuilder) -> Result<T> {
        Ok(self.answer_and_next(path, request).await?.1)
    }

    /// With the query of the next page, if there is one.
    async fn answer_and_next<T: DeserializeOwned>(
        &self,
        path: &str,
        mut request: reqwest::RequestBuilder,
    ) -> Result<(Option<String>, T)> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let exchange = async move {
            let answer = request.send().await?;
            let link = answer.headers().get("link").and_then(|link| link.to_str().ok());
            let next = link.and_then(|link| Some(link.strip_prefix('<')?.split_once('>')?.0.to_owned()));
            Ok::<_, reqwest::Error>((answer.status(), next, answer.bytes().await?))
        };
        let exchanged = match &self.inside {
            Some(inside) => inside.run(exchange).await?,
            None => exchange.await,
        };
        let (status, next, body) = exchanged.with_context(|| format!("no answer from {}", self.url(path)))?;
        if !status.is_success() {
            let said = serde_json::from_slice::<Problem>(&body).map_or_else(
                |_| String::from_utf8_lossy(&body).into_owned(),
                |problem| problem.detail,
            );
            bail!("{} answered {status}: {said}", self.url(path));
        }
        // An action without an answer (204) reads as null.
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        let read = serde_json::from_slice(body);
        Ok((
            next,
            read.with_context(|| format!("{} gave an answer that was not understood", self.url(path)))?,
        ))
    }
}
