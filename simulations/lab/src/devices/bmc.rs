//! The Redfish face of one emulated BMC.

use std::{
    fs,
    io::Cursor,
    path::Path as FsPath,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Multipart, Path, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use firmesh_protocol::{ids::Sha256, time::WallTime};
use firmesh_simulations::device::{
    Bmc, BmcTask, ResetTarget, Strength, TaskPhase,
    faulty::{Request as Asked, Told},
};
use futures_util::StreamExt as _;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::{Value, json};
use sha2::Digest as _;
use tokio_util::task::TaskTracker;

use super::{config::DevicesConfig, now_ms, state::Kept, wire};

pub(super) const ROOT: &str = "/redfish/v1";
/// What the BMC says it takes, and takes.
const IMAGE_BYTES_MAX: u64 = 4 << 30;
/// A pull that stands still for so long has failed.
const PULL_STILL: Duration = Duration::from_secs(10);

/// One emulated BMC.
#[derive(Debug)]
pub(super) struct BmcServer {
    pub(super) bmc: Kept<Bmc>,
    pull: reqwest::Client,
    pulls: TaskTracker,
    /// Requests answered.
    pub(super) answered: AtomicU64,
}

pub(super) type Server = State<Arc<BmcServer>>;

impl BmcServer {
    pub(super) fn new(bmc: Kept<Bmc>, pull: reqwest::Client) -> Self {
        Self {
            bmc,
            pull,
            pulls: TaskTracker::new(),
            answered: AtomicU64::new(0),
        }
    }

    /// Looks at the BMC as it is now.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Bmc) -> R) -> R {
        self.bmc.change(|bmc| {
            bmc.advance(now_ms());
            act(bmc)
        })
    }
}

/// The client that BMCs pull images with: it trusts the nodes' CA and nobody else.
pub(super) fn pull_client(config: &DevicesConfig, base: &FsPath) -> anyhow::Result<reqwest::Client> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = &config.pull_ca_file {
        let file = base.join(file);
        let pem = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        for certificate in CertificateDer::pem_reader_iter(Cursor::new(pem)) {
            roots.add(certificate.with_context(|| format!("reading {}", file.display()))?)?;
        }
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .read_timeout(PULL_STILL)
        .no_proxy();
    Ok(client.build()?)
}

pub(super) fn router(server: Arc<BmcServer>) -> Router {
    let update = format!("{ROOT}/UpdateService");
    let tasks = format!("{ROOT}/TaskService/Tasks");
    let behind_login = Router::new()
        .route(&format!("{ROOT}/SessionService/Sessions/{{id}}"), delete(log_out))
        .route(&format!("{ROOT}/Systems"), get(async || members("Systems", ["1"])))
        .route(&format!("{ROOT}/Systems/1"), get(system))
        .route(
            &format!("{ROOT}/Systems/1/Actions/ComputerSystem.Reset"),
            post(reset_system),
        )
        .route(&format!("{ROOT}/Managers"), get(async || members("Managers", ["1"])))
        .route(&format!("{ROOT}/Managers/1"), get(manager))
        .route(&format!("{ROOT}/Managers/1/Actions/Manager.Reset"), post(reset_manager))
        .route(&format!("{ROOT}/Chassis"), get(async || members("Chassis", ["1"])))
        .route(&format!("{ROOT}/Chassis/1"), get(chassis))
        .route(&update, get(update_service))
        .route(
            &format!("{update}/Actions/UpdateService.SimpleUpdate"),
            post(simple_update),
        )
        .route(
            &format!("{update}/update-multipart"),
            post(push).layer(DefaultBodyLimit::disable()),
        )
        .route(
            &format!("{update}/update"),
            post(push_raw).layer(DefaultBodyLimit::disable()),
        )
        .route(&format!("{update}/FirmwareInventory"), get(inventory))
        .route(&format!("{update}/FirmwareInventory/{{id}}"), get(inventory_entry))
        .route(&format!("{ROOT}/TaskService"), get(task_service))
        .route(&tasks, get(list_tasks))
        .route(&format!("{tasks}/{{id}}"), get(task).delete(cancel_task))
        .merge(super::bios::routes())
        .route_layer(from_fn_with_state(Arc::clone(&server), authenticate));
    Router::new()
        .route(ROOT, get(service_root))
        .route(&format!("{ROOT}/"), get(service_root))
        .route(&format!("{ROOT}/SessionService/Sessions"), post(log_in))
        .merge(behind_login)
        .layer(from_fn_with_state(Arc::clone(&server), wire::misbehave))
        .with_state(server)
}

