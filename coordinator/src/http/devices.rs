//! `/api/v1/devices`: what nodes have told of, what operators have registered, and both where they are the same.
//!
//! Invariants: what a node has read from a device counts for more than what anybody has written down of it; what a device
//! says of itself is shown and decides nothing; what identifies a device to people leaves to those only who may see it
//! ([`Sight`]).

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use firmesh_coordinator_core::{Candidate, Field, Filter, Input};
use firmesh_protocol::{
    api::{
        ApplicationMetrics, DeviceEdit, DeviceHealth, DeviceStatus, DeviceView, NewDevice, Registration, UpdateView,
    },
    ids::{CampaignId, DeviceId},
    labels::Labels,
    report::{AttemptState, DeviceFacts},
};

use super::{
    App,
    admission::Who,
    conditions::{Conditions, changed_meanwhile},
    identities::{Sight, check_identity, hide, pseudonym, resolved},
    operators::named,
    paging::{Filtered, LIMIT_MAX, Listing},
    problem::{Body, Failure},
    routes::{Op, Routes},
    stretches::Devices,
};
use crate::{
    access::Permission,
    registrations::{Known, Put, Registered, default_region},
    runtime::Command,
    world::World,
};

type Shared = State<Arc<App>>;

/// Labels of a device, at most.
const TAGS_MAX: usize = 32;

/// Bytes of the reason why a device is held, at most.
const HOLD_BYTES_MAX: usize = 256;

/// Bytes of a device's metadata, at most.
const METADATA_BYTES_MAX: usize = 8 << 10;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "devices";
    routes.add(TAG, "/api/v1/devices", [
        Op::get("Lists the devices with their running or last attempt.", list).needs(Permission::FleetRead)
            .paged()
            .query("filter", "such as: model in [\"R1\", \"R2\"] and path under \"eu/ber\" and not version == \"1.0\" or label \"cluster\" == \"k3\"; with identity:read also hardware_id, hostname, asset_tag, address, owner, contact")
            .answers_page::<DeviceView>(),
        Op::post("Registers a device that a node is going to tell of.", register).needs(Permission::DeviceRegister)
            .takes::<NewDevice>()
            .made::<DeviceView>(),
    ]);
    routes.add(TAG, "/api/v1/devices/register", [
        Op::post("The same as `POST /api/v1/devices`.", register).needs(Permission::DeviceRegister).takes::<NewDevice>().made::<DeviceView>(),
    ]);
    routes.add(TAG, "/api/v1/devices/{id}", [
        Op::get("Shows a device.", show).needs(Permission::FleetRead).tagged().refuses(410).answers::<DeviceView>(),
        Op::put("Changes what operators say of a device, and whether it is updated.", edit).needs(Permission::DeviceWrite)
            .header("If-Match", true, "the `ETag` of what is changed")
            .refuses(410)
            .takes::<DeviceEdit>()
            .answers::<DeviceView>(),
        Op::delete("Removes a device that is not in flight. One that its node tells of again is held.", remove).needs(Permission::DeviceDelete)
            .header("If-Match", false, "the `ETag` of what is removed")
            .refuses(410)
            .empty(),
    ]);
    routes.add(TAG, "/api/v1/devices/{id}/health", [
        Op::get("How it is; what is not known is null.", health).needs(Permission::FleetRead).tagged().refuses(410).answers::<DeviceHealth>(),
    ]);
    routes.add(TAG, "/api/v1/devices/{id}/updates", [
        Op::get("Lists its attempts, past and present.", updates).needs(Permission::FleetRead).paged().refuses(410).answers_page::<UpdateView>(),
    ]);
    routes.add(TAG, "/api/v1/devices/{id}/clear", [
        Op::post("A person has looked at a quarantined device: it leaves its place under the caps.", clear).needs(Permission::DeviceClear).empty(),
    ]);
}

