//! One BMC and the component behind it, act by act.

use std::{path::PathBuf, sync::Arc, time::Duration};

use firmesh_executors_core::{ActError, Image, Observed, Rung, Seen, Slot, Staged, TaskSeen, TaskState};
use firmesh_protocol::{health::HealthSample, ids::Component};
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::Instant};

use super::{
    client::{Client, ClientError},
    discovery::{Map, is_bmc, version_beside},
    task,
    transcript::{Act, Replay, Transcript},
    wire::{Action, Collection, Inventory, Manager, System, TaskService, UpdateService},
};
use crate::{
    backend::{DeviceBackend, chain},
    config::RedfishSettings,
    image::ImageSource,
};

/// Tasks looked at when we do not know which one is ours, from either end of the list.
const TASKS_MAX: usize = 4;
/// The longest that a task is left alone because it asks for it.
const LEFT_ALONE_MAX: Duration = Duration::from_secs(60);

/// A device behind Redfish.
#[derive(Debug)]
pub struct RedfishBackend {
    pub(super) client: Client,
    pub(super) component: Component,
    pub(super) images: Arc<dyn ImageSource>,
    pub(super) map: Mutex<Option<Arc<Map>>>,
    last_look: Mutex<Option<TaskLook>>,
}

/// What a task has shown that is not asked again now.
#[derive(Debug)]
struct TaskLook {
    task: String,
    seen: TaskSeen,
    /// Never, once it has ended: BMCs forget their tasks, and give their names to others.
    ask_again: Option<Instant>,
}

