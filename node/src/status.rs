//! The node's local status API: a [`page`] for people, `/health`, `/status`, `/metrics`, loopback only. What changes something needs a signature or
//! the node's own token: `POST /brakes` pulls a brake here and, from peer to peer, everywhere, with the coordinator dead or
//! lying; `/bundle` takes what a bundle brings ([`bundles`]); a quarantined device is put back in service ([`clear`]). What a device
//! supports is told by [`doctor`].

mod bundles;
mod clear;
mod doctor;
mod page;

use std::{collections::BTreeMap, io, net::SocketAddr};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use firmesh_executors::HostState;
use firmesh_protocol::{
    api::{Holding, Problem, Traffic},
    brake::Braked,
    ids::{ArtifactId, CampaignId, DeviceId, NodeId, TopologyPath},
    report::{AttemptState, DeviceFacts, PermitKind},
    site_bundle::{Head, Wants},
    time::WallTime,
    trust::Envelope,
};
use prometheus_client::{encoding::text::encode, metrics::gauge::Gauge, registry::Registry};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::store::Scrubbed;

pub use crate::audit::AuditStatus;
pub use clear::{ClearRequest, LocalToken, clear_at};
pub use doctor::{DoctorRequest, doctor_at};

/// Asks the runtime for the status.
pub type StatusRequest = oneshot::Sender<Status>;

/// Brings the runtime a brake.
#[derive(Debug)]
pub struct BrakeRequest {
    /// What was signed.
    pub envelope: Envelope,
    /// Whether it counts.
    pub answer: oneshot::Sender<Result<(), Refusal>>,
}

/// The longest brake that is read.
const BRAKE_BYTES_MAX: usize = 64 << 10;

/// The runtime, as the handlers reach it.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Asks for the status.
    pub status: mpsc::Sender<StatusRequest>,
    /// Brings brakes.
    pub brakes: mpsc::Sender<BrakeRequest>,
    /// Brings bundles.
    pub bundles: mpsc::Sender<BundleRequest>,
    /// Brings people's word on quarantined devices.
    pub clears: mpsc::Sender<ClearRequest>,
    /// Asks what a device supports.
    pub doctors: mpsc::Sender<DoctorRequest>,
    /// What they have to show.
    pub token: LocalToken,
}

/// Brings the runtime a part of a bundle.
#[derive(Debug)]
pub enum BundleRequest {
    /// Its head.
    Head {
        /// The head.
        head: Box<Head>,
        /// What is wanted of it, or why it is not believed.
        answer: oneshot::Sender<Result<Wants, Refusal>>,
    },
    /// What is wanted by now.
    Wants {
        /// Of which campaign.
        campaign: CampaignId,
        /// What is wanted, or why nothing is.
        answer: oneshot::Sender<Result<Wants, Refusal>>,
    },
    /// A piece with its proof.
    Piece {
        /// The artifact.
        artifact: ArtifactId,
        /// The piece.
        piece: u32,
        /// The piece as [`firmesh_protocol::chunk::encode`] has it.
        encoded: Bytes,
        /// Whether it is verified and durable.
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
}

/// What the node knows of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub path: TopologyPath,
    /// Version and commit.
    pub version: String,
    /// Whether the coordinator answered the last time.
    pub coordinator_reachable: bool,
    /// Version of the timestamp metadata that is trusted; 0 before the first.
    pub timestamp_version: u64,
    /// Members of the roster, this node included.
    pub members: usize,
    /// Peers with a control stream.
    pub connected: usize,
    /// What it holds.
    pub holdings: Vec<Holding>,
    /// How many peers say that they hold something of each of these, by artifact.
    pub holders: BTreeMap<String, usize>,
    /// What it has moved since it started.
    pub traffic: Traffic,
    /// Pieces that were durable here when the artifact was first wanted, by artifact: a restart asks for none of them.
    pub durable_at_start: BTreeMap<String, u32>,
    /// When each artifact was wanted and was whole, by artifact, since this node started.
    pub transfers: BTreeMap<String, TransferTimes>,
    /// Banned peers, with the reason.
    pub banned: BTreeMap<NodeId, String>,
    /// Approved campaigns it takes part in.
    pub campaigns: Vec<CampaignId>,
    /// Its devices as last read.
    pub devices: Vec<DeviceFacts>,
    /// Its attempts.
    pub attempts: Vec<AttemptStatus>,
    /// Hosts that step aside for its devices.
    #[serde(default)]
    pub hosts: Vec<HostStatus>,
    /// Metadata, campaigns and permits it refused last, newest last.
    pub refusals: Vec<Refusal>,
    /// What was stopped for good.
    pub brakes: Vec<Braked>,
    /// Version of the revocation list in force.
    pub revocations_version: u64,
    /// When its certificate expires.
    pub certificate_until: Option<WallTime>,
    /// What it knows of the audit log.
    pub audit: AuditStatus,
    /// What its store keeps.
    pub store: StoreStatus,
    /// The last problem with its own disk or devices, if there is one.
    pub last_error: Option<String>,
    /// Spans that no OpenTelemetry collector has taken, since it was started.
    #[serde(default)]
    pub spans_dropped: u64,
}

