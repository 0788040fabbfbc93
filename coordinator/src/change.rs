//! What becomes durable: changes of the world, one after the other, each while the next one is being decided.
//!
//! Invariants: changes become durable in the order in which they were decided. Who asked is answered, permits are given out
//! and watchers are told once theirs is durable, not before. When one cannot be stored, the one decided behind it is
//! dropped as well and the world is read back from the database, so that memory never stays ahead of the disk; when that
//! fails too, the coordinator stops.
//!
//! Looks at the world do not wait for the disk: they are granted while a change becomes durable, and may see it before it
//! is. So a look is for showing, and for refusing early. Whatever must hold is decided by a command, behind the change; what
//! may not be taken back once it was seen (signed metadata) is not looked at before it is durable.

use std::collections::BTreeMap;

use firmesh_protocol::{
    api::{EventKind, SyncResponse},
    ids::NodeId,
    trust::Envelope,
};
use tokio::task::JoinHandle;
use tracing::error;

use crate::{
    publish::Published,
    roster::Changes,
    runtime::{ActionError, RENEW_AGAIN, Reply, Runtime},
    store::{StoreError, StoredPermit, Write},
    sync::{Heard, SyncError},
    telemetry::chain,
    world::World,
};

/// Looks at the world that are granted in a row while something else could be done.
pub(crate) const LOOKS_MAX: usize = 32;

/// What is to become durable together, and is told once it is.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) writes: Vec<Write>,
    pub(crate) events: Vec<EventKind>,
    pub(crate) permits: Vec<StoredPermit>,
}

impl Change {
    /// Whether nothing follows.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.events.is_empty() && self.permits.is_empty()
    }
}

/// Whoever waits for the answer to a heartbeat.
pub(crate) type Waiting = (Heard, Reply<SyncResponse, SyncError>);

/// A change on its way to the disk, and what is told then.
#[derive(Debug)]
pub(crate) struct UnderWay {
    stored: JoinHandle<Result<(), StoreError>>,
    /// Reports among its writes, by node and number.
    reports: BTreeMap<(NodeId, u64), Envelope>,
    events: Vec<EventKind>,
    permits: Vec<StoredPermit>,
    waiting: Vec<Waiting>,
}

impl UnderWay {
    /// A report that is being written: evidence for what is decided meanwhile.
    pub(crate) fn report(&self, node: &NodeId, sequence: u64) -> Option<&Envelope> {
        self.reports.get(&(node.clone(), sequence))
    }

    /// Ends when it is known whether it is durable; never, if there is none.
    pub(crate) async fn stored(under_way: &mut Option<Self>) -> Result<(), StoreError> {
        let Some(Self { stored, .. }) = under_way else {
            return std::future::pending().await;
        };
        match stored.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process is about to end.
                Err(_) => Err(StoreError::written(sqlx::Error::PoolClosed)),
            },
        }
    }
}

impl Runtime {
    /// Makes a change durable, and tells who watches.
    pub(crate) async fn enact(&mut self, change: Change) -> Result<(), ActionError> {
        self.begin(change, Vec::new()).await?;
        Ok(self.settle().await?)
    }

    /// Makes writes durable, or brings the world back to what is.
    pub(crate) async fn commit(&mut self, writes: Vec<Write>) -> Result<(), StoreError> {
        let change = Change {
            writes,
            ..Change::default()
        };
        self.begin(change, Vec::new()).await?;
        self.settle().await
    }

    /// Begins to make a change durable, as soon as the one before is. If that one fails this one is dropped, and those who
    /// wait for it are told so.
    pub(crate) async fn begin(&mut self, change: Change, waiting: Vec<Waiting>) -> Result<(), StoreError> {
        if let Err(failure) = self.settle().await {
            not_stored(waiting);
            return Err(failure);
        }
        let Change {
            mut writes,
            events,
            permits,
        } = change;
        writes.extend(permits.iter().cloned().map(Write::Permit));
        if writes.is_empty() {
            self.tell(events, permits, waiting);
            return Ok(());
        }
        let report = |write: &Write| match write {
            Write::Report(report, envelope) => Some(((report.node.clone(), report.sequence), envelope.clone())),
            _ => None,
        };
        let reports = writes.iter().filter_map(report).collect();
        let (store, wall) = (self.store.clone(), self.clock.wall());
        self.under_way = Some(UnderWay {
            stored: tokio::spawn(async move { store.commit(writes, wall).await }),
            reports,
            events,
            permits,
            waiting,
        });
        Ok(())
    }

    /// Waits until the change that is under way is durable, granting looks meanwhile.
    pub(crate) async fn settle(&mut self) -> Result<(), StoreError> {
        let stored = self.outcome().await;
        self.settled(stored).await
    }

