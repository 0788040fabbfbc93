//! Campaigns, under the three names that people have for them: `/api/v1/campaigns`, and its aliases `rollouts` and
//! `deployments` with the same handlers.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use firmesh_coordinator_core::{Closing, Input, InputError, Subject};
use firmesh_protocol::{
    api::{
        AttemptView, CampaignDraftView, CampaignMetrics, CampaignState, CampaignStatus, CampaignView, CloseRequest,
        DeviceView, Explanation, PlanRequest, ServerView,
    },
    approval::{WaveApprovalRequest, WaveApprovalView},
    ids::{CampaignId, DeviceId, Sha256},
    limits::{MANIFEST_BYTES_MAX, REASON_BYTES_MAX},
    rollback::{RollbackRequest, RollbackView},
};
use serde::Deserialize;

use super::{
    App,
    admission::Who,
    conditions::Conditions,
    drafts,
    identities::Sight,
    operators::named,
    paging::Listing,
    problem::{Body, Failure},
    requests::asker,
    routes::{Op, Routes},
};
use crate::{
    access::Permission,
    drafts::{DraftRecord, as_campaign},
    runtime::{ActionError, Command},
    traces::Asked,
};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    for noun in ["campaigns", "rollouts", "deployments"] {
        const DEPRECATED: &str = "true, if releases may be planned with that are deprecated";
        routes.add(noun, &format!("/api/v1/{noun}"), [
            Op::get("Lists the campaigns in force, and those that wait for their approvers.", campaigns).needs(Permission::FleetRead)
                .paged()
                .answers_page::<CampaignView>(),
            Op::post("Plans a campaign; it waits for the signatures of its approvers.", drafts::create).needs(Permission::CampaignDraft)
                .limit(MANIFEST_BYTES_MAX as usize)
                .query("allow_deprecated", DEPRECATED)
                .takes::<PlanRequest>()
                .made::<CampaignDraftView>(),
        ]);
        routes.add(noun, &format!("/api/v1/{noun}/{{id}}"), [
            Op::get("Shows a campaign.", campaign).needs(Permission::FleetRead).tagged().answers::<CampaignView>(),
            Op::put("Plans a campaign anew that nobody has signed for yet.", drafts::replace).needs(Permission::CampaignDraft)
                .limit(MANIFEST_BYTES_MAX as usize)
                .query("allow_deprecated", DEPRECATED)
                .header("If-Match", true, "the `ETag` of what is replaced")
                .takes::<PlanRequest>()
                .answers::<CampaignDraftView>(),
            Op::delete("Removes a campaign that nobody has signed for yet.", drafts::remove).needs(Permission::CampaignDraft)
                .header("If-Match", false, "the `ETag` of what is removed")
                .empty(),
        ]);
        let mut add = |path: &str, op: Op| routes.add(noun, &format!("/api/v1/{noun}{path}"), [op]);
        add("/{id}/plan", Op::get("The plan, byte by byte.", campaign_plan).needs(Permission::FleetRead).answers_as("application/json"));
        add("/{id}/draft", Op::get("The draft as its approvers are to sign it.", drafts::show).needs(Permission::FleetRead)
            .tagged()
            .answers::<CampaignDraftView>());
        add("/{id}/explain", Op::get("Why it stands where it stands.", explain).needs(Permission::FleetRead)
            .query_number("wave", 0..=u32::MAX, "only this wave, counted from 0")
            .query("device", "only this device")
            .answers::<Vec<Explanation>>());
        add("/{id}/attempts", Op::get("Lists the attempts.", attempts).needs(Permission::FleetRead).paged().answers_page::<AttemptView>());
        add("/{id}/devices", Op::get("Lists the planned devices as they are now.", devices).needs(Permission::FleetRead)
            .paged()
            .answers_page::<DeviceView>());
        add("/{id}/servers", Op::get("Lists the servers of a provisioning campaign, with the phase that each is in.", servers)
            .needs(Permission::FleetRead)
            .paged()
            .answers_page::<ServerView>());
        add("/{id}/status", Op::get("Where it stands, in a few lines.", status).needs(Permission::FleetRead).tagged().answers::<CampaignStatus>());
        add("/{id}/metrics", Op::get("The campaign in numbers.", metrics).needs(Permission::FleetRead).tagged().answers::<CampaignMetrics>());
        add("/{id}/logs", Op::get("What was decided, in order.", logs).needs(Permission::FleetRead).paged().answers_page::<Explanation>());
        add("/{id}/rollbacks", Op::get("What people have sent back, in order.", rollbacks).needs(Permission::FleetRead)
            .paged()
            .answers_page::<RollbackView>());
        add("/{id}/rollback", Op::post("Devices go back to the version they had.", rollback).needs(Permission::CampaignRollback)
            .takes::<RollbackRequest>()
            .answers::<CampaignView>());
        add("/{id}/approvals", Op::get("What approvers were asked between waves, in order, and what they said.", approvals)
            .needs(Permission::FleetRead)
            .paged()
            .answers_page::<WaveApprovalView>());
        add("/{id}/approval", Op::post("An approver's signed yes or no after a wave.", approve).needs(Permission::CampaignApprove)
            .takes::<WaveApprovalRequest>()
            .answers::<CampaignView>());
        add("/{id}/close", Op::post("Ends an attempt that nobody reports the end of, or a campaign with all that is in flight.", close)
            .needs(Permission::CampaignOrder)
            .takes::<CloseRequest>()
            .answers::<CampaignView>());
        add("/{id}/{verb}", Op::post("An order: start, pause, resume or cancel.", order).needs(Permission::CampaignOrder).answers::<CampaignView>());
    }
}

