//! `POST`, `PUT` and `DELETE` of `/api/v1/campaigns` and its aliases: drafts that wait for their approvers. And planning,
//! which they share with `POST /api/v1/plans`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use firmesh_coordinator_core::{PlanError, plan};
use firmesh_protocol::{
    api::{PlanRequest, PlanResponse},
    ids::{CampaignId, Sha256},
    limits::{MANIFEST_BYTES_MAX, PLAN_BYTES_MAX},
    manifest::{CampaignManifest, MANIFEST_SCHEMA, Plan, Strategy},
};
use serde::Deserialize;

use super::{
    App,
    catalogue::deprecated,
    conditions::{Conditions, changed_meanwhile},
    operators::named,
    problem::{Body, Failure},
};
use crate::{
    drafts::{DraftRecord, view},
    records::{Changed, Kept},
};

type Shared = State<Arc<App>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanQuery {
    #[serde(default)]
    allow_deprecated: bool,
}

pub(super) async fn make_plan(
    State(app): Shared,
    query: Result<Query<PlanQuery>, QueryRejection>,
    Body(PlanRequest { manifest }): Body<PlanRequest>,
) -> Result<Json<PlanResponse>, Failure> {
    let Query(PlanQuery { allow_deprecated }) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let (_, bytes) = planned(&app, manifest, allow_deprecated).await?;
    let plan_sha256 = Sha256::of(&bytes);
    let plan = String::from_utf8(bytes)
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "planner", error.to_string()))?;
    Ok(Json(PlanResponse { plan, plan_sha256 }))
}

/// Plans a draft, and keeps the plan under its digest.
async fn planned(app: &App, manifest: CampaignManifest, allow_deprecated: bool) -> Result<(Plan, Vec<u8>), Failure> {
    if manifest.schema != MANIFEST_SCHEMA {
        return Err(Failure::bad_request(format!(
            "the draft's schema must be {MANIFEST_SCHEMA:?}"
        )));
    }
    manifest.check().map_err(PlanError::from)?;
    refuse_hookless(app, &manifest.strategy)?;
    if !allow_deprecated {
        let marked = deprecated(app, manifest.releases.iter().map(|release| release.target.as_str())).await?;
        if !marked.is_empty() {
            let detail = format!(
                "deprecated: {}; plan with another release, or say ?allow_deprecated=true",
                marked.join("; ")
            );
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(Failure::new(status, "deprecated_release", detail).refused());
        }
    }
    let (silent_after, wall) = (app.settings.silent_after, app.clock.wall());
    let (excluded, held) = (app.store.excluded().await?, app.store.held().await?);
    let facts = app
        .coordinator
        .read(move |world| {
            let inventory = world.inventory(&manifest, silent_after, wall, excluded, &held);
            (inventory, world.releases(), manifest)
        })
        .await?;
    let planned = tokio::task::spawn_blocking(move || {
        let (inventory, releases, manifest) = facts;
        plan(&inventory, &manifest, &releases, wall).map(|plan| {
            let bytes = plan.to_bytes();
            (plan, bytes)
        })
    });
    let (plan, bytes) = planned
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
    app.store.put_plan(Sha256::of(&bytes), &bytes).await?;
    Ok((plan, bytes))
}

/// A strategy that has something done by webhooks that this coordinator does not know is refused, rather than planned and
/// held for ever.
fn refuse_hookless(app: &App, strategy: &Strategy) -> Result<(), Failure> {
    let known = |hook: &str| app.settings.gate_webhooks.iter().any(|known| known.name() == hook);
    let acts = [0, 1].map(|wave| strategy.acts_before(wave));
    match acts.iter().flatten().find(|(.., hook)| !known(hook)) {
        Some((act, pool, hook)) => {
            let detail = format!(
                "strategy.{}: this coordinator has no [[gate_webhooks]] of the name {hook:?}, which is to {} {pool}: configure it, or \
                 choose another strategy",
                act.as_str(),
                act.as_str()
            );
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            Err(Failure::new(status, "hook_not_configured", detail).refused())
        }
        None => Ok(()),
    }
}

/// A draft by its campaign's name.
pub(super) async fn found(app: &App, id: &CampaignId) -> Result<Option<Kept<DraftRecord>>, Failure> {
    Ok(app.store.record::<DraftRecord>(id.as_str()).await?)
}

/// A draft as it is to be signed.
pub(super) async fn show(
    State(app): Shared,
    Path(id): Path<String>,
    conditions: Conditions,
) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let kept = found(&app, &id).await?;
    let kept = kept.ok_or_else(|| Failure::not_found(format!("draft of a campaign {id}")))?;
    Ok(conditions.part_versioned(kept.version, &view(id, kept)))
}

