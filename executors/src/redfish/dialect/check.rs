//! What a dialect must be before anybody speaks it.

use std::collections::BTreeSet;

use firmesh_protocol::ids::Component;

use super::{Dialect, Firmware, Holds, Messages, Method, Part, Speakers, TaskWords, Update};

/// The schema of dialects that this version reads.
const SCHEMA: &str = "firmesh-redfish/1";
/// Entries of a list or a table in a dialect.
const ITEMS_MAX: usize = 64;
/// A text in a dialect.
const TEXT_BYTES_MAX: usize = 256;
/// Extra parameters, written as JSON.
const PARAMETERS_BYTES_MAX: usize = 4 << 10;

impl Dialect {
    pub(super) fn check(&self) -> Result<(), String> {
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
        for list in [&self.state, &self.kind, &self.percent, &self.message] {
            pointers(what, list)?;
        }
        let mut seen = BTreeSet::new();
        for list in [&self.completed, &self.failed, &self.awaits_reset, &self.idle] {
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
                "has resets in {what} that are not bmc, warm, cold, ac in this order"
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