impl RedfishBackend {
    /// A backend for the BMC of `settings`. Sends nothing.
    pub fn new(
        settings: RedfishSettings,
        component: Component,
        images: Arc<dyn ImageSource>,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            client: Client::new(settings)?,
            component,
            images,
            map: Mutex::new(None),
            last_look: Mutex::new(None),
        })
    }

    /// A backend that a transcript answers instead of a BMC.
    ///
    /// # Errors
    /// If the transcript's dialect is not known here.
    pub fn replay(transcript: &Transcript, images: Arc<dyn ImageSource>) -> Result<Self, ClientError> {
        let settings = transcript.settings().settings();
        let settings = settings.map_err(|problem| ClientError::Setup(problem.into()))?;
        Ok(Self {
            client: Client::replaying(settings, Replay::new(transcript))?,
            component: transcript.component().clone(),
            images,
            map: Mutex::new(None),
            last_look: Mutex::new(None),
        })
    }

    /// Of a transcript that answers, how many orders it has and how many of them were given.
    #[must_use]
    pub fn orders_replayed(&self) -> Option<(usize, usize)> {
        self.client.orders()
    }

    /// An attempt is over, and its transcript with it.
    pub(crate) fn over(&self) {
        if let Some(recorder) = self.client.recorder() {
            recorder.over();
        }
    }

    /// The transcript of the attempt that was over last.
    pub(crate) fn transcript(&self) -> Option<PathBuf> {
        self.client.recorder()?.file()
    }

    pub(super) fn note(&self, act: impl FnOnce() -> Act) {
        if let Some(recorder) = self.client.recorder() {
            recorder.act(act());
        }
    }

    /// Ends the session with the BMC, which allows only a few.
    pub async fn close(&self) {
        self.client.close().await;
    }

    pub(super) async fn map(&self) -> Result<Arc<Map>, ClientError> {
        let mut map = self.map.lock().await;
        if let Some(map) = &*map {
            return Ok(Arc::clone(map));
        }
        let found = Arc::new(self.client.discover(&self.component).await?);
        *map = Some(Arc::clone(&found));
        Ok(found)
    }

    async fn see(&self, task: Option<&str>) -> Result<Seen, ClientError> {
        let map = self.map().await?;
        let read = &self.client;
        // First: a version that was read before the task's end would say that nothing has come of it.
        let task = match task {
            Some(task) => Some(self.see_task(task).await?),
            None => self.see_any_task(&map).await?,
        };
        let system: System = read.read_or_default("read the system", map.system.as_ref()).await?;
        let manager: Manager = read.read_or_default("read the manager", map.manager.as_ref()).await?;
        let service: UpdateService = read
            .read_or_default("read the update service", map.update_service.as_ref())
            .await?;
        let entry: Inventory = read
            .read_or_default("read the firmware inventory", map.entry.as_ref())
            .await?;
        let (vendor, model) = self.identity(&map, &system).await?;
        let version = entry.version.filter(|version| !version.is_empty());
        let version = version.or_else(|| version_beside(&self.component, &system, &manager));
        let clock_off_s = manager.date_time.as_deref().and_then(clock_off_s);
        let (ready, boot_id, resets) = self.state(&map, &system, &manager);
        Ok(Seen {
            vendor,
            model,
            component: self.component.clone(),
            version,
            ready,
            boot_id,
            staged: Staged::Hidden,
            task,
            slots: None,
            image_bytes_max: service.image_bytes_max(),
            resets,
            // Firmware inventories tell nothing of it: what a gate requires stays unknown here, and holds.
            health: HealthSample::default(),
            clock_off_s,
        })
    }

    /// Who makes the device and its model; empty if nobody says.
    pub(super) async fn identity(&self, map: &Map, system: &System) -> Result<(String, String), ClientError> {
        let (mut vendor, mut model) = (system.manufacturer.clone(), system.model.clone());
        if vendor.is_none() || model.is_none() {
            let operation = "read the chassis";
            let chassis: System = self.client.read_or_default(operation, map.chassis.as_ref()).await?;
            vendor = vendor.or(chassis.manufacturer);
            model = model.or(chassis.model);
        }
        let settings = self.client.settings();
        let vendors = [vendor, map.vendor.clone(), settings.vendor.clone()];
        let vendor = vendors.into_iter().flatten().next();
        let model = model.or_else(|| settings.model.clone());
        Ok((vendor.unwrap_or_default(), model.unwrap_or_default()))
    }

    /// Whether what a reset restarts is up, which start it is, and the resets there are.
    pub(super) fn state(&self, map: &Map, system: &System, manager: &Manager) -> (bool, Option<String>, Vec<Rung>) {
        let wanted = self.rungs(map);
        let is_managers = wanted
            .first()
            .map_or_else(|| is_bmc(&self.component), |&rung| rung == Rung::Bmc);
        let ((bmc_ready, bmc_start, bmc), (ready, start, host)) = (manager_state(manager), system_state(system));
        let offered = bmc
            .into_iter()
            .chain(host)
            .filter(|rung| wanted.contains(rung))
            .collect();
        match is_managers {
            true => (bmc_ready, bmc_start, offered),
            false => (ready, start, offered),
        }
    }

    /// The resets that start a new version of the component.
    pub(super) fn rungs(&self, map: &Map) -> Vec<Rung> {
        let mut rungs = match map.dialect.part(&self.component).and_then(|part| part.reset.as_ref()) {
            Some(resets) => resets.clone(),
            None if is_bmc(&self.component) => vec![Rung::Bmc],
            None => vec![Rung::Warm, Rung::Cold],
        };
        // What starts by itself needs no power taken away.
        if self.client.settings().ac_reset && !rungs.is_empty() && !rungs.contains(&Rung::Ac) {
            rungs.push(Rung::Ac);
        }
        rungs
    }

    /// How a task goes, or what it said last if it is not to be asked.
    pub(super) async fn see_task(&self, link: &str) -> Result<TaskSeen, ClientError> {
        let map = self.map().await?;
        let mut last = self.last_look.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.task == link)
            && look.ask_again.is_none_or(|when| Instant::now() < when)
        {
            return Ok(look.seen.clone());
        }
        let answer = self.client.get_raw("read the update task", link).await;
        let asked = answer.as_ref().ok().and_then(|answer| answer.retry_after);
        let seen = match (&map.dialect.progress, answer) {
            (Some(words), Ok(answer)) if map.update_service.as_deref() == Some(link) => {
                let body: Value = answer.json("read the update service")?;
                let seen = task::of_body(&map.dialect, words, &body);
                seen.unwrap_or_else(|| task::told(TaskState::Gone))
            }
            (_, answer) => task::of_answer(&map.dialect, answer)?,
        };
        let ask_again = match seen.state {
            TaskState::Completed | TaskState::Failed => None,
            TaskState::Active | TaskState::AwaitsReset | TaskState::Gone => {
                Some(Instant::now() + asked.unwrap_or_default().min(LEFT_ALONE_MAX))
            }
        };
        let seen = TaskSeen {
            name: Some(link.to_owned()),
            ..seen
        };
        *last = Some(TaskLook {
            task: link.to_owned(),
            seen: seen.clone(),
            ask_again,
        });
        Ok(seen)
    }

    /// A task of this name is another one from here on.
    pub(super) async fn forget_task(&self) {
        *self.last_look.lock().await = None;
    }

    /// An update that there is a task of, somebody else's or ours from before a crash: one that is not over comes first, then the
    /// newest.
    pub(super) async fn see_any_task(&self, map: &Map) -> Result<Option<TaskSeen>, ClientError> {
        if let (Some(words), Some(link)) = (&map.dialect.progress, &map.update_service) {
            let body: Value = self.client.get("read the update service", link).await?;
            let seen = task::of_body(&map.dialect, words, &body);
            if let Some(seen) = seen.filter(|seen| seen.state == TaskState::Active) {
                let name = Some(link.clone());
                return Ok(Some(TaskSeen { name, ..seen }));
            }
        }
        let Some(link) = &map.tasks else { return Ok(None) };
        let service: TaskService = match self.client.get("read the task service", link).await {
            Err(error) if error.is_status(&[404]) => return Ok(None),
            other => other?,
        };
        let Some(tasks) = service.tasks else { return Ok(None) };
        let list: Collection = match self.client.get("list the tasks", &tasks.id).await {
            Err(error) if error.is_status(&[404]) => return Ok(None),
            other => other?,
        };
        let count = list.members.len();
        let at_an_end = |at: &usize| *at < TASKS_MAX || *at + TASKS_MAX >= count;
        let mut first: Option<((bool, Option<String>), TaskSeen)> = None;
        for at in (0..count).filter(at_an_end) {
            let link = &list.members[at].id;
            let body: Value = match self.client.get("read a task", link).await {
                Err(error) if error.is_status(&[404]) => continue,
                other => other?,
            };
            let words = &map.dialect.task;
            let Some(seen) = task::of_body(&map.dialect, words, &body).filter(|_| task::is_update(words, &body)) else {
                continue;
            };
            let is_open = matches!(seen.state, TaskState::Active | TaskState::AwaitsReset);
            let began = body.get("StartTime").and_then(Value::as_str).map(str::to_owned);
            // Of those that do not tell, or tell the same, the last one.
            let rank = (is_open, began);
            if first.as_ref().is_none_or(|(before, _)| rank >= *before) {
                let name = Some(self.client.path_of(link));
                first = Some((rank, TaskSeen { name, ..seen }));
            }
        }
        Ok(first.map(|(_, seen)| seen))
    }

    pub(super) async fn restart(&self, rung: Rung) -> Result<(), ClientError> {
        let map = self.map().await?;
        let rungs = self.rungs(&map);
        // A stalled task is ended by a reset of the manager, whatever the component.
        if rungs.is_empty() && rung != Rung::Bmc {
            tracing::debug!(component = %self.component, "the new version starts by itself");
            return Ok(());
        }
        let mut is_off = false;
        let (operation, action) = match rung {
            Rung::Bmc => {
                let operation = "read the manager";
                let manager: Manager = self.client.read_or_default(operation, map.manager.as_ref()).await?;
                ("reset the manager", manager.actions.reset)
            }
            // No component's update is worth a restart of what it is no part of.
            Rung::Warm | Rung::Cold | Rung::Ac if !rungs.contains(&rung) => ("reset the system", None),
            Rung::Warm | Rung::Cold | Rung::Ac => {
                let system: System = self
                    .client
                    .read_or_default("read the system", map.system.as_ref())
                    .await?;
                is_off = system.power_state.as_deref() == Some("Off");
                ("reset the system", system.actions.reset)
            }
        };
        let mut action = action.unwrap_or_default();
        self.complete(&mut action).await?;
        let kind = if is_off { power_on(&action) } else { None };
        let Some(kind) = kind.or_else(|| reset_type(&action, rung)) else {
            let url = self.client.settings().url.clone();
            let what = format!("{rung:?} reset of the {}", self.component);
            return Err(ClientError::NotOffered { operation, url, what });
        };
        let body = json!({ "ResetType": kind });
        self.client.post(operation, &action.target, &body).await.map(drop)
    }
}

