//! What takes notices to one destination, one after the other.
//!
//! Invariant: the cursor is moved in the database after the receiver has answered, never before. So a message may come twice,
//! under the same id, and never not at all.

use std::{sync::Arc, time::Duration};

use firmesh_protocol::{
    api::{NotificationTested, NotificationView},
    time::WallTime,
};
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    NotifyError,
    config::{Destination, Filter},
    course::{Outcome, Progress, RETRY_AFTER_MAX, Verdict},
    notice::{Alert, Message, Notice, NoticeKind},
    outbox::new_id,
    send::{SendError, Sender},
};
use crate::{
    runtime::Clock,
    store::{Store, StoreError},
    telemetry::{Metrics, chain},
};

/// Notices read at once.
const BATCH: u32 = 64;

/// Waiting notices are counted so far.
const BACKLOG_MAX: u64 = 10_000;

/// After the database has refused something.
const STORE_AGAIN: Duration = Duration::from_secs(5);

/// Why a destination cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// What it was told last cannot be read.
    #[error("how far notifications have come cannot be read")]
    Store(#[from] StoreError),
    /// Its settings have become wrong since they were checked.
    #[error("the destination {name:?} of notifications cannot be used: {problem}")]
    Destination {
        /// The destination.
        name: String,
        /// Why.
        problem: String,
    },
}

/// Why a test did not arrive.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DeliveryError(String);

#[derive(Debug)]
struct State {
    progress: Progress,
    /// Counts replays: what was under way during one does not move the cursor any more.
    replays: u64,
}

#[derive(Debug)]
pub(super) struct Courier {
    destination: Destination,
    sender: Sender,
    store: Store,
    metrics: Arc<Metrics>,
    clock: Clock,
    state: Mutex<State>,
    poke: Notify,
    testing: Semaphore,
}

/// When to look again.
enum Next {
    AtOnce,
    After(Duration),
    /// When something new was stored.
    News,
}

impl Courier {
    pub(super) async fn new(
        destination: Destination,
        store: Store,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Result<Self, CourierError> {
        let sender = Sender::new(&destination.to).map_err(|error: SendError| CourierError::Destination {
            name: destination.name.clone(),
            problem: chain(&error),
        })?;
        let mut progress = store.progress(&destination.name).await?;
        progress.begin(clock.wall());
        metrics.will_notify(&destination.name);
        Ok(Self {
            destination,
            sender,
            store,
            metrics,
            clock,
            state: Mutex::new(State { progress, replays: 0 }),
            poke: Notify::new(),
            testing: Semaphore::new(1),
        })
    }

    /// Delivers until cancelled.
    pub(super) async fn run(&self, cancel: CancellationToken) {
        let mut news = self.store.notices();
        loop {
            // Marked as seen before looking, so that what comes in between is not missed.
            news.borrow_and_update();
            let step = tokio::select! {
                () = cancel.cancelled() => return,
                step = self.step() => step,
            };
            let (wait, is_idle) = match step {
                Ok(Next::AtOnce) => continue,
                Ok(Next::After(wait)) => (Some(wait), false),
                Ok(Next::News) => (None, true),
                Err(failure) => {
                    let name = &self.destination.name;
                    error!(destination = name, error = %chain(&failure), "notifications wait for the database");
                    (Some(STORE_AGAIN), false)
                }
            };
            let slept = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = slept => {}
                () = self.poke.notified() => {}
                // An error means that the store is gone, and with it the coordinator: the token comes next.
                Ok(()) = news.changed(), if is_idle => {}
            }
        }
    }

    /// Settles the next notice for this destination, or says when to look again.
    async fn step(&self) -> Result<Next, StoreError> {
        let (cursor, next_attempt, replays) = {
            let state = self.state.lock().await;
            (state.progress.cursor, state.progress.next_attempt, state.replays)
        };
        let batch = self.store.notices_after(cursor, BATCH).await?;
        let Some(last) = batch.last().map(|message| message.number) else {
            self.metrics.waiting(&self.destination.name, 0);
            return Ok(Next::News);
        };
        let is_wanted = |message: &&Message| {
            self.destination
                .filter
                .takes(&message.notice, self.destination.to.is_alerting())
        };
        let Some(message) = batch.iter().find(is_wanted) else {
            self.skip(last, replays).await?;
            return Ok(Next::AtOnce);
        };
        let newest = self.store.newest_notice().await?;
        self.metrics
            .waiting(&self.destination.name, newest.saturating_sub(message.number) + 1);
        let now = self.clock.wall();
        let give_up_after = self.destination.give_up_after;
        {
            let mut state = self.state.lock().await;
            if state.replays == replays && state.progress.is_expired(message.at, now, give_up_after) {
                let mut progress = state.progress.clone();
                progress.give_up(message.number);
                self.store.put_progress(&self.destination.name, &progress).await?;
                state.progress = progress;
                self.told(message, Verdict::GivenUp, &state.progress);
                return Ok(Next::AtOnce);
            }
        }
        // One further off than any wait was reckoned with a clock that has been put back since.
        let is_ahead = |at: &WallTime| *at > now && *at <= now + RETRY_AFTER_MAX;
        if let Some(at) = next_attempt.filter(is_ahead) {
            let left = at.unix_seconds().saturating_sub(now.unix_seconds()).max(1);
            return Ok(Next::After(Duration::from_secs(left.cast_unsigned())));
        }
        let outcome = self.sender.attempt(message, now).await;
        let mut state = self.state.lock().await;
        if state.replays != replays {
            return Ok(Next::AtOnce);
        }
        let now = self.clock.wall();
        let order = (message.number, message.at);
        let mut progress = state.progress.clone();
        let verdict = progress.settle(order, outcome, now, give_up_after, fastrand::u32(..));
        // Memory must not run ahead of the disk: a delivery that cannot be noted is made again.
        self.store.put_progress(&self.destination.name, &progress).await?;
        state.progress = progress;
        self.told(message, verdict, &state.progress);
        Ok(Next::AtOnce)
    }

