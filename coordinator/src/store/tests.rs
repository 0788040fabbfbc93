use std::time::Duration;

use firmesh_protocol::{
    ids::{CampaignId, NodeId, Sha256},
    report::PermitKind,
    trust::Envelope,
};
use sqlx::{AnyConnection, Connection as _, Executor as _, Row as _};

use super::{
    testing::{TestDatabase, member, on_both_databases},
    *,
};

on_both_databases!(
    a_report_may_be_as_long_as_nodes_write_them,
    what_was_committed_is_there_after_a_restart,
    a_commit_that_fails_leaves_nothing_behind,
    rows_replace_what_was_there_but_reports_and_brakes_stay,
    who_was_deposed_writes_nothing_more,
    names_are_in_the_order_of_their_bytes,
);

fn at(seconds: i64) -> WallTime {
    WallTime::from_unix_seconds(seconds)
}

fn node(name: &str) -> StoredNode {
    StoredNode {
        node: NodeId::new(name).unwrap(),
        path: format!("eu/s1/r1/{name}").parse().unwrap(),
        ticket: None,
        certificate: Some(vec![1, 2, 3]),
        certificate_before: None,
        record: None,
        acked: 7,
        last_seen: None,
        silent: false,
    }
}

fn permit(sequence: u64) -> Write {
    Write::Permit(StoredPermit {
        campaign: CampaignId::new("spring").unwrap(),
        kind: PermitKind::Update,
        sequence,
        nodes: Vec::new(),
        expires: at(0),
        envelope: Envelope::sign("x", Vec::new(), []),
    })
}

async fn what_was_committed_is_there_after_a_restart(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    let writes = vec![
        Write::Node(Box::new(node("n1"))),
        Write::Metadata("timestamp.json".to_owned(), b"{}".to_vec()),
        Write::RosterVersion(3),
    ];
    store.commit(writes, at(0)).await.unwrap();
    store.put_plan(Sha256::of(b"plan"), b"plan").await.unwrap();
    let epoch = store.epoch();
    store.close().await;
    let store = database.open(at(0)).await.unwrap();
    let stored = store.load().await.unwrap();
    assert_eq!(stored.nodes, [node("n1")]);
    assert_eq!(stored.roster_version, 3);
    assert_eq!(store.plan(Sha256::of(b"plan")).await.unwrap().unwrap(), b"plan");
    assert_eq!(store.plan(Sha256::of(b"other")).await.unwrap(), None);
    assert!(store.epoch() > epoch);
}

/// A permit's sequence is never written twice: the second transaction fails as a whole.
async fn a_commit_that_fails_leaves_nothing_behind(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    store.commit(vec![permit(1)], at(0)).await.unwrap();
    let refused = store
        .commit(vec![Write::Node(Box::new(node("n1"))), permit(1)], at(0))
        .await;
    assert!(matches!(
        refused,
        Err(StoreError::Access {
            operation: "written",
            ..
        })
    ));
    assert!(store.load().await.unwrap().nodes.is_empty());
}

async fn rows_replace_what_was_there_but_reports_and_brakes_stay(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    let envelope = |payload: &[u8]| Envelope::sign("x", payload.to_vec(), []);
    for (acked, payload) in [(1, &b"one"[..]), (2, b"two"), (3, b"one")] {
        let writes = vec![
            Write::Node(Box::new(StoredNode { acked, ..node("n1") })),
            Write::Metadata("timestamp.json".to_owned(), payload.to_vec()),
            Write::Manifest(CampaignId::new("spring").unwrap(), payload.to_vec()),
            Write::Brake(Sha256::of(payload), envelope(payload)),
            Write::RosterVersion(acked),
        ];
        store.commit(writes, at(0)).await.unwrap();
    }
    let stored = store.load().await.unwrap();
    assert_eq!(stored.nodes.iter().map(|node| node.acked).collect::<Vec<_>>(), [3]);
    assert_eq!(stored.metadata, [("timestamp.json".to_owned(), b"one".to_vec())]);
    assert_eq!(stored.manifests.len(), 1);
    assert_eq!(stored.roster_version, 3);
    // In the order in which they came.
    assert_eq!(stored.brakes, [envelope(b"one"), envelope(b"two")]);
}

