//! `firmesh provision`: servers are brought up, firmware first, the BIOS's settings last; and how plans and campaigns of that kind are
//! shown.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use firmesh_coordinator::ceremony::{CampaignFile, KeyRef, TrustFolder, save_draft};
use firmesh_protocol::{
    api::{BaselineView, CampaignView, DeviceView, ServerState, ServerView},
    ids::{CampaignId, LabelValue, NodeId},
    manifest::{
        Analysis, CampaignKind, CampaignManifest, Plan, PlannedComponent, PlannedServer, ProvisioningPhase, ReleaseInfo,
    },
};

use crate::{Expiry, Folder, Global, campaign, client::Client, output::Output};

/// Servers of a plan that are shown one by one; `--json` has all.
const SERVERS_SHOWN: usize = 100;

pub(crate) const EXAMPLE: &str = r#"The file (TOML):

  id = "hall-3"
  expires = "2027-01-31T12:00:00Z"
  baseline = "q3"                              # or releases = ["firmware/acme-r1-bmc-1.1.0", ...]
  filter = 'path under "eu/fra1"'              # a server of which one component matches is meant whole

Releases of any number of vendors, models and components make one campaign; the settings of the BIOS are a release of the
component bios-settings. Everything else of a campaign file may stand there too (firmesh campaign create --help). What is left out:
strategy = { kind = "direct" }, caps = { per_rack = 2, total = 20 }, deadlines = { attempt = "PT1H", back = "PT10M" },
gate = { advance = 0, rollback = 0, sample_min = 1 } (a server that fails stops itself and nobody else), and as `previous` the
releases that the servers run now. Components of one server carry the same label `unit` in their node's configuration.

Each server goes through 1 preflight, 2 version analysis, 3 updates (in the order of components, each restarted and read back before the
next), 4 BIOS configuration, 5 final validation. What fails 1 or 2 is held whole, with the reason, before anybody signs. Then, as for
any campaign: firmesh campaign sign, publish, start; and firmesh campaign status shows each server in its phase."#;

#[derive(Debug, Args)]
pub(crate) struct Provision {
    #[command(flatten)]
    folder: Folder,
    /// The file.
    #[arg(long, value_name = "servers.toml")]
    file: PathBuf,
    /// Public keys of coordinators whose permits count (repeat); if the file names none either, this coordinator's.
    #[arg(long, value_name = "KEY")]
    permit_key: Vec<KeyRef>,
    #[command(flatten)]
    expiry: Expiry,
}

/// Drafts the campaign and has it planned at once.
pub(crate) async fn run(global: &Global, args: &Provision, output: &Output) -> anyhow::Result<()> {
    let mut folder = args.folder.open_locked()?;
    let text = campaign::read_text(&args.file)?;
    let file = CampaignFile::provisioning_from_toml(&text).with_context(|| {
        format!(
            "{} does not say what to provision (see: firmesh provision --help)",
            args.file.display()
        )
    })?;
    let draft = campaign::draft(global, &folder, file, &args.permit_key).await?;
    // What is planned once more starts from here.
    save_draft(&folder, &draft)?;
    campaign::plan_draft(global, &mut folder, draft, None, args.expiry.after_now(), output).await
}

/// Fills in what a campaign file leaves to the coordinator: the releases of its baseline, the devices of its filter, and, if it is for
/// provisioning, what servers go back to.
pub(crate) async fn resolve(client: &Client, folder: &TrustFolder, file: &mut CampaignFile) -> anyhow::Result<()> {
    if let Some(baseline) = file.baseline.take() {
        anyhow::ensure!(
            file.releases.is_empty(),
            "the file names the baseline {baseline} and releases: one of the two"
        );
        let view: BaselineView = client.get(&format!("/api/v1/baselines/{baseline}")).await?;
        anyhow::ensure!(
            view.missing.is_empty(),
            "nobody signs any more for these releases of the baseline {baseline}: {}",
            view.missing.join(", ")
        );
        file.releases = view.releases;
    }
    if let Some(filter) = file.filter.take() {
        anyhow::ensure!(
            file.selector.devices.is_empty(),
            "the file names a filter and devices: one of the two"
        );
        let mut found = list(client, &filter).await?;
        anyhow::ensure!(
            !found.is_empty(),
            "no device matches {filter}: a campaign for nobody would be one for everybody"
        );
        if file.kind == CampaignKind::Provisioning {
            found = whole_servers(client, found).await?;
        }
        file.selector.devices = found.iter().map(|view| view.facts.device.clone()).collect();
        if file.kind == CampaignKind::Provisioning && file.previous.is_empty() {
            file.previous = previous(folder, &file.releases, &found);
        }
    }
    Ok(())
}

