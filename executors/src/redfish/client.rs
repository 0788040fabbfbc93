//! HTTPS to one BMC: sessions, bounded bodies, bounded times, and links that never leave the BMC.

use std::{sync::Arc, time::Duration};

use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url, header, multipart::Form, redirect};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{
    transcript::{Asked, NotRecorded, Recorder, Redaction, Replay},
    wire::{self, Said},
};
use crate::{backend::chain, config::RedfishSettings};

/// The largest answer read: inventories of big chassis stay below 1 MiB.
const BODY_BYTES_MAX: usize = 4 << 20;
/// BMC processors take seconds for a TLS handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The slowest sane answer to a small request.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// How often a question is asked that fails at times, and how long after.
const ASKED_MAX: u32 = 3;
const FAILED_PAUSE: Duration = Duration::from_millis(200);
/// The longest that a service is waited for within a look: a look is over after 20 s.
const SETTLES_MAX: Duration = Duration::from_secs(5);

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
        /// Its messages, by the names that its registries give them.
        ids: Vec<String>,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
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
    /// A transcript's BMC that did not answer then either.
    #[error("{operation}: no answer from {url}: {words}")]
    NoAnswerThen {
        /// What was tried.
        operation: &'static str,
        /// Where.
        url: Url,
        /// What was kept of the reason.
        words: String,
    },
    /// A question that the transcript's BMC was not asked.
    #[error("{operation}")]
    NotRecorded {
        /// What was tried.
        operation: &'static str,
        /// What was asked, and what was asked then.
        source: NotRecorded,
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
            Self::NoAnswer { .. } | Self::NoAnswerThen { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 409 | 423 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// What the BMC's messages are called, and how long it asks to be left alone.
    pub(super) fn said(&self) -> (&[String], Option<Duration>) {
        match self {
            Self::Refused { ids, retry_after, .. } => (ids, *retry_after),
            _ => (&[], None),
        }
    }

    /// How long to wait before the same question is worth asking again within one look.
    fn pause(&self) -> Option<Duration> {
        match self {
            Self::Refused { status: 500, .. } => Some(FAILED_PAUSE),
            Self::Refused {
                status: 429 | 503,
                retry_after: Some(asked),
                ..
            } => Some(*asked).filter(|asked| *asked <= SETTLES_MAX),
            _ => None,
        }
    }

    pub(super) fn is_status(&self, any_of: &[u16]) -> bool {
        matches!(self, Self::Refused { status, .. } if any_of.contains(status))
    }
}

/// Where sessions are opened, by the specification.
const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";

/// One BMC.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    settings: RedfishSettings,
    login: Mutex<Login>,
    recorder: Option<Recorder>,
    /// What answers in the BMC's place, in a test.
    replay: Option<Replay>,
    redaction: Redaction,
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
    pub(super) retry_after: Option<Duration>,
    /// The key of a session that was opened.
    pub(super) token: Option<String>,
    pub(super) body: Vec<u8>,
    pub(super) url: Url,
}

/// What is uploaded.
#[derive(Debug)]
pub(super) enum Upload {
    /// The image itself, with its length.
    Raw(Body, u64),
    /// A form, with what a transcript keeps of it.
    Form(Form, Vec<Value>),
}