async fn authenticate(State(server): Server, request: Request, next: Next) -> Response {
    if is_known(&server, request.headers()) {
        next.run(request).await
    } else {
        problem(StatusCode::UNAUTHORIZED, "log in first")
    }
}

fn is_known(server: &BmcServer, headers: &HeaderMap) -> bool {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (header("x-auth-token"), header("authorization")) {
        (Some(token), _) => server.with(|bmc| bmc.knows(token)),
        (None, Some(basic)) => {
            let expected = server.with(|bmc| format!("{}:{}", bmc.settings.username, bmc.settings.password));
            basic
                .strip_prefix("Basic ")
                .is_some_and(|given| given == base64(expected.as_bytes()))
        }
        (None, None) => false,
    }
}

async fn service_root(State(server): Server) -> Json<Value> {
    let vendor = server.with(|bmc| bmc.settings.identity.vendor.clone());
    let link = |name: &str| json!({ "@odata.id": format!("{ROOT}/{name}") });
    Json(json!({
        "@odata.id": ROOT,
        "RedfishVersion": "1.15.0",
        "Vendor": vendor,
        "Systems": link("Systems"),
        "Managers": link("Managers"),
        "Chassis": link("Chassis"),
        "UpdateService": link("UpdateService"),
        "Tasks": link("TaskService"),
        "Links": { "Sessions": link("SessionService/Sessions") },
    }))
}

async fn log_in(State(server): Server, Json(body): Json<Value>) -> Response {
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    let mut random = [0; 16];
    if getrandom::fill(&mut random).is_err() {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "no random numbers");
    }
    let token = hex::encode(random);
    match server.with(|bmc| bmc.log_in(text("UserName"), text("Password"), token.clone())) {
        None => problem(StatusCode::UNAUTHORIZED, "wrong user name or password"),
        Some(session) => {
            let location = format!("{ROOT}/SessionService/Sessions/{session}");
            let body = Json(json!({ "@odata.id": location, "Id": session.to_string() }));
            (
                StatusCode::CREATED,
                [("x-auth-token", token), ("location", location)],
                body,
            )
                .into_response()
        }
    }
}

async fn log_out(State(server): Server, Path(session): Path<u32>) -> StatusCode {
    if server.with(|bmc| bmc.log_out(session)) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn system(State(server): Server) -> Json<Value> {
    server.with(|bmc| {
        let up = bmc.system_is_up(now_ms());
        Json(json!({
            "@odata.id": format!("{ROOT}/Systems/1"),
            "Id": "1",
            "Manufacturer": bmc.settings.identity.vendor,
            "Model": bmc.settings.identity.model,
            "PowerState": "On",
            "BootProgress": { "LastState": if up { "OSRunning" } else { "SystemHardwareInitializationComplete" } },
            "LastResetTime": bmc.told_reset_ms(ResetTarget::System).to_string(),
            "Bios": { "@odata.id": format!("{ROOT}/Systems/1/Bios") },
            "Actions": { "#ComputerSystem.Reset": {
                "target": format!("{ROOT}/Systems/1/Actions/ComputerSystem.Reset"),
                "ResetType@Redfish.AllowableValues": resets(bmc),
            } },
        }))
    })
}

async fn manager(State(server): Server) -> Json<Value> {
    server.with(|bmc| {
        let is_bmc = bmc.settings.identity.component.as_str() == "bmc";
        Json(json!({
            "@odata.id": format!("{ROOT}/Managers/1"),
            "Id": "1",
            "Status": { "State": if bmc.told_ready(now_ms()) || !is_bmc { "Enabled" } else { "Starting" } },
            "DateTime": wall_time(bmc.clock_off_s()),
            "LastResetTime": bmc.told_reset_ms(ResetTarget::Manager).to_string(),
            "Actions": { "#Manager.Reset": {
                "target": format!("{ROOT}/Managers/1/Actions/Manager.Reset"),
                "ResetType@Redfish.AllowableValues": ["GracefulRestart", "ForceRestart"],
            } },
        }))
    })
}

async fn chassis(State(server): Server) -> Json<Value> {
    let identity = server.with(|bmc| bmc.settings.identity.clone());
    Json(json!({ "@odata.id": format!("{ROOT}/Chassis/1"), "Manufacturer": identity.vendor, "Model": identity.model }))
}

async fn reset_system(State(server): Server, Json(body): Json<Value>) -> Response {
    reset(&server, ResetTarget::System, &body)
}

async fn reset_manager(State(server): Server, Json(body): Json<Value>) -> Response {
    reset(&server, ResetTarget::Manager, &body)
}

fn resets(bmc: &Bmc) -> Vec<&'static str> {
    let mut resets = vec!["GracefulRestart", "ForceRestart", "PowerCycle"];
    resets.extend(bmc.may_lose_its_input_power().then_some("FullPowerCycle"));
    resets
}

