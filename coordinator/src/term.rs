//! One term of leading: everything that is made from the database when a coordinator takes the lead, and dropped when it
//! leads no more. A coordinator with a database of its own leads from its start to its end.

use std::{io, net::TcpListener, num::NonZeroUsize, sync::Arc, thread::available_parallelism, time::Duration};

use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use firmesh_telemetry::Tracer;
use rustls::ServerConfig;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{
    LogProblem,
    access::Access,
    archive::Archive,
    authority::Authority,
    config::Settings,
    events::Events,
    files::{Blocks, Bucket, Shelf},
    http::{self, App, PeerAcceptor, Rates},
    notify::{GateWebhooks, Notifier},
    origin::Origin,
    possession::Judge,
    replays::Running,
    runtime::{Clock, Runtime},
    server::RunError,
    store::{Store, StoreError},
    telemetry::{Metrics, chain},
    traces::Traces,
    turns::Turns,
    uploads::Uploads,
    vetting::Vetting,
};

/// How long open requests may take to end at a stop.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// What a term stands on.
#[derive(Debug)]
pub(crate) struct Grounds {
    pub(crate) settings: Arc<Settings>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) clock: Clock,
    pub(crate) node_url: String,
    pub(crate) tracer: Tracer,
}

/// The sockets of the two faces.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) operators: TcpListener,
    pub(crate) nodes: TcpListener,
}

impl Listeners {
    /// The same sockets again.
    pub(crate) fn again(&self) -> io::Result<Self> {
        Ok(Self {
            operators: self.operators.try_clone()?,
            nodes: self.nodes.try_clone()?,
        })
    }
}

/// Hangs up on everybody, however the term ends.
struct Servers {
    handles: [Handle<std::net::SocketAddr>; 2],
    requests: CancellationToken,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.requests.cancel();
        for handle in &self.handles {
            handle.graceful_shutdown(Some(Duration::ZERO));
            handle.shutdown();
        }
    }
}

