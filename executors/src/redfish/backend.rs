//! One BMC and the component behind it, act by act.

use std::sync::Arc;

use firmesh_executors_core::{ActError, Image, Observed, Rung, Seen, Slot, Staged, TaskSeen, TaskState};
use firmesh_protocol::{health::HealthSample, ids::Component};
use reqwest::{
    StatusCode,
    multipart::{Form, Part},
};
use serde_json::json;
use tokio::sync::Mutex;
use tokio_util::io::ReaderStream;

use super::{
    client::{Answer, Client, ClientError, started_task},
    wire::{Action, Collection, Inventory, Link, Manager, ServiceRoot, System, Task, UpdateService},
};
use crate::{
    backend::{DeviceBackend, chain},
    config::{RedfishSettings, UpdateMethod},
    image::ImageSource,
};

/// Inventory entries looked into for a name; large servers list about a hundred.
const INVENTORY_MAX: usize = 256;
/// Recent tasks looked at when we do not know which one is ours.
const TASKS_MAX: usize = 4;
/// The component whose resets are the manager's.
const BMC: &str = "bmc";

/// A device behind Redfish.
#[derive(Debug)]
pub struct RedfishBackend {
    client: Client,
    component: Component,
    images: Arc<dyn ImageSource>,
    map: Mutex<Option<Arc<Map>>>,
}

