//! Attempts on devices that ask, of every manner.

use std::{io::Cursor, sync::Arc, time::Duration};

use firmesh_executors_core::{AttemptRecord, Goal, Image, Outcome};
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, DeviceId, Sha256},
    manifest::{Artifact, Deadlines, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility},
    report::{AttemptState, PermitKind},
};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{ConfigData, Desk, Device, Feedback};
use crate::{
    Backend, DeviceConfig, DeviceConfigError, Ended, ImageError, ImageReader, ImageSource, Journal, MemoryJournal,
    Start, build_with, run_attempt,
};

const OLD: &str = "1.0.0";
const NEW: &str = "1.1.0";
const IMAGE: &[u8] = b"an image of some bytes";

#[derive(Debug)]
struct OneImage;

impl ImageSource for OneImage {
    fn open(&self, _artifact: ArtifactId) -> BoxFuture<'_, Result<ImageReader, ImageError>> {
        Box::pin(async {
            let reader: ImageReader = Box::pin(Cursor::new(IMAGE));
            Ok(reader)
        })
    }

    fn url(&self, artifact: ArtifactId) -> String {
        format!("https://nowhere/{artifact}")
    }
}

fn goal() -> Goal {
    let image: Image = Release {
        target: "firmware/acme-r1-host-1.1.0".to_owned(),
        info: ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: ArtifactId::of(IMAGE),
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned()],
            component: Component::new("host").unwrap(),
            version: NEW.to_owned(),
            security_epoch: 1,
            from_versions: vec![],
            version_scheme: None,
            min_from: None,
            requires: vec![],
            conflicts: vec![],
            reversibility: Reversibility::Reversible,
            provenance: None,
        },
        artifact: Artifact {
            id: ArtifactId::of(IMAGE),
            sha256: Sha256::of(IMAGE),
            length: IMAGE.len() as u64,
        },
    };
    Goal {
        device: DeviceId::new("d1").unwrap(),
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        image,
        security_epoch_min: 0,
        deadlines: Deadlines {
            attempt_s: 6,
            back_s: 1,
        },
        health: None,
        answers_min: 3,
        answers_apart_ms: Some(2),
        step: None,
        pace_ms: 2,
    }
}

/// What survives the death of a node.
struct World {
    notes: Arc<dyn Journal>,
    attempts: Arc<dyn Journal>,
}

impl World {
    fn new() -> Self {
        Self {
            notes: Arc::new(MemoryJournal::default()),
            attempts: Arc::new(MemoryJournal::default()),
        }
    }

    fn backend(&self, more: &str) -> Backend {
        let settings = config(&format!("vendor = \"Acme\", model = \"R1\", {more}")).unwrap();
        let desk = Arc::new(Desk::new(Arc::clone(&self.notes)));
        build_with(&settings, Arc::new(OneImage), Some(&desk), None).unwrap()
    }

    /// Goes on with the attempt, or begins it.
    async fn attempt(&self, backend: &Backend) -> Outcome {
        let record = self.attempts.load(backend.device()).unwrap();
        let start = record.map_or_else(
            || Start::Fresh(goal()),
            |bytes| Start::Resumed(AttemptRecord::from_bytes(&bytes).unwrap()),
        );
        let (reports, mut news) = mpsc::channel(64);
        let listening = tokio::spawn(async move { while news.recv().await.is_some() {} });
        let ended = run_attempt(backend, start, &self.attempts, &reports, &CancellationToken::new()).await;
        drop(reports);
        listening.await.unwrap();
        backend.over().await.unwrap();
        match ended.unwrap() {
            Ended::Over(outcome) => outcome,
            Ended::Interrupted => panic!("nobody interrupts it"),
        }
    }

    /// An attempt on a client of this manner; how it ended, and the client.
    async fn meets(&self, more: &str, manner: Manner) -> (Outcome, Client) {
        let backend = self.backend(more);
        let mut client = Client::new(manner);
        let outcome = {
            let living = client.lives(Arc::clone(backend.asking().unwrap()));
            tokio::select! {
                outcome = self.attempt(&backend) => outcome,
                () = living => unreachable!("it lives for ever"),
            }
        };
        (outcome, client)
    }
}