/// What a store keeps, as it was seen last, and how far its scrub has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The most it may use, if that is bounded.
    pub quota_bytes: Option<u64>,
    /// What it leaves free on its disk.
    pub reserve_bytes: u64,
    /// What its artifacts take now.
    pub used_bytes: u64,
    /// What they take once they are whole.
    pub promised_bytes: u64,
    /// What the disk has left.
    pub free_bytes: u64,
    /// How many artifacts there are, whole or in part.
    pub artifacts: usize,
    /// What must stay, whether it is here yet or not.
    pub pinned: Vec<ArtifactId>,
    /// What is wanted and not begun, or not gone on with, for want of room.
    pub waiting_for_room: Vec<ArtifactId>,
    /// Artifacts that made room since the node started.
    pub evicted: u64,
    /// Verified content that bundles brought since the node started.
    pub bundle_bytes: u64,
    /// The scrub.
    pub scrub: Scrubbed,
}

/// When an artifact came, in milliseconds since 1970 by this node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferTimes {
    /// When this node began to take part.
    pub wanted_ms: u64,
    /// When its last piece was verified and durable here.
    pub whole_ms: Option<u64>,
}

/// Where one device of this node stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttemptStatus {
    /// The device.
    pub device: DeviceId,
    /// The campaign.
    pub campaign: CampaignId,
    /// Update or rollback.
    pub kind: PermitKind,
    /// The state.
    pub state: AttemptState,
    /// Why, for a person.
    pub reason: String,
    /// The version last read back.
    pub version: Option<String>,
}

/// Where one host of this node stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host.
    pub host: String,
    /// Where it stands.
    pub state: HostState,
    /// For how long, in seconds.
    pub since_s: u64,
    /// Whether this node had it step aside, and so has to give it back.
    pub owed: bool,
    /// The devices that an attempt is at.
    pub devices: Vec<DeviceId>,
    /// What failed in a row since it stands there, by number.
    pub failures: u32,
    /// What failed last of it.
    pub problem: Option<String>,
}

/// Something signed, or meant to be, that this node did not believe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A stable name for machines.
    pub code: String,
    /// What was refused and why, for a person.
    pub detail: String,
}

/// Serves until `cancel`.
pub async fn serve(listener: tokio::net::TcpListener, runtime: Runtime, cancel: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/", get(page::page))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/health", get(|| async { "ok\n" }))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/brakes", post(brake).layer(DefaultBodyLimit::max(BRAKE_BYTES_MAX)))
        .route("/devices/{device}/clear", post(clear::clear))
        .route("/devices/{device}/doctor", get(doctor::doctor))
        .merge(bundles::router())
        .with_state(runtime);
    axum::serve(listener, router)
        .with_graceful_shutdown(cancel.cancelled_owned())
        .await
}

/// Opens the listener.
pub async fn listen(listen: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(listen).await
}

async fn ask(requests: &mpsc::Sender<StatusRequest>) -> Option<Status> {
    let (answer, status) = oneshot::channel();
    requests.send(answer).await.ok()?;
    status.await.ok()
}

fn refused(status: StatusCode, code: &str, detail: String) -> Response {
    let problem = Problem {
        kind: format!("urn:firmesh:problem:{code}"),
        title: code.replace('_', " "),
        status: status.as_u16(),
        detail,
        refused: true,
        request_id: None,
    };
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, Json(problem)).into_response()
}

fn shutting_down() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the node is shutting down\n").into_response()
}

async fn brake(State(runtime): State<Runtime>, body: Bytes) -> Response {
    let envelope = match Envelope::from_bytes(&body) {
        Ok(envelope) => envelope,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error.code(), error.to_string()),
    };
    let (answer, verdict) = oneshot::channel();
    let brought = runtime.brakes.send(BrakeRequest { envelope, answer }).await;
    match (brought, verdict.await) {
        (Ok(()), Ok(Ok(()))) => StatusCode::NO_CONTENT.into_response(),
        (Ok(()), Ok(Err(refusal))) => refused(StatusCode::UNPROCESSABLE_ENTITY, &refusal.code, refusal.detail),
        _ => shutting_down(),
    }
}

