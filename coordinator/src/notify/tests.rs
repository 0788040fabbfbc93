//! Deliveries to real receivers: HTTP servers that answer, refuse, dawdle and hang up.

mod world;

use std::{fs, os::unix::fs::PermissionsExt as _};

use firmesh_protocol::{
    api::{CampaignState, GateVerdict},
    brake::{BRAKE_TYPE, Brake, Braked},
    ids::Sha256,
    report::AttemptState,
    trust::Envelope,
};
use serde_json::json;

use self::world::{Answer, OTHER_SECRET, Receiver, SECRET, TestWorld, destination, settings};
use super::*;
use crate::config::ConfigError;

#[tokio::test]
async fn everything_arrives_in_order_once_the_receiver_recovers_and_under_the_same_ids() {
    let receiver = Receiver::start([
        Answer::Status(503),
        Answer::HangUp,
        Answer::Status(429),
        Answer::Status(204),
        Answer::Status(500),
    ])
    .await;
    let world = TestWorld::new(&receiver.webhook("")).await;
    for state in [CampaignState::Active, CampaignState::Paused, CampaignState::Active] {
        world.campaign(state, &[]).await;
    }
    // The couriers start after the fact, as after a restart.
    let running = world.run();
    let got = receiver.delivered(3).await;
    let kinds: Vec<_> = got
        .iter()
        .map(|request| request.event["data"]["kind"].clone())
        .collect();
    assert_eq!(kinds, ["campaign_started", "campaign_paused", "campaign_resumed"]);
    let tried = receiver.seen();
    assert_eq!(tried.len(), 7, "four failures and three deliveries");
    assert!(
        tried[..4].iter().all(|request| request.id() == got[0].id()),
        "a retry is the same message"
    );
    assert!(tried[..4].iter().all(|request| request.body == got[0].body));
    let numbers: Vec<_> = got
        .iter()
        .filter_map(|request| request.event["data"]["number"].as_u64())
        .collect();
    assert!(numbers.is_sorted() && numbers[0] < numbers[2]);
    let view = world.settled(0).await;
    assert_eq!(
        (view.delivered, view.refused, view.backlog, view.failing_since),
        (3, 0, 0, None)
    );
    running.stop().await;
}

#[tokio::test]
async fn an_event_is_a_cloud_event_signed_with_both_secrets() {
    let receiver = Receiver::start([]).await;
    let world = TestWorld::new(&receiver.webhook("")).await;
    world.campaign(CampaignState::Active, &[GateVerdict::Pass]).await;
    let running = world.run();
    let got = receiver.delivered(2).await.remove(0);
    let event = &got.event;
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["type"], "io.firmesh.wave_passed");
    assert_eq!(event["subject"], "campaigns/spring");
    assert_eq!(event["data"]["wave"], 0);
    assert_eq!(event["id"], got.id());
    assert!(
        event["source"].as_str().unwrap().starts_with("urn:firmesh:audit:"),
        "{event}"
    );
    assert_eq!(got.text("content-type"), "application/cloudevents+json; charset=utf-8");
    let signatures = got.text("webhook-signature");
    let signed = format!(
        "{}.{}.{}",
        got.id(),
        got.text("webhook-timestamp"),
        String::from_utf8_lossy(&got.body)
    );
    let expected: Vec<_> = [SECRET, OTHER_SECRET]
        .iter()
        .map(|secret| {
            let key = data_encoding::BASE64.decode(&secret.as_bytes()[6..]).unwrap();
            let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key), signed.as_bytes());
            format!("v1,{}", data_encoding::BASE64.encode(tag.as_ref()))
        })
        .collect();
    assert_eq!(signatures, expected.join(" "));
    running.stop().await;
}

