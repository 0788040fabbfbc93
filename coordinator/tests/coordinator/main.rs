//! A coordinator on loopback, its operator, its signers and a node, all in one process: what is served, what is refused,
//! what survives a restart.

mod access;
mod api;
mod baselines;
mod closing;
mod devices;
mod erasure;
mod firmware;
mod fleet;
mod notifications;
#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
#[path = "../../../tests/src/packages.rs"]
mod packages;
#[allow(dead_code, unreachable_pub, reason = "the end-to-end tests use all of it")]
#[path = "../../../tests/src/postgres.rs"]
mod postgres;
mod provisioning;
mod roster;
mod strategies;
mod transcripts;

use std::collections::BTreeMap;

use firmesh_protocol::{
    api::{
        AttemptView, CampaignState, CampaignView, DeviceView, EnrolRequest, EnrolResponse, EnrolmentTicket,
        Explanation, NodeView, Page, Publication, Published, ReleaseView, SyncRequest, SyncResponse,
    },
    chunk::decode,
    possession::Answer,
    rehearsal::{Ending, Fault, Rehearsal, RehearsalRequest, RehearsalResponse, Source, Step},
    report::{AttemptState, Permit},
};
use fleet::{Fleet, IMAGE, NodeProcess};
use reqwest::StatusCode;

#[tokio::test]
async fn a_campaign_runs_from_the_image_to_completion_over_a_restart() {
    let mut fleet = Fleet::start().await;
    let artifact = fleet.found().await;
    let releases: Page<ReleaseView> = fleet.get("/api/v1/releases").await;
    assert!(releases.items.iter().all(|release| release.stored));
    assert_eq!(releases.items.len(), 2);

    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    let first: SyncResponse = fleet.sync(&node, &[]).await;
    assert_eq!(first.campaigns, []);
    assert_eq!(first.roster.unwrap().len(), 1);
    let encoded = fleet
        .node_get(
            &node,
            &format!("/node/v1/artifacts/{}/slice?offset=0&length=16384", artifact.id),
        )
        .await;
    assert!(decode(&encoded, artifact.id, artifact.length, &(0..16_384)).unwrap() == IMAGE[..16_384]);

    fleet.turns_end().await;

    fleet.campaign("spring").await;
    let scheduled: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!(scheduled.state, CampaignState::Scheduled);
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;
    let started = fleet.sync(&node, &[]).await;
    assert_eq!((started.campaigns.len(), started.permits.len()), (1, 1));
    let permit = fleet.open_permit(&started.permits[0]);
    assert_eq!(permit.devices.len(), 1, "10 % of two devices, rounded up");
    for path in [
        "/node/v1/targets/campaigns/spring.json",
        "/node/v1/metadata/timestamp.json",
    ] {
        assert!(!fleet.node_get(&node, path).await.is_empty());
    }

    fleet.restart().await;
    let again = fleet.sync(&node, &[]).await;
    let resigned = fleet.open_permit(&again.permits[0]);
    assert_eq!(again.permits.len(), 1);
    assert_eq!(
        Permit {
            epoch: 1,
            ..resigned.clone()
        },
        permit,
        "the same permit, not another one"
    );
    assert_eq!(resigned.epoch, 2, "and nodes can tell who took over");
    assert!(again.timestamp_version > started.timestamp_version);

    let acked = fleet.sync(&node, &[(&permit.devices[0], AttemptState::Success)]).await;
    assert_eq!(acked.reports_acked, 1);
    let next = fleet.open_permit(acked.permits.last().unwrap());
    assert_eq!((next.wave, next.sequence), (1, 2));
    fleet.sync(&node, &[(&next.devices[0], AttemptState::Success)]).await;
    let done: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!(done.state, CampaignState::Completed);

    fleet.restart().await;
    let done: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!(done.state, CampaignState::Completed);
    let attempts: Page<AttemptView> = fleet.get("/api/v1/campaigns/spring/attempts").await;
    assert!(
        attempts
            .items
            .iter()
            .all(|attempt| attempt.state == AttemptState::Success)
    );
    let why: Vec<Explanation> = fleet.get("/api/v1/campaigns/spring/explain").await;
    assert!(why.iter().any(|found| found.finding == "the gate passed"));
    let devices: Page<DeviceView> = fleet.get("/api/v1/devices").await;
    assert_eq!(devices.items.len(), 2);
    let nodes: Page<NodeView> = fleet.get("/api/v1/nodes").await;
    assert!(nodes.items[0].enrolled);
    fleet.stop().await;
}

