//! Notifications: people and their systems are told what happens to campaigns, devices and nodes.
//!
//! Invariants: a notice becomes durable with the change it tells of; every destination has a task of its own that goes
//! through the notices in order, so nothing waits for a receiver and no receiver for another; what was not settled before the
//! process ended is told again under the same id. Bounded: some dozens of notices per destination in memory, and little of an answer.

mod config;
mod courier;
mod course;
mod gate;
mod notice;
mod outbox;
mod secret;
mod send;
mod silence;
mod template;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use firmesh_protocol::{
    api::{NotificationTested, NotificationView, ReplayRequest, ReplayStarted},
    time::WallTime,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use config::{Destination, MailTls, NotificationConfig, TargetConfig};
pub use courier::CourierError;
pub use gate::{GateWebhook, GateWebhookConfig};
pub use notice::{NoticeKind, Severity};
pub use secret::SecretConfig;
pub(crate) use secret::{Secret, SecretError};

pub(crate) use config::check;
pub(crate) use gate::{GateWebhooks, check_gates};
pub(crate) use notice::{Notice, of_entries, of_write};
pub(crate) use outbox::{asks_before, attempt_before, insert};
pub(crate) use silence::Watch;

use self::{
    courier::{Courier, DeliveryError},
    outbox::NoRandomness,
};
use crate::{
    runtime::Clock,
    store::{Store, StoreError, Write},
    telemetry::{Metrics, chain},
};

/// Old notices are looked for so often.
const TIDY_EVERY: Duration = Duration::from_secs(6 * 3_600);

/// Why somebody's order about a destination was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotifyError {
    #[error("there is no destination {0:?} in the configuration")]
    Unknown(String),
    #[error("say from which event or from which moment: since_number or since, one of the two")]
    SinceWhat,
    #[error("nothing is kept from there on: the newest event is {0}")]
    Nothing(u64),
    #[error("events after {cursor} are not settled yet and will be told anyway: a replay goes back from there")]
    NotBack { cursor: u64 },
    #[error("a test is under way")]
    Busy,
    #[error("the test was not delivered")]
    NotDelivered(#[source] DeliveryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// All destinations.
#[derive(Debug, Clone)]
pub(crate) struct Notifier {
    store: Store,
    clock: Clock,
    couriers: Arc<BTreeMap<String, Arc<Courier>>>,
}

impl Notifier {
    /// Takes up every destination where it stopped.
    pub(crate) async fn new(
        destinations: &[Destination],
        store: Store,
        metrics: &Arc<Metrics>,
        clock: Clock,
    ) -> Result<Self, CourierError> {
        let mut couriers = BTreeMap::new();
        for destination in destinations {
            let courier = Courier::new(destination.clone(), store.clone(), metrics.clone(), clock).await?;
            couriers.insert(destination.name.clone(), Arc::new(courier));
        }
        Ok(Self {
            store,
            clock,
            couriers: Arc::new(couriers),
        })
    }

    /// Starts a task per destination, and one that drops what is old.
    pub(crate) fn spawn(&self, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
        for courier in self.couriers.values() {
            let (courier, cancel) = (courier.clone(), cancel.clone());
            tasks.spawn(async move { courier.run(cancel).await });
        }
        let (notifier, cancel) = (self.clone(), cancel.clone());
        tasks.spawn(async move { notifier.tidy(cancel).await });
    }

    async fn tidy(&self, cancel: CancellationToken) {
        loop {
            let mut told = u64::MAX;
            for courier in self.couriers.values() {
                told = told.min(courier.cursor().await);
            }
            match self.store.drop_old_notices(told, self.clock.wall()).await {
                Ok(0) => {}
                Ok(dropped) => info!(dropped, "old notices are kept no longer"),
                Err(failure) => error!(error = %chain(&failure), "old notices could not be dropped, it is tried again"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(TIDY_EVERY) => {}
            }
        }
    }

    /// Every destination and how far it has come.
    pub(crate) async fn views(&self) -> Result<Vec<NotificationView>, StoreError> {
        let mut views = Vec::new();
        for courier in self.couriers.values() {
            views.push(courier.view().await?);
        }
        Ok(views)
    }

    /// Delivers a test now, beside whatever waits.
    pub(crate) async fn test(&self, name: &str) -> Result<NotificationTested, NotifyError> {
        self.courier(name)?.test().await
    }

    /// Tells a destination again what it was told before.
    pub(crate) async fn replay(&self, name: &str, request: ReplayRequest) -> Result<ReplayStarted, NotifyError> {
        let courier = self.courier(name)?;
        let (number, at) = match (request.since_number, request.since) {
            (Some(number), None) => (number, WallTime::from_unix_seconds(i64::MIN)),
            (None, Some(at)) => (0, at),
            _ => return Err(NotifyError::SinceWhat),
        };
        let newest = self.store.newest_notice().await?;
        let from = self.store.first_notice(number, at).await?;
        let from = from.ok_or(NotifyError::Nothing(newest))?;
        courier.replay(from).await?;
        info!(destination = name, from, newest, "told again");
        Ok(ReplayStarted { from, newest })
    }

    /// A publication was refused: that changes nothing that is stored, so it is told by itself.
    pub(crate) async fn publication_refused(&self, detail: &str) {
        let notice = Notice::new(NoticeKind::PublicationRefused, detail);
        let written = self
            .store
            .commit(vec![Write::Notice(Box::new(notice))], self.clock.wall());
        if let Err(failure) = written.await {
            error!(error = %chain(&failure), "nobody will be told that a publication was refused");
        }
    }

    fn courier(&self, name: &str) -> Result<&Arc<Courier>, NotifyError> {
        let known = self.couriers.get(name);
        known.ok_or_else(|| NotifyError::Unknown(name.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests;