impl DeviceBackend for RedfishBackend {
    async fn observe(&self, task: Option<&str>) -> Observed {
        let mut seen = self.see(task).await;
        if seen.as_ref().is_err_and(|error| error.is_status(&[404, 410])) {
            // Things have moved: some name what they list by its version.
            *self.map.lock().await = None;
            seen = self.see(task).await;
        }
        match seen {
            Ok(seen) => {
                if seen.version.is_none() {
                    // Inventories fill up after everything else: the next look goes all the way again.
                    *self.map.lock().await = None;
                }
                Observed::Answering(Box::new(seen))
            }
            Err(error) => {
                *self.map.lock().await = None;
                Observed::Silent { why: chain(&error) }
            }
        }
    }

    async fn stage(&self, image: &Image, _slot: Option<Slot>) -> Result<Option<String>, ActError> {
        self.note(|| Act::Stage {
            image: Box::new(image.clone()),
        });
        self.stage_image(image).await
    }

    async fn activate(&self, _slot: Option<Slot>) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn reset(&self, rung: Rung) -> Result<(), ActError> {
        self.note(|| Act::Reset { rung });
        self.restart(rung).await.map_err(|error| ActError {
            reason: chain(&error),
            retry: error.retry(),
        })
    }

    async fn confirm(&self) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn abort(&self, task: Option<&str>) -> Result<(), ActError> {
        self.note(|| Act::Abort);
        let is_service = |link: &str, map: &Map| map.update_service.as_deref() == Some(link);
        let acted = match (task, self.map().await) {
            (_, Err(error)) => Err(error),
            // The service tells of the update, and is none that could be deleted.
            (Some(task), Ok(map)) if !is_service(task, &map) => {
                self.forget_task().await;
                self.client.delete("cancel the update task", task).await.map(drop)
            }
            _ => {
                return Err(ActError {
                    reason: "there is no task to cancel".to_owned(),
                    retry: false,
                });
            }
        };
        acted.map_err(|error| ActError {
            reason: chain(&error),
            retry: error.retry(),
        })
    }
}