#[tokio::test]
async fn a_campaign_is_rehearsed_against_the_inventory_and_learns_from_the_one_before() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    let other = fleet.enrol("n2", "eu/s1/r2/n2").await;
    for node in [&node, &other] {
        fleet.sync(node, &[]).await;
    }
    let request = RehearsalRequest {
        manifest: fleet.draft("summer"),
        seed: 3,
        runs: Some(5),
        starts: Some("2026-01-01T00:00:00Z".parse().unwrap()),
        assume: BTreeMap::new(),
        faults: Fault::usual(),
    };
    let first = rehearse(&fleet, &request).await;
    assert_eq!(
        rehearse(&fleet, &request).await,
        first,
        "the same facts, question and seed"
    );
    assert_eq!(
        (first.devices, first.nodes, first.runs, first.scenarios.len()),
        (4, 2, 5, 5)
    );
    assert_eq!(first.scenarios[0].endings, BTreeMap::from([(Ending::Completed, 5)]));
    assert_eq!(
        (first.scenarios[2].exposed.max, first.waves[0].devices),
        (1, 1),
        "a bad image stops in the first wave"
    );
    let wire: u64 = [IMAGE.len() as u64, 13].iter().map(|length| length * 106 / 100).sum();
    assert_eq!(first.waves[0].bytes.sites[&"eu/s1".parse().unwrap()], wire);
    assert!(first.assumptions.steps.iter().all(|step| step.source == Source::Usual));
    // It changes nothing.
    let campaigns: Page<CampaignView> = fleet.get("/api/v1/campaigns").await;
    assert!(campaigns.items.is_empty());

    let token = fleet.token();
    let refused = async |request: &RehearsalRequest, status: u16, said: &str| {
        let body = serde_json::to_string(request).unwrap();
        let problem = fleet
            .refused_by_operators("POST", "/api/v1/simulations", Some(&token), &body)
            .await;
        assert_eq!(problem.status, status, "{problem:?}");
        assert!(problem.detail.contains(said), "{problem:?}");
    };
    refused(
        &RehearsalRequest {
            runs: Some(0),
            ..request.clone()
        },
        422,
        "0 runs",
    )
    .await;
    let absent = Fault::Silent {
        rack: Some("eu/s1/r9".parse().unwrap()),
    };
    refused(
        &RehearsalRequest {
            faults: vec![absent],
            ..request.clone()
        },
        422,
        "rack eu/s1/r9",
    )
    .await;
    let mut strange = request.clone();
    strange.manifest.schema = "firmesh-campaign/9".to_owned();
    refused(&strange, 400, "schema").await;

    // A campaign goes by: its image is proven to be at the node, then its devices' attempts are known.
    fleet.campaign("spring").await;
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;
    for node in [&node, &other] {
        fleet.sync(node, &[]).await;
    }
    let request = RehearsalRequest {
        manifest: fleet.draft("summer"),
        assume: BTreeMap::from([(Step::Install, 100)]),
        ..request
    };
    let second = rehearse(&fleet, &request).await;
    assert!(second.waves[0].bytes.sites.is_empty(), "{:?}", second.waves[0].bytes);
    let other_campaigns = |note: &String| note.contains("1 devices are in flight or quarantined in other campaigns");
    assert!(
        second.assumptions.notes.iter().any(other_campaigns),
        "{:?}",
        second.assumptions.notes
    );
    let states = [AttemptState::Installing, AttemptState::Rebooting, AttemptState::Success];
    for (node, name) in [(&node, "n1"), (&other, "n2")] {
        for number in 0..2 {
            let device = format!("{name}-d{number}").parse().unwrap();
            let reports: Vec<_> = states.iter().map(|state| (&device, *state)).collect();
            fleet.sync(node, &reports).await;
        }
    }
    let third = rehearse(&fleet, &request).await;
    let step = |step: Step| {
        let times = third.assumptions.steps.iter().find(|time| time.step == step).unwrap();
        (times.source, times.samples)
    };
    assert_eq!(step(Step::Install), (Source::Asked, 0));
    assert_eq!(step(Step::Reboot), (Source::Release, 4));
    assert_eq!(step(Step::Restore), (Source::Usual, 0));
    fleet.stop().await;
}

