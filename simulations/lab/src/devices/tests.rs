//! The executors against the emulated devices: real HTTPS, real files, no node.

mod faulty;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::State, routing::get};
use axum_server::tls_rustls::RustlsConfig;
use firmesh_executors::redfish::{
    BiosSettingsConfig,
    search::{Search, discover},
};
use firmesh_executors::{
    AbSlotConfig, Backend, Ended, ExecutorConfig, Goal, ImageError, ImageReader, ImageSource, Journal, MemoryJournal,
    News, Outcome, RedfishConfig, Start, UpdateMethod, build, run_attempt,
};
use firmesh_executors_core::{AttemptRecord, Slot};
use firmesh_protocol::{
    ids::{ArtifactId, CampaignId, Component, DeviceId, Sha256},
    labels::Labels,
    manifest::{Artifact, Deadlines, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility},
    report::{AttemptState, PermitKind},
};
use firmesh_simulations::device::{EventKind, Misbehaviour};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    BootLoader, CatalogueConfig, DeviceConfig, DeviceKind, DevicesConfig, EndpointKind, Endpoints,
    control::{DeviceEvent, DeviceTruth},
    tls,
};

const OLD: &str = "1.0.0";
const NEW: &str = "1.1.0";

#[tokio::test]
async fn a_bmc_pulls_the_image_over_https_and_runs_it_after_its_reset() {
    let lab = Lab::start(&[bmc("bmc")]).await;
    let outcome = lab.attempt("d", UpdateMethod::Pull, PermitKind::Update, NEW).await;
    assert_eq!(
        (outcome.state, outcome.version.as_deref()),
        (AttemptState::Success, Some(NEW)),
        "{outcome:?}"
    );
    assert_eq!(lab.truth("d").await.version.as_deref(), Some(NEW));
    let received = EventKind::ImageReceived {
        sha256: Sha256::of(&image(NEW)),
        length: image(NEW).len() as u64,
    };
    assert!(lab.events("d").await.contains(&received));
    let back = lab.attempt("d", UpdateMethod::Pull, PermitKind::Rollback, OLD).await;
    assert_eq!(
        (back.state, back.version.as_deref()),
        (AttemptState::RolledBack, Some(OLD)),
        "{back:?}"
    );
}

#[tokio::test]
async fn a_pushed_bios_image_runs_after_a_reset_of_the_system() {
    let lab = Lab::start(&[bmc("bios")]).await;
    let outcome = lab.attempt("d", UpdateMethod::Push, PermitKind::Update, NEW).await;
    assert_eq!(
        (outcome.state, outcome.version.as_deref()),
        (AttemptState::Success, Some(NEW)),
        "{outcome:?}"
    );
    assert!(lab.events("d").await.contains(&EventKind::Reset {
        target: "system".to_owned()
    }));
}

