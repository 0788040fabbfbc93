//! `/api/v1/uploads`: images in parts, by the tus 1.0 protocol (core, creation, expiration, termination), so that any tus
//! client can bring one. The announced digest stands in the metadata (`sha256`, in hexadecimal).

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use data_encoding::BASE64;
use firmesh_protocol::{
    api::{EventKind, UploadView},
    ids::Sha256,
    limits::ARTIFACT_BYTES_MAX,
};
use tracing::info;

use super::{
    App,
    paging::Listing,
    problem::Failure,
    routes::{Op, Routes},
};
use crate::{access::Permission, uploads::UploadError};

type Shared = State<Arc<App>>;

const VERSION: &str = "1.0.0";
const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const LENGTH: HeaderName = HeaderName::from_static("upload-length");
const PART_TYPE: &str = "application/offset+octet-stream";

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "uploads";
    const RESUMABLE: &str = "1.0.0, the version of tus";
    routes.add(TAG, "/api/v1/uploads", [
        Op::get("Lists the images on their way here.", list).needs(Permission::FleetRead).paged().answers_page::<UploadView>(),
        Op::post("Begins an upload; `Location` says where to send it.", create).needs(Permission::ArtifactImport)
            .header("Tus-Resumable", true, RESUMABLE)
            .header("Upload-Length", true, "bytes in all")
            .header("Upload-Metadata", true, "`sha256` with the digest in hexadecimal, `filename` if you like; values in base64")
            .refuses(412)
            .made::<UploadView>(),
        Op::options("What of tus is spoken here.", options).needs(Permission::ApiRead).empty(),
    ]);
    routes.add(TAG, "/api/v1/uploads/{id}", [
        Op::get("Where an upload stands; `HEAD` has it in `Upload-Offset`.", show).needs(Permission::FleetRead).answers::<UploadView>(),
        Op::patch("Appends bytes where the upload stands; the last ones make it an image.", append).needs(Permission::ArtifactImport)
            .unlimited()
            .header("Tus-Resumable", true, RESUMABLE)
            .header("Upload-Offset", true, "where the upload stands")
            .takes_as(PART_TYPE)
            .refuses(412)
            .refuses(415)
            .empty(),
        Op::delete("Forgets an upload; an image that came of it stays.", remove).needs(Permission::ArtifactImport)
            .header("Tus-Resumable", true, RESUMABLE)
            .refuses(412)
            .empty(),
    ]);
}

/// A client that speaks our version.
struct Tus;

impl FromRequestParts<Arc<App>> for Tus {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Response> {
        if parts
            .headers
            .get("tus-resumable")
            .is_some_and(|version| version == VERSION)
        {
            return Ok(Self);
        }
        let detail = format!("send `Tus-Resumable: {VERSION}`");
        let failure = Failure::new(StatusCode::PRECONDITION_FAILED, "bad_upload", detail);
        Err(([("tus-version", VERSION)], failure).into_response())
    }
}

