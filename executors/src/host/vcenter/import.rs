//! The hosts that a vCenter has, as hosts and fault domains of ours: asked once, for a person who writes a node's configuration.
//!
//! Invariants: nothing is changed there; a host is imported only if the path that it would be found by names that host and no
//! other, by vCenter's own word; what hosts and clusters are called here depends on themselves alone and not on what else there
//! is, so that two imports agree, and no two of them are called the same. Texts of a vCenter are a stranger's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use firmesh_protocol::{
    ids::{DeviceId, LabelValue},
    limits::NAME_BYTES_MAX,
};
use serde::Serialize;
use sha2::Digest as _;

use super::{
    super::{
        config::{TEXT_BYTES_MAX, VcenterAccess},
        soap::{Element, Ref, argument},
    },
    client::{Client, Properties, Session, VcenterError},
    named_host,
};

/// How deep an inventory may be, and how many clusters, folders and datacenters it may have.
const DEPTH_MAX: usize = 32;
const PLACES_MAX: usize = 10_000;
/// The most of one text of a vCenter that is kept.
const TEXT_CHARS_MAX: usize = 128;
/// What stays of a name for a component after it: `-bios-settings`, and a little.
const HOST_NAME_BYTES_MAX: usize = NAME_BYTES_MAX - 18;

/// What is asked of a host. Groups are asked for whole where some of their members are too new for an older vCenter.
const OF_A_HOST: [&str; 9] = [
    "name",
    "parent",
    "runtime.connectionState",
    "runtime.inMaintenanceMode",
    "summary.hardware",
    "summary.config.product",
    "hardware.systemInfo",
    "hardware.biosInfo",
    "config.ipmi.bmcIpAddress",
];

/// What a vCenter has.
#[derive(Debug, Default)]
pub struct Imported {
    /// Hosts, by their paths.
    pub hosts: Vec<ImportedHost>,
    /// Hosts that cannot be imported.
    pub not: Vec<NotImported>,
}

/// A host of a vCenter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportedHost {
    /// What it is called here: a `[[host]]`, the unit of its devices, and the beginning of their ids.
    pub id: DeviceId,
    /// What it is called there.
    pub name: String,
    /// Its path in the inventory, as a `[[host]]` has it.
    pub path: String,
    /// Its datacenter there.
    pub datacenter: Option<String>,
    /// Its cluster there.
    pub cluster: Option<String>,
    /// The fault domain that its cluster is.
    pub cluster_label: Option<LabelValue>,
    /// Who made it.
    pub vendor: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// Its serial number or service tag.
    pub serial: Option<String>,
    /// The UUID of its hardware.
    pub uuid: Option<String>,
    /// The version of its BIOS.
    pub bios_version: Option<String>,
    /// When that was released.
    pub bios_released: Option<String>,
    /// The version of ESXi.
    pub esxi_version: Option<String>,
    /// Its build.
    pub esxi_build: Option<String>,
    /// `connected`, `notResponding` or `disconnected`.
    pub connection: Option<String>,
    /// Whether it is in maintenance mode.
    pub in_maintenance: Option<bool>,
    /// The address of its BMC, where vCenter was told.
    pub bmc_address: Option<IpAddr>,
    /// What vCenter did not tell, and why not.
    pub untold: Option<String>,
}

/// A host that cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotImported {
    /// Its name or its number.
    pub name: String,
    /// Why not.
    pub reason: String,
}

/// Why a vCenter's hosts could not be had.
#[derive(Debug, thiserror::Error)]
#[error("the hosts of the vCenter could not be read")]
pub struct ImportError {
    source: VcenterError,
}

/// A cluster, folder or datacenter.
#[derive(Debug)]
struct Place {
    name: String,
    parent: Ref,
}

/// An inventory, but for its hosts.
#[derive(Debug)]
struct Places {
    /// What tells this vCenter from others. Numbers of objects are its own: another one has the same.
    instance: String,
    root: Ref,
    known: BTreeMap<Ref, Place>,
}

