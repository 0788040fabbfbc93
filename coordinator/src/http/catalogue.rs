//! `/api/v1/firmware` and `/api/v1/catalogue`: images with what they are for, from the draft to the recall.
//!
//! Invariant: nothing here signs. A draft becomes a release when release keys have signed for it offline and the metadata
//! was published; a release is recalled by a signed brake.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use firmesh_protocol::{
    api::{
        CatalogueEntry, CatalogueVersion, Deprecation, FirmwarePublication, FirmwareState, FirmwareView, NewFirmware,
        ReleaseView,
    },
    brake::Braked,
    ids::Component,
    limits::REASON_BYTES_MAX,
    manifest::{Artifact, OtherComponent, RELEASE_SCHEMA, Release, ReleaseInfo, Reversibility, is_release_target},
    version::VersionScheme,
};
use serde::{Deserialize, Serialize};

use super::{
    App,
    conditions::Conditions,
    operators::release_views,
    paging::Listing,
    problem::{Body, Failure},
    reports::role,
    routes::{Op, Routes},
};
use crate::{
    access::Permission,
    firmware::{FirmwareRecord, default_name},
    provenance::compare_versions,
    records::{Changed, Kept},
    telemetry::chain,
};

type Shared = State<Arc<App>>;

/// Bytes of release notes, at most.
const NOTES_BYTES_MAX: usize = 64 << 10;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    const TAG: &str = "firmware";
    routes.add(TAG, "/api/v1/firmware", [
        Op::get("Lists the releases and the drafts, and whether their images are here.", list).needs(Permission::FleetRead)
            .paged()
            .answers_page::<FirmwareView>(),
        Op::post("Drafts a release of an image that is here.", create).needs(Permission::ReleaseWrite).takes::<NewFirmware>().made::<FirmwareView>(),
    ]);
    routes.add(TAG, "/api/v1/firmware/{name}", [
        Op::get("Shows a release or a draft by its name, which is the target's without `firmware/`.", show).needs(Permission::FleetRead)
            .tagged()
            .answers::<FirmwareView>(),
        Op::delete("Removes a draft. What was signed is taken back by those who have signed it.", remove).needs(Permission::ReleaseWrite).empty(),
    ]);
    routes.add(TAG, "/api/v1/firmware/{name}/publish", [
        Op::post("Whether it is published, or who has to sign what for it.", publish).needs(Permission::ReleaseWrite)
            .answers::<FirmwarePublication>()
            .accepted::<FirmwarePublication>("Signatures are missing: `next` says what is to be done offline"),
    ]);
    routes.add(TAG, "/api/v1/firmware/{name}/deprecate", [
        Op::post("Nothing is to be planned with it any more, or (without a reason) again.", deprecate).needs(Permission::ReleaseWrite)
            .takes::<Deprecation>()
            .answers::<FirmwareView>(),
    ]);
    routes.add(TAG, "/api/v1/catalogue", [
        Op::get("Lists the versions by vendor, model and component.", catalogue).needs(Permission::FleetRead)
            .paged()
            .query("vendor", "only this vendor")
            .query("model", "only this model")
            .query("component", "only this component")
            .answers_page::<CatalogueEntry>(),
    ]);
}

async fn list(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let views = views(&app).await?.into_values();
    Ok(listing.page_of(views, |view| view.name.clone()))
}

async fn show(State(app): Shared, Path(name): Path<String>, conditions: Conditions) -> Result<Response, Failure> {
    Ok(conditions.answer(&found(&app, &name).await?.0))
}

/// Everything that is signed or drafted, by name.
async fn views(app: &App) -> Result<BTreeMap<String, FirmwareView>, Failure> {
    let signed = release_views(app).await?;
    let records = app.store.records::<FirmwareRecord>().await?;
    let stored: BTreeSet<_> = app
        .store
        .artifacts()
        .await?
        .into_iter()
        .map(|artifact| artifact.id)
        .collect();
    let braked = braked(app).await?;
    let mut records: BTreeMap<_, _> = records.into_iter().map(|kept| (kept.id, kept.record)).collect();
    let mut views = BTreeMap::new();
    for signed in signed {
        let name = name_of(&signed.release).to_owned();
        let record = records.remove(&name);
        views.insert(name.clone(), of_signed(name, signed, record, &braked));
    }
    for (name, record) in records {
        let Some(draft) = record.draft.clone() else { continue };
        let is_stored = stored.contains(&draft.artifact.id);
        views.insert(name.clone(), of_draft(name, draft, is_stored, record));
    }
    Ok(views)
}

