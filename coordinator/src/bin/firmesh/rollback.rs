//! `firmesh campaign rollback`: devices go back, by the operators' word where the approvers left it to them, by the approvers'
//! signed order everywhere else.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use firmesh_coordinator::ceremony::{KeyRef, Signer as _, read_bounded, write_file};
use firmesh_protocol::{
    api::CampaignView,
    ids::{CampaignId, DeviceId},
    manifest::campaign_target,
    rollback::{ROLLBACK_ORDER_TYPE, RollbackOrder, RollbackRequest, RollbackScope},
    trust::{Envelope, Target},
};
use serde_json::json;

use crate::{Folder, Global, Unlock, now, output::Output};

/// The longest order that is read.
const ORDER_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The campaign.
    campaign: CampaignId,
    /// Only the devices of this wave, counted from 0 (repeat).
    #[arg(long = "wave", value_name = "N", conflicts_with = "order")]
    waves: Vec<u32>,
    /// Only this device (repeat).
    #[arg(long = "device", value_name = "DEVICE", conflicts_with = "order")]
    devices: Vec<DeviceId>,
    /// Why, for those who will ask.
    #[arg(long, required_unless_present = "order", conflicts_with = "order")]
    reason: Option<String>,
    /// Sign an order with this approver's key (repeat). Without one, the campaign's manifest must leave it to operators
    /// (`operator_rollback`).
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<KeyRef>,
    #[command(flatten)]
    unlock: Unlock,
    /// An order that other approvers have signed before: signed once more if there is a `--key`, and sent.
    #[arg(long, value_name = "FILE")]
    order: Option<PathBuf>,
    /// Write the signed order here and do not send it: for the next approver, who names it as `--order`. Offline.
    #[arg(long, value_name = "FILE", requires = "keys")]
    out: Option<PathBuf>,
    #[command(flatten)]
    folder: Folder,
}

pub(crate) async fn run(global: &Global, args: RollbackArgs, output: &Output) -> anyhow::Result<()> {
    let id = &args.campaign;
    let scope = RollbackScope {
        waves: args.waves.iter().copied().collect(),
        devices: args.devices.iter().cloned().collect(),
    };
    let mut order = match &args.order {
        Some(file) => Some(Envelope::from_bytes(&read_bounded(file, ORDER_BYTES_MAX)?)?),
        None if args.keys.is_empty() => None,
        None => Some(drawn_up(&args, scope.clone())?),
    };
    if let Some(order) = &mut order {
        let said = RollbackOrder::claimed_by(order).context("the file holds no rollback order")?;
        let (of, meant) = (&said.campaign, &said.scope);
        ensure!(of == id, "the order is about campaign {of}, not {id}");
        let reason = &said.reason;
        output.warn(&format!(
            "rollback of {meant} in campaign {id} (manifest {}): {reason}",
            said.manifest_sha256
        ));
        let secrets = args.unlock.secrets()?;
        for key in &args.keys {
            let key = key.open(&secrets)?;
            let signature = key.signature(&order.to_be_signed_again())?;
            order.add_signature(key.public_key(), signature);
        }
    }
    if let (Some(file), Some(order)) = (&args.out, &order) {
        write_file(file, &order.to_bytes())?;
        return output.show(&json!({ "order": file }), || {
            let file = file.display();
            vec![format!(
                "the order stands in {file}; the next approver adds a signature and sends it: firmesh campaign rollback {id} \
                 --order {file} --key KEY"
            )]
        });
    }
    let request = match order {
        Some(order) => RollbackRequest {
            order: Some(order),
            ..RollbackRequest::default()
        },
        None => RollbackRequest {
            scope,
            reason: args.reason.unwrap_or_default(),
            order: None,
        },
    };
    let path = format!("/api/v1/campaigns/{id}/rollback");
    let view: CampaignView = global.client()?.post(&path, &request).await?;
    output.show(&view, || {
        vec![
            format!("campaign {id}: {}", view.reason),
            format!("`firmesh campaign watch {id}` shows how it goes, `firmesh campaign explain {id}` why"),
        ]
    })
}

/// An order for the edition in the trust folder, without a signature.
fn drawn_up(args: &RollbackArgs, scope: RollbackScope) -> anyhow::Result<Envelope> {
    if let Some(problem) = scope.problem() {
        anyhow::bail!("the order {problem}");
    }
    let target = campaign_target(&args.campaign);
    let folder = args.folder.open()?;
    let campaigns = folder.repository().campaigns();
    let edition = campaigns.targets.get(&target).and_then(Target::sha256);
    let reason = args.reason.clone().unwrap_or_default();
    ensure!(!reason.is_empty(), "an order needs a --reason");
    let order = RollbackOrder {
        campaign: args.campaign.clone(),
        manifest_sha256: edition.with_context(|| format!("the trust folder has no {target}"))?,
        scope,
        reason,
        issued: now(),
    };
    let payload = serde_json::to_vec(&order)?;
    Ok(Envelope::with_signatures(ROLLBACK_ORDER_TYPE, payload, []))
}
