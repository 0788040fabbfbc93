//! Firmesh on a network: a coordinator, nodes and one emulated host each, all real processes, and one approved campaign whose
//! image every node is to hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use firmesh_node::status::{Status, TransferTimes};
use firmesh_protocol::{
    ids::NodeId,
    manifest::{Artifact, Priority},
};

use firmesh_simulations::mesh::{Fault, Topology};

use super::{
    faults::Faults,
    network::{Counters, Network},
    report::{Outcome, Usage},
};
use crate::demo::{
    ceremony::{CAMPAIGN, People, Rules, measure},
    layout::{Layout, NEW_VERSION, OLD_VERSION, Shape},
    world::{COORDINATOR, World},
};

/// Between two looks at the nodes: times are taken from the nodes' own word, not from the looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One in so many pieces of a background image is held before the emergency comes.
const PART: u32 = 8;

/// What the hosts ran before: nobody fetches it.
const PREVIOUS: &[u8] = b"firmesh bench: the previous version\n";

/// What is special about a measurement.
#[derive(Debug)]
pub(super) struct Case {
    /// What goes wrong.
    pub(super) fault: Option<Fault>,
    /// Of every node: scope and Mbit/s.
    pub(super) budgets: Vec<(String, u32)>,
    /// The campaign's.
    pub(super) priority: Priority,
    /// Whether the campaign comes while a background image of the same length moves.
    pub(super) beside: bool,
}

/// One measurement of Firmesh. `folder` is empty and stays the caller's.
pub(super) async fn run(
    network: &Network,
    topology: &Topology,
    image: &Path,
    folder: &Path,
    case: Case,
    limit: Duration,
) -> Result<Outcome> {
    let mut layout = Layout::new(
        folder,
        &Shape {
            racks: topology.racks,
            nodes: topology.nodes,
            bmcs: 0,
            hosts: 1,
        },
    )?;
    layout.coordinator = network.origin()?;
    layout.budgets = case.budgets;
    for (at, plan) in (0_u32..).zip(&mut layout.nodes) {
        plan.place = network.node(at / topology.nodes + 1, at % topology.nodes + 1)?;
    }
    let previous_file = folder.join("previous.bin");
    std::fs::write(&previous_file, PREVIOUS)?;
    let (new, previous) = (measure(image).await?, measure(&previous_file).await?);

    let mut world = World::begin(layout).await?;
    let mut people = People::found(&world.layout, &world.about)?;
    world.start_devices(&new, &previous, &previous_file).await?;
    let _stored: Artifact = world.api.upload("/api/v1/artifacts", image).await?;
    let release = people.release(&new, "host", NEW_VERSION)?;
    people.sign("release")?;
    people.sign("approver")?;
    people.publish(&world.api).await?;
    world.start_nodes().await?;
    let mut faults = Faults::new(case.fault, topology, &world);
    faults.before_the_fleet(network, &mut world).await?;
    world.await_fleet(faults.strangers()).await?;
    anyhow::ensure!(
        world
            .devices()
            .await?
            .iter()
            .all(|view| view.facts.version.as_deref() == Some(OLD_VERSION)),
        "a host does not run what it was given"
    );
    if case.beside {
        move_another(&mut world, &mut people, image).await?;
    }
    let rules = rules(CAMPAIGN, case.priority);
    people.plan(&world.api, &world.about, &[release], &[], rules).await?;
    people.sign("approver")?;
    faults.before_the_campaign(network, &mut world)?;
    let (before, mut usage) = (network.counters()?, Usage::begin(&pids(&world)));
    people.publish(&world.api).await?;
    let watched = watch(network, &mut world, &new, &mut faults, &mut usage, limit).await?;
    let moved = network.counters()?.since(&before);
    let usage = usage.end(&pids(&world));
    let outcome = conclude(&world, watched, &new, &faults, usage, moved)?;
    world.processes.stop_all();
    Ok(outcome)
}

/// Campaigns that are approved and never started: their images go everywhere, and no device is touched.
fn rules(campaign: &'static str, priority: Priority) -> Rules {
    Rules {
        campaign,
        per_rack: 1,
        total: 1,
        automatic_rollback: false,
        priority,
    }
}

