//! Who may do what: every operation with every role, API keys, tokens, limits, and who did it in the audit log.

use std::{collections::BTreeMap, fmt::Write as _};

use data_encoding::BASE64URL_NOPAD;
use firmesh_protocol::{
    api::{
        ApiKeyMade, ApiKeyView, CampaignView, Limits, LoginMethods, NewApiKey, Page, PermissionView, Problem, Role,
        RotateRequest, TokenAnswer, WhoAmI,
    },
    ids::DeviceId,
};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::fleet::Fleet;

const GOLDEN: &str = include_str!("../golden/access_matrix.txt");

fn new(name: &str, role: Role) -> NewApiKey {
    NewApiKey {
        name: name.to_owned(),
        role,
        limits: Limits::default(),
        device: (role == Role::Device).then(|| "n1-d0".parse::<DeviceId>().unwrap()),
        days: None,
    }
}

async fn made(fleet: &Fleet, new: &NewApiKey) -> ApiKeyMade {
    fleet.post("/api/v1/access/keys", new).await
}

async fn send(fleet: &Fleet, proof: Option<&str>, method: Method, path: &str, body: Option<Value>) -> Response {
    let mut request = fleet.client().request(method, fleet.url(path));
    if let Some(proof) = proof {
        request = request.bearer_auth(proof);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    request.send().await.unwrap()
}

async fn status(fleet: &Fleet, proof: &str, method: Method, path: &str) -> StatusCode {
    send(fleet, Some(proof), method, path, None).await.status()
}

async fn problem(response: Response) -> Problem {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    response.json().await.unwrap()
}

/// Reads the rows of `Event`s as the audit log has them.
async fn entries(fleet: &Fleet, kind: &str) -> Vec<Value> {
    let log: Value = fleet.get("/api/v1/audit/entries").await;
    let entries = log["items"].as_array().unwrap().iter();
    let entries = entries.map(|logged| serde_json::from_str::<Value>(logged["entry"].as_str().unwrap()).unwrap());
    entries
        .map(|entry| entry["event"].clone())
        .filter(|event| event["kind"] == kind)
        .collect()
}

/// Whoever adds an operation says in the golden file who may use it.
#[tokio::test]
async fn every_operation_is_for_the_roles_that_the_matrix_names() {
    let fleet = Fleet::start_with("[operators]\ntoken_for_reads = true\n").await;
    let mut proofs = vec![("nobody", None)];
    for role in Role::ALL {
        let key = made(&fleet, &new(role.name(), role)).await;
        proofs.push((role.name(), Some(key.secret)));
    }
    let document: Value = send(
        &fleet,
        proofs[4].1.as_deref(),
        Method::GET,
        "/api/v1/openapi.json",
        None,
    )
    .await
    .json()
    .await
    .unwrap();
    let mut table = String::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let filled = path
            .replace("{verb}", "start")
            .replace("/devices/{id}", "/devices/n1-d0")
            .split('/')
            .map(|part| if part.starts_with('{') { "absent" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        for method in ["get", "post", "put", "patch", "delete"] {
            let operation = &item[method];
            if operation.is_null() {
                continue;
            }
            let (mut let_in, mut refusals) = (Vec::new(), BTreeMap::new());
            for (name, proof) in &proofs {
                let answer = send(
                    &fleet,
                    proof.as_deref(),
                    method.to_uppercase().parse().unwrap(),
                    &filled,
                    None,
                )
                .await;
                match answer.status() {
                    status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                        refusals.insert(*name, (status, problem(answer).await));
                    }
                    status => {
                        assert!(!status.is_server_error(), "{method} {path} as {name}: {status}");
                        let_in.push(*name);
                    }
                }
            }
            // Why is said, and who could: nobody is asked who he is, others what they lack.
            let needs: Vec<_> = operation["x-permission"].as_array().unwrap().iter().collect();
            for (name, (status, problem)) in refusals {
                if name == "nobody" {
                    assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
                    continue;
                }
                assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path} as {name}");
                assert_eq!(problem.kind, "urn:firmesh:problem:forbidden");
                for permission in &needs {
                    assert!(problem.detail.contains(permission.as_str().unwrap()), "{problem:?}");
                }
                assert!(problem.detail.contains("admin") && problem.refused, "{problem:?}");
            }
            writeln!(table, "{:<7}{path:<52}{}", method.to_uppercase(), let_in.join(" ")).unwrap();
        }
    }
    let without_comments = |text: &str| {
        let rows = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        rows.map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };
    let (found, expected) = (without_comments(&table), without_comments(GOLDEN));
    let surplus: Vec<_> = found.iter().filter(|row| !expected.contains(row)).collect();
    let missing: Vec<_> = expected.iter().filter(|row| !found.contains(row)).collect();
    assert!(
        surplus.is_empty() && missing.is_empty(),
        "coordinator/tests/golden/access_matrix.txt says otherwise.\nFound, and not there: {surplus:#?}\nThere, and not found: {missing:#?}"
    );
    fleet.stop().await;
}

