//! Targets under the names that TUF's consistent snapshots give them, so that any TUF client can download what is
//! published here: `firmware/<sha256>.<name>` and `campaigns/<sha256>.<id>.json`.
//!
//! Invariants: only what verified metadata names is served, and only under the digest it is signed with; clients check
//! the bytes themselves. Images are given to who may take them out, or to anybody on this machine where reading is open
//! there; each is an entry of the audit log.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{Method, header},
    response::{IntoResponse, Response},
};
use firmesh_protocol::{
    audit::Event,
    ids::{CampaignId, Sha256},
};

use super::{
    App,
    admission::{Who, may_take_image},
    problem::Failure,
};

pub(super) async fn target(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    Extension(who): Extension<Who>,
    method: Method,
) -> Result<Response, Failure> {
    let no_such = || Failure::not_found(format!("target {}", path.escape_debug()));
    let (folder, file) = path.split_once('/').ok_or_else(no_such)?;
    let (digest, name) = file.split_once('.').ok_or_else(no_such)?;
    let digest: Sha256 = digest.parse().map_err(|_| no_such())?;
    match folder {
        "campaigns" => {
            let id = name.strip_suffix(".json").ok_or_else(no_such)?;
            let id = CampaignId::new(id).map_err(|_| no_such())?;
            let manifest = (app.coordinator)
                .read(move |world| world.published.manifests.get(&id).cloned())
                .await?;
            let manifest = manifest
                .filter(|bytes| Sha256::of(bytes) == digest)
                .ok_or_else(no_such)?;
            Ok(([(header::CONTENT_TYPE, "application/json")], manifest).into_response())
        }
        "firmware" => {
            let name = format!("{folder}/{name}");
            let target = name.clone();
            let release = app.coordinator.read(move |world| {
                let fleet = world.published.fleet.as_ref()?;
                Some(fleet.release(&name).ok()?.into_inner().artifact)
            });
            let artifact = release
                .await?
                .filter(|artifact| artifact.sha256 == digest)
                .ok_or_else(no_such)?;
            may_take_image(&app, &who, &target).await?;
            let image = app.origin.read(&artifact, 0..artifact.length).await?;
            let export = Event::Export {
                target,
                artifact: artifact.id,
                first: 0,
                length: artifact.length,
                by: Some(who.name.clone()),
            };
            // Of what is only asked about, no byte leaves.
            if method != Method::HEAD {
                app.store.log_event(export, app.clock.wall()).await?;
            }
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
                (header::CONTENT_LENGTH, artifact.length.to_string()),
            ];
            Ok((headers, Body::from_stream(image)).into_response())
        }
        _ => Err(no_such()),
    }
}
