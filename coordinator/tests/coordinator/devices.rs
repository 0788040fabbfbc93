//! Devices as operators register them, as nodes tell of them, and as they tell of themselves.

use firmesh_protocol::{
    api::{
        CampaignView, DeviceHealth, DevicePhase, DeviceStatus, DeviceView, Page, PlanRequest, PlanResponse, SaidAnswer,
        UpdateCheck, UpdateView,
    },
    manifest::Plan,
    report::AttemptState,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fleet::{Fleet, IMAGE};

fn new(device: Option<&str>, hardware: &str) -> Value {
    let mut new = json!({ "hardware_id": hardware, "vendor": "Acme", "model": "R1", "component": "bmc" });
    if let Some(device) = device {
        new["device"] = device.into();
    }
    new
}

#[tokio::test]
async fn a_registered_device_waits_for_its_node_and_is_then_one_and_the_same() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let mut body = new(Some("n1-d0"), "SN-1");
    body["region"] = "us/nyc".into();
    body["tags"] = json!(["edge", "edge", "a"]);
    body["metadata"] = json!({ "owner": "ops" });
    let made = fleet
        .ask(Method::POST, "/api/v1/devices/register", &[], Some(body.clone()))
        .await;
    assert_eq!(made.status(), StatusCode::CREATED);
    assert_eq!(made.headers()["location"], "/api/v1/devices/n1-d0");
    let waiting: DeviceView = made.json().await.unwrap();
    assert_eq!(
        (waiting.status, waiting.node.as_ref()),
        (DeviceStatus::Registered, None)
    );
    assert_eq!(waiting.registration.as_ref().unwrap().tags, ["a", "edge"]);
    // Under its hardware id, and in the default region, if nothing else is said.
    let other: DeviceView = fleet.post("/api/v1/devices", &new(None, "zz-9")).await;
    assert_eq!(
        (other.facts.device.as_str(), other.path.to_string().as_str()),
        ("zz-9", "default")
    );

    let token = fleet.token();
    for (edit, status, kind) in [
        (json!({ "device": "n1-d0" }), 409, "exists"),
        (json!({ "device": "d7", "hardware_id": "SN-1" }), 409, "exists"),
        (
            json!({ "device": "d7", "hardware_id": "SN-7", "model": "R9" }),
            422,
            "unsupported_model",
        ),
        (json!({ "device": "d7", "hardware_id": " " }), 400, "bad_request"),
        (json!({ "device": null, "hardware_id": "a/b" }), 400, "bad_request"),
        (
            json!({ "device": "d7", "hardware_id": "SN-7", "metadata": { "x": "y".repeat(9_000) } }),
            400,
            "bad_request",
        ),
        (json!({ "colour": "red" }), 400, "bad_body"),
    ] {
        let mut wrong = body.clone();
        for (field, value) in edit.as_object().unwrap() {
            wrong[field] = value.clone();
        }
        let problem = fleet
            .refused_by_operators("POST", "/api/v1/devices", Some(&token), &wrong.to_string())
            .await;
        assert_eq!(
            (problem.status, &*problem.kind),
            (status, &*format!("urn:firmesh:problem:{kind}")),
            "{edit}"
        );
    }

    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    let told: DeviceView = fleet.get("/api/v1/devices/n1-d0").await;
    assert_eq!((told.status, told.phase), (DeviceStatus::Idle, DevicePhase::Idle));
    assert_eq!(told.path.to_string(), "eu/s1/r1/n1", "what its node says counts");
    assert_eq!(told.registration.unwrap().mismatch, None);
    let all: Page<DeviceView> = fleet.get("/api/v1/devices").await;
    let names = |page: &Page<DeviceView>| {
        page.items
            .iter()
            .map(|view| view.facts.device.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&all), ["n1-d0", "n1-d1", "zz-9"]);
    // Page by page too, and a filter holds for those who wait as well.
    let mut paged = Vec::new();
    let mut next = "?limit=1".to_owned();
    loop {
        let answer = fleet
            .ask(Method::GET, &format!("/api/v1/devices{next}"), &[], None)
            .await;
        let link = answer
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        paged.extend(names(&answer.json().await.unwrap()));
        match link {
            Some(link) => next = link[1..].split('>').next().unwrap().to_owned(),
            None => break,
        }
    }
    assert_eq!(paged, names(&all));
    let waiting: Page<DeviceView> = fleet.get("/api/v1/devices?filter=path%20under%20%22default%22").await;
    assert_eq!(names(&waiting), ["zz-9"]);
    let conflicting =
        json!({ "device": "n1-d1", "hardware_id": "SN-2", "vendor": "Acme", "model": "R1", "component": "bmc" });
    let registered: DeviceView = fleet.post("/api/v1/devices", &conflicting).await;
    assert!(
        registered.node.is_some(),
        "a device that is told of can be registered afterwards"
    );
    fleet.restart().await;
    let all: Page<DeviceView> = fleet.get("/api/v1/devices").await;
    assert_eq!(all.items.iter().filter(|view| view.registration.is_some()).count(), 3);
    fleet.stop().await;
}

