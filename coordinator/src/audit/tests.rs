use std::path::Path;

use firmesh_protocol::{
    api::AuditSeen,
    audit::{Event, LogCheck, verify_consistency, verify_inclusion},
    ids::{CampaignId, DeviceId, Sha256},
    report::{AttemptReport, AttemptState, PermitKind},
    trust::Envelope,
};
use sqlx::SqlitePool;

use super::*;
use crate::store::{Store, StoreError, Write};

fn at(seconds: i64) -> WallTime {
    WallTime::from_unix_seconds(seconds)
}

fn authority(folder: &Path) -> Arc<Authority> {
    Arc::new(Authority::load_or_create(folder, Vec::new(), at(0)).unwrap())
}

async fn open(folder: &Path) -> Result<Store, StoreError> {
    Store::open(&folder.join("db.sqlite"), authority(folder), at(1)).await
}

/// The tampered database, as somebody with the disk reaches it.
async fn tamper(folder: &Path, statements: &[&'static str]) {
    let url = format!("sqlite://{}", folder.join("db.sqlite").display());
    let outside = SqlitePool::connect(&url).await.unwrap();
    for statement in statements {
        sqlx::query(*statement).execute(&outside).await.unwrap();
    }
    outside.close().await;
}

fn report(sequence: u64, state: AttemptState) -> Write {
    let report = AttemptReport {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        device: DeviceId::new("d1").unwrap(),
        node: "n1".parse().unwrap(),
        sequence,
        state,
        reason: String::new(),
        version: None,
        failure: None,
        health: None,
        at: at(0),
    };
    let envelope = Envelope::sign("report", serde_json::to_vec(&report).unwrap(), []);
    Write::Report(Box::new(report), envelope)
}

async fn checkpoint(store: &Store, folder: &Path) -> Checkpoint {
    let note = store.audit_checkpoint().await.unwrap();
    let authority = authority(folder);
    let origin = log_origin(authority.ca_der());
    Checkpoint::open(note.as_bytes(), Some(&origin), &[authority.online_key().public()]).unwrap()
}

#[tokio::test]
async fn what_is_stored_is_logged_and_signed_for_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let writes = vec![
        Write::Metadata("1.root.json".to_owned(), b"root".to_vec()),
        Write::Metadata("timestamp.json".to_owned(), b"timestamp".to_vec()),
        report(1, AttemptState::Downloading),
        report(2, AttemptState::Success),
    ];
    store.commit(writes, at(7)).await.unwrap();
    // Signed anew, with nothing new in it.
    let renewed = vec![Write::Metadata("timestamp.json".to_owned(), b"later".to_vec())];
    store.commit(renewed, at(8)).await.unwrap();
    let signed = checkpoint(&store, folder.path()).await;
    assert_eq!((signed.size, signed.at), (4, at(7)));
    let mut check = LogCheck::new(vec![signed.clone()]);
    let mut kinds = Vec::new();
    for logged in store.audit_entries(0, 100).await.unwrap().items {
        kinds.push(check.push(&logged).unwrap().event.name());
    }
    check.finish().unwrap();
    assert_eq!(kinds, ["log", "metadata", "metadata", "result"]);
    store.close().await;
    let store = open(folder.path()).await.unwrap();
    assert_eq!(checkpoint(&store, folder.path()).await, signed);
}

#[tokio::test]
async fn a_change_that_fails_is_not_logged_and_the_log_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    store
        .commit(vec![report(1, AttemptState::Success)], at(1))
        .await
        .unwrap();
    let before = checkpoint(&store, folder.path()).await;
    tamper(
        folder.path(),
        &["CREATE TRIGGER refuse BEFORE INSERT ON audit_checkpoint BEGIN SELECT RAISE(FAIL, 'no'); END"],
    )
    .await;
    store
        .commit(vec![report(2, AttemptState::Failed)], at(2))
        .await
        .unwrap_err();
    assert_eq!(checkpoint(&store, folder.path()).await, before);
    tamper(folder.path(), &["DROP TRIGGER refuse"]).await;
    store
        .commit(vec![report(2, AttemptState::Failed)], at(2))
        .await
        .unwrap();
    assert_eq!(checkpoint(&store, folder.path()).await.size, before.size + 1);
}

