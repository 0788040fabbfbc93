//! `firmesh archive`: campaigns that ended long ago.

use crate::{Global, output::Output};
use clap::Subcommand;
use firmesh_protocol::{
    api::{ArchiveResult, ArchiveRun, ArchiveView, ArchivedAttempt, Page},
    ids::{CampaignId, DeviceId},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the campaigns whose devices are archived.
    List,
    /// Shows an archived campaign, or how it went for one device.
    Show {
        /// The campaign.
        campaign: CampaignId,
        /// Only the attempt of this device.
        #[arg(long)]
        device: Option<DeviceId>,
    },
    /// Lists the attempts of an archived campaign.
    Attempts {
        /// The campaign.
        campaign: CampaignId,
    },
    /// Has the coordinator read all files of a campaign and compare them with their digests.
    Verify {
        /// The campaign.
        campaign: CampaignId,
    },
    /// Archives the campaigns that ended long ago, as the coordinator does by itself from time to time.
    Run {
        /// Those that ended at least so many days ago. Default: what `retention.campaigns` says.
        #[arg(long, value_name = "DAYS")]
        older_than: Option<u16>,
        /// Only tell.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Command::List => {
            let page: Page<ArchiveView> = client.list("/api/v1/archive", &[]).await?;
            let row = |archive: &ArchiveView| {
                let rows: u64 = archive.segments.iter().map(|segment| segment.rows).sum();
                [
                    archive.campaign.to_string(),
                    format!("{:?}", archive.state).to_lowercase(),
                    archive.ended.to_string(),
                    archive.archived.to_string(),
                    rows.to_string(),
                ]
            };
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || {
                Output::table(["CAMPAIGN", "STATE", "ENDED", "ARCHIVED", "ROWS"], &rows)
            })
        }
        Command::Show { campaign, device: None } => {
            let archive: ArchiveView = client.get(&format!("/api/v1/archive/{campaign}")).await?;
            output.show(&archive, || lines(&archive))
        }
        Command::Show {
            campaign,
            device: Some(device),
        } => {
            let page: Page<ArchivedAttempt> = client
                .list(&format!("/api/v1/archive/{campaign}/attempts"), &[])
                .await?;
            let found = page.items.into_iter().find(|attempt| attempt.device == device);
            let found = found.ok_or_else(|| anyhow::anyhow!("campaign {campaign} had no attempt of {device}"))?;
            output.show(&found, || vec![found.record.to_string()])
        }
        Command::Attempts { campaign } => {
            let page: Page<ArchivedAttempt> = client
                .list(&format!("/api/v1/archive/{campaign}/attempts"), &[])
                .await?;
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let row = |attempt: &ArchivedAttempt| {
                let record = &attempt.record;
                [
                    attempt.device.to_string(),
                    text(&record["state"]),
                    text(&record["version"]),
                    text(&record["reason"]),
                ]
            };
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || Output::table(["DEVICE", "STATE", "VERSION", "REASON"], &rows))
        }
        Command::Verify { campaign } => {
            let archive: ArchiveView = client.get(&format!("/api/v1/archive/{campaign}/verify")).await?;
            output.show(&archive, || {
                let mut lines = lines(&archive);
                lines.push("every file is what was archived".to_owned());
                lines
            })
        }
        Command::Run { older_than, dry_run } => {
            let asked = ArchiveRun {
                older_than_s: older_than.map(|days| u32::from(days) * 86_400),
                dry_run,
            };
            let result: ArchiveResult = client.post("/api/v1/archive", &asked).await?;
            output.show(&result, || {
                let verb = if dry_run { "would be archived" } else { "archived" };
                let mut lines: Vec<_> = result.archived.iter().map(|id| format!("{id} {verb}")).collect();
                lines.extend(result.kept.iter().map(|(id, reason)| format!("{id} stays: {reason}")));
                lines.extend(
                    result
                        .removed
                        .iter()
                        .map(|id| format!("the archive of {id} was removed")),
                );
                lines.push(format!("{} rows went out of the database", result.rows));
                lines
            })
        }
    }
}

fn lines(archive: &ArchiveView) -> Vec<String> {
    let mut lines = vec![
        format!("campaign  {}", archive.campaign),
        format!("state     {:?}", archive.state).to_lowercase(),
        format!("ended     {}", archive.ended),
        format!("archived  {}", archive.archived),
    ];
    lines.extend(archive.removed.map(|at| format!("removed   {at}")));
    lines.extend(archive.states.iter().map(|(state, count)| format!("{state}: {count}")));
    let files = archive.segments.iter();
    lines.extend(files.map(|file| format!("{}  {} rows  sha256 {}", file.name, file.rows, file.sha256)));
    lines
}
