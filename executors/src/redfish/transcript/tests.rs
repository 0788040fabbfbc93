//! A BMC that was recorded answers again without being there, and no secret is in what was kept of it.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use firmesh_executors_core::Observed;
use serde_json::json;

use super::{
    super::{
        RedfishBackend,
        tests::{NoImages, OneImage, Script, image_of},
    },
    *,
};
use crate::backend::DeviceBackend;

const TASK: &str = "/redfish/v1/TaskService/Tasks/7";

fn settings(dir: &Path) -> TranscriptSettings {
    TranscriptSettings {
        dir: dir.to_owned(),
        bytes_max: 1 << 20,
        files_max: 2,
        device: DeviceId::new("d1").unwrap(),
        component: Component::new("bios").unwrap(),
        spoken: Spoken::default(),
    }
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// A BMC that takes an image, and answers with everything that must not be kept.
async fn bmc() -> Script {
    let service = r#"{"FirmwareInventory":{"@odata.id":"/redfish/v1/FI"},"MultipartHttpPushUri":"/m"}"#;
    let login = format!(
        "201|x-auth-token: {TOKEN}\r\nlocation: /redfish/v1/SessionService/Sessions/admin7|{{\"Token\":\"{TOKEN}\",\"UserName\":\"admin\"}}"
    );
    let system = format!(
        r#"{{"Manufacturer":"Acme","Model":"R1","PowerState":"On","HostName":"secret of admin","Oem":{{"Password":"x9","Key":"{TOKEN}"}}}}"#
    );
    Script::start(&[
        ("POST /redfish/v1/SessionService/Sessions", &login),
        ("GET /redfish/v1/Systems/1", &system),
        ("GET /redfish/v1/UpdateService", service),
        ("POST /m", "202|location: /redfish/v1/TaskService/Tasks/7|"),
    ])
    .await
}

const TOKEN: &str = "T0ken-of-the-session";

#[tokio::test]
async fn what_was_recorded_answers_again_and_another_request_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("transcripts");
    let bmc = bmc().await;
    let backend = bmc.backend_with(|config| config.transcript = Some(settings(&folder)));
    let image = image_of(b"hello", "1.1.0");
    assert!(matches!(backend.observe(None).await, Observed::Answering(_)));
    let task = backend.stage(&image, None).await.unwrap();
    assert_eq!(task.as_deref(), Some(TASK));
    let before = backend.observe(task.as_deref()).await;
    backend.close().await;
    let kept = files(&folder);
    assert_eq!(kept.len(), 2, "{kept:?}");
    for file in &kept {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(file).unwrap();
        for secret in ["secret", TOKEN, "admin", "x9", "hello"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
    let transcript = Transcript::read(&kept[1]).unwrap();
    assert_eq!(transcript.image(), Some(&image));
    let again = RedfishBackend::replay(&transcript, Arc::new(OneImage(b"hello"))).unwrap();
    assert!(matches!(again.observe(None).await, Observed::Answering(_)));
    assert_eq!(again.stage(&image, None).await.unwrap(), task);
    assert_eq!(again.observe(task.as_deref()).await, before);
    assert_eq!(again.orders_replayed(), Some((1, 1)));
    // Another image is another request.
    let other = RedfishBackend::replay(&transcript, Arc::new(OneImage(b"hello!"))).unwrap();
    let error = other.stage(&image_of(b"hello!", "1.1.0"), None).await.unwrap_err();
    for words in [
        "the transcript has no answer to POST /m",
        "\"image_bytes\":6",
        "what was said then is POST /m",
        "\"image_bytes\":5",
    ] {
        assert!(error.reason.contains(words), "{words}: {}", error.reason);
    }
}

/// A device that is looked at every ten seconds must not fill a disk, and a file says where it ends.
#[tokio::test]
async fn transcripts_are_bounded_in_number_and_in_size_and_say_the_same_once() {
    let dir = tempfile::tempdir().unwrap();
    let bmc = bmc().await;
    let backend = bmc.backend_with(|config| config.transcript = Some(settings(dir.path())));
    backend.observe(None).await;
    let length = fs::metadata(&files(dir.path())[0]).unwrap().len();
    for _ in 0..3 {
        backend.observe(None).await;
    }
    assert_eq!(fs::metadata(&files(dir.path())[0]).unwrap().len(), length);
    for version in ["2", "3", "4"] {
        backend.stage(&image_of(b"hello", version), None).await.unwrap();
        backend.over();
    }
    assert_eq!(files(dir.path()).len(), 2);
    let small = tempfile::tempdir().unwrap();
    let tiny = TranscriptSettings {
        bytes_max: 900,
        ..settings(small.path())
    };
    let backend = bmc.backend_with(|config| config.transcript = Some(tiny));
    backend.observe(None).await;
    let file = &files(small.path())[0];
    let text = fs::read_to_string(file).unwrap();
    assert!(text.len() <= 900 && text.ends_with("{\"line\":\"full\"}\n"), "{text}");
    assert!(Transcript::read(file).is_ok());
}

#[test]
fn secrets_go_by_name_and_by_value_and_words_stay_whole() {
    let redaction = Redaction::new("admin", "hunter2");
    redaction.add("key-1");
    let said = json!({
        "UserName": "somebody", "Password": 7, "X-Auth-Token": "t", "Enabled": true, "ImageURI": "https://node/x",
        "Words": "admin saw hunter2 and key-1; Administrator did not",
        "Link": "/redfish/v1/SessionService/Sessions/admin0001/x",
        "List": [{ "SessionKey": "k" }, "by admin"],
    });
    let kept = redaction.value(said);
    let wanted = json!({
        "UserName": "(removed)", "Password": "(removed)", "X-Auth-Token": "(removed)", "Enabled": true, "ImageURI": "(image)",
        "Words": "(user) saw (removed) and (removed); Administrator did not",
        "Link": "/redfish/v1/SessionService/Sessions/(session)/x",
        "List": [{ "SessionKey": "(removed)" }, "by (user)"],
    });
    assert_eq!(kept, wanted);
}

/// Who has only a transcript can ask what its device would have been told.
#[tokio::test]
async fn a_transcript_is_examined_like_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let bmc = bmc().await;
    let backend = bmc.backend_with(|config| config.transcript = Some(settings(dir.path())));
    backend.observe(None).await;
    let transcript = Transcript::read(&files(dir.path())[0]).unwrap();
    let found = crate::replay(&transcript, Arc::new(NoImages)).unwrap().examine().await;
    let way = found
        .findings
        .iter()
        .find(|finding| finding.part == "way" && finding.facts["used"] == true);
    assert!(way.is_some_and(|way| way.says.contains("multipart")), "{found:?}");
    let text = serde_json::to_string(&found).unwrap();
    assert!(!text.contains("secret") && !text.contains(TOKEN), "{text}");
}