/// Where things are on this BMC: found once, forgotten when something goes wrong.
#[derive(Debug)]
struct Map {
    vendor: Option<String>,
    update_service: Option<String>,
    system: Option<String>,
    manager: Option<String>,
    chassis: Option<String>,
    tasks: Option<String>,
    inventory: Option<String>,
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
        })
    }

    /// Ends the session with the BMC, which allows only a few.
    pub async fn close(&self) {
        self.client.close().await;
    }

    async fn map(&self) -> Result<Arc<Map>, ClientError> {
        let mut map = self.map.lock().await;
        if let Some(map) = &*map {
            return Ok(Arc::clone(map));
        }
        let found = Arc::new(self.discover().await?);
        *map = Some(Arc::clone(&found));
        Ok(found)
    }

    async fn discover(&self) -> Result<Map, ClientError> {
        let settings = self.client.settings();
        let root: ServiceRoot = self.client.get("read the service root", "/redfish/v1/").await?;
        let update_service = root.update_service.map(|link| link.id);
        let mut inventory = None;
        if let Some(link) = &update_service {
            let service: UpdateService = self.client.get("read the update service", link).await?;
            if let Some(list) = service.firmware_inventory {
                inventory = self.find_inventory(&list).await?;
            }
        }
        Ok(Map {
            vendor: root.vendor,
            update_service,
            system: self
                .first_of(settings.system.as_ref(), root.systems, "list the systems")
                .await?,
            manager: self
                .first_of(settings.manager.as_ref(), root.managers, "list the managers")
                .await?,
            chassis: self.first_of(None, root.chassis, "list the chassis").await?,
            tasks: root.tasks.map(|link| link.id),
            inventory,
        })
    }

    async fn first_of(
        &self,
        chosen: Option<&String>,
        list: Option<Link>,
        operation: &'static str,
    ) -> Result<Option<String>, ClientError> {
        match (chosen, list) {
            (Some(chosen), _) => Ok(Some(chosen.clone())),
            (None, None) => Ok(None),
            (None, Some(list)) => {
                let list: Collection = self.client.get(operation, &list.id).await?;
                Ok(list.members.into_iter().next().map(|link| link.id))
            }
        }
    }

    /// The inventory's entry for our component: by the last part of its link, then by `Id` and `Name`.
    async fn find_inventory(&self, list: &Link) -> Result<Option<String>, ClientError> {
        let wanted = self.client.settings().inventory.to_lowercase();
        let list: Collection = match self.client.get("list the firmware inventory", &list.id).await {
            Err(error) if error.is_status(&[404]) => return Ok(None),
            other => other?,
        };
        let name = |link: &Link| {
            link.id
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or("")
                .to_lowercase()
        };
        if let Some(link) = list.members.iter().find(|link| name(link) == wanted) {
            return Ok(Some(link.id.clone()));
        }
        for link in list.members.into_iter().take(INVENTORY_MAX) {
            let entry: Inventory = self.client.get("read the firmware inventory", &link.id).await?;
            if entry.id.to_lowercase() == wanted || entry.name.to_lowercase().contains(&wanted) {
                return Ok(Some(link.id));
            }
        }
        Ok(None)
    }

    async fn see(&self, task: Option<&str>) -> Result<Seen, ClientError> {
        let map = self.map().await?;
        let system: System = self.read_or_default("read the system", map.system.as_ref()).await?;
        let manager: Manager = self.read_or_default("read the manager", map.manager.as_ref()).await?;
        let service: UpdateService = self
            .read_or_default("read the update service", map.update_service.as_ref())
            .await?;
        let entry: Inventory = self
            .read_or_default("read the firmware inventory", map.inventory.as_ref())
            .await?;
        let (mut vendor, mut model) = (system.manufacturer.clone(), system.model.clone());
        if vendor.is_none() || model.is_none() {
            let chassis: System = self.read_or_default("read the chassis", map.chassis.as_ref()).await?;
            vendor = vendor.or(chassis.manufacturer);
            model = model.or(chassis.model);
        }
        let task = match task {
            Some(task) => Some(self.see_task(task).await?),
            None => self.see_foreign_task(&map).await?,
        };
        let (ready, boot_id, resets) = if self.is_bmc() {
            manager_state(manager)
        } else {
            system_state(system)
        };
        Ok(Seen {
            vendor: vendor.or_else(|| map.vendor.clone()).unwrap_or_default(),
            model: model.unwrap_or_default(),
            component: self.component.clone(),
            version: entry.version,
            ready,
            boot_id,
            staged: Staged::Hidden,
            task,
            slots: None,
            image_bytes_max: service.max_image_size_bytes,
            resets,
            // Firmware inventories tell nothing of it: what a gate requires stays unknown here, and holds.
            health: HealthSample::default(),
            clock_off_s: None,
        })
    }

    async fn read_or_default<T: serde::de::DeserializeOwned + Default>(
        &self,
        operation: &'static str,
        link: Option<&String>,
    ) -> Result<T, ClientError> {
        match link {
            None => Ok(T::default()),
            Some(link) => self.client.get(operation, link).await,
        }
    }

    async fn see_task(&self, link: &str) -> Result<TaskSeen, ClientError> {
        let operation = "read the update task";
        let answer = match self.client.get_raw(operation, link).await {
            Err(error) if error.is_status(&[404, 410]) => return Ok(told(TaskState::Gone)),
            other => other?,
        };
        Ok(match answer.status {
            StatusCode::NO_CONTENT => told(TaskState::Completed),
            StatusCode::ACCEPTED if answer.body.is_empty() => told(TaskState::Active),
            _ => seen_task(&answer.json(operation)?),
        })
    }

    /// An update that runs though we know of none: somebody else's, or ours from before a crash.
    async fn see_foreign_task(&self, map: &Map) -> Result<Option<TaskSeen>, ClientError> {
        let Some(link) = &map.tasks else { return Ok(None) };
        let service: TaskList = match self.client.get("read the task service", link).await {
            Err(error) if error.is_status(&[404]) => return Ok(None),
            other => other?,
        };
        let Some(tasks) = service.tasks else { return Ok(None) };
        let list: Collection = self.client.get("list the tasks", &tasks.id).await?;
        for link in list.members.iter().rev().take(TASKS_MAX) {
            let task: Task = match self.client.get("read a task", &link.id).await {
                Err(error) if error.is_status(&[404]) => continue,
                other => other?,
            };
            let words = [&task.name, &task.payload.target_uri].map(|text| text.as_deref().unwrap_or("").to_lowercase());
            let seen = seen_task(&task);
            if seen.state == TaskState::Active && words.iter().any(|words| words.contains("update")) {
                return Ok(Some(seen));
            }
        }
        Ok(None)
    }

    async fn stage_image(&self, image: &Image) -> Result<Option<String>, ActError> {
        let map = self.map().await.map_err(act_error)?;
        let service: UpdateService = self
            .read_or_default("read the update service", map.update_service.as_ref())
            .await
            .map_err(act_error)?;
        let targets: Vec<_> = map.inventory.iter().cloned().collect();
        let method = self.client.settings().update;
        let answer = match (method, &service.actions.simple_update, &service.multipart_http_push_uri) {
            (UpdateMethod::Push, _, Some(uri)) | (UpdateMethod::Auto, None, Some(uri)) => {
                self.push(uri, image, &targets).await?
            }
            (UpdateMethod::Pull | UpdateMethod::Auto, Some(action), push) => {
                match (self.pull(action, image, &targets).await, push) {
                    // Some BMCs advertise the action and refuse it.
                    (Err(error), Some(uri)) if method == UpdateMethod::Auto && error.is_status(&[404, 405, 501]) => {
                        self.push(uri, image, &targets).await?
                    }
                    (result, _) => result.map_err(act_error)?,
                }
            }
            (UpdateMethod::Pull, None, _) => return Err(self.not_offered("SimpleUpdate")),
            (UpdateMethod::Push, _, None) => return Err(self.not_offered("MultipartHttpPushUri")),
            (UpdateMethod::Auto, None, None) => return Err(self.not_offered("SimpleUpdate or MultipartHttpPushUri")),
        };
        Ok(started_task(&answer))
    }

    async fn pull(&self, action: &Action, image: &Image, targets: &[String]) -> Result<Answer, ClientError> {
        let uri = self.images.url(image.artifact.id);
        let body = json!({ "ImageURI": uri, "TransferProtocol": "HTTPS", "Targets": targets });
        self.client.post("start SimpleUpdate", &action.target, &body).await
    }

    async fn push(&self, uri: &str, image: &Image, targets: &[String]) -> Result<Answer, ActError> {
        let reader = self.images.open(image.artifact.id).await.map_err(|error| ActError {
            reason: chain(&error),
            retry: error.retry,
        })?;
        let body = reqwest::Body::wrap_stream(ReaderStream::with_capacity(reader, 256 << 10));
        let setup = |error: reqwest::Error| act_error(ClientError::Setup(error.into()));
        let parameters = Part::text(json!({ "Targets": targets }).to_string()).mime_str("application/json");
        let file = Part::stream_with_length(body, image.artifact.length)
            .file_name("image.bin")
            .mime_str("application/octet-stream");
        let form = Form::new()
            .part("UpdateParameters", parameters.map_err(setup)?)
            .part("UpdateFile", file.map_err(setup)?);
        self.client.upload("push the image", uri, form).await.map_err(act_error)
    }

    async fn restart(&self, rung: Rung) -> Result<(), ClientError> {
        let map = self.map().await?;
        let (operation, action) = match rung {
            Rung::Bmc => {
                let manager: Manager = self.read_or_default("read the manager", map.manager.as_ref()).await?;
                ("reset the manager", manager.actions.reset)
            }
            Rung::Warm | Rung::Cold | Rung::Ac => {
                let system: System = self.read_or_default("read the system", map.system.as_ref()).await?;
                ("reset the system", system.actions.reset)
            }
        };
        let offered = action.and_then(|action| reset_type(&action, rung).map(|kind| (action.target, kind)));
        let Some((target, kind)) = offered else {
            let url = self.client.settings().url.clone();
            return Err(ClientError::NotOffered {
                operation,
                url,
                what: format!("{rung:?} reset"),
            });
        };
        self.client
            .post(operation, &target, &json!({ "ResetType": kind }))
            .await?;
        Ok(())
    }

    fn is_bmc(&self) -> bool {
        self.component.as_str() == BMC
    }

    fn not_offered(&self, what: &str) -> ActError {
        let url = self.client.settings().url.clone();
        act_error(ClientError::NotOffered {
            operation: "stage the image",
            url,
            what: what.to_owned(),
        })
    }
}

