//! How makers of BMCs speak Redfish, as data: what their services do not say of themselves, or say otherwise than the
//! specification has it.
//!
//! Invariants: what a service says of itself comes first, a dialect only orders and fills in; no name of a maker stands in code; a
//! description that is not wholly understood is refused when the configuration is read, not when a device waits for its image.

mod check;
mod choice;

use std::collections::BTreeMap;

use firmesh_executors_core::Rung;
use firmesh_protocol::{ids::Component, version::VersionScheme};
use serde::Deserialize;

pub(crate) use self::check::file_name;
pub use self::choice::Dialects;

/// A dialect, as written and checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dialect {
    schema: String,
    name: String,
    #[serde(default, rename = "match")]
    speakers: Speakers,
    pub(super) update: Update,
    #[serde(default)]
    pub(super) task: TaskWords,
    /// Where the update service itself tells how an update goes that has no task.
    pub(super) progress: Option<TaskWords>,
    #[serde(default)]
    pub(super) messages: Messages,
    #[serde(default, rename = "component")]
    components: BTreeMap<Component, Part>,
}

/// Whose dialect it is. Lists that are empty leave everybody in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Speakers {
    vendor: Vec<String>,
    model: Vec<String>,
    firmware: Option<Firmware>,
}

/// Versions of the manager's firmware: from the first on, and before the second.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Firmware {
    #[serde(default = "any_notation")]
    scheme: VersionScheme,
    from: Option<String>,
    below: Option<String>,
}

/// A way to bring an image onto a BMC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Method {
    /// `SimpleUpdate`: the BMC fetches the image from the node.
    SimpleUpdate,
    /// A form to `MultipartHttpPushUri`.
    Multipart,
    /// A form of the maker's own to `HttpPushUri`.
    Form,
    /// The bare image to `HttpPushUri`.
    HttpPush,
}

/// How an image is handed over.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Update {
    /// In this order; what a BMC does not offer or refuses as such is passed over.
    pub(super) methods: Vec<Method>,
    /// When it is to take effect, dearest first; the first that the service offers is asked for, and nothing where it offers none.
    #[serde(default)]
    apply_time: Vec<String>,
    #[serde(default)]
    targets: Targets,
    /// What the image is called on the way: some go by the ending.
    #[serde(default = "image_name")]
    file_name: String,
    #[serde(default = "parameters_part")]
    pub(super) parameters_part: String,
    #[serde(default = "file_part")]
    pub(super) file_part: String,
    /// The parts of the form to `HttpPushUri`.
    #[serde(default)]
    pub(super) form: Vec<FormPart>,
    /// The cookie that carries the session's key along with the form.
    pub(super) session_cookie: Option<String>,
    /// Whether the address of an upload is asked first: it may say what the upload itself would not be told.
    #[serde(default)]
    pub(super) asks_first: bool,
    /// Where the answer to an upload names its task, if it does so nowhere else: JSON pointers.
    #[serde(default)]
    pub(super) task_at: Vec<String>,
}

/// What an update is told to update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Targets {
    /// The component's entry in the inventory.
    #[default]
    Entry,
    /// Nothing: the image itself says.
    None,
}

/// A part of a form: it holds something of ours, or JSON.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FormPart {
    pub(super) part: String,
    pub(super) holds: Option<Holds>,
    pub(super) json: Option<toml::Table>,
}

/// What a part of a form holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Holds {
    /// The session's key.
    Session,
    /// The image.
    File,
    /// Targets and the like, as a form to `MultipartHttpPushUri` has them.
    Parameters,
}

/// Where a task tells how it goes, and in which words.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TaskWords {
    /// JSON pointers, of which the first counts that leads to a text.
    pub(super) state: Vec<String>,
    /// What it is about: an update says so.
    pub(super) kind: Vec<String>,
    pub(super) percent: Vec<String>,
    pub(super) message: Vec<String>,
    /// States in which it is done. All that are in no list are on the way.
    pub(super) completed: Vec<String>,
    pub(super) failed: Vec<String>,
    /// States in which it has done all that it can before a restart.
    pub(super) awaits_reset: Vec<String>,
    /// States in which there is no update.
    pub(super) idle: Vec<String>,
}

/// Messages that mean more than their status says, by patterns of their ids: `SMC.*.OemLicenseNotPassed`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Messages {
    licence: Vec<Licence>,
    /// Another update has begun and not ended.
    update_mode: Vec<String>,
    /// What looks like a failure and is none: a reset has to follow.
    needs_reset: Vec<String>,
}

/// A message that means that a licence is missing, and which.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Licence {
    id: String,
    name: String,
}

/// What is particular to a component.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Part {
    /// Its entry in the firmware inventory: patterns of the entry's `Id`, its `Name`, or the last part of its link.
    pub(super) inventory: Vec<String>,
    targets: Option<Vec<String>>,
    apply_time: Option<Vec<String>>,
    /// Resets that start the new version, gentlest first; none if it starts by itself.
    pub(super) reset: Option<Vec<Rung>>,
    /// Added to the parameters of an upload.
    pub(super) parameters: toml::Table,
    file_name: Option<String>,
}

fn any_notation() -> VersionScheme {
    VersionScheme::Oem
}

