use std::{sync::Mutex as Lock, time::Instant};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value as Said,
    trace::v1::{span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message as _;

use super::*;

type Taken = Arc<Lock<Vec<ExportTraceServiceRequest>>>;

/// A collector that takes everything or, if `status` says so, nothing.
async fn collector(status: StatusCode) -> (String, Taken) {
    let taken = Taken::default();
    let take = async move |State(taken): State<Taken>, body: Bytes| {
        taken
            .lock()
            .unwrap()
            .push(ExportTraceServiceRequest::decode(&body[..]).unwrap());
        status
    };
    let router = Router::new().route("/v1/traces", post(take)).with_state(taken.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    (url, taken)
}

fn tracer(url: &str) -> Tracer {
    let config = TelemetryConfig {
        otlp: Some(url.to_owned()),
        sample: 10_000,
    };
    let settings = config.check().unwrap().unwrap();
    Tracer::start(&settings, "firmesh-test", "one").unwrap()
}

fn context(sampled: bool) -> TraceContext {
    TraceContext::new([1; 16], [2; 8], sampled)
}

fn span(sampled: bool) -> Span {
    let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    Span {
        context: context(sampled),
        parent: Some([3; 8]),
        parent_is_remote: true,
        name: "firmware.install",
        kind: Kind::Internal,
        began,
        // A clock that was set back.
        ended: began - Duration::from_secs(1),
        attributes: vec![
            ("firmesh.device", "ä".repeat(TEXT_BYTES_MAX).into()),
            ("n", 7_u64.into()),
        ],
        failed: Some("it smoked".to_owned()),
    }
}

#[tokio::test]
async fn a_span_arrives_as_it_was_made() {
    let (url, taken) = collector(StatusCode::OK).await;
    let tracer = tracer(&url);
    tracer.send(span(true));
    tracer.send(span(false));
    tracer.close().await;
    assert_eq!(tracer.counts(), (1, 0));
    let taken = taken.lock().unwrap();
    let [request] = &taken[..] else { panic!("{taken:?}") };
    let [resource] = &request.resource_spans[..] else {
        panic!("{request:?}")
    };
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    let service = attributes
        .iter()
        .find(|attribute| attribute.key == "service.name")
        .unwrap();
    let name = service.value.as_ref().unwrap().value.clone();
    assert_eq!(name, Some(Said::StringValue("firmesh-test".to_owned())));
    let found = &resource.scope_spans[0].spans[0];
    assert_eq!((&found.trace_id[..], &found.span_id[..]), (&[1; 16][..], &[2; 8][..]));
    assert_eq!(
        (&found.parent_span_id[..], found.kind()),
        (&[3; 8][..], SpanKind::Internal)
    );
    assert_eq!(found.start_time_unix_nano, 1_800_000_000_000_000_000);
    assert_eq!(found.end_time_unix_nano, found.start_time_unix_nano);
    assert_eq!(found.status.as_ref().unwrap().code(), SpanStatus::Error);
    let Some(Said::StringValue(text)) = &found.attributes[0].value.as_ref().unwrap().value else {
        panic!("{found:?}")
    };
    assert_eq!(text.len(), TEXT_BYTES_MAX);
}

/// A collector that is not there, or refuses, must cost nobody anything.
#[tokio::test]
async fn without_a_collector_spans_are_dropped_and_counted_and_nobody_waits() {
    let (refusing, _) = collector(StatusCode::SERVICE_UNAVAILABLE).await;
    // Nobody listens there.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for url in [refusing, format!("http://{gone}")] {
        let tracer = tracer(&url);
        let began = Instant::now();
        let count = 3 * QUEUE_MAX as u64;
        (0..count).for_each(|_| tracer.send(span(true)));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        tracer.close().await;
        assert_eq!(tracer.counts(), (0, count));
    }
}

#[tokio::test]
async fn who_asks_for_no_traces_gets_none() {
    let tracer = Tracer::off();
    tracer.send(span(true));
    assert!(!tracer.is_on() && !tracer.picks(&context(true), "any"));
    assert_eq!(tracer.counts(), (0, 0));
    tracer.close().await;
}
