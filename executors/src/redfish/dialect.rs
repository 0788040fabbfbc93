//! How makers of BMCs speak Redfish, as data: what their services do not say of themselves, or say otherwise than the
//! specification has it.
//!
//! Invariants: what a service says of itself comes first, a dialect only orders and fills in; no name of a maker stands in code; a
//! description that is not wholly understood is refused when the configuration is read, not when a device waits for its image.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use firmesh_executors_core::Rung;
use firmesh_protocol::{ids::Component, version::VersionScheme};
use serde::Deserialize;

/// The schema of dialects that this version reads.
const SCHEMA: &str = "firmesh-redfish/1";
/// Dialects that come with Firmesh.
const BUILT_IN: [(&str, &str); 6] = [
    ("dell", include_str!("../../dialects/dell.toml")),
    ("generic", include_str!("../../dialects/generic.toml")),
    ("hpe", include_str!("../../dialects/hpe.toml")),
    ("lenovo", include_str!("../../dialects/lenovo.toml")),
    ("openbmc", include_str!("../../dialects/openbmc.toml")),
    ("supermicro", include_str!("../../dialects/supermicro.toml")),
];
/// The dialect of whoever has none of their own.
const FALLBACK: &str = "generic";
/// Entries of a list or a table in a dialect.
const ITEMS_MAX: usize = 64;
/// A text in a dialect.
const TEXT_BYTES_MAX: usize = 256;
/// Extra parameters, written as JSON.
const PARAMETERS_BYTES_MAX: usize = 4 << 10;

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
    pub(super) percent: Vec<String>,
    pub(super) message: Vec<String>,
    /// States in which it goes on with the next reset.
    pub(super) waits: Vec<String>,
    /// States in which it has done its part, be it that a reset has to follow. All that are not listed are on the way.
    pub(super) completed: Vec<String>,
    pub(super) failed: Vec<String>,
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
            percent: list(&["/PercentComplete"]),
            message: Vec::new(),
            waits: list(&["UserIntervention"]),
            completed: list(&["Completed"]),
            failed: list(&["Exception", "Killed", "Cancelled"]),
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

    fn check(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("has the schema {:?}, must be {SCHEMA:?}", self.schema));
        }
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(is_name) {
            return Err(format!("has the name {:?}: must be a-z, 0-9 and _", self.name));
        }
        self.speakers.check()?;
        self.update.check()?;
        self.task.check("task")?;
        if let Some(progress) = &self.progress {
            progress.check("progress")?;
        }
        let Messages {
            licence,
            update_mode,
            needs_reset,
        } = &self.messages;
        texts("messages.update_mode", update_mode)?;
        texts("messages.needs_reset", needs_reset)?;
        let licences: Vec<String> = licence.iter().flat_map(|l| [l.id.clone(), l.name.clone()]).collect();
        texts("messages.licence", &licences)?;
        if self.components.len() > ITEMS_MAX {
            return Err(format!("has more than {ITEMS_MAX} components"));
        }
        self.components.iter().try_for_each(|(name, part)| part.check(name))
    }
}

