//! HTTP towards the S3 server over the client that the rest of the coordinator uses: no redirections, no proxy for loopback,
//! and access keys that are read anew for every request.

use std::{error::Error as _, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use http_body_util::BodyExt as _;
use object_store::{
    ClientOptions,
    aws::AwsCredential,
    client::{
        CredentialProvider, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
};
use reqwest::{Body, Client, redirect};

use super::config::Keys;
use crate::ceremony::read_bounded;

/// A server that takes no connection by then is away.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A server that sends nothing for so long is away.
const SILENT_MAX: Duration = Duration::from_secs(30);

const CA_BYTES_MAX: u64 = 1 << 20;

/// Makes the client.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) is_plain: bool,
    pub(super) ca_file: Option<PathBuf>,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "S3", source };
        // Fails only if somebody installed one before, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_WITHIN)
            .read_timeout(SILENT_MAX)
            .user_agent(concat!("firmesh-coordinator/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &self.ca_file {
            let pem = read_bounded(path, CA_BYTES_MAX).map_err(|error| failed(error.into()))?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?;
            builder = builder.tls_certs_only(certificates);
        } else if self.is_plain {
            // Without TLS there is nothing to verify.
            builder = builder.tls_certs_only([]).no_proxy();
        }
        let client = builder.build().map_err(|error| failed(error.into()))?;
        Ok(HttpClient::new(Service(client)))
    }
}

#[derive(Debug)]
struct Service(Client);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse::<reqwest::Url>();
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(Body::wrap(body));
        let answer = self.0.execute(request).await.map_err(failure)?;
        let (parts, body) = axum::http::Response::<Body>::from(answer).into_parts();
        Ok(HttpResponse::from_parts(
            parts,
            HttpResponseBody::new(body.map_err(failure)),
        ))
    }
}

/// What it was decides whether it is tried again. Addresses are left out: they are told with the object's name.
fn failure(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    let kind = match &error {
        error if error.is_timeout() => HttpErrorKind::Timeout,
        error if error.is_connect() => HttpErrorKind::Connect,
        error if error.is_decode() => HttpErrorKind::Decode,
        error if is_broken_off(error) => HttpErrorKind::Interrupted,
        error if error.is_request() => HttpErrorKind::Request,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}

fn is_broken_off(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            );
        }
        source = cause.source();
    }
    false
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let read = |secret: &crate::notify::Secret| -> object_store::Result<String> {
            let text = secret.read().map_err(|error| object_store::Error::Generic {
                store: "S3",
                source: error.into(),
            })?;
            Ok(text.as_str().to_owned())
        };
        Ok(Arc::new(AwsCredential {
            key_id: read(&self.id)?,
            secret_key: read(&self.key)?,
            token: self.token.as_ref().map(read).transpose()?,
        }))
    }
}
