//! What campaigns rest on, for reading: permits, attempts, approvals, windows, policies, plans by digest.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    response::Response,
};
use firmesh_protocol::{
    api::{ApprovalView, AttemptView, CampaignState, PermitView, PolicyView, WindowsView},
    ids::{CampaignId, DeviceId},
    manifest::CampaignManifest,
    report::AttemptState,
    trust::KeySet,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    App,
    campaigns::plan_bytes,
    operators::named,
    paging::{Listing, Plainly},
    problem::Failure,
    reports::role,
    routes::{Op, Routes},
};
use crate::{
    access::Permission,
    drafts::DraftRecord,
    rows::{read, unreadable},
    store::{RowError, Store, StoreError, StoredPermit},
    world::World,
};

type Shared = State<Arc<App>>;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    routes.add("permits", "/api/v1/permits", [
        Op::get("Lists the permits that were issued.", permits).needs(Permission::FleetRead)
            .paged()
            .query("campaign", "only those of this campaign")
            .answers_page::<PermitView>(),
    ]);
    routes.add("attempts", "/api/v1/attempts", [
        Op::get("Lists the attempts of all campaigns.", attempts).needs(Permission::FleetRead)
            .paged()
            .query("campaign", "only those of this campaign")
            .query("state", "only those in this state")
            .answers_page::<AttemptView>(),
    ]);
    routes.add("approvals", "/api/v1/approvals", [
        Op::get("Lists who has signed what of the files in force, and the drafts that wait for signatures.", approvals).needs(Permission::FleetRead)
            .paged()
            .answers_page::<ApprovalView>(),
    ]);
    routes.add("windows", "/api/v1/windows", [
        Op::get("Lists when devices may start, by campaign.", windows).needs(Permission::FleetRead).paged().answers_page::<WindowsView>(),
    ]);
    routes.add("policies", "/api/v1/policies", [
        Op::get("Lists the rules that approvers have signed, by campaign.", policies).needs(Permission::FleetRead)
            .paged()
            .answers_page::<PolicyView>(),
    ]);
    routes.add("campaigns", "/api/v1/plans/{sha256}", [
        Op::get("A plan by its digest, byte by byte.", plan).needs(Permission::FleetRead).answers_as("application/json"),
    ]);
}

async fn plan(State(app): Shared, Path(sha256): Path<String>) -> Result<Response, Failure> {
    plan_bytes(&app, named(&sha256)?).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    campaign: Option<CampaignId>,
    state: Option<AttemptState>,
    // Read by `Listing`.
    #[serde(rename = "limit")]
    _limit: Option<String>,
    #[serde(rename = "cursor")]
    _cursor: Option<String>,
}

fn asked(query: Result<Query<Which>, QueryRejection>) -> Result<Which, Failure> {
    let Query(which) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    Ok(which)
}

async fn permits(
    State(app): Shared,
    query: Result<Query<Which>, QueryRejection>,
    Plainly(listing): Plainly,
) -> Result<Response, Failure> {
    let Which { campaign, state, .. } = asked(query)?;
    if state.is_some() {
        return Err(Failure::bad_request("permits have no `state`"));
    }
    let after = listing.after::<String>()?;
    let after = after
        .map(|after| place(&after).ok_or_else(super::paging::bad_cursor))
        .transpose()?;
    let stored = app.store.permits_after(after, campaign, listing.wanted()).await?;
    let wall = app.clock.wall();
    let view = |permit: StoredPermit| PermitView {
        campaign: permit.campaign,
        sequence: permit.sequence,
        kind: permit.kind,
        nodes: permit.nodes,
        expires: permit.expires,
        in_force: permit.expires > wall,
        envelope: permit.envelope,
    };
    let views = stored.into_iter().map(view).collect();
    Ok(listing.page(views, |permit: &PermitView| {
        format!("{} {}", permit.campaign, permit.sequence)
    }))
}

fn place(cursor: &str) -> Option<(CampaignId, u64)> {
    let (campaign, sequence) = cursor.split_once(' ')?;
    Some((campaign.parse().ok()?, sequence.parse().ok()?))
}

