use firmesh_protocol::{
    api::AuditSeen,
    audit::{Event, LogCheck, verify_consistency, verify_inclusion},
    ids::{CampaignId, DeviceId, Sha256},
    report::{AttemptReport, AttemptState, PermitKind},
    trust::Envelope,
};

use super::*;
use crate::store::{
    Store, StoreError, Write,
    testing::{TestDatabase, on_both_databases},
};

on_both_databases!(
    what_is_stored_is_logged_and_signed_for_over_a_restart,
    a_change_that_fails_is_not_logged_and_the_log_goes_on,
    proofs_over_several_tiles_verify_for_whoever_asks,
    the_beginning_of_a_long_log_is_read_after_the_start,
    whoever_goes_away_in_the_midst_of_a_write_leaves_the_log_whole,
    a_log_without_its_checkpoint_is_refused,
    a_database_from_before_the_log_begins_it_with_what_it_has,
);

fn at(seconds: i64) -> WallTime {
    WallTime::from_unix_seconds(seconds)
}

fn report(sequence: u64, state: AttemptState) -> Write {
    let report = AttemptReport {
        campaign: CampaignId::new("spring").unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        attempt: 1,
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

async fn checkpoint(store: &Store, database: &TestDatabase) -> Checkpoint {
    let note = store.audit_checkpoint().await.unwrap();
    let authority = database.authority();
    let origin = log_origin(authority.ca_der());
    Checkpoint::open(note.as_bytes(), Some(&origin), &[authority.online_key().public()]).unwrap()
}

async fn what_is_stored_is_logged_and_signed_for_over_a_restart(database: TestDatabase) {
    let store = database.open(at(1)).await.unwrap();
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
    let signed = checkpoint(&store, &database).await;
    assert_eq!((signed.size, signed.at), (4, at(7)));
    let mut check = LogCheck::new(vec![signed.clone()]);
    let mut kinds = Vec::new();
    for logged in store.audit_entries(0, 100).await.unwrap().items {
        kinds.push(check.push(&logged).unwrap().event.name());
    }
    check.finish().unwrap();
    assert_eq!(kinds, ["log", "metadata", "metadata", "result"]);
    store.close().await;
    let store = database.open(at(1)).await.unwrap();
    assert_eq!(checkpoint(&store, &database).await, signed);
}

async fn a_change_that_fails_is_not_logged_and_the_log_goes_on(database: TestDatabase) {
    let store = database.open(at(1)).await.unwrap();
    store
        .commit(vec![report(1, AttemptState::Success)], at(1))
        .await
        .unwrap();
    let before = checkpoint(&store, &database).await;
    database.refuse_inserts("audit_checkpoint").await;
    store
        .commit(vec![report(2, AttemptState::Failed)], at(2))
        .await
        .unwrap_err();
    assert_eq!(checkpoint(&store, &database).await, before);
    database.take_inserts_again("audit_checkpoint").await;
    store
        .commit(vec![report(2, AttemptState::Failed)], at(2))
        .await
        .unwrap();
    assert_eq!(checkpoint(&store, &database).await.size, before.size + 1);
}

async fn proofs_over_several_tiles_verify_for_whoever_asks(database: TestDatabase) {
    let store = database.open(at(1)).await.unwrap();
    let mut seen = Vec::new();
    for batch in 0..7 {
        let writes = (0..97).map(|n| report(batch * 97 + n + 1, AttemptState::Success));
        store.commit(writes.collect(), at(1)).await.unwrap();
        seen.push(checkpoint(&store, &database).await);
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
    changes_are_found(TestDatabase::file).await;
}

#[tokio::test]
async fn a_log_that_was_changed_on_the_server_is_refused_by_the_entry() {
    changes_are_found(TestDatabase::server).await;
}

async fn changes_are_found(make: fn() -> TestDatabase) {
    for (statement, code, index) in [
        (
            "UPDATE audit_entries SET entry = replace(entry, 'success', 'failed') WHERE idx = 5",
            "audit_entry_changed",
            Some(5),
        ),
        (
            "UPDATE audit_entries SET leaf = substr(leaf, 2) WHERE idx = 5",
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
        let database = make();
        let store = database.open(at(1)).await.unwrap();
        let writes = (1..10).map(|sequence| report(sequence, AttemptState::Success));
        store.commit(writes.collect(), at(1)).await.unwrap();
        store.close().await;
        database.run(statement).await;
        let error = database.open(at(1)).await.unwrap_err();
        let StoreError::Audit(LogProblem::Changed(error)) = error else {
            panic!("{statement}: {error:?}");
        };
        assert_eq!((error.code(), error.index()), (code, index), "{statement}");
    }
}

/// A client that hangs up ends its handler, at any point: once the log in memory stayed behind the one in the database then, and
/// nothing was ever written again.
async fn whoever_goes_away_in_the_midst_of_a_write_leaves_the_log_whole(database: TestDatabase) {
    use std::{future::poll_fn, pin::pin, task::Poll};

    let store = database.open(at(1)).await.unwrap();
    for polls in 1..60 {
        let event = Event::Change {
            subject: "group".to_owned(),
            name: polls.to_string(),
            change: "made".to_owned(),
        };
        let mut left = polls;
        let mut writing = pin!(store.log_event(event.clone(), at(1)));
        let gone = poll_fn(|context| match writing.as_mut().poll(context) {
            Poll::Pending if left > 1 => {
                left -= 1;
                Poll::Pending
            }
            _ => Poll::Ready(()),
        });
        gone.await;
        store.log_event(event, at(2)).await.unwrap();
    }
    let signed = checkpoint(&store, &database).await;
    store.close().await;
    let store = database.open(at(1)).await.unwrap();
    assert_eq!(checkpoint(&store, &database).await, signed);
}

/// A long log is not read to its beginning at a start, but soon after: what was changed there is found then.
async fn the_beginning_of_a_long_log_is_read_after_the_start(database: TestDatabase) {
    let store = database.open(at(1)).await.unwrap();
    for batch in 0..10 {
        let writes = (0..600).map(|n| report(batch * 600 + n + 1, AttemptState::Success));
        store.commit(writes.collect(), at(1)).await.unwrap();
    }
    let signed = checkpoint(&store, &database).await;
    assert_eq!(signed.size, 6_001);
    store.close().await;
    let store = database.open(at(1)).await.unwrap();
    assert_eq!(store.log().await.unwrap().read_from, 7 * 256);
    assert_eq!(checkpoint(&store, &database).await, signed);
    store.audit_recheck().await.unwrap();
    // The log goes on, and proofs about its beginning hold.
    store
        .commit(vec![report(6_001, AttemptState::Success)], at(2))
        .await
        .unwrap();
    let last = checkpoint(&store, &database).await;
    let entry = &store.audit_entries(3, 1).await.unwrap().items[0];
    let path = store.audit_inclusion(3, last.size).await.unwrap();
    verify_inclusion(3, last.size, &entry.leaf, &path, &last.root).unwrap();
    store.close().await;

    for (statement, index) in [
        (
            "UPDATE audit_entries SET entry = replace(entry, 'success', 'failed') WHERE idx = 700",
            Some(700),
        ),
        ("DELETE FROM audit_entries WHERE idx = 255", Some(255)),
    ] {
        database.run(statement).await;
        let store = database.open(at(1)).await.unwrap();
        let found = store.audit_recheck().await.unwrap_err();
        let StoreError::Audit(LogProblem::Changed(error)) = found else {
            panic!("{statement}: {found:?}");
        };
        assert_eq!(error.index(), index, "{statement}");
        store.close().await;
    }
    // Hashes that do not go with the checkpoint are not believed: then everything is read.
    database
        .run("UPDATE audit_tiles SET hash = (SELECT hash FROM audit_tiles WHERE tile = 1) WHERE tile = 0")
        .await;
    let refused = database.open(at(1)).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Audit(LogProblem::Changed(_))),
        "{refused:?}"
    );
}

async fn a_log_without_its_checkpoint_is_refused(database: TestDatabase) {
    database.open(at(1)).await.unwrap().close().await;
    database.run("DELETE FROM audit_checkpoint").await;
    let error = database.open(at(1)).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Audit(LogProblem::NoCheckpoint(1))),
        "{error:?}"
    );
}

async fn a_database_from_before_the_log_begins_it_with_what_it_has(database: TestDatabase) {
    let store = database.open(at(1)).await.unwrap();
    let writes = vec![Write::Metadata("1.root.json".to_owned(), b"root".to_vec())];
    store.commit(writes, at(1)).await.unwrap();
    store.close().await;
    database
        .run("DELETE FROM audit_checkpoint; DELETE FROM audit_entries")
        .await;
    let store = database.open(at(1)).await.unwrap();
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