/// Asks a vCenter for its hosts: all of them, or those below these paths of its inventory.
pub async fn import(access: &VcenterAccess, below: &[String]) -> Result<Imported, ImportError> {
    let asked = async {
        let client = Client::new(access)?;
        let session = client.login().await?;
        let found = ask(&session, below).await;
        session.close().await;
        found
    };
    asked.await.map_err(|source| ImportError { source })
}

async fn ask(session: &Session<'_>, below: &[String]) -> Result<Imported, VcenterError> {
    let services = &session.services;
    let mut places = Places {
        instance: services.about("instanceUuid")?.to_owned(),
        root: services.object("rootFolder")?,
        known: BTreeMap::new(),
    };
    let wanted = [
        places.root.argument("container"),
        argument("type", "HostSystem"),
        argument("recursive", "true"),
    ];
    let view = session
        .call(
            "CreateContainerView",
            &services.object("viewManager")?,
            &wanted.concat(),
        )
        .await?;
    let view = view.child("returnval").and_then(Element::reference);
    let view = view.ok_or_else(|| VcenterError::NotSaid("which hosts it has".to_owned()))?;
    let listed = session.read_one(&view, &["view"]).await?.references("view")?;
    let hosts = session.read_told(&listed, &OF_A_HOST).await?;
    places.read(session, &hosts).await?;

    let mut imported = sort_out(&listed, &hosts, &places, below);
    let mut named = Vec::new();
    for (object, host) in imported.hosts {
        // What a node would do with the configuration.
        match named_host(session, &host.path).await {
            Ok(found) if found == object => named.push(host),
            Ok(_) => imported
                .not
                .push(host.not("its path names another host in vCenter, too")),
            Err(VcenterError::NoSuchHost(_)) => {
                imported.not.push(host.not("vCenter does not find it by its path"));
            }
            Err(error) => return Err(error),
        }
    }
    imported.not.sort_by(|one, two| one.name.cmp(&two.name));
    let (hosts, not) = (named, imported.not);
    Ok(Imported { hosts, not })
}

impl Places {
    /// Reads everything that hosts are in, up to the root.
    async fn read(&mut self, session: &Session<'_>, hosts: &[Properties]) -> Result<(), VcenterError> {
        let mut next: BTreeSet<Ref> = hosts.iter().filter_map(parent).collect();
        for _ in 0..DEPTH_MAX {
            next.retain(|place| *place != self.root && !self.known.contains_key(place));
            if self.known.len() + next.len() > PLACES_MAX {
                return Err(VcenterError::TooMany(self.known.len() + next.len()));
            }
            let mut by_kind: BTreeMap<String, Vec<Ref>> = BTreeMap::new();
            for place in std::mem::take(&mut next) {
                by_kind.entry(place.kind.clone()).or_default().push(place);
            }
            for of_a_kind in by_kind.values() {
                for place in session.read_told(of_a_kind, &["name", "parent"]).await? {
                    // Without a name, or without what it is in, nobody knows its path.
                    let name = place.text("name").to_owned();
                    if let Some(parent) = parent(&place).filter(|_| !name.is_empty()) {
                        next.insert(parent.clone());
                        self.known.insert(place.object, Place { name, parent });
                    }
                }
            }
        }
        Ok(())
    }

    /// What a host is in, from it to the root, which is in no path.
    fn way(&self, host: &Properties) -> Option<Vec<(Ref, &str)>> {
        let mut way = Vec::new();
        let mut next = parent(host)?;
        while next != self.root {
            let place = self.known.get(&next).filter(|_| way.len() < DEPTH_MAX)?;
            way.push((next, place.name.as_str()));
            next = place.parent.clone();
        }
        Some(way)
    }
}

fn parent(of: &Properties) -> Option<Ref> {
    of.references("parent").ok()?.into_iter().next()
}