#[tokio::test]
async fn a_device_that_is_disabled_or_removed_is_held_until_somebody_wants_it_again() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    let held = async |fleet: &Fleet| -> Vec<String> {
        let manifest = fleet.draft("spring");
        let planned: PlanResponse = fleet.post("/api/v1/plans", &PlanRequest { manifest }).await;
        let plan = Plan::from_bytes(planned.plan.as_bytes()).unwrap();
        plan.held
            .into_iter()
            .map(|held| format!("{}: {}", held.device, held.reason))
            .collect()
    };
    assert_eq!(held(&fleet).await, [""; 0]);
    let path = "/api/v1/devices/n1-d0";
    let tag = |answer: &reqwest::Response| answer.headers()["etag"].to_str().unwrap().to_owned();
    let edit = Some(json!({ "enabled": false, "tags": ["broken"], "region": "eu" }));
    let unread = fleet.ask(Method::PUT, path, &[], edit.clone()).await;
    assert_eq!(unread.status(), StatusCode::PRECONDITION_REQUIRED);
    let read = fleet.ask(Method::GET, path, &[], None).await;
    let first = tag(&read);
    // A heartbeat changes what is shown, and not what operators say of it.
    fleet.sync(&node, &[]).await;
    let changed = fleet
        .ask(Method::PUT, path, &[("if-match", &first)], edit.clone())
        .await;
    assert_eq!(changed.status(), StatusCode::OK);
    let second = tag(&changed);
    let view: DeviceView = changed.json().await.unwrap();
    assert_eq!((view.status, view.enabled), (DeviceStatus::Disabled, false));
    let late = fleet.ask(Method::PUT, path, &[("if-match", &first)], edit).await;
    assert_eq!(late.status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(
        held(&fleet).await,
        ["n1-d0: disabled: an operator has taken it out of updates"]
    );

    let gone = fleet.ask(Method::DELETE, path, &[("if-match", &second)], None).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(fleet.status(path).await, StatusCode::NOT_FOUND);
    fleet.restart().await;
    assert_eq!(fleet.status(path).await, StatusCode::NOT_FOUND);
    fleet.sync(&node, &[]).await;
    let back: DeviceView = fleet.get(path).await;
    assert_eq!((back.status, back.registration), (DeviceStatus::Disabled, None));
    assert!(held(&fleet).await[0].starts_with("n1-d0: removed"));
    fleet
        .post::<DeviceView>("/api/v1/devices", &new(Some("n1-d0"), "SN-1"))
        .await;
    assert_eq!(held(&fleet).await, [""; 0]);
    // Held, it stays as it is, and is not disabled.
    let read = fleet.ask(Method::GET, path, &[], None).await;
    let hold = Some(json!({ "enabled": true, "held": "until the switches are new" }));
    let held_now = fleet.ask(Method::PUT, path, &[("if-match", &tag(&read))], hold).await;
    let third = tag(&held_now);
    let view: DeviceView = held_now.json().await.unwrap();
    assert!(view.enabled && view.registration.unwrap().held.is_some());
    let reasons = held(&fleet).await;
    assert!(
        reasons.len() == 1 && reasons[0].contains("until the switches are new"),
        "{reasons:?}"
    );
    let empty = Some(json!({ "enabled": true, "held": " " }));
    let empty = fleet.ask(Method::PUT, path, &[("if-match", &third)], empty).await;
    assert_eq!(empty.status(), StatusCode::BAD_REQUEST);
    let free = Some(json!({ "enabled": true }));
    let freed = fleet.ask(Method::PUT, path, &[("if-match", &third)], free).await;
    assert_eq!(freed.status(), StatusCode::OK);
    assert_eq!(held(&fleet).await, [""; 0]);
    // Operators' changes are in the audit log.
    let entries: Value = fleet.get("/api/v1/audit/entries").await;
    let text = entries.to_string();
    for change in ["disabled", "removed", "registered", "held", "held no longer"] {
        assert!(
            text.contains(&format!("\\\"change\\\":\\\"{change}\\\"")),
            "{change}: {text}"
        );
    }
    fleet.stop().await;
}