/// Leads until cancelled. Dropping it ends the term at once: what was acknowledged is durable, what was not has not happened.
/// `ready` is called once both faces are served.
pub(crate) async fn lead(
    grounds: &Grounds,
    store: Store,
    listeners: Listeners,
    cancel: &CancellationToken,
    ready: impl FnOnce() -> Result<(), RunError>,
) -> Result<(), RunError> {
    let Grounds {
        settings,
        authority,
        tls,
        clock,
        node_url,
        ..
    } = grounds;
    let clock = *clock;
    let files = &settings.files_dir;
    let unusable = |source| RunError::StateDir {
        path: files.clone(),
        source,
    };
    let bucket = settings.bucket.as_ref().map(Bucket::open).transpose();
    let bucket = bucket.map_err(RunError::Bucket)?;
    let artifacts = files.join("artifacts");
    let origin = match (&bucket, &settings.bucket) {
        (Some(bucket), Some(bucketed)) => {
            let blocks = Blocks::open(bucket.clone(), files.join("blocks"), bucketed.cache_bytes);
            Origin::shared(artifacts, bucket.clone(), blocks.map_err(unusable)?)
        }
        _ => Origin::open(artifacts),
    };
    let origin = origin.map_err(unusable)?;
    if let Err(error) = origin.belongs_to(&store.fleet()).await {
        // A bucket that does not answer is no reason not to lead. Nothing is ever removed from one that is not ours.
        warn!(error = %chain(&error), "it is not known whether the bucket is this fleet's");
    }
    let uploads = Uploads::open(files.join("uploads")).map_err(unusable)?;
    store.interrupt_operations(clock.wall()).await?;
    store.seal_registrations().await?;
    let shelf = bucket
        .clone()
        .map_or_else(|| Shelf::Folder(files.clone()), Shelf::Bucket);
    let vetting = Vetting::new(settings.provenance_policy.clone(), files, origin.clone(), bucket);
    vetting.check_policy()?;
    let access = Access::load(settings.access.clone(), &authority.token_key(), &store.fleet())?;
    let (events, metrics) = (Arc::new(Events::new(clock.wall())), Metrics::new());
    metrics.epoch.set(store.epoch().cast_signed());
    let rates = Rates::new(settings.requests_per_second, settings.requests_burst);
    let requests = TaskTracker::new();
    let traces = Arc::new(Traces::load(grounds.tracer.clone(), &store).await?);
    let (coordinator, mut runtime) = Runtime::new(
        store.clone(),
        authority.clone(),
        events.clone(),
        metrics.clone(),
        settings.clone(),
        clock,
        node_url.clone(),
    )
    .await?;
    metrics.fleet.know(runtime.world.engine.states());
    runtime.traces = traces.clone();
    let archive = Archive::new(store.clone(), shelf, settings.retention, Some(coordinator.clone()));
    let webhooks = GateWebhooks::new(&settings.gate_webhooks, coordinator.clone(), store.fleet(), clock)?;
    let notifier = Notifier::new(&settings.notifications, store.clone(), &metrics, clock).await?;
    let servers = Servers {
        handles: [Handle::new(), Handle::new()],
        requests: cancel.child_token(),
    };
    let log = store.clone();
    let (kept, told) = (store.clone(), coordinator.clone());
    let processors = available_parallelism().map_or(1, NonZeroUsize::get);
    let app = Arc::new(App {
        notifier: notifier.clone(),
        coordinator,
        store,
        judge: Judge::new(origin.clone()),
        origin,
        archive: archive.clone(),
        uploads,
        mirror: Arc::new(Semaphore::new(1)),
        turns: Turns::new(settings.slices_at_once, clock),
        authority: authority.clone(),
        access,
        events: events.clone(),
        traces: traces.clone(),
        metrics,
        settings: settings.clone(),
        vetting,
        clock,
        node_url: node_url.clone(),
        cancel: servers.requests.clone(),
        reconciling: tokio::sync::Mutex::default(),
        counted: tokio::sync::Mutex::default(),
        rehearsal: Arc::new(Semaphore::new(1)),
        verifying: Arc::new(Semaphore::new(processors.saturating_sub(1).max(1))),
        rates,
        running: Running::default(),
        tasks: requests.clone(),
    });

    let mut tasks: JoinSet<Result<(), RunError>> = JoinSet::new();
    app.tasks.spawn(http::keep_reconciling(app.clone()));
    let [to_operators, to_nodes] = [http::operators(app.clone()), http::nodes(app)];
    let server = axum_server::from_tcp(listeners.operators)
        .map_err(RunError::Serve)?
        .handle(servers.handles[0].clone());
    tasks.spawn(async move {
        server
            .serve(to_operators.into_make_service())
            .await
            .map_err(RunError::Serve)
    });
    let acceptor = PeerAcceptor(RustlsAcceptor::new(RustlsConfig::from_config(tls.clone())));
    let server = axum_server::from_tcp(listeners.nodes)
        .map_err(RunError::Serve)?
        .handle(servers.handles[1].clone())
        .acceptor(acceptor);
    tasks.spawn(async move {
        server
            .serve(to_nodes.into_make_service())
            .await
            .map_err(RunError::Serve)
    });
    let stop = CancellationToken::new();
    let mut decisions: JoinSet<Result<(), RunError>> = JoinSet::new();
    let stopped = stop.clone();
    decisions.spawn(async move { Ok(runtime.run(stopped).await?) });
    let archiving = decisions.spawn(async move {
        archive.keep_moving(|| clock.wall()).await;
        Ok(())
    });
    let rechecking = decisions.spawn(async move {
        // What is found there ends the term; a database that does not answer says so elsewhere.
        match log.audit_recheck().await {
            Err(StoreError::Audit(problem @ LogProblem::Changed(_))) => return Err(StoreError::Audit(problem).into()),
            Err(failure) => warn!(error = %chain(&failure), "the audit log could not be read to its beginning"),
            Ok(()) => {}
        }
        std::future::pending().await
    });
    let closing = decisions.spawn(async move {
        traces.keep_closing(&events, &told, &kept).await;
        std::future::pending().await
    });
    let mut couriers = JoinSet::new();
    let stop_couriers = CancellationToken::new();
    notifier.spawn(&mut couriers, &stop_couriers);
    let stopped = stop_couriers.clone();
    couriers.spawn(async move { webhooks.run(stopped).await });
    ready()?;

    // The listeners end first, then the decisions: what was asked is still answered.
    let mut outcome = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        ended = tasks.join_next() => flatten(ended),
        ended = decisions.join_next() => flatten(ended),
    };
    let handles = &servers.handles;
    handles.iter().for_each(|handle| handle.graceful_shutdown(Some(GRACE)));
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(flatten(Some(ended)));
    }
    requests.close();
    // What is not over by then is given up; its key was not used.
    let _ = tokio::time::timeout(GRACE, requests.wait()).await;
    // What a courier has not noted as delivered is delivered again at the next start.
    stop_couriers.cancel();
    while let Some(ended) = couriers.join_next().await {
        outcome = outcome.and_then(|()| ended.map_err(|panicked| RunError::Serve(io::Error::other(panicked))));
    }
    stop.cancel();
    rechecking.abort();
    archiving.abort();
    closing.abort();
    while let Some(ended) = decisions.join_next().await {
        if ended.as_ref().is_err_and(tokio::task::JoinError::is_cancelled) {
            continue;
        }
        outcome = outcome.and(flatten(Some(ended)));
    }
    outcome
}

fn flatten(ended: Option<Result<Result<(), RunError>, tokio::task::JoinError>>) -> Result<(), RunError> {
    match ended {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(panicked)) => Err(RunError::Serve(io::Error::other(panicked))),
    }
}
