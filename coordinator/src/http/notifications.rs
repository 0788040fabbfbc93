//! Who is told what happens, `/api/v1/notifications`: how far each destination has come, a test, and a replay.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use firmesh_protocol::api::{NotificationTested, NotificationView, Page, ReplayRequest, ReplayStarted};

use super::{
    App,
    problem::{Body, Failure},
    routes::{Op, Routes},
};
use crate::{access::Permission, notify::NotifyError, telemetry::chain};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    routes.add("notifications", "/api/v1/notifications", [
        Op::get("Lists who is told what happens, and how far each has come.", list).needs(Permission::FleetRead).answers_page::<NotificationView>(),
    ]);
    routes.add("notifications", "/api/v1/notifications/{name}/test", [
        Op::post("Delivers a test, at once.", test).needs(Permission::NotificationSend).answers::<NotificationTested>(),
    ]);
    routes.add("notifications", "/api/v1/notifications/{name}/replay", [
        Op::post("Tells everything again since an event or a moment.", replay).needs(Permission::NotificationSend)
            .takes::<ReplayRequest>()
            .answers::<ReplayStarted>(),
    ]);
}

async fn list(State(app): Shared) -> Answer<Page<NotificationView>> {
    Ok(Json(Page {
        items: app.notifier.views().await?,
    }))
}

async fn test(State(app): Shared, Path(name): Path<String>) -> Answer<NotificationTested> {
    Ok(Json(app.notifier.test(&name).await?))
}

async fn replay(
    State(app): Shared,
    Path(name): Path<String>,
    Body(request): Body<ReplayRequest>,
) -> Answer<ReplayStarted> {
    Ok(Json(app.notifier.replay(&name, request).await?))
}

impl From<NotifyError> for Failure {
    fn from(error: NotifyError) -> Self {
        let detail = chain(&error);
        match error {
            NotifyError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "not_found", detail),
            NotifyError::SinceWhat => Self::bad_request(detail),
            NotifyError::Nothing(_) => Self::new(StatusCode::NOT_FOUND, "nothing_to_replay", detail),
            NotifyError::NotBack { .. } => Self::new(StatusCode::CONFLICT, "not_settled", detail),
            NotifyError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail),
            NotifyError::NotDelivered(_) => Self::new(StatusCode::BAD_GATEWAY, "not_delivered", detail),
            NotifyError::Store(error) => error.into(),
            NotifyError::NoRandomness(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no_randomness", detail),
        }
    }
}
