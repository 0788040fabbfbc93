//! What a device can do and what would be done with it, for whoever asks before a campaign does. Nothing is changed: what a look
//! shows is told, and what an act would need is looked for.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use firmesh_executors_core::{Observed, Rung, Seen, Staged, TaskState};
use firmesh_protocol::api::{DeviceExamination, DeviceFinding, EXAMINATION_SCHEMA, FindingLevel};
use nix::unistd::{AccessFlags, access};

use crate::backend::{Backend, DeviceBackend, Kind};

/// Findings of one examination, and the length of one text: what a device says goes into both.
const FINDINGS_MAX: usize = 200;
const TEXT_CHARS_MAX: usize = 600;

/// What is found as it is found.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<DeviceFinding>);

impl Findings {
    pub(crate) fn add(&mut self, finding: DeviceFinding) {
        if self.0.len() < FINDINGS_MAX {
            self.0.push(finding);
        }
    }

    pub(crate) fn ok(&mut self, part: &str, says: impl Into<String>) {
        self.add(ok(part, says));
    }

    pub(crate) fn into_vec(mut self) -> Vec<DeviceFinding> {
        for finding in &mut self.0 {
            shorten(&mut finding.says);
            finding.advice.iter_mut().for_each(shorten);
        }
        self.0
    }
}

fn shorten(text: &mut String) {
    text.retain(|c| !c.is_control());
    if let Some((end, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
        text.truncate(end);
    }
}

pub(crate) fn ok(part: &str, says: impl Into<String>) -> DeviceFinding {
    DeviceFinding::new(part, FindingLevel::Ok, says)
}

pub(crate) fn warning(part: &str, says: impl Into<String>) -> DeviceFinding {
    DeviceFinding::new(part, FindingLevel::Warning, says)
}

pub(crate) fn failure(part: &str, says: impl Into<String>) -> DeviceFinding {
    DeviceFinding::new(part, FindingLevel::Failure, says)
}

impl Backend {
    /// Looks at everything that an update of the device leans on, and changes nothing.
    pub async fn examine(&self) -> DeviceExamination {
        let mut found = Findings::default();
        match &self.kind {
            Kind::Redfish(redfish) => redfish.examine(&mut found).await,
            Kind::Bios(bios) => bios.examine(&mut found).await,
            Kind::AbSlot(slots) | Kind::Swupdate(slots) => slots.examine(&mut found),
            Kind::Command(command) => command.examine(&mut found),
            Kind::Rauc(rauc) => rauc.examine(&mut found),
            Kind::NodeSelf(node) => node.examine(&mut found),
            Kind::Ddi(_) => found.ok(
                "identity",
                "the device asks this node for its updates: nobody calls it, and what it said last is all there is",
            ),
        }
        match &self.kind {
            // Of BMCs all that a look shows was told with where it comes from.
            Kind::Redfish(_) | Kind::Bios(_) => {}
            Kind::Ddi(_) => {
                let observed = self.observe(None).await;
                let advice = "see that it is configured with this node's `ddi` address, its name and its token";
                of_look(&observed, advice, &mut found);
            }
            _ => {
                let observed = self.observe(None).await;
                of_look(&observed, "see to what it says, and ask again", &mut found);
            }
        }
        let (answers_min, apart) = self.answers();
        let apart = apart.map(|apart| format!(", {} s apart", apart.as_secs()));
        found.ok(
            "back",
            format!(
                "after a restart, {answers_min} good answers in a row count as back{}",
                apart.unwrap_or_default()
            ),
        );
        if let Some(host) = self.host() {
            found.ok("host", format!("the host {host:?} steps aside before an update"));
        }
        DeviceExamination {
            schema: EXAMINATION_SCHEMA.to_owned(),
            device: self.device().clone(),
            component: self.component().clone(),
            executor: self.executor().to_owned(),
            findings: found.into_vec(),
        }
    }
}

/// What a look at a device shows.
fn of_look(observed: &Observed, advice: &str, found: &mut Findings) {
    let seen = match observed {
        Observed::Silent { why } => {
            return found.add(failure("look", format!("the device does not answer: {why}")).advising(advice));
        }
        Observed::Answering(seen) => seen,
    };
    let Seen { vendor, model, .. } = &**seen;
    let identity = ok("identity", format!("it is a {model} of {vendor}"));
    found.add(identity.with("vendor", vendor.as_str()).with("model", model.as_str()));
    version(seen, found);
    if !seen.ready {
        found.add(warning("ready", "it answers, but has not finished starting"));
    }
    if let Some(slots) = seen.slots {
        let trial = if slots.on_trial() {
            ", on an unconfirmed trial"
        } else {
            ""
        };
        found.ok(
            "slots",
            format!(
                "slot {} runs{trial}; a plain restart starts {}",
                slots.running, slots.saved
            ),
        );
        if slots.on_trial() {
            found.add(warning("slots", "an update would end this trial first, by a restart"));
        }
    }
    match &seen.staged {
        Staged::Image { version, armed, .. } => {
            let armed = if *armed { "; the next restart starts it" } else { "" };
            found.ok("staged", format!("{version} lies on it, not running{armed}"));
        }
        Staged::Nothing => found.ok("staged", "nothing else lies on it"),
        Staged::Hidden => found.ok(
            "staged",
            "it does not show what lies on it: the version read back decides",
        ),
    }
    if let Some(task) = seen.task.as_ref().filter(|task| task.state == TaskState::Active) {
        let says = format!("an update is under way on it, and ours would wait: {}", task.message);
        found.add(warning("tasks", says));
    }
    ladder(&seen.resets, found);
}

/// The version that a device reports, without which nothing is installed.
pub(crate) fn version(seen: &Seen, found: &mut Findings) {
    match &seen.version {
        Some(version) => {
            let says = format!("its {} runs {version}", seen.component);
            found.add(ok("version", says).with("version", version.as_str()));
        }
        None => {
            let says = format!(
                "it reports no version of its {}: nothing would be installed",
                seen.component
            );
            found.add(failure("version", says));
        }
    }
}

/// The resets that start a new version, as they would be tried.
pub(crate) fn ladder(resets: &[Rung], found: &mut Findings) {
    let names: Vec<&str> = resets.iter().map(|&rung| name(rung)).collect();
    let finding = match names.is_empty() {
        true => warning("resets", "there is no reset: a new version has to start by itself"),
        false => ok(
            "resets",
            format!("a new version is started by {}", names.join(", then by ")),
        ),
    };
    found.add(finding.with("ladder", names));
}

pub(crate) fn name(rung: Rung) -> &'static str {
    match rung {
        Rung::Bmc => "a restart of the BMC",
        Rung::Warm => "a warm restart",
        Rung::Cold => "a cold restart",
        Rung::Ac => "taking the input power away",
    }
}

