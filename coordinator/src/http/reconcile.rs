//! `/api/v1/baselines/{id}/reconcile`: a campaign is drafted for devices that have drifted from their baseline, when somebody
//! asks for it, or by itself as often as the baseline says. Approvers sign it as any other, or nobody is touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use firmesh_protocol::{
    api::{DriftState, Reconciled, Reconciliation},
    ids::{CampaignId, GroupId},
    manifest::CampaignManifest,
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    App,
    baselines::{self, Baseline},
    drafts,
    operators::named,
    problem::Failure,
    routes::{Op, Routes},
    stretches::Devices,
};
use crate::{
    access::Permission,
    baselines::{BaselineRecord, drift},
    drafts::{DraftRecord, view},
    reconcile::{Last, ReconcileRecord, Step, Surroundings, about, manifest, name, step, wanted},
    records::{Changed, Kept},
    runtime::ActionError,
    world::Looked,
};

type Shared = State<Arc<App>>;

/// Between two looks at which baselines are due.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    routes.add("baselines", "/api/v1/baselines/{id}/reconcile", [
        Op::post("Drafts a campaign for the devices that have drifted, unless there is one.", reconcile).needs(Permission::CampaignDraft)
            .answers::<Reconciled>(),
    ]);
}

async fn reconcile(State(app): Shared, Path(id): Path<String>) -> Result<Json<Reconciled>, Failure> {
    let kept = baselines::found(&app, &named(&id)?).await?;
    let Some(rules) = kept.record.reconcile.clone() else {
        let detail = format!(
            "the baseline {} has no rules for a campaign: give it some as `reconcile`",
            kept.id
        );
        return Err(Failure::new(StatusCode::CONFLICT, "wrong_state", detail));
    };
    Ok(Json(look(&app, kept, &rules, true).await?))
}

/// Looks after the baselines that say how often, until the coordinator leads no more.
pub(crate) async fn keep_reconciling(app: Arc<App>) {
    let mut looked: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        tokio::select! {
            () = app.cancel.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let look = tokio::select! {
            () = app.cancel.cancelled() => return,
            look = look_at_due(&app, &mut looked) => look,
        };
        if let Err(failure) = look {
            warn!(
                problem = failure.0.detail,
                "baselines could not be looked after, it is tried again"
            );
        }
    }
}

async fn look_at_due(app: &App, looked: &mut BTreeMap<String, Instant>) -> Result<(), Failure> {
    let baselines = app.store.records::<BaselineRecord>().await?;
    looked.retain(|id, _| baselines.iter().any(|kept| kept.id == *id));
    for kept in baselines {
        let Some(rules) = kept.record.reconcile.clone() else {
            continue;
        };
        let Some(every) = rules.every_s.map(|seconds| Duration::from_secs(u64::from(seconds))) else {
            continue;
        };
        let id = kept.id.clone();
        if looked.get(&id).is_some_and(|at| at.elapsed() < every) {
            continue;
        }
        looked.insert(id.clone(), Instant::now());
        match look(app, kept, &rules, false).await {
            Ok(Reconciled { drafted: false, .. }) => {}
            Ok(Reconciled { drifted, draft, .. }) => {
                let campaign = draft.map(|draft| draft.id.to_string());
                info!(
                    baseline = id,
                    campaign, drifted, "a campaign was drafted for a baseline"
                );
            }
            // What is wrong with one does not keep the others waiting.
            Err(failure) => warn!(
                baseline = id,
                problem = failure.0.detail,
                "no campaign could be drafted for a baseline"
            ),
        }
    }
    Ok(())
}

/// Looks at a baseline, and drafts what is to be drafted.
async fn look(app: &App, kept: Baseline, rules: &Reconciliation, is_asked: bool) -> Result<Reconciled, Failure> {
    let _one = app.reconciling.lock().await;
    let id: GroupId = named(&kept.id)?;
    let releases = Arc::new(baselines::of_targets(app, &kept.record.releases).await?);
    let pick = move |(device, path): Looked<'_>| drift(device.facts, path, &releases, DriftState::is_drift);
    let devices = Devices::of(app, baselines::filter_of(&kept.record)?, None);
    let views = devices.pick(usize::MAX, pick).await?;
    let wanted = wanted(&views, rules);
    let drifted = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let about = about(&wanted);
    let before = app.store.record::<ReconcileRecord>(id.as_str()).await?;
    let (last, draft) = last(app, &id, before.as_ref()).await?;
    let is_same = before.as_ref().is_some_and(|kept| kept.record.about == about);
    if let Step::Rest(reason) = step(last, wanted.len(), is_same, is_asked) {
        return Ok(Reconciled {
            drifted,
            drafted: false,
            draft: draft.map(|(id, kept)| view(id, kept)),
            reason: reason.to_owned(),
        });
    }
    let number = before.as_ref().map_or(1, |kept| kept.record.number.saturating_add(1));
    let (campaign, number) = free_name(app, &id, number).await?;
    let surroundings = surroundings(app).await?;
    let published = app.coordinator.read(|world| world.releases()).await?;
    let manifest = manifest(campaign.clone(), &wanted, &published, rules, surroundings);
    manifest
        .check()
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let record = DraftRecord {
        baseline: Some(id.clone()),
        ..drafts::drafted(app, manifest, false).await?
    };
    let planned: u32 = record.waves.iter().sum();
    if planned == 0 {
        let held = record
            .held
            .first()
            .map_or_else(String::new, |held| format!("; {}: {}", held.device, held.reason));
        return Ok(Reconciled {
            drifted,
            drafted: false,
            draft: None,
            reason: format!("none of the devices can be updated now{held}"),
        });
    }
    app.log_change("campaign", campaign.as_str(), &format!("drafted for the baseline {id}"))
        .await?;
    // The draft first: it names its baseline, so that one whose note is missing after a crash is still found.
    let version = match app.store.put_record(campaign.as_str(), None, &record).await? {
        Changed::Yes(version) => version,
        Changed::Meanwhile => return Err(baselines_changed()),
        Changed::Full => {
            let detail = "no more drafts are kept: remove some";
            return Err(Failure::new(StatusCode::INSUFFICIENT_STORAGE, "records_full", detail));
        }
    };
    note(app, &id, before, &campaign, number, about).await?;
    let kept = Kept {
        id: campaign.to_string(),
        version,
        record,
    };
    Ok(Reconciled {
        drifted,
        drafted: true,
        reason: format!("{planned} devices are planned: the campaign waits for its approvers"),
        draft: Some(view(campaign, kept)),
    })
}

