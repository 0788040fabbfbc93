//! `firmesh campaign`: who gets which release under which rules, signed by approvers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use firmesh_coordinator::ceremony::{
    CampaignFile, KeyRef, Secrets, TrustFolder, adopt_plan, bind_rehearsal, draft_campaign, load_draft, load_planned,
    read_bounded, save_draft,
};
use firmesh_coordinator_core::Difference;
use firmesh_protocol::{
    api::{
        About, CampaignDraftView, CampaignView, CloseRequest, Explanation, Page, PlanRequest, PlanResponse, ServerView,
        SplitResponse,
    },
    ids::{CampaignId, DeviceId, GroupId},
    limits::{MANIFEST_BYTES_MAX, PLAN_BYTES_MAX},
    manifest::{CampaignKind, CampaignManifest, Plan, campaign_target},
    time::WallTime,
    trust::PublicKey,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Expiry, Folder, Global,
    approve::{self, ApproveArgs},
    group,
    output::Output,
    provision,
    rollback::{self, RollbackArgs},
    simulate, trust, watch,
};

const EXAMPLE: &str = r#"The campaign file (TOML), shares and thresholds in hundredths of a percent:

  id = "spring-bmc"
  expires = "2027-01-31T12:00:00Z"
  releases = ["firmware/acme-r1-bmc-1.1.0"]
  previous = ["firmware/acme-r1-bmc-1.0.0"]
  selector = { models = ["R1"], paths = ["eu/fra1"] }
  strategy = { kind = "canary", shares = [1000, 5000, 10000] }
  caps = { per_rack = 1, total = 20 }
  gate = { advance = 9900, rollback = 9000, sample_min = 1, soak = "PT1H" }
  deadlines = { attempt = "PT30M", back = "PT5M" }
  priority = "normal"    # or "background", or "emergency": its images overtake all others in the mesh

Strategies: { kind = "direct" }: all in one wave; { kind = "canary" }: 10, 30, 50, 100 % unless shares are given;
{ kind = "regional", order = ["us", "eu/fra1"] }: place by place, each at once or in shares; { kind = "rolling", batch = 100,
max_concurrent_batches = 3 }: batches, of which up to three are under way at once: each opens when the third before it has passed and soaked,
and a soak after the one before it opened (1: one after the other);
{ kind = "growing", first = 1, percent = 200 }: batches that double; { kind = "blue_green", by = "pool", order = ["green", "blue"],
switch = "balancer", drain = "balancer" }: the idle pool, then the one that serves, with webhooks that move traffic. The gate stands between two waves; what is left out
of it is advance = 9900, rollback = 9500, sample_min = 10, and a soak that suits the strategy: an hour in a canary, half
an hour between places, two hours between pools (and advance = 9950), a quarter of an hour between batches. Durations are seconds or ISO 8601. A wave that fails goes back by
itself unless automatic_rollback = false; operator_rollback = true lets operators send devices back that did well.
retries = { rules = [{ class = "install", times = 2, pause = "PT10M" }], budget = { share = 500 } } starts devices again that failed to
install: twice more at most, after 10 and 20 minutes, and only while at most 5 % of their wave have failed so, or { count = 3 } of it
(classes: install, boot, timeout). Without it a failure is final.

More for a gate: sequential = { good = 100, bad = 1000, alpha = 500, beta = 1000 } stops an image that breaks 10 % of the devices
as soon as that is sure, and one that breaks 1 % in 5 % of the cases at most; abort = [{ class = "boot", count = 2 }] fails the wave
with the second device that does not start (classes: preflight, install, boot, health, timeout, unreachable, quarantine; or share = 300);
health = { watch = "PT10M", required = ["cpu"] } watches each device before its update counts; approval = { after = [0], refused =
"roll_back" } asks an approver before the wave after the first opens (after every wave without `after`), and a no ends the campaign and
sends its devices back (refused = "cancel": they stay). See: firmesh campaign approve, refuse. webhooks =
["change-board"] asks outside systems that the coordinator's configuration has under these names. Where a release may not be installed directly, hops =
["firmware/acme-r1-bmc-1.0.5"] names what devices may go over: the plan takes the shortest way over these, a device keeps its place until it
has arrived, and a window has to be long enough for all of its steps. Windows recur by RFC 5545, for some
devices if need be, and blackouts by calendars (see: firmesh window preview):

  [[constraints.windows]]
  zone = "Europe/Berlin"
  duration_s = 14400
  recurs = { dtstart = "2027-01-12T23:00:00", rrule = "FREQ=MONTHLY;BYDAY=2TU", exdate = ["2027-03-09T23:00:00"] }
  only = { paths = ["eu"], models = ["R1"] }

  [[constraints.blackout_calendars]]
  name = "year's end"
  zone = "Europe/Berlin"
  duration_s = 1728000
  recurs = { dtstart = "2026-12-18T00:00:00", rrule = "FREQ=YEARLY" }

