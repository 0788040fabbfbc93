//! What a BMC supports and what would be done with it, found out by reading alone.
//!
//! Every question is the executor's own where it has one, so that what is told is what would happen; the rest is read for a
//! person. One question that fails is a finding, and the others are asked nevertheless.

use firmesh_executors_core::{Rung, TaskState};
use serde::de::DeserializeOwned;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    backend::{RedfishBackend, clock_off_s},
    bios,
    client::ClientError,
    dialect::Method,
    discovery::{INVENTORY_MAX, Map, version_beside},
    stage::{ON_START_UPDATE, is_wanted, way},
    wire::{Action, Collection, Inventory, Link, Manager, System, UpdateService},
};
use crate::{
    backend::chain,
    examine::{Findings, failure, ladder, ok, warning},
};

/// A clock further off than this is told of, as an attempt that failed tells of it.
const CLOCK_OFF_MAX_S: u64 = 300;
/// A certificate that expires sooner is told of.
const EXPIRES_WITHIN_S: i64 = 30 * 86_400;
/// Entries of an inventory that are listed for a person.
const LISTED_MAX: usize = 24;

const METHODS: [Method; 4] = [Method::SimpleUpdate, Method::Multipart, Method::Form, Method::HttpPush];

impl RedfishBackend {
    pub(crate) async fn examine(&self, found: &mut Findings) {
        let Some((root, map)) = self.examine_service(found).await else {
            return;
        };
        let system: System = self.read(found, "system", map.system.as_ref()).await;
        let manager: Manager = self.read(found, "manager", map.manager.as_ref()).await;
        self.examine_identity(&map, &system, &manager, found).await;
        let service: UpdateService = self.read(found, "update service", map.update_service.as_ref()).await;
        self.examine_inventory(&map, &service, (&system, &manager), found).await;
        self.examine_update(&map, service, found).await;
        self.examine_resets(&map, &system, &manager, found).await;
        self.examine_tasks(&map, found).await;
        self.examine_rest(&root, &system, found).await;
    }

    /// Connection, service root, login, dialect; nothing if there is no use in asking on.
    pub(super) async fn examine_service(&self, found: &mut Findings) -> Option<(Value, Map)> {
        let url = &self.client.settings().url;
        let host = url.host_str().unwrap_or_default();
        match self.client.certificate().await {
            Ok(Some(der)) => certificate(host, &der, found),
            Ok(None) if self.orders_replayed().is_some() => {
                found.ok("connection", "a transcript answers, and not the device");
            }
            Ok(None) => found.ok("connection", "the connection is plain HTTP, on loopback"),
            Err(error) => {
                found.add(failure("connection", chain(&error)).advising(
                    "see that the address is right and reachable from this node, and that `ca_file` holds what issued the BMC's \
                     certificate",
                ));
                return None;
            }
        }
        let root: Value = match self.client.get("read the service root", "/redfish/v1/").await {
            Ok(root) => root,
            Err(error) => {
                let advice = match &error {
                    ClientError::Credentials { .. } => {
                        "see that the user name and the password are right and the account is not locked"
                    }
                    _ => "see that Redfish is enabled on the BMC",
                };
                found.add(failure("service", chain(&error)).advising(advice));
                return None;
            }
        };
        let text = |name: &str| root.get(name).and_then(Value::as_str).map(str::to_owned);
        let version = text("RedfishVersion").unwrap_or_else(|| "an unknown version".to_owned());
        let product = text("Product")
            .map(|product| format!(", {product}"))
            .unwrap_or_default();
        let finding = ok("service", format!("it speaks Redfish {version}{product}"));
        found.add(finding.with("redfish_version", version));
        self.examine_sessions(&root, found).await;
        // What was found before may be gone.
        *self.map.lock().await = None;
        match self.client.discover(&self.component).await {
            Ok(map) => {
                let dialects = &self.client.settings().dialects;
                let name = map.dialect.name().to_owned();
                let says = format!(
                    "it is spoken to in the dialect {name:?}: {}",
                    dialects.why(&map.speaker)
                );
                found.add(ok("dialect", says).with("name", name));
                Some((root, map))
            }
            Err(error) => {
                let advice = "everything an executor does begins with this: see what the BMC answers there";
                found.add(failure("service", chain(&error)).advising(advice));
                None
            }
        }
    }

