//! `firmesh campaign approve` and `refuse`: an approver's signed word between two waves, where the manifest asks for one.

use anyhow::{Context as _, ensure};
use clap::Args;
use firmesh_coordinator::ceremony::{KeyRef, Signer as _};
use firmesh_protocol::{
    api::{CampaignView, Page},
    approval::{WAVE_APPROVAL_TYPE, WaveApproval, WaveApprovalRequest, WaveApprovalView},
    ids::CampaignId,
    manifest::campaign_target,
    trust::{Envelope, Target},
};

use crate::{Folder, Global, Unlock, now, output::Output};

#[derive(Debug, Args)]
pub(crate) struct ApproveArgs {
    /// The campaign.
    campaign: CampaignId,
    /// The wave that was looked at, counted from 0; the one that waits if left out.
    #[arg(long, value_name = "N")]
    wave: Option<u32>,
    /// Why, for those who will ask.
    #[arg(long)]
    reason: String,
    /// The approver's key.
    #[arg(long, value_name = "KEY")]
    key: KeyRef,
    #[command(flatten)]
    unlock: Unlock,
    #[command(flatten)]
    folder: Folder,
}

pub(crate) async fn run(global: &Global, args: ApproveArgs, approved: bool, output: &Output) -> anyhow::Result<()> {
    let id = &args.campaign;
    let client = global.client()?;
    let wave = match args.wave {
        Some(wave) => wave,
        None => {
            let path = format!("/api/v1/campaigns/{id}/approvals");
            let asked: Page<WaveApprovalView> = client.list(&path, &[]).await?;
            let open = asked.items.iter().find(|asked| asked.approved.is_none());
            open.map(|asked| asked.wave)
                .with_context(|| format!("campaign {id} asks nobody at the moment: `firmesh campaign explain {id}`"))?
        }
    };
    ensure!(!args.reason.is_empty(), "a --reason has to say something");
    let target = campaign_target(id);
    let folder = args.folder.open()?;
    let campaigns = folder.repository().campaigns();
    let edition = campaigns.targets.get(&target).and_then(Target::sha256);
    let approval = WaveApproval {
        campaign: id.clone(),
        manifest_sha256: edition.with_context(|| format!("the trust folder has no {target}"))?,
        wave,
        approved,
        reason: args.reason,
        issued: now(),
    };
    let word = if approved { "yes" } else { "no" };
    output.warn(&format!(
        "{word} after wave {wave} of campaign {id} (manifest {}): {}",
        approval.manifest_sha256, approval.reason
    ));
    let payload = serde_json::to_vec(&approval)?;
    let key = args.key.open(&args.unlock.secrets()?)?;
    let signature = key.signature(&Envelope::to_be_signed(WAVE_APPROVAL_TYPE, &payload))?;
    let approval = Envelope::with_signatures(WAVE_APPROVAL_TYPE, payload, [(key.public_key(), signature)]);
    let path = format!("/api/v1/campaigns/{id}/approval");
    let view: CampaignView = client.post(&path, &WaveApprovalRequest { approval }).await?;
    output.show(&view, || vec![format!("campaign {id}: {}", view.reason)])
}
