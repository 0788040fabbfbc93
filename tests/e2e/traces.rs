//! A campaign is one trace: from the operator's request to what was read back from each device, over processes of four kinds, as
//! OpenTelemetry's own messages have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use firmesh_protocol::api::CampaignState;
use firmesh_tests::{
    cluster::{Cluster, Shape},
    setup::rules,
    wait::{Seen, until},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Said},
};
use prost::Message as _;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(90);

/// Whose click it was.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CLICK: &str = "00f067aa0ba902b7";

/// What is done to every device, in order.
const STEPS: [&str; 5] = [
    "firmware.download",
    "firmware.verify",
    "firmware.install",
    "device.reboot",
    "health.check",
];

#[tokio::test]
async fn a_campaign_is_one_trace_from_the_operators_request_to_what_was_read_back() -> Result<()> {
    let shape = Shape {
        racks: 1,
        hosts: 1,
        ..Shape::default()
    };
    let collector = Collector::start().await?;
    Cluster::with(shape, async |fleet| {
        let traced = format!("[telemetry]\notlp = {:?}\n", collector.url);
        let more = format!("[log]\njson = true\n{traced}");
        fs::write(fleet.folder().join("coordinator-more.toml"), more)?;
        fleet.coordinator.stop(WITHIN).await?;
        fleet.restart_coordinator().await?;
        for node in fleet.nodes.values_mut() {
            let file = node.folder().join("node.toml");
            fs::write(&file, fs::read_to_string(&file)? + &traced)?;
            node.process.stop(WITHIN).await?;
            node.restart().await?;
        }
        fleet.approve_campaign("spring", &rules(2, (60, 15)))?;
        let token = fs::read_to_string(fleet.folder().join("coordinator/operator.token"))?;
        let click = fleet
            .http()
            .post(format!("{}/api/v1/deployments/spring/start", fleet.url()))
            .bearer_auth(token.trim())
            .header("traceparent", format!("00-{TRACE}-{CLICK}-01"));
        let started = click.send().await?;
        ensure!(started.status().is_success(), "{}", started.text().await?);
        let began = check_log(&fleet.coordinator.log())?;

        // The trace outlives the coordinator that began it.
        until("a first device to be done", WITHIN, async || {
            let running = fleet.running("1.1.0").await?;
            Ok(Seen::when(running > 0, || "none".to_owned()))
        })
        .await?;
        fleet.coordinator.kill()?;
        fleet.restart_coordinator().await?;
        let ended = fleet.campaign_ends("spring", WITHIN).await?;
        ensure!(ended.state == CampaignState::Completed, "{ended:?}");

        let names: BTreeSet<_> = fleet.versions().await?.into_keys().collect();
        ensure!(names.len() == 4, "{names:?}");
        let spans = until("the whole trace", WITHIN, async || {
            let spans = collector.spans();
            let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
            let is_whole = count("deployment.complete") == 1 && count("device.notify") == names.len();
            Ok(match is_whole {
                true => Seen::Yes(spans),
                false => Seen::NotYet(format!("{spans:?}")),
            })
        })
        .await?;
        ensure!(began["trace_id"] == TRACE, "{began}");
        check_shape(&spans, &names)
    })
    .await
}

/// The line that says who has started what, with everything that the requirements name.
fn check_log(log: &str) -> Result<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut started = lines.filter(|line| line["fields"]["message"] == "a campaign was started");
    let line = started.next_back().context("no line says that it was started")?;
    let fields = &line["fields"];
    ensure!(line["timestamp"].is_string() && line["level"] == "INFO", "{line}");
    ensure!(
        fields["campaign"] == "spring" && fields["strategy"] == "canary" && fields["devices"] == 4,
        "{line}"
    );
    ensure!(fields["user"] == "bootstrap", "{line}");
    let version = fields["version"].as_str().unwrap_or_default();
    ensure!(version.contains("1.1.0"), "{line}");
    // The request's own lines stand in its span.
    ensure!(line["span"]["trace_id"] == TRACE, "{line}");
    Ok(fields.clone())
}