async fn list(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Filtered(listing, filter): Filtered,
) -> Result<Response, Failure> {
    let (after, wanted) = (listing.after::<DeviceId>()?, listing.wanted());
    let sight = Sight::of(&app, &who);
    let filter = match filter {
        Some(filter) if filter.looks_at(&Field::is_of_identity) => Some(resolved(&app, &sight, filter).await?),
        other => other,
    };
    let filter = filter.map(Arc::new);
    let told = Devices::of(&app, filter.clone(), after.clone()).take(wanted).await?;
    let told = dressed(&app, told, &sight).await?;
    let mut rows: BTreeMap<_, _> = told.into_iter().map(|view| (view.facts.device.clone(), view)).collect();
    // Beyond the last of a full page nothing is shown.
    let last = rows
        .last_key_value()
        .filter(|_| rows.len() >= wanted)
        .map(|(id, _)| id.clone());
    let (mut from, mut found) = (after, 0);
    loop {
        let chunk = app.store.registrations_after(from.as_ref(), LIMIT_MAX as usize).await?;
        let is_end = chunk.len() < LIMIT_MAX as usize;
        from = chunk.last().map(|registered| registered.device.clone());
        let asked = filter.clone();
        let waiting = app
            .coordinator
            .read(move |world| untold(world, chunk, asked.as_deref()))
            .await?;
        let waiting: Vec<_> = waiting.into_iter().map(|view| hide(&app, &sight, view)).collect();
        found += waiting.len();
        rows.extend(waiting.into_iter().map(|view| (view.facts.device.clone(), view)));
        if is_end || found >= wanted || last.as_ref().is_some_and(|last| from.as_ref() > Some(last)) {
            break;
        }
    }
    let views = rows.into_values().take(wanted).collect();
    Ok(listing.page(views, |view: &DeviceView| view.facts.device.to_string()))
}

/// The registered devices that no node has told of, and for which the filter holds.
fn untold(world: &World, registered: Vec<Registered>, filter: Option<&Filter>) -> Vec<DeviceView> {
    let waits = |registered: &Registered| !world.devices.contains(&registered.device);
    let views = registered.into_iter().filter(waits).map(of_registration);
    let holds = |view: &DeviceView| {
        let candidate = Candidate {
            facts: (&view.facts).into(),
            node: "",
            path: &view.path,
            attempt: None,
        };
        filter.is_none_or(|filter| filter.matches(&candidate))
    };
    views.filter(holds).collect()
}

/// A device that nobody has told of yet.
fn of_registration(registered: Registered) -> DeviceView {
    let Registered {
        device,
        enabled,
        record,
        ..
    } = registered;
    let status = if enabled {
        DeviceStatus::Registered
    } else {
        DeviceStatus::Disabled
    };
    DeviceView {
        facts: DeviceFacts {
            device,
            vendor: record.vendor.clone(),
            model: record.model.clone(),
            component: record.component.clone(),
            version: None,
            executor: String::new(),
            labels: Labels::default(),
        },
        node: None,
        path: record.region.clone(),
        last_seen: None,
        status,
        phase: status.phase(),
        enabled,
        attempt: None,
        registration: Some(record),
        said: None,
        credentials_profile: None,
    }
}

/// Views with what operators and the devices themselves have said.
pub(super) async fn dressed(app: &App, views: Vec<DeviceView>, sight: &Sight) -> Result<Vec<DeviceView>, Failure> {
    let names: Vec<_> = views.iter().map(|view| view.facts.device.clone()).collect();
    let mut known = app.store.known(&names).await?;
    let dressed = |mut view: DeviceView| {
        let known = known.remove(&view.facts.device).unwrap_or_default();
        dress(app, &mut view, known);
        hide(app, sight, view)
    };
    Ok(views.into_iter().map(dressed).collect())
}

fn dress(app: &App, view: &mut DeviceView, known: Known) {
    view.enabled = known.is_enabled();
    let state = view.attempt.as_ref().map(|attempt| attempt.state);
    view.status = DeviceStatus::of(state, view.enabled, answers(app, view));
    view.phase = view.status.phase();
    view.registration = known.registered.map(|registered| Registration {
        mismatch: mismatch(&registered.record, &view.facts),
        ..registered.record
    });
    view.said = known.said;
}

/// Whether the device answers its node, and the node answers.
pub(super) fn answers(app: &App, view: &DeviceView) -> bool {
    let is_heard = |seen| seen + app.settings.silent_after >= app.clock.wall();
    view.facts.version.is_some() && view.last_seen.is_some_and(is_heard)
}

fn mismatch(registered: &Registration, facts: &DeviceFacts) -> Option<String> {
    let said = (&registered.vendor, &registered.model, &registered.component);
    let read = (&facts.vendor, &facts.model, &facts.component);
    (said != read).then(|| {
        format!(
            "registered as the {} of {} {}, its node has read {} of {} {}",
            said.2, said.0, said.1, read.2, read.0, read.1
        )
    })
}

/// A device by whoever knows of it, with the version of what operators say, and of who it is as much as may be seen.
pub(super) async fn found(app: &App, id: &DeviceId, sight: &Sight) -> Result<(DeviceView, u64), Failure> {
    let (view, version) = whole(app, id).await?;
    Ok((hide(app, sight, view), version))
}