impl Speakers {
    fn check(&self) -> Result<(), String> {
        texts("match.vendor", &self.vendor)?;
        texts("match.model", &self.model)?;
        let Some(Firmware { scheme, from, below }) = &self.firmware else {
            return Ok(());
        };
        if from.is_none() && below.is_none() {
            return Err("has neither `from` nor `below` in match.firmware".to_owned());
        }
        let ends: Vec<String> = from.iter().chain(below).cloned().collect();
        texts("match.firmware", &ends)?;
        match scheme.problem() {
            Some(problem) => Err(format!("has a scheme in match.firmware that {problem}")),
            None => Ok(()),
        }
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

impl Update {
    fn check(&self) -> Result<(), String> {
        let methods: BTreeSet<Method> = self.methods.iter().copied().collect();
        if methods.is_empty() || methods.len() != self.methods.len() {
            return Err("needs update.methods, each at most once".to_owned());
        }
        texts("update.apply_time", &self.apply_time)?;
        pointers("update.task_at", &self.task_at)?;
        texts("update", &[&self.parameters_part, &self.file_part].map(Clone::clone))?;
        file_name("update.file_name", &self.file_name)?;
        if let Some(cookie) = &self.session_cookie
            && !(cookie.len() <= 64 && !cookie.is_empty() && cookie.bytes().all(|b| b.is_ascii_alphanumeric()))
        {
            return Err(format!(
                "has {cookie:?} for update.session_cookie: must be letters and digits"
            ));
        }
        if self.form.is_empty() == methods.contains(&Method::Form) {
            return Err("needs update.form if its methods have `form`, and only then".to_owned());
        }
        let parts: Vec<String> = self.form.iter().map(|part| part.part.clone()).collect();
        texts("update.form", &parts)?;
        for part in &self.form {
            match (&part.holds, &part.json) {
                (Some(_), None) => {}
                (None, Some(json)) => parameters("update.form", json)?,
                _ => {
                    return Err(format!(
                        "needs `holds` or `json` in the part {} of update.form",
                        part.part
                    ));
                }
            }
        }
        let files = self.form.iter().filter(|part| part.holds == Some(Holds::File)).count();
        if !self.form.is_empty() && files != 1 {
            return Err("needs one part of update.form that holds the file".to_owned());
        }
        Ok(())
    }
}

impl TaskWords {
    fn check(&self, what: &str) -> Result<(), String> {
        if self.state.is_empty() || self.completed.is_empty() || self.failed.is_empty() {
            return Err(format!("needs {what}.state, {what}.completed and {what}.failed"));
        }
        for list in [&self.state, &self.percent, &self.message] {
            pointers(what, list)?;
        }
        let mut seen = BTreeSet::new();
        for list in [&self.waits, &self.completed, &self.failed, &self.idle] {
            texts(what, list)?;
            if let Some(twice) = list.iter().find(|word| !seen.insert(word.as_str())) {
                return Err(format!("gives the state {twice} two meanings in {what}"));
            }
        }
        Ok(())
    }
}

impl Part {
    fn check(&self, name: &Component) -> Result<(), String> {
        let what = format!("component.{name}");
        texts(&what, &self.inventory)?;
        texts(&what, self.apply_time.as_deref().unwrap_or_default())?;
        let targets = self.targets.as_deref().unwrap_or_default();
        texts(&what, targets)?;
        if let Some(wrong) = targets.iter().find(|target| !target.starts_with("/redfish/")) {
            return Err(format!("has the target {wrong:?} in {what}: must begin with /redfish/"));
        }
        if let Some(name) = &self.file_name {
            file_name(&what, name)?;
        }
        if self
            .reset
            .as_ref()
            .is_some_and(|reset| !reset.is_sorted_by(|a, b| a < b))
        {
            return Err(format!(
                "has resets in {what} that are not bmc, warm, cold in this order"
            ));
        }
        parameters(&what, &self.parameters)
    }
}

fn texts(what: &str, texts: &[String]) -> Result<(), String> {
    if texts.len() > ITEMS_MAX {
        return Err(format!("has more than {ITEMS_MAX} texts in {what}"));
    }
    let is_text =
        |text: &String| !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
    match texts.iter().find(|text| !is_text(text)) {
        Some(_) => Err(format!(
            "has a text in {what} that is empty, not one line, or longer than {TEXT_BYTES_MAX} bytes"
        )),
        None => Ok(()),
    }
}

fn pointers(what: &str, list: &[String]) -> Result<(), String> {
    texts(what, list)?;
    match list.iter().find(|pointer| !pointer.starts_with('/')) {
        Some(wrong) => Err(format!("has the pointer {wrong:?} in {what}: must begin with /")),
        None => Ok(()),
    }
}

/// Whether an image may be called so.
pub(crate) fn file_name(what: &str, name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(format!(
            "{what} has the name {name:?}: must be 1 to 128 letters, digits, `.`, `_`, `-` and `+`"
        ));
    }
    Ok(())
}

fn parameters(what: &str, table: &toml::Table) -> Result<(), String> {
    match serde_json::to_vec(table) {
        Ok(json) if json.len() <= PARAMETERS_BYTES_MAX => Ok(()),
        Ok(_) => Err(format!(
            "has parameters in {what} of more than {PARAMETERS_BYTES_MAX} bytes"
        )),
        Err(error) => Err(format!("has parameters in {what} that are no JSON: {error}")),
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

/// The dialects a device's BMC may speak, an operator's own first.
#[derive(Clone)]
pub struct Dialects {
    /// What an operator has written comes before what comes along.
    own: usize,
    all: Vec<Dialect>,
    /// The one that is spoken whatever the BMC says of itself.
    chosen: Option<String>,
}

impl fmt::Debug for Dialects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.all.iter().map(Dialect::name);
        f.debug_list().entries(names).finish()
    }
}

impl Dialects {
    /// Those that come with Firmesh, but for the ones that an operator's own files, by name and contents, take the place of.
    ///
    /// # Errors
    /// What is wrong, and in which file.
    pub(crate) fn new(files: &[(String, String)], chosen: Option<String>) -> Result<Self, String> {
        let mut all: Vec<Dialect> = Vec::new();
        for (file, text) in files {
            let dialect = Dialect::parse(text).map_err(|problem| format!("{file} {problem}"))?;
            if all.iter().any(|known| known.name == dialect.name) {
                return Err(format!(
                    "{file} has the name {:?}, and so has another file",
                    dialect.name
                ));
            }
            all.push(dialect);
        }
        let own = all.len();
        for (name, text) in BUILT_IN {
            if !all.iter().any(|known| known.name == name) {
                all.push(Dialect::parse(text).map_err(|problem| format!("{name} {problem}"))?);
            }
        }
        let dialects = Self { own, all, chosen };
        match &dialects.chosen {
            Some(name) if dialects.named(name).is_none() => {
                let known: Vec<_> = dialects.all.iter().map(|dialect| dialect.name.as_str()).collect();
                Err(format!("{name:?} is no dialect: there are {}", known.join(", ")))
            }
            _ => Ok(dialects),
        }
    }