#[tokio::test]
async fn an_api_key_is_shown_once_rotated_and_revoked_with_its_tokens() {
    let mut fleet = Fleet::start().await;
    let answer = fleet
        .ask(
            Method::POST,
            "/api/v1/access/keys",
            &[],
            Some(json!(new("pipeline", Role::Operator))),
        )
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let place = answer.headers()["location"].to_str().unwrap().to_owned();
    let ApiKeyMade { key, secret } = answer.json().await.unwrap();
    assert_eq!(key.created_by, "bootstrap");
    let shown = fleet.ask(Method::GET, &place, &[], None).await.text().await.unwrap();
    assert!(shown.contains("pipeline") && !shown.contains(&secret[30..]), "{shown}");

    let who: WhoAmI = send(&fleet, Some(&secret), Method::GET, "/api/v1/auth/whoami", None)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!((who.name, who.means.as_str()), (format!("key:{}", key.id), "api_key"));
    assert!(who.permissions.contains(&"campaign:order".to_owned()));
    assert!(!who.permissions.contains(&"access:manage".to_owned()));

    // A token for it, which any verifier can check with the published key.
    let exchange = json!({ "api_key": secret });
    let answer = send(&fleet, None, Method::POST, "/api/v1/auth/token", Some(exchange.clone())).await;
    let TokenAnswer {
        access_token,
        expires_in,
        ..
    } = answer.json().await.unwrap();
    assert_eq!(expires_in, 900);
    let keys: Value = fleet.get("/api/v1/auth/jwks.json").await;
    let public = BASE64URL_NOPAD
        .decode(keys["keys"][0]["x"].as_str().unwrap().as_bytes())
        .unwrap();
    let (text, signature) = access_token.rsplit_once('.').unwrap();
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
    let public = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public);
    public.verify(text.as_bytes(), &signature).unwrap();
    let groups = "/api/v1/device-groups";
    let group = |id: &str| Some(json!({ "id": id, "filter": "model == \"R1\"" }));
    let answer = send(&fleet, Some(&access_token), Method::POST, groups, group("g1")).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let refused = send(&fleet, Some(&access_token), Method::GET, "/api/v1/access/keys", None).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let refused = problem(refused).await;
    for said in ["access:manage", "admin", "operator", &key.id] {
        assert!(refused.detail.contains(said), "{said}: {}", refused.detail);
    }

    // The tokens' key comes from the permit key, so a restart changes nothing, nor would another coordinator.
    fleet.restart().await;
    assert_eq!(status(&fleet, &access_token, Method::GET, groups).await, StatusCode::OK);

    // Rotation: both secrets, then the new one.
    let rotate = RotateRequest {
        grace_seconds: Some(3_600),
    };
    let answer = send(
        &fleet,
        Some(&secret),
        Method::POST,
        "/api/v1/auth/key/rotate",
        Some(json!(rotate)),
    )
    .await;
    let rotated: ApiKeyMade = answer.json().await.unwrap();
    for good in [&secret, &rotated.secret] {
        assert_eq!(status(&fleet, good, Method::GET, groups).await, StatusCode::OK);
    }
    // Whoever has found the old secret, or a token, reads for a while, and does not get the key for himself.
    for old in [&secret, &access_token] {
        let refused = send(
            &fleet,
            Some(old),
            Method::POST,
            "/api/v1/auth/key/rotate",
            Some(json!({})),
        )
        .await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }
    let bounded = json!({ "api_key": secret });
    let bounded = send(&fleet, None, Method::POST, "/api/v1/auth/token", Some(bounded)).await;
    assert!(bounded.json::<TokenAnswer>().await.unwrap().expires_in <= 900);
    let at_once: ApiKeyMade = fleet
        .post(&format!("{place}/rotate"), &RotateRequest { grace_seconds: Some(0) })
        .await;
    assert_eq!(
        status(&fleet, &secret, Method::GET, groups).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        status(&fleet, &at_once.secret, Method::GET, groups).await,
        StatusCode::OK
    );

    // Revocation: nothing is good any more, nor is it asked to be.
    let revoked: ApiKeyView = fleet.post(&format!("{place}/revoke"), &()).await;
    assert!(revoked.revoked.is_some());
    for bad in [&rotated.secret, &at_once.secret, &access_token] {
        let answer = send(&fleet, Some(bad), Method::GET, groups, None).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
    }
    let again = fleet
        .ask(Method::POST, &format!("{place}/rotate"), &[], Some(json!({})))
        .await;
    assert_eq!(problem(again).await.kind, "urn:firmesh:problem:key_revoked");
    let answer = send(
        &fleet,
        None,
        Method::POST,
        "/api/v1/auth/token",
        Some(json!({ "api_key": at_once.secret })),
    )
    .await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);

    // All of that is in the audit log, with who did it, and nothing secret.
    let by = format!("key:{}", key.id);
    let changes = entries(&fleet, "key").await;
    let changes: Vec<_> = changes
        .iter()
        .map(|event| (event["what"].as_str().unwrap(), event["by"].as_str().unwrap()))
        .collect();
    assert_eq!(
        changes,
        [
            ("made", "bootstrap"),
            ("rotated", by.as_str()),
            ("rotated", "bootstrap"),
            ("revoked", "bootstrap")
        ]
    );
    let accesses = entries(&fleet, "access").await;
    let group = accesses.iter().find(|event| event["by"] == by.as_str()).unwrap();
    assert_eq!(
        *group,
        json!({
            "kind": "access", "by": by, "means": "api_key", "permission": "group:write",
            "request": "POST /api/v1/device-groups",
        })
    );
    let log = fleet.text("/api/v1/audit/entries").await;
    for secret in [&secret, &rotated.secret, &at_once.secret] {
        assert!(!log.contains(&secret[30..]), "a secret is in the log");
    }
    let metrics = fleet.text("/metrics").await;
    let refused = "logins_total{means=\"api_key\",outcome=\"refused\"} 1";
    assert!(metrics.contains(refused), "{metrics}");
    fleet.stop().await;
}