impl Store {
    async fn permits_after(
        &self,
        after: Option<(CampaignId, u64)>,
        of: Option<CampaignId>,
        count: usize,
    ) -> Result<Vec<StoredPermit>, StoreError> {
        let (campaign, sequence) = after.map_or((String::new(), 0), |(id, sequence)| (id.to_string(), sequence));
        let query = "SELECT record FROM permits WHERE (campaign > $1 OR (campaign = $1 AND sequence > $2)) \
             AND ($3 = '' OR campaign = $3) ORDER BY campaign, sequence LIMIT $4";
        let rows: Vec<(String,)> = sqlx::query_as(query)
            .bind(campaign)
            .bind(sequence.cast_signed())
            .bind(of.map(|id| id.to_string()).unwrap_or_default())
            .bind(i64::try_from(count).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .map_err(read)?;
        let parse = |(text,): (String,)| -> Result<_, RowError> { Ok(serde_json::from_str(&text)?) };
        rows.into_iter()
            .map(|row| parse(row).map_err(unreadable("permits")))
            .collect()
    }
}

async fn attempts(
    State(app): Shared,
    query: Result<Query<Which>, QueryRejection>,
    Plainly(listing): Plainly,
) -> Result<Response, Failure> {
    let Which { campaign, state, .. } = asked(query)?;
    let after = listing.after::<String>()?;
    let after = after
        .map(|after| attempt_place(&after).ok_or_else(super::paging::bad_cursor))
        .transpose()?;
    let wanted = listing.wanted();
    let views = app
        .coordinator
        .read(move |world| attempts_after(world, after, campaign.as_ref(), state, wanted))
        .await?;
    Ok(listing.page(views, |attempt| format!("{} {}", attempt.campaign, attempt.device)))
}

fn attempt_place(cursor: &str) -> Option<(CampaignId, DeviceId)> {
    let (campaign, device) = cursor.split_once(' ')?;
    Some((campaign.parse().ok()?, device.parse().ok()?))
}

fn attempts_after(
    world: &World,
    after: Option<(CampaignId, DeviceId)>,
    of: Option<&CampaignId>,
    state: Option<AttemptState>,
    wanted: usize,
) -> Vec<AttemptView> {
    let mut found = Vec::new();
    for (id, _) in world.engine.states() {
        let is_past = after.as_ref().is_some_and(|(campaign, _)| id < campaign);
        if is_past || of.is_some_and(|of| of != id) || found.len() >= wanted {
            continue;
        }
        let first = after
            .as_ref()
            .filter(|(campaign, _)| id == campaign)
            .map(|(_, device)| device);
        let count = if state.is_some() {
            usize::MAX
        } else {
            wanted - found.len()
        };
        let attempts = world.engine.attempts_after(id, first, count).unwrap_or_default();
        found.extend(
            attempts
                .into_iter()
                .filter(|attempt| state.is_none_or(|state| state == attempt.state)),
        );
    }
    found.truncate(wanted);
    found
}

async fn approvals(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let drafts = app.store.records::<DraftRecord>().await?;
    let views = app.coordinator.read(move |world| {
        let mut views = in_force(world);
        let approvers = world
            .published
            .fleet
            .as_ref()
            .and_then(|fleet| fleet.approver_keys().ok());
        let waiting = drafts.into_iter().filter(|kept| {
            let id = kept.id.parse::<CampaignId>();
            id.is_ok_and(|id| world.engine.state(&id).is_none())
        });
        views.extend(waiting.map(|kept| {
            view(
                format!("campaigns/{}.json", kept.id),
                None,
                approvers.as_ref(),
                Vec::new(),
            )
        }));
        views.sort_by(|a, b| a.file.cmp(&b.file));
        views
    });
    Ok(listing.page_of(views.await?, |view| view.file.clone()))
}

/// The signed files that clients follow now, each with the keys that it was signed with.
fn in_force(world: &World) -> Vec<ApprovalView> {
    let Some(fleet) = &world.published.fleet else {
        return Vec::new();
    };
    let versions = world.published.versions();
    let sets: [(&str, Option<KeySet>); 2] = [
        ("releases", fleet.release_keys().ok()),
        ("campaigns", fleet.approver_keys().ok()),
    ];
    let view_of = |(role, keys): (&str, Option<KeySet>)| {
        let version = versions.get(role).copied()?;
        let file = format!("{version}.{role}.json");
        let signed_by = signers(world.published.files.get(&file)?);
        Some(view(file, Some(version), keys.as_ref(), signed_by))
    };
    sets.into_iter().filter_map(view_of).collect()
}

fn view(file: String, version: Option<u64>, keys: Option<&KeySet>, signed_by: Vec<String>) -> ApprovalView {
    let role = keys.map(role);
    let key_ids = role.as_ref().map_or_else(Vec::new, |role| role.key_ids.clone());
    ApprovalView {
        file,
        version,
        // What is in force was verified before.
        approved: version.is_some(),
        threshold: role.map_or(0, |role| role.threshold),
        signed_by: signed_by.into_iter().filter(|id| key_ids.contains(id)).collect(),
        key_ids,
    }
}

fn signers(bytes: &[u8]) -> Vec<String> {
    let file: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let signatures = file["signatures"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ids = signatures.iter().filter_map(|signature| signature["keyid"].as_str());
    ids.map(str::to_owned).collect()
}

/// The manifests in force, in the order of their campaigns.
async fn manifests(app: &App) -> Result<Vec<(CampaignId, CampaignState, CampaignManifest)>, Failure> {
    let read = app.coordinator.read(|world| {
        let campaigns = world.engine.states().filter_map(|(id, state)| {
            let manifest = CampaignManifest::from_bytes(world.published.manifests.get(id)?).ok()?;
            Some((id.clone(), state, manifest))
        });
        campaigns.collect()
    });
    Ok(read.await?)
}

async fn windows(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let view = |(campaign, state, manifest): (_, _, CampaignManifest)| WindowsView {
        campaign,
        state,
        windows: manifest.constraints.windows,
        blackouts: manifest.constraints.blackouts,
    };
    let views = manifests(&app).await?.into_iter().map(view);
    Ok(listing.page_of(views, |view| view.campaign.to_string()))
}

async fn policies(State(app): Shared, listing: Listing) -> Result<Response, Failure> {
    let view = |(campaign, state, manifest): (_, _, CampaignManifest)| {
        let mut rules = match serde_json::to_value(&manifest) {
            Ok(Value::Object(rules)) => rules,
            _ => serde_json::Map::new(),
        };
        // Who and what, which other routes show.
        for other in [
            "schema",
            "id",
            "plan_sha256",
            "permit_keys",
            "selector",
            "releases",
            "previous",
        ] {
            rules.remove(other);
        }
        PolicyView {
            campaign,
            state,
            plan_sha256: manifest.plan_sha256,
            rules,
        }
    };
    let views = manifests(&app).await?.into_iter().map(view);
    Ok(listing.page_of(views, |view: &PolicyView| view.campaign.to_string()))
}