fn reset(server: &BmcServer, target: ResetTarget, body: &Value) -> Response {
    let strength = match body["ResetType"].as_str() {
        Some("GracefulRestart" | "ForceRestart") => Strength::Warm,
        Some("PowerCycle" | "On") => Strength::Cold,
        Some("FullPowerCycle") => Strength::Ac,
        _ => return problem(StatusCode::BAD_REQUEST, "ResetType is none of the allowable values"),
    };
    match server.with(|bmc| bmc.restart(now_ms(), target, strength)) {
        Ok(()) if server.with(|bmc| bmc.goes_before_it_answers()) => wire::broken_off(),
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => problem(StatusCode::BAD_REQUEST, &refused.to_string()),
    }
}

async fn update_service() -> Json<Value> {
    let update = format!("{ROOT}/UpdateService");
    Json(json!({
        "@odata.id": update,
        "ServiceEnabled": true,
        "MaxImageSizeBytes": IMAGE_BYTES_MAX,
        "MultipartHttpPushUri": format!("{update}/update-multipart"),
        "FirmwareInventory": { "@odata.id": format!("{update}/FirmwareInventory") },
        "Actions": { "#UpdateService.SimpleUpdate": {
            "target": format!("{update}/Actions/UpdateService.SimpleUpdate"),
            "TransferProtocol@Redfish.AllowableValues": ["HTTPS"],
        } },
    }))
}

async fn inventory(State(server): Server) -> Json<Value> {
    let entry = server.with(|bmc| wire::inventory_id(bmc, now_ms()));
    members("UpdateService/FirmwareInventory", entry.as_deref())
}

async fn inventory_entry(State(server): Server, Path(id): Path<String>) -> Response {
    let (entry, version) = server.with(|bmc| (wire::inventory_id(bmc, now_ms()), bmc.told_version(now_ms())));
    if Some(&id) != entry.as_ref() {
        return problem(StatusCode::NOT_FOUND, "no such component");
    }
    let odata_id = format!("{ROOT}/UpdateService/FirmwareInventory/{id}");
    Json(json!({ "@odata.id": odata_id, "Id": id, "Name": id, "Version": version, "Updateable": true })).into_response()
}

async fn task_service() -> Json<Value> {
    let tasks = json!({ "@odata.id": format!("{ROOT}/TaskService/Tasks") });
    Json(json!({ "@odata.id": format!("{ROOT}/TaskService"), "ServiceEnabled": true, "Tasks": tasks }))
}

async fn list_tasks(State(server): Server) -> Json<Value> {
    let ids: Vec<String> = server.with(|bmc| {
        let mut ids = Vec::new();
        ids.extend(bmc.told_foreign_task().map(|_at_work| wire::ANOTHER.to_owned()));
        let shown = |task: &BmcTask| bmc.tells_of_tasks() && bmc.told_task(task, now_ms()) != Told::NotFound;
        ids.extend(
            bmc.tasks()
                .filter(|(_, task)| shown(task))
                .map(|(id, _)| id.to_string()),
        );
        ids
    });
    members("TaskService/Tasks", ids.iter().map(String::as_str))
}

async fn task(State(server): Server, Path(id): Path<String>) -> Response {
    server.with(|bmc| {
        if let Some(at_work) = bmc.told_foreign_task().filter(|_| id == wire::ANOTHER) {
            return Json(wire::another_task(at_work)).into_response();
        }
        let found = id.parse().ok().and_then(|id| Some((id, bmc.task(id)?)));
        match found.filter(|(_, task)| bmc.told_task(task, now_ms()) != Told::NotFound) {
            None => problem(StatusCode::NOT_FOUND, "no such task"),
            Some((_, task)) if task.is_active() && wire::answers_without_a_body(bmc) => {
                StatusCode::ACCEPTED.into_response()
            }
            Some((id, task)) => Json(task_body(bmc, id, task)).into_response(),
        }
    })
}