/// Publishes a campaign of another image, as long as the first, that may wait; returns once the mesh holds a part of it.
async fn move_another(world: &mut World, people: &mut People, image: &Path) -> Result<()> {
    let path = world.layout.folder.join("background.bin");
    let mut bytes = std::fs::read(image)?;
    bytes.reverse();
    std::fs::write(&path, bytes)?;
    let artifact = measure(&path).await?;
    let _stored: Artifact = world.api.upload("/api/v1/artifacts", &path).await?;
    let release = people.release(&artifact, "host", "1.0.1")?;
    people.sign("release")?;
    people.publish(&world.api).await?;
    let rules = rules("background", Priority::Background);
    people.plan(&world.api, &world.about, &[release], &[], rules).await?;
    people.sign("approver")?;
    people.publish(&world.api).await?;
    loop {
        world.processes.check()?;
        let statuses = world.statuses().await;
        let holds_part = |status: &Status| {
            let mut holdings = status.holdings.iter();
            holdings.any(|holding| holding.artifact == artifact.id && holding.pieces * PART >= holding.pieces_total)
        };
        if statuses.values().all(holds_part) && statuses.len() == world.layout.nodes.len() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn pids(world: &World) -> BTreeMap<String, u32> {
    let names = world
        .layout
        .nodes
        .iter()
        .map(|plan| plan.node.as_str())
        .chain([COORDINATOR]);
    names
        .filter_map(|name| Some((name.to_owned(), world.processes.id(name)?)))
        .collect()
}

/// What was seen of a run.
#[derive(Debug, Default)]
struct Watched {
    /// What every node said last.
    last: BTreeMap<NodeId, Status>,
    /// What had moved when a quarter of all pieces was there, and from then to three quarters.
    quarter: Option<(Instant, Counters)>,
    middle: Option<(f64, Counters)>,
}

impl Watched {
    fn count(&mut self, network: &Network, image: &Artifact, nodes: usize) -> Result<()> {
        let holdings = self.last.values().flat_map(|status| &status.holdings);
        let of_it = holdings.filter(|holding| holding.artifact == image.id);
        let held: f64 = of_it
            .map(|holding| f64::from(holding.pieces) / f64::from(holding.pieces_total.max(1)))
            .sum();
        match &self.quarter {
            None if held * 4.0 >= nodes as f64 => self.quarter = Some((Instant::now(), network.counters()?)),
            Some((since, before)) if self.middle.is_none() && held * 4.0 >= 3.0 * nodes as f64 => {
                self.middle = Some((since.elapsed().as_secs_f64(), network.counters()?.since(before)));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Looks on until everybody who is expected to holds the image.
async fn watch(
    network: &Network,
    world: &mut World,
    image: &Artifact,
    faults: &mut Faults,
    usage: &mut Usage,
    limit: Duration,
) -> Result<Watched> {
    let (begun, mut watched) = (Instant::now(), Watched::default());
    loop {
        world.processes.check()?;
        let now = world.statuses().await;
        watched.last.extend(now);
        watched.count(network, image, world.layout.nodes.len())?;
        let last = &watched.last;
        let whole: BTreeSet<_> = last
            .iter()
            .filter(|(_, status)| times(status, image).is_some_and(|times| times.whole_ms.is_some()))
            .map(|(node, _)| node.clone())
            .collect();
        let expected = || world.layout.nodes.iter().filter(|plan| !faults.is_dead(&plan.node));
        if faults.are_over() && expected().all(|plan| whole.contains(&plan.node)) {
            return Ok(watched);
        }
        if begun.elapsed() > limit {
            if fault_only(faults) {
                return Ok(watched);
            }
            bail!(
                "only {} of {} nodes have the image after {limit:?} (--timeout)",
                whole.len(),
                expected().count()
            );
        }
        // What a node has spent that is about to be killed was spent.
        usage.look(&pids(world));
        faults.strike(network, world, image, last).await?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// With a fault, nodes that never complete are a result.
fn fault_only(faults: &Faults) -> bool {
    faults.is_wanted()
}

fn times(status: &Status, image: &Artifact) -> Option<TransferTimes> {
    status.transfers.get(&image.id.to_string()).copied()
}

fn conclude(
    world: &World,
    Watched { last, middle, .. }: Watched,
    image: &Artifact,
    faults: &Faults,
    usage: Usage,
    moved: Counters,
) -> Result<Outcome> {
    let told = |node: &NodeId| last.get(node).and_then(|status| times(status, image));
    let nodes: Vec<_> = world.layout.nodes.iter().map(|plan| &plan.node).collect();
    let wanted = nodes.iter().filter_map(|node| Some(told(node)?.wanted_ms));
    let (first_wanted, last_wanted) = (wanted.clone().min(), wanted.max());
    let visible = faults
        .visible_ms()
        .or(first_wanted)
        .context("no node has heard of the campaign")?;
    let seconds = |ms: u64| ms.saturating_sub(visible) as f64 / 1e3;
    let finished: BTreeMap<_, _> = nodes
        .iter()
        .filter(|node| !faults.is_dead(node))
        .filter_map(|node| Some((node.to_string(), seconds(told(node)?.whole_ms?))))
        .collect();
    let counted: Vec<f64> = finished
        .iter()
        .filter(|(node, _)| !faults.is_apart(node))
        .map(|(_, at)| *at)
        .collect();
    let expected = nodes.iter().filter(|node| !faults.is_dead(node)).count();
    let refused: u64 = last.values().map(|status| status.traffic.verification_failures).sum();
    Ok(Outcome {
        nodes: expected,
        complete: finished.len(),
        first_s: counted.iter().copied().fold(f64::INFINITY, f64::min),
        last_s: counted.iter().copied().fold(0.0, f64::max),
        heard_s: last_wanted.map_or(0.0, seconds),
        fetched_again: last.values().map(|status| status.traffic.fetched_again).sum(),
        verification_failures: refused,
        finished,
        usage,
        wire: moved,
        middle,
    })
}
