//! What goes wrong in the middle of a transfer: the same names in the simulation and in the lab's bench.

use std::{cmp::Reverse, time::Duration};

use clap::ValueEnum;
use firmesh_node_core::swarm::{FetchFailure, Input, Source};
use serde::Serialize;

use super::{Event, ORIGIN_LATENCY, SILENCE, START, World, topology::Topology};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The coordinator, and the origin with it, is killed for good once 1.07 images have left it.
    OriginKilled,
    /// A fifth of the nodes is killed for good at half, the busiest importer first.
    PeersKilled,
    /// The link of one node has a tenth of its rate from the beginning.
    SlowNode,
    /// A member of rack 1 serves corrupted pieces.
    GarbagePeer,
    /// The uplink of rack 1 is cut for ten seconds at half.
    UplinkCut,
    /// Every node is killed at half, and all are started again.
    SiteRestart,
    /// 24 nodes, or what a whole number per rack makes of it, are down when the campaign comes and start at half.
    LateJoiners,
}

/// Late joiners, spread over the racks.
const LATE: u32 = 24;
/// How long a cut uplink stays cut.
pub const CUT: Duration = Duration::from_secs(10);
/// Of the image, in percent, what leaves the origin before it is killed.
pub const ORIGIN_PERCENT: u64 = 107;

impl Fault {
    /// The topology that a fault is measured on: late joiners stand in the racks beside the others.
    #[must_use]
    pub fn topology(self, topology: Topology) -> Topology {
        Topology {
            nodes: topology.nodes + self.late_per_rack(topology.racks),
            ..topology
        }
    }

    /// Of each rack's nodes, how many come late: those with the highest numbers.
    #[must_use]
    pub fn late_per_rack(self, racks: u32) -> u32 {
        match self {
            Self::LateJoiners => LATE / racks,
            _ => 0,
        }
    }

    /// How many of so many nodes are killed with [`PeersKilled`](Self::PeersKilled).
    #[must_use]
    pub fn victims(nodes: usize) -> usize {
        (nodes / 5).max(1)
    }
}

impl World {
    /// Strikes if the moment has come.
    pub(super) fn strike(&mut self) {
        let Some(fault) = self.fault.filter(|_| !self.struck) else {
            return;
        };
        if fault == Fault::OriginKilled {
            let image = self.topology.image_bytes() as f64;
            self.struck = self.fluid.carried(self.origin_up) * 100.0 >= image * ORIGIN_PERCENT as f64;
            if self.struck {
                self.kill_origin();
            }
            return;
        }
        let early = || {
            self.nodes
                .iter()
                .filter(|node| !node.is_late && Self::is_expected(node))
        };
        let held: u32 = early().map(|node| node.held.count()).sum();
        let half = early().count() as u32 * self.layout.pieces() / 2;
        if held < half {
            return;
        }
        self.struck = true;
        match fault {
            Fault::PeersKilled => {
                for at in self.victims() {
                    self.kill(at);
                    self.nodes[at].is_dead = true;
                }
            }
            Fault::UplinkCut => {
                self.cut(true);
                self.each_across(|world, one, other| {
                    let lives = [one, other].map(|at| world.nodes[at].life);
                    world.later(SILENCE, Event::Missed(one, other, lives[1]));
                    world.later(SILENCE, Event::Missed(other, one, lives[0]));
                });
                self.later(CUT, Event::Mended);
            }
            Fault::SiteRestart => {
                for at in 0..self.nodes.len() {
                    self.kill(at);
                    self.later(START, Event::Started(at));
                }
            }
            Fault::LateJoiners => {
                let late: Vec<_> = (0..self.nodes.len()).filter(|at| self.nodes[*at].is_late).collect();
                for at in late {
                    self.later(START, Event::Started(at));
                }
            }
            Fault::OriginKilled | Fault::SlowNode | Fault::GarbagePeer => {}
        }
    }

    fn kill_origin(&mut self) {
        self.origin_is_alive = false;
        let mut gone = self.break_off(|_, fetch| fetch.is_some_and(|fetch| fetch.source == Source::Origin));
        gone.extend(self.dismiss());
        for (at, id) in gone {
            let (why, life) = (FetchFailure::Unreachable, self.nodes[at].life);
            self.later(ORIGIN_LATENCY, Event::Told(at, life, Input::Failed { id, why }));
        }
        for at in 0..self.nodes.len() {
            let life = self.nodes[at].life;
            self.later(START, Event::Told(at, life, Input::Origin { available: false }));
        }
    }

    /// The node that brought most into its rack, and the first others.
    fn victims(&self) -> Vec<usize> {
        let mut all: Vec<_> = (0..self.nodes.len()).collect();
        all.sort_by_key(|at| Reverse(self.nodes[*at].imported));
        all[1..].sort_unstable();
        all.truncate(Fault::victims(all.len()));
        all
    }

    pub(super) fn cut(&mut self, cut: bool) {
        self.is_cut = cut;
        let rate = if cut { 0.0 } else { self.topology.rack_mbit as f64 };
        let (out, into) = self.uplinks[0];
        self.fluid.set_rate(out, rate);
        self.fluid.set_rate(into, rate);
    }

    /// Every pair of nodes with the uplink of rack 1 between them.
    pub(super) fn each_across(&mut self, mut act: impl FnMut(&mut Self, usize, usize)) {
        for one in 0..self.nodes.len() {
            for other in 0..one {
                if (self.nodes[one].rack == 0) != (self.nodes[other].rack == 0) {
                    act(self, one, other);
                }
            }
        }
    }
}