/// Recalled images, with the reasons.
async fn braked(app: &App) -> Result<BTreeMap<Braked, String>, Failure> {
    let read = app.coordinator.read(|world| {
        let all = world.brakes.all();
        all.map(|(brake, _)| (brake.braked.clone(), brake.reason.clone()))
            .collect()
    });
    Ok(read.await?)
}

fn name_of(release: &Release) -> &str {
    release.target.strip_prefix("firmware/").unwrap_or(&release.target)
}

fn of_signed(
    name: String,
    signed: ReleaseView,
    record: Option<FirmwareRecord>,
    braked: &BTreeMap<Braked, String>,
) -> FirmwareView {
    let ReleaseView { release, stored } = signed;
    let brake = braked.get(&Braked::Release {
        target: release.target.clone(),
        sha256: release.artifact.sha256,
    });
    let deprecated = record.as_ref().and_then(|record| record.deprecated.clone());
    let (state, reason) = match (brake, deprecated) {
        (Some(reason), _) => (FirmwareState::Revoked, Some(reason.clone())),
        (None, Some(reason)) => (FirmwareState::Deprecated, Some(reason)),
        (None, None) => (FirmwareState::Approved, None),
    };
    // Notes on another image of the same name are not about this one.
    let is_same = |record: &FirmwareRecord| {
        record
            .draft
            .as_ref()
            .is_none_or(|draft| draft.artifact == release.artifact)
    };
    let notes = record.filter(is_same);
    FirmwareView {
        name,
        state,
        reason,
        stored,
        release_notes: notes
            .as_ref()
            .map_or_else(String::new, |record| record.release_notes.clone()),
        source: notes.as_ref().and_then(|record| record.source.clone()),
        created: notes.and_then(|record| record.created),
        release,
    }
}

fn of_draft(name: String, release: Release, stored: bool, record: FirmwareRecord) -> FirmwareView {
    FirmwareView {
        name,
        state: FirmwareState::Draft,
        reason: None,
        release,
        stored,
        release_notes: record.release_notes,
        source: record.source,
        created: record.created,
    }
}

/// One of them, with what is kept of it.
pub(super) async fn found(app: &App, name: &str) -> Result<(FirmwareView, Option<Kept<FirmwareRecord>>), Failure> {
    let target = format!("firmware/{name}");
    if !is_release_target(&target) {
        return Err(Failure::not_found(format!("release {}", target.escape_debug())));
    }
    let record = app.store.record::<FirmwareRecord>(name).await?;
    let signed = release_views(app)
        .await?
        .into_iter()
        .find(|view| view.release.target == target);
    let kept = record.as_ref().map(|kept| kept.record.clone());
    let view = match (signed, kept) {
        (Some(signed), kept) => of_signed(name.to_owned(), signed, kept, &braked(app).await?),
        (None, Some(kept)) if kept.draft.is_some() => {
            let draft = kept.draft.clone().expect("it was just looked at");
            let stored = app.store.artifact(draft.artifact.id).await?.is_some();
            of_draft(name.to_owned(), draft, stored, kept)
        }
        _ => return Err(Failure::not_found(format!("release {}", target.escape_debug()))),
    };
    Ok((view, record))
}

