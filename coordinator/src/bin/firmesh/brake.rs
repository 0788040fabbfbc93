//! `firmesh brake`: stops a campaign or an image everywhere, for good, with one key and without a coordinator if need be.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{KeyRef, Signer as _, read_bounded, write_file};
use firmesh_protocol::{
    api::{BrakeView, Page},
    brake::{BRAKE_TYPE, Brake, Braked},
    ids::{CampaignId, Sha256},
    manifest::campaign_target,
    trust::{Envelope, Target},
};
use serde_json::json;

use crate::{Folder, Global, Unlock, client::Client, now, output::Output};

/// The longest brake that is read.
const BRAKE_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Stops one edition of a campaign: nothing of it starts any more, and nothing of it goes back by itself.
    Campaign {
        /// The campaign.
        campaign: CampaignId,
        #[command(flatten)]
        pull: Pull,
    },
    /// Stops an image: no campaign installs it any more.
    Release {
        /// The release's target, such as `firmware/a.bin`.
        target: String,
        #[command(flatten)]
        pull: Pull,
    },
    /// Brings a brake that was signed before to the coordinator, or with it gone to any one node, which tells the others.
    Send {
        /// The signed brake.
        file: PathBuf,
        /// The status address of a node, such as `http://127.0.0.1:8650`, in place of the coordinator.
        #[arg(long, value_name = "URL")]
        node: Option<String>,
    },
    /// Lists what was stopped.
    List,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    #[command(flatten)]
    folder: Folder,
    /// The key of an approver, or for a release, of a release signer.
    #[arg(long, value_name = "KEY")]
    key: KeyRef,
    #[command(flatten)]
    unlock: Unlock,
    /// Why, for those who will ask.
    #[arg(long)]
    reason: String,
    /// The digest to stop, if it is not the one in the trust folder: of the manifest, or of the image.
    #[arg(long, value_name = "HEX")]
    sha256: Option<Sha256>,
    /// Keep the signed brake here too.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Do not send it, only write it to `--out`.
    #[arg(long, requires = "out")]
    offline: bool,
    /// The status address of a node, in place of the coordinator.
    #[arg(long, value_name = "URL", conflicts_with = "offline")]
    node: Option<String>,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Campaign { campaign, pull } => {
            let manifest_sha256 = digest(&pull, &campaign_target(&campaign), |folder| folder.campaigns())?;
            let id = campaign;
            self::pull(global, Braked::Campaign { id, manifest_sha256 }, &pull, output).await
        }
        Command::Release { target, pull } => {
            let sha256 = digest(&pull, &target, |folder| folder.releases())?;
            self::pull(global, Braked::Release { target, sha256 }, &pull, output).await
        }
        Command::Send { file, node } => {
            let envelope = read(&file)?;
            let to = send(global, node.as_deref(), &envelope).await?;
            output.show(&json!({ "sent": to }), || vec![format!("the brake is pulled at {to}")])
        }
        Command::List => {
            let page: Page<BrakeView> = global.client()?.get("/api/v1/brakes").await?;
            let rows: Vec<_> = page
                .items
                .iter()
                .map(|BrakeView { brake, .. }| {
                    [brake.issued.to_string(), brake.braked.to_string(), brake.reason.clone()]
                })
                .collect();
            output.show(&page, || Output::table(["SIGNED", "STOPPED", "REASON"], &rows))
        }
    }
}

/// The digest that the trust folder has for a target, or the one that was given.
fn digest(
    pull: &Pull,
    target: &str,
    role: impl Fn(&firmesh_protocol::trust::Repository) -> &firmesh_protocol::trust::Targets,
) -> anyhow::Result<Sha256> {
    if let Some(digest) = pull.sha256 {
        return Ok(digest);
    }
    let folder = pull.folder.open()?;
    let found = role(folder.repository()).targets.get(target).and_then(Target::sha256);
    found.with_context(|| format!("the trust folder has no {target}; name its digest with --sha256"))
}

async fn pull(global: &Global, braked: Braked, pull: &Pull, output: &Output) -> anyhow::Result<()> {
    let brake = Brake {
        braked,
        reason: pull.reason.clone(),
        issued: now(),
    };
    let key = pull.key.open(&pull.unlock.secrets()?)?;
    let payload = serde_json::to_vec(&brake)?;
    let signature = key.signature(&Envelope::to_be_signed(BRAKE_TYPE, &payload))?;
    let envelope = Envelope::with_signatures(BRAKE_TYPE, payload, [(key.public_key(), signature)]);
    if let Some(path) = &pull.out {
        write_file(path, &envelope.to_bytes())?;
    }
    let to = match pull.offline {
        true => None,
        false => Some(send(global, pull.node.as_deref(), &envelope).await?),
    };
    let answer = json!({ "brake": brake, "sent": to, "file": pull.out });
    output.show(&answer, || {
        let mut lines = vec![format!("{} is stopped for good: {}", brake.braked, brake.reason)];
        lines.extend(
            to.iter()
                .map(|to| format!("pulled at {to}; it goes from node to node from there")),
        );
        lines.extend(pull.out.iter().map(|path| {
            format!(
                "kept in {}; `firmesh brake send` brings it anywhere else",
                path.display()
            )
        }));
        lines
    })
}

async fn send(global: &Global, node: Option<&str>, envelope: &Envelope) -> anyhow::Result<String> {
    match node {
        Some(url) => {
            let _: serde_json::Value = Client::new(url, None, None)?.post("/brakes", envelope).await?;
            Ok(url.to_owned())
        }
        None => {
            let _: Brake = global.client()?.post("/api/v1/brakes", envelope).await?;
            Ok(global.coordinator.clone())
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Envelope> {
    let bytes = read_bounded(file, BRAKE_BYTES_MAX)?;
    Envelope::from_bytes(&bytes).with_context(|| format!("{} does not hold a signed brake", file.display()))
}
