//! `Idempotency-Key` on every `POST`: the same request again gets the answer of the first time, another request under the
//! same key is refused, and so is one whose first time is not over. Keys are each identity's own.
//!
//! What identifies a request is the digest of its query and body; of an image, whose body is too long to be kept, the
//! digest that `?sha256=` announces, which the import checks. The request is carried out to its end even if the asker goes
//! away. Answers of faults (5xx) and of haste (429) are not kept, nor those of imports that failed: such a request is to be
//! sent again. The answer of an enrolment is a secret, and not kept either: asked again, it says so.

use std::sync::Arc;

use axum::{
    Extension,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use firmesh_protocol::{api::Problem, ids::Sha256};
use sha2::Digest as _;
use tracing::{Instrument as _, Span, error};

use super::{App, admission::Who, groups, problem::Failure};
use crate::{
    access::Means,
    provenance::SBOM_BYTES_MAX,
    publish::PUBLICATION_BYTES_MAX,
    replays::{ANSWER_BYTES_MAX, Kept},
    telemetry::chain,
};

/// The longest key.
const KEY_BYTES_MAX: usize = 128;

const IMAGES: &str = "/api/v1/artifacts";
/// Whose answer is a secret.
const TICKETS: &str = "/api/v1/nodes";
const KEYS: &str = "/api/v1/access/keys";
/// A password is not kept, not even as a digest; another token is as good as the first.
const LOGIN: &str = "/api/v1/auth/token";
/// What changes nothing, and may be done again where the answer is too long to be kept.
const COMPUTATIONS: [&str; 2] = ["/api/v1/plans", "/api/v1/simulations"];

pub(super) async fn keep_answer(
    State(app): State<Arc<App>>,
    Extension(who): Extension<Who>,
    request: Request,
    next: Next,
) -> Response {
    let mut keys = request.headers().get_all("idempotency-key").iter();
    let takes_keys = *request.method() == Method::POST && request.uri().path() != LOGIN;
    let key = keys.next().filter(|_| takes_keys).cloned();
    let is_alone = keys.next().is_none();
    match key {
        None => next.run(request).await,
        Some(key) => match once(app, &who, &key, is_alone, request, next).await {
            Ok(response) => response,
            Err(failure) => failure.into_response(),
        },
    }
}

async fn once(
    app: Arc<App>,
    who: &Who,
    key: &HeaderValue,
    is_alone: bool,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    let is_plain =
        |key: &&str| (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let key = key.to_str().ok().filter(is_plain).filter(|_| is_alone).ok_or_else(|| {
        let detail = format!("Idempotency-Key must be one key of 1 to {KEY_BYTES_MAX} visible ASCII characters");
        Failure::new(StatusCode::BAD_REQUEST, "bad_idempotency_key", detail)
    })?;
    let (key, path) = (key.to_owned(), request.uri().path().to_owned());
    // Nobody is given what another one was answered.
    let scope = match who.means {
        Means::Bootstrap => format!("POST {path}"),
        _ => format!("POST {path} of {}", who.name),
    };
    let turn = app.running.begin(&scope, &key).ok_or_else(|| {
        let detail = "the first request with this Idempotency-Key is still being carried out: ask again later";
        Failure::new(StatusCode::CONFLICT, "request_running", detail)
    })?;
    let (digest, request) = identified(request, &path).await?;
    let now = app.clock.wall();
    if let Some(kept) = app.store.kept_answer(&scope, &key, now).await? {
        return replay(kept, digest);
    }
    if !app.store.has_room_for_answer(now).await? {
        let detail = "no more answers can be kept until older ones are a day old: send the request without a key";
        return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, "idempotency_full", detail));
    }
    // On its own, so that it ends and its answer is kept even if nobody waits for it any more.
    let tasks = app.tasks.clone();
    let carried_out = async move {
        let _turn = turn;
        let response = next.run(request).await;
        keep(&app, &scope, &key, &path, digest, response).await
    };
    let carried_out = tasks.spawn(carried_out.instrument(Span::current())).await;
    carried_out.map_err(|error| broken(error.to_string()))?
}

