//! `firmesh trust`: the ceremony, and signing and publishing what it drew up.

pub(crate) mod doctor;
mod round;
mod signers;

use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{Change, KeyRef, Secrets, SignedNow, Signer as _, TrustFolder};
use firmesh_protocol::{
    api::Published,
    ids::Sha256,
    trust::{Ceremony, FileStatus, PublicKey, RoleStatus, Signers},
};
use serde_json::{Value, json};

use crate::{
    Expiry, Folder, Global, Unlock,
    output::{Output, Verdict},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draws up root, targets, releases and campaigns, unsigned. Offline.
    Init(Init),
    /// Shows every file, who has signed it, what it says and what it changes. Offline.
    Show(Folder),
    /// Changes who may sign for a role, or how many must; shows it without a change. Offline.
    Signers(signers::ChangeSigners),
    /// Draws up new versions of what expires soon, with another expiry only. Offline.
    Renew(signers::Renew),
    /// Writes drafts, signatures, manifests and plans to one file for the next person. Offline.
    Export(round::Pass),
    /// Takes in such a file: drafts to sign, signatures to add. Offline.
    Import(round::Pass),
    /// Signs every incomplete file that the key may sign, after showing it. Offline.
    Sign(Sign),
    /// Says what expires when, which thresholds hang by a thread, and what is set weakly. Offline.
    Doctor(doctor::Doctor),
    /// Gives the complete files and manifests to the coordinator.
    Publish(Folder),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    #[command(flatten)]
    folder: Folder,
    /// Public keys that sign root and targets (repeat).
    #[arg(long, required = true, value_name = "KEY")]
    root_key: Vec<KeyRef>,
    /// Public keys that sign releases (repeat).
    #[arg(long, required = true, value_name = "KEY")]
    release_key: Vec<KeyRef>,
    /// Public keys that approve campaigns (repeat).
    #[arg(long, required = true, value_name = "KEY")]
    approver_key: Vec<KeyRef>,
    /// The coordinator's public keys for snapshot and timestamp (repeat).
    #[arg(long, required = true, value_name = "KEY")]
    online_key: Vec<KeyRef>,
    /// How many of each group of people must sign.
    #[arg(long, default_value_t = 2)]
    threshold: u64,
    #[command(flatten)]
    expiry: Expiry,
    #[command(flatten)]
    unlock: Unlock,
}

#[derive(Debug, Args)]
pub(crate) struct Sign {
    #[command(flatten)]
    folder: Folder,
    /// The secret key: FILE, env:NAME or pkcs11:... (see: firmesh key show --help).
    #[arg(long, value_name = "KEY")]
    key: KeyRef,
    /// Only show what would be signed.
    #[arg(long)]
    dry_run: bool,
    /// Sign nothing but the file whose signed bytes have this sha256 digest, as told by another way (repeat).
    #[arg(long, value_name = "SHA256")]
    digest: Vec<String>,
    /// Do not ask at the terminal before signing.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    unlock: Unlock,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Init(init) => self::init(&init, output),
        Command::Show(folder) => show(&folder.open()?, false, output),
        Command::Signers(change) => signers::change(&change, output),
        Command::Renew(renew) => signers::renew(&renew, output),
        Command::Export(pass) => round::export(&pass, output),
        Command::Import(pass) => round::import(&pass, output),
        Command::Sign(sign) => self::sign(&sign, &[], output),
        Command::Doctor(doctor) => doctor::run(&doctor, output),
        Command::Publish(folder) => publish(global, &folder, &[], output).await,
    }
}

