//! Who is let in to which route: the proof in the request, the permission that the route needs, and the policy between
//! them. And, once something was changed, who did it: an entry of the audit log before the answer.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use firmesh_protocol::{
    api::FirmwareUpdate,
    audit::Event,
    ids::{CampaignId, DeviceId, NodeId},
    manifest::{CampaignManifest, Plan},
};
use tracing::{Instrument as _, Span, debug, error, info, warn};

use super::{App, problem::Failure, rates, routes::Needs};
use crate::{
    access::{Identity, Kind, Permission, Places, Refusal, Subject},
    runtime::ActionError,
    telemetry::chain,
};

/// Who asks: found in every request that was let in.
pub(super) type Who = Arc<Identity>;

/// The permission that let a request in.
#[derive(Debug, Clone, Copy)]
struct Admitted(Permission);

/// The longest path that is written down.
const PATH_CHARS_MAX: usize = 300;

/// What each route needs.
pub(super) type Table = HashMap<(Method, String), Needs>;

/// What requests are let in by.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) app: Arc<App>,
    pub(super) table: Arc<Table>,
}

/// The outermost layer of the routes.
pub(super) async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let mut asked = Asked::of(&request);
    let mut request = match asked.route == UPDATE_ROUTE {
        true => match asked.read_campaign(request).await {
            Ok(request) => request,
            Err(failure) => return failure.into_response(),
        },
        false => request,
    };
    match gate.judge(&asked).await {
        Ok((who, permission)) => {
            let extensions = request.extensions_mut();
            extensions.insert(Who::new(who));
            if let Some(permission) = permission {
                extensions.insert(Admitted(permission));
            }
            next.run(request).await
        }
        Err(failure) => {
            gate.app.metrics.refusals.inc();
            match failure.0.status {
                401 => ([(header::WWW_AUTHENTICATE, "Bearer")], failure).into_response(),
                429 => ([(header::RETRY_AFTER, "1")], failure).into_response(),
                _ => failure.into_response(),
            }
        }
    }
}

/// What of a request says whether it is let in.
struct Asked {
    method: Method,
    uri: Uri,
    route: String,
    proof: Option<String>,
    is_local: bool,
    /// The campaign that the body names, where the path names none.
    campaign: Option<CampaignId>,
}

/// The one route that orders something of a campaign that stands in its body.
const UPDATE_ROUTE: &str = "/api/firmware/update";

/// A name in JSON.
const UPDATE_BYTES_MAX: usize = 4 << 10;
const UPDATE_WITHIN: Duration = Duration::from_secs(10);

impl Asked {
    fn of(request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>();
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            route: route.map_or("", MatchedPath::as_str).to_owned(),
            proof: bearer(request.headers()).map(str::to_owned),
            is_local: is_made_to_loopback(request),
            campaign: None,
        }
    }

    /// Reads which campaign is meant. What is no such body is refused by the handler, and until then is about everything.
    async fn read_campaign(&mut self, request: Request) -> Result<Request, Failure> {
        let (parts, body) = request.into_parts();
        let read = tokio::time::timeout(UPDATE_WITHIN, axum::body::to_bytes(body, UPDATE_BYTES_MAX)).await;
        let bytes = read.map_err(|_| Failure::bad_request("the body does not come"))?;
        let bytes = bytes.map_err(|error| {
            let detail = format!("the body names a campaign, in at most {UPDATE_BYTES_MAX} bytes: {error}");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
        })?;
        let named = serde_json::from_slice::<FirmwareUpdate>(&bytes).ok();
        self.campaign = named.map(|update| update.campaign);
        Ok(Request::from_parts(parts, Body::from(bytes)))
    }
}