pub(super) async fn create(
    State(app): Shared,
    query: Result<Query<PlanQuery>, QueryRejection>,
    Body(PlanRequest { manifest }): Body<PlanRequest>,
) -> Result<Response, Failure> {
    let Query(PlanQuery { allow_deprecated }) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let id = manifest.id.clone();
    refuse_published(&app, &id).await?;
    let record = drafted(&app, manifest, allow_deprecated).await?;
    app.log_change("campaign", id.as_str(), "drafted").await?;
    match app.store.put_record(id.as_str(), None, &record).await? {
        Changed::Yes(version) => {
            let kept = Kept {
                id: id.to_string(),
                version,
                record,
            };
            let place = HeaderValue::from_str(&format!("/api/v1/campaigns/{id}"));
            let place = place.map_err(|error| Failure::bad_request(error.to_string()))?;
            let tag = HeaderValue::from_str(&format!("\"v{version}\""));
            let tag = tag.map_err(|error| Failure::bad_request(error.to_string()))?;
            let headers = [(header::LOCATION, place), (header::ETAG, tag)];
            Ok((StatusCode::CREATED, headers, Json(view(id, kept))).into_response())
        }
        Changed::Meanwhile => Err(Failure::new(
            StatusCode::CONFLICT,
            "exists",
            format!("there is a draft of {id} already: change it with PUT, or choose another name"),
        )),
        Changed::Full => Err(Failure::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "records_full",
            "no more drafts are kept: remove some",
        )),
    }
}

pub(super) async fn replace(
    State(app): Shared,
    Path(id): Path<String>,
    query: Result<Query<PlanQuery>, QueryRejection>,
    conditions: Conditions,
    Body(PlanRequest { manifest }): Body<PlanRequest>,
) -> Result<Response, Failure> {
    let Query(PlanQuery { allow_deprecated }) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let id: CampaignId = named(&id)?;
    if manifest.id != id {
        let detail = format!("the draft is of the campaign {}, the path names {id}", manifest.id);
        return Err(Failure::bad_request(detail));
    }
    refuse_published(&app, &id).await?;
    let kept = found(&app, &id).await?;
    let kept = kept.ok_or_else(|| Failure::not_found(format!("draft of a campaign {id}")))?;
    conditions.require_part(kept.version)?;
    let record = drafted(&app, manifest, allow_deprecated).await?;
    app.log_change("campaign", id.as_str(), "drafted").await?;
    match app.store.put_record(id.as_str(), Some(kept.version), &record).await? {
        Changed::Yes(version) => {
            let kept = Kept {
                version,
                record,
                ..kept
            };
            Ok(conditions.part_versioned(version, &view(id, kept)))
        }
        Changed::Meanwhile | Changed::Full => Err(changed_meanwhile("draft")),
    }
}

pub(super) async fn remove(
    State(app): Shared,
    Path(id): Path<String>,
    conditions: Conditions,
) -> Result<StatusCode, Failure> {
    let id: CampaignId = named(&id)?;
    let kept = found(&app, &id).await?;
    let Some(kept) = kept else {
        refuse_published(&app, &id).await?;
        return Err(Failure::not_found(format!("draft of a campaign {id}")));
    };
    conditions.check_part(kept.version)?;
    app.log_change("campaign", id.as_str(), "draft removed").await?;
    match app
        .store
        .remove_record::<DraftRecord>(id.as_str(), kept.version)
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(changed_meanwhile("draft")),
    }
}

pub(super) async fn drafted(
    app: &App,
    mut manifest: CampaignManifest,
    allow_deprecated: bool,
) -> Result<DraftRecord, Failure> {
    let (plan, bytes) = planned(app, manifest.clone(), allow_deprecated).await?;
    manifest.plan_sha256 = Sha256::of(&bytes);
    let text = serde_json::to_string(&manifest)
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "encoding", error.to_string()))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        let detail = format!(
            "the manifest has {} bytes, at most {MANIFEST_BYTES_MAX} are signed",
            text.len()
        );
        return Err(Failure::bad_request(detail));
    }
    let devices = |wave: &Vec<_>| u32::try_from(wave.len()).unwrap_or(u32::MAX);
    Ok(DraftRecord {
        manifest: text,
        plan_sha256: manifest.plan_sha256,
        waves: plan.waves.iter().map(devices).collect(),
        held: plan.held,
        baseline: None,
    })
}

/// What is signed is changed by signing another edition.
async fn refuse_published(app: &App, id: &CampaignId) -> Result<(), Failure> {
    let wanted = id.clone();
    match app.coordinator.read(move |world| world.knows(&wanted)).await? {
        false => Ok(()),
        true => Err(Failure::new(
            StatusCode::CONFLICT,
            "campaign_signed",
            format!(
                "the campaign {id} is signed: before it starts, another edition replaces it (`firmesh campaign plan`, \
                 sign, publish); to end it, cancel it"
            ),
        )
        .refused()),
    }
}