    async fn outcome(&mut self) -> Result<(), StoreError> {
        if self.under_way.is_none() {
            return Ok(());
        }
        loop {
            tokio::select! {
                biased;
                stored = UnderWay::stored(&mut self.under_way) => return stored,
                Some(look) = self.looks.recv(), if self.is_shown => look(&self.world),
            }
        }
    }

    /// It is known whether the change that was under way is durable.
    pub(crate) async fn settled(&mut self, stored: Result<(), StoreError>) -> Result<(), StoreError> {
        let Some(UnderWay {
            events,
            permits,
            waiting,
            ..
        }) = self.under_way.take()
        else {
            return stored;
        };
        let Err(failure) = stored else {
            self.tell(events, permits, waiting);
            return Ok(());
        };
        error!(error = %chain(&failure), "the database refused a change");
        if let StoreError::Deposed = failure {
            // Whoever leads by now has a world of his own.
            self.fatal = Some(StoreError::Deposed.into());
        } else {
            self.take_back().await;
        }
        not_stored(waiting);
        Err(failure)
    }

    /// Tells what is durable. Nothing becomes durable here: a change may wait behind it.
    fn tell(&mut self, events: Vec<EventKind>, permits: Vec<StoredPermit>, waiting: Vec<Waiting>) {
        let wall = self.clock.wall();
        for permit in permits {
            self.metrics.permits.inc();
            self.world.permits.issue(permit, wall);
        }
        waiting.iter().for_each(|(heard, _)| heard.measure(&self.metrics));
        let now = self.clock.now();
        for kind in events {
            if let EventKind::Campaign(view) = &kind {
                self.metrics.fleet.campaign(view, now);
            }
            self.events.send(wall, kind);
        }
        for (heard, reply) in waiting {
            self.grant_looks();
            let answer = self.answer(heard);
            // The asker may have gone away.
            drop(reply.send(Ok(answer)));
        }
    }

    /// Grants looks that wait, in the midst of longer work.
    pub(crate) fn grant_looks(&mut self) {
        for _ in 0..LOOKS_MAX {
            if !self.is_shown {
                return;
            }
            let Ok(look) = self.looks.try_recv() else {
                return;
            };
            look(&self.world);
        }
    }

    /// Drops what was decided and is not on its way to the disk.
    pub(crate) async fn give_up(&mut self) {
        let stored = self.outcome().await;
        if stored.is_err() {
            // That takes the world back.
            let _ = self.settled(stored).await;
            return;
        }
        let under_way = self.under_way.take();
        self.take_back().await;
        if let Some(UnderWay { events, waiting, .. }) = under_way {
            // Its permits have just been read.
            self.tell(events, Vec::new(), waiting);
        }
    }

    /// Brings the world back to what the database has, once nothing is on its way there.
    async fn take_back(&mut self) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let published = std::mem::take(&mut self.world.published);
        match World::restore(&self.store, self.settings.permit_ttl, now, wall).await {
            Ok(world) => {
                // The verified view of what is published comes back with the next signature.
                self.renew_at = self.renew_at.min(now + RENEW_AGAIN);
                let fleet = published.fleet.filter(|_| published.trusted == world.published.trusted);
                let epoch = self.world.epoch;
                // Nodes may have been told of a roster that did not come about: its number is not given to another one.
                let told = self.world.roster_version;
                let roster_version = match told > world.roster_version {
                    true => told + 1,
                    false => world.roster_version,
                };
                self.world = World {
                    epoch,
                    roster_version,
                    roster_changes: Changes::since(roster_version, world.nodes.len()),
                    published: Published {
                        fleet,
                        ..world.published
                    },
                    ..world
                };
            }
            Err(beyond) => self.fatal = Some(beyond),
        }
    }
}

