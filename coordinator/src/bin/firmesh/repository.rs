//! `firmesh repository`: images of others, mirrored.

use std::time::Duration;

use clap::Subcommand;
use firmesh_protocol::api::{OperationState, OperationView, SyncCatalogue};

use crate::{Global, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mirrors the images of a catalogue as drafts, which nobody installs before release keys have signed. Done before, it
    /// fetches only what is new; broken off, it goes on.
    Sync {
        /// The catalogue, http or https.
        url: String,
        /// Only images of this vendor.
        #[arg(long)]
        vendor: Option<String>,
    },
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let Command::Sync { url, vendor } = command;
    let client = global.client()?;
    let mut operation: OperationView = client
        .post("/api/v1/repository/sync", &SyncCatalogue { url, vendor })
        .await?;
    let path = format!("/api/v1/operations/{}", operation.id);
    let bar = output.bar("mirroring", 0);
    while operation.state == OperationState::Running {
        bar.set_message(operation.progress.clone());
        tokio::time::sleep(Duration::from_secs(1)).await;
        operation = client.get(&path).await?;
    }
    bar.finish_and_clear();
    output.show(&operation, || lines(&operation))?;
    let failed = operation.result.as_ref().map_or(1, |result| result.failed.len());
    anyhow::ensure!(
        operation.state == OperationState::Succeeded && failed == 0,
        "not everything was mirrored: {}",
        operation
            .problem
            .as_deref()
            .unwrap_or("see above; the same command tries again")
    );
    Ok(())
}

fn lines(operation: &OperationView) -> Vec<String> {
    let Some(result) = &operation.result else {
        return Vec::new();
    };
    let mut lines = vec![format!(
        "{} listed, {} fetched ({} bytes), {} were here, {} drafted",
        result.listed, result.fetched, result.bytes, result.unchanged, result.drafted
    )];
    lines.extend(
        result
            .failed
            .iter()
            .map(|failure| format!("{}: {}", failure.url, failure.problem)),
    );
    lines
}
