//! What the API says of servers that are brought up.

use firmesh_protocol::{
    api::{CampaignState, CampaignView, Page, PlanRequest, PlanResponse, ServerState, ServerView},
    ids::{DeviceId, Sha256},
    manifest::{CampaignKind, CampaignManifest, GateRule, Plan, ProvisioningPhase, Strategy},
    report::AttemptState,
    units::BasisPoints,
};
use reqwest::{Method, StatusCode};

use super::fleet::Fleet;

const SERVERS: &str = "/api/v1/campaigns/spring/servers";

async fn servers(fleet: &Fleet) -> Vec<ServerView> {
    fleet.get::<Page<ServerView>>(SERVERS).await.items
}

/// From the draft to the final validation, over a restart; the last look at them is shown end to end.
#[tokio::test]
async fn servers_are_listed_in_pages_with_the_phase_that_each_is_in() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    let nothing = BasisPoints::new(0).unwrap();
    let mut manifest = CampaignManifest {
        kind: CampaignKind::Provisioning,
        strategy: Strategy::Direct {},
        gate: GateRule::shares(nothing, nothing),
        ..fleet.draft("spring")
    };
    manifest.caps.per_rack = 2;
    let request = PlanRequest {
        manifest: manifest.clone(),
    };
    let planned: PlanResponse = fleet.post("/api/v1/plans", &request).await;
    let plan = Plan::from_bytes(planned.plan.as_bytes()).unwrap();
    assert_eq!((plan.servers.len(), plan.devices().count()), (2, 2));
    // Nothing has happened yet to what nobody has signed for, and there is no such thing as `/servers` of nothing.
    fleet.post::<serde_json::Value>("/api/v1/campaigns", &request).await;
    assert_eq!(servers(&fleet).await, []);
    let none = fleet
        .ask(Method::GET, "/api/v1/campaigns/none/servers", &[], None)
        .await;
    assert_eq!(none.status(), StatusCode::NOT_FOUND);

    manifest.plan_sha256 = Sha256::of(planned.plan.as_bytes());
    fleet.approve(serde_json::to_string(&manifest).unwrap()).await;
    let first = fleet.ask(Method::GET, &format!("{SERVERS}?limit=1"), &[], None).await;
    let link = first.headers()["link"].to_str().unwrap().to_owned();
    let first: Page<ServerView> = first.json().await.unwrap();
    let next = link.split(['<', '>']).nth(1).unwrap();
    let second: Page<ServerView> = fleet.get(&format!("{SERVERS}{next}")).await;
    assert!(first.items[0].server < second.items[0].server, "{first:?}, {second:?}");
    assert_eq!(
        (first.items[0].state, first.items[0].phase),
        (ServerState::Waiting, ProvisioningPhase::Preflight)
    );
    assert_eq!(first.items[0].components[0].to, "1.1");

    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;
    let answer = fleet.sync(&node, &[]).await;
    let devices: Vec<DeviceId> = plan
        .waves
        .iter()
        .flatten()
        .map(|planned| planned.device.clone())
        .collect();
    assert!(!answer.permits.is_empty());
    fleet.sync(&node, &[(&devices[0], AttemptState::Installing)]).await;
    let of = |all: &[ServerView], device: &DeviceId| {
        let found = all.iter().find(|view| view.components[0].device == *device).unwrap();
        (found.state, found.phase)
    };
    assert_eq!(
        of(&servers(&fleet).await, &devices[0]),
        (ServerState::UnderWay, ProvisioningPhase::Updates)
    );
    fleet.sync(&node, &[(&devices[0], AttemptState::Success)]).await;
    let validated = (ServerState::UnderWay, ProvisioningPhase::FinalValidation);
    assert_eq!(of(&servers(&fleet).await, &devices[0]), validated);
    fleet.restart().await;
    // The device still tells the version it had: that is not believed, and not held against it so early.
    fleet.sync(&node, &[(&devices[1], AttemptState::Failed)]).await;
    let all = servers(&fleet).await;
    assert_eq!(of(&all, &devices[0]), validated);
    assert_eq!(
        of(&all, &devices[1]),
        (ServerState::NotProvisioned, ProvisioningPhase::Updates)
    );
    let view: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    let provisioning = view.provisioning.unwrap();
    assert_eq!(provisioning.servers, 2);
    assert_ne!(view.state, CampaignState::Completed);
    fleet.stop().await;
}

/// Approvers sign for devices one by one unless they sign for servers: one is not told as the other.
#[tokio::test]
async fn a_campaign_for_devices_has_no_servers() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    fleet.campaign("spring").await;
    assert_eq!(servers(&fleet).await, []);
    let view: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!(view.provisioning, None);
    fleet.stop().await;
}