Caps of fault domains, by label or level of the place, beside racks and the total; the tightest of all campaigns wins:
  [[caps.domains]]
  by = "power_feed"                  # a label of the nodes' devices, or region, site, rack, path/3
  at_most = { below_percent = 1 }    # of its devices, but at least one; or { count = 2 }
  [[caps.never_together]]            # feeds of one site stand in for each other: never two of them in flight at once
  by = "power_feed"
  within = "site"
Devices with one `unit` label at a node are components of one server: updated one after the other, root of trust, BMC, BIOS,
CPLD, PSU, SSD, GPU, DPU, others, NIC, settings of the BIOS (bios-settings); for a vendor, otherwise: [[constraints.sequence]] vendor = "Acme", order = ["bios", "bmc"].
In place of `releases` a `baseline` may be named, and in place of a selector's devices a `filter`. type = "provisioning" brings up
whole servers: see firmesh provision."#;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Drafts a campaign from a file. Offline if the permit keys are given.
    #[command(after_help = EXAMPLE)]
    Create(Create),
    /// Has the coordinator plan the draft, binds the plan to it, and stages it for the approvers.
    Plan(PlanArgs),
    /// Takes a campaign that the coordinator has drafted, and stages it for the approvers.
    Adopt(RemoveArgs),
    /// Says what would be planned now that the staged plan does not say, or what two plans say differently.
    Diff(DiffArgs),
    /// Drafts the parts of a campaign that is for more devices than one may have, place by place.
    Split(SplitArgs),
    /// Plays the campaign against the inventory: how long its waves take, what they carry, what would stop it.
    Simulate(simulate::Simulate),
    /// Takes a campaign back: from the version that is signed next, nobody starts for it any longer. Offline.
    Remove(RemoveArgs),
    /// Signs campaigns.json after showing it. Offline.
    Sign(trust::Sign),
    /// Gives campaigns.json and its manifests to the coordinator.
    Publish(Folder),
    /// Lists the campaigns in force.
    List,
    /// Opens the first wave.
    Start(Campaign),
    /// Shows the campaign as it moves, until it ends.
    Watch(Campaign),
    /// Shows where the campaign stands.
    Status(Campaign),
    /// Says what the campaign, a wave or a device waits for, and why.
    Explain(Explain),
    /// No new starts until resumed.
    Pause(Campaign),
    /// Goes on.
    Resume(Campaign),
    /// Says yes after a wave, where the manifest asks an approver before the next one opens.
    Approve(ApproveArgs),
    /// Says no: the campaign ends, and goes back if the manifest says so.
    Refuse(ApproveArgs),
    /// Sends devices back to the version they had before the campaign.
    Rollback(RollbackArgs),
    /// Ends the campaign; devices in flight finish.
    Cancel(Campaign),
    /// Ends by force what nobody reports the end of: an attempt, or a campaign with all that is in flight. What may have
    /// been touched is quarantined; what a node says of it later is still heard.
    Close(Close),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    folder: Folder,
    /// The campaign file.
    #[arg(long, value_name = "campaign.toml")]
    file: PathBuf,
    /// Public keys of coordinators whose permits count (repeat); if the file names none either, this coordinator's.
    #[arg(long, value_name = "KEY")]
    permit_key: Vec<KeyRef>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    of: RemoveArgs,
    /// The rehearsal of this plan (`simulate --out`): its digest becomes part of what is signed. Nodes older than that
    /// refuse such a campaign.
    #[arg(long, value_name = "FILE")]
    rehearsal: Option<PathBuf>,
    /// Plan for the members of this group as it is now, in place of the draft's own `devices`.
    #[arg(long)]
    group: Option<GroupId>,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    folder: Folder,
    /// The campaign: its staged plan is compared with what the coordinator would plan now.
    #[arg(required_unless_present = "plans", conflicts_with = "plans")]
    campaign: Option<CampaignId>,
    /// Two plan files instead. Offline.
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    plans: Option<Vec<PathBuf>>,
}