#[tokio::test]
async fn what_a_receiver_refuses_for_good_is_not_sent_again_until_somebody_asks_for_a_replay() {
    let receiver = Receiver::start([Answer::Status(400)]).await;
    let world = TestWorld::new(&receiver.webhook("")).await;
    world.campaign(CampaignState::Active, &[]).await;
    world.campaign(CampaignState::Completed, &[]).await;
    let running = world.run();
    let second = receiver.delivered(1).await.remove(0);
    assert_eq!(second.event["data"]["kind"], "campaign_completed");
    let view = world.settled(0).await;
    assert_eq!((view.delivered, view.refused), (1, 1));
    let error = view.last_error.unwrap();
    assert!(
        error.reason.contains("400") && error.reason.contains("told to fail"),
        "{error:?}"
    );
    let refused = receiver.seen().remove(0);

    let beyond = ReplayRequest {
        since_number: Some(999),
        since: None,
    };
    assert!(matches!(
        world.notifier.replay("to", beyond).await,
        Err(NotifyError::Nothing(_))
    ));
    assert!(matches!(
        world.notifier.replay("to", ReplayRequest::default()).await,
        Err(NotifyError::SinceWhat)
    ));
    let since = ReplayRequest {
        since_number: Some(error.number),
        since: None,
    };
    let started = world.notifier.replay("to", since).await.unwrap();
    assert_eq!((started.from, started.newest), (error.number, error.number + 1));
    let again = receiver.delivered(3).await;
    assert_eq!(again[1].id(), refused.id(), "a replay is the same message");
    assert_eq!(again[1].body, refused.body);
    assert_eq!(again[2].id(), second.id());
    running.stop().await;
}

#[tokio::test]
async fn a_receiver_that_dawdles_holds_up_neither_the_store_nor_another_destination() {
    let (slow, quick) = (Receiver::start([Answer::Never]).await, Receiver::start([]).await);
    let world = TestWorld::new(&format!("{}{}", slow.webhook(""), quick.webhook_named("other", ""))).await;
    let running = world.run();
    for state in [CampaignState::Active, CampaignState::Failed] {
        world.campaign(state, &[]).await;
    }
    assert_eq!(quick.delivered(2).await.len(), 2);
    slow.tried(1).await;
    // What was under way when the process ended is sent again by the next one.
    running.stop().await;
    let first = slow.seen().remove(0);
    let next = world.again().await;
    let running = next.run();
    let got = slow.delivered(2).await;
    assert_eq!(got[0].id(), first.id());
    running.stop().await;
}

#[tokio::test]
async fn a_destination_gets_what_it_asked_for_and_the_cursor_passes_over_the_rest() {
    let receiver = Receiver::start([]).await;
    let wanted = "min_severity = \"error\"\ncampaigns = [\"spring\"]";
    let world = TestWorld::new(&receiver.webhook(wanted)).await;
    let running = world.run();
    world.campaign_of("autumn", CampaignState::Failed, &[]).await;
    world.campaign(CampaignState::Active, &[GateVerdict::Pass]).await;
    world.notifier.publication_refused("three of two").await;
    world
        .campaign(CampaignState::RollingBack, &[GateVerdict::Pass, GateVerdict::Fail])
        .await;
    let got = receiver.delivered(2).await;
    let kinds: Vec<_> = got
        .iter()
        .map(|request| request.event["data"]["kind"].clone())
        .collect();
    assert_eq!(kinds, ["gate_failed", "campaign_rolling_back"]);
    let view = world.settled(0).await;
    assert_eq!((view.cursor, view.backlog), (view.newest, 0));
    running.stop().await;
}

#[tokio::test]
async fn what_nobody_takes_for_too_long_is_given_up_and_what_comes_later_is_told() {
    let receiver = Receiver::start([Answer::Status(503); 50]).await;
    let world = TestWorld::new(&receiver.webhook("give_up_after = \"2s\"")).await;
    let running = world.run();
    world.campaign(CampaignState::Active, &[]).await;
    let view = world.settled(0).await;
    assert_eq!((view.given_up, view.delivered), (1, 0));
    assert!(view.failing_since.is_some() && receiver.seen().len() > 1, "{view:?}");
    receiver.recover();
    world.campaign(CampaignState::Completed, &[]).await;
    let told = receiver.delivered(1).await.remove(0);
    assert_eq!(told.event["data"]["kind"], "campaign_completed");
    let view = world.settled(0).await;
    assert_eq!((view.given_up, view.delivered, view.failing_since), (1, 1, None));
    running.stop().await;
}