    async fn examine_sessions(&self, root: &Value, found: &mut Findings) {
        let has_session = self.client.has_session().await;
        let finding = match has_session {
            true => ok("sessions", "it opens sessions, and requests go with one"),
            false => warning(
                "sessions",
                "it opens no session for us: every request carries the account",
            )
            .advising("see whether all of its sessions are taken, or its session service is switched off"),
        };
        found.add(finding.with("session", has_session));
        let Some(link) = link_of(root, "SessionService") else {
            return;
        };
        // Few accounts may read it.
        if let Ok(service) = self.client.get::<Value>("read the session service", &link).await
            && let Some(seconds) = service.get("SessionTimeout").and_then(Value::as_u64)
        {
            found.add(ok("sessions", format!("an idle session ends after {seconds} s")).with("timeout_s", seconds));
        }
    }

    pub(super) async fn examine_identity(&self, map: &Map, system: &System, manager: &Manager, found: &mut Findings) {
        match self.identity(map, system).await {
            Err(error) => found.add(failure("identity", chain(&error))),
            Ok((vendor, model)) => {
                for (what, text) in [("vendor", &vendor), ("model", &model)] {
                    if text.is_empty() {
                        let says = format!("nobody says its {what}: no release would be for it");
                        found.add(
                            failure("identity", says).advising(format!("say `{what}` in the device's configuration")),
                        );
                    }
                }
                let finding = ok(
                    "identity",
                    format!("it is a {model:?} of {vendor:?}: releases have to be for these"),
                );
                found.add(finding.with("vendor", vendor).with("model", model));
            }
        }
        if map.system.is_none() {
            found.add(warning(
                "system",
                "it has no system: nothing but the BMC itself could be restarted",
            ));
        }
        if map.manager.is_none() {
            found.add(warning(
                "manager",
                "it has no manager: its clock is not known, and a stalled task could not be ended",
            ));
        }
        let settings = self.client.settings();
        for (name, list, chosen) in [
            ("system", "/redfish/v1/Systems", &settings.system),
            ("manager", "/redfish/v1/Managers", &settings.manager),
        ] {
            let listed = match chosen {
                None => self.client.get::<Collection>("count what there is", list).await.ok(),
                Some(_) => None,
            };
            if let Some(listed) = listed.filter(|listed| listed.members.len() > 1) {
                let says = format!("it has {} {name}s, and the first one is meant", listed.members.len());
                found.add(warning(name, says).advising(format!("name the right one by its @odata.id, as `{name}`")));
            }
        }
        match manager.date_time.as_deref().and_then(clock_off_s) {
            None => found.add(warning("clock", "it does not tell its time")),
            Some(off_s) => {
                let way = if off_s < 0 { "behind" } else { "ahead of" };
                let says = format!("its clock is {} s {way} this node's", off_s.unsigned_abs());
                let finding = match off_s.unsigned_abs() > CLOCK_OFF_MAX_S {
                    true => warning("clock", says)
                        .advising("set it, or have it ask a time server: it may refuse valid certificates"),
                    false => ok("clock", says),
                };
                found.add(finding.with("off_s", off_s));
            }
        }
    }

