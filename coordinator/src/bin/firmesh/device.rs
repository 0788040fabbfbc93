//! `firmesh device`: what is updated.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use firmesh_protocol::{
    api::{
        DeviceData, DeviceEdit, DeviceExamination, DeviceIdentity, DeviceView, Erasure, FindingLevel, NewDevice, Page,
        TranscriptView,
    },
    ids::{Component, DeviceId, TopologyPath},
};
use reqwest::{Method, header};
use serde_json::{Value, json};

use crate::{Global, client::Client, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the devices and what they run.
    List {
        /// Only those for which this holds, such as 'model in ["R1", "R2"] and not version == "1.1"'. Fields: device,
        /// vendor, model, component, version, executor, node, path (also `under`), state, campaign, label "name"; for those who
        /// may see whose devices are: hardware_id, hostname, asset_tag, address, owner, contact.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Shows one device.
    Show {
        /// The device.
        device: DeviceId,
    },
    /// Registers a device that a node is going to tell of. Without a name, the coordinator makes one that says nothing of the device:
    /// the node's configuration then has to name it so.
    Register(Box<Register>),
    /// Changes what people say of a device, unless somebody else does at the same time. What is not named stays.
    Edit(Box<Edit>),
    /// Says that a person has looked at a quarantined device: it leaves its place under the caps.
    Clear {
        /// The device.
        device: DeviceId,
    },
    /// Tells what a device supports and what its executor would do with it, changing nothing. Its node answers.
    Doctor {
        /// The device.
        device: DeviceId,
        /// The status address of its node, such as `http://127.0.0.1:8653`.
        #[arg(long, value_name = "URL")]
        node: String,
    },
    /// Lists what was said to a device in its last attempts, or prints it: for whoever looks for why an attempt failed.
    Transcripts {
        /// The device.
        device: DeviceId,
        /// The words of this one, as JSON lines. Without secrets: the node has taken them out.
        #[arg(long)]
        number: Option<u64>,
    },
    /// Shows all that is held of a device, as JSON, for whoever has a right to know.
    Data {
        /// The device.
        device: DeviceId,
    },
    /// Destroys for good what says whose a device is, and removes it. Its name stays in what was signed.
    Erase {
        /// The device.
        device: DeviceId,
        /// Its name once more, where nobody is at a terminal to type it.
        #[arg(long, value_name = "DEVICE")]
        confirm: Option<DeviceId>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Register {
    /// Its name, under which its node will tell of it; one that says nothing of it, if absent.
    #[arg(long)]
    device: Option<DeviceId>,
    /// What stands on it: its serial number, MAC address or the like.
    #[arg(long)]
    hardware_id: String,
    /// Who makes it, as in published releases.
    #[arg(long)]
    vendor: String,
    /// Its model, as in published releases.
    #[arg(long)]
    model: String,
    /// The component that is updated.
    #[arg(long)]
    component: Component,
    /// Where it is to stand, until a node tells of it.
    #[arg(long)]
    region: Option<TopologyPath>,
    /// A tag, which whoever may see the device sees (repeat).
    #[arg(long)]
    tag: Vec<String>,
    /// Its host name.
    #[arg(long)]
    hostname: Option<String>,
    /// The number that its owner has put on it.
    #[arg(long)]
    asset_tag: Option<String>,
    /// An address of it (repeat).
    #[arg(long)]
    address: Vec<String>,
    /// Whose it is.
    #[arg(long)]
    owner: Option<String>,
    /// Who is to be asked.
    #[arg(long)]
    contact: Option<String>,
}

impl Register {
    fn into_new(self) -> NewDevice {
        NewDevice {
            device: self.device,
            hardware_id: self.hardware_id,
            vendor: self.vendor,
            model: self.model,
            component: self.component,
            region: self.region,
            tags: self.tag,
            metadata: serde_json::Map::new(),
            identity: Some(DeviceIdentity {
                hostname: self.hostname,
                asset_tag: self.asset_tag,
                addresses: self.address,
                owner: self.owner,
                contact: self.contact,
                labels: BTreeMap::new(),
            }),
            enabled: None,
        }
    }
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
            // It stays what it is.
            identity: None,
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
        Command::Doctor { device, node } => {
            let found: DeviceExamination = Client::new(&node, None, None)?
                .get(&format!("/devices/{device}/doctor"))
                .await?;
            output.show(&found, || examined(&found))?;
            let failures = found.count(FindingLevel::Failure);
            anyhow::ensure!(
                failures == 0,
                "{failures} of {} findings would fail an update",
                found.findings.len()
            );
            Ok(())
        }
        Command::Register(new) => {
            let view: DeviceView = global.client()?.post("/api/v1/devices", &new.into_new()).await?;
            output.show(&view, || {
                let name = &view.facts.device;
                let head = format!("registered as {name}: name it so in its node's configuration");
                std::iter::once(head).chain(lines(&view)).collect()
            })
        }
        Command::Transcripts { device, number } => {
            let (client, path) = (global.client()?, format!("/api/v1/devices/{device}/transcripts"));
            match number {
                None => {
                    let page: Page<TranscriptView> = client.get(&path).await?;
                    output.show(&page, || transcripts(&page.items))
                }
                Some(number) => {
                    let words = client.get_text(&format!("{path}/{number}")).await?;
                    // The last line may have been cut off as the node died.
                    let whole = words.split_inclusive('\n').filter(|line| line.ends_with('\n'));
                    let lines = whole.map(serde_json::from_str);
                    let lines: Vec<Value> = lines
                        .collect::<Result<_, _>>()
                        .context("the coordinator's answer is not a transcript")?;
                    output.show(&lines, || words.lines().map(str::to_owned).collect())
                }
            }
        }
        Command::Data { device } => {
            let data: DeviceData = global.client()?.get(&format!("/api/v1/devices/{device}/data")).await?;
            output.show(&data, || vec![format!("{:#}", json!(data))])
        }
        Command::Erase { device, confirm } => {
            let question =
                format!("{device} is erased for good: nobody will know any more whose it was. Type its name: ");
            let typed = match confirm {
                Some(typed) => typed.to_string(),
                None => output
                    .asks(&question)?
                    .context("say `--confirm` and the device's name once more: it is erased for good")?,
            };
            if typed != device.as_str() {
                bail!("{typed:?} is not {device}: nothing was erased");
            }
            let path = format!("/api/v1/devices/{device}/erasure");
            let erased: Erasure = global.client()?.post(&path, &json!({})).await?;
            output.show(&erased, || {
                let head = format!("{device} was erased at {}", erased.at);
                let remains = erased.remains.iter().map(|text| format!("still: {text}"));
                std::iter::once(head).chain(remains).collect()
            })
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

/// What was found at a device, one finding a line and its advice below it.
fn examined(found: &DeviceExamination) -> Vec<String> {
    let DeviceExamination {
        device,
        component,
        executor,
        findings,
        ..
    } = found;
    let head = format!("{device}: {component}, by the executor {executor}");
    let lines = findings.iter().flat_map(|finding| {
        let mark = match finding.level {
            FindingLevel::Ok => "ok",
            FindingLevel::Warning => "warning",
            FindingLevel::Failure => "FAILURE",
        };
        let line = format!("{mark:8} {:14} {}", finding.part, finding.says);
        let advice = finding.advice.iter().map(|advice| format!("{:24}{advice}", ""));
        std::iter::once(line).chain(advice)
    });
    std::iter::once(head).chain(lines).collect()
}

/// Transcripts, one a line.
fn transcripts(views: &[TranscriptView]) -> Vec<String> {
    if views.is_empty() {
        return vec![
            "none: its node writes none down (`transcript` in its configuration), or nothing was tried".to_owned(),
        ];
    }
    let row = |view: &TranscriptView| {
        [
            view.number.to_string(),
            view.campaign.to_string(),
            view.state.as_str().to_owned(),
            view.ended.to_string(),
            view.exchanges.to_string(),
            match (view.kept_bytes, view.left_out) {
                (0, _) => format!("at {}", view.node),
                (kept, 0) => format!("{kept} bytes"),
                (kept, _) => format!("{kept} of {} bytes", view.bytes),
            },
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    Output::table(["NUMBER", "CAMPAIGN", "ENDED AS", "AT", "EXCHANGES", "WORDS"], &rows)
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
    let profile = view.credentials_profile.iter();
    lines.extend(profile.map(|profile| format!("profile   {profile} (its credentials)")));
    if let Some(registration) = &view.registration {
        lines.extend(registration.hardware_id.iter().map(|id| format!("hardware  {id}")));
        if let Some(identity) = &registration.identity {
            let named = [
                ("hostname", &identity.hostname),
                ("asset", &identity.asset_tag),
                ("owner", &identity.owner),
                ("contact", &identity.contact),
            ];
            let named = named
                .into_iter()
                .filter_map(|(name, text)| Some(format!("{name:<9} {}", text.as_ref()?)));
            lines.extend(named.chain(identity.addresses.iter().map(|address| format!("address   {address}"))));
            lines.extend(
                identity
                    .labels
                    .iter()
                    .map(|(name, text)| format!("label     {name} {text}")),
            );
        }
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