#[derive(Debug, Args)]
pub(crate) struct SplitArgs {
    #[command(flatten)]
    folder: Folder,
    /// The campaign, drafted.
    campaign: CampaignId,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    folder: Folder,
    /// The campaign.
    campaign: CampaignId,
    #[command(flatten)]
    expiry: Expiry,
}

#[derive(Debug, Args)]
pub(crate) struct Campaign {
    /// The campaign.
    campaign: CampaignId,
}

#[derive(Debug, Args)]
pub(crate) struct Close {
    #[command(flatten)]
    of: Campaign,
    /// Only the attempt of this device.
    #[arg(long)]
    device: Option<DeviceId>,
    /// Why, for those who will ask.
    #[arg(long)]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    of: Campaign,
    /// Only this wave, counted from 0.
    #[arg(long, conflicts_with = "device")]
    wave: Option<u32>,
    /// Only this device.
    #[arg(long)]
    device: Option<DeviceId>,
}

pub(crate) async fn run(global: &Global, command: Command, output: &Output) -> anyhow::Result<()> {
    match command {
        Command::Create(create) => self::create(global, &create, output).await,
        Command::Plan(args) => plan(global, &args, output).await,
        Command::Adopt(args) => adopt(global, &args, output).await,
        Command::Simulate(args) => simulate::run(global, &args, output).await,
        Command::Diff(args) => diff(global, &args, output).await,
        Command::Split(args) => split(global, &args, output).await,
        Command::Remove(args) => remove(&args, output),
        Command::Sign(sign) => trust::sign(&sign, &["campaigns.json"], output),
        Command::Publish(folder) => trust::publish(global, &folder, &["campaigns.json"], output).await,
        Command::List => {
            let page: Page<CampaignView> = global.client()?.list("/api/v1/campaigns", &[]).await?;
            output.show(&page, || page.items.iter().map(watch::headline).collect())
        }
        Command::Start(of) => act(global, &of, "start", output).await,
        Command::Pause(of) => act(global, &of, "pause", output).await,
        Command::Resume(of) => act(global, &of, "resume", output).await,
        Command::Approve(args) => approve::run(global, args, true, output).await,
        Command::Refuse(args) => approve::run(global, args, false, output).await,
        Command::Rollback(args) => rollback::run(global, args, output).await,
        Command::Cancel(of) => act(global, &of, "cancel", output).await,
        Command::Close(Close { of, device, reason }) => {
            let request = CloseRequest { device, reason };
            let view: CampaignView = global.client()?.post(&format!("{}/close", path(&of)), &request).await?;
            output.show(&view, || vec![watch::headline(&view)])
        }
        Command::Watch(of) => watch::run(&global.client()?, &of.campaign, output).await,
        Command::Status(of) => {
            let client = global.client()?;
            let view: CampaignView = client.get(&path(&of)).await?;
            let servers = provision::servers(&client, &view).await?;
            let shown = Status { view, servers };
            output.show(&shown, || {
                let of_servers = provision::lines(&shown.servers);
                watch::lines(&shown.view).into_iter().chain(of_servers).collect()
            })
        }
        Command::Explain(Explain { of, wave, device }) => {
            let query = match (wave, device) {
                (Some(wave), _) => format!("?wave={wave}"),
                (None, Some(device)) => format!("?device={device}"),
                (None, None) => String::new(),
            };
            let found: Vec<Explanation> = global.client()?.get(&format!("{}/explain{query}", path(&of))).await?;
            output.show(&found, || found.iter().flat_map(explanation_lines).collect())
        }
    }
}

