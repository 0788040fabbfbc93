//! The operators' API as a stranger's client sees it: pages, filters, groups, keys of requests, tags, streams, and the
//! document about it all.

use std::collections::BTreeSet;

use firmesh_protocol::{
    api::{
        CampaignMetrics, CampaignStatus, CampaignView, DeviceGroup, DeviceView, EnrolmentTicket, Explanation, Page,
        Problem, ReleaseView,
    },
    ids::Sha256,
    manifest::Artifact,
};
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};

use crate::fleet::{Fleet, IMAGE};

/// Two nodes with two devices each.
async fn small_fleet() -> Fleet {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    for (node, path) in [("n1", "eu/ber/r1/n1"), ("n2", "eu/fra/r1/n2")] {
        let node = fleet.enrol(node, path).await;
        fleet.sync(&node, &[]).await;
    }
    fleet
}

fn names(page: &Page<DeviceView>) -> Vec<String> {
    page.items.iter().map(|view| view.facts.device.to_string()).collect()
}

#[tokio::test]
async fn lists_come_in_pages_that_a_client_can_follow() {
    let mut fleet = small_fleet().await;
    fleet.campaign("spring").await;
    for path in [
        "/api/v1/devices",
        "/api/v1/nodes",
        "/api/v1/artifacts",
        "/api/v1/releases",
        "/api/v1/firmware",
        "/api/v1/campaigns/spring/attempts",
        "/api/v1/rollouts/spring/devices",
    ] {
        let whole: Page<Value> = fleet.get(path).await;
        assert!(whole.items.len() >= 2, "{path}: {}", whole.items.len());
        let (mut items, mut next) = (Vec::new(), "?limit=1".to_owned());
        loop {
            let answer = fleet.ask(Method::GET, &format!("{path}{next}"), &[], None).await;
            let link = answer
                .headers()
                .get("link")
                .map(|link| link.to_str().unwrap().to_owned());
            let page: Page<Value> = answer.json().await.unwrap();
            assert_eq!(page.items.len(), 1, "{path}{next}");
            items.extend(page.items);
            match link {
                Some(link) => {
                    let (reference, rel) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
                    assert_eq!(rel, "; rel=\"next\"");
                    next = reference.to_owned();
                }
                None => break,
            }
        }
        assert_eq!(items, whole.items, "{path}");
    }
    // An alias of another list gives other cursors.
    let answer = fleet.ask(Method::GET, "/api/v1/nodes?limit=1", &[], None).await;
    let link = answer.headers()["link"].to_str().unwrap().to_owned();
    let cursor = link
        .split("cursor=")
        .nth(1)
        .unwrap()
        .split('>')
        .next()
        .unwrap()
        .to_owned();
    for (query, code) in [
        ("limit=0", "bad_request"),
        ("limit=1001", "bad_request"),
        ("limit=many", "bad_request"),
        ("page=2", "bad_request"),
        ("cursor=%21", "bad_cursor"),
        ("cursor=YQ", "bad_cursor"),
        (&format!("cursor={cursor}"), "bad_cursor"),
    ] {
        let problem = fleet
            .refused_by_operators("GET", &format!("/api/v1/devices?{query}"), None, "")
            .await;
        assert_eq!(
            (problem.status, problem.kind.as_str()),
            (400, &*format!("urn:firmesh:problem:{code}")),
            "{query}"
        );
    }
    fleet.stop().await;
}

#[tokio::test]
async fn devices_are_found_by_a_filter_and_a_mistake_in_it_is_shown() {
    let mut fleet = small_fleet().await;
    let all: Page<DeviceView> = fleet.get("/api/v1/devices").await;
    let (first, n1) = (&names(&all)[0], "n1");
    let found = async |fleet: &Fleet, filter: &str| -> Vec<String> {
        let query = format!("/api/v1/devices?filter={}", encoded(filter));
        names(&fleet.get::<Page<DeviceView>>(&query).await)
    };
    assert_eq!(
        found(&fleet, &format!("device == {first:?}")).await,
        std::slice::from_ref(first)
    );
    assert_eq!(found(&fleet, &format!("node == {n1:?}")).await.len(), 2);
    assert_eq!(
        found(&fleet, "path under \"eu/fra\" and vendor == \"Acme\"")
            .await
            .len(),
        2
    );
    assert_eq!(found(&fleet, "not version == \"1.0\"").await, [""; 0]);
    assert_eq!(found(&fleet, "state == \"pending\"").await, [""; 0]);
    fleet.campaign("spring").await;
    assert_eq!(found(&fleet, "campaign == \"spring\"").await, names(&all));
    let bad = format!("/api/v1/devices?filter={}", encoded("vendor = \"Acme\""));
    let problem = fleet.refused_by_operators("GET", &bad, None, "").await;
    assert_eq!(problem.kind, "urn:firmesh:problem:bad_filter");
    assert!(problem.detail.contains("column 8"), "{}", problem.detail);
    fleet.stop().await;
}

