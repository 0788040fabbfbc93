//! What the coordinator measures: each answer as it is given, everything else when a collector asks. Labels are bounded: none names
//! a device.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::{Method, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use firmesh_protocol::{
    api::CampaignState,
    identity::certificate_validity,
    report::AttemptState,
    trust::{CAMPAIGNS, RELEASES, TrustedMetadata},
};

use super::{
    App,
    problem::Failure,
    stretches::{Devices, Stretch},
};
use crate::{
    measures::Census,
    runtime::ActionError,
    telemetry::{Metrics, set},
    world::World,
};

/// Measures one face.
#[derive(Clone)]
pub(super) struct Meter {
    face: &'static str,
    metrics: Arc<Metrics>,
}

impl Meter {
    pub(super) fn new(face: &'static str, app: &App) -> Self {
        let metrics = app.metrics.clone();
        Self { face, metrics }
    }
}

/// The outermost layer: what is refused is an answer too. Of a stream only the time to its head counts.
pub(super) async fn measure(State(meter): State<Meter>, request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let began = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    meter.metrics.answered(meter.face, is_read, status, began.elapsed());
    response
}

/// `GET /metrics`. A follower answers by itself ([`crate::cluster`]).
pub(super) async fn tell(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let metrics = &app.metrics;
    let seen = app.coordinator.read(Seen::of).await?;
    for (gauge, count) in [
        (&metrics.nodes, seen.nodes),
        (&metrics.devices, seen.devices),
        (&metrics.in_flight, seen.in_flight),
        (&metrics.running, seen.running),
        (&metrics.quarantined, seen.quarantined),
        (&metrics.nodes_silent, seen.nodes_silent),
        (&metrics.audit_forks, seen.audit_forks),
    ] {
        set(gauge, count);
    }
    metrics
        .set_campaigns(CAMPAIGN_STATES.map(|(state, name)| (name, seen.campaigns.get(&state).copied().unwrap_or(0))));
    let under_way = [CampaignState::Active, CampaignState::Paused, CampaignState::RollingBack];
    let counts = under_way.map(|state| seen.campaigns.get(&state).copied().unwrap_or(0));
    metrics.fleet.active(counts.into_iter().sum());
    let (sent, dropped) = app.traces.counts();
    metrics.spans_sent.inner().store(sent, Ordering::Relaxed);
    metrics.spans_dropped.inner().store(dropped, Ordering::Relaxed);
    count_devices(&app).await?;
    metrics.set_attempts(|state| seen.attempts.get(&state).copied().unwrap_or(0));
    metrics.set_metadata_expires(seen.expires);
    let validity = app.settings.metadata_validity.shorter().as_secs();
    metrics
        .metadata_validity
        .set(i64::try_from(validity).unwrap_or(i64::MAX));
    if let Ok((_, until)) = certificate_validity(app.authority.ca_der()) {
        metrics.fleet_ca_expires.set(until.unix_seconds());
    }
    let turns = app.turns.counts();
    set(&metrics.turns_taken, turns.taken);
    set(&metrics.turns_waiting, turns.waiting);
    metrics.turns_overdue.inner().store(turns.overdue, Ordering::Relaxed);
    metrics.turns_refused.inner().store(turns.refused, Ordering::Relaxed);
    let kind = [(
        header::CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )];
    Ok((kind, metrics.encode()).into_response())
}

/// A count that took long is good for so many times as long: counting is not to take more than its share of the time.
const GOOD_FOR: u32 = 20;

/// Counts the devices, unless that was done just now, or is being done.
async fn count_devices(app: &App) -> Result<(), ActionError> {
    let Ok(mut good_until) = app.counted.try_lock() else {
        return Ok(());
    };
    let began = Instant::now();
    if good_until.is_some_and(|until| began < until) {
        return Ok(());
    }
    let (wall, silent_after) = (app.clock.wall(), app.settings.silent_after);
    let add = move |census: &mut Census, _: &World, devices: Stretch<'_, '_>| {
        for (device, _) in devices {
            census.add(&(), device.facts, device.last_seen + silent_after >= wall);
        }
    };
    let census = Devices::of(app, None, None).fold(Census::default(), add).await?;
    app.metrics.fleet.census(&census);
    let ended = Instant::now();
    *good_until = Some(ended + (ended - began) * GOOD_FOR);
    Ok(())
}

/// What is counted at a look at the world: sums that are kept, and one pass over the nodes.
struct Seen {
    nodes: usize,
    devices: usize,
    in_flight: usize,
    running: usize,
    quarantined: usize,
    nodes_silent: usize,
    audit_forks: usize,
    campaigns: BTreeMap<CampaignState, usize>,
    attempts: BTreeMap<AttemptState, usize>,
    expires: Vec<(&'static str, i64)>,
}

impl Seen {
    fn of(world: &World) -> Self {
        let (running, quarantined) = world.engine.running_and_quarantined();
        let mut campaigns = BTreeMap::new();
        for (_, state) in world.engine.states() {
            *campaigns.entry(state).or_default() += 1;
        }
        // Nothing is expected of a node that was revoked.
        let is_member = |key| !world.revocations.list.contains(&key);
        let silent =
            (world.nodes.values()).filter(|node| node.stored.silent && node.stored.key().is_some_and(is_member));
        Self {
            nodes: world.nodes.len(),
            devices: world.devices.len(),
            in_flight: world.engine.in_flight_count(),
            running,
            quarantined,
            nodes_silent: silent.count(),
            audit_forks: world.nodes.values().filter(|node| node.audit_fork.is_some()).count(),
            campaigns,
            attempts: world.engine.attempt_states(),
            expires: (world.published.fleet.as_ref()).map_or_else(Vec::new, |fleet| expires(fleet.metadata())),
        }
    }
}

/// When what of the metadata expires.
fn expires(metadata: &TrustedMetadata) -> Vec<(&'static str, i64)> {
    let of_role = |role| Some((role, metadata.delegated(role)?.header.expires));
    let all = [
        Some(("root", metadata.root().header.expires)),
        Some(("targets", metadata.targets().header.expires)),
        of_role(RELEASES),
        of_role(CAMPAIGNS),
        Some(("snapshot", metadata.snapshot().header.expires)),
        Some(("timestamp", metadata.timestamp().header.expires)),
    ];
    all.into_iter()
        .flatten()
        .map(|(role, at)| (role, at.unix_seconds()))
        .collect()
}

/// Every state of a campaign that the coordinator itself knows of, by its name in JSON.
const CAMPAIGN_STATES: [(CampaignState, &str); 8] = [
    (CampaignState::Scheduled, "scheduled"),
    (CampaignState::Active, "active"),
    (CampaignState::Paused, "paused"),
    (CampaignState::RollingBack, "rolling_back"),
    (CampaignState::Completed, "completed"),
    (CampaignState::RolledBack, "rolled_back"),
    (CampaignState::Failed, "failed"),
    (CampaignState::Cancelled, "cancelled"),
];
