//! `POST /devices/{device}/clear`: a person at the node has looked at a quarantined device. A coordinator's word does not
//! do, because the place that is given up is one under the caps; so it takes the token that lies in the node's state folder,
//! readable by its owner alone: whoever can read that could change the journal itself.

use std::{fs, io, path::Path, sync::Arc};

use axum::{
    extract::{Path as UrlPath, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use firmesh_protocol::{
    api::Problem,
    ids::{DeviceId, Sha256},
};
use tokio::sync::oneshot;

use super::{Refusal, Runtime, refused, shutting_down};
use crate::files::write_durably;

/// The file of the token, in the state folder.
const TOKEN: &str = "local.token";

/// The longest token that is read.
const TOKEN_BYTES_MAX: u64 = 256;

/// Brings the runtime a person's word on a device.
#[derive(Debug)]
pub struct ClearRequest {
    /// The device.
    pub device: DeviceId,
    /// Whether it was quarantined.
    pub answer: oneshot::Sender<Result<(), Refusal>>,
}

/// What whoever changes something here has to show. Never in a log.
#[derive(Clone)]
pub struct LocalToken(Arc<str>);

impl std::fmt::Debug for LocalToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalToken")
    }
}

impl LocalToken {
    /// The node's token; made at its first start.
    pub fn own(state_dir: &Path) -> io::Result<Self> {
        match Self::read(state_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                getrandom::fill(&mut bytes).map_err(io::Error::other)?;
                let token = hex::encode(bytes);
                write_durably(&state_dir.join(TOKEN), token.as_bytes(), 0o600)?;
                Ok(Self(token.into()))
            }
            read => read,
        }
    }

    fn read(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(TOKEN);
        let length = fs::metadata(&path)?.len();
        if length == 0 || length > TOKEN_BYTES_MAX {
            let problem = format!("{} is no token: remove it, and start the node anew", path.display());
            return Err(io::Error::other(problem));
        }
        Ok(Self(fs::read_to_string(&path)?.trim().into()))
    }

    /// By digests, so that the time it takes says nothing.
    fn is_shown_in(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer "));
        shown.is_some_and(|shown| Sha256::of(shown.as_bytes()) == Sha256::of(self.0.as_bytes()))
    }
}

pub(super) async fn clear(
    State(runtime): State<Runtime>,
    UrlPath(device): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    if !runtime.token.is_shown_in(&headers) {
        let detail =
            format!("the token in {TOKEN} of the node's state folder has to be shown: use `firmesh-node --clear`");
        return refused(StatusCode::UNAUTHORIZED, "unauthenticated", detail);
    }
    let device = match DeviceId::new(device) {
        Ok(device) => device,
        Err(error) => return refused(StatusCode::BAD_REQUEST, "bad_request", error.to_string()),
    };
    let (answer, verdict) = oneshot::channel();
    let brought = runtime.clears.send(ClearRequest { device, answer }).await;
    match (brought, verdict.await) {
        (Ok(()), Ok(Ok(()))) => StatusCode::NO_CONTENT.into_response(),
        (Ok(()), Ok(Err(refusal))) => refused(StatusCode::CONFLICT, &refusal.code, refusal.detail),
        _ => shutting_down(),
    }
}

/// Tells the node that runs with this state folder that a person has looked at a device.
pub async fn clear_at(state_dir: &Path, device: &DeviceId) -> io::Result<()> {
    let LocalToken(token) = LocalToken::read(state_dir)?;
    let addresses = fs::read(state_dir.join("addresses.json"))?;
    let addresses: serde_json::Value = serde_json::from_slice(&addresses)?;
    let status = addresses["status"].as_str();
    let status = status.ok_or_else(|| io::Error::other("addresses.json does not say where the node listens"))?;
    let url = format!("http://{status}/devices/{device}/clear");
    let sent = reqwest::Client::new().post(url).bearer_auth(token).send().await;
    let answer = sent.map_err(io::Error::other)?;
    if answer.status().is_success() {
        return Ok(());
    }
    let problem: Problem = answer.json().await.map_err(io::Error::other)?;
    Err(io::Error::other(problem.detail))
}
