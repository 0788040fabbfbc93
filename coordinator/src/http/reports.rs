//! Devices that talk for themselves: `updates/check`, `status`, `validation`.
//!
//! Invariant: what they say is written down as theirs, beside what their nodes have signed, and nothing is decided by it:
//! gates, permits and the audit log do not look at it. What they are told is an offer; only signatures make it more.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use firmesh_protocol::{
    api::{
        PlannedUpdate, Said, SaidAnswer, SaidHealth, SignatureInfo, SignatureRole, StatusReport, UpdateCheck,
        ValidationReport,
    },
    ids::{CampaignId, DeviceId},
    limits::REASON_BYTES_MAX,
    time::WallTime,
    trust::{KeySet, TrustedFleet},
};
use serde::Deserialize;

use super::{
    App,
    admission::Who,
    devices,
    identities::Sight,
    operators::named,
    problem::{Body, Failure},
    routes::{Op, Routes},
};
use crate::{access::Permission, world::World};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

/// Sensors that a device tells of, at most.
const SENSORS_MAX: usize = 64;

/// Bytes of a version that a device tells, at most: as for those that nodes tell.
const VERSION_BYTES_MAX: usize = 256;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "device-reports";
    routes.add(TAG, "/api/v1/updates/check", [
        Op::get("What an approved campaign plans for a device.", check).needs(Permission::UpdateCheck).needs(Permission::FleetRead)
            .required_query("device", "the device")
            .refuses(410)
            .answers::<UpdateCheck>(),
    ]);
    routes.add(TAG, "/api/v1/status", [
        Op::post("A device says what it does; kept as its own word.", status).needs(Permission::DeviceReport)
            .refuses(410)
            .takes::<StatusReport>()
            .answers::<SaidAnswer>(),
    ]);
    routes.add(TAG, "/api/v1/validation", [
        Op::post("A device says whether it is content with what it runs; kept as its own word.", validation).needs(Permission::DeviceReport)
            .refuses(410)
            .takes::<ValidationReport>()
            .answers::<SaidAnswer>(),
    ]);
    routes.add(TAG, "/api/v1/devices/{id}/status", [
        Op::post("A device says what it does; kept as its own word.", status_of).needs(Permission::DeviceReport)
            .refuses(410)
            .takes::<StatusReport>()
            .answers::<SaidAnswer>(),
    ]);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckQuery {
    device: DeviceId,
}

async fn check(State(app): Shared, query: Result<Query<CheckQuery>, QueryRejection>) -> Answer<UpdateCheck> {
    let Query(CheckQuery { device }) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let (view, _) = devices::found(&app, &device, &Sight::Nobody).await?;
    if !view.enabled {
        return Ok(Json(UpdateCheck::default()));
    }
    let wall = app.clock.wall();
    let update = app
        .coordinator
        .read(move |world| {
            let running = world.running_campaigns();
            running
                .iter()
                .find_map(|campaign| planned(world, campaign, &device, wall))
        })
        .await?;
    Ok(Json(UpdateCheck {
        available: update.is_some(),
        update,
    }))
}

fn planned(world: &World, campaign: &CampaignId, device: &DeviceId, wall: WallTime) -> Option<PlannedUpdate> {
    let attempt = world.engine.attempt(campaign, device)?;
    if attempt.state.is_terminal() {
        return None;
    }
    let (planned, permit) = world.engine.planned(campaign, device)?;
    let fleet = world.published.fleet.as_ref()?;
    let release = fleet.release(&planned.release).ok()?.into_inner();
    let name = release.target.strip_prefix("firmware/")?;
    let url = format!("/api/v1/targets/firmware/{}.{name}", release.artifact.sha256);
    let in_force = |sequence: u64| {
        let mut permits = world.permits.of_campaign(campaign);
        permits.any(|permit| permit.sequence == sequence && permit.expires > wall)
    };
    Some(PlannedUpdate {
        campaign: campaign.clone(),
        state: attempt.state,
        permitted: permit.is_some_and(in_force),
        version: release.info.version,
        url,
        target: release.target,
        length: release.artifact.length,
        sha256: release.artifact.sha256,
        blake3: release.artifact.id,
        signature: signature(fleet)?,
    })
}

/// Who must have signed, by the published metadata.
pub(super) fn signature(fleet: &TrustedFleet) -> Option<SignatureInfo> {
    Some(SignatureInfo {
        scheme: "tuf".to_owned(),
        metadata_url: "/api/v1/metadata".to_owned(),
        releases: role(&fleet.release_keys().ok()?),
        campaigns: role(&fleet.approver_keys().ok()?),
    })
}

