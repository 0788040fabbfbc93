//! Where devices ask that fetch their updates themselves: hawkBit's Direct Device Integration, as far as devices use it.
//!
//! Invariants: nobody who is not let in learns more than that; a device sees its own action and its own image, and nothing
//! else; every byte of an image is checked against its root on its way out. What a device may do is bounded: how often it
//! asks, how much at a time, and how long its bodies are.

mod config;
mod gate;

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use axum_server::tls_rustls::RustlsConfig;
use firmesh_executors::ddi::{ActionError, AnswerError, BODY_BYTES_MAX, ConfigData, Device, Feedback};
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::{
    images::Images,
    places::{CONNECTIONS_MAX, Places},
};

pub use config::{DdiConfig, DdiError, DdiSettings, Transport};
use gate::{Entered, Gate};

/// A device on a slow line sends a body of a few KiB; who takes longer does something else.
const BODY_WITHIN: Duration = Duration::from_secs(20);

/// The face of this node towards devices that ask.
#[derive(Debug)]
pub struct Face {
    gate: Gate,
    images: Images,
    base_url: String,
    is_tls: bool,
}

/// The face cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("ddi.listen: cannot listen on {listen}; is another node running there?")]
pub struct ListenError {
    listen: SocketAddr,
    source: io::Error,
}

impl Face {
    /// Opens the listener.
    pub fn listen(
        settings: &DdiSettings,
        devices: impl IntoIterator<Item = Arc<Device>>,
        images: Images,
    ) -> Result<(Self, std::net::TcpListener), ListenError> {
        let listen = settings.listen;
        let failed = |source| ListenError { listen, source };
        let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let is_tls = settings.transport == Transport::Https;
        let scheme = if is_tls { "https" } else { "http" };
        let base_url = match &settings.advertise_host {
            Some(host) => format!("{scheme}://{host}:{}", addr.port()),
            None => format!("{scheme}://{addr}"),
        };
        let named = devices
            .into_iter()
            .map(|device| (device.controller_id().to_owned(), device));
        let devices: BTreeMap<_, _> = named.collect();
        let face = Self {
            gate: Gate::new(settings.tenant.clone(), settings.gateway_token.clone(), devices),
            images,
            base_url,
            is_tls,
        };
        Ok((face, listener))
    }

    /// What devices are given as their server.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Serves until `cancel`.
    pub async fn serve(self, listener: std::net::TcpListener, tls: rustls::ServerConfig, cancel: CancellationToken) {
        let handle = axum_server::Handle::new();
        let stopping = handle.clone();
        let stop = async move {
            cancel.cancelled().await;
            stopping.graceful_shutdown(Some(Duration::from_millis(500)));
        };
        let is_tls = self.is_tls;
        let service = router(Arc::new(self)).into_make_service();
        let serve = async move {
            if is_tls {
                let tls = RustlsConfig::from_config(Arc::new(tls));
                let server = axum_server::from_tcp_rustls(listener, tls)?;
                let server = server.map(|acceptor| Places::before(acceptor, CONNECTIONS_MAX));
                server.handle(handle).serve(service).await
            } else {
                let server = axum_server::from_tcp(listener)?;
                let server = server.map(|acceptor| Places::before(acceptor, CONNECTIONS_MAX));
                server.handle(handle).serve(service).await
            }
        };
        let (served, ()) = tokio::join!(serve, stop);
        if let Err(error) = served {
            tracing::error!(%error, "devices are not answered any more");
        }
    }
}

fn router(face: Arc<Face>) -> Router {
    let at = |path: &str| format!("/{{tenant}}/controller/v1/{{controller}}{path}");
    Router::new()
        .route(&at(""), get(controller_base))
        .route(&at("/configData"), put(config_data))
        .route(&at("/deploymentBase/{action}"), get(deployment_base))
        .route(&at("/deploymentBase/{action}/feedback"), post(feedback))
        .route(&at("/cancelAction/{action}"), get(cancel_action))
        .route(&at("/cancelAction/{action}/feedback"), post(cancel_feedback))
        .route(&at("/installedBase/{action}"), get(installed_base))
        .route(&at("/softwaremodules/{action}/artifacts/{file}"), get(artifact))
        .with_state(face)
}

