//! `/api/v1/baselines` and `/api/v1/compliance`: what devices are to run, and how far they are from it.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use firmesh_coordinator_core::Filter;
use firmesh_protocol::{
    api::{BaselineEdit, BaselineView, ComplianceView, DriftState, DriftView, NewBaseline, Page, Reconciliation},
    ids::GroupId,
    limits::REASON_BYTES_MAX,
    manifest::{Release, is_release_target},
};
use serde::Deserialize;

use super::{
    App,
    conditions::{Conditions, changed_meanwhile},
    operators::named,
    paging::{Listing, Plainly, parse_filter},
    problem::{Body, Failure},
    routes::{Op, Routes},
    stretches::{Devices, Stretch},
};
use crate::{
    access::Permission,
    baselines::{BaselineRecord, Tally, drift, drift_of},
    kinds::Kinds,
    reconcile::problem,
    records::{Changed, Kept},
    world::{Looked, World},
};

type Shared = State<Arc<App>>;
pub(super) type Baseline = Kept<BaselineRecord>;

/// Releases of a baseline, at most.
const RELEASES_MAX: usize = 1_000;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "baselines";
    routes.add(TAG, "/api/v1/baselines", [
        Op::get("Lists the baselines.", list).needs(Permission::FleetRead).paged().answers_page::<BaselineView>(),
        Op::post("Makes a baseline: releases, and for whom.", create).needs(Permission::PolicyWrite).takes::<NewBaseline>().made::<BaselineView>(),
    ]);
    routes.add(TAG, "/api/v1/baselines/{id}", [
        Op::get("Shows a baseline.", show).needs(Permission::FleetRead).tagged().answers::<BaselineView>(),
        Op::put("Makes the baseline another one.", replace).needs(Permission::PolicyWrite)
            .header("If-Match", true, "the `ETag` of what is replaced")
            .takes::<BaselineEdit>()
            .answers::<BaselineView>(),
        Op::delete("Removes a baseline.", remove).needs(Permission::PolicyWrite)
            .header("If-Match", true, "the `ETag` of what is removed")
            .empty(),
    ]);
    routes.add(TAG, "/api/v1/baselines/{id}/drift", [
        Op::get("Lists its devices, each with how it stands to it.", drifting).needs(Permission::FleetRead)
            .paged()
            .query("state", "only compliant, behind, ahead, unknown or not_covered")
            .answers_page::<DriftView>(),
    ]);
    routes.add(TAG, "/api/v1/compliance", [
        Op::get("All baselines in numbers, by site; as CSV with `Accept: text/csv` or `?format=csv`.", compliance).needs(Permission::FleetRead)
            .query("format", "json or csv")
            .answers_page_or::<ComplianceView>("text/csv"),
    ]);
}

async fn list(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let after = listing.after::<String>()?.unwrap_or_default();
    let kept = app
        .store
        .records_after::<BaselineRecord>(&after, listing.wanted())
        .await?;
    let signed = signed(&app).await?;
    let views = kept.iter().map(|kept| view(kept, &signed)).collect::<Result<_, _>>()?;
    Ok(listing.page(views, |view: &BaselineView| view.id.to_string()))
}

async fn signed(app: &App) -> Result<BTreeSet<String>, Failure> {
    let releases = app.coordinator.read(|world| world.releases()).await?;
    Ok(releases.into_iter().map(|release| release.target).collect())
}

fn view(kept: &Baseline, signed: &BTreeSet<String>) -> Result<BaselineView, Failure> {
    let record = &kept.record;
    Ok(BaselineView {
        id: named(&kept.id)?,
        description: record.description.clone(),
        filter: record.filter.clone(),
        releases: record.releases.clone(),
        missing: record
            .releases
            .iter()
            .filter(|release| !signed.contains(*release))
            .cloned()
            .collect(),
        reconcile: record.reconcile.clone(),
        version: kept.version,
    })
}

pub(super) async fn found(app: &App, id: &GroupId) -> Result<Baseline, Failure> {
    let found = app.store.record(id.as_str()).await?;
    found.ok_or_else(|| Failure::not_found(format!("baseline {id}")))
}

