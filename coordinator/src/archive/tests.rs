use std::collections::BTreeMap;

use firmesh_coordinator_core::{AttemptRecord, CampaignRecord};
use firmesh_protocol::{
    api::{ArchiveRun, CampaignState},
    report::{AttemptReport, AttemptState, PermitKind},
    time::WallTime,
    trust::Envelope,
};

use super::*;
use crate::store::{
    StoredNode, StoredPermit, Write,
    testing::{TestDatabase, on_both_databases},
};

on_both_databases!(
    what_ended_long_ago_goes_and_stays_readable,
    what_a_device_waits_in_stays,
    what_cannot_be_read_keeps_nothing_else_from_going,
    a_move_that_broke_off_is_gone_on_with,
);

const DAY: i64 = 86_400;

fn at(day: i64) -> WallTime {
    WallTime::from_unix_seconds(day * DAY)
}

fn campaign(id: &str, state: CampaignState) -> Write {
    let record = serde_json::json!({
        "id": id, "state": state, "gates": [], "last_permit": 1, "reason": "", "decisions": []
    });
    Write::Campaign(serde_json::from_value::<CampaignRecord>(record).unwrap())
}

fn attempt(id: &str, device: usize, state: AttemptState) -> Write {
    let record = serde_json::json!({
        "device": format!("d{device:05}"), "kind": PermitKind::Update, "state": state, "reason": "", "version": "1.1.0",
        "permit": 1, "report_sequence": 1, "presumed": false, "cleared": false
    });
    let record: AttemptRecord = serde_json::from_value(record).unwrap();
    Write::Attempt(CampaignId::new(id).unwrap(), record)
}

fn report(id: &str, sequence: u64) -> Write {
    let report = AttemptReport {
        campaign: CampaignId::new(id).unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: PermitKind::Update,
        permit_sequence: 1,
        attempt: 1,
        device: DeviceId::new("d00001").unwrap(),
        node: "n1".parse().unwrap(),
        sequence,
        state: AttemptState::Downloading,
        reason: String::new(),
        version: None,
        failure: None,
        health: None,
        at: at(0),
    };
    let envelope = Envelope::sign("report", serde_json::to_vec(&report).unwrap(), []);
    Write::Report(Box::new(report), envelope)
}

fn node() -> Write {
    Write::Node(Box::new(StoredNode {
        node: "n1".parse().unwrap(),
        path: "eu/fra1/r1/n1".parse().unwrap(),
        ticket: None,
        certificate: None,
        certificate_before: None,
        record: None,
        acked: 0,
        last_seen: None,
        silent: false,
    }))
}

fn permit(id: &str) -> Write {
    Write::Permit(StoredPermit {
        campaign: CampaignId::new(id).unwrap(),
        kind: PermitKind::Update,
        sequence: 1,
        nodes: Vec::new(),
        expires: at(1),
        envelope: Envelope::sign("permit", b"permit".to_vec(), []),
    })
}

/// A campaign of 5,000 devices that ended on day 1, and one that ended on day 50.
async fn two_campaigns(database: &TestDatabase) -> (Store, Archive, tempfile::TempDir) {
    let store = database.open(at(0)).await.unwrap();
    let mut writes = vec![node(), permit("old"), campaign("old", CampaignState::Active)];
    writes.extend((0..5_000).map(|device| attempt("old", device, AttemptState::Success)));
    writes.extend((1..=3).map(|sequence| report("old", sequence)));
    writes.extend((4..=5).map(|sequence| report("young", sequence)));
    writes.extend([
        permit("young"),
        campaign("young", CampaignState::Active),
        attempt("young", 1, AttemptState::Success),
    ]);
    store.commit(writes, at(0)).await.unwrap();
    store
        .commit(vec![campaign("old", CampaignState::Completed)], at(1))
        .await
        .unwrap();
    store
        .commit(vec![campaign("young", CampaignState::Completed)], at(50))
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let retention = RetentionConfig {
        archives_days: Some(1_000),
        ..RetentionConfig::default()
    };
    let retention = retention.check(|_, _| Ok(Duration::from_secs(90 * 86_400))).unwrap();
    let archive = Archive::new(store.clone(), Shelf::Folder(folder.path().to_owned()), retention, None);
    (store, archive, folder)
}