fn manager_state(manager: &Manager) -> (bool, Option<String>, Vec<Rung>) {
    let starting = manager.status.state.as_deref().is_some_and(|state| state != "Enabled");
    let action = manager.actions.reset.as_ref();
    let offered = action.and_then(|action| reset_type(action, Rung::Bmc));
    let boot_id = manager.last_reset_time.clone();
    (!starting, boot_id, offered.map(|_kind| Rung::Bmc).into_iter().collect())
}

fn system_state(system: &System) -> (bool, Option<String>, Vec<Rung>) {
    let powered = system.power_state.as_deref().is_none_or(|state| state == "On");
    let booted = match system.boot_progress.last_state.as_deref() {
        None | Some("None" | "OSRunning" | "OSBootStarted") => true,
        Some(_) => false,
    };
    let resets = [Rung::Warm, Rung::Cold, Rung::Ac].into_iter().filter(|&rung| {
        let action = system.actions.reset.as_ref();
        action.is_some_and(|action| reset_type(action, rung).is_some())
    });
    (powered && booted, system.last_reset_time.clone(), resets.collect())
}

/// The reset of a rung, by the names the BMC offers. One that lists no names takes those the specification requires.
pub(super) fn reset_type(action: &Action, rung: Rung) -> Option<&'static str> {
    let order: &[&str] = match rung {
        Rung::Bmc | Rung::Warm => &["GracefulRestart", "ForceRestart"],
        Rung::Cold => &["PowerCycle", "ForceRestart"],
        Rung::Ac => &["FullPowerCycle"],
    };
    let offered = |name: &&&str| action.reset_types.iter().any(|offered| offered == **name);
    match (action.target.is_empty(), action.reset_types.is_empty()) {
        (true, _) => None,
        (false, true) => Some("ForceRestart").filter(|_| rung != Rung::Ac),
        (false, false) => order.iter().find(offered).copied(),
    }
}

