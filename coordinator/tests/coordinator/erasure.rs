//! What identifies devices to people: who sees it, who finds devices by it, and how it is gone for good.

use firmesh_protocol::{
    api::{AuditEntries, AuditPath, CampaignView, DeviceData, DeviceGroup, DeviceView, Erasure, Page, SyncResponse},
    audit::{Checkpoint, ProofFile, verify_consistency},
    ids::DeviceId,
    report::AttemptState,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fleet::Fleet;

/// What nobody must find.
const OWNER: &str = "Ada Byron King";
const SERIAL: &str = "SN-4711-0815";
const HOST: &str = "Lovelace.Example";
const NOTE: &str = "third floor, by the window";

fn identified() -> Value {
    json!({
        "hardware_id": SERIAL, "vendor": "Acme", "model": "R1", "component": "bmc", "tags": ["edge"],
        "metadata": { "note": NOTE },
        "identity": {
            "hostname": HOST, "asset_tag": "INV-99-77", "addresses": ["fe80::aced:1", "02:00:5E:10:00:01"], "owner": OWNER,
            "contact": "ada@lovelace.example", "labels": { "desk": "Analytical Engine" },
        },
    })
}

fn secrets() -> [&'static str; 8] {
    [
        OWNER,
        SERIAL,
        HOST,
        NOTE,
        "INV-99-77",
        "fe80::aced:1",
        "02:00:5E:10:00:01",
        "Analytical Engine",
    ]
}

/// Those of the secrets that somebody finds who steals the database: as text, or as PostgreSQL writes bytes.
fn found_in(fleet: &Fleet) -> Vec<&'static str> {
    let bytes = fleet.database_bytes();
    let has = |text: &[u8]| bytes.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text));
    let is_there = |text: &&str| has(text.as_bytes()) || has(hex::encode(text).as_bytes());
    secrets().into_iter().filter(is_there).collect()
}

async fn find(fleet: &Fleet, filter: &str) -> Vec<String> {
    let path = reqwest::Url::parse_with_params("http://x/api/v1/devices", [("filter", filter)]).unwrap();
    let path = format!("{}?{}", path.path(), path.query().unwrap());
    let answer = fleet.ask(Method::GET, &path, &[], None).await;
    assert_eq!(answer.status(), StatusCode::OK, "{filter}");
    let page: Page<DeviceView> = answer.json().await.unwrap();
    page.items.iter().map(|view| view.facts.device.to_string()).collect()
}

async fn shown(fleet: &Fleet, device: &str) -> DeviceView {
    let path = format!("/api/v1/devices/{device}");
    fleet.ask(Method::GET, &path, &[], None).await.json().await.unwrap()
}

