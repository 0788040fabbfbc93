//! Images on their way: what is offered, what is refused, and what is said beside them.

use std::time::{Duration, Instant};

use tokio::io::ReadBuf;

use super::*;

const UPDATE_SERVICE: &str = "GET /redfish/v1/UpdateService";
const SIMPLE: &str = r##""Actions":{"#UpdateService.SimpleUpdate":{"target":"/su"}}"##;
const TASK_MADE: &str = "202|location: /redfish/v1/TaskService/Tasks/7|";

fn image() -> Image {
    image_of(b"hello", "1.1.0")
}

/// An update service with this, and an inventory.
fn service(more: &str) -> String {
    format!("{{\"FirmwareInventory\":{{\"@odata.id\":\"/redfish/v1/FI\"}},{more}}}")
}

#[tokio::test]
async fn the_first_way_that_is_offered_and_not_refused_is_gone() {
    let multipart = r#""MultipartHttpPushUri":"/m","HttpPushUri":"/m""#;
    for (offers, answers, gone, passed) in [
        (SIMPLE.to_owned(), vec![("POST /su", TASK_MADE)], "POST /su", ""),
        (multipart.to_owned(), vec![("POST /m", TASK_MADE)], "POST /m", "POST /su"),
        // Advertised, and not there.
        (
            format!("{SIMPLE},{multipart}"),
            vec![("POST /su", "405"), ("POST /m", TASK_MADE)],
            "POST /m",
            "",
        ),
        (
            format!("{SIMPLE},{multipart}"),
            vec![
                (
                    "POST /su",
                    r#"400||{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.ActionNotSupported"}]}}"#,
                ),
                ("POST /m", TASK_MADE),
            ],
            "POST /m",
            "",
        ),
        // dell/iDRAC-Redfish-Scripting#172: what a BMC cannot fetch from us it can be given.
        (
            format!("{SIMPLE},{multipart}"),
            vec![("POST /su", "400"), ("POST /m", TASK_MADE)],
            "POST /m",
            "",
        ),
        (r#""HttpPushUri":"/p""#.to_owned(), vec![("POST /p", TASK_MADE)], "POST /p", "POST /su"),
        // bmcweb, before it could do more.
        (
            r##""HttpPushUri":"/p","Actions":{"#UpdateService.SimpleUpdate":{"target":"/su",
                "TransferProtocol@Redfish.AllowableValues":["TFTP"]}}"##
                .to_owned(),
            vec![("POST /p", TASK_MADE)],
            "POST /p",
            "POST /su",
        ),
        (
            r##""HttpPushUri":"/p","Actions":{"#UpdateService.SimpleUpdate":{"target":"/su","@Redfish.ActionInfo":"/info"}}"##
                .to_owned(),
            vec![
                ("POST /p", TASK_MADE),
                ("GET /info", r#"{"Parameters":[{"Name":"Targets","AllowableValues":["/redfish/v1/FI/9"]}]}"#),
            ],
            "POST /p",
            "POST /su",
        ),
    ] {
        let service = service(&offers);
        let mut answers = answers;
        answers.push((UPDATE_SERVICE, &service));
        let bmc = Script::start(&answers).await;
        let task = bmc.backend_with(|_| ()).stage_image(&image()).await;
        assert_eq!(task.unwrap().as_deref(), Some("/redfish/v1/TaskService/Tasks/7"), "{offers}");
        assert_eq!(bmc.heard(gone).await.len(), 1, "{offers}");
        assert!(passed.is_empty() || bmc.heard(passed).await.is_empty(), "{offers}");
    }
}