async fn campaigns(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let (after, wanted) = (listing.after::<CampaignId>()?, listing.wanted());
    let first = after.as_ref().map_or("", CampaignId::as_str);
    let drafts = app.store.records_after::<DraftRecord>(first, wanted).await?;
    let views = app.coordinator.read(move |world| {
        let ids = world.engine.states().map(|(id, _)| id);
        let ids = ids.filter(|id| after.as_ref().is_none_or(|after| *id > after));
        let mut views: Vec<_> = ids.take(wanted).filter_map(|id| world.engine.campaign(id)).collect();
        for kept in drafts {
            let id = kept.id.parse::<CampaignId>().ok();
            let unsigned = id.filter(|id| world.engine.state(id).is_none());
            views.extend(unsigned.map(|id| as_campaign(id, kept.record)));
        }
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views.truncate(wanted);
        views
    });
    Ok(listing.page(views.await?, |view: &CampaignView| view.id.to_string()))
}

async fn campaign(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let version = drafts::found(&app, &named(&id)?).await?.map(|kept| kept.version);
    let view = view(&app, &id).await?;
    Ok(match version.filter(|_| view.state == CampaignState::PendingApproval) {
        Some(version) => conditions.part_versioned(version, &view),
        None => conditions.answer(&view),
    })
}

async fn view(app: &App, id: &str) -> Result<CampaignView, Failure> {
    let id: CampaignId = named(id)?;
    let wanted = id.clone();
    let found = app
        .coordinator
        .read(move |world| world.engine.campaign(&wanted))
        .await?;
    match found {
        Some(found) => Ok(found),
        None => {
            if let Some(kept) = drafts::found(app, &id).await? {
                return Ok(as_campaign(id, kept.record));
            }
            match app.store.archive(&id).await? {
                Some(_) => Err(Failure::not_found(format!(
                    "campaign {id} here any more: see /api/v1/archive/{id}"
                ))),
                None => Err(no_campaign(&id)),
            }
        }
    }
}

/// Of a campaign that nobody has signed for nothing has happened yet.
async fn nothing_yet<T>(app: &App, id: &CampaignId, found: Option<Vec<T>>) -> Result<Vec<T>, Failure> {
    match found {
        Some(found) => Ok(found),
        None if drafts::found(app, id).await?.is_some() => Ok(Vec::new()),
        None => Err(no_campaign(id)),
    }
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
    let digest = match digest {
        Some(digest) => digest,
        None => {
            let kept = drafts::found(&app, &id).await?;
            kept.ok_or_else(|| no_campaign(&id))?.record.plan_sha256
        }
    };
    plan_bytes(&app, digest).await
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
        .read(move |world| world.explain(&wanted, &about))
        .await?;
    if found.is_none()
        && let Some(kept) = drafts::found(&app, &id).await?
    {
        let view = as_campaign(id.clone(), kept.record);
        return Ok(Json(vec![Explanation {
            subject: format!("campaign {id}"),
            finding: view.reason,
            evidence: vec!["GET /api/v1/approvals names the keys that may sign".to_owned()],
        }]));
    }
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
    let found = nothing_yet(&app, &id, found).await?;
    Ok(listing.page(found, |attempt| attempt.device.to_string()))
}

async fn devices(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    listing: Listing,
) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let (wanted, after, count) = (id.clone(), listing.after::<DeviceId>()?, listing.wanted());
    let found = app
        .coordinator
        .read(move |world| {
            // A device may have been removed since.
            let (mut views, mut after) = (Vec::new(), after);
            loop {
                let attempts = world.engine.attempts_after(&wanted, after.as_ref(), count)?;
                let is_end = attempts.len() < count;
                after = attempts.last().map(|attempt| attempt.device.clone());
                views.extend(attempts.iter().filter_map(|attempt| world.device_view(&attempt.device)));
                if is_end || views.len() >= count {
                    views.truncate(count);
                    return Some(views);
                }
            }
        })
        .await?;
    let found = super::devices::dressed(&app, nothing_yet(&app, &id, found).await?, &Sight::of(&app, &who)).await?;
    Ok(listing.page(found, |view| view.facts.device.to_string()))
}