#[tokio::test]
async fn an_operator_of_one_site_orders_only_campaigns_that_stay_there() {
    let mut fleet = Fleet::start_with("[access.environments]\n\"eu\" = \"production\"\n").await;
    fleet.found().await;
    for (node, path) in [("n1", "eu/ber/r1/n1"), ("n2", "eu/fra/r1/n2")] {
        let node = fleet.enrol(node, path).await;
        fleet.sync(&node, &[]).await;
    }
    fleet.campaign("spring").await;
    let limited = async |sites: &[&str]| {
        let sites = Some(sites.iter().map(|site| (*site).to_owned()).collect());
        let limits = Limits {
            sites,
            ..Limits::default()
        };
        made(
            &fleet,
            &NewApiKey {
                limits,
                ..new("limited", Role::Operator)
            },
        )
        .await
        .secret
    };
    let (berlin, both) = (limited(&["eu/ber"]).await, limited(&["eu/ber", "eu/fra"]).await);
    let start = "/api/v1/campaigns/spring/start";
    let refused = problem(send(&fleet, Some(&berlin), Method::POST, start, None).await).await;
    assert_eq!(refused.status, 403);
    for said in ["campaign:order", "sites eu/ber", "eu/fra"] {
        assert!(refused.detail.contains(said), "{}", refused.detail);
    }
    // Another spelling is no way around.
    for spelled in [
        "/api/v1/campaigns/sprin%67/start",
        "/api/v1/rollouts/spring/start",
        "/api/v1/deployments/spring/start?x=1",
        "/api/v1/deployments/%73pring/start",
    ] {
        assert_eq!(
            status(&fleet, &berlin, Method::POST, spelled).await,
            StatusCode::FORBIDDEN,
            "{spelled}"
        );
    }
    // Nor is naming one's own device in a query that the route does not have, nor naming the campaign in the body.
    let update = |campaign: &str| Some(json!({ "campaign": campaign }));
    for path in ["/api/firmware/update", "/api/firmware/update?device=n1-d0"] {
        for campaign in ["spring", "absent"] {
            let answer = send(&fleet, Some(&berlin), Method::POST, path, update(campaign)).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path} {campaign}");
        }
    }
    let admin = NewApiKey {
        limits: Limits {
            sites: Some(["eu/ber".to_owned()].into()),
            ..Limits::default()
        },
        ..new("limited admin", Role::Admin)
    };
    let admin = made(&fleet, &admin).await.secret;
    for (path, body) in [
        ("/api/v1/access/keys", json!({ "name": "x", "role": "admin" })),
        ("/api/v1/device-groups", json!({ "id": "g", "devices": ["n1-d0"] })),
        ("/api/v1/nodes", json!({ "node": "x", "path": "eu/fra/r1/x" })),
        ("/api/v1/metadata", json!({ "metadata": {}, "manifests": {} })),
    ] {
        let path = format!("{path}?device=n1-d0");
        let answer = send(&fleet, Some(&admin), Method::POST, &path, Some(body)).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{path}");
    }
    // His own devices he may clear (this one is not quarantined), another site's not, nor ones that nobody knows.
    let clear = |device: &str| format!("/api/v1/devices/{device}/clear");
    assert_ne!(
        status(&fleet, &berlin, Method::POST, &clear("n1-d0")).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        status(&fleet, &berlin, Method::POST, &clear("n2-d0")).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        status(&fleet, &berlin, Method::POST, &clear("absent")).await,
        StatusCode::FORBIDDEN
    );
    // What lies nowhere in particular is everywhere.
    let group = Some(json!({ "id": "g", "devices": ["n1-d0"] }));
    let answer = send(&fleet, Some(&berlin), Method::POST, "/api/v1/device-groups", group).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        status(&fleet, &berlin, Method::GET, "/api/v1/devices/n2-d0").await,
        StatusCode::OK
    );

    let started = send(
        &fleet,
        Some(&both),
        Method::POST,
        "/api/firmware/update",
        update("spring"),
    )
    .await;
    assert_eq!(started.status(), StatusCode::OK);
    let staging = Limits {
        environments: Some(["staging".to_owned()].into()),
        ..Limits::default()
    };
    let staging = made(
        &fleet,
        &NewApiKey {
            limits: staging,
            ..new("staging", Role::Operator)
        },
    )
    .await
    .secret;
    let pause = "/api/v1/campaigns/spring/pause";
    assert_eq!(
        status(&fleet, &staging, Method::POST, pause).await,
        StatusCode::FORBIDDEN
    );
    let production = Limits {
        environments: Some(["production".to_owned()].into()),
        ..Limits::default()
    };
    let production = made(
        &fleet,
        &NewApiKey {
            limits: production,
            ..new("p", Role::Operator)
        },
    )
    .await
    .secret;
    let paused: CampaignView = send(&fleet, Some(&production), Method::POST, pause, None)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(paused.id.as_str(), "spring");
    fleet.stop().await;
}