#[tokio::test]
async fn whose_a_device_is_is_sealed_and_shown_to_those_only_who_may_see_it() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let made: DeviceView = fleet.post("/api/v1/devices", &identified()).await;
    let device = made.facts.device.to_string();
    assert!(device.starts_with("d-") && device.len() == 26, "{device}");
    let registration = made.registration.unwrap();
    assert!(registration.pseudonymous);
    assert_eq!(registration.hardware_id.as_deref(), Some(SERIAL));
    assert_eq!(registration.identity.as_ref().unwrap().hostname.as_deref(), Some(HOST));
    assert_eq!(registration.metadata["note"], NOTE);
    assert_eq!(found_in(&fleet), [""; 0], "it lies in the database in clear");

    // Who only reads sees what is planned by, and not whose it is.
    let read: DeviceView = fleet.get(&format!("/api/v1/devices/{device}")).await;
    let read = read.registration.unwrap();
    assert_eq!((read.hardware_id, read.identity, read.metadata.len()), (None, None, 0));
    assert_eq!(read.tags, ["edge"]);
    for list in ["/api/v1/devices", &format!("/api/v1/devices/{device}")] {
        let text = fleet.text(list).await;
        assert!(secrets().iter().all(|secret| !text.contains(secret)), "{text}");
    }
    let data = format!("/api/v1/devices/{device}/data");
    assert_eq!(fleet.status(&data).await, StatusCode::UNAUTHORIZED);

    // Found exactly, by those who may see it.
    let found = [device.clone()];
    assert_eq!(find(&fleet, &format!("hardware_id == \"{SERIAL}\"")).await, found);
    assert_eq!(find(&fleet, r#"hostname == "lovelace.EXAMPLE""#).await, found);
    assert_eq!(find(&fleet, r#"address in ["::1", "FE80::ACED:1"]"#).await, found);
    assert_eq!(
        find(&fleet, &format!("owner == \"{OWNER}\" and vendor == \"Acme\"")).await,
        found
    );
    assert_eq!(
        find(&fleet, r#"owner == "Ada" or asset_tag == "inv-99-77""#).await,
        [""; 0]
    );
    assert_eq!(find(&fleet, &format!("not owner == \"{OWNER}\"")).await, [""; 0]);
    assert_eq!(
        fleet.status("/api/v1/devices?filter=owner%20%3D%3D%20%22Ada%22").await,
        StatusCode::FORBIDDEN
    );
    // A filter that is kept shows it to nobody.
    let token = fleet.token();
    let group = json!({ "id": "hers", "filter": format!("owner == \"{OWNER}\"") });
    let refused = fleet
        .refused_by_operators("POST", "/api/v1/device-groups", Some(&token), &group.to_string())
        .await;
    assert_eq!(&*refused.kind, "urn:firmesh:problem:bad_filter");

    // It stays where nothing is said of it, and is what is said of it.
    let path = format!("/api/v1/devices/{device}");
    let change = async |body: Value| {
        let read = fleet.ask(Method::GET, &path, &[], None).await;
        let tag = read.headers()["etag"].to_str().unwrap().to_owned();
        let changed = fleet.ask(Method::PUT, &path, &[("if-match", &tag)], Some(body)).await;
        assert_eq!(changed.status(), StatusCode::OK);
    };
    change(json!({ "enabled": false })).await;
    let view = shown(&fleet, &device).await.registration.unwrap();
    assert_eq!(view.identity.unwrap().owner.as_deref(), Some(OWNER));
    change(json!({ "enabled": true, "identity": { "owner": "Grace Hopper" } })).await;
    assert_eq!(find(&fleet, &format!("owner == \"{OWNER}\"")).await, [""; 0]);
    assert_eq!(find(&fleet, r#"owner == "Grace Hopper""#).await, found);
    assert_eq!(find(&fleet, &format!("hardware_id == \"{SERIAL}\"")).await, found);

    // One number, one device; and who is refused is not told of more than he knows.
    for (edit, status) in [
        (json!({}), 409),
        (json!({ "hardware_id": "x", "identity": { "hostname": " x" } }), 400),
        (
            json!({ "hardware_id": "x", "identity": { "owner": "x".repeat(257) } }),
            400,
        ),
        (
            json!({ "hardware_id": "x", "identity": { "addresses": vec!["x"; 17] } }),
            400,
        ),
        (json!({ "hardware_id": "x", "identity": { "nickname": "x" } }), 400),
    ] {
        let mut wrong = identified();
        for (field, value) in edit.as_object().unwrap() {
            wrong[field] = value.clone();
        }
        let problem = fleet
            .refused_by_operators("POST", "/api/v1/devices", Some(&token), &wrong.to_string())
            .await;
        assert_eq!(problem.status, status, "{edit}");
        assert!(!problem.detail.contains(SERIAL), "{}", problem.detail);
    }
    fleet.restart().await;
    assert_eq!(find(&fleet, r#"owner == "Grace Hopper""#).await, found);
    // Who removes a device destroys the key as well.
    let gone = fleet.ask(Method::DELETE, &path, &[], None).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(find(&fleet, r#"owner == "Grace Hopper""#).await, [""; 0]);
    fleet.stop().await;
}

#[tokio::test]
async fn an_erased_device_is_nobodys_and_what_was_signed_of_it_still_holds() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let key = [("idempotency-key", "first")];
    let register = async |fleet: &Fleet| {
        let body = Some(identified());
        fleet.ask(Method::POST, "/api/v1/devices", &key, body).await
    };
    let made: DeviceView = register(&fleet).await.json().await.unwrap();
    let again = register(&fleet).await;
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    let device = made.facts.device.clone();
    let path = format!("/api/v1/devices/{device}");
    let mut node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    node.devices[0] = device.to_string();
    fleet.sync(&node, &[]).await;
    let said = json!({ "status": "idle", "message": format!("hello from {HOST}") });
    let answer = fleet
        .ask(Method::POST, &format!("{path}/status"), &[], Some(said))
        .await;
    assert_eq!(answer.status(), StatusCode::OK);
    let members = json!({ "id": "some", "devices": [device] });
    fleet.post::<DeviceGroup>("/api/v1/device-groups", &members).await;
    fleet.campaign("spring").await;
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;

    // Not as long as it has something to do.
    let erasure = format!("{path}/erasure");
    let refused = fleet.ask(Method::POST, &erasure, &[], None).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["type"], "urn:firmesh:problem:in_flight");
    assert!(
        problem["detail"].as_str().unwrap().contains("in the campaign spring"),
        "{problem}"
    );
    update(&fleet, &node, &device).await;

    // What is held of it, for who asks for it.
    let data: DeviceData = fleet
        .ask(Method::GET, &format!("{path}/data"), &[], None)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(
        data.device.registration.as_ref().unwrap().hardware_id.as_deref(),
        Some(SERIAL)
    );
    assert!(data.device.said.is_some());
    assert_eq!(
        data.updates.iter().map(|update| update.state).collect::<Vec<_>>(),
        [AttemptState::Success]
    );
    assert_eq!(
        data.groups.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["some"]
    );

    let old = checkpoint(&fleet).await;
    let proof = format!(
        "/api/v1/audit/proof/update?device={device}&campaign=spring&size={}",
        old.size
    );
    let before = fleet.text_bytes(&proof).await;
    let verified = |bytes: &[u8]| {
        ProofFile::from_bytes(bytes)
            .unwrap()
            .verify(&old, None)
            .map(|proof| proof.outcome())
    };
    let outcome = format!("{:?}", verified(&before));

    let key = [("idempotency-key", "erase-1")];
    let answer = fleet.ask(Method::POST, &erasure, &key, None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let erased: Erasure = answer.json().await.unwrap();
    assert!(erased.device == device && erased.pseudonymous, "{erased:?}");
    assert!(erased.remains.iter().any(|text| text.contains("n1")), "{erased:?}");
    let again: Erasure = fleet
        .ask(Method::POST, &erasure, &key, None)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(again, erased);
    assert_eq!(found_in(&fleet), [""; 0], "somebody finds it");

    for is_new_term in [false, true] {
        if is_new_term {
            fleet.restart().await;
        }
        // Whatever its node still says.
        let _: SyncResponse = fleet.sync(&node, &[]).await;
        for part in ["", "/health", "/updates", "/data"] {
            let gone = fleet.ask(Method::GET, &format!("{path}{part}"), &[], None).await;
            assert_eq!(gone.status(), StatusCode::GONE, "{part}");
        }
        let twice = fleet.ask(Method::POST, &erasure, &[], None).await;
        assert_eq!(twice.status(), StatusCode::GONE);
        assert_eq!(find(&fleet, &format!("hardware_id == \"{SERIAL}\"")).await, [""; 0]);
        let all: Page<DeviceView> = fleet.get("/api/v1/devices").await;
        assert!(all.items.iter().all(|view| view.facts.device != device));
        let after = fleet.text_bytes(&proof).await;
        assert_eq!(after, before, "the proof of its update is another one");
        assert_eq!(format!("{:?}", verified(&after)), outcome);
        let new = checkpoint(&fleet).await;
        let place = format!("/api/v1/audit/proof/consistency?from={}&to={}", old.size, new.size);
        let grown: AuditPath = fleet.get(&place).await;
        verify_consistency((old.size, &old.root), (new.size, &new.root), &grown.path).unwrap();
    }
    let log: AuditEntries = fleet.get("/api/v1/audit/entries").await;
    let log = serde_json::to_string(&log).unwrap();
    assert!(
        log.contains(r#"\"change\":\"erased\""#) && log.contains("identity:erase"),
        "{log}"
    );
    assert!(secrets().iter().all(|secret| !log.contains(secret)));
    let permits = fleet.text("/api/v1/campaigns/spring/plan").await;
    assert!(permits.contains(device.as_str()), "the plan names it still");

    // What was asked for once is not done again by itself; the device may come back as another one.
    let replayed = register(&fleet).await;
    assert_eq!(replayed.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let back: DeviceView = fleet.post("/api/v1/devices", &identified()).await;
    assert_ne!(back.facts.device, device);
    assert_eq!(
        find(&fleet, &format!("hardware_id == \"{SERIAL}\"")).await,
        [back.facts.device.to_string()]
    );
    // Its old name is never given again.
    let mut named = identified();
    (named["device"], named["hardware_id"]) = (device.to_string().into(), "SN-2".into());
    let token = fleet.token();
    let taken = fleet
        .refused_by_operators("POST", "/api/v1/devices", Some(&token), &named.to_string())
        .await;
    assert_eq!((taken.status, &*taken.kind), (409, "urn:firmesh:problem:erased"));

    // A name that people chose stays, and that is said; what was only told of is erased as well.
    let chosen: Erasure = fleet.post("/api/v1/devices/n1-d1/erasure", &()).await;
    assert!(
        !chosen.pseudonymous && chosen.remains[0].contains("n1-d1"),
        "{chosen:?}"
    );
    assert_eq!(
        fleet
            .ask(Method::POST, "/api/v1/devices/ghost/erasure", &[], None)
            .await
            .status(),
        StatusCode::NOT_FOUND
    );
    fleet.stop().await;
}

async fn checkpoint(fleet: &Fleet) -> Checkpoint {
    Checkpoint::read_stored(&fleet.text("/api/v1/audit/checkpoint").await).unwrap()
}

/// The campaign reaches both devices of the node.
async fn update(fleet: &Fleet, node: &crate::fleet::NodeProcess, device: &DeviceId) {
    let mut done = Vec::new();
    while !done.contains(device) || done.len() < 2 {
        let answer = fleet.sync(node, &[]).await;
        let permits = answer.permits.iter().map(|permit| fleet.open_permit(permit));
        let permitted = permits
            .flat_map(|permit| permit.devices)
            .find(|one| !done.contains(one));
        let next = permitted.expect("the next wave is permitted");
        fleet.sync(node, &[(&next, AttemptState::Success)]).await;
        done.push(next);
    }
}