async fn create(State(app): Shared, Body(new): Body<NewFirmware>) -> Result<Response, Failure> {
    let sha256 = new.sha256;
    let artifacts = app.store.artifacts().await?;
    let artifact = artifacts.into_iter().find(|artifact| artifact.sha256 == sha256);
    let artifact = artifact.ok_or_else(|| {
        Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "artifact_missing",
            format!("there is no image {sha256} here: upload it first (`firmesh artifact add`)"),
        )
    })?;
    let (view, is_new) = draft(&app, new, artifact, None).await?;
    if !is_new {
        let detail = format!("the release {} is drafted or signed already", view.name);
        return Err(Failure::new(StatusCode::CONFLICT, "exists", detail));
    }
    let place = HeaderValue::from_str(&format!("/api/v1/firmware/{}", view.name));
    let place = place.map_err(|error| Failure::bad_request(error.to_string()))?;
    Ok((StatusCode::CREATED, [(header::LOCATION, place)], Json(view)).into_response())
}

/// Drafts a release of an image; false if the same was drafted or signed before.
pub(super) async fn draft(
    app: &App,
    new: NewFirmware,
    artifact: Artifact,
    source: Option<String>,
) -> Result<(FirmwareView, bool), Failure> {
    if new.release_notes.len() > NOTES_BYTES_MAX {
        let detail = format!("the release notes have more than {NOTES_BYTES_MAX} bytes");
        return Err(Failure::bad_request(detail));
    }
    let info = ReleaseInfo {
        schema: RELEASE_SCHEMA.to_owned(),
        blake3: artifact.id,
        vendor: new.vendor,
        models: new.models,
        component: new.component,
        version: new.version,
        security_epoch: new.security_epoch.unwrap_or(1),
        from_versions: new.from_versions,
        version_scheme: new.version_scheme,
        min_from: new.min_from,
        requires: new.requires,
        conflicts: new.conflicts,
        reversibility: new.reversibility.unwrap_or(Reversibility::Reflash),
        provenance: None,
    };
    info.check().map_err(|error| Failure::bad_request(chain(&error)))?;
    let first = info.models.first().map_or("", String::as_str);
    let name = new
        .name
        .unwrap_or_else(|| default_name(&info.vendor, first, &info.component, &info.version));
    let target = format!("firmware/{name}");
    if name.len() > 128 || !is_release_target(&target) {
        return Err(Failure::bad_request(format!(
            "{name:?} cannot name a release: give a `name` of at most 128 letters, digits, '.', '_', '-' or '+'"
        )));
    }
    let release = Release { target, artifact, info };
    let all = views(app).await?;
    if let Some(known) = all.get(&name) {
        let is_same = known.release.artifact == release.artifact && known.release.info.version == release.info.version;
        return match is_same {
            true => Ok((known.clone(), false)),
            false => Err(Failure::new(
                StatusCode::CONFLICT,
                "exists",
                format!("the name {name} stands for another image or version already: choose another"),
            )),
        };
    }
    if let Some(known) = all
        .values()
        .find(|known| shares_a_version(&known.release.info, &release.info))
    {
        return Err(version_taken(&known.name));
    }
    if let Some(other) = app.store.claim_versions(&name, &release.info).await? {
        return Err(version_taken(&other));
    }
    app.log_change("firmware", &name, "drafted").await?;
    let record = FirmwareRecord {
        draft: Some(release.clone()),
        release_notes: new.release_notes,
        source,
        created: Some(app.clock.wall()),
        deprecated: None,
    };
    let before = app.store.record::<FirmwareRecord>(&name).await?;
    match app
        .store
        .put_record(&name, before.map(|kept| kept.version), &record)
        .await?
    {
        Changed::Yes(_) => Ok((of_draft(name, release, true, record), true)),
        Changed::Meanwhile => Err(changed_meanwhile()),
        Changed::Full => Err(Failure::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "records_full",
            "no more drafts are kept: remove some",
        )),
    }
}

/// A version is one image, for each component of a model.
fn shares_a_version(a: &ReleaseInfo, b: &ReleaseInfo) -> bool {
    let is_same = a.vendor == b.vendor && a.component == b.component && a.version == b.version;
    is_same && a.models.iter().any(|model| b.models.contains(model))
}

fn version_taken(by: &str) -> Failure {
    let detail = format!("{by} is this version of the component for one of these models already");
    Failure::new(StatusCode::CONFLICT, "exists", detail)
}