#[tokio::test]
async fn a_group_is_changed_by_those_only_who_know_what_they_change() {
    let mut fleet = small_fleet().await;
    let all: Page<DeviceView> = fleet.get("/api/v1/devices").await;
    let devices = names(&all);
    let path = "/api/v1/device-groups/trial";
    let made = fleet
        .ask(
            Method::POST,
            "/api/v1/device-groups",
            &[],
            Some(json!({ "id": "trial", "devices": [devices[0]] })),
        )
        .await;
    assert_eq!(
        (made.status(), &made.headers()["location"]),
        (StatusCode::CREATED, &path.parse().unwrap())
    );
    let tag = made.headers()["etag"].to_str().unwrap().to_owned();
    let refused = async |fleet: &Fleet, method: Method, path: &str, tag: Option<&str>, body: Value| -> (u16, String) {
        let headers: Vec<_> = tag.iter().map(|tag| ("if-match", *tag)).collect();
        let problem: Problem = fleet
            .ask(method, path, &headers, Some(body))
            .await
            .json()
            .await
            .unwrap();
        (problem.status, problem.kind.rsplit(':').next().unwrap().to_owned())
    };
    for (method, place, body, expected) in [
        (
            Method::POST,
            "/api/v1/device-groups",
            json!({ "id": "trial" }),
            (409, "exists"),
        ),
        (
            Method::POST,
            "/api/v1/device-groups",
            json!({ "id": "x", "filter": "a", "devices": ["d"] }),
            (400, "bad_request"),
        ),
        (
            Method::POST,
            "/api/v1/device-groups",
            json!({ "id": "x", "filter": "model ==" }),
            (400, "bad_filter"),
        ),
        (
            Method::POST,
            "/api/v1/device-groups",
            json!({ "id": "x", "devices": ["ghost"] }),
            (422, "unknown_device"),
        ),
        (Method::PUT, path, json!({}), (428, "if_match_required")),
        (Method::DELETE, path, json!({}), (428, "if_match_required")),
    ] {
        let (status, code) = refused(&fleet, method.clone(), place, None, body).await;
        assert_eq!((status, code.as_str()), expected, "{method} {place}");
    }
    let add = json!({ "add": [devices[1], devices[2]], "remove": [devices[0], "ghost"] });
    let changed = fleet
        .ask(
            Method::POST,
            &format!("{path}/devices"),
            &[("if-match", &tag)],
            Some(add.clone()),
        )
        .await;
    let new_tag = changed.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(changed.json::<DeviceGroup>().await.unwrap().members, Some(2));
    let members: Page<DeviceView> = fleet.get(&format!("{path}/devices")).await;
    assert_eq!(names(&members), devices[1..3]);
    for method in [Method::PUT, Method::DELETE] {
        let stale = refused(&fleet, method, path, Some(&tag), json!({})).await;
        assert_eq!(stale, (412, "changed_meanwhile".to_owned()));
    }
    let stale = refused(
        &fleet,
        Method::POST,
        &format!("{path}/devices"),
        Some(&tag),
        add.clone(),
    )
    .await;
    assert_eq!(stale.0, 412);

    // From now on a rule: printed as it is understood, and followed when it is asked.
    let rule = json!({ "description": "one site", "filter": "path under\"eu/ber\"or(device==\"ghost\")" });
    let put = fleet
        .ask(Method::PUT, path, &[("if-match", &new_tag)], Some(rule))
        .await;
    assert_eq!(put.status(), StatusCode::OK);
    fleet.restart().await;
    let shown = fleet.ask(Method::GET, path, &[], None).await;
    let tag = shown.headers()["etag"].to_str().unwrap().to_owned();
    let group: DeviceGroup = shown.json().await.unwrap();
    assert_eq!(
        group.filter.as_deref(),
        Some("path under \"eu/ber\" or device == \"ghost\"")
    );
    let members: Page<DeviceView> = fleet.get(&format!("{path}/devices")).await;
    assert!(
        members.items.len() == 2
            && members
                .items
                .iter()
                .all(|view| view.node == Some("n1".parse().unwrap()))
    );
    let dynamic = refused(&fleet, Method::POST, &format!("{path}/devices"), None, add).await;
    assert_eq!(dynamic, (409, "dynamic_group".to_owned()));
    let same = fleet.ask(Method::GET, path, &[("if-none-match", &tag)], None).await;
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);

    let gone = fleet.ask(Method::DELETE, path, &[("if-match", &tag)], None).await;
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let groups: Page<DeviceGroup> = fleet.get("/api/v1/device-groups").await;
    assert!(groups.items.is_empty());
    let again: DeviceGroup = fleet.post("/api/v1/device-groups", &json!({ "id": "trial" })).await;
    assert_ne!(format!("\"v{}\"", again.version), tag, "a version that it never had");
    fleet.stop().await;
}

