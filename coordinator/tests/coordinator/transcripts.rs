//! What nodes tell of their devices for people to read: transcripts of attempts, and the names of credentials' profiles.

use std::io::Write as _;

use data_encoding::BASE64;
use firmesh_protocol::{
    api::{CredentialsReport, DeviceView, PackedTranscript, Page, TranscriptReport, TranscriptView},
    ids::{CampaignId, DeviceId, Sha256},
    report::{AttemptState, PermitKind},
    time::WallTime,
};
use flate2::{Compression, write::GzEncoder};
use reqwest::{Method, StatusCode};

use crate::fleet::{Fleet, NodeProcess};

/// What a BMC names, and nobody must find in the database.
const SERIAL: &str = "SN-2218-transcribed";

fn words(device: &str, attempt: i64) -> String {
    format!(
        "{{\"line\":\"head\",\"schema\":\"firmesh-redfish-transcript/1\",\"device\":\"{device}\"}}\n\
         {{\"line\":\"exchange\",\"at_ms\":{attempt},\"answer\":{{\"SerialNumber\":\"{SERIAL}\"}}}}\n"
    )
}

fn packed(words: &str) -> PackedTranscript {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(words.as_bytes()).unwrap();
    PackedTranscript {
        exchanges: 1,
        bytes: words.len() as u64,
        sha256: Sha256::of(words.as_bytes()),
        left_out: 0,
        content: Some(BASE64.encode(&encoder.finish().unwrap())),
    }
}

fn report(device: &str, attempt: i64) -> TranscriptReport {
    TranscriptReport {
        device: DeviceId::new(device).unwrap(),
        campaign: CampaignId::new("spring").unwrap(),
        kind: PermitKind::Update,
        state: AttemptState::Failed,
        ended: WallTime::from_unix_seconds(1_800_000_000 + attempt),
        transcript: packed(&words(device, attempt)),
    }
}

async fn tell(fleet: &Fleet, node: &NodeProcess, report: &TranscriptReport) -> StatusCode {
    fleet.node_post(node, "/node/v1/transcripts", report).await.status()
}

