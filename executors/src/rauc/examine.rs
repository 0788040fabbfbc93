//! What an update by RAUC leans on.

use super::RaucBackend;
use crate::{
    examine::{self, Findings},
    tool::PROGRAM_PATH,
};

impl RaucBackend {
    pub(crate) fn examine(&self, found: &mut Findings) {
        let settings = self.settings();
        examine::who(found);
        examine::program("what writes the slots", "rauc", PROGRAM_PATH, found);
        if let Some(program) = settings.reset_command.first() {
            examine::program("the restart", program, PROGRAM_PATH, found);
        }
        examine::folder("its working folder", &settings.work_dir, found);
        for (what, path) in [
            ("what names the running system", &settings.os_release),
            ("what names its start", &settings.boot_id_file),
        ] {
            examine::file("status", what, path, false, found);
        }
    }
}