/// An answer is kept for who was given it.
#[tokio::test]
async fn nobody_is_given_the_answer_of_another_ones_idempotency_key() {
    let fleet = Fleet::start().await;
    let (one, other) = (
        made(&fleet, &new("one", Role::Operator)).await,
        made(&fleet, &new("other", Role::Operator)).await,
    );
    let ask = async |proof: &str| {
        let request = fleet
            .client()
            .post(fleet.url("/api/v1/device-groups"))
            .bearer_auth(proof);
        let request = request
            .header("idempotency-key", "k")
            .json(&json!({ "id": "g", "filter": "model == \"R1\"" }));
        let answer = request.send().await.unwrap();
        (answer.status(), answer.headers().contains_key("idempotency-replayed"))
    };
    assert_eq!(ask(&one.secret).await, (StatusCode::CREATED, false));
    assert_eq!(ask(&one.secret).await, (StatusCode::CREATED, true));
    assert_eq!(ask(&other.secret).await, (StatusCode::CONFLICT, false));
    // A secret is not kept to be given out again.
    let make = [("idempotency-key", "secret")];
    for status in [StatusCode::CREATED, StatusCode::CONFLICT] {
        let body = Some(json!(new("x", Role::Viewer)));
        let answer = fleet.ask(Method::POST, "/api/v1/access/keys", &make, body).await;
        assert_eq!(answer.status(), status);
    }
    let keys: Page<ApiKeyView> = fleet
        .ask(Method::GET, "/api/v1/access/keys?limit=2", &[], None)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(keys.items.len(), 2);
    assert!(keys.items[0].id < keys.items[1].id);
    fleet.stop().await;
}

