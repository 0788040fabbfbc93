//! Traces to an OpenTelemetry collector: spans of work that is over, sent as OTLP (protobuf over HTTP).
//!
//! Invariants: nothing waits for a collector, and nothing fails because of one. What finds the queue full, or a collector that
//! does not answer, is dropped and counted. Who asks for no traces pays for none.

mod config;
mod export;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

pub use config::{TelemetryConfig, TelemetryProblem, TelemetrySettings};
pub use export::StartError;
use firmesh_protocol::trace::TraceContext;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

/// Spans that wait to be sent: a burst of a large wave, a few MiB.
const QUEUE_MAX: usize = 4_096;

/// How long a process that ends waits for its last spans to leave.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The longest text of an attribute that is sent.
const TEXT_BYTES_MAX: usize = 1_024;

/// What a span is to what called it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something inside a process.
    Internal,
    /// The answer to a request from elsewhere.
    Server,
    /// What follows from something that another process said.
    Consumer,
}

/// A piece of work that is over.
#[derive(Debug, Clone)]
pub struct Span {
    /// The trace, and the span's own id.
    pub context: TraceContext,
    /// The span it belongs to, if there is one.
    pub parent: Option<[u8; 8]>,
    /// Whether that span is another process's.
    pub parent_is_remote: bool,
    /// Its name.
    pub name: &'static str,
    /// What it is to what called it.
    pub kind: Kind,
    /// When it began.
    pub began: SystemTime,
    /// When it ended; a clock that was set back meanwhile makes it end when it began.
    pub ended: SystemTime,
    /// What there is to say of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, if it did.
    pub failed: Option<String>,
}

/// What an attribute has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// What became of spans.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// Sends spans, if anybody wants them.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    share: u16,
    queue: mpsc::Sender<SpanData>,
    stop: tokio::sync::watch::Sender<bool>,
    worker: Mutex<Option<JoinHandle<()>>>,
    counts: Arc<Counts>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracer({})", if self.is_on() { "on" } else { "off" })
    }
}

impl Tracer {
    /// Sends nothing.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Begins to send, from a process that calls itself `service` and `instance`. In a tokio runtime.
    pub fn start(settings: &TelemetrySettings, service: &'static str, instance: &str) -> Result<Self, StartError> {
        let exporter = export::exporter(settings, service, instance)?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let counts = Arc::new(Counts::default());
        let worker = tokio::spawn(export::keep_sending(exporter, waiting, stopped, Arc::clone(&counts)));
        Ok(Self(Some(Arc::new(On {
            share: settings.sample,
            queue,
            stop,
            worker: Mutex::new(Some(worker)),
            counts,
        }))))
    }

    /// Starts one if the settings ask for it.
    pub fn of(settings: Option<&TelemetrySettings>, service: &'static str, instance: &str) -> Result<Self, StartError> {
        settings.map_or_else(|| Ok(Self::off()), |settings| Self::start(settings, service, instance))
    }

    /// Whether anybody wants spans.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether what has this name is looked at in this trace: a share of everything is.
    #[must_use]
    pub fn picks(&self, context: &TraceContext, name: &str) -> bool {
        let share = self.0.as_ref().map_or(0, |on| on.share);
        context.sampled && context.picks(name, share)
    }

    /// Sends a span soon, if there is room for it. Never waits.
    pub fn send(&self, span: Span) {
        let Some(on) = self.0.as_ref().filter(|_| span.context.sampled) else {
            return;
        };
        if on.queue.try_send(span.into_data()).is_err() {
            on.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Spans that a collector has taken, and those that were dropped, since the start.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.0.as_ref().map_or((0, 0), |on| {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (count(&on.counts.sent), count(&on.counts.dropped))
        })
    }

    /// Lets the last spans leave, for a moment. Nothing is sent after that.
    pub async fn close(&self) {
        let Some(on) = &self.0 else { return };
        on.stop.send_replace(true);
        if let Some(worker) = on.worker.lock().await.take() {
            let abort = worker.abort_handle();
            // Whoever does not take them in time does not get them.
            if tokio::time::timeout(LAST_WORDS, worker).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Span {
    fn into_data(self) -> SpanData {
        let flags = TraceFlags::default().with_sampled(self.context.sampled);
        let (trace, span) = (
            TraceId::from_bytes(self.context.trace()),
            SpanId::from_bytes(self.context.span()),
        );
        let attributes = self.attributes.into_iter().map(|(name, value)| match value {
            Value::Text(mut text) => {
                shorten(&mut text);
                KeyValue::new(name, text)
            }
            Value::Number(number) => KeyValue::new(name, number),
            Value::Flag(flag) => KeyValue::new(name, flag),
        });
        SpanData {
            span_context: SpanContext::new(trace, span, flags, false, TraceState::NONE),
            parent_span_id: self.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: self.parent_is_remote,
            span_kind: match self.kind {
                Kind::Internal => opentelemetry::trace::SpanKind::Internal,
                Kind::Server => opentelemetry::trace::SpanKind::Server,
                Kind::Consumer => opentelemetry::trace::SpanKind::Consumer,
            },
            name: self.name.into(),
            start_time: self.began,
            end_time: self.ended.max(self.began),
            attributes: attributes.collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: match self.failed {
                None => Status::Unset,
                Some(mut why) => {
                    shorten(&mut why);
                    Status::error(why)
                }
            },
            instrumentation_scope: InstrumentationScope::builder("firmesh")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }
}

fn shorten(text: &mut String) {
    let end = (0..=text.len().min(TEXT_BYTES_MAX))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests;