#[tokio::test]
async fn a_request_with_a_key_is_carried_out_once() {
    let mut fleet = Fleet::start().await;
    let path = "/api/v1/device-groups";
    let key = [("idempotency-key", "k-1")];
    let body = json!({ "id": "trial" });
    let first = fleet.ask(Method::POST, path, &key, Some(body.clone())).await;
    assert!(first.status() == StatusCode::CREATED && !first.headers().contains_key("idempotency-replayed"));
    let first: Value = first.json().await.unwrap();
    fleet.restart().await;
    let again = fleet.ask(Method::POST, path, &key, Some(body.clone())).await;
    assert_eq!(
        (again.status(), &again.headers()["idempotency-replayed"]),
        (StatusCode::CREATED, &"true".parse().unwrap())
    );
    assert_eq!(again.json::<Value>().await.unwrap(), first);
    let code = async |fleet: &Fleet, path: &str, key: &str, body: Value| -> (u16, String) {
        let answer = fleet
            .ask(Method::POST, path, &[("idempotency-key", key)], Some(body))
            .await;
        let problem: Problem = answer.json().await.unwrap();
        (problem.status, problem.kind.rsplit(':').next().unwrap().to_owned())
    };
    assert_eq!(
        code(&fleet, path, "k-1", json!({ "id": "other" })).await,
        (422, "idempotency_key_reused".to_owned())
    );
    assert_eq!(
        code(&fleet, path, "a b", body.clone()).await,
        (400, "bad_idempotency_key".to_owned())
    );
    // Without a key it is another request; a refusal is kept as well.
    assert_eq!(
        fleet.ask(Method::POST, path, &[], Some(body.clone())).await.status(),
        StatusCode::CONFLICT
    );
    assert_eq!(
        code(&fleet, path, "k-2", body.clone()).await,
        (409, "exists".to_owned())
    );
    let kept = fleet
        .ask(
            Method::POST,
            path,
            &[("idempotency-key", "k-2"), ("x-request-id", "again")],
            Some(body),
        )
        .await;
    assert_eq!(kept.headers()["idempotency-replayed"], "true");
    assert_eq!(
        kept.json::<Problem>().await.unwrap().request_id.as_deref(),
        Some("again")
    );

    // A ticket is a secret: it is made once, and not kept.
    let node = json!({ "node": "n1", "path": "eu/s1/r1/n1" });
    let ticket = fleet.ask(Method::POST, "/api/v1/nodes", &key, Some(node.clone())).await;
    let ticket: EnrolmentTicket = ticket.json().await.unwrap();
    assert_eq!(
        code(&fleet, "/api/v1/nodes", "k-1", node).await,
        (409, "answer_not_kept".to_owned())
    );
    let database = fleet.database_bytes();
    // A dump has bytes in hexadecimal.
    for token in [ticket.token.clone(), hex::encode(&ticket.token)] {
        let mut windows = database.windows(token.len());
        assert!(
            !windows.any(|window| window == token.as_bytes()),
            "the token is on the disk"
        );
    }

    // An image is named by its digest, and a broken upload may be tried again.
    assert_eq!(
        code(&fleet, "/api/v1/artifacts", "k-1", json!({})).await,
        (400, "bad_request".to_owned())
    );
    let place = format!("/api/v1/artifacts?sha256={}", Sha256::of(IMAGE));
    let wrong = fleet.send_bytes(&place, &key, &IMAGE[1..]).await;
    assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let right = fleet.send_bytes(&place, &key, IMAGE).await;
    assert!(right.status() == StatusCode::OK && !right.headers().contains_key("idempotency-replayed"));
    let replayed = fleet.send_bytes(&place, &key, "not sent again").await;
    assert_eq!(replayed.headers()["idempotency-replayed"], "true");
    assert_eq!(replayed.json::<Artifact>().await.unwrap().sha256, Sha256::of(IMAGE));
    fleet.stop().await;
}

