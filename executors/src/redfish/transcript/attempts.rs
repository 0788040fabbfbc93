//! Whole attempts at BMCs that others emulate, recorded once and run again without them: the attempt machine ends the same.

use std::{path::PathBuf, sync::Arc};

use firmesh_executors_core::{Goal, Outcome};
use firmesh_protocol::{
    ids::{CampaignId, Sha256},
    manifest::Deadlines,
    report::{AttemptState, PermitKind},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    super::{RedfishBackend, tests::OneImage},
    *,
};
use crate::{Ended, Journal, MemoryJournal, Start, run_attempt};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts")
}

fn goal(device: &str, image: Image) -> Goal {
    Goal {
        device: DeviceId::new(device).unwrap(),
        campaign: CampaignId::new("recorded").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        image,
        step: None,
        security_epoch_min: 0,
        deadlines: Deadlines {
            attempt_s: 60,
            back_s: 1,
        },
        health: None,
        answers_min: 2,
        answers_apart_ms: Some(10),
        pace_ms: 50,
    }
}

async fn attempt(backend: &RedfishBackend, goal: Goal) -> Outcome {
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::default());
    let (reports, mut news) = mpsc::channel(64);
    let passing = tokio::spawn(async move { while news.recv().await.is_some() {} });
    let cancel = CancellationToken::new();
    let ended = run_attempt(backend, Start::Fresh(goal), &journal, &reports, &cancel).await;
    drop(reports);
    passing.await.unwrap();
    match ended.unwrap() {
        Ended::Over(outcome) => outcome,
        Ended::Interrupted => panic!("nobody interrupted it"),
    }
}

/// fwupd's mock says of every update that it is completed, and its versions never change; of its faces, each is spoken to in the
/// dialect of its maker.
#[tokio::test]
async fn recorded_attempts_end_the_same_without_their_bmcs() {
    const LIE: &str = "the update task says it completed, yet the device runs";
    for (name, words) in [
        ("generic", LIE),
        ("dell", LIE),
        ("hpe", LIE),
        ("smc", LIE),
        ("unlicensed", "the BMC has no licence for this, it needs SFT-OOB-LIC"),
        ("sushy", "offers no way to take the image"),
    ] {
        let transcript = Transcript::read(&folder().join(format!("{name}.jsonl"))).unwrap();
        let image = transcript.image().unwrap().clone();
        let backend = RedfishBackend::replay(&transcript, Arc::new(OneImage(b"hello"))).unwrap();
        let outcome = attempt(&backend, goal(name, image)).await;
        assert_ne!(outcome.state, AttemptState::Success, "{name}");
        assert!(outcome.reason.contains(words), "{name}: {}", outcome.reason);
        let (orders, given) = backend.orders_replayed().unwrap();
        assert_eq!(given, orders, "{name}: {}", outcome.reason);
    }
}
