//! Logs and metrics.

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use firmesh_protocol::{
    api::Traffic,
    ids::TopologyPath,
    report::{AttemptState, PermitKind},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::measures::Measures;

/// A site is named by two levels of the topology.
const SITE_LEVELS: usize = 2;

/// Sites that are told by name: ten regions of a hundred.
const SITES_MAX: usize = 1_000;

/// Starts logging to standard error. A second call in one process changes nothing.
pub fn start_logging(filter: &str, json: bool) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error says that somebody else has started logging, the lab for instance: then that counts.
    let _ = if json {
        builder.json().try_init()
    } else {
        builder.try_init()
    };
    Ok(())
}

/// An error with all its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SiteLabel {
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationLabel {
    destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoginLabel {
    means: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotificationLabel {
    destination: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    face: &'static str,
    kind: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabel {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

/// Upper bounds of what answers take, in seconds: the promise is half of one.
const ANSWER_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

type Answers = Family<AnswerLabel, Histogram, fn() -> Histogram>;

fn answer_times() -> Histogram {
    Histogram::new(ANSWER_SECONDS)
}

/// What is said of the metric that tells who leads.
pub(crate) const LED_EPOCH: &str = "The epoch of this coordinator's term, 0 if another one leads";

/// What is counted as it happens, and gauges set when they are asked for.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// By the names that deployment managers have.
    pub(crate) fleet: Measures,
    origin_bytes: Family<SiteLabel, Counter>,
    sites: Mutex<BTreeSet<String>>,
    pub(crate) spans_sent: Counter,
    pub(crate) spans_dropped: Counter,
    logins: Family<LoginLabel, Counter>,
    notifications: Family<NotificationLabel, Counter>,
    notifications_waiting: Family<DestinationLabel, Gauge>,
    pub(crate) syncs: Counter,
    pub(crate) reports: Counter,
    pub(crate) permits: Counter,
    pub(crate) refusals: Counter,
    /// A follower answers 0 by itself ([`crate::cluster`]).
    pub(crate) epoch: Gauge,
    pub(crate) nodes: Gauge,
    pub(crate) devices: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) turns_taken: Gauge,
    pub(crate) turns_waiting: Gauge,
    /// Set when asked for, as the gauges are: the turns count themselves.
    pub(crate) turns_overdue: Counter,
    pub(crate) turns_refused: Counter,
    answers: Answers,
    ended: Family<EndedLabel, Counter>,
    mesh_received: Family<SourceLabel, Counter>,
    mesh_verification_failures: Counter,
    mesh_fetched_again: Counter,
    campaigns: Family<StateLabel, Gauge>,
    attempts: Family<StateLabel, Gauge>,
    metadata_expires: Family<RoleLabel, Gauge>,
    pub(crate) metadata_validity: Gauge,
    pub(crate) fleet_ca_expires: Gauge,
    pub(crate) running: Gauge,
    pub(crate) quarantined: Gauge,
    pub(crate) nodes_silent: Gauge,
    pub(crate) audit_forks: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut all = Registry::default();
        let fleet = Measures::register(&mut all);
        let registry = all.sub_registry_with_prefix("firmesh_coordinator");
        let origin_bytes = Family::default();
        let (notifications, notifications_waiting) = (Family::default(), Family::default());
        let logins = Family::default();
        registry.register(
            "logins",
            "Proofs of identity that were looked at: tokens given, and what was refused",
            logins.clone(),
        );
        registry.register(
            "notifications",
            "Attempts to tell a destination something, by what came of them",
            notifications.clone(),
        );
        registry.register(
            "notifications_waiting",
            "Events that a destination has yet to be told, or to pass over",
            notifications_waiting.clone(),
        );
        let [syncs, reports, permits, refusals, turns_overdue, turns_refused] = [(); 6].map(|()| Counter::default());
        let [nodes, devices, in_flight, turns_taken, turns_waiting] = [(); 5].map(|()| Gauge::default());
        registry.register(
            "origin_bytes",
            "Encoded artifact bytes served, by the site they went to",
            origin_bytes.clone(),
        );
        registry.register("syncs", "Heartbeats taken in", syncs.clone());
        registry.register("reports", "Attempt reports stored", reports.clone());
        registry.register("permits", "Permits issued", permits.clone());
        registry.register(
            "refusals",
            "Requests refused by a signature or a rule",
            refusals.clone(),
        );
        let epoch = Gauge::default();
        registry.register("epoch", LED_EPOCH, epoch.clone());
        registry.register("nodes", "Nodes known", nodes.clone());
        registry.register("devices", "Devices known", devices.clone());
        registry.register("in_flight", "Devices that the caps count", in_flight.clone());
        registry.register(
            "origin_turns_taken",
            "Slices in service, within their time",
            turns_taken.clone(),
        );
        registry.register(
            "origin_turns_waiting",
            "Requests for slices that wait in line",
            turns_waiting.clone(),
        );
        registry.register(
            "origin_turns_overdue",
            "Slices that took too long and are served beside the turns",
            turns_overdue.clone(),
        );
        registry.register(
            "origin_turns_refused",
            "Requests for slices that found the line full or waited too long",
            turns_refused.clone(),
        );
        let answers = Answers::new_with_constructor(answer_times);
        registry.register(
            "http_answer_seconds",
            "From a request to the head of its answer, by face, whether it reads or changes, and status",
            answers.clone(),
        );
        let ended: Family<EndedLabel, Counter> = Family::default();
        registry.register(
            "attempts_ended",
            "Attempts that nodes reported the end of",
            ended.clone(),
        );
        let mesh_received: Family<SourceLabel, Counter> = Family::default();
        registry.register(
            "mesh_received_bytes",
            "Verified content that nodes have told they took, by where it came from",
            mesh_received.clone(),
        );
        let [mesh_verification_failures, mesh_fetched_again] = [(); 2].map(|()| Counter::default());
        registry.register(
            "mesh_verification_failures",
            "Slices and files that nodes have told did not verify",
            mesh_verification_failures.clone(),
        );
        registry.register(
            "mesh_fetched_again_bytes",
            "Content that nodes have told they fetched although they held it",
            mesh_fetched_again.clone(),
        );
        let [campaigns, attempts] = [(); 2].map(|()| Family::<StateLabel, Gauge>::default());
        registry.register(
            "campaigns",
            "Campaigns that are not archived, by state",
            campaigns.clone(),
        );
        registry.register(
            "attempts",
            "Devices of campaigns that have not ended, by state",
            attempts.clone(),
        );
        let metadata_expires: Family<RoleLabel, Gauge> = Family::default();
        registry.register(
            "metadata_expires_seconds",
            "When the metadata in force expires, in seconds since 1970",
            metadata_expires.clone(),
        );
        let [metadata_validity, fleet_ca_expires, running] = [(); 3].map(|()| Gauge::default());
        registry.register(
            "metadata_validity_seconds",
            "How long what this coordinator signs is good for; it signs anew at half of it",
            metadata_validity.clone(),
        );
        registry.register(
            "fleet_ca_expires_seconds",
            "When the fleet CA's certificate expires, in seconds since 1970",
            fleet_ca_expires.clone(),
        );
        registry.register(
            "attempts_running",
            "Attempts that were permitted and have not ended",
            running.clone(),
        );
        let [quarantined, nodes_silent, audit_forks] = [(); 3].map(|()| Gauge::default());
        registry.register(
            "attempts_quarantined",
            "Attempts that left their device quarantined until a person looks at it",
            quarantined.clone(),
        );
        registry.register(
            "nodes_silent",
            "Nodes that were told of as silent and have not been heard of since",
            nodes_silent.clone(),
        );
        registry.register(
            "audit_forks",
            "Nodes that do not believe the audit log any more, and start nothing",
            audit_forks.clone(),
        );
        // What has not happened yet is 0: who waits for a first time sees it.
        for (face, kind) in [
            ("operators", "read"),
            ("operators", "change"),
            ("nodes", "read"),
            ("nodes", "change"),
        ] {
            for status in STATUSES {
                drop(answers.get_or_create(&AnswerLabel { face, kind, status }));
            }
        }
        for kind in [PermitKind::Update, PermitKind::Rollback].map(kind_name) {
            for outcome in STATES
                .into_iter()
                .filter(|state| state.is_terminal())
                .map(AttemptState::as_str)
            {
                drop(ended.get_or_create(&EndedLabel { kind, outcome }));
            }
        }
        for source in SOURCES {
            drop(mesh_received.get_or_create(&SourceLabel { source }));
        }
        let [spans_sent, spans_dropped] = [(); 2].map(|()| Counter::default());
        registry.register(
            "trace_spans_sent",
            "Spans that the OpenTelemetry collector has taken",
            spans_sent.clone(),
        );
        registry.register(
            "trace_spans_dropped",
            "Spans that no OpenTelemetry collector has taken",
            spans_dropped.clone(),
        );
        Arc::new(Self {
            registry: all,
            fleet,
            sites: Mutex::default(),
            spans_sent,
            spans_dropped,
            answers,
            ended,
            mesh_received,
            mesh_verification_failures,
            mesh_fetched_again,
            campaigns,
            attempts,
            metadata_expires,
            metadata_validity,
            fleet_ca_expires,
            running,
            quarantined,
            nodes_silent,
            audit_forks,
            origin_bytes,
            logins,
            notifications,
            notifications_waiting,
            syncs,
            reports,
            permits,
            refusals,
            epoch,
            nodes,
            devices,
            in_flight,
            turns_taken,
            turns_waiting,
            turns_overdue,
            turns_refused,
        })
    }

    pub(crate) fn served(&self, path: &TopologyPath, bytes: usize) {
        let mut site = path.prefix(SITE_LEVELS).to_string();
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        if !sites.contains(&site) {
            match sites.len() < SITES_MAX {
                true => drop(sites.insert(site.clone())),
                false => site = "other".to_owned(),
            }
        }
        drop(sites);
        self.origin_bytes
            .get_or_create(&SiteLabel { site })
            .inc_by(bytes as u64);
    }

    pub(crate) fn login(&self, means: &'static str, outcome: &'static str) {
        self.logins.get_or_create(&LoginLabel { means, outcome }).inc();
    }

    /// A destination is there: what has not happened to it yet is 0.
    pub(crate) fn will_notify(&self, destination: &str) {
        for outcome in ["delivered", "failed", "refused", "given_up"] {
            let destination = destination.to_owned();
            drop(
                self.notifications
                    .get_or_create(&NotificationLabel { destination, outcome }),
            );
        }
    }

    pub(crate) fn notified(&self, destination: &str, outcome: &'static str) {
        let destination = destination.to_owned();
        self.notifications
            .get_or_create(&NotificationLabel { destination, outcome })
            .inc();
    }

    pub(crate) fn waiting(&self, destination: &str, count: u64) {
        let destination = destination.to_owned();
        self.notifications_waiting
            .get_or_create(&DestinationLabel { destination })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// One of the faces has answered.
    pub(crate) fn answered(&self, face: &'static str, is_read: bool, status: u16, took: Duration) {
        let label = AnswerLabel {
            face,
            kind: if is_read { "read" } else { "change" },
            status: status_class(status),
        };
        self.answers.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// A node has reported the end of an attempt.
    pub(crate) fn attempt_ended(&self, kind: PermitKind, state: AttemptState) {
        let label = EndedLabel {
            kind: kind_name(kind),
            outcome: state.as_str(),
        };
        self.ended.get_or_create(&label).inc();
    }

    /// What a node has moved between two heartbeats. It counts from 0 again when it is started.
    pub(crate) fn moved(&self, before: &Traffic, now: &Traffic) {
        let since = |of: fn(&Traffic) -> u64| of(now).checked_sub(of(before)).unwrap_or_else(|| of(now));
        let received = [
            since(|traffic| traffic.from_origin),
            since(|traffic| traffic.from_rack),
            since(|traffic| traffic.from_other_racks),
            since(|traffic| traffic.reused),
        ];
        for (source, bytes) in SOURCES.into_iter().zip(received) {
            self.mesh_received.get_or_create(&SourceLabel { source }).inc_by(bytes);
        }
        let refused = since(|traffic| traffic.verification_failures);
        self.mesh_verification_failures.inc_by(refused);
        self.fleet.refused(refused);
        self.mesh_fetched_again.inc_by(since(|traffic| traffic.fetched_again));
    }

    /// How many campaigns are in which state.
    pub(crate) fn set_campaigns(&self, counts: impl IntoIterator<Item = (&'static str, usize)>) {
        for (state, count) in counts {
            set(&self.campaigns.get_or_create(&StateLabel { state }), count);
        }
    }

    /// How many devices of campaigns that have not ended are in which state.
    pub(crate) fn set_attempts(&self, count: impl Fn(AttemptState) -> usize) {
        for state in STATES {
            let label = StateLabel { state: state.as_str() };
            set(&self.attempts.get_or_create(&label), count(state));
        }
    }

    /// When what of the metadata expires.
    pub(crate) fn set_metadata_expires(&self, expires: impl IntoIterator<Item = (&'static str, i64)>) {
        for (role, seconds) in expires {
            self.metadata_expires.get_or_create(&RoleLabel { role }).set(seconds);
        }
    }

    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Sets a gauge to a count.
pub(crate) fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Where content came from, in the order of [`Metrics::moved`].
const SOURCES: [&str; 4] = ["origin", "rack", "other_racks", "reused"];

/// Classes of statuses.
const STATUSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

fn status_class(status: u16) -> &'static str {
    match status {
        ..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        500.. => "5xx",
    }
}

fn kind_name(kind: PermitKind) -> &'static str {
    match kind {
        PermitKind::Update => "update",
        PermitKind::Rollback => "rollback",
    }
}

/// Every state of an attempt.
const STATES: [AttemptState; 16] = [
    AttemptState::Pending,
    AttemptState::WaitingWindow,
    AttemptState::Blocked,
    AttemptState::Downloading,
    AttemptState::Verifying,
    AttemptState::Staged,
    AttemptState::Installing,
    AttemptState::Rebooting,
    AttemptState::Validating,
    AttemptState::Success,
    AttemptState::Failed,
    AttemptState::RolledBack,
    AttemptState::Skipped,
    AttemptState::Cancelled,
    AttemptState::TimedOut,
    AttemptState::Quarantined,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn value(metrics: &Metrics, series: &str) -> Option<String> {
        let text = metrics.encode();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(str::to_owned)
    }

    /// A restart of a node must neither take back what was counted nor count it twice.
    #[test]
    fn what_nodes_moved_is_counted_over_their_restarts() {
        let metrics = Metrics::new();
        let of = |from_origin| Traffic {
            from_origin,
            ..Traffic::default()
        };
        let series = "firmesh_coordinator_mesh_received_bytes_total{source=\"origin\"}";
        assert_eq!(value(&metrics, series).as_deref(), Some("0"));
        metrics.moved(&of(100), &of(150));
        metrics.moved(&of(150), &of(150));
        metrics.moved(&of(150), &of(20));
        assert_eq!(value(&metrics, series).as_deref(), Some("70"));
    }

    #[test]
    fn answers_are_counted_by_face_kind_and_class() {
        let metrics = Metrics::new();
        metrics.answered("operators", true, 200, Duration::from_millis(30));
        metrics.answered("operators", true, 503, Duration::from_secs(60));
        let count = |labels: &str| {
            value(
                &metrics,
                &format!("firmesh_coordinator_http_answer_seconds_count{{{labels}}}"),
            )
        };
        let labels = |status: &str| format!("face=\"operators\",kind=\"read\",status=\"{status}\"");
        assert_eq!(count(&labels("2xx")).as_deref(), Some("1"));
        assert_eq!(count(&labels("5xx")).as_deref(), Some("1"));
        assert_eq!(count(&labels("4xx")).as_deref(), Some("0"));
    }

    #[test]
    fn an_attempt_that_ended_is_counted_by_its_outcome() {
        let metrics = Metrics::new();
        metrics.attempt_ended(PermitKind::Update, AttemptState::RolledBack);
        let series = "firmesh_coordinator_attempts_ended_total{kind=\"update\",outcome=\"rolled_back\"}";
        assert_eq!(value(&metrics, series).as_deref(), Some("1"));
        metrics.set_attempts(|state| usize::from(state == AttemptState::Staged));
        assert_eq!(
            value(&metrics, "firmesh_coordinator_attempts{state=\"staged\"}").as_deref(),
            Some("1")
        );
    }
}
