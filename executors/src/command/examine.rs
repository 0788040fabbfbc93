//! What an update by a described tool leans on.

use super::CommandBackend;
use crate::{
    backend::chain,
    examine::{self, Findings, failure, ok, warning},
    tool::PROGRAM_PATH,
};

impl CommandBackend {
    pub(crate) fn examine(&self, found: &mut Findings) {
        let tool = self.tool();
        let settings = &tool.settings;
        examine::who(found);
        found.ok("description", format!("the tool is described as {:?}", settings.name));
        let mut values = settings.values.clone();
        values.insert("image".to_owned(), tool.errand.path("image").display().to_string());
        values.insert("version".to_owned(), "VERSION".to_owned());
        let mut seen = Vec::new();
        for (what, run) in [
            ("what asks for the version", &settings.version.run),
            ("what installs", &settings.install.run),
        ] {
            match tool.invocation(run, values.clone()) {
                Ok(invocation) if seen.contains(&invocation.program) => {}
                Ok(invocation) => {
                    examine::program(what, &invocation.program, PROGRAM_PATH, found);
                    seen.push(invocation.program);
                }
                Err(error) => found.add(failure("tool", format!("{what} cannot be run: {}", chain(&error)))),
            }
        }
        examine::folder("its working folder", &settings.work_dir, found);
        found.add(match &settings.read_back {
            Some(_) => ok("read back", "what is installed is read back and compared"),
            None => ok(
                "read back",
                "the description has no way to read back: the version decides",
            ),
        });
        match tool.errand.is_running() {
            Ok(true) => found.add(warning("tasks", "the tool is at work on the device now")),
            Ok(false) => {}
            Err(error) => found.add(failure("folder", chain(&error))),
        }
    }
}