fn image_name() -> String {
    "image.bin".to_owned()
}

fn parameters_part() -> String {
    "UpdateParameters".to_owned()
}

fn file_part() -> String {
    "UpdateFile".to_owned()
}

impl Default for TaskWords {
    fn default() -> Self {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            state: list(&["/TaskState"]),
            kind: list(&["/Name", "/Payload/TargetUri"]),
            percent: list(&["/PercentComplete"]),
            message: Vec::new(),
            completed: list(&["Completed"]),
            failed: list(&["Exception", "Killed", "Cancelled"]),
            // Nobody intervenes here but by a restart.
            awaits_reset: list(&["UserIntervention"]),
            idle: Vec::new(),
        }
    }
}

/// Whoever speaks.
#[derive(Debug, Clone, Default)]
pub(super) struct Speaker {
    /// What they are called, in all the places where they say so.
    pub(super) vendors: Vec<String>,
    pub(super) models: Vec<String>,
    /// The manager's firmware.
    pub(super) firmware: Option<String>,
}

impl Dialect {
    fn parse(text: &str) -> Result<Self, String> {
        let dialect: Self = toml::from_str(text).map_err(|error| format!("is not a dialect of Redfish: {error}"))?;
        dialect.check()?;
        Ok(dialect)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What is said of a component.
    pub(super) fn part(&self, component: &Component) -> Option<&Part> {
        self.components.get(component)
    }

    pub(super) fn file_name(&self, component: &Component) -> &str {
        let own = self.part(component).and_then(|part| part.file_name.as_ref());
        own.unwrap_or(&self.update.file_name)
    }

    pub(super) fn apply_time(&self, component: &Component) -> &[String] {
        let own = self.part(component).and_then(|part| part.apply_time.as_ref());
        own.unwrap_or(&self.update.apply_time)
    }

    /// What to name as targets, given the component's own entry or resource.
    pub(super) fn targets(&self, component: &Component, entry: Option<&String>) -> Vec<String> {
        match self.part(component).and_then(|part| part.targets.as_ref()) {
            Some(targets) => targets.clone(),
            None if self.update.targets == Targets::Entry => entry.into_iter().cloned().collect(),
            None => Vec::new(),
        }
    }

    /// The licence that is missing if one of these messages is right.
    pub(super) fn licence(&self, ids: &[String]) -> Option<&str> {
        let licences = &self.messages.licence;
        let missing = licences
            .iter()
            .find(|licence| ids.iter().any(|id| is_like(id, &licence.id)))?;
        Some(&missing.name)
    }

    pub(super) fn is_update_mode(&self, ids: &[String]) -> bool {
        is_any_like(ids, &self.messages.update_mode)
    }

    pub(super) fn needs_reset(&self, ids: &[String]) -> bool {
        is_any_like(ids, &self.messages.needs_reset)
    }

    /// What a speaker has to be for this dialect, for a person; empty for anybody's.
    fn asks(&self) -> String {
        let Speakers {
            vendor,
            model,
            firmware,
        } = &self.speakers;
        let lists = [("vendor", vendor), ("model", model)];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let mut asked: Vec<String> = lists
            .map(|(what, list)| format!("{what} {}", list.join(" or ")))
            .collect();
        if let Some(firmware) = firmware {
            let bounds = [("from", &firmware.from), ("below", &firmware.below)].into_iter();
            let bounds = bounds.filter_map(|(word, bound)| Some(format!("{word} {}", bound.as_ref()?)));
            asked.push(format!("firmware {}", bounds.collect::<Vec<_>>().join(" ")));
        }
        asked.join(", ")
    }

    /// How much of what is asked for here holds of a speaker; nothing if not all of it does.
    fn suits(&self, speaker: &Speaker) -> Option<usize> {
        let Speakers {
            vendor,
            model,
            firmware,
        } = &self.speakers;
        let is_right = (vendor.is_empty() || is_any_like(&speaker.vendors, vendor))
            && (model.is_empty() || is_any_like(&speaker.models, model))
            && firmware
                .as_ref()
                .is_none_or(|firmware| firmware.has(speaker.firmware.as_deref()));
        let asked = [!vendor.is_empty(), !model.is_empty(), firmware.is_some()];
        is_right.then(|| asked.into_iter().filter(|is_asked| *is_asked).count())
    }
}

impl Firmware {
    /// What cannot be compared is outside.
    fn has(&self, version: Option<&str>) -> bool {
        let Some(version) = version else { return false };
        let is_from = self
            .from
            .as_ref()
            .is_none_or(|from| self.scheme.is_at_least(version, from));
        let order = |below: &String| self.scheme.compare(version, below);
        is_from
            && self
                .below
                .as_ref()
                .is_none_or(|below| order(below).is_some_and(std::cmp::Ordering::is_lt))
    }
}

/// Whether a text is like a pattern, in which `*` stands for anything; letters count as equal in both cases.
pub(super) fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern) = (text.to_lowercase(), pattern.to_lowercase());
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn is_any_like(texts: &[String], patterns: &[String]) -> bool {
    texts
        .iter()
        .any(|text| patterns.iter().any(|pattern| is_like(text, pattern)))
}
