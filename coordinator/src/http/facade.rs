//! `/api/firmware`: the same by the names that provisioning tools know: check, update, repository/sync, status. A thin
//! face: each of them does what routes under `/api/v1` do.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Extension, Json, extract::State, http::HeaderMap};
use firmesh_protocol::{
    api::{
        CampaignState, CampaignView, DeviceStatus, DeviceView, FirmwareCheck, FirmwareChecked, FirmwareStatus,
        FirmwareUpdate, Page,
    },
    manifest::Release,
    report::AttemptState,
};

use super::{
    App,
    admission::Who,
    campaigns,
    paging::{LIMIT_MAX, parse_filter},
    problem::{Body, Failure},
    routes::{Op, Routes},
    stretches::{Devices, by_status},
};
use crate::{access::Permission, provenance::compare_versions, runtime::ActionError, world::World};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "firmware-facade";
    routes.add(TAG, "/api/firmware/check", [
        Op::post("What devices run, and the newest approved release for them.", check).needs(Permission::FleetRead)
            .takes::<FirmwareCheck>()
            .answers_page::<FirmwareChecked>(),
    ]);
    routes.add(TAG, "/api/firmware/update", [
        Op::post("Starts a campaign that is approved.", update).needs(Permission::CampaignOrder).takes::<FirmwareUpdate>().answers::<CampaignView>(),
    ]);
    routes.add(TAG, "/api/firmware/status", [
        Op::get("Devices, campaigns and images in numbers.", status).needs(Permission::FleetRead).answers::<FirmwareStatus>(),
    ]);
}

async fn check(State(app): Shared, Body(asked): Body<FirmwareCheck>) -> Answer<Page<FirmwareChecked>> {
    let most = LIMIT_MAX as usize;
    if asked.devices.len() > most || (asked.filter.is_some() && !asked.devices.is_empty()) {
        let detail = format!("name at most {most} `devices`, or give a `filter`, not both");
        return Err(Failure::bad_request(detail));
    }
    let filter = asked.filter.as_deref().map(parse_filter).transpose()?;
    let (named, wanted) = (asked.devices.clone(), asked.devices);
    let views = match wanted.is_empty() {
        true => Devices::of(&app, filter.map(Arc::new), None).take(most).await?,
        false => {
            let look = move |world: &World| wanted.iter().filter_map(|id| world.device_view(id)).collect();
            app.coordinator.read(look).await?
        }
    };
    let releases = app.coordinator.read(World::releases).await?;
    if let Some(stranger) = named
        .iter()
        .find(|id| !views.iter().any(|view| view.facts.device == **id))
    {
        let detail = format!("no node has told of a device {stranger}: check the name (`firmesh device list`)");
        return Err(Failure::new(
            axum::http::StatusCode::UNPROCESSABLE_ENTITY,
            "unknown_device",
            detail,
        ));
    }
    let items = views.into_iter().map(|view| checked(view, &releases)).collect();
    Ok(Json(Page { items }))
}

fn checked(view: DeviceView, releases: &[Release]) -> FirmwareChecked {
    let facts = view.facts;
    let is_for = |release: &&Release| {
        let info = &release.info;
        info.vendor == facts.vendor && info.component == facts.component && info.models.contains(&facts.model)
    };
    let fitting = releases.iter().filter(is_for);
    let newest = fitting.max_by(|a, b| compare_versions(&a.info.version, &b.info.version));
    let update_available = facts
        .version
        .as_ref()
        .map(|runs| newest.is_some_and(|newest| compare_versions(&newest.info.version, runs).is_gt()));
    let is_running = |state: AttemptState| !state.is_terminal();
    FirmwareChecked {
        device: facts.device,
        component: facts.component,
        version: facts.version,
        newest: newest.map(|newest| newest.info.version.clone()),
        release: newest.map(|newest| newest.target.clone()),
        update_available,
        campaign: view
            .attempt
            .filter(|attempt| is_running(attempt.state))
            .map(|attempt| attempt.campaign),
    }
}

async fn update(
    State(app): Shared,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Body(FirmwareUpdate { campaign }): Body<FirmwareUpdate>,
) -> Answer<CampaignView> {
    campaigns::start(&app, &campaign, &who, &headers, "/api/firmware/update").await?;
    let view = app
        .coordinator
        .read(move |world| world.engine.campaign(&campaign))
        .await?;
    view.map(Json).ok_or_else(|| ActionError::Stopping.into())
}

async fn status(State(app): Shared) -> Answer<FirmwareStatus> {
    let mut counts: BTreeMap<DeviceStatus, u32> = BTreeMap::new();
    for (kind, count) in by_status(&app, |path| path.prefix(1)).await?.iter() {
        *counts.entry(kind.other).or_default() += count;
    }
    let campaigns = app.coordinator.read(|world| {
        let mut campaigns: BTreeMap<CampaignState, u32> = BTreeMap::new();
        for (_, state) in world.engine.states() {
            *campaigns.entry(state).or_default() += 1;
        }
        campaigns
    });
    let campaigns = campaigns.await?;
    let artifacts = app.store.artifacts().await?;
    let operations = app.store.operations_after("", usize::from(u16::MAX)).await?;
    Ok(Json(FirmwareStatus {
        devices: counts,
        registered: app.store.registrations_count().await?,
        campaigns,
        images: u32::try_from(artifacts.len()).unwrap_or(u32::MAX),
        image_bytes: artifacts.iter().map(|artifact| artifact.length).sum(),
        last_sync: operations
            .into_iter()
            .rfind(|operation| operation.kind == "repository_sync"),
    }))
}
