//! Server-Sent Events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event as SseEvent, KeepAlive, Sse},
};
use firmesh_protocol::api::Event;
use futures_util::{Stream, StreamExt as _};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::App;
use crate::events::Subscription;

/// A comment so often keeps proxies from closing a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// `GET /api/v1/events`: what happened since `Last-Event-ID` as far as it is kept, and what happens. A watcher too slow
/// for the ring gets an event `reload` and the stream ends: it reads everything again and comes back. So does one that
/// was away for longer than events are kept, or over a restart; its stream goes on.
pub(super) async fn events(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let Subscription { lost, missed, live } = app.events.subscribe(last);
    let reload = || SseEvent::default().event("reload").data("{}");
    let first = futures_util::stream::iter(lost.then(reload));
    let missed = futures_util::stream::iter(missed).map(|event| Some(sse(&event)));
    let live = BroadcastStream::new(live).map(|event| match event {
        Ok(event) => Some(sse(&event)),
        Err(BroadcastStreamRecvError::Lagged(_)) => None,
    });
    // `None` says that events were lost: it becomes the last event.
    let mut is_behind = false;
    let all = missed.chain(live).take_while(move |event| {
        let goes_on = !is_behind;
        is_behind = event.is_none();
        futures_util::future::ready(goes_on)
    });
    let all = first.chain(all.map(move |event| event.unwrap_or_else(reload)));
    let cancel = app.cancel.clone().cancelled_owned();
    Sse::new(all.take_until(cancel).map(Ok)).keep_alive(KeepAlive::new().interval(HEARTBEAT))
}

fn sse(event: &Event) -> SseEvent {
    let data = serde_json::to_string(event).unwrap_or_default();
    SseEvent::default().id(event.id.to_string()).data(data)
}