async fn whole(app: &App, id: &DeviceId) -> Result<(DeviceView, u64), Failure> {
    let wanted = id.clone();
    let told = app.coordinator.read(move |world| world.device_view(&wanted)).await?;
    let mut known = app.store.known(std::slice::from_ref(id)).await?;
    let known = known.remove(id).unwrap_or_default();
    if known.erased {
        return Err(erased(StatusCode::GONE, id));
    }
    let version = known.version();
    match (told, known) {
        (Some(mut view), known) => {
            dress(app, &mut view, known);
            if let Some(node) = &view.node {
                view.credentials_profile = app.store.profile_of(id, node).await?;
            }
            Ok((view, version))
        }
        (
            None,
            Known {
                registered: Some(registered),
                said,
                ..
            },
        ) => Ok((
            DeviceView {
                said,
                ..of_registration(registered)
            },
            version,
        )),
        (None, _) => Err(Failure::not_found(format!("device {id}"))),
    }
}

/// What is said of a name that no device has any more.
pub(super) fn erased(status: StatusCode, id: &DeviceId) -> Failure {
    let detail =
        format!("the device {id} was erased: only its name is left, in what was signed, and it is never given again");
    Failure::new(status, "erased", detail)
}

async fn show(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    conditions: Conditions,
) -> Result<Response, Failure> {
    let (view, version) = found(&app, &named(&id)?, &Sight::of(&app, &who)).await?;
    Ok(conditions.part_versioned(version, &view))
}

async fn register(
    State(app): Shared,
    Extension(who): Extension<Who>,
    conditions: Conditions,
    Body(new): Body<NewDevice>,
) -> Result<Response, Failure> {
    check_label("hardware_id", &new.hardware_id)?;
    new.identity.as_ref().map_or(Ok(()), check_identity)?;
    let pseudonymous = new.device.is_none() && new.identity.is_some();
    let device = match new.device {
        Some(device) => device,
        None if pseudonymous => pseudonym()?,
        None => DeviceId::new(new.hardware_id.clone()).map_err(|_| {
            Failure::bad_request(
                "the hardware id cannot be the device's name: names have up to 64 of a-z, A-Z, 0-9, '.', '_' and '-', and \
                 begin with a letter or digit; give one as `device`, or an `identity` and none",
            )
        })?,
    };
    let record = Registration {
        hardware_id: Some(new.hardware_id),
        vendor: new.vendor,
        model: new.model,
        component: new.component,
        region: new.region.unwrap_or_else(default_region),
        tags: checked_tags(new.tags)?,
        metadata: new.metadata,
        identity: new.identity,
        pseudonymous,
        registered: app.clock.wall(),
        mismatch: None,
        held: None,
    };
    check_metadata(&record)?;
    check_supported(&app, &record).await?;
    let wanted = device.clone();
    let told = app.coordinator.read(move |world| world.device_view(&wanted)).await?;
    if let Some(problem) = told.and_then(|view| mismatch(&record, &view.facts)) {
        return Err(Failure::new(StatusCode::CONFLICT, "other_device", problem));
    }
    let is_known = app.store.known(std::slice::from_ref(&device)).await?;
    if is_known.get(&device).is_some_and(|known| known.registered.is_some()) {
        return Err(exists(&device));
    }
    put(&app, &device, None, new.enabled.unwrap_or(true), &record, "registered").await?;
    let (view, version) = found(&app, &device, &Sight::of(&app, &who)).await?;
    let mut response = conditions.part_versioned(version, &view);
    *response.status_mut() = StatusCode::CREATED;
    let place = HeaderValue::from_str(&format!("/api/v1/devices/{device}"));
    let place = place.map_err(|error| Failure::bad_request(error.to_string()))?;
    response.headers_mut().insert(header::LOCATION, place);
    Ok(response)
}

