//! Racks, nodes and rates of a measurement, and the least time that any way of distribution needs there.

use clap::{Args, ValueEnum};
use serde::Serialize;

/// A named topology of the goals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(super) enum Named {
    /// 3 racks x 4 nodes, origin 100, racks 400, nodes 200 Mbit/s, 256 MiB: the origin's uplink is the narrowest.
    A,
    /// 4 x 6, 50/200/100, 128 MiB.
    B,
    /// 1 x 8, 50/200/100, 128 MiB.
    C,
    /// 3 x 4, 200/100/50, 128 MiB: the nodes' own links are the narrowest.
    N,
    /// As A, with 64 MiB.
    S,
    /// 4 x 6, 400/100/100, 128 MiB: oversubscribed racks.
    O,
}

/// Which network to build.
#[derive(Debug, Clone, Args)]
pub struct TopologyArgs {
    /// A topology by name: A, B, C, N, S or O.
    #[arg(long, value_enum, ignore_case = true, default_value = "A")]
    topology: Named,
    /// Racks, instead of the named topology's.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    racks: Option<u32>,
    /// Nodes per rack.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    nodes: Option<u32>,
    /// The origin's uplink, Mbit/s.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    origin_mbit: Option<u64>,
    /// Each rack's uplink, Mbit/s.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rack_mbit: Option<u64>,
    /// Each node's link, Mbit/s.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    node_mbit: Option<u64>,
    /// Image size, MiB.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=8192))]
    size: Option<u64>,
}

/// A network to measure on. Every link has its rate in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Racks.
    pub racks: u32,
    /// Nodes per rack.
    pub nodes: u32,
    /// The origin's uplink, Mbit/s.
    pub origin_mbit: u64,
    /// Each rack's uplink, Mbit/s.
    pub rack_mbit: u64,
    /// Each node's link, Mbit/s.
    pub node_mbit: u64,
    /// The image, MiB.
    pub size_mib: u64,
}

impl Named {
    pub(super) fn topology(self) -> Topology {
        let (racks, nodes, [origin_mbit, rack_mbit, node_mbit], size_mib) = match self {
            Self::A => (3, 4, [100, 400, 200], 256),
            Self::B => (4, 6, [50, 200, 100], 128),
            Self::C => (1, 8, [50, 200, 100], 128),
            Self::N => (3, 4, [200, 100, 50], 128),
            Self::S => (3, 4, [100, 400, 200], 64),
            Self::O => (4, 6, [400, 100, 100], 128),
        };
        Topology {
            racks,
            nodes,
            origin_mbit,
            rack_mbit,
            node_mbit,
            size_mib,
        }
    }
}

impl TopologyArgs {
    /// The named topology with what was given instead.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let named = self.topology.topology();
        Topology {
            racks: self.racks.unwrap_or(named.racks),
            nodes: self.nodes.unwrap_or(named.nodes),
            origin_mbit: self.origin_mbit.unwrap_or(named.origin_mbit),
            rack_mbit: self.rack_mbit.unwrap_or(named.rack_mbit),
            node_mbit: self.node_mbit.unwrap_or(named.node_mbit),
            size_mib: self.size.unwrap_or(named.size_mib),
        }
    }
}

impl Topology {
    /// Nodes in all.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.racks * self.nodes
    }

    /// The image's length in bytes.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.size_mib << 20
    }

    /// The least seconds until the last node can have the image, payload alone: the narrowest of the origin's uplink, a
    /// node's link, everybody's uploads together, a rack's uplink, and the uploads into the racks together (after Kumar
    /// and Ross, "Peer-Assisted File Distribution: The Minimum Distribution Time").
    #[must_use]
    pub fn bound_s(&self) -> f64 {
        let image = self.image_bytes() as f64 * 8.0 / 1e6;
        let [origin, rack, node] = [self.origin_mbit, self.rack_mbit, self.node_mbit].map(|mbit| mbit as f64);
        let (racks, count) = (f64::from(self.racks), f64::from(self.count()));
        [
            image / origin,
            image / node,
            count * image / (origin + count * node),
            image / rack,
            racks * image / (origin + racks * rack),
        ]
        .into_iter()
        .fold(0.0, f64::max)
    }

    /// The least bytes into all racks together.
    #[must_use]
    pub fn import_min(&self) -> u64 {
        u64::from(self.racks) * self.image_bytes()
    }

    /// The least bytes out of all racks together, if each crosses the origin's uplink once.
    #[must_use]
    pub fn export_min(&self) -> u64 {
        u64::from(self.racks - 1) * self.image_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_link_gives_the_bound() {
        let bound = |named: Named| (named.topology().bound_s() * 100.0).round() / 100.0;
        assert_eq!(bound(Named::A), 21.47); // 256 MiB at 100 Mbit/s
        assert_eq!(bound(Named::B), 21.47);
        assert_eq!(bound(Named::C), 21.47);
        assert_eq!(bound(Named::N), 21.47); // a node's 50 Mbit/s
        assert_eq!(bound(Named::S), 5.37);
        assert_eq!(bound(Named::O), 10.74); // a rack's 100 Mbit/s
        let slow_uploads = Topology {
            racks: 1,
            nodes: 10,
            origin_mbit: 10,
            rack_mbit: 1_000,
            node_mbit: 10,
            size_mib: 10,
        };
        assert_eq!((slow_uploads.bound_s() * 100.0).round() / 100.0, 8.39);
    }
}
