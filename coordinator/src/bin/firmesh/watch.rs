//! `firmesh campaign watch`: the coordinator's event stream, until the campaign ends.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::Context as _;
use firmesh_protocol::{
    api::{AttemptView, CampaignState, CampaignView, Event, EventKind, PossessionView, ProvisioningView, WaveView},
    ids::CampaignId,
    report::AttemptState,
};
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::json;

use crate::{
    client::{Client, RequestError},
    output::{Output, Verdict},
    provision,
};

/// An event is a campaign's view at most; a line longer than this is not one of ours.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// A coordinator that restarts is back within this; longer silence is an error.
const RECONNECTS_MAX: u32 = 60;
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// Follows a campaign to its end. Ends with status 4 if it did not complete.
pub(crate) async fn run(client: &Client, campaign: &CampaignId, output: &Output) -> anyhow::Result<()> {
    let mut screen = Screen::new(output);
    let mut failures = 0;
    loop {
        match follow(client, campaign, &mut screen).await {
            Ok(Some(view)) => return conclude(client, &view, &screen).await,
            // The stream ended: a coordinator that restarts closes it.
            Ok(None) => failures = 0,
            Err(error) => {
                let gone = error
                    .downcast_ref()
                    .is_some_and(|error| matches!(error, RequestError::Unreachable { .. }));
                failures += 1;
                if !gone || failures > RECONNECTS_MAX {
                    return Err(error);
                }
            }
        }
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

async fn conclude(client: &Client, view: &CampaignView, screen: &Screen<'_>) -> anyhow::Result<()> {
    screen.finish(view)?;
    if view.provisioning.is_some() {
        let servers = provision::servers(client, view).await?;
        screen
            .output
            .show(&json!({ "servers": servers }), || provision::lines(&servers))?;
    }
    if view.state == CampaignState::Completed {
        return Ok(());
    }
    let (state, reason) = (state_name(view.state), &view.reason);
    Err(Verdict::NotConverged(format!("{} ended {state}: {reason}", view.id)).into())
}

/// One connection: subscribes, then reads where the campaign stands, so nothing in between is missed.
async fn follow(
    client: &Client,
    campaign: &CampaignId,
    screen: &mut Screen<'_>,
) -> anyhow::Result<Option<CampaignView>> {
    let events = client.send(Method::GET, "/api/v1/events", |request| request).await?;
    let view: CampaignView = client.get(&format!("/api/v1/campaigns/{campaign}")).await?;
    screen.campaign(&view)?;
    if view.state.is_terminal() {
        return Ok(Some(view));
    }
    let (mut lines, mut stream) = (Lines::default(), events.bytes_stream());
    while let Some(chunk) = stream.next().await {
        // A stream that breaks off is a stream that ended: the caller connects again.
        let Ok(chunk) = chunk else { return Ok(None) };
        for data in lines.push(&chunk)? {
            let event: Event = serde_json::from_str(&data).context("an event this version does not understand")?;
            match event.what {
                EventKind::Campaign(view) if view.id == *campaign => {
                    screen.campaign(&view)?;
                    if view.state.is_terminal() {
                        return Ok(Some(view));
                    }
                }
                EventKind::Attempt(attempt) if attempt.campaign == *campaign => screen.attempt(&attempt)?,
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Cuts a byte stream into the `data` of Server-Sent Events.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
    data: String,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) -> anyhow::Result<Vec<String>> {
        let mut events = Vec::new();
        self.partial.extend(chunk);
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            let line = String::from_utf8(line).context("the event stream is not text")?;
            match line.trim_end_matches(['\n', '\r']) {
                "" if !self.data.is_empty() => events.push(std::mem::take(&mut self.data)),
                line => {
                    if let Some(data) = line.strip_prefix("data:") {
                        let newline = if self.data.is_empty() { "" } else { "\n" };
                        self.data.push_str(newline);
                        self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                    }
                }
            }
        }
        anyhow::ensure!(
            self.partial.len() + self.data.len() <= EVENT_BYTES_MAX,
            "an event of the stream has no end"
        );
        Ok(events)
    }
}

/// A bar on a terminal, plain lines elsewhere, JSON lines for machines.
struct Screen<'o> {
    output: &'o Output,
    bar: Option<ProgressBar>,
    last: String,
}

impl<'o> Screen<'o> {
    fn new(output: &'o Output) -> Self {
        let terminal = !output.is_json() && io::stderr().is_terminal();
        let style = ProgressStyle::with_template("{spinner} {msg}\n  {bar:40} {pos}/{len} devices ended, {elapsed}");
        let bar =
            terminal.then(|| ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
        Self {
            output,
            bar,
            last: String::new(),
        }
    }

    fn campaign(&mut self, view: &CampaignView) -> anyhow::Result<()> {
        if self.output.is_json() {
            return self.output.show(view, Vec::new);
        }
        let line = headline(view);
        if let Some(bar) = &self.bar {
            bar.set_length(view.states.values().copied().map(u64::from).sum());
            bar.set_position(ended(view));
            bar.set_message(line);
            return Ok(());
        }
        if line != self.last {
            self.output.text(&format!("{line}\n"))?;
            self.last = line;
        }
        Ok(())
    }

    fn attempt(&self, attempt: &AttemptView) -> anyhow::Result<()> {
        if self.output.is_json() {
            return self.output.show(attempt, Vec::new);
        }
        let reason = if attempt.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", attempt.reason)
        };
        let line = format!(
            "  wave {} {} {}{reason}",
            attempt.wave,
            attempt.device,
            attempt.state.as_str()
        );
        match &self.bar {
            None => self.output.text(&format!("{line}\n")),
            // On a terminal only what somebody should read.
            Some(bar) => {
                if attempt.state.is_terminal() && !attempt.state.is_success() {
                    bar.println(line);
                }
                Ok(())
            }
        }
    }

    fn finish(&self, view: &CampaignView) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.output.is_json() {
            Ok(())
        } else {
            self.output.text(&format!("{}\n", lines(view).join("\n")))
        }
    }
}

fn ended(view: &CampaignView) -> u64 {
    view.states
        .iter()
        .filter(|(state, _)| state.is_terminal())
        .map(|(_, count)| u64::from(*count))
        .sum()
}

fn state_name(state: CampaignState) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|name| Some(name.as_str()?.to_owned()))
        .unwrap_or_default()
}

