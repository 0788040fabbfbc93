//! The operators' face, `/api/v1`: reading is open on loopback, every change needs the token.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{Method, StatusCode, header, uri::Authority},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use firmesh_coordinator_core::{Input, Subject, plan};
use firmesh_protocol::{
    api::{
        About, AttemptView, BrakeView, CampaignView, DeviceView, EnrolmentTicket, EventKind, Explanation, NewNode,
        NodeView, Page, PlanRequest, PlanResponse, Publication, Published, ReleaseView, RevokeRequest,
    },
    brake::Brake,
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, Sha256},
    limits::{MANIFEST_BYTES_MAX, PLAN_BYTES_MAX},
    manifest::{Artifact, FileRef, MANIFEST_SCHEMA},
    trust::Envelope,
};
use serde::Deserialize;
use tracing::info;

use super::{
    App, audit, notifications,
    problem::{Body, Failure},
    simulations, stream, targets,
};
use crate::{
    ceremony::ReadFileError,
    provenance::SBOM_BYTES_MAX,
    publish::PUBLICATION_BYTES_MAX,
    runtime::{ActionError, Command},
    telemetry::chain,
    vetting::in_force,
};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

pub(super) fn router(app: Arc<App>) -> Router<Arc<App>> {
    let api = Router::new()
        .route("/api/v1/about", get(about))
        .route(
            "/api/v1/artifacts",
            get(artifacts).post(import).layer(DefaultBodyLimit::disable()),
        )
        .route("/api/v1/artifacts/{id}", get(artifact))
        .route(
            "/api/v1/metadata",
            post(publish).layer(DefaultBodyLimit::max(PUBLICATION_BYTES_MAX)),
        )
        .route("/api/v1/metadata/{file}", get(metadata))
        .route("/api/v1/targets/{*path}", get(targets::target))
        .route(
            "/api/v1/evidence",
            post(put_evidence).layer(DefaultBodyLimit::max(SBOM_BYTES_MAX as usize)),
        )
        .route("/api/v1/evidence/{sha256}", get(evidence))
        .route("/api/v1/verdicts/{image}", get(verdict))
        .route("/api/v1/releases", get(releases))
        .route("/api/v1/nodes", get(nodes).post(new_node))
        .route("/api/v1/nodes/{id}", get(node))
        .route("/api/v1/nodes/{id}/revoke", post(revoke))
        .route("/api/v1/brakes", get(brakes).post(brake))
        .route("/api/v1/devices", get(devices))
        .route("/api/v1/devices/{id}", get(device))
        .route("/api/v1/devices/{id}/clear", post(clear))
        .route(
            "/api/v1/plans",
            post(make_plan).layer(DefaultBodyLimit::max(MANIFEST_BYTES_MAX as usize)),
        )
        .route(
            "/api/v1/simulations",
            post(simulations::rehearse_campaign).layer(DefaultBodyLimit::max(MANIFEST_BYTES_MAX as usize)),
        )
        .route("/api/v1/campaigns", get(campaigns))
        .route("/api/v1/campaigns/{id}", get(campaign))
        .route("/api/v1/campaigns/{id}/plan", get(campaign_plan))
        .route("/api/v1/campaigns/{id}/explain", get(explain))
        .route("/api/v1/campaigns/{id}/attempts", get(attempts))
        .route("/api/v1/campaigns/{id}/{verb}", post(order))
        .route("/api/v1/events", get(stream::events))
        .route("/metrics", get(metrics))
        .merge(audit::router())
        .merge(notifications::router())
        .route_layer(from_fn_with_state(app, authorise));
    api.route("/health", get(health))
}

/// Changes need the token; reads too, where the settings say so, or when the request was made to another name than this
/// machine's own: a page of a stranger may have its name point at loopback and read along.
async fn authorise(State(app): Shared, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let is_operator = bearer.is_some_and(|token| app.authority.is_operator_token(token.trim()));
    let is_open = reads && !app.settings.token_for_reads && is_made_to_loopback(&request);
    if is_operator || (is_open && bearer.is_none()) {
        return next.run(request).await;
    }
    let path = app.settings.state_dir.join("operator.token");
    let detail = match bearer {
        Some(_) => format!(
            "the token is not this coordinator's: it stands in {} on its machine",
            path.display()
        ),
        None => format!(
            "send `Authorization: Bearer <token>`: the token stands in {} on the coordinator's machine (reading may be \
             open without it, but only by the names localhost and 127.0.0.1)",
            path.display()
        ),
    };
    app.metrics.refusals.inc();
    let failure = Failure::new(StatusCode::UNAUTHORIZED, "unauthorised", detail).refused();
    ([(header::WWW_AUTHENTICATE, "Bearer")], failure).into_response()
}

