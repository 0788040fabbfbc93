use firmesh_protocol::{
    api::{DeviceIdentity, Registration},
    ids::{Component, DeviceId},
    time::WallTime,
};
use sqlx::{AssertSqlSafe, Row as _};

use super::*;
use crate::{
    notify::{Notice, NoticeKind},
    registrations::{Put, default_region},
    replays::Kept,
    store::{
        Database, Place, Store, Write,
        testing::{TestDatabase, on_both_databases},
    },
};

on_both_databases!(
    what_identifies_a_device_is_sealed_found_and_gone_with_its_key,
    what_the_version_before_left_in_clear_is_sealed,
    what_was_sealed_for_one_device_is_not_read_as_that_of_another,
    an_erasure_blots_out_answers_and_words_and_nothing_of_others,
);

fn at(seconds: i64) -> WallTime {
    WallTime::from_unix_seconds(seconds)
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn record(number: usize) -> Registration {
    Registration {
        hardware_id: Some(format!("serial-number-{number}")),
        vendor: "Acme".to_owned(),
        model: "R1".to_owned(),
        component: Component::new("bmc").unwrap(),
        region: default_region(),
        tags: vec!["edge".to_owned()],
        metadata: serde_json::from_str(&format!(r#"{{"note":"a private note {number}"}}"#)).unwrap(),
        identity: Some(DeviceIdentity {
            hostname: Some(format!("Host-{number}")),
            owner: Some("somebody dear".to_owned()),
            ..DeviceIdentity::default()
        }),
        pseudonymous: true,
        registered: at(0),
        mismatch: None,
        held: None,
    }
}

async fn found(store: &Store, field: Field, text: &str) -> Vec<String> {
    let terms = [(field, text.to_owned())];
    store
        .identified(&terms)
        .await
        .unwrap()
        .into_values()
        .next()
        .unwrap_or_default()
}

async fn stored(store: &Store, name: &str) -> Option<Registration> {
    let mut known = store.known(&[device(name)]).await.unwrap();
    Some(known.remove(&device(name))?.registered?.record)
}

/// Every value of every table, as text or in hexadecimal.
async fn everything(database: &TestDatabase, store: &Store) -> String {
    let is_file = !store.is_on_a_server();
    let (tables, columns) = match is_file {
        true => (
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name",
            "SELECT name, type FROM pragma_table_info($1) ORDER BY cid",
        ),
        false => (
            "SELECT CAST(table_name AS TEXT) FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1",
            "SELECT CAST(column_name AS TEXT), CAST(data_type AS TEXT) FROM information_schema.columns \
             WHERE table_name = $1 ORDER BY ordinal_position",
        ),
    };
    let mut connection = database.connect().await;
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await.unwrap();
    let mut all = String::new();
    for table in tables.iter().filter(|table| *table != "_sqlx_migrations") {
        let columns: Vec<(String, String)> = sqlx::query_as(columns)
            .bind(table.clone())
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for (column, kind) in columns {
            let is_bytes = ["BLOB", "bytea"].contains(&kind.as_str());
            let value = match is_bytes {
                true => column.clone(),
                false => format!("CAST({column} AS TEXT)"),
            };
            let rows = sqlx::query(AssertSqlSafe(format!(
                "SELECT {value} FROM {table} WHERE {column} IS NOT NULL"
            )));
            for row in rows.fetch_all(&mut connection).await.unwrap() {
                match is_bytes {
                    true => all.push_str(&String::from_utf8_lossy(&row.get::<Vec<u8>, _>(0))),
                    false => all.push_str(row.get(0)),
                }
                all.push('\n');
            }
        }
    }
    all
}

fn names_one(text: &str, number: usize) -> bool {
    let words = [
        format!("serial-number-{number}"),
        format!("a private note {number}"),
        format!("Host-{number}"),
        "somebody dear".to_owned(),
    ];
    words.iter().any(|word| text.contains(word))
}

async fn what_identifies_a_device_is_sealed_found_and_gone_with_its_key(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    let Put::Yes(version) = store
        .put_registration(&device("a"), None, true, &record(1))
        .await
        .unwrap()
    else {
        panic!("it was not registered");
    };
    assert_eq!(stored(&store, "a").await, Some(record(1)));
    let listed = store.registrations_after(None, 10).await.unwrap();
    assert_eq!(
        listed.into_iter().map(|row| row.record).collect::<Vec<_>>(),
        [record(1)]
    );
    assert!(
        !names_one(&everything(&database, &store).await, 1),
        "it is there in clear"
    );
    for (field, text) in [
        (Field::HardwareId, "serial-number-1"),
        (Field::Hostname, "hOST-1"),
        (Field::Owner, "somebody dear"),
    ] {
        assert_eq!(found(&store, field, text).await, ["a"], "{field:?}");
    }
    for (field, text) in [
        (Field::AssetTag, "serial-number-1"),
        (Field::HardwareId, "serial-number-"),
        (Field::Owner, "Somebody dear"),
    ] {
        assert!(found(&store, field, text).await.is_empty(), "{field:?}");
    }
    // Its number is its own, and what it is no more it is not found by.
    let taken = store
        .put_registration(&device("b"), None, true, &record(1))
        .await
        .unwrap();
    assert_eq!(taken, Put::TakenBy(device("a")));
    let changed = store
        .put_registration(&device("a"), Some(version), true, &record(2))
        .await
        .unwrap();
    assert!(matches!(changed, Put::Yes(_)), "{changed:?}");
    assert!(found(&store, Field::HardwareId, "serial-number-1").await.is_empty());
    let free = store
        .put_registration(&device("b"), None, true, &record(1))
        .await
        .unwrap();
    assert!(matches!(free, Put::Yes(_)), "{free:?}");

    store
        .commit(vec![Write::Erasure(device("a"), at(5))], at(5))
        .await
        .unwrap();
    let known = store.known(&[device("a")]).await.unwrap().remove(&device("a")).unwrap();
    assert!(known.erased && known.registered.is_none() && !known.removed);
    assert!(found(&store, Field::HardwareId, "serial-number-2").await.is_empty());
    assert_eq!(found(&store, Field::Owner, "somebody dear").await, ["b"]);
    assert!(store.load().await.unwrap().erased.contains(&device("a")));
    let never = store
        .put_registration(&device("a"), None, true, &record(2))
        .await
        .unwrap();
    assert_eq!(never, Put::Erased);
    let entries = store.audit_entries(0, 10).await.unwrap();
    let said = serde_json::to_string(&entries).unwrap();
    assert!(said.contains("erased") && !names_one(&said, 2), "{said}");
    // Without its key a row says whose device it is to nobody, and everything else as before.
    database.run("DELETE FROM identity_keys WHERE device = 'b'").await;
    let unread = stored(&store, "b").await.unwrap();
    assert_eq!(
        (unread.hardware_id, unread.identity, unread.metadata.len()),
        (None, None, 0)
    );
    assert_eq!(unread.tags, ["edge"]);
}

async fn what_the_version_before_left_in_clear_is_sealed(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    for number in 0..3 {
        let text = serde_json::to_string(&record(number)).unwrap();
        let row = format!(
            "INSERT INTO registrations (device, hardware_id, enabled, version, record) \
             VALUES ('old-{number}', 'serial-number-{number}', 1, {number}, '{text}')"
        );
        database.run(&row).await;
    }
    assert!(names_one(&everything(&database, &store).await, 1));
    store.seal_registrations().await.unwrap();
    assert_eq!(stored(&store, "old-1").await, Some(record(1)));
    assert_eq!(found(&store, Field::HardwareId, "serial-number-2").await, ["old-2"]);
    let all = everything(&database, &store).await;
    assert!((0..3).all(|number| !names_one(&all, number)), "{all}");
    // Once is enough.
    store.seal_registrations().await.unwrap();
    assert_eq!(stored(&store, "old-1").await, Some(record(1)));
    if let Place::File(path) = database.place() {
        let bytes = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        assert!(
            (0..3).all(|number| !names_one(&bytes, number)),
            "the file has it in a place that is free"
        );
    }
}

async fn what_was_sealed_for_one_device_is_not_read_as_that_of_another(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    for (name, number) in [("a", 1), ("b", 2)] {
        store
            .put_registration(&device(name), None, true, &record(number))
            .await
            .unwrap();
    }
    database
        .run(
            "UPDATE registrations SET identity = (SELECT identity FROM registrations WHERE device = 'b') WHERE device = 'a'; \
             UPDATE identity_keys SET key = (SELECT key FROM identity_keys WHERE device = 'b') WHERE device = 'a'",
        )
        .await;
    let refused = store.known(&[device("a")]).await.unwrap_err();
    assert!(
        crate::chain(&refused).contains("was changed, or belongs to another key or device"),
        "{refused:?}"
    );
    assert_eq!(stored(&store, "b").await, Some(record(2)));
}

async fn an_erasure_blots_out_answers_and_words_and_nothing_of_others(database: TestDatabase) {
    let store = database.open(at(0)).await.unwrap();
    let kept = |body: &str| Kept {
        request: firmesh_protocol::ids::Sha256::of(body.as_bytes()),
        status: 201,
        content_type: Some("application/json".to_owned()),
        body: Some(body.as_bytes().to_vec()),
    };
    let scope = "POST /api/v1/devices of key:1";
    let (hers, his) = (
        r#"{"device":"a","hardware_id":"serial-number-1"}"#,
        r#"{"device":"aa","hardware_id":"x"}"#,
    );
    let taken = r#"{"detail":"taken","hardware_id":"serial-number-1"}"#;
    for (scope, key, body) in [
        (scope, "hers", hers),
        (scope, "taken", taken),
        (scope, "his", his),
        ("POST /api/v1/plans of key:1", "plan", hers),
    ] {
        store.keep_answer(scope, key, &kept(body), at(0)).await.unwrap();
    }
    let notice = |name: &str| {
        let mut notice = Notice::new(NoticeKind::DeviceQuarantined, "Host-1 does not answer");
        notice.device = Some(device(name));
        Write::Notice(Box::new(notice))
    };
    store.commit(vec![notice("a"), notice("aa")], at(0)).await.unwrap();
    store.blot_out(&device("a"), Some("serial-number-1")).await.unwrap();
    let answer = async |scope: &str, key: &str| store.kept_answer(scope, key, at(1)).await.unwrap().unwrap();
    for key in ["hers", "taken"] {
        let blotted = answer(scope, key).await;
        assert_eq!((blotted.body, blotted.request), (None, [0; 32].into()), "{key}");
    }
    assert_eq!(answer(scope, "his").await, kept(his));
    assert_eq!(
        answer("POST /api/v1/plans of key:1", "plan").await,
        kept(hers),
        "it names a device, and nobody"
    );
    let told = store.notices_after(0, 10).await.unwrap();
    let told: Vec<_> = told.iter().map(|message| message.notice.reason.as_str()).collect();
    assert_eq!(told, ["", "Host-1 does not answer"]);
}

/// Pages of a file are filled and split in any order: what was erased must not be left in the one that a row was moved out of.
#[tokio::test]
async fn a_key_is_in_no_corner_of_the_file_once_its_device_is_erased() {
    let database = TestDatabase::file();
    let store = database.open(at(0)).await.unwrap();
    let names: Vec<_> = (0..400_u64)
        .map(|number| format!("d-{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    for (number, name) in names.iter().enumerate() {
        store
            .put_registration(&device(name), None, true, &record(number))
            .await
            .unwrap();
    }
    let rows = sqlx::query_as("SELECT device, key FROM identity_keys WHERE device <> ''").fetch_all(store.reader());
    let rows: Vec<(String, Vec<u8>)> = rows.await.unwrap();
    let keys: std::collections::BTreeMap<_, _> = rows.into_iter().collect();
    let gone: Vec<_> = names.iter().step_by(7).collect();
    for name in &gone {
        store
            .commit(vec![Write::Erasure(device(name), at(1))], at(1))
            .await
            .unwrap();
    }
    assert!(store.cut_past().await.unwrap());
    let Place::File(path) = database.place() else {
        panic!("it is a file");
    };
    let read = |path: &std::path::Path| std::fs::read(path).unwrap();
    let bytes = [read(path), read(&path.with_extension("sqlite-wal"))].concat();
    let has = |key: &[u8]| bytes.windows(key.len()).any(|part| part == key);
    for name in &gone {
        assert!(!has(&keys[*name]), "{name}");
    }
    assert!(has(&keys[&names[1]]), "keys are looked for where they do not lie");
}

/// Of an older copy and the newest keys: what was erased in between stays erased.
#[tokio::test]
async fn a_copy_without_its_keys_says_of_no_device_whose_it_is() {
    let database = TestDatabase::file();
    let store = database.open(at(0)).await.unwrap();
    for (name, number) in [("a", 1), ("b", 2)] {
        store
            .put_registration(&device(name), None, true, &record(number))
            .await
            .unwrap();
    }
    let path = |name: &str| database.folder().join(name);
    let other = Database::open(database.place()).await.unwrap();
    other.back_up(&path("first"), Some(&path("first.keys"))).await.unwrap();
    store
        .commit(vec![Write::Erasure(device("a"), at(1))], at(1))
        .await
        .unwrap();
    other
        .back_up(&path("second"), Some(&path("second.keys")))
        .await
        .unwrap();
    assert_eq!(
        found(&store, Field::Owner, "somebody dear").await,
        ["b"],
        "the coordinator lost its own keys"
    );
    let key: Vec<u8> = sqlx::query_scalar("SELECT key FROM identity_keys WHERE device = 'b'")
        .fetch_one(store.reader())
        .await
        .unwrap();
    let has_key = |name: &str| std::fs::read(path(name)).unwrap().windows(32).any(|part| part == key);
    assert!(!has_key("first") && !has_key("second"), "a copy has keys");
    assert!(has_key("second.keys"));

    let copy = Database::open(&Place::File(path("first"))).await.unwrap();
    assert!(copy.put_keys_back(&path("no.keys")).await.is_err());
    copy.put_keys_back(&path("second.keys")).await.unwrap();
    copy.leave_out().await.unwrap();
    let member = crate::store::testing::member("a");
    let term = copy
        .take_lead(&member, std::time::Duration::from_secs(60), None)
        .await
        .unwrap()
        .unwrap();
    let restored = Store::open(copy, term, database.authority(), at(2)).await.unwrap();
    assert_eq!(stored(&restored, "a").await, None);
    assert_eq!(stored(&restored, "b").await, Some(record(2)));
    assert!(restored.load().await.unwrap().erased.contains(&device("a")));
    assert_eq!(found(&restored, Field::HardwareId, "serial-number-2").await, ["b"]);
}
