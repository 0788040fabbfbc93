//! The nodes' face, `/node/v1`: everything but enrolment needs a certificate of the fleet CA.

use std::{io, ops::Range, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use firmesh_protocol::{
    api::{EnrolRequest, EnrolResponse, RenewRequest, SyncRequest, SyncResponse, TRANSCRIPT_REPORT_BYTES_MAX},
    chunk::{PieceLayout, SLICE_BYTES_MAX},
    groups::Groups,
    ids::{ArtifactId, CampaignId, NodeId, Sha256, TopologyPath},
    limits::ENVELOPE_BYTES_MAX,
    manifest::Artifact,
};
use futures_util::stream;
use serde::Deserialize;
use tracing::warn;

use super::{
    App,
    campaigns::plan_bytes,
    operators::{metadata_file, named},
    problem::{Body, Failure},
    tls::Peer,
    transcripts,
};
use crate::{
    runtime::Command,
    sync::Heartbeat,
    turns::{Place, Turn},
};

type Shared = State<Arc<App>>;

/// Reports are about 700 bytes; a node that was cut off for days has some thousands.
const SYNC_BYTES_MAX: usize = 2 * ENVELOPE_BYTES_MAX;

/// Some hundred bytes for each of a node's devices.
const PROFILES_BYTES_MAX: usize = 1 << 20;

pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/node/v1/enrol", post(enrol).layer(DefaultBodyLimit::max(64 << 10)))
        .route("/node/v1/metadata/{file}", get(metadata))
        .route("/node/v1/targets/campaigns/{file}", get(manifest))
        .route("/node/v1/plans/{sha256}", get(plan))
        .route("/node/v1/artifacts/{id}/slice", get(slice))
        .route("/node/v1/artifacts/{id}/recipe", get(recipe))
        .route("/node/v1/evidence/{sha256}", get(evidence))
        .route(
            "/node/v1/credentials",
            post(transcripts::profiles).layer(DefaultBodyLimit::max(PROFILES_BYTES_MAX)),
        )
        .route(
            "/node/v1/transcripts",
            post(transcripts::told).layer(DefaultBodyLimit::max(TRANSCRIPT_REPORT_BYTES_MAX)),
        )
        .route("/node/v1/renew", post(renew).layer(DefaultBodyLimit::max(64 << 10)))
        .route("/node/v1/sync", post(sync).layer(DefaultBodyLimit::max(SYNC_BYTES_MAX)))
}

async fn enrol(State(app): Shared, Body(request): Body<EnrolRequest>) -> Result<Json<EnrolResponse>, Failure> {
    let enrolled = app.coordinator.ask(|reply| Command::Enrol(request, reply)).await;
    enrolled.map(Json).map_err(|error| {
        app.metrics.refusals.inc();
        error.into()
    })
}

async fn metadata(State(app): Shared, _: Peer, Path(file): Path<String>) -> Result<Response, Failure> {
    metadata_file(&app, file).await
}