#[tokio::test]
async fn what_is_said_beside_an_image_is_what_the_service_takes() {
    let offers = service(
        r##""MultipartHttpPushUri":"/m","HttpPushUri":"/p","MultipartHttpPushUri@Redfish.OperationApplyTimeSupport":
            {"SupportedValues":["Immediate","OnReset"]},"HttpPushUriOptions":{"HttpPushUriApplyTime":{"ApplyTime":"Immediate",
            "ApplyTime@Redfish.AllowableValues":["Immediate","OnReset"]}},
            "Actions":{"#UpdateService.SimpleUpdate":{"target":"/su","@Redfish.OperationApplyTimeSupport":{"SupportedValues":["Immediate"]}}}"##,
    );
    let answers = [
        (UPDATE_SERVICE, &*offers),
        ("POST /m", TASK_MADE),
        ("POST /su", TASK_MADE),
        ("POST /p", TASK_MADE),
        ("PATCH /redfish/v1/UpdateService", "204"),
    ];
    let bmc = Script::start(&answers).await;
    let own = "schema = \"firmesh-redfish/1\"\nname = \"own\"\n[update]\nmethods = [\"METHOD\"]\napply_time = [\"OnReset\", \"Immediate\"]\n";
    for method in ["simple_update", "multipart", "http_push"] {
        let file = ("own.toml".to_owned(), own.replace("METHOD", method));
        let dialects = Dialects::new(&[file], Some("own".to_owned())).unwrap();
        let backend = bmc.backend_with(|settings| settings.dialects = Arc::new(dialects));
        backend.stage_image(&image()).await.unwrap();
    }
    let pull = &bmc.heard("POST /su").await[0];
    for said in [
        r#""ImageURI":"https://node/image""#,
        r#""Targets":["/redfish/v1/FI/2"]"#,
        r#""@Redfish.OperationApplyTime":"Immediate""#,
        r#""TransferProtocol":"HTTPS""#,
    ] {
        assert!(pull.contains(said), "{said}: {pull}");
    }
    let form = &bmc.heard("POST /m").await[0];
    for said in [
        r#"name="UpdateParameters""#,
        r#""@Redfish.OperationApplyTime":"OnReset""#,
        r#""Targets":["/redfish/v1/FI/2"]"#,
        r#"name="UpdateFile"; filename="image.bin""#,
        "\r\n\r\nhello\r\n",
        "x-auth-token: t\r\n",
    ] {
        assert!(form.contains(said), "{said}: {form}");
    }
    let bare = &bmc.heard("POST /p").await[0];
    assert!(
        bare.ends_with("\r\n\r\nhello") && bare.contains("application/octet-stream"),
        "{bare}"
    );
    let chosen = &bmc.heard("PATCH /redfish/v1/UpdateService").await[0];
    assert!(
        chosen.contains(r#"{"HttpPushUriApplyTime":{"ApplyTime":"OnReset"}}"#),
        "{chosen}"
    );
}

/// ansible-collections/community.general#9114: a time that is offered, and refused.
#[tokio::test]
async fn a_time_that_is_refused_is_left_to_the_bmc() {
    let offers = service(
        r#""MultipartHttpPushUri":"/m","MultipartHttpPushUri@Redfish.OperationApplyTimeSupport":{"SupportedValues":["OnReset"]}"#,
    );
    let bmc = Script::start(&[(UPDATE_SERVICE, &offers), ("POST /m", "400"), ("POST /m", TASK_MADE)]).await;
    assert!(bmc.backend_with(|_| ()).stage_image(&image()).await.is_ok());
    let posts = bmc.heard("POST /m").await;
    let times: Vec<bool> = posts.iter().map(|post| post.contains("OperationApplyTime")).collect();
    assert_eq!(times, [true, false]);
}

/// Whatever stands in the way is known before a byte is sent, and named.
#[tokio::test]
async fn an_image_that_cannot_be_taken_is_not_sent() {
    let entry = "GET /redfish/v1/FI/2";
    for (offers, entry_says, words) in [
        (
            r#""Id":"x""#,
            "",
            "the BMC offers no SimpleUpdate; multipart: the BMC offers no MultipartHttpPushUri; http_push",
        ),
        (
            r#""MultipartHttpPushUri":"/m","MaxImageSizeBytes":4"#,
            "",
            "has 5 bytes, the BMC takes 4",
        ),
        (
            r#""MultipartHttpPushUri":"/m","ServiceEnabled":false"#,
            "",
            "switched off",
        ),
        (
            r#""MultipartHttpPushUri":"/m""#,
            r#""Updateable":false"#,
            "the bios cannot be updated",
        ),
        (
            r#""MultipartHttpPushUri":"/m""#,
            r#""LowestSupportedVersion":"1.2""#,
            "the image is 1.1.0, the BMC takes 1.2 or later",
        ),
    ] {
        let more = if entry_says.is_empty() {
            String::new()
        } else {
            format!(",{entry_says}")
        };
        let (service, entry_is) = (
            service(offers),
            format!("{{\"Name\":\"bios\",\"Version\":\"1\"{more}}}"),
        );
        let bmc = Script::start(&[(UPDATE_SERVICE, &service), (entry, &entry_is)]).await;
        let error = bmc.backend_with(|_| ()).stage_image(&image()).await.unwrap_err();
        assert!(error.reason.contains(words) && !error.retry, "{error}");
        let posts = bmc.heard("POST").await;
        assert!(posts.iter().all(|post| post.contains("/Sessions ")), "{posts:?}");
    }
    // Nought is no bound, and neither is what is no number.
    for max in ["0", "null", "\"4\""] {
        let service = service(&format!("\"MultipartHttpPushUri\":\"/m\",\"MaxImageSizeBytes\":{max}"));
        let bmc = Script::start(&[(UPDATE_SERVICE, &service), ("POST /m", TASK_MADE)]).await;
        assert!(bmc.backend_with(|_| ()).stage_image(&image()).await.is_ok(), "{max}");
    }
    let pulls_only = service(r#""MultipartHttpPushUri":"/m""#);
    let bmc = Script::start(&[(UPDATE_SERVICE, &pulls_only)]).await;
    let backend = bmc.backend_with(|settings| settings.update = UpdateMethod::Pull);
    let error = backend.stage_image(&image()).await.unwrap_err();
    assert!(
        error.reason.contains("multipart: the configuration does not want it"),
        "{error}"
    );
}

#[tokio::test]
async fn a_bmc_that_asks_for_time_gets_it_and_no_image_is_sent_twice() {
    let offers = service(r#""MultipartHttpPushUri":"/m""#);
    let busy = r#"503|retry-after: 1|{"error":{"@Message.ExtendedInfo":[{"MessageId":"Base.1.8.ServiceTemporarilyUnavailable"}]}}"#;
    for (busy, wait) in [(busy, 1), (&*busy.replace("retry-after: 1", ""), 0)] {
        let bmc = Script::start(&[(UPDATE_SERVICE, &*offers), ("POST /m", busy)]).await;
        let begun = Instant::now();
        let error = bmc.backend_with(|_| ()).stage_image(&image()).await.unwrap_err();
        assert!(error.retry, "{error}");
        assert!(begun.elapsed() >= Duration::from_secs(wait), "the time it asked for");
        // It may have begun nevertheless.
        assert_eq!(bmc.heard("POST /m").await.len(), 1, "the image was sent again unseen");
    }

    for (answer, retry) in [("413", false), ("400", false), ("429", true)] {
        let bmc = Script::start(&[(UPDATE_SERVICE, &offers), ("POST /m", answer)]).await;
        let error = bmc.backend_with(|_| ()).stage_image(&image()).await.unwrap_err();
        assert_eq!(error.retry, retry, "{error}");
        assert_eq!(bmc.heard("POST /m").await.len(), 1, "{answer}");
    }
}

fn refused(id: &str) -> String {
    let info = format!(r#"[{{"MessageId":"{id}","Message":"Feature not available."}}]"#);
    format!(r#"405||{{"error":{{"code":"Base.v1_4_0.GeneralError","@Message.ExtendedInfo":{info}}}}}"#)
}

#[tokio::test]
async fn a_licence_that_is_missing_and_an_update_that_hangs_are_called_so() {
    let offers = service(&format!(r#"{SIMPLE},"MultipartHttpPushUri":"/m""#));
    let (no_licence, in_update) = (
        refused("SMC.1.0.OemLicenseNotPassed"),
        refused("SMC.1.0.OemFirmwareAlreadyInUpdateMode"),
    );
    for (answers, words, retry) in [
        // Only a look at the address tells.
        (
            [("GET /m", &*no_licence), ("POST /m", "405")],
            "no licence for this, it needs SFT-OOB-LIC (or SFT-DCMS-SINGLE)",
            false,
        ),
        (
            [("GET /m", "405"), ("POST /m", &no_licence)],
            "it needs SFT-OOB-LIC",
            false,
        ),
        ([("GET /m", "405"), ("POST /m", &in_update)], "is in update mode", true),
    ] {
        let answers = [answers[0], answers[1], (UPDATE_SERVICE, &offers)];
        let bmc = Script::start(&answers).await;
        let backend = bmc.backend_with(|settings| settings.dialects = dialects("supermicro"));
        let error = backend.stage_image(&image()).await.unwrap_err();
        assert!(
            error.reason.contains(words) && error.reason.contains("Feature not available."),
            "{error}"
        );
        assert_eq!(error.retry, retry);
        assert!(bmc.heard("POST /su").await.is_empty(), "another way was tried");
    }
}

#[tokio::test]
async fn an_update_in_two_steps_is_begun_once_the_image_has_been_checked() {
    let start = r##""MultipartHttpPushUri":"/m","Actions":{"#UpdateService.StartUpdate":{"target":"/start"}}"##;
    let offers = service(start);
    // The address of the task stands in the answer's body alone, and both steps have the same.
    let accepted =
        r#"202||{"Accepted":{"@Message.ExtendedInfo":[{"MessageArgs":["/redfish/v1/TaskService/Tasks/7"]}]}}"#;
    let asks_for_time = r#"503|retry-after: 1|"#;
    for (checked, begun) in [
        (r#"{"TaskState":"Completed"}"#, true),
        (r#"{"TaskState":"Exception"}"#, false),
    ] {
        let bmc = Script::start(&[
            (UPDATE_SERVICE, &offers),
            ("GET /m", "405"),
            ("POST /m", accepted),
            ("POST /start", asks_for_time),
            ("POST /start", accepted),
            (TASK, r#"{"TaskState":"Running"}"#),
            (TASK, checked),
            (TASK, r#"{"TaskState":"Running"}"#),
        ])
        .await;
        let backend = bmc.backend_with(|settings| settings.dialects = dialects("supermicro"));
        let staged = backend.stage_image(&image()).await;
        let form = &bmc.heard("POST /m").await[0];
        assert!(
            form.contains(r#""@Redfish.OperationApplyTime":"OnStartUpdateRequest""#),
            "{form}"
        );
        assert!(form.contains(r#""Targets":["/redfish/v1/Systems/1/Bios"]"#), "{form}");
        assert!(
            form.contains(r#""Oem":{"Supermicro":{"BIOS":{"BackupBIOS":false,"PreserveME":true"#),
            "{form}"
        );
        assert_eq!(bmc.heard("POST /start").await.len(), if begun { 2 } else { 0 });
        assert_eq!(bmc.heard("POST /m").await.len(), 1, "the image went twice");
        match staged {
            Ok(task) => {
                assert!(begun);
                let seen = backend.see_task(&task.unwrap()).await.unwrap();
                assert_eq!(seen.state, TaskState::Active, "the second step was taken for the first");
            }
            Err(error) => assert!(
                !begun && error.reason.contains("has checked the image and refuses it"),
                "{error}"
            ),
        }
    }
}

/// A service that opens a session only for those who say twice who they are, and tells of an update without a task.
#[tokio::test]
async fn a_form_of_the_makers_own_carries_the_key_of_a_session() {
    let offers = service(r#""HttpPushUri":"/upload","Oem":{"Hpe":{"State":"Complete"}}"#);
    let bmc = Script::start(&[
        (UPDATE_SERVICE, &offers),
        ("POST /redfish/v1/SessionService/Sessions", "500"),
        (
            "POST /redfish/v1/SessionService/Sessions",
            r#"200|x-auth-token: key1|{"@odata.id":"/redfish/v1/SessionService/Sessions/1"}"#,
        ),
        ("POST /upload", "200"),
        ("DELETE /redfish/v1/SessionService/Sessions/1", "200"),
    ])
    .await;
    let backend = bmc.backend_with(|settings| settings.dialects = dialects("hpe"));
    let task = backend.stage_image(&image()).await.unwrap().unwrap();
    assert_eq!(backend.see_task(&task).await.unwrap().state, TaskState::Completed);
    let form = &bmc.heard("POST /upload").await[0];
    for said in [
        "x-auth-token: key1\r\n",
        "cookie: sessionKey=key1\r\n",
        "name=\"sessionKey\"\r\n\r\nkey1\r\n",
        r#"{"ETag":"firmesh","UpdateRepository":false,"UpdateTarget":true}"#,
        r#"name="files[]"; filename="image.fwpkg""#,
        "\r\n\r\nhello\r\n",
    ] {
        assert!(form.contains(said), "{said}: {form}");
    }
    assert!(
        form.find("sessionKey\"") < form.find("files[]"),
        "the file must come last: {form}"
    );
    let ended = bmc.heard("DELETE /redfish/v1/SessionService/Sessions/1").await;
    assert!(ended.len() == 1 && ended[0].contains("x-auth-token: key1"), "{ended:?}");
}

/// Behind a proxy some BMCs give addresses that only they know; the password goes nowhere but to the BMC we were told of.
#[tokio::test]
async fn a_task_is_looked_for_at_the_bmc_itself_whatever_name_it_gives() {
    let offers = service(r#""MultipartHttpPushUri":"/m""#);
    for (location, task) in [
        (
            "https://bmc.invalid/redfish/v1/TaskService/Tasks/7",
            Some("/redfish/v1/TaskService/Tasks/7"),
        ),
        (
            "/redfish/v1/TaskService/TaskMonitors/7?a=1",
            Some("/redfish/v1/TaskService/TaskMonitors/7?a=1"),
        ),
        (&"/x".repeat(400), None),
        ("", None),
    ] {
        let answer = format!("202|location: {location}|");
        let bmc = Script::start(&[(UPDATE_SERVICE, &offers), ("POST /m", &answer)]).await;
        let staged = bmc.backend_with(|_| ()).stage_image(&image()).await.unwrap();
        assert_eq!(staged.as_deref(), task, "{location}");
    }
}

/// Bytes without end, as far as anybody has read them.
#[derive(Debug)]
struct LargeImage(Arc<std::sync::atomic::AtomicU64>);

const LARGE_BYTES: u64 = 1 << 30;

impl ImageSource for LargeImage {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        let reader: ImageReader = Box::pin(Zeros(Arc::clone(&self.0)));
        async { Ok(reader) }.boxed()
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        String::new()
    }
}

struct Zeros(Arc<std::sync::atomic::AtomicU64>);

impl tokio::io::AsyncRead for Zeros {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let count = buffer.remaining();
        buffer.put_slice(&vec![0; count]);
        self.0.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
        std::task::Poll::Ready(Ok(()))
    }
}

/// A BMC that stops reading stops us: what it has not taken is not held anywhere here.
#[tokio::test]
async fn an_image_is_read_no_faster_than_the_bmc_takes_it() {
    let offers = service(r#""HttpPushUri":"/p""#);
    let bmc = Script::start(&[(UPDATE_SERVICE, &offers)]).await;
    let read = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let slow = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", slow.local_addr().unwrap());
    let settings = RedfishSettings {
        url: url.parse().unwrap(),
        ..bmc.settings()
    };
    let relay = bmc.url.trim_start_matches("http://").to_owned();
    let images = Arc::new(LargeImage(Arc::clone(&read)));
    let backend = RedfishBackend::new(settings, Component::new("bios").unwrap(), images).unwrap();
    let mut large = image();
    large.artifact.length = LARGE_BYTES;
    // Passes every small request on, and reads the head of the large one.
    let stuck = async {
        loop {
            let (mut stream, _) = slow.accept().await.unwrap();
            let mut head = vec![0; 16 << 10];
            let count = stream.read(&mut head).await.unwrap();
            if head.starts_with(b"POST /p ") {
                return stream;
            }
            let mut there = TcpStream::connect(&relay).await.unwrap();
            there.write_all(&head[..count]).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut there).await });
        }
    };
    let upload = backend.stage_image(&large);
    tokio::pin!(upload);
    let stream = tokio::select! {
        ended = &mut upload => panic!("it ended: {ended:?}"),
        stream = stuck => stream,
    };
    // Until nothing moves any more.
    let mut before = u64::MAX;
    while before != read.load(std::sync::atomic::Ordering::Relaxed) {
        before = read.load(std::sync::atomic::Ordering::Relaxed);
        let pause = tokio::time::sleep(std::time::Duration::from_millis(200));
        tokio::select! {
            ended = &mut upload => panic!("it ended: {ended:?}"),
            () = pause => {}
        }
    }
    assert!(
        before < 64 << 20,
        "{before} bytes were read ahead of a BMC that takes none"
    );
    drop(stream);
    let error = upload.await.unwrap_err();
    assert!(
        error.retry && error.reason.contains("push the image: no answer"),
        "{error}"
    );
}
