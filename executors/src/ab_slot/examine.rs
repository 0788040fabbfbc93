//! What an update of a host with two slots leans on.

use std::fs;

use super::{AbSlotBackend, BootEnvPlace};
use crate::{
    backend::chain,
    examine::{self, Findings, failure, ok, warning},
    tool::PROGRAM_PATH,
};

impl AbSlotBackend {
    pub(crate) fn examine(&self, found: &mut Findings) {
        let settings = self.settings();
        examine::who(found);
        for (name, path) in [("slot A", &settings.slot_a), ("slot B", &settings.slot_b)] {
            examine::file("slots", name, path, true, found);
            if let Ok(metadata) = fs::metadata(path)
                && metadata.is_file()
            {
                let says = format!("{name} is a plain file, not a block device: nothing boots from it but an emulator");
                found.add(warning("slots", says).with("bytes", metadata.len()));
            }
        }
        for path in settings.env.paths() {
            examine::file("environment", "the boot environment", path, true, found);
        }
        match settings.env.read() {
            Ok(env) => {
                let trial = env.trial.map(|slot| format!(", slot {slot} on trial next"));
                let trial = trial.unwrap_or_default();
                found.add(ok("environment", format!("it starts slot {}{trial}", env.saved)));
            }
            Err(error) => found.add(failure("environment", chain(&error)).advising(match settings.env {
                BootEnvPlace::Grub(_) => {
                    "it has to be a GRUB environment block of 1024 bytes, as `grub-editenv FILE create` makes it"
                }
                BootEnvPlace::Uboot(_) => "`fw_printenv -c` with the same file says what U-Boot's tools make of it",
            })),
        }
        examine::file(
            "status",
            "the running system's status",
            &settings.status_file,
            false,
            found,
        );
        match &settings.health_file {
            Some(path) => examine::file("health", "the running system's health", path, false, found),
            None => found.add(
                warning(
                    "health",
                    "nobody says how the host is after an update: gates on health stay unknown",
                )
                .advising("name the file that the running system writes its health to, as `health_file`"),
            ),
        }
        let search = std::env::var("PATH").unwrap_or_else(|_unset| PROGRAM_PATH.to_owned());
        examine::program("the restart", &settings.reset_program, &search, found);
        if self.is_written_by_swupdate() {
            examine::program("what writes the slots", "swupdate", PROGRAM_PATH, found);
        }
    }
}
