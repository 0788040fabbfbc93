//! `/api/v1/auth`: who one is, and tokens; `/api/v1/access`: API keys.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use firmesh_protocol::api::{
    ApiKeyMade, ApiKeyView, LoginMethods, NewApiKey, Page, PermissionView, RotateRequest, TokenAnswer, TokenRequest,
    WhoAmI,
};
use tracing::{info, warn};

use super::{
    App,
    admission::{Who, bearer},
    paging::Listing,
    problem::{Body, Failure},
    rates,
    routes::{Op, Routes},
};
use crate::{
    access::{ApiKey, KeyChange, KeyError, Permission, is_id},
    telemetry::chain,
};

type Shared = State<Arc<App>>;
type Answer<T> = Result<Json<T>, Failure>;

const BODY_BYTES_MAX: usize = 64 << 10;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    routes.add("access", "/api/v1/auth/token", [
        Op::post("A token for an API key, for a name and a password of the directory, or for a code of the identity provider.", token)
            .open()
            .limit(BODY_BYTES_MAX)
            .takes::<TokenRequest>()
            .answers::<TokenAnswer>(),
    ]);
    routes.add("access", "/api/v1/auth/jwks.json", [
        Op::get("The public key of this coordinator's tokens (RFC 7517).", key_set).open().answers_as("application/json"),
    ]);
    routes.add("access", "/api/v1/auth/methods", [
        Op::get("How one can prove who one is.", methods).open().answers::<LoginMethods>(),
    ]);
    routes.add("access", "/api/v1/auth/whoami", [
        Op::get("Who you are, and what you may do.", whoami).needs(Permission::ApiRead).answers::<WhoAmI>(),
    ]);
    routes.add("access", "/api/v1/auth/permissions", [
        Op::get("Which role has which permission.", permissions)
            .needs(Permission::ApiRead)
            .answers_page::<PermissionView>(),
    ]);
    routes.add("access", "/api/v1/auth/key/rotate", [
        Op::post("Another secret for the API key that you show.", rotate_own)
            .needs(Permission::ApiRead)
            .limit(BODY_BYTES_MAX)
            .takes::<RotateRequest>()
            .answers::<ApiKeyMade>(),
    ]);
    routes.add("access", "/api/v1/access/keys", [
        Op::get("Lists the API keys, without their secrets.", list)
            .needs(Permission::AccessManage)
            .paged()
            .answers_page::<ApiKeyView>(),
        Op::post("Makes an API key: its secret is shown this once.", create)
            .needs(Permission::AccessManage)
            .limit(BODY_BYTES_MAX)
            .takes::<NewApiKey>()
            .made::<ApiKeyMade>(),
    ]);
    routes.add("access", "/api/v1/access/keys/{id}", [
        Op::get("Shows an API key, without its secret.", show).needs(Permission::AccessManage).answers::<ApiKeyView>(),
    ]);
    routes.add("access", "/api/v1/access/keys/{id}/rotate", [
        Op::post("Another secret for an API key; the old one stays good for a while.", rotate)
            .needs(Permission::AccessManage)
            .limit(BODY_BYTES_MAX)
            .takes::<RotateRequest>()
            .answers::<ApiKeyMade>(),
    ]);
    routes.add("access", "/api/v1/access/keys/{id}/revoke", [
        Op::post("The API key and its tokens are good no more.", revoke)
            .needs(Permission::AccessManage)
            .answers::<ApiKeyView>(),
    ]);
}

async fn token(State(app): Shared, Body(asked): Body<TokenRequest>) -> Result<Response, Failure> {
    let TokenRequest {
        api_key,
        username,
        password,
        oidc,
    } = &asked;
    let means = match (api_key, username, password, oidc) {
        (Some(_), None, None, None) => "api_key",
        (None, Some(_), Some(_), None) => "ldap",
        (None, None, None, Some(_)) => "oidc",
        _ => {
            return Err(Failure::bad_request("send api_key, or username and password, or oidc"));
        }
    };
    match app.access.exchange(&asked, &app.store, app.clock.wall()).await {
        Ok((access_token, who, ttl)) => {
            app.metrics.login(means, "let_in");
            info!(by = who.name, means, "a token was given");
            let answer = TokenAnswer {
                access_token,
                token_type: "Bearer".to_owned(),
                expires_in: ttl.as_secs(),
            };
            Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
        }
        Err(refusal) => {
            app.metrics.refusals.inc();
            app.metrics.login(means, "refused");
            if !app.rates.hears_stranger() {
                return Err(rates::too_many());
            }
            let name: String = asked.username.unwrap_or_default().chars().take(100).collect();
            warn!(error = chain(&refusal), name, means, "a login was refused");
            Err(refusal.into())
        }
    }
}

async fn key_set(State(app): Shared) -> Json<serde_json::Value> {
    Json(app.access.key_set())
}