fn counts(states: &std::collections::BTreeMap<AttemptState, u32>) -> String {
    let counts = states.iter().filter(|(_, count)| **count > 0);
    counts
        .map(|(state, count)| format!("{count} {}", state.as_str()))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A campaign in one line.
pub(crate) fn headline(view: &CampaignView) -> String {
    let wave = match view.waves.last() {
        Some(last) => format!("wave {} of 0 to {}", view.wave, last.wave),
        None => "no waves".to_owned(),
    };
    let reason = if view.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", view.reason)
    };
    let (state, states) = (state_name(view.state), counts(&view.states));
    format!("{} {state}, {wave}: {states}{reason}", view.id)
}

/// A campaign with its waves, who has proven that it holds the images, and who is left out.
pub(crate) fn lines(view: &CampaignView) -> Vec<String> {
    let wave = |wave: &WaveView| {
        let open = if wave.open { "open" } else { "closed" };
        let gate = serde_json::to_value(wave.gate)
            .ok()
            .and_then(|name| Some(name.as_str()?.to_owned()));
        format!(
            "  wave {} ({open}, gate {}): {}",
            wave.wave,
            gate.unwrap_or_default(),
            counts(&wave.states)
        )
    };
    let held = view
        .held
        .iter()
        .map(|held| format!("  left out {}: {}", held.device, held.reason));
    let PossessionView { nodes, proven, .. } = &view.possession;
    let possession = format!("  possession: {proven} of {nodes} nodes have proven that they hold their images");
    let wrong = view.possession.wrong_proofs.iter();
    let wrong = wrong.map(|(node, count)| format!("  wrong_possession_proof: {count} by node {node}"));
    let provisioning = view
        .provisioning
        .iter()
        .map(|ProvisioningView { servers, states, .. }| {
            let states: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
            format!("  {servers} servers: {}", states.join(", "))
        });
    std::iter::once(headline(view))
        .chain(provisioning)
        .chain(view.waves.iter().map(wave))
        .chain([possession])
        .chain(wrong)
        .chain(held)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::{Json, Router, routing::get};
    use firmesh_protocol::time::WallTime;

    use super::*;

    fn view(state: CampaignState) -> CampaignView {
        CampaignView {
            id: CampaignId::new("spring").unwrap(),
            state,
            wave: 0,
            waves: Vec::new(),
            states: BTreeMap::from([(AttemptState::Success, 3), (AttemptState::Failed, 1)]),
            possession: PossessionView::default(),
            held: Vec::new(),
            provisioning: None,
            reason: "gate of wave 1".to_owned(),
        }
    }

    /// Watches a campaign that is active when asked, and whose event stream says that it ends in `last`.
    async fn watched(last: CampaignState) -> anyhow::Result<()> {
        let what = EventKind::Campaign(view(last));
        let event = Event {
            id: 7,
            at: WallTime::from_unix_seconds(0),
            what,
        };
        let stream = format!(": hello\n\nid: 7\ndata: {}\n\n", serde_json::to_string(&event)?);
        let router = Router::new()
            .route("/api/v1/events", get(move || async move { stream }))
            .route(
                "/api/v1/campaigns/spring",
                get(|| async { Json(view(CampaignState::Active)) }),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let client = Client::new(&format!("http://{}", listener.local_addr()?), None, None)?;
        let server = tokio::spawn(axum::serve(listener, router).into_future());
        let done = run(&client, &CampaignId::new("spring")?, &Output::new(true)).await;
        server.abort();
        done
    }

    #[tokio::test]
    async fn a_watched_campaign_ends_well_only_if_it_completed() {
        watched(CampaignState::Completed).await.unwrap();
        let error = watched(CampaignState::RolledBack).await.unwrap_err();
        assert_eq!(error.to_string(), "spring ended rolled_back: gate of wave 1");
        assert!(matches!(error.downcast_ref(), Some(Verdict::NotConverged(_))));
    }

    #[test]
    fn events_are_cut_out_of_any_chunks() {
        let text = b": hello\nid: 1\nevent: x\ndata: {\"a\":1}\n\ndata:one\r\ndata: two\r\n\r\n\n";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let events: Vec<_> = text.chunks(size).flat_map(|chunk| lines.push(chunk).unwrap()).collect();
            assert_eq!(events, ["{\"a\":1}", "one\ntwo"]);
        }
        let mut lines = Lines::default();
        assert!((0..=16).any(|_| lines.push(&vec![b'x'; 1 << 20]).is_err()));
    }
}
