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

use super::{
    faults::{Fault, Faults},
    network::Network,
    report::{Outcome, Usage},
    topology::Topology,
};
use crate::demo::{
    ceremony::{People, Rules, measure},
    layout::{Layout, NEW_VERSION, OLD_VERSION, Shape},
    world::{COORDINATOR, World},
};

/// Between two looks at the nodes: times are taken from the nodes' own word, not from the looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the hosts ran before: nobody fetches it.
const PREVIOUS: &[u8] = b"firmesh bench: the previous version\n";

/// One measurement of Firmesh. `folder` is empty and stays the caller's.
pub(super) async fn run(
    network: &Network,
    topology: &Topology,
    image: &Path,
    folder: &Path,
    (fault, budgets): (Option<Fault>, Vec<(String, u32)>),
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
    layout.budgets = budgets;
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
    let mut faults = Faults::new(fault, topology, &world);
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
    let rules = Rules {
        per_rack: 1,
        total: 1,
        automatic_rollback: false,
        priority: Priority::Normal,
    };
    people.plan(&world.api, &world.about, &[release], &[], rules).await?;
    people.sign("approver")?;
    faults.before_the_campaign(network, &mut world)?;
    let (before, usage) = (network.counters()?, Usage::begin(&pids(&world)));
    // The campaign is approved and never started: its image goes everywhere, and no device is touched.
    people.publish(&world.api).await?;
    let last = watch(network, &mut world, &new, &mut faults, limit).await?;
    let moved = network.counters()?.since(&before);
    let usage = usage.end(&pids(&world));
    let outcome = conclude(&world, &last, &new, &faults, usage, moved)?;
    world.processes.stop_all();
    Ok(outcome)
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

/// What every node said last, once everybody who is expected to holds the image.
async fn watch(
    network: &Network,
    world: &mut World,
    image: &Artifact,
    faults: &mut Faults,
    limit: Duration,
) -> Result<BTreeMap<NodeId, Status>> {
    let (begun, mut last) = (Instant::now(), BTreeMap::<NodeId, Status>::new());
    loop {
        world.processes.check()?;
        let now = world.statuses().await;
        last.extend(now);
        let whole: BTreeSet<_> = last
            .iter()
            .filter(|(_, status)| times(status, image).is_some_and(|times| times.whole_ms.is_some()))
            .map(|(node, _)| node.clone())
            .collect();
        let expected = || world.layout.nodes.iter().filter(|plan| !faults.is_dead(&plan.node));
        if faults.are_over() && expected().all(|plan| whole.contains(&plan.node)) {
            return Ok(last);
        }
        if begun.elapsed() > limit {
            if fault_only(faults) {
                return Ok(last);
            }
            bail!(
                "only {} of {} nodes have the image after {limit:?} (--timeout)",
                whole.len(),
                expected().count()
            );
        }
        faults.strike(network, world, image, &last).await?;
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
    last: &BTreeMap<NodeId, Status>,
    image: &Artifact,
    faults: &Faults,
    usage: Usage,
    moved: super::network::Counters,
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
    })
}
