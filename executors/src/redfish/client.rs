//! HTTPS to one BMC: sessions, bounded bodies, bounded times, and links that never leave the BMC.

use std::{sync::Arc, time::Duration};

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header, multipart::Form, redirect};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::wire;
use crate::config::RedfishSettings;

/// The largest answer read: inventories of big chassis stay below 1 MiB.
const BODY_BYTES_MAX: usize = 4 << 20;
/// BMC processors take seconds for a TLS handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The slowest sane answer to a small request.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// Why a BMC could not be asked, or did not answer properly.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA file has no certificate that can be used.
    #[error("ca_file has no usable certificate: {0}")]
    BadCa(String),
    /// The HTTPS client could not be set up.
    #[error("the HTTPS client could not be set up")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No connection, no answer, or a broken one.
    #[error("{operation}: no answer from {url}")]
    NoAnswer {
        /// What was tried.
        operation: &'static str,
        /// Where.
        url: Url,
        /// What the HTTP client says.
        source: reqwest::Error,
    },
    /// An answer that says no.
    #[error("{operation}: {url} answered {status} {words}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Where.
        url: Url,
        /// The HTTP status.
        status: u16,
        /// The BMC's own words.
        words: String,
    },
    /// The account or its password is wrong.
    #[error("{operation}: {url} refuses the user name or the password")]
    Credentials {
        /// What was tried.
        operation: &'static str,
        /// Where.
        url: Url,
    },
    /// An answer beyond the bound.
    #[error("{operation}: {url} answered with more than {BODY_BYTES_MAX} bytes")]
    TooLong {
        /// What was tried.
        operation: &'static str,
        /// Where.
        url: Url,
    },
    /// An answer that is not the resource it should be.
    #[error("{operation}: {url} answered with something else than the resource expected")]
    Malformed {
        /// What was tried.
        operation: &'static str,
        /// Where.
        url: Url,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A link to another host: it would be given our password.
    #[error("{operation}: the link {link:?} leads away from the BMC")]
    ForeignLink {
        /// What was tried.
        operation: &'static str,
        /// The link.
        link: String,
    },
    /// The BMC does not offer what is needed.
    #[error("{operation}: the BMC at {url} offers no {what}")]
    NotOffered {
        /// What was tried.
        operation: &'static str,
        /// Where.
        url: Url,
        /// What is missing.
        what: String,
    },
}

impl ClientError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn retry(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 409 | 423 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    pub(super) fn is_status(&self, any_of: &[u16]) -> bool {
        matches!(self, Self::Refused { status, .. } if any_of.contains(status))
    }
}

/// One BMC.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    settings: RedfishSettings,
    login: Mutex<Login>,
}

#[derive(Debug, Clone)]
enum Login {
    None,
    Session { token: String, location: Option<String> },
    Basic,
}

/// An answer with its body read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) location: Option<String>,
    pub(super) body: Vec<u8>,
    url: Url,
}

impl Answer {
    pub(super) fn json<T: DeserializeOwned>(&self, operation: &'static str) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|source| ClientError::Malformed {
            operation,
            url: self.url.clone(),
            source,
        })
    }
}