#[tokio::test]
async fn no_permit_before_a_node_has_proven_that_it_holds_both_images_and_a_lie_is_named() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.say(&node, &[], Vec::new()).await;
    fleet.campaign("spring").await;
    let asked = fleet.say(&node, &[], Vec::new()).await.challenges;
    assert_eq!(asked.len(), 2, "ahead of the start: the new image and the way back");
    assert_eq!(fleet.say(&node, &[], Vec::new()).await.challenges, asked);
    fleet.post::<CampaignView>("/api/v1/campaigns/spring/start", &()).await;

    // The right proof of one image, and the same for the other.
    let [truth, other] = [node.prove(&asked[0]), node.prove(&asked[1])];
    let lie = Answer {
        proof: truth.proof,
        ..other
    };
    let answer = fleet.say(&node, &[], vec![truth, lie]).await;
    assert!(answer.permits.is_empty() && answer.challenges.is_empty(), "{answer:?}");
    // What was refused is not good for anything any more, however often it is said.
    fleet.say(&node, &[], vec![other, lie]).await;
    let view: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    let possession = &view.possession;
    assert_eq!((possession.nodes, possession.proven), (1, 0));
    assert_eq!(possession.wrong_proofs[&"n1".parse().unwrap()], 1);
    let why: Vec<Explanation> = fleet.get("/api/v1/campaigns/spring/explain").await;
    let said = |text: &str| {
        let mut lines = why
            .iter()
            .flat_map(|found| [&found.finding].into_iter().chain(&found.evidence));
        assert!(lines.any(|line| line.contains(text)), "{text}: {why:?}");
    };
    said("awaiting_possession: node n1");
    said("wrong_possession_proof: 1 by node n1");
    let too_much = SyncRequest {
        possession: vec![truth; 9],
        ..node.sync_request(&[])
    };
    let refused = fleet.node_post(&node, "/node/v1/sync", &too_much).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);

    // What was proven stays proven over a restart, and so does the lie; the rest is asked for anew.
    fleet.restart().await;
    let again = fleet.say(&node, &[], Vec::new()).await;
    assert_eq!(again.challenges.len(), 1);
    assert_eq!(again.challenges[0].artifact, other.challenge.artifact);
    assert_ne!(again.challenges[0].nonce, other.challenge.nonce);
    assert!(again.permits.is_empty());
    let proof = node.prove(&again.challenges[0]);
    let permitted = fleet.say(&node, &[], vec![proof]).await;
    assert_eq!((permitted.permits.len(), permitted.challenges.len()), (1, 0));
    let view: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!((view.possession.nodes, view.possession.proven), (1, 1));
    fleet.stop().await;
}

#[tokio::test]
async fn a_pause_reaches_nodes_and_a_recalled_release_ends_its_campaign() {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let node = fleet.enrol("n1", "eu/s1/r1/n1").await;
    fleet.sync(&node, &[]).await;
    fleet.campaign("spring").await;
    let order = |verb: &str| format!("/api/v1/campaigns/spring/{verb}");
    fleet.post::<CampaignView>(&order("start"), &()).await;
    fleet.post::<CampaignView>(&order("pause"), &()).await;
    let paused = fleet.sync(&node, &[]).await;
    assert!(paused.campaigns.is_empty() && paused.permits.is_empty());
    fleet.post::<CampaignView>(&order("resume"), &()).await;
    let resumed = fleet.sync(&node, &[]).await;
    assert_eq!((resumed.campaigns.len(), resumed.permits.len()), (1, 1));

    fleet.recall("firmware/new.bin").await;
    let view: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!(view.state, CampaignState::Cancelled);
    assert!(view.reason.contains("withdrawn"), "{}", view.reason);
    assert!(fleet.sync(&node, &[]).await.campaigns.is_empty());
    fleet.restart().await;
    let view: CampaignView = fleet.get("/api/v1/campaigns/spring").await;
    assert_eq!(view.state, CampaignState::Cancelled);
    fleet.stop().await;
}