/// By their names. Of a campaign that is not for provisioning there are none.
async fn servers(State(app): Shared, Path(id): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let (wanted, after, count) = (id.clone(), listing.after::<String>()?, listing.wanted());
    let found = app
        .coordinator
        .read(move |world| world.engine.servers_after(&wanted, after.as_deref(), count))
        .await?;
    let found = nothing_yet(&app, &id, found).await?;
    Ok(listing.page(found, |server: &ServerView| server.server.clone()))
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
    let found = nothing_yet(&app, &id, found).await?;
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

async fn close(State(app): Shared, Path(id): Path<String>, Body(request): Body<CloseRequest>) -> Answer<CampaignView> {
    let id: CampaignId = named(&id)?;
    let CloseRequest { device, reason } = request;
    if !(1..=REASON_BYTES_MAX).contains(&reason.len()) {
        let detail = format!("`reason` must have 1 to {REASON_BYTES_MAX} bytes, for those who will ask");
        return Err(Failure::bad_request(detail));
    }
    let closing = Closing {
        campaign: id.clone(),
        device,
        reason,
    };
    app.coordinator.ask(|reply| Command::Close(closing, reply)).await?;
    Ok(Json(view(&app, id.as_str()).await?))
}

/// By the waves they are about, which are in order.
async fn approvals(State(app): Shared, Path(id): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let (wanted, after, count) = (id.clone(), listing.after::<u32>()?, listing.wanted());
    let found = app
        .coordinator
        .read(move |world| {
            let asked = world.engine.approvals(&wanted)?.iter();
            let rest = asked.filter(|asked| after.is_none_or(|after| asked.wave > after));
            Some(rest.take(count).cloned().collect())
        })
        .await?;
    Ok(listing.page(nothing_yet(&app, &id, found).await?, |asked| asked.wave.to_string()))
}

async fn approve(
    State(app): Shared,
    Path(id): Path<String>,
    Body(request): Body<WaveApprovalRequest>,
) -> Answer<CampaignView> {
    let id: CampaignId = named(&id)?;
    let asked = (id.clone(), Box::new(request.approval));
    app.coordinator
        .ask(|reply| Command::Approve(asked.0, asked.1, reply))
        .await?;
    Ok(Json(view(&app, id.as_str()).await?))
}

/// Starts a campaign, and with it the trace that it belongs to.
pub(super) async fn start(
    app: &App,
    id: &CampaignId,
    who: &Who,
    headers: &HeaderMap,
    route: &'static str,
) -> Result<(), ActionError> {
    let asked = Asked {
        parent: asker(headers),
        user: &who.name,
        route,
    };
    let begun = app.traces.begin(id, &asked, &app.store).await;
    if let Err(refused) = app.coordinator.act(Input::Start(id.clone())).await {
        app.traces.give_up(id, begun, &app.store).await;
        return Err(refused);
    }
    let wanted = id.clone();
    let known = app.coordinator.read(move |world| {
        let view = world.engine.campaign(&wanted)?;
        let devices = view.states.values().map(|count| u64::from(*count)).sum::<u64>();
        Some((world.engine.manifest(&wanted)?.clone(), devices))
    });
    if let Some((manifest, devices)) = known.await? {
        app.traces.started(&manifest, devices, &asked, begun);
    }
    Ok(())
}

async fn order(
    State(app): Shared,
    Path((id, verb)): Path<(String, String)>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
) -> Answer<CampaignView> {
    let id: CampaignId = named(&id)?;
    let ordered = match verb.as_str() {
        "start" => start(&app, &id, &who, &headers, "/api/v1/campaigns/{id}/start").await,
        other => {
            let input = other_order(other, &id)
                .ok_or_else(|| Failure::not_found("such order: a campaign can start, pause, resume or cancel"))?;
            app.coordinator.act(input).await
        }
    };
    if let Err(error) = ordered {
        let is_unknown = matches!(error, ActionError::Refused(InputError::UnknownCampaign(_)));
        if !is_unknown || drafts::found(&app, &id).await?.is_none() {
            return Err(error.into());
        }
        let detail = format!("the campaign {id} waits for the signatures of its approvers: sign and publish it first");
        return Err(Failure::new(StatusCode::CONFLICT, "wrong_state", detail).refused());
    }
    let wanted = id.clone();
    let view = app
        .coordinator
        .read(move |world| world.engine.campaign(&wanted))
        .await?;
    view.map(Json).ok_or_else(|| ActionError::Stopping.into())
}

fn other_order(verb: &str, id: &CampaignId) -> Option<Input> {
    match verb {
        "pause" => Some(Input::Pause(id.clone())),
        "resume" => Some(Input::Resume(id.clone())),
        "cancel" => Some(Input::Cancel(id.clone())),
        _ => None,
    }
}

fn no_campaign(id: &CampaignId) -> Failure {
    Failure::not_found(format!("campaign {id}"))
}