fn is_made_to_loopback(request: &Request) -> bool {
    let host = request.headers().get(header::HOST);
    let host = host.map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let Some(host) = host.unwrap_or_else(|| request.uri().authority().cloned()) else {
        return false;
    };
    let name = host.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

async fn health(State(app): Shared) -> Result<&'static str, Failure> {
    app.coordinator.read(|_| ()).await?;
    Ok("ok\n")
}

async fn metrics(State(app): Shared) -> Result<Response, Failure> {
    let (nodes, devices, in_flight) = app
        .coordinator
        .read(|world| (world.nodes.len(), world.devices.len(), world.engine.in_flight().len()))
        .await?;
    let set = |gauge: &prometheus_client::metrics::gauge::Gauge, count: usize| {
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    };
    set(&app.metrics.nodes, nodes);
    set(&app.metrics.devices, devices);
    set(&app.metrics.in_flight, in_flight);
    let turns = app.turns.counts();
    set(&app.metrics.turns_taken, turns.taken);
    set(&app.metrics.turns_waiting, turns.waiting);
    app.metrics
        .turns_overdue
        .inner()
        .store(turns.overdue, Ordering::Relaxed);
    app.metrics
        .turns_refused
        .inner()
        .store(turns.refused, Ordering::Relaxed);
    let kind = [(
        header::CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )];
    Ok((kind, app.metrics.encode()).into_response())
}