#[tokio::test]
async fn a_device_learns_what_is_planned_and_what_it_says_of_itself_counts_for_nothing() {
    let mut fleet = Fleet::start().await;
    let artifact = fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    let check = "/api/v1/updates/check?device=n1-d0";
    assert_eq!(fleet.get::<UpdateCheck>(check).await, UpdateCheck::default());
    assert_eq!(
        fleet.status("/api/v1/updates/check?device=ghost").await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(fleet.status("/api/v1/updates/check").await, StatusCode::BAD_REQUEST);
    fleet.campaign("spring").await;
    let offered: UpdateCheck = fleet.get(check).await;
    let update = offered.update.unwrap();
    assert_eq!((update.version.as_str(), update.permitted), ("1.1", false));
    assert_eq!((update.sha256, update.blake3), (artifact.sha256, artifact.id));
    assert_eq!(
        (
            update.signature.releases.threshold,
            update.signature.releases.key_ids.len()
        ),
        (2, 3)
    );
    assert_eq!(fleet.text_bytes(&update.url).await, IMAGE);

    // It says that it is done and content: nothing follows.
    let said = json!({ "status": "success", "version": "1.1", "progress": 100,
        "health": { "cpu_percent": 12.5, "uptime_s": 7, "sensor_readings": { "inlet": 21.5 } } });
    let answer: SaidAnswer = fleet.post("/api/v1/devices/n1-d0/status", &said).await;
    assert_eq!(answer.status, DeviceStatus::Pending);
    let mut named = said.clone();
    named["device"] = "n1-d0".into();
    fleet.post::<SaidAnswer>("/api/v1/status", &named).await;
    let content = json!({ "device": "n1-d0", "version": "1.1", "ok": true });
    let answer: SaidAnswer = fleet.post("/api/v1/validation", &content).await;
    assert_eq!(answer.confirmed, Some(false), "its node has read 1.0");
    let campaign: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!(campaign.states[&AttemptState::Pending], 2);
    let health: DeviceHealth = fleet.get("/api/v1/devices/n1-d0/health").await;
    assert_eq!(
        (
            health.firmware_version.as_deref(),
            health.cpu_usage,
            health.memory_usage
        ),
        (Some("1.0"), Some(12.5), None)
    );
    assert!(health.self_reported.is_some() && health.online == Some(true));
    let silent: Value = fleet.get("/api/v1/devices/n1-d1/health").await;
    for unknown in ["cpuUsage", "memoryUsage", "uptime", "selfReported"] {
        assert!(silent[unknown].is_null(), "{silent}");
    }
    let token = fleet.token();
    for (path, body) in [
        ("/api/v1/status", json!({ "status": "success" })),
        ("/api/v1/devices/n1-d0/status", json!({ "device": "n1-d1" })),
        ("/api/v1/devices/n1-d0/status", json!({ "progress": 101 })),
        (
            "/api/v1/devices/n1-d0/status",
            json!({ "health": { "cpu_percent": -1 } }),
        ),
        (
            "/api/v1/validation",
            json!({ "device": "n1-d0", "version": "x".repeat(300), "ok": true }),
        ),
    ] {
        let problem = fleet
            .refused_by_operators("POST", path, Some(&token), &body.to_string())
            .await;
        assert_eq!(problem.status, 400, "{body}");
    }

    // Its node says so: that counts, and is its history.
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;
    let started = fleet.sync(&node, &[]).await;
    let permit = fleet.open_permit(&started.permits[0]);
    let device = permit.devices[0].clone();
    let permitted: UpdateCheck = fleet.get(&format!("/api/v1/updates/check?device={device}")).await;
    assert!(permitted.update.unwrap().permitted);
    let in_flight = fleet
        .ask(Method::DELETE, &format!("/api/v1/devices/{device}"), &[], None)
        .await;
    assert_eq!(in_flight.status(), StatusCode::CONFLICT);
    fleet.sync(&node, &[(&device, AttemptState::Success)]).await;
    let history: Page<UpdateView> = fleet.get(&format!("/api/v1/devices/{device}/updates")).await;
    let [update] = history.items.as_slice() else {
        panic!("{history:?}")
    };
    assert_eq!(
        (update.state, update.progress, update.from_version.as_str()),
        (AttemptState::Success, 100, "1.0")
    );
    assert!(update.ended.is_some());
    let view: DeviceView = fleet.get(&format!("/api/v1/devices/{device}")).await;
    assert_eq!((view.status, view.phase), (DeviceStatus::Success, DevicePhase::Success));
    let check: UpdateCheck = fleet.get(&format!("/api/v1/updates/check?device={device}")).await;
    assert!(!check.available);
    fleet.stop().await;
}
