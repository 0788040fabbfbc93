//! The audit log for auditors, `/api/v1/audit`: reading only. Whoever reads checks it himself.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::header,
    response::{IntoResponse, Response},
};
use firmesh_protocol::{
    api::{AuditEntries, AuditPath},
    ids::{CampaignId, DeviceId},
};
use serde::Deserialize;

use super::{
    App,
    problem::Failure,
    routes::{Op, Routes},
};
use crate::access::Permission;

type Shared = State<Arc<App>>;
type Asked<T> = Result<Query<T>, QueryRejection>;
type Answer<T> = Result<Json<T>, Failure>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    let mut add = |path: &str, op: Op| routes.add("audit", &format!("/api/v1/audit/{path}"), [op]);
    add("checkpoint", Op::get("The newest checkpoint, a signed note.", checkpoint).needs(Permission::AuditRead).answers_as("text/plain"));
    add("entries", Op::get("Entries with their documents.", entries).needs(Permission::AuditRead)
        .query("from", "the first entry, counted from 0")
        .query("count", "how many, 1000 if absent")
        .answers::<AuditEntries>());
    add("proof/inclusion", Op::get("That an entry is in the log (RFC 6962).", inclusion).needs(Permission::AuditRead)
        .required_query("index", "the entry")
        .query("size", "in the log of so many entries")
        .answers::<AuditPath>());
    add("proof/consistency", Op::get("That the log only grew (RFC 6962).", consistency).needs(Permission::AuditRead)
        .required_query("from", "the earlier size")
        .query("to", "the later size")
        .answers::<AuditPath>());
    add("proof/update", Op::get("The proof file about one device's update.", update).needs(Permission::AuditRead)
        .required_query("device", "the device")
        .required_query("campaign", "the campaign")
        .query("size", "in the log of so many entries")
        .answers_as("application/json"));
}

/// The newest checkpoint, as a signed note.
async fn checkpoint(State(app): Shared) -> Result<Response, Failure> {
    let note = app.store.audit_checkpoint().await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], note).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    #[serde(default)]
    from: u64,
    #[serde(default = "entries_default")]
    count: u64,
}

fn entries_default() -> u64 {
    1_000
}

async fn entries(State(app): Shared, query: Asked<Entries>) -> Answer<AuditEntries> {
    let Entries { from, count } = asked(query)?;
    Ok(Json(app.store.audit_entries(from, count).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inclusion {
    index: u64,
    size: Option<u64>,
}

async fn inclusion(State(app): Shared, query: Asked<Inclusion>) -> Answer<AuditPath> {
    let Inclusion { index, size } = asked(query)?;
    let size = within(&app, size).await?;
    if index >= size {
        return Err(Failure::not_found(format!("entry {index} among the first {size}")));
    }
    let path = app.store.audit_inclusion(index, size).await?;
    Ok(Json(AuditPath { path }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Consistency {
    from: u64,
    to: Option<u64>,
}

async fn consistency(State(app): Shared, query: Asked<Consistency>) -> Answer<AuditPath> {
    let Consistency { from, to } = asked(query)?;
    let to = within(&app, to).await?;
    if from > to {
        return Err(Failure::bad_request(format!("from={from} is beyond to={to}")));
    }
    let path = app.store.audit_consistency(from, to).await?;
    Ok(Json(AuditPath { path }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    device: DeviceId,
    campaign: CampaignId,
    size: Option<u64>,
}

/// The proof file about one device in one campaign, byte by byte as it is to be kept.
async fn update(State(app): Shared, query: Asked<Update>) -> Result<Response, Failure> {
    let Update { device, campaign, size } = asked(query)?;
    let size = within(&app, size).await?;
    let proof = app.store.audit_update(&device, &campaign, size).await?;
    let proof = proof.ok_or_else(|| {
        Failure::not_found(format!(
            "approved plan of campaign {campaign} with device {device} among the first {size} entries of the audit log"
        ))
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], proof.to_bytes()).into_response())
}

fn asked<T>(query: Asked<T>) -> Result<T, Failure> {
    let Query(asked) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    Ok(asked)
}

/// The size that was asked about, or that of the whole log.
async fn within(app: &App, size: Option<u64>) -> Result<u64, Failure> {
    let have = app.store.audit_size().await?;
    match size {
        Some(size) if size > have => Err(Failure::not_found(format!("log of {size} entries, it has {have}"))),
        size => Ok(size.unwrap_or(have)),
    }
}