async fn status(State(runtime): State<Runtime>) -> Response {
    match ask(&runtime.status).await {
        Some(status) => Json(status).into_response(),
        None => shutting_down(),
    }
}

async fn metrics(State(runtime): State<Runtime>) -> Response {
    let Some(status) = ask(&runtime.status).await else {
        return shutting_down();
    };
    let mut text = String::new();
    if encode(&mut text, &registry(&status)).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

fn registry(status: &Status) -> Registry {
    let mut registry = Registry::with_prefix("firmesh_node");
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let traffic = &status.traffic;
    gauge(
        "origin_received_bytes",
        "Verified content taken from the origin",
        traffic.from_origin,
    );
    gauge(
        "rack_received_bytes",
        "Verified content taken from peers in the same rack",
        traffic.from_rack,
    );
    gauge(
        "other_racks_received_bytes",
        "Verified content taken from peers in other racks",
        traffic.from_other_racks,
    );
    gauge(
        "rack_sent_bytes",
        "Content served to peers in the same rack",
        traffic.to_rack,
    );
    gauge(
        "other_racks_sent_bytes",
        "Content served to peers in other racks",
        traffic.to_other_racks,
    );
    gauge(
        "verification_failures",
        "Slices and files that did not verify",
        traffic.verification_failures,
    );
    gauge(
        "fetched_again_bytes",
        "Content fetched although it was held",
        traffic.fetched_again,
    );
    gauge(
        "reused_bytes",
        "Content taken from other images that were held, and not fetched",
        traffic.reused,
    );
    gauge(
        "peers_connected",
        "Peers with a control stream",
        status.connected as u64,
    );
    gauge("peers_banned", "Peers that are banned", status.banned.len() as u64);
    gauge(
        "coordinator_reachable",
        "1 if the coordinator answered last",
        status.coordinator_reachable.into(),
    );
    if let Some(until) = status.certificate_until {
        gauge(
            "certificate_expires_seconds",
            "When this node's certificate expires, in seconds since 1970",
            u64::try_from(until.unix_seconds()).unwrap_or(0),
        );
    }
    gauge(
        "audit_log_entries",
        "Entries of the audit log that were verified last",
        status.audit.size,
    );
    gauge(
        "audit_log_forked",
        "1 if the audit log was forked and nothing starts here",
        status.audit.fork.is_some().into(),
    );
    let store = &status.store;
    gauge(
        "store_used_bytes",
        "What the artifacts in the store take",
        store.used_bytes,
    );
    gauge("store_free_bytes", "What the store's disk has left", store.free_bytes);
    gauge(
        "store_quota_bytes",
        "The most the store may use, 0 if that is not bounded",
        store.quota_bytes.unwrap_or(0),
    );
    gauge(
        "store_waiting_artifacts",
        "Artifacts that wait for room in the store",
        store.waiting_for_room.len() as u64,
    );
    gauge("store_evicted_artifacts", "Artifacts that made room", store.evicted);
    gauge("scrub_passes", "Whole passes of the scrub", store.scrub.passes);
    gauge(
        "scrub_last_pass_seconds",
        "When the last whole pass of the scrub ended, in seconds since 1970",
        u64::try_from(store.scrub.ended_s).unwrap_or(0),
    );
    gauge(
        "scrub_checked_bytes",
        "Content that the scrub has checked",
        store.scrub.bytes_checked,
    );
    gauge(
        "scrub_lost_pieces",
        "Pieces that the scrub found damaged",
        store.scrub.pieces_lost,
    );
    let running = status
        .attempts
        .iter()
        .filter(|attempt| !attempt.state.is_terminal())
        .count();
    let owed = status.hosts.iter().filter(|host| host.owed).count();
    gauge(
        "hosts_aside",
        "Hosts that this node had step aside and has not given back yet",
        owed as u64,
    );
    let stuck = |host: &&HostStatus| host.state == HostState::Leaving && host.problem.is_some();
    gauge(
        "hosts_not_given_back",
        "Hosts that could not be given back when that was tried last",
        status.hosts.iter().filter(stuck).count() as u64,
    );
    gauge(
        "trace_spans_dropped",
        "Spans that no OpenTelemetry collector has taken",
        status.spans_dropped,
    );
    gauge("attempts_running", "Attempts that have not ended", running as u64);
    registry
}
