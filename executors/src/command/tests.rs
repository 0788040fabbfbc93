use std::{fs, io::Cursor, path::PathBuf, sync::Arc};

use firmesh_executors_core::{ActError, Image, Observed, Rung, Seen, TaskState};
use firmesh_protocol::{
    ids::{ArtifactId, Sha256},
    manifest::{Artifact, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility},
};
use futures_util::future::BoxFuture;
use tempfile::TempDir;

use crate::{Backend, DeviceBackend, DeviceConfig, DeviceConfigError, ImageError, ImageReader, ImageSource, build};

const OLD: &str = "version=1.0.0\nold\n";
const NEW: &str = "version=1.1.0\nnew\n";

/// A device that is a file, and a tool that a vendor might have made for it.
struct Bench(TempDir);

/// A tool with the whole repertoire; `$1` says what is asked of it.
const TOOL: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
echo "$1" >> asked
case "$1" in
    show) sed -n s/version=//p device ;;
    identity) echo '{"maker": "Acme", "product": {"name": "R1"}}' ;;
    install) . ./manner ;;
    read) cp device "$2" ;;
    reset) [ -e waiting ] && mv waiting device; true ;;
esac
"#;

const DESCRIPTION: &str = r#"
schema = "firmesh-tool/1"
name = "acme_tool"
params = ["tool"]
version = { run = ["sh", "{tool}", "show"] }
vendor = { run = ["sh", "{tool}", "identity"], pointer = "/maker" }
model = { run = ["sh", "{tool}", "identity"], regex = '"name": "([^"]*)"' }
[install]
run = ["sh", "{tool}", "install", "{image}", "{version}"]
limit_s = 2
done = [0, 5]
needs_reset = [10]
retry = [20]
fails_if = "(?i)failure"
"#;

const READ_BACK: &str = "[read_back]\nrun = [\"sh\", \"{tool}\", \"read\", \"{out}\"]\n";
const RESET: &str = "[reset.warm]\nrun = [\"sh\", \"{tool}\", \"reset\"]\n";

impl Bench {
    /// The tool installs in this manner.
    fn new(more: &str, manner: &str) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        bench.write("device", OLD);
        bench.write("tool", TOOL);
        bench.write("tool.toml", &format!("{DESCRIPTION}{more}"));
        bench.write("manner", manner);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn config(&self) -> String {
        format!(
            "id = \"d\"\ncomponent = \"nic\"\nexecutor = {{ kind = \"command\", tool = \"tool.toml\", work_dir = \"work\", params = {{ tool = {:?} }} }}",
            self.path("tool")
        )
    }

    fn backend(&self) -> Backend {
        let settings = self.check(&self.config()).unwrap();
        build(&settings, Arc::new(OneImage)).unwrap()
    }

    fn check(&self, config: &str) -> Result<crate::DeviceSettings, DeviceConfigError> {
        toml::from_str::<DeviceConfig>(config).unwrap().check(self.0.path())
    }

    async fn stage(&self) -> Result<Option<String>, ActError> {
        self.backend().stage(&image(), None).await
    }

    async fn seen(&self) -> Seen {
        match self.backend().observe(None).await {
            Observed::Answering(seen) => *seen,
            Observed::Silent { why } => panic!("{why}"),
        }
    }

    /// The version and what is shown of the tool's work.
    async fn shown(&self) -> (String, Option<TaskState>) {
        let seen = self.seen().await;
        (seen.version.unwrap(), seen.task.map(|task| task.state))
    }

    fn installs(&self) -> usize {
        self.read("asked").lines().filter(|line| *line == "install").count()
    }
}

#[tokio::test]
async fn a_device_is_asked_who_it_is_installed_and_read_back() {
    let bench = Bench::new(READ_BACK, "cp \"$2\" device");
    let seen = bench.seen().await;
    assert_eq!(
        (seen.vendor.as_str(), seen.model.as_str(), seen.version.as_deref()),
        ("Acme", "R1", Some("1.0.0"))
    );
    assert_eq!(bench.backend().executor(), "acme_tool");
    assert_eq!(bench.stage().await.unwrap(), None);
    assert_eq!(
        (bench.read("device").as_str(), bench.shown().await),
        (NEW, ("1.1.0".to_owned(), None))
    );
    // The image is not kept, and what is there already is not written again.
    assert!(!bench.path("work/d/image").exists() && !bench.path("work/d/note.json").exists());
    bench.stage().await.unwrap();
    assert_eq!(bench.installs(), 1);
}

