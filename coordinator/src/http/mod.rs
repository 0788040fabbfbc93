//! The two faces: operators over plain HTTP on loopback, nodes over mutual TLS.

mod audit;
mod campaigns;
mod conditions;
mod dashboard;
mod devices;
mod firmware;
mod groups;
mod idempotency;
mod nodes;
mod notifications;
mod operators;
mod paging;
mod problem;
mod rates;
mod reports;
mod requests;
mod routes;
mod simulations;
mod stream;
mod targets;
mod tls;

use std::sync::Arc;

use axum::{Router, middleware::from_fn};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    authority::Authority, config::Settings, events::Events, origin::Origin, possession::Judge, replays::Running,
    runtime::Coordinator, store::Store, telemetry::Metrics, turns::Turns,
};

pub(crate) use rates::Rates;
pub use tls::TlsError;
pub(crate) use tls::{PeerAcceptor, server_config};

/// What the handlers share.
pub(crate) struct App {
    pub(crate) coordinator: Coordinator,
    pub(crate) store: Store,
    pub(crate) origin: Origin,
    pub(crate) turns: Turns,
    pub(crate) judge: Judge,
    pub(crate) authority: Arc<Authority>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) vetting: crate::vetting::Vetting,
    pub(crate) notifier: crate::notify::Notifier,
    pub(crate) clock: crate::runtime::Clock,
    pub(crate) node_url: String,
    pub(crate) cancel: CancellationToken,
    /// One rehearsal at a time: it takes a whole processor.
    pub(crate) rehearsal: Arc<Semaphore>,
    pub(crate) rates: Rates,
    /// Requests with a key that are being carried out.
    pub(crate) running: Running,
    /// What goes on after its asker went away.
    pub(crate) tasks: TaskTracker,
}

/// The operators' routes.
pub(crate) fn operators(app: Arc<App>) -> Router {
    operators::router(app.clone())
        .merge(dashboard::router())
        .fallback(problem::no_such_route)
        .layer(from_fn(requests::identify))
        .with_state(app)
}

/// The nodes' routes.
pub(crate) fn nodes(app: Arc<App>) -> Router {
    nodes::router().fallback(problem::no_such_route).with_state(app)
}