async fn edit(
    State(app): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    conditions: Conditions,
    Body(edit): Body<DeviceEdit>,
) -> Result<Response, Failure> {
    let device: DeviceId = named(&id)?;
    edit.identity.as_ref().map_or(Ok(()), check_identity)?;
    let (view, version) = whole(&app, &device).await?;
    conditions.require_part(version)?;
    let sight = Sight::of(&app, &who);
    let is_seen = sight.sees(&app, &view);
    // What was only told of is registered as it was read.
    let before = view.registration.unwrap_or_else(|| Registration {
        hardware_id: Some(device.to_string()),
        vendor: view.facts.vendor,
        model: view.facts.model,
        component: view.facts.component,
        region: view.path,
        tags: Vec::new(),
        metadata: serde_json::Map::new(),
        identity: None,
        pseudonymous: false,
        registered: app.clock.wall(),
        mismatch: None,
        held: None,
    });
    let was_held = before.held.is_some();
    let record = Registration {
        region: edit.region.unwrap_or(before.region),
        tags: checked_tags(edit.tags)?,
        // Who does not see it cannot have meant to empty it.
        metadata: match is_seen {
            true => edit.metadata,
            false => before.metadata,
        },
        identity: edit.identity.or_else(|| before.identity.clone()),
        mismatch: None,
        held: checked_hold(edit.held)?,
        ..before
    };
    check_metadata(&record)?;
    let change = match (view.enabled, edit.enabled) {
        (true, false) => "disabled",
        (false, true) => "enabled",
        _ if record.held.is_some() && !was_held => "held",
        _ if record.held.is_none() && was_held => "held no longer",
        _ => "changed",
    };
    let of = (version > 0).then_some(version);
    put(&app, &device, of, edit.enabled, &record, change).await?;
    let (view, version) = found(&app, &device, &sight).await?;
    Ok(conditions.part_versioned(version, &view))
}

async fn put(
    app: &App,
    device: &DeviceId,
    before: Option<u64>,
    enabled: bool,
    record: &Registration,
    change: &str,
) -> Result<(), Failure> {
    app.log_change("device", device.as_str(), change).await?;
    match app.store.put_registration(device, before, enabled, record).await? {
        Put::Yes(_) => Ok(()),
        // Its name may be nothing for whoever asks; those who may know it find it.
        Put::TakenBy(_) => Err(Failure::new(
            StatusCode::CONFLICT,
            "exists",
            "the hardware id is that of another device: `hardware_id == \"...\"` finds it",
        )),
        Put::Erased => Err(erased(StatusCode::CONFLICT, device)),
        Put::Meanwhile if before.is_none() => Err(exists(device)),
        Put::Meanwhile => Err(changed_meanwhile("device")),
    }
}

fn exists(device: &DeviceId) -> Failure {
    let detail = format!("the device {device} is registered already: change it with PUT, or choose another name");
    Failure::new(StatusCode::CONFLICT, "exists", detail)
}

async fn remove(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<StatusCode, Failure> {
    let device: DeviceId = named(&id)?;
    let (_, version) = found(&app, &device, &Sight::Nobody).await?;
    conditions.check_part(version)?;
    let in_flight = || {
        let detail = format!("the device {device} is in flight: wait for its attempt to end, or clear it");
        Failure::new(StatusCode::CONFLICT, "in_flight", detail)
    };
    let wanted = device.clone();
    let look = app.coordinator.read(move |world| world.engine.is_in_flight(&wanted));
    if look.await? {
        return Err(in_flight());
    }
    let remove = app.coordinator.ask(|reply| Command::Remove(device.clone(), reply));
    match remove.await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(in_flight()),
    }
}

async fn health(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let (view, _) = found(&app, &named(&id)?, &Sight::Nobody).await?;
    let online = view.last_seen.map(|_| answers(&app, &view));
    let said = view.said.and_then(|said| Some((said.at, said.status?.health?)));
    let self_reported = said.as_ref().map(|(at, _)| *at);
    let report = said.map(|(_, health)| health).unwrap_or_default();
    Ok(conditions.answer(&DeviceHealth {
        device_id: view.facts.device,
        status: view.status,
        online,
        firmware_version: view.facts.version,
        cpu_usage: report.cpu_percent,
        memory_usage: report.memory_percent,
        uptime: report.uptime_s,
        last_heartbeat: view.last_seen,
        application_metrics: ApplicationMetrics {
            sensor_readings: Some(report.sensor_readings).filter(|readings| !readings.is_empty()),
            error_rate: report.error_percent,
        },
        self_reported,
    }))
}

async fn updates(State(app): Shared, Path(id): Path<String>, listing: Listing) -> Result<Response, Failure> {
    let device: DeviceId = named(&id)?;
    found(&app, &device, &Sight::Nobody).await?;
    let (after, count) = (listing.after::<CampaignId>()?, listing.wanted());
    let views = updates_of(&app, &device, after, count).await?;
    Ok(listing.page(views, |view| view.campaign.to_string()))
}