fn baselines_changed() -> Failure {
    super::conditions::changed_meanwhile("draft")
}

type Draft = Option<(CampaignId, Kept<DraftRecord>)>;

/// How the campaign that was drafted last for a baseline stands; with the draft, if it waits.
async fn last(app: &App, id: &GroupId, before: Option<&Kept<ReconcileRecord>>) -> Result<(Last, Draft), Failure> {
    let drafts = app.store.records::<DraftRecord>().await?;
    let own = drafts
        .into_iter()
        .filter(|kept| kept.record.baseline.as_ref() == Some(id));
    let own: Vec<_> = own.collect();
    let mut names: Vec<CampaignId> = own.iter().filter_map(|kept| kept.id.parse().ok()).collect();
    names.extend(before.map(|kept| kept.record.campaign.clone()));
    let asked = names.clone();
    let known = app.coordinator.read(move |world| {
        let known = asked.into_iter().filter(|id| world.knows(id)).collect::<BTreeSet<_>>();
        let mut states = known.iter().filter_map(|id| world.engine.state(id));
        let runs = states.any(|state| !state.is_terminal());
        (known, runs)
    });
    let (known, runs) = known.await?;
    if runs {
        return Ok((Last::Runs, None));
    }
    for kept in own {
        let name: CampaignId = named(&kept.id)?;
        if !known.contains(&name) {
            return Ok((Last::Waits, Some((name, kept))));
        }
        // It is over: its draft says nothing any more.
        app.store.remove_record::<DraftRecord>(&kept.id, kept.version).await?;
    }
    Ok(match before {
        None => (Last::None, None),
        Some(kept) if known.contains(&kept.record.campaign) => (Last::Over, None),
        Some(_) => (Last::Removed, None),
    })
}

/// A name that no campaign has, from this number on.
async fn free_name(app: &App, id: &GroupId, from: u64) -> Result<(CampaignId, u64), Failure> {
    for number in from..from.saturating_add(1_000) {
        let campaign = name(id, number).map_err(|error| Failure::bad_request(error.to_string()))?;
        let asked = campaign.clone();
        let is_known = app.coordinator.read(move |world| world.knows(&asked)).await?;
        if !is_known && app.store.record::<DraftRecord>(campaign.as_str()).await?.is_none() {
            return Ok((campaign, number));
        }
    }
    let detail =
        format!("a thousand campaigns are called like those of the baseline {id}: remove drafts of these names");
    Err(Failure::new(StatusCode::CONFLICT, "exists", detail))
}

async fn surroundings(app: &App) -> Result<Surroundings, ActionError> {
    let sequence = app.coordinator.read(|world| {
        let manifests = world.published.manifests.values();
        let sequences = manifests.filter_map(|bytes| Some(CampaignManifest::from_bytes(bytes).ok()?.sequence));
        sequences.max().unwrap_or(0)
    });
    Ok(Surroundings {
        sequence: sequence.await?.saturating_add(1),
        permit_key: app.authority.permit_key().public().to_string(),
        now: app.clock.wall(),
    })
}

async fn note(
    app: &App,
    id: &GroupId,
    before: Option<Kept<ReconcileRecord>>,
    campaign: &CampaignId,
    number: u64,
    about: firmesh_protocol::ids::Sha256,
) -> Result<(), Failure> {
    let record = ReconcileRecord {
        campaign: campaign.clone(),
        number,
        about,
    };
    let before = before.map(|kept| kept.version);
    match app.store.put_record(id.as_str(), before, &record).await? {
        Changed::Yes(_) => Ok(()),
        Changed::Meanwhile | Changed::Full => Err(baselines_changed()),
    }
}
