//! `/api/v1/repository/sync`: mirrors the images of a catalogue at an HTTP(S) server. And `/api/v1/operations`, where such
//! work shows how far it is.
//!
//! Invariants: what is mirrored becomes drafts, which no device takes before release keys have signed; every image has the
//! length and digest that the catalogue says, or is none; only addresses below configured ones are asked, and redirects are
//! not followed; a sync that is asked for again goes on where the last one was.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use firmesh_protocol::{
    api::{
        CATALOGUE_SCHEMA, Catalogue, CatalogueImage, OperationState, OperationView, SyncCatalogue, SyncFailure,
        SyncResult,
    },
    manifest::Artifact,
};
use futures_util::StreamExt as _;
use reqwest::{Client, Url, redirect::Policy};
use tracing::{error, info, warn};

use super::{
    App,
    catalogue::draft,
    paging::Listing,
    problem::{Body, Failure},
    routes::{Op, Routes},
    uploads::finished,
};
use crate::{access::Permission, telemetry::chain};

type Shared = State<Arc<App>>;

/// The longest catalogue.
const CATALOGUE_BYTES_MAX: usize = 16 << 20;

/// The most images of a catalogue.
const IMAGES_MAX: usize = 10_000;

/// A server that sends nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// When it is worth asking again how far an operation is, in seconds.
const ASK_AGAIN_S: &str = "1";

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    routes.add("repository", "/api/v1/repository/sync", [
        Op::post("Mirrors the images of a catalogue as drafts.", sync).needs(Permission::ArtifactImport)
            .takes::<SyncCatalogue>()
            .accepted::<OperationView>("Begun; `Location` says where to ask how far it is"),
    ]);
    // As others call it.
    routes.add("firmware-facade", "/api/firmware/repository/sync", [
        Op::post("Mirrors the images of a catalogue as drafts.", sync).needs(Permission::ArtifactImport)
            .takes::<SyncCatalogue>()
            .accepted::<OperationView>("Begun; `Location` says where to ask how far it is"),
    ]);
    routes.add("operations", "/api/v1/operations", [
        Op::get("Lists long work in the order in which it began.", list).needs(Permission::FleetRead).paged().answers_page::<OperationView>(),
    ]);
    routes.add("operations", "/api/v1/operations/{id}", [
        Op::get("How far long work is; `Retry-After` says when to ask again.", show).needs(Permission::FleetRead).answers::<OperationView>(),
    ]);
}

async fn list(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let after = listing.after::<String>()?.unwrap_or_default();
    let operations = app.store.operations_after(&after, listing.wanted()).await?;
    Ok(listing.page(operations, |operation| operation.id.clone()))
}

async fn show(State(app): Shared, Path(id): Path<String>) -> Result<Response, Failure> {
    let is_id = id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let operation = if is_id { app.store.operation(&id).await? } else { None };
    let operation = operation.ok_or_else(|| Failure::not_found(format!("operation {}", id.escape_debug())))?;
    Ok(match operation.state {
        OperationState::Running => ([(header::RETRY_AFTER, ASK_AGAIN_S)], Json(operation)).into_response(),
        _ => Json(operation).into_response(),
    })
}

