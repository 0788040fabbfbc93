//! `firmesh trust signers|renew`: who may sign, and until when.

use clap::Args;
use firmesh_coordinator::ceremony::{KeyRef, TrustFolder};
use firmesh_protocol::trust::{FileStatus, PublicKey, SignerRole, Signers};
use serde_json::{Value, json};

use crate::{Expiry, Folder, Unlock, now, output::Output};

#[derive(Debug, Args)]
pub(crate) struct ChangeSigners {
    #[command(flatten)]
    folder: Folder,
    /// The roles: root, targets, releases, campaigns, snapshot, timestamp. All are shown if nothing is to change.
    role: Vec<SignerRole>,
    /// A public key that signs from now on (repeat).
    #[arg(long, value_name = "KEY")]
    add: Vec<KeyRef>,
    /// A public key that signs no longer (repeat).
    #[arg(long, value_name = "KEY")]
    remove: Vec<KeyRef>,
    /// How many must sign.
    #[arg(long, value_name = "N")]
    threshold: Option<u64>,
    #[command(flatten)]
    expiry: Expiry,
    #[command(flatten)]
    unlock: Unlock,
}

#[derive(Debug, Args)]
pub(crate) struct Renew {
    #[command(flatten)]
    folder: Folder,
    /// The roles whose files are to be renewed: root, targets, releases, campaigns. All that expire soon if absent.
    role: Vec<SignerRole>,
    /// What expires within so many days.
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    within_days: u32,
    #[command(flatten)]
    expiry: Expiry,
}

/// Draws up new versions with other keys; everybody concerned signs them.
pub(super) fn change(args: &ChangeSigners, output: &Output) -> anyhow::Result<()> {
    if args.add.is_empty() && args.remove.is_empty() && args.threshold.is_none() {
        return show(&args.folder.open()?, &args.role, output);
    }
    anyhow::ensure!(
        !args.role.is_empty(),
        "which role? firmesh trust signers root --add KEY --remove KEY"
    );
    let secrets = args.unlock.secrets()?;
    let (add, remove) = (
        super::public_keys(&args.add, &secrets)?,
        super::public_keys(&args.remove, &secrets)?,
    );
    let mut folder = args.folder.open_locked()?;
    let wanted = args
        .role
        .iter()
        .map(|&role| Ok((role, changed(&folder, role, &add, &remove, args.threshold)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    folder.edit(|repository| {
        wanted
            .iter()
            .try_for_each(|(role, signers)| repository.set_signers(*role, signers, args.expiry.after_now()))
    })?;
    super::show(&folder, true, output)
}

fn changed(
    folder: &TrustFolder,
    role: SignerRole,
    add: &[PublicKey],
    remove: &[PublicKey],
    threshold: Option<u64>,
) -> anyhow::Result<Signers> {
    let mut signers = folder.signers(role)?;
    for key in remove {
        anyhow::ensure!(signers.keys.contains(key), "{role} does not list {key}");
        signers.keys.retain(|known| known != key);
    }
    for key in add {
        anyhow::ensure!(!signers.keys.contains(key), "{role} lists {key} already");
        signers.keys.push(*key);
    }
    signers.threshold = threshold.unwrap_or(signers.threshold);
    Ok(signers)
}

fn show(folder: &TrustFolder, roles: &[SignerRole], output: &Output) -> anyhow::Result<()> {
    let roles = if roles.is_empty() { &SignerRole::ALL } else { roles };
    let found = roles
        .iter()
        .map(|&role| Ok((role, folder.signers(role)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let value: Vec<Value> = found
        .iter()
        .map(|(role, signers)| json!({ "role": role.name(), "threshold": signers.threshold, "keys": signers.keys }))
        .collect();
    output.show(&value, || {
        let lines = |(role, signers): &(SignerRole, Signers)| {
            let head = format!("{role}: {} of {}", signers.threshold, signers.keys.len());
            std::iter::once(head)
                .chain(signers.keys.iter().map(|key| format!("  {key}")))
                .collect::<Vec<_>>()
        };
        found.iter().flat_map(lines).collect()
    })
}

/// Draws up new versions with nothing but another expiry.
pub(super) fn renew(renew: &Renew, output: &Output) -> anyhow::Result<()> {
    let mut folder = renew.folder.open_locked()?;
    let soon = now() + std::time::Duration::from_secs(u64::from(renew.within_days) * 86_400);
    let mut files = Vec::new();
    for status in newest(folder.status()?) {
        let role = role_of(&status.file);
        let asked = renew.role.iter().any(|wanted| wanted.name() == role);
        if asked || (renew.role.is_empty() && status.expires <= soon) {
            files.push(status.file);
        }
    }
    for role in &renew.role {
        let online = role.is_online();
        anyhow::ensure!(!online, "the coordinator renews {role} by itself, as long as it runs");
    }
    folder.edit(|repository| {
        files
            .iter()
            .try_for_each(|file| repository.renew(file, renew.expiry.after_now()))
    })?;
    if files.is_empty() {
        return output.show(&Vec::<Value>::new(), || {
            vec![format!("nothing expires within {} days", renew.within_days)]
        });
    }
    super::show(&folder, true, output)
}

/// The files that count: of the roots only the newest.
pub(super) fn newest(files: Vec<FileStatus>) -> impl Iterator<Item = FileStatus> {
    let newest = files
        .iter()
        .rposition(|status| status.file.ends_with(".root.json"))
        .unwrap_or(0);
    files.into_iter().skip(newest)
}

fn role_of(file: &str) -> &str {
    let stem = file.strip_suffix(".json").unwrap_or(file);
    stem.rsplit('.').next().unwrap_or(stem)
}
