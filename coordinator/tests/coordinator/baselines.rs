//! What devices are to run and how far they are from it; places; drafts of campaigns; what campaigns rest on; the face
//! that provisioning tools know.

use firmesh_protocol::{
    api::{
        ApprovalView, AttemptView, BaselineView, CampaignDraftView, CampaignState, CampaignView, ComplianceView,
        DeviceStatus, DriftState, DriftView, Explanation, FirmwareChecked, FirmwareStatus, Page, PermitView, PlaceView,
        PlanRequest, PolicyView, Reconciled, WindowsView,
    },
    ids::Sha256,
    manifest::CampaignManifest,
    report::AttemptState,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fleet::Fleet;

async fn fleet_of_two_sites() -> (Fleet, crate::fleet::NodeProcess) {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/ber/r1/n1").await;
    let other = fleet.enrol("n2", "us/nyc/r1/n2").await;
    for node in [&node, &other] {
        fleet.sync(node, &[]).await;
    }
    (fleet, node)
}

#[tokio::test]
async fn a_baseline_says_who_is_behind_and_where() {
    let (fleet, _) = fleet_of_two_sites().await;
    let path = "/api/v1/baselines/q3";
    let body = json!({ "id": "q3", "releases": ["firmware/new.bin"], "filter": "path  under \"eu\"" });
    let made = fleet
        .ask(Method::POST, "/api/v1/baselines", &[], Some(body.clone()))
        .await;
    assert_eq!(
        (made.status(), made.headers()["location"].as_bytes()),
        (StatusCode::CREATED, path.as_bytes())
    );
    let view: BaselineView = made.json().await.unwrap();
    assert_eq!(view.filter.as_deref(), Some("path under \"eu\""), "as it is understood");
    let drift: Page<DriftView> = fleet.get(&format!("{path}/drift?limit=1")).await;
    assert_eq!(
        (drift.items[0].state, drift.items[0].wanted.as_deref()),
        (DriftState::Behind, Some("1.1"))
    );
    let compliant: Page<DriftView> = fleet.get(&format!("{path}/drift?state=compliant")).await;
    assert!(compliant.items.is_empty());
    let summary: Page<ComplianceView> = fleet.get("/api/v1/compliance").await;
    assert_eq!((summary.items[0].devices, summary.items[0].sites.len()), (2, 1));
    let csv = fleet.text("/api/v1/compliance?format=csv").await;
    assert_eq!(csv.lines().nth(1), Some("q3,eu/ber,2,0,2,0,0,0"));

    let token = fleet.token();
    for (body, status, kind) in [
        (json!({ "id": "q3", "releases": ["firmware/new.bin"] }), 409, "exists"),
        (
            json!({ "id": "q4", "releases": ["firmware/none"] }),
            422,
            "unknown_release",
        ),
        (
            json!({ "id": "q4", "releases": ["firmware/new.bin", "firmware/old.bin"] }),
            400,
            "bad_request",
        ),
        (json!({ "id": "q4", "releases": [] }), 400, "bad_request"),
        (
            json!({ "id": "q4", "releases": ["firmware/new.bin"], "filter": "x" }),
            400,
            "bad_filter",
        ),
    ] {
        let problem = fleet
            .refused_by_operators("POST", "/api/v1/baselines", Some(&token), &body.to_string())
            .await;
        assert_eq!(
            (problem.status, &*problem.kind),
            (status, &*format!("urn:firmesh:problem:{kind}")),
            "{body}"
        );
    }
    let edit = Some(json!({ "releases": ["firmware/old.bin"] }));
    let unread = fleet.ask(Method::PUT, path, &[], edit.clone()).await;
    assert_eq!(unread.status(), StatusCode::PRECONDITION_REQUIRED);
    let read = fleet.ask(Method::GET, path, &[], None).await;
    let tag = read.headers()["etag"].to_str().unwrap().to_owned();
    let changed = fleet.ask(Method::PUT, path, &[("if-match", &tag)], edit.clone()).await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_eq!(
        fleet.ask(Method::PUT, path, &[("if-match", &tag)], edit).await.status(),
        StatusCode::PRECONDITION_FAILED
    );
    let drift: Page<DriftView> = fleet.get(&format!("{path}/drift")).await;
    assert!(drift.items.len() == 4 && drift.items.iter().all(|view| view.state == DriftState::Compliant));
    let gone = fleet.ask(Method::DELETE, path, &[("if-match", "*")], None).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    fleet.stop().await;
}

/// Devices that drift are brought back by campaigns that approvers sign, one at a time.
#[tokio::test]
async fn drift_becomes_a_draft_that_approvers_sign_and_drifts_again_are_taken_up_again() {
    let (mut fleet, _) = fleet_of_two_sites().await;
    let rules = json!({
        "strategy": { "kind": "direct" },
        "caps": { "per_rack": 1, "total": 10 },
        "gate": fleet.draft("x").gate,
        "deadlines": { "attempt_s": 600, "back_s": 60 },
        "automatic_rollback": true,
    });
    let body = json!({
        "id": "q3", "releases": ["firmware/new.bin"], "filter": "path under \"eu\"", "reconcile": rules,
    });
    fleet.post::<BaselineView>("/api/v1/baselines", &body).await;
    let path = "/api/v1/baselines/q3/reconcile";
    let first: Reconciled = fleet.post(path, &()).await;
    let draft = first.draft.clone().unwrap();
    assert_eq!((first.drafted, first.drifted, draft.devices), (true, 2, 2), "{first:?}");
    assert_eq!(draft.id.as_str(), "q3-heal-1");
    let manifest = CampaignManifest::from_bytes(draft.manifest.as_bytes()).unwrap();
    let devices: Vec<_> = manifest.selector.devices.iter().map(ToString::to_string).collect();
    assert_eq!(devices, ["n1-d0", "n1-d1"]);
    assert_eq!(manifest.previous[0].target, "firmware/old.bin");
    // A draft is all there is, and there is one.
    let again: Reconciled = fleet.post(path, &()).await;
    assert_eq!(
        (again.drafted, again.draft.as_ref()),
        (false, Some(&draft)),
        "{again:?}"
    );
    let shown: CampaignDraftView = fleet.get("/api/v1/campaigns/q3-heal-1/draft").await;
    assert_eq!(shown, draft);
    let view: CampaignView = fleet.get("/api/v1/campaigns/q3-heal-1").await;
    assert_eq!(view.state, CampaignState::PendingApproval);
    let token = fleet.token();
    let start = "/api/v1/campaigns/q3-heal-1/start";
    let early = fleet.refused_by_operators("POST", start, Some(&token), "").await;
    assert!(early.refused, "{early:?}");

    // Signed, it is a campaign as any other; while it runs there is no second one.
    fleet.approve(draft.manifest).await;
    fleet.post::<CampaignView>(start, &()).await;
    let running: Reconciled = fleet.post(path, &()).await;
    assert!(!running.drafted && running.draft.is_none(), "{running:?}");
    fleet
        .post::<CampaignView>("/api/v1/campaigns/q3-heal-1/cancel", &())
        .await;
    let second: Reconciled = fleet.post(path, &()).await;
    assert_eq!(second.draft.as_ref().unwrap().id.as_str(), "q3-heal-2", "{second:?}");
    assert!(second.drafted);
    // Removed by a person, it is made again for whoever asks.
    let gone = fleet
        .ask(Method::DELETE, "/api/v1/campaigns/q3-heal-2", &[], None)
        .await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let third: Reconciled = fleet.post(path, &()).await;
    assert!(third.drafted && third.draft.unwrap().id.as_str() == "q3-heal-3");

    // Nobody drifts there, and rules that make no sense are refused.
    let body = json!({ "id": "old", "releases": ["firmware/old.bin"], "reconcile": rules });
    fleet.post::<BaselineView>("/api/v1/baselines", &body).await;
    let rests: Reconciled = fleet.post("/api/v1/baselines/old/reconcile", &()).await;
    assert_eq!((rests.drafted, rests.drifted), (false, 0));
    let mut hasty = body.clone();
    (hasty["id"], hasty["reconcile"]["every_s"]) = ("hasty".into(), 1.into());
    let hasty = fleet
        .refused_by_operators("POST", "/api/v1/baselines", Some(&token), &hasty.to_string())
        .await;
    assert!(hasty.status == 400 && hasty.detail.contains("every_s"), "{hasty:?}");
    let bare = json!({ "id": "bare", "releases": ["firmware/old.bin"] });
    fleet.post::<BaselineView>("/api/v1/baselines", &bare).await;
    let bare = fleet
        .refused_by_operators("POST", "/api/v1/baselines/bare/reconcile", Some(&token), "")
        .await;
    assert_eq!(bare.status, 409);

    // By itself, too.
    let mut watched = body;
    (watched["id"], watched["releases"], watched["reconcile"]["every_s"]) =
        ("watched".into(), json!(["firmware/new.bin"]), 60.into());
    fleet.post::<BaselineView>("/api/v1/baselines", &watched).await;
    let drafted = async {
        while fleet.status("/api/v1/campaigns/watched-heal-1").await != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), drafted)
        .await
        .unwrap();
    fleet.stop().await;
}