async fn list(client: &Client, filter: &str) -> anyhow::Result<Vec<DeviceView>> {
    let page = client
        .list::<DeviceView>("/api/v1/devices", &[("filter", filter)])
        .await?;
    Ok(page.items)
}

/// With the other components of the same servers.
async fn whole_servers(client: &Client, found: Vec<DeviceView>) -> anyhow::Result<Vec<DeviceView>> {
    let unit = |view: &DeviceView| -> Option<(NodeId, LabelValue)> {
        Some((view.node.clone()?, view.facts.labels.unit()?.clone()))
    };
    let units: BTreeSet<_> = found.iter().filter_map(unit).collect();
    let nodes: BTreeSet<_> = units.iter().map(|(node, _)| node.clone()).collect();
    let mut all = found;
    let mut known: BTreeSet<_> = all.iter().map(|view| view.facts.device.clone()).collect();
    for node in nodes {
        let beside = list(client, &format!("node == \"{node}\"")).await?;
        let others = beside
            .into_iter()
            .filter(|view| unit(view).is_some_and(|unit| units.contains(&unit)));
        all.extend(others.filter(|view| known.insert(view.facts.device.clone())));
    }
    Ok(all)
}

/// The signed releases that devices run now, but for those that the campaign brings.
fn previous(folder: &TrustFolder, releases: &[String], devices: &[DeviceView]) -> Vec<String> {
    let targets = folder.repository().releases().targets.iter();
    let runs = |info: &ReleaseInfo| {
        devices.iter().any(|view| {
            let facts = &view.facts;
            facts.version.as_ref() == Some(&info.version)
                && facts.vendor == info.vendor
                && facts.component == info.component
                && info.models.contains(&facts.model)
        })
    };
    let is_run = |custom: &serde_json::Value| {
        let info = serde_json::from_value::<ReleaseInfo>(custom.clone());
        info.is_ok_and(|info| runs(&info))
    };
    targets
        .filter(|(name, target)| !releases.contains(name) && target.custom.as_ref().is_some_and(is_run))
        .map(|(name, _)| name.clone())
        .take(1_000)
        .collect()
}

/// The plan, server by server and phase by phase.
pub(crate) fn plan_lines(manifest: &CampaignManifest, plan: &Plan) -> Vec<String> {
    let due = |server: &&PlannedServer| server.due().next().is_some();
    let held = plan.servers.iter().filter(|server| server.held.is_some()).count();
    let to_do = plan.servers.iter().filter(due).count();
    let mut lines = vec![
        format!("plan of {}, sha256 {}", manifest.id, manifest.plan_sha256),
        format!(
            "{} servers: {to_do} to be brought up, {} current, {held} held",
            plan.servers.len(),
            plan.servers.len() - to_do - held
        ),
    ];
    for server in plan.servers.iter().take(SERVERS_SHOWN) {
        let first = server.due().next();
        let wave = first.and_then(|one| plan.devices().find(|(_, planned)| planned.device == one.device));
        let wave = wave.map_or_else(String::new, |(wave, _)| format!(", wave {wave}"));
        lines.push(format!("server {}{wave}", server.server));
        lines.extend(
            phases(server)
                .into_iter()
                .map(|(phase, says)| format!("  {} {:<18} {says}", phase.number(), phase.as_str())),
        );
    }
    if plan.servers.len() > SERVERS_SHOWN {
        lines.push(format!(
            "and {} more: --json has all",
            plan.servers.len() - SERVERS_SHOWN
        ));
    }
    lines
}

