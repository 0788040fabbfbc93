//! `firmesh device`: what is updated.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use firmesh_protocol::{
    api::{DeviceEdit, DeviceView, Page},
    ids::{DeviceId, TopologyPath},
};
use reqwest::{Method, header};
use serde_json::{Value, json};

use crate::{Global, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the devices and what they run.
    List {
        /// Only those for which this holds, such as 'model in ["R1", "R2"] and not version == "1.1"'. Fields: device,
        /// vendor, model, component, version, executor, node, path (also `under`), state, campaign, label "name".
        #[arg(long)]
        filter: Option<String>,
    },
    /// Shows one device.
    Show {
        /// The device.
        device: DeviceId,
    },
    /// Changes what people say of a device, unless somebody else does at the same time. What is not named stays.
    Edit(Box<Edit>),
    /// Says that a person has looked at a quarantined device: it leaves its place under the caps.
    Clear {
        /// The device.
        device: DeviceId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// The device.
    device: DeviceId,
    /// Campaigns may touch it again.
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// No campaign touches it.
    #[arg(long)]
    disable: bool,
    /// It stays as it is, for this reason; campaigns that are planned from now on leave it out.
    #[arg(long, value_name = "REASON", conflicts_with = "release")]
    hold: Option<String>,
    /// It is held no longer.
    #[arg(long)]
    release: bool,
    /// Where it is to stand, until a node tells of it.
    #[arg(long)]
    region: Option<TopologyPath>,
    /// A tag to add (repeat).
    #[arg(long)]
    tag: Vec<String>,
    /// A tag to take away (repeat).
    #[arg(long)]
    untag: Vec<String>,
}

impl Edit {
    /// What operators say of it from now on.
    fn of(&self, view: &DeviceView) -> DeviceEdit {
        let before = view.registration.as_ref();
        let tags = before
            .into_iter()
            .flat_map(|registration| registration.tags.iter().cloned());
        let tags = tags
            .filter(|tag| !self.untag.contains(tag))
            .chain(self.tag.iter().cloned());
        let held = before.and_then(|registration| registration.held.clone());
        DeviceEdit {
            region: self.region.clone(),
            tags: tags.collect(),
            metadata: before
                .map(|registration| registration.metadata.clone())
                .unwrap_or_default(),
            enabled: match (self.enable, self.disable) {
                (true, _) => true,
                (_, true) => false,
                _ => view.enabled,
            },
            held: if self.release { None } else { self.hold.clone().or(held) },
        }
    }
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::List { filter } => {
            let query: Vec<_> = filter.iter().map(|filter| ("filter", filter.as_str())).collect();
            let page = global.client()?.list("/api/v1/devices", &query).await?;
            show(&page, output)
        }
        Command::Show { device } => {
            let view: DeviceView = global.client()?.get(&format!("/api/v1/devices/{device}")).await?;
            output.show(&view, || lines(&view))
        }
        Command::Edit(edit) => {
            let client = global.client()?;
            let path = format!("/api/v1/devices/{}", edit.device);
            let response = client.send(Method::GET, &path, |request| request).await?;
            let tag = response.headers().get(header::ETAG).cloned();
            let tag =
                tag.ok_or_else(|| anyhow::anyhow!("{path} has no ETag: the coordinator is of another version"))?;
            let before: DeviceView = response
                .json()
                .await
                .context("the coordinator's answer is not a device")?;
            let changed = edit.of(&before);
            let put = |request: reqwest::RequestBuilder| request.header(header::IF_MATCH, tag).json(&changed);
            let view: DeviceView = client.ask(Method::PUT, &path, put).await?;
            output.show(&view, || lines(&view))
        }
        Command::Clear { device } => {
            let client = global.client()?;
            let path = format!("/api/v1/devices/{device}");
            let _: Value = client.post(&format!("{path}/clear"), &json!({})).await?;
            let view: DeviceView = client.get(&path).await?;
            output.show(&view, || {
                let head = format!("{device} is back in service and counts against no cap");
                std::iter::once(head).chain(lines(&view)).collect()
            })
        }
    }
}

/// Devices, one a line.
pub(crate) fn show(page: &Page<DeviceView>, output: &Output) -> anyhow::Result<()> {
    let rows: Vec<_> = page.items.iter().map(row).collect();
    output.show(page, || {
        Output::table(["DEVICE", "MODEL", "VERSION", "STATE", "PLACE"], &rows)
    })
}

fn version(view: &DeviceView) -> &str {
    view.facts.version.as_deref().unwrap_or("no answer")
}

fn row(view: &DeviceView) -> [String; 5] {
    let state = view.attempt.as_ref().map_or("-", |attempt| attempt.state.as_str());
    let facts = &view.facts;
    [
        facts.device.to_string(),
        facts.model.clone(),
        version(view).to_owned(),
        state.to_owned(),
        view.path.to_string(),
    ]
}

fn lines(view: &DeviceView) -> Vec<String> {
    let facts = &view.facts;
    let mut lines = vec![
        format!("{}: {} {} {}", facts.device, facts.vendor, facts.model, facts.component),
        format!("version   {}", version(view)),
        format!("executor  {}", facts.executor),
        match (&view.node, view.last_seen) {
            (Some(node), Some(seen)) => format!("node      {node} at {}, last heard {seen}", view.path),
            _ => format!("node      none has told of it yet, it is to stand at {}", view.path),
        },
        format!(
            "status    {}{}",
            json!(view.status).as_str().unwrap_or_default(),
            if view.enabled { "" } else { " (not updated)" }
        ),
    ];
    if let Some(registration) = &view.registration {
        lines.push(format!("hardware  {}", registration.hardware_id));
        lines.extend(registration.held.iter().map(|reason| format!("held      {reason}")));
        lines.extend((!registration.tags.is_empty()).then(|| format!("tags      {}", registration.tags.join(" "))));
        lines.extend(
            registration
                .mismatch
                .iter()
                .map(|problem| format!("but       {problem}")),
        );
    }
    if let Some(attempt) = &view.attempt {
        let (campaign, wave, state) = (&attempt.campaign, attempt.wave + 1, attempt.state.as_str());
        lines.push(format!(
            "attempt   {state} in wave {wave} of {campaign}: {}",
            attempt.reason
        ));
    }
    lines
}