#[tokio::test]
async fn an_image_leaves_to_who_may_take_it_and_the_log_says_to_whom() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let path = "/api/v1/firmware/new.bin/download";
    let device = made(&fleet, &new("device", Role::Device)).await;
    let operator = made(&fleet, &new("operator", Role::Operator)).await;
    assert_eq!(
        status(&fleet, &operator.secret, Method::GET, path).await,
        StatusCode::FORBIDDEN
    );
    // A device takes the images of its own updates, and there is none yet.
    let refused = problem(send(&fleet, Some(&device.secret), Method::GET, path, None).await).await;
    assert!(refused.status == 403 && refused.detail.contains("n1-d0"), "{refused:?}");
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    fleet.campaign("spring").await;
    assert_eq!(status(&fleet, &device.secret, Method::GET, path).await, StatusCode::OK);
    let stranger = NewApiKey {
        device: Some("elsewhere".parse().unwrap()),
        ..new("stranger", Role::Device)
    };
    let stranger = made(&fleet, &stranger).await;
    assert_eq!(
        status(&fleet, &stranger.secret, Method::GET, path).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        status(&fleet, &device.secret, Method::GET, "/api/v1/devices").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        status(&fleet, &device.secret, Method::HEAD, path).await,
        StatusCode::OK,
        "asked about, and not taken"
    );
    let exports = entries(&fleet, "export").await;
    assert_eq!(exports.len(), 1);
    assert_eq!(exports[0]["by"], format!("key:{}", device.key.id));
    // Revoked: no more downloads (S2-SEC-16).
    fleet
        .post::<ApiKeyView>(&format!("/api/v1/access/keys/{}/revoke", device.key.id), &())
        .await;
    assert_eq!(
        status(&fleet, &device.secret, Method::GET, path).await,
        StatusCode::UNAUTHORIZED
    );
    fleet.stop().await;
}