fn init(init: &Init, output: &Output) -> anyhow::Result<()> {
    let secrets = init.unlock.secrets()?;
    let signers = |keys: &[KeyRef], threshold| {
        anyhow::Ok(Signers {
            keys: public_keys(keys, &secrets)?,
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
    show(&TrustFolder::create(&init.folder.dir, &ceremony)?, false, output)
}

/// A file with what it says and changes.
struct Shown {
    status: FileStatus,
    summary: Vec<String>,
    changes: Vec<Change>,
}

impl Shown {
    fn of(folder: &TrustFolder, status: FileStatus) -> anyhow::Result<Self> {
        let summary = folder.describe(&status.file)?;
        // A complete file is in force, or about to be: there is nothing to weigh any longer.
        let changes = if status.is_complete() {
            Vec::new()
        } else {
            folder.changes(&status.file)?
        };
        Ok(Self {
            status,
            summary,
            changes,
        })
    }

    fn lines(&self) -> Vec<String> {
        let digest = format!("  to be signed: sha256 {}", self.status.digest);
        let summary = self.summary.iter().map(|line| format!("  {line}"));
        let changes = self.changes.iter().map(|change| format!("  {change}"));
        [head(&self.status), digest]
            .into_iter()
            .chain(summary)
            .chain(changes)
            .collect()
    }
}

/// Shows every file, or those that wait for signatures.
fn show(folder: &TrustFolder, waiting_only: bool, output: &Output) -> anyhow::Result<()> {
    let mut status = folder.status()?;
    status.retain(|status| !waiting_only || !status.is_complete());
    let files = status.into_iter().map(|status| Shown::of(folder, status));
    let files = files.collect::<anyhow::Result<Vec<_>>>()?;
    let value: Vec<Value> = files
        .iter()
        .map(|shown| file_json(&shown.status, &shown.summary, &shown.changes))
        .collect();
    output.show(&value, || files.iter().flat_map(Shown::lines).collect())
}

/// Signs the incomplete files among `only` (all if empty) that the key may sign.
pub(crate) fn sign(sign: &Sign, only: &[&str], output: &Output) -> anyhow::Result<()> {
    let mut folder = if sign.dry_run {
        sign.folder.open()?
    } else {
        sign.folder.open_locked()?
    };
    let key = sign.key.open(&sign.unlock.secrets()?)?;
    let mut waiting = folder.signable(&key.public_key(), only)?;
    retain_agreed(&mut waiting, &sign.digest)?;
    let shown = waiting.into_iter().map(|status| Shown::of(&folder, status));
    let shown = shown.collect::<anyhow::Result<Vec<_>>>()?;
    if !output.is_json() {
        for line in shown.iter().flat_map(Shown::lines) {
            output.text(&format!("{line}\n"))?;
        }
    }
    let files: Vec<&str> = shown.iter().map(|shown| shown.status.file.as_str()).collect();
    let signs = !sign.dry_run && !files.is_empty();
    let agreed = signs && (sign.yes || output.confirms(&format!("sign {} as shown?", files.join(", ")))?);
    let signed = if agreed { folder.sign(&key, &files)? } else { Vec::new() };
    let value: Vec<Value> = signed
        .iter()
        .map(|signed| file_json(&signed.status, &signed.summary, &signed.changes))
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
    output.show(&value, || match (files.is_empty(), agreed) {
        (true, _) => vec!["nothing waits for this key's signature".to_owned()],
        (false, false) => vec!["nothing was signed".to_owned()],
        (false, true) => signed.iter().map(line).collect(),
    })
}

/// Keeps the files whose digest was agreed upon by another way; a digest that no waiting file has is an error.
fn retain_agreed(waiting: &mut Vec<FileStatus>, agreed: &[String]) -> anyhow::Result<()> {
    if agreed.is_empty() {
        return Ok(());
    }
    let agreed = agreed
        .iter()
        .map(|text| Ok(text.parse::<Sha256>()?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(absent) = agreed
        .iter()
        .find(|digest| !waiting.iter().any(|status| status.digest == **digest))
    {
        let there: Vec<_> = waiting
            .iter()
            .map(|status| format!("{} {}", status.file, status.digest))
            .collect();
        let there = if there.is_empty() {
            "nothing".to_owned()
        } else {
            there.join(", ")
        };
        let text = format!("no file that waits for this key has the digest {absent}; there is {there}");
        return Err(Verdict::Refused(text).into());
    }
    waiting.retain(|status| agreed.contains(&status.digest));
    Ok(())
}

/// Uploads the files among `only` (all if empty), and with `campaigns.json` the manifests it names.
pub(crate) async fn publish(global: &Global, folder: &Folder, only: &[&str], output: &Output) -> anyhow::Result<()> {
    let publication = folder.open()?.publication(only)?;
    let published: Published = global.client()?.post("/api/v1/metadata", &publication).await?;
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

fn head(status: &FileStatus) -> String {
    let FileStatus {
        file, version, expires, ..
    } = status;
    format!(
        "{file} version {version}, expires {expires}, signatures {}",
        counts(status)
    )
}

fn file_json(status: &FileStatus, summary: &[String], changes: &[Change]) -> Value {
    let role = |role: &RoleStatus| json!({ "role": role.role, "have": role.have, "need": role.need });
    json!({
        "file": status.file, "version": status.version, "expires": status.expires, "signed_sha256": status.digest,
        "complete": status.is_complete(), "signatures": status.roles.iter().map(role).collect::<Vec<_>>(),
        "summary": summary, "changes": changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// The public keys behind references.
pub(crate) fn public_keys(keys: &[KeyRef], secrets: &Secrets) -> anyhow::Result<Vec<PublicKey>> {
    Ok(keys.iter().map(|key| key.public(secrets)).collect::<Result<_, _>>()?)
}