async fn about(State(app): Shared) -> Json<About> {
    Json(About {
        version: crate::version().to_owned(),
        online_key: app.authority.online_key().public().to_string(),
        permit_key: app.authority.permit_key().public().to_string(),
        fleet_ca_pem: app.authority.ca_pem().to_owned(),
        node_url: app.node_url.clone(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportQuery {
    sha256: Option<Sha256>,
}

async fn import(
    State(app): Shared,
    query: Result<Query<ImportQuery>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Answer<Artifact> {
    let Query(ImportQuery { sha256 }) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let artifact = app
        .origin
        .import(request.into_body().into_data_stream(), sha256)
        .await?;
    app.store.put_artifact(&artifact).await?;
    info!(artifact = %artifact.id, length = artifact.length, "artifact imported");
    app.events.send(app.clock.wall(), EventKind::Artifact(artifact.clone()));
    Ok(Json(artifact))
}

async fn artifacts(State(app): Shared) -> Answer<Page<Artifact>> {
    Ok(Json(Page {
        items: app.store.artifacts().await?,
    }))
}

async fn artifact(State(app): Shared, Path(id): Path<String>) -> Answer<Artifact> {
    let id: ArtifactId = named(&id)?;
    let found = app
        .store
        .artifacts()
        .await?
        .into_iter()
        .find(|artifact| artifact.id == id);
    found
        .map(Json)
        .ok_or_else(|| Failure::not_found(format!("artifact {id}")))
}

async fn publish(State(app): Shared, Body(publication): Body<Publication>) -> Answer<Published> {
    let refused = |failure: Failure| {
        app.metrics.refusals.inc();
        failure
    };
    let known = app.coordinator.read(|world| in_force(&world.published)).await?;
    let artifacts = app.store.artifacts().await?;
    let vetted = app.vetting.vet(&publication, known, artifacts, app.clock.wall()).await;
    let published = match vetted {
        Err(error) => Err(refused(error.into())),
        Ok(vetted) => {
            let asked = |reply| Command::Publish(publication, vetted, reply);
            let published = app.coordinator.ask(asked).await;
            published.map_err(|error| refused(error.into()))
        }
    };
    if let Err(failure) = published.as_ref()
        && failure.0.refused
    {
        app.notifier.publication_refused(&failure.0.detail).await;
    }
    published.map(Json)
}

async fn put_evidence(State(app): Shared, bytes: Bytes) -> Answer<FileRef> {
    Ok(Json(app.vetting.put(bytes).await?))
}

async fn evidence(State(app): Shared, Path(sha256): Path<String>) -> Result<Response, Failure> {
    let sha256: Sha256 = named(&sha256)?;
    let vetting = app.vetting.clone();
    stored(format!("evidence {sha256}"), move || vetting.get(sha256)).await
}

async fn verdict(State(app): Shared, Path(image): Path<String>) -> Result<Response, Failure> {
    let image: Sha256 = named(&image)?;
    let vetting = app.vetting.clone();
    stored(format!("verdict on the image {image}"), move || vetting.verdict(image)).await
}

async fn stored(
    what: String,
    read: impl FnOnce() -> Result<Vec<u8>, ReadFileError> + Send + 'static,
) -> Result<Response, Failure> {
    let failed = |detail| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "store", detail);
    match tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| failed(error.to_string()))?
    {
        Ok(bytes) => Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()),
        Err(error) if error.is_not_found() => Err(Failure::not_found(what)),
        Err(error) => Err(failed(chain(&error))),
    }
}

async fn metadata(State(app): Shared, Path(file): Path<String>) -> Result<Response, Failure> {
    metadata_file(&app, file).await
}

/// A published file, byte by byte.
pub(super) async fn metadata_file(app: &App, file: String) -> Result<Response, Failure> {
    let name = file.clone();
    let bytes = app
        .coordinator
        .read(move |world| world.published.files.get(&name).cloned())
        .await?;
    let bytes = bytes.ok_or_else(|| Failure::not_found(format!("metadata file {}", file.escape_debug())))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

async fn releases(State(app): Shared) -> Answer<Page<ReleaseView>> {
    let artifacts = app.store.artifacts().await?;
    let releases = app.coordinator.read(|world| world.releases()).await?;
    let view = |release: firmesh_protocol::manifest::Release| {
        let stored = artifacts.contains(&release.artifact);
        ReleaseView { release, stored }
    };
    Ok(Json(Page {
        items: releases.into_iter().map(view).collect(),
    }))
}

async fn nodes(State(app): Shared) -> Answer<Page<NodeView>> {
    let items = app
        .coordinator
        .read(|world| world.nodes.keys().filter_map(|id| world.node_view(id)).collect())
        .await?;
    Ok(Json(Page { items }))
}

async fn node(State(app): Shared, Path(id): Path<String>) -> Answer<NodeView> {
    let id: NodeId = named(&id)?;
    let wanted = id.clone();
    let found = app.coordinator.read(move |world| world.node_view(&wanted)).await?;
    found.map(Json).ok_or_else(|| Failure::not_found(format!("node {id}")))
}

async fn new_node(State(app): Shared, Body(new): Body<NewNode>) -> Answer<EnrolmentTicket> {
    Ok(Json(app.coordinator.ask(|reply| Command::NewNode(new, reply)).await?))
}

async fn revoke(
    State(app): Shared,
    Path(id): Path<String>,
    Body(request): Body<RevokeRequest>,
) -> Result<StatusCode, Failure> {
    let id: NodeId = named(&id)?;
    app.coordinator.ask(|reply| Command::Revoke(id, request, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn brakes(State(app): Shared) -> Answer<Page<BrakeView>> {
    let view = |(brake, envelope): &(Brake, Envelope)| BrakeView {
        brake: brake.clone(),
        envelope: envelope.clone(),
    };
    Ok(Json(Page {
        items: app
            .coordinator
            .read(move |world| world.brakes.all().map(view).collect())
            .await?,
    }))
}

async fn brake(State(app): Shared, Body(envelope): Body<Envelope>) -> Answer<Brake> {
    let pulled = app
        .coordinator
        .ask(|reply| Command::Brake(Box::new(envelope), reply))
        .await;
    pulled.map(Json).map_err(|error| {
        app.metrics.refusals.inc();
        error.into()
    })
}

async fn devices(State(app): Shared) -> Answer<Page<DeviceView>> {
    Ok(Json(Page {
        items: app.coordinator.read(|world| world.device_views(|_| true)).await?,
    }))
}

async fn device(State(app): Shared, Path(id): Path<String>) -> Answer<DeviceView> {
    let id: DeviceId = named(&id)?;
    let wanted = id.clone();
    let found = app
        .coordinator
        .read(move |world| world.device_views(|id| *id == wanted))
        .await?;
    found
        .into_iter()
        .next()
        .map(Json)
        .ok_or_else(|| Failure::not_found(format!("device {id}")))
}

async fn clear(State(app): Shared, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    app.coordinator.act(Input::Clear(named(&id)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn make_plan(State(app): Shared, Body(PlanRequest { manifest }): Body<PlanRequest>) -> Answer<PlanResponse> {
    if manifest.schema != MANIFEST_SCHEMA {
        return Err(Failure::bad_request(format!(
            "the draft's schema must be {MANIFEST_SCHEMA:?}"
        )));
    }
    let (silent_after, wall) = (app.settings.silent_after, app.clock.wall());
    let facts = app
        .coordinator
        .read(move |world| (world.inventory(silent_after, wall), world.releases()))
        .await?;
    let planned =
        tokio::task::spawn_blocking(move || plan(&facts.0, &manifest, &facts.1, wall).map(|plan| plan.to_bytes()));
    let bytes = planned
        .await
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "planner", error.to_string()))??;
    if bytes.len() as u64 > PLAN_BYTES_MAX {
        let detail = format!(
            "the plan has {} bytes, at most {PLAN_BYTES_MAX} are allowed: split the campaign",
            bytes.len()
        );
        return Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "cannot_be_planned",
            detail,
        ));
    }
    let plan_sha256 = Sha256::of(&bytes);
    app.store.put_plan(plan_sha256, &bytes).await?;
    let plan = String::from_utf8(bytes)
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "planner", error.to_string()))?;
    Ok(Json(PlanResponse { plan, plan_sha256 }))
}

async fn campaigns(State(app): Shared) -> Answer<Page<CampaignView>> {
    Ok(Json(Page {
        items: app.coordinator.read(|world| world.engine.campaigns().collect()).await?,
    }))
}

async fn campaign(State(app): Shared, Path(id): Path<String>) -> Answer<CampaignView> {
    let id: CampaignId = named(&id)?;
    let wanted = id.clone();
    let found = app
        .coordinator
        .read(move |world| world.engine.campaign(&wanted))
        .await?;
    found.map(Json).ok_or_else(|| no_campaign(&id))
}

async fn campaign_plan(State(app): Shared, Path(id): Path<String>) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let wanted = id.clone();
    let digest = app
        .coordinator
        .read(move |world| {
            let manifest = world.published.manifests.get(&wanted)?;
            Some(
                firmesh_protocol::manifest::CampaignManifest::from_bytes(manifest)
                    .ok()?
                    .plan_sha256,
            )
        })
        .await?;
    plan_bytes(&app, digest.ok_or_else(|| no_campaign(&id))?).await
}

/// A stored plan, byte by byte.
pub(super) async fn plan_bytes(app: &App, digest: Sha256) -> Result<Response, Failure> {
    let bytes = app
        .store
        .plan(digest)
        .await?
        .ok_or_else(|| Failure::not_found(format!("plan {digest}")))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainQuery {
    wave: Option<u32>,
    device: Option<DeviceId>,
}

async fn explain(
    State(app): Shared,
    Path(id): Path<String>,
    query: Result<Query<ExplainQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Vec<Explanation>> {
    let Query(query) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let id: CampaignId = named(&id)?;
    let subject = match (query.device, query.wave) {
        (Some(device), _) => Subject::Device(device),
        (None, Some(wave)) => Subject::Wave(wave),
        (None, None) => Subject::Campaign,
    };
    let (wanted, about) = (id.clone(), subject.clone());
    let found = app
        .coordinator
        .read(move |world| world.engine.explain(&wanted, &about))
        .await?;
    found.map(Json).ok_or_else(|| match subject {
        Subject::Campaign => no_campaign(&id),
        Subject::Wave(wave) => Failure::not_found(format!("wave {wave} of a campaign {id}")),
        Subject::Device(device) => Failure::not_found(format!("device {device} in the plan of a campaign {id}")),
    })
}

async fn attempts(State(app): Shared, Path(id): Path<String>) -> Answer<Page<AttemptView>> {
    let id: CampaignId = named(&id)?;
    let wanted = id.clone();
    let found = app
        .coordinator
        .read(move |world| world.engine.attempts(&wanted))
        .await?;
    found.map(|items| Json(Page { items })).ok_or_else(|| no_campaign(&id))
}

async fn order(State(app): Shared, Path((id, verb)): Path<(String, String)>) -> Answer<CampaignView> {
    let id: CampaignId = named(&id)?;
    let input = match verb.as_str() {
        "start" => Input::Start(id.clone()),
        "pause" => Input::Pause(id.clone()),
        "resume" => Input::Resume(id.clone()),
        "cancel" => Input::Cancel(id.clone()),
        _ => {
            return Err(Failure::not_found(
                "such order: a campaign can start, pause, resume or cancel",
            ));
        }
    };
    app.coordinator.act(input).await?;
    let wanted = id.clone();
    let view = app
        .coordinator
        .read(move |world| world.engine.campaign(&wanted))
        .await?;
    view.map(Json).ok_or_else(|| ActionError::Stopping.into())
}

fn no_campaign(id: &CampaignId) -> Failure {
    Failure::not_found(format!("campaign {id}"))
}

/// A name from the path, checked.
pub(super) fn named<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|error: T::Err| Failure::bad_request(error.to_string()))
}
