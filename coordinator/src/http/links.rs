//! `/api/v1/mesh/links`: who feeds whom, added up from what nodes say they were given and by whom.
//!
//! Invariant: nobody waits for a whole fleet to be looked at: its nodes are, some at a time.

use std::{cmp::Reverse, collections::BTreeMap, ops::Bound, sync::Arc};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use firmesh_protocol::{
    api::{MeshLink, MeshLinks},
    ids::{NodeId, TopologyPath},
};
use serde::Deserialize;

use super::{
    App,
    problem::Failure,
    routes::{Op, Routes},
};
use crate::{
    access::Permission,
    world::{NodeState, World},
};

type Shared = State<Arc<App>>;

/// Nodes that are looked at before others get their turn.
const CHUNK: usize = 1_000;

/// Links that are shown: more are read by nobody.
const LINKS_MAX: usize = 1_000;

#[rustfmt::skip]
pub(super) fn add_routes(routes: &mut Routes) {
    routes.add("places", "/api/v1/mesh/links", [
        Op::get("Who feeds whom: bytes between racks, or between nodes, by the word of those who were fed, since each of them was started.", links)
            .needs(Permission::FleetRead)
            .query("within", "only what comes to this place, such as `eu/fra1`")
            .query("by", "`rack` (the default), or `node` for those of a place")
            .answers::<MeshLinks>(),
    ]);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LinksQuery {
    within: Option<TopologyPath>,
    by: Option<By>,
}

/// What a link is between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    #[default]
    Rack,
    Node,
}

impl By {
    fn place(self, path: &TopologyPath) -> TopologyPath {
        match self {
            Self::Node => path.clone(),
            Self::Rack => path.parent().unwrap_or_else(|| path.clone()),
        }
    }
}

/// Sums of links.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    links: BTreeMap<(Option<TopologyPath>, TopologyPath), u64>,
    unnamed_bytes: u64,
}

impl Sums {
    /// Adds what one node was given.
    fn add(&mut self, node: &NodeState, by: By, path_of: impl Fn(&NodeId) -> Option<TopologyPath>) {
        let to = by.place(&node.stored.path);
        let mut link = |from: Option<TopologyPath>, bytes: u64| {
            if bytes > 0 {
                let sum = self.links.entry((from, to.clone())).or_default();
                *sum = sum.saturating_add(bytes);
            }
        };
        let traffic = &node.traffic;
        link(None, traffic.from_origin);
        let of_peers = traffic.from_rack.saturating_add(traffic.from_other_racks);
        let mut named = 0_u64;
        for feeder in &node.feeders {
            // One that is no member any more gave all the same: nobody knows where it stood.
            if let Some(path) = path_of(&feeder.node) {
                named = named.saturating_add(feeder.bytes);
                link(Some(by.place(&path)), feeder.bytes);
            }
        }
        self.unnamed_bytes = self.unnamed_bytes.saturating_add(of_peers.saturating_sub(named));
    }

    fn merge(&mut self, other: Self) {
        for (link, bytes) in other.links {
            let sum = self.links.entry(link).or_default();
            *sum = sum.saturating_add(bytes);
        }
        self.unnamed_bytes = self.unnamed_bytes.saturating_add(other.unnamed_bytes);
    }

    fn answer(self) -> MeshLinks {
        let link = |((from, to), bytes)| MeshLink { from, to, bytes };
        let mut links: Vec<_> = self.links.into_iter().map(link).collect();
        links.sort_by_key(|link| Reverse(link.bytes));
        let left_out = links.len().saturating_sub(LINKS_MAX) as u64;
        links.truncate(LINKS_MAX);
        MeshLinks {
            links,
            left_out,
            unnamed_bytes: self.unnamed_bytes,
        }
    }
}

/// What the next nodes were given, and the last of them.
fn stretch(world: &World, after: Option<&NodeId>, within: Option<&TopologyPath>, by: By) -> (Sums, Option<NodeId>) {
    let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
    let (mut sums, mut last) = (Sums::default(), None);
    for (id, node) in world.nodes.range::<NodeId, _>((begin, Bound::Unbounded)).take(CHUNK) {
        last = Some(id.clone());
        if within.is_none_or(|within| node.stored.path.is_within(within)) {
            sums.add(node, by, |peer| Some(world.nodes.get(peer)?.stored.path.clone()));
        }
    }
    (sums, last)
}