#[derive(Debug, Default)]
struct Sorted {
    hosts: Vec<(Ref, ImportedHost)>,
    not: Vec<NotImported>,
}

/// Which of these hosts can be imported, and as what.
fn sort_out(listed: &[Ref], hosts: &[Properties], places: &Places, below: &[String]) -> Sorted {
    let mut sorted = Sorted::default();
    let told: BTreeSet<&Ref> = hosts.iter().map(|host| &host.object).collect();
    let gone = listed.iter().filter(|object| !told.contains(object));
    sorted.not.extend(gone.map(|object| NotImported {
        name: plain(&object.id).unwrap_or_default(),
        reason: "vCenter lists it and tells nothing of it: it is gone, or the account may not see it".to_owned(),
    }));
    for host in hosts {
        match one(host, places) {
            Ok(found) => sorted.hosts.push((host.object.clone(), found)),
            // Nobody knows whether it would have been asked for.
            Err(not) => sorted.not.push(not),
        }
    }
    let mut count: BTreeMap<DeviceId, usize> = BTreeMap::new();
    for (_, host) in &sorted.hosts {
        *count.entry(host.id.clone()).or_default() += 1;
    }
    let all = std::mem::take(&mut sorted.hosts);
    // Whoever imports the other one's rack would find it alone.
    for (object, host) in all.into_iter().filter(|(_, host)| is_below(&host.path, below)) {
        match count.get(&host.id) {
            Some(1) => sorted.hosts.push((object, host)),
            _ => sorted
                .not
                .push(host.not("another host of this vCenter has the same name")),
        }
    }
    sorted.hosts.sort_by(|(_, one), (_, two)| one.path.cmp(&two.path));
    sorted
}

/// One host, if it can be imported.
fn one(host: &Properties, places: &Places) -> Result<ImportedHost, NotImported> {
    let object = &host.object;
    let name = host.text("name");
    let not = |reason: String| NotImported {
        name: plain(name).or_else(|| plain(&object.id)).unwrap_or_default(),
        reason,
    };
    let untold = || {
        host.untold
            .as_deref()
            .map_or_else(String::new, |what| format!(": {what}"))
    };
    if name.is_empty() {
        return Err(not(format!("vCenter does not tell its name{}", untold())));
    }
    let way = places
        .way(host)
        .ok_or_else(|| not(format!("vCenter does not tell where it is{}", untold())))?;
    let path: String = way.iter().rev().map(|(_, name)| format!("/{name}")).collect();
    let path = format!("{path}/{name}");
    if path.len() > TEXT_BYTES_MAX {
        return Err(not(format!(
            "its path in the inventory is longer than {TEXT_BYTES_MAX} bytes"
        )));
    }
    let nearest = |kind: &str| way.iter().find(|(place, _)| place.kind == kind);
    let cluster = nearest("ClusterComputeResource");
    let cluster_label = match cluster {
        Some((place, name)) => {
            let label = marked(name, &mark(&places.instance, place), NAME_BYTES_MAX);
            Some(LabelValue::new(label).map_err(|error| not(format!("its cluster cannot be a label: {error}")))?)
        }
        None => None,
    };
    // Names of hosts are DNS names or addresses, and those have no case.
    let id = called(
        &name.to_ascii_lowercase(),
        &mark(&places.instance, object),
        HOST_NAME_BYTES_MAX,
    );
    let id = DeviceId::new(id).map_err(|error| not(format!("its name cannot be one of ours: {error}")))?;

    let of = |property: &str, names: &[&str]| {
        let found = host.value(property).and_then(|value| value.element().at(names));
        found.and_then(|element| plain(&element.text))
    };
    let hardware = |names: &[&str]| of("hardware.systemInfo", names).or_else(|| of("summary.hardware", names));
    let address = host.text("config.ipmi.bmcIpAddress").parse::<IpAddr>().ok();
    let text = |property: &str| plain(host.text(property));
    Ok(ImportedHost {
        id,
        name: plain(name).unwrap_or_default(),
        path,
        datacenter: nearest("Datacenter").and_then(|(_, name)| plain(name)),
        cluster: cluster.and_then(|(_, name)| plain(name)),
        cluster_label,
        vendor: hardware(&["vendor"]),
        model: hardware(&["model"]),
        serial: of("hardware.systemInfo", &["serialNumber"]).or_else(|| tag(host)),
        uuid: hardware(&["uuid"]),
        bios_version: of("hardware.biosInfo", &["biosVersion"]),
        bios_released: of("hardware.biosInfo", &["releaseDate"]).map(|time| time.chars().take(10).collect()),
        esxi_version: of("summary.config.product", &["version"]),
        esxi_build: of("summary.config.product", &["build"]),
        connection: text("runtime.connectionState"),
        in_maintenance: host.flag("runtime.inMaintenanceMode").ok(),
        bmc_address: address.filter(|address| !address.is_unspecified() && !address.is_loopback()),
        untold: host.untold.clone(),
    })
}