/// Where a campaign stands, with its servers if it is for provisioning.
#[derive(Debug, Serialize)]
struct Status {
    #[serde(flatten)]
    view: CampaignView,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    servers: Vec<ServerView>,
}

fn path(of: &Campaign) -> String {
    format!("/api/v1/campaigns/{}", of.campaign)
}

async fn act(global: &Global, of: &Campaign, action: &str, output: &Output) -> anyhow::Result<()> {
    let client = global.client()?;
    let _: Value = client.post(&format!("{}/{action}", path(of)), &json!({})).await?;
    let view: CampaignView = client.get(&path(of)).await?;
    output.show(&view, || vec![watch::headline(&view)])
}

async fn create(global: &Global, create: &Create, output: &Output) -> anyhow::Result<()> {
    let folder = create.folder.open_locked()?;
    let file = read_campaign_file(&create.file)?;
    let draft = draft(global, &folder, file, &create.permit_key).await?;
    let path = save_draft(&folder, &draft)?;
    output.show(&draft, || {
        let next = format!("next: firmesh campaign plan {}", draft.id);
        vec![format!("drafted {} in {}", draft.id, path.display()), next]
    })
}

/// Fills in what the file leaves to the coordinator, and its permit key if nobody names one. Kept nowhere yet.
pub(crate) async fn draft(
    global: &Global,
    folder: &TrustFolder,
    mut file: CampaignFile,
    permit_keys: &[KeyRef],
) -> anyhow::Result<CampaignManifest> {
    let mut permit_keys = trust::public_keys(permit_keys, &Secrets::none())?;
    if permit_keys.is_empty() && file.permit_keys.is_empty() {
        let about: About = global
            .client()?
            .get("/api/v1/about")
            .await
            .context("asking for the permit key")?;
        let key: PublicKey = about
            .permit_key
            .parse()
            .context("the coordinator's permit key is unusable")?;
        permit_keys.push(key);
    }
    if file.baseline.is_some() || file.filter.is_some() || provision::wants_previous(&file) {
        provision::resolve(&global.client()?, folder, &mut file).await?;
    }
    Ok(draft_campaign(folder, file, &permit_keys)?)
}

pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read_bounded(path, MANIFEST_BYTES_MAX)?)
        .with_context(|| format!("{} is not text", path.display()))
}

fn read_campaign_file(path: &Path) -> anyhow::Result<CampaignFile> {
    CampaignFile::from_toml(&read_text(path)?).with_context(|| {
        format!(
            "{} is not a campaign file (see: firmesh campaign create --help)",
            path.display()
        )
    })
}

async fn plan(global: &Global, plan: &PlanArgs, output: &Output) -> anyhow::Result<()> {
    let PlanArgs {
        of: args,
        rehearsal,
        group,
    } = plan;
    let mut folder = args.folder.open_locked()?;
    let mut draft = load_draft(&folder, &args.campaign)?;
    if let Some(group) = group {
        draft.selector.devices = group::members(&global.client()?, group).await?;
    }
    let expires = args.expiry.after_now();
    plan_draft(global, &mut folder, draft, rehearsal.as_deref(), expires, output).await
}

/// Has the coordinator plan a draft, binds the plan to it, stages it for the approvers, and shows it.
pub(crate) async fn plan_draft(
    global: &Global,
    folder: &mut TrustFolder,
    mut draft: CampaignManifest,
    rehearsal: Option<&Path>,
    expires: WallTime,
    output: &Output,
) -> anyhow::Result<()> {
    let request = PlanRequest {
        manifest: draft.clone(),
    };
    let PlanResponse { plan, plan_sha256 } = global.client()?.post("/api/v1/plans", &request).await?;
    if let Some(path) = rehearsal {
        draft = bind_rehearsal(draft, plan_sha256, &simulate::read(path)?)?;
    }
    let (manifest, plan) = adopt_plan(folder, draft, plan.as_bytes(), plan_sha256, expires)?;
    output.show(&json!({ "manifest": manifest, "plan": plan }), || {
        plan_lines(&manifest, &plan)
    })
}

