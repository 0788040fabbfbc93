//! `/api/v1/artifacts/collect` and `/api/v1/archive`: what is stored here and needed no more, and what lies in the archive.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use firmesh_protocol::{
    api::{ArchiveResult, ArchiveRun, ArchiveView, ArchivedAttempt, CollectImages, CollectedImages},
    ids::{CampaignId, DeviceId},
};

use super::{
    App,
    conditions::Conditions,
    operators::named,
    paging::Listing,
    problem::{Body, Failure},
    routes::{Op, Routes},
};
use crate::{
    access::Permission,
    archive::ArchiveError,
    collect::{CollectError, collect},
    telemetry::chain,
};

type Shared = State<Arc<App>>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    routes.add("artifacts", "/api/v1/artifacts/collect", [
        Op::post("Removes old images that nothing refers to, or tells which they are.", collect_images).needs(Permission::ArtifactDelete)
            .takes::<CollectImages>()
            .answers::<CollectedImages>(),
    ]);
    routes.add("archive", "/api/v1/archive", [
        Op::get("Lists the campaigns whose devices are archived.", list).needs(Permission::FleetRead).paged().answers_page::<ArchiveView>(),
        Op::post("Archives the campaigns that ended long ago, or tells which they are.", run).needs(Permission::PolicyWrite)
            .takes::<ArchiveRun>()
            .answers::<ArchiveResult>(),
    ]);
    routes.add("archive", "/api/v1/archive/{campaign}", [
        Op::get("When a campaign was archived, and the files with their digests.", show).needs(Permission::FleetRead).tagged().answers::<ArchiveView>(),
    ]);
    routes.add("archive", "/api/v1/archive/{campaign}/verify", [
        Op::get("Reads all files of a campaign and compares them with their digests.", verify).needs(Permission::FleetRead).answers::<ArchiveView>(),
    ]);
    routes.add("archive", "/api/v1/archive/{campaign}/attempts", [
        Op::get("The attempts of an archived campaign, as they were stored.", attempts).needs(Permission::FleetRead)
            .paged()
            .answers_page::<ArchivedAttempt>(),
    ]);
}

async fn collect_images(
    State(app): Shared,
    Body(asked): Body<CollectImages>,
) -> Result<Json<CollectedImages>, Failure> {
    let collected = collect(
        &app.coordinator,
        &app.store,
        &app.origin,
        &app.uploads,
        &asked,
        SystemTime::now(),
    )
    .await;
    collected.map(Json).map_err(|error| match error {
        CollectError::Store(error) => error.into(),
        CollectError::Action(error) => error.into(),
        CollectError::Uploads(error) => error.into(),
        error @ CollectError::Files(_) => damaged(&error),
    })
}

async fn list(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let archives = app.store.archives().await?;
    Ok(listing.page_of(archives, |archive| archive.campaign.to_string()))
}

async fn run(State(app): Shared, Body(asked): Body<ArchiveRun>) -> Result<Json<ArchiveResult>, Failure> {
    Ok(Json(app.archive.run(&asked, app.clock.wall()).await?))
}

async fn found(app: &App, campaign: &str) -> Result<ArchiveView, Failure> {
    let campaign: CampaignId = named(campaign)?;
    let archive = app.store.archive(&campaign).await?;
    archive.ok_or_else(|| Failure::not_found(format!("archive of campaign {campaign}")))
}

async fn show(State(app): Shared, Path(campaign): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    Ok(conditions.answer(&found(&app, &campaign).await?))
}

async fn verify(State(app): Shared, Path(campaign): Path<String>) -> Result<Json<ArchiveView>, Failure> {
    let archive = found(&app, &campaign).await?;
    app.archive.verify(&archive).await?;
    Ok(Json(archive))
}

async fn attempts(State(app): Shared, Path(campaign): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let archive = found(&app, &campaign).await?;
    let after: Option<DeviceId> = listing.after()?;
    let attempts = app.archive.attempts(&archive, after.as_ref(), listing.wanted()).await?;
    Ok(listing.page(attempts, |attempt| attempt.device.to_string()))
}

fn damaged(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "artifact_damaged", chain(error))
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Store(error) => error.into(),
            ArchiveError::Action(error) => error.into(),
            ArchiveError::Busy => Self::new(StatusCode::CONFLICT, "archive_running", chain(&error)),
            error => damaged(&error),
        }
    }
}
