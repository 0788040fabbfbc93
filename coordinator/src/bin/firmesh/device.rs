//! `firmesh device`: what is updated.

use clap::Subcommand;
use firmesh_protocol::{
    api::{DeviceView, Page},
    ids::DeviceId,
};
use serde_json::{Value, json};

use crate::{Global, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the devices and what they run.
    List {
        /// Only those for which this holds, such as 'model in ["R1", "R2"] and not version == "1.1"'. Fields: device,
        /// vendor, model, component, version, executor, node, path (also `under`), state, campaign.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Shows one device.
    Show {
        /// The device.
        device: DeviceId,
    },
    /// Says that a person has looked at a quarantined device: it leaves its place under the caps.
    Clear {
        /// The device.
        device: DeviceId,
    },
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