/// Stages what was drafted at the coordinator. Whoever signs is shown it, as any other.
async fn adopt(global: &Global, args: &RemoveArgs, output: &Output) -> anyhow::Result<()> {
    let mut folder = args.folder.open_locked()?;
    let client = global.client()?;
    let draft: CampaignDraftView = client
        .get(&format!("/api/v1/campaigns/{}/draft", args.campaign))
        .await?;
    let manifest = CampaignManifest::from_bytes(draft.manifest.as_bytes())?;
    anyhow::ensure!(
        manifest.id == args.campaign,
        "the draft is of the campaign {}, asked was for {}",
        manifest.id,
        args.campaign
    );
    let plan = client
        .get_text(&format!("/api/v1/plans/{}", manifest.plan_sha256))
        .await?;
    let plan_sha256 = manifest.plan_sha256;
    let (manifest, plan) = adopt_plan(
        &mut folder,
        manifest,
        plan.as_bytes(),
        plan_sha256,
        args.expiry.after_now(),
    )?;
    output.show(&json!({ "manifest": manifest, "plan": plan }), || {
        plan_lines(&manifest, &plan)
    })
}

async fn diff(global: &Global, args: &DiffArgs, output: &Output) -> anyhow::Result<()> {
    let (before, after) = match (&args.plans, &args.campaign) {
        (Some(files), _) => (read_plan(&files[0])?, read_plan(&files[1])?),
        (None, Some(campaign)) => {
            let folder = args.folder.open()?;
            let manifest = load_planned(&folder, campaign)?;
            let staged = read_plan(&folder.plan_path(campaign))?;
            let request = PlanRequest { manifest };
            let answer: PlanResponse = global.client()?.post("/api/v1/plans", &request).await?;
            (staged, Plan::from_bytes(answer.plan.as_bytes())?)
        }
        (None, None) => anyhow::bail!("name a campaign, or two plans with --plans"),
    };
    let found = firmesh_coordinator_core::diff(&before, &after);
    output.show(&found, || match found.is_empty() {
        true => vec!["the plans say the same of every device".to_owned()],
        false => {
            let late = found.iter().filter(|difference| difference.before.is_none()).count();
            let hint = (late > 0 && args.campaign.is_some()).then(|| {
                format!(
                    "late: {late} devices are not in the staged plan; plan again and have it signed to bring them in"
                )
            });
            found.iter().map(Difference::line).chain(hint).collect()
        }
    })
}

/// Drafts the parts of a campaign that is for more devices than one may have.
async fn split(global: &Global, args: &SplitArgs, output: &Output) -> anyhow::Result<()> {
    let folder = args.folder.open_locked()?;
    let draft = load_draft(&folder, &args.campaign)?;
    let request = PlanRequest { manifest: draft };
    let parts: SplitResponse = global.client()?.post("/api/v1/plans/split", &request).await?;
    anyhow::ensure!(
        parts.parts.len() > 1,
        "{} is small enough: plan it as it is",
        args.campaign
    );
    for part in &parts.parts {
        part.check()?;
        save_draft(&folder, part)?;
    }
    output.show(&parts, || {
        let line = |part: &CampaignManifest| {
            let places: Vec<_> = part.selector.paths.iter().map(ToString::to_string).collect();
            format!("drafted {}: {}", part.id, places.join(" "))
        };
        let next = "next: firmesh campaign plan, for each of them".to_owned();
        parts.parts.iter().map(line).chain([next]).collect()
    })
}

fn read_plan(path: &Path) -> anyhow::Result<Plan> {
    let bytes = read_bounded(path, PLAN_BYTES_MAX)?;
    Plan::from_bytes(&bytes).with_context(|| format!("{} is not a plan", path.display()))
}