    fn named(&self, name: &str) -> Option<&Dialect> {
        self.all.iter().find(|dialect| dialect.name == name)
    }

    /// The dialect that was chosen, else the one that asks for the most and gets it, an operator's own first.
    pub(super) fn of(&self, speaker: &Speaker) -> &Dialect {
        let chosen = self.chosen.as_ref().and_then(|name| self.named(name));
        let best = || {
            let suiting = self.all.iter().enumerate();
            let suiting = suiting.filter_map(|(at, dialect)| Some((dialect.suits(speaker)?, at < self.own, at)));
            // Of equals the first.
            let best = suiting.max_by_key(|&(asked, is_own, at)| (asked, is_own, usize::MAX - at))?;
            self.all.get(best.2)
        };
        let fallback = || self.named(FALLBACK);
        chosen.or_else(best).or_else(fallback).unwrap_or_else(|| &self.all[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaker(vendor: &str, model: &str, firmware: &str) -> Speaker {
        Speaker {
            vendors: vec![vendor.to_owned()],
            models: vec![model.to_owned()],
            firmware: Some(firmware.to_owned()),
        }
    }

    #[test]
    fn each_maker_is_spoken_to_in_their_own_dialect_and_strangers_by_the_book() {
        let dialects = Dialects::new(&[], None).unwrap();
        for (vendor, model, firmware, name) in [
            ("Dell Inc.", "PowerEdge R760", "7.10.30.00", "dell"),
            ("Dell", "", "", "dell"),
            ("HPE", "ProLiant DL380 Gen11", "iLO 6 v1.55", "hpe"),
            ("SMCI", "", "", "supermicro"),
            ("Supermicro", "SYS-621C", "01.01.12", "supermicro"),
            ("Lenovo", "ThinkSystem SR650 V3", "", "lenovo"),
            ("Anybody", "OpenBmc", "2.14.0", "openbmc"),
            ("Acme", "R1", "1.0", "generic"),
            ("", "", "", "generic"),
        ] {
            assert_eq!(
                dialects.of(&speaker(vendor, model, firmware)).name(),
                name,
                "{vendor} {model}"
            );
        }
        let chosen = Dialects::new(&[], Some("hpe".to_owned())).unwrap();
        assert_eq!(chosen.of(&speaker("Dell", "", "")).name(), "hpe");
        let error = Dialects::new(&[], Some("klingon".to_owned())).unwrap_err();
        assert!(error.contains("is no dialect: there are dell, generic"), "{error}");
    }

    const OWN: &str = "schema = \"firmesh-redfish/1\"\nname = \"dell_old\"\n\
        [match]\nvendor = [\"Dell*\"]\nfirmware = { below = \"5.0\" }\n[update]\nmethods = [\"simple_update\"]\n";

    fn own(text: &str) -> Result<Dialects, String> {
        Dialects::new(&[("own.toml".to_owned(), text.to_owned())], None)
    }

    #[test]
    fn an_own_file_takes_a_range_of_firmware_out_of_a_dialect_or_the_place_of_all_of_it() {
        let dialects = own(OWN).unwrap();
        for (firmware, name) in [
            ("4.40.00.00", "dell_old"),
            ("5.0", "dell"),
            ("7.10.30.00", "dell"),
            ("?", "dell"),
        ] {
            assert_eq!(
                dialects.of(&speaker("Dell Inc.", "", firmware)).name(),
                name,
                "{firmware}"
            );
        }
        let replaced = own(&OWN
            .replace("dell_old", "dell")
            .replace("firmware = { below = \"5.0\" }", ""))
        .unwrap();
        assert_eq!(
            replaced.of(&speaker("Dell", "", "9")).update.methods,
            [Method::SimpleUpdate]
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_file_and_the_reason() {
        for (from, to, words) in [
            (
                "firmesh-redfish/1",
                "firmesh-redfish/9",
                "must be \"firmesh-redfish/1\"",
            ),
            ("\"dell_old\"", "\"Dell old\"", "must be a-z, 0-9 and _"),
            ("[\"simple_update\"]", "[]", "needs update.methods"),
            ("[\"simple_update\"]", "[\"form\"]", "needs update.form"),
            ("[\"simple_update\"]", "[\"telepathy\"]", "telepathy"),
            ("[update]", "[update]\nmood = 1", "mood"),
            ("[update]", "[update]\ntask_at = [\"x\"]", "must begin with /"),
            ("[update]", "[update]\nfile_name = \"../x\"", "has the name \"../x\""),
            ("[update]", "[update]\nsession_cookie = \"a;b\"", "letters and digits"),
            ("{ below = \"5.0\" }", "{}", "neither `from` nor `below`"),
            (
                "[update]",
                "[task]\ncompleted = [\"A\"]\nfailed = [\"A\"]\n[update]",
                "gives the state A two meanings",
            ),
            (
                "[update]",
                "[component.bmc]\nreset = [\"cold\", \"warm\"]\n[update]",
                "bmc, warm, cold in this order",
            ),
            (
                "[update]",
                "[component.bmc]\ntargets = [\"https://evil/\"]\n[update]",
                "must begin with /redfish/",
            ),
        ] {
            let text = OWN.replace(from, to);
            assert_ne!(text, OWN);
            let error = own(&text).unwrap_err();
            assert!(error.contains("own.toml") && error.contains(words), "{error}");
        }
        let twice = [
            ("a.toml".to_owned(), OWN.to_owned()),
            ("b.toml".to_owned(), OWN.to_owned()),
        ];
        assert!(Dialects::new(&twice, None).unwrap_err().contains("so has another file"));
    }

    #[test]
    fn the_example_of_the_readme_is_a_dialect() {
        let (_, after) = include_str!("README.md").split_once("```toml\n").unwrap();
        let (example, _) = after.split_once("```").unwrap();
        let dialects = own(example).unwrap();
        assert_eq!(dialects.of(&speaker("Acme Corp", "R17", "1.9")).name(), "acme_old");
        assert_eq!(dialects.of(&speaker("Acme Corp", "R17", "2.0")).name(), "generic");
        assert!(own(&example.replace("# [progress]", "[progress]")).is_ok());
        let form = example.replace("# form", "form").replace("\"http_push\"]", "\"form\"]");
        assert!(own(&form.replace("]; or", "] #")).is_ok());
    }

    #[test]
    fn patterns_match_as_a_person_reads_them() {
        for (text, pattern, matches) in [
            ("SMC.1.0.OemLicenseNotPassed", "SMC.*.OemLicenseNotPassed", true),
            ("SMC.1.0.OemLicenseNotPassedX", "SMC.*.OemLicenseNotPassed", false),
            ("Installed-159-2.1__BIOS.Setup.1-1", "Installed-*__BIOS.*", true),
            ("Previous-159-2.1__BIOS.Setup.1-1", "Installed-*__BIOS.*", false),
            ("bios", "BIOS", true),
            ("", "*", true),
            ("ab", "ab*b", false),
            ("aXbXc", "a*b*c", true),
        ] {
            assert_eq!(is_like(text, pattern), matches, "{text} {pattern}");
        }
    }
}
