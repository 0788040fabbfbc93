//! One attempt to deliver one message: over HTTP or SMTP, with a deadline, and with an answer of which little is read.

mod alerts;
mod mail;
mod webhook;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use firmesh_protocol::time::WallTime;
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{self, HeaderName, HeaderValue},
    redirect,
};

use super::{
    config::{Http, Target},
    course::Outcome,
    notice::Message,
    secret::SecretError,
    template::{self, TemplateError},
};
use crate::{
    ceremony::{ReadFileError, read_bounded},
    telemetry::chain,
};

pub(super) use webhook::{signatures, webhook_key};

/// An attempt takes no longer: what hangs is tried again later.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);

/// What is read of an answer that is no success: enough for a line in the log.
const ANSWER_BYTES_MAX: usize = 1 << 10;

/// A CA file has a few certificates.
const CA_BYTES_MAX: u64 = 1 << 20;

/// Why there is no sender, or no message to send.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("ca_file")]
    CaFile(#[from] ReadFileError),
    #[error("ca_file {} has no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("no HTTP client can be made")]
    Client(#[source] reqwest::Error),
    #[error("no connection to the mail server can be prepared")]
    Mail(#[from] lettre::transport::smtp::Error),
    #[error("a secret is missing")]
    Secret(#[from] SecretError),
    #[error(
        "a webhook's secret is `whsec_` and the Base64 of 24 to 64 random bytes, such as `echo whsec_$(openssl rand -base64 32)` makes"
    )]
    WebhookSecret,
    #[error("a secret cannot stand in a header")]
    Header(#[from] header::InvalidHeaderValue),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("the mail cannot be written")]
    Compose(#[from] lettre::error::Error),
}

impl SendError {
    /// A secret can be put back; a message that cannot be written never can.
    fn outcome(&self) -> Outcome {
        let why = chain(self);
        match self {
            Self::Template(_) | Self::Compose(_) => Outcome::Refused(why),
            _ => Outcome::failed(why),
        }
    }
}

/// What delivers to one destination.
#[derive(Debug)]
pub(crate) struct Sender {
    to: Target,
    client: Option<Client>,
}

impl Sender {
    pub(crate) fn new(to: &Target) -> Result<Self, SendError> {
        let client = match to {
            Target::Webhook { http, .. } | Target::Pagerduty { http, .. } | Target::Opsgenie { http, .. } => {
                Some(client(http)?)
            }
            Target::Rest(rest) => Some(client(&rest.http)?),
            Target::Email(mail) => {
                mail::check(mail)?;
                None
            }
        };
        Ok(Self { to: to.clone(), client })
    }

    /// Tries once. Dropping it gives the attempt up; the receiver may have got the message then, and gets it again under the
    /// same id.
    pub(crate) async fn attempt(&self, message: &Message, now: WallTime) -> Outcome {
        let sent = tokio::time::timeout(2 * ATTEMPT_MAX, async {
            match &self.to {
                Target::Email(mail) => mail::send(mail, message).await,
                _ => self.request(message, now).await,
            }
        });
        match sent.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => error.outcome(),
            Err(_) => Outcome::failed(format!("no end after {} s", 2 * ATTEMPT_MAX.as_secs())),
        }
    }

    async fn request(&self, message: &Message, now: WallTime) -> Result<Outcome, SendError> {
        let Some(client) = &self.client else {
            return Ok(Outcome::failed("there is no HTTP client for a mail server"));
        };
        match &self.to {
            Target::Webhook { http, secrets } => {
                let request = webhook::dress(client.post(http.url.clone()), message, now, secrets)?;
                Ok(exchange(request, now).await)
            }
            Target::Pagerduty { http, routing_key } => alerts::pagerduty(client, http, routing_key, message, now).await,
            Target::Opsgenie { http, api_key } => alerts::opsgenie(client, http, api_key, message, now).await,
            Target::Rest(rest) => {
                let mut request = client.request(rest.method.clone(), rest.http.url.clone());
                for (name, text) in &rest.headers {
                    request = request.header(name, text);
                }
                for (name, secret) in &rest.secret_headers {
                    request = request.header(name, hidden(&secret.read()?)?);
                }
                // For receivers that know a message again by it.
                request = request.header(HeaderName::from_static("idempotency-key"), message.id.as_str());
                let body = template::render(&rest.body, rest.escape, message)?;
                Ok(exchange(request.body(body), now).await)
            }
            Target::Email(_) => Ok(Outcome::failed("a mail server is not spoken to over HTTP")),
        }
    }
}

pub(super) fn client(http: &Http) -> Result<Client, SendError> {
    // Fails only if somebody installed one before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .timeout(ATTEMPT_MAX)
        .connect_timeout(ATTEMPT_MAX / 3)
        .user_agent(concat!("firmesh-coordinator/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &http.ca_file {
        let certificates = reqwest::Certificate::from_pem_bundle(&authorities(path)?).map_err(SendError::Client)?;
        builder = builder.tls_certs_only(certificates);
    } else if http.url.scheme() == "http" {
        // Without TLS there is nothing to verify: do not depend on the system's certificates, nor on a proxy for loopback.
        builder = builder.tls_certs_only([]).no_proxy();
    }
    builder.build().map_err(SendError::Client)
}

/// Sends a request and judges the answer.
async fn exchange(request: RequestBuilder, now: WallTime) -> Outcome {
    match request.send().await {
        // Its address may hold a secret.
        Err(error) => Outcome::failed(chain(&error.without_url())),
        Ok(answer) => judge(answer, now).await,
    }
}

async fn judge(answer: Response, now: WallTime) -> Outcome {
    let status = answer.status();
    if status.is_success() {
        return Outcome::Delivered;
    }
    let retry_after = answer
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| wait_of(value.to_str().ok()?, now));
    let mut why = format!("the receiver answered {status}");
    if status.is_redirection() {
        why += "; redirections are not followed, name the final address";
    }
    let said = beginning(answer).await;
    if !said.is_empty() {
        why += &format!(": {said}");
    }
    let later = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    match status.is_client_error() && !later.contains(&status) {
        true => Outcome::Refused(why),
        false => Outcome::Failed { why, retry_after },
    }
}

/// The first line or so of an answer, however long it is.
async fn beginning(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX {
        match answer.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk[..chunk.len().min(ANSWER_BYTES_MAX - bytes.len())]),
            // What broke off is as good as its end: the status counts.
            Ok(None) | Err(_) => break,
        }
    }
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    String::from_utf8_lossy(&bytes)
        .chars()
        .map(printable)
        .take(200)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// `Retry-After`: seconds, or a date.
fn wait_of(text: &str, now: WallTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp().as_second();
    let left = at.saturating_sub(now.unix_seconds()).max(0);
    Some(Duration::from_secs(left.cast_unsigned()))
}

fn hidden(secret: &str) -> Result<HeaderValue, header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(secret)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The certificates in a CA file (PEM), one at least.
fn authorities(path: &Path) -> Result<Vec<u8>, SendError> {
    let pem = read_bounded(path, CA_BYTES_MAX)?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).is_ok_and(|found| !found.is_empty());
    match found {
        true => Ok(pem),
        false => Err(SendError::NoCertificate { path: path.to_owned() }),
    }
}

