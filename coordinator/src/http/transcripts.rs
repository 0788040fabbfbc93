//! What was said to a device in its last attempts: `/api/v1/devices/{id}/transcripts` for operators, and `/node/v1/transcripts` and
//! `/node/v1/credentials` for the nodes that tell of it.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use firmesh_protocol::{
    api::{CredentialsReport, Page, TranscriptReport, TranscriptView, is_profile_name},
    ids::DeviceId,
    limits::{NODE_DEVICES_MAX, PROFILE_NAME_BYTES_MAX},
};

use super::{
    App,
    devices::found,
    identities::Sight,
    operators::named,
    problem::{Body, Failure},
    routes::{Op, Routes},
    tls::Peer,
};
use crate::{access::Permission, telemetry::chain, transcripts::Checked};

type Shared = State<Arc<App>>;

/// JSON lines.
const LINES: &str = "application/x-ndjson";

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "devices";
    routes.add(TAG, "/api/v1/devices/{id}/transcripts", [
        Op::get("Lists what was said to it in its last attempts, the newest first; nothing where its node writes none down.", list)
            .needs(Permission::TranscriptRead)
            .refuses(410)
            .answers_page::<TranscriptView>(),
    ]);
    routes.add(TAG, "/api/v1/devices/{id}/transcripts/{number}", [
        Op::get("Downloads a transcript of an attempt that did not end well: JSON lines, without secrets.", words)
            .needs(Permission::TranscriptRead)
            .refuses(410)
            .answers_as(LINES),
    ]);
}

/// So few that there is one page.
async fn list(State(app): Shared, Path(id): Path<String>) -> Result<Json<Page<TranscriptView>>, Failure> {
    let device: DeviceId = named(&id)?;
    found(&app, &device, &Sight::Nobody).await?;
    let items = app.store.transcripts_of(&device).await?;
    Ok(Json(Page { items }))
}

async fn words(State(app): Shared, Path((id, number)): Path<(String, String)>) -> Result<Response, Failure> {
    let device: DeviceId = named(&id)?;
    let number: u64 = number.parse().map_err(|_| {
        Failure::bad_request("a transcript has a number; `GET /api/v1/devices/{id}/transcripts` lists them")
    })?;
    found(&app, &device, &Sight::Nobody).await?;
    let kept = app.store.words_of(&device, number).await?;
    let kept = kept.ok_or_else(|| Failure::not_found(format!("transcript {number} of device {device}")))?;
    let words = kept.ok_or_else(|| {
        let detail = format!(
            "the words of transcript {number} of device {device} are not kept here: the attempt ended well, or the device's key is \
             gone; its node has them"
        );
        Failure::new(StatusCode::NOT_FOUND, "not_found", detail)
    })?;
    let name = format!("attachment; filename=\"{device}-{number}.jsonl\"");
    let headers = [
        (header::CONTENT_TYPE, LINES.to_owned()),
        (header::CONTENT_DISPOSITION, name),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, words).into_response())
}

/// A node tells what was said to a device of its own.
pub(super) async fn told(
    State(app): Shared,
    peer: Peer,
    Body(report): Body<TranscriptReport>,
) -> Result<StatusCode, Failure> {
    let node = peer.identity.node.clone();
    let (device, campaign) = (report.device.clone(), report.campaign.clone());
    let look = app.coordinator.read(move |world| {
        let Peer { identity, certificate } = peer;
        world.member(&identity.node, identity.key, &certificate)?;
        let known = world.devices.get(&device);
        let is_own = known.is_some_and(|known| *known.node == identity.node);
        Ok(is_own && world.engine.attempt(&campaign, &device).is_some())
    });
    let is_own = look.await?.map_err(|refused: crate::sync::SyncError| {
        app.metrics.refusals.inc();
        Failure::from(refused)
    })?;
    if !is_own {
        app.metrics.refusals.inc();
        let (device, campaign) = (&report.device, &report.campaign);
        let detail = format!("node {node} looks after no device {device} that is in the campaign {campaign}");
        return Err(Failure::new(StatusCode::CONFLICT, "other_device", detail).refused());
    }
    // A whole transcript is unpacked and read.
    let turn = app.verifying.clone().acquire_owned().await;
    let check = move || {
        let _turn = turn;
        Checked::of(report)
    };
    let checked = tokio::task::spawn_blocking(check).await;
    let checked = checked.map_err(|error| Failure::bad_request(error.to_string()))?;
    let checked = checked.map_err(|bad| {
        app.metrics.refusals.inc();
        Failure::new(StatusCode::BAD_REQUEST, "bad_body", chain(&bad))
    })?;
    app.store.keep_transcript(&node, &checked).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A node tells which profiles its devices have their credentials from.
pub(super) async fn profiles(
    State(app): Shared,
    peer: Peer,
    Body(report): Body<CredentialsReport>,
) -> Result<StatusCode, Failure> {
    let CredentialsReport { mut profiles } = report;
    if profiles.len() > NODE_DEVICES_MAX || !profiles.values().all(|profile| is_profile_name(profile)) {
        let detail = format!(
            "a node has at most {NODE_DEVICES_MAX} devices, and a profile's name 1 to {PROFILE_NAME_BYTES_MAX} printable bytes"
        );
        return Err(Failure::new(StatusCode::BAD_REQUEST, "bad_body", detail));
    }
    let node = peer.identity.node.clone();
    let look = app.coordinator.read(move |world| {
        let Peer { identity, certificate } = peer;
        world.member(&identity.node, identity.key, &certificate)?;
        // Nobody is to know of an erased device.
        profiles.retain(|device, _| !world.erased.contains(device));
        Ok(profiles)
    });
    let profiles = look.await?.map_err(|refused: crate::sync::SyncError| {
        app.metrics.refusals.inc();
        Failure::from(refused)
    })?;
    app.store.put_profiles(&node, &profiles).await?;
    Ok(StatusCode::NO_CONTENT)
}
