//! `POST /api/v1/simulations`: a campaign rehearsed against the inventory as it is now.
//!
//! Invariants: the play runs on a thread of its own, one at a time, and is given up after [`PATIENCE`] or with its asker;
//! nothing that it does changes anything here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json, extract::State, http::StatusCode};
use firmesh_coordinator_core::{
    Inventory, plan,
    rehearse::{
        DeviceKind, LearnedAttempt, RehearsalFacts, RehearsalQuestion, RehearseError, TimedAttempt, learn, rehearse,
        usual_runs,
    },
};
use firmesh_protocol::{
    ids::{ArtifactId, DeviceId, NodeId, Sha256, TopologyPath},
    manifest::{CampaignManifest, MANIFEST_SCHEMA, Plan, Release},
    rehearsal::{REHEARSAL_BYTES_MAX, RehearsalRequest, RehearsalResponse},
    report::{AttemptReport, REPORT_TYPE},
    trust::{Envelope, KeySet, PublicKey},
};
use tracing::debug;

use super::{
    App,
    problem::{Body, Failure},
};
use crate::{
    store::StoreError,
    telemetry::chain,
    world::{World, by_sha256, images},
};

/// How long a rehearsal may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Reports that times are learned from, of all nodes: some seconds' work.
const REPORTS_MAX: u32 = 20_000;

/// Reports of one node at least, where there are many nodes: some attempts.
const REPORTS_OF_NODE_MIN: u32 = 20;

pub(super) async fn rehearse_campaign(
    State(app): State<Arc<App>>,
    Body(request): Body<RehearsalRequest>,
) -> Result<Json<RehearsalResponse>, Failure> {
    if request.manifest.schema != MANIFEST_SCHEMA {
        return Err(Failure::bad_request(format!(
            "the campaign's schema must be {MANIFEST_SCHEMA:?}"
        )));
    }
    let Ok(turn) = app.rehearsal.clone().try_acquire_owned() else {
        let detail = "another rehearsal is under way: ask again when it is over";
        return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail));
    };
    let (silent_after, wall) = (app.settings.silent_after, app.clock.wall());
    let (excluded, held) = (app.store.excluded().await?, app.store.held().await?);
    let manifest = request.manifest.clone();
    let fleet = app
        .coordinator
        .read(move |world| Fleet::of(world, world.inventory(&manifest, silent_after, wall, excluded, &held)))
        .await?;
    let stored = app.store.plan(request.manifest.plan_sha256).await?;
    let artifacts = by_sha256(app.store.artifacts().await?);
    let reports = newest_reports(&app, &fleet).await?;

    let mut manifest = request.manifest.clone();
    let images = images(&manifest, &artifacts);
    let (permit_ttl, version) = (app.settings.permit_ttl, crate::version().to_owned());
    let given_up = Arc::new(AtomicBool::new(false));
    let _gone = GivesUp(Arc::clone(&given_up));
    let coordinator = app.coordinator.clone();
    let (plan, timed, fleet) = blocking(move || -> Result<_, Failure> {
        let plan = the_plan(&manifest, stored, &fleet, wall)?;
        manifest.plan_sha256 = Sha256::of(&plan.to_bytes());
        let timed = learn(reports.iter().filter_map(|(key, report)| opened(*key, report)));
        Ok(((manifest, plan), timed, fleet))
    })
    .await??;
    let (manifest, plan) = plan;
    let planned: Vec<_> = plan.devices().map(|(_, planned)| planned.device.clone()).collect();
    let look = move |world: &World| (learned(world, timed), kinds(world, planned));
    let (learned, kinds) = coordinator.read(look).await?;
    let question = RehearsalQuestion {
        seed: request.seed,
        runs: request.runs.unwrap_or_else(|| usual_runs(&plan)),
        starts: request.starts.unwrap_or(wall),
        assume: request.assume,
        faults: request.faults,
    };
    let facts = RehearsalFacts {
        manifest,
        plan,
        images,
        kinds,
        learned,
        held: fleet.held,
        permit_ttl,
        version,
        notes: fleet.notes,
    };
    let bytes = blocking(move || {
        let _turn = turn;
        let ends = Instant::now() + PATIENCE;
        let goes_on = || !given_up.load(Ordering::Relaxed) && Instant::now() < ends;
        rehearse(&facts, &question, &goes_on).map(|rehearsal| rehearsal.to_bytes())
    })
    .await??;
    if bytes.len() as u64 > REHEARSAL_BYTES_MAX {
        let detail = format!(
            "the rehearsal has {} bytes, at most {REHEARSAL_BYTES_MAX} are read: split the campaign",
            bytes.len()
        );
        return Err(cannot(detail));
    }
    let rehearsal_sha256 = Sha256::of(&bytes);
    let rehearsal = String::from_utf8(bytes).map_err(|error| broken(error.to_string()))?;
    Ok(Json(RehearsalResponse {
        rehearsal,
        rehearsal_sha256,
    }))
}

