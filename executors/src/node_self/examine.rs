//! What an update of the node itself leans on.

use super::{NodeSelfBackend, NodeSelfError, SlotsFolder, backend::model};
use crate::examine::{self, Findings, failure, ok, warning};

impl NodeSelfBackend {
    pub(crate) fn examine(&self, found: &mut Findings) {
        examine::who(found);
        found.add(ok("program", format!("releases for it name the model {:?}", model())).with("model", model()));
        let own = match self.own() {
            Ok(own) => own,
            Err(error) => {
                let advice = "ask the running node: only it knows how it was started";
                return found.add(failure("launcher", error.to_string()).advising(advice));
            }
        };
        let Some(launched) = own.launched() else {
            return found.add(failure("launcher", NodeSelfError::NotLaunched.to_string()));
        };
        let folder = SlotsFolder::new(launched.dir.clone().into());
        found.ok(
            "launcher",
            format!(
                "the launcher is process {}, of version {}; it started {}",
                launched.pid, launched.packaged, launched.program
            ),
        );
        examine::folder("the slots' folder", folder.path(), found);
        match folder.read() {
            Ok(slots) => {
                if let Some(last) = &slots.last {
                    found.add(warning(
                        "trial",
                        format!("the last new version was given up: {}", last.why),
                    ));
                }
            }
            Err(why) => found.add(failure("slots", why)),
        }
        if let Err(why) = own.works() {
            let says = format!("the node does not count as working: {why}");
            found.add(
                warning("works", says).advising("on trial, it would be ended and the version before started again"),
            );
        }
    }
}
