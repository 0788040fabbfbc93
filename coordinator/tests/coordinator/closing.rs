//! What nobody reports the end of is closed by force.

use firmesh_protocol::{
    api::{ArchiveResult, ArchiveRun, AttemptView, CampaignView, CloseRequest, Explanation, Page},
    ids::CampaignId,
    report::AttemptState,
};

use crate::fleet::Fleet;

#[tokio::test]
async fn what_nobody_reports_the_end_of_is_closed_by_force_and_a_late_word_counts() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    fleet.campaign("spring").await;
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;
    let permits = fleet.sync(&node, &[]).await.permits;
    let device = fleet.open_permit(&permits[0]).devices[0].clone();
    fleet.sync(&node, &[(&device, AttemptState::Installing)]).await;

    let token = fleet.token();
    let silent = fleet
        .refused_by_operators(
            "POST",
            "/api/v1/campaigns/spring/close",
            Some(&token),
            r#"{"reason":""}"#,
        )
        .await;
    assert_eq!(
        (silent.status, silent.kind.as_str()),
        (400, "urn:firmesh:problem:bad_request")
    );
    let request = CloseRequest {
        device: Some(device.clone()),
        reason: "its rack is gone".to_owned(),
    };
    let view: CampaignView = fleet.post("/api/v1/rollouts/spring/close", &request).await;
    assert_eq!(view.states[&AttemptState::Quarantined], 1);
    let again = serde_json::to_string(&request).unwrap();
    let again = fleet
        .refused_by_operators("POST", "/api/v1/campaigns/spring/close", Some(&token), &again)
        .await;
    assert_eq!(
        (again.status, again.kind.as_str()),
        (409, "urn:firmesh:problem:nothing_to_close")
    );
    let why: Vec<Explanation> = fleet
        .get(&format!("/api/v1/campaigns/spring/explain?device={device}"))
        .await;
    assert!(
        why[0].finding.contains("closed by an operator: its rack is gone"),
        "{why:?}"
    );

    fleet.restart().await;
    fleet.sync(&node, &[(&device, AttemptState::Success)]).await;
    let attempts: Page<AttemptView> = fleet.get("/api/v1/campaigns/spring/attempts").await;
    let attempt = attempts.items.iter().find(|attempt| attempt.device == device).unwrap();
    assert_eq!(attempt.state, AttemptState::Success, "it was only slow");

    // Its only wave has failed with it, and nothing is left in flight.
    let all = CloseRequest {
        device: None,
        reason: "start afresh".to_owned(),
    };
    let all = serde_json::to_string(&all).unwrap();
    let nothing = fleet
        .refused_by_operators("POST", "/api/v1/campaigns/spring/close", Some(&token), &all)
        .await;
    assert_eq!(
        (nothing.status, nothing.kind.as_str()),
        (409, "urn:firmesh:problem:nothing_to_close")
    );
    let log = fleet.text("/api/v1/audit/entries").await;
    assert!(log.contains("closing") && log.contains("its rack is gone"), "{log}");
    fleet.stop().await;
}

#[tokio::test]
async fn what_is_archived_takes_no_orders_any_more() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    fleet.campaign("spring").await;
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;
    let permits = fleet.sync(&node, &[]).await.permits;
    let device = fleet.open_permit(&permits[0]).devices[0].clone();
    fleet.sync(&node, &[(&device, AttemptState::Installing)]).await;
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/cancel", &()).await;

    let now = ArchiveRun {
        older_than_s: Some(0),
        dry_run: false,
    };
    let spring: CampaignId = "spring".parse().unwrap();
    let early: ArchiveResult = fleet.post("/api/v1/archive", &now).await;
    assert!(
        early.archived.is_empty() && early.kept.contains_key(&spring),
        "{device} has not ended: {early:?}"
    );
    fleet.sync(&node, &[(&device, AttemptState::Success)]).await;
    let archived: ArchiveResult = fleet.post("/api/v1/archive", &now).await;
    assert_eq!(archived.archived, [spring], "{archived:?}");

    let request = CloseRequest {
        device: Some(device),
        reason: "start afresh".to_owned(),
    };
    let (request, token) = (serde_json::to_string(&request).unwrap(), fleet.token());
    for term in ["in which it was archived", "after it"] {
        let refused = fleet
            .refused_by_operators("POST", "/api/v1/campaigns/spring/close", Some(&token), &request)
            .await;
        assert_eq!(
            (refused.status, refused.kind.as_str()),
            (409, "urn:firmesh:problem:wrong_state"),
            "the term {term}"
        );
        assert!(refused.detail.contains("archived"), "{refused:?}");
        fleet.restart().await;
    }
    fleet.stop().await;
}
