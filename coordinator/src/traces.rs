//! Which trace a campaign belongs to: from the request that starts it to its end. Nodes are told with their heartbeats, and do
//! the rest.
//!
//! Invariants: nothing is decided by a trace, and nothing fails for want of one: what cannot be kept is logged, and the campaign
//! goes on without. A trace that was begun is known over restarts and to whoever leads next, until the campaign has ended.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use firmesh_protocol::{
    api::{CampaignState, CampaignView, EventKind},
    ids::CampaignId,
    manifest::CampaignManifest,
    trace::{TRACE_HINTS_MAX, TraceContext, TraceHint},
};
use firmesh_telemetry::{Kind, Span, Tracer};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tracing::{info, warn};

use crate::{
    events::Events,
    records::{Changed, Record},
    runtime::{ActionError, Coordinator},
    store::{Store, StoreError},
    telemetry::chain,
};

/// What is kept of a trace that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TraceRecord {
    /// The span that the campaign was started in.
    traceparent: String,
}

impl Record for TraceRecord {
    const KIND: &'static str = "trace";
    /// More campaigns than run at a time.
    const COUNT_MAX: i64 = 1_000;
}

/// The traces of the campaigns that run.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    tracer: Tracer,
    open: RwLock<BTreeMap<CampaignId, TraceContext>>,
}

/// Who asked for what.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// The span of whoever asked, if he told.
    pub(crate) parent: Option<TraceContext>,
    /// Who.
    pub(crate) user: &'a str,
    /// By which route.
    pub(crate) route: &'static str,
}

/// A trace that has been begun, until it is known whether what it is about has.
#[derive(Debug)]
pub(crate) struct Begun {
    context: TraceContext,
    parent: Option<TraceContext>,
    at: SystemTime,
    before: Option<TraceContext>,
}

impl Traces {
    /// The traces that are open, as the database has them.
    pub(crate) async fn load(tracer: Tracer, store: &Store) -> Result<Self, StoreError> {
        let kept = match tracer.is_on() {
            true => store.records::<TraceRecord>().await?,
            false => Vec::new(),
        };
        let open = kept.into_iter().filter_map(|kept| {
            let context = TraceContext::parse(&kept.record.traceparent)?;
            Some((kept.id.parse().ok()?, context))
        });
        Ok(Self {
            tracer,
            open: RwLock::new(open.collect()),
        })
    }

