//! The control endpoint: the truth about every device, for tests and for the demo's last check.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use firmesh_executors_core::Slot;
use firmesh_protocol::ids::{Component, DeviceId};
use firmesh_simulations::device::{Event, HostState, Identity, Misbehaviour};
use serde::{Deserialize, Serialize};

use super::{Fleet, now_ms};

/// The truth about one device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeviceTruth {
    /// Its name.
    pub(crate) id: DeviceId,
    /// `bmc` or `host`.
    pub(crate) kind: String,
    /// Who makes it.
    pub(crate) vendor: String,
    /// Its model.
    pub(crate) model: String,
    /// The component that can be updated.
    pub(crate) component: Component,
    /// The version that runs; `None` while nothing does.
    pub(crate) version: Option<String>,
    /// The slot that runs, on a host.
    pub(crate) slot: Option<Slot>,
    /// Whether it is up.
    pub(crate) up: bool,
    /// Whether an update has begun and not ended.
    pub(crate) in_flight: bool,
    /// How it misbehaves.
    pub(crate) misbehaviour: Option<Misbehaviour>,
}

/// One event of one device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeviceEvent {
    /// The device.
    pub(crate) device: DeviceId,
    /// What happened.
    #[serde(flatten)]
    pub(crate) event: Event,
}

pub(super) fn router(fleet: Arc<Fleet>) -> Router {
    Router::new()
        .route("/health", get(async || "ok"))
        .route("/devices", get(devices))
        .route("/events", get(events))
        .route("/devices/{id}/misbehaviour", post(misbehave))
        .with_state(fleet)
}

async fn devices(State(fleet): State<Arc<Fleet>>) -> Json<Vec<DeviceTruth>> {
    let truth = |id: &DeviceId,
                 kind: &str,
                 Identity {
                     vendor,
                     model,
                     component,
                 }: Identity| DeviceTruth {
        id: id.clone(),
        kind: kind.to_owned(),
        vendor,
        model,
        component,
        version: None,
        slot: None,
        up: false,
        in_flight: false,
        misbehaviour: None,
    };
    let bmcs = fleet.bmcs.iter().map(|(id, server)| {
        server.bmc.change(|bmc| {
            bmc.advance(now_ms());
            DeviceTruth {
                version: Some(bmc.version.clone()),
                up: bmc.answers(now_ms()) && bmc.system_is_up(now_ms()),
                in_flight: bmc.log.in_flight(),
                misbehaviour: bmc.misbehaviour,
                ..truth(id, "bmc", bmc.settings.identity.clone())
            }
        })
    });
    let hosts = fleet.hosts.iter().map(|(id, server)| {
        server.host.change(|host| {
            let running = match &host.state {
                HostState::Up { slot, version, .. } => Some((*slot, version.clone())),
                HostState::Starting { .. } | HostState::Dead => None,
            };
            DeviceTruth {
                up: running.is_some(),
                slot: running.as_ref().map(|(slot, _)| *slot),
                version: running.map(|(_, version)| version),
                in_flight: host.log.in_flight(),
                misbehaviour: host.misbehaviour,
                ..truth(id, "host", host.settings.identity.clone())
            }
        })
    });
    Json(bmcs.chain(hosts).collect())
}

async fn events(State(fleet): State<Arc<Fleet>>) -> Json<Vec<DeviceEvent>> {
    let bmcs = fleet
        .bmcs
        .iter()
        .map(|(id, server)| (id, server.bmc.change(|bmc| bmc.log.events().to_vec())));
    let hosts = fleet
        .hosts
        .iter()
        .map(|(id, server)| (id, server.host.change(|host| host.log.events().to_vec())));
    let mut events: Vec<_> = bmcs
        .chain(hosts)
        .flat_map(|(id, events)| {
            events.into_iter().map(|event| DeviceEvent {
                device: id.clone(),
                event,
            })
        })
        .collect();
    events.sort_by_key(|event| event.event.at_ms);
    Json(events)
}

/// Sets how a device misbehaves; `null` makes it behave.
async fn misbehave(
    State(fleet): State<Arc<Fleet>>,
    Path(id): Path<DeviceId>,
    Json(misbehaviour): Json<Option<Misbehaviour>>,
) -> StatusCode {
    if let Some(server) = fleet.bmcs.get(&id) {
        server.bmc.change(|bmc| bmc.misbehaviour = misbehaviour);
    } else if let Some(server) = fleet.hosts.get(&id) {
        server.host.change(|host| host.misbehaviour = misbehaviour);
    } else {
        return StatusCode::NOT_FOUND;
    }
    StatusCode::NO_CONTENT
}