/// An upload whose body comes slowly keeps its key: nobody else is let in.
#[tokio::test]
async fn a_key_whose_first_request_goes_on_is_refused() {
    let fleet = Fleet::start().await;
    let path = format!("/api/v1/artifacts?sha256={}", Sha256::of(IMAGE));
    let key = [("idempotency-key", "slow")];
    let (sender, chunks) = tokio::sync::mpsc::channel::<Result<&'static [u8], std::io::Error>>(1);
    let slow = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(chunks));
    sender.send(Ok(&IMAGE[..100])).await.unwrap();
    let mut upload = Box::pin(fleet.send_bytes(&path, &key, slow));
    // What comes is written to a file of its own: then the first request is under way.
    let images = fleet.state_dir().join("artifacts");
    let is_part =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().extension().is_some_and(|end| end == "part");
    let second = async {
        while !std::fs::read_dir(&images).unwrap().any(is_part) {
            tokio::task::yield_now().await;
        }
        fleet
            .send_bytes(&path, &key, &b"x"[..])
            .await
            .json::<Problem>()
            .await
            .unwrap()
    };
    let refused = tokio::select! {
        early = &mut upload => panic!("the upload ended before its body: {early:?}"),
        refused = tokio::time::timeout(std::time::Duration::from_secs(20), second) => refused.unwrap(),
    };
    assert_eq!(refused.kind, "urn:firmesh:problem:request_running");
    sender.send(Ok(&IMAGE[100..])).await.unwrap();
    drop(sender);
    assert_eq!(upload.await.status(), StatusCode::OK);
    fleet.stop().await;
}

#[tokio::test]
async fn every_answer_names_its_request_and_tells_whether_it_has_changed() {
    let fleet = small_fleet().await;
    let made = fleet
        .ask(Method::GET, "/api/v1/about", &[("x-request-id", "not valid!")], None)
        .await;
    let id = made.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert!(
        id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
    assert!(made.headers().contains_key("ratelimit-remaining"));
    let trace = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    for (path, status) in [("/health", 200), ("/api/v1/nodes/absent", 404), ("/nowhere", 404)] {
        let answer = fleet
            .ask(Method::GET, path, &[("x-request-id", "req-7"), trace], None)
            .await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["x-request-id"]),
            (status, &"req-7".parse().unwrap())
        );
        if status == 404 {
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            assert_eq!(
                answer.json::<Problem>().await.unwrap().request_id.as_deref(),
                Some("req-7")
            );
        }
    }
    let wrong = fleet.ask(Method::DELETE, "/api/v1/about", &[], None).await;
    assert!(
        wrong.status() == StatusCode::METHOD_NOT_ALLOWED && wrong.headers()["allow"].to_str().unwrap().contains("GET")
    );
    assert_eq!(
        wrong.json::<Problem>().await.unwrap().kind,
        "urn:firmesh:problem:no_such_method"
    );

    let devices: Page<DeviceView> = fleet.get("/api/v1/devices").await;
    let path = format!("/api/v1/devices/{}", devices.items[0].facts.device);
    let shown = fleet.ask(Method::GET, &path, &[], None).await;
    let tag = shown.headers()["etag"].to_str().unwrap().to_owned();
    for (sent, status) in [
        (tag.as_str(), 304),
        (&format!("\"x\", W/{tag}"), 304),
        ("*", 304),
        ("\"x\"", 200),
    ] {
        let answer = fleet.ask(Method::GET, &path, &[("if-none-match", sent)], None).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["etag"]),
            (status, &tag.parse().unwrap()),
            "{sent}"
        );
        assert_eq!(answer.bytes().await.unwrap().is_empty(), status == 304);
    }
    fleet.stop().await;
}