async fn who_was_deposed_writes_nothing_more(database: TestDatabase) {
    let old = database.open(at(0)).await.unwrap();
    let new = database.open(at(0)).await.unwrap();
    assert!(new.epoch() > old.epoch());
    let refused = old.commit(vec![permit(1)], at(0)).await;
    assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    let refused = old.put_plan(Sha256::of(b"plan"), b"plan").await;
    assert!(matches!(refused, Err(StoreError::Deposed)), "{refused:?}");
    // What it had read is still there to be read.
    assert!(old.load().await.unwrap().permits.is_empty());
    new.commit(vec![permit(1)], at(0)).await.unwrap();
}

/// Pages continue after a name: the database must not have an order of its own.
async fn names_are_in_the_order_of_their_bytes(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    for file in ["b", "a", "B", "é", "_", "a-b", "aa"] {
        let write = Write::Metadata(file.to_owned(), Vec::new());
        store.commit(vec![write], at(0)).await.unwrap();
    }
    let read = |(file,): (String,)| Ok(file);
    let files = store
        .rows("metadata", "SELECT file FROM metadata ORDER BY file", read)
        .await;
    assert_eq!(files.unwrap(), ["B", "_", "a", "a-b", "aa", "b", "é"]);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named() {
    let database = TestDatabase::file();
    std::fs::write(
        database.folder().join("db.sqlite"),
        "this is not a database, and long enough to have been one".repeat(40),
    )
    .unwrap();
    let error = Database::connect(database.place()).await.unwrap_err();
    assert!(error.to_string().contains("db.sqlite"), "{error}");
}

#[tokio::test]
async fn a_folder_may_have_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("50% é?#&/..x");
    std::fs::create_dir_all(&odd).unwrap();
    let place = Place::File(odd.join("db.sqlite"));
    Database::connect(&place).await.unwrap().close().await;
    assert!(odd.join("db.sqlite").is_file());
}

#[tokio::test]
async fn a_backup_is_restored_with_its_log_and_in_a_later_epoch() {
    let database = TestDatabase::server();
    let store = database.open(at(0)).await.unwrap();
    let writes = vec![Write::Node(Box::new(node("n1"))), permit(1)];
    store.commit(writes, at(0)).await.unwrap();
    let (epoch, checkpoint) = (store.epoch(), store.audit_checkpoint().await.unwrap());
    store.close().await;
    let database = database.restored();
    let store = database.open(at(0)).await.unwrap();
    assert!(store.epoch() > epoch);
    assert_eq!(store.audit_checkpoint().await.unwrap(), checkpoint);
    let stored = store.load().await.unwrap();
    assert_eq!((stored.nodes.len(), stored.permits.len()), (1, 1));
    // Numbers go on where they were.
    store.commit(vec![permit(2)], at(1)).await.unwrap();
}