impl Gate {
    async fn judge(&self, asked: &Asked) -> Result<(Identity, Option<Permission>), Failure> {
        let reads = matches!(asked.method, Method::GET | Method::HEAD);
        let method = if reads { Method::GET } else { asked.method.clone() };
        let needs = self.table.get(&(method, asked.route.clone()));
        if needs == Some(&Needs::Nothing) {
            return Ok((Identity::nobody(), None));
        }
        let is_open = reads && !self.app.settings.token_for_reads && asked.is_local;
        let who = match &asked.proof {
            Some(proof) => self.identify(proof).await?,
            None if is_open => Identity::reader(),
            None => return Err(self.no_proof()),
        };
        let permissions = match needs {
            // The method is not for this path: whoever is known is told so.
            None => return Ok((who, None)),
            Some(Needs::Nothing) => &[],
            Some(Needs::OneOf(permissions)) => permissions.as_slice(),
        };
        let mut about = None;
        for permission in permissions {
            // Who has no role for it is refused before anything is looked up.
            if !self.app.access.policy.may_allow(&who, *permission) {
                continue;
            }
            // What is read is not limited to places.
            if !permission.is_to_read() && about.is_none() {
                about = Some(match &asked.campaign {
                    Some(campaign) => about_campaign(&self.app, campaign.as_str()).await?,
                    None => subject(&self.app, &asked.route, &asked.uri, &who).await?,
                });
            }
            let about = about.clone().unwrap_or_default();
            if self.app.access.policy.allows(&who, *permission, &about) {
                return Ok((who, Some(*permission)));
            }
        }
        match who.is_anonymous() {
            true => Err(self.no_proof()),
            // Whoever asks too often for what he may not do is not answered at length.
            false if !self.app.rates.takes(&who.name) => Err(rates::too_many()),
            false => Err(self.not_allowed(&who, asked, permissions, about.as_ref())),
        }
    }

    async fn identify(&self, proof: &str) -> Result<Identity, Failure> {
        let app = &self.app;
        let identified = app.access.identify(proof, &app.authority, &app.store, app.clock.wall());
        let refusal = match identified.await {
            Ok(who) => return Ok(who),
            Err(refusal) => refusal,
        };
        // Who guesses is heard less and less often, and does not fill the log.
        if !app.rates.hears_stranger() {
            debug!(error = chain(&refusal), "somebody is not who he says");
            return Err(rates::too_many());
        }
        warn!(error = chain(&refusal), "somebody is not who he says");
        app.metrics.login("bearer", "refused");
        let path = app.settings.state_dir.join("operator.token");
        let mut failure = Failure::from(refusal);
        if failure.0.status == 401 {
            failure.0.detail += &format!(
                "; what counts is an API key, a token of `POST /api/v1/auth/token` or of the identity provider, or the \
                 operator token in {} on the coordinator's machine",
                path.display()
            );
        }
        Err(failure)
    }

    fn no_proof(&self) -> Failure {
        let path = self.app.settings.state_dir.join("operator.token");
        let detail = format!(
            "send `Authorization: Bearer <API key or token>` (the operator token stands in {} on the coordinator's machine; \
             reading may be open without it, but only by the names localhost and 127.0.0.1)",
            path.display()
        );
        Failure::new(StatusCode::UNAUTHORIZED, "unauthorised", detail).refused()
    }

    fn not_allowed(
        &self,
        who: &Identity,
        asked: &Asked,
        permissions: &[Permission],
        about: Option<&Subject>,
    ) -> Failure {
        let needed: Vec<_> = permissions.iter().map(|permission| permission.name()).collect();
        let roles = permissions.iter().flat_map(|permission| {
            let roles = self.app.access.policy.roles_with(*permission);
            roles.iter().map(|role| role.name())
        });
        let roles: std::collections::BTreeSet<_> = roles.collect();
        let roles: Vec<_> = roles.into_iter().collect();
        let place = about.and_then(|about| about.places.as_ref());
        let place = match place {
            Some(places) => format!(", in {}", shown(places)),
            None => ", everywhere".to_owned(),
        };
        let detail = format!(
            "you are {} ({}); {} {} needs {}{}, which the policy gives to: {}",
            who.name,
            who.roles(),
            asked.method,
            asked.uri.path().chars().take(PATH_CHARS_MAX).collect::<String>(),
            needed.join(" or "),
            if about.is_some() { &place } else { "" },
            roles.join(", "),
        );
        info!(by = who.name, permission = needed.join(" or "), "not allowed");
        Failure::new(StatusCode::FORBIDDEN, "forbidden", detail).refused()
    }
}