#[tokio::test]
async fn an_image_that_waits_for_a_reset_is_shown_as_done_until_it_runs() {
    let bench = Bench::new(RESET, "cp \"$2\" waiting; exit 10");
    assert!(bench.stage().await.unwrap().is_some());
    assert_eq!(bench.shown().await, ("1.0.0".to_owned(), Some(TaskState::Completed)));
    assert_eq!(bench.seen().await.resets, [Rung::Warm]);
    bench.backend().reset(Rung::Warm).await.unwrap();
    assert_eq!(bench.shown().await, ("1.1.0".to_owned(), None));
    let refused = bench.backend().reset(Rung::Cold).await.unwrap_err();
    assert!(refused.reason.contains("no Cold reset"), "{refused}");
}

#[tokio::test]
async fn exit_statuses_and_words_mean_what_the_description_says() {
    for (manner, retry, words) in [
        ("echo busy >&2; exit 20", true, "ended with exit status: 20: busy"),
        ("echo 'FAILURE: no licence'", false, "no licence"),
        ("exit 3", false, "exit status: 3"),
        ("exit 5", false, "shows 1.0.0 and no reset is described"),
    ] {
        let bench = Bench::new("", manner);
        let error = bench.stage().await.unwrap_err();
        assert_eq!(error.retry, retry, "{manner}: {error}");
        assert!(error.reason.contains(words), "{manner}: {error}");
        assert_eq!(bench.shown().await, ("1.0.0".to_owned(), None), "{manner}");
    }
}

#[tokio::test]
async fn nobody_knows_what_a_killed_tool_has_done() {
    let bench = Bench::new("", "kill -9 $$");
    let error = bench.stage().await.unwrap_err();
    assert!(error.retry && error.reason.contains("signal: 9"), "{error}");
    assert_eq!(bench.shown().await, ("1.0.0".to_owned(), Some(TaskState::Gone)));
}

#[tokio::test]
async fn a_torn_device_stays_one_when_the_tool_cannot_be_started() {
    let bench = Bench::new(READ_BACK, "head -c 10 \"$2\" > device");
    bench.stage().await.unwrap_err();
    assert_eq!(bench.shown().await.0, "incomplete");
    // The version query would be believed if the note were gone.
    bench.write("device", "version=1.1.0\n");
    let missing = DESCRIPTION.replace(
        "run = [\"sh\", \"{tool}\", \"install\"",
        "run = [\"not-there\", \"{tool}\", \"install\"",
    );
    bench.write("tool.toml", &format!("{missing}{READ_BACK}"));
    let error = bench.stage().await.unwrap_err();
    assert!(!error.retry && error.reason.contains("could not be started"), "{error}");
    bench.write("tool.toml", &format!("{DESCRIPTION}{READ_BACK}"));
    assert_eq!(bench.shown().await.0, "incomplete");
}

#[tokio::test]
async fn nothing_is_asked_of_a_device_while_its_tool_works() {
    let alone = "[ -e busy ] && touch overlapped; touch busy; sleep 0.2;";
    let bench = Bench::new(READ_BACK, &format!("{alone} cp \"$2\" device; rm busy"));
    let slow = TOOL.replace(
        "show) sed -n s/version=//p device",
        &format!("show) {alone} sed -n s/version=//p device; rm busy"),
    );
    assert_ne!(slow, TOOL);
    bench.write("tool", &slow);
    let backend = bench.backend();
    let image = image();
    let (staged, _, _) = tokio::join!(
        backend.stage(&image, None),
        backend.observe(None),
        backend.observe(None)
    );
    assert_eq!(staged.unwrap(), None);
    assert!(!bench.path("overlapped").exists());
    assert_eq!(bench.shown().await, ("1.1.0".to_owned(), None));
}