/// A role as clients are told of it.
pub(super) fn role(keys: &KeySet) -> SignatureRole {
    let ids = keys.keys().filter_map(|key| keys.id_of(key));
    SignatureRole {
        role: keys.role().to_owned(),
        threshold: u32::try_from(keys.threshold()).unwrap_or(u32::MAX),
        key_ids: ids.map(ToString::to_string).collect(),
    }
}

async fn status(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Body(report): Body<StatusReport>,
) -> Answer<SaidAnswer> {
    let device = report.device.clone();
    let device = device.ok_or_else(|| Failure::bad_request("say which `device` it is"))?;
    speaks_for_itself(&who, &device)?;
    written_down(&app, device, Some(report), None).await
}

async fn status_of(State(app): Shared, Path(id): Path<String>, Body(report): Body<StatusReport>) -> Answer<SaidAnswer> {
    let device: DeviceId = named(&id)?;
    if report.device.as_ref().is_some_and(|named| *named != device) {
        let detail = format!("the body is about another device than the path, {device}");
        return Err(Failure::bad_request(detail));
    }
    written_down(&app, device, Some(report), None).await
}

async fn validation(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Body(report): Body<ValidationReport>,
) -> Answer<SaidAnswer> {
    speaks_for_itself(&who, &report.device)?;
    written_down(&app, report.device.clone(), None, Some(report)).await
}

/// A device was let in to speak for itself; whom it speaks of stands in the body.
fn speaks_for_itself(who: &Who, device: &DeviceId) -> Result<(), Failure> {
    match &who.device {
        Some(own) if own != device => {
            let detail = format!("you are the device {own}, and speak for yourself only, not for {device}");
            Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", detail).refused())
        }
        _ => Ok(()),
    }
}

async fn written_down(
    app: &App,
    device: DeviceId,
    status: Option<StatusReport>,
    validation: Option<ValidationReport>,
) -> Answer<SaidAnswer> {
    status.as_ref().map_or(Ok(()), check_status)?;
    if let Some(report) = &validation {
        check_text("version", Some(&report.version), VERSION_BYTES_MAX)?;
        check_text("message", report.message.as_deref(), REASON_BYTES_MAX)?;
    }
    let (view, _) = devices::found(app, &device, &Sight::Nobody).await?;
    let before = view.said.map_or((None, None), |said| (said.status, said.validation));
    let validated = validation.as_ref().map(|report| report.version.clone());
    let said = Said {
        at: app.clock.wall(),
        status: status.or(before.0),
        validation: validation.or(before.1),
    };
    app.store.put_said(&device, &said).await?;
    Ok(Json(SaidAnswer {
        device,
        at: said.at,
        status: view.status,
        confirmed: validated.map(|version| view.facts.version == Some(version)),
    }))
}

fn check_status(report: &StatusReport) -> Result<(), Failure> {
    check_text("version", report.version.as_deref(), VERSION_BYTES_MAX)?;
    check_text("message", report.message.as_deref(), REASON_BYTES_MAX)?;
    if report.progress.is_some_and(|progress| progress > 100) {
        return Err(Failure::bad_request("`progress` is in percent, 0 to 100"));
    }
    report.health.as_ref().map_or(Ok(()), check_health)
}

fn check_health(health: &SaidHealth) -> Result<(), Failure> {
    for (field, percent) in [
        ("cpu_percent", health.cpu_percent),
        ("memory_percent", health.memory_percent),
        ("error_percent", health.error_percent),
    ] {
        if percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            return Err(Failure::bad_request(format!(
                "`health.{field}` is in percent, 0 to 100"
            )));
        }
    }
    if health.sensor_readings.len() > SENSORS_MAX {
        let detail = format!("`health.sensor_readings` has more than {SENSORS_MAX} sensors");
        return Err(Failure::bad_request(detail));
    }
    let mut names = health.sensor_readings.keys();
    names.try_for_each(|name| devices::check_label("health.sensor_readings", name))
}

fn check_text(field: &str, text: Option<&str>, most: usize) -> Result<(), Failure> {
    match text.map(str::len) {
        Some(length) if length > most => Err(Failure::bad_request(format!(
            "`{field}` has {length} bytes, at most {most} are kept"
        ))),
        _ => Ok(()),
    }
}