async fn links(
    State(app): Shared,
    query: Result<Query<LinksQuery>, QueryRejection>,
) -> Result<Json<MeshLinks>, Failure> {
    let Query(LinksQuery { within, by }) = query.map_err(|error| Failure::bad_request(error.body_text()))?;
    let by = by.unwrap_or_default();
    if by == By::Node && within.is_none() {
        let detail = "links between nodes are shown of one place: add `within`, such as `within=eu/fra1`";
        return Err(Failure::bad_request(detail));
    }
    let within = Arc::new(within);
    let (mut sums, mut after) = (Sums::default(), None);
    loop {
        let (from, place) = (after.take(), Arc::clone(&within));
        let look = app
            .coordinator
            .read(move |world| stretch(world, from.as_ref(), place.as_ref().as_ref(), by));
        let (more, last) = look.await?;
        sums.merge(more);
        match last {
            Some(last) => after = Some(last),
            None => return Ok(Json(sums.answer())),
        }
    }
}

#[cfg(test)]
mod tests {
    use firmesh_protocol::api::{Feeder, Traffic};

    use super::*;
    use crate::store::StoredNode;

    fn node(path: &str, traffic: (u64, u64, u64), feeders: &[(&str, u64)]) -> NodeState {
        let path: TopologyPath = path.parse().unwrap();
        let name = path.segments().next_back().unwrap().to_owned();
        let mut node = NodeState::new(StoredNode {
            node: NodeId::new(name).unwrap(),
            path,
            ticket: None,
            certificate: None,
            certificate_before: None,
            record: None,
            acked: 0,
            last_seen: None,
            silent: false,
        });
        node.traffic = Traffic {
            from_origin: traffic.0,
            from_rack: traffic.1,
            from_other_racks: traffic.2,
            ..Traffic::default()
        };
        let feeder = |(node, bytes): &(&str, u64)| Feeder {
            node: NodeId::new(*node).unwrap(),
            bytes: *bytes,
        };
        node.feeders = feeders.iter().map(feeder).collect();
        node
    }

    fn sums(by: By) -> MeshLinks {
        let nodes = [
            node("eu/s1/r1/n1", (100, 0, 0), &[]),
            node("eu/s1/r1/n2", (0, 90, 0), &[("n1", 90)]),
            node("eu/s1/r2/n3", (5, 7, 95), &[("n1", 60), ("n2", 30), ("gone", 5)]),
        ];
        let mut sums = Sums::default();
        for one in &nodes {
            let path_of = |id: &NodeId| {
                let found = nodes.iter().find(|node| node.stored.node == *id);
                found.map(|node| node.stored.path.clone())
            };
            let mut part = Sums::default();
            part.add(one, by, path_of);
            sums.merge(part);
        }
        sums.answer()
    }

    fn shown(links: &MeshLinks) -> Vec<String> {
        let from = |link: &MeshLink| {
            link.from
                .as_ref()
                .map_or_else(|| "origin".to_owned(), ToString::to_string)
        };
        let line = |link: &MeshLink| format!("{} > {} {}", from(link), link.to, link.bytes);
        links.links.iter().map(line).collect()
    }

    #[test]
    fn what_nodes_were_given_is_added_up_by_rack_or_by_node_and_what_nobody_is_named_for_is_said() {
        let racks = sums(By::Rack);
        let r = [
            "origin > eu/s1/r1 100",
            "eu/s1/r1 > eu/s1/r1 90",
            "eu/s1/r1 > eu/s1/r2 90",
            "origin > eu/s1/r2 5",
        ];
        assert_eq!(shown(&racks), r);
        // From within its rack, and from who is no member any more.
        assert_eq!((racks.unnamed_bytes, racks.left_out), (12, 0));
        let n = [
            "origin > eu/s1/r1/n1 100",
            "eu/s1/r1/n1 > eu/s1/r1/n2 90",
            "eu/s1/r1/n1 > eu/s1/r2/n3 60",
            "eu/s1/r1/n2 > eu/s1/r2/n3 30",
            "origin > eu/s1/r2/n3 5",
        ];
        assert_eq!(shown(&sums(By::Node)), n);
    }
}