#[tokio::test]
async fn a_device_that_another_has_replaced_gets_nothing() {
    let bench = Bench::new("", "cp \"$2\" device");
    let backend = bench.backend();
    assert!(matches!(backend.observe(None).await, Observed::Answering(_)));
    bench.write("tool", &TOOL.replace("\"R1\"", "\"R2\""));
    let error = backend.stage(&image(), None).await.unwrap_err();
    assert!(error.reason.contains("another is in its place"), "{error}");
    assert_eq!(bench.installs(), 0);
    let Observed::Answering(seen) = backend.observe(None).await else {
        panic!("silent")
    };
    assert_eq!(seen.model, "R2");
}

#[tokio::test]
async fn a_tool_that_lies_is_found_out_by_reading_back() {
    let bench = Bench::new(READ_BACK, "sed s/new/nEw/ \"$2\" > device");
    let error = bench.stage().await.unwrap_err();
    assert!(
        error.retry && error.reason.contains("differs from the image at byte 15"),
        "{error}"
    );
    // Its first line says the new version, and is not believed; nor is it when the same lie changes nothing any more.
    assert_eq!(bench.shown().await, ("incomplete".to_owned(), None));
    let error = bench.stage().await.unwrap_err();
    assert!(error.reason.contains("differs from the image at byte 15"), "{error}");
    assert_eq!(bench.shown().await, ("incomplete".to_owned(), None));
    bench.write("manner", "cp \"$2\" device");
    bench.stage().await.unwrap();
    assert_eq!(bench.shown().await, ("1.1.0".to_owned(), None));

    let bench = Bench::new(READ_BACK, "true");
    let error = bench.stage().await.unwrap_err();
    assert!(error.reason.contains("the device is unchanged"), "{error}");
    assert_eq!(bench.shown().await, ("1.0.0".to_owned(), None));
    // What was written counts, whatever the tool says of it.
    let bench = Bench::new(READ_BACK, "cp \"$2\" device; exit 3");
    bench.stage().await.unwrap();
    assert_eq!(bench.shown().await, ("1.1.0".to_owned(), None));
}

#[tokio::test]
async fn a_tool_past_its_limit_is_ended_and_its_device_looked_at() {
    for (more, shown) in [
        ("", ("1.0.0", Some(TaskState::Gone))),
        ("may_repeat = true", ("1.0.0", None)),
        (READ_BACK, ("incomplete", None)),
    ] {
        let bench = Bench::new(
            more,
            "echo torn > device; sed -n 1p device > /dev/null; echo version=1.0.0 >> device; sleep 60",
        );
        let error = bench.stage().await.unwrap_err();
        assert!(
            error.reason.contains("longer than 2 s") || error.reason.contains("differs"),
            "{error}"
        );
        assert_eq!(bench.shown().await, (shown.0.to_owned(), shown.1), "{more}");
    }
}