async fn sync(State(app): Shared, Body(request): Body<SyncCatalogue>) -> Result<Response, Failure> {
    let url = Url::parse(&request.url).map_err(|error| Failure::bad_request(format!("url: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || request.url.len() > 2_000 {
        return Err(Failure::bad_request(
            "`url` must be an address with http or https, of at most 2000 bytes",
        ));
    }
    if !app.settings.sources.allow(&url) {
        return Err(not_a_source(&url));
    }
    let Ok(turn) = app.mirror.clone().try_acquire_owned() else {
        let detail = "another sync is under way: ask again when it is over (`GET /api/v1/operations`)";
        return Err(Failure::new(StatusCode::CONFLICT, "sync_running", detail));
    };
    // User and password are for the server, not for those who read here.
    let mut shown = url.clone();
    let _ = (shown.set_username(""), shown.set_password(None));
    let operation = app
        .store
        .begin_operation("repository_sync", shown.as_str(), app.clock.wall())
        .await?;
    let (worker, begun) = (app.clone(), operation.clone());
    app.tasks.spawn(async move {
        let _turn = turn;
        let work = mirror(&worker, &url, request.vendor.as_deref(), begun.clone());
        let outcome = tokio::select! {
            // The next start calls it interrupted.
            () = worker.cancel.cancelled() => return,
            outcome = work => outcome,
        };
        match &outcome {
            Ok(result) => info!(
                catalogue = begun.subject,
                fetched = result.fetched,
                drafted = result.drafted,
                failed = result.failed.len(),
                "repository synced"
            ),
            Err(problem) => warn!(catalogue = begun.subject, problem, "the repository could not be synced"),
        }
        if let Err(failure) = worker.store.end_operation(begun, outcome, worker.clock.wall()).await {
            error!(error = %chain(&failure), "the end of an operation could not be stored");
        }
    });
    let place = format!("/api/v1/operations/{}", operation.id);
    let headers = [(header::LOCATION, place), (header::RETRY_AFTER, ASK_AGAIN_S.to_owned())];
    Ok((StatusCode::ACCEPTED, headers, Json(operation)).into_response())
}

fn not_a_source(url: &Url) -> Failure {
    let detail = format!(
        "{} is below none of the addresses that this coordinator mirrors: whoever runs it adds it to `sources` in \
         `[repository]` of its configuration",
        shown(url.clone())
    );
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "not_a_source", detail).refused()
}

async fn mirror(
    app: &App,
    url: &Url,
    vendor: Option<&str>,
    mut operation: OperationView,
) -> Result<SyncResult, String> {
    // Fails only if somebody installed one before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .redirect(Policy::none())
        .connect_timeout(PATIENCE)
        .read_timeout(PATIENCE)
        .build()
        .map_err(|error| chain(&error))?;
    let catalogue = catalogue(&client, url).await?;
    let wanted = |image: &CatalogueImage| vendor.is_none_or(|vendor| image.firmware.vendor == vendor);
    let images: Vec<_> = catalogue.images.into_iter().filter(wanted).collect();
    let mut result = SyncResult {
        listed: u32::try_from(images.len()).unwrap_or(u32::MAX),
        ..SyncResult::default()
    };
    for (number, image) in images.into_iter().enumerate() {
        operation.progress = format!("{number} of {} images", result.listed);
        app.store
            .put_operation(&operation)
            .await
            .map_err(|error| chain(&error))?;
        // User and password are for the server, not for those who read here.
        let place = match url.join(&image.url) {
            Ok(whole) if !(whole.username().is_empty() && whole.password().is_none()) => shown(whole),
            _ => image.url.clone(),
        };
        if let Err(problem) = one(app, &client, url, image, &mut result).await {
            result.failed.push(SyncFailure { url: place, problem });
        }
    }
    Ok(result)
}

async fn catalogue(client: &Client, url: &Url) -> Result<Catalogue, String> {
    let response = client
        .get(url.clone())
        .send()
        .await
        .map_err(|error| chain(&error.without_url()))?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(format!("the catalogue's server answered {}", response.status()));
    }
    let (mut bytes, mut body) = (Vec::new(), response.bytes_stream());
    while let Some(part) = body.next().await {
        bytes.extend_from_slice(&part.map_err(|error| chain(&error.without_url()))?);
        if bytes.len() > CATALOGUE_BYTES_MAX {
            return Err(format!("the catalogue has more than {CATALOGUE_BYTES_MAX} bytes"));
        }
    }
    let catalogue: Catalogue =
        serde_json::from_slice(&bytes).map_err(|error| format!("the catalogue is not what is expected: {error}"))?;
    if catalogue.schema != CATALOGUE_SCHEMA {
        return Err(format!("the catalogue's schema is not {CATALOGUE_SCHEMA:?}"));
    }
    match catalogue.images.len() {
        0..=IMAGES_MAX => Ok(catalogue),
        count => Err(format!(
            "the catalogue has {count} images, at most {IMAGES_MAX} are taken"
        )),
    }
}

