//! Where things are on a BMC, and whom we talk to: found out by looking, never assumed.

use firmesh_protocol::ids::Component;
use serde::de::DeserializeOwned;

use super::{
    client::{Client, ClientError},
    dialect::{Dialect, Speaker, is_like},
    wire::{Collection, Entries, Expand, Inventory, Link, Manager, ServiceRoot, System, UpdateService},
};

/// Inventory entries looked into for a name; large servers list about a hundred.
pub(super) const INVENTORY_MAX: usize = 256;
/// The component whose resets are the manager's.
const BMC: &str = "bmc";
/// The component whose version a system tells without an inventory.
const BIOS: &str = "bios";

/// Where things are on this BMC: found once, forgotten when something goes wrong.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) vendor: Option<String>,
    pub(super) update_service: Option<String>,
    pub(super) system: Option<String>,
    pub(super) manager: Option<String>,
    pub(super) chassis: Option<String>,
    pub(super) tasks: Option<String>,
    /// The component's entry in the firmware inventory.
    pub(super) entry: Option<String>,
    /// What the entry was found by.
    pub(super) entry_by: String,
    pub(super) dialect: Dialect,
    /// What the dialect was chosen by.
    pub(super) speaker: Speaker,
}

impl Map {
    /// What is updated: the component's entry, or else the resource that it belongs to.
    pub(super) fn target(&self, component: &Component) -> Option<&String> {
        let owner = match component.as_str() {
            BMC => self.manager.as_ref(),
            BIOS => self.system.as_ref(),
            _ => None,
        };
        self.entry.as_ref().or(owner)
    }
}

/// The version of a component, of which the inventory knows nothing, from the resource that it belongs to.
pub(super) fn version_beside(component: &Component, system: &System, manager: &Manager) -> Option<String> {
    let version = match component.as_str() {
        BMC => manager.firmware_version.as_ref(),
        BIOS => system.bios_version.as_ref(),
        _ => None,
    };
    version.filter(|version| !version.is_empty()).cloned()
}

/// Whether the component is the manager itself.
pub(super) fn is_bmc(component: &Component) -> bool {
    component.as_str() == BMC
}

impl Client {
    /// Looks around.
    pub(super) async fn discover(&self, component: &Component) -> Result<Map, ClientError> {
        let settings = self.settings();
        let root: ServiceRoot = self.get("read the service root", "/redfish/v1/").await?;
        let system = self
            .first_of(settings.system.as_ref(), root.systems, "list the systems")
            .await?;
        let manager = self
            .first_of(settings.manager.as_ref(), root.managers, "list the managers")
            .await?;
        let system_seen: System = self.read_or_default("read the system", system.as_ref()).await?;
        let manager_seen: Manager = self.read_or_default("read the manager", manager.as_ref()).await?;
        let vendors = [
            &root.vendor,
            &system_seen.manufacturer,
            &manager_seen.manufacturer,
            &settings.vendor,
        ];
        let models = [&system_seen.model, &manager_seen.model, &settings.model];
        let speaker = Speaker {
            vendors: vendors.into_iter().flatten().cloned().collect(),
            models: models.into_iter().flatten().cloned().collect(),
            firmware: manager_seen.firmware_version,
        };
        let dialect = settings.dialects.of(&speaker).clone();
        tracing::debug!(url = %settings.url, dialect = dialect.name(), ?speaker, "a BMC has been looked at");
        let update_service = root.update_service.map(|link| link.id);
        let service: UpdateService = self
            .read_or_default("read the update service", update_service.as_ref())
            .await?;
        let found = match &service.firmware_inventory {
            // Settings are no firmware.
            _ if settings.bios_settings.is_some() => None,
            Some(list) => {
                let expand = root.protocol_features_supported.expand_query;
                self.find_entry(list, &expand, component, &dialect).await?
            }
            None => None,
        };
        let (entry, entry_by) = found.unzip();
        Ok(Map {
            vendor: root.vendor,
            speaker,
            entry_by: entry_by.unwrap_or_default(),
            update_service,
            system,
            manager,
            chassis: self.first_of(None, root.chassis, "list the chassis").await?,
            tasks: root.tasks.map(|link| link.id),
            entry,
            dialect,
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
                let list: Collection = self.get(operation, &list.id).await?;
                Ok(list.members.into_iter().next().map(|link| link.id))
            }
        }
    }

