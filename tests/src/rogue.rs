//! A coordinator in the attacker's hands: it has the fleet CA, the online keys and the permit key, and serves what it
//! likes. What it does not have are the keys of people.
//!
//! Written from the API's description, so that the node is not tested against its own counterpart only.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Json, Router,
    body::{Body, Bytes, to_bytes},
    extract::{Path, Query, Request, State},
    http::StatusCode,
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use axum_server::{Handle, tls_rustls::RustlsConfig};
use firmesh_protocol::{
    api::{EnrolRequest, EnrolResponse, SyncRequest, SyncResponse},
    chunk::{HashTree, encode},
    identity::PATH_URI_PREFIX,
    ids::CampaignId,
    report::DeviceFacts,
    trust::Envelope,
};
use futures_util::stream;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::Deserialize;

/// What a node asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// News, with its heartbeat.
    Sync,
    /// A TUF file.
    Metadata,
    /// A campaign's manifest or plan.
    Campaign,
    /// A slice of an image.
    Image,
}

/// How an answer is spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The request is taken, and nothing is ever said.
    Mute,
    /// One byte of the right answer a second.
    Slow,
    /// Bytes without an end.
    Endless,
}

/// What the rogue serves and what it has seen.
#[derive(Debug, Default)]
pub struct Wares {
    /// What it answers to in which manner; soundly, if there is none.
    pub spoilt: Option<(Asked, Manner)>,
    /// The most bytes of an endless answer that were taken from it.
    pub endless_bytes: usize,
    /// TUF files by name.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Campaign manifests by target name.
    pub targets: BTreeMap<String, Vec<u8>>,
    /// Plans by digest.
    pub plans: BTreeMap<String, Vec<u8>>,
    /// Images by artifact id.
    pub images: BTreeMap<String, Vec<u8>>,
    /// The timestamp version it claims; a node refreshes when it differs from its own.
    pub timestamp_version: u64,
    /// The campaigns it claims.
    pub campaigns: Vec<CampaignId>,
    /// Permits it hands out.
    pub permits: Vec<Envelope>,
    /// Brakes it hands out.
    pub brakes: Vec<Envelope>,
    /// The revocation list it hands out.
    pub revocations: Option<Envelope>,
    /// Evidence by digest.
    pub evidence: BTreeMap<String, Vec<u8>>,
    /// How often somebody asked for a slice of an image.
    pub slices_asked: usize,
    /// The devices that the node reported last.
    pub devices: Vec<DeviceFacts>,
}

/// A running rogue. Dropping it ends it.
#[derive(Debug)]
pub struct Rogue {
    /// Where nodes find it.
    pub url: String,
    /// The fleet CA's certificate, PEM.
    pub ca_pem: String,
    wares: Arc<Mutex<Wares>>,
    handle: Handle<SocketAddr>,
}

#[derive(Clone)]
struct Desk {
    wares: Arc<Mutex<Wares>>,
    place: String,
    ca_pem: String,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

impl Rogue {
    /// Starts one that enrols everybody at `place`.
    pub fn start(place: &str) -> Result<Self> {
        let ca_key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("https://{}", listener.local_addr()?);
        let wares = Arc::<Mutex<Wares>>::default();
        let desk = Desk {
            wares: Arc::clone(&wares),
            place: place.to_owned(),
            ca_pem: ca_pem.clone(),
            issuer: Arc::new(issuer),
        };
        let router = Router::new()
            .route("/node/v1/enrol", post(enrol))
            .route("/node/v1/sync", post(sync))
            .route("/node/v1/metadata/{name}", get(metadata))
            .route("/node/v1/targets/campaigns/{name}", get(manifest))
            .route("/node/v1/plans/{digest}", get(plan))
            .route("/node/v1/evidence/{digest}", get(evidence))
            .route("/node/v1/artifacts/{id}/slice", get(slice))
            .layer(from_fn_with_state(desk.clone(), spoil))
            .with_state(desk);
        let handle = Handle::new();
        let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::new(tls)))?;
        tokio::spawn(server.handle(handle.clone()).serve(router.into_make_service()));
        Ok(Self {
            url,
            ca_pem,
            wares,
            handle,
        })
    }

    /// What it serves and what it has seen.
    pub fn wares(&self) -> MutexGuard<'_, Wares> {
        lock(&self.wares)
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

