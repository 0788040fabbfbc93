use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use firmesh_executors_core::{Image, Observed, Rung, Seen, Slot, SlotsSeen, Staged};
use firmesh_protocol::{
    health::HealthSample,
    ids::{ArtifactId, Component, Sha256},
    manifest::{Artifact, Deadlines, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility},
    report::AttemptState,
};

use super::*;
use crate::journal::MemoryJournal;

#[tokio::test]
async fn nothing_is_done_to_a_device_whose_record_cannot_be_kept() {
    let device = Fake::default();
    let journal: Arc<dyn Journal> = Arc::new(BrokenAfter(AtomicU32::new(1)));
    let (reports, _news) = mpsc::channel(8);
    let error = run_attempt(
        &device,
        Start::Fresh(goal()),
        &journal,
        &reports,
        &CancellationToken::new(),
    )
    .await;
    assert!(matches!(&error, Err(RunError::Journal { .. })), "{error:?}");
    assert!(error.unwrap_err().retry());
    assert_eq!((device.looks.load(Relaxed), device.acts.load(Relaxed)), (1, 0));
}

#[tokio::test]
async fn an_act_that_hangs_is_given_up_and_the_attempt_ends_in_time() {
    let device = Fake::default();
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::default());
    let (reports, mut news) = mpsc::channel(64);
    let began = Instant::now();
    let ended = run_attempt(
        &device,
        Start::Fresh(goal()),
        &journal,
        &reports,
        &CancellationToken::new(),
    )
    .await;
    let Ok(Ended::Over(outcome)) = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(outcome.state, AttemptState::Failed);
    assert_eq!(outcome.reason, "staging failed 3 times: not done by its deadline");
    assert!(began.elapsed() <= Duration::from_secs(20), "took {:?}", began.elapsed());
    assert_eq!(news.recv().await.unwrap().report.state, AttemptState::Installing);
    let record = journal.load(&goal().device).unwrap().unwrap();
    assert_eq!(AttemptRecord::from_bytes(&record).unwrap().outcome(), Some(&outcome));
}

#[tokio::test]
async fn an_ended_record_is_reported_again_and_nothing_else_happens() {
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::default());
    let (reports, mut news) = mpsc::channel(64);
    let cancel = CancellationToken::new();
    let ended = run_attempt(&Fake::default(), Start::Fresh(goal()), &journal, &reports, &cancel)
        .await
        .unwrap();
    while news.try_recv().is_ok() {}
    let record = AttemptRecord::from_bytes(&journal.load(&goal().device).unwrap().unwrap()).unwrap();
    let untouched = Fake::default();
    assert_eq!(
        run_attempt(&untouched, Start::Resumed(record), &journal, &reports, &cancel)
            .await
            .unwrap(),
        ended
    );
    assert_eq!(untouched.looks.load(Relaxed), 0);
    assert_eq!(news.recv().await.unwrap().report.state, AttemptState::Failed);
}

/// A device that answers every look and never comes back from an act.
#[derive(Debug, Default)]
struct Fake {
    looks: AtomicU32,
    acts: AtomicU32,
}

impl Fake {
    async fn hang<T>(&self) -> T {
        self.acts.fetch_add(1, Relaxed);
        std::future::pending().await
    }
}

impl DeviceBackend for Fake {
    async fn observe(&self, _task: Option<&str>) -> Observed {
        self.looks.fetch_add(1, Relaxed);
        Observed::Answering(Box::new(Seen {
            vendor: "Acme".to_owned(),
            model: "R1".to_owned(),
            component: Component::new("host").unwrap(),
            version: Some("1.0.0".to_owned()),
            ready: true,
            boot_id: Some("1".to_owned()),
            staged: Staged::Nothing,
            task: None,
            slots: Some(SlotsSeen {
                running: Slot::A,
                saved: Slot::A,
            }),
            image_bytes_max: None,
            resets: vec![Rung::Warm],
            health: HealthSample::default(),
            clock_off_s: None,
        }))
    }

    async fn stage(&self, _image: &Image, _slot: Option<Slot>) -> Result<Option<String>, ActError> {
        self.hang().await
    }

    async fn activate(&self, _slot: Option<Slot>) -> Result<(), ActError> {
        self.hang().await
    }

    async fn reset(&self, _rung: Rung) -> Result<(), ActError> {
        self.hang().await
    }

    async fn confirm(&self) -> Result<(), ActError> {
        self.hang().await
    }

    async fn abort(&self, _task: Option<&str>) -> Result<(), ActError> {
        self.hang().await
    }
}

/// Keeps so many records and no more.
#[derive(Debug)]
struct BrokenAfter(AtomicU32);

impl Journal for BrokenAfter {
    fn save(&self, _device: &DeviceId, _record: &[u8]) -> Result<(), JournalError> {
        match self.0.try_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_left) => Ok(()),
            Err(_none_left) => Err(JournalError {
                operation: "save",
                source: "the disk is full".into(),
            }),
        }
    }

    fn load(&self, _device: &DeviceId) -> Result<Option<Vec<u8>>, JournalError> {
        Ok(None)
    }

    fn list(&self) -> Result<Vec<DeviceId>, JournalError> {
        Ok(Vec::new())
    }
}

fn goal() -> Goal {
    let artifact = Artifact {
        id: ArtifactId::of(b"new"),
        sha256: Sha256::of(b"new"),
        length: 3,
    };
    Goal {
        device: DeviceId::new("d1").unwrap(),
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        image: Release {
            target: "firmware/r1.bin".to_owned(),
            info: ReleaseInfo {
                schema: RELEASE_SCHEMA.to_owned(),
                blake3: artifact.id,
                vendor: "Acme".to_owned(),
                models: vec!["R1".to_owned()],
                component: Component::new("host").unwrap(),
                version: "1.1.0".to_owned(),
                security_epoch: 1,
                from_versions: Vec::new(),
                reversibility: Reversibility::Reversible,
                provenance: None,
                version_scheme: None,
                min_from: None,
                requires: Vec::new(),
                conflicts: Vec::new(),
            },
            artifact,
        },
        security_epoch_min: 0,
        deadlines: Deadlines {
            attempt_s: 2,
            back_s: 1,
        },
        health: None,
        answers_min: 3,
        answers_apart_ms: None,
        step: None,
        pace_ms: 10,
    }
}