/// Who runs this process: what is written on the host is written by that user.
pub(crate) fn who(found: &mut Findings) {
    // A process's own folder there is its effective user's.
    if let Ok(own) = fs::metadata("/proc/self") {
        let name = if own.uid() == 0 { " (root)" } else { "" };
        let says = format!("the executor runs as user {}{name}", own.uid());
        found.add(ok("user", says).with("uid", own.uid()));
    }
}

/// Whether a program is there and may be run, by its path or by its name in this search path.
pub(crate) fn program(what: &str, program: &str, search: &str, found: &mut Findings) {
    let candidates: Vec<PathBuf> = match program.contains('/') {
        true => vec![program.into()],
        false => search
            .split(':')
            .map(|folder| Path::new(folder).join(program))
            .collect(),
    };
    let runs = |path: &&PathBuf| path.is_file() && access(path.as_path(), AccessFlags::X_OK).is_ok();
    match candidates.iter().find(runs) {
        Some(path) => {
            let path = path.display().to_string();
            found.add(ok("tool", format!("{what} is {path}")).with("path", path));
        }
        None => {
            let says = format!("{what} is {program}, and no such program can be run here");
            found.add(failure("tool", says).advising(format!("install it, or name it by its whole path ({search})")));
        }
    }
}

/// Whether a file is there and may be used so.
pub(crate) fn file(part: &str, what: &str, path: &Path, write: bool, found: &mut Findings) {
    let (flags, verb) = match write {
        true => (AccessFlags::R_OK | AccessFlags::W_OK, "read and written"),
        false => (AccessFlags::R_OK, "read"),
    };
    let shown = path.display();
    match access(path, flags) {
        Ok(()) => found.ok(part, format!("{what} is {shown}, and can be {verb}")),
        Err(error) => {
            let says = format!("{what} is {shown}, and cannot be {verb}: {}", error.desc());
            found.add(failure(part, says).advising("correct the path, or the rights of the user who runs the node"));
        }
    }
}

/// Whether a folder can be made use of, which is made when it is first needed.
pub(crate) fn folder(what: &str, path: &Path, found: &mut Findings) {
    let existing = path.ancestors().find(|folder| folder.is_dir());
    let existing = existing.unwrap_or_else(|| Path::new("."));
    let shown = path.display();
    match access(existing, AccessFlags::W_OK) {
        Ok(()) => found.ok("folder", format!("{what} is {shown}")),
        Err(error) => {
            let says = format!("{what} is {shown}, and cannot be written: {}", error.desc());
            found
                .add(failure("folder", says).advising("correct the path, or the rights of the user who runs the node"));
        }
    }
}