#[tokio::test]
async fn a_campaign_is_drafted_by_any_of_its_names_and_waits_for_its_approvers() {
    let (mut fleet, node) = fleet_of_two_sites().await;
    let request = PlanRequest {
        manifest: fleet.draft("spring"),
    };
    let draft: CampaignDraftView = fleet.post("/api/v1/rollouts", &request).await;
    assert_eq!((draft.devices, draft.waves), (4, 2));
    assert_eq!(draft.manifest_sha256, Sha256::of(draft.manifest.as_bytes()));
    assert_eq!(
        fleet.status(&format!("/api/v1/plans/{}", draft.plan_sha256)).await,
        StatusCode::OK
    );
    let token = fleet.token();
    let body = serde_json::to_string(&request).unwrap();
    let again = fleet
        .refused_by_operators("POST", "/api/v1/deployments", Some(&token), &body)
        .await;
    assert_eq!(again.status, 409);
    let view: CampaignView = fleet.get("/api/v1/deployments/spring").await;
    assert_eq!((view.state, view.waves.len()), (CampaignState::PendingApproval, 2));
    let all: Page<CampaignView> = fleet.get("/api/v1/campaigns").await;
    assert_eq!(all.items.len(), 1);
    let why: Vec<Explanation> = fleet.get("/api/v1/campaigns/spring/explain").await;
    assert!(why[0].finding.contains("signatures"), "{why:?}");
    let early = fleet
        .refused_by_operators("POST", "/api/v1/rollouts/spring/start", Some(&token), "")
        .await;
    assert_eq!((early.status, early.refused), (409, true));
    let waiting: Page<ApprovalView> = fleet.get("/api/v1/approvals").await;
    let states: Vec<_> = waiting
        .items
        .iter()
        .map(|view| {
            (
                view.file.trim_start_matches(char::is_numeric),
                view.approved,
                view.signed_by.len(),
            )
        })
        .collect();
    assert_eq!(
        states,
        [
            (".campaigns.json", true, 2),
            (".releases.json", true, 2),
            ("campaigns/spring.json", false, 0)
        ]
    );

    let mut narrower = request.clone();
    narrower.manifest.selector.paths = vec!["eu".parse().unwrap()];
    let narrower = serde_json::to_value(&narrower).unwrap();
    let unread = fleet
        .ask(Method::PUT, "/api/v1/rollouts/spring", &[], Some(narrower.clone()))
        .await;
    assert_eq!(unread.status(), StatusCode::PRECONDITION_REQUIRED);
    let read = fleet.ask(Method::GET, "/api/v1/rollouts/spring", &[], None).await;
    let tag = read.headers()["etag"].to_str().unwrap().to_owned();
    let changed = fleet
        .ask(
            Method::PUT,
            "/api/v1/rollouts/spring",
            &[("if-match", &tag)],
            Some(narrower),
        )
        .await;
    assert_eq!(changed.json::<CampaignDraftView>().await.unwrap().devices, 2);
    fleet.restart().await;
    assert_eq!(
        fleet.get::<CampaignView>("/api/v1/rollouts/spring").await.states[&AttemptState::Pending],
        2
    );

    // Signed, the campaign stands in its place, and the draft can be put away.
    fleet.campaign("spring").await;
    let view: CampaignView = fleet.get("/api/v1/rollouts/spring").await;
    assert_eq!(
        (view.state, view.states[&AttemptState::Pending]),
        (CampaignState::Scheduled, 4)
    );
    let signed = fleet
        .refused_by_operators("PUT", "/api/v1/rollouts/spring", Some(&token), &body)
        .await;
    assert_eq!(signed.kind, "urn:firmesh:problem:campaign_signed");
    let gone = fleet.ask(Method::DELETE, "/api/v1/rollouts/spring", &[], None).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);

    // What it rests on.
    let started: CampaignView = fleet
        .post("/api/firmware/update", &json!({ "campaign": "spring" }))
        .await;
    assert_eq!(started.state, CampaignState::Active);
    fleet.sync(&node, &[]).await;
    let permits: Page<PermitView> = fleet.get("/api/v1/permits?campaign=spring").await;
    assert!(permits.items.len() == 1 && permits.items[0].in_force, "{permits:?}");
    assert!(
        fleet
            .get::<Page<PermitView>>("/api/v1/permits?campaign=summer")
            .await
            .items
            .is_empty()
    );
    let first: Page<AttemptView> = fleet.get("/api/v1/attempts?limit=1").await;
    let all: Page<AttemptView> = fleet.get("/api/v1/attempts").await;
    assert_eq!((first.items[0].clone(), all.items.len()), (all.items[0].clone(), 4));
    assert!(
        fleet
            .get::<Page<AttemptView>>("/api/v1/attempts?state=success")
            .await
            .items
            .is_empty()
    );
    let windows: Page<WindowsView> = fleet.get("/api/v1/windows").await;
    assert!(windows.items[0].windows.is_empty());
    let policies: Page<PolicyView> = fleet.get("/api/v1/policies").await;
    assert_eq!(policies.items[0].rules["caps"], json!({ "per_rack": 1, "total": 10 }));

    let checked: Page<FirmwareChecked> = fleet
        .post("/api/firmware/check", &json!({ "devices": ["n1-d0"] }))
        .await;
    let device = &checked.items[0];
    assert_eq!(
        (device.newest.as_deref(), device.update_available),
        (Some("1.1"), Some(true))
    );
    assert_eq!(device.campaign.as_ref().unwrap().as_str(), "spring");
    let stranger = fleet
        .refused_by_operators("POST", "/api/firmware/check", Some(&token), r#"{"devices":["ghost"]}"#)
        .await;
    assert_eq!(stranger.status, 422);
    let status: FirmwareStatus = fleet.get("/api/firmware/status").await;
    assert_eq!((status.images, status.campaigns[&CampaignState::Active]), (2, 1));
    fleet.stop().await;
}

#[tokio::test]
async fn places_show_what_stands_there() {
    let (fleet, _) = fleet_of_two_sites().await;
    let sites: Page<PlaceView> = fleet.get("/api/v1/sites").await;
    let names: Vec<_> = sites
        .items
        .iter()
        .map(|site| (site.path.to_string(), site.nodes, site.devices))
        .collect();
    assert_eq!(names, [("eu/ber".to_owned(), 1, 2), ("us/nyc".to_owned(), 1, 2)]);
    assert_eq!(sites.items[0].statuses[&DeviceStatus::Idle], 2);
    assert_eq!(sites.items[0].versions["Acme R1 bmc"]["1.0"], 2);
    let regions: Page<PlaceView> = fleet.get("/api/v1/regions?limit=1").await;
    assert_eq!(regions.items[0].path.to_string(), "eu");
    let rack: Value = fleet.get("/api/v1/sites/us/nyc/r1").await;
    assert_eq!(rack["devices"], 2);
    assert_eq!(fleet.status("/api/v1/sites/asia").await, StatusCode::NOT_FOUND);
    fleet.stop().await;
}
