//! Several coordinators on one database: one leads, the others hand every connection on to it and take over when it is gone.
//!
//! Only the leader has a world, issues permits, talks to notification receivers and appends to the audit log; all of that
//! is made anew from the database by whoever takes the lease, and dropped by whoever loses it. Invariants: who cannot say for
//! certain that the lease is his stops leading, before anybody else may take it where clocks run equally fast; and where
//! they do not, the database takes nothing from him ([`crate::store`]).

mod config;
mod face;

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::config::ClusterConfig;
pub(crate) use self::{
    config::ClusterSettings,
    face::{Face, Faces},
};
use crate::{
    authority::Authority,
    store::{Database, Leader, Member, Place, StoreError, Term},
    telemetry::chain,
};

/// Between two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two tries to reach a database that is gone.
const REACH_EVERY: Duration = Duration::from_secs(1);

/// The database that answers no slower is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What this coordinator knows of who leads.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub(crate) leader: Option<Leader>,
    pub(crate) at: Instant,
}

impl Sight {
    pub(crate) fn none() -> Self {
        Self {
            leader: None,
            at: Instant::now(),
        }
    }

    fn of(leader: Leader) -> Self {
        Self {
            leader: Some(leader),
            at: Instant::now(),
        }
    }

    fn epoch(&self) -> u64 {
        self.leader.as_ref().map_or(0, |leader| leader.epoch)
    }
}

/// A term, and until when it is certain to last without more being done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) term: Term,
    until: Instant,
}

/// Opens the database, of which this coordinator must have the keys; a server is waited for until `within` is over, or for ever
/// if there is no such time. `None` if cancelled.
pub(crate) async fn reach(
    place: &Place,
    authority: &Authority,
    within: Option<Duration>,
    cancel: &CancellationToken,
) -> Result<Option<Database>, StoreError> {
    let begun = Instant::now();
    loop {
        let connected = tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            connected = open(place, authority) => connected,
        };
        match connected {
            Ok(database) => return Ok(Some(database)),
            Err(failure) if !failure.is_passing() => return Err(failure),
            Err(failure) if within.is_some_and(|within| begun.elapsed() >= within) => return Err(failure),
            Err(failure) => warn!(error = %chain(&failure), "the database is not there yet, it is tried again"),
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(REACH_EVERY) => {}
        }
    }
}

async fn open(place: &Place, authority: &Authority) -> Result<Database, StoreError> {
    let database = Database::connect(place).await?;
    database.check_secrets(authority).await?;
    Ok(database)
}

/// Waits until this coordinator leads. `None` if cancelled.
pub(crate) async fn await_lead(
    database: &Database,
    member: &Member,
    lease: Duration,
    sight: &watch::Sender<Sight>,
    cancel: &CancellationToken,
) -> Result<Option<Taken>, StoreError> {
    let mut followed = None;
    loop {
        match look(database, member, lease).await {
            Ok((leader, taken)) => {
                let (epoch, name) = (leader.epoch, leader.member.name.clone());
                sight.send_replace(Sight::of(leader));
                if taken.is_some() {
                    info!(epoch, "this coordinator leads");
                    return Ok(taken);
                }
                if followed != Some(epoch) {
                    info!(epoch, leader = name, "another coordinator leads");
                    followed = Some(epoch);
                }
            }
            Err(failure) if !(database.is_shared() && failure.is_passing()) => return Err(failure),
            Err(failure) => warn!(error = %chain(&failure), "who leads cannot be read, it is tried again"),
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn look(database: &Database, member: &Member, lease: Duration) -> Result<(Leader, Option<Taken>), StoreError> {
    let looked = async {
        let leader = database.leader().await?;
        // A file has one coordinator, which takes over from itself.
        if leader.leads && database.is_shared() {
            return Ok((leader, None));
        }
        let until = Instant::now() + lease;
        let Some(term) = database.take_lead(member, lease).await? else {
            return Ok((leader, None));
        };
        Ok((database.leader().await?, Some(Taken { term, until })))
    };
    let answered = tokio::time::timeout(ANSWER_WITHIN, looked).await;
    answered.map_err(|_| StoreError::read(sqlx::Error::PoolTimedOut))?
}

/// Has the lease last, and ends when it is lost or may be.
pub(crate) async fn keep_lead(database: Database, taken: Taken, lease: Duration) {
    let Taken { term, mut until } = taken;
    loop {
        tokio::time::sleep(lease / 4).await;
        let asked = Instant::now();
        if asked >= until {
            warn!("the lease has run out, this coordinator stood still or was cut off: it leads no more");
            return;
        }
        match tokio::time::timeout_at(until.into(), database.keep_lead(term, lease)).await {
            Ok(Ok(true)) => until = asked + lease,
            Ok(Ok(false)) => {
                warn!("another coordinator leads: this one stood still or was cut off for a while");
                return;
            }
            Ok(Err(failure)) => warn!(error = %chain(&failure), "the lease could not be prolonged, it is tried again"),
            Err(_) => {
                error!("the database does not answer: this coordinator leads no more");
                return;
            }
        }
    }
}