/// What the version before several coordinators left behind.
#[tokio::test]
async fn an_older_database_goes_on_with_its_epoch_and_the_order_of_its_brakes() {
    let database = TestDatabase::file();
    let mut connection = {
        sqlx::any::install_default_drivers();
        let url = format!("sqlite://{}?mode=rwc", database.folder().join("db.sqlite").display());
        AnyConnection::connect(&url).await.unwrap()
    };
    let all = schema::migrator(database::Kind::Sqlite);
    let old = sqlx::migrate::Migrator {
        migrations: all.iter().filter(|migration| migration.version <= 8).cloned().collect(),
        ..sqlx::migrate::Migrator::DEFAULT
    };
    old.run(&mut connection).await.unwrap();
    let (z, a) = (Envelope::sign("z", Vec::new(), []), Envelope::sign("a", Vec::new(), []));
    connection
        .execute("INSERT INTO meta VALUES ('epoch', '41'), ('roster_version', '5')")
        .await
        .unwrap();
    for (digest, brake) in [("zz", &z), ("aa", &a)] {
        sqlx::query("INSERT INTO brakes VALUES ($1, $2)")
            .bind(digest)
            .bind(serde_json::to_string(brake).unwrap())
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();
    let store = database.open(at(0)).await.unwrap();
    assert_eq!(store.epoch(), 42);
    let stored = store.load().await.unwrap();
    assert_eq!((stored.brakes, stored.roster_version), (vec![z, a], 5));
}

#[tokio::test]
async fn both_databases_have_the_same_tables_and_columns() {
    async fn columns(database: &TestDatabase, query: &'static str) -> Vec<(String, String, String)> {
        database.open(at(0)).await.unwrap().close().await;
        let mut connection = database.connect().await;
        let rows = sqlx::query(query).fetch_all(&mut connection).await.unwrap();
        let kind = |kind: String| match &*kind.to_lowercase() {
            "text" => "text".to_owned(),
            "integer" | "bigint" => "integer".to_owned(),
            "blob" | "bytea" => "bytes".to_owned(),
            other => panic!("a column of type {other}"),
        };
        rows.iter()
            .map(|row| (row.get(0), row.get(1), kind(row.get(2))))
            .collect()
    }
    let sqlite = "SELECT t.name, c.name, c.type FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table' \
                  AND t.name NOT LIKE 'sqlite%' AND t.name <> '_sqlx_migrations' ORDER BY 1, 2";
    let postgres = "SELECT CAST(table_name AS TEXT), CAST(column_name AS TEXT), CAST(data_type AS TEXT) \
                    FROM information_schema.columns WHERE table_schema = 'public' \
                    AND table_name <> '_sqlx_migrations' ORDER BY 1, 2";
    let mut sqlite = columns(&TestDatabase::file(), sqlite).await;
    let mut postgres = columns(&TestDatabase::server(), postgres).await;
    sqlite.sort();
    postgres.sort();
    assert!(sqlite.len() > 40, "{sqlite:?}");
    assert_eq!(sqlite, postgres);
}

/// The fence: nobody leads before the last transaction of the one before is over.
#[tokio::test]
async fn the_lease_cannot_be_taken_in_the_midst_of_a_transaction() {
    let database = TestDatabase::server();
    let old = database.open(at(0)).await.unwrap();
    let mut transaction = old.begin().await.unwrap();
    sqlx::query("INSERT INTO plans VALUES ('p', $1)")
        .bind(vec![1_u8])
        .execute(&mut *transaction)
        .await
        .unwrap();
    database.run("UPDATE leadership SET expires_ms = 0").await;
    let other = Database::connect(database.place()).await.unwrap();
    let lease = Duration::from_secs(60);
    let successor = member("b");
    let mut taking = Box::pin(other.take_lead(&successor, lease, None));
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut taking).await;
    assert!(waits.is_err(), "{waits:?}");
    transaction.commit().await.unwrap();
    let term = taking.await.unwrap().unwrap();
    assert!(matches!(old.begin().await, Err(StoreError::Deposed)));
    assert!(other.keep_lead(term, lease).await.unwrap());
    assert!(!other.keep_lead(old.term, lease).await.unwrap());
    let leader = other.leader().await.unwrap();
    assert_eq!((leader.member, leader.leads), (successor, true));
    assert_eq!(other.take_lead(&member("c"), lease, None).await.unwrap(), None);
    assert!(other.give_up_lead(term).await.unwrap());
    assert!(!other.leader().await.unwrap().leads);
    assert!(other.take_lead(&member("c"), lease, None).await.unwrap().is_some());
}

/// Nobody waits for the lease of a leader whose process is gone, and nobody takes it from one that is there.
#[tokio::test]
async fn a_leader_whose_session_has_ended_is_seen_to_be_gone() {
    let shared = TestDatabase::server();
    let old = shared.open(at(0)).await.unwrap();
    let other = Database::connect(shared.place()).await.unwrap();
    assert!(!other.leader().await.unwrap().is_alive);
    let lifeline = old.database.lifeline(old.term).await.unwrap().unwrap();
    assert!(other.lifeline(old.term).await.unwrap().is_none());
    let leader = other.leader().await.unwrap();
    assert!(leader.leads && leader.is_alive, "{leader:?}");
    let lease = Duration::from_secs(60);
    let wrong = Some(leader.epoch - 1);
    assert_eq!(other.take_lead(&member("b"), lease, wrong).await.unwrap(), None);
    // As the end of its process would have it.
    drop(lifeline);
    let begun = std::time::Instant::now();
    while other.leader().await.unwrap().is_alive {
        assert!(begun.elapsed() < Duration::from_secs(10), "the server has not noticed");
    }
    assert!(other.leader().await.unwrap().leads);
    let taken = other.take_lead(&member("b"), lease, Some(leader.epoch)).await.unwrap();
    assert!(taken.is_some());
    // Two who have seen the same do not both lead, and whoever is replaced writes no more.
    let late = other.take_lead(&member("c"), lease, Some(leader.epoch)).await.unwrap();
    assert_eq!(late, None);
    assert!(matches!(old.begin().await, Err(StoreError::Deposed)));
    assert!(!old.database.keep_lead(old.term, lease).await.unwrap());
}