#[tokio::test]
async fn a_receiver_that_the_ca_does_not_vouch_for_is_told_nothing() {
    let (receiver, certificate) = Receiver::start_tls().await;
    let folder = tempfile::tempdir().unwrap();
    let to = |name: &str, ca: &str| {
        let path = folder.path().join(name);
        fs::write(&path, ca).unwrap();
        let url = &receiver.url;
        let rest = format!("kind = \"rest\"\nurl = \"{url}\"\nbody = '{{{{ kind }}}}'\nca_file = {path:?}");
        destination(name, "", &rest)
    };
    let (_, stranger) = Receiver::start_tls().await;
    let world = TestWorld::new(&format!("{}{}", to("known", &certificate), to("unknown", &stranger))).await;
    let error = chain(&world.notifier.test("unknown").await.unwrap_err());
    assert!(error.contains("certificate"), "{error}");
    assert!(receiver.seen().is_empty());
    world.notifier.test("known").await.unwrap();
    assert_eq!(receiver.delivered(1).await[0].event, "test");
}

#[tokio::test]
async fn a_brake_is_told_with_its_reason_to_whoever_hears_only_the_worst() {
    let receiver = Receiver::start([]).await;
    let world = TestWorld::new(&receiver.webhook("min_severity = \"critical\"\ncampaigns = [\"autumn\"]")).await;
    let running = world.run();
    let brake = Brake {
        braked: Braked::Release {
            target: "firmware/a.bin".to_owned(),
            sha256: Sha256::of(b"a"),
        },
        reason: "it bricks fans".to_owned(),
        issued: WallTime::from_unix_seconds(0),
    };
    let envelope = Envelope::sign(BRAKE_TYPE, serde_json::to_vec(&brake).unwrap(), []);
    world
        .commit(Write::Brake(Sha256::of(&envelope.to_bytes()), envelope))
        .await;
    let told = receiver.delivered(1).await.remove(0).event;
    assert_eq!(
        (&told["type"], &told["data"]["severity"]),
        (&json!("io.firmesh.brake_pulled"), &json!("critical"))
    );
    assert_eq!(told["data"]["reason"], "it bricks fans");
    assert_eq!(told["data"]["braked"], brake.braked.to_string());
    running.stop().await;
}

/// Quarantine is told when it begins, whoever says so, and when a person ends it; and never twice.
#[tokio::test]
async fn a_quarantine_is_told_once() {
    let receiver = Receiver::start([]).await;
    let world = TestWorld::new(&receiver.webhook("")).await;
    let running = world.run();
    world.attempt(AttemptState::Installing, false).await;
    world.attempt(AttemptState::Quarantined, false).await;
    world.attempt(AttemptState::Quarantined, false).await;
    world.attempt(AttemptState::Quarantined, true).await;
    world.attempt(AttemptState::Quarantined, true).await;
    world.notifier.publication_refused("the end").await;
    let got = receiver.delivered(3).await;
    let kinds: Vec<_> = got
        .iter()
        .map(|request| request.event["data"]["kind"].clone())
        .collect();
    assert_eq!(kinds, ["device_quarantined", "device_cleared", "publication_refused"]);
    assert_eq!(got[0].event["data"]["device"], "d1");
    assert_eq!(got[0].event["subject"], "devices/d1");
    running.stop().await;
}

