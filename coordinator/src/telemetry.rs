//! Logs and metrics.

use std::{io::IsTerminal as _, sync::Arc};

use firmesh_protocol::ids::NodeId;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tracing_subscriber::{EnvFilter, filter::ParseError};

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
struct NodeLabel {
    node: String,
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

/// What is said of the metric that tells who leads.
pub(crate) const LED_EPOCH: &str = "The epoch of this coordinator's term, 0 if another one leads";

/// What is counted as it happens, and gauges set when they are asked for.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    origin_bytes: Family<NodeLabel, Counter>,
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
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("firmesh_coordinator");
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
            "Encoded artifact bytes served, by node",
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
        Arc::new(Self {
            registry,
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

    pub(crate) fn served(&self, node: &NodeId, bytes: usize) {
        self.origin_bytes
            .get_or_create(&NodeLabel { node: node.to_string() })
            .inc_by(bytes as u64);
    }

    pub(crate) fn login(&self, means: &'static str, outcome: &'static str) {
        self.logins.get_or_create(&LoginLabel { means, outcome }).inc();
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

    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