fn config(executor: &str) -> Result<crate::DeviceSettings, DeviceConfigError> {
    let text = format!("id = \"d1\"\ncomponent = \"host\"\nexecutor = {{ kind = \"ddi\", {executor} }}\n");
    let config: DeviceConfig = toml::from_str(&text).unwrap();
    config.check(std::path::Path::new("/"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Installs, restarts, confirms.
    Good,
    /// Installs and restarts, and never closes its action.
    Forgetful,
    /// Says that it went well and runs what it ran.
    Liar,
    /// Cannot install it.
    Unable,
    /// Installs, says so with all steps done, and never restarts.
    Waiting,
    /// Begins and never gets further; gives up when it is told to.
    Slow,
    /// The same, and does not listen.
    Stubborn,
}

/// What a client keeps over its restarts.
struct Client {
    manner: Manner,
    runs: &'static str,
    began: Option<String>,
    actions: Vec<String>,
    installations: u32,
}

impl Client {
    fn new(manner: Manner) -> Self {
        Self {
            manner,
            runs: OLD,
            began: None,
            actions: Vec::new(),
            installations: 0,
        }
    }

    async fn lives(&mut self, device: Arc<Device>) {
        loop {
            self.asks(&device).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// One poll.
    async fn asks(&mut self, device: &Device) {
        device.heard();
        let base = device.controller_base("http://n").await;
        let number = |link: &str| {
            let href = base["_links"][link]["href"].as_str()?;
            href.rsplit('/').next().map(str::to_owned)
        };
        if base["_links"]["configData"].is_object() {
            self.says_what_it_runs(device).await;
        }
        if let Some(action) = number("cancelAction")
            && self.manner != Manner::Stubborn
        {
            let id = action.parse().unwrap();
            device.cancel_action(id).await.unwrap();
            device
                .cancel_feedback(id, said("closed", "success", &Value::Null))
                .await
                .unwrap();
        }
        if let Some(action) = number("deploymentBase") {
            self.updates(device, &action).await;
        }
    }

    async fn says_what_it_runs(&self, device: &Device) {
        let body = json!({ "data": { "version": self.runs, "serial": 7 } }).to_string();
        device
            .config_data(ConfigData::parse(body.as_bytes()).unwrap())
            .await
            .unwrap();
    }

    async fn updates(&mut self, device: &Device, action: &str) {
        let id = action.parse().unwrap();
        let Ok(deployment) = device.deployment_base(id, "http://n").await else {
            return;
        };
        assert_eq!(
            deployment["deployment"]["chunks"][0]["artifacts"][0]["size"],
            IMAGE.len()
        );
        if self.actions.last().map(String::as_str) != Some(action) {
            self.actions.push(action.to_owned());
        }
        if self.began.as_deref() == Some(action) && self.manner != Manner::Good {
            return;
        }
        self.began = Some(action.to_owned());
        let none = Value::Null;
        device
            .feedback(id, said("proceeding", "none", &json!({ "cnt": 0, "of": 1 })))
            .await
            .ok();
        if matches!(self.manner, Manner::Slow | Manner::Stubborn) {
            return;
        }
        if self.manner == Manner::Unable {
            device.feedback(id, said("closed", "failure", &none)).await.unwrap();
            return;
        }
        if self.runs == OLD {
            drop(device.download(id).await);
            device.fetched(id).await.ok();
            self.installations += 1;
        }
        match self.manner {
            Manner::Good => {
                self.runs = NEW;
                device.feedback(id, said("closed", "success", &none)).await.ok();
            }
            Manner::Forgetful => {
                self.runs = NEW;
                self.says_what_it_runs(device).await;
            }
            Manner::Waiting => {
                device
                    .feedback(id, said("proceeding", "none", &json!({ "cnt": 1, "of": 1 })))
                    .await
                    .unwrap();
            }
            Manner::Liar => device.feedback(id, said("closed", "success", &none)).await.unwrap(),
            Manner::Unable | Manner::Slow | Manner::Stubborn => {}
        }
    }
}

fn said(execution: &str, finished: &str, progress: &Value) -> Feedback {
    let result = json!({ "finished": finished, "progress": progress });
    let body = json!({ "id": 1, "status": { "execution": execution, "result": result, "details": ["its words"] } });
    Feedback::parse(body.to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn a_device_that_asks_is_updated_and_believed_by_its_version_only() {
    for (manner, state, words) in [
        (Manner::Good, AttemptState::Success, ""),
        (Manner::Forgetful, AttemptState::Success, ""),
        (Manner::Liar, AttemptState::Quarantined, "says that it completed"),
        (Manner::Unable, AttemptState::Failed, "its words"),
        (
            Manner::Waiting,
            AttemptState::Quarantined,
            "the next restart may bring up 1.1.0",
        ),
        (Manner::Slow, AttemptState::TimedOut, "stalled"),
        (Manner::Stubborn, AttemptState::Quarantined, "stalled"),
    ] {
        let (outcome, client) = World::new().meets("poll_s = 1", manner).await;
        assert_eq!(outcome.state, state, "{manner:?}: {outcome:?}");
        assert!(outcome.reason.contains(words), "{manner:?}: {outcome:?}");
        assert_eq!(outcome.version.as_deref(), Some(client.runs), "{manner:?}");
        // What stalled, and could be ended, is tried once more.
        let offers = if manner == Manner::Slow { 2 } else { 1 };
        assert_eq!(client.actions.len(), offers, "{manner:?}: {:?}", client.actions);
    }
}

#[tokio::test]
async fn where_confirmations_decide_a_confirmation_does() {
    let more = "version_from = \"confirmation\", first_version = \"1.0.0\"";
    let (outcome, _) = World::new().meets(more, Manner::Good).await;
    assert_eq!(
        (outcome.state, outcome.version.as_deref()),
        (AttemptState::Success, Some(NEW))
    );
}

#[tokio::test]
async fn what_is_open_when_an_attempt_ends_is_withdrawn_and_stands_in_the_way() {
    let world = World::new();
    let (_, client) = world.meets("poll_s = 1", Manner::Waiting).await;
    let backend = world.backend("poll_s = 1");
    let device = backend.asking().unwrap();
    device.heard();
    let base = device.controller_base("http://n").await;
    let wanted = format!("http://n/cancelAction/{}", client.actions[0]);
    assert_eq!(base["_links"]["cancelAction"]["href"], wanted.as_str(), "{base}");
    assert!(base["_links"]["deploymentBase"].is_null(), "{base}");
    let goal = goal();
    let error = crate::DeviceBackend::stage(&backend, &goal.image, None)
        .await
        .unwrap_err();
    assert!(error.retry && error.reason.contains("has not yet let go"), "{error}");
}

/// A node that dies whenever it likes: the device is offered one action, and installs it once.
#[tokio::test]
async fn a_node_that_dies_while_a_device_updates_goes_on_where_it_was() {
    let mut killed = 0;
    for after in (0..60).map(|step| Duration::from_micros(400 * step)) {
        let world = World::new();
        let mut client = Client::new(Manner::Good);
        let mut lifetime = after;
        let outcome = loop {
            let backend = world.backend("poll_s = 1");
            let device = Arc::clone(backend.asking().unwrap());
            tokio::select! {
                biased;
                () = tokio::time::sleep(lifetime) => killed += 1,
                outcome = world.attempt(&backend) => break outcome,
                () = client.lives(device) => unreachable!("it lives for ever"),
            }
            lifetime += Duration::from_millis(2);
        };
        assert_eq!(outcome.state, AttemptState::Success, "after {after:?}: {outcome:?}");
        assert!(client.actions.len() <= 1, "after {after:?}: {:?}", client.actions);
        assert!(client.installations <= 1, "after {after:?}");
    }
    println!("killed {killed} times");
    assert!(killed > 60, "{killed}");
}

#[test]
fn configurations_that_cannot_work_are_refused_by_name() {
    let refused = |executor: &str, words: &str| {
        let error = config(executor).unwrap_err();
        let text = crate::backend::chain(&error);
        assert!(text.contains("device d1") && text.contains(words), "{text}");
    };
    let with = |more: &str| format!("vendor = \"Acme\", model = \"R1\", {more}");
    refused(&with("poll_s = 0"), "poll_s");
    refused(&with("poll_s = 86400"), "poll_s");
    refused(&with("controller_id = \"a/b\""), "controller_id");
    refused(&with("file_name = \"..\""), "file_name");
    refused(&with("version_from = \"confirmation\""), "first_version");
    refused(&with("first_version = \"1\""), "first_version");
    refused(&with("token_file = \"/no/such/file\""), "/no/such/file cannot be read");
    refused(&with("token_file = \"a\", token_env = \"B\""), "name one");
    refused(&with("token_env = \"PATH_THAT_IS_NOT_SET\""), "PATH_THAT_IS_NOT_SET");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "short\n").unwrap();
    let named = with(&format!("token_file = {file:?}"));
    refused(&named, "chmod 600");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    refused(&named, "shorter than 16");
    std::fs::write(&file, "long enough to be one\n").unwrap();
    let settings = config(&named).unwrap();
    assert!(!format!("{settings:?}").contains("long enough"), "{settings:?}");
}