async fn show(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    let kept = found(&app, &named(&id)?).await?;
    let view = view(&kept, &signed(&app).await?)?;
    Ok(conditions.part_versioned(kept.version, &view))
}

async fn create(State(app): Shared, conditions: Conditions, Body(new): Body<NewBaseline>) -> Result<Response, Failure> {
    let id = new.id;
    let record = checked(&app, new.description, new.filter, new.releases, new.reconcile).await?;
    app.log_change("baseline", id.as_str(), "made").await?;
    match app.store.put_record(id.as_str(), None, &record).await? {
        Changed::Yes(version) => {
            let kept = Kept {
                id: id.to_string(),
                version,
                record,
            };
            let mut response = conditions.part_versioned(version, &view(&kept, &signed(&app).await?)?);
            *response.status_mut() = StatusCode::CREATED;
            let place = HeaderValue::from_str(&format!("/api/v1/baselines/{id}"));
            let place = place.map_err(|error| Failure::bad_request(error.to_string()))?;
            response.headers_mut().insert(header::LOCATION, place);
            Ok(response)
        }
        Changed::Meanwhile => Err(Failure::new(
            StatusCode::CONFLICT,
            "exists",
            format!("there is a baseline {id} already: change it with PUT, or choose another name"),
        )),
        Changed::Full => Err(Failure::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "records_full",
            "no more baselines are kept: remove some",
        )),
    }
}

async fn replace(
    State(app): Shared,
    Path(id): Path<String>,
    conditions: Conditions,
    Body(edit): Body<BaselineEdit>,
) -> Result<Response, Failure> {
    let id: GroupId = named(&id)?;
    let kept = found(&app, &id).await?;
    conditions.require_part(kept.version)?;
    let record = checked(&app, edit.description, edit.filter, edit.releases, edit.reconcile).await?;
    app.log_change("baseline", id.as_str(), "changed").await?;
    match app.store.put_record(id.as_str(), Some(kept.version), &record).await? {
        Changed::Yes(version) => {
            let kept = Kept {
                version,
                record,
                ..kept
            };
            Ok(conditions.part_versioned(version, &view(&kept, &signed(&app).await?)?))
        }
        Changed::Meanwhile | Changed::Full => Err(changed_meanwhile("baseline")),
    }
}

async fn remove(State(app): Shared, Path(id): Path<String>, conditions: Conditions) -> Result<StatusCode, Failure> {
    let id: GroupId = named(&id)?;
    let kept = found(&app, &id).await?;
    conditions.require_part(kept.version)?;
    app.log_change("baseline", id.as_str(), "removed").await?;
    match app
        .store
        .remove_record::<BaselineRecord>(id.as_str(), kept.version)
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(changed_meanwhile("baseline")),
    }
}

/// A baseline's content from outside.
async fn checked(
    app: &App,
    description: String,
    filter: Option<String>,
    releases: Vec<String>,
    reconcile: Option<Reconciliation>,
) -> Result<BaselineRecord, Failure> {
    if let Some(problem) = reconcile.as_ref().and_then(problem) {
        return Err(Failure::bad_request(problem));
    }
    if description.len() > REASON_BYTES_MAX {
        let detail = format!("the description has more than {REASON_BYTES_MAX} bytes");
        return Err(Failure::bad_request(detail));
    }
    if releases.is_empty() || releases.len() > RELEASES_MAX || !releases.iter().all(|name| is_release_target(name)) {
        let detail = format!("`releases` must name 1 to {RELEASES_MAX} releases, such as firmware/acme-r1-bmc-1.1.0");
        return Err(Failure::bad_request(detail));
    }
    // Kept as we print it, so that what is shown is what is understood.
    let filter = match filter {
        Some(text) => Some(parse_filter(&parse_filter(&text)?.to_string())?.to_string()),
        None => None,
    };
    let found = of_targets(app, &releases).await?;
    let missing = releases
        .iter()
        .find(|name| !found.iter().any(|release| release.target == **name));
    if let Some(missing) = missing {
        let detail = format!("{missing} is not a published release (`firmesh release list`)");
        return Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unknown_release",
            detail,
        ));
    }
    let mut claimed = BTreeSet::new();
    for release in &found {
        let info = &release.info;
        for model in &info.models {
            if !claimed.insert((&info.vendor, model, &info.component)) {
                return Err(Failure::bad_request(format!(
                    "two of the releases are for the {} of {} {model}: a baseline has one for each",
                    info.component, info.vendor
                )));
            }
        }
    }
    Ok(BaselineRecord {
        description,
        filter,
        releases,
        reconcile,
    })
}