fn remove(args: &RemoveArgs, output: &Output) -> anyhow::Result<()> {
    let (mut folder, target) = (args.folder.open_locked()?, campaign_target(&args.campaign));
    let known = folder.repository().campaigns().targets.contains_key(&target);
    anyhow::ensure!(known, "campaigns.json has no {target}");
    folder.edit(|repository| repository.remove_campaign(&target, args.expiry.after_now()))?;
    output.show(&json!({ "removed": target }), || {
        vec![format!(
            "removed {target}: its approvers sign with: firmesh campaign sign"
        )]
    })
}

fn plan_lines(manifest: &CampaignManifest, plan: &Plan) -> Vec<String> {
    let mut lines = match manifest.kind {
        CampaignKind::Update => vec![format!("plan of {}, sha256 {}", manifest.id, manifest.plan_sha256)],
        CampaignKind::Provisioning => provision::plan_lines(manifest, plan),
    };
    lines.extend(
        manifest
            .rehearsal_sha256
            .map(|sha256| format!("rehearsed, sha256 {sha256}")),
    );
    for (number, wave) in plan.waves.iter().enumerate() {
        let devices: Vec<_> = wave.iter().take(8).map(|planned| planned.device.as_str()).collect();
        let more = wave.len().saturating_sub(devices.len());
        let rest = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        lines.push(format!(
            "wave {number}: {} devices: {}{rest}",
            wave.len(),
            devices.join(", ")
        ));
    }
    let mut ways = BTreeMap::<_, usize>::new();
    for (_, planned) in plan.devices().filter(|(_, planned)| !planned.hops.is_empty()) {
        let way: Vec<_> = planned.way().map(String::as_str).collect();
        *ways.entry((&planned.from_version, way)).or_default() += 1;
    }
    lines.extend(ways.into_iter().map(|((from, way), devices)| {
        let steps = way.len();
        let way = way.join(", then ");
        format!("{devices} devices that run {from} go to the release in {steps} steps, each read back before the next: {way}")
    }));
    lines.extend(
        plan.held
            .iter()
            .map(|held| format!("left out {}: {}", held.device, held.reason)),
    );
    lines.push("next: each approver: firmesh campaign sign --key FILE".to_owned());
    lines
}

fn explanation_lines(found: &Explanation) -> Vec<String> {
    let head = format!("{}: {}", found.subject, found.finding);
    std::iter::once(head)
        .chain(found.evidence.iter().map(|fact| format!("  {fact}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file between the heading and what the help says about strategies.
    fn example() -> &'static str {
        EXAMPLE.split("\n\n").nth(1).unwrap()
    }

    #[test]
    fn the_example_in_the_help_is_a_campaign_file() {
        let file: CampaignFile = toml::from_str(example()).unwrap();
        assert_eq!(file.id.as_str(), "spring-bmc");
        assert!(file.automatic_rollback && file.permit_keys.is_empty());
        // The rest goes into tables, and a table cannot be written both ways.
        let (caps, others): (Vec<_>, Vec<_>) = example().lines().partition(|line| line.trim().starts_with("caps = "));
        let more = EXAMPLE.split("\n\n").skip(2).flat_map(str::lines);
        let more: Vec<_> = more.filter(|line| line.starts_with("  ")).collect();
        let caps = caps.join("").replace("caps = {", "[caps]\n").replace(['}', ','], "\n");
        let file = format!("{}\n{caps}\n{}", others.join("\n"), more.join("\n"));
        let file: CampaignFile = toml::from_str(&file).unwrap();
        assert_eq!(
            (
                file.caps.per_rack,
                file.caps.domains.len(),
                file.caps.never_together.len()
            ),
            (1, 1, 1)
        );
        assert_eq!(file.constraints.windows[0].problem(), None);
        assert_eq!(file.constraints.blackout_calendars[0].problem(), None);
    }

    #[test]
    fn a_campaign_file_with_an_unknown_rule_is_refused_by_place() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("campaign.toml");
        std::fs::write(&path, format!("{}\nhurry = true\n", example())).unwrap();
        let error = format!("{:#}", read_campaign_file(&path).unwrap_err());
        assert!(error.contains("campaign.toml") && error.contains("hurry"), "{error}");
    }
}