/// Keeping the lease does not wait for the leader's own transactions, however long they last.
#[tokio::test]
async fn a_leader_that_writes_can_keep_its_lease() {
    let database = TestDatabase::server();
    let store = database.open(at(0)).await.unwrap();
    let transaction = store.begin().await.unwrap();
    let keep = store.database.keep_lead(store.term, Duration::from_secs(60));
    assert!(
        tokio::time::timeout(Duration::from_secs(5), keep)
            .await
            .unwrap()
            .unwrap()
    );
    drop(transaction);
}

/// One that stands still in the midst of a transaction loses it, so that others go on.
#[tokio::test]
async fn a_leader_that_stands_still_holds_nobody_up_for_long() {
    let database = TestDatabase::server();
    let old = database.open(at(0)).await.unwrap();
    let mut transaction = old.begin().await.unwrap();
    database.run("UPDATE leadership SET expires_ms = 0").await;
    let other = Database::connect(database.place()).await.unwrap();
    let successor = member("b");
    let taking = other.take_lead(&successor, Duration::from_secs(60), None);
    let taken = tokio::time::timeout(Duration::from_secs(10), taking).await;
    assert!(taken.unwrap().unwrap().is_some());
    let late = sqlx::query("INSERT INTO plans VALUES ('p', $1)").bind(vec![1_u8]);
    assert!(late.execute(&mut *transaction).await.is_err());
}

/// The fence cannot be forgotten: the server takes no write beside it.
#[tokio::test]
async fn nothing_is_written_outside_of_a_transaction_of_the_leader() {
    let database = TestDatabase::server();
    let store = database.open(at(0)).await.unwrap();
    let written = sqlx::query("DELETE FROM metadata").execute(store.reader()).await;
    let error = written.unwrap_err().to_string();
    assert!(error.contains("read-only"), "{error}");
}