    /// Notices that are not for this destination.
    async fn skip(&self, number: u64, replays: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        if state.replays == replays {
            let mut progress = state.progress.clone();
            progress.cursor = progress.cursor.max(number);
            self.store.put_progress(&self.destination.name, &progress).await?;
            state.progress = progress;
        }
        Ok(())
    }

    fn told(&self, message: &Message, verdict: Verdict, progress: &Progress) {
        let (name, number, id) = (&self.destination.name, message.number, &message.id);
        let event = message.notice.kind.as_str();
        let reason = progress.last_error.as_ref().map_or("", |error| error.reason.as_str());
        let outcome = match verdict {
            Verdict::Delivered => {
                debug!(destination = name, number, id, event, "delivered");
                "delivered"
            }
            Verdict::Refused => {
                error!(
                    destination = name,
                    number,
                    id,
                    event,
                    reason,
                    "a notification was refused for good: mend the destination, then `firmesh notification replay`"
                );
                "refused"
            }
            Verdict::GivenUp => {
                error!(
                    destination = name,
                    number,
                    id,
                    event,
                    reason,
                    "a notification was given up, nobody took it: `firmesh notification replay` sends it again"
                );
                "given_up"
            }
            Verdict::Again(next) => {
                warn!(destination = name, number, id, event, reason, %next, "a notification is tried again later");
                "failed"
            }
        };
        self.metrics.notified(name, outcome);
    }

    pub(super) async fn cursor(&self) -> u64 {
        self.state.lock().await.progress.cursor
    }

    pub(super) async fn view(&self) -> Result<NotificationView, StoreError> {
        let progress = self.state.lock().await.progress.clone();
        let newest = self.store.newest_notice().await?;
        Ok(NotificationView {
            name: self.destination.name.clone(),
            kind: self.destination.to.kind().to_owned(),
            target: self.destination.to.place(),
            backlog: self.backlog(progress.cursor).await?,
            cursor: progress.cursor,
            newest,
            last_delivered: progress.last_delivered,
            last_error: progress.last_error,
            failing_since: progress.failing_since,
            next_attempt: progress.next_attempt,
            delivered: progress.delivered,
            refused: progress.refused,
            given_up: progress.given_up,
        })
    }

    async fn backlog(&self, mut cursor: u64) -> Result<u64, StoreError> {
        let mut count = 0;
        let mut looked_at = 0;
        while looked_at < BACKLOG_MAX {
            let batch = self.store.notices_after(cursor, BATCH).await?;
            let Some(last) = batch.last() else { break };
            cursor = last.number;
            looked_at += batch.len() as u64;
            let is_wanted = |message: &&Message| {
                self.destination
                    .filter
                    .takes(&message.notice, self.destination.to.is_alerting())
            };
            count += batch.iter().filter(is_wanted).count() as u64;
        }
        Ok(count)
    }

    /// Delivers a test, once.
    pub(super) async fn test(&self) -> Result<NotificationTested, NotifyError> {
        let _permit = self.testing.try_acquire().map_err(|_| NotifyError::Busy)?;
        let now = self.clock.wall();
        let reason = "an operator asked for it; there is nothing to do";
        let message = Message {
            id: new_id()?,
            number: 0,
            at: now,
            source: self.store.fleet(),
            notice: Notice::new(NoticeKind::Test, reason),
        };
        match self.sender.attempt(&message, now).await {
            Outcome::Delivered => Ok(NotificationTested { id: message.id }),
            Outcome::Refused(why) | Outcome::Failed { why, .. } => Err(NotifyError::NotDelivered(DeliveryError(why))),
        }
    }

    /// Goes back to `number`.
    pub(super) async fn replay(&self, number: u64) -> Result<(), NotifyError> {
        let mut state = self.state.lock().await;
        if number > state.progress.cursor {
            return Err(NotifyError::NotBack {
                cursor: state.progress.cursor,
            });
        }
        let mut progress = state.progress.clone();
        progress.replay(number);
        self.store.put_progress(&self.destination.name, &progress).await?;
        state.progress = progress;
        state.replays += 1;
        drop(state);
        self.poke.notify_one();
        info!(destination = self.destination.name, number, "a replay begins");
        Ok(())
    }
}

impl Filter {
    /// Whether a notice goes to the destination. One that takes alerts gets only what opens or closes one; what closes one it
    /// gets in any case, because it may have got what opened it.
    fn takes(&self, notice: &Notice, is_alerting: bool) -> bool {
        let of_campaign = notice
            .campaign
            .as_ref()
            .is_none_or(|id| self.campaigns.is_empty() || self.campaigns.contains(id));
        let is_picked = (self.events.is_empty() || self.events.contains(&notice.kind))
            && notice.kind.severity() >= self.min_severity;
        match (is_alerting, notice.alert()) {
            (true, None) => false,
            (true, Some(Alert::Resolve(_))) => of_campaign,
            _ => of_campaign && is_picked,
        }
    }
}
