//! The two faces: operators over plain HTTP on loopback, nodes over mutual TLS.

mod access;
mod admission;
mod audit;
mod baselines;
mod campaigns;
mod catalogue;
mod conditions;
mod cors;
mod dashboard;
mod devices;
mod drafts;
mod evidence;
mod facade;
mod firmware;
mod groups;
mod idempotency;
mod identities;
mod links;
mod metrics;
mod nodes;
mod notifications;
mod operators;
mod own_certificate;
mod paging;
mod places;
mod problem;
mod rates;
mod reconcile;
mod reports;
mod repository;
mod requests;
mod routes;
mod simulations;
mod storage;
mod stream;
mod stretches;
mod targets;
mod tls;
mod transcripts;
mod uploads;

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
};
use firmesh_protocol::audit::Event;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Access,
    authority::Authority,
    config::Settings,
    events::Events,
    origin::Origin,
    possession::Judge,
    replays::Running,
    runtime::Coordinator,
    store::{Store, StoreError},
    telemetry::Metrics,
    traces::Traces,
    turns::Turns,
};

pub(crate) use own_certificate::OwnCertificate;
pub(crate) use rates::Rates;
pub(crate) use reconcile::keep_reconciling;
pub use tls::TlsError;
pub(crate) use tls::{PeerAcceptor, server_config};

/// What the handlers share.
pub(crate) struct App {
    pub(crate) coordinator: Coordinator,
    pub(crate) store: Store,
    pub(crate) origin: Origin,
    pub(crate) archive: crate::archive::Archive,
    pub(crate) uploads: crate::uploads::Uploads,
    /// One repository sync at a time: it takes the network.
    pub(crate) mirror: Arc<Semaphore>,
    pub(crate) turns: Turns,
    pub(crate) judge: Judge,
    pub(crate) authority: Arc<Authority>,
    pub(crate) access: Access,
    pub(crate) events: Arc<Events>,
    pub(crate) traces: Arc<Traces>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) vetting: crate::vetting::Vetting,
    pub(crate) notifier: crate::notify::Notifier,
    pub(crate) clock: crate::runtime::Clock,
    pub(crate) node_url: String,
    pub(crate) cancel: CancellationToken,
    /// Campaigns for baselines are drafted one after the other.
    pub(crate) reconciling: tokio::sync::Mutex<()>,
    /// One rehearsal at a time: it takes a whole processor.
    pub(crate) rehearsal: Arc<Semaphore>,
    /// Heartbeats being verified: their signatures take a processor, and one is left for everybody else.
    pub(crate) verifying: Arc<Semaphore>,
    /// Until when the last count of the devices is good.
    pub(crate) counted: tokio::sync::Mutex<Option<std::time::Instant>>,
    pub(crate) rates: Rates,
    /// Requests with a key that are being carried out.
    pub(crate) running: Running,
    /// What goes on after its asker went away.
    pub(crate) tasks: TaskTracker,
}

impl App {
    /// Logs a change of what the coordinator keeps and nobody signs. Before the change, so that nothing is changed that is
    /// not logged.
    async fn log_change(&self, subject: &str, name: &str, change: &str) -> Result<(), StoreError> {
        let event = Event::Change {
            subject: subject.to_owned(),
            name: name.to_owned(),
            change: change.to_owned(),
        };
        self.store.log_event(event, self.clock.wall()).await
    }
}

/// The operators' routes.
pub(crate) fn operators(app: Arc<App>) -> Router {
    let routes = operators::router(app.clone()).fallback(dashboard::page_or_problem);
    let routes = match cors::layer(&app.settings.cors_origins) {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    let meter = metrics::Meter::new("operators", &app);
    routes
        .layer(from_fn(requests::identify))
        .layer(from_fn_with_state(meter, metrics::measure))
        .with_state(app)
}

/// The nodes' routes.
pub(crate) fn nodes(app: Arc<App>) -> Router {
    let meter = metrics::Meter::new("nodes", &app);
    nodes::router()
        .fallback(problem::no_such_route)
        .layer(from_fn_with_state(meter, metrics::measure))
        .with_state(app)
}
