//! One coordinator from start to stop.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    authority::{Authority, AuthorityError},
    ceremony::{WriteFileError, write_file},
    config::{Settings, remedy},
    events::Events,
    http::{self, App, PeerAcceptor, Rates},
    notify::{CourierError, Notifier},
    origin::Origin,
    possession::Judge,
    provenance::PolicyLoadError,
    replays::Running,
    runtime::{Clock, Runtime},
    store::{Store, StoreError},
    telemetry::Metrics,
    turns::Turns,
    uploads::Uploads,
    vetting::Vetting,
    world::RestoreError,
};

/// How long open requests may take to end at a stop.
const GRACE: Duration = Duration::from_secs(3);

/// Why a coordinator did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state folder cannot be used.
    #[error("the state folder {} cannot be used: {}", path.display(), remedy(source))]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another coordinator has it.
    #[error("another coordinator is running with the state folder {}: stop it, or choose another --state-dir", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// An address cannot be listened at.
    #[error("cannot listen at {address}: {}", bind_remedy(source, setting))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The setting that names it.
        setting: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The keys.
    #[error("the coordinator's keys cannot be used")]
    Authority(#[from] AuthorityError),
    /// The database.
    #[error("the coordinator's database cannot be used")]
    Store(#[from] StoreError),
    /// What is stored.
    #[error("the coordinator's state cannot be used")]
    Restore(#[from] RestoreError),
    /// The provenance policy.
    #[error("the setting provenance.policy")]
    Policy(#[from] PolicyLoadError),
    /// Notifications.
    #[error("notifications cannot be sent")]
    Notifications(#[from] CourierError),
    /// TLS.
    #[error("the node listener has no TLS")]
    Tls(#[from] crate::http::TlsError),
    /// A file in the state folder.
    #[error("the state folder cannot be written")]
    Write(#[from] WriteFileError),
    /// A listener ended.
    #[error("a listener failed")]
    Serve(#[source] io::Error),
}

/// `addresses.json` in the state folder: where this coordinator listens, while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The operators' face.
    pub operator_url: String,
    /// The nodes' face.
    pub node_url: String,
}

/// Runs a coordinator until `cancel`. It listens once `addresses.json` stands in the state folder.
pub async fn run(settings: Settings, cancel: CancellationToken) -> Result<(), RunError> {
    let state_dir = settings.state_dir.clone();
    let _lock = prepare(&state_dir)?;
    let operators = bind(settings.operators, "operators.listen")?;
    let nodes = bind(settings.nodes, "nodes.listen")?;
    let clock = Clock::start();
    let names = settings
        .names
        .iter()
        .cloned()
        .chain([settings.nodes.ip().to_string()])
        .collect();
    let authority = Arc::new(Authority::load_or_create(&state_dir, names, clock.wall())?);
    let tls = http::server_config(&authority, clock.wall())?;
    let unusable = |source| RunError::StateDir {
        path: state_dir.clone(),
        source,
    };
    let origin = Origin::open(state_dir.join("artifacts")).map_err(unusable)?;
    let uploads = Uploads::open(state_dir.join("uploads")).map_err(unusable)?;
    let store = Store::open(&state_dir.join("coordinator.sqlite"), authority.clone(), clock.wall()).await?;
    store.interrupt_operations(clock.wall()).await?;
    let vetting = Vetting::new(settings.provenance_policy.clone(), &state_dir, origin.clone());
    vetting.check_policy()?;

    let node_address = nodes.local_addr().map_err(RunError::Serve)?;
    let node_url = settings
        .node_url
        .clone()
        .unwrap_or_else(|| format!("https://{node_address}"));
    let operator_url = format!("http://{}", operators.local_addr().map_err(RunError::Serve)?);
    let (events, metrics) = (Arc::new(Events::new(clock.wall())), Metrics::new());
    let settings = Arc::new(settings);
    let rates = Rates::new(settings.requests_per_second, settings.requests_burst);
    let requests = TaskTracker::new();
    let (coordinator, runtime) = Runtime::new(
        store.clone(),
        authority.clone(),
        events.clone(),
        metrics.clone(),
        settings.clone(),
        clock,
        node_url.clone(),
    )
    .await?;
    let notifier = Notifier::new(&settings.notifications, store.clone(), &metrics, clock).await?;
    let app = App {
        notifier: notifier.clone(),
        coordinator,
        store,
        judge: Judge::new(origin.clone()),
        origin,
        uploads,
        mirror: Arc::new(Semaphore::new(1)),
        turns: Turns::new(settings.slices_at_once, clock),
        authority,
        events,
        metrics,
        settings,
        vetting,
        clock,
        node_url: node_url.clone(),
        cancel: cancel.clone(),
        rehearsal: Arc::new(Semaphore::new(1)),
        rates,
        running: Running::default(),
        tasks: requests.clone(),
    };
    let app = Arc::new(app);

    let stop = CancellationToken::new();
    let mut tasks: JoinSet<Result<(), RunError>> = JoinSet::new();
    let handles = [Handle::new(), Handle::new()];
    let [to_operators, to_nodes] = [http::operators(app.clone()), http::nodes(app)];
    let handle = handles[0].clone();
    let server = axum_server::from_tcp(operators)
        .map_err(RunError::Serve)?
        .handle(handle);
    tasks.spawn(async move {
        server
            .serve(to_operators.into_make_service())
            .await
            .map_err(RunError::Serve)
    });
    let acceptor = PeerAcceptor(RustlsAcceptor::new(RustlsConfig::from_config(Arc::new(tls))));
    let server = axum_server::from_tcp(nodes)
        .map_err(RunError::Serve)?
        .handle(handles[1].clone())
        .acceptor(acceptor);
    tasks.spawn(async move {
        server
            .serve(to_nodes.into_make_service())
            .await
            .map_err(RunError::Serve)
    });
    let mut decisions: JoinSet<Result<(), RunError>> = JoinSet::new();
    let stopped = stop.clone();
    decisions.spawn(async move { Ok(runtime.run(stopped).await?) });

    let mut couriers = JoinSet::new();
    let stop_couriers = CancellationToken::new();
    notifier.spawn(&mut couriers, &stop_couriers);

    let addresses = Addresses { operator_url, node_url };
    let text = serde_json::to_vec_pretty(&addresses).expect("two texts always encode");
    write_file(&state_dir.join("addresses.json"), &text)?;
    info!(operators = addresses.operator_url, nodes = addresses.node_url, state = %state_dir.display(), "coordinator started");

    // The listeners end first, then the decisions: what was asked is still answered.
    let mut outcome = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        ended = tasks.join_next() => flatten(ended),
        ended = decisions.join_next() => flatten(ended),
    };
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
    while let Some(ended) = decisions.join_next().await {
        outcome = outcome.and(flatten(Some(ended)));
    }
    // Nobody listens any more; a file left behind by a crash is replaced at the next start.
    let _ = fs::remove_file(state_dir.join("addresses.json"));
    info!("coordinator stopped");
    outcome
}

fn flatten(ended: Option<Result<Result<(), RunError>, tokio::task::JoinError>>) -> Result<(), RunError> {
    match ended {
        None => Ok(()),
        Some(Ok(outcome)) => outcome,
        Some(Err(panicked)) => Err(RunError::Serve(io::Error::other(panicked))),
    }
}

/// Makes the folders and takes the lock, which lasts as long as the file is open.
fn prepare(state_dir: &Path) -> Result<File, RunError> {
    let unusable = |source| RunError::StateDir {
        path: state_dir.to_owned(),
        source,
    };
    // Nobody else's business: permits, reports and the names of the fleet lie here.
    let mut folder = fs::DirBuilder::new();
    folder
        .recursive(true)
        .mode(0o700)
        .create(state_dir.join("artifacts"))
        .map_err(unusable)?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state_dir.join("lock"))
        .map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(RunError::Locked {
            path: state_dir.to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(unusable(source)),
    }
}

fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, RunError> {
    let listener = TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|source| RunError::Bind {
        address,
        setting,
        source,
    })
}

fn bind_remedy(error: &io::Error, setting: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("the port is in use: stop what listens there, or set another {setting}"),
        io::ErrorKind::PermissionDenied => format!("this user may not use that port: set another {setting}"),
        io::ErrorKind::AddrNotAvailable => format!("this machine has no such address: set another {setting}"),
        _ => format!("set another {setting}"),
    }
}