async fn options() -> Response {
    let headers = [
        ("tus-resumable", VERSION.to_owned()),
        ("tus-version", VERSION.to_owned()),
        ("tus-extension", "creation,expiration,termination".to_owned()),
        ("tus-max-size", ARTIFACT_BYTES_MAX.to_string()),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

async fn list(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let uploads = app.uploads.clone();
    let uploads = blocking(move || uploads.all()).await?;
    Ok(listing.page_of(uploads, |upload| upload.id.clone()))
}

async fn create(State(app): Shared, _: Tus, headers: HeaderMap) -> Result<Response, Failure> {
    let length = number(&headers, &LENGTH)?;
    let metadata = headers.get("upload-metadata").and_then(|value| value.to_str().ok());
    let metadata = metadata.unwrap_or_default();
    let sha256 = pair(metadata, "sha256")?
        .ok_or_else(|| bad("`Upload-Metadata` must have `sha256` with the image's digest in hexadecimal, in base64"))?;
    let sha256: Sha256 = sha256
        .trim()
        .parse()
        .map_err(|error| bad(&format!("sha256: {error}")))?;
    let filename = pair(metadata, "filename")?.map(|name| name.chars().filter(|c| !c.is_control()).take(255).collect());
    let uploads = app.uploads.clone();
    let upload = blocking(move || uploads.create(length, sha256, filename)).await?;
    let place = HeaderValue::from_str(&format!("/api/v1/uploads/{}", upload.id));
    let mut response = told(&upload, StatusCode::CREATED)?;
    response
        .headers_mut()
        .insert(header::LOCATION, place.map_err(|error| bad(&error.to_string()))?);
    Ok((response.status(), response.headers().clone(), Json(upload)).into_response())
}

async fn show(State(app): Shared, Path(id): Path<String>) -> Result<Response, Failure> {
    let uploads = app.uploads.clone();
    let upload = blocking(move || uploads.get(&id)).await?;
    let headers = told(&upload, StatusCode::OK)?.headers().clone();
    Ok((headers, Json(upload)).into_response())
}

async fn append(State(app): Shared, Path(id): Path<String>, _: Tus, request: Request) -> Result<Response, Failure> {
    let headers = request.headers();
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind.map(str::trim) != Some(PART_TYPE) {
        let detail = format!("send `Content-Type: {PART_TYPE}`");
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_upload", detail));
    }
    let offset = number(headers, &OFFSET)?;
    // Before anything is written, where the sender says how much comes.
    if let Ok(coming) = number(headers, &header::CONTENT_LENGTH) {
        let (uploads, wanted) = (app.uploads.clone(), id.clone());
        let upload = blocking(move || uploads.get(&wanted)).await?;
        if upload.artifact.is_none() && upload.offset == offset && coming > upload.length - offset {
            return Err(UploadError::TooMuch(upload.length).into());
        }
    }
    let body = request.into_body().into_data_stream();
    let (upload, _arrived) = app.uploads.append(&id, offset, body, &app.origin).await?;
    finished(&app, &upload).await?;
    told(&upload, StatusCode::NO_CONTENT)
}

/// An upload whose image is here: from now on it is an artifact.
pub(super) async fn finished(app: &App, upload: &UploadView) -> Result<(), Failure> {
    let Some(artifact) = upload.artifact.clone() else {
        return Ok(());
    };
    app.store.put_artifact(&artifact).await?;
    let (uploads, whole) = (app.uploads.clone(), upload.clone());
    blocking(move || uploads.finish(&whole)).await?;
    info!(artifact = %artifact.id, length = artifact.length, upload = upload.id, "artifact imported");
    app.events.send(app.clock.wall(), EventKind::Artifact(artifact));
    Ok(())
}

async fn remove(State(app): Shared, Path(id): Path<String>, _: Tus) -> Result<Response, Failure> {
    let uploads = app.uploads.clone();
    blocking(move || uploads.remove(&id)).await?;
    Ok((StatusCode::NO_CONTENT, [("tus-resumable", VERSION)]).into_response())
}

/// Where an upload stands, as tus says it.
fn told(upload: &UploadView, status: StatusCode) -> Result<Response, Failure> {
    let expires = jiff::Timestamp::from_second(upload.expires.unix_seconds());
    let expires = expires.map_err(|error| bad(&error.to_string()))?;
    let headers = [
        (HeaderName::from_static("tus-resumable"), VERSION.to_owned()),
        (OFFSET, upload.offset.to_string()),
        (LENGTH, upload.length.to_string()),
        (
            HeaderName::from_static("upload-expires"),
            expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
        ),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((status, headers).into_response())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UploadError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "disk", error.to_string()))?;
    Ok(done?)
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<u64, Failure> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    let digits = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| bad(&format!("`{name}` must be a number of bytes")))
}

/// A value of `Upload-Metadata`: keys and values in base64, with commas between.
fn pair(metadata: &str, key: &str) -> Result<Option<String>, Failure> {
    let mut pairs = metadata
        .split(',')
        .map(|pair| pair.trim().split_once(' ').unwrap_or_else(|| (pair.trim(), "")));
    let Some((_, value)) = pairs.find(|(name, _)| *name == key) else {
        return Ok(None);
    };
    let bytes = BASE64.decode(value.trim().as_bytes()).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.map(Some).ok_or_else(|| {
        bad(&format!(
            "the value of `{key}` in `Upload-Metadata` is not text in base64"
        ))
    })
}

fn bad(detail: &str) -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, "bad_upload", detail)
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        let detail = crate::telemetry::chain(&error);
        match error {
            UploadError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            UploadError::Full => Self::new(StatusCode::INSUFFICIENT_STORAGE, "uploads_full", detail),
            UploadError::Length(_) | UploadError::TooMuch(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
            }
            UploadError::Offset { .. } => Self::new(StatusCode::CONFLICT, "wrong_offset", detail),
            UploadError::Busy => Self::new(StatusCode::CONFLICT, "upload_busy", detail),
            UploadError::Broken(_) | UploadError::Silent => Self::new(StatusCode::BAD_REQUEST, "bad_upload", detail),
            UploadError::Disk { .. } => Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk", detail),
            UploadError::Import(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_tus_writes_it() {
        let metadata = "filename YS5iaW4=,empty , sha256 YWI=";
        assert_eq!(pair(metadata, "filename").unwrap().as_deref(), Some("a.bin"));
        assert_eq!(pair(metadata, "sha256").unwrap().as_deref(), Some("ab"));
        assert_eq!(pair(metadata, "empty").unwrap().as_deref(), Some(""));
        assert_eq!(pair(metadata, "other").unwrap(), None);
        assert!(pair("sha256 !", "sha256").is_err());
    }
}