/// The devices that a baseline is for.
pub(super) fn filter_of(record: &BaselineRecord) -> Result<Option<Arc<Filter>>, Failure> {
    Ok(record.filter.as_deref().map(parse_filter).transpose()?.map(Arc::new))
}

pub(super) async fn of_targets(app: &App, targets: &[String]) -> Result<Vec<Release>, Failure> {
    let targets: BTreeSet<_> = targets.iter().cloned().collect();
    let found = app.coordinator.read(move |world| {
        let releases = world.releases().into_iter();
        releases.filter(|release| targets.contains(&release.target)).collect()
    });
    Ok(found.await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DriftQuery {
    state: Option<DriftState>,
    // Read by `Listing`.
    #[serde(rename = "limit")]
    _limit: Option<String>,
    #[serde(rename = "cursor")]
    _cursor: Option<String>,
}

async fn drifting(
    State(app): Shared,
    Path(id): Path<String>,
    query: Result<Query<DriftQuery>, QueryRejection>,
    Plainly(listing): Plainly,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let Baseline { record, .. } = found(&app, &named(&id)?).await?;
    let releases = Arc::new(of_targets(&app, &record.releases).await?);
    let is_asked = move |state| query.state.is_none_or(|asked| asked == state);
    let pick = move |(device, path): Looked<'_>| drift(device.facts, path, &releases, is_asked);
    let devices = Devices::of(&app, filter_of(&record)?, listing.after()?);
    let rows = devices.pick(listing.wanted(), pick).await?;
    Ok(listing.page(rows, |view: &DriftView| view.device.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComplianceQuery {
    format: Option<Format>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Csv,
}

async fn compliance(
    State(app): Shared,
    headers: HeaderMap,
    query: Result<Query<ComplianceQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let wants_csv = accepts.is_some_and(|accept| accept.split(',').any(|kind| kind.trim().starts_with("text/csv")));
    let mut items = Vec::new();
    for Baseline { id, record, .. } in app.store.records::<BaselineRecord>().await? {
        let releases = of_targets(&app, &record.releases).await?;
        let count = |kinds: &mut Kinds<_, _>, _: &World, devices: Stretch<'_, '_>| {
            devices.for_each(|(device, path)| kinds.add(&path.prefix(2), device.facts, ()));
        };
        let devices = Devices::of(&app, filter_of(&record)?, None);
        let mut tally = Tally::default();
        for (kind, count) in devices.fold(Kinds::default(), count).await?.iter() {
            tally.add(kind.place, drift_of(&kind, &releases), count);
        }
        items.push(ComplianceView {
            baseline: named(&id)?,
            devices: tally.all.values().sum(),
            states: tally.all,
            sites: tally.sites,
        });
    }
    match query.format {
        Some(Format::Csv) => Ok(csv(&items)),
        None if wants_csv => Ok(csv(&items)),
        _ => Ok(Json(Page { items }).into_response()),
    }
}

/// One line for each baseline and site. Names need no quotes.
fn csv(items: &[ComplianceView]) -> Response {
    use DriftState::{Ahead, Behind, Compliant, NotCovered, Unknown};
    let mut text = "baseline,site,devices,compliant,behind,ahead,unknown,not_covered\r\n".to_owned();
    for view in items {
        for (site, states) in &view.sites {
            let mut line = vec![
                view.baseline.to_string(),
                site.to_string(),
                states.values().sum::<u32>().to_string(),
            ];
            let count = |state| states.get(&state).copied().unwrap_or_default().to_string();
            line.extend([Compliant, Behind, Ahead, Unknown, NotCovered].map(count));
            text.push_str(&line.join(","));
            text.push_str("\r\n");
        }
    }
    let kind = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"compliance.csv\""),
    ];
    (kind, text).into_response()
}
