//! `GET /devices/{device}/doctor`: what a device supports and what would be done with it. Nothing is changed by that, so nobody
//! has to show anything; but it costs a device's time, so one is asked at a time.

use std::{fs, io, path::Path};

use axum::{
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse as _, Json, Response},
};
use firmesh_protocol::{
    api::{DeviceExamination, Problem},
    ids::DeviceId,
};
use tokio::sync::oneshot;

use super::{Refusal, Runtime, refused, shutting_down};

/// Asks the runtime what a device supports.
#[derive(Debug)]
pub struct DoctorRequest {
    /// The device.
    pub device: DeviceId,
    /// What was found, or why nobody looked.
    pub answer: oneshot::Sender<Result<DeviceExamination, Refusal>>,
}

pub(super) async fn doctor(State(runtime): State<Runtime>, UrlPath(device): UrlPath<String>) -> Response {
    let device = match DeviceId::new(device) {
        Ok(device) => device,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "bad_request", error.to_string()),
    };
    let (answer, found) = oneshot::channel();
    let asked = runtime.doctors.send(DoctorRequest { device, answer }).await;
    match (asked, found.await) {
        (Ok(()), Ok(Ok(examination))) => Json(examination).into_response(),
        (Ok(()), Ok(Err(refusal))) => {
            let status = match refusal.code.as_str() {
                "not_found" => StatusCode::NOT_FOUND,
                "busy" => StatusCode::TOO_MANY_REQUESTS,
                _ => StatusCode::GATEWAY_TIMEOUT,
            };
            refused(status, &refusal.code, refusal.detail)
        }
        _ => shutting_down(),
    }
}

/// Asks the node that runs with this state folder what a device supports; nothing if none runs.
pub async fn doctor_at(state_dir: &Path, device: &DeviceId) -> io::Result<Option<DeviceExamination>> {
    let addresses = match fs::read(state_dir.join("addresses.json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let addresses: serde_json::Value = serde_json::from_slice(&addresses)?;
    let status = addresses["status"].as_str();
    let status = status.ok_or_else(|| io::Error::other("addresses.json does not say where the node listens"))?;
    let url = format!("http://{status}/devices/{device}/doctor");
    let answer = match reqwest::Client::new().get(url).send().await {
        // The file stays when a node ends.
        Err(error) if error.is_connect() => return Ok(None),
        answer => answer.map_err(io::Error::other)?,
    };
    if answer.status().is_success() {
        return answer.json().await.map(Some).map_err(io::Error::other);
    }
    let problem: Problem = answer.json().await.map_err(io::Error::other)?;
    Err(io::Error::other(problem.detail))
}