/// Whether this image may leave to him: to who takes images out as a person; to a device, if it is of an update of its own; and
/// where reading is open on this machine, to anybody who came by a route for reading.
pub(super) async fn may_take_image(app: &App, who: &Identity, target: &str) -> Result<(), Failure> {
    let (export, download) = (Permission::ArtifactExport, Permission::FirmwareDownload);
    let policy = &app.access.policy;
    let may = |permission| policy.allows(who, permission, &Subject::default());
    if who.is_anonymous() || may(export) {
        return Ok(());
    }
    let needs = if may(download) {
        if let Some(device) = who.device.clone()
            && is_of_an_update(app, device, target).await?
        {
            return Ok(());
        }
        format!(
            "a device takes the images of its own updates, and {target} is of none of {}",
            who.device.as_ref().map_or("nobody's", |device| device.as_str())
        )
    } else {
        format!("images need {} or {}", download.name(), export.name())
    };
    let detail = format!("you are {} ({}); {needs}", who.name, who.roles());
    Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", detail).refused())
}

/// Whether an approved campaign brings it to the device, or would take the device back to it.
async fn is_of_an_update(app: &App, device: DeviceId, target: &str) -> Result<bool, ActionError> {
    let target = target.to_owned();
    let look = app.coordinator.read(move |world| {
        let engine = &world.engine;
        let planned = engine
            .campaigns_of(&device)
            .filter_map(|id| engine.planned(id, &device));
        let mut planned = planned.map(|(planned, _)| planned);
        planned.any(|planned| planned.targets().any(|own| *own == target))
    });
    look.await
}

fn shown(places: &Places) -> String {
    let named = [&places.sites, &places.vendors, &places.environments];
    let named = named.into_iter().map(|set| {
        let mut names: Vec<_> = set.iter().filter(|name| !name.is_empty()).take(4).cloned().collect();
        if set.len() > 4 {
            names.push(format!("and {} more", set.len() - 4));
        }
        names.join(", ")
    });
    let named: Vec<_> = named.filter(|names| !names.is_empty()).collect();
    named.join("; ")
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, proof) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| proof.trim())
}