/// Spoils the answers that are to be spoilt.
async fn spoil(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let asked = match request.uri().path().split('/').nth(3) {
        Some("sync") => Some(Asked::Sync),
        Some("metadata") => Some(Asked::Metadata),
        Some("targets" | "plans") => Some(Asked::Campaign),
        Some("artifacts") => Some(Asked::Image),
        _ => None,
    };
    let spoilt = lock(&desk.wares).spoilt;
    let sound = next.run(request).await;
    let Some((_, manner)) = spoilt.filter(|(what, _)| Some(*what) == asked) else {
        return sound;
    };
    if sound.status() != StatusCode::OK {
        return sound; // who asks for a newer root is told that there is none
    }
    match manner {
        Manner::Mute => std::future::pending().await,
        Manner::Slow => {
            let every = tokio::time::interval(Duration::from_secs(1));
            let trickle = stream::unfold((every, sound.into_body()), async |(mut every, body)| {
                every.tick().await;
                let body = to_bytes(body, usize::MAX).await.ok()?;
                let (first, rest) = (body.slice(..1.min(body.len())), body.slice(1.min(body.len())..));
                (!first.is_empty()).then(|| (Ok::<_, Infallible>(first), (every, Body::from(rest))))
            });
            Body::from_stream(trickle).into_response()
        }
        Manner::Endless => {
            let wares = Arc::clone(&desk.wares);
            let mut taken = 0;
            let flood = stream::repeat_with(move || {
                let part = Bytes::from_static(&[b' '; 64 << 10]);
                taken += part.len();
                let mut wares = lock(&wares);
                wares.endless_bytes = taken.max(wares.endless_bytes);
                Ok::<_, Infallible>(part)
            });
            Body::from_stream(flood).into_response()
        }
    }
}

async fn enrol(State(desk): State<Desk>, Json(request): Json<EnrolRequest>) -> Result<Json<EnrolResponse>, StatusCode> {
    let certificate_pem = desk.certify(&request).map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(Json(EnrolResponse {
        certificate_pem,
        fleet_ca_pem: desk.ca_pem.clone(),
    }))
}

impl Desk {
    fn certify(&self, request: &EnrolRequest) -> Result<String> {
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr_pem)?;
        let uri = format!("{PATH_URI_PREFIX}{}", self.place);
        csr.params.subject_alt_names = vec![
            SanType::DnsName(request.node.as_str().try_into()?),
            SanType::URI(uri.try_into()?),
        ];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(csr.signed_by(&self.issuer)?.pem())
    }
}

async fn sync(State(desk): State<Desk>, Json(request): Json<SyncRequest>) -> Json<SyncResponse> {
    let mut wares = lock(&desk.wares);
    wares.devices = request.devices;
    Json(SyncResponse {
        reports_acked: 0,
        permits: wares.permits.clone(),
        timestamp_version: wares.timestamp_version,
        campaigns: wares.campaigns.clone(),
        roster: Some(vec![request.record]),
        roster_changes: None,
        roster_version: 1,
        brakes: Some(wares.brakes.clone()),
        brakes_version: wares.brakes.len() as u64,
        revocations: wares.revocations.clone(),
        audit: None,
        challenges: Vec::new(),
        traces: Vec::new(),
        wants_feeders: false,
    })
}

async fn metadata(State(desk): State<Desk>, Path(name): Path<String>) -> Response {
    found(lock(&desk.wares).metadata.get(&name).cloned())
}

async fn manifest(State(desk): State<Desk>, Path(name): Path<String>) -> Response {
    found(lock(&desk.wares).targets.get(&format!("campaigns/{name}")).cloned())
}

async fn plan(State(desk): State<Desk>, Path(digest): Path<String>) -> Response {
    found(lock(&desk.wares).plans.get(&digest).cloned())
}

async fn evidence(State(desk): State<Desk>, Path(digest): Path<String>) -> Response {
    found(lock(&desk.wares).evidence.get(&digest).cloned())
}

#[derive(Debug, Deserialize)]
struct Slice {
    offset: u64,
    length: u64,
}

async fn slice(State(desk): State<Desk>, Path(id): Path<String>, Query(slice): Query<Slice>) -> Response {
    let mut wares = lock(&desk.wares);
    wares.slices_asked += 1;
    let encoded = wares.images.get(&id).and_then(|image| encoded(image, &slice).ok());
    found(encoded)
}

fn encoded(image: &[u8], slice: &Slice) -> Result<Vec<u8>> {
    let tree = HashTree::build(image, image.len() as u64)?;
    let end = slice.offset.checked_add(slice.length).context("beyond every image")?;
    Ok(encode(image, &tree, &(slice.offset..end))?)
}

fn found(bytes: Option<Vec<u8>>) -> Response {
    bytes.map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        axum::response::IntoResponse::into_response,
    )
}

fn lock(wares: &Mutex<Wares>) -> MutexGuard<'_, Wares> {
    wares.lock().unwrap_or_else(PoisonError::into_inner)
}