/// The parts of a path that follow who asks.
type Named = Path<BTreeMap<String, String>>;

/// Why a request is not answered with what was asked for.
enum Refused {
    Answer(AnswerError),
    /// A path that names nothing.
    NotFound,
    TooSlow,
    TooLong,
}

impl From<AnswerError> for Refused {
    fn from(error: AnswerError) -> Self {
        Self::Answer(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Answer(AnswerError::Action(ActionError::Unknown)) | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Answer(AnswerError::Action(ActionError::Over)) => StatusCode::GONE,
            Self::Answer(AnswerError::Body(_)) => StatusCode::BAD_REQUEST,
            Self::Answer(AnswerError::Journal(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        };
        match self {
            Self::Answer(error) => {
                if status.is_server_error() {
                    tracing::error!(error = &error as &dyn std::error::Error, "a device's word was not kept");
                }
                (status, format!("{error}\n")).into_response()
            }
            Self::NotFound | Self::TooSlow | Self::TooLong => status.into_response(),
        }
    }
}

fn action(path: &Named) -> Result<u32, Refused> {
    let text = path.get("action").ok_or(Refused::NotFound)?;
    text.parse().map_err(|_| Refused::NotFound)
}

async fn read(body: Body) -> Result<Bytes, Refused> {
    match tokio::time::timeout(BODY_WITHIN, axum::body::to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Refused::TooLong),
        Err(_) => Err(Refused::TooSlow),
    }
}

async fn controller_base(entered: Entered) -> Response {
    Json(entered.device.controller_base(&entered.root).await).into_response()
}

async fn config_data(entered: Entered, body: Body) -> Result<StatusCode, Refused> {
    let said = ConfigData::parse(&read(body).await?).map_err(AnswerError::from)?;
    entered.device.config_data(said).await?;
    Ok(StatusCode::OK)
}

async fn deployment_base(entered: Entered, path: Named) -> Result<Response, Refused> {
    let found = entered.device.deployment_base(action(&path)?, &entered.root).await?;
    Ok(Json(found).into_response())
}

async fn feedback(entered: Entered, path: Named, body: Body) -> Result<StatusCode, Refused> {
    let id = action(&path)?;
    let said = Feedback::parse(&read(body).await?).map_err(AnswerError::from)?;
    entered.device.feedback(id, said).await?;
    Ok(StatusCode::OK)
}

async fn cancel_action(entered: Entered, path: Named) -> Result<Response, Refused> {
    let found = entered.device.cancel_action(action(&path)?).await?;
    Ok(Json(found).into_response())
}

async fn cancel_feedback(entered: Entered, path: Named, body: Body) -> Result<StatusCode, Refused> {
    let id = action(&path)?;
    let said = Feedback::parse(&read(body).await?).map_err(AnswerError::from)?;
    entered.device.cancel_feedback(id, said).await?;
    Ok(StatusCode::OK)
}

async fn installed_base(entered: Entered, path: Named) -> Result<Response, Refused> {
    let found = entered.device.installed_base(action(&path)?, &entered.root).await?;
    Ok(Json(found).into_response())
}

async fn artifact(
    State(face): State<Arc<Face>>,
    entered: Entered,
    path: Named,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = action(&path)?;
    if path.get("file").map(String::as_str) != Some(entered.device.file_name()) {
        return Err(Refused::NotFound);
    }
    let download = entered.device.download(id).await?;
    let Some((response, to_its_end)) = face.images.answer(download.artifact, headers.get(header::RANGE)).await else {
        // It is fetched again; until then the device asks again.
        return Ok((StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "30")]).into_response());
    };
    if to_its_end && method == Method::GET {
        entered.device.fetched(id).await?;
    }
    let (parts, body) = response.into_parts();
    let held = (download, entered);
    let body = body.into_data_stream().map(move |bytes| {
        let _until_the_end = &held;
        bytes
    });
    Ok(Response::from_parts(parts, Body::from_stream(body)))
}
