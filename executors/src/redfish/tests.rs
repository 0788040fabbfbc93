//! The client against a scripted web server on loopback: what BMCs answer, byte for byte.

mod stage;

use std::{
    collections::{BTreeMap, VecDeque},
    io::Cursor,
    sync::Arc,
};

use firmesh_executors_core::{Image, Observed, Rung, TaskSeen, TaskState};
use firmesh_protocol::{
    ids::{ArtifactId, Component, Sha256},
    manifest::{Artifact, RELEASE_SCHEMA, ReleaseInfo, Reversibility},
    version::VersionScheme,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};

use super::{Dialects, RedfishBackend};
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
        // Only expected to go on.
        (r#"{"TaskState":"Interrupted"}"#, TaskState::Active),
        // A monitor whose operation is over shows what came of it, be it a refusal.
        (r#"{"@odata.id":"/redfish/v1/UpdateService"}"#, TaskState::Completed),
        ("200", TaskState::Completed),
        ("400||{\"error\":{\"message\":\"bad image\"}}", TaskState::Failed),
        (r##"{"@odata.type":"#Task.v1_4_3.Task"}"##, TaskState::Active),
        // ironcore-dev/metal-operator#453: a job that had stalled was said to be Completed.
        (
            r#"{"TaskState":"Completed","TaskStatus":"Critical","Messages":[{"Message":"no progress"}]}"#,
            TaskState::Failed,
        ),
    ] {
        let bmc = Script::start(&[(TASK, answer)]).await;
        assert_eq!(bmc.task("generic").await.state, state, "{answer}");
    }
}

#[tokio::test]
async fn tasks_speak_their_dialect() {
    for (dialect, answer, state, percent) in [
        // dell/iDRAC-Redfish-Scripting#32: it waits for a restart, and for nothing else.
        (
            "dell",
            r#"{"TaskState":"Pending","Oem":{"Dell":{"JobState":"Scheduled","PercentComplete":0}}}"#,
            TaskState::AwaitsReset,
            Some(0),
        ),
        (
            "dell",
            r#"{"TaskState":"Completed","PercentComplete":100,"Oem":{"Dell":{"JobState":"CompletedWithErrors"}}}"#,
            TaskState::Failed,
            Some(100),
        ),
        ("generic", r#"{"TaskState":"Pending"}"#, TaskState::Active, None),
        (
            "generic",
            r#"{"TaskState":"Pending","Messages":[{"MessageId":"Base.1.8.ResetRequired"}]}"#,
            TaskState::AwaitsReset,
            None,
        ),
    ] {
        let bmc = Script::start(&[(TASK, answer)]).await;
        let seen = bmc.task(dialect).await;
        assert_eq!((seen.state, seen.percent), (state, percent), "{answer}");
    }
    for (answer, state, percent) in [
        (
            r#"{"State":"Writing","FlashProgressPercent":40}"#,
            TaskState::Active,
            Some(40),
        ),
        (r#"{"State":"Complete"}"#, TaskState::Completed, None),
        (r#"{"State":"Idle"}"#, TaskState::Gone, None),
        (
            r#"{"State":"Error","Result":{"MessageId":"iLO.2.25.UpdateFailed"}}"#,
            TaskState::Failed,
            None,
        ),
        (
            r#"{"State":"Error","Result":{"MessageId":"iLO.2.25.SystemResetRequired"}}"#,
            TaskState::Completed,
            None,
        ),
    ] {
        let service = format!("{{\"Oem\":{{\"Hpe\":{answer}}}}}");
        let bmc = Script::start(&[("GET /redfish/v1/UpdateService", &service)]).await;
        let backend = bmc.backend_with(|settings| settings.dialects = dialects("hpe"));
        let seen = backend.see_task("/redfish/v1/UpdateService").await.unwrap();
        assert_eq!((seen.state, seen.percent), (state, percent), "{answer}");
    }
}

#[tokio::test]
async fn a_task_that_has_ended_or_asks_to_be_left_alone_is_not_asked_again() {
    for (answer, asked) in [
        (r#"{"TaskState":"Completed"}"#, 1),
        (r#"{"TaskState":"Exception"}"#, 1),
        ("202|retry-after: 30|", 1),
        (r#"{"TaskState":"Running"}"#, 3),
        ("202|retry-after: Mon, 01 Jan 2035 00:00:00 GMT|", 3),
    ] {
        let bmc = Script::start(&[(TASK, answer)]).await;
        let backend = bmc.backend();
        for _ in 0..3 {
            let seen = backend.observe(Some("/redfish/v1/TaskService/Tasks/7")).await;
            assert!(matches!(seen, Observed::Answering(_)), "{answer}: {seen:?}");
        }
        assert_eq!(bmc.heard(TASK).await.len(), asked, "{answer}");
    }
}

/// What nobody asked for by name is the newest update, ended or not; the order of a list says nothing.
#[tokio::test]
async fn the_newest_update_is_found_among_the_tasks() {
    let root = r#"{"Tasks":{"@odata.id":"/t"},"Systems":{"@odata.id":"/redfish/v1/Systems"}}"#;
    let list = r#"{"Members":[{"@odata.id":"/t/1"},{"@odata.id":"/t/2"},{"@odata.id":"/t/3"}]}"#;
    let task = |name: &str, time: &str, state: &str| {
        format!("{{\"Name\":\"{name}\",\"StartTime\":\"2026-01-{time}T00:00:00Z\",\"TaskState\":\"{state}\"}}")
    };
    let tasks = [
        task("Firmware Update", "03", "Completed"),
        task("Firmware Update", "02", "Exception"),
        task("Export", "04", "Running"),
    ];
    let bmc = Script::start(&[
        ("GET /redfish/v1/", root),
        ("GET /t", r#"{"Tasks":{"@odata.id":"/t/all"}}"#),
        ("GET /t/all", list),
        ("GET /t/1", &tasks[0]),
        ("GET /t/2", &tasks[1]),
        ("GET /t/3", &tasks[2]),
    ])
    .await;
    let Observed::Answering(seen) = bmc.backend().observe(None).await else {
        panic!("silent");
    };
    let task = seen.task.unwrap();
    assert_eq!((task.name.as_deref(), task.state), (Some("/t/1"), TaskState::Completed));
}

/// Input power is taken away only where that was allowed, and only by a reset that does so.
#[tokio::test]
async fn the_fourth_rung_has_to_be_allowed_and_a_clock_that_is_off_is_told() {
    let system = r##"{"Actions":{"#ComputerSystem.Reset":{"target":"/r",
        "ResetType@Redfish.AllowableValues":["ForceRestart","FullPowerCycle"]}}}"##;
    let bmc = Script::start(&[
        ("GET /redfish/v1/", ROOT_WITH_MANAGERS),
        (
            "GET /redfish/v1/Managers",
            r#"{"Members":[{"@odata.id":"/redfish/v1/Managers/1"}]}"#,
        ),
        (
            "GET /redfish/v1/Managers/1",
            r#"{"DateTime":"2016-03-13T04:14:33+06:00"}"#,
        ),
        ("GET /redfish/v1/Systems/1", system),
        ("POST /r", "204"),
    ])
    .await;
    for (ac_reset, resets) in [
        (false, &[Rung::Warm, Rung::Cold][..]),
        (true, &[Rung::Warm, Rung::Cold, Rung::Ac]),
    ] {
        let backend = bmc.backend_with(|settings| settings.ac_reset = ac_reset);
        let Observed::Answering(seen) = backend.observe(None).await else {
            panic!("silent");
        };
        assert_eq!(seen.resets, resets);
        assert!(
            seen.clock_off_s.is_some_and(|off_s| off_s < -300_000_000),
            "{:?}",
            seen.clock_off_s
        );
        assert_eq!(backend.reset(Rung::Ac).await.is_ok(), ac_reset);
    }
    let posts = bmc.heard("POST /r").await;
    assert!(posts.len() == 1 && posts[0].contains("FullPowerCycle"), "{posts:?}");
}

/// openbmc/bmcweb#206: some services fail at times, and answer when asked again.
#[tokio::test]
async fn a_question_is_asked_again_if_the_bmc_fails_or_settles_but_nothing_is_told_twice() {
    for failure in ["500", "503|retry-after: 1|"] {
        let request = "GET /redfish/v1/Systems/1";
        let works = r#"{"Manufacturer":"Acme","Model":"R1"}"#;
        let bmc = Script::start(&[(request, failure), (request, works)]).await;
        assert!(
            matches!(bmc.backend().observe(None).await, Observed::Answering(_)),
            "{failure}"
        );
    }
    let bmc = Script::start(&[("POST /r", "500"), ("POST /r", "204")]).await;
    assert!(bmc.backend().reset(Rung::Warm).await.is_err());
    assert_eq!(bmc.heard("POST /r").await.len(), 1);
}

/// openbmc/phosphor-state-manager#12: a host that was to restart is off, and cannot be restarted.
#[tokio::test]
async fn a_system_that_is_off_is_switched_on_instead_of_restarted() {
    let system = |state: &str, types: &str| {
        format!(
            r##"{{"PowerState":"{state}","Actions":{{"#ComputerSystem.Reset":{{"target":"/r",
            "ResetType@Redfish.AllowableValues":[{types}]}}}}}}"##
        )
    };
    for (state, types, kind) in [
        ("Off", r#""On","ForceRestart""#, "On"),
        ("Off", r#""ForceRestart""#, "ForceRestart"),
        ("On", r#""On","ForceRestart""#, "ForceRestart"),
    ] {
        let system = system(state, types);
        let bmc = Script::start(&[("GET /redfish/v1/Systems/1", &system), ("POST /r", "204")]).await;
        bmc.backend().reset(Rung::Cold).await.unwrap();
        let posted = &bmc.heard("POST /r").await[0];
        assert!(posted.ends_with(&format!("{{\"ResetType\":\"{kind}\"}}")), "{posted}");
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

/// The BMC has no session left for us, and would have answered a password that is wrong in the same way.
#[tokio::test]
async fn a_bmc_whose_sessions_are_all_taken_is_asked_without_one() {
    let full = r#"403||{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.SessionLimitExceeded"}]}}"#;
    let bmc = Script::start(&[("POST /redfish/v1/SessionService/Sessions", full)]).await;
    assert!(matches!(bmc.backend().observe(None).await, Observed::Answering(_)));
}

/// Whatever has no inventory: the manager knows its own version, and nobody the BIOS's.
#[tokio::test]
async fn what_the_inventory_leaves_out_is_told_by_its_owner_or_not_at_all() {
    let changes = [
        ("GET /redfish/v1/FI", "404"),
        ("GET /redfish/v1/", ROOT_WITH_MANAGERS),
        (
            "GET /redfish/v1/Managers",
            r#"{"Members":[{"@odata.id":"/redfish/v1/Managers/1"}]}"#,
        ),
        (
            "GET /redfish/v1/Managers/1",
            r#"{"FirmwareVersion":"2.1","Actions":null}"#,
        ),
    ];
    let bmc = Script::start(&changes).await;
    for (component, version) in [("bmc", Some("2.1")), ("bios", None), ("nic", None)] {
        let images = Arc::new(NoImages);
        let settings = bmc.settings();
        let backend = RedfishBackend::new(settings, Component::new(component).unwrap(), images).unwrap();
        let Observed::Answering(seen) = backend.observe(None).await else {
            panic!("silent");
        };
        assert_eq!(seen.version.as_deref(), version, "{component}");
    }
}

/// xcat2/xcat-core#3965: the inventory of a BMC that has just started is empty.
#[tokio::test]
async fn an_inventory_that_fills_up_late_is_looked_at_again() {
    let request = "GET /redfish/v1/FI";
    let full = r#"{"Members":[{"@odata.id":"/redfish/v1/FI/2"}]}"#;
    let bmc = Script::start(&[(request, r#"{"Members":[]}"#), (request, full)]).await;
    let backend = bmc.backend();
    for version in [None, Some("1.0.0")] {
        let Observed::Answering(seen) = backend.observe(None).await else {
            panic!("silent");
        };
        assert_eq!(seen.version.as_deref(), version);
    }
}

/// The inventory's entries bear their versions in their names, and the name is another one after the update.
#[tokio::test]
async fn an_entry_that_has_moved_is_looked_for_anew() {
    let moved = r#"{"Members":[{"@odata.id":"/redfish/v1/FI/Previous-1-2.0__BIOS.1"},{"@odata.id":"/redfish/v1/FI/Installed-1-2.1__BIOS.1"}]}"#;
    let before = moved.replace("2.1", "2.0");
    let bmc = Script::start(&[
        ("GET /redfish/v1/FI", &before),
        ("GET /redfish/v1/FI", moved),
        ("GET /redfish/v1/FI/Installed-1-2.0__BIOS.1", r#"{"Version":"2.0"}"#),
        ("GET /redfish/v1/FI/Installed-1-2.0__BIOS.1", "404"),
        ("GET /redfish/v1/FI/Installed-1-2.1__BIOS.1", r#"{"Version":"2.1"}"#),
    ])
    .await;
    let backend = bmc.backend_with(|settings| settings.dialects = dialects("dell"));
    for version in ["2.0", "2.1"] {
        let Observed::Answering(seen) = backend.observe(None).await else {
            panic!("silent");
        };
        assert_eq!(seen.version.as_deref(), Some(version));
    }
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

/// The task of these tests.
const TASK: &str = "GET /redfish/v1/TaskService/Tasks/7";
const ROOT_WITH_MANAGERS: &str = r#"{"UpdateService":{"@odata.id":"/redfish/v1/UpdateService"},"Systems":{"@odata.id":"/redfish/v1/Systems"},
    "Managers":{"@odata.id":"/redfish/v1/Managers"}}"#;

fn dialects(name: &str) -> Arc<Dialects> {
    Arc::new(Dialects::new(&[], Some(name.to_owned())).unwrap())
}

#[derive(Debug)]
pub(super) struct NoImages;

impl ImageSource for NoImages {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        unreachable!("nothing is pushed")
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        unreachable!("nothing is pulled")
    }
}

/// Any artifact holds this.
#[derive(Debug)]
pub(super) struct OneImage(pub(super) &'static [u8]);

impl ImageSource for OneImage {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        let reader: ImageReader = Box::pin(Cursor::new(self.0));
        async { Ok(reader) }.boxed()
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        "https://node/image".to_owned()
    }
}

/// A release of these bytes.
pub(super) fn image_of(bytes: &[u8], version: &str) -> Image {
    let id = ArtifactId::from([7; 32]);
    Image {
        target: format!("firmware/acme-r1-bios-{version}"),
        artifact: Artifact {
            id,
            sha256: Sha256::of(bytes),
            length: bytes.len() as u64,
        },
        info: ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: id,
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned()],
            component: Component::new("bios").unwrap(),
            version: version.to_owned(),
            security_epoch: 0,
            from_versions: Vec::new(),
            version_scheme: Some(VersionScheme::Dotted),
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
            reversibility: Reversibility::Reflash,
            provenance: None,
        },
    }
}

type Answers = BTreeMap<String, VecDeque<String>>;

/// A web server that gives fixed answers, and remembers what it heard. Of several answers to a request each is given once, and the
/// last one from then on. An answer is a status, a body, or `STATUS|HEADER|BODY`.
pub(super) struct Script {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Script {
    pub(super) async fn start(changes: &[(&str, &str)]) -> Self {
        let usual = [
            ("POST /redfish/v1/SessionService/Sessions", "201|x-auth-token: t|"),
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
            (TASK, r#"{"TaskState":"Running","PercentComplete":300}"#),
        ];
        let mut answers = Answers::new();
        for &(request, answer) in changes {
            answers
                .entry(request.to_owned())
                .or_default()
                .push_back(answer.to_owned());
        }
        for (request, answer) in usual {
            let answer = VecDeque::from([answer.to_owned()]);
            answers.entry(request.to_owned()).or_insert(answer);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (answers, ear) = (Arc::new(Mutex::new(answers)), Arc::clone(&heard));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, Arc::clone(&answers), Arc::clone(&ear)));
            }
        });
        Self { url, heard }
    }

    fn settings(&self) -> RedfishSettings {
        RedfishSettings {
            url: self.url.parse().unwrap(),
            username: "admin".to_owned(),
            password: Secret::new("secret".to_owned()),
            ca_pem: Vec::new(),
            system: None,
            manager: None,
            inventory: None,
            update: UpdateMethod::Auto,
            dialects: Arc::new(Dialects::new(&[], None).unwrap()),
            vendor: None,
            model: None,
            image_name: None,
            ac_reset: false,
            transcript: None,
            bios_settings: None,
        }
    }

    pub(super) fn backend_with(&self, change: impl FnOnce(&mut RedfishSettings)) -> RedfishBackend {
        let mut settings = self.settings();
        change(&mut settings);
        RedfishBackend::new(settings, Component::new("bios").unwrap(), Arc::new(OneImage(b"hello"))).unwrap()
    }

    /// A backend of this component.
    pub(super) fn backend_of(
        &self,
        component: &str,
        images: Arc<dyn ImageSource>,
        change: impl FnOnce(&mut RedfishSettings),
    ) -> RedfishBackend {
        let mut settings = self.settings();
        change(&mut settings);
        RedfishBackend::new(settings, Component::new(component).unwrap(), images).unwrap()
    }

    fn backend(&self) -> RedfishBackend {
        let images = Arc::new(NoImages);
        RedfishBackend::new(self.settings(), Component::new("bios").unwrap(), images).unwrap()
    }

    /// What is seen of its task.
    async fn task(&self, dialect: &str) -> TaskSeen {
        let backend = self.backend_with(|settings| settings.dialects = dialects(dialect));
        match backend.observe(Some("/redfish/v1/TaskService/Tasks/7")).await {
            Observed::Answering(seen) => seen.task.unwrap(),
            Observed::Silent { why } => panic!("silent: {why}"),
        }
    }

    /// The requests that begin so, whole.
    pub(super) async fn heard(&self, begin: &str) -> Vec<String> {
        let heard = self.heard.lock().await;
        let line = format!("{begin} HTTP/");
        let begins = |said: &&String| said.starts_with(&line) || (!begin.contains(' ') && said.starts_with(begin));
        heard.iter().filter(begins).cloned().collect()
    }
}

/// One request per connection.
async fn converse(mut stream: TcpStream, answers: Arc<Mutex<Answers>>, heard: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    let head_bytes = loop {
        if let Some(end) = request.windows(4).position(|end| end == b"\r\n\r\n") {
            break end + 4;
        }
        if !stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
            return;
        }
    };
    let head = String::from_utf8_lossy(&request[..head_bytes]).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    while request.len() < head_bytes + length {
        if !stream.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
            return;
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let line = request.split(" HTTP/").next().unwrap_or_default().to_owned();
    heard.lock().await.push(request);
    let answer = match answers.lock().await.get_mut(&line) {
        Some(answers) if answers.len() > 1 => answers.pop_front().unwrap(),
        Some(answers) => answers[0].clone(),
        None => "404".to_owned(),
    };
    let mut parts = answer.splitn(3, '|');
    let (status, header, body) = match (parts.next(), parts.next(), parts.next()) {
        (Some(status), Some(header), Some(body)) => (status, format!("{header}\r\n"), body),
        _ if answer.len() == 3 => (&*answer, String::new(), ""),
        _ => ("200", String::new(), &*answer),
    };
    let header = header.trim_start_matches("\r\n");
    let length = match status {
        "204" => String::new(),
        _ => format!("content-length: {}\r\n", body.len()),
    };
    let answer = format!("HTTP/1.1 {status} X\r\n{header}{length}connection: close\r\n\r\n{body}");
    // A client that has read enough hangs up.
    let _cut_short = stream.write_all(answer.as_bytes()).await;
}