/// A session, for those who want its key within a form.
pub(super) struct Session {
    pub(super) key: String,
    /// Whether it was opened for this alone, and where it is ended.
    own: Option<Option<String>>,
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
            .tls_info(true)
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Setup(error.into()))?;
        let redaction = Redaction::new(&settings.username, settings.password.expose());
        Ok(Self {
            http,
            recorder: settings.transcript.clone().map(Recorder::new),
            settings,
            login: Mutex::new(Login::None),
            replay: None,
            redaction,
        })
    }

    /// A client that a transcript answers.
    pub(super) fn replaying(settings: RedfishSettings, replay: Replay) -> Result<Self, ClientError> {
        let mut client = Self::new(settings)?;
        client.replay = Some(replay);
        Ok(client)
    }

    /// What records the exchanges, if they are recorded.
    pub(super) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    pub(super) fn orders(&self) -> Option<(usize, usize)> {
        self.replay.as_ref().map(Replay::orders)
    }

    /// Sends one request and reads its answer: what all requests go through.
    async fn exchange(
        &self,
        operation: &'static str,
        url: &Url,
        request: RequestBuilder,
        parts: Option<Value>,
    ) -> Result<Answer, ClientError> {
        let request = request.build().map_err(|error| ClientError::Setup(error.into()))?;
        let is_kept = self.recorder.is_some() || self.replay.is_some();
        let asked = is_kept.then(|| Asked::of(&request, parts, &self.redaction));
        let answer = match (&self.replay, &asked) {
            (Some(replay), Some(asked)) => replay.answer(operation, url, asked),
            _ => match self.http.execute(request).await {
                Ok(response) => read(operation, url.clone(), response).await,
                Err(source) => Err(no_answer(operation, url, source)),
            },
        };
        if let (Some(recorder), Some(asked)) = (&self.recorder, asked) {
            if let Some(token) = answer.as_ref().ok().and_then(|answer| answer.token.as_ref()) {
                self.redaction.add(token);
            }
            let failed = |error: &ClientError| self.redaction.text(&chain(error));
            recorder.keep(asked, answer.as_ref().map_err(failed), &self.redaction);
        }
        answer
    }

    /// The certificate that the BMC shows, in DER; nothing over plain HTTP, and from a transcript.
    pub(super) async fn certificate(&self) -> Result<Option<Vec<u8>>, ClientError> {
        let operation = "look at the certificate";
        if self.replay.is_some() {
            return Ok(None);
        }
        let url = self.resolve(operation, "/redfish/v1/")?;
        let response = self.http.get(url.clone()).timeout(REQUEST_LIMIT).send().await;
        let response = response.map_err(|source| no_answer(operation, &url, source))?;
        let shown = response.extensions().get::<reqwest::tls::TlsInfo>();
        Ok(shown.and_then(|shown| shown.peer_certificate()).map(<[u8]>::to_vec))
    }

    /// Whether requests go with a session, rather than with the account in each of them.
    pub(super) async fn has_session(&self) -> bool {
        matches!(*self.login.lock().await, Login::Session { .. })
    }

    pub(super) fn settings(&self) -> &RedfishSettings {
        &self.settings
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, operation: &'static str, link: &str) -> Result<T, ClientError> {
        self.get_raw(operation, link).await?.json(operation)
    }

    /// Asks again where asking does no harm: some services fail at times, others ask for a moment while they settle.
    pub(super) async fn get_raw(&self, operation: &'static str, link: &str) -> Result<Answer, ClientError> {
        let mut asked = 1;
        loop {
            let answer = self
                .send(operation, Method::GET, link, |request| request.timeout(REQUEST_LIMIT))
                .await;
            let pause = match &answer {
                Err(error) if asked < ASKED_MAX => error.pause(),
                _ => None,
            };
            let Some(pause) = pause else { return answer };
            tokio::time::sleep(pause).await;
            asked += 1;
        }
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

    pub(super) async fn patch(&self, operation: &'static str, link: &str, body: &Value) -> Result<Answer, ClientError> {
        self.patch_as(operation, link, None, body).await
    }

    /// Changes a resource as it was seen: some BMCs take no other change.
    pub(super) async fn patch_as(
        &self,
        operation: &'static str,
        link: &str,
        seen: Option<&str>,
        body: &Value,
    ) -> Result<Answer, ClientError> {
        self.send(operation, Method::PATCH, link, |request| {
            let request = request.timeout(REQUEST_LIMIT).json(body);
            match seen {
                Some(tag) => request.header(header::IF_MATCH, tag),
                None => request,
            }
        })
        .await
    }

    /// Uploads once: a stream cannot be sent again. The caller has just been let in, and bounds the time.
    pub(super) async fn upload(
        &self,
        operation: &'static str,
        link: &str,
        upload: Upload,
        session: Option<(&Session, Option<&str>)>,
    ) -> Result<Answer, ClientError> {
        let url = self.resolve(operation, link)?;
        let request = self.http.post(url.clone());
        let request = match session {
            None => self.authorise(request, &self.login(operation).await?),
            Some((session, cookie)) => {
                let request = request.header("X-Auth-Token", &session.key);
                match cookie {
                    Some(name) => request.header(header::COOKIE, format!("{name}={}", session.key)),
                    None => request,
                }
            }
        };
        let (request, parts) = match upload {
            Upload::Form(form, parts) => (request.multipart(form), json!({ "form": parts })),
            Upload::Raw(body, length) => {
                let request = request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, length)
                    .body(body);
                (request, json!({ "image_bytes": length }))
            }
        };
        accept(operation, self.exchange(operation, &url, request, Some(parts)).await?)
    }

    /// A session, also from services that want the account twice when one is opened.
    pub(super) async fn session(&self, operation: &'static str) -> Result<Session, ClientError> {
        if let Login::Session { token, .. } = self.login(operation).await? {
            return Ok(Session { key: token, own: None });
        }
        let url = self.resolve(operation, SESSIONS)?;
        let request = self.http.post(url.clone()).timeout(REQUEST_LIMIT).json(&self.account());
        let request = self.authorise(request, &Login::Basic);
        let answer = accept(operation, self.exchange(operation, &url, request, None).await?)?;
        let token = answer.token.clone();
        let what = "session, though its form needs the key of one".to_owned();
        let key = token.ok_or(ClientError::NotOffered { operation, url, what })?;
        let own = Some(answer.location.clone().or_else(|| named(&answer)));
        Ok(Session { key, own })
    }

    /// Ends a session that was opened for an upload.
    pub(super) async fn end(&self, session: Session) {
        let Some(Some(location)) = session.own else { return };
        self.end_session(&session.key, &location).await;
    }

    /// Ends the session, if there is one.
    pub(super) async fn close(&self) {
        let login = std::mem::replace(&mut *self.login.lock().await, Login::None);
        if let Login::Session {
            token,
            location: Some(location),
        } = &login
        {
            self.end_session(token, location).await;
        }
    }

    async fn end_session(&self, token: &str, location: &str) {
        let Ok(url) = self.resolve("end the session", &self.path_of(location)) else {
            return;
        };
        let request = self.http.delete(url.clone()).header("X-Auth-Token", token);
        let request = request.timeout(REQUEST_LIMIT);
        if let Err(error) = self.exchange("end the session", &url, request, None).await {
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
            let answer = self.exchange(operation, &url, request, None).await?;
            if answer.status != StatusCode::UNAUTHORIZED {
                return accept(operation, answer);
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
        let url = self.resolve(operation, SESSIONS)?;
        let request = self.http.post(url.clone()).timeout(REQUEST_LIMIT).json(&self.account());
        let answer = self.exchange(operation, &url, request, None).await?;
        let (token, location) = (answer.token.clone(), answer.location.clone());
        let is_full = || {
            let said = wire::said(&answer.body);
            said.ids.iter().any(|id| id.ends_with("SessionLimitExceeded"))
        };
        match (answer.status.as_u16(), token) {
            (200..=299, Some(token)) => Ok(Login::Session { token, location }),
            // Others hold all sessions.
            _ if is_full() => Ok(Login::Basic),
            (401 | 403, _) => Err(ClientError::Credentials {
                operation,
                url: answer.url,
            }),
            // No session service, or a busy or broken one: Basic needs none, and the specification demands it everywhere.
            _ => Ok(Login::Basic),
        }
    }

    fn account(&self) -> Value {
        json!({ "UserName": self.settings.username, "Password": self.settings.password.expose() })
    }

    fn authorise(&self, request: RequestBuilder, login: &Login) -> RequestBuilder {
        match login {
            Login::None => request,
            Login::Session { token, .. } => request.header("X-Auth-Token", token),
            Login::Basic => request.basic_auth(&self.settings.username, Some(self.settings.password.expose())),
        }
    }

    /// A link to a task or a session, as a path on this BMC: behind a proxy, some name themselves otherwise.
    pub(super) fn path_of(&self, link: &str) -> String {
        match self.settings.url.join(link) {
            Ok(url) if url.origin() != self.settings.url.origin() => match url.query() {
                Some(query) => format!("{}?{query}", url.path()),
                None => url.path().to_owned(),
            },
            _ => link.to_owned(),
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

fn text_of(response: &Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?.to_str().ok()?;
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

async fn read(operation: &'static str, url: Url, mut response: Response) -> Result<Answer, ClientError> {
    let status = response.status();
    let location = text_of(&response, header::LOCATION.as_str());
    // A date instead of seconds is as good as nothing: the clocks of BMCs are wrong.
    let retry_after = text_of(&response, header::RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
    let token = text_of(&response, "x-auth-token");
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
        retry_after: retry_after.map(Duration::from_secs),
        token,
        body,
        url,
    })
}

fn accept(operation: &'static str, answer: Answer) -> Result<Answer, ClientError> {
    if answer.status.is_success() {
        Ok(answer)
    } else {
        Err(refused(operation, answer))
    }
}

fn refused(operation: &'static str, answer: Answer) -> ClientError {
    let Said { words, ids } = wire::said(&answer.body);
    ClientError::Refused {
        operation,
        url: answer.url,
        status: answer.status.as_u16(),
        words,
        ids,
        retry_after: answer.retry_after,
    }
}

/// The cryptography of all connections to BMCs.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
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
    let provider = provider();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Setup(error.into()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The `@odata.id` of what was answered.
fn named(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    Some(body.get("@odata.id")?.as_str()?.to_owned())
}

/// Longer names of tasks are not kept.
const TASK_BYTES_MAX: usize = 512;

impl Client {
    /// The name of the task an accepted request started, if it did: the task itself, else its monitor, else where this dialect
    /// puts it.
    pub(super) fn started_task(&self, answer: &Answer, elsewhere: &[String]) -> Option<String> {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let at = |pointer: &String| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let task = named(answer).filter(|id| id.contains("/Tasks/"));
        let monitor = || body.get("TaskMonitor").and_then(Value::as_str).map(str::to_owned);
        let task = task
            .or_else(|| answer.location.clone())
            .or_else(|| elsewhere.iter().find_map(at))
            .or_else(monitor)?;
        Some(self.path_of(&task)).filter(|task| !task.is_empty() && task.len() <= TASK_BYTES_MAX)
    }
}
