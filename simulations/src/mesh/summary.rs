//! What came of a transfer, as ratios to the least possible.

use std::collections::BTreeMap;

use firmesh_protocol::{ids::NodeId, time::Timestamp};
use serde::Serialize;

use super::{Broken, LinkId, WIRE, World};

/// What came of a transfer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Nodes that were to have the image: those that neither lie nor were killed for good.
    pub nodes: usize,
    /// Nodes that have it.
    pub complete: usize,
    /// Seconds until half of them had it, 99 of 100, and the last; a slow node's own time does not count.
    pub p50_s: f64,
    /// Until 99 of 100 had it.
    pub p99_s: f64,
    /// Until the last had it.
    pub last_s: f64,
    /// The least seconds that any way of distribution needs ([`Topology::bound_s`](super::Topology::bound_s)), as payload.
    pub bound_s: f64,
    /// Bytes that left the origin, in images.
    pub origin: f64,
    /// Bytes into all racks, to the least possible.
    pub import: f64,
    /// Bytes out of all racks, to the least possible; nothing with one rack.
    pub export: Option<f64>,
    /// Bytes that came to these nodes and were no use to them, in images: wrong, broken off, or twice.
    pub wasted: f64,
    /// Nodes that lie.
    pub liars: usize,
    /// Nodes that were banned by somebody.
    pub banned: usize,
    /// When each node had the image, in seconds.
    pub finished: BTreeMap<NodeId, f64>,
    /// The first promise that was broken.
    pub broken: Option<Broken>,
}

impl Summary {
    /// How many times the bound the last node took.
    #[must_use]
    pub fn to_bound(&self) -> f64 {
        self.last_s / self.bound_s
    }
}

impl World {
    pub(super) fn summary(&self) -> Summary {
        let all = || (0_usize..).zip(&self.nodes);
        let expected: Vec<_> = all().filter(|(_, node)| Self::is_expected(node)).collect();
        let seconds = |at: Timestamp| at.since(Timestamp::default()).as_secs_f64();
        let finished: BTreeMap<_, _> = expected
            .iter()
            .filter_map(|(_, node)| Some((node.id.clone(), seconds(node.whole_at?))))
            .collect();
        // Nobody can bring bytes to a slow node faster than its link.
        let counted = expected.iter().filter(|(at, _)| self.slow != Some(*at));
        let mut times: Vec<_> = counted.filter_map(|(_, node)| Some(seconds(node.whole_at?))).collect();
        times.sort_unstable_by(f64::total_cmp);
        let percentile = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100);
            times.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        let sum = |link: fn(&(LinkId, LinkId)) -> LinkId| -> f64 {
            self.uplinks.iter().map(|both| self.fluid.carried(link(both))).sum()
        };
        let (image, least) = (self.topology.image_bytes() as f64, self.topology.export_min() as f64);
        let useful = |piece: u32| {
            let bytes = self.layout.bytes(piece);
            (bytes.end - bytes.start) as f64 * WIRE
        };
        let wasted = expected.iter().map(|(_, node)| {
            let used: f64 = node.held.iter().map(useful).sum();
            self.fluid.carried(node.down) - used
        });
        Summary {
            nodes: expected.len(),
            complete: finished.len(),
            p50_s: percentile(50),
            p99_s: percentile(99),
            last_s: percentile(100),
            bound_s: self.topology.bound_s(),
            origin: self.fluid.carried(self.origin_up) / image,
            import: sum(|both| both.1) / self.topology.import_min() as f64,
            export: (least > 0.0).then(|| sum(|both| both.0) / least),
            wasted: wasted.sum::<f64>() / image,
            liars: self.nodes.iter().filter(|node| node.lie.is_some()).count(),
            banned: self.banned.len(),
            finished,
            broken: self.books.broken.clone(),
        }
    }
}