#[tokio::test]
async fn a_coordinator_with_other_keys_is_told_what_differs() {
    let shared = TestDatabase::server();
    let database = Database::connect(shared.place()).await.unwrap();
    for _ in 0..2 {
        database.check_secrets(&shared.authority()).await.unwrap();
    }
    let other = TestDatabase::file();
    let (from, to) = (shared.folder().join("keys"), other.folder().join("keys"));
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let error = database.check_secrets(&other.authority()).await.unwrap_err();
    let StoreError::OtherSecrets { names } = &error else {
        panic!("{error}");
    };
    assert_eq!(*names, ["operator token"]);
    let stranger = TestDatabase::file().authority();
    let error = database.check_secrets(&stranger).await.unwrap_err().to_string();
    assert!(
        error.contains("fleet CA, online key, operator token, permit key"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_named_without_a_password() {
    let database = TestDatabase::server();
    let Place::Server(server) = database.place().clone() else {
        panic!("it is a server");
    };
    std::fs::write(database.folder().join("password"), "wrong").unwrap();
    let error = Database::connect(&Place::Server(server)).await.unwrap_err();
    let text = crate::chain(&error);
    assert!(
        text.contains("postgres://fleet@127.0.0.1") && text.contains("password"),
        "{text}"
    );
    assert!(!text.contains("wrong"), "{text}");
}

/// PostgreSQL has keys of some kilobytes at most, and once the whole report was in one.
async fn a_report_may_be_as_long_as_nodes_write_them(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    let mut reason = [0; 1_000];
    getrandom::fill(&mut reason).unwrap();
    let report = firmesh_protocol::report::AttemptReport {
        campaign: "spring".parse().unwrap(),
        manifest_sha256: Sha256::of(b"manifest"),
        wave: 0,
        kind: firmesh_protocol::report::PermitKind::Update,
        permit_sequence: 1,
        attempt: 1,
        device: "d1".parse().unwrap(),
        node: "n1".parse().unwrap(),
        sequence: 7,
        state: firmesh_protocol::report::AttemptState::Failed,
        reason: hex::encode(reason),
        version: None,
        failure: None,
        health: None,
        at: at(0),
    };
    let envelope = Envelope::sign("report", serde_json::to_vec(&report).unwrap(), []);
    for _ in 0..2 {
        let write = Write::Report(Box::new(report.clone()), envelope.clone());
        store.commit(vec![write], at(0)).await.unwrap();
    }
    let asked: Vec<_> = (0..600).map(|sequence| (report.node.clone(), sequence)).collect();
    let found = store.reports_of(&asked).await.unwrap();
    assert_eq!(found, [((report.node.clone(), 7), vec![envelope])].into());
}

fn started(id: &str, last_permit: u64) -> Write {
    campaign(id, "active", last_permit)
}

fn ended(id: &str, last_permit: u64) -> Write {
    campaign(id, "completed", last_permit)
}

fn campaign(id: &str, state: &str, last_permit: u64) -> Write {
    let record = serde_json::json!({
        "id": id, "state": state, "gates": [], "last_permit": last_permit, "reason": "", "decisions": []
    });
    Write::Campaign(serde_json::from_value(record).unwrap())
}

#[tokio::test]
async fn a_whole_database_moves_from_a_file_to_a_server_once() {
    let (file, server) = (TestDatabase::file(), TestDatabase::server());
    let store = file.open(at(1)).await.unwrap();
    let brake = Envelope::sign("brake", b"brake".to_vec(), []);
    let writes = vec![
        Write::Node(Box::new(node("n1"))),
        permit(1),
        permit(2),
        Write::Metadata("1.root.json".to_owned(), vec![0, 255, 1]),
        Write::Brake(Sha256::of(b"brake"), brake.clone()),
        started("spring", 2),
    ];
    store.commit(writes, at(1)).await.unwrap();
    let (noted, epoch) = (store.audit_checkpoint().await.unwrap(), store.epoch());
    store.close().await;

    let source = Database::connect(file.place()).await.unwrap();
    let target = Database::connect(server.place()).await.unwrap();
    let copied = target.fill_from(&source).await.unwrap();
    let rows = |table: &str| copied.iter().find(|copied| copied.table == table).unwrap().rows;
    assert_eq!((rows("permits"), rows("nodes"), rows("brakes")), (2, 1, 1));
    assert_eq!(rows("audit_entries"), 6);
    // Whoever starts there goes on with the same log, in a higher epoch; numbers are not given twice.
    let taken = target
        .take_lead(&member("a"), Duration::from_secs(60), None)
        .await
        .unwrap()
        .unwrap();
    let store = Store::open(target.clone(), taken, file.authority(), at(2))
        .await
        .unwrap();
    assert_eq!(
        (store.audit_checkpoint().await.unwrap(), store.epoch()),
        (noted, epoch + 1)
    );
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.permits.len(), &loaded.brakes[..]), (2, &[brake][..]));
    assert_eq!(loaded.metadata, [("1.root.json".to_owned(), vec![0, 255, 1])]);
    let another = Write::Brake(Sha256::of(b"2"), Envelope::sign("brake", b"2".to_vec(), []));
    store.commit(vec![another], at(3)).await.unwrap();

    let again = target.fill_from(&source).await.unwrap_err();
    assert!(matches!(again, super::CopyError::NotEmpty { .. }), "{again:?}");
}

#[tokio::test]
async fn a_file_is_copied_while_its_coordinator_writes() {
    let database = TestDatabase::file();
    let store = database.open(at(1)).await.unwrap();
    store.commit(vec![permit(1)], at(1)).await.unwrap();
    let copy = database.folder().join("copy.sqlite");
    let other = Database::connect(database.place()).await.unwrap();
    other.back_up(&copy, None).await.unwrap();
    store.commit(vec![permit(2)], at(1)).await.unwrap();
    assert!(
        matches!(other.back_up(&copy, None).await, Err(BackupError::Write(..))),
        "it was written over"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&copy).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let copied = Database::connect(&Place::File(copy)).await.unwrap();
    let term = copied
        .take_lead(&member("a"), Duration::from_secs(60), None)
        .await
        .unwrap()
        .unwrap();
    let copied = Store::open(copied, term, database.authority(), at(2)).await.unwrap();
    assert_eq!(copied.load().await.unwrap().permits.len(), 1);
    assert_eq!(store.load().await.unwrap().permits.len(), 2);
}

/// A backup is made by a timer, perhaps with the next version of the program.
#[tokio::test]
async fn a_backup_brings_nothing_to_another_version() {
    let database = TestDatabase::file();
    let store = database.open(at(1)).await.unwrap();
    let last = "DELETE FROM _sqlx_migrations WHERE version = (SELECT MAX(version) FROM _sqlx_migrations)";
    database.run(last).await;
    let other = Database::open(database.place()).await.unwrap();
    let copy = database.folder().join("copy.sqlite");
    other.back_up(&copy, None).await.unwrap();
    let copied = Database::open(&Place::File(copy)).await.unwrap();
    let wanted = schema::migrator(database::Kind::Sqlite).iter().count() as i64 - 1;
    for pool in [store.reader(), copied.reader()] {
        let applied: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM _sqlx_migrations")
            .fetch_one(pool)
            .await
            .unwrap();
        assert_eq!(applied, wanted);
    }
}

/// The server's machine is lost: what was archived of its log brings back everything up to a moment; what was given out after it
/// is not given out again.
#[tokio::test]
async fn a_server_is_restored_to_a_point_in_time_and_nothing_is_given_out_twice() {
    let database = TestDatabase::own_server();
    let postgres = database.postgres();
    let store = database.open(at(1)).await.unwrap();
    store
        .commit(vec![started("spring", 1), permit(1), ended("winter", 7)], at(1))
        .await
        .unwrap();
    store.close().await;
    postgres.back_up().unwrap();
    let store = database.open(at(1)).await.unwrap();
    store
        .commit(vec![started("spring", 2), permit(2)], at(2))
        .await
        .unwrap();
    let ask = |query: &'static str| {
        let database = &database;
        async move {
            let mut connection = database.connect().await;
            let answer: String = sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            answer
        }
    };
    let moment = ask("SELECT CAST(clock_timestamp() AS TEXT)").await;
    store
        .commit(vec![started("spring", 3), permit(3)], at(3))
        .await
        .unwrap();
    store.close().await;
    let last = database.open(at(3)).await.unwrap();
    let (lost_epoch, lost_permit) = (last.epoch(), 3);
    last.close().await;
    let file = ask("SELECT pg_walfile_name(pg_switch_wal())").await;
    let waiting = std::time::Instant::now();
    while !postgres.has_archived(&file) {
        assert!(waiting.elapsed() < Duration::from_secs(60), "{file} was not archived");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let begun = std::time::Instant::now();
    postgres.restore(&moment).unwrap();
    let restored = Database::connect(database.place()).await.unwrap();
    database.run("UPDATE leadership SET expires_ms = 0").await;
    let left_out = restored.leave_out().await.unwrap();
    let term = restored
        .take_lead(&member("a"), Duration::from_secs(60), None)
        .await
        .unwrap()
        .unwrap();
    // Reads the log and compares it with its checkpoint.
    let store = Store::open(restored, term, database.authority(), at(4)).await.unwrap();
    println!("restored to {moment} in {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15 * 60));
    let loaded = store.load().await.unwrap();
    let sequences: Vec<_> = loaded.permits.iter().map(|permit| permit.sequence).collect();
    assert_eq!(sequences, [1, 2]);
    assert!(
        store.epoch() > left_out && left_out > lost_epoch,
        "{} {lost_epoch}",
        store.epoch()
    );
    // Also of one that was over: people may have sent devices of it back.
    for record in &loaded.campaigns {
        assert!(record.last_permit > lost_permit + 1_000, "{record:?}");
    }
    assert_eq!(loaded.campaigns.len(), 2);
}