/// What was changed was answered with 304, and nobody had done it.
#[tokio::test]
async fn a_change_is_answered_and_logged_whatever_its_asker_has_read() {
    let fleet = Fleet::start().await;
    let any = ("if-none-match", "*");
    let group = Some(json!({ "id": "g", "filter": "model == \"R1\"" }));
    let made = fleet.ask(Method::POST, "/api/v1/device-groups", &[any], group).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    let tag = made.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(made.json::<Value>().await.unwrap()["id"], "g");
    let edit = Some(json!({ "filter": "model == \"R2\"" }));
    let conditions = [("if-match", tag.as_str()), any];
    let changed = fleet
        .ask(Method::PUT, "/api/v1/device-groups/g", &conditions, edit)
        .await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_eq!(changed.json::<Value>().await.unwrap()["filter"], "model == \"R2\"");
    let accesses = entries(&fleet, "access").await;
    let requests: Vec<_> = accesses
        .iter()
        .map(|event| event["request"].as_str().unwrap())
        .collect();
    assert_eq!(requests, ["POST /api/v1/device-groups", "PUT /api/v1/device-groups/g"]);
    // Reading goes on as it did.
    let read = fleet.ask(Method::GET, "/api/v1/device-groups/g", &[any], None).await;
    assert_eq!(read.status(), StatusCode::NOT_MODIFIED);
    fleet.stop().await;
}

/// The whole way of a device that talks for itself, with nothing but its key.
#[tokio::test]
async fn a_device_fetches_what_it_is_offered_with_its_own_key() {
    let mut fleet = Fleet::start_with("[operators]\ntoken_for_reads = true\n").await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    fleet.campaign("spring").await;
    let device = made(&fleet, &new("device", Role::Device)).await.secret;
    let check = "/api/v1/updates/check?device=n1-d0";
    let offer: Value = send(&fleet, Some(&device), Method::GET, check, None)
        .await
        .json()
        .await
        .unwrap();
    let url = offer["update"]["url"].as_str().unwrap();
    let image = send(&fleet, Some(&device), Method::GET, url, None).await;
    assert_eq!(image.bytes().await.unwrap(), crate::fleet::IMAGE);
    for (path, expected) in [
        ("/api/v1/metadata/timestamp.json", StatusCode::OK),
        ("/api/v1/campaigns", StatusCode::FORBIDDEN),
        ("/api/v1/updates/check?device=n1-d1", StatusCode::FORBIDDEN),
    ] {
        assert_eq!(status(&fleet, &device, Method::GET, path).await, expected, "{path}");
    }
    fleet.stop().await;
}

/// Whoever may not is told so, and not for ever.
#[tokio::test]
async fn who_asks_in_vain_too_often_is_told_to_wait() {
    let limits = "[operators]\nrequests_per_second = 1\nrequests_burst = 5\n";
    let fleet = Fleet::start_with(limits).await;
    let device = made(&fleet, &new("device", Role::Device)).await.secret;
    let start = "/api/v1/campaigns/spring/start";
    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(status(&fleet, &device, Method::POST, start).await);
    }
    assert_eq!(answers[0], StatusCode::FORBIDDEN);
    assert!(answers.contains(&StatusCode::TOO_MANY_REQUESTS), "{answers:?}");
    fleet.stop().await;
}

/// A stream was good for as long as it lasted, whatever became of the key it was opened with.
#[tokio::test]
async fn a_stream_ends_with_the_key_that_it_was_opened_with() {
    let fleet = Fleet::start().await;
    let viewer = made(&fleet, &new("viewer", Role::Viewer)).await;
    let request = fleet
        .client()
        .get(fleet.url("/api/v1/events"))
        .bearer_auth(&viewer.secret);
    let mut stream = request.send().await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    fleet
        .post::<ApiKeyView>(&format!("/api/v1/access/keys/{}/revoke", viewer.key.id), &())
        .await;
    let ended = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(std::time::Duration::from_secs(30), ended)
        .await
        .unwrap();
    fleet.stop().await;
}

