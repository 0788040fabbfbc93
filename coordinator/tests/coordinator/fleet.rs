//! Everybody around a coordinator: operator, signers, nodes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use firmesh_coordinator::{Addresses, Config, Overrides, RunError, Settings, run};
use firmesh_protocol::{
    api::{
        About, AuditSeen, EnrolRequest, EnrolResponse, EnrolmentTicket, NewNode, PlanRequest, PlanResponse, Problem,
        Publication, Published, SyncRequest, SyncResponse, Traffic,
    },
    ids::{ArtifactId, CampaignId, Component, DeviceId, NodeId, Sha256},
    labels::Labels,
    manifest::{
        Artifact, CampaignManifest, Caps, Constraints, Deadlines, GateRule, MANIFEST_SCHEMA, RELEASE_SCHEMA,
        ReleaseInfo, ReleaseRef, Reversibility, Selector, Strategy,
    },
    possession::{Answer, Challenge, Prover},
    report::{
        AttemptReport, AttemptState, DeviceFacts, NODE_RECORD_TYPE, NodeRecord, PERMIT_TYPE, Permit, PermitKind,
        REPORT_TYPE,
    },
    time::WallTime,
    trust::{Ceremony, Envelope, KeySet, PublicKey, Repository, SecretKey, Signers, Target},
    units::BasisPoints,
};
use reqwest::{Client, Method, Response, StatusCode};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::postgres::Postgres;

pub(crate) const IMAGE: &[u8] = &[0x5a; 70_000];
const OLD_IMAGE: &[u8] = b"the old image";
const PATIENCE: Duration = Duration::from_secs(20);

/// The suite runs twice: `tests/coordinator_on_postgres` is this folder under another name.
pub(crate) const ON_POSTGRES: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"coordinator_on_postgres");

/// One server for all fleets of this process.
static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

pub(crate) struct Fleet {
    folder: tempfile::TempDir,
    /// The server and the fleet's own database there.
    server: Option<(Arc<Postgres>, String)>,
    client: Client,
    addresses: Addresses,
    about: About,
    cancel: CancellationToken,
    process: Option<JoinHandle<Result<(), RunError>>>,
    repository: Option<Repository>,
    sequence: std::cell::Cell<u64>,
}

fn wall() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    WallTime::from_unix_seconds(since.as_secs().cast_signed())
}

fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn signers(numbers: [u8; 3]) -> Signers {
    Signers {
        keys: numbers.map(|number| key(number).public()).to_vec(),
        threshold: 2,
    }
}

fn settings(state_dir: &Path) -> Settings {
    let free = Some("127.0.0.1:0".parse().unwrap());
    let overrides = Overrides {
        state_dir: Some(state_dir.to_owned()),
        operators: free,
        nodes: free,
        ..Overrides::default()
    };
    let parts = ["coordinator.toml", "database.toml"].map(|part| std::fs::read_to_string(state_dir.join(part)));
    let file = state_dir.join("both.toml");
    std::fs::write(&file, parts.map(Result::unwrap_or_default).concat()).unwrap();
    Config::load(&file).unwrap().check(overrides).unwrap()
}

