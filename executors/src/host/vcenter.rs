//! vCenter's maintenance mode over vim25: a session for each act, and nothing believed that was not read back.
//!
//! Invariants: a host of a cluster is told to enter maintenance mode only after the cluster was found to have room for that, one
//! host of a vCenter at a time from here; it counts as aside only without a running machine on it; what vCenter does not say is
//! not known, and counts as nothing else; a session is closed whatever
//! came of it; no word of ours has the password.

mod client;
pub(super) mod import;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use firmesh_executors_core::{ActError, ClusterSeen, HostSeen, OtherHost, may_step_aside_alone};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use self::client::{Client, Properties, Session, Value};
use super::{
    config::VcenterSettings,
    soap::{Ref, argument},
};
use crate::backend::chain;

pub(super) use client::VcenterError;

/// Between two looks at a task.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a task may take longer than it was told to, before nobody waits for it any more.
const GRACE: Duration = Duration::from_secs(30);
/// How long a task that was cancelled may take to be over.
const CANCELLED_WITHIN: Duration = Duration::from_secs(120);

/// Hosts that step aside take turns by their vCenter: what one finds in its cluster must still be so when it acts.
#[derive(Debug, Default)]
pub(super) struct Turns(BTreeMap<String, Arc<Mutex<()>>>);

#[derive(Debug)]
pub(super) struct Vcenter {
    client: Client,
    settings: VcenterSettings,
    turn: Arc<Mutex<()>>,
}

/// A host as its vCenter has it.
#[derive(Debug)]
struct Found {
    host: Ref,
    parent: Ref,
    /// `connected`, `notResponding` or `disconnected`.
    connection: String,
    in_maintenance: bool,
    /// Tasks that have it enter maintenance mode and have not ended.
    entering: Vec<Ref>,
    /// Machines that run on it.
    running: usize,
}

impl Vcenter {
    pub(super) fn new(settings: VcenterSettings, turns: &mut Turns) -> Result<Self, VcenterError> {
        let turn = turns.0.entry(settings.access.url.to_string()).or_default();
        Ok(Self {
            turn: Arc::clone(turn),
            client: Client::new(&settings.access)?,
            settings,
        })
    }

    pub(super) async fn look(&self) -> HostSeen {
        let found = self.within_session(async |session| self.find(session).await).await;
        let unknown = |why: String| HostSeen::Unknown { why };
        match found {
            Err(error) => unknown(chain(&error)),
            Ok(found) if !found.is_connected() => {
                unknown(format!("vCenter has no connection to it: it is {}", found.connection))
            }
            Ok(found) if found.in_maintenance && found.running > 0 => unknown(format!(
                "it is in maintenance mode, and {} machines run on it",
                found.running
            )),
            Ok(found) if found.in_maintenance => HostSeen::Aside,
            Ok(found) if !found.entering.is_empty() => unknown("it is on its way into maintenance mode".to_owned()),
            Ok(_) => HostSeen::InService,
        }
    }

    pub(super) async fn enter(&self) -> Result<(), ActError> {
        let Ok(_turn) = self.turn.try_lock() else {
            return Err(ActError {
                reason: "another host of this vCenter is on its way into maintenance mode".to_owned(),
                retry: true,
            });
        };
        self.within_session(async |session| self.enter_within(session).await)
            .await
            .map_err(act_error)
    }

    pub(super) async fn leave(&self) -> Result<(), ActError> {
        self.within_session(async |session| self.leave_within(session).await)
            .await
            .map_err(act_error)
    }