/// A page of a stranger may have its name point at loopback and read along: only this machine's own names count.
fn is_made_to_loopback(request: &Request) -> bool {
    let host = request.headers().get(header::HOST);
    let host = host.map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let Some(host) = host.unwrap_or_else(|| request.uri().authority().cloned()) else {
        return false;
    };
    let name = host.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// What a request is about, by its path: what is named there in another way than by its plain id is nothing that is known,
/// and then nobody who is limited may change it.
async fn subject(app: &App, whole_route: &str, uri: &Uri, who: &Identity) -> Result<Subject, ActionError> {
    let parts = |path: &str| path.split('/').skip(3).map(str::to_owned).collect::<Vec<_>>();
    let (route, path) = (parts(whole_route), parts(uri.path()));
    let named = route.iter().zip(&path).find(|(name, _)| name.starts_with('{'));
    let kind = match (route.first().map(String::as_str), named) {
        (Some("devices"), Some(_)) => Kind::Device,
        (Some("campaigns" | "rollouts" | "deployments"), Some(_)) => Kind::Campaign,
        (Some("nodes"), Some(_)) => Kind::Node,
        _ => Kind::Fleet,
    };
    let id = named.map(|(_, id)| id.clone()).unwrap_or_default();
    match kind {
        Kind::Device => about_device(app, id).await,
        Kind::Campaign => about_campaign(app, &id).await,
        Kind::Node => about_node(app, &id).await,
        // Whom a device speaks of stands in the body, which the handler holds against who it is.
        Kind::Fleet if ["/api/v1/status", "/api/v1/validation"].contains(&uri.path()) && who.device.is_some() => {
            about_device(app, who.device.as_ref().map(ToString::to_string).unwrap_or_default()).await
        }
        // Everywhere else a query says nothing of what the handler does.
        Kind::Fleet if whole_route == "/api/v1/updates/check" => match device_in_query(uri) {
            Some(device) => about_device(app, device).await,
            None => Ok(Subject::default()),
        },
        Kind::Fleet => Ok(Subject::default()),
    }
}

fn device_in_query(uri: &Uri) -> Option<String> {
    let mut named = uri.query()?.split('&').filter_map(|part| part.strip_prefix("device="));
    let device = named.next()?;
    // Which one would count?
    named.next().is_none().then(|| device.to_owned())
}

async fn about_device(app: &App, device: String) -> Result<Subject, ActionError> {
    let places = match DeviceId::new(device.as_str()) {
        Err(_) => None,
        Ok(id) => {
            let environments = app.access.settings.environments.clone();
            app.coordinator
                .read(move |world| {
                    let device = world.devices.get(&id)?;
                    let mut places = Places::default();
                    places.add(&world.nodes.get(device.node)?.stored.path, &environments);
                    places.vendors.insert(device.facts.vendor.to_owned());
                    Some(places)
                })
                .await?
        }
    };
    Ok(Subject {
        kind: Kind::Device,
        device: Some(device),
        places,
    })
}

async fn about_node(app: &App, node: &str) -> Result<Subject, ActionError> {
    let places = match NodeId::new(node) {
        Err(_) => None,
        Ok(id) => {
            let environments = app.access.settings.environments.clone();
            app.coordinator
                .read(move |world| {
                    let mut places = Places::default();
                    places.add(&world.nodes.get(&id)?.stored.path, &environments);
                    // A node serves devices of any vendor.
                    places.vendors.insert(String::new());
                    Some(places)
                })
                .await?
        }
    };
    Ok(Subject {
        kind: Kind::Node,
        device: None,
        places,
    })
}

/// Everything that a campaign's signed plan touches.
async fn about_campaign(app: &App, campaign: &str) -> Result<Subject, ActionError> {
    let mut about = Subject {
        kind: Kind::Campaign,
        ..Subject::default()
    };
    let Ok(id) = CampaignId::new(campaign) else {
        return Ok(about);
    };
    let published = app
        .coordinator
        .read(move |world| {
            let manifest = world.published.manifests.get(&id)?;
            Some(CampaignManifest::from_bytes(manifest).ok()?.plan_sha256)
        })
        .await?;
    let Some(digest) = published else {
        return Ok(about);
    };
    let plan = match app.store.plan(digest).await {
        Ok(Some(bytes)) => Plan::from_bytes(&bytes).ok(),
        Ok(None) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(plan) = plan {
        let environments = app.access.settings.environments.clone();
        let look = app.coordinator.read(move |world| {
            let mut places = Places::default();
            for planned in plan.waves.iter().flatten() {
                places.add(&planned.rack, &environments);
                let device = world.devices.get(&planned.device);
                let vendor = device.map_or("", |device| device.facts.vendor);
                if !places.vendors.contains(vendor) {
                    places.vendors.insert(vendor.to_owned());
                }
            }
            places
        });
        about.places = Some(look.await?);
    }
    Ok(about)
}

/// The innermost layer: what was changed is answered when who changed it is in the audit log. A request is carried out to
/// its end and written down even if the asker goes away.
pub(super) async fn log_change(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let admitted = request.extensions().get::<Admitted>().copied();
    let who = request.extensions().get::<Who>().cloned();
    let (Some(Admitted(permission)), Some(who)) = (admitted.filter(|_| changes), who) else {
        return next.run(request).await;
    };
    if !permission.is_logged() {
        return next.run(request).await;
    }
    let path: String = request.uri().path().chars().take(PATH_CHARS_MAX).collect();
    let event = Event::Access {
        by: who.name.clone(),
        means: who.means.name().to_owned(),
        permission: permission.name().to_owned(),
        request: format!("{} {path}", request.method()),
    };
    let tasks = app.tasks.clone();
    let carried_out = async move {
        let response = next.run(request).await;
        if response.status().is_client_error() || response.status().is_server_error() {
            return response;
        }
        match app.store.log_event(event, app.clock.wall()).await {
            Ok(()) => response,
            Err(failure) => {
                error!(
                    error = chain(&failure),
                    by = who.name,
                    "a change was made and could not be logged"
                );
                Failure::from(failure).into_response()
            }
        }
    };
    let carried_out = tasks.spawn(carried_out.instrument(Span::current())).await;
    carried_out.unwrap_or_else(|error| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "stopping", error.to_string()).into_response()
    })
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let detail = chain(&refusal);
        match refusal {
            Refusal::TooManyTries | Refusal::TooManyCodes => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail)
            }
            Refusal::ProviderSilent | Refusal::DirectorySilent => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "directory_silent", detail)
            }
            Refusal::NoDirectory | Refusal::NoCodes => Self::bad_request(detail),
            Refusal::ClientSecret(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no_client_secret", detail),
            Refusal::NoRandomness(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no_randomness", detail),
            Refusal::Store(error) => error.into(),
            _ => Self::new(StatusCode::UNAUTHORIZED, "unauthorised", detail).refused(),
        }
    }
}
