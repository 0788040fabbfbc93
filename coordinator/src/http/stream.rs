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
use tracing::debug;

use super::{
    App,
    admission::Who,
    operators::named,
    problem::Failure,
    routes::{Op, Routes},
};
use crate::{
    access::{Identity, Permission},
    events::Subscription,
    telemetry::chain,
};

/// A comment so often keeps proxies from closing a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Between two looks at whether a watcher may still read along.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

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
    Extension(who): Extension<Who>,
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
    let over = async move {
        tokio::select! {
            () = app.cancel.cancelled() => {}
            () = until_over(&app, &who) => {}
        }
    };
    Sse::new(all.take_until(Box::pin(over)).map(Ok)).keep_alive(KeepAlive::new().interval(HEARTBEAT))
}

/// Ends when whoever reads along may not any more: his proof has expired, or his key was revoked.
async fn until_over(app: &App, who: &Identity) {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let now = app.clock.wall();
        if who.expires.is_some_and(|expires| now > expires) {
            return;
        }
        let Some(id) = who.name.strip_prefix("key:") else {
            continue;
        };
        match app.store.api_key(id).await {
            Ok(Some(key)) if key.is_good(now).is_ok() => {}
            Ok(_) => return,
            // That the database does not answer says nothing of him.
            Err(failure) => debug!(error = chain(&failure), "a reader's key could not be looked at"),
        }
    }
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
    Extension<Who>,
    HeaderMap,
    Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
);

async fn fleet(
    State(app): State<Arc<App>>,
    since: Result<Query<Since>, QueryRejection>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    upgrade(app, (since, Extension(who), headers, socket), |_| true)
}

async fn campaign(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    since: Result<Query<Since>, QueryRejection>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let id: CampaignId = named(&id)?;
    let wanted = id.clone();
    let known = app.coordinator.read(move |world| world.engine.state(&wanted)).await?;
    known.ok_or_else(|| Failure::not_found(format!("campaign {id}")))?;
    upgrade(
        app,
        (since, Extension(who), headers, socket),
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
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let id: DeviceId = named(&id)?;
    let wanted = id.clone();
    let known = app.coordinator.read(move |world| world.devices.contains(&wanted));
    if !known.await? {
        return Err(Failure::not_found(format!("device {id}")));
    }
    upgrade(
        app,
        (since, Extension(who), headers, socket),
        move |event| matches!(&event.what, EventKind::Attempt(view) if view.device == id),
    )
}

fn upgrade(
    app: Arc<App>,
    (since, Extension(who), headers, socket): Asked,
    wants: impl Fn(&Event) -> bool + Send + Sync + 'static,
) -> Result<Response, Failure> {
    // Browsers keep a stranger's page from reading our answers, but not our sockets.
    if who.is_anonymous() && !is_same_origin(&headers) && !is_configured_origin(&app, &headers) {
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
            () = until_over(&app, &who) => {}
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

fn is_configured_origin(app: &App, headers: &HeaderMap) -> bool {
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    origin.is_some_and(|origin| app.settings.cors_origins.iter().any(|one| one == origin))
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