fn check_shape(spans: &[Span], devices: &BTreeSet<String>) -> Result<()> {
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    ensure!(ids.len() == spans.len(), "two spans have one id: {spans:?}");
    for span in spans {
        ensure!(span.trace == TRACE, "another trace: {span:?}");
        ensure!(!span.failed, "{span:?}");
        ensure!(
            span.attributes.get("firmesh.campaign").map(String::as_str) == Some("spring"),
            "{span:?}"
        );
    }
    let one = |name: &str| -> Result<&Span> {
        let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
        ensure!(found.len() == 1, "{name}: {found:?}");
        Ok(found[0])
    };
    let (create, complete) = (one("deployment.create")?, one("deployment.complete")?);
    ensure!(
        create.parent == CLICK && create.service == "firmesh-coordinator",
        "{create:?}"
    );
    ensure!(
        complete.parent == create.id && complete.service == "firmesh-coordinator",
        "{complete:?}"
    );
    ensure!(complete.began >= create.ended, "{create:?} {complete:?}");
    let notified: BTreeMap<_, _> = spans
        .iter()
        .filter(|span| span.name == "device.notify")
        .map(|span| (span.attributes["firmesh.device"].clone(), span))
        .collect();
    ensure!(
        notified.keys().cloned().collect::<BTreeSet<_>>() == *devices,
        "{notified:?}"
    );
    for (device, notify) in notified {
        ensure!(
            notify.parent == create.id && notify.service == "firmesh-node",
            "{notify:?}"
        );
        for (name, value) in [
            ("firmesh.version", "1.1.0"),
            ("firmesh.version.read_back", "1.1.0"),
            ("firmesh.state", "success"),
        ] {
            ensure!(
                notify.attributes.get(name).map(String::as_str) == Some(value),
                "{notify:?}"
            );
        }
        let mut before = notify.began;
        for step in STEPS {
            let mut found = spans
                .iter()
                .filter(|span| span.name == step && span.parent == notify.id);
            let first = found
                .next()
                .with_context(|| format!("{device} has no {step}: {spans:?}"))?;
            ensure!(first.attributes["firmesh.device"] == device, "{first:?}");
            ensure!(first.attributes["firmesh.version"] == "1.1.0", "{first:?}");
            ensure!(
                before <= first.began && first.began <= first.ended && first.ended <= notify.ended,
                "{step} of {device} is out of order: {first:?} in {notify:?}"
            );
            before = first.began;
        }
    }
    Ok(())
}

/// A span as a collector sees it.
#[derive(Debug, Clone)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    began: u64,
    ended: u64,
    failed: bool,
    attributes: BTreeMap<String, String>,
}

/// Takes OTLP over HTTP, and keeps it.
struct Collector {
    url: String,
    taken: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    async fn start() -> Result<Self> {
        let taken = Arc::<Mutex<Vec<Span>>>::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(taken.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Self { url, taken })
    }

    fn spans(&self) -> Vec<Span> {
        self.taken.lock().map(|taken| taken.clone()).unwrap_or_default()
    }
}

async fn take(State(taken): State<Arc<Mutex<Vec<Span>>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(&body[..]) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let of = resource
            .resource
            .map(|resource| texts(&resource.attributes))
            .unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                service: of.get("service.name").cloned().unwrap_or_default(),
                trace: hex::encode(&span.trace_id),
                id: hex::encode(&span.span_id),
                parent: hex::encode(&span.parent_span_id),
                began: span.start_time_unix_nano,
                ended: span.end_time_unix_nano,
                failed: span.status.as_ref().is_some_and(|status| status.code == 2),
                attributes: texts(&span.attributes),
                name: span.name,
            });
        }
    }
    match taken.lock() {
        Ok(mut taken) => {
            taken.append(&mut spans);
            StatusCode::OK
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match &attribute.value.as_ref()?.value.as_ref()? {
        Said::StringValue(text) => Some((attribute.key.clone(), text.clone())),
        Said::IntValue(number) => Some((attribute.key.clone(), number.to_string())),
        Said::BoolValue(flag) => Some((attribute.key.clone(), flag.to_string())),
        _ => None,
    };
    attributes.iter().filter_map(text).collect()
}
