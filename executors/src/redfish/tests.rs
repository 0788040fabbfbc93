//! The client against a scripted web server on loopback: what BMCs answer, byte for byte.

use std::{collections::BTreeMap, sync::Arc};

use firmesh_executors_core::{Observed, Rung, TaskState};
use firmesh_protocol::ids::{ArtifactId, Component};
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};

use super::RedfishBackend;
use crate::{
    backend::DeviceBackend,
    config::{RedfishSettings, Secret, UpdateMethod},
    image::{ImageError, ImageReader, ImageSource},
};

#[tokio::test]
async fn a_plain_bmc_is_discovered_and_read() {
    let bmc = Script::start(&[]).await;
    let Observed::Answering(seen) = bmc.backend().observe(Some("/redfish/v1/TaskService/Tasks/7")).await else {
        panic!("silent");
    };
    assert_eq!(
        (&*seen.vendor, &*seen.model, seen.version.as_deref()),
        ("Acme", "R1", Some("1.0.0"))
    );
    assert_eq!(
        (seen.ready, seen.resets.as_slice()),
        (true, &[Rung::Warm, Rung::Cold][..])
    );
    assert_eq!(seen.task.unwrap().state, TaskState::Active);
}

#[tokio::test]
async fn tasks_are_read_in_every_form_bmcs_have_for_them() {
    for (answer, state) in [
        ("204", TaskState::Completed),
        ("202", TaskState::Active),
        ("404", TaskState::Gone),
        (r#"{"TaskState":"New"}"#, TaskState::Active),
        (r#"{"TaskState":"Completed","Messages":[]}"#, TaskState::Completed),
        (
            r#"{"TaskState":"Exception","Messages":[{"Message":"bad image"}]}"#,
            TaskState::Failed,
        ),
    ] {
        let bmc = Script::start(&[("GET /redfish/v1/TaskService/Tasks/7", answer)]).await;
        let Observed::Answering(seen) = bmc.backend().observe(Some("/redfish/v1/TaskService/Tasks/7")).await else {
            panic!("silent at {answer}");
        };
        assert_eq!(seen.task.unwrap().state, state, "{answer}");
    }
}

#[tokio::test]
async fn hostile_answers_are_silence_with_a_reason() {
    let long = format!("{{\"x\":\"{}\"}}", "x".repeat(5 << 20));
    for (request, answer, reason) in [
        ("GET /redfish/v1/", "not json", "something else than the resource"),
        ("GET /redfish/v1/", &long, "more than 4194304 bytes"),
        (
            "GET /redfish/v1/Systems",
            r#"{"Members":[{"@odata.id":"https://evil.example/"}]}"#,
            "leads away",
        ),
        (
            "GET /redfish/v1/Systems",
            r#"{"Members":[{"@odata.id":"//evil.example/x"}]}"#,
            "leads away",
        ),
        ("GET /redfish/v1/Systems/1", "503", "answered 503"),
        (
            "POST /redfish/v1/SessionService/Sessions",
            "401",
            "refuses the user name or the password",
        ),
    ] {
        let bmc = Script::start(&[(request, answer)]).await;
        let Observed::Silent { why } = bmc.backend().observe(None).await else {
            panic!("{request} was believed")
        };
        assert!(why.contains(reason), "{request}: {why}");
        assert!(!why.contains("secret"), "{why}");
    }
}

#[tokio::test]
async fn without_a_session_service_every_request_carries_the_account() {
    let bmc = Script::start(&[("POST /redfish/v1/SessionService/Sessions", "404")]).await;
    assert!(matches!(bmc.backend().observe(None).await, Observed::Answering(_)));
    let heard = bmc.heard.lock().await;
    assert!(
        heard
            .iter()
            .filter(|head| head.starts_with("GET"))
            .all(|head| head.contains("authorization: Basic "))
    );
}

#[tokio::test]
async fn a_forgotten_session_is_renewed_once() {
    let bmc = Script::start(&[("GET /redfish/v1/Systems/1", "401")]).await;
    let Observed::Silent { why } = bmc.backend().observe(None).await else {
        panic!("401 was believed")
    };
    assert!(why.contains("refuses the user name"), "{why}");
    let logins = bmc
        .heard
        .lock()
        .await
        .iter()
        .filter(|head| head.starts_with("POST"))
        .count();
    assert_eq!(logins, 2);
}

#[derive(Debug)]
struct NoImages;

impl ImageSource for NoImages {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        unreachable!("nothing is pushed")
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        unreachable!("nothing is pulled")
    }
}

/// A web server that gives fixed answers, and remembers what it heard.
struct Script {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Script {
    async fn start(changes: &[(&str, &str)]) -> Self {
        let usual = [
            ("POST /redfish/v1/SessionService/Sessions", "token"),
            (
                "GET /redfish/v1/",
                r#"{"UpdateService":{"@odata.id":"/redfish/v1/UpdateService"},"Systems":{"@odata.id":"/redfish/v1/Systems"}}"#,
            ),
            (
                "GET /redfish/v1/Systems",
                r#"{"Members":[{"@odata.id":"/redfish/v1/Systems/1"}]}"#,
            ),
            (
                "GET /redfish/v1/Systems/1",
                r##"{"Manufacturer":"Acme","Model":"R1","PowerState":"On","Actions":{"#ComputerSystem.Reset":{"target":"/r",
                "ResetType@Redfish.AllowableValues":["ForceRestart","PowerCycle"]}}}"##,
            ),
            (
                "GET /redfish/v1/UpdateService",
                r#"{"FirmwareInventory":{"@odata.id":"/redfish/v1/FI"}}"#,
            ),
            (
                "GET /redfish/v1/FI",
                r#"{"Members":[{"@odata.id":"/redfish/v1/FI/1"},{"@odata.id":"/redfish/v1/FI/2"}]}"#,
            ),
            ("GET /redfish/v1/FI/1", r#"{"Id":"1","Name":"PSU","Version":"9"}"#),
            (
                "GET /redfish/v1/FI/2",
                r#"{"Id":"2","Name":"System BIOS","Version":"1.0.0"}"#,
            ),
            (
                "GET /redfish/v1/TaskService/Tasks/7",
                r#"{"TaskState":"Running","PercentComplete":300}"#,
            ),
        ];
        let answers: BTreeMap<String, String> = usual
            .iter()
            .chain(changes)
            .map(|&(request, answer)| (request.to_owned(), answer.to_owned()))
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (answers, ear) = (Arc::new(answers), Arc::clone(&heard));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, Arc::clone(&answers), Arc::clone(&ear)));
            }
        });
        Self { url, heard }
    }

    fn backend(&self) -> RedfishBackend {
        let settings = RedfishSettings {
            url: self.url.parse().unwrap(),
            username: "admin".to_owned(),
            password: Secret::new("secret".to_owned()),
            ca_pem: Vec::new(),
            system: None,
            manager: None,
            inventory: "bios".to_owned(),
            update: UpdateMethod::Auto,
        };
        RedfishBackend::new(settings, Component::new("bios").unwrap(), Arc::new(NoImages)).unwrap()
    }
}

/// One request per connection.
async fn converse(mut stream: TcpStream, answers: Arc<BTreeMap<String, String>>, heard: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
            continue;
        }
        return;
    }
    let head = String::from_utf8_lossy(&request).into_owned();
    let line = head.split(" HTTP/").next().unwrap_or_default().to_owned();
    heard.lock().await.push(head);
    let (status, header, body) = match answers.get(&line).map(String::as_str) {
        Some("token") => (201, "x-auth-token: t\r\n", ""),
        Some(status) if status.len() == 3 => (status.parse().unwrap(), "", ""),
        Some(body) => (200, "", body),
        None => (404, "", ""),
    };
    let length = if status == 204 {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    let answer = format!("HTTP/1.1 {status} X\r\n{header}{length}connection: close\r\n\r\n{body}");
    // A client that has read enough hangs up.
    let _cut_short = stream.write_all(answer.as_bytes()).await;
}
