//! `firmesh notification`: who is told what happens, and how far each has been told.

use clap::{Args, Subcommand};
use firmesh_protocol::{
    api::{NotificationTested, NotificationView, Page, ReplayRequest, ReplayStarted},
    time::WallTime,
};
use serde_json::json;

use crate::{Global, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the destinations of the coordinator's configuration, and how far each has come.
    List,
    /// Delivers a test to a destination now, and says what came of it.
    Test {
        /// The destination.
        name: String,
    },
    /// Tells a destination again what it was told before. Messages keep their ids, so that a receiver knows them again.
    Replay {
        /// The destination.
        name: String,
        #[command(flatten)]
        since: Since,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Since {
    /// From this event on, by its number.
    #[arg(long, value_name = "NUMBER")]
    since_number: Option<u64>,
    /// From this moment on, such as `2026-01-31T12:00:00Z`.
    #[arg(long, value_name = "TIME")]
    since: Option<WallTime>,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Command::List => {
            let page: Page<NotificationView> = client.get("/api/v1/notifications").await?;
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || {
                let headings = ["NAME", "KIND", "TARGET", "TOLD", "WAITING", "LAST DELIVERED", "TROUBLE"];
                Output::table(headings, &rows)
            })
        }
        Command::Test { name } => {
            let tested: NotificationTested = client.post(&path(&name, "test"), &json!({})).await?;
            output.show(&tested, || {
                vec![format!("{name} has taken the test, its id is {}", tested.id)]
            })
        }
        Command::Replay { name, since } => {
            let request = ReplayRequest {
                since_number: since.since_number,
                since: since.since,
            };
            let started: ReplayStarted = client.post(&path(&name, "replay"), &request).await?;
            output.show(&started, || {
                let ReplayStarted { from, newest } = started;
                vec![format!("{name} is told events {from} to {newest} again")]
            })
        }
    }
}

/// A name is sent as it is; what is no name of a destination is no path either.
fn path(name: &str, verb: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = name.chars().map(plain).collect();
    format!("/api/v1/notifications/{name}/{verb}")
}

fn row(view: &NotificationView) -> [String; 7] {
    let trouble = match (&view.failing_since, &view.last_error) {
        (Some(since), Some(error)) => format!("since {since}: {}", error.reason),
        (None, Some(error)) if view.refused + view.given_up > 0 => {
            let lost = view.refused + view.given_up;
            format!("{lost} not taken, the last event {} ({})", error.number, error.reason)
        }
        _ => "-".to_owned(),
    };
    [
        view.name.clone(),
        view.kind.clone(),
        view.target.clone(),
        format!("{} of {}", view.cursor, view.newest),
        view.backlog.to_string(),
        view.last_delivered
            .map_or_else(|| "never".to_owned(), |at| at.to_string()),
        trouble,
    ]
}