pub(crate) fn new_node(node: &str, path: &str) -> NewNode {
    NewNode {
        node: node.parse().unwrap(),
        path: path.parse().unwrap(),
    }
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With a configuration, TOML.
    pub(crate) async fn start_with(config: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let server = ON_POSTGRES.then(database);
        let database = server.as_ref().map(|(server, name)| {
            let password = folder.path().join("database.password");
            std::fs::write(&password, server.password()).unwrap();
            std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
            let url = server.url(name);
            format!("\n[database]\nurl = {url:?}\npassword = {{ file = \"database.password\" }}\nconnections_min = 1\nconnections_max = 5\n")
        });
        std::fs::write(folder.path().join("database.toml"), database.unwrap_or_default()).unwrap();
        std::fs::write(folder.path().join("coordinator.toml"), config).unwrap();
        let client = Client::builder().timeout(PATIENCE).build().unwrap();
        let (cancel, process, addresses) = launch(folder.path()).await;
        let token = std::fs::read_to_string(folder.path().join("operator.token")).unwrap();
        let about = client
            .get(format!("{}/api/v1/about", addresses.operator_url))
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let (process, sequence) = (Some(process), std::cell::Cell::new(0));
        Self {
            folder,
            server,
            client,
            addresses,
            about,
            cancel,
            process,
            repository: None,
            sequence,
        }
    }

    pub(crate) async fn restart(&mut self) {
        self.cancel.cancel();
        self.process.take().unwrap().await.unwrap().unwrap();
        let (cancel, process, addresses) = launch(self.folder.path()).await;
        (self.cancel, self.process, self.addresses) = (cancel, Some(process), addresses);
    }

    pub(crate) async fn stop(mut self) {
        self.cancel.cancel();
        self.process.take().unwrap().await.unwrap().unwrap();
    }

    /// Everything that is in the database, as somebody finds it who steals it.
    pub(crate) fn database_bytes(&self) -> Vec<u8> {
        match &self.server {
            Some((server, name)) => server.client("pg_dump", &["--inserts", name]).unwrap().stdout,
            None => ["coordinator.sqlite", "coordinator.sqlite-wal"]
                .map(|file| std::fs::read(self.folder.path().join(file)).unwrap())
                .concat(),
        }
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn settings(&self) -> Settings {
        settings(self.folder.path())
    }

    pub(crate) fn operator_address(&self) -> SocketAddr {
        self.addresses
            .operator_url
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap()
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("operator.token")).unwrap()
    }

    async fn send(&self, method: &str, path: &str, token: Option<&str>, body: impl Into<reqwest::Body>) -> Response {
        let request = self.client.request(
            method.parse().unwrap(),
            format!("{}{path}", self.addresses.operator_url),
        );
        let request = request.body(body);
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.unwrap()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.addresses.operator_url)
    }

    /// Any request of the operator's, and its answer as it is.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Response {
        let mut request = self.client.request(method, self.url(path)).bearer_auth(self.token());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        request.send().await.unwrap()
    }

    /// A `POST` of bytes.
    pub(crate) async fn send_bytes(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Response {
        let mut request = self.client.post(self.url(path)).bearer_auth(self.token()).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        good(self.send("GET", path, None, "").await).await
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        self.send("GET", path, None, "")
            .await
            .error_for_status()
            .unwrap()
            .text()
            .await
            .unwrap()
    }

    pub(crate) async fn text_bytes(&self, path: &str) -> Vec<u8> {
        let response = self.send("GET", path, None, "").await.error_for_status().unwrap();
        response.bytes().await.unwrap().to_vec()
    }

    pub(crate) async fn status(&self, path: &str) -> StatusCode {
        self.send("GET", path, None, "").await.status()
    }

    /// As a page would read that had its own name point at loopback.
    pub(crate) async fn status_by_name(&self, path: &str, host: &str) -> StatusCode {
        let request = self.client.get(format!("{}{path}", self.addresses.operator_url));
        request.header("host", host).send().await.unwrap().status()
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        good(
            self.send("POST", path, Some(&self.token()), serde_json::to_vec(body).unwrap())
                .await,
        )
        .await
    }

    pub(crate) async fn refused_by_operators(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> Problem {
        let response = self.send(method, path, token, body.to_owned()).await;
        assert!(!response.status().is_success(), "{path} was accepted");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        let status = response.status().as_u16();
        let problem: Problem = response.json().await.unwrap();
        assert_eq!(problem.status, status);
        problem
    }

    pub(crate) async fn upload(&self, image: &'static [u8]) -> Artifact {
        let path = format!("/api/v1/artifacts?sha256={}", Sha256::of(image));
        let artifact: Artifact = good(self.send("POST", &path, Some(&self.token()), image).await).await;
        assert_eq!(artifact.id, ArtifactId::of(image));
        artifact
    }

    fn online(&self) -> PublicKey {
        self.about.online_key.parse().unwrap()
    }

    fn new_repository(&self, root: [u8; 3]) -> Repository {
        let ceremony = Ceremony {
            root: signers(root),
            releases: signers([11, 12, 13]),
            campaigns: signers([21, 22, 23]),
            online: Signers {
                keys: vec![self.online()],
                threshold: 1,
            },
            expires: wall() + days(30),
        };
        let mut repository = Repository::create(&ceremony).unwrap();
        for (name, version, image) in [("new", "1.1", IMAGE), ("old", "1.0", OLD_IMAGE)] {
            let info = ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: ArtifactId::of(image),
                vendor: "Acme".to_owned(),
                models: vec!["R1".to_owned()],
                component: Component::new("bmc").unwrap(),
                version: version.to_owned(),
                security_epoch: 1,
                from_versions: Vec::new(),
                reversibility: Reversibility::Reflash,
                provenance: None,
                version_scheme: None,
                min_from: None,
                requires: Vec::new(),
                conflicts: Vec::new(),
            };
            let target = Target::new(
                image.len() as u64,
                Sha256::of(image),
                Some(serde_json::to_value(info).unwrap()),
            );
            repository
                .set_release(&format!("firmware/{name}.bin"), target, wall() + days(30))
                .unwrap();
        }
        sign(&mut repository, root);
        repository
    }

    pub(crate) fn draft_publication(&self) -> Publication {
        publication(&self.new_repository([1, 2, 3]), BTreeMap::new())
    }

    /// Root 1 of another ceremony.
    pub(crate) fn other_root(&self) -> String {
        publication(&self.new_repository([4, 5, 6]), BTreeMap::new())
            .metadata
            .remove("1.root.json")
            .unwrap()
    }

    /// Images, ceremony, first publication.
    pub(crate) async fn found(&mut self) -> Artifact {
        let artifact = self.upload(IMAGE).await;
        self.upload(OLD_IMAGE).await;
        let repository = self.new_repository([1, 2, 3]);
        self.post::<Published>("/api/v1/metadata", &publication(&repository, BTreeMap::new()))
            .await;
        self.repository = Some(repository);
        artifact
    }

    /// A campaign for all devices, not planned.
    pub(crate) fn draft(&self, id: &str) -> CampaignManifest {
        let pin = |name: &str, image| ReleaseRef {
            target: format!("firmware/{name}.bin"),
            sha256: Sha256::of(image),
        };
        CampaignManifest {
            schema: MANIFEST_SCHEMA.to_owned(),
            id: CampaignId::new(id).unwrap(),
            sequence: 1,
            expires: wall() + days(10),
            releases: vec![pin("new", IMAGE)],
            previous: vec![pin("old", OLD_IMAGE)],
            selector: Selector::default(),
            strategy: Strategy::Canary {
                shares: [1_000, 10_000].map(|s| BasisPoints::new(s).unwrap()).to_vec(),
            },
            caps: Caps::new(1, 10),
            gate: GateRule::shares(BasisPoints::WHOLE, BasisPoints::WHOLE),
            deadlines: Deadlines {
                attempt_s: 600,
                back_s: 60,
            },
            constraints: Constraints::default(),
            priority: firmesh_protocol::manifest::Priority::default(),
            automatic_rollback: true,
            operator_rollback: false,
            retries: None,
            permit_keys: vec![self.about.permit_key.clone()],
            plan_sha256: Sha256::of(b""),
            hops: Vec::new(),
            rehearsal_sha256: None,
            kind: firmesh_protocol::manifest::CampaignKind::Update,
        }
    }

    /// Plans, signs and publishes a campaign for all devices.
    pub(crate) async fn campaign(&mut self, id: &str) {
        let mut manifest = self.draft(id);
        let planned: PlanResponse = self
            .post(
                "/api/v1/plans",
                &PlanRequest {
                    manifest: manifest.clone(),
                },
            )
            .await;
        assert_eq!(planned.plan_sha256, Sha256::of(planned.plan.as_bytes()));
        manifest.plan_sha256 = planned.plan_sha256;
        self.approve(serde_json::to_string(&manifest).unwrap()).await;
    }

    /// Approvers sign a manifest, byte by byte, and it is published.
    pub(crate) async fn approve(&mut self, text: String) {
        let manifest = CampaignManifest::from_bytes(text.as_bytes()).unwrap();
        let target = Target::new(text.len() as u64, Sha256::of(text.as_bytes()), None);
        let mut repository = self.repository.take().unwrap();
        repository
            .set_campaign(&manifest.target(), target, wall() + days(30))
            .unwrap();
        sign(&mut repository, [1, 2, 3]);
        let publication = publication(&repository, BTreeMap::from([(manifest.target(), text)]));
        self.post::<Published>("/api/v1/metadata", &publication).await;
        self.repository = Some(repository);
    }

    /// The release keys take a release back.
    pub(crate) async fn recall(&mut self, release: &str) {
        let mut repository = self.repository.take().unwrap();
        repository.remove_release(release, wall() + days(30)).unwrap();
        sign(&mut repository, [1, 2, 3]);
        self.post::<Published>("/api/v1/metadata", &publication(&repository, BTreeMap::new()))
            .await;
        self.repository = Some(repository);
    }

    pub(crate) fn open_permit(&self, permit: &Envelope) -> Permit {
        let key = self.about.permit_key.parse().unwrap();
        permit
            .open::<Permit>(&KeySet::of("coordinator", 1, [key]).unwrap(), PERMIT_TYPE)
            .unwrap()
            .into_inner()
    }

    pub(crate) fn anonymous_client(&self) -> Client {
        tls_client(&self.about.fleet_ca_pem, None)
    }

    pub(crate) async fn enrol(&self, node: &str, path: &str) -> NodeProcess {
        let ticket: EnrolmentTicket = self.post("/api/v1/nodes", &new_node(node, path)).await;
        let process = NodeProcess::new(node, &ticket);
        let request = EnrolRequest {
            node: ticket.node.clone(),
            token: ticket.token.clone(),
            csr_pem: process.csr(),
        };
        let url = format!("{}/node/v1/enrol", self.addresses.node_url);
        let answer: EnrolResponse = good(self.anonymous_client().post(url).json(&request).send().await.unwrap()).await;
        process.enrolled(&answer)
    }

    pub(crate) async fn node_get(&self, node: &NodeProcess, path: &str) -> Vec<u8> {
        let response = node
            .client()
            .get(format!("{}{path}", self.addresses.node_url))
            .send()
            .await
            .unwrap();
        response.error_for_status().unwrap().bytes().await.unwrap().to_vec()
    }

    /// Waits until every turn at the origin has ended.
    pub(crate) async fn turns_end(&self) {
        let ended = async {
            while !self
                .text("/metrics")
                .await
                .contains("firmesh_coordinator_origin_turns_taken 0\n")
            {}
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap();
    }

    pub(crate) async fn node_post(&self, node: &NodeProcess, path: &str, body: &impl Serialize) -> Response {
        node.client()
            .post(format!("{}{path}", self.addresses.node_url))
            .json(body)
            .send()
            .await
            .unwrap()
    }

    /// A heartbeat of a node that proves whatever it is asked for.
    pub(crate) async fn sync(&self, node: &NodeProcess, reports: &[(&DeviceId, AttemptState)]) -> SyncResponse {
        let answer = self.say(node, reports, Vec::new()).await;
        match answer.challenges.is_empty() {
            true => answer,
            false => {
                self.say(
                    node,
                    &[],
                    answer.challenges.iter().map(|asked| node.prove(asked)).collect(),
                )
                .await
            }
        }
    }

    /// A heartbeat with these answers to challenges.
    pub(crate) async fn say(
        &self,
        node: &NodeProcess,
        reports: &[(&DeviceId, AttemptState)],
        possession: Vec<Answer>,
    ) -> SyncResponse {
        let mut signed = Vec::new();
        for (device, state) in reports {
            self.sequence.set(self.sequence.get() + 1);
            signed.push(node.report(device, *state, self.sequence.get()));
        }
        let request = SyncRequest {
            possession,
            ..node.sync_request(&signed)
        };
        good(self.node_post(node, "/node/v1/sync", &request).await).await
    }

    pub(crate) async fn events(&self, last: Option<&str>) -> Events {
        let url = format!("{}/api/v1/events", self.addresses.operator_url);
        let request = Client::new().get(url).header("last-event-id", last.unwrap_or(""));
        Events {
            response: request.send().await.unwrap(),
            text: String::new(),
        }
    }
}

fn database() -> (Arc<Postgres>, String) {
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    let server = shared.upgrade().unwrap_or_else(|| {
        let started = Arc::new(Postgres::start().unwrap());
        *shared = Arc::downgrade(&started);
        started
    });
    let mut name = [0; 8];
    getrandom::fill(&mut name).unwrap();
    let name = format!("fleet_{}", hex::encode(name));
    server.create_database(&name).unwrap();
    (server, name)
}

pub(crate) async fn good<T: DeserializeOwned>(response: Response) -> T {
    let (status, url) = (response.status(), response.url().clone());
    let text = response.text().await.unwrap();
    assert!(status.is_success(), "{url}: {status}: {text}");
    // An action without an answer (204) reads as null.
    let text = if text.is_empty() { "null" } else { &text };
    serde_json::from_str(text).unwrap()
}

async fn launch(folder: &Path) -> (CancellationToken, JoinHandle<Result<(), RunError>>, Addresses) {
    let cancel = CancellationToken::new();
    let mut process = tokio::spawn(run(settings(folder), cancel.clone()));
    let wait = async {
        loop {
            match std::fs::read(folder.join("addresses.json")) {
                Ok(bytes) => return serde_json::from_slice(&bytes).unwrap(),
                Err(_) if process.is_finished() => {
                    panic!("the coordinator did not start: {:?}", (&mut process).await)
                }
                Err(_) => {}
            }
            tokio::task::yield_now().await;
        }
    };
    let addresses = tokio::time::timeout(PATIENCE, wait).await.unwrap();
    (cancel, process, addresses)
}

fn sign(repository: &mut Repository, root: [u8; 3]) {
    for number in root.into_iter().take(2).chain([11, 12, 21, 22]) {
        let key = key(number);
        for status in repository.signable(&key.public()).unwrap() {
            repository.sign(&status.file, &key).unwrap();
        }
    }
}

fn publication(repository: &Repository, manifests: BTreeMap<String, String>) -> Publication {
    let text = |(name, bytes): (String, Vec<u8>)| {
        let role = if name.ends_with("root.json") {
            name
        } else {
            name.trim_end_matches(".json").to_owned()
        };
        (role, String::from_utf8(bytes).unwrap())
    };
    Publication {
        metadata: repository.files().into_iter().map(text).collect(),
        manifests,
    }
}

fn tls_client(ca_pem: &str, identity: Option<(CertificateDer<'static>, &rcgen::KeyPair)>) -> Client {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some((certificate, key)) => {
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            builder.with_client_auth_cert(vec![certificate], key.into()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    Client::builder()
        .timeout(PATIENCE)
        .tls_backend_preconfigured(config)
        .build()
        .unwrap()
}

pub(crate) struct NodeProcess {
    node: NodeId,
    path: String,
    secret: SecretKey,
    pair: rcgen::KeyPair,
    identity: Option<(CertificateDer<'static>, String)>,
    /// The names of its devices.
    pub(crate) devices: [String; 2],
}

impl NodeProcess {
    pub(crate) fn new(node: &str, ticket: &EnrolmentTicket) -> Self {
        let seed: [u8; 32] = *Sha256::of(ticket.token.as_bytes()).as_bytes();
        let secret = SecretKey::from_seed(&seed);
        let pair = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(&secret.to_pem(), &rcgen::PKCS_ED25519).unwrap();
        Self {
            node: node.parse().unwrap(),
            path: ticket.path.to_string(),
            secret,
            pair,
            identity: None,
            devices: [0, 1].map(|number| format!("{node}-d{number}")),
        }
    }

    pub(crate) fn csr(&self) -> String {
        let params = rcgen::CertificateParams::new(vec![self.node.to_string(), "127.0.0.1".to_owned()]).unwrap();
        params.serialize_request(&self.pair).unwrap().pem().unwrap()
    }

    pub(crate) fn enrolled(mut self, answer: &EnrolResponse) -> Self {
        let certificate = CertificateDer::from_pem_slice(answer.certificate_pem.as_bytes()).unwrap();
        self.identity = Some((certificate, answer.fleet_ca_pem.clone()));
        self
    }

    fn client(&self) -> Client {
        let (certificate, ca) = self.identity.as_ref().unwrap();
        tls_client(ca, Some((certificate.clone(), &self.pair)))
    }

    /// The answer of a node that holds both images.
    pub(crate) fn prove(&self, challenge: &Challenge) -> Answer {
        let images = [IMAGE, OLD_IMAGE].into_iter();
        let mut held = images.filter(|image| ArtifactId::of(image) == challenge.artifact);
        let image = held.next().unwrap();
        let mut prover = Prover::new(challenge, &self.node, image.len() as u64);
        while let Some(range) = prover.wants() {
            prover.add(&image[range.start as usize..range.end as usize]).unwrap();
        }
        let (challenge, proof) = (*challenge, prover.finish().unwrap());
        Answer { challenge, proof }
    }

    fn report(&self, device: &DeviceId, state: AttemptState, sequence: u64) -> Envelope {
        let report = AttemptReport {
            campaign: CampaignId::new("spring").unwrap(),
            manifest_sha256: Sha256::of(b"manifest"),
            wave: 0,
            kind: PermitKind::Update,
            permit_sequence: 1,
            attempt: 1,
            device: device.clone(),
            node: self.node.clone(),
            sequence,
            state,
            reason: String::new(),
            version: Some("1.1".to_owned()),
            failure: None,
            health: None,
            at: wall(),
        };
        Envelope::sign(REPORT_TYPE, serde_json::to_vec(&report).unwrap(), [&self.secret])
    }

    pub(crate) fn sync_request(&self, reports: &[Envelope]) -> SyncRequest {
        let record = NodeRecord {
            node: self.node.clone(),
            path: self.path.parse().unwrap(),
            certificate: hex::encode(&self.identity.as_ref().unwrap().0),
            data_addr: "127.0.0.1:1".to_owned(),
            mesh_addr: "/ip4/127.0.0.1/udp/1/quic-v1".to_owned(),
            sequence: 1,
        };
        let facts = |name: &String| DeviceFacts {
            device: DeviceId::new(name.clone()).unwrap(),
            vendor: "Acme".to_owned(),
            model: "R1".to_owned(),
            component: Component::new("bmc").unwrap(),
            version: Some("1.0".to_owned()),
            executor: "redfish".to_owned(),
            labels: Labels::default(),
        };
        SyncRequest {
            record: Envelope::sign(NODE_RECORD_TYPE, serde_json::to_vec(&record).unwrap(), [&self.secret]),
            devices: self.devices.iter().map(facts).collect(),
            reports: reports.to_vec(),
            holdings: Vec::new(),
            traffic: Traffic::default(),
            banned: BTreeMap::new(),
            roster_version: 0,
            permits_seen: BTreeMap::new(),
            brakes: Vec::new(),
            brakes_version: 0,
            revocations_version: 0,
            audit: AuditSeen::default(),
            possession: Vec::new(),
            feeders: Vec::new(),
        }
    }
}

/// A watcher.
pub(crate) struct Events {
    response: Response,
    text: String,
}

impl Events {
    /// The next event: its id and what it says.
    pub(crate) async fn next(&mut self) -> (String, serde_json::Value) {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let found = field("id:")
                    .zip(field("data:"))
                    .map(|(id, data)| (id.to_owned(), serde_json::from_str(data).unwrap()));
                self.text = rest.to_owned();
                match found {
                    Some(found) => return found,
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk())
                .await
                .unwrap()
                .unwrap()
                .unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}
