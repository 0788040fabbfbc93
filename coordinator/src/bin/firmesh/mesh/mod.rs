//! `firmesh mesh top`: who feeds whom, live. What nodes have told with their last heartbeats, out of the public API.

mod screen;
mod view;

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use clap::Subcommand;
use firmesh_protocol::api::{NodeView, Page};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    screen::{Asked, Screen},
    view::{Look, View},
};
use crate::{Global, client::Client, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows who feeds whom, again and again: q or Ctrl-C ends it. In a pipe, one picture and its end.
    Top {
        /// Seconds between two looks. Nodes tell what they have moved with their heartbeats, every five seconds by default.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
        interval: u64,
        /// Ends after so many pictures.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        count: Option<u32>,
    },
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let Command::Top { interval, count } = command;
    let (client, every) = (global.client()?, Duration::from_secs(interval));
    let is_watched = !output.is_json() && io::stdout().is_terminal() && io::stdin().is_terminal();
    match is_watched {
        true => watch(&client, &global.coordinator, every, count).await,
        false => print(&client, &global.coordinator, every, count.unwrap_or(1), output).await,
    }
}

async fn look(client: &Client) -> anyhow::Result<Look> {
    let page: Page<NodeView> = client.list("/api/v1/nodes", &[]).await?;
    Ok(Look {
        at: Instant::now(),
        nodes: page.items,
    })
}

/// Pictures one below the other, each of what moved since the one before.
async fn print(client: &Client, coordinator: &str, every: Duration, count: u32, output: &Output) -> anyhow::Result<()> {
    let mut before = look(client).await?;
    for _ in 0..count {
        tokio::time::sleep(every).await;
        let now = look(client).await?;
        let view = View::of(coordinator, &before, &now);
        output.show(&view, || view.lines(usize::MAX))?;
        before = now;
    }
    Ok(())
}

/// The whole screen, until somebody has seen enough. However it ends, the terminal is as it was.
async fn watch(client: &Client, coordinator: &str, every: Duration, count: Option<u32>) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let first = look(client).await?;
    let mut screen = Screen::open()?;
    tokio::select! {
        ended = show(client, coordinator, every, count, first, &mut screen) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn show(
    client: &Client,
    coordinator: &str,
    every: Duration,
    count: Option<u32>,
    first: Look,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let mut view = View::of(coordinator, &first, &first);
    let (mut before, mut shown, mut problem) = (first, 0, None);
    loop {
        screen.draw(&view, problem.as_deref())?;
        if count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        let until = Instant::now() + every;
        while Instant::now() < until {
            match screen::asked(screen, until).await? {
                Asked::End => return Ok(()),
                Asked::Redraw => screen.draw(&view, problem.as_deref())?,
                Asked::Nothing => {}
            }
        }
        match look(client).await {
            Ok(now) => {
                view = View::of(coordinator, &before, &now);
                (before, problem) = (now, None);
            }
            // It may be starting again: what was seen last stays, with what is wrong.
            Err(error) => problem = Some(format!("{error:#}")),
        }
        shown += 1;
    }
}