async fn cancel_task(State(server): Server, Path(id): Path<u32>) -> Response {
    server.with(|bmc| match bmc.task(id) {
        None => problem(StatusCode::NOT_FOUND, "no such task"),
        // As most BMCs: what is being written cannot be called back.
        Some(BmcTask {
            phase: TaskPhase::Flashing { .. },
            ..
        }) => problem(StatusCode::METHOD_NOT_ALLOWED, "the image is being written"),
        Some(_) => {
            bmc.update_failed(now_ms(), id, "cancelled".to_owned());
            StatusCode::NO_CONTENT.into_response()
        }
    })
}

fn task_body(bmc: &Bmc, id: u32, task: &BmcTask) -> Value {
    let (state, message) = match (bmc.told_task(task, now_ms()), &task.phase) {
        (Told::Critical, _) => (
            "Completed",
            "The Job was in running state and made no progress for the allocated time.",
        ),
        (Told::Running, _) => ("Running", "the image is being written"),
        (_, TaskPhase::Receiving) => ("New", "the image is on its way"),
        (_, TaskPhase::Flashing { .. }) => ("Running", "the image is being written"),
        (_, TaskPhase::Waiting { .. }) => ("UserIntervention", "Task successfully scheduled: a reset starts it"),
        (_, TaskPhase::Completed) => ("Completed", "a reset starts the new image"),
        (_, TaskPhase::Exception { reason }) => ("Exception", reason.as_str()),
    };
    let is_critical = state == "Exception" || bmc.told_task(task, now_ms()) == Told::Critical;
    json!({
        "@odata.id": format!("{ROOT}/TaskService/Tasks/{id}"),
        "Id": id.to_string(),
        "Name": "Firmware update",
        "TaskState": state,
        "TaskStatus": if is_critical { "Critical" } else { "OK" },
        "PercentComplete": bmc.percent(task, now_ms()),
        "Messages": [{ "Message": message }],
        "Payload": { "TargetUri": format!("{ROOT}/UpdateService") },
    })
}

/// Begins an update as far as the BMC lets it: the task, and what becomes of the answer.
fn begin(server: &BmcServer) -> Result<(u32, Asked), Box<Response>> {
    server.with(|bmc| match bmc.request() {
        Asked::Refused(trouble) => Err(Box::new(wire::trouble_answer(trouble))),
        Asked::Breaks => {
            bmc.note_broken_request();
            Err(Box::new(wire::broken_off()))
        }
        asked => match bmc.begin_update(now_ms()) {
            Ok(id) => Ok((id, asked)),
            Err(busy) => Err(Box::new(problem(StatusCode::SERVICE_UNAVAILABLE, &busy.to_string()))),
        },
    })
}

async fn simple_update(State(server): Server, Json(body): Json<Value>) -> Response {
    let Some(uri) = body["ImageURI"].as_str().and_then(|uri| reqwest::Url::parse(uri).ok()) else {
        return problem(StatusCode::BAD_REQUEST, "ImageURI is not a URL");
    };
    if uri.scheme() != "https" {
        return problem(StatusCode::BAD_REQUEST, "only HTTPS is allowed");
    }
    if let Some(refusal) = server.with(|bmc| wire::refuses_simple_update(bmc, &body)) {
        return problem(StatusCode::BAD_REQUEST, refusal);
    }
    let (id, asked) = match begin(&server) {
        Ok(begun) => begun,
        Err(answer) => return *answer,
    };
    let puller = Arc::clone(&server);
    server.pulls.spawn(async move {
        let pulled = puller.fetch(uri).await;
        puller.with(|bmc| match pulled {
            Ok((sha256, length)) => bmc.image_arrived(now_ms(), id, sha256, length),
            Err(error) => bmc.update_failed(now_ms(), id, format!("the image could not be fetched: {error:#}")),
        });
    });
    accepted(&server, id, asked)
}

impl BmcServer {
    /// Streams the image through a hash: what a flash part would keep is not needed here.
    async fn fetch(&self, uri: reqwest::Url) -> anyhow::Result<(Sha256, u64)> {
        let mut response = self.pull.get(uri).send().await?.error_for_status()?;
        let (mut hash, mut length) = (sha2::Sha256::new(), 0);
        while let Some(chunk) = response.chunk().await? {
            hash.update(&chunk);
            length += chunk.len() as u64;
            anyhow::ensure!(length <= IMAGE_BYTES_MAX, "the image is too large");
        }
        let digest: [u8; 32] = hash.finalize().into();
        Ok((digest.into(), length))
    }
}

