//! `firmesh trust`: the ceremony, and signing and publishing what it drew up.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{SignedNow, TrustFolder, load_public_key, load_secret_key};
use firmesh_protocol::{
    api::Published,
    trust::{Ceremony, FileStatus, PublicKey, RoleStatus, Signers},
};
use serde_json::{Value, json};

use crate::{
    Expiry, Folder, Global,
    output::Output,
    provenance::{self, BeforeSigning},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draws up root, targets, releases and campaigns, unsigned. Offline.
    Init(Init),
    /// Shows every file, who has signed it, and what it says. Offline.
    Show(Folder),
    /// Signs every incomplete file that the key may sign, after showing it. Offline.
    Sign(Sign),
    /// Gives the complete files and manifests to the coordinator.
    Publish(Folder),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    #[command(flatten)]
    folder: Folder,
    /// Public keys that sign root and targets (repeat).
    #[arg(long, required = true, value_name = "FILE.pub")]
    root_key: Vec<PathBuf>,
    /// Public keys that sign releases (repeat).
    #[arg(long, required = true, value_name = "FILE.pub")]
    release_key: Vec<PathBuf>,
    /// Public keys that approve campaigns (repeat).
    #[arg(long, required = true, value_name = "FILE.pub")]
    approver_key: Vec<PathBuf>,
    /// The coordinator's public keys for snapshot and timestamp (repeat).
    #[arg(long, required = true, value_name = "FILE.pub")]
    online_key: Vec<PathBuf>,
    /// How many of each group of people must sign.
    #[arg(long, default_value_t = 2)]
    threshold: u64,
    #[command(flatten)]
    expiry: Expiry,
}

#[derive(Debug, Args)]
pub(crate) struct Sign {
    #[command(flatten)]
    pub(crate) folder: Folder,
    /// The secret key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Only show what would be signed.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    provenance: BeforeSigning,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Init(init) => self::init(&init, output),
        Command::Show(folder) => show(&folder.open()?, output),
        Command::Sign(sign) => self::sign(&sign, &[], output),
        Command::Publish(folder) => publish(global, &folder, &[], output).await,
    }
}

fn init(init: &Init, output: &Output) -> anyhow::Result<()> {
    let signers = |files: &[PathBuf], threshold| {
        anyhow::Ok(Signers {
            keys: public_keys(files)?,
            threshold,
        })
    };
    let ceremony = Ceremony {
        root: signers(&init.root_key, init.threshold)?,
        releases: signers(&init.release_key, init.threshold)?,
        campaigns: signers(&init.approver_key, init.threshold)?,
        online: signers(&init.online_key, 1)?,
        expires: init.expiry.after_now(),
    };
    show(&TrustFolder::create(&init.folder.dir, &ceremony)?, output)
}

fn show(folder: &TrustFolder, output: &Output) -> anyhow::Result<()> {
    let status = folder.status()?;
    let files = status
        .into_iter()
        .map(|status| Ok((folder.describe(&status.file)?, status)));
    let files = files.collect::<anyhow::Result<Vec<_>>>()?;
    let value: Vec<Value> = files
        .iter()
        .map(|(summary, status)| file_json(status, summary))
        .collect();
    output.show(&value, || {
        files
            .iter()
            .flat_map(|(summary, status)| file_lines(status, summary))
            .collect()
    })
}

/// Signs the incomplete files among `only` (all if empty) that the key may sign.
pub(crate) fn sign(sign: &Sign, only: &[&str], output: &Output) -> anyhow::Result<()> {
    let (mut folder, key) = (sign.folder.open()?, load_secret_key(&sign.key)?);
    let waiting = folder.signable(&key.public(), only)?;
    if waiting.iter().any(|status| status.file == "releases.json") {
        provenance::before_signing(&sign.provenance, &folder, output)?;
    }
    if !output.is_json() {
        for status in &waiting {
            file_lines(status, &folder.describe(&status.file)?)
                .iter()
                .try_for_each(|line| output.text(&format!("{line}\n")))?;
        }
    }
    let signed = if sign.dry_run {
        Vec::new()
    } else {
        folder.sign(&key, only)?
    };
    let value: Vec<Value> = signed
        .iter()
        .map(|SignedNow { status, summary }| file_json(status, summary))
        .collect();
    let line = |SignedNow { status, .. }: &SignedNow| {
        let more = if status.is_complete() {
            "complete"
        } else {
            "more signatures are needed"
        };
        format!(
            "signed {} version {}: {} ({more})",
            status.file,
            status.version,
            counts(status)
        )
    };
    output.show(&value, || match (waiting.is_empty(), sign.dry_run) {
        (true, _) => vec!["nothing waits for this key's signature".to_owned()],
        (false, true) => vec!["nothing was signed (--dry-run)".to_owned()],
        (false, false) => signed.iter().map(line).collect(),
    })
}

/// Uploads the files among `only` (all if empty), and with `campaigns.json` the manifests it names.
pub(crate) async fn publish(global: &Global, folder: &Folder, only: &[&str], output: &Output) -> anyhow::Result<()> {
    let (folder, client) = (folder.open()?, global.client()?);
    let publication = folder.publication(only)?;
    if publication.metadata.contains_key("releases.json") {
        provenance::upload(&folder, &client).await?;
    }
    let published: Published = client.post("/api/v1/metadata", &publication).await?;
    output.show(&published, || {
        published
            .versions
            .iter()
            .map(|(role, version)| format!("{role} version {version} is in force"))
            .collect()
    })
}

fn counts(status: &FileStatus) -> String {
    let role = |role: &RoleStatus| format!("{} of {} of {}", role.have, role.need, role.role);
    status.roles.iter().map(role).collect::<Vec<_>>().join(", ")
}

fn file_lines(status: &FileStatus, summary: &[String]) -> Vec<String> {
    let FileStatus {
        file,
        version,
        expires,
        digest,
        ..
    } = status;
    let head = format!(
        "{file} version {version}, expires {expires}, signatures {}",
        counts(status)
    );
    let digest = format!("  to be signed: sha256 {digest}");
    [head, digest]
        .into_iter()
        .chain(summary.iter().map(|line| format!("  {line}")))
        .collect()
}

fn file_json(status: &FileStatus, summary: &[String]) -> Value {
    let role = |role: &RoleStatus| json!({ "role": role.role, "have": role.have, "need": role.need });
    json!({
        "file": status.file, "version": status.version, "expires": status.expires, "signed_sha256": status.digest,
        "complete": status.is_complete(), "signatures": status.roles.iter().map(role).collect::<Vec<_>>(),
        "summary": summary,
    })
}

/// The public keys in files, for manifests.
pub(crate) fn public_keys(files: &[impl AsRef<Path>]) -> anyhow::Result<Vec<PublicKey>> {
    Ok(files
        .iter()
        .map(|file| load_public_key(file.as_ref()))
        .collect::<Result<_, _>>()?)
}