fn changed_meanwhile() -> Failure {
    let detail = "somebody else has changed it at this moment: read it again";
    Failure::new(StatusCode::CONFLICT, "changed_meanwhile", detail)
}

async fn publish(State(app): Shared, Path(name): Path<String>) -> Result<Response, Failure> {
    let (firmware, record) = found(&app, &name).await?;
    let is_draft = firmware.state == FirmwareState::Draft;
    let drafted = record.and_then(|kept| kept.record.draft);
    if let Some(drafted) = drafted.filter(|drafted| !is_draft && drafted.artifact != firmware.release.artifact) {
        return Err(Failure::new(
            StatusCode::CONFLICT,
            "other_image",
            format!(
                "{name} is signed with the image {}, drafted was {}: remove the draft, or sign under another name",
                firmware.release.artifact.sha256, drafted.artifact.sha256
            ),
        ));
    }
    if firmware.state == FirmwareState::Revoked {
        let detail = format!("{name} was recalled: {}", firmware.reason.unwrap_or_default());
        return Err(Failure::new(StatusCode::CONFLICT, "braked", detail).refused());
    }
    let signers = app
        .coordinator
        .read(|world| {
            world
                .published
                .fleet
                .as_ref()?
                .release_keys()
                .ok()
                .map(|keys| role(&keys))
        })
        .await?;
    let next = if is_draft { steps(&firmware.release) } else { Vec::new() };
    let answer = FirmwarePublication {
        firmware,
        published: !is_draft,
        signers,
        next,
    };
    let status = if is_draft { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(answer)).into_response())
}

/// What people do where the keys are.
fn steps(release: &Release) -> Vec<String> {
    let info = &release.info;
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let models = info
        .models
        .iter()
        .map(|model| format!(" --model {}", quoted(model)))
        .collect::<String>();
    let from = info
        .from_versions
        .iter()
        .map(|version| format!(" --from-version {}", quoted(version)))
        .collect::<String>();
    let way_back = match info.reversibility {
        Reversibility::Reversible => "reversible",
        Reversibility::Reflash => "reflash",
        Reversibility::OneWay => "one-way",
    };
    let compatibility = compatibility(info);
    let create = format!(
        "firmesh release create --file IMAGE --name {} --vendor {}{models} --component {} --release-version {} \
         --security-epoch {}{from} --reversibility {way_back}{}",
        release.target,
        quoted(&info.vendor),
        info.component,
        quoted(&info.version),
        info.security_epoch,
        if compatibility.is_some() {
            " --compatibility compatibility.toml"
        } else {
            ""
        },
    );
    let file = compatibility.map(|text| format!("write compatibility.toml:\n{text}"));
    let sign = [
        "firmesh release sign --key KEY (as many people as the threshold says)".to_owned(),
        "firmesh release publish".to_owned(),
    ];
    file.into_iter().chain([create]).chain(sign).collect()
}

/// What a release goes with, as the file that signing takes; `None` if nothing is said.
fn compatibility(info: &ReleaseInfo) -> Option<String> {
    #[derive(Serialize)]
    struct Said<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        version_scheme: &'a Option<VersionScheme>,
        #[serde(skip_serializing_if = "Option::is_none")]
        min_from: &'a Option<String>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        requires: &'a [OtherComponent],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        conflicts: &'a [OtherComponent],
    }
    let said = Said {
        version_scheme: &info.version_scheme,
        min_from: &info.min_from,
        requires: &info.requires,
        conflicts: &info.conflicts,
    };
    let text = toml::to_string(&said).ok()?;
    (!text.is_empty()).then_some(text)
}

