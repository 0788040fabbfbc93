//! `firmesh access`: who one is, who may do what, and API keys.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::write_secret;
use firmesh_protocol::{
    api::{ApiKeyMade, ApiKeyView, Grant, Limits, NewApiKey, Page, PermissionView, Role, RotateRequest, WhoAmI},
    ids::DeviceId,
};
use serde_json::json;

use crate::{Global, client::Client, output::Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Says who the coordinator takes you for, and what you may do.
    Whoami,
    /// Says which role has which permission.
    Permissions,
    /// API keys, for machines and devices.
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Makes a key; its secret is shown this once.
    Create {
        /// Whose it is, or what it is for.
        name: String,
        /// viewer, operator, approver, admin or device.
        #[arg(long)]
        role: Role,
        #[command(flatten)]
        limits: LimitArgs,
        /// The device that its owner is, for the role device.
        #[arg(long)]
        device: Option<DeviceId>,
        /// Days until it has to be rotated; 90 if absent.
        #[arg(long)]
        days: Option<u32>,
        /// Where to write the secret, readable by its owner only, rather than show it.
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Lists the keys.
    List,
    /// Gives a key another secret; the old one stays good for a day.
    Rotate {
        /// The key; the one that you show yourself, if absent.
        key: Option<String>,
        /// For how many seconds the old secret stays good.
        #[arg(long)]
        grace_seconds: Option<u32>,
        /// Where to write the secret, in place of what is there, rather than show it.
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// The key and its tokens are good no more.
    Revoke {
        /// The key.
        key: String,
    },
}

/// Where a role ends: repeat for more than one.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Changes only at this site, such as eu/berlin (repeat).
    #[arg(long, value_name = "SITE")]
    site: Vec<String>,
    /// Changes only in this region, such as eu (repeat).
    #[arg(long, value_name = "REGION")]
    region: Vec<String>,
    /// Changes only devices of this vendor (repeat).
    #[arg(long, value_name = "VENDOR")]
    vendor: Vec<String>,
    /// Changes only in this environment (repeat).
    #[arg(long, value_name = "ENVIRONMENT")]
    environment: Vec<String>,
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Self {
        let set = |values: Vec<String>| (!values.is_empty()).then(|| values.into_iter().collect());
        Self {
            sites: set(args.site),
            regions: set(args.region),
            vendors: set(args.vendor),
            environments: set(args.environment),
        }
    }
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    let client = global.client()?;
    match command {
        Command::Whoami => {
            let who: WhoAmI = client.get("/api/v1/auth/whoami").await?;
            output.show(&who, || lines(&who))
        }
        Command::Permissions => {
            let page: Page<PermissionView> = client.get("/api/v1/auth/permissions").await?;
            let rows: Vec<_> = page
                .items
                .iter()
                .map(|view| {
                    let roles: Vec<_> = view.roles.iter().map(|role| role.name()).collect();
                    [view.permission.clone(), roles.join(", "), view.what.clone()]
                })
                .collect();
            output.show(&page, || Output::table(["PERMISSION", "ROLES", "WHAT"], &rows))
        }
        Command::Key(command) => key(&client, command, output).await,
    }
}

async fn key(client: &Client, command: KeyCommand, output: &Output) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create {
            name,
            role,
            limits,
            device,
            days,
            out,
        } => {
            let new = NewApiKey {
                name,
                role,
                limits: limits.into(),
                device,
                days,
            };
            let made: ApiKeyMade = client.post("/api/v1/access/keys", &new).await?;
            hand_over(made, out.as_deref(), false, output)
        }
        KeyCommand::List => {
            let page = client.list::<ApiKeyView>("/api/v1/access/keys", &[]).await?;
            let rows: Vec<_> = page.items.iter().map(row).collect();
            output.show(&page, || {
                Output::table(["KEY", "NAME", "ROLE", "GOOD UNTIL", "MADE BY"], &rows)
            })
        }
        KeyCommand::Rotate {
            key,
            grace_seconds,
            out,
        } => {
            let path = match key {
                Some(key) => format!("/api/v1/access/keys/{key}/rotate"),
                None => "/api/v1/auth/key/rotate".to_owned(),
            };
            let made: ApiKeyMade = client.post(&path, &RotateRequest { grace_seconds }).await?;
            hand_over(made, out.as_deref(), true, output)
        }
        KeyCommand::Revoke { key } => {
            let path = format!("/api/v1/access/keys/{key}/revoke");
            let view: ApiKeyView = client.post(&path, &json!({})).await?;
            output.show(&view, || vec![format!("{} ({}) is good no more", view.id, view.name)])
        }
    }
}

/// Shows a secret, or writes it where it is used. What cannot be written is shown: it is lost otherwise.
fn hand_over(made: ApiKeyMade, out: Option<&Path>, replace: bool, output: &Output) -> anyhow::Result<()> {
    let Some(path) = out else {
        return output.show(&made, || {
            let mut lines = key_lines(&made.key);
            lines.push(format!("secret  {}", made.secret));
            lines.push("It is not shown again.".to_owned());
            lines
        });
    };
    match write_secret(path, made.secret.as_bytes(), replace) {
        Ok(()) => output.show(&made.key, || {
            let mut lines = key_lines(&made.key);
            lines.push(format!("secret  in {}", path.display()));
            lines
        }),
        Err(error) => {
            output.show(&made, || vec![format!("secret  {}", made.secret)])?;
            Err(error.into())
        }
    }
}

fn key_lines(key: &ApiKeyView) -> Vec<String> {
    vec![
        format!("{}: {}", key.id, key.name),
        format!(
            "role    {}",
            shown(&Grant {
                role: key.role,
                limits: key.limits.clone()
            })
        ),
        format!("until   {}", key.expires),
    ]
}

fn row(key: &ApiKeyView) -> [String; 5] {
    let grant = Grant {
        role: key.role,
        limits: key.limits.clone(),
    };
    let until = match key.revoked {
        Some(revoked) => format!("revoked {revoked}"),
        None => key.expires.to_string(),
    };
    [
        key.id.clone(),
        key.name.clone(),
        shown(&grant),
        until,
        key.created_by.clone(),
    ]
}

fn lines(who: &WhoAmI) -> Vec<String> {
    let grants: Vec<_> = who.grants.iter().map(shown).collect();
    let mut lines = vec![
        format!("{} ({})", who.name, who.means),
        format!(
            "roles   {}",
            if grants.is_empty() {
                "none".to_owned()
            } else {
                grants.join(", ")
            }
        ),
    ];
    let groups: Vec<_> = who.groups.iter().map(String::as_str).collect();
    lines.extend((!groups.is_empty()).then(|| format!("groups  {}", groups.join(", "))));
    lines.extend(who.expires.map(|expires| format!("until   {expires}")));
    lines.push(format!("may     {}", who.permissions.join(", ")));
    lines
}

fn shown(grant: &Grant) -> String {
    let limits = grant.limits.named().map(|(name, values)| {
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        format!("{name} {}", values.join(", "))
    });
    let limits: Vec<_> = limits.collect();
    match limits.is_empty() {
        true => grant.role.to_string(),
        false => format!("{} ({})", grant.role, limits.join("; ")),
    }
}