impl Client {
    pub(super) fn new(settings: RedfishSettings) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(&settings)?)
            .connect_timeout(CONNECT_LIMIT)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Setup(error.into()))?;
        Ok(Self {
            http,
            settings,
            login: Mutex::new(Login::None),
        })
    }

    pub(super) fn settings(&self) -> &RedfishSettings {
        &self.settings
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, operation: &'static str, link: &str) -> Result<T, ClientError> {
        self.get_raw(operation, link).await?.json(operation)
    }

    pub(super) async fn get_raw(&self, operation: &'static str, link: &str) -> Result<Answer, ClientError> {
        self.send(operation, Method::GET, link, |request| request.timeout(REQUEST_LIMIT))
            .await
    }

    pub(super) async fn post(&self, operation: &'static str, link: &str, body: &Value) -> Result<Answer, ClientError> {
        self.send(operation, Method::POST, link, |request| {
            request.timeout(REQUEST_LIMIT).json(body)
        })
        .await
    }

    pub(super) async fn delete(&self, operation: &'static str, link: &str) -> Result<Answer, ClientError> {
        self.send(operation, Method::DELETE, link, |request| {
            request.timeout(REQUEST_LIMIT)
        })
        .await
    }

    /// Uploads once: a stream cannot be sent again. The login is refreshed before, and the caller bounds the time.
    pub(super) async fn upload(&self, operation: &'static str, link: &str, form: Form) -> Result<Answer, ClientError> {
        self.get_raw(operation, "/redfish/v1/UpdateService").await?;
        let url = self.resolve(operation, link)?;
        let login = self.login(operation).await?;
        let request = self.authorise(self.http.post(url.clone()), &login).multipart(form);
        let response = request
            .send()
            .await
            .map_err(|source| no_answer(operation, &url, source))?;
        accept(operation, read(operation, url, response).await?)
    }

    /// Ends the session, if there is one.
    pub(super) async fn close(&self) {
        let login = std::mem::replace(&mut *self.login.lock().await, Login::None);
        let Login::Session {
            location: Some(location),
            ..
        } = &login
        else {
            return;
        };
        let Ok(url) = self.resolve("end the session", location) else {
            return;
        };
        let request = self.authorise(self.http.delete(url), &login).timeout(REQUEST_LIMIT);
        if let Err(error) = request.send().await {
            tracing::debug!(%error, "a Redfish session was left to expire");
        }
    }

    async fn send(
        &self,
        operation: &'static str,
        method: Method,
        link: &str,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, ClientError> {
        let url = self.resolve(operation, link)?;
        let mut fresh = false;
        loop {
            let login = self.login(operation).await?;
            let request = finish(self.authorise(self.http.request(method.clone(), url.clone()), &login));
            let response = request
                .send()
                .await
                .map_err(|source| no_answer(operation, &url, source))?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return accept(operation, read(operation, url, response).await?);
            }
            // The session has expired, or the BMC forgot it in a restart.
            self.forget(&login).await;
            if fresh || matches!(login, Login::Basic) {
                return Err(ClientError::Credentials { operation, url });
            }
            fresh = true;
        }
    }

    async fn forget(&self, stale: &Login) {
        let mut current = self.login.lock().await;
        let same = match (&*current, stale) {
            (Login::Session { token: a, .. }, Login::Session { token: b, .. }) => a == b,
            (Login::Basic, Login::Basic) => true,
            _ => false,
        };
        if same {
            *current = Login::None;
        }
    }

    async fn login(&self, operation: &'static str) -> Result<Login, ClientError> {
        let mut login = self.login.lock().await;
        if matches!(*login, Login::None) {
            *login = self.open_session(operation).await?;
        }
        Ok(login.clone())
    }

    async fn open_session(&self, operation: &'static str) -> Result<Login, ClientError> {
        let url = self.resolve(operation, "/redfish/v1/SessionService/Sessions")?;
        let body = json!({ "UserName": self.settings.username, "Password": self.settings.password.expose() });
        let request = self.http.post(url.clone()).timeout(REQUEST_LIMIT).json(&body);
        let response = request
            .send()
            .await
            .map_err(|source| no_answer(operation, &url, source))?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let (status, token, location) = (response.status(), header("x-auth-token"), header("location"));
        match (status.as_u16(), token) {
            (200..=299, Some(token)) => Ok(Login::Session { token, location }),
            (401 | 403, _) => Err(ClientError::Credentials { operation, url }),
            // Busy, not broken.
            (status @ (429 | 502..=504), _) => {
                let words = "when a session was opened".to_owned();
                Err(ClientError::Refused {
                    operation,
                    url,
                    status,
                    words,
                })
            }
            // No session service, or a broken one: the specification demands Basic everywhere.
            _ => Ok(Login::Basic),
        }
    }

    fn authorise(&self, request: RequestBuilder, login: &Login) -> RequestBuilder {
        match login {
            Login::None => request,
            Login::Session { token, .. } => request.header("X-Auth-Token", token),
            Login::Basic => request.basic_auth(&self.settings.username, Some(self.settings.password.expose())),
        }
    }

    fn resolve(&self, operation: &'static str, link: &str) -> Result<Url, ClientError> {
        let root = &self.settings.url;
        match root.join(link) {
            Ok(url) if url.origin() == root.origin() => Ok(url),
            _ => Err(ClientError::ForeignLink {
                operation,
                link: link.chars().take(200).collect(),
            }),
        }
    }
}

fn no_answer(operation: &'static str, url: &Url, source: reqwest::Error) -> ClientError {
    ClientError::NoAnswer {
        operation,
        url: url.clone(),
        source: source.without_url(),
    }
}

async fn read(operation: &'static str, url: Url, mut response: Response) -> Result<Answer, ClientError> {
    let status = response.status();
    let location = response
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|source| no_answer(operation, &url, source))?
    {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(ClientError::TooLong { operation, url });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status,
        location,
        body,
        url,
    })
}

fn accept(operation: &'static str, answer: Answer) -> Result<Answer, ClientError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let words = wire::error_text(&answer.body);
    Err(ClientError::Refused {
        operation,
        url: answer.url,
        status: answer.status.as_u16(),
        words,
    })
}

fn tls(settings: &RedfishSettings) -> Result<rustls::ClientConfig, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&settings.ca_pem) {
        let certificate = certificate.map_err(|error| ClientError::BadCa(format!("{error:?}")))?;
        roots
            .add(certificate)
            .map_err(|error| ClientError::BadCa(error.to_string()))?;
    }
    if roots.is_empty() && settings.url.scheme() == "https" {
        return Err(ClientError::BadCa("it is empty".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Setup(error.into()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The name of the task an accepted request started, if it did.
pub(super) fn started_task(answer: &Answer) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "@odata.id")]
        id: String,
    }
    let named = serde_json::from_slice::<Named>(&answer.body).ok().map(|named| named.id);
    named
        .filter(|id| id.contains("/Tasks/"))
        .or_else(|| answer.location.clone())
}
