//! What goes wrong for other tools: the same moments as for Firmesh, told from the links alone, for nobody tells us what it holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use firmesh_simulations::mesh::{Fault, ORIGIN_PERCENT, Topology};

use super::{Others, node_name};
use crate::bench::mesh::{
    faults::victims,
    network::{Counters, Network},
};

/// Of what nodes receive, in percent, the image alone: headers of TCP and below make the rest.
const WIRE_PERCENT: u64 = 105;
/// Without so much of an image, in percent, to all nodes together, for so long, a tool has given up: libtorrent waits a minute
/// for a peer's answer.
const MOVES_PERCENT: u64 = 1;
const MOVES_WITHIN: Duration = Duration::from_secs(90);

/// A fault on its way, or what it has left behind.
#[derive(Debug)]
pub(super) struct Strike {
    fault: Option<Fault>,
    topology: Topology,
    before: Counters,
    dead: BTreeSet<String>,
    /// Once it has struck: what had arrived when something moved last, and when that was.
    moved: Option<(u64, Instant)>,
}

impl Strike {
    pub(super) fn new(fault: Option<Fault>, before: &Counters, topology: &Topology) -> Self {
        Self {
            fault,
            topology: *topology,
            before: before.clone(),
            dead: BTreeSet::new(),
            moved: None,
        }
    }

    /// Whether a node was killed.
    pub(super) fn is_dead(&self, node: &str) -> bool {
        self.dead.contains(node)
    }

    /// A fault that has not struck.
    pub(super) fn is_still_to_come(&self) -> Option<Fault> {
        self.fault.filter(|_| self.moved.is_none())
    }

    /// Whether waiting has no point any more.
    pub(super) fn nothing_moves(&self) -> bool {
        self.moved.is_some_and(|(_, since)| since.elapsed() > MOVES_WITHIN)
    }

    /// Strikes if the moment has come; later, looks whether anything moves still.
    pub(super) fn look(&mut self, network: &Network, others: &mut Others<'_>) -> Result<()> {
        let Some(fault) = self.fault else {
            return Ok(());
        };
        if let Some((then, _)) = self.moved {
            let now = network.arrived()?;
            if (now - then) * 100 >= self.topology.image_bytes() * MOVES_PERCENT {
                self.moved = Some((now, Instant::now()));
            }
            return Ok(());
        }
        if self.is_due(fault, network)? {
            match fault {
                Fault::OriginKilled => others.kill_origin()?,
                _ => {
                    for node in self.busiest(&network.counters()?) {
                        others.kill_node(&node)?;
                        self.dead.insert(node);
                    }
                }
            }
            self.moved = Some((network.arrived()?, Instant::now()));
        }
        Ok(())
    }

    fn is_due(&self, fault: Fault, network: &Network) -> Result<bool> {
        Ok(match fault {
            Fault::OriginKilled => {
                let left = network.origin_out()? - self.before.origin_out;
                left * 100 >= self.topology.image_bytes() * ORIGIN_PERCENT
            }
            _ => {
                let arrived = network.arrived()? - self.before.node_in.iter().sum::<u64>();
                arrived * 100 * 2 >= self.topology.image_bytes() * u64::from(self.topology.count()) * WIRE_PERCENT
            }
        })
    }

    /// A fifth of the nodes: the one that has sent most, and the first others by name.
    fn busiest(&self, now: &Counters) -> Vec<String> {
        let moved = now.since(&self.before);
        let racks = 1..=self.topology.racks;
        let names = racks.flat_map(|rack| (1..=self.topology.nodes).map(move |number| node_name(rack, number)));
        victims(&names.zip(moved.node_out).collect::<BTreeMap<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_sent_most_is_killed_first() {
        let topology = Topology {
            racks: 2,
            nodes: 5,
            origin_mbit: 50,
            rack_mbit: 200,
            node_mbit: 100,
            size_mib: 128,
        };
        let counted = |node_out: [u64; 10]| Counters {
            node_out: node_out.to_vec(),
            ..Counters::default()
        };
        let strike = Strike::new(
            Some(Fault::PeersKilled),
            &counted([9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            &topology,
        );
        let now = counted([9, 0, 0, 0, 0, 2, 0, 5, 0, 0]);
        assert_eq!(strike.busiest(&now), ["r2-n3", "r1-n1"]);
        assert_eq!(strike.is_still_to_come(), Some(Fault::PeersKilled));
    }
}
