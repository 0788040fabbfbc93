//! What people are told of nodes and publications, by a whole coordinator and over restarts.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State};
use firmesh_protocol::api::{NotificationView, Page, RevokeRequest};
use serde_json::{Value, json};

use crate::fleet::Fleet;

#[tokio::test]
async fn a_silence_is_told_once_and_ends_with_a_word_over_a_restart() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let receiver = Receiver::start().await;
    let config = format!(
        "[nodes]\nsilent_after = \"3s\"\n[[notifications]]\nname = \"all\"\n[notifications.to]\nkind = \"rest\"\n\
         url = \"{}\"\nbody = '{{ \"kind\": {{{{ kind }}}}, \"site\": {{{{ site }}}}, \"nodes\": {{{{ nodes }}}}, \"silent\": {{{{ silent }}}}, \"node\": {{{{ node }}}}, \"reason\": {{{{ reason }}}} }}'\n",
        receiver.url
    );
    std::fs::write(fleet.state_dir().join("coordinator.toml"), config).unwrap();
    fleet.restart().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    // It was never heard of, so nobody misses it.
    fleet.enrol("n2", "eu/s1/r2/n2").await;
    fleet.sync(&node, &[]).await;
    let told = receiver.told(1).await;
    assert_eq!(
        (
            &told[0]["kind"],
            &told[0]["site"],
            &told[0]["nodes"],
            &told[0]["silent"]
        ),
        (&json!("nodes_silent"), &json!("eu/s1"), &json!(["n1"]), &json!(1))
    );
    // What was taken is told again after a start that comes before it is noted.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let views: Page<NotificationView> = fleet.get("/api/v1/notifications").await;
        if views.items[0].delivered == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{views:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fleet.restart().await;
    fleet.sync(&node, &[]).await;
    let told = receiver.told(2).await;
    assert_eq!(
        (&told[1]["kind"], &told[1]["silent"]),
        (&json!("nodes_back"), &json!(0))
    );

    // Of a node that is revoked nothing is expected any more.
    let revoke = RevokeRequest {
        reason: "stolen".to_owned(),
    };
    fleet.post::<Option<()>>("/api/v1/nodes/n1/revoke", &revoke).await;
    let told = receiver.told(3).await;
    assert_eq!(
        (&told[2]["kind"], &told[2]["node"]),
        (&json!("node_revoked"), &json!("n1"))
    );
    assert_eq!(told[2]["reason"], "stolen");

    let mut forged = fleet.draft_publication();
    let releases = forged.metadata.get_mut("releases").unwrap();
    *releases = releases.replace("\"1.1\"", "\"1.2\"");
    let token = fleet.token();
    let body = serde_json::to_string(&forged).unwrap();
    let problem = fleet
        .refused_by_operators("POST", "/api/v1/metadata", Some(&token), &body)
        .await;
    assert!(problem.refused, "{problem:?}");
    let told = receiver.told(4).await;
    assert_eq!(told[3]["kind"], "publication_refused");
    assert_eq!(told[3]["reason"], problem.detail);

    let views: Page<NotificationView> = fleet.get("/api/v1/notifications").await;
    let view = &views.items[0];
    assert_eq!(
        (view.name.as_str(), view.kind.as_str(), view.delivered),
        ("all", "rest", 4)
    );
    let metrics = fleet.text("/metrics").await;
    // Counted since the last start.
    let delivered = "notifications_total{destination=\"all\",outcome=\"delivered\"} 3";
    assert!(metrics.contains(delivered), "{metrics}");
    fleet.stop().await;
}

#[tokio::test]
async fn nobody_orders_a_replay_without_the_token_or_without_sense() {
    let fleet = Fleet::start().await;
    let since = "{\"since_number\": 1}";
    let path = "/api/v1/notifications/nobody/replay";
    assert_eq!(fleet.refused_by_operators("POST", path, None, since).await.status, 401);
    let token = fleet.token();
    for (body, status) in [
        (since, 404),
        ("{\"since\": \"yesterday\"}", 400),
        ("{\"sinse\": 1}", 400),
    ] {
        let problem = fleet.refused_by_operators("POST", path, Some(&token), body).await;
        assert_eq!(problem.status, status, "{body}: {problem:?}");
    }
    let test = "/api/v1/notifications/nobody/test";
    assert_eq!(
        fleet
            .refused_by_operators("POST", test, Some(&token), "{}")
            .await
            .status,
        404
    );
    fleet.stop().await;
}

struct Receiver {
    url: String,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    async fn start() -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let take = async |State(told): State<Arc<Mutex<Vec<Value>>>>, Json(body): Json<Value>| {
            told.lock().unwrap().push(body);
        };
        let app = Router::new().fallback(take).with_state(told.clone());
        tokio::spawn(axum::serve(listener, app).into_future());
        Self { url, told }
    }

    /// What was told, once it is so much.
    async fn told(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let told = self.told.lock().unwrap().clone();
            assert!(told.len() <= count, "more than was expected: {told:?}");
            if told.len() == count {
                return told;
            }
            assert!(Instant::now() < deadline, "waited a minute for {count}: {told:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
