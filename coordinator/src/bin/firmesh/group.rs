//! `firmesh group`: devices with a common name, by hand or by a rule.

use clap::{Args, Subcommand};
use firmesh_protocol::{
    api::{DeviceGroup, DeviceGroupEdit, DeviceView, MembersEdit, NewDeviceGroup},
    ids::{DeviceId, GroupId},
};
use reqwest::{Method, header};
use serde_json::json;

use crate::{Global, client::Client, device, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the groups.
    List,
    /// Shows a group.
    Show {
        /// The group.
        group: GroupId,
    },
    /// Lists the members as they are now.
    Devices {
        /// The group.
        group: GroupId,
    },
    /// Makes a group.
    Create {
        /// The group.
        group: GroupId,
        #[command(flatten)]
        content: Content,
    },
    /// Makes a group another one, unless somebody else changes it at the same time.
    Set {
        /// The group.
        group: GroupId,
        #[command(flatten)]
        content: Content,
    },
    /// Adds devices to a static group.
    Add {
        /// The group.
        group: GroupId,
        /// The devices.
        #[arg(required = true)]
        devices: Vec<DeviceId>,
    },
    /// Takes devices out of a static group.
    Drop {
        /// The group.
        group: GroupId,
        /// The devices.
        #[arg(required = true)]
        devices: Vec<DeviceId>,
    },
    /// Removes a group; its devices stay what they are.
    Delete {
        /// The group.
        group: GroupId,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Content {
    /// What it is for, for a person.
    #[arg(long, default_value = "")]
    description: String,
    /// The rule of a dynamic group, such as 'model == "R1" and path under "eu/ber"'.
    #[arg(long, conflicts_with = "device")]
    filter: Option<String>,
    /// A member of a static group (repeat).
    #[arg(long)]
    device: Vec<DeviceId>,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Command::List => {
            let page = client.list::<DeviceGroup>("/api/v1/device-groups", &[]).await?;
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || Output::table(["GROUP", "MEMBERS", "FOR"], &rows))
        }
        Command::Show { group } => {
            let view: DeviceGroup = client.get(&path(&group)).await?;
            output.show(&view, || lines(&view))
        }
        Command::Devices { group } => {
            let page = client
                .list::<DeviceView>(&format!("{}/devices", path(&group)), &[])
                .await?;
            device::show(&page, output)
        }
        Command::Create { group, content } => {
            let new = NewDeviceGroup {
                id: group,
                description: content.description,
                filter: content.filter,
                devices: content.device,
            };
            let view: DeviceGroup = client.post("/api/v1/device-groups", &new).await?;
            output.show(&view, || lines(&view))
        }
        Command::Set { group, content } => {
            let edit = DeviceGroupEdit {
                description: content.description,
                filter: content.filter,
                devices: content.device,
            };
            let path = path(&group);
            let tag = tag(&client, &path).await?;
            let put = |request: reqwest::RequestBuilder| request.header(header::IF_MATCH, tag).json(&edit);
            let view: DeviceGroup = client.ask(Method::PUT, &path, put).await?;
            output.show(&view, || lines(&view))
        }
        Command::Add { group, devices } => {
            let edit = MembersEdit {
                add: devices,
                ..MembersEdit::default()
            };
            edit_members(&client, &group, &edit, output).await
        }
        Command::Drop { group, devices } => {
            let edit = MembersEdit {
                remove: devices,
                ..MembersEdit::default()
            };
            edit_members(&client, &group, &edit, output).await
        }
        Command::Delete { group } => {
            let path = path(&group);
            let tag = tag(&client, &path).await?;
            let delete = |request: reqwest::RequestBuilder| request.header(header::IF_MATCH, tag);
            let () = client.ask(Method::DELETE, &path, delete).await?;
            output.show(&json!({ "deleted": group }), || vec![format!("{group} is gone")])
        }
    }
}

/// Everybody in the group now.
pub(crate) async fn members(client: &Client, group: &GroupId) -> anyhow::Result<Vec<DeviceId>> {
    let page = client
        .list::<DeviceView>(&format!("{}/devices", path(group)), &[])
        .await?;
    anyhow::ensure!(
        !page.items.is_empty(),
        "the group {group} has no members now: a campaign for nobody would be one for everybody"
    );
    Ok(page.items.into_iter().map(|view| view.facts.device).collect())
}

async fn edit_members(client: &Client, group: &GroupId, edit: &MembersEdit, output: &Output) -> anyhow::Result<()> {
    let view: DeviceGroup = client.post(&format!("{}/devices", path(group)), edit).await?;
    output.show(&view, || lines(&view))
}

/// The group's tag as it is now: the change is refused if it is another one by then.
async fn tag(client: &Client, path: &str) -> anyhow::Result<header::HeaderValue> {
    let response = client.send(Method::GET, path, |request| request).await?;
    let tag = response.headers().get(header::ETAG).cloned();
    tag.ok_or_else(|| anyhow::anyhow!("{path} has no ETag: the coordinator is of another version"))
}

fn path(group: &GroupId) -> String {
    format!("/api/v1/device-groups/{group}")
}

fn row(group: &DeviceGroup) -> [String; 3] {
    [group.id.to_string(), rule(group), group.description.clone()]
}

fn rule(group: &DeviceGroup) -> String {
    match (&group.filter, group.members) {
        (Some(filter), _) => filter.clone(),
        (None, members) => members.unwrap_or_default().to_string(),
    }
}

fn lines(group: &DeviceGroup) -> Vec<String> {
    let kind = if group.filter.is_some() { "rule" } else { "members" };
    let mut lines = vec![format!("{}: {kind} {}", group.id, rule(group))];
    lines.extend((!group.description.is_empty()).then(|| format!("for  {}", group.description)));
    lines
}