/// One image: fetched if it is not here, and drafted if it is not yet.
async fn one(
    app: &App,
    client: &Client,
    base: &Url,
    image: CatalogueImage,
    result: &mut SyncResult,
) -> Result<(), String> {
    let sha256 = image.firmware.sha256;
    let place = base.join(&image.url).map_err(|error| error.to_string())?;
    if !matches!(place.scheme(), "http" | "https") || (base.scheme() == "https" && place.scheme() == "http") {
        return Err("an image's address must be https, or http where the catalogue's is".to_owned());
    }
    if !app.settings.sources.allow(&place) {
        return Err(not_a_source(&place).0.detail);
    }
    let here = app.store.artifacts().await.map_err(|error| chain(&error))?;
    let artifact = match here.into_iter().find(|artifact| artifact.sha256 == sha256) {
        Some(artifact) if artifact.length != image.length => {
            return Err(format!(
                "the image has {} bytes, the catalogue says {}",
                artifact.length, image.length
            ));
        }
        Some(artifact) => {
            result.unchanged += 1;
            artifact
        }
        None => {
            let artifact = fetch(app, client, place.clone(), &image, result).await?;
            result.fetched += 1;
            artifact
        }
    };
    let drafted = draft(app, image.firmware, artifact, Some(shown(place))).await;
    let (_, is_new) = drafted.map_err(|failure| failure.0.detail)?;
    result.drafted += u32::from(is_new);
    Ok(())
}

fn shown(mut place: Url) -> String {
    let _ = (place.set_username(""), place.set_password(None));
    place.into()
}

/// Fetches an image, going on where an earlier sync broke off.
async fn fetch(
    app: &App,
    client: &Client,
    place: Url,
    image: &CatalogueImage,
    result: &mut SyncResult,
) -> Result<Artifact, String> {
    let told = |error: crate::uploads::UploadError| chain(&error);
    let sha256 = image.firmware.sha256;
    let upload = match app.uploads.unfinished(sha256, image.length).map_err(told)? {
        Some(upload) => upload,
        None => app.uploads.create(image.length, sha256, None).map_err(told)?,
    };
    let mut request = client.get(place);
    if upload.offset > 0 {
        request = request.header(header::RANGE, format!("bytes={}-", upload.offset));
    }
    let whole = if upload.offset == upload.length {
        let nothing = futures_util::stream::empty::<Result<bytes::Bytes, std::io::Error>>();
        app.uploads
            .append(&upload.id, upload.offset, nothing, &app.origin)
            .await
    } else {
        let response = request.send().await.map_err(|error| chain(&error.without_url()))?;
        let begins = match response.status() {
            reqwest::StatusCode::OK => 0,
            reqwest::StatusCode::PARTIAL_CONTENT if begins_at(&response, upload.offset) => upload.offset,
            status => return Err(format!("the server answered {status}")),
        };
        // A server that knows no ranges sends what is here once more.
        let mut skip = upload.offset - begins;
        let body = response.bytes_stream().map(move |part| {
            part.map(|bytes| {
                let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                skip -= skipped as u64;
                bytes.slice(skipped..)
            })
        });
        app.uploads.append(&upload.id, upload.offset, body, &app.origin).await
    };
    let (whole, _arrived) = whole.map_err(told)?;
    result.bytes += whole.offset - upload.offset;
    let artifact = whole
        .artifact
        .clone()
        .ok_or_else(|| format!("the server sent {} of {} bytes", whole.offset, whole.length))?;
    finished(app, &whole).await.map_err(|failure| failure.0.detail)?;
    app.uploads.remove(&whole.id).map_err(told)?;
    Ok(artifact)
}

fn begins_at(response: &reqwest::Response, offset: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE);
    range.is_some_and(|range| {
        range
            .to_str()
            .is_ok_and(|range| range.starts_with(&format!("bytes {offset}-")))
    })
}