/// `<id>.json`, or `<sha256>.<id>.json` as consistent snapshots have it.
async fn manifest(State(app): Shared, _: Peer, Path(file): Path<String>) -> Result<Response, Failure> {
    let no_such = || Failure::not_found(format!("target campaigns/{}", file.escape_debug()));
    let stem = file.strip_suffix(".json").ok_or_else(no_such)?;
    let (digest, id) = match stem.split_once('.') {
        Some((digest, id)) if digest.len() == 64 => (Some(named::<Sha256>(digest)?), id),
        _ => (None, stem),
    };
    let id: CampaignId = named(id)?;
    let bytes = app
        .coordinator
        .read(move |world| world.published.manifests.get(&id).cloned())
        .await?;
    let is_wanted = |bytes: &bytes::Bytes| digest.is_none_or(|digest| Sha256::of(bytes) == digest);
    let bytes = bytes.filter(is_wanted).ok_or_else(no_such)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

async fn plan(State(app): Shared, _: Peer, Path(digest): Path<String>) -> Result<Response, Failure> {
    plan_bytes(&app, named(&digest)?).await
}

async fn evidence(State(app): Shared, _: Peer, Path(digest): Path<String>) -> Result<Response, Failure> {
    let digest: Sha256 = named(&digest)?;
    let bytes = app.store.evidence(digest).await?;
    let bytes = bytes.ok_or_else(|| Failure::not_found(format!("evidence {digest}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

async fn renew(
    State(app): Shared,
    peer: Peer,
    Body(request): Body<RenewRequest>,
) -> Result<Json<EnrolResponse>, Failure> {
    let asked = Box::new((peer.identity, peer.certificate, request));
    let renewed = app.coordinator.ask(|reply| Command::Renew(asked, reply)).await;
    renewed.map(Json).map_err(|error| {
        app.metrics.refusals.inc();
        error.into()
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SliceQuery {
    offset: u64,
    length: u64,
    /// Only these chunk groups of the piece that begins at `offset`.
    groups: Option<String>,
}

async fn slice(
    State(app): Shared,
    peer: Peer,
    Path(id): Path<String>,
    query: Result<Query<SliceQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Failure> {
    let Query(SliceQuery { offset, length, groups }) =
        query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let id: ArtifactId = named(&id)?;
    let end = offset.checked_add(length).filter(|_| length <= SLICE_BYTES_MAX);
    let end = end.ok_or_else(|| Failure::bad_request(format!("a slice has at most {SLICE_BYTES_MAX} bytes")))?;
    let artifact = match app.store.artifact(id).await? {
        Some(artifact) => Some(artifact),
        None => app.origin.recipe(id).await,
    };
    let artifact = artifact.ok_or_else(|| Failure::not_found(format!("artifact {id}")))?;
    let layout = PieceLayout::new(artifact.length);
    let groups = groups.map(|groups| piece_groups(layout, offset, &groups)).transpose()?;
    let slice = Slice {
        app,
        node: peer.identity.node,
        path: peer.identity.path,
        artifact,
        range: offset..end,
        groups,
    };
    let body = match slice.app.turns.now() {
        Some(turn) => slice.serve(turn).await?.into(),
        // The head of the answer goes ahead, so that the node sees how far away we are and that we live.
        None => {
            let place = slice.app.turns.line_up(&slice.node);
            let place =
                place.map_err(|error| Failure::new(StatusCode::TOO_MANY_REQUESTS, "no_turn", error.to_string()))?;
            axum::body::Body::from_stream(stream::once(slice.serve_later(place)))
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// A slice that was asked for.
struct Slice {
    app: Arc<App>,
    node: NodeId,
    path: TopologyPath,
    artifact: Artifact,
    range: Range<u64>,
    groups: Option<(u32, Groups)>,
}

impl Slice {
    async fn serve(self, turn: Turn) -> Result<Bytes, Failure> {
        let origin = self.app.origin.clone();
        let encoded = tokio::task::spawn_blocking(move || match self.groups {
            Some((piece, groups)) => origin.groups(&self.artifact, piece, groups),
            None => origin.slice(&self.artifact, &self.range),
        });
        let encoded = encoded
            .await
            .map_err(|error| Failure::bad_request(error.to_string()))??;
        self.app.metrics.served(&self.path, encoded.len());
        Ok(turn.of(encoded))
    }

    /// An error breaks the answer off, and the node asks again.
    async fn serve_later(self, place: Place) -> io::Result<Bytes> {
        let node = self.node.clone();
        let broken_off = |error: String| {
            warn!(%node, error, "an answer was broken off before its first byte");
            io::Error::other(error)
        };
        let turn = place.turn().await.map_err(|error| broken_off(error.to_string()))?;
        let served = self.serve(turn).await;
        served.map_err(|failure| broken_off(failure.0.detail))
    }
}

/// The groups that a query names, and their piece.
fn piece_groups(layout: PieceLayout, offset: u64, groups: &str) -> Result<(u32, Groups), Failure> {
    let piece = layout.piece_at(offset);
    if layout.bytes(piece).start != offset || offset >= layout.length() {
        return Err(Failure::bad_request(format!("no piece begins at byte {offset}")));
    }
    let not_groups = |_| Failure::bad_request("groups are four hexadecimal digits, a bit for each group".to_owned());
    Ok((piece, groups.parse().map_err(not_groups)?))
}

/// Which artifact is the recipe of an image.
async fn recipe(State(app): Shared, _: Peer, Path(id): Path<String>) -> Result<Json<Artifact>, Failure> {
    let image: ArtifactId = named(&id)?;
    let origin = app.origin.clone();
    let found = tokio::task::spawn_blocking(move || origin.recipe_of(image)).await;
    let found = found.map_err(|error| Failure::bad_request(error.to_string()))??;
    let none = || Failure::not_found(format!("recipe of artifact {image}"));
    Ok(Json(found.ok_or_else(none)?))
}

async fn sync(State(app): Shared, peer: Peer, Body(request): Body<SyncRequest>) -> Result<Json<SyncResponse>, Failure> {
    let Peer { identity, certificate } = peer;
    let seen = request.audit.clone();
    app.judge
        .judge(&app.coordinator, &identity, &certificate, &request.possession)
        .await?;
    let refused = |error| {
        app.metrics.refusals.inc();
        Failure::from(error)
    };
    let turn = app.verifying.clone().acquire_owned().await;
    let verify = move || {
        let _turn = turn;
        Heartbeat::verify(identity, certificate, request)
    };
    let verified = tokio::task::spawn_blocking(verify).await;
    let verified = verified.map_err(|error| Failure::bad_request(error.to_string()))?;
    let heartbeat = Box::new(verified.map_err(refused)?);
    let heard = app.coordinator.ask(|reply| Command::Sync(heartbeat, reply)).await;
    let mut response = heard.map_err(refused)?;
    // Taken after what the answer speaks of became durable: its permits are in this log.
    response.audit = Some(app.store.audit_news(&seen).await?);
    Ok(Json(response))
}
