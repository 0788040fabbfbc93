//! Several coordinators on one database: one leads, the others hand every connection on to it and take over when it is gone.
//!
//! Only the leader has a world, issues permits, talks to notification receivers and appends to the audit log; all of that
//! is made anew from the database by whoever takes the lease, and dropped by whoever loses it. It is taken when it has run out,
//! or as soon as the database has seen the leader's session end. Invariants: who cannot say for certain that the lease is his
//! stops leading; and who was replaced without having noticed yet, from him the database takes nothing ([`crate::store`]).

mod config;
mod face;

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::config::ClusterConfig;
pub(crate) use self::{
    config::ClusterSettings,
    face::{Face, Faces, Own},
};
use crate::{
    authority::Authority,
    store::{Database, Leader, Lifeline, Member, Place, StoreError, Term},
    telemetry::chain,
};

/// Between two looks at who leads, and whether he is still there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Between two tries to reach a database that is gone.
const REACH_EVERY: Duration = Duration::from_secs(1);

/// The database that answers no slower is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What this coordinator knows of who leads.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub(crate) leader: Option<Leader>,
    pub(crate) at: Instant,
    /// Whether it is this one, now.
    pub(crate) is_here: bool,
}

impl Sight {
    pub(crate) fn none() -> Self {
        Self {
            leader: None,
            at: Instant::now(),
            is_here: false,
        }
    }

    fn of(leader: Leader, is_here: bool) -> Self {
        Self {
            leader: Some(leader),
            at: Instant::now(),
            is_here,
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
    // The epoch whose leader was seen to have a lifeline: one without is not missed when it is not there.
    let mut alive = None;
    loop {
        match look(database, member, lease, alive).await {
            Ok((leader, taken)) => {
                let (epoch, name) = (leader.epoch, leader.member.name.clone());
                if leader.is_alive {
                    alive = Some(epoch);
                }
                let is_same = |leader: &Leader| {
                    leader.member.operators == member.operators || leader.member.nodes == member.nodes
                };
                if taken.is_none()
                    && leader.leads
                    && leader.member.name != member.name
                    && is_same(&leader)
                    && followed != Some(epoch)
                {
                    error!(
                        leader = name,
                        operators = member.operators,
                        nodes = member.nodes,
                        "another coordinator says that it is reached where this one is: [cluster] has the addresses of each \
                         coordinator itself, never the balancer's; nothing is handed on to it"
                    );
                }
                sight.send_replace(Sight::of(leader, taken.is_some()));
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

async fn look(
    database: &Database,
    member: &Member,
    lease: Duration,
    alive: Option<u64>,
) -> Result<(Leader, Option<Taken>), StoreError> {
    let looked = async {
        let leader = database.leader().await?;
        let gone = (!leader.is_alive && alive == Some(leader.epoch)).then_some(leader.epoch);
        // A file has one coordinator, which takes over from itself.
        if leader.leads && gone.is_none() && database.is_shared() {
            return Ok((leader, None));
        }
        let until = Instant::now() + lease;
        let Some(term) = database.take_lead(member, lease, gone).await? else {
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
    let mut lifeline = None;
    loop {
        hold(&database, term, &mut lifeline, lease / 4).await;
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

/// Makes sure of the lifeline. Without one the lease is as good: others only learn later that this coordinator is gone.
async fn hold(database: &Database, term: Term, lifeline: &mut Option<Lifeline>, within: Duration) {
    let holding = async {
        if let Some(held) = lifeline
            && held.holds().await
        {
            return Ok(());
        }
        *lifeline = None;
        *lifeline = database.lifeline(term).await?;
        Ok::<_, StoreError>(())
    };
    match tokio::time::timeout(within, holding).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => warn!(error = %chain(&failure), "this coordinator has no lifeline, it is tried again"),
        // In the midst of a question its answer would be taken for that of the next one.
        Err(_) => *lifeline = None,
    }
}