/// Nodes send their heartbeats again.
pub(crate) fn not_stored(waiting: impl IntoIterator<Item = Waiting>) {
    for (_, reply) in waiting {
        drop(reply.send(Err(SyncError::NotStored)));
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use firmesh_protocol::api::NewNode;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::{Config, Overrides},
        enrolment::EnrolError,
        events::Events,
        runtime::{Clock, Command, Coordinator},
        store::testing::{TestDatabase, on_both_databases},
        telemetry::Metrics,
    };

    on_both_databases!(
        a_change_that_the_database_refuses_is_taken_back_and_can_be_made_again,
        what_was_decided_behind_a_change_that_failed_is_dropped_too,
        a_look_does_not_wait_for_the_disk,
        a_look_at_what_is_not_shown_yet_waits,
    );

    async fn parts(database: &TestDatabase) -> (Coordinator, Runtime) {
        let clock = Clock::start();
        let store = database.open(clock.wall()).await.unwrap();
        let settings = Arc::new(Config::default().check(Overrides::default()).unwrap());
        let (events, metrics) = (Arc::new(Events::new(clock.wall())), Metrics::new());
        let url = "https://127.0.0.1:1".to_owned();
        let parts = Runtime::new(store, database.authority(), events, metrics, settings, clock, url);
        parts.await.unwrap()
    }

    fn new_node() -> NewNode {
        NewNode {
            node: "n1".parse().unwrap(),
            path: "eu/s1/r1/n1".parse().unwrap(),
        }
    }

    /// Memory must not run ahead of the disk: what could not be stored has not happened.
    async fn a_change_that_the_database_refuses_is_taken_back_and_can_be_made_again(database: TestDatabase) {
        let (coordinator, runtime) = parts(&database).await;
        let cancel = CancellationToken::new();
        let running = tokio::spawn(runtime.run(cancel.clone()));

        database.refuse_inserts("nodes").await;
        let refused = coordinator.ask(|reply| Command::NewNode(new_node(), reply)).await;
        assert!(
            matches!(refused, Err(EnrolError::Action(ActionError::Store(_)))),
            "{refused:?}"
        );
        assert_eq!(coordinator.read(|world| world.nodes.len()).await.unwrap(), 0);

        database.take_inserts_again("nodes").await;
        coordinator
            .ask(|reply| Command::NewNode(new_node(), reply))
            .await
            .unwrap();
        assert_eq!(coordinator.read(|world| world.nodes.len()).await.unwrap(), 1);
        cancel.cancel();
        running.await.unwrap().unwrap();
    }

    /// It was decided on what has not happened.
    async fn what_was_decided_behind_a_change_that_failed_is_dropped_too(database: TestDatabase) {
        let (_coordinator, mut runtime) = parts(&database).await;
        let change = |write| Change {
            writes: vec![write],
            ..Change::default()
        };
        let versions = async |runtime: &Runtime| runtime.store.load().await.unwrap().roster_version;

        database.refuse_inserts("brakes").await;
        let brake = || {
            let envelope = Envelope::sign("brake", b"{}".to_vec(), [database.authority().online_key()]);
            Write::Brake(firmesh_protocol::ids::Sha256::of(b"brake"), envelope)
        };
        runtime.begin(change(brake()), Vec::new()).await.unwrap();
        runtime.world.roster_version = 7;
        let behind = runtime.begin(change(Write::RosterVersion(7)), Vec::new()).await;
        assert!(matches!(behind, Err(StoreError::Access { .. })), "{behind:?}");
        assert!(runtime.under_way.is_none());
        assert_eq!(versions(&runtime).await, 0);
        assert_eq!(
            runtime.world.roster_version, 8,
            "7 may have been told, and is no number of another roster"
        );

        database.take_inserts_again("brakes").await;
        runtime.begin(change(brake()), Vec::new()).await.unwrap();
        runtime.commit(vec![Write::RosterVersion(7)]).await.unwrap();
        assert_eq!(versions(&runtime).await, 7);
    }

    async fn a_look_at_what_is_not_shown_yet_waits(database: TestDatabase) {
        let (coordinator, mut runtime) = parts(&database).await;
        let mut look = std::pin::pin!(coordinator.read(|world| world.nodes.len()));
        runtime.is_shown = false;
        assert!(futures_util::poll!(&mut look).is_pending());
        runtime.grant_looks();
        assert!(futures_util::poll!(&mut look).is_pending());
        runtime.is_shown = true;
        runtime.grant_looks();
        assert_eq!(look.await.unwrap(), 0);
    }

    async fn a_look_does_not_wait_for_the_disk(database: TestDatabase) {
        let (coordinator, runtime) = parts(&database).await;
        let store = runtime.store.clone();
        let cancel = CancellationToken::new();
        let running = tokio::spawn(runtime.run(cancel.clone()));

        // Whoever writes the same row waits for this transaction.
        let mut other = store.begin().await.unwrap();
        let taken = sqlx::query("INSERT INTO nodes VALUES ('n1', '{}')").execute(&mut *other);
        taken.await.unwrap();
        let asking = coordinator.clone();
        let asked = tokio::spawn(async move { asking.ask(|reply| Command::NewNode(new_node(), reply)).await });
        let look = async || {
            let looked = coordinator.read(|world| world.nodes.len());
            tokio::time::timeout(Duration::from_secs(30), looked)
                .await
                .unwrap()
                .unwrap()
        };
        for _ in 0..100 {
            assert_eq!(look().await, 0);
            tokio::task::yield_now().await;
        }
        assert!(!asked.is_finished());
        other.rollback().await.unwrap();
        asked.await.unwrap().unwrap();
        assert_eq!(look().await, 1);
        cancel.cancel();
        running.await.unwrap().unwrap();
    }
}