#[tokio::test]
async fn who_asks_too_often_waits() {
    let fleet = Fleet::start_with("[operators]\nrequests_per_second = 1\nrequests_burst = 3\n").await;
    let mut seen = Vec::new();
    for _ in 0..12 {
        let answer = fleet.client().get(fleet.url("/api/v1/about")).send().await.unwrap();
        seen.push(answer.status());
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(answer.headers()["ratelimit-remaining"], "0");
            assert!(
                answer.headers()["retry-after"]
                    .to_str()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
                    >= 1
            );
            assert_eq!(
                answer.json::<Problem>().await.unwrap().kind,
                "urn:firmesh:problem:too_many_requests"
            );
        }
    }
    assert_eq!(seen[0], StatusCode::OK);
    assert!(seen.contains(&StatusCode::TOO_MANY_REQUESTS), "{seen:?}");
    // Operators have a bucket of their own, and health is nobody's.
    assert_eq!(
        fleet.ask(Method::GET, "/api/v1/about", &[], None).await.status(),
        StatusCode::OK
    );
    assert_eq!(fleet.status("/health").await, StatusCode::OK);
    fleet.stop().await;
}

#[tokio::test]
async fn rollouts_and_deployments_are_campaigns_by_other_names() {
    let mut fleet = small_fleet().await;
    fleet.campaign("spring").await;
    fleet
        .post::<CampaignView>("/api/v1/deployments/spring/start", &())
        .await;
    for tail in [
        "",
        "/spring",
        "/spring/plan",
        "/spring/explain",
        "/spring/attempts",
        "/spring/devices",
        "/spring/status",
        "/spring/metrics",
        "/spring/logs",
    ] {
        let expected = fleet.text(&format!("/api/v1/campaigns{tail}")).await;
        for noun in ["rollouts", "deployments"] {
            assert_eq!(
                fleet.text(&format!("/api/v1/{noun}{tail}")).await,
                expected,
                "{noun}{tail}"
            );
        }
    }
    let status: CampaignStatus = fleet.get("/api/v1/rollouts/spring/status").await;
    assert!(!status.ended && status.waves == 2, "{status:?}");
    let metrics: CampaignMetrics = fleet.get("/api/v1/rollouts/spring/metrics").await;
    assert_eq!((metrics.devices, metrics.ended, metrics.succeeded), (4, 0, 0));
    let logs: Page<Explanation> = fleet.get("/api/v1/rollouts/spring/logs").await;
    assert!(
        logs.items
            .iter()
            .any(|line| line.subject == "wave 0" && line.finding == "opened"),
        "{logs:?}"
    );
    for tail in ["status", "devices", "metrics", "logs"] {
        assert_eq!(
            fleet.status(&format!("/api/v1/rollouts/absent/{tail}")).await,
            StatusCode::NOT_FOUND
        );
    }
    fleet.stop().await;
}

#[tokio::test]
async fn an_image_leaves_to_operators_only_and_auditors_see_it() {
    let fleet = small_fleet().await;
    let firmware: Page<ReleaseView> = fleet.get("/api/v1/firmware").await;
    assert_eq!(firmware.items.len(), 2);
    let one: ReleaseView = fleet.get("/api/v1/firmware/new.bin").await;
    assert!(one.stored && one.release.target == "firmware/new.bin");
    let path = "/api/v1/firmware/new.bin/download";
    let stranger = fleet.client().get(fleet.url(path)).send().await.unwrap();
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
    let whole = fleet.ask(Method::GET, path, &[], None).await;
    assert_eq!(whole.status(), StatusCode::OK);
    assert!(whole.bytes().await.unwrap() == IMAGE);
    let part = fleet.ask(Method::GET, path, &[("range", "bytes=10-19")], None).await;
    assert_eq!(
        (part.status(), &part.headers()["content-range"]),
        (
            StatusCode::PARTIAL_CONTENT,
            &format!("bytes 10-19/{}", IMAGE.len()).parse().unwrap()
        )
    );
    assert!(part.bytes().await.unwrap() == IMAGE[10..20]);
    let beyond = fleet.ask(Method::GET, path, &[("range", "bytes=70000-")], None).await;
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let log = fleet.text("/api/v1/audit/entries").await;
    let exports = log.matches("\\\"kind\\\":\\\"export\\\"").count();
    assert_eq!(exports, 2, "{log}");
    fleet.stop().await;
}

