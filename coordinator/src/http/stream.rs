//! Events as they happen: Server-Sent Events, and the same over WebSockets for one campaign, one device or all.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{
        Path, Query, State, WebSocketUpgrade,
        rejection::QueryRejection,
        ws::{Message, WebSocket, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode, header},
    response::{
        Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
};
use firmesh_protocol::{
    api::{Event, EventKind},
    ids::{CampaignId, DeviceId},
};
use futures_util::{SinkExt as _, Stream, StreamExt as _};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{
    App,
    operators::{Identity, named},
    problem::Failure,
    routes::{Op, Routes},
};
use crate::{access::Permission, events::Subscription};

/// A comment so often keeps proxies from closing a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// A watcher that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watchers have nothing to say to us.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    let mut add = |path: &str, op: Op| routes.add("streams", &format!("/api/v1/{path}"), [op]);
    add("events", Op::get("Server-Sent Events; an event `reload` says that some were lost.", events).needs(Permission::FleetRead)
        .header("Last-Event-ID", false, "the last event that was seen")
        .answers_as("text/event-stream"));
    const LAST: &str = "the id of the last event that was seen";
    add("stream/fleet", Op::get("All events over a WebSocket.", fleet).needs(Permission::FleetRead).query("last", LAST).socket());
    for noun in ["rollouts", "campaigns", "deployments"] {
        add(&format!("stream/{noun}/{{id}}"), Op::get("A campaign's events over a WebSocket.", campaign).needs(Permission::FleetRead)
            .query("last", LAST)
            .socket());
    }
    add("stream/devices/{id}", Op::get("A device's attempts over a WebSocket.", device).needs(Permission::FleetRead).query("last", LAST).socket());
}

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Since {
    last: Option<u64>,
}

/// A request for a stream.
type Asked = (
    Result<Query<Since>, QueryRejection>,
    Extension<Identity>,
    HeaderMap,
    Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
);

async fn fleet(
    State(app): State<Arc<App>>,
    since: Result<Query<Since>, QueryRejection>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    upgrade(app, (since, Extension(identity), headers, socket), |_| true)
}

async fn campaign(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    since: Result<Query<Since>, QueryRejection>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let wanted = id.clone();
    let known = app.coordinator.read(move |world| world.engine.state(&wanted)).await?;
    known.ok_or_else(|| Failure::not_found(format!("campaign {id}")))?;
    upgrade(
        app,
        (since, Extension(identity), headers, socket),
        move |event| match &event.what {
            EventKind::Campaign(view) => view.id == id,
            EventKind::Attempt(view) => view.campaign == id,
            EventKind::Node(_) | EventKind::Artifact(_) => false,
        },
    )
}

async fn device(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    since: Result<Query<Since>, QueryRejection>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let id: DeviceId = named(&id)?;
    let wanted = id.clone();
    let known = app.coordinator.read(move |world| world.devices.contains_key(&wanted));
    if !known.await? {
        return Err(Failure::not_found(format!("device {id}")));
    }
    upgrade(
        app,
        (since, Extension(identity), headers, socket),
        move |event| matches!(&event.what, EventKind::Attempt(view) if view.device == id),
    )
}

fn upgrade(
    app: Arc<App>,
    (since, Extension(identity), headers, socket): Asked,
    wants: impl Fn(&Event) -> bool + Send + Sync + 'static,
) -> Result<Response, Failure> {
    // Browsers keep a stranger's page from reading our answers, but not our sockets.
    if identity == Identity::Reader && !is_same_origin(&headers) {
        let detail = "a page of another origin may not read along: open the stream from this coordinator's own page, or \
                      send the token";
        return Err(Failure::new(StatusCode::FORBIDDEN, "foreign_origin", detail).refused());
    }
    let Query(Since { last }) = since.map_err(|error| Failure::bad_request(error.body_text()))?;
    let socket = socket.map_err(|error| Failure::bad_request(error.body_text()))?;
    let socket = socket
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX);
    let (events, cancel) = (app.events.subscribe(last), app.cancel.clone());
    Ok(socket.on_upgrade(async move |socket| {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tell(socket, events, wants) => {}
        }
    }))
}

fn is_same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    authority.is_some_and(|(_, authority)| host == Some(authority))
}

/// Tells a watcher until it goes away. One that is too slow for the ring is told to reload, and let go.
async fn tell(socket: WebSocket, events: Subscription, wants: impl Fn(&Event) -> bool + Sync) {
    let Subscription { lost, missed, mut live } = events;
    let (mut told, mut heard) = socket.split();
    let mut say = async |message: Message| matches!(timeout(PATIENCE, told.send(message)).await, Ok(Ok(())));
    let reload = || Message::text("{\"kind\":\"reload\"}");
    let text = |event: &Event| Message::text(serde_json::to_string(event).unwrap_or_default());
    if lost && !say(reload()).await {
        return;
    }
    for event in missed.iter().filter(|event| wants(event)) {
        if !say(text(event)).await {
            return;
        }
    }
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        let goes_on = tokio::select! {
            event = live.recv() => match event {
                Ok(event) if wants(&event) => say(text(&event)).await,
                Ok(_) => true,
                Err(_) => {
                    say(reload()).await;
                    false
                }
            },
            // Pings are answered by the library; anything else a watcher says means nothing here.
            message = heard.next() => matches!(message, Some(Ok(message)) if !matches!(message, Message::Close(_))),
            _ = heartbeat.tick() => say(Message::Ping(Vec::new().into())).await,
        };
        if !goes_on {
            break;
        }
    }
    // Gone already, or told so: either is fine.
    let _ = timeout(PATIENCE, told.close()).await;
}