async fn what_ended_long_ago_goes_and_stays_readable(database: TestDatabase) {
    let (store, archive, folder) = two_campaigns(&database).await;
    let entries = store.audit_size().await.unwrap();
    assert_eq!(archive.run(&ArchiveRun::default(), at(90)).await.unwrap().archived, []);
    let dry = ArchiveRun {
        dry_run: true,
        ..ArchiveRun::default()
    };
    let old = CampaignId::new("old").unwrap();
    assert_eq!(
        archive.run(&dry, at(92)).await.unwrap().archived,
        std::slice::from_ref(&old)
    );
    assert_eq!(store.archive(&old).await.unwrap(), None);
    let result = archive.run(&ArchiveRun::default(), at(92)).await.unwrap();
    // 5,000 attempts, a permit and three reports.
    assert_eq!((&result.archived[..], result.rows), (std::slice::from_ref(&old), 5_004));
    assert_eq!(archive.run(&ArchiveRun::default(), at(92)).await.unwrap().rows, 0);

    let left = store.load().await.unwrap();
    assert_eq!(
        (left.attempts.len(), left.permits.len(), left.campaigns.len()),
        (1, 1, 2)
    );
    assert_eq!(left.archived, [old.clone()].into());
    assert_eq!(store.newest_reports(&"n1".parse().unwrap(), 10).await.unwrap().len(), 2);
    let view = store.archive(&old).await.unwrap().unwrap();
    assert_eq!(
        (view.state, view.ended, view.archived),
        (CampaignState::Completed, at(1), at(92))
    );
    assert_eq!(view.states, BTreeMap::from([("success".to_owned(), 5_000)]));
    let rows: u64 = view.segments.iter().map(|segment| segment.rows).sum();
    assert_eq!(rows, 5_005);
    archive.verify(&view).await.unwrap();
    let after = DeviceId::new("d04997").unwrap();
    let found = archive.attempts(&view, Some(&after), 10).await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].record["state"], "success");
    assert_eq!(
        archive.attempts(&view, None, 3).await.unwrap()[2].device.as_str(),
        "d00002"
    );
    // The log says that it was archived, with the digests, and goes on.
    let logged = store.audit_entries(entries, 10).await.unwrap().items;
    assert_eq!(logged.len(), 1);
    assert!(
        logged[0].entry.contains("archived") && logged[0].document.is_some(),
        "{logged:?}"
    );

    let file = folder.path().join(&view.segments[0].name);
    let mut bytes = std::fs::read(&file).unwrap();
    let at_end = bytes.len() - 1;
    bytes[at_end] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let refused = archive.verify(&view).await;
    assert!(matches!(refused, Err(ArchiveError::Changed { .. })), "{refused:?}");

    // Files go when their time is over; that there was a campaign of this name does not.
    let result = archive.run(&ArchiveRun::default(), at(1_093)).await.unwrap();
    assert_eq!(result.removed, std::slice::from_ref(&old));
    assert!(!file.exists());
    assert!(store.archive(&old).await.unwrap().unwrap().removed.is_some());
    assert!(store.archived_campaigns().await.unwrap().contains(&old));
}

async fn what_a_device_waits_in_stays(database: TestDatabase) {
    let (store, archive, _folder) = two_campaigns(&database).await;
    let old = CampaignId::new("old").unwrap();
    for state in [AttemptState::Quarantined, AttemptState::Rebooting] {
        store.commit(vec![attempt("old", 4_999, state)], at(2)).await.unwrap();
        let result = archive.run(&ArchiveRun::default(), at(92)).await.unwrap();
        assert!(
            result.archived.is_empty() && result.kept[&old].contains("d04999"),
            "{result:?}"
        );
    }
}

async fn what_cannot_be_read_keeps_nothing_else_from_going(database: TestDatabase) {
    let (store, archive, _folder) = two_campaigns(&database).await;
    let (damaged, old) = (CampaignId::new("damaged").unwrap(), CampaignId::new("old").unwrap());
    let writes = vec![
        campaign("damaged", CampaignState::Completed),
        attempt("damaged", 1, AttemptState::Success),
    ];
    store.commit(writes, at(1)).await.unwrap();
    database
        .run("UPDATE attempts SET record = '{' WHERE campaign = 'damaged'")
        .await;
    let result = archive.run(&ArchiveRun::default(), at(92)).await.unwrap();
    assert_eq!(result.archived, [old]);
    assert!(result.kept[&damaged].contains("attempts"), "{result:?}");
}

/// Between the transaction that says so and the last row that goes a coordinator may die.
async fn a_move_that_broke_off_is_gone_on_with(database: TestDatabase) {
    let (store, archive, _folder) = two_campaigns(&database).await;
    let old = CampaignId::new("old").unwrap();
    archive.run(&ArchiveRun::default(), at(92)).await.unwrap();
    let view = store.archive(&old).await.unwrap().unwrap();
    database.run("UPDATE archived SET purged = 0").await;
    // What a node that comes back says of it is not kept twice.
    let late = vec![
        attempt("old", 7, AttemptState::Success),
        report("old", 9),
        permit("old"),
    ];
    store.commit(late, at(93)).await.unwrap();
    let result = archive.run(&ArchiveRun::default(), at(94)).await.unwrap();
    assert_eq!((result.archived.len(), result.rows), (0, 3));
    assert_eq!(store.archive(&old).await.unwrap().unwrap(), view);
}
