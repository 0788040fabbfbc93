//! The way to the collector: batches, one after the other, each tried once.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{Counts, config::TelemetrySettings};

/// Spans that are sent together at most.
const BATCH_MAX: usize = 512;

/// How long a span waits for others to go with it.
const GATHER: Duration = Duration::from_millis(500);

/// How long a collector may take for a batch.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The most of an answer that is read: it says which spans were refused.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No client.
    #[error("the client for the OpenTelemetry collector cannot be made")]
    Client(#[source] reqwest::Error),
    /// No exporter.
    #[error("the OpenTelemetry exporter cannot be made")]
    Exporter(#[from] ExporterBuildError),
}

#[derive(Debug)]
struct Client(reqwest::Client);

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.0.execute(request.try_into()?).await?;
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await? {
            if body.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(format!("the collector answers with more than {ANSWER_BYTES_MAX} bytes").into());
            }
            body.extend_from_slice(&part);
        }
        Ok(Response::builder().status(answer.status()).body(body.into())?)
    }
}

pub(crate) fn exporter(
    settings: &TelemetrySettings,
    service: &'static str,
    instance: &str,
) -> Result<SpanExporter, StartError> {
    // Fails only if somebody installed one before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .timeout(ANSWER_WITHIN)
        .redirect(reqwest::redirect::Policy::none());
    if settings.endpoint.starts_with("http://") {
        // Without TLS there is nothing to verify: do not depend on the system's certificates, nor on a proxy for loopback.
        builder = builder.tls_certs_only([]).no_proxy();
    }
    let client = Client(builder.build().map_err(StartError::Client)?);
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(&settings.endpoint)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(ANSWER_WITHIN)
        .build()?;
    let resource = Resource::builder_empty()
        .with_service_name(service)
        .with_attributes([
            KeyValue::new("service.namespace", "firmesh"),
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    exporter.set_resource(&resource);
    Ok(exporter)
}

/// Sends what comes until it is to stop, and then what is there already.
pub(crate) async fn keep_sending(
    exporter: SpanExporter,
    mut waiting: mpsc::Receiver<SpanData>,
    mut stopped: watch::Receiver<bool>,
    counts: Arc<Counts>,
) {
    let mut is_heard = true;
    loop {
        let mut batch = Vec::new();
        let is_over = tokio::select! {
            biased;
            taken = waiting.recv_many(&mut batch, BATCH_MAX) => taken == 0,
            // Whoever could stop it is gone as well.
            _ = stopped.wait_for(|stopped| *stopped) => true,
        };
        if is_over {
            waiting.close();
            if waiting.is_empty() {
                return;
            }
            continue;
        }
        if batch.len() < BATCH_MAX && !*stopped.borrow() {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
            while batch.len() < BATCH_MAX
                && let Ok(span) = waiting.try_recv()
            {
                batch.push(span);
            }
        }
        let count = batch.len() as u64;
        match exporter.export(batch).await {
            Ok(()) => {
                counts.sent.fetch_add(count, Ordering::Relaxed);
                if !std::mem::replace(&mut is_heard, true) {
                    info!("the OpenTelemetry collector takes spans again");
                }
            }
            Err(error) => {
                counts.dropped.fetch_add(count, Ordering::Relaxed);
                // Once, and not for every batch until it is there again.
                if std::mem::replace(&mut is_heard, false) {
                    warn!(%error, "the OpenTelemetry collector does not take spans: they are dropped until it does");
                }
            }
        }
    }
}