    async fn examine_inventory(
        &self,
        map: &Map,
        service: &UpdateService,
        (system, manager): (&System, &Manager),
        found: &mut Findings,
    ) {
        let component = &self.component;
        let beside = version_beside(component, system, manager);
        let Some(link) = &map.entry else {
            let listed = self.listed(service.firmware_inventory.as_ref()).await;
            let finding = match &beside {
                Some(version) => warning(
                    "inventory",
                    format!("no entry of its inventory is the {component}; its owner says that it runs {version}"),
                ),
                None => failure(
                    "inventory",
                    format!(
                        "no entry of its inventory is the {component}, and nothing else tells its version: no update would begin"
                    ),
                ),
            };
            let advice = match listed.is_empty() {
                true => "it lists nothing: see whether the account may read it, or the host has to be on".to_owned(),
                false => format!("name the right one as `inventory`: {}", listed.join(", ")),
            };
            return found.add(finding.advising(advice).with("entries", listed));
        };
        let entry: Inventory = self.read(found, "inventory", Some(link)).await;
        let version = entry.version.clone().filter(|version| !version.is_empty()).or(beside);
        let says = format!("the {component} is {link}, found by {}", map.entry_by);
        found.add(ok("inventory", says).with("entry", link.as_str()));
        match version {
            Some(version) => found.add(ok("version", format!("it runs {version}")).with("version", version)),
            None => found.add(failure("version", "the entry has no version: no update would begin")),
        }
        if entry.updateable == Some(false) {
            let says = "it says that it cannot be updated (Updateable): an image would be refused";
            found.add(failure("inventory", says).advising("another entry may be the right one: see `inventory`"));
        }
        if let Some(least) = entry.lowest_supported_version {
            let says = format!("it takes nothing before {least} (LowestSupportedVersion)");
            found.add(ok("inventory", says).with("lowest_supported_version", least));
        }
    }