impl DeviceBackend for RedfishBackend {
    async fn observe(&self, task: Option<&str>) -> Observed {
        match self.see(task).await {
            Ok(seen) => Observed::Answering(Box::new(seen)),
            Err(error) => {
                *self.map.lock().await = None;
                Observed::Silent { why: chain(&error) }
            }
        }
    }

    async fn stage(&self, image: &Image, _slot: Option<Slot>) -> Result<Option<String>, ActError> {
        self.stage_image(image).await
    }

    async fn activate(&self, _slot: Option<Slot>) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn reset(&self, rung: Rung) -> Result<(), ActError> {
        self.restart(rung).await.map_err(act_error)
    }

    async fn confirm(&self) -> Result<(), ActError> {
        Err(no_slots())
    }

    async fn abort(&self, task: Option<&str>) -> Result<(), ActError> {
        match task {
            Some(task) => self
                .client
                .delete("cancel the update task", task)
                .await
                .map(drop)
                .map_err(act_error),
            None => Err(ActError {
                reason: "there is no task to cancel".to_owned(),
                retry: false,
            }),
        }
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct TaskList {
    tasks: Option<Link>,
}

fn manager_state(manager: Manager) -> (bool, Option<String>, Vec<Rung>) {
    let starting = manager.status.state.as_deref().is_some_and(|state| state != "Enabled");
    let offered = manager
        .actions
        .reset
        .as_ref()
        .and_then(|action| reset_type(action, Rung::Bmc));
    (
        !starting,
        manager.last_reset_time,
        offered.map(|_kind| Rung::Bmc).into_iter().collect(),
    )
}

fn system_state(system: System) -> (bool, Option<String>, Vec<Rung>) {
    let powered = system.power_state.as_deref().is_none_or(|state| state == "On");
    let booted = match system.boot_progress.last_state.as_deref() {
        None | Some("None" | "OSRunning" | "OSBootStarted") => true,
        Some(_) => false,
    };
    let action = system.actions.reset.unwrap_or_default();
    let resets = [Rung::Warm, Rung::Cold]
        .into_iter()
        .filter(|&rung| reset_type(&action, rung).is_some());
    (powered && booted, system.last_reset_time, resets.collect())
}

/// The reset of a rung, by the names the BMC offers. One that lists no names takes those the specification requires.
fn reset_type(action: &Action, rung: Rung) -> Option<&'static str> {
    let order: &[&str] = match rung {
        Rung::Bmc | Rung::Warm => &["GracefulRestart", "ForceRestart"],
        Rung::Cold => &["PowerCycle", "FullPowerCycle", "ForceRestart"],
        Rung::Ac => &["FullPowerCycle"],
    };
    let offered = |name: &&&str| action.reset_types.iter().any(|offered| offered == **name);
    match (action.target.is_empty(), action.reset_types.is_empty()) {
        (true, _) => None,
        (false, true) => Some("ForceRestart"),
        (false, false) => order.iter().find(offered).copied(),
    }
}

fn seen_task(task: &Task) -> TaskSeen {
    let state = match task.task_state.as_deref() {
        Some("Completed") => TaskState::Completed,
        Some("Exception" | "Killed" | "Cancelled" | "Interrupted") => TaskState::Failed,
        // `New`, `Starting`, `Running`, `Pending` ... and whatever a vendor invents: only time ends those.
        _ => TaskState::Active,
    };
    let percent = task
        .percent_complete
        .map(|percent| u8::try_from(percent.min(100)).unwrap_or(100));
    let message = task
        .messages
        .iter()
        .rev()
        .find_map(|message| message.text())
        .unwrap_or_default();
    TaskSeen {
        name: None,
        state,
        percent,
        message,
    }
}

fn told(state: TaskState) -> TaskSeen {
    TaskSeen {
        name: None,
        state,
        percent: None,
        message: String::new(),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "stands where map_err wants a function of the error"
)]
fn act_error(error: ClientError) -> ActError {
    ActError {
        reason: chain(&error),
        retry: error.retry(),
    }
}

fn no_slots() -> ActError {
    ActError {
        reason: "a Redfish device has no slots".to_owned(),
        retry: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

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
        fn whatever_a_bmc_answers_is_read_or_refused_and_its_words_are_bounded(answer in answer()) {
            let body = serde_json::to_vec(&answer).unwrap();
            if let Ok(task) = serde_json::from_slice::<Task>(&body) {
                let seen = seen_task(&task);
                prop_assert!(seen.percent.is_none_or(|percent| percent <= 100));
                prop_assert!(seen.message.chars().count() <= 300 && !seen.message.contains('\0'));
            }
            if let Ok(manager) = serde_json::from_slice::<Manager>(&body) {
                prop_assert!(manager_state(manager).2.iter().all(|&rung| rung == Rung::Bmc));
            }
            if let Ok(system) = serde_json::from_slice::<System>(&body) {
                prop_assert!(system_state(system).2.len() <= 2);
            }
            let words = super::super::wire::error_text(&body);
            prop_assert!(words.chars().count() <= 300 && !words.chars().any(char::is_control));
        }
    }
}