#[tokio::test]
async fn the_document_has_every_route_and_every_route_is_there() {
    let fleet = Fleet::start().await;
    let document: Value = fleet.get("/api/v1/openapi.json").await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert!(document["x-problem-types"]["urn:firmesh:problem:bad_cursor"].is_string());
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let filled = path
            .replace("{verb}", "start")
            .split('/')
            .map(|part| if part.starts_with('{') { "absent" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        for method in ["get", "post", "put", "delete", "patch"] {
            // Streams do not end by themselves: only their head is read.
            let answer = fleet
                .ask(method.to_uppercase().parse().unwrap(), &filled, &[], None)
                .await;
            let operation = &item[method];
            assert_eq!(
                answer.status() == StatusCode::METHOD_NOT_ALLOWED,
                operation.is_null(),
                "{method} {path}: {answer:?}"
            );
            if operation.is_null() {
                continue;
            }
            assert!(
                ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
                "{method} {path}"
            );
            if answer.status() == StatusCode::NOT_FOUND {
                let problem: Problem = answer.json().await.unwrap();
                assert!(
                    !problem.detail.contains(&filled),
                    "{method} {path} has no route: {}",
                    problem.detail
                );
            }
        }
    }
    // Whatever is referred to is there.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    assert!(ids.len() > 60, "{}", ids.len());
    fleet.stop().await;
}

#[tokio::test]
async fn a_stream_tells_of_its_own_campaign_or_device_and_strangers_pages_get_none() {
    let mut fleet = small_fleet().await;
    fleet.campaign("spring").await;
    let devices: Page<DeviceView> = fleet.get("/api/v1/devices").await;
    let device = devices.items[0].facts.device.clone();
    let open = |path: String, headers: Vec<(&'static str, String)>| {
        let mut request = fleet
            .url(&path)
            .replacen("http", "ws", 1)
            .into_client_request()
            .unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        tokio_tungstenite::connect_async(request)
    };
    let host = fleet.operator_address().to_string();
    let own_page = vec![("origin", format!("http://{host}"))];
    let (mut campaign, _) = open("/api/v1/stream/rollouts/spring".to_owned(), own_page)
        .await
        .unwrap();
    let (mut all, _) = open("/api/v1/stream/fleet".to_owned(), Vec::new()).await.unwrap();
    let (mut one, _) = open(format!("/api/v1/stream/devices/{device}"), Vec::new())
        .await
        .unwrap();
    for (path, headers, status) in [
        (
            "/api/v1/stream/fleet",
            vec![("origin", "http://stranger.example".to_owned())],
            403,
        ),
        ("/api/v1/stream/rollouts/absent", Vec::new(), 404),
        ("/api/v1/stream/devices/absent", Vec::new(), 404),
        ("/api/v1/stream/fleet?last=x", Vec::new(), 400),
    ] {
        match open(path.to_owned(), headers).await {
            Err(tungstenite::Error::Http(answer)) => assert_eq!(answer.status().as_u16(), status, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    fleet.post::<CampaignView>("/api/v1/rollouts/spring/start", &()).await;
    let event = next_event(&mut campaign).await;
    assert!(
        event["kind"] == "campaign" && event["data"]["id"] == "spring",
        "{event}"
    );
    assert_eq!(next_event(&mut all).await["kind"], "campaign");
    // The device's own attempt ends with its campaign.
    fleet.post::<CampaignView>("/api/v1/rollouts/spring/cancel", &()).await;
    let event = next_event(&mut one).await;
    assert!(
        event["kind"] == "attempt" && event["data"]["device"] == device.as_str(),
        "{event}"
    );
    // Who comes back is told what he missed, and one who was away too long is told so.
    let last = event["id"].as_u64().unwrap();
    let (mut back, _) = open(format!("/api/v1/stream/fleet?last={}", last - 1), Vec::new())
        .await
        .unwrap();
    assert_eq!(next_event(&mut back).await["id"], last);
    let (mut late, _) = open("/api/v1/stream/fleet?last=1".to_owned(), Vec::new())
        .await
        .unwrap();
    assert_eq!(next_event(&mut late).await, json!({ "kind": "reload" }));
    late.close(None).await.unwrap();
    // A stop does not wait for watchers.
    fleet.stop().await;
    while let Some(message) = campaign.next().await {
        if message.is_err() {
            break;
        }
    }
    drop(campaign.close(None).await);
}

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

async fn next_event(socket: &mut Socket) -> Value {
    let wait = async {
        loop {
            match socket.next().await.expect("the stream goes on").unwrap() {
                tungstenite::Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                tungstenite::Message::Ping(_) => socket.flush().await.unwrap(),
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), wait)
        .await
        .unwrap()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}
