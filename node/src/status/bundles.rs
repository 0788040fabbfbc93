//! What a bundle brings, over the node's loopback door: `POST /bundle` shows its head, `GET /bundle/{campaign}` says what is
//! still wanted, `PUT /bundle/{artifact}/{piece}` brings a piece. All of it is verified as if it came over the network.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use firmesh_protocol::{
    chunk::ENCODED_PIECE_BYTES_MAX,
    site_bundle::{HEAD_BYTES_MAX, Head},
};
use tokio::sync::oneshot;

use super::{BundleRequest, Refusal, Runtime, refused, shutting_down};

pub(super) fn router() -> Router<Runtime> {
    let head_bytes_max = usize::try_from(HEAD_BYTES_MAX).unwrap_or(usize::MAX);
    Router::new()
        .route("/bundle", post(head).layer(DefaultBodyLimit::max(head_bytes_max)))
        .route("/bundle/{campaign}", get(wants))
        .route(
            "/bundle/{artifact}/{piece}",
            put(piece).layer(DefaultBodyLimit::max(ENCODED_PIECE_BYTES_MAX)),
        )
}

async fn head(State(runtime): State<Runtime>, body: Bytes) -> Response {
    match serde_json::from_slice::<Head>(&body) {
        Ok(head) => {
            let head = Box::new(head);
            ask(&runtime, |answer| BundleRequest::Head { head, answer }).await
        }
        Err(error) => refused(StatusCode::BAD_REQUEST, "not_a_bundle", error.to_string()),
    }
}

async fn wants(State(runtime): State<Runtime>, Path(campaign): Path<String>) -> Response {
    match campaign.parse() {
        Ok(campaign) => ask(&runtime, |answer| BundleRequest::Wants { campaign, answer }).await,
        Err(_) => refused(
            StatusCode::NOT_FOUND,
            "no_such_campaign",
            "not the name of a campaign".to_owned(),
        ),
    }
}

async fn piece(
    State(runtime): State<Runtime>,
    Path((artifact, piece)): Path<(String, u32)>,
    encoded: Bytes,
) -> Response {
    let Ok(artifact) = artifact.parse() else {
        return refused(
            StatusCode::NOT_FOUND,
            "not_wanted",
            "not the name of an artifact".to_owned(),
        );
    };
    let request = |answer| BundleRequest::Piece {
        artifact,
        piece,
        encoded,
        answer,
    };
    ask(&runtime, request).await
}

async fn ask<T: serde::Serialize>(
    runtime: &Runtime,
    request: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> BundleRequest,
) -> Response {
    let (answer, answered) = oneshot::channel();
    if runtime.bundles.send(request(answer)).await.is_err() {
        return shutting_down();
    }
    match answered.await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(refusal)) => refused(StatusCode::UNPROCESSABLE_ENTITY, &refusal.code, refusal.detail),
        Err(_) => shutting_down(),
    }
}
