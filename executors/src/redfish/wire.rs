//! The parts of Redfish resources that Firmesh reads. Everything is optional: BMCs leave out what they please.

use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Link {
    #[serde(rename = "@odata.id")]
    pub(super) id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ServiceRoot {
    pub(super) vendor: Option<String>,
    pub(super) update_service: Option<Link>,
    pub(super) systems: Option<Link>,
    pub(super) managers: Option<Link>,
    pub(super) chassis: Option<Link>,
    pub(super) tasks: Option<Link>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Collection {
    #[serde(rename = "Members")]
    pub(super) members: Vec<Link>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct UpdateService {
    pub(super) actions: UpdateActions,
    pub(super) multipart_http_push_uri: Option<String>,
    pub(super) max_image_size_bytes: Option<u64>,
    pub(super) firmware_inventory: Option<Link>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct UpdateActions {
    #[serde(rename = "#UpdateService.SimpleUpdate")]
    pub(super) simple_update: Option<Action>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Action {
    pub(super) target: String,
    #[serde(rename = "ResetType@Redfish.AllowableValues")]
    pub(super) reset_types: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inventory {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: Option<String>,
}

/// A `ComputerSystem`, or a `Chassis` read for what it has in common with one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct System {
    pub(super) manufacturer: Option<String>,
    pub(super) model: Option<String>,
    pub(super) power_state: Option<String>,
    pub(super) boot_progress: BootProgress,
    pub(super) last_reset_time: Option<String>,
    pub(super) actions: SystemActions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct BootProgress {
    pub(super) last_state: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SystemActions {
    #[serde(rename = "#ComputerSystem.Reset")]
    pub(super) reset: Option<Action>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Manager {
    pub(super) last_reset_time: Option<String>,
    pub(super) status: Status,
    pub(super) actions: ManagerActions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Status {
    pub(super) state: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ManagerActions {
    #[serde(rename = "#Manager.Reset")]
    pub(super) reset: Option<Action>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Task {
    #[serde(rename = "@odata.id")]
    pub(super) odata_id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) task_state: Option<String>,
    pub(super) percent_complete: Option<u64>,
    pub(super) messages: Vec<Message>,
    pub(super) payload: Payload,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Payload {
    pub(super) target_uri: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Message {
    pub(super) message: Option<String>,
    pub(super) message_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    error: ErrorInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorInfo {
    message: Option<String>,
    #[serde(rename = "@Message.ExtendedInfo")]
    extended: Vec<Message>,
}

/// The most of a BMC's own words that goes into one of ours.
const WORDS_MAX: usize = 300;

impl Message {
    pub(super) fn text(&self) -> Option<String> {
        let text = self.message.as_ref().or(self.message_id.as_ref())?;
        Some(text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect())
    }
}

/// What a BMC says in the body of an error answer; empty if it says nothing we understand.
pub(super) fn error_text(body: &[u8]) -> String {
    let ErrorBody { error } = serde_json::from_slice(body).unwrap_or_default();
    let general = Message {
        message: error.message,
        message_id: None,
    };
    let spoken = error.extended.iter().filter(|message| message.message.is_some());
    spoken
        .chain([&general])
        .chain(&error.extended)
        .find_map(Message::text)
        .unwrap_or_default()
}