/// The digest of what makes the request this one and no other.
async fn identified(request: Request, path: &str) -> Result<(Sha256, Request), Failure> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    if path == IMAGES {
        let announces = |part: &str| part.starts_with("sha256=");
        if !query.split('&').any(announces) {
            let detail = "with an Idempotency-Key, name the image that you send by ?sha256=";
            return Err(Failure::bad_request(detail));
        }
        return Ok((Sha256::of(query.as_bytes()), request));
    }
    let (parts, body) = request.into_parts();
    let most = body_bytes_max(path);
    let body = to_bytes(body, most).await.map_err(|error| {
        let detail = format!("the body cannot be read, or has more than {most} bytes: {error}");
        Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    })?;
    let mut digest = sha2::Sha256::new();
    digest.update(query.as_bytes());
    digest.update(b"\0");
    digest.update(&body);
    // What some routes are told in headers. Requests without them keep the digest that they had.
    for name in ["if-match", "upload-length", "upload-metadata"] {
        for value in parts.headers.get_all(name) {
            digest.update([b"\0", name.as_bytes(), b"\0", value.as_bytes()].concat());
        }
    }
    let digest = <[u8; 32]>::from(digest.finalize());
    Ok((digest.into(), Request::from_parts(parts, Body::from(body))))
}

/// What a route takes itself: a body is held in memory until its answer is kept.
fn body_bytes_max(path: &str) -> usize {
    const USUAL: usize = 2 << 20;
    match path {
        "/api/v1/metadata" => PUBLICATION_BYTES_MAX,
        "/api/v1/evidence" => SBOM_BYTES_MAX as usize,
        path if path.starts_with("/api/v1/device-groups") => groups::BODY_BYTES_MAX,
        _ => USUAL,
    }
}

fn replay(kept: Kept, digest: Sha256) -> Result<Response, Failure> {
    if kept.request != digest {
        let detail = "this Idempotency-Key was used for another request: take a new key for a new request";
        return Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            detail,
        ));
    }
    let status = StatusCode::from_u16(kept.status).map_err(|error| broken(error.to_string()))?;
    let Some(body) = kept.body else {
        let detail = format!(
            "the request was carried out and answered with {status}; the answer was not kept, because it is long or a \
             secret: read what came of it, or ask anew with another key"
        );
        return Err(Failure::new(StatusCode::CONFLICT, "answer_not_kept", detail));
    };
    let is_problem = kept.content_type.as_deref() == Some("application/problem+json");
    let problem = is_problem
        .then(|| serde_json::from_slice::<Problem>(&body).ok())
        .flatten();
    let mut response = match (problem, kept.content_type) {
        (Some(problem), _) => Failure(problem).into_response(),
        (None, Some(kind)) => (status, [(header::CONTENT_TYPE, kind)], body).into_response(),
        (None, None) => (status, body).into_response(),
    };
    response
        .headers_mut()
        .insert("idempotency-replayed", HeaderValue::from_static("true"));
    Ok(response)
}

/// Keeps the answer if it is one to keep, and gives it.
async fn keep(
    app: &App,
    scope: &str,
    key: &str,
    path: &str,
    request: Sha256,
    response: Response,
) -> Result<Response, Failure> {
    let status = response.status();
    let is_for_good = status.is_success() || (status.is_client_error() && path != IMAGES);
    if !is_for_good || status == StatusCode::TOO_MANY_REQUESTS {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    // Every answer to a `POST` stands in memory already.
    let body: Bytes = to_bytes(body, usize::MAX)
        .await
        .map_err(|error| broken(error.to_string()))?;
    let is_short = body.len() <= ANSWER_BYTES_MAX;
    let is_secret = status.is_success() && (path == TICKETS || path == KEYS || path.ends_with("/rotate"));
    if is_short || !COMPUTATIONS.contains(&path) {
        let kind = parts.headers.get(header::CONTENT_TYPE);
        let kept = Kept {
            request,
            status: status.as_u16(),
            content_type: kind.and_then(|kind| Some(kind.to_str().ok()?.to_owned())),
            body: (is_short && !is_secret).then(|| body.to_vec()),
        };
        if let Err(failure) = app.store.keep_answer(scope, key, &kept, app.clock.wall()).await {
            error!(error = %chain(&failure), "an answer could not be kept for its Idempotency-Key");
        }
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn broken(detail: String) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "idempotency", detail)
}
