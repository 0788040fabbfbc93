//! One coordinator from start to stop: it follows until it leads, leads until it is stopped or deposed, and so on.

use std::{
    convert::Infallible,
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use firmesh_telemetry::Tracer;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    access::AccessError,
    authority::{Authority, AuthorityError},
    ceremony::{WriteFileError, write_file},
    cluster::{self, Face, Faces, Own, Sight, Taken},
    config::{Settings, remedy},
    http,
    lock::Lock,
    notify::CourierError,
    provenance::PolicyLoadError,
    runtime::Clock,
    store::{Database, Member, Place, Store, StoreError},
    telemetry::chain,
    term::{self, GRACE, Grounds, Listeners},
    world::RestoreError,
};

/// How long a database may take to be closed, or to hear that this coordinator leads no more.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// After a term that could not be begun, others have their turn.
const REST: Duration = Duration::from_secs(1);

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
    /// Who may do what.
    #[error("nobody can be let in")]
    Access(#[from] AccessError),
    /// Notifications.
    #[error("notifications cannot be sent")]
    Notifications(#[from] CourierError),
    /// The bucket.
    #[error("the bucket in [files.s3] cannot be used")]
    Bucket(#[source] io::Error),
    /// TLS.
    #[error("the node listener has no TLS")]
    Tls(#[from] crate::http::TlsError),
    /// Traces.
    #[error("traces cannot be sent")]
    Traces(#[from] firmesh_telemetry::StartError),
    /// A file in the state folder.
    #[error("the state folder cannot be written")]
    Write(#[from] WriteFileError),
    /// A listener ended.
    #[error("a listener failed")]
    Serve(#[source] io::Error),
}

impl RunError {
    /// Whether it may be gone by itself, or does not concern another coordinator.
    fn is_passing(&self) -> bool {
        match self {
            Self::Store(source) | Self::Restore(RestoreError::Store(source)) => source.is_passing(),
            Self::Notifications(CourierError::Store(source)) => source.is_passing(),
            _ => false,
        }
    }
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
    let _lock = prepare(&settings)?;
    let listeners = Listeners {
        operators: bind(settings.operators, "operators.listen")?,
        nodes: bind(settings.nodes, "nodes.listen")?,
    };
    let clock = Clock::start();
    let names = settings
        .names
        .iter()
        .cloned()
        .chain([settings.nodes.ip().to_string()])
        .collect();
    let authority = Arc::new(Authority::load_or_create(&state_dir, names, clock.wall())?);
    let own = Arc::new(http::OwnCertificate::new(Arc::clone(&authority), clock.wall())?);
    let tls = http::server_config(&own)?;
    let operators = listeners.operators.local_addr().map_err(RunError::Serve)?;
    let nodes = listeners.nodes.local_addr().map_err(RunError::Serve)?;
    let addresses = Addresses {
        operator_url: format!("http://{operators}"),
        node_url: settings.node_url.clone().unwrap_or_else(|| format!("https://{nodes}")),
    };
    let (cluster, place) = (&settings.cluster, settings.place());
    let member = Member {
        name: cluster.name.clone().unwrap_or_else(|| operators.to_string()),
        operators: cluster.operators.clone().unwrap_or_else(|| operators.to_string()),
        nodes: cluster.nodes.clone().unwrap_or_else(|| nodes.to_string()),
    };
    let tracer = Tracer::of(settings.telemetry.as_ref(), "firmesh-coordinator", &member.name)?;
    let coordinator = Coordinating {
        lease: cluster.lease,
        grounds: Grounds {
            authority,
            tls: Arc::new(tls),
            clock,
            node_url: addresses.node_url.clone(),
            settings: Arc::new(settings),
            tracer: tracer.clone(),
        },
        place,
        member,
        addresses,
        cancel,
    };
    let outcome = tokio::select! {
        outcome = coordinator.run(listeners) => outcome,
        never = own.keep(clock) => match never {},
    };
    tracer.close().await;
    // Nobody listens any more; a file left behind by a crash is replaced at the next start.
    let _ = fs::remove_file(state_dir.join("addresses.json"));
    info!("coordinator stopped");
    outcome
}

/// How a term ended.
enum Ended {
    /// This coordinator is to stop.
    Asked,
    /// Another one leads by now, or the database is gone: this one may lead again.
    Deposed,
}

/// A coordinator that follows and leads by turns.
struct Coordinating {
    grounds: Grounds,
    place: Place,
    member: Member,
    lease: Duration,
    addresses: Addresses,
    cancel: CancellationToken,
}

impl Coordinating {
    async fn run(self, listeners: Listeners) -> Result<(), RunError> {
        let (sight, known) = watch::channel(Sight::none());
        let hung_up = CancellationToken::new();
        let own = Own {
            member: self.member.clone(),
            operators: listeners.operators.local_addr().map_err(RunError::Serve)?,
            nodes: listeners.nodes.local_addr().map_err(RunError::Serve)?,
        };
        let faces = Faces::new(known, own, hung_up.clone());
        let outcome = self.take_turns(listeners, &sight, &faces).await;
        // What was handed on may end by itself, as what is served here may.
        let _ = tokio::time::timeout(GRACE, faces.end()).await;
        hung_up.cancel();
        faces.end().await;
        outcome
    }

    async fn take_turns(
        &self,
        listeners: Listeners,
        sight: &watch::Sender<Sight>,
        faces: &Faces,
    ) -> Result<(), RunError> {
        let (mut within, mut listeners) = (Some(self.place.reach_within()), Some(listeners));
        loop {
            // They are closed where this coordinator is to stop.
            let Some(listeners_now) = &listeners else {
                return Ok(());
            };
            let reaching = cluster::reach(&self.place, &self.grounds.authority, within, &self.cancel);
            let reached = match within {
                Some(_) => reaching.await,
                // Whoever led before may be gone with the database: somebody has to say so.
                None => self.face(listeners_now, faces, reaching).await?,
            };
            let Some(database) = reached? else {
                return Ok(());
            };
            within = None;
            let followed = self.follow(&database, listeners_now, sight, faces).await?;
            let ended = match followed {
                Some(taken) => {
                    let ended = self.lead(&database, taken, &mut listeners).await;
                    // Whoever leads next is not known yet.
                    sight.send_replace(Sight::none());
                    ended?
                }
                None => Ended::Asked,
            };
            // Connections that hang are dropped with it.
            let _ = tokio::time::timeout(CLOSE_WITHIN, database.close()).await;
            if let Ended::Asked = ended {
                return Ok(());
            }
        }
    }

    /// Hands everybody on to whoever leads, until this coordinator does. With a database of its own it does at once.
    async fn follow(
        &self,
        database: &Database,
        listeners: &Listeners,
        sight: &watch::Sender<Sight>,
        faces: &Faces,
    ) -> Result<Option<Taken>, RunError> {
        let lead = cluster::await_lead(database, &self.member, self.lease, sight, &self.cancel);
        if !database.is_shared() {
            return Ok(lead.await?);
        }
        self.write_addresses()?;
        Ok(self.face(listeners, faces, lead).await??)
    }

    /// Hands everybody on until something else has come to its end.
    async fn face<T>(
        &self,
        listeners: &Listeners,
        faces: &Faces,
        until: impl Future<Output = T>,
    ) -> Result<T, RunError> {
        let Listeners { operators, nodes } = listeners.again().map_err(RunError::Serve)?;
        tokio::select! {
            ended = until => Ok(ended),
            ended = faces.accept(Face::Operators, operators) => Err(RunError::Serve(never(ended))),
            ended = faces.accept(Face::Nodes, nodes) => Err(RunError::Serve(never(ended))),
        }
    }

    async fn lead(
        &self,
        database: &Database,
        taken: Taken,
        listeners: &mut Option<Listeners>,
    ) -> Result<Ended, RunError> {
        let open = listeners.as_ref().map(Listeners::again).transpose();
        let Some(open) = open.map_err(RunError::Serve)? else {
            return Ok(Ended::Asked);
        };
        let mut keeping = JoinSet::new();
        if database.is_shared() {
            // By itself, so that it is in time however long a world takes to be read.
            keeping.spawn(cluster::keep_lead(database.clone(), taken, self.lease));
        }
        let leading = async {
            let (clock, authority) = (self.grounds.clock, self.grounds.authority.clone());
            let store = Store::open(database.clone(), taken.term, authority, clock.wall()).await?;
            let ready = || self.write_addresses();
            term::lead(&self.grounds, store, open, &self.cancel, ready).await
        };
        // Whoever comes when this coordinator is about to stop is not to wait for an answer.
        let closing = async {
            self.cancel.cancelled().await;
            *listeners = None;
            std::future::pending::<Infallible>().await
        };
        let outcome = tokio::select! {
            Some(_) = keeping.join_next() => return Ok(Ended::Deposed),
            outcome = leading => outcome,
            never = closing => match never {},
        };
        if database.is_shared() {
            // If it cannot be given up, it ends by itself.
            let given_up = tokio::time::timeout(CLOSE_WITHIN, database.give_up_lead(taken.term)).await;
            info!(
                at_once = matches!(given_up, Ok(Ok(true))),
                "this coordinator leads no more"
            );
        }
        match outcome {
            Ok(()) => Ok(Ended::Asked),
            Err(failure) if database.is_shared() && failure.is_passing() => {
                error!(error = %chain(&failure), "this coordinator cannot lead at the moment");
                tokio::time::sleep(REST).await;
                Ok(Ended::Deposed)
            }
            Err(failure) => Err(failure),
        }
    }

    fn write_addresses(&self) -> Result<(), RunError> {
        let text = serde_json::to_vec_pretty(&self.addresses).expect("two texts always encode");
        let state_dir = &self.grounds.settings.state_dir;
        write_file(&state_dir.join("addresses.json"), &text)?;
        let Addresses { operator_url, node_url } = &self.addresses;
        info!(operators = operator_url, nodes = node_url, state = %state_dir.display(), "coordinator started");
        Ok(())
    }
}

fn never(ended: io::Result<()>) -> io::Error {
    ended.err().unwrap_or_else(|| io::Error::other("a listener ended"))
}

/// Makes the folders and takes the lock, which lasts as long as the file is open.
pub(crate) fn prepare(settings: &Settings) -> Result<Lock, RunError> {
    let Settings {
        state_dir, files_dir, ..
    } = settings;
    let unusable = |source| RunError::StateDir {
        path: state_dir.clone(),
        source,
    };
    // Nobody else's business: permits, reports and the names of the fleet lie here.
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700).create(state_dir).map_err(unusable)?;
    let artifacts = files_dir.join("artifacts");
    folder.create(&artifacts).map_err(|source| RunError::StateDir {
        path: artifacts,
        source,
    })?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state_dir.join("lock"))
        .map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok(Lock::held(lock)),
        Err(fs::TryLockError::WouldBlock) => Err(RunError::Locked {
            path: state_dir.clone(),
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
