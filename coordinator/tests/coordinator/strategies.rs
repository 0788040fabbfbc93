//! What the API says of strategies and retries.

use firmesh_protocol::{
    api::{PlanRequest, PlanResponse},
    manifest::{CampaignManifest, Retries, RetryBudget, RetryRule, Strategy},
    report::FailureClass,
};
use serde_json::{Value, json};

use super::fleet::Fleet;

/// Refused where it is planned: by what the manifest leaves out, and by what this coordinator does not have.
#[tokio::test]
async fn blue_green_without_hooks_is_refused_where_it_is_planned() {
    let fleet = Fleet::start().await;
    let plan = async |switch: &str| {
        let manifest = CampaignManifest {
            strategy: Strategy::BlueGreen {
                by: "pool".parse().unwrap(),
                order: ["green", "blue"].map(|pool| pool.parse().unwrap()).to_vec(),
                switch: switch.to_owned(),
                drain: "balancer".to_owned(),
            },
            ..fleet.draft("spring")
        };
        let body = serde_json::to_string(&PlanRequest { manifest }).unwrap();
        let token = fleet.token();
        fleet
            .refused_by_operators("POST", "/api/v1/plans", Some(&token), &body)
            .await
    };
    let unknown = plan("balancer").await;
    assert!(
        unknown.refused && unknown.detail.contains("no [[gate_webhooks]] of the name \"balancer\""),
        "{unknown:?}"
    );
    let missing = plan("").await;
    assert!(
        missing.detail.contains("must name a webhook of the coordinator"),
        "{missing:?}"
    );
    fleet.stop().await;
}

/// A draft says when failed devices are begun again, and comes back as it was written; what makes no sense is refused by name.
#[tokio::test]
async fn a_draft_shows_its_retries() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    let retries = Retries {
        rules: vec![RetryRule {
            class: FailureClass::Install,
            times: 2,
            pause_s: 300,
        }],
        budget: RetryBudget::Count(3),
    };
    let manifest = CampaignManifest {
        retries: Some(retries.clone()),
        ..fleet.draft("spring")
    };
    let request = PlanRequest { manifest };
    fleet.post::<PlanResponse>("/api/v1/plans", &request).await;
    let draft: Value = fleet.post("/api/v1/campaigns", &request).await;
    let text = draft["manifest"].to_string();
    assert!(text.contains("retries") && text.contains("300"), "{draft}");
    let mut wrong = serde_json::to_value(&request).unwrap();
    wrong["manifest"]["retries"]["rules"][0]["class"] = json!("quarantine");
    let token = fleet.token();
    let refused = fleet
        .refused_by_operators("POST", "/api/v1/plans", Some(&token), &wrong.to_string())
        .await;
    assert!(refused.detail.contains("a person looks at it"), "{refused:?}");
    fleet.stop().await;
}
