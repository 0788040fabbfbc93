//! `firmesh trust export|import`: a ceremony's round as one file that goes from person to person.

use std::path::PathBuf;

use clap::Args;
use firmesh_coordinator::ceremony::{Imported, TrustBundle, TrustFolder};
use serde_json::{Value, json};

use crate::{Folder, output::Output};

#[derive(Debug, Args)]
pub(crate) struct Pass {
    #[command(flatten)]
    folder: Folder,
    /// The file that is passed on.
    file: PathBuf,
}

pub(super) fn export(pass: &Pass, output: &Output) -> anyhow::Result<()> {
    let folder = pass.folder.open()?;
    folder.bundle()?.save(&pass.file)?;
    let waiting: Vec<_> = folder
        .status()?
        .into_iter()
        .filter(|status| !status.is_complete())
        .collect();
    let value: Vec<Value> = waiting
        .iter()
        .map(|status| super::file_json(status, &[], &[]))
        .collect();
    output.show(&json!({ "file": pass.file, "waiting": value }), || {
        let lines = waiting.iter().map(super::head);
        let next =
            "the next person: firmesh trust import FILE && firmesh trust sign --key KEY && firmesh trust export FILE";
        std::iter::once(format!("wrote {}", pass.file.display()))
            .chain(lines)
            .chain([next.to_owned()])
            .collect()
    })
}

pub(super) fn import(pass: &Pass, output: &Output) -> anyhow::Result<()> {
    let bundle = TrustBundle::load(&pass.file)?;
    let is_new = !pass.folder.dir.join("1.root.json").exists();
    let (folder, imported) = if is_new {
        TrustFolder::found_from(&pass.folder.dir, &bundle)?
    } else {
        let mut folder = pass.folder.open_locked()?;
        let imported = folder.import(&bundle)?;
        (folder, imported)
    };
    let value = |Imported { status, outcome }: &Imported| {
        let mut value = super::file_json(status, &[], &[]);
        value["outcome"] = json!(outcome);
        value
    };
    let values: Vec<Value> = imported.iter().map(value).collect();
    output.show(&json!({ "founded": is_new, "files": values }), || {
        let line = |Imported { status, outcome }: &Imported| format!("{}: {outcome}", super::head(status));
        let mut lines: Vec<_> = imported.iter().map(line).collect();
        if is_new {
            lines.push(format!(
                "{} is new: compare the digest of its first root with the others before anything else, by telephone say:",
                folder.path().display()
            ));
            lines.extend(imported.first().map(|first| format!("  sha256 {}", first.status.digest)));
        }
        lines
    })
}
