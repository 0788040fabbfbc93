//! Everything that must stand before the loop begins, and the errors of what cannot.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use firmesh_executors::{
    BuildError, ImageSource, JournalError, build_with,
    ddi::Desk,
    host::{HostBuildError, build_hosts},
    node_self::Own,
};
use firmesh_node_core::swarm::Swarm;
use firmesh_protocol::{report::NodeRecord, time::Timestamp};
use firmesh_telemetry::Tracer;
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Event, Runtime,
    attempts::Devices,
    coordinator::Fleet,
    hosts::Hosts,
    room::{Room, warn_of_absent_pins},
    roster::sign_record,
};
use crate::{
    audit::AuditWatch,
    config::Settings,
    ddi::{self, Face},
    files::write_durably,
    identity::{Identity, IdentityFileError, NodeKey},
    images::{self, Images},
    journal::{self, AskingNotes, NodeJournal},
    mesh::{self, MeshCommand, Topic},
    own::OwnNode,
    status,
    store::{self, ChunkStore, PieceStore, StoreError},
    transport::{self, Plane, Transport},
    trust_store::{TrustError, TrustStore, system_time},
    uplink::{EnrolError, Uplink, enrol},
};

/// Why a node does not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state folder cannot be used.
    #[error("state_dir: {path} cannot be used; check that it exists, is writable and has room")]
    StateDir {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The journal cannot be opened.
    #[error(transparent)]
    OpenJournal(#[from] journal::OpenError),
    /// The journal failed while the node ran. Nothing goes on without it.
    #[error("the journal failed; the node stops rather than forget what it promised")]
    Journal(#[from] JournalError),
    /// The key or certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// The node could not enrol.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The metadata folder cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// What is known of the audit log cannot be used.
    #[error(transparent)]
    Audit(Box<dyn std::error::Error + Send + Sync>),
    /// The piece store cannot be opened.
    #[error(transparent)]
    OpenStore(#[from] store::OpenError),
    /// The piece store cannot be used.
    #[error(transparent)]
    Store(StoreError),
    /// The data plane cannot be opened.
    #[error(transparent)]
    Transport(#[from] transport::OpenError),
    /// The control plane cannot be opened.
    #[error(transparent)]
    Mesh(#[from] mesh::OpenError),
    /// The image server cannot listen.
    #[error(transparent)]
    Images(#[from] images::ListenError),
    /// Devices that ask cannot be answered.
    #[error(transparent)]
    Ddi(#[from] ddi::ListenError),
    /// The status API cannot listen.
    #[error("the status API cannot listen on {listen}; is another node running there?")]
    Status {
        /// The address.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The HTTPS client cannot be made.
    #[error("the HTTPS client cannot be made")]
    Client(#[source] reqwest::Error),
    /// Spans cannot be sent.
    #[error(transparent)]
    Traces(#[from] firmesh_telemetry::StartError),
    /// A task of the node died.
    #[error("a part of the node died; it stops, to be started again")]
    TaskDied(#[source] tokio::task::JoinError),
    /// A device's backend cannot be made.
    #[error(transparent)]
    Device(#[from] BuildError),
    /// What has a host step aside cannot be made.
    #[error(transparent)]
    Host(#[from] HostBuildError),
}

/// How long to wait before asking a coordinator again that did not answer an enrolment.
const ENROL_AGAIN: Duration = Duration::from_secs(1);

/// Events waiting for the loop. A full queue holds the senders back.
const EVENTS_MAX: usize = 1_024;

/// Where the node listens, for whoever started it with port 0.
#[derive(Serialize)]
struct Addresses {
    status: SocketAddr,
    data: SocketAddr,
    mesh: String,
    images: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ddi: Option<String>,
}

/// Runs a node until `cancel`.
pub async fn run(settings: Settings, cancel: CancellationToken) -> Result<(), RunError> {
    let state = |path: PathBuf, source| RunError::StateDir { path, source };
    fs::create_dir_all(&settings.state_dir).map_err(|source| state(settings.state_dir.clone(), source))?;
    let folder = |name: &str| settings.state_dir.join(name);
    let journal = Arc::new(NodeJournal::open(&folder("journal"))?);
    let key = NodeKey::load_or_create(&folder("node.key"))?;
    let Some(identity) = identity(&settings, key, &cancel).await? else {
        return Ok(());
    };
    let trust = TrustStore::open(&folder("metadata"), &settings.root_json)?;
    let audit =
        AuditWatch::open(&folder("audit"), &identity.fleet_ca).map_err(|error| RunError::Audit(Box::new(error)))?;
    let (lost, lost_rx) = mpsc::channel(EVENTS_MAX);
    let store = PieceStore::open(&folder("store"), settings.store_key.clone(), lost).await?;
    let pieces = store.clone();
    warn_of_absent_pins(&pieces, &settings.room.pins);
    let store: Arc<dyn ChunkStore> = Arc::new(store);
    let (images, images_listener) = Images::listen(
        Arc::clone(&store),
        settings.images.listen,
        settings.images.advertise_host.as_deref(),
    )?;
    let status_listener = status::listen(settings.status_listen)
        .await
        .map_err(|source| RunError::Status {
            listen: settings.status_listen,
            source,
        })?;

    let (events, event_rx) = mpsc::channel(EVENTS_MAX);
    let (transport_tx, transport_rx) = mpsc::channel(EVENTS_MAX);
    let transport = Transport::open(
        &identity,
        settings.node.clone(),
        &settings.path,
        Plane {
            listen: settings.data.listen,
            budgets: settings.budgets.clone(),
            datagram_bytes_max: settings.data.datagram_bytes_max,
            dscp: settings.data.dscp,
        },
        Arc::clone(&store),
        transport_tx,
        cancel.child_token(),
    )?;
    let (mesh, mesh_task) = mesh::open(
        identity.key.libp2p(),
        &settings.mesh.listen,
        &settings.mesh.seeds,
        settings.mesh.mdns,
        cancel.child_token(),
    )
    .await?;

    let data = transport
        .local_addr()
        .map_err(|source| state(settings.state_dir.clone(), source))?;
    let record = NodeRecord {
        node: settings.node.clone(),
        path: settings.path.clone(),
        certificate: hex::encode(identity.certificate()),
        data_addr: settings.data.advertise.unwrap_or(data).to_string(),
        mesh_addr: mesh.address.to_string(),
        // Over a lost state folder too, the newest record wins.
        sequence: journal.next_at_least("record", u64::try_from(system_time().unix_seconds()).unwrap_or(0))?,
    };
    let own_record = sign_record(&record, &identity.key);
    let image_source: Arc<dyn ImageSource> = Arc::new(images.clone());
    let desk = Arc::new(Desk::new(Arc::new(AskingNotes(Arc::clone(&journal)))));
    let (own, own_ends) = OwnNode::new();
    let own: Arc<dyn Own> = own;
    let backends = settings
        .devices
        .iter()
        .map(|device| build_with(device, Arc::clone(&image_source), Some(&desk), Some(&own)))
        .collect::<Result<Vec<_>, _>>()?;
    let hosts = build_hosts(&settings.hosts, &folder("hosts"))?;
    let hosts = Hosts::new(
        hosts,
        &settings.hosts,
        journal.hosts()?,
        Timestamp::after_start(Duration::ZERO),
    );
    let face = match &settings.ddi {
        Some(ddi) => {
            let asking = backends.iter().filter_map(|backend| backend.asking().cloned());
            Some(Face::listen(ddi, asking, images.clone())?)
        }
        None => None,
    };
    let addresses = Addresses {
        status: status_listener
            .local_addr()
            .map_err(|source| state(settings.state_dir.clone(), source))?,
        data,
        mesh: mesh.address.to_string(),
        images: images.base_url().to_owned(),
        ddi: face.as_ref().map(|(face, _)| face.base_url().to_owned()),
    };

    let (image_tls, face_tls) = (identity.image_server_config()?, identity.image_server_config()?);
    let (url, tls) = (settings.coordinator_url.clone(), identity.client_config()?);
    let uplink = Uplink::new(url, tls, settings.patience).map_err(RunError::Client)?;
    let (status_tx, status_rx) = mpsc::channel(16);
    let (brakes_tx, brakes_rx) = mpsc::channel(16);
    let (bundles_tx, bundles_rx) = mpsc::channel(16);
    let (clears_tx, clears_rx) = mpsc::channel(16);
    let (doctors_tx, doctors_rx) = mpsc::channel(16);
    let folder = &settings.state_dir;
    let token = status::LocalToken::own(folder).map_err(|source| state(folder.clone(), source))?;
    let tracer = Tracer::of(settings.telemetry.as_ref(), "firmesh-node", settings.node.as_str())?;
    let mut runtime = Runtime {
        swarm: Swarm::new(
            settings.node.clone(),
            settings.path.clone(),
            settings.tuning.clone(),
            seed(),
        ),
        hosts,
        restart: super::restart::Restart::default(),
        heard: own_ends.heard,
        traces: super::traces::Traces::open(tracer.clone(), folder),
        words: super::words::Words::default(),
        devices: Devices::new(backends, journal.standings()?, journal.tries()?, journal.declined()?),
        room: Room::new(pieces.clone(), settings.room.clone(), journal.images()?),
        fleet: Fleet::new(own_record.clone()),
        possession: super::possession::Possession::default(),
        evidence: super::evidence::Evidence::default(),
        brakes: super::safety::Brakes::default(),
        revocations: super::safety::Revocations::default(),
        record,
        renew_at: None,
        identity,
        started: Instant::now(),
        journal,
        store,
        images: images.clone(),
        transport,
        mesh: mesh.commands,
        uplink,
        trust: Arc::new(tokio::sync::Mutex::new(trust)),
        audit,
        tracked: std::collections::BTreeMap::new(),
        deltas: super::delta::Deltas::default(),
        fetches: std::collections::BTreeMap::new(),
        traffic: firmesh_protocol::api::Traffic::default(),
        fed_by: std::collections::BTreeMap::new(),
        refusals: std::collections::VecDeque::new(),
        last_error: None,
        events: events.clone(),
        tasks: JoinSet::new(),
        cancel: cancel.clone(),
        settings,
    };
    let scrub_pace = runtime.settings.scrub;
    runtime.begin_fleet().await?;
    runtime.begin_devices()?;
    runtime.tell_mesh(MeshCommand::Publish(Topic::Records, own_record.to_bytes()));

    let path = runtime.settings.state_dir.join("addresses.json");
    let written = serde_json::to_vec_pretty(&addresses).map_err(io::Error::other);
    written
        .and_then(|bytes| write_durably(&path, &bytes, 0o644))
        .map_err(|source| state(path, source))?;
    info!(node = %runtime.settings.node, path = %runtime.settings.path, status = %addresses.status, %data, "ready");

    let mut services = JoinSet::new();
    services.spawn(images.serve(images_listener, image_tls, cancel.child_token()));
    if let Some((face, listener)) = face {
        services.spawn(face.serve(listener, face_tls, cancel.child_token()));
    }
    let status_cancel = cancel.child_token();
    services.spawn(async move {
        let runtime = status::Runtime {
            status: status_tx,
            brakes: brakes_tx,
            bundles: bundles_tx,
            clears: clears_tx,
            doctors: doctors_tx,
            token,
        };
        if let Err(error) = status::serve(status_listener, runtime, status_cancel).await {
            warn!(%error, "the status API stopped");
        }
    });
    let scrub_cancel = cancel.child_token();
    services.spawn(async move { pieces.scrub(scrub_pace, system_time, scrub_cancel).await });
    services.spawn(pump(transport_rx, events.clone(), Event::Transport));
    services.spawn(pump(mesh.gossip, events.clone(), Event::Gossip));
    services.spawn(pump(brakes_rx, events.clone(), Event::Brake));
    services.spawn(pump(bundles_rx, events.clone(), Event::Bundle));
    services.spawn(pump(clears_rx, events.clone(), Event::Clear));
    services.spawn(pump(doctors_rx, events.clone(), Event::Doctor));
    services.spawn(pump(lost_rx, events.clone(), Event::Lost));
    services.spawn(pump(own_ends.restarts, events.clone(), Event::Restart));
    services.spawn(pump(status_rx, events, Event::Status));
    let result = runtime.main_loop(event_rx).await;
    cancel.cancel();
    mesh_task.await.ok(); // a mesh task that died has nothing left to say
    services.shutdown().await;
    tracer.close().await;
    result
}

async fn pump<T>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<Event>, wrap: fn(T) -> Event) {
    while let Some(item) = from.recv().await {
        if to.send(wrap(item)).await.is_err() {
            return;
        }
    }
}

/// This node's identity, asking the coordinator for a certificate if there is none yet. `None` if cancelled meanwhile.
async fn identity(settings: &Settings, key: NodeKey, cancel: &CancellationToken) -> Result<Option<Identity>, RunError> {
    let certificate = settings.state_dir.join("node.crt");
    let mut told = false;
    while !certificate.exists() {
        let asked = ask_for_certificate(settings, &key, &certificate).await;
        match asked {
            Ok(()) => info!(node = %settings.node, "enrolled"),
            Err(EnrolError::Coordinator(error)) if error.is_unreachable() => {
                if !told {
                    warn!(error = %super::Chain(&error), "waiting for the coordinator to enrol");
                    told = true;
                }
                tokio::select! {
                    () = cancel.cancelled() => return Ok(None),
                    () = tokio::time::sleep(ENROL_AGAIN) => {}
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (node, path) = (&settings.node, &settings.path);
    Ok(Some(Identity::load(
        key,
        &certificate,
        &settings.fleet_ca_pem,
        node,
        path,
        system_time(),
    )?))
}

async fn ask_for_certificate(settings: &Settings, key: &NodeKey, certificate: &Path) -> Result<(), EnrolError> {
    enrol(
        &settings.coordinator_url,
        &settings.fleet_ca_pem,
        settings.token_file.as_deref(),
        &settings.node,
        key,
        &super::renewal::addresses(settings),
        certificate,
    )
    .await
}

/// Neighbours must not all break ties alike.
fn seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| std::process::id().into())
}