    async fn enter_within(&self, session: &Session<'_>) -> Result<(), VcenterError> {
        let found = self.find(session).await?;
        if !found.in_maintenance {
            if !found.is_connected() {
                return Err(wait(format!(
                    "vCenter has no connection to it: it is {}",
                    found.connection
                )));
            }
            match self.cluster(session, &found).await? {
                Some(cluster) => cluster.may_step_aside(found.running, self.settings.limits),
                None => may_step_aside_alone(found.running),
            }
            .map_err(VcenterError::Rule)?;
            let task = match found.entering.first() {
                Some(under_way) => under_way.clone(),
                None => {
                    // Machines that are off stay where they are: they cannot be disturbed.
                    let arguments = [
                        argument("timeout", &self.settings.limit_s.to_string()),
                        argument("evacuatePoweredOffVms", "false"),
                    ];
                    session
                        .task("EnterMaintenanceMode_Task", &found.host, &arguments.concat())
                        .await?
                }
            };
            self.ended(session, &task, self.limit()).await?;
        }
        let found = self.find(session).await?;
        if !found.in_maintenance {
            return Err(wait(
                "vCenter says that it has entered maintenance mode, and it is not in it".to_owned(),
            ));
        }
        if found.running > 0 {
            let reason = format!(
                "it is in maintenance mode, but {} machines still run on it",
                found.running
            );
            return Err(VcenterError::Rule(ActError { reason, retry: false }));
        }
        // Somebody else's host may have begun at the same moment.
        let place = self
            .cluster(session, &found)
            .await?
            .map_or(Ok(()), |cluster| cluster.has_place(self.settings.limits));
        if let Err(error) = place {
            self.exit(session, &found).await?;
            return Err(VcenterError::Rule(error));
        }
        Ok(())
    }

