//! Who may see what identifies devices to people, and `/api/v1/devices/{id}/erasure` and `/data`.
//!
//! Invariants: `identity:read` decides, at the place of the device, about everything of an identity that leaves; no filter that is
//! kept names one; a device is erased with all that is not signed, or not at all.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use firmesh_coordinator_core::{Field, Filter};
use firmesh_protocol::{
    api::{DeviceData, DeviceIdentity, DeviceView, Erasure},
    ids::DeviceId,
};
use tracing::warn;

use super::{
    App,
    admission::Who,
    devices::{erased, found, updates_of},
    operators::named,
    paging::LIMIT_MAX,
    problem::Failure,
    routes::{Op, Routes},
};
use crate::{
    access::{Kind, Permission, Places, Subject},
    identities::{Busy, FOUND_MAX},
    runtime::Command,
    telemetry::chain,
};

type Shared = State<Arc<App>>;

/// Bytes of one text that identifies a device, at most.
const TEXT_BYTES_MAX: usize = 256;

/// Addresses of a device, at most.
const ADDRESSES_MAX: usize = 16;

/// Labels of a device that are nobody else's business, at most.
const LABELS_MAX: usize = 32;

/// Random bytes of a name that says nothing.
const PSEUDONYM_BYTES: usize = 12;

pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "devices";
    routes.add(
        TAG,
        "/api/v1/devices/{id}/erasure",
        [Op::post(
            "Destroys the key of what identifies a device, and removes all that is held of it but what was signed.",
            erase,
        )
        .needs(Permission::IdentityErase)
        .refuses(410)
        .answers::<Erasure>()],
    );
    routes.add(
        TAG,
        "/api/v1/devices/{id}/data",
        [
            Op::get("All that is held of a device, for whoever has a right to know.", data)
                .needs(Permission::IdentityRead)
                .refuses(410)
                .answers::<DeviceData>(),
        ],
    );
}

/// Whose identities somebody may see.
#[derive(Debug)]
pub(super) enum Sight {
    Nobody,
    Everybody,
    /// Those of the devices within his limits.
    Within(Who),
}

impl Sight {
    pub(super) fn of(app: &App, who: &Who) -> Self {
        let policy = &app.access.policy;
        if policy.allows(who, Permission::IdentityRead, &Subject::default()) {
            Self::Everybody
        } else if policy.may_allow(who, Permission::IdentityRead) {
            Self::Within(Arc::clone(who))
        } else {
            Self::Nobody
        }
    }

    pub(super) fn sees(&self, app: &App, view: &DeviceView) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Within(who) => {
                let mut places = Places::default();
                places.add(&view.path, &app.access.settings.environments);
                places.vendors.insert(view.facts.vendor.clone());
                let about = Subject {
                    kind: Kind::Device,
                    device: Some(view.facts.device.to_string()),
                    // Of one that nobody has told of it is not known where it stands.
                    places: view.node.is_some().then_some(places),
                };
                app.access.policy.allows(who, Permission::IdentityRead, &about)
            }
        }
    }
}

/// The device as it may be seen.
pub(super) fn hide(app: &App, sight: &Sight, mut view: DeviceView) -> DeviceView {
    if view.registration.is_some()
        && !sight.sees(app, &view)
        && let Some(registration) = &mut view.registration
    {
        registration.hardware_id = None;
        registration.metadata.clear();
        registration.identity = None;
    }
    view
}

/// A name that says nothing of its device.
pub(super) fn pseudonym() -> Result<DeviceId, Failure> {
    let failed = |detail: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "no_randomness", detail);
    let mut bytes = [0; PSEUDONYM_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| failed(error.to_string()))?;
    DeviceId::new(format!("d-{}", hex::encode(bytes))).map_err(|error| failed(error.to_string()))
}

/// What identifies a device, from outside.
pub(super) fn check_identity(identity: &DeviceIdentity) -> Result<(), Failure> {
    let DeviceIdentity {
        hostname,
        asset_tag,
        addresses,
        owner,
        contact,
        labels,
    } = identity;
    let named = [
        ("hostname", hostname),
        ("asset_tag", asset_tag),
        ("owner", owner),
        ("contact", contact),
    ];
    let named = named
        .into_iter()
        .filter_map(|(name, text)| Some((name, text.as_ref()?)));
    let addresses_of = addresses.iter().map(|text| ("addresses", text));
    let labels_of = labels
        .iter()
        .flat_map(|(name, text)| [("labels", name), ("labels", text)]);
    for (name, text) in named.chain(addresses_of).chain(labels_of) {
        let is_plain =
            (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control) && text.trim() == text;
        if !is_plain {
            // The text itself has no place in a problem, which may be kept.
            return Err(Failure::bad_request(format!(
                "`identity.{name}` must have 1 to {TEXT_BYTES_MAX} bytes of printable characters, and no space around them"
            )));
        }
    }
    for (name, count, most) in [
        ("addresses", addresses.len(), ADDRESSES_MAX),
        ("labels", labels.len(), LABELS_MAX),
    ] {
        if count > most {
            let detail = format!("`identity.{name}` has {count} of them, at most {most} are kept");
            return Err(Failure::bad_request(detail));
        }
    }
    Ok(())
}