/// An address below another.
fn below(url: &Url, segments: &[&str]) -> Url {
    let mut url = url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// A JSON request.
fn post(client: &Client, url: Url, body: &serde_json::Value) -> RequestBuilder {
    client.request(Method::POST, url).json(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_names_seconds_or_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT is RFC 9110's own example.
        let now = WallTime::from_unix_seconds(784_111_777 - 90);
        assert_eq!(wait_of("120", now), Some(Duration::from_secs(120)));
        assert_eq!(
            wait_of("Sun, 06 Nov 1994 08:49:37 GMT", now),
            Some(Duration::from_secs(90))
        );
        assert_eq!(
            wait_of("Sun, 06 Nov 1994 08:49:37 GMT", now + Duration::from_secs(500)),
            Some(Duration::ZERO)
        );
        for nonsense in ["", "soon", "-5", "1e9"] {
            assert_eq!(wait_of(nonsense, now), None, "{nonsense}");
        }
    }

    #[test]
    fn an_alias_with_a_slash_stays_one_segment() {
        let url = Url::parse("https://api.opsgenie.com/v2/alerts").unwrap();
        let close = below(&url, &["campaigns/a b", "close"]);
        assert_eq!(
            close.as_str(),
            "https://api.opsgenie.com/v2/alerts/campaigns%2Fa%20b/close"
        );
    }
}
