//! The operators' face, `/api/v1`: each route with what it needs; reading is open on loopback.

use std::{ops::Bound, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use firmesh_coordinator_core::split;
use firmesh_protocol::{
    api::{
        About, BrakeView, EnrolmentTicket, EventKind, NewNode, NodeView, Page, PlanRequest, PlanResponse, Publication,
        Published, ReleaseView, RevokeRequest, SplitResponse,
    },
    brake::Brake,
    ids::{ArtifactId, NodeId, Sha256},
    limits::MANIFEST_BYTES_MAX,
    manifest::{Artifact, FileRef},
    rehearsal::RehearsalResponse,
    trust::Envelope,
};
use serde::Deserialize;
use tracing::info;

use super::{
    App, access,
    admission::{self, Gate},
    audit, baselines, campaigns, catalogue,
    conditions::Conditions,
    devices, drafts, evidence, facade, firmware, groups, idempotency, identities, links, metrics, notifications,
    paging::Listing,
    places,
    problem::{self, Body, Failure},
    rates, reconcile, reports, repository,
    routes::{Op, Routes},
    simulations, storage, stream, targets, transcripts, uploads,
};
use crate::{
    access::Permission, ceremony::ReadFileError, provenance::SBOM_BYTES_MAX, publish::PUBLICATION_BYTES_MAX,
    runtime::Command, telemetry::chain, vetting::in_force,
};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

/// Every route but the dashboard's.
pub(super) fn routes() -> Routes {
    let mut routes = Routes::default();
    add_own(&mut routes);
    devices::add_routes(&mut routes);
    identities::add_routes(&mut routes);
    transcripts::add_routes(&mut routes);
    reports::add_routes(&mut routes);
    catalogue::add_routes(&mut routes);
    uploads::add_routes(&mut routes);
    repository::add_routes(&mut routes);
    facade::add_routes(&mut routes);
    baselines::add_routes(&mut routes);
    reconcile::add_routes(&mut routes);
    places::add_routes(&mut routes);
    links::add_routes(&mut routes);
    evidence::add_routes(&mut routes);
    groups::add_routes(&mut routes);
    campaigns::add_routes(&mut routes);
    firmware::add_routes(&mut routes);
    notifications::add_routes(&mut routes);
    audit::add_routes(&mut routes);
    access::add_routes(&mut routes);
    storage::add_routes(&mut routes);
    stream::add_routes(&mut routes);
    routes
}

/// The layers, from the inside: the key of a repeated request counts only for those who may make it.
pub(super) fn router(app: Arc<App>) -> Router<Arc<App>> {
    let (api, table) = routes().finish();
    let gate = Gate {
        app: app.clone(),
        table: Arc::new(table),
    };
    api.route_layer(from_fn_with_state(app.clone(), admission::log_change))
        .route_layer(from_fn_with_state(app.clone(), idempotency::keep_answer))
        .route_layer(from_fn_with_state(app, rates::limit))
        .route_layer(from_fn_with_state(gate, admission::admit))
        .route("/health", get(health))
        .method_not_allowed_fallback(problem::no_such_method)
}

#[rustfmt::skip]
fn add_own(routes: &mut Routes) {
    routes.add("about", "/api/v1/about", [
        Op::get("Which coordinator this is, and its public keys.", about).needs(Permission::FleetRead).answers::<About>(),
    ]);
    routes.add("artifacts", "/api/v1/artifacts", [
        Op::get("Lists the images.", artifacts).needs(Permission::FleetRead).paged().answers_page::<Artifact>(),
        Op::post("Imports an image: the body is the image.", import).needs(Permission::ArtifactImport)
            .unlimited()
            .query("sha256", "what the image is announced to be; needed with an Idempotency-Key")
            .takes_bytes()
            .answers::<Artifact>(),
    ]);
    routes.add("artifacts", "/api/v1/artifacts/{id}", [
        Op::get("Shows an image.", artifact).needs(Permission::FleetRead).tagged().answers::<Artifact>(),
    ]);
    routes.add("metadata", "/api/v1/metadata", [
        Op::post("Publishes signed files together, or not at all.", publish).needs(Permission::MetadataPublish)
            .limit(PUBLICATION_BYTES_MAX)
            .takes::<Publication>()
            .answers::<Published>(),
    ]);
    routes.add("metadata", "/api/v1/metadata/{file}", [
        Op::get("A published file, byte by byte.", metadata).needs(Permission::FleetRead).needs(Permission::FirmwareDownload).answers_as("application/json"),
    ]);
    routes.add("metadata", "/api/v1/targets/{*path}", [
        Op::get("An image or a manifest, as any TUF client asks for it.", targets::target).needs(Permission::FleetRead)
            .needs(Permission::FirmwareDownload)
            .answers_as("application/octet-stream"),
    ]);
    routes.add("provenance", "/api/v1/evidence", [
        Op::post("Keeps a vendor signature, an SBOM or a verdict.", put_evidence).needs(Permission::EvidenceWrite)
            .limit(SBOM_BYTES_MAX as usize)
            .takes_bytes()
            .answers::<FileRef>(),
    ]);
    routes.add("provenance", "/api/v1/evidence/{sha256}", [
        Op::get("Evidence by its digest.", evidence).needs(Permission::FleetRead).answers_as("application/octet-stream"),
    ]);
    routes.add("provenance", "/api/v1/verdicts/{image}", [
        Op::get("What this coordinator's policy said of an image.", verdict).needs(Permission::FleetRead).answers_as("application/octet-stream"),
    ]);
    routes.add("releases", "/api/v1/releases", [
        Op::get("Lists the verified releases, and whether the image is here.", releases).needs(Permission::FleetRead)
            .paged()
            .answers_page::<ReleaseView>(),
    ]);
    routes.add("nodes", "/api/v1/nodes", [
        Op::get("Lists the nodes.", nodes).needs(Permission::FleetRead).paged().answers_page::<NodeView>(),
        Op::post("Allows one node to enrol.", new_node).needs(Permission::NodeEnrol).takes::<NewNode>().answers::<EnrolmentTicket>(),
    ]);
    routes.add("nodes", "/api/v1/nodes/{id}", [
        Op::get("Shows a node.", node).needs(Permission::FleetRead).tagged().answers::<NodeView>(),
    ]);
    routes.add("nodes", "/api/v1/nodes/{id}/revoke", [
        Op::post("The node's key is no member's any more, for good.", revoke).needs(Permission::NodeRevoke).takes::<RevokeRequest>().empty(),
    ]);
    routes.add("brakes", "/api/v1/brakes", [
        Op::get("What was stopped for good.", brakes).needs(Permission::FleetRead).answers_page::<BrakeView>(),
        Op::post("Takes a signed brake (a DSSE envelope).", brake).needs(Permission::BrakePull).takes_bytes().answers_as("application/json"),
    ]);
    routes.add("campaigns", "/api/v1/plans", [
        Op::post("Plans a draft; the plan is kept under its digest.", drafts::make_plan).needs(Permission::CampaignPlan)
            .limit(MANIFEST_BYTES_MAX as usize)
            .query("allow_deprecated", "true, if releases may be planned with that are deprecated")
            .takes::<PlanRequest>()
            .answers::<PlanResponse>(),
    ]);
    routes.add("campaigns", "/api/v1/plans/split", [
        Op::post("Splits a draft for more devices than one campaign may have, by place.", split_plan).needs(Permission::CampaignPlan)
            .limit(MANIFEST_BYTES_MAX as usize)
            .takes::<PlanRequest>()
            .answers::<SplitResponse>(),
    ]);
    routes.add("campaigns", "/api/v1/simulations", [
        Op::post("Rehearses a campaign against the inventory.", simulations::rehearse_campaign).needs(Permission::CampaignPlan)
            .limit(MANIFEST_BYTES_MAX as usize)
            .takes_bytes()
            .answers::<RehearsalResponse>(),
    ]);
    routes.add("about", "/metrics", [
        Op::get("Counters and gauges.", metrics::tell).needs(Permission::MetricsRead).answers_as("application/openmetrics-text"),
    ]);
}

/// A follower answers by itself ([`crate::cluster`]).
async fn health(State(app): Shared) -> Result<([(&'static str, &'static str); 1], &'static str), Failure> {
    app.coordinator.read(|_| ()).await?;
    Ok(([("firmesh-role", "leader")], "ok\n"))
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
    let arrived = app
        .origin
        .import(request.into_body().into_data_stream(), sha256)
        .await?;
    let artifact = arrived.artifact.clone();
    app.store.put_artifact(&artifact).await?;
    drop(arrived);
    info!(artifact = %artifact.id, length = artifact.length, "artifact imported");
    app.events.send(app.clock.wall(), EventKind::Artifact(artifact.clone()));
    Ok(Json(artifact))
}

async fn artifacts(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let found = app.store.artifacts_after(listing.after()?, listing.wanted()).await?;
    Ok(listing.page(found, |artifact| artifact.id.to_string()))
}

async fn artifact(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let id: ArtifactId = named(&id)?;
    let found = app.store.artifact(id).await?;
    let found = found.ok_or_else(|| Failure::not_found(format!("artifact {id}")))?;
    Ok(conditions.answer(&found))
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

async fn releases(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let releases = release_views(&app).await?;
    Ok(listing.page_of(releases, |view| view.release.target.clone()))
}

/// All releases in the order of their targets, each with whether its image is here.
pub(super) async fn release_views(app: &App) -> Result<Vec<ReleaseView>, Failure> {
    let artifacts = app.store.artifacts().await?;
    let mut releases = app.coordinator.read(|world| world.releases()).await?;
    releases.sort_by(|a, b| a.target.cmp(&b.target));
    let view = |release: firmesh_protocol::manifest::Release| {
        let stored = artifacts.contains(&release.artifact);
        ReleaseView { release, stored }
    };
    Ok(releases.into_iter().map(view).collect())
}

async fn nodes(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let (first, wanted) = (listing.first::<NodeId>()?, listing.wanted());
    let items = app.coordinator.read(move |world| {
        let nodes = world.nodes.range((first, Bound::Unbounded)).take(wanted);
        nodes.map(|(_, node)| world.view_of(node)).collect()
    });
    Ok(listing.page(items.await?, |view: &NodeView| view.node.to_string()))
}

async fn node(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let id: NodeId = named(&id)?;
    let wanted = id.clone();
    let found = app.coordinator.read(move |world| world.node_view(&wanted)).await?;
    let found = found.ok_or_else(|| Failure::not_found(format!("node {id}")))?;
    Ok(conditions.answer(&found))
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

async fn split_plan(State(app): Shared, Body(PlanRequest { manifest }): Body<PlanRequest>) -> Answer<SplitResponse> {
    if let Err(error) = manifest.check() {
        return Err(Failure::bad_request(error.to_string()));
    }
    let (silent_after, wall) = (app.settings.silent_after, app.clock.wall());
    let (excluded, held) = (app.store.excluded().await?, app.store.held().await?);
    let (inventory, manifest) = app
        .coordinator
        .read(move |world| {
            let inventory = world.inventory(&manifest, silent_after, wall, excluded, &held);
            (inventory, manifest)
        })
        .await?;
    let parts = tokio::task::spawn_blocking(move || split(&inventory, &manifest))
        .await
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "planner", error.to_string()))?
        .map_err(|error| Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "cannot_be_planned", error.to_string()))?;
    Ok(Json(SplitResponse { parts }))
}

/// A name from the path, checked.
pub(super) fn named<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|error: T::Err| Failure::bad_request(error.to_string()))
}