/// Whoever is given up in the middle leaves a tool at work: nobody disturbs it, and it can be ended.
#[tokio::test]
async fn a_tool_that_still_works_is_seen_and_left_alone() {
    let bench = Bench::new(
        RESET,
        "touch begun; while [ ! -e go ]; do sleep 0.01; done; cp \"$2\" device",
    );
    let backend = bench.backend();
    let staging = tokio::spawn(async move { backend.stage(&image(), None).await });
    let wait_for = async |name: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !bench.path(name).exists() {
            assert!(std::time::Instant::now() < deadline, "{name} never came");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    wait_for("begun").await;
    staging.abort();
    assert!(staging.await.unwrap_err().is_cancelled());
    let asked = bench.read("asked");
    assert_eq!(bench.shown().await, ("1.0.0".to_owned(), Some(TaskState::Active)));
    assert_eq!(
        bench.read("asked"),
        asked,
        "the device was asked while the tool was at work"
    );
    let error = bench.stage().await.unwrap_err();
    assert!(error.retry && error.reason.contains("has not ended"), "{error}");
    bench.backend().abort(None).await.unwrap();
    assert_eq!(bench.shown().await, ("1.0.0".to_owned(), Some(TaskState::Gone)));
    bench.write("go", "");
    bench.stage().await.unwrap();
    assert_eq!(bench.shown().await, ("1.1.0".to_owned(), None));
}

#[tokio::test]
async fn a_secret_reaches_the_tool_and_nobody_else() {
    let bench = Bench::new("", "echo \"wrong password $PASSWORD\"; exit 3");
    bench.write("pw", "hunter2\n");
    let description = DESCRIPTION.replace(
        "params =",
        "secrets = [\"password\"]\nenv = { PASSWORD = \"{password}\" }\nparams =",
    );
    bench.write("tool.toml", &description);
    let config = bench
        .config()
        .replace("params =", "secret_files = { password = \"pw\" }, params =");
    let settings = bench.check(&config).unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"));
    let backend = build(&settings, Arc::new(OneImage)).unwrap();
    let error = backend.stage(&image(), None).await.unwrap_err();
    assert!(error.reason.contains("wrong password (redacted)"), "{error}");
    bench.write("tool.toml", &description.replace("\"install\"", "\"{password}\""));
    let error = bench.check(&config).unwrap_err().to_string();
    assert!(error.contains("among the arguments of install"), "{error}");
}

#[test]
fn a_description_that_cannot_be_is_refused_by_name() {
    let bench = Bench::new("", "");
    let refused = |from: &str, to: &str, words: &str| {
        bench.write("tool.toml", &DESCRIPTION.replace(from, to));
        let error = bench.check(&bench.config()).unwrap_err().to_string();
        assert!(error.contains("device d: tool") && error.contains(words), "{error}");
    };
    refused("tool/1", "tool/2", "firmesh-tool/2");
    refused("acme_tool", "redfish", "none of redfish");
    refused("acme_tool", "Acme Tool", "a-z, 0-9 and _");
    refused("{version}", "{serial}", "{serial} in install");
    refused("[\"sh\", \"{tool}\", \"show\"]", "[\"{image}\"]", "{image} in version");
    refused("[\"sh\", \"{tool}\", \"show\"]", "[]", "runs nothing in version");
    refused("\"/maker\"", "\"maker\"", "must begin with /");
    refused("[^\"]*)", "((", "a pattern that cannot be");
    refused(
        "[\"tool\"]",
        "[\"tool\", \"port\"]",
        "needs port among the device's params",
    );
    refused("params = [\"tool\"]", "", "none of the params called tool");
    refused("limit_s = 2", "limit_s = 0", "limit_s of 0");
    refused("retry = [20]", "retry = [10]", "two meanings");
    refused("vendor =", "maker =", "is not the description of a tool");
    bench.write("tool.toml", &format!("{DESCRIPTION}[read_back]\nrun = [\"cat\"]\n"));
    assert!(
        bench
            .check(&bench.config())
            .unwrap_err()
            .to_string()
            .contains("does not say {out}")
    );
    fs::remove_file(bench.path("tool.toml")).unwrap();
    assert!(
        bench
            .check(&bench.config())
            .unwrap_err()
            .to_string()
            .contains("tool.toml cannot be read")
    );
}

#[test]
fn the_descriptions_that_come_along_are_good() {
    let bench = Bench::new("", "");
    let config = "id = \"d\"\ncomponent = \"bios\"\nexecutor = { kind = \"command\", tool = \"flashrom\", work_dir = \"work\", vendor = \"Acme\", model = \"R1\", params = { programmer = \"internal\" } }";
    bench.check(config).unwrap();
    let error = bench
        .check(&config.replace("vendor = \"Acme\", ", ""))
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not ask for the vendor"), "{error}");
}

#[derive(Debug)]
struct OneImage;

impl ImageSource for OneImage {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        Box::pin(async { Ok(Box::pin(Cursor::new(NEW)) as ImageReader) })
    }

    fn url(&self, _artifact: ArtifactId) -> String {
        unreachable!("tools get files")
    }
}

fn image() -> Image {
    let artifact = Artifact {
        id: ArtifactId::of(NEW.as_bytes()),
        sha256: Sha256::of(NEW.as_bytes()),
        length: NEW.len() as u64,
    };
    let info = ReleaseInfo {
        schema: RELEASE_SCHEMA.to_owned(),
        blake3: artifact.id,
        vendor: "Acme".to_owned(),
        models: vec!["R1".to_owned()],
        component: "nic".parse().unwrap(),
        version: "1.1.0".to_owned(),
        security_epoch: 1,
        from_versions: Vec::new(),
        reversibility: Reversibility::Reversible,
        provenance: None,
        version_scheme: None,
        min_from: None,
        requires: Vec::new(),
        conflicts: Vec::new(),
    };
    Release {
        target: "firmware/nic.bin".to_owned(),
        artifact,
        info,
    }
}