/// How far a BMC's clock is ahead of ours.
pub(super) fn clock_off_s(date_time: &str) -> Option<i64> {
    let time: jiff::Timestamp = date_time.parse().ok()?;
    Some(time.as_second() - jiff::Timestamp::now().as_second())
}

/// What starts a system that is off: some stay so after a restart, and refuse to be restarted then.
fn power_on(action: &Action) -> Option<&'static str> {
    let is_offered = action.reset_types.is_empty() || action.reset_types.iter().any(|offered| offered == "On");
    (!action.target.is_empty() && is_offered).then_some("On")
}

pub(super) fn no_slots() -> ActError {
    ActError {
        reason: "a Redfish device has no slots".to_owned(),
        retry: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::{
        super::{
            dialect::{Dialects, Speaker},
            wire::{Said, said},
        },
        *,
    };

    /// JSON with the names and words a BMC uses, put together as no BMC would.
    fn answer() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec![
            "On",
            "Off",
            "Enabled",
            "OSRunning",
            "Completed",
            "Exception",
            "Running",
            "GracefulRestart",
            "ForceRestart",
            "/redfish/v1/TaskService/Tasks/1",
            "",
            "\u{0}\u{202e}",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(|number| json!(number)),
            word.prop_map(Value::from),
            ".{0,400}".prop_map(Value::from),
        ];
        let name = prop::sample::select(vec![
            "@odata.id",
            "Members",
            "Actions",
            "#UpdateService.SimpleUpdate",
            "#Manager.Reset",
            "#ComputerSystem.Reset",
            "ResetType@Redfish.AllowableValues",
            "target",
            "Status",
            "State",
            "PowerState",
            "BootProgress",
            "LastState",
            "LastResetTime",
            "TaskState",
            "PercentComplete",
            "Messages",
            "Message",
            "Oem",
            "Hpe",
            "Dell",
            "JobState",
            "FlashProgressPercent",
            "TaskStatus",
            "HttpPushUriOptions",
            "MessageId",
            "Payload",
            "TargetUri",
            "error",
            "@Message.ExtendedInfo",
            "MaxImageSizeBytes",
            "MultipartHttpPushUri",
            "FirmwareInventory",
            "Version",
        ]);
        leaf.prop_recursive(5, 48, 6, move |inner| {
            let fields = prop::collection::vec((name.clone(), inner.clone()), 0..6);
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(Value::from),
                fields.prop_map(|fields| {
                    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
                    fields.collect::<Map<_, _>>().into()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_a_bmc_answers_is_read_or_refused_and_its_words_are_bounded(
            answer in answer(),
            dialect in prop::sample::select(vec!["generic", "dell", "hpe", "supermicro"]),
        ) {
            let body = serde_json::to_vec(&answer).unwrap();
            let dialects = Dialects::new(&[], Some(dialect.to_owned())).unwrap();
            let dialect = dialects.of(&Speaker::default());
            for words in [&dialect.task].into_iter().chain(&dialect.progress) {
                if let Some(seen) = task::of_body(dialect, words, &answer) {
                    prop_assert!(seen.percent.is_none_or(|percent| percent <= 100));
                    prop_assert!(seen.message.chars().count() <= 300 && !seen.message.contains('\0'));
                }
            }
            if answer.is_object() {
                // Whatever its fields hold, an object is a service: the wrong types are left out.
                let service: UpdateService = serde_json::from_slice(&body).unwrap();
                prop_assert!(service.image_bytes_max().is_none_or(|max| max > 0));
            }
            if let Ok(manager) = serde_json::from_slice::<Manager>(&body) {
                prop_assert!(manager_state(&manager).2.iter().all(|&rung| rung == Rung::Bmc));
            }
            if let Ok(system) = serde_json::from_slice::<System>(&body) {
                prop_assert!(system_state(&system).2.len() <= 3);
            }
            let Said { words, ids } = said(&body);
            prop_assert!(words.chars().count() <= 300 && !words.chars().any(char::is_control));
            prop_assert!(ids.len() <= 33 && ids.iter().all(|id| id.len() <= 128));
        }
    }
}