    /// The inventory's entry for our component: the one the operator names, else one that the dialect knows, else one that bears
    /// the component's name.
    async fn find_entry(
        &self,
        list: &Link,
        expand: &Expand,
        component: &Component,
        dialect: &Dialect,
    ) -> Result<Option<(String, String)>, ClientError> {
        let list_link = list.id.trim_end_matches('/').to_owned();
        let list: Collection = match self.get("list the firmware inventory", &list.id).await {
            Err(error) if error.is_status(&[404]) => return Ok(None),
            other => other?,
        };
        let links: Vec<String> = list
            .members
            .into_iter()
            .take(INVENTORY_MAX)
            .map(|link| link.id)
            .collect();
        let named = self.settings().inventory.as_deref();
        let known = dialect.part(component).map_or(&[][..], |part| &part.inventory);
        let patterns: Vec<&str> = match named {
            Some(named) => vec![named],
            None => known.iter().map(String::as_str).chain([component.as_str()]).collect(),
        };
        let whose = |pattern: &str| match named {
            Some(_) => format!("`inventory` in the configuration, {pattern:?}"),
            None if pattern == component.as_str() => "the component's name".to_owned(),
            None => format!("the pattern {pattern:?} of the dialect"),
        };
        let by_link = |pattern: &&str| {
            let link = links.iter().find(|link| is_like(last_part(link), pattern));
            link.map(|link| (link.clone(), whose(pattern)))
        };
        if let Some(found) = patterns.iter().find_map(by_link) {
            return Ok(Some(found));
        }
        let entries = self.entries(&list_link, expand, &links).await?;
        for pattern in &patterns {
            let is_it = |entry: &&Inventory| is_like(&entry.id, pattern) || is_like(&entry.name, pattern);
            if let Some(entry) = entries.iter().find(is_it) {
                return Ok(Some((entry.link.clone(), whose(pattern))));
            }
        }
        let part_of_name = named.unwrap_or(component.as_str()).to_lowercase();
        let bears_it = |entry: &Inventory| entry.name.to_lowercase().contains(&part_of_name);
        let found = entries.into_iter().find(bears_it);
        Ok(found.map(|entry| (entry.link, format!("its Name, which has {part_of_name:?} in it"))))
    }

    /// The inventory's entries: in one answer where the BMC can, for a hundred of them take longer than a look may.
    pub(super) async fn entries(
        &self,
        list: &str,
        expand: &Expand,
        links: &[String],
    ) -> Result<Vec<Inventory>, ClientError> {
        let operation = "read the firmware inventory";
        let query = match (expand.no_links, expand.expand_all) {
            (true, _) => Some("$expand=."),
            (_, true) => Some("$expand=*"),
            _ => None,
        };
        if let Some(query) = query
            && let Ok(expanded) = self.get::<Entries>(operation, &format!("{list}?{query}")).await
            && !expanded.members.is_empty()
            && expanded
                .members
                .iter()
                .all(|entry| links.contains(&entry.link) && !entry.name.is_empty())
        {
            return Ok(expanded.members);
        }
        let mut entries = Vec::new();
        for link in links {
            match self.get::<Inventory>(operation, link).await {
                Ok(entry) => entries.push(Inventory {
                    link: link.clone(),
                    ..entry
                }),
                // One that is listed and broken says nothing of the others.
                Err(error) if error.is_status(&[404, 500, 501]) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    pub(super) async fn read_or_default<T: DeserializeOwned + Default>(
        &self,
        operation: &'static str,
        link: Option<&String>,
    ) -> Result<T, ClientError> {
        match link {
            None => Ok(T::default()),
            Some(link) => self.get(operation, link).await,
        }
    }
}

fn last_part(link: &str) -> &str {
    link.trim_end_matches('/').rsplit('/').next().unwrap_or("")
}
