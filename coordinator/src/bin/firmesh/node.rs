//! `firmesh node`: the Firmesh processes beside the devices.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use firmesh_coordinator::ceremony::write_secret;
use firmesh_protocol::{
    api::{EnrolmentTicket, Holding, NewNode, NodeView, Page, RevokeRequest},
    ids::{NodeId, TopologyPath},
};
use serde_json::json;

use crate::{Global, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the nodes and what they hold.
    List,
    /// Allows a node to enrol, once, and writes its ticket (a secret) to a file.
    Enrol {
        /// The node.
        node: NodeId,
        /// Where it stands: region/site/.../rack/node.
        #[arg(long)]
        path: TopologyPath,
        /// Where to write the ticket.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace a file that is there.
        #[arg(long)]
        force: bool,
    },
    /// Shuts a node out of the fleet: its key is no member's any more, here and in the whole mesh. For good.
    Revoke {
        /// The node.
        node: NodeId,
        /// Why, for those who will ask.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::List => {
            let page: Page<NodeView> = global.client()?.list("/api/v1/nodes", &[]).await?;
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || {
                Output::table(["NODE", "PLACE", "LAST HEARD", "PIECES", "BANNED"], &rows)
            })
        }
        Command::Revoke { node, reason } => {
            let path = format!("/api/v1/nodes/{node}/revoke");
            let () = global.client()?.post(&path, &RevokeRequest { reason }).await?;
            output.show(&json!({ "revoked": node }), || {
                vec![format!(
                    "{node} is revoked: to bring it back, enrol it with a new key and a new ticket"
                )]
            })
        }
        Command::Enrol { node, path, out, force } => enrol(global, NewNode { node, path }, &out, force, output).await,
    }
}

async fn enrol(global: &Global, new: NewNode, out: &Path, force: bool, output: &Output) -> anyhow::Result<()> {
    // Before the token exists: a ticket that cannot be written would be lost.
    anyhow::ensure!(
        force || !out.exists(),
        "{} exists already; choose another name or say --force",
        out.display()
    );
    let ticket: EnrolmentTicket = global.client()?.post("/api/v1/nodes", &new).await?;
    let text = serde_json::to_vec_pretty(&ticket)?;
    write_secret(out, &text, force).context("the ticket could not be kept; enrol the node again")?;
    let answer = json!({ "node": ticket.node, "path": ticket.path, "ticket": out, "expires": ticket.expires });
    output.show(&answer, || {
        let EnrolmentTicket { node, expires, .. } = &ticket;
        vec![format!(
            "{node} may enrol until {expires} with the ticket in {} (a secret)",
            out.display()
        )]
    })
}

fn row(view: &NodeView) -> [String; 5] {
    let last = match (view.revoked, view.enrolled, view.last_seen) {
        (true, _, _) => "revoked".to_owned(),
        (_, false, _) => "not enrolled".to_owned(),
        (_, true, None) => "never".to_owned(),
        (_, true, Some(at)) => at.to_string(),
    };
    let pieces = |count: fn(&Holding) -> u32| view.holdings.iter().map(count).map(u64::from).sum::<u64>();
    let held = format!("{}/{}", pieces(|held| held.pieces), pieces(|held| held.pieces_total));
    let banned = view
        .banned
        .iter()
        .map(|(node, reason)| format!("{node} ({reason})"))
        .collect::<Vec<_>>()
        .join(", ");
    [view.node.to_string(), view.path.to_string(), last, held, banned]
}
