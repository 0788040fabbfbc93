//! `firmesh provision`: servers are brought up, firmware first, the BIOS's settings last; and how plans and campaigns of that kind are
//! shown.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use firmesh_coordinator::ceremony::{CampaignFile, KeyRef, TrustFolder, save_draft};
use firmesh_coordinator_core::{Field, Filter, Test};
use firmesh_protocol::{
    api::{BaselineView, CampaignView, DeviceView, ServerState, ServerView},
    ids::{CampaignId, LabelValue, NodeId},
    manifest::{
        Analysis, CampaignKind, CampaignManifest, Plan, PlannedComponent, PlannedServer, ProvisioningPhase,
        ReleaseInfo, Selector,
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
    let mut of_filter = None;
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
        of_filter = Some(found);
    }
    if wants_previous(file) {
        let found = match of_filter {
            Some(found) => found,
            None => selected(client, folder, file).await?,
        };
        let meant = found.iter().filter(|view| is_meant(&file.selector, view));
        file.previous = previous(folder, &file.releases, &meant.collect::<Vec<_>>());
    }
    Ok(())
}

/// Whether what servers go back to is left to us.
pub(crate) fn wants_previous(file: &CampaignFile) -> bool {
    file.kind == CampaignKind::Provisioning && file.previous.is_empty()
}

/// The devices that the campaign's selector may be for.
async fn selected(client: &Client, folder: &TrustFolder, file: &CampaignFile) -> anyhow::Result<Vec<DeviceView>> {
    let models = signed(folder)
        .filter(|(name, _)| file.releases.contains(name))
        .flat_map(|(_, info)| info.models)
        .collect();
    let (mut all, mut known) = (Vec::new(), BTreeSet::new());
    for question in questions(&file.selector, models) {
        let found = list(client, &question).await?;
        all.extend(found.into_iter().filter(|view| known.insert(view.facts.device.clone())));
    }
    Ok(all)
}

/// What to ask for, so that nothing that a selector is for is left out, and not everything that there is. Without a word about
/// which devices it is for those of the models that the campaign has releases for.
fn questions(selector: &Selector, models: BTreeSet<String>) -> Vec<String> {
    /// So many names of devices fit into a filter.
    const AT_ONCE: usize = 50;
    let filters: Vec<_> = if !selector.devices.is_empty() {
        let names = selector.devices.chunks(AT_ONCE);
        let names = names.map(|names| Test::In(names.iter().map(ToString::to_string).collect()));
        names.map(|names| Filter::Test(Field::Device, names)).collect()
    } else if !selector.paths.is_empty() {
        let paths = selector.paths.iter().cloned();
        paths.map(|path| Filter::Test(Field::Path, Test::Under(path))).collect()
    } else {
        let named: BTreeSet<_> = selector.models.iter().cloned().collect();
        let models = if named.is_empty() { models } else { named };
        let models = models.into_iter();
        models
            .map(|model| Filter::Test(Field::Model, Test::Is(model)))
            .collect()
    };
    filters.iter().map(ToString::to_string).collect()
}

/// Whether a selector is for a device, as the planner has it.
fn is_meant(selector: &Selector, view: &DeviceView) -> bool {
    let Selector { paths, models, devices } = selector;
    (devices.is_empty() || devices.contains(&view.facts.device))
        && (models.is_empty() || models.contains(&view.facts.model))
        && (paths.is_empty() || paths.iter().any(|path| view.path.is_within(path)))
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

/// The releases that are signed for.
fn signed(folder: &TrustFolder) -> impl Iterator<Item = (&String, ReleaseInfo)> {
    let targets = folder.repository().releases().targets.iter();
    targets.filter_map(|(name, target)| {
        let info = serde_json::from_value(target.custom.clone()?).ok()?;
        Some((name, info))
    })
}

/// The signed releases that devices run now, but for those that the campaign brings.
fn previous(folder: &TrustFolder, releases: &[String], devices: &[&DeviceView]) -> Vec<String> {
    let runs = |info: &ReleaseInfo| {
        devices.iter().any(|view| {
            let facts = &view.facts;
            facts.version.as_ref() == Some(&info.version)
                && facts.vendor == info.vendor
                && facts.component == info.component
                && info.models.contains(&facts.model)
        })
    };
    signed(folder)
        .filter(|(name, info)| !releases.contains(name) && runs(info))
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

#[cfg(test)]
mod tests {
    use firmesh_coordinator_core::FILTER_BYTES_MAX;
    use firmesh_protocol::ids::DeviceId;

    use super::*;

    #[test]
    fn what_is_asked_for_covers_what_the_selector_is_for() {
        let models = || BTreeSet::from(["R1".to_owned(), "a \"b\"".to_owned()]);
        let asked = |selector: &str| questions(&toml::from_str(selector).unwrap(), models());
        assert_eq!(asked(""), ["model == \"R1\"", "model == \"a \\\"b\\\"\""]);
        assert_eq!(asked("models = [\"R2\"]"), ["model == \"R2\""]);
        let paths = asked("models = [\"R2\"]\npaths = [\"eu/fra1\", \"eu/ams1\"]");
        assert_eq!(paths, ["path under \"eu/fra1\"", "path under \"eu/ams1\""]);
        let devices = |number: usize| DeviceId::new(format!("{number:a>64}")).unwrap();
        let selector = Selector {
            devices: (0..120).map(devices).collect(),
            ..Selector::default()
        };
        let asked = questions(&selector, models());
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|filter| filter.len() <= FILTER_BYTES_MAX), "{asked:?}");
        for filter in &asked {
            filter.parse::<Filter>().unwrap();
        }
    }
}