#[tokio::test]
async fn pagerduty_opens_an_alert_per_campaign_and_closes_it() {
    let receiver = Receiver::start([Answer::Status(202), Answer::Status(429), Answer::Status(202)]).await;
    let to = format!(
        "kind = \"pagerduty\"\nurl = \"{}v2/enqueue\"\nrouting_key = {{ file = \"key\" }}",
        receiver.url
    );
    let world = TestWorld::new(&destination("to", "", &to)).await;
    let running = world.run();
    world.campaign(CampaignState::Active, &[GateVerdict::Fail]).await;
    world.campaign(CampaignState::Cancelled, &[GateVerdict::Fail]).await;
    let got = receiver.delivered(2).await;
    let [opened, closed] = [&got[0].event, &got[1].event];
    assert_eq!(got[0].path, "/v2/enqueue");
    assert_eq!(
        (&opened["event_action"], &closed["event_action"]),
        (&json!("trigger"), &json!("resolve"))
    );
    assert_eq!(opened["routing_key"], "the-key");
    assert_eq!(opened["payload"]["severity"], "error");
    assert_eq!(
        opened["payload"]["summary"],
        "campaign spring: the gate of wave 0 failed"
    );
    assert!(opened["payload"]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(opened["dedup_key"], closed["dedup_key"]);
    assert!(
        closed["dedup_key"].as_str().unwrap().ends_with(":campaigns/spring"),
        "{closed}"
    );
    running.stop().await;
}

#[tokio::test]
async fn opsgenie_opens_an_alert_and_closes_it_by_its_alias() {
    let receiver = Receiver::start([Answer::Status(202), Answer::Status(404)]).await;
    let to = format!(
        "kind = \"opsgenie\"\nurl = \"{}v2/alerts\"\napi_key = {{ file = \"key\" }}",
        receiver.url
    );
    let world = TestWorld::new(&destination("to", "", &to)).await;
    let running = world.run();
    world.campaign(CampaignState::Active, &[GateVerdict::Hold]).await;
    world.campaign(CampaignState::Completed, &[GateVerdict::Pass]).await;
    receiver.tried(3).await;
    let got = receiver.seen();
    assert_eq!(got[0].path, "/v2/alerts");
    assert_eq!(got[0].text("authorization"), "GenieKey the-key");
    assert_eq!(got[0].event["priority"], "P3");
    let alias = got[0].event["alias"].as_str().unwrap();
    assert!(alias.ends_with(":campaigns/spring"), "{alias}");
    let closing = got[1].path.replace("%3A", ":").replace("%2F", "/");
    assert_eq!(closing, format!("/v2/alerts/{alias}/close?identifierType=alias"));
    // An alert that is not there is closed.
    let view = world.settled(0).await;
    assert_eq!((view.refused, view.backlog), (0, 0));
    running.stop().await;
}

#[tokio::test]
async fn a_ticket_is_made_as_its_template_says() {
    let receiver = Receiver::start([Answer::Status(201)]).await;
    let to = format!(
        "kind = \"rest\"\nmethod = \"PUT\"\nurl = \"{}api/now/table/incident\"\nheaders = {{ Accept = \"application/json\" }}\n\
         secret_headers = {{ Authorization = {{ file = \"key\" }} }}\n\
         body = '{{ \"short_description\": {{{{ summary }}}}, \"correlation_id\": {{{{ subject }}}}, \"urgency\": {{{{ 1 if severity == \"critical\" else 2 }}}} }}'",
        receiver.url
    );
    let world = TestWorld::new(&destination("to", "", &to)).await;
    let running = world.run();
    world.notifier.publication_refused("a \"quoted\" reason").await;
    let got = receiver.delivered(1).await.remove(0);
    assert_eq!(
        (got.method.as_str(), got.path.as_str()),
        ("PUT", "/api/now/table/incident")
    );
    assert_eq!(got.text("authorization"), "the-key");
    assert_eq!(got.text("content-type"), "application/json");
    assert!(got.text("idempotency-key").starts_with("msg_"));
    let body =
        json!({ "short_description": "a publication was refused", "correlation_id": "publications", "urgency": 2 });
    assert_eq!(got.event, body);
    running.stop().await;
}

#[tokio::test]
async fn a_test_says_what_the_receiver_said_and_moves_nothing() {
    let receiver = Receiver::start([Answer::Status(401), Answer::Status(200)]).await;
    let world = TestWorld::new(&receiver.webhook("")).await;
    let error = chain(&world.notifier.test("to").await.unwrap_err());
    assert!(error.contains("401"), "{error}");
    let tested = world.notifier.test("to").await.unwrap();
    let got = receiver.delivered(1).await.remove(0);
    assert_eq!((got.id(), &got.event["data"]["kind"]), (tested.id, &json!("test")));
    assert!(matches!(
        world.notifier.test("nobody").await,
        Err(NotifyError::Unknown(_))
    ));
    let view = world.settled(0).await;
    assert_eq!((view.delivered, view.cursor, view.newest), (0, 0, 0));
}

/// An answer without end, and one that breaks off: neither fills memory nor hangs.
#[tokio::test]
async fn an_endless_answer_is_read_to_its_first_line() {
    let receiver = Receiver::start([Answer::Endless]).await;
    let world = TestWorld::new(&receiver.webhook("")).await;
    let error = chain(&world.notifier.test("to").await.unwrap_err());
    assert!(error.contains("500") && error.len() < 500, "{error}");
}

#[test]
fn every_mistake_in_a_destination_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let key = "routing_key = { file = \"key\" }";
    let https = "url = \"https://example.com/x\"";
    let mail = "kind = \"email\"\nfrom = \"a@example.com\"\nto = [\"b@example.com\"]\n";
    for (to, said) in [
        (
            format!("kind = \"pagerduty\"\nurl = \"http://example.com/\"\n{key}"),
            "use https",
        ),
        (
            format!("kind = \"pagerduty\"\nurl = \"https://a:b@example.com/\"\n{key}"),
            "name or password in it",
        ),
        (
            "kind = \"pagerduty\"\nrouting_key = { file = \"nowhere\" }".to_owned(),
            "cannot read",
        ),
        (
            "kind = \"pagerduty\"\nrouting_key = { file = \"open\" }".to_owned(),
            "mode 0644",
        ),
        (
            "kind = \"pagerduty\"\nrouting_key = { env = \"FIRMESH_TEST_UNSET\" }".to_owned(),
            "FIRMESH_TEST_UNSET",
        ),
        ("kind = \"pagerduty\"\nrouting_key = { }".to_owned(), "a secret is"),
        (
            format!("kind = \"webhook\"\n{https}\nsecrets = []"),
            "takes one, or two",
        ),
        (
            format!("kind = \"webhook\"\n{https}\nsecrets = [{{ file = \"key\" }}]"),
            "whsec_",
        ),
        (format!("kind = \"rest\"\n{https}\nbody = '{{{{ sumary }}}}'"), "body"),
        (
            format!("kind = \"rest\"\n{https}\nbody = '\"{{{{ summary }}}}\"'"),
            "bring their own quotes",
        ),
        (
            format!("kind = \"rest\"\n{https}\nmethod = \"GET\"\nbody = '1'"),
            "POST, PUT or PATCH",
        ),
        (
            format!("{mail}host = \"mail.example.com\"\ntls = \"none\""),
            "this machine only",
        ),
        (
            format!("{mail}host = \"mail.example.com\"\nusername = \"u\""),
            "belong together",
        ),
        (
            "kind = \"email\"\nhost = \"m\"\nfrom = \"a@example.com\"\nto = [\"b\"]".to_owned(),
            "no mail address",
        ),
        (format!("{mail}host = \"m\"\nca_file = \"key\""), "PEM"),
    ] {
        match settings(folder.path(), &destination("to", "", &to)) {
            Err(ConfigError::Value {
                field: "notifications",
                problem,
            }) => {
                assert!(problem.contains("\"to\"") && problem.contains(said), "{to}: {problem}");
            }
            other => panic!("{to}: {other:?}"),
        }
    }
    let pagerduty = format!("kind = \"pagerduty\"\n{key}");
    for (text, said) in [
        (destination("To", "", &pagerduty), "lower case"),
        (destination("to", "", &pagerduty).repeat(2), "twice"),
        (
            destination("to", "give_up_after = \"soon\"", &pagerduty),
            "give_up_after",
        ),
        (destination("to", "campaigns = [\"a b\"]", &pagerduty), "campaigns"),
    ] {
        let problem = settings(folder.path(), &text).unwrap_err().to_string();
        assert!(problem.contains(said), "{text}: {problem}");
    }
    let unknown = destination("to", "events = [\"campaign_exploded\"]", &pagerduty);
    assert!(matches!(
        settings(folder.path(), &unknown),
        Err(ConfigError::Malformed { .. })
    ));
    let shown = settings(folder.path(), &destination("to", "", &pagerduty))
        .unwrap()
        .describe();
    assert!(shown.contains("pagerduty") && !shown.contains("the-key"), "{shown}");
}

/// What the handbook shows is what is read.
#[test]
fn the_handbook_s_example_is_a_configuration() {
    let handbook = include_str!("../../README.md");
    let (_, section) = handbook.split_once("## Notifications").unwrap();
    let (_, example) = section.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let example = example.replace("{ env = \"PAGERDUTY_KEY\" }", "{ file = \"key\" }");
    let folder = tempfile::tempdir().unwrap();
    for (name, secret) in [
        ("hook.secret", SECRET),
        ("mail.password", "p"),
        ("opsgenie.key", "k"),
        ("servicenow.authorization", "Basic x"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, secret).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let kinds: Vec<_> = settings(folder.path(), &example)
        .unwrap()
        .notifications
        .iter()
        .map(|destination| destination.to.kind())
        .collect();
    assert_eq!(kinds, ["webhook", "email", "pagerduty", "opsgenie", "rest"]);
}