async fn push(State(server): Server, mut form: Multipart) -> Response {
    let (id, asked) = match begin(&server) {
        Ok(begun) => begun,
        Err(answer) => return *answer,
    };
    match receive(&mut form).await {
        Ok((sha256, length)) => {
            server.with(|bmc| bmc.image_arrived(now_ms(), id, sha256, length));
            accepted(&server, id, asked)
        }
        Err(error) => {
            let reason = format!("the upload failed: {error:#}");
            server.with(|bmc| bmc.update_failed(now_ms(), id, reason.clone()));
            problem(StatusCode::BAD_REQUEST, &reason)
        }
    }
}

/// The image as the body of the request.
async fn push_raw(State(server): Server, request: Request) -> Response {
    let (id, asked) = match begin(&server) {
        Ok(begun) => begun,
        Err(answer) => return *answer,
    };
    let mut body = request.into_body().into_data_stream();
    let (mut hash, mut length) = (sha2::Sha256::new(), 0);
    while let Some(chunk) = body.next().await {
        let Ok(chunk) = chunk else {
            server.with(|bmc| bmc.update_failed(now_ms(), id, "the upload broke off".to_owned()));
            return problem(StatusCode::BAD_REQUEST, "the upload broke off");
        };
        hash.update(&chunk);
        length += chunk.len() as u64;
        if length > IMAGE_BYTES_MAX {
            server.with(|bmc| bmc.update_failed(now_ms(), id, "the image is too large".to_owned()));
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "the image is too large");
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    server.with(|bmc| bmc.image_arrived(now_ms(), id, digest.into(), length));
    accepted(&server, id, asked)
}

async fn receive(form: &mut Multipart) -> anyhow::Result<(Sha256, u64)> {
    let mut parameters = false;
    while let Some(mut field) = form.next_field().await? {
        match field.name() {
            Some("UpdateParameters") => {
                serde_json::from_slice::<Value>(&field.bytes().await?).context("UpdateParameters is not JSON")?;
                parameters = true;
            }
            Some("UpdateFile") => {
                anyhow::ensure!(parameters, "UpdateParameters must come before UpdateFile");
                let (mut hash, mut length) = (sha2::Sha256::new(), 0);
                while let Some(chunk) = field.chunk().await? {
                    hash.update(&chunk);
                    length += chunk.len() as u64;
                    anyhow::ensure!(length <= IMAGE_BYTES_MAX, "the image is too large");
                }
                let digest: [u8; 32] = hash.finalize().into();
                return Ok((digest.into(), length));
            }
            _ => {}
        }
    }
    anyhow::bail!("there is no UpdateFile")
}

fn accepted(server: &BmcServer, id: u32, asked: Asked) -> Response {
    match asked {
        Asked::Lost => return wire::broken_off(),
        Asked::CarriedOutAnd(trouble) => return wire::trouble_answer(trouble),
        Asked::Told | Asked::Refused(_) | Asked::Breaks => {}
    }
    let location = format!("{ROOT}/TaskService/Tasks/{id}");
    server.with(|bmc| match bmc.task(id) {
        Some(task) if bmc.tells_of_tasks() => {
            let body = Json(task_body(bmc, id, task));
            (StatusCode::ACCEPTED, [("location", location)], body).into_response()
        }
        _ => Json(json!({ "@Message.ExtendedInfo": [{ "MessageId": "Base.1.4.0.Success" }] })).into_response(),
    })
}

pub(super) fn members<'a>(collection: &str, names: impl IntoIterator<Item = &'a str>) -> Json<Value> {
    let link = |name| json!({ "@odata.id": format!("{ROOT}/{collection}/{name}") });
    let members: Vec<Value> = names.into_iter().map(link).collect();
    Json(
        json!({ "@odata.id": format!("{ROOT}/{collection}"), "Members@odata.count": members.len(), "Members": members }),
    )
}

pub(super) fn problem(status: StatusCode, message: &str) -> Response {
    let info = json!([{ "MessageId": "Base.1.8.GeneralError", "Message": message }]);
    (
        status,
        Json(
            json!({ "error": { "code": "Base.1.8.GeneralError", "message": message, "@Message.ExtendedInfo": info } }),
        ),
    )
        .into_response()
}

/// The time as it tells it, so many seconds off.
fn wall_time(off_s: i64) -> String {
    let now_s = i64::try_from(now_ms() / 1_000).unwrap_or(i64::MAX);
    WallTime::from_unix_seconds(now_s.saturating_add(off_s)).to_string()
}

/// RFC 4648, for the one header that needs it.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let word = chunk.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
            (0..4).map(move |i| match i > chunk.len() {
                true => '=',
                false => char::from(ALPHABET[(word >> (18 - 6 * i) & 63) as usize]),
            })
        })
        .collect()
}
