//! Nodes that fall silent and come back. A whole site behind one link is one notice, not a thousand.
//!
//! Invariant: whether a node was told of as silent is stored with it, in the transaction of the notice; so every silence is told
//! once, and ends with a word, over restarts too.

use std::{collections::BTreeMap, time::Duration};

use firmesh_protocol::{
    ids::{NodeId, TopologyPath},
    time::{Timestamp, WallTime},
};
use tracing::{error, info, warn};

use super::notice::{Notice, NoticeKind};
use crate::{
    runtime::Runtime,
    store::Write,
    telemetry::chain,
    world::{NodeState, World},
};

/// Region and site.
const SITE_LEVELS: usize = 2;

/// Nodes are looked at so often at most and at least.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// When nodes are looked at, and since when they could be heard.
#[derive(Debug)]
pub(crate) struct Watch {
    began: WallTime,
    pub(crate) look_at: Timestamp,
}

impl Watch {
    pub(crate) fn new(now: Timestamp, wall: WallTime) -> Self {
        Self {
            began: wall,
            look_at: now,
        }
    }
}

/// What changed since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    notices: Vec<Notice>,
    nodes: Vec<(NodeId, bool)>,
}

/// Who has fallen silent and who is back, by site. Nobody could be heard before `began`.
fn changes(world: &World, silent_after: Duration, began: WallTime, now: WallTime) -> Changes {
    let mut sites: BTreeMap<TopologyPath, (Vec<NodeId>, Vec<NodeId>, u64)> = BTreeMap::new();
    for (id, node) in &world.nodes {
        let Some(is_silent) = is_silent(world, node, silent_after, began, now) else {
            continue;
        };
        let (fallen, back, silent) = sites.entry(node.stored.path.prefix(SITE_LEVELS)).or_default();
        *silent += u64::from(is_silent);
        match (node.stored.silent, is_silent) {
            (false, true) => fallen.push(id.clone()),
            (true, false) => back.push(id.clone()),
            _ => {}
        }
    }
    let mut changes = Changes::default();
    for (site, (fallen, back, silent)) in sites {
        for (kind, nodes) in [(NoticeKind::NodesSilent, fallen), (NoticeKind::NodesBack, back)] {
            if !nodes.is_empty() {
                changes
                    .notices
                    .push(Notice::of_nodes(kind, site.clone(), &nodes, silent));
                let is_silent = kind == NoticeKind::NodesSilent;
                changes.nodes.extend(nodes.into_iter().map(|id| (id, is_silent)));
            }
        }
    }
    changes
}

/// Nothing is expected of a node that was revoked or has never spoken.
fn is_silent(world: &World, node: &NodeState, silent_after: Duration, began: WallTime, now: WallTime) -> Option<bool> {
    let key = node.stored.key()?;
    let seen = node
        .stored
        .last_seen
        .filter(|_| !world.revocations.list.contains(&key))?;
    // After a start, one that was silent stays so until it speaks; the others have their time.
    let since = if node.stored.silent { seen } else { seen.max(began) };
    Some(since + silent_after < now)
}

impl Runtime {
    /// Looks who is silent, and stores it with the notices.
    pub(crate) async fn look_for_silence(&mut self) {
        let silent_after = self.settings.silent_after;
        let (soonest, latest) = LOOK_EVERY;
        self.watch.look_at = self.clock.now() + (silent_after / 4).clamp(soonest, latest);
        let wall = self.clock.wall();
        let Changes { notices, nodes } = changes(&self.world, silent_after, self.watch.began, wall);
        if notices.is_empty() {
            return;
        }
        let mut writes: Vec<_> = notices
            .iter()
            .cloned()
            .map(|notice| Write::Notice(Box::new(notice)))
            .collect();
        let changed = nodes.iter().filter_map(|(id, silent)| {
            let mut stored = self.world.nodes.get(id)?.stored.clone();
            stored.silent = *silent;
            Some(Write::Node(Box::new(stored)))
        });
        writes.extend(changed);
        if let Err(failure) = self.commit(writes).await {
            error!(error = %chain(&failure), "nodes that fell silent could not be noted, they are looked at again");
            return;
        }
        for (id, silent) in nodes {
            if let Some(node) = self.world.nodes.get_mut(&id) {
                node.stored.silent = silent;
            }
        }
        for notice in notices {
            let (site, nodes) = (notice.subject(), notice.count);
            match notice.kind {
                NoticeKind::NodesSilent => warn!(site, nodes, "nodes have fallen silent"),
                _ => info!(site, nodes, "nodes are heard of again"),
            }
        }
    }
}
