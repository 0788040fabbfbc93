//! The parts of Redfish resources that Firmesh reads. Everything is optional: BMCs leave out what they please, say `null`, or put
//! something of another type, which counts as left out.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// What is missing, `null` or of another type is the default.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Link {
    #[serde(rename = "@odata.id")]
    pub(super) id: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ServiceRoot {
    #[serde(deserialize_with = "lenient")]
    pub(super) vendor: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) update_service: Option<Link>,
    #[serde(deserialize_with = "lenient")]
    pub(super) systems: Option<Link>,
    #[serde(deserialize_with = "lenient")]
    pub(super) managers: Option<Link>,
    #[serde(deserialize_with = "lenient")]
    pub(super) chassis: Option<Link>,
    #[serde(deserialize_with = "lenient")]
    pub(super) tasks: Option<Link>,
    #[serde(deserialize_with = "lenient")]
    pub(super) protocol_features_supported: Features,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Features {
    #[serde(deserialize_with = "lenient")]
    pub(super) expand_query: Expand,
}

/// Whether a collection can be had with its members in it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Expand {
    #[serde(deserialize_with = "lenient")]
    pub(super) expand_all: bool,
    #[serde(deserialize_with = "lenient")]
    pub(super) no_links: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Entries {
    #[serde(rename = "Members", deserialize_with = "lenient")]
    pub(super) members: Vec<Inventory>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Collection {
    #[serde(rename = "Members", deserialize_with = "lenient")]
    pub(super) members: Vec<Link>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct UpdateService {
    #[serde(deserialize_with = "lenient")]
    pub(super) actions: UpdateActions,
    #[serde(deserialize_with = "lenient")]
    pub(super) multipart_http_push_uri: Option<String>,
    #[serde(
        rename = "MultipartHttpPushUri@Redfish.OperationApplyTimeSupport",
        deserialize_with = "lenient"
    )]
    pub(super) multipart_apply_times: Supported,
    #[serde(deserialize_with = "lenient")]
    pub(super) http_push_uri: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) http_push_uri_options: PushOptions,
    #[serde(deserialize_with = "lenient")]
    pub(super) service_enabled: Option<bool>,
    #[serde(deserialize_with = "lenient")]
    pub(super) max_image_size_bytes: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    pub(super) firmware_inventory: Option<Link>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct UpdateActions {
    #[serde(rename = "#UpdateService.SimpleUpdate", deserialize_with = "lenient")]
    pub(super) simple_update: Option<Action>,
    #[serde(rename = "#UpdateService.StartUpdate", deserialize_with = "lenient")]
    pub(super) start_update: Option<Action>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Action {
    #[serde(deserialize_with = "lenient")]
    pub(super) target: String,
    /// Where the values of its parameters are listed, if they are not here.
    #[serde(rename = "@Redfish.ActionInfo", deserialize_with = "lenient")]
    pub(super) info: Option<String>,
    #[serde(rename = "ResetType@Redfish.AllowableValues", deserialize_with = "lenient")]
    pub(super) reset_types: Vec<String>,
    #[serde(rename = "Targets@Redfish.AllowableValues", deserialize_with = "lenient")]
    pub(super) targets: Vec<String>,
    #[serde(rename = "TransferProtocol@Redfish.AllowableValues", deserialize_with = "lenient")]
    pub(super) protocols: Vec<String>,
    #[serde(rename = "@Redfish.OperationApplyTimeSupport", deserialize_with = "lenient")]
    pub(super) apply_times: Supported,
}

/// When an operation may take effect.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Supported {
    #[serde(deserialize_with = "lenient")]
    pub(super) supported_values: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PushOptions {
    #[serde(deserialize_with = "lenient")]
    pub(super) http_push_uri_apply_time: PushApplyTime,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PushApplyTime {
    #[serde(deserialize_with = "lenient")]
    pub(super) apply_time: Option<String>,
    #[serde(rename = "ApplyTime@Redfish.AllowableValues", deserialize_with = "lenient")]
    pub(super) allowable: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ActionInfo {
    #[serde(deserialize_with = "lenient")]
    pub(super) parameters: Vec<ActionParameter>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ActionParameter {
    #[serde(deserialize_with = "lenient")]
    pub(super) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) allowable_values: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inventory {
    #[serde(rename = "@odata.id", deserialize_with = "lenient")]
    pub(super) link: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) id: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) version: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) updateable: Option<bool>,
    #[serde(deserialize_with = "lenient")]
    pub(super) lowest_supported_version: Option<String>,
}

/// A `ComputerSystem`, or a `Chassis` read for what it has in common with one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct System {
    #[serde(deserialize_with = "lenient")]
    pub(super) manufacturer: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) power_state: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) bios_version: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) boot_progress: BootProgress,
    #[serde(deserialize_with = "lenient")]
    pub(super) last_reset_time: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) actions: SystemActions,
    #[serde(deserialize_with = "lenient")]
    pub(super) bios: Option<Link>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct BootProgress {
    #[serde(deserialize_with = "lenient")]
    pub(super) last_state: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SystemActions {
    #[serde(rename = "#ComputerSystem.Reset", deserialize_with = "lenient")]
    pub(super) reset: Option<Action>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Manager {
    #[serde(deserialize_with = "lenient")]
    pub(super) manufacturer: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) firmware_version: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) date_time: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) last_reset_time: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) status: Status,
    #[serde(deserialize_with = "lenient")]
    pub(super) actions: ManagerActions,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Status {
    #[serde(deserialize_with = "lenient")]
    pub(super) state: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ManagerActions {
    #[serde(rename = "#Manager.Reset", deserialize_with = "lenient")]
    pub(super) reset: Option<Action>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct TaskService {
    #[serde(deserialize_with = "lenient")]
    pub(super) tasks: Option<Link>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Message {
    #[serde(deserialize_with = "lenient")]
    pub(super) message: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) message_id: Option<String>,
}

/// The most of a BMC's own words that goes into one of ours.
const WORDS_MAX: usize = 300;
/// Message ids looked at in one answer, and the length of one.
const IDS_MAX: usize = 16;
const ID_BYTES_MAX: usize = 128;

impl Message {
    pub(super) fn text(&self) -> Option<String> {
        let mut said = [&self.message, &self.message_id].into_iter().flatten();
        said.find(|text| !text.is_empty()).map(|text| short(text))
    }
}

/// A BMC's own words, cut to one line.
pub(super) fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}

/// What a BMC says in the body of an answer, in its own words and as message ids; empty if it says nothing we understand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) words: String,
    pub(super) ids: Vec<String>,
}