    /// Spans that a collector has taken, and those that were dropped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.tracer.counts()
    }

    /// Which traces these campaigns belong to, for a node.
    pub(crate) fn hints(&self, campaigns: &[CampaignId]) -> Vec<TraceHint> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let hint = |campaign: &CampaignId| {
            let context = open.get(campaign).filter(|context| context.sampled)?;
            Some(TraceHint {
                campaign: campaign.clone(),
                traceparent: context.to_string(),
            })
        };
        campaigns.iter().filter_map(hint).take(TRACE_HINTS_MAX).collect()
    }

    /// Before a campaign is started, so that no node hears of it without its trace. In the asker's trace if he has one and wants it
    /// looked at, otherwise in one of its own.
    pub(crate) async fn begin(&self, campaign: &CampaignId, asked: &Asked<'_>, store: &Store) -> Option<Begun> {
        if !self.tracer.is_on() {
            return None;
        }
        let context = match asked.parent {
            Some(parent) => {
                let span = fastrand::u64(..).to_be_bytes();
                TraceContext::new(parent.trace(), span, parent.sampled)
            }
            None => {
                let (trace, span) = (fastrand::u128(..).to_be_bytes(), fastrand::u64(..).to_be_bytes());
                let own = TraceContext::new(trace, span, true);
                let sampled = self.tracer.picks(&own, campaign.as_str());
                TraceContext::new(trace, span, sampled)
            }
        };
        tracing::Span::current().record("trace_id", context.trace_hex());
        let before = self.set(campaign, Some(context));
        if let Err(problem) = keep(store, campaign, Some(&context)).await {
            warn!(%campaign, error = problem, "the trace of a campaign is known to this process only");
        }
        Some(Begun {
            context,
            parent: asked.parent,
            at: SystemTime::now(),
            before,
        })
    }

    /// The campaign was not started after all.
    pub(crate) async fn give_up(&self, campaign: &CampaignId, begun: Option<Begun>, store: &Store) {
        let Some(begun) = begun else { return };
        self.set(campaign, begun.before);
        if let Err(problem) = keep(store, campaign, begun.before.as_ref()).await {
            warn!(%campaign, error = problem, "the trace of a campaign that was not started is still there");
        }
    }

    /// The campaign was started.
    pub(crate) fn started(&self, manifest: &CampaignManifest, devices: u64, asked: &Asked<'_>, begun: Option<Begun>) {
        let strategy = strategy(manifest);
        let targets = manifest.releases.iter().map(|release| release.target.as_str());
        let releases = targets.collect::<Vec<_>>().join(" ");
        info!(
            campaign = %manifest.id, strategy, devices, user = asked.user, version = releases,
            trace_id = begun.as_ref().map(|begun| begun.context.trace_hex()),
            "a campaign was started"
        );
        let Some(begun) = begun else { return };
        self.tracer.send(Span {
            context: begun.context,
            parent: begun.parent.map(|parent| parent.span()),
            parent_is_remote: begun.parent.is_some(),
            name: "deployment.create",
            kind: Kind::Server,
            began: begun.at,
            ended: SystemTime::now(),
            attributes: vec![
                ("firmesh.campaign", manifest.id.as_str().into()),
                ("firmesh.version", releases.into()),
                ("firmesh.strategy", strategy.into()),
                ("firmesh.devices", devices.into()),
                ("user.id", asked.user.into()),
                ("http.request.method", "POST".into()),
                ("http.route", asked.route.into()),
            ],
            failed: None,
        });
    }

    /// Closes the traces of campaigns that end. Runs until the events end.
    pub(crate) async fn keep_closing(&self, events: &Events, coordinator: &Coordinator, store: &Store) {
        let mut live = events.subscribe(None).live;
        if !self.tracer.is_on() {
            return;
        }
        // What has ended while nobody was here.
        let mut looked = self.close_ended(coordinator, store).await;
        while looked.is_ok() {
            match next_end(&mut live).await {
                Ok(view) => self.close(&view, store).await,
                // So many at once that some were missed.
                Err(RecvError::Lagged(_)) => looked = self.close_ended(coordinator, store).await,
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn close_ended(&self, coordinator: &Coordinator, store: &Store) -> Result<(), ActionError> {
        let open: Vec<_> = {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            open.keys().cloned().collect()
        };
        for id in open {
            let wanted = id.clone();
            let view = coordinator.read(move |world| world.engine.campaign(&wanted)).await?;
            match view {
                Some(view) if view.state.is_terminal() => self.close(&view, store).await,
                Some(_) => {}
                // It was never started, and has been taken back since.
                None => self.forget(&id, store).await,
            }
        }
        Ok(())
    }

    async fn close(&self, view: &CampaignView, store: &Store) {
        let began = SystemTime::now();
        let context = {
            let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
            open.get(&view.id).copied()
        };
        let Some(parent) = context else { return };
        self.forget(&view.id, store).await;
        let count = |good: bool| {
            let states = view.states.iter().filter(|(state, _)| state.is_success() == good);
            states.map(|(_, count)| u64::from(*count)).sum::<u64>()
        };
        let state = serde_json::to_value(view.state).ok();
        let state = state.as_ref().and_then(|state| state.as_str()).unwrap_or_default();
        info!(campaign = %view.id, state, trace_id = parent.trace_hex(), "a campaign that was traced has ended");
        self.tracer.send(Span {
            context: parent.below(&["deployment.complete"]),
            parent: Some(parent.span()),
            parent_is_remote: false,
            name: "deployment.complete",
            kind: Kind::Internal,
            began,
            ended: SystemTime::now(),
            attributes: vec![
                ("firmesh.campaign", view.id.as_str().into()),
                ("firmesh.state", state.into()),
                ("firmesh.devices.succeeded", count(true).into()),
                ("firmesh.devices.others", count(false).into()),
            ],
            failed: (view.state != CampaignState::Completed).then(|| view.reason.clone()),
        });
    }

    async fn forget(&self, campaign: &CampaignId, store: &Store) {
        self.set(campaign, None);
        if let Err(problem) = keep(store, campaign, None).await {
            warn!(%campaign, error = problem, "the trace of a campaign that has ended is still there");
        }
    }

    /// Answers what was there before.
    fn set(&self, campaign: &CampaignId, context: Option<TraceContext>) -> Option<TraceContext> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        match context {
            Some(context) => open.insert(campaign.clone(), context),
            None => open.remove(campaign),
        }
    }
}

async fn next_end(
    live: &mut broadcast::Receiver<std::sync::Arc<firmesh_protocol::api::Event>>,
) -> Result<CampaignView, RecvError> {
    loop {
        match &live.recv().await?.what {
            EventKind::Campaign(view) if view.state.is_terminal() => return Ok(view.clone()),
            _ => {}
        }
    }
}

/// The strategy's name, as it stands in the manifest.
fn strategy(manifest: &CampaignManifest) -> String {
    let written = serde_json::to_value(&manifest.strategy).ok();
    let kind = written.as_ref().and_then(|strategy| strategy["kind"].as_str());
    kind.unwrap_or_default().to_owned()
}

/// Keeps the trace of a campaign in place of the one before, or none.
async fn keep(store: &Store, campaign: &CampaignId, context: Option<&TraceContext>) -> Result<(), String> {
    let said = |error: StoreError| chain(&error);
    let before = store.record::<TraceRecord>(campaign.as_str()).await.map_err(said)?;
    let before = before.map(|kept| kept.version);
    let Some(context) = context else {
        if let Some(version) = before {
            store
                .remove_record::<TraceRecord>(campaign.as_str(), version)
                .await
                .map_err(said)?;
        }
        return Ok(());
    };
    let record = TraceRecord {
        traceparent: context.to_string(),
    };
    match store
        .put_record(campaign.as_str(), before, &record)
        .await
        .map_err(said)?
    {
        Changed::Yes(_) => Ok(()),
        Changed::Meanwhile => Err("somebody else starts it as well".to_owned()),
        Changed::Full => Err(format!(
            "{} traces are open, as many as there may be",
            TraceRecord::COUNT_MAX
        )),
    }
}