#[tokio::test]
async fn operators_are_refused_with_a_reason_and_a_remedy() {
    let fleet = Fleet::start().await;
    let no_token = fleet
        .refused_by_operators("POST", "/api/v1/campaigns/x/start", None, "")
        .await;
    assert_eq!((no_token.status, no_token.refused), (401, true));
    assert!(no_token.detail.contains("operator.token"));
    let wrong = fleet
        .refused_by_operators("POST", "/api/v1/plans", Some("guess"), "")
        .await;
    assert_eq!(wrong.status, 401);
    let token = fleet.token();
    for (method, path, body, status, kind) in [
        ("POST", "/api/v1/campaigns/spring/start", "", 404, "not_found"),
        ("POST", "/api/v1/campaigns/spring/hurry", "", 404, "not_found"),
        ("GET", "/api/v1/campaigns/..%2Fetc", "", 400, "bad_request"),
        ("GET", "/api/v1/nowhere", "", 404, "not_found"),
        ("POST", "/api/v1/nodes", "{\"node\":\"n1\"}", 400, "bad_body"),
        (
            "POST",
            "/api/v1/nodes",
            "{\"node\":\"n1\",\"path\":\"a/b\",\"extra\":1}",
            400,
            "bad_body",
        ),
        ("POST", "/api/v1/artifacts", "", 400, "bad_upload"),
        (
            "POST",
            &format!("/api/v1/artifacts?sha256={}", "0".repeat(64)),
            "x",
            422,
            "hash_mismatch",
        ),
        ("POST", "/api/v1/artifacts?sha=1", "x", 400, "bad_request"),
        ("POST", "/api/v1/metadata", "{\"metadata\":{}}", 400, "bad_publication"),
        (
            "POST",
            "/api/v1/metadata",
            "{\"metadata\":{\"mirrors\":\"{}\"}}",
            400,
            "bad_publication",
        ),
        (
            "POST",
            "/api/v1/metadata",
            "{\"metadata\":{\"targets\":\"{}\"}}",
            422,
            "incomplete_repository",
        ),
        ("GET", "/api/v1/metadata/..%2Foperator.token", "", 404, "not_found"),
        ("POST", "/api/v1/devices/d1/clear", "", 409, "wrong_state"),
    ] {
        let problem = fleet.refused_by_operators(method, path, Some(&token), body).await;
        assert_eq!(
            (problem.status, problem.kind.as_str()),
            (status, &*format!("urn:firmesh:problem:{kind}")),
            "{path}: {}",
            problem.detail
        );
    }
    for (host, status) in [
        ("rebound.example", StatusCode::UNAUTHORIZED),
        ("rebound.example:8640", StatusCode::UNAUTHORIZED),
        ("localhost:1", StatusCode::OK),
        ("[::1]", StatusCode::OK),
    ] {
        assert_eq!(fleet.status_by_name("/api/v1/nodes", host).await, status, "{host}");
    }
    let metrics = fleet.text("/metrics").await;
    assert!(metrics.contains("firmesh_coordinator_refusals_total 7"), "{metrics}");
    assert_eq!(fleet.text("/health").await, "ok\n");
    for page in ["/", "/campaigns/spring"] {
        assert!(fleet.text(page).await.contains("<title>Firmesh</title>"), "{page}");
    }
    fleet.stop().await;
}