async fn methods(State(app): Shared) -> Json<LoginMethods> {
    Json(app.access.methods().await)
}

async fn whoami(State(app): Shared, Extension(who): Extension<Who>) -> Json<WhoAmI> {
    let permissions = app.access.policy.permissions(&who);
    Json(WhoAmI {
        name: who.name.clone(),
        means: who.means.name().to_owned(),
        grants: who.grants.clone(),
        groups: who.groups.clone(),
        device: who.device.clone(),
        expires: who.expires,
        permissions: permissions
            .into_iter()
            .map(|permission| permission.name().to_owned())
            .collect(),
    })
}

async fn permissions(State(app): Shared) -> Json<Page<PermissionView>> {
    Json(Page {
        items: app.access.policy.matrix(),
    })
}

async fn list(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let after: Option<String> = listing.after()?;
    let found = app
        .store
        .api_keys_after(&after.unwrap_or_default(), listing.wanted())
        .await?;
    let views: Vec<_> = found.iter().map(ApiKey::view).collect();
    Ok(listing.page(views, |view: &ApiKeyView| view.id.clone()))
}

async fn create(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Body(new): Body<NewApiKey>,
) -> Result<Response, Failure> {
    let (key, secret) = ApiKey::new(new, &who.name, app.clock.wall())?;
    let view = key.view();
    app.store
        .put_api_key(key, KeyChange::Made, &who.name, app.clock.wall())
        .await?;
    info!(key = view.id, role = %view.role, by = who.name, "an API key was made");
    let headers = [
        (header::LOCATION, format!("/api/v1/access/keys/{}", view.id)),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((StatusCode::CREATED, headers, Json(ApiKeyMade { key: view, secret })).into_response())
}

async fn show(State(app): Shared, Path(id): Path<String>) -> Answer<ApiKeyView> {
    Ok(Json(found(&app, &id).await?.view()))
}

async fn rotate(
    State(app): Shared,
    Path(id): Path<String>,
    Extension(who): Extension<Who>,
    Body(request): Body<RotateRequest>,
) -> Result<Response, Failure> {
    rotated(&app, &id, &who, request).await
}

/// What a device does before its key is 90 days old.
async fn rotate_own(
    State(app): Shared,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    Body(request): Body<RotateRequest>,
) -> Result<Response, Failure> {
    let own = who.name.strip_prefix("key:").ok_or_else(|| {
        let detail = format!(
            "you are {}: only who shows an API key, or a token for one, has one to rotate",
            who.name
        );
        Failure::new(StatusCode::CONFLICT, "wrong_state", detail)
    })?;
    // Or whoever has found an old secret, or a token, would have the key from now on.
    let key = found(&app, own).await?;
    if !bearer(&headers).is_some_and(|proof| key.is_present(proof)) {
        let detail = format!(
            "only who shows the present secret of the API key {own} rotates it so: neither the one before, nor a token for it"
        );
        return Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", detail).refused());
    }
    rotated(&app, own, &who, request).await
}

async fn rotated(app: &App, id: &str, who: &Who, request: RotateRequest) -> Result<Response, Failure> {
    let _one = app.access.changing.lock().await;
    let now = app.clock.wall();
    let (key, secret) = found(app, id).await?.rotated(request.grace_seconds, now)?;
    let view = key.view();
    app.store.put_api_key(key, KeyChange::Rotated, &who.name, now).await?;
    info!(key = view.id, by = who.name, "an API key was rotated");
    let made = ApiKeyMade { key: view, secret };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(made)).into_response())
}

async fn revoke(State(app): Shared, Path(id): Path<String>, Extension(who): Extension<Who>) -> Answer<ApiKeyView> {
    let _one = app.access.changing.lock().await;
    let mut key = found(&app, &id).await?;
    if key.revoked.is_none() {
        let now = app.clock.wall();
        key.revoked = Some(now);
        app.store
            .put_api_key(key.clone(), KeyChange::Revoked, &who.name, now)
            .await?;
        info!(key = key.id, by = who.name, "an API key was revoked");
    }
    Ok(Json(key.view()))
}

async fn found(app: &App, id: &str) -> Result<ApiKey, Failure> {
    if !is_id(id) {
        return Err(Failure::bad_request("an API key's id is 24 digits of hexadecimal"));
    }
    let found = app.store.api_key(id).await?;
    found.ok_or_else(|| Failure::not_found(format!("API key {id}")))
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let detail = chain(&error);
        match error {
            KeyError::Bad(_) => Self::bad_request(detail),
            KeyError::Full => Self::new(StatusCode::INSUFFICIENT_STORAGE, "keys_full", detail),
            KeyError::Revoked(_) => Self::new(StatusCode::CONFLICT, "key_revoked", detail).refused(),
            KeyError::NoRandomness(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no_randomness", detail),
            KeyError::Store(error) => error.into(),
        }
    }
}