/// The attempts of a device after those of `after`, at most `count`.
pub(super) async fn updates_of(
    app: &App,
    device: &DeviceId,
    after: Option<CampaignId>,
    count: usize,
) -> Result<Vec<UpdateView>, Failure> {
    let wanted = device.clone();
    let mut views: Vec<UpdateView> = app
        .coordinator
        .read(move |world| {
            let campaigns = world.engine.campaigns_of(&wanted);
            let campaigns = campaigns.filter(|id| after.as_ref().is_none_or(|after| *id > after));
            campaigns
                .take(count)
                .filter_map(|id| update(world, id, &wanted))
                .collect()
        })
        .await?;
    for view in views.iter_mut().filter(|view| view.state.is_terminal()) {
        view.ended = app.store.ended_at(&view.campaign, device).await?;
    }
    Ok(views)
}

fn update(world: &World, campaign: &CampaignId, device: &DeviceId) -> Option<UpdateView> {
    let attempt = world.engine.attempt(campaign, device)?;
    let (planned, _) = world.engine.planned(campaign, device)?;
    Some(UpdateView {
        campaign: attempt.campaign,
        device: attempt.device,
        wave: attempt.wave,
        release: planned.release.clone(),
        from_version: planned.from_version.clone(),
        state: attempt.state,
        progress: progress(attempt.state),
        reason: attempt.reason,
        version: attempt.version,
        ended: None,
    })
}

/// How far a state is, for a bar.
fn progress(state: AttemptState) -> u8 {
    match state {
        AttemptState::Pending => 0,
        AttemptState::WaitingWindow | AttemptState::Blocked => 5,
        AttemptState::Downloading => 10,
        AttemptState::Verifying => 40,
        AttemptState::Staged => 50,
        AttemptState::Installing => 60,
        AttemptState::Rebooting => 80,
        AttemptState::Validating => 90,
        _ => 100,
    }
}

async fn clear(State(app): Shared, Path(id): Path<String>) -> Result<StatusCode, Failure> {
    app.coordinator.act(Input::Clear(named(&id)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A text that stands in lists and log lines.
pub(super) fn check_label(field: &str, text: &str) -> Result<(), Failure> {
    let is_good =
        (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control) && text.trim() == text;
    match is_good {
        true => Ok(()),
        false => Err(Failure::bad_request(format!(
            "`{field}` must have 1 to 128 printable characters, and no space around them"
        ))),
    }
}

fn checked_tags(mut tags: Vec<String>) -> Result<Vec<String>, Failure> {
    tags.iter().try_for_each(|tag| check_label("tags", tag))?;
    tags.sort();
    tags.dedup();
    match tags.len() {
        0..=TAGS_MAX => Ok(tags),
        count => Err(Failure::bad_request(format!(
            "there are {count} tags, at most {TAGS_MAX} are kept"
        ))),
    }
}

fn checked_hold(held: Option<String>) -> Result<Option<String>, Failure> {
    let is_good =
        |text: &String| !text.trim().is_empty() && text.len() <= HOLD_BYTES_MAX && !text.chars().any(char::is_control);
    match held.as_ref().is_none_or(is_good) {
        true => Ok(held),
        false => Err(Failure::bad_request(format!(
            "`held` is a reason in one line, of at most {HOLD_BYTES_MAX} bytes; leave it out where nothing is held"
        ))),
    }
}

fn check_metadata(record: &Registration) -> Result<(), Failure> {
    let length = serde_json::to_vec(&record.metadata).map_or(usize::MAX, |bytes| bytes.len());
    match length {
        0..=METADATA_BYTES_MAX => Ok(()),
        _ => Err(Failure::bad_request(format!(
            "the metadata has {length} bytes, at most {METADATA_BYTES_MAX} are kept"
        ))),
    }
}

/// Models are those that published releases are for: a name with a slip in it would never be updated.
async fn check_supported(app: &App, record: &Registration) -> Result<(), Failure> {
    let Registration {
        vendor,
        model,
        component,
        ..
    } = record;
    let releases = app.coordinator.read(|world| world.releases()).await?;
    let is_for = |release: &firmesh_protocol::manifest::Release| {
        let info = &release.info;
        info.vendor == *vendor && info.component == *component && info.models.contains(model)
    };
    match releases.iter().any(is_for) {
        true => Ok(()),
        false => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unsupported_model",
            format!(
                "no published release is for the {component} of {vendor:?} {model:?}: check the names (`firmesh release \
                 list`), or publish one first"
            ),
        )),
    }
}