#[tokio::test]
async fn pages_of_configured_origins_may_read_and_no_others() {
    let portal = "https://portal.example.com";
    let closed = Fleet::start().await;
    let preflight = async |fleet: &Fleet, origin: &str| {
        let request = fleet.client().request(Method::OPTIONS, fleet.url("/api/v1/devices"));
        let request = request
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,idempotency-key");
        request.send().await.unwrap()
    };
    let answer = preflight(&closed, portal).await;
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
    closed.stop().await;

    let fleet = Fleet::start_with(&format!("[operators]\ncors_origins = [\"{portal}\"]\n")).await;
    let answer = preflight(&fleet, portal).await;
    assert!(answer.status().is_success());
    assert_eq!(answer.headers()["access-control-allow-origin"], portal);
    let allowed = answer.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(
        allowed.contains("authorization") && allowed.contains("idempotency-key"),
        "{allowed}"
    );
    assert!(!answer.headers().contains_key("access-control-allow-credentials"));
    for (origin, allowed) in [(portal, true), ("https://evil.example.com", false), ("null", false)] {
        let request = fleet
            .client()
            .get(fleet.url("/api/v1/devices"))
            .header("origin", origin);
        let answer = request.send().await.unwrap();
        let said = answer.headers().get("access-control-allow-origin");
        assert_eq!(said.is_some(), allowed, "{origin}: {said:?}");
    }
    fleet.stop().await;
}

#[tokio::test]
async fn policies_of_an_installations_own_count_and_who_may_what_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.cedar");
    std::fs::write(
        &own,
        "permit (principal in Role::\"operator\", action == Action::\"artifact:export\", resource);",
    )
    .unwrap();
    let fleet = Fleet::start_with(&format!("[access]\npolicy = {:?}\n", own.to_str().unwrap())).await;
    let matrix: Page<PermissionView> = fleet.get("/api/v1/auth/permissions").await;
    let export = matrix
        .items
        .iter()
        .find(|view| view.permission == "artifact:export")
        .unwrap();
    assert_eq!(export.roles, [Role::Operator, Role::Admin].into());
    let methods: LoginMethods = fleet.get("/api/v1/auth/methods").await;
    assert_eq!(
        methods,
        LoginMethods {
            passwords: false,
            oidc: None
        }
    );
    let reader: WhoAmI = fleet.get("/api/v1/auth/whoami").await;
    assert_eq!((reader.name.as_str(), reader.means.as_str()), ("loopback", "loopback"));
    for (body, status) in [
        (json!({ "username": "alice", "password": "x" }), 400),
        (json!({ "username": "alice" }), 400),
        (json!({}), 400),
        (json!({ "api_key": "fmk_x" }), 401),
        (json!({ "api_key": "x", "username": "y", "password": "z" }), 400),
    ] {
        let answer = send(&fleet, None, Method::POST, "/api/v1/auth/token", Some(body.clone())).await;
        assert_eq!(answer.status().as_u16(), status, "{body}");
    }
    fleet.stop().await;
}

/// Somebody who guesses is heard less and less often, and the operators go on.
#[tokio::test]
async fn guesses_are_answered_less_and_less_often() {
    let fleet = Fleet::start().await;
    let guess = async || status(&fleet, "fmk_guess", Method::GET, "/api/v1/devices").await;
    assert_eq!(guess().await, StatusCode::UNAUTHORIZED);
    let mut guesses = 1;
    while guess().await != StatusCode::TOO_MANY_REQUESTS {
        guesses += 1;
        assert!(guesses < 20_000, "nobody minds");
    }
    let about: Value = fleet.get("/api/v1/about").await;
    assert!(about["version"].is_string());
    fleet.stop().await;
}
