//! The attribute registry: what a BMC says of its BIOS's attributes, where it does.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    super::{
        client::{Client, ClientError},
        wire::{Collection, lenient},
    },
    document::{Attributes, Setting},
};

/// Values that are listed where one is refused.
const LISTED_MAX: usize = 12;
/// Attributes that are named in one refusal.
const NAMED_MAX: usize = 20;
/// Files looked into for the registry.
const FILES_MAX: usize = 64;
const REGISTRIES: &str = "/redfish/v1/Registries";

/// Attributes by name.
pub(super) type Registry = BTreeMap<String, Entry>;

/// What is said of one attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Entry {
    #[serde(deserialize_with = "lenient")]
    attribute_name: String,
    #[serde(rename = "Type", deserialize_with = "lenient")]
    kind: Option<String>,
    #[serde(deserialize_with = "lenient")]
    read_only: bool,
    #[serde(deserialize_with = "lenient")]
    immutable: bool,
    #[serde(deserialize_with = "lenient")]
    value: Vec<Choice>,
    #[serde(deserialize_with = "lenient")]
    lower_bound: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    upper_bound: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    min_length: Option<u64>,
    #[serde(deserialize_with = "lenient")]
    max_length: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Choice {
    #[serde(deserialize_with = "lenient")]
    value_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RegistryFile {
    #[serde(deserialize_with = "lenient")]
    registry: Option<String>,
    #[serde(deserialize_with = "lenient")]
    location: Vec<Location>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Location {
    #[serde(deserialize_with = "lenient")]
    uri: Option<String>,
    #[serde(deserialize_with = "lenient")]
    language: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RegistryBody {
    #[serde(deserialize_with = "lenient")]
    registry_entries: Entries,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Entries {
    #[serde(deserialize_with = "lenient")]
    attributes: Vec<Entry>,
}

/// The registry of this name; nothing where the BMC does not offer it.
pub(super) async fn read(client: &Client, name: &str) -> Result<Option<Registry>, ClientError> {
    let list: Collection = match client.get("list the registries", REGISTRIES).await {
        Err(error) if error.is_status(&[404, 405, 501]) => return Ok(None),
        other => other?,
    };
    let is_it = |link: &str| {
        let last = link.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        last == name || name.starts_with(&format!("{last}.")) || last.starts_with(&format!("{name}."))
    };
    // The one that is called so, else one of BIOS attributes that says inside that it is.
    let links: Vec<String> = list.members.into_iter().map(|link| link.id).collect();
    let (named, others): (Vec<_>, Vec<_>) = links.into_iter().partition(|link| is_it(link));
    let likely = others.into_iter().filter(|link| link.to_lowercase().contains("bios"));
    for link in named.into_iter().chain(likely).take(FILES_MAX) {
        let file: RegistryFile = match client.get("read a registry's file", &link).await {
            Err(error) if error.is_status(&[404, 500, 501]) => continue,
            other => other?,
        };
        let says_so = file
            .registry
            .as_deref()
            .is_some_and(|registry| registry == name || is_it(registry));
        if !is_it(&link) && !says_so {
            continue;
        }
        let is_english = |location: &&Location| {
            location
                .language
                .as_deref()
                .is_none_or(|language| language.starts_with("en"))
        };
        let location = file.location.iter().find(is_english).or_else(|| file.location.first());
        let Some(uri) = location.and_then(|location| location.uri.as_ref()) else {
            continue;
        };
        let body: RegistryBody = match client.get("read the attribute registry", uri).await {
            Err(error) if error.is_status(&[404, 500, 501]) => continue,
            other => other?,
        };
        let entries = body.registry_entries.attributes.into_iter();
        let entries: Registry = entries.map(|entry| (entry.attribute_name.clone(), entry)).collect();
        if !entries.is_empty() {
            return Ok(Some(entries));
        }
    }
    Ok(None)
}

/// What speaks against these settings, each attribute by its name; empty if nothing does.
pub(super) fn objections(
    wanted: &Attributes,
    current: &BTreeMap<String, Value>,
    registry: Option<&Registry>,
) -> Vec<String> {
    let objection = |(name, setting): (&String, &Setting)| {
        let Some(is) = current.get(name) else {
            return Some(format!("{name} is no attribute of this BIOS"));
        };
        let entry = registry.and_then(|registry| registry.get(name));
        let objection = match (entry, registry) {
            (Some(entry), _) => entry.objection(setting, is),
            (None, Some(_)) => Some("is in no registry of this BIOS".to_owned()),
            (None, None) => of_type(setting, is),
        };
        objection.map(|objection| format!("{name} {objection}"))
    };
    let mut objections: Vec<String> = wanted.iter().filter_map(objection).collect();
    if objections.len() > NAMED_MAX {
        let more = objections.len() - NAMED_MAX;
        objections.truncate(NAMED_MAX);
        objections.push(format!("{more} more"));
    }
    objections
}

/// Without a registry what it is tells what it may be.
fn of_type(setting: &Setting, is: &Value) -> Option<String> {
    let differs = !is.is_null() && !setting.is_of_type(is);
    differs.then(|| format!("is of another type than {setting}"))
}

impl Entry {
    fn objection(&self, setting: &Setting, is: &Value) -> Option<String> {
        // What is as it should be is not written.
        if setting.is(is) {
            return None;
        }
        if self.read_only || self.immutable {
            return Some(format!(
                "is read-only, and is {} where {setting} is wanted",
                super::super::wire::short(&is.to_string())
            ));
        }
        match (self.kind.as_deref(), setting) {
            (Some("Password"), _) => Some("is a password: what is signed is for everybody to read".to_owned()),
            (Some("Enumeration"), Setting::Text(text)) => {
                let names: Vec<&str> = self.value.iter().map(|choice| choice.value_name.as_str()).collect();
                let is_known = names.is_empty() || names.contains(&text.as_str());
                let listed = names[..names.len().min(LISTED_MAX)].join(", ");
                (!is_known).then(|| format!("cannot be {setting}: there are {listed}"))
            }
            (Some("Integer"), Setting::Number(number)) => {
                let below = self.lower_bound.filter(|least| number < least);
                let above = self.upper_bound.filter(|most| number > most);
                match (below, above) {
                    (Some(least), _) => Some(format!("cannot be {number}: it is {least} at least")),
                    (_, Some(most)) => Some(format!("cannot be {number}: it is {most} at most")),
                    _ => None,
                }
            }
            (Some("String"), Setting::Text(text)) => {
                let length = text.chars().count() as u64;
                let is_within =
                    self.min_length.is_none_or(|min| length >= min) && self.max_length.is_none_or(|max| length <= max);
                (!is_within).then(|| format!("cannot be {setting}: it is too short or too long"))
            }
            (Some("Boolean"), Setting::Switch(_)) => None,
            (Some(kind @ ("Enumeration" | "Integer" | "String" | "Boolean")), _) => {
                Some(format!("is of the type {kind}, and cannot be {setting}"))
            }
            _ => of_type(setting, is),
        }
    }
}