/// The filter with the devices in place of what identifies them, for who may see all of them.
pub(super) async fn resolved(app: &App, sight: &Sight, filter: Filter) -> Result<Filter, Failure> {
    if !matches!(sight, Sight::Everybody) {
        let detail = "devices are looked up by what identifies them by those only who have identity:read everywhere";
        return Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", detail).refused());
    }
    let terms = filter.identities().into_iter();
    let terms: Vec<(Field, String)> = terms.map(|(field, text)| (field, text.to_owned())).collect();
    let found = app.store.identified(&terms).await?;
    if let Some(((field, _), _)) = found.iter().find(|(_, devices)| devices.len() > FOUND_MAX) {
        let detail =
            format!("more than {FOUND_MAX} devices have the same `{field}`: look for them by tags or in a group");
        return Err(Failure::new(StatusCode::BAD_REQUEST, "bad_filter", detail));
    }
    Ok(filter.with_devices(&|field, text| {
        let key = (field.as_str(), text.to_owned());
        found.get(&key).cloned().unwrap_or_default()
    }))
}

async fn erase(State(app): Shared, Path(id): Path<String>) -> Result<Json<Erasure>, Failure> {
    let device: DeviceId = named(&id)?;
    let mut known = app.store.known(std::slice::from_ref(&device)).await?;
    let known = known.remove(&device).unwrap_or_default();
    if known.erased {
        return Err(erased(StatusCode::GONE, &device));
    }
    let wanted = device.clone();
    let (busy, told_by, is_planned) = app
        .coordinator
        .read(move |world| {
            let told_by = world.devices.get(&wanted).map(|device| device.node.clone());
            let is_planned = world.engine.campaigns_of(&wanted).next().is_some();
            (world.busy(&wanted), told_by, is_planned)
        })
        .await?;
    if told_by.is_none() && known.registered.is_none() && !known.removed && !is_planned {
        return Err(Failure::not_found(format!("device {device}")));
    }
    if let Some(busy) = busy {
        return Err(busy.into());
    }
    let registration = known.registered.map(|registered| registered.record);
    let hardware_id = registration
        .as_ref()
        .and_then(|registration| registration.hardware_id.as_deref());
    let keys = app.store.api_keys_of(&device).await?;
    // First what has to be found by the identity, so that an erasure that broke off can be asked for again.
    app.store.blot_out(&device, hardware_id).await?;
    let erased = app
        .coordinator
        .ask(|reply| Command::Erase(device.clone(), reply))
        .await?;
    let at = erased?;
    // It is erased: what could not be done besides is said, not failed.
    let is_cut = app.store.cut_past().await.unwrap_or_else(|failure| {
        warn!(error = %chain(&failure), "the database's log could not be cut after an erasure");
        false
    });
    let pseudonymous = registration.is_some_and(|registration| registration.pseudonymous);
    let mut remains = Vec::new();
    if !pseudonymous {
        remains.push(format!(
            "its name, {device}, which people chose, stays in what was signed: plans, permits, reports and the audit log"
        ));
    }
    remains.extend(told_by.map(|node| {
        format!("the node {node} has told of it: what it tells is not taken any more; take {device} out of its configuration")
    }));
    remains.extend(keys.into_iter().map(|key| {
        format!("the API key {key} speaks for it, for nothing: revoke it (`firmesh access key revoke {key}`)")
    }));
    if !is_cut {
        remains.push(
            "somebody was reading: the database's log (-wal) still has its key, until the next erasure, a stop, or about 1,000 changes"
                .to_owned(),
        );
    }
    remains.push(match app.store.is_on_a_server() {
        true => "PostgreSQL keeps the deleted rows until VACUUM, and its write-ahead log and base backups as long as you keep \
                 them: docs/data-protection.md"
            .to_owned(),
        false => "backups that were made before it, unless identity keys are kept out of them: docs/data-protection.md".to_owned(),
    });
    Ok(Json(Erasure {
        device,
        at,
        pseudonymous,
        remains,
    }))
}

impl From<Busy> for Failure {
    fn from(busy: Busy) -> Self {
        Self::new(StatusCode::CONFLICT, "in_flight", busy.to_string())
    }
}

async fn data(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
) -> Result<Json<DeviceData>, Failure> {
    let id: DeviceId = named(&id)?;
    let (device, _) = found(&app, &id, &Sight::of(&app, &who)).await?;
    let groups = app.store.groups().await?.into_iter();
    let groups = groups.filter(|group| group.record.devices.contains(&id));
    let notices = app.store.notices_of(&id, LIMIT_MAX as usize).await?;
    let notices: Result<_, _> = notices.iter().map(serde_json::to_value).collect();
    Ok(Json(DeviceData {
        at: app.clock.wall(),
        device,
        updates: updates_of(&app, &id, None, usize::MAX).await?,
        groups: groups.map(|group| group.id).collect(),
        keys: app.store.api_keys_of(&id).await?,
        transcripts: app.store.transcripts_of(&id).await?,
        notices: notices
            .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "encoding", error.to_string()))?,
    }))
}