    async fn leave_within(&self, session: &Session<'_>) -> Result<(), VcenterError> {
        let found = self.find(session).await?;
        for task in &found.entering {
            session.call("CancelTask", task, "").await?;
            // It ends with an error: it was cancelled. Or well, if it came to its end first.
            match self.ended(session, task, CANCELLED_WITHIN).await {
                Ok(()) | Err(VcenterError::Task { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let found = if found.entering.is_empty() {
            found
        } else {
            self.find(session).await?
        };
        if found.in_maintenance {
            self.exit(session, &found).await?;
        }
        match self.find(session).await?.in_maintenance {
            true => Err(wait(
                "vCenter says that it has left maintenance mode, and it is still in it".to_owned(),
            )),
            false => Ok(()),
        }
    }

    async fn exit(&self, session: &Session<'_>, found: &Found) -> Result<(), VcenterError> {
        let timeout = argument("timeout", &self.settings.limit_s.to_string());
        let task = session.task("ExitMaintenanceMode_Task", &found.host, &timeout).await?;
        self.ended(session, &task, self.limit()).await
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.settings.limit_s.into()) + GRACE
    }

    /// Waits for a task's end.
    async fn ended(&self, session: &Session<'_>, task: &Ref, limit: Duration) -> Result<(), VcenterError> {
        let until = Instant::now() + limit;
        loop {
            let known = session.read_one(task, &["info.state", "info.error"]).await?;
            match known.text("info.state") {
                "success" => return Ok(()),
                "error" => {
                    let words = known.value("info.error").and_then(Value::message).unwrap_or_default();
                    return Err(VcenterError::Task { words });
                }
                state if Instant::now() >= until => {
                    let (state, limit_s) = (state.to_owned(), limit.as_secs());
                    return Err(VcenterError::Slow { state, limit_s });
                }
                _ => sleep(LOOK_EVERY).await,
            }
        }
    }

    async fn find(&self, session: &Session<'_>) -> Result<Found, VcenterError> {
        let host = named_host(session, &self.settings.host).await?;
        let properties = [
            "parent",
            "runtime.connectionState",
            "runtime.inMaintenanceMode",
            "recentTask",
            "vm",
        ];
        let known = session.read_one(&host, &properties).await?;
        let tasks = session
            .read(&known.references("recentTask")?, &["info.state", "info.descriptionId"])
            .await?;
        let mut entering = Vec::new();
        for task in &tasks {
            let is_one = task.said("info.descriptionId")? == "HostSystem.enterMaintenanceMode";
            if is_one && matches!(task.said("info.state")?, "queued" | "running") {
                entering.push(task.object.clone());
            }
        }
        let machines = session.read(&known.references("vm")?, &["runtime.powerState"]).await?;
        let parent = known.references("parent")?.into_iter().next();
        Ok(Found {
            // Without it nobody knows which cluster has to have room.
            parent: parent.ok_or_else(|| VcenterError::NotSaid(format!("where host {} is", host.id)))?,
            connection: known.said("runtime.connectionState")?.to_owned(),
            in_maintenance: known.flag("runtime.inMaintenanceMode")?,
            entering,
            running: running(&machines)?,
            host,
        })
    }

    /// The cluster that the host is in, if it is in one.
    async fn cluster(&self, session: &Session<'_>, found: &Found) -> Result<Option<ClusterSeen>, VcenterError> {
        let cluster = &found.parent;
        if cluster.kind != "ClusterComputeResource" {
            return Ok(None);
        }
        let known = session.read_one(cluster, &["name", "host", "configurationEx"]).await?;
        let (this, others): (Vec<_>, Vec<_>) = known
            .references("host")?
            .into_iter()
            .partition(|host| *host == found.host);
        if this.is_empty() {
            return Err(VcenterError::NotSaid(format!("all hosts of cluster {}", cluster.id)));
        }
        let properties = ["name", "runtime.connectionState", "runtime.inMaintenanceMode"];
        let others = session.read(&others, &properties).await?;
        let others = others.iter().map(|other| {
            Ok(OtherHost {
                name: other.text("name").to_owned(),
                connected: other.text("runtime.connectionState") == "connected",
                aside: other.flag("runtime.inMaintenanceMode")?,
            })
        });
        Ok(Some(ClusterSeen {
            name: known.text("name").to_owned(),
            moves_machines: known.value("configurationEx").is_some_and(Value::moves_machines),
            others: others.collect::<Result<_, VcenterError>>()?,
        }))
    }

    async fn within_session<T>(
        &self,
        act: impl AsyncFnOnce(&Session<'_>) -> Result<T, VcenterError>,
    ) -> Result<T, VcenterError> {
        let session = self.client.login().await?;
        let done = act(&session).await;
        session.close().await;
        done
    }
}

impl Found {
    fn is_connected(&self) -> bool {
        self.connection == "connected"
    }
}

/// The host that a configuration names.
async fn named_host(session: &Session<'_>, named: &str) -> Result<Ref, VcenterError> {
    let index = &session.services.index;
    let answer = if named.starts_with('/') {
        let path = argument("inventoryPath", named.trim_matches('/'));
        session.call("FindByInventoryPath", index, &path).await?
    } else {
        let arguments = [argument("dnsName", named), argument("vmSearch", "false")];
        session.call("FindByDnsName", index, &arguments.concat()).await?
    };
    let found = answer.child("returnval").and_then(super::soap::Element::reference);
    found
        .filter(|found| found.kind == "HostSystem")
        .ok_or_else(|| VcenterError::NoSuchHost(named.to_owned()))
}

/// How many of these machines run. One of which nobody says so may run.
fn running(machines: &[Properties]) -> Result<usize, VcenterError> {
    let mut running = 0;
    for machine in machines {
        match machine.said("runtime.powerState")? {
            "poweredOn" => running += 1,
            "poweredOff" | "suspended" => {}
            other => {
                let what = format!("whether {} runs: {other:?} is no state that we know", machine.object.id);
                return Err(VcenterError::NotSaid(what));
            }
        }
    }
    Ok(running)
}

fn wait(reason: String) -> VcenterError {
    VcenterError::Rule(ActError { reason, retry: true })
}

fn act_error(error: VcenterError) -> ActError {
    ActError {
        reason: chain(&error),
        retry: error.retry(),
    }
}
