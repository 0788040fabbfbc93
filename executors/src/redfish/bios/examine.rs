//! What an update of the BIOS's settings leans on.

use super::{
    super::wire::{Manager, System},
    Bios, BiosBackend, ON_RESET, Standing, UNMANAGED, registry,
};
use crate::{
    backend::chain,
    examine::{Findings, failure, folder, ok, warning},
};

impl BiosBackend {
    pub(crate) async fn examine(&self, found: &mut Findings) {
        let redfish = &self.redfish;
        let Some((root, map)) = redfish.examine_service(found).await else {
            return;
        };
        let system: System = redfish.read(found, "system", map.system.as_ref()).await;
        let manager: Manager = redfish.read(found, "manager", map.manager.as_ref()).await;
        redfish.examine_identity(&map, &system, &manager, found).await;
        match Bios::read(&redfish.client, system.bios.as_ref()).await {
            Ok(bios) => self.examine_bios(&bios, found).await,
            Err(error) => found.add(
                failure("bios", format!("its BIOS shows no attributes: {}", chain(&error)))
                    .advising("see whether a licence or a newer firmware brings them, or the host has to be on once"),
            ),
        }
        folder(
            "the folder for what is known of the documents",
            &self.settings.work_dir,
            found,
        );
        redfish.examine_resets(&map, &system, &manager, found).await;
        redfish.examine_tasks(&map, found).await;
        redfish.examine_rest(&root, &system, found).await;
    }

    async fn examine_bios(&self, bios: &Bios, found: &mut Findings) {
        let says = format!("its BIOS has {} attributes", bios.attributes.len());
        found.add(ok("bios", says).with("attributes", bios.attributes.len()));
        match &bios.settings {
            Some(pending) => {
                let has_time = pending.apply_times.iter().any(|time| time == ON_RESET);
                let time = if has_time {
                    "at a reset, which is asked for"
                } else {
                    "when the BIOS likes, a reset at the latest"
                };
                found.add(
                    ok(
                        "settings",
                        format!("changes go to {}, and take effect {time}", pending.link),
                    )
                    .with("apply_times", pending.apply_times.clone()),
                );
            }
            None => found.add(failure(
                "settings",
                "it takes no changes for its next start (@Redfish.Settings): none could be made",
            )),
        }
        match &bios.registry {
            None => found.add(warning(
                "registry",
                "it names no attribute registry: values are checked by their type alone",
            )),
            Some(name) => match registry::read(&self.redfish.client, name).await {
                Ok(Some(entries)) => found.add(
                    ok(
                        "registry",
                        format!("its registry {name} describes {} attributes", entries.len()),
                    )
                    .with("attributes", entries.len()),
                ),
                Ok(None) => found.add(warning(
                    "registry",
                    format!("its registry {name} is not to be had: values are checked by their type alone"),
                )),
                Err(error) => found.add(failure(
                    "registry",
                    format!("its registry {name} cannot be read: {}", chain(&error)),
                )),
            },
        }
        let books = match self.books().await {
            Ok(books) => books,
            Err(error) => return found.add(failure("documents", chain(&error))),
        };
        let standing = Standing::of(&books, &self.settings.documents, bios);
        let finding = match &standing.named_by {
            None => warning("version", format!("its settings are no document's that is known here, which is the version {UNMANAGED:?}"))
                .advising("name the document that it runs now in `bios_settings`, as one of `documents`: a campaign could go back to it"),
            Some(held) => {
                let differing = held.document.differing(&bios.attributes);
                let listed: Vec<String> = differing.iter().map(ToString::to_string).collect();
                match listed.is_empty() {
                    true => ok("version", format!("its settings are those of {}", standing.version)),
                    false => warning("version", format!("its settings are those of {} but for {}", held.document.version, listed.join(", "))),
                }
            }
        };
        found.add(finding.with("version", standing.version.as_str()));
        let ours: Vec<_> = books.wanted.iter().map(|held| &held.document).collect();
        let foreign = bios.foreign(&ours);
        if !foreign.is_empty() {
            let says = format!(
                "settings of somebody else wait for a reset, and a document would be refused: {}",
                foreign.join(", ")
            );
            found.add(failure("settings", says).advising("apply or discard them first"));
        }
    }
}