/// What is looked up in the world.
struct Fleet {
    inventory: Inventory,
    releases: Vec<Release>,
    held: BTreeSet<(TopologyPath, ArtifactId)>,
    notes: Vec<String>,
    /// Nodes whose reports are learned from: those of the whole fleet, each with its key.
    reporters: Vec<(NodeId, PublicKey)>,
}

impl Fleet {
    fn of(world: &World, inventory: Inventory) -> Self {
        let place = |(node, id): (&NodeId, ArtifactId)| Some((world.nodes.get(node)?.stored.path.clone(), id));
        let in_flight = world.engine.in_flight_count();
        let note = format!("{in_flight} devices are in flight or quarantined in other campaigns now: not counted here");
        Self {
            inventory,
            releases: world.releases(),
            held: world.engine.proven().filter_map(place).collect(),
            notes: (in_flight > 0).then_some(note).into_iter().collect(),
            reporters: world.members().map(|(id, key)| (id.clone(), key)).collect(),
        }
    }
}

/// The newest reports of every node, each with the node's key.
async fn newest_reports(app: &App, fleet: &Fleet) -> Result<Vec<(PublicKey, Envelope)>, StoreError> {
    let share = REPORTS_MAX / u32::try_from(fleet.reporters.len().max(1)).unwrap_or(u32::MAX);
    let mut reports = Vec::new();
    for (node, key) in &fleet.reporters {
        if reports.len() >= REPORTS_MAX as usize {
            break;
        }
        let newest = app.store.newest_reports(node, share.max(REPORTS_OF_NODE_MIN)).await?;
        reports.extend(newest.into_iter().map(|report| (*key, report)));
    }
    Ok(reports)
}

/// A report that its node stands for with the key it has now. One that was signed with the key before tells no times.
fn opened(key: PublicKey, report: &Envelope) -> Option<AttemptReport> {
    let keys = KeySet::of("node", 1, [key]).ok()?;
    match report.open::<AttemptReport>(&keys, REPORT_TYPE) {
        Ok(report) => Some(report.into_inner()),
        Err(error) => {
            debug!(error = %chain(&error), "a stored report is not learned from");
            None
        }
    }
}

/// What the planned devices are, wherever they stand by now.
fn kinds(world: &World, planned: Vec<DeviceId>) -> BTreeMap<DeviceId, DeviceKind> {
    let kind = |device: DeviceId| {
        let facts = world.devices.get(&device)?.facts;
        let (model, component) = (facts.model.to_owned(), facts.component.clone());
        Some((device, DeviceKind { model, component }))
    };
    planned.into_iter().filter_map(kind).collect()
}

/// What the timed devices are, and what they got.
fn learned(world: &World, timed: Vec<TimedAttempt>) -> Vec<LearnedAttempt> {
    let place = |timed: TimedAttempt| {
        let facts = world.devices.get(&timed.device)?.facts;
        Some(LearnedAttempt {
            kind: DeviceKind {
                model: facts.model.to_owned(),
                component: facts.component.clone(),
            },
            image: world.engine.image_of(&timed.campaign, &timed.device)?,
            seconds: timed.seconds,
        })
    };
    timed.into_iter().filter_map(place).collect()
}

/// The plan that the manifest names, or one made now.
fn the_plan(
    manifest: &CampaignManifest,
    stored: Option<Vec<u8>>,
    fleet: &Fleet,
    wall: firmesh_protocol::time::WallTime,
) -> Result<Plan, Failure> {
    let Some(bytes) = stored else {
        return Ok(plan(&fleet.inventory, manifest, &fleet.releases, wall)?);
    };
    let plan = Plan::from_bytes(&bytes).map_err(|error| broken(chain(&error)))?;
    match plan.campaign == manifest.id {
        true => Ok(plan),
        false => Err(Failure::bad_request(format!(
            "plan_sha256 names a plan of the campaign {}, not of {}",
            plan.campaign, manifest.id
        ))),
    }
}

/// Gives the play up when nobody waits for it any more.
struct GivesUp(Arc<AtomicBool>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| broken(error.to_string()))
}

fn broken(detail: String) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "rehearsal", detail)
}

fn cannot(detail: String) -> Failure {
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "cannot_be_rehearsed", detail)
}

impl From<RehearseError> for Failure {
    fn from(error: RehearseError) -> Self {
        cannot(chain(&error))
    }
}
