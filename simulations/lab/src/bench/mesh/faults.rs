//! What goes wrong in the middle of a measurement, and who is still expected to hold the image then.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use firmesh_node::status::Status;
use firmesh_protocol::{ids::NodeId, manifest::Artifact};

use firmesh_simulations::mesh::{CUT, Fault, ORIGIN_PERCENT, Topology};

use super::network::Network;
use crate::demo::world::{COORDINATOR, World};

/// A fault under way.
#[derive(Debug)]
pub(super) struct Faults {
    fault: Option<Fault>,
    /// Where each node stands: rack and number, from 1.
    standing: BTreeMap<NodeId, (u32, u32)>,
    image_bytes: u64,
    origin_before: u64,
    dead: BTreeSet<NodeId>,
    late: Vec<NodeId>,
    struck: Option<Instant>,
    over: bool,
    visible_ms: Option<u64>,
}

impl Faults {
    pub(super) fn new(fault: Option<Fault>, topology: &Topology, world: &World) -> Self {
        let standing: BTreeMap<_, _> = (0_u32..)
            .zip(&world.layout.nodes)
            .map(|(at, plan)| (plan.node.clone(), (at / topology.nodes + 1, at % topology.nodes + 1)))
            .collect();
        let late = fault.map_or(0, |fault| fault.late_per_rack(topology.racks));
        let late = standing
            .iter()
            .filter(|(_, (_, number))| number + late > topology.nodes)
            .map(|(node, _)| node.clone())
            .collect();
        Self {
            fault,
            standing,
            image_bytes: topology.image_bytes(),
            origin_before: 0,
            dead: BTreeSet::new(),
            late,
            struck: None,
            over: matches!(fault, None | Some(Fault::SlowNode | Fault::GarbagePeer)),
            visible_ms: None,
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.fault.is_some()
    }

    /// Members of the fleet that are no nodes of the measurement.
    pub(super) fn strangers(&self) -> usize {
        usize::from(self.fault == Some(Fault::GarbagePeer))
    }

    /// Whether a node was killed for good.
    pub(super) fn is_dead(&self, node: &NodeId) -> bool {
        self.dead.contains(node)
    }

    /// Whether a node's own time does not count: nobody can bring bytes to it faster than its link.
    pub(super) fn is_apart(&self, node: &str) -> bool {
        self.fault == Some(Fault::SlowNode) && self.slow().is_some_and(|(slow, _)| slow.as_str() == node)
    }

    /// Whether everything that was to happen has happened.
    pub(super) fn are_over(&self) -> bool {
        self.over
    }

    /// When the campaign became visible, where the nodes have forgotten it.
    pub(super) fn visible_ms(&self) -> Option<u64> {
        self.visible_ms
    }

    /// What must be there before the nodes meet.
    pub(super) async fn before_the_fleet(&self, network: &Network, world: &mut World) -> Result<()> {
        if self.fault == Some(Fault::GarbagePeer) {
            let spare = self
                .standing
                .values()
                .map(|(_, number)| number)
                .max()
                .copied()
                .unwrap_or(0)
                + 1;
            world.start_evil_peer(&network.node(1, spare)?).await?;
        }
        Ok(())
    }

    /// What must be so when the campaign comes.
    pub(super) fn before_the_campaign(&mut self, network: &Network, world: &mut World) -> Result<()> {
        self.origin_before = network.origin_out()?;
        if let (Some(Fault::SlowNode), Some((_, (rack, number)))) = (self.fault, self.slow()) {
            network.set_node_rate(rack, number, (network.node_mbit() / 10).max(1))?;
        }
        for node in &self.late {
            world.kill(node.as_str())?;
        }
        if matches!(self.fault, Some(Fault::SiteRestart)) {
            let since_1970 = SystemTime::UNIX_EPOCH
                .elapsed()
                .context("the clock stands before 1970")?;
            self.visible_ms = Some(u64::try_from(since_1970.as_millis())?);
        }
        Ok(())
    }

    /// Strikes or mends if the moment has come.
    pub(super) async fn strike(
        &mut self,
        network: &Network,
        world: &mut World,
        image: &Artifact,
        last: &BTreeMap<NodeId, Status>,
    ) -> Result<()> {
        let Some(fault) = self.fault.filter(|_| !self.over) else {
            return Ok(());
        };
        if let Some(struck) = self.struck {
            if struck.elapsed() >= CUT {
                network.set_uplink(1, true)?;
                self.over = true;
            }
            return Ok(());
        }
        if fault == Fault::OriginKilled {
            let left = network.origin_out()? - self.origin_before;
            if left * 100 >= self.image_bytes * ORIGIN_PERCENT {
                world.kill(COORDINATOR)?;
                self.over = true;
            }
            return Ok(());
        }
        if !self.is_half_way(image, last) {
            return Ok(());
        }
        match fault {
            Fault::PeersKilled => {
                for node in self.victims(last) {
                    world.kill(node.as_str())?;
                    self.dead.insert(node);
                }
                self.over = true;
            }
            Fault::UplinkCut => {
                network.set_uplink(1, false)?;
                self.struck = Some(Instant::now());
            }
            Fault::SiteRestart => {
                let all: Vec<_> = self.standing.keys().cloned().collect();
                for node in &all {
                    world.kill(node.as_str())?;
                }
                world.restart_nodes(&all).await?;
                self.over = true;
            }
            Fault::LateJoiners => {
                world.restart_nodes(&self.late.clone()).await?;
                self.over = true;
            }
            Fault::OriginKilled | Fault::SlowNode | Fault::GarbagePeer => {}
        }
        Ok(())
    }

    fn is_half_way(&self, image: &Artifact, last: &BTreeMap<NodeId, Status>) -> bool {
        let held = |status: &Status| {
            let holding = status.holdings.iter().find(|holding| holding.artifact == image.id);
            holding.map_or((0, 0), |holding| {
                (u64::from(holding.pieces), u64::from(holding.pieces_total))
            })
        };
        let early = last.iter().filter(|(node, _)| !self.late.contains(node));
        let (held, total) = early
            .map(|(_, status)| held(status))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        total > 0 && held * 2 >= total
    }

    fn victims(&self, last: &BTreeMap<NodeId, Status>) -> Vec<NodeId> {
        let imported = |node: &NodeId| {
            last.get(node)
                .map_or(0, |status| status.traffic.from_origin + status.traffic.from_other_racks)
        };
        let nodes = self.standing.keys();
        victims(&nodes.map(|node| (node.clone(), imported(node))).collect())
    }

    fn slow(&self) -> Option<(&NodeId, (u32, u32))> {
        self.standing.iter().next_back().map(|(node, at)| (node, *at))
    }
}

/// A fifth of the nodes: the one that has carried most, and the first others by name.
pub(super) fn victims<N: Ord + Clone>(carried: &BTreeMap<N, u64>) -> Vec<N> {
    let busiest = carried.iter().max_by_key(|(_, bytes)| **bytes).map(|(node, _)| node);
    let others = carried.keys().filter(|node| Some(*node) != busiest);
    let count = Fault::victims(carried.len());
    busiest.into_iter().chain(others).take(count).cloned().collect()
}