/// A serial number among what else identifies a host: older vCenters have it nowhere else.
fn tag(host: &Properties) -> Option<String> {
    ["hardware.systemInfo", "summary.hardware"].iter().find_map(|property| {
        let group = host.value(property)?.element();
        ["SerialNumberTag", "ServiceTag", "EnclosureSerialNumberTag"]
            .iter()
            .find_map(|key| {
                let is_it = |info: &&Element| {
                    info.at(&["identifierType", "key"])
                        .is_some_and(|kind| kind.text.trim() == *key)
                };
                let info = group.all("otherIdentifyingInfo").find(is_it)?;
                plain(&info.child("identifierValue")?.text)
            })
    })
}

impl ImportedHost {
    fn not(self, reason: &str) -> NotImported {
        NotImported {
            name: self.path,
            reason: reason.to_owned(),
        }
    }
}

/// Whether a path is below one of these, or one of them; anything is below none.
fn is_below(path: &str, below: &[String]) -> bool {
    below.is_empty()
        || below.iter().any(|above| {
            let rest = path.trim_matches('/').strip_prefix(above.trim_matches('/'));
            rest.is_some_and(|rest| above.trim_matches('/').is_empty() || rest.is_empty() || rest.starts_with('/'))
        })
}

/// What tells one object from all others, also those of other vCenters.
fn mark(instance: &str, object: &Ref) -> String {
    let digest = sha2::Sha256::digest(format!("{instance}\n{}\n{}", object.kind, object.id));
    hex::encode(&digest[..4])
}

/// A text as a name of at most so many bytes: as it is, if it can be one, and else with a mark.
fn called(text: &str, mark: &str, bytes_max: usize) -> String {
    match text.len() <= bytes_max && DeviceId::new(text).is_ok() {
        true => text.to_owned(),
        false => marked(text, mark, bytes_max),
    }
}

/// The same, with the mark in any case.
fn marked(text: &str, mark: &str, bytes_max: usize) -> String {
    let mut name = String::new();
    for character in text.chars().take(bytes_max.saturating_sub(mark.len() + 1)) {
        match character {
            c if c.is_ascii_alphanumeric() => name.push(c),
            c @ ('.' | '_' | '-') if !name.is_empty() => name.push(c),
            _ if name.is_empty() || name.ends_with('-') => {}
            _ => name.push('-'),
        }
    }
    match name.trim_end_matches('-') {
        "" => mark.to_owned(),
        name => format!("{name}-{mark}"),
    }
}

/// A text that strangers chose, as it is kept.
fn plain(text: &str) -> Option<String> {
    let plain: String = text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect();
    (!plain.trim().is_empty()).then(|| plain.trim().to_owned())
}

#[cfg(test)]
mod tests;
