//! The two faces: operators over plain HTTP on loopback, nodes over mutual TLS.

mod audit;
mod dashboard;
mod nodes;
mod notifications;
mod operators;
mod problem;
mod simulations;
mod stream;
mod targets;
mod tls;

use std::sync::Arc;

use axum::Router;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    authority::Authority, config::Settings, events::Events, origin::Origin, possession::Judge, runtime::Coordinator,
    store::Store, telemetry::Metrics, turns::Turns,
};

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
}

/// The operators' routes.
pub(crate) fn operators(app: Arc<App>) -> Router {
    operators::router(app.clone())
        .merge(dashboard::router())
        .fallback(problem::no_such_route)
        .with_state(app)
}

/// The nodes' routes.
pub(crate) fn nodes(app: Arc<App>) -> Router {
    nodes::router().fallback(problem::no_such_route).with_state(app)
}