#[tokio::test]
async fn every_misbehaving_bmc_ends_as_it_should() {
    for (misbehaviour, state, reason) in [
        (Misbehaviour::Lie, AttemptState::Failed, "says it completed, yet"),
        (Misbehaviour::FailUpdate, AttemptState::Failed, "could not be verified"),
        (Misbehaviour::Stall, AttemptState::TimedOut, "stalled at 40 %"),
        (Misbehaviour::NeverBack, AttemptState::Quarantined, "did not come back"),
    ] {
        let lab = Lab::start(&[DeviceConfig {
            misbehaviour: Some(misbehaviour),
            ..bmc("bmc")
        }])
        .await;
        let outcome = lab.attempt("d", UpdateMethod::Auto, PermitKind::Update, NEW).await;
        assert_eq!(outcome.state, state, "{outcome:?}");
        assert!(outcome.reason.contains(reason), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_host_is_updated_by_trial_and_goes_back_without_staging() {
    let lab = Lab::start(&[host()]).await;
    let outcome = lab.attempt("d", UpdateMethod::Auto, PermitKind::Update, NEW).await;
    assert_eq!(
        (outcome.state, outcome.version.as_deref()),
        (AttemptState::Success, Some(NEW)),
        "{outcome:?}"
    );
    assert_eq!(lab.truth("d").await.slot, Some(Slot::B));
    let back = lab.attempt("d", UpdateMethod::Auto, PermitKind::Rollback, OLD).await;
    assert_eq!(
        (back.state, back.version.as_deref()),
        (AttemptState::RolledBack, Some(OLD)),
        "{back:?}"
    );
    assert_eq!(lab.truth("d").await.slot, Some(Slot::A));
}

#[tokio::test]
async fn misbehaving_hosts_fall_back_or_are_quarantined() {
    for (misbehaviour, state) in [
        (Misbehaviour::FailUpdate, AttemptState::Failed),
        (Misbehaviour::NeverBack, AttemptState::Quarantined),
    ] {
        let lab = Lab::start(&[DeviceConfig {
            misbehaviour: Some(misbehaviour),
            ..host()
        }])
        .await;
        let outcome = lab.attempt("d", UpdateMethod::Auto, PermitKind::Update, NEW).await;
        assert_eq!(outcome.state, state, "{outcome:?}");
    }
}

#[tokio::test]
async fn an_image_for_another_model_reaches_no_device() {
    let lab = Lab::start(&[DeviceConfig {
        model: "R9".to_owned(),
        ..bmc("bmc")
    }])
    .await;
    let outcome = lab.attempt("d", UpdateMethod::Auto, PermitKind::Update, NEW).await;
    assert_eq!(outcome.state, AttemptState::Failed);
    assert!(outcome.reason.contains("wrong model"), "{outcome:?}");
    assert_eq!(lab.events("d").await, []);
}

#[tokio::test]
async fn an_interrupted_attempt_resumes_from_its_record_and_flashes_once() {
    let slow = DeviceKind::Bmc {
        listen: None,
        flash_ms: 1_000,
    };
    let lab = Lab::start(&[DeviceConfig {
        kind: slow,
        ..bmc("bmc")
    }])
    .await;
    let (backend, journal) = (lab.backend("d", UpdateMethod::Pull), Arc::new(MemoryJournal::default()));
    let cancel = CancellationToken::new();
    let (reports, mut news) = mpsc::channel(64);
    let killer = cancel.clone();
    let kept: Arc<dyn Journal> = journal.clone();
    let goal = lab.goal("d", PermitKind::Update, NEW);
    let attempt = tokio::spawn(async move {
        run_attempt(&backend, Start::Fresh(goal), &kept, &reports, &cancel)
            .await
            .unwrap()
    });
    assert_eq!(news.recv().await.unwrap().report.state, AttemptState::Installing);
    lab.until("d", |events| events.contains(&EventKind::UpdateBegun)).await;
    killer.cancel();
    assert_eq!(attempt.await.unwrap(), Ended::Interrupted);
    let record = journal.load(&DeviceId::new("d").unwrap()).unwrap().unwrap();
    let record = AttemptRecord::from_bytes(&record).unwrap();
    let outcome = lab.run("d", UpdateMethod::Pull, Start::Resumed(record)).await;
    assert_eq!(outcome.state, AttemptState::Success, "{outcome:?}");
    let begun = lab
        .events("d")
        .await
        .into_iter()
        .filter(|event| *event == EventKind::UpdateBegun)
        .count();
    assert_eq!(begun, 1);
}

#[tokio::test]
async fn a_restarted_emulator_goes_on_where_it_was() {
    let mut lab = Lab::start(&[
        bmc("bmc"),
        DeviceConfig {
            id: DeviceId::new("h").unwrap(),
            ..host()
        },
    ])
    .await;
    lab.attempt("d", UpdateMethod::Pull, PermitKind::Update, NEW).await;
    lab.attempt("h", UpdateMethod::Pull, PermitKind::Update, NEW).await;
    let before = lab.endpoints();
    lab.stop_emulator().await;
    lab.start_emulator().await;
    let after = lab.endpoints();
    assert_eq!(before.control, after.control);
    for id in ["d", "h"] {
        assert_eq!(lab.truth(id).await.version.as_deref(), Some(NEW), "{id}");
    }
}

#[tokio::test]
async fn a_search_finds_the_service_and_its_certificate() {
    let lab = Lab::start(&[bmc("bmc")]).await;
    let EndpointKind::Bmc { url } = &lab.endpoints().devices[&DeviceId::new("d").unwrap()] else {
        panic!("a BMC has a URL");
    };
    let port = url.rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    let search = |addresses: &str| Search {
        addresses: vec![addresses.parse().unwrap()],
        port,
        per_second: 100.try_into().unwrap(),
    };
    let mut found = Vec::new();
    // Of the addresses of this machine only the first one has a service at this port.
    let asked = discover(&search("127.0.0.1-127.0.0.9"), |one| found.push(one))
        .await
        .unwrap();
    assert_eq!((asked, found.len()), (9, 1), "{found:?}");
    assert_eq!(
        (found[0].redfish.as_str(), &found[0].url),
        ("1.15.0", &format!("https://127.0.0.1:{port}"))
    );
    let pem = std::fs::read(lab.dir.path().join("state/bmc.pem")).unwrap();
    let shown = CertificateDer::from_pem_slice(&pem).unwrap();
    let kept = CertificateDer::from_pem_slice(found[0].certificate_pem().as_bytes()).unwrap();
    assert_eq!(
        (&kept, found[0].certificate_sha256.as_str()),
        (&shown, Sha256::of(&shown).to_string().as_str())
    );
}

fn document(version: &str, attributes: &serde_json::Value) -> Vec<u8> {
    let document =
        serde_json::json!({ "schema": "firmesh-bios-settings/1", "version": version, "attributes": attributes });
    document.to_string().into_bytes()
}

impl Lab {
    /// Brings a document of BIOS settings to `d`, which is recognised by the one of the old version.
    async fn settle(&self, kind: PermitKind, version: &str, bytes: &[u8]) -> Outcome {
        let images = Arc::new(Images {
            url: String::new(),
            held: [(ArtifactId::of(bytes), bytes.to_vec())].into(),
        });
        let known = serde_json::json!({ "BootMode": "LegacyBoot", "NumCores": 4 });
        std::fs::write(self.dir.path().join("old.json"), document(OLD, &known)).unwrap();
        let bios = BiosSettingsConfig {
            work_dir: PathBuf::from("bios"),
            documents: vec![PathBuf::from("old.json")],
        };
        let backend = self.backend_of("d", UpdateMethod::Auto, Some(bios), images);
        self.run_on(backend, Start::Fresh(self.goal_of("d", kind, version, bytes)))
            .await
    }
}

#[tokio::test]
async fn bios_settings_are_applied_by_a_reset_read_back_and_taken_back() {
    let lab = Lab::start(&[bmc("bios-settings")]).await;
    let old = document(OLD, &serde_json::json!({ "BootMode": "LegacyBoot", "NumCores": 4 }));
    let new = document(NEW, &serde_json::json!({ "BootMode": "Uefi", "NumCores": 8 }));
    let outcome = lab.settle(PermitKind::Update, NEW, &new).await;
    assert_eq!(
        (outcome.state, outcome.version.as_deref()),
        (AttemptState::Success, Some(NEW)),
        "{outcome:?}"
    );
    let resets = |events: &[EventKind]| {
        events
            .iter()
            .filter(|event| matches!(event, EventKind::Reset { .. }))
            .count()
    };
    assert_eq!(resets(&lab.events("d").await), 1);
    let back = lab.settle(PermitKind::Rollback, OLD, &old).await;
    assert_eq!(
        (back.state, back.version.as_deref()),
        (AttemptState::RolledBack, Some(OLD)),
        "{back:?}"
    );
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_by_name_and_nothing_is_written() {
    let lab = Lab::start(&[bmc("bios-settings")]).await;
    for (attributes, says) in [
        (serde_json::json!({ "NumCores": 8, "Fans": "Fast" }), "Fans"),
        (
            serde_json::json!({ "NumCores": 8, "SystemUuid": "another" }),
            "SystemUuid",
        ),
        (serde_json::json!({ "QuietBoot": false, "NumCores": 65 }), "NumCores"),
        (
            serde_json::json!({ "QuietBoot": false, "BootMode": "Floppy" }),
            "BootMode",
        ),
    ] {
        let outcome = lab.settle(PermitKind::Update, NEW, &document(NEW, &attributes)).await;
        assert_eq!(
            (outcome.state, outcome.version.as_deref()),
            (AttemptState::Failed, Some(OLD)),
            "{outcome:?}"
        );
        assert!(outcome.reason.contains(says), "{outcome:?}");
    }
    assert_eq!(lab.events("d").await, [], "no reset was needed");
}

/// A BIOS that forgets what it was told is not believed to run it.
#[tokio::test]
async fn settings_that_do_not_hold_after_the_reset_have_failed() {
    let lab = Lab::start(&[DeviceConfig {
        misbehaviour: Some(Misbehaviour::Lie),
        ..bmc("bios-settings")
    }])
    .await;
    let new = document(NEW, &serde_json::json!({ "BootMode": "Uefi", "NumCores": 8 }));
    let outcome = lab.settle(PermitKind::Update, NEW, &new).await;
    assert_eq!(
        (outcome.state, outcome.version.as_deref()),
        (AttemptState::Failed, Some(OLD)),
        "{outcome:?}"
    );
}

fn bmc(component: &str) -> DeviceConfig {
    DeviceConfig {
        id: DeviceId::new("d").unwrap(),
        vendor: "Acme".to_owned(),
        model: "R1".to_owned(),
        component: Component::new(component).unwrap(),
        version: OLD.to_owned(),
        boot_ms: 100,
        misbehaviour: None,
        kind: DeviceKind::Bmc {
            listen: None,
            flash_ms: 50,
        },
    }
}

fn host() -> DeviceConfig {
    DeviceConfig {
        kind: DeviceKind::Host {
            dir: None,
            image: Some(PathBuf::from("old.bin")),
            boot_loader: BootLoader::Grub,
        },
        ..bmc("host")
    }
}

/// Three and a bit copies of what is copied at once.
fn image(version: &str) -> Vec<u8> {
    version.bytes().cycle().take((3 << 20) + 17).collect()
}

/// An emulator, and a server of images that stands in for the node's.
struct Lab {
    dir: tempfile::TempDir,
    config: DevicesConfig,
    images: Arc<Images>,
    http: reqwest::Client,
    emulator: (JoinHandle<anyhow::Result<()>>, CancellationToken),
}

#[derive(Debug)]
struct Images {
    url: String,
    held: BTreeMap<ArtifactId, Vec<u8>>,
}

impl ImageSource for Images {
    fn open(&self, artifact: ArtifactId) -> futures_util::future::BoxFuture<'_, Result<ImageReader, ImageError>> {
        let bytes = self.held[&artifact].clone();
        Box::pin(async move { Ok(Box::pin(std::io::Cursor::new(bytes)) as ImageReader) })
    }

    fn url(&self, artifact: ArtifactId) -> String {
        format!("{}/{artifact}", self.url)
    }
}

impl Lab {
    async fn start(devices: &[DeviceConfig]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let held: BTreeMap<_, _> = [OLD, NEW].map(|v| (ArtifactId::of(&image(v)), image(v))).into();
        std::fs::write(dir.path().join("old.bin"), image(OLD)).unwrap();
        std::fs::write(dir.path().join("password"), "secret\n").unwrap();
        let images = Arc::new(Images {
            url: serve_images(dir.path(), held.clone()),
            held,
        });
        let catalogue = [OLD, NEW].map(|version| CatalogueConfig {
            sha256: Sha256::of(&image(version)),
            version: version.to_owned(),
            model: "R1".to_owned(),
        });
        let config = DevicesConfig {
            state: PathBuf::from("state"),
            control: None,
            pull_ca_file: Some(PathBuf::from("node/bmc-ca.pem")),
            tls: None,
            username: "admin".to_owned(),
            password: "secret".to_owned(),
            catalogue: catalogue.to_vec(),
            devices: devices.to_vec(),
        };
        // The configuration survives being written down.
        let config: DevicesConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        let emulator = (tokio::spawn(async { Ok(()) }), CancellationToken::new());
        let http = super::bmc::pull_client(&config, dir.path()).unwrap();
        let mut lab = Self {
            dir,
            config,
            images,
            http,
            emulator,
        };
        lab.start_emulator().await;
        lab
    }

    async fn start_emulator(&mut self) {
        let ready = self.dir.path().join("state/endpoints.json");
        // A second start is ready when the file is written anew.
        if ready.exists() {
            std::fs::rename(&ready, ready.with_extension("last")).unwrap();
            std::fs::copy(ready.with_extension("last"), &ready).unwrap();
            // Clocks of files stand still for milliseconds, and an emulator starts in less.
            let old = std::fs::File::options().write(true).open(&ready).unwrap();
            old.set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let written = || std::fs::metadata(&ready).and_then(|file| file.modified()).ok();
        let before = written();
        let (config, base, cancel) = (
            self.config.clone(),
            self.dir.path().to_owned(),
            CancellationToken::new(),
        );
        let stop = cancel.clone();
        let running = tokio::spawn(async move { super::run(config, &base, cancel).await });
        self.emulator = (running, stop);
        eventually(async || written() != before || self.emulator.0.is_finished()).await;
        assert!(!self.emulator.0.is_finished(), "the emulator ended");
        for device in &self.config.devices {
            eventually(async || self.truth(device.id.as_str()).await.up).await;
        }
    }

    async fn stop_emulator(&mut self) {
        self.emulator.1.cancel();
        (&mut self.emulator.0).await.unwrap().unwrap();
    }

    fn endpoints(&self) -> Endpoints {
        Endpoints::load(&self.dir.path().join("state")).unwrap()
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> T {
        let url = format!("{}{path}", self.endpoints().control);
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    async fn truth(&self, id: &str) -> DeviceTruth {
        let devices: Vec<DeviceTruth> = self.get("/devices").await;
        devices.into_iter().find(|device| device.id.as_str() == id).unwrap()
    }

    async fn events(&self, id: &str) -> Vec<EventKind> {
        let events: Vec<DeviceEvent> = self.get("/events").await;
        events
            .into_iter()
            .filter(|event| event.device.as_str() == id)
            .map(|event| event.event.kind)
            .collect()
    }

    async fn until(&self, id: &str, condition: impl Fn(&[EventKind]) -> bool) {
        eventually(async || condition(&self.events(id).await)).await;
    }

    async fn attempt(&self, id: &str, update: UpdateMethod, kind: PermitKind, version: &str) -> Outcome {
        self.run(id, update, Start::Fresh(self.goal(id, kind, version))).await
    }

    async fn run(&self, id: &str, update: UpdateMethod, start: Start) -> Outcome {
        self.run_on(self.backend(id, update), start).await
    }

    async fn run_on(&self, backend: Backend, start: Start) -> Outcome {
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::default());
        let (reports, mut news) = mpsc::channel::<News>(64);
        let ended = run_attempt(&backend, start, &journal, &reports, &CancellationToken::new())
            .await
            .unwrap();
        backend.close().await;
        let Ended::Over(outcome) = ended else {
            panic!("interrupted")
        };
        let mut last = None;
        while let Ok(news) = news.try_recv() {
            last = Some(news.report.state);
        }
        assert_eq!(last, Some(outcome.state), "the last report is not the outcome");
        outcome
    }

    fn backend(&self, id: &str, update: UpdateMethod) -> Backend {
        self.backend_of(id, update, None, self.images.clone())
    }

    fn backend_of(
        &self,
        id: &str,
        update: UpdateMethod,
        bios_settings: Option<BiosSettingsConfig>,
        images: Arc<Images>,
    ) -> Backend {
        let device = self
            .config
            .devices
            .iter()
            .find(|device| device.id.as_str() == id)
            .unwrap();
        let endpoints = self.endpoints();
        let executor = match &endpoints.devices[&device.id] {
            EndpointKind::Bmc { url } => ExecutorConfig::Redfish(RedfishConfig {
                url: url.clone(),
                username: "admin".to_owned(),
                password_file: Some(PathBuf::from("password")),
                password_env: None,
                ca_file: endpoints.ca_file.clone(),
                update,
                ac_reset: true,
                bios_settings,
                ..RedfishConfig::default()
            }),
            EndpointKind::Host { dir } => ExecutorConfig::AbSlot(AbSlotConfig {
                slot_a: dir.join("slot_a"),
                slot_b: dir.join("slot_b"),
                env_file: Some(dir.join("grubenv")),
                fw_env_config: None,
                status_file: dir.join("status.json"),
                health_file: None,
                reset_command: vec!["touch".to_owned(), dir.join("reset.request").display().to_string()],
                vendor: device.vendor.clone(),
                model: device.model.clone(),
            }),
        };
        let written = firmesh_executors::DeviceConfig {
            id: device.id.clone(),
            component: device.component.clone(),
            labels: Labels::default(),
            answers_min: None,
            answers_apart_s: None,
            host: None,
            executor,
        };
        build(&written.check(self.dir.path()).unwrap(), images).unwrap()
    }

    fn goal(&self, id: &str, kind: PermitKind, version: &str) -> Goal {
        self.goal_of(id, kind, version, &image(version))
    }

    fn goal_of(&self, id: &str, kind: PermitKind, version: &str, bytes: &[u8]) -> Goal {
        let device = self
            .config
            .devices
            .iter()
            .find(|device| device.id.as_str() == id)
            .unwrap();
        let artifact = Artifact {
            id: ArtifactId::of(bytes),
            sha256: Sha256::of(bytes),
            length: bytes.len() as u64,
        };
        let info = ReleaseInfo {
            schema: RELEASE_SCHEMA.to_owned(),
            blake3: artifact.id,
            vendor: "Acme".to_owned(),
            models: vec!["R1".to_owned()],
            component: device.component.clone(),
            version: version.to_owned(),
            security_epoch: 1,
            from_versions: Vec::new(),
            reversibility: Reversibility::Reversible,
            provenance: None,
            version_scheme: None,
            min_from: None,
            requires: Vec::new(),
            conflicts: Vec::new(),
        };
        Goal {
            device: device.id.clone(),
            campaign: CampaignId::new("spring").unwrap(),
            manifest_sha256: Sha256::of(b"manifest"),
            wave: 0,
            kind,
            permit_sequence: 1,
            image: Release {
                target: format!("firmware/{version}.bin"),
                artifact,
                info,
            },
            security_epoch_min: 0,
            deadlines: match device.misbehaviour {
                Some(Misbehaviour::Stall) => Deadlines {
                    attempt_s: 16,
                    back_s: 4,
                },
                Some(Misbehaviour::NeverBack) => Deadlines {
                    attempt_s: 60,
                    back_s: 3,
                },
                _ => Deadlines {
                    attempt_s: 60,
                    back_s: 20,
                },
            },
            health: None,
            answers_min: 3,
            answers_apart_ms: None,
            step: None,
            pace_ms: 30,
        }
    }
}

/// Serves images over HTTPS with a certificate of its own CA, as a node does; answers the server's root.
fn serve_images(dir: &Path, held: BTreeMap<ArtifactId, Vec<u8>>) -> String {
    let state = dir.join("node");
    std::fs::create_dir(&state).unwrap();
    let config = tls::server(&None, dir, &state, &mut Endpoints::default()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let image = async |State(held): State<Arc<BTreeMap<ArtifactId, Vec<u8>>>>, id: axum::extract::Path<ArtifactId>| {
        held[&id].clone()
    };
    let router = Router::new().route("/{id}", get(image)).with_state(Arc::new(held));
    let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(config)).unwrap();
    tokio::spawn(server.serve(router.into_make_service()));
    url
}

/// Waits for a condition, not for a time.
async fn eventually(condition: impl AsyncFn() -> bool) {
    let patience = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), patience)
        .await
        .expect("it never came true");
}