async fn listed(fleet: &Fleet, device: &str) -> Vec<TranscriptView> {
    let path = format!("/api/v1/devices/{device}/transcripts");
    let answer = fleet.ask(Method::GET, &path, &[], None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.json::<Page<TranscriptView>>().await.unwrap().items
}

async fn founded() -> (Fleet, [NodeProcess; 2]) {
    let mut fleet = Fleet::start().await;
    fleet.found().await;
    let nodes = [
        fleet.enrol("n1", "eu/s1/r1/n1").await,
        fleet.enrol("n2", "eu/s1/r2/n2").await,
    ];
    for node in &nodes {
        fleet.sync(node, &[]).await;
    }
    fleet.campaign("spring").await;
    (fleet, nodes)
}

#[tokio::test]
async fn the_last_transcripts_of_a_device_are_kept_sealed_and_read_by_operators() {
    let (mut fleet, [node, other]) = founded().await;
    for attempt in 1..=4 {
        let told = report("n1-d0", attempt);
        assert_eq!(tell(&fleet, &node, &told).await, StatusCode::NO_CONTENT);
        // It was not answered, and tells again.
        assert_eq!(tell(&fleet, &node, &told).await, StatusCode::NO_CONTENT);
    }
    let mut well = report("n1-d0", 5);
    (well.state, well.transcript.content) = (AttemptState::Success, None);
    assert_eq!(tell(&fleet, &node, &well).await, StatusCode::NO_CONTENT);
    fleet.restart().await;

    let views = listed(&fleet, "n1-d0").await;
    let numbers: Vec<_> = views.iter().map(|view| (view.number, view.state)).collect();
    let failed = AttemptState::Failed;
    assert_eq!(numbers, [(5, AttemptState::Success), (4, failed), (3, failed)]);
    let text = words("n1-d0", 4);
    assert_eq!(
        (views[1].kept_bytes, views[1].bytes, views[1].sha256, views[1].exchanges),
        (text.len() as u64, text.len() as u64, Sha256::of(text.as_bytes()), 1)
    );
    assert_eq!((views[0].kept_bytes, views[0].node.as_str()), (0, "n1"));
    let path = "/api/v1/devices/n1-d0/transcripts";
    let answer = fleet.ask(Method::GET, &format!("{path}/4"), &[], None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    assert_eq!(
        answer.headers()["content-disposition"],
        "attachment; filename=\"n1-d0-4.jsonl\""
    );
    assert_eq!(answer.text().await.unwrap(), text);
    for (number, status) in [("5", 404), ("1", 404), ("9", 404), ("x", 400)] {
        let answer = fleet.ask(Method::GET, &format!("{path}/{number}"), &[], None).await;
        assert_eq!(answer.status(), status, "{number}");
    }
    // Who only looks at the fleet does not read along, and neither does a thief of the database.
    assert_eq!(fleet.status(path).await, StatusCode::UNAUTHORIZED);
    assert_eq!(fleet.status(&format!("{path}/4")).await, StatusCode::UNAUTHORIZED);
    let bytes = fleet.database_bytes();
    assert!(!bytes.windows(SERIAL.len()).any(|part| part == SERIAL.as_bytes()));

    // Nobody tells of another's device, or of what is in no campaign.
    assert_eq!(tell(&fleet, &other, &report("n1-d0", 6)).await, StatusCode::CONFLICT);
    let mut elsewhere = report("n1-d0", 6);
    elsewhere.campaign = CampaignId::new("autumn").unwrap();
    assert_eq!(tell(&fleet, &node, &elsewhere).await, StatusCode::CONFLICT);
    let mut torn = report("n1-d0", 6);
    torn.transcript.bytes += 1;
    assert_eq!(tell(&fleet, &node, &torn).await, StatusCode::BAD_REQUEST);
    let mut long = report("n1-d0", 6);
    long.transcript.content = Some("A".repeat(512 << 10));
    assert_eq!(tell(&fleet, &node, &long).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(listed(&fleet, "n1-d0").await.len(), 3);

    // With the device goes what was said to it.
    let removed = fleet.ask(Method::DELETE, "/api/v1/devices/n1-d0", &[], None).await;
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    fleet.sync(&node, &[]).await;
    assert_eq!(listed(&fleet, "n1-d0").await, []);
}

#[tokio::test]
async fn a_device_shows_the_profile_that_its_own_node_names_and_no_other() {
    let (fleet, [node, other]) = founded().await;
    let tell = async |node: &NodeProcess, profiles: &[(&str, &str)]| {
        let profiles = profiles
            .iter()
            .map(|(device, profile)| (DeviceId::new(*device).unwrap(), (*profile).to_owned()));
        let report = CredentialsReport {
            profiles: profiles.collect(),
        };
        fleet.node_post(node, "/node/v1/credentials", &report).await.status()
    };
    let shown = async |device: &str| {
        let view: DeviceView = fleet.get(&format!("/api/v1/devices/{device}")).await;
        view.credentials_profile
    };
    let both = [("n1-d0", "rack 1"), ("n1-d1", "bmc-1"), ("n1-d9", "not there yet")];
    assert_eq!(tell(&node, &both).await, StatusCode::NO_CONTENT);
    assert_eq!(tell(&other, &[("n1-d0", "a stranger's")]).await, StatusCode::NO_CONTENT);
    assert_eq!(shown("n1-d0").await.as_deref(), Some("rack 1"));
    assert_eq!(shown("n1-d1").await.as_deref(), Some("bmc-1"));
    assert_eq!(shown("n2-d0").await, None);
    // All of them each time: what is not named any more has none.
    assert_eq!(tell(&node, &[("n1-d1", "bmc-2")]).await, StatusCode::NO_CONTENT);
    assert_eq!(
        (shown("n1-d0").await, shown("n1-d1").await.as_deref()),
        (None, Some("bmc-2"))
    );
    for bad in ["", "two\nlines", &"x".repeat(129)] {
        assert_eq!(tell(&node, &[("n1-d1", bad)]).await, StatusCode::BAD_REQUEST, "{bad:?}");
    }
    assert_eq!(shown("n1-d1").await.as_deref(), Some("bmc-2"));
}