async fn deprecate(
    State(app): Shared,
    Path(name): Path<String>,
    Body(Deprecation { reason }): Body<Deprecation>,
) -> Result<Json<FirmwareView>, Failure> {
    let (firmware, record) = found(&app, &name).await?;
    if firmware.state == FirmwareState::Draft {
        let detail = format!("{name} is a draft: remove it instead");
        return Err(Failure::new(StatusCode::CONFLICT, "wrong_state", detail));
    }
    let is_good = |reason: &String| !reason.trim().is_empty() && reason.len() <= REASON_BYTES_MAX;
    if !reason.as_ref().is_none_or(is_good) {
        let detail = format!("a reason is a sentence, of at most {REASON_BYTES_MAX} bytes");
        return Err(Failure::bad_request(detail));
    }
    let change = if reason.is_some() {
        "deprecated"
    } else {
        "not deprecated any more"
    };
    app.log_change("firmware", &name, change).await?;
    let (before, record) = match record {
        Some(kept) => (Some(kept.version), kept.record),
        None => (
            None,
            FirmwareRecord {
                draft: None,
                release_notes: String::new(),
                source: None,
                created: None,
                deprecated: None,
            },
        ),
    };
    let record = FirmwareRecord {
        deprecated: reason,
        ..record
    };
    match app.store.put_record(&name, before, &record).await? {
        Changed::Yes(_) => Ok(Json(found(&app, &name).await?.0)),
        Changed::Meanwhile | Changed::Full => Err(changed_meanwhile()),
    }
}

async fn remove(State(app): Shared, Path(name): Path<String>) -> Result<StatusCode, Failure> {
    let (firmware, record) = found(&app, &name).await?;
    if firmware.state != FirmwareState::Draft {
        let detail = format!(
            "{name} is signed: its release keys take it back (`firmesh release remove`), or a brake stops it \
             (`firmesh brake release`)"
        );
        return Err(Failure::new(StatusCode::CONFLICT, "wrong_state", detail).refused());
    }
    let Some(record) = record else {
        return Err(changed_meanwhile());
    };
    app.log_change("firmware", &name, "removed").await?;
    match app.store.remove_record::<FirmwareRecord>(&name, record.version).await? {
        true => {
            app.store.release_versions(&name).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        false => Err(changed_meanwhile()),
    }
}

/// The deprecated releases among those a draft names, with the reasons.
pub(super) async fn deprecated(app: &App, targets: impl Iterator<Item = &str>) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for target in targets {
        let name = target.strip_prefix("firmware/").unwrap_or(target);
        let record = app.store.record::<FirmwareRecord>(name).await?;
        let reason = record.and_then(|kept| kept.record.deprecated);
        found.extend(reason.map(|reason| format!("{target}: {reason}")));
    }
    Ok(found)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogueQuery {
    vendor: Option<String>,
    model: Option<String>,
    component: Option<Component>,
    // Read by `Listing`.
    #[serde(rename = "limit")]
    _limit: Option<String>,
    #[serde(rename = "cursor")]
    _cursor: Option<String>,
}

async fn catalogue(
    State(app): Shared,
    query: Result<Query<CatalogueQuery>, QueryRejection>,
    listing: super::paging::Plainly,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let mut entries: BTreeMap<(String, String, Component), Vec<CatalogueVersion>> = BTreeMap::new();
    for (name, view) in views(&app).await? {
        let info = view.release.info;
        let is_wanted = query.vendor.as_ref().is_none_or(|vendor| *vendor == info.vendor)
            && query
                .component
                .as_ref()
                .is_none_or(|component| *component == info.component);
        let models = info
            .models
            .iter()
            .filter(|model| query.model.as_ref().is_none_or(|wanted| wanted == *model));
        for model in models.filter(|_| is_wanted) {
            let key = (info.vendor.clone(), model.clone(), info.component.clone());
            entries.entry(key).or_default().push(CatalogueVersion {
                version: info.version.clone(),
                firmware: name.clone(),
                state: view.state,
                stored: view.stored,
            });
        }
    }
    let entry = |((vendor, model, component), mut versions): (_, Vec<CatalogueVersion>)| {
        versions.sort_by(|a, b| compare_versions(&a.version, &b.version).then_with(|| a.firmware.cmp(&b.firmware)));
        CatalogueEntry {
            vendor,
            model,
            component,
            versions,
        }
    };
    // Parts that cannot hold the separator keep the order of the keys.
    let id = |entry: &CatalogueEntry| format!("{}\u{1}{}\u{1}{}", entry.vendor, entry.model, entry.component);
    Ok(listing.0.page_of(entries.into_iter().map(entry), id))
}