/// What the plan says of a server, as far as it goes.
fn phases(server: &PlannedServer) -> Vec<(ProvisioningPhase, String)> {
    use ProvisioningPhase::{BiosConfiguration, FinalValidation, Preflight, Updates, VersionAnalysis};
    let count = server.components.len();
    let analysis = || {
        let says: Vec<_> = server.components.iter().map(analysed).collect();
        says.join("; ")
    };
    if let Some(held) = &server.held {
        let held = (held.phase, format!("held, nothing of it is touched: {}", held.reason));
        return vec![held, (VersionAnalysis, analysis())]
            .into_iter()
            .take(if server.held.as_ref().is_some_and(|held| held.phase == Preflight) {
                2
            } else {
                1
            })
            .collect();
    }
    let of_phase = |phase| {
        let due = server
            .due()
            .filter(move |one| ProvisioningPhase::of(&one.component) == phase);
        due.map(|one| one.device.to_string()).collect::<Vec<_>>()
    };
    let (updates, settings) = (of_phase(Updates), of_phase(BiosConfiguration));
    let or_nothing = |devices: &[String], says: String| match devices.is_empty() {
        true => "nothing to do".to_owned(),
        false => says,
    };
    vec![
        (
            Preflight,
            format!("passed: {count} components answer, and nobody holds them; once more before each start"),
        ),
        (VersionAnalysis, analysis()),
        (
            Updates,
            or_nothing(
                &updates,
                format!(
                    "{}: each restarted and read back before the next",
                    updates.join(", then ")
                ),
            ),
        ),
        (
            BiosConfiguration,
            or_nothing(
                &settings,
                format!("{}: applied by a restart and read back", settings.join(", then ")),
            ),
        ),
        (FinalValidation, format!("{count} components are read once more")),
    ]
}

fn analysed(one: &PlannedComponent) -> String {
    let from = one.from.as_deref().unwrap_or("?");
    match &one.analysis {
        Analysis::Current {} => format!("{} {} current at {from}", one.component, one.device),
        Analysis::Due { over } if over.is_empty() => {
            format!("{} {} {from} -> {}", one.component, one.device, one.to)
        }
        Analysis::Due { over } => format!(
            "{} {} {from} -> {} over {}",
            one.component,
            one.device,
            one.to,
            over.join(", ")
        ),
        Analysis::Unfit { .. } => format!("{} {} cannot go from {from} to {}", one.component, one.device, one.to),
    }
}

/// The servers of a campaign; none if it is not for provisioning.
pub(crate) async fn servers(client: &Client, view: &CampaignView) -> anyhow::Result<Vec<ServerView>> {
    if view.provisioning.is_none() {
        return Ok(Vec::new());
    }
    Ok(of_campaign(client, &view.id).await?)
}

async fn of_campaign(client: &Client, id: &CampaignId) -> Result<Vec<ServerView>, crate::client::RequestError> {
    let page = client
        .list::<ServerView>(&format!("/api/v1/campaigns/{id}/servers"), &[])
        .await?;
    Ok(page.items)
}

/// How servers stand, one by one, and of those that are not done with every component.
pub(crate) fn lines(servers: &[ServerView]) -> Vec<String> {
    let of_server = |server: &ServerView| {
        let reason = match server.reason.is_empty() {
            true => String::new(),
            false => format!(": {}", server.reason),
        };
        let head = match server.state {
            ServerState::Provisioned => format!("  server {}: provisioned", server.server),
            state => format!(
                "  server {}: {state}, phase {} of 5 ({}){reason}",
                server.server,
                server.phase.number(),
                server.phase
            ),
        };
        let is_open = server.state != ServerState::Provisioned;
        let components = server.components.iter().filter(move |_| is_open).map(|one| {
            let from = one.from.as_deref().unwrap_or("?");
            let state = match (one.current, one.state) {
                (true, _) => "current".to_owned(),
                (false, Some(state)) => state.to_string(),
                (false, None) => "left out".to_owned(),
            };
            format!("    {} {}: {from} -> {}: {state}", one.component, one.device, one.to)
        });
        std::iter::once(head).chain(components).collect::<Vec<_>>()
    };
    servers.iter().flat_map(of_server).collect()
}