    /// The names of what the inventory lists.
    async fn listed(&self, list: Option<&Link>) -> Vec<String> {
        let Some(list) = list else { return Vec::new() };
        let listed: Collection = self
            .client
            .get("list the firmware inventory", &list.id)
            .await
            .unwrap_or_default();
        let names = listed.members.into_iter().take(INVENTORY_MAX).map(|link| link.id);
        let last = |link: String| {
            link.trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        names.map(last).take(LISTED_MAX).collect()
    }

    async fn examine_update(&self, map: &Map, mut service: UpdateService, found: &mut Findings) {
        if map.update_service.is_none() {
            let says = "it has no update service: no image could be brought";
            return found
                .add(failure("update service", says).advising("see whether a licence or a newer firmware brings it"));
        }
        if service.service_enabled == Some(false) {
            let says = "its update service is switched off (ServiceEnabled): images would be refused";
            found.add(failure("update service", says).advising("switch it on"));
        }
        let finding = match service.image_bytes_max() {
            Some(max) => ok("size", format!("it takes images up to {max} bytes (MaxImageSizeBytes)"))
                .with("image_bytes_max", max),
            None => ok("size", "it names no bound to the size of an image"),
        };
        found.add(finding);
        if let Some(action) = &mut service.actions.simple_update
            && let Err(error) = self.complete(action).await
        {
            found.add(warning(
                "way",
                format!("what SimpleUpdate takes could not be read: {}", chain(&error)),
            ));
        }
        let has_start = service.actions.start_update.is_some();
        let says = if has_start {
            "it offers StartUpdate"
        } else {
            "it offers no StartUpdate"
        };
        found.add(ok("start", says).with("offered", has_start));
        self.examine_ways(map, &service, found);
    }

    /// The ways that an image could go, in the order in which they are tried.
    fn examine_ways(&self, map: &Map, service: &UpdateService, found: &mut Findings) {
        let (dialect, component) = (&map.dialect, &self.component);
        let targets = dialect.targets(component, map.target(component));
        let mut chosen = None;
        let tried = dialect.update.methods.iter().copied();
        let untried = METHODS
            .into_iter()
            .filter(|method| !dialect.update.methods.contains(method));
        for method in tried.chain(untried) {
            let name = method.name();
            let offered = way(service, dialect, component, &targets, method);
            let times = service.apply_times(method);
            let is_tried = dialect.update.methods.contains(&method);
            let wanted = is_wanted(self.client.settings().update, method);
            let (says, is_used) = match (&offered, is_tried, wanted, &chosen) {
                (Err(why), ..) => (format!("{name}: not to be had, {why}"), false),
                (Ok(_), false, ..) => (
                    format!("{name}: offered, and not used in the dialect {:?}", dialect.name()),
                    false,
                ),
                (Ok(_), true, false, _) => (
                    format!("{name}: offered, and not wanted by `update` in the configuration"),
                    false,
                ),
                (Ok(_), true, true, Some(first)) => {
                    (format!("{name}: offered, and tried if {first} is refused"), false)
                }
                (Ok(way), true, true, None) => {
                    let time = match &way.apply_time {
                        Some(time) => format!("to take effect {time}"),
                        None => "to take effect when the BMC likes".to_owned(),
                    };
                    let begins = match way.apply_time.as_deref() == Some(ON_START_UPDATE) {
                        true => ", begun by StartUpdate once the image was checked",
                        false => "",
                    };
                    (format!("{name}: used, by {}, {time}{begins}", way.address), true)
                }
            };
            let mut finding = ok("way", says).with("name", name).with("used", is_used);
            finding = finding.with("offered", offered.is_ok()).with("apply_times", times);
            if let Ok(way) = offered.as_ref() {
                finding = finding.with("apply_time", way.apply_time.clone());
            }
            found.add(finding);
            if is_used {
                chosen = Some(name);
            }
        }
        match chosen {
            None => found.add(failure("way", "there is no way to bring it an image").advising(
                "see what each way lacks above; `update` in the configuration may narrow them, a licence may be missing",
            )),
            Some("simple_update") => {
                found.ok("way", "the BMC fetches the image itself: it has to reach the node's `images` address over HTTPS, and trust its certificate");
            }
            Some(_) => {}
        }
        if !targets.is_empty() {
            found.add(ok("targets", format!("the update is for {}", targets.join(", "))).with("targets", targets));
        }
    }

    pub(super) async fn examine_resets(&self, map: &Map, system: &System, manager: &Manager, found: &mut Findings) {
        for (what, action) in [("system", &system.actions.reset), ("manager", &manager.actions.reset)] {
            let Some(action) = action else {
                found.add(ok("resets", format!("the {what} offers no reset")).with("of", what));
                continue;
            };
            let mut action: Action = action.clone();
            if let Err(error) = self.complete(&mut action).await {
                found.add(warning(
                    "resets",
                    format!("the resets of the {what} could not be read: {}", chain(&error)),
                ));
            }
            let says = match action.reset_types.is_empty() {
                true => format!("the {what} names no types of reset: ForceRestart is taken for one"),
                false => format!("the {what} takes {}", action.reset_types.join(", ")),
            };
            found.add(ok("resets", says).with("of", what).with("types", action.reset_types));
        }
        let (ready, start, resets) = self.state(map, system, manager);
        let wanted = self.rungs(map);
        if wanted.is_empty() {
            found.ok("resets", "the dialect has the new version start by itself");
        } else {
            ladder(&resets, found);
            let missing: Vec<&str> = wanted
                .iter()
                .filter(|rung| !resets.contains(rung))
                .map(|&rung| crate::examine::name(rung))
                .collect();
            if !missing.is_empty() {
                found.add(warning(
                    "resets",
                    format!("not offered, and so passed over: {}", missing.join(", ")),
                ));
            }
            if !resets.contains(&Rung::Ac) {
                found.ok("resets", "its input power is never taken away: `ac_reset` in the configuration would allow it where it is offered");
            }
        }
        if !ready {
            let says = "it has not finished starting: no update would begin now";
            found.add(warning("ready", says).advising("wait for the host to be up, or switch it on"));
        }
        found.add(match start {
            Some(start) => ok("starts", format!("it tells one start from the next: the last was at {start} (LastResetTime)")),
            None => warning(
                "starts",
                "it does not tell one start from the next (LastResetTime): an unchanged version is believed only after the whole time to come back",
            ),
        });
    }

    pub(super) async fn examine_tasks(&self, map: &Map, found: &mut Findings) {
        if map.dialect.progress.is_some() {
            found.ok("tasks", "the update service itself tells how an update goes");
        } else if map.tasks.is_none() {
            found.add(warning(
                "tasks",
                "it has no task service: an update is watched by its version alone, and takes the time that it may",
            ));
        }
        match self.see_any_task(map).await {
            Err(error) => found.add(warning(
                "tasks",
                format!("its tasks could not be read: {}", chain(&error)),
            )),
            Ok(None) => found.ok("tasks", "there is no task of an update"),
            Ok(Some(task)) => {
                let name = task.name.clone().unwrap_or_default();
                let (finding, advice) = match task.state {
                    TaskState::Active => (
                        warning("tasks", format!("{name} is at work: an update would wait for it")),
                        Some("let it end"),
                    ),
                    TaskState::AwaitsReset => (
                        warning(
                            "tasks",
                            format!("{name} waits for a restart: an update would wait for it"),
                        ),
                        Some("restart the device, or delete the task"),
                    ),
                    state => (
                        ok(
                            "tasks",
                            format!("the newest task of an update, {name}, is over: {state:?}"),
                        ),
                        None,
                    ),
                };
                found.add(match advice {
                    Some(advice) => finding.advising(advice),
                    None => finding,
                });
            }
        }
    }

    /// What no update leans on, and a person wants to know.
    pub(super) async fn examine_rest(&self, root: &Value, system: &System, found: &mut Findings) {
        match link_of(root, "EventService") {
            None => found.ok("events", "it has no event service; none is needed: tasks are asked"),
            Some(link) => match self.client.get::<Value>("read the event service", &link).await {
                Ok(service) => {
                    let enabled = service.get("ServiceEnabled").and_then(Value::as_bool) != Some(false);
                    let stream = service.get("ServerSentEventUri").and_then(Value::as_str).is_some();
                    let says = format!(
                        "it has an event service, {}, {} a stream of events; they are not used: tasks are asked",
                        if enabled { "enabled" } else { "switched off" },
                        if stream { "with" } else { "without" },
                    );
                    found.add(ok("events", says).with("enabled", enabled).with("stream", stream));
                }
                Err(error) => found.ok("events", format!("its event service cannot be read: {}", chain(&error))),
            },
        }
        if self.client.settings().bios_settings.is_none() {
            let says = match bios::Bios::read(&self.client, system.bios.as_ref()).await {
                Ok(bios) => format!(
                    "the BIOS has {} attributes{}",
                    bios.attributes.len(),
                    match bios.settings {
                        Some(_) => ", and takes changes for its next start: `bios_settings` would roll them out",
                        None => ", and takes no changes for its next start",
                    }
                ),
                Err(error) => format!("its BIOS shows no attributes: {}", chain(&error)),
            };
            found.ok("bios", says);
        }
        if let Some(transcript) = &self.client.settings().transcript {
            found.ok(
                "transcript",
                format!("what is said is written down in {}", transcript.dir.display()),
            );
        }
    }

    /// Reads a resource, or tells that it cannot be read.
    pub(super) async fn read<T: DeserializeOwned + Default>(
        &self,
        found: &mut Findings,
        part: &'static str,
        link: Option<&String>,
    ) -> T {
        match self.client.read_or_default("read a resource", link).await {
            Ok(resource) => resource,
            Err(error) => {
                let says = format!("the {part} cannot be read: {}", chain(&error));
                found.add(failure(part, says).advising("a look at the device fails there, and it counts as silent"));
                T::default()
            }
        }
    }
}

fn link_of(resource: &Value, name: &str) -> Option<String> {
    Some(resource.get(name)?.get("@odata.id")?.as_str()?.to_owned())
}

fn certificate(host: &str, der: &[u8], found: &mut Findings) {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return found.add(warning(
            "connection",
            "its certificate is taken, and cannot be read here",
        ));
    };
    let until_s = certificate.validity().not_after.timestamp();
    let left_s = until_s - jiff::Timestamp::now().as_second();
    let until = jiff::Timestamp::from_second(until_s).map(|until| until.to_string());
    let until = until.unwrap_or_else(|_| "a time out of this calendar".to_owned());
    let says = format!("{host} shows a certificate that is trusted, until {until}");
    let finding = match left_s < EXPIRES_WITHIN_S {
        true => warning("connection", says).advising("renew it: once it has expired the BMC is not spoken to any more"),
        false => ok("connection", says),
    };
    found.add(finding.with("certificate_until", until));
}
