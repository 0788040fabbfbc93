//! A store with couriers, and a receiver that does as it is told.

use std::{
    collections::VecDeque,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use firmesh_coordinator_core::{AttemptRecord, CampaignRecord};
use firmesh_protocol::{
    api::{CampaignState, GateVerdict, NotificationView},
    ids::CampaignId,
    report::{AttemptState, PermitKind},
};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::Notifier;
use crate::{
    Config, Overrides,
    config::{ConfigError, Settings},
    runtime::Clock,
    store::{Store, Write, testing::TestDatabase},
    telemetry::Metrics,
};

pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub(super) const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

pub(super) fn destination(name: &str, rules: &str, to: &str) -> String {
    format!("[[notifications]]\nname = \"{name}\"\n{rules}\n[notifications.to]\n{to}\n")
}

pub(super) fn settings(folder: &Path, text: &str) -> Result<Settings, ConfigError> {
    for (name, secret, mode) in [
        ("key", "the-key\n", 0o600),
        ("open", "the-key\n", 0o644),
        ("secret", SECRET, 0o600),
        ("secret-2", OTHER_SECRET, 0o600),
    ] {
        fs::write(folder.join(name), secret).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let path = folder.join("coordinator.toml");
    fs::write(&path, text).unwrap();
    Config::load(&path)?.check(Overrides::default())
}

/// A store and its couriers.
pub(super) struct TestWorld {
    store: Store,
    pub(super) notifier: Notifier,
    settings: Settings,
    database: Arc<TestDatabase>,
}

pub(super) struct Running {
    tasks: JoinSet<()>,
    cancel: CancellationToken,
}

impl Running {
    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

impl TestWorld {
    pub(super) async fn new(config: &str) -> Self {
        Self::on(TestDatabase::file(), config).await
    }

    pub(super) async fn on(database: TestDatabase, config: &str) -> Self {
        let settings = settings(database.folder(), config).unwrap();
        Self::open(Arc::new(database), settings).await
    }

    async fn open(database: Arc<TestDatabase>, settings: Settings) -> Self {
        let clock = Clock::start();
        let store = database.open(clock.wall()).await.unwrap();
        let notifier = Notifier::new(&settings.notifications, store.clone(), &Metrics::new(), clock).await;
        Self {
            store,
            notifier: notifier.unwrap(),
            settings,
            database,
        }
    }

    /// The same after a restart.
    pub(super) async fn again(&self) -> Self {
        self.store.close().await;
        Self::open(self.database.clone(), self.settings.clone()).await
    }

    pub(super) fn run(&self) -> Running {
        let (mut tasks, cancel) = (JoinSet::new(), CancellationToken::new());
        self.notifier.spawn(&mut tasks, &cancel);
        Running { tasks, cancel }
    }

    pub(super) async fn campaign(&self, state: CampaignState, gates: &[GateVerdict]) {
        self.campaign_of("spring", state, gates).await;
    }

    pub(super) async fn campaign_of(&self, id: &str, state: CampaignState, gates: &[GateVerdict]) {
        let record = CampaignRecord {
            id: CampaignId::new(id).unwrap(),
            state,
            gates: gates.to_vec(),
            last_permit: 1,
            reason: "because".to_owned(),
            decisions: Vec::new(),
            rollbacks: Vec::new(),
            approvals: Vec::new(),
            webhooks: Vec::new(),
            resumable: false,
            validated: std::collections::BTreeMap::new(),
        };
        self.commit(Write::Campaign(record)).await;
    }

    pub(super) async fn attempt(&self, state: AttemptState, cleared: bool) {
        let record = AttemptRecord {
            device: "d1".parse().unwrap(),
            kind: PermitKind::Update,
            state,
            reason: "it does not answer".to_owned(),
            version: None,
            permit: Some(1),
            report_sequence: 1,
            end_report: None,
            failure: None,
            health: None,
            presumed: true,
            cleared,
            halfway: None,
            ordered_back: false,
            retry: None,
        };
        self.commit(Write::Attempt(CampaignId::new("spring").unwrap(), record))
            .await;
    }

    pub(super) async fn commit(&self, write: Write) {
        self.store.commit(vec![write], Clock::start().wall()).await.unwrap();
    }

    /// The first destination, once so many are left.
    pub(super) async fn settled(&self, backlog: u64) -> NotificationView {
        until("the backlog to shrink", async || {
            let view = self.notifier.views().await.unwrap().remove(0);
            (view.backlog == backlog && view.cursor == view.newest - backlog).then_some(view)
        })
        .await
    }
}

/// Waits for something, not for ever.
async fn until<T>(awaited: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited a minute for {awaited}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Clone, Copy)]
pub(super) enum Answer {
    Status(u16),
    /// The connection is closed without a word.
    HangUp,
    Never,
    /// An error whose body never ends.
    Endless,
}

#[derive(Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) event: Value,
    delivered: bool,
}

impl Request {
    pub(super) fn text(&self, name: &str) -> String {
        self.headers[name].to_str().unwrap().to_owned()
    }

    pub(super) fn id(&self) -> String {
        self.text("webhook-id")
    }
}

type Script = Arc<Mutex<(VecDeque<Answer>, Vec<Request>)>>;

/// A real server that answers as it was told, and well when it was told nothing.
pub(super) struct Receiver {
    pub(super) url: String,
    script: Script,
}

impl Receiver {
    pub(super) async fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let script: Script = Arc::new(Mutex::new((answers.into_iter().collect(), Vec::new())));
        let inner = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", inner.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(script.clone());
        tokio::spawn(axum::serve(inner, app).into_future());
        Self { url, script }
    }

    /// The same over TLS; also the certificate (PEM) that it shows.
    pub(super) async fn start_tls() -> (Self, String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let tls = RustlsConfig::from_pem(certificate.clone().into(), key.into())
            .await
            .unwrap();
        let script = Script::default();
        let inner = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        inner.set_nonblocking(true).unwrap();
        let url = format!("https://{}/", inner.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(script.clone());
        let server = axum_server::from_tcp(inner).unwrap().acceptor(RustlsAcceptor::new(tls));
        tokio::spawn(server.serve(app.into_make_service()));
        (Self { url, script }, certificate)
    }

    pub(super) fn webhook(&self, rules: &str) -> String {
        self.webhook_named("to", rules)
    }

    pub(super) fn webhook_named(&self, name: &str, rules: &str) -> String {
        let secrets = "secrets = [{ file = \"secret\" }, { file = \"secret-2\" }]";
        destination(
            name,
            rules,
            &format!("kind = \"webhook\"\nurl = \"{}hook\"\n{secrets}", self.url),
        )
    }

    /// From now on it answers well.
    pub(super) fn recover(&self) {
        self.script.lock().unwrap().0.clear();
    }

    pub(super) fn seen(&self) -> Vec<Request> {
        self.script.lock().unwrap().1.clone()
    }

    pub(super) async fn tried(&self, count: usize) {
        until("attempts", async || (self.seen().len() >= count).then_some(())).await;
    }

    /// What was answered with success, once there are so many.
    pub(super) async fn delivered(&self, count: usize) -> Vec<Request> {
        until("deliveries", async || {
            let delivered: Vec<_> = self.seen().into_iter().filter(|request| request.delivered).collect();
            assert!(delivered.len() <= count, "more than was expected");
            (delivered.len() == count).then_some(delivered)
        })
        .await
    }
}

async fn answer(State(script): State<Script>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let answer = {
        let mut script = script.lock().unwrap();
        let answer = script.0.pop_front().unwrap_or(Answer::Status(200));
        script.1.push(Request {
            method,
            path: uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers,
            event: serde_json::from_slice(&body).unwrap_or_default(),
            body,
            delivered: matches!(answer, Answer::Status(200..=299)),
        });
        answer
    };
    match answer {
        Answer::Status(status) => {
            let status = StatusCode::from_u16(status).unwrap();
            (status, [(header::RETRY_AFTER, "1")], "told to fail").into_response()
        }
        // A handler that panics takes its connection with it.
        Answer::HangUp => panic!("told to hang up"),
        Answer::Never => std::future::pending().await,
        Answer::Endless => {
            let endless =
                futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 4096])));
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                axum::body::Body::from_stream(endless),
            )
                .into_response()
        }
    }
}
