//! Campaigns, under the three names that people have for them: `/api/v1/campaigns`, and its aliases `rollouts` and
//! `deployments` with the same handlers.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use firmesh_coordinator_core::{Input, Subject};
use firmesh_protocol::{
    api::{AttemptView, CampaignMetrics, CampaignStatus, CampaignView, DeviceView, Explanation},
    ids::{CampaignId, DeviceId, Sha256},
    rollback::{RollbackRequest, RollbackView},
};
use serde::Deserialize;

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
    runtime::{ActionError, Command},
};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    for noun in ["campaigns", "rollouts", "deployments"] {
        let mut add = |path: &str, op: Op| routes.add(noun, &format!("/api/v1/{noun}{path}"), [op]);
        add("", Op::get("Lists the campaigns in force.", campaigns).needs(Permission::FleetRead).paged().answers_page::<CampaignView>());
        add("/{id}", Op::get("Shows a campaign.", campaign).needs(Permission::FleetRead).tagged().answers::<CampaignView>());
        add("/{id}/plan", Op::get("The plan, byte by byte.", campaign_plan).needs(Permission::FleetRead).answers_as("application/json"));
        add("/{id}/explain", Op::get("Why it stands where it stands.", explain).needs(Permission::FleetRead)
            .query("wave", "only this wave, counted from 0")
            .query("device", "only this device")
            .answers::<Vec<Explanation>>());
        add("/{id}/attempts", Op::get("Lists the attempts.", attempts).needs(Permission::FleetRead).paged().answers_page::<AttemptView>());
        add("/{id}/devices", Op::get("Lists the planned devices as they are now.", devices).needs(Permission::FleetRead)
            .paged()
            .answers_page::<DeviceView>());
        add("/{id}/status", Op::get("Where it stands, in a few lines.", status).needs(Permission::FleetRead).tagged().answers::<CampaignStatus>());
        add("/{id}/metrics", Op::get("The campaign in numbers.", metrics).needs(Permission::FleetRead).tagged().answers::<CampaignMetrics>());
        add("/{id}/logs", Op::get("What was decided, in order.", logs).needs(Permission::FleetRead).paged().answers_page::<Explanation>());
        add("/{id}/rollbacks", Op::get("What people have sent back, in order.", rollbacks).needs(Permission::FleetRead)
            .paged()
            .answers_page::<RollbackView>());
        add("/{id}/rollback", Op::post("Devices go back to the version they had.", rollback).needs(Permission::CampaignRollback)
            .takes::<RollbackRequest>()
            .answers::<CampaignView>());
        add("/{id}/{verb}", Op::post("An order: start, pause, resume or cancel.", order).needs(Permission::CampaignOrder).answers::<CampaignView>());
    }
}

async fn campaigns(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let (after, wanted) = (listing.after::<CampaignId>()?, listing.wanted());
    let views = app.coordinator.read(move |world| {
        let ids = world.engine.states().map(|(id, _)| id);
        let ids = ids.filter(|id| after.as_ref().is_none_or(|after| *id > after));
        ids.take(wanted).filter_map(|id| world.engine.campaign(id)).collect()
    });
    Ok(listing.page(views.await?, |view: &CampaignView| view.id.to_string()))
}

async fn campaign(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    Ok(conditions.answer(&view(&app, &id).await?))
}

async fn view(app: &App, id: &str) -> Result<CampaignView, Failure> {
    let id: CampaignId = named(id)?;
    let wanted = id.clone();
    let found = app
        .coordinator
        .read(move |world| world.engine.campaign(&wanted))
        .await?;
    found.ok_or_else(|| no_campaign(&id))
}

async fn status(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let CampaignView {
        id,
        state,
        wave,
        waves,
        reason,
        ..
    } = view(&app, &id).await?;
    Ok(conditions.answer(&CampaignStatus {
        id,
        state,
        wave,
        waves: u32::try_from(waves.len()).unwrap_or(u32::MAX),
        ended: state.is_terminal(),
        reason,
    }))
}

async fn metrics(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let CampaignView {
        id,
        waves,
        states,
        possession,
        held,
        ..
    } = view(&app, &id).await?;
    let count = |wanted: fn(firmesh_protocol::report::AttemptState) -> bool| -> u32 {
        let counted = states.iter().filter(|(state, _)| wanted(**state));
        counted.map(|(_, count)| count).sum()
    };
    Ok(conditions.answer(&CampaignMetrics {
        id,
        devices: count(|_| true),
        ended: count(|state| state.is_terminal()),
        succeeded: count(|state| state.is_success()),
        waves,
        held: u32::try_from(held.len()).unwrap_or(u32::MAX),
        possession,
        states,
    }))
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

async fn attempts(State(app): Shared, Path(id): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let (wanted, after, count) = (id.clone(), listing.after::<DeviceId>()?, listing.wanted());
    let found = app
        .coordinator
        .read(move |world| world.engine.attempts_after(&wanted, after.as_ref(), count))
        .await?;
    let found = found.ok_or_else(|| no_campaign(&id))?;
    Ok(listing.page(found, |attempt| attempt.device.to_string()))
}

async fn devices(State(app): Shared, Path(id): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let (wanted, after, count) = (id.clone(), listing.after::<DeviceId>()?, listing.wanted());
    let found = app
        .coordinator
        .read(move |world| {
            let attempts = world.engine.attempts_after(&wanted, after.as_ref(), count)?;
            let views = attempts.iter().filter_map(|attempt| world.device_view(&attempt.device));
            Some(views.collect::<Vec<_>>())
        })
        .await?;
    let found = super::devices::dressed(&app, found.ok_or_else(|| no_campaign(&id))?).await?;
    Ok(listing.page(found, |view| view.facts.device.to_string()))
}

/// Decisions have no ids: their place in the order is one.
async fn logs(State(app): Shared, Path(id): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let (wanted, after, count) = (id.clone(), listing.after::<usize>()?, listing.wanted());
    let first = after.map_or(0, |after| after.saturating_add(1));
    let found = app
        .coordinator
        .read(move |world| {
            let decisions = world.engine.decisions(&wanted)?.iter();
            Some(
                decisions
                    .cloned()
                    .enumerate()
                    .skip(first)
                    .take(count)
                    .collect::<Vec<_>>(),
            )
        })
        .await?;
    let found = found.ok_or_else(|| no_campaign(&id))?;
    Ok(listing.page_as(found, |(place, _)| place.to_string(), |(_, decision)| decision))
}

/// Rollbacks have no ids: their place in the order is one.
async fn rollbacks(State(app): Shared, Path(id): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let (wanted, after, count) = (id.clone(), listing.after::<usize>()?, listing.wanted());
    let first = after.map_or(0, |after| after.saturating_add(1));
    let found = app
        .coordinator
        .read(move |world| world.engine.rollbacks(&wanted))
        .await?;
    let found = found.ok_or_else(|| no_campaign(&id))?.into_iter().enumerate();
    let page = found.skip(first).take(count).collect();
    Ok(listing.page_as(page, |(place, _)| place.to_string(), |(_, rollback)| rollback))
}

async fn rollback(
    State(app): Shared,
    Path(id): Path<String>,
    Body(request): Body<RollbackRequest>,
) -> Answer<CampaignView> {
    let id: CampaignId = named(&id)?;
    let asked = (id.clone(), Box::new(request));
    app.coordinator
        .ask(|reply| Command::RollBack(asked.0, asked.1, reply))
        .await?;
    Ok(Json(view(&app, id.as_str()).await?))
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