/// Reads what stands under `error`, or beside it in the answers of those who put it there.
pub(super) fn said(body: &[u8]) -> Said {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
        return Said::default();
    };
    let error = body.get("error").and_then(Value::as_object).unwrap_or(&body);
    let extended = |of: &serde_json::Map<String, Value>| -> Vec<Message> {
        let list = of.get("@Message.ExtendedInfo").and_then(Value::as_array);
        let list = list.map(Vec::as_slice).unwrap_or_default().iter().take(IDS_MAX);
        list.filter_map(|message| serde_json::from_value(message.clone()).ok())
            .collect()
    };
    let mut messages = extended(error);
    messages.extend(extended(&body));
    let text = |name: &str| error.get(name).and_then(Value::as_str);
    let spoken = messages.iter().find_map(|message| message.message.as_deref());
    let general = text("message").or_else(|| text("Message"));
    let ids = messages.iter().filter_map(|message| message.message_id.as_deref());
    let ids: Vec<String> = ids
        .chain(text("code"))
        .filter(|id| !id.is_empty() && id.len() <= ID_BYTES_MAX && !id.chars().any(char::is_control))
        .map(str::to_owned)
        .collect();
    let said = [spoken, general, ids.first().map(String::as_str)];
    let words = said.into_iter().flatten().find(|text| !text.is_empty());
    Said {
        words: words.map(short).unwrap_or_default(),
        ids,
    }
}