#[tokio::test]
async fn nothing_is_published_that_a_node_would_refuse() {
    let fleet = Fleet::start().await;
    let first = fleet.draft_publication();
    let refused = |publication: Publication| {
        let body = serde_json::to_string(&publication).unwrap();
        let fleet = &fleet;
        async move {
            fleet
                .refused_by_operators("POST", "/api/v1/metadata", Some(&fleet.token()), &body)
                .await
        }
    };
    let problem = refused(first.clone()).await;
    assert!(problem.kind.ends_with("artifact_missing"), "{problem:?}");
    assert!(problem.detail.contains("artifact add"));
    fleet.upload(IMAGE).await;
    fleet.upload(b"the old image").await;

    let mut flipped = first.clone();
    let text = flipped.metadata.get_mut("releases").unwrap();
    *text = text.replacen("Acme", "Acne", 1);
    let problem = refused(flipped).await;
    assert!(
        problem.refused && problem.kind.ends_with("signature_threshold"),
        "{problem:?}"
    );
    assert_eq!(
        fleet.status("/api/v1/metadata/1.root.json").await,
        StatusCode::NOT_FOUND,
        "nothing was published in part"
    );

    let published: Published = fleet.post("/api/v1/metadata", &first).await;
    assert_eq!(published.versions["root"], 1);
    let mut other = first.clone();
    let other_root = fleet.other_root();
    other.metadata.insert("1.root.json".to_owned(), other_root);
    let problem = refused(other).await;
    assert!(problem.kind.ends_with("changed_version"), "{problem:?}");
    fleet.post::<Published>("/api/v1/metadata", &first).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_token_enrols_one_key_and_the_certificate_counts_ever_after() {
    let fleet = Fleet::start().await;
    let ticket: EnrolmentTicket = fleet.post("/api/v1/nodes", &fleet::new_node("n1", "eu/s1/r1/n1")).await;
    let node = NodeProcess::new("n1", &ticket);
    let request = |token: &str, csr_pem: String| EnrolRequest {
        node: ticket.node.clone(),
        token: token.to_owned(),
        csr_pem,
    };
    let anonymous = fleet.anonymous_client();
    let enrol = |token: &str, csr_pem: String| {
        let request = anonymous
            .post(format!("{}/node/v1/enrol", ticket.node_url))
            .json(&request(token, csr_pem));
        async move { request.send().await.unwrap() }
    };
    assert_eq!(enrol("guess", node.csr()).await.status(), StatusCode::FORBIDDEN);
    let lost: EnrolResponse = enrol(&ticket.token, node.csr()).await.json().await.unwrap();
    let answer: EnrolResponse = enrol(&ticket.token, node.csr()).await.json().await.unwrap();
    assert_ne!(
        lost, answer,
        "a node killed before it kept the answer gets a fresh certificate"
    );
    let thief = EnrolmentTicket {
        token: "another seed, and so another key".to_owned(),
        ..ticket.clone()
    };
    assert_eq!(
        enrol(&ticket.token, NodeProcess::new("n1", &thief).csr())
            .await
            .status(),
        StatusCode::FORBIDDEN,
        "a used token is good for no other key"
    );
    let void = NodeProcess::new("n1", &ticket).enrolled(&lost);
    let refused = fleet.node_post(&void, "/node/v1/sync", &void.sync_request(&[])).await;
    assert_eq!(
        refused.status(),
        StatusCode::FORBIDDEN,
        "only the last certificate counts"
    );

    for path in ["/node/v1/metadata/timestamp.json", "/node/v1/plans/00"] {
        let refused = anonymous
            .get(format!("{}{path}", ticket.node_url))
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let node = node.enrolled(&answer);
    let stranger = fleet.enrol("n2", "eu/s1/r1/n2").await;
    let forged = stranger.sync_request(&[]);
    let refused = fleet.node_post(&node, "/node/v1/sync", &forged).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN, "another node's record");
    fleet.sync(&node, &[]).await;
    let renewed = fleet.enrol("n1", "eu/s1/r1/n1").await;
    let refused = fleet.node_post(&node, "/node/v1/sync", &node.sync_request(&[])).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN, "the old certificate is void");
    fleet.sync(&renewed, &[]).await;
    fleet.stop().await;
}

#[tokio::test]
async fn a_second_coordinator_and_a_taken_port_are_refused_with_the_place() {
    let fleet = Fleet::start().await;
    let same_state = firmesh_coordinator::run(fleet.settings(), tokio_util::sync::CancellationToken::new()).await;
    let error = same_state.unwrap_err().to_string();
    assert!(
        error.contains("another coordinator") && error.contains(&fleet.state_dir().display().to_string()),
        "{error}"
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let mut settings = fleet.settings();
    settings.state_dir = elsewhere.path().to_owned();
    settings.operators = fleet.operator_address();
    let taken = firmesh_coordinator::run(settings, tokio_util::sync::CancellationToken::new()).await;
    let error = taken.unwrap_err().to_string();
    assert!(
        error.contains("port is in use") && error.contains("operators.listen"),
        "{error}"
    );
    fleet.stop().await;
}

#[tokio::test]
async fn watchers_are_told_and_can_come_back() {
    let fleet = Fleet::start().await;
    let mut events = fleet.events(None).await;
    fleet.upload(IMAGE).await;
    let first = events.next().await;
    assert_eq!(first.1["kind"], "artifact");
    fleet.upload(b"another").await;
    let second = events.next().await;
    drop(events);
    let mut again = fleet.events(Some(&first.0)).await;
    assert_eq!(again.next().await, second);
    fleet.stop().await;
}

async fn rehearse(fleet: &Fleet, request: &RehearsalRequest) -> Rehearsal {
    let answer: RehearsalResponse = fleet.post("/api/v1/simulations", request).await;
    let rehearsal = Rehearsal::from_bytes(answer.rehearsal.as_bytes()).unwrap();
    assert_eq!(rehearsal.sha256(), answer.rehearsal_sha256);
    rehearsal
}