#[tokio::test]
async fn proofs_over_several_tiles_verify_for_whoever_asks() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let mut seen = Vec::new();
    for batch in 0..7 {
        let writes = (0..97).map(|n| report(batch * 97 + n + 1, AttemptState::Success));
        store.commit(writes.collect(), at(1)).await.unwrap();
        seen.push(checkpoint(&store, folder.path()).await);
    }
    let last = seen.pop().unwrap();
    assert_eq!(last.size, 680);
    let entries = store.audit_entries(0, 1_000).await.unwrap().items;
    for index in [0, 1, 255, 256, 511, 512, 600, 679] {
        let path = store.audit_inclusion(index, last.size).await.unwrap();
        let leaf = entries[usize::try_from(index).unwrap()].leaf;
        verify_inclusion(index, last.size, &leaf, &path, &last.root).unwrap();
    }
    let asked = AuditSeen {
        size: seen[0].size,
        heard: vec![seen[3].size, last.size + 9],
        fork: None,
    };
    let news = store.audit_news(&asked).await.unwrap();
    let newest = (last.size, &last.root);
    verify_consistency((seen[0].size, &seen[0].root), newest, &news.consistency).unwrap();
    verify_consistency((seen[3].size, &seen[3].root), newest, &news.heard[0]).unwrap();
    assert_eq!(news.heard[1], []);
    assert!(store.audit_inclusion(680, 680).await.is_err());
}

/// What the coordinator signed is what it goes on with, or it does not go on.
#[tokio::test]
async fn a_log_that_was_changed_behind_its_back_is_refused_by_the_entry() {
    for (statement, code, index) in [
        (
            "UPDATE audit_entries SET entry = replace(entry, 'success', 'failed') WHERE idx = 5",
            "audit_entry_changed",
            Some(5),
        ),
        (
            "UPDATE audit_entries SET leaf = zeroblob(32) WHERE idx = 5",
            "audit_entry_changed",
            Some(5),
        ),
        (
            "DELETE FROM audit_entries WHERE idx = 5",
            "audit_entry_missing",
            Some(5),
        ),
        ("DELETE FROM audit_entries WHERE idx > 7", "audit_truncated", None),
        (
            "UPDATE audit_entries SET idx = CASE idx WHEN 5 THEN -6 ELSE -5 END WHERE idx IN (5, 6)",
            "audit_entry_missing",
            Some(0),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await.unwrap();
        let writes = (1..10).map(|sequence| report(sequence, AttemptState::Success));
        store.commit(writes.collect(), at(1)).await.unwrap();
        store.close().await;
        tamper(folder.path(), &[statement]).await;
        let error = open(folder.path()).await.unwrap_err();
        let StoreError::Audit(LogProblem::Changed(error)) = error else {
            panic!("{statement}: {error:?}");
        };
        assert_eq!((error.code(), error.index()), (code, index), "{statement}");
    }
}

#[tokio::test]
async fn a_log_without_its_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).await.unwrap().close().await;
    tamper(folder.path(), &["DELETE FROM audit_checkpoint"]).await;
    let error = open(folder.path()).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Audit(LogProblem::NoCheckpoint(1))),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_database_from_before_the_log_begins_it_with_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await.unwrap();
    let writes = vec![Write::Metadata("1.root.json".to_owned(), b"root".to_vec())];
    store.commit(writes, at(1)).await.unwrap();
    store.close().await;
    tamper(
        folder.path(),
        &["DELETE FROM audit_checkpoint", "DELETE FROM audit_entries"],
    )
    .await;
    let store = open(folder.path()).await.unwrap();
    let entries = store.audit_entries(0, 10).await.unwrap().items;
    let events: Vec<_> = entries
        .iter()
        .map(|logged| {
            firmesh_protocol::audit::Entry::from_bytes(logged.entry.as_bytes())
                .unwrap()
                .event
        })
        .collect();
    assert!(
        matches!(&events[..], [Event::Log { .. }, Event::Metadata { file }] if file == "1.root.json"),
        "{events:?}"
    );
}
